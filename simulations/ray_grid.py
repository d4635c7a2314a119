"""RayGrid: Flower's Grid whose messages are carried out by workers of Ray, several at once.

A node is one worker's, by its number, so that its ledger stays open in one process and its requests come one after the
other. Replies are handed on in the order of the requests, however fast they come: so the model is, byte for byte, that
of nodes trained one after the other in one process, on any number of workers.

When a worker has ended, another one takes its nodes, and is asked again what had no reply: the node gives the answer
that it had kept, carries out what it had not begun, or says that the attempt is spent, and the run does what it does
after any crash.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from ..client.flower_app import frames_of, message_of
from ..privacy.channel import words
from ..privacy.channel.flower import SERVER_NODE_ID, empty_run, run_number
from .grid import Fault, LocalGrid
from .ray_actor import FIRST_NODE_ID, Place
from .ray_workers import LostError, RayWorkers

# Requests that a worker has before it, so that it need not wait for the next one while replies are added up.
_AHEAD = 2
# A request that has ended so many workers is given up: its node has failed in that round.
_TRIES = 3


class RayGrid(LocalGrid):
    """The nodes of a run, by Flower's node id. Close it before anything else opens their ledgers."""

    def __init__(
        self, place: Place, contexts: Mapping[int, Context], processes: int | None = None, fault: Fault | None = None
    ) -> None:
        super().__init__(ClientApp(), contexts, fault)  # the workers have their own app
        self.set_run(empty_run(run_number(place.run_id)))
        self._run_id = place.run_id
        self._workers = RayWorkers(place, processes)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """See LocalGrid; workers carry out what comes after while a reply is used."""
        asked = [message for message in messages if message.metadata.dst_node_id in self._contexts]
        for message in asked:
            self._number(message)
        errands = _Errands(self._workers, self._run_id, asked)
        for message in asked:
            reply = self._faulted(message, errands.reply_to(message))
            if reply is not None:
                yield reply
            del reply  # or it would be held while the next one is used

    def close(self) -> None:
        """End the workers, when what they have begun is done."""
        self._workers.close()

    def _delivered(self, message: Message) -> Message | None:
        return next(iter(self.send_and_receive([message])), None)

    def _number(self, message: Message) -> None:
        message.metadata.__dict__["_message_id"] = f"{next(self._numbers):032x}"  # 16 bytes, as frames have them


class _Errands:
    """Requests on their way to workers and back."""

    def __init__(self, workers: RayWorkers, run_id: str, asked: Sequence[Message]) -> None:
        self._workers = workers
        self._run_id = run_id
        self._waiting = [deque[Message]() for _ in range(len(workers))]
        self._out: list[dict[Any, Message]] = [{} for _ in range(len(workers))]
        self._replies: dict[str, Message] = {}
        self._lost = Counter[str]()
        for message in asked:
            self._waiting[(message.metadata.dst_node_id - FIRST_NODE_ID) % len(workers)].append(message)

    def reply_to(self, message: Message) -> Message:
        """The reply to one of them, when it is there."""
        while message.metadata.message_id not in self._replies:
            self._send()
            self._take()
        self._send()
        return self._replies.pop(message.metadata.message_id)

    def _send(self) -> None:
        for number, (waiting, out) in enumerate(zip(self._waiting, self._out, strict=True)):
            while waiting and len(out) < _AHEAD:
                message = waiting.popleft()
                request = frames_of(message, self._run_id)
                out[self._workers.send(number, message.metadata.dst_node_id, request)] = message

    def _take(self) -> None:
        reply = self._workers.first_of([reply for out in self._out for reply in out])
        number = next(number for number, out in enumerate(self._out) if reply in out)
        try:
            content = self._workers.content(reply)
        except LostError:
            self._start_anew(number)
            return
        message = self._out[number].pop(reply)
        self._replies[message.metadata.message_id] = self._read(message, content)

    def _read(self, message: Message, content: bytes | None) -> Message:
        if content is None:
            return _failed(message)
        asked = message.metadata
        return message_of(content, self._run_id, asked.dst_node_id, SERVER_NODE_ID, asked)

    def _start_anew(self, number: int) -> None:
        """All that a worker had before it is lost with it; only the first of it can have been begun."""
        lost = list(self._out[number].values())
        self._out[number].clear()
        self._workers.replace(number)
        self._lost[lost[0].metadata.message_id] += 1
        if self._lost[lost[0].metadata.message_id] == _TRIES:
            given_up = lost.pop(0)
            self._replies[given_up.metadata.message_id] = _failed(given_up)
        self._waiting[number].extendleft(reversed(lost))


def _failed(message: Message) -> Message:
    return Message(Error(words.APP_RAISED, words.APP_FAILED), reply_to=message)
