"""The gRPC service Control, by which operators and auditors use the server. Whether they may, the gate has asked.

Nothing here blocks the event loop: the database, files and accountants are asked in threads. An error goes back as a
status for programs, and as one sentence and one remedy for people (privacy/channel/control_client.py prints them).
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel.credentials import Peer
from ..privacy.channel.services import handlers_of
from ..privacy.errors import ChannelError, DatabaseError, PrivetError, UsageError
from ..privacy.signed import SignedSubmission
from .gate import tell
from .run_book import MOST_LISTED
from .run_notices import Onlooker
from .run_record import RunEvent, RunRecord
from .run_views import View, event_view, line_of, page_of
from .runs import Runs

log = logging.getLogger("privet.server")

PART_BYTES = 2**20  # of a file, in one message
MOST_ONLOOKERS = 256  # each holds a stream and a thread's turn for every event
VIEW_SECONDS = 2.0  # between two pages of a run to one who follows it: each may cost an accountant 50 ms

_Result = TypeVar("_Result")
Watching = Callable[[Peer], Callable[[RunRecord], bool]]
Context = Any  # grpc.aio.ServicerContext, which is generic in types that no handler reads


class Nodes(Protocol):
    """Who is connected."""

    def nodes(self) -> Sequence[Mapping[str, Any]]:
        """A page for each node that is a member: docs/runs.md lists the keys."""
        ...


class WitnessFiles(Protocol):
    """What the server remembers of the nodes' ledgers."""

    def witness_file(self, node: str) -> Path | None:
        """The file for an auditor; None where nothing was witnessed."""
        ...


class Control:
    """The service. `peer`: who made the call that is being served; `watching`: whether one may watch a run."""

    def __init__(
        self, runs: Runs, nodes: Nodes, witnesses: WitnessFiles, peer: Callable[[Any], Peer], watching: Watching
    ) -> None:
        self._runs = runs
        self._nodes = nodes
        self._witnesses = witnesses
        self._peer = peer
        self._watching = watching
        self._onlookers = 0

    async def Submit(self, request: pb.SubmitRequest, context: Context) -> pb.View:  # noqa: N802
        """Enter a signed submission and begin its run."""
        signed = SignedSubmission(request.submission, request.signature, request.certificates)
        async with self._served("Submit", context) as peer:
            record = await asyncio.to_thread(self._runs.submit, signed, peer.identity.name)
            return await self._page(record)

    async def Runs(self, _: pb.Nothing, context: Context) -> pb.View:  # noqa: N802
        """The runs that the caller may watch, newest first."""
        async with self._served("Runs", context) as peer:
            return _view({"runs": await asyncio.to_thread(self._lines, peer)})

    async def Run(self, request: pb.RunRequest, context: Context) -> pb.View:  # noqa: N802
        """One run."""
        async with self._served("Run", context):
            return await self._page(await asyncio.to_thread(self._runs.book.record, request.run_id))

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.View]:  # noqa: N802
        """The events of a run after a number; with `follow` also what comes, until the run has ended."""
        async with self._served("Watch", context):
            await asyncio.to_thread(self._runs.book.record, request.run_id)  # or an error
            async with self._looking_on(request.run_id) as (onlooker, woken):
                async for view in self._told(request, onlooker, woken):
                    yield _view(view)

    async def Stop(self, request: pb.RunRequest, context: Context) -> pb.View:  # noqa: N802
        """Stop a run; what was done is kept."""
        async with self._served("Stop", context) as peer:
            log.info("run %s: operator %s stops it", request.run_id[:64], peer.identity.name)
            return await self._page(await asyncio.to_thread(self._runs.stop, request.run_id, peer.identity.name))

    async def Resume(self, request: pb.RunRequest, context: Context) -> pb.View:  # noqa: N802
        """Go on with a run that was stopped or has failed."""
        async with self._served("Resume", context) as peer:
            log.info("run %s: operator %s resumes it", request.run_id[:64], peer.identity.name)
            return await self._page(await asyncio.to_thread(self._runs.resume, request.run_id, peer.identity.name))

    async def Model(self, request: pb.RunRequest, context: Context) -> AsyncIterator[pb.Part]:  # noqa: N802
        """The trained model's file."""
        async with self._served("Model", context):
            async for part in parts_of(await asyncio.to_thread(self._runs.model_file, request.run_id)):
                yield pb.Part(content=part)

    async def ListNodes(self, _: pb.Nothing, context: Context) -> pb.View:  # noqa: N802
        """Who is connected."""
        async with self._served("ListNodes", context):
            return _view({"nodes": [dict(node) for node in await asyncio.to_thread(self._nodes.nodes)]})

    async def Witness(self, request: pb.WitnessRequest, context: Context) -> AsyncIterator[pb.Part]:  # noqa: N802
        """What the server remembers of a node's ledger."""
        async with self._served("Witness", context):
            path = await asyncio.to_thread(self._witnesses.witness_file, request.node)
            if path is None:
                raise UsageError(f"no ledger of a node {request.node[:64]} was witnessed", "privet node list")
            async for part in parts_of(path):
                yield pb.Part(content=part)

    @asynccontextmanager
    async def _served(self, method: str, context: Context) -> AsyncIterator[Peer]:
        """Who calls; and every error as its caller can read it."""
        try:
            yield self._peer(context)
        except DatabaseError:
            raise  # the gate says it in words of its own
        except ChannelError as error:
            log.warning("refused %s from %s: %s", method, context.peer(), error.message)
            await tell(context, error, grpc.StatusCode.PERMISSION_DENIED)
        except PrivetError as error:
            await tell(context, error)
        except Exception as error:
            if isinstance(error, grpc.aio.AbortError):
                raise
            log.exception("%s failed", method)
            defect = PrivetError("a defect in the server", "see its log")
            await tell(context, defect, grpc.StatusCode.INTERNAL)

    @asynccontextmanager
    async def _looking_on(self, run_id: str) -> AsyncIterator[tuple[Onlooker, asyncio.Event]]:
        if self._onlookers >= MOST_ONLOOKERS:
            raise UsageError(f"{MOST_ONLOOKERS} follow runs at this moment, which is the most", "privet run show")
        woken, loop = asyncio.Event(), asyncio.get_running_loop()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(woken.set)

        onlooker = self._runs.notices.look_on(run_id, wake)
        self._onlookers += 1
        try:
            yield onlooker, woken
        finally:
            self._onlookers -= 1
            self._runs.notices.look_away(run_id, onlooker)

    async def _told(self, request: pb.WatchRequest, onlooker: Onlooker, woken: asyncio.Event) -> AsyncIterator[View]:
        """Notices in passing, events, and now and then the run's page: with `follow` until it has ended."""
        after, is_page_due, clock = request.after, True, asyncio.get_running_loop().time
        next_page = clock()
        while True:
            woken.clear()
            notices = onlooker.read()
            record, events = await asyncio.to_thread(self._news, request.run_id, after)
            for notice in notices:
                yield {"notice": notice}
            for event in events:
                after = event.number
                yield {"event": event_view(event)}
            is_page_due = is_page_due or bool(events)
            has_all = len(events) < MOST_LISTED and record.events <= after
            is_last = has_all and (record.has_ended or not request.follow)
            if is_page_due and (is_last or clock() >= next_page):
                yield {"run": await asyncio.to_thread(page_of, self._runs.book, record)}
                is_page_due, next_page = False, clock() + VIEW_SECONDS
            if is_last:
                for notice in onlooker.read():  # told while the last events were read
                    yield {"notice": notice}
                return
            if has_all:
                await _until(woken, next_page - clock() if is_page_due else None)

    def _lines(self, peer: Peer) -> list[View]:
        may_watch = self._watching(peer)
        return [line_of(record) for record in self._runs.book.records() if may_watch(record)]

    def _news(self, run_id: str, after: int) -> tuple[RunRecord, list[RunEvent]]:
        """The events first: a run that has ended by then has told them all, or `record.events` says that more came."""
        events = self._runs.book.events(run_id, after)
        return self._runs.book.record(run_id), events

    async def _page(self, record: RunRecord) -> pb.View:
        return _view(await asyncio.to_thread(page_of, self._runs.book, record))


def control_handler(control: Control) -> grpc.GenericRpcHandler:
    """The service, for a grpc.aio server."""
    return handlers_of("Control", control)


async def parts_of(path: Path) -> AsyncIterator[bytes]:
    """A file in parts of `PART_BYTES`."""
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while part := await asyncio.to_thread(file.read, PART_BYTES):
            yield part
    finally:
        file.close()


async def _until(woken: asyncio.Event, seconds: float | None) -> None:
    try:
        await asyncio.wait_for(woken.wait(), None if seconds is None else max(seconds, 0.0))
    except TimeoutError:
        return


def _view(content: View) -> pb.View:
    return pb.View(json=json.dumps(content))
