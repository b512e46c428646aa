"""Frames of a video as GLM's towers read them: which ones, how large, cut into patches, and when each is.

transformers does this with torchvision alone, which not every PyTorch has; this is the same arithmetic without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from isobit.errors import UsageError

MOST_STRETCHED = 200  # times as long as wide


@dataclass(frozen=True)
class FrameSettings:
    """How the frames of a video are prepared.

    Attributes:
        sampling: which are taken, by how many there are and how many a second.
        patch, merge, together: pixels along an edge of a patch, patches along an edge of a token, frames of a token.
        least, most: pixels of all frames together.
        mean, std: of colours, from 0 to 1.
        factor: what makes bytes colours from 0 to 1.
    """

    sampling: Callable[[int, float], list[int]]
    patch: int = 14
    merge: int = 2
    together: int = 2
    least: int = 112 * 112
    most: int = 28 * 28 * 2 * 30000
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    factor: float = 1 / 255


@dataclass(frozen=True, eq=False)
class Frames:
    """A video as a tower reads it.

    Attributes:
        patches: float32 ``[frames * rows * columns, 3 * together * patch * patch]``; a frame here is several of the
            video together.
        grid: frames, and rows and columns of patches of each.
        seconds: when each is.
    """

    patches: Tensor
    grid: tuple[int, int, int]
    seconds: tuple[float, ...]


def prepare(frames: NDArray[np.uint8], rate: float, settings: FrameSettings) -> Frames:
    """Frames that are taken, resized and cut into patches.

    Args:
        frames: uint8 ``[N, height, width, 3]``.
        rate: frames a second.
        settings: see there.

    Raises:
        UsageError: there are none, or they are far longer than wide.
    """
    count, height, width = frames.shape[:3]
    if not count or not height or not width or not rate > 0:
        raise UsageError(f"a video of {count} frames of {width} x {height} pixels, {rate:g} a second: there is nothing")
    taken = settings.sampling(count, rate)
    rows, columns = fitted(
        len(taken), height, width, edge=settings.patch * settings.merge, together=settings.together,
        least=settings.least, most=settings.most,
    )  # fmt: skip
    read = taken + taken[-1:] * (-len(taken) % settings.together)
    parts = [read[begin : begin + settings.together] for begin in range(0, len(read), settings.together)]
    grid = len(parts), rows // settings.patch, columns // settings.patch
    cut = [_patches(_sized(frames[part], rows, columns), grid[1:], settings) for part in parts]
    times = [index / rate for index in taken[::2]][: len(parts)]  # of pairs, whatever together is
    return Frames(torch.cat(cut), grid, (*times, *times[-1:] * (len(parts) - len(times))))


def _sized(frames: NDArray[np.uint8], rows: int, columns: int) -> Tensor:
    """Frames of another size, uint8 ``[N, 3, rows, columns]``: bicubic, as Pillow does it."""
    pixels = torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))
    if pixels.shape[2:] == (rows, columns):
        return pixels
    return torch.nn.functional.interpolate(pixels, (rows, columns), mode="bicubic", antialias=True)


def _patches(frames: Tensor, grid: tuple[int, int], settings: FrameSettings) -> Tensor:
    """The patches of the frames of one token, those of a token one behind the other."""
    mean, std = (torch.tensor(one) * (1.0 / settings.factor) for one in (settings.mean, settings.std))
    colours = frames.to(torch.float32).sub_(mean[:, None, None]).div_(std[:, None, None])
    edge, merge, (rows, columns) = settings.patch, settings.merge, grid
    cut = colours.view(len(frames), 3, rows // merge, merge, edge, columns // merge, merge, edge)
    return cut.permute(2, 5, 3, 6, 1, 0, 4, 7).reshape(rows * columns, -1)


def fitted(frames: int, height: int, width: int, *, edge: int, together: int, least: int, most: int) -> tuple[int, int]:
    """The size that frames get: multiples of an edge, near their own, so that all have so many pixels together.

    Raises:
        UsageError: they are more than 200 times as long as wide.
    """
    if height < edge or width < edge:
        scale = max(edge / height, edge / width)
        height, width = int(height * scale), int(width * scale)
    if max(height, width) / min(height, width) > MOST_STRETCHED:
        raise UsageError(
            f"{width} x {height} pixels are too long: this model reads up to {MOST_STRETCHED} times as long as wide"
        )
    rows, columns = round(height / edge) * edge, round(width / edge) * edge
    pixels = round(frames / together) * together * rows * columns
    if pixels > most:
        shrink = math.sqrt(frames * height * width / most)
        rows, columns = (max(edge, math.floor(size / shrink / edge) * edge) for size in (height, width))
    elif pixels < least:
        grow = math.sqrt(least / (frames * height * width))
        rows, columns = (math.ceil(size * grow / edge) * edge for size in (height, width))
    return rows, columns


# ---------------------------------------------------------------------- which frames


def even(indices: Sequence[int]) -> list[int]:
    """Each frame once, in order, and the last twice where their number is odd."""
    once = list(dict.fromkeys(indices))
    return once + once[-1:] * (len(once) % 2)


def steadily(a_second: float, longest: float) -> Callable[[int, float], list[int]]:
    """GLM-4.1V and 4.5V: so many frames a second, of a longer video as many as of the longest.

    Args:
        a_second: frames that are taken of a second.
        longest: seconds.
    """

    def sampling(count: int, rate: float) -> list[int]:
        last, duration = count - 1, count / rate
        if duration <= longest:
            wanted = max(math.floor(duration * a_second), 1)
            return even([min(last, math.ceil(number * rate / a_second)) for number in range(wanted)])
        wanted = int(longest * a_second)
        if wanted >= count:
            return even(range(count))
        moments = np.linspace(0, duration, wanted, endpoint=True)
        return even([min(last, math.ceil(moment * rate)) for moment in moments])

    return sampling


_RATES = ((30, 3.0), (300, 1.0), (2400, 0.5))  # of videos of up to so many seconds: tokens a second
_MOST_FRAMES = 640


def by_length(together: int) -> Callable[[int, float], list[int]]:
    """GLM-4.6V: the longer a video, the fewer frames of a second.

    Args:
        together: frames of a token.
    """

    def sampling(count: int, rate: float) -> list[int]:
        duration = count / rate
        counted = min(duration, _RATES[-1][0])
        a_second = next(number for longest, number in _RATES if counted <= longest)
        wanted = min(int(counted * a_second * together), _MOST_FRAMES)
        found = _spread(0, count - 1, wanted) if count < wanted else _in_turn(count, rate, 1 / (together * a_second))
        if len(found) < wanted:
            found = _spread(found[0], found[-1], wanted)
        elif len(found) > wanted:
            found = _spread(0, count - 1, wanted)
        return even(found or [0])  # of less than a sixth of a second transformers takes none, and fails

    return sampling


def _in_turn(count: int, rate: float, step: float) -> list[int]:
    """The first frame behind each step of time, up to the last whole second."""
    found, due, seconds, interval = [], 0.0, int(count / rate), 1 / rate
    for number in range(count):
        if number * interval >= due:
            due += step
            found.append(number)
            if due >= seconds:
                break
    return found


def _spread(first: int, last: int, count: int) -> list[int]:
    return [int(one) for one in np.linspace(first, last, count, dtype=int)]
