"""What the routes for text check alike."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass

from isobit.server.errors import wrong
from isobit.server.schema.common import Sampled, StreamOptions
from isobit.server.settings import Limits


@dataclass(frozen=True)
class Head:
    """What all chunks of an answer begin with."""

    id: str
    created: int
    model: str

    @classmethod
    def new(cls, kind: str, model: str) -> Head:
        """With an id that nobody has had: ``kind`` and 32 digits."""
        return cls(f"{kind}-{uuid.uuid4().hex}", int(time.time()), model)


def require(asked: Sampled, limits: Limits) -> tuple[int, StreamOptions]:
    """How many answers are asked for to each prompt, and what a stream has beside them.

    Raises:
        Refusal: a field is out of range, or has no meaning without another.
    """
    n = 1 if asked.n is None else asked.n
    if not 1 <= n <= limits.choices:
        raise wrong(f"n must be between 1 and {limits.choices}, not {n}", "n")
    if asked.stream_options is not None and not asked.stream:
        raise wrong("stream_options need stream: true", "stream_options")
    return n, asked.stream_options or StreamOptions()
