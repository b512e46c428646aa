"""How many tokens of prompts go through a model at once where many are due: a decision of the plan, which engines take.

Dense models have what was measured for their width (``targets/prefill.py``). Of mixtures nearly every expert is read in
each step of prompts, so that longer steps read them less often: that is taken where the plan's own pace says that it
pays, and where the larger pass leaves the cache most of its room.
"""

from __future__ import annotations

from collections.abc import Callable

from isobit.legalize.memory import Memory
from isobit.targets.prefill import MIXED, prefill_chunk
from isobit.targets.spec import Target

WORTH_IT = 1.05  # times as many tokens a second, by the plan
SHARE = 8  # at most one part of so many of a cache's room is what the larger pass takes
_PROMPT = 1024  # tokens of the prompts that paces are compared for


def piece(
    target: Target,
    hidden: int,
    longest: int,
    *,
    mixed: bool,
    need: Callable[[int, int, int], Memory],
    pace: Callable[[int, int, int], float],
) -> int:
    """Tokens of a step of prompts where so many are due.

    Args:
        target: what runs the model.
        hidden: its width.
        longest: tokens that it reads at most.
        mixed: whether it has experts that are launched together, and a plan that is not refused.
        need: what it takes, by context, sequences and tokens of a step.
        pace: tokens of prompts a second, by the same.
    """
    usual = prefill_chunk(target, hidden)
    if not mixed or not target.is_gpu or usual >= MIXED:
        return usual
    context = min(longest, _PROMPT)
    batch = -(-MIXED // context)
    if pace(context, batch, MIXED) < WORTH_IT * pace(context, batch, usual):
        return usual
    batch = -(-MIXED // longest)
    now, then = (need(longest, batch, tokens) for tokens in (usual, MIXED))
    room = now.capacity - (now.total - now.kv)
    return MIXED if SHARE * (then.total - now.total) <= room else usual
