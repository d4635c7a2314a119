"""The very run of `privet simulate` by workers of a Ray cluster: same model, same ledgers, also when a worker dies."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from flwr.app import Message
from privet.client.tasks.registry import load_task
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.errors import UsageError
from privet.privacy.plan import Plan
from privet.privacy.plan_file import parse_plan
from privet.server.run_folder import RunFolder
from privet.simulations.ray_installed import ADDRESS, require_ray
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from safetensors.numpy import load_file
from signed_ledgers import DECLARED, read

BIN = Path(sys.executable).parent
SECONDS = 120.0

needs_ray = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'"),
    pytest.mark.skipif(" " in sys.executable, reason="Ray starts no worker from a path with a space"),
]

PLAN = """
[run]
name = "rayed"
task = "digits"
seed = 11
rounds = 3
spare-rounds = 2
[aggregation]
min-nodes = 5
strategy = "fedtrimmedavg"
trimmed-fraction = 0.2
[training]
local-steps = 3
learning-rate = 1.0
[privacy]
unit = "record"
epsilon = 3.0
delta = 1e-5
clip-norm = 0.5
sampling-rate = 0.3
[evaluation]
every = 3
metrics = ["accuracy"]
noise-multiplier = 20.0
[simulation]
nodes = 5
partition = "dirichlet"
alpha = 1.0
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of two workers on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray's sockets have their paths in it
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(BIN / "ray"), "start", "--head", "--block", "--num-cpus=2", f"--port={port}"]
    command += ["--node-ip-address=127.0.0.1", "--include-dashboard=false", f"--temp-dir={folder}"]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "CUDA_VISIBLE_DEVICES": ""}
    with (folder / "log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        end, pause = time.monotonic() + SECONDS, threading.Event()
        while "Ray runtime started" not in (told := (folder / "log").read_text(encoding="utf-8")):
            assert head.poll() is None, told
            assert time.monotonic() < end, told
            pause.wait(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        head.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            head.wait(15)
        head.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """As the nodes train: sums differ in the last bits by the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def begun(plan: Plan, root: Path, engine: str) -> Scenario:
    world = World.of(plan, load_task("digits"))
    asked = {"engine": engine, "processes": 2 if engine == "ray" else None}
    return Scenario.begun(plan, RunFolder(root), world, torch.device("cpu"), **asked)  # type: ignore[arg-type]


def arrays(scenario: Scenario) -> dict[str, bytes]:
    found = load_file(scenario.folder.root / "model.safetensors")
    return {name: array.tobytes() for name, array in found.items()}


def entries(scenario: Scenario, name: str) -> list[tuple[str, dict[str, object]]]:
    found = read(scenario.ledgers / f"{name}.sqlite", owner=name)
    return [(entry.kind, dict(entry.content)) for entry in found if entry.kind != "witnessed"]


def workers() -> list[int]:
    """The process ids of workers that hold nodes: Ray names them so."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(b"ray::NodeActor"):
                found.append(int(entry.name))
    return found


@pytest.mark.usefixtures("_one_thread")
class TestCluster:
    """One cluster, of two workers."""

    pytestmark = needs_ray

    def test_ray_gives_the_model_and_the_ledgers_of_nodes_trained_here(
        self, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Byte for byte, also where the strategy sees every update."""
        monkeypatch.setenv(ADDRESS, cluster)
        plan = parse_plan(PLAN, "plan.toml")
        scenarios = [begun(plan, tmp_path / engine, engine) for engine in ("ray", "sequential")]
        for scenario in scenarios:
            with closing(scenario):
                assert scenario.run(lambda view: None).round == 3
        there, here = scenarios
        assert arrays(there) == arrays(here)
        for name in here.world.shares:
            assert [kind for kind, _ in entries(there, name)] == [*DECLARED, "charge", *["begin", "answer"] * 4]
            done = [[body.get("noise_multiplier") for _, body in entries(one, name)] for one in scenarios]
            assert done[0] == done[1]
            audit = audit_ledger(there.ledgers / f"{name}.sqlite")
            assert audit.violations == ()

    def test_run_goes_on_when_a_worker_is_killed(
        self, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Killed in the middle of a round: at most the attempt that it was at is spent, and no node is left out."""
        monkeypatch.setenv(ADDRESS, cluster)
        plan = parse_plan(PLAN, "plan.toml")
        killed: list[int] = []

        def kill_one(message: Message, reply: Message) -> Message:
            if message.metadata.message_type == "train" and not killed:
                killed.append(workers()[0])
                os.kill(killed[0], signal.SIGKILL)
            return reply

        scenario = begun(plan, tmp_path / "run", "ray")
        with closing(scenario):
            state = scenario.run(lambda view: None, kill_one)
            standings = [scenario.standing(name) for name in scenario.world.shares]
        assert len(killed) == 1
        assert state.excluded == {}
        assert [report.answered for report in state.history] == [5, 5, 5]
        assert sorted(state.participations.values())[:4] == [3] * 4, "one request was carried out when it died"
        assert max(state.participations.values()) <= 4
        assert all(standing.epsilon <= Decimal("3.0") for standing in standings)
        for name in scenario.world.shares:
            assert audit_ledger(scenario.ledgers / f"{name}.sqlite").violations == ()
        assert killed[0] not in workers()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install -e '.[ray]'")
@pytest.mark.skipif(" " in sys.executable, reason="Ray starts no worker from a path with a space")
def test_simulate_starts_a_cluster_of_its_own_and_leaves_nothing_behind(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    command = [sys.executable, "-m", "privet", "simulate", "breast-cancer", "--engine", "ray", "--processes", "2"]
    command += ["--set", "run.rounds=1", "--set", "evaluation.every=1", "--out", "run", "--json"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["engine"], result["rounds"], result["interrupted"]) == ("ray", 1, False)
    assert workers() == []


@pytest.mark.parametrize(
    ("executable", "find", "said"),
    [
        (sys.executable, lambda name: None, "Ray is not installed"),
        ("/opt/my programs/python", lambda name: name, "starts no worker from a path with a space"),
    ],
)
def test_what_ray_needs_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, executable: str, find: Callable[[str], object], said: str
) -> None:
    monkeypatch.delenv(ADDRESS, raising=False)
    with pytest.raises(UsageError, match=said) as caught:
        require_ray(executable, find)
    assert "--engine auto" in caught.value.remedy


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.0.0.1:port", "ray://127.0.0.1:10001"])
def test_address_where_no_cluster_is_ends_at_once(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Ray itself would try for minutes."""
    monkeypatch.setenv(ADDRESS, address)
    with pytest.raises(UsageError, match=f"RAY_ADDRESS={address}"):
        require_ray(find=lambda name: name)
