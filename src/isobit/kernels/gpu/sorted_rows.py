"""The rows of linears of experts whose tokens lie sorted by expert (``sorted_tiles.py``)."""

from __future__ import annotations

from collections.abc import Iterator

from isobit.kernels.gpu.sorted_tiles import WIDTH, sorted_tokens
from isobit.kernels.gpu.tiles import NATIVE, POINTERS
from isobit.kernels.gpu.tma_tiles import copies_tiles
from isobit.kernels.gpu.variant import DTYPES, Variant, shows_unit

_ENTRY = "isobit.kernels.gpu.triton.linear_experts:linear_experts"


def rows(rank: int) -> Iterator[Variant]:
    """For very many tokens of experts where TMA copies the tiles; all of one rank."""
    tokens = WIDTH + 1, None
    for element in ("e4m3fn", "e5m2", "int8"):
        native = NATIVE[element]
        yield Variant(
            f"experts-{element}-native", "large", "sorted", _ENTRY, element, "row", element, "native", native,
            copies_tiles(element), sorted_tokens(native, rounded=True, scaled=True, promoted=element != "int8"),
            tokens, rank, promises=shows_unit(element), optional=True,
        )  # fmt: skip
    for compute in ("f16", "bf16"):
        pointer, dtype = POINTERS[compute], DTYPES[compute]
        yield Variant(
            f"experts-{compute}", "large", "sorted", _ENTRY, "float", None, None, compute, pointer,
            copies_tiles(dtype), sorted_tokens(pointer, rounded=False, scaled=False), tokens, rank,
            (dtype,), promises=shows_unit(dtype), optional=True,
        )  # fmt: skip
