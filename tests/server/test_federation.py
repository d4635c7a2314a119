"""The round loop: what it believes, what it survives, what it refuses."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_nodes import FakeNode, grid_of, run, update_of
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, Error, Message, RecordDict
from privet.privacy.channel import words
from privet.privacy.errors import FederationError, Refusal
from privet.privacy.submission import Submission
from privet.server.checkpoints import Checkpoints, State
from privet.server.events import Answered, Evaluated, Happening, Missed, RollCalled, RoundBegun, Saved
from privet.server.federation import Federation
from privet.simulations.grid import Fault, LocalGrid

Make = Callable[..., Submission]


def three(**manners: object) -> list[FakeNode]:
    """Three nodes; the manners are the third's."""
    return [FakeNode("node-1"), FakeNode("node-2"), FakeNode("node-3", **manners)]  # type: ignore[arg-type]


def test_model_is_the_average_weighted_by_declared_sizes(make_submission: Make, tmp_path: Path) -> None:
    nodes = [FakeNode("node-1", 10, step=1.0), FakeNode("node-2", 30, step=2.0)]
    state, _ = run(make_submission("run.rounds=1"), nodes, tmp_path)
    np.testing.assert_allclose(state.model["w"], 1.75)


def test_every_round_is_watched_and_begins_at_the_initial_model(make_submission: Make, tmp_path: Path) -> None:
    state, watched = run(make_submission(), three(), tmp_path)
    assert [seen.round for seen in watched] == [0, 1, 2, 3, 4]
    assert [float(seen.model["w"][0, 0]) for seen in watched] == [0, 1, 2, 3, 4]
    assert state.participations == {"node-1": 4, "node-2": 4, "node-3": 4}


def test_nodes_that_compute_another_initial_model_end_the_run(make_submission: Make, tmp_path: Path) -> None:
    nodes = [FakeNode("node-1"), FakeNode("node-2", initial=1.0)]
    with pytest.raises(FederationError, match="another initial model"):
        run(make_submission(), nodes, tmp_path)


def test_refusing_node_is_left_out_and_not_asked_again(make_submission: Make, tmp_path: Path) -> None:
    nodes = three(train=lambda *_: Refusal.EPSILON_ABOVE_CLAIM.value)
    state, _ = run(make_submission(), nodes, tmp_path)
    assert state.excluded == {"node-3": "epsilon-above-claim"}
    assert nodes[2].asked == [("train", 1, 1)]
    assert state.history[0].failures == {"node-3": "epsilon-above-claim"}
    assert state.history[1].failures == {}


def test_too_few_willing_nodes_end_the_run_with_their_reasons(make_submission: Make, tmp_path: Path) -> None:
    nodes = [FakeNode("node-1"), FakeNode("node-2", train=lambda *_: Refusal.DELTA_TOO_LARGE.value)]
    with pytest.raises(FederationError, match=r"1 nodes answer in round 1, the plan needs 2: node-2 delta-too-large"):
        run(make_submission(), nodes, tmp_path)


def test_spent_attempt_is_asked_for_again_under_a_new_number(make_submission: Make, tmp_path: Path) -> None:
    def lost_once(model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict | str:
        if number == 2 and attempt == 1:
            return Refusal.ATTEMPT_SPENT.value
        return update_of({name: array + 1 for name, array in model.items()})

    nodes = three(train=lost_once)
    state, _ = run(make_submission(), nodes, tmp_path)
    assert ("train", 2, 2) in nodes[2].asked
    assert state.participations["node-3"] == 5
    assert state.history[1].failures == {}
    assert nodes[0].asked.count(("train", 2, 1)) == 1, "who answered is not asked twice"


def test_lost_reply_is_asked_for_again_under_the_same_number(make_submission: Make, tmp_path: Path) -> None:
    """A kept answer costs nothing; a new number would cost a spare round."""
    lost: list[int] = []

    def lose_one(request: Message, reply: Message) -> Message | None:
        if request.metadata.message_type == words.TRAIN and not lost:
            lost.append(request.metadata.dst_node_id)
            return None
        return reply

    nodes = [FakeNode("node-1"), FakeNode("node-2")]
    state, _ = run(make_submission(), nodes, tmp_path, lose_one)
    assert nodes[0].asked[:2] == [("train", 1, 1), ("train", 1, 1)]
    assert state.participations["node-1"] == 4


def test_lost_reply_is_let_go_where_enough_answered(make_submission: Make, tmp_path: Path) -> None:
    def lose_first_nodes(request: Message, reply: Message) -> Message | None:
        is_lost = request.metadata.dst_node_id == 100 and request.metadata.message_type == words.TRAIN
        return None if is_lost else reply

    state, _ = run(make_submission(), three(), tmp_path, lose_first_nodes)
    assert [report.failures for report in state.history] == [{"node-1": "no-answer"}] * 4
    assert state.excluded == {}


def test_failing_task_is_tried_again_next_round(make_submission: Make, tmp_path: Path) -> None:
    def fails_first(model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict | str:
        return Refusal.TASK_FAILED.value if number == 1 else update_of(model)

    nodes = three(train=fails_first)
    state, _ = run(make_submission(), nodes, tmp_path)
    assert state.history[0].failures == {"node-3": "task-failed"}
    assert state.history[1].answered == 3


def lying_updates() -> dict[str, Callable[[dict[str, np.ndarray]], RecordDict]]:
    def with_raw(array: FlowerArray) -> Callable[[dict[str, np.ndarray]], RecordDict]:
        def lie(model: dict[str, np.ndarray]) -> RecordDict:
            content = update_of(model)
            record = content[words.ARRAYS]
            assert isinstance(record, ArrayRecord)
            record["w"] = array
            return content

        return lie

    return {
        "nan": lambda model: update_of({n: a * np.float32("nan") for n, a in model.items()}),
        "infinity": lambda model: update_of({n: a + np.float32("inf") for n, a in model.items()}),
        "other shape": lambda model: update_of({n: np.zeros((5,), np.float32) for n in model}),
        "other names": lambda model: update_of({n + "x": a for n, a in model.items()}),
        "missing array": lambda model: update_of({"w": model["w"]}),
        "extra array": lambda model: update_of({**model, "z": np.zeros(1, np.float32)}),
        "doubles": with_raw(FlowerArray(np.zeros((2, 2), np.float64))),
        "objects": with_raw(FlowerArray("object", (2, 2), "numpy.ndarray", b"\x93NUMPY\x01\x00 not a header")),
        "pickled": with_raw(FlowerArray("float32", (2, 2), "torch.pickle", b"cos\nsystem\n")),
        "short": with_raw(
            FlowerArray("float32", (2, 2), "numpy.ndarray", FlowerArray(np.zeros((2, 2), np.float32)).data[:-1])
        ),
        "nothing": lambda model: RecordDict(),
    }


@pytest.mark.parametrize("lie", list(lying_updates()))
def test_lying_update_is_left_out(make_submission: Make, tmp_path: Path, lie: str) -> None:
    nodes = three(train=lambda model, *_: lying_updates()[lie](model))
    state, _ = run(make_submission("run.rounds=1"), nodes, tmp_path)
    assert state.history[0].failures == {"node-3": "malformed-update"}
    np.testing.assert_allclose(state.model["w"], 1.0)


def test_node_cannot_raise_its_own_weight(make_submission: Make, tmp_path: Path) -> None:
    nodes = three(train=lambda model, *_: update_of({n: a + 100 for n, a in model.items()}, weight=10**9))
    for strategy in ("fedavg", "krum"):
        extra = ["aggregation.malicious-nodes=0"] if strategy == "krum" else []
        submission = make_submission("run.rounds=1", f"aggregation.strategy={strategy}", *extra, run_id=strategy)
        state, _ = run(submission, nodes, tmp_path / strategy)
        assert float(state.model["w"][0, 0]) < 40


def test_text_of_an_error_is_not_believed(make_submission: Make, tmp_path: Path) -> None:
    nodes = three(train=lambda *_: "patient 17 has a tumour")
    state, _ = run(make_submission("run.rounds=1"), nodes, tmp_path)
    assert state.history[0].failures == {"node-3": "app-failed"}


def test_crashing_app_does_not_end_the_run(make_submission: Make, tmp_path: Path) -> None:
    def crash(*_: object) -> RecordDict:
        raise RuntimeError("secret")

    state, _ = run(make_submission("run.rounds=1"), three(train=crash), tmp_path)
    assert state.history[0].failures == {"node-3": "app-failed"}


def test_reply_of_a_node_that_was_not_asked_is_ignored(make_submission: Make, tmp_path: Path) -> None:
    """node-2 answers in the name of node-1, too: the first reply counts, and the forged one finds nobody waiting."""

    def forge(request: Message, reply: Message) -> Message:
        if request.metadata.dst_node_id == 101 and request.metadata.message_type == words.TRAIN:
            reply.metadata.__dict__["_src_node_id"] = 100
        return reply

    state, _ = run(make_submission("run.rounds=1"), three(), tmp_path, forge)
    assert state.history[0].failures == {"node-2": "no-answer"}
    assert state.history[0].answered == 2


def test_two_nodes_with_one_name_end_the_run(make_submission: Make, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="two nodes call themselves node-1"):
        run(make_submission(), [FakeNode("node-1"), FakeNode("node-1")], tmp_path)


@pytest.mark.parametrize(("name", "size"), [("../etc", 10), ("", 10), ("ok", 0), ("ok", -1), ("ok", 2**60)])
def test_node_with_impossible_description_is_not_on_the_roster(
    make_submission: Make, tmp_path: Path, name: str, size: int
) -> None:
    nodes = [FakeNode("node-1"), FakeNode("node-2"), FakeNode(name, declared_size=size)]
    state, _ = run(make_submission("run.rounds=1"), nodes, tmp_path)
    assert set(state.participations) == {"node-1", "node-2"}


def test_public_cap_on_participations_is_kept(make_submission: Make, tmp_path: Path) -> None:
    settings = ("run.rounds=6", "aggregation.fraction=0.5", "aggregation.participations=3")
    nodes = [FakeNode(f"node-{n}") for n in range(1, 5)]
    state, _ = run(make_submission(*settings), nodes, tmp_path)
    assert state.round == 6
    assert max(state.participations.values()) <= 3


def test_evaluation_is_asked_for_in_its_rounds_and_averaged_by_size(make_submission: Make, tmp_path: Path) -> None:
    nodes = [FakeNode("node-1", 10, accuracy=0.2), FakeNode("node-2", 30, accuracy=0.6)]
    state, _ = run(make_submission("evaluation.every=2"), nodes, tmp_path)
    assert [report.metrics for report in state.history] == [{}, {"accuracy": 0.5}, {}, {"accuracy": 0.5}]
    assert [asked for asked in nodes[0].asked if asked[0] == "evaluate"] == [("evaluate", 2, 1), ("evaluate", 4, 1)]


class StoppedError(Exception):
    """The server's process ends here."""


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("aggregation.strategy=fedavgm", "aggregation.server-momentum=0.9"),
        ("aggregation.strategy=fedadam",),
        ("aggregation.strategy=fedyogi",),
        ("aggregation.strategy=fedadagrad",),
        ("aggregation.strategy=fedmedian",),
    ],
)
@pytest.mark.parametrize("stop_at", [1, 2, 3, 5, 8, 11])
def test_run_that_stops_and_resumes_ends_with_the_same_bytes(
    make_submission: Make, tmp_path: Path, settings: tuple[str, ...], stop_at: int
) -> None:
    """The run stops while the n-th reply is on its way, in whatever round that is; a new server goes on."""

    def nodes() -> list[FakeNode]:
        return [FakeNode(f"node-{n}", 10 * n, step=0.1 * n) for n in (1, 2, 3)]

    replies = 0

    def stop(request: Message, reply: Message) -> Message:
        nonlocal replies
        replies += request.metadata.message_type == words.TRAIN
        if replies == stop_at:
            raise StoppedError
        return reply

    submission = make_submission(*settings)
    whole, _ = run(submission, nodes(), tmp_path / "whole")
    with pytest.raises(StoppedError):
        run(submission, nodes(), tmp_path / "stopped", stop)
    resumed, _ = run(submission, nodes(), tmp_path / "stopped")
    assert resumed.round == whole.round
    for name, array in whole.model.items():
        assert resumed.model[name].tobytes() == array.tobytes()


def test_finished_run_is_not_run_again(make_submission: Make, tmp_path: Path) -> None:
    submission = make_submission()
    run(submission, three(), tmp_path)
    nodes = three()
    state, watched = run(submission, nodes, tmp_path)
    assert (state.round, len(watched)) == (4, 1)
    assert nodes[0].asked == []


# ---- nodes that come, go, and refuse before they are asked to train ----


class Seal:
    signature = b"signed"
    certificates = b"PEM"


def federate(
    submission: Submission, nodes: list[FakeNode], folder: Path, fault: Fault | None = None, **options: object
) -> tuple[State, list[Happening], LocalGrid]:
    """The last state, all that happened, and the grid."""
    told: list[Happening] = []
    grid = grid_of(nodes, fault)
    checkpoints = Checkpoints(folder, submission.hash)
    state = Federation(submission, grid, checkpoints, lambda _: None, tell=told.append, **options).run()  # type: ignore[arg-type]
    return state, told, grid


def test_node_sees_submission_and_signature_before_it_says_who_it_is(make_submission: Make, tmp_path: Path) -> None:
    seen: list[dict[str, object]] = []

    def look(message: Message) -> str:
        seen.append(dict(message.content[words.CONFIG]))  # type: ignore[arg-type]
        return ""

    submission = make_submission("run.rounds=1")
    nodes = [FakeNode("node-1", describe=look), FakeNode("node-2")]
    federate(submission, nodes, tmp_path, seal=Seal())
    [config] = seen
    assert (config["submission"], config["signature"], config["certificates"]) == (
        submission.canonical,
        b"signed",
        b"PEM",
    )


def test_training_request_carries_the_signature_too(make_submission: Make, tmp_path: Path) -> None:
    """A node that was restarted since the roll call checks it again."""
    seen: list[tuple[object, object]] = []

    def look(request: Message, reply: Message) -> Message:
        config = request.content.get(words.CONFIG)
        if request.metadata.message_type == words.TRAIN:
            seen.append((config[words.SIGNATURE], config[words.CERTIFICATES]))  # type: ignore[index]
        return reply

    federate(make_submission("run.rounds=1"), three(), tmp_path, look, seal=Seal())
    assert seen == [(b"signed", b"PEM")] * 3


def test_refusal_at_roll_call_is_told_with_its_code(make_submission: Make, tmp_path: Path) -> None:
    nodes = three(describe=lambda _: "budget-exhausted")
    state, told, _ = federate(make_submission(), nodes, tmp_path, name_of=lambda node_id: f"node-{node_id - 99}")
    assert told[0] == RollCalled(("node-1", "node-2"), {"node-3": "budget-exhausted"})
    assert set(state.participations) == {"node-1", "node-2"}
    assert nodes[2].asked == []


def test_too_few_at_roll_call_are_named_with_their_refusals(make_submission: Make, tmp_path: Path) -> None:
    nodes = [FakeNode("node-1"), FakeNode("node-2", describe=lambda _: "operator-not-pinned")]
    with pytest.raises(
        FederationError, match=r"1 nodes say who they are, the plan needs 2: node 101 operator-not-pinned"
    ):
        federate(make_submission(), nodes, tmp_path)


def test_node_that_takes_anothers_name_does_not_take_part(make_submission: Make, tmp_path: Path) -> None:
    """What the channel knows counts, not what a node says: it could push another out of the run."""
    nodes = [FakeNode("node-1"), FakeNode("node-2"), FakeNode("node-1")]
    state, told, _ = federate(
        make_submission("run.rounds=1"), nodes, tmp_path, name_of=lambda node_id: f"node-{node_id - 99}"
    )
    assert told[0] == RollCalled(("node-1", "node-2"), {"node-3": "other-name"})
    assert set(state.participations) == {"node-1", "node-2"}


def joining_after(round_number: int, count: int) -> tuple[Callable[[], list[int]], Callable[[State], None]]:
    """Node ids that grow once a round is done."""
    ids = [100, 101]

    def watch(state: State) -> None:
        if state.round == round_number:
            ids.extend(range(102, 102 + count))

    return lambda: list(ids), watch


def test_node_that_connects_later_joins_the_next_round(make_submission: Make, tmp_path: Path) -> None:
    submission, nodes = make_submission(), three()
    present, watch = joining_after(2, 1)
    grid = grid_of(nodes)
    grid.get_node_ids = present  # type: ignore[method-assign]
    state = Federation(submission, grid, Checkpoints(tmp_path, submission.hash), watch).run()
    assert state.participations == {"node-1": 4, "node-2": 4, "node-3": 2}
    assert nodes[2].asked == [("train", 3, 1), ("train", 4, 1)]


def test_node_that_comes_back_with_another_id_takes_its_old_place(make_submission: Make, tmp_path: Path) -> None:
    submission = make_submission()
    nodes = [FakeNode("node-1"), FakeNode("node-2"), FakeNode("node-2")]
    ids = [100, 101]

    def watch(state: State) -> None:
        if state.round == 2:
            ids[1] = 102

    grid = grid_of(nodes)
    grid.get_node_ids = lambda: list(ids)  # type: ignore[method-assign]
    state = Federation(submission, grid, Checkpoints(tmp_path, submission.hash), watch).run()
    assert state.participations == {"node-1": 4, "node-2": 4}
    assert [number for _, number, _ in nodes[2].asked] == [3, 4]


def test_nodes_are_asked_once_who_they_are(make_submission: Make, tmp_path: Path) -> None:
    calls: list[int] = []

    def describe(message: Message) -> str:
        calls.append(message.metadata.dst_node_id)
        return "withdrawn" if message.metadata.dst_node_id == 102 else ""

    nodes = [FakeNode(f"node-{n}", describe=describe) for n in (1, 2, 3)]
    federate(make_submission(), nodes, tmp_path)
    assert calls == [100, 101, 102]


def test_paused_node_is_asked_again_before_every_round_and_joins_when_it_may(
    make_submission: Make, tmp_path: Path
) -> None:
    calls: list[str] = []

    def describe(_: Message) -> str:
        calls.append("asked")
        return "paused" if len(calls) < 3 else ""

    state, told, _ = federate(make_submission(), three(describe=describe), tmp_path)
    assert state.participations["node-3"] == 2
    assert [happening.refused for happening in told if isinstance(happening, RollCalled)] == [
        {"node 102": "paused"},
        {"node 102": "paused"},
        {},
    ]


def test_node_that_pauses_in_the_middle_is_not_left_out_for_good(make_submission: Make, tmp_path: Path) -> None:
    nodes = three(train=lambda model, number, _: "paused" if number == 2 else update_of(model))
    state, _ = run(make_submission(), nodes, tmp_path)
    assert state.excluded == {}
    assert [report.failures for report in state.history] == [{}, {"node-3": "paused"}, {}, {}]


def test_node_that_never_says_who_it_is_is_asked_twice_and_then_let_be(make_submission: Make, tmp_path: Path) -> None:
    asked: list[int] = []

    def lose(request: Message, reply: Message) -> Message | None:
        if request.metadata.message_type == words.DESCRIBE and request.metadata.dst_node_id == 102:
            asked.append(102)
            return None
        return reply

    _, told, _ = federate(make_submission(), three(), tmp_path, lose)
    assert asked == [102, 102]
    assert told[0] == RollCalled(("node-1", "node-2"), {"node 102": "no-answer"})


def test_rounds_wait_for_the_plans_deadline_and_roll_calls_for_their_own(make_submission: Make, tmp_path: Path) -> None:
    timeouts: set[tuple[str, float | None]] = set()
    submission = make_submission("aggregation.deadline=90", "evaluation.every=1")
    grid = grid_of(three())
    send = grid.send_and_receive

    def record(messages: list[Message], *, timeout: float | None = None) -> Iterable[Message]:
        timeouts.update((message.metadata.message_type, timeout) for message in messages)
        return send(messages, timeout=timeout)

    grid.send_and_receive = record  # type: ignore[method-assign, assignment]
    checkpoints = Checkpoints(tmp_path, submission.hash)
    Federation(submission, grid, checkpoints, lambda _: None, timeout=3600.0, patience=7.0).run()
    assert timeouts == {("query.describe", 7.0), ("query.initial", 90.0), ("train", 90.0), ("evaluate", 90.0)}


def test_all_that_happens_in_a_round_is_told_in_order(make_submission: Make, tmp_path: Path) -> None:
    nodes = three(train=lambda *_: Refusal.TASK_FAILED.value)
    _, told, _ = federate(make_submission("run.rounds=1", "evaluation.every=1"), nodes, tmp_path)
    assert isinstance(told[2], Answered)
    shown = [replace(happening, seconds=0.0) if isinstance(happening, Answered) else happening for happening in told]
    assert shown == [
        RollCalled(("node-1", "node-2", "node-3"), {}),
        RoundBegun(1, ("node-1", "node-2", "node-3")),
        Answered(1, "node-1", 280, 0.0),
        Answered(1, "node-2", 280, 0.0),
        Missed(1, "node-3", "task-failed"),
        Evaluated(1, {"accuracy": 0.5}),
        Saved(1),
    ]


def test_lost_answer_is_told_as_missed(make_submission: Make, tmp_path: Path) -> None:
    def lose(request: Message, reply: Message) -> Message | None:
        is_lost = request.metadata.dst_node_id == 102 and request.metadata.message_type == words.TRAIN
        return None if is_lost else reply

    _, told, _ = federate(make_submission("run.rounds=1"), three(), tmp_path, lose)
    assert Missed(1, "node-3", "no-answer") in told


def test_before_every_round_and_every_second_try_enough_nodes_are_awaited(
    make_submission: Make, tmp_path: Path
) -> None:
    awaited: list[int] = []
    lost: list[int] = []

    def lose_one(request: Message, reply: Message) -> Message | None:
        if request.metadata.message_type == words.TRAIN and not lost:
            lost.append(1)
            return None
        return reply

    nodes = [FakeNode("node-1"), FakeNode("node-2")]
    federate(make_submission("run.rounds=2"), nodes, tmp_path, lose_one, muster=awaited.append)
    assert awaited == [2, 2, 2]


@pytest.mark.parametrize(
    ("code", "told"), [(words.LOST, "disconnected"), (words.CONTRADICTS, "ledger-contradicts"), (999, "app-failed")]
)
def test_what_the_channel_puts_in_place_of_an_answer_is_told_as_such(
    make_submission: Make, tmp_path: Path, code: int, told: str
) -> None:
    def replace_it(request: Message, reply: Message) -> Message:
        is_third = request.metadata.dst_node_id == 102 and request.metadata.message_type == words.TRAIN
        return Message(Error(code, "any text"), reply_to=request) if is_third else reply

    state, _, _ = federate(make_submission("run.rounds=1"), three(), tmp_path, replace_it)
    assert state.history[0].failures == {"node-3": told}
    assert state.excluded == {}


def test_description_in_the_name_of_a_node_that_was_not_asked_is_ignored(make_submission: Make, tmp_path: Path) -> None:
    """node-3's answer says that it comes from a node that nobody asked, and from one that has answered already."""

    def forge(request: Message, reply: Message) -> Message:
        if request.metadata.dst_node_id == 102 and request.metadata.message_type == words.DESCRIBE:
            reply.metadata.__dict__["_src_node_id"] = 100
        return reply

    _, told, _ = federate(make_submission("run.rounds=1"), three(), tmp_path, forge)
    assert told[0] == RollCalled(("node-1", "node-2"), {"node 102": "no-answer"})


def test_after_the_last_round_nobody_is_asked_who_they_are(make_submission: Make, tmp_path: Path) -> None:
    calls: list[int] = []

    def describe(message: Message) -> str:
        calls.append(1)
        return "paused"

    federate(make_submission("run.rounds=2"), three(describe=describe), tmp_path)
    assert len(calls) == 2, "before the first round and before the second"
