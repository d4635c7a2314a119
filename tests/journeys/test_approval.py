"""Three institutions with policies of their own: one admits, one refuses by epsilon, one asks its data steward.

The operator sees each institution's reason as far as the institution lets it be told; the run waits for the person.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from channel import wait_for
from deployment import Deployment, Party, Process, deployment
from digit_shares import write_shares
from open_policy import EVERYTHING
from privet.privacy.budget.ledger import connected
from privet.privacy.plan_file import read_plan

PLAN = """
[run]
name = "ward"
task = "digits"
dataset = "ward7"
seed = 7
rounds = 2
[aggregation]
min-nodes = 2
[training]
local-steps = 1
learning-rate = 1.0
[privacy]
unit = "record"
epsilon = 2.5
delta = 1e-5
clip-norm = 0.5
sampling-rate = 0.5
[simulation]
nodes = 3
"""
EPSILON = """
@id("epsilon-at-most-2")
forbid (principal, action in Action::"participate", resource)
unless { context.plan.epsilon <= 2000000 };
"""
STEWARD = """
@id("needs-steward") @approval("data-steward")
forbid (principal, action in Action::"participate", resource)
unless { context.approvals.contains("data-steward") };
"""
OPEN, STRICT, CAREFUL = EVERYTHING, EPSILON + EVERYTHING, STEWARD + EVERYTHING


@dataclass
class Wards:
    """`open` admits, `strict` refuses by epsilon and says all, `careful` asks a person and names the rule."""

    deployment: Deployment
    plan: Path
    open: Party
    strict: Party
    careful: Party

    @property
    def coordinator(self) -> Party:
        return self.deployment.coordinator

    def page(self, run_id: str) -> dict[str, Any]:
        page: dict[str, Any] = self.coordinator.told("run", "show", run_id)
        return page

    def followed(self, run_id: str) -> Process:
        return self.coordinator.start("run", "logs", run_id, "--follow")


@pytest.fixture(scope="module")
def wards(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Wards]:
    folder = tmp_path_factory.mktemp("wards")
    plan = folder / "plan.toml"
    plan.write_text(PLAN)
    with deployment(folder) as made:
        server = made.serve()
        shares = write_shares(read_plan(plan), folder / "data").values()
        parties = [made.institution(name) for name in ("open", "strict", "careful")]
        for party, (path, size) in zip(parties, shares, strict=True):
            declared = ("--path", str(path), "--task", "digits", "--declared-size", str(size))
            party.privet("dataset", "add", "ward7", *declared, "--epsilon", "10", "--delta", "1e-4")
        for party, policy in zip(parties, (OPEN, STRICT, CAREFUL), strict=True):
            (party.home / "policy.cedar").write_text(policy)
        disclose(parties[1], "full")
        nodes = [party.node() for party in parties]
        yield Wards(made, plan, *parties)
        for process in (*nodes, server):
            assert process.stop() == 0, process.text


def disclose(party: Party, how_much: str) -> None:
    (party.home / "node.toml").write_text(f'[policy]\ndisclose = "{how_much}"\n')


def entries(party: Party, run_id: str) -> list[tuple[str, dict[str, str]]]:
    """Kind and body of what the ledger says of a run."""
    connection = connected(party.home / "ledger.sqlite", read_only=True)
    try:
        rows = connection.execute("SELECT kind, body FROM entries ORDER BY sequence").fetchall()
    finally:
        connection.close()
    found = [(kind, json.loads(body)) for kind, body in rows]
    return [(kind, body) for kind, body in found if body.get("run") == run_id]


def test_run_waits_for_a_person_and_goes_on_once_approved(wards: Wards) -> None:
    run_id = wards.deployment.submit(wards.plan)
    following = wards.followed(run_id)
    following.wait_for("waits for: careful approval-pending: needs-steward")
    wait_for(lambda: wards.page(run_id)["state"] == "waiting", "the run waits")
    page = wards.page(run_id)
    assert page["refused"] == {
        "careful": "approval-pending: needs-steward",
        "strict": "policy-denied: forbidden by rule epsilon-at-most-2",
    }
    assert page["waits_for"] == {"careful": "approval-pending: needs-steward"}
    assert "waits for: careful approval-pending: needs-steward" in wards.coordinator.privet("run", "show", run_id)

    [pending] = wards.careful.told("node", "pending")
    assert (pending["run_id"], pending["operator"], pending["missing"]) == (run_id, "coordinator", ["data-steward"])
    assert pending["submission"]["plan"]["privacy"]["epsilon"] == 2.5
    assert pending["submission_hash"] == page["submission_hash"]
    shown = wards.careful.privet("node", "pending")
    assert "task digits, data set ward7, 2 rounds" in shown
    assert "epsilon 2.50 at delta 1e-5 (unit: record" in shown
    assert "rule needs-steward" in shown
    wait_for(lambda: "waits for data-steward" in wards.careful.privet("node", "status"), "the node's status says so")

    said = ("node", "approve", run_id, "--as", "data-steward", "--because", "the ethics board agreed on 3 May")
    assert "the node takes part" in wards.careful.privet(*said)
    following.wait_for("waits for nobody any more")
    assert following.wait() == 0, following.text
    page = wards.page(run_id)
    assert (page["state"], page["waits_for"]) == ("finished", {})
    assert page["participations"] == {"open": 2, "careful": 2}
    assert wards.careful.told("node", "pending") == []

    kinds = [kind for kind, _ in entries(wards.careful, run_id)]
    told = entries(wards.careful, run_id)
    [approval] = [body for kind, body in told if kind == "approval"]
    assert (approval["role"], approval["verdict"]) == ("data-steward", "approved")
    assert approval["because"] == "the ethics board agreed on 3 May"
    decisions = [(place, body["verdict"]) for place, (kind, body) in enumerate(told) if kind == "decision"]
    assert decisions[0][1] == "pending"
    permitted = next(place for place, verdict in decisions if verdict == "permitted")
    assert kinds.index("approval") < permitted < kinds.index("charge")
    assert "charge" not in [kind for kind, _ in entries(wards.strict, run_id)]


def test_rejected_run_fails_and_says_who_refused(wards: Wards) -> None:
    disclose(wards.strict, "none")
    run_id = wards.deployment.submit(wards.plan)
    following = wards.followed(run_id)
    following.wait_for("waits for: careful")
    wards.careful.privet("node", "reject", run_id, "--as", "data-steward", "--because", "no consent for this")
    assert following.wait() == 1, following.text
    page = wards.page(run_id)
    assert page["state"] == "failed"
    assert page["refused"] == {"careful": "approval-refused: needs-steward", "strict": "policy-denied"}
    assert "careful approval-refused: needs-steward, strict policy-denied" in page["error"]["text"]
    assert "no consent" not in json.dumps(page), "the reason is the institution's own"


@pytest.mark.slow
def test_run_goes_on_without_those_who_join_later(wards: Wards) -> None:
    """One person approves, and another institution changes its policy, while the first trains alone."""
    run_id = wards.deployment.submit(wards.plan, "aggregation.min-nodes=1", "run.rounds=400")
    following = wards.followed(run_id)
    following.wait_for("round 1: 1 answered")
    wards.careful.privet("node", "approve", run_id, "--as", "data-steward", "--because", "agreed")
    seen = following.wait_for(": 2 answered")
    (wards.strict.home / "policy.cedar").write_text(OPEN)
    following.wait_for(": 3 answered", after=seen)
    page = wards.coordinator.told("run", "stop", run_id)
    assert set(page["members"]) == {"open", "strict", "careful"}
    following.wait()
