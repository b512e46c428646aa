"""Caches whose groups share a scale (mxfp8, mxfp4, nvfp4) on a GPU: the law's bits, and float64 from these."""

from __future__ import annotations

from dataclasses import replace

import latent_oracle
import layer_oracle as oracle
import pytest
import torch

from isobit.formats.caches import CACHE_FORMATS
from isobit.kernels.cached import rounded
from isobit.kernels.heads import AttentionSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
FORMATS = [row.kv for row in CACHE_FORMATS.values() if row.group]
# What rounding a result leaves, root mean square, as in test_layer_ops.py, and a code that falls to the other side.
LIMITS = {torch.bfloat16: 6e-3, torch.float16: 1.5e-3, torch.float32: 1e-4}
SPECS = {
    "llama": AttentionSpec(32, 32, 128),
    "grouped": AttentionSpec(32, 8, 128),
    "narrow": AttentionSpec(8, 1, 64),
    "gemma": AttentionSpec(8, 4, 256, window=300, softcap=50.0, scale=0.0625),
    "neighbours": AttentionSpec(8, 2, 128, rope_dims=64, interleaved=True),
}
MIXTURES = {
    "decode": [(1, 300), (1, 5), (1, 0), (1, 1), (1, 4097), (1, 128)],
    "mixture": [(1, 1000), (300, 500), (4, 4), (1, 0), (2, 65), (129, 129)],
}


def layers(lowering: str | None = None, *, alike: bool = False):
    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.layer import GpuLayer
    from isobit.kernels.gpu.workspace import Workspace
    from isobit.targets.table import target

    return GpuLayer(card.machine(target(lowering) if lowering else None), Workspace(torch.device("cuda")), alike=alike)


@pytest.mark.parametrize("lowering", [None, "sm_86"])
@pytest.mark.parametrize("kv", FORMATS)
@pytest.mark.parametrize("name", SPECS)
def test_attention_is_that_of_float64(
    name: str, kv: str, lowering: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from isobit.kernels.gpu import attending

    spec, layer = SPECS[name], layers(lowering)
    for dtype in LIMITS:
        for sizes in MIXTURES.values():
            given = oracle.batch(spec, sizes, 64, dtype, 1, "cuda", kv=kv)
            plain = oracle.batch(spec, sizes, 64, dtype, 1, "cuda")
            wanted, _, _ = oracle.attention(spec, given)
            found = layer.attention(spec, *given.arguments)
            assert oracle.error(found, wanted) < LIMITS[dtype], (dtype, sizes)
            with monkeypatch.context() as patched:  # the kernel that stores scales of groups
                patched.setattr(attending, "_is_rare", lambda spec: True)
                layer.rope_append(spec, *plain.arguments)
            for held, numbers in zip(given.cached.parts, (plain.keys, plain.values), strict=True):
                law = rounded(oracle.stored(plain, numbers), given.form, dtype)
                for part, expected in zip(held.tensors, law.tensors, strict=True):
                    assert torch.equal(oracle.stored(given, part), expected), (dtype, tuple(part.shape))


@pytest.mark.parametrize("kv", FORMATS)
def test_values_at_the_ends_of_the_range_have_the_bits_of_the_law(kv: str) -> None:
    spec, layer = AttentionSpec(1, 1, 128), layers()
    for dtype in LIMITS:
        given = oracle.batch(spec, [(10, 10)], 16, dtype, 3, "cuda", kv=kv)
        v, top = given.v, torch.finfo(dtype).max
        v[0], v[1], v[2], v[3], v[4] = 0.0, -0.0, torch.finfo(dtype).tiny, top, v[4] * torch.finfo(dtype).tiny
        v[5, 5], v[6, 70], v[7, 3] = float("nan"), float("inf"), float("-inf")
        v[8] = torch.tensor([1.75, 1.75 - 2**-7, 1.0, 0.25, 0.75, 2.5, 5.0, -0.0]).repeat(16).to(v)
        v[9] = torch.linspace(-7, 7, 128).to(v)
        layer.rope_append(spec, *given.arguments)
        law = rounded(v.view(-1, 1, 128), given.form, dtype)
        for part, expected in zip(given.cached.parts[1].tensors, law.tensors, strict=True):
            assert torch.equal(oracle.stored(given, part).nan_to_num(-1.0), expected.nan_to_num(-1.0)), dtype


@pytest.mark.parametrize("kv", FORMATS)
def test_latent_attention_is_that_of_float64(kv: str) -> None:
    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.latent import GpuLatent
    from isobit.kernels.gpu.workspace import Workspace

    sizes = [(1, 600), (1, 0), (1, 5), (40, 100), (2, 257), (1, 3000)]
    kernels = GpuLatent(card.machine(), Workspace(torch.device("cuda")))
    for dtype in (torch.bfloat16, torch.float16):
        spec = latent_oracle.spec(16, 128, 64, 128, 512, dtype, "cuda")
        given, plain = (latent_oracle.batch(spec, sizes, 64, dtype, 1, "cuda", one) for one in (kv, ""))
        wanted, _, _ = latent_oracle.attention(spec, given)
        assert oracle.error(kernels.latent(spec, *given), wanted) < LIMITS[dtype], dtype
        kernels.latent(spec, *plain)
        for held, numbers in zip(given[4].parts, plain[4].tensors, strict=True):
            law = rounded(latent_oracle.stored(plain[-1], numbers), given[4].form, dtype)
            for part, expected in zip(held.tensors, law.tensors, strict=True):
                assert torch.equal(latent_oracle.stored(given[-1], part), expected), dtype


@pytest.mark.parametrize("kv", FORMATS)
def test_a_token_has_the_same_bits_in_a_prompt_and_alone_where_that_is_asked_for(kv: str) -> None:
    spec, layer = SPECS["grouped"], layers(alike=True)
    for dtype in (torch.bfloat16, torch.float16):
        given = oracle.batch(spec, [(1, 500), (300, 300), (1, 0)], 64, dtype, 10, "cuda", kv=kv)
        together = layer.attention(spec, *given.arguments)
        for position in (0, 1, 63, 64, 200, 299):
            own = slice(1 + position, 2 + position)
            one = replace(
                given.sequences, starts=torch.tensor([0, 1]).int().cuda(), table=given.sequences.table[1:2],
                lengths=torch.tensor([position + 1]).int().cuda(), slots=given.sequences.slots[own], most_new=1,
                most=position + 1,
            )  # fmt: skip
            parts = (part[own] for part in (given.q, given.k, given.v, given.cos, given.sin))
            assert torch.equal(layer.attention(spec, *parts, given.cached, one), together[own]), (dtype, position)


@pytest.mark.parametrize("kv", FORMATS)
def test_a_recorded_graph_gives_the_bits_of_separate_launches(kv: str) -> None:
    spec, layer = SPECS["grouped"], layers()
    given = oracle.batch(spec, [(1, n) for n in (1, 64, 700, 1500)], 64, torch.bfloat16, 6, "cuda", kv=kv)
    layer.reserve(spec, 4, 1, 2048)
    wanted = layer.attention(spec, *given.arguments)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = layer.attention(spec, *given.arguments)
    found.zero_()
    graph.replay()
    assert torch.equal(found, wanted)
