"""Typed reading of an untrusted JSON object that remembers which keys were read and everything that is wrong."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from isobit.errors import ModelError

LARGEST_SIZE = 1 << 24  # of any width or count: beyond it a config is a mistake or an attack
MOST_REASONS = 40  # lines of one error

Number = TypeVar("Number", int, float)

_PLAIN = re.compile(r"[A-Za-z0-9_.\-]{1,80}")
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 80
_repr.maxlong = 40
_repr.maxlevel = 2


def shown(value: object) -> str:
    """A value of a configuration, short enough to be shown whatever it is."""
    try:
        return _repr.repr(value)
    except ValueError:  # Python writes no integers of more than 4300 digits
        return f"a {type(value).__name__} with thousands of digits"


def shown_key(key: object) -> str:
    """The name of a key, as it is where it is a plain word."""
    return key if isinstance(key, str) and _PLAIN.fullmatch(key) else shown(key)


class Fields:
    """Typed access to an untrusted JSON object.

    What is wrong is collected and raised at once by :meth:`check`, so that a person sees all of it. Until then a method
    that finds something wrong returns a harmless value of its type: ask :attr:`sound` before comparing two of them.

    Args:
        config: the object.
        where: what to call it in messages.
    """

    def __init__(self, config: Mapping[str, Any], where: str = "config.json") -> None:
        self._config = config
        self._where = where
        self._read: set[str] = set()
        self._problems: list[str] = []

    def __contains__(self, key: str) -> bool:
        """Whether a key is there, be it null."""
        return key in self._config

    @property
    def whole(self) -> Mapping[str, Any]:
        """The object itself."""
        return self._config

    @property
    def sound(self) -> bool:
        """Whether nothing wrong was found so far."""
        return not self._problems

    def raw(self, key: str) -> Any:
        """The value as it is; None if absent."""
        self._read.add(key)
        return self._config.get(key)

    def problem(self, key: str, why: str) -> None:
        """Remembers what is wrong with a key."""
        self.complain(f"{shown_key(key)} = {shown(self._config.get(key))}: {why}")

    def complain(self, what: str) -> None:
        """Remembers what is wrong with more than one key."""
        self._problems.append(f"{self._where}: {what}")

    def integer(self, key: str, default: int | None = None, low: int = 1, high: int = LARGEST_SIZE) -> int:
        """A whole number between ``low`` and ``high``."""
        value = self.raw(key)
        if value is None:
            return self._absent(key, default, low)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.problem(key, f"expected a whole number from {low} to {high}")
            return low
        return value

    def number(self, key: str, default: float | None = None, low: float = 0.0, high: float = 1e12) -> float:
        """A finite number above ``low`` and at most ``high``."""
        value = self.raw(key)
        if value is None:
            return self._absent(key, default, high)
        # Compared before it is converted: an integer of 400 digits is no float, and NaN is in no range.
        if isinstance(value, bool) or not isinstance(value, int | float) or not low < value <= high:
            self.problem(key, f"expected a number above {low:g} and at most {high:g}")
            return high
        return float(value)

    def optional(self, key: str, low: float = 0.0, high: float = 1e12) -> float | None:
        """A number, or None where it is absent, null or zero."""
        value = self.raw(key)
        absent = value is None or (not isinstance(value, bool) and isinstance(value, int | float) and value == 0)
        return None if absent else self.number(key, None, low, high)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.problem(key, "expected true or false")
            return default
        return value

    def section(self, key: str) -> Fields | None:
        """A nested object with its own memory of what was read; None if absent, null or empty."""
        value = self.raw(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            self.problem(key, "expected an object")
            return None
        if not value:
            return None
        return self.inner(value, key)

    def inner(self, value: Mapping[str, Any], name: str = "") -> Fields:
        """An object that is read as a part of this one, or in its place, whose problems are this one's."""
        section = Fields(value, f"{self._where}: {name}" if name else self._where)
        section._problems = self._problems
        return section

    def only(self, key: str, allowed: tuple[Any, ...], what: str) -> None:
        """Refuses a key that asks for something not implemented."""
        value = self.raw(key)
        if value is not None and not equals_one_of(value, allowed):
            known = ", ".join(map(str, allowed)) or "none"
            self.problem(key, f"isobit does not implement this {what}; it knows {known}")

    def skip(self) -> None:
        """Counts every key as read: one of them makes the others meaningless."""
        self._read |= set(self._config)

    def unread(self) -> Iterator[tuple[str, Any]]:
        """The keys that nobody asked for, with their values."""
        for key, value in self._config.items():
            if key not in self._read:
                yield key, value

    def check(self) -> None:
        """Raises everything that is wrong.

        Raises:
            ModelError: something is.
        """
        reasons = list(dict.fromkeys(self._problems))
        if not reasons:
            return
        if len(reasons) == 1:
            raise ModelError(reasons[0])
        lines = [f"{self._where} asks for what isobit cannot run, for {len(reasons)} reasons:"]
        lines += [f"  - {reason.removeprefix(f'{self._where}: ')}" for reason in reasons[:MOST_REASONS]]
        if len(reasons) > MOST_REASONS:
            lines.append(f"  and {len(reasons) - MOST_REASONS} more")
        raise ModelError("\n".join(lines))

    def _absent(self, key: str, default: Number | None, harmless: Number) -> Number:
        if default is None:
            self.complain(f"{key} is missing")
            return harmless
        return default


def equals_one_of(value: object, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is one of several, true and 1 told apart."""
    return any(type(value) is type(one) and value == one for one in allowed) or (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and any(not isinstance(one, bool) and value == one for one in allowed)
    )
