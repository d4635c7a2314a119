"""Local training, with or without differential privacy: one path.

DP-SGD is owned here, not delegated: the sampling rate, the denominator and the number of steps come from the submission
and from the declared size, never from `len(records)`; an empty batch is a step like any other, noise and all; the noise
is added once to the clipped sum and stands on every trainable parameter.
"""

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..privacy.errors import TaskError
from ..privacy.parameters import Array, Parameters
from ..privacy.plan import Plan
from ..privacy.submission import Submission
from .clipping import mode_of
from .gradients import GradientSum
from .optimizer import Optimizer, optimizer_of
from .pristine import Pristine
from .randomness import Randomness
from .tasks.protocol import Records, Source, Task, resolved_options

# Records in a pass without gradients: what a convolution gives of so many still fits a cache, or memory that is kept.
EVALUATED_AT_ONCE = 256


class TrainableModel:
    """A task's model on a device, ready for one plan; its frozen parts come from the plan's public seed."""

    def __init__(self, task: Task, plan: Plan, device: torch.device) -> None:
        self.task = task
        self.device = device
        self.options = resolved_options(task, plan.model)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.run.seed)
            self.model = task.model(self.options).to(device)
        named = [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        if not named:
            raise TaskError(f"task {task.name!r} has a model without trainable parameters", "make some trainable")
        self.names = [name for name, _ in named]
        self.trained = [parameter for _, parameter in named]
        self._clip_norm = plan.privacy.record_clip_norm
        privacy = plan.privacy
        self._pristine: Pristine | None = None
        if privacy.is_private:
            self._pristine = Pristine(self.model, with_attributes=lambda module: privacy.is_central)
        self.initial: Parameters = self.read()
        self.made_of = made_of(task)

    @cached_property
    def gradient_sum(self) -> GradientSum:
        """What sums its gradients; made where it trains, since a private one loads Opacus."""
        mode = mode_of(self.model) if self._clip_norm is not None else "plain"
        return GradientSum(self.model, self.task.loss, mode, self._clip_norm)

    def read(self) -> dict[str, Array]:
        """The trainable parameters, copied out."""
        return {n: p.detach().cpu().numpy().copy() for n, p in zip(self.names, self.trained, strict=True)}

    def write(self, parameters: Parameters) -> None:
        """Put these values into the model, and, where anything is claimed, what is not trained back to how it began.

        Names and shapes were checked by the node. The model may have trained another node: nothing of that stays.
        """
        if self._pristine is not None:
            self._pristine.restore()
        with torch.no_grad():
            for name, parameter in zip(self.names, self.trained, strict=True):
                parameter.copy_(torch.from_numpy(np.array(parameters[name], dtype=np.float32)))


class LocalTrainer:
    """Trains one plan on one declared data set. `taken_out` is for the local log alone: it is computed from records."""

    def __init__(self, trainable: TrainableModel, submission: Submission, source: Source, declared_size: int) -> None:
        self._trainable = trainable
        if (submission.records_claim is None) != (submission.plan.privacy.record_clip_norm is None):
            raise ValueError("a claim and a clip norm come together: one alone would train without noise")
        self._plan = submission.plan
        self._claim = submission.records_claim
        self._source = source
        self._declared_size = declared_size
        self.taken_out = 0
        self._done: dict[str, str] = {}

    def initial(self) -> dict[str, Array]:
        """The trainable parameters as the task and the plan's public seed give them."""
        return dict(self._trainable.initial)

    @cached_property
    def _records(self) -> Records:
        return self._trainable.task.load(self._source).to(self._trainable.device)

    def done(self) -> dict[str, str]:
        """What the last call did, as its steps reported it, not as the plan asks for it; and the code that did it."""
        return {**self._done, **self._trainable.made_of}

    def train(
        self, parameters: Parameters, randomness: Randomness, correction: Parameters | None = None
    ) -> dict[str, Array]:
        """`local-steps` steps from `parameters`; gives the trainable parameters that follow, [same shapes] float32.

        `correction`: what SCAFFOLD adds to the gradient of each step, c - c_i (server/scaffold.py).
        """
        trainable, training = self._trainable, self._plan.training
        if (correction is None) == (self._plan.aggregation.strategy == "scaffold"):
            raise TaskError("strategy 'scaffold' needs control variates, which this node does not keep", "see the plan")
        trainable.write(parameters)
        start = [parameter.detach().clone() for parameter in trainable.trained]
        added = [torch.from_numpy(np.array(correction[name])) for name in trainable.names] if correction else []
        optimizer = optimizer_of(training, trainable.trained)
        trainable.model.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(randomness.module_seed())
            multipliers = [self._step(optimizer, start, added, randomness) for _ in range(training.local_steps)]
        self._done = {"steps": str(len(multipliers)), "sampling_rate": repr(self._plan.privacy.sampling_rate)}
        if self._claim is not None:
            clip_norm = trainable.gradient_sum.clip_norm
            self._done |= {"noise_multiplier": repr(min(multipliers)), "clip_norm": repr(clip_norm)}
        return self._rounded(trainable.read())

    def _rounded(self, update: dict[str, Array]) -> dict[str, Array]:
        """What leaves: with `update-precision` bfloat16 the nearest of its values, as float32. The noise is in it."""
        if self._plan.aggregation.update_precision != "bfloat16":
            return update
        return {name: torch.from_numpy(array).bfloat16().float().numpy() for name, array in update.items()}

    def evaluate(self, parameters: Parameters, randomness: Randomness) -> dict[str, float]:
        """The sum over records of each metric that the plan names, noised where the plan makes a claim.

        Each record's vector of m scores in [0, 1] has an L2 norm of at most sqrt(m), which is the sensitivity.
        """
        names = self._plan.evaluation.metrics if self._plan.evaluation else ()
        self._trainable.write(parameters)
        sums = scored(self._trainable, self._records)
        missing = [name for name in names if name not in sums]
        if missing:
            raise TaskError(
                f"task {self._trainable.task.name!r} has no metric {missing[0]!r}", "mend evaluation.metrics"
            )
        noise = torch.zeros(len(names))
        self._done = {"steps": "1", "sampling_rate": "1.0"}
        if self._plan.evaluation and self._plan.evaluation.noise_multiplier is not None:
            noise = randomness.gaussian(len(names)) * self._plan.evaluation.noise_multiplier * len(names) ** 0.5
            self._done["noise_multiplier"] = repr(self._plan.evaluation.noise_multiplier)
        return {name: sums[name] + float(noise[place]) for place, name in enumerate(names)}

    def _step(
        self, optimizer: Optimizer, start: list[Tensor], corrections: list[Tensor], randomness: Randomness
    ) -> float:
        """One step; gives the noise multiplier of what was added to its sum, 0 where nothing was."""
        rate = self._plan.privacy.sampling_rate
        batch = self._records.select(randomness.poisson_sample(len(self._records), rate).to(self._trainable.device))
        sums, taken_out = self._trainable.gradient_sum(batch)
        self.taken_out += taken_out
        added = 0.0
        clip_norm = self._plan.privacy.record_clip_norm
        if self._claim is not None and clip_norm is not None:
            added = _add_noise(sums, self._claim.noise_multiplier, clip_norm, randomness)
        denominator = rate * self._declared_size
        proximal = self._plan.aggregation.proximal_mu or 0.0
        for place, (parameter, total, origin) in enumerate(zip(self._trainable.trained, sums, start, strict=True)):
            parameter.grad = total / denominator
            if corrections:
                parameter.grad += corrections[place].to(parameter.device)
            if proximal:
                parameter.grad += proximal * (parameter.detach() - origin)
        optimizer.step()
        return added


def made_of(task: Task) -> dict[str, str]:
    """The code that trains, for the record: task, its version, the SHA-256 of its source, the libraries' versions."""
    try:
        source = inspect.getsource(inspect.getmodule(type(task)) or type(task))
    except (OSError, TypeError):
        source = ""
    libraries = {name: version(name) for name in ("torch", "opacus", "numpy")}
    return {
        "task": task.name,
        "task_version": task.version,
        "code": hashlib.sha256(source.encode()).hexdigest(),
        "versions": json.dumps({"privet": __version__, **libraries}, sort_keys=True),
    }


def scored(trainable: TrainableModel, records: Records) -> dict[str, float]:
    """The sum over records of every metric of the task; scores are forced into [0, 1], and NaN counts as 0."""
    sums: dict[str, float] = {}
    for chunk, outputs in _passes(trainable, records):
        _add_scores(sums, trainable.task.metrics(outputs, chunk.targets), len(chunk))
    return sums


def _passes(trainable: TrainableModel, records: Records) -> Iterator[tuple[Records, Tensor]]:
    """Some records after the other, with what the model makes of them; without gradients."""
    trainable.model.eval()
    for chunk in records.chunks(EVALUATED_AT_ONCE):
        with torch.no_grad():
            outputs = trainable.model(chunk.inputs)
        yield chunk, outputs


def _add_scores(sums: dict[str, float], scores: Mapping[str, Tensor], count: int) -> None:
    for name, values in scores.items():
        if values.shape != (count,):  # else a record would count more than once
            raise TaskError(f"metric {name!r} is not one score for each record", "mend the metric")
        sums[name] = sums.get(name, 0.0) + float(values.double().nan_to_num(0.0).clamp(0.0, 1.0).sum())


def _add_noise(sums: list[Tensor], multiplier: float, clip_norm: float, randomness: Randomness) -> float:
    """One Gaussian vector over all parameters together, in their order; gives its multiplier, for the record."""
    noise = randomness.gaussian(sum(total.numel() for total in sums)) * (multiplier * clip_norm)
    for total, part in zip(sums, torch.split(noise, [total.numel() for total in sums]), strict=True):
        total += part.to(total.device).view_as(total)
    return multiplier


def held_out_scores(trainable: TrainableModel, parameters: Parameters, records: Records) -> Mapping[str, float]:
    """Mean loss and metrics on records that no node owns: a simulator's view, never a release."""
    trainable.write(parameters)
    loss, sums = 0.0, dict[str, float]()
    for chunk, outputs in _passes(trainable, records):
        loss += float(trainable.task.loss(outputs, chunk.targets).double().sum())
        _add_scores(sums, trainable.task.metrics(outputs, chunk.targets), len(chunk))
    return {"loss": loss / len(records), **{name: total / len(records) for name, total in sums.items()}}
