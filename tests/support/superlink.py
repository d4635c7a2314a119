"""Stock Flower on this machine: a SuperLink with its simulation runtime, `flwr run`, and nothing left behind."""

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
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.executable).parent
# Ray starts anew for every run, and the machine may be busy with other tests.
START_SECONDS, RUN_SECONDS, STOP_SECONDS = 60.0, 240.0, 15.0


@dataclass(frozen=True)
class StockFlower:
    """A running SuperLink. `home`: the folder in which it, and all that it starts, works."""

    home: Path
    environment: dict[str, str]

    def run(self, app: Path, nodes: int, **config: object) -> tuple[str, str]:
        """`flwr run`: the status that `flwr list` shows (it alone tells whether the run failed), and the log."""
        federation = f"num-supernodes={nodes} client-resources-num-cpus=1 init-args-num-cpus=2"
        values = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
        log = self._flwr("run", str(app), "--stream", "--federation-config", federation, "--run-config", values)
        run_id = log.split("Successfully started run ")[1].split()[0]
        listed = json.loads(self._flwr("list", "--run-id", run_id, "--format", "json"))
        return listed["runs"][0]["status"], log

    def _flwr(self, *arguments: str) -> str:
        done = subprocess.run(
            [BIN / "flwr", *arguments],
            env=self.environment,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@contextmanager
def stock_flower(home: Path) -> Iterator[StockFlower]:
    """A SuperLink in `home`; at the end it is stopped, with everything that it started."""
    home.mkdir()
    ray_folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short: Ray's sockets have their paths in it
    address = f"127.0.0.1:{_free_port()}"
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "test"\n[superlink.test]\naddress = "{address}"\ninsecure = true\n', encoding="utf-8"
    )
    environment = _environment(home, ray_folder)
    host, port = address.split(":")
    command = [str(BIN / "flower-superlink"), "--insecure", "--simulation", "--host", host, "--port", port]
    with (home / "superlink.log").open("wb") as log:
        superlink = subprocess.Popen(
            command, env=environment, cwd=home, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        _await(lambda: superlink.poll() is not None or _is_healthy(address), START_SECONDS)
        assert superlink.poll() is None, (home / "superlink.log").read_text(encoding="utf-8")
        yield StockFlower(home, environment)
    finally:
        superlink.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            superlink.wait(STOP_SECONDS)
        superlink.kill()
        superlink.wait()
        _end_all_in(home)
        shutil.rmtree(ray_folder, ignore_errors=True)


def _environment(home: Path, ray_folder: Path) -> dict[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FLWR_", "RAY_"))}
    return inherited | {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",  # Flower looks its own programs up by name
        "HOME": str(home),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_TMPDIR": str(ray_folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "CUDA_VISIBLE_DEVICES": "",  # what a GPU computes differs in the last bits
        "no_proxy": "127.0.0.1,localhost",
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _is_healthy(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/health", timeout=1):
            return True
    except OSError:
        return False


def _await(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in time."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while not condition():
        if time.monotonic() > end:
            return False
        pause.wait(0.1)
    return True


def _end_all_in(home: Path) -> None:
    """Wait for, then kill, what still works in this folder: Ray's processes leave the group, but inherit the folder."""
    if not _await(lambda: not _at_work_in(home), STOP_SECONDS):
        for process in _at_work_in(home):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
    _await(lambda: not _at_work_in(home), STOP_SECONDS)


def _at_work_in(home: Path) -> list[int]:
    """Process ids, where the system shows them in /proc."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "cwd").readlink() == home.resolve() and int(entry.name) != os.getpid():
                found.append(int(entry.name))
    return found
