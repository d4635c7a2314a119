"""Evaluation of many nodes in one pass: all are asked about the same parameters, so their records form one batch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ...client.tasks.protocol import Records
from ...privacy.errors import TaskError
from ...privacy.parameters import Parameters
from ...privacy.plan import Plan
from .batches import Member, Pool
from .model import CohortModel

EVALUATED_AT_ONCE = 4096  # records


def evaluate(model: CohortModel, parameters: Parameters, members: Sequence[Member]) -> list[dict[str, float]]:
    """For each node what LocalTrainer.evaluate gives: the sums of the plan's metrics, noised where it makes a claim."""
    model.write_plain(model.joined(parameters))
    pool = Pool(members, model.device)
    records = [pool.all_of(node) for node in range(len(members))]
    owners = torch.repeat_interleave(torch.tensor([len(part) for part in records])).to(model.device)
    whole = Records(torch.cat([r.inputs for r in records]), torch.cat([r.targets for r in records]))
    names = model.plan.evaluation.metrics if model.plan.evaluation else ()
    sums = _sums_by_node(model, whole, owners, len(members), names)
    return [_noised(model, sums[node].tolist(), member) for node, member in enumerate(members)]


def evaluation_done(plan: Plan) -> dict[str, str]:
    """What `evaluate` did for each node, as LocalTrainer.done tells it."""
    done = {"steps": "1", "sampling_rate": "1.0"}
    if plan.evaluation is not None and plan.evaluation.noise_multiplier is not None:
        done["noise_multiplier"] = repr(plan.evaluation.noise_multiplier)
    return done


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


def _noised(model: CohortModel, sums: list[float], member: Member) -> dict[str, float]:
    """One Gaussian for all of a node's sums: they are sensitive to a record by sqrt(their number)."""
    evaluation = model.plan.evaluation
    names = evaluation.metrics if evaluation else ()
    noise = [0.0] * len(names)
    if evaluation is not None and evaluation.noise_multiplier is not None:
        drawn = member.randomness.gaussian(len(names)) * evaluation.noise_multiplier * len(names) ** 0.5
        noise = drawn.tolist()
    return {name: total + added for name, total, added in zip(names, sums, noise, strict=True)}
