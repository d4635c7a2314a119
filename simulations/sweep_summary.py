"""What a person sees of a sweep in the terminal: a bar while it runs, a table when it is done."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..privacy.budget.accounting import shown
from . import sweep_workers
from .sweep import Point, Settings, Sweep
from .sweep_results import BEST, CHOICE_NOTE, CSV, Findings, Row, mean_so_far, score_of
from .sweep_workers import Ended

_ROWS_SHOWN = 60


class SweepProgress:
    """A bar with the points that are done, and the combination that is best so far."""

    def __init__(self, sweep: Sweep, metric: str, console: Console) -> None:
        self._sweep = sweep
        self._metric = metric
        self._points = {point.name: point for point in sweep.points}
        self._shares = dict.fromkeys(self._points, 0.0)
        self._scores: dict[Settings, list[float]] = {}
        self._failed = 0
        for point in sweep.points:
            self._take(point)
        columns = (BarColumn(bar_width=16), TextColumn("{task.fields[told]}"), TimeRemainingColumn(compact=True))
        self._progress = Progress(*columns, console=console, refresh_per_second=2)
        total = sum(point.cost for point in sweep.points)
        self._bar = self._progress.add_task("", total=total, told=self._told())
        self._progress.update(self._bar, completed=self._completed)

    def show(self, event: sweep_workers.Progress | Ended) -> None:
        """Move the bar."""
        point = self._points[event.job.name]
        if isinstance(event, sweep_workers.Progress):
            self._shares[point.name] = min(event.round / point.plan.run.rounds, 0.99)
        elif event.failed:
            self._failed += 1
        else:
            self._take(point)
        self._progress.update(self._bar, completed=self._completed, told=self._told())

    def say(self, text: str) -> None:
        """A few words beside the bar."""
        self._progress.update(self._bar, told=text)

    def _take(self, point: Point) -> None:
        result = self._sweep.result(point)
        if result is None:
            return
        self._shares[point.name] = 1.0
        score = score_of(self._sweep, point, result, self._metric)
        if score is not None:
            self._scores.setdefault(point.settings, []).append(score)

    @property
    def _completed(self) -> float:
        return sum(share * self._points[name].cost for name, share in self._shares.items())

    def _told(self) -> str:
        done = sum(share == 1.0 for share in self._shares.values())
        told = f"{done} of {len(self._points)} points"
        told += f", {self._failed} failed" if self._failed else ""
        best = mean_so_far(self._scores, self._metric)
        if best is None:
            return told
        settings = ", ".join(f"{key}={value}" for key, value in best[0])
        return escape(f"{told}, best {self._metric} {best[1]:.3f} ({settings})")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def print_findings(sweep: Sweep, findings: Findings, seconds: float, console: Console) -> None:
    """The table, the best combination, and where the rest stands."""

    def say(text: str) -> None:
        console.print(escape(text), soft_wrap=True, highlight=False)

    say("")
    of = f"{findings.done} of {len(sweep.points)} points"
    repeated = f", {sweep.seeds} seeds each" if sweep.seeds > 1 else ""
    say(f"{sweep.name}: {of}, {len(sweep.combinations)} combinations{repeated}, {seconds:.1f} s")
    console.print(_table(sweep, findings))
    if len(findings.rows) > _ROWS_SHOWN:
        say(f"and {len(findings.rows) - _ROWS_SHOWN} more combinations in {CSV}")
    say(f"{findings.metric}: on held-out records, {findings.score_note}")
    if findings.noise_note:
        say(findings.noise_note)
    if findings.best is not None:
        say(f"best: {findings.best.label}, {findings.metric} {scored(findings.best)}")
        say(f"note: {CHOICE_NOTE}")
    best = f", {BEST}" if findings.best is not None else ""
    say(f"files in {sweep.root}: sweep.html, {CSV}{best}, points/")


def scored(row: Row) -> str:
    """Mean and standard deviation, as far as they are known."""
    if row.mean is None:
        return "–"
    return f"{row.mean:.4f}" + (f" ± {row.deviation:.4f}" if row.deviation is not None else "")


def _table(sweep: Sweep, findings: Findings) -> Table:
    terms = findings.terms
    caption = f"charged and executed: epsilon at {terms[0]}" if len(terms) == 1 else None
    if sweep.seeds > 1:
        spread = f"± is the standard deviation over {sweep.seeds} seeds"
        caption = f"{caption}; {spread}" if caption else spread
    table = Table(box=None, pad_edge=False, caption=caption, caption_justify="left")
    epsilons = ["charged", "executed"] if terms else []
    for name in (*(axis.key for axis in sweep.axes), findings.metric, "seeds", *epsilons):
        table.add_column(name, justify="right")
    if len(terms) > 1:
        table.add_column("charged and executed are epsilon at")
    for row in findings.rows[:_ROWS_SHOWN]:
        table.add_row(*map(escape, _cells(row, bool(terms), len(terms) > 1)))
    return table


def _cells(row: Row, is_private: bool, has_terms: bool) -> list[str]:
    claim = row.claim
    cells = [*(value for _, value in row.settings), scored(row), f"{len(row.scores)} of {row.seeds}"]
    if is_private:
        cells += [shown(claim.epsilon), shown(claim.epsilon_executed)] if claim else ["–", "–"]
    return [*cells, claim.terms if claim else "–"] if has_terms else cells
