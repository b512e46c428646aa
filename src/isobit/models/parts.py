"""The base of everything a decoder is made of: a module that knows when somebody listens to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from torch import Tensor, nn


class Part(nn.Module):
    """A module whose forward hooks are counted, so that a fused path that calls no modules sees when it may run."""

    registrations: ClassVar[int] = 0  # hooks ever registered with any part

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch."""
        Part.registrations += 1
        return super().register_forward_hook(*args, **kwargs)

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch."""
        Part.registrations += 1
        return super().register_forward_pre_hook(*args, **kwargs)

    @property
    def observed(self) -> bool:
        """Whether hooks wait for calls of this module."""
        return bool(self._forward_pre_hooks or self._forward_hooks)


class Vector(Part):
    """Numbers that a part reads and no linear or norm holds, in float32: the sinks of an attention.

    Attributes:
        weight: ``[n]``.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight.float()


class Listeners:
    """Whether somebody listens to one of some parts; looks at them again only after a hook was registered."""

    def __init__(self, parts: Iterable[nn.Module]) -> None:
        self._parts = [part for part in parts if isinstance(part, Part)]
        self._seen, self._found = -1, False

    def any(self) -> bool:
        """True while a hook is there."""
        if self._found or self._seen != Part.registrations:
            self._seen = Part.registrations
            self._found = any(part.observed for part in self._parts)
        return self._found
