"""Reading a plan from TOML, and saying precisely what is wrong with one: line, nearest known key, allowed range.

A file with a section `[app]` is the plan of a Flower app (plan_app.py), which makes no claim; any other trains a task.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import tomli_w
from pydantic import BaseModel, ValidationError

from .errors import PlanError
from .plan import Plan
from .plan_app import AppPlan
from .toml_file import problems_of

# A plan is a page of text; anything larger is not one.
PLAN_BYTES = 64 * 1024

Table = dict[str, object]
_INNER_TABLE = ["simulation", "faults"]  # the only table in a table
_SET = "mend what --set says; privet plan new PLAN writes a plan with every key explained"
_CHECK = "mend the plan, then: privet plan check {}"
_AnyPlan = TypeVar("_AnyPlan", bound=BaseModel)


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan in a file, with `section.key=value` overrides put in its place.

    Raises PlanError with one problem a line: what, where, and the nearest thing that would be right.
    """
    return parse_plan(text_of(path), str(path), overrides)


def parse_plan(text: str, origin: str, overrides: Sequence[str] = ()) -> Plan:
    """The plan in TOML `text`; `origin` names it in messages."""
    return _validated(Plan, text, origin, overrides)


def read_any_plan(path: Path, overrides: Sequence[str] = ()) -> Plan | AppPlan:
    """The plan in a file, of a task or of a Flower app; told apart by `[app]`. Raises as `read_plan`."""
    text = text_of(path)
    if "app" in _table_of(text, str(path), _CHECK.format(path)):
        return _validated(AppPlan, text, str(path), overrides)
    return _validated(Plan, text, str(path), overrides)


def plan_text(plan: Plan | AppPlan) -> str:
    """The plan as TOML that reads back to the same plan, every default written out."""
    return tomli_w.dumps(plan.model_dump(mode="json", by_alias=True, exclude_none=True))


def text_of(path: Path) -> str:
    """The text of a plan's file; raise PlanError where it cannot be one."""
    try:
        with path.open("rb") as file:
            content = file.read(PLAN_BYTES + 1)
    except OSError as error:
        raise PlanError(
            [f"{path}: cannot be read: {error.strerror or error}"],
            "privet plan new PLAN writes a commented plan",
        ) from None
    if len(content) > PLAN_BYTES:
        raise PlanError([f"{path}: larger than {PLAN_BYTES} bytes, so not a plan"], "privet plan new PLAN")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise PlanError([f"{path}: not TOML: it is not UTF-8 text"], "privet plan new PLAN") from None


def _validated(model: type[_AnyPlan], text: str, origin: str, overrides: Sequence[str]) -> _AnyPlan:
    remedy = _CHECK.format(origin) if not overrides else _SET
    table = _table_of(text, origin, remedy)
    overridden = [_override(table, assignment) for assignment in overrides]
    try:
        return model.model_validate(table)
    except ValidationError as error:
        raise PlanError(problems_of(error, model, text, origin, overridden), remedy) from None


def _table_of(text: str, origin: str, remedy: str) -> Table:
    try:
        table: Table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits, and of deep nesting
        raise PlanError([f"{origin}: not TOML: {error}"], remedy) from None
    return table


def _override(table: Table, assignment: str) -> str:
    """Put `section.key=value` into the table (an empty value takes the key out); give `section.key`."""
    name, equals, value = assignment.partition("=")
    parts = name.strip().split(".")
    if not equals or not is_key(name):
        raise PlanError([f"--set {assignment}: not of the form section.key=value"], "--set privacy.epsilon=1.5")
    section: object = table
    for place, part in enumerate(parts[:-1], start=1):
        section = section.setdefault(part, {}) if isinstance(section, dict) else None
        if not isinstance(section, dict):
            named = ".".join(parts[:place])
            raise PlanError([f"--set {assignment}: {named} is not a section"], "--set privacy.epsilon=1.5")
    assert isinstance(section, dict), "a key has a section before it"
    if value.strip():
        section[parts[-1]] = toml_value(value.strip())
    else:
        section.pop(parts[-1], None)
    return ".".join(parts)


def is_key(text: str) -> bool:
    """Whether it is spelled as `--set` names a key: `section.key`, or `simulation.faults.key`."""
    parts = text.strip().split(".")
    return all(parts) and (len(parts) == 2 or (len(parts) == 3 and parts[:2] == _INNER_TABLE))


def toml_value(text: str) -> object:
    """What TOML reads, and plain text where it reads nothing: `--set run.task=digits` needs no quotes."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text
