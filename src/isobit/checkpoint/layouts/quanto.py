"""quanto (optimum-quanto): bytes under a scale per row, and codes of 4 and 2 bits under a scale and a shift per group.

    8 bits  weight._data  I8, F8_E4M3 or F8_E5M2 [N, K]      weight._scale  [N, 1], in the model's dtype
    less    weight._data._data  U8, planes of codes (low bits first) of the weight as lines [groups, group], or as it is
            weight._scale, weight._shift  [groups, 1], in the model's dtype; the shift is a float, or a whole number

Beside them lie ``input_scale`` and ``output_scale``, which mean something where activations are rounded. A weight of
few bits is ``scale * code - shift`` (or ``scale * (code - shift)`` of whole numbers), each step rounded to the scale's
dtype. How many bits a code has the sizes of the model tell. ``quanto_qmap.json`` has a type for each module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.ctargs import text
from isobit.checkpoint.ctconfig import ignored_keys, names
from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts.needs import Need, Needs, Wrong, scales
from isobit.checkpoint.layouts.parts import ELEMENT_OF_DTYPE, Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.quantization import Group, Quantization
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.sections import INSTEAD
from isobit.errors import CheckpointError, Unsupported
from isobit.formats.schemes import WeightSpec

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

_DATA, _FEW, _SCALE, _SHIFT = "weight._data", "weight._data._data", "weight._scale", "weight._shift"
# A type's names, quanto's and those of transformers -> the element of its codes; of fewer bits there is none.
_BYTES = {
    "qint8": "int8", "int8": "int8", "qfloat8": "e4m3fn", "float8": "e4m3fn", "qfloat8_e4m3fn": "e4m3fn",
    "qfloat8_e5m2": "e5m2",
}  # fmt: skip
_FEWER = {"qint4": 4, "int4": 4, "qint2": 2, "int2": 2}
_TYPE_OF = {"I8": "qint8", "F8_E4M3": "qfloat8_e4m3fn", "F8_E5M2": "qfloat8_e5m2"}
_UNKNOWN = "fewer"  # 4 or 2 bits: the sizes will tell
_FLOATS = ("F32", "BF16", "F16")
_KEYS = frozenset({"quant_method", "quantization_map", "weights", "activations", "modules_to_not_convert"})


def _parse(section: dict[str, Any]) -> Quantization:
    notes = ignored_keys(key for key in section if key not in _KEYS)
    listed = section.get("quantization_map")
    if listed is None:
        groups: tuple[Group, ...] = (_group(("Linear",), section.get("weights", "int8"), section.get("activations")),)
    else:
        groups = _modules(listed)
    skipped = names(section.get("modules_to_not_convert"), "modules_to_not_convert")
    return Quantization(groups, skipped, "quanto", "", tuple(notes), ignores_parts=True)


def _modules(listed: Any) -> tuple[Group, ...]:
    """A group for each type that a map of modules has; those whose weights stay as they are have none."""
    if not isinstance(listed, dict) or not all(isinstance(one, dict) for one in listed.values()):
        raise CheckpointError("the quantization map of quanto must be a JSON object of modules")
    kinds: dict[tuple[Any, Any], list[str]] = {}
    for module, one in listed.items():
        kind = one.get("weights"), one.get("activations")
        if kind[0] not in (None, "none") or kind[1] not in (None, "none"):
            kinds.setdefault((short(kind[0]), short(kind[1])), []).append(module)
    firsts = (listed[modules[0]] for modules in kinds.values())
    return tuple(
        _group(tuple(modules), one.get("weights"), one.get("activations"))
        for modules, one in zip(kinds.values(), firsts, strict=True)
    )


def _group(targets: tuple[str, ...], weights: Any, activations: Any) -> Group:
    kind, rounded = text(weights, "", "weights"), text(activations, "none", "activations")
    if rounded != "none":
        why = (
            f"activations = {short(activations)}: inputs are rounded with input_scale, and what linears give with"
            " output_scale, which no scheme of isobit does"
        )
        raise Unsupported("this checkpoint of quanto", [why, "isobit reads those whose activations stay"], INSTEAD)
    if kind in _BYTES:
        return Group(targets, WeightSpec(_BYTES[kind], "channel"), None)
    if kind not in (*_FEWER, _UNKNOWN):
        known = ", ".join((*_BYTES, *_FEWER))
        raise Unsupported(f"quanto's {short(weights)}", [f"isobit reads {known}"], INSTEAD)
    bits = f"{_FEWER[kind]}-bit " if kind in _FEWER else ""
    return Group(targets, None, None, widened=f"quanto's {bits}integers, whose shifts are floats")


def _implies(tensors: Mapping[str, str]) -> dict[str, Any] | None:
    """What the dtypes of codes say: a map as quanto would write it."""
    found = {}
    for name, dtype in tensors.items():
        if name.endswith(f".{_FEW}"):
            found[name.removesuffix(f".{_FEW}")] = {"weights": _UNKNOWN}
        elif name.endswith(f".{_DATA}"):
            found[name.removesuffix(f".{_DATA}")] = {"weights": _TYPE_OF.get(dtype, "qint8")}
    return {"quant_method": "quanto", "quantization_map": found} if found else None


# ---------------------------------------------------------------------- 8 bits


def _claims_bytes(infos: Mapping[str, TensorInfo]) -> bool:
    return _DATA in infos


def _describe_bytes(parts: Parts) -> Described:
    info = parts.infos[_DATA]
    element = ELEMENT_OF_DTYPE.get(info.dtype)
    spec = WeightSpec(element, "channel") if len(info.shape) == 2 and element is not None else None
    return Described(tuple(info.shape), info.numel, spec, None, "quanto")


_LEFT = (Need("input_scale", optional=True), Need("output_scale", optional=True))  # of activations, which stay


def _needs_bytes(parts: Parts, n: int, k: int) -> Needs:
    spec = None if parts.group is None else parts.group.weights
    if spec is None:
        return ()
    dtypes = tuple(dtype for dtype, name in ELEMENT_OF_DTYPE.items() if name == spec.element)
    return (Need(_DATA, dtypes, ((n, k),)), *scales(_SCALE, spec, n, k), *_LEFT)


def _read_bytes(reader: Reader) -> LinearWeight:
    import torch

    spec, activations = reader.configured(_DATA)
    if ELEMENT_OF_DTYPE.get(reader.info(_DATA).dtype) != spec.element:
        raise reader.error(_DATA, f"is {reader.info(_DATA).dtype}; the quantization map says {spec.element}")
    n, k = reader.matrix(_DATA)
    where = reader.cut(_DATA, spec, n, k)
    codes = reader.take(_DATA, where.rows, where.columns)
    codes = codes if spec.element == "int8" else codes.view(torch.uint8)
    weight = reader.qtensor(_DATA, spec, where, codes, reader.scale(_SCALE, spec, n, k, where))
    _leave(reader)
    return reader.linear(weight, activations, None, n)


# ---------------------------------------------------------------------- fewer


def _claims_few(infos: Mapping[str, TensorInfo]) -> bool:
    return _FEW in infos


def _describe_few(parts: Parts) -> Described:
    info, scale = parts.infos[_FEW], parts.infos.get(_SCALE)
    lines = 2 * info.shape[0] if scale is None or not scale.shape else scale.shape[0]
    label = parts.group.widened if parts.group is not None else ""
    return Described((-1, -1), lines * info.nbytes // max(info.shape[0], 1), label=label or "quanto")


def _read_few(reader: Reader) -> LinearWeight:
    import torch

    from isobit.checkpoint.layouts.planes import lines

    said = reader.group(_FEW)
    if not said.widened:
        raise reader.error(_FEW, f"holds codes of 4 or 2 bits; the quantization map says {said.weights}")
    if reader.shape is None:
        raise reader.error(_FEW, "does not tell its sizes, and config.json tells of no model that has it")
    n, k = reader.shape
    bits, height, width = _planes(reader, n, k)
    rows, columns = reader.span(n, k)
    begin, end = rows.start * k, rows.stop * k  # numbers, in the order of lines
    first, last = begin // width, -(-end // width)
    codes = lines(reader, _FEW, first, last, range(0, 8, bits), bits, torch.uint8)
    scale, shift = (_numbers(reader, part, height, slice(first, last)) for part in (_SCALE, _SHIFT))
    values = _values(codes, scale, shift).reshape(-1)[begin - first * width : end - first * width]
    if not bool(torch.isfinite(values).all()):
        raise reader.error(_SCALE, f"makes weights that are beyond {str(values.dtype).removeprefix('torch.')}")
    _leave(reader)
    return reader.linear(values.view(-1, k)[:, columns].contiguous(), None, None, n, complete=True)


def _values(codes: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    if shift.dtype.is_floating_point:
        return codes.to(scale.dtype) * scale - shift
    import torch

    return (codes.to(torch.int8) - shift.to(torch.int8)) * scale


def _planes(reader: Reader, n: int, k: int) -> tuple[int, int, int]:
    """Bits of a code, and the lines that hold the weight: their number and width."""
    info, groups = reader.info(_FEW), reader.info(_SCALE).shape[:1]
    reader.matrix(_FEW)
    found = _fitting(info, groups, n, k, reader.group(_FEW).widened)
    if isinstance(found, str):
        raise reader.error(_FEW, found)
    return found


def _fitting(
    info: TensorInfo, groups: tuple[int, ...], n: int, k: int, said: str
) -> tuple[int, int, int] | str:  # fmt: skip
    """The same of headers; a text says what is wrong with them."""
    if info.dtype != "U8":
        return f"is {info.dtype}; codes of 4 and 2 bits are U8"
    if len(info.shape) == 2 and info.shape[1] and n * k % info.shape[1] == 0:
        height, width = n * k // info.shape[1], info.shape[1]
        for bits in (4, 2):
            if info.shape[0] == -(-height * bits // 8) and groups == (height,) and k % width == 0:
                wrong = f"{6 - bits}-bit" in said
                return f"holds {bits}-bit codes; the quantization map says {said}" if wrong else (bits, height, width)
    shown = f"has shape {short([*info.shape])}, its scales {short([*groups])}"
    return f"{shown}: no codes of 4 or 2 bits of [{n}, {k}]"


def _needs_few(parts: Parts, n: int, k: int) -> Iterator[Need | Wrong]:
    yield Need(_FEW)
    yield from (Need(_SCALE, _FLOATS), Need(_SHIFT, (*_FLOATS, "I8", "U8")), *_LEFT)
    if _SCALE not in parts.infos:
        return
    said = "" if parts.group is None else parts.group.widened
    found = _fitting(parts.infos[_FEW], parts.infos[_SCALE].shape[:1], n, k, said)
    if isinstance(found, str):
        yield Wrong(_FEW, found)
    else:
        yield from (Need(part, (), ((found[1], 1),)) for part in (_SCALE, _SHIFT) if part in parts.infos)


def _numbers(reader: Reader, part: str, height: int, lines: slice) -> Tensor:
    import torch

    if part not in reader.infos:
        raise reader.error(part, "is missing from this checkpoint")
    info = reader.info(part)
    dtypes = _FLOATS if part == _SCALE else (*_FLOATS, "I8", "U8")
    if info.dtype not in dtypes or info.shape != (height, 1):
        raise reader.error(
            part, f"is {info.dtype} {short([*info.shape])}; it should be {', '.join(dtypes)} {[height, 1]}"
        )
    found = reader.take(part, lines)
    if found.dtype.is_floating_point and not bool(torch.isfinite(found).all()):
        raise reader.error(part, "holds NaN or infinite numbers")
    return found


def _leave(reader: Reader) -> None:
    """The scales of activations, which nothing rounds."""
    reader.used += [reader.name(part) for part in ("input_scale", "output_scale") if part in reader.infos]


BYTES = Layout(
    "quanto, 8 bits", _DATA, (_SCALE,), _claims_bytes, _describe_bytes, _read_bytes,
    dtypes=("I8", "F8_E4M3", "F8_E5M2"), marks=(_DATA,), configs={"quanto": _parse}, implies=_implies,
    private=("output_scale",), needs=_needs_bytes,
)  # fmt: skip
FEW = Layout(
    "quanto, 4 and 2 bits", _FEW, (_SCALE, _SHIFT), _claims_few, _describe_few, _read_few,
    dtypes=("U8",), marks=(_FEW,), private=("output_scale",), needs=_needs_few,
)  # fmt: skip
