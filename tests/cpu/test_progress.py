"""Progress: lines with a clock of our own, the bar on a terminal, silence on request."""

from __future__ import annotations

import io

import pytest

from isobit.quantizer.progress import Bar, Lines, Silent, format_bytes, format_seconds, make_progress


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_tell_percent_throughput_and_the_time_left() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, interval=5.0, clock=clock)
    lines.start(1_000_000_000, 0)
    clock.now += 4.9
    lines.advance(100_000_000)
    assert stream.getvalue() == ""  # not yet
    clock.now += 0.1
    lines.advance(100_000_000)
    assert stream.getvalue() == "quantize: 20 %, 200 MB of 1.0 GB, 40 MB/s, 20 s left\n"
    clock.now += 5.0
    lines.advance(800_000_000)
    lines.close()
    assert stream.getvalue().splitlines()[-1] == "quantize: 100 %, 1.0 GB of 1.0 GB, 100 MB/s, 10 s"


def test_the_bytes_of_an_earlier_run_are_not_this_runs_throughput() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, interval=1.0, clock=clock)
    lines.start(1_000_000_000, 500_000_000)
    clock.now += 10.0
    lines.advance(100_000_000)
    first, second = stream.getvalue().splitlines()
    assert first == "quantize: going on after 500 MB of 1.0 GB"
    assert second == "quantize: 60 %, 600 MB of 1.0 GB, 10 MB/s, 40 s left"


def test_nothing_to_do_is_no_division_by_zero() -> None:
    stream = io.StringIO()
    lines = Lines(stream, clock=Clock())
    lines.start(0, 0)
    lines.close()
    lines.close()  # twice does no harm
    assert stream.getvalue() == "quantize: 0 %, 0 B of 0 B\n"


def test_a_terminal_gets_a_bar_with_throughput_and_time_left() -> None:
    stream = Terminal()
    bar = make_progress(True, stream)
    assert isinstance(bar, Bar)
    bar.start(2_000_000, 0)
    bar.advance(1_000_000)
    bar.note("something to know")
    bar.close()
    text = stream.getvalue()
    assert "quantize:" in text and "B/s" in text and "%|" in text and "<" in text
    assert "something to know\n" in text


def test_stdout_stays_empty_and_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    for enabled in (True, False):
        progress = make_progress(enabled)
        progress.start(10, 0)
        progress.advance(10)
        progress.note("note")
        progress.close()
        captured = capsys.readouterr()
        assert captured.out == ""
        assert bool(captured.err) == enabled
    assert isinstance(progress, Silent)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (99_900_000, "99.9 MB"),
        (13_476_839_424, "13.5 GB"),
        (2e14, "200 TB"),
    ],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (3729, "1:02:09")])
def test_seconds_for_people(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
