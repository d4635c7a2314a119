"""Probe: is a task fit to be trained with per-record privacy? Asked on synthetic records, before any real one is read.

DP-SGD's guarantee rests on one record reaching the sum through its own clipped gradient only. A module that mixes the
records of a batch, or carries something of them to the next in a buffer, breaks it silently. So: a list of modules that
are known to, and for all others an experiment: a record's loss and gradient must not change when the others do.
"""

import torch
from torch import Tensor, nn

from ..privacy.errors import PrivetError, TaskError
from ..privacy.plan import Plan
from .tasks.protocol import Records, Task, resolved_options

_RECORDS = 6
_SEED = 201
# Losses and gradients may differ by rounding when the others of a batch do; by no more than this.
_TOLERANCE = 1e-4

_MIXING: dict[type[nn.Module], str] = {
    nn.modules.batchnorm._BatchNorm: "GroupNorm",
}
_TRACKING = "InstanceNorm with track_running_stats=False"


def probe(task: Task, plan: Plan) -> None:
    """Raise TaskError, with the fix named, when the task's model, loss or metrics are unfit. Touches no record."""
    options = resolved_options(task, plan.model)
    generator = torch.Generator().manual_seed(_SEED)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.run.seed)
            model = task.model(options)
            records = task.facts(options).example(_RECORDS, generator)
            if plan.privacy.is_private:
                _check_modules(task, model)
            _check_shapes(task, model, records, plan)
            if plan.privacy.is_private:
                _check_buffers(task, model, records)
                _check_independence(task, model, records, generator)
    except PrivetError:
        raise
    except Exception as error:  # somebody's model
        raise _unfit(task, f"fails on synthetic records: {type(error).__name__}: {error}", "mend the task") from error


def _check_modules(task: Task, model: nn.Module) -> None:
    for name, module in model.named_modules():
        for kind, fix in _MIXING.items():
            if isinstance(module, kind):
                what = f"{name or 'the model'} is {type(module).__name__}, which mixes the records of a batch"
                raise _unfit(task, what, f"use {fix} instead")
        if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
            raise _unfit(task, f"{name} carries statistics of records from batch to batch", f"use {_TRACKING}")


def _check_shapes(task: Task, model: nn.Module, records: Records, plan: Plan) -> None:
    model.eval()
    outputs = model(records.inputs)
    losses = task.loss(outputs, records.targets)
    if losses.shape != (_RECORDS,):
        raise _unfit(task, f"its loss has shape {list(losses.shape)}, not [B]", "return one loss a record, unreduced")
    if not bool(torch.isfinite(losses).all()):
        raise _unfit(
            task,
            "its loss is not finite on synthetic records in the declared range",
            "mend model, loss or range",
        )
    metrics = task.metrics(outputs, records.targets)
    for name, scores in metrics.items():
        if scores.shape != (_RECORDS,) or not bool(((scores >= 0) & (scores <= 1)).all()):
            raise _unfit(task, f"its metric {name!r} is not one score in [0, 1] for each record", "mend the metric")
    wanted = plan.evaluation.metrics if plan.evaluation else ()
    missing = [name for name in wanted if name not in metrics]
    if missing:
        raise TaskError(
            f"evaluation.metrics: task {task.name!r} has no metric {missing[0]!r}; it has: {', '.join(metrics)}",
            "name a metric that the task has",
        )


def _check_buffers(task: Task, model: nn.Module, records: Records) -> None:
    model.train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(records.inputs)
    for name, buffer in model.named_buffers():
        if not torch.equal(buffer, before[name]):
            raise _unfit(task, f"its buffer {name} changes when records pass", "keep no state of records in the model")


def _check_independence(task: Task, model: nn.Module, records: Records, generator: torch.Generator) -> None:
    """The first record stays, the others change or go; its loss and its gradient must stay.

    The others change in training mode, with equal dropout; they go in evaluation mode, where dropout draws nothing.
    """
    model.train()
    others = Records(records.inputs.clone(), records.targets.flip(0))
    others.inputs[1:] = records.inputs[1:][torch.randperm(_RECORDS - 1, generator=generator)] * 0.5
    others.targets[0] = records.targets[0]
    changed = _differs(_first_record(task, model, records), _first_record(task, model, others))
    model.eval()
    single = records.select(torch.tensor([0]))
    if changed or _differs(_first_record(task, model, records), _first_record(task, model, single)):
        raise _unfit(
            task,
            "the loss or gradient of a record changes when the other records of its batch do",
            "make model and loss treat each record by itself",
        )


def _differs(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return not all(torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE) for a, b in pairs)


def _first_record(task: Task, model: nn.Module, records: Records) -> list[Tensor]:
    torch.manual_seed(_SEED)
    loss = task.loss(model(records.inputs), records.targets)[0]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return [loss.detach(), *(gradient for gradient in gradients if gradient is not None)]


def _unfit(task: Task, what: str, remedy: str) -> TaskError:
    return TaskError(f"task {task.name!r} is unfit: {what}", remedy)
