"""Runs trained in a process of their own: the same models, the same refusals, and a node that lives on."""

import os
import select
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from privet.client.answers import Answers
from privet.client.bench import Bench
from privet.client.draw import SYSTEM, Draw
from privet.client.node import Node, Request
from privet.client.pipe import Packet
from privet.client.served import WorkerSettings
from privet.client.tasks.protocol import Partition, Records
from privet.client.tasks.registry import load_task
from privet.client.worker import Worker, Workers
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Guard
from privet.privacy.errors import Refusal, RefusedError, TaskError
from privet.privacy.submission import Submission
from signed_ledgers import ACCOUNT, WIDE, opened

Make = Callable[..., Submission]
MOMENT = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
SUPPORT = Path(__file__).parents[1] / "support"
EVALUATION = ("evaluation.every=1", "evaluation.metrics=['accuracy']")
PUBLIC = Draw(3, ("hospital", "train", 1))
LONG = 60.0
TASK = """
import ctypes
import signal
from pathlib import Path
import torch
from torch import nn
from privet.client.tasks.protocol import Facts, Records, Task

print("a task that talks while it is imported")


class Odd(Task):
    name = "odd"
    version = "4.2"
    options = {"norm": False}

    def facts(self, options):
        return Facts("odd", "made up", "none", (3,), (-1.0, 1.0), ("no", "yes"))

    def model(self, options):
        return nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)) if options["norm"] else nn.Linear(3, 2)

    def loss(self, outputs, targets):
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs, targets):
        return {"accuracy": (outputs.argmax(dim=1) == targets).float()}

    def load(self, source):
        word = source.read_text()
        if word == "segfault":
            ctypes.string_at(0)
        if word == "wait":
            with source.with_name("fifo").open("w"):
                signal.pause()
        inputs = torch.rand(90, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return Records(inputs, (inputs.sum(dim=1) > 0).long())

    def shipped(self, options):
        raise NotImplementedError
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, logs, and a package with a task, installed nowhere but on a path."""
    made = tmp_path_factory.mktemp("worker")
    info = made / "site" / "odd_task-1.dist-info"
    info.mkdir(parents=True)
    (made / "site" / "odd_task.py").write_text(TASK)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-task\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[privet.tasks]\nodd = odd_task:Odd\n")
    random = np.random.default_rng(2)
    rows = [f"{a:.3f},{b:.3f},{c:.3f},{int(a + b > 0)}" for a, b, c in random.normal(size=(120, 3))]
    (made / "data.csv").write_text("\n".join(["x_0,x_1,x_2,label", *rows]))
    return made


@pytest.fixture(scope="module")
def settings(folder: Path) -> WorkerSettings:
    return WorkerSettings(folder / "logs", device="cpu", environment={"PYTHONPATH": str(folder / "site")})


@pytest.fixture(scope="module")
def plain(folder: Path, settings: WorkerSettings, make_submission: Make) -> Iterator[Worker]:
    """A warm worker for a run without privacy; the tests share it."""
    worker = Worker(make_submission(*EVALUATION), synthetic(folder), folder / "data.csv", settings).open()
    yield worker
    worker.served.close()


@pytest.fixture(scope="module")
def private(folder: Path, settings: WorkerSettings, make_submission: Make) -> Iterator[Worker]:
    submission = make_submission(*EVALUATION, "evaluation.noise-multiplier=20.0", private=True, run_id="run-2")
    worker = Worker(submission, synthetic(folder), folder / "data.csv", settings).open()
    yield worker
    worker.served.close()


def synthetic(folder: Path) -> DeclaredDataset:
    return DeclaredDataset("synthetic", "synthetic", str(folder / "data.csv"), 120, "records")


def is_gone(pid: int) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], LONG)[0])
    finally:
        os.close(descriptor)


def test_model_is_the_one_of_a_trainer_in_this_process(plain: Worker, folder: Path) -> None:
    """Bit for bit, over rounds and metrics: a run gives one model, wherever it is trained."""
    bench = Bench(load_task("synthetic"), torch.device("cpu"))
    local = bench.trainer(plain.submission, synthetic(folder), folder / "data.csv")
    ours, theirs = plain.initial(), local.initial()
    for number in range(3):
        assert {name: a.tobytes() for name, a in ours.items()} == {name: a.tobytes() for name, a in theirs.items()}
        draw = Draw(3, ("hospital", "train", number))
        ours, theirs = plain.train(ours, draw), local.train(theirs, draw)
        assert plain.done() == local.done()
    assert any(np.any(ours[name] != plain.initial()[name]) for name in ours), "it learned"
    assert plain.evaluate(ours, PUBLIC) == local.evaluate(theirs, PUBLIC)
    assert plain.done() == local.done()


def test_private_run_is_noised_and_says_what_it_did(private: Worker, folder: Path) -> None:
    first, second = (private.train(private.initial(), SYSTEM) for _ in range(2))
    assert all(not np.array_equal(first[name], second[name]) for name in first)
    assert {"noise_multiplier": "4.0", "clip_norm": "1.0", "steps": "2"}.items() <= private.done().items()
    assert private.done()["task"] == "synthetic"
    assert private.evaluate(first, SYSTEM) != private.evaluate(first, SYSTEM)
    assert private.done()["noise_multiplier"] == "20.0"


def test_private_run_draws_from_no_seed_on_either_side(private: Worker, folder: Path, settings: WorkerSettings) -> None:
    with pytest.raises(ValueError, match="operating system"):
        private.train(private.initial(), PUBLIC)
    pid = private.served.pid
    assert pid is not None, "this side refused: nothing was asked"
    with pytest.raises(TaskError, match="a private run draws from the operating system"):
        private.served.ask(Packet({"ask": "train", "seed": 3, "labels": ["a"]}, private.initial()))


def test_unfit_task_is_refused_by_the_probe(folder: Path, settings: WorkerSettings, make_submission: Make) -> None:
    submission = make_submission(
        *("run.task=odd", "model.records=", "model.features=", "model.norm=true"), private=True, run_id="run-4"
    )
    dataset = DeclaredDataset("odd", "odd", "/data", 90, "records")
    worker = Worker(submission, dataset, folder / "word", settings)
    with pytest.raises(TaskError, match="mixes the records of a batch") as caught:
        worker.open()
    assert caught.value.remedy == "use GroupNorm instead"
    assert worker.served.pid is None
    assert "a task that talks while it is imported" in (folder / "logs" / "run-4.log").read_text()


def test_simulated_share_is_not_for_a_worker(folder: Path, settings: WorkerSettings, make_submission: Make) -> None:
    share = Partition(Records(torch.zeros(1, 1), torch.zeros(1)), torch.zeros(1))
    with pytest.raises(TypeError, match="path"):
        Worker(make_submission(), synthetic(folder), share, settings)


@pytest.mark.slow
def test_node_outlives_a_task_that_crashes(
    folder: Path, tmp_path: Path, settings: WorkerSettings, make_submission: Make
) -> None:
    """A segmentation fault, a run that is withdrawn while it trains, then a good round: all in one node."""
    submission = make_submission("run.task=odd", "model.records=", "model.features=", private=True, run_id="run-5")
    word = tmp_path / "word"
    workers = Workers(settings)
    accounts = AccountBook(opened(tmp_path / "ledger.sqlite"))
    accounts.open_with_dataset(WIDE, DeclaredDataset("odd", "odd", str(word), 90, ACCOUNT))
    node = Node(
        name="hospital",
        source=word,
        guard=Guard(accounts, "odd"),
        answers=Answers(tmp_path / "answers"),
        workshop=workers,
        clock=lambda: MOMENT,
    )
    model = node.answer(Request("initial", submission.canonical, 0, 0, {})).parameters

    def refusal(attempt: int) -> str:
        with pytest.raises(RefusedError) as caught:
            node.answer(Request("train", submission.canonical, 1, attempt, model))
        assert caught.value.code == Refusal.TASK_FAILED
        return caught.value.message

    def withdraw() -> None:
        with (tmp_path / "fifo").open():  # it trains
            workers.cancel("run-5", "the run was withdrawn")

    assert not word.exists(), "nothing was read before a charge"
    word.write_text("segfault")
    assert "it was killed by signal 11 (SIGSEGV)" in refusal(1)
    word.write_text("wait")
    os.mkfifo(tmp_path / "fifo")
    thread = threading.Thread(target=withdraw)
    thread.start()
    assert "the run was withdrawn" in refusal(2)
    thread.join(LONG)
    word.write_text("good")
    answer = node.answer(Request("train", submission.canonical, 1, 3, model))
    assert list(answer.parameters) == list(model)
    assert (node.standing(submission).attempts, node.standing(submission).answered) == (3, 1)
    workers.close()
    node.close()


# ---- what its process may tell: here it is one that lies ----


@pytest.fixture
def lying(settings: WorkerSettings) -> WorkerSettings:
    return WorkerSettings(settings.logs, module="odd_child", environment={"PYTHONPATH": str(SUPPORT)})


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ("shapes", "other names or shapes"),
        ("names", "other names or shapes"),
        ("more", "other names or shapes"),
        ("done", "what it did"),
        ("much", "what it did"),
        ("many", "what it did"),
    ],
)
def test_attack_answer_that_is_not_an_update_of_the_model(
    folder: Path, lying: WorkerSettings, make_submission: Make, lie: str, why: str
) -> None:
    worker = Worker(make_submission(), synthetic(folder), Path(lie), lying).open()
    pid = worker.served.pid
    with pytest.raises(TaskError, match=why):
        worker.train(worker.initial(), PUBLIC)
    assert worker.done() == {}
    assert pid is not None
    assert is_gone(pid)
    worker.served.close()


@pytest.mark.parametrize("lie", ["metrics", "sums"])
def test_attack_metrics_that_the_plan_does_not_name(
    folder: Path, lying: WorkerSettings, make_submission: Make, lie: str
) -> None:
    worker = Worker(make_submission(*EVALUATION), synthetic(folder), Path(lie), lying).open()
    with pytest.raises(TaskError, match="not those of the plan"):
        worker.evaluate(worker.initial(), PUBLIC)
    worker.served.close()


def test_longest_idle_process_goes_when_there_are_too_many(
    folder: Path, lying: WorkerSettings, make_submission: Make
) -> None:
    workers = Workers(lying, most_warm=2)
    runs = [workers(make_submission(run_id=f"r-{n}"), synthetic(folder), Path("true")) for n in range(2)]
    runs[0].train(runs[0].initial(), PUBLIC)
    third = workers(make_submission(run_id="r-2"), synthetic(folder), Path("true"))
    assert [run.served.pid is not None for run in (*runs, third)] == [True, False, True]
    runs[1].train(runs[1].initial(), PUBLIC)  # comes back
    assert [run.served.pid is not None for run in (*runs, third)] == [False, True, True]
    workers.close()
    assert all(run.served.pid is None for run in (*runs, third))


def test_run_that_is_over_is_let_go_alone(folder: Path, lying: WorkerSettings, make_submission: Make) -> None:
    workers = Workers(lying)
    ours, theirs = (workers(make_submission(run_id=f"r-{n}"), synthetic(folder), Path("true")) for n in range(2))
    assert workers(ours.submission, synthetic(folder), Path("true")) is ours, "one process for a run"
    workers.cancel("r-0", "enough")
    assert (ours.served.pid, theirs.served.pid is not None) == (None, True)
    ours.train(ours.initial(), PUBLIC)
    workers.finish("r-0")
    assert (ours.served.pid, theirs.served.pid is not None) == (None, True)
    with pytest.raises(TaskError, match="let go"):
        ours.train(ours.initial(), PUBLIC)
    again = workers(ours.submission, synthetic(folder), Path("true"))
    assert again is not ours
    again.train(again.initial(), PUBLIC)
    workers.close()
