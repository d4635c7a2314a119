"""GrpcGrid: Flower's Grid over the nodes' encrypted streams, for one run. Any Flower ServerApp runs on it.

Answers are handed on one by one as they arrive. Whoever takes the next one has done with the one before: only then is
its memory free for another. What comes after `timeout` is not waited for, and is logged where it arrives (stream.py).
"""

import copy
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict

from ..privacy.channel import words
from ..privacy.channel.flower import Run, empty_run, identify_process, run_number
from ..privacy.channel.frames import PayloadMemory, encode
from ..privacy.errors import InterruptedRunError
from .asks import Arrived, Ask, Mailbox, Traffic
from .link import Hub
from .run_grid import RunGrid
from .stream import NodeView

# An answer's arrays may be so much larger than the request's: names and shapes are the model's, headers may differ.
_SLACK_BYTES = 2**20

# What touches records, and stands in the ledger of whoever answers. An app (which has a seal) is not accounted for.
_CHARGED = (words.TRAIN, words.EVALUATE)

# What answers these in a run of a task brings no arrays, whatever the request brought.
_WITHOUT_ARRAYS = (words.DESCRIBE, words.WITNESS)

# Which connected nodes are asked, and why each of the others is not.
Fit = Callable[[Iterable[NodeView]], tuple[list[NodeView], dict[str, str]]]


@dataclass(frozen=True, slots=True)
class GridTerms:
    """What a run asks over. `largest_answer`: bytes of arrays where a request brings none; `pack`: see frames.py.

    `seal`: the signed submission, for an app whose own messages do not bring it.
    """

    run_id: str
    fit: Fit
    largest_answer: int
    pack: bool = False
    seal: ConfigRecord | None = None


class GrpcGrid(RunGrid):
    """The nodes that fit one run. Use it from the run's thread; `stop` comes from any."""

    def __init__(self, hub: Hub, terms: GridTerms) -> None:
        self._hub = hub
        self._terms = terms
        self._traffic = Traffic()
        self._payloads = PayloadMemory()
        self._pushed: dict[str, Mailbox] = {}
        self._reading: dict[Mailbox, set[bytes]] = {}  # and the asks whose answers are waited for
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.set_run(empty_run(run_number(terms.run_id)))

    # ---- Flower's Grid ----

    def set_run(self, run: Run) -> None:
        """Set the run; messages that are made in this process take its number, until they are sent in their own."""
        self._run = run
        identify_process(run)

    @property
    def run(self) -> Run:
        """The run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """A message from the server to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that are connected and fit the run, in order of name. Raises InterruptedRunError when stopped."""
        self._check_going_on()
        fit, _ = self._terms.fit(self._hub.nodes())
        return [node.node_id for node in fit]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Ask, and give each answer as it arrives, until all have come or `timeout` seconds are over."""
        mailbox = Mailbox(self._traffic)
        asks = self._asks(messages, mailbox)
        with self._lock:
            waiting = self._reading[mailbox] = {ask.id for ask in asks}
        self._hub.post(asks)
        return self._answers(mailbox, waiting, timeout)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Ask; the answers wait to be pulled."""
        pushed = []
        for message in messages:
            mailbox = Mailbox(self._traffic, is_loose=True)
            asks = self._asks([message], mailbox)
            self._pushed[asks[0].id.hex()] = mailbox
            self._hub.post(asks)
            pushed.append(asks[0].id.hex())
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The answers that have come to these messages, each once."""
        self._check_going_on()
        found = []
        for message_id in message_ids:
            arrived = self._pushed[message_id].get(timeout=0) if message_id in self._pushed else None
            if arrived is not None:
                del self._pushed[message_id]
                found.append(_message(arrived))
                arrived.release()
        return found

    # ---- what a run needs besides ----

    def wait_for_nodes(self, least: int) -> None:
        """Wait until so many nodes are connected that fit; raise InterruptedRunError when stopped."""
        seen = self._hub.nodes()
        while len(self._terms.fit(seen)[0]) < least:
            self._check_going_on()
            seen = self._hub.wait_for_change(seen, None)
        self._check_going_on()

    def wait_for_names(self, names: Set[str], seconds: float) -> None:
        """See RunGrid."""
        end, seen = time.monotonic() + seconds, self._hub.nodes()
        while names - {node.name for node in seen} and (left := end - time.monotonic()) > 0:
            self._check_going_on()
            seen = self._hub.wait_for_change(seen, left)

    def revisions(self) -> dict[int, str]:
        """See RunGrid."""
        return self._revisions(self._hub.nodes())

    def wait_for_revisions(self, seen: Mapping[int, str], seconds: float) -> None:
        """See RunGrid."""
        end, nodes = time.monotonic() + seconds, self._hub.nodes()
        while self._revisions(nodes) == seen and (left := end - time.monotonic()) > 0:
            self._check_going_on()
            nodes = self._hub.wait_for_change(nodes, left)
        self._check_going_on()

    def has_left(self, node_id: int) -> bool:
        """See RunGrid."""
        return self._hub.is_denied(node_id)

    def rest(self, seconds: float) -> None:
        """See RunGrid."""
        self._stopped.wait(seconds)
        self._check_going_on()

    def _revisions(self, nodes: Iterable[NodeView]) -> dict[int, str]:
        return {node.node_id: node.revision for node in self._terms.fit(nodes)[0]}

    def notes(self) -> dict[str, str]:
        """Which connected nodes are not asked, and why."""
        return self._terms.fit(self._hub.nodes())[1]

    def name_of(self, node_id: int) -> str:
        """The name in the node's certificate; empty for one that was never connected."""
        return self._hub.name_of(node_id)

    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received for this run."""
        return self._traffic.sent, self._traffic.received

    def stop(self) -> None:
        """Make whatever waits raise InterruptedRunError."""
        self._stopped.set()
        with self._lock:
            for mailbox in self._reading:
                mailbox.interrupt()
        self._hub.wake()

    def close(self) -> None:
        """Let go of what was asked and of what has come; a thread that an app left behind finds the run at its end."""
        self._stopped.set()
        self._hub.forget(bytes.fromhex(message_id) for message_id in list(self._pushed))
        for mailbox in self._pushed.values():
            mailbox.close()
        self._pushed.clear()
        with self._lock:
            reading = list(self._reading)
        for mailbox in reading:  # nobody has read to the end
            self._let_go(mailbox)
        self._payloads.forget()

    def _asks(self, messages: Iterable[Message], mailbox: Mailbox) -> list[Ask]:
        self._check_going_on()
        return [self._ask(message, mailbox) for message in messages]

    def _ask(self, message: Message, mailbox: Mailbox) -> Ask:
        ask_id = secrets.token_bytes(16)
        message.metadata.__dict__["_message_id"] = ask_id.hex()  # as Flower's own grids set it
        message.metadata.__dict__["_run_id"] = self._run.run_id
        outgoing = encode(
            self._sealed(message),
            message_id=ask_id,
            reply_to=b"",
            run_id=self._terms.run_id,
            payloads=self._payloads,
            pack=self._terms.pack,
        )
        is_app = self._terms.seal is not None
        is_like_the_model = outgoing.payload.size > 0 and not is_app
        largest = outgoing.payload.size + _SLACK_BYTES if is_like_the_model else self._terms.largest_answer
        if self._terms.seal is None and message.metadata.message_type in _WITHOUT_ARRAYS:
            largest = _SLACK_BYTES
        is_charged = not is_app and message.metadata.message_type in _CHARGED
        run_id, node_id = self._terms.run_id, message.metadata.dst_node_id
        return Ask(ask_id, node_id, run_id, envelope(message), outgoing, mailbox, largest, is_charged, is_app)

    def _sealed(self, message: Message) -> Message:
        """What is sent: the app's own message stays as it is."""
        if self._terms.seal is None:
            return message
        return _with(RecordDict({**message.content, words.SEAL: self._terms.seal}), message.metadata)

    def _answers(self, mailbox: Mailbox, waiting: set[bytes], timeout: float | None) -> Iterator[Message]:
        end = None if timeout is None else time.monotonic() + timeout
        try:
            while waiting:
                left = None if end is None else end - time.monotonic()
                arrived = mailbox.get(left) if left is None or left > 0 else None
                self._check_going_on()
                if arrived is None:
                    return
                waiting.discard(arrived.ask.id)
                try:
                    yield _message(arrived)
                finally:
                    arrived.release()
                del arrived  # or it would be held while the next one comes
        finally:
            self._let_go(mailbox)

    def _let_go(self, mailbox: Mailbox) -> None:
        with self._lock:
            waiting = self._reading.pop(mailbox, set())
        self._hub.forget(waiting)
        mailbox.close()

    def _check_going_on(self) -> None:
        if self._stopped.is_set():
            raise InterruptedRunError(
                f"run {self._terms.run_id} was stopped", f"privet run resume {self._terms.run_id}"
            )


def _message(arrived: Arrived) -> Message:
    if arrived.message is not None:
        return arrived.message
    return Message(Error(words.LOST, arrived.lost), reply_to=arrived.ask.request)


def envelope(message: Message) -> Message:
    """A message without its content: an answer's metadata are made from it. An app may send its Message once more."""
    return _with(RecordDict(), copy.copy(message.metadata))


def _with(content: RecordDict, metadata: Metadata) -> Message:
    message: Message = Message(content=content, metadata=metadata)  # type: ignore[call-overload]  # Flower's own way
    return message
