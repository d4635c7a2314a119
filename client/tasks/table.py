"""Tables on disk: CSV with a header, numeric columns and one label column. Read once, checked whole, never guessed."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ...privacy.errors import TaskError

LABEL = "label"
LABELS = 2**15  # classes that a label column may have at most


@runtime_checkable
class Tabular(Protocol):
    """A task may offer this: `privet dataset check` then counts cells outside the declared ranges."""

    def columns(self, header: Sequence[str]) -> Mapping[str, tuple[float, float]]:
        """The columns that are read from a table with this header, each with its declared public range."""
        ...


def header_of(path: Path) -> list[str]:
    """The names in a table's first line; raise TaskError where it cannot be read."""
    with _rows(path) as rows:
        return next(rows, [])


def read_table(path: Path, columns: Sequence[str], classes: int) -> tuple[Tensor, Tensor]:
    """The named columns [N, len(columns)] float32 and the column `label` [N] int64 in [0, classes).

    Other columns are ignored. An empty cell is NaN, and a record with one is left out of training by its gradient.
    Raises TaskError, which names the line and never the value.
    """
    wanted = (*columns, LABEL)
    with _rows(path) as rows:
        header = _header(path, rows, wanted)
        places = [header.index(name) for name in wanted]
        read = [(rows.line_num, _numbers(path, rows.line_num, row, places)) for row in rows if row]
    table = np.array([numbers for _, numbers in read], dtype=np.float64).reshape(-1, len(places))
    labels = table[:, -1]
    wrong = np.flatnonzero(~(np.isin(labels, np.arange(classes))))
    if len(wrong):
        raise TaskError(f"{path}: line {read[wrong[0]][0]} has a label outside 0 to {classes - 1}", "mend the file")
    with np.errstate(over="ignore"):  # what float32 cannot hold is clamped to its column's range later
        values = table[:, :-1].astype(np.float32)
    return torch.from_numpy(values), torch.from_numpy(labels.astype(np.int64))


def numbered_columns(path: Path, prefix: str) -> list[str]:
    """The columns prefix0, prefix1, … of a file, in the order of their numbers; raise TaskError when one lacks."""
    with _rows(path) as rows:
        count = sum(name.startswith(prefix) for name in next(rows, []))
    columns = [f"{prefix}{number}" for number in range(max(1, count))]
    with _rows(path) as rows:
        _header(path, rows, columns)
    return columns


def scaled(values: Tensor, ranges: Sequence[tuple[float, float]], onto: tuple[float, float]) -> Tensor:
    """Each column [N, D] mapped from its declared public range to `onto`, and clamped there; NaN stays NaN."""
    low: Tensor
    high: Tensor
    low, high = torch.tensor(ranges, dtype=values.dtype).T
    if not bool((low < high).all()):
        raise ValueError("a range must end above its beginning")
    share = ((values - low) / (high - low)).clamp(0.0, 1.0)
    return share * (onto[1] - onto[0]) + onto[0]


@contextmanager
def _rows(path: Path) -> Iterator[Any]:
    """A reader of the file (csv's own type has no name in Python 3.11); Excel's byte order mark is skipped."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            yield csv.reader(file)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path}: cannot be read as CSV: {type(error).__name__}", "give a UTF-8 CSV file") from None


def _header(path: Path, rows: Iterator[list[str]], wanted: Sequence[str]) -> list[str]:
    header = next(rows, [])
    for name in wanted:
        if header.count(name) != 1:
            found = "two columns" if name in header else "no column"
            raise TaskError(f"{path}: {found} {name!r} in its first line", "privet tasks NAME lists the columns")
    return header


def _numbers(path: Path, line: int, row: Sequence[str], places: Sequence[int]) -> list[float]:
    try:
        return [float(row[place]) if row[place].strip() else float("nan") for place in places]
    except (ValueError, IndexError):
        raise TaskError(f"{path}: line {line} has a cell that is missing or no number", "mend the file") from None
