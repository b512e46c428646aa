"""An evaluation in plain text, a line for every figure: what `isobit eval` prints, and `print(evaluation)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from isobit.evaluation import wording
from isobit.evaluation.fidelity import Fidelity
from isobit.evaluation.likelihood import Likelihood
from isobit.evaluation.results import Method, Results
from isobit.evaluation.statistics import CONFIDENCE, Estimate

if TYPE_CHECKING:
    from isobit.evaluation.measure import Evaluation

_ALONE = (
    wording.Column("model", number=False),
    wording.Column("perplexity"),
    wording.Column(f"{100 * CONFIDENCE:.0f} %"),
    wording.Column("bits per byte"),
    wording.Column("tokens"),
)
_INTERVAL = wording.Column(f"{100 * CONFIDENCE:.0f} % of KL mean")


def describe(model: str, own: Likelihood, lost: Fidelity | None, method: Method) -> str:
    """What was measured of a model, with intervals where there are some, and what is to be said about them."""
    windows = f"{own.windows} window{'s' if own.windows > 1 else ''} of {method.ctx}"
    lines = [f"{model} on {method.text}: {own.tokens:,} tokens scored in {windows}", ""]
    rows = facts(own, lost)
    width = max(len(name) for name, _, _ in rows)
    for name, estimate, show in rows:
        span = wording.interval(estimate, show)
        told = f"   {100 * CONFIDENCE:.0f} %: {span}" if span else ""
        lines.append(f"{name:<{width}}  {show(estimate.value):>10}{told}")
    lines.append("")
    for path, models in method.models_by_path().items():
        lines.append(f"{', '.join(models)} ran on {path}")
    if (doubt := wording.doubt(own.windows)) is not None:
        lines += ["", doubt]
    return "\n".join(lines)


def facts(own: Likelihood, lost: Fidelity | None) -> list[tuple[str, Estimate, Callable[[float], str]]]:
    """(name, estimate, how to write it) of every figure."""
    rows: list[tuple[str, Estimate, Callable[[float], str]]] = [
        ("perplexity", own.perplexity, wording.decimals(4)),
        ("bits per byte", own.bits_per_byte, wording.decimals(4)),
    ]
    if lost is None:
        return rows
    return [
        *rows,
        ("perplexity of source", lost.source_perplexity, wording.decimals(4)),
        ("perplexity ratio", lost.perplexity_ratio, wording.decimals(5)),
        ("KL mean (nats)", lost.kl_mean, wording.significant),
        ("KL p99 (nats)", lost.kl_p99, wording.significant),
        ("top-1 agreement", lost.top1, wording.percent_exact),
    ]


def describe_all(found: Sequence[Evaluation], results: Results | None) -> str:
    """What was measured of several models, as a table; empty if there are none."""
    if not found:
        return ""
    method = found[0].method
    head = f"{method.text}: {found[0].likelihood.tokens:,} tokens scored in windows of {method.ctx}"
    ran = [
        f"{name} ran on {path}"
        for one in found
        for path, names in one.method.models_by_path().items()
        for name in names
    ]
    doubt = wording.doubt(found[0].likelihood.windows)
    lines = [head, "", wording.table(*_cells(found, results)), "", *dict.fromkeys(ran)]
    return "\n".join(lines if doubt is None else [*lines, "", doubt])


def markdown(found: Sequence[Evaluation], results: Results | None) -> list[str]:
    """The same table as lines of Markdown, with how it was measured."""
    own, method = found[0].likelihood, found[0].method
    ran = [
        f"- {name} ran on {path}"
        for one in found
        for path, names in one.method.models_by_path().items()
        for name in names
    ]
    return [
        wording.markdown(*_cells(found, results)),
        "",
        f"- {own.tokens:,} tokens scored in {own.windows:,} window{'s' if own.windows > 1 else ''} of {method.ctx}",
        *dict.fromkeys(ran),
        f"- {method.hardware}; {', '.join(f'{name} {version}' for name, version in method.versions)}; {method.date}",
    ]


def _cells(
    found: Sequence[Evaluation], results: Results | None
) -> tuple[Sequence[wording.Column], Sequence[Sequence[str]]]:
    """Columns and cells of the table of models: beside their source, or each alone."""
    if results is None:
        return _ALONE, [_alone(one) for one in found]
    spans = ["", *(wording.interval(row.fidelity.kl_mean) for row in results.schemes)]
    rows = [[*cells[:5], span, *cells[5:7]] for cells, span in zip(wording.rows(results), spans, strict=True)]
    return [*wording.COLUMNS[:5], _INTERVAL, *wording.COLUMNS[5:7]], rows


def _alone(one: Evaluation) -> list[str]:
    own = one.likelihood
    span = wording.interval(own.perplexity, wording.perplexity)
    bits = wording.decimals(4)(own.bits_per_byte.value)
    return [one.model, wording.perplexity(own.perplexity.value), span, bits, f"{own.tokens:,}"]
