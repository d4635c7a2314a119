"""The processes of a sweep: started once, each given one job after the other, the longest first.

The rules. A worker is a process of its own, with one thread for arithmetic, and it ends when this process does: it
watches the pipe that its orders come through. One that dies takes nothing with it: its job is given once more, to a
fresh worker, and failed after that. A job that fails with a reason is not tried again: it would fail again.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, Self

from ..privacy.errors import FederationError

TRIES = 2  # of a job whose worker died
GRACE_SECONDS = 20.0  # for the rounds that are under way when everything is to stop
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
_READ_BYTES = 1 << 16
_REASON_LENGTH = 300  # characters of a dead worker's last words


@dataclass(frozen=True, slots=True)
class Job:
    """An order for a worker. `cost`: what it takes, to compare with others."""

    name: str
    order: dict[str, Any]
    cost: int = 1


@dataclass(frozen=True, slots=True)
class Progress:
    """A job is under way: so many rounds are done."""

    job: Job
    round: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A job is over; `failed` says why it did not succeed, `remedy` what to do."""

    job: Job
    failed: str | None = None
    remedy: str = ""


class Workers:
    """So many processes. `carried_out` gives what happens to jobs; leave the context to end them."""

    def __init__(self, count: int, device: str) -> None:
        self._device = device
        self._selector = selectors.DefaultSelector()
        self._workers = [self._start() for _ in range(count)]
        self._crashes: dict[str, int] = {}
        self._waiting: deque[Job] = deque()

    def carried_out(self, jobs: Sequence[Job]) -> Iterator[Progress | Ended]:
        """Do all jobs, the longest first. Raises FederationError where no worker can start."""
        self._waiting.extend(sorted(jobs, key=lambda job: -job.cost))
        self._crashes.clear()
        for worker in self._workers:
            self._employ(worker)
        while any(worker.job for worker in self._workers):
            for key, _ in self._selector.select():
                yield from self._heard(key.data)

    def stop(self) -> None:
        """Let the rounds end that are under way, then the processes; those that take too long are killed."""
        for worker in self._workers:
            worker.tell({"do": "stop"})
        deadline = time.monotonic() + GRACE_SECONDS
        for worker in self._workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))

    def close(self) -> None:
        """End all processes, at once."""
        for worker in self._workers:
            worker.close()
        self._selector.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> "_Worker":
        worker = _Worker(self._device)
        self._selector.register(worker.answers, selectors.EVENT_READ, worker)
        return worker

    def _employ(self, worker: "_Worker") -> None:
        worker.job = self._waiting.popleft() if self._waiting else None
        if worker.job is not None:
            worker.tell(worker.job.order)

    def _heard(self, worker: "_Worker") -> Iterator[Progress | Ended]:
        lines = worker.read()
        if lines is None:
            yield from self._buried(worker)
            return
        for told in lines:
            if "ready" in told:
                worker.is_ready = True
            elif worker.job is not None and "round" in told:
                yield Progress(worker.job, told["round"])
            elif worker.job is not None:
                ended = Ended(worker.job, told.get("failed"), told.get("try", ""))
                self._employ(worker)  # before anybody looks at what ended: no core waits for that
                yield ended

    def _buried(self, worker: "_Worker") -> Iterator[Ended]:
        """A worker has died: put another in its place, and its job back in front, unless that was its last try."""
        self._selector.unregister(worker.answers)
        why, job = worker.why_it_ended(), worker.job
        worker.close()
        if not worker.is_ready and worker.process.returncode >= 0:
            raise FederationError(f"a worker cannot start: {why}", "privet simulate says more")
        if job is not None:
            self._crashes[job.name] = self._crashes.get(job.name, 0) + 1
            if self._crashes[job.name] < TRIES:
                self._waiting.appendleft(job)
            else:
                yield Ended(job, f"its worker died {TRIES} times; the last time {why}", "fewer --processes, or less")
        fresh = self._start()
        self._workers[self._workers.index(worker)] = fresh
        self._employ(fresh)


class _Worker:
    """One process, its two pipes, and the job that it is at."""

    def __init__(self, device: str) -> None:
        self.job: Job | None = None
        self.is_ready = False
        self._words = tempfile.TemporaryFile()  # noqa: SIM115 -- what it prints, as long as it lives
        # -P: no module is taken from the folder that the sweep runs in. Its own session: Ctrl-C is not for it.
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"{__package__}.sweep_point", device],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            env=os.environ | _THREADS,
            start_new_session=True,
        )
        self._partial = b""

    @property
    def answers(self) -> IO[bytes]:
        """Where its answers come from."""
        assert self.process.stdout is not None, "a pipe was asked for"
        return self.process.stdout

    def tell(self, order: dict[str, Any]) -> None:
        """Give an order; one who is dead is heard of where its answers end."""
        assert self.process.stdin is not None, "a pipe was asked for"
        with contextlib.suppress(OSError):
            self.process.stdin.write(json.dumps(order).encode() + b"\n")
            self.process.stdin.flush()

    def read(self) -> list[dict[str, Any]] | None:
        """The answers that have come; None where it is gone."""
        content = os.read(self.answers.fileno(), _READ_BYTES)
        if not content:
            return None
        *lines, self._partial = (self._partial + content).split(b"\n")
        return [json.loads(line) for line in lines]

    def why_it_ended(self) -> str:
        """A sentence; waits until it is gone."""
        self.process.wait()
        status = self.process.returncode
        how = f"with exit status {status}" if status >= 0 else f"by signal {-status} ({signal.Signals(-status).name})"
        guess = ", out of memory?" if status == -signal.SIGKILL else ""
        self._words.seek(0)
        words = self._words.read().decode(errors="replace").strip().splitlines()
        return f"it ended {how}{guess}" + (f": {words[-1].strip()[-_REASON_LENGTH:]}" if words else "")

    def close(self) -> None:
        """End it, and let go of what it had."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout, self._words):
            with contextlib.suppress(OSError):  # an order that it never read
                if stream is not None:
                    stream.close()
        self.process.wait()
