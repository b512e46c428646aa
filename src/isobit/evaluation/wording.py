"""Numbers and tables as text, the same in the terminal and in the report. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from isobit.errors import printable
from isobit.evaluation.results import Results, Speed
from isobit.evaluation.statistics import FEW_WINDOWS, LEAST_WINDOWS, Estimate

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
    """A perplexity with four or so significant digits: ``5.873``, ``12.40``, ``149.9``, ``1.234e+07``."""
    if value >= 1e6:
        return f"{value:.3e}"
    return f"{value:.{3 if value < 10 else 2 if value < 100 else 1}f}"


def decimals(digits: int) -> Callable[[float], str]:
    """Writes numbers with so many decimals; those of a million and more with a power of ten."""
    return lambda value: f"{value:.{digits}f}" if abs(value) < 1e6 else f"{value:.{digits}e}"


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


def doubt(windows: int) -> str | None:
    """What a number of windows means for the intervals: that there are none, or that they are wide; None if neither."""
    if windows >= FEW_WINDOWS:
        return None
    more = "More tokens of text, or a smaller context, make more windows."
    shown = "One window" if windows == 1 else f"{windows} windows"
    if windows < LEAST_WINDOWS:
        return f"{shown} only: no confidence intervals, which need at least {LEAST_WINDOWS}. {more}"
    return f"{shown} only: the intervals hold, but are wide for that reason. {more}"


LONGEST_CELL = 200
"""Characters; one name of a megabyte would make every line of its table as long."""


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
        tokens_per_second(source.speed),
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
            tokens_per_second(row.speed),
        ]
        for row in results.schemes
    ]


def tokens_per_second(speed: Speed | None) -> str:
    """Decoding speed, or a dash when it was not measured."""
    return "-" if speed is None else f"{speed.tokens_per_second:.0f}"


SPEED_COLUMNS = (
    Column("scheme", number=False),
    Column("kernel", number=False),
    Column("tok/s"),
    Column("MB/token"),
    Column("GB/s"),
    Column("of memory"),
    Column("of reading alone"),
)


def speeds(results: Results) -> list[tuple[str, Speed]]:
    """(name, speed) of every model whose speed was measured, the source first."""
    own = f"{results.source.name} (source)", results.source.speed
    every = [own, *((row.name, row.speed) for row in results.schemes)]
    return [(name, speed) for name, speed in every if speed is not None]


def speed_rows(results: Results) -> list[list[str]]:
    """The cells of the table of speeds, the source first; empty if none was measured."""
    return [
        [
            name,
            speed.kernel,
            tokens_per_second(speed),
            f"{speed.read_bytes / 1e6:.1f}",
            f"{speed.rate / 1e9:.1f}",
            f"{100 * speed.rate / speed.memory_rate:.0f} %",
            f"{100 * speed.rate / speed.again_rate:.0f} %",
        ]
        for name, speed in speeds(results)
    ]


CACHED = 1.25
"""When reading the same bytes again and again is so many times as fast as memory, caches hold them."""


def speed_note(results: Results) -> str:
    """What the columns of the table of speeds mean, with the rates that the shares are of; empty without speeds."""
    found = [speed for _, speed in speeds(results)]
    if not found:
        return ""
    memory = sorted(speed.memory_rate for speed in found)[len(found) // 2]
    again = [speed.again_rate for speed in found]
    threads = found[0].threads
    cached = sum(speed.again_rate > CACHED * speed.memory_rate for speed in found)
    which = "all of these models" if cached == len(found) else f"{cached} of these {len(found)} models"
    held = (
        f" The caches of this machine hold {which}, so that a share of memory may be above 100 %; for a model that is"
        " larger than they are it cannot."
        if cached
        else ""
    )
    return (
        f"MB/token: weights that each token reads; GB/s: these, times tok/s, with {threads}"
        f" thread{'s' if threads > 1 else ''}. Of memory: share of the {memory / 1e9:.1f} GB/s that this machine reads"
        f" from memory when it does nothing else, measured between the runs.{held} Of reading alone: share of the speed"
        f" of reading as many bytes again and again, {min(again) / 1e9:.0f} to {max(again) / 1e9:.0f} GB/s; what is"
        " missing to 100 % is arithmetic and all that a token takes beside its weights, which is much in a model this"
        " small."
    )


def wrap(paragraph: str, width: int = 100) -> str:
    """A paragraph in lines of at most so many characters."""
    return textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False)


def table(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    """An aligned plain-text table with a rule under its headings."""
    lines = [[column.heading for column in columns]]
    lines += [[printable(cell, LONGEST_CELL) for cell in row] for row in cells]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]

    def align(line: Sequence[str]) -> str:
        parts = [
            cell.rjust(width) if column.number else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        return "  ".join(parts).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([align(lines[0]), rule, *map(align, lines[1:])])


def markdown(columns: Sequence[Column], cells: Sequence[Sequence[str]]) -> str:
    """The same as a table in Markdown."""

    def line(parts: Sequence[str]) -> str:
        return "| " + " | ".join(parts) + " |"

    def quoted(cell: str) -> str:
        shown = printable(cell, LONGEST_CELL).replace("\\", "\\\\")
        return "".join(f"\\{letter}" if letter in "|`*_[]<>" else letter for letter in shown)

    heads = line([column.heading for column in columns])
    rule = line(["---:" if column.number else "---" for column in columns])
    return "\n".join([heads, rule, *(line([quoted(cell) for cell in row]) for row in cells)])
