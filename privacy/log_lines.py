"""Log lines of the programs that stay: for people by default, JSON for machines. Texts from outside stay on one line.

Nothing that is computed from records is ever logged to a place that leaves an institution; see docs/deploy.md.
"""

import json
import logging
import sys
from datetime import UTC, datetime

_OURS = "privet"
_LONGEST = 4000  # characters of a message


class LineFormatter(logging.Formatter):
    """`2027-01-31T12:00:00Z info server: message`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback's lines below it where there is one."""
        line = f"{_moment(record)} {record.levelname.lower()} {_room(record)}: {_said(record)}"
        return line if not record.exc_info else f"{line}\n{self.formatException(record.exc_info)}"


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
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told)


def write_logs(as_json: bool, level: int = logging.INFO) -> None:
    """From now on privet's loggers write to standard error; libraries only what goes wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(level)
    flower = logging.getLogger("flwr")  # it brings a handler of its own
    flower.handlers, flower.propagate = [], True
    flower.setLevel(logging.WARNING)


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _room(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{_OURS}.")


def _said(record: logging.LogRecord) -> str:
    """The message on one line: what came from outside cannot begin a line of its own, nor colour a terminal."""
    return "".join(c if c.isprintable() else " " for c in record.getMessage())[:_LONGEST]
