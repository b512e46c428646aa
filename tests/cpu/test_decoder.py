"""The decoder's own behaviour: cache, windows, embeddings as input, dtypes, determinism, and speed's two paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from running import run
from tiny import HIDDEN, LAYERS, VOCAB, save_model

from isobit.errors import CapacityError, UsageError
from isobit.models.batch import Batch
from isobit.models.decoder import Decoder
from isobit.models.ops.reference import attention_mask
from isobit.models.weights import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("decoder") / "tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> Decoder:
    return load_model(folder)


def ids(tokens: int, batch: int = 1) -> torch.Tensor:
    return torch.randint(0, VOCAB, (batch, tokens), generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize(("begin", "tokens", "window"), [(0, 7, None), (5, 4, None), (0, 9, 3), (6, 5, 4), (9, 1, 4)])
def test_the_mask_is_its_definition(begin: int, tokens: int, window: int | None) -> None:
    mask = attention_mask(begin, tokens, window, torch.float32)
    for row in range(tokens):
        for key in range(begin + tokens):
            at = begin + row
            seen = key <= at and (window is None or key > at - window)
            assert mask[row, key] == (0.0 if seen else float("-inf"))


@pytest.mark.parametrize(("begin", "window"), [(0, None), (90, None), (2, 3)])
def test_one_token_that_sees_everything_needs_no_mask(begin: int, window: int | None) -> None:
    assert attention_mask(begin, 1, window, torch.float32) is None


@torch.inference_mode()
def test_sequences_of_a_batch_do_not_see_each_other(model: Decoder) -> None:
    batch = ids(12, batch=3)
    alone = torch.cat([run(model, row[None]) for row in batch])
    torch.testing.assert_close(run(model, batch), alone, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_later_tokens_change_nothing_before_them(model: Decoder) -> None:
    first = ids(12)
    second = first.clone()
    second[0, 8:] = (second[0, 8:] + 1) % VOCAB
    found, wanted = run(model, second), run(model, first)
    assert torch.equal(found[:, :8], wanted[:, :8]) and not torch.equal(found[:, 8:], wanted[:, 8:])


@torch.inference_mode()
def test_embeddings_stand_for_their_tokens(model: Decoder) -> None:
    tokens = ids(9, batch=2)
    embeds = model.embed_tokens(tokens)
    assert embeds.shape == (2, 9, HIDDEN)
    assert torch.equal(run(model, embeds), run(model, tokens))


@torch.inference_mode()
def test_runs_repeat_bit_for_bit(model: Decoder) -> None:
    assert torch.equal(run(model, ids(30)), run(model, ids(30)))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@torch.inference_mode()
def test_other_compute_dtypes(model: Decoder, folder: Path, dtype: str) -> None:
    low = load_model(folder, dtype=dtype)
    found, wanted = run(low, ids(20)), run(model, ids(20))
    assert found.dtype == torch.float32 and low.embed_tokens(ids(3)).dtype == getattr(torch, dtype)
    assert 0 < (found - wanted).norm() / wanted.norm() < 0.05


@torch.inference_mode()
def test_a_full_cache_is_an_error_and_stays_usable(model: Decoder) -> None:
    cache, tokens = model.new_cache(1, 10), ids(10)
    run(model, tokens[:, :8], cache)
    with pytest.raises(CapacityError, match="room for 10 tokens, not for 11"):
        run(model, ids(3), cache)
    assert cache.lengths[0] == 8
    last = run(model, tokens[:, 8:], cache)
    torch.testing.assert_close(last, run(model, tokens)[:, 8:], rtol=0, atol=1e-4)


def test_impossible_input_is_refused(model: Decoder) -> None:
    with pytest.raises(UsageError, match="either"):
        Batch.of([[1, 2], torch.zeros(2, HIDDEN)])
    for nothing in ([], [[]], [[1], []], torch.zeros(1, 0, dtype=torch.int64)):
        with pytest.raises(UsageError, match="no tokens"):
            Batch.of(list(nothing))


def test_an_impossible_cache_is_refused(model: Decoder) -> None:
    with pytest.raises(CapacityError, match="GiB"):
        model.new_cache(1 << 20, 1 << 40)


def test_linears_are_named_as_in_the_checkpoint(model: Decoder) -> None:
    names = [name for name, _ in model.linears()]
    assert len(names) == len(set(names)) == 7 * LAYERS + 1
    assert {"lm_head", "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"} <= set(names)
