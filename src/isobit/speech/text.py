"""Texts as they are spoken: tidied, and cut into parts that are spoken one after the other."""

from __future__ import annotations

import re
from collections.abc import Iterator

from isobit.errors import UsageError

LONGEST = 100_000  # characters of one text
_ENDS = "。？！；：、.?!;:，,"
_LEAST, _MOST = 30, 60  # of a part, in syllables as :func:`_weight` counts them
_WIDE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
_UNIT = re.compile(rf"{_WIDE.pattern}\s*|[^\W\d_][^\W_]*(?:['’-]\w+)*\s*|\S\s*")


def tidied(text: str, what: str = "the text") -> str:
    """A text without line ends and runs of spaces, that ends with a mark.

    Numbers, abbreviations and signs stay as they are: the model reads what is written.

    Raises:
        UsageError: there is nothing to say, or too much.
    """
    if len(text) > LONGEST:
        raise UsageError(f"{what} has {len(text):,} characters; {LONGEST:,} are the most that are spoken")
    found = " ".join(text.split())
    if not any(letter.isalnum() for letter in found):
        raise UsageError(f"{what} has nothing to say: it has no letter and no digit")
    if found[-1] in "？?":
        return found
    end = "。" if _WIDE.search(found) else "."
    return (found[:-1] if found[-1] in _ENDS else found) + end


def parts(text: str) -> list[str]:
    """A tidied text in parts: at marks where they are long enough, anywhere between words where they are too long."""
    return [part for sentence in _sentences(text) for part in _cut(sentence) if any(one.isalnum() for one in part)]


def _sentences(text: str) -> Iterator[list[str]]:
    units: list[str] = []
    for unit in _UNIT.findall(text):
        units.append(unit)
        if unit.strip() in _ENDS and sum(map(_weight, units)) >= _LEAST:
            yield units
            units = []
    if units:
        yield units


def _cut(units: list[str]) -> Iterator[str]:
    part: list[str] = []
    for unit in units:
        if part and sum(map(_weight, part)) + _weight(unit) > _MOST and unit.strip() not in _ENDS:
            yield "".join(part).strip()
            part = []
        part.append(unit)
    if part:
        yield "".join(part).strip()


def _weight(unit: str) -> float:
    """How long a unit takes, in syllables of Chinese: a word of letters has as many as it has groups of vowels."""
    word = unit.strip()
    if not word.isascii() or not word.isalpha():
        return 1.0
    return 0.7 * max(1, len(re.findall(r"[aeiouy]+", word.lower().removesuffix("e"))))
