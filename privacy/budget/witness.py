"""Witness: the server's memory of each node's ledger, so that a ledger put back to an older copy shows.

A node tells the head of its ledger with every answer, and the charges that the witness does not hold yet. The server
countersigns each head, once for each number: a second head of the same number is a fork, and is refused. Both keep it.
The witness learns sequence numbers, hashes and charges, also those of other operators' plans; nothing of records.
"""

import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..channel.files import append_lines
from ..errors import LedgerError
from .canonical import canonical
from .keys import SigningKey, Verify, is_signed
from .ledger import CHARGES, Entry

# A head is a few hundred characters; a larger text is not one.
HEAD_BYTES = 4096
# What one node may make a server keep: some 300 000 answers' heads.
WITNESS_BYTES = 256 * 2**20
HEAD, COUNTERSIGNED = "ledger-head", "ledger-countersigned"  # purposes of signatures


@dataclass(frozen=True, slots=True)
class Head:
    """The newest entry of a node's ledger, said by the node. `signature`: by `public_key`, over all the rest."""

    owner: str
    public_key: str
    sequence: int
    hash: str
    signature: str

    @classmethod
    def of(cls, owner: str, entry: Entry, key: SigningKey) -> "Head":
        """The head that the institution states."""
        return cls.at(owner, entry.sequence, entry.hash, key)

    @classmethod
    def at(cls, owner: str, sequence: int, digest: str, key: SigningKey) -> "Head":
        """The same by the newest entry's number and hash."""
        unsigned = cls(owner, key.public, sequence, digest, "")
        return cls(owner, key.public, sequence, digest, key.sign(HEAD, unsigned.message()))

    def message(self) -> bytes:
        """What is signed: canonical JSON, numbers as strings."""
        return canonical([self.owner, self.public_key, str(self.sequence), self.hash])

    def is_signed(self, verify: Verify = is_signed) -> bool:
        """Whether the institution signed it."""
        return verify(self.public_key, HEAD, self.message(), self.signature)

    def told(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Countersigned:
    """A head with the server's signature of it."""

    head: Head
    server_key: str
    server_signature: str

    def is_signed(self, verify: Verify = is_signed) -> bool:
        """Whether both signed it. `verify`: of a process that may have signed one of them itself (SigningKey)."""
        head, message = self.head, self.head.message()
        return verify(head.public_key, HEAD, message, head.signature) and verify(
            self.server_key, COUNTERSIGNED, message, self.server_signature
        )

    def told(self) -> dict[str, Any]:
        """Its fields, for JSON."""
        return {"head": self.head.told(), "server_key": self.server_key, "server_signature": self.server_signature}


class Witness:
    """What one server remembers of one node's ledger: a file of countersigned heads and charges, a line each.

    Several threads may ask. `charges`: the hashes of those in the file.
    """

    def __init__(
        self,
        path: Path,
        owner: str,
        key: SigningKey,
        most_bytes: int = WITNESS_BYTES,
        survives_power_cut: bool = True,
    ) -> None:
        """`survives_power_cut`: False where the ledgers do not either, which is in simulations."""
        self._path = path
        self._survives_power_cut = survives_power_cut
        self._owner = owner
        self._key = key
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._newest: Countersigned | None = None
        self.charges: set[str] = set()
        for told in _told_in(path) if path.exists() else ():
            if isinstance(told, Countersigned):
                self._newest = told
            else:
                self.charges.add(str(told["hash"]))

    def newest(self) -> Countersigned | None:
        """The head with the highest number."""
        return self._newest

    def countersign(self, head: Head, charges: Iterable[Mapping[str, Any]]) -> Countersigned:
        """Remember and countersign a head; raise LedgerError for one that contradicts what was seen before.

        `charges`: the charge entries since the last head, columns by name. One that is held already is passed over;
        any other must be the institution's own, between the last head and this one.
        """
        with self._lock:
            newest = self._newest
            self._check_signed(head)
            if newest is not None and (head.sequence, head.hash) == (newest.head.sequence, newest.head.hash):
                return newest
            if newest is not None and head.sequence <= newest.head.sequence:
                raise LedgerError(
                    f"{self._owner}: its ledger ends at {head.sequence}; {newest.head.sequence} was witnessed",
                    "at the node: privet budget recover",
                )
            fresh = {str(charge["hash"]): charge for charge in charges if str(charge["hash"]) not in self.charges}
            for charge in fresh.values():
                self._check_charge(charge, head)
            countersigned = Countersigned(head, self._key.public, self._key.sign(COUNTERSIGNED, head.message()))
            self._append([*({"charge": dict(one)} for one in fresh.values()), {"head": countersigned.told()}])
            self._newest = countersigned
            self.charges |= fresh.keys()
            return countersigned

    def _check_signed(self, head: Head) -> None:
        if not head.is_signed(self._key.is_signed) or head.owner != self._owner:
            raise LedgerError(f"{self._owner}: its head is not signed by it", "look at the node's key")
        if self._newest is not None and head.public_key != self._newest.head.public_key:
            raise LedgerError(f"{self._owner}: signs its ledger with another key than before", "ask the institution")

    def _check_charge(self, columns: Mapping[str, Any], head: Head) -> None:
        after = self._newest.head.sequence if self._newest is not None else 0
        try:
            entry = Entry(**columns)
            is_between = type(entry.sequence) is int and after < entry.sequence <= head.sequence
            is_good = is_between and entry.kind in CHARGES
            is_good = is_good and entry.is_whole(entry.sequence, entry.previous, head.public_key)
        except (TypeError, ValueError):  # other columns, or text that has no canonical form
            is_good = False
        if not is_good:
            raise LedgerError(
                f"{self._owner}: tells a charge that is none of its ledger's entries {after + 1} to {head.sequence}",
                "ask the institution, whose ledger an auditor can look at",
            )

    def _append(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """All lines or none. What was countersigned is not forgotten in a power cut."""
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        before = self._path.stat().st_size if self._path.exists() else 0
        if before + len(content) > self._most_bytes:
            raise LedgerError(
                f"{self._path}: {before} bytes and {len(content)} more; the most that is kept is {self._most_bytes}",
                "stop the server, put the file away for the auditors, and start the server again",
            )
        append_lines(self._path, content, self._survives_power_cut)


def read_witness(path: Path) -> tuple[list[Countersigned], dict[str, dict[str, Any]]]:
    """The heads and the charges (by entry hash) in a witness file; signatures are not looked at here.

    Raises LedgerError for a file that is not one. A last line torn by a crash is left out.
    """
    heads: list[Countersigned] = []
    charges: dict[str, dict[str, Any]] = {}
    for told in _told_in(path):
        if isinstance(told, Countersigned):
            heads.append(told)
        else:
            charges[str(told["hash"])] = told
    return heads, charges


def _told_in(path: Path) -> Iterator[Countersigned | dict[str, Any]]:
    """Line by line: a head, or the columns of a charge."""
    try:
        with path.open(encoding="utf-8", newline="\n") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    break
                told = json.loads(line)
                if "head" in told:
                    yield Countersigned(**{**told["head"], "head": Head(**told["head"]["head"])})
                else:
                    yield {**told["charge"], "hash": told["charge"]["hash"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise LedgerError(
            f"{path}: not a witness file: {error}",
            "ask the coordinator for the file that the server keeps of this node",
        ) from None


def head_text(head: Head | Countersigned) -> str:
    """As JSON, for a message."""
    return json.dumps(head.told())


def read_head(text: object) -> Head:
    """The head in a message from outside; raise LedgerError for anything else."""
    return _head_of(_told(text))


def read_countersigned(text: object) -> Countersigned:
    """The countersigned head in a message from outside; raise LedgerError for anything else."""
    if not isinstance(text, str):
        raise _malformed()
    return _countersigned_of(text)


@lru_cache(maxsize=256)  # a request is looked at when it begins and when it is answered
def _countersigned_of(text: str) -> Countersigned:
    told = _told(text)
    texts = told.get("server_key"), told.get("server_signature")
    if not all(isinstance(part, str) for part in texts):
        raise _malformed()
    return Countersigned(_head_of(told.get("head")), str(texts[0]), str(texts[1]))


def _told(text: object) -> dict[str, Any]:
    if not isinstance(text, str) or len(text) > HEAD_BYTES:
        raise _malformed()
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        raise _malformed() from None
    if not isinstance(told, dict):
        raise _malformed()
    return told


def _head_of(told: object) -> Head:
    texts = ("owner", "public_key", "hash", "signature")
    if not isinstance(told, dict) or not all(isinstance(told.get(name), str) for name in texts):
        raise _malformed()
    if type(told.get("sequence")) is not int or told["sequence"] < 1:
        raise _malformed()
    return Head(told["owner"], told["public_key"], told["sequence"], told["hash"], told["signature"])


def _malformed() -> LedgerError:
    return LedgerError("malformed head of a ledger", "ask the sender")
