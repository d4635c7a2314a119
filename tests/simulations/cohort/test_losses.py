"""Losses and their derivatives by hand are those of the task's own loss."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import pytest
import torch
from cohorts import AnyTask
from privet.client.tasks.protocol import Task
from privet.privacy.errors import TaskError
from privet.simulations.cohort.losses import is_cross_entropy, losses_of
from torch import Tensor, nn
from torch.nn import functional

Loss = Callable[[Tensor, Tensor], Tensor]


def plain(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def disguised(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs * 1.0, targets, reduction="none")


COUNTED: list[int] = []
OTHERS: dict[str, Loss] = {
    "disguised": disguised,
    "smoothed": lambda o, t: functional.cross_entropy(o, t, reduction="none", label_smoothing=0.1),
    "weighted": lambda o, t: functional.cross_entropy(o, t, torch.ones(4), reduction="none"),
    "other target ignored": lambda o, t: functional.cross_entropy(o, t, ignore_index=1, reduction="none"),
    "mean": functional.cross_entropy,
    "swapped": lambda o, t: functional.cross_entropy(t, o, reduction="none"),
    "doubled": lambda o, t: 2 * functional.cross_entropy(o, t, reduction="none"),
    "changed in place": lambda o, t: functional.cross_entropy(o.mul_(2), t, reduction="none"),
    "twice": lambda o, t: plain(o, t) + plain(o, t),
    "another": lambda o, t: functional.multi_margin_loss(o, t, reduction="none"),
    "asks": lambda o, t: plain(o, t) if float(o.sum()) > 0 else plain(-o, t),
    "counts": lambda o, t: COUNTED.append(1) or plain(o, t),  # type: ignore[func-returns-value]
    "constant": lambda o, t: torch.zeros(len(t)),
}


class F:
    """What a task's own `F` might be."""

    smoothing: ClassVar[list[float]] = [0.0]

    @staticmethod
    def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=F.smoothing[0])


def nested(outputs: Tensor, targets: Tensor) -> Tensor:
    return (lambda o, t: functional.cross_entropy(o, t, reduction="none"))(outputs, targets)


def changeable(outputs: Tensor, targets: Tensor, reduction: str = "none") -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction=reduction)


def test_what_may_become_another_loss_later_is_not_taken_for_cross_entropy() -> None:
    """Each of them calls torch's cross-entropy and nothing else, now."""
    assert not is_cross_entropy(lambda o, t: F.cross_entropy(o, t))
    assert not is_cross_entropy(nested)
    assert not is_cross_entropy(changeable)
    assert not is_cross_entropy(partial(functional.cross_entropy, reduction="none"))


def task_of(loss: Loss) -> Task:
    class Other(AnyTask):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return loss(outputs, targets)

    return Other(lambda: nn.Linear(3, 4), (3,))


def test_cross_entropy_is_known_and_nothing_else_is_taken_for_it() -> None:
    assert is_cross_entropy(plain)
    assert is_cross_entropy(lambda o, t: functional.cross_entropy(target=t, input=o, reduction="none"))
    for name, loss in OTHERS.items():
        assert not is_cross_entropy(loss), name


def test_by_hand_and_by_torch_give_the_same_bits() -> None:
    """Also of a target that torch leaves out, of a record that counts nothing, and of one that is infinite."""
    outputs = torch.randn(6, 4) * 30
    outputs[4, 1] = torch.inf
    targets, shares = torch.tensor([0, 3, -100, 1, 2, 1]), torch.tensor([1.0, 0.3, 1.0, 0.0, -2.0, 1.0])
    losses, derivatives = losses_of(task_of(plain))(outputs, targets, shares)
    expected, wanted = losses_of(task_of(disguised))(outputs, targets, shares)
    assert derivatives is not None
    assert wanted is not None
    assert torch.equal(losses.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(derivatives.nan_to_num(7.0), wanted.nan_to_num(7.0))
    assert not bool(derivatives[3].any())
    assert not bool(derivatives[2].any())


@pytest.mark.parametrize("name", ["smoothed", "weighted", "doubled", "another"])
def test_another_loss_is_differentiated_by_torch(name: str) -> None:
    outputs, targets = torch.randn(5, 4), torch.tensor([0, 3, 2, 1, 2])
    losses, derivatives = losses_of(task_of(OTHERS[name]))(outputs, targets, torch.ones(5))
    leaf = outputs.clone().requires_grad_()
    expected = OTHERS[name](leaf, targets)
    expected.sum().backward()
    assert torch.equal(losses, expected.detach())
    assert derivatives is not None
    assert leaf.grad is not None
    assert torch.equal(derivatives, leaf.grad)


def test_outputs_that_are_no_rows_of_classes_are_left_to_torch() -> None:
    outputs, targets = torch.randn(5, 4, 1), torch.zeros(5, 1, dtype=torch.int64)
    with pytest.raises(TaskError, match="has shape"):
        losses_of(task_of(plain))(outputs, targets, torch.ones(5))


def test_a_loss_of_one_number_is_refused() -> None:
    with pytest.raises(TaskError, match="has shape"):
        losses_of(task_of(OTHERS["mean"]))(torch.randn(5, 4), torch.zeros(5, dtype=torch.int64), torch.ones(5))
