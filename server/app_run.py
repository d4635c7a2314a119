"""A run of an unmodified Flower app: its ServerApp in this process, over the nodes' streams. It makes no privacy claim.

The coordinator names what may run in `federation/apps.toml`, as each institution does at its node: code never travels.
"""

import importlib
import logging
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from ..privacy.channel.flower import SERVER_NODE_ID
from ..privacy.errors import FederationError, InterruptedRunError, UsageError
from ..privacy.plan_app import AppSubmission
from .run_job import Job

log = logging.getLogger("privet.server")

_HOW = 'a line such as: quickstart = "quickstart.server_app:app"'


class AppRuns:
    """Carries out app runs. `apps`: the file that says which module and object an app's name means."""

    def __init__(self, apps: Path) -> None:
        self._apps = apps

    def __call__(self, job: Job) -> Mapping[str, Any]:
        """Run the ServerApp to its end. See run_job.CarryOut."""
        submission = job.submission
        assert isinstance(submission, AppSubmission), "the kind of a submission is found before it is carried out"
        plan = submission.plan
        app, loaded_from = server_app(plan.app.name, self._apps)
        job.wait_for_nodes(plan.app.min_nodes)
        job.tell("app", {"app": plan.app.name, "loaded_from": loaded_from})
        context = Context(job.grid.run.run_id, SERVER_NODE_ID, {}, RecordDict(), dict(plan.app.config))
        try:
            app(job.grid, context)
        except InterruptedRunError:
            raise
        except Exception as error:
            log.exception("run %s: app %s failed", job.run_id, plan.app.name)
            raise FederationError(
                f"app {plan.app.name} failed: {type(error).__name__}", "see the server's log, then privet run resume"
            ) from error
        return {"traffic": list(job.grid.traffic())}


def server_app(name: str, apps: Path) -> tuple[ServerApp, str]:
    """The ServerApp that the coordinator allowed under a name, and the file of its module."""
    reference = _references(apps).get(name)
    if not isinstance(reference, str):
        raise UsageError(f"app {name} is not named in {apps}", _HOW)
    module_name, _, path = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
        found = getattr(module, path)
    except Exception as error:  # whatever somebody's module does when it is imported
        raise UsageError(f"app {name}: {reference} does not load: {type(error).__name__}", _HOW) from error
    if not isinstance(found, ServerApp):
        raise UsageError(f"app {name}: {reference} is no ServerApp", _HOW)
    return found, str(module.__file__)


def _references(apps: Path) -> Mapping[str, Any]:
    try:
        told = tomllib.loads(apps.read_text(encoding="utf-8")) if apps.exists() else {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"{apps}: cannot be read: {error}", _HOW) from None
    found = told.get("apps", {})
    return found if isinstance(found, dict) else {}
