"""Files of pictures, videos and sounds to values, within limits. No path is opened here and no address is asked."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isobit.media.clips import clip
    from isobit.media.limits import LIMITS, Limits
    from isobit.media.pictures import picture
    from isobit.media.sounds import sound
    from isobit.media.values import Clip, Kind, Medium, Picture, Sound

__all__ = ["LIMITS", "Clip", "Kind", "Limits", "Medium", "Picture", "Sound", "clip", "picture", "sound"]

_HOMES = {"clip": "clips", "picture": "pictures", "sound": "sounds", "LIMITS": "limits", "Limits": "limits"}


def __getattr__(name: str) -> Any:  # who asks for the limits alone, as `--help` does, needs no numpy
    if name in __all__:
        return getattr(importlib.import_module(f"isobit.media.{_HOMES.get(name, 'values')}"), name)
    raise AttributeError(f"module 'isobit.media' has no attribute {name!r}")
