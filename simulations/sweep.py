"""Sweep: a plan over a grid of settings and seeds, in one folder. What it is, and where its points lie; nothing runs.

The rules. Every point is a plan of its own, validated here. A point is done when its folder holds a result.json, which
is written whole, last. A folder belongs to one grid: the same plans under the same names, or it is refused.
"""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ..privacy.channel.files import write_whole
from ..privacy.errors import PlanError, UsageError
from ..privacy.plan import PARTITION_KEYS, Plan, SimulationSection
from ..privacy.plan_file import is_key, parse_plan, plan_text, toml_value
from ..privacy.plan_strategies import STRATEGY_KEYS

FORMAT = 1
MOST_POINTS = 10_000  # more is a slip of the pen: at a second each they take three hours on one core
NAME_LENGTH = 120  # characters of a folder's name, well below what file systems take
SWEEP = "sweep.json"
POINTS = "points"
# Keys of which the values read others: one of these may be given for all, and is for those that read it.
_CHOICES = {"aggregation.strategy": STRATEGY_KEYS, "simulation.partition": PARTITION_KEYS}
_OVER = "--over privacy.epsilon=1,2,4"

Settings = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Axis:
    """A key of the plan, and the values that it takes, as they were written."""

    key: str
    values: tuple[str, ...]

    @classmethod
    def read(cls, text: str) -> "Axis":
        """From `section.key=value,value`. Commas inside brackets and quotes do not separate."""
        key, equals, values = text.partition("=")
        parts = [part.strip() for part in _split(values)]
        if not equals or not is_key(key) or not all(parts):
            raise UsageError(f"--over {text}: not of the form section.key=value,value", _OVER)
        if twice := [part for part in parts if sum(_is_same(part, other) for other in parts) > 1]:
            raise UsageError(f"--over {text}: {twice[0]} stands there twice", "name each value once")
        return cls(key.strip(), tuple(parts))


@dataclass(frozen=True, slots=True)
class Point:
    """One simulation of a sweep: the settings of its combination, its seed, and the plan that follows."""

    settings: Settings
    seed: int
    plan: Plan

    @property
    def label(self) -> str:
        """For people: `privacy.epsilon=1, simulation.alpha=0.1, seed 7`."""
        return ", ".join([*(f"{key}={value}" for key, value in self.settings), f"seed {self.seed}"])

    @property
    def name(self) -> str:
        """For folders: stable, and another for every point."""
        spelled = "_".join([*(f"{key}={value}" for key, value in self.settings), f"seed={self.seed}"])
        plain = re.sub(r"[^A-Za-z0-9._=+-]", "-", spelled)
        if plain == spelled and len(plain) <= NAME_LENGTH:
            return plain
        return f"{plain[:NAME_LENGTH]}-{hashlib.sha256(spelled.encode()).hexdigest()[:8]}"

    @property
    def cost(self) -> int:
        """What it takes, in local steps: rounds x nodes asked in each x steps. Only good to compare points."""
        plan, section = self.plan, self.plan.simulation or SimulationSection()
        asked = math.ceil(plan.aggregation.fraction * section.nodes)
        return plan.run.rounds * asked * plan.training.local_steps


@dataclass(frozen=True)
class Sweep:
    """The grid of all combinations, each with every seed, under a folder."""

    root: Path
    text: str
    assignments: tuple[str, ...]
    axes: tuple[Axis, ...]
    seeds: int
    points: tuple[Point, ...]

    @classmethod
    def of(
        cls, root: Path, text: str, origin: str, assignments: Sequence[str], axes: Sequence[Axis], seeds: int
    ) -> "Sweep":
        """Expand the grid over a plan's `text`. Raises UsageError, naming the combination that cannot be meant."""
        _check_axes(axes, seeds)
        grid = itertools.product(*([(axis.key, value) for value in axis.values] for axis in axes))
        points = [point for settings in grid for point in _seeded(text, origin, assignments, settings, seeds)]
        return cls(root, text, tuple(assignments), tuple(axes), seeds, tuple(points))

    @classmethod
    def found(cls, root: Path) -> "Sweep":
        """The sweep that was begun in this folder."""
        path = root / SWEEP
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            axes = [Axis(key, tuple(values)) for key, values in told["over"]]
            plan, assignments, seeds = str(told["plan"]), list(told["set"]), int(told["seeds"])
        except FileNotFoundError:
            raise UsageError(f"{root}: no sweep was begun here", "give the sweep's folder with --out") from None
        except (ValueError, KeyError, TypeError):
            raise UsageError(f"{path}: not what privet wrote", "restore the file, or begin in a new folder") from None
        sweep = cls.of(root, plan, str(path), assignments, axes, seeds)
        sweep.check_folder()
        return sweep

    @cached_property
    def combinations(self) -> tuple[tuple[Point, ...], ...]:
        """The points by combination, in the grid's order: every one with each of its seeds."""
        groups = itertools.groupby(self.points, lambda point: point.settings)
        return tuple(tuple(group) for _, group in groups)

    @property
    def name(self) -> str:
        """The plan's."""
        return self.points[0].plan.run.name

    @property
    def is_begun(self) -> bool:
        """Whether the folder holds a sweep."""
        return (self.root / SWEEP).exists()

    def folder(self, point: Point) -> Path:
        """Where a point is simulated."""
        return self.root / POINTS / point.name

    def result(self, point: Point) -> Mapping[str, Any] | None:
        """The point's result.json; None where it is not done."""
        try:
            found: Mapping[str, Any] = json.loads((self.folder(point) / "result.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found

    def is_done(self, point: Point) -> bool:
        """Whether its result is there."""
        return (self.folder(point) / "result.json").exists()

    def begin(self) -> None:
        """Write down what the sweep is, so that it can be resumed."""
        told = {
            "format": FORMAT,
            "plan": self.text,
            "set": list(self.assignments),
            "over": [[axis.key, list(axis.values)] for axis in self.axes],
            "seeds": self.seeds,
            "points": self._fingerprints(),
        }
        write_whole(self.root / SWEEP, (json.dumps(told, indent=1) + "\n").encode())

    def check_folder(self) -> None:
        """Raise UsageError where the folder holds another sweep, or something else."""
        path = self.root / SWEEP
        if not path.exists():
            if self.root.exists() and (not self.root.is_dir() or any(self.root.iterdir())):
                raise UsageError(f"{self.root}: holds something else than a sweep", "give a new folder with --out")
            return
        try:
            held = json.loads(path.read_text(encoding="utf-8"))["points"]
        except (OSError, ValueError, KeyError, TypeError):
            held = None
        if held != self._fingerprints():
            raise UsageError(
                f"{self.root}: holds a sweep of another plan or grid",
                f"privet sweep --resume --out {self.root} goes on with that one; or give another folder",
            )

    def _fingerprints(self) -> dict[str, str]:
        return {p.name: hashlib.sha256(plan_text(p.plan).encode()).hexdigest() for p in self.points}


def _check_axes(axes: Sequence[Axis], seeds: int) -> None:
    keys = [axis.key for axis in axes]
    if not keys:
        raise UsageError("nothing to sweep over: --over is missing", _OVER)
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise UsageError(f"--over {twice[0]}: given twice", f"--over {twice[0]}=value,value, once")
    if "run.seed" in keys:
        raise UsageError("--over run.seed: seeds are not settings", "--seeds 5 repeats every combination")
    if "run.name" in keys:
        raise UsageError("--over run.name: a name changes nothing", _OVER)
    count = math.prod(len(axis.values) for axis in axes) * seeds
    if count > MOST_POINTS:
        raise UsageError(f"{count} points, and at most {MOST_POINTS} are swept", "name fewer values, or fewer seeds")


def _seeded(text: str, origin: str, assignments: Sequence[str], settings: Settings, seeds: int) -> list[Point]:
    """One combination with each of its seeds: the plan's own, and those that follow it."""
    chosen = [f"{key}={value}" for key, value in settings]
    set_so = [*assignments, *_set_aside(dict(settings)), *chosen]
    try:
        first = parse_plan(text, origin, set_so)
        numbers = range(first.run.seed, first.run.seed + seeds)
        plans = {n: parse_plan(text, origin, [*set_so, f"run.seed={n}"]) for n in numbers}
    except PlanError as error:
        told = [f"{', '.join(chosen)}: {problem.removeprefix('--set: ')}" for problem in error.problems]
        raise PlanError(told, "take that combination out, or mend the plan") from None
    return [Point(settings, seed, plan) for seed, plan in plans.items()]


def _set_aside(settings: Mapping[str, str]) -> Iterator[str]:
    """Assignments that take out, where strategies or partitions are swept, what the one chosen does not read.

    A key that is swept itself stays, and is an error: the same plan would be simulated for each of its values.
    """
    for choice, keys_of in _CHOICES.items():
        chosen = toml_value(settings[choice]) if choice in settings else None
        if chosen in keys_of:
            section = choice.partition(".")[0]
            unread = {key for keys in keys_of.values() for key in keys} - set(keys_of[str(chosen)])
            named = (f"{section}.{key.replace('_', '-')}" for key in sorted(unread))
            yield from (f"{key}=" for key in named if key not in settings)


def _split(text: str) -> list[str]:
    """At commas that stand outside of brackets and quotes."""
    return re.findall(r"(?:\[[^\]]*\]|\"[^\"]*\"|'[^']*'|[^,\[\"'])+|(?<=,)(?=,|$)|^(?=,)", text) or [""]


def _is_same(one: str, other: str) -> bool:
    """Whether two values mean the same: 1 and 1.0 are one setting."""
    return toml_value(one) == toml_value(other)
