"""How good the models are that privacy leaves: makes docs/utility.md.

    .venv/bin/python benchmarks/utility.py --seeds 20 --out docs/utility.md

Every number is the held-out accuracy of a run of a shipped plan through privet's own code: plan, ledgers, guard,
nodes, federation. A seed chooses the split into nodes and held-out records, the batches and the noise. Exits with 1
where a mean misses a target of the project.
"""

import argparse
import json
import logging
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

PROCESSES = 2
EPSILONS = (1.0, 3.0, 8.0, None)  # None: the same plan without clipping, noise and claim


@dataclass(frozen=True, slots=True)
class Study:
    """One row of the table: a shipped plan, what is set in it, and the least mean that the project asks for."""

    title: str
    plan: str
    assignments: tuple[str, ...]
    targets: tuple[tuple[float | None, float], ...]


@dataclass(frozen=True, slots=True)
class Job:
    """One run."""

    study: int
    epsilon: float | None
    seed: int


@dataclass(frozen=True, slots=True)
class Score:
    """What a run gave. `held_out`: how many records the accuracy is of."""

    job: Job
    accuracy: float
    held_out: int


STUDIES = (
    Study("digits, linear on pixels", "digits", (), ((3.0, 0.87), (None, 0.95))),
    Study("digits, 512 random features", "digits", ("model.kind=features",), ((None, 0.96),)),
    Study("breast cancer, logistic", "breast-cancer", (), ((3.0, 0.92),)),
)


def main() -> int:
    """Run what is missing, print the table, write the page."""
    options = _options()
    jobs = [Job(s, e, seed) for s in range(len(STUDIES)) for e in EPSILONS for seed in range(options.seeds)]
    scores = {score.job: score for score in _kept(options.keep) if score.job in set(jobs)}
    missing = [job for job in jobs if job not in scores]
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("runs", total=len(jobs), completed=len(scores))
        for score in _carried_out(missing):
            scores[score.job] = score
            _keep(options.keep, score)
            progress.advance(bar)
    table, missed = _table(list(scores.values())), _missed(list(scores.values()))
    print("\n".join([*table, *missed]))
    if options.out:
        options.out.write_text(_page(table, missed, list(scores.values()), options.seeds), encoding="utf-8")
    return 1 if missed else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the accuracy of the shipped plans at several epsilons.")
    parser.add_argument("--seeds", type=int, default=20, help="seeds 0 to N - 1 (default: 20)")
    parser.add_argument("--out", type=Path, help="the page to write (docs/utility.md)")
    parser.add_argument("--keep", type=Path, help="a file of finished runs: read first, added to")
    return parser.parse_args()


def _carried_out(jobs: list[Job]) -> Iterator[Score]:
    """In order, so that runs of one plan stay together: a calibration is remembered by its process."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=_prepare) as pool:
        yield from pool.map(_run, jobs)


def _prepare() -> None:
    import flwr.serverapp  # it sets its logger's level when it is imported  # noqa: F401
    import torch

    torch.set_num_threads(1)  # on two threads small models are several times slower
    logging.getLogger("flwr").setLevel(logging.ERROR)


def _run(job: Job) -> Score:
    import torch
    from privet.client.tasks.registry import load_task
    from privet.privacy.plan_file import read_plan
    from privet.server.run_folder import RunFolder
    from privet.simulations.cli import shipped_plans
    from privet.simulations.comparisons import without_privacy
    from privet.simulations.scenario import Scenario
    from privet.simulations.world import World

    study = STUDIES[job.study]
    asked = [*study.assignments, f"run.seed={job.seed}"]
    if job.epsilon is not None:
        asked.append(f"privacy.epsilon={job.epsilon}")
    plan = read_plan(shipped_plans()[study.plan], asked)
    if job.epsilon is None:
        plan = without_privacy(plan)
    world = World.of(plan, load_task(plan.run.task))
    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario.begun(plan, RunFolder(Path(folder)), world, torch.device("cpu"))
        scenario.run(lambda view: None)
        accuracy = scenario.views.until(plan.run.rounds)[-1].scores["accuracy"]
    return Score(job, accuracy, len(world.held_out))


def _kept(path: Path | None) -> Iterator[Score]:
    for line in path.read_text(encoding="utf-8").splitlines() if path and path.exists() else ():
        study, epsilon, seed, accuracy, held_out = json.loads(line)
        yield Score(Job(study, epsilon, seed), accuracy, held_out)


def _keep(path: Path | None, score: Score) -> None:
    if path is not None:
        job = score.job
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([job.study, job.epsilon, job.seed, score.accuracy, score.held_out]) + "\n")


def _of(scores: Iterable[Score], study: int, epsilon: float | None) -> list[float]:
    return [score.accuracy for score in scores if score.job.study == study and score.job.epsilon == epsilon]


def _table(scores: list[Score]) -> list[str]:
    lines = [
        f"| accuracy, mean (sd) | held out | {' | '.join(map(_named, EPSILONS))} | n |",
        f"|---|---:|{'---:|' * len(EPSILONS)}---:|",
    ]
    for number, study in enumerate(STUDIES):
        cells = [_of(scores, number, epsilon) for epsilon in EPSILONS]
        held_out = next(score.held_out for score in scores if score.job.study == number)
        lines.append(f"| {study.title} | {held_out} | {' | '.join(map(_told, cells))} | {len(cells[0])} |")
    return lines


def _told(accuracies: list[float]) -> str:
    spread = f" ({statistics.stdev(accuracies):.3f})" if len(accuracies) > 1 else ""
    return f"{statistics.mean(accuracies):.3f}{spread}"


def _named(epsilon: float | None) -> str:
    return "no privacy" if epsilon is None else f"epsilon {epsilon:g}"


def _missed(scores: list[Score]) -> list[str]:
    return [line for line in _targets(scores) if line.endswith("missed")]


def _targets(scores: list[Score]) -> list[str]:
    lines = []
    for number, study in enumerate(STUDIES):
        for epsilon, least in study.targets:
            mean = statistics.mean(_of(scores, number, epsilon))
            verdict = "met" if mean >= least else "missed"
            lines.append(f"- {study.title}, {_named(epsilon)}: at least {least:.2f}; measured {mean:.3f}, {verdict}")
    return lines


def _page(table: list[str], missed: list[str], scores: list[Score], seeds: int) -> str:
    from privet.simulations.versions import versions

    verdict = f"{len(missed)} missed" if missed else "all met"
    return _PAGE.format(
        table="\n".join(table),
        targets="\n".join(_targets(scores)),
        verdict=verdict,
        seeds=seeds,
        last=seeds - 1,
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )


_PAGE = """\
# What privacy costs in accuracy

This page is written by `benchmarks/utility.py`. Do not edit it: run the script.

    .venv/bin/python benchmarks/utility.py --seeds {seeds} --out docs/utility.md

{table}

Every run is one of the plans that ship with privet, with `privacy.epsilon` set, seeds 0 to {last}. Epsilon is for the
whole run at each node, at delta 1e-5, per record, add-or-remove-one, by PLD. It includes the spare rounds and the
noised evaluations. "No privacy" is the same plan without clipping, noise and evaluation: what
`privet simulate --compare` compares with. A row has one learning rate, clip norm and sampling rate for all its columns
and seeds: those of the plan. They were not chosen anew for each column.

A seed chooses the records that are held out, the split of the rest, the batches and the noise. So the standard
deviation (sd) is that of a single run, and holds the luck of the split as well as that of the noise. n is the number
of seeds; the standard error of a mean is sd / sqrt(n).

## Targets of the project: {verdict}

{targets}

## How to read it

- The records of digits are shared by ten nodes, those of breast cancer by five. Each node adds the noise that protects
  its own records, so more nodes with as many records each lose less to noise, and fewer records a node lose more.
- Accuracy on held-out records is the simulator's view. No institution owns these records, and no deployment has them.
- The noise of a simulation is seeded. These numbers say what a plan is worth; they protected nobody.
- The data sets are public. On private records choosing a learning rate by its result costs privacy too: every try is
  a run, and is charged as one.

Made with {versions}.
"""


if __name__ == "__main__":
    sys.exit(main())
