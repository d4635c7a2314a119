"""Evaluation of many nodes in one pass: all are asked about the same parameters, so their records form one batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...client.tasks.protocol import Records
from ...client.training import EVALUATED_AT_ONCE
from ...privacy.errors import TaskError
from ...privacy.parameters import Parameters
from .batches import Member, Pool
from .model import CohortModel


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A node's sums, and what was done for them, as LocalTrainer.done tells it."""

    sums: dict[str, float]
    done: Mapping[str, str]


def evaluate(model: CohortModel, parameters: Parameters, members: Sequence[Member]) -> list[Evaluated]:
    """For each node what LocalTrainer.evaluate gives: the sums of the plan's metrics, noised where it makes a claim."""
    model.write_plain(model.joined(parameters))
    pool = Pool(members, model.device)
    records = [pool.all_of(node) for node in range(len(members))]
    owners = torch.repeat_interleave(torch.tensor([len(part) for part in records])).to(model.device)
    whole = Records(torch.cat([r.inputs for r in records]), torch.cat([r.targets for r in records]))
    names = model.plan.evaluation.metrics if model.plan.evaluation else ()
    sums = _sums_by_node(model, whole, owners, len(members), names)
    return [_noised(model, sums[node].tolist(), member) for node, member in enumerate(members)]


def _sums_by_node(model: CohortModel, records: Records, owners: Tensor, nodes: int, names: Sequence[str]) -> Tensor:
    """[N, metrics] float64: scores forced into [0, 1], NaN counted as 0."""
    model.plain.eval()
    sums = torch.zeros(nodes, len(names), dtype=torch.float64)
    with torch.no_grad():
        for part, owner in zip(records.chunks(EVALUATED_AT_ONCE), torch.split(owners, EVALUATED_AT_ONCE), strict=True):
            scores = model.task.metrics(model.plain(part.inputs), part.targets)
            for place, name in enumerate(names):
                if name not in scores:
                    raise TaskError(f"task {model.task.name!r} has no metric {name!r}", "mend evaluation.metrics")
                if scores[name].shape != (len(part),):  # else a record would count more than once
                    raise TaskError(f"metric {name!r} is not one score for each record", "mend the metric")
                bounded = scores[name].double().nan_to_num(0.0).clamp(0.0, 1.0).cpu()
                sums[:, place].index_add_(0, owner.cpu(), bounded)
    return sums


def _noised(model: CohortModel, sums: list[float], member: Member) -> Evaluated:
    """One Gaussian for all of a node's sums: they are sensitive to a record by sqrt(their number)."""
    evaluation = model.plan.evaluation
    names = evaluation.metrics if evaluation else ()
    noise, done = [0.0] * len(names), {"steps": "1", "sampling_rate": "1.0"}
    if evaluation is not None and evaluation.noise_multiplier is not None:
        drawn = member.randomness().gaussian(len(names)) * evaluation.noise_multiplier * len(names) ** 0.5
        noise = drawn.tolist()
        done["noise_multiplier"] = repr(evaluation.noise_multiplier)
    return Evaluated({name: total + added for name, total, added in zip(names, sums, noise, strict=True)}, done)
