"""Codes under few-bit scales (MX, NVFP4): weights, inputs at every boundary, and what the law makes of them."""

from __future__ import annotations

from dataclasses import replace

import torch

from isobit.formats import codec
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element
from isobit.kernels.gpu.micro_rounding import MicroRounding

GENERATOR = torch.Generator().manual_seed(0)


def over_of(acts: ActSpec) -> torch.Tensor | None:
    return torch.tensor([700.0]) if acts.calibrated else None


def entering(x: torch.Tensor, acts: ActSpec, over: torch.Tensor | None) -> torch.Tensor:
    """The activations that are multiplied, float64."""
    codes, scales = codec.quantize_activations(x, acts, over)
    return codec.decode(codes, acts.element).double() * scales.double().repeat_interleave(acts.group or 1, -1)


def boundaries(name: str) -> torch.Tensor:
    """Every number of a format, every midpoint, and the floats beside them, of both signs."""
    row = element(name)
    numbers = sorted({value for value in row.values if value >= 0})
    middles = [(a + b) / 2 for a, b in zip(numbers, numbers[1:], strict=False)]
    at = torch.tensor([*numbers, *middles])
    found = torch.cat([at, torch.nextafter(at, torch.zeros(())), torch.nextafter(at, torch.full((), torch.inf))])
    return torch.cat([found, -found])


TOPS = (1.0, 1.4999999, 1.5, 1.7499999, 1.75, 1.7500001, 1.9999999)  # about where powers of two change
EXPONENTS = (-126, -101, -100, -99, -60, -8, 0, 5, 15, 100)


def inputs(acts: ActSpec, over: torch.Tensor | None) -> torch.Tensor:
    """Groups whose largest value asks for each scale, with all boundaries under that; and those with no scale."""
    assert acts.group is not None
    group, parts = acts.group, []
    for top in TOPS:
        for exponent in EXPONENTS:
            largest = torch.tensor(top).ldexp(torch.tensor(exponent))
            scale = codec.quantize_activations(largest.expand(1, group).contiguous(), acts, over)[1]
            values = (boundaries(acts.element).double() * float(scale[0, 0])).float()
            values = values[values.abs() <= largest]
            values = torch.cat([values, torch.zeros(-len(values) % (group - 1))]).view(-1, group - 1)
            parts.append(torch.cat([largest.expand(len(values), 1), values], 1))
    special = torch.zeros(7, group)
    special[1, 3], special[2, 0], special[3, 1], special[4, 2] = torch.nan, torch.inf, -torch.inf, -0.0
    special[5], special[6] = 1e-40, 3.3e38
    found = torch.cat([*parts, special])
    return torch.cat([found, torch.zeros(-len(found) % (256 // group), group)]).view(-1, 256)


def agree(
    made: MicroRounding, x: torch.Tensor, acts: ActSpec, over: torch.Tensor | None, device: str = "cpu"
) -> bool:  # fmt: skip
    """Whether what leaves is what the law says: codes and scales, or their product but for what stands above."""
    assert acts.group is not None
    rounded = made(x.to(device))
    rounded = replace(rounded, codes=rounded.codes.cpu(), scales=rounded.scales.cpu())
    codes, scales = codec.quantize_activations(x, acts, over)
    if not made.values:
        found = rounded.codes
        if acts.element == "e2m1":
            found = torch.stack([found & 15, found >> 4], -1).flatten(-2)
        numbers = codec.decode(rounded.scales, acts.scale.element)  # type: ignore[union-attr]
        numbers = numbers if over is None else numbers / over
        return torch.equal(found, codes) and same(numbers, scales)
    values = rounded.codes.float()
    if made.unit:
        values = values.view(-1, 256 // made.unit, 4, made.unit // 4).transpose(-1, -2).reshape(-1, 256)
    numbers = scales
    if over is not None:
        largest = x.float().view(-1, 256 // acts.group, acts.group).abs().amax(-1)
        numbers = codec.scales_under(largest, element(acts.element), over).masked_fill(scales.isnan(), torch.nan)
    return same(values, codec.decode(codes, acts.element) * numbers.repeat_interleave(acts.group, -1))


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


KERNELS = {
    "mxfp4": ("many-mxfp4-native", "few-mxfp4"), "mxfp8": ("many-mxfp8-native", "few-mxfp8"),
    "nvfp4": ("many-nvfp4-native", "few-nvfp4", "few-nvfp4-f16"),
}  # fmt: skip


FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def weight(spec: WeightSpec, n: int, k: int) -> QTensor:
    """Random codes (no NaN) under random scales."""
    assert spec.scale is not None and spec.scale.codes is not None
    row = element(spec.element)
    finite = torch.tensor([code for code, value in zip(row.codes, row.values, strict=True) if abs(value) < 1e300])
    codes = finite[torch.randint(0, len(finite), (n, k), generator=GENERATOR)].to(torch.uint8)
    low, high = ((120, 134) if row.bits == 4 else (112, 124)) if spec.scale.powers else (1, 127)
    scale = torch.randint(low, high, spec.scale_shape(n, k), generator=GENERATOR).to(torch.uint8)
    over = torch.tensor([3.1]) if spec.scale.over else None
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, over=over)
