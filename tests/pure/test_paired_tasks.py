"""Two models on the same items: differences, their intervals and McNemar's test, against independent sums."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from isobit.errors import UsageError
from isobit.evaluation.tasks.paired import agreement, changes, compare, kind_of, mcnemar
from isobit.evaluation.tasks.results import Metric, TaskResult, TaskRun


def result(metric: Metric, answers: tuple[str, ...] = ()) -> TaskResult:
    ids = tuple(f"item {place}" for place in range(len(metric.items)))
    return TaskResult("task", "1", 0, len(ids), ids, answers, (metric,))


def metric(kind: str, items: list[float], weights: list[float] | None = None) -> Metric:
    return Metric("m", 0.0, None, None, kind, tuple(items), tuple(weights or ()))


def test_right_and_wrong_items_are_compared_one_by_one() -> None:
    source, model = [1.0, 1, 1, 0, 0, 1, 1, 1], [1.0, 0, 0, 0, 1, 1, 1, 0]
    found = compare(result(metric("mean", source)), result(metric("mean", model)), "m")
    assert found is not None and not found.ratio
    gaps = np.array(model) - np.array(source)
    assert found.change.value == pytest.approx(gaps.mean())
    # 2.3646 is Student's 97.5th percentile at 7 degrees of freedom.
    reach = 2.3646 * gaps.std(ddof=1) / math.sqrt(8)
    assert found.change.low == pytest.approx(gaps.mean() - reach, rel=2e-3)
    assert found.change.high == pytest.approx(gaps.mean() + reach, rel=2e-3)
    assert (found.only_source, found.only_model) == (3, 1)
    assert found.p == pytest.approx(10 / 16)  # two-sided: 2 * (1 + 4) / 16


@pytest.mark.parametrize(
    ("one", "other", "p"), [(0, 0, 1.0), (5, 5, 1.0), (0, 5, 2 / 32), (1, 9, 22 / 1024), (400, 500, 0.000956)]
)
def test_mcnemars_test_is_the_binomial_one(one: int, other: int, p: float) -> None:
    assert mcnemar(one, other) == pytest.approx(p, rel=2e-3)
    assert mcnemar(other, one) == mcnemar(one, other)


def test_perplexities_are_compared_as_quotients_weighted_by_their_words() -> None:
    words, source, model = [10.0, 40, 5, 20, 25], [-20.0, -60, -15, -44, -50], [-22.0, -63, -15.5, -47, -55]
    kinds = {}
    for kind in ("weighted_perplexity", "bits"):
        found = compare(result(metric(kind, source, words)), result(metric(kind, model, words)), "m")
        assert found is not None
        kinds[kind] = found
    per_word = (sum(source) - sum(model)) / sum(words)
    assert kinds["weighted_perplexity"].ratio and not kinds["bits"].ratio
    assert kinds["weighted_perplexity"].change.value == pytest.approx(math.exp(per_word))
    assert kinds["bits"].change.value == pytest.approx(per_word / math.log(2))
    low, high = kinds["bits"].change.low, kinds["bits"].change.high
    assert low is not None and high is not None and low < per_word / math.log(2) < high


def test_the_interval_of_a_quotient_holds_in_most_cases() -> None:
    rng, holds, truth = np.random.default_rng(5), 0, 0.1
    for _ in range(400):
        weights = rng.integers(5, 60, size=30).astype(float)
        source = -2.0 * weights
        model = source - weights * (truth + 0.2 * rng.standard_normal(30))
        found = compare(
            result(metric("bits", list(source), list(weights))), result(metric("bits", list(model), list(weights))), "m"
        )
        assert found is not None and found.change.low is not None and found.change.high is not None
        holds += found.change.low <= truth / math.log(2) <= found.change.high
    assert 0.90 < holds / 400 < 0.985


def test_few_items_have_no_interval() -> None:
    found = compare(result(metric("mean", [1.0, 0, 1])), result(metric("mean", [0.0, 0, 1])), "m")
    assert found is not None and (found.change.low, found.change.high) == (None, None)


def test_what_is_not_made_of_items_is_not_compared() -> None:
    other = metric("other", [])
    assert compare(result(other), result(other), "m") is None
    assert compare(result(metric("mean", [1.0])), result(metric("mean", [1.0])), "no such metric") is None


def test_other_items_are_refused() -> None:
    one, two = result(metric("mean", [1.0, 0.0])), result(metric("mean", [1.0, 0.0]))
    with pytest.raises(UsageError, match="task: the two models were not asked the same"):
        compare(one, replace(two, ids=("item 0", "another")), "m")
    with pytest.raises(UsageError, match="not asked the same"):
        agreement(one, replace(two, shots=5))


def test_agreement_is_of_answers_right_or_wrong() -> None:
    one = result(metric("mean", [0.0, 0, 1]), ("1", "0", "2"))
    assert agreement(one, replace(one, answers=("1", "2", "2"))) == pytest.approx(2 / 3)
    assert agreement(result(metric("mean", [0.0])), result(metric("mean", [0.0]))) is None


def test_a_metrics_kind_is_what_gives_its_value() -> None:
    assert kind_of(0.25, [1.0, 0, 0, 0])[0] == "mean"
    assert kind_of(0.5, [True, False])[1] == (1.0, 0.0)
    assert kind_of(math.exp(1.5), [-1.0, -2.0])[0] == "perplexity"
    assert kind_of(math.exp(2.0), [(-4.0, 1.0), (-2.0, 2.0)])[0] == "weighted_perplexity"
    assert kind_of(2.0 / math.log(2), [(-4.0, 1), (-2.0, 2)]) == ("bits", (-4.0, -2.0), (1.0, 2.0))
    assert kind_of(0.7, [1.0, 0, 0, 0]) == ("other", (), ())  # made in a way that we do not know
    assert kind_of(0.5, [None, 1.0])[0] == "other"
    assert kind_of(1.0, [])[0] == "other"


def test_changes_leave_groups_out() -> None:
    row = result(metric("mean", [1.0, 0, 1, 1]), ("1", "0", "1", "1"))
    group = replace(row, task="group", group=True, ids=(), answers=())
    run = TaskRun((row, group), "", 10, None, (), "0.4.13", "cpu", "2026-01-01")
    (found,) = changes(run, run)
    assert found["task"] == "task" and found["same answers"] == 1.0
    assert found["metrics"]["m"]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
