"""Batches of sequences of different lengths, through every cache: each token's result is that of its sequence alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from families import make_model, save, token_ids
from torch import Tensor

from isobit.engine.graphs import Inputs
from isobit.engine.request import Part
from isobit.errors import CapacityError, UsageError
from isobit.formats.rules import Policy, Rule
from isobit.formats.schemes import scheme
from isobit.kernels.cpu import library as cpu_library
from isobit.models.batch import Batch, lay_out
from isobit.models.cache.memory import Memory
from isobit.models.cache.paged import PagedCache
from isobit.models.cache.protocol import CachedSequence
from isobit.models.decoder import Decoder
from isobit.models.weights import load_model
from isobit.quantizer.driver import quantize

PROBLEM = cpu_library.problem()
# Rounded activations: what is computed with a token changes nothing of it. Products of floats are summed in one order
# by few rows and in another by many, in the last bits.
ROWS = [
    pytest.param("cpu", marks=pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))),
    pytest.param("reference"),
]
MODELS = (("Gemma2ForCausalLM", "int8"), ("MistralForCausalLM", "fp8"), ("Qwen3ForCausalLM", None))
LENGTHS = (90, 1, 17, 66, 130)  # tokens of each sequence: shorter and longer than a block and than windows


@pytest.fixture(scope="module", params=MODELS, ids=str)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    architecture, name = request.param
    root = tmp_path_factory.mktemp("batches")
    made = save(make_model(architecture, tie_word_embeddings=False), root / "plain")
    if name is None:
        return made
    quantize(made, root / name, Policy(scheme(name), (Rule("lm_head", name),)), progress=False)
    return root / name


@pytest.fixture(params=ROWS)
def loaded(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Decoder, float]:
    monkeypatch.setenv("ISOBIT_KERNEL", request.param)
    model = load_model(folder)
    assert model.layer_ops.name == request.param and model.why_by_layer is None
    exact = request.param == "cpu" and folder.name != "plain"
    return model, 0.0 if exact else 1e-5 if folder.name == "plain" else 0.05


def sequences() -> list[Tensor]:
    return [token_ids(length, batch=1)[0] for length in LENGTHS]


def close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    if tolerance == 0:
        return torch.equal(found, wanted)
    return bool(((found - wanted).abs().max() <= tolerance * wanted.abs().max()).item())


@torch.inference_mode()
def test_sequences_of_different_lengths_in_one_call(loaded: tuple[Decoder, float]) -> None:
    model, tolerance = loaded
    alone = [model.forward(Batch.of([ids])) for ids in sequences()]
    together = model.forward(Batch.of(sequences()))
    assert together.shape == (sum(LENGTHS), model.config.vocab_size)
    for found, wanted in zip(torch.split(together, LENGTHS), alone, strict=True):
        assert close(found, wanted, tolerance)
    ranges = [range(0, 90, 7), range(0), range(16, 17), range(3, 5), range(130)]
    some = model.forward(Batch.of(sequences(), wanted=ranges))
    assert close(some, torch.cat([one[list(at)] for one, at in zip(alone, ranges, strict=True)]), tolerance)
    last = model.forward(Batch.of(sequences(), wanted="last"))
    assert close(last, torch.stack([one[-1] for one in alone]), tolerance)


def caches(model: Decoder) -> list[tuple[Memory, list[CachedSequence]]]:
    """A contiguous cache, and a paged one whose blocks lie in disorder and which has to grow."""
    contiguous = model.new_cache(len(LENGTHS), max(LENGTHS))
    paged = model.paged_cache(4)
    paged.grow(9)
    assert paged.moves == 1
    blocks = [(7, 2), (0,), (5,), (8, 1), (6, 3, 4)]
    members = [CachedSequence(held, length) for held, length in zip(blocks, LENGTHS, strict=True)]
    return [(contiguous, list(contiguous.sequences)), (paged, members)]


def advance(cache: Memory, members: list[CachedSequence], counts: list[int]) -> None:
    """Counts tokens that were fed, where the cache does not do that itself."""
    if isinstance(cache, PagedCache):
        for one, count in zip(members, counts, strict=True):
            one.length += count


@torch.inference_mode()
def test_prompts_and_single_tokens_in_one_call(loaded: tuple[Decoder, float]) -> None:
    model, tolerance = loaded
    wanted = [model.forward(Batch.of([ids])) for ids in sequences()]
    for cache, members in caches(model):
        for layer in range(model.config.num_layers):
            for memory in cache.memory(layer).tensors:
                memory.fill_(float("nan"))  # what nobody stored, nobody reads
        found: list[list[Tensor]] = [[] for _ in LENGTHS]
        turn = 0
        while any(one.length < length for one, length in zip(members, LENGTHS, strict=True)):
            turn += 1
            parts = [  # some prompts in pieces, some sequences token by token, some not in this turn at all
                (number, sequences()[number][one.length : one.length + (1, 40, 3)[(turn + number) % 3]])
                for number, one in enumerate(members)
                if one.length < LENGTHS[number] and (turn + number) % 4
            ]
            if not parts:
                continue
            batch = cache.batch([ids for _, ids in parts], [members[number] for number, _ in parts])
            logits = torch.split(model.forward(batch, cache), [len(ids) for _, ids in parts])
            advance(cache, [members[number] for number, _ in parts], [len(ids) for _, ids in parts])
            for (number, _), rows in zip(parts, logits, strict=True):
                found[number].append(rows)
        for rows, one in zip(found, wanted, strict=True):
            assert close(torch.cat(rows), one, tolerance), type(cache)


@torch.inference_mode()
def test_a_growing_cache_keeps_what_it_holds(loaded: tuple[Decoder, float]) -> None:
    model, tolerance = loaded
    ids, cache = sequences()[4], model.paged_cache(3)
    first = CachedSequence((2, 0, 1), 130)
    model.forward(cache.batch([ids[:100]], [first]), cache)
    first.length += 100
    cache.grow(2)
    assert (cache.blocks, cache.moves) == (3, 0)
    cache.grow(12)
    assert (cache.blocks, cache.moves) == (12, 1)
    rest = model.forward(cache.batch([ids[100:]], [first]), cache)
    assert close(rest, model.forward(Batch.of([ids]))[100:], tolerance)


@torch.inference_mode()
def test_the_step_that_graphs_record_reads_lengths_where_the_model_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a graph, on the CPU kernels, which read lengths from memory as those of GPUs do."""
    if PROBLEM:
        pytest.skip(PROBLEM)
    model, ids = load_model(folder), sequences()
    cache = model.paged_cache(20)
    blocks = [(3, 7), (19,), (0,)]
    members = [CachedSequence(held, length + 5) for held, length in zip(blocks, LENGTHS[:3], strict=True)]
    model.forward(cache.batch(ids[:3], members), cache)
    advance(cache, members, list(LENGTHS[:3]))
    inputs = Inputs(4, 2, cache.block, torch.device("cpu"))  # a row of padding
    wanted = [list(one) for one in ids[:3]]
    for token in (5, 7, 11):
        parts = [Part(n, one.length, (token + n,), one.blocks, True) for n, one in enumerate(members)]
        inputs.write(parts, (0, 3, 1), (-1, -1, -1))
        found = model.forward(inputs.batch(4, max(LENGTHS[:3]) + 5), cache)[[0, 3, 1]]
        assert bool(found.isfinite().all())
        for number, one in enumerate(members):
            one.length += 1
            wanted[number].append(torch.tensor(token + number))
            alone = model.forward(Batch.of([torch.stack(wanted[number])]))[-1]
            assert close(found[number], alone, 1e-5 if folder.name == "plain" else 0.0)


def test_what_does_not_fit_is_refused_and_changes_nothing(folder: Path) -> None:
    model = load_model(folder)
    cache = model.new_cache(2, 8)
    with pytest.raises(CapacityError, match="room for 8 tokens, not for 9"):
        cache.next([[1], [1] * 9])
    assert cache.lengths == (0, 0)
    with pytest.raises(UsageError, match="not made for this model and batch"):
        model.forward(Batch.of([[1, 2]]), cache)
    with pytest.raises(UsageError, match="no tokens"):
        lay_out([], [], [], 8)
