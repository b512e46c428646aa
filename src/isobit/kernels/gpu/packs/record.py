"""Notes which kernels a model launches, without launching them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from isobit.kernels.gpu.compile.request import Request

if TYPE_CHECKING:
    from torch import Tensor


def begins_aligned(tensor: Tensor) -> bool:
    """Whether a tensor begins at a multiple of 16 bytes on a card, where every allocation does.

    What is recorded stands in for memory of a card: its own address says nothing, where it begins in its memory does.
    """
    return tensor.storage_offset() * tensor.element_size() % 16 == 0


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
