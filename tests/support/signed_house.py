"""An institution of a federation in memory: a real node, a real ledger, real certificates; a trainer that counts."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from open_policy import EVERYTHING
from privet.client.answers import Answers
from privet.client.draw import Draw
from privet.client.node import Node, Request
from privet.client.operators import Operators
from privet.client.policy import NodePolicy
from privet.client.settings import NodeSettings
from privet.client.tasks.protocol import Source
from privet.privacy.budget.accounts import AccountBook
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.ledger import Entry, Ledger
from privet.privacy.errors import Refusal, RefusedError
from privet.privacy.parameters import Array, Parameters
from privet.privacy.policy.policy_file import PolicyFile
from privet.privacy.signed import SignedSubmission
from privet.privacy.submission import Submission
from signed_ledgers import DATASET, DECLARED, declared, key_of, read
from signers import NOW, Authority

AUTHORITY = Authority("test")
ALICE = AUTHORITY.party("tester")  # whom the submissions name
OTHER = AUTHORITY.party("tester")  # the same name, another key
MODEL = {"weight": np.zeros(3, dtype=np.float32)}


class CountingTrainer:
    """Counts what was asked of it, and how often it touched records."""

    def __init__(self) -> None:
        self.asked = self.touched = 0

    def initial(self) -> dict[str, Array]:
        self.asked += 1
        return dict(MODEL)

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        self.asked += 1
        self.touched += 1
        return dict(MODEL)

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        self.asked += 1
        self.touched += 1
        return {}

    def done(self) -> dict[str, str]:
        return {}


class House:
    """An institution in a federation, whose node can be started again. `policy`: as its file begins."""

    def __init__(self, folder: Path, policy: str = EVERYTHING) -> None:
        self.folder = folder
        self.path = folder / "ledger.sqlite"
        self.policy = folder / "policy.cedar"
        self.policy.write_text(policy)
        self.settings = NodeSettings()
        self.moment = NOW
        self.pins: dict[str, str] = {}
        self.trainer = CountingTrainer()
        self.built = 0
        book = declared(self._ledger(), size=1000)
        book.ledger.close()
        self.start()

    def start(self) -> None:
        """Begin anew, as after a restart."""
        self.operators = Operators(AUTHORITY.root_pem, "test", lambda: self.pins)
        self.accounts = AccountBook(self._ledger())
        self.rules = PolicyFile(self.policy)
        self.decide = NodePolicy(self.rules, lambda: self.settings.model_copy(update={"operators": self.pins}))
        self.node = Node(
            name="hospital",
            source=Path("/data"),
            guard=Guard(self.accounts, DATASET, self.decide),
            answers=Answers(self.folder / "answers"),
            workshop=self.build,
            clock=lambda: self.moment,
            operators=self.operators,
        )

    def _ledger(self) -> Ledger:
        clock: Callable[[], datetime] = lambda: self.moment  # noqa: E731 - a clock that a test sets
        return Ledger.open(self.path, purpose="deployment", owner="hospital", key=key_of(self.path), clock=clock)

    def build(self, submission: Submission, dataset: DeclaredDataset, source: Source) -> CountingTrainer:
        """See node.Workshop."""
        self.built += 1
        return self.trainer

    @property
    def all_entries(self) -> list[Entry]:
        """What happened since the data set was declared."""
        found = read(self.path, "deployment", "hospital")
        assert [entry.kind for entry in found[:3]] == DECLARED
        return found[3:]

    @property
    def entries(self) -> list[Entry]:
        """What happened, but for what the policy said."""
        return [entry for entry in self.all_entries if entry.kind not in ("policy", "decision")]

    @property
    def decisions(self) -> list[Any]:
        """What the policy said, in order."""
        return [entry.content for entry in self.all_entries if entry.kind == "decision"]

    @property
    def kinds(self) -> list[str]:
        """Of what happened, but for what the policy said."""
        return [entry.kind for entry in self.entries]

    def refusal(self, request: Request) -> Refusal:
        """The code; no task was built, no model made, nothing touched and nothing charged."""
        before = (self.built, self.trainer.asked)
        code = self.refused(request).code
        assert (self.built, self.trainer.asked) == before
        return code

    def refused(self, request: Request) -> RefusedError:
        """The refusal; nothing was touched, and nothing charged."""
        before = (self.trainer.touched, self.kinds.count("charge"), self.kinds.count("begin"))
        with pytest.raises(RefusedError) as caught:
            self.node.answer(request)
        assert (self.trainer.touched, self.kinds.count("charge"), self.kinds.count("begin")) == before
        return caught.value


def asked(signed: SignedSubmission, number: int = 1, stage: str = "train") -> Request:
    """A request of a round."""
    parameters = {} if stage == "initial" else MODEL
    signature = {"signature": signed.signature, "certificates": signed.certificates}
    return Request(stage, signed.submission, number, 1, parameters, **signature)  # type: ignore[arg-type]
