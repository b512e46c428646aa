"""What the GPU binding keeps: every weight once, in one order, as many bytes as the planner predicts. No GPU needed."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

pytest.importorskip("triton", reason="the GPU binding needs Triton: pip install triton")

from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import scheme
from isobit.formats.table import element
from isobit.kernels.gpu import fits, layouts, library
from isobit.kernels.gpu.bind import BoundLinear, bind
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.rows import variant
from isobit.legalize.memory import tensor_bytes
from isobit.legalize.workload import Tensor
from isobit.targets.table import TARGETS, target

N, K = 192, 1024
PACKED = ("int4", "int4-g32", "int4-asym", "int3", "int2")
GPU = ("fp8", "fp8-e5m2", "fp8-static", "fp8-block", "fp8-w8a16", "int8", "int8-w8a16", *PACKED)


def weight(name: str, n: int = N, k: int = K) -> QTensor:
    spec = scheme(name).weights
    assert spec is not None
    row, generator = element(spec.element), torch.Generator().manual_seed(6)
    if spec.group == 40:
        k = 1000
    dtype = torch.int8 if row.kind == "int" and row.signed else torch.uint8
    low, high = (row.codes.start, row.codes.stop) if row.kind == "int" else (0, 100)
    codes = torch.randint(low, high, (n, k), generator=generator).to(dtype)
    shape = spec.scale_shape(n, k)
    zero = None if spec.symmetric else torch.randint(0, 16, shape, generator=generator).to(torch.uint8)
    scale = (torch.rand(shape, generator=generator) + 0.5).bfloat16()
    return QTensor(spec, (n, k), pack(codes, row) if row.bits < 8 else codes, scale, zero)


def bound(given: QTensor, name: str, lowering: str = "sm_90") -> BoundLinear:
    acts = scheme(name).activations
    static = None if acts is None or acts.dynamic else torch.tensor([0.5])
    return bind(given, acts, static, None, machine=Machine.imagined(target(lowering), 132, Recorder()))


def call(linear: BoundLinear, dtype: torch.dtype, *tokens: int) -> None:
    for count in tokens:
        linear(torch.zeros(count, linear.held.k, dtype=dtype))


def storages(linear: BoundLinear) -> int:
    """Bytes of all distinct memory that the binding and its runs keep alive; the workspace is its model's."""
    held: dict[int, int] = {}
    pending: list[object] = [linear]
    seen: set[int] = {id(linear.workspace)}
    while pending:
        one = pending.pop()
        if id(one) in seen or one is None:
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            held[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        elif isinstance(one, dict):
            pending += one.values()
        elif isinstance(one, (list, tuple)):
            pending += one
        elif type(one).__module__.startswith("isobit.kernels.gpu") and hasattr(one, "__dict__"):
            pending += vars(one).values()
    return sum(held.values())


@pytest.mark.parametrize("name", GPU)
@pytest.mark.parametrize("lowering", ["sm_90", "sm_86", "sm_75"])
def test_a_bound_weight_takes_what_the_planner_predicts(name: str, lowering: str) -> None:
    row = scheme(name)
    given = weight(name, 768, 4096)
    tensor = Tensor("linear", "weight", "linear", given.shape, 1)
    predicted = tensor_bytes(tensor, row.weights, row.activations, "bfloat16")
    linear = bound(given, name, lowering)
    del given
    call(linear, torch.float16, 1, 5, 12, 40, 2000)
    gc.collect()
    kept = storages(linear)
    # Float32 copies of a row's scales are a few bytes a row, which is more of a small matrix than of a large one.
    assert kept <= 1.02 * predicted + 24 * 768, (kept, predicted)


@pytest.mark.parametrize("name", ["int4", "int4-asym"])
def test_the_codes_as_stored_are_let_go_of_at_once(name: str) -> None:
    given = weight(name)
    codes, scale = weakref.ref(given.codes), weakref.ref(given.scale)
    linear = bound(given, name)
    del given
    gc.collect()
    assert codes() is None and scale() is None
    assert linear.held.operands is not None and linear.held.operands.unit is not None


@pytest.mark.parametrize("name", PACKED)
def test_a_weight_comes_back_as_it_was_given(name: str) -> None:
    given = weight(name)
    linear = bound(given, name)
    for dtype in (torch.float16, torch.float32, torch.bfloat16):  # float32 reads the stored order
        call(linear, dtype, 1, 40)
        back = linear.weight
        assert isinstance(back, QTensor)
        assert torch.equal(back.codes, given.codes) and torch.equal(back.scale, given.scale)
        assert (back.zero is None) == (given.zero is None)
        if back.zero is not None and given.zero is not None:
            assert torch.equal(back.zero, given.zero)


def test_another_order_replaces_the_one_before() -> None:
    linear = bound(weight("int4"), "int4")
    assert linear.held.operands is not None
    call(linear, torch.float16, 1)
    before = storages(linear)
    call(linear, torch.float32, 1)
    assert linear.held.operands.unit is None and storages(linear) <= 1.04 * before
    call(linear, torch.float16, 1)
    assert linear.held.operands.unit == 256 and storages(linear) <= before


@pytest.mark.parametrize("unit", [64, 128, 256])
def test_interleaving_has_an_inverse(unit: int) -> None:
    for name in ("int4", "int4-asym"):
        given = weight(name, 7, 512)
        words = layouts.interleave_nibbles(given, unit)
        assert torch.equal(layouts.deinterleave_nibbles(words, given.element, unit), given.codes)


def test_scales_fold_into_float16_where_every_product_is_exact() -> None:
    scale = torch.tensor([[1.0, 2.0**-20], [0.0, 0.0], [3.1e38, 1e31]]).bfloat16()
    power = layouts.folding_scales(scale)
    assert power is not None
    for code in range(-8, 8):
        product = code * scale.double() / power.double()[:, None]
        assert torch.equal(product.half().double(), product)
    assert layouts.folding_scales(torch.tensor([[1.0, 2.0**-40]]).bfloat16()) is None, "too far apart for float16"
    assert layouts.folding_scales(torch.tensor([[1.0 + 2**-10]]).half()) is None, "too many significant bits"


def test_pytorchs_product_is_called_with_full_sums_and_our_scales() -> None:
    generator = torch.Generator().manual_seed(2)
    x, w = (torch.randn(rows, 64, generator=generator).to(torch.float8_e4m3fn) for rows in (32, 48))
    sx, sw = torch.rand(32, generator=generator), torch.rand(48, generator=generator)
    y = torch.empty(32, 48, dtype=torch.bfloat16)
    library.scaled_mm(x, w, sx, sw, y)
    exact = (x.double() * sx.double()[:, None]) @ (w.double() * sw.double()[:, None]).T
    assert torch.allclose(y.double(), exact, rtol=2**-8, atol=1e-6)


def test_pytorchs_product_restores_the_switches() -> None:
    switches = torch.backends.cuda.matmul
    before = switches.allow_bf16_reduced_precision_reduction
    x, w, y = torch.ones(4, 16).bfloat16(), torch.ones(8, 16).bfloat16(), torch.empty(4, 8).bfloat16()
    library.mm(x, w, y)
    assert torch.equal(y, torch.full_like(y, 16)) and switches.allow_bf16_reduced_precision_reduction == before


def test_pytorchs_product_says_where_it_does_not_fit() -> None:
    sm_90, mm, scaled_mm = TARGETS["sm_90"], variant("large-bf16-library"), variant("large-e4m3fn-library")
    elsewhere = library.problems(torch.device("cpu"))
    assert "does not run on cpu" in str(fits.misfit(mm, fits.Matrix(16, 16, None, library=elsewhere), sm_90))
    assert "rounds a bias" in str(fits.misfit(mm, fits.Matrix(16, 16, None, bias=True), sm_90))
    assert "multiples of 16" in str(fits.misfit(scaled_mm, fits.Matrix(16, 24, None), sm_90))
    assert fits.misfit(mm, fits.Matrix(5, 3, None), sm_90) is None


def test_what_is_recorded_stands_for_aligned_memory() -> None:
    """Weights mapped from a file may begin anywhere; on a card, where they are copied to, they do not."""
    mapped = torch.zeros(16 * 1024 + 1, dtype=torch.bfloat16)[1:].view(16, 1024)
    bound, x = bind(mapped, None, None, None, target=target("sm_86")), torch.zeros(1, 1024, dtype=torch.bfloat16)
    row = bound.variant(1, torch.bfloat16)
    assert row is not None and row.way != "lanes"
    recorder = Recorder()
    bind(mapped, None, None, None, machine=Machine.imagined(target("sm_86"), 84, recorder))(x)
    assert [request.entry.rpartition(":")[2] for request in recorder.requests.values()] == ["linear_lanes"]
