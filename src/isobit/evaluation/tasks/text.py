"""What tasks found as a table, for the terminal, Markdown and the report. Pure."""

from __future__ import annotations

from isobit.evaluation import wording
from isobit.evaluation.statistics import CONFIDENCE
from isobit.evaluation.tasks.evaluate import TaskComparison
from isobit.evaluation.tasks.paired import Paired, agreement, compare
from isobit.evaluation.tasks.results import Metric, TaskResult

_ALONE = (
    wording.Column("task", number=False),
    wording.Column("items"),
    wording.Column("metric", number=False),
    wording.Column("model", number=False),
    wording.Column("value"),
)
_PAIRED = (
    wording.Column("change"),
    wording.Column(f"{100 * CONFIDENCE:.0f} %"),
    wording.Column("p"),
    wording.Column("same answers"),
)
LEGEND = (
    "Value: with the harness's standard error. Change: against the source on the same items, with its interval from "
    "the items' own differences; perplexities as a quotient. p: McNemar's exact test of the items that one of the two "
    "alone gets right. Same answers: items that both answer alike, right or wrong."
)


def columns(found: TaskComparison) -> tuple[wording.Column, ...]:
    """The columns of the table."""
    return _ALONE if found.source is None else (*_ALONE, *_PAIRED)


def rows(found: TaskComparison) -> list[list[str]]:
    """The cells of the table: task by task, metric by metric, the source first."""
    cells: list[list[str]] = []
    tasks = [row.task for row in found.everyone[0][1].results]
    for place, task in enumerate(tasks):
        for metric in found.everyone[0][1].results[place].metrics:
            for number, (name, run) in enumerate(found.everyone):
                row = run.results[place]
                mine = next((one for one in row.metrics if one.name == metric.name), None)
                if mine is not None:
                    is_source = found.source is not None and number == 0
                    cells.append(_row(found, task, row, mine, name, is_source, place))
    return cells


def _row(
    found: TaskComparison, task: str, row: TaskResult, metric: Metric, name: str, is_source: bool, place: int
) -> list[str]:
    shots = "" if not row.shots else f", {row.shots} shot{'s' if row.shots > 1 else ''}"
    label = f"{name} (source)" if is_source else name
    first = [
        f"{task}{shots}",
        f"{row.count}" if not row.group else "",
        metric.name + _arrow(metric),
        label,
        _value(metric),
    ]
    if found.source is None:
        return first
    if is_source or row.group:
        return [*first, "", "", "", ""]
    source = found.source[1].results[place]
    return [*first, *_changes(compare(source, row, metric.name), agreement(source, row))]


def _arrow(metric: Metric) -> str:
    return {True: " (more is better)", False: " (less is better)", None: ""}[metric.higher]


def _value(metric: Metric) -> str:
    show = wording.decimals(4)
    return show(metric.value) + ("" if metric.error is None else f" ± {show(metric.error)}")


def _changes(paired: Paired | None, same: float | None) -> list[str]:
    agreed = "" if same is None else wording.percent(same)
    if paired is None:
        return ["", "", "", agreed]
    show = "x{:.4f}".format if paired.ratio else "{:+.4f}".format
    change = paired.change
    span = (
        ""
        if change.low is None or change.high is None or change.low == change.high
        else f"{show(change.low)} to {show(change.high)}"
    )
    return [show(change.value), span, "" if paired.p is None else f"{paired.p:.3f}", agreed]


def said(found: TaskComparison) -> list[str]:
    """What figures depend on, a sentence each: where begin-of-text stands, what was cut, what ran the models."""
    lines: dict[str, list[str]] = {}
    for name, run in found.everyone:
        lines.setdefault(f"begin-of-text: {run.bos}", []).append(name)
        if run.template is not None:
            lines.setdefault(f"questions are conversations (template {run.template!r})", []).append(name)
        lines.setdefault(f"ran on {run.path}", []).append(name)
        for sentence in run.seen:
            lines.setdefault(sentence, []).append(name)
    harness = ", ".join(sorted({run.harness for _, run in found.everyone}))
    limit = "" if found.setup.limit is None else f"; only {_limit(found.setup.limit)} of each task: no figure to quote"
    return [
        f"lm-evaluation-harness {harness}{limit}",
        *(f"{', '.join(names)}: {line}" for line, names in lines.items()),
    ]


def _limit(limit: float) -> str:
    return f"{100 * limit:g} % of the items" if limit < 1 else f"the first {int(limit)} items"


def describe(found: TaskComparison) -> str:
    """The table and what belongs to it."""
    legend = [] if found.source is None else ["", wording.wrap(LEGEND)]
    return "\n".join([wording.table(columns(found), rows(found)), *legend, "", *said(found)])
