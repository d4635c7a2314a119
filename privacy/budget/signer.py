"""Signer: who asked for a run, as the node checked it at admission and enters it in its ledger, for good.

The entry `operator` stands right before the charge or the app's run that it belongs to, in one transaction. It holds
all that an auditor needs to check again: the signature, and the certificates that it leads to.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ..envelope import time_text
from ..plan_app import AnySubmission
from .decisions import Asker

# `pinned`: the institution pinned this key for this name. `coordinator`: it trusts the coordinator to name operators.
Trust = Literal["pinned", "coordinator"]
TRUST_IN_WORDS: dict[Trust, str] = {
    "pinned": "key pinned by the institution",
    "coordinator": "coordinator trusted to name operators",
}


@dataclass(frozen=True, slots=True)
class Signer:
    """An operator whose signature held at `checked`. `certificates`: PEM, the operator's and its issuer's.

    `certified`: when the operator's certificate began.
    """

    operator: str
    key_fingerprint: str
    signature: bytes
    certificates: bytes
    trust: Trust
    checked: datetime
    certified: datetime

    @property
    def asker(self) -> Asker:
        """The operator, as a policy is asked about it."""
        return Asker(self.operator, self.key_fingerprint, self.certified)

    def body(self, submission: AnySubmission) -> dict[str, str]:
        """The entry, for the submission that was signed."""
        return {
            "run": submission.run_id,
            "submission": submission.hash,
            "operator": self.operator,
            "key_fingerprint": self.key_fingerprint,
            "signature": self.signature.hex(),
            "certificates": self.certificates.decode("ascii"),
            "trust": self.trust,
            "checked": time_text(self.checked),
        }
