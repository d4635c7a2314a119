"""`privet simulate --policy`: every simulated node asks it, and its ledger shows what it said."""

from collections import Counter
from pathlib import Path

import pytest
from privet.__main__ import run
from privet.privacy.audit.replay import audit_ledger

SMALL = [
    *("--set", "run.rounds=2", "--set", "run.spare-rounds=0", "--set", "evaluation.every=2"),
    *("--set", "simulation.nodes=3", "--set", "aggregation.min-nodes=2"),
]
PERMITS = '@id("breast-cancer") permit (principal, action in Action::"participate", resource in Task::"breast-cancer");'
COHORT = """@id("three") forbid (principal, action in [Action::"train", Action::"evaluate"], resource)
unless { context.cohort.parties >= 3 };"""
LIMIT = (
    '@id("small") forbid (principal, action in Action::"participate", resource) unless { context.plan.rounds <= 2 };'
)
END = "\n// end of policy\n"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.cedar"
    path.write_text(PERMITS + LIMIT + COHORT + END)
    return path


def simulated(tmp_path: Path, policy: Path, *more: str) -> tuple[int, Path]:
    out = tmp_path / "out"
    return run(["simulate", "breast-cancer", "--out", str(out), "--policy", str(policy), *SMALL, *more]), out


def test_nodes_enter_what_the_policy_permitted(tmp_path: Path, policy: Path) -> None:
    code, out = simulated(tmp_path, policy)
    assert code == 0
    ledgers = sorted((out / "ledgers").glob("*.sqlite"))
    assert len(ledgers) == 3
    for ledger in ledgers:
        audit = audit_ledger(ledger)
        assert audit.violations == ()
        kinds = Counter(decision.action for decision in audit.history.decisions)
        assert kinds["admit"] == 1
        assert kinds["train"] == kinds["releaseUpdate"] == 2


def test_run_that_the_policy_forbids_names_the_rule(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = simulated(tmp_path, policy, "--set", "run.rounds=3")
    said = capsys.readouterr().err
    assert code == 1
    assert "policy-denied" in said
    assert "small" in said


def test_policy_that_is_none_is_said_before_anything_is_begun(
    tmp_path: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy.write_text(PERMITS)  # without its last line
    code, out = simulated(tmp_path, policy)
    assert code == 2
    assert not out.exists()
    assert "may have been cut short" in capsys.readouterr().err
