"""JSON by strangers: limits on nesting and numbers, no duplicate keys, one clear error."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from isobit.checkpoint.shown import short
from isobit.errors import CheckpointError

DEEPEST_JSON = 64  # containers within each other; what is written back must not exhaust Python's stack
LONGEST_INTEGER = 64  # digits: twice those of the 1000000000000000019884624838656 that transformers writes

_LONG_NUMBER = re.compile(rb"\d{%d}" % (LONGEST_INTEGER + 1))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse_json(data: bytes, path: Path, what: str) -> dict[str, Any]:
    """Parses a JSON object; ``what`` names the part of the file for the error.

    Raises:
        CheckpointError: invalid JSON or UTF-8, half a character (a lone surrogate), a key given twice, nesting or
            integers without end, or something else than an object.
    """
    try:
        value = strict(data)
    except ValueError as error:
        raise CheckpointError(f"{what} {error}", file=path) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} must hold a JSON object, not a {type(value).__name__}", file=path)
    return value


def strict(data: bytes, *, finite: bool = False) -> Any:
    """Parses JSON by strangers.

    Args:
        data: the text, in UTF-8.
        finite: refuse NaN and Infinity, which Python reads and JSON does not have.

    Raises:
        ValueError: invalid JSON or UTF-8, half a character (a lone surrogate), a key given twice, nesting or integers
            without end. The message goes on behind a name of the whole: "is not UTF-8 text".
    """
    # The slower parser of integers only for texts that may hold a long one: a header has a million short ones.
    parse_int = _integer if _LONG_NUMBER.search(data) else None
    try:
        value = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=parse_int,
            parse_constant=_no_number if finite else None,
        )
        _require_shallow(value)
        if _SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise ValueError("is not UTF-8 text") from None
    except UnicodeEncodeError:
        raise ValueError("is not text: it holds half a character (a lone surrogate)") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    except ValueError as error:  # JSONDecodeError and our own
        raise ValueError(f"is not valid JSON: {error}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {short(twice)} is given twice")
    return result


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number")


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_INTEGER + 1:  # a sign may stand in front
        raise ValueError(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _require_shallow(value: object) -> None:
    level = [value]
    for _ in range(DEEPEST_JSON):
        level = [inner for outer in level for inner in _containers(outer)]
        if not level:
            return
    raise RecursionError


def _containers(value: object) -> list[object]:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if isinstance(item, (dict, list))]
