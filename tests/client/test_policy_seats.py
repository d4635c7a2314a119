"""Several processes write into one ledger: what one of them decided is entered before another writes."""

from collections.abc import Callable
from pathlib import Path

import pytest
from open_policy import EVERYTHING
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.budget.approvals import say
from privet.privacy.budget.decisions import Case, Decided, DeniedError
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.ledger import Ledger
from privet.privacy.signed import SignedSubmission
from privet.privacy.submission import Submission
from signed_house import ALICE, House, asked
from signed_ledgers import DATASET

Make = Callable[..., Submission]
NOT_TWICE = """
@id("not-twice") forbid (principal, action in [Action::"train", Action::"releaseUpdate"], resource)
when { context.plan.run == "run-1" };
"""
STEWARD = """
@id("steward") @approval("steward") forbid (principal, action == Action::"admit", resource)
unless { context.approvals.contains("steward") };
"""


class Crowded(Ledger):
    """A ledger into which another process writes as soon as it can, once `other` is set."""

    other: Callable[[], None] | None = None

    def transaction(self):  # type: ignore[no-untyped-def]  # as its class has it
        if self.other is not None:
            other, self.other = self.other, None
            other()
        return super().transaction()


def crowded(house: House, other: Callable[[], None]) -> None:
    """Give the house's node a ledger where `other` happens in the first gap after a denial."""
    house.accounts.ledger.__class__ = Crowded
    ledger = house.accounts.ledger
    assert isinstance(ledger, Crowded)
    inner = house.decide

    def decide(case: Case) -> Decided:
        try:
            return inner(case)
        except DeniedError:
            ledger.other = other
            raise

    house.node._guard = Guard(house.accounts, DATASET, decide)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def signed(make_submission: Make) -> SignedSubmission:
    return ALICE.signs(make_submission(private=True, run_id="run-1"))


def seat_beside(house: House) -> House:
    """Another process on the same ledger."""
    other = object.__new__(House)
    other.__dict__.update(house.__dict__)
    other.start()
    return other


@pytest.mark.parametrize("attempt", [1, 2], ids=["kept answer", "new attempt"])
def test_attack_other_seat_charges_between_a_denial_and_its_entry(
    house: House, signed: SignedSubmission, make_submission: Make, attempt: int
) -> None:
    """Else the denial's facts are not those of the entries before it, and an honest ledger is called wrong."""
    house.node.answer(asked(signed))
    house.policy.write_text(NOT_TWICE + EVERYTHING)
    beside = seat_beside(house)
    another = ALICE.signs(make_submission(private=True, run_id="run-9"))
    crowded(house, lambda: beside.node.answer(asked(another)) and None)
    assert isinstance(house.refused(asked(signed, attempt)), DeniedError)
    audit = audit_ledger(house.path)
    assert audit.counts.keys() <= {"execution"}, audit.violations  # the trainer here tells nothing of what it did
    assert "run-9" not in audit.history.runs, "it finds no gap"


def test_attack_person_approves_between_a_question_and_its_entry(house: House, signed: SignedSubmission) -> None:
    house.policy.write_text(STEWARD + EVERYTHING)
    house.refused(asked(signed))
    house.moment = house.moment.replace(day=house.moment.day + 1)  # on another day it is entered again
    beside = seat_beside(house)
    crowded(house, lambda: say(beside.accounts, "run-1", "steward", "approved", "agreed") and None)
    with pytest.raises(DeniedError):
        house.node.answer(asked(signed))
    audit = audit_ledger(house.path)
    assert audit.counts.keys() <= {"execution"}, audit.violations  # the trainer here tells nothing of what it did
    assert len(audit.history.decisions) == 2
