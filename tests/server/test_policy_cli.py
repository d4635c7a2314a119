"""`privet policy …` at a server: what it would decide on a plan, and what its log tells."""

import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from institution import write_plan
from parties import Federation, make_federation
from privet.__main__ import run
from privet.privacy.channel import privet_pb2 as pb
from privet.privacy.channel.credentials import Peer
from privet.privacy.channel.identities import Identity, Role
from privet.privacy.errors import PrivetError
from privet.privacy.home import Home
from privet.privacy.policy.explain import explained
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import END, Decision, Entity, Question, Rules, Verdict
from privet.server.database import open_database
from privet.server.decision_log import DecisionLog, read_decisions
from privet.server.federation_home import policy_mark
from privet.server.policy_side import ServerSide
from privet.server.projects import Projects
from server_policy import shipped_policy

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """With an operator, two nodes, and a project of the operator and one of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PRIVET_DATABASE", raising=False)
    federation = make_federation(tmp_path / "coordinator")
    monkeypatch.setenv("PRIVET_HOME", str(federation.home.folder.parent))
    federation.member("alice", tmp_path / "alice", Role.OPERATOR)
    federation.member("bob", tmp_path / "bob", Role.OPERATOR)
    for name in ("st-marys", "north"):
        federation.member(name, tmp_path / name)
    Projects(open_database(federation.home.database)).add("heart", NOW, ["alice"], ["st-marys"])
    write_plan(tmp_path / "plan.toml", ('name = "study"', 'name = "study"\nproject = "heart"'))
    return federation


def test_explain_asks_for_the_operator_and_for_every_node(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["policy", "explain", "plan.toml", "--operator", "alice"]) == 3
    out = capsys.readouterr().out
    assert "submit: permitted" in out
    assert "joinRun (st-marys): permitted" in out
    assert "joinRun (north): refused\n  rule projects-are-joined-by-their-nodes" in out
    assert "would have to change: principal in resource.project has to hold" in out
    assert "cohort: 1 of 2 nodes may join, the plan asks for at least 2" in out
    assert run(["policy", "explain", "plan.toml", "--operator", "alice", "--set", "aggregation.min-nodes=1"]) == 0
    assert run(["policy", "explain", "plan.toml", "--operator", "alice", "--action", "joinRun"]) == 3
    assert run(["policy", "explain", "plan.toml", "--operator", "alice", "--action", "submit"]) == 0
    capsys.readouterr()
    assert run(["policy", "explain", "plan.toml", "--operator", "bob", "--action", "submit", "--json"]) == 3
    (submit,) = json.loads(capsys.readouterr().out)["decisions"]
    assert submit["rules"] == ["projects-are-steered-by-their-operators"]


def test_explain_of_a_stranger_and_of_a_project_that_there_is_not(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["policy", "explain", "plan.toml", "--operator", "eve", "--set", "run.project="]) == 3
    assert "refused: operator eve is no member of this federation" in capsys.readouterr().out
    assert run(["policy", "explain", "plan.toml", "--operator", "alice", "--set", "run.project=hart"]) == 2
    assert "did you mean heart?" in capsys.readouterr().err


def test_check_knows_members_and_projects(
    federation: Federation, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.cedar").write_text(
        '@id("a") permit (principal == Operator::"alise", action in Action::"steer", resource in Project::"hart");\n'
        f"{END}\n"
    )
    assert run(["policy", "check", "mine.cedar"]) == 0
    out = capsys.readouterr().out
    assert "Operator alise is not known here; did you mean alice?" in out
    assert "Project hart is not known here; did you mean heart?" in out
    assert run(["policy", "check", "--strict"]) == 0, "the policy that ships leaves nothing open"


def test_show_of_a_federation_without_a_policy(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    """One that was made before there were policies: the one that ships holds."""
    federation.home.policy.unlink(missing_ok=True)
    policy_mark(federation.home.policy).unlink()
    assert run(["policy", "show"]) == 0
    shown = capsys.readouterr()
    assert shown.out == default_policy("server")
    assert "as it ships: there is no file" in shown.err


def test_log_tells_what_the_server_decided(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    rules = Rules(default_policy("server"))
    log = DecisionLog(federation.home.decisions)
    nodes = Entity(("Federation", "hearts"))
    context = {
        "time": {"date": 20261122, "weekday": "sunday", "hour": 12, "minute": 0},
        "transport": {"tls": 13, "certificateAgeHours": 1},
    }
    for kind, name, action in (("Operator", "alice", "listRuns"), ("Auditor", "carol", "connect")):
        pinned = {"isPinned": False} if kind == "Operator" else {}
        asked = Question(Entity((kind, name), {"key": "ab", **pinned}), action, nodes, context)
        log.enter(asked, explained(rules, asked).decision, NOW)
    assert run(["policy", "log"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    policy = f"(policy {rules.hash[:12]})"
    assert first == f"2026-11-22T12:00:00Z  alice  listRuns federation hearts  permitted by operators-read {policy}"
    assert second.startswith("2026-11-22T12:00:00Z  carol  connect federation hearts  denied by no rule")
    assert run(["policy", "log", "--denied", "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["principal"] == "Auditor::carol"
    read = ServerSide().log(Home(federation.home.folder.parent), None)
    assert len(list(read())) == 2
    assert not list(read()), "it goes on from where it was"


def test_terminal_escapes_that_a_member_sends_do_not_reach_the_coordinators_terminal(
    federation: Federation, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor can it write a line of the log: what no run can be called is entered without a name."""
    forged = "\x1b[2K\rx\n2026-11-22T12:00:00Z  alice  stop run run-1  permitted\u2028\u202e"
    policy = shipped_policy(log=federation.home.decisions)
    identity = Identity("hearts", Role.AUDITOR, "eve")
    eve = Peer(identity, "01", "ab12", NOW, NOW + timedelta(hours=24), "TLSv1.3")
    for method, request in (
        ("Stop", pb.RunRequest(run_id=forged)),
        ("Watch", pb.WatchRequest(run_id="x" * 100_000)),
        ("Witness", pb.WitnessRequest(node=forged)),
    ):
        with suppress(PrivetError):
            policy.check(eve, f"/privet.v1.Control/{method}", request)
    assert [line["resource"] for line, _ in read_decisions(federation.home.decisions)] == ["Run::", "Run::", "Node::"]
    entry = Question(Entity(("Auditor", "eve")), "stop", Entity(("Run", forged)), {})
    DecisionLog(federation.home.decisions).enter(entry, Decision(Verdict.DENIED, (), "ab", forged), NOW)
    assert run(["policy", "log"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 4
    assert "eve  stop run  denied by no rule" in told[0]
    assert all(line.isprintable() for line in told)


def test_a_home_of_both_sides_asks_which(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    home = Home(federation.home.folder.parent)
    home.policy.write_text(default_policy("node"))
    assert run(["policy", "show"]) == 2
    assert "a node's home and a server's" in capsys.readouterr().err
    assert run(["policy", "show", "--side", "server"]) == 0
    assert capsys.readouterr().out == default_policy("server")
    assert run(["policy", "show", "--side", "node"]) == 0
    assert capsys.readouterr().out == default_policy("node")


def test_allow_and_pins_are_of_nodes(federation: Federation, capsys: pytest.CaptureFixture[str]) -> None:
    grant = ("--task", "digits", "--dataset", "ward7", "--operator", "alice", "--epsilon", "3")
    assert run(["policy", "allow", *grant]) == 2
    assert "this is the server's policy" in capsys.readouterr().err
