"""The file that a party's policies stand in, read anew when it changes. What does not validate replaces nothing.

A file that is missing permits nothing, nor does one that was never valid since it came or since the process began:
every decision is a denial that says so. Threads may share it.
"""

import logging
import threading
from importlib.resources import files
from pathlib import Path
from typing import Literal

from ..errors import PolicyError
from .rules import END, POLICY_BYTES, Rules

log = logging.getLogger("privet.policy")

_Seen = tuple[int, int, int, int] | None  # when it was written and touched, how large it is, which file it is


class PolicyFile:
    """The rules that hold now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen: _Seen = None
        self._rules: Rules | None = None
        self.problem = f"{path}: there is no policy"  # why the file's newest text does not hold; empty where it does

    def rules(self) -> Rules:
        """The newest rules that were valid; those that permit nothing where there are none."""
        seen = _seen(self.path)
        if seen != self._seen or seen is None:
            with self._lock:
                self._read(seen)
        return self._rules or nothing()

    def _read(self, seen: _Seen) -> None:
        if seen == self._seen and seen is not None:
            return  # another thread has read it
        before = self.problem
        try:
            rules = read_rules(self.path)
        except PolicyError as error:
            if seen is None:
                self._rules = None  # whoever takes the file away takes its permissions away
            self.problem = error.message
            if self.problem != before:
                held = f"rules {self._rules.hash[:12]} hold on" if self._rules else "nothing is permitted"
                log.error("the policy is not valid, %s: %s; try: %s", held, error.message, error.remedy)
        else:
            if self._rules is None or rules.hash != self._rules.hash:
                log.info("policy %s: %d rules hold now (%s)", self.path.name, len(rules.rules), rules.hash[:12])
            self._rules, self.problem = rules, ""
        self._seen = seen  # last: whoever sees it sees the rules


def read_rules(path: Path) -> Rules:
    """The rules in a file; raise PolicyError, which names the file."""
    try:
        with path.open("rb") as file:
            content = file.read(POLICY_BYTES + 1)
    except FileNotFoundError:
        raise PolicyError([f"{path}: there is no policy"], "privet policy edit, or privet policy allow") from None
    except OSError as error:
        raise PolicyError([f"{path}: cannot be read: {error.strerror}"], "make it a file that can be read") from None
    try:
        return Rules.of_bytes(content)
    except PolicyError as error:
        raise PolicyError([f"{path}: {problem}" for problem in error.problems], error.remedy) from None


def default_policy(side: Literal["node", "server"]) -> str:
    """The policy that ships: a node's permits nothing, a server's separates nodes, operators and auditors."""
    return files(__package__).joinpath("defaults", f"{side}.cedar").read_text(encoding="utf-8")


def nothing() -> Rules:
    """Rules that permit nothing."""
    return _NOTHING


def _seen(path: Path) -> _Seen:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino


_NOTHING = Rules(f"{END}\n")
