"""What a round costs over the network when training costs nothing: a server and two nodes, processes on loopback.

privet: mutual TLS, signed submission, durable ledgers, checkpoints, witness. Peer, in the same run: Flower's deployment
(SuperLink, two SuperNodes, `flwr run`), without TLS, with an app that does nothing. Prints the median round of each.
Issue: under 30 ms.

    .venv/bin/python benchmarks/round.py [--without-flower]
"""

import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

ROUNDS, FLOWER_ROUNDS = 200, 5
POLICY = '@id("all") permit (principal, action, resource);\n// end of policy\n'
NODES = ("north", "south")
BIN = Path(sys.executable).parent

TASK = """
import torch
from torch import nn
from privet.client.tasks.protocol import Facts, Records

class Nothing:
    name, version, options = "nothing", "1", {}
    def facts(self, options): return Facts("nothing", "made up", "none", (4,), (0.0, 1.0), ("a", "b"))
    def model(self, options): return nn.Linear(4, 2)
    def loss(self, outputs, targets): return nn.functional.cross_entropy(outputs, targets, reduction="none")
    def metrics(self, outputs, targets): return {"accuracy": (outputs.argmax(1) == targets).float()}
    def load(self, source): return Records(torch.zeros(10, 4), torch.zeros(10, dtype=torch.int64))
    def shipped(self, options): return self.load(None)
"""
PLAN = f"""
[run]
name = "nothing"
task = "nothing"
rounds = {ROUNDS}
[training]
learning-rate = 1.0
[privacy]
unit = "none"
sampling-rate = 1.0
"""
FLOWER_SERVER = f"""
import time
import numpy as np
from flwr.app import ArrayRecord, Array
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()

class Timed(FedAvg):
    def configure_train(self, server_round, arrays, config, grid):
        print(f"BEGUN-AT {{time.time()}}", flush=True)
        return super().configure_train(server_round, arrays, config, grid)

@app.main()
def main(grid, context):
    arrays = ArrayRecord({{"w": Array(np.zeros((4, 2), np.float32))}})
    Timed(fraction_evaluate=0.0).start(grid, arrays, num_rounds={FLOWER_ROUNDS + 1})
"""
FLOWER_CLIENT = """
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()

@app.train()
def train(message, context):
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 1})})
    return Message(content, reply_to=message)
"""
FLOWER_PROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "nothing"
version = "1.0.0"
license = "Apache-2.0"
[tool.flwr.app]
publisher = "bench"
fab-include = ["*.py", "nothing/*.py"]
[tool.flwr.app.components]
serverapp = "nothing.server_app:app"
clientapp = "nothing.client_app:app"
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Processes:
    """Programs that run until the benchmark ends. Each writes to a file of its own."""

    def __init__(self, folder: Path, environment: dict[str, str], stack: ExitStack) -> None:
        self._folder, self._environment, self._stack = folder, environment, stack

    def start(self, name: str, *command: str, **more: str) -> Path:
        log = self._folder / f"{name}.log"
        file = self._stack.enter_context(log.open("w"))
        process = subprocess.Popen(
            command, env=self._environment | more, stdout=file, stderr=file, stdin=subprocess.DEVNULL, cwd=self._folder
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        return log

    def run(self, *command: str, given: str = "", **more: str) -> str:
        done = subprocess.run(
            command, env=self._environment | more, input=given, capture_output=True, text=True, cwd=self._folder
        )
        if done.returncode:
            raise SystemExit(f"{command}: {done.stdout}{done.stderr}")
        return done.stdout


def wait_for(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("waited in vain")
        time.sleep(0.1)


def ours() -> float:
    """Milliseconds of a round, median."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        _install_task(folder)
        (folder / "plan.toml").write_text(PLAN, encoding="utf-8")
        (folder / "passphrase").write_text("a passphrase for a benchmark\n", encoding="utf-8")
        processes = Processes(folder, os.environ | {"PYTHONPATH": str(folder)}, stack)
        privet, home = str(BIN / "privet"), {"PRIVET_HOME": str(folder / "coordinator")}
        port, enrolment = free_ports(2)
        address = ("--address", f"localhost:{port}", "--enrolment-address", f"localhost:{enrolment}")
        processes.run(privet, "federation", "init", "bench", *address, "--passphrase-file", "passphrase", **home)
        log = processes.start("server", privet, "server", **home)
        wait_for(lambda: "stop with" in log.read_text(encoding="utf-8"))
        for name in NODES:
            there = {"PRIVET_HOME": str(folder / name)}
            processes.run(privet, "join", "-", "--yes", given=processes.run(privet, "invite", name, **home), **there)
            (folder / f"{name}.csv").touch()
            declared = ("--path", str(folder / f"{name}.csv"), "--task", "nothing", "--declared-size", "10")
            account = ("--epsilon", "1", "--delta", "1e-3", "--allow-none")
            processes.run(privet, "dataset", "add", "nothing", *declared, *account, **there)
            (folder / name / "policy.cedar").write_text(POLICY, encoding="utf-8")
            node = processes.start(name, privet, "node", **there)
            wait_for(lambda node=node: "connected to" in node.read_text(encoding="utf-8"))
        run = json.loads(processes.run(privet, "run", "submit", "plan.toml", "--json", **home))["run_id"]
        wait_for(
            lambda: (
                json.loads(processes.run(privet, "run", "show", run, "--json", **home))["state"]
                in ("finished", "failed")
            )
        )
        told = processes.run(privet, "run", "logs", run, "--json", **home).splitlines()
    events = [event.get("event", event) for event in map(json.loads, told)]
    times = [datetime.fromisoformat(event["time"]) for event in events if event.get("kind") == "round"]
    if len(times) != ROUNDS:
        raise SystemExit(f"{len(times)} rounds of {ROUNDS}")
    return statistics.median((after - before).total_seconds() for before, after in itertools.pairwise(times)) * 1e3


def _install_task(folder: Path) -> None:
    """A task on the path, with the entry point that an installation would write."""
    (folder / "nothing_task.py").write_text(TASK, encoding="utf-8")
    facts = folder / "nothing_task-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: nothing-task\nVersion: 1\n", encoding="utf-8")
    (facts / "entry_points.txt").write_text("[privet.tasks]\nnothing = nothing_task:Nothing\n", encoding="utf-8")


def flowers() -> float:
    """The same of Flower's own deployment."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        app = folder / "app" / "nothing"
        app.mkdir(parents=True)
        for name, text in (("__init__", ""), ("server_app", FLOWER_SERVER), ("client_app", FLOWER_CLIENT)):
            (app / f"{name}.py").write_text(text, encoding="utf-8")
        (folder / "app" / "pyproject.toml").write_text(FLOWER_PROJECT, encoding="utf-8")
        ports = free_ports(1 + len(NODES))
        address = f"127.0.0.1:{ports[0]}"
        (folder / "config.toml").write_text(
            f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{address}"\ninsecure = true\n',
            encoding="utf-8",
        )
        environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "FLWR_HOME": str(folder),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
            "no_proxy": "127.0.0.1,localhost",
        }
        processes = Processes(folder, environment, stack)
        processes.start(
            "superlink", str(BIN / "flower-superlink"), "--insecure", "--host", "127.0.0.1", "--port", str(ports[0])
        )
        for name, port in zip(NODES, ports[1:], strict=True):
            options = ("--insecure", "--superlink", address, "--host", "127.0.0.1", "--port", str(port))
            processes.start(name, str(BIN / "flower-supernode"), *options)
        time.sleep(10)
        told = processes.run(str(BIN / "flwr"), "run", str(folder / "app"), "--stream")
        times = [float(line.split("BEGUN-AT ")[1]) for line in told.splitlines() if "BEGUN-AT " in line]
    if len(times) < 3:
        raise SystemExit(f"Flower told {len(times)} rounds:\n{told}")
    return statistics.median(after - before for before, after in itertools.pairwise(times)) * 1e3


def durable() -> float:
    """Milliseconds of one small durable write to this disk, median: a round waits for six, one after another."""
    with tempfile.TemporaryDirectory() as place, (Path(place) / "file").open("wb", buffering=0) as file:
        times = []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            file.write(bytes(3000))
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def main() -> None:
    before, mine, after = durable(), ours(), durable()
    print(f"privet: {mine:.1f} ms a round (median of {ROUNDS}, two nodes, mutual TLS); limit 30")
    print(f"one durable write to this disk: {before:.1f} ms before, {after:.1f} ms after; a round waits for six")
    if "--without-flower" not in sys.argv:
        theirs = flowers()
        print(f"Flower's deployment: {theirs:.0f} ms a round (median of {FLOWER_ROUNDS}); ratio {theirs / mine:.0f}")


if __name__ == "__main__":
    main()
