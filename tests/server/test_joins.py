"""Which nodes the server's policy lets join a run: asked cheaply, and never out of date."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from privet.privacy.errors import DatabaseError
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import END, Question, Rules
from privet.privacy.submission import Submission
from privet.server.decision_log import DecisionLog, read_decisions
from privet.server.fit import fit_for_task, fit_permitted
from privet.server.joins import Joins
from privet.server.stream import NodeView
from server_policy import SHIPPED, Facts

MakeSubmission = Callable[..., Submission]
NOON = datetime(2027, 6, 30, 12, 0, tzinfo=UTC)
EVERY_NODE = f'@id("all") permit (principal is Node, action == Action::"joinRun", resource);\n{END}\n'


class Counted(Rules):
    """Rules that count how often they are asked."""

    asked = 0

    def decide(self, question: Question) -> Any:
        self.asked += 1
        return super().decide(question)


def node(name: str, version: str = "1", key: str = "") -> NodeView:
    return NodeView(
        name=name,
        node_id=len(name),
        address="ipv4:127.0.0.1:1",
        version="0",
        python="3",
        since=0.0,
        is_paused=False,
        tasks={"synthetic": version},
        apps=(),
        certificate_expires=datetime(2030, 1, 1, tzinfo=UTC),
        key_fingerprint=key or f"key of {name}",
        answered=0,
        last_answer=None,
        last_run="",
    )


def joins(
    submission: Submission, rules: Rules = SHIPPED, facts: Facts | None = None, log: Path | None = None, **more: Any
) -> Joins:
    return Joins(submission, lambda: rules, facts or Facts(), DecisionLog(log or Path("/dev/null")), **more)


def test_node_outside_the_project_is_not_asked_and_the_operator_sees_why(make_submission: MakeSubmission) -> None:
    facts = Facts(projects={"hearts": ("a", "b"), "lungs": ("c",)})
    permitted = joins(make_submission("run.project='hearts'"), facts=facts)
    fit = fit_permitted(fit_for_task("synthetic", None, lambda version: None), permitted.denied)
    asked, notes = fit([node("a"), node("b"), node("c"), node("d")])
    forbidden = "the server's policy: forbidden by rule projects-are-joined-by-their-nodes"
    assert [one.name for one in asked] == ["a", "b"]
    assert notes == {"c": forbidden, "d": forbidden}


def test_node_that_may_not_join_has_no_say_in_the_version(make_submission: MakeSubmission) -> None:
    facts = Facts(projects={"hearts": ("a",)})
    permitted = joins(make_submission("run.project='hearts'"), facts=facts)
    fit = fit_permitted(fit_for_task("synthetic", None, lambda version: None), permitted.denied)
    assert [one.name for one in fit([node("a"), node("b", "2"), node("c", "2")])[0]] == ["a"]


def test_where_no_rule_permits_nobody_is_asked(make_submission: MakeSubmission) -> None:
    assert joins(make_submission(), Rules(f"{END}\n")).denied([node("a")]) == {
        "a": "the server's policy: no rule permits it"
    }


def test_a_change_of_projects_holds_at_the_next_look(make_submission: MakeSubmission) -> None:
    facts = Facts(projects={"hearts": ("a",)})
    permitted = joins(make_submission("run.project='hearts'"), facts=facts)
    assert set(permitted.denied([node("a"), node("b")])) == {"b"}
    facts.projects["hearts"] = ("b",)
    assert set(permitted.denied([node("a"), node("b")])) == {"a"}


def test_a_change_of_the_policy_holds_at_the_next_look(make_submission: MakeSubmission, tmp_path: Path) -> None:
    held = [SHIPPED]
    permitted = Joins(make_submission(), lambda: held[0], Facts(), DecisionLog(tmp_path / "log"))
    assert permitted.denied([node("a")]) == {}
    held[0] = Rules(f"{END}\n")
    assert set(permitted.denied([node("a")])) == {"a"}
    assert [line["verdict"] for line, _ in read_decisions(tmp_path / "log")] == ["permitted", "denied"]


def test_a_decision_is_asked_for_and_entered_once(make_submission: MakeSubmission, tmp_path: Path) -> None:
    rules, log = Counted(default_policy("server")), tmp_path / "decisions.jsonl"
    permitted = joins(make_submission(), rules, log=log)
    for _ in range(3):
        permitted.denied([node("a"), node("b")])
    assert rules.asked == 2
    assert [line["principal"] for line, _ in read_decisions(log)] == ["Node::a", "Node::b"]
    permitted.denied([node("a", key="another")])
    assert rules.asked == 3


@pytest.mark.parametrize(("condition", "asked"), [("true", 1), ("context.time.hour < 24", 3)])
def test_rules_that_speak_of_time_are_asked_every_minute(
    condition: str, asked: int, make_submission: MakeSubmission, tmp_path: Path
) -> None:
    """And what they decide is entered only when it changes."""
    rules, moments, log = Counted(EVERY_NODE.replace(");", f") when {{ {condition} }};")), [NOON], tmp_path / "log"
    permitted = joins(make_submission(), rules, log=log, clock=lambda: moments[-1])
    for minute in range(3):
        moments.append(NOON + timedelta(minutes=minute))
        assert permitted.denied([node("a")]) == {}
    assert rules.asked == asked
    assert len(list(read_decisions(log))) == 1


def test_run_that_waits_outlives_a_database_that_is_away(make_submission: MakeSubmission) -> None:
    class Shaky(Facts):
        is_away = False

        def of_nodes(self) -> Any:
            if self.is_away:
                raise DatabaseError("away", "see that it runs")
            return super().of_nodes()

    facts = Shaky(projects={"hearts": ("a",)})
    permitted = joins(make_submission("run.project='hearts'"), facts=facts)
    before = permitted.denied([node("a"), node("b")])
    facts.is_away = True
    assert permitted.denied([node("a"), node("b")]) == before
    with pytest.raises(DatabaseError):
        joins(make_submission(), facts=facts).denied([node("a")])
