"""A federation and its members for tests: a home made in milliseconds, members without a network, servers on loopback.

federation = make_federation(tmp_path / "coordinator")
member = federation.member("st-marys", tmp_path / "st-marys")          # no network, no token
with federation.serving(): ...                                         # the real services, on real TLS
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from privet.privacy.channel.authority import LEAF_LIFETIME
from privet.privacy.channel.credentials import server_credentials
from privet.privacy.channel.identities import IdentityKey, Role
from privet.privacy.channel.member import IDENTITY, Member, Membership
from privet.privacy.channel.token import Token
from privet.server.database import open_database
from privet.server.enrolment import OPTIONS, enrolment_handlers, membership_handlers
from privet.server.federation_home import FEDERATION, FederationFacts, FederationHome, ServerCertificate
from privet.server.members import Members
from privet.server.registrar import Registrar

PASSPHRASE = b"a passphrase for tests"
_CHEAP = 16  # the cost of scrypt: tests make many federations


@dataclass
class TestClock:
    """The time now, moved by `shift` wherever a test wants to be elsewhere."""

    __test__ = False
    shift: timedelta = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.shift


@dataclass
class Federation:
    """A coordinator's home, its database, and what certifies. `clock` is the server's."""

    home: FederationHome
    members: Members
    registrar: Registrar
    clock: TestClock
    lifetime: timedelta = LEAF_LIFETIME
    main_handlers: tuple[grpc.GenericRpcHandler, ...] = ()  # at the main port, in place of Membership
    gates: tuple[grpc.aio.ServerInterceptor, ...] = ()  # before them

    @property
    def name(self) -> str:
        return self.home.facts.name

    def token(self, name: str, role: Role = Role.NODE, valid: timedelta = timedelta(hours=24), **more: Any) -> Token:
        return self.registrar.invite(name, role, valid, **more)[0]

    def member(self, name: str, home: Path, role: Role = Role.NODE, key: IdentityKey | None = None) -> Member:
        """A member in `home/identity`, by a real token, without a network."""
        token, key = self.token(name, role), key or IdentityKey.generate()
        chain = self.registrar.join(token.secret, key.csr())
        facts = self.home.facts
        membership = Membership(facts.name, role, name, facts.address, facts.enrolment_address)
        return Member.create(home / IDENTITY, membership, key, chain, self.home.root, self.clock())

    @contextmanager
    def serving(self) -> Iterator["Federation"]:
        """Both servers on loopback, at the addresses that the federation's members know."""
        with _LoopThread() as loop:
            certificate = ServerCertificate(self.home, self.clock, self.lifetime)
            main = self.main_handlers or (membership_handlers(self.registrar, self.clock),)
            enrolment = (enrolment_handlers(self.registrar, self.clock),)
            servers = [
                loop.run(_started(self.home.facts.address, main, certificate, True, self.gates)),
                loop.run(_started(self.home.facts.enrolment_address, enrolment, certificate, False)),
            ]
            try:
                yield self
            finally:
                for server in servers:
                    loop.run(server.stop(0))


def make_federation(
    home: Path,
    name: str = "hearts",
    clock: TestClock | None = None,
    lifetime: timedelta = LEAF_LIFETIME,
) -> Federation:
    """A new federation in `home/federation`, on two free ports of loopback."""
    clock = clock or TestClock()
    ports = free_ports(2)
    facts = FederationFacts(name, f"localhost:{ports[0]}", f"localhost:{ports[1]}", clock().isoformat())
    made = FederationHome.create(home / FEDERATION, facts, clock(), PASSPHRASE, _CHEAP)
    members = Members(open_database(made.database))
    return Federation(made, members, Registrar(made, members, clock, lifetime), clock, lifetime)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def head_of(chain: bytes) -> bytes:
    """The first certificate of a chain, DER."""
    return x509.load_pem_x509_certificates(chain)[0].public_bytes(Encoding.DER)


async def _started(
    address: str,
    handlers: tuple[grpc.GenericRpcHandler, ...],
    certificate: ServerCertificate,
    is_required: bool,
    gates: tuple[grpc.aio.ServerInterceptor, ...] = (),
) -> grpc.aio.Server:
    server = grpc.aio.server(interceptors=gates, options=OPTIONS)
    server.add_generic_rpc_handlers(handlers)
    server.add_secure_port(address, server_credentials(certificate.presented, is_required))
    await server.start()
    return server


class _LoopThread:
    """An event loop in a thread of its own, so that a test may use blocking clients."""

    def __enter__(self) -> "_LoopThread":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        self._loop.close()
