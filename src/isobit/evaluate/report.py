"""The report: one HTML file with everything in it, for a person who wants to choose a format. Needs no torch to write.

The page is ``report.html`` (Jinja with escaping on, so that no name or completion can become markup) and ``report.css``;
this module decides what stands in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from isobit import __version__
from isobit.evaluate import plots, wording
from isobit.evaluate.results import Method, Results, SchemeResult
from isobit.evaluate.statistics import CONFIDENCE

KL_BOUND = 0.05
"""Mean KL, in nats per token, under which the summary calls a format close to its source.

At 0.05 nats Pinsker's inequality bounds the mean total variation distance: sampling from the two models gives another
token in at most sqrt(0.05 / 2) = 16 % of the cases; measured top-1 agreement is usually above 90 %.
"""

TERMS = (
    ("bits/weight", "Stored bits per weight of the quantized linear layers, with scales and zero points. Embeddings and norms are in the size, not in here."),
    ("perplexity", "How surprised the model is by the text: exp of the mean negative log-likelihood per token. Lower is better. It hides errors that cancel: a model can be wrong in new ways at an equal perplexity."),
    ("KL divergence", "How far the quantized model's distribution over the next token lies from the source's, in nats: 0 when they are the same. The mean is the typical loss; p99 is exceeded by one token in a hundred."),
    ("top-1 agreement", "The share of tokens where both models find the same next token most probable, so that greedy decoding goes on alike."),
    ("confidence interval", "Where the value would fall in 95 of 100 repetitions on other passages of such text, by resampling whole windows, because neighbouring tokens are not independent."),
    ("relative error", "Length of the difference divided by the length of the original (Frobenius norm). 1 % is a signal-to-noise ratio of 40 dB."),
    ("token", "What the model reads and writes: a piece of text of a few characters."),
)  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """One large figure and what it means."""

    value: str
    words: str


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


def write(results: Results, path: Path) -> None:
    """Write the report to a file; its folder must exist."""
    path.write_text(render(results), encoding="utf-8")


def render(results: Results) -> str:
    """The report as HTML."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    environment.filters |= {"count": wording.count, "thousands": _thousands}
    page = environment.from_string(_resource("report.html"))
    return page.render(
        version=__version__,
        css=Markup(_resource("report.css")),
        heading=heading(results),
        source=results.source,
        method=_MethodView(results.method, results.source.likelihood.tokens),
        summary=summary(results),
        tiles=tiles(results),
        columns=[column.heading for column in _columns(results)],
        rows=_rows(results),
        speed=_has_speed(results),
        speed_note=f" on {results.method.hardware}" if results.method.hardware else "",
        plots=_plots(results),
        completions=results.completions,
        how=_how(results),
        terms=TERMS,
    )


def _resource(name: str) -> str:
    return resources.files("isobit.evaluate").joinpath(name).read_text(encoding="utf-8")


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


# ---------------------------------------------------------------------- words computed from the data


def heading(results: Results) -> str:
    """The title of the page."""
    if len(results.schemes) == 1:
        return f"What {results.schemes[0].name} keeps of {results.source.name}"
    return f"What quantization costs {results.source.name}"


def smallest_close(results: Results) -> SchemeResult | None:
    """The smallest format whose mean KL is below :data:`KL_BOUND`, if there is one."""
    close = [row for row in results.schemes if row.fidelity.kl_mean.value < KL_BOUND]
    return min(close, key=lambda row: row.size, default=None)


def summary(results: Results) -> str:
    """One paragraph in plain words."""
    source = results.source
    best = smallest_close(results)
    if best is None:
        nearest = min(results.schemes, key=lambda row: row.fidelity.kl_mean.value)
        start = (
            f"No format measured here stays within a mean KL divergence of {KL_BOUND} nats per token of {source.name}; the "
            f"closest is {_verdict(nearest, source.size)}."
        )
        return " ".join([start, *_extremes(results, nearest)])
    if len(results.schemes) == 1:
        return f"{_verdict(best, source.size)}. Its mean KL divergence from {source.name} is below {KL_BOUND} nats per token: close."
    start = (
        f"The smallest format that stays close to {source.name} (mean KL divergence below {KL_BOUND} nats per token) is "
        f"{_verdict(best, source.size)}."
    )
    return " ".join([start, *_extremes(results, best)])


def _verdict(row: SchemeResult, source_size: int) -> str:
    found = row.fidelity
    change = found.perplexity_ratio.value - 1
    moved = "leaves perplexity as it was" if abs(change) < 5e-4 else f"{'raises' if change > 0 else 'lowers'} perplexity by {100 * abs(change):.1f} %"
    return (
        f"{row.name}: {wording.size(row.size)} on disk, {source_size / row.size:.1f} times smaller than the source; it picks the "
        f"same next token {wording.percent(found.top1.value)} of the time and {moved}"
    )


def _extremes(results: Results, named: SchemeResult) -> list[str]:
    """Sentences about the most faithful and the least faithful quantized format, unless they were named already."""
    lossy = [row for row in results.schemes if row.fidelity.kl_mean.value > 0 and row is not named]
    if not lossy:
        return []
    closest = min(lossy, key=lambda row: row.fidelity.kl_mean.value)
    farthest = max(lossy, key=lambda row: row.fidelity.kl_mean.value)
    said = []
    if closest.fidelity.kl_mean.value < named.fidelity.kl_mean.value:
        kept = wording.percent(closest.fidelity.top1.value)
        said.append(f"The most faithful of the lossy formats is {closest.name}, with {kept} agreement at {wording.size(closest.size)}.")
    if farthest.fidelity.kl_mean.value > named.fidelity.kl_mean.value:
        lost = 100 * (farthest.fidelity.perplexity_ratio.value - 1)
        kept = wording.percent(farthest.fidelity.top1.value)
        said.append(f"{farthest.name} loses most: {kept} agreement, perplexity {lost:+.1f} %.")
    return said


def tiles(results: Results) -> list[Tile]:
    """The figures at the top, for the format that the summary is about."""
    row = smallest_close(results) or min(results.schemes, key=lambda row: row.fidelity.kl_mean.value)
    found = row.fidelity
    return [
        Tile(row.name, f"smallest format with a mean KL below {KL_BOUND}" if smallest_close(results) else "closest format measured"),
        Tile(f"{results.source.size / row.size:.1f}x", f"smaller: {wording.size(results.source.size)} becomes {wording.size(row.size)}"),
        Tile(wording.percent(found.top1.value), "of next tokens stay the same"),
        Tile(f"{100 * (found.perplexity_ratio.value - 1):+.2f} %", f"perplexity, {results.source.likelihood.perplexity.value:.3f} to {found.perplexity.value:.3f}"),
    ]  # fmt: skip


# ---------------------------------------------------------------------- table, plots, method


def _has_speed(results: Results) -> bool:
    return any(speed is not None for speed in (results.source.tokens_per_second, *(row.tokens_per_second for row in results.schemes)))


def _columns(results: Results) -> tuple[wording.Column, ...]:
    return wording.COLUMNS if _has_speed(results) else wording.COLUMNS[:-1]


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
    return ["", "", "", wording.interval(perplexity, _three_places), "", "", "", ""]


def _smalls(row: SchemeResult) -> list[str]:
    found = row.fidelity
    return [
        row.note,
        "",
        "",
        wording.interval(found.perplexity, _three_places),
        wording.interval(found.kl_mean, _two_digits),
        wording.interval(found.kl_p99, _two_digits),
        wording.interval(found.top1, lambda share: f"{100 * share:.1f}"),
        "",
    ]


def _three_places(value: float) -> str:
    return f"{value:.3f}"


def _two_digits(value: float) -> str:
    return wording.significant(value, 2)


def _plots(results: Results) -> list[Plot]:
    layer_note = (
        "How far the hidden state has moved from the source's after each decoder layer, both models reading the same text. "
        "Errors of the layers add up; the last layer's is what the next-token distribution is made from."
    )
    drawn = [
        (
            "Fidelity against size",
            "Lower is more faithful, further left is smaller: formats near the lower left corner are the ones to want. "
            "Bars are 95 % confidence intervals.",
            plots.fidelity_against_size,
        ),
        ("Error by layer", layer_note, plots.error_by_layer),
        ("Error of the weights", "A dot per linear layer: how far its stored weight is from the source's. Hover for its name.", plots.weight_errors),
        ("Decoding speed", f"Tokens per second for one request on {results.method.hardware}, with the plain torch reference kernels.", plots.speed_bars),
    ]  # fmt: skip
    found = []
    for name, note, draw in drawn:
        wide, narrow = draw(results, plots.WIDE), draw(results, plots.NARROW)
        if wide is not None and narrow is not None:
            found.append(Plot(name, note, Markup(wide), Markup(narrow)))
    return found


def _how(results: Results) -> list[tuple[str, str]]:
    method, own = results.method, results.source.likelihood
    overlap = "that do not overlap" if method.stride == method.ctx else f"a window every {method.stride} tokens"
    chosen = (
        f"{_thousands(own.windows)} windows of at most {method.ctx} tokens, {overlap}, spread evenly over the text; "
        f"{_thousands(own.tokens)} tokens scored, each once, never the first of a window without context"
    )
    found = [
        ("text", f"{method.text}: {wording.size(method.text_bytes)}, {_thousands(method.text_tokens)} tokens"),
        ("windows", chosen),
        ("comparison", "both models read the same windows; log-probabilities and KL(source || model) in float64"),
        ("intervals", f"the middle {100 * CONFIDENCE:.0f} % of {_thousands(method.resamples)} bootstrap resamples of whole windows, seed {method.seed}"),
    ]  # fmt: skip
    if method.layer_tokens:
        found.append(("error by layer", f"on {_thousands(method.layer_tokens)} tokens of the same text"))
    found += [
        ("hardware", method.hardware),
        ("versions", ", ".join(f"{name} {version}" for name, version in method.versions)),
        ("date", method.date),
    ]
    return found
