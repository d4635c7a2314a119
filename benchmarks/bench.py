"""Simulated rounds against peers that simulate the same ones: one interleaved run on this machine.

The setting: 100 nodes x 100 records, cohort 20 (50 for the large model), batch 20, one epoch, on the CPU. privet is
`privet simulate` with all that belongs to a round, ledgers, witness and checkpoints (ours.py); each peer runs in an
environment of its own, one thread a process, its data cached (peers/). Contenders take turns, each in processes of its
own. What counts is the median round after warm-up, and of those the median over the repetitions. All begin with the
same weights: a contender whose loss does not fall like that of the others has not done their work, and gets no ratio.

    make bench                       # installs the peers first
    .venv/bin/python benchmarks/bench.py [--quick] [--only NAME] [--rounds N] [--repeats N]

Prints the table, and writes results.json beside this file: a list of {name, peer, ours_ms, peer_ms, ratio}, where
ratio is peer_ms / ours_ms. A peer that is not installed has no time; lines about privet alone have the peer "-".
Memory is measured by scale.py.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from contenders import CORES, HERE, Contender, Run, Setting, last_line, path, peers, privet, run_of
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(HERE / "peers"))

# With privacy over 40 rounds: privet accounts for 20 of a run's rounds, however many there are, and the median of a
# shorter run would be one of those.
SETTINGS = (
    Setting("MLP 51k", "mlp", 40, 8, 0.02),
    Setting("CNN 37k", "small-cnn", 25, 4, 0.05),
    Setting("CNN 1.7M", "large-cnn", 6, 1, 0.15, cohort=50),
    Setting("MLP 51k, DP-SGD", "mlp", 60, 8, 0.3, is_private=True),
    Setting("CNN 37k, DP-SGD", "small-cnn", 44, 4, 0.5, is_private=True),
)
QUICK_ROUNDS = 4
# How far a peer's loss may be from privet's: in parts of how far that fell; and where it hardly fell.
ALIKE, LEAST_ALIKE = 0.15, 0.03


@dataclass(slots=True)
class Measured:
    """A contender's runs; `failed`: why there are none."""

    contender: Contender
    runs: list[Run] = field(default_factory=list)
    failed: str = ""

    def take_turn(self, setting: Setting, environments: Path) -> None:
        answer = self.failed or run_of(self.contender, setting, environments)
        if isinstance(answer, Run):
            self.runs.append(answer)
        else:
            self.failed = answer

    @property
    def ms(self) -> float | None:
        """The median over the repetitions of the median round."""
        return median(run.median_ms for run in self.runs) if self.runs else None

    @property
    def loss(self) -> float:
        return median(run.loss for run in self.runs)


def measured(setting: Setting, repeats: int, environments: Path, console: Console) -> list[Measured]:
    """All contenders of a setting, privet first, in turns."""
    everybody = [Measured(contender) for contender in (privet(setting.is_private), *peers(setting.is_private))]
    for repeat in range(repeats):
        for one in everybody:
            if one.contender.privacy == "faster":
                one.contender = _decided(one.contender, everybody)
            console.print(f"{setting.name}: {one.contender.name}, {repeat + 1} of {repeats}", style="dim")
            one.take_turn(setting, environments)
            if one is everybody[0] and one.failed:
                raise SystemExit(f"error: privet, {setting.name}: {one.failed}")
    return everybody


def _decided(contender: Contender, everybody: list[Measured]) -> Contender:
    """With hooks or ghost norms, whichever was faster in the loop of one process."""
    loops = [one for one in everybody if one.contender.privacy in ("hooks", "ghost") and one.contender.processes == 1]
    fastest = min((one for one in loops if one.runs), key=lambda one: one.ms or 0.0, default=loops[0])
    privacy = fastest.contender.privacy
    return replace(contender, name=f"{contender.name}, {privacy}", privacy=privacy)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of results.json, and of the table."""

    name: str
    peer: str
    ours_ms: float
    peer_ms: float | None = None
    ratio: float | None = None

    def as_json(self) -> dict[str, object]:
        times = {"ours_ms": self.ours_ms, "peer_ms": self.peer_ms, "ratio": self.ratio}
        return {"name": self.name, "peer": self.peer} | times


def lines(setting: Setting, everybody: list[Measured], before: float) -> Iterator[tuple[Line, list[str]]]:
    """Each contender's line, and the cells of its row, if any. `before`: the loss of the model that all begin with."""
    ours = everybody[0]
    assert ours.ms is not None
    nearby = max(ALIKE * (before - ours.loss), LEAST_ALIKE)
    for one in everybody:
        if one.ms is None:
            yield Line(setting.name, one.contender.name, ours.ms), []
            continue
        ratio = one.ms / ours.ms if abs(one.loss - ours.loss) <= nearby else None
        medians = [run.median_ms for run in one.runs]
        yield (
            Line(setting.name, one.contender.name, ours.ms, one.ms, ratio),
            [
                one.contender.name,
                shown(one.ms),
                f"{shown(min(medians))} - {shown(max(medians))}",
                shown(min(min(run.times_ms) for run in one.runs)),
                shown(median(run.mean_ms for run in one.runs)),
                f"{one.loss:.2f}",
                f"{ratio:.2f}" if ratio else "unlike",
            ],
        )


def shown(ms: float) -> str:
    return f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def compared(setting: Setting, given: argparse.Namespace, console: Console) -> list[Line]:
    """Measure a setting and print its table."""
    import models

    before = models.test_loss(models.initial(setting.model))
    everybody = measured(setting, given.repeats, given.environments, console)
    title = f"{setting.name}, cohort {setting.cohort}, {setting.rounds} rounds, loss at first {before:.2f}"
    table = Table(title=title, title_justify="left")
    table.add_column("contender", no_wrap=True)
    for column in ("ms a round", "spread", "best", "mean", "loss", "ratio"):
        table.add_column(column, justify="right")
    found = []
    for line, cells in lines(setting, everybody, before):
        if cells:
            table.add_row(*cells)
        if line.peer != "privet":
            found.append(line)
    console.print(table)
    for one in everybody:
        if not one.runs:
            console.print(f"{one.contender.name}: {one.failed}", highlight=False, markup=False, soft_wrap=True)
    return found


def first_round() -> float:
    """Milliseconds until the first round of digits is done, after imports."""
    told = last_line([sys.executable, str(HERE / "digits.py")], path())
    if isinstance(told, str):
        raise SystemExit(f"error: first round of digits: {told}")
    return float(told["times_ms"][0])


def thousand_rounds() -> float:
    """Milliseconds of the whole command, imports and report included."""
    with tempfile.TemporaryDirectory() as folder:
        command = [str(Path(sys.executable).with_name("privet")), "simulate", "digits", "--set", "run.rounds=1000"]
        started = time.perf_counter()
        subprocess.run([*command, "--out", f"{folder}/run", "--json"], check=True, capture_output=True)
        return (time.perf_counter() - started) * 1e3


ALONE = {
    "digits, first round after imports": first_round,
    "digits, 1,000 rounds with privacy, 10 nodes": thousand_rounds,
}


def alone(name: str, repeats: int, console: Console) -> Line:
    """A line about privet alone."""
    times = [ALONE[name]() for _ in range(repeats)]
    spread = f"{min(times) / 1e3:.2f} - {max(times) / 1e3:.2f}"
    console.print(f"{name}: {median(times) / 1e3:.2f} s ({spread})", highlight=False)
    return Line(name, "-", median(times))


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [setting.name for setting in SETTINGS] + list(ALONE)
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="; ".join(names))
    parser.add_argument("--rounds", type=int, help="of each contender, warm-up included")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, once: only shows that all runs")
    parser.add_argument("--environments", type=Path, default=HERE.parent / ".venv-bench", help="where the peers are")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    given = parser.parse_args()
    if given.quick:
        given.rounds, given.repeats = given.rounds or QUICK_ROUNDS, 1
    return given


def main() -> None:
    given, console = asked(), Console()
    console.print(f"{CORES} cores; medians of {given.repeats} turns, in ms a round", highlight=False)
    busy = os.getloadavg()[0]
    if busy > CORES / 2:
        console.print(f"this machine is busy (load {busy:.1f}): trust no ratio, look at the fastest rounds at most")
    found: list[Line] = []
    for setting in SETTINGS:
        if given.only and setting.name not in given.only:
            continue
        if given.rounds:
            setting = replace(setting, rounds=given.rounds, warm_up=min(setting.warm_up, given.rounds // 2))
        found += compared(setting, given, console)
    for name in ALONE:
        if not given.only or name in given.only:
            found.append(alone(name, 1 if given.quick else given.repeats, console))
    given.results.write_text(json.dumps([line.as_json() for line in found], indent=2) + "\n", encoding="utf-8")
    console.print(f"written to {given.results}", highlight=False)


if __name__ == "__main__":
    main()
