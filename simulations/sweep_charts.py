"""The drawings of a sweep's page: means with error bars along one swept key, made of `privacy/page/drawing.py`."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from ..privacy.page.drawing import BOTTOM, HEIGHT, LEFT, TOP, WIDTH, Caption, line, plain, svg, text, ticks

LOG_FROM = 8.0  # the largest over the smallest value from which an axis is logarithmic
MARGIN = 18  # between the frame and the outermost points
RIGHT_EDGE = WIDTH - 12
CAP = 4.0  # half the width of an error bar's ends
LETTER = 6.6  # user units that a letter takes, to keep labels apart

Form = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Dot:
    """A mean at a place from 0 to 1; `deviation` is half the length of its error bar."""

    place: float
    mean: float
    deviation: float | None
    words: str


@dataclass(frozen=True, slots=True)
class Line:
    """Combinations that differ in the swept key alone; `kind` is the CSS class."""

    kind: str
    dots: Sequence[Dot]


def places(values: Sequence[object]) -> list[float]:
    """Where values stand along an axis, 0 to 1: by logarithm where they span much, evenly where they are no numbers.

    >>> places([1.0, 2.0, 4.0, 16.0])
    [0.0, 0.25, 0.5, 1.0]
    >>> places(["fedavg", "krum", "fedmedian"])
    [0.0, 0.5, 1.0]
    """
    numbers = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]
    if len(numbers) < len(values) or len(set(numbers)) < 2:
        return [n / max(len(values) - 1, 1) if len(values) > 1 else 0.5 for n in range(len(values))]
    low, high = min(numbers), max(numbers)
    if low > 0 and high / low >= LOG_FROM:
        numbers, low, high = [math.log(number) for number in numbers], math.log(low), math.log(high)
    return [(number - low) / (high - low) for number in numbers]


def error_chart(caption: Caption, lines: Sequence[Line], labels: Iterable[tuple[float, str]], axis: Form) -> Markup:
    """Means with error bars; empty when there is nothing to draw. `labels` stand below, `axis` writes the scale."""
    dots = [dot for one in lines for dot in one.dots]
    if not dots:
        return Markup("")
    reach = [(dot.mean, dot.deviation or 0.0) for dot in dots]
    marks = ticks(min(mean - spread for mean, spread in reach), max(mean + spread for mean, spread in reach))
    frame = _Frame(marks[0], marks[-1])
    scale = [part for mark in marks for part in _mark(frame, mark, axis)]
    return svg(caption, HEIGHT, [*scale, *_below(labels), *(_drawn(frame, one) for one in lines)])


def percent_mark(value: float) -> str:
    """A share beside the grid."""
    return f"{100 * value:g}%"


def number_mark(value: float) -> str:
    """Any other number beside the grid."""
    return plain(float(f"{value:.4g}"))


@dataclass(frozen=True, slots=True)
class _Frame:
    low: float
    high: float

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / ((self.high - self.low) or 1.0)


def _x(place: float) -> float:
    return LEFT + MARGIN + (RIGHT_EDGE - LEFT - 2 * MARGIN) * place


def _mark(frame: _Frame, mark: float, axis: Form) -> list[Markup]:
    y = frame.y(mark)
    kind = "ground" if mark == frame.low else "grid"
    return [line(kind, LEFT, y, RIGHT_EDGE, y), text("end", LEFT - 8, y + 4, axis(mark))]


def _below(labels: Iterable[tuple[float, str]]) -> list[Markup]:
    """Labels from left to right, without those that would run into one another."""
    parts, free = [], -math.inf
    for place, words in sorted(labels):
        x, half = _x(place), len(words) * LETTER / 2
        if x - half >= free:
            parts.append(text("middle", x, HEIGHT - 12, words))
            free = x + half + LETTER
    return parts


def _drawn(frame: _Frame, one: Line) -> Markup:
    at = [(_x(dot.place), frame.y(dot.mean), dot) for dot in sorted(one.dots, key=lambda dot: dot.place)]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in at)
    parts = [Markup('<polyline class="line {}" points="{}"/>').format(one.kind, path)]
    for x, y, dot in at:
        parts += _whisker(frame, one.kind, x, dot)
        parts.append(Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.5"/>').format(one.kind, x, y))
        hover = Markup('<circle class="hover" cx="{:.1f}" cy="{:.1f}" r="7"><title>{}</title></circle>')
        parts.append(hover.format(x, y, dot.words))
    return Markup("").join(parts)


def _whisker(frame: _Frame, kind: str, x: float, dot: Dot) -> list[Markup]:
    if not dot.deviation:
        return []
    top, bottom = frame.y(dot.mean + dot.deviation), frame.y(dot.mean - dot.deviation)
    ends = [line(f"whisker {kind}", x - CAP, y, x + CAP, y) for y in (top, bottom)]
    return [line(f"whisker {kind}", x, top, x, bottom), *ends]
