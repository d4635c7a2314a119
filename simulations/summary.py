"""What a person sees of a simulation in the terminal: a bar while it runs, a short summary when it is done."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..privacy.budget.accounting import epsilon_of, shown
from ..privacy.budget.charge import charged_events
from ..privacy.budget.events import RELATION
from ..privacy.submission import Submission
from .views import RoundView

_NODES_SHOWN = 20
# What is counted of each kind of fault, over all rounds.
_DEEDS = {
    "drop": "requests dropped",
    "delay": "answers delayed",
    "nan": "updates of NaN",
    "flip-signs": "updates with flipped signs",
    "scale": "scaled updates",
}


class RoundProgress:
    """A bar with the round, the held-out accuracy and what has been charged and executed."""

    def __init__(self, submission: Submission, console: Console) -> None:
        self.round = 0
        self._rounds = submission.plan.run.rounds
        self._charged = ""
        plan, claim = submission.plan, submission.claim
        self._headline = "training without privacy"
        if claim is not None and plan.privacy.delta is not None:
            charged = epsilon_of(charged_events(plan, claim.noise_multiplier), plan.privacy.delta)
            self._charged = f", charged {shown(charged)}"
            terms = f"delta {plan.privacy.delta:g} (unit: {plan.privacy.unit}, {RELATION})"
            self._headline = f"training with privacy; charged and executed are epsilon at {terms}"
        columns = (BarColumn(bar_width=16), TextColumn("{task.fields[told]}"), TimeRemainingColumn(compact=True))
        self._progress = Progress(*columns, console=console)
        self._bar = self._progress.add_task("", total=self._rounds, told="")

    def show(self, view: RoundView) -> None:
        """Move the bar to the view's round."""
        self.round = view.round
        told = f"round {view.round} of {self._rounds}"
        if "accuracy" in view.scores:
            told += f", accuracy {view.scores['accuracy']:.3f}"
        executed = f", executed {shown(view.epsilon_executed)}" if view.epsilon_executed is not None else ""
        told += self._charged + executed
        self._progress.update(self._bar, completed=view.round, told=told)

    def __enter__(self) -> Self:
        self._progress.console.print(self._headline, highlight=False)
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def print_summary(result: Mapping[str, Any], root: Path, console: Console) -> None:
    """The few lines that a person wants at the end."""

    def say(text: str) -> None:
        console.print(escape(text), soft_wrap=True, highlight=False)

    say("")
    say(f"{result['name']}: {result['rounds']} rounds, {len(result['nodes'])} nodes, {result['seconds']:.1f} s")
    say(f"engine {result['engine']}: {result['engine_reason']}")
    if result["accuracy"] is not None:
        held_out = f"{result['records']['held_out']} held-out records ({result['accuracy_note']})"
        say(f"accuracy {result['accuracy']:.3f} on {held_out}")
    if result["accuracy_without_privacy"] is not None:
        say(f"accuracy {result['accuracy_without_privacy']:.3f} with the same plan without privacy")
    for line in _told_of_faults(result):
        say(line)
    if result["epsilon"] is None:
        say("no privacy claim: unit is none, nothing was clipped or noised")
    else:
        terms = f"at delta {result['delta']:g} (unit: {result['unit']}, {result['relation']})"
        say(f"epsilon charged {shown(result['epsilon'])} {terms}, mechanism {result['mechanism']}")
        say(f"epsilon executed {shown(result['epsilon_executed'])} {terms}, if the schedule was fixed in advance")
        say(result["noise_note"])
    console.print(_table(result))
    if len(result["nodes"]) > _NODES_SHOWN:
        say(f"and {len(result['nodes']) - _NODES_SHOWN} more nodes in result.json")
    say(f"files in {root}: report.html, result.json, model.safetensors, plan.toml")


def _told_of_faults(result: Mapping[str, Any]) -> Iterator[str]:
    """What went wrong, and what it changed."""
    if result["faults"] is None:
        return
    counts = Counter[str]()
    for entry in result["history"]:
        counts.update(entry["faults"])
    yield f"faults: {', '.join(f'{_DEEDS[kind]} {count}' for kind, count in counts.items()) or 'none came up'}"
    if result["accuracy_without_faults"] is not None:
        yield f"accuracy {result['accuracy_without_faults']:.3f} with the same plan without faults"
    if result["accuracy_under_fedavg"] is not None:
        yield f"accuracy {result['accuracy_under_fedavg']:.3f} with the same plan under fedavg"
    for kind, why in result["comparisons_ended"].items():
        yield f"{kind} ended before its last round: {why}"


def _table(result: Mapping[str, Any]) -> Table:
    is_claim = result["epsilon"] is not None and result["mechanism"] != "central"  # whose ledger is the server's
    caption = (
        f"charged and executed: epsilon at delta {result['delta']:g}, unit {result['unit']}, {result['relation']}"
        if is_claim
        else None
    )
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    for name in (
        "institution",
        "declared size",
        *(("charged", "executed") if is_claim else ()),
        "state",
    ):
        table.add_column(name, justify="left" if name in ("institution", "state") else "right")
    for node in result["nodes"][:_NODES_SHOWN]:
        epsilons = [shown(node[key]) for key in ("epsilon", "epsilon_executed")] if is_claim else []
        state = f"{node['state']}: {node['reason']}" if node["reason"] else node["state"]
        table.add_row(escape(node["name"]), str(node["declared_size"]), *epsilons, escape(state))
    return table
