"""The parts of a pipeline's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from isobit.checkpoint.files import is_there
from isobit.checkpoint.pipelines import FLOW as FLOW
from isobit.checkpoint.pipelines import MODEL
from isobit.errors import CheckpointError

TOKENIZER, SOUNDS = "vq32k-phoneme-tokenizer", "speech_tokenizer"
FLOW_CONFIG, SPEAKER, VOCODER = "flow/config.yaml", "frontend/campplus.onnx", "hift/hift.pt"
OTHER_VOCODER = "vocos2d/generator_jit.ckpt"
PARTS = (MODEL, TOKENIZER, SOUNDS, FLOW, FLOW_CONFIG, SPEAKER, VOCODER)


@dataclass(frozen=True)
class Parts:
    """Where they are."""

    folder: Path

    @property
    def model(self) -> Path:
        """The folder of the language model."""
        return self.folder / MODEL

    @property
    def tokenizer(self) -> Path:
        """The folder of its tokenizer."""
        return self.folder / TOKENIZER

    @property
    def notes(self) -> tuple[str, ...]:
        """What people should know."""
        found: tuple[str, ...] = (
            "the flow, the vocoder and the tokenizer of sounds of this pipeline are isobit's own, written from public "
            "descriptions: never compared with the published weights (docs/media.md says what they were compared with)",
        )
        if is_there(self.folder / OTHER_VOCODER):
            found += (
                f"{OTHER_VOCODER} is a TorchScript program, which is not run: {VOCODER} makes the samples, at 24 kHz",
            )
        return found


def parts(folder: Path) -> Parts:
    """The parts of a folder.

    Raises:
        CheckpointError: some are missing; names all of them.
    """
    missing = [part for part in PARTS if not is_there(folder / part)]
    if len(missing) == len(PARTS):
        raise CheckpointError(
            "holds no pipeline of speech: isobit knows GLM-TTS, whose folder has " + ", ".join(PARTS), file=folder
        )
    if missing:
        hint = ""
        if VOCODER in missing and is_there(folder / OTHER_VOCODER):
            hint = f"; {OTHER_VOCODER} is a TorchScript program, which isobit does not run"
        if SPEAKER in missing:
            hint += f"; {SPEAKER} comes with the code of GLM-TTS, not with its weights: put it there"
        raise CheckpointError(f"lacks {', '.join(missing)}{hint}", file=folder)
    return Parts(folder)
