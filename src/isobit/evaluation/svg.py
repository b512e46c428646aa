"""Small pieces of SVG: elements with escaped text, scales, ticks, and labels that avoid each other. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

FONT_SIZE = 13.0
LINE_HEIGHT = 17.0


@dataclass(frozen=True)
class Box:
    """A rectangle: left, top, right, bottom, in pixels with y pointing down."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def overlap(self, other: Box) -> float:
        """Area shared with another box."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, across) * max(0.0, down)

    def contains(self, other: Box) -> bool:
        return (
            self.left <= other.left
            and self.top <= other.top
            and self.right >= other.right
            and self.bottom >= other.bottom
        )


def text_width(text: str, font_size: float = FONT_SIZE) -> float:
    """A safe estimate of a text's width in a bold sans-serif font (DejaVu Sans, one of the widest, sets it)."""
    narrow = sum(character in "il.,:;'|!ftj ()-" for character in text)
    return font_size * (0.73 * (len(text) - narrow) + 0.45 * narrow)


def element(tag: str, body: str = "", **attributes: object) -> str:
    """One SVG element. Attribute names take ``_`` for ``-``; numbers are rounded to a tenth of a pixel.

    Args:
        tag: its name.
        body: ready SVG inside it.
        attributes: its attributes; None leaves one out.
    """
    parts = []
    for name, value in attributes.items():
        if value is None:
            continue
        shown = f"{value:.1f}" if isinstance(value, float) else str(value)
        parts.append(f' {name.rstrip("_").replace("_", "-")}="{escape(shown, quote=True)}"')
    return f"<{tag}{''.join(parts)}>{body}</{tag}>" if body else f"<{tag}{''.join(parts)}/>"


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str = "label", **more: object) -> str:
    """A line of text whose baseline starts (or centres, or ends) at x, y."""
    return element("text", escape(content), x=x, y=y, text_anchor=anchor, class_=class_, **more)


def title(content: str) -> str:
    """What shows when the pointer rests on the element that holds this."""
    return element("title", escape(content))


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def document(width: float, height: float, name: str, body: Sequence[str], class_: str) -> str:
    """A whole SVG. It scales down with the page, never up."""
    return element(
        "svg",
        title(name) + "".join(body),
        class_=class_,
        viewBox=f"0 0 {width:.0f} {height:.0f}",
        style=f"max-width:{width:.0f}px",
        role="img",
    )


MARKERS: tuple[Callable[[float, float, float], str], ...] = (
    lambda x, y, r: element("circle", cx=x, cy=y, r=r),
    lambda x, y, r: element("path", d=_polygon(x, y, [(-r, -r), (r, -r), (r, r), (-r, r)])),
    lambda x, y, r: element("path", d=_polygon(x, y, [(0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)])),
    lambda x, y, r: element("path", d=_polygon(x, y, [(0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)])),
    lambda x, y, r: element("path", d=_polygon(x, y, [(0, 1.3 * r), (1.2 * r, -r), (-1.2 * r, -r)])),
)


def _polygon(x: float, y: float, corners: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x + dx:.1f} {y + dy:.1f}" for dx, dy in corners) + "Z"


def marker(index: int, x: float, y: float, radius: float = 5.0) -> str:
    """The marker of a series: shapes take turns, so that colour is never the only difference."""
    return MARKERS[index % len(MARKERS)](x, y, radius)


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels, along a line or along its logarithm."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (at - low) / (high - low) * (self.end - self.start)


def log_limits(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a logarithmic axis with some room around positive values."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = max(0.15, 0.08 * (high - low))
    return 10 ** (low - room), 10 ** (high + room)


def log_ticks(low: float, high: float) -> list[float]:
    """Round values on a logarithmic axis: powers of ten, with 2 and 5 between them when there are few."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) >= 3:
            return inside
    return inside


def linear_ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round values on a linear axis: a step of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw)
    first = math.ceil(low / step)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label_box(x: float, baseline: float, content: str, anchor: str) -> Box:
    """The room a label takes."""
    width = text_width(content)
    left = {"start": x, "middle": x - width / 2, "end": x - width}[anchor]
    return Box(left, baseline - 0.8 * FONT_SIZE, left + width, baseline + 0.25 * FONT_SIZE)


@dataclass(frozen=True)
class Placed:
    """Where a label goes."""

    x: float
    baseline: float
    anchor: str
    box: Box


def place_labels(
    points: Sequence[tuple[float, float]], labels: Sequence[str], area: Box, taken: Sequence[Box] = ()
) -> list[Placed]:
    """A place beside each point for its label, in the first spot that is free.

    Args:
        points: the labelled points.
        labels: their labels.
        area: where labels may go.
        taken: boxes that no label may cover.

    Returns:
        A place per label. When every spot is taken, the one that covers least.
    """
    blocked = [*taken, *(Box(x - 7, y - 7, x + 7, y + 7) for x, y in points)]
    placed = []
    for (x, y), content in zip(points, labels, strict=True):
        spots = [_spot(x, y, content, reach, dx, dy) for reach in (14, 22, 34, 48) for dx, dy in _DIRECTIONS]
        best = min(spots, key=lambda spot: _badness(spot.box, area, blocked))
        blocked.append(best.box)
        placed.append(best)
    return placed


_DIRECTIONS = ((1, 0), (0, -1), (-1, 0), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))


def _spot(x: float, y: float, content: str, reach: float, dx: int, dy: int) -> Placed:
    anchor = {1: "start", 0: "middle", -1: "end"}[dx]
    at, baseline = x + dx * reach, y + dy * reach * 0.9 + 0.33 * FONT_SIZE + (2 if dy > 0 else 0)
    return Placed(at, baseline, anchor, label_box(at, baseline, content, anchor))


def _badness(box: Box, area: Box, blocked: Sequence[Box]) -> float:
    outside = box.width * box.height - area.overlap(box)
    return 4 * outside + sum(box.overlap(other) for other in blocked)


def spread_apart(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near as may be to the wanted ones, in their order, at least ``gap`` apart and within the limits.

    When the limits leave too little room, the positions are spaced evenly between them.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    if len(order) > 1:
        gap = min(gap, (high - low) / (len(order) - 1))
    at: list[float] = []
    for i in order:
        at.append(max(wanted[i], low if not at else at[-1] + gap))
    ceiling = high
    for k in reversed(range(len(at))):
        at[k] = min(at[k], ceiling)
        ceiling = at[k] - gap
    result = [0.0] * len(wanted)
    for i, position in zip(order, at, strict=True):
        result[i] = position
    return result
