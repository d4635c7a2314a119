"""The server's policy: which rules hold, what they are asked, and what a caller hears."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from parties import make_federation
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.credentials import Peer
from privet.privacy.channel.identities import Identity, Role
from privet.privacy.errors import ChannelError, RefusedError, UsageError
from privet.privacy.plan_app import AppPlan, resolve_app
from privet.privacy.policy.policy_file import PolicyFile, default_policy, nothing
from privet.privacy.policy.rules import END, Decision, Question, Rules
from privet.privacy.submission import Submission
from privet.server.decision_log import read_decisions
from privet.server.policy import HeldRules
from privet.server.questions import METHODS, Questions
from privet.server.run_record import RunRecord, RunState
from server_policy import SHIPPED, Facts, a_run, shipped_policy

MakeSubmission = Callable[..., Submission]
NOW = datetime(2027, 6, 30, 12, 30, tzinfo=UTC)
MEMBERS = (Role.NODE, Role.OPERATOR, Role.AUDITOR)
SUBMIT, STOP, WITNESS = (f"/privet.v1.Control/{name}" for name in ("Submit", "Stop", "Witness"))
NOBODY = f"{END}\n"
ODD = ("", "\x00", '"\n}', "../../etc/passwd", "\u202e", "x" * 100_000, "病院")


def peer(role: Role = Role.OPERATOR, name: str = "alice", age: float = 5.5) -> Peer:
    begun = NOW - timedelta(hours=age)
    return Peer(Identity("hearts", role, name), "01", "ab12", begun, begun + timedelta(hours=24), "TLSv1.3")


def questions(facts: Facts | None = None) -> Questions:
    known = facts or Facts()
    return Questions("hearts", known, known, known)


def an_app(run_id: str = "run-9") -> bytes:
    told = {"run": {"name": "hello"}, "app": {"name": "hello", "config": {"lr": 2}}, "privacy": {"unit": "none"}}
    plan = AppPlan.model_validate(told)
    return resolve_app(plan, federation="hearts", run_id=run_id, operator="alice", now=NOW).canonical


# ---- which rules hold ----


def test_federation_begins_with_the_policy_that_ships(tmp_path: Path) -> None:
    made = make_federation(tmp_path).home
    assert made.policy.read_text() == default_policy("server")
    assert HeldRules(PolicyFile(made.policy))().hash == SHIPPED.hash


def test_policy_that_is_there_already_is_kept(tmp_path: Path) -> None:
    (tmp_path / "federation").mkdir()
    (tmp_path / "federation" / "policy.cedar").write_text(NOBODY)
    assert make_federation(tmp_path).home.policy.read_text() == NOBODY


def test_where_there_was_never_a_policy_the_one_that_ships_holds_until_there_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = HeldRules(PolicyFile(tmp_path / "policy.cedar"))
    assert [held().hash for _ in range(3)] == [SHIPPED.hash] * 3
    assert caplog.text.count("the one that ships with privet holds") == 1
    (tmp_path / "policy.cedar").write_text(NOBODY)
    assert held().rules == ()
    (tmp_path / "policy.cedar").write_text(default_policy("server"))
    assert held().hash == SHIPPED.hash
    (tmp_path / "policy.cedar").unlink()
    assert held() is nothing()  # whoever takes it away takes its permissions away
    assert HeldRules(PolicyFile(tmp_path / "policy.cedar"))() is nothing(), "also after a restart"


def test_policy_that_was_taken_away_before_the_server_ever_ran_does_not_come_back(tmp_path: Path) -> None:
    made = make_federation(tmp_path).home
    made.policy.unlink()
    assert HeldRules(PolicyFile(made.policy))() is nothing()


def test_policy_holds_where_nothing_can_be_remembered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "policy.cedar"
    held = HeldRules(PolicyFile(path))
    path.write_text(default_policy("server"))
    (tmp_path / "policy-made").mkdir()
    (tmp_path / "policy-made" / "in the way").touch()
    assert [held().hash for _ in range(3)] == [SHIPPED.hash] * 3
    assert caplog.text.count("a restart does not know of the policy") == 1
    path.unlink()
    assert held() is nothing()


@pytest.mark.parametrize("broken", ["", "permit (", default_policy("server")[:-10]])
def test_policy_that_was_never_valid_permits_nothing(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "policy.cedar"
    path.write_text(broken)
    held = HeldRules(PolicyFile(path))
    assert held() is nothing()
    with pytest.raises(RefusedError, match="alice may not stop run 'run-1': the server has no valid policy"):
        shipped_policy(rules=held).check(peer(), STOP, pb.RunRequest(run_id="run-1"))
    path.write_text(default_policy("server"))
    assert held().hash == SHIPPED.hash
    path.write_text(broken)
    assert held().hash == SHIPPED.hash


# ---- what they are asked ----


def test_every_question_that_can_be_asked_is_one_of_the_schema(make_submission: MakeSubmission) -> None:
    """By every member, in a project or not: Cedar takes each, so that rules decide and not an error."""
    facts = Facts({"run-1": a_run("run-1", "hearts", ("st-marys",)), "run-2": a_run("run-2")}, {"hearts": ("alice",)})
    requests = [
        SimpleNamespace(run_id=run, node=node, submission=submission)
        for run, node, submission in (
            ("run-1", "alice", make_submission("run.project='hearts'", private=True).canonical),
            ("run-2", "st-marys", make_submission("run.project='lungs'").canonical),
            ("run-3", "nobody", an_app()),
            *((odd, odd, odd.encode()) for odd in ODD),
        )
    ]
    for method, found in METHODS.items():
        for role in found.callers:
            for request in requests:
                asked = questions(facts).of_call(peer(role), method, request, NOW)
                assert SHIPPED.decide(asked.question).error == "", (method, role, request)


def test_question_tells_who_calls_and_when() -> None:
    facts = Facts({"run-1": a_run("run-1", "hearts", ("b", "a"), operator="bob")}, {"hearts": ("alice",), "x": ()})
    asked = questions(facts).of_call(peer(), STOP, pb.RunRequest(run_id="run-1"), NOW)
    question = asked.question
    assert (question.principal.uid, question.principal.within) == (("Operator", "alice"), (("Project", "hearts"),))
    assert question.principal.attributes == {"key": "ab12", "isPinned": False}
    assert (question.action, question.resource.uid) == ("stop", ("Run", "run-1"))
    assert question.resource.attributes == {
        "operator": {"__entity": {"type": "Operator", "id": "bob"}},
        "state": "running",
        "members": [{"__entity": {"type": "Node", "id": name}} for name in ("a", "b")],
        "project": {"__entity": {"type": "Project", "id": "hearts"}},
    }
    assert question.context["transport"] == {"tls": 13, "certificateAgeHours": 5}
    assert question.context["time"]["weekday"] in ("tuesday", "wednesday", "thursday")  # the machine's own zone


def test_model_is_for_the_nodes_that_trained_and_not_for_all_that_were_asked() -> None:
    asked = a_run("run-1", members=("answered", "silent"))
    trained = replace(asked, standing=asked.standing | {"trained": ["answered"]})
    model = "/privet.v1.Nodes/Model"
    policy = shipped_policy(facts=Facts({"run-1": trained, "older": asked}))
    policy.check(peer(Role.NODE, "answered"), model, pb.RunRequest(run_id="run-1"))
    with pytest.raises(RefusedError, match="silent may not take the model of run run-1: no rule permits it"):
        policy.check(peer(Role.NODE, "silent"), model, pb.RunRequest(run_id="run-1"))
    policy.check(peer(Role.NODE, "silent"), model, pb.RunRequest(run_id="older"))  # it was not kept who answered


def test_rules_may_speak_of_every_term_of_a_plan(make_submission: MakeSubmission) -> None:
    rules = Rules(
        f"""
        @id("all") permit (principal, action in Action::"steer", resource);
        @id("bounded") forbid (principal, action == Action::"submit", resource)
        unless {{ context.plan.epsilon <= 3000000 && context.plan.rounds == 4 }};
        @id("own-app") forbid (principal, action == Action::"submitApp", resource) when {{ context.app == "hello" }};
        @id("young") forbid (principal, action in Action::"steer", resource)
        when {{ context.transport.certificateAgeHours >= 20 }};
        {END}
        """
    )
    policy = shipped_policy(rules=lambda: rules, clock=lambda: NOW)

    def submit(submission: bytes, age: float = 1) -> None:
        policy.check(peer(age=age), SUBMIT, pb.SubmitRequest(submission=submission))

    submit(make_submission("privacy.noise-multiplier=40.0", private=True).canonical)
    with pytest.raises(RefusedError, match="may not submit run run-1: forbidden by rule bounded"):
        submit(make_submission().canonical)
    with pytest.raises(RefusedError, match="may not submit run run-9: forbidden by rule own-app"):
        submit(an_app())
    with pytest.raises(RefusedError, match="forbidden by rule young"):
        submit(make_submission("privacy.noise-multiplier=40.0", private=True).canonical, age=20)


def test_ledger_is_its_nodes(tmp_path: Path) -> None:
    """A rule may speak of whose ledger it is."""
    rules = Rules(
        f"""
        @id("of-the-project") permit (principal is Operator, action == Action::"readLedger", resource)
        when {{ resource in Project::"hearts" && resource.key == "key of st-marys" }};
        {END}
        """
    )
    policy = shipped_policy(facts=Facts(projects={"hearts": ("st-marys",)}), rules=lambda: rules)
    policy.check(peer(), WITNESS, pb.WitnessRequest(node="st-marys"))
    with pytest.raises(RefusedError, match="alice may not read the witnessed ledger of node 'mercy'"):
        policy.check(peer(), WITNESS, pb.WitnessRequest(node="mercy"))


@pytest.mark.parametrize("role", [Role.OPERATOR, Role.AUDITOR])
@pytest.mark.parametrize("method", ["/privet.v1.Nodes/Connect", "/privet.v1.Nodes/Model", "/privet.v1.Nodes/Delete"])
def test_service_of_the_nodes_is_closed_to_others(role: Role, method: str) -> None:
    """Whatever the rules say: an operator takes a model at Control."""
    everything = Rules(f'@id("everything") permit (principal, action, resource);\n{END}\n')
    with pytest.raises(ChannelError, match=f"spiffe://hearts/{role}/alice may not call {method}"):
        shipped_policy(rules=lambda: everything).check(peer(role), method, pb.RunRequest(run_id="run-1"))


# ---- what a list shows ----

OWN_ALONE = """
@id("own-alone")
forbid (principal is Operator, action == Action::"watch", resource)
when { resource has project }
unless { principal in resource.project };
"""


def watched(rules: str, runs: dict[str, RunRecord], caller: Peer, log: Path = Path("/dev/null")) -> list[str]:
    facts = Facts(runs, {"hearts": ("alice",), "lungs": ("bob",)})
    held = Rules(rules + default_policy("server"))
    may_watch = shipped_policy(facts=facts, rules=lambda: held, log=log, clock=lambda: NOW).watching(caller)
    return [run_id for run_id, record in runs.items() if may_watch(record)]


def test_list_has_the_runs_that_the_caller_may_watch(tmp_path: Path) -> None:
    runs = {name: a_run(name, project) for name, project in (("a", "hearts"), ("b", "lungs"), ("c", None))}
    log = tmp_path / "log"
    assert watched("", runs, peer()) == ["a", "b", "c"], "by the rules that ship, operators see all"
    assert watched(OWN_ALONE, runs, peer(), log) == ["a", "c"]
    assert watched(OWN_ALONE, runs, peer(name="bob")) == ["b", "c"]
    assert watched(OWN_ALONE, runs, peer(Role.AUDITOR, "dpo")) == ["a", "b", "c"]
    assert watched(OWN_ALONE, runs, peer(Role.NODE, "st-marys")) == []
    assert list(read_decisions(log)) == [], "that the list was asked for is entered, and not each run"


@pytest.mark.parametrize(
    ("condition", "seen"),
    [
        ('resource == Run::"c"', ["a", "b", "d"]),
        ('resource == Run // \n ::"c"', ["a", "b", "d"]),
        ('resource.operator == Operator::"eve"', ["a", "b", "c"]),
        ('resource.state == "finished"', ["a", "c", "d"]),
        ('resource.members.contains(Node::"m")', ["b", "c", "d"]),
        ('resource["\\u{6d}embers"].contains(Node::"m")', ["b", "c", "d"]),
        ("context.time.hour >= 0", []),
        ("true", []),
    ],
)
def test_rule_tells_runs_apart_by_whatever_it_may_speak_of(condition: str, seen: list[str]) -> None:
    """What is decided once for runs that are alike is what is decided for each."""
    runs = {
        "a": a_run("a", members=("m",)),
        "b": replace(a_run("b"), state=RunState.FINISHED),
        "c": a_run("c"),
        "d": a_run("d", operator="eve"),
    }
    assert (
        watched(f'@id("not") forbid (principal, action, resource is Run) when {{ {condition} }};\n', runs, peer())
        == seen
    )


def test_long_list_is_decided_in_a_few_questions() -> None:
    asked = list[Question]()

    class Counting(Rules):
        def decide(self, question: Question) -> Decision:
            asked.append(question)
            return super().decide(question)

    held = Counting(default_policy("server"))
    may_watch = shipped_policy(rules=lambda: held).watching(peer())
    assert all(may_watch(a_run(f"run-{number}", members=("a", "b"))) for number in range(1000))
    assert len(asked) == 1


def test_hint_names_no_run_that_the_caller_may_not_watch() -> None:
    facts = Facts({"heart-1": a_run("heart-1", "hearts"), "plain": a_run("plain")}, {"hearts": ("alice",)})
    held = Rules(OWN_ALONE + default_policy("server"))
    policy = shipped_policy(facts=facts, rules=lambda: held)
    for method in ("Stop", "Resume", "Run", "Watch", "Model"):
        asked = f"/privet.v1.Control/{method}", pb.RunRequest(run_id="heart-2")
        with pytest.raises(UsageError, match=r"no run heart-2; did you mean heart-1\?"):
            policy.check(peer(), *asked)
        with pytest.raises(UsageError) as told:
            policy.check(peer(name="bob"), *asked)
        assert told.value.message == "no run heart-2"


# ---- what a caller hears ----


def test_what_is_wrong_with_a_request_is_told_after_the_permission(make_submission: MakeSubmission) -> None:
    for request in (
        pb.SubmitRequest(submission=b"{"),
        pb.SubmitRequest(submission=b"[" * 100_000),
        pb.SubmitRequest(submission=make_submission("run.project='lungs'").canonical),
    ):
        with pytest.raises(UsageError):
            shipped_policy().check(peer(), SUBMIT, request)
        with pytest.raises(RefusedError, match="no rule permits it"):
            shipped_policy().check(peer(Role.AUDITOR), SUBMIT, request)


def test_rule_that_cannot_be_evaluated_denies_and_its_error_stays_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rules = Rules(
        f"""
        @id("all") permit (principal, action, resource);
        @id("too-large") forbid (principal, action, resource)
        when {{ 9223372036854775807 + context.time.hour > 9223372036854775806 + context.time.minute + 1 }};
        {END}
        """
    )
    policy = shipped_policy(rules=lambda: rules, log=tmp_path / "log", clock=lambda: NOW)
    with (
        caplog.at_level(logging.ERROR, "privet.server"),
        pytest.raises(RefusedError, match="the server's policy could not be evaluated") as told,
    ):
        policy.check(peer(), STOP, pb.RunRequest(run_id="run-1"))
    assert "too-large" not in told.value.message
    assert "too-large" in caplog.text
    (line,) = (line for line, _ in read_decisions(tmp_path / "log"))
    assert (line["verdict"], line["rules"]) == ("denied", [])
    assert "too-large" in line["error"]


def test_decisions_are_in_the_log_before_they_are_told(make_submission: MakeSubmission, tmp_path: Path) -> None:
    policy = shipped_policy(facts=Facts({"run-1": a_run("run-1", members=("m",) * 5000)}), log=tmp_path / "log")
    policy.check(peer(), STOP, pb.RunRequest(run_id="run-1"))
    policy.check(peer(), SUBMIT, pb.SubmitRequest(submission=make_submission(private=True).canonical))
    with pytest.raises(RefusedError):
        policy.check(peer(Role.AUDITOR, "dpo"), STOP, pb.RunRequest(run_id="run-1"))
    told: list[Any] = [line for line, _ in read_decisions(tmp_path / "log")]
    assert [(line["principal"], line["action"], line["verdict"], line["rules"]) for line in told] == [
        ("Operator::alice", "stop", "permitted", ["operators-steer"]),
        ("Operator::alice", "submit", "permitted", ["operators-steer"]),
        ("Auditor::dpo", "stop", "denied", []),
    ]
    assert told[1]["context"]["plan"]["isPrivate"] is True
    assert max(len(json.dumps(line)) for line in told) < 4000
