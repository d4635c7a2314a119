"""Worker: trains a run in a process of its own, which stays warm between rounds. To the node it is a Trainer.

A crash, a kill by the system, or an exception of the task is an error here, and the node lives on; the next request
starts a new process. The process is checked like any other party: what it answers must have the names and shapes of
the model that it gave at first.
"""

import dataclasses
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from ..privacy.budget.book import DeclaredDataset
from ..privacy.errors import TaskError
from ..privacy.parameters import Array, Parameters, shapes_of
from ..privacy.submission import Submission
from .child import Child, ChildEndedError
from .draw import Draw
from .pipe import Packet

if TYPE_CHECKING:
    from .tasks.protocol import Source

log = logging.getLogger("privet.node")

_OPENING_SECONDS = 300.0  # to import, to build a model and to probe it
MOST_WARM = 4  # processes that wait for their next round; each holds its libraries, its data and its model
_MOST_FACTS, _LONGEST_FACT = 20, 2000  # of what goes to the ledger


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """`logs`: a folder. `seconds`: a request may take. `memory_bytes`: a process may write to. `environment`: added."""

    logs: Path
    device: str = "auto"
    threads: int = 1  # small models are several times slower on two than on one
    seconds: float | None = None
    memory_bytes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Served:
    """A process that serves one thing. It is started when it is needed, and again when it was lost."""

    def __init__(self, name: str, opening: Mapping[str, Any], settings: WorkerSettings) -> None:
        self._name = name
        self._opening = {**opening, "memory_bytes": settings.memory_bytes, "threads": settings.threads}
        self._settings = settings
        self._child: Child | None = None
        self._number = 0
        self._asking, self._lock = threading.Lock(), threading.Lock()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        child = self._child
        return child.pid if child is not None and child.is_alive else None

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._asking.locked()

    def ask(self, packet: Packet, seconds: float | None = None) -> Packet:
        """The process' answer; raise TaskError where it fails or ends instead."""
        with self._asking:
            child, _ = self._opened()
            return self._asked(child, packet, seconds or self._settings.seconds)

    def open(self) -> Packet | None:
        """Start the process unless it runs; gives what it said when it was ready."""
        with self._asking:
            return self._opened()[1]

    def cancel(self, why: str) -> None:
        """End a request that is running, and the process with it. From any thread; the next request starts anew."""
        with self._lock:
            child = self._child
        if child is not None:
            child.kill(why)

    def rest(self) -> bool:
        """Let the process go until it is needed again; False where it is being asked."""
        if not self._asking.acquire(blocking=False):
            return False
        try:
            self._drop()
        finally:
            self._asking.release()
        return True

    def close(self) -> None:
        """Let the process go for good; a request that is running fails."""
        self._is_closed = True
        if not self.rest():
            self.cancel("it was let go")

    def _drop(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def _opened(self) -> tuple[Child, Packet | None]:
        with self._lock:
            child = self._child
            if self._is_closed:
                raise TaskError(f"{self._name}: its process was let go", "ask for another run")
            if child is not None and child.is_alive:
                return child, None
            if child is not None:
                child.close()
            try:
                child = self._child = Child(
                    self._settings.logs / f"{self._name}.log", self._settings.threads, self._settings.environment
                )
            except ChildEndedError as error:
                raise self._lost(error) from None
        log.info("%s: process %d started", self._name, child.pid)
        return child, self._asked(child, Packet(self._opening), _OPENING_SECONDS)

    def _asked(self, child: Child, packet: Packet, seconds: float | None) -> Packet:
        self._number += 1
        try:
            answer = child.ask(Packet({**packet.head, "number": self._number}, packet.arrays, packet.raw), seconds)
        except ChildEndedError as error:
            raise self._lost(error) from None
        failed = answer.head.get("failed")
        if failed is None and answer.head.get("number") == self._number:
            return answer
        child.kill("it failed")
        child.close()
        told = failed if isinstance(failed, dict) else {}
        message = str(told.get("message", "its process did not keep to the protocol"))[:_LONGEST_FACT]
        raise TaskError(message, str(told.get("remedy", self._see))[:_LONGEST_FACT])

    def _lost(self, error: ChildEndedError) -> TaskError:
        log.error("%s: its process is gone: %s", self._name, error)
        return TaskError(f"its process is gone: {error}", self._see)

    @property
    def _see(self) -> str:
        return f"see {self._settings.logs / f'{self._name}.log'}"


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
        answer = self.served.ask(Packet({"ask": what, "seed": draw.seed, "labels": draw.labels}, parameters))
        done = answer.head.get("done")
        if not isinstance(done, dict) or len(done) > _MOST_FACTS or not all(map(_is_fact, done.items())):
            raise self._broken("it does not say what it did")
        self._done = done
        return answer

    def _broken(self, what: str) -> TaskError:
        self.served.cancel(what)
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
