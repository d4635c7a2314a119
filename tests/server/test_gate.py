"""The gate: every method of the main port has a rule, and whoever may not call is told one short reason."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import grpc
import grpc.aio
import pytest
from channel import Authority, OpenRoll
from grpc_health.v1 import health_pb2
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.credentials import Peer
from privet.privacy.channel.identities import Identity, IdentityKey, Role
from privet.privacy.errors import DatabaseError
from privet.server.gate import DATABASE_AWAY, DEFECT, RULES, Gate, peer

MAIN_PORT = ("Nodes", "Control", "Membership")
MEMBERS = {Role.NODE, Role.OPERATOR, Role.AUDITOR}
# As DESIGN has it, written down a second time: who may call what.
MAY = {
    "Nodes": {"Connect": {Role.NODE}, "Model": {Role.NODE}},
    "Control": {
        **{name: {Role.OPERATOR} for name in ("Submit", "Stop", "Resume", "Model")},
        **{name: {Role.OPERATOR, Role.AUDITOR} for name in ("Runs", "Run", "Watch", "ListNodes", "Witness")},
    },
    "Membership": {"Renew": MEMBERS, "Leave": MEMBERS},
}
EXPECTED = {f"/privet.v1.{service}/{name}": roles for service, names in MAY.items() for name, roles in names.items()}
EXPECTED |= {f"/grpc.health.v1.Health/{name}": MEMBERS for name in ("Check", "Watch")}


class AbortedError(grpc.aio.AbortError):
    """What gRPC raises where a call is ended."""


class Call:
    """A call as gRPC shows it to a server, with the peer's certificate."""

    def __init__(self, certificate: bytes, tls: bytes = b"TLSv1.3") -> None:
        self._certificate = certificate
        self._tls = tls
        self.ended_with: tuple[grpc.StatusCode, str] | None = None

    def auth_context(self) -> Mapping[str, list[bytes]]:
        certificate = {"x509_pem_cert": [self._certificate]} if self._certificate else {}
        return {**certificate, "ssl_tls_version": [self._tls]}

    def peer(self) -> str:
        return "ipv4:192.0.2.7:999"

    async def abort(self, code: grpc.StatusCode, details: str) -> None:
        self.ended_with = (code, details)
        raise AbortedError(details)


class Behind:
    """What stands behind the gate: notes who came through."""

    def __init__(self) -> None:
        self.served: list[str] = []

    async def unary(self, request: bytes, context: Any) -> bytes:
        self.served.append(peer(context).identity.name)
        return request

    async def stream(self, request: bytes, context: Any) -> Any:
        self.served.append(peer(context).identity.name)
        yield request
        yield request


class _Details(grpc.HandlerCallDetails):  # type: ignore[misc]
    def __init__(self, method: str) -> None:
        self.method = method
        self.invocation_metadata = ()


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def certificates(authority: Authority) -> dict[Role, bytes]:
    return {role: certificate_of(authority, role) for role in (*MEMBERS, Role.SERVER)}


def certificate_of(authority: Authority, role: Role) -> bytes:
    key = IdentityKey.generate()
    identity = Identity(authority.federation, role, f"some-{role}")
    hosts = ["127.0.0.1"] if role is Role.SERVER else []
    return authority.issuer.issue(identity, key.csr(), datetime.now(UTC), hosts=hosts)


def called(gate: Gate, behind: Behind, method: str, call: Call, is_streaming: bool = False) -> list[bytes]:
    """What the caller gets; raises AbortedError."""

    async def story() -> list[bytes]:
        async def find(_: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            if is_streaming:
                return grpc.unary_stream_rpc_method_handler(behind.stream)
            return grpc.unary_unary_rpc_method_handler(behind.unary)

        handler = await gate.intercept_service(find, _Details(method))
        if is_streaming:
            return [response async for response in handler.unary_stream(b"asked", call)]
        return [await handler.unary_unary(b"asked", call)]

    return asyncio.run(story())


def methods() -> Iterator[str]:
    services = pb.DESCRIPTOR.services_by_name
    for service in MAIN_PORT:
        yield from (f"/{services[service].full_name}/{method.name}" for method in services[service].methods)
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    yield from (f"/{health.full_name}/{method.name}" for method in health.methods if method.name != "List")


def test_every_method_of_the_main_port_has_a_rule_and_nothing_else_has() -> None:
    assert set(pb.DESCRIPTOR.services_by_name) == {*MAIN_PORT, "Enrolment"}
    assert set(RULES) == set(methods()) == set(EXPECTED)


@pytest.mark.parametrize("method", sorted(EXPECTED))
@pytest.mark.parametrize("role", sorted(Role))
def test_each_role_gets_what_it_may_and_nothing_else(
    method: str, role: Role, certificates: dict[Role, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    refused: list[None] = []
    gate, behind, call = Gate(OpenRoll(), lambda *_: refused.append(None)), Behind(), Call(certificates[role])
    if role in EXPECTED[method]:
        assert called(gate, behind, method, call) == [b"asked"]
        assert (behind.served, refused) == ([f"some-{role}"], [])
        return
    with caplog.at_level(logging.WARNING, "privet.server"), pytest.raises(AbortedError):
        called(gate, behind, method, call)
    assert (behind.served, len(refused)) == ([], 1)
    assert call.ended_with is not None
    assert call.ended_with[0] is grpc.StatusCode.PERMISSION_DENIED
    assert f"refused {method} from ipv4:192.0.2.7:999" in caplog.text


@pytest.mark.parametrize("method", ["/privet.v1.Control/Delete", "/grpc.health.v1.Health/List", "/a.b/C", ""])
def test_method_without_a_rule_is_closed_to_all(method: str, certificates: dict[Role, bytes]) -> None:
    for role in MEMBERS:
        with pytest.raises(AbortedError):
            called(Gate(OpenRoll()), Behind(), method, Call(certificates[role]))


def test_streaming_call_passes_the_gate_before_its_first_answer(certificates: dict[Role, bytes]) -> None:
    behind = Behind()
    watch = "/privet.v1.Control/Watch"
    assert (
        called(Gate(OpenRoll()), behind, watch, Call(certificates[Role.AUDITOR]), is_streaming=True) == [b"asked"] * 2
    )
    with pytest.raises(AbortedError):
        called(Gate(OpenRoll()), behind, watch, Call(certificates[Role.NODE]), is_streaming=True)
    assert behind.served == ["some-auditor"]


@pytest.mark.parametrize(("certificate", "tls"), [(b"", b"TLSv1.3"), (b"rubbish", b"TLSv1.3"), (b"good", b"TLSv1.2")])
def test_call_without_certificate_or_over_old_tls_is_refused(
    certificate: bytes, tls: bytes, certificates: dict[Role, bytes]
) -> None:
    call = Call(certificates[Role.NODE] if certificate == b"good" else certificate, tls)
    with pytest.raises(AbortedError):
        called(Gate(OpenRoll()), Behind(), "/privet.v1.Nodes/Connect", call)
    assert call.ended_with is not None
    assert call.ended_with[0] is grpc.StatusCode.PERMISSION_DENIED


def test_revoked_member_is_refused_with_the_reason(authority: Authority) -> None:
    key, roll = IdentityKey.generate(), OpenRoll()
    chain = authority.issuer.issue(Identity(authority.federation, Role.NODE, "gone"), key.csr(), datetime.now(UTC))
    roll.deny(key.fingerprint)
    call = Call(chain)
    with pytest.raises(AbortedError):
        called(Gate(roll), Behind(), "/privet.v1.Nodes/Connect", call)
    assert call.ended_with is not None
    assert "gone was revoked" in call.ended_with[1]


class NoRoll:
    """A roll whose database is away."""

    def check(self, peer: Peer, now: float) -> None:
        raise DatabaseError("connection to server at 192.0.2.9 failed for user privet", "see that it runs")


@pytest.mark.parametrize(("method", "is_streaming"), [("Runs", False), ("Watch", True)])
def test_database_that_is_away_is_no_refusal_and_its_words_stay_in_the_log(
    method: str, is_streaming: bool, certificates: dict[Role, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    refused: list[str] = []
    call = Call(certificates[Role.AUDITOR])
    with pytest.raises(AbortedError):
        called(Gate(NoRoll(), refused.append), Behind(), f"/privet.v1.Control/{method}", call, is_streaming)
    assert call.ended_with == (grpc.StatusCode.UNAVAILABLE, DATABASE_AWAY)
    assert refused == []
    assert "192.0.2.9 failed for user privet" in caplog.text


@pytest.mark.parametrize(("method", "is_streaming"), [("Runs", False), ("Watch", True)])
def test_what_a_defect_says_stays_in_the_log(
    method: str, is_streaming: bool, certificates: dict[Role, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    class Defective(Behind):
        async def unary(self, request: bytes, context: Any) -> bytes:
            raise OSError("/srv/privet/server.sqlite: no room")

        async def stream(self, request: bytes, context: Any) -> Any:
            yield await self.unary(request, context)

    call = Call(certificates[Role.AUDITOR])
    with pytest.raises(AbortedError):
        called(Gate(OpenRoll()), Defective(), f"/privet.v1.Control/{method}", call, is_streaming)
    assert call.ended_with == (grpc.StatusCode.INTERNAL, DEFECT)
    assert "/srv/privet/server.sqlite" in caplog.text


def test_unknown_method_is_left_to_grpc() -> None:
    """A method that no handler has is `unimplemented`, not the gate's business."""

    async def nothing(_: grpc.HandlerCallDetails) -> None:
        return None

    assert asyncio.run(Gate(OpenRoll()).intercept_service(nothing, _Details("/x/Y"))) is None


def test_stream_of_a_revoked_operator_ends_and_no_other(authority: Authority) -> None:
    """Whoever follows a run follows it no longer once the key is denied; another operator goes on."""
    keys = {name: IdentityKey.generate() for name in ("alice", "bob")}
    now, gate = datetime.now(UTC), Gate(OpenRoll())
    chains = {
        name: authority.issuer.issue(Identity(authority.federation, Role.OPERATOR, name), key.csr(), now)
        for name, key in keys.items()
    }

    async def story() -> dict[str, bool]:
        more = asyncio.Event()

        async def endless(request: bytes, context: Any) -> Any:
            yield request
            await more.wait()
            yield request

        async def find(_: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_stream_rpc_method_handler(endless)

        async def follow(name: str, begun: asyncio.Event) -> list[bytes]:
            handler = await gate.intercept_service(find, _Details("/privet.v1.Control/Watch"))
            told = []
            async for response in handler.unary_stream(b"asked", Call(chains[name])):
                told.append(response)
                begun.set()
            return told

        begun = {name: asyncio.Event() for name in keys}
        following = {name: asyncio.create_task(follow(name, begun[name])) for name in keys}
        for event in begun.values():
            await asyncio.wait_for(event.wait(), 10)
        gate.end_denied(frozenset({keys["alice"].fingerprint}))
        await asyncio.wait([following["alice"]], timeout=10)
        more.set()
        assert await asyncio.wait_for(following["bob"], 10) == [b"asked"] * 2
        return {name: task.cancelled() for name, task in following.items()}

    assert asyncio.run(story()) == {"alice": True, "bob": False}
