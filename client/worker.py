"""Worker: trains a run in a process of its own, which stays warm between rounds. To the node it is a Trainer.

A crash, a kill by the system, or an exception of the task is an error here, and the node lives on; the next request
starts a new process. The process is checked like any other party: what it answers must have the names and shapes of
the model that it gave at first.
"""

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from ..privacy.budget.book import DeclaredDataset
from ..privacy.errors import TaskError
from ..privacy.parameters import Array, Parameters, shapes_of
from ..privacy.submission import Submission
from .draw import Draw
from .pipe import Packet
from .served import Served, WorkerSettings

if TYPE_CHECKING:
    from .tasks.protocol import Source

__all__ = ["MOST_WARM", "Worker", "WorkerSettings", "Workers"]

MOST_WARM = 4  # processes that wait for their next round; each holds its libraries, its data and its model
_MOST_FACTS, _LONGEST_FACT = 20, 2000  # of what goes to the ledger


class Worker:
    """See node.Trainer; `open` it first. Until it is asked to train, its process reads no record."""

    def __init__(
        self,
        submission: Submission,
        dataset: DeclaredDataset,
        source: "Source",
        settings: WorkerSettings,
        using: Callable[["Worker"], None] = lambda worker: None,
    ) -> None:
        if not isinstance(source, Path):
            raise TypeError("a worker reads a path: a simulated share lies in this process' memory")
        self.submission = submission
        self._using = using
        opening = {
            "serve": "task",
            "submission": submission.canonical.decode(),
            "dataset": dataclasses.asdict(dataset),
            "source": str(source),
            "device": settings.device,
        }
        self.served = Served(submission.run_id, opening, settings)
        self._done: dict[str, str] = {}
        self._initial: Parameters = {}

    def open(self) -> Self:
        """Start the process: it loads the task and probes it. Raises TaskError for one that is unfit, or fails."""
        self._using(self)
        ready = self.served.open()
        if ready is not None and not self._initial:
            self._initial = ready.arrays
        return self

    def initial(self) -> dict[str, Array]:
        """See node.Trainer."""
        return dict(self._initial)

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        """See node.Trainer."""
        answer = self._asked("train", parameters, draw)
        if shapes_of(answer.arrays) != shapes_of(self._initial):
            raise self._broken("the update has other names or shapes than the model")
        return dict(answer.arrays)

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        """See node.Trainer."""
        sums = self._asked("evaluate", parameters, draw).head.get("sums")
        evaluation = self.submission.plan.evaluation
        wanted = list(evaluation.metrics) if evaluation else []
        if not isinstance(sums, dict) or list(sums) != wanted or any(type(s) is not float for s in sums.values()):
            raise self._broken("the metrics are not those of the plan")
        return dict(sums)

    def done(self) -> dict[str, str]:
        """See node.Trainer."""
        return dict(self._done)

    def _asked(self, what: str, parameters: Parameters, draw: Draw) -> Packet:
        if draw.is_seeded and self.submission.claim is not None:
            raise ValueError("a private run draws from the operating system")
        self._using(self)
        self._done = {}
        answer = self.served.ask(Packet({"ask": what, "seed": draw.seed, "labels": draw.labels}, parameters))
        done = answer.head.get("done")
        if not isinstance(done, dict) or len(done) > _MOST_FACTS or not all(map(_is_fact, done.items())):
            raise self._broken("it does not say what it did")
        self._done = done
        return answer

    def _broken(self, what: str) -> TaskError:
        self.served.cancel(what)
        self._done = {}
        return TaskError(f"its process answered wrongly: {what}", "see the run's local log")


def _is_fact(entry: tuple[object, object]) -> bool:
    return all(isinstance(text, str) and len(text) <= _LONGEST_FACT for text in entry)


class Workers:
    """The node's Workshop: a Worker for each run. Of more than `most_warm` processes the longest idle one goes."""

    def __init__(self, settings: WorkerSettings, most_warm: int = MOST_WARM) -> None:
        self._settings = settings
        self._most_warm = most_warm
        self._workers: OrderedDict[tuple[str, str], Worker] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, submission: Submission, dataset: DeclaredDataset, source: "Source") -> Worker:
        """See node.Workshop."""
        key = (submission.hash, dataset.name)
        with self._lock:
            worker = self._workers.get(key)
            if worker is None:
                worker = self._workers[key] = Worker(submission, dataset, source, self._settings, self._make_room)
        return worker.open()

    def cancel(self, run_id: str, why: str) -> None:
        """End what is running for a run."""
        for worker in self._of(run_id):
            worker.served.cancel(why)

    def finish(self, run_id: str) -> None:
        """Let go of what is kept warm for a run that is over."""
        for worker in self._of(run_id):
            worker.served.close()
        with self._lock:
            self._workers = OrderedDict(
                (key, worker) for key, worker in self._workers.items() if worker.submission.run_id != run_id
            )

    def close(self) -> None:
        """Let go of all."""
        for run_id in {worker.submission.run_id for worker in list(self._workers.values())}:
            self.finish(run_id)

    def _of(self, run_id: str) -> list[Worker]:
        with self._lock:
            return [worker for worker in self._workers.values() if worker.submission.run_id == run_id]

    def _make_room(self, using: Worker) -> None:
        """Called before a worker is asked: it is the newest now, and the oldest that waits may have to go."""
        with self._lock:
            for key, worker in self._workers.items():
                if worker is using:
                    self._workers.move_to_end(key)
                    break
            warm = [w for w in self._workers.values() if w is not using and w.served.pid is not None]
            idle = [worker for worker in warm if not worker.served.is_busy]
        for worker in idle[: max(0, len(warm) + 1 - self._most_warm)]:
            worker.served.rest()
