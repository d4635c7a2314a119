"""What a thousand connected nodes cost a server, and how fast all of them are asked.

Real processes and real mutual TLS: `privet server`, and one process that plays the nodes (their links are real, what
answers is not). Prints the server's memory and processor share while nobody asks, and the seconds of rounds in which
all are asked and answer. Peer, in the same run: the server without nodes. Issue: under 150 MB, 5 % of a core, 5 s.

    .venv/bin/python benchmarks/idle_nodes.py [NODES]
"""

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from privet.client.link import Asked, Link, Presence
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.witness import HEAD, Head, head_text
from privet.privacy.channel import words
from privet.privacy.channel.arrays import to_record
from privet.privacy.channel.identities import IdentityKey, Role
from privet.privacy.channel.member import IDENTITY, Member, Membership
from privet.server.database import open_database
from privet.server.federation_home import FEDERATION, FederationFacts, FederationHome
from privet.server.members import Members
from privet.server.registrar import Registrar

NODES = int(sys.argv[1]) if sys.argv[1:] and sys.argv[1].isdigit() else 1000
ROUNDS, IDLE_SECONDS = 5, 20.0
PLAN = f"""
[run]
name = "everybody"
task = "nothing"
rounds = {ROUNDS}
[aggregation]
min-nodes = {NODES}
[training]
learning-rate = 1.0
[privacy]
unit = "none"
sampling-rate = 1.0
"""
_TICKS = os.sysconf("SC_CLK_TCK")


class PlayedNode:
    """Answers as a node would whose task does nothing."""

    def __init__(self, name: str, update: ArrayRecord) -> None:
        self._name = name
        self._update = update
        self._key = SigningKey.generate()
        self._sequence = 0

    def presence(self) -> Presence:
        return Presence(False, {"nothing": "1"}, ())

    def take(self, asked: Asked) -> None:
        kind, arrays = asked.message.metadata.message_type, self._update
        facts = ConfigRecord({words.NAME: self._name, words.DECLARED_SIZE: 10})
        content = RecordDict({words.CONFIG: facts})
        if kind == words.INITIAL:
            content = RecordDict({words.ARRAYS: arrays})
        elif kind == words.TRAIN:
            metrics = MetricRecord({words.DECLARED_SIZE: 10})
            content = RecordDict({words.ARRAYS: arrays, words.METRICS: metrics, words.LEDGER: self._ledger()})
        asked.answer(Message(content, reply_to=asked.message))

    def _ledger(self) -> ConfigRecord:
        self._sequence += 1
        unsigned = Head(self._name, self._key.public, self._sequence, f"{self._sequence:064x}", "")
        signature = self._key.sign(HEAD, unsigned.message())
        head = Head(self._name, self._key.public, self._sequence, unsigned.hash, signature)
        return ConfigRecord({words.HEAD: head_text(head), words.CHARGES: "[]"})

    def stamped(self, message: Message) -> Message:
        return message

    def drop(self, ask_id: bytes) -> None: ...

    def welcomed(self, countersigned: str) -> None: ...

    def deny(self, keys: frozenset[str]) -> None: ...

    def told(self, state: str, why: str = "") -> None: ...


async def play(home: Path, values: int) -> None:
    """All nodes, in this process, until it is killed. They share the bytes of one update of so many float32."""
    update = to_record({"w": np.zeros(values, np.float32)})
    members = [Member.load(folder) for folder in sorted(home.iterdir())]
    await asyncio.gather(*(_linked(member, update) for member in members))


async def _linked(member: Member, update: ArrayRecord) -> None:
    await Link(member, PlayedNode(member.identity.name, update), freshen=lambda member: None).run()


def federation(folder: Path, nodes: int) -> None:
    """A federation with its members, made without a network."""
    home, now = folder / "coordinator", datetime.now(UTC)
    facts = FederationFacts("bench", "localhost:19743", "localhost:19744", now.isoformat())
    made = FederationHome.create(home / FEDERATION, facts, now, b"a passphrase for a benchmark")
    members = Members(open_database(made.database))
    registrar = Registrar(made, members)
    _member(registrar, made, "coordinator", Role.OPERATOR, home / IDENTITY)
    for number in range(nodes):
        name = f"node-{number:05}"
        _member(registrar, made, name, Role.NODE, folder / "nodes" / name)


def _member(registrar: Registrar, made: FederationHome, name: str, role: Role, folder: Path) -> None:
    token, key = registrar.invite(name, role)[0], IdentityKey.generate()
    chain = registrar.join(token.secret, key.csr())
    membership = Membership("bench", role, name, made.facts.address, made.facts.enrolment_address)
    Member.create(folder, membership, key, chain, made.root, datetime.now(UTC))


def privet(folder: Path, *command: str) -> str:
    environment = os.environ | {"PRIVET_HOME": str(folder / "coordinator")}
    return subprocess.run(
        [sys.executable, "-m", "privet", *command], env=environment, check=True, capture_output=True, text=True
    ).stdout


def memory_of(pid: int) -> float:
    """MB of resident memory."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1000


def processor_of(pid: int) -> float:
    """Seconds of processor time."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def share_of(pid: int, seconds: float) -> float:
    """Percent of a core, over so many seconds."""
    before = processor_of(pid)
    time.sleep(seconds)
    return 100 * (processor_of(pid) - before) / seconds


def connected(folder: Path) -> int:
    return sum(node["is_connected"] for node in json.loads(privet(folder, "node", "list", "--json")))


def rounds_of(folder: Path, run_id: str) -> list[float]:
    told = privet(folder, "run", "logs", run_id, "--json").splitlines()
    events = [event.get("event", event) for event in map(json.loads, told)]
    return [event["body"]["seconds"] for event in events if event.get("kind") == "round"]


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        federation(folder, NODES)
        environment = os.environ | {"PRIVET_HOME": str(folder / "coordinator")}
        with (folder / "server.log").open("w") as log:
            server = subprocess.Popen(
                [sys.executable, "-m", "privet", "server"], env=environment, stdout=log, stderr=log
            )
        players = None
        try:
            while "stop with" not in (folder / "server.log").read_text(encoding="utf-8"):
                time.sleep(0.1)
            connected(folder)
            alone, share_alone = memory_of(server.pid), share_of(server.pid, IDLE_SECONDS / 2)
            started = time.monotonic()
            players = subprocess.Popen([sys.executable, __file__, "play", str(folder / "nodes"), "64"])
            while connected(folder) < NODES:
                time.sleep(0.5)
            took = time.monotonic() - started
            share, full = share_of(server.pid, IDLE_SECONDS), memory_of(server.pid)
            (folder / "plan.toml").write_text(PLAN, encoding="utf-8")
            run = json.loads(privet(folder, "run", "submit", str(folder / "plan.toml"), "--json"))["run_id"]
            while json.loads(privet(folder, "run", "show", run, "--json"))["state"] not in ("finished", "failed"):
                time.sleep(1.0)
            rounds = rounds_of(folder, run)
        finally:
            for process in (players, server):
                if process is not None:
                    process.kill()
                    process.wait()
    print(f"{NODES} nodes connected within {took:.1f} s (the process that plays them included)")
    print(f"memory {full - alone:.0f} MB more than the {alone:.0f} MB of the server alone; limit 150")
    print(f"idle {share:.1f} % of a core, {share_alone:.1f} % alone; limit 5")
    print(f"all asked and answered in {statistics.median(rounds):.2f} s (median of {len(rounds)} rounds); limit 5")


if __name__ == "__main__":
    if sys.argv[1:2] == ["play"]:
        asyncio.run(play(Path(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
