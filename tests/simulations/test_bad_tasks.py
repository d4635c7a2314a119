"""Tasks that somebody else wrote, and that go wrong: each gives one clear error, and no node is charged for nothing."""

import sys
from pathlib import Path

import pytest
from privet.__main__ import run
from signed_ledgers import DECLARED, read

TASK = """
import torch
from torch import nn
from privet.client.tasks.protocol import Facts, Partition, Records, Task


class Bad(Task):
    name = "bad"
    version = "1"
    options = {{}}

    def facts(self, options):
        return Facts("bad", "made up", "none", (3,), (-1.0, 1.0), ("no", "yes"))

    def model(self, options):
        return {model}

    def loss(self, outputs, targets):
        return {loss}

    def metrics(self, outputs, targets):
        return {{"accuracy": (outputs.argmax(dim=1) == targets).float()}}

    def load(self, source):
        records = source.load()
        {load}
        return records

    def shipped(self, options):
        {shipped}
        inputs = torch.rand(90, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
        return Records(inputs, (inputs.sum(dim=1) > 0).long())


def secret_failure():
    raise RuntimeError("patient 17")
"""
GOOD = {
    "model": "nn.Linear(3, 2)",
    "loss": 'nn.functional.cross_entropy(outputs, targets, reduction="none")',
    "load": "pass",
    "shipped": "pass",
}
PLAN = """
[run]
name = "bad"
task = "bad"
rounds = 2
[training]
learning-rate = 0.1
[privacy]
{privacy}
sampling-rate = 0.5
[simulation]
nodes = 3
"""
CLAIMED = 'unit = "record"\nnoise-multiplier = 2.0\ndelta = 1e-5\nclip-norm = 1.0'


def simulate(folder: Path, monkeypatch: pytest.MonkeyPatch, privacy: str = CLAIMED, **parts: str) -> int:
    """Install the task as a distribution of its own, with an entry point, and simulate with it."""
    site = folder / "site"
    info = site / "bad_task-1.dist-info"
    info.mkdir(parents=True)
    (site / "bad_task.py").write_text(TASK.format(**{**GOOD, **parts}))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-task\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[privet.tasks]\nbad = bad_task:Bad\n")
    (folder / "plan.toml").write_text(PLAN.format(privacy=privacy))
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(sys.modules, "bad_task", raising=False)
    monkeypatch.chdir(folder)
    return run(["simulate", "plan.toml", "--out", "out"])


def told(capsys: pytest.CaptureFixture[str]) -> tuple[str, str]:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "try:"))]
    assert len(lines) == 2
    return lines[0], lines[1]


def test_good_task_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others fail for what they change, not for how they are installed."""
    assert simulate(tmp_path, monkeypatch) == 0


@pytest.mark.parametrize(
    ("parts", "error", "remedy"),
    [
        ({"loss": "outputs.sum(dim=1) * float('nan')"}, "its loss is not finite on synthetic records", "mend"),
        ({"loss": "outputs.sum(dim=1).mean()"}, "its loss has shape [], not [B]", "unreduced"),
        ({"loss": "secret_failure()"}, "fails on synthetic records: RuntimeError", "mend the task"),
        ({"model": "secret_failure()"}, "fails on synthetic records: RuntimeError", "mend the task"),
        ({"model": "nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))"}, "which mixes the records", "use GroupNorm"),
        ({"shipped": "secret_failure()"}, "cannot load its data: RuntimeError", "mend the task's loader"),
    ],
)
def test_unfit_task_is_refused_before_anything_is_charged(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    parts: dict[str, str],
    error: str,
    remedy: str,
) -> None:
    assert simulate(tmp_path, monkeypatch, **parts) == 2
    said, hint = told(capsys)
    assert error in said
    assert remedy in hint
    assert not (tmp_path / "out").exists()


def test_task_that_fails_on_real_records_is_a_code_and_its_text_stays_in_the_local_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert simulate(tmp_path, monkeypatch, load="secret_failure()") == 1
    said, hint = told(capsys)
    assert "0 nodes answer in round 1, the plan needs 2: node-1 task-failed" in said
    assert "patient 17" not in said + hint
    assert hint == "try: see out/nodes.log for each node's own reason"
    assert "patient 17" in (tmp_path / "out" / "nodes.log").read_text()
    entries = read(tmp_path / "out" / "ledgers" / "node-1.sqlite")
    assert [entry.kind for entry in entries][:5] == [*DECLARED, "charge", "begin"], "a failed attempt is spent"
    assert all("patient 17" not in entry.body for entry in entries)


def test_diverging_model_is_left_out_and_said_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without clipping gradients may overflow on real records, whose losses are finite: no such update is taken."""
    parts = {"load": "records.inputs.abs_().mul_(1e18)", "loss": "(outputs - outputs.detach()).sum(dim=1) * 1e24"}
    assert simulate(tmp_path, monkeypatch, privacy='unit = "none"', **parts) == 1
    said, _ = told(capsys)
    assert "node-1 malformed-update" in said
