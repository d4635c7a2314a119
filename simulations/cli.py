"""`privet simulate`: a whole federation on this machine."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from ..privacy.errors import FederationError, InterruptedRunError, PlanError, UsageError
from ..privacy.plan import Plan
from ..privacy.policy.policy_file import read_rules

if TYPE_CHECKING:  # torch and flwr take seconds to import: only where something is simulated
    import torch

    from ..server.checkpoints import State
    from ..server.run_folder import RunFolder
    from .cohort.passes import Precision
    from .comparisons import Compared
    from .engine import EngineName
    from .scenario import Scenario

PLANS = Path(__file__).parent / "plans"
_OPTIONS = "options.json"  # what of the command line a resumed run must know


def shipped_plans() -> dict[str, Path]:
    """The plans that come with privet, by name."""
    return {path.stem: path for path in sorted(PLANS.glob("*.toml"))}


def plan_path(name: str) -> Path:
    """The file of a plan that ships, or the file of that name; raise PlanError where it is neither."""
    path = shipped_plans().get(name, Path(name))
    if not path.exists() and path.suffix != ".toml":
        raise PlanError(
            [f"{name}: no such plan; {', '.join(shipped_plans())} ship with privet"],
            "privet plan new PLAN.toml writes one",
        )
    return path


def simulate(
    plan: Annotated[
        str | None, typer.Argument(help="A plan's file, or the name of one that ships.", metavar="[PLAN]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A new folder for the results (default: runs/NAME-N).")] = None,
    seed: Annotated[int | None, typer.Option(help="Takes the place of run.seed.", min=0)] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", help="section.key=value takes the place of a key; no value removes it."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also train without privacy, and without faults, to see what they cost.")
    ] = False,
    ledgers: Annotated[
        Path | None, typer.Option(help="Continue these simulated ledgers (default: new ones, in the results' folder).")
    ] = None,
    policy: Annotated[
        Path | None, typer.Option(help="A policy that every simulated node asks (default: none).", metavar="FILE")
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with an interrupted run, in its folder.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, or a torch device such as cuda:0.")] = "auto",
    engine: Annotated[
        str | None, typer.Option(help="auto (the default), cohort (nodes trained together), sequential or ray.")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="How many processes train (default: one a core). None changes the result.", min=1)
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 (the default), or bfloat16 to multiply in, by engine cohort.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json instead of a summary.")] = False,
) -> None:
    """Train one model over simulated institutions, with the plan, the rules and the ledgers of a deployment."""
    console = Console(stderr=True, quiet=as_json and not sys.stderr.isatty())
    started = time.monotonic()
    with console.status("loading torch and flower"):
        import torch

        from ..client.device import device_of
        from .cohort.memory import keep_memory
        from .comparisons import comparisons
        from .scenario import Scenario
        from .world import World
    # Small models on two threads are several times slower than on one (measured); nodes train one after the other.
    torch.set_num_threads(1)
    chosen = device_of(device)
    if resume is not None:
        if plan or out or assignments or ledgers or policy or engine or precision or seed is not None:
            raise UsageError("--resume goes on with the plan in its folder", "give --resume DIR alone")
        kept_compare, kept_ledgers, trained_by, bits = _kept_options(resume)
        scenario = Scenario.resumed(_folder(resume), chosen, kept_ledgers, trained_by, processes, bits)
        compare = compare or kept_compare
    else:
        trained_by, bits = _engine(engine or "auto"), _precision(precision or "float32")
        asked = _plan(plan or "digits", assignments or [], seed)
        from ..client.tasks.registry import load_task

        rules = read_rules(policy) if policy else None
        world = World.of(asked, load_task(asked.run.task))
        folder = _folder(out or _free_folder(asked.run.name))
        scenario = Scenario.begun(asked, folder, world, chosen, ledgers, rules, trained_by, processes, bits)
    _keep_options(scenario.folder.root, compare, scenario.ledgers, trained_by, bits)
    if scenario.engine.name == "cohort":
        keep_memory()
    with closing(scenario):
        state = _carried_out(scenario, console)
        others = comparisons(scenario.plan) if compare else {}
        compared = {
            kind: _compared(scenario, kind, other, chosen, (trained_by, processes, bits), console)
            for kind, other in others.items()
        }
        _finish(scenario, state, compared, time.monotonic() - started, as_json)


def _finish(
    scenario: "Scenario",
    state: "State",
    compared: "Mapping[str, Compared]",
    seconds: float,
    as_json: bool,
) -> None:
    from .report import write_report
    from .result import result_of, write_result
    from .summary import print_summary

    result = result_of(scenario, state, seconds, compared)
    root = scenario.folder.root
    write_result(result, root / "result.json")
    write_report(result, root / "report.html")
    if as_json:
        print(json.dumps(result))
    else:
        print_summary(result, root, Console())


def _compared(
    scenario: "Scenario",
    kind: str,
    plan: Plan,
    device: "torch.device",
    how: "tuple[EngineName, int | None, Precision]",
    console: Console,
) -> "Compared":
    """One comparison. That it cannot go on is a result too: a model that faults have broken trains no more."""
    from .comparisons import Compared
    from .scenario import Scenario

    folder = _folder(scenario.folder.root / kind)
    if folder.submission.exists():
        other = Scenario.resumed(folder, device, None, *how)
    else:
        other = Scenario.begun(plan, folder, scenario.world, device, None, None, *how)
    console.print(f"to compare, {kind.replace('-', ' ')}:")
    with closing(other):
        try:
            return Compared(other.views.until(_carried_out(other, console).round))
        except FederationError as error:
            console.print(f"{kind} ended: {error.message}", markup=False, highlight=False, soft_wrap=True)
            return Compared(other.views.until(plan.run.rounds), error.message)


def _carried_out(scenario: "Scenario", console: Console) -> "State":
    from .comparisons import KINDS
    from .summary import RoundProgress

    root = scenario.folder.root
    logging.getLogger("flwr").setLevel(logging.ERROR)
    scenario.muster()
    with RoundProgress(scenario.submission, console) as progress:
        try:
            return scenario.run(progress.show)
        except KeyboardInterrupt:
            raise InterruptedRunError(
                f"interrupted after round {progress.round} of {scenario.submission.plan.run.rounds}; its state is kept",
                f"privet simulate --resume {root.parent if root.name in KINDS else root}",
            ) from None
        except FederationError as error:
            raise FederationError(error.message, f"see {root / 'nodes.log'} for each node's own reason") from error


def _plan(name: str, assignments: list[str], seed: int | None) -> Plan:
    from ..privacy.plan_file import read_plan

    return read_plan(plan_path(name), [*assignments, *([f"run.seed={seed}"] if seed is not None else [])])


def _free_folder(name: str) -> Path:
    runs = Path("runs")
    number = 1
    while (runs / f"{name}-{number}").exists():
        number += 1
    return runs / f"{name}-{number}"


def _folder(root: Path) -> "RunFolder":
    from ..server.run_folder import RunFolder

    return RunFolder(root)


def _engine(name: str) -> "EngineName":
    from .engine import ENGINES

    for known in ENGINES:
        if name == known:
            return known
    raise UsageError(f"--engine {name}: not one of {', '.join(ENGINES)}", "--engine auto")


def _precision(name: str) -> "Precision":
    from .engine import PRECISIONS

    for known in PRECISIONS:
        if name == known:
            return known
    raise UsageError(f"--precision {name}: not one of {', '.join(PRECISIONS)}", "--precision float32")


def _keep_options(root: Path, compare: bool, ledgers: Path, engine: str, precision: str) -> None:
    kept = {"compare": compare, "ledgers": str(ledgers.resolve()), "engine": engine, "precision": precision}
    (root / _OPTIONS).write_text(json.dumps(kept), encoding="utf-8")


def _kept_options(root: Path) -> "tuple[bool, Path | None, EngineName, Precision]":
    path = root / _OPTIONS
    if not path.exists():
        return False, None, "auto", "float32"
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
        engine, precision = _engine(options["engine"]), _precision(options.get("precision", "float32"))
        return bool(options["compare"]), Path(options["ledgers"]), engine, precision
    except (ValueError, KeyError, TypeError, UsageError):
        raise UsageError(f"{path}: not what privet wrote", "restore the file, or begin a new run") from None
