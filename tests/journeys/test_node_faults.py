"""Nodes that are killed, copied, put back, or run out of disk: runs go on, and no ledger says less than was spent."""

import json
import os
import resource
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from channel import wait_for
from deployment import Deployment, Party, Process, deployment
from digit_shares import arrays_in, write_shares
from privet.privacy.plan_file import read_plan
from proxy import Proxy

PLAN = """
[run]
name = "faults"
task = "digits"
seed = 9
rounds = 3
spare-rounds = 2
[model]
kind = "features"
features = 7000
[aggregation]
min-nodes = 2
[training]
local-steps = 25
learning-rate = 1.0
[privacy]
unit = "none"
sampling-rate = 0.1
[simulation]
nodes = 2
"""
UPDATE = 7000 * 10 * 4  # bytes


@dataclass
class Hearts:
    """A federation with two institutions; node-1 reaches the server through a proxy of its own."""

    deployment: Deployment
    plan: Path
    proxy: Proxy
    server: Process
    wards: dict[str, Party]
    nodes: dict[str, Process] = field(default_factory=dict)

    @property
    def coordinator(self) -> Party:
        return self.deployment.coordinator

    def restart(self, name: str) -> None:
        self.nodes[name] = self.wards[name].node()

    def followed(self, run_id: str) -> Process:
        return self.coordinator.start("run", "logs", run_id, "--follow", "--json")


@pytest.fixture(scope="module")
def hearts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hearts]:
    folder = tmp_path_factory.mktemp("faults")
    plan = folder / "plan.toml"
    plan.write_text(PLAN)
    with deployment(folder) as made:
        server = made.serve()
        proxy = Proxy(made.ports[0])
        wards = {}
        for name, (path, size) in write_shares(read_plan(plan), folder / "data").items():
            ward = wards[name] = made.institution(name)
            limits = ("--declared-size", str(size), "--epsilon", "4", "--delta", "1e-4", "--allow-none")
            ward.privet("dataset", "add", "digits", "--path", str(path), "--task", "digits", *limits)
        membership = wards["node-1"].home / "identity" / "membership.json"
        told = json.loads(membership.read_text())
        membership.write_text(json.dumps(told | {"address": f"127.0.0.1:{proxy.port}"}))
        hearts = Hearts(made, plan, proxy, server, wards)
        started = {name: ward.start("node") for name, ward in wards.items()}
        for node in started.values():
            node.wait_for("connected to")
        hearts.nodes = started
        yield hearts
        proxy.close()


@contextmanager
def without_room(process: Process) -> Iterator[None]:
    """No file of this process can grow beyond a kilobyte, as on a full disk. What it has started is not touched."""
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


def unanswered(ward: Party) -> int:
    """How many attempts have begun that have no answer: being trained, or spent."""
    return sum(ward.attempts("begin").values()) - sum(ward.attempts("answer").values())


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.fixture(scope="module")
def simulated(hearts: Hearts) -> Any:
    """The arrays of the model that the simulation gives."""
    folder = hearts.deployment.folder / "simulated"
    hearts.coordinator.privet("simulate", str(hearts.plan), "--engine", "sequential", "--out", str(folder))
    return arrays_in(folder / "model.safetensors")


def fetched(hearts: Hearts, run_id: str, file: Path) -> Any:
    hearts.coordinator.privet("run", "model", run_id, "-o", str(file))
    return arrays_in(file)


@pytest.mark.slow
def test_node_killed_in_the_middle_of_training_and_of_sending(hearts: Hearts, simulated: Any, tmp_path: Path) -> None:
    """What was begun is spent and asked with a new attempt; what was answered is sent again and not drawn twice."""
    ward = hearts.wards["node-1"]
    run_id = hearts.deployment.submit(hearts.plan)
    wait_for(lambda: unanswered(ward) > 0, "training", 60)
    hearts.nodes["node-1"].kill()
    begun, answered = ward.attempts("begin"), ward.attempts("answer")
    (spent,) = begun - answered
    sending = hearts.proxy.call_after("up", UPDATE // 2, lambda: hearts.nodes["node-1"].signal(9))
    hearts.restart("node-1")
    assert sending.wait(60)
    hearts.nodes["node-1"].wait()
    kept = ward.attempts("answer")
    hearts.restart("node-1")
    page = hearts.deployment.follow(run_id)
    assert page["state"] == "finished"
    assert spent not in ward.attempts("answer")
    assert max(kept) in ward.attempts("answer")
    assert ward.attempts("begin") == Counter({(1, 1): 1, (2, 1): 1, (3, 1): 1} | {spent: 1, (spent[0], 2): 1})
    assert hearts.wards["node-2"].attempts("begin") == Counter({(1, 1): 1, (2, 1): 1, (3, 1): 1})
    assert all(ward.violations() == [] for ward in hearts.wards.values())
    assert fetched(hearts, run_id, tmp_path / "model") == simulated


@pytest.mark.slow
def test_task_that_is_killed_is_a_code_and_the_node_lives_on(hearts: Hearts) -> None:
    ward, node = hearts.wards["node-2"], hearts.nodes["node-2"]
    spent = unanswered(ward)
    run_id = hearts.deployment.submit(hearts.plan, "run.rounds=1")
    watching = hearts.followed(run_id)
    wait_for(lambda: unanswered(ward) > spent, "training", 60)
    for child in children_of(node.pid):
        os.kill(child, 9)
    watching.wait_for('"task-failed"')
    page = hearts.deployment.follow(run_id)
    assert page["state"] == "finished"
    assert page["participations"] == {"node-1": 1, "node-2": 2}
    assert not node.has_ended_within(0)
    assert "killed by signal 9" in node.text
    assert ward.violations() == []


def test_copy_of_a_node_is_refused_and_the_first_goes_on(hearts: Hearts) -> None:
    copy = Party(hearts.deployment, "copy")
    shutil.copytree(hearts.wards["node-2"].home, copy.home, ignore=shutil.ignore_patterns("node.lock"))
    process = copy.start("node")
    process.wait_for("two processes have one identity")
    hearts.server.wait_for("node node-2: its stream ends: node-2 is connected already")
    process.stop()
    assert all(node["is_connected"] for node in hearts.coordinator.told("node", "list"))


@pytest.mark.slow
def test_node_without_room_says_so_and_goes_on_when_there_is_some(hearts: Hearts) -> None:
    node = hearts.nodes["node-2"]
    with without_room(node):
        page = hearts.deployment.follow(hearts.deployment.submit(hearts.plan, "run.rounds=1"), code=1)
        assert page["state"] == "failed"
        assert "node-2" in page["error"]["text"]
        assert "cannot be written" in node.text
    assert not node.has_ended_within(0)
    hearts.coordinator.privet("run", "resume", page["run_id"])
    assert hearts.deployment.follow(page["run_id"])["state"] == "finished"
    assert hearts.wards["node-2"].violations() == []


@pytest.mark.slow
def test_server_without_room_loses_nothing_and_goes_on_when_there_is_some(
    hearts: Hearts, simulated: Any, tmp_path: Path
) -> None:
    run_id = hearts.deployment.submit(hearts.plan)
    watching = hearts.followed(run_id)
    watching.wait_for('"kind": "round"')
    with without_room(hearts.server):
        hearts.server.wait_for("cannot be written")
    watching.kill()
    page = hearts.coordinator.told("run", "show", run_id)
    if page["state"] == "failed":
        hearts.coordinator.privet("run", "resume", run_id)
    assert hearts.deployment.follow(run_id)["round"] == 3
    assert fetched(hearts, run_id, tmp_path / "model") == simulated
    assert all(ward.violations() == [] for ward in hearts.wards.values())


@pytest.mark.slow
def test_ledger_that_was_put_back_trains_nothing_until_it_is_recovered(hearts: Hearts, tmp_path: Path) -> None:
    ward = hearts.wards["node-2"]
    spent = unanswered(ward)
    run_id = hearts.deployment.submit(hearts.plan, "run.rounds=1")
    wait_for(lambda: unanswered(ward) > spent, "training", 60)
    assert hearts.nodes["node-2"].stop() == 0
    assert unanswered(ward) == spent, "a graceful end spends nothing"
    assert hearts.deployment.follow(run_id)["state"] == "finished"
    backup = tmp_path / "backup.sqlite"
    shutil.copy(ward.home / "ledger.sqlite", backup)
    hearts.restart("node-2")
    assert hearts.deployment.follow(hearts.deployment.submit(hearts.plan, "run.rounds=1"))["state"] == "finished"
    assert hearts.nodes["node-2"].stop() == 0

    shutil.copy(backup, ward.home / "ledger.sqlite")
    hearts.restart("node-2")
    hearts.nodes["node-2"].wait_for("this ledger lacks: it is an older copy")
    wait_for(lambda: ward.told("node", "status")["is_behind"] != "", "the status says so")
    page = hearts.deployment.follow(hearts.deployment.submit(hearts.plan, "run.rounds=1", "aggregation.min-nodes=1"))
    assert set(page["participations"]) == {"node-1"}

    witness = tmp_path / "witness.jsonl"
    hearts.coordinator.privet("audit", "witness", "node-2", "-o", str(witness))
    ward.privet("budget", "recover", "--witness", str(witness))
    wait_for(lambda: ward.told("node", "status")["is_behind"] == "", "the node that runs has seen it")
    listed = {node["name"]: node for node in hearts.coordinator.told("node", "list")}
    assert not listed["node-2"]["is_paused"]
    assert ward.violations() == []
