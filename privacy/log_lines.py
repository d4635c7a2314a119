"""Log lines of the programs that stay: for people by default, JSON for machines. Texts from outside stay on one line.

The rules:
1. One record is one line. A traceback follows a line for people indented, and stands inside the object for machines, so
   that nothing that came from outside can look like a record, nor colour a terminal.
2. No token, key or passphrase is ever given to a logger; a test joins a federation at level debug and looks.
3. A node's log is the institution's own: the text of a failed task may speak of records (docs/deploy.md).
"""

import json
import logging
import sys
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated

import typer

_OURS = "privet"
_LONGEST = 4000  # characters of a message
_LONGEST_TRACEBACK = 20_000
_INDENT = "    "


class LogLevel(StrEnum):
    """From which level on privet's own loggers write."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


LogJson = Annotated[bool, typer.Option("--log-json", help="Log lines as JSON.")]
Level = Annotated[LogLevel, typer.Option("--log-level", help="The least level that is logged.")]


class LineFormatter(logging.Formatter):
    """`2027-01-31T12:00:00Z info server: message`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback's lines below it, indented, where there is one."""
        line = f"{_moment(record)} {record.levelname.lower()} {_room(record)}: {_said(record)}"
        below = [_INDENT + _printable(one) for one in _traceback(self, record).splitlines()]
        return "\n".join([line, *below])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, and traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The object."""
        told = {
            "time": _moment(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _said(record),
        }
        if traceback := _traceback(self, record):
            told["traceback"] = traceback
        return json.dumps(told)


def write_logs(as_json: bool, level: LogLevel = LogLevel.INFO) -> None:
    """From now on privet's loggers write to standard error; libraries only what goes wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(level.upper())
    flower = logging.getLogger("flwr")  # it brings a handler of its own
    flower.handlers, flower.propagate = [], True
    flower.setLevel(logging.WARNING)


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _room(record: logging.LogRecord) -> str:
    return _printable(record.name.removeprefix(f"{_OURS}."))


def _said(record: logging.LogRecord) -> str:
    """The message on one line: what came from outside cannot begin a line of its own, nor colour a terminal."""
    return _printable(record.getMessage())[:_LONGEST]


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """Of the exception, where there is one; the end of it where it is long, because the cause stands there."""
    if not record.exc_info or record.exc_info[0] is None:
        return ""
    return formatter.formatException(record.exc_info)[-_LONGEST_TRACEBACK:]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
