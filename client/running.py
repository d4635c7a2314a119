"""A node that runs: its link, its party, and the file in which it says how it stands. It ends when it is asked to.

One process a home: a second one would answer for the same identity, and be refused by the server anyway.
"""

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..privacy.channel.dial import bring_up_to_date
from ..privacy.channel.files import write_whole
from ..privacy.channel.member import Member
from ..privacy.errors import PrivetError, UsageError
from ..privacy.home import Home
from .link import Link
from .party import NodeParty

log = logging.getLogger("privet.node")

_LOOK_SECONDS = 0.25  # until a command such as `privet node pause` is seen


class RunningNode:
    """One node process. `stop_seconds`: how long an end waits for what is being trained."""

    def __init__(self, home: Home, member: Member, passphrase: bytes | None, stop_seconds: float) -> None:
        self._home = home
        self._member = member
        self._passphrase = passphrase
        self._stop_seconds = stop_seconds
        self._has_news = True

    async def run(self) -> None:
        """Serve until a signal asks to end, once gracefully, twice at once."""
        with _only_one(self._home.root / "node.lock"):
            asked = _signals(asyncio.get_running_loop())
            party = await asyncio.to_thread(NodeParty, self._home, self._member, self._passphrase, self._note_news)
            link = Link(self._member, party, freshen=_freshen, is_packing=party.packs)
            looking = asyncio.create_task(self._look(party, link))
            serving = asyncio.create_task(link.run())
            try:
                await asyncio.wait([serving, asyncio.create_task(asked.wait())], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await self._end(party, link, asked)
                looking.cancel()
                await asyncio.gather(looking, serving, return_exceptions=True)
                self._write_status(party, "stopped")

    async def _end(self, party: NodeParty, link: Link, asked: "_Asked") -> None:
        """Finish what has begun, and tell it; a second signal does not wait."""
        busy = any(work.is_busy for work in party.works())
        if busy and asked.count == 1:
            log.info(
                "finishing what has begun, for at most %g s; the same signal again ends at once", self._stop_seconds
            )
            party.orders = type(party.orders)(True, party.orders.withdrawn)
            link.tell_presence()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_idle(link, asked), self._stop_seconds)
        link.stop()
        await asyncio.to_thread(party.close, 0.0)

    async def _look(self, party: NodeParty, link: Link) -> None:
        while True:
            try:
                if await asyncio.to_thread(party.look):
                    link.tell_presence()
                    self._has_news = True
            except PrivetError as error:  # what was read before holds until it can be read again
                log.error("%s; try: %s", error.message, error.remedy)
            if self._has_news:
                self._has_news = False
                await asyncio.to_thread(self._write_status, party, party.state)
            await asyncio.sleep(_LOOK_SECONDS)

    def _note_news(self) -> None:
        self._has_news = True

    def _write_status(self, party: NodeParty, state: str) -> None:
        presence = party.presence()
        told: dict[str, Any] = {
            "pid": os.getpid(),
            "state": state,
            "why": party.why,
            "since": _text(party.since),
            "is_paused": party.orders.is_paused,
            "is_behind": party.is_behind,
            "tasks": presence.tasks,
            "apps": list(presence.apps),
            "operators": party.operators.trust,
            "withdrawn": list(party.orders.withdrawn),
            "runs": [asdict(work) for work in party.works()],
            "certificate_expires": self._member.certificate.not_after.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        with contextlib.suppress(PrivetError, OSError):  # a full disk: the node goes on, and its log says why
            write_whole(self._home.status, json.dumps(told, indent=1).encode() + b"\n")


def _freshen(member: Member) -> None:
    bring_up_to_date(member)


class _Asked:
    """How often it was asked to end."""

    def __init__(self) -> None:
        self.count = 0
        self._event = asyncio.Event()

    def ask(self) -> None:
        """Once more."""
        self.count += 1
        self._event.set()

    async def wait(self) -> None:
        """Until it is asked for the first time."""
        await self._event.wait()


def _signals(loop: asyncio.AbstractEventLoop) -> _Asked:
    asked = _Asked()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.ask)
    return asked


async def _idle(link: Link, asked: _Asked) -> None:
    """Until every answer was taken, or somebody is in a hurry."""
    while not link.is_idle and asked.count < 2:
        await asyncio.sleep(_LOOK_SECONDS)


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """This home's lock, as long as the process lives; raise UsageError where another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(f"{path.parent}: a node runs here already", "privet node status") from None
    try:
        yield
    finally:
        os.close(descriptor)


def is_running(home: Home) -> bool:
    """Whether a node runs in this home."""
    path = home.root / "node.lock"
    if not path.exists():
        return False
    descriptor = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
