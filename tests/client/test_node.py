"""The node's story with a trainer that notes when records are touched, a real ledger and real kept answers."""

import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from privet.client.answers import Answer, Answers
from privet.client.draw import SYSTEM, Draw, public_draw
from privet.client.node import Node, Request, Workshop
from privet.client.randomness import drawn
from privet.client.tasks.protocol import Partition, Records, Source
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Attempt
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Entry, Ledger
from privet.privacy.budget.witness import Countersigned, Head, Witness
from privet.privacy.errors import LedgerError, Refusal, RefusedError
from privet.privacy.parameters import Array, Parameters
from privet.privacy.submission import Submission
from signed_ledgers import DATASET, DECLARED, declared, guard_of, key_of, opened

MOMENT = datetime(2026, 11, 22, 13, 0, tzinfo=UTC)
Make = Callable[..., Submission]
SIZE = 1000
SERVER = SigningKey.generate()
SOURCE = Partition(Records(torch.zeros(1, 1), torch.zeros(1)), torch.zeros(1))


def model(value: float = 0.0) -> dict[str, Array]:
    return {"weight": np.full((2, 3), value, dtype=np.float32), "bias": np.zeros(2, dtype=np.float32)}


@dataclass
class NotingTrainer:
    """A Trainer in numpy. At each touch of a record it notes what the ledger's file holds, read from outside."""

    ledger: Path
    seen: list[list[tuple[str, str]]] = field(default_factory=list)
    draws: list[Draw] = field(default_factory=list)
    fails: bool = False

    def initial(self) -> dict[str, Array]:
        return model()

    def train(self, parameters: Parameters, draw: Draw) -> dict[str, Array]:
        self._touch(draw)
        noise = drawn(draw).gaussian(6).numpy().reshape(2, 3)
        return {"weight": parameters["weight"] + noise, "bias": np.array(parameters["bias"])}

    def evaluate(self, parameters: Parameters, draw: Draw) -> dict[str, float]:
        self._touch(draw)
        return {"accuracy": 12.0 + float(drawn(draw).gaussian(1)[0])}

    def done(self) -> dict[str, str]:
        return {"steps": str(len(self.seen))}

    def _touch(self, draw: Draw) -> None:
        self.seen.append(entries(self.ledger))
        self.draws.append(draw)
        if self.fails:
            raise RuntimeError("patient 17 has a label out of range")


def entries(path: Path) -> list[tuple[str, str]]:
    """What another process finds in the ledger: only what is committed."""
    connection = sqlite3.connect(path)
    try:
        return [(str(kind), str(body)) for kind, body in connection.execute("SELECT kind, body FROM entries")]
    finally:
        connection.close()


class World:
    """A node whose folder lasts: it can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ledger = folder / "ledger.sqlite"
        self.trainer = NotingTrainer(self.ledger)
        self.built = 0
        self.moment = MOMENT
        ledger = self.open()
        declared(ledger, size=SIZE)
        ledger.close()
        self.node = self.start()

    def open(self) -> Ledger:
        return opened(self.ledger, "simulation", "hospital")

    def start(self, workshop: Workshop | None = None) -> Node:
        return Node(
            name="hospital",
            source=SOURCE,
            guard=guard_of(self.open()),
            answers=Answers(self.folder / "answers"),
            workshop=workshop or self._build,
            clock=lambda: self.moment,
        )

    def _build(self, submission: Submission, dataset: DeclaredDataset, source: Source) -> NotingTrainer:
        assert (dataset.name, dataset.declared_size, source) == (DATASET, SIZE, SOURCE)
        self.built += 1
        return self.trainer

    @property
    def kinds(self) -> list[str]:
        """What happened since the data set was declared."""
        found = [kind for kind, _ in entries(self.ledger)]
        assert found[:3] == DECLARED
        return found[3:]

    def refusal(self, request: Request) -> Refusal:
        touched = len(self.trainer.seen)
        with pytest.raises(RefusedError) as caught:
            self.node.answer(request)
        if not self.trainer.fails:
            assert len(self.trainer.seen) == touched  # whatever is refused touches nothing
        return caught.value.code


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def asked(
    submission: Submission, stage: str = "train", number: int = 1, attempt: int = 1, value: float = 0.0
) -> Request:
    assert stage in ("train", "evaluate", "initial")
    return Request(stage, submission.canonical, number, attempt, model(value))  # type: ignore[arg-type]


EVALUATION = ("evaluation.every=1", "evaluation.noise-multiplier=9.0")


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_nothing_is_touched_before_the_charge_and_the_begin_are_durable(
    world: World, make_submission: Make, stage: str, private: bool
) -> None:
    submission = make_submission(*(EVALUATION if private else EVALUATION[:1]), private=private)
    world.node.answer(asked(submission, stage))
    (seen,) = world.trainer.seen
    assert [kind for kind, _ in seen] == [*DECLARED, "charge", "begin"]
    assert submission.hash in seen[3][1]
    assert f'"stage":"{stage}"' in seen[4][1]
    assert world.kinds == ["charge", "begin", "answer"]


def test_submission_is_read_anew_where_one_byte_of_it_is_another(world: World, make_submission: Make) -> None:
    """The node remembers the last that it read, by its bytes."""
    submission = make_submission()
    world.node.answer(asked(submission, number=1))
    content = submission.canonical
    for changed in (content[:-1], content + b" ", content.replace(b"tester", b"Tester"), b""):
        assert world.refusal(replace(asked(submission, number=2), submission=changed)) in (
            Refusal.MALFORMED_REQUEST,
            Refusal.OTHER_SUBMISSION,
        )
    world.node.answer(asked(submission, number=2))
    assert [kind for kind in world.kinds if kind != "refusal"] == ["charge", *["begin", "answer"] * 2]


def test_answer_is_entered_with_what_the_trainer_did(world: World, make_submission: Make) -> None:
    world.node.answer(asked(make_submission(private=True)))
    assert '"steps":"1"' in entries(world.ledger)[-1][1]


def test_answer_is_kept_before_it_is_given(world: World, make_submission: Make) -> None:
    answer = world.node.answer(asked(make_submission(private=True)))
    (path,) = (world.folder / "answers").iterdir()
    assert answer.parameters["weight"].tobytes() in path.read_bytes()


def test_initial_model_costs_nothing_and_touches_nothing(world: World, make_submission: Make) -> None:
    answer = world.node.answer(asked(make_submission(private=True), "initial"))
    assert answer.parameters["weight"].tolist() == model()["weight"].tolist()
    assert world.kinds == []
    assert world.trainer.seen == []


def test_task_or_data_set_of_somebody_else_is_refused_unread(world: World, make_submission: Make) -> None:
    other_task = asked(make_submission("run.task=digits", "run.dataset=synthetic"))
    other_data = asked(make_submission("run.dataset=patients"))
    assert world.refusal(other_task) == Refusal.UNKNOWN_TASK
    assert world.refusal(other_data) == Refusal.UNKNOWN_DATASET
    assert world.refusal(replace(other_task, stage="initial")) == Refusal.UNKNOWN_TASK
    assert world.built == 0
    assert world.kinds == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good: b"",
        lambda good: b"\x80\x04\x95",
        lambda good: b"[]",
        lambda good: b"null",
        lambda good: b"[" * 30_000,
        lambda good: good[:-1],
        lambda good: good + b"\n",
        lambda good: good.replace(b":", b": ", 1),
        lambda good: good.replace(b'"format":1', b'"format":1.0'),
        lambda good: good.replace(b'"format":1', b'"format":2'),
        lambda good: good.replace(b'"claim":', b'"extra":1,"claim":'),
        lambda good: b'{"claim":null,' + good[1:],
        lambda good: good + b" " * 70_000,
    ],
    ids=[
        "empty",
        "pickle",
        "list",
        "null",
        "nested",
        "cut",
        "newline",
        "space",
        "float format",
        "newer format",
        "unknown key",
        "key twice",
        "too long",
    ],
)
def test_attack_submission_that_is_not_canonical(
    world: World, make_submission: Make, spoil: Callable[[bytes], bytes]
) -> None:
    good = make_submission(private=True).canonical
    request = replace(asked(make_submission(private=True)), submission=spoil(good))
    assert request.submission != good
    assert world.refusal(request) == Refusal.MALFORMED_REQUEST
    assert world.built == 0
    assert world.kinds == []


def test_attack_claim_removed_from_a_private_plan(world: World, make_submission: Make) -> None:
    good = make_submission(private=True).canonical
    start, end = good.index(b'"claim":'), good.index(b"}", good.index(b'"claim":')) + 1
    request = replace(asked(make_submission()), submission=good[:start] + b'"claim":null' + good[end:])
    assert world.refusal(request) == Refusal.MALFORMED_REQUEST


BAD_PARAMETERS: dict[str, dict[str, object]] = {
    "none": {"weight": None, "bias": None},
    "one missing": {"bias": None},
    "one more": {"extra": np.zeros(2, dtype=np.float32)},
    "other shape": {"weight": np.zeros((3, 2), dtype=np.float32)},
    "one dimension more": {"weight": np.zeros((1, 2, 3), dtype=np.float32)},
    "nan": {"weight": np.full((2, 3), np.nan, dtype=np.float32)},
    "infinite": {"bias": np.array([0, np.inf], dtype=np.float32)},
    "float64": {"weight": np.zeros((2, 3))},
    "integers": {"weight": np.zeros((2, 3), dtype=np.int32)},
    "objects": {"weight": np.full((2, 3), None, dtype=object)},
}


@pytest.mark.parametrize("change", BAD_PARAMETERS)
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_attack_parameters_that_are_not_the_models(
    world: World, make_submission: Make, stage: str, change: str
) -> None:
    changed = {k: v for k, v in {**model(), **BAD_PARAMETERS[change]}.items() if v is not None}
    request = replace(asked(make_submission(*EVALUATION, private=True), stage), parameters=changed)  # type: ignore[arg-type]
    assert world.refusal(request) == Refusal.MALFORMED_REQUEST
    assert world.kinds == []


@pytest.mark.parametrize(("number", "attempt"), [(0, 1), (1, 0), (-1, 1), (1, -1), (0, 0)])
def test_attack_round_or_attempt_before_the_first(
    world: World, make_submission: Make, number: int, attempt: int
) -> None:
    request = asked(make_submission(private=True), number=number, attempt=attempt)
    assert world.refusal(request) == Refusal.MALFORMED_REQUEST
    assert "begin" not in world.kinds


def test_attack_round_beyond_the_plan(world: World, make_submission: Make) -> None:
    assert world.refusal(asked(make_submission(private=True), number=5)) == Refusal.MALFORMED_REQUEST
    assert "begin" not in world.kinds


def test_attack_more_requests_than_were_charged(world: World, make_submission: Make) -> None:
    """Four rounds and one spare: five attempts, of whatever rounds, and not a sixth."""
    submission = make_submission(private=True)
    for attempt in range(1, 6):
        world.node.answer(asked(submission, attempt=attempt))
    assert world.refusal(asked(submission, attempt=6)) == Refusal.ROUNDS_EXHAUSTED
    assert world.refusal(asked(submission, number=2)) == Refusal.ROUNDS_EXHAUSTED
    assert world.refusal(asked(submission, "evaluate")) == Refusal.ROUNDS_EXHAUSTED  # none was charged
    assert len(world.trainer.seen) == 5


def test_attack_second_submission_under_the_same_run(world: World, make_submission: Make) -> None:
    world.node.answer(asked(make_submission(private=True)))
    other = make_submission("run.seed=99", private=True)
    assert world.refusal(asked(other, number=2)) == Refusal.OTHER_SUBMISSION


def test_submission_out_of_its_time_is_refused(world: World, make_submission: Make) -> None:
    submission = make_submission(private=True)
    for moment in (MOMENT - timedelta(days=2), MOMENT + timedelta(days=90)):
        world.moment = moment
        assert world.refusal(asked(submission)) == Refusal.NOT_VALID_NOW
    assert "charge" not in world.kinds


def test_delta_above_one_over_the_declared_size_is_refused(world: World, make_submission: Make) -> None:
    assert world.refusal(asked(make_submission("privacy.delta=0.001", private=True))) == Refusal.DELTA_TOO_LARGE


@pytest.mark.parametrize("stage", ["train", "evaluate"])
@pytest.mark.parametrize("restarted", [False, True])
def test_replayed_request_gets_the_kept_answer(
    world: World, make_submission: Make, stage: str, restarted: bool
) -> None:
    """Byte for byte, without a second look at the records: a lost reply costs no second draw of noise."""
    request = asked(make_submission(*EVALUATION, private=True), stage)
    first = world.node.answer(request)
    if restarted:
        world.node = world.start()
    again = world.node.answer(request)
    assert {n: a.tobytes() for n, a in again.parameters.items()} == {
        n: a.tobytes() for n, a in first.parameters.items()
    }
    assert again.sums == first.sums
    assert len(world.trainer.seen) == 1
    assert world.kinds.count("begin") == 1


@pytest.mark.parametrize("restarted", [False, True])
def test_attack_same_attempt_with_other_parameters(world: World, make_submission: Make, restarted: bool) -> None:
    submission = make_submission(private=True)
    world.node.answer(asked(submission))
    if restarted:
        world.node = world.start()
    assert world.refusal(asked(submission, value=1e-7)) == Refusal.ATTEMPT_MISMATCH


def test_parameters_that_differ_in_the_sign_of_zero_are_other_parameters(world: World, make_submission: Make) -> None:
    submission = make_submission(private=True)
    world.node.answer(asked(submission))
    assert world.refusal(asked(submission, value=-0.0)) == Refusal.ATTEMPT_MISMATCH


def test_two_attempts_of_a_round_draw_other_noise(world: World, make_submission: Make) -> None:
    submission = make_submission(private=True)
    first, second = (world.node.answer(asked(submission, attempt=attempt)) for attempt in (1, 2))
    assert not np.array_equal(first.parameters["weight"], second.parameters["weight"])


def test_task_that_fails_spends_its_attempt(
    world: World, make_submission: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Noise may have been drawn; whether it was cannot be proved, so it counts."""
    submission = make_submission(private=True)
    world.trainer.fails = True
    assert world.refusal(asked(submission)) == Refusal.TASK_FAILED
    assert world.kinds == ["charge", "begin"]
    assert "patient 17" in caplog.text  # in the node's own log
    world.trainer.fails = False
    assert world.refusal(asked(submission)) == Refusal.ATTEMPT_SPENT
    world.node = world.start()
    assert world.refusal(asked(submission)) == Refusal.ATTEMPT_SPENT
    world.node.answer(asked(submission, attempt=2))
    assert world.node.standing(submission).attempts == 2


def test_failing_attempts_are_counted_to_the_last(world: World, make_submission: Make) -> None:
    submission = make_submission(private=True)
    world.trainer.fails = True
    for attempt in range(1, 6):
        assert world.refusal(asked(submission, attempt=attempt)) == Refusal.TASK_FAILED
    world.trainer.fails = False
    assert world.refusal(asked(submission, attempt=6)) == Refusal.ROUNDS_EXHAUSTED


def test_workshop_that_fails_charges_nothing(world: World, make_submission: Make) -> None:
    def broken(submission: Submission, dataset: DeclaredDataset, source: Source) -> NotingTrainer:
        raise RuntimeError("patient 17")

    world.node = world.start(broken)
    assert world.refusal(asked(make_submission(private=True))) == Refusal.TASK_FAILED
    assert world.kinds == []


def witness_of(world: World) -> Witness:
    return Witness(world.folder / "witness.jsonl", "hospital", SERVER)


def countersigned(world: World) -> Countersigned:
    """The node shows its head and what the server does not hold yet, as with every answer."""
    witness = witness_of(world)
    head, charges = world.node.head(witness.newest())
    return witness.countersign(head, [asdict(entry) for entry in charges])


def test_node_tells_each_charge_to_its_witness_once(world: World, make_submission: Make) -> None:
    world.node.answer(asked(make_submission(private=True)))
    first = countersigned(world)
    assert [entry.kind for entry in world.node.head(None)[1]] == ["charge"]
    assert world.node.head(first)[1] == []
    assert len(witness_of(world).charges) == 1


def test_countersignature_that_comes_with_a_request_is_kept_with_its_begin(world: World, make_submission: Make) -> None:
    submission = make_submission(private=True)
    world.node.answer(asked(submission))
    newest = countersigned(world)
    world.node.answer(replace(asked(submission, number=2), witnessed=newest))
    assert world.kinds[3:] == ["witnessed", "begin", "answer"]
    told = entries(world.ledger)[-3][1]
    assert newest.head.hash in told
    assert newest.server_signature in told


def test_countersignature_that_comes_alone_is_kept_once(world: World, make_submission: Make) -> None:
    world.node.answer(asked(make_submission(private=True)))
    newest = countersigned(world)
    for _ in range(3):
        world.node.witness(newest)
    assert world.kinds[3:] == ["witnessed"]


def test_attack_ledger_put_back_to_an_older_copy(world: World, make_submission: Make) -> None:
    """An institution restores yesterday's file: the server's countersignature shows it, and no record is touched."""
    submission = make_submission(private=True)
    backup = world.ledger.read_bytes()
    world.node.answer(asked(submission))
    newest = countersigned(world)
    world.node.close()
    world.ledger.write_bytes(backup)
    world.node = world.start()
    assert world.refusal(replace(asked(submission, number=2), witnessed=newest)) == Refusal.LEDGER_BEHIND
    with pytest.raises(RefusedError) as caught:
        world.node.witness(newest)
    assert caught.value.code == Refusal.LEDGER_BEHIND
    assert world.kinds == []


@pytest.mark.parametrize("forged", ["server", "node"])
def test_attack_countersignature_that_nobody_signed(world: World, make_submission: Make, forged: str) -> None:
    """Also a server's false word must not halt a node, nor stand in its ledger."""
    submission = make_submission(private=True)
    world.node.answer(asked(submission))
    good = countersigned(world)
    head = replace(good.head, sequence=99) if forged == "node" else good.head
    signature = "00" * 64 if forged == "server" else good.server_signature
    bad = replace(good, head=head, server_signature=signature)
    assert world.refusal(replace(asked(submission, number=2), witnessed=bad)) == Refusal.MALFORMED_REQUEST
    with pytest.raises(RefusedError):
        world.node.witness(bad)
    assert "witnessed" not in world.kinds


def test_witness_refuses_a_fork_and_a_stranger(world: World, make_submission: Make) -> None:
    world.node.answer(asked(make_submission(private=True)))
    newest, key = countersigned(world).head, key_of(world.ledger)
    with pytest.raises(LedgerError, match="ends at 6; 6 was witnessed"):
        witness_of(world).countersign(Head.of("hospital", fork(world, 6), key), [])
    with pytest.raises(LedgerError, match="ends at 5"):
        witness_of(world).countersign(Head.of("hospital", fork(world, 5), key), [])
    with pytest.raises(LedgerError, match="another key"):
        witness_of(world).countersign(Head.of("hospital", fork(world, 7), SigningKey.generate()), [])
    with pytest.raises(LedgerError, match="not signed by it"):
        witness_of(world).countersign(replace(newest, sequence=7), [])
    with pytest.raises(LedgerError, match="not signed by it"):
        witness_of(world).countersign(Head.of("clinic", fork(world, 7), key), [])


def fork(world: World, sequence: int) -> Entry:
    ledger = world.open()
    entry = ledger.entry(4)
    ledger.close()
    assert entry is not None
    return replace(entry, sequence=sequence)


@pytest.mark.parametrize("harm", ["deleted", "altered", "cut", "replaced by another answer"])
def test_attack_kept_answer_tampered_with(world: World, make_submission: Make, harm: str) -> None:
    """What is sent again is what the ledger records, or nothing; and it is never drawn a second time."""
    submission = make_submission(private=True)
    request = asked(submission)
    world.node.answer(request)
    (path,) = (world.folder / "answers").iterdir()
    content = path.read_bytes()
    if harm == "deleted":
        path.unlink()
    elif harm == "altered":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "cut":
        path.write_bytes(content[:10])
    else:
        world.node.answer(asked(submission, attempt=2))
        (newer,) = (world.folder / "answers").iterdir()
        newer.rename(path)
    assert world.refusal(request) == Refusal.ATTEMPT_SPENT


def test_private_run_draws_from_the_operating_system(world: World, make_submission: Make) -> None:
    world.node.answer(asked(make_submission(private=True)))
    assert world.trainer.draws == [SYSTEM]
    assert not SYSTEM.is_seeded


def test_run_without_privacy_draws_from_its_public_seed(world: World, make_submission: Make) -> None:
    """So that a deployment and a simulation of one plan give the same model, also at a second attempt."""
    submission = make_submission()
    first, second = (world.node.answer(asked(submission, attempt=attempt)) for attempt in (1, 2))
    assert world.trainer.draws[0].is_seeded
    assert np.array_equal(first.parameters["weight"], second.parameters["weight"])
    other_round = world.node.answer(asked(submission, number=2))
    assert not np.array_equal(first.parameters["weight"], other_round.parameters["weight"])


def test_private_run_never_gets_a_public_draw(make_submission: Make) -> None:
    with pytest.raises(ValueError, match="public seed"):
        public_draw(make_submission(private=True), Attempt("train", 1, 1, "0"), "hospital")


def test_two_nodes_sample_differently_in_a_run_without_privacy(make_submission: Make) -> None:
    submission, attempt = make_submission(), Attempt("train", 1, 1, "0")
    ours, theirs = (drawn(public_draw(submission, attempt, name)).gaussian(4) for name in ("a", "b"))
    assert not torch.equal(ours, theirs)


def test_only_the_newest_answer_of_each_stage_is_kept(world: World, make_submission: Make) -> None:
    submission = make_submission(*EVALUATION, private=True)
    for number in (1, 2):
        world.node.answer(asked(submission, number=number))
        world.node.answer(asked(submission, "evaluate", number=number))
    assert len(list((world.folder / "answers").iterdir())) == 2
    assert world.refusal(asked(submission)) == Refusal.ATTEMPT_SPENT


def test_one_run_does_not_forget_the_answers_of_another(world: World, make_submission: Make) -> None:
    """`a` and `a-train-1` would share the beginning of their files' names."""
    longer = make_submission(private=True, run_id="a-train-1")
    first = world.node.answer(asked(longer))
    world.node.answer(asked(make_submission(private=True, run_id="a")))
    assert np.array_equal(world.node.answer(asked(longer)).parameters["weight"], first.parameters["weight"])


def test_kept_answer_holds_arrays_and_sums_exactly(tmp_path: Path) -> None:
    answers, attempt = Answers(tmp_path), Attempt("train", 1, 1, "0")
    arrays = {"scalar": np.array(0.1, dtype=np.float32), "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T}
    sums = {"accuracy": 0.1 + 0.2, "tiny": 5e-324}
    digest = answers.keep("run", attempt, Answer(arrays, sums))
    read = answers.read("run", attempt, digest)
    assert read.sums == sums
    assert all(np.array_equal(read.parameters[name], arrays[name]) for name in arrays)
    with pytest.raises(LedgerError):
        answers.read("run", attempt, "0" * 64)


def test_process_that_holds_the_keys_imports_nothing_that_trains() -> None:
    """It stays small and starts at once; the code of tasks runs in another process."""
    program = "import sys, privet.client.node, privet.client.app; print({'torch', 'opacus'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout == "set()\n"
