"""The plan of a Flower app, and its submission: strict where Submission is strict, and never taken for one."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import rfc8785
from privet.__main__ import run
from privet.privacy.envelope import SUBMISSION_BYTES
from privet.privacy.errors import PlanError, UsageError
from privet.privacy.plan import Plan
from privet.privacy.plan_app import AppPlan, AppSubmission, resolve_app, submission_of
from privet.privacy.plan_file import plan_text, read_any_plan
from privet.privacy.submission import Submission

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
TEXT = """\
[run]
name = "study"

[app]
name = "quickstart"
min-nodes = 3

[app.config]
num-server-rounds = 3
learning-rate = 0.25
is-quick = true
dataset = "cifar10"

[privacy]
unit = "none"
"""
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "app.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def submission(write: Write) -> AppSubmission:
    plan = read_any_plan(write(TEXT))
    assert isinstance(plan, AppPlan)
    return resolve_app(plan, federation="hearts", run_id="study-1", operator="alice", now=NOW)


def test_plan_of_an_app_reads_and_round_trips(write: Write) -> None:
    plan = read_any_plan(write(TEXT))
    assert isinstance(plan, AppPlan)
    assert (plan.app.name, plan.app.min_nodes) == ("quickstart", 3)
    told = {"num-server-rounds": 3, "learning-rate": 0.25, "is-quick": True, "dataset": "cifar10"}
    assert plan.app.config == told
    assert [type(value) for value in plan.app.config.values()] == [int, float, bool, str]
    assert read_any_plan(write(plan_text(plan))) == plan


def test_plan_of_an_app_needs_no_config_and_two_nodes(write: Write) -> None:
    plan = read_any_plan(write('[run]\nname = "a"\n[app]\nname = "b"\n[privacy]\nunit = "none"\n'))
    assert isinstance(plan, AppPlan)
    assert (plan.app.config, plan.app.min_nodes) == ({}, 2)


def test_plan_of_a_task_is_no_plan_of_an_app(write: Write, make_plan: Callable[..., Plan]) -> None:
    assert isinstance(read_any_plan(write(plan_text(make_plan()))), Plan)


@pytest.mark.parametrize(
    ("was", "becomes", "problem"),
    [
        ('unit = "none"', 'unit = "record"', ":15: privacy.unit: input should be 'none', got 'record'"),
        ('unit = "none"', "", ":14: privacy.unit: missing"),
        ('unit = "none"', 'unit = "none"\nepsilon = 3.0', ":16: privacy.epsilon: unknown key; known: unit"),
        ("[app.config]", "[app.confg]", ":8: app.confg: unknown key; did you mean config?"),
        ("[run]", "[training]\nlearning-rate = 1.0\n[run]", ":1: training: unknown section; known: app, privacy, run"),
        ('name = "study"', 'name = "study"\nrounds = 3', ":3: run.rounds: unknown key; known: name"),
        ("min-nodes = 3", "min-nodes = 0", ":6: app.min-nodes: input should be greater than or equal to 1, got 0"),
        ("min-nodes = 3", "min_nodes = 3", ":6: app.min_nodes: unknown key; did you mean min-nodes?"),
        ("is-quick = true", "is-quick = [1]", ":11: app.config.is-quick: an option is true or false, a number"),
        ("is-quick = true", f'is-quick = "{"a" * 257}"', ":11: app.config.is-quick: an option is true or false"),
        ("is-quick = true", "is-quick = inf", ":11: app.config.is-quick: an option is true or false"),
        ("is-quick = true", '"is quick" = true', ":11: app.config.is quick: string should match pattern"),
        ('name = "quickstart"', 'name = "../quickstart"', ":5: app.name: string should match pattern"),
    ],
)
def test_problem_is_told_with_its_line(write: Write, was: str, becomes: str, problem: str) -> None:
    assert was in TEXT
    with pytest.raises(PlanError) as caught:
        read_any_plan(write(TEXT.replace(was, becomes)))
    assert problem in caught.value.problems[0]


def test_config_of_an_app_is_bounded(write: Write) -> None:
    more = "\n".join(f"key-{number} = 1" for number in range(61))
    with pytest.raises(PlanError, match="at most 64 items"):
        read_any_plan(write(TEXT.replace("[privacy]", f"{more}\n[privacy]")))


def test_submission_of_an_app_is_read_from_its_own_bytes(submission: AppSubmission) -> None:
    assert submission_of(submission.canonical) == submission
    assert AppSubmission.from_bytes(submission.canonical).hash == submission.hash
    told = json.loads(submission.canonical)
    assert told["claim"] is None
    assert (told["operator"], told["run_id"], submission.run_id) == ("alice", "study-1", "study-1")
    assert rfc8785.dumps(told) == submission.canonical


def test_submission_of_a_task_is_told_from_one_of_an_app(
    make_submission: Callable[..., Submission], submission: AppSubmission
) -> None:
    assert isinstance(submission_of(make_submission().canonical), Submission)
    with pytest.raises(UsageError):
        Submission.from_bytes(submission.canonical)
    with pytest.raises(UsageError):
        AppSubmission.from_bytes(make_submission().canonical)


def test_submission_of_an_app_is_valid_for_its_time_only(submission: AppSubmission) -> None:
    assert submission.is_valid_at(NOW)
    assert not submission.is_valid_at(NOW - timedelta(seconds=1))
    assert not submission.is_valid_at(NOW + timedelta(days=30))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: told | {"claim": {"epsilon": 1.0, "noise_multiplier": 1.0}},
        lambda told: told | {"format": 2},
        lambda told: told | {"extra": 1},
        lambda told: told | {"expires": told["not_before"]},
        lambda told: told | {"expires": "2029-01-01T00:00:00Z"},
        lambda told: told | {"expires": "2026-12-1T00:00:00Z"},
        lambda told: told | {"operator": "Alice"},
        lambda told: told | {"plan": told["plan"] | {"training": {}}},
        lambda told: {key: value for key, value in told.items() if key != "claim"},
    ],
)
def test_attack_submission_of_an_app_that_says_something_else(
    submission: AppSubmission, spoil: Callable[[dict[str, object]], dict[str, object]]
) -> None:
    with pytest.raises(UsageError, match="malformed submission"):
        submission_of(rfc8785.dumps(spoil(json.loads(submission.canonical))))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b'{"plan":[]}', b"[" * 30_000, b"\xff", b'{"plan":{"app":1}}']
)
def test_attack_bytes_that_are_no_submission(content: bytes) -> None:
    with pytest.raises(UsageError, match="malformed submission"):
        submission_of(content)


def test_attack_second_spelling_of_a_submission(submission: AppSubmission) -> None:
    with pytest.raises(UsageError, match="not canonical"):
        submission_of(submission.canonical.replace(b'"min-nodes":3', b'"min-nodes": 3'))


def test_attack_submission_larger_than_a_page(submission: AppSubmission) -> None:
    with pytest.raises(UsageError, match=f"allowed are {SUBMISSION_BYTES}"):
        submission_of(submission.canonical + b" " * SUBMISSION_BYTES)


def test_check_and_show_say_that_no_claim_is_made(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(TEXT)
    assert run(["plan", "check", str(path)]) == 0
    checked = capsys.readouterr().out
    assert run(["plan", "show", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all("no privacy claim: what a Flower app reads is not accounted for" in told for told in (checked, shown))
    assert "Flower app quickstart, on at least 3 nodes" in shown
    assert "learning-rate = 0.25, is-quick = true" in shown
    assert run(["plan", "show", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["cost"], told["plan"]["app"]["name"]) == (None, "quickstart")
