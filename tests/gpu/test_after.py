"""What a linear does in its own launch on a GPU, and norms and roundings in parts: the bits of launches apart."""

from __future__ import annotations

import pytest
import torch
from test_triton_linear import _cuda, _weight

from isobit.formats.schemes import SCHEMES, ActSpec
from isobit.targets.table import target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]


@pytest.mark.parametrize("lowering", ["here", "sm_86"])
@pytest.mark.parametrize(
    "scheme", ["bf16", "fp8", "fp8-static", "fp8-e5m2", "fp8-block", "fp8-w8a16", "int8", "int4", "int4-asym", "int3"]
)
def test_what_a_linear_finishes(scheme: str, lowering: str) -> None:
    from isobit.kernels.gpu.bind import bind
    from isobit.kernels.gpu.card import here
    from isobit.kernels.gpu.layer import GpuLayer

    draw = torch.Generator().manual_seed(7)
    acts = SCHEMES[scheme].activations
    static = None if acts is None or acts.dynamic else torch.tensor([0.0234375]).cuda()
    for n, k in ((512, 1280), (8448, 2560)):
        if scheme == "bf16":
            weight = torch.randn(n, k, generator=draw).bfloat16().cuda()
        else:
            weight = _cuda(_weight(scheme, n, k, draw))
        bound = bind(weight, acts, static, None, target=here() if lowering == "here" else target(lowering))
        layer = GpuLayer(bound.machine, bound.workspace)
        for tokens in (1, 5, 16, 60, 100, 1100):
            x = torch.randn(tokens, k, generator=draw).bfloat16().cuda()
            residual = torch.randn(tokens, n, generator=draw).bfloat16().cuda()
            plain = bound(x)
            assert torch.equal(bound(x, residual).nan_to_num(3.0), (residual + plain).nan_to_num(3.0)), (n, tokens)
            for activation in ("silu", "gelu_tanh"):
                gated = bound.gated(x, activation)
                assert gated is not None or tokens > 16 or scheme == "int3"
                if gated is not None:
                    wanted = layer.gate(plain[:, ::2], plain[:, 1::2], activation)
                    assert isinstance(wanted, torch.Tensor)
                    assert torch.equal(gated.nan_to_num(3.0), wanted.nan_to_num(3.0)), (n, tokens, activation)


def test_parts() -> None:
    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.layer import GpuLayer
    from isobit.kernels.gpu.rounding import Rounding
    from isobit.kernels.gpu.workspace import Workspace
    from isobit.kernels.rounded import Rounded

    machine = card.machine(None)
    layer = GpuLayer(machine, Workspace(torch.device("cuda")))
    for k in (640, 4096, 5120, 11008):
        x, weight = (3 * torch.randn(9, k, device="cuda")).bfloat16(), torch.rand(k, device="cuda") + 0.5
        x[3, 5], x[4] = float("nan"), 0.0
        for element in ("e4m3fn", "e5m2", "int8"):
            for spec, scale in ((ActSpec(element, "token"), None), (ActSpec(element, "tensor", dynamic=False), 0.02)):
                given = None if scale is None else torch.tensor([scale]).cuda()
                rounding = Rounding(spec, given, "*fp16", machine)
                normed = layer.norm(x, weight, 1e-5)
                assert isinstance(normed, torch.Tensor)
                wanted = rounding(normed)
                for found in (layer.norm(x, weight, 1e-5, rounding), layer.round(normed, rounding)):
                    assert isinstance(found, Rounded) and torch.equal(found.codes, wanted.codes)
                    assert torch.equal(found.scales.nan_to_num(7e8), wanted.scales.nan_to_num(7e8))
