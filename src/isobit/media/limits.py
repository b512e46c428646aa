"""What a file of a picture, a clip or a sound may cost: checked before it is decoded."""

from __future__ import annotations

from dataclasses import dataclass

from isobit import arguments
from isobit.errors import UsageError

COUNTED = 48_000  # samples a second that the limit on seconds is made for
MOST_PIXELS = 178_956_970  # beyond them Pillow itself refuses, whatever it is told


@dataclass(frozen=True)
class Limits:
    """Bounds of media. Decoded, a pixel takes 3 bytes and a sample 4.

    Attributes:
        bytes: of one file.
        pixels: of one picture, or of all frames of a clip together.
        frames: of one clip.
        seconds: of one sound or clip; of a sound of more than 48,000 samples a second, as many samples as of one of
            48,000.
        count: of media in one prompt.

    Raises:
        UsageError: one of them is no positive number, or beyond what can be decoded.
    """

    bytes: int = 32 << 20
    pixels: int = 64 << 20
    frames: int = 512
    seconds: float = 600.0
    count: int = 32

    @property
    def samples(self) -> int:
        """Of one sound, at most."""
        return int(self.seconds * COUNTED)

    def __post_init__(self) -> None:
        arguments.whole("bytes", self.bytes, 1)
        arguments.whole("pixels", self.pixels, 1, MOST_PIXELS)
        arguments.whole("frames", self.frames, 1)
        arguments.whole("count", self.count, 0)
        if isinstance(self.seconds, bool) or not isinstance(self.seconds, int | float) or not 0 < self.seconds < 1e9:
            raise UsageError(f"seconds must be a number above 0 and below 1e9, not {self.seconds!r}")


LIMITS = Limits()


def require_size(data: bytes, limits: Limits, name: str) -> None:
    """Raises a UsageError if a file is empty or too large."""
    if not data:
        raise UsageError(f"{name} is empty")
    if len(data) > limits.bytes:
        raise UsageError(f"{name} has {len(data):,} bytes; the limit is {limits.bytes:,}")
