"""`privet tasks`: the list, one task, and a new one that really trains."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from privet.__main__ import run

PLAN = """
[run]
name = "mine"
task = "my-data"
rounds = 3
[training]
local-steps = 2
learning-rate = 0.5
[privacy]
unit = "record"
noise-multiplier = 2.0
delta = 1e-5
clip-norm = 1.0
sampling-rate = 0.5
[simulation]
nodes = 3
"""


def test_tasks_lists_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == sorted(line.split(":")[0] for line in lines)
    assert any(line.startswith("digits: Handwritten digits") and line.endswith("(CC BY 4.0)") for line in lines)


def test_tasks_shows_one_in_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "digits", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["name"] == "digits"
    assert told["input shape"] == [64]
    assert told["trainable parameters"] == 640  # 64 pixels, 10 classes, no bias
    assert told["metrics"] == ["accuracy"]
    assert told["model options"] == {"kind": "linear", "features": 512, "scale": 0.55}


def test_tasks_shows_one_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "breast-cancer"]) == 0
    shown = capsys.readouterr().out
    assert "classes: malignant, benign" in shown
    assert "model options: none" in shown


def test_all_tasks_in_json_are_a_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "--json"]) == 0
    assert {"digits", "breast-cancer", "synthetic"} <= {task["name"] for task in json.loads(capsys.readouterr().out)}


def test_unknown_task_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["tasks", "digit"]) == 2
    assert "did you mean digits?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["new"],
        ["new", "My-Data"],
        ["new", "../escape"],
        ["new", "a b"],
        ["new", "class"],
        ["new", "json"],
        ["new", "torch"],
        ["digits", "breast-cancer"],
    ],
)
def test_name_that_cannot_be_a_task_writes_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["tasks", *arguments]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("error: ")
    assert said[1].startswith("try: ")
    assert list(tmp_path.iterdir()) == []


def test_new_task_does_not_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-data").mkdir()
    assert run(["tasks", "new", "my-data"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert list((tmp_path / "my-data").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["my-data", "records"])
def test_new_task_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after pip install: its folder on the path, beside the dist-info that its pyproject.toml would give."""
    import tomllib

    monkeypatch.chdir(tmp_path)
    assert run(["tasks", "new", name]) == 0
    assert f"privet tasks {name}" in capsys.readouterr().out
    project = tomllib.loads((tmp_path / name / "pyproject.toml").read_text())
    (points,) = project["project"]["entry-points"].items()
    assert points[0] == "privet.tasks"
    info = tmp_path / name / "made-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['project']['name']}\nVersion: 1\n")
    lines = "".join(f"{key} = {value}\n" for key, value in points[1].items())
    (info / "entry_points.txt").write_text(f"[privet.tasks]\n{lines}")
    (tmp_path / "plan.toml").write_text(PLAN.replace("my-data", name))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / name))
    done = subprocess.run(
        [sys.executable, "-m", "privet", "simulate", "plan.toml", "--out", "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
