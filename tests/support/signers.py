"""Parties that sign, certified in memory by a federation's own authority."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from privet.privacy.channel.authority import RootAuthority
from privet.privacy.channel.identities import Identity, IdentityKey, Role
from privet.privacy.plan_app import AnySubmission
from privet.privacy.signed import SignedSubmission, sign

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@dataclass(frozen=True)
class Party:
    """A key with its certificates."""

    key: IdentityKey
    chain: bytes

    def signs(self, submission: AnySubmission) -> SignedSubmission:
        return sign(submission, self.key, self.chain)


class Authority:
    """A federation's root and issuer, `at` a moment."""

    def __init__(self, federation: str = "test", at: datetime = NOW) -> None:
        self.federation = federation
        self.made = at
        root = RootAuthority.create(federation, at)
        self.root_pem = root.pem
        self.issuer = root.issuer(at)

    def party(
        self,
        name: str = "tester",
        role: Role = Role.OPERATOR,
        key: IdentityKey | None = None,
        at: datetime | None = None,
        lifetime: timedelta = timedelta(hours=24),
    ) -> Party:
        """A party of that name, with a certificate from `at` on."""
        key = key or IdentityKey.generate()
        identity = Identity(self.federation, role, name)
        return Party(key, self.issuer.issue(identity, key.csr(), at or self.made, lifetime))
