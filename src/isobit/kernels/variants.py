"""Every GPU kernel as a row: what it multiplies, where it can run, how it is compiled, and what its machine code shows.

The registry, the planner, the proof and docs/support.md read these rows; nothing here imports torch or Triton. A row
asks a target for capabilities (matrix units, shared memory), never for its name, so a new target is a row elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from isobit.targets.spec import Target

Family = Literal["vector", "few", "many", "quantize"]
Constant = int | float | bool | str | None
Requires = Callable[[Target], str | None]

FEW = 16  # tokens: the widest tile of the "few" family
DEPENDENT_LAUNCH_ARCH = 90  # CUDA architecture from which a kernel may start before its predecessor has ended


@dataclass(frozen=True)
class Config:
    """How one kernel is compiled for one target.

    Attributes:
        signature: argument -> type, as Triton writes it.
        constexprs: the constants, ELEMENT and the like.
        num_warps, num_stages: warps of a program; depth of the software pipeline.
        divisible: integer arguments that are multiples of 16; pointers always are.
    """

    signature: Mapping[str, str]
    constexprs: Mapping[str, Constant]
    num_warps: int
    num_stages: int
    divisible: tuple[str, ...] = ("N", "K")

    def with_constants(self, **constants: Constant) -> Config:
        """The same with some constants replaced or added."""
        return replace(self, constexprs={**self.constexprs, **constants})


@dataclass(frozen=True)
class Variant:
    """One kernel for one kind of linear.

    Attributes:
        name: unique.
        family: ``vector`` (a token at a time, no matrix unit), ``few`` (1 to 16 tokens), ``many``, ``quantize``.
        entry: ``module:function`` of the Triton function.
        weights: element format, or ``float`` for weights in the dtype of the activations; None for ``quantize``.
        granularity: what shares a weight scale: ``row`` (also tensor), ``group``, ``block``; None without scales.
        activations: element format that they are rounded to, or None.
        compute: dtype of the products: ``native`` (the formats themselves), ``f16``, ``bf16``, ``f32``, ``int8``.
        operand: dtype of ``x`` in memory, as Triton writes it.
        requires: why a target cannot run it, or None.
        config: how it is compiled for a target.
        promises: regular expressions of mnemonics, each of which the hot loop must show on that target.
    """

    name: str
    family: Family
    entry: str
    weights: str | None
    granularity: Literal["row", "group", "block"] | None
    activations: str | None
    compute: str
    operand: str
    requires: Requires
    config: Callable[[Target], Config]
    promises: Callable[[Target], tuple[str, ...]] = field(default=lambda target: ())

    def signature(self, target: Target) -> Mapping[str, str]:
        """Argument types for a target."""
        return self.config(target).signature

    def constexprs(self, target: Target) -> Mapping[str, Constant]:
        """Constants for a target."""
        return self.config(target).constexprs


# ---------------------------------------------------------------------- capabilities


def is_cuda(target: Target) -> bool:
    """Whether NVIDIA's inline assembly can be used."""
    return target.backend is not None and target.backend[0] == "cuda"


def overlaps(target: Target) -> bool:
    """Whether a kernel can start before its predecessor has ended."""
    return is_cuda(target) and target.backend is not None and int(target.backend[1]) >= DEPENDENT_LAUNCH_ARCH


def _compiles(target: Target) -> str | None:
    return None if target.backend is not None else f"Triton does not compile for {target.name}"


def _has_bf16(target: Target) -> str | None:
    reason = _compiles(target)
    if reason or not is_cuda(target) or target.unit("bfloat16", "bfloat16"):
        return reason
    return f"{target.name} has no bfloat16 arithmetic"


def _has_unit(dtype: str) -> Requires:
    def requires(target: Target) -> str | None:
        reason = _compiles(target)
        if reason or target.unit(dtype, dtype):
            return reason
        hardware = target.hardware_unit(dtype, dtype)
        return hardware.unreachable if hardware else f"{target.name} has no matrix unit for {dtype}"

    return requires


def _shows_unit(dtype: str) -> Callable[[Target], tuple[str, ...]]:
    def promises(target: Target) -> tuple[str, ...]:
        unit = target.unit(dtype, dtype)
        return (unit.instruction,) if unit else ()

    return promises


# ---------------------------------------------------------------------- tiles

_MODULES = "isobit.kernels.triton"
_POINTERS = {"f16": "*fp16", "bf16": "*bf16", "f32": "*fp32"}
_NATIVE = {"e4m3fn": "*fp8e4nv", "e5m2": "*fp8e5", "int8": "*i8"}
_CODES = {"e4m3fn": "*u8", "e5m2": "*u8", "int8": "*i8"}
_DTYPES = {"f16": "float16", "bf16": "bfloat16"}
_LARGE_SHARED, _MIDDLE_SHARED = 200 << 10, 80 << 10


@dataclass(frozen=True)
class Tile:
    """Rows of weights, tokens and K of one step; warps; pipeline depth."""

    n: int
    m: int
    k: int
    warps: int
    stages: int


def _few_tile(target: Target, bytes_x: int, bytes_w: int) -> Tile:
    if target.shared_memory < _MIDDLE_SHARED:
        return Tile(64, FEW, 128 // bytes_x, 4, 2)
    return Tile(64, FEW, 256 if bytes_w == 1 else 128, 4, 4)


def _many_tile(target: Target, bytes_x: int, bytes_w: int) -> Tile:
    if target.unit("float16", "float16") is None:
        return Tile(64, 64, 32, 4, 2)
    if target.shared_memory > _LARGE_SHARED:
        return Tile(128, 256 if bytes_x == bytes_w else 128, 128 // bytes_x, 8, 3)
    if target.shared_memory > _MIDDLE_SHARED:
        return Tile(128, 128, 128 // bytes_x, 8, 3)
    return Tile(128, 64, 64 // bytes_x, 4, 2)


def _tile_constants(target: Target, family: Family, tile: Tile) -> dict[str, Constant]:
    few = family == "few"
    return {
        "ASM": is_cuda(target), "OVERLAP": overlaps(target), "BLOCK_N": tile.n, "BLOCK_M": tile.m,
        "SPLIT": 4 if few else 1, "BAND": 1 if few else 8,
    }  # fmt: skip


def _matrix_signature(x: str, w: str, scale: str = "*fp32") -> dict[str, str]:
    y = x if x in _POINTERS.values() else "*bf16"
    return {
        "x": x, "w": w, "token_scale": "*fp32", "scale": scale, "zero": "*u8", "bias": "*fp32", "y": y,
        "work": "*i32" if x == "*i8" else "*fp32", "arrived": "*i32", "M": "i32", "N": "i32", "K": "i32",
        "stride_w": "i32", "stride_scale": "i32", "gain": "fp32",
    }  # fmt: skip


def _bytes(pointer: str) -> int:
    return {"*fp32": 4, "*fp16": 2, "*bf16": 2, "*i16": 2}.get(pointer, 1)


def _precision(target: Target) -> str:
    return "tf32x3" if is_cuda(target) and target.unit("float16", "float16") else "ieee"


def _promotion(target: Target, element: str) -> tuple[int, bool]:
    """(IMPRECISE, PROMOTE): how sums of a unit that rounds them reach float32."""
    unit = target.unit(element, element)
    if unit is None or unit.promote_every is None:
        return 0, False
    warp_groups = unit.instruction.startswith("QG")
    return (unit.promote_every, False) if warp_groups else (0, True)


# ---------------------------------------------------------------------- rows


def _row_scaled(
    family: Family, w: str, x: str, element: str, *, scaled: bool = True, rounded: bool = False, native: str = ""
) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix``; ``native`` is the float8 format that the unit multiplies, if one is."""

    def config(target: Target) -> Config:
        tile = (_few_tile if family == "few" else _many_tile)(target, _bytes(x), _bytes(w))
        imprecise, promote = _promotion(target, native) if native else (0, False)
        if family == "few" and imprecise:  # memory-bound: float16 products of the same codes add up in full
            imprecise = 0
        if promote or imprecise:
            tile = replace(tile, m=min(tile.m, 128), k=128)
        constants = {
            **_tile_constants(target, family, tile), "ELEMENT": element, "HAS_TOKEN_SCALE": rounded,
            "HAS_SCALE": scaled, "HAS_BIAS": False, "EVEN_K": True, "IMPRECISE": imprecise, "PROMOTE": promote,
            "PRECISION": _precision(target), "BLOCK_K": tile.k,
        }  # fmt: skip
        return Config(_matrix_signature(x, w), constants, tile.warps, tile.stages)

    return config


def _block_scaled(family: Family, w: str, x: str, element: str) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix_block``, for blocks of 128 by 128."""

    def config(target: Target) -> Config:
        tile = (_few_tile if family == "few" else _many_tile)(target, _bytes(x), _bytes(w))
        constants: dict[str, Constant] = {
            **_tile_constants(target, family, replace(tile, m=min(tile.m, 128 if w == x else 64))),
            "ELEMENT": element, "HAS_BIAS": False, "GROUP": 128,
            "IMPRECISE": 128 if family == "many" and w == x else 0,
        }  # fmt: skip
        stages = tile.stages if target.shared_memory > _MIDDLE_SHARED else 1
        return Config(_matrix_signature(x, w), constants, tile.warps, min(stages, 3))

    return config


def _nibbles(family: Family, x: str, zero: bool) -> Callable[[Target], Config]:
    """Configuration of ``linear_matrix_nibbles``, for groups of 128."""

    def config(target: Target) -> Config:
        tile = (_few_tile if family == "few" else _many_tile)(target, 2, 1)
        constants: dict[str, Constant] = {
            **_tile_constants(target, family, replace(tile, m=min(tile.m, 128))),
            "GROUP": 128, "UNIT": 128 if zero or family == "many" else 256, "HAS_ZERO": zero, "HAS_BIAS": False,
        }  # fmt: skip
        small = target.shared_memory < _MIDDLE_SHARED
        return Config(_matrix_signature(x, "*i16", "*bf16"), constants, tile.warps, 1 if small else tile.stages)

    return config


def _stream(family: Family, bits: int, group: int, x: str) -> Callable[[Target], Config]:
    """Configuration of the packed integers that no tile of a matrix unit fits."""

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "BITS": bits, "GROUP": group, "HAS_ZERO": False, "HAS_BIAS": False, "BLOCK_N": 8, "BLOCK_K": 512
        }  # fmt: skip
        if family == "many":
            constants |= {"PRECISION": _precision(target), "BLOCK_N": 64, "BLOCK_M": 64, "BLOCK_K": 32, "BAND": 8}
        return Config(_matrix_signature(x, "*i32", "*bf16"), constants, 4, 2, divisible=())

    return config


def _vector(w: str, x: str, element: str, *, scaled: bool = True, rounded: bool = False) -> Callable[[Target], Config]:
    """Configuration of ``linear_vector``."""

    def config(target: Target) -> Config:
        constants: dict[str, Constant] = {
            "ELEMENT": element, "HAS_TOKEN_SCALE": rounded, "HAS_SCALE": scaled, "HAS_BIAS": False, "EVEN_K": True,
            "ASM": is_cuda(target), "OVERLAP": overlaps(target), "BLOCK_N": 4, "BLOCK_K": 1024 // _bytes(w),
            "UNROLL": 2,
        }  # fmt: skip
        return Config(_matrix_signature(x, w), constants, 2, 1)

    return config


def _vector_int8(target: Target) -> Config:
    constants: dict[str, Constant] = {
        "HAS_BIAS": False, "EVEN_K": True, "ASM": is_cuda(target), "OVERLAP": overlaps(target), "BLOCK_N": 4,
        "BLOCK_K": 256, "UNROLL": 2,
    }  # fmt: skip
    return Config(_matrix_signature("*i32", "*i32"), constants, 2, 1)


def _rounding(element: str, wide: bool) -> Callable[[Target], Config]:
    def config(target: Target) -> Config:
        codes = "*fp16" if wide else ("*i8" if element == "int8" else "*u8")
        signature = {
            "x": "*bf16",
            "codes": codes,
            "scales": "*fp32",
            "static_scale": "*fp32",
            "K": "i32",
            "qmax": "fp32",
        }
        constants: dict[str, Constant] = {
            "ELEMENT": element, "WIDE": wide, "STATIC": False, "OVERLAP": overlaps(target), "BLOCK_K": 2048
        }  # fmt: skip
        return Config(signature, constants, 4, 1)

    return config


def _rounding_group(wide: bool) -> Callable[[Target], Config]:
    def config(target: Target) -> Config:
        codes = "*fp16" if wide else "*u8"
        signature = {"x": "*bf16", "codes": codes, "scales": "*fp32", "groups": "i32", "qmax": "fp32"}
        constants: dict[str, Constant] = {
            "ELEMENT": "e4m3fn", "WIDE": wide, "OVERLAP": overlaps(target), "GROUP": 128, "WIDTH": 128, "ROWS": 8
        }  # fmt: skip
        return Config(signature, constants, 4, 1, divisible=())

    return config


def _plain_rows(family: Family) -> Iterator[Variant]:
    """Weights in the dtype of the activations."""
    entry = f"{_MODULES}.linear_matrix:linear_matrix"
    for compute in ("f16", "bf16"):
        pointer, dtype = _POINTERS[compute], _DTYPES[compute]
        requires = _has_bf16 if compute == "bf16" else _compiles
        config = _row_scaled(family, pointer, pointer, "native", scaled=False)
        yield Variant(f"{family}-{compute}", family, entry, "float", None, None, compute, pointer, requires, config,
                      _shows_unit(dtype))  # fmt: skip


def _eight_bit_rows(family: Family) -> Iterator[Variant]:
    """8-bit weights: native products, products of widened codes, and activations as they are."""
    entry = f"{_MODULES}.linear_matrix:linear_matrix"
    for element in ("e4m3fn", "e5m2", "int8"):
        native, codes = _NATIVE[element], _CODES[element]
        config = _row_scaled(family, native, native, "native", rounded=True, native=element)
        promises = _shows_unit(element)
        if family == "few" and element != "int8":
            promises = _few_float8
        yield Variant(f"{family}-{element}-native", family, entry, element, "row", element, "native", native,
                      _has_unit(element), config, promises)  # fmt: skip
        config = _row_scaled(family, codes, "*fp16", element, rounded=True)
        yield Variant(f"{family}-{element}-widened", family, entry, element, "row", element, "f16", "*fp16", _compiles,
                      config, _shows_unit("float16"))  # fmt: skip
        for compute in ("f16", "bf16"):
            pointer, dtype = _POINTERS[compute], _DTYPES[compute]
            requires = _has_bf16 if compute == "bf16" else _compiles
            config = _row_scaled(family, codes, pointer, element)
            yield Variant(f"{family}-{element}-{compute}", family, entry, element, "row", None, compute, pointer,
                          requires, config, _shows_unit(dtype))  # fmt: skip


def _few_float8(target: Target) -> tuple[str, ...]:
    """Where the float8 unit works on large tiles only and rounds its sums, a few tokens are multiplied in float16."""
    unit = target.unit("e4m3fn", "e4m3fn")
    if unit is None:
        return ()
    return ("HMMA",) if unit.instruction == "QGMMA" else (unit.instruction,)


def _block_rows(family: Family) -> Iterator[Variant]:
    """e4m3fn in blocks of 128 by 128, activations in groups of 128."""
    entry = f"{_MODULES}.linear_matrix:linear_matrix_block"
    native = _NATIVE["e4m3fn"]
    promises = _few_float8 if family == "few" else _shows_unit("e4m3fn")
    yield Variant(f"{family}-block-native", family, entry, "e4m3fn", "block", "e4m3fn", "native", native,
                  _has_unit("e4m3fn"), _block_scaled(family, native, native, "native"), promises)  # fmt: skip
    yield Variant(f"{family}-block-widened", family, entry, "e4m3fn", "block", "e4m3fn", "f16", "*fp16", _compiles,
                  _block_scaled(family, "*u8", "*fp16", "e4m3fn"), _shows_unit("float16"))  # fmt: skip


def _group_rows(family: Family) -> Iterator[Variant]:
    """Integers below 8 bits in groups along K."""
    entry = f"{_MODULES}.linear_matrix:linear_matrix_nibbles"
    for element in ("int4", "uint4"):
        for compute in ("f16", "bf16"):
            pointer, dtype = _POINTERS[compute], _DTYPES[compute]
            requires = _has_bf16 if compute == "bf16" else _compiles
            yield Variant(f"{family}-{element}-{compute}", family, entry, element, "group", None, compute, pointer,
                          requires, _nibbles(family, pointer, element == "uint4"), _shows_unit(dtype))  # fmt: skip


def _stream_rows() -> Iterator[Variant]:
    """Packed integers of any width and group, and any activations, in float32."""
    for family, module in (("vector", "linear_vector"), ("many", "linear_matrix")):
        for element, bits, group in (("int4", 4, 32), ("int3", 3, 40), ("int2", 2, 32)):
            yield Variant(f"{family}-{element}-stream", family, f"{_MODULES}.{module}:{module}_stream",  # type: ignore[arg-type]
                          element, "group", None, "f32", "*fp16", _compiles,
                          _stream(family, bits, group, "*fp16"))  # type: ignore[arg-type]  # fmt: skip


def _vector_rows() -> Iterator[Variant]:
    """One token without matrix units."""
    entry = f"{_MODULES}.linear_vector:linear_vector"
    for compute in ("f16", "bf16"):
        pointer = _POINTERS[compute]
        requires = _has_bf16 if compute == "bf16" else _compiles
        yield Variant(f"vector-{compute}", "vector", entry, "float", None, None, "f32", pointer, requires,
                      _vector(pointer, pointer, "float", scaled=False))  # fmt: skip
    for element in ("e4m3fn", "e5m2", "int8"):
        yield Variant(f"vector-{element}-widened", "vector", entry, element, "row", element, "f32", "*fp16", _compiles,
                      _vector(_CODES[element], "*fp16", element, rounded=True))  # fmt: skip
        yield Variant(f"vector-{element}", "vector", entry, element, "row", None, "f32", "*fp16", _compiles,
                      _vector(_CODES[element], "*fp16", element))  # fmt: skip
    yield Variant("vector-int8-dp4a", "vector", f"{entry}_int8", "int8", "row", "int8", "int8", "*i32", _compiles,
                  _vector_int8, lambda target: (r"IDP\.4A",) if is_cuda(target) else ())  # fmt: skip


def _quantize_rows() -> Iterator[Variant]:
    """The rounding of activations."""
    entry = f"{_MODULES}.quantize:quantize"
    for element in ("e4m3fn", "e5m2", "int8"):
        for wide in (False, True):
            name = f"quantize-{element}" + ("-wide" if wide else "")
            yield Variant(name, "quantize", f"{entry}_token", None, None, element, "f32", "*bf16", _has_bf16,
                          _rounding(element, wide))  # fmt: skip
    for wide in (False, True):
        name = "quantize-group" + ("-wide" if wide else "")
        yield Variant(name, "quantize", f"{entry}_group", None, None, "e4m3fn", "f32", "*bf16", _has_bf16,
                      _rounding_group(wide))  # fmt: skip


def _all_rows() -> Iterator[Variant]:
    yield from _quantize_rows()
    yield from _vector_rows()
    for family in _MATRIX_FAMILIES:
        yield from _plain_rows(family)
        yield from _eight_bit_rows(family)
        yield from _block_rows(family)
        yield from _group_rows(family)
    yield from _stream_rows()


_MATRIX_FAMILIES: tuple[Family, ...] = ("few", "many")
VARIANTS: tuple[Variant, ...] = tuple(_all_rows())


def variant(name: str) -> Variant:
    """The row called ``name``.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in VARIANTS}[name]
