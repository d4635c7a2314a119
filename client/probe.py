"""Probe: is a task fit to be trained with per-record privacy? Asked on synthetic records, before any real one is read.

DP-SGD's guarantee rests on one record reaching the sum through its own clipped gradient only. A module that mixes the
records of a batch, or carries something of them to the next, breaks it silently; so does one whose per-record gradients
Opacus gets wrong (tied weights, records folded into another dimension). So: a list of modules that are known to, and
for all others three experiments. Nothing in the model may change when records pass; a record's loss, gradient and
scores must not change when the others do, or it stands elsewhere, in a batch of another size; and the clipped sum must
be that of gradients taken one by one. Where whole nodes are hidden the first experiment is all that is asked for: the
records of one node may mix.

They are made in double precision where the model can, so that weak mixing shows; from the initial weights and from
others, since a layer that starts at zero hides what stands before it. What they cannot see: mixing in batches larger
than any tried, or on values that are not drawn, and a loader that computes with all records.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..privacy.errors import PrivetError, TaskError
from ..privacy.plan import Plan
from .clipping import mode_of
from .gradients import GradientSum
from .tasks.protocol import Facts, Records, Task, resolved_options

_RECORDS = 6
_OTHER_SIZES = (1, 2, 33)  # records in a batch; the last is for what begins only in larger ones
_SEED = 201
_SHAKEN_BY = 0.3  # standard deviation of what is added to the initial weights
# By how much results may differ from rounding, relative to the largest number among them. In double precision also a
# model that computes in float32 inside stays below.
_TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
_SMALLEST = 1e-2  # numbers are not asked to agree more closely than if they were this large
_SUM_TOLERANCE = 1e-3  # of the clip norm
_USE_ONCE = (
    "keep records in the first dimension, and use each trainable parameter in one module, called once; freeze the rest"
)

_MIXING: dict[type[nn.Module], str] = {
    nn.modules.batchnorm._BatchNorm: "GroupNorm",
}
_TRACKING = "InstanceNorm with track_running_stats=False"


def probe(task: Task, plan: Plan, *, with_gradients: bool = True) -> None:
    """Raise TaskError, with the fix named, when the task's model, loss or metrics are unfit. Touches no record.

    Without gradients `probe_gradients` is still to come, before the first node is trained by GradientSum.
    """
    _probe(task, plan, is_first=True, with_gradients=with_gradients)


def probe_gradients(task: Task, plan: Plan) -> None:
    """Raise TaskError where GradientSum gets the clipped sum wrong: what `probe` tries last."""
    _probe(task, plan, is_first=False, with_gradients=True)


def _probe(task: Task, plan: Plan, is_first: bool, with_gradients: bool) -> None:
    try:
        options = resolved_options(task, plan.model)
        generator = torch.Generator().manual_seed(_SEED)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.run.seed)
            model = task.model(options)
            facts = task.facts(options)
            records = facts.example(_RECORDS, generator)
            if is_first and plan.privacy.hides_records:
                _check_modules(task, model)
            if is_first and plan.privacy.is_private:  # or it would carry one node's records to the next
                _check_state(task, model, records)
            if is_first:
                _check_shapes(task, model, records, plan)
            if plan.privacy.hides_records:
                for subject in _subjects(task, model, records, generator):
                    if is_first:
                        _check_independence(subject, records, facts, generator)
                    if with_gradients:
                        _check_gradients(subject, records)
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


def _check_state(task: Task, model: nn.Module, records: Records) -> None:
    before = {name: tensor.detach().clone() for name, tensor in _tensors(model)}
    for training in (True, False):
        model.train(training)
        model(records.inputs)
        for name, tensor in _tensors(model):
            if name not in before or not torch.equal(tensor, before[name]):
                what = f"{name} changes when records pass"
                raise _unfit(task, what, "keep no state of records in the model")


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@dataclass(frozen=True, slots=True)
class _Subject:
    """A model at some weights, to be experimented with."""

    task: Task
    model: nn.Module
    dtype: torch.dtype

    def losses(self, records: Records, seed: int = _SEED) -> Tensor:
        """[B], with what the model draws itself (dropout) alike in all batches of one size."""
        torch.manual_seed(seed)
        fitting = self.fitting(records)
        return self.task.loss(self.model(fitting.inputs), fitting.targets)

    def fitting(self, records: Records) -> Records:
        """The records in the model's precision."""
        inputs, targets = (t.to(self.dtype) if t.is_floating_point() else t for t in (records.inputs, records.targets))
        return Records(inputs, targets)

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """By every trainable parameter; zero where it has no part."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        found = torch.autograd.grad(loss, trained, retain_graph=True, allow_unused=True)
        return [
            torch.zeros_like(p) if gradient is None else gradient for gradient, p in zip(found, trained, strict=True)
        ]

    def loss_and_gradient(self, records: Records, place: int) -> tuple[Tensor, Tensor]:
        """Of one record: [1] and [all trainable parameters]."""
        loss = self.losses(records)[place]
        return loss.detach().reshape(1), _flat(self.gradient(loss))

    def scores(self, records: Records, place: int) -> Tensor:
        """Of one record, in the order of their names, [metrics]."""
        fitting = self.fitting(records)
        with torch.no_grad():
            scores = self.task.metrics(self.model(fitting.inputs), fitting.targets)
        return torch.tensor([float(scores[name][place]) for name in sorted(scores)], dtype=self.dtype)

    def is_same(self, ours: Tensor, theirs: Tensor) -> bool:
        """Whether two results differ by no more than rounding."""
        tolerance = _TOLERANCES[self.dtype] * float(torch.cat([ours.abs(), ours.new_full((1,), _SMALLEST)]).max())
        return ours.shape == theirs.shape and torch.allclose(ours, theirs, rtol=0, atol=tolerance)


def _subjects(task: Task, model: nn.Module, records: Records, generator: torch.Generator) -> Iterator[_Subject]:
    """The model as it starts, and with shaken weights where its loss is finite there."""
    yield _subject(task, model, records)
    shaken = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in shaken.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=_SHAKEN_BY)
    subject = _subject(task, shaken, records)
    if bool(torch.isfinite(subject.losses(records)).all()):
        yield subject


def _subject(task: Task, model: nn.Module, records: Records) -> _Subject:
    precise = _Subject(task, copy.deepcopy(model).double(), torch.float64)
    try:
        precise.losses(records)
    except RuntimeError:  # it insists on float32 somewhere
        return _Subject(task, copy.deepcopy(model), torch.float32)
    return precise


def _check_independence(subject: _Subject, records: Records, facts: Facts, generator: torch.Generator) -> None:
    """One record stays; the others of its batch change, and where the model draws nothing they also go and come."""
    single = records.select(torch.tensor([0]))
    others = [facts.example(_RECORDS - 1, generator) for _ in range(3)]
    others[2] = others[2].select(torch.zeros(_RECORDS - 1, dtype=torch.int64))  # all alike
    first = [(_joined(single, other), 0) for other in others]
    last = [(_joined(other, single), _RECORDS - 1) for other in others]
    resized = [(_joined(single, facts.example(size - 1, generator)), 0) for size in _OTHER_SIZES]
    for training in (True, False):
        subject.model.train(training)
        _still_dropout(subject.model)
        draws_nothing = torch.equal(subject.losses(records), subject.losses(records, seed=_SEED + 1))
        for batches in [first + last + resized] if draws_nothing else [first, last]:
            _check_alike(subject, batches, with_scores=not training)


def _check_alike(subject: _Subject, batches: list[tuple[Records, int]], with_scores: bool) -> None:
    """The same record stands in each of the batches, at the place named."""
    loss, gradient = subject.loss_and_gradient(*batches[0])
    for batch, place in batches[1:]:
        other_loss, other_gradient = subject.loss_and_gradient(batch, place)
        if not (subject.is_same(loss, other_loss) and subject.is_same(gradient, other_gradient)):
            raise _unfit(
                subject.task,
                "the loss or gradient of a record changes when the other records of its batch do",
                "make model and loss treat each record by itself",
            )
        if with_scores and not subject.is_same(subject.scores(*batches[0]), subject.scores(batch, place)):
            raise _unfit(
                subject.task,
                "a metric of a record changes when the other records of its batch do",
                "make metrics treat each record by itself",
            )


def _check_gradients(subject: _Subject, records: Records) -> None:
    """The clipped sum, computed as training does, against gradients taken one by one; half of them are clipped."""
    subject.model.train()
    losses = subject.losses(records)
    norms = torch.stack([_flat(subject.gradient(loss)).norm() for loss in losses])
    clip_norm = max(float(norms.median()), _SMALLEST)
    expected = torch.zeros_like(_flat(subject.gradient(losses[0])))
    for loss, norm in zip(losses, norms, strict=True):
        expected += _flat(subject.gradient(loss)) * min(1.0, clip_norm / max(float(norm), clip_norm))
    try:
        gradient_sum = GradientSum(subject.model, subject.task.loss, mode_of(subject.model), clip_norm)
        torch.manual_seed(_SEED)
        found, _ = gradient_sum(subject.fitting(records))
    except Exception as error:  # Opacus, of a model that it does not know
        why = f"its gradients cannot be taken record by record: {type(error).__name__}: {error}"
        raise _unfit(subject.task, why, _USE_ONCE) from error
    # The norm guard of the clipped sum is one part in a million: above rounding, below any mistake.
    if not torch.allclose(_flat(found), expected, rtol=0, atol=_SUM_TOLERANCE * clip_norm):
        raise _unfit(subject.task, "its gradients cannot be taken record by record: they come out wrong", _USE_ONCE)


def _joined(ours: Records, theirs: Records) -> Records:
    return Records(torch.cat([ours.inputs, theirs.inputs]), torch.cat([ours.targets, theirs.targets]))


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def _still_dropout(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()


def _unfit(task: Task, what: str, remedy: str) -> TaskError:
    return TaskError(f"task {task.name!r} is unfit: {what}", remedy)
