"""What is done hastily and, where something was not finite, once more: no result may tell which it was."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from cohorts import CPU, AnyTask, Quiet, assert_alike, grouped, masks_of, shares_of, together
from numpy.typing import NDArray
from privet.client.randomness import SeededRandomness
from privet.privacy.submission import Submission
from privet.simulations.cohort.batches import Member
from privet.simulations.cohort.check import checked_model
from privet.simulations.cohort.stacked import lengths
from privet.simulations.cohort.trainer import CohortTrainer
from torch import Tensor, nn

Make = Callable[..., Submission]
INF = float("inf")
TASK = AnyTask(lambda: nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4)), (5,))


class Noisy:
    """The samples are given, the noise is seeded."""

    def __init__(self, *samples: list[int], is_seeded: bool = True) -> None:
        self.is_seeded = is_seeded
        self._samples = list(samples)
        self._noise = SeededRandomness(5, *map(str, samples))

    def poisson_sample(self, size: int, rate: float) -> Tensor:
        return torch.tensor(self._samples.pop(0), dtype=torch.int64)

    def poisson_masks(self, size: int, rate: float, steps: int) -> NDArray[np.bool_]:
        return masks_of([self._samples.pop(0) for _ in range(steps)], size)

    def gaussian(self, count: int) -> Tensor:
        return self._noise.gaussian(count)

    def gaussian_into(self, out: Tensor, stddev: float) -> None:
        self._noise.gaussian_into(out, stddev)

    def module_seed(self) -> int:
        return 9


SAMPLES = [[[0, 1], [2], [0], [1, 3]], [[1], [0, 1, 2], [2, 3], []], [[], [3], [1, 2], [0]]]
OPTIMIZERS: dict[str, list[str]] = {
    "sgd": [],
    "momentum": ["training.momentum=0.9"],
    "proximal": ["aggregation.strategy=fedprox", "aggregation.proximal-mu=0.7"],
}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_record_that_is_infinite_in_the_third_step(make_submission: Make, optimizer: str, private: bool) -> None:
    """The second node's last record; with the same noise as a node that is trained alone."""
    records = TASK.records(12)
    records.inputs[7] = INF
    steps = ("training.local-steps=4", "training.learning-rate=0.1", *OPTIMIZERS[optimizer])
    submission = make_submission(*steps, private=private)
    draws = lambda node: Noisy(*SAMPLES[node])  # noqa: E731
    assert_alike(TASK, submission, records, shares_of([4, 4, 4]), draws, at_once=3)


def test_infinite_record_changes_no_bit_of_its_group(make_submission: Make) -> None:
    submission = make_submission("training.local-steps=4", private=True)
    draws = [partial(Noisy, *samples) for samples in SAMPLES]
    records, shares = TASK.records(12), shares_of([4, 4, 4])
    records.inputs[7] = INF
    update = together(TASK, submission, records, shares, draws, at_once=3)
    for node, (share, draw) in enumerate(zip(shares, draws, strict=True)):
        alone = together(TASK, submission, records, [share], [draw])
        assert torch.equal(update.values[node], alone.values[0])
    assert update.taken_out == (0, 1, 0)


def test_attack_randomness_of_the_system_is_not_drawn_from_twice(make_submission: Make) -> None:
    """A second try with other noise would let a record decide which noise is kept."""
    seeds_drawn = []

    class Counted(Noisy):
        def module_seed(self) -> int:
            seeds_drawn.append(self)
            return 9

    records = TASK.records(12)
    records.inputs[7] = INF
    draws = [partial(Counted, *samples, is_seeded=False) for samples in SAMPLES]
    submission = make_submission("training.local-steps=4", private=True)
    update = together(TASK, submission, records, shares_of([4, 4, 4]), draws, at_once=3)
    assert len(seeds_drawn) == 3
    assert update.taken_out == (0, 1, 0)


@pytest.mark.parametrize("private", [True, False])
def test_nodes_of_one_size_are_moved_at_once(make_submission: Make, private: bool) -> None:
    submission = make_submission("training.local-steps=3", private=private)
    assert_alike(TASK, submission, TASK.records(30), shares_of([10, 10, 10]), at_once=3)


@pytest.mark.parametrize("half", [True, False])
def test_update_is_written_where_it_is_asked_for(make_submission: Make, half: bool) -> None:
    """Also where a group is trained once more."""
    submission, shares, records = make_submission(private=True), shares_of([6, 6]), TASK.records(12)
    if half:
        records.inputs[2] = INF
    model = checked_model(TASK, submission.plan, CPU)
    members = [Member(records, 6, partial(SeededRandomness, 1, node), share) for node, share in enumerate(shares)]
    rows = torch.full((4, model.size), 7.0)
    update = CohortTrainer(model, submission).train_together(model.initial, members, out=rows[1:3])
    assert torch.equal(rows[1:3], grouped(CohortTrainer(model, submission), model.initial, members).values)
    assert update.values.data_ptr() == rows[1:3].data_ptr()
    assert bool((rows[[0, 3]] == 7.0).all())


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12, 1e30])
@pytest.mark.parametrize("count", [1024, 4096, 4097])
def test_lengths_round_by_less_than_the_guard(count: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(3, count, generator=generator) * scale
    vectors[0, 1:] *= 1e-3  # one large value, and many that each lose their last digits beside it
    vectors[1] = 1.1 * scale
    expected = np.linalg.norm(vectors.double().numpy(), axis=1)
    assert lengths(vectors).tolist() == pytest.approx(expected.tolist(), rel=5e-7)


def test_length_that_is_not_finite_stays_so() -> None:
    vectors = torch.ones(3, 2048)
    vectors[0, 5], vectors[1, 6] = INF, float("nan")
    assert lengths(vectors).isfinite().tolist() == [False, False, True]


CNN = AnyTask(
    lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 6),
        nn.LayerNorm(6),
        nn.Tanh(),
        nn.Linear(6, 4),
    ),
    (1, 6, 6),
)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("task", [TASK, CNN])
def test_half_the_bits_move_nodes_nearly_alike(make_submission: Make, task: AnyTask, private: bool) -> None:
    """To a tenth of what they move: a number of 8 bits is off by up to 0.4%, and a pass takes a dozen of them."""
    submission = make_submission("training.learning-rate=0.1", private=private)
    model, records = checked_model(task, submission.plan, CPU), task.records(40)
    members = [Member(records, 20, partial(Quiet, node), share) for node, share in enumerate(shares_of([20, 20]))]
    whole, halved = (
        CohortTrainer(model, submission, precision=precision).train_together(model.initial, members).values
        for precision in ("float32", "bfloat16")
    )
    moved = (whole - model.joined(model.initial)).norm()
    assert 0 < float((halved - whole).norm()) < 0.1 * float(moved)


@pytest.mark.parametrize("task", [TASK, CNN])
def test_record_in_half_the_bits_adds_no_more_than_the_clip_norm(make_submission: Make, task: AnyTask) -> None:
    settings = ("training.local-steps=1", "training.learning-rate=1.0", "privacy.clip-norm=0.01")
    submission = make_submission(*settings, private=True)
    model = checked_model(task, submission.plan, CPU)

    class One(Quiet):
        def poisson_masks(self, size: int, rate: float, steps: int) -> NDArray[np.bool_]:
            return np.ones((steps, size), dtype=np.bool_)

    for seed in range(5):
        member = Member(task.records(1, seed), 1, One)
        trainer = CohortTrainer(model, submission, precision="bfloat16")
        update = trainer.train_together(model.initial, [member]).values
        added = (update - model.joined(model.initial)).double().norm() * submission.plan.privacy.sampling_rate
        assert float(added) == pytest.approx(0.01, rel=1e-4)  # all are clipped; parameters round
