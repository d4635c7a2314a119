"""The gate: every method of the main port is a question, and whoever may not call is told one short reason."""

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from channel import Authority, OpenRoll
from grpc_health.v1 import health_pb2
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.credentials import Peer
from privet.privacy.channel.identities import Identity, IdentityKey, Role
from privet.privacy.errors import DatabaseError, FederationError
from privet.privacy.policy.policy_file import PolicyFile, default_policy
from privet.privacy.submission import Submission
from privet.server.decision_log import read_decisions
from privet.server.gate import DATABASE_AWAY, DEFECT, Gate, peer
from privet.server.policy import HeldRules
from privet.server.questions import METHODS
from privet.server.run_record import RunRecord
from server_policy import Facts, a_run, shipped_policy

MAIN_PORT = ("Nodes", "Control", "Membership")
MEMBERS = {Role.NODE, Role.OPERATOR, Role.AUDITOR}
# As DESIGN has it, written down a second time: who may call what.
MAY = {
    "Nodes": {"Connect": {Role.NODE}, "Model": {Role.NODE}},
    "Control": {
        **{name: {Role.OPERATOR} for name in ("Submit", "Stop", "Resume")},
        "Model": {Role.OPERATOR, Role.NODE},
        **{name: {Role.OPERATOR, Role.AUDITOR} for name in ("Runs", "Run", "Watch", "ListNodes", "Witness")},
    },
    "Membership": {"Renew": MEMBERS, "Leave": MEMBERS},
}
EXPECTED = {f"/privet.v1.{service}/{name}": roles for service, names in MAY.items() for name, roles in names.items()}
# Enough of a request for each: a run that some-node has trained in.
RUN = pb.RunRequest(run_id="run-1")
POLICY = shipped_policy(facts=Facts({"run-1": a_run("run-1", members=("some-node",))}))
EXPECTED |= {f"/grpc.health.v1.Health/{name}": MEMBERS for name in ("Check", "Watch")}


class AbortedError(grpc.aio.AbortError):
    """What gRPC raises where a call is ended."""


class Call:
    """A call as gRPC shows it to a server, with the peer's certificate."""

    def __init__(self, certificate: bytes, tls: bytes = b"TLSv1.3") -> None:
        self._certificate = certificate
        self._tls = tls
        self.ended_with: tuple[grpc.StatusCode, str] | None = None
        self.told: dict[str, Any] = {}

    def auth_context(self) -> Mapping[str, list[bytes]]:
        certificate = {"x509_pem_cert": [self._certificate]} if self._certificate else {}
        return {**certificate, "ssl_tls_version": [self._tls]}

    def peer(self) -> str:
        return "ipv4:192.0.2.7:999"

    def set_trailing_metadata(self, metadata: tuple[tuple[str, bytes], ...]) -> None:
        self.told = json.loads(dict(metadata)["privet-error-bin"])

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


def called(
    gate: Gate, behind: Behind, method: str, call: Call, is_streaming: bool = False, request: Any = RUN
) -> list[Any]:
    """What the caller gets; raises AbortedError."""

    async def story() -> list[bytes]:
        async def find(_: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            if is_streaming:
                return grpc.unary_stream_rpc_method_handler(behind.stream)
            return grpc.unary_unary_rpc_method_handler(behind.unary)

        handler = await gate.intercept_service(find, _Details(method))
        if is_streaming:
            return [response async for response in handler.unary_stream(request, call)]
        return [await handler.unary_unary(request, call)]

    return asyncio.run(story())


def methods() -> Iterator[str]:
    services = pb.DESCRIPTOR.services_by_name
    for service in MAIN_PORT:
        yield from (f"/{services[service].full_name}/{method.name}" for method in services[service].methods)
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    yield from (f"/{health.full_name}/{method.name}" for method in health.methods if method.name != "List")


def request_of(method: str, submission: bytes) -> Any:
    """What the method is called with."""
    if method.endswith("/Submit"):
        return pb.SubmitRequest(submission=submission)
    return pb.WitnessRequest(node="some-node") if method.endswith("/Witness") else RUN


def test_every_method_of_the_main_port_is_a_question_and_nothing_else_is() -> None:
    assert set(pb.DESCRIPTOR.services_by_name) == {*MAIN_PORT, "Enrolment"}
    assert set(METHODS) == set(methods()) == set(EXPECTED)


@pytest.mark.parametrize("method", sorted(EXPECTED))
@pytest.mark.parametrize("role", sorted(Role))
def test_each_role_gets_what_it_may_and_nothing_else(
    method: str,
    role: Role,
    certificates: dict[Role, bytes],
    make_submission: Callable[..., Submission],
    caplog: pytest.LogCaptureFixture,
) -> None:
    refused: list[None] = []
    gate, behind = Gate(OpenRoll(), POLICY, lambda *_: refused.append(None)), Behind()
    call, request = Call(certificates[role]), request_of(method, make_submission().canonical)
    if role in EXPECTED[method]:
        assert called(gate, behind, method, call, request=request) == [request]
        assert (behind.served, refused) == ([f"some-{role}"], [])
        return
    with caplog.at_level(logging.WARNING, "privet.server"), pytest.raises(AbortedError):
        called(gate, behind, method, call, request=request)
    assert (behind.served, len(refused)) == ([], 1)
    assert call.ended_with is not None
    assert call.ended_with[0] is grpc.StatusCode.PERMISSION_DENIED
    assert f"refused {method} from ipv4:192.0.2.7:999" in caplog.text


@pytest.mark.parametrize("method", ["/privet.v1.Control/Delete", "/grpc.health.v1.Health/List", "/a.b/C", ""])
def test_method_without_a_rule_is_closed_to_all(method: str, certificates: dict[Role, bytes]) -> None:
    for role in MEMBERS:
        with pytest.raises(AbortedError):
            called(Gate(OpenRoll(), POLICY), Behind(), method, Call(certificates[role]))


def test_streaming_call_passes_the_gate_before_its_first_answer(certificates: dict[Role, bytes]) -> None:
    behind = Behind()
    watch = "/privet.v1.Control/Watch"
    assert (
        called(Gate(OpenRoll(), POLICY), behind, watch, Call(certificates[Role.AUDITOR]), is_streaming=True)
        == [RUN] * 2
    )
    with pytest.raises(AbortedError):
        called(Gate(OpenRoll(), POLICY), behind, watch, Call(certificates[Role.NODE]), is_streaming=True)
    assert behind.served == ["some-auditor"]


@pytest.mark.parametrize(("certificate", "tls"), [(b"", b"TLSv1.3"), (b"rubbish", b"TLSv1.3"), (b"good", b"TLSv1.2")])
def test_call_without_certificate_or_over_old_tls_is_refused(
    certificate: bytes, tls: bytes, certificates: dict[Role, bytes]
) -> None:
    call = Call(certificates[Role.NODE] if certificate == b"good" else certificate, tls)
    with pytest.raises(AbortedError):
        called(Gate(OpenRoll(), POLICY), Behind(), "/privet.v1.Nodes/Connect", call)
    assert call.ended_with is not None
    assert call.ended_with[0] is grpc.StatusCode.PERMISSION_DENIED


def test_revoked_member_is_refused_with_the_reason(authority: Authority) -> None:
    key, roll = IdentityKey.generate(), OpenRoll()
    chain = authority.issuer.issue(Identity(authority.federation, Role.NODE, "gone"), key.csr(), datetime.now(UTC))
    roll.deny(key.fingerprint)
    call = Call(chain)
    with pytest.raises(AbortedError):
        called(Gate(roll, POLICY), Behind(), "/privet.v1.Nodes/Connect", call)
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
        called(Gate(NoRoll(), POLICY, refused.append), Behind(), f"/privet.v1.Control/{method}", call, is_streaming)
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
        called(Gate(OpenRoll(), POLICY), Defective(), f"/privet.v1.Control/{method}", call, is_streaming)
    assert call.ended_with == (grpc.StatusCode.INTERNAL, DEFECT)
    assert "/srv/privet/server.sqlite" in caplog.text


def test_unknown_method_is_left_to_grpc() -> None:
    """A method that no handler has is `unimplemented`, not the gate's business."""

    async def nothing(_: grpc.HandlerCallDetails) -> None:
        return None

    assert asyncio.run(Gate(OpenRoll(), POLICY).intercept_service(nothing, _Details("/x/Y"))) is None


def test_stream_of_a_revoked_operator_ends_and_no_other(authority: Authority) -> None:
    """Whoever follows a run follows it no longer once the key is denied; another operator goes on."""
    keys = {name: IdentityKey.generate() for name in ("alice", "bob")}
    now, gate = datetime.now(UTC), Gate(OpenRoll(), POLICY)
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
            async for response in handler.unary_stream(RUN, Call(chains[name])):
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
        assert await asyncio.wait_for(following["bob"], 10) == [RUN] * 2
        return {name: task.cancelled() for name, task in following.items()}

    assert asyncio.run(story()) == {"alice": True, "bob": False}


def test_denied_caller_hears_the_rule_and_what_to_do(
    certificates: dict[Role, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(OpenRoll(), shipped_policy(facts=Facts({"run-1": a_run("run-1", "hearts")}, {"hearts": ("alice",)})))
    call = Call(certificates[Role.OPERATOR])
    with pytest.raises(AbortedError):
        called(gate, Behind(), "/privet.v1.Control/Stop", call)
    why = "some-operator may not stop run run-1: forbidden by rule projects-are-steered-by-their-operators"
    assert call.ended_with is not None
    assert call.ended_with[0] is grpc.StatusCode.PERMISSION_DENIED
    assert (call.told["message"], call.told["code"], call.told["exit"]) == (why, "policy-denied", 3)
    assert "privet policy explain" in call.told["remedy"]
    assert f"spiffe://hearts/operator/some-operator: {why}" in caplog.text


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.NODE])
def test_only_one_who_may_ask_learns_that_there_is_no_such_run(role: Role, certificates: dict[Role, bytes]) -> None:
    call, refused = Call(certificates[role]), list[str]()
    with pytest.raises(AbortedError):
        called(
            Gate(OpenRoll(), POLICY, refused.append),
            Behind(),
            "/privet.v1.Control/Run",
            call,
            request=pb.RunRequest(run_id="run-2"),
        )
    assert call.ended_with is not None
    if role is Role.OPERATOR:
        assert (call.ended_with[0], refused) == (grpc.StatusCode.INVALID_ARGUMENT, [])
        assert call.told["message"] == "no run run-2; did you mean run-1?"
    else:
        assert call.ended_with[0] is grpc.StatusCode.PERMISSION_DENIED
        assert call.told["message"] == "some-node may not watch run 'run-2': no rule permits it"


def test_revoked_member_learns_nothing_of_the_policy(authority: Authority, tmp_path: Path) -> None:
    key, roll, log = IdentityKey.generate(), OpenRoll(), tmp_path / "decisions.jsonl"
    chain = authority.issuer.issue(Identity(authority.federation, Role.NODE, "gone"), key.csr(), datetime.now(UTC))
    roll.deny(key.fingerprint)
    with pytest.raises(AbortedError):
        called(Gate(roll, shipped_policy(log=log)), Behind(), "/privet.v1.Control/Runs", Call(chain))
    assert not log.exists()


def test_book_of_runs_that_is_away_is_no_refusal(
    certificates: dict[Role, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    class Away(Facts):
        def record(self, run_id: str) -> RunRecord:
            raise FederationError("the server's database failed: host 192.0.2.9", "see that it runs")

    call = Call(certificates[Role.OPERATOR])
    with pytest.raises(AbortedError):
        called(Gate(OpenRoll(), shipped_policy(facts=Away())), Behind(), "/privet.v1.Control/Run", call)
    assert call.ended_with == (grpc.StatusCode.UNAVAILABLE, DATABASE_AWAY)
    assert "192.0.2.9" in caplog.text


def test_reload_under_load_loses_no_request(certificates: dict[Role, bytes], tmp_path: Path) -> None:
    """Calls go on while the file is put in place anew, again and again, whole or half written: each is answered."""
    path, text, calls = tmp_path / "policy.cedar", default_policy("server"), 400
    versions = (text, f"// later\n{text}", text[: len(text) // 2])
    path.write_text(text)
    held = HeldRules(PolicyFile(path))
    behind, gate = Behind(), Gate(OpenRoll(), shipped_policy(rules=held, log=tmp_path / "decisions.jsonl"))
    is_over = threading.Event()

    def replace() -> int:
        number = 0
        while not is_over.is_set():
            partial = tmp_path / "partial"
            partial.write_text(versions[number % len(versions)])
            partial.replace(path)
            number += 1
        return number

    async def story() -> tuple[list[Any], int]:
        async def find(_: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            return grpc.unary_unary_rpc_method_handler(behind.unary)

        handler = await gate.intercept_service(find, _Details("/privet.v1.Control/Runs"))
        auditor = certificates[Role.AUDITOR]
        first = await handler.unary_unary(RUN, Call(auditor))  # with a whole file, whose rules hold on from here
        replacing = asyncio.create_task(asyncio.to_thread(replace))
        answers = await asyncio.gather(*(handler.unary_unary(RUN, Call(auditor)) for _ in range(calls - 1)))
        is_over.set()
        return [first, *answers], await replacing

    answers, replaced = asyncio.run(story())
    assert (answers, len(behind.served)) == ([RUN] * calls, calls)
    assert replaced > len(versions)
    told = [line for line, _ in read_decisions(tmp_path / "decisions.jsonl")]
    assert [line["verdict"] for line in told] == ["permitted"] * calls
    assert len({line["policy"] for line in told}) <= 2  # what was half written decided nothing
