"""Child: a process of its own for code that somebody else wrote, asked over one socket.

The rules:
1. It is started, never forked: it inherits one socket, and no key, certificate or connection of this process. Of the
   environment it gets what a program needs to run, by name; no secret is among them.
2. It ends with this process. The system ends it when the thread that started it is gone, so that thread stays; and
   the child watches its socket.
3. However it ends, it is reaped, and whatever it left behind in its process group ends too.
4. What it prints goes to a local log and is never sent.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from .logs import LocalLog
from .pipe import Packet, Pipe, PipeError

_GRACE_SECONDS = 3.0  # a process that is asked to end and does nothing ends in a tenth of that
_LOG_PIECE = 64 * 1024
_PASSED_ON = {"PATH", "HOME", "USER", "LANG", "LANGUAGE", "TZ", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH"}
_PASSED_ON_PREFIXES = ("LC_", "PYTHON", "CUDA_", "NVIDIA_", "OMP_", "MKL_", "TORCH_", "PYTORCH_", "XDG_")


class ChildEndedError(Exception):
    """The process is gone, and why."""


def environment_of(environment: Mapping[str, str]) -> dict[str, str]:
    """What of the environment a child gets."""
    return {k: v for k, v in environment.items() if k in _PASSED_ON or k.startswith(_PASSED_ON_PREFIXES)}


class Child:
    """One process. It runs `module`. `ask` is for one thread at a time; `kill` is for any."""

    def __init__(self, module: str, log: Path, threads: int = 1, environment: Mapping[str, str] | None = None) -> None:
        self._log = LocalLog(log)
        ours, theirs = socket.socketpair()
        self._module = module
        self._socket = ours
        self._pipe = Pipe(ours)
        self._environment = {**environment_of(os.environ), **(environment or {}), "OMP_NUM_THREADS": str(threads)}
        self._process: subprocess.Popen[bytes] | None = None
        self._failures: list[OSError] = []
        self._killed_for: str | None = None
        self._started, self._ended = threading.Event(), threading.Event()
        self._writer = threading.Thread(target=self._write_down, name="privet-child-log", daemon=True)
        threading.Thread(target=self._live, args=(theirs,), name="privet-child", daemon=True).start()
        self._started.wait()
        if self._failures:
            ours.close()
            raise ChildEndedError(f"no process could be started: {self._failures[0]}")

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group."""
        assert self._process is not None, "it was started at birth"
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return not self._ended.is_set() and self._killed_for is None

    def ask(self, packet: Packet, seconds: float | None = None) -> Packet:
        """Its answer; raise ChildEndedError where it ends instead, or says nothing for so many seconds."""
        deadline = None if seconds is None else time.monotonic() + seconds
        try:
            self._pipe.send(packet, deadline)
            answer = self._pipe.receive(deadline)
        except TimeoutError:
            self.kill(f"it did not answer within {seconds:g} seconds")
        except PipeError as error:
            self.kill(f"it did not keep to the protocol: {error}")
        except OSError:
            self._end_within(_GRACE_SECONDS, "it closed its socket")
        else:
            if answer is not None:
                return answer
            self._end_within(_GRACE_SECONDS, "it closed its socket")
        raise ChildEndedError(self.why_it_ended())

    def kill(self, why: str) -> None:
        """End it and all that it started, at once; returns when it is gone."""
        if not self._ended.is_set():
            self._killed_for = self._killed_for or why
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._ended.wait()

    def close(self) -> None:
        """Ask it to end, wait a little, then end it."""
        with contextlib.suppress(OSError):  # it is gone already
            self._pipe.end()
        self._end_within(_GRACE_SECONDS, "it did not end when it was asked to")
        self._pipe.close()

    def why_it_ended(self) -> str:
        """A sentence for the local log; waits until it is gone."""
        self._ended.wait()
        status = self._process.returncode if self._process else 0
        if self._killed_for is not None:
            return self._killed_for
        if status >= 0:
            return f"it ended with exit status {status}"
        number = -status
        guess = ": out of memory?" if number == signal.SIGKILL else ""
        return f"it was killed by signal {number}{guess or f' ({signal.Signals(number).name})'}"

    def _end_within(self, seconds: float, why: str) -> None:
        if not self._ended.wait(seconds):
            self.kill(why)

    def _live(self, theirs: socket.socket) -> None:
        """The child's whole life, in the one thread whose end would be the child's."""
        try:
            with theirs:
                self._process = self._start(theirs.fileno())
        except OSError as error:
            self._failures.append(error)
            self._ended.set()
            return
        finally:
            self._started.set()
        self._writer.start()
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)  # not reaped yet: the number stays its own
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._writer.join(_GRACE_SECONDS)  # unless somebody who left the group holds the log open
        self._ended.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # somebody may still wait for an answer

    def _start(self, descriptor: int) -> subprocess.Popen[bytes]:
        # -P: no module is taken from the folder that the node happens to run in. -u: its last words are not lost.
        python = [sys.executable, "-P", "-u", "-X", "faulthandler"]
        return subprocess.Popen(
            [*python, "-m", self._module, str(descriptor), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(descriptor,),
            env=self._environment,
            start_new_session=True,
        )

    def _write_down(self) -> None:
        assert self._process is not None, "it was started"
        assert self._process.stdout is not None, "a pipe was asked for"
        with self._process.stdout as printed:
            while content := os.read(printed.fileno(), _LOG_PIECE):
                with contextlib.suppress(OSError):  # a full disk must not stop the child
                    self._log.add(content)
