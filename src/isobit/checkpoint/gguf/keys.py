"""Typed reading of a GGUF file's metadata; remembers what was asked for, so that nothing goes unnoticed."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from isobit.checkpoint.gguf.header import Value
from isobit.checkpoint.gguf.model import Gguf
from isobit.checkpoint.shown import short
from isobit.errors import CheckpointError

LARGEST = 1 << 24  # of any width or count
_MISSING = "is missing"
_SHOWN = 9  # numbers of a list in a message: the rest is left out there


class Keys:
    """The metadata of a model.

    Args:
        gguf: the model.
        prefix: what stands in front of every key asked for, e.g. ``llama.``.
    """

    def __init__(self, gguf: Gguf, prefix: str = "") -> None:
        self._gguf, self._prefix = gguf, prefix
        self._asked: set[str] = set()

    def raw(self, key: str) -> Value | None:
        """The value as it is; None if absent."""
        self._asked.add(self._prefix + key)
        return self._gguf.metadata.get(self._prefix + key)

    def fail(self, key: str, why: str) -> NoReturn:
        """Raises what is wrong with a key."""
        found = self._gguf.metadata.get(self._prefix + key)
        if found is None:
            state = _MISSING if why == _MISSING else f"{_MISSING}: {why}"
        else:
            state = f"is {short([*found[:_SHOWN]] if _is_list(found) else found)}: {why}"  # type: ignore[index]
        raise CheckpointError(f"{self._prefix}{key} {state}", file=self._gguf.path)

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = LARGEST) -> int:
        """A whole number; of a list with one for each layer, the number that all of them are."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if _is_list(value) and len(set(value)) == 1:  # type: ignore[arg-type]
            value = value[0]  # type: ignore[index]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            what = "expected the same in every layer" if _is_list(value) else "expected a whole number"
            self.fail(key, f"{what}, from {low} to {high}" if value is not None else _MISSING)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, as short as it can be written: files hold it in 32 bits."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            self.fail(key, "expected a number" if value is not None else _MISSING)
        return shortest(float(value))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.raw(key)
        if value is not None and not isinstance(value, bool):
            self.fail(key, "expected true or false")
        return default if value is None else value

    def text(self, key: str, default: str | None = None) -> str:
        """A text."""
        value = self.raw(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            self.fail(key, "expected a text" if value is not None else _MISSING)
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts; empty if absent."""
        value = self.raw(key)
        if value is not None and not (isinstance(value, tuple) and all(isinstance(one, str) for one in value)):
            self.fail(key, "expected a list of texts")
        return value or ()

    def numbers(self, key: str) -> Sequence[Any]:
        """A list of numbers; empty if absent."""
        value = self.raw(key)
        if value is not None and (not _is_list(value) or any(isinstance(one, str) for one in value[:1])):  # type: ignore[index]
            self.fail(key, "expected a list of numbers")
        return value if value is not None else ()  # type: ignore[return-value]

    def unread(self) -> Mapping[str, Value]:
        """The keys with this prefix that nobody asked for."""
        return {
            key.removeprefix(self._prefix): value
            for key, value in self._gguf.metadata.items()
            if key.startswith(self._prefix) and key not in self._asked
        }


def shortest(value: float) -> float:
    """The number with the fewest digits that is this one in 32 bits: 1e-05 for 9.999999747378752e-06."""
    try:
        packed = struct.pack("<f", value)
        for digits in range(1, 10):
            found = float(f"{value:.{digits}g}")
            if struct.pack("<f", found) == packed:
                return found
    except OverflowError:
        pass
    return value


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
