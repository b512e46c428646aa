"""What files say of how pictures become patches, for towers of the kind that resizes a picture to whole patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isobit.errors import UsageError
from isobit.models.encoders.processors import settings
from isobit.models.fields import Fields
from isobit.models.media import Picture

_CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_MOST = 1 << 28  # pixels
MOST_STRETCHED = 200  # longer side over shorter one


@dataclass(frozen=True)
class Preparation:
    """How a picture becomes patches.

    Attributes:
        least, most: pixels of a resized picture.
        keys: what else transformers' processor is told.
    """

    least: int
    most: int
    keys: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, Any]:
        """What transformers' processor is made with."""
        return {"size": {"shortest_edge": self.least, "longest_edge": self.most}, **self.keys}


def visible(picture: Picture) -> tuple[int, int]:
    """Height and width of a picture that can be resized to whole patches.

    Raises:
        UsageError: it has no pixels, or is too long for its width.
    """
    height, width = picture.pixels.shape[:2]
    if not height or not width:
        raise UsageError(f"an image is {width} by {height} pixels: there is nothing to see")
    if max(height, width) > MOST_STRETCHED * min(height, width):
        raise UsageError(
            f"an image is {width} by {height} pixels: this model sees those whose longer side is up to"
            f" {MOST_STRETCHED} times the shorter; cut it into parts"
        )
    return height, width


def preparation(folder: Path, patch: int, merge: int, together: int, usual: tuple[int, int]) -> Preparation:
    """How the files of a checkpoint say that pictures are prepared.

    Args:
        folder: of the checkpoint.
        patch: pixels of an edge of a patch.
        merge: patches of an edge of a token.
        together: frames of a patch.
        usual: fewest and most pixels where nothing says them.

    Raises:
        ModelError: they say what is not implemented, or contradict the tower.
        CheckpointError: a file is no JSON object.
    """
    given, path = settings(folder, "image_processor")
    keys = Fields(given, path.name)
    for key, wanted in (("patch_size", patch), ("merge_size", merge), ("temporal_patch_size", together)):
        keys.only(key, (wanted,), "value beside that of config.json")
    for key in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        keys.only(key, (True,), "way to prepare images")
    size = keys.section("size") or keys.inner({}, "size")
    names = ("shortest_edge", "min_pixels"), ("longest_edge", "max_pixels")
    least, most = (
        keys.integer(beside, size.integer(key, pixels, high=_MOST), high=_MOST)
        for (key, beside), pixels in zip(names, usual, strict=True)
    )
    if keys.sound and least > most:
        keys.complain(f"images get {least} pixels at least and {most} at most: correct one of the two")
    told = {
        "image_mean": _three(keys, "image_mean", _CLIP[0]),
        "image_std": _three(keys, "image_std", _CLIP[1]),
        "rescale_factor": keys.number("rescale_factor", 1 / 255, high=1e6),
        "patch_size": patch,
        "merge_size": merge,
        "temporal_patch_size": together,
    }
    keys.check()
    return Preparation(least, most, told)


def _three(keys: Fields, key: str, usual: tuple[float, ...]) -> list[float]:
    """A number for each colour."""
    value = keys.raw(key)
    if value is None:
        return list(usual)
    sound = isinstance(value, list) and len(value) == 3 and all(type(one) in (int, float) for one in value)
    if not sound or not all(abs(one) < 1e6 and (one > 0 or key != "image_std") for one in value):
        keys.problem(key, "expected a number for each of three colours")
        return list(usual)
    return [float(one) for one in value]
