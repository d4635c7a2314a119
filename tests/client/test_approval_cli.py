"""`privet node pending`, `approve` and `reject`, as a person at the institution types them."""

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from ledgers import Clock, Institution
from open_policy import EVERYTHING
from privet.__main__ import run
from privet.client.policy import NodePolicy
from privet.privacy.budget.app_runs import admit_app
from privet.privacy.budget.keys import SigningKey
from privet.privacy.errors import RefusedError
from privet.privacy.home import Home
from privet.privacy.plan_app import AppPlan, AppSubmission, resolve_app

POLICY = """
@id("needs-steward") @approval("data-steward")
forbid (principal, action in [Action::"participate", Action::"runApp"], resource)
unless { context.approvals.contains("data-steward") };
@id("needs-ethics") @approval("ethics-board")
forbid (principal, action in [Action::"participate", Action::"runApp"], resource)
unless { context.approvals.contains("ethics-board") };
"""
SAID = ("--because", "agreed on 3 May")


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Institution:
    """Whose policy asks two people about run-1, and run-1 was asked for."""
    home = Home(tmp_path)
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path))
    institution = Institution(tmp_path, key=SigningKey.load_or_create(home.key), clock=Clock(datetime.now(UTC)))
    institution.open()
    institution.write_policy(POLICY + EVERYTHING)
    assert not institution.admit(institution.submission("run-1"))
    return institution


def typed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    capsys.readouterr()
    assert run(["node", *arguments]) == code
    told = capsys.readouterr()
    return told.err if code else told.out


def waiting(ward: Institution) -> str:
    """The hash of the one submission that waits."""
    [asked] = ward.accounts.catch_up().pending.values()
    return asked.submission


def test_pending_shows_the_plan_as_it_was_signed(ward: Institution, capsys: pytest.CaptureFixture[str]) -> None:
    shown = typed(capsys, "pending")
    for text in (
        "run run-1 of operator alice: waits since 20",
        "Z for data-steward, ethics-board",
        "asked for by rule needs-ethics, needs-steward; valid until 20",
        "plan study: task digits, data set ward, 3 rounds",
        "at delta 1e-5 (unit: record, add-or-remove-one)",
        f"next: privet node approve run-1 --submission {waiting(ward)[:16]} --as data-steward --because",
        f"  submission {waiting(ward)}\n",
    ):
        assert text in shown, shown
    [told] = json.loads(typed(capsys, "pending", "--json"))
    submission = ward.submission("run-1")
    assert told["approvals"] == told["missing"] == ["data-steward", "ethics-board"]
    assert told["rules"] == ["needs-ethics", "needs-steward"]
    assert told["submission"]["plan"] == json.loads(submission.canonical)["plan"]


def test_approvals_of_all_roles_let_the_run_in(ward: Institution, capsys: pytest.CaptureFixture[str]) -> None:
    digest = waiting(ward)
    first = typed(capsys, "approve", "run-1", "--as", "ethics-board", *SAID)
    assert first.startswith("approved run run-1 as ethics-board; it waits for data-steward\n  plan study: task digits")
    assert first.endswith(f"  submission {waiting(ward)}\n"), "what was approved is told"
    assert "Z for data-steward\n" in typed(capsys, "pending")
    second = json.loads(typed(capsys, "approve", "run-1", "--as", "data-steward", *SAID, "--json"))
    assert second.pop("submission")["plan"]["run"]["name"] == "study"
    assert second == {
        "run_id": "run-1",
        "role": "data-steward",
        "verdict": "approved",
        "because": "agreed on 3 May",
        "missing": [],
        "refused_by": [],
        "submission_hash": digest,
    }
    assert typed(capsys, "pending") == "nothing waits for an approval\n"
    assert typed(capsys, "pending", "--json") == "[]\n"


class Terminal(io.StringIO):
    """A person who types."""

    def isatty(self) -> bool:
        return True


def test_attack_other_plan_sent_before_the_person_typed(
    ward: Institution, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run id with two plans: neither is approved by the run id alone, and each shows its plan and its hash."""
    small = waiting(ward)
    large = ward.submission("run-1", noise=4.0)
    assert not ward.admit(large)
    shown = typed(capsys, "pending")
    assert f"approve run-1 --submission {small[:16]}" in shown
    assert f"approve run-1 --submission {large.hash[:16]}" in shown
    for verb in ("approve", "reject"):
        told = typed(capsys, verb, "run-1", "--as", "data-steward", *SAID, code=2)
        assert f"run run-1 was asked for with 2 submissions: {small[:16]}, {large.hash[:16]}" in told
        assert "name one with --submission" in told
    monkeypatch.setattr("sys.stdin", Terminal("n\n"))
    named = ("approve", "run-1", "--submission", large.hash[:16], "--as", "data-steward", *SAID)
    run(["node", *named])
    seen = capsys.readouterr()
    assert "plan study: task digits, data set ward, 3 rounds\nclaimed: at most epsilon" in seen.out
    assert f"submission {large.hash}\n" in seen.out
    ward.accounts.catch_up()
    assert ward.accounts.book.approvals == {}, "who sees the other plan says no"
    monkeypatch.setattr("sys.stdin", Terminal("y\n"))
    typed(capsys, "approve", "run-1", "--submission", small[:16], "--as", "data-steward", *SAID)
    ward.accounts.catch_up()
    assert ward.accounts.book.approvals == {small: {"data-steward": "approved"}}


def test_rejection_is_told_and_taken_back(ward: Institution, capsys: pytest.CaptureFixture[str]) -> None:
    rejected = typed(capsys, "reject", "run-1", "--as", "data-steward", *SAID)
    assert rejected.startswith("rejected run run-1 as data-steward: the node takes no part in it")
    assert typed(capsys, "pending") == "nothing waits for an approval\n"
    other = typed(capsys, "approve", "run-1", "--as", "ethics-board", *SAID)
    assert "it stays rejected by data-steward" in other
    back = typed(capsys, "approve", "run-1", "--as", "data-steward", *SAID)
    assert "the node takes part as far as its other rules permit" in back


def test_errors_name_what_is_asked_for(ward: Institution, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean run-1?" in typed(capsys, "approve", "run-11", "--as", "data-steward", *SAID, code=2)
    told = typed(capsys, "reject", "run-1", "--as", "steward", *SAID, code=2)
    assert "asks for no 'steward'; asked for: data-steward, ethics-board" in told
    assert "try: --as data-steward" in told
    assert "--because" in typed(capsys, "approve", "run-1", "--as", "data-steward", "--because", " ", code=2)


def test_home_without_a_ledger_has_nothing_pending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "nowhere"))
    assert typed(capsys, "pending") == "nothing waits for an approval\n"
    assert "no account was opened here" in typed(capsys, "approve", "run-1", "--as", "data-steward", *SAID, code=2)
    assert not (tmp_path / "nowhere").exists()


def test_app_waits_for_a_person_as_a_task_does(ward: Institution, capsys: pytest.CaptureFixture[str]) -> None:
    asked = AppPlan.model_validate(
        {"run": {"name": "open"}, "app": {"name": "quickstart"}, "privacy": {"unit": "none"}}
    )
    submission = resolve_app(asked, federation="f", run_id="run-2", operator="alice", now=ward.clock.moment)

    def admit(submission: AppSubmission) -> None:
        assert isinstance(ward.policy, NodePolicy)
        admit_app(ward.accounts, submission, ward.clock.moment, ward.signer(submission.canonical), ward.policy)

    with pytest.raises(RefusedError, match="asks for the approval of data-steward, ethics-board"):
        admit(submission)
    assert "plan open: Flower app quickstart; no privacy claim" in typed(capsys, "pending")
    for role in ("data-steward", "ethics-board"):
        typed(capsys, "approve", "run-2", "--as", role, *SAID)
    ward.accounts.catch_up()
    admit(submission)
    assert ward.accounts.book.apps == {"run-2": submission.hash}
