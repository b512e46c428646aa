"""compressed-tensors' floats under few-bit scales: MXFP4 and NVFP4 two codes a byte, MXFP8 a byte a code.

    MXFP4    <prefix>.weight_packed (U8 [N, K / 2], the first code in the low bits)   <prefix>.weight_scale (U8, e8m0)
    NVFP4    the same                <prefix>.weight_scale (F8_E4M3)     <prefix>.weight_global_scale (F32 [1], divides)
    MXFP8    <prefix>.weight (F8_E4M3)                                   <prefix>.weight_scale (U8, e8m0)

With calibrated activations NVFP4 has ``<prefix>.input_global_scale``, F32 [1]: what their scales are divided by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from isobit.checkpoint.layouts.needs import Need, Needs, Wrong, inputs, scales
from isobit.checkpoint.layouts.parts import INPUT_OVER, Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.safetensors import TensorInfo
from isobit.checkpoint.shards import PlannedTensor
from isobit.formats.scales import POWERS, UNDER_ONE
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader
    from isobit.formats.qtensor import QTensor

FOUR_BITS = "e2m1"
OVER = "weight_global_scale"


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    """Two codes a byte; words of 32 bits are compressed-tensors' integers, whatever lies beside them."""
    return "weight_packed" in infos and infos["weight_packed"].dtype == "U8"


def _describe(parts: Parts) -> Described:
    info, scale = parts.infos["weight_packed"], parts.infos.get("weight_scale")
    label = "nvfp4" if "weight_global_scale" in parts.infos else "mxfp4"
    said = None if parts.group is None else parts.group.weights
    if len(info.shape) != 2:
        return Described(info.shape, 2 * info.nbytes, label=label)
    shape = info.shape[0], 2 * info.shape[1]
    fits = said is not None and said.element == FOUR_BITS and said.group is not None and said.scale is not None
    if not fits or said is None or scale is None or tuple(scale.shape) != said.scale_shape(*shape):
        return Described(shape, 2 * info.nbytes, label=label)
    assert parts.group is not None
    return Described(shape, 2 * info.nbytes, said, parts.group.activations)


def _needs(parts: Parts, n: int, k: int) -> Needs:
    return pairs(parts, n, k, "weight_packed", OVER, (INPUT_OVER,))


def pairs(parts: Parts, n: int, k: int, codes: str, over: str, inputs_over: tuple[str, ...]) -> Needs:
    """What a weight of two 4-bit floats a byte takes; names as :func:`read_pairs` has them."""
    spec, activations = (None, None) if parts.group is None else (parts.group.weights, parts.group.activations)
    if spec is None:
        return ()
    if spec.element != FOUR_BITS or spec.scale is None:
        return (Wrong(codes, _pairs_instead(spec)),)
    whole = () if spec.scale.over is None else (Need(over, ("F32",), numel=1),)
    return (
        Need(codes, ("U8",), ((n, k // 2),)),
        *scales("weight_scale", spec, n, k),
        *whole,
        *inputs(activations, parts.infos, inputs_over),
    )


def _read(reader: Reader) -> LinearWeight:
    spec, activations = reader.configured("weight_packed")
    weight, n = read_pairs(reader, spec, "weight_packed", OVER)
    given = reader.input_scale(activations)
    if given is not None and not _divides(given):
        raise reader.error("input_global_scale", f"is {float(given)}: scales divided by it are beyond float32")
    return reader.linear(weight, activations, given, n)


def _pairs_instead(spec: WeightSpec) -> str:
    return f"is U8, two 4-bit floats a byte; quantization_config says {spec.element}"


def read_pairs(reader: Reader, spec: WeightSpec, codes: str, over: str) -> tuple[QTensor, int]:
    """The weight of two 4-bit floats a byte, as far as it is asked for, and its rows in all.

    Args:
        reader: of the module.
        spec: what the configuration says.
        codes, over: the parts that hold the codes, and the scale of the whole weight where there is one.

    Raises:
        CheckpointError: the tensors do not fit together, or make numbers beyond float32.
    """
    from isobit.errors import FormatError
    from isobit.formats.cuts import word_span

    if spec.element != FOUR_BITS or spec.scale is None:
        raise reader.error(codes, _pairs_instead(spec))
    n, half = reader.matrix(codes)
    k = 2 * half
    where = reader.cut(codes, spec, n, k)
    try:
        words = word_span(element(FOUR_BITS), k, where.columns)
    except FormatError as error:
        raise reader.error(codes, str(error)) from None
    data = reader.take(codes, where.rows, slice(4 * words.start, 4 * words.stop))
    scale = reader.scale("weight_scale", spec, n, k, where)
    whole = None if spec.scale.over is None else reader.scale_over(over)
    weight = reader.qtensor(codes, spec, where, _as_words(data), scale, over=whole)
    require_finite(reader, weight, over)
    return weight, n


def require_finite(reader: Reader, weight: QTensor, over: str = OVER) -> None:
    """That the largest code under the largest scale is a number of float32; ``over`` is the scale of the whole weight.

    Raises:
        CheckpointError: it is beyond that, or the scale of the whole weight is no positive number that divides.
    """
    if weight.over is not None and not _divides(weight.over):
        raise reader.error(over, f"is {float(weight.over)}: it must be positive, and 1 / it a float32")
    if not bool((weight.float_scales().abs() * weight.element.max).isfinite().all()):
        raise reader.error("weight_scale", "holds scales under which codes are beyond float32")


def _divides(over: Tensor) -> bool:
    return bool(over > 0) and bool((448.0 / over).isfinite())


def _as_words(data: Tensor) -> Tensor:
    """Bytes ``[n, 4 * words]`` as int32; those that do not lie at a multiple of four are copied first."""
    import torch

    data = data.contiguous()
    if data.data_ptr() % 4 or data.storage_offset() % 4:
        data = data.clone()
    return data.reshape(-1).view(torch.int32).view(data.shape[0], -1)


def _written(
    spec: WeightSpec, activations: ActSpec | None, n: int, k: int, scale_dtype: str
) -> tuple[PlannedTensor, ...] | None:
    """The tensors of a weight; None for scales that are floats."""
    if spec.scale not in (POWERS, UNDER_ONE) or spec.scale is None or spec.group is None:
        return None
    row = element(spec.element)
    if row.name == FOUR_BITS:
        found = [PlannedTensor("weight_packed", "U8", (n, k // 2))]
    elif row.name == "e4m3fn" and spec.scale.powers:
        found = [PlannedTensor("weight", "F8_E4M3", (n, k))]
    else:
        return None
    found.append(PlannedTensor("weight_scale", "U8" if spec.scale.powers else "F8_E4M3", (n, k // spec.group)))
    if spec.scale.over is not None:
        found.append(PlannedTensor("weight_global_scale", "F32", (1,)))
    if activations is not None and activations.calibrated:
        found.append(PlannedTensor("input_global_scale", "F32", (1,)))
    return tuple(found)


def write(weight: QTensor, input_scale: Tensor | None) -> dict[str, Tensor]:
    """The tensors to store a weight in, by part.

    Args:
        weight: the quantized weight.
        input_scale: of calibrated activations: what their scales are divided by.
    """
    import torch

    from isobit.errors import FormatError
    from isobit.formats.pack import bytes_of

    spec = weight.spec.scale
    if spec not in (POWERS, UNDER_ONE) or spec is None:
        raise FormatError(f"isobit writes no scales in {spec}: they are read only")
    stored: dict[str, Tensor] = {}
    if weight.element.bits < 8:
        stored["weight_packed"] = bytes_of(weight.codes)
    else:
        stored["weight"] = weight.codes.view(torch.float8_e4m3fn)
    stored["weight_scale"] = weight.scale if spec.powers else weight.scale.view(torch.float8_e4m3fn)
    if weight.over is not None:
        stored["weight_global_scale"] = weight.over
    if input_scale is not None:
        stored["input_global_scale"] = input_scale.reshape(1)
    return {part: tensor.contiguous() for part, tensor in stored.items()}


LAYOUT = Layout(
    "compressed-tensors, two floats a byte",
    "weight_packed",
    ("weight_scale", "weight_global_scale", "input_global_scale"),
    _claims,
    _describe,
    _read,
    scales=("weight_scale",),
    marks=("weight_packed",),
    needs=_needs,
    written=_written,
)
