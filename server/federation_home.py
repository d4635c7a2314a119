"""What the coordinator keeps in `federation/`: the federation's authorities, the server's certificate, its database.

federation.json                    name, address, enrolment_address, created
root.pem, root-key.pem             the root; its key is encrypted and may be moved offline: only `federation init` and
                                   `federation reissue` open it
issuing.pem, issuing-key.pem       the issuer, held by the server (0600); issuing-former.pem: the one before it
server-chain.pem, server-key.pem   what the server presents; it renews itself
server.sqlite                      members, projects and runs
policy.cedar                       who may ask what of the server
policy-made                        there was a policy here once: where it is gone, nothing is permitted
decisions.jsonl                    every decision on a call (decision_log.py)
"""

import json
import logging
import threading
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from ..privacy.budget.ledger import Clock
from ..privacy.channel.authority import LEAF_LIFETIME, SCRYPT_COST, IssuingAuthority, RootAuthority
from ..privacy.channel.credentials import Presented
from ..privacy.channel.files import read_file, write_whole
from ..privacy.channel.identities import Certificate, Identity, IdentityKey, Role
from ..privacy.channel.member import RENEWED_AT
from ..privacy.channel.token import checked_address, host_and_port
from ..privacy.errors import ChannelError, EnrolmentError, PrivetError
from ..privacy.policy.policy_file import default_policy

log = logging.getLogger("privet.server")

FEDERATION = "federation"  # the folder in the coordinator's home
WARNED_BEFORE = timedelta(days=60)  # the issuer's end: time to fetch the root's key from where it lies
SERVER = "server"  # the server's own name
_POLICY_MADE = "policy-made"
_RESTORE = "restore the federation's folder from its backup"


@dataclass(frozen=True, slots=True)
class FederationFacts:
    """The content of federation.json. Addresses are `HOST:PORT`, as the members dial them."""

    name: str
    address: str
    enrolment_address: str
    created: str

    def __post_init__(self) -> None:
        Identity(self.name, Role.SERVER, SERVER)
        if checked_address(self.address) == checked_address(self.enrolment_address):
            raise EnrolmentError(f"{self.address}: one port cannot serve both", "--enrolment-address with another port")


@dataclass(frozen=True, slots=True)
class FederationHome:
    """The coordinator's folder for one federation."""

    folder: Path
    facts: FederationFacts

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The federation in a folder; raise EnrolmentError where there is none."""
        if not is_federation(folder):
            raise EnrolmentError(
                f"{folder}: there is no federation here", "privet federation init NAME --address HOST:PORT"
            )
        try:
            facts = FederationFacts(**json.loads(read_file(folder / "federation.json", _RESTORE)))
        except (ValueError, TypeError):
            raise ChannelError(f"{folder / 'federation.json'}: not a federation", _RESTORE) from None
        return cls(folder, facts)

    @classmethod
    def create(
        cls, folder: Path, facts: FederationFacts, now: datetime, passphrase: bytes, cost: int = SCRYPT_COST
    ) -> Self:
        """A new federation: root, issuer and the server's key. federation.json comes last: with it the folder is whole.

        `passphrase`: encrypts the root's key, hardened at this cost. Raises EnrolmentError where one is there already.
        """
        if (folder / "root.pem").exists():
            raise EnrolmentError(f"{folder}: there is a federation already", "$PRIVET_HOME with another folder")
        root = RootAuthority.create(facts.name, now)
        home = cls(folder, facts)
        root.issuer(now).save(folder / "issuing.pem", folder / "issuing-key.pem")
        IdentityKey.generate().save(folder / "server-key.pem")
        root.save(folder / "root.pem", home.root_key, passphrase, cost)
        if not home.policy.exists():
            write_whole(home.policy, default_policy("server").encode())
        write_whole(policy_mark(home.policy), b"")
        write_whole(folder / "federation.json", json.dumps(asdict(facts), indent=2).encode() + b"\n")
        return home

    @property
    def root(self) -> bytes:
        """The root's certificate, PEM."""
        return read_file(self.folder / "root.pem", _RESTORE)

    @property
    def root_key(self) -> Path:
        """Where the root's key lies, unless it was moved offline."""
        return self.folder / "root-key.pem"

    @property
    def policy(self) -> Path:
        """Who may ask what of the server, in Cedar. A federation that was made before there were policies has none."""
        return self.folder / "policy.cedar"

    @property
    def decisions(self) -> Path:
        """The log of what the policy has decided."""
        return self.folder / "decisions.jsonl"

    @property
    def database(self) -> str:
        """The address of the database that serves where no other is given."""
        return f"sqlite:///{self.folder / 'server.sqlite'}"

    def issuing(self) -> IssuingAuthority:
        """The issuer, with its key."""
        return IssuingAuthority.load(self.folder / "issuing.pem", self.folder / "issuing-key.pem")

    def issuers(self) -> tuple[bytes, ...]:
        """The issuers whose certificates may still be about, PEM: the present one and the one before it."""
        former = self.folder / "issuing-former.pem"
        present = read_file(self.folder / "issuing.pem", _RESTORE)
        return (present, read_file(former, _RESTORE)) if former.exists() else (present,)

    def reissue(self, root_key: Path, passphrase: bytes, now: datetime) -> IssuingAuthority:
        """A new issuer in place of the old, whose certificates stay good until they end."""
        root = RootAuthority.load(self.folder / "root.pem", root_key, passphrase)
        write_whole(self.folder / "issuing-former.pem", read_file(self.folder / "issuing.pem", _RESTORE))
        issuing = root.issuer(now)
        issuing.save(self.folder / "issuing.pem", self.folder / "issuing-key.pem")
        return issuing


class ServerCertificate:
    """What the server presents now: `presented` renews it at two thirds of its life, from whichever thread asks."""

    def __init__(self, home: FederationHome, clock: Clock, lifetime: timedelta = LEAF_LIFETIME) -> None:
        self._home = home
        self._clock = clock
        self._lifetime = lifetime
        self._key = IdentityKey.load(home.folder / "server-key.pem")
        self._issuing = home.issuing()
        self._root = home.root
        self._lock = threading.Lock()
        self._renewed()
        if self._issuing.not_after - clock() < WARNED_BEFORE:
            log.warning("the issuer ends on %s: privet federation reissue", f"{self._issuing.not_after:%Y-%m-%d}")

    @property
    def not_after(self) -> datetime:
        """When it ends, unless it is renewed before."""
        return self._leaf.not_after

    def presented(self) -> Presented:
        """The key, the chain with the root at its end, and the root; the same object until the next renewal.

        The root is in the chain because whoever joins knows only its fingerprint. A renewal that fails is logged, and
        tried again at the next connection: what there is stays good for a third of its life.
        """
        with self._lock:
            begin, end = self._leaf.not_before, self._leaf.not_after
            if self._clock() >= begin + RENEWED_AT * (end - begin):
                try:
                    self._renewed()
                except (PrivetError, OSError) as error:
                    log.error("the server's certificate could not be renewed: %s", error)
            return self._presented

    def _renewed(self) -> None:
        facts = self._home.facts
        identity = Identity(facts.name, Role.SERVER, SERVER)
        host = host_and_port(facts.address)[0]
        others = host_and_port(facts.enrolment_address)[0]
        hosts = tuple(dict.fromkeys((host, others)))
        chain = self._issuing.issue(identity, self._key.csr(), self._clock(), self._lifetime, hosts)
        write_whole(self._home.folder / "server-chain.pem", chain)
        leaf = x509.load_pem_x509_certificates(chain)[0]
        self._leaf = Certificate.of_der(leaf.public_bytes(Encoding.DER))
        self._presented = Presented(self._key.pem(), chain + self._root, self._root)


def policy_mark(policy: Path) -> Path:
    """What stands beside a server's policy once there was one, also when it was taken away."""
    return policy.with_name(_POLICY_MADE)


def is_federation(folder: Path) -> bool:
    """Whether a federation was begun in this folder, and its making came to an end."""
    return (folder / "federation.json").exists()
