"""The page that a sweep leaves behind: one file, nothing fetched, in the look of a simulation's report.

Rules. An epsilon is never printed without delta, unit and relation beside it, and is rounded up, never down. It is the
one that was charged, also along the axis of a drawing: never the one that the plan asked for. Means are the simulator's
view and say so. Words stand in `sweep.html.j2`, drawings in `sweep_charts.py`.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from .. import __version__
from ..privacy.budget.accounting import shown
from ..privacy.channel.files import write_whole
from ..privacy.page.drawing import Caption
from ..privacy.page.pages import rendered
from ..privacy.plan_file import toml_value
from .sweep import Settings, Sweep
from .sweep_charts import Dot, Line, error_chart, number_mark, percent_mark, places
from .sweep_results import CHOICE_NOTE, Findings, Row

EPSILON = "privacy.epsilon"
KINDS = ("private", "charged", "reference")  # the look of as many lines as a reader tells apart
OTHER = "other"  # of all lines but the best, where there are more
MOST_ROWS = 500  # of the table; results.csv holds them all
MOST_FAILURES = 20


@dataclass(frozen=True, slots=True)
class Figure:
    """A drawing with its title, what stands along its axis, and the key to its lines."""

    title: str
    axis: str
    legend: tuple[tuple[str, str], ...]
    drawing: Markup


def write_sweep_report(sweep: Sweep, findings: Findings, failed: Mapping[str, str], path: Path) -> None:
    """Write one self-contained HTML page about a sweep; what is not done yet is left out, and said to be."""
    view = {
        "sweep": sweep,
        "found": findings,
        "best": findings.best,
        "failed": list(failed.items())[:MOST_FAILURES],
        "failures": len(failed),
        "rows": findings.rows[:MOST_ROWS],
        "figures": figures(sweep, findings),
        "terms": findings.terms,
        "choice_note": CHOICE_NOTE,
        "version": __version__,
    }
    forms = {"epsilon": shown, "score": lambda value: _score(findings.metric, value)}
    page = rendered(Path(__file__).parent / "sweep.html.j2", view, forms)
    write_whole(path, page.encode())


def figures(sweep: Sweep, findings: Findings) -> list[Figure]:
    """One for each swept key, epsilon first; where terms differ, one for each."""
    drawn: list[Figure] = []
    rows = [row for row in findings.rows if row.mean is not None]
    for axis in sorted(sweep.axes, key=lambda axis: axis.key != EPSILON):
        if axis.key != EPSILON:
            drawn.append(_figure(f"axis-{len(drawn)}", axis.key, axis.key, rows, findings))
            continue
        for terms in findings.terms:
            same = [row for row in rows if row.claim and row.claim.terms == terms]
            drawn.append(_figure(f"axis-{len(drawn)}", EPSILON, f"epsilon charged, at {terms}", same, findings))
    return [figure for figure in drawn if figure.drawing]


def _figure(name: str, key: str, axis: str, rows: Sequence[Row], findings: Findings) -> Figure:
    marks = _marks(key, rows)
    groups: dict[Settings, list[Row]] = defaultdict(list)
    for row in rows:
        groups[_others(row, key)].append(row)
    kinds = _kinds(list(groups), findings.best, key)
    lines = [Line(kinds[rest], [_dot(row, marks, findings) for row in group]) for rest, group in groups.items()]
    lines.sort(key=lambda one: one.kind != OTHER)  # the grey ones below
    title = f"{findings.metric.capitalize()} against {'epsilon' if key == EPSILON else key}"
    caption = Caption(name, title, f"Means on held-out records, {findings.score_note}; along: {axis}.")
    drawing = error_chart(caption, lines, _labels(marks), percent_mark if _is_share(findings.metric) else number_mark)
    return Figure(title, axis, _legend(kinds), drawing)


def _marks(key: str, rows: Sequence[Row]) -> dict[Settings, tuple[float, str]]:
    """Where each row stands along the axis, and the label there; by its settings."""
    if key == EPSILON:
        values: list[object] = [row.claim.epsilon if row.claim else 0.0 for row in rows]
        labels = [shown(row.claim.epsilon) if row.claim else "" for row in rows]
        return dict(zip((row.settings for row in rows), zip(places(values), labels, strict=True), strict=True))
    written = list(dict.fromkeys(dict(row.settings)[key] for row in rows))
    at = dict(zip(written, places([toml_value(value) for value in written]), strict=True))
    return {row.settings: (at[value], value) for row in rows for value in [dict(row.settings)[key]]}


def _labels(marks: Mapping[Settings, tuple[float, str]]) -> list[tuple[float, str]]:
    return list({label: (place, label) for place, label in marks.values()}.values())


def _dot(row: Row, marks: Mapping[Settings, tuple[float, str]], findings: Findings) -> Dot:
    mean, spread = row.mean or 0.0, row.deviation
    claim = f"; epsilon charged {shown(row.claim.epsilon)} at {row.claim.terms}" if row.claim else ""
    words = f"{_plain(row)}: {_score(findings.metric, mean)}"
    words += f" ± {_score(findings.metric, spread)}" if spread is not None else ""
    return Dot(marks[row.settings][0], mean, spread, words + claim)


def _plain(row: Row) -> str:
    """The settings but epsilon: what was asked for is no epsilon of a run."""
    return ", ".join(f"{key}={value}" for key, value in row.settings if key != EPSILON) or "this plan"


def _others(row: Row, key: str) -> Settings:
    return tuple(setting for setting in row.settings if setting[0] != key)


def _kinds(groups: Sequence[Settings], best: Row | None, key: str) -> dict[Settings, str]:
    if len(groups) <= len(KINDS):
        return dict(zip(groups, KINDS, strict=False))
    chosen = _others(best, key) if best else None
    return {group: KINDS[0] if group == chosen else OTHER for group in groups}


def _legend(kinds: Mapping[Settings, str]) -> tuple[tuple[str, str], ...]:
    if len(kinds) == 1:
        return ()
    named = [(kind, ", ".join(f"{k}={v}" for k, v in group)) for group, kind in kinds.items() if kind != OTHER]
    grey = sum(kind == OTHER for kind in kinds.values())
    return (*named, *([(OTHER, f"{grey} other combinations")] if grey else []))


def _is_share(metric: str) -> bool:
    return metric == "accuracy"


def _score(metric: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if _is_share(metric) else f"{value:.4g}"
