"""What is wrong with a TOML file, said precisely: line, nearest known key, allowed range. For any pydantic model of it.

Sections are tables of the model, keys are spelled in kebab-case, and an unknown one is an error.
"""

import difflib
import re
import reprlib
import typing
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_SHORT = reprlib.Repr()  # of what was given, so that a message stays a line
Model = type[BaseModel]


def problems_of(
    error: ValidationError, model: Model, text: str, origin: str, overridden: Collection[str] = ()
) -> list[str]:
    """Every problem as `origin:line: section.key: what is wrong`.

    `overridden`: keys that came from the command line, which have no line in the file.
    """
    # Unknown names first: a misspelt section is also a missing one, and its own line says more.
    found = sorted(error.errors(), key=lambda details: details["type"] != "extra_forbidden")
    return [_problem(details, model, text, origin, overridden) for each in found for details in _split(each)]


def _split(details: ErrorDetails) -> Iterable[ErrorDetails]:
    """The rules between keys are told in one error, a line each."""
    return [typing.cast(ErrorDetails, {**details, "msg": line}) for line in details["msg"].splitlines()]


def _problem(details: ErrorDetails, model: Model, text: str, origin: str, overridden: Collection[str]) -> str:
    location = tuple(str(part) for part in details["loc"])
    message = details["msg"].removeprefix("Value error, ")
    if details["type"] == "value_error" and not location:  # a rule between keys: its message names the key
        key, _, message = message.partition(": ")
        location = tuple(key.split("."))
    place = _place(location, model)
    if details["type"] == "extra_forbidden":
        message = f"unknown {'key' if place.names[1:] else 'section'}{_nearest(place.names[-1], place.known)}"
    elif details["type"] == "missing":
        message = "missing"
    elif details["loc"]:
        message = f"{message[0].lower()}{message[1:]}, got {_SHORT.repr(details['input'])}"
    named = ".".join(place.names)
    where = "--set" if named in overridden else f"{origin}{_line_of(place.names, text)}"
    return f"{where}: {named}: {message}"


@dataclass(frozen=True, slots=True)
class _Place:
    """A table or key of the file, and what might stand there instead."""

    names: tuple[str, ...]
    known: tuple[str, ...]


def _place(location: tuple[str, ...], model: Model) -> _Place:
    """The part of a location that the file's reader wrote; behind it pydantic names members of a union, and indices."""
    tables: Model | None = model
    location = tuple(part for part in location if part != "[key]")  # pydantic's word for a table's own name
    known, names = _names(model), []
    while location and tables is not None:
        name, location = location[0], location[1:]
        known = _names(tables)
        names.append(name)
        value, is_table_of = _value(tables, name)
        if is_table_of and location:  # a table whose keys are the reader's own: [apps.NAME], or options
            names.append(location[0])
            location = location[1:]
        tables = value
    return _Place(tuple(names), known)


def _names(model: Model) -> tuple[str, ...]:
    return tuple(sorted(field.alias or name for name, field in model.model_fields.items()))


def _value(model: Model, name: str) -> tuple[Model | None, bool]:
    """What stands under a name: the model of its table, if it has one; and whether it is a table of such."""
    fields = {field.alias or key: field.annotation for key, field in model.model_fields.items()}
    annotation = fields.get(name)
    if typing.get_origin(annotation) is dict:
        return _as_model(typing.get_args(annotation)[1]), True
    return _as_model(annotation), False


def _as_model(annotation: object) -> Model | None:
    options = typing.get_args(annotation) or (annotation,)
    return next((option for option in options if isinstance(option, type) and issubclass(option, BaseModel)), None)


def _nearest(word: str, known: Iterable[str]) -> str:
    options = sorted(known)
    nearest = difflib.get_close_matches(word.lower(), options, n=1, cutoff=0.6)
    return f"; did you mean {nearest[0]}?" if nearest else f"; known: {', '.join(options)}"


def _line_of(names: tuple[str, ...], text: str) -> str:
    """`:line` of a key, or of its table where the key is missing; nothing where neither is written out."""
    for length in range(len(names), 0, -1):
        found = _first_line(names[:length], text)
        if found:
            return f":{found}"
    return ""


def _first_line(names: tuple[str, ...], text: str) -> int | None:
    """The line of a table's header, or of `key =` under the header of its table."""
    key = re.compile(rf"\s*[\"']?{re.escape(names[-1])}[\"']?\s*=")
    header: tuple[str, ...] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        header_here = header_of(line)
        if header_here is not None:
            header = header_here
            if header == names:
                return number
        elif header == names[:-1] and key.match(line):
            return number
    return None


def header_of(line: str) -> tuple[str, ...] | None:
    """The names in a table's header, `[a.b]` or `[[a]]`; None for any other line."""
    header = re.match(r"\s*\[+\s*([^\]]+?)\s*\]+", line)
    return tuple(part.strip().strip("\"'") for part in header.group(1).split(".")) if header else None


def with_key(text: str, table: tuple[str, ...], key: str, value: str | None) -> str:
    """The text with a key set in a table, or taken out of it where there is no value; every other line stays."""
    lines = text.split("\n")
    spelled = re.compile(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=")
    headers = [number for number, line in enumerate(lines) if header_of(line) is not None]
    start = next((number for number in headers if header_of(lines[number]) == table), None)
    if start is None:
        gap = [""] if text.strip() else []
        lines = [*text.rstrip("\n").split("\n"), *gap] if text.strip() else []
        return "\n".join([*lines, f"[{'.'.join(map(key_text, table))}]", f"{key_text(key)} = {value}", ""])
    end = next((number for number in headers if number > start), len(lines))
    found = next((number for number in range(start + 1, end) if spelled.match(lines[number])), None)
    fresh = [] if value is None else [f"{key_text(key)} = {value}"]
    if found is not None:
        lines[found : found + 1] = fresh
    else:
        last = max(number for number in range(start, end) if number == start or lines[number].strip())
        lines[last + 1 : last + 1] = fresh
    return "\n".join(lines)


def key_text(key: str) -> str:
    """A key as TOML spells it."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else f'"{key}"'
