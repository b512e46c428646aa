"""Activations rounded on a GPU, where they are made and later, few and many: the bits of the law."""

from __future__ import annotations

import pytest
import torch

from isobit.formats.codec import quantize_activations
from isobit.formats.schemes import ActSpec
from isobit.formats.table import element
from isobit.kernels.rounded import Rounded

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
FORMATS = ("e4m3fn", "e5m2", "int8")


def layer(lowering: str | None = None):
    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.layer import GpuLayer
    from isobit.kernels.gpu.workspace import Workspace
    from isobit.targets.table import target

    return GpuLayer(card.machine(target(lowering) if lowering else None), Workspace(torch.device("cuda")))


def rounding(kernels, spec: ActSpec, scale: torch.Tensor | None = None):
    from isobit.kernels.gpu.rounding import Rounding

    return Rounding(spec, scale, "*u8", kernels.machine)


def same(one: Rounded, other: Rounded) -> bool:
    return torch.equal(one.codes, other.codes) and torch.equal(one.scales.nan_to_num(7e8), other.scales.nan_to_num(7e8))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("lowering", [None, "sm_86"])
def test_every_bfloat16_has_the_code_of_the_law(name: str, lowering: str | None) -> None:
    kernels = layer(lowering)
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    every = bits.view(torch.bfloat16)
    every = every[torch.isfinite(every.float())].view(-1, 16)
    for scale in (1.0, 0.03, 3.14159, 2.0**-70, 1.7 * 2.0**70, float(torch.tensor(0.3867) / element(name).max)):
        given, spec = torch.tensor([scale]), ActSpec(name, "tensor", dynamic=False)
        found = rounding(kernels, spec, given.cuda())(every.cuda())
        codes, _ = quantize_activations(every, spec, given)
        assert torch.equal(found.codes.cpu(), codes), scale


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_beside_midpoints_have_the_codes_of_the_law(name: str) -> None:
    """Each token's largest magnitude gives the scale, and its other values are about what codes and midpoints mean."""
    kernels, generator = layer(), torch.Generator().manual_seed(3)
    row = element(name)
    numbers = sorted({float(row.decode(code)) for code in row.codes})
    grid = torch.tensor([number for number in numbers if abs(number) <= row.max])
    points = torch.cat((grid, (grid[1:] + grid[:-1]) / 2)).double()
    peaks = torch.rand(400, generator=generator) * 2.0 ** torch.randint(-90, 60, (400,), generator=generator)
    scales = (peaks / torch.tensor(row.max)).double()
    x = (points * scales[:, None]).float().view(torch.int32)[:, :, None] + torch.arange(-3, 4, dtype=torch.int32)
    x = x.view(torch.float32).flatten(1).clamp(-peaks[:, None], peaks[:, None])
    x[x.isnan()] = -0.0  # below zero's bits stand NaN's
    x[:, 0] = peaks
    for spec in (ActSpec(name, "token"), *((ActSpec(name, "group", 128),) if name == "e4m3fn" else ())):
        part = x[:, : x.shape[1] // 128 * 128].contiguous()
        found = rounding(kernels, spec)(part.cuda())
        codes, law = quantize_activations(part, spec)
        assert law.isfinite().all() and len(codes.unique()) > 100
        assert torch.equal(found.codes.cpu(), codes) and torch.equal(found.scales.cpu(), law)


@pytest.mark.parametrize("k", [768, 4096, 11008, 14336])
def test_gates_are_the_same_in_every_form_and_for_any_number_of_tokens(k: int) -> None:
    kernels, generator = layer(), torch.Generator().manual_seed(4)
    both = (3 * torch.randn(300, 2 * k, generator=generator)).to("cuda", torch.bfloat16)
    both[3, 7], both[4, 9], both[5], both[6] = float("inf"), float("nan"), 0.0, -0.0
    turns, apart = (both[:, ::2], both[:, 1::2]), (both[:, ::2].contiguous(), both[:, 1::2].contiguous())
    plain = kernels.gate(*apart)
    assert torch.equal(plain.nan_to_num(7.0), kernels.gate(*turns).nan_to_num(7.0))
    for name in FORMATS:
        for spec, scale in (
            (ActSpec(name, "token"), None),
            (ActSpec(name, "tensor", dynamic=False), torch.tensor([0.03], device="cuda")),
        ):
            how = rounding(kernels, spec, scale)
            for tokens in (300, 40, 1):
                later = how(plain[:tokens])
                for gate, up in (turns, apart):
                    assert same(kernels.gate(gate[:tokens], up[:tokens], "silu", how), later), (spec, tokens)
                assert same(kernels.round(plain[:tokens], how), later), (spec, tokens)


@pytest.mark.parametrize("k", [768, 4096, 5120, 11008])
def test_norms_are_the_same_rounded_or_not_and_for_any_number_of_tokens(k: int) -> None:
    kernels, generator = layer(), torch.Generator().manual_seed(5)
    x, delta = ((3 * torch.randn(2000, k, generator=generator)).to("cuda", torch.bfloat16) for _ in range(2))
    weight = torch.rand(k, generator=generator).cuda() + 0.5
    total, plain = kernels.add_norm(x, delta, weight, 1e-5)
    assert torch.equal(kernels.norm(total, weight, 1e-5), plain)
    for name in FORMATS:
        how = rounding(kernels, ActSpec(name, "token"))
        later = how(plain)
        assert same(kernels.add_norm(x, delta, weight, 1e-5, how)[1], later)
        assert same(kernels.norm(total, weight, 1e-5, how), later)
        for at in range(0, 2000, 250):
            few = kernels.norm(total[at : at + 3], weight, 1e-5, how)
            assert torch.equal(few.codes, later.codes[at : at + 3]), (name, at)
