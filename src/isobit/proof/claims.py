"""From the rows of ``kernels/gpu/rows.py`` and ``layer_rows.py`` to what must be compiled and checked. Pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from isobit.errors import UsageError
from isobit.formats.scales import UNDER_ONE
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels.gpu import alike_tiles, micro_tiles
from isobit.kernels.gpu.compile.request import specialize
from isobit.kernels.gpu.configure import POINTERS, Call, configure, finishes, rounding
from isobit.kernels.gpu.expert_tiles import MIDDLE
from isobit.kernels.gpu.fits import Matrix
from isobit.kernels.gpu.lane_tiles import WIDE_ROWS
from isobit.kernels.gpu.layer_rows import LAYER_ROWS, LayerRow
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.micro_tiles import SCALED_GROUPS
from isobit.kernels.gpu.rows import VARIANTS
from isobit.kernels.gpu.selection import not_of_experts
from isobit.kernels.gpu.tiles import BLOCK, FEW, LARGE, NARROW, SOME, SOME_MORE, SOME_MOST, Config
from isobit.kernels.gpu.variant import Variant, flushes_small_codes, has_bf16, has_halves, shows_unit
from isobit.proof.matrix import Claim
from isobit.proof.operands import precise
from isobit.targets.spec import Target

_COMPUTE = {"f16": "float16", "bf16": "bfloat16", "f32": "float32"}  # what is multiplied; else the weights' own format

# The weights that kernels are proved for: sizes of a 7B model, the groups of the schemes, and both sides of the number
# of rows at which the tiles of the lanes change.
_ROWS, _INPUTS = 4096, 4096
_GROUPS = {"int3": 40, "int2": 32}
_INPUTS_OF_40 = 5120  # a multiple of 40
_EXPERTS = 8
_SHORT = 768  # inputs of down in experts as small as Qwen's
# Values of a token that is rounded, and whether the next kernel starts late (``kernels.gpu.rounding``).
_ROUNDED = ((_INPUTS, False), (_INPUTS, True), (11008, False), (11008, True))


Row = Variant | LayerRow


def all_rows() -> tuple[Row, ...]:
    """Every kernel that is claimed."""
    return (*VARIANTS, *LAYER_ROWS)


def claims(variants: Iterable[Row], targets: Iterable[Target]) -> list[Claim]:
    """What the rows say of every target that they can run on; PyTorch's products, which are not ours, left out."""
    variants = tuple(one for one in variants if isinstance(one, LayerRow) or not one.library)
    found = (claims_of(one, target) for target in targets for one in variants if one.requires(target) is None)
    return [claim for several in found for claim in several]


def claims_of(variant: Row, target: Target) -> list[Claim]:
    """What a row says about one target that it can run on: a claim for each configuration that is launched there."""
    if isinstance(variant, LayerRow):
        operand, configs = variant.multiplies, variant.configurations(target)
    else:
        operand, configs = _COMPUTE.get(variant.compute, variant.weights), configurations(variant, target)
        if variant.compute == "native" and variant.scales:
            operand = f"{variant.weights} {variant.scales[0][0]}"
    promised = [(config, variant.promises) for config in configs]
    if isinstance(variant, Variant) and variant.family == "few":
        native = shows_unit(str(variant.weights)) if variant.compute == "native" else variant.promises
        promised += [(config, native) for config in for_any_number(variant, target)]
    claimed: dict[str, Claim] = {}
    for config, promises in promised:
        pointers = tuple(
            name for name, kind in config.signature.items() if kind.startswith("*") and name not in config.between
        )
        whole = tuple(name for name in config.divisible if name in config.signature)
        request = specialize(variant.entry, config, target, (*pointers, *whole))
        shown = tuple(precise(promise, operand) for promise in promises(target))
        claim = Claim(variant.name, target.name, request, shown, target.shared_memory)
        claimed.setdefault(request.name(), claim)
    return list(claimed.values())


def configurations(row: Variant, target: Target) -> Iterator[Config]:
    """What is launched of a row on a target for usual weights, as ``kernels/gpu`` configures it."""
    machine = Machine.imagined(target)
    usual = "bfloat16" if has_bf16(target) is None else "float16"  # what plans give activations there
    if row.way == "rounding" and row.scales:
        yield from _rounding_of_groups(row, usual, target)
        return
    if row.way == "rounding":
        wide = ("*fp16",) if flushes_small_codes(target) else ("*fp16", "*bf16")  # why it does not need them, or None
        statics = (False, True) if row.activations == "e4m3fn" and row.granularity is None else (False,)
        for codes in wide if row.wide else (row.config(target).signature["codes"],):
            for static in statics:
                for k, late in _ROUNDED if row.granularity is None else _ROUNDED[:1]:
                    yield rounding(
                        row, usual, codes, machine, element=str(row.activations), k=k, group=BLOCK, static=static,
                        late=late,
                    )  # fmt: skip
        return
    if row.of_experts:
        for call in _calls_of_sorted(row, usual if usual in row.dtypes else row.dtypes[0], target):
            yield configure(row, call, machine)
        return
    dtypes = [usual if usual in row.dtypes else row.dtypes[0], *(() if has_halves(target) else row.without_units[:1])]
    for dtype in dtypes:
        for rows in (_ROWS, WIDE_ROWS) if row.way == "lanes" else (_ROWS,):
            for tokens in _tokens(row):
                yield configure(row, Call(_weight(row, rows, target), dtype, tokens), machine)
    if finishes(row, "silu", target):  # gates ask for more than a residual does
        tokens = FEW if row.family == "few" else 1
        yield configure(row, Call(_weight(row, WIDE_ROWS, target), dtypes[0], tokens, after="silu"), machine)
    if row.way != "prepare" and not_of_experts(row) is None:
        for call in _calls_of_experts(row, dtypes[0], target):
            yield configure(row, call, machine)


def _rounding_of_groups(row: Variant, usual: str, target: Target) -> Iterator[Config]:
    """The rounding under scales of few bits: to numbers in the order that kernels of e2m1 want, or to codes."""
    assert row.activations is not None and row.group is not None
    spec = ActSpec(row.activations, "group", row.group, scale=row.scales[0][1])
    config, pointer = row.config(target), POINTERS[usual]
    unit = int(config.constexprs["UNIT"] or 0)
    yield micro_tiles.rounded(config, spec, pointer, pointer if row.wide else config.signature["codes"], unit)


def for_any_number(row: Variant, target: Target) -> Iterator[Config]:
    """What is launched of a row for a few tokens in a batch-invariant model, where it runs any number of them.

    Where tiles were compared; elsewhere there is one more tile than usual, of 64 tokens, which is not proved.
    """
    if not alike_tiles.warp_groups(target):
        return
    machine = Machine.imagined(target)
    usual = "bfloat16" if has_bf16(target) is None else "float16"
    dtype = usual if usual in row.dtypes else row.dtypes[0]
    for size in alike_tiles.sizes(target):
        yield configure(row, Call(_weight(row, _ROWS, target), dtype, size, alike=True), machine)


def _calls_of_experts(row: Variant, dtype: str, target: Target) -> Iterator[Call]:
    """Gate and up of a mixture of experts, as a row runs it that takes the weights of all of them, in each way."""
    native = row.compute == "native" and row.granularity == "row"
    several = (MIDDLE, SOME, SOME_MORE) if native else (SOME_MORE,)
    after, usual = "silu" if finishes(row, "silu", target) else "", _weight(row, _EXPERTS * _ROWS, target)
    for tokens in {"vector": (1,), "few": (NARROW,)}.get(row.family, several):
        for k in (usual.k, _SHORT) if row.way == "lanes" or (native and row.family == "few") else (usual.k,):
            yield Call(replace(usual, k=k), dtype, tokens, after=after, experts=_EXPERTS, share=2)


def _calls_of_sorted(row: Variant, dtype: str, target: Target) -> Iterator[Call]:
    """The experts of a mixture whose tokens lie sorted: gate and up, with gates and without, and down."""
    usual = _weight(row, _EXPERTS * _ROWS, target)
    for after in ("silu", "gelu_tanh", ""):
        yield Call(usual, dtype, row.tokens[0], after=after, experts=_EXPERTS, share=2)
    yield Call(usual, dtype, row.tokens[0], "float32", experts=_EXPERTS)


def _tokens(row: Variant) -> tuple[int, ...]:
    """Numbers of tokens for which a row is configured differently."""
    several = (
        {"few": (NARROW, FEW), "many": (SOME, SOME_MORE, SOME_MOST, LARGE)}
        if row.tokens[1] is None or row.family == "few"
        else {}
    )
    return several.get(row.family, (row.tokens[1] or LARGE,))


def _weight(row: Variant, rows: int, target: Target) -> Matrix:
    """A usual weight that a row reads: where there are no matrix units, streams read what units would read."""
    if row.weights in (None, "float"):
        return Matrix(rows, _INPUTS, None)
    assert row.weights is not None
    if row.granularity == "block":
        return Matrix(rows, _INPUTS, WeightSpec(row.weights, "block", block=(BLOCK, BLOCK)))
    if row.granularity == "row":
        return Matrix(rows, _INPUTS, WeightSpec(row.weights, "channel"))
    if row.scales:
        scale, of_inputs = row.scales[0]
        stored = UNDER_ONE if scale == UNDER_ONE.element else of_inputs
        return Matrix(
            rows, _INPUTS, WeightSpec(row.weights, "group", SCALED_GROUPS[scale], scale=stored), scale="uint8"
        )
    if row.way == "matrix" and not row.layout.units:  # 8-bit codes in groups
        return Matrix(rows, _INPUTS, WeightSpec(row.weights, "group", 32))
    group = _GROUPS.get(row.weights, 32 if row.way == "stream" and has_halves(target) else BLOCK)
    inputs = _INPUTS if _INPUTS % group == 0 else _INPUTS_OF_40
    return Matrix(rows, inputs, WeightSpec(row.weights, "group", group, symmetric=row.weights != "uint4"))


def select(variants: Sequence[Row], pattern: str | None) -> tuple[Row, ...]:
    """The variants whose names match a pattern with ``*`` and ``?``; a name without those matches what contains it.

    Raises:
        UsageError: none does; lists the names.
    """
    if pattern is None:
        return tuple(variants)
    glob = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    found = tuple(one for one in variants if fnmatch.fnmatchcase(one.name, glob))
    if not found:
        names = ", ".join(one.name for one in variants)
        raise UsageError(f"--variant {pattern}: no kernel's name matches; there are: {names}")
    return found
