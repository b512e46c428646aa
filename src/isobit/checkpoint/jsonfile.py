"""JSON from files nobody vouches for: size limits, no duplicate keys, one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isobit.errors import CheckpointError

LARGEST_JSON = 256 << 20  # bytes; the index of a checkpoint with 200,000 tensors has about 20 MB


def read_json(path: Path, limit: int = LARGEST_JSON) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        CheckpointError: the file cannot be read, is larger than ``limit`` bytes, or holds no JSON object.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or error}", file=path) from None
    if len(data) > limit:
        raise CheckpointError(f"this JSON file is larger than {limit} bytes", file=path)
    return parse_json(data, path, "the file")


def parse_json(data: bytes, path: Path, what: str) -> dict[str, Any]:
    """Parses a JSON object; ``what`` names the part of the file for the error.

    Raises:
        CheckpointError: invalid JSON or UTF-8, a key given twice, nesting or numbers without end, or
            something else than an object.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError:
        raise CheckpointError(f"{what} is not UTF-8 text", file=path) from None
    except RecursionError:
        raise CheckpointError(f"{what} is nested too deeply", file=path) from None
    except ValueError as error:  # includes JSONDecodeError, numbers with thousands of digits, and our own
        raise CheckpointError(f"{what} is not valid JSON: {error}", file=path) from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} must hold a JSON object, not a {type(value).__name__}", file=path)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is given twice")
    return result
