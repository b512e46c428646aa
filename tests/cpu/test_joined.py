"""Linears of one input as one matrix on GPUs: what is joined, that nothing is lost, and what a step then launches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the GPU binding needs Triton: pip install triton")
from tiny import save_model

from isobit.checkpoint.layouts.reading import LinearWeight
from isobit.errors import FormatError
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor, stacked
from isobit.formats.rules import Policy
from isobit.formats.schemes import scheme
from isobit.formats.table import element
from isobit.kernels.gpu.bind import BoundLinear
from isobit.kernels.gpu.compile.request import Request
from isobit.kernels.gpu.joined import Part, whole_of
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.workspace import Workspace
from isobit.models import weights
from isobit.models.batch import Batch
from isobit.models.decoder import Decoder
from isobit.models.joined import apart, bind_linears, join
from isobit.models.place import Place
from isobit.quantizer.driver import quantize
from isobit.targets.table import TARGETS

K = 256
NAMES = ("bf16", "fp8", "fp8-static", "fp8-block", "int8", "int4", "int4-asym", "int3")


class Launches(Recorder):
    """Every launch, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[str] = []

    def add(self, request: Request) -> None:
        self.all.append(request.entry.partition(":")[2])
        super().add(request)


def place(recorder: Recorder, target: str = "sm_90") -> Place:
    cpu = torch.device("cpu")
    return Place("cuda", cpu, Machine.imagined(TARGETS[target], recorder=recorder), Workspace(cpu))


def read(name: str, n: int, seed: int = 0, **changed: object) -> LinearWeight:
    draw = torch.Generator().manual_seed(seed)
    spec, acts = scheme(name).weights, scheme(name).activations
    static = torch.tensor([0.5]) if acts is not None and not acts.dynamic else None
    if spec is None:
        return LinearWeight(torch.randn(n, K, generator=draw).bfloat16())
    if name == "int3":
        spec = replace(spec, group=32)
    row = element(spec.element)
    top = row.codes.stop if row.kind == "int" else 120
    codes = torch.randint(row.codes.start if row.kind == "int" else 0, top, (n, K), generator=draw)
    codes = codes.to(torch.int8 if row.signed and row.kind == "int" else torch.uint8)
    shape = spec.scale_shape(n, K)
    zero = None if spec.symmetric else torch.randint(0, 16, shape, generator=draw).to(torch.uint8)
    scale = (torch.rand(shape, generator=draw) + 0.5).bfloat16()
    weight = QTensor(spec, (n, K), pack(codes, row) if row.bits < 8 else codes, scale, zero)
    return replace(LinearWeight(weight, acts, static), **changed)


def same(one: QTensor | torch.Tensor, other: QTensor | torch.Tensor) -> bool:
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return torch.equal(one, other)  # type: ignore[arg-type]
    zeros = one.zero is other.zero or torch.equal(one.zero, other.zero)  # type: ignore[arg-type]
    return (
        one.spec == other.spec and torch.equal(one.codes, other.codes) and torch.equal(one.scale, other.scale) and zeros
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("by_turns", [False, True])
def test_parts_of_one_matrix_are_what_they_were(name: str, by_turns: bool) -> None:
    sizes = (256, 256) if by_turns else (384, 128, 70)
    reads = [read(name, n, seed) for seed, n in enumerate(sizes)]
    recorder = Launches()
    linears = bind_linears(
        reads, by_turns=by_turns, keep_values=False, dtype=torch.bfloat16, place=place(recorder)
    )  # fmt: skip
    parts = [linear.bound for linear in linears]
    whole = whole_of(parts)
    assert isinstance(whole, BoundLinear) and whole.held.n == sum(sizes)
    assert all(isinstance(part, Part) and part.whole is whole for part in parts)
    for linear, given in zip(linears, reads, strict=True):
        assert same(linear.weight, given.weight)
    assert whole_of(parts[1:]) is None and whole_of(parts[::-1]) is None and whole_of(parts[:1]) is None
    x = torch.zeros(3, K, dtype=torch.bfloat16)
    assert [linear(x).shape for linear in linears] == [(3, n) for n in sizes]
    assert linears[0].bound(x, torch.zeros(3, sizes[0]).bfloat16()).shape == (3, sizes[0])  # type: ignore[call-arg]


def test_a_whole_holds_its_weights_once() -> None:
    reads = [read("int4", n) for n in (256, 128)]
    linears = bind_linears(reads, by_turns=False, keep_values=False, dtype=torch.bfloat16, place=place(Launches()))
    whole = whole_of([linear.bound for linear in linears])
    assert whole is not None and whole.held.operands is not None
    assert whole.held.operands.nbytes == sum(one.weight.nbytes for one in reads)


@pytest.mark.parametrize(
    ("reads", "why"),
    [
        ([read("fp8", 64), read("int8", 64)], "rounded differently"),
        ([read("fp8", 64), read("fp8", 64, bias=torch.zeros(64))], "bias"),
        ([read("fp8", 64), read("fp8", 64, activations=None)], "rounded differently"),
        ([read("bf16", 64), read("int4", 64)], "stored differently"),
        ([read("fp8", 64)], "there is one"),
    ],
)
def test_what_differs_stays_apart(reads: list[LinearWeight], why: str) -> None:
    assert why in str(apart(reads))
    linears = bind_linears(reads, by_turns=False, keep_values=False, dtype=torch.bfloat16, place=place(Launches()))
    assert all(isinstance(linear.bound, BoundLinear) for linear in linears)


def test_static_scales_and_blocks_decide_too() -> None:
    assert apart([read("fp8-static", 64), read("fp8-static", 64, input_scale=torch.tensor([0.25]))]) is not None
    assert apart([read("fp8-static", 64), read("fp8-static", 64)]) is None
    assert "inside a block" in str(apart([read("fp8-block", 64), read("fp8-block", 128)]))
    assert apart([read("fp8-block", 128), read("fp8-block", 64)]) is None
    _, rows = join([read("fp8-block", 128), read("fp8-block", 128)], True)
    assert [part.step for part in rows] == [None, None], "rows that share a scale cannot take turns"


def test_what_does_not_fit_is_not_stacked() -> None:
    one, other = read("fp8", 64).weight, read("int8", 64).weight
    assert isinstance(one, QTensor) and isinstance(other, QTensor)
    with pytest.raises(FormatError, match="not stacked"):
        stacked([one, other])
    blocks = [read("fp8-block", n).weight for n in (64, 128)]
    with pytest.raises(FormatError, match="inside a block"):
        stacked(blocks)  # type: ignore[arg-type]
    with pytest.raises(FormatError, match="another order"):
        blocks[0].in_order(torch.arange(64))  # type: ignore[union-attr]


def test_a_residual_fits_the_result() -> None:
    reads = [read("fp8", n) for n in (64, 64)]
    linears = bind_linears(reads, by_turns=False, keep_values=False, dtype=torch.bfloat16, place=place(Launches()))
    whole = whole_of([linear.bound for linear in linears])
    assert whole is not None
    for wrong in (torch.zeros(1, 64).bfloat16(), torch.zeros(1, 128)):
        with pytest.raises(FormatError, match="a residual of"):
            whole(torch.zeros(1, K).bfloat16(), wrong)


def decoder(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Decoder, Launches]:
    source = save_model(tmp_path / "plain")
    folder = source if name == "bf16" else tmp_path / name
    if name != "bf16":
        quantize(source, folder, Policy(scheme(name)), progress=False)
    recorder = Launches()
    monkeypatch.setattr(weights, "place", lambda *given, **options: place(recorder))
    return weights.load_model(folder, device="cuda"), recorder


NORM, LINEAR, ATTENTION = "norm_token", "linear_lanes", "attention_one"
STEPS = {
    "bf16": [NORM, LINEAR, ATTENTION, LINEAR, NORM, LINEAR, LINEAR],
    "fp8": [NORM, LINEAR, ATTENTION, "quantize_token", LINEAR, NORM, LINEAR, "quantize_token", LINEAR],
}  # fmt: skip


@pytest.mark.parametrize("name", STEPS)
@torch.inference_mode()
def test_what_one_token_launches(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, recorder = decoder(tmp_path, name, monkeypatch)
    recorder.all.clear()
    model(Batch.of([[5]]))
    layer = STEPS[name]
    assert recorder.all == [*layer, *layer, NORM, LINEAR]
    recorder.all.clear()
    model(Batch.of([[5], [6]]))
    attention = [one for one in recorder.all if "attention" in one or "rope" in one]
    assert attention == ["rope_append", "attention_few"] * 2, "heads in groups of several sequences"
    heard: list[torch.Tensor] = []
    hook = model.layers[1].mlp.down_proj.register_forward_hook(lambda module, given, result: heard.append(result))
    model(Batch.of([[5]]))
    hook.remove()
    assert [tuple(one.shape) for one in heard] == [(1, 640)], "who listens to a linear hears what it gives"
