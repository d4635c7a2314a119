"""`privet simulate` as a person, and as a hostile one, uses it: in this process, through the one door."""

import json
from pathlib import Path
from typing import Any

import pytest
from privet.__main__ import run

SMALL = [
    "--set",
    "run.rounds=2",
    "--set",
    "run.spare-rounds=0",
    "--set",
    "simulation.nodes=3",
    "--set",
    "aggregation.min-nodes=2",
]
QUICK = [*SMALL, "--set", "evaluation.every=2", "--set", "training.local-steps=1"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def simulated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert run(["simulate", *QUICK, "--json", *arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_result_says_what_was_charged_and_executed(capsys: pytest.CaptureFixture[str]) -> None:
    result = simulated(capsys, "--out", "out")
    assert result == json.loads(Path("out/result.json").read_text())
    assert 2.9 < result["epsilon"] <= 3.0
    assert 0 < result["epsilon_executed"] <= result["epsilon"]
    assert (result["delta"], result["unit"], result["relation"]) == (1e-5, "record", "add-or-remove-one")
    assert (result["mechanism"], result["noise_seeded"], result["engine"]) == ("local", True, "cohort")
    assert result["accuracy_note"] == "simulator's view, not a release"
    assert [node["state"] for node in result["nodes"]] == ["finished"] * 3
    assert [node["epsilon"] for node in result["nodes"]] == [result["epsilon"]] * 3
    assert [node["declared_size"] for node in result["nodes"]] == [sum(node["labels"]) for node in result["nodes"]]
    assert sum(node["declared_size"] for node in result["nodes"]) + result["records"]["held_out"] == 1797
    assert [entry["round"] for entry in result["history"]] == [0, 1, 2]
    assert result["history"][2]["released"] is not None
    assert result["epsilon"] <= result["epsilon_rdp_bound"]


def test_folder_holds_what_the_readme_promises(capsys: pytest.CaptureFixture[str]) -> None:
    simulated(capsys, "--out", "out")
    names = {path.name for path in Path("out").iterdir()}
    assert {"result.json", "model.safetensors", "plan.toml", "report.html", "ledgers"} <= names
    assert run(["plan", "check", "out/plan.toml"]) == 0


def test_same_seed_same_model_and_another_seed_another(capsys: pytest.CaptureFixture[str]) -> None:
    models = []
    for folder, seed in (("a", 1), ("b", 1), ("c", 2)):
        simulated(capsys, "--out", folder, "--seed", str(seed))
        content = Path(folder, "model.safetensors").read_bytes()
        models.append(content[8 + int.from_bytes(content[:8], "little") :])
    assert models[0] == models[1] != models[2]


def test_comparison_takes_out_privacy_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    result = simulated(capsys, "--out", "out", "--compare")
    assert result["accuracy_without_privacy"] is not None
    assert len(result["history_without_privacy"]) == 3
    plan, other = Path("out/plan.toml").read_text(), Path("out/without-privacy/plan.toml").read_text()
    changed = set(other.splitlines()) - set(plan.splitlines())
    assert changed == {'name = "digits-without-privacy"', 'unit = "none"'}


def test_plan_without_privacy_prints_no_epsilon(capsys: pytest.CaptureFixture[str]) -> None:
    Path("plan.toml").write_text(UNCLAIMED)
    assert run(["simulate", "plan.toml", "--out", "out"]) == 0
    told = capsys.readouterr()
    assert "epsilon" not in told.out + told.err
    assert "no privacy claim" in told.out
    result = json.loads(Path("out/result.json").read_text())
    assert (result["epsilon"], result["unit"], result["delta"], result["noise_seeded"]) == (None, "none", None, False)
    assert "epsilon" not in Path("out/report.html").read_text().lower()


def test_summary_prints_every_epsilon_with_its_terms(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["simulate", *QUICK, "--out", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (line for line in lines if line.startswith("epsilon ") and any(c.isdigit() for c in line)):
        assert "delta 1e-05" in line, line
        assert "record" in line, line
        assert "add-or-remove-one" in line, line


def test_folders_are_numbered_where_none_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    simulated(capsys)
    simulated(capsys)
    assert {path.name for path in Path("runs").iterdir()} == {"digits-1", "digits-2"}


UNCLAIMED = """
[run]
name = "open"
task = "synthetic"
rounds = 2
[model]
records = 60
features = 4
[training]
learning-rate = 0.1
[privacy]
unit = "none"
sampling-rate = 0.5
[simulation]
nodes = 2
"""


@pytest.mark.parametrize(
    ("arguments", "code", "error", "remedy"),
    [
        (["no-such.toml"], 2, "no-such.toml: cannot be read: No such file", "privet plan new"),
        (["no-such"], 2, "no-such: no such plan; breast-cancer, digits ship", "privet plan new"),
        (["."], 2, ".: ", ""),
        (["--set", "privacy.epsilon=0"], 2, "--set: privacy.epsilon: input should be greater than 0", ""),
        (["--set", "privacy.epsilon=-3"], 2, "--set: privacy.epsilon: input should be greater than 0", ""),
        (["--set", "privacy.delta=0.1"], 2, "privacy.delta: 0.1 is not below 1 / 162", "smaller delta"),
        (["--set", "privacy.delta=1.5"], 2, "--set: privacy.delta: input should be less than 1", ""),
        (["--set", "privacy.sampling-rate=1.5"], 2, "sampling-rate: input should be less than or equal to 1", ""),
        (["--set", "privacy.epslon=1"], 2, "privacy.epslon: unknown key; did you mean epsilon?", ""),
        (["--set", "run.task=digitz"], 2, "unknown task 'digitz'; did you mean digits?", "privet tasks"),
        (["--set", "aggregation.strategy=fedavgg"], 2, "unknown strategy 'fedavgg'; did you mean fedavg?", ""),
        (["--set", "aggregation.strategy=qfedavg"], 2, "'qfedavg' is not offered: it weighs each node", ""),
        (["--set", "simulation.nodes=5000"], 2, "simulation.nodes: 5000 nodes share 1617 records", "fewer nodes"),
        (["--set", "simulation.nodes=3"], 2, "aggregation.min-nodes: 8, but 3 nodes are simulated", "min-nodes"),
        (["--set", "model.kind=forest"], 2, "model.kind: 'forest' is not one of linear, features, cnn", ""),
        (["--set", "model.kindd=linear"], 2, "model.kindd: task 'digits' has no such option", ""),
        (["--set", "privacy.epsilon=1e-9"], 2, "evaluation alone costs epsilon", "evaluation"),
        (["--set", "evaluation.metrics=['f1']"], 2, "task 'digits' has no metric 'f1'; it has: accuracy", "metric"),
        (["--set", "nonsense"], 2, "--set nonsense: not of the form section.key=value", "--set privacy.epsilon"),
        (["--out", "file/below"], 1, "file/below: cannot be written", "can be written"),
        (["--out", "taken"], 1, "taken: a run was begun here", "privet simulate --resume taken"),
        (["--resume", "empty"], 1, "empty: no run to resume", "give the folder"),
        (["--resume", "taken", "--seed", "3"], 2, "--resume goes on with the plan in its folder", "alone"),
        (["--device", "cuda:99"], 2, "--device cuda:99", "--device auto"),
        (["--seed", "x"], 2, "Invalid value for '--seed'", "privet simulate --help"),
        (["--frobnicate"], 2, "No such option", "--help"),
    ],
)
def test_bad_input_gets_one_error_and_one_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, error: str, remedy: str
) -> None:
    Path("file").write_text("a file, not a folder")
    Path("empty").mkdir()
    Path("taken").mkdir()
    Path("taken/submission.json").write_text("{}")
    before = {path for path in Path().rglob("*") if "runs" not in path.parts}
    assert run(["simulate", *arguments]) == code
    told = capsys.readouterr()
    lines = [line for line in told.err.splitlines() if line.startswith(("error:", "try:"))]
    assert len(lines) == 2
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert lines[1].startswith("try: ")
    assert remedy in lines[1]
    assert "Traceback" not in told.err
    assert {path for path in Path().rglob("*") if "runs" not in path.parts} == before, "nothing is left behind"
    assert not Path("runs").exists()


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRIVET_DEBUG", "")
    assert run(["--debug", "simulate", "no-such.toml"]) == 2
    told = capsys.readouterr().err
    assert "Traceback" in told
    assert told.splitlines()[-2].startswith("error:")
