"""The picture of a budget over time: spent against limit, step by step, and where something was refused."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from markupsafe import Markup

from ..budget.accounting import shown
from ..page.drawing import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Caption, line, plain, svg, text, ticks

MOST_STEPS = 2000  # corners of one line; more are thinned out, the last is always drawn
MOST_MARKED = 200  # refusals that are marked one by one
_LABEL_GAP = 15


@dataclass(frozen=True, slots=True)
class Point:
    """The account at a moment. `spent`: infinite from where it is void on."""

    moment: datetime
    spent: float
    limit: float


def budget_chart(caption: Caption, points: Sequence[Point], refused: Sequence[datetime]) -> Markup:
    """Spent and limit as steps over time, refused attempts as marks; empty where the account has no history."""
    if not points:
        return Markup("")
    points = _thinned(points)
    marked = list(refused)[:MOST_MARKED]
    moments = [*(point.moment for point in points), *marked]
    first, last = min(moments), max(moments)
    seconds = (last - first).total_seconds() or 1.0
    finite = [point.spent for point in points if math.isfinite(point.spent)]
    marks = ticks(0, max([*finite, *(point.limit for point in points)]))

    def x(moment: datetime) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (moment - first).total_seconds() / seconds

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (1 - value / (marks[-1] or 1.0))

    parts = []
    for mark in marks:
        parts.append(line("grid" if mark else "ground", LEFT, y(mark), WIDTH - RIGHT, y(mark)))
        parts.append(text("end", LEFT - 8, y(mark) + 4, plain(mark)))
    parts.append(text("start", LEFT, HEIGHT - 12, f"{first:%Y-%m-%d}"))
    if f"{first:%F}" != f"{last:%F}":
        parts.append(text("end", WIDTH - RIGHT, HEIGHT - 12, f"{last:%Y-%m-%d}"))
    end = WIDTH - RIGHT
    limits = [(x(point.moment), y(point.limit)) for point in points]
    spent = [(x(point.moment), y(point.spent)) for point in points if math.isfinite(point.spent)]
    parts += [_steps("charged", limits, end), _steps("executed", spent, end if len(spent) == len(points) else None)]
    parts += [_refusal(x(moment), y(0)) for moment in marked]
    if len(spent) < len(points):
        void = next(x(point.moment) for point in points if not math.isfinite(point.spent))
        parts.append(line("mark void", void, TOP, void, HEIGHT - BOTTOM))
        side, place = ("start none", void + 5) if void < WIDTH / 2 else ("end none", void - 5)
        parts.append(text(side, place, (TOP + HEIGHT - BOTTOM) / 2, "void: epsilon is infinite from here on"))
    return svg(caption, HEIGHT, [*parts, *_ends(points[-1], y)])


def _steps(kind: str, places: Sequence[tuple[float, float]], end: float | None) -> Markup:
    if not places:
        return Markup("")
    corners = [places[0]]
    for place in places[1:]:
        corners += [(place[0], corners[-1][1]), place]
    if end is not None:
        corners.append((end, corners[-1][1]))
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return Markup('<polyline class="line {}" points="{}"/>').format(kind, path)


def _refusal(x: float, ground: float) -> Markup:
    shape = Markup('<path class="refusal" d="M{:.1f} {:.1f}l7 7m0 -7l-7 7"><title>refused</title></path>')
    return shape.format(x - 3.5, ground - 14)


def _ends(point: Point, y: Callable[[float], float]) -> list[Markup]:
    parts = [text("start value charged", WIDTH - RIGHT + 6, y(point.limit) + 4, shown(point.limit))]
    if math.isfinite(point.spent):
        place = y(point.spent)
        if abs(place - y(point.limit)) < _LABEL_GAP:
            place = y(point.limit) + _LABEL_GAP
        parts.append(text("start value executed", WIDTH - RIGHT + 6, place + 4, shown(point.spent)))
    return parts


def _thinned(points: Sequence[Point]) -> list[Point]:
    stride = math.ceil(len(points) / MOST_STEPS)
    return [*points[:-1:stride], points[-1]]
