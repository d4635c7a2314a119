"""A command's way to the server: the member's certificate is brought up to date first, then a channel is opened."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from ..budget.ledger import Clock, system_clock
from ..errors import ChannelError
from . import privet_pb2 as pb
from .credentials import channel_credentials, enrolment_credentials
from .member import Member
from .renewal import challenge_request, renewal_request, return_request
from .services import callable_of

log = logging.getLogger("privet.channel")

SECONDS = 20.0  # for one small call; a handshake takes milliseconds, a slow line some seconds
_OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 << 20),  # a page of runs; files come in parts of 1 MiB
)
_WRONG_TIME = ("certificate is not yet valid", "certificate has expired")  # BoringSSL's own words


def dial(member: Member, clock: Clock = system_clock) -> grpc.Channel:
    """A channel to the federation's server, with a good certificate; raise ChannelError where there is no way."""
    bring_up_to_date(member, clock)
    return grpc.secure_channel(member.address, channel_credentials(member), _OPTIONS)


def bring_up_to_date(member: Member, clock: Clock = system_clock) -> bool:
    """Renew the member's certificate where that is due, and say whether it was. It waits for the network.

    Where a certificate is still good, a server that cannot be reached or a full disk is not an error yet.
    """
    now = clock()
    if member.is_expired(now):
        _come_back(member, clock)
        return True
    if not member.is_renewal_due(now):
        return False
    try:
        with grpc.secure_channel(member.address, channel_credentials(member), _OPTIONS) as channel:
            reply: pb.Certificates = _call(channel, "Membership", "Renew", renewal_request(member), member.address)
    except ChannelError as error:
        log.warning("the certificate could not be renewed: %s", error.message)
        return False
    try:
        member.keep_chain(reply.chain, clock())
    except OSError as error:
        log.warning("the renewed certificate could not be written: %s", error)
        return False
    return True


def _come_back(member: Member, clock: Clock) -> None:
    address = member.enrolment_address
    with grpc.secure_channel(address, enrolment_credentials(member.root), _OPTIONS) as channel:
        nonce: bytes = _call(channel, "Enrolment", "Challenge", challenge_request(member), address).nonce
        reply: pb.Certificates = _call(channel, "Enrolment", "Return", return_request(member, nonce), address)
    member.keep_chain(reply.chain, clock())


@contextmanager
def errors_of(address: str) -> Iterator[None]:
    """Turn gRPC's errors into ChannelErrors, which name the address."""
    try:
        yield
    except grpc.RpcError as error:
        raise channel_error(error, address) from None


def channel_error(error: grpc.RpcError, address: str) -> ChannelError:
    """What a failed call means, and what to do."""
    code, details = error.code(), " ".join(str(error.details() or "").split())[:300]
    if code is grpc.StatusCode.UNAVAILABLE and any(words in details for words in _WRONG_TIME):
        return ChannelError(
            f"the certificate of {address} is not valid at this machine's time, {system_clock():%Y-%m-%d %H:%M} UTC",
            "set the clock (NTP); where it is right, ask the coordinator to look at the server's",
        )
    if code is grpc.StatusCode.UNAVAILABLE:
        return ChannelError(
            f"{address} cannot be reached: {details}", "see that the server runs and that the firewall lets you out"
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return ChannelError(f"{address} gave no answer within {SECONDS:g} s", "the same command again")
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return ChannelError(f"{address} asks to wait: {details}", "the same command in a minute")
    if code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED):
        return ChannelError(f"{address} refused: {details}", "ask the coordinator, whose log names the reason")
    return ChannelError(f"{address} answered {code.name}: {details}", "ask the coordinator, whose log says more")


def _call(channel: grpc.Channel, service: str, method: str, request: object, address: str) -> Any:
    with errors_of(address):
        return callable_of(channel, service, method)(request, timeout=SECONDS)
