"""The audit of a server's ledger: noise that is too small, clip norms from nowhere, sums beyond the charge."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from central_runs import ADAPTIVE, CENTRAL, TERMS, book_of, nodes_of, run
from privet.privacy.audit.claims import as_json, claims_of, sentences
from privet.privacy.audit.replay import Audit, audit_ledger
from privet.privacy.budget.adaptive import LARGEST_CLIP_NORM, SMALLEST_CLIP_NORM, sum_noise_multiplier
from privet.privacy.submission import Submission
from signed_ledgers import declared, key_of, opened, read

MakeSubmission = Callable[..., Submission]
RAISED = sum_noise_multiplier(0.8, 2.0)
FIXED = {"noise_multiplier": "0.8", "clip_norm": "0.5", "sampling_rate": "0.5", "steps": "1"}
MOVING = {
    **FIXED,
    "noise_multiplier": repr(RAISED),
    "count_noise_stddev": "2.0",
    "within": "0.75",
    "next_clip_norm": repr(0.5 * math.exp(-0.05)),
}


def audited(path: Path) -> Audit:
    return audit_ledger(path, public_key=key_of(path).public)


def told(submission: Submission, path: Path, *rounds: Mapping[str, str]) -> Audit:
    """The audit of a ledger in which these rounds stand."""
    book = book_of(path, submission)
    for number, done in enumerate(rounds, start=1):
        book.begin(number, "a" * 64)
        book.answered(number, "b" * 64, done)
    book.close()
    return audited(path)


def problems(audit: Audit) -> list[str]:
    return [f"{violation.code}: {violation.why}" for violation in audit.violations]


@pytest.mark.parametrize("plan", [CENTRAL, ADAPTIVE])
def test_a_run_that_was_carried_out_holds(make_submission: MakeSubmission, tmp_path: Path, plan) -> None:
    """Every charge recomputed, every norm followed, nothing found."""
    submission = make_submission(*plan)
    run(submission, nodes_of(10), tmp_path)
    audit = audited(tmp_path / "server.sqlite")
    assert problems(audit) == []
    claims = claims_of(audit)
    (account,) = claims.accounts
    (epsilon,) = [line for line in sentences(account) if "spent" in line]
    assert "(unit: node, add-or-remove-one)" in epsilon
    assert float(account.epsilon_spent) == submission.claim.epsilon  # type: ignore[union-attr]
    assert "the server sees every update, and each node must trust it" in claims.trust
    assert any("known to the server alone" in words for words in claims.assumed)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"noise_multiplier": "0.79"}, "noise multiplier 0.79, the plan says 0.8"),
        ({"noise_multiplier": "0"}, "noise multiplier 0.0, the plan says 0.8"),
        ({"clip_norm": "1.0"}, "clip norm 1.0, the rounds before give 0.5"),
        ({"sampling_rate": "1.0"}, "sampling rate 1.0 of the nodes, the plan says 0.5"),
        ({"steps": "2"}, "2 noised sums, a round has one"),
        ({"within": "0.5"}, "a count was released, which the plan does not ask for"),
        ({"noise_multiplier": None}, "does not tell its noise multiplier"),
        ({"clip_norm": None}, "does not tell its noise multiplier, clip norm, sampling rate and steps"),
    ],
)
def test_tampered_round(make_submission: MakeSubmission, tmp_path: Path, wrong: dict, said: str) -> None:
    done = {key: value for key, value in {**FIXED, **wrong}.items() if value is not None}
    (problem,) = problems(told(make_submission(*CENTRAL), tmp_path / "server.sqlite", done))
    assert problem.startswith("execution: ")
    assert said in problem


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"noise_multiplier": "0.8"}, "have a noise multiplier of 0.784465 together, the plan says 0.8"),
        ({"count_noise_stddev": "1.0"}, "the plan says 0.8"),
        ({"count_noise_stddev": "0"}, "its count has no noise"),
        ({"count_noise_stddev": None}, "its count has no noise"),
        ({"next_clip_norm": "0.5"}, "clip norm 0.5 for the next round, by its noised share it is 0.475614712"),
        ({"next_clip_norm": None}, "does not tell the noised share"),
        ({"within": "-1.5"}, "by its noised share it is 0.745912"),
    ],
)
def test_tampered_adaptive_round(make_submission: MakeSubmission, tmp_path: Path, wrong: dict, said: str) -> None:
    done = {key: value for key, value in {**MOVING, **wrong}.items() if value is not None}
    (problem,) = problems(told(make_submission(*ADAPTIVE), tmp_path / "server.sqlite", done))
    assert said in problem


def test_clip_norm_from_nowhere(make_submission: MakeSubmission, tmp_path: Path) -> None:
    """A norm that does not follow from the noised share of the round before may have been computed from updates."""
    second = {**MOVING, "clip_norm": "0.3", "next_clip_norm": repr(0.3 * math.exp(-0.05))}
    (problem,) = problems(told(make_submission(*ADAPTIVE), tmp_path / "server.sqlite", MOVING, second))
    assert "clip norm 0.3, the rounds before give 0.47561471225035" in problem


def test_round_that_was_left_out(make_submission: MakeSubmission, tmp_path: Path) -> None:
    book = book_of(tmp_path / "server.sqlite", make_submission(*CENTRAL))
    book.begin(2, "a" * 64)
    book.answered(2, "b" * 64, FIXED)
    book.close()
    (problem,) = problems(audited(tmp_path / "server.sqlite"))
    assert "round 2 after round 0" in problem


def test_deployment_that_was_charged_for_a_servers_noise(make_submission: MakeSubmission, tmp_path: Path) -> None:
    """Whatever admitted it: it was not this project's guard (rule 13)."""
    submission, path = make_submission(*CENTRAL), tmp_path / "ledger.sqlite"
    ledger = opened(path, "deployment", "institution")
    accounts = declared(ledger, TERMS, 10)
    body = book_of(tmp_path / "server.sqlite", submission)
    body.close()
    charge = next(entry.content for entry in read(tmp_path / "server.sqlite", owner="server") if entry.kind == "charge")
    accounts.ledger.append("charge", charge)
    ledger.close()
    said = [problem for problem in problems(audited(path)) if problem.startswith("unit: ")]
    assert said == [
        "unit: a deployment was charged for unit 'node', whose noise is added where this institution cannot check it"
    ]


@pytest.mark.parametrize("clip_norm", [SMALLEST_CLIP_NORM, LARGEST_CLIP_NORM])
def test_a_run_at_the_limits_of_its_clip_norm_holds(make_submission: MakeSubmission, tmp_path: Path, clip_norm) -> None:
    submission = make_submission(*ADAPTIVE, f"privacy.clip-norm={clip_norm!r}", "privacy.clip-learning-rate=5.0")
    state = run(submission, nodes_of(10), tmp_path)
    assert problems(audited(tmp_path / "server.sqlite")) == []
    assert all(np.isfinite(array).all() for array in state.model.values())


def test_the_words_are_those_of_the_json(make_submission: MakeSubmission, tmp_path: Path) -> None:
    run(make_submission(*CENTRAL), nodes_of(10), tmp_path)
    audit = audited(tmp_path / "server.sqlite")
    assert "central" in json.loads(json.dumps(as_json(audit, claims_of(audit))))["trust"]
