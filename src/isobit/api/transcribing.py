"""transcribe: what is said in a sound, as text."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isobit import arguments
from isobit.api import loading
from isobit.checkpoint.files import why
from isobit.errors import CheckpointWarning, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from isobit.engine.llm import LLM
    from isobit.engine.loaded import Model
    from isobit.engine.transcription import Transcript
    from isobit.media.values import Sound

MODEL = "zai-org/GLM-ASR-Nano-2512"
PARTS = 16  # that are written at once
LARGEST, LONGEST = 4 << 30, 6 * 3600.0  # bytes and seconds of files that people name themselves


def transcribe(
    model: str | Path | LLM | Model,
    sound: str | Path | bytes | Sound,
    *,
    prompt: str | None = None,
    window: float | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    kv_cache: str = "auto",
    batch_invariant: bool = False,
    memory: int | str | None = None,
    context: int | None = None,
    **sampling: Any,
) -> Transcript:
    """Write down what is said in a sound.

    A sound that is longer than the model hears, or than it can write down in its context, is cut at quiet places; the
    texts of the parts are joined, and ``parts`` of the result says where.

    Args:
        model: a model that hears (``"zai-org/GLM-ASR-Nano-2512"``) as :func:`isobit.load` takes one, or one that is
            loaded already (:func:`isobit.LLM` or :func:`isobit.load`): the options of loading are then idle.
        sound: a file (WAV, FLAC, OGG, MP3), its bytes, or samples with their rate.
        prompt: what is asked of the model, behind the sound; None for what it was trained with.
        window: seconds of a part at most.
        dtype, revision, device, kv_cache, batch_invariant, memory, context: as :func:`isobit.load` takes them.
        sampling: fields of :class:`isobit.engine.params.SamplingParams`, e.g. ``temperature=0.2``.

    Raises:
        UsageError: an argument cannot be used; the model does not hear; the sound is damaged, too short or too long.
        CapacityError: memory does not suffice.

    Warns:
        CheckpointWarning: what people should know about this checkpoint.
    """
    _require(prompt, window)
    arguments.flag("batch_invariant", batch_invariant)
    found = read_sound(sound)
    if isinstance(model, str | Path):
        model = opened(
            model, dtype=dtype, revision=revision, device=device, kv_cache=kv_cache, batch_invariant=batch_invariant,
            memory=memory, context=context,
        )  # fmt: skip
        for note in model.notes:
            warnings.warn(note, CheckpointWarning, stacklevel=2)
    for piece in transcribe_in_pieces(_llm(model), found, prompt=prompt, window=window, **sampling):
        if not isinstance(piece, str):
            return piece
    raise AssertionError("a transcription ends with the whole of it")


def transcribe_in_pieces(
    model: LLM, sound: Sound, *, prompt: str | None = None, window: float | None = None, **sampling: Any
) -> Iterator[str | Transcript]:
    """The same piece by piece: text as it comes, and last the whole. What is wrong is raised before the first piece."""
    from isobit.engine.params import SamplingParams
    from isobit.engine.transcription import Transcription, follow

    unknown = sorted(set(sampling) - set(SamplingParams.__dataclass_fields__))
    if unknown:
        raise UsageError(f"unknown sampling option {', '.join(unknown)}")
    params = SamplingParams(**model.tokenizer.defaults.choose(sampling).settings)
    return follow(Transcription(model, sound, prompt, window), params, sampling.get("max_tokens"))


def _llm(model: object) -> LLM:
    from isobit.engine.llm import LLM
    from isobit.engine.loaded import Model

    if isinstance(model, Model):
        model = model._generator.llm
    if not isinstance(model, LLM):
        raise UsageError(f"model must be a name, a folder or a loaded model, not {type(model).__name__}")
    return model


def opened(model: str | Path, **options: Any) -> LLM:
    """A model that hears, loaded.

    Raises:
        UsageError: it does not hear.
    """
    from isobit.engine.transcription import hearing

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # whoever calls shows its notes
        found = loading.LLM(model, sequences=PARTS, prefix_cache=False, **options)
    hearing(found)
    return found


def read_sound(sound: str | Path | bytes | Sound, name: str | None = None) -> Sound:
    """A sound, decoded.

    Args:
        sound: a file, its bytes, or samples.
        name: what errors call it; None for the file's own.

    Raises:
        UsageError: there is no such file, or it is no sound that can be read, or too long.
        CapacityError: memory does not suffice.
    """
    from isobit.media import Limits, Sound, sounds

    limits = Limits(bytes=LARGEST, seconds=LONGEST)
    if isinstance(sound, Sound):
        return sound
    if isinstance(sound, bytes | bytearray | memoryview):
        return sounds.sound(bytes(sound), limits, name=name or "the sound")
    path = Path(arguments.path("sound", sound))
    try:
        with open(path, "rb") as file:
            data = file.read(LARGEST + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {why(error)}") from None
    return sounds.sound(data, limits, name=name or str(path))


def _require(prompt: object, window: object) -> None:
    arguments.optional_text("prompt", prompt)
    if window is not None and (isinstance(window, bool) or not isinstance(window, int | float) or not window > 0):
        raise UsageError(f"window must be a number of seconds above 0, not {window!r}")
