"""Latent attention on a GPU: against float64, in mixtures, in every format of the cache, in graphs, and alone."""

from __future__ import annotations

import latent_oracle as oracle
import layer_oracle
import pytest
import torch

from isobit.kernels.cached import rounded as as_cached

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device; there is none here"),
]
# What rounding a result leaves, root mean square, as in test_layer_ops.py, and a little more for what heads find.
ROUNDED = {torch.bfloat16: 2.8e-3, torch.float16: 5e-4}
MIXTURE = [(1, 600), (1, 0), (1, 5), (40, 100), (2, 257), (1, 3000)]
SIZES = {"V2-Lite": (16, 128, 64, 128, 512), "flash": (20, 192, 64, 256, 512), "V3": (128, 128, 64, 128, 512),
         "tiny": (3, 16, 4, 16, 24)}  # fmt: skip


def layer(lowering: str | None = None, *, alike: bool = False):
    from isobit.kernels.gpu import card
    from isobit.kernels.gpu.latent import GpuLatent
    from isobit.kernels.gpu.workspace import Workspace
    from isobit.targets.table import target

    machine = card.machine(target(lowering) if lowering else None)
    return GpuLatent(machine, Workspace(torch.device("cuda")), alike=alike)


@pytest.mark.parametrize("lowering", [None, "sm_86"])
@pytest.mark.parametrize("sizes", SIZES)
def test_latent_attention_is_that_of_float64(sizes: str, lowering: str | None) -> None:
    for dtype in (torch.bfloat16,) if sizes == "V3" else ROUNDED:
        spec = oracle.spec(*SIZES[sizes], dtype, "cuda", interleaved=sizes != "flash")
        given = oracle.batch(spec, MIXTURE, 64, dtype, 1, "cuda")
        wanted, latents, keys = oracle.attention(spec, given)
        found = layer(lowering).latent(spec, *given)
        assert layer_oracle.error(found, wanted) < ROUNDED[dtype], dtype
        real = given[-1].slots >= 0
        assert not found[~real].any()
        for cache, exact in ((given[4].keys, latents), (given[4].values, keys)):
            stored = oracle.stored(given[-1], cache)
            assert layer_oracle.error(stored, exact[real.cpu()]) < 1e-4  # a rounding to the other side


@pytest.mark.parametrize("element", ["e4m3fn", "e5m2", "int8"])
def test_a_cache_of_codes_is_that_of_float64(element: str) -> None:
    for dtype in (torch.bfloat16,) if element == "e5m2" else ROUNDED:
        spec = oracle.spec(*SIZES["V2-Lite"], dtype, "cuda")
        given = oracle.batch(spec, MIXTURE, 64, dtype, 1, "cuda", element)
        plain = oracle.batch(spec, MIXTURE, 64, dtype, 1, "cuda")
        wanted, _, _ = oracle.attention(spec, given)
        assert layer_oracle.error(layer().latent(spec, *given), wanted) < 1.5 * ROUNDED[dtype], dtype
        layer().latent(spec, *plain)
        for held, numbers in zip(given[4].parts, plain[4].tensors, strict=True):
            law = as_cached(oracle.stored(plain[-1], numbers), given[4].form, dtype)
            for part, expected in zip(held.tensors, law.tensors, strict=True):
                assert torch.equal(oracle.stored(given[-1], part), expected)


def test_alike_a_token_has_the_same_bits_alone_in_a_batch_and_in_chunks() -> None:
    spec = oracle.spec(*SIZES["V2-Lite"], torch.bfloat16, "cuda")
    given = oracle.batch(spec, MIXTURE, 64, torch.bfloat16, 2, "cuda")
    made = layer(alike=True)
    together = made.latent(spec, *given)
    for b, (_, length) in enumerate(MIXTURE):
        if length:
            part, own = oracle.alone(given, b)
            assert torch.equal(made.latent(spec, *part), together[own]), b
    whole = oracle.batch(spec, [(300, 300)], 64, torch.bfloat16, 3, "cuda")
    prompt = made.latent(spec, *whole)
    for begin, end in ((0, 1), (1, 2), (2, 131), (131, 300)):
        part, own = oracle.within(whole, begin, end)
        assert torch.equal(made.latent(spec, *part), prompt[own]), begin


def test_a_recorded_step_reads_lengths_on_the_device() -> None:
    spec = oracle.spec(*SIZES["V2-Lite"], torch.bfloat16, "cuda")
    first, second = (
        oracle.batch(spec, [(1, 700), (1, 0), (1, length)], 64, torch.bfloat16, 4, "cuda") for length in (90, 640)
    )
    made = layer()
    wanted = [made.latent(spec, *one).clone() for one in (first, second)]
    graph = torch.cuda.CUDAGraph()
    columns = max(one[-1].table.shape[1] for one in (first, second))
    inputs = [part.clone() for part in first[:4]]
    held = type(first[4])(*(torch.zeros_like(part) for part in second[4].tensors))
    sequences = type(first[-1])(
        first[-1].starts.clone(), first[-1].lengths.clone(), torch.zeros(3, columns, dtype=torch.int32, device="cuda"),
        first[-1].slots.clone(), 64, 1, 4096,
    )  # fmt: skip
    made.latent(spec, *inputs, held, sequences)
    with torch.cuda.graph(graph):
        found = made.latent(spec, *inputs, held, sequences)
    for one, exact in zip((first, second), wanted, strict=True):
        for to, of in zip(inputs, one[:4], strict=True):
            to.copy_(of)
        for to, of in zip(held.tensors, one[4].tensors, strict=True):
            to[: len(of)].copy_(of)
        sequences.lengths.copy_(one[-1].lengths)
        sequences.slots.copy_(one[-1].slots)
        sequences.table[:, : one[-1].table.shape[1]].copy_(one[-1].table)
        graph.replay()
        assert torch.equal(found, exact)
