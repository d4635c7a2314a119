"""Intruders at a server that runs: each is refused with a logged reason, learns nothing, and disturbs nobody.

One server and one honest node, as real processes, for all of them. After each intruder the node is still connected,
on the stream that it opened at the beginning.
"""

import json
import os
import random
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from channel import Authority, Loop, Server, wait_for
from deployment import Deployment, Party, Process, deployment
from flwr.app import ConfigRecord, RecordDict
from framing import message_of
from institution import write_digits
from intruders import (
    CONNECT,
    Crowd,
    Ended,
    called,
    csr_for,
    handshaken,
    hello,
    open_files,
    resident_bytes,
    self_signed,
    sent,
    stream_channel,
    talked,
    tls_context,
)
from parties import Federation, make_federation
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.control_client import ControlClient
from privet.privacy.channel.credentials import channel_credentials, enrolment_credentials
from privet.privacy.channel.dial import dial
from privet.privacy.channel.frames import CHUNK_BYTES, encode
from privet.privacy.channel.identities import Certificate, Identity, IdentityKey, Role
from privet.privacy.channel.member import IDENTITY, Member
from privet.privacy.channel.payload import chunk_frame
from privet.server.database import open_database
from privet.server.descriptors import raised_limit
from privet.server.federation_home import FEDERATION, FederationHome
from privet.server.members import Members
from privet.server.registrar import Registrar
from raw_node import RawNode

PLAN = """
[run]
name = "small"
task = "digits"
dataset = "ward7"
seed = 11
rounds = 1
[model]
kind = "features"
features = 16
[aggregation]
min-nodes = 1
[training]
local-steps = 1
learning-rate = 1.0
[privacy]
unit = "none"
sampling-rate = 0.3
[simulation]
nodes = 1
"""
REFUSED, AWAY = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAVAILABLE
NEVER_TOLD = ("/", "sqlite", "psycopg", "SELECT", "Traceback", "Error", ".py", "PRIVATE", "0x")
NOW = datetime.now(UTC)


@dataclass
class Siege:
    """A server under attack, its honest node, and a member that turned on it: mallory."""

    deployment: Deployment
    server: Process
    node: Process
    mallory: Member
    home: FederationHome
    loop: Loop
    connected_since: object = None
    instance: bytes = b"m" * 16

    @property
    def coordinator(self) -> Party:
        return self.deployment.coordinator

    @property
    def operator(self) -> Member:
        return Member.load(self.coordinator.home / IDENTITY)

    @property
    def address(self) -> str:
        return self.home.facts.address

    @property
    def enrolment(self) -> str:
        return self.home.facts.enrolment_address

    @property
    def members(self) -> Members:
        return Members(open_database(self.home.database))

    @property
    def roll(self) -> Members:
        return self.members

    @property
    def registrar(self) -> Registrar:
        return Registrar(self.home, self.members)

    def listed(self, name: str = "st-marys") -> dict[str, Any]:
        """What the server says of a node to an operator, over a new connection."""
        operator = self.operator
        nodes = ControlClient(lambda: dial(operator), operator.address).nodes()
        return next(node for node in nodes if node["name"] == name)

    def credentials(self, member: Member) -> grpc.ChannelCredentials:
        return channel_credentials(member)

    def shown(self, key: IdentityKey, chain: bytes) -> grpc.ChannelCredentials:
        """Credentials of one who shows this certificate and trusts the right root."""
        return grpc.ssl_channel_credentials(self.home.root, key.pem(), chain)

    def talked(self, *frames: pb.Frame | bytes) -> Ended:
        """What becomes of mallory's stream, which begins with an honest hello."""
        return self.said([hello(self.instance), *frames])

    def said(self, frames: Iterable[pb.Frame | bytes]) -> Ended:
        with stream_channel(self.address, self.credentials(self.mallory)) as channel:
            return talked(channel, frames)

    def join(self, secret: bytes, csr: bytes) -> Ended:
        request = pb.JoinRequest(secret=secret, csr=csr).SerializeToString()
        return called(self.enrolment, enrolment_credentials(self.home.root), "/privet.v1.Enrolment/Join", request)


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    folder = tmp_path_factory.mktemp("siege")
    with deployment(folder) as made:
        server = made.serve("--grace", "1", fresh=True)
        ward = made.institution("st-marys")
        declared = ("--task", "digits", "--declared-size", "100", "--allow-none")
        path = write_digits(folder / "ward7.csv")
        ward.privet("dataset", "add", "ward7", "--path", str(path), *declared, "--epsilon", "1", "--delta", "1e-6")
        node = ward.node()
        mallory = Member.load(made.institution("mallory").home / IDENTITY)
        home = FederationHome.load(made.coordinator.home / FEDERATION)
        loop = Loop()
        siege = Siege(made, server, node, mallory, home, loop)
        siege.connected_since = siege.listed()["since"]
        yield siege
        loop.close()
        assert "Traceback" not in server.text
        assert node.stop() == 0, node.text
        assert server.stop() == 0, server.text


@pytest.fixture(autouse=True)
def honest(siege: Siege) -> Iterator[None]:
    """Whatever was done, the honest node is where it was."""
    yield
    found = siege.listed()
    assert (found["is_connected"], found["since"]) == (True, siege.connected_since)


@pytest.fixture
def logged(siege: Siege) -> Callable[[str], str]:
    """Waits for a line of the server's log from this test on, and gives it."""
    mark = len(siege.server.lines)

    def wait(text: str) -> str:
        number = siege.server.wait_for(text, after=mark, timeout=20)
        return siege.server.lines[number - 1]

    return wait


def assert_tells_little(ended: Ended, siege: Siege) -> None:
    """One sentence of ours, in which nothing of the server's machine, files, code or secrets is named."""
    details = re.sub(r"/privet\.v1\.\w+/\w+|spiffe://hearts/\w+/[a-z-]+", "", ended.details)
    assert len(details) < 300
    assert not [word for word in NEVER_TOLD if word in details], ended.details
    assert str(siege.deployment.folder) not in details


# ---- certificates ----


def _no_certificate(siege: Siege) -> grpc.ChannelCredentials:
    return enrolment_credentials(siege.home.root)


def _self_signed(siege: Siege) -> grpc.ChannelCredentials:
    key = IdentityKey.generate()
    return siege.shown(key, self_signed(Identity("hearts", Role.OPERATOR, "coordinator"), key))


def _other_federation(siege: Siege) -> grpc.ChannelCredentials:
    """Another root, which gives itself and its members the same names."""
    key = IdentityKey.generate()
    return siege.shown(key, Authority("hearts").issuer.issue(Identity("hearts", Role.NODE, "mallory"), key.csr(), NOW))


def _expired(siege: Siege) -> grpc.ChannelCredentials:
    key, past = siege.mallory.key, NOW - timedelta(days=2)
    return siege.shown(key, siege.home.issuing().issue(siege.mallory.identity, key.csr(), past))


def _without_its_key(siege: Siege) -> grpc.ChannelCredentials:
    return siege.shown(IdentityKey.generate(), siege.operator.chain)


@pytest.mark.parametrize("show", [_no_certificate, _self_signed, _other_federation, _expired, _without_its_key])
@pytest.mark.parametrize("method", [CONNECT, "/privet.v1.Control/ListNodes", "/grpc.health.v1.Health/Check"])
def test_certificate_that_tls_does_not_take(
    siege: Siege, show: Callable[[Siege], grpc.ChannelCredentials], method: str
) -> None:
    ended = called(siege.address, show(siege), method)
    assert (ended.code, ended.reply) == (AWAY, b"")


@pytest.mark.parametrize("port", ["address", "enrolment"])
def test_tls_1_2(siege: Siege, port: str) -> None:
    context = tls_context(siege.home.root, siege.mallory)
    assert handshaken(getattr(siege, port), context) == "TLSv1.3"
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshaken(getattr(siege, port), context)


def test_certificate_of_one_whom_the_server_never_admitted(siege: Siege, logged: Callable[[str], str]) -> None:
    """As one who copied the issuer's key would make it."""
    key = IdentityKey.generate()
    chain = siege.home.issuing().issue(Identity("hearts", Role.OPERATOR, "ghost"), key.csr(), NOW)
    ended = called(siege.address, siege.shown(key, chain), "/privet.v1.Control/Runs")
    assert ended.code is REFUSED
    assert "spiffe://hearts/operator/ghost is not a member" in logged("refused /privet.v1.Control/Runs")
    assert_tells_little(ended, siege)


@pytest.mark.parametrize(
    ("role", "method"),
    [
        (Role.NODE, "/privet.v1.Control/ListNodes"),
        (Role.NODE, "/privet.v1.Control/Submit"),
        (Role.NODE, "/privet.v1.Control/Watch"),
        (Role.OPERATOR, CONNECT),
        (Role.OPERATOR, "/privet.v1.Nodes/Model"),
        (Role.AUDITOR, "/privet.v1.Control/Submit"),
        (Role.AUDITOR, CONNECT),
    ],
)
def test_member_in_another_role(
    siege: Siege, auditor: Member, role: Role, method: str, logged: Callable[[str], str]
) -> None:
    member = {Role.NODE: siege.mallory, Role.OPERATOR: siege.operator, Role.AUDITOR: auditor}[role]
    ended = called(siege.address, siege.credentials(member), method)
    assert (ended.code, ended.reply) == (REFUSED, b"")
    assert re.search(rf"{member.identity.uri}(: {member.identity.name})? may not", logged(f"refused {method}"))
    assert_tells_little(ended, siege)


@pytest.fixture(scope="module")
def auditor(siege: Siege) -> Member:
    token, _ = siege.registrar.invite("dpo", Role.AUDITOR)
    key = IdentityKey.generate()
    chain = siege.registrar.join(token.secret, key.csr())
    membership = replace(siege.mallory.membership, role=Role.AUDITOR, name="dpo")
    return Member.create(siege.deployment.folder / "dpo", membership, key, chain, siege.home.root, datetime.now(UTC))


def test_revoked_member(siege: Siege, logged: Callable[[str], str]) -> None:
    gone = Member.load(siege.deployment.institution("gone").home / IDENTITY)
    with stream_channel(siege.address, siege.credentials(gone)) as channel:
        ended: list[Ended] = []
        streaming = threading.Thread(target=lambda: ended.append(talked(channel, [hello(b"g" * 16)])))
        streaming.start()
        logged("node gone connected")
        siege.coordinator.privet("revoke", "gone", "--because", "the machine was stolen")
        streaming.join(20)
        assert [one.code for one in ended] == [REFUSED]
        assert talked(channel, [hello(b"g" * 16)]).code is REFUSED
    assert "gone has been revoked" in logged(f"refused {CONNECT}")
    renewing = pb.RenewRequest(csr=gone.key.csr()).SerializeToString()
    for method, request in (("/privet.v1.Membership/Renew", renewing), ("/privet.v1.Nodes/Model", b"")):
        refused = called(siege.address, siege.credentials(gone), method, request)
        assert (refused.code, refused.reply) == (REFUSED, b"")
        assert_tells_little(refused, siege)
        logged(f"refused {method}")
    challenge = pb.ChallengeRequest(certificate=gone.certificate.der).SerializeToString()
    strangers = enrolment_credentials(siege.home.root)
    back = called(siege.enrolment, strangers, "/privet.v1.Enrolment/Challenge", challenge)
    assert (back.code, back.details) == (REFUSED, "the certificate was not accepted")
    assert "has been revoked" in logged("refused to challenge")


@pytest.mark.parametrize("method", ["/privet.v1.Membership/Leave", "/privet.v1.Control/Runs", CONNECT])
def test_method_of_the_main_port_at_the_enrolment_port(siege: Siege, method: str) -> None:
    ended = called(siege.enrolment, enrolment_credentials(siege.home.root), method)
    assert (ended.code, ended.details) == (grpc.StatusCode.UNIMPLEMENTED, "Method not found!")


# ---- tokens ----


def test_token_that_is_used_expired_or_altered(siege: Siege, logged: Callable[[str], str]) -> None:
    """All three look alike to whoever tries them; the log knows which is which."""
    used, _ = siege.registrar.invite("used", Role.NODE)
    siege.registrar.join(used.secret, IdentityKey.generate().csr())
    late, ends = siege.registrar.invite("late", Role.NODE, timedelta(milliseconds=1))
    wait_for(lambda: datetime.now(UTC) > ends, "the end of the token")
    open_one, _ = siege.registrar.invite("open", Role.NODE)
    altered = bytes([open_one.secret[0] ^ 1]) + open_one.secret[1:]
    csr = IdentityKey.generate().csr()
    for secret, reason in (
        (used.secret, "the token of used is used by another key"),
        (late.secret, "the token of late is expired"),
        (altered, "no token with this secret is open"),
        (b"", "a secret of 0 bytes"),
    ):
        ended = siege.join(secret, csr)
        assert (ended.code, ended.details, ended.reply) == (REFUSED, "the token was not accepted", b"")
        assert "refused to join for 127.0.0.1" in logged(reason)
    for token in (used, late, open_one):
        assert token.secret.hex() not in siege.server.text
    assert siege.join(open_one.secret, csr).code is grpc.StatusCode.OK


def test_token_with_a_wrong_letter_is_not_even_sent(siege: Siege) -> None:
    token = siege.registrar.invite("typo", Role.NODE)[0].text()
    letter = "a" if token[40] != "a" else "b"
    party = Party(siege.deployment, "typo")
    told = party.privet("join", f"{token[:40]}{letter}{token[41:]}", "--yes", code=2)
    assert "the token was not copied right" in told
    assert token[40:] not in told
    assert not (party.home / IDENTITY).exists()


def test_root_that_does_not_match_the_token(siege: Siege, tmp_path: Path) -> None:
    """The intruder sits where the token's reader thinks the server is, with a federation of the same name."""
    rogue: Federation = make_federation(tmp_path / "rogue", "hearts")
    token, _ = siege.registrar.invite("lured", Role.NODE)
    party = Party(siege.deployment, "lured")
    with rogue.serving():
        lured = replace(token, address=rogue.home.facts.address, enrolment_address=rogue.home.facts.enrolment_address)
        assert "nothing was sent" in party.privet("join", lured.text(), "--yes", code=1)
    assert rogue.members.all() == ()
    party.privet("join", token.text(), "--yes")  # the secret is still good: nobody else has it


def test_request_for_a_certificate_that_asks_for_another_name(siege: Siege, logged: Callable[[str], str]) -> None:
    token, _ = siege.registrar.invite("modest", Role.NODE)
    key = IdentityKey.generate()
    ended = siege.join(token.secret, csr_for(Identity("hearts", Role.OPERATOR, "coordinator"), key))
    chain = pb.Certificates.FromString(ended.reply).chain
    logged("certified spiffe://hearts/node/modest")
    assert called(siege.address, siege.shown(key, chain), "/privet.v1.Control/ListNodes").code is REFUSED
    assert "spiffe://hearts/node/modest: modest may not" in logged("refused /privet.v1.Control/ListNodes")
    renewing = pb.RenewRequest(csr=csr_for(siege.operator.identity, key)).SerializeToString()
    renewed = called(siege.address, siege.shown(key, chain), "/privet.v1.Membership/Renew", renewing)
    again = pb.Certificates.FromString(renewed.reply).chain
    leaf = ssl.PEM_cert_to_DER_cert(again.decode().split("-----END CERTIFICATE-----")[0] + "-----END CERTIFICATE-----")
    assert Certificate.of_der(leaf).identity.uri == "spiffe://hearts/node/modest"


# ---- frames ----


def test_hello_of_another_protocol(siege: Siege, logged: Callable[[str], str]) -> None:
    ended = siege.said([hello(siege.instance, protocol=2)])
    assert (ended.code, ended.frames) == (grpc.StatusCode.INVALID_ARGUMENT, ())
    logged("mallory speaks protocol 2")
    assert_tells_little(ended, siege)


@pytest.mark.parametrize("seconds", [-600, 600])
def test_clock_ten_minutes_off(siege: Siege, logged: Callable[[str], str], seconds: int) -> None:
    ended = siege.said([hello(siege.instance, clock=time.time() + seconds)])
    assert ended.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "allowed are 300 s" in logged("the clock of mallory differs from the server's by")
    assert "set both clocks by NTP" in ended.details


def test_honest_nodes_place(siege: Siege, logged: Callable[[str], str]) -> None:
    """One who copied an institution's identity finds the place taken."""
    twin = Member.load(siege.deployment.folder / "st-marys" / IDENTITY)
    with stream_channel(siege.address, siege.credentials(twin)) as channel:
        assert talked(channel, [hello(os.urandom(16))]).code is grpc.StatusCode.ALREADY_EXISTS
    assert "two processes have one identity" in logged("node st-marys: its stream ends")


def header(**fields: Any) -> pb.Frame:
    """The header of an answer that passes on its own, but for the changes."""
    passing = {"message_id": os.urandom(16), "reply_to": os.urandom(16), "run_id": "r", "type": "train", "ttl": 60.0}
    return pb.Frame(header=pb.Header(**(passing | fields)))


FRAMES: dict[str, tuple[list[pb.Frame | bytes], str]] = {
    "header within a message": ([header(records_bytes=9), header(records_bytes=9)], "a message within a message"),
    "second hello": ([hello(b"m" * 16)], "sent a frame of kind hello"),
    "frame of the server": ([pb.Frame(denied=pb.Denied(key_fingerprints=["0" * 64]))], "sent a frame of kind denied"),
    "chunk before a header": ([chunk_frame([b"12345"])], "a chunk that nobody granted"),
    "body that nobody granted": ([header(payload_bytes=2**33), chunk_frame([b"1"])], "a chunk that nobody granted"),
    "replayed chunk": ([header(records_bytes=5), *[chunk_frame([b"12345"])] * 2], "sent more than it announced"),
    "end before a header": ([pb.Frame(end=pb.End(sha256=b"0" * 32))], "ended a message that it had not begun"),
    "offer that cannot be read": (
        [pb.Frame(presence=pb.Presence(apps=["\x1b[2Jgone"]))],
        "mallory offers what cannot be read",
    ),
}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_no_node_sends(siege: Siege, logged: Callable[[str], str], name: str) -> None:
    frames, reason = FRAMES[name]
    ended = siege.talked(*frames)
    assert ended.code is grpc.StatusCode.INVALID_ARGUMENT
    assert reason in logged("node mallory: its stream ends")
    assert_tells_little(ended, siege)


@pytest.mark.parametrize("size", [CHUNK_BYTES + 17, 5 * CHUNK_BYTES])
def test_frame_above_the_limit(siege: Siege, logged: Callable[[str], str], size: int) -> None:
    ended = siege.talked(header(run_id="r" * size))
    assert ended.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    logged("node mallory disconnected")
    assert_tells_little(ended, siege)


@pytest.mark.parametrize("port", ["address", "enrolment"])
def test_header_of_http_above_the_limit(siege: Siege, port: str) -> None:
    credentials = siege.credentials(siege.mallory) if port == "address" else enrolment_credentials(siege.home.root)
    method = "/privet.v1.Membership/Renew" if port == "address" else "/privet.v1.Enrolment/Challenge"
    large = [(f"x-{number}", "a" * 8000) for number in range(40)]
    ended = called(getattr(siege, port), credentials, method, metadata=large)
    assert ended.code in (grpc.StatusCode.RESOURCE_EXHAUSTED, AWAY, grpc.StatusCode.INTERNAL)
    assert_tells_little(ended, siege)


def test_chunks_without_end(siege: Siege, logged: Callable[[str], str]) -> None:
    """A body that is thrown away as it comes is still no longer than was announced."""
    sent_frames = 0

    def endless() -> Iterator[pb.Frame | bytes]:
        nonlocal sent_frames
        yield hello(siege.instance)
        yield header(records_bytes=200_000)
        while True:
            sent_frames += 1
            yield chunk_frame([b"1" * 1000])

    before = resident_bytes(siege.server.pid)
    ended = siege.said(endless())
    assert ended.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "sent more than it announced" in logged("node mallory: its stream ends")
    assert sent_frames < 100_000
    assert resident_bytes(siege.server.pid) - before < 32 * 2**20


def test_random_bytes_as_frames(siege: Siege, logged: Callable[[str], str]) -> None:
    rng, tags = random.Random(4), bytes(number << 3 | kind for number in range(1, 11) for kind in (0, 1, 2, 5))
    mark = len(siege.server.lines)
    with stream_channel(siege.address, siege.credentials(siege.mallory)) as channel:
        for number in range(40):
            noise = rng.randbytes(rng.choice([1, 2, 7, 60, 5000]))
            first = [hello(siege.instance)] if number % 2 else []
            ended = talked(channel, [*first, rng.choice(tags).to_bytes(1, "big") + noise])
            assert ended.code is grpc.StatusCode.INVALID_ARGUMENT, noise[:80]
            assert_tells_little(ended, siege)
            mark = siege.server.wait_for("node mallory: its stream ends: ", after=mark)


def test_replayed_answer_and_answer_in_another_run(siege: Siege, tmp_path: Path, logged: Callable[[str], str]) -> None:
    """A member that is asked answers in another run's name, then rightly, then the same again; the run goes on."""
    offers = pb.Presence(tasks=[pb.TaskOffer(name="digits", version=siege.listed()["tasks"]["digits"])])
    raw = RawNode(cast("Server", siege), siege.mallory, siege.loop)
    raw.welcomed(presence=offers)
    (tmp_path / "plan.toml").write_text(PLAN)
    run_id = siege.deployment.submit(tmp_path / "plan.toml")
    asked, _ = raw.asked()
    said = message_of(RecordDict({"config": ConfigRecord({"name": "st-marys"})}))

    def answer(name: str) -> None:
        outgoing = encode(said, message_id=b"a" * 16, reply_to=asked.message_id, run_id=name)
        for frame in (outgoing.header_frame, *outgoing.body_frames()):
            raw.send(frame)

    answer("another-run")
    assert raw.expect("dropped").message_id == asked.message_id
    logged("node mallory: an answer in run 'another-run' that nobody waits for")
    answer(run_id)
    assert raw.expect("taken").message_id == asked.message_id
    answer(run_id)
    assert raw.expect("dropped").message_id == asked.message_id
    logged(f"node mallory: an answer in run '{run_id}' that nobody waits for")
    raw.close()
    page = siege.deployment.follow(run_id)
    assert page["state"] == "finished"
    assert page["participations"]["st-marys"] == 1


# ---- what is no gRPC ----


def _noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


GARBAGE = {
    "HTTP/1": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    "HTTP/2 in the clear": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "noise": _noise(5000),
    "half a megabyte of noise": _noise(500_000),
    "record of TLS that holds noise": b"\x16\x03\x01\x02\x00" + _noise(512),
    "record of TLS above its limit": b"\x16\x03\x03\xff\xff" + _noise(70_000),
}


@pytest.mark.parametrize("port", ["address", "enrolment"])
@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_tls(siege: Siege, port: str, name: str) -> None:
    reply = sent(getattr(siege, port), GARBAGE[name])
    assert len(reply) <= 7, "more than an alert of TLS"
    assert reply[:1] in (b"", b"\x15")


@pytest.mark.parametrize("port", ["address", "enrolment"])
@pytest.mark.parametrize("content", [b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", _noise(5000)])
def test_what_is_no_http_2_inside_tls(siege: Siege, port: str, content: bytes) -> None:
    context = tls_context(siege.home.root, siege.mallory if port == "address" else None)
    reply = sent(getattr(siege, port), content, context)
    assert len(reply) < 500
    assert not [word for word in (b"HTTP/1", b".py", b"/home", b"sqlite") if word in reply]


# ---- many ----


@pytest.mark.slow
def test_10_000_connections(siege: Siege) -> None:
    """Two waves, of which 2,000 are held at a time. Meanwhile an operator is served, again and again."""
    assert raised_limit() > 4_000, "this test's own open files"
    pid, served, is_over = siege.server.pid, list[float](), threading.Event()
    files, before = open_files(pid), resident_bytes(pid)

    def operate() -> None:
        while not is_over.is_set():
            begun = time.monotonic()
            assert siege.listed()["is_connected"]
            served.append(time.monotonic() - begun)

    def wave() -> int:
        """How much memory the server holds after 5,000 have come and gone."""
        crowds, most_files = [Crowd(siege.deployment.ports) for _ in range(4)], 0
        for number in range(10):
            crowds[number % 4].go()
            crowds[number % 4].come(500)
            most_files = max(most_files, open_files(pid))
        for crowd in crowds:
            crowd.go()
        assert sum(crowd.opened for crowd in crowds) == 5_000
        assert most_files > files + 500, "they came in"
        wait_for(lambda: open_files(pid) < files + 16, "files that were closed again", 40)
        return resident_bytes(pid)

    operating = threading.Thread(target=operate)
    operating.start()
    try:
        first, second = wave(), wave()
    finally:
        is_over.set()
        operating.join()
    assert json.loads(siege.coordinator.privet("node", "list", "--json").splitlines()[-1])
    assert len(served) > 3
    assert max(served) < 10
    # Some 40 kB for each handshake that was open at once, which malloc keeps; what is kept is used again.
    assert first - before < 192 * 2**20
    assert second - first < 64 * 2**20


@pytest.mark.slow
def test_silent_strangers_leave_the_server_files_of_its_own_and_are_let_go(tmp_path: Path) -> None:
    """Where the system allows few open files, and strangers hold on to every connection they can get."""
    limit = 128
    with deployment(tmp_path) as made:
        few = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))"
        server = made.serve(prelude=few)
        node = made.institution("st-marys").node()
        crowd = Crowd(made.ports)
        crowd.come(400)
        wait_for(lambda: open_files(server.pid) > limit // 2, "strangers who came in")
        assert open_files(server.pid) < limit - 8
        wait_for(lambda: crowd.held == 0, "the end of every silent connection", 60)
        listed = {one["name"]: one for one in made.coordinator.told("node", "list")}
        assert listed["st-marys"]["is_connected"]
        crowd.go()
        assert "disconnected" not in server.text
        assert "Too many open files" not in server.text
        assert "File descriptor limit" not in server.text
        assert (node.stop(), server.stop()) == (0, 0)
