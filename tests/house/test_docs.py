"""What the documentation says of the program is true: commands, options, keys, defaults, fields, links, paths."""

import ast
import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from privet.__main__ import app, run
from privet.client.tasks.registry import installed_tasks, load_task
from privet.privacy.errors import PlanError
from privet.privacy.plan import LARGEST_INTEGER, FaultsSection, Plan
from privet.privacy.plan_file import parse_plan
from privet.privacy.plan_strategies import (
    KEEPING_STRATEGIES,
    REFUSED_STRATEGIES,
    REQUIRED_STRATEGY_KEYS,
    STRATEGY_KEYS,
)
from privet.simulations import result
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path for folder in (".", "docs", "docs/adr", "examples/flower-app") for path in (ROOT / folder).glob("*.md")
)
ROOMS = "privacy|client|server|simulations|tests|benchmarks|examples|docs"
# Where a machine keeps somebody's files: none of it belongs into the repository.
LISTS = {"sizes"}  # "one number a node" says more than "at least 1"
# The plans whose errors docs/plan.md shows.
BAD_PLANS = {
    "bad.toml": """\
[run]
name = "Digits"
task = "digits"
rounds = 0
round = 3

[aggregtion]
strategy = "fedavg"

[training]
learning-rate = 1.0

[privacy]
unit = "none"
sampling-rate = 1.5
""",
    "worse.toml": """\
[run]
name = "digits"
task = "digits"
rounds = 5

[aggregation]
strategy = "krum"

[training]
learning-rate = 1.0
optimizer = "adam"
momentum = 0.9

[privacy]
unit = "record"
epsilon = 3.0
noise-multiplier = 1.0
delta = 1e-5
clip-norm = 1.0
sampling-rate = 0.5
""",
}
MACHINE_PATH = re.compile(r"(?<![\w.$}])/(?:work|root|home|Users|private|tmp)/\w")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def commands_in(text: str) -> Iterator[str]:
    """`privet …` in code spans, and in the lines of code blocks without what a shell takes for a comment."""
    yield from re.findall(r"`(privet(?: [^`]*)?)`", text)
    for line in re.sub(r" \\\n +", " ", text).splitlines():  # a line that goes on is one
        if line.startswith(("    privet ", "    .venv/bin/privet ")):
            yield line.strip().removeprefix(".venv/bin/").split(" #")[0]


def leaves(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path


def problem_of_command(line: str) -> str | None:
    """Why the program has no such command; None when it has."""
    words = shlex.split(line)[1:]
    command, options = typer.main.get_command(app), {"--help"}
    options |= {name for parameter in command.params for name in parameter.opts}
    while words and isinstance(command, click.Group):
        if words[0].startswith("-"):
            break
        word = words.pop(0)
        if word not in command.commands:
            return f"no command {word!r}"
        command = command.commands[word]
        options = {"--help"} | {name for parameter in command.params for name in parameter.opts}
    unknown = [word for word in words if word.startswith("-") and word.split("=")[0] not in options]
    return f"no option {unknown[0]}" if unknown else None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_that_a_page_names_exists(page: Path) -> None:
    wrong = {line: problem_of_command(line) for line in commands_in(page.read_text(encoding="utf-8"))}
    assert not {line: problem for line, problem in wrong.items() if problem}


def test_a_command_that_does_not_exist_is_noticed() -> None:
    """The scanner itself."""
    assert problem_of_command("privet simulat") == "no command 'simulat'"
    assert problem_of_command("privet simulate --sett a=b") == "no option --sett"
    assert problem_of_command("privet simulate --set privacy.epsilon=1") is None
    assert list(
        commands_in("a `privet tasks` b\n    privet plan new p.toml   # why\n    privet a \\\n        --b\n")
    ) == [
        "privet tasks",
        "privet plan new p.toml  ",
        "privet a --b",
    ]


def test_readme_names_every_command() -> None:
    lines = list(commands_in(text_of("README.md")))
    for path in leaves(typer.main.get_command(app)):
        assert any(" ".join(("privet", *path)) in line for line in lines), f"README names no privet {' '.join(path)}"


@pytest.mark.parametrize("path", [(), *leaves(typer.main.get_command(app)), ("plan",)], ids=" ".join)
def test_every_command_helps(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*path, "--help"]) == 0
    assert " ".join(("privet", *path)) in capsys.readouterr().out


def test_readme_names_every_exit_code() -> None:
    for code, word in ((0, "done"), (1, "failed"), (2, "usage"), (3, "refused")):
        assert re.search(rf"^\| {code} \| {word}", text_of("README.md"), re.M), code
    assert run(["simulate", "--no-such-option"]) == 2
    assert run(["plan", "check", "no-such-file.toml"]) == 2


def test_readme_shows_the_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^(\w+):", text_of("Makefile"), re.M))
    shown = set(re.findall(r"^    make (\w+)", text_of("README.md") + text_of("CONTRIBUTING.md"), re.M))
    assert {"demo", "test"} <= shown <= targets


@pytest.mark.parametrize(("command", "heading"), [("simulate", "## Running one"), ("sweep", "## Sweeping")])
def test_simulation_page_names_every_option(command: str, heading: str) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, click.Group)
    page = text_of("docs/simulation.md").split(heading)[1].split("\n## ")[0]
    for parameter in group.commands[command].params:
        if isinstance(parameter, click.Option):
            assert f"| `{parameter.opts[0]}" in page, parameter.opts[0]


def test_simulation_page_names_every_field_of_the_result() -> None:
    page = text_of("docs/simulation.md").split("## result.json")[1]
    tree = ast.parse(inspect.getsource(result))
    keys = {key for node in ast.walk(tree) if isinstance(node, ast.Dict) for key in node.keys}
    fields = {key.value for key in keys if isinstance(key, ast.Constant) and isinstance(key.value, str)} - {
        "alpha",
        "shards_per_node",
        "sizes",
    }
    assert len(fields) > 40
    assert not {field for field in fields if f"`{field}`" not in page}


def default_of(field: FieldInfo) -> str:
    """A key's default as docs/plan.md writes it."""
    if field.is_required():
        return "*required*"
    if field.default is None:
        return "*not set*"
    if isinstance(field.default, tuple):
        return f"`[{', '.join(_toml(value) for value in field.default)}]`"
    return f"`{_toml(field.default)}`"


def _toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in Plan.model_fields.items():
        options = getattr(field.annotation, "__args__", (field.annotation,))
        yield from ((name, o) for o in options if isinstance(o, type) and issubclass(o, BaseModel))
    yield "simulation.faults", FaultsSection


def rows_of(section: str) -> dict[str, tuple[str, str]]:
    """Key -> range and default, as docs/plan.md has them."""
    page = text_of("docs/plan.md").split(f"# `[{section}]`")[1].split("\n## ")[0].split("\n### ")[0]
    rows = re.findall(r"^\| `([a-z0-9-]+)` \|.*\| ([^|]+) \| ([^|]+) \|$", page, re.M)
    return {key: (span, default) for key, span, default in rows}


def bounds_of(schema: object) -> Iterator[float]:
    """Every number that limits a value or how many there are, however deep in a JSON schema."""
    if isinstance(schema, dict):
        for name, inner in schema.items():
            if re.search(r"(?i)(min|max)", name) and isinstance(inner, int | float):
                yield inner
            else:
                yield from bounds_of(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from bounds_of(inner)


def _written(bound: float) -> str:
    """A limit as a person writes it."""
    if bound == LARGEST_INTEGER:
        return "2^53 - 1"
    return f"{bound:,.0f}" if float(bound).is_integer() else f"{bound:g}"


@pytest.mark.parametrize(("section", "model"), list(sections()))
def test_plan_page_names_every_key_with_its_limits_and_its_default(section: str, model: type[BaseModel]) -> None:
    rows = rows_of(section)
    expected = {field.alias or name: default_of(field) for name, field in model.model_fields.items()}
    assert {key: default for key, (_, default) in rows.items()} == expected
    for key, schema in model.model_json_schema()["properties"].items():
        limits = {bound for bound in bounds_of(schema) if not (key in LISTS and bound == 1)}
        spans = rows[key][0]
        missing = [
            bound
            for bound in map(_written, limits)
            if not re.search(rf"(?<![\w.]){re.escape(bound)}(?![\w]|[.,]\d)", spans)
        ]
        assert not missing, f"{section}.{key}: {spans!r} does not say {missing}"


def test_plan_page_has_a_heading_for_every_section() -> None:
    headings = re.findall(r"^## `\[([a-z]+)\]`$", text_of("docs/plan.md"), re.M)
    assert headings == list(Plan.model_fields)


def test_plan_page_names_what_each_strategy_reads_and_keeps() -> None:
    page = text_of("docs/plan.md")
    rows = {
        name: (reads, keeps)
        for name, reads, keeps in re.findall(r"^\| `(\w+)` \(.*?\) \| (.*) \| (.*) \|$", page, re.M)
    }
    assert set(rows) == set(STRATEGY_KEYS)
    for name, (reads, keeps) in rows.items():
        assert set(re.findall(r"`([a-z0-9-]+)`", reads)) == {key.replace("_", "-") for key in STRATEGY_KEYS[name]}, name
        assert ("required" in reads) == (name in REQUIRED_STRATEGY_KEYS), name
        assert keeps.startswith("all updates") == (name in KEEPING_STRATEGIES), name
    for name in REFUSED_STRATEGIES:
        assert f"| `{name}` | " in page, name


def test_the_errors_that_the_plan_page_shows_are_those_of_the_program() -> None:
    told: list[str] = []
    for origin, text in BAD_PLANS.items():
        with pytest.raises(PlanError) as caught:
            parse_plan(text, origin)
        told += caught.value.problems
    assert re.findall(r"^    error: (.*)$", text_of("docs/plan.md"), re.M) == told


def test_task_page_names_every_option_and_its_default() -> None:
    page = text_of("docs/tasks.md").split("## Options")[1]
    shipped = [name for name, point in installed_tasks().items() if point.value.startswith("privet.")]
    assert len(shipped) == 3
    for name in shipped:
        for option, default in load_task(name).options.items():
            rows = re.findall(rf"^\| .*\| `{option}` \| .* \| `?([^|`]+)`? \|$", page, re.M)
            assert str(default) in [row.strip() for row in rows], f"{name}: {option} = {default}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target.split("#")[0]).exists(), f"{named(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_that_a_page_names_exist(page: Path) -> None:
    for place in re.findall(rf"`((?:{ROOMS})/[\w./-]*)`", page.read_text(encoding="utf-8")):
        assert (ROOT / place).exists(), f"{named(page)} names {place}"


def test_every_decision_is_in_the_index_and_says_when() -> None:
    index = text_of("docs/adr/README.md")
    for path in sorted((ROOT / "docs" / "adr").glob("0*.md")):
        page = path.read_text(encoding="utf-8")
        assert f"({path.name})" in index, path.name
        assert page.startswith(f"# {path.name[:4]}: "), path.name
        assert re.search(r"^- Status: (proposed|accepted|overruled)", page, re.M), path.name
        assert re.search(r"^- Date: \d{4}-\d{2}-\d{2}$", page, re.M), path.name


def test_utility_page_is_the_work_of_its_script() -> None:
    page = text_of("docs/utility.md")
    assert "written by `benchmarks/utility.py`" in page
    assert len(re.findall(r"^\| (?:digits|breast cancer), .*\| \d+ \|$", page, re.M)) == 3


def test_no_file_names_a_path_of_somebodys_machine() -> None:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for place in filter(None, listed.split("\0")):
        path = ROOT / place
        if path.is_file() and path != Path(__file__):
            found = MACHINE_PATH.search(path.read_text(encoding="utf-8", errors="ignore"))
            assert not found, f"{place}: {found.group() if found else ''}"
