"""The one door: `privet`, which gathers the folders' commands and turns every error into two lines."""

import os
import re
import sys
import traceback

import click
import typer

from . import __version__
from .client.cli import tasks
from .client.dataset_cli import dataset_app
from .client.join_cli import join
from .client.node_cli import node_app
from .client.policy_side import NodeSide
from .privacy.audit.cli import audit_app
from .privacy.audit.recomputed import LowerEstimate
from .privacy.budget.cli import budget_app
from .privacy.cli import plan_app
from .privacy.errors import PlanError, PolicyError, PrivetError
from .privacy.policy.cli import policy_app
from .server.federation_cli import federation_app, invite, revoke
from .server.nodes_cli import list_nodes
from .server.policy_side import ServerSide
from .server.project_cli import project_app
from .server.run_cli import run_app
from .server.serve_cli import serve
from .simulations.cli import simulate
from .simulations.sweep_cli import sweep

_USAGE, _FAILED = 2, 1

app = typer.Typer(
    name="privet",
    help="Institutions train one model together; each enforces and proves how much privacy it has spent.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command()(simulate)
app.command()(sweep)
app.add_typer(plan_app, name="plan")
app.command()(tasks)
app.add_typer(dataset_app, name="dataset")
app.add_typer(budget_app, name="budget")
app.add_typer(policy_app((NodeSide(), ServerSide())), name="policy")
app.add_typer(run_app, name="run")
federation_app.add_typer(project_app, name="project")
app.add_typer(federation_app, name="federation")
app.command()(invite)
app.command()(join)
app.command()(revoke)
app.command("server")(serve)
node_app.command("list")(list_nodes)
app.add_typer(node_app, name="node")


def _further_accountants() -> list[LowerEstimate]:
    """Opacus' PRV, where torch is installed: `privacy/` knows neither."""
    try:
        from .client.prv import prv_lower_estimate
    except ImportError:
        return []
    return [prv_lower_estimate]


app.add_typer(audit_app(_further_accountants), name="audit")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"privet {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show tracebacks of errors."),
) -> None:
    if debug:
        os.environ["PRIVET_DEBUG"] = "1"


def main() -> None:
    """Run a command; exit 0 done, 1 failed, 2 usage, 3 refused by a policy or a budget."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """The exit code of one command line."""
    try:
        code = app(arguments, prog_name="privet", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return _USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        path = context.command_path if context else "privet"
        sentences = dict.fromkeys(re.split(r"(?<=[.?]) ", error.format_message()))  # typer suggests, and click again
        return _tell(" ".join(sentences), f"{path} --help", error.exit_code, error)
    except (PlanError, PolicyError) as error:
        lists = "privet plan check" if isinstance(error, PlanError) else "privet policy check"
        more = f" (and {len(error.problems) - 1} more: {lists} lists them)" if error.problems[1:] else ""
        return _tell(error.problems[0] + more, error.remedy, error.exit_code, error)
    except PrivetError as error:
        return _tell(error.message, error.remedy, error.exit_code, error)
    except (click.Abort, KeyboardInterrupt) as error:
        return _tell("interrupted", "the same command again", _FAILED, error)
    except BrokenPipeError:
        return _FAILED
    except OSError as error:
        return _tell(
            f"{error.filename or 'a file'}: {error.strerror or error}",
            "give a path that can be used",
            _FAILED,
            error,
        )
    except Exception as error:
        return _tell(
            f"a defect in privet: {type(error).__name__}: {error}",
            "privet --debug … and report it",
            _FAILED,
            error,
        )


def _tell(message: str, remedy: str, code: int, error: BaseException) -> int:
    if os.environ.get("PRIVET_DEBUG"):
        traceback.print_exception(error)
    print(f"error: {' '.join(message.split())}\ntry: {remedy}", file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
