"""`privet sweep`: one plan over a grid of settings, on all cores, and what came of it."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from ..privacy.alone import only_one
from ..privacy.errors import FederationError, InterruptedRunError, UsageError
from ..privacy.plan_file import plan_text, text_of
from .cli import plan_path
from .sweep import Axis, Point, Sweep
from .sweep_report import write_sweep_report
from .sweep_results import Findings, as_json, write_best, write_csv
from .sweep_summary import SweepProgress, print_findings
from .sweep_workers import Ended, Job, Workers

_LOCK, _ALIVE = ".sweep", ".workers"
_ORPHAN_SECONDS = 10.0  # a worker whose sweep was killed ends in a hundredth of that


def sweep(
    plan: Annotated[
        str | None, typer.Argument(help="A plan's file, or the name of one that ships.", metavar="[PLAN]")
    ] = None,
    over: Annotated[
        list[str] | None, typer.Option(help="section.key=value,value: a key to sweep; may be given more than once.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="How often each combination is repeated, with another seed.", min=1)] = 1,
    out: Annotated[Path | None, typer.Option(help="The sweep's folder (default: sweeps/NAME-N).")] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value takes the place of a key; no value removes it."),
    ] = None,
    metric: Annotated[str, typer.Option(help="What is compared, on held-out records; or loss.")] = "accuracy",
    processes: Annotated[int | None, typer.Option(help="How many at once (default: one a core).", min=1)] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted sweep, in its folder.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, or a torch device such as cuda:0.")] = "auto",
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Simulate a plan over a grid of settings and seeds, on all cores; the rest after an interruption."""
    began = time.monotonic()
    console = Console(stderr=True, quiet=as_json_ and not sys.stderr.isatty())
    asked = _asked(plan, over or [], seeds, out, assignments or [], resume)
    failed = _carried_out(asked, metric, processes or _cores(), device, console)
    findings = Findings.of(asked, metric)
    write_csv(asked, findings, failed)
    write_sweep_report(asked, findings, failed, asked.root / "sweep.html")
    write_best(asked, findings)
    if as_json_:
        print(json.dumps(as_json(asked, findings, failed, time.monotonic() - began)))
    else:
        print_findings(asked, findings, time.monotonic() - began, Console())
    if failed:
        name, reason = next(iter(failed.items()))
        raise FederationError(
            f"{len(failed)} of {len(asked.points)} points failed, {name}: {reason}",
            f"privet sweep --resume --out {asked.root} tries them again",
        )


def _asked(
    plan: str | None, over: Sequence[str], seeds: int, out: Path | None, assignments: Sequence[str], resume: bool
) -> Sweep:
    if plan is None:
        if not resume or out is None or over or assignments or seeds != 1:
            raise UsageError("no plan is named", "privet sweep PLAN --over …, or --resume --out DIR alone")
        return Sweep.found(out)
    path = plan_path(plan)
    text, origin = text_of(path), str(path)
    axes = [Axis.read(one) for one in over]
    trial = Sweep.of(Path(), text, origin, assignments, axes, seeds)
    root = out or _default_folder(trial.name, resume)
    if resume and not (root / "sweep.json").exists():
        raise UsageError(f"{root}: no sweep was begun here", "the same command without --resume begins one")
    asked = Sweep(root, text, tuple(assignments), tuple(axes), seeds, trial.points)
    asked.check_folder()
    return asked


def _default_folder(name: str, is_old: bool) -> Path:
    """The newest sweep of that name, or the next number that is free."""
    number = 1
    while (Path("sweeps") / f"{name}-{number}").exists():
        number += 1
    return Path("sweeps") / f"{name}-{max(1, number - 1) if is_old else number}"


def _cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _carried_out(asked: Sweep, metric: str, processes: int, device: str, console: Console) -> dict[str, str]:
    """Do what is not done yet; give why points failed, by name."""
    left = [point for point in asked.points if not asked.is_done(point)]
    if not left:
        return {}
    with Workers(min(processes, len(left)), device) as workers:
        if not asked.is_begun:
            _check(asked, metric, workers, console)
        with _alone(asked.root):
            asked.begin()
            return _simulated(asked, left, metric, workers, console)


def _check(asked: Sweep, metric: str, workers: Workers, console: Console) -> None:
    """Every combination could begin, or nothing does."""
    points = {points[0].name: points[0] for points in asked.combinations}
    jobs = [Job(n, {"do": "check", "plan": plan_text(p.plan), "metric": metric}) for n, p in points.items()]
    with console.status(f"checking {len(jobs)} combinations"):
        for event in workers.carried_out(jobs):
            if isinstance(event, Ended) and event.failed:
                if event.failed.startswith("--metric"):  # every combination's fault
                    raise UsageError(event.failed, event.remedy)
                told = ", ".join(f"{key}={value}" for key, value in points[event.job.name].settings)
                raise UsageError(f"{told}: {event.failed}", f"take that combination out, or: {event.remedy}")


@contextlib.contextmanager
def _alone(root: Path) -> Iterator[None]:
    """No other sweep is in the folder, and no worker of one that was killed."""
    remedy = f"wait for it, then: privet sweep --resume --out {root}"
    with only_one(root / _LOCK, f"{root}: another sweep is running here", remedy):
        deadline = time.monotonic() + _ORPHAN_SECONDS
        while True:
            try:
                with only_one(root / _ALIVE, f"{root}: a worker of another sweep is running here", remedy):
                    break
            except UsageError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield


def _simulated(asked: Sweep, left: Sequence[Point], metric: str, workers: Workers, console: Console) -> dict[str, str]:
    failed: dict[str, str] = {}
    alive = str((asked.root / _ALIVE).resolve())
    jobs = [
        Job(p.name, {"do": "run", "plan": plan_text(p.plan), "folder": str(asked.folder(p)), "alive": alive}, p.cost)
        for p in left
    ]
    with SweepProgress(asked, metric, console) as progress:
        try:
            for event in workers.carried_out(jobs):
                if isinstance(event, Ended) and event.failed:
                    failed[event.job.name] = event.failed
                progress.show(event)
        except KeyboardInterrupt:
            progress.say("stopping after the rounds that are under way")
            workers.stop()
            done = sum(asked.is_done(point) for point in asked.points)
            raise InterruptedRunError(
                f"interrupted; {done} of {len(asked.points)} points are done, and kept",
                f"privet sweep --resume --out {asked.root}",
            ) from None
    return failed
