"""Sound that is longer than a model hears: cut where it is quiet, and what is heard in each part joined again."""

from __future__ import annotations

import math
import unicodedata
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SEARCHED = 30.0  # seconds in which a quiet place is looked for, or a third of a window where that is less
_STEP, _SMOOTH = 0.02, 0.2  # seconds: how finely, and over how much, loudness is measured


@dataclass(frozen=True)
class Window:
    """A part of a sound: seconds from its beginning."""

    begin: float
    end: float


def cuts(samples: NDArray[np.float32], rate: int, longest: float) -> list[range]:
    """The parts of a sound, by the places of their samples, one behind the other; none is longer than ``longest``.

    What is short enough is one part. Otherwise the parts are about as long as each other, and each ends where it is
    quietest nearby.

    Args:
        samples: float32 ``[N]``.
        rate: of them, a second.
        longest: seconds of a part.
    """
    most = max(1, int(longest * rate))
    search = min(int(SEARCHED * rate), most // 3)
    found, begin = [], 0
    while len(samples) - begin > most:
        left = len(samples) - begin
        aim = left / math.ceil(left / (most - search / 2))
        low, high = int(aim - search / 2), int(aim + search / 2)
        end = begin + max(1, min(low + _quietest(samples[begin + low : begin + high], rate), most))
        found.append(range(begin, end))
        begin = end
    return [*found, range(begin, len(samples))]


def _quietest(samples: NDArray[np.float32], rate: int) -> int:
    """The middle of the longest quiet stretch: where it is at most twice as loud as it is where it is quietest."""
    step = max(1, int(_STEP * rate))
    count = len(samples) // step
    if count < 3:
        return len(samples) // 2
    power = np.square(samples[: count * step].astype(np.float64)).reshape(count, step).mean(1)
    width = min(count, max(1, round(_SMOOTH / _STEP)))
    loudness = np.convolve(power, np.full(width, 1 / width), "valid")
    quiet = np.flatnonzero(loudness <= 2 * float(loudness.min()) + 1e-12)
    stretches = np.split(quiet, np.flatnonzero(np.diff(quiet) > 1) + 1)
    first, last = max(((int(one[0]), int(one[-1])) for one in stretches), key=lambda one: one[1] - one[0])
    return int((first + last + width) / 2 * step)


class Joined:
    """The text of a whole sound, out of pieces of the texts of its parts, which come in any order.

    Blanks around the text of a part are left out; between two parts there is a space, but none beside a character of a
    script that has none (Chinese, Japanese).

    Args:
        parts: how many there are.
    """

    def __init__(self, parts: int) -> None:
        self._waiting = [""] * parts
        self._ended = [False] * parts
        self._at = 0  # the part whose text comes now
        self._inside = False  # whether some of it has come
        self._blanks = ""
        self._last = ""  # character of the whole so far

    def push(self, place: int, text: str, *, ended: bool = False) -> str:
        """More text of a part; what that adds to the end of the whole."""
        self._waiting[place] += text
        self._ended[place] |= ended
        found = ""
        while self._at < len(self._ended):
            found += self._more(self._waiting[self._at])
            self._waiting[self._at] = ""
            if not self._ended[self._at]:
                break
            self._at, self._inside, self._blanks = self._at + 1, False, ""
        return found

    def _more(self, text: str) -> str:
        text = self._blanks + text
        if not self._inside:
            text = text.lstrip()
        kept = text.rstrip()
        self._blanks = text[len(kept) :]
        if not kept:
            return ""
        joint = "" if self._inside or not self._last else between(self._last, kept[0])
        self._inside, self._last = True, kept[-1]
        return joint + kept


def between(left: str, right: str) -> str:
    """What stands between two characters that end and begin a text: a space, or nothing in scripts without spaces."""
    return "" if _dense(left) or _dense(right) else " "


def _dense(character: str) -> bool:
    """Whether it is of a script without spaces between words, or a punctuation mark of one."""
    name = unicodedata.name(character, "")
    return unicodedata.east_asian_width(character) in ("W", "F") and not name.startswith("HANGUL")
