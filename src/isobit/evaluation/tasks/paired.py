"""Two models on the same items: how far apart they are, and what of that may be chance. Pure.

Both answer the same questions, so the difference is taken item by item: questions that are hard for both do not make it
uncertain. The interval is Student's, from the spread of these differences; for quotients of sums (perplexities of texts
of different lengths) from that of their linear part. For right-or-wrong metrics McNemar's exact test counts the
questions that one of the two alone gets right.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from isobit.errors import UsageError
from isobit.evaluation.statistics import LEAST_WINDOWS, Estimate, exp, student
from isobit.evaluation.tasks.results import Metric, TaskResult, TaskRun

LEAST_ITEMS = LEAST_WINDOWS
"""Below so many items there is no interval."""


@dataclass(frozen=True)
class Paired:
    """A model against its source in one metric of one task.

    Attributes:
        change: model minus source; for perplexities model divided by source; with its 95 % interval.
        ratio: whether ``change`` is the quotient.
        only_source: items that the source alone gets right; None where items are not right or wrong.
        only_model: items that the model alone gets right.
        p: of McNemar's exact test, two-sided: how often chance alone makes such a difference.
    """

    change: Estimate
    ratio: bool
    only_source: int | None = None
    only_model: int | None = None
    p: float | None = None


def agreement(source: TaskResult, model: TaskResult) -> float | None:
    """The share of items that both answer alike; None where there are no answers."""
    require_same_items(source, model)
    if not source.answers:
        return None
    return sum(a == b for a, b in zip(source.answers, model.answers, strict=True)) / len(source.answers)


def compare(source: TaskResult, model: TaskResult, name: str) -> Paired | None:
    """Two models in one metric of a task; None where its items do not say how it is made.

    Raises:
        UsageError: they were not asked the same.
    """
    require_same_items(source, model)
    one = next((metric for metric in source.metrics if metric.name == name), None)
    other = next((metric for metric in model.metrics if metric.name == name), None)
    if one is None or other is None or "other" in (one.kind, other.kind) or one.kind != other.kind:
        return None
    return _compare(one, other)


def changes(source: TaskRun, model: TaskRun) -> list[dict[str, Any]]:
    """What a model lost in every task and metric that can be compared, as JSON."""
    found: list[dict[str, Any]] = []
    for theirs, ours in zip(source.results, model.results, strict=True):
        if not ours.group:
            pairs = [(metric.name, compare(theirs, ours, metric.name)) for metric in ours.metrics]
            metrics = {name: asdict(paired) for name, paired in pairs if paired is not None}
            found.append({"task": ours.task, "same answers": agreement(theirs, ours), "metrics": metrics})
    return found


def require_same_items(source: TaskResult, model: TaskResult) -> None:
    """Check that two models were asked the same.

    Raises:
        UsageError: they were not.
    """
    if (source.task, source.shots, source.ids) != (model.task, model.shots, model.ids):
        raise UsageError(
            f"{source.task}: the two models were not asked the same items; compare runs of the same task files and data"
        )


def _compare(one: Metric, other: Metric) -> Paired:
    ours, theirs = np.array(other.items), np.array(one.items)
    gap = ours - theirs
    if one.kind in ("weighted_perplexity", "bits"):
        estimate = _quotient(-gap, np.array(one.weights))
        if one.kind == "bits":
            return Paired(estimate.map(lambda nats: nats / math.log(2)), ratio=False)
        return Paired(estimate.map(exp), ratio=True)
    if one.kind == "perplexity":
        return Paired(_mean(-gap).map(exp), ratio=True)
    if not np.isin([ours, theirs], (0.0, 1.0)).all():
        return Paired(_mean(gap), ratio=False)
    alone = int(((theirs == 1) & (ours == 0)).sum()), int(((theirs == 0) & (ours == 1)).sum())
    return Paired(_mean(gap), False, *alone, p=mcnemar(*alone))


def _mean(values: np.ndarray) -> Estimate:
    return _quotient(values, np.ones_like(values))


def _quotient(values: np.ndarray, weights: np.ndarray) -> Estimate:
    """``sum(values) / sum(weights)`` with its interval."""
    count, total = values.size, float(weights.sum())
    value = float(values.sum()) / total
    if count < LEAST_ITEMS:
        return Estimate(value, None, None)
    rest = values - value * weights
    error = math.sqrt(float((rest**2).sum()) * count / (count - 1)) / total
    reach = student(count - 1) * error
    return Estimate(value, value - reach, value + reach)


def mcnemar(one: int, other: int) -> float:
    """The chance of a split at least as uneven among ``one + other`` tosses of a fair coin."""
    tosses, few = one + other, min(one, other)
    if tosses == 0:
        return 1.0
    logs = [_log_choices(tosses, k) - tosses * math.log(2) for k in range(few + 1)]
    return min(1.0, 2 * math.fsum(math.exp(term) for term in logs))


def _log_choices(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def kind_of(value: float, items: Sequence[object]) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """(kind, values, weights) of a metric's items: the way of making a figure of them that gives ``value``."""
    pairs = [item for item in items if isinstance(item, tuple | list) and len(item) == 2]
    if items and len(pairs) == len(items) and all(_is_number(part) for pair in pairs for part in pair):
        logs, weights = tuple(float(a) for a, _ in pairs), tuple(float(b) for _, b in pairs)
        mean = math.fsum(logs) / math.fsum(weights) if math.fsum(weights) else math.nan
        for kind, found in (("weighted_perplexity", exp(-mean)), ("bits", -mean / math.log(2))):
            if math.isclose(found, value, rel_tol=1e-9):
                return kind, logs, weights
    elif items and all(_is_number(item) for item in items):
        values = tuple(float(item) for item in items)  # type: ignore[arg-type]
        mean = math.fsum(values) / len(values)
        for kind, found in (("mean", mean), ("perplexity", exp(-mean))):
            if math.isclose(found, value, rel_tol=1e-9, abs_tol=1e-12):
                return kind, values, ()
    return "other", (), ()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.integer | np.floating | np.bool_) and math.isfinite(float(value))
