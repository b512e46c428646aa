"""How norms, gates and roundings of tokens are compiled: values of a program, warps. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from isobit.kernels.gpu.before_tiles import by_instructions, whole_token
from isobit.kernels.gpu.layer_tiles import POINTERS
from isobit.kernels.gpu.tiles import Config, Constant, is_cuda, overlaps
from isobit.targets.spec import Target

Form = Literal["apart", "turns", "words", "alone"]
_DIVISIBLE = ("K", "stride_gate", "stride_up")
VALUES_AT_ONCE = 1024  # of a program that gates, or rounds a part of a token
# Tokens up to which a norm rounds each in parts of so many values, by programs that look over all of it. One program
# for a token takes as long (dev/LOG.md, 2026-11-28).
TOKENS_IN_PARTS, VALUES_OF_PART = 16, 512
# Tokens from which a program gates and rounds a whole one of them, and the most values of one that does. 64 tokens of
# 11008 take 5.2 us, in parts 5.4, 2048 tokens 35 and 54; by 8 tokens 3.9 and 3.4 (dev/LOG.md, 2026-11-28).
GATES_WHOLE_FROM, MOST_GATED = 17, 16384


@dataclass(frozen=True)
class RowShape:
    """What a compiled norm or gate depends on.

    Attributes:
        dtype: of the activations.
        k: values of a token.
        add: whether something is added before the norm.
        element: format that the result is rounded to, if any; or ``before_tiles.RANGE``.
        codes: pointer of the codes, or of values of them.
        static: whether the scale is given.
        activation: of a gate; ``limited``: gpt-oss's, with a ``limit``.
        form: how gates and what they multiply lie; see ``triton/gate.py``.
        parts: of a norm that rounds: programs that share a token.
        late: whether the next kernel starts when the one before has ended (``late``).
        centred, bias: of a norm: whether the mean is taken away first, and whether something is added at the end.
    """

    dtype: str
    k: int
    add: bool = False
    element: str = ""
    codes: str = "*u8"
    static: bool = False
    activation: str = "silu"
    form: Form = "apart"
    parts: int = 1
    late: bool = False
    limit: float = 0.0
    centred: bool = False
    bias: bool = False


def norm_token(shape: RowShape, target: Target) -> Config:
    """Configuration of ``norm_token``."""
    pointer = POINTERS[shape.dtype]
    block, once, warps = whole_token(shape.k, target)
    types = {
        **dict.fromkeys(("x", "delta", "total", "y"), pointer), "weight": "*fp32", "bias": "*fp32",
        "eps": "fp32", **_rounding(shape),
    }  # fmt: skip
    return Config(
        types,
        {**_rounded(shape, target), "ADD": shape.add, "OVERLAP": overlaps(target), "ONCE": once, "BLOCK_K": block,
         "PARTS": shape.parts, "LATE": shape.late, "CENTRED": shape.centred, "HAS_BIAS": shape.bias,
         "HALVES": _rounds_halves(target)},
        warps, 1, divisible=("K",),
    )  # fmt: skip


def gate(shape: RowShape, target: Target) -> Config:
    """Configuration of ``gate``; with the largest magnitudes where the result is rounded behind it."""
    types = {**_gated(shape), "y": POINTERS[shape.dtype], "peaks": "*i32", "K": "i32"}
    constants: dict[str, Constant] = {
        **_gating(shape), "PEAKS": shape.element != "", "OVERLAP": overlaps(target), "BLOCK_K": VALUES_AT_ONCE,
        "LATE": shape.late,
    }  # fmt: skip
    return Config(types, constants, 4, 1, divisible=_DIVISIBLE, between=_between(shape))


def gate_token(shape: RowShape, target: Target) -> Config:
    """Configuration of ``gate_token``."""
    types = {**_gated(shape), **_rounding(shape)}
    first, rest = halves_of(shape.k)
    constants: dict[str, Constant] = {
        **_gating(shape), **_rounded(shape, target), "DTYPE": shape.dtype, "HALVES": _rounds_halves(target),
        "OVERLAP": overlaps(target), "FIRST": first, "REST": rest, "LATE": shape.late,
    }  # fmt: skip
    warps = max(4, min(8, (first + rest) // 1024))
    return Config(types, constants, warps, 1, divisible=_DIVISIBLE, between=_between(shape))


def quantize_parts(shape: RowShape, target: Target) -> Config:
    """Configuration of ``quantize_parts``."""
    types = {"x": POINTERS[shape.dtype], "peaks": "*i32", **_rounding(shape)}
    constants: dict[str, Constant] = {
        **_rounded(shape, target), "OVERLAP": overlaps(target), "PARTS": _power_of_two(parts_of_token(shape.k)),
        "BLOCK_K": VALUES_AT_ONCE, "LATE": shape.late,
    }  # fmt: skip
    return Config(types, constants, 4, 1, divisible=("K",))


def parts_of_token(k: int) -> int:
    """Programs that share a token of ``k`` values."""
    return -(-k // VALUES_AT_ONCE)


def parts_of_norm(k: int, tokens: int) -> int:
    """The same of a norm that rounds, whose programs each look over all of their token: a power of two."""
    return 1 if tokens > TOKENS_IN_PARTS else 1 << ((-(-k // VALUES_OF_PART)).bit_length() - 1)


def holds_token(k: int, target: Target) -> bool:
    """Whether a program holds a token of ``k`` values, so that it is rounded where it is made."""
    return whole_token(k, target)[1]


def gates_whole(k: int, tokens: int) -> bool:
    """Whether each of some tokens of ``k`` values is gated and rounded by one program."""
    return tokens >= GATES_WHOLE_FROM and sum(halves_of(k)) <= MOST_GATED


def halves_of(k: int) -> tuple[int, int]:
    """``k`` values as two powers of two that hold them, the second 0 where the first does."""
    first = 1 << (k.bit_length() - 1)
    return first, 0 if first == k else _power_of_two(k - first)


def _power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()


def _gated(shape: RowShape) -> dict[str, str]:
    pointer = "*i32" if shape.form == "words" else POINTERS[shape.dtype]
    return {"gate": pointer, "up": pointer, "stride_gate": "i32", "stride_up": "i32"}


def _between(shape: RowShape) -> tuple[str, ...]:
    """What begins inside of 16 bytes: where they lie by turns, behind the first gate."""
    return ("up",) if shape.form == "turns" else ()


def _gating(shape: RowShape) -> dict[str, Constant]:
    return {"ACTIVATION": shape.activation, "LIMIT": shape.limit, "FORM": shape.form}


def _rounds_halves(target: Target) -> bool:
    """Whether one instruction rounds two numbers to bfloat16."""
    return is_cuda(target) and target.unit("bfloat16", "bfloat16") is not None


def _rounding(shape: RowShape) -> dict[str, str]:
    return {"codes": shape.codes, "scales": "*fp32", "static_scale": "*fp32", "K": "i32", "qmax": "fp32"}


def _rounded(shape: RowShape, target: Target) -> dict[str, Constant]:
    how = by_instructions(shape.element, target)
    return {"ELEMENT": shape.element, "WIDE": shape.codes in ("*fp16", "*bf16"), "STATIC": shape.static, **how}
