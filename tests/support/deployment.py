"""A federation of real processes on loopback: a coordinator with a server, institutions with nodes, each in its home.

with deployment(tmp_path) as hearts:
    server = hearts.serve()
    ward = hearts.institution("st-marys", "synthetic", rows)
    node = ward.node()
    run = hearts.submit(plan)

Importing privet takes a second. So one process imports it, touches neither gRPC nor a file, and forks a child for each
command: the child is a process like any other, with its own environment, output and end. `fresh=True` starts a new
interpreter instead. What a process prints is read as it comes; whoever waits for a line waits for that event.
"""

import contextlib
import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from open_policy import permit_everything

PATIENCE = 90.0  # seconds; what takes so long on a busy machine hangs
_PR_SET_PDEATHSIG = 1
_IMPORTED = (
    "client.party",
    "client.readiness",
    "client.running",
    "privacy.budget.accounting",
    "server.run_watch",
    "server.serving",
)


class Process:
    """A process of privet, whose lines are read as they come."""

    def __init__(self, pid: int, output: int, reap: Any, title: str) -> None:
        self.pid = pid
        self.title = title
        self._reap = reap
        self._lines: list[str] = []
        self._is_over = False
        self._code: int | None = None
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
        self._reader.start()

    @property
    def lines(self) -> list[str]:
        """What it has printed so far, both streams in one."""
        with self._news:
            return list(self._lines)

    @property
    def text(self) -> str:
        """The same as one text."""
        return "\n".join(self.lines)

    def wait_for(self, text: str, after: int = 0, timeout: float = PATIENCE) -> int:
        """Wait until a line holds the text; gives how many lines lie before its end, for `after`."""
        end = time.monotonic() + timeout
        seen = after
        with self._news:
            while True:
                for number, line in enumerate(self._lines[seen:], start=seen + 1):
                    if text in line:
                        return number
                seen = max(seen, len(self._lines))
                left = end - time.monotonic()
                if self._is_over or left <= 0:
                    raise AssertionError(f"{self.title}: never {text!r}:\n" + "\n".join(self._lines[-40:]))
                self._news.wait(left)

    def has_ended_within(self, seconds: float) -> bool:
        """Whether it ends by itself in that time."""
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self.pid)
            try:
                return bool(select.select([descriptor], [], [], seconds)[0])
            finally:
                os.close(descriptor)
        return True

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status, once it has ended; negative is a signal's number."""
        if self._code is None:
            if not self.has_ended_within(timeout):
                raise AssertionError(f"{self.title}: never ended:\n" + "\n".join(self.lines[-40:]))
            self._code = self._reap()
            self._reader.join(PATIENCE)
        return self._code

    def signal(self, number: int) -> None:
        """Send it a signal."""
        if self._code is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        self.signal(signal.SIGKILL)
        self.wait()

    def stop(self) -> int:
        """SIGTERM, and its exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def _read(self, output: int) -> None:
        with open(output, encoding="utf-8", errors="replace") as stream:
            for line in stream:
                with self._news:
                    self._lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._is_over = True
            self._news.notify_all()


class Zygote:
    """Starts processes by forking one that has imported privet already."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=(theirs.fileno(),), env=environment
            )
        self._socket = ours
        self._lock = threading.Lock()

    def start(
        self, arguments: Sequence[str], environment: Mapping[str, str], prelude: str = "", stdin: int | None = None
    ) -> Process:
        """A child that runs `privet` with these arguments. `prelude`: Python that it runs first."""
        read, write = os.pipe()
        nothing = os.open(os.devnull, os.O_RDONLY)
        asked = {"arguments": list(arguments), "environment": dict(environment), "prelude": prelude}
        try:
            with self._lock:
                socket.send_fds(self._socket, [b"!"], [stdin if stdin is not None else nothing, write])
                pid = self._asked(asked)
        finally:
            os.close(nothing)
            os.close(write)
        return Process(pid, read, lambda: self._reaped(pid), f"privet {' '.join(arguments)}")

    def close(self) -> None:
        """End it, and every child with it."""
        self._socket.close()
        self._process.wait(PATIENCE)

    def _reaped(self, pid: int) -> int:
        with self._lock:
            return self._asked({"reap": pid})

    def _asked(self, asked: Mapping[str, Any]) -> int:
        self._socket.sendall(json.dumps(asked).encode() + b"\n")
        told = b""
        while not told.endswith(b"\n"):
            piece = self._socket.recv(100)
            assert piece, "the process that forks is gone"
            told += piece
        return int(told)


def fresh(
    arguments: Sequence[str], environment: Mapping[str, str], prelude: str = "", stdin: int | None = None
) -> Process:
    """A new interpreter that runs `privet` with these arguments, as a person's shell starts it."""
    assert not prelude, "a person's shell runs nothing before"
    read, write = os.pipe()
    started = subprocess.Popen(
        [sys.executable, "-u", "-m", "privet", *arguments],
        stdin=subprocess.DEVNULL if stdin is None else stdin,
        stdout=write,
        stderr=write,
        env=dict(environment),
    )
    os.close(write)
    return Process(started.pid, read, started.wait, f"privet {' '.join(arguments)}")


class Party:
    """A party with its home. Its commands are processes of their own."""

    def __init__(self, deployment: "Deployment", name: str) -> None:
        self.deployment = deployment
        self.name = name
        self.home = deployment.folder / name

    def start(self, *arguments: str, fresh: bool = False, prelude: str = "", stdin: int | None = None) -> Process:
        """A command that goes on by itself."""
        return self.deployment.start(self.home, arguments, is_fresh=fresh, prelude=prelude, stdin=stdin)

    def privet(self, *arguments: str, code: int = 0, stdin: str | None = None) -> str:
        """What a command prints, when it has ended with this exit status."""
        descriptor = None
        if stdin is not None:
            descriptor = os.memfd_create("stdin")
            os.write(descriptor, stdin.encode())
            os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            process = self.start(*arguments, stdin=descriptor)
            ended = process.wait()
        finally:
            if descriptor is not None:
                os.close(descriptor)
        assert ended == code, f"{process.title}: exit status {ended}\n{process.text}"
        return process.text

    def told(self, *arguments: str) -> Any:
        """The JSON that a command prints with `--json`."""
        return json.loads(self.privet(*arguments, "--json").splitlines()[-1])

    def attempts(self, kind: str) -> Counter[tuple[int, int]]:
        """How often the ledger says `begin`, or `answer`, of a round's training, by round and attempt."""
        connection = sqlite3.connect(f"file:{self.home / 'ledger.sqlite'}?mode=ro", uri=True)
        try:
            found = connection.execute("SELECT body FROM entries WHERE kind = ?", (kind,)).fetchall()
        finally:
            connection.close()
        bodies = [json.loads(body) for (body,) in found]
        return Counter((int(body["round"]), int(body["attempt"])) for body in bodies if body["stage"] == "train")

    def violations(self) -> list[object]:
        """What an audit finds, with the witness that the server keeps."""
        folder = self.deployment.folder
        witness, key = folder / f"{self.name}-witness.jsonl", folder / f"{self.name}-key"
        self.deployment.coordinator.privet("audit", "witness", self.name, "-o", str(witness), "--force")
        key.write_text(self.privet("audit", "key"))
        told = json.loads(
            self.privet(
                *("audit", "ledger", str(self.home / "ledger.sqlite"), "--key", str(key)),
                *("--witness", str(witness), "--root", str(self.home / "identity" / "root.pem"), "--json"),
            )
        )
        found: list[object] = told["violations"]
        return found

    def node(self, *options: str, fresh: bool = False, prelude: str = "") -> Process:
        """The institution's node, connected."""
        process = self.start("node", *options, fresh=fresh, prelude=prelude)
        process.wait_for("connected to")
        return process


class Deployment:
    """A federation in a folder. `address`: where the server is reached; `listen`: where it listens, if elsewhere."""

    def __init__(self, folder: Path, zygote: Zygote) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self._zygote = zygote
        self.coordinator = Party(self, "coordinator")
        self.ports: tuple[int, int] = (0, 0)

    def create(self, name: str = "hearts", ports: tuple[int, int] | None = None) -> None:
        """`privet federation init`. `ports`: of the addresses that members are told, if they are not the server's."""
        self.ports = free_pair()
        told = ports or self.ports
        passphrase = self.folder / "passphrase"
        passphrase.write_text("a passphrase for tests\n")
        self.coordinator.privet(
            "federation",
            "init",
            name,
            *("--address", f"127.0.0.1:{told[0]}", "--enrolment-address", f"127.0.0.1:{told[1]}"),
            *("--passphrase-file", str(passphrase)),
        )

    def serve(self, *options: str, fresh: bool = False, prelude: str = "", is_ready: bool = True) -> Process:
        """The server, ready."""
        main, enrolment = self.ports
        listening = ("--listen", f"127.0.0.1:{main}", "--enrolment-listen", f"127.0.0.1:{enrolment}")
        process = self.coordinator.start("server", *listening, *options, fresh=fresh, prelude=prelude)
        if is_ready:
            process.wait_for("stop with")
        return process

    def institution(self, name: str) -> Party:
        """A party that has joined as a node, and whose policy permits everything."""
        party = Party(self, name)
        invited = self.coordinator.told("invite", name)
        party.privet("join", invited["token"], "--yes")
        permit_everything(party.home)
        return party

    def submit(self, plan: Path, *assignments: str) -> str:
        """The id of a run that the coordinator has begun."""
        sets = [part for assignment in assignments for part in ("--set", assignment)]
        return str(self.coordinator.told("run", "submit", str(plan), *sets)["run_id"])

    def follow(self, run_id: str, code: int = 0) -> dict[str, Any]:
        """The page of a run that has ended, well or with this exit status."""
        self.coordinator.privet("run", "watch", run_id, code=code)
        page: dict[str, Any] = self.coordinator.told("run", "show", run_id)
        return page

    def start(
        self,
        home: Path,
        arguments: Sequence[str],
        *,
        is_fresh: bool = False,
        prelude: str = "",
        stdin: int | None = None,
    ) -> Process:
        """A process in a home."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "TMPDIR", "PYTHONPATH") if name in os.environ}
        environment = {**kept, "HOME": str(self.folder), "PRIVET_HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0"}
        launch = fresh if is_fresh else self._zygote.start
        process = launch(arguments, environment, prelude, stdin)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End whatever still runs."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                process.signal(signal.SIGKILL)
        for process in self.processes:
            process.wait()


@contextlib.contextmanager
def deployment(folder: Path, ports: tuple[int, int] | None = None) -> Iterator[Deployment]:
    """A new federation, without a server yet; whatever was started ends with it."""
    zygote = Zygote()
    made = Deployment(folder, zygote)
    try:
        made.create(ports=ports)
        yield made
    finally:
        made.close()
        zygote.close()


def free_pair() -> tuple[int, int]:
    """Two ports of loopback that nobody listens on."""
    with socket.socket() as first, socket.socket() as second:
        for one in (first, second):
            one.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]


def _serve(descriptor: int) -> None:
    """The process that forks. Nothing below may start a thread, open a file or touch gRPC before the fork."""
    from privet.__main__ import run

    for module in _IMPORTED:
        importlib.import_module(f"privet.{module}")

    asking = socket.socket(fileno=descriptor)
    parent = os.getpid()
    while True:
        mark, descriptors, _, _ = socket.recv_fds(asking, 1, 2)
        if not mark:
            return
        told = mark if mark != b"!" else b""
        while not told.endswith(b"\n"):
            piece = asking.recv(1 << 16)
            if not piece:
                return
            told += piece
        asked = json.loads(told)
        if "reap" in asked:
            _, status = os.waitpid(asked["reap"], 0)
            asking.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
            continue
        pid = os.fork()
        if pid == 0:
            asking.close()
            _become(asked, descriptors, parent)
            sys.exit(run(asked["arguments"]))
        for one in descriptors:
            os.close(one)
        asking.sendall(b"%d\n" % pid)


def _become(asked: Mapping[str, Any], descriptors: Sequence[int], parent: int) -> None:
    """Make the forked child what a new process would be."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    stdin, output = descriptors
    for source, target in ((stdin, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    for one in descriptors:
        os.close(one)
    sys.stdin, sys.stdout, sys.stderr = open(0), open(1, "w", buffering=1), open(2, "w", buffering=1)  # noqa: SIM115
    sys.argv = ["privet", *asked["arguments"]]
    os.environ.clear()
    os.environ.update(asked["environment"])
    exec(asked["prelude"], {})


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
