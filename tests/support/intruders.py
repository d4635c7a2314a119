"""What intruders do to a server that runs: connections of any kind, calls with any certificate, streams of any bytes.

Each function says what came back: a status and its words, or the bytes before the connection was closed.
"""

import contextlib
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.frames import read_frame
from privet.privacy.channel.identities import Identity, IdentityKey
from privet.privacy.channel.member import Member

LONG = 30.0  # seconds
CONNECT = "/privet.v1.Nodes/Connect"
_UNLIMITED = (("grpc.max_send_message_length", -1), ("grpc.enable_retries", 0))


@dataclass(frozen=True)
class Ended:
    """How a call ended. `frames`: what the server said before, on a stream."""

    code: grpc.StatusCode
    details: str
    frames: tuple[pb.Frame, ...] = ()
    reply: bytes = b""


def called(
    address: str,
    credentials: grpc.ChannelCredentials,
    method: str,
    request: bytes = b"",
    metadata: Sequence[tuple[str, str]] = (),
) -> Ended:
    """One call, of one message, to a method of any shape."""
    with grpc.secure_channel(address, credentials, _UNLIMITED) as channel:
        call = channel.unary_stream(method)(request, timeout=LONG, metadata=metadata)
        replies: list[bytes] = []
        with contextlib.suppress(grpc.RpcError):
            replies += call
        return Ended(call.code(), call.details() or "", reply=b"".join(replies))


def talked(channel: grpc.Channel, frames: Iterable[pb.Frame | bytes]) -> Ended:
    """A node's stream that sends these frames and stays open until the server ends it."""
    over = threading.Event()

    def outgoing() -> Iterator[bytes]:
        for frame in frames:
            yield frame if isinstance(frame, bytes) else frame.SerializeToString()
        over.wait(LONG)

    call = channel.stream_stream(CONNECT)(outgoing(), timeout=LONG)
    replies: list[Any] = []
    try:
        for reply in call:
            replies.append(read_frame(reply))
    except grpc.RpcError:
        pass
    finally:
        over.set()
    return Ended(call.code(), call.details() or "", tuple(replies))


def stream_channel(address: str, credentials: grpc.ChannelCredentials) -> grpc.Channel:
    """A channel that sends what an honest one does not."""
    return grpc.secure_channel(address, credentials, _UNLIMITED)


def hello(instance: bytes, **changes: Any) -> pb.Frame:
    """What an honest node says first, but for the changes."""
    said = {"protocol": 1, "version": "0", "instance": instance, "clock": time.time(), "python": "3"} | changes
    return pb.Frame(hello=pb.Hello(**said))


def self_signed(identity: Identity, key: IdentityKey) -> bytes:
    """A certificate that says it is this party's, signed by its own key."""
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.private.public_key(), 5)
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(hours=1))
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
    return builder.add_extension(names, True).sign(key.private, hashes.SHA256()).public_bytes(Encoding.PEM)


def csr_for(identity: Identity, key: IdentityKey) -> bytes:
    """A request for a certificate that asks to be somebody, in its subject and in its alternative names."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, identity.name)])
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(identity.uri)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject).add_extension(names, critical=True)
    return builder.sign(key.private, hashes.SHA256()).public_bytes(Encoding.DER)


def tls_context(root: bytes, member: Member | None = None) -> ssl.SSLContext:
    """A context of Python's own TLS, with a member's certificate if one is given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=root.decode())
    context.set_alpn_protocols(["h2"])
    if member is not None:
        context.load_cert_chain(member.folder / "chain.pem", member.folder / "key.pem")
    return context


def handshaken(address: str, context: ssl.SSLContext) -> str | None:
    """The version of TLS that a handshake comes to."""
    host, port = address.rsplit(":", 1)
    with (
        socket.create_connection((host, int(port)), LONG) as raw,
        context.wrap_socket(raw, server_hostname=host) as tls,
    ):
        return tls.version()


def sent(address: str, content: bytes, context: ssl.SSLContext | None = None) -> bytes:
    """Connect, send, and read until the server closes; raises TimeoutError where it does not."""
    host, port = address.rsplit(":", 1)
    raw = socket.create_connection((host, int(port)), LONG)
    with context.wrap_socket(raw, server_hostname=host) if context else raw as connection:
        received = b""
        try:
            connection.sendall(content)
            while piece := connection.recv(1 << 16):
                received += piece
        except (ConnectionError, ssl.SSLError):
            pass
        return received


def client_hello(host: str) -> bytes:
    """The first bytes of a TLS handshake, after which an intruder falls silent."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    half = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=host)
    try:
        half.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake with nobody")


class Crowd:
    """Connections that are opened in passing and held until they are let go."""

    def __init__(self, ports: tuple[int, int]) -> None:
        self._ports = ports
        self._held: list[socket.socket] = []
        self._hello = client_hello("127.0.0.1")
        self.opened = 0

    def come(self, count: int) -> None:
        """A quarter each: closes at once, says nothing, begins a handshake and no more, says what is no TLS."""
        for number in range(count):
            try:
                one = socket.create_connection(("127.0.0.1", self._ports[number // 4 % 2]), LONG)
                self.opened += 1
                self._held.append(one)
                if number % 4 == 0:
                    self._held.pop().close()
                elif number % 4 == 2:
                    one.sendall(self._hello)
                elif number % 4 == 3:
                    one.sendall(b"GET / HTTP/1.1\r\n\r\n")
            except ConnectionError:  # turned away
                continue

    @property
    def held(self) -> int:
        """How many the server has not closed."""
        return sum(not _is_closed(one) for one in self._held)

    def go(self) -> None:
        """Close them all."""
        for one in self._held:
            one.close()
        self._held.clear()


def _is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while piece := connection.recv(1 << 16):
            del piece
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def open_files(pid: int) -> int:
    """How many files a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def resident_bytes(pid: int) -> int:
    """How much memory a process holds."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")
