"""How a checkpoint's files say that media are prepared: read with care, for transformers' processors and for ours."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from isobit.checkpoint.files import is_there
from isobit.checkpoint.jsonfile import read_json

Part = Literal["image_processor", "video_processor", "feature_extractor"]

TOGETHER = "processor_config.json"  # what transformers 5 writes: a section for each
ALONE: dict[Part, tuple[str, ...]] = {
    "image_processor": ("preprocessor_config.json",),
    "video_processor": ("video_preprocessor_config.json", "preprocessor_config.json"),
    "feature_extractor": ("preprocessor_config.json",),
}
_LARGEST = 1 << 20  # bytes


def settings(folder: Path, part: Part) -> tuple[dict[str, Any], Path]:
    """What the files say about one processor, and the file that says it, as transformers looks for them.

    Args:
        folder: of the checkpoint.
        part: which processor.

    Returns:
        Nothing where no file speaks of it; the file is then the one that would.

    Raises:
        CheckpointError: a file is no JSON object.
    """
    whole = _optional(folder / TOGETHER)
    if isinstance(whole.get(part), Mapping):
        return dict(whole[part]), folder / TOGETHER
    for name in ALONE[part]:
        if is_there(folder / name):
            return read_json(folder / name, _LARGEST), folder / name
    return {}, folder / ALONE[part][0]


def processor_class(folder: Path) -> str | None:
    """The class of transformers that puts media into prompts, where a file names it."""
    for name in (TOGETHER, *ALONE["video_processor"], "tokenizer_config.json"):
        named = _optional(folder / name).get("processor_class")
        if isinstance(named, str):
            return named
    return None


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path, _LARGEST) if is_there(path) else {}
