"""Simulations use the guard and the ledgers of a deployment: a study's cost is known before any hospital is asked."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from privet.__main__ import run

QUICK = [
    *("--set", "run.rounds=2", "--set", "run.spare-rounds=0", "--set", "training.local-steps=1"),
    *("--set", "simulation.nodes=3", "--set", "aggregation.min-nodes=2", "--set", "evaluation.every=2"),
]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def simulated(*arguments: str) -> int:
    return run(["simulate", *QUICK, *arguments])


def nodes_of(folder: str) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = json.loads(Path(folder, "result.json").read_text())["nodes"]
    return told


def test_repeated_run_is_refused_when_the_budget_is_used_up(capsys: pytest.CaptureFixture[str]) -> None:
    """Accounts of epsilon 7 pay for two runs of epsilon 3; the third is refused by every node, with the reason."""
    account = ("--set", "simulation.account-epsilon=7.0")
    assert simulated("--out", "one", *account) == 0
    assert simulated("--out", "two", "--ledgers", "one/ledgers") == 0
    assert simulated("--out", "three", "--ledgers", "one/ledgers") == 1
    told = capsys.readouterr().err
    assert "node-1 budget-exhausted, node-2 budget-exhausted, node-3 budget-exhausted" in told
    assert "three/nodes.log" in told
    assert "cannot pay: epsilon" in Path("three/nodes.log").read_text()


def test_federation_goes_on_without_a_node_that_cannot_pay(capsys: pytest.CaptureFixture[str]) -> None:
    """node-1 has spent its budget elsewhere; the others have theirs, and min-nodes allows."""
    account = ("--set", "simulation.account-epsilon=4.0")
    assert simulated("--out", "spent", *account) == 0
    Path("ledgers/witness").mkdir(parents=True)
    for name in ("node-1.sqlite", "node-1.pem"):
        shutil.copy(Path("spent/ledgers", name), Path("ledgers", name))
    assert simulated("--out", "mixed", "--ledgers", "ledgers", *account) == 0
    states = {node["name"]: (node["state"], node["reason"]) for node in nodes_of("mixed")}
    assert states == {
        "node-1": ("refused", "budget-exhausted"),
        "node-2": ("finished", None),
        "node-3": ("finished", None),
    }
    assert nodes_of("mixed")[0]["epsilon"] == 0.0
    assert "refused: budget-exhausted" in capsys.readouterr().out


def test_ledger_put_back_to_an_older_copy_does_not_run() -> None:
    """The witness of the first two runs remembers what the restored ledger lacks."""
    assert simulated("--out", "one") == 0
    shutil.copy("one/ledgers/node-1.sqlite", "older.sqlite")
    assert simulated("--out", "two", "--ledgers", "one/ledgers") == 0
    for leftover in Path("one/ledgers").glob("node-1.sqlite*"):
        leftover.unlink()
    shutil.copy("older.sqlite", "one/ledgers/node-1.sqlite")
    assert simulated("--out", "three", "--ledgers", "one/ledgers") == 0
    states = {node["name"]: (node["state"], node["reason"]) for node in nodes_of("three")}
    assert states["node-1"] == ("refused", "ledger-behind")
    assert states["node-2"] == ("finished", None)


def test_simulation_does_not_open_the_ledger_of_a_deployment(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRIVET_HOME", "home")
    assert run(["budget", "open", "ward", "--unit", "record", "--epsilon", "10", "--delta", "1e-4"]) == 0
    Path("ledgers").mkdir()
    shutil.copy("home/ledger.sqlite", "ledgers/node-1.sqlite")
    shutil.copy("home/key.pem", "ledgers/node-1.pem")
    assert simulated("--out", "out", "--ledgers", "ledgers") == 1
    assert "the deployment ledger of" in capsys.readouterr().err


def test_auditor_checks_a_simulated_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    assert simulated("--out", "out") == 0
    capsys.readouterr()
    ledger, witness = "out/ledgers/node-1.sqlite", "out/ledgers/witness/node-1.jsonl"
    assert run(["audit", "ledger", ledger]) == 0
    assert "not witnessed" in capsys.readouterr().out
    assert run(["audit", "ledger", ledger, "--witness", witness, "--report", "audit.html", "--json"]) == 0
    assert "simulation" in Path("audit.html").read_text()
