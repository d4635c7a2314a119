"""Operators: whose submissions a node carries out. The check stands before anything is charged.

The rules (DESIGN, section 10):
1. At the first admission of a run the operator's certificates, signature and time are checked, and entered in the
   ledger. Later requests need the same submission, and that the key was not revoked since.
2. Where the institution pinned keys (node.toml, `[operators]`), only these are admitted, each under its own name. The
   server holds the issuing authority: a certificate alone proves nothing against it.
3. Without pins any operator that the federation's authority named is admitted, and node and ledger say so.
4. What was revoked stays revoked, after a restart too: the server can add keys to the list, and take none away.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from ..privacy.budget.accounts import AccountBook
from ..privacy.budget.app_runs import admit_app
from ..privacy.budget.book import KnownSigner
from ..privacy.budget.decisions import Decide
from ..privacy.budget.refusals import record_refusal
from ..privacy.budget.signer import TRUST_IN_WORDS, Signer, Trust
from ..privacy.channel.files import write_whole
from ..privacy.errors import ChannelError, Refusal, RefusedError
from ..privacy.plan_app import AppSubmission
from ..privacy.signed import Operator, SignedSubmission, verified

Pins = Callable[[], Mapping[str, str]]  # read at each admission, so that a change holds at once
MOST_DENIED = 100_000  # keys; a server that names more is not let fill the node's memory
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


class Operators:
    """The operators that a node listens to. `root`: the federation's, PEM. `pins`: key fingerprint by name.

    `path`: where the revoked keys are kept; nowhere in tests and simulations.
    """

    def __init__(self, root: bytes, federation: str, pins: Pins, path: Path | None = None) -> None:
        self._root = root
        self._federation = federation
        self._pins = pins
        self._path = path
        self._denied = _read_denied(path) if path else frozenset()

    @property
    def trust(self) -> str:
        """Who decides which operators there are, in words for the institution."""
        pins = self._pins()
        return f"operators pinned here: {', '.join(sorted(pins))}" if pins else TRUST_IN_WORDS["coordinator"]

    def deny(self, key_fingerprints: Iterable[str]) -> None:
        """Listen to these keys no more; raise ChannelError above `MOST_DENIED`, or where they cannot be kept.

        From another thread too: the set is replaced, never changed.
        """
        denied = self._denied | {key for key in key_fingerprints if _FINGERPRINT.fullmatch(key)}
        if len(denied) > MOST_DENIED:
            raise ChannelError(f"{len(denied)} revoked keys, allowed are {MOST_DENIED}", "ask the coordinator")
        if denied != self._denied:
            self._denied = denied
            self._keep()

    def signer(self, signed: SignedSubmission, known: KnownSigner | None, now: datetime) -> Signer | None:
        """Who signed, to be entered with the admission; None where the run was admitted before, and is `known`.

        Raises RefusedError where nobody signed, the institution does not listen to it, or its key was revoked.
        """
        if known is None:
            return self.admitted(signed, now)
        self.check_not_revoked(known.key_fingerprint)
        return None

    def admit_app(
        self,
        accounts: AccountBook,
        submission: AppSubmission,
        signed: SignedSubmission,
        now: datetime,
        decide: Decide | None = None,
    ) -> str:
        """Enter the run of a Flower app that the institution allowed; give the fingerprint of the key that signed it.

        Raises RefusedError, which stands in the ledger then.
        """
        known = accounts.catch_up().signer_of(submission.run_id, submission.hash)
        try:
            signer = self.signer(signed, known, now)
        except RefusedError as refusal:
            record_refusal(accounts, submission, refusal)
            raise
        admit_app(accounts, submission, now, signer, decide)
        return accounts.book.signers[submission.run_id].key_fingerprint

    def admitted(self, signed: SignedSubmission, now: datetime) -> Signer:
        """Who signed, and may ask; raise RefusedError where nobody did, or the institution does not listen to it."""
        operator = verified(signed, self._root, self._federation, now)
        self.check_not_revoked(operator.key_fingerprint)
        return Signer(
            operator=operator.name,
            key_fingerprint=operator.key_fingerprint,
            signature=signed.signature,
            certificates=signed.certificates,
            trust=self._trust_in(operator),
            checked=now,
            certified=operator.certificate.not_before,
        )

    def is_revoked(self, key_fingerprint: str) -> bool:
        """Whether the key was revoked: of an operator, or of any other member."""
        return key_fingerprint in self._denied

    def check_not_revoked(self, key_fingerprint: str) -> None:
        """Raise RefusedError where the key was revoked."""
        if self.is_revoked(key_fingerprint):
            raise RefusedError(
                Refusal.OPERATOR_REVOKED,
                f"the operator's key {key_fingerprint[:16]}… was revoked",
                "ask the coordinator who submits now",
            )

    def _keep(self) -> None:
        if self._path is not None:
            try:
                write_whole(self._path, json.dumps(sorted(self._denied)).encode() + b"\n")
            except OSError as error:
                raise ChannelError(
                    f"{self._path}: revoked keys cannot be kept: {error.strerror}", "free space, or see who owns it"
                ) from None

    def _trust_in(self, operator: Operator) -> Trust:
        pins = self._pins()
        if not pins:
            return "coordinator"
        # The names of pins and certificates are one kind of thing; a pin under another name is a pin of another.
        if pins.get(operator.name) != operator.key_fingerprint:
            known = "is pinned with another key" if operator.name in pins else "is not pinned here"
            raise RefusedError(
                Refusal.OPERATOR_NOT_PINNED,
                f"operator {operator.name} with key {operator.key_fingerprint} {known}",
                f"compare the key with {operator.name}, then: privet node trust {operator.name} "
                f"{operator.key_fingerprint}",
            )
        return "pinned"


def _read_denied(path: Path) -> frozenset[str]:
    """The keys that were revoked before; raise ChannelError for what is not privet's: a revoked key might be let in."""
    try:
        told = json.loads(path.read_bytes()) if path.exists() else []
    except (OSError, ValueError, RecursionError):
        told = None
    if not isinstance(told, list) or not all(isinstance(key, str) and _FINGERPRINT.fullmatch(key) for key in told):
        raise ChannelError(f"{path}: not what privet wrote", "restore it; without it the server says who was revoked")
    return frozenset(told)
