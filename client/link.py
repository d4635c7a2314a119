"""The node's side of its stream: it dials out, stays, and comes back. No port is opened at the institution.

The rules:
1. Requests are handed to the party behind the link and are answered whenever it is done; the link never waits for it.
2. An answer is kept until the server has taken it or says that nobody waits. After a reconnect it is sent again.
3. A request that comes again is not carried out again while it is being worked on or its answer is still here.
4. The head of the ledger that an answer brings is read when the answer is sent, so that heads never go backwards.
5. A connection that is lost is opened again, at once and then ever more slowly, with chance in it, so that a thousand
   nodes do not come back in one moment. Only what was of use begins at once again: an answer that cannot be taken is
   not sent five times a second.
"""

import asyncio
import contextlib
import logging
import os
import platform
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio
from flwr.app import Message

from .. import __version__
from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel.credentials import channel_credentials
from ..privacy.channel.frames import GRPC_OPTIONS
from ..privacy.channel.member import Member
from ..privacy.errors import ChannelError, PrivetError
from .session import PROTOCOL, Session, Welcomed

log = logging.getLogger("privet.node")

INSTANCE_BYTES = 16
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0  # seconds between tries
_LONG_CONNECTION = 30.0  # seconds: one that breaks sooner, without an answer taken, may break again at once


@dataclass(frozen=True, slots=True)
class Presence:
    """What a node offers now. `tasks`: versions by name, of the data sets that are declared.

    `revision`: another whenever a refusal may have become a permission, and nothing else: see party.py.
    """

    is_paused: bool
    tasks: dict[str, str]
    apps: tuple[str, ...]
    revision: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A request, as it came. `answer`: call it once, from any thread."""

    id: bytes
    run_id: str
    message: Message
    answer: Callable[[Message], None]


class Party(Welcomed, Protocol):
    """What answers. Its methods return at once, or are called in a thread where they say so."""

    def presence(self) -> Presence:
        """What is offered now."""
        ...

    def take(self, asked: Asked) -> None:
        """Carry out a request, some time."""
        ...

    def drop(self, ask_id: bytes) -> None:
        """Nobody waits for this answer any more."""
        ...

    def stamped(self, message: Message) -> Message:
        """The answer as it may be sent now, with the ledger's newest head. In a thread."""
        ...


class Link:
    """Keeps a stream open, until it is stopped. `clock`: Unix seconds; `options`: of gRPC."""

    def __init__(
        self,
        member: Member,
        party: Party,
        freshen: Callable[[Member], None],
        is_packing: Callable[[str], bool] = lambda run_id: False,
        clock: Callable[[], float] = time.time,
        options: Sequence[tuple[str, int]] = GRPC_OPTIONS,
    ) -> None:
        self._member = member
        self._party = party
        self._freshen = freshen
        self._is_packing = is_packing
        self._clock = clock
        self._options = [*options, ("grpc.enable_retries", 0)]
        self._instance = os.urandom(INSTANCE_BYTES)
        self._answers: dict[bytes, tuple[str, Message]] = {}  # by ask: run and answer, until they are taken
        self._working: set[bytes] = set()
        self._session: Session | None = None
        self._connection: asyncio.Task[None] | None = None
        self._is_of_use = False
        self._stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Stay connected until `stop`."""
        pause = _FIRST_PAUSE
        while not self._stopped.is_set():
            self._is_of_use, begin = False, time.monotonic()
            self._connection = asyncio.create_task(self._connected())
            try:
                await self._connection
            except PrivetError as error:
                log.error("%s; try: %s", error.message, error.remedy)
                self._party.told("refused", error.message)
            except asyncio.CancelledError:  # by `stop`, or by grpc, which tells a lost call so; or this task is to end
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
            except Exception:  # a defect in one connection ends no node
                log.exception("the connection ended by a defect")
                self._party.told("disconnected", "a defect; see the log")
            if self._stopped.is_set():
                return
            if self._is_of_use or time.monotonic() - begin > _LONG_CONNECTION:
                pause = _FIRST_PAUSE
            await self._rest(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, _LONGEST_PAUSE)

    def stop(self) -> None:
        """Close the stream and come to an end."""
        self._stopped.set()
        if self._session is not None:
            self._session.close()
        is_welcome = self._session is not None and self._session.is_welcome
        if self._connection is not None and not is_welcome:  # grpc lets a write wait on for a server that says nothing
            self._connection.cancel()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being worked on, and every answer was taken."""
        return not self._working and not self._answers

    def tell_presence(self) -> None:
        """Tell the server what is offered now. From any thread."""
        self._loop.call_soon_threadsafe(self._tell_presence)

    # ---- what a session asks ----

    def hello(self) -> pb.Hello:
        """Who we are."""
        return pb.Hello(
            protocol=PROTOCOL,
            version=__version__,
            instance=self._instance,
            clock=self._clock(),
            presence=_presence(self._party.presence()),
            python=platform.python_version(),
        )

    def unsent(self) -> list[bytes]:
        """The asks whose answers were not taken yet, oldest first."""
        return list(self._answers)

    async def ready(self, ask_id: bytes) -> "tuple[str, Message] | None":
        """Run and answer of an ask, as it may be sent now."""
        found = self._answers.get(ask_id)
        if found is None:
            return None
        run_id, message = found
        return run_id, await asyncio.to_thread(self._party.stamped, message)

    def take(self, ask_id: bytes, run_id: str, message: Message) -> None:
        """A request has come."""
        if ask_id in self._working or ask_id in self._answers:
            return
        self._working.add(ask_id)

        def answer(reply: Message) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the node has ended
                self._loop.call_soon_threadsafe(self._answered, ask_id, run_id, reply)

        try:
            self._party.take(Asked(ask_id, run_id, message, answer))
        except Exception:  # it may be asked again
            self._working.discard(ask_id)
            log.exception("run %s: a request could not be taken", run_id)

    def taken(self, ask_id: bytes) -> None:
        """The server has this answer."""
        self._is_of_use = True
        self._answers.pop(ask_id, None)

    def dropped(self, ask_id: bytes) -> None:
        """Nobody waits for this answer."""
        self._answers.pop(ask_id, None)
        self._working.discard(ask_id)
        self._party.drop(ask_id)

    def packs(self, run_id: str) -> bool:
        """Whether updates of this run are sent as their upper halves, where nothing is lost by it."""
        return self._is_packing(run_id)

    # ---- its own ----

    def _answered(self, ask_id: bytes, run_id: str, reply: Message) -> None:
        if ask_id not in self._working:
            return  # dropped meanwhile
        self._working.discard(ask_id)
        self._answers[ask_id] = (run_id, reply)
        if self._session is not None:
            self._session.send_answer(ask_id)

    def _tell_presence(self) -> None:
        if self._session is not None:
            self._session.send(pb.Frame(presence=_presence(self._party.presence())))

    async def _connected(self) -> None:
        """One connection, from its beginning to its end."""
        await asyncio.to_thread(self._freshen, self._member)
        async with grpc.aio.secure_channel(
            self._member.address, channel_credentials(self._member), options=self._options
        ) as channel:
            session = Session(self, self._party, self._member, channel)
            self._session = session
            try:
                await session.serve(self._freshen)
            except grpc.aio.AioRpcError as error:
                if error.code() in _REASONED and not self._stopped.is_set():
                    raise ChannelError(str(error.details()), "see the server's log, or ask the coordinator") from None
                log.info("not connected to %s: %s", self._member.address, error.details())
                self._party.told("disconnected", str(error.details()))
            finally:
                self._session = None

    async def _rest(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopped.wait(), seconds)
        except TimeoutError:
            return


_REASONED = {
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.UNIMPLEMENTED,
}


def _presence(presence: Presence) -> pb.Presence:
    tasks = [pb.TaskOffer(name=name, version=version) for name, version in sorted(presence.tasks.items())]
    apps, revision = sorted(presence.apps), presence.revision
    return pb.Presence(is_paused=presence.is_paused, tasks=tasks, apps=apps, revision=revision)
