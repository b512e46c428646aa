"""Every GPU kernel as a row: what it multiplies, where it can run, how it is compiled, and what its machine code shows.

The registry, the planner, the proof and docs/support.md read these rows; nothing here imports torch or Triton. A row
asks a target for capabilities (matrix units, shared memory), never for its name, so a new target is a row elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from isobit.kernels.gpu import lane_tiles, tiles
from isobit.kernels.gpu.tiles import Config, Constant, Family, is_cuda
from isobit.targets.spec import Target

Requires = Callable[[Target], str | None]
_MODULES = "isobit.kernels.gpu.triton"
_DTYPES = {"f16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Variant:
    """One kernel for one kind of linear.

    Attributes:
        name: unique.
        family: ``vector`` (a token at a time, no matrix unit), ``few`` (1 to 16 tokens), ``many``, ``large`` (from
            ``tiles.LARGE`` tokens), ``quantize``, ``prepare`` (what runs before a ``large`` product).
        entry: ``module:function`` of the Triton function.
        weights: element format, or ``float`` for weights in the dtype of the activations; None for ``quantize``.
        granularity: what shares a weight scale: ``row`` (also tensor), ``group``, ``block``; None without scales.
        activations: element format that they are rounded to, or None.
        compute: dtype of the products: ``native`` (the formats themselves), ``f16``, ``bf16``, ``f32``, ``int8``.
        operand: dtype of ``x`` in memory, as Triton writes it.
        requires: why a target cannot run it, or None.
        config: how it is compiled for a target.
        promises: regular expressions of mnemonics, each of which the hot loop must show on that target.
        widen: name of the ``prepare`` row that writes the weight into a workspace, as ``operand``; or empty.
        narrow: name of the ``prepare`` row that turns bfloat16 activations into ``operand``; or empty.
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
    widen: str = ""
    narrow: str = ""

    @property
    def library(self) -> bool:
        """Whether it is a product of PyTorch's, which isobit does not compile."""
        return self.entry.startswith("torch:")

    @property
    def per_word(self) -> int:
        """Weights of an int32 word, for kernels that read words; else 1."""
        if self.entry.endswith(":linear_lanes_nibbles"):
            return 8
        if ":linear_lanes" in self.entry:
            return 2 if self.weights == "float" else 4
        return 4 if self.entry.endswith(":linear_vector_int8") else 1

    @property
    def reads_units(self) -> bool:
        """Whether it reads 4-bit codes in units (``layouts.interleave_nibbles``)."""
        return self.weights in ("int4", "uint4") and self.granularity == "group" and self.compute != "f32"

    def unit(self, target: Target) -> int:
        """The largest unit that it can read."""
        row = variant(self.widen) if self.widen else self
        return int(row.config(target).constexprs.get("UNIT") or 128)

    def signature(self, target: Target) -> Mapping[str, str]:
        """Argument types for a target."""
        return self.config(target).signature

    def constexprs(self, target: Target) -> Mapping[str, Constant]:
        """Constants for a target."""
        return self.config(target).constexprs


# ---------------------------------------------------------------------- capabilities


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


# ---------------------------------------------------------------------- rows


def _plain_rows(family: Family) -> Iterator[Variant]:
    """Weights in the dtype of the activations."""
    entry = f"{_MODULES}.linear_matrix:linear_matrix"
    for compute in ("f16", "bf16"):
        pointer, dtype = tiles.POINTERS[compute], _DTYPES[compute]
        requires = _has_bf16 if compute == "bf16" else _compiles
        config = tiles.row_scaled(family, pointer, pointer, "native", scaled=False)
        yield Variant(f"{family}-{compute}", family, entry, "float", None, None, compute, pointer, requires, config,
                      _shows_unit(dtype))  # fmt: skip


def _keeps_small_codes(element: str) -> Requires:
    """Float16 holds e4m3fn codes as numbers times 2**-8, and e5m2 as they are: some are subnormal there."""

    def requires(target: Target) -> str | None:
        reason = _compiles(target)
        unit = target.unit("float16", "float16")
        if reason or element == "int8" or unit is None or not unit.flushes_subnormals:
            return reason
        return f"{target.name}'s float16 matrix unit flushes subnormal numbers, which {element} codes are there"

    return requires


def _flushes_small_codes(target: Target) -> str | None:
    """Products in bfloat16 of rounded activations are there for those targets alone."""
    reason = _has_bf16(target)
    if reason or _keeps_small_codes("e4m3fn")(target):
        return reason
    return "float16 holds every code"


def _eight_bit_rows(family: Family) -> Iterator[Variant]:
    """8-bit weights: native products, products of widened codes, and activations as they are."""
    entry = f"{_MODULES}.linear_matrix:linear_matrix"
    for element in ("e4m3fn", "e5m2", "int8"):
        native, codes = tiles.NATIVE[element], tiles.CODES[element]
        config = tiles.row_scaled(family, native, native, "native", rounded=True, native=element)
        promises = _shows_unit(element)
        if family == "few" and element != "int8":
            promises = _few_float8
        yield Variant(f"{family}-{element}-native", family, entry, element, "row", element, "native", native,
                      _has_unit(element), config, promises)  # fmt: skip
        config = tiles.row_scaled(family, codes, "*fp16", element, rounded=True)
        yield Variant(f"{family}-{element}-widened", family, entry, element, "row", element, "f16", "*fp16",
                      _keeps_small_codes(element), config, _shows_unit("float16"))  # fmt: skip
        if element != "int8":
            config = tiles.row_scaled(family, codes, "*bf16", element, rounded=True)
            yield Variant(f"{family}-{element}-widened-bf16", family, entry, element, "row", element, "bf16", "*bf16",
                          _flushes_small_codes, config, _shows_unit("bfloat16"))  # fmt: skip
        for compute in ("f16", "bf16"):
            pointer, dtype = tiles.POINTERS[compute], _DTYPES[compute]
            requires = _has_bf16 if compute == "bf16" else _keeps_small_codes(element)
            config = tiles.row_scaled(family, codes, pointer, element)
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
    native = tiles.NATIVE["e4m3fn"]
    promises = _few_float8 if family == "few" else _shows_unit("e4m3fn")
    yield Variant(f"{family}-block-native", family, entry, "e4m3fn", "block", "e4m3fn", "native", native,
                  _has_unit("e4m3fn"), tiles.block_scaled(family, native, native, "native"), promises)  # fmt: skip
    yield Variant(f"{family}-block-widened", family, entry, "e4m3fn", "block", "e4m3fn", "f16", "*fp16",
                  _keeps_small_codes("e4m3fn"), tiles.block_scaled(family, "*u8", "*fp16", "e4m3fn"),
                  _shows_unit("float16"))  # fmt: skip
    yield Variant(f"{family}-block-widened-bf16", family, entry, "e4m3fn", "block", "e4m3fn", "bf16", "*bf16",
                  _flushes_small_codes, tiles.block_scaled(family, "*u8", "*bf16", "e4m3fn"),
                  _shows_unit("bfloat16"))  # fmt: skip


def _group_rows(family: Family) -> Iterator[Variant]:
    """Integers below 8 bits in groups along K."""
    entry = f"{_MODULES}.linear_matrix:linear_matrix_nibbles"
    for element in ("int4", "uint4"):
        for compute in ("f16", "bf16"):
            pointer, dtype = tiles.POINTERS[compute], _DTYPES[compute]
            requires = _has_bf16 if compute == "bf16" else _compiles
            yield Variant(f"{family}-{element}-{compute}", family, entry, element, "group", None, compute, pointer,
                          requires, tiles.nibbles(family, pointer, element == "uint4"), _shows_unit(dtype))  # fmt: skip


def _stream_rows() -> Iterator[Variant]:
    """Packed integers of any width and group, and any activations, in float32."""
    families: tuple[tuple[Family, str], ...] = (("vector", "linear_vector"), ("many", "linear_matrix"))
    for family, module in families:
        entry = f"{_MODULES}.{module}:{module}_stream"
        for element, bits, group in (("int4", 4, 32), ("uint4", 4, 32), ("int3", 3, 40), ("int2", 2, 32)):
            config = tiles.stream(family, bits, group, "*fp16", zero=element == "uint4")
            name = f"{family}-{element}-stream"
            yield Variant(name, family, entry, element, "group", None, "f32", "*fp16", _compiles, config)


def _scalar_rows() -> Iterator[Variant]:
    """One token without matrix units, and 8-bit weights with float32 activations."""
    entry = f"{_MODULES}.linear_vector:linear_vector"
    for compute in ("f16", "bf16"):
        pointer = tiles.POINTERS[compute]
        requires = _has_bf16 if compute == "bf16" else _compiles
        yield Variant(f"vector-{compute}", "vector", entry, "float", None, None, "f32", pointer, requires,
                      tiles.vector(pointer, pointer, "float", scaled=False))  # fmt: skip
    for element in ("e4m3fn", "e5m2", "int8"):
        codes = tiles.CODES[element]
        yield Variant(f"vector-{element}-widened", "vector", entry, element, "row", element, "f32", "*fp16", _compiles,
                      tiles.vector(codes, "*fp16", element, rounded=True))  # fmt: skip
        yield Variant(f"vector-{element}-f32", "vector", entry, element, "row", None, "f32", "*fp32", _compiles,
                      tiles.vector(codes, "*fp32", element))  # fmt: skip
        yield Variant(f"many-{element}-f32", "many", f"{_MODULES}.linear_matrix:linear_matrix", element, "row", None,
                      "f32", "*fp32", _compiles, tiles.row_scaled("many", codes, "*fp32", element))  # fmt: skip
    yield Variant("vector-int8-dp4a", "vector", f"{entry}_int8", "int8", "row", "int8", "int8", "*i32", _compiles,
                  tiles.vector_int8, lambda target: (r"IDP\.4A",) if is_cuda(target) else ())  # fmt: skip


def _has_lanes(dtype: str) -> Requires:
    """One token on ``mma.m16n8k16``, whose operands the lanes of a warp hold as NVIDIA documents it."""

    def requires(target: Target) -> str | None:
        reason = _compiles(target)
        if reason or (
            is_cuda(target) and target.backend is not None and int(target.backend[1]) >= lane_tiles.LANES_ARCH
        ):
            return reason or _has_unit(dtype)(target)
        return f"{target.name} has no mma.m16n8k16"

    return requires


def _shows_hmma(target: Target) -> tuple[str, ...]:
    return ("HMMA",)


def _lane_rows() -> Iterator[Variant]:
    """One token, each lane with the weights that it has read itself."""
    entry = f"{_MODULES}.linear_lanes:linear_lanes"
    nibbles = f"{_MODULES}.linear_lanes_nibbles:linear_lanes_nibbles"
    yield Variant("vector-e4m3fn-lanes", "vector", entry, "e4m3fn", "row", "e4m3fn", "native", "*i32",
                  _has_lanes("e4m3fn"), lane_tiles.lanes("hardware", rounded=True), _shows_hmma)  # fmt: skip
    for element in ("e4m3fn", "e5m2"):
        yield Variant(f"vector-{element}-lanes-widened", "vector", entry, element, "row", element, "f16", "*i32",
                      _has_lanes("float16"), lane_tiles.lanes(element, rounded=True), _shows_hmma)  # fmt: skip
    for compute, needs, element in (("native", "e4m3fn", "hardware"), ("f16", "float16", "e4m3fn")):
        name = "vector-block-lanes" if compute == "native" else "vector-block-lanes-widened"
        yield Variant(name, "vector", f"{entry}_block", "e4m3fn", "block", "e4m3fn", compute, "*i32", _has_lanes(needs),
                      lane_tiles.lanes_block(element), _shows_hmma)  # fmt: skip
    for compute in ("f16", "bf16"):
        requires = _has_lanes(_DTYPES[compute])
        yield Variant(f"vector-{compute}-lanes", "vector", entry, "float", None, None, compute, "*i32", requires,
                      lane_tiles.lanes(compute, scaled=False), _shows_hmma)  # fmt: skip
        for element in ("e4m3fn", "int8"):
            yield Variant(f"vector-{element}-lanes-{compute}", "vector", entry, element, "row", None, compute, "*i32",
                          requires, lane_tiles.lanes_by_floats(element, compute), _shows_hmma)  # fmt: skip
        for element in ("int4", "uint4"):
            config = lane_tiles.lanes_nibbles(compute, element == "uint4")
            yield Variant(f"vector-{element}-lanes-{compute}", "vector", nibbles, element, "group", None, compute,
                          "*i32", requires, config, _shows_hmma)  # fmt: skip


def _quantize_rows() -> Iterator[Variant]:
    """The rounding of activations."""
    entry = f"{_MODULES}.quantize:quantize"
    for element in ("e4m3fn", "e5m2", "int8"):
        for wide in (False, True):
            name = f"quantize-{element}" + ("-wide" if wide else "")
            yield Variant(name, "quantize", f"{entry}_token", None, None, element, "f32", "*bf16", _has_bf16,
                          tiles.rounding(element, wide))  # fmt: skip
    for wide in (False, True):
        name = "quantize-group" + ("-wide" if wide else "")
        yield Variant(name, "quantize", f"{entry}_group", None, None, "e4m3fn", "f32", "*bf16", _has_bf16,
                      tiles.rounding_group(wide))  # fmt: skip


def _widens_first(dtype: str) -> Requires:
    """Measured on NVIDIA GPUs only; what is written must not be flushed when it is multiplied."""

    def requires(target: Target) -> str | None:
        reason = _has_unit(dtype)(target)
        if reason or is_cuda(target):
            return reason
        return "widening weights once per call is not done on GPUs other than NVIDIA's"

    return requires


def _large_rows() -> Iterator[Variant]:
    """From ``tiles.LARGE`` tokens on: PyTorch's products, and weights that are widened once per call."""
    entry = f"{_MODULES}.linear_matrix:linear_matrix"
    yield Variant("large-e4m3fn-library", "large", "torch:scaled_mm", "e4m3fn", "row", "e4m3fn", "native", "*fp8e4nv",
                  _measured_library("e4m3fn"), tiles.library("*fp8e4nv"))  # fmt: skip
    for compute in ("f16", "bf16"):
        pointer, dtype = tiles.POINTERS[compute], _DTYPES[compute]
        yield Variant(f"large-{compute}-library", "large", "torch:mm", "float", None, None, compute, pointer,
                      _measured_library(dtype), tiles.library(pointer))  # fmt: skip
    for element in ("e4m3fn", "e5m2", "int8"):
        yield Variant(f"large-{element}-widened", "large", entry, element, "row", element, "f16", "*fp16",
                      _widens_first("float16"), tiles.after_widening("*fp16", rounded=True), _shows_unit("float16"),
                      widen=f"widen-{element}-f16")  # fmt: skip
        for compute in ("f16", "bf16"):
            pointer, dtype = tiles.POINTERS[compute], _DTYPES[compute]
            yield Variant(f"large-{element}-{compute}", "large", entry, element, "row", None, compute, pointer,
                          _widens_first(dtype), tiles.after_widening(pointer), _shows_unit(dtype),
                          widen=f"widen-{element}-{compute}")  # fmt: skip
    for narrow in ("", "narrow-bf16"):
        name = "large-int4-bf16" if narrow else "large-int4-f16"
        yield Variant(name, "large", entry, "int4", "group", None, "f16", "*fp16",
                      _widens_first("float16"), tiles.after_widening("*fp16", rounded=bool(narrow)),
                      _shows_unit("float16"), widen="fold-int4", narrow=narrow)  # fmt: skip


def _measured_library(dtype: str) -> Requires:
    """Only where the error and the speed of PyTorch's product were measured: cuBLAS chooses other code elsewhere."""

    def requires(target: Target) -> str | None:
        reason = _has_unit(dtype)(target)
        if reason or target.name in tiles.LIBRARY_MEASURED:
            return reason
        return f"PyTorch's product was not measured on {target.name}"

    return requires


def _prepare_rows() -> Iterator[Variant]:
    """What runs before a ``large`` product."""
    entry = f"{_MODULES}.widen"
    for element in ("e4m3fn", "e5m2", "int8"):
        for compute in ("f16", "bf16"):
            pointer = tiles.POINTERS[compute]
            config = tiles.widening(tiles.CODES[element], pointer, element)
            yield Variant(f"widen-{element}-{compute}", "prepare", f"{entry}:widen_codes", element, "row", None,
                          compute, pointer, _widens_first(_DTYPES[compute]), config)  # fmt: skip
    yield Variant("fold-int4", "prepare", f"{entry}:fold_nibbles", "int4", "group", None, "f16", "*fp16",
                  _widens_first("float16"), tiles.folding)  # fmt: skip
    yield Variant("narrow-bf16", "prepare", f"{entry}:narrow_range", None, None, None, "f16", "*bf16",
                  _widens_first("bfloat16"), tiles.narrowing)  # fmt: skip


def _all_rows() -> Iterator[Variant]:
    yield from _quantize_rows()
    yield from _scalar_rows()
    yield from _lane_rows()
    for family in _MATRIX_FAMILIES:
        yield from _plain_rows(family)
        yield from _eight_bit_rows(family)
        yield from _block_rows(family)
        yield from _group_rows(family)
    yield from _stream_rows()
    yield from _prepare_rows()
    yield from _large_rows()


_MATRIX_FAMILIES: tuple[Family, ...] = ("few", "many")
VARIANTS: tuple[Variant, ...] = tuple(_all_rows())


def variant(name: str) -> Variant:
    """The row called ``name``.

    Raises:
        KeyError: there is none.
    """
    return {row.name: row for row in VARIANTS}[name]
