"""The cohort engine under a whole simulation: the ledgers, refusals and models of node after node, many at once."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from cohorts import CPU, AnyTask
from flwr.app import Message
from numpy.typing import NDArray
from privet.__main__ import run
from privet.client.tasks.protocol import Options, Partition, Records, Task
from privet.client.tasks.registry import load_task
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.budget.accounts import AccountBook, AccountTerms
from privet.privacy.budget.book import DeclaredDataset
from privet.privacy.budget.charge import executed_epsilon
from privet.privacy.budget.ledger import Entry
from privet.privacy.channel import words
from privet.privacy.plan import Plan
from privet.server.aggregation import RunningAverage
from privet.server.checkpoints import State
from privet.server.run_folder import RunFolder
from privet.server.simulated import simulated_submission
from privet.simulations.cohort.unsupported import UnsupportedError
from privet.simulations.cohort_work import CohortWork
from privet.simulations.crew import Crew, Result
from privet.simulations.engine import PRECISIONS, Engine, EngineName
from privet.simulations.grid import Fault
from privet.simulations.onlooker import Onlooker
from privet.simulations.order_queue import Order
from privet.simulations.scenario import Scenario
from privet.simulations.shelf import Shelf
from privet.simulations.sweep_point import run_point
from privet.simulations.views import RoundView
from privet.simulations.world import World
from safetensors.numpy import load_file
from signed_ledgers import opened, read
from torch import Tensor, nn

Make = Callable[..., Plan]

TOLERANCE = 1e-5  # of the length of what a run has moved the model by
DIGITS = (
    "run.task=digits",
    "model.records=",
    "model.features=",
    "run.rounds=2",
    "training.local-steps=2",
    "privacy.sampling-rate=0.2",
    "evaluation.every=2",
    "evaluation.metrics=['accuracy']",
    "simulation.nodes=7",
    "simulation.partition=dirichlet",
    "simulation.alpha=0.5",
    "aggregation.min-nodes=3",
)
NOISED = ("evaluation.noise-multiplier=20.0",)


class Sevens(AnyTask):
    """Any model over 90 made-up records; `mend` may change, or refuse, what a share is loaded as."""

    def __init__(
        self, model_of: Callable[[], nn.Module] | None = None, mend: Callable[[Records], Records] = lambda r: r
    ) -> None:
        super().__init__(model_of or (lambda: nn.Linear(5, 4)), (5,))
        self._mend = mend

    def shipped(self, options: Options) -> Records:
        return self.records(90)

    def load(self, source: Partition) -> Records:  # type: ignore[override]  # there is no path in these tests
        return self._mend(source.load())


class Recurrent(nn.Module):
    """[B, 5] -> [B, 4], one number after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 3, batch_first=True)
        self.head = nn.Linear(3, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.rnn(inputs.unsqueeze(2))[0][:, -1])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def scenario_of(
    plan: Plan,
    folder: Path,
    engine: EngineName,
    task: Task | None = None,
    ledgers: Path | None = None,
    processes: int | None = None,
) -> Scenario:
    world = World.of(plan, task or load_task(plan.run.task))
    return Scenario.begun(plan, RunFolder(folder), world, CPU, ledgers, engine=engine, processes=processes)


def carried_out(scenario: Scenario, fault: Fault | None = None) -> State:
    state = scenario.run(lambda view: None, fault)
    scenario.close()
    return state


def flat(parameters: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
    return np.concatenate([parameters[name].ravel() for name in sorted(parameters)]).astype(np.float64)


def model_of(scenario: Scenario) -> NDArray[np.float64]:
    return flat(load_file(scenario.folder.root / "model.safetensors"))


def assert_same_model(one: Scenario, other: Scenario) -> None:
    moved = model_of(other) - flat(other.trainable.initial)
    assert np.linalg.norm(model_of(one) - model_of(other)) <= TOLERANCE * np.linalg.norm(moved)


def ledgers_of(scenario: Scenario) -> list[Path]:
    return [scenario.ledgers / f"{name}.sqlite" for name in scenario.world.shares]


def entries_of(scenario: Scenario, name: str = "node-1") -> list[Entry]:
    entries = read(scenario.ledgers / f"{name}.sqlite", owner=name)
    return [entry for entry in entries if entry.kind != "witnessed"]


def told(entry: Entry) -> tuple[str, dict[str, object]]:
    """An entry without what differs from run to run: ids, times, and hashes of what is equal up to rounding."""
    left_out = ("run", "submission", "request", "answer", "not_before", "expires", "public_key", "key")
    return entry.kind, {key: value for key, value in entry.content.items() if key not in left_out}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("kind", ["linear", "cnn"])
def test_both_engines_give_one_model_and_the_same_ledgers(
    make_plan: Make, tmp_path: Path, kind: str, private: bool
) -> None:
    plan = make_plan(*DIGITS, *(NOISED if private else ()), f"model.kind={kind}", private=private)
    alone, together = (scenario_of(plan, tmp_path / engine, engine) for engine in ("sequential", "cohort"))
    states = [carried_out(scenario) for scenario in (alone, together)]
    assert (alone.engine.name, together.engine.name) == ("sequential", "cohort")
    assert len({len(share.indices) for share in together.world.shares.values()}) > 3, "a ragged partition"
    assert_same_model(together, alone)
    metrics = [state.history[-1].metrics["accuracy"] for state in states]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
    for name in together.world.shares:
        expected = [told(entry) for entry in entries_of(alone, name)]
        found = [told(entry) for entry in entries_of(together, name)]
        assert [kind for kind, _ in found][3:] == ["charge", *["begin", "answer"] * 3]
        answers = [(kind, body) for kind, body in found if kind in ("begin", "answer")]
        assert answers == [(kind, body) for kind, body in expected if kind in ("begin", "answer")]
    for ledger in ledgers_of(together):
        assert audit_ledger(ledger).violations == ()


def test_same_seed_gives_the_same_bytes(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan(*DIGITS, *NOISED, private=True)
    scenarios = [scenario_of(plan, tmp_path / name, "cohort") for name in ("one", "two")]
    for scenario in scenarios:
        carried_out(scenario)
    assert np.array_equal(*(model_of(scenario) for scenario in scenarios))


def test_node_without_budget_is_refused_in_the_middle_of_a_group(make_plan: Make, tmp_path: Path) -> None:
    """Its account holds less than the plan costs."""
    plan = make_plan("run.rounds=2", "simulation.nodes=5", "aggregation.min-nodes=3", private=True)
    models = []
    for engine in ("sequential", "cohort"):
        scenario = scenario_of(plan, tmp_path / engine, engine, Sevens())
        _poor(scenario, "node-3", plan)
        state = carried_out(scenario)
        assert state.excluded == {"node-3": "budget-exhausted"}
        assert [report.answered for report in state.history] == [4, 4]
        kinds = [entry.kind for entry in entries_of(scenario, "node-3")]
        assert not {"charge", "begin", "answer"} & set(kinds), "nothing was trained for it"
        assert [entry.kind for entry in entries_of(scenario, "node-4")][3:] == ["charge", *["begin", "answer"] * 2]
        assert all(audit_ledger(ledger).violations == () for ledger in ledgers_of(scenario))
        models.append(scenario)
    assert_same_model(models[1], models[0])


def _poor(scenario: Scenario, name: str, plan: Plan) -> None:
    """An account that holds less than the plan costs, before the node opens one itself."""
    path = scenario.ledgers / f"{name}.sqlite"
    path.parent.mkdir(parents=True)
    ledger = opened(path, owner=name)
    accounts = AccountBook(ledger)
    accounts.open_account("records", AccountTerms("record", Decimal("0.01"), Decimal("1e-4")))
    size = len(scenario.world.shares[name].indices)
    accounts.add_dataset(DeclaredDataset(plan.dataset, plan.run.task, f"simulated/synthetic/{name}", size, "records"))
    ledger.close()


def test_node_that_its_task_fails_takes_nobody_along(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan("run.rounds=2", "simulation.nodes=5", "aggregation.min-nodes=3", private=True)
    lost = World.of(plan, Sevens()).shares["node-2"].load()

    def mend(records: Records) -> Records:
        if torch.equal(records.inputs, lost.inputs):
            raise RuntimeError("secret")
        return records

    scenarios = [scenario_of(plan, tmp_path / engine, engine, Sevens(mend=mend)) for engine in ("sequential", "cohort")]
    states = [carried_out(scenario) for scenario in scenarios]
    assert [report.failures for report in states[1].history] == [report.failures for report in states[0].history]
    assert states[1].history[-1].failures == {"node-2": "task-failed"}
    assert [report.answered for report in states[1].history] == [4, 4]
    assert_same_model(scenarios[1], scenarios[0])


def test_task_that_makes_something_else_of_a_share(make_plan: Make, tmp_path: Path) -> None:
    """What is trained on is what the task loads, not what lies in the simulator's memory."""
    plan = make_plan("run.rounds=2", "simulation.nodes=5", private=True)
    models = []
    for engine in ("sequential", "cohort"):
        halved = Sevens(mend=lambda records: Records(records.inputs / 2, records.targets))
        models.append(scenario_of(plan, tmp_path / engine, engine, halved))
        carried_out(models[-1])
    assert_same_model(models[1], models[0])
    plain = scenario_of(plan, tmp_path / "plain", "cohort", Sevens())
    carried_out(plain)
    assert not np.allclose(model_of(plain), model_of(models[1]))


@pytest.mark.parametrize("private", [True, False])
def test_one_model_on_any_number_of_processes(make_plan: Make, tmp_path: Path, private: bool) -> None:
    """To the last bit; and so does what is handed over one by one, because something might befall it."""
    plan = make_plan("run.rounds=3", "simulation.nodes=17", "aggregation.fraction=0.9", private=private)
    models = []
    for processes in (1, 2, 4):
        scenario = scenario_of(plan, tmp_path / f"{processes}", "cohort", Sevens(), processes=processes)
        carried_out(scenario)
        models.append(model_of(scenario))
    single = scenario_of(plan, tmp_path / "single", "cohort", Sevens(), processes=2)
    carried_out(single, fault=lambda asked, reply: reply)
    models.append(model_of(single))
    assert all(np.array_equal(models[0], other) for other in models[1:])


@pytest.mark.parametrize("processes", [1, 2])
def test_rounds_tell_what_they_have_cost(make_plan: Make, tmp_path: Path, processes: int) -> None:
    """Every second one of 21, and the last, which tells what the ledgers tell; whoever has accounted for it."""
    plan = make_plan("run.rounds=21", "simulation.nodes=6", private=True)
    scenario = scenario_of(plan, tmp_path / "run", "cohort", Sevens(), processes=processes)
    scenario.run(lambda view: None)
    cost = {view.round: view.epsilon_executed for view in scenario.views.until(21)}
    claim = scenario.submission.claim
    assert claim is not None
    for number in range(1, 21):
        expected = None if number % 2 else executed_epsilon(plan, claim.noise_multiplier, number, number)
        assert cost[number] == expected
    assert cost[21] == max(standing.epsilon_executed or Decimal(0) for standing in scenario.standings())
    scenario.close()


class _Cut(KeyboardInterrupt):
    """Ctrl-C."""


@pytest.mark.parametrize(("replies", "processes"), [(0, 1), (1, 2), (3, 2)])
def test_interrupted_run_goes_on_with_the_same_bytes(
    make_plan: Make, tmp_path: Path, replies: int, processes: int
) -> None:
    """Cut while the answers of a group are handed on: all that had begun is kept, and nothing is spent twice."""
    plan = make_plan("run.rounds=3", "simulation.nodes=7", private=True)
    whole = scenario_of(plan, tmp_path / "whole", "cohort", Sevens())
    carried_out(whole)
    cut = scenario_of(plan, tmp_path / "cut", "cohort", Sevens(), processes=processes)
    seen: list[Message] = []

    def interrupt(asked: Message, reply: Message) -> Message:
        config = asked.content.get(words.CONFIG)
        if asked.metadata.message_type == words.TRAIN and config and config[words.ROUND] == 2:
            if len(seen) == replies:
                raise _Cut
            seen.append(reply)
        return reply

    with pytest.raises(_Cut):
        cut.run(lambda view: None, interrupt)
    cut.close()
    again = Scenario(cut.plan, cut.submission, cut.folder, cut.world, CPU, engine="cohort")
    carried_out(again)
    assert np.array_equal(model_of(again), model_of(whole))
    for name in again.world.shares:
        assert [entry.kind for entry in entries_of(again, name)][3:] == ["charge", *["begin", "answer"] * 3]


def test_killed_in_a_group_spends_what_had_begun_and_no_more(make_plan: Make, tmp_path: Path) -> None:
    """Ctrl-C while a group trains: its nodes answer with a spare round, the others with the round's own."""
    plan = make_plan("run.rounds=2", "simulation.nodes=7", private=True)
    cut: list[Scenario] = []

    class Killed(Sevens):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            if any(one.standing(name).attempts for one in cut for name in one.nodes):
                raise _Cut
            return super().loss(outputs, targets)

    scenario = scenario_of(plan, tmp_path / "run", "cohort", Killed(), processes=1)
    cut.append(scenario)
    with pytest.raises(_Cut):
        scenario.run(lambda view: None)
    lost = [name for name in scenario.nodes if scenario.standing(name).attempts]
    assert len(lost) == scenario.engine.at_once == 4
    scenario.close()
    cut.clear()
    again = Scenario(scenario.plan, scenario.submission, scenario.folder, scenario.world, CPU, engine="cohort")
    state = again.run(lambda view: None)
    assert [report.answered for report in state.history] == [7, 7]
    assert {name: again.standing(name).attempts for name in again.nodes} == {
        name: 3 if name in lost else 2 for name in again.nodes
    }
    again.close()
    assert all(audit_ledger(ledger).violations == () for ledger in ledgers_of(again))


def test_auto_says_why_nodes_are_trained_one_by_one(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan("run.rounds=1")
    scenario = scenario_of(plan, tmp_path / "run", "auto", Sevens(Recurrent))
    carried_out(scenario)
    assert (scenario.engine.name, scenario.engine.why) == ("sequential", "recurrent LSTM (at rnn)")
    with pytest.raises(UnsupportedError, match="does not know recurrent LSTM"):
        scenario_of(plan, tmp_path / "refused", "cohort", Sevens(Recurrent))
    assert not (tmp_path / "refused").exists()


def test_engine_says_how_many_nodes_it_trains_at_once(make_plan: Make) -> None:
    wide = Sevens(lambda: nn.Sequential(nn.Linear(5, 100_000), nn.ReLU(), nn.Linear(100_000, 4)))
    small = Sevens()

    def chosen(asked: EngineName, task: Task, private: bool) -> Engine:
        plan = make_plan(private=private)
        scenario = Scenario(
            plan, simulated_submission(plan), RunFolder(Path("/nowhere")), World.of(plan, task), CPU, None, asked
        )
        return scenario.engine

    told = {
        (asked, size, private): (engine := chosen(asked, task, private)).name + ": " + engine.why
        for asked, size, task, private in (
            ("auto", "wide", wide, False),
            ("auto", "wide", wide, True),
            ("cohort", "wide", wide, False),
            ("auto", "small", small, False),
            ("sequential", "small", small, True),
        )
    }
    assert told == {
        ("auto", "wide", False): "cohort: 1 node at once",
        ("auto", "wide", True): "cohort: 1 node at once",
        ("cohort", "wide", False): "cohort: 1 node at once",
        ("auto", "small", False): "cohort: 3 nodes at once",
        ("sequential", "small", True): "sequential: as asked",
    }


QUICK = [
    *("--set", "run.rounds=1", "--set", "run.spare-rounds=0", "--set", "simulation.nodes=3"),
    *("--set", "aggregation.min-nodes=2", "--set", "evaluation.every=1", "--set", "training.local-steps=1"),
]


@pytest.mark.parametrize(
    ("arguments", "name", "why"),
    [
        ([], "cohort", "3 nodes at once"),
        (["--engine", "auto"], "cohort", "3 nodes at once"),
        (["--engine", "cohort"], "cohort", "3 nodes at once"),
        (["--engine", "sequential"], "sequential", "as asked"),
    ],
)
def test_result_summary_and_report_say_which_engine_ran(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], name: str, why: str
) -> None:
    out = tmp_path / "out"
    assert run(["simulate", *QUICK, "--out", str(out), *arguments]) == 0
    assert f"engine {name}: {why}" in capsys.readouterr().out.splitlines()
    result = json.loads((out / "result.json").read_text())
    assert (result["engine"], result["engine_reason"]) == (name, why)
    assert f"{name}: {why}" in (out / "report.html").read_text()
    assert run(["simulate", "--resume", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["engine_reason"] == why, "a resumed run keeps it"


@pytest.mark.parametrize(
    ("arguments", "error", "remedy"),
    [
        (["--engine", "fast"], "--engine fast: not one of auto, cohort, sequential", "--engine auto"),
        (["--engine", "cohort", "--resume", "x"], "--resume goes on with the plan in its folder", "--resume DIR"),
    ],
)
def test_engine_that_cannot_be_meant(
    capsys: pytest.CaptureFixture[str], arguments: list[str], error: str, remedy: str
) -> None:
    assert run(["simulate", *arguments]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "try:"))]
    assert len(lines) == 2
    assert error in lines[0]
    assert remedy in lines[1]


def test_point_of_a_sweep_takes_the_faster_engine(make_plan: Make, tmp_path: Path) -> None:
    run_point(make_plan("run.rounds=1", private=True), tmp_path / "point", CPU, lambda view: None)
    assert json.loads((tmp_path / "point/result.json").read_text())["engine"] == "cohort"


def test_simulation_of_the_cohort_imports_no_compiler(tmp_path: Path) -> None:
    """torch's, which takes seconds; in a process of its own."""
    code = (
        "import sys; from privet.__main__ import run\n"
        f"assert run({['simulate', *QUICK, '--out', str(tmp_path / 'out'), '--json']!r}) == 0\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_products_in_half_the_bits_give_nearly_the_same_model(make_plan: Make, tmp_path: Path) -> None:
    plan = make_plan("run.rounds=2", private=True)
    world = World.of(plan, Sevens())
    models = []
    for precision in PRECISIONS:
        folder = RunFolder(tmp_path / precision)
        scenario = Scenario.begun(plan, folder, world, CPU, engine="cohort", precision=precision)
        carried_out(scenario)
        assert (precision in scenario.engine.why) == (precision == "bfloat16")
        assert all(audit_ledger(ledger).violations == () for ledger in ledgers_of(scenario))
        models.append(model_of(scenario))
    assert not np.array_equal(*models)
    assert np.allclose(*models, atol=0.01 * np.abs(models[0]).max())


def test_half_the_bits_are_for_the_cohort_engine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(["simulate", "digits", "--engine", "sequential", "--precision", "bfloat16", "--out", str(tmp_path)]) == 2
    assert "try: --engine cohort" in capsys.readouterr().err


def test_witness_of_a_simulation_looks_at_the_first_the_last_and_every_sixteenth_round(
    make_plan: Make, tmp_path: Path
) -> None:
    scenario = scenario_of(make_plan("run.rounds=20", private=True), tmp_path / "run", "cohort", Sevens())
    carried_out(scenario)
    for ledger in ledgers_of(scenario):
        audit = audit_ledger(ledger, witness=scenario.ledgers / "witness" / f"{ledger.stem}.jsonl")
        assert audit.violations == ()
        assert audit.not_witnessed == 1  # that the last head was countersigned
        entries = read(ledger, owner=ledger.stem)
        assert [entry.kind for entry in entries].count("witnessed") == 3


def test_sum_is_right_though_a_process_is_killed_when_it_has_added(make_plan: Make, tmp_path: Path) -> None:
    """Its part is added up again by another, and must not count twice."""
    scenario = scenario_of(make_plan(), tmp_path / "run", "cohort", Sevens(lambda: nn.Linear(5, 40_000)))
    model, here = scenario.engine.model, os.getpid()
    assert model is not None
    shelf = Shelf(tmp_path / "rows.bin", model.initial, nodes=3)
    rows = [row for row in (shelf.place(1) for _ in range(24)) if row % 6 != 3]  # some lie side by side
    shelf.rows[:24] = np.arange(24)[:, np.newaxis] ** 2
    work = CohortWork(model, scenario.trainable, scenario.submission, scenario.world, shelf)

    come, added = os.pipe()
    missing = [1, 1]

    def dying(order: Order) -> Result:
        while os.getpid() == here and missing:  # the others have added a part each
            missing.remove(len(os.read(come, 1)))
        result = work(order)
        if os.getpid() != here:
            os.write(added, b".")
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    with Crew(dying, 3) as crew:
        for ticket in [crew.give(order) for order in work.sum_orders(rows, [1 / 20] * 20, 3)]:
            crew.take(ticket)
        assert len(crew) == 1
    expected = RunningAverage({"all": shelf.rows[0]}, len(rows))
    for row in rows:
        expected.add({"all": shelf.rows[row]}, 1)
    (whole,) = dict(expected.result()).values()
    assert np.array_equal(np.concatenate(list(work.taken_sum(is_ordered=True).values())).astype(np.float32), whole)


def test_round_that_ctrl_c_was_waiting_for_is_shown(make_plan: Make, tmp_path: Path) -> None:
    scenario = scenario_of(make_plan(), tmp_path / "run", "cohort", Sevens())
    model, here = scenario.engine.model, os.getpid()
    assert model is not None
    shelf = Shelf(tmp_path / "rows.bin", model.initial, nodes=3)
    work = CohortWork(model, scenario.trainable, scenario.submission, scenario.world, shelf)
    interruptions, (come, comes) = [KeyboardInterrupt()], os.pipe()

    def interrupted(order: Order) -> Result:
        if os.getpid() != here:  # the other has something to do, so this process looks at the round
            os.write(comes, b".")
            signal.pause()
        if interruptions:
            raise interruptions.pop()
        return work(order)

    def view_of(state: State, scores: dict[str, float], epsilon: Decimal | None) -> RoundView:
        return RoundView(state.round, scores, epsilon, 0, {})

    shown: list[RoundView] = []
    with Crew(interrupted, 2) as crew:
        crew.give({})
        os.read(come, 1)
        about = scenario.submission, scenario.trainable, scenario.world
        onlooker = Onlooker(*about, lambda state: None, view_of, scenario.views, shown.append, work, crew)
        onlooker.look(State(1, model.initial, {}, {}, {}, ()))
        with pytest.raises(KeyboardInterrupt):
            onlooker.catch_up()
        onlooker.catch_up()
    assert [view.round for view in shown] == [1]
    assert shown[0].scores


# Python may be interrupted between what a `with` opens and the `with`: that is closed when nobody has it any more.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("delay", [0.02, 0.05, 0.1, 0.15, 0.2, 0.3])
def test_ctrl_c_at_any_moment_loses_nothing(make_plan: Make, tmp_path: Path, delay: float) -> None:
    plan = make_plan("run.rounds=20", "simulation.nodes=7", private=True)
    whole = scenario_of(plan, tmp_path / "whole", "cohort", Sevens(), processes=2)
    carried_out(whole)
    cut = scenario_of(plan, tmp_path / "cut", "cohort", Sevens(), processes=2)
    assert len(cut.nodes) == 7
    cut.muster()
    before = signal.signal(signal.SIGALRM, lambda number, frame: signal.raise_signal(signal.SIGINT))
    try:
        with contextlib.suppress(KeyboardInterrupt), contextlib.closing(cut):
            signal.setitimer(signal.ITIMER_REAL, delay)
            cut.run(lambda view: None)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    again = Scenario(cut.plan, cut.submission, cut.folder, cut.world, CPU, engine="cohort", processes=2)
    carried_out(again)
    assert np.array_equal(model_of(again), model_of(whole))
    assert [view.round for view in again.views.until(20)] == list(range(21))
    for name in again.world.shares:
        assert [entry.kind for entry in entries_of(again, name)][3:] == ["charge", *["begin", "answer"] * 20]
