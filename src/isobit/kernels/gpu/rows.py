"""Every GPU kernel as a row, which the choice, the planner, the proof and docs/support.md read; no torch, no Triton.

Ranks, the lowest first: one token by lanes, PyTorch's products and weights widened once per call where they are the
fastest, then native products, then codes widened in registers, then what needs no matrix unit. Measured on an H200:
one token of e4m3 takes 56 us by lanes and 62 through tiles (dev/LOG.md, 2026-11-23); ``tiles.LARGE`` has the
figures of many tokens. The order of the other ranks was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from isobit.kernels.gpu import before_tiles, lane_tiles, micro_rows, sorted_rows, tiles, tma_tiles
from isobit.kernels.gpu.group_tiles import grouped, halves
from isobit.kernels.gpu.tiles import FEW, LARGE, LIBRARY_MEASURED, Family, is_cuda
from isobit.kernels.gpu.variant import (
    DTYPES,
    HALVES,
    UNITS,
    WORDS_OF_8_BITS,
    WORDS_OF_16_BITS,
    WORDS_OF_UNITS,
    Requires,
    Variant,
    compiles,
    flushes_small_codes,
    has_bf16,
    has_dp4a_or_no_unit,
    has_lanes,
    has_no_unit,
    has_unit,
    keeps_small_codes,
    shows_unit,
    widens_first,
)
from isobit.targets.spec import Target

_MODULES = "isobit.kernels.gpu.triton"
_MATRIX = f"{_MODULES}.linear_matrix:linear_matrix"
_TMA = f"{_MODULES}.linear_tma:linear_tma"
_NIBBLES, _HALVES = f"{_MATRIX}_nibbles", f"{_MODULES}.linear_halves:linear_matrix_halves"

_LANES, _LANES_WIDENED, _LIBRARY, _BY_TMA, _WIDENED_ONCE, _SCALAR = 0, 1, 10, 12, 15, 20
_NATIVE, _ONCE_IF_NOT_NATIVE, _WIDENED, _WIDENED_BF16, _PLAIN_ARITHMETIC, _STREAM = 30, 35, 40, 45, 50, 60

_ONE = (1, 1)
_TOKENS: dict[Family, tuple[int, int | None]] = {"few": (1, FEW), "many": (FEW + 1, None)}
_SEVERAL, _VERY_MANY = (2, None), (LARGE, None)


def _plain_rows(family: Family) -> Iterator[Variant]:
    """Weights in the dtype of the activations."""
    for compute in ("f16", "bf16"):
        pointer, dtype = tiles.POINTERS[compute], DTYPES[compute]
        yield Variant(
            f"{family}-{compute}", family, "matrix", _MATRIX, "float", None, None, compute, pointer,
            has_bf16 if compute == "bf16" else compiles,
            tiles.row_scaled(family, pointer, pointer, "native", scaled=False),
            _TOKENS[family], _NATIVE, (dtype,), promises=shows_unit(dtype),
        )  # fmt: skip


def _eight_bit_rows(family: Family) -> Iterator[Variant]:
    """8-bit weights: native products, products of widened codes, and activations as they are."""
    tokens = _TOKENS[family]
    for element in ("e4m3fn", "e5m2", "int8"):
        native, codes = tiles.NATIVE[element], tiles.CODES[element]
        promises = _few_float8 if family == "few" and element != "int8" else shows_unit(element)
        yield Variant(
            f"{family}-{element}-native", family, "matrix", _MATRIX, element, "row", element, "native", native,
            has_unit(element), tiles.row_scaled(family, native, native, "native", rounded=True, native=element),
            tokens, _NATIVE, promises=promises,
        )  # fmt: skip
        yield Variant(
            f"{family}-{element}-widened", family, "matrix", _MATRIX, element, "row", element, "f16", "*fp16",
            keeps_small_codes(element), tiles.row_scaled(family, codes, "*fp16", element, rounded=True),
            tokens, _WIDENED, promises=shows_unit("float16"),
        )  # fmt: skip
        if element != "int8":
            yield Variant(
                f"{family}-{element}-widened-bf16", family, "matrix", _MATRIX, element, "row", element, "bf16", "*bf16",
                flushes_small_codes, tiles.row_scaled(family, codes, "*bf16", element, rounded=True),
                tokens, _WIDENED_BF16, promises=shows_unit("bfloat16"),
            )  # fmt: skip
        for compute in ("f16", "bf16"):
            pointer, dtype = tiles.POINTERS[compute], DTYPES[compute]
            yield Variant(
                f"{family}-{element}-{compute}", family, "matrix", _MATRIX, element, "row", None, compute, pointer,
                has_bf16 if compute == "bf16" else keeps_small_codes(element),
                tiles.row_scaled(family, codes, pointer, element),
                tokens, _NATIVE, (dtype,), promises=shows_unit(dtype),
            )  # fmt: skip


def _few_float8(target: Target) -> tuple[str, ...]:
    """Where the float8 unit works on large tiles only and rounds its sums, a few tokens are multiplied in float16."""
    unit = target.unit("e4m3fn", "e4m3fn")
    if unit is None:
        return ()
    return ("HMMA",) if unit.instruction == "QGMMA" else (unit.instruction,)


def _block_rows(family: Family) -> Iterator[Variant]:
    """e4m3fn in blocks of 128 by 128, activations in groups of 128."""
    native = tiles.NATIVE["e4m3fn"]
    for name, compute, pointer, codes, requires, rank, promises in (
        ("native", "native", native, native, has_unit("e4m3fn"), _NATIVE,
         _few_float8 if family == "few" else shows_unit("e4m3fn")),
        ("widened", "f16", "*fp16", "*u8", keeps_small_codes("e4m3fn"), _WIDENED, shows_unit("float16")),
        ("widened-bf16", "bf16", "*bf16", "*u8", flushes_small_codes, _WIDENED_BF16, shows_unit("bfloat16")),
    ):  # fmt: skip
        yield Variant(
            f"{family}-block-{name}", family, "matrix", f"{_MATRIX}_block", "e4m3fn", "block", "e4m3fn", compute,
            pointer, requires,
            tiles.block_scaled(family, codes, pointer, "native" if compute == "native" else "e4m3fn"),
            _TOKENS[family], rank, promises=promises,
        )  # fmt: skip


def _group_rows(family: Family) -> Iterator[Variant]:
    """Codes of 4 bits in groups along K."""
    for element in ("int4", "uint4", "e2m1"):
        for compute in ("f16", "bf16"):
            pointer, dtype = tiles.POINTERS[compute], DTYPES[compute]
            yield Variant(
                f"{family}-{element}-{compute}", family, "matrix", _HALVES if element == "e2m1" else _NIBBLES, element,
                "group", None, compute, pointer, has_bf16 if compute == "bf16" else compiles,
                halves(family, pointer) if element == "e2m1" else tiles.nibbles(family, pointer, element == "uint4"),
                _TOKENS[family], _NATIVE, (dtype,), layout=UNITS, promises=shows_unit(dtype),
            )  # fmt: skip


def _eight_bit_group_rows(family: Family) -> Iterator[Variant]:
    """8-bit codes in groups along K."""
    for element in ("e4m3fn", "int8"):
        for compute in ("f16", "bf16"):
            pointer, dtype = tiles.POINTERS[compute], DTYPES[compute]
            yield Variant(
                f"{family}-{element}-groups-{compute}", family, "matrix",
                f"{_MODULES}.linear_groups:linear_matrix_groups", element, "group", None, compute, pointer,
                has_bf16 if compute == "bf16" else keeps_small_codes(element),
                grouped(family, tiles.CODES[element], pointer, element),
                _TOKENS[family], _NATIVE, (dtype,), promises=shows_unit(dtype),
            )  # fmt: skip


def _stream_rows() -> Iterator[Variant]:
    """Packed integers of any width and group, and any activations, in float32."""
    families: tuple[tuple[Family, str, tuple[int, int | None]], ...] = (
        ("vector", "linear_vector", _ONE), ("many", "linear_matrix", _SEVERAL)
    )  # fmt: skip
    for family, module, tokens in families:
        entry = f"{_MODULES}.{module}:{module}_stream"
        for element, bits, group in (("int4", 4, 32), ("uint4", 4, 32), ("int3", 3, 40), ("int2", 2, 32)):
            config = tiles.stream(family, bits, group, "*fp16", zero=element == "uint4")
            name = f"{family}-{element}-stream"
            yield Variant(
                name, family, "stream", entry, element, "group", None, "f32", "*fp16", compiles, config, tokens, _STREAM
            )


def _scalar_rows() -> Iterator[Variant]:
    """One token without matrix units, and 8-bit weights with float32 activations."""
    entry = f"{_MODULES}.linear_vector:linear_vector"
    for compute in ("f16", "bf16"):
        pointer = tiles.POINTERS[compute]
        yield Variant(
            f"vector-{compute}", "vector", "scalar", entry, "float", None, None, "f32", pointer,
            has_bf16 if compute == "bf16" else compiles, tiles.vector(pointer, pointer, "float", scaled=False),
            _ONE, _SCALAR, (DTYPES[compute],),
        )  # fmt: skip
    for element in ("e4m3fn", "e5m2"):
        yield Variant(
            f"vector-{element}-widened", "vector", "scalar", entry, element, "row", element, "f32", "*fp16",
            has_no_unit, tiles.vector(tiles.CODES[element], "*fp16", element, rounded=True), _ONE, _PLAIN_ARITHMETIC,
        )  # fmt: skip
    for element in ("e4m3fn", "e5m2", "int8"):
        codes = tiles.CODES[element]
        yield Variant(
            f"vector-{element}-f32", "vector", "scalar", entry, element, "row", None, "f32", "*fp32", compiles,
            tiles.vector(codes, "*fp32", element), _ONE, _PLAIN_ARITHMETIC, ("float32",), without_units=HALVES,
        )  # fmt: skip
        yield Variant(
            f"many-{element}-f32", "many", "matrix", _MATRIX, element, "row", None, "f32", "*fp32", compiles,
            tiles.row_scaled("many", codes, "*fp32", element), _SEVERAL, _PLAIN_ARITHMETIC, ("float32",),
        )  # fmt: skip
    yield Variant(
        "vector-int8-dp4a", "vector", "scalar", f"{entry}_int8", "int8", "row", "int8", "int8", "*i32",
        has_dp4a_or_no_unit, tiles.vector_int8, _ONE, _SCALAR, layout=WORDS_OF_8_BITS,
        promises=lambda target: (r"IDP\.4A",) if is_cuda(target) else (),
    )  # fmt: skip


def _shows_hmma(target: Target) -> tuple[str, ...]:
    return ("HMMA",)


def _lane_rows() -> Iterator[Variant]:
    """One token, each lane with the weights that it has read itself."""
    entry = f"{_MODULES}.linear_lanes:linear_lanes"
    nibbles = f"{_MODULES}.linear_lanes_nibbles:linear_lanes_nibbles"
    common = Variant(
        "", "vector", "lanes", entry, None, "row", None, "", "*i32", compiles, lane_tiles.lanes("f16"), _ONE,
        _LANES, layout=WORDS_OF_8_BITS, promises=_shows_hmma, optional=True,
    )  # fmt: skip
    yield replace(
        common, name="vector-e4m3fn-lanes", weights="e4m3fn", activations="e4m3fn", compute="native",
        requires=has_lanes("e4m3fn"), config=lane_tiles.lanes("hardware", rounded=True),
    )  # fmt: skip
    for element in ("e4m3fn", "e5m2"):
        yield replace(
            common, name=f"vector-{element}-lanes-widened", weights=element, activations=element, compute="f16",
            requires=has_lanes("float16"), config=lane_tiles.lanes(element, rounded=True), rank=_LANES_WIDENED,
        )  # fmt: skip
    for compute, needs, element, name, rank in (
        ("native", "e4m3fn", "hardware", "vector-block-lanes", _LANES),
        ("f16", "float16", "e4m3fn", "vector-block-lanes-widened", _LANES_WIDENED),
    ):
        yield replace(
            common, name=name, entry=f"{entry}_block", weights="e4m3fn", granularity="block", activations="e4m3fn",
            compute=compute, requires=has_lanes(needs), config=lane_tiles.lanes_block(element), rank=rank,
        )  # fmt: skip
    for compute in ("f16", "bf16"):
        dtype = DTYPES[compute]
        by_floats = replace(common, compute=compute, requires=has_lanes(dtype), dtypes=(dtype,))
        yield replace(
            by_floats, name=f"vector-{compute}-lanes", weights="float", granularity=None, layout=WORDS_OF_16_BITS,
            config=lane_tiles.lanes(compute, scaled=False),
        )  # fmt: skip
        for element in ("e4m3fn", "int8"):
            yield replace(
                by_floats, name=f"vector-{element}-lanes-{compute}", weights=element,
                config=lane_tiles.lanes_by_floats(element, compute),
            )  # fmt: skip
        for element in ("int4", "uint4"):
            yield replace(
                by_floats, name=f"vector-{element}-lanes-{compute}", entry=nibbles, weights=element,
                granularity="group", layout=WORDS_OF_UNITS,
                config=lane_tiles.lanes_nibbles(compute, element == "uint4"),
            )  # fmt: skip


def _rounding_rows() -> Iterator[Variant]:
    """The rounding of activations."""
    entry = f"{_MODULES}.quantize:quantize"
    for element in ("e4m3fn", "e5m2", "int8"):
        for wide in (False, True):
            name = f"quantize-{element}" + ("-wide" if wide else "")
            yield Variant(
                name, "quantize", "rounding", f"{entry}_token", None, None, element, "f32", "*bf16", compiles,
                before_tiles.rounding(element, wide=wide), wide=wide,
            )  # fmt: skip
    for wide in (False, True):
        name = "quantize-group" + ("-wide" if wide else "")
        yield Variant(
            name, "quantize", "rounding", f"{entry}_group", None, "group", "e4m3fn", "f32", "*bf16", compiles,
            before_tiles.rounding_group(wide=wide), wide=wide,
        )  # fmt: skip


def _prepare_rows() -> Iterator[Variant]:
    """What runs before a ``large`` product."""
    entry = f"{_MODULES}.widen"
    for element in ("e4m3fn", "e5m2", "int8"):
        for compute in ("f16", "bf16"):
            pointer = tiles.POINTERS[compute]
            yield Variant(
                f"widen-{element}-{compute}", "prepare", "prepare", f"{entry}:widen_codes", element, "row", None,
                compute, pointer, widens_first(DTYPES[compute]),
                before_tiles.widening(tiles.CODES[element], pointer, element),
            )  # fmt: skip
    yield Variant(
        "fold-int4", "prepare", "prepare", f"{entry}:fold_nibbles", "int4", "group", None, "f16", "*fp16",
        widens_first("float16"), before_tiles.folding, layout=UNITS,
    )  # fmt: skip
    yield Variant(
        "narrow-bf16", "prepare", "prepare", f"{entry}:narrow_range", None, None, None, "f16", "*bf16",
        widens_first("bfloat16"), before_tiles.narrowing,
    )  # fmt: skip


_PREPARE = {(row.weights, row.compute): row for row in _prepare_rows()}


def _measured_library(dtype: str) -> Requires:
    """Only where the error and the speed of PyTorch's product were measured: cuBLAS chooses other code elsewhere."""

    def requires(target: Target) -> str | None:
        reason = has_unit(dtype)(target)
        if reason or target.name in LIBRARY_MEASURED:
            return reason
        return f"PyTorch's product was not measured on {target.name}"

    return requires


def _large_rows() -> Iterator[Variant]:
    """For very many tokens: PyTorch's products, and weights that are widened once per call."""
    yield Variant(
        "large-e4m3fn-library", "large", "library", "torch:scaled_mm", "e4m3fn", "row", "e4m3fn", "native",
        "*fp8e4nv", _measured_library("e4m3fn"), tiles.library("*fp8e4nv"), (tiles.LIBRARY_FLOAT8_FROM, None), _LIBRARY,
        optional=True,
    )  # fmt: skip
    for compute in ("f16", "bf16"):
        pointer, dtype = tiles.POINTERS[compute], DTYPES[compute]
        yield Variant(
            f"large-{compute}-library", "large", "library", "torch:mm", "float", None, None, compute, pointer,
            _measured_library(dtype), tiles.library(pointer), (tiles.LIBRARY_FLOATS_FROM, None), _LIBRARY, (dtype,),
            optional=True,
        )  # fmt: skip
    for element in ("e4m3fn", "e5m2", "int8"):
        if element != "int8":  # every such target has a matrix unit for int8
            yield Variant(
                f"large-{element}-widened", "large", "matrix", _MATRIX, element, "row", element, "f16", "*fp16",
                widens_first("float16"), tiles.after_widening("*fp16", rounded=True), _VERY_MANY, _ONCE_IF_NOT_NATIVE,
                promises=shows_unit("float16"), widen=_PREPARE[element, "f16"],
            )  # fmt: skip
        for compute in ("f16", "bf16"):
            pointer, dtype = tiles.POINTERS[compute], DTYPES[compute]
            yield Variant(
                f"large-{element}-{compute}", "large", "matrix", _MATRIX, element, "row", None, compute, pointer,
                widens_first(dtype), tiles.after_widening(pointer), _VERY_MANY, _WIDENED_ONCE, (dtype,),
                promises=shows_unit(dtype), widen=_PREPARE[element, compute],
            )  # fmt: skip
    for dtype, narrow in (("float16", None), ("bfloat16", _PREPARE[None, "f16"])):
        yield Variant(
            "large-int4-bf16" if narrow else "large-int4-f16", "large", "matrix", _MATRIX, "int4", "group", None, "f16",
            "*fp16", widens_first("float16"), tiles.after_widening("*fp16", rounded=narrow is not None), _VERY_MANY,
            _WIDENED_ONCE, (dtype,), layout=UNITS, promises=shows_unit("float16"), widen=_PREPARE["int4", "f16"],
            narrow=narrow,
        )  # fmt: skip


def _tma_rows() -> Iterator[Variant]:
    """For very many tokens where TMA copies the tiles."""
    yield Variant(
        "large-int8-native-tma", "large", "tma", _TMA, "int8", "row", "int8", "native", "*i8",
        tma_tiles.copies_tiles("int8"), tma_tiles.tiled("*i8"), _VERY_MANY, _BY_TMA,
        promises=shows_unit("int8"), optional=True,
    )  # fmt: skip


def _all_rows() -> Iterator[Variant]:
    yield from _rounding_rows()
    yield from micro_rows.rounding()
    yield from _scalar_rows()
    yield from _lane_rows()
    for family in _TOKENS:
        yield from _plain_rows(family)
        yield from _eight_bit_rows(family)
        yield from _block_rows(family)
        yield from _group_rows(family)
        yield from _eight_bit_group_rows(family)
        yield from micro_rows.widened(family, _TOKENS[family], _WIDENED)
    yield from micro_rows.scaled(_TOKENS["many"], _NATIVE)
    yield from _stream_rows()
    yield from _PREPARE.values()
    yield from _large_rows()
    yield from _tma_rows()
    yield from sorted_rows.rows(_BY_TMA)


VARIANTS: tuple[Variant, ...] = tuple(_all_rows())
BY_NAME = {row.name: row for row in VARIANTS}


def variant(name: str) -> Variant:
    """The row called ``name``.

    Raises:
        KeyError: there is none.
    """
    return BY_NAME[name]
