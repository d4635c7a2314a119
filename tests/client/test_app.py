"""The ClientApp over the in-process Grid: what a hostile server sends comes back as one code of a closed list."""

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.client.answers import Answer, Answers
from privet.client.app import begun_together, client_app, finished_together
from privet.client.draw import Draw
from privet.client.node import Begun, Carried, Node
from privet.client.participant import Participant
from privet.client.tasks.protocol import Partition, Records
from privet.privacy.budget.guard import Guard
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.witness import COUNTERSIGNED, Countersigned, Head, head_text, read_countersigned, read_head
from privet.privacy.channel import words
from privet.privacy.channel.arrays import to_parameters, to_record
from privet.privacy.errors import REFUSAL_CODES, Refusal
from privet.privacy.parameters import Array, Parameters
from privet.privacy.submission import Submission
from privet.simulations.grid import LocalGrid
from signed_ledgers import declared, opened

MOMENT = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
Make = Callable[..., Submission]
SECRET = "patient 17 /srv/records.csv"
# What may stand in an error beside the list of refusals: the app itself failed, and says no more.
APP_FAILED = "app-failed"


class Trainer:
    """Adds one to every parameter; fails with a secret where it is told to."""

    def __init__(self) -> None:
        self.failing: Exception | None = None
        self.touched = 0

    def initial(self) -> dict[str, Array]:
        return {"weight": np.zeros((2, 3), dtype=np.float32)}

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        self.touched += 1
        if self.failing:
            raise self.failing
        return {name: values + 1 for name, values in parameters.items()}

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        self.touched += 1
        return {"accuracy": 7.0}

    def done(self) -> dict[str, str]:
        return {"steps": "1"}


class Wire:
    """A node behind its ClientApp, and the Grid that a server would ask it through."""

    def __init__(self, folder: Path) -> None:
        self.trainer = Trainer()
        self.answers = folder / "answers"
        self.ledger = opened(folder / "ledger.sqlite")
        share = Partition(Records(torch.zeros(1, 1), torch.zeros(1)), torch.zeros(1))
        self.node = Node(
            "node-1",
            share,
            Guard(declared(self.ledger, size=1000), "synthetic"),
            Answers(self.answers),
            lambda submission, dataset, source: self.trainer,
            clock=lambda: MOMENT,
        )
        self.find_node: Callable[[Context], Node] = lambda context: self.node
        context = Context(run_id=1, node_id=7, node_config={}, state=RecordDict(), run_config={})
        self.grid = LocalGrid(client_app(lambda context: self.find_node(context)), {7: context})

    def ask(self, kind: str, content: RecordDict) -> Message:
        (reply,) = self.grid.send_and_receive([self.grid.create_message(content, kind, 7, "1")])
        return reply

    def code(self, kind: str, content: RecordDict) -> str:
        """The code of a refusal, and no word more."""
        reply = self.ask(kind, content)
        assert reply.has_error()
        assert reply.error.reason in REFUSAL_CODES | {APP_FAILED}
        assert (reply.error.code == words.REFUSED) == (reply.error.reason != APP_FAILED)
        return reply.error.reason


@pytest.fixture
def wire(tmp_path: Path) -> Wire:
    return Wire(tmp_path)


def config(submission: Submission, /, **changes: object) -> ConfigRecord:
    given = {words.SUBMISSION: submission.canonical, words.ROUND: 1, words.ATTEMPT: 1, **changes}
    return ConfigRecord({key: value for key, value in given.items() if value is not None})  # type: ignore[misc]


def content(submission: Submission, arrays: ArrayRecord | None = None, /, **changes: object) -> RecordDict:
    arrays = arrays or to_record({"weight": np.zeros((2, 3), dtype=np.float32)})
    return RecordDict({words.CONFIG: config(submission, **changes), words.ARRAYS: arrays})


def test_node_tells_its_name_and_declared_size(wire: Wire) -> None:
    described = wire.ask(words.DESCRIBE, RecordDict()).content.config_records[words.CONFIG]
    assert dict(described) == {words.NAME: "node-1", words.DECLARED_SIZE: 1000}


def test_node_gives_its_initial_model(wire: Wire, make_submission: Make) -> None:
    reply = wire.ask(words.INITIAL, RecordDict({words.CONFIG: config(make_submission())}))
    assert to_parameters(reply.content.array_records[words.ARRAYS])["weight"].tolist() == [[0.0] * 3] * 2
    assert wire.trainer.touched == 0


def test_update_leaves_with_declared_size_and_head_and_nothing_else(wire: Wire, make_submission: Make) -> None:
    reply = wire.ask(words.TRAIN, content(make_submission(private=True)))
    assert set(reply.content) == {words.ARRAYS, words.METRICS, words.LEDGER}
    assert dict(reply.content.metric_records[words.METRICS]) == {words.DECLARED_SIZE: 1000}
    assert to_parameters(reply.content.array_records[words.ARRAYS])["weight"].tolist() == [[1.0] * 3] * 2


def test_evaluation_leaves_with_the_sums_that_the_plan_names(wire: Wire, make_submission: Make) -> None:
    submission = make_submission("evaluation.every=1", "evaluation.noise-multiplier=9.0", private=True)
    reply = wire.ask(words.EVALUATE, content(submission))
    assert dict(reply.content.metric_records[words.METRICS]) == {words.DECLARED_SIZE: 1000, "accuracy": 7.0}
    assert set(reply.content) == {words.METRICS, words.LEDGER}


def test_head_and_new_charges_leave_with_every_answer(wire: Wire, make_submission: Make) -> None:
    submission = make_submission(private=True)
    told = wire.ask(words.TRAIN, content(submission)).content.config_records[words.LEDGER]
    assert set(told) == {words.HEAD, words.CHARGES}
    head, newest = read_head(told[words.HEAD]), wire.ledger.head()
    assert newest is not None
    assert (head.owner, head.sequence, head.hash) == ("node-1", newest.sequence, newest.hash)
    assert head.is_signed()
    (charge,) = json.loads(str(told[words.CHARGES]))
    assert (charge["kind"], json.loads(charge["body"])["run"]) == ("charge", "run-1")
    witnessed = countersigned(head)
    again = wire.ask(words.TRAIN, content(submission, **{words.ATTEMPT: 2, words.WITNESSED: head_text(witnessed)}))
    assert again.content.config_records[words.LEDGER][words.CHARGES] == "[]"
    assert "witnessed" in kinds(wire)


def test_countersignature_may_come_alone(wire: Wire) -> None:
    head, _ = wire.node.head(None)
    assert not wire.ask(words.WITNESS, witnessed_by(head_text(countersigned(head)))).has_error()
    assert kinds(wire)[-1] == "witnessed"
    assert not wire.ask(words.WITNESS, RecordDict()).has_error()  # there was nothing to countersign yet


def test_ledger_that_lacks_what_was_witnessed_is_behind(wire: Wire) -> None:
    entry = wire.ledger.head()
    assert entry is not None
    head = Head.of("node-1", replace(entry, sequence=99), wire.ledger.key)
    assert wire.code(words.WITNESS, witnessed_by(head_text(countersigned(head)))) == Refusal.LEDGER_BEHIND


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "5", "[" * 3000, "x" * 5000, '{"head": {}}', '{"head": 5}', b"\xff", 7]
)
def test_attack_countersignature_that_is_none(wire: Wire, make_submission: Make, text: object) -> None:
    assert wire.code(words.WITNESS, witnessed_by(text)) == Refusal.MALFORMED_REQUEST
    sent = content(make_submission(private=True), **{words.WITNESSED: text})
    assert wire.code(words.TRAIN, sent) == Refusal.MALFORMED_REQUEST
    assert wire.trainer.touched == 0


@pytest.mark.parametrize(
    "change", [{"sequence": "4"}, {"sequence": 0}, {"sequence": True}, {"owner": 5}, {"hash": None}]
)
def test_attack_countersigned_head_of_other_types(wire: Wire, change: dict[str, object]) -> None:
    told = json.loads(head_text(countersigned(wire.node.head(None)[0])))
    told["head"].update(change)
    assert wire.code(words.WITNESS, witnessed_by(json.dumps(told))) == Refusal.MALFORMED_REQUEST


def countersigned(head: Head) -> Countersigned:
    server = SigningKey.generate()
    return read_countersigned(head_text(Countersigned(head, server.public, server.sign(COUNTERSIGNED, head.message()))))


def witnessed_by(text: object) -> RecordDict:
    return RecordDict({words.CONFIG: ConfigRecord({words.WITNESSED: text})})  # type: ignore[dict-item]


def kinds(wire: Wire) -> list[str]:
    return [entry.kind for entry in wire.ledger.verified()]


KINDS = [words.TRAIN, words.EVALUATE, words.INITIAL]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "changes",
    [
        {words.SUBMISSION: None},
        {words.ROUND: None},
        {words.ATTEMPT: None},
        {words.SUBMISSION: "text"},
        {words.SUBMISSION: [1, 2]},
        {words.SUBMISSION: b"\x80\x04\x95"},
        {words.SIGNATURE: "signed"},
        {words.CERTIFICATES: 1},
        {words.ROUND: "1"},
        {words.ROUND: 1.0},
        {words.ROUND: True},
        {words.ATTEMPT: [1]},
        {words.ATTEMPT: False},
    ],
    ids=str,
)
def test_attack_config_of_other_types(wire: Wire, make_submission: Make, kind: str, changes: dict[str, object]) -> None:
    assert wire.code(kind, content(make_submission(private=True), **changes)) == Refusal.MALFORMED_REQUEST
    assert wire.trainer.touched == 0


@pytest.mark.parametrize("kind", KINDS)
def test_attack_records_that_are_missing_or_of_another_kind(wire: Wire, make_submission: Make, kind: str) -> None:
    submission = make_submission(private=True)
    arrays = to_record({"weight": np.zeros((2, 3), dtype=np.float32)})
    for sent in (
        RecordDict(),
        RecordDict({words.ARRAYS: arrays}),
        RecordDict({words.CONFIG: MetricRecord({words.ROUND: 1}), words.ARRAYS: arrays}),
        RecordDict({words.CONFIG: arrays, words.ARRAYS: config(submission)}),
        RecordDict({words.CONFIG: config(submission), words.ARRAYS: MetricRecord({"weight": 1.0})}),
    ):
        assert wire.code(kind, sent) == Refusal.MALFORMED_REQUEST
    assert wire.trainer.touched == 0


def npy(values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> FlowerArray:
    return FlowerArray(values)


class Unpickled:
    """Fails the test when somebody unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return (pytest.fail, ("a server's bytes were unpickled",))


def header(text: str, values: bytes = b"\0" * 24) -> bytes:
    padded = text.encode() + b" " * (117 - len(text)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + values


BAD_ARRAYS: dict[str, FlowerArray] = {
    "float64": npy(np.zeros((2, 3))),
    "integers": npy(np.zeros((2, 3), dtype=np.int32)),
    "other shape": npy(np.zeros((3, 2), dtype=np.float32)),
    "nan": npy(np.full((2, 3), np.nan, dtype=np.float32)),
    "pickle, said so": FlowerArray("object", (2, 3), "pickle", pickle.dumps(Unpickled())),
    "pickle, not said": FlowerArray("float32", (2, 3), "numpy.ndarray", pickle.dumps(Unpickled())),
    "objects in npy": FlowerArray(
        "float32",
        (2, 3),
        "numpy.ndarray",
        header("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", pickle.dumps(Unpickled())),
    ),
    "torch": FlowerArray("float32", (2, 3), "torch.tensor", b"PK\x03\x04"),
    "empty": FlowerArray("float32", (2, 3), "numpy.ndarray", b""),
    "too short": FlowerArray(
        "float32", (2, 3), "numpy.ndarray", header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }", b"")
    ),
    "huge": FlowerArray(
        "float32", (2, 3), "numpy.ndarray", header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000,), }")
    ),
    "negative": FlowerArray(
        "float32", (2, 3), "numpy.ndarray", header("{'descr': '<f4', 'fortran_order': False, 'shape': (-2, -3), }")
    ),
    "columns first": npy(np.asfortranarray(np.zeros((2, 3), dtype=np.float32))),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_attack_arrays_that_are_not_plain_float32(wire: Wire, make_submission: Make, name: str) -> None:
    sent = content(make_submission(private=True), ArrayRecord({"weight": BAD_ARRAYS[name]}))
    assert wire.code(words.TRAIN, sent) == Refusal.MALFORMED_REQUEST
    assert wire.trainer.touched == 0


@settings(max_examples=150, deadline=None)
@given(
    place=st.integers(0, 127),
    junk=st.binary(min_size=1, max_size=12),
)
def test_attack_any_bytes_in_an_array(
    tmp_path_factory: pytest.TempPathFactory, make_submission: Make, place: int, junk: bytes
) -> None:
    """A valid array with some bytes of its header overwritten: refused by a code, or as good as new."""
    wire = Wire(tmp_path_factory.mktemp("node"))
    good = npy(np.zeros((2, 3), dtype=np.float32)).data
    spoiled = good[:place] + junk + good[place + len(junk) :]
    array = FlowerArray("float32", (2, 3), "numpy.ndarray", spoiled)
    reply = wire.ask(words.TRAIN, content(make_submission(), ArrayRecord({"weight": array})))
    if reply.has_error():
        assert reply.error.reason in {Refusal.MALFORMED_REQUEST, APP_FAILED}


@pytest.mark.parametrize(
    "failing", [RuntimeError(SECRET), ValueError(SECRET), KeyError(SECRET), MemoryError(SECRET), RecursionError(SECRET)]
)
def test_no_text_of_an_exception_leaves(
    wire: Wire, make_submission: Make, failing: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    wire.trainer.failing = failing
    reply = wire.ask(words.TRAIN, content(make_submission(private=True)))
    assert reply.error.reason == Refusal.TASK_FAILED
    assert not reply.has_content()
    assert SECRET in caplog.text  # the institution sees it


def test_disk_that_cannot_be_written_tells_the_server_nothing(wire: Wire, make_submission: Make) -> None:
    """What fails beside the task is not the server's business either; Flower alone would send the text."""
    wire.answers.write_text("a file where the folder would be")
    assert wire.code(words.TRAIN, content(make_submission(private=True))) == APP_FAILED


def test_node_that_cannot_be_found_tells_the_server_nothing(wire: Wire) -> None:
    def find(context: Context) -> Node:
        raise FileNotFoundError(SECRET)

    wire.find_node = find
    assert wire.code(words.DESCRIBE, RecordDict()) == APP_FAILED


def test_refusal_of_the_guard_is_its_code_alone(wire: Wire, make_submission: Make) -> None:
    submission = make_submission(private=True)
    assert not wire.ask(words.TRAIN, content(submission)).has_error()
    assert wire.code(words.TRAIN, content(submission, **{words.ROUND: 99})) == Refusal.MALFORMED_REQUEST
    changed = to_record({"weight": np.ones((2, 3), dtype=np.float32)})
    assert wire.code(words.TRAIN, content(submission, changed)) == Refusal.ATTEMPT_MISMATCH
    assert wire.code(words.TRAIN, content(make_submission("run.dataset=other"))) == Refusal.UNKNOWN_DATASET


def test_numbers_beyond_64_bits_do_not_break_the_node(wire: Wire, make_submission: Make) -> None:
    submission = make_submission(private=True)
    assert wire.code(words.TRAIN, content(submission, **{words.ROUND: 2**80})) == Refusal.MALFORMED_REQUEST
    assert not wire.ask(words.TRAIN, content(submission, **{words.ATTEMPT: 2**80})).has_error()


def wires_of(tmp_path: Path, count: int = 3) -> list[Wire]:
    return [Wire(tmp_path / f"node-{number}") for number in range(count)]


def asked_of(wires: list[Wire], kind: str, sent: RecordDict) -> list[tuple[Participant, Message]]:
    return [(wire.node, wire.grid.create_message(sent, kind, 7, "1")) for wire in wires]


def kinds_of(wire: Wire) -> list[str]:
    return [entry.kind for entry in wire.ledger.entries() if entry.kind not in ("opened", "account", "dataset")]


class Company:
    """Trains whom it is given together: adds two, so that it shows; None where it is told to leave each alone."""

    def __init__(self, leaves_alone: bool = False) -> None:
        self.names: list[list[str]] = []
        self._leaves_alone = leaves_alone

    def __call__(self, begun: Sequence[tuple[Participant, Begun]]) -> list[Carried] | None:
        self.names.append([node.name for node, _ in begun])
        if self._leaves_alone:
            return None
        return [Carried(Answer({"weight": part.request.parameters["weight"] + 2}), {"steps": "2"}) for _, part in begun]


def replies_together(asked: list[tuple[Participant, Message]], company: Company) -> list[Message]:
    """As a grid has nodes answer together: all begin, those that have begun are carried out, and each finishes."""
    begun = begun_together(asked)
    those = [(one.node, one.step) for one in begun if isinstance(one.step, Begun)]
    return finished_together(begun, company(those) if those else None)


def test_what_several_begin_is_carried_out_together(tmp_path: Path, make_submission: Make) -> None:
    wires, company = wires_of(tmp_path), Company()
    replies = replies_together(asked_of(wires, words.TRAIN, content(make_submission(now=MOMENT))), company)
    assert [len(names) for names in company.names] == [3]
    for wire, reply in zip(wires, replies, strict=True):
        assert float(to_parameters(reply.content["arrays"])["weight"].sum()) == 12.0  # type: ignore[arg-type]
        assert wire.trainer.touched == 0
        assert kinds_of(wire) == ["charge", "begin", "answer"]
        (answer,) = [entry for entry in wire.ledger.entries() if entry.kind == "answer"]
        assert answer.content["steps"] == "2"


def test_who_is_refused_takes_nobody_along_and_is_not_trained(tmp_path: Path, make_submission: Make) -> None:
    """The second node has admitted another plan of that name, and the third has its answer kept."""
    wires, company = wires_of(tmp_path, 4), Company()
    sent = content(make_submission(now=MOMENT))
    wires[2].ask(words.TRAIN, sent)
    other = make_submission("run.rounds=3", now=MOMENT)  # the same run, with another plan
    wires[1].ask(words.TRAIN, content(other))
    replies = replies_together(asked_of(wires, words.TRAIN, sent), company)
    assert [len(names) for names in company.names] == [2]
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert (replies[1].error.code, replies[1].error.reason) == (words.REFUSED, Refusal.OTHER_SUBMISSION)
    sums = [float(to_parameters(replies[n].content["arrays"])["weight"].sum()) for n in (0, 2, 3)]  # type: ignore[arg-type]
    assert sums == [12.0, 6.0, 12.0], "the kept answer is sent again"
    assert kinds_of(wires[2]) == ["charge", "begin", "answer"]


def test_nodes_that_are_left_alone_fail_alone(tmp_path: Path, make_submission: Make) -> None:
    wires, company = wires_of(tmp_path), Company(leaves_alone=True)
    wires[1].trainer.failing = RuntimeError(SECRET)
    replies = replies_together(asked_of(wires, words.TRAIN, content(make_submission(now=MOMENT))), company)
    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason == Refusal.TASK_FAILED
    assert [wire.trainer.touched for wire in wires] == [1, 1, 1]
    assert kinds_of(wires[1])[:2] == ["charge", "begin"]
    assert "answer" not in kinds_of(wires[1])


def test_nothing_is_carried_out_where_all_are_refused(tmp_path: Path, make_submission: Make) -> None:
    wires, company = wires_of(tmp_path), Company()
    sent = RecordDict({words.CONFIG: config(make_submission(now=MOMENT))})  # no arrays
    replies = replies_together(asked_of(wires, words.TRAIN, sent), company)
    assert {reply.error.reason for reply in replies} == {Refusal.MALFORMED_REQUEST}
    assert company.names == []
