"""Nothing is ever under-charged: nodes that are killed at any moment, processes that race for the last epsilon."""

import multiprocessing
import os
import random
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from privet.client.answers import Answers
from privet.client.draw import Draw
from privet.client.node import Node, Request
from privet.client.randomness import drawn
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Ledger
from privet.privacy.errors import Refusal, RefusedError
from privet.privacy.plan_file import parse_plan
from privet.privacy.submission import Submission, resolve

FORK = multiprocessing.get_context("fork")
KILLS = 200
# After the moment that was waited for; a request takes a few milliseconds, most of them in durable writes.
LONGEST_LIFE = 0.02
NOW = datetime.now(UTC).replace(microsecond=0)
MODEL = {"w": np.zeros(50, np.float32)}
PLAN = """
[run]
name = "killed"
task = "fake"
rounds = {rounds}
spare-rounds = {spare}
[training]
learning-rate = 1.0
[privacy]
unit = "record"
noise-multiplier = {noise}
delta = 1e-6
clip-norm = 1.0
sampling-rate = 0.5
"""


def submission_of(run_id: str, rounds: int = 4, spare: int = 40, noise: float = 50.0) -> Submission:
    plan = parse_plan(PLAN.format(rounds=rounds, spare=spare, noise=noise), "killed.toml")
    return resolve(plan, federation="test", run_id=run_id, operator="alice", now=NOW, validity=timedelta(days=9))


class NumpyTrainer:
    """Draws real noise from the node's own randomness, and leaves a line of evidence the moment that it is drawn."""

    def __init__(self, submission: Submission, evidence: Path) -> None:
        self._run = submission.run_id
        self._evidence = evidence

    def initial(self) -> dict[str, np.ndarray]:
        return MODEL

    def train(self, parameters: Mapping[str, np.ndarray], draw: Draw) -> dict[str, np.ndarray]:
        noise = drawn(draw).gaussian(50).numpy()
        descriptor = os.open(self._evidence, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{self._run} {noise.tobytes()[:8].hex()}\n".encode())
        os.close(descriptor)
        return {name: array + noise for name, array in parameters.items()}

    def evaluate(self, parameters: Mapping[str, np.ndarray], draw: Draw) -> dict[str, float]:
        return {}

    def done(self) -> dict[str, str]:
        return {"steps": "1"}


def opened(folder: Path, epsilon: str = "1000", delta: str = "0.5") -> AccountBook:
    key = SigningKey.load_or_create(folder / "key.pem")
    accounts = AccountBook(Ledger.open(folder / "ledger.sqlite", purpose="simulation", owner="ward", key=key))
    if "ward" not in accounts.book.accounts:
        accounts.open_account("ward", AccountTerms("record", Decimal(epsilon), Decimal(delta)))
        accounts.add_dataset(DeclaredDataset("fake", "fake", "/data/ward", 1000, "ward"))
    return accounts


def node_of(folder: Path) -> Node:
    return Node(
        name="ward",
        source=Path("/data/ward"),
        guard=Guard(opened(folder), "fake"),
        answers=Answers(folder / "answers"),
        workshop=lambda submission, dataset, source: NumpyTrainer(submission, folder / "evidence"),
        clock=lambda: NOW,
    )


def live(folder: Path, first_run: int, ready: Connection) -> None:
    """A node's life: runs of four rounds, asked for as a server does, until it is killed."""
    node = node_of(folder)
    ready.send("begins")
    for number in range(first_run, first_run + 1000):
        submission = submission_of(f"run-{number}")
        for round_number in range(1, 5):
            for attempt in range(1, 45):
                request = Request("train", submission.canonical, round_number, attempt, MODEL)
                try:
                    node.answer(request)
                    break
                except RefusedError as refusal:
                    assert refusal.code == Refusal.ATTEMPT_SPENT, refusal  # noqa: PT017


@pytest.mark.slow
def test_killed_node_has_a_charge_for_every_noise_that_was_drawn(tmp_path: Path) -> None:
    rng = random.Random(5)
    opened(tmp_path).ledger.close()
    killed_after_drawing = 0
    for kill in range(KILLS):
        before = len(evidence_of(tmp_path))
        parent, child = FORK.Pipe()
        process = FORK.Process(target=live, args=(tmp_path, kill // 3, child))
        process.start()
        child.close()
        assert parent.recv() == "begins"
        wanted = before + rng.choice((0, 0, 1, 2))  # some die before they draw anything, some between two draws
        while len(evidence_of(tmp_path)) < wanted and process.exitcode is None:
            process.join(0.001)
        process.join(rng.uniform(0.0, LONGEST_LIFE))
        assert process.exitcode is None, "it was to be killed, and ended by itself"
        process.kill()
        process.join()
        parent.close()
        killed_after_drawing += len(evidence_of(tmp_path)) > before
        check_nothing_is_undercharged(tmp_path)
    assert killed_after_drawing > KILLS // 4, "most lives must get to draw noise"


def evidence_of(folder: Path) -> list[str]:
    path = folder / "evidence"
    return path.read_text().splitlines() if path.exists() else []


def check_nothing_is_undercharged(folder: Path) -> None:
    """For every noise drawn there is a begin, for every begin a charge, and the account has paid for every charge."""
    accounts = opened(folder)
    drawn: dict[str, int] = {}
    for line in evidence_of(folder):
        drawn[line.split()[0]] = drawn.get(line.split()[0], 0) + 1
    for run, count in drawn.items():
        charge = accounts.book.runs[run]
        assert count <= charge.count("train") <= 44, run
    assert len(set(evidence_of(folder))) == len(evidence_of(folder)), "no noise is drawn twice"
    spent = sum((charge.epsilon for charge in accounts.book.runs.values()), Decimal(0))
    assert accounts.book.accounts["ward"].spent_epsilon == spent
    accounts.ledger.close()


def try_to_admit(folder: Path, run_id: str, start: Connection) -> None:
    guard = Guard(opened(folder), "fake")
    start.recv()
    try:
        guard.admit(submission_of(run_id, noise=2.0), NOW)
    except RefusedError as refusal:
        os._exit(3 if refusal.code == Refusal.BUDGET_EXHAUSTED else 1)
    os._exit(0)


@pytest.mark.parametrize("attempt", range(5))
def test_two_processes_race_for_the_last_epsilon_and_one_gets_it(tmp_path: Path, attempt: int) -> None:
    one = submission_of("probe", noise=2.0)
    assert one.claim is not None
    enough_for_one = str(Decimal(repr(one.claim.epsilon)) * Decimal("1.5"))
    opened(tmp_path, epsilon=enough_for_one).ledger.close()
    racers = []
    for name in ("a", "b"):
        ours, theirs = FORK.Pipe()
        process = FORK.Process(target=try_to_admit, args=(tmp_path, name, theirs))
        process.start()
        racers.append((process, ours))
    for _, ours in racers:
        ours.send("go")
    for process, _ in racers:
        process.join()
    assert sorted(process.exitcode or 0 for process, _ in racers) == [0, 3]
    accounts = opened(tmp_path)
    assert len(accounts.book.runs) == 1
    assert accounts.book.accounts["ward"].epsilon_spent <= Decimal(enough_for_one)


def test_lost_reply_costs_no_second_noise(tmp_path: Path) -> None:
    node, submission = node_of(tmp_path), submission_of("run")
    request = Request("train", submission.canonical, 1, 1, MODEL)
    first = node.answer(request)
    again = node_of(tmp_path).answer(request)
    assert first.parameters["w"].tobytes() == again.parameters["w"].tobytes()
    assert len(evidence_of(tmp_path)) == 1
