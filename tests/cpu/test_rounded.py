"""Rounded activations as a value: rounded once, shared, with the bits of rounding them for each linear."""

from __future__ import annotations

import pytest
import torch

from isobit.errors import FormatError
from isobit.formats import codec
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, scheme
from isobit.formats.table import element
from isobit.kernels import reference
from isobit.kernels.rounded import Rounded, project, shared

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 3, 256, generator=GENERATOR)


def weight(name: str, n: int) -> QTensor | torch.Tensor:
    spec = scheme(name).weights
    if spec is None:
        return torch.randn(n, 256, generator=GENERATOR)
    row = element(spec.element)
    codes = torch.randint(-7, 7, (n, 256), generator=GENERATOR).to(torch.int8)
    codes = codes if row.kind == "int" else codec.encode(codes.float(), row)
    return QTensor(spec, (n, 256), pack(codes, row) if row.bits < 8 else codes, torch.rand(spec.scale_shape(n, 256)))


def linears(name: str, *static: float) -> list[reference.ReferenceLinear]:
    scales = [torch.tensor([one]) for one in static] or [None, None, None]
    return [
        reference.bind(weight(name, n), scheme(name).activations, scale, torch.randn(n, generator=GENERATOR))
        for n, scale in zip((5, 3, 4), scales, strict=True)
    ]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[ActSpec]:
    calls: list[ActSpec] = []

    def quantize(x: torch.Tensor, spec: ActSpec, static: torch.Tensor | None = None):
        calls.append(spec)
        return codec.quantize_activations(x, spec, static)

    monkeypatch.setattr(reference, "quantize_activations", quantize)
    return calls


@pytest.mark.parametrize("name", ["fp8", "fp8-e5m2", "fp8-block", "int8", "w4a8"])
def test_linears_of_one_input_round_it_once_with_the_same_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bound = linears(name)
    wanted = [linear(X) for linear in bound]
    calls = counted(monkeypatch)
    found = project(bound, X)
    assert calls == [scheme(name).activations]
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    rounder = shared(bound, 6, X.dtype)
    assert rounder is not None
    again = project(bound, rounder(X))
    assert all(torch.equal(one, other) for one, other in zip(again, wanted, strict=True))


def test_what_is_not_rounded_alike_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    mixed = [*linears("fp8")[:1], *linears("int8")[:1], *linears("bf16")[:1], *linears("fp8")[:1]]
    wanted = [linear(X) for linear in mixed]
    calls = counted(monkeypatch)
    assert all(torch.equal(one, other) for one, other in zip(project(mixed, X), wanted, strict=True))
    assert [spec.element for spec in calls] == ["e4m3fn", "int8"]
    assert shared(mixed, 6, X.dtype) is None and shared(mixed[2:3], 6, X.dtype) is None


def test_static_scales_are_shared_where_they_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = counted(monkeypatch)
    project(linears("fp8-static", 0.5, 0.5, 0.5), X)
    assert len(calls) == 1
    project(linears("fp8-static", 0.5, 0.25, 0.5), X)
    assert len(calls) == 3


def test_another_rounding_than_asked_for_is_refused() -> None:
    (int8, *_), (plain, *_) = linears("int8"), linears("bf16")
    rounder = shared(linears("fp8"), 6, X.dtype)
    assert rounder is not None
    rounded = rounder(X)
    assert isinstance(rounded, Rounded) and rounded.tokens == 6 and rounded.shape == X.shape
    for linear in (int8, plain):
        with pytest.raises(FormatError, match="was given"):
            linear(rounded)


def test_gpu_linears_ask_for_what_their_kernel_multiplies() -> None:
    pytest.importorskip("triton", reason="the GPU binding needs Triton: pip install triton")
    from isobit.kernels.gpu.bind import bind
    from isobit.kernels.gpu.machine import Machine
    from isobit.kernels.gpu.packs.record import Recorder
    from isobit.targets.table import TARGETS

    def bound(target: str, name: str, n: int):
        machine = Machine.imagined(TARGETS[target], recorder=Recorder())
        return bind(weight(name, n), scheme(name).activations, None, None, machine=machine)

    forms = {}
    for target in ("sm_75", "sm_86", "sm_90"):
        for tokens in (1, 40):
            both = [bound(target, "fp8", n) for n in (64, 32)]
            rounder = shared(both, tokens, torch.float16)
            assert rounder is not None
            forms[target, tokens] = rounder.key.form
            x = torch.zeros(tokens, 256, dtype=torch.float16)
            rounded = both[0].rounding(tokens, x.dtype)(x)
            for linear in both:
                launched = linear.machine.recorder.requests
                launched.clear()
                assert linear(rounded).shape == (tokens, linear.held.n)
                assert not any("quantize" in request.entry for request in launched.values()) and launched
    assert forms["sm_90", 40] == "codes" and forms["sm_86", 40] == "float16" and forms["sm_75", 40] == "float16"
    assert bound("sm_90", "int8-w8a16", 64).rounding(1, torch.bfloat16) is None
    int8 = bound("sm_90", "int8", 64)
    with pytest.raises(FormatError, match="was given"):
        int8(rounded)


def test_a_key_names_what_decides_the_bits() -> None:
    keys = {linears(name)[0].rounding(1, torch.float32).key for name in ("fp8", "fp8-block", "int8")}  # type: ignore[union-attr]
    keys |= {linears("fp8-static", one, 1.0, 1.0)[0].rounding(1, torch.float32).key for one in (0.5, 0.25)}  # type: ignore[union-attr]
    assert len(keys) == 5
