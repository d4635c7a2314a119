"""What a sweep found: a row for each combination, over its seeds; results.csv; the plan that did best.

The rules. Every number comes from the points' own results. An epsilon is that of the seed that was charged most (or
executed most), and is never without delta, unit and relation. A combination is compared with others only where every
seed is done, with a finite score.
"""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..privacy.channel.files import write_whole
from ..privacy.errors import UsageError
from ..privacy.plan_file import plan_text
from .sweep import Point, Settings, Sweep
from .views import Views

Json = dict[str, object]
CSV, BEST = "results.csv", "best-plan.toml"
CHOICE_NOTE = "choosing a plan by results on real data is itself not accounted for: choose on simulated data only"
LOWER_IS_BETTER = frozenset({"loss"})
_OF_RESULT = ("accuracy", "loss", "epsilon", "epsilon_executed", "delta", "unit", "relation", "rounds", "seconds")


@dataclass(frozen=True, slots=True)
class Claim:
    """The largest epsilons of a combination's seeds, and the terms that they are at."""

    epsilon: float
    epsilon_executed: float
    delta: float
    unit: str
    relation: str

    @property
    def terms(self) -> str:
        """What must stand near every epsilon."""
        return f"delta {self.delta:g}, unit {self.unit}, {self.relation}"


@dataclass(frozen=True, slots=True)
class Row:
    """A combination, over its seeds. `mean`, `deviation` (of a sample): of `scores`, held-out and finite; or None."""

    settings: Settings
    scores: tuple[float, ...]
    seeds: int
    claim: Claim | None

    @property
    def is_whole(self) -> bool:
        """Whether every seed has a finite score."""
        return len(self.scores) == self.seeds

    @property
    def mean(self) -> float | None:
        """Over the seeds that have a score."""
        return statistics.fmean(self.scores) if self.scores else None

    @property
    def deviation(self) -> float | None:
        """Between seeds; None for a single one."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    @property
    def label(self) -> str:
        """For people."""
        return ", ".join(f"{key}={value}" for key, value in self.settings)


@dataclass(frozen=True, slots=True)
class Findings:
    """All rows, in the grid's order, and the best of them by `metric`; None while no combination is whole."""

    metric: str
    rows: tuple[Row, ...]
    best: Row | None
    done: int
    score_note: str
    noise_note: str

    @property
    def terms(self) -> list[str]:
        """All terms that the rows' epsilons are at."""
        return sorted({row.claim.terms for row in self.rows if row.claim})

    @classmethod
    def of(cls, sweep: Sweep, metric: str) -> "Findings":
        """What the folder holds now. Raises UsageError where the points have no such metric."""
        rows = tuple(_row(sweep, points, metric) for points in sweep.combinations)
        results = [result for point in sweep.points if (result := sweep.result(point)) is not None]
        return cls(
            metric,
            rows,
            best_of(rows, metric),
            done=len(results),
            score_note=next((str(result["accuracy_note"]) for result in results), ""),
            noise_note=next((str(note) for result in results if (note := result.get("noise_note"))), ""),
        )


def best_of(rows: Sequence[Row], metric: str) -> Row | None:
    """The best mean among the whole ones; the first of equals."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    whole = [row for row in rows if row.is_whole]
    return max(whole, key=lambda row: sign * (row.mean or 0.0), default=None)


def mean_so_far(scores: Mapping[Settings, Sequence[float]], metric: str) -> tuple[Settings, float] | None:
    """The best mean of the scores that are there, and whose; None for none. Only good to show while a sweep runs."""
    sign = -1 if metric in LOWER_IS_BETTER else 1
    means = [(settings, statistics.fmean(found)) for settings, found in scores.items()]
    return max(means, key=lambda mean: sign * mean[1], default=None)


def score_of(sweep: Sweep, point: Point, result: Mapping[str, Any], metric: str) -> float | None:
    """The point's last score on held-out records; None where it is not finite. Raises UsageError for none such."""
    scores = Views(sweep.folder(point) / "views.jsonl").until(result["rounds"])[-1].scores
    if metric not in scores:
        raise UsageError(f"--metric {metric}: the task has {', '.join(scores)}", "--metric loss")
    return scores[metric] if math.isfinite(scores[metric]) else None


def write_csv(sweep: Sweep, findings: Findings, failed: Mapping[str, str]) -> None:
    """A line for each point, done or not."""
    keys = [axis.key for axis in sweep.axes]
    other = [findings.metric] if findings.metric not in _OF_RESULT else []
    text = io.StringIO()
    lines = csv.DictWriter(text, [*keys, "seed", "state", *other, *_OF_RESULT, "folder", "reason"])
    lines.writeheader()
    for point in sweep.points:
        result = sweep.result(point)
        told: Json = dict(point.settings) | {"seed": point.seed, "folder": str(sweep.folder(point))}
        told |= {"state": "done"} if result else {"state": "missing", "reason": failed.get(point.name, "")}
        if result is not None:
            told |= {key: result[key] for key in _OF_RESULT}
            told |= {key: score_of(sweep, point, result, key) for key in other}
        lines.writerow(told)
    write_whole(sweep.root / CSV, text.getvalue().encode())


def write_best(sweep: Sweep, findings: Findings) -> Path | None:
    """The best combination's plan, with its first seed; None where there is none."""
    best = findings.best
    if best is None:
        return None
    plan = next(points[0].plan for points in sweep.combinations if points[0].settings == best.settings)
    of = f"{len(sweep.combinations)} combinations, {sweep.seeds} seed{'s' if sweep.seeds != 1 else ''} each"
    head = [
        f"{best.label}: mean {findings.metric} {best.mean:.4f} on held-out records, the best of {of}.",
        "That is the simulator's view, not a release. Nothing here was charged for the choice:",
        f"{CHOICE_NOTE}.",
    ]
    path = sweep.root / BEST
    write_whole(path, ("".join(f"# {line}\n" for line in head) + plan_text(plan)).encode())
    return path


def as_json(sweep: Sweep, findings: Findings, failed: Mapping[str, str], seconds: float) -> Json:
    """For `--json`."""
    return {
        "format": 1,
        "name": sweep.name,
        "folder": str(sweep.root),
        "metric": findings.metric,
        "over": {axis.key: list(axis.values) for axis in sweep.axes},
        "seeds": sweep.seeds,
        "points": len(sweep.points),
        "done": findings.done,
        "failed": dict(failed),
        "combinations": [_row_json(row) for row in findings.rows],
        "best": _row_json(findings.best) if findings.best else None,
        "note": CHOICE_NOTE,
        "seconds": round(seconds, 3),
    }


def _row_json(row: Row) -> Json:
    claim = row.claim
    told = {key: getattr(claim, key, None) for key in ("epsilon", "epsilon_executed", "delta", "unit", "relation")}
    return {
        "settings": dict(row.settings),
        "mean": row.mean,
        "deviation": row.deviation,
        "scores": list(row.scores),
        "seeds": row.seeds,
        **told,
    }


def _row(sweep: Sweep, points: Sequence[Point], metric: str) -> Row:
    found = [(point, result) for point in points if (result := sweep.result(point)) is not None]
    scores = [score_of(sweep, point, result, metric) for point, result in found]
    claims = [_claim_of(result) for _, result in found]
    known = [claim for claim in claims if claim is not None]
    return Row(
        settings=points[0].settings,
        scores=tuple(score for score in scores if score is not None),
        seeds=len(points),
        claim=_largest(known) if known else None,
    )


def _claim_of(result: Mapping[str, Any]) -> Claim | None:
    if result["epsilon"] is None:
        return None
    keys = ("epsilon", "epsilon_executed", "delta", "unit", "relation")
    return Claim(**{key: result[key] for key in keys})


def _largest(claims: Sequence[Claim]) -> Claim:
    """Seeds share their terms: these come from one plan."""
    first = claims[0]
    return Claim(
        max(claim.epsilon for claim in claims),
        max(claim.epsilon_executed for claim in claims),
        first.delta,
        first.unit,
        first.relation,
    )
