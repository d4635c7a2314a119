"""The server as witness: one memory for each node's ledger, in a folder, under one key."""

import json
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict

from ..privacy.budget.keys import SigningKey
from ..privacy.budget.own_signatures import OwnSignatures
from ..privacy.budget.witness import Countersigned, Witness, head_text, read_head
from ..privacy.channel import words
from ..privacy.errors import LedgerError

log = logging.getLogger("privet.server")

# A simulation's witness looks at every so many rounds, and at the first and the last: what it guards against does not
# happen there, and its signatures cost as much as the ledger itself.
SIMULATED_EVERY = 16
# Charges are submissions: a page each, and few are new in a round.
CHARGES_BYTES = 16 * 2**20
_COLUMNS = {"sequence", "time", "kind", "body", "previous", "hash", "signature"}


class Witnesses:
    """What the server remembers of every node's ledger. Several threads may ask; of one owner, one at a time.

    `survives_power_cut`: False where the ledgers do not either, which is in simulations. `every`, `last`: of which
    rounds heads are asked for, a deployment's always of every one: without its head countersigned no answer counts.
    """

    def __init__(
        self, folder: Path, key: SigningKey, survives_power_cut: bool = True, *, every: int = 1, last: int = 0
    ) -> None:
        self._every = every
        self._last = last
        self._is_asking = True
        self._survives_power_cut = survives_power_cut
        self._folder = folder
        self._key = key
        self._by_owner: dict[str, Witness] = {}
        self._lock = threading.Lock()

    def take(self, owner: str, reply: Message) -> bool:
        """Countersign the head in a reply; False, and a line in the log, where it contradicts what was witnessed."""
        ledger = reply.content.get(words.LEDGER)
        if ledger is None and not self._is_asking:
            return True
        try:
            if not isinstance(ledger, ConfigRecord):
                raise LedgerError(f"{owner}: tells no head of its ledger", "update the node")
            head, charges = read_head(ledger.get(words.HEAD)), _charges(ledger.get(words.CHARGES))
            self._of(owner).countersign(head, charges)
        except LedgerError as error:
            log.warning("%s", error.message)
            return False
        return True

    def newest(self, owner: str) -> Countersigned | None:
        """The head of the owner's ledger that was countersigned last."""
        return self._of(owner).newest()

    def file(self, owner: str) -> Path:
        """Where the memory of one ledger lies; it need not be there."""
        return self._folder / f"{owner}.jsonl"

    def stamped(self, messages: list[Message], names: Mapping[int, str]) -> list[Message]:
        """Each message with the head that was last countersigned for the node that it goes to; or with the word that
        none is asked for.
        """
        unasked: dict[int, RecordDict] = {}  # by identity: most messages share one content
        for message in messages:
            content = message.content
            config = content.get(words.CONFIG)
            told = config if isinstance(config, ConfigRecord) else ConfigRecord()
            self._is_asking = self._is_due(told.get(words.ROUND))
            newest = self._of(names[message.metadata.dst_node_id]).newest() if self._is_asking else None
            if newest is not None:
                message.content = _with_config(content, told, words.WITNESSED, head_text(newest))
            elif not self._is_asking:
                if id(content) not in unasked:
                    unasked[id(content)] = _with_config(content, told, words.NO_HEAD, 1)
                message.content = unasked[id(content)]
        return messages

    def _is_due(self, round_number: object) -> bool:
        return not isinstance(round_number, int) or round_number in (1, self._last) or round_number % self._every == 0

    def _of(self, owner: str) -> Witness:
        with self._lock:
            if owner not in self._by_owner:
                self._by_owner[owner] = Witness(
                    self.file(owner), owner, self._key, survives_power_cut=self._survives_power_cut
                )
            return self._by_owner[owner]


def witnesses_in(ledgers: Path, rounds: int, own: OwnSignatures | None = None) -> Witnesses:
    """The memories that lie beside simulated ledgers, under a key of their own. `rounds`: of the run, all in all.

    `own`: what the simulation's keys have signed in this process: neither side verifies the other's work again.
    """
    folder = ledgers / "witness"
    key = SigningKey.load_or_create(folder / "server.pem", own=own, survives_power_cut=False)
    return Witnesses(folder, key, survives_power_cut=False, every=SIMULATED_EVERY, last=rounds)


def _with_config(content: RecordDict, config: ConfigRecord, key: str, value: str | int) -> RecordDict:
    return RecordDict({**content, words.CONFIG: ConfigRecord({**config, key: value})})


def _charges(text: object) -> list[dict[str, Any]]:
    if not isinstance(text, str) or len(text) > CHARGES_BYTES:
        raise LedgerError("malformed charges", "ask the sender")
    try:
        charges = json.loads(text)
    except (ValueError, RecursionError):
        raise LedgerError("malformed charges", "ask the sender") from None
    is_list = isinstance(charges, list)
    if not is_list or not all(isinstance(charge, dict) and set(charge) == _COLUMNS for charge in charges):
        raise LedgerError("malformed charges", "ask the sender")
    checked: list[dict[str, Any]] = charges
    return checked
