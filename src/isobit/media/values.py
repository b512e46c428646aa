"""Pictures, clips and sounds as values: decoded and bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["image", "video", "audio"]
PLURALS: dict[Kind, str] = {"image": "images", "video": "videos", "audio": "sounds"}


@dataclass(frozen=True, eq=False)
class Picture:
    """An image.

    Attributes:
        pixels: uint8 ``[height, width, 3]``, RGB.
    """

    pixels: NDArray[np.uint8]
    kind: Kind = "image"


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of a video, all of one size.

    Attributes:
        frames: uint8 ``[frames, height, width, 3]``, RGB.
        rate: frames a second.
    """

    frames: NDArray[np.uint8]
    rate: float
    kind: Kind = "video"


@dataclass(frozen=True, eq=False)
class Sound:
    """One channel of sound.

    Attributes:
        samples: float32 ``[N]``, finite; full scale is from -1 to 1, which files of floats and MP3 may leave a little.
        rate: samples a second.
    """

    samples: NDArray[np.float32]
    rate: int
    kind: Kind = "audio"


Medium = Picture | Clip | Sound
