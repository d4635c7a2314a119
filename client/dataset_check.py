"""What is in a data set, compared with what its task and its institution declared. For the institution's own eyes.

Everything here is computed from records, without noise: none of it may leave.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..privacy.budget.book import DeclaredDataset
from ..privacy.errors import PrivetError, TaskError
from .tasks.protocol import Facts, Records, Task, resolved_options
from .tasks.table import LABELS, Tabular, header_of, read_table


@dataclass(frozen=True, slots=True)
class DatasetCheck:
    """Counts. `cells_outside`: by column, of cells outside its declared range, which are clamped; None if unknown.

    `labels`: the smallest and the largest; None where there are no records. `problems`: what deviates, a line each.
    """

    name: str
    task: str
    path: str
    declared_size: int
    records: int
    cells_empty: int
    records_with_empty_cells: int
    cells_outside: Mapping[str, int] | None
    labels: tuple[int, int] | None
    classes: int
    problems: tuple[str, ...]


def check_dataset(task: Task, dataset: DeclaredDataset) -> DatasetCheck:
    """Load the data set through its task and count; raise TaskError where it cannot be loaded at all."""
    path = Path(dataset.path)
    if not path.is_file():
        raise TaskError(f"{path}: no such file any more", "put it back, or privet dataset remove and add it again")
    facts = task.facts(resolved_options(task, {}))
    records = _loaded(task, path)
    empty = torch.isnan(records.inputs.reshape(len(records), -1)) if len(records) else torch.zeros(0, 1).bool()
    outside = _outside(task, path)
    labels = (int(records.targets.min()), int(records.targets.max())) if len(records) else None
    cells_empty, rows_empty = int(empty.sum()), int(empty.any(dim=1).sum())
    return DatasetCheck(
        name=dataset.name,
        task=dataset.task,
        path=dataset.path,
        declared_size=dataset.declared_size,
        records=len(records),
        cells_empty=cells_empty,
        records_with_empty_cells=rows_empty,
        cells_outside=outside,
        labels=labels,
        classes=len(facts.classes),
        problems=tuple(_problems(dataset, facts, records, rows_empty, outside, labels)),
    )


def _loaded(task: Task, path: Path) -> Records:
    try:
        return task.load(path)
    except PrivetError:
        raise
    except Exception as error:  # somebody's loader
        raise TaskError(f"{path}: its task cannot load it: {type(error).__name__}: {error}", "mend the file") from None


def _outside(task: Task, path: Path) -> dict[str, int] | None:
    """How many cells of each column lie outside of its declared range. A loader has clamped them: read again."""
    if not isinstance(task, Tabular):
        return None
    ranges = task.columns(header_of(path))
    values, _ = read_table(path, list(ranges), LABELS)
    low, high = torch.tensor(list(ranges.values()), dtype=values.dtype).reshape(-1, 2).T
    counts = ((values < low) | (values > high)).sum(dim=0).tolist()
    return {name: int(count) for name, count in zip(ranges, counts, strict=True) if count}


def _problems(
    dataset: DeclaredDataset,
    facts: Facts,
    records: Records,
    rows_empty: int,
    outside: Mapping[str, int] | None,
    labels: tuple[int, int] | None,
) -> list[str]:
    told = []
    if len(records) != dataset.declared_size:
        told.append(f"{len(records)} records, declared are {dataset.declared_size}: averages are off by that share")
    if labels is not None and not 0 <= labels[0] <= labels[1] < len(facts.classes):
        told.append(f"labels {labels[0]} to {labels[1]}, the task has 0 to {len(facts.classes) - 1}")
    if records.inputs.shape[1:] != facts.input_shape:
        told.append(
            f"inputs of shape {list(records.inputs.shape[1:])}, the task's default is {list(facts.input_shape)}"
        )
    if rows_empty:
        told.append(f"{rows_empty} records have empty cells: they are left out of training")
    if outside:
        told.append(f"{sum(outside.values())} cells in {len(outside)} columns lie outside the declared ranges: clamped")
    return told
