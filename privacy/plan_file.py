"""Reading a plan from TOML, and saying precisely what is wrong with one: line, nearest known key, allowed range."""

import difflib
import re
import reprlib
import tomllib
import types
import typing
from collections.abc import Iterable, Sequence
from pathlib import Path

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import PlanError
from .plan import Plan

# A plan is a page of text; anything larger is not one.
PLAN_BYTES = 64 * 1024

Table = dict[str, object]
_SET = "mend what --set says; privet plan new PLAN writes a plan with every key explained"
_CHECK = "mend the plan, then: privet plan check {}"
_SHORT = reprlib.Repr()  # of what was given, so that a message stays a line


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """The plan in a file, with `section.key=value` overrides put in its place.

    Raises PlanError with one problem a line: what, where, and the nearest thing that would be right.
    """
    return parse_plan(_text_of(path), str(path), overrides)


def parse_plan(text: str, origin: str, overrides: Sequence[str] = ()) -> Plan:
    """The plan in TOML `text`; `origin` names it in messages."""
    remedy = _CHECK.format(origin) if not overrides else _SET
    try:
        table: Table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also of numbers with thousands of digits, and of deep nesting
        raise PlanError([f"{origin}: not TOML: {error}"], remedy) from None
    overridden = [_override(table, assignment) for assignment in overrides]
    try:
        return Plan.model_validate(table)
    except ValidationError as error:
        # Unknown names first: a misspelt section is also a missing one, and its own line says more.
        found = sorted(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
        problems = [_problem(details, text, origin, overridden) for each in found for details in _split(each)]
        raise PlanError(problems, remedy) from None


def plan_text(plan: Plan) -> str:
    """The plan as TOML that reads back to the same plan, every default written out."""
    return tomli_w.dumps(plan.model_dump(mode="json", by_alias=True, exclude_none=True))


def _text_of(path: Path) -> str:
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


def _override(table: Table, assignment: str) -> str:
    """Put `section.key=value` into the table (an empty value takes the key out); give `section.key`."""
    name, equals, value = assignment.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) != 2 or not all(parts):
        raise PlanError([f"--set {assignment}: not of the form section.key=value"], "--set privacy.epsilon=1.5")
    section = table.setdefault(parts[0], {})
    if not isinstance(section, dict):
        raise PlanError([f"--set {assignment}: {parts[0]} is not a section"], "--set privacy.epsilon=1.5")
    if value.strip():
        section[parts[1]] = _toml_value(value.strip())
    else:
        section.pop(parts[1], None)
    return ".".join(parts)


def _toml_value(text: str) -> object:
    """What TOML reads, and plain text where it reads nothing: `--set run.task=digits` needs no quotes."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return table["value"] if len(table) == 1 else text


def _split(details: ErrorDetails) -> Iterable[ErrorDetails]:
    """The rules between keys are told in one error, a line each."""
    return [typing.cast(ErrorDetails, {**details, "msg": line}) for line in details["msg"].splitlines()]


def _problem(details: ErrorDetails, text: str, origin: str, overridden: Iterable[str]) -> str:
    """One validation error as `origin:line: section.key: what is wrong`."""
    location = tuple(str(part) for part in details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error" and not location:  # a rule between keys: its message names the key
        key, _, message = message.partition(": ")
        location = tuple(key.split("."))
    elif details["type"] == "extra_forbidden":
        message = _unknown(location)
    elif details["type"] == "missing":
        message = "missing"
    else:
        message = f"{message[0].lower()}{message[1:]}, got {_SHORT.repr(details['input'])}"
    key = ".".join(location[:2])
    where = "--set" if key in overridden else f"{origin}{_line_of(location, text)}"
    return f"{where}: {key}: {message}"


def _unknown(location: tuple[str, ...]) -> str:
    section = Plan.model_fields.get(location[0])
    if len(location) == 1 or section is None:
        return f"unknown section{_nearest(location[0], Plan.model_fields)}"
    model = _section_model(section.annotation)
    known = [field.alias or name for name, field in model.model_fields.items()] if model else []
    return f"unknown key{_nearest(location[1], known)}"


def _section_model(annotation: object) -> type[BaseModel] | None:
    options = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _nearest(word: str, known: Iterable[str]) -> str:
    options = sorted(known)
    nearest = difflib.get_close_matches(word.lower(), options, n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(options)}"


def _line_of(location: tuple[str, ...], text: str) -> str:
    """`:line` of a key, or of its section where the key is missing; nothing where neither is written out."""
    section, key = location[0], location[1] if len(location) > 1 else None
    inside, found = False, ""
    for number, line in enumerate(text.split("\n"), start=1):
        header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
        if header:
            inside = header.group(1).strip('"') == section
            found = f":{number}" if inside else found
        elif inside and key and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            return f":{number}"
    return found
