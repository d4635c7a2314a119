"""The probe: what must not be trained with per-record privacy is refused before any record is read."""

from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest
import torch
from privet.client.probe import probe
from privet.client.tasks.protocol import Facts, Options, Partition, Records, Source, Task
from privet.client.tasks.registry import load_task
from privet.privacy.errors import TaskError
from privet.privacy.plan import Plan
from torch import Tensor, nn
from torch.nn import functional

MakePlan = Callable[..., Plan]
FEATURES = 8


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def accuracy(outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
    return {"accuracy": (outputs.argmax(dim=1) == targets).float()}


class Probed(Task):
    """A good task of 8 features and 3 classes, any part of which can be made bad."""

    name: ClassVar[str] = "synthetic"
    version: ClassVar[str] = "1"
    options: ClassVar[Options] = {"records": 0, "features": 0}

    def __init__(
        self,
        model: Callable[[], nn.Module] = lambda: nn.Linear(FEATURES, 3),
        loss: Callable[[Tensor, Tensor], Tensor] = cross_entropy,
        metrics: Callable[[Tensor, Tensor], Mapping[str, Tensor]] = accuracy,
    ) -> None:
        self._model, self._loss, self._metrics = model, loss, metrics
        self.loaded = False

    def facts(self, options: Options) -> Facts:
        return Facts("probed", "made up", "none", (FEATURES,), (-1.0, 1.0), ("a", "b", "c"))

    def model(self, options: Options) -> nn.Module:
        return self._model()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return self._metrics(outputs, targets)

    def load(self, source: Source) -> Records:
        raise AssertionError("the probe touched records")

    def shipped(self, options: Options) -> Records:
        raise AssertionError("the probe touched records")


class Between(nn.Module):
    """A function of what a hidden layer gives, between two linear layers; `head` from zero where asked."""

    def __init__(self, function: Callable[["Between", Tensor], Tensor], zero_head: bool = False) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(FEATURES, 6), nn.Linear(6, 3)
        self.function = function
        if zero_head:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.function(self, self.inner(inputs)))


def between(function: Callable[[Between, Tensor], Tensor], zero_head: bool = False) -> Callable[[], nn.Module]:
    return lambda: Between(function, zero_head)


def refused(make_plan: MakePlan, task: Task) -> TaskError:
    with pytest.raises(TaskError) as caught:
        probe(task, make_plan(private=True))
    return caught.value


def layered(*modules: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(FEATURES, 6), *(module() for module in modules), nn.Linear(6, 3))


class Words(nn.Module):
    """Token ids out of numbers in [-1, 1], through an embedding whose weights may be used again at the end."""

    def __init__(self, tied: bool = False, **options: bool | float) -> None:
        super().__init__()
        self.embedding = nn.Embedding(3, 4, **options)
        self.head = nn.Linear(4, 3)
        self.head.requires_grad_(not tied)
        self.tied = tied

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.embedding(((inputs + 1) * 1.4).long()).mean(dim=1)
        return hidden @ self.embedding.weight.T if self.tied else self.head(hidden)


class Reshaped(nn.Module):
    """Every record passes a layer in pieces: as a sequence, as rows of their own, or across the records."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.layer, self.how = nn.Linear(4, 3), how

    def forward(self, inputs: Tensor) -> Tensor:
        pieces = inputs.reshape(len(inputs), 2, 4)
        if self.how == "rows":
            return self.layer(pieces.reshape(-1, 4)).reshape(len(inputs), 2, 3).sum(dim=1)
        if self.how == "across":
            return self.layer(pieces.transpose(0, 1)).transpose(0, 1).sum(dim=1)
        return self.layer(pieces).sum(dim=1)


class Counting(nn.Module):
    """Keeps something of the records that pass, in a plain attribute that no list of buffers shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)
        self.seen = torch.zeros(FEATURES)

    def forward(self, inputs: Tensor) -> Tensor:
        self.seen = 0.99 * self.seen + 0.01 * inputs.detach().mean(dim=0).float()
        return self.layer(inputs - self.seen)


class Remembering(nn.Module):
    """Keeps it in a buffer, or in a parameter, when it trains, or when it is evaluated."""

    def __init__(self, where: str, training: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)
        self.register_buffer("buffer", torch.zeros(FEATURES))
        self.parameter = nn.Parameter(torch.zeros(FEATURES), requires_grad=False)
        self.where, self.when = where, training

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training == self.when:
            with torch.no_grad():
                getattr(self, self.where).add_(inputs.mean(dim=0))
        return self.layer(inputs)


@pytest.mark.parametrize(
    "task",
    [
        Probed(),
        Probed(layered(nn.ReLU)),
        Probed(layered(lambda: nn.Dropout(0.5))),
        Probed(between(lambda module, hidden: functional.dropout(hidden, 0.5, module.training))),
        Probed(layered(lambda: nn.LayerNorm(6), nn.ReLU)),
        Probed(layered(lambda: nn.GroupNorm(2, 6), nn.ReLU)),
        Probed(layered(lambda: nn.RMSNorm(6))),
        Probed(between(lambda _, hidden: functional.layer_norm(hidden.float(), (6,)).to(hidden.dtype))),
        Probed(between(lambda _, hidden: hidden * torch.ones(6, dtype=torch.float32))),
        Probed(between(lambda _, hidden: hidden.float().tanh(), zero_head=True)),
        Probed(lambda: Words()),
        Probed(lambda: Reshaped("sequence")),
        Probed(
            lambda: nn.Sequential(
                nn.Unflatten(1, (2, 4)),
                nn.Conv1d(2, 4, 3),
                nn.InstanceNorm1d(4, affine=True),
                nn.Flatten(),
                nn.Linear(8, 3),
            )
        ),
        Probed(lambda: nn.Sequential(nn.Linear(FEATURES, 6).requires_grad_(False), nn.Linear(6, 3))),
        Probed(lambda: nn.Linear(FEATURES, 3), loss=lambda outputs, targets: cross_entropy(outputs, targets) * 0),
    ],
    ids=lambda task: None,
)
def test_model_that_treats_each_record_by_itself_is_fit(make_plan: MakePlan, task: Task) -> None:
    probe(task, make_plan(private=True))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("digits", ['model.kind="linear"']),
        ("digits", ['model.kind="features"']),
        ("digits", ['model.kind="cnn"']),
        ("breast-cancer", []),
        ("synthetic", []),
        ("synthetic", ["model.hidden=8", "model.classes=5"]),
    ],
)
@pytest.mark.parametrize("private", [True, False])
def test_shipped_tasks_are_fit(make_plan: MakePlan, name: str, options: list[str], private: bool) -> None:
    plan = make_plan(f"run.task={name}", *options, "evaluation.every=1", *NOISE[private], private=private)
    if name != "synthetic":
        plan = plan.model_copy(update={"model": {k: v for k, v in plan.model.items() if k in load_task(name).options}})
    probe(load_task(name), plan)


NOISE = {True: ["evaluation.noise-multiplier=5.0"], False: []}


@pytest.mark.parametrize(
    ("norm", "named"),
    [
        (lambda: nn.BatchNorm1d(6), "GroupNorm"),
        (lambda: nn.BatchNorm1d(6, affine=False), "GroupNorm"),
        (lambda: nn.BatchNorm1d(6, track_running_stats=False), "GroupNorm"),
        (lambda: nn.SyncBatchNorm(6), "GroupNorm"),
        (lambda: nn.InstanceNorm1d(6, track_running_stats=True), "track_running_stats=False"),
    ],
)
def test_norm_over_records_is_refused_and_the_fix_is_named(
    make_plan: MakePlan, norm: Callable[[], nn.Module], named: str
) -> None:
    assert named in refused(make_plan, Probed(layered(norm))).remedy


@pytest.mark.parametrize("where", ["buffer", "parameter"])
@pytest.mark.parametrize("training", [True, False])
def test_attack_model_that_remembers_records(make_plan: MakePlan, where: str, training: bool) -> None:
    error = refused(make_plan, Probed(lambda: Remembering(where, training)))
    assert f"{where} changes when records pass" in error.message


def test_attack_model_that_remembers_records_in_an_attribute(make_plan: MakePlan) -> None:
    refused(make_plan, Probed(Counting))


def test_attack_embedding_that_renormalises_the_rows_it_is_asked_for(make_plan: MakePlan) -> None:
    error = refused(make_plan, Probed(lambda: Words(max_norm=0.1)))
    assert "embedding.weight changes when records pass" in error.message


def only_in(training: bool) -> Callable[[Between, Tensor], Tensor]:
    return lambda module, hidden: hidden - hidden.mean(dim=0) if module.training == training else hidden


MIXING: dict[str, Callable[[Between, Tensor], Tensor]] = {
    "centred": lambda _, hidden: hidden - hidden.mean(dim=0),
    "softmax over the batch": lambda _, hidden: hidden.softmax(dim=0),
    "scaled by the largest": lambda _, hidden: hidden / hidden.abs().max(),
    "sum of those before": lambda _, hidden: hidden.cumsum(dim=0),
    "the neighbour's": lambda _, hidden: hidden + 0.5 * hidden.roll(1, dims=0),
    "by its place": lambda _, hidden: hidden * torch.arange(1, len(hidden) + 1, dtype=hidden.dtype)[:, None],
    "by their number": lambda _, hidden: hidden * len(hidden),
    "weakly": lambda _, hidden: hidden + 1e-5 * hidden.mean(dim=0),
    "in larger batches": lambda _, hidden: hidden - hidden.mean(dim=0) if len(hidden) > 16 else hidden,
    "in training": only_in(True),
    "in evaluation": only_in(False),
    "in training, beside dropout": lambda module, hidden: functional.dropout(only_in(True)(module, hidden), 0.1),
    "detached": lambda _, hidden: hidden - hidden.detach().mean(dim=0),
}


@pytest.mark.parametrize("zero_head", [False, True])
@pytest.mark.parametrize("name", MIXING)
def test_attack_model_that_mixes_records(make_plan: MakePlan, name: str, zero_head: bool) -> None:
    error = refused(make_plan, Probed(between(MIXING[name], zero_head)))
    assert "when the other records of its batch do" in error.message


def test_attack_mixing_in_training_behind_dropout(make_plan: MakePlan) -> None:
    """Masks of dropout differ with the size of a batch, and would hide that more than they do."""
    counted = between(lambda module, hidden: hidden * len(hidden) if module.training else hidden)
    error = refused(make_plan, Probed(lambda: nn.Sequential(nn.Dropout(0.5), counted())))
    assert "when the other records of its batch do" in error.message


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: cross_entropy(outputs - outputs.mean(dim=0), targets),
        lambda outputs, targets: cross_entropy(outputs, targets) / len(targets),
        lambda outputs, targets: cross_entropy(outputs, targets).mean().expand(len(targets)),
        lambda outputs, targets: cross_entropy(outputs, targets) * (targets == targets.unsqueeze(1)).float().mean(0),
    ],
    ids=["centred", "divided by the batch", "mean, expanded", "weighed by class frequency"],
)
def test_attack_loss_that_mixes_records(make_plan: MakePlan, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    error = refused(make_plan, Probed(loss=loss))
    assert "loss or gradient of a record changes" in error.message


@pytest.mark.parametrize(
    "score",
    [
        lambda outputs, targets: (outputs[:, 0] > outputs[:, 0].median()).float(),
        lambda outputs, targets: (targets == targets.mode().values).float(),
        lambda outputs, targets: torch.full((len(targets),), 1.0 / len(targets)),
    ],
    ids=["above the median", "the most frequent class", "by their number"],
)
def test_attack_metric_that_mixes_records(make_plan: MakePlan, score: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The noise of an evaluation covers one record's own scores, not its effect on those of the others."""
    error = refused(make_plan, Probed(metrics=lambda outputs, targets: {"score": score(outputs, targets)}))
    assert "a metric of a record changes" in error.message


@pytest.mark.parametrize(
    "model",
    [lambda: Words(tied=True), lambda: Reshaped("rows"), lambda: Reshaped("across")],
    ids=["tied weights", "pieces as rows", "pieces across records"],
)
def test_attack_model_whose_gradients_opacus_gets_wrong(make_plan: MakePlan, model: Callable[[], nn.Module]) -> None:
    """With tied weights ghost clipping measures one use and adds both: a record of norm 2.2 C was let in."""
    assert "cannot be taken record by record" in refused(make_plan, Probed(model)).message


def test_unused_parameter_is_refused_before_it_fails_a_round(make_plan: MakePlan) -> None:
    class Spare(Between):
        def __init__(self) -> None:
            super().__init__(lambda _, hidden: hidden)
            self.spare = nn.Linear(2, 2)

    error = refused(make_plan, Probed(Spare))
    assert "freeze" in error.remedy


@pytest.mark.parametrize(
    "loss",
    [
        lambda outputs, targets: cross_entropy(outputs, targets).mean(),
        lambda outputs, targets: cross_entropy(outputs, targets).sum(),
        lambda outputs, targets: cross_entropy(outputs, targets)[:, None],
        lambda outputs, targets: cross_entropy(outputs, targets)[:1],
    ],
    ids=["mean", "sum", "column", "one of them"],
)
@pytest.mark.parametrize("private", [True, False])
def test_loss_that_is_not_one_a_record_is_refused(
    make_plan: MakePlan, loss: Callable[[Tensor, Tensor], Tensor], private: bool
) -> None:
    with pytest.raises(TaskError, match=r"not \[B\]") as caught:
        probe(Probed(loss=loss), make_plan(private=private))
    assert "unreduced" in caught.value.remedy


@pytest.mark.parametrize(
    "task",
    [
        Probed(loss=lambda outputs, targets: cross_entropy(outputs, targets) * float("nan")),
        Probed(loss=lambda outputs, targets: cross_entropy(outputs, targets) / 0.0),
        Probed(between(lambda _, hidden: hidden.log())),
    ],
    ids=["nan", "inf", "log of a negative number"],
)
def test_loss_that_is_not_finite_is_refused(make_plan: MakePlan, task: Task) -> None:
    assert "not finite" in refused(make_plan, task).message


@pytest.mark.parametrize(
    "score",
    [
        lambda outputs: outputs[:, 0] * 0 + 1.5,
        lambda outputs: outputs[:, 0] * 0 - 0.5,
        lambda outputs: outputs[:, 0] * float("nan"),
        lambda outputs: outputs.softmax(dim=1),
        lambda outputs: outputs[0, 0] * 0,
    ],
    ids=["above one", "below zero", "nan", "one a class", "one for all"],
)
def test_metric_that_is_not_one_score_a_record_is_refused(
    make_plan: MakePlan, score: Callable[[Tensor], Tensor]
) -> None:
    error = refused(make_plan, Probed(metrics=lambda outputs, targets: {"score": score(outputs)}))
    assert "'score' is not one score in [0, 1]" in error.message


def test_metric_that_the_task_lacks_is_named_with_those_it_has(make_plan: MakePlan) -> None:
    plan = make_plan("evaluation.every=1", "evaluation.noise-multiplier=5.0", 'evaluation.metrics=["f1"]', private=True)
    with pytest.raises(TaskError, match=r"no metric 'f1'.*accuracy"):
        probe(Probed(), plan)


def test_task_without_metrics_is_fit_where_none_is_asked_for(make_plan: MakePlan) -> None:
    probe(Probed(metrics=lambda outputs, targets: {}), make_plan(private=True))


def _raise(*_: object) -> Tensor:
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    "task",
    [
        Probed(model=lambda: nn.Linear(FEATURES + 1, 3)),
        Probed(model=_raise),  # type: ignore[arg-type]  # it returns nothing
        Probed(loss=_raise),
        Probed(metrics=_raise),  # type: ignore[arg-type]
        Probed(between(_raise)),
        Probed(lambda: nn.Linear(FEATURES, 3), loss=lambda outputs, targets: targets.float()),
    ],
    ids=["other width", "model", "loss", "metrics", "forward", "loss without the model"],
)
def test_task_that_raises_is_a_task_error(make_plan: MakePlan, task: Task) -> None:
    assert "fails on synthetic records" in refused(make_plan, task).message


def test_mixing_is_allowed_where_no_claim_is_made(make_plan: MakePlan) -> None:
    probe(Probed(layered(lambda: nn.BatchNorm1d(6))), make_plan())


def test_probe_leaves_the_process_wide_generator_alone(make_plan: MakePlan) -> None:
    state = torch.get_rng_state()
    probe(Probed(layered(lambda: nn.Dropout(0.5))), make_plan(private=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_probe_never_loads_records(make_plan: MakePlan) -> None:
    """`load` and `shipped` of these tasks raise."""
    probe(Probed(), make_plan(private=True))
    with pytest.raises(AssertionError):
        Probed().load(Partition(Records(torch.zeros(1, 1), torch.zeros(1)), torch.zeros(1)))
