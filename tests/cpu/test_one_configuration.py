"""What is proved is what is launched: the same requests, argument for argument. No GPU needed."""

from __future__ import annotations

import latent_oracle
import pytest
import torch

pytest.importorskip("triton", reason="the GPU binding needs Triton: pip install triton")

from isobit.formats.caches import known_by
from isobit.formats.pack import pack
from isobit.formats.qtensor import QTensor
from isobit.formats.schemes import ActSpec, scheme
from isobit.formats.table import element
from isobit.kernels.cached import Cached
from isobit.kernels.gpu.bind import bind
from isobit.kernels.gpu.configure import Call
from isobit.kernels.gpu.fits import Matrix
from isobit.kernels.gpu.latent import GpuLatent
from isobit.kernels.gpu.layer import GpuLayer
from isobit.kernels.gpu.layer_rows import LAYER_ROWS
from isobit.kernels.gpu.machine import Machine
from isobit.kernels.gpu.packs.record import Recorder
from isobit.kernels.gpu.prepare import Narrowing
from isobit.kernels.gpu.rounding import Rounding
from isobit.kernels.gpu.routing import GpuRouter
from isobit.kernels.gpu.rows import VARIANTS, variant
from isobit.kernels.gpu.workspace import Workspace
from isobit.kernels.grouped import Routing
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.sequences import Sequences
from isobit.proof.claims import claims
from isobit.targets.table import TARGETS

N, K = 4096, 4096  # as claims take weights to be
E4M3 = ActSpec("e4m3fn", "token")
TOKENS = (1, 8, 16, 40, 100, 200, 1024)
SCHEMES = ("bf16", "fp8", "fp8-e5m2", "fp8-static", "fp8-block", "fp8-w8a16", "int8", "int8-w8a16", "int4", "int4-asym")


def weight(name: str, dtype: torch.dtype) -> QTensor | torch.Tensor:
    spec = scheme(name).weights
    if spec is None:
        return torch.zeros(N, K, dtype=dtype)
    row = element(spec.element)
    codes = torch.zeros(N, K, dtype=torch.int8 if row.kind == "int" and row.signed else torch.uint8)
    shape = spec.scale_shape(N, K)
    zero = None if spec.symmetric else torch.zeros(shape, dtype=torch.uint8)
    return QTensor(spec, (N, K), pack(codes, row) if row.bits < 8 else codes, torch.ones(shape).bfloat16(), zero)


@pytest.mark.parametrize(
    ("name", "alike"),
    [("sm_75", False), ("sm_86", False), ("sm_90", False), ("sm_90", True), ("sm_120", False), ("gfx942", False)],
)
def test_every_launch_of_a_usual_weight_is_proved(name: str, alike: bool) -> None:
    target = TARGETS[name]
    dtype = torch.float16 if name == "sm_75" else torch.bfloat16
    proved = {claim.request.name(): claim.variant for claim in claims(VARIANTS, [target])}
    launched: set[str] = set()
    for one in SCHEMES:
        acts, recorder = scheme(one).activations, Recorder()
        static = torch.tensor([0.5]) if acts is not None and not acts.dynamic else None
        machine = Machine.imagined(target, recorder=recorder)
        bound = bind(weight(one, dtype), acts, static, None, machine=machine, alike=alike)
        for tokens in TOKENS:
            row = bound.variant(tokens, dtype)
            if row is None or not row.library:
                bound(torch.zeros(tokens, K, dtype=dtype))
        for request in recorder.requests.values():
            assert request.name() in proved, (one, request)
            launched.add(proved[request.name()])
    assert len(launched) >= (10 if alike else 15)


# What layers of few families launch, and those with experts.
OF_FEW = (
    "rope-append-any", "router-many", "choose-experts", "count-pairs", "place-pairs", "add-experts",
    "weigh-inputs", "gate-by", "router-token", "router-tiles", "choose-pairs", "place-ranked",
)  # fmt: skip


# What stands beside linears: the layer's kernels, and those that round.
BESIDE = (*LAYER_ROWS, *(row for row in VARIANTS if row.way == "rounding"))
ALIKE = [row.name for row in LAYER_ROWS if row.name.startswith("attention-alike")]


@pytest.mark.parametrize("name", ["sm_86", "sm_90"])
def test_every_launch_beside_the_linears_of_a_batch_invariant_model_is_proved(name: str) -> None:
    target = TARGETS[name]
    proved = {claim.request.name(): claim.variant for claim in claims(BESIDE, [target])}
    recorder = Recorder()
    machine = Machine.imagined(target, recorder=recorder)
    layer = GpuLayer(machine, Workspace(torch.device("cpu")), alike=True)
    spec, table, rounding = AttentionSpec(32, 8, 128), torch.zeros(1, 3).int(), Rounding(E4M3, None, "*u8", machine)
    for dtype in (torch.bfloat16, torch.float16):
        for new, length in ((1, 700), (3, 40), (40, 300)):
            lengths = torch.tensor([length]).int()
            starts, slots = torch.tensor([0, new]).int(), torch.zeros(new).long()
            q, k, v, cos, sin = (torch.zeros(new, width * 128, dtype=dtype) for width in (32, 8, 8, 1, 1))
            held = Cached(*(torch.zeros(3, 8, 256, 128, dtype=dtype) for _ in "kv"))
            sequences = Sequences(starts, lengths, table, slots, 256, new, length)
            if dtype == torch.bfloat16:
                layer.attention(spec, q, k, v, cos, sin, held, sequences)
            else:
                layer.attend(spec, q, held, sequences)
    x = torch.zeros(1, 4096, dtype=torch.bfloat16)
    layer.norm(x, torch.ones(4096), 1e-5, rounding)
    layer.add_norm(x, x, torch.ones(4096), 1e-5)
    layer.round(torch.zeros(1, 11008, dtype=torch.bfloat16), rounding)
    assert not [request for request in recorder.requests.values() if request.name() not in proved]
    assert {proved[request.name()] for request in recorder.requests.values()} >= set(ALIKE)


@pytest.mark.parametrize("name", ["sm_75", "sm_90", "gfx942"])
def test_every_launch_beside_the_linears_of_experts_is_proved(name: str) -> None:
    target = TARGETS[name]
    dtype = torch.float16 if name == "sm_75" else torch.bfloat16
    proved = {claim.request.name(): claim.variant for claim in claims(BESIDE, [target])}
    recorder, cpu = Recorder(), torch.device("cpu")
    machine = Machine.imagined(target, recorder=recorder)
    router, alike = (GpuRouter(machine, Workspace(cpu), alike=one) for one in (False, True))
    rounding = Rounding(ActSpec("int8", "token"), None, "*i8", machine)
    for routing in (
        Routing(torch.zeros(128, 2048), 8), Routing(torch.full((128, 2048), 1 + 2**-20), 8),
        Routing(torch.zeros(32, 2880), 4, torch.zeros(32), None, "softmax-behind", renormalize=False),
        Routing(torch.zeros(256, 7168), 8, None, torch.zeros(256), "sigmoid", 8, 4, "two"),
    ):  # fmt: skip
        for tokens, width in ((1, 0), (8, 8), (64, 8), (300, 64), (2048, 64)):
            x = torch.zeros(tokens, routing.weight.shape[1], dtype=dtype)
            usual = routing.groups == 1 and not routing.weight.any() and routing.bias is None
            router.route(routing, x, width, rounding if usual else None)
            alike.route(routing, x, width)
    for width in (8, 16, 64, 128):
        router.place(torch.zeros(64, dtype=torch.int32), 128, width)
    router.add(torch.zeros(3, 8, 2048), torch.zeros(3, 8), dtype)
    router.add(torch.zeros(3, 8, 2048), None, dtype, torch.zeros(3, 2048, dtype=dtype))
    router.weigh(torch.zeros(3, 2048, dtype=dtype), torch.zeros(3, 1))
    router.gate_by(torch.zeros(3, 2048, dtype=dtype), torch.zeros(2048), torch.zeros(3, 2048, dtype=dtype))
    assert not [request for request in recorder.requests.values() if request.name() not in proved]
    assert {proved[request.name()] for request in recorder.requests.values()} == {*OF_FEW} - {"rope-append-any"}


@pytest.mark.parametrize("name", ["sm_86", "sm_90", "gfx942"])
def test_every_launch_of_latent_attention_is_proved(name: str) -> None:
    target = TARGETS[name]
    proved = {claim.request.name(): claim.variant for claim in claims(BESIDE, [target])}
    recorder = Recorder()
    layer = GpuLatent(Machine.imagined(target, recorder=recorder), Workspace(torch.device("cpu")))
    for codes, kind in (("", torch.bfloat16), ("int8", torch.int8), ("e4m3fn", torch.uint8)):
        spec = latent_oracle.spec(16, 128, 64, 128, 512, torch.bfloat16)
        scales = torch.zeros(9, 1, 64) if codes else None
        held = Cached(
            *(torch.zeros(9, 1, 64, width, dtype=kind) for width in (512, 64)), scales, scales, known_by(codes)
        )
        for new, length in ((2, 600), (20, 20)):
            q, kv, cos, sin = (torch.zeros(new, width, dtype=torch.bfloat16) for width in (16 * 192, 576, 64, 64))
            starts, lengths = torch.tensor([0, 1, new]).int(), torch.tensor([length - new, length]).int()
            sequences = Sequences(
                starts, lengths, torch.zeros(2, 16).int(), torch.zeros(new).long(), 64, max(1, new - 1), length
            )
            layer.latent(spec, q, kv, cos, sin, held, sequences)
    assert not [request for request in recorder.requests.values() if request.name() not in proved]
    launched = {proved[request.name()] for request in recorder.requests.values()}
    assert launched == {row.name for row in LAYER_ROWS if row.name.startswith("latent-")} - {
        "latent-few-f16", "latent-many-f16"
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sm_75", "sm_86", "sm_90", "gfx942"])
def test_every_launch_of_a_usual_layer_is_proved(name: str) -> None:
    target = TARGETS[name]
    dtype = torch.float16 if name == "sm_75" else torch.bfloat16
    proved = {claim.request.name(): claim.variant for claim in claims(BESIDE, [target])}
    recorder, cpu = Recorder(), torch.device("cpu")
    layer = GpuLayer(Machine.imagined(target, recorder=recorder), Workspace(cpu))
    for kv_heads, new, length in ((8, 1, 5000), (8, 1, 600), (8, 20, 20), (32, 1, 600), (32, 1, 40)):
        spec = AttentionSpec(32, kv_heads, 128)
        sequences = Sequences(
            torch.tensor([0, new]).int(), torch.tensor([length]).int(), torch.zeros(1, 3).int(),
            torch.zeros(new).long(), 256, new, length,
        )  # fmt: skip
        q, k, v, cos, sin = (torch.zeros(new, width * 128, dtype=dtype) for width in (32, kv_heads, kv_heads, 1, 1))
        keys, values = (torch.zeros(3, kv_heads, 256, 128, dtype=dtype) for _ in "kv")
        layer.attention(spec, q, k, v, cos, sin, Cached(keys, values), sequences)
    rounding, narrows = Rounding(ActSpec("int8", "token"), None, "*i8", layer.machine), name in ("sm_86", "sm_90")
    for tokens in (1, 3, 20):
        x, both = torch.zeros(tokens, 4096, dtype=dtype), torch.zeros(tokens, 2 * 11008, dtype=dtype)
        layer.norm(x, torch.ones(4096), 1e-5)
        layer.norm(x, torch.ones(4096), 1e-5, rounding)
        layer.add_norm(x, x, torch.ones(4096), 1e-5)
        layer.add_norm(x, x, torch.ones(4096), 1e-5, rounding)
        if tokens < 20:  # more are rounded as those of other linears are
            layer.round(both[:, :11008], rounding)
        if tokens == 20 and narrows:  # as prompts of int4 are
            matrix = Matrix(64, 4096, scheme("int4").weights)
            narrowing = Narrowing(variant("narrow-bf16"), Call(matrix, "bfloat16", 1024), layer.machine)
            layer.norm(x, torch.ones(4096), 1e-5, narrowing)
            layer.add_norm(x, x, torch.ones(4096), 1e-5, narrowing)
            layer.gate(both[:, :11008], both[:, 11008:], "silu", narrowing)
            layer.gate(both[:, ::2], both[:, 1::2], "silu", narrowing)
        if tokens > 1:
            for gates, ups in ((both[:, :11008], both[:, 11008:]), (both[:, ::2], both[:, 1::2])):
                layer.gate(gates, ups)
                layer.gate(gates, ups, "gelu_tanh")
                layer.gate(gates, ups, "silu", rounding)
    assert not [request for request in recorder.requests.values() if request.name() not in proved]
    launched = {proved[request.name()] for request in recorder.requests.values()}
    short, ahead = ("f16", "many") if name == "sm_75" else ("bf16", "ahead" if name == "sm_90" else "many")
    families = "few", "one", ahead
    beside = "attention-merge", "rope-append", "norm", "gate", "gate-token", "quantize-parts", "quantize-int8"
    assert launched == {*beside, *(f"attention-{family}-{short}" for family in families)}
    assert len(recorder.requests) == (32 if narrows else 28)
