"""Traps for a node that asks a policy: each ends in a denial with a reason in the ledger, and the node lives on.

A real node, a real ledger, a federation's real certificates (signed_house.py).
"""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from privet.client.node import Request
from privet.privacy.budget.decisions import Asker, Case, Cohort, DeniedError
from privet.privacy.errors import Refusal
from privet.privacy.policy.rules import LARGEST
from privet.privacy.signed import SignedSubmission
from privet.privacy.submission import Submission
from signed_house import ALICE, AUTHORITY, OTHER, House, asked
from signed_ledgers import ACCOUNT, DATASET
from signers import NOW, Authority

Make = Callable[..., Submission]
END = "\n// end of policy\n"
ALICES = f"""
@id("alice-only")
permit (principal == Operator::"tester", action in Action::"participate", resource == Dataset::"{DATASET}")
when {{ principal.key == "{ALICE.key.fingerprint}" }};
"""
SMALL = """
@id("small") forbid (principal, action in Action::"participate", resource)
unless { context.plan.epsilon <= 100000 };
"""
PERMITS = '@id("all") permit (principal, action, resource);'


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, f"{ALICES}{END}")


@pytest.fixture
def signed(make_submission: Make) -> SignedSubmission:
    return ALICE.signs(make_submission(private=True))


def denied(house: House, signed: SignedSubmission, number: int = 1) -> str:
    """Why the policy denies it; the ledger says so, nothing was touched and nothing charged."""
    return denied_request(house, asked(signed, number))


def denied_request(house: House, request: Request) -> str:
    refused, said = house.refused(request), house.decisions[-1]
    assert refused.code is Refusal.POLICY_DENIED
    assert "policy-denied" in [entry.content["code"] for entry in house.entries if entry.kind == "refused"]
    assert said["verdict"] == "denied"
    assert refused.message.startswith(f"{said['action']}: ")
    assert all(part in refused.message for part in [*said["rules"].split(), said.get("error", "")])
    return refused.message


def lives_on(house: House, signed: SignedSubmission, number: int = 1) -> None:
    """The node carries out what it may, as if nothing had been; a decision stands before each step in its ledger."""
    house.node.answer(asked(signed, number))
    kinds = [entry.kind for entry in house.all_entries]
    assert kinds[-4:] == ["decision", "begin", "decision", "answer"]
    assert kinds[kinds.index("charge") - 2 : kinds.index("charge")] == ["decision", "operator"]


# ---- values ----


def test_attempt_beyond_a_long(house: House, signed: SignedSubmission) -> None:
    """The server says which attempt it is."""
    house.node.answer(asked(signed))
    assert "could not be evaluated" in denied_request(house, replace(asked(signed, 2), attempt=2**63))
    assert (house.decisions[-1]["rules"], bool(house.decisions[-1]["error"])) == ("", True)
    lives_on(house, signed, 2)


def test_arithmetic_that_overflows_in_a_forbid(house: House, make_submission: Make) -> None:
    """Cedar skips such a forbid, and would allow (test_rules.py)."""
    house.policy.write_text(f"""{PERMITS}
        @id("sum") forbid (principal, action == Action::"admit", resource)
        when {{ context.plan.epsilon + context.account.epsilonAfter > 50000000 }};{END}""")
    unbounded = ALICE.signs(make_submission(run_id="run-2"))
    why = denied(house, unbounded)
    assert "could not be evaluated" in why
    assert "sum" in why
    lives_on(house, ALICE.signs(make_submission(private=True)))


def test_arithmetic_that_overflows_in_a_permit(house: House, signed: SignedSubmission) -> None:
    house.policy.write_text(f"""{ALICES}
        @id("odd") permit (principal, action in Action::"participate", resource)
        when {{ context.plan.epsilon * {LARGEST} > 0 }};{END}""")
    assert "could not be evaluated" in denied(house, signed)
    house.policy.write_text(f"{ALICES}{END}")
    lives_on(house, signed)


def case_of(house: House, submission: Submission, action: str = "train") -> Case:
    """A case as the guard makes one, in which everything is in order."""
    book = house.accounts.catch_up()
    dataset, account = book.datasets[DATASET], book.accounts[ACCOUNT]
    asker = Asker("tester", ALICE.key.fingerprint, NOW)
    return Case(submission, action, asker, NOW, book, dataset, account, round=1, attempt=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {"cohort": Cohort(told="5")},  # type: ignore[arg-type]
        {"cohort": Cohort(parties=2.5)},  # type: ignore[arg-type]
        {"cohort": Cohort(are_pinned=1)},  # type: ignore[arg-type]
        {"round": None},
        {"attempt": "1"},
        {"round": 2**70},
        {"asker": Asker("tester", None)},  # type: ignore[arg-type]
        {"action": "teleport"},
        {"action": "submit"},
        {"action": "participate"},
    ],
    ids=str,
)
def test_value_of_a_wrong_type_and_an_unknown_action(
    house: House, make_submission: Make, changes: dict[str, Any]
) -> None:
    """What no code of ours asks. The policy permits everything, so that nothing but the schema denies it."""
    house.policy.write_text(f"{PERMITS}{END}")
    submission = make_submission(private=True)
    assert house.decide(case_of(house, submission)).body["verdict"] == "permitted"
    with pytest.raises(DeniedError) as caught:
        house.decide(replace(case_of(house, submission), **changes))
    assert (caught.value.code, bool(caught.value.decided.body["error"])) == (Refusal.POLICY_DENIED, True)
    lives_on(house, ALICE.signs(submission))


def test_attribute_that_is_missing(house: House, make_submission: Make) -> None:
    """Of the account, as if a ledger of another version had none: `None` is no attribute to Cedar."""
    house.policy.write_text(f"{PERMITS}{END}")
    case = case_of(house, make_submission(private=True))
    assert case.dataset is not None
    nameless = replace(case.dataset, declared_size=None)  # type: ignore[arg-type]
    with pytest.raises(DeniedError) as caught:
        house.decide(replace(case, dataset=nameless))
    assert caught.value.decided.body["error"]


# ---- who asks ----


def test_unsigned_plan(house: House, signed: SignedSubmission) -> None:
    assert house.refusal(asked(replace(signed, signature=b""))) is Refusal.NOT_SIGNED
    assert house.decisions == []  # nobody is asked about what nobody signed
    assert "no signature" in house.entries[-1].content["why"]
    lives_on(house, signed)


def test_plan_signed_by_an_operator_of_another_federation(house: House, make_submission: Make) -> None:
    submission = make_submission(private=True)
    for authority in (Authority("test"), Authority("others")):
        assert house.refusal(asked(authority.party("tester").signs(submission))) is Refusal.NOT_SIGNED
    lives_on(house, ALICE.signs(submission))


def test_plan_whose_bytes_the_server_altered(house: House, make_submission: Make, signed: SignedSubmission) -> None:
    easier = make_submission("privacy.noise-multiplier=2.0", private=True)
    assert house.refusal(asked(replace(signed, submission=easier.canonical))) is Refusal.NOT_SIGNED
    spaced = replace(signed, submission=signed.submission.replace(b":", b": ", 1))
    assert house.refusal(asked(spaced)) is Refusal.MALFORMED_REQUEST
    assert house.decisions == []
    lives_on(house, signed)


def test_certificate_that_expired_before_the_admission(house: House, make_submission: Make) -> None:
    submission = make_submission(private=True)
    house.moment = NOW + timedelta(hours=24, seconds=1)
    assert house.refusal(asked(ALICE.signs(submission))) is Refusal.NOT_SIGNED
    assert "expired" in house.entries[-1].content["why"] or "valid" in house.entries[-1].content["why"]
    lives_on(house, AUTHORITY.party("tester", key=ALICE.key, at=house.moment).signs(submission))


def test_certificate_that_was_revoked_since(house: House, make_submission: Make, signed: SignedSubmission) -> None:
    house.policy.write_text(f"{PERMITS}{END}")
    house.node.answer(asked(signed))
    house.operators.deny([ALICE.key.fingerprint])
    before = len(house.decisions)
    assert house.refusal(asked(signed, 2)) is Refusal.OPERATOR_REVOKED
    assert len(house.decisions) == before
    house.node.answer(asked(OTHER.signs(make_submission(private=True, run_id="run-2"))))


def test_right_name_and_another_key(house: House, make_submission: Make, signed: SignedSubmission) -> None:
    """The server holds the issuing authority: it can name a `tester` of its own. The rule speaks of the key."""
    forged = OTHER.signs(make_submission(private=True))
    assert "no rule permits it" in denied(house, forged)
    (said,) = house.decisions
    assert (said["operator"], said["rules"], said.get("error", "")) == ("tester", "", "")
    assert OTHER.key.fingerprint in said["facts"]
    lives_on(house, signed)


def test_right_name_and_another_key_where_the_key_is_pinned(
    house: House, make_submission: Make, signed: SignedSubmission
) -> None:
    """Even where the policy asks for no key."""
    house.policy.write_text(f"{PERMITS}{END}")
    house.pins = {"tester": ALICE.key.fingerprint}
    assert house.refusal(asked(OTHER.signs(make_submission(private=True)))) is Refusal.OPERATOR_NOT_PINNED
    assert house.decisions == []
    lives_on(house, signed)


def test_rule_that_asks_for_a_pinned_key_where_none_is(house: House, signed: SignedSubmission) -> None:
    only = '@id("pinned") forbid (principal, action in Action::"participate", resource) unless { principal.isPinned };'
    house.policy.write_text(f"{ALICES}{only}{END}")
    assert "forbidden by rule pinned" in denied(house, signed)
    house.pins = {"tester": ALICE.key.fingerprint}
    lives_on(house, signed)


# ---- a file that is half written ----


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


ALL_BUT_SMALL = f"{PERMITS}{SMALL}{END}"
PIECES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a valid prefix without its forbid": (lambda path: path.write_text(f"{PERMITS}\n"), "cut short"),
    "cut inside its forbid": (lambda path: path.write_text(ALL_BUT_SMALL[:100]), "cut short"),
    "empty": (lambda path: path.write_text(""), "cut short"),
    "removed": (lambda path: path.unlink(), "there is no policy"),
    "a directory": (_directory, "cannot be read"),
    "not UTF-8": (lambda path: path.write_bytes(b"\xff" + ALL_BUT_SMALL.encode()), "UTF-8"),
    "1 MB": (lambda path: path.write_bytes(b"\n" * 2**20 + f"{PERMITS}{END}".encode()), "allowed are"),
    "two rules of one name": (lambda path: path.write_text(f"{PERMITS}{PERMITS}{END}"), "already"),
    "a rule without a name": (lambda path: path.write_text(f"permit (principal, action, resource);{END}"), "@id"),
    "a template": (
        lambda path: path.write_text(f'@id("any") permit (principal == ?principal, action, resource);{END}'),
        "template",
    ),
}


@pytest.mark.parametrize("what", PIECES)
def test_policy_that_is_half_written_during_a_run(
    house: House, make_submission: Make, signed: SignedSubmission, what: str
) -> None:
    """The policy that held forbids; the one that is written would, when whole. In between nothing is permitted."""
    house.policy.write_text(f"{SMALL}{END}")
    assert "forbidden by rule small" in denied(house, signed)
    writes, problem = PIECES[what]
    writes(house.policy)
    denied(house, signed)
    assert problem in house.rules.problem
    another = ALICE.signs(make_submission(private=True, run_id="run-2"))
    assert denied(house, another)
    house.policy.rmdir() if house.policy.is_dir() else house.policy.unlink(missing_ok=True)
    house.policy.write_text(ALL_BUT_SMALL)
    assert "forbidden by rule small" in denied(house, signed)
    house.policy.write_text(f"{ALICES}{END}")
    lives_on(house, signed)


@pytest.mark.parametrize("what", PIECES)
def test_node_that_starts_with_half_a_policy_denies_everything_and_says_why(
    house: House, signed: SignedSubmission, what: str
) -> None:
    writes, problem = PIECES[what]
    writes(house.policy)
    house.start()
    assert problem in denied(house, signed)
    house.policy.rmdir() if house.policy.is_dir() else house.policy.unlink(missing_ok=True)
    house.policy.write_text(f"{ALICES}{END}")
    lives_on(house, signed)


def test_policy_that_is_taken_away_between_two_rounds(house: House, signed: SignedSubmission) -> None:
    house.node.answer(asked(signed))
    house.policy.unlink()
    assert "there is no policy" in denied(house, signed, 2)
    house.policy.write_text(f"{ALICES}{END}")
    lives_on(house, signed, 2)


def test_policy_that_forbids_a_release_keeps_the_answer(house: House, signed: SignedSubmission) -> None:
    """The attempt is spent, and nothing leaves; permitted again, the next attempt goes on."""
    held = '@id("hold") forbid (principal, action == Action::"releaseUpdate", resource);'
    house.policy.write_text(f"{ALICES}{held}{END}")
    with pytest.raises(DeniedError, match="forbidden by rule hold"):
        house.node.answer(asked(signed))
    assert house.kinds == ["operator", "charge", "begin", "refused"]
    house.policy.write_text(f"{ALICES}{END}")
    assert house.refused(asked(signed)).code is Refusal.ATTEMPT_SPENT
    lives_on(house, signed, 2)


def test_kept_answer_is_asked_about_again(house: House, signed: SignedSubmission) -> None:
    """What was answered yesterday leaves today by today's policy."""
    first = house.node.answer(asked(signed))
    assert house.node.answer(asked(signed)).parameters.keys() == first.parameters.keys()
    house.policy.write_text(f"{ALICES}{SMALL}{END}")
    assert "releaseUpdate: forbidden by rule small" in denied(house, signed)


def test_same_denial_is_entered_once_a_day(house: House, signed: SignedSubmission) -> None:
    house.policy.write_text(END)
    for _ in range(5):
        denied(house, signed)
    assert [said["verdict"] for said in house.decisions] == ["denied"]
    house.moment += timedelta(days=1)
    denied(
        house, AUTHORITY.party("tester", key=ALICE.key, at=house.moment).signs(Submission.from_bytes(signed.submission))
    )
    assert len(house.decisions) == 2
