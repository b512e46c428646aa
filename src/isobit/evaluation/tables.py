"""Several models on a text as one table, for the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from isobit.evaluation import wording
from isobit.evaluation.measure import Evaluation
from isobit.evaluation.results import Results
from isobit.evaluation.statistics import CONFIDENCE

_ALONE = (
    wording.Column("model", number=False),
    wording.Column("perplexity"),
    wording.Column(f"{100 * CONFIDENCE:.0f} %"),
    wording.Column("bits per byte"),
    wording.Column("tokens"),
)
_INTERVAL = wording.Column(f"{100 * CONFIDENCE:.0f} % of KL mean")


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
