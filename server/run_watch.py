"""Following a run from a terminal: a bar with what is known, and a line for whoever refuses or drops out."""

import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from ..privacy.budget.accounting import shown
from ..privacy.budget.statement_text import terms
from ..privacy.channel.control_client import ControlClient, UnreachableError, View
from .run_text import epsilon_lines, event_line, metrics_text, size_text, why_text

# How long one who follows waits for a server that went away: a restart takes seconds, a new machine some minutes.
PATIENCE_SECONDS = 900.0
_LONGEST_PAUSE = 10.0

Pause = Callable[[float], None]


def followed(client: ControlClient, run_id: str, away: Callable[[], None], pause: Pause = time.sleep) -> Iterator[View]:
    """What happens to a run until it has ended, also over restarts of the server. `away` is called when it is gone."""
    after, lost_since, seconds = 0, None, 0.5
    while True:
        try:
            for view in client.watch(run_id, after, follow=True):
                lost_since, seconds = None, 0.5
                after = view["event"]["number"] if "event" in view else after
                yield view
            return
        except UnreachableError:
            if after == 0 or (lost_since and time.monotonic() - lost_since > PATIENCE_SECONDS):
                raise
            if lost_since is None:
                away()
            lost_since = lost_since or time.monotonic()
        pause(seconds)
        seconds = min(2 * seconds, _LONGEST_PAUSE)


class Watching:
    """Shows what is followed. Where no terminal looks on: a line for each event, and what an app says."""

    def __init__(self, console: Console) -> None:
        self.run: View = {}
        self._console = console
        self._bar: tuple[Progress, TaskID] | None = None
        self._cohort: list[str] = []
        self._answered: set[str] = set()
        self._told_epsilon: list[str] = []

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[told]}"))
            progress = Progress(*columns, TimeElapsedColumn(), console=self._console, transient=True)
            self._bar = progress, progress.add_task("waiting", total=None, told="")
            progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar[0].stop()

    def show(self, view: View) -> None:
        """One thing that the server told."""
        if "run" in view:
            self.run = view["run"]
            self._tell_epsilon()
        if "event" in view:
            self._show_event(view["event"])
        if "notice" in view:
            self._take(view["notice"]["kind"], view["notice"]["body"])
        self._refresh()

    def away(self) -> None:
        """The server is gone."""
        self._print("the server cannot be reached; trying again")

    def _show_event(self, event: dict[str, Any]) -> None:
        body = event["body"]
        if event["kind"] == "round":
            self.run = {**self.run, "round": body["round"]} | ({"metrics": body["metrics"]} if body["metrics"] else {})
        if self._bar is None or event["kind"] != "round" or body.get("missing"):
            self._print(event_line(event))

    def _take(self, kind: str, body: dict[str, Any]) -> None:
        if kind == "round-begun":
            self._cohort, self._answered = body["cohort"], set()
        elif kind == "answer":
            self._answered.add(body["node"])
        elif kind == "said":
            self._print(body["line"])
        elif kind == "missed" and self._bar is not None:
            self._print(f"round {body['round']}: {body['node']} {why_text(body)}")

    def _tell_epsilon(self) -> None:
        lines = epsilon_lines(self.run)
        if self._bar is None and lines != self._told_epsilon:
            for line in lines:
                if line not in self._told_epsilon:
                    self._print(line)
            self._told_epsilon = lines

    def _refresh(self) -> None:
        if self._bar is None or not self.run:
            return
        progress, task = self._bar
        rounds, number = self.run.get("rounds"), self.run.get("round", 0)
        description = f"round {number} of {rounds}" if rounds else str(self.run.get("state"))
        progress.update(task, description=description, completed=number, total=rounds, told=escape(self._told()))

    def _told(self) -> str:
        parts = []
        if self._cohort:
            parts.append(f"{len(self._answered)} of {len(self._cohort)} answered")
        if self.run.get("metrics"):
            parts.append(metrics_text(self.run["metrics"]))
        claim, spent = self.run.get("claim"), self.run.get("epsilon") or {}
        if claim:
            executed = max(spent.get("executed", {}).values(), default=0.0)
            limit = terms(claim["unit"], claim["relation"], claim["delta"])
            parts.append(f"epsilon charged {shown(claim['epsilon'])}, executed {shown(executed)} {limit}")
        traffic = self.run.get("traffic") or {}
        if traffic.get("sent"):
            parts.append(f"{size_text(traffic['sent'])} out, {size_text(traffic['received'])} in")
        return "; ".join(parts)

    def _print(self, line: str) -> None:
        console = self._bar[0].console if self._bar else self._console
        console.print(line, markup=False, highlight=False, soft_wrap=True)
