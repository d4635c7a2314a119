"""`privet plan` through the one door: what it prints, where, and with which exit code."""

import json
from pathlib import Path

import pytest
from privet.__main__ import run
from privet.privacy.plan_file import read_plan

PLAN = """\
[run]
name = "mine"
task = "digits"
rounds = 4
spare-rounds = 1
[training]
local-steps = 2
learning-rate = 0.5
[privacy]
unit = "record"
epsilon = 3.0
delta = 1e-5
clip-norm = 1.0
sampling-rate = 0.07
"""


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(PLAN)
    return path


def test_new_writes_a_plan_that_checks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "My Plan (2).toml"
    assert run(["plan", "new", str(path), "--task", "breast-cancer"]) == 0
    assert capsys.readouterr().out == f"wrote {path}; next: privet plan show {path}\n"
    assert run(["plan", "check", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"{path}: a valid plan\n")
    written = read_plan(path)
    assert (written.run.name, written.run.task) == ("my-plan-2", "breast-cancer")


@pytest.mark.parametrize(("stem", "name"), [("ÜÜ", "run"), ("--x--", "x"), ("a" * 200, "a" * 63), ("_._", "run")])
def test_new_makes_a_name_of_any_file_name(tmp_path: Path, stem: str, name: str) -> None:
    assert run(["plan", "new", str(tmp_path / f"{stem}.toml")]) == 0
    assert read_plan(tmp_path / f"{stem}.toml").run.name == name


def test_new_overwrites_nothing(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "new", str(plan)]) == 2
    assert plan.read_text() == PLAN
    assert capsys.readouterr().err == f"error: {plan}: there is a file already\ntry: give another name\n"


@pytest.mark.parametrize("task", ["Digits", 'x"\nseed = 1', "digits\n", "", "../x"])
def test_new_with_a_task_that_is_no_name(tmp_path: Path, task: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "p.toml"
    assert run(["plan", "new", str(path), "--task", task]) == 2
    assert not path.exists()
    assert "a name has lower-case letters, digits, dots and dashes" in capsys.readouterr().err


def test_new_in_a_folder_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "new", str(tmp_path / "none" / "p.toml")]) == 1
    assert "No such file or directory\ntry: give a path that can be used\n" in capsys.readouterr().err


def test_check_says_everything_that_is_wrong(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.write_text(PLAN.replace("rounds = 4", "ronds = 4").replace("local-steps = 2", "local-steps = 0"))
    assert run(["plan", "check", str(plan)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.splitlines() == [
        f"error: {plan}:4: run.ronds: unknown key; did you mean rounds?",
        f"error: {plan}:1: run.rounds: missing",
        f"error: {plan}:7: training.local-steps: input should be greater than or equal to 1, got 0",
        f"try: mend the plan, then: privet plan check {plan}",
    ]


def test_check_says_every_contradiction_too(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.write_text(PLAN.replace("delta = 1e-5\nclip-norm = 1.0\n", ""))
    assert run(["plan", "check", str(plan)]) == 2
    assert capsys.readouterr().err.count("missing; a claim at unit 'record' needs it") == 2


def test_other_commands_say_the_first_and_how_many_more(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.write_text(PLAN.replace("delta = 1e-5\nclip-norm = 1.0\n", ""))
    assert run(["plan", "show", str(plan)]) == 2
    assert "(and 1 more: privet plan check lists them)" in capsys.readouterr().err


def test_notes_say_what_may_surprise(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.write_text(
        PLAN.replace('"digits"', '"elsewhere"')
        + '[aggregation]\nstrategy = "krum"\nmalicious-nodes = 1\nfraction = 0.5\n'
    )
    assert run(["plan", "check", str(plan)]) == 0
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert [any(word in note for note in notes) for word in ("not installed", "memory", "liars", "participations")] == [
        True
    ] * 4


def test_show_tells_the_cost_with_delta_unit_and_relation(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "show", str(plan)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    terms = "at delta 1e-05 (unit: record, add-or-remove-one)"
    assert f"claimed: epsilon 3.0 {terms}" in told.out
    epsilons = [line for line in told.out.splitlines() if "epsilon" in line]
    assert len(epsilons) >= 7
    assert all(terms in line for line in epsilons)
    assert "each round 100% of the nodes" in told.out


@pytest.mark.parametrize(("fraction", "told"), [("0.005", "0.5%"), ("0.07", "7%"), ("1.0", "100%")])
def test_show_tells_a_small_fraction_as_it_is(
    plan: Path, fraction: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan.write_text(PLAN + f"[aggregation]\nfraction = {fraction}\n")
    assert run(["plan", "show", str(plan)]) == 0
    assert f"each round {told} of the nodes" in capsys.readouterr().out


def test_show_prints_no_claim_below_what_holds(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six digits of a larger number once cut a claim short."""
    plan.write_text(PLAN.replace("epsilon = 3.0", "noise-multiplier = 0.6"))
    assert run(["plan", "show", str(plan), "--json"]) == 0
    claimed = json.loads(capsys.readouterr().out)["cost"]["epsilon_claimed"]
    assert run(["plan", "show", str(plan)]) == 0
    assert f"claimed: epsilon {claimed!r} at" in capsys.readouterr().out


def test_show_without_a_claim_says_so(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan.write_text(PLAN.partition("[privacy]")[0] + '[privacy]\nunit = "none"\nsampling-rate = 0.1\n')
    assert run(["plan", "show", str(plan)]) == 0
    told = capsys.readouterr().out
    assert "cost: no privacy claim" in told
    assert "epsilon" not in told
    assert run(["plan", "show", str(plan), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cost"] is None


def test_json_is_json(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", "show", str(plan), "--json"]) == 0
    read = json.loads(capsys.readouterr().out)
    assert read["plan"]["run"]["rounds"] == 4
    assert read["cost"]["epsilon"] <= 3.0
    assert read["cost"]["noise_multiplier"] > 0.5


@pytest.mark.parametrize("command", ["check", "show"])
def test_a_plan_that_is_not_there(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["plan", command, str(tmp_path / "none.toml")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: {tmp_path}/none.toml: cannot be read")
    assert "try: privet plan new PLAN" in told
