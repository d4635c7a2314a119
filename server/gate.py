"""The gate, which every call on the main port passes: who calls, in which role, may they, are they a member still?

A method that no rule names is closed. TLS has asked for a certificate of the federation; the gate looks at the rest.
What fails behind it is told to the caller in a few words of its own: gRPC would send the text of the error.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import grpc
import grpc.aio

from ..privacy.channel.credentials import Peer, peer_of
from ..privacy.channel.identities import Role
from ..privacy.errors import ChannelError, DatabaseError

log = logging.getLogger("privet.server")

_MEMBERS = frozenset({Role.NODE, Role.OPERATOR, Role.AUDITOR})
_READERS = frozenset({Role.OPERATOR, Role.AUDITOR})
_OPERATORS = frozenset({Role.OPERATOR})
_NODES = frozenset({Role.NODE})
# Who may call what. A test holds it against every method of every service of the main port.
RULES: Mapping[str, frozenset[Role]] = {
    "/privet.v1.Nodes/Connect": _NODES,
    "/privet.v1.Nodes/Model": _NODES,
    "/privet.v1.Control/Submit": _OPERATORS,
    "/privet.v1.Control/Runs": _READERS,
    "/privet.v1.Control/Run": _READERS,
    "/privet.v1.Control/Watch": _READERS,
    "/privet.v1.Control/Stop": _OPERATORS,
    "/privet.v1.Control/Resume": _OPERATORS,
    "/privet.v1.Control/Model": _OPERATORS,
    "/privet.v1.Control/ListNodes": _READERS,
    "/privet.v1.Control/Witness": _READERS,
    "/privet.v1.Membership/Renew": _MEMBERS,
    "/privet.v1.Membership/Leave": _MEMBERS,
    "/grpc.health.v1.Health/Check": _MEMBERS,
    "/grpc.health.v1.Health/Watch": _MEMBERS,
}
# All that a caller learns; the log says more.
DATABASE_AWAY = "the server cannot reach its database at this moment; try again soon"
DEFECT = "a defect in the server; its log says more"
_peer: ContextVar[Peer] = ContextVar("peer")


class Roll(Protocol):
    """Who is a member: see members.py."""

    def check(self, peer: Peer, now: float) -> None:
        """Raise ChannelError, with the reason, unless the peer is a member in good standing."""
        ...


def peer(_: object) -> Peer:
    """Who made the call that is being served."""
    return _peer.get()


class Gate(grpc.aio.ServerInterceptor):
    """Lets a call through, or ends it with one short reason; the whole reason stands in the log."""

    def __init__(self, roll: Roll, refused: Callable[[str], None] = lambda method: None) -> None:
        self._roll = roll
        self._refused = refused
        self._streaming_calls: dict[asyncio.Task[Any], Peer] = {}

    def end_denied(self, denied: frozenset[str]) -> None:
        """End the calls that still stream to holders of these keys. Nodes' own streams are the hub's."""
        for task, found in list(self._streaming_calls.items()):
            if found.key_fingerprint in denied:
                log.warning("%s was revoked: its call ends", found.identity.uri)
                task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """See grpc.aio.ServerInterceptor: the handler, behind the gate."""
        handler = await continuation(handler_call_details)
        return None if handler is None else self._guarded(handler, str(handler_call_details.method))

    def _guarded(self, handler: Any, method: str) -> Any:
        if handler.response_streaming and not handler.request_streaming:
            make, behaviour = grpc.unary_stream_rpc_method_handler, self._streaming(handler.unary_stream, method)
        elif handler.response_streaming:
            make, behaviour = grpc.stream_stream_rpc_method_handler, self._plain(handler.stream_stream, method)
        else:
            make, behaviour = grpc.unary_unary_rpc_method_handler, self._plain(handler.unary_unary, method)
        return make(behaviour, handler.request_deserializer, handler.response_serializer)

    def _plain(self, behaviour: Any, method: str) -> Any:
        async def guarded(request: Any, context: Any) -> Any:
            async with _told_little(context, method):
                await self._admit(context, method)
                return await behaviour(request, context)

        return guarded

    def _streaming(self, behaviour: Any, method: str) -> Any:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            async with _told_little(context, method):
                await self._admit(context, method)
                task = asyncio.current_task()
                assert task is not None, "a call is served by a task"
                self._streaming_calls[task] = _peer.get()
                try:
                    async for response in behaviour(request, context):
                        yield response
                finally:
                    del self._streaming_calls[task]

        return guarded

    async def _admit(self, context: Any, method: str) -> None:
        try:
            found = peer_of(context.auth_context())
            if found.identity.role not in RULES.get(method, frozenset()):
                raise ChannelError(f"{found.identity.uri} may not call {method}", "ask the coordinator for that role")
            await asyncio.to_thread(self._roll.check, found, time.time())
        except DatabaseError:
            raise
        except ChannelError as error:
            log.warning("refused %s from %s: %s", method, context.peer(), error.message)
            self._refused(method)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{error.message}; {error.remedy}")
        _peer.set(found)


@asynccontextmanager
async def _told_little(context: Any, method: str) -> AsyncIterator[None]:
    """End the call with a neutral sentence where the database is away, or something fails that should not."""
    try:
        yield
    except DatabaseError as error:
        log.error("%s from %s cannot be served: %s", method, context.peer(), error.message)
        await context.abort(grpc.StatusCode.UNAVAILABLE, DATABASE_AWAY)
    except Exception as error:
        if isinstance(error, grpc.aio.AbortError):
            raise
        log.exception("%s from %s failed", method, context.peer())
        await context.abort(grpc.StatusCode.INTERNAL, DEFECT)
