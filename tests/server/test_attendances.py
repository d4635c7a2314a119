"""What the server hands on of a cohort: well-formed, each node's own, once for all, and of the round that is asked."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_nodes import FakeNode, grid_of, update_of
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.metadata import Metadata
from privet.privacy.attendance import attend, decoded
from privet.privacy.channel import words
from privet.privacy.channel.identities import Certificate, Role
from privet.privacy.errors import Refusal
from privet.privacy.submission import Submission
from privet.server.attendances import Attendances
from privet.server.checkpoints import Checkpoints
from privet.server.federation import Federation
from privet.server.replies import attendance_of
from signers import Authority

Make = Callable[..., Submission]
AUTHORITY = Authority("test")
NAMES = ("node-1", "node-2", "node-3")
PARTIES = {name: AUTHORITY.party(name, Role.NODE) for name in NAMES}


def brought(submission: Submission, name: str, of: str = "", **changes: object) -> ConfigRecord:
    """The description of a node that signs, with the certificates `of` a node."""
    attendance = attend(submission, PARTIES[of or name].key, PARTIES[of or name].chain)
    facts = {words.NAME: name, words.DECLARED_SIZE: 10}
    signed = {words.SIGNATURE: attendance.signature, words.CERTIFICATES: attendance.chain}
    return ConfigRecord({**facts, **signed, **changes})  # type: ignore[arg-type]


def reply(node_id: int, config: ConfigRecord) -> Message:
    metadata = Metadata(1, "id", node_id, 1, "", "run-1", 1e9, 60.0, words.DESCRIBE)
    return Message(content=RecordDict({words.CONFIG: config}), metadata=metadata)


def note(attendances: Attendances, node_id: int, config: ConfigRecord) -> None:
    attendances.note(node_id, attendance_of(reply(node_id, config)))


def names_in(cohort: object) -> list[str]:
    assert isinstance(cohort, bytes)
    return sorted(Certificate.of_der(one.certificate).identity.name for one in decoded(cohort))


@pytest.fixture
def submission(make_submission: Make) -> Submission:
    return make_submission()


@pytest.mark.parametrize(
    "changes",
    [
        {words.SIGNATURE: b""},
        {words.SIGNATURE: b"s" * 73},
        {words.SIGNATURE: "text"},
        {words.SIGNATURE: 1},
        {words.CERTIFICATES: b"nothing in PEM"},
        {words.CERTIFICATES: b"x" * 20_000},
        {words.CERTIFICATES: [b"a", b"b"]},
        {words.CERTIFICATES: PARTIES["node-1"].chain * 2},
    ],
)
def test_what_is_malformed_is_not_handed_on(submission: Submission, changes: dict[str, object]) -> None:
    attendances = Attendances()
    note(attendances, 7, brought(submission, "node-1", **changes))
    note(attendances, 8, brought(submission, "node-2"))
    assert names_in(attendances.config([7, 8])[words.COHORT]) == ["node-2"]


def test_node_brings_its_own_and_no_other(submission: Submission) -> None:
    attendances = Attendances()
    note(attendances, 7, brought(submission, "node-1", of="node-2"))
    assert attendances.config([7]) == {}


def test_what_was_brought_last_counts(submission: Submission) -> None:
    attendances = Attendances()
    note(attendances, 7, brought(submission, "node-1"))
    assert names_in(attendances.config([7])[words.COHORT]) == ["node-1"]
    note(attendances, 7, brought(submission, "node-1", **{words.SIGNATURE: b""}))
    assert attendances.config([7]) == {}


def test_encoded_once_for_all_nodes_of_a_round(submission: Submission) -> None:
    attendances = Attendances()
    for node_id, name in enumerate(NAMES, start=7):
        note(attendances, node_id, brought(submission, name))
    first = attendances.config([9, 7])[words.COHORT]
    assert attendances.config([7, 9])[words.COHORT] is first
    assert names_in(first) == ["node-1", "node-3"]


def test_cohort_of_each_request(make_submission: Make, tmp_path: Path) -> None:
    """Of all that a round asks, also where one of them is asked again; of a run that nobody signs, nothing."""
    submission = make_submission("evaluation.every=4", "evaluation.noise-multiplier=9.0", private=True)
    losses = iter([Refusal.ATTEMPT_SPENT.value])
    nodes = [
        FakeNode("node-1", describe=lambda _: RecordDict({words.CONFIG: brought(submission, "node-1")})),
        FakeNode("node-2", describe=lambda _: RecordDict({words.CONFIG: brought(submission, "node-2")})),
        FakeNode(
            "node-3",
            describe=lambda _: RecordDict({words.CONFIG: brought(submission, "node-3")}),
            train=lambda model, *_: next(losses, None) or update_of(model),
        ),
    ]
    asked = asked_of(submission, nodes, tmp_path / "signed")
    trained = [config for kind, config in asked if kind == words.TRAIN]
    assert len(trained) == 13  # four rounds of three, and one that was asked again
    assert all(names_in(config[words.COHORT]) == list(NAMES) for config in trained)
    evaluated = [config for kind, config in asked if kind == words.EVALUATE]
    assert [names_in(config[words.COHORT]) for config in evaluated] == [list(NAMES)] * 3
    unsigned = asked_of(submission, [FakeNode(name) for name in NAMES], tmp_path / "unsigned")
    assert not any(words.COHORT in config for _, config in unsigned)


def asked_of(submission: Submission, nodes: list[FakeNode], folder: Path) -> list[tuple[str, ConfigRecord]]:
    """What a run sent: the kind and the config of each message."""
    sent: list[tuple[str, ConfigRecord]] = []

    def overhear(message: Message, reply: Message) -> Message:
        config = message.content.get(words.CONFIG)
        if isinstance(config, ConfigRecord):
            sent.append((message.metadata.message_type, config))
        return reply

    Federation(submission, grid_of(nodes, overhear), Checkpoints(folder, submission.hash), lambda _: None).run()
    return sent
