"""Check: does a stacked model give what the task's own gives? Tried on synthetic records before it is used.

Two nodes with other weights and other records, against gradients that torch takes record by record of the model as the
task wrote it. So a model that mixes records, keeps state, draws random numbers, uses a layer twice or overwrites what a
layer gave is found here, and not in somebody's results.
"""

import torch
from torch import Tensor

from ...client.tasks.protocol import Records, Task
from ...privacy.errors import PrivetError
from ...privacy.plan import Plan
from .batches import Batch
from .model import CohortModel
from .sums import CohortSums
from .unsupported import UnsupportedError

_NODES, _RECORDS = 2, 3  # records of each node
_SEED = 202
_SHAKEN_BY = 0.3  # standard deviation of what is added to the initial weights, as in client/probe.py
_TOLERANCE = 1e-3  # of the largest gradient: above rounding, below any mistake


def checked_model(task: Task, plan: Plan, device: torch.device) -> CohortModel:
    """A task's model for many nodes, tried; raise UnsupportedError for one that must be trained node by node."""
    try:
        model = CohortModel(task, plan, device)
    except PrivetError:
        raise
    except Exception as error:  # somebody's module, which cannot be copied or taken apart
        raise UnsupportedError(f"the model: {type(error).__name__}: {error}") from error
    check(model)
    return model


def check(model: CohortModel) -> None:
    """Raise UnsupportedError when a stacked model is not the task's own."""
    state = _state(model)
    try:
        with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
            expected, found = _compared(model)
    except UnsupportedError:
        raise
    except Exception as error:  # somebody's forward, with layers in it that are not those it knows
        raise UnsupportedError(f"the model's forward: {type(error).__name__}: {error}") from error
    finally:
        model.forget()
    if any(not torch.equal(before, after) for before, after in zip(state, _state(model), strict=True)):
        raise UnsupportedError("a module that changes its state when records pass")
    if not torch.allclose(expected, found, rtol=0, atol=_TOLERANCE * max(float(expected.abs().max()), 1e-6)):
        raise UnsupportedError("the model's forward: its records or its nodes do not stay apart")


def _compared(model: CohortModel) -> tuple[Tensor, Tensor]:
    """The sums [N, d] of the task's own model, and those of the stacked one; then the first node's alone."""
    generator = torch.Generator().manual_seed(_SEED)
    records = model.task.facts(model.options).example(_NODES * _RECORDS, generator).to(model.device)
    initial = model.joined(model.initial)
    shaken = torch.randn((_NODES, model.size), generator=generator).to(model.device) * _SHAKEN_BY
    values = initial + shaken
    gradients = torch.stack([_one_by_one(model, values[n], _of_node(records, n)) for n in range(_NODES)])
    if not bool(torch.isfinite(gradients).all()):
        values = initial.repeat(_NODES, 1)
        gradients = torch.stack([_one_by_one(model, values[n], _of_node(records, n)) for n in range(_NODES)])
    norms = gradients.norm(dim=2)
    clip_norm = max(float(norms.median()), 1e-6) if model.plan.privacy.record_clip_norm is not None else None
    shares = torch.ones_like(norms) if clip_norm is None else (clip_norm / norms).clamp(max=1.0)
    batch = Batch(
        records.inputs.view(_RECORDS, _NODES, *records.inputs.shape[1:]),
        records.targets.view(_RECORDS, _NODES, *records.targets.shape[1:]),
        torch.ones(_RECORDS, _NODES, device=model.device),
    )
    before = torch.get_rng_state()
    sums = CohortSums(model, clip_norm)
    found = torch.zeros(_NODES + 1, model.size, device=model.device)
    model.bind(values, found[:_NODES])
    sums.add(batch)
    model.bind(values[:1], found[_NODES:])
    sums.add(Batch(batch.inputs[:, :1], batch.targets[:, :1], batch.shares[:, :1]))
    found /= sums.scale
    if not torch.equal(before, torch.get_rng_state()):
        raise UnsupportedError("a module that draws random numbers")
    expected = (shares.unsqueeze(2) * gradients).sum(dim=1)
    return torch.cat([expected, expected[:1]]), found


def _one_by_one(model: CohortModel, values: Tensor, records: Records) -> Tensor:
    """Each record's gradient by the task's own model, alone in its batch, [B, d]."""
    model.write_plain(values)
    trained = [parameter for parameter in model.plain.parameters() if parameter.requires_grad]
    model.plain.train()
    rows = []
    for record in records.chunks(1):
        loss = model.task.loss(model.plain(record.inputs), record.targets).sum()
        found = torch.autograd.grad(loss, trained, allow_unused=True, materialize_grads=True)
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def _of_node(records: Records, node: int) -> Records:
    return Records(records.inputs[node::_NODES], records.targets[node::_NODES])


def _state(model: CohortModel) -> list[Tensor]:
    return [buffer.clone() for buffer in model.buffers()]
