"""A run of an unmodified Flower app: its ServerApp in this process, over the nodes' streams. It makes no privacy claim.

The coordinator names what may run in `federation/apps.toml`, as each institution does at its node: code never travels.
privet keeps no checkpoint of an app: a run that goes on after a stop or a crash begins anew, at the nodes too.
"""

import copy
import importlib
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from ..privacy.channel.flower import SERVER_NODE_ID, RunNotRunningException
from ..privacy.errors import FederationError, InterruptedRunError, PrivetError, UsageError
from ..privacy.plan_app import AppSubmission
from .app_grid import AppGrid
from .app_log import AppLog, Tell
from .app_names import read_apps
from .replies import Failure
from .run_job import Job

log = logging.getLogger("privet.server")

APP_LOG = "app.log"  # in the run's folder
_LOG_BYTES = 16 * 2**20  # of the log of one run; what is said beyond is told to who looks on, and not kept


class AppRuns:
    """Carries out app runs. `apps`: the file that says which module and object an app's name means."""

    def __init__(self, apps: Path) -> None:
        self._apps = apps
        self._log = AppLog()

    def __call__(self, job: Job) -> Mapping[str, Any]:
        """Run the ServerApp to its end. See run_job.CarryOut."""
        submission = job.submission
        assert isinstance(submission, AppSubmission), "the kind of a submission is found before it is carried out"
        plan = submission.plan
        app, loaded_from = server_app(plan.app.name, self._apps)
        page = _Page(job)
        page.call_roll()
        job.wait_for_nodes(plan.app.min_nodes)
        page.begin(plan.app.name, loaded_from)
        context = Context(job.grid.run.run_id, SERVER_NODE_ID, {}, RecordDict(), dict(plan.app.config))
        try:
            with _said(job) as tell, self._log.told(tell), _failing_as(plan.app.name, job.run_id):
                app(AppGrid(job.grid, page.note), context)
        finally:
            page.keep()
        return page.standing


class _Page:
    """What the book keeps of an app's run: who is asked, who refused or failed, how often it began, bytes both ways."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._lock = threading.Lock()
        before = dict(job.record().standing)
        self._before = before.get("traffic", [0, 0])
        self.standing: dict[str, Any] = {"refused": {}} | before

    def call_roll(self) -> None:
        """Tell who is asked, who is not and why, and who failed: once, and again when that has changed."""
        grid = self._job.grid
        members = [grid.name_of(node_id) for node_id in grid.get_node_ids()]
        roll = {"members": members, "refused": dict(self.standing["refused"]), "not_asked": dict(grid.notes())}
        with self._lock:
            if any(self.standing.get(key) != value for key, value in roll.items()):
                self.standing |= roll
                self._job.tell("roll", roll, standing=self.standing)

    def begin(self, app: str, loaded_from: str) -> None:
        """The app begins, or begins anew."""
        self.standing |= {"refused": {}, "begun": self.standing.get("begun", 0) + 1}
        self.call_roll()
        told = {"app": app, "loaded_from": loaded_from, "is_anew": self.standing["begun"] > 1}
        self._job.tell("app", told, standing=self.standing)

    def note(self, node_id: int, why: Failure) -> None:
        """A node gave no answer that can be used. From any thread of the app."""
        name = self._job.grid.name_of(node_id) or str(node_id)
        with self._lock:
            refused = {**self.standing["refused"], name: why.text}
            if refused == self.standing["refused"]:
                return
            self.standing |= {"refused": refused}
            told = {"node": name, "code": why.code, "disclosed": why.disclosed}
            self._job.tell("refused", told, standing=self.standing)

    def keep(self) -> None:
        """Enter the bytes that passed."""
        sent, received = self._job.grid.traffic()
        self.standing |= {"traffic": [self._before[0] + sent, self._before[1] + received]}
        self._job.tell("app-ended", {}, standing=self.standing)


@contextmanager
def _said(job: Job) -> Iterator[Tell]:
    """Where the app's lines go: a file in the run's folder, and whoever looks on."""
    path = job.folder.root / APP_LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:

        def tell(line: str) -> None:
            if file.tell() < _LOG_BYTES:
                file.write(f"{line}\n")
                file.flush()
            job.mention("said", {"line": line})

        yield tell


@contextmanager
def _failing_as(name: str, run_id: str) -> Iterator[None]:
    """What an app raises, as what an operator is told. Its text stays in the server's log: it is somebody else's."""
    try:
        yield
    except RunNotRunningException:
        raise InterruptedRunError(f"run {run_id} was stopped", f"privet run resume {run_id}") from None
    except PrivetError:
        raise
    except (Exception, SystemExit) as error:
        log.exception("run %s: app %s failed", run_id, name)
        raise FederationError(f"app {name} failed: {type(error).__name__}", "see the server's log") from error


def server_app(name: str, apps: Path) -> tuple[ServerApp, str]:
    """The ServerApp that the coordinator allowed under a name, and the file of its module."""
    how = f"privet federation allow-app {name} MODULE:OBJECT"
    reference = read_apps(apps).get(name)
    if reference is None:
        raise UsageError(f"app {name} is not allowed at the server", how)
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, attribute)
    except (Exception, SystemExit) as error:  # whatever somebody's module does when it is imported
        log.exception("app %s: %s does not load", name, reference)
        raise UsageError(f"app {name}: {reference} does not load: {type(error).__name__}", how) from error
    if not isinstance(found, ServerApp):
        raise UsageError(f"app {name}: {reference} is no ServerApp", how)
    return copy.copy(found), str(module.__file__)  # Flower keeps a run's strategy in the object
