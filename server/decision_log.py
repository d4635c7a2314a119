"""The log of the server's decisions: one JSON line for each, in a file beside the policy.

The rules:
1. Every decision is entered, but for what members do by the clock and are permitted: `UNLOGGED`, which would drown the
   rest. A denial is entered whatever it is about. Which nodes a run asks is entered when it changes (joins.py).
   Which runs stand in a list is not (policy.py).
2. The file has a largest size. At that it becomes `decisions.jsonl.1`, in place of the one before it: whoever needs
   more copies it elsewhere in time.
3. The log decides nothing. Where it cannot be written, that is said once in the server's own log, and calls are
   answered as they were decided.
"""

import errno
import json
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ..privacy.channel.files import OWNER_ONLY
from ..privacy.policy.rules import Decision, Question, Uid

log = logging.getLogger("privet.server")

LARGEST_BYTES = 32 * 2**20  # of a file: some fifty thousand decisions; there are two
UNLOGGED = frozenset({"checkHealth", "renew"})  # where they are permitted
_ATTRIBUTES_LEFT_OUT = frozenset({"members"})  # of a run: as many as there are nodes
_LONGEST_LINE = 2**20  # bytes; a reader takes no more for one

Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """How far a reader has read: a file's number on its disk, and bytes of it."""

    file: int = 0
    offset: int = 0


START = Place()


class DecisionLog:
    """Writes decisions. Threads may share it, and each waits for the disk itself: never call it in an event loop."""

    def __init__(self, path: Path, largest: int = LARGEST_BYTES) -> None:
        self._path = path
        self._largest = largest
        self._lock = threading.Lock()
        self._is_failing = False

    def enter(self, question: Question, decision: Decision, now: datetime) -> None:
        """Enter a decision; never an exception for what the disk does."""
        if decision.is_permitted and question.action in UNLOGGED:
            return
        line = json.dumps(line_of(question, decision, now), separators=(",", ":")).encode() + b"\n"
        with self._lock:
            try:
                self._write(line)
                self._is_failing = False
            except OSError as error:
                if not self._is_failing:
                    log.error("%s cannot be written, decisions are not in it: %s", self._path, error.strerror)
                self._is_failing = True

    def _write(self, line: bytes) -> None:
        size = _size(self._path)
        if size and size + len(line) > self._largest:
            self._path.replace(former_of(self._path))
            size = 0
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, OWNER_ONLY)
        try:
            if os.write(descriptor, line) < len(line):  # the disk is full: half a line would spoil the next one
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)


def line_of(question: Question, decision: Decision, now: datetime) -> Line:
    """A decision as the log has it."""
    principal, resource = question.principal, question.resource
    told = {name: value for name, value in resource.attributes.items() if name not in _ATTRIBUTES_LEFT_OUT}
    return {
        "time": now.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "principal": _text(principal.uid),
        "action": question.action,
        "resource": _text(resource.uid),
        "verdict": decision.verdict.value,
        "rules": list(decision.rules),
        "policy": decision.policy,
        "error": decision.error,
        "context": dict(question.context),
        "facts": {
            "principal": {**principal.attributes, "within": [_text(one) for one in principal.within]},
            "resource": {**told, "within": [_text(one) for one in resource.within]},
        },
    }


def read_decisions(path: Path, after: Place = START) -> Iterator[tuple[Line, Place]]:
    """The decisions in the log after a place, oldest first, each with the place that it leads to.

    Whoever follows the log calls it again with the last place, also over a rotation. A line that is not whole yet is
    left for the next time; one that is no decision is passed over.
    """
    files = [(found, place) for place in (former_of(path), path) if (found := _number(place)) is not None]
    numbers = [number for number, _ in files]
    if after.file in numbers:
        files = files[numbers.index(after.file) :]
    for number, place in files:
        yield from _lines(place, number, after.offset if number == after.file else 0)


def former_of(path: Path) -> Path:
    """The file before this one."""
    return path.with_name(f"{path.name}.1")


def _lines(path: Path, number: int, offset: int) -> Iterator[tuple[Line, Place]]:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        if os.fstat(file.fileno()).st_ino != number:
            return  # it was rotated meanwhile: the next reading finds it
        file.seek(offset)
        while content := file.readline(_LONGEST_LINE):
            if not content.endswith(b"\n") and len(content) < _LONGEST_LINE:
                return
            offset += len(content)
            with suppress(ValueError):
                told = json.loads(content)
                if isinstance(told, dict):
                    yield told, Place(number, offset)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _number(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def as_line(text: str) -> str:
    """The text in one line that a terminal only shows.

    >>> as_line("run-1\\x1b[2K\\n")
    'run-1\ufffd[2K\ufffd'
    """
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _text(uid: Uid) -> str:
    return as_line("::".join(uid))
