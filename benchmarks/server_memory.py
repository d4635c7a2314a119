"""The server's peak memory in a round of 100 nodes with updates of 40 MB, over real mutual TLS.

One process plays the nodes (their links are real). Prints the peak above what the server holds alone, in updates; the
same with one node is the peer, in the same run. Issue: under ten updates.

    .venv/bin/python benchmarks/server_memory.py [NODES]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import idle_nodes
from idle_nodes import connected, federation, memory_of, privet, rounds_of

NODES = int(sys.argv[1]) if sys.argv[1:] else 100
VALUES = 10_000_000  # 40 MB
ROUNDS = 2


def peak(nodes: int) -> tuple[float, float]:
    """MB above the server alone, and seconds of a round."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        federation(folder, nodes)
        environment = os.environ | {"PRIVET_HOME": str(folder / "coordinator")}
        log = folder / "server.log"
        with log.open("w") as file:
            server = subprocess.Popen(
                [sys.executable, "-m", "privet", "server"], env=environment, stdout=file, stderr=file
            )
        players = None
        try:
            while "stop with" not in log.read_text(encoding="utf-8"):
                time.sleep(0.1)
            connected(folder)
            alone = memory_of(server.pid)
            script = [sys.executable, idle_nodes.__file__, "play", str(folder / "nodes"), str(VALUES)]
            players = subprocess.Popen(script)
            while connected(folder) < nodes:
                time.sleep(0.5)
            plan = idle_nodes.PLAN.replace(f"rounds = {idle_nodes.ROUNDS}", f"rounds = {ROUNDS}")
            plan = plan.replace(f"min-nodes = {idle_nodes.NODES}", f"min-nodes = {nodes}")
            (folder / "plan.toml").write_text(plan, encoding="utf-8")
            run = json.loads(privet(folder, "run", "submit", str(folder / "plan.toml"), "--json"))["run_id"]
            state = ""
            while state not in ("finished", "failed"):
                time.sleep(1.0)
                state = json.loads(privet(folder, "run", "show", run, "--json"))["state"]
            status = Path(f"/proc/{server.pid}/status").read_text(encoding="utf-8")
            most = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1000
            return most - alone, max(rounds_of(folder, run))
        finally:
            for process in (players, server):
                if process is not None:
                    process.kill()
                    process.wait()


def main() -> None:
    update = 4 * VALUES / 1e6
    for nodes in (1, NODES):
        above, seconds = peak(nodes)
        print(
            f"{nodes} nodes x {update:.0f} MB: peak {above:.0f} MB, {above / update:.1f} updates; round {seconds:.1f} s"
        )
    print("limit: 10 updates")


if __name__ == "__main__":
    main()
