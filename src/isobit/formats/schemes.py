"""Quantization schemes as rows: what is rounded, to which element format, and what shares a scale."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Literal

from isobit.errors import SchemeError
from isobit.formats.scales import POWERS, UNDER_ONE, ScaleSpec
from isobit.formats.table import element

WeightGranularity = Literal["tensor", "channel", "group", "block"]
ActGranularity = Literal["token", "tensor", "group"]

GROUP_STEP = 8  # a group is a multiple of this many weights


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise SchemeError(message)


def _require_group(granularity: str, group: int | None) -> None:
    _require((granularity == "group") == (group is not None), "'group' is given for group granularity, and only then")
    _require(
        group is None or (group > 0 and group % GROUP_STEP == 0),
        f"group size {group}: a group is a positive multiple of {GROUP_STEP} weights",
    )


def _shown(spec: WeightSpec | ActSpec) -> str:
    """As a dataclass is shown, without a format of scales where there is none of its own."""
    shown = [part.name for part in fields(spec) if part.name != "scale" or spec.scale is not None]
    return f"{type(spec).__name__}({', '.join(f'{name}={getattr(spec, name)!r}' for name in shown)})"


@dataclass(frozen=True, repr=False)
class WeightSpec:
    """How a weight matrix ``[N, K]`` (N output rows, K inputs) is stored.

    Attributes:
        element: element format of the codes.
        granularity: what shares a scale: ``tensor``, ``channel`` (an output row), ``group`` (a run of ``group``
            weights along K), ``block`` (a rectangle of ``block`` rows and columns).
        group: weights along K per scale, for ``group``.
        block: (rows, columns) per scale, for ``block``; the last rows may be fewer, K must be a multiple.
        symmetric: False when an integer zero point is stored beside each scale (unsigned integers only).
        scale: the format of the scales where it belongs to the weight's; None where they are float32, bfloat16 or
            float16, as the checkpoint has them.

    Raises:
        SchemeError: the fields contradict each other.
    """

    element: str
    granularity: WeightGranularity
    group: int | None = None
    block: tuple[int, int] | None = None
    symmetric: bool = True
    scale: ScaleSpec | None = None

    def __post_init__(self) -> None:
        row = element(self.element)
        known = ("tensor", "channel", "group", "block")
        _require(self.granularity in known, f"granularity {self.granularity!r} is none of {', '.join(known)}")
        _require_group(self.granularity, self.group)
        _require(
            (self.granularity == "block") == (self.block is not None),
            "'block' is given for block granularity, and only then",
        )
        _require(
            self.block is None or (len(self.block) == 2 and min(self.block) > 0),
            f"block {self.block}: give two sizes above 0",
        )
        _require(row.has_zero, f"{row.name} cannot store weights: it has no zero")
        unsigned_int = row.kind == "int" and not row.signed
        _require(row.signed or unsigned_int, f"{row.name} cannot store weights: it has no sign")
        _require(
            self.symmetric != unsigned_int,
            f"{row.name} weights are {'asymmetric: they need a zero point' if unsigned_int else 'symmetric'}"
            f" (symmetric={not unsigned_int})",
        )
        _require(self.symmetric or self.granularity != "block", "block scales have no zero points")

    def __repr__(self) -> str:
        return _shown(self)

    @property
    def of_whole(self) -> bool:
        """Whether a scale depends on all of the matrix."""
        return self.granularity == "tensor" or (self.scale is not None and self.scale.over is not None)

    def scale_shape(self, n: int, k: int) -> tuple[int, ...]:
        """Shape of the scale tensor of an ``[n, k]`` matrix (the zero point has the same one)."""
        if self.granularity == "tensor":
            return (1,)
        if self.granularity == "channel":
            return (n, 1)
        if self.group is not None:
            return (n, k // self.group)
        assert self.block is not None
        rows, columns = self.block
        return (-(-n // rows), -(-k // columns))

    def bits_per_weight(self, n: int, k: int, scale_bits: int = 16) -> float:
        """Stored bits per weight of an ``[n, k]`` matrix: codes with their padding, scales (of ``scale_bits`` where
        their format is left open) and zero points."""
        row = element(self.element)
        code_bits = n * (k * 8 if row.bits == 8 else row.words(k) * 32)
        scales = 1
        for size in self.scale_shape(n, k):
            scales *= size
        zero_bits = 0 if self.symmetric else scales * row.bits
        over = 0
        if self.scale is not None:
            scale_bits, over = self.scale.bits, 32 if self.scale.over else 0
        return (code_bits + scales * scale_bits + zero_bits + over) / (n * k)


@dataclass(frozen=True, repr=False)
class ActSpec:
    """How activations ``[M, K]`` are rounded before a linear.

    Attributes:
        element: element format of the codes.
        granularity: what shares a scale: ``token`` (one row of K values), ``tensor`` (everything; stored scales only),
            ``group`` (a run of ``group`` values along K of one token). Dynamic scales never depend on other tokens.
        group: values per scale, for ``group``.
        dynamic: scales come from the values at hand; False when one calibrated scale is stored (``tensor`` only).
        scale: the format of the scales of groups; None for float32. Under a scale of the whole tensor that one is
            calibrated and stored.

    Raises:
        SchemeError: the fields contradict each other.
    """

    element: str
    granularity: ActGranularity
    group: int | None = None
    dynamic: bool = True
    scale: ScaleSpec | None = None

    def __post_init__(self) -> None:
        row = element(self.element)
        known = ("token", "tensor", "group")
        _require(self.granularity in known, f"granularity {self.granularity!r} is none of {', '.join(known)}")
        _require_group(self.granularity, self.group)
        _require(self.dynamic or self.granularity == "tensor", "a stored activation scale is one per tensor")
        _require(
            not self.dynamic or self.granularity != "tensor",
            "a dynamic activation scale is one per token: for the whole tensor it would depend on the other tokens",
        )
        _require(row.signed and row.has_zero, f"activations need a signed format with a zero, not {row.name}")
        _require(
            self.scale in (None, POWERS, UNDER_ONE) and (self.scale is None or self.granularity == "group"),
            f"scales of activations are float32, or of groups {POWERS} or {UNDER_ONE}",
        )

    def __repr__(self) -> str:
        return _shown(self)

    @property
    def calibrated(self) -> bool:
        """Whether a number is stored that was measured on sample text."""
        return not self.dynamic or (self.scale is not None and self.scale.over is not None)


@dataclass(frozen=True)
class Scheme:
    """One quantization scheme.

    Attributes:
        name: canonical name.
        weights: how linear weights are stored; None when they are not quantized.
        activations: how the inputs of linears are rounded; None when they are not.
        dtype: torch dtype name of the weights of an unquantized scheme, else None.
        kv_cache: element format of the KV cache; None for the model's dtype.
        aliases: other names of this scheme, as their sources spell them.
        note: one sentence for people.

    Raises:
        SchemeError: neither or both of ``weights`` and ``dtype`` are given, or activations without weights.
    """

    name: str
    weights: WeightSpec | None
    activations: ActSpec | None = None
    dtype: Literal["bfloat16", "float16"] | None = None
    kv_cache: str | None = None
    aliases: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        _require((self.weights is None) != (self.dtype is None), f"scheme {self.name}: give either weights or dtype")
        _require(
            self.activations is None or self.weights is not None, f"scheme {self.name}: activations without weights"
        )

    @property
    def quantized(self) -> bool:
        """Whether weights are quantized at all."""
        return self.weights is not None

    @property
    def needs_calibration(self) -> bool:
        """Whether activation scales must be measured on sample text first."""
        return self.activations is not None and self.activations.calibrated

    def bits_per_weight(self, n: int = 4096, k: int = 4096, scale_bits: int = 16) -> float:
        """Stored bits per weight of an ``[n, k]`` linear.

        Args:
            n: output rows.
            k: inputs.
            scale_bits: width of a stored scale.
        """
        if self.weights is None:
            return 16.0
        return self.weights.bits_per_weight(n, k, scale_bits)


_FP8_CHANNEL = WeightSpec("e4m3fn", "channel")
_INT8_CHANNEL = WeightSpec("int8", "channel")


def _int_group(name: str, group: int, symmetric: bool = True) -> WeightSpec:
    return WeightSpec(name, "group", group, symmetric=symmetric)


_ROWS = (
    Scheme("bf16", None, dtype="bfloat16", aliases=("q0bf16", "bfloat16"), note="not quantized"),
    Scheme("f16", None, dtype="float16", aliases=("q0f16", "fp16", "float16"), note="not quantized"),
    Scheme(
        "fp8",
        _FP8_CHANNEL,
        ActSpec("e4m3fn", "token"),
        aliases=("FP8_DYNAMIC",),
        note="8-bit floats, scales per output channel and per token",
    ),
    Scheme(
        "fp8-e5m2",
        WeightSpec("e5m2", "channel"),
        ActSpec("e5m2", "token"),
        aliases=("e5m2_e5m2_f16",),
        note="8-bit floats with more range and less precision",
    ),
    Scheme(
        "fp8-static",
        WeightSpec("e4m3fn", "tensor"),
        ActSpec("e4m3fn", "tensor", dynamic=False),
        aliases=("FP8", "e4m3_e4m3_f16"),
        note="one scale per tensor, activation scales calibrated on sample text",
    ),
    Scheme(
        "fp8-block",
        WeightSpec("e4m3fn", "block", block=(128, 128)),
        ActSpec("e4m3fn", "group", 128),
        aliases=("FP8_BLOCK", "fp8_e4m3fn_bf16_block_scale"),
        note="scales per 128x128 block of weights and per 128 activations",
    ),
    Scheme("fp8-w8a16", _FP8_CHANNEL, note="8-bit float weights, activations as they are"),
    Scheme(
        "int8",
        _INT8_CHANNEL,
        ActSpec("int8", "token"),
        aliases=("W8A8", "INT8"),
        note="8-bit integers, scales per output channel and per token",
    ),
    Scheme(
        "int8-w8a16",
        _INT8_CHANNEL,
        aliases=("W8A16", "q8f16_1"),
        note="8-bit integer weights, activations as they are",
    ),
    Scheme("int4", _int_group("int4", 128), aliases=("W4A16",), note="4-bit weights, a scale per 128"),
    Scheme("int4-g32", _int_group("int4", 32), aliases=("q4f16_1",), note="4-bit weights, a scale per 32"),
    Scheme(
        "int4-asym",
        _int_group("uint4", 128, symmetric=False),
        aliases=("W4A16_ASYM", "q4f16_autoawq"),
        note="4-bit weights, a scale and a zero point per 128",
    ),
    Scheme(
        "w4a8",
        _int_group("int4", 128),
        ActSpec("int8", "token"),
        aliases=("W4A8",),
        note="4-bit weights, a scale per 128, multiplied by 8-bit integers with a scale per token",
    ),
    Scheme(
        "mxfp4",
        WeightSpec("e2m1", "group", 32, scale=POWERS),
        ActSpec("e2m1", "group", 32, scale=POWERS),
        aliases=("MXFP4",),
        note="4-bit floats, weights and activations, a power of two per 32",
    ),
    Scheme(
        "mxfp4-w16",
        WeightSpec("e2m1", "group", 32, scale=POWERS),
        aliases=("MXFP4A16",),
        note="4-bit float weights, a power of two per 32, activations as they are",
    ),
    Scheme(
        "mxfp8",
        WeightSpec("e4m3fn", "group", 32, scale=POWERS),
        ActSpec("e4m3fn", "group", 32, scale=POWERS),
        aliases=("MXFP8",),
        note="8-bit floats, weights and activations, a power of two per 32",
    ),
    Scheme(
        "mxfp8-w16",
        WeightSpec("e4m3fn", "group", 32, scale=POWERS),
        aliases=("MXFP8A16",),
        note="8-bit float weights, a power of two per 32, activations as they are",
    ),
    Scheme(
        "nvfp4",
        WeightSpec("e2m1", "group", 16, scale=UNDER_ONE),
        ActSpec("e2m1", "group", 16, scale=UNDER_ONE),
        aliases=("NVFP4",),
        note="4-bit floats, a scale of 8 bits per 16 under one of the tensor, calibrated for activations",
    ),
    Scheme(
        "nvfp4-w16",
        WeightSpec("e2m1", "group", 16, scale=UNDER_ONE),
        aliases=("NVFP4A16",),
        note="4-bit float weights, a scale of 8 bits per 16 under one of the tensor, activations as they are",
    ),
    Scheme("int3", _int_group("int3", 40), aliases=("q3f16_1",), note="3-bit weights, a scale per 40"),
    Scheme("int2", _int_group("int2", 32), note="2-bit weights, a scale per 32; expect large losses"),
)

SCHEMES: dict[str, Scheme] = {row.name: row for row in _ROWS}


def _key(name: str) -> str:
    return name.strip().lower().replace("_", "-")


# Exact spellings come first: compressed-tensors calls static FP8 "FP8", which folds to the name of our dynamic `fp8`.
_EXACT: dict[str, Scheme] = {alias: row for row in _ROWS for alias in row.aliases}
_FOLDED: dict[str, Scheme] = {_key(alias): row for row in _ROWS for alias in row.aliases} | {
    _key(name): row for name, row in SCHEMES.items()
}

# Schemes that may be given with a group size of one's own, as NAME-gSIZE.
GROUPED: tuple[str, ...] = ("int4", "int4-asym", "w4a8", "int3", "int2", "int8-w8a16")


def scheme(name: str) -> Scheme:
    """The scheme called ``name``: a canonical name, an alias, or one with a group size such as ``int4-g64``.

    Upper and lower case and ``-`` and ``_`` are alike, with one exception: exactly ``FP8`` is compressed-tensors'
    name of static FP8 (``fp8-static``), while ``fp8`` is dynamic.

    Raises:
        SchemeError: no such scheme; lists all names and the closest one.
    """
    exact = _EXACT.get(name.strip())
    if exact is not None:
        return exact
    key = _key(name)
    if key in _FOLDED:
        return _FOLDED[key]
    grouped = re.fullmatch(r"(.+)-g(\d{1,6})", key)
    if grouped and grouped[1] in _FOLDED and _FOLDED[grouped[1]].name in GROUPED:
        return _with_group(_FOLDED[grouped[1]], int(grouped[2]))
    raise SchemeError(_unknown(name, key))


def _with_group(base: Scheme, group: int) -> Scheme:
    """``base`` with its weights in groups of ``group``; a row of the table if there is one for it."""
    assert base.weights is not None
    weights = replace(base.weights, granularity="group", group=group)
    for row in _ROWS:
        if row.weights == weights and row.activations == base.activations:
            return row
    note = re.sub(r"(a scale\b.*? per) \d+", rf"\g<1> {group}", base.note)
    return replace(base, name=f"{base.name}-g{group}", weights=weights, aliases=(), note=note)


@lru_cache(maxsize=1024)  # models have tens of thousands of modules, in few formats
def name_of(weights: WeightSpec, activations: ActSpec | None) -> str:
    """The name of the scheme with these weights and activations, or a description of them."""
    rows = list(_ROWS)
    if weights.group is not None:
        rows += [_with_group(SCHEMES[name], weights.group) for name in GROUPED]
    for row in rows:
        if (row.weights, row.activations) == (weights, activations):
            return row.name
    size = weights.group or ("x".join(map(str, weights.block)) if weights.block else "")
    words = f"{weights.element} per {weights.granularity}{f' {size}' if size else ''}"
    words += "" if weights.scale is None else f" (scales: {weights.scale})"
    if activations is None:
        return words
    words += f" with activations {activations.element} per {activations.granularity}"
    return words if activations.scale is None else f"{words} (scales: {activations.scale})"


def _unknown(name: str, key: str) -> str:
    close = difflib.get_close_matches(key, _FOLDED, n=1, cutoff=0.5)
    hint = f" Did you mean {_FOLDED[close[0]].name}?" if close else ""
    return (
        f"unknown scheme {name!r}. Known schemes: {', '.join(SCHEMES)};"
        f" a group size may follow {', '.join(GROUPED)} (for example int4-g64).{hint}"
    )
