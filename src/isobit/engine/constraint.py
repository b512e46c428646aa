"""What an answer may be made of: asked before each of its tokens, told of each."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Constraint(Protocol):
    """The state of one answer under a rule (:mod:`isobit.engine.grammars` makes them of grammars).

    A step may be computed and not counted: between two calls of :meth:`accept`, :meth:`allowed` gives the same.
    """

    @property
    def finished(self) -> bool:
        """Whether the answer is whole, and nothing can follow: it ends, with finish reason "stop"."""

    def allowed(self) -> NDArray[np.uint32] | None:
        """The tokens that may come next; None for all of them.

        Returns:
            Words of 32 tokens each; bit b of word w is token ``32 * w + b``. Tokens behind the last word may not come.

        Raises:
            IsobitError: the rule cannot go on; the answer ends with it.
        """

    def accept(self, token: int) -> None:
        """This token was chosen."""
