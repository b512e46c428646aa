"""The report's plots, as SVG. Pure: results in, text out; no script, no font, no file from anywhere else.

Colours and line styles are the page's classes ``s0`` ... ``s7`` (see ``report.css``, which has a dark set too). Each
plot can be drawn for a wide page and for a narrow one; the page shows the one that fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from isobit.evaluation import svg, wording
from isobit.evaluation.results import Results, SchemeResult
from isobit.evaluation.svg import Box, Scale

SERIES_COLOURS = 8
_ZERO_STRIP = 40.0  # pixels under a logarithmic axis for values of exactly 0


@dataclass(frozen=True)
class Canvas:
    """How large a plot is, and which pages show it."""

    width: float
    height: float
    class_: str
    narrow: bool = False


WIDE = Canvas(840, 440, "plot wide")
NARROW = Canvas(360, 360, "plot narrow", narrow=True)


def series_class(index: int) -> str:
    """The CSS class of the n-th series."""
    return f"s{index % SERIES_COLOURS}"


# ---------------------------------------------------------------------- fidelity against size


def fidelity_against_size(results: Results, canvas: Canvas) -> str:
    """Mean KL (logarithmic) over the size of the weight files, with confidence intervals; the source at KL 0."""
    frame = Box(58, 34, canvas.width - 16, canvas.height - 52)
    floor = Box(frame.left, frame.bottom - _ZERO_STRIP, frame.right, frame.bottom)
    sizes = [results.source.size, *(row.size for row in results.schemes)]
    x = Scale(0, max(sizes) * 1.12, frame.left, frame.right)
    positive = [v for row in results.schemes for v in _positive(row)]
    low, high = svg.log_limits(positive) if positive else (1e-3, 1.0)
    y = Scale(low, high, floor.top - 6, frame.top, log=True)
    body = [*_size_axis(x, frame, max(sizes), canvas), *_kl_axis(y, frame, floor)]
    at = [(x(row.size), y(v) if (v := row.fidelity.kl_mean.value) > 0 else _middle(floor)) for row in results.schemes]
    whiskers = [_whisker(row, px, y) for row, (px, _) in zip(results.schemes, at, strict=True)]
    body += [part for part, _ in whiskers]
    source_at = (x(results.source.size), _middle(floor))
    names = [row.name for row in results.schemes] + ["source"]
    # Labels avoid each other, every marker, the whiskers, and the words in the strip of zeros.
    taken = [box for _, box in whiskers if box is not None] + [
        Box(floor.left, floor.top, floor.left + 74, floor.bottom)
    ]
    places = svg.place_labels([*at, source_at], names, Box(frame.left + 2, frame.top, frame.right, frame.bottom), taken)
    body.append(_source_marker(results, *source_at))
    for i, (row, (px, py)) in enumerate(zip(results.schemes, at, strict=True)):
        mark = svg.title(_point_title(row)) + svg.marker(i, px, py, 5.5)
        body.append(svg.element("g", mark, class_=f"mark {series_class(i)}"))
    body += [
        svg.text(place.x, place.baseline, name, anchor=place.anchor, class_="label strong")
        for place, name in zip(places, names, strict=True)
    ]
    return svg.document(canvas.width, canvas.height, "Fidelity against size", body, canvas.class_)


def _positive(row: SchemeResult) -> list[float]:
    kl = row.fidelity.kl_mean
    return [v for v in (kl.value, kl.low, kl.high) if v is not None and v > 0]


def _middle(box: Box) -> float:
    return (box.top + box.bottom) / 2


def _size_axis(x: Scale, frame: Box, largest: int, canvas: Canvas) -> list[str]:
    factor, unit = next(((f, u) for f, u in wording.UNITS if largest >= f), (1, "B"))
    parts = [svg.line(frame.left, frame.bottom, frame.right, frame.bottom, "axis")]
    for tick in svg.linear_ticks(0, x.high / factor, 4 if canvas.narrow else 8):
        at = x(tick * factor)
        parts.append(svg.line(at, frame.top, at, frame.bottom, "grid"))
        parts.append(svg.text(at, frame.bottom + 18, f"{tick:g}", anchor="middle", class_="tick"))
    middle = (frame.left + frame.right) / 2
    parts.append(
        svg.text(middle, frame.bottom + 40, f"size of the weight files ({unit})", anchor="middle", class_="axis-name")
    )
    return parts


def _kl_axis(y: Scale, frame: Box, floor: Box) -> list[str]:
    parts = [svg.element("rect", x=floor.left, y=floor.top, width=floor.width, height=floor.height, class_="zero")]
    for tick in svg.log_ticks(y.low, y.high):
        parts.append(svg.line(frame.left, y(tick), frame.right, y(tick), "grid"))
        parts.append(svg.text(frame.left - 8, y(tick) + 4.5, f"{tick:g}", anchor="end", class_="tick"))
    parts.append(svg.text(frame.left - 8, _middle(floor) + 4.5, "0", anchor="end", class_="tick"))
    parts.append(svg.text(floor.left + 7, _middle(floor) + 4.5, "identical", class_="tick"))
    name = "mean KL divergence from the source (nats per token, lower is better)"
    shown = name if frame.width > 500 else "mean KL divergence (nats per token)"
    parts.append(svg.text(frame.left - 46, 18, shown, class_="axis-name"))
    return parts


def _whisker(row: SchemeResult, at: float, y: Scale) -> tuple[str, Box | None]:
    """The confidence interval of a point, and the room it takes."""
    kl = row.fidelity.kl_mean
    if kl.low is None or kl.high is None or kl.low <= 0:
        return "", None
    top, bottom = y(kl.high), y(kl.low)
    parts = svg.line(at, top, at, bottom, "whisker")
    parts += svg.line(at - 4, top, at + 4, top, "whisker") + svg.line(at - 4, bottom, at + 4, bottom, "whisker")
    return parts, Box(at - 5, top - 2, at + 5, bottom + 2)


def _source_marker(results: Results, x: float, y: float) -> str:
    source = results.source
    perplexity = wording.perplexity(source.likelihood.perplexity.value)
    words = f"{source.name}, the source: {wording.size(source.size)}, perplexity {perplexity}"
    return svg.element("g", svg.title(words) + svg.element("circle", cx=x, cy=y, r=9.5), class_="source")


def _point_title(row: SchemeResult) -> str:
    found = row.fidelity
    span = wording.interval(found.kl_mean)
    return (
        f"{row.name}: {wording.size(row.size)}, {row.bits_per_weight:.2f} bits per weight\n"
        f"mean KL {wording.significant(found.kl_mean.value)}{f' ({span})' if span else ''}\n"
        f"top-1 agreement {wording.percent(found.top1.value)}, perplexity {wording.perplexity(found.perplexity.value)}"
    )


# ---------------------------------------------------------------------- error by layer


def error_by_layer(results: Results, canvas: Canvas) -> str | None:
    """Relative error of the hidden state after each layer (logarithmic), a line per scheme; None if unmeasured."""
    shown = [(i, row) for i, row in enumerate(results.schemes) if any(error > 0 for error in row.layer_errors)]
    if not shown:
        return None
    label_room = max(svg.text_width(row.name) for _, row in shown) + 30
    frame = Box(58, 34, canvas.width - label_room, canvas.height - 52)
    # The embedding (index 0) is not quantized unless asked for, and 0 has no place on a logarithmic axis.
    positive = [error for _, row in shown for error in row.layer_errors if error > 0]
    layers = max(len(row.layer_errors) for _, row in shown) - 1
    first = next(k for k in range(layers + 1) if any(row.layer_errors[k] > 0 for _, row in shown))
    x = Scale(first, max(layers, first + 1), frame.left + 10, frame.right)
    y = Scale(*svg.log_limits(positive), frame.bottom, frame.top, log=True)
    body = _layer_axes(x, y, frame, first, layers)
    paths = [[(x(k), y(e)) for k, e in enumerate(row.layer_errors) if e > 0] for _, row in shown]
    ends = svg.spread_apart([path[-1][1] for path in paths], svg.LINE_HEIGHT, frame.top, frame.bottom)
    for (i, row), path, label_y in zip(shown, paths, ends, strict=True):
        body.append(_series(i, row, path))
        end_x, end_y = path[-1]
        body.append(svg.line(end_x + 7, end_y, end_x + 18, label_y, f"leader {series_class(i)}"))
        body.append(svg.text(end_x + 22, label_y + 4.5, row.name, class_="label strong"))
    return svg.document(canvas.width, canvas.height, "Error by layer", body, canvas.class_)


def _layer_axes(x: Scale, y: Scale, frame: Box, first: int, layers: int) -> list[str]:
    parts = [svg.line(frame.left, frame.bottom, frame.right + 10, frame.bottom, "axis")]
    for tick in svg.log_ticks(y.low, y.high):
        parts.append(svg.line(frame.left, y(tick), frame.right + 10, y(tick), "grid"))
        parts.append(svg.text(frame.left - 8, y(tick) + 4.5, wording.percent_plain(tick), anchor="end", class_="tick"))
    step = max(1, -(-(layers - first) // (6 if frame.width < 400 else 16)))
    for k in range(first, layers + 1, step):
        name = "embedding" if k == 0 else str(k)
        parts.append(svg.text(x(k), frame.bottom + 18, name, anchor="middle", class_="tick"))
    middle = (frame.left + frame.right) / 2
    parts.append(svg.text(middle, frame.bottom + 40, "after decoder layer", anchor="middle", class_="axis-name"))
    parts.append(svg.text(frame.left - 46, 18, "relative error of the hidden state", class_="axis-name"))
    return parts


def _series(index: int, row: SchemeResult, path: Sequence[tuple[float, float]]) -> str:
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in path)
    marks = "".join(svg.marker(index, px, py, 4.0) for px, py in path)
    words = f"{row.name}: " + ", ".join(wording.percent_plain(error) for error in row.layer_errors)
    curve = svg.element("polyline", points=points, class_="curve")
    return svg.element("g", svg.title(words) + curve + marks, class_=f"mark {series_class(index)}")


# ---------------------------------------------------------------------- weight error and speed


def weight_errors(results: Results, canvas: Canvas) -> str | None:
    """Relative error of every linear's weight (logarithmic): a row per scheme, a dot per module."""
    shown = [(i, row) for i, row in enumerate(results.schemes) if any(error > 0 for _, error in row.weight_errors)]
    if not shown:
        return None
    frame = Box(max(svg.text_width(row.name) for _, row in shown) + 20, 12, canvas.width - 22, 12 + 34.0 * len(shown))
    x = Scale(
        *svg.log_limits([e for _, row in shown for _, e in row.weight_errors if e > 0]), frame.left, frame.right, True
    )
    body = []
    for tick in svg.log_ticks(x.low, x.high):
        body.append(svg.line(x(tick), frame.top, x(tick), frame.bottom, "grid"))
        body.append(svg.text(x(tick), frame.bottom + 18, wording.percent_plain(tick), anchor="middle", class_="tick"))
    for position, (i, row) in enumerate(shown):
        middle = frame.top + 34.0 * position + 17
        body.append(svg.text(frame.left - 12, middle + 4.5, row.name, anchor="end", class_="label strong"))
        dots = [_dot(module, error, x(error), middle) for module, error in row.weight_errors if error > 0]
        body.append(svg.element("g", "".join(dots), class_=f"mark faint {series_class(i)}"))
    middle_x = (frame.left + frame.right) / 2
    body.append(
        svg.text(middle_x, frame.bottom + 40, "relative error of a weight matrix", anchor="middle", class_="axis-name")
    )
    return svg.document(canvas.width, frame.bottom + 52, "Error of the weights", body, canvas.class_)


def _dot(module: str, error: float, x: float, y: float) -> str:
    return svg.element("g", svg.title(f"{module}: {wording.percent_plain(error)}") + svg.marker(0, x, y, 4.5))


def speed_bars(results: Results, canvas: Canvas) -> str | None:
    """Decoding speed, a bar per model; None if it was not measured."""
    speeds = [(f"{results.source.name} (source)", "source-bar", results.source.speed)]
    speeds += [(row.name, series_class(i), row.speed) for i, row in enumerate(results.schemes)]
    measured = [(name, class_, speed.tokens_per_second) for name, class_, speed in speeds if speed is not None]
    if not measured:
        return None
    left = max(svg.text_width(name) for name, _, _ in measured) + 20
    x = Scale(0, max(tokens for _, _, tokens in measured), left, canvas.width - 56)
    body = []
    for position, (name, class_, tokens) in enumerate(measured):
        top = 8 + 30.0 * position
        body.append(svg.text(left - 10, top + 15.5, name, anchor="end", class_="label strong"))
        bar = svg.element("rect", x=left, y=top, width=max(1.0, x(tokens) - left), height=22.0, rx=3, class_="bar")
        body.append(
            svg.element("g", svg.title(f"{name}: {tokens:.1f} tokens per second") + bar, class_=f"mark {class_}")
        )
        body.append(svg.text(x(tokens) + 8, top + 15.5, f"{tokens:.0f}"))
    return svg.document(canvas.width, 16 + 30.0 * len(measured), "Decoding speed", body, canvas.class_)
