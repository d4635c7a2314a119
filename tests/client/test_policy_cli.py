"""`privet policy …` as an institution types it: every screen, and what stays when something is wrong."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path

import pytest
from institution import NOW, submission, write_digits, write_plan
from privet.__main__ import run
from privet.client.policy import NodePolicy
from privet.client.policy_side import NodeSide
from privet.client.settings import NodeSettings
from privet.privacy.budget.accounts import AccountTerms
from privet.privacy.budget.approvals import say
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.guard import Guard
from privet.privacy.errors import RefusedError
from privet.privacy.home import Home, closed_after
from privet.privacy.policy.cli import followed
from privet.privacy.policy.policy_file import PolicyFile, default_policy
from privet.privacy.policy.rules import Rules
from privet.privacy.policy.sides import Logged

KEY = "ab" * 32
ALLOW = ("policy", "allow", "--task", "digits", "--dataset", "ward7", "--operator", "dr-who", "--epsilon", "3")
Tells = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def institution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan, and a home with one data set; without a policy. Each test has a copy."""
    folder = tmp_path_factory.mktemp("institution")
    write_digits(folder / "ward7.csv")
    write_plan(folder / "plan.toml")
    declared = DeclaredDataset("ward7", "digits", str(folder / "ward7.csv"), 120, "ward7")
    with closed_after(Home(folder / "st-marys").create_book(None)) as accounts:
        accounts.open_with_dataset(AccountTerms("record", Decimal(10), Decimal("1e-4")), declared)
    return folder


@pytest.fixture
def home(institution: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    shutil.copytree(institution, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "st-marys"))
    for name in ("VISUAL", "EDITOR"):
        monkeypatch.delenv(name, raising=False)
    return Home(tmp_path / "st-marys")


@pytest.fixture
def tells(home: Home, capsys: pytest.CaptureFixture[str]) -> Tells:
    """Runs a command; gives its code and what it printed."""

    def told(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(list(arguments))
        return code, *capsys.readouterr()

    return told


def decided(home: Home, run_id: str) -> None:
    """Let the node decide on a run."""
    settings = NodeSettings.read(home.settings)
    with closed_after(home.open_book(None)) as accounts:
        guard = Guard(accounts, "ward7", NodePolicy(PolicyFile(home.policy), lambda: settings))
        with suppress(RefusedError):
            guard.admit(submission(run_id), NOW)


def test_a_grant_from_the_first_command_to_an_admission(home: Home, tells: Tells) -> None:
    code, out, _ = tells("policy", "explain", "plan.toml", "--operator", "dr-who", "--side", "node")
    assert (code, out) == (2, ""), "there is no policy yet"
    code, out, _ = tells(*ALLOW, "--key", KEY, "--until", "2999-06-30")
    assert code == 0
    assert '@id("dr-who-ward7-epsilon")' in out
    assert "operator dr-who pinned; listened to: dr-who" in out
    assert "question:" not in out
    assert NodeSettings.read(home.settings).operators == {"dr-who": KEY}
    code, out, _ = tells("policy", "explain", "plan.toml", "--operator", "dr-who")
    assert code == 0
    assert "admit: permitted\n  rule dr-who-ward7 (line 25) permits" in out
    assert "train: as admit" in out
    assert "note: operator pinned here, with key abab" in out
    assert "note: coordinator trusted to name parties" in out
    assert tells("policy", "check", "--strict")[0] == 0


def test_explain_says_what_would_have_to_change(home: Home, tells: Tells) -> None:
    tells(*ALLOW[:-1], "0.5", "--min-nodes", "5", "--parties", "5")
    code, out, _ = tells("policy", "explain", "plan.toml", "--operator", "dr-who")
    assert code == 3
    assert "min-nodes 2 -> at least 5" in out
    assert "epsilon of the operator's runs on the account 0.563256 -> at most 0.5" in out
    assert "parties that count 2 -> at least 5" in out
    assert "coordinator trusted to name operators: dr-who is not pinned here" in out
    changed = ("--set", "aggregation.min-nodes=5", "--set", "privacy.noise-multiplier=4")
    assert tells("policy", "explain", "plan.toml", "--operator", "dr-who", *changed)[0] == 0
    told = json.loads(tells("policy", "explain", "plan.toml", "--operator", "dr-who", "--json", "--action", "admit")[1])
    (admit,) = told["decisions"]
    assert not told["is_admitted"]
    assert admit["rules"] == ["dr-who-ward7-epsilon", "dr-who-ward7-min-nodes"]
    assert admit["said"][1]["changes"] == [{"term": "context.plan.minNodes", "now": "2", "wanted": "at least 5"}]


def test_explain_of_what_no_rule_permits_names_the_command_that_would(home: Home, tells: Tells) -> None:
    tells(*ALLOW, "--key", KEY)
    code, out, _ = tells("policy", "explain", "plan.toml", "--operator", "bob", "--key", "cd" * 32)
    assert code == 3
    assert "before the policy is asked: refused: operator bob is not pinned here" in out
    assert 'not met: its principal is Operator::"dr-who"' in out
    (line,) = (line for line in out.splitlines() if line.startswith("to permit it: "))
    assert run(shlex.split(line.removeprefix("to permit it: privet "))) == 0
    assert tells("policy", "explain", "plan.toml", "--operator", "bob")[0] == 0


def test_explain_offers_the_claim_and_says_what_is_left_for_the_plan(home: Home, tells: Tells) -> None:
    asks = ("policy", "explain", "plan.toml", "--operator", "dr-who", "--set", "privacy.epsilon=3.0")
    asks = (*asks, "--set", "privacy.noise-multiplier=")
    home.policy.write_text("// end of policy\n")
    assert "--epsilon 3 --operator" in tells(*asks)[1].splitlines()[-1]
    tells(*ALLOW[:-1], "2.5")
    assert "-> at most 2.5: this plan at most 2.5 epsilon" in tells(*asks)[1]


def test_explain_asks_the_account_too(home: Home, tells: Tells) -> None:
    tells("policy", "allow", "--task", "digits", "--dataset", "ward7", "--operator", "dr-who", "--epsilon", "100")
    code, out, _ = tells(
        "policy", "explain", "plan.toml", "--operator", "dr-who", "--set", "privacy.noise-multiplier=0.45"
    )
    assert code == 3
    assert "account: refused: account ward7 cannot pay" in out


def test_explain_of_an_app(home: Home, tells: Tells, tmp_path: Path) -> None:
    plan = '[run]\nname = "hello"\n[app]\nname = "hello"\n[privacy]\nunit = "none"\n'
    (tmp_path / "app.toml").write_text(plan)
    assert run(["node", "allow-app", "hello", "hello.app:app"]) == 0
    assert tells("policy", "allow", "--app", "hello", "--operator", "dr-who", "--min-nodes", "3")[0] == 0
    code, out, _ = tells("policy", "explain", "app.toml", "--operator", "dr-who")
    assert code == 3
    assert "runApp: refused" in out
    assert "min-nodes 2 -> at least 3" in out
    assert tells("policy", "explain", "app.toml", "--operator", "dr-who", "--set", "app.min-nodes=3")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("policy", "explain", "plan.toml", "--operator", "x", "--set", "run.dataset=ward8"), "did you mean ward7?"),
        (("policy", "explain", "plan.toml", "--operator", "x", "--action", "fly"), "not asked for this plan"),
        (("policy", "allow", "--operator", "x"), "a task needs --task, --dataset and --epsilon"),
        (("policy", "allow", "--operator", "x", "--app", "a", "--epsilon", "3"), "--app makes no claim"),
        ((*ALLOW, "--hours", "noon"), "not two hours"),
        ((*ALLOW, "--until", "June"), "not a day"),
        ((*ALLOW, "--key", "cd"), "64 hexadecimal digits"),
        ((*ALLOW[:-1], "0.1234567"), "more than 6 digits"),
        (("policy", "allow", "--side", "server", *ALLOW[2:]), "this is the server's policy"),
        (("policy", "show", "--side", "server"), "there is no federation here"),
        (("policy", "show", "--side", "moon"), "not one of node, server"),
        (("policy", "edit"), "no editor is named"),
        (("policy", "edit", "--file", "no-such.cedar"), "no-such.cedar: there is no policy"),
        (("policy", "check", "plan.toml"), "plan.toml: its last line is not"),
    ],
)
def test_bad_input_is_two_lines(home: Home, tells: Tells, arguments: tuple[str, ...], message: str) -> None:
    home.policy.write_text(default_policy("node"))
    code, _, err = tells(*arguments)
    assert code == 2
    assert message in err
    assert [line.split(":")[0] for line in err.splitlines()] == ["error", "try"]
    assert home.policy.read_text() == default_policy("node")


def test_a_home_of_neither_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "nothing"))
    assert run(["policy", "show"]) == 2
    assert "neither a node's home nor a server's" in capsys.readouterr().err


def test_show_says_what_holds(home: Home, tells: Tells) -> None:
    code, out, err = tells("policy", "show")
    assert (code, out) == (0, "")
    assert err.startswith("there is no policy: nothing is permitted")
    tells(*ALLOW)
    decided(home, "run-1")
    text = home.policy.read_text()
    code, out, err = tells("policy", "show")
    assert (code, out) == (0, text)
    assert err == f"valid: 5 rules of the node, hash {Rules(text).hash}\n"
    home.policy.write_text(text + "x")
    told = json.loads(tells("policy", "show", "--json")[1])
    assert (told["is_valid"], told["hash"], len(told["problems"])) == (False, None, 1)
    assert f"its newest decision was by those of hash {Rules(text).hash[:12]}" in tells("policy", "show")[2]


def test_a_pinned_operator_is_not_given_another_key(home: Home, tells: Tells) -> None:
    assert tells(*ALLOW, "--key", KEY)[0] == 0
    code, _, err = tells(*ALLOW, "--key", "cd" * 32, "--replace")
    assert code == 2
    assert "is pinned with another key" in err
    assert tells(*ALLOW, "--replace")[0] == 0
    assert f'principal.key == "{KEY}"' in home.policy.read_text(), "the pinned key is written"
    code, out, _ = tells(*ALLOW, "--id", "other", "--dry-run")
    assert '@id("other")' in out
    assert "other" not in home.policy.read_text()


def test_check_says_every_problem_and_every_question(home: Home, tells: Tells, tmp_path: Path) -> None:
    file = tmp_path / "mine.cedar"
    file.write_text(
        '@id("a") permit (principal, action, resource) when { context.plan.epsilonn < 3 };\n// end of policy\n'
    )
    code, _, err = tells("policy", "check", "mine.cedar")
    assert code == 2
    assert err.count("error: ") == 2
    assert "mine.cedar: line 1: rule a: Plan has no attribute epsilonn; did you mean epsilon?" in err
    told = json.loads(tells("policy", "check", "mine.cedar", "--json")[1])
    assert (told["is_valid"], len(told["problems"])) == (False, 2)
    file.write_text('@id("a") permit (principal, action, resource);\n// end of policy\n')
    code, out, _ = tells("policy", "check", "mine.cedar")
    assert code == 0
    assert "question: line 1: rule a: permits every operator" in out
    assert tells("policy", "check", "mine.cedar", "--strict")[0] == 1
    told = json.loads(tells("policy", "check", "mine.cedar", "--json")[1])
    assert {one["rule"] for one in told["questions"]} == {"a"}


def test_edit_writes_what_is_valid_and_keeps_what_is_not(
    home: Home, tells: Tells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The editor is a program that replaces one text by another."""
    script = tmp_path / "editor.py"
    script.write_text(
        "import pathlib, sys\npath = pathlib.Path(sys.argv[3])\n"
        "path.write_text(path.read_text().replace(sys.argv[1], sys.argv[2]))\n"
    )

    def edit(old: str, new: str) -> tuple[int, str, str]:
        monkeypatch.setenv("VISUAL", shlex.join([sys.executable, str(script), old, new]))
        return tells("policy", "edit")

    draft = home.root / "policy-draft.cedar"
    code, out, _ = edit("minNodes >= 2", "minNodes >= 3")
    assert code == 0
    assert "wrote" in out
    written = home.policy.read_text()
    assert "minNodes >= 3" in written
    assert not draft.exists()
    assert edit("absent", "")[1] == "nothing was changed\n"
    code, _, err = edit("context.plan.minNodes", "context.plan.minNode")
    assert code == 2
    assert "did you mean minNodes?" in err
    assert str(draft) in err
    assert home.policy.read_text() == written
    assert edit("plan.minNode ", "plan.rounds ")[0] == 0, "it goes on with the draft"
    assert "context.plan.rounds >= 3" in home.policy.read_text()
    draft.write_text("old")
    tells(*ALLOW)
    code, _, err = edit("old", "new")
    assert code == 2
    assert "was changed since the draft" in err
    monkeypatch.setenv("VISUAL", f"{sys.executable} -c 'raise SystemExit(3)'")
    draft.unlink()
    assert "the editor ended with 3" in tells("policy", "edit")[2]
    (tmp_path / "mine.cedar").write_text(default_policy("node"))
    assert tells("policy", "edit", "--file", "mine.cedar")[0] == 0
    assert home.policy.read_text() == default_policy("node")


def test_log_tells_every_decision(home: Home, tells: Tells) -> None:
    home.policy.write_text(default_policy("node"))
    decided(home, "run-1")
    tells(*ALLOW, "--approval", "data-steward")
    decided(home, "run-2")
    with closed_after(home.open_book(None)) as accounts:
        say(accounts, "run-2", "data-steward", "approved", "the ethics board agreed")
    decided(home, "run-2")
    code, out, _ = tells("policy", "log")
    lines = [line.split("Z  ", 1)[1] for line in out.splitlines()]
    assert code == 0
    first, second = (Rules(text).hash[:12] for text in (default_policy("node"), home.policy.read_text()))
    assert lines == [
        f"policy {first} holds from here: 3 rules",
        f"run run-1  dr-who  admit Dataset ward7  denied by no rule (policy {first})",
        f"policy {second} holds from here: 6 rules",
        f"run run-2  dr-who  admit Dataset ward7  pending by dr-who-ward7-approval (policy {second})",
        "run run-2  data-steward has approved it: the ethics board agreed",
        f"run run-2  dr-who  admit Dataset ward7  permitted by dr-who-ward7 (policy {second})",
    ]
    assert tells("policy", "log", "--denied")[1].count("\n") == 2
    assert tells("policy", "log", "--run", "run-2")[1].count("\n") == 3
    told = [json.loads(line) for line in tells("policy", "log", "--json")[1].splitlines()]
    assert [one["kind"] for one in told] == ["policy", "decision", "policy", "decision", "approval", "decision"]
    assert told[-1]["facts"]["context"]["approvals"] == ["data-steward"]


def test_log_follows_what_is_entered_later(home: Home) -> None:
    home.policy.write_text(default_policy("node"))
    decided(home, "run-1")
    shown: list[Logged] = []

    def waits() -> Iterator[None]:
        decided(home, "run-2")
        yield
        yield
        raise KeyboardInterrupt

    steps = waits()
    followed(NodeSide().log(home, None), shown.append, lambda: next(steps))
    assert [one.run for one in shown] == ["", "run-1", "run-2"]
