"""Losses of a batch, and their derivatives by the model's outputs.

Most tasks' loss is torch's cross-entropy. Where a task's is exactly that, which is seen in its code and in the calls it
makes, torch's own two operations and their derivatives are called at once: the same numbers, without the records that
autograd keeps of every small step. Any other loss is differentiated by torch.
"""

from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from ...client.tasks.protocol import Task
from ...privacy.errors import TaskError

# Of outputs [M, ...], targets [M, ...] and a share for each record [M]: losses [M], and the derivatives of the sum of
# the losses times their shares; None where nothing depends on the outputs.
Losses = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]

_aten: Any = torch.ops.aten  # knows no types
_EACH, _IGNORED = 0, -100  # no mean and no sum; the target that torch leaves out
_WORDS: dict[str, object] = {
    "torch": torch,
    "nn": torch.nn,
    "functional": functional,
    "F": functional,
    "cross_entropy": functional.cross_entropy,
}
_PLAIN = {"weight": None, "size_average": None, "ignore_index": _IGNORED, "reduce": None, "label_smoothing": 0.0}


def losses_of(task: Task) -> Losses:
    """How a task's losses are computed."""
    by_torch = _by_torch(task)
    if not is_cross_entropy(task.loss):
        return by_torch

    def found(outputs: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor | None]:
        is_plain = outputs.dim() == 2 and targets.dim() == 1 and targets.dtype == torch.int64
        return (_cross_entropy if is_plain else by_torch)(outputs, targets, shares)

    return found


def is_cross_entropy(loss: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether a loss calls torch's cross-entropy of each record, with the weights of none, and does nothing else."""
    if not _names_nothing_else(loss):
        return False
    try:
        graph = fx.symbolic_trace(lambda outputs, targets: loss(outputs, targets)).graph
    except Exception:  # somebody's loss, which may do anything with what it is given
        return False
    taken = [node for node in graph.nodes if node.op == "placeholder"]
    done = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    if len(done) != 1 or done[0].op != "call_function" or done[0].target is not functional.cross_entropy:
        return False
    call, given = done[0], next(node for node in graph.nodes if node.op == "output")
    settings = dict(call.kwargs)
    return (
        call.args == tuple(taken)
        and given.args == (call,)
        and settings.pop("reduction", "mean") == "none"
        and all(name in _PLAIN and value == _PLAIN[name] for name, value in settings.items())
    )


def _names_nothing_else(loss: Callable[[Tensor, Tensor], Tensor]) -> bool:
    """Whether its code can depend on nothing but what it is given: it might compute something else at another time."""
    function = getattr(loss, "__func__", loss)
    if not isinstance(function, FunctionType) or function.__defaults__ or function.__kwdefaults__:
        return False
    code = function.__code__
    holds_code = any(isinstance(constant, CodeType) for constant in code.co_consts)
    if code.co_freevars or holds_code or not _WORDS.keys() >= set(code.co_names):
        return False
    return all(function.__globals__.get(name, _WORDS[name]) is _WORDS[name] for name in code.co_names)


def _by_torch(task: Task) -> Losses:
    def found(outputs: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor | None]:
        with torch.enable_grad():
            outputs = outputs.detach().requires_grad_()
            losses = checked(task.loss(outputs, targets), len(outputs))
            # What to differentiate is a product, since torch imports sympy where it is told `grad_outputs`.
            summed = torch.dot(losses, shares.to(losses.dtype))
            return losses.detach(), torch.autograd.grad(summed, [outputs], allow_unused=True)[0]

    return found


def checked(losses: Tensor, count: int) -> Tensor:
    """Losses of so many records; raise TaskError for anything else."""
    if losses.shape != (count,):
        raise TaskError(f"the loss of {count} records has shape {list(losses.shape)}", "mend the loss")
    return losses


def _cross_entropy(outputs: Tensor, targets: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    logs = _aten._log_softmax(outputs, 1, False)
    losses, weight = _aten.nll_loss_forward(logs, targets, None, _EACH, _IGNORED)
    by_log = _aten.nll_loss_backward(shares.to(losses.dtype), logs, targets, None, _EACH, _IGNORED, weight)
    return losses, _aten._log_softmax_backward_data(by_log, logs, 1, logs.dtype)
