"""Nodes that may change their minds: who is waited for, who is asked again, and when nobody is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from fake_nodes import FakeNode, grid_of, update_of
from flwr.app import Message, RecordDict
from privet.privacy.envelope import time_of
from privet.privacy.errors import FederationError, InterruptedRunError
from privet.privacy.submission import Submission
from privet.server.checkpoints import Checkpoints, State
from privet.server.events import Awaited, Happening, RollCalled
from privet.server.federation import Federation
from privet.server.minds import REST_SECONDS, GridMinds
from privet.server.replies import Failure, Member
from privet.server.roster import Roster
from run_grids import LocalRunGrid

Make = Callable[..., Submission]
PENDING = "approval-pending: needs-steward"


@dataclass
class Institution(FakeNode):
    """A node that refuses with `says` until that is empty. `speak` changes it, and the presence with it."""

    says: str = ""
    revision: int = 0
    has_left: bool = False
    described: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.describe = self._described

    def speak(self, says: str) -> None:
        self.says, self.revision = says, self.revision + 1

    def _described(self, _: Message) -> str:
        self.described.append(self.says)
        return self.says


class FakeMinds:
    """Between two roll calls something happens: the next of `happenings`. None left: nobody may wait any more."""

    def __init__(self, nodes: list[FakeNode], *happenings: Callable[[], None]) -> None:
        self._nodes = nodes
        self._happenings = list(happenings)
        self.waited = 0

    def revisions(self) -> Mapping[int, str]:
        return {100 + place: str(getattr(node, "revision", 0)) for place, node in enumerate(self._nodes)}

    def has_left(self, node_id: int) -> bool:
        return getattr(self._nodes[node_id - 100], "has_left", False)

    def wait(self, seen: Mapping[int, str]) -> None:
        self.waited += 1
        assert self._happenings, "waits, and nobody is left who could speak"
        self._happenings.pop(0)()


def federate(
    submission: Submission,
    nodes: list[FakeNode],
    folder: Path,
    *happenings: Callable[[], None],
    told: list[Happening] | None = None,
) -> tuple[State, list[Happening], FakeMinds]:
    told = [] if told is None else told
    minds = FakeMinds(nodes, *happenings)
    checkpoints = Checkpoints(folder, submission.hash)
    federation = Federation(
        submission,
        grid_of(nodes),
        checkpoints,
        lambda _: None,
        tell=told.append,
        name_of=lambda node_id: nodes[node_id - 100].name,
        minds=minds,
    )
    return federation.run(), told, minds


def test_run_waits_for_an_approval_and_goes_on(make_submission: Make, tmp_path: Path) -> None:
    careful = Institution("node-2", says=PENDING)
    nodes = [FakeNode("node-1"), careful]
    state, told, _ = federate(make_submission(), nodes, tmp_path, lambda: careful.speak(""))
    assert state.participations == {"node-1": 4, "node-2": 4}
    assert [happening for happening in told if isinstance(happening, Awaited)] == [
        Awaited({"node-2": PENDING}),
        Awaited({}),
    ]
    assert careful.described == [PENDING, ""]


def test_nobody_is_asked_again_before_it_says_that_something_changed(make_submission: Make, tmp_path: Path) -> None:
    careful = Institution("node-2", says=PENDING)
    nodes = [FakeNode("node-1"), careful]
    _, _, minds = federate(
        make_submission("run.rounds=1"), nodes, tmp_path, lambda: None, lambda: None, lambda: careful.speak("")
    )
    assert minds.waited == 3
    assert len(careful.described) == 2


def test_run_goes_on_without_who_is_not_needed_and_takes_it_in_later(make_submission: Make, tmp_path: Path) -> None:
    late = Institution("node-3", says="policy-denied: weekdays-only")

    def train(model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict:
        if number == 2:
            late.speak("")
        return update_of(model)

    nodes = [FakeNode("node-1"), FakeNode("node-2", train=train), late]
    state, told, minds = federate(make_submission(), nodes, tmp_path)
    assert minds.waited == 0
    assert state.participations == {"node-1": 4, "node-2": 4, "node-3": 2}
    rolls = [happening for happening in told if isinstance(happening, RollCalled)]
    assert rolls[0].refused == {"node-3": "policy-denied: weekdays-only"}
    assert rolls[-1].refused == {}


@pytest.mark.parametrize("says", ["policy-denied: epsilon", "approval-refused: needs-steward", "budget-exhausted"])
def test_run_does_not_wait_for_who_has_said_no(make_submission: Make, tmp_path: Path, says: str) -> None:
    nodes = [FakeNode("node-1"), Institution("node-2", says=says)]
    with pytest.raises(FederationError, match=f"1 nodes say who they are, the plan needs 2: node-2 {says}") as error:
        federate(make_submission(), nodes, tmp_path)
    may_be_permitted_later = error.value.remedy == "submit again, or privet run resume run-1, when their policy permits"
    assert may_be_permitted_later is says.startswith("policy-denied")


def test_rejection_ends_the_waiting(make_submission: Make, tmp_path: Path) -> None:
    careful = Institution("node-2", says=PENDING)
    with pytest.raises(FederationError, match="node-2 approval-refused: needs-steward"):
        federate(
            make_submission(),
            [FakeNode("node-1"), careful],
            tmp_path,
            lambda: careful.speak("approval-refused: needs-steward"),
        )


def test_node_that_is_revoked_is_not_waited_for_any_longer(make_submission: Make, tmp_path: Path) -> None:
    careful, told = Institution("node-2", says=PENDING), list[Happening]()
    nodes = [FakeNode("node-1"), careful]
    with pytest.raises(FederationError, match="1 nodes say who they are, the plan needs 2: node-2 no-member"):
        federate(make_submission(), nodes, tmp_path, lambda: setattr(careful, "has_left", True), told=told)
    assert told[-1] == RollCalled(("node-1",), {"node-2": "no-member"})


def test_node_that_joins_again_is_asked_again() -> None:
    roster = Roster()
    roster.enter(1, "a", Failure("approval-pending"), [1], "before")
    roster.enter(2, "b", Failure("policy-denied"), [1, 2], "before")
    assert not roster.dismiss(lambda node_id: node_id == 2), "only who is awaited"
    assert roster.dismiss(lambda node_id: True)
    assert not roster.dismiss(lambda node_id: True), "once"
    assert {name: one.code for name, one in roster.refused.items()} == {"a": "no-member", "b": "policy-denied"}
    assert roster.strangers([1, 2], {1: "before", 2: "before"}) == [1]


def test_policy_that_changed_while_another_was_waited_for_is_asked_again(make_submission: Make, tmp_path: Path) -> None:
    strict, careful = Institution("node-1", says="policy-denied"), Institution("node-2", says=PENDING)
    nodes = [strict, careful, FakeNode("node-3")]
    state, _, _ = federate(make_submission("run.rounds=1"), nodes, tmp_path, lambda: strict.speak(""))
    assert state.participations == {"node-1": 1, "node-3": 1}


def test_refusal_for_another_reason_is_not_asked_again(make_submission: Make, tmp_path: Path) -> None:
    poor, careful = Institution("node-1", says="budget-exhausted"), Institution("node-2", says=PENDING)
    nodes = [poor, careful, FakeNode("node-3")]
    federate(make_submission("run.rounds=1"), nodes, tmp_path, lambda: poor.speak(""), lambda: careful.speak(""))
    assert poor.described == ["budget-exhausted"]


def test_run_without_minds_fails_as_it_did(make_submission: Make, tmp_path: Path) -> None:
    """A simulation has nobody who could speak."""
    submission = make_submission()
    grid = grid_of([FakeNode("node-1"), Institution("node-2", says=PENDING)])
    federation = Federation(submission, grid, Checkpoints(tmp_path, submission.hash), lambda _: None)
    with pytest.raises(FederationError, match=f"node 101 {PENDING}"):
        federation.run()
    assert federation.refused == {"node 101": PENDING}


def test_round_waits_for_an_approval_that_training_needs(make_submission: Make, tmp_path: Path) -> None:
    """A rule may ask for a person in the middle of a run: the round keeps what has come, and spends no attempt."""
    careful = Institution("node-2", says="")
    asked: list[tuple[int, int]] = []

    def train(model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict | str:
        asked.append((number, attempt))
        return PENDING if number == 2 and careful.revision == 0 else update_of({n: a + 1 for n, a in model.items()})

    careful.train = train
    first = FakeNode("node-1")
    state, _, minds = federate(make_submission(), [first, careful], tmp_path, lambda: careful.speak(""))
    assert minds.waited == 1
    assert asked == [(1, 1), (2, 1), (2, 1), (3, 1), (4, 1)]
    assert first.asked == [("train", number, 1) for number in (1, 2, 3, 4)], "who has answered is not asked twice"
    assert [report.failures for report in state.history] == [{}, {}, {}, {}]
    assert state.excluded == {}


def test_denial_in_the_middle_leaves_a_node_out_until_its_rules_change(make_submission: Make, tmp_path: Path) -> None:
    strict = Institution("node-3", says="")
    denied = "policy-denied: office-hours"

    def train(model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict | str:
        return denied if number == 2 else update_of(model)

    def helpful(model: dict[str, np.ndarray], number: int, attempt: int) -> RecordDict:
        if number == 3:
            strict.speak("")
        return update_of(model)

    strict.train = train
    nodes = [FakeNode("node-1"), FakeNode("node-2", train=helpful), strict]
    state, told, _ = federate(make_submission(), nodes, tmp_path)
    assert [asked[1] for asked in strict.asked] == [1, 2, 4]
    assert state.history[1].failures == {"node-3": denied}
    assert state.excluded == {}
    assert {"node-3": denied} in [happening.refused for happening in told if isinstance(happening, RollCalled)]


# ---- the roster ----


def test_revision_as_it_was_when_asked_is_what_counts() -> None:
    """The node spoke while its refusal was on the way: the server knows the newer revision already, and asks again."""
    roster = Roster()
    roster.enter(1, "a", Failure("approval-pending"), [1], "before")
    assert roster.strangers([1], {1: "before"}) == []
    assert roster.strangers([1], {1: "after"}) == [1]
    roster.enter(1, "a", Member(1, "a", 10), [1], "after")
    assert roster.strangers([1], {1: "again"}) == [], "a member is not asked who it is"
    assert roster.awaited == {}


def test_node_without_revisions_is_not_asked_again() -> None:
    roster = Roster()
    roster.enter(1, "a", Failure("policy-denied"), [1])
    assert roster.strangers([1]) == roster.strangers([1], {}) == []


# ---- the grid's ----


def test_waiting_ends_with_the_submission(make_submission: Make) -> None:
    submission = make_submission()
    expired = GridMinds(LocalRunGrid([]), submission.body, lambda: time_of(submission.body.expires))
    with pytest.raises(FederationError, match="the submission was valid until"):
        expired.wait({})


def test_waiting_is_as_long_as_the_submission_lasts_and_a_minute_at_most(make_submission: Make) -> None:
    submission, waited = make_submission(), []

    class Grid(LocalRunGrid):
        def wait_for_revisions(self, seen: Mapping[int, str], seconds: float) -> None:
            waited.append(seconds)

    for left in (5.0, 3600.0):
        moment = time_of(submission.body.expires) - timedelta(seconds=left)
        GridMinds(Grid([]), submission.body, lambda now=moment: now).wait({})  # type: ignore[misc]
    assert waited == [5.0, 60.0]


def test_node_that_changes_its_mind_all_the_time_is_asked_once_in_a_while(make_submission: Make) -> None:
    rested = []

    class Restless(LocalRunGrid):
        def rest(self, seconds: float) -> None:
            rested.append(seconds)

        def wait_for_revisions(self, seen: Mapping[int, str], seconds: float) -> None:
            assert len(rested) > 0, "first a rest"

    submission = make_submission()
    for left in (0.5, 3600.0):
        moment = time_of(submission.body.expires) - timedelta(seconds=left)
        GridMinds(Restless([]), submission.body, lambda now=moment: now).wait({})  # type: ignore[misc]
    assert rested == [0.5, REST_SECONDS]
    assert 1 <= REST_SECONDS <= 5


def test_stop_ends_the_waiting(make_submission: Make) -> None:
    class Stopped(LocalRunGrid):
        def wait_for_revisions(self, seen: Mapping[int, str], seconds: float) -> None:
            self.stop()
            self._check()

    with pytest.raises(InterruptedRunError):
        GridMinds(Stopped([]), make_submission().body).wait({})
