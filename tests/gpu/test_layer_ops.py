"""The parts of a layer beside its linears on a GPU: against float64, in mixtures, in graphs, and alone."""

from __future__ import annotations

from dataclasses import replace

import layer_oracle as oracle
import pytest
import torch
import torch.nn.functional as F

from isobit.formats.schemes import ActSpec
from isobit.kernels.cached import rounded as as_cached
from isobit.kernels.heads import AttentionSpec
from isobit.kernels.rounded import Rounded, project

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
HALVES = (torch.bfloat16, torch.float16)
# What rounding a result leaves, root mean square: some 1.7e-3 of bfloat16, 2.1e-4 of float16; and a little more.
ROUNDED = {torch.bfloat16: 2e-3, torch.float16: 3.5e-4, torch.float32: 5e-6}

MIXTURES = {
    "decode": [(1, 300), (1, 5), (1, 0), (1, 1), (1, 4097), (1, 128)],
    "mixture": [(1, 1000), (700, 900), (4, 4), (1, 0), (2, 65), (129, 129), (5, 2000)],
    "prompt": [(513, 513)],
    "chunk": [(200, 1500)],
    "one": [(1, 777)],
    "a short one": [(1, 333)],
}
SPECS = {
    "llama": AttentionSpec(32, 32, 128),
    "grouped": AttentionSpec(32, 8, 128),
    "narrow": AttentionSpec(8, 1, 64),
    "odd": AttentionSpec(6, 3, 80),
    "96": AttentionSpec(4, 4, 96),
    "gemma": AttentionSpec(8, 4, 256, window=300, softcap=50.0, scale=0.0625),
    "window": AttentionSpec(8, 2, 128, window=64),
    "many to one": AttentionSpec(48, 1, 64),
    "sinks": AttentionSpec(16, 2, 64, window=128, sinks=torch.linspace(-3, 3, 16)),
    "chunks": AttentionSpec(10, 2, 128, rope_dims=0, chunk=500, scaled=True),
    "neighbours": AttentionSpec(8, 2, 128, rope_dims=64, interleaved=True),
    "own keys": AttentionSpec(6, 6, 80, window=64, softcap=50.0, sinks=torch.linspace(-3, 3, 6)),
}


def there(spec: AttentionSpec) -> AttentionSpec:
    """With what it holds on the card."""
    return spec if spec.sinks is None else replace(spec, sinks=spec.sinks.cuda())


def layers(lowering: str | None = None, *, alike: bool = False):
    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.layer import GpuLayer
    from isobit.kernels.gpu.workspace import Workspace
    from isobit.targets.table import target

    return GpuLayer(card.machine(target(lowering) if lowering else None), Workspace(torch.device("cuda")), alike=alike)


@pytest.mark.parametrize("lowering", [None, "sm_86", "sm_75"])
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("spec", SPECS)
def test_attention_is_that_of_float64(spec: str, mixture: str, lowering: str | None) -> None:
    layer = layers(lowering)
    for dtype in (torch.float16,) if lowering == "sm_75" else HALVES:
        for block in (16, 256) if lowering is None else (48,):
            given = oracle.batch(SPECS[spec], MIXTURES[mixture], block, dtype, 1, "cuda")
            wanted, keys, values = oracle.attention(SPECS[spec], given)
            found = layer.attention(there(SPECS[spec]), *given.arguments)
            assert oracle.error(found, wanted) < ROUNDED[dtype], (dtype, block)
            real = given.sequences.slots.cpu() >= 0
            assert not found[~real.cuda()].any()
            assert oracle.error(oracle.stored(given, given.keys), keys[real]) < 1e-5  # a rounding to the other side
            assert torch.equal(oracle.stored(given, given.values).double().cpu(), values[real])


@pytest.mark.parametrize("lowering", [None, "sm_86", "sm_75"])
@pytest.mark.parametrize("element", ["e4m3fn", "e5m2", "int8"])
def test_a_cache_of_codes_is_that_of_float64(element: str, lowering: str | None) -> None:
    """What is stored are the bits of the law; what is read is exactly what they stand for."""
    layer = layers(lowering)
    for dtype in (torch.float16,) if lowering == "sm_75" else (*HALVES, torch.float32):
        for spec, mixture in (("grouped", "mixture"), ("llama", "decode"), ("gemma", "mixture"), ("odd", "chunk")):
            given = oracle.batch(SPECS[spec], MIXTURES[mixture], 64, dtype, 1, "cuda", kv=element)
            plain = oracle.batch(SPECS[spec], MIXTURES[mixture], 64, dtype, 1, "cuda")
            wanted, _, _ = oracle.attention(SPECS[spec], given)
            found = layer.attention(SPECS[spec], *given.arguments)
            layer.rope_append(SPECS[spec], *plain.arguments)
            assert oracle.error(found, wanted) < 3 * ROUNDED[dtype], (dtype, spec, mixture)
            for held, numbers in zip(given.cached.parts, (plain.keys, plain.values), strict=True):
                law = as_cached(oracle.stored(plain, numbers), given.form, dtype)
                for part, expected in zip(held.tensors, law.tensors, strict=True):
                    assert torch.equal(oracle.stored(given, part), expected)


def test_attention_in_float32_and_with_norms() -> None:
    layer, generator = layers(), torch.Generator().manual_seed(2)
    weights = [torch.rand(128, generator=generator).cuda() + 0.5 for _ in range(2)]
    for dtype in (torch.float32, *HALVES):
        spec = replace(SPECS["grouped"], q_norm=weights[0], k_norm=weights[1], eps=1e-6)
        given = oracle.batch(spec, MIXTURES["mixture"], 64, dtype, 3, "cuda")
        wanted, _, _ = oracle.attention(spec, given)
        assert oracle.error(layer.attention(spec, *given.arguments), wanted) < 1.5 * ROUNDED[dtype], dtype
        behind = replace(spec, norm_behind=True)
        wanted, _, _ = oracle.attention(behind, given)
        assert oracle.error(layer.attention(behind, *given.arguments), wanted) < 1.5 * ROUNDED[dtype], dtype


@pytest.mark.parametrize("name", ["grouped", "llama"])
def test_a_sequence_does_not_depend_on_its_neighbours_nor_on_where_its_blocks_are(name: str) -> None:
    from isobit.kernels.gpu import one_tiles

    layer, spec = layers(), SPECS[name]
    sizes = MIXTURES["mixture"]
    given = oracle.batch(spec, sizes, 32, torch.bfloat16, 4, "cuda")
    together = layer.attention(spec, *given.arguments)
    starts = given.sequences.starts.tolist()
    for b, (new, length) in enumerate(sizes):
        own = slice(starts[b], starts[b + 1])
        alone = replace(
            given.sequences, starts=torch.tensor([0, new]).int().cuda(), lengths=given.sequences.lengths[b : b + 1],
            table=given.sequences.table[b : b + 1], slots=given.sequences.slots[own], most_new=new, most=max(1, length),
        )  # fmt: skip
        parts = (part[own] for part in (given.q, given.k, given.v, given.cos, given.sin))
        found = layer.attention(spec, *parts, given.cached, alone)
        in_one = new == 1 and 0 < spec.heads * length <= one_tiles.ALONE
        if spec.heads != spec.kv_heads and in_one:  # which several do in two kernels
            apart = (found.double() - together[own].double()).norm() / together[own].double().norm()
            assert float(apart) < 2 * ROUNDED[torch.bfloat16], length
        else:
            assert torch.equal(found, together[own]), (new, length)


def test_one_new_token_each_has_the_same_bits_however_a_step_is_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles ahead, a loop around parts, and many sequences beside it."""
    from isobit.kernels.gpu import one_tiles

    layer, spec, sizes = layers(), SPECS["llama"], [(1, n) for n in (1, 2, 64, 65, 130, 512)]
    given = oracle.batch(spec, sizes, 64, torch.bfloat16, 11, "cuda")
    wanted = layer.attention(spec, *given.arguments)
    assert oracle.error(wanted, oracle.attention(spec, given)[0]) < ROUNDED[torch.bfloat16]
    for ahead in (1, 2):
        for split in (False, True):
            monkeypatch.setattr(
                one_tiles, "spread",
                lambda attention, rope, *_, ahead=ahead, split=split: one_tiles.OneShape(attention, rope, ahead, split),
            )  # fmt: skip
            again = oracle.batch(spec, sizes, 64, torch.bfloat16, 11, "cuda")
            assert torch.equal(layer.attention(spec, *again.arguments), wanted), (ahead, split)
            assert torch.equal(oracle.stored(again, again.keys), oracle.stored(given, given.keys))


def test_a_prompt_in_chunks_is_the_prompt_at_once() -> None:
    layer, spec = layers(), SPECS["grouped"]
    whole = oracle.batch(spec, [(700, 700)], 1024, torch.bfloat16, 5, "cuda")
    wanted = layer.attention(spec, *whole.arguments)
    for begin, end in ((0, 150), (150, 513), (513, 700)):
        own = slice(begin, end)
        chunk = replace(
            whole.sequences, starts=torch.tensor([0, end - begin]).int().cuda(),
            lengths=torch.tensor([end]).int().cuda(), slots=whole.sequences.slots[own], most_new=end - begin, most=end,
        )  # fmt: skip
        parts = (part[own] for part in (whole.q, whole.k, whole.v, whole.cos, whole.sin))
        assert torch.equal(layer.attention(spec, *parts, whole.cached, chunk), wanted[own]), begin


def test_a_token_has_the_same_bits_in_a_prompt_and_alone_where_that_is_asked_for() -> None:
    spec = SPECS["grouped"]
    layer = layers(alike=True)
    given = oracle.batch(spec, [(1, 500), (300, 300), (1, 0)], 64, torch.bfloat16, 10, "cuda")
    together = layer.attention(spec, *given.arguments)
    assert oracle.error(together, oracle.attention(spec, given)[0]) < ROUNDED[torch.bfloat16]
    for position in (0, 1, 63, 64, 200, 299):
        own = slice(1 + position, 2 + position)
        one = replace(
            given.sequences, starts=torch.tensor([0, 1]).int().cuda(), table=given.sequences.table[1:2],
            lengths=torch.tensor([position + 1]).int().cuda(), slots=given.sequences.slots[own], most_new=1,
            most=position + 1,
        )  # fmt: skip
        parts = (part[own] for part in (given.q, given.k, given.v, given.cos, given.sin))
        assert torch.equal(layer.attention(spec, *parts, given.cached, one), together[own]), position


def test_a_recorded_graph_serves_any_lengths() -> None:
    layer, spec, most = layers(), SPECS["llama"], 2048
    first = oracle.batch(spec, [(1, 1)] * 6, 64, torch.bfloat16, 6, "cuda", columns=most // 64)
    given = replace(first, sequences=replace(first.sequences, most=most))
    cache = [
        torch.zeros(6 * most // 64, spec.kv_heads, 64, spec.dim, dtype=torch.bfloat16, device="cuda") for _ in "kv"
    ]
    given = replace(given, keys=cache[0], values=cache[1])
    layer.reserve(spec, 6, 1, most)
    layer.attention(spec, *given.arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = layer.attention(spec, *given.arguments)
    for seed, lengths in enumerate(([1, 2, 3, 4, 5, 6], [2048, 1, 0, 129, 1000, 0], [64, 65, 127, 128, 300, 2000])):
        fresh = oracle.batch(spec, [(1, n) for n in lengths], 64, torch.bfloat16, seed, "cuda", columns=most // 64)
        for name in ("q", "k", "v", "cos", "sin"):
            getattr(given, name).copy_(getattr(fresh, name))
        for name in ("lengths", "table", "slots"):
            getattr(given.sequences, name).copy_(getattr(fresh.sequences, name))
        for held, new in ((given.keys, fresh.keys), (given.values, fresh.values)):
            held.fill_(float("nan"))
            held[: len(new)].copy_(new)
        graph.replay()
        wanted, _, _ = oracle.attention(spec, fresh)
        assert oracle.error(found, wanted) < ROUNDED[torch.bfloat16], lengths
        assert torch.equal(found, layer.attention(spec, *fresh.arguments)), lengths


@pytest.mark.parametrize("k", [896, 4096, 11008, 20000])
def test_norms_and_gates_are_those_of_float64(k: int) -> None:
    layer, generator = layers(), torch.Generator().manual_seed(7)
    weight = torch.rand(k, generator=generator).cuda() + 0.5
    for dtype in (torch.float32, *HALVES):
        x, delta = ((3 * torch.randn(17, k, generator=generator)).to("cuda", dtype) for _ in range(2))
        total, normed = layer.add_norm(x, delta, weight, 1e-5)
        assert torch.equal(total, x + delta)
        for found, source in ((normed, total), (layer.norm(x, weight, 1e-5), x)):
            wanted = F.rms_norm(source.double(), (k,), weight.double(), 1e-5).cpu()
            assert oracle.error(found, wanted) < ROUNDED[dtype]
        for name, activation in (("silu", F.silu), ("gelu_tanh", lambda g: F.gelu(g, approximate="tanh"))):
            wanted = (activation(x.double()) * delta.double()).cpu()
            assert oracle.error(layer.gate(x, delta, name), wanted) < ROUNDED[dtype]


def test_what_is_rounded_where_it_is_made_has_the_bits_of_rounding_it_later() -> None:
    from isobit.kernels.gpu.rounding import Rounding

    layer, generator = layers(), torch.Generator().manual_seed(8)
    for k in (896, 11008, 20000):
        weight = torch.rand(k, generator=generator).cuda() + 0.5
        x, delta = (torch.randn(9, k, generator=generator).to("cuda", torch.bfloat16) for _ in range(2))
        x[3, 7] = float("inf")
        for name in ("e4m3fn", "e5m2", "int8"):
            static = torch.tensor([0.03], device="cuda")
            for spec, scale in ((ActSpec(name, "token"), None), (ActSpec(name, "tensor", dynamic=False), static)):
                for operand in ("*u8", "*fp16"):
                    rounding = Rounding(spec, scale, operand, layer.machine)
                    for made, plain in (
                        (
                            layer.add_norm(x, delta, weight, 1e-5, rounding)[1],
                            layer.add_norm(x, delta, weight, 1e-5)[1],
                        ),
                        (layer.gate(x, delta, "silu", rounding), layer.gate(x, delta)),
                    ):
                        later = rounding(plain)
                        assert isinstance(made, Rounded) and made.key == later.key
                        assert torch.equal(made.codes, later.codes)
                        assert torch.equal(made.scales.nan_to_num(7e8), later.scales.nan_to_num(7e8))


def test_what_is_narrowed_where_it_is_made_has_the_bits_of_narrowing_it_later() -> None:
    from test_triton_linear import _cuda, _weight

    from isobit.kernels.gpu.bind import bind
    from isobit.kernels.gpu.prepare import Narrowing

    layer, generator = layers(), torch.Generator().manual_seed(10)
    for k in (1024, 11008, 20480):
        linear = bind(_cuda(_weight("int4", 256, k, generator)), None, None, None)
        narrowing = linear.rounding(1100, torch.bfloat16)
        if not isinstance(narrowing, Narrowing):
            pytest.skip("int4 is not widened once for prompts here")
        weight = torch.rand(k, generator=generator).cuda() + 0.5
        x, delta = (torch.randn(1100, k, generator=generator).to("cuda", torch.bfloat16) for _ in range(2))
        x[3, 7], x[4, 8], x[5], x[6] = float("inf"), float("nan"), 0.0, 1e-30
        turns = torch.stack((x, delta), dim=2).view(1100, 2 * k)
        for found, plain in (
            (layer.norm(x, weight, 1e-5, narrowing), layer.norm(x, weight, 1e-5)),
            (layer.add_norm(x, delta, weight, 1e-5, narrowing)[1], layer.add_norm(x, delta, weight, 1e-5)[1]),
            (layer.gate(x, delta, "silu", narrowing), layer.gate(x, delta)),
            (layer.gate(turns[:, ::2], turns[:, 1::2], "silu", narrowing), layer.gate(x, delta)),
        ):
            wanted = narrowing(plain)
            assert isinstance(found, Rounded) and found.key == wanted.key
            assert torch.equal(found.scales, wanted.scales)
            assert torch.equal(found.codes.isnan(), wanted.codes.isnan())
            assert torch.equal(found.codes.nan_to_num(7.0), wanted.codes.nan_to_num(7.0))
            assert torch.equal(linear(found).nan_to_num(7.0), linear(plain).nan_to_num(7.0))


@pytest.mark.parametrize("scheme", ["fp8", "fp8-block", "int8", "int4"])
def test_linears_of_one_input_round_it_once_with_the_same_bits(scheme: str) -> None:
    from test_triton_linear import _cuda, _weight

    from isobit.formats.schemes import SCHEMES
    from isobit.kernels.gpu.bind import bind

    generator = torch.Generator().manual_seed(9)
    acts = SCHEMES[scheme].activations
    bound = [bind(_cuda(_weight(scheme, n, 1280, generator)), acts, None, None) for n in (512, 128, 128)]
    for tokens in (1, 5, 16, 40, 300):
        x = torch.randn(tokens, 1280, generator=generator).to("cuda", torch.bfloat16)
        for one, linear in zip(project(bound, x), bound, strict=True):
            assert torch.equal(one, linear(x)), tokens
