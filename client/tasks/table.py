"""Tables on disk: CSV with a header, numeric columns and one label column. Read once, checked whole, never guessed."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

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
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return next(csv.reader(file), [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path}: cannot be read as CSV: {type(error).__name__}", "give a UTF-8 CSV file") from None


def read_table(path: Path, columns: Sequence[str], classes: int) -> tuple[Tensor, Tensor]:
    """The named columns [N, len(columns)] float32 and the column `label` [N] int64 in [0, classes).

    Other columns are ignored. An empty cell is NaN, and a record with one is left out of training by its gradient.
    Raises TaskError, which names the line and never the value.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            missing = [name for name in (*columns, LABEL) if name not in header]
            if missing:
                raise TaskError(
                    f"{path}: no column {missing[0]!r} in its first line",
                    "privet tasks NAME lists the columns",
                )
            places = [header.index(name) for name in (*columns, LABEL)]
            table = np.array([_numbers(path, rows.line_num, row, places) for row in rows if row], dtype=np.float64)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TaskError(f"{path}: cannot be read as CSV: {type(error).__name__}", "give a UTF-8 CSV file") from None
    table = table.reshape(-1, len(places))
    labels = table[:, -1]
    wrong = np.flatnonzero(~(np.isin(labels, np.arange(classes))))
    if len(wrong):
        raise TaskError(f"{path}: record {wrong[0] + 1} has a label outside 0 to {classes - 1}", "mend the file")
    return torch.from_numpy(table[:, :-1].astype(np.float32)), torch.from_numpy(labels.astype(np.int64))


def scaled(values: Tensor, ranges: Sequence[tuple[float, float]], onto: tuple[float, float]) -> Tensor:
    """Each column [N, D] mapped from its declared public range to `onto`, and clamped there; NaN stays NaN."""
    low: Tensor
    high: Tensor
    low, high = torch.tensor(ranges, dtype=values.dtype).T
    share = ((values - low) / (high - low)).clamp(0.0, 1.0)
    return share * (onto[1] - onto[0]) + onto[0]


def _numbers(path: Path, line: int, row: Sequence[str], places: Sequence[int]) -> list[float]:
    try:
        return [float(row[place]) if row[place].strip() else float("nan") for place in places]
    except (ValueError, IndexError):
        raise TaskError(f"{path}: line {line} has a cell that is missing or no number", "mend the file") from None
