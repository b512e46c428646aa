"""Linears of very many tokens whose tiles TMA copies: the bits of the rows whose threads ask for them, or float64's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from isobit.formats import codec
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, WeightSpec
from isobit.formats.table import element
from isobit.kernels.gpu.tiles import LARGE

if TYPE_CHECKING:
    from isobit.kernels.gpu.bind import BoundLinear
    from isobit.kernels.gpu.workspace import Workspace

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
# No multiples of tiles: the last tiles of rows, tokens and K are parts; one step of K; a few tiles for all programs.
SHAPES = ((4112, 1184, LARGE + 9), (256, 16, 2 * LARGE), (8208, 4096, LARGE), (136, 11008, 9 * LARGE + 1))
# The same of weights that are widened first; units of int4 divide K.
WIDENED_SHAPES = ((4112, 1152, LARGE + 9), (264, 128, 2 * LARGE), (8208, 4096, LARGE), (136, 11008, 9 * LARGE + 1))
SPEC, ACTS = WeightSpec("int8", "channel"), ActSpec("int8", "token")
WIDENED = (*(WeightSpec(name, "channel") for name in ("e4m3fn", "e5m2", "int8")), WeightSpec("int4", "group", 128))
KINDS = ["plain", "bias", "residual", "residual in float32", "float32"]
# Of float64: what float32 sums and results of 16 bits may miss (docs/numerics.md), and rounding twice with a residual.
TOLERANCE = {torch.float32: 5e-4, torch.float16: 1e-3, torch.bfloat16: 5e-3}


def _weight(n: int, k: int, spec: WeightSpec = SPEC) -> QTensor:
    draw = torch.Generator("cuda").manual_seed(3)
    row = element(spec.element)
    finite = [code for code, value in zip(row.codes, row.values, strict=True) if abs(value) < 1e300]
    places = torch.randint(0, len(finite), (n, k), generator=draw, device="cuda")
    codes = torch.tensor(finite, device="cuda")[places].to(torch.int8 if row.kind == "int" else torch.uint8)
    scale = (torch.rand(spec.scale_shape(n, k), generator=draw, device="cuda") + 0.5).to(torch.bfloat16)
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, None)


def _both(
    weight: QTensor, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch, *, bias: torch.Tensor | None,
    out: torch.dtype, residual: torch.Tensor | None, acts: ActSpec | None = ACTS,
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
        bound = bind(weight, acts, None, bias, out_dtype=out)
        row = bound.variant(len(x), x.dtype)
        assert row is not None and (row.way == "tma") == (rows is VARIANTS), row
        results.append(bound(x, residual))
    return results[0], results[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", KINDS)
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


@pytest.mark.parametrize("shape", WIDENED_SHAPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", WIDENED, ids=lambda spec: spec.element)
def test_products_behind_a_widening_are_within_the_tolerance(
    spec: WeightSpec, dtype: torch.dtype, kind: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    n, k, tokens = shape
    draw = torch.Generator("cuda").manual_seed(1)
    x = (torch.randn(tokens, k, generator=draw, device="cuda") * 2**-10).to(dtype)  # results that float16 holds
    bias = torch.randn(n, generator=draw, device="cuda") if kind == "bias" else None
    out = torch.float32 if "float32" in kind else dtype
    residual = torch.randn(tokens, n, generator=draw, device="cuda").to(out) if "residual" in kind else None
    weight = _weight(n, k, spec)
    found, other = _both(weight, x, monkeypatch, bias=bias, out=out, residual=residual, acts=None)
    last = slice(tokens - 64, tokens)  # a tile of which a part is there
    exact = x[last].double() @ weight.dequantize().double().T
    for more in (bias, None if residual is None else residual[last]):
        exact += 0 if more is None else more.double()
    assert found.isfinite().all()
    assert float((found[last].double() - exact).norm() / exact.norm()) <= TOLERANCE[out]
    assert float((found.double() - other.double()).norm() / other.double().norm()) <= TOLERANCE[out]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_residual_is_added_to_the_bits_of_a_result(dtype: torch.dtype) -> None:
    bound = _bound(_weight(4112, 1152, WIDENED[-1]))
    draw = torch.Generator("cuda").manual_seed(5)
    x = torch.randn(LARGE + 9, 1152, generator=draw, device="cuda").to(dtype) / 1024
    residual = torch.randn(LARGE + 9, 4112, generator=draw, device="cuda").to(dtype)
    assert torch.equal(bound(x, residual), residual + bound(x))


@pytest.mark.parametrize("spec", WIDENED, ids=lambda spec: spec.element)
def test_a_workspace_is_not_written_while_it_is_read(spec: WeightSpec) -> None:
    """Linears one behind the other, each of which widens its weight where the one before has read its own."""
    from isobit.kernels.gpu.workspace import Workspace

    room, sizes = Workspace(torch.device("cuda")), ((4096, 4096), (4224, 4096), (4096, 4096))
    several = [_bound(_weight(n, k, spec), room) for n, k in sizes]
    draw = torch.Generator("cuda").manual_seed(8)
    inputs = [torch.randn(LARGE, k, generator=draw, device="cuda").half() / 1024 for _, k in sizes]
    wanted = []
    for bound, x in zip(several, inputs, strict=True):
        wanted.append(bound(x))
        torch.cuda.synchronize()
    for _ in range(50):
        found = [bound(x) for bound, x in zip(several, inputs, strict=True)]
        torch.cuda.synchronize()
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


def _bound(weight: QTensor, room: Workspace | None = None, acts: ActSpec | None = None) -> BoundLinear:
    """A linear on the row of TMA."""
    from isobit.kernels.gpu.bind import bind
    from isobit.kernels.gpu.card import here

    if here().name != "sm_90":
        pytest.skip(f"{here().name} has no such kernel")
    bound = bind(weight, acts, None, None, workspace=room)
    row = bound.variant(LARGE, torch.bfloat16)
    assert row is not None and row.way == "tma", row
    return bound


@pytest.mark.parametrize("spec", [SPEC, WIDENED[-1]], ids=lambda spec: spec.element)
def test_a_graph_holds_its_descriptors(spec: WeightSpec) -> None:
    bound = _bound(_weight(1024, 512, spec), acts=ACTS if spec is SPEC else None)
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
