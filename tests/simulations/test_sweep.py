"""A sweep: its grid, its errors, and a real one in two processes that is killed half-way and goes on."""

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from privet.__main__ import run
from privet.privacy.errors import PlanError, UsageError
from privet.simulations.sweep import Axis, Point, Sweep
from privet.simulations.sweep_results import Findings, Row, best_of

TINY = """\
[run]
name = "tiny"
task = "synthetic"
seed = 3
rounds = 2
[model]
records = 300
features = 4
[training]
local-steps = 2
learning-rate = 0.5
[privacy]
unit = "record"
epsilon = 3.0
delta = 1e-5
clip-norm = 1.0
sampling-rate = 0.5
[simulation]
nodes = 3
partition = "dirichlet"
alpha = 1.0
"""


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text(TINY)


def sweep_of(*over: str, seeds: int = 1, assignments: tuple[str, ...] = (), root: str = "out") -> Sweep:
    return Sweep.of(Path(root), TINY, "tiny.toml", assignments, [Axis.read(one) for one in over], seeds)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("privacy.epsilon=1,2,4,8", ("1", "2", "4", "8")),
        ("privacy.epsilon = 1, 2", ("1", "2")),
        ("simulation.sizes=[1,2,3],[3,4,5]", ("[1,2,3]", "[3,4,5]")),
        ("aggregation.strategy=fedavg,fedmedian", ("fedavg", "fedmedian")),
        ("model.kind='a,b',c", ("'a,b'", "c")),
    ],
)
def test_an_axis_is_a_key_and_its_values(text: str, values: tuple[str, ...]) -> None:
    assert Axis.read(text).values == values


@pytest.mark.parametrize(
    "text", ["privacy.epsilon", "privacy.epsilon=", "epsilon=1", "privacy.epsilon=1,,2", ".=1", "="]
)
def test_an_axis_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"not of the form section\.key=value,value"):
        Axis.read(text)


def test_swept_strategies_each_take_the_keys_that_they_read() -> None:
    """One sweep compares strategies: what only some of them need is given once, and the others do without it."""
    given = ("aggregation.malicious-nodes=1", "aggregation.trimmed-fraction=0.2")
    over = ("aggregation.strategy=fedavg,krum,fedtrimmedavg", "simulation.partition=iid,dirichlet")
    points = sweep_of(*over, assignments=given).points
    told = [
        (p.plan.aggregation.strategy, p.plan.aggregation.malicious_nodes, p.plan.aggregation.trimmed_fraction)
        for p in points[::2]
    ]
    assert told == [("fedavg", None, None), ("krum", 1, None), ("fedtrimmedavg", None, 0.2)]
    assert [point.plan.simulation.alpha for point in points[:2] if point.plan.simulation] == [None, 1.0]


def test_a_key_that_is_swept_beside_strategies_that_do_not_read_it_is_refused() -> None:
    """The same plan would be simulated once for each of its values."""
    with pytest.raises(PlanError, match="strategy 'fedavg' does not read it"):
        sweep_of("aggregation.strategy=fedavg,krum", "aggregation.malicious-nodes=0,1")


def test_a_strategy_that_lacks_its_key_is_refused_in_a_sweep_too() -> None:
    with pytest.raises(PlanError, match="strategy 'krum' needs it"):
        sweep_of("aggregation.strategy=fedavg,krum")


def test_an_axis_names_each_value_once() -> None:
    with pytest.raises(UsageError, match=r"1\.0 stands there twice|1 stands there twice"):
        Axis.read("privacy.epsilon=1,2,1.0")


def test_grid_is_every_combination_with_every_seed() -> None:
    sweep = sweep_of("privacy.epsilon=1,4", "simulation.alpha=0.1,1,100", seeds=2)
    found = {(p.plan.privacy.epsilon, p.plan.simulation.alpha, p.plan.run.seed) for p in sweep.points}  # type: ignore[union-attr]
    assert found == {(e, a, s) for e in (1.0, 4.0) for a in (0.1, 1.0, 100.0) for s in (3, 4)}
    assert [len(points) for points in sweep.combinations] == [2] * 6
    assert len({p.name for p in sweep.points}) == 12
    assert sweep.points[0].name == "privacy.epsilon=1_simulation.alpha=0.1_seed=3"
    assert sweep.points[0].label == "privacy.epsilon=1, simulation.alpha=0.1, seed 3"


def test_assignments_hold_for_every_point() -> None:
    sweep = sweep_of("privacy.epsilon=1,4", assignments=("run.rounds=5", "run.seed=9"))
    assert {(p.plan.run.rounds, p.seed) for p in sweep.points} == {(5, 9)}


def test_names_of_points_are_safe_short_and_differ() -> None:
    plan = sweep_of("privacy.epsilon=1").points[0].plan
    names = [Point((("model.kind", value),), 1, plan).name for value in ("'../x'", "'..-x'", "y" * 500, "y" * 501)]
    assert len(set(names)) == 4
    assert all(len(name) < 150 and "/" not in name for name in names)


def test_cost_counts_the_work_of_a_point() -> None:
    sweep = sweep_of("run.rounds=2,4", "simulation.nodes=3,6")
    assert [p.cost for p in sweep.points] == [2 * 3 * 2, 2 * 6 * 2, 4 * 3 * 2, 4 * 6 * 2]


@pytest.mark.parametrize(
    ("over", "message"),
    [
        (["privacy.epsilon=1,0"], r"privacy\.epsilon=0: privacy\.epsilon: input should be greater than 0"),
        (["simulation.alpha=1", "simulation.partition=iid"], r"simulation\.alpha=1, simulation\.partition=iid: .*"),
        (["privacy.epslon=1"], r"privacy\.epslon=1: .*did you mean epsilon"),
    ],
)
def test_a_bad_combination_is_named(over: list[str], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        sweep_of(*over)


@pytest.mark.parametrize(
    ("over", "seeds", "message"),
    [
        ([], 1, "nothing to sweep over"),
        (["run.seed=1,2"], 1, "seeds are not settings"),
        (["privacy.epsilon=1", "privacy.epsilon=2"], 1, "given twice"),
        (["privacy.epsilon=1,2"], 6000, "12000 points, and at most 10000"),
    ],
)
def test_a_grid_that_cannot_be_meant_is_refused(over: list[str], seeds: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        sweep_of(*over, seeds=seeds)


def test_a_folder_belongs_to_one_grid() -> None:
    sweep_of("privacy.epsilon=1,4").begin()
    sweep_of("privacy.epsilon=1,4").check_folder()
    assert [p.name for p in Sweep.found(Path("out")).points] == [p.name for p in sweep_of("privacy.epsilon=1,4").points]
    for other in (
        sweep_of("privacy.epsilon=1,2"),
        sweep_of("privacy.epsilon=1,4", seeds=2),
        sweep_of("privacy.epsilon=1,4", assignments=("run.rounds=3",)),
    ):
        with pytest.raises(UsageError, match="another plan or grid"):
            other.check_folder()


def test_a_folder_with_something_else_is_left_alone() -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("")
    with pytest.raises(UsageError, match="something else than a sweep"):
        sweep_of("privacy.epsilon=1,4").check_folder()


def row(name: str, *scores: float, seeds: int = 2) -> Row:
    return Row((("model.kind", name),), scores, seeds, None)


def test_the_best_has_every_seed_and_the_best_mean() -> None:
    rows = [row("a", 0.5, 0.6), row("b", 0.9), row("c", 0.7, 0.6), row("d")]
    assert best_of(rows, "accuracy") == rows[2]
    assert best_of(rows, "loss") == rows[0]
    assert best_of(rows[3:], "accuracy") is None


def test_mean_and_deviation_are_those_of_a_sample() -> None:
    assert row("a", 1.0, 3.0).mean == 2.0
    assert row("a", 1.0, 3.0).deviation == pytest.approx(2**0.5)
    assert row("a", 1.0).deviation is None


# ---- real ones

GRID = ["--over", "privacy.epsilon=1,4", "--over", "simulation.alpha=1,100", "--processes", "2"]
COMMAND = [sys.executable, "-m", "privet", "sweep", "tiny.toml", *GRID]


def scores_in(folder: str) -> dict[str, dict[str, Any]]:
    """What must be the same however often a sweep was interrupted, by point."""
    found = {}
    for path in Path(folder, "points").glob("*/result.json"):
        result = json.loads(path.read_text())
        model = path.with_name("model.safetensors").read_bytes()
        arrays = model[8 + int.from_bytes(model[:8], "little") :]
        assert (result["engine"], result["engine_reason"]) == ("cohort", "3 nodes at once")
        kept = {key: result[key] for key in ("accuracy", "loss", "epsilon", "epsilon_executed", "seed", "rounds")}
        found[path.parent.name] = kept | {"model": arrays, "nodes": result["nodes"]}
    return found


def wait_until(claim: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_a_killed_sweep_does_the_rest_once_and_finds_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "tiny.toml", *GRID, "--out", "whole", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["points"], told["done"], told["failed"]) == (4, 4, {})
    assert [row["settings"]["privacy.epsilon"] for row in told["combinations"]] == ["1", "1", "4", "4"]
    for combination in told["combinations"]:
        assert (
            0
            < combination["epsilon_executed"]
            <= combination["epsilon"]
            <= float(combination["settings"]["privacy.epsilon"])
        )
        assert (combination["delta"], combination["unit"]) == (1e-5, "record")
        assert combination["relation"] == "add-or-remove-one"
    assert told["best"]["mean"] == max(row["mean"] for row in told["combinations"])
    assert run(["plan", "check", "whole/best-plan.toml"]) == 0
    assert "not accounted for" in Path("whole/best-plan.toml").read_text()
    with Path("whole/results.csv").open() as file:
        assert [line["state"] for line in csv.DictReader(file)] == ["done"] * 4
    page = Path("whole/sweep.html").read_text()
    assert "delta 1e-05, unit record, add-or-remove-one" in page
    assert "<script" not in page

    long = [*COMMAND, "--set", "run.rounds=2", "--out", "killed"]
    process = subprocess.Popen(long, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_until(lambda: list(Path("killed/points").glob("*/result.json")))
    workers = children_of(process.pid)
    process.kill()
    process.wait()
    wait_until(lambda: not any(map(is_alive, workers)), 20)  # nobody goes on without the sweep
    done = {path: path.stat().st_mtime_ns for path in Path("killed/points").glob("*/result.json")}
    assert 1 <= len(done) < 4
    subprocess.run([*COMMAND[:4], "--resume", "--out", "killed", "--processes", "2"], check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in done} == done, "what was done is not done again"
    assert scores_in("killed") == scores_in("whole")


@pytest.mark.slow
def test_a_worker_that_dies_costs_its_point_a_try() -> None:
    process = subprocess.Popen([*COMMAND, "--set", "run.rounds=40", "--out", "out"], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: list(Path("out/points").glob("*/views.jsonl")))
    os.kill(children_of(process.pid)[0], signal.SIGKILL)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert len(scores_in("out")) == 4


@pytest.mark.slow
def test_an_interrupted_sweep_says_how_to_go_on_and_goes_on_from_its_checkpoints() -> None:
    long = [*COMMAND, "--set", "run.rounds=100"]
    process = subprocess.Popen([*long, "--out", "out"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    views = Path("out/points")
    wait_until(lambda: any(len(p.read_text().splitlines()) > 3 for p in views.glob("*/views.jsonl")))
    workers = children_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    lines = [line for line in told.splitlines() if line.startswith(("error:", "try:"))]
    assert lines == ["error: interrupted; 0 of 4 points are done, and kept", "try: privet sweep --resume --out out"]
    assert not any(map(is_alive, workers))
    runs = {path.parent.name: path.read_text() for path in views.glob("*/submission.json")}
    assert len(runs) == 2
    subprocess.run([*COMMAND[:4], "--resume", "--out", "out"], check=True, capture_output=True)
    after = {path.parent.name: path.read_text() for path in views.glob("*/submission.json")}
    assert {name: after[name] for name in runs} == runs, "the same runs, not new ones"


def test_a_plan_that_no_node_would_admit_is_found_before_anything_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sweep", "tiny.toml", "--over", "privacy.epsilon=1,16", "--processes", "1", "--out", "out"]) == 2
    told = capsys.readouterr().err
    errors = [line for line in told.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: privacy.epsilon=16: simulation.account-epsilon: 10, but the plan costs 15.99")
    assert "delta 1e-05 (unit: record, add-or-remove-one)" in errors[0]
    assert not Path("out").exists()


def test_what_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of("privacy.epsilon=1,4")
    sweep.begin()
    found = Findings.of(sweep, "accuracy")
    assert (found.done, found.best, [row.mean for row in found.rows]) == (0, None, [None, None])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "no plan is named"),
        (["--resume", "--out", "none"], "none: no sweep was begun here"),
        (["tiny.toml", "--over", "privacy.epsilon=1,2", "--resume"], "no sweep was begun here"),
        (["no-such", "--over", "privacy.epsilon=1,2"], "no-such: no such plan"),
        (["tiny.toml"], "nothing to sweep over"),
        (["tiny.toml", "--over", "privacy.epsilon=1,2", "--seeds", "0"], "Invalid value for '--seeds'"),
    ],
)
def test_bad_usage_gets_one_error_and_one_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[str], error: str
) -> None:
    assert run(["sweep", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "try:"))]
    assert len(lines) == 2
    assert error in lines[0]
    assert not list(Path().glob("sweeps"))
