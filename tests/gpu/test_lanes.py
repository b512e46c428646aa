"""One token by ``linear_lanes`` on a GPU, its own lowering and those of older targets, against float64."""

from __future__ import annotations

import pytest
import torch
from test_triton_linear import TOLERANCE, _cuda, _expected, _weight

from isobit.formats.schemes import SCHEMES
from isobit.targets.table import target

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
LOWERINGS = ("here", "sm_89", "sm_86", "sm_80")
SHAPES = ((200, 1408), (4096, 4096), (4100, 11008), (33, 13696))
GROUPED_SHAPES = ((200, 1280), (4096, 4096), (4100, 11008), (33, 13824), (70, 128), (1, 128))


@pytest.fixture
def machine(request: pytest.FixtureRequest):
    """The target whose lowering runs, with its lanes in use."""
    from isobit.kernels.gpu.card import here

    found = here() if request.param == "here" else target(request.param)
    if found.backend is None or found.backend[0] != "cuda" or int(found.backend[1]) < 80:
        pytest.skip(f"{found.name} has no mma.m16n8k16")
    return found


@pytest.mark.parametrize("machine", LOWERINGS, indirect=True)
@pytest.mark.parametrize(
    "scheme",
    ["fp8", "fp8-static", "fp8-e5m2", "fp8-block", "fp8-w8a16", "int8-w8a16", "int4", "int4-g32", "int4-asym"],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes(scheme: str, machine, dtype: torch.dtype) -> None:
    from isobit.kernels.gpu.bind import bind

    generator = torch.Generator().manual_seed(5)
    acts = SCHEMES[scheme].activations
    static = torch.tensor([0.0234375]) if acts is not None and not acts.dynamic else None
    for n, k in GROUPED_SHAPES if scheme.startswith("int4") or scheme == "fp8-block" else SHAPES:
        weight = _weight(scheme, n, k, generator)
        scale = None if static is None else static.cuda()
        bound = bind(_cuda(weight), acts, scale, None, target=machine, out_dtype=torch.float32)
        row = bound.variant(1, dtype)
        assert row is not None and row.way == "lanes"
        x = torch.randn(1, k, generator=generator).to(dtype)
        x[0, k // 3] *= 1000  # an outlier
        wanted = _expected(weight, acts, static, x)
        error = (bound(x.cuda()).double().cpu() - wanted).norm() / wanted.norm()
        assert error <= TOLERANCE / 10, (n, k)  # the products are exact and the sums float32


@pytest.mark.parametrize("machine", LOWERINGS, indirect=True)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_floats(machine, dtype: torch.dtype) -> None:
    from isobit.kernels.gpu.bind import bind

    generator = torch.Generator().manual_seed(6)
    for n, k in SHAPES:
        w, x = torch.randn(n, k, generator=generator).to(dtype), torch.randn(1, k, generator=generator).to(dtype)
        bound = bind(w.cuda(), None, None, None, target=machine, out_dtype=torch.float32)
        row = bound.variant(1, dtype)
        assert row is not None and row.way == "lanes"
        wanted = x.double() @ w.double().T
        error = (bound(x.cuda()).double().cpu() - wanted).norm() / wanted.norm()
        assert error <= TOLERANCE / 10, (n, k)


@pytest.mark.parametrize("machine", LOWERINGS, indirect=True)
def test_the_smallest_codes_are_not_flushed(machine) -> None:
    from isobit.formats.qtensor import QTensor
    from isobit.formats.schemes import WeightSpec
    from isobit.kernels.gpu.bind import bind

    for name, codes in (("e4m3fn", range(1, 9)), ("e5m2", range(1, 6))):
        rows = torch.tensor(list(codes), dtype=torch.uint8)[:, None].repeat(1, 1024)
        weight = QTensor(WeightSpec(name, "channel"), tuple(rows.shape), rows, torch.ones(len(rows), 1))
        acts = SCHEMES["fp8" if name == "e4m3fn" else "fp8-e5m2"].activations
        x = torch.ones(1, 1024, dtype=torch.float16)
        x[0, 1:] = 2.0**-9  # a subnormal number of the format, once it is divided by the scale, or zero
        bound = bind(_cuda(weight), acts, None, None, target=machine, out_dtype=torch.float32)
        wanted = _expected(weight, acts, None, x)
        assert torch.allclose(bound(x.cuda()).double().cpu(), wanted, rtol=1e-6, atol=0), name
