"""The two gRPC services that certify: Enrolment, open to whoever holds a token, and Membership, for members.

    Enrolment    own port, TLS without a client's certificate    Join; Challenge and Return
    Membership   main port, mutual TLS                           Renew; Leave

The rules:
1. Whatever is wrong, the caller learns the same few words: a token that is unknown, used, expired or altered looks
   alike. The reason is logged here, and no log holds a secret.
2. Every message has a largest size, and whoever fails often waits.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NoReturn
from urllib.parse import unquote

import grpc
import grpc.aio

from ..privacy.budget.ledger import Clock, system_clock
from ..privacy.channel import privet_pb2 as pb
from ..privacy.channel.credentials import insist_on_tls, peer_of
from ..privacy.channel.services import handlers_of
from ..privacy.errors import DatabaseError, PrivetError
from .gate import DATABASE_AWAY, DEFECT
from .registrar import Registrar

log = logging.getLogger("privet.server.enrolment")

LARGEST_MESSAGE = 16 << 10  # bytes; a return takes under 2 KiB
OPTIONS = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_concurrent_streams", 16),
    ("grpc.max_connection_age_ms", 60_000),  # whoever enrols is done within seconds
    ("grpc.max_connection_age_grace_ms", 5_000),
)
NOT_ACCEPTED = "the token was not accepted"
NOT_CERTIFIED = "the certificate was not accepted"
_FAILURES_AT_ONCE = 20
_FAILURES_A_SECOND = 0.2  # tokens cannot be guessed; this spares the log and the database
_MOST_HOSTS = 4096  # whose failures are remembered

Context = grpc.aio.ServicerContext[Any, Any]


class Failures:
    """How often a host may fail: a bucket of tokens for each, refilled slowly."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._hosts: OrderedDict[str, tuple[float, float]] = OrderedDict()  # host -> failures left, when

    def are_too_many(self, host: str) -> bool:
        """Whether this host has to wait."""
        return self._left(host) < 1

    def count(self, host: str) -> None:
        """Remember a failure of this host."""
        self._hosts[host] = (self._left(host) - 1, self._clock().timestamp())
        self._hosts.move_to_end(host)
        if len(self._hosts) > _MOST_HOSTS:
            self._hosts.popitem(last=False)

    def _left(self, host: str) -> float:
        now = self._clock().timestamp()
        left, then = self._hosts.get(host, (float(_FAILURES_AT_ONCE), now))
        return min(float(_FAILURES_AT_ONCE), left + max(0.0, now - then) * _FAILURES_A_SECOND)


class Enrolment:
    """The service at the enrolment port."""

    def __init__(self, registrar: Registrar, clock: Clock = system_clock) -> None:
        self._registrar = registrar
        self._clock = clock
        self._failures = Failures(clock)

    async def Join(self, request: pb.JoinRequest, context: Context) -> pb.Certificates:  # noqa: N802
        """A certificate for a token."""
        chain = await self._guarded(context, "join", NOT_ACCEPTED, self._registrar.join, request.secret, request.csr)
        return pb.Certificates(chain=chain, clock=self._clock().timestamp())

    async def Challenge(self, request: pb.ChallengeRequest, context: Context) -> pb.ChallengeReply:  # noqa: N802
        """A nonce for a member whose certificate ended."""
        nonce = await self._guarded(context, "challenge", NOT_CERTIFIED, self._registrar.challenge, request.certificate)
        return pb.ChallengeReply(nonce=nonce)

    async def Return(self, request: pb.ReturnRequest, context: Context) -> pb.Certificates:  # noqa: N802
        """A certificate for a signed nonce."""
        chain = await self._guarded(
            context,
            "return",
            NOT_CERTIFIED,
            self._registrar.come_back,
            request.certificate,
            request.nonce,
            request.signature,
            request.csr,
        )
        return pb.Certificates(chain=chain, clock=self._clock().timestamp())

    async def _guarded(
        self, context: Context, what: str, refusal: str, act: Callable[..., bytes], *arguments: bytes
    ) -> bytes:
        host = host_of(context.peer())
        if self._failures.are_too_many(host):
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many failures from this address")
        try:
            insist_on_tls(context.auth_context())
            return await asyncio.to_thread(act, *arguments)
        except DatabaseError as error:
            await refuse(context, what, error, refusal)
        except PrivetError as error:
            self._failures.count(host)
            await refuse(context, what, error, refusal)
        except Exception:  # gRPC would send its text to a stranger
            log.exception("%s for %s failed", what, host)
            await context.abort(grpc.StatusCode.INTERNAL, DEFECT)
        raise AssertionError("abort raises")


class Membership:
    """The service at the main port."""

    def __init__(self, registrar: Registrar, clock: Clock = system_clock) -> None:
        self._registrar = registrar
        self._clock = clock

    async def Renew(self, request: pb.RenewRequest, context: Context) -> pb.Certificates:  # noqa: N802
        """Another certificate for a member."""
        try:
            chain = await asyncio.to_thread(self._registrar.renew, peer_of(context.auth_context()), request.csr)
        except PrivetError as error:
            await refuse(context, "renew", error, NOT_CERTIFIED)
        return pb.Certificates(chain=chain, clock=self._clock().timestamp())

    async def Leave(self, _: pb.Nothing, context: Context) -> pb.Nothing:  # noqa: N802
        """The end of a membership."""
        try:
            peer = peer_of(context.auth_context())
            await asyncio.to_thread(self._registrar.leave, peer)
        except PrivetError as error:
            await refuse(context, "leave", error, NOT_CERTIFIED)
        log.info("%s left the federation", peer.identity.uri)
        return pb.Nothing()


def enrolment_handlers(registrar: Registrar, clock: Clock = system_clock) -> grpc.GenericRpcHandler:
    """For the server at the enrolment port, made with OPTIONS."""
    return handlers_of("Enrolment", Enrolment(registrar, clock))


def membership_handlers(registrar: Registrar, clock: Clock = system_clock) -> grpc.GenericRpcHandler:
    """For the server at the main port."""
    return handlers_of("Membership", Membership(registrar, clock))


async def refuse(context: Context, what: str, error: PrivetError, words: str) -> NoReturn:
    """Log the reason, and end the call with a few words that tell nothing."""
    if isinstance(error, DatabaseError):
        log.error("could not %s for %s: %s", what, host_of(context.peer()), error.message)
        await context.abort(grpc.StatusCode.UNAVAILABLE, DATABASE_AWAY)
    log.warning("refused to %s for %s: %s", what, host_of(context.peer()), error.message)
    await context.abort(grpc.StatusCode.PERMISSION_DENIED, words)
    raise AssertionError("abort raises")


def host_of(peer: str) -> str:
    """The host in what gRPC calls a peer: `ipv4:192.0.2.1:41234`, `ipv6:%5B::1%5D:41234`."""
    return unquote(peer).partition(":")[2].rpartition(":")[0] or peer
