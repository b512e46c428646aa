"""Formats of a key-value cache as rows: what keys and values are stored as. Pure Python."""

from __future__ import annotations

from dataclasses import dataclass

from isobit.errors import Unsupported, UsageError
from isobit.formats.scales import FLOAT_BITS, POWERS, ScaleSpec
from isobit.formats.table import ELEMENTS, element

PLAIN = ScaleSpec("float32")  # one for the keys and one for the values of each token and head
BLOCK = 64  # tokens of a shared cache: a multiple of what the CPU kernels' attention (KEYS in layer.h) reads at once
UNDER_HEADS = ScaleSpec("e4m3fn", "multiplies")  # of groups, under such a one


@dataclass(frozen=True)
class CacheFormat:
    """How a cache stores keys and values.

    Attributes:
        name: what people call it.
        element: element format of the codes; empty for plain numbers.
        dtype: torch dtype of plain numbers; empty for that of the activations, and where there are codes.
        group: numbers of a head that share a scale, of which the last ones may be fewer; None for all of the head.
        scale: the format of the scales: float32 of whole heads; of groups a format of few bits, either powers of two by
            themselves, or with one of float32 above them for each token and head.
    """

    name: str
    element: str = ""
    dtype: str = ""
    group: int | None = None
    scale: ScaleSpec = PLAIN

    @property
    def kv(self) -> str:
        """What plans and caches know it by: dtype of plain numbers, element format of codes with a scale for each head,
        name of those with scales of groups; empty for that of the activations."""
        return self.name if self.group else self.element or self.dtype

    @property
    def bits(self) -> int:
        """Of a code; 0 for plain numbers."""
        return ELEMENTS[self.element].bits if self.element else 0

    @property
    def packed(self) -> bool:
        """Whether a byte holds two numbers of a head of ``dim``: ``d`` in its low half, ``d + dim / 2`` in its high."""
        return self.bits == 4

    @property
    def one_scale(self) -> bool:
        """Whether each token and head has a scale of float32, by itself or above those of groups."""
        return bool(self.element) and (self.group is None or self.scale.over is not None)

    def width(self, dim: int) -> int:
        """How many stored numbers, or bytes of two, a head of ``dim`` has."""
        return dim // 2 if self.packed else dim

    def groups(self, dim: int) -> int:
        """How many scales of groups a head of ``dim`` has; 0 where it has one for all."""
        return -(-dim // self.group) if self.group else 0

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
        if not self.element:
            return heads * dim * FLOAT_BITS[self.stored(activations)] // 8
        scales = self.one_scale * PLAIN.bits + self.groups(dim) * self.scale.bits
        return heads * (dim * self.bits + scales) // 8

    def require(self, activations: str) -> None:
        """That activations of a dtype can be stored so.

        Raises:
            Unsupported: they can't, or it would gain nothing.
        """
        stored = self.stored(activations)
        if self.element or stored == activations:
            return
        if FLOAT_BITS[stored] >= FLOAT_BITS[activations]:
            why = "attention multiplies what is cached by queries in the activations' dtype, which does not hold it"
            if stored == "float32":
                why = "it would hold the same numbers as one in the activations' dtype, in twice the memory"
            raise Unsupported(
                f"a key-value cache in {stored} for activations in {activations}",
                [why],
                instead=f"auto (as the activations), {CODES}",
            )

    def require_width(self, dim: int) -> None:
        """That heads of ``dim`` numbers can be stored so.

        Raises:
            Unsupported: two numbers of them share a byte with nothing.
        """
        if self.packed and dim % 2:
            whole = ", ".join(row.name for row in CACHE_FORMATS.values() if row.element and not row.packed)
            raise Unsupported(
                f"a key-value cache in {self.name} for heads of {dim} numbers",
                ["two numbers of a head share a byte, and these are odd"],
                instead=whole,
            )


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
        CacheFormat("mxfp8", element="e4m3fn", group=32, scale=POWERS),
        CacheFormat("mxfp4", element="e2m1", group=32, scale=POWERS),
        CacheFormat("nvfp4", element="e2m1", group=16, scale=UNDER_HEADS),
    )
}
CODES = ", ".join(row.name for row in CACHE_FORMATS.values() if row.element)  # for people
# As torch and other engines call them; ``fp8_e4m3`` and ``fp8_e5m2`` are vLLM's, ``fp4_e2m1`` is SGLang's, whose groups
# are of 16; TensorRT-LLM says ``nvfp4``. ``fp4`` alone could be either of two, and is none.
_ALIASES = {
    "float32": "f32", "fp32": "f32", "bfloat16": "bf16", "float16": "f16", "fp16": "f16", "half": "f16",
    "e4m3": "fp8", "e4m3fn": "fp8", "fp8_e4m3": "fp8", "fp8-e4m3": "fp8", "e5m2": "fp8-e5m2", "fp8_e5m2": "fp8-e5m2",
    "i8": "int8", "mxfp8_e4m3": "mxfp8", "mxfp8-e4m3": "mxfp8", "fp4_e2m1": "mxfp4", "fp4-e2m1": "mxfp4",
}  # fmt: skip
_BY_KV = {row.kv: row for row in CACHE_FORMATS.values()}


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


def kv_bytes(heads: int, dim: int, kv: str) -> int:
    """Bytes of the keys (or of the values) of one token in one layer.

    Args:
        heads: of keys and values.
        dim: numbers of each.
        kv: see :func:`known_by`.
    """
    return known_by(kv).bytes(heads, dim, kv)


def known_by(kv: str) -> CacheFormat:
    """The format with this :attr:`CacheFormat.kv`; one that no cache has, of an element format, has a scale for each
    head.

    Raises:
        FormatError: there is no such format.
    """
    return _BY_KV.get(kv) or CacheFormat(kv, element=element(kv).name)
