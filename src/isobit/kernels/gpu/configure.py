"""One configuration for a row, a weight and a number of tokens: what is proved, packed and launched is this. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from isobit.formats.table import ELEMENTS
from isobit.kernels.gpu import alike_tiles, group_tiles, lane_tiles, micro_tiles, tma_tiles
from isobit.kernels.gpu.before_tiles import by_instructions, whole_token
from isobit.kernels.gpu.expert_tiles import for_experts
from isobit.kernels.gpu.fits import Matrix, unit
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.sorted_tiles import GATES
from isobit.kernels.gpu.tiles import (
    FEW,
    MOST_SPLITS,
    NARROW,
    SOME_MORE,
    SOME_MOST,
    Config,
    Constant,
    for_few,
    for_some,
    stages_that_fit,
    takes_narrow_tiles,
)  # fmt: skip
from isobit.kernels.gpu.variant import Variant, has_halves
from isobit.targets.spec import Target

POINTERS = {"float16": "*fp16", "bfloat16": "*bf16", "float32": "*fp32"}
_SIZES = {"*fp16": 2, "*bf16": 2, "*fp32": 4}
# Steps of K that a split has at least; of nibbles, whose steps are long, 2: o by 8 tokens 5.9 us in 8 splits, 7.6 in 4.
_STEPS, _STEPS_OF_NIBBLES = 4, 2


@dataclass(frozen=True)
class Call:
    """What kernels are called with.

    Attributes:
        matrix: the weight.
        dtype: of the activations, as torch calls it.
        tokens: the largest number of tokens for which the same is launched (``selection.size_class``).
        out_dtype: of the result; empty for that of the activations.
        after: what is done with the result before it is stored: nothing, ``add`` (a residual), or the activation of
            gates, which the rows of the weight are by turns with the values that they multiply.
        experts: how many experts the weight is of, one below the other; 0 where it is of none. Then ``tokens`` are
            those of a tile.
        share: pairs of a token and an expert that have one input (``triton/experts.py``); 0 where inputs lie sorted by
            expert with what they are multiplied by.
        alike: whether a token's bits must not depend on how many there are; ``tokens`` are then one of
            ``alike_tiles.sizes``.
    """

    matrix: Matrix
    dtype: str
    tokens: int
    out_dtype: str = ""
    after: str = ""
    experts: int = 0
    share: int = 0
    alike: bool = False

    @property
    def rows(self) -> int:
        """Outputs: of one expert."""
        return self.matrix.n // max(1, self.experts)


def configure(row: Variant, call: Call, machine: Machine) -> Config:
    """How a product, or what prepares it, is compiled for a call."""
    config = row.config(machine.target)
    finish = _FINISH.get(row.way)
    return config if finish is None else finish(row, call, machine, config)


def _scalar(row: Variant, call: Call, machine: Machine, config: Config) -> Config:
    constants = _common(row, call, machine, config)
    return replace(config, signature=_types(row, call, config), constexprs=constants)


def _matrix(row: Variant, call: Call, machine: Machine, config: Config) -> Config:
    if call.alike:
        return _alike(row, call, machine, config)
    most = MOST_SPLITS
    if row.family == "few" and not call.experts:
        config, most = for_few(config, machine.target, call.matrix.n, machine.multiprocessors)
    constants = _common(row, call, machine, config)
    if row.family == "few":
        constants["BLOCK_M"] = _tokens_of_tile(call, machine, int(constants["BLOCK_M"] or 1))
    some = row.family == "many" and call.tokens <= _most_of_some(row) and has_halves(machine.target)
    if some:
        config = replace(config, constexprs=constants)
        config = for_some(config, machine.target, lambda one: _at_once(one, machine), call.matrix.n, call.tokens)
        constants = dict(config.constexprs)
    if call.experts and "SPLIT_K" in constants:
        if "UNIT" in constants and int(constants["BLOCK_M"] or 1) > FEW:  # with four warps registers spill on sm_120
            config = replace(config, num_warps=max(8, config.num_warps))
            if not takes_narrow_tiles(machine.target) and machine.target.registers <= 256:  # and on gfx1100
                constants["BLOCK_M"] = FEW
        element = "" if call.matrix.spec is None else call.matrix.spec.element
        config = for_experts(
            replace(config, constexprs=constants), machine.target, call.tokens, call.matrix.k, element
        )  # fmt: skip
        constants = {**config.constexprs, "SPLIT_K": 1}  # there are tiles enough
    elif some and call.tokens <= SOME_MORE or constants.get("SPLIT_K", 1) != 1:
        constants["SPLIT_K"] = _split_k(call, machine, config, most)
    finished = replace(config, signature=_types(row, call, config), constexprs=constants)
    return replace(finished, num_stages=stages_that_fit(finished))


def _most_of_some(row: Variant) -> int:
    """Tokens up to which "many" have tiles for some."""
    return SOME_MOST if row.activations == "int8" else SOME_MORE


def _alike(row: Variant, call: Call, machine: Machine, config: Config) -> Config:
    """A row for a few tokens as it runs any number of them, each with the same bits."""
    config, most = alike_tiles.for_any(row, config, machine.target, call.matrix.n, machine.multiprocessors)
    constants = _common(row, call, machine, config)
    if constants.get("SPLIT_K", 1) != 1:
        constants["SPLIT_K"] = _split_k(call, machine, config, most)
    finished = replace(config, signature=_types(row, call, config), constexprs=constants)
    sized = alike_tiles.of_size(row, finished, machine.target, call.tokens)
    return replace(sized, num_stages=min(stages_that_fit(sized), _deepest(sized, machine)))


def _tokens_of_tile(call: Call, machine: Machine, usual: int) -> int:
    """Columns of a tile of few tokens. They do not meet: the bits of a token are the same in a tile of any width."""
    return NARROW if call.tokens <= NARROW and takes_narrow_tiles(machine.target) else usual


def _deepest(config: Config, machine: Machine) -> int:
    """Stages of the pipeline that fit the shared memory of a multiprocessor in tiles of other sizes than the row's."""
    constants = config.constexprs
    step = int(constants.get("BLOCK_K") or constants.get("UNIT") or 128)
    bits = 4 if "UNIT" in constants or constants.get("ELEMENT") == "e2m1" else 8 * _SIZES.get(config.signature["w"], 1)
    bytes_x = _SIZES.get(config.signature["x"], 1)
    stage = step * (int(constants["BLOCK_N"] or 1) * bits // 8 + int(constants["BLOCK_M"] or 1) * bytes_x)
    return max(1, min(config.num_stages, machine.shared_memory // stage))


def _lanes(row: Variant, call: Call, machine: Machine, config: Config) -> Config:
    known = replace(config, constexprs=_common(row, call, machine, config))
    n, words = call.matrix.n, call.matrix.k // row.layout.per_word
    tiled = lane_tiles.for_experts(known, words, n) if call.experts else lane_tiles.for_rows(known, n)
    constants = _common(row, call, machine, tiled)
    return replace(tiled, signature=_types(row, call, config), constexprs=constants)


def _tma(row: Variant, call: Call, machine: Machine, config: Config) -> Config:
    types = _types(row, call, config)
    known = replace(config, signature=types, constexprs=_common(row, call, machine, config))
    return tma_tiles.for_results(known, types["x"], types["y"])


def _sorted(row: Variant, call: Call, machine: Machine, config: Config) -> Config:
    """Of experts: what goes in as tokens leaves sorted, for what goes in sorted and leaves by pairs."""
    constants = _common(row, call, machine, config) | {"SHARE": call.share, "SORTED": call.share > 0}
    result = POINTERS[call.out_dtype or call.dtype]
    return replace(config, signature={**config.signature, "y": result}, constexprs=constants)


def _stream(row: Variant, call: Call, machine: Machine, config: Config) -> Config:
    assert call.matrix.spec is not None
    constants = _common(row, call, machine, config)
    constants |= {"BITS": ELEMENTS[call.matrix.spec.element].bits, "GROUP": call.matrix.group}
    types = _types(row, call, config)
    if call.matrix.spec.symmetric:
        types["zero"] = types["scale"]  # what is not read
    return replace(config, signature=types, constexprs=constants)


def _prepare(row: Variant, call: Call, machine: Machine, config: Config) -> Config:
    if row.weights is None:  # narrows activations
        block, once, warps = whole_token(call.matrix.k, machine.target)
        return replace(config.with_constants(BLOCK_K=block, ONCE=once), num_warps=warps)
    if not row.layout.units:
        return config
    config = config.with_constants(GROUP=call.matrix.group, UNIT=unit(row, call.matrix, machine.target))
    return replace(config, signature={**config.signature, "scale": POINTERS[call.matrix.scale]})


_FINISH: Mapping[str, Callable[[Variant, Call, Machine, Config], Config]] = {
    "scalar": _scalar, "matrix": _matrix, "tma": _tma, "sorted": _sorted, "lanes": _lanes, "stream": _stream,
    "prepare": _prepare,
}  # fmt: skip


def _common(row: Variant, call: Call, machine: Machine, config: Config) -> dict[str, Constant]:
    """The constants with those that the weight's shape and format decide."""
    known, matrix = config.constexprs, call.matrix
    constants: dict[str, Constant] = {**known, "HAS_BIAS": matrix.bias}
    if "AFTER" in known:
        constants["AFTER"] = call.after
    if "EXPERTS" in known:
        constants |= {"EXPERTS": call.experts, "SHARE": call.share}
    if "UNIT" in known:
        constants |= {"UNIT": unit(row, matrix, machine.target), "GROUP": matrix.group}
    elif row.scales and matrix.spec is not None and matrix.spec.scale is not None:
        constants |= micro_tiles.of_weight(
            matrix.spec.element, matrix.spec.scale.element, matrix.k, matrix.group, machine.target,
            scaled=row.compute == "native",
        )  # fmt: skip
    elif row.way == "matrix" and row.granularity == "group" and not row.layout.units:
        constants |= group_tiles.steps(matrix.group)
    if "HAS_ZERO" in known:
        constants["HAS_ZERO"] = matrix.spec is not None and not matrix.spec.symmetric
    if "EVEN_K" in known:
        constants["EVEN_K"] = matrix.k // row.layout.per_word % int(known["BLOCK_K"] or 1) == 0
    return constants


def _types(row: Variant, call: Call, config: Config) -> dict[str, str]:
    """Types of the arguments: those of the row but where activations or scales come in several."""
    result = POINTERS[call.out_dtype or call.dtype]
    types = {**config.signature, "y": result, "residual": result}
    if row.activations is None and row.layout.per_word == 1:
        types["x"] = row.operand if row.narrow else POINTERS[call.dtype]
    if row.widen:
        types["w"] = row.operand
    elif row.weights == "float" and row.layout.per_word == 1:
        types["w"] = POINTERS[call.dtype]
    floats = row.granularity == "group" and not row.widen and not row.scales
    types["scale"] = POINTERS[call.matrix.scale] if floats else "*fp32"
    return types


def _split_k(call: Call, machine: Machine, config: Config, limit: int) -> int:
    """Splits of K: as many as fill the multiprocessors at the occupancy that shared memory allows."""
    constants = config.constexprs
    n, step = int(constants["BLOCK_N"] or 1), _step(config)
    matrix, splits, most = call.matrix, 1, _at_once(config, machine)
    tiles = -(-matrix.n // n)
    if constants.get("SPLIT_K") == 1:  # few tokens: one tile of them, whatever their number
        tiles *= -(-call.tokens // int(constants["BLOCK_M"] or 1))
    steps = _STEPS_OF_NIBBLES if "UNIT" in constants and constants.get("SPLIT_K") != 1 else _STEPS
    while splits < limit and 2 * splits * tiles <= most and matrix.k >= 2 * splits * steps * step:
        splits *= 2
    return splits


def _step(config: Config) -> int:
    """Values of K of one step."""
    return int(config.constexprs.get("BLOCK_K") or config.constexprs.get("UNIT") or 128)


def _at_once(config: Config, machine: Machine) -> int:
    """Programs that a machine runs at once, as far as shared memory decides; of few tokens, in the narrowest tiles."""
    constants = config.constexprs
    n, m = int(constants["BLOCK_N"] or 1), int(constants["BLOCK_M"] or 1)
    bits = 4 if "UNIT" in constants or constants.get("ELEMENT") == "e2m1" else 8 * _SIZES.get(config.signature["w"], 1)
    columns = m if m > FEW and constants.get("SPLIT_K") == 1 else NARROW
    stage = _step(config) * (n * bits // 8 + columns * _SIZES.get(config.signature["x"], 1))
    return max(1, machine.shared_memory // (stage * config.num_stages)) * machine.multiprocessors


def finishes(row: Variant, after: str, target: Target, *, wide: bool = False) -> bool:
    """Whether a row can do something (``Call.after``) with its results before they are stored.

    Gates: of few tokens alone. A tile of many would be turned in shared memory first: an H200's batch-invariant step of
    64 sequences (7B, fp8) took 4.55 ms so, and 4.29 with gates behind the linear.

    Args:
        wide: whether the row runs more than a few tokens.
    """
    if "AFTER" not in row.config(target).constexprs:
        return after == ""
    if row.of_experts:
        return after in ("", *GATES)
    return after in ("", "add") or after.startswith("only-") or (row.family in ("vector", "few") and not wide)


def workspace_needs(row: Variant, call: Call, machine: Machine) -> tuple[int, int]:
    """Bytes and counters that a call writes to between its own launches."""
    matrix = call.matrix
    if row.widen:
        return 2 * matrix.n * matrix.k, 0  # the widened weight
    constants = configure(row, call, machine).constexprs
    splits = int(constants.get("SPLIT_K") or 1)
    if splits == 1:
        return 0, 0
    block_n, block_m = int(constants["BLOCK_N"] or 1), int(constants["BLOCK_M"] or 1)
    tiles = -(-matrix.n // block_n) * -(-call.tokens // block_m)
    return 4 * tiles * splits * block_n * block_m, tiles


def rounding(
    row: Variant, dtype: str, codes: str, machine: Machine, *, element: str, k: int, group: int, static: bool,
    late: bool = False,
) -> Config:  # fmt: skip
    """How the rounding of activations is compiled.

    Args:
        row: one that rounds.
        dtype: of the activations.
        codes: pointer of what leaves: codes, or values of the codes.
        machine: for which.
        element: format of the codes.
        k: values of a token.
        group: values that share a scale; ``k`` for a token.
        static: whether the scale is given.
        late: see ``pdl.wait``; of tokens.
    """
    config = row.config(machine.target)
    types = {**config.signature, "x": POINTERS[dtype], "codes": codes}
    if row.granularity == "group":
        width = 1 << (group - 1).bit_length()
        return replace(
            config,
            signature=types,
            constexprs={
                **config.constexprs,
                "ELEMENT": element,
                "GROUP": group,
                "WIDTH": width,
                **by_instructions(element, machine.target),
            },
        )
    block, once, warps = whole_token(k, machine.target)
    constants = {**config.constexprs, "STATIC": static, "ONCE": once, "BLOCK_K": block, "LATE": late}
    # 1, 64, 2048 tokens of 11008 values: 2.5, 3.4, 23.5 us with 16 warps; 2.7, 3.6, 26.4 with 32; 2.6, 3.6, 22.7 with 8
    return replace(config, signature=types, constexprs=constants, num_warps=min(warps, 16))
