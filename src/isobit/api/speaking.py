"""talker: a pipeline of speech that is ready to speak."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from isobit import arguments
from isobit.api.finding import DTYPES, device_and_target, model_named
from isobit.errors import CheckpointWarning, SourceError
from isobit.formats.caches import cache_format

if TYPE_CHECKING:
    from isobit.speech.talker import Talker


def talker(
    model: str | Path,
    *,
    dtype: str | None = None,
    device: str = "cpu",
    kv_cache: str = "auto",
    memory: int | str | None = None,
    sequences: int = 64,
    steps: int = 10,
) -> Talker:
    """Load a pipeline of speech (GLM-TTS), its language model quantized or not (docs/media.md).

    Args:
        model: its folder. The hub's copy is fetched with the hub's own tools: ``hf download zai-org/GLM-TTS``.
        dtype: what the language model computes in; flow and vocoder compute in float32.
        device, kv_cache, memory: as :func:`isobit.load` takes them.
        sequences: parts of texts that the language model works on at once.
        steps: of the flow, 1 to 100: fewer are faster, and sound worse.

    Returns:
        A :class:`isobit.speech.talker.Talker`: ``voice(sound, said)``, ``speak(text, voice)``.

    Raises:
        SourceError: there is no such folder.
        CheckpointError: a part of it is missing or damaged; names all that are missing.
        Unsupported: onnxruntime is not installed.

    Warns:
        CheckpointWarning: what people should know; its ``notes`` have it, too.
    """
    folder = folder_of(model)
    arguments.optional_choice("dtype", dtype, DTYPES)
    cache_format(kv_cache)
    most = arguments.optional_memory("memory", memory)
    device_and_target(device, None)
    from isobit.speech.talker import load_talker

    loaded = load_talker(
        folder, dtype, device, steps=steps, kv_cache=kv_cache, memory=most, sequences=sequences, prefix_cache=True
    )
    for note in loaded.notes:
        warnings.warn(note, CheckpointWarning, stacklevel=2)
    return loaded


def folder_of(model: str | Path) -> Path:
    """The folder of a pipeline.

    Raises:
        SourceError: there is none.
        CheckpointError: it lacks parts.
    """
    from isobit.checkpoint.files import is_folder
    from isobit.checkpoint.source import expanded
    from isobit.speech.files import parts

    path = expanded(model_named("model", model))
    if not is_folder(path):
        raise SourceError(
            f"there is no folder {path}: a pipeline of speech is read from a folder. For one of the hub run "
            "`hf download zai-org/GLM-TTS --local-dir GLM-TTS`, and put frontend/campplus.onnx of its code there"
        )
    return parts(path).folder


def is_pipeline(model: str | Path) -> bool:
    """Whether a model is the folder of a pipeline of speech."""
    from isobit.checkpoint import pipelines
    from isobit.checkpoint.source import expanded

    return pipelines.is_pipeline(expanded(model))
