"""Whole models and whole rounds: the cohort engine gives each node what LocalTrainer with Opacus gives it alone."""

import ctypes
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from cohorts import CPU, AnyTask, Quiet, assert_alike, flat, grouped, masks_of, one_by_one, shares_of, together
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from privet.client.randomness import Randomness, SeededRandomness
from privet.client.tasks.protocol import Partition, Records, Task
from privet.client.tasks.registry import load_task
from privet.client.training import LocalTrainer, TrainableModel
from privet.privacy.submission import Submission
from privet.simulations.cohort import sums as cohort_sums
from privet.simulations.cohort.batches import Member
from privet.simulations.cohort.check import checked_model
from privet.simulations.cohort.trainer import CohortTrainer, groups_of, nodes_at_once
from torch import Tensor, nn

Make = Callable[..., Submission]

SIZES = [12, 31, 7, 24]


def small_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4))


def small_cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


class Words(nn.Module):
    """Embedding, norm and two linear layers over token ids [B, 6], in a forward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.norm = nn.LayerNorm(6)
        self.inner = nn.Linear(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.inner(self.norm(self.embedding(ids))).tanh().mean(dim=1))


TASKS: dict[str, AnyTask] = {
    "mlp": AnyTask(small_mlp, (5,)),
    "cnn": AnyTask(small_cnn, (1, 6, 6)),
    "words": AnyTask(Words, (6,), tokens=9),
}


class Scripted:
    """The samples are given; no noise."""

    is_seeded = True

    def __init__(self, *samples: list[int]) -> None:
        self._samples = list(samples)

    def poisson_sample(self, size: int, rate: float) -> Tensor:
        return torch.tensor(self._samples.pop(0), dtype=torch.int64)

    def poisson_masks(self, size: int, rate: float, steps: int) -> NDArray[np.bool_]:
        return masks_of([self._samples.pop(0) for _ in range(steps)], size)

    def gaussian(self, count: int) -> Tensor:
        return torch.zeros(count)

    def gaussian_into(self, out: Tensor, stddev: float) -> None:
        out.zero_()

    def module_seed(self) -> int:
        return 9


def seeded(node: int) -> Randomness:
    return SeededRandomness(11, "node", node)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("kind", ["linear", "features", "cnn"])
def test_digits(make_submission: Make, kind: str, private: bool) -> None:
    task: Task = load_task("digits")
    records = task.shipped({})
    assignments = ("training.local-steps=3", "privacy.sampling-rate=0.3")
    submission = _digits(make_submission(*assignments, private=private), kind)
    assert_alike(task, submission, records, shares_of([20, 41, 33, 5, 18, 26]), seeded)


def _digits(submission: Submission, kind: str) -> Submission:
    plan = submission.plan
    run = plan.run.model_copy(update={"task": "digits"})
    changed = plan.model_copy(update={"run": run, "model": {"kind": kind}})
    return replace(submission, body=submission.body.model_copy(update={"plan": changed}))


OPTIMIZERS = {
    "sgd": [],
    "momentum": ["training.momentum=0.9"],
    "weight-decay": ["training.weight-decay=0.1"],
    "both": ["training.momentum=0.5", "training.weight-decay=0.1"],
    "adam": ["training.optimizer=adam", "training.learning-rate=0.01", "training.weight-decay=0.01"],
    "proximal": ["aggregation.strategy=fedprox", "aggregation.proximal-mu=0.7"],
}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizer_has_a_state_for_each_node(make_submission: Make, optimizer: str, name: str, private: bool) -> None:
    task = TASKS[name]
    assignments = ["training.learning-rate=0.1", "training.local-steps=3", *OPTIMIZERS[optimizer]]
    # Adam divides by the gradient's own size: where that is rounding, two right answers differ.
    tolerance = 2e-4 if optimizer == "adam" else 1e-5
    submission = make_submission(*assignments, private=private)
    assert_alike(task, submission, task.records(sum(SIZES)), shares_of(SIZES), at_once=4, tolerance=tolerance)


@pytest.mark.parametrize("at_once", [1, 2, 5])
@pytest.mark.parametrize("name", TASKS)
def test_noise_is_each_nodes_own(make_submission: Make, name: str, at_once: int) -> None:
    """The same seeded draws, in the same order, in whatever company a node is trained."""
    task = TASKS[name]
    submission = make_submission("training.local-steps=3", private=True)
    assert_alike(task, submission, task.records(sum(SIZES)), shares_of(SIZES), seeded, at_once)


@pytest.mark.parametrize("rate", [1.0, 0.02])
@pytest.mark.parametrize("private", [True, False])
def test_rate_at_which_all_or_nearly_none_are_drawn(make_submission: Make, rate: float, private: bool) -> None:
    """At 0.02 most batches are empty: with noise these are steps like any other."""
    task = TASKS["cnn"]
    submission = make_submission("training.local-steps=4", f"privacy.sampling-rate={rate}", private=private)
    assert_alike(task, submission, task.records(sum(SIZES)), shares_of(SIZES), seeded if private else Quiet)


def test_momentum_moves_a_node_whose_batch_is_empty(make_submission: Make) -> None:
    task = TASKS["mlp"]
    submission = make_submission("training.local-steps=3", "training.momentum=0.9", private=True)
    samples = [[[0, 1], [], [2]], [[], [], []], [[3], [0, 1, 2, 3, 4], []]]
    assert_alike(task, submission, task.records(15), shares_of([5, 5, 5]), lambda node: Scripted(*samples[node]))


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_batches_of_any_nodes(data: st.DataObject, make_submission: Make) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    samples = [[sorted(data.draw(st.sets(st.integers(0, size - 1)))) for _ in range(2)] for size in sizes]
    name, private = data.draw(st.sampled_from(sorted(TASKS))), data.draw(st.booleans())
    task, submission = TASKS[name], make_submission(private=private)
    draws = lambda node: Scripted(*samples[node])  # noqa: E731
    assert_alike(task, submission, task.records(sum(sizes)), shares_of(sizes), draws, data.draw(st.integers(1, 6)))


# As McMahan et al. 2017 have it, smaller: the second convolution is passed by frequencies.
LARGE_KERNELS = AnyTask(
    lambda: nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(576, 16),
        nn.ReLU(),
        nn.Linear(16, 4),
    ),
    (1, 14, 14),
)


@pytest.mark.parametrize("at_once", [1, 3])
@pytest.mark.parametrize("private", [True, False])
def test_large_kernels(make_submission: Make, private: bool, at_once: int) -> None:
    """Also of records of which a part is flat: where all that a window sees is zero, there are ties."""
    records = LARGE_KERNELS.records(60)
    records.inputs[::2, :, :9] = 0.0
    submission = make_submission("training.local-steps=3", "training.learning-rate=0.1", private=private)
    assert_alike(LARGE_KERNELS, submission, records, shares_of([20, 22, 18]), at_once=at_once)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("private", [True, False])
def test_record_that_is_not_finite_before_large_kernels(make_submission: Make, private: bool, value: float) -> None:
    records = LARGE_KERNELS.records(8)
    records.inputs[3, 0, 6, 7] = value
    submission = make_submission("training.local-steps=2", "privacy.sampling-rate=1.0", private=private)
    found = together(LARGE_KERNELS, submission, records, shares_of([5, 3]), [partial(Quiet, n) for n in range(2)], 2)
    alone, _, taken_out = one_by_one(LARGE_KERNELS, submission, records, shares_of([5, 3]), [Quiet(0), Quiet(1)])
    assert list(found.taken_out) == taken_out
    assert torch.equal(found.values.isnan(), alone.isnan())


BAD = [float("inf"), float("-inf"), float("nan"), 3e38]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_record_that_is_not_finite_changes_nothing_for_anybody(
    make_submission: Make, name: str, private: bool, value: float
) -> None:
    """Also where it only fills another node's shorter batch: it is the last record of the longest one."""
    task = TASKS[name]
    records = task.records(12)
    records.inputs[11].view(-1)[0] = value
    samples = [[[0], [1, 2]], [[], [0]], [[0, 1, 2, 3, 4, 5], [3, 5]]]
    submission = make_submission(private=private)
    assert_alike(task, submission, records, shares_of([3, 3, 6]), lambda node: Scripted(*samples[node]))


def test_attack_record_of_infinite_gradient_beside_a_node_without_records(make_submission: Make) -> None:
    """All that was drawn in the step is not finite: it also fills the batch of the node that drew nothing."""
    task = TASKS["mlp"]
    records = task.records(4)
    records.inputs[3] = float("inf")
    samples = [[[], [0]], [[1], [1]]]
    submission = make_submission(private=True)
    shares = shares_of([2, 2])
    update = together(task, submission, records, shares, [partial(Scripted, *s) for s in samples], at_once=2)
    alone = together(task, submission, records, shares[:1], [partial(Scripted, *samples[0])])
    assert update.taken_out == (0, 2)
    assert torch.equal(update.values[0], alone.values[0])
    assert torch.equal(update.values[1], update.model.joined(update.model.initial))


def test_filling_records_reach_nothing(make_submission: Make) -> None:
    """Whatever fills a short batch, it is another node's record: changing it changes only that other node."""
    task = TASKS["cnn"]
    submission = make_submission("training.local-steps=1")
    records = task.records(8)
    samples = [[[0]], [[0, 1, 2, 3]]]
    shares = shares_of([4, 4])
    first = together(task, submission, records, shares, [partial(Scripted, *s) for s in samples], at_once=2)
    records.inputs[7] = 5.0
    second = together(task, submission, records, shares, [partial(Scripted, *s) for s in samples], at_once=2)
    assert torch.equal(first.values[0], second.values[0])
    assert not torch.equal(first.values[1], second.values[1])


@pytest.mark.parametrize("private", [True, False])
def test_more_records_than_pass_at_once(make_submission: Make, private: bool) -> None:
    """All of a step are passed before anything is moved."""
    task = TASKS["mlp"]
    count = 2 * cohort_sums.HELD_RECORDS + 500
    assignments = ("training.local-steps=1", "privacy.sampling-rate=1.0", "training.learning-rate=0.5")
    submission = make_submission(*assignments, private=private)
    assert_alike(task, submission, task.records(count), shares_of([count - 300, 300]), at_once=2)


def test_gradients_that_are_too_many_to_be_held(make_submission: Make) -> None:
    """An embedding, a convolution and a sequence whose records' gradients are taken in parts: ghost mode in Opacus."""
    big_conv = AnyTask(
        lambda: nn.Sequential(nn.Conv2d(40, 200, 5), nn.ReLU(), nn.Flatten(), nn.Linear(800, 40), nn.Linear(40, 4)),
        (40, 6, 6),
    )
    long = AnyTask(lambda: nn.Sequential(nn.Linear(300, 800), nn.Tanh(), nn.Flatten(), nn.Linear(2400, 4)), (3, 300))
    for task in (big_conv, long):
        submission = make_submission("training.local-steps=1", "training.learning-rate=0.1", private=True)
        assert_alike(task, submission, task.records(48), shares_of([30, 18]), at_once=2, tolerance=2e-5)


def test_nodes_with_records_of_their_own(make_submission: Make) -> None:
    task, submission = TASKS["mlp"], make_submission(private=True)
    records = [task.records(6, seed=1), task.records(9, seed=2)]
    model = checked_model(task, submission.plan, CPU)
    members = [Member(part, len(part), partial(Quiet, n)) for n, part in enumerate(records)]
    own = grouped(CohortTrainer(model, submission), model.initial, members)
    joint = Records(torch.cat([r.inputs for r in records]), torch.cat([r.targets for r in records]))
    shared = [Member(joint, len(s), partial(Quiet, n), s) for n, s in enumerate(shares_of([6, 9]))]
    assert torch.equal(own.values, grouped(CohortTrainer(model, submission), model.initial, shared).values)


def test_update_of_half_the_bits(make_submission: Make) -> None:
    private = make_submission(private=True)
    aggregation = private.plan.aggregation.model_copy(update={"update_precision": "bfloat16"})
    plan = private.plan.model_copy(update={"aggregation": aggregation})
    halved = replace(private, body=private.body.model_copy(update={"plan": plan}))
    task = TASKS["mlp"]
    records, shares, draws = task.records(20), shares_of([20]), [partial(seeded, 0)]
    update = together(task, halved, records, shares, draws)
    whole = together(task, private, records, shares, draws)
    assert torch.equal(update.values, whole.values.bfloat16().float())


def test_what_was_done_is_told_as_a_node_tells_it(make_submission: Make) -> None:
    task, submission = TASKS["mlp"], make_submission(private=True)
    update = together(task, submission, task.records(9), shares_of([9]), [Quiet])
    trainable = TrainableModel(task, submission.plan, CPU)
    local = LocalTrainer(trainable, submission, Partition(task.records(9), torch.arange(9)), 9)
    local.train(local.initial(), Quiet())
    assert dict(update.done) == {name: value for name, value in local.done().items() if name in update.done}
    assert set(update.done) == {"steps", "sampling_rate", "noise_multiplier", "clip_norm"}


def test_claim_and_clip_norm_come_together(make_submission: Make) -> None:
    private = make_submission(private=True)
    unclaimed = replace(private, body=private.body.model_copy(update={"claim": None}))
    model = checked_model(TASKS["mlp"], private.plan, CPU)
    with pytest.raises(ValueError, match="without noise"):
        CohortTrainer(model, unclaimed)


def test_initial_parameters_are_those_of_a_node(make_submission: Make) -> None:
    submission = make_submission(private=True)
    model = checked_model(TASKS["cnn"], submission.plan, CPU)
    trainable = TrainableModel(TASKS["cnn"], submission.plan, CPU)
    assert list(model.initial) == list(trainable.initial)
    assert all(np.array_equal(model.initial[name], trainable.initial[name]) for name in model.initial)


def test_training_leaves_the_process_wide_generator_alone(make_submission: Make) -> None:
    task, state = TASKS["mlp"], torch.get_rng_state()
    together(
        task, make_submission(private=True), task.records(9), shares_of([4, 5]), [partial(Quiet, 0), partial(Quiet, 1)]
    )
    assert torch.equal(torch.get_rng_state(), state)


def test_groups_hold_every_node_once_and_depend_on_sizes_alone() -> None:
    sizes = [5, 100, 7, 5, 90, 6]
    groups = groups_of(sizes, 2)
    assert sorted(place for group in groups for place in group) == list(range(6))
    assert groups == [[0, 3], [5, 2], [4, 1]]


def test_number_of_nodes_at_once_follows_from_model_and_device() -> None:
    cuda = torch.device("cuda")
    assert [nodes_at_once(size, CPU, asked=20) for size in (10, 50_000, 400_000, 1_600_000)] == [5, 5, 2, 1]
    assert [nodes_at_once(50_000, CPU, asked) for asked in (1, 5, 6, 12, 22, 36, 1000)] == [1, 5, 3, 4, 6, 9, 10]
    assert [nodes_at_once(size, cuda, asked=400) for size in (10, 2_000_000, 10**9)] == [256, 67, 1]


def test_same_seed_gives_the_same_bits(make_submission: Make) -> None:
    task, submission = TASKS["cnn"], make_submission(private=True)
    records, shares = task.records(sum(SIZES)), shares_of(SIZES)
    first, second = (
        together(task, submission, records, shares, [partial(seeded, n) for n in range(4)], at_once=2).values
        for _ in range(2)
    )
    assert torch.equal(first, second)
    expected, _, _ = one_by_one(task, submission, records, shares, [seeded(n) for n in range(4)])
    assert expected.shape == first.shape
    assert flat(checked_model(task, submission.plan, CPU).initial).shape == (first.shape[1],)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks glibc")
def test_freed_memory_is_kept_where_the_library_can_be_asked() -> None:
    """In a process of its own: it lasts, and other tests measure memory."""
    asked = "from privet.simulations.cohort.memory import keep_memory; print(keep_memory())"
    answer = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout.strip()
    assert answer == str(hasattr(ctypes.CDLL(None), "gnu_get_libc_version"))


@pytest.mark.parametrize("private", [True, False])
def test_infinite_value_that_a_pool_drops_is_found_as_by_a_node_alone(make_submission: Make, private: bool) -> None:
    """In the last row, which no window of the pool reaches."""
    layers = lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4))  # noqa: E731
    task = AnyTask(layers, (1, 9, 9))
    records = task.records(16)
    records.inputs[3, 0, 8, 8] = torch.inf
    submission = make_submission("training.local-steps=2", "privacy.sampling-rate=1.0", private=private)
    found = together(task, submission, records, shares_of([8, 8]), [partial(Quiet, n) for n in range(2)])
    alone, _, taken_out = one_by_one(task, submission, records, shares_of([8, 8]), [Quiet(n) for n in range(2)])
    assert list(found.taken_out) == taken_out
    assert torch.equal(found.values.isnan(), alone.isnan())
