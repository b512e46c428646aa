"""Notes which kernels a model launches, without launching them. Pure."""

from __future__ import annotations

from isobit.kernels.gpu.compile.request import Request


class Recorder:
    """What would have been launched.

    Attributes:
        requests: what was asked for, each once, in the order of its first launch.
    """

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}

    def add(self, request: Request) -> None:
        """Notes a launch."""
        self.requests.setdefault(request.name(), request)
