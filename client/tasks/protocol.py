"""Task: what can be trained. An institution installs it; nothing of it ever travels.

A task is one class in one file: a plain `nn.Module` without buffers that change, a loss and metrics that are pure
functions of one record each, and a loader. privet does the rest: sampling, clipping, noise, accounting, aggregation.
Every fact that it declares is public; none may be computed from records.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ...privacy.errors import TaskError

Options = Mapping[str, bool | int | float | str]


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Records in memory: `inputs` [N, ...], `targets` [N], and `groups` [N] int64 (a patient's number) or None."""

    inputs: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        sizes = {
            len(self.inputs),
            len(self.targets),
            len(self.groups if self.groups is not None else self.targets),
        }
        if len(sizes) != 1:
            raise ValueError(f"inputs, targets and groups differ in length: {sorted(sizes)}")

    def __len__(self) -> int:
        return len(self.targets)

    def select(self, indices: Tensor) -> "Records":
        """The records at `indices` [M] int64 (or where a mask [N] bool holds)."""
        groups = self.groups[indices] if self.groups is not None else None
        return Records(self.inputs[indices], self.targets[indices], groups)

    def chunks(self, size: int) -> Iterator["Records"]:
        """The records in order, at most `size` at once; none when there are none. Views, not copies."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            groups = self.groups[part] if self.groups is not None else None
            yield Records(self.inputs[part], self.targets[part], groups)

    def to(self, device: torch.device) -> "Records":
        """The same records on another device."""
        groups = self.groups.to(device) if self.groups is not None else None
        return Records(self.inputs.to(device), self.targets.to(device), groups)


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """A simulated node's share of records that the simulator has loaded once: `indices` [M] int64 into `records`."""

    records: Records
    indices: Tensor

    def load(self) -> Records:
        """The share itself; copied only now."""
        return self.records.select(self.indices)


Source = Path | Partition


@dataclass(frozen=True, slots=True)
class Facts:
    """What is public about a task's data. `input_range`: of a scaled input, what the probe draws from."""

    title: str
    source: str
    licence: str
    input_shape: tuple[int, ...]
    input_range: tuple[float, float]
    classes: tuple[str, ...]

    def example(self, count: int, generator: torch.Generator) -> Records:
        """Synthetic records for probing: uniform inputs [count, *input_shape], uniform classes [count]."""
        low, high = self.input_range
        inputs = torch.rand((count, *self.input_shape), generator=generator) * (high - low) + low
        return Records(inputs, torch.randint(len(self.classes), (count,), generator=generator))


@runtime_checkable
class Task(Protocol):
    """Subclass it, or match it. `options` names what `[model]` in a plan may set, with the defaults."""

    name: ClassVar[str]
    version: ClassVar[str]
    options: ClassVar[Options]

    def facts(self, options: Options) -> Facts:
        """What is public about the data."""
        ...

    def model(self, options: Options) -> nn.Module:
        """A new model: [B, *input_shape] -> outputs [B, ...]. Its random numbers come from torch's seeded generator.

        Parameters with `requires_grad=False` are public constants and never leave a node.
        """
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each record, [B]: no mean, no sum; each entry depends on its own record only."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Per-record scores in [0, 1], each [B]: their mean over records is the metric."""
        ...

    def load(self, source: Source) -> Records:
        """The records of a path that the institution declared, or of a simulated partition, scaled by public ranges."""
        ...

    def shipped(self, options: Options) -> Records:
        """The whole data set that a simulation splits when the plan names no path."""
        ...


def resolved_options(task: Task, given: Options) -> dict[str, bool | int | float | str]:
    """The task's defaults with a plan's `[model]` over them; raise TaskError for a key or type that it has not."""
    for key, value in given.items():
        if key not in task.options:
            known = ", ".join(task.options) or "none"
            raise TaskError(
                f"model.{key}: task {task.name!r} has no such option; it has: {known}", _SEE.format(task.name)
            )
        default = task.options[key]
        fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
        if not fits:
            expected = type(default).__name__
            raise TaskError(f"model.{key}: {value!r} is not of type {expected}", _SEE.format(task.name))
    return {**task.options, **given}


_SEE = "privet tasks {} shows its options"
