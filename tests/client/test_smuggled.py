"""What a server may try beside a permitted submission: another one in another place, an app that never ends."""

from datetime import timedelta
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, Metadata, RecordDict
from privet.client.trained_run import TrainedRun, task_submission
from privet.privacy.channel import words
from privet.privacy.channel.flower import SERVER_NODE_ID, run_number
from privet.privacy.errors import Refusal, RefusedError
from privet.privacy.plan_app import AppPlan, AppSubmission, resolve_app
from privet.privacy.signed import SignedSubmission
from privet.privacy.submission import Submission
from signed_house import ALICE, House
from signers import NOW

APP = {"run": {"name": "x"}, "app": {"name": "quickstart", "min-nodes": 2}, "privacy": {"unit": "none"}}


class Silent:
    countersigned = ""


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def bringing(record: SignedSubmission) -> ConfigRecord:
    return ConfigRecord(
        {
            words.SUBMISSION: record.submission,
            words.SIGNATURE: record.signature,
            words.CERTIFICATES: record.certificates,
            words.ROUND: 0,
            words.ATTEMPT: 1,
        }
    )


def described(**records: ConfigRecord) -> Message:
    number = run_number("run-1")
    metadata = Metadata(number, "ab" * 16, SERVER_NODE_ID, 1, "", "1", 1e9, 60.0, words.DESCRIBE)
    return Message(content=RecordDict({**records}), metadata=metadata)  # type: ignore[call-overload]


def run_of(house: House, message: Message) -> TrainedRun:
    return TrainedRun(house.node, None, "run-1", message, Silent())  # type: ignore[arg-type]


def test_considered_submission_is_made_ready(house: House, make_submission: object) -> None:
    """What the others below are compared with."""
    message = described(config=bringing(ALICE.signs(made(make_submission))))
    run = run_of(house, message)
    assert not run.answer(message).has_error()
    run.prepare(message)
    assert house.built == 1


def made(make_submission: object, *assignments: str, **changes: object) -> Submission:
    submission: Submission = make_submission(*assignments, **changes)  # type: ignore[operator]
    return submission


def test_submission_smuggled_in_a_seal_is_refused(house: House, make_submission: object) -> None:
    """The seal is an app's. What is in it would be built, and the policy be asked about the other one."""
    permitted, smuggled = (ALICE.signs(made(make_submission, f"run.rounds={rounds}")) for rounds in (4, 30))
    message = described(**{words.SEAL: bringing(smuggled), words.CONFIG: bringing(permitted)})
    run = run_of(house, message)
    with pytest.raises(RefusedError) as refused:
        run.answer(message)
    assert refused.value.code is Refusal.MALFORMED_REQUEST
    run.prepare(message)
    assert house.built == 0


def test_description_without_a_submission_is_refused(house: House) -> None:
    message = described(config=ConfigRecord({words.ROUND: 0, words.ATTEMPT: 1}))
    with pytest.raises(RefusedError) as refused:
        run_of(house, message).answer(message)
    assert refused.value.code is Refusal.MALFORMED_REQUEST


def test_submission_of_another_run_is_refused(house: House, make_submission: object) -> None:
    """Or an institution that withdrew from that run would go on with it."""
    message = described(config=bringing(ALICE.signs(made(make_submission, run_id="run-2"))))
    with pytest.raises(RefusedError) as refused:
        task_submission(message, "run-1")
    assert refused.value.code is Refusal.OTHER_SUBMISSION


def test_what_was_not_considered_is_not_made_ready(house: House, make_submission: object) -> None:
    house.node.prepare(made(make_submission).canonical)
    assert house.built == 0


# ---- apps ----


@pytest.fixture
def app() -> AppSubmission:
    return resolve_app(AppPlan.model_validate(APP), federation="test", run_id="run-1", operator="tester", now=NOW)


def asked(house: House, app: AppSubmission, after: timedelta = timedelta()) -> str:
    return house.operators.admit_app(house.accounts, app, ALICE.signs(app), NOW + after, house.decide)


def test_app_is_asked_about_at_every_request(house: House, app: AppSubmission) -> None:
    asked(house, app)
    asked(house, app)
    assert [decision["verdict"] for decision in house.decisions] == ["permitted"]
    house.policy.write_text("// end of policy\n")
    with pytest.raises(RefusedError) as refused:
        asked(house, app)
    assert refused.value.code is Refusal.POLICY_DENIED
    assert [decision["verdict"] for decision in house.decisions] == ["permitted", "denied"]


def test_app_ends_with_its_submission(house: House, app: AppSubmission) -> None:
    """Its requests are not signed: a server could make more of them for ever."""
    asked(house, app)
    with pytest.raises(RefusedError) as refused:
        asked(house, app, after=timedelta(days=31))
    assert refused.value.code is Refusal.NOT_VALID_NOW
