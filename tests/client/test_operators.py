"""A node that carries out only what operators signed: a real node, a real ledger, a federation's real certificates."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from open_policy import open_policy
from privet.client.answers import Answers
from privet.client.app import client_app
from privet.client.node import Node
from privet.client.operators import MOST_DENIED, Operators
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.budget.guard import Guard
from privet.privacy.channel import words
from privet.privacy.channel.arrays import to_record
from privet.privacy.channel.identities import Role
from privet.privacy.errors import ChannelError, Refusal, RefusedError
from privet.privacy.plan_app import AppPlan, AppSubmission, resolve_app
from privet.privacy.submission import Submission
from privet.simulations.grid import LocalGrid
from signed_house import ALICE, AUTHORITY, MODEL, OTHER, House, asked
from signed_ledgers import DATASET, key_of
from signers import NOW, Authority, Party

Make = Callable[..., Submission]


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


@pytest.fixture
def submission(make_submission: Make) -> Submission:
    return make_submission(private=True)


def test_what_was_checked_is_entered_right_before_the_charge(house: House, submission: Submission) -> None:
    signed = ALICE.signs(submission)
    house.node.answer(asked(signed))
    assert house.kinds == ["operator", "charge", "begin", "answer"]
    assert house.entries[0].content == {
        "run": "run-1",
        "submission": submission.hash,
        "operator": "tester",
        "key_fingerprint": ALICE.key.fingerprint,
        "signature": signed.signature.hex(),
        "certificates": ALICE.chain.decode(),
        "trust": "coordinator",
        "checked": "2026-11-22T12:00:00Z",
    }


def test_ledger_of_a_signed_run_holds_and_leads_to_the_root(house: House, submission: Submission) -> None:
    house.node.answer(asked(ALICE.signs(submission)))
    audit = audit_ledger(house.path, public_key=key_of(house.path).public, root=AUTHORITY.root_pem)
    # The trainer above says nothing of what it did; that is all that is found.
    assert {violation.code for violation in audit.violations} == {"execution"}


@pytest.mark.parametrize("stage", ["initial", "train", "evaluate"])
def test_unsigned_submission(house: House, submission: Submission, stage: str) -> None:
    signed = ALICE.signs(submission)
    assert house.refusal(asked(replace(signed, signature=b""), stage=stage)) == Refusal.NOT_SIGNED
    assert house.refusal(asked(replace(signed, certificates=b""), stage=stage)) == Refusal.NOT_SIGNED
    assert house.kinds == ["refused"]
    assert house.entries[0].content["operator"] == "tester"


def test_submission_altered_by_the_server(house: House, submission: Submission, make_submission: Make) -> None:
    longer = make_submission("run.rounds=40", private=True)
    assert house.refusal(asked(replace(ALICE.signs(submission), submission=longer.canonical))) == Refusal.NOT_SIGNED


def test_operator_of_another_federation(house: House, submission: Submission) -> None:
    stranger = Authority("test").party("tester")
    assert house.refusal(asked(stranger.signs(submission))) == Refusal.NOT_SIGNED


def test_node_of_one_federation_is_not_asked_for_another(house: House, submission: Submission) -> None:
    elsewhere = Operators(AUTHORITY.root_pem, "others", dict)
    with pytest.raises(RefusedError, match="is for federation test, this is others"):
        elsewhere.admitted(ALICE.signs(submission), NOW)


def test_node_certificate_signs_nothing(house: House, submission: Submission) -> None:
    assert house.refusal(asked(AUTHORITY.party("tester", Role.NODE).signs(submission))) == Refusal.NOT_SIGNED


def test_expired_operator_certificate_at_admission(house: House, submission: Submission) -> None:
    house.moment = NOW + timedelta(hours=25)
    assert house.refusal(asked(ALICE.signs(submission))) == Refusal.NOT_SIGNED
    renewed = AUTHORITY.party("tester", key=ALICE.key, at=house.moment)
    house.node.answer(asked(renewed.signs(submission)))
    assert house.entries[1].content["checked"] == "2026-11-23T13:00:00Z"


def test_certificate_that_expires_during_a_run_ends_nothing(house: House, submission: Submission) -> None:
    """It was valid when the run was admitted; the ledger says so."""
    signed = ALICE.signs(submission)
    house.node.answer(asked(signed))
    house.moment = NOW + timedelta(days=3)
    house.node.answer(asked(signed, 2))
    house.start()
    house.node.answer(asked(signed, 3))
    assert house.kinds.count("operator") == house.kinds.count("charge") == 1


def test_second_signature_of_the_same_run_changes_nothing(house: House, submission: Submission) -> None:
    house.node.answer(asked(ALICE.signs(submission)))
    house.node.answer(asked(ALICE.signs(submission), 2))
    house.node.answer(asked(OTHER.signs(submission), 3))
    house.operators.deny([OTHER.key.fingerprint])  # who signed later is not who was admitted
    house.node.answer(asked(OTHER.signs(submission), 4))
    assert house.kinds.count("operator") == 1
    assert house.entries[0].content["key_fingerprint"] == ALICE.key.fingerprint


def test_signed_second_submission_under_the_same_run(
    house: House, submission: Submission, make_submission: Make
) -> None:
    house.node.answer(asked(ALICE.signs(submission)))
    other = make_submission("run.seed=9", private=True)
    with pytest.raises(RefusedError) as caught:
        house.node.answer(asked(ALICE.signs(other), 2))
    assert caught.value.code == Refusal.OTHER_SUBMISSION
    assert house.kinds.count("operator") == 1
    assert house.refusal(asked(replace(ALICE.signs(other), signature=b"x"), 2)) == Refusal.NOT_SIGNED


@pytest.mark.parametrize("restarted", [False, True])
def test_revoked_operator_between_rounds(house: House, submission: Submission, restarted: bool) -> None:
    signed = ALICE.signs(submission)
    house.node.answer(asked(signed))
    if restarted:
        house.start()
    house.operators.deny([ALICE.key.fingerprint])
    for number in (2, 3, 4):
        assert house.refusal(asked(signed, number)) == Refusal.OPERATOR_REVOKED
        assert house.refusal(asked(OTHER.signs(submission), number)) == Refusal.OPERATOR_REVOKED
    assert house.kinds == ["operator", "charge", "begin", "answer", "refused"]


def test_revoked_operator_begins_nothing(house: House, submission: Submission) -> None:
    house.operators.deny([ALICE.key.fingerprint])
    house.operators.deny(["0" * 64])  # what comes later takes nothing away
    house.operators.deny([])
    assert house.refusal(asked(ALICE.signs(submission))) == Refusal.OPERATOR_REVOKED
    house.node.answer(asked(OTHER.signs(submission)))


def test_revoked_keys_are_denied_after_a_restart_too(tmp_path: Path) -> None:
    path = tmp_path / "home" / "denied-keys.json"
    before = Operators(AUTHORITY.root_pem, "test", dict, path)
    before.deny([ALICE.key.fingerprint, "no fingerprint"])
    before.deny([OTHER.key.fingerprint])
    after = Operators(AUTHORITY.root_pem, "test", dict, path)
    after.check_not_revoked("0" * 64)
    for party in (ALICE, OTHER):
        with pytest.raises(RefusedError) as caught:
            after.check_not_revoked(party.key.fingerprint)
        assert caught.value.code == Refusal.OPERATOR_REVOKED


@pytest.mark.parametrize("content", ["", "{}", "[7]", '["ab"]', "[" * 100_000])
def test_node_does_not_start_on_a_list_of_revoked_keys_that_is_not_privets(tmp_path: Path, content: str) -> None:
    path = tmp_path / "denied-keys.json"
    path.write_text(content)
    with pytest.raises(ChannelError, match="not what privet wrote"):
        Operators(AUTHORITY.root_pem, "test", dict, path)


def test_attack_endless_list_of_revoked_keys(house: House) -> None:
    house.operators.deny(f"{number:064x}" for number in range(MOST_DENIED))
    with pytest.raises(ChannelError, match="revoked keys, allowed are"):
        house.operators.deny(["f" * 64])


def test_pinned_operator_is_admitted_and_the_ledger_says_why(house: House, submission: Submission) -> None:
    house.pins = {"tester": ALICE.key.fingerprint, "bob": "0" * 64}
    house.node.answer(asked(ALICE.signs(submission)))
    assert house.entries[0].content["trust"] == "pinned"
    assert house.operators.trust == "operators pinned here: bob, tester"


def test_right_name_other_key(house: House, submission: Submission) -> None:
    """The server holds the issuing authority: it can name a `tester` of its own, whom only a pin unmasks."""
    house.pins = {"tester": ALICE.key.fingerprint}
    assert house.refusal(asked(OTHER.signs(submission))) == Refusal.OPERATOR_NOT_PINNED
    assert "is pinned with another key" in house.entries[0].content["why"]
    assert OTHER.key.fingerprint in house.entries[0].content["why"]


def test_right_key_other_name(house: House, submission: Submission) -> None:
    house.pins = {"bob": ALICE.key.fingerprint}
    assert house.refusal(asked(ALICE.signs(submission))) == Refusal.OPERATOR_NOT_PINNED
    assert "is not pinned here" in house.entries[0].content["why"]


def test_pin_holds_from_the_next_admission_on(house: House, make_submission: Make) -> None:
    assert house.operators.trust == "coordinator trusted to name operators"
    first, second = make_submission(private=True), make_submission(private=True, run_id="run-2")
    house.node.answer(asked(OTHER.signs(first)))
    house.pins = {"tester": ALICE.key.fingerprint}
    house.node.answer(asked(OTHER.signs(first), 2))  # admitted before
    assert house.refusal(asked(OTHER.signs(second))) == Refusal.OPERATOR_NOT_PINNED
    house.node.answer(asked(ALICE.signs(second)))


def test_nothing_of_a_signature_is_looked_at_where_the_plan_is_not_ours(house: House, make_submission: Make) -> None:
    other = make_submission("run.dataset=patients")
    assert house.refusal(asked(ALICE.signs(other))) == Refusal.UNKNOWN_DATASET
    assert house.kinds == []


def test_run_that_costs_too_much_leaves_no_operator(house: House, make_submission: Make) -> None:
    """One transaction: what was checked stands with a charge, or not at all."""
    wasteful = make_submission("privacy.delta=0.01", private=True)
    with pytest.raises(RefusedError, match="not below 1 / declared size"):
        house.node.answer(asked(ALICE.signs(wasteful)))
    assert house.kinds == ["refused"]
    assert house.accounts.book.signers == {}


def test_deployment_without_operators_or_without_a_policy_is_a_mistake(house: House) -> None:
    answers, asking = Answers(house.folder), Guard(house.accounts, DATASET, open_policy(house.folder))
    with pytest.raises(ValueError, match="what operators signed"):
        Node("hospital", Path("/data"), asking, answers, house.build)
    with pytest.raises(ValueError, match="its policy permits"):
        Node(
            "hospital",
            Path("/data"),
            Guard(house.accounts, DATASET),
            answers,
            house.build,
            operators=house.operators,
        )


def test_signature_comes_with_the_message(house: House, submission: Submission) -> None:
    """Through the ClientApp, as a server sends it: nothing signed, nothing done; signed, and it is carried out."""
    context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
    grid = LocalGrid(client_app(lambda _: house.node), {7: context})
    signed = ALICE.signs(submission)
    told = {words.SUBMISSION: signed.submission, words.ROUND: 1, words.ATTEMPT: 1}
    seal = {words.SIGNATURE: signed.signature, words.CERTIFICATES: signed.certificates}

    def reply(config: dict[str, bytes | int]) -> Message:
        content = RecordDict({words.CONFIG: ConfigRecord({**config}), words.ARRAYS: to_record(MODEL)})
        (answer,) = grid.send_and_receive([grid.create_message(content, words.TRAIN, 7, "1")])
        return answer

    assert reply(told).error.reason == Refusal.NOT_SIGNED
    assert not reply(told | seal).has_error()
    assert house.kinds == ["refused", "operator", "charge", "begin", "answer"]


# A Flower app.


@pytest.fixture
def app() -> AppSubmission:
    told = {"run": {"name": "a"}, "app": {"name": "quickstart"}, "privacy": {"unit": "none"}}
    return resolve_app(
        AppPlan.model_validate(told), federation="test", run_id="run-1", operator="tester", now=NOW - timedelta(hours=1)
    )


def admit(house: House, app: AppSubmission, party: Party = ALICE) -> str:
    return house.operators.admit_app(house.accounts, app, party.signs(app), house.moment)


def test_run_of_an_app_is_entered_with_its_operator_once(house: House, app: AppSubmission) -> None:
    assert [admit(house, app) for _ in range(3)] == [ALICE.key.fingerprint] * 3
    house.start()
    assert admit(house, app, OTHER) == ALICE.key.fingerprint  # it was admitted; the key that counts is the first
    assert house.kinds == ["operator", "app"]
    told = house.entries[1].content
    assert told == {
        "run": "run-1",
        "submission": app.hash,
        "plan": app.canonical.decode(),
        "app": "quickstart",
    }


def test_run_of_an_app_goes_on_when_the_certificate_has_expired(house: House, app: AppSubmission) -> None:
    admit(house, app)
    house.moment = NOW + timedelta(days=2)
    assert admit(house, app) == ALICE.key.fingerprint


def app_refusal(house: House, app: AppSubmission, party: Party = ALICE) -> Refusal:
    with pytest.raises(RefusedError) as caught:
        admit(house, app, party)
    assert house.kinds[-1] == "refused"
    assert house.entries[-1].content["app"] == "quickstart"
    return caught.value.code


def test_unsigned_app_is_not_run(house: House, app: AppSubmission) -> None:
    assert app_refusal(house, app, AUTHORITY.party("bob")) == Refusal.NOT_SIGNED
    house.moment = NOW + timedelta(days=40)
    fresh = AUTHORITY.party("tester", at=house.moment)
    assert app_refusal(house, app, fresh) == Refusal.NOT_VALID_NOW
    assert "app" not in house.kinds
    assert "operator" not in house.kinds


def test_revoked_operator_runs_no_app_further(house: House, app: AppSubmission) -> None:
    admit(house, app)
    house.operators.deny([ALICE.key.fingerprint])
    assert app_refusal(house, app) == Refusal.OPERATOR_REVOKED


def test_run_id_is_of_an_app_or_of_a_task(house: House, app: AppSubmission, submission: Submission) -> None:
    admit(house, app)
    with pytest.raises(RefusedError) as caught:
        house.node.answer(asked(ALICE.signs(submission)))
    assert caught.value.code == Refusal.OTHER_SUBMISSION
    assert house.kinds == ["operator", "app", "refused"]


def test_run_id_of_a_task_is_no_apps(house: House, app: AppSubmission, submission: Submission) -> None:
    house.node.answer(asked(ALICE.signs(submission)))
    assert app_refusal(house, app) == Refusal.OTHER_SUBMISSION
    assert house.kinds.count("operator") == 1


def test_other_app_under_the_same_run(house: House, app: AppSubmission) -> None:
    admit(house, app)
    other = AppSubmission(app.body.model_copy(update={"expires": "2026-12-01T00:00:00Z"}))
    assert app_refusal(house, other) == Refusal.OTHER_SUBMISSION
    assert house.kinds == ["operator", "app", "refused"]


def test_book_remembers_signers_and_apps_over_a_snapshot(
    house: House, app: AppSubmission, make_submission: Make
) -> None:
    task = make_submission(private=True, run_id="run-2")
    admit(house, app)
    house.node.answer(asked(ALICE.signs(task)))
    head = house.accounts.ledger.head()
    assert head is not None
    house.accounts.ledger.save_snapshot(head.sequence, house.accounts.book.dump())
    house.start()
    assert house.accounts.book.apps == {"run-1": app.hash}
    assert {run: known.key_fingerprint for run, known in house.accounts.book.signers.items()} == {
        "run-1": ALICE.key.fingerprint,
        "run-2": ALICE.key.fingerprint,
    }
    house.operators.deny([ALICE.key.fingerprint])
    assert house.refusal(asked(ALICE.signs(task), 2)) == Refusal.OPERATOR_REVOKED
