"""The rules of the house (docs/adr/0001, 0006): arrows point down, server and client never meet, who may know what."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("privacy", "client", "server", "simulations")
# Room -> the rooms that it may import from, besides itself.
ALLOWED = {
    "privacy": set(),
    "client": {"privacy"},
    "server": {"privacy"},
    "simulations": {"server", "client", "privacy"},
}
# Library -> who may import it, as path prefixes.
KNOWS: dict[str, tuple[str, ...]] = {
    "torch": ("client/", "simulations/"),
    "cedarpy": ("privacy/policy/",),
    "opacus": ("client/prv.py", "client/sampled.py"),
    "flwr": (
        "client/app.py",
        "client/app_run.py",
        "client/app_worker.py",
        "client/describer.py",
        "client/flower_app.py",
        "client/link.py",
        "client/metrics.py",
        "client/party.py",
        "client/seat.py",
        "client/session.py",
        "client/teller.py",
        "client/trained_run.py",
        "server/app.py",
        "server/app_grid.py",
        "server/app_run.py",
        "server/asks.py",
        "server/central_federation.py",
        "server/federation.py",
        "server/gathered.py",
        "server/grid.py",
        "server/replies.py",
        "server/serving.py",
        "server/stream.py",
        "server/roll_call.py",
        "server/run_grid.py",
        "server/scaffold.py",
        "server/selection.py",
        "server/strategies.py",
        "server/witnesses.py",
        "simulations/cohort_grid.py",
        "simulations/faults.py",
        "simulations/flower.py",
        "simulations/grid.py",
        "simulations/ray_actor.py",
        "simulations/ray_grid.py",
        "simulations/scenario.py",
        "simulations/variates.py",
        "privacy/channel/",
    ),
    "grpc": (
        "privacy/channel/",
        "server/link.py",
        "server/stream.py",
        "server/gate.py",
        "server/streams_service.py",
        "server/control.py",
        "server/enrolment.py",
        "server/health.py",
        "server/serving.py",
        "client/link.py",
        "client/session.py",
        "client/join.py",
    ),
    "dp_accounting": ("privacy/budget/accounting.py",),
    "sqlalchemy": ("server/database.py", "server/members.py", "server/projects.py", "server/run_book.py"),
    "ray": ("simulations/ray_workers.py",),
    "sqlite3": (
        "privacy/budget/ledger.py",
        "privacy/budget/ledger_file.py",
        "privacy/audit/reading.py",
        "server/database.py",
    ),
}
# What flwr keeps internal may move with any release: one file touches it.
FLWR_INTERNALS = ("flwr.supercore.", "flwr.common.", "flwr.server.", "flwr.client.", "flwr.proto.", "flwr.superlink.")
KNOWS_INTERNALS = ("privacy/channel/flower.py",)


def modules() -> list[Path]:
    found = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return [*sorted(found), ROOT / "__init__.py", ROOT / "__main__.py"]


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, absolute: our own as `privet.room.module`."""
    inside = ("privet", *path.relative_to(ROOT).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(inside[: len(inside) - node.level]) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_scan_sees_relative_imports() -> None:
    """The scanner itself: it must see `from ..privacy.errors import X` for what it is."""
    assert "privet.privacy.errors" in set(imported(ROOT / "client" / "node.py"))
    assert "privet.server.federation" in set(imported(ROOT / "simulations" / "scenario.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_down(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        rooms = {name.split(".")[1] for name in imported(path) if name.startswith("privet.") and name.count(".") > 0}
        above = (rooms & set(ROOMS)) - ALLOWED[room] - {room}
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("library", list(KNOWS))
def test_only_some_files_know_a_library(library: str) -> None:
    for path in modules():
        place = path.relative_to(ROOT).as_posix()
        if any(name.split(".")[0] == library for name in imported(path)):
            assert place.startswith(KNOWS[library]), f"{place} imports {library}"


def test_what_flwr_keeps_internal_is_touched_in_one_file() -> None:
    for path in modules():
        place = path.relative_to(ROOT).as_posix()
        internal = [name for name in imported(path) if f"{name}.".startswith(FLWR_INTERNALS)]
        assert not internal or place in KNOWS_INTERNALS, f"{place} imports {internal}"


def test_folders_import_one_another_relatively() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and not node.level:
                assert (node.module or "").split(".")[0] != "privet", f"{path}: import relatively"


def test_nothing_is_unpickled_or_evaluated() -> None:
    forbidden = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
    for path in modules():
        assert not forbidden & {name.split(".")[0] for name in imported(path)}, path
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"eval", "exec", "torch.load", "__import__"}, f"{path}:{node.lineno} {called}"


def test_every_folder_with_code_is_a_listed_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    folders = {path.parent for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    expected = {".".join(("privet", *folder.relative_to(ROOT).parts)) for folder in folders}
    assert set(settings["packages"]) == {"privet", *expected}


def test_modules_hold_one_idea() -> None:
    """Above 400 lines a module wants to be two (STYLE)."""
    long = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert max(long.values()) <= 400, long


def test_constraints_pin_every_direct_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower().splitlines()
    pins = {line.split("==")[0].replace("_", "-") for line in lines if "==" in line}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in wanted:
        name = requirement.split(">")[0].split("=")[0].split("[")[0].strip().lower()
        assert name in pins, f"{name} is not pinned in constraints.txt"
