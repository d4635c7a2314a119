"""The versions of tasks, asked without importing them here."""

import sys
from pathlib import Path

import pytest
from privet.client.offers import FAILED_SECONDS, Offers

TASK = """
import torch
print("loud")
{body}

class Fake:
    name, version, options = {name!r}, {version}, {{}}
    facts = model = loss = metrics = load = shipped = None
"""


def install(site: Path, name: str, version: str = "'7'", body: str = "", number: int = 1) -> None:
    info = site / f"{name}_task-1.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (site / f"{name}_task.py").write_text(TASK.format(name=name, version=version, body=body))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}-task\nVersion: {number}\n")
    (info / "entry_points.txt").write_text(f"[privet.tasks]\n{name} = {name}_task:Fake\n")


def test_versions_are_told_by_a_process_that_is_asked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Again only when the package that brings a task is another."""
    install(tmp_path, "ours")
    install(tmp_path, "broken", body="raise RuntimeError('at import')")
    install(tmp_path, "odd", version="[1]")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    moment = [0.0]
    offers, python = Offers(lambda: moment[0]), sys.executable
    names = ["ours", "digits", "broken", "odd", "unknown"]
    assert offers.versions(names) == {"ours": "7", "digits": "1"}
    assert all(f"task {name} cannot be offered" in caplog.text for name in ("broken", "odd", "unknown"))
    assert "ours_task" not in sys.modules
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert offers.versions(names) == {"ours": "7", "digits": "1"}
    install(tmp_path, "ours", version="'8'", number=2)
    assert offers.versions(names) == {"digits": "1"}
    assert "ours do not say their versions" in caplog.text
    monkeypatch.setattr(sys, "executable", python)
    assert not offers.is_due
    assert offers.versions(["ours"]) == {}
    moment[0] = FAILED_SECONDS
    assert offers.is_due
    assert offers.versions(["ours"]) == {"ours": "8"}
    assert not offers.is_due


def test_task_that_ends_its_process_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "ours")
    install(tmp_path, "ending", body="import os; os._exit(3)")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert Offers().versions(["ending", "ours"]) == {"ours": "7"}


def test_of_no_tasks_nobody_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert Offers().versions([]) == {}
    assert Offers().versions(["unknown"]) == {}
