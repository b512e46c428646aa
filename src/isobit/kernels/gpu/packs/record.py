"""Finds out which kernels a model launches, without launching them: the launcher asks here before it compiles. Pure."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from isobit.kernels.gpu.compile.request import Request


class Recorder:
    """What would have been launched.

    Attributes:
        multiprocessors: how many the imagined card has; a split of K aims at it.
        requests: what was asked for, each once, in the order of its first launch.
    """

    def __init__(self, multiprocessors: int) -> None:
        self.multiprocessors = multiprocessors
        self.requests: dict[str, Request] = {}

    def add(self, request: Request) -> None:
        """Notes a launch."""
        self.requests.setdefault(request.name(), request)


_active: Recorder | None = None


def active() -> Recorder | None:
    """The recorder, while one records: then nothing is compiled or launched."""
    return _active


@contextlib.contextmanager
def recording(multiprocessors: int) -> Iterator[Recorder]:
    """Records launches instead of making them. Not for several threads at once."""
    global _active
    assert _active is None, "launches are being recorded already"
    _active = Recorder(multiprocessors)
    try:
        yield _active
    finally:
        _active = None
