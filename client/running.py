"""A node that runs: its link, its party, and the file in which it says how it stands. It ends when it is asked to.

One process a home: a second one would answer for the same identity, and be refused by the server anyway.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ..privacy.alone import only_one
from ..privacy.channel.dial import bring_up_to_date
from ..privacy.channel.files import write_whole
from ..privacy.channel.member import Member
from ..privacy.channel.memory import keep_chunks
from ..privacy.errors import PrivetError
from ..privacy.home import Home
from ..privacy.metrics_page import MetricsPage
from ..privacy.service_manager import READY, STOPPING, status, tell_manager
from .health import BEAT_SECONDS, lock_of
from .link import Link
from .metrics import CountedParty, NodeMetrics, Tally
from .party import NodeParty

log = logging.getLogger("privet.node")

_LOOK_SECONDS = 0.25  # until a command such as `privet node pause` is seen


class RunningNode:
    """One node process. `stop_seconds`: how long an end waits for what is being trained.

    `metrics`: where the page of metrics is, `[HOST:]PORT`; none where it is not given.
    """

    def __init__(
        self, home: Home, member: Member, passphrase: bytes | None, stop_seconds: float, metrics: str | None = None
    ) -> None:
        self._home = home
        self._member = member
        self._passphrase = passphrase
        self._stop_seconds = stop_seconds
        self._metrics = metrics
        self._tally = Tally()
        self._has_news = True
        self._beat = 0.0

    async def run(self) -> None:
        """Serve until a signal asks to end, once gracefully, twice at once."""
        root = self._home.root
        with only_one(lock_of(self._home), f"{root}: a node runs here already", "privet node status"):
            keep_chunks()
            asked = _signals(asyncio.get_running_loop())
            self._home.status.unlink(missing_ok=True)  # of the process before this one
            party = await asyncio.to_thread(NodeParty, self._home, self._member, self._passphrase, self._note_news)
            page = self._page(party)
            link = Link(self._member, CountedParty(party, self._tally), freshen=_freshen, is_packing=party.packs)
            looking = asyncio.create_task(self._look(party, link))
            serving = asyncio.create_task(link.run())
            tell_manager(READY)
            try:
                ending = [serving, looking, asyncio.create_task(asked.wait())]
                await asyncio.wait(ending, return_when=asyncio.FIRST_COMPLETED)
            finally:
                tell_manager(STOPPING)
                await self._end(party, link, asked)
                is_looking = looking.cancel()
                await asyncio.gather(looking, serving, return_exceptions=True)
                self._write_status(party, "stopped")
                if page is not None:
                    await asyncio.to_thread(page.close)
                if not is_looking:
                    looking.result()  # raises: a node that sees no orders must not seem to have ended in order

    def _page(self, party: NodeParty) -> MetricsPage | None:
        if self._metrics is None:
            return None
        page = MetricsPage(self._metrics, NodeMetrics(self._home, self._member, party, self._tally))
        log.info("metrics at http://%s/metrics", page.address)
        return page

    async def _end(self, party: NodeParty, link: Link, asked: "_Asked") -> None:
        """Finish what has begun, and tell it; a second signal does not wait."""
        if asked.count == 1 and not link.is_idle:
            log.info(
                "finishing what has begun, for at most %g s; the same signal again ends at once", self._stop_seconds
            )
            party.is_stopping = True
            link.tell_presence()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(_idle(link, asked), self._stop_seconds)
        link.stop()
        await asyncio.to_thread(party.close, 0.0)

    async def _look(self, party: NodeParty, link: Link) -> None:
        while True:
            try:
                await self._look_once(party, link)
            except Exception:  # a defect in one look ends no node
                log.exception("a look at orders and settings ended by a defect")
            await asyncio.sleep(_LOOK_SECONDS)

    async def _look_once(self, party: NodeParty, link: Link) -> None:
        try:
            if await asyncio.to_thread(party.look):
                link.tell_presence()
                self._has_news = True
        except PrivetError as error:  # what was read before holds until it can be read again
            log.error("%s; try: %s", error.message, error.remedy)
        if self._has_news:
            self._has_news = False
            state, why = party.state, party.why  # it may be another when it is written; that is told next
            await asyncio.to_thread(self._write_status, party, state)
            tell_manager(status(f"{state} {why}".strip()))
        elif time.monotonic() >= self._beat:
            self._touch_status()

    def _note_news(self) -> None:
        self._has_news = True

    def _touch_status(self) -> None:
        """Show that the node has not hung: see health.py."""
        self._beat = time.monotonic() + BEAT_SECONDS
        with contextlib.suppress(OSError):
            os.utime(self._home.status)

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
            "peers": party.peers.trust,
            "withdrawn": list(party.orders.withdrawn),
            "pending": [
                {"run_id": one.run, "operator": one.operator, "since": one.since, "missing": list(roles)}
                for one, roles in party.pending
            ],
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


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
