"""mxfp4, mxfp8 and nvfp4 with rounded activations on a GPU: the law's bits, and float64 from these."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from micro_oracle import FLOATS, GENERATOR, KERNELS, agree, entering, inputs, over_of, weight

from isobit.formats.qtensor import QTensor, stacked
from isobit.formats.schemes import scheme
from isobit.kernels import backends, mixtures
from isobit.kernels.grouped import Grouped, Mixture, Routes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
TOLERANCE = 5e-4
SHAPES = ((4096, 4096), (70, 1344), (130, 11008))
TOKENS = (1, 8, 16, 17, 64, 100, 300)


def on_card(held: QTensor) -> QTensor:
    over = None if held.over is None else held.over.cuda()
    return replace(held, codes=held.codes.cuda(), scale=held.scale.cuda(), over=over)


def bound(name: str, held: QTensor, bias: torch.Tensor | None = None, **options: Any) -> Any:
    from isobit.targets.table import target

    acts = scheme(name).activations
    assert acts is not None
    over = over_of(acts)
    lowering = options.pop("lowering", None)
    return backends.bind(
        on_card(held), acts, None if over is None else over.cuda(), None if bias is None else bias.cuda(),
        device="cuda", target=None if lowering is None else target(lowering), out_dtype=torch.float32, **options,
    ).run  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_every_boundary_is_rounded_by_the_law(name: str) -> None:
    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.micro_rounding import MicroRounding
    from isobit.kernels.gpu.rows import variant

    acts = scheme(name).activations
    assert acts is not None
    for over in (700.0, 0.037, 3.3e-20, 1e6) if acts.calibrated else (None,):
        above = None if over is None else torch.tensor([over])
        x = inputs(acts, above)
        for kernel in KERNELS[name]:
            made = MicroRounding(acts, None if above is None else above.cuda(), variant(kernel), 256, card.machine())
            for dtype in FLOATS:
                assert agree(made, x.to(dtype), acts, above, device="cuda"), (kernel, over, dtype)


@pytest.mark.parametrize("lowering", [None, "sm_86", "sm_80"])
@pytest.mark.parametrize("name", KERNELS)
def test_linears_are_those_of_float64(name: str, lowering: str | None) -> None:
    row = scheme(name)
    assert row.weights is not None and row.activations is not None
    for n, k in SHAPES:
        held, bias = weight(row.weights, n, k), torch.randn(n, generator=GENERATOR)
        run, exact = bound(name, held, bias, lowering=lowering), held.dequantize().double()
        for tokens in TOKENS:
            for dtype in (torch.bfloat16, torch.float16):
                x = torch.randn(tokens, k, generator=GENERATOR).to(dtype)
                wanted = entering(x, row.activations, over_of(row.activations)) @ exact.T + bias.double()
                error = float((run(x.cuda()).cpu().double() - wanted).norm() / wanted.norm())
                assert error <= TOLERANCE, (n, k, tokens, dtype, error)


@pytest.mark.parametrize("name", KERNELS)
def test_a_token_has_the_same_bits_beside_any_others(name: str) -> None:
    row = scheme(name)
    assert row.weights is not None
    run = bound(name, weight(row.weights, 4096, 4096), alike=True)
    x = torch.randn(300, 4096, generator=GENERATOR).bfloat16().cuda()
    whole = run(x)
    for tokens in (1, 5, 16, 17, 128):
        assert torch.equal(run(x[:tokens]), whole[:tokens]), tokens


@pytest.mark.parametrize("name", KERNELS)
def test_experts_are_those_of_the_reference(name: str) -> None:
    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.workspace import Workspace

    def tall(rows: int, columns: int, *, here: bool) -> Grouped:
        row, generator = scheme(name), GENERATOR.manual_seed(rows + columns)
        assert row.weights is not None and row.activations is not None and generator is not None
        parts = stacked([weight(row.weights, rows, columns) for _ in range(8)])
        over = over_of(row.activations)
        placed = on_card(parts) if here else parts
        given = None if over is None else over.cuda() if here else over
        return Grouped(placed, 8, rows, rows, None, row.activations, given)

    sizes = ((128, 256), (128, 256), (256, 128))
    whole, law = (Mixture(*(tall(n, k, here=here) for n, k in sizes)) for here in (True, False))
    run = mixtures.bind(whole, device="cuda", machine=card.machine(), workspace=Workspace(torch.device("cuda"))).run
    for tokens in (1, 7, 200):
        x = (1e-3 * torch.randn(tokens, 256, generator=GENERATOR)).bfloat16()
        ids = torch.rand(tokens, 8, generator=GENERATOR).argsort(1)[:, :2].int()
        weights = torch.rand(tokens, 2, generator=GENERATOR)
        wanted = in_bfloat16(law, x, ids, weights)
        found = run(x.cuda(), Routes(ids.cuda(), weights.cuda())).cpu().double()
        # Another order of a sum moves a number across a midpoint now and then, and a code of four bits with it.
        assert float((found - wanted).norm() / wanted.norm()) <= 1e-2, tokens


def in_bfloat16(law: Mixture, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """What experts give whose linears give bfloat16, float64. Against float32 between the linears that alone makes
    0.06 (mxfp4) and 0.02 (mxfp8, nvfp4): codes of what enters the last one are others."""
    acts = law.down.activations
    assert acts is not None

    def linear(part: Grouped, expert: int, given: torch.Tensor) -> torch.Tensor:
        held = part.expert(expert)
        assert isinstance(held, QTensor)
        return (entering(given, acts, part.input_scale) @ held.dequantize().double().T).bfloat16()

    found = torch.zeros(len(x), law.down.rows, dtype=torch.float64)
    for token, (chosen, share) in enumerate(zip(ids.tolist(), weights.double(), strict=True)):
        for expert, weight_of in zip(chosen, share, strict=True):
            given = x[token : token + 1]
            gate, up = (linear(part, expert, given).float() for part in (law.gate, law.up))
            inner = torch.nn.functional.silu(gate) * up
            found[token] += weight_of * linear(law.down, expert, inner.bfloat16())[0].double()
    return found
