"""The report and its plots: self-contained, escaped, complete, with labels that don't cover each other."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from itertools import combinations
from pathlib import Path

import pytest

from isobit.evaluation import plots, report, svg, wording
from isobit.evaluation.fidelity import Fidelity
from isobit.evaluation.likelihood import Likelihood
from isobit.evaluation.results import (
    CompletionResult,
    ExecutionPath,
    Method,
    Results,
    SchemeResult,
    SourceResult,
    Speed,
)
from isobit.evaluation.statistics import Estimate
from isobit.evaluation.summary import summary

NASTY = "<script>alert('x')</script>&\"quoted\""
VOID = {"meta", "br", "link", "img", "input", "hr"}


def near(value: float, spread: float = 0.05) -> Estimate:
    return Estimate(value, value * (1 - spread), value * (1 + spread))


def speed_of(tokens_per_second: float, read_bytes: int = 20_000_000, again_rate: float = 3e9) -> Speed:
    return Speed(tokens_per_second, 2e9, again_rate, read_bytes, "cpu (avx2)", 2)


def scheme_row(name: str, size: int, kl: float, top1: float) -> SchemeResult:
    found = Fidelity(
        tokens=1000, windows=10, kl_mean=near(kl), kl_p99=near(9 * kl), top1=near(top1, 0.001),
        perplexity=near(5 + 10 * kl), source_perplexity=near(5.0), perplexity_ratio=near(1 + 2 * kl, 0.001),
        bits_per_byte=near(1.0),
    )  # fmt: skip
    layers = tuple(kl * k for k in range(5))
    weights = tuple((f"layers.{k}.up_proj", kl * (1 + k)) for k in range(4))
    return SchemeResult(name, f"note on {name}", 8.0, size, found, speed_of(50.0, size), layers, weights)


SCHEMES = (
    scheme_row("bf16", 20_000_000, 0.0, 1.0),
    scheme_row("fp8", 11_600_000, 0.002, 0.98),
    scheme_row("int8", 11_600_000, 0.0021, 0.985),
    scheme_row("int4-g32", 7_800_000, 0.041, 0.92),
    scheme_row("int4", 7_400_000, 0.06, 0.90),
    scheme_row("int3", 6_700_000, 0.3, 0.79),
)


PATHS = tuple(
    ExecutionPath(name, "cpu", "cpu-avx2", "float32", "cpu (avx2)", "cpu")
    for name in ("tiny", *(row.name for row in SCHEMES))
)


def results(schemes: tuple[SchemeResult, ...] = SCHEMES, name: str = "tiny") -> Results:
    source = SourceResult(
        name, 10_140_000, 16.0, 20_000_000, Likelihood(1000, 10, near(5.0), near(1.0)), speed_of(60.0)
    )
    method = Method(
        "held-out text", 3000, 1100, 128, 128, 256, 0, 1000, PATHS, "a machine", (("isobit", "0.1.0"),),
        "2026-01-02T03:04:05Z", "isobit demo",
    )  # fmt: skip
    completions = (CompletionResult("tiny", "def f(", "x):\n    return x"), CompletionResult("int4", "def f(", NASTY))
    return Results(source, schemes, completions, method)


class Page(HTMLParser):
    """Checks that tags are balanced; collects them and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_is_whole_and_reaches_for_nothing() -> None:
    text = report.render(results())
    page = Page(text)
    names = {tag for tag, _ in page.tags}
    assert {"table", "svg", "pre", "style", "dl"} <= names
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"https?:|url\(|@import|\bsrc=|\bhref=|\son\w+=", text)
    words = " ".join(page.words)
    for row in SCHEMES:
        assert row.name in words
    for term in ("perplexity", "KL divergence", "top-1 agreement", "confidence interval"):
        assert term in words
    for fact in ("held-out text", "a machine", "isobit 0.1.0", "2026-01-02T03:04:05Z", "isobit demo", "return x"):
        assert fact in words


def test_whatever_a_name_or_a_completion_holds_stays_text() -> None:
    row = replace(SCHEMES[4], name=NASTY, note=NASTY, weight_errors=((NASTY, 0.1),))
    found = results((row, *SCHEMES[1:3]), name=NASTY)
    found = replace(found, method=replace(found.method, text=NASTY, hardware=NASTY, command=NASTY))
    text = report.render(found)
    assert "<script" not in text
    page = Page(text)
    assert "".join(page.words).count(NASTY) > 10


def test_every_plot_is_well_formed_xml_in_both_widths() -> None:
    for draw in (plots.fidelity_against_size, plots.error_by_layer, plots.weight_errors, plots.speed_bars):
        for canvas in (plots.WIDE, plots.NARROW):
            drawn = draw(results(), canvas)
            assert drawn is not None
            root = ElementTree.fromstring(drawn)
            width = float(root.attrib["viewBox"].split()[2])
            for element in root.iter("text"):
                assert 0 <= float(element.attrib["x"]) <= width


def test_plots_without_data_are_left_out() -> None:
    bare = tuple(replace(row, layer_errors=(), weight_errors=(), speed=None) for row in SCHEMES)
    found = results(bare)
    found = replace(found, source=replace(found.source, speed=None), completions=())
    text = report.render(found)
    assert text.count("<svg") == 2  # fidelity against size, wide and narrow
    assert "tok/s" not in text
    assert "Error by layer" not in text
    assert "same prompt" not in text


def test_a_model_without_loss_has_a_place_on_the_logarithmic_plot() -> None:
    text = plots.fidelity_against_size(results(SCHEMES[:1]), plots.WIDE)
    assert "bf16" in text
    assert "nan" not in text and "inf" not in text


def test_the_points_of_the_plot_are_in_order_of_their_values() -> None:
    root = ElementTree.fromstring(plots.fidelity_against_size(results(), plots.WIDE))
    labels = {e.text: (float(e.attrib["x"]), float(e.attrib["y"])) for e in root.iter("text")}
    assert labels["int3"][1] < labels["int4"][1] < labels["fp8"][1] < labels["bf16"][1]
    assert labels["int3"][0] < labels["fp8"][0] < labels["bf16"][0]


# ---------------------------------------------------------------------- labels, ticks


@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize("spread", [0.0, 3.0, 30.0])
def test_labels_do_not_overlap_even_when_points_coincide(count: int, spread: float) -> None:
    points = [(300 + spread * i, 200 - spread * i / 2) for i in range(count)]
    area = svg.Box(0, 0, 600, 400)
    placed = svg.place_labels(points, [f"label-{i}" for i in range(count)], area)
    for one, two in combinations(placed, 2):
        assert one.box.overlap(two.box) == 0
    assert all(area.contains(place.box) for place in placed)
    if spread >= 30:
        assert all(place.anchor == "start" for place in placed)


def test_line_ends_are_spread_apart_within_limits() -> None:
    at = svg.spread_apart([10, 11, 12, 300, 299], 17, 0, 305)
    ordered = sorted(at)
    assert all(b - a >= 17 - 1e-9 for a, b in zip(ordered, ordered[1:], strict=False))
    assert min(at) >= 0 and max(at) <= 305
    assert at[0] < at[1] < at[2] < at[4] < at[3]
    assert svg.spread_apart([50, 100], 17, 0, 305) == [50, 100]
    assert svg.spread_apart([5, 5, 5], 17, 0, 10) == [0, 5, 10]
    assert svg.spread_apart([7], 17, 0, 10) == [7]


@pytest.mark.parametrize(("low", "high"), [(1e-4, 1.0), (0.002, 0.3), (0.011, 0.08), (0.02, 0.06)])
def test_log_ticks_are_inside_and_enough_to_read(low: float, high: float) -> None:
    ticks = svg.log_ticks(low, high)
    assert len(ticks) >= 2
    assert all(low <= tick <= high for tick in ticks)


def test_linear_ticks_are_round() -> None:
    assert svg.linear_ticks(0, 22.7, 8) == [0, 5, 10, 15, 20]
    assert svg.linear_ticks(0, 1, 4) == pytest.approx([0, 0.5, 1.0])


# ---------------------------------------------------------------------- words


def test_the_summary_names_the_smallest_close_format_and_the_extremes() -> None:
    words = summary(results())
    assert "is int4-g32: 7.80 MB on disk, 2.6 times smaller" in words
    assert "92.0 % of the time and raises perplexity by 8.2 %" in words
    assert "lossy formats is fp8" in words
    assert "int3 loses most: 79.0 % agreement, perplexity +60.0 %" in words


def test_of_formats_of_about_the_same_size_the_most_faithful_is_named() -> None:
    heavier = replace(SCHEMES[1], size=SCHEMES[2].size + 900)
    assert "is fp8: 11.6 MB" in summary(results((SCHEMES[0], SCHEMES[2], heavier)))


def test_the_summary_says_when_nothing_is_close() -> None:
    words = summary(results(SCHEMES[4:]))
    assert words.startswith("No format measured here stays close to tiny (mean KL divergence below 0.05")
    assert "closest is int4" in words


def test_the_summary_of_one_close_format_and_of_one_without_loss() -> None:
    assert "int4-g32: 7.80 MB on disk" in summary(results(SCHEMES[3:4]))
    assert "leaves perplexity as it was" in summary(results(SCHEMES[:1]))


def test_the_report_is_written_as_utf_8(tmp_path: Path) -> None:
    report.write(results(name="modèle"), tmp_path / "r.html")
    assert "modèle" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_the_terminal_table_is_aligned_and_fits() -> None:
    lines = wording.table(wording.COLUMNS, wording.rows(results())).splitlines()
    assert len(lines) == 2 + 1 + len(SCHEMES)
    assert max(map(len, lines)) <= 100
    assert len({line.index("MB") for line in lines[2:]}) == 1


def test_the_table_of_speeds_has_kernel_bytes_and_both_shares() -> None:
    cells = wording.speed_rows(results())
    assert cells[0] == ["tiny (source)", "cpu (avx2)", "60", "20.0", "1.2", "60 %", "40 %"]
    assert [line[0] for line in cells[1:]] == [row.name for row in SCHEMES]
    lines = wording.table(wording.SPEED_COLUMNS, cells).splitlines()
    assert max(map(len, lines)) <= 100
    words = " ".join(Page(report.render(results())).words)
    assert "How fast each decodes" in words and "of reading alone" in words and "cpu (avx2)" in words


def test_a_share_above_all_of_the_memory_is_explained_where_caches_hold_the_model() -> None:
    fast = replace(results(), source=replace(results().source, speed=speed_of(200.0, again_rate=8e9)))
    assert wording.speed_rows(fast)[0][-2:] == ["200 %", "50 %"]
    note = wording.speed_note(fast)
    assert "The caches of this machine hold all of these models" in note and "above 100 %" in note
    assert "2.0 GB/s" in note and "3 to 8 GB/s" in note and "2 threads" in note
    large = tuple(replace(row, speed=speed_of(50.0, again_rate=2.1e9)) for row in SCHEMES)
    some = replace(fast, schemes=large)
    assert f"hold 1 of these {1 + len(large)} models" in wording.speed_note(some)
    slow = replace(some, source=replace(some.source, speed=speed_of(60.0, again_rate=2.1e9)))
    assert "above 100 %" not in wording.speed_note(slow) and "caches of this" not in wording.speed_note(slow)
    bare = replace(results(tuple(replace(row, speed=None) for row in SCHEMES)), source=replace(fast.source, speed=None))
    assert wording.speed_rows(bare) == [] and wording.speed_note(bare) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.00085, "0.000850"),
        (0.041, "0.0410"),
        (2.789, "2.79"),
        (20.34, "20.3"),
        (999.7, "1000"),
        (1e-5, "1.00e-05"),
    ],
)
def test_numbers_have_three_significant_digits(value: float, shown: str) -> None:
    assert wording.significant(value) == shown


def test_sizes_counts_and_shares() -> None:
    assert wording.size(20_340_000) == "20.3 MB"
    assert wording.size(812) == "812 B"
    assert wording.count(10_140_000) == "10.1M"
    assert wording.percent(0.99999) == "99.9 %"
    assert wording.percent(1.0) == "100.0 %"
    assert wording.interval(Estimate(1, None, None)) == ""
