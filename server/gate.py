"""The gate, which every call on the main port passes: who calls, are they a member still, does the policy permit it?

A method that is no question to the policy is closed (questions.py). TLS has asked for a certificate of the federation;
the gate looks at the rest. What fails behind it is told to the caller in a few words of its own: gRPC would send the
text of the error.
"""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import grpc
import grpc.aio

from ..privacy.channel.credentials import Peer, peer_of
from ..privacy.errors import ChannelError, DatabaseError, FederationError, PrivetError, RefusedError, UsageError

log = logging.getLogger("privet.server")

# All that a caller learns; the log says more.
DATABASE_AWAY = "the server cannot reach its database at this moment; try again soon"
DEFECT = "a defect in the server; its log says more"
ERROR_KEY = "privet-error-bin"  # trailing metadata: JSON with message, remedy, code and exit
_peer: ContextVar[Peer] = ContextVar("peer")


class Roll(Protocol):
    """Who is a member: see members.py."""

    def check(self, peer: Peer, now: float) -> None:
        """Raise ChannelError, with the reason, unless the peer is a member in good standing."""
        ...


def peer(_: object) -> Peer:
    """Who made the call that is being served."""
    return _peer.get()


class Policy(Protocol):
    """What the federation permits: see policy.py."""

    def check(self, peer: Peer, method: str, request: Any) -> None:
        """Raise RefusedError for a denial, ChannelError for a closed method, or what is wrong with the request."""
        ...


class Gate(grpc.aio.ServerInterceptor):
    """Lets a call through, or ends it with one short reason; the whole reason stands in the log."""

    def __init__(self, roll: Roll, policy: Policy, refused: Callable[[str], None] = lambda method: None) -> None:
        self._roll = roll
        self._policy = policy
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
                await self._admit(context, method, request)
                return await behaviour(request, context)

        return guarded

    def _streaming(self, behaviour: Any, method: str) -> Any:
        async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
            async with _told_little(context, method):
                await self._admit(context, method, request)
                task = asyncio.current_task()
                assert task is not None, "a call is served by a task"
                self._streaming_calls[task] = _peer.get()
                try:
                    async for response in behaviour(request, context):
                        yield response
                finally:
                    del self._streaming_calls[task]

        return guarded

    async def _admit(self, context: Any, method: str, request: Any) -> None:
        try:
            found = peer_of(context.auth_context())
            await asyncio.to_thread(self._check, found, method, request)
        except DatabaseError:
            raise
        except ChannelError as error:
            log.warning("refused %s from %s: %s", method, context.peer(), error.message)
            self._refused(method)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"{error.message}; {error.remedy}")
        except RefusedError as error:
            log.warning("refused %s from %s: %s: %s", method, context.peer(), found.identity.uri, error.message)
            self._refused(method)
            await tell(context, error, grpc.StatusCode.PERMISSION_DENIED)
        except PrivetError as error:
            await tell(context, error)
        _peer.set(found)

    def _check(self, found: Peer, method: str, request: Any) -> None:
        self._roll.check(found, time.time())
        try:
            self._policy.check(found, method, request)
        except FederationError as error:  # so the book of runs says that the database is away
            raise DatabaseError(error.message, error.remedy) from None


async def tell(context: Any, error: PrivetError, status: grpc.StatusCode | None = None) -> None:
    """End a call with an error that its caller may read: a status for programs, a sentence and a remedy for people."""
    code = str(error.code) if isinstance(error, RefusedError) else ""
    told = {"message": error.message[:1500], "remedy": error.remedy[:500], "code": code, "exit": error.exit_code}
    context.set_trailing_metadata(((ERROR_KEY, json.dumps(told).encode()),))
    details = " ".join(f"{error.message}; {error.remedy}".split())[:1000]
    await context.abort(_status(error) if status is None else status, details)


def _status(error: PrivetError) -> grpc.StatusCode:
    if isinstance(error, UsageError):
        return grpc.StatusCode.INVALID_ARGUMENT
    if isinstance(error, RefusedError):
        return grpc.StatusCode.FAILED_PRECONDITION
    return grpc.StatusCode.ABORTED


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
