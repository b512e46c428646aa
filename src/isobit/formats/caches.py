"""Formats of a key-value cache as rows: what keys and values are stored as. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.errors import Unsupported, UsageError
from isobit.formats.table import ELEMENTS

SCALE_BYTES = 4  # float32, one for the keys and one for the values of each token and head


@dataclass(frozen=True)
class CacheFormat:
    """How a cache stores keys and values.

    Attributes:
        name: what people call it.
        element: element format of the codes, which have a scale for each token and head; empty for plain numbers.
        dtype: torch dtype of plain numbers; empty for that of the activations, and where there are codes.
    """

    name: str
    element: str = ""
    dtype: str = ""

    def stored(self, activations: str) -> str:
        """The element format or torch dtype that is stored, where activations are computed in a dtype."""
        return self.element or self.dtype or activations

    def bytes(self, heads: int, dim: int, activations: str) -> int:
        """Bytes of the keys (or of the values) of one token in one layer.

        Args:
            heads: of keys and values.
            dim: numbers of each.
            activations: torch dtype that they are computed in.
        """
        if self.element:
            return heads * (dim * ELEMENTS[self.element].bits // 8 + SCALE_BYTES)
        return heads * dim * _SIZES[self.stored(activations)]

    def require(self, activations: str) -> None:
        """That activations of a dtype can be stored so.

        Raises:
            Unsupported: they can't, or it would gain nothing.
        """
        stored = self.stored(activations)
        if self.element or stored == activations:
            return
        if _SIZES[stored] >= _SIZES[activations]:
            why = "attention multiplies what is cached by queries in the activations' dtype, which does not hold it"
            if stored == "float32":
                why = "it would hold the same numbers as one in the activations' dtype, in twice the memory"
            raise Unsupported(
                f"a key-value cache in {stored} for activations in {activations}",
                [why],
                instead="auto (as the activations), fp8, fp8-e5m2 or int8",
            )


_SIZES = {"float32": 4, "bfloat16": 2, "float16": 2}

AUTO = CacheFormat("auto")
CACHE_FORMATS: dict[str, CacheFormat] = {
    row.name: row
    for row in (
        AUTO,
        CacheFormat("f32", dtype="float32"),
        CacheFormat("bf16", dtype="bfloat16"),
        CacheFormat("f16", dtype="float16"),
        CacheFormat("fp8", element="e4m3fn"),
        CacheFormat("fp8-e5m2", element="e5m2"),
        CacheFormat("int8", element="int8"),
    )
}
# As torch and other engines call them; ``fp8_e4m3`` and ``fp8_e5m2`` are vLLM's.
_ALIASES = {
    "float32": "f32", "fp32": "f32", "bfloat16": "bf16", "float16": "f16", "fp16": "f16", "half": "f16",
    "e4m3": "fp8", "e4m3fn": "fp8", "fp8_e4m3": "fp8", "fp8-e4m3": "fp8", "e5m2": "fp8-e5m2", "fp8_e5m2": "fp8-e5m2",
    "i8": "int8",
}  # fmt: skip


def cache_format(name: str) -> CacheFormat:
    """The format of a key-value cache by its name, or by another spelling of it.

    Raises:
        UsageError: there is no such format.
    """
    key = name.lower().strip() if isinstance(name, str) else ""
    found = CACHE_FORMATS.get(_ALIASES.get(key, key))
    if found is None:
        raise UsageError(f"unknown format of a key-value cache {name!r:.80}; there are {', '.join(CACHE_FORMATS)}")
    return found
