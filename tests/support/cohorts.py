"""Cohorts for tests: a task around any model, and the engine compared with LocalTrainer, node by node."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from privet.client.randomness import Randomness, SeededRandomness
from privet.client.tasks.protocol import Facts, Options, Partition, Records, Task
from privet.client.training import LocalTrainer, TrainableModel
from privet.privacy.parameters import Parameters
from privet.privacy.submission import Submission
from privet.simulations.cohort.batches import Member
from privet.simulations.cohort.check import checked_model
from privet.simulations.cohort.trainer import CohortTrainer, CohortUpdate, groups_of, nodes_at_once
from torch import Tensor, nn
from torch.nn import functional

CPU = torch.device("cpu")
CLASSES = 4
# Of the length of the update, as the engine promises.
TOLERANCE = 1e-5


class IntegerFacts(Facts):
    """Of token ids."""

    def example(self, count: int, generator: torch.Generator) -> Records:
        inputs = torch.randint(int(self.input_range[1]), (count, *self.input_shape), generator=generator)
        return Records(inputs, torch.randint(CLASSES, (count,), generator=generator))


class AnyTask(Task):
    """Classification by whatever `model_of` makes; token ids where `tokens` says how many there are."""

    name: ClassVar[str] = "synthetic"
    version: ClassVar[str] = "1"
    options: ClassVar[Options] = {"records": 0, "features": 3}

    def __init__(self, model_of: Callable[[], nn.Module], shape: tuple[int, ...], tokens: int = 0) -> None:
        self._model_of = model_of
        kind, limits = (IntegerFacts, (0.0, float(tokens))) if tokens else (Facts, (-1.0, 1.0))
        self._facts = kind("any", "made up", "none", shape, limits, tuple("abcd"))

    def facts(self, options: Options) -> Facts:
        return self._facts

    def model(self, options: Options) -> nn.Module:
        return self._model_of()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return {"accuracy": (outputs.argmax(dim=1) == targets).float(), "first": functional.softmax(outputs, 1)[:, 0]}

    def load(self, source: Partition) -> Records:  # type: ignore[override]  # there is no path in these tests
        return source.load()

    def shipped(self, options: Options) -> Records:
        raise NotImplementedError

    def records(self, count: int, seed: int = 5) -> Records:
        return self._facts.example(count, torch.Generator().manual_seed(seed))


class Quiet:
    """A seeded Randomness without noise."""

    is_seeded = True

    def __init__(self, *labels: int) -> None:
        self._seeded = SeededRandomness(7, *labels)

    def poisson_sample(self, size: int, rate: float) -> Tensor:
        return self._seeded.poisson_sample(size, rate)

    def poisson_masks(self, size: int, rate: float, steps: int) -> NDArray[np.bool_]:
        return self._seeded.poisson_masks(size, rate, steps)

    def gaussian(self, count: int) -> Tensor:
        return torch.zeros(count)

    def gaussian_into(self, out: Tensor, stddev: float) -> None:
        out.zero_()

    def module_seed(self) -> int:
        return self._seeded.module_seed()


def masks_of(samples: Sequence[Sequence[int]], size: int) -> NDArray[np.bool_]:
    """What Randomness.poisson_masks gives, of samples that are given: one for each step."""
    masks = np.zeros((len(samples), size), dtype=np.bool_)
    for mask, sample in zip(masks, samples, strict=True):
        mask[list(sample)] = True
    return masks


def shares_of(sizes: Sequence[int]) -> list[Tensor]:
    """Consecutive shares of these sizes, [M] int64 each."""
    return list(torch.split(torch.arange(sum(sizes)), list(sizes)))


def one_by_one(
    task: Task, submission: Submission, records: Records, shares: list[Tensor], draws: list[Randomness]
) -> tuple[Tensor, Tensor, list[int]]:
    """What LocalTrainer gives: trained parameters [N, d] and initial ones [d]; and what was taken out."""
    trainable = TrainableModel(task, submission.plan, CPU)
    initial, rows, taken_out = trainable.initial, [], []
    for share, randomness in zip(shares, draws, strict=True):
        local = LocalTrainer(trainable, submission, Partition(records, share), len(share) + 1)
        rows.append(flat(local.train(initial, randomness)))
        taken_out.append(local.taken_out)
    return torch.stack(rows), flat(initial), taken_out


def together(
    task: Task,
    submission: Submission,
    records: Records,
    shares: list[Tensor],
    draws: list[Callable[[], Randomness]],
    at_once: int | None = None,
) -> CohortUpdate:
    """Every share trained in its group, as the engine groups them; `draws` make each node's randomness anew."""
    model = checked_model(task, submission.plan, CPU)
    members = [Member(records, len(s) + 1, draw, s) for s, draw in zip(shares, draws, strict=True)]
    return grouped(CohortTrainer(model, submission), model.initial, members, at_once)


def grouped(
    trainer: CohortTrainer, parameters: Parameters, members: Sequence[Member], at_once: int | None = None
) -> CohortUpdate:
    """The updates of all groups in the members' order; without a number as many share a batch as in a simulation."""
    asked = at_once or nodes_at_once(sum(array.size for array in parameters.values()), CPU, len(members))
    groups = groups_of([len(member) for member in members], asked)
    updates = [trainer.train_together(parameters, [members[place] for place in group]) for group in groups]
    places = torch.tensor([place for group in groups for place in group]).argsort()
    taken_out = [count for update in updates for count in update.taken_out]
    values = torch.cat([update.values for update in updates])[places]
    return CohortUpdate(updates[0].model, values, tuple(taken_out[place] for place in places), updates[0].done)


def assert_alike(
    task: Task,
    submission: Submission,
    records: Records,
    shares: list[Tensor],
    draws: Callable[[int], Randomness] = Quiet,
    at_once: int | None = None,
    tolerance: float = TOLERANCE,
) -> None:
    """The engine against LocalTrainer with Opacus, each node, relative to the length of its update."""
    numbers = range(len(shares))
    expected, initial, taken_out = one_by_one(task, submission, records, shares, [draws(n) for n in numbers])
    update = together(task, submission, records, shares, [partial(draws, n) for n in numbers], at_once)
    assert list(update.taken_out) == taken_out
    for node in numbers:
        found = flat(update.of(node))
        kept = ~expected[node].isnan()  # without clipping a finite loss may have a gradient that is not
        assert torch.equal(~found.isnan(), kept)
        moved = float((expected[node] - initial)[kept].norm())
        assert float((found - expected[node])[kept].norm()) <= tolerance * moved + 1e-12, (node, moved)


def flat(parameters: Mapping[str, object]) -> Tensor:
    return torch.cat([torch.from_numpy(array).flatten() for array in parameters.values()]).double()  # type: ignore[arg-type]
