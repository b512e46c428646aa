"""Progress on stderr: a bar on a terminal, plain lines elsewhere, nothing when quiet. Stdout stays untouched."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import IO, Protocol

from isobit.errors import printable

SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """What the driver tells about: bytes of source weights that are done, out of a total."""

    def start(self, total: int, done: int) -> None:
        """Begin; ``done`` of ``total`` bytes were finished by an earlier run."""

    def advance(self, count: int) -> None:
        """``count`` more bytes are done."""

    def note(self, text: str) -> None:
        """Something a person should know."""

    def close(self) -> None:
        """End, finished or not."""


def make_progress(enabled: bool, stream: IO[str] | None = None) -> Progress:
    """A bar if ``stream`` (stderr by default) is a terminal, lines if not, and silence if not ``enabled``."""
    stream = sys.stderr if stream is None else stream
    if not enabled:
        return Silent()
    return Bar(stream) if stream.isatty() else Lines(stream)


class Silent:
    """Says nothing."""

    def start(self, total: int, done: int) -> None:
        """Nothing."""

    def advance(self, count: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class Bar:
    """A bar with throughput and the time left, for terminals."""

    def __init__(self, stream: IO[str]) -> None:
        from tqdm import tqdm

        self._stream = stream
        self._bar: tqdm | None = None

    def start(self, total: int, done: int) -> None:
        """Draw the empty bar; throughput counts from here, not from an earlier run's bytes."""
        from tqdm import tqdm

        self._bar = tqdm(
            total=total, initial=done, unit="B", unit_scale=True, desc="quantize", file=self._stream, dynamic_ncols=True
        )

    def advance(self, count: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(count)

    def note(self, text: str) -> None:
        """A line above the bar."""
        from tqdm import tqdm

        tqdm.write(printable(text), file=self._stream)

    def close(self) -> None:
        """Leave the bar where it is and go to the next line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Lines:
    """A line every few seconds, for logs.

    Args:
        stream: where to write.
        interval: seconds between two lines.
        clock: monotonic seconds.
    """

    def __init__(
        self, stream: IO[str], interval: float = SECONDS_BETWEEN_LINES, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stream = stream
        self._interval = interval
        self._clock = clock
        self._total = self._done = self._initial = 0
        self._begin = self._last = 0.0
        self._open = False

    def start(self, total: int, done: int) -> None:
        """Start the clock."""
        self._total, self._done, self._initial = total, done, done
        self._begin = self._last = self._clock()
        self._open = True
        if done:
            self.note(f"quantize: going on after {format_bytes(done)} of {format_bytes(total)}")

    def advance(self, count: int) -> None:
        """Count, and write a line if it is time."""
        self._done += count
        now = self._clock()
        if now - self._last >= self._interval:
            self._last = now
            self.note(self._line(now))

    def note(self, text: str) -> None:
        """A line."""
        print(printable(text), file=self._stream, flush=True)

    def close(self) -> None:
        """The last line."""
        if self._open:
            self._open = False
            self.note(self._line(self._clock()))

    def _line(self, now: float) -> str:
        seconds = max(now - self._begin, 1e-9)
        rate = (self._done - self._initial) / seconds
        percent = 100 * self._done // max(self._total, 1)
        line = f"quantize: {percent} %, {format_bytes(self._done)} of {format_bytes(self._total)}"
        if rate <= 0:
            return line
        line += f", {rate / 1e6:.0f} MB/s"
        left = (self._total - self._done) / rate
        return f"{line}, {format_seconds(left)} left" if left > 0 else f"{line}, {format_seconds(seconds)}"


def format_bytes(count: float) -> str:
    """``13.5 GB``, ``24 MB``, ``512 B``: powers of 1000, three digits at most."""
    for factor, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            value = count / factor
            return f"{value:.1f} {unit}" if value < 100 else f"{value:.0f} {unit}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """``42 s``, ``3:07`` or ``1:02:09``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
