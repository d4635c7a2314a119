"""A worker of a sweep: one process that imports torch once, then simulates point after point in one thread.

Orders come as JSON lines on standard input, answers leave as JSON lines on what was standard output. The rules:
1. Where standard input ends, whoever gave the orders is gone: this process ends at once, wherever it is.
2. An order to stop is obeyed after the round, when its checkpoint is written: nothing is lost then.
3. A point is the same whether or not it was interrupted. It goes on from its checkpoint where no node has lost an
   attempt. Where one has, a resumed run would draw new noise, or do without the node: the point is begun anew.
4. result.json is written last, and whole.
"""

import fcntl
import json
import logging
import os
import queue
import shutil
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch

from ..client.device import device_of
from ..client.tasks.registry import load_task
from ..client.training import scored
from ..privacy.budget.accounting import epsilon_of, rounded_up
from ..privacy.budget.charge import charged_events
from ..privacy.budget.events import RELATION
from ..privacy.channel.files import OWNER_ONLY, write_whole
from ..privacy.errors import PlanError, PrivetError, UsageError
from ..privacy.plan import Plan
from ..privacy.plan_file import parse_plan
from ..server.run_folder import RunFolder
from ..server.simulated import simulated_submission
from .cohort.memory import keep_memory
from .report import write_report
from .result import result_of
from .scenario import Scenario
from .views import RoundView
from .world import World, check_sizes

TOLD_EVERY = 0.5  # seconds between two words on a point's progress

Json = dict[str, object]


class _StoppedError(Exception):
    """The order to stop was obeyed."""


def check_point(plan: Plan, metric: str, device: torch.device) -> None:
    """Raise what a simulation of the plan would raise before its first round, and for an unknown metric."""
    world = World.of(plan, load_task(plan.run.task))
    check_sizes(plan, world)
    nowhere = RunFolder(Path(os.devnull))  # a scenario that is not begun writes nothing
    scenario = Scenario(plan, simulated_submission(plan), nowhere, world, device)
    scenario.engine  # noqa: B018 -- a task that cannot be trained
    _check_account(scenario)
    known = ["loss", *scored(scenario.trainable, world.held_out)]
    if metric not in known:
        raise UsageError(f"--metric {metric}: the task has {', '.join(known)}", "--metric loss")


def _check_account(scenario: Scenario) -> None:
    """What every node would refuse: a charge above what its new account holds."""
    plan, claim, section = scenario.submission.plan, scenario.submission.claim, scenario.world.section
    delta = plan.privacy.delta
    if claim is None or delta is None:
        return
    charged = rounded_up(epsilon_of(charged_events(plan, claim.noise_multiplier), delta))
    terms = f"at delta {delta:g} (unit: {plan.privacy.unit}, {RELATION})"
    if charged > section.account_epsilon:
        raise PlanError(
            [f"simulation.account-epsilon: {section.account_epsilon:g}, but the plan costs {charged} {terms}"],
            "--set simulation.account-epsilon=100 gives simulated nodes a larger account",
        )
    if delta > section.account_delta:
        raise PlanError(
            [f"simulation.account-delta: {section.account_delta:g}, but the plan has delta {delta:g}"],
            "--set simulation.account-delta=1e-3 gives simulated nodes a larger account",
        )


def run_point(plan: Plan, root: Path, device: torch.device, watch: Callable[[RoundView], None]) -> None:
    """Simulate a point in its folder, to its end."""
    began = time.monotonic()
    with closing(_scenario(plan, root, device)) as scenario:
        result = result_of(scenario, scenario.run(watch), time.monotonic() - began, {})
    write_report(result, root / "report.html")
    write_whole(root / "result.json", (json.dumps(result, indent=1) + "\n").encode())


def _scenario(plan: Plan, root: Path, device: torch.device) -> Scenario:
    """The point's, as it stands where it can go on unchanged; else a new one."""
    folder = RunFolder(root)
    if folder.submission.exists():
        try:
            scenario = Scenario.resumed(folder, device, processes=1)  # the sweep has a process for each core
            if _has_lost_nothing(scenario):
                return scenario
            scenario.close()
        except PrivetError:
            pass  # torn by a crash
    shutil.rmtree(root, ignore_errors=True)
    return Scenario.begun(plan, folder, World.of(plan, load_task(plan.run.task)), device, processes=1)


def _has_lost_nothing(scenario: Scenario) -> bool:
    """Whether there is a checkpoint, and every attempt that any node began after it has its kept answer."""
    plan = scenario.submission.plan
    state = scenario.folder.checkpoints(scenario.submission).newest()
    if state is None:
        return False
    evaluations = state.round // plan.evaluation.every if plan.evaluation else 0
    standings = scenario.standings()
    return all(s.attempts == s.answered and s.evaluations <= evaluations for s in standings)


class Worker:
    """Obeys orders, one after the other. `answer` sends a line."""

    def __init__(self, answer: Callable[[Json], None], device: torch.device) -> None:
        self._answer = answer
        self._device = device
        self._orders: queue.SimpleQueue[Json | None] = queue.SimpleQueue()
        self._is_stopped = threading.Event()
        self._told = 0.0
        self._alive: int | None = None

    def listen(self) -> None:
        """Read orders until nobody gives any more; for a thread of its own."""
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "stop":
                self._is_stopped.set()
                order = None
            self._orders.put(order)
        os._exit(0)

    def work(self) -> None:
        """Until the order to stop."""
        self._answer({"ready": True})
        while (order := self._orders.get()) is not None:
            try:
                self._obey(order)
            except _StoppedError:
                return
            except PrivetError as error:
                self._answer({"failed": error.message, "try": error.remedy})
            except Exception as error:  # somebody's task
                self._answer({"failed": f"{type(error).__name__}: {error}", "try": "mend the task"})
            else:
                self._answer({"done": True})

    def _obey(self, order: Json) -> None:
        plan = parse_plan(str(order["plan"]), "the point's plan")
        if order["do"] == "check":
            check_point(plan, str(order["metric"]), self._device)
        else:
            self._say_alive(Path(str(order["alive"])))
            run_point(plan, Path(str(order["folder"])), self._device, self._watch)

    def _say_alive(self, path: Path) -> None:
        """Lock the file, as every worker may, for as long as this process lives."""
        if self._alive is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._alive = os.open(path, os.O_RDWR | os.O_CREAT, OWNER_ONLY)
            fcntl.flock(self._alive, fcntl.LOCK_SH)

    def _watch(self, view: RoundView) -> None:
        if self._is_stopped.is_set():
            raise _StoppedError
        if time.monotonic() - self._told >= TOLD_EVERY:
            self._told = time.monotonic()
            self._answer({"round": view.round})


def main(device: str) -> None:
    """Serve the orders of a sweep, until told to stop."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a task prints is no answer

    def answer(told: Json) -> None:
        answers.write(json.dumps(told) + "\n")
        answers.flush()

    torch.set_num_threads(1)
    keep_memory()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    worker = Worker(answer, device_of(device))
    threading.Thread(target=worker.listen, name="privet-orders", daemon=True).start()
    worker.work()
    answers.flush()
    os._exit(0)  # the thread that listens would keep the interpreter from ending


if __name__ == "__main__":
    main(sys.argv[1])
