"""MLC's weights: integers in words of 32 bits with a scale per group, and 8-bit floats with calibrated inputs.

    q_weight  32-bit words [N, words], eight codes of 4 bits or ten of 3, the first in the lowest bits; groups begin at
              words      q_scale  [N, groups], the last group of a row may be shorter
    q_weight  F8_E4M3 [N, K]      q_scale, q_calibration_scale  one number: of the weight, and of inputs
    q_weight  F8_E5M2 [N, K]      without scales: weights and inputs are rounded as they are

A weight is ``(code - 7) * scale`` (3 for codes of 3 bits); the largest code of all is never written. Files have other
names and joined matrices: :mod:`isobit.checkpoint.mlcinfo` lists them as a model has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from isobit.checkpoint.jsonfile import short
from isobit.checkpoint.layouts.needs import Need
from isobit.checkpoint.layouts.parts import Described, Parts
from isobit.checkpoint.layouts.row import Layout
from isobit.checkpoint.mlc.config import KINDS, METHOD
from isobit.checkpoint.mlcinfo import CODES, INPUT, SCALE
from isobit.checkpoint.quantization import Group, Integers, Quantization
from isobit.checkpoint.safetensors import PLAIN_DTYPES, TensorInfo
from isobit.errors import CheckpointError
from isobit.formats.schemes import ActSpec, WeightSpec

if TYPE_CHECKING:
    from isobit.checkpoint.layouts.reading import LinearWeight, Reader

# Dtype of codes of floats -> how weights are stored, and inputs rounded.
_FLOATS = {
    dtype: (WeightSpec(name, "tensor"), ActSpec(name, "tensor", dynamic=False))
    for dtype, name in (("F8_E4M3", "e4m3fn"), ("F8_E5M2", "e5m2"))
}
_WITHOUT_SCALES = "F8_E5M2"


def _parse(section: dict[str, Any]) -> Quantization:
    name = section.get("quantization")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None or kind.bits == 16:
        raise CheckpointError(f"quantization_config: quantization {short(name)} is none of MLC's that isobit reads")
    targets = ("Linear", "Embedding")
    if kind.bits == 8:
        group = Group(("Linear",), *next(both for both in _FLOATS.values() if both[0].element == kind.element))
        return Quantization((group,), ("lm_head",), METHOD, str(name), ignores_parts=True)
    how = Integers(kind.bits, kind.group, symmetric=True)
    kept = ("lm_head", "model.embed_tokens") if name == "q4f16_2" else ()
    return Quantization((Group(targets, how.spec, None, integers=how),), kept, METHOD, str(name), ignores_parts=True)


def _claims(infos: Mapping[str, TensorInfo]) -> bool:
    return CODES in infos


def _describe(parts: Parts) -> Described:
    info, how = parts.infos[CODES], None if parts.group is None else parts.group.integers
    if len(info.shape) != 2:
        return Described(info.shape, info.numel, label="mlc")
    n, words = info.shape
    if info.dtype in _FLOATS:
        return Described((n, words), n * words, *_FLOATS[info.dtype])
    if parts.group is None or how is None:
        return Described((n, -1), 8 * n * words, label="mlc")
    k = words * (32 // how.bits)
    return Described((n, -1), n * k, parts.group.stored(k)[0], None, str(how))


def _needs(parts: Parts, n: int, k: int) -> tuple[Need, ...]:
    group, how = parts.group, None if parts.group is None else parts.group.integers
    if how is not None and how.group is not None:
        groups, each = -(-k // how.group), 32 // how.bits
        codes = Need(CODES, ("I32",), ((n, groups * how.group // each),))
        return codes, Need(SCALE, PLAIN_DTYPES, ((n, groups),))
    said = tuple(dtype for dtype, (spec, _) in _FLOATS.items() if group is not None and spec == group.weights)
    scales = () if parts.infos[CODES].dtype == _WITHOUT_SCALES else (SCALE, INPUT)
    codes = Need(CODES, said or (*_FLOATS,), ((n, k),))
    return codes, *(Need(part, PLAIN_DTYPES, numel=1) for part in scales)


def _read(reader: Reader) -> LinearWeight:
    return _read_floats(reader) if reader.info(CODES).dtype in _FLOATS else _read_integers(reader)


def _read_integers(reader: Reader) -> LinearWeight:
    import torch

    from isobit.formats import pack

    how = reader.group(CODES).integers
    if how is None or how.group is None or reader.info(CODES).dtype != "I32":
        raise reader.error(CODES, f"is {reader.info(CODES).dtype}, which is not what MLC's configuration says")
    (n, words), each = reader.matrix(CODES), 32 // how.bits
    k = words * each if reader.shape is None else reader.shape[1]
    if SCALE not in reader.infos:
        raise reader.error(SCALE, "is missing from this checkpoint")
    groups = -(-k // how.group)
    stored = reader.info(SCALE)
    if words != groups * how.group // each or stored.shape != (n, groups) or stored.dtype not in ("F16", "BF16", "F32"):
        message = f"and its scales {stored.dtype} {short([*stored.shape])} have shape {short([n, words])}"
        raise reader.error(
            CODES, f"{message}; {how} of {k} take {groups * how.group // each} words and {groups} scales"
        )
    spec, _ = reader.group(CODES).stored(k)
    assert spec is not None and spec.group is not None
    where = reader.cut(CODES, spec, n, k)
    packed, most = reader.take(CODES, where.rows), (1 << how.bits) - 2
    shifts = torch.arange(0, each * how.bits, how.bits, dtype=torch.int32)
    codes = ((packed[:, :, None] >> shifts) & (most + 1)).flatten(1)[:, :k][:, where.columns]
    if bool((codes > most).any()):
        raise reader.error(CODES, f"holds the code {most + 1}, which MLC never writes")
    scale = reader.take(SCALE, where.rows).repeat_interleave(how.group // spec.group, 1)[:, : k // spec.group]
    scale = scale[:, where.scales[1]].contiguous()
    if not bool(torch.isfinite(scale.float()).all()):
        raise reader.error(SCALE, "holds NaN or infinite scales")
    held = pack.pack((codes - most // 2).to(torch.int8).contiguous(), spec.element)
    return reader.linear(reader.qtensor(CODES, spec, where, held, scale), None, None, n)


def _read_floats(reader: Reader) -> LinearWeight:
    import torch

    (spec, activations), dtype = reader.configured(CODES), reader.info(CODES).dtype
    if spec != _FLOATS[dtype][0]:
        raise reader.error(CODES, f"is {dtype}, which is not what MLC's configuration says")
    n, k = reader.matrix(CODES)
    where = reader.cut(CODES, spec, n, k)
    codes = reader.take(CODES, where.rows, where.columns).view(torch.uint8)
    if dtype == _WITHOUT_SCALES:
        one = torch.ones(1)
        return reader.linear(reader.qtensor(CODES, spec, where, codes, one), activations, one, n)
    scale = reader.scale(SCALE, spec, n, k, where).float()
    weight = reader.qtensor(CODES, spec, where, codes, scale)
    if reader.info(INPUT).numel != 1:
        raise reader.error(INPUT, f"has shape {short([*reader.info(INPUT).shape])}; a static scale is one number")
    given = reader.take(INPUT).float().reshape(1)
    if not bool((given > 0) & given.isfinite()):
        raise reader.error(INPUT, f"is {float(given)}: a scale is a positive number; was this model calibrated?")
    return reader.linear(weight, activations, given, n)


LAYOUT = Layout(
    "MLC", CODES, (), _claims, _describe, _read,
    scales=(SCALE,), marks=(CODES,), configs={METHOD: _parse}, private=(SCALE, INPUT), needs=_needs,
)  # fmt: skip
