"""The report: one HTML file with everything in it, for a person who wants to choose a format. Needs no torch to write.

The page is ``report.html`` (Jinja with escaping on, so that no name or completion becomes markup) and ``report.css``;
this module decides what stands in it, and ``summary`` says it in words.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from isobit.checkpoint.room import cannot_write
from isobit.errors import UsageError
from isobit.evaluation import plots, summary, wording
from isobit.evaluation.results import Method, Results, SchemeResult
from isobit.evaluation.statistics import CONFIDENCE, LEAST_WINDOWS
from isobit.evaluation.tasks import text as task_text
from isobit.evaluation.tasks.evaluate import TaskComparison
from isobit.version import __version__

_LEVEL = f"{100 * CONFIDENCE:.0f} %"


@dataclass(frozen=True)
class Cell:
    value: str
    small: str = ""


@dataclass(frozen=True)
class Row:
    class_: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Plot:
    heading: str
    note: str
    wide: Markup
    narrow: Markup


def write(results: Results | None, path: Path, tasks: TaskComparison | None = None, command: str = "") -> None:
    """Write the report to a file; its folder must exist.

    Args:
        results: what was measured on a text; None if there is none.
        path: the file.
        tasks: what was found in tasks; None if there were none.
        command: what does it again, for a page of tasks alone.

    Raises:
        UsageError, CapacityError: it cannot be written.
    """
    if results is not None:
        write_file(path, render(results, tasks))
    elif tasks is not None:
        write_file(path, render_tasks(tasks, command))
    else:
        raise UsageError("there is nothing to report: a text needs a source to compare with")


def write_file(path: Path, text: str) -> None:
    """Write a text as UTF-8; raises as :func:`write` does."""
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        raise cannot_write(path, error) from error


def _page(name: str) -> jinja2.Template:
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"count": wording.count, "thousands": _thousands}
    return environment.from_string(_resource(name))


def render_tasks(tasks: TaskComparison, command: str = "") -> str:
    """A report of tasks alone as HTML."""
    names = ", ".join(name for name, _ in tasks.models)
    against = "" if tasks.source is None else f" against {tasks.source[0]}"
    return _page("tasks_page.html").render(
        version=__version__,
        css=Markup(_resource("report.css")),
        heading=f"{names}{against}: tasks",
        date=max(run.date for _, run in tasks.everyone)[:10],
        section=_tasks_section(tasks),
        command=command,
    )


def _tasks_section(tasks: TaskComparison | None) -> Markup:
    """The table of tasks and what belongs to it; empty without."""
    if tasks is None:
        return Markup("")
    return Markup(
        _page("tasks.html").render(
            columns=task_text.columns(tasks),
            rows=task_text.rows(tasks),
            legend=task_text.LEGEND if tasks.source is not None else "",
            said=task_text.said(tasks),
        )
    )


def render(results: Results, tasks: TaskComparison | None = None) -> str:
    """The report as HTML."""
    return _page("report.html").render(
        tasks=_tasks_section(tasks),
        version=__version__,
        css=Markup(_resource("report.css")),
        heading=summary.heading(results),
        source=results.source,
        method=_MethodView(results.method, results.source.likelihood.tokens),
        summary=summary.summary(results),
        tiles=summary.tiles(results),
        columns=[column.heading for column in _columns(results)],
        rows=_rows(results),
        speed_columns=wording.SPEED_COLUMNS,
        speed_rows=wording.speed_rows(results),
        intervals=_LEVEL if _has_intervals(results) else None,
        doubt=wording.doubt(results.source.likelihood.windows),
        speed_note=wording.speed_note(results),
        plots=_plots(results),
        completions=results.completions,
        how=_how(results),
        terms=summary.TERMS,
    )


def _resource(name: str) -> str:
    return resources.files("isobit.evaluation").joinpath(name).read_text(encoding="utf-8")


def _thousands(number: int) -> str:
    return f"{number:,}"


@dataclass(frozen=True)
class _MethodView:
    """What the page's head needs of the method."""

    method: Method
    tokens: int

    @property
    def text(self) -> str:
        return self.method.text

    @property
    def date(self) -> str:
        return self.method.date

    @property
    def command(self) -> str:
        return self.method.command


# ---------------------------------------------------------------------- table, plots, method


def _columns(results: Results) -> tuple[wording.Column, ...]:
    return wording.COLUMNS if wording.speeds(results) else wording.COLUMNS[:-1]


def _rows(results: Results) -> list[Row]:
    width = len(_columns(results))
    smalls = [_source_smalls(results), *(_smalls(row) for row in results.schemes)]
    classes = ["source-swatch", *(plots.series_class(i) for i in range(len(results.schemes)))]
    return [
        Row(class_, tuple(Cell(value, small) for value, small in zip(cells[:width], small_cells[:width], strict=True)))
        for class_, cells, small_cells in zip(classes, wording.rows(results), smalls, strict=True)
    ]


def _source_smalls(results: Results) -> list[str]:
    perplexity = results.source.likelihood.perplexity
    return ["", "", "", wording.interval(perplexity, wording.perplexity), "", "", "", ""]


def _smalls(row: SchemeResult) -> list[str]:
    found = row.fidelity
    return [
        row.note,
        "",
        "",
        wording.interval(found.perplexity, wording.perplexity),
        wording.interval(found.kl_mean, _two_digits),
        wording.interval(found.kl_p99, _two_digits),
        wording.interval(found.top1, lambda share: f"{100 * share:.1f}"),
        "",
    ]


def _two_digits(value: float) -> str:
    return wording.significant(value, 2)


def _plots(results: Results) -> list[Plot]:
    """Every plot that there is data for."""
    drawn = (
        (
            "Fidelity against size",
            "Lower is more faithful, further left is smaller: formats near the lower left corner are the ones to want."
            + (f" Bars are {_LEVEL} confidence intervals." if _has_intervals(results) else ""),
            plots.fidelity_against_size,
        ),
        (
            "Error by layer",
            "How far the hidden state has moved from the source's after each decoder layer, both models reading the "
            "same text. The last layer's is what the next-token distribution is made from.",
            plots.error_by_layer,
        ),
        (
            "Error of the weights",
            "A dot per linear layer: how far its stored weight is from the source's. Hover for its name.",
            plots.weight_errors,
        ),
        (
            "Decoding speed",
            f"Tokens per second for one request on {results.method.hardware}.",
            plots.speed_bars,
        ),
    )
    found = []
    for name, note, draw in drawn:
        wide, narrow = draw(results, plots.WIDE), draw(results, plots.NARROW)
        if wide is not None and narrow is not None:
            found.append(Plot(name, note, Markup(wide), Markup(narrow)))
    return found


def _has_intervals(results: Results) -> bool:
    return results.source.likelihood.windows >= LEAST_WINDOWS


def _intervals(method: Method, windows: int) -> str:
    """How the intervals were made."""
    if windows < LEAST_WINDOWS:
        return f"none: {windows} window{'s' if windows > 1 else ''}, and at least {LEAST_WINDOWS} are needed"
    return (
        f"{_LEVEL}: Student's t with {windows - 1} degrees of freedom times the standard error over "
        f"{_thousands(method.resamples)} bootstrap resamples of whole windows, seed {method.seed}"
    )


def _how(results: Results) -> list[tuple[str, str]]:
    """How it was measured, a line per fact."""
    method, own = results.method, results.source.likelihood
    overlap = "without overlap" if method.stride == method.ctx else f"one every {method.stride} tokens"
    found = [
        ("text", f"{method.text}: {wording.size(method.text_bytes)}, {_thousands(method.text_tokens)} tokens"),
        (
            "windows",
            f"{_thousands(own.windows)} of at most {method.ctx} tokens, {overlap}, spread evenly over the text; "
            f"{_thousands(own.tokens)} tokens scored, each once, never a window's first without context",
        ),
        ("comparison", "both models read the same windows; log-probabilities and KL(source || model) in float64"),
        ("intervals", _intervals(method, own.windows)),
    ]
    if method.layer_tokens:
        found.append(("error by layer", f"on {_thousands(method.layer_tokens)} tokens of the same text"))
    found += [(f"execution path of {', '.join(models)}", path) for path, models in method.models_by_path().items()]
    found += [
        ("hardware", method.hardware),
        ("versions", ", ".join(f"{name} {version}" for name, version in method.versions)),
        ("date", method.date),
    ]
    return found
