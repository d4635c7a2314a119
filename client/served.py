"""Served: a process that serves one run, started when it is needed and again when it was lost.

A crash, a kill by the system, a request that takes too long, or an exception of the code in it is a TaskError here. Its
text is for the local log: it may speak of records.
"""

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..privacy.errors import TaskError
from .child import Child, ChildEndedError
from .pipe import Packet

log = logging.getLogger("privet.node")

_OPENING_SECONDS = 300.0  # to import, to build a model and to probe it
_LONGEST_TEXT = 2000


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """`logs`: a folder. `seconds`: a request may take. `memory_bytes`: a process may write to. `environment`: added.

    `module`: what the process runs.
    """

    logs: Path
    device: str = "auto"
    threads: int = 1  # small models are several times slower on two than on one
    seconds: float | None = None
    memory_bytes: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = "privet.client.workshop"


class Served:
    """A process that serves one thing. It is started when it is needed, and again when it was lost."""

    def __init__(self, name: str, opening: Mapping[str, Any], settings: WorkerSettings) -> None:
        self._name = name
        self._opening = {**opening, "memory_bytes": settings.memory_bytes, "threads": settings.threads}
        self._settings = settings
        self._child: Child | None = None
        self._number = 0
        self._asking, self._lock = threading.Lock(), threading.Lock()
        self._is_closed = False

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        child = self._child
        return child.pid if child is not None and child.is_alive else None

    @property
    def is_busy(self) -> bool:
        """Whether somebody waits for an answer."""
        return self._asking.locked()

    def ask(self, packet: Packet, seconds: float | None = None) -> Packet:
        """The process' answer; raise TaskError where it fails or ends instead."""
        with self._asking:
            child, _ = self._opened()
            return self._asked(child, packet, seconds or self._settings.seconds)

    def open(self) -> Packet | None:
        """Start the process unless it runs; gives what it said when it was ready."""
        with self._asking:
            return self._opened()[1]

    def cancel(self, why: str) -> None:
        """End a request that is running, and the process with it. From any thread; the next request starts anew."""
        with self._lock:
            child = self._child
        if child is not None:
            child.kill(why)

    def rest(self) -> bool:
        """Let the process go until it is needed again; False where it is being asked."""
        if not self._asking.acquire(blocking=False):
            return False
        try:
            self._drop()
        finally:
            self._asking.release()
        return True

    def close(self) -> None:
        """Let the process go for good; a request that is running fails."""
        self._is_closed = True
        if not self.rest():
            self.cancel("it was let go")

    def _drop(self) -> None:
        with self._lock:
            child, self._child = self._child, None
        if child is not None:
            child.close()

    def _opened(self) -> tuple[Child, Packet | None]:
        with self._lock:
            child = self._child
            if self._is_closed:
                raise TaskError(f"{self._name}: its process was let go", "ask for another run")
            if child is not None and child.is_alive:
                return child, None
            if child is not None:
                child.close()
            try:
                settings = self._settings
                path = settings.logs / f"{self._name}.log"
                child = self._child = Child(settings.module, path, settings.threads, settings.environment)
            except ChildEndedError as error:
                raise self._lost(error) from None
        log.info("%s: process %d started", self._name, child.pid)
        return child, self._asked(child, Packet(self._opening), _OPENING_SECONDS)

    def _asked(self, child: Child, packet: Packet, seconds: float | None) -> Packet:
        self._number += 1
        try:
            answer = child.ask(Packet({**packet.head, "number": self._number}, packet.arrays, packet.raw), seconds)
        except ChildEndedError as error:
            child.close()
            raise self._lost(error) from None
        failed = answer.head.get("failed")
        if failed is None and answer.head.get("number") == self._number:
            return answer
        child.kill("it failed")
        child.close()
        told = failed if isinstance(failed, dict) else {}
        message = str(told.get("message", "its process did not keep to the protocol"))[:_LONGEST_TEXT]
        raise TaskError(message, str(told.get("remedy", self._see))[:_LONGEST_TEXT])

    def _lost(self, error: ChildEndedError) -> TaskError:
        log.error("%s: its process is gone: %s", self._name, error)
        return TaskError(f"its process is gone: {error}", self._see)

    @property
    def _see(self) -> str:
        return f"see {self._settings.logs / f'{self._name}.log'}"
