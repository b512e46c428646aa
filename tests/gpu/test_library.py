"""PyTorch's own products and weights widened once per call, on a GPU, against float64 from the same codes."""

from __future__ import annotations

import pytest
import torch

from isobit.formats import codec
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import SCHEMES
from isobit.formats.table import element
from isobit.kernels.gpu.tiles import LARGE, LIBRARY_MEASURED
from isobit.targets.table import target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
TOLERANCE = 5e-4
N, K = 4112, 11008
WIDENED = ("fp8", "fp8-e5m2", "int8-w8a16", "fp8-w8a16", "int4", "int4-g32")


def _weight(scheme: str, n: int, k: int) -> QTensor:
    spec = SCHEMES[scheme].weights
    assert spec is not None
    row, generator = element(spec.element), torch.Generator("cuda").manual_seed(3)
    finite = torch.tensor([c for c, v in zip(row.codes, row.values, strict=True) if abs(v) < 1e300], device="cuda")
    codes = finite[torch.randint(0, len(finite), (n, k), generator=generator, device="cuda")]
    codes = codes.to(torch.int8 if row.kind == "int" and row.signed else torch.uint8)
    scale = (torch.rand(spec.scale_shape(n, k), generator=generator, device="cuda") + 0.5).to(torch.bfloat16)
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, None)


def _expected(weight: QTensor | torch.Tensor, scheme: str, x: torch.Tensor) -> torch.Tensor:
    acts = SCHEMES[scheme].activations
    exact = x.double()
    if acts is not None:
        codes, scale = codec.quantize_activations(x, acts, None if acts.dynamic else torch.tensor([0.5], device="cuda"))
        exact = codec.decode(codes, acts.element).double() * scale.double()
    if isinstance(weight, torch.Tensor):
        return exact @ weight.double().T
    scales = weight.scale.double().reshape(weight.scale.shape[0], -1)
    return exact @ (weight.values().double() * scales.repeat_interleave(weight.shape[1] // scales.shape[1], 1)).T


def _error_before_rounding(y: torch.Tensor, y64: torch.Tensor) -> float:
    """Relative error; of a 16-bit result what is left of it once the rounding of the exact result is taken off.

    The two are independent, so that their squares add up.
    """
    norm = y64.norm()
    rounding = float((y64.to(y.dtype).double() - y64).norm() / norm) if y.dtype != torch.float32 else 0.0
    return float(max(0.0, float((y.double() - y64).norm() / norm) ** 2 - rounding**2) ** 0.5)


@pytest.mark.parametrize("out", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scheme", ["fp8", "fp8-static", "bf16", "f16"])
def test_a_product_of_pytorchs_keeps_the_contract(scheme: str, out: torch.dtype) -> None:
    from isobit.kernels.gpu.bind import bind
    from isobit.kernels.gpu.card import here

    if here().name not in LIBRARY_MEASURED:
        pytest.skip(f"not chosen on {here().name}")
    acts = SCHEMES[scheme].activations
    dtype = torch.float16 if scheme == "f16" else torch.bfloat16
    if acts is None:
        weight: QTensor | torch.Tensor = torch.randn(N, K, device="cuda").to(dtype)
        if out not in (dtype, torch.float32):
            pytest.skip("the other 16-bit dtype is no result of this product")
    else:
        weight = _weight(scheme, N, K)
    static = None if acts is None or acts.dynamic else torch.tensor([0.5], device="cuda")
    x = torch.randn(LARGE + 3, K, device="cuda").to(dtype)
    bound = bind(weight, acts, static, None, out_dtype=out)
    row = bound.variant(len(x), dtype)
    assert row is not None and row.library
    assert _error_before_rounding(bound(x), _expected(weight, scheme, x)) <= TOLERANCE


@pytest.mark.parametrize("lowering", ["sm_90", "sm_86", "sm_80"])
@pytest.mark.parametrize("scheme", WIDENED)
def test_weights_widened_once_per_call_keep_the_contract(scheme: str, lowering: str) -> None:
    from isobit.kernels.gpu.bind import bind

    weight = _weight(scheme, 1408, 3840)
    bias = torch.randn(1408, device="cuda")
    for dtype in (torch.bfloat16, torch.float16):
        x = (torch.randn(LARGE + 3, 3840, device="cuda") * torch.logspace(-3, 1, LARGE + 3, device="cuda")[:, None]).to(
            dtype
        )
        wanted = _expected(weight, scheme, x) + bias.double()
        bound = bind(
            weight, SCHEMES[scheme].activations, None, bias, target=target(lowering), out_dtype=torch.float32
        )  # fmt: skip
        row = bound.variant(len(x), dtype)
        assert row is not None and (row.widen or lowering == "sm_90")
        assert float((bound(x).double() - wanted).norm() / wanted.norm()) <= TOLERANCE
