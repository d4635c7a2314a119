"""Evaluation in one pass: each node's sums and noise are those that LocalTrainer gives."""

from collections.abc import Callable
from functools import partial

import pytest
from cohorts import CPU, AnyTask, shares_of
from privet.client.randomness import SeededRandomness
from privet.client.tasks.protocol import Partition
from privet.client.training import EVALUATED_AT_ONCE, LocalTrainer, TrainableModel
from privet.privacy.errors import TaskError
from privet.privacy.submission import Submission
from privet.simulations.cohort import evaluation
from privet.simulations.cohort.batches import Member
from privet.simulations.cohort.check import checked_model
from torch import nn

Make = Callable[..., Submission]
TASK = AnyTask(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), (5,))
NOISED = ("evaluation.every=1", 'evaluation.metrics=["accuracy", "first"]', "evaluation.noise-multiplier=3.0")


@pytest.mark.parametrize("private", [True, False])
def test_each_nodes_sums_are_its_own(make_submission: Make, private: bool) -> None:
    submission = make_submission(*NOISED[: 3 if private else 2], private=private)
    records, shares = (
        TASK.records(EVALUATED_AT_ONCE + 100),
        shares_of([60, EVALUATED_AT_ONCE, 40]),
    )
    trainable = TrainableModel(TASK, submission.plan, CPU)
    parameters = {name: values + 0.1 for name, values in trainable.initial.items()}
    model = checked_model(TASK, submission.plan, CPU)
    members = [Member(records, len(share), partial(SeededRandomness, 1, n), share) for n, share in enumerate(shares)]
    found = evaluation.evaluate(model, parameters, members)
    for node, share in enumerate(shares):
        local = LocalTrainer(trainable, submission, Partition(records, share), len(share))
        assert found[node].sums == pytest.approx(local.evaluate(parameters, SeededRandomness(1, node)), rel=1e-6)
        told = local.done()
        assert found[node].done == {name: told[name] for name in found[node].done}
        assert ("noise_multiplier" in found[node].done) == private


def test_without_a_section_there_are_no_metrics(make_submission: Make) -> None:
    model = checked_model(TASK, make_submission().plan, CPU)
    assert (
        evaluation.evaluate(model, model.initial, [Member(TASK.records(3), 3, partial(SeededRandomness, 1))])[0].sums
        == {}
    )


def test_metric_that_the_task_lacks_is_an_error(make_submission: Make) -> None:
    submission = make_submission("evaluation.every=1", 'evaluation.metrics=["f1"]')
    model = checked_model(TASK, submission.plan, CPU)
    with pytest.raises(TaskError, match="no metric 'f1'"):
        evaluation.evaluate(model, model.initial, [Member(TASK.records(3), 3, partial(SeededRandomness, 1))])
