"""Arguments of the Python interface, which every command calls: wrong types and ranges are refused by name, at once.

Without this, ``overwrite="no"`` overwrites and ``max_shard_bytes=-1`` ends somewhere in the middle of the work.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from isobit.errors import UsageError

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes: what Linux has
_LEAST_MEMORY = 1 << 20  # bytes


def flag(name: str, value: object) -> bool:
    """True or False, and nothing that merely counts as one."""
    if not isinstance(value, bool):
        raise _wrong(name, "True or False", value)
    return value


def optional_flag(name: str, value: object) -> bool | None:
    """The same, or None."""
    return None if value is None else flag(name, value)


def whole(name: str, value: object, least: int, most: int = 2**63 - 1) -> int:
    """A whole number from ``least`` to ``most``; True and 1.0 are none."""
    wanted = f"a whole number of at least {least}" if most >= 2**63 - 1 else f"a whole number from {least} to {most}"
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise _wrong(name, wanted, value) from None
    if isinstance(value, bool) or not least <= number <= most:
        raise _wrong(name, f"a whole number from {least} to {most}" if number > most else wanted, value)
    return number


def optional_whole(name: str, value: object, least: int, most: int = 2**63 - 1) -> int | None:
    """As :func:`whole`, or None."""
    return None if value is None else whole(name, value, least, most)


def text(name: str, value: object) -> str:
    """Text that is not empty."""
    if not isinstance(value, str) or not value.strip():
        raise _wrong(name, "text that is not empty", value)
    return value


def optional_text(name: str, value: object) -> str | None:
    """As :func:`text`, or None."""
    return None if value is None else text(name, value)


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in choices:
        raise _wrong(name, f"one of {', '.join(map(repr, choices))}", value)
    return value


def optional_choice(name: str, value: object, choices: tuple[str, ...]) -> str | None:
    """As :func:`choice`, or None."""
    return None if value is None else choice(name, value, choices)


def texts(name: str, value: object) -> tuple[str, ...]:
    """Some texts; a single one counts as a list of one."""
    if isinstance(value, str):
        return (text(name, value),)
    listed = _listed(name, "a list of texts", value, unordered=True)
    return tuple(text(f"{name}[{place}]", one) for place, one in enumerate(listed))


def pairs(name: str, value: object) -> tuple[tuple[str, str], ...]:
    """Pairs of texts, such as rules."""
    found = []
    for place, one in enumerate(_listed(name, "a list of pairs like ('down_proj', 'keep')", value)):
        if not isinstance(one, tuple | list) or len(one) != 2:
            raise _wrong(f"{name}[{place}]", "a pair like ('down_proj', 'keep')", one)
        found.append((text(f"{name}[{place}][0]", one[0]), text(f"{name}[{place}][1]", one[1])))
    return tuple(found)


_UNITS = {"": 1, "b": 1} | {
    f"{letter}{end}": (1000 if end == "b" else 1024) ** power
    for power, letter in enumerate("kmgt", 1)
    for end in ("", "b", "ib")
}
_SIZE = re.compile(r"\s*([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]{0,3})\s*")


def size(name: str, value: object) -> int:
    """Bytes: a whole number, or text such as ``20GiB``, ``20G`` (the same) or ``500MB`` (a thousand thousands each)."""
    wanted = "a size like 20GiB, 500MB or a whole number of bytes"
    if not isinstance(value, str):
        try:
            return whole(name, value, 1)
        except UsageError:
            raise _wrong(name, wanted, value) from None
    found = _SIZE.fullmatch(value)
    count = 0 if found is None else int(float(found[1]) * _UNITS.get(found[2].lower(), 0))
    if count < 1:
        raise _wrong(name, wanted, value)
    return count


def optional_size(name: str, value: object) -> int | None:
    """As :func:`size`, or None."""
    return None if value is None else size(name, value)


def optional_memory(name: str, value: object) -> int | None:
    """As :func:`optional_size`, of what a model may take; so few bytes that a unit was forgotten are refused."""
    found = optional_size(name, value)
    if found is not None and found < _LEAST_MEMORY:
        raise UsageError(
            f"{name} must be a size like 20GiB, of 1MiB at least, not {found} bytes (a number without a unit is bytes)"
        )
    return found


def sequence(name: str, value: object) -> list[Any]:
    """Some values, at least one, in their order."""
    listed = _listed(name, "a list that is not empty", value)
    if not listed:
        raise _wrong(name, "a list that is not empty", value)
    return listed


def prompt(value: object) -> str | list[int]:
    """What a model is to go on with: text, or token ids (whole numbers; their range is the model's to say)."""
    if isinstance(value, str):
        return value
    listed = _listed("prompt", "text or a list of token ids", value)
    return [whole(f"prompt[{place}]", one, 0) for place, one in enumerate(listed)]


def path(name: str, value: object) -> str:
    """The name of a file, folder or model, one that this system can have.

    Returns:
        it as text.
    """
    try:
        found = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        found = None
    if not isinstance(found, str) or not found.strip():
        raise _wrong(name, "a path (text or Path) that is not empty", value)
    try:
        stored = os.fsencode(found)
    except UnicodeEncodeError:
        raise UsageError(f"{name}: {found!r} holds letters that no file's name can have") from None
    if b"\0" in stored:
        raise UsageError(f"{name}: {found!r} holds a NUL, which no file's name can have")
    if len(stored) > _LONGEST_PATH or max(map(len, stored.split(b"/"))) > _LONGEST_NAME:
        raise UsageError(
            f"{name}: {found[:80]!r}... is too long for a file's name: at most {_LONGEST_NAME} bytes between slashes, "
            f"{_LONGEST_PATH} in all"
        )
    try:
        Path(found).expanduser()
    except RuntimeError:
        raise UsageError(f"{name}: nobody has a home folder here that {found!r} could mean") from None
    return found


def optional_path(name: str, value: object) -> str | None:
    """As :func:`path`, or None."""
    return None if value is None else path(name, value)


def _listed(name: str, wanted: str, value: object, unordered: bool = False) -> list[Any]:
    """The parts of a list; bytes are none, nor is a set where the order counts."""
    kinds = (str, bytes, bytearray, memoryview, dict, *(() if unordered else (Set,)))
    if isinstance(value, Iterable) and not isinstance(value, kinds):
        try:
            return list(value)
        except TypeError:  # a tensor of no dimensions
            pass
    raise _wrong(name, wanted, value)


def _wrong(name: str, wanted: str, value: Any) -> UsageError:
    shown = repr(value)
    shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
    kind = "" if value is None or isinstance(value, str | bool | int | float) else f" ({type(value).__name__})"
    return UsageError(f"{name} must be {wanted}, not {shown}{kind}")
