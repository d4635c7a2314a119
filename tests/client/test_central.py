"""A node without a ledger: what it answers, and what it refuses. And nodes that have one: they take no part."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from privet.client.answers import Answer
from privet.client.central import CentralNode, Crowd
from privet.client.draw import Draw
from privet.client.node import Request
from privet.client.randomness import drawn
from privet.client.tasks.protocol import Source
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.errors import Refusal, RefusedError
from privet.privacy.parameters import Array, Parameters
from privet.privacy.submission import Submission
from signed_ledgers import declared, guard_of, opened

MOMENT = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
CENTRAL = (
    "privacy.unit=node",
    "privacy.noise-multiplier=0.8",
    "privacy.delta=1e-3",
    "privacy.clip-norm=0.5",
    "run.spare-rounds=0",
)
MODEL = {"w": np.zeros(4, np.float32)}


class Trainer:
    """Adds 1 times a drawn number to every value."""

    def initial(self) -> dict[str, Array]:
        return dict(MODEL)

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        if draw.labels[1] == "broken":
            raise RuntimeError("patient 17 has a label out of range")
        return {"w": parameters["w"] + abs(drawn(draw).gaussian(4).numpy())}

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        raise AssertionError("nobody evaluates here")

    def done(self) -> dict[str, str]:
        return {"steps": "2"}


@pytest.fixture
def submission(make_submission: Callable[..., Submission]) -> Submission:
    return make_submission(*CENTRAL)


def node_of(submission: Submission, name: str = "n1") -> CentralNode:
    def workshop(asked: Submission, dataset: DeclaredDataset, source: Source) -> Trainer:
        return Trainer()

    crowd = Crowd(submission, workshop, lambda name, attempt: Draw(1, ("x", name, attempt.round)))
    dataset = DeclaredDataset("synthetic", "synthetic", name, 10, "nodes")
    return CentralNode(name, crowd, Path("/nowhere"), dataset)


def asked(submission: Submission, clip_norm: float | None = 0.5) -> Request:
    return Request("train", submission.canonical, 1, 1, MODEL, clip_norm=clip_norm)


def test_it_answers_with_a_clipped_update_and_its_bit(submission: Submission) -> None:
    node = node_of(submission)
    clipped = node.answer(asked(submission))
    assert np.linalg.norm(clipped.parameters["w"]) == pytest.approx(0.5, rel=1e-6)
    assert clipped.sums == {"within": 0.0}
    whole = node.answer(asked(submission, clip_norm=100.0))
    assert np.linalg.norm(whole.parameters["w"]) > 0.5
    assert whole.sums == {"within": 1.0}


def test_the_same_round_gives_the_same_update(submission: Submission) -> None:
    answers = [node_of(submission).answer(asked(submission)).parameters["w"] for _ in range(2)]
    assert np.array_equal(*answers)


def test_the_initial_model_is_the_trainers(submission: Submission) -> None:
    begun = node_of(submission).begin(replace(asked(submission), stage="initial"))
    assert isinstance(begun, Answer)
    assert np.array_equal(begun.parameters["w"], MODEL["w"])


@pytest.mark.parametrize(("stage", "clip_norm"), [("evaluate", 0.5), ("train", None)])
def test_what_nobody_accounts_for_is_refused(submission: Submission, stage, clip_norm: float | None) -> None:
    with pytest.raises(RefusedError) as refusal:
        node_of(submission).begin(replace(asked(submission, clip_norm), stage=stage))
    assert refusal.value.code == Refusal.MALFORMED_REQUEST


def test_another_submission_is_refused(submission: Submission, make_submission: Callable[..., Submission]) -> None:
    other = make_submission(*CENTRAL, run_id="run-2")
    with pytest.raises(RefusedError) as refusal:
        node_of(submission).consider(asked(other))
    assert refusal.value.code == Refusal.OTHER_SUBMISSION


def test_a_task_that_fails_is_one_code(submission: Submission) -> None:
    with pytest.raises(RefusedError) as refusal:
        node_of(submission, "broken").answer(asked(submission))
    assert refusal.value.code == Refusal.TASK_FAILED


def test_it_has_no_ledger_to_state(submission: Submission) -> None:
    assert node_of(submission).head(None) is None


def test_deployment_is_never_charged_for_the_servers_noise(submission: Submission, tmp_path: Path) -> None:
    """Whatever the account's unit: an institution cannot check what the server adds."""
    ledger = opened(tmp_path / "ledger.sqlite", "deployment", "institution")
    declared(ledger)
    guard = guard_of(ledger)
    for deed in (guard.weigh, guard.consider, guard.admit):
        with pytest.raises(RefusedError, match="protected by the server's noise alone") as refusal:
            deed(submission, MOMENT)
        assert refusal.value.code == Refusal.UNIT_NOT_OFFERED
    assert "charge" not in [entry.kind for entry in ledger.entries()]
