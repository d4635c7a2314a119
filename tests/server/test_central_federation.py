"""A federation whose server adds the noise: whom it asks and believes, what it keeps, and what it never decides."""

import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from central_runs import ADAPTIVE, CENTRAL, MOMENT, answer_of, book_of, nodes_of, run, stepping
from fake_nodes import FakeNode, grid_of
from flwr.app import Message
from privet.privacy.budget.accounts import AccountTerms
from privet.privacy.errors import FederationError, PlanError, RefusedError
from privet.server.checkpoints import Checkpoints, State
from privet.server.federation import Federation
from signed_ledgers import read

# Reddi et al. 2021, algorithm 2: with these betas m = delta and v = delta^2.
ONE_STEP = ("aggregation.server-learning-rate=0.5", "aggregation.beta-1=0.0", "aggregation.beta-2=0.0")


def silence(round_number: int, count: int) -> np.ndarray:
    return np.zeros(count)


def asked_in(nodes: list[FakeNode], number: int) -> list[str]:
    return [node.name for node in nodes if ("train", number, 1) in node.asked]


def first_round(make_submission, nodes: list[FakeNode], folder: Path, *assignments: str) -> tuple[State, int]:
    """The state after one round without noise, and how many were asked."""
    state = run(make_submission(*CENTRAL, "run.rounds=1", *assignments), nodes, folder, noise=silence)
    return state, len(asked_in(nodes, 1))


def test_the_model_moves_by_the_sum_over_the_nodes_expected(make_submission, tmp_path: Path) -> None:
    state, asked = first_round(make_submission, nodes_of(10), tmp_path)
    assert 0 < asked < 10
    assert state.model["w"] == pytest.approx(asked * 0.1 / 5, rel=1e-5)


def test_nodes_that_drop_out_add_nothing(make_submission, tmp_path: Path) -> None:
    """And change nobody else's part: nobody is asked again, and the denominator stays."""
    nodes = nodes_of(10)
    for node in nodes[::2]:
        node.train = lambda model, number, attempt: "task-failed"
    state, _ = first_round(make_submission, nodes, tmp_path, "aggregation.min-nodes=10")
    answered = [name for name in asked_in(nodes, 1) if int(name[1:]) % 2]
    assert state.model["w"] == pytest.approx(len(answered) * 0.1 / 5, rel=1e-5)
    assert all(len(node.asked) <= 1 for node in nodes)


def test_a_round_without_a_single_answer_is_a_round(make_submission, tmp_path: Path) -> None:
    nodes = [FakeNode(f"n{n}", train=lambda model, number, attempt: "task-failed") for n in range(4)]
    state = run(make_submission(*CENTRAL), nodes, tmp_path)
    assert state.round == 4
    assert np.all(state.model["w"] != 0)


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi", "fedprox"])
def test_an_empty_cohort_is_a_round(make_submission, tmp_path: Path, strategy: str) -> None:
    more = {"fedavgm": ("aggregation.server-momentum=0.9",), "fedprox": ("aggregation.proximal-mu=0.1",)}
    chosen = (f"aggregation.strategy={strategy}", *more.get(strategy, ()))
    nodes = nodes_of(3)
    state = run(make_submission(*CENTRAL, "aggregation.fraction=0.0001", *chosen), nodes, tmp_path)
    assert state.round == 4
    assert not any(node.asked for node in nodes)
    assert np.all(state.model["w"] != 0)


@pytest.mark.parametrize("within", [1, 0, 17, -3, "yes", float("nan"), 1e300])
def test_lying_node(make_submission, tmp_path: Path, within: object) -> None:
    """An update far too large, with whatever for a bit: it moves the model by C / qN, and the count by 1/2."""
    nodes = nodes_of(10, step=0.0)
    nodes[3].train = stepping(1e6, within) if not isinstance(within, str) else stepping(1e6, 0)
    state = run(make_submission(*ADAPTIVE, "aggregation.fraction=1.0", "run.rounds=1"), nodes, tmp_path, noise=silence)
    moved = np.concatenate([array.reshape(-1) for array in state.model.values()])
    assert np.linalg.norm(moved) <= 0.5 / 10 * (1 + 1e-6)
    share = 0.9 + (0.1 if within == 1 else 0.0)
    assert state.strategy["central/clip-norm"][0] == pytest.approx(0.5 * math.exp(-0.2 * (share - 0.5)))


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_poisoned_answer(make_submission, tmp_path: Path, poison: float) -> None:
    nodes = nodes_of(10)
    nodes[0].train = lambda model, number, attempt: answer_of({n: np.full_like(a, poison) for n, a in model.items()})
    state, asked = first_round(make_submission, nodes, tmp_path, "aggregation.fraction=1.0")
    assert asked == 10
    assert state.model["w"] == pytest.approx(9 * 0.1 / 10, rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (("fedavg",), 0.02),
        (("fedavgm", "aggregation.server-momentum=0.9"), 0.02),
        (("fedadam", "aggregation.tau=0.1", *ONE_STEP), 0.5 * 0.02 / (0.02 + 0.1)),
    ],
)
def test_strategies_get_the_noised_average(make_submission, tmp_path: Path, strategy, expected) -> None:
    name, *more = strategy
    nodes = nodes_of(10, step=0.02)
    chosen = (f"aggregation.strategy={name}", "aggregation.fraction=1.0", *more)
    state, _ = first_round(make_submission, nodes, tmp_path, *chosen)
    assert state.model["w"] == pytest.approx(expected, rel=1e-2)


def test_every_round_stands_in_the_ledger_and_nobody_in_it(make_submission, tmp_path: Path) -> None:
    run(make_submission(*CENTRAL), nodes_of(10), tmp_path)
    entries = read(tmp_path / "server.sqlite", owner="server")
    assert [entry.kind for entry in entries] == ["opened", "account", "dataset", "charge", *["begin", "answer"] * 4]
    assert not any(f"n{number:02}" in entry.body for entry in entries for number in range(10))
    charge = entries[3].content
    assert (charge["unit"], charge["declared_size"]) == ("node", "10")
    (event,) = charge["events"]
    assert event == {"kind": "sampled-gaussian", "noise_multiplier": "0.8", "sampling_rate": "0.5", "count": "4"}


class Stop(Exception):  # noqa: N818 -- not an error: somebody pulls the plug
    """The process ends here."""


def stop_after(rounds: int) -> Callable[[State], None]:
    def watch(state: State) -> None:
        if state.round == rounds:
            raise Stop

    return watch


@pytest.mark.parametrize("last", [0, 1, 2, 3])
@pytest.mark.parametrize("plan", [CENTRAL, ADAPTIVE])
def test_a_run_that_is_resumed_ends_with_the_same_model(make_submission, tmp_path: Path, plan, last: int) -> None:
    """The clip norm comes from the checkpoint, the noise and the cohort from the round's number."""
    submission = make_submission(*plan)
    whole = run(submission, nodes_of(10), tmp_path / "whole")
    with pytest.raises(Stop):
        run(submission, nodes_of(10), tmp_path / "parts", watch=stop_after(last))
    parts = run(submission, nodes_of(10), tmp_path / "parts")
    assert all(np.array_equal(parts.model[name], whole.model[name]) for name in whole.model)
    assert parts.strategy["central/clip-norm"] == whole.strategy["central/clip-norm"]
    ledgers = [read(tmp_path / name / "server.sqlite", owner="server") for name in ("whole", "parts")]
    assert [entry.kind for entry in ledgers[0]] == [entry.kind for entry in ledgers[1]]


def fault_in(round_number: int) -> Callable[[Message, Message], Message | None]:
    def fault(message: Message, reply: Message) -> Message | None:
        config = message.content.get("config")
        if message.metadata.message_type == "train" and config and config["round"] == round_number:  # type: ignore[index]
            raise Stop
        return reply

    return fault


def test_a_round_that_is_cut_off_is_begun_once(make_submission, tmp_path: Path) -> None:
    submission = make_submission(*ADAPTIVE)
    with pytest.raises(Stop):
        run(submission, nodes_of(10), tmp_path / "parts", fault=fault_in(3))
    parts = run(submission, nodes_of(10), tmp_path / "parts")
    whole = run(submission, nodes_of(10), tmp_path / "whole")
    assert np.array_equal(parts.model["w"], whole.model["w"])
    kinds = [entry.kind for entry in read(tmp_path / "parts" / "server.sqlite", owner="server")]
    assert (kinds.count("begin"), kinds.count("answer"), kinds.count("refused")) == (4, 4, 0)


def test_two_sums_of_one_round(make_submission, tmp_path: Path) -> None:
    """A round whose result was entered, and that gives another one when it is done again, is no round of this run."""
    submission = make_submission(*CENTRAL)
    with pytest.raises(Stop):
        run(submission, nodes_of(10), tmp_path, watch=stop_after(2))
    (tmp_path / "checkpoints" / "round-000002.safetensors").unlink()  # as if the process ended before it was written
    with pytest.raises(FederationError, match="round 2 gave another result"):
        run(submission, nodes_of(10, step=0.07), tmp_path)
    run(submission, nodes_of(10), tmp_path)


def test_two_counts_of_one_round(make_submission, tmp_path: Path) -> None:
    """The model is the same and one node's bit is not: its difference under the same noise would be that bit."""
    submission = make_submission(*ADAPTIVE, "aggregation.fraction=1.0")
    others = nodes_of(9, step=0.0)
    with pytest.raises(Stop):
        run(submission, [*others, FakeNode("n10", train=stepping(0.0, 1))], tmp_path, watch=stop_after(2))
    (tmp_path / "checkpoints" / "round-000002.safetensors").unlink()
    with pytest.raises(FederationError, match="round 2 gave another result"):
        run(submission, [*others, FakeNode("n10", train=stepping(0.0, 0))], tmp_path)


def test_no_node_decides_the_model_that_all_begin_with(make_submission, tmp_path: Path) -> None:
    """Be it the only one that would answer."""
    nodes = [FakeNode("n00", train=stepping(0.0), initial=7.0), *nodes_of(9, step=0.0)[1:]]
    states: list[State] = []
    run(make_submission(*CENTRAL), nodes, tmp_path, watch=states.append)
    assert not any(array.any() for array in states[0].model.values())


def test_an_account_that_cannot_pay_refuses_before_anybody_is_asked(make_submission, tmp_path: Path) -> None:
    terms = AccountTerms("node", Decimal("0.5"), Decimal("0.01"))
    with pytest.raises(RefusedError, match="cannot pay"):
        book_of(tmp_path / "server.sqlite", make_submission(*CENTRAL), terms=terms)
    kinds = [entry.kind for entry in read(tmp_path / "server.sqlite", owner="server")]
    assert kinds == ["opened", "account", "dataset", "refused"]


def test_delta_must_lie_below_one_over_the_nodes(make_submission, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=r"delta 0\.001 is not below 1 / declared size = 1 / 1000"):
        book_of(tmp_path / "server.sqlite", make_submission(*CENTRAL), nodes=1000)


def test_a_run_is_charged_in_full_before_its_first_round(make_submission, tmp_path: Path) -> None:
    book = book_of(tmp_path / "server.sqlite", submission := make_submission(*CENTRAL))
    standing = book.standing()
    assert (float(standing.epsilon or 0), standing.attempts) == (submission.claim.epsilon, 0)
    assert (standing.unit, standing.delta) == ("node", 1e-3)
    book.admit(MOMENT)  # once
    book.begin(1, "a" * 64)
    assert 0 < float(book.standing().epsilon_executed or 0) < float(standing.epsilon or 0)
    with pytest.raises(RefusedError, match="began with other bytes"):
        book.begin(1, "b" * 64)


def test_a_server_that_adds_no_noise_refuses_the_plan(make_submission, tmp_path: Path) -> None:
    """So does every deployment's."""
    submission = make_submission(*CENTRAL)
    checkpoints = Checkpoints(tmp_path, submission.hash)
    with pytest.raises(PlanError, match="unit 'node' is protected by the server's noise alone"):
        Federation(submission, grid_of(nodes_of(2)), checkpoints, lambda state: None)
