"""The deployment as its people use it: real processes, real certificates, three institutions on loopback."""

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from channel import wait_for
from deployment import Deployment, Party, Process, deployment
from digit_shares import arrays_in, write_shares
from privet.privacy.plan_file import read_plan
from privet.server.decision_log import read_decisions

PLAN = """
[run]
name = "ward"
task = "digits"
dataset = "ward7"
seed = 7
rounds = 3
spare-rounds = 1
[aggregation]
min-nodes = 3
[training]
local-steps = 3
learning-rate = 1.0
[privacy]
unit = "record"
epsilon = 3.0
delta = 1e-5
clip-norm = 0.5
sampling-rate = 0.5
[evaluation]
every = 3
metrics = ["accuracy"]
noise-multiplier = 20.0
[simulation]
nodes = 3
"""
OPEN = """
[run]
name = "open"
task = "digits"
dataset = "open"
seed = 11
rounds = 3
[model]
kind = "features"
features = 64
[aggregation]
min-nodes = 2
[training]
local-steps = 2
learning-rate = 1.0
[privacy]
unit = "none"
sampling-rate = 0.3
[simulation]
nodes = 3
"""


@dataclass
class Hearts:
    """A federation with three institutions, whose nodes run."""

    deployment: Deployment
    server: Process
    wards: dict[str, Party]
    plan: Path
    open_plan: Path
    nodes: dict[str, Process] = field(default_factory=dict)

    @property
    def coordinator(self) -> Party:
        return self.deployment.coordinator

    def listed(self, name: str) -> dict[str, object]:
        return next(node for node in self.coordinator.told("node", "list") if node["name"] == name)


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hearts]:
    folder = tmp_path_factory.mktemp("hearts")
    plan, open_plan = folder / "plan.toml", folder / "open.toml"
    plan.write_text(PLAN)
    open_plan.write_text(OPEN)
    with deployment(folder) as made:
        server = made.serve(fresh=True)
        shares = write_shares(read_plan(open_plan), folder / "data")
        wards = {name: made.institution(name) for name in shares}
        for name, (path, size) in shares.items():
            other = shutil.copy(path, path.with_stem(f"{name}-open"))
            declared = ("--task", "digits", "--declared-size", str(size))
            limits = ("--epsilon", "4", "--delta", "1e-4")
            wards[name].privet("dataset", "add", "ward7", "--path", str(path), *declared, *limits)
            wards[name].privet("dataset", "add", "open", "--path", str(other), *declared, *limits, "--allow-none")
        for other in sorted(wards)[1:]:
            fingerprint = wards[other].told("node", "status")["key_fingerprint"]
            wards[sorted(wards)[0]].privet("node", "trust-peer", other, fingerprint)
        hearts = Hearts(made, server, wards, plan, open_plan)
        started = {name: ward.start("node", fresh=True) for name, ward in wards.items()}
        for process in started.values():
            process.wait_for("connected to")
        hearts.nodes = started
        yield hearts
        for process in started.values():
            assert process.stop() == 0, process.text
        assert server.stop() == 0, server.text


@pytest.fixture(scope="module")
def private_run(hearts: Hearts) -> dict[str, object]:
    """The page of a private run that has finished."""
    return hearts.deployment.follow(hearts.deployment.submit(hearts.plan))


def test_private_run_charges_every_institution_its_claim(hearts: Hearts, private_run: dict[str, object]) -> None:
    assert private_run["state"] == "finished"
    assert private_run["participations"] == dict.fromkeys(hearts.wards, 3)
    for ward in hearts.wards.values():
        accounts = {account["account"]: account for account in ward.told("budget", "show")}
        assert 2.9 < float(accounts["ward7"]["epsilon_spent"]) <= 3.0


def test_every_node_checks_with_whom_it_trains(hearts: Hearts, private_run: dict[str, object]) -> None:
    """The first has pinned the others, who have pinned nobody."""
    for place, name in enumerate(sorted(hearts.wards)):
        with contextlib.closing(sqlite3.connect(hearts.wards[name].home / "ledger.sqlite")) as connection:
            bodies = [json.loads(body) for (body,) in connection.execute("SELECT body FROM entries ORDER BY sequence")]
        [trained, *_] = [body for body in bodies if body.get("action") == "train"]
        cohort = json.loads(trained["facts"])["context"]["cohort"]
        assert cohort == {"told": 3, "parties": 3, "arePinned": place == 0}


def test_run_above_what_is_left_is_refused_with_its_code(hearts: Hearts, private_run: dict[str, object]) -> None:
    run_id = hearts.deployment.submit(hearts.plan)
    page = hearts.deployment.follow(run_id, code=1)
    assert page["state"] == "failed"
    assert page["refused"] == dict.fromkeys(hearts.wards, "budget-exhausted")
    assert "budget-exhausted" in page["error"]["text"]


def test_operator_and_node_fetch_the_same_model(hearts: Hearts, private_run: dict[str, object], tmp_path: Path) -> None:
    run_id = str(private_run["run_id"])
    hearts.coordinator.privet("run", "model", run_id, "-o", str(tmp_path / "ours.safetensors"))
    hearts.wards["node-2"].privet("node", "model", run_id, "-o", str(tmp_path / "theirs.safetensors"))
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
    assert len(arrays_in(tmp_path / "ours.safetensors")) == 1


def test_audit_with_the_servers_witness_finds_nothing(hearts: Hearts, private_run: dict[str, object]) -> None:
    for ward in hearts.wards.values():
        assert ward.attempts("begin") == ward.attempts("answer")
        assert ward.violations() == []


def test_public_run_gives_the_simulations_model(hearts: Hearts, tmp_path: Path) -> None:
    page = hearts.deployment.follow(hearts.deployment.submit(hearts.open_plan, "aggregation.min-nodes=3"))
    assert page["state"] == "finished"
    hearts.coordinator.privet("run", "model", page["run_id"], "-o", str(tmp_path / "deployed.safetensors"))
    simulated = tmp_path / "simulated"
    arguments = ("--set", "aggregation.min-nodes=3", "--engine", "sequential", "--out", str(simulated))
    hearts.coordinator.privet("simulate", str(hearts.open_plan), *arguments)
    assert arrays_in(tmp_path / "deployed.safetensors") == arrays_in(simulated / "model.safetensors")


def test_node_withdraws_and_the_run_goes_on_without_it(hearts: Hearts) -> None:
    """Then the operator stops the run, and goes on with it."""
    run_id = hearts.deployment.submit(hearts.open_plan, "run.rounds=2000")
    watching = hearts.coordinator.start("run", "logs", run_id, "--follow", "--json")
    watching.wait_for('"kind": "round"')
    hearts.wards["node-3"].privet("node", "withdraw", run_id)
    seen = watching.wait_for("withdrawn")
    watching.wait_for('"answered": 2', after=seen)
    assert hearts.coordinator.told("run", "stop", run_id)["state"] in ("stopping", "stopped")
    assert watching.wait() == 1  # a run that did not end well
    page = hearts.coordinator.told("run", "show", run_id)
    assert page["state"] == "stopped"
    assert page["excluded"] == {"node-3": "withdrawn"}
    done = page["round"]
    hearts.coordinator.privet("run", "resume", run_id)
    again = hearts.coordinator.start("run", "logs", run_id, "--follow", "--json")
    again.wait_for(f'"round": {done + 2},')
    hearts.coordinator.privet("run", "stop", run_id)
    again.wait()
    assert hearts.coordinator.told("run", "show", run_id)["round"] >= done + 2
    assert run_id in hearts.wards["node-3"].privet("node", "status")


def test_paused_node_is_shown_and_left_out(hearts: Hearts) -> None:
    ward, process = hearts.wards["node-2"], hearts.nodes["node-2"]
    ward.privet("node", "pause")
    page = hearts.deployment.follow(hearts.deployment.submit(hearts.open_plan))
    assert page["not_asked"] == {"node-2": "paused"}
    assert set(page["participations"]) == {"node-1", "node-3"}
    assert hearts.listed("node-2")["is_paused"]
    assert ward.told("node", "status")["is_paused"]
    ward.privet("node", "resume")
    wait_for(lambda: not hearts.listed("node-2")["is_paused"], "the node takes part again")
    assert not process.has_ended_within(0)


def test_run_of_a_project_asks_the_projects_nodes_alone(hearts: Hearts) -> None:
    """While the server runs: the project begins, and everything that was decided of it is in the log."""
    hearts.coordinator.privet("federation", "project", "add", "study", "--node", "node-1", "--node", "node-3")
    refused = hearts.coordinator.privet("run", "submit", str(hearts.open_plan), "--set", "run.project='study'", code=3)
    assert "forbidden by rule projects-are-steered-by-their-operators" in refused
    hearts.coordinator.privet("federation", "project", "add", "study", "--operator", "coordinator")
    page = hearts.deployment.follow(hearts.deployment.submit(hearts.open_plan, "run.project='study'"))
    forbidden = "forbidden by rule projects-are-joined-by-their-nodes"
    assert (page["project"], page["not_asked"]) == ("study", {"node-2": f"the server's policy: {forbidden}"})
    assert set(page["participations"]) == {"node-1", "node-3"}
    decided = [line for line, _ in read_decisions(hearts.coordinator.home / "federation" / "decisions.jsonl")]
    of_the_run = [line for line in decided if line["resource"] == f"Run::{page['run_id']}"]
    assert {(line["principal"], line["verdict"]) for line in of_the_run if line["action"] == "joinRun"} == {
        ("Node::node-1", "permitted"),
        ("Node::node-2", "denied"),
        ("Node::node-3", "permitted"),
    }


def test_node_list_and_status_tell_how_the_nodes_stand(hearts: Hearts) -> None:
    listed = hearts.listed("node-1")
    assert listed["is_connected"]
    assert listed["tasks"] == {"digits": "1"}
    status = hearts.wards["node-1"].told("node", "status")
    assert status["is_running"]
    assert status["state"] == "connected"
    assert status["pid"] == hearts.nodes["node-1"].pid
    assert "connected since" in hearts.wards["node-1"].privet("node", "status")


def test_node_check_says_that_it_is_ready(hearts: Hearts) -> None:
    said = hearts.wards["node-1"].privet("node", "--check")
    assert "ready; next: privet node" in said
    assert "main port: 127.0.0.1" in said


def test_second_node_in_one_home_is_refused(hearts: Hearts) -> None:
    assert "a node runs here already" in hearts.wards["node-1"].privet("node", code=2)


def test_institution_leaves_and_its_node_is_let_in_no_more(hearts: Hearts) -> None:
    """Its open stream ends; the others are not touched."""
    guest = hearts.deployment.institution("guest")
    node = guest.node()
    guest.privet("node", "leave", "--yes")
    node.wait_for("guest has left")
    assert hearts.listed("guest")["standing"] == "left"
    assert "refused" in guest.privet("node", "model", "any", "-o", str(guest.home / "model"), code=1)
    assert node.stop() == 0
    assert all(hearts.listed(name)["is_connected"] for name in hearts.wards)
