"""Windows of a text: what a model reads at once, and which of it is scored.

The stride rule. A text of n tokens is cut into windows of ``ctx`` tokens; window k begins at token k * stride. A window
scores the tokens that no window before it has seen, except its own first token, which has nothing before it.
With ``stride == ctx`` (the default, as GPTQ measures perplexity) windows do not overlap and the first token of each
is not scored. With ``stride < ctx`` each window after the first gives its last ``stride`` tokens at least
``ctx - stride`` tokens of context, and only the very first token of the text is not scored. Either way no token is
scored twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from isobit.errors import UsageError

DEFAULT_CTX = 512
DEFAULT_TOKENS = 32_768


@dataclass(frozen=True)
class Window:
    """A run of tokens that the model reads at once.

    Attributes:
        ids: the tokens, at most ``ctx`` of them.
        first_scored: the tokens from this index on are scored; at least 1.
    """

    ids: tuple[int, ...]
    first_scored: int

    @property
    def num_scored(self) -> int:
        return len(self.ids) - self.first_scored


def windows(ids: Sequence[int], ctx: int, stride: int | None = None) -> list[Window]:
    """Cut tokens into windows by the stride rule above.

    Args:
        ids: the tokens of the text.
        ctx: the longest window, in tokens.
        stride: how far apart windows begin, 1 to ``ctx``; ``ctx`` if None, which makes windows that do not overlap.

    Raises:
        UsageError: ``ctx`` or ``stride`` is out of range, or the text has fewer than two tokens.
    """
    stride = ctx if stride is None else stride
    if ctx < 2:
        raise UsageError(f"a context of {ctx} tokens scores nothing; use at least 2")
    if not 1 <= stride <= ctx:
        raise UsageError(f"stride {stride} is not between 1 and the context of {ctx} tokens")
    if len(ids) < 2:
        raise UsageError(
            f"the text has {len(ids)} tokens; at least 2 are needed to score one, and thousands for a result"
        )
    found = []
    seen = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + ctx, len(ids))
        first = max(seen - begin, 1)
        if end - begin > first:
            found.append(Window(tuple(ids[begin:end]), first))
        seen = end
        if end == len(ids):
            break
    return found


def spread(all_windows: Sequence[Window], tokens: int | None) -> list[Window]:
    """As many windows as ``tokens`` scored tokens need, evenly spaced over the text; all of them if None.

    Only full windows are chosen when some are left out, so that a short last window does not stand for a long one.
    """
    if tokens is None or sum(window.num_scored for window in all_windows) <= tokens:
        return list(all_windows)
    longest = max(len(window.ids) for window in all_windows)
    full = [window for window in all_windows if len(window.ids) == longest]
    wanted = min(len(full), max(1, round(tokens / max(window.num_scored for window in full))))
    return [full[(2 * i + 1) * len(full) // (2 * wanted)] for i in range(wanted)]


def window_of_tokens(chosen: Iterable[Window]) -> np.ndarray:
    """The window that each scored token belongs to, int64 [scored tokens]."""
    counts = [window.num_scored for window in chosen]
    return np.repeat(np.arange(len(counts), dtype=np.int64), counts)
