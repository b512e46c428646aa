"""Windows, perplexity and bits per byte: every token counted once, the numbers equal to independent computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fake_model import FakeModel, TableModel

from isobit.engine import runner, scoring
from isobit.errors import ModelError, UsageError
from isobit.evaluation.likelihood import likelihood, token_logprobs
from isobit.evaluation.statistics import WindowBootstrap
from isobit.evaluation.windows import Window, spread, window_of_tokens, windows


def random_table(vocab: int = 17) -> torch.Tensor:
    return torch.randn(vocab, vocab, generator=torch.Generator().manual_seed(0))


def text_ids(count: int, vocab: int = 17, seed: int = 1) -> list[int]:
    return torch.randint(vocab, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def scored_positions(chosen: list[Window], ids: list[int], ctx: int, stride: int) -> list[int]:
    """Positions in the text that windows score; ids are distinct, so a token tells its position."""
    where = {token: position for position, token in enumerate(ids)}
    return [where[token] for window in chosen for token in window.ids[window.first_scored :]]


@pytest.mark.parametrize("count", [2, 3, 7, 8, 9, 16, 17, 40, 41])
@pytest.mark.parametrize(("ctx", "stride"), [(8, 8), (8, 4), (8, 3), (8, 1), (2, 1), (2, 2), (64, 64)])
def test_every_token_is_scored_at_most_once_with_the_context_promised(count: int, ctx: int, stride: int) -> None:
    ids = list(range(1000, 1000 + count))
    chosen = windows(ids, ctx, stride)
    positions = scored_positions(chosen, ids, ctx, stride)
    assert positions == sorted(set(positions))
    assert all(len(window.ids) <= ctx and window.first_scored >= 1 for window in chosen)
    unscored = set(range(count)) - set(positions)
    if stride < ctx:
        assert unscored == {0}
        assert all(window.first_scored >= ctx - stride for window in chosen[1:])
    else:
        assert unscored == set(range(0, count, ctx))


def test_windows_refuse_what_scores_nothing() -> None:
    with pytest.raises(UsageError, match="has 1 tokens"):
        windows([5], 8)
    with pytest.raises(UsageError, match="context of 1"):
        windows([5, 6], 1)
    with pytest.raises(UsageError, match="stride 9"):
        windows([5, 6], 8, 9)


def test_spread_takes_full_windows_from_the_whole_text() -> None:
    every = windows(list(range(1000)), 10)
    chosen = spread(every, 90)
    assert len(chosen) == 10
    assert [window.ids[0] for window in chosen] == list(range(50, 1000, 100))
    assert spread(every, None) == every
    assert spread(every, 10**9) == every
    assert len(spread(windows(list(range(1003)), 10), 20)[-1].ids) == 10
    assert len(spread(every, 1)) == 1


def test_every_token_is_read_once_and_steps_stay_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = TableModel(random_table()), text_ids(100)
    chosen = windows(ids, 8, 3)
    monkeypatch.setattr(runner, "_SCORED_ROWS", 5)
    sequences = [(window.ids, window.first_scored) for window in chosen]
    found: dict[tuple[int, int], int] = {}
    for rows in scoring.read([model], sequences, longest=8, chunk=24):
        assert len(rows.logits[0]) == len(rows.places) <= 5
        pairs = zip(rows.sequences.tolist(), rows.places.tolist(), strict=True)
        for pair, token, logits in zip(pairs, rows.tokens.tolist(), rows.logits[0], strict=True):
            assert pair not in found
            found[pair] = token
            assert torch.equal(logits, model.table[chosen[pair[0]].ids[pair[1] - 1]])
    expected = {
        (number, at): window.ids[at]
        for number, window in enumerate(chosen)
        for at in range(window.first_scored, len(window.ids))
    }
    assert found == expected
    assert max(model.calls) <= 24 and sum(model.calls) == sum(len(window.ids) for window in chosen)


def test_perplexity_of_a_table_model_is_the_closed_form() -> None:
    model, ids = TableModel(random_table()), text_ids(500)
    chosen = windows(ids, 32, 16)
    logp = torch.log_softmax(model.table.double(), dim=1)
    expected = -np.mean([logp[a, b].item() for a, b in zip(ids, ids[1:], strict=False)])
    found = likelihood(model, chosen, bytes_per_token=2.5)
    assert found.tokens == 499
    assert found.perplexity.value == pytest.approx(math.exp(expected), rel=1e-12)
    assert found.bits_per_byte.value == pytest.approx(expected / math.log(2) / 2.5, rel=1e-12)
    assert found.perplexity.low < found.perplexity.value < found.perplexity.high


def test_perplexity_equals_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval()

    model = FakeModel(97, lambda ids: reference(torch.tensor([ids])).logits[0, -1])
    ids = text_ids(150, vocab=97)
    chosen = windows(ids, 40)
    total, count = 0.0, 0
    with torch.inference_mode():
        for begin in range(0, 150, 40):  # the loss of transformers is the mean over a window's tokens but the first
            part = torch.tensor([ids[begin : begin + 40]])
            total += reference(part, labels=part).loss.double().item() * (part.shape[1] - 1)
            count += part.shape[1] - 1
    found = likelihood(model, chosen, bytes_per_token=1.0)
    assert found.tokens == count
    assert found.perplexity.value == pytest.approx(math.exp(total / count), rel=1e-6)


def test_batching_does_not_change_the_result() -> None:
    ids = text_ids(300)
    whole = token_logprobs(TableModel(random_table()), windows(ids, 300))
    parts = token_logprobs(TableModel(random_table()), windows(ids, 20, 7))
    assert np.allclose(whole, parts, rtol=0, atol=1e-12)


def test_a_model_that_gives_nan_is_refused_by_name() -> None:
    model = TableModel(random_table())
    model.table[3] = math.nan
    with pytest.raises(ModelError, match=r"broken: the likelihood is NaN or infinite for \d+ of 199 tokens"):
        token_logprobs(model, windows(text_ids(200), 200), "broken")


# ---------------------------------------------------------------------- intervals


def correlated_tokens(rng: np.random.Generator, num_windows: int, length: int) -> np.ndarray:
    """Tokens of one window share a level: mean 0, most of the variance between windows."""
    return (rng.normal(size=(num_windows, 1)) + 0.5 * rng.normal(size=(num_windows, length))).reshape(-1)


def test_intervals_cover_the_truth_although_tokens_of_a_window_are_correlated() -> None:
    rng = np.random.default_rng(0)
    window = np.repeat(np.arange(40), 25)
    covered, too_narrow = 0, 0
    for _ in range(200):
        values = correlated_tokens(rng, 40, 25)
        estimate = WindowBootstrap(window, resamples=300).mean(values)
        covered += estimate.low <= 0 <= estimate.high
        naive = 1.96 * values.std() / math.sqrt(values.size)
        too_narrow += abs(values.mean()) > naive
    assert 182 <= covered <= 198  # 95 % of 200 is 190
    assert too_narrow > 80  # treating tokens as independent would be wrong about half of the time


def test_quantile_is_the_one_of_the_sorted_values() -> None:
    rng = np.random.default_rng(1)
    values, window = rng.exponential(size=1000), np.repeat(np.arange(20), 50)
    estimate = WindowBootstrap(window).quantile(values, 0.99)
    assert estimate.value == np.sort(values)[989]
    assert estimate.low <= estimate.value <= estimate.high


def test_resampled_quantiles_equal_those_of_resampled_tokens() -> None:
    rng = np.random.default_rng(2)
    values, window = rng.exponential(size=60), np.repeat(np.arange(6), 10)
    bootstrap = WindowBootstrap(window, seed=3, resamples=50)
    direct = []
    for draw in bootstrap._draws.astype(int):
        tokens = np.concatenate([np.tile(values[window == w], times) for w, times in enumerate(draw) if times])
        direct.append(np.quantile(tokens, 0.9, method="inverted_cdf"))
    reach = 2.5706 * np.log(direct).std() * math.sqrt(6 / 5)  # Student's t of 5 degrees of freedom
    estimate = bootstrap.quantile(values, 0.9)
    assert math.log(estimate.high / estimate.value) == pytest.approx(reach, rel=1e-3)
    assert math.log(estimate.value / estimate.low) == pytest.approx(reach, rel=1e-3)


def test_the_bootstrap_repeats() -> None:
    values, window = np.arange(40.0), np.repeat(np.arange(4), 10)
    assert WindowBootstrap(window, seed=7).mean(values) == WindowBootstrap(window, seed=7).mean(values)
    assert window_of_tokens(windows(list(range(20)), 10)).tolist() == [0] * 9 + [1] * 9
