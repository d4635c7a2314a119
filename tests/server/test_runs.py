"""Runs: submitted, carried out, stopped, resumed, and found again after whatever has happened to the process."""

import contextlib
import hashlib
import itertools
import json
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_nodes import FakeNode
from flwr.app import Message
from privet.privacy.channel import words
from privet.privacy.errors import FederationError, PrivetError, Refusal, RefusedError, UsageError
from privet.privacy.signed import SignedSubmission
from privet.privacy.submission import Submission
from privet.server import runs as runs_module
from privet.server.run_job import Job
from privet.server.run_record import RunState
from privet.server.run_text import page_lines
from privet.server.run_views import page_of
from privet.server.runs import TRAINING, Runs
from privet.server.training_run import TrainingRuns
from run_grids import CERTIFICATES, PATIENCE, LocalRunGrid, ended, handed_in, runs_in, three
from safetensors.numpy import load
from sqlalchemy import event

Make = Callable[..., Submission]


@pytest.fixture(name="make")
def _make(make_submission: Make) -> Make:
    """Submissions that are valid now."""
    return lambda *settings, **options: make_submission(*settings, **{"now": datetime.now(UTC)} | options)


def arrays_of(runs: Runs, run_id: str = "run-1") -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load(runs.model_file(run_id).read_bytes()).items()}


def kinds(runs: Runs, run_id: str = "run-1") -> list[str]:
    return [event.kind for event in runs.book.events(run_id)]


def test_submitted_run_is_carried_out_and_its_model_written(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    assert runs.submit(handed_in(make()), "tester").run_id == "run-1"
    assert ended(runs, "run-1") is RunState.FINISHED
    assert kinds(runs) == ["submitted", "waiting", "running", "roll", *["round"] * 4, "finished"]
    record, content = runs.book.record("run-1"), runs.model_file("run-1").read_bytes()
    assert (record.round, record.standing["participations"]) == (4, {"node-1": 4, "node-2": 4, "node-3": 4})
    assert record.standing["model"] == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    np.testing.assert_allclose(load(content)["w"], 4 * (10 * 0.5 + 20 * 1.0 + 30 * 1.5) / 60)


def test_claim_that_the_servers_noise_would_keep_is_not_carried_out(make: Make, tmp_path: Path) -> None:
    """An institution cannot check that noise, so no deployment makes the claim."""
    claim = ("privacy.unit=node", "privacy.noise-multiplier=1.0", "privacy.delta=1e-3", "privacy.clip-norm=1.0")
    runs = runs_in(tmp_path)
    with pytest.raises(UsageError, match="simulated only"):
        runs.submit(handed_in(make(*claim, "run.spare-rounds=0")), "tester")
    assert runs.book.records() == []


def test_strategy_whose_nodes_must_keep_something_is_not_carried_out(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    with pytest.raises(PrivetError, match="which only privet simulate keeps"):
        runs.submit(handed_in(make("aggregation.strategy=scaffold")), "tester")
    assert runs.book.records() == []


def test_who_was_asked_and_never_answered_has_not_trained(make: Make, tmp_path: Path) -> None:
    nodes = [*three()[:2], FakeNode("node-3", train=lambda *_: Refusal.TASK_FAILED.value)]
    runs = runs_in(tmp_path, lambda: LocalRunGrid(nodes))
    runs.submit(handed_in(make("run.rounds=1")), "tester")
    assert ended(runs, "run-1") is RunState.FINISHED
    record = runs.book.record("run-1")
    assert record.standing["participations"] == {"node-1": 1, "node-2": 1, "node-3": 1}
    assert record.members == {"node-1", "node-2"}
    assert runs.model_of("run-1", "node-1").exists()
    with pytest.raises(UsageError, match="node-3 has not trained in run run-1"):
        runs.model_of("run-1", "node-3")


def test_event_of_a_round_says_who_answered_with_how_much_and_who_did_not(make: Make, tmp_path: Path) -> None:
    nodes = [*three()[:2], FakeNode("node-3", train=lambda *_: Refusal.BUDGET_EXHAUSTED.value)]
    runs = runs_in(tmp_path, lambda: LocalRunGrid(nodes))
    runs.submit(handed_in(make("evaluation.every=2")), "tester")
    ended(runs, "run-1")
    first, second, *_ = [event.body for event in runs.book.events("run-1") if event.kind == "round"]
    assert (first["round"], first["answered"], first["missing"]) == (1, 2, {"node-3": "budget-exhausted"})
    assert first["cohort"] == ["node-1", "node-2", "node-3"]
    assert {name: told["bytes"] for name, told in first["answers"].items()} == {"node-1": 280, "node-2": 280}
    assert second["metrics"] == {"accuracy": 0.5}
    assert runs.book.record("run-1").standing["excluded"] == {"node-3": "budget-exhausted"}


def test_run_waits_for_its_nodes(make: Make, tmp_path: Path) -> None:
    grid = LocalRunGrid(three(), connected=1)
    runs, is_waiting = runs_in(tmp_path, lambda: grid), threading.Event()
    runs.notices.look_on("run-1", lambda: runs.book.record("run-1").state is RunState.WAITING and is_waiting.set())
    runs.submit(handed_in(make()), "tester")
    assert is_waiting.wait(PATIENCE)
    grid.connect(3)
    assert ended(runs, "run-1") is RunState.FINISHED
    assert grid.is_closed


def test_run_whose_nodes_go_away_waits_for_them_again(make: Make, tmp_path: Path) -> None:
    grid = LocalRunGrid(three())

    def leave(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == words.TRAIN and len(grid.get_node_ids()) == 3:  # type: ignore[arg-type]
            grid.connect(1)
        return reply

    grid._grid._fault = leave
    runs = runs_in(tmp_path, lambda: grid)

    def come_back() -> None:
        if runs.book.record("run-1").round == 1 and runs.book.record("run-1").state is RunState.WAITING:
            grid.connect(2)

    runs.notices.look_on("run-1", come_back)
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.FINISHED
    assert kinds(runs)[:7] == ["submitted", "waiting", "running", "roll", "round", "waiting", "running"]


def stopping_at(runs: Runs, state: RunState) -> Callable[[], None]:
    done = threading.Event()

    def look() -> None:
        if runs.book.record("run-1").state is state and not done.is_set():
            done.set()
            threading.Thread(target=runs.stop, args=("run-1", "alice")).start()

    return look


def test_waiting_run_can_be_stopped_and_resumed(make: Make, tmp_path: Path) -> None:
    grids = [LocalRunGrid(three(), connected=0), LocalRunGrid(three())]
    runs = runs_in(tmp_path, lambda: grids.pop(0))
    runs.notices.look_on("run-1", stopping_at(runs, RunState.WAITING))
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.STOPPED
    assert [e.body for e in runs.book.events("run-1") if e.kind == "stopping"] == [{"by": "alice"}]
    assert runs.resume("run-1", "bob").state is RunState.SUBMITTED
    assert ended(runs, "run-1") is RunState.FINISHED
    assert [e.body for e in runs.book.events("run-1") if e.kind == "submitted"][1:] == [{"by": "bob"}]


def stops_after(count: int, runs: list[Runs]) -> Callable[[Message, Message], Message]:
    """A fault that stops the run while its n-th update is on the way."""
    seen = 0

    def fault(request: Message, reply: Message) -> Message:
        nonlocal seen
        seen += request.metadata.message_type == words.TRAIN
        if seen == count:
            runs[0].stop("run-1", "alice")
        return reply

    return fault


@pytest.mark.parametrize("at", [1, 3, 5, 11])
def test_run_that_was_stopped_anywhere_ends_with_the_same_model(make: Make, tmp_path: Path, at: int) -> None:
    submission = make("aggregation.strategy=fedadam")
    whole = runs_in(tmp_path / "whole")
    whole.submit(handed_in(submission), "tester")
    assert ended(whole, "run-1") is RunState.FINISHED
    found: list[Runs] = []
    grids = [LocalRunGrid(three(), fault=stops_after(at, found)), LocalRunGrid(three())]
    runs = runs_in(tmp_path / "stopped", lambda: grids.pop(0))
    found.append(runs)
    runs.submit(handed_in(submission), "tester")
    assert ended(runs, "run-1") is RunState.STOPPED
    runs.resume("run-1")
    assert ended(runs, "run-1") is RunState.FINISHED
    assert arrays_of(runs) == arrays_of(whole)
    assert [e.body["round"] for e in runs.book.events("run-1") if e.kind == "round"] == [1, 2, 3, 4]
    lives = 2 if at > 3 else 1  # in which a round ended: bytes of both are added up
    assert runs.book.record("run-1").standing["traffic"] == [1000 * lives, 500 * lives]


def test_roll_is_told_again_only_when_it_has_changed(make: Make, tmp_path: Path) -> None:
    """A paused node is asked before every round; that is no news."""
    grid = LocalRunGrid([*three()[:2], FakeNode("node-3", describe=lambda _: "paused")])
    runs = runs_in(tmp_path, lambda: grid)
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.FINISHED
    [roll] = [event.body for event in runs.book.events("run-1") if event.kind == "roll"]
    assert roll == {"members": ["node-1", "node-2"], "refused": {"node-3": "paused"}, "not_asked": {}}


def waiting(tmp_path: Path, make: Make) -> tuple[Runs, LocalRunGrid]:
    """A run that lacks a node whose approval is pending."""
    careful = FakeNode("node-2", describe=lambda _: "approval-pending: needs-steward")
    grid = LocalRunGrid([FakeNode("node-1"), careful])
    runs = runs_in(tmp_path, lambda: grid)
    seen = threading.Event()

    def look() -> None:
        if runs.book.record("run-1").standing.get("waits_for") and runs.book.record("run-1").state == "waiting":
            seen.set()

    runs.notices.look_on("run-1", look)
    runs.submit(handed_in(make()), "tester")
    assert seen.wait(PATIENCE)
    return runs, grid


def test_run_that_waits_for_a_person_says_for_whom_and_goes_on(make: Make, tmp_path: Path) -> None:
    runs, grid = waiting(tmp_path, make)
    page = page_of(runs.book, runs.book.record("run-1"))
    assert page["state"] == "waiting"
    assert page["waits_for"] == page["refused"] == {"node-2": "approval-pending: needs-steward"}
    assert "waits for: node-2 approval-pending: needs-steward" in page_lines(page)
    grid.revise("node-2", describe=None)
    assert ended(runs, "run-1") is RunState.FINISHED
    assert page_of(runs.book, runs.book.record("run-1"))["waits_for"] == {}
    told = [(event.kind, event.body.get("nodes")) for event in runs.book.events("run-1")]
    assert [kind for kind, _ in told if kind in list(RunState)] == [
        *("submitted", "waiting", "running", "waiting", "running", "finished")
    ]
    assert [nodes for kind, nodes in told if kind == "waits"] == [{"node-2": "approval-pending: needs-steward"}, {}]


def test_node_that_words_its_refusal_anew_each_time_does_not_fill_the_book(make: Make, tmp_path: Path) -> None:
    said = list[str]()

    def describe(_: Message) -> str:
        said.append(f"approval-pending: rule-{len(said)}" if len(said) < 20 else "")
        if said[-1]:
            grid.revise("node-2")
        return said[-1]

    grid = LocalRunGrid([FakeNode("node-1"), FakeNode("node-2", describe=describe)])
    runs = runs_in(tmp_path, lambda: grid)
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.FINISHED
    assert len(said) == 21
    kinds = [event.kind for event in runs.book.events("run-1")]
    assert (kinds.count("roll"), kinds.count("waits")) == (2, 2)


def test_operator_stops_a_run_that_waits_for_a_person(make: Make, tmp_path: Path) -> None:
    runs, _ = waiting(tmp_path, make)
    runs.stop("run-1")
    assert ended(runs, "run-1") is RunState.STOPPED


def test_run_that_waits_for_a_person_goes_on_waiting_after_a_restart(make: Make, tmp_path: Path) -> None:
    runs, _ = waiting(tmp_path, make)
    runs.close()
    assert runs.book.record("run-1").state is RunState.WAITING
    again = runs_in(tmp_path, lambda: LocalRunGrid([FakeNode("node-1"), FakeNode("node-2")]))
    again.start()
    assert ended(again, "run-1") is RunState.FINISHED
    assert page_of(again.book, again.book.record("run-1"))["waits_for"] == {}


def test_nodes_are_shown_the_signature_under_the_names_in_their_certificates(make: Make, tmp_path: Path) -> None:
    seen: list[object] = []

    def look(message: Message) -> str:
        config = message.content[words.CONFIG]
        seen.append((config[words.SIGNATURE], config[words.CERTIFICATES]))  # type: ignore[index]
        return ""

    nodes = [FakeNode("node-1", describe=look), FakeNode("node-2"), FakeNode("node-3")]
    grid = LocalRunGrid(nodes)
    nodes[2].name = "node-1"  # what it says of itself from now on
    runs = runs_in(tmp_path, lambda: grid)
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.FINISHED
    assert seen == [(b"signature", CERTIFICATES)]
    assert runs.book.record("run-1").standing["refused"] == {"node-3": "other-name"}


def test_servers_deadline_holds_where_the_plan_has_none(make: Make, tmp_path: Path) -> None:
    timeouts: set[tuple[str, float | None]] = set()

    class Timed(LocalRunGrid):
        def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> Any:
            timeouts.update((message.metadata.message_type, timeout) for message in messages)
            return super().send_and_receive(messages, timeout=timeout)

    runs = runs_in(tmp_path, lambda: Timed(three()), carry_out={TRAINING: TrainingRuns(deadline=90.0)})
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.FINISHED
    assert timeouts == {("query.describe", 60.0), ("query.initial", 90.0), ("train", 90.0)}


def test_failed_run_says_why_and_can_be_resumed(make: Make, tmp_path: Path) -> None:
    unwilling = [FakeNode("node-1"), FakeNode("node-2", train=lambda *_: Refusal.DELTA_TOO_LARGE.value)]
    grids = [LocalRunGrid(unwilling), LocalRunGrid(three())]
    runs = runs_in(tmp_path, lambda: grids.pop(0))
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.FAILED
    error = runs.book.record("run-1").error
    assert error is not None
    assert error.code == "federation"
    assert error.text == "1 nodes answer in round 1, the plan needs 2: node-2 delta-too-large"
    runs.resume("run-1")
    assert ended(runs, "run-1") is RunState.FINISHED
    assert runs.book.record("run-1").error is None


def test_defect_is_told_by_its_kind_and_its_text_stays_in_the_log(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(job: Job) -> dict[str, object]:
        raise KeyError("patient 17")

    runs = runs_in(tmp_path, carry_out={TRAINING: fail})
    with caplog.at_level(logging.ERROR, "privet.server"):
        runs.submit(handed_in(make()), "tester")
        assert ended(runs, "run-1") is RunState.FAILED
    error = runs.book.record("run-1").error
    assert error is not None
    assert (error.code, error.text) == ("defect", "a defect in the server: KeyError")
    assert "patient 17" in caplog.text


def test_several_runs_are_under_way_at_once(make: Make, tmp_path: Path) -> None:
    together = threading.Barrier(3)

    def meet(job: Job) -> dict[str, object]:
        job.wait_for_nodes(1)
        together.wait(PATIENCE)
        return {}

    runs = runs_in(tmp_path, carry_out={TRAINING: meet})
    for number in range(3):
        runs.submit(handed_in(make(run_id=f"run-{number}")), "tester")
    assert [ended(runs, f"run-{number}") for number in range(3)] == [RunState.FINISHED] * 3


# ---- what is submitted ----


def test_same_submission_again_gives_the_run_as_it_is(make: Make, tmp_path: Path) -> None:
    runs, signed = runs_in(tmp_path), handed_in(make())
    runs.submit(signed, "tester")
    ended(runs, "run-1")
    assert runs.submit(signed, "tester") == runs.book.record("run-1")
    assert kinds(runs).count("submitted") == 1


def test_repeated_submission_is_no_news_even_when_its_certificate_has_expired(make: Make, tmp_path: Path) -> None:
    expired: list[bool] = []

    def check(_: SignedSubmission) -> None:
        if expired:
            raise RefusedError(Refusal.NOT_SIGNED, "expired", "renew")

    runs, signed = runs_in(tmp_path, check=check), handed_in(make())
    runs.submit(signed, "tester")
    expired.append(True)
    assert runs.submit(signed, "tester").run_id == "run-1"
    with pytest.raises(RefusedError):
        runs.submit(handed_in(make(run_id="run-2")), "tester")
    ended(runs, "run-1")


def test_other_submission_under_a_taken_run_id_is_refused(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    runs.submit(handed_in(make()), "tester")
    with pytest.raises(RefusedError) as error:
        runs.submit(handed_in(make("run.rounds=9")), "tester")
    assert error.value.code == "other-submission"
    ended(runs, "run-1")


def test_submission_in_another_operators_name_is_refused(make: Make, tmp_path: Path) -> None:
    """mallory is an operator too, and hands in what tester has signed."""
    runs = runs_in(tmp_path)
    with pytest.raises(RefusedError, match="the submission is operator tester's, and mallory hands it in"):
        runs.submit(handed_in(make()), "mallory")
    assert runs.book.records() == []


def test_unsigned_submission_is_refused_before_anything_is_written(make: Make, tmp_path: Path) -> None:
    def refuse(_: SignedSubmission) -> None:
        raise RefusedError(Refusal.NOT_SIGNED, "the signature is not tester's", "sign")

    runs = runs_in(tmp_path, check=refuse)
    with pytest.raises(RefusedError, match="not tester's"):
        runs.submit(handed_in(make()), "tester")
    assert runs.book.records() == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("shift", [timedelta(days=31), timedelta(minutes=-1)])
def test_submission_outside_its_time_is_refused(make: Make, tmp_path: Path, shift: timedelta) -> None:
    runs = runs_in(tmp_path, clock=lambda: datetime.now(UTC) + shift)
    with pytest.raises(RefusedError, match="is valid from") as error:
        runs.submit(handed_in(make()), "tester")
    assert error.value.code == "not-valid-now"


def test_bytes_that_are_no_submission_are_refused(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    for content in (b"", b"{}", b"[1]", b"\xff", b"[" * 100_000, b'{"plan":{"app":1}}'):
        with pytest.raises(UsageError):
            runs.submit(SignedSubmission(content, b"s", b"c"), "tester")


def test_kind_that_nobody_carries_out_is_refused(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, carry_out={})
    with pytest.raises(UsageError, match="runs of kind training are not carried out here"):
        runs.submit(handed_in(make()), "tester")


def test_more_runs_than_the_server_carries_are_refused(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, lambda: LocalRunGrid(three(), connected=0))
    for number in range(runs_module.MOST_RUNS):
        runs.submit(handed_in(make(run_id=f"run-{number}")), "tester")
    with pytest.raises(UsageError, match="64 runs are under way, which is the most"):
        runs.submit(handed_in(make(run_id="one-more")), "tester")
    runs.close()


# ---- stop and resume where there is nothing to ----


def test_finished_run_can_neither_be_stopped_nor_resumed(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    runs.submit(handed_in(make()), "tester")
    ended(runs, "run-1")
    with pytest.raises(UsageError, match="run run-1 is finished: it cannot become stopping"):
        runs.stop("run-1")
    with pytest.raises(UsageError, match="run run-1 is finished: it cannot become submitted"):
        runs.resume("run-1")


def test_run_under_way_is_not_resumed_twice_and_stopped_only_once(make: Make, tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def wait(job: Job) -> dict[str, object]:
        job.wait_for_nodes(1)
        started.set()
        assert go_on.wait(PATIENCE)
        job.wait_for_nodes(1)
        return {}

    runs = runs_in(tmp_path, carry_out={TRAINING: wait})
    runs.submit(handed_in(make()), "tester")
    assert started.wait(PATIENCE)
    with pytest.raises(UsageError, match="run run-1 is running"):
        runs.resume("run-1")
    assert runs.stop("run-1").state is RunState.STOPPING
    assert runs.stop("run-1").state is RunState.STOPPING
    with pytest.raises(UsageError, match="run run-1 is stopping"):
        runs.resume("run-1")
    go_on.set()
    assert ended(runs, "run-1") is RunState.STOPPED
    assert kinds(runs).count("stopping") == 1


def test_run_that_ends_before_it_sees_that_it_should_stop_has_finished(make: Make, tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()

    def end(job: Job) -> dict[str, object]:
        started.set()
        assert go_on.wait(PATIENCE)
        return {}

    runs = runs_in(tmp_path, carry_out={TRAINING: end})
    runs.submit(handed_in(make()), "tester")
    assert started.wait(PATIENCE)
    runs.stop("run-1")
    go_on.set()
    assert ended(runs, "run-1") is RunState.FINISHED


@pytest.mark.parametrize("is_server_ending", [False, True])
def test_run_that_is_to_end_before_it_has_a_grid_finds_its_grid_stopped(
    make: Make, tmp_path: Path, is_server_ending: bool
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow_grid() -> LocalRunGrid:
        asked.set()
        assert go_on.wait(PATIENCE)
        return LocalRunGrid(three())

    def use_the_grid(job: Job) -> dict[str, object]:
        job.grid.wait_for_nodes(1)
        return {}

    runs = runs_in(tmp_path, slow_grid, carry_out={TRAINING: use_the_grid})
    runs.submit(handed_in(make()), "tester")
    assert asked.wait(PATIENCE)
    if is_server_ending:
        closing = threading.Thread(target=runs.close)
        closing.start()
        while not runs._is_closing:
            closing.join(0.01)
    else:
        runs.stop("run-1")
    go_on.set()
    assert ended(runs, "run-1") is (RunState.SUBMITTED if is_server_ending else RunState.STOPPED)


def test_unknown_run_is_not_stopped_resumed_or_fetched(tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    for ask in (runs.stop, runs.resume, runs.model_file):
        with pytest.raises(UsageError, match="no run nothing"):
            ask("nothing")


def test_run_without_a_model_says_so(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, carry_out={TRAINING: lambda job: {}})
    runs.submit(handed_in(make()), "tester")
    ended(runs, "run-1")
    with pytest.raises(UsageError, match="run run-1 is finished: it has no model"):
        runs.model_file("run-1")


# ---- the end of the process, and the next one ----


def test_closed_server_goes_on_with_its_runs_at_the_next_start(make: Make, tmp_path: Path) -> None:
    first: list[Runs] = []
    is_asked = threading.Event()

    def close(request: Message, reply: Message) -> Message:
        if request.metadata.message_type == words.TRAIN and not is_asked.is_set():
            is_asked.set()
            threading.Thread(target=first[0].close).start()
            first[0]._alive["run-1"].done.wait(0.1)  # the answer is on its way while the server ends
        return reply

    runs = runs_in(tmp_path, lambda: LocalRunGrid(three(), fault=close))
    first.append(runs)
    runs.submit(handed_in(make("run.rounds=50")), "tester")
    assert is_asked.wait(PATIENCE)
    assert ended(runs, "run-1") is RunState.RUNNING
    again = runs_in(tmp_path)
    again.start()
    assert ended(again, "run-1") is RunState.FINISHED
    assert [e.body["round"] for e in again.book.events("run-1") if e.kind == "round"] == list(range(1, 51))
    assert {"by": "restart"} in [e.body for e in again.book.events("run-1") if e.kind == "submitted"]


def test_run_that_fails_because_the_server_ends_has_not_failed(make: Make, tmp_path: Path) -> None:
    """Streams are cut while the server shuts down: too few nodes answer, and nobody is to blame."""
    started, go_on = threading.Event(), threading.Event()

    def fail(job: Job) -> dict[str, object]:
        job.wait_for_nodes(1)
        started.set()
        assert go_on.wait(PATIENCE)
        raise FederationError("0 nodes answer", "look")

    runs = runs_in(tmp_path, carry_out={TRAINING: fail})
    runs.submit(handed_in(make()), "tester")
    assert started.wait(PATIENCE)
    closing = threading.Thread(target=runs.close)
    closing.start()
    while not runs._is_closing:
        closing.join(0.01)
    go_on.set()
    assert ended(runs, "run-1") is RunState.RUNNING


def test_run_that_is_interrupted_and_that_nobody_stopped_goes_on_at_the_next_start(make: Make, tmp_path: Path) -> None:
    """The streams' hub ended before the runs did."""

    def interrupted(job: Job) -> dict[str, object]:
        job.wait_for_nodes(1)
        job.grid.stop()
        job.grid.wait_for_nodes(1)
        return {}

    runs = runs_in(tmp_path, carry_out={TRAINING: interrupted})
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.RUNNING
    again = runs_in(tmp_path)
    again.start()
    assert ended(again, "run-1") is RunState.FINISHED


def test_closing_server_takes_no_more_runs(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    runs.close()
    with pytest.raises(FederationError, match="the server is stopping"):
        runs.submit(handed_in(make()), "tester")


def test_closing_server_resumes_nothing(make: Make, tmp_path: Path) -> None:
    def fail(job: Job) -> dict[str, object]:
        raise FederationError("no", "look")

    runs = runs_in(tmp_path, carry_out={TRAINING: fail})
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.FAILED
    runs.close()
    with pytest.raises(FederationError, match="the server is stopping"):
        runs.resume("run-1")
    assert runs.book.record("run-1").state is RunState.FAILED


def test_run_that_was_being_stopped_when_the_process_died_is_stopped(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path, lambda: LocalRunGrid(three(), connected=0))
    runs.submit(handed_in(make()), "tester")
    runs.close()
    assert ended(runs, "run-1") in (RunState.SUBMITTED, RunState.WAITING)
    runs.book.move("run-1", RunState.STOPPING)
    again = runs_in(tmp_path)
    again.start()
    assert again.book.record("run-1").state is RunState.STOPPED


def test_finished_and_failed_runs_are_left_alone_at_start(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    runs.submit(handed_in(make()), "tester")
    ended(runs, "run-1")
    again = runs_in(tmp_path)
    again.start()
    assert again.wait("run-1", 0)
    assert kinds(again) == kinds(runs)


def test_run_whose_rounds_are_done_needs_no_nodes_to_end(make: Make, tmp_path: Path) -> None:
    """The crash came between the last checkpoint and the model; the institutions have gone home."""
    runs = runs_in(tmp_path)
    runs.submit(handed_in(make()), "tester")
    ended(runs, "run-1")
    model = arrays_of(runs)
    with contextlib.closing(runs.book._engine.raw_connection()) as connection:
        connection.execute("UPDATE runs SET state = 'running', round = 2, standing = '{}'")  # type: ignore[attr-defined]
        connection.execute("DELETE FROM run_events WHERE number > 6")  # type: ignore[attr-defined]
        connection.execute("UPDATE runs SET events = 6")  # type: ignore[attr-defined]
        connection.commit()
    (tmp_path / "runs" / "run-1" / "model.safetensors").unlink()
    again = runs_in(tmp_path, lambda: LocalRunGrid(three(), connected=0))
    again.start()
    assert ended(again, "run-1") is RunState.FINISHED
    assert arrays_of(again) == model
    assert [e.body["round"] for e in again.book.events("run-1") if e.kind == "round"] == [1, 2, 3, 4]


def test_book_that_cannot_be_written_ends_the_run_and_the_next_start_goes_on(make: Make, tmp_path: Path) -> None:
    """A disk that is full for a while: the run's thread ends, its state stays, nothing is lost."""
    runs = runs_in(tmp_path)
    engine, is_full = runs.book._engine, threading.Event()

    @event.listens_for(engine, "before_cursor_execute")
    def fail(connection, cursor, statement, *_: object) -> None:  # type: ignore[no-untyped-def]
        if is_full.is_set() and statement.startswith(("INSERT", "UPDATE")):
            raise FederationError("the server's database failed: disk full", "free space")

    runs.notices.look_on("run-1", lambda: runs.book.record("run-1").round == 2 and is_full.set())
    runs.submit(handed_in(make()), "tester")
    assert ended(runs, "run-1") is RunState.RUNNING
    is_full.clear()
    again = runs_in(tmp_path)
    again.start()
    assert ended(again, "run-1") is RunState.FINISHED
    assert [e.body["round"] for e in again.book.events("run-1") if e.kind == "round"] == [1, 2, 3, 4]


def test_run_left_without_a_thread_can_be_stopped(make: Make, tmp_path: Path) -> None:
    runs = runs_in(tmp_path)
    submission = make()
    runs.book.add(runs_module._new_run(submission), handed_in(submission))
    assert runs.stop("run-1").state is RunState.STOPPED


# ---- kill -9 ----


def killed_server(folder: Path, submission: bytes, kill_at: int) -> None:
    """A server's process, which dies by SIGKILL at the n-th thing that it does."""
    done = 0

    def step(*_: object) -> None:
        nonlocal done
        done += 1
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def on_the_way(_: Message, reply: Message) -> Message:
        step()
        return reply

    runs = runs_in(folder, lambda: LocalRunGrid(three(), fault=on_the_way))
    for moment in ("begin", "commit", "before_cursor_execute"):
        event.listen(runs.book._engine, moment, step)
    runs.notices.look_on("run-1", step)
    runs.start()
    with contextlib.suppress(PrivetError):
        runs.submit(SignedSubmission(submission, b"s", CERTIFICATES), "tester")
    if not runs.wait("run-1", PATIENCE):
        os._exit(3)
    os._exit(0 if runs.book.record("run-1").state is RunState.FINISHED else 4)


def live(folder: Path, submission: bytes, kill_at: int) -> int:
    process = multiprocessing.get_context("fork").Process(target=killed_server, args=(folder, submission, kill_at))
    process.start()
    process.join(60)
    assert process.exitcode is not None
    return process.exitcode


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_server_that_is_killed_in_every_phase_ends_with_the_same_model(make: Make, tmp_path: Path) -> None:
    """At every single step once, each time in a federation of its own; then one that is killed again and again."""
    submission = make("run.rounds=2", "aggregation.strategy=fedavgm", "aggregation.server-momentum=0.5")
    whole = runs_in(tmp_path / "whole")
    whole.submit(handed_in(submission), "tester")
    assert ended(whole, "run-1") is RunState.FINISHED
    kills = 0
    for kill_at in range(1, 1000):
        folder = tmp_path / f"killed-{kill_at}"
        first = live(folder, submission.canonical, kill_at)
        assert first in (0, -signal.SIGKILL)
        kills += first != 0
        assert live(folder, submission.canonical, 0) == 0
        assert_whole(runs_in(folder), whole)
        if first == 0:
            break
    assert kills > 50, "the steps of a run were counted"
    folder = tmp_path / "killed-again-and-again"
    lives = [live(folder, submission.canonical, 17 + 5 * number) for number in range(12)]
    assert lives[0] == -signal.SIGKILL
    assert live(folder, submission.canonical, 0) == 0
    assert_whole(runs_in(folder), whole)


def assert_whole(runs: Runs, whole: Runs) -> None:
    assert arrays_of(runs) == arrays_of(whole)
    record = runs.book.record("run-1")
    assert record.standing["participations"] == whole.book.record("run-1").standing["participations"]
    rounds = [event.body["round"] for event in runs.book.events("run-1") if event.kind == "round"]
    assert rounds == [1, 2], "each round stands in the book once"
    assert hashlib.sha256(runs.model_file("run-1").read_bytes()).hexdigest() == record.standing["model"]["sha256"]
    assert json.loads(json.dumps(record.standing)) == record.standing


def test_round_costs_the_server_little_beside_what_the_nodes_do(make: Make, tmp_path: Path) -> None:
    """Book, checkpoint and messages of a round, two nodes that do nothing: far below the 30 ms of a round in all."""
    runs = runs_in(tmp_path, lambda: LocalRunGrid(three()[:2]), carry_out={TRAINING: TrainingRuns()})
    runs.submit(handed_in(make("run.rounds=100")), "tester")
    assert ended(runs, "run-1") is RunState.FINISHED
    events = [e for e in runs.book.events("run-1") if e.kind == "round"]
    moments = [datetime.fromisoformat(e.time) for e in events]
    gaps = sorted((later - earlier).total_seconds() for earlier, later in itertools.pairwise(moments))
    assert gaps[len(gaps) // 2] < 0.1
    print(f"median round {gaps[len(gaps) // 2] * 1e3:.1f} ms")
