"""A RunGrid over fake nodes in this process, whose nodes come and go as a test says; and what Runs needs around it."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fake_nodes import FakeNode, grid_of
from flwr.app import Message
from privet.privacy.errors import InterruptedRunError
from privet.privacy.signed import SignedSubmission
from privet.privacy.submission import Submission
from privet.server.database import open_database
from privet.server.run_book import RunBook
from privet.server.run_folder import RunFolder
from privet.server.run_grid import RunGrid
from privet.server.run_record import RunState
from privet.server.runs import TRAINING, Runs
from privet.server.training_run import TrainingRuns
from privet.simulations.grid import Fault

PATIENCE = 20.0  # seconds that a test waits for what must happen
CERTIFICATES = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n" * 2


class LocalRunGrid(RunGrid):
    """`connected`: how many of the nodes are there; `connect` brings more."""

    def __init__(self, nodes: Sequence[FakeNode], connected: int | None = None, fault: Fault | None = None) -> None:
        self._grid = grid_of(nodes, fault)
        self._names = {100 + place: node.name for place, node in enumerate(nodes)}
        self._change = threading.Condition()
        self._connected = len(nodes) if connected is None else connected
        self._is_stopped = False
        self.is_closed = False
        self.not_asked: dict[str, str] = {}
        self._nodes = list(nodes)
        self._revised = dict.fromkeys(self._names, 0)

    def revise(self, name: str, **changes: Any) -> None:
        """A node is another now, and says so."""
        [node_id] = [node_id for node_id, known in self._names.items() if known == name]
        with self._change:
            for key, value in changes.items():
                setattr(self._nodes[node_id - 100], key, value)
            self._revised[node_id] += 1
            self._change.notify_all()

    def revisions(self) -> Mapping[int, str]:
        return {node_id: str(number) for node_id, number in self._revised.items()}

    def wait_for_revisions(self, seen: Mapping[int, str], seconds: float) -> None:
        with self._change:
            if not self._change.wait_for(lambda: self._is_stopped or self.revisions() != seen, PATIENCE):
                raise AssertionError("nobody spoke")
        self._check()

    def connect(self, count: int) -> None:
        with self._change:
            self._connected = count
            self._change.notify_all()

    def wait_for_nodes(self, least: int) -> None:
        with self._change:
            if not self._change.wait_for(lambda: self._is_stopped or self._connected >= least, PATIENCE):
                raise AssertionError("nobody came")
        self._check()

    def stop(self) -> None:
        with self._change:
            self._is_stopped = True
            self._change.notify_all()

    def close(self) -> None:
        self.is_closed = True

    def traffic(self) -> tuple[int, int]:
        return (1000, 500)

    def notes(self) -> Mapping[str, str]:
        return self.not_asked

    def name_of(self, node_id: int) -> str:
        return self._names[node_id]

    def get_node_ids(self) -> Iterable[int]:
        return list(self._grid.get_node_ids())[: self._connected]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        self._check()
        for reply in self._grid.send_and_receive(messages, timeout=timeout):
            yield reply
            self._check()

    @property
    def run(self) -> Any:
        return self._grid.run

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        return self._grid.create_message(*args, **kwargs)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def _check(self) -> None:
        if self._is_stopped:
            raise InterruptedRunError("stopped", "resume")


def handed_in(submission: Submission) -> SignedSubmission:
    """As signed as these tests need it: who checks the signature is passed in."""
    return SignedSubmission(submission.canonical, b"signature", CERTIFICATES)


def three() -> list[FakeNode]:
    return [FakeNode(f"node-{number}", 10 * number, step=0.5 * number) for number in (1, 2, 3)]


def runs_in(folder: Path, grid: Callable[[], RunGrid] | None = None, **changes: Any) -> Runs:
    """Runs over a database and folders that outlive them, as a server's do. Three nodes unless `grid` says more."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = open_database(f"sqlite:///{folder / 'server.sqlite'}")
    make = grid or (lambda: LocalRunGrid(three()))
    settings: dict[str, Any] = {
        "carry_out": {TRAINING: TrainingRuns()},
        "check": lambda signed: None,
    } | changes
    return Runs(RunBook(engine), lambda run_id: RunFolder(folder / "runs" / run_id), lambda _: make(), **settings)


def ended(runs: Runs, run_id: str) -> RunState:
    """The state in which the run's thread ended."""
    assert runs.wait(run_id, PATIENCE)
    return runs.book.record(run_id).state
