"""A hub and nodes' links over real mutual TLS on loopback, for tests: the server's loop runs in a thread of its own."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
from flwr.app import ArrayRecord, Message, RecordDict
from privet.client.link import Asked, Link, Presence
from privet.privacy.channel.authority import IssuingAuthority, RootAuthority
from privet.privacy.channel.credentials import Peer, Presented, server_credentials
from privet.privacy.channel.frames import GRPC_OPTIONS
from privet.privacy.channel.identities import Identity, IdentityKey, Role
from privet.privacy.channel.member import Member, Membership
from privet.privacy.errors import ChannelError
from privet.server.gate import Gate, peer
from privet.server.link import Hub, HubOptions
from privet.server.streams_service import streams_handlers
from privet.server.witnesses import Witnesses
from server_policy import shipped_policy

FEDERATION = "hearts"


class Authority:
    """Both authorities of a federation, and the certificates that they give."""

    def __init__(self, federation: str = FEDERATION) -> None:
        self.federation = federation
        self.root = RootAuthority.create(federation, datetime.now(UTC))
        self.issuer: IssuingAuthority = self.root.issuer(datetime.now(UTC))

    def presented(self) -> Presented:
        """What a server on loopback presents."""
        key = IdentityKey.generate()
        identity = Identity(self.federation, Role.SERVER, "server")
        chain = self.issuer.issue(identity, key.csr(), datetime.now(UTC), hosts=["127.0.0.1"])
        return Presented(key.pem(), chain + self.root.pem, self.root.pem)

    def member(
        self,
        folder: Path,
        name: str,
        address: str,
        role: Role = Role.NODE,
        lifetime: timedelta = timedelta(hours=24),
    ) -> Member:
        """A member with a certificate that is valid now."""
        key, now = IdentityKey.generate(), datetime.now(UTC)
        membership = Membership(self.federation, role, name, address, address)
        chain = self.issuer.issue(membership.identity, key.csr(), now, lifetime)
        return Member.create(folder / name, membership, key, chain, self.root.pem, now)


class OpenRoll:
    """A roll on which everybody stands, until it is told otherwise. Numbers are given in order of asking."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._denied: set[str] = set()

    def check(self, peer: Peer, now: float) -> None:
        if peer.key_fingerprint in self._denied:
            raise ChannelError(f"{peer.identity.name} was revoked", "ask the coordinator")

    def node_id(self, name: str) -> int:
        return self._numbers.setdefault(name, len(self._numbers) + 2)

    def denied_keys(self) -> frozenset[str]:
        return frozenset(self._denied)

    def revision(self) -> int:
        return len(self._denied)

    def deny(self, key_fingerprint: str) -> None:
        self._denied.add(key_fingerprint)


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, Any]) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, Any], timeout: float = 60) -> Any:
        return self.submit(work).result(timeout)

    def close(self) -> None:
        async def wind_up() -> None:
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        self.run(wind_up())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()


class Server:
    """The main port of a server with a hub, and nothing else."""

    def __init__(
        self, authority: Authority, witnesses: Witnesses | None = None, options: HubOptions | None = None
    ) -> None:
        self.authority = authority
        self.roll = OpenRoll()
        self.loop = Loop()
        self.hub: Hub = self.loop.run(self._made(witnesses, options))
        self.port = 0
        self._presented = authority.presented()
        self.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        self.loop.run(self._start())

    def stop(self, grace: float | None = None) -> None:
        self.loop.run(self._server.stop(grace))

    def present(self, presented: Presented) -> None:
        """From the next connection on."""
        self._presented = presented

    def close(self) -> None:
        self.stop()
        self.loop.close()

    async def _made(self, witnesses: Witnesses | None, options: HubOptions | None) -> Hub:
        hub = Hub(self.roll, witnesses, options)
        self._watching = asyncio.create_task(hub.watch_denied())
        return hub

    async def _start(self) -> None:
        self._server = grpc.aio.server(
            interceptors=[Gate(self.roll, shipped_policy(self.authority.federation))], options=list(GRPC_OPTIONS)
        )
        self._server.add_generic_rpc_handlers((streams_handlers(self.hub, peer),))
        credentials = server_credentials(lambda: self._presented)
        self.port = self._server.add_secure_port(f"127.0.0.1:{self.port}", credentials)
        await self._server.start()


Reply = Callable[[Message], Message]


class EchoParty:
    """Answers every request with what `reply` makes of it, in the link's own loop."""

    def __init__(self, reply: Reply, tasks: dict[str, str] | None = None) -> None:
        self._reply = reply
        self.tasks = tasks if tasks is not None else {"digits": "1"}
        self.is_paused = False
        self.revision = ""
        self.asked: list[Asked] = []
        self.dropped: list[bytes] = []
        self.countersigned: list[str] = []
        self.denied: set[str] = set()
        self.states: list[tuple[str, str]] = []
        self._told = threading.Condition()

    def presence(self) -> Presence:
        return Presence(self.is_paused, self.tasks, (), self.revision)

    def take(self, asked: Asked) -> None:
        self.asked.append(asked)
        asked.answer(self._reply(asked.message))

    def drop(self, ask_id: bytes) -> None:
        self.dropped.append(ask_id)

    def welcomed(self, countersigned: str) -> None:
        self.countersigned.append(countersigned)

    def stamped(self, message: Message) -> Message:
        return message

    def deny(self, keys: frozenset[str]) -> None:
        self.denied |= keys

    def told(self, state: str, why: str = "") -> None:
        with self._told:
            self.states.append((state, why))
            self._told.notify_all()

    def wait_until(self, state: str, timeout: float = 20) -> str:
        """The reason that came with a state, as soon as it was told."""
        with self._told:
            if not self._told.wait_for(lambda: any(told == state for told, _ in self.states), timeout):
                raise AssertionError(f"never {state}: {self.states}")
            return next(why for told, why in self.states if told == state)


class Institution:
    """A node's link that runs in a loop of its own, or in one that is shared."""

    def __init__(self, member: Member, party: Any, loop: Loop | None = None, **options: Any) -> None:
        self._options = {"freshen": lambda member: None} | options
        self._own = loop is None
        self._is_stopped = False
        self.loop = loop or Loop()
        self.party = party
        self.member = member
        self.link: Link = self.loop.run(self._made())
        self._running = self.loop.submit(self.link.run())

    async def _made(self) -> Link:
        return Link(self.member, self.party, **self._options)

    def stop(self) -> None:
        """End it, once."""
        if self._is_stopped:
            return
        self._is_stopped = True
        self.loop.loop.call_soon_threadsafe(self.link.stop)
        self._running.result(20)
        if self._own:
            self.loop.close()


@contextmanager
def serving(authority: Authority | None = None, **options: Any) -> Iterator[Server]:
    """A server that is closed in the end."""
    server = Server(authority or Authority(), **options)
    try:
        yield server
    finally:
        server.close()


def wait_for(condition: Callable[[], bool], what: str, timeout: float = 20.0) -> None:
    """Return when the condition holds; for what offers no event of its own."""
    end = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"never: {what}")
        threading.Event().wait(0.01)


def echo(message: Message) -> Message:
    """The same content back."""
    return Message(message.content, reply_to=message)


def arrays_of(count: int) -> RecordDict:
    """One float32 array of so many values."""
    import numpy as np
    from privet.privacy.channel.arrays import to_record

    record: ArrayRecord = to_record({"w": np.arange(count, dtype=np.float32)})
    return RecordDict({"arrays": record})


logging.getLogger("grpc").setLevel(logging.ERROR)
