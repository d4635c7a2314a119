"""What is believed of a refusal: a code of the closed list, and a line that can be shown."""

import pytest
from flwr.app import Error, Message, RecordDict
from privet.privacy.channel import words
from privet.privacy.channel.flower import empty_run, identify_process
from privet.server.replies import Failure, failure_of


def refusal(reason: str | None, code: int = words.REFUSED) -> Failure | None:
    identify_process(empty_run(1))  # Flower makes replies of a run's messages only
    request = Message(RecordDict(), 7, words.DESCRIBE)
    request.metadata.__dict__["_message_id"] = "1"
    return failure_of(Message(Error(code, reason), reply_to=request))


@pytest.mark.parametrize(
    ("reason", "failure"),
    [
        ("policy-denied", Failure("policy-denied")),
        ("policy-denied: epsilon-at-most-2", Failure("policy-denied", "epsilon-at-most-2")),
        ("policy-denied: rule: with a colon", Failure("policy-denied", "rule: with a colon")),
        ("policy-denied: " + "x" * 300, Failure("policy-denied", "x" * 300)),
        ("policy-denied: ", Failure("policy-denied")),
    ],
)
def test_code_and_what_is_disclosed_are_told(reason: str, failure: Failure) -> None:
    assert refusal(reason) == failure


@pytest.mark.parametrize(
    "disclosed", ["x" * 301, "two\nlines", "\x1b[2Jgone", "\u202eright to left", "nothing\x00", "tab\there"]
)
def test_what_cannot_be_shown_is_dropped_and_the_code_stays(disclosed: str) -> None:
    assert refusal(f"policy-denied: {disclosed}") == Failure("policy-denied")


@pytest.mark.parametrize(
    "reason",
    ["patient 17 has a tumour", "no-such-code: and a text", "policy-denied:no space", " policy-denied", "", None],
)
def test_what_is_no_code_of_the_list_is_a_failed_app(reason: str | None) -> None:
    assert refusal(reason) == Failure("app-failed")


def test_failed_app_tells_no_text() -> None:
    assert refusal("policy-denied: epsilon", words.APP_RAISED) == Failure("app-failed")


def test_text_is_code_and_what_is_disclosed() -> None:
    assert Failure("policy-denied", "epsilon").text == "policy-denied: epsilon"
    assert Failure("policy-denied").text == "policy-denied"
