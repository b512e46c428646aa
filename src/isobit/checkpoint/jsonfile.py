"""JSON from files nobody vouches for: limits on size, nesting and numbers, no duplicate keys, one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from isobit.checkpoint.files import read_file
from isobit.checkpoint.jsontext import DEEPEST_JSON as DEEPEST_JSON
from isobit.checkpoint.jsontext import LONGEST_INTEGER as LONGEST_INTEGER
from isobit.checkpoint.jsontext import parse_json as parse_json
from isobit.checkpoint.jsontext import strict as strict
from isobit.checkpoint.shown import bare as bare
from isobit.checkpoint.shown import short as short

LARGEST_JSON = 256 << 20  # bytes; the index of a checkpoint with 200,000 tensors has about 20 MB


def read_json(path: Path, limit: int = LARGEST_JSON) -> dict[str, Any]:
    """Reads a JSON object from a file.

    Raises:
        CheckpointError: it is no regular file, cannot be read, is larger than ``limit`` bytes, or holds no JSON
            object (see :func:`parse_json`).
    """
    return parse_json(read_file(path, limit), path, "the file")
