"""The page that a finished simulation leaves behind: one file, nothing fetched, made to be looked at.

Rules. An epsilon is never printed without delta, unit and relation beside it, and is rounded up, never down.
A run without a privacy claim prints no epsilon at all, whatever stands in its result. Held-out accuracy is
the simulator's view and says so. Words stand in `report.html.j2`, drawings in `charts.py`; numbers are made
readable here.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Annotated, Literal

from markupsafe import Markup
from pydantic import BaseModel, BeforeValidator, ConfigDict, FiniteFloat, model_validator

from ..privacy.page.drawing import Caption
from ..privacy.page.pages import rendered
from .charts import Bar, Series, column_strip, line_chart, named_bars, waffle

MOST_NODES_NAMED = 40  # rows of a table that a person still reads
MOST_NODES_DRAWN_BY_NAME = 16  # rows that fit beside a chart by round
MOST_ROUNDS_LISTED = 100  # rows of the table behind the charts; result.json holds them all
MOST_CLASSES_NUMBERED = 14  # columns whose counts still fit on a phone
MOST_CLASSES_LISTED = 30  # columns whose names still fit above them
# What a node of a simulation may have done, as `[simulation.faults]` names it, and in words.
FAULTS = {
    "drop": "not reached",
    "delay": "answered too late",
    "nan": "sent NaN",
    "flip-signs": "flipped signs",
    "scale": "scaled",
}
LIES = ("nan", "flip-signs", "scale")
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def _known(value: object) -> object:
    return value if not isinstance(value, float) or math.isfinite(value) else None


# A diverged loss is shown as unknown; an epsilon that is not finite is refused, since a dash would hide it.
_Measured = Annotated[float | None, BeforeValidator(_known)]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Round(_Value):
    round: int
    accuracy: _Measured
    loss: _Measured
    epsilon_executed: FiniteFloat | None = None
    answered: int | None = None
    released: Mapping[str, FiniteFloat] | None = None
    faults: Mapping[str, int] = {}


class _Node(_Value):
    name: str
    declared_size: int
    epsilon: FiniteFloat | None
    epsilon_executed: FiniteFloat | None
    state: str
    reason: str | None
    rounds_answered: int
    labels: tuple[int, ...] | None
    faults: Mapping[str, int] = {}


class _Result(_Value):
    """result.json, format 1."""

    format: Literal[1]
    name: str
    run_id: str
    task: str
    task_version: str
    dataset: str
    model: Mapping[str, object]
    plan_hash: str
    submission_hash: str
    seed: int
    accuracy: _Measured
    accuracy_note: str
    loss: _Measured
    accuracy_without_privacy: _Measured
    accuracy_without_faults: _Measured = None
    accuracy_under_fedavg: _Measured = None
    epsilon: FiniteFloat | None
    epsilon_executed: FiniteFloat | None
    epsilon_rdp_bound: FiniteFloat | None
    delta: FiniteFloat | None
    unit: str
    relation: str | None
    mechanism: str | None
    noise_multiplier: float | None
    clip_norm: float | None
    clip_norm_at_end: float | None = None
    sampling_rate: float | None
    local_sampling_rate: float | None = None
    local_steps: int
    noise_seeded: bool
    accountant: str | None
    rounds: int
    rounds_charged: int
    evaluations_charged: int
    seconds: float
    engine: str
    engine_reason: str | None = None
    strategy: str
    faults: Mapping[str, FiniteFloat] | None = None
    interrupted: bool
    classes: tuple[str, ...] | None
    partition: Mapping[str, object]
    records: Mapping[str, int]
    nodes: tuple[_Node, ...]
    history: tuple[_Round, ...]
    history_without_privacy: tuple[_Round, ...] | None
    history_without_faults: tuple[_Round, ...] | None = None
    history_under_fedavg: tuple[_Round, ...] | None = None
    comparisons_ended: Mapping[str, str] = {}
    versions: Mapping[str, str]

    @property
    def is_claim(self) -> bool:
        return self.unit != "none" and self.epsilon is not None

    @property
    def terms(self) -> str:
        """What must stand near every epsilon."""
        return f"at delta {self.delta:g} per {self.unit}, {self.relation}"

    @model_validator(mode="after")
    def _claims_are_whole(self) -> "_Result":
        if self.is_claim and (self.delta is None or self.relation is None):
            raise ValueError(f"epsilon {self.epsilon} without delta and relation is no claim")
        return self


def write_report(result: Mapping[str, object], path: Path) -> None:
    """Write one self-contained HTML page about a finished simulated federation.

    `result` is what result.json holds (format 1); a `pydantic.ValidationError`, which is a ValueError, says
    what it lacks. The page needs no network and no script, follows the reader's light or dark theme, and
    escapes every name.
    """
    shown = _Result.model_validate(result)
    forms = {form.__name__.lstrip("_"): form for form in (_percent, _epsilon, _count, _duration, _number, _described)}
    page = rendered(Path(__file__).parent / "report.html.j2", _view(shown), forms)
    path.write_text(page, encoding="utf-8")


def _view(result: _Result) -> dict[str, object]:
    nodes = sorted(result.nodes, key=lambda node: node.state == "finished")
    states = [node.state for node in nodes]
    stride = math.ceil(len(result.history) / MOST_ROUNDS_LISTED) or 1
    return {
        "r": result,
        "states": {state: states.count(state) for state in ("finished", "refused", "failed")},
        "nodes": nodes[:MOST_NODES_NAMED],
        "unfinished": [node for node in nodes if node.state != "finished"][:MOST_NODES_NAMED],
        "unnamed": nodes[MOST_NODES_NAMED:],
        "rounds_done": max((entry.round for entry in result.history), default=0),
        "rounds_listed": result.history[:-1:stride] + result.history[-1:],
        "stride": stride,
        "without": {entry.round: entry for entry in result.history_without_privacy or ()},
        "released": [entry for entry in result.history if _released(entry) is not None],
        "lost": _lost(result),
        "faults": _faults(result),
        "heat": _heat(result),
        "charts": _learning(result) | (_spending(result) if result.is_claim else {}),
        "guess": _best_guess(result),
        "disagrees": (result.epsilon or 0.0) > (result.epsilon_rdp_bound or math.inf),
    }


def _learning(result: _Result) -> dict[str, Markup]:
    own, other = result.history, result.history_without_privacy or ()
    released = [(float(entry.round), value) for entry in own if (value := _released(entry)) is not None]
    kind = "private" if result.is_claim else "plain"
    accuracy = Caption("accuracy", "Accuracy by round", f"Held out, {_percent(result.accuracy)} at the end.")
    loss = Caption("loss", "Loss by round", f"Held out, {_number(result.loss)} at the end.")
    accuracies = [
        Series("reference", _accuracies(other)),
        Series(kind, _accuracies(own)),
        Series("released", released, is_line=False),
    ]
    losses = [
        Series("reference", [(entry.round, entry.loss) for entry in other if entry.loss is not None]),
        Series(kind, [(entry.round, entry.loss) for entry in own if entry.loss is not None]),
    ]
    return {
        "accuracy": line_chart(accuracy, accuracies, _percent, lambda mark: f"{100 * mark:g}%"),
        "loss": line_chart(loss, losses, lambda value: f"{value:.3g}"),
    }


def _spending(result: _Result) -> dict[str, Markup]:
    charged = result.epsilon or 0.0
    last = float(max([result.rounds, *(entry.round for entry in result.history)]))
    executed = [
        (float(entry.round), entry.epsilon_executed) for entry in result.history if entry.epsilon_executed is not None
    ]
    by_round = Caption(
        "spending",
        "Epsilon by round",
        f"Charged before the first record was read: {_epsilon(charged)}. "
        f"Executed by the last round: {_epsilon(result.epsilon_executed)}. All {result.terms}.",
    )
    lines = [Series("charged", [(0.0, charged), (last, charged)]), Series("executed", executed)]
    spending = {"spending": line_chart(by_round, lines, _epsilon)}
    if result.mechanism == "central":  # one ledger, the server's: no institution spends
        return spending
    by_node = Caption("nodes", "Epsilon by institution", f"Charged and executed, {result.terms}.")
    bars = [Bar(node.name, node.epsilon, node.epsilon_executed) for node in result.nodes]
    draw = named_bars if len(bars) <= MOST_NODES_DRAWN_BY_NAME else column_strip
    return spending | {"nodes": draw(by_node, bars)}


def _lost(result: _Result) -> dict[str, object] | None:
    """What privacy cost in accuracy; None when nothing was compared."""
    if result.accuracy is None or result.accuracy_without_privacy is None or not result.is_claim:
        return None
    own, other = round(100 * result.accuracy), round(100 * result.accuracy_without_privacy)
    words = f"Of 100 held-out records {own} are right with privacy, {other} without."
    points = 100 * (result.accuracy_without_privacy - result.accuracy)
    return {
        "points": points,
        "right": own,
        "lost": max(other - own, 0),
        "wrong": 100 - max(own, other),
        "records": round(points / 100 * result.records.get("held_out", 0)),
        "chart": waffle(Caption("waffle", "Utility lost to privacy", words), own, other),
    }


def _faults(result: _Result) -> dict[str, object] | None:
    """Who misbehaved, how often, and what became of the model; None where all nodes were meant to behave."""
    if result.faults is None:
        return None
    totals = Counter[str]()
    for entry in result.history:
        totals.update(entry.faults)
    faulty = [node for node in result.nodes if node.faults]
    faulty.sort(key=lambda node: (not any(node.faults.get(lie) for lie in LIES), node.name))
    return {
        "kinds": [(kind, FAULTS[kind], totals[kind]) for kind in FAULTS if totals[kind]],
        "nodes": faulty[:MOST_NODES_NAMED],
        "unnamed": len(faulty[MOST_NODES_NAMED:]),
        "liars": {lie: sum(lie in node.faults for node in faulty) for lie in LIES if totals[lie]},
        "chart": line_chart(
            Caption("faulty", "Accuracy by round", f"Held out, {_percent(result.accuracy)} at the end."),
            [
                Series("reference", _accuracies(result.history_without_faults)),
                Series("undefended", _accuracies(result.history_under_fedavg)),
                Series("private" if result.is_claim else "plain", _accuracies(result.history)),
            ],
            _percent,
            lambda mark: f"{100 * mark:g}%",
        ),
    }


def _accuracies(history: Sequence[_Round] | None) -> list[tuple[float, float]]:
    return [(float(entry.round), entry.accuracy) for entry in history or () if entry.accuracy is not None]


def _heat(result: _Result) -> dict[str, object] | None:
    """Rows of (name, counts, shade from 0 to 1); None where a task has no classes."""
    holders = [node for node in result.nodes if node.labels]
    if not result.classes or not holders:
        return None
    rows = [(node.name, node.labels or ()) for node in holders[:MOST_NODES_NAMED]]
    if others := [node.labels or () for node in holders[MOST_NODES_NAMED:]]:
        means = tuple(round(sum(column) / len(others)) for column in zip(*others, strict=True))
        rows.append((f"mean of {len(others)} others", means))
    highest = max((count for _, counts in rows for count in counts), default=0) or 1
    return {
        "rows": [(name, [(n, f"{n / highest:.3f}") for n in counts], sum(counts)) for name, counts in rows],
        "is_dense": len(result.classes) > MOST_CLASSES_NUMBERED,
        "is_listed": len(result.classes) <= MOST_CLASSES_LISTED,
        "is_upright": max(map(len, result.classes)) <= 3,
    }


def _best_guess(result: _Result) -> str | None:
    """How often a presence can be guessed at even odds: (e^epsilon + delta) / (1 + e^epsilon), rounded up."""
    if result.epsilon is None or result.delta is None:
        return None
    share = 1 / (1 + math.exp(-result.epsilon)) * (1 + result.delta * math.exp(-result.epsilon))
    return f"{math.ceil(1000 * share) / 10:.1f}%"


def _released(entry: _Round) -> float | None:
    return (entry.released or {}).get("accuracy")


def _epsilon(value: float | None) -> str:
    """Two decimals, rounded up: a printed bound is never smaller than the one that holds."""
    if value is None:
        return "–"
    step = Decimal("0.01") if value >= 0.1 or value == 0 else Decimal("0.0001")
    return f"{Decimal(repr(float(value))).quantize(step, ROUND_CEILING)}"


def _percent(value: float | None) -> str:
    if value is None:
        return "–"
    return "0%" if value == 0 else "100%" if value == 1 else f"{100 * value:.1f}%"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _count(value: int) -> str:
    return COUNTS[value] if value < len(COUNTS) else f"{value:,}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _described(values: Mapping[str, object]) -> str:
    """`{"kind": "dirichlet", "alpha": 0.3}` as `dirichlet (alpha 0.3)`."""
    rest = ", ".join(f"{name} {value}" for name, value in values.items() if name != "kind")
    kind = str(values.get("kind", ""))
    return f"{kind} ({rest})" if kind and rest else kind or rest
