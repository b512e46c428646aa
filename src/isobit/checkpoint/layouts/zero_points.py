"""8-bit integers with zero points, as compressed-tensors stores them: a byte each, or packed.

No kernel takes them. A weight is ``(code - zero_point) * scale``, rounded once to the dtype of its scales.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from isobit.checkpoint.layouts.needs import Need, Needs, scales
from isobit.checkpoint.quantization import Integers
from isobit.checkpoint.safetensors import INTEGERS
from isobit.formats.schemes import WeightSpec
from isobit.formats.spec import words_of

if TYPE_CHECKING:
    from torch import Tensor

    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

_ZERO, _SCALE = "weight_zero_point", "weight_scale"


def needs(how: Integers, part: str, n: int, k: int) -> Needs:
    """What a weight ``[n, k]`` takes; ``part`` holds the codes."""
    spec = WeightSpec("int8", "channel" if how.group is None else "group", how.group)
    shape, packed = spec.scale_shape(n, k), part != "weight"
    return (
        Need(part, ("I32",) if packed else ("I8",), ((n, words_of(k, 8) if packed else k),)),
        *((Need("weight_shape", INTEGERS, numel=2),) if packed else ()),
        *scales(_SCALE, spec, n, k),
        Need(_ZERO, ("I8", "I32"), (shape, shape[:1], (words_of(n, 8), *shape[1:]))),
    )


def read(reader: Reader, how: Integers, part: str) -> LinearWeight:
    """The weight as plain numbers.

    Args:
        how: what the config says.
        part: ``weight`` (a byte a code) or ``weight_packed``, which holds the codes.

    Raises:
        CheckpointError: parts are missing or misshapen.
    """
    spec = WeightSpec("int8", "channel" if how.group is None else "group", how.group)
    n, k = reader.matrix(part) if part == "weight" else _packed_shape(reader)
    where = reader.cut(part, spec, n, k)
    codes = _codes(reader, part, k)[where.rows, where.columns]
    if _SCALE not in reader.infos:
        raise reader.error(_SCALE, "is missing: the values of the codes are unknown")
    scale = reader.scale(_SCALE, spec, n, k, where)
    zero = _zeros(reader, n, spec.scale_shape(n, k))[where.scales]
    run = where.shape[1] // scale.shape[1]
    values = codes.float().view(len(codes), -1, run) - zero.float().unsqueeze(-1)
    values = (values * scale.float().unsqueeze(-1)).flatten(1).to(scale.dtype)
    return reader.linear(values.contiguous(), None, None, n, complete=True)


def _packed_shape(reader: Reader) -> tuple[int, int]:
    from isobit.checkpoint.small import read_weight_shape

    n, words = reader.matrix("weight_packed")
    if "weight_shape" not in reader.infos:
        raise reader.error("weight_shape", "is missing: without it the number of inputs is unknown")
    shape = read_weight_shape(reader.source, reader.name("weight_shape"))
    reader.used.append(reader.name("weight_shape"))
    if len(shape) != 2 or shape[0] != n or shape[1] < 1 or words_of(shape[1], 8) != words:
        raise reader.error("weight_packed", f"[{n}, {words}] does not hold 8-bit codes of weight_shape {list(shape)}")
    return n, shape[1]


def _codes(reader: Reader, part: str, k: int) -> Tensor:
    """Int8 ``[N, K]``."""
    from isobit.formats import pack

    dtype, wanted = reader.info(part).dtype, "I8" if part == "weight" else "I32"
    if dtype != wanted:
        raise reader.error(part, f"is {dtype}, not {wanted}")
    found = reader.take(part)
    return found if part == "weight" else pack.unpack(found, "int8", k)


def _zeros(reader: Reader, n: int, shape: tuple[int, ...]) -> Tensor:
    """Zero points, int8 in the shape of the scales: one each, or packed along the rows."""
    from isobit.formats import pack

    if _ZERO not in reader.infos:
        raise reader.error(_ZERO, "is missing, but quantization_config says the weight is asymmetric")
    info = reader.info(_ZERO)
    if info.dtype == "I8" and info.shape in (shape, shape[:1]):
        return reader.take(_ZERO).reshape(shape)
    if info.dtype == "I32" and info.shape == (words_of(n, 8), *shape[1:]):
        return pack.unpack(reader.take(_ZERO).t().contiguous(), "int8", n).t()
    raise reader.error(_ZERO, f"is {info.dtype} {list(info.shape[:8])}; zero points are I8 {list(shape)}, or packed")
