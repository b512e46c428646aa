"""How many tokens of a prompt go through a model at once, by kind of device: for the engine and for plans alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from isobit.targets.spec import Target, Vendor


@dataclass(frozen=True)
class PrefillChunk:
    """Tokens of a prompt that a device takes at once, and why not more or fewer."""

    tokens: int
    reason: str


PREFILL: Mapping[Vendor, PrefillChunk] = {
    "cpu": PrefillChunk(512, "its kernels gain nothing beyond; bounds the attention scores, and lets Ctrl-C through"),
    "nvidia": PrefillChunk(2048, "weights widened once per call pay from 1024 tokens on"),
    "amd": PrefillChunk(1024, "as on NVIDIA GPUs; not measured"),
}


# Of models whose layers are so wide that the host starts their kernels in less time than a GPU takes for the tokens:
# in fewer, longer steps weights are widened less often, and less time goes by between kernels. As measured, by target.
WIDE_FROM = 3072
WIDE: Mapping[str, PrefillChunk] = {
    "sm_90": PrefillChunk(8192, "8 prompts of 2048 of a 7B take 4 to 8 % less time than in pieces of 2048"),
}
# Of mixtures of experts, where a plan says that it pays and the memory is there (legalize/pieces.py): a piece of 2048
# tokens chooses all of 128 experts, so that four of them read what one of 8192 reads once.
# Scoring keeps the usual pieces (docs/plan.md).
MIXED = 8192
BESIDE = 64  # a wide step takes one token more for each so many, of requests that decode: prompts keep their whole room
RESULTS = 512 << 20  # bytes of experts' results (float32) that a GPU holds before they are added up


def experts_at_once(hidden: int, active: int) -> int:
    """Tokens whose experts a GPU runs at once, of a step that has more.

    Args:
        hidden: width of the model.
        active: experts of a token.
    """
    return max(1, RESULTS // (4 * hidden * active))


def prefill_chunk(target: Target | None, hidden: int = 0) -> int:
    """Tokens of prompts that go through a model at once, at most: where fewer are due, that of no width.

    Args:
        target: what runs it; None for the CPU at hand.
        hidden: width of the model.
    """
    if target is not None and hidden >= WIDE_FROM and target.name in WIDE:
        return WIDE[target.name].tokens
    return PREFILL["cpu" if target is None else target.vendor].tokens


def beside(wide: int) -> int:
    """Tokens of requests that decode which a step of so many tokens of prompts takes besides, at most."""
    return wide // BESIDE


def prompt_tokens(target: Target, hidden: int, due: int, wide: int = 0) -> int:
    """Tokens of a step in which prompts are read.

    Args:
        target: what runs it.
        hidden: width of the model.
        due: tokens of all prompts together.
        wide: tokens of a step where so many are due; 0 for what is usual for such a model.
    """
    wide, usual = wide or prefill_chunk(target, hidden), prefill_chunk(target)
    return wide if due >= wide else min(due, usual)


def step_tokens(target: Target, hidden: int, due: int, wide: int = 0) -> int:
    """Tokens of such a step at most, those of requests that decode beside it included; arguments as above."""
    tokens = prompt_tokens(target, hidden, due, wide)
    return tokens + beside(tokens) if tokens > prefill_chunk(target) else tokens
