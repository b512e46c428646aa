"""How compressed-tensors writes one format (its QuantizationArgs), as isobit's specs of weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isobit.checkpoint.jsonfile import bare, short
from isobit.checkpoint.quantization import Integers
from isobit.checkpoint.sections import INSTEAD
from isobit.errors import CheckpointError, SchemeError, Unsupported
from isobit.formats.scales import POWERS, UNDER_ONE, ScaleSpec
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import ELEMENTS

# Floats that compressed-tensors has no type for are written with one of isobit's own; see ctrender.py.
_OWN_FLOATS = {
    (f"float{row.bits}_{row.name}", row.bits, True): row.name
    for row in ELEMENTS.values()
    if row.kind == "float" and row.signed and (row.bits < 8 or row.name == "e5m2")
}
# (type, bits, symmetric) of compressed-tensors -> element format.
WEIGHT_ELEMENTS = {
    ("float", 8, True): "e4m3fn",
    ("float", 4, True): "e2m1",
    **_OWN_FLOATS,
    ("int", 8, True): "int8",
    ("int", 4, True): "int4",
    ("int", 4, False): "uint4",
    ("int", 3, True): "int3",
    ("int", 2, True): "int2",
}
ACT_ELEMENTS = {("float", 8, True): "e4m3fn", ("float", 4, True): "e2m1", **_OWN_FLOATS, ("int", 8, True): "int8"}

PER_TOKEN = (
    "the checkpoint asks for one activation scale for all tokens that are computed together, so that a token's result "
    "depends on its neighbours; isobit takes a scale per token, as vLLM does (docs/numerics.md, section 3)"
)

MX_GROUP, NVFP4_GROUP = 32, 16
_POWERS = ("uint8", "float8_e8m0fnu")  # dtypes in which MX scales are stored

_LARGEST_SIZE = 2**31 - 1  # of groups and blocks
_KEYS = frozenset(
    ("num_bits", "type", "symmetric", "group_size", "strategy", "block_structure", "dynamic", "actorder", "scale_dtype",
     "zp_dtype", "observer", "observer_kwargs")
)  # fmt: skip


@dataclass(frozen=True)
class _Args:
    """The fields that matter, with compressed-tensors' defaults."""

    kind: str
    bits: int
    symmetric: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None
    dynamic: bool
    scale: str


def weight_spec(value: Any, what: str) -> WeightSpec:
    """How weights are stored.

    Args:
        value: the JSON of a group's ``weights``.
        what: where it stands, for errors.

    Raises:
        CheckpointError: it is malformed.
        Unsupported: isobit has no such weights.
    """
    args = _args(value, what)
    name = _element(WEIGHT_ELEMENTS, args, what)
    scale = _scale_format(args, what)
    if args.dynamic:
        raise Unsupported(what, ["weights with dynamic scales are not stored quantized"], INSTEAD)
    if scale is not None:
        return WeightSpec(name, "group", args.group, scale=scale)
    if args.strategy not in ("tensor", "channel", "group", "block"):
        raise Unsupported(
            f"{what} with strategy {short(args.strategy)}", ["isobit reads tensor, channel, group, block"]
        )
    try:
        return WeightSpec(name, args.strategy, args.group, args.block, args.symmetric)  # type: ignore[arg-type]
    except SchemeError as error:
        raise CheckpointError(f"{what}: {error}") from None


def with_zero_points(value: Any, what: str) -> Integers | None:
    """How 8-bit integers with zero points are stored, which no format of isobit holds; None for everything else.

    Raises:
        CheckpointError: it is malformed.
    """
    args = _args(value, what)
    plain = args.dynamic or args.symmetric or args.strategy not in ("channel", "group")
    if plain or (args.kind, args.bits) != ("int", 8):
        return None
    return Integers(8, args.group, symmetric=False)


def act_spec(value: Any, what: str) -> tuple[ActSpec, tuple[str, ...]]:
    """How activations are rounded, and what people should know about that; takes and raises as :func:`weight_spec`."""
    args = _args(value, what)
    name = _element(ACT_ELEMENTS, args, what)
    if (scale := _scale_format(args, what)) is not None:
        if not args.dynamic:
            raise Unsupported(what, ["the scales of its groups are static"], INSTEAD)
        return ActSpec(name, "group", args.group, scale=scale), ()
    if args.strategy not in ("token", "tensor", "group"):
        raise Unsupported(f"{what} with strategy {short(args.strategy)}", ["isobit rounds per token, tensor or group"])
    if args.strategy == "tensor" and args.dynamic:
        return ActSpec(name, "token"), (PER_TOKEN,)
    try:
        return ActSpec(name, args.strategy, args.group, args.dynamic), ()  # type: ignore[arg-type]
    except SchemeError as error:
        raise CheckpointError(f"{what}: {error}") from None


def unknown_keys(value: Any) -> list[str]:
    """Keys that isobit does not know, and so does not follow."""
    return [str(key) for key in value if key not in _KEYS] if isinstance(value, dict) else []


def block_sizes(value: Any, what: str) -> tuple[int, int]:
    """Rows and columns of a block, from two numbers or a text like ``128x128``.

    Raises:
        CheckpointError: it is neither.
    """
    sizes = value.split("x") if isinstance(value, str) and len(value) < 32 else value
    sizes = list(sizes) if isinstance(sizes, list | tuple) else []
    sizes = [int(size) if isinstance(size, str) and size.isdecimal() and len(size) < 12 else size for size in sizes]
    if len(sizes) != 2:
        raise CheckpointError(f"{what}: block sizes {short(value)} are not two whole numbers")
    rows, columns = (size_of(size, f"{what}: block size") for size in sizes)
    return rows, columns


def size_of(value: Any, what: str) -> int:
    """A number of weights that share something.

    Raises:
        CheckpointError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST_SIZE:
        raise CheckpointError(f"{what} {short(value)} is not a whole number between 1 and 2^31")
    return value


def flag(value: Any, default: bool, what: str) -> bool:
    """A truth value; ``default`` for null.

    Raises:
        CheckpointError: it is none; texts are not taken for one.
    """
    if value is None:
        return default
    if not isinstance(value, bool):
        raise CheckpointError(f"{what} must be true or false, not {short(value)}")
    return value


def text(value: Any, default: str, what: str) -> str:
    """A text in lower case; ``default`` for null.

    Raises:
        CheckpointError: it is none.
    """
    if value is None:
        return default
    if not isinstance(value, str):
        raise CheckpointError(f"{what} must be a text, not {short(value)}")
    return value.lower()


def _args(value: Any, what: str) -> _Args:
    if not isinstance(value, dict):
        raise CheckpointError(f"{what} must be a JSON object, not {short(value)}")
    bits, size = value.get("num_bits", 8), value.get("group_size")
    for number in (bits, size):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise CheckpointError(f"{what}: num_bits and group_size must be whole numbers, not {short(number)}")
    channel, size = size == -1, None if size in (None, 0, -1) else size_of(size, f"{what}: group_size")
    strategy = text(value.get("strategy"), "channel" if channel else "group" if size else "tensor", f"{what}: strategy")
    if strategy == "group" and channel:
        strategy = "channel"
    return _Args(
        kind=text(value.get("type"), "int", f"{what}: type"),
        bits=8 if bits is None else bits,
        symmetric=flag(value.get("symmetric"), True, f"{what}: symmetric"),
        strategy=strategy,
        group=size if strategy in ("group", "tensor_group") else None,
        block=block_sizes(value.get("block_structure"), what) if strategy == "block" else None,
        dynamic=value.get("dynamic") == "local" or flag(value.get("dynamic"), False, f"{what}: dynamic"),
        scale=text(value.get("scale_dtype"), "", f"{what}: scale_dtype").removeprefix("torch."),
    )


def _scale_format(args: _Args, what: str) -> ScaleSpec | None:
    """The format of the scales where it is one of few bits: MX's, or NVFP4's; None where scales are floats."""
    if args.kind != "float":
        return None
    if args.strategy == "tensor_group":
        if args.bits != 4 or args.group != NVFP4_GROUP:
            raise Unsupported(
                f"{what} with a scale per tensor and group", [f"isobit reads 4-bit floats in groups of {NVFP4_GROUP}"]
            )
        return UNDER_ONE
    named = args.scale in _POWERS or (args.bits == 4 and not args.scale)
    if args.strategy != "group" or not named:
        if args.bits == 4:
            raise Unsupported(f"{what} of 4-bit floats", ["isobit reads MXFP4 and NVFP4: groups under few-bit scales"])
        return None
    if args.group != MX_GROUP:
        raise Unsupported(f"{what} with a power of two per {args.group}", [f"isobit reads groups of {MX_GROUP}"])
    return POWERS


def _element(table: dict[tuple[str, int, bool], str], args: _Args, what: str) -> str:
    found = table.get((args.kind, args.bits, args.symmetric))
    if found is None:
        kind = f"{'' if args.symmetric else 'asymmetric '}{short(args.bits, 24)}-bit {bare(args.kind)}"
        raise Unsupported(f"{what} of {kind}", [f"isobit reads {', '.join(table.values())}"], INSTEAD)
    return found
