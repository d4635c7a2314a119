"""Simulated runs that hide whole nodes: engines, interruptions, the one ledger, what is said of them; many nodes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from privet.client.tasks.registry import load_task
from privet.privacy.audit.replay import audit_ledger
from privet.privacy.errors import BudgetError, PlanError, RefusedError, UsageError
from privet.privacy.plan import Plan
from privet.privacy.policy.policy_file import default_policy
from privet.privacy.policy.rules import Rules
from privet.server.checkpoints import State
from privet.server.run_folder import RunFolder
from privet.simulations.engine import EngineName
from privet.simulations.report import write_report
from privet.simulations.result import result_of
from privet.simulations.scenario import Scenario
from privet.simulations.world import World
from signed_ledgers import key_of, read

CPU = torch.device("cpu")
CENTRAL = (
    "privacy.unit=node",
    "privacy.noise-multiplier=0.8",
    "privacy.delta=1e-3",
    "privacy.clip-norm=0.5",
    "run.spare-rounds=0",
    "aggregation.fraction=0.3",
    "simulation.nodes=20",
    "simulation.account-epsilon=20.0",
    "simulation.account-delta=0.01",
)
ADAPTIVE = (*CENTRAL, "privacy.target-quantile=0.5", "privacy.count-noise-stddev=2.0")


def begun(plan: Plan, folder: Path, engine: EngineName = "sequential", ledgers: Path | None = None) -> Scenario:
    world = World.of(plan, load_task(plan.run.task))
    return Scenario.begun(plan, RunFolder(folder), world, CPU, ledgers, engine=engine, processes=1)


def carried_out(scenario: Scenario) -> State:
    try:
        return scenario.run(lambda view: None)
    finally:
        scenario.close()


@pytest.mark.parametrize("plan", [CENTRAL, ADAPTIVE])
def test_both_engines_give_one_model(make_plan, tmp_path: Path, plan: tuple[str, ...]) -> None:
    asked = make_plan(*plan, "model.hidden=4")
    states = [carried_out(begun(asked, tmp_path / engine, engine)) for engine in ("cohort", "sequential")]
    for name, array in states[0].model.items():
        assert np.abs(array - states[1].model[name]).max() < 1e-5
    norms = [state.strategy["central/clip-norm"][0] for state in states]
    assert norms[0] == norms[1]
    assert (norms[0] == 0.5) == (plan is CENTRAL)


def test_an_interrupted_run_ends_with_the_same_model(make_plan, tmp_path: Path) -> None:
    plan = make_plan(*ADAPTIVE)
    whole = carried_out(begun(plan, tmp_path / "whole"))

    def interrupt(view) -> None:
        if view.round == 2:
            raise KeyboardInterrupt

    scenario = begun(plan, tmp_path / "parts")
    with pytest.raises(KeyboardInterrupt):
        scenario.run(interrupt)
    scenario.close()
    parts = carried_out(Scenario.resumed(RunFolder(tmp_path / "parts"), CPU, engine="sequential"))
    assert all(np.array_equal(parts.model[name], whole.model[name]) for name in whole.model)


@pytest.mark.parametrize("engine", ["cohort", "sequential"])
def test_no_update_without_noise_is_left_on_disk(make_plan, tmp_path: Path, engine: EngineName) -> None:
    """Where a run is cut off: nothing reads them again."""
    scenario = begun(make_plan(*CENTRAL), tmp_path / "run", engine)

    def interrupt(view) -> None:
        if view.round == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scenario.run(interrupt)
    scenario.close()
    assert not (tmp_path / "run" / "answers").exists()


def test_ray_is_refused_where_a_run_is_resumed_too(make_plan, tmp_path: Path) -> None:
    begun(make_plan(*CENTRAL), tmp_path / "run").close()
    with pytest.raises(UsageError, match="--engine ray: with unit 'node'"):
        Scenario.resumed(RunFolder(tmp_path / "run"), CPU, engine="ray")


def test_the_server_has_the_one_ledger_and_its_audit_finds_nothing(make_plan, tmp_path: Path) -> None:
    scenario = begun(make_plan(*ADAPTIVE), tmp_path / "run", "cohort")
    carried_out(scenario)
    assert {path.name for path in (tmp_path / "run" / "ledgers").iterdir()} == {"server.pem", "server.sqlite"}
    ledger = tmp_path / "run" / "ledgers" / "server.sqlite"
    audit = audit_ledger(ledger, public_key=key_of(ledger).public)
    assert audit.violations == ()
    (run,) = audit.history.runs.values()
    assert (run.unit, run.declared_size, len(run.answered)) == ("node", 20, 4)


def test_what_is_said_has_unit_relation_and_both_numbers(make_plan, tmp_path: Path) -> None:
    scenario = begun(make_plan(*ADAPTIVE), tmp_path / "run")
    state = scenario.run(lambda view: None)
    result = result_of(scenario, state, 1.0, {})
    scenario.close()
    assert (result["unit"], result["relation"], result["mechanism"]) == ("node", "add-or-remove-one", "central")
    assert result["epsilon"] == result["epsilon_executed"] == scenario.submission.claim.epsilon
    assert result["sampling_rate"] == 0.3
    assert result["clip_norm_at_end"] == state.strategy["central/clip-norm"][0]
    assert "a secret sample of nodes" in str(result["noise_note"])
    nodes = result["nodes"]
    asked = sum(state.participations.values())
    assert sum(node["rounds_answered"] for node in nodes) == asked > 0
    write_report(json.loads(json.dumps(result)), tmp_path / "report.html")
    page = " ".join((tmp_path / "report.html").read_text().split())
    for told in ("The presence of any one node", "Each node must trust it", "per node", "add-or-remove-one"):
        assert told in page
    assert "to its own account" not in page
    assert "whether an institution answers" not in page  # that is the presence which the claim is about
    assert "Nor is the number that answered a release: no noise is on it." in page
    assert "not a release: no noise is on it" in str(result["presence_note"])


def test_runs_that_share_the_ledger_share_its_budget(make_plan, tmp_path: Path) -> None:
    """An account of 10 pays for two runs of 4.4."""
    plan = (*CENTRAL, "simulation.account-epsilon=10.0")
    for number in range(2):
        scenario = begun(make_plan(*plan), tmp_path / f"run-{number}", ledgers=tmp_path / "ledgers")
        carried_out(scenario)
        claim = scenario.submission.claim
        assert claim is not None
        assert 4 < claim.epsilon < 5
    with pytest.raises(RefusedError, match="account nodes cannot pay"):
        begun(make_plan(*plan), tmp_path / "run-2", ledgers=tmp_path / "ledgers").run(lambda view: None)


def test_a_ledger_is_of_so_many_nodes(make_plan, tmp_path: Path) -> None:
    carried_out(begun(make_plan(*CENTRAL), tmp_path / "run-1", ledgers=tmp_path / "ledgers"))
    other = begun(make_plan(*CENTRAL, "simulation.nodes=30"), tmp_path / "run-2", ledgers=tmp_path / "ledgers")
    with pytest.raises(BudgetError, match="declares 20 nodes, simulated are 30"):
        other.run(lambda view: None)


@pytest.mark.parametrize(
    "change", ["run.seed=4", "simulation.held-out=0.2", "model.records=130", "run.dataset=x run.seed=4"]
)
def test_a_budget_is_of_the_same_nodes(make_plan, tmp_path: Path, change: str) -> None:
    """As many others are not: epsilons of two populations add up to nobody's."""
    carried_out(begun(make_plan(*CENTRAL), tmp_path / "run-1", ledgers=tmp_path / "ledgers"))
    other = begun(make_plan(*CENTRAL, *change.split()), tmp_path / "run-2", ledgers=tmp_path / "ledgers")
    with pytest.raises(BudgetError, match="is of other nodes") as error:
        other.run(lambda view: None)
    assert "other --ledgers" in error.value.remedy
    kinds = [entry.kind for entry in read(tmp_path / "ledgers" / "server.sqlite", owner="server")]
    assert kinds.count("charge") == 1


def test_runs_that_share_a_budget_share_no_noise(make_plan, tmp_path: Path) -> None:
    """With hardly any learning a run moves by its noise alone, and two such by other noise; as a comparison does."""
    still = (*CENTRAL, "simulation.account-epsilon=20.0", "training.learning-rate=1e-30", "run.rounds=1")
    others = ("training.learning-rate=2e-30", "run.name=test-without-faults", "simulation.faults.drop=0.2")
    models = []
    for number, change in enumerate(("run.rounds=1", *others)):
        folder = tmp_path / f"run-{number}"
        models.append(carried_out(begun(make_plan(*still, change), folder, ledgers=tmp_path / "ledgers")).model)
    values = [np.concatenate([array.reshape(-1) for array in model.values()]) for model in models]
    assert len({value[0] for value in values}) == len(models)


def test_delta_must_lie_below_one_over_the_nodes(make_plan, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"privacy\.delta: 0\.001 is not below 1 / 1000"):
        begun(make_plan(*CENTRAL, "simulation.nodes=1000", "model.records=2000"), tmp_path / "run")


def test_nodes_without_ledgers_ask_no_policy(make_plan, tmp_path: Path) -> None:
    plan = make_plan(*CENTRAL)
    world = World.of(plan, load_task("synthetic"))
    with pytest.raises(UsageError, match="--policy"):
        Scenario.begun(plan, RunFolder(tmp_path / "run"), world, CPU, policy=Rules(default_policy("node")))


@pytest.mark.parametrize("fault", ["nan", "scale", "flip-signs"])
def test_lies_on_the_wire_move_the_model_no_further_than_the_noise_hides(make_plan, tmp_path: Path, fault: str) -> None:
    """Half of the nodes lie. Four rounds move the model by at most C each, and by the noise: of 8 values, below 6 of
    its deviations in length, but in one of 10^5 rounds.
    """
    plan = make_plan(*CENTRAL, f"simulation.faults.{fault}=0.5", "aggregation.fraction=1.0")
    scenario = begun(plan, tmp_path / "run", "cohort")
    start = {name: array.copy() for name, array in scenario.trainable.initial.items()}
    state = carried_out(scenario)
    moved = np.concatenate([(state.model[name] - start[name]).reshape(-1) for name in start])
    assert 0 < np.linalg.norm(moved) < 4 * (0.5 + 6 * 0.8 * 0.5 / 20)


@pytest.mark.slow
def test_ten_thousand_nodes_cost_no_files(make_plan, tmp_path: Path) -> None:
    """A cohort of about a thousand of them, one round."""
    many = ("simulation.nodes=10000", "model.records=12000", "aggregation.fraction=0.1", "privacy.delta=1e-5")
    scenario = begun(make_plan(*CENTRAL, *many, "run.rounds=1"), tmp_path / "run", "cohort")
    state = scenario.run(lambda view: None)
    result = result_of(scenario, state, 1.0, {})
    scenario.close()
    assert 880 < state.history[-1].answered < 1120
    assert len(result["nodes"]) == 10_000
    assert len(list((tmp_path / "run").rglob("*"))) < 20
    write_report(json.loads(json.dumps(result)), tmp_path / "report.html")
    assert (tmp_path / "report.html").stat().st_size < 200_000
