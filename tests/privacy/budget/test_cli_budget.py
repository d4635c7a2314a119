"""`privet budget` as an institution, and as a hostile one, uses it: in this process, through the one door."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from institution import NOW, PLAN, TERMS, UNCLAIMED, begin, guard, rows, submission, write_digits, write_plan
from privet.__main__ import run
from privet.privacy.budget.keys import SigningKey
from privet.privacy.budget.ledger import Ledger
from privet.privacy.budget.witness import Witness
from privet.privacy.errors import RefusedError

Capture = pytest.CaptureFixture[str]
ADD = ["dataset", "add", "ward7", "--path", "ward7.csv", "--task", "digits", "--declared-size", "120"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "node"))
    monkeypatch.delenv("PRIVET_PASSPHRASE", raising=False)


@pytest.fixture
def home(tmp_path: Path, capsys: Capture) -> Path:
    """An institution with one data set, ward7, in an account of its own."""
    write_digits(tmp_path / "ward7.csv")
    assert run([*ADD, *TERMS]) == 0
    capsys.readouterr()
    return tmp_path / "node"


def told(capsys: Capture, *arguments: str, code: int = 0) -> str:
    assert run(list(arguments)) == code
    captured = capsys.readouterr()
    assert not captured.err or code, captured.err
    return captured.out


def refused(capsys: Capture, *arguments: str, code: int) -> str:
    """What stands behind `error:`; there is exactly one such line, and one `try:`."""
    assert run(list(arguments)) == code
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "try"], lines
    return lines[0].removeprefix("error: ")


def shown(capsys: Capture, account: str = "ward7") -> dict[str, Any]:
    statement: dict[str, Any] = json.loads(told(capsys, "budget", "show", account, "--json"))
    return statement


def test_account_is_opened_and_its_terms_are_told(capsys: Capture, tmp_path: Path) -> None:
    out = told(capsys, "budget", "open", "clinic", "--unit", "node", "--epsilon", "2.50", "--delta", "1e-6")
    assert out == (
        "opened account clinic: epsilon 2.50 at delta 1e-6 (unit: node, add-or-remove-one), additive filter\n"
    )
    assert (tmp_path / "node").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "node" / "key.pem").stat().st_mode & 0o777 == 0o600


def test_terms_are_kept_as_the_decimals_that_were_written(capsys: Capture, tmp_path: Path) -> None:
    """0.1 has no double: it must not pass through one."""
    told(capsys, "budget", "open", "clinic", "--epsilon", "0.1", "--delta", "3e-7")
    account = guard(tmp_path / "node")[0].book.accounts["clinic"]
    assert (str(account.epsilon), str(account.delta)) == ("0.1", "3E-7")


def test_renyi_account_is_opened_for_a_typical_plan(capsys: Capture, tmp_path: Path) -> None:
    write_plan(tmp_path / "plan.toml")
    opened = json.loads(
        told(capsys, "budget", "open", "many", *TERMS, "--filter", "renyi", "--typical", "plan.toml", "--json")
    )
    assert opened["filter"] == "renyi"
    assert opened["alpha"] >= 2


def test_show_counts_spent_reserved_and_left(home: Path, capsys: Capture) -> None:
    _, keeper = guard(home)
    keeper.admit(submission("begun"), NOW)
    begin(keeper, submission("begun"))
    keeper.admit(submission("waiting"), NOW)
    statement = shown(capsys)
    each = statement["runs"][0]["epsilon"]
    assert statement["epsilon_spent"] == pytest.approx(each) == statement["epsilon_reserved"]
    assert statement["epsilon_left"] == pytest.approx(10 - 2 * each)
    assert (statement["delta_spent"], statement["delta_reserved"], statement["delta_left"]) == (1e-5, 1e-5, 8e-5)
    assert [(r["run"], r["state"], r["rounds_begun"], r["rounds_charged"]) for r in statement["runs"]] == [
        ("begun", "begun", 1, 4),
        ("waiting", "reserved", 0, 4),
    ]
    assert 0 < statement["runs"][0]["epsilon_executed"] < each
    assert statement["runs"][1]["epsilon_executed"] == 0
    assert statement["runs"][0]["operator"] == "dr-who"
    assert statement["runs_left"] == min(int((10 - 2 * each) / each), 8)


def test_every_epsilon_is_printed_with_delta_unit_and_relation(home: Path, capsys: Capture) -> None:
    _, keeper = guard(home)
    keeper.admit(submission("begun"), NOW)
    begin(keeper, submission("begun"))
    told(capsys, "budget", "raise", "ward7", "--epsilon", "15", "--because", "ethics vote 2026-114")
    lines = told(capsys, "budget", "show").splitlines()
    for line in (line for line in lines if "epsilon" in line):
        assert "delta" in line, line
        assert "(unit: record, add-or-remove-one)" in line, line
    assert "epsilon spent 0.57 of 15.00 at delta 1e-5 (unit: record, add-or-remove-one)" in lines  # 0.563256, up
    assert any(line.startswith("epsilon left 14.43 at delta 9e-5") for line in lines)  # 14.436744, down
    assert any("ethics vote 2026-114" in line and "epsilon 10 to 15" in line for line in lines)
    assert any(line == "at this rate: 9 more runs like the last one" for line in lines)


def test_show_says_what_was_refused_and_why(home: Path, capsys: Capture) -> None:
    _, keeper = guard(home)
    greedy = submission("greedy", PLAN.replace("noise-multiplier = 2.0", "noise-multiplier = 0.4"))
    with pytest.raises(RefusedError):
        keeper.admit(greedy, NOW)
    statement = shown(capsys)
    assert [(r["run"], r["operator"], r["code"]) for r in statement["refused"]] == [
        ("greedy", "dr-who", "budget-exhausted")
    ]
    assert "cannot pay" in told(capsys, "budget", "show", "ward7")


def test_show_of_a_void_account_says_infinite(capsys: Capture, tmp_path: Path) -> None:
    write_digits(tmp_path / "ward7.csv")
    told(capsys, *ADD, *TERMS, "--allow-none")
    plan = write_plan(tmp_path / "open.toml", text=UNCLAIMED)
    assert "would be void, its epsilon infinite" in told(capsys, "budget", "check", str(plan))
    _, keeper = guard(tmp_path / "node")
    keeper.admit(submission("open", UNCLAIMED), NOW)
    assert "epsilon spent infinite of 10.00" in told(capsys, "budget", "show")
    statement = shown(capsys)
    assert (statement["is_void"], statement["epsilon_spent"], statement["runs_left"]) == (True, None, 0)


def test_renyi_statement_adds_up(capsys: Capture, tmp_path: Path) -> None:
    write_digits(tmp_path / "ward7.csv")
    write_plan(tmp_path / "plan.toml")
    told(capsys, *ADD, *TERMS, "--filter", "renyi", "--typical", "plan.toml")
    before = json.loads(told(capsys, "budget", "check", "plan.toml", "--json"))
    _, keeper = guard(tmp_path / "node")
    keeper.admit(submission("begun"), NOW)
    begin(keeper, submission("begun"))
    keeper.admit(submission("waiting"), NOW)
    statement = shown(capsys)
    total = statement["epsilon_spent"] + statement["epsilon_reserved"] + statement["epsilon_left"]
    assert total == pytest.approx(10)
    assert statement["delta_spent"] == 1e-4
    assert statement["epsilon_spent"] == pytest.approx(10 - before["epsilon_left"])
    assert statement["runs_left"] > 9  # where an additive account runs out of delta


def test_check_tells_cost_and_rest_and_changes_nothing(home: Path, capsys: Capture, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.toml")
    before = rows(home)
    lines = told(capsys, "budget", "check", str(plan)).splitlines()
    assert lines == [
        "admitted: plan study on data set ward7 (account ward7)",
        "cost: epsilon 0.57 at delta 1e-5 (unit: record, add-or-remove-one)",
        "left afterwards: epsilon 9.43 at delta 9e-5 (unit: record, add-or-remove-one)",
    ]
    answer = json.loads(told(capsys, "budget", "check", str(plan), "--json"))
    assert (answer["is_admitted"], answer["epsilon"], answer["epsilon_left"]) == (True, 0.563256, 9.436744)
    assert rows(home) == before
    _, keeper = guard(home)
    keeper.admit(submission("real"), NOW)
    assert shown(capsys)["epsilon_left"] == answer["epsilon_left"]


REFUSED = {
    "above-the-budget": ((("noise-multiplier = 2.0", "noise-multiplier = 0.4"),), "cannot pay: epsilon"),
    "delta-not-below-one-over-the-size": ((("delta = 1e-5", "delta = 0.01"),), "not below 1 / declared size"),
    "delta-above-the-account": ((("delta = 1e-5", "delta = 1e-3"),), "cannot pay"),
    "unknown-data-set": ((('"ward7"', '"ward8"'),), "data set ward8 is not offered"),
    "another-task": ((('task = "digits"', 'task = "synthetic"'),), "is for task 'digits'"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_check_refuses_with_exit_code_three(home: Path, capsys: Capture, tmp_path: Path, case: str) -> None:
    changes, reason = REFUSED[case]
    plan = write_plan(tmp_path / "plan.toml", *changes)
    before = rows(home)
    assert reason in refused(capsys, "budget", "check", str(plan), code=3)
    assert run(["budget", "check", str(plan), "--json"]) == 3
    answer = json.loads(capsys.readouterr().out)
    assert answer["is_admitted"] is False
    assert reason in answer["why"]
    assert rows(home) == before


def test_check_refuses_a_plan_without_claim_where_none_is_not_allowed(
    home: Path, capsys: Capture, tmp_path: Path
) -> None:
    plan = write_plan(tmp_path / "open.toml", text=UNCLAIMED)
    assert "admits no plan without a claim" in refused(capsys, "budget", "check", str(plan), code=3)


def test_check_counts_on_expired_reservations_as_an_admission_does(home: Path, capsys: Capture, tmp_path: Path) -> None:
    """What never began and has expired is given back by the next admission: in the answer, and not in the ledger."""
    _, keeper = guard(home)
    past = NOW - timedelta(days=9)
    costly = PLAN.replace("noise-multiplier = 2.0", "noise-multiplier = 0.6")
    keeper.admit(submission("expired", costly, past, timedelta(days=1)), past)
    before = rows(home)
    plan = write_plan(tmp_path / "plan.toml", text=costly)
    answer = json.loads(told(capsys, "budget", "check", str(plan), "--json"))
    assert answer["epsilon"] > 5  # two of them would not fit
    assert shown(capsys)["runs"][0]["state"] == "expired, never began"
    assert rows(home) == before
    keeper.admit(submission("now", costly), NOW)
    assert shown(capsys)["epsilon_left"] == answer["epsilon_left"]


def test_closed_account_admits_nothing(home: Path, capsys: Capture, tmp_path: Path) -> None:
    plan = write_plan(tmp_path / "plan.toml")
    told(capsys, "budget", "close", "ward7", "--because", "study over")
    assert "is closed" in refused(capsys, "budget", "check", str(plan), code=3)
    assert "is closed" in refused(capsys, "budget", "raise", "ward7", "--epsilon", "11", "--because", "x", code=2)
    assert shown(capsys)["epsilon_left"] == 0


def test_recover_charges_what_the_witness_holds(home: Path, capsys: Capture, tmp_path: Path) -> None:
    shutil.copytree(home, tmp_path / "backup")
    accounts, keeper = guard(home)
    keeper.admit(submission("lost"), NOW)
    charges = [asdict(entry) for entry in keeper.charges_after(0)]
    Witness(tmp_path / "witness.jsonl", "ward", SigningKey.generate()).countersign(keeper.head("ward"), charges)
    accounts.ledger.close()
    shutil.rmtree(home)
    (tmp_path / "backup").rename(home)
    assert shown(capsys)["runs"] == []
    out = told(capsys, "budget", "recover", "--witness", "witness.jsonl")
    assert "charged run lost to account ward7: epsilon 0.57 at delta 1e-5 (unit: record, add-or-remove-one)" in out
    again = json.loads(told(capsys, "budget", "recover", "--witness", "witness.jsonl", "--json"))
    assert (again["charges"], again["was_behind"]) == ([], False)
    assert shown(capsys)["runs"][0]["state"] == "recovered from a witness"
    assert shown(capsys)["epsilon_spent"] == 0.563256
    assert refused(capsys, "budget", "recover", "--witness", "no-such", code=1).startswith("no-such: not a witness")


BAD_TERMS = [
    (["--epsilon", "0", "--delta", "1e-4"], "epsilon 0, allowed are above 0 to 1000"),
    (["--epsilon", "-1", "--delta", "1e-4"], "'-1' is not a number above 0"),
    (["--epsilon", "NaN", "--delta", "1e-4"], "'NaN' is not a number"),
    (["--epsilon", "Infinity", "--delta", "1e-4"], "'Infinity' is not a number"),
    (["--epsilon", "1e400", "--delta", "1e-4"], "epsilon 1E+400, allowed"),
    (["--epsilon", "1001", "--delta", "1e-4"], "epsilon 1001, allowed"),
    (["--epsilon", "1_0", "--delta", "1e-4"], "'1_0' is not a number"),
    (["--epsilon", "١٠", "--delta", "1e-4"], "is not a number"),
    (["--epsilon", "1" * 50, "--delta", "1e-4"], "is not a number"),
    (["--epsilon", "ten", "--delta", "1e-4"], "'ten' is not a number"),
    (["--epsilon", "", "--delta", "1e-4"], "'' is not a number"),
    (["--epsilon", "10", "--delta", "2"], "delta 2, allowed"),
    (["--epsilon", "10", "--delta", "1"], "delta 1, allowed"),
    (["--epsilon", "10", "--delta", "0"], "delta 0, allowed"),
    (["--epsilon", "10", "--delta", "1e-400"], "delta 1E-400, allowed"),
    (["--epsilon", "10"], "--delta"),
    ([*TERMS, "--unit", "none"], "unit 'none' is not one of"),
    ([*TERMS, "--unit", "patient"], "unit 'patient' is not one of"),
    ([*TERMS, "--filter", "prv"], "--filter prv: not one of additive, renyi"),
    ([*TERMS, "--filter", "renyi"], "needs a typical plan"),
    ([*TERMS, "--filter", "renyi", "--typical", "no-such.toml"], "no-such.toml: cannot be read"),
    ([*TERMS, "--typical", "no-such.toml"], "--typical chooses the order of a renyi filter"),
]


@pytest.mark.parametrize(("options", "reason"), BAD_TERMS)
def test_terms_that_cannot_be_meant_make_nothing(
    options: list[str], reason: str, capsys: Capture, tmp_path: Path
) -> None:
    assert reason in refused(capsys, "budget", "open", "clinic", *options, code=2)
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize("name", ["a/b", "../up", "Ward", "a b", "", "wärd", "x" * 64, "a\n"])
def test_names_that_are_none_make_nothing(name: str, capsys: Capture, tmp_path: Path) -> None:
    assert "a name has" in refused(capsys, "budget", "open", name, *TERMS, code=2)
    assert not (tmp_path / "node").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["budget", "show", "ward7"],
        ["budget", "raise", "ward7", "--epsilon", "11", "--because", "x"],
        ["budget", "close", "ward7", "--because", "x"],
        ["budget", "recover", "--witness", "w.jsonl"],
        ["dataset", "remove", "ward7"],
        ["dataset", "check", "ward7"],
    ],
)
def test_nothing_is_made_by_asking_an_empty_home(arguments: list[str], capsys: Capture, tmp_path: Path) -> None:
    assert "no account was opened here" in refused(capsys, *arguments, code=2)
    assert json.loads(told(capsys, "budget", "show", "--json")) == []
    assert not (tmp_path / "node").exists()


BAD_CHANGES = [
    (["show", "nobody"], 2, "no account nobody; open: ward7"),
    (["raise", "nobody", "--epsilon", "11", "--because", "x"], 2, "no account nobody"),
    (["raise", "ward7", "--epsilon", "10", "--because", "x"], 2, "10 is no larger one"),
    (["raise", "ward7", "--epsilon", "9.999", "--because", "x"], 2, "no larger one"),
    (["raise", "ward7", "--epsilon", "1e400", "--because", "x"], 2, "no larger one"),
    (["raise", "ward7", "--epsilon", "nan", "--because", "x"], 2, "not a number"),
    (["raise", "ward7", "--epsilon", "11", "--because", ""], 2, "--because: not a line"),
    (["raise", "ward7", "--epsilon", "11", "--because", "a\nb"], 2, "--because: not a line"),
    (["raise", "ward7", "--epsilon", "11"], 2, "--because"),
    (["close", "nobody", "--because", "x"], 2, "no account nobody"),
    (["close", "ward7", "--because", " "], 2, "--because: not a line"),
    (["open", "ward7", *TERMS], 2, "account ward7 is open already"),
    (["check", "no-such.toml"], 2, "no-such.toml: cannot be read"),
    (["check", "."], 2, ".: cannot be read"),
    (["recover"], 2, "--witness"),
    (["recover", "--witness", "ward7.csv"], 1, "ward7.csv: not a witness file"),
    (["recover", "--witness", "."], 1, ".: not a witness file"),
]


@pytest.mark.parametrize(("arguments", "code", "reason"), BAD_CHANGES)
def test_bad_input_changes_nothing(home: Path, capsys: Capture, arguments: list[str], code: int, reason: str) -> None:
    before = rows(home)
    assert reason in refused(capsys, "budget", *arguments, code=code)
    assert rows(home) == before


def _readable(home: Path) -> None:
    (home / "key.pem").chmod(0o644)


def _no_key(home: Path) -> None:
    (home / "key.pem").unlink()


def _other_key(home: Path) -> None:
    (home / "key.pem").unlink()
    SigningKey.load_or_create(home / "key.pem")


def _no_key_but_text(home: Path) -> None:
    (home / "key.pem").write_text("not a key")


def _simulation(home: Path) -> None:
    """A simulation's ledger, with its key, put where a deployment's should be."""
    (home / "ledger.sqlite").unlink()
    key = SigningKey.load(home / "key.pem")
    Ledger.open(home / "ledger.sqlite", purpose="simulation", owner="node-1", key=key).close()


def _no_database(home: Path) -> None:
    for suffix in ("-wal", "-shm"):
        (home / f"ledger.sqlite{suffix}").unlink(missing_ok=True)
    (home / "ledger.sqlite").write_text("not a database" * 1000)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_readable, "key.pem: others may read this key"),
        (_no_key, "key.pem: no key there"),
        (_other_key, "signed by another key"),
        (_no_key_but_text, "key.pem: not a key"),
        (_simulation, "the simulation ledger of node-1, not the deployment ledger"),
        (_no_database, "not a ledger"),
    ],
)
def test_home_that_is_damaged_is_refused_and_left(
    home: Path, capsys: Capture, damage: Callable[[Path], None], reason: str
) -> None:
    damage(home)
    files = {path.name: path.read_bytes() for path in home.iterdir() if path.suffix == ".pem"}
    for arguments in (["show"], ["open", "other", *TERMS], ["raise", "ward7", "--epsilon", "11", "--because", "x"]):
        assert reason in refused(capsys, "budget", *arguments, code=1)
    assert {path.name: path.read_bytes() for path in home.iterdir() if path.suffix == ".pem"} == files


def test_home_below_a_file_cannot_be_made(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "file" / "node"))
    assert "cannot be made" in refused(capsys, "budget", "open", "clinic", *TERMS, code=1)
    monkeypatch.setenv("PRIVET_HOME", str(tmp_path / "file"))
    assert "cannot be made" in refused(capsys, "budget", "open", "clinic", *TERMS, code=1)


def test_home_is_below_the_users_by_default(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PRIVET_HOME")
    told(capsys, "budget", "open", "clinic", *TERMS)
    assert (tmp_path / "home" / ".privet" / "ledger.sqlite").exists()


def test_key_opens_with_its_passphrase_alone(capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "secret").write_text("correct horse\n")
    (tmp_path / "wrong").write_text("battery staple")
    (tmp_path / "empty").write_text("\n")
    told(capsys, "budget", "open", "clinic", *TERMS, "--passphrase-file", "secret")
    assert b"ENCRYPTED" in (tmp_path / "node" / "key.pem").read_bytes()
    assert "not a key that opens with this passphrase" in refused(capsys, "budget", "show", code=1)
    error = refused(capsys, "budget", "show", "--passphrase-file", "wrong", code=1)
    assert "not a key that opens with this passphrase" in error
    assert "battery" not in error
    assert "not a passphrase" in refused(capsys, "budget", "show", "--passphrase-file", "empty", code=2)
    assert "cannot be read" in refused(capsys, "budget", "show", "--passphrase-file", "no-such", code=2)
    assert "account clinic" in told(capsys, "budget", "show", "--passphrase-file", "secret")
    monkeypatch.setenv("PRIVET_PASSPHRASE", "correct horse")
    assert "account clinic" in told(capsys, "budget", "show")
