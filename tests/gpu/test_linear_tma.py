"""Linears of very many tokens whose tiles TMA copies: the bits of the rows whose threads ask for them."""

from __future__ import annotations

import pytest
import torch

from isobit.formats import codec
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.kernels.gpu.tiles import LARGE

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
# No multiples of tiles: the last tiles of rows, tokens and K are parts; one step of K; a few tiles for all programs.
SHAPES = ((4112, 1184, LARGE + 9), (256, 16, 2 * LARGE), (8208, 4096, LARGE), (136, 11008, 9 * LARGE + 1))
SPEC, ACTS = WeightSpec("int8", "channel"), ActSpec("int8", "token")


def _weight(n: int, k: int) -> QTensor:
    draw = torch.Generator("cuda").manual_seed(3)
    codes = torch.randint(-127, 128, (n, k), generator=draw, device="cuda").to(torch.int8)
    scale = (torch.rand(SPEC.scale_shape(n, k), generator=draw, device="cuda") + 0.5).to(torch.bfloat16)
    return QTensor(SPEC, (n, k), codes, scale, None)


def _both(
    weight: QTensor, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, *, bias: torch.Tensor | None,
    out: torch.dtype, residual: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """What the row of TMA gives, and what the one behind it does."""
    from isobit.kernels.gpu import selection
    from isobit.kernels.gpu.bind import bind
    from isobit.kernels.gpu.card import here
    from isobit.kernels.gpu.rows import VARIANTS

    if here().name != "sm_90":
        pytest.skip(f"{here().name} has no such kernel")
    results = []
    for rows in (VARIANTS, tuple(row for row in VARIANTS if row.way != "tma")):
        monkeypatch.setattr(selection, "VARIANTS", rows)
        bound = bind(weight, ACTS, None, bias, out_dtype=out)
        row = bound.variant(len(x), x.dtype)
        assert row is not None and (row.way == "tma") == (rows is VARIANTS), row
        results.append(bound(x, residual))
    return results[0], results[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["plain", "bias", "residual", "residual in float32", "float32"])
def test_int8_has_the_bits_of_the_other_kernel(
    kind: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, k, tokens = shape
    draw = torch.Generator("cuda").manual_seed(1)
    x = torch.randn(tokens, k, generator=draw, device="cuda").bfloat16()
    bias = torch.randn(n, generator=draw, device="cuda") if kind == "bias" else None
    out = torch.float32 if "float32" in kind else torch.bfloat16
    residual = torch.randn(tokens, n, generator=draw, device="cuda").to(out) if "residual" in kind else None
    weight = _weight(n, k)
    found, wanted = _both(weight, x, monkeypatch, bias=bias, out=out, residual=residual)
    assert torch.equal(found, wanted)
    codes, scale = codec.quantize_activations(x, ACTS, None)
    sums = (codes[:64].double() @ weight.codes.double().T).float() * weight.scale.float().view(1, -1)
    exact = sums * scale[:64].float().view(-1, 1)
    if kind in ("plain", "float32"):
        assert float((found[:64].double() - exact.double()).norm() / exact.double().norm()) < 3e-3


def test_a_graph_holds_its_descriptors() -> None:
    from isobit.kernels.gpu.bind import bind
    from isobit.kernels.gpu.card import here

    if here().name != "sm_90":
        pytest.skip(f"{here().name} has no such kernel")
    bound = bind(_weight(1024, 512), ACTS, None, None)
    draw = torch.Generator("cuda").manual_seed(6)
    x = torch.randn(LARGE, 512, generator=draw, device="cuda").bfloat16()
    wanted = bound(x).clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = bound(x)
    y.zero_()
    for _ in range(2):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, wanted)
