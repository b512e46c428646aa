"""Numbers and tables as text, the same in the terminal and in the report. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isobit.evaluate.results import Results
from isobit.evaluate.statistics import Estimate

UNITS = ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB"))
COUNTS = ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "k"))


def size(num_bytes: int) -> str:
    """Bytes in decimal units: ``20.4 MB``."""
    for factor, unit in UNITS:
        if num_bytes >= factor:
            return f"{significant(num_bytes / factor)} {unit}"
    return f"{num_bytes} B"


def count(number: int) -> str:
    """A count in short: ``10.2M``."""
    for factor, unit in COUNTS:
        if number >= factor:
            return f"{significant(number / factor)}{unit}"
    return str(number)


def significant(value: float, digits: int = 3) -> str:
    """A number with so many significant digits, in plain notation between 0.0001 and a million."""
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}"
    text = f"{value:#.{digits}g}"
    if "e" in text:
        return f"{float(text):.0f}"
    return text.rstrip(".")


def perplexity(value: float) -> str:
    """A perplexity with four or so significant digits: ``5.873``, ``12.40``, ``149.9``."""
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def percent(share: float) -> str:
    """A share as a percentage; 100 % only when it is exactly that."""
    text = f"{100 * share:.1f}"
    return f"{'99.9' if text == '100.0' and share < 1 else text} %"


def percent_exact(share: float) -> str:
    """A share as a percentage with two decimals."""
    return f"{100 * share:.2f} %"


def percent_plain(share: float) -> str:
    """A small share with three significant digits: ``0.0215 %``."""
    return f"{100 * share:.3g} %"


def interval(estimate: Estimate, show: Callable[[float], str] = significant) -> str:
    """The confidence interval as ``low to high``; empty when there is none, or when nothing varies."""
    if estimate.low is None or estimate.high is None or estimate.low == estimate.high:
        return ""
    return f"{show(estimate.low)} to {show(estimate.high)}"


@dataclass(frozen=True)
class Column:
    """A column of the table: its heading, and whether its cells are numbers (aligned right)."""

    heading: str
    number: bool = True


COLUMNS = (
    Column("scheme", number=False),
    Column("bits/weight"),
    Column("size"),
    Column("perplexity"),
    Column("KL mean"),
    Column("KL p99"),
    Column("top-1 agreement"),
    Column("tok/s"),
)


def rows(results: Results) -> list[list[str]]:
    """The cells of the results table, the source first."""
    source = results.source
    first = [
        f"{source.name} (source)",
        f"{source.bits_per_weight:.2f}",
        size(source.size),
        perplexity(source.likelihood.perplexity.value),
        "0",
        "0",
        percent(1),
        speed(source.tokens_per_second),
    ]
    return [first] + [
        [
            row.name,
            f"{row.bits_per_weight:.2f}",
            size(row.size),
            perplexity(row.fidelity.perplexity.value),
            significant(row.fidelity.kl_mean.value),
            significant(row.fidelity.kl_p99.value),
            percent(row.fidelity.top1.value),
            speed(row.tokens_per_second),
        ]
        for row in results.schemes
    ]


def speed(tokens_per_second: float | None) -> str:
    """Decoding speed, or a dash when it was not measured."""
    return "-" if tokens_per_second is None else f"{tokens_per_second:.0f}"


def wrap(paragraph: str, width: int = 100) -> str:
    """A paragraph in lines of at most so many characters."""
    return textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False)


def table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    """An aligned plain-text table with a rule under its headings."""
    lines = [[column.heading for column in columns], *cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]

    def align(line: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([align(lines[0]), rule, *map(align, lines[1:])])
