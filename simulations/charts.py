"""The drawings of the simulator's report, made of `privacy/page/drawing.py`. What is not finite is not drawn."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from markupsafe import Markup

from ..privacy.page.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Caption, line, plain, svg, text, ticks

LABEL_GAP = 15  # between two labels at the end of lines, so that they never overlap
MOST_HOVERED = 120  # points of one line that answer to the pointer; more only make the page heavy
MOST_LARGE_DOTS = 40  # loose dots before they shrink, so as not to cover the line
NAME_LENGTH = 13  # characters of a name that fit beside its bar

Point: TypeAlias = tuple[float, float]
Form: TypeAlias = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Series:
    """One line (or loose dots) of a chart; `kind` is its CSS class."""

    kind: str
    points: Sequence[Point]
    is_line: bool = True


@dataclass(frozen=True, slots=True)
class Bar:
    """One institution: what was charged (a mark) and what was executed (a bar), either may be unknown."""

    name: str
    charged: float | None
    executed: float | None


def line_chart(caption: Caption, series: Sequence[Series], form: Form, axis: Form = plain) -> Markup:
    """Values by round, from zero up; empty when there is nothing finite to draw.

    `form` writes the value at the end of each line, `axis` the marks beside the grid.
    """
    drawn = [Series(one.kind, _finite(one.points), one.is_line) for one in series]
    drawn = [one for one in drawn if one.points]
    if not drawn:
        return Markup("")
    rounds = [x for one in drawn for x, _ in one.points]
    values = [y for one in drawn for _, y in one.points]
    frame = _Frame(max([*rounds, 1.0]), tuple(ticks(min([0.0, *values]), max(values))))
    parts = [*_axes(frame, axis), *(_draw(frame, one, form) for one in drawn)]
    ends = [(one.kind, *one.points[-1]) for one in drawn if one.is_line]
    return svg(caption, HEIGHT, [*parts, *_end_labels(frame, ends, form)])


def named_bars(caption: Caption, bars: Sequence[Bar]) -> Markup:
    """One row for each institution: a bar as long as what was executed, a mark at what was charged."""
    left, pitch = 104, min(26.0, (HEIGHT - TOP - BOTTOM) / max(len(bars), 1))
    high = _highest(bars)
    bottom = TOP + pitch * len(bars)

    def x(value: float) -> float:
        return left + (WIDTH - 16 - left) * value / high

    parts = []
    for mark in ticks(0, high):
        parts.append(line("grid", x(mark), TOP, x(mark), bottom))
        parts.append(text("middle", x(mark), bottom + 18, plain(mark)))
    for row, bar in enumerate(bars):
        middle = TOP + pitch * (row + 0.5)
        parts.append(text("end name", left - 8, middle + 4, _short(bar.name)))
        if bar.executed is not None:
            parts.append(line("bar executed", x(0), middle, x(bar.executed), middle, min(9, pitch * 0.55)))
        if bar.charged is not None:
            place, reach = x(bar.charged), pitch * 0.36
            parts.append(line("mark charged", place, middle - reach, place, middle + reach))
        else:
            parts.append(text("start none", x(0) + 4, middle + 4, "nothing charged"))
    return svg(caption, round(bottom + BOTTOM - 8), parts)


def column_strip(caption: Caption, bars: Sequence[Bar]) -> Markup:
    """Many institutions, each a thin column, in order of what was executed; a mark at what was charged."""
    ordered = sorted(bars, key=lambda bar: (bar.executed or 0.0, bar.charged or 0.0))
    frame = _Frame(float(len(ordered)), tuple(ticks(0, _highest(bars))))
    pitch = (WIDTH - RIGHT - LEFT) / len(ordered)
    width = pitch * 0.7 if pitch > 3 else pitch + 0.4  # thin columns touch, or their edges would shimmer
    parts = _grid(frame, plain)
    for column, bar in enumerate(ordered):
        x = frame.x(column + 0.5)
        if bar.executed is not None:
            parts.append(line("bar executed", x, frame.y(0), x, frame.y(bar.executed), width))
        if bar.charged is not None:
            y = frame.y(bar.charged)
            parts.append(line("mark charged", x - pitch / 2, y, x + pitch / 2, y))
    words = f"{len(ordered)} institutions, lowest executed first"
    parts.append(text("middle", (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, words))
    return svg(caption, HEIGHT, parts)


def waffle(caption: Caption, right: int, reference: int) -> Markup:
    """A hundred squares: `right` answered correctly, those up to `reference` lost, the rest wrong."""
    parts, pitch, columns = [], 22, 20
    cell = Markup('<rect class="cell {}" x="{}" y="{}" width="18" height="18" rx="3"/>')
    for place in range(100):
        kind = "right" if place < right else "lost" if place < reference else "wrong"
        parts.append(cell.format(kind, place % columns * pitch + 1, place // columns * pitch + 1))
    return svg(caption, 5 * pitch, parts)


@dataclass(frozen=True, slots=True)
class _Frame:
    last_round: float
    marks: tuple[float, ...]

    def x(self, value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value / self.last_round

    def y(self, value: float) -> float:
        low, high = self.marks[0], self.marks[-1]
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / ((high - low) or 1.0)


def _finite(points: Iterable[Point]) -> list[Point]:
    return [(x, y) for x, y in points if math.isfinite(y)]


def _highest(bars: Iterable[Bar]) -> float:
    known = [value for bar in bars for value in (bar.charged, bar.executed) if value is not None]
    return ticks(0, max(known, default=0.0) or 1.0)[-1]


def _grid(frame: _Frame, axis: Form) -> list[Markup]:
    parts = []
    for mark in frame.marks:
        y = frame.y(mark)
        parts.append(line("grid" if mark else "ground", LEFT, y, WIDTH - RIGHT, y))
        parts.append(text("end", LEFT - 8, y + 4, axis(mark)))
    return parts


def _axes(frame: _Frame, axis: Form) -> list[Markup]:
    rounds = [mark for mark in ticks(0, frame.last_round) if mark.is_integer() and mark <= frame.last_round]
    labels = [text("middle", frame.x(mark), HEIGHT - 12, f"{mark:.0f}") for mark in rounds[1:]]
    return [*_grid(frame, axis), text("middle", frame.x(0), HEIGHT - 12, "round 0"), *labels]


def _draw(frame: _Frame, series: Series, form: Form) -> Markup:
    places = [(frame.x(x), frame.y(y)) for x, y in series.points]
    parts = []
    if series.is_line:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(series.kind, path))
    size = "" if series.is_line or len(places) <= MOST_LARGE_DOTS else " small"
    dot = Markup('<circle class="dot {}{}" cx="{:.1f}" cy="{:.1f}" r="{}"/>')
    for x, y in places[-1:] if series.is_line else places:
        parts.append(dot.format(series.kind, size, x, y, 3.5))
    if len(places) <= MOST_HOVERED:
        hover = Markup('<circle class="hover" cx="{:.1f}" cy="{:.1f}" r="6"><title>{}</title></circle>')
        words = [f"round {number:.0f}: {form(value)}" for number, value in series.points]
        parts += [hover.format(x, y, spoken) for (x, y), spoken in zip(places, words, strict=True)]
    return Markup("").join(parts)


def _end_labels(frame: _Frame, ends: Iterable[tuple[str, float, float]], form: Form) -> list[Markup]:
    labels, lowest = [], dict[float, float]()
    for kind, x, y in sorted(ends, key=lambda end: -end[2]):
        lowest[x] = max(frame.y(y), lowest.get(x, -math.inf) + LABEL_GAP)
        labels.append(text(f"start value {kind}", frame.x(x) + 8, lowest[x] + 4, form(y)))
    return labels


def _short(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else name[: NAME_LENGTH - 1] + "…"
