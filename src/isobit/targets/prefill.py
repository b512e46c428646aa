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


def prefill_chunk(target: Target | None) -> int:
    """Tokens of a prompt that go through a model at once; ``None`` is the CPU at hand."""
    return PREFILL["cpu" if target is None else target.vendor].tokens
