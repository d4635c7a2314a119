"""`privet plan`: write a plan, check one, see what it will cost."""

import json
import re
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated

import typer

from .errors import PlanError, UsageError
from .plan import NAME_PATTERN, TASK_GROUP, Plan
from .plan_app import AppPlan
from .plan_file import read_any_plan
from .plan_strategies import OWN_STRATEGIES
from .plan_template import plan_template

plan_app = typer.Typer(help="Write a plan, check one, see what it will cost.", no_args_is_help=True)

PlanFile = Annotated[Path, typer.Argument(help="The plan's file.", metavar="PLAN")]
_UNCLAIMED = (
    "no privacy claim: what a Flower app reads is not accounted for; a node runs it only where its institution "
    "allowed it by name"
)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@plan_app.command("new")
def new_plan(
    plan: PlanFile,
    task: Annotated[str, typer.Option(help="The task that is trained.")] = "digits",
) -> None:
    """Write a commented plan."""
    name = re.sub(r"[^a-z0-9._-]+", "-", plan.stem.lower()).strip("-._") or "run"
    if not re.fullmatch(NAME_PATTERN, task):
        raise UsageError(f"--task {task}: a name has lower-case letters, digits, dots and dashes", "privet tasks")
    try:
        with plan.open("x", encoding="utf-8") as file:
            file.write(plan_template(name[:63], task))
    except FileExistsError:
        raise UsageError(f"{plan}: there is a file already", "give another name") from None
    print(f"wrote {plan}; next: privet plan show {plan}")


@plan_app.command("check")
def check_plan(plan: PlanFile) -> None:
    """Say everything that is wrong with a plan."""
    try:
        checked = read_any_plan(plan)
    except PlanError as error:
        for problem in error.problems[:-1]:
            print(f"error: {problem}", file=sys.stderr)
        raise PlanError(error.problems[-1:], error.remedy) from None
    for note in (_UNCLAIMED,) if isinstance(checked, AppPlan) else _notes(checked):
        print(f"note: {note}")
    print(f"{plan}: a valid plan")


@plan_app.command("show")
def show_plan(plan: PlanFile, as_json: AsJson = False) -> None:
    """Say what a plan asks for and what it will cost each node in epsilon, before it runs."""
    from .budget.accounting import rounded_up
    from .plan_cost import cost_of

    read = read_any_plan(plan)
    cost = None if isinstance(read, AppPlan) else cost_of(read)
    if as_json:
        asked = read.model_dump(mode="json", by_alias=True, exclude_none=True)
        print(json.dumps({"plan": asked, "cost": cost.as_json() if cost else None}))
        return
    if isinstance(read, AppPlan):
        print("\n".join(_app_asked(read)))
        return
    lines = _asked(read)
    if cost is None:
        lines += ["cost: no privacy claim; a node admits it only where its account allows unit none"]
    else:
        terms = f"at delta {cost.delta:g} (unit: {cost.unit}, {cost.relation})"
        lines += [
            f"cost to each node: epsilon {cost.epsilon} {terms}",
            f"claimed: epsilon {cost.epsilon_claimed} {terms}",
            f"upper bound by RDP, as a check: epsilon {rounded_up(cost.epsilon_rdp_bound)} {terms}",
            f"noise multiplier {cost.noise_multiplier:g}, clip norm {cost.clip_norm:g}, "
            f"sampling rate {cost.sampling_rate:g} of the {cost.unit}s (Poisson)",
            f"charged: {cost.steps_charged} noisy steps and {cost.evaluations_charged} evaluations "
            f"(evaluations alone: epsilon {cost.epsilon_evaluation_alone} {terms})",
            *(
                f"executed after round {number}: epsilon {epsilon} {terms}, if the schedule was fixed in advance"
                for number, epsilon in cost.by_round.items()
            ),
            f"accountant: {cost.accountant}",
        ]
    print("\n".join([*lines, *(f"note: {note}" for note in _notes(read))]))


def _app_asked(plan: AppPlan) -> list[str]:
    config = ", ".join(f"{key} = {json.dumps(value)}" for key, value in plan.app.config.items())
    return [
        f"run {plan.run.name}: Flower app {plan.app.name}, on at least {plan.app.min_nodes} nodes",
        f"config: {config}" if config else "config: the app's own defaults",
        f"cost: {_UNCLAIMED}",
    ]


def _asked(plan: Plan) -> list[str]:
    run, training, aggregation = plan.run, plan.training, plan.aggregation
    share = f"{100 * aggregation.fraction:g}%"
    cohort = f"each round {share} of the nodes, at least {aggregation.min_nodes}"
    if plan.privacy.is_central:
        cohort = f"each node takes part in a round with chance {share}, by itself"
    return [
        f"run {run.name}: task {run.task}, data set {plan.dataset}",
        f"{run.rounds} rounds and {run.spare_rounds} spare, {training.local_steps} local steps of {training.optimizer} "
        f"at learning rate {training.learning_rate:g}",
        f"strategy {aggregation.strategy}; {cohort}",
    ]


def _notes(plan: Plan) -> list[str]:
    notes = []
    if plan.run.task not in {point.name for point in entry_points(group=TASK_GROUP)}:
        notes.append(f"task {plan.run.task!r} is not installed here; the nodes must have it")
    if plan.keeps_updates:
        notes.append(f"strategy {plan.aggregation.strategy!r} keeps all updates of a round in the server's memory")
    if plan.privacy.is_private and plan.keeps_updates:
        notes.append("under noise, updates of honest nodes differ too: robust strategies then find fewer liars")
    if plan.aggregation.strategy in OWN_STRATEGIES:
        notes.append(f"strategy {plan.aggregation.strategy!r} is simulated only, no deployment carries it out")
    if plan.privacy.is_central:
        notes.append("unit 'node' is protected by the server's noise: simulated only, no deployment carries it out")
    elif plan.aggregation.fraction < 1 and plan.aggregation.participations is None and plan.privacy.is_private:
        notes.append(
            "nodes are charged for every round; aggregation.participations caps what they are asked and charged"
        )
    return notes
