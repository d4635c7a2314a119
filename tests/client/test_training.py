"""Local training: against loops written by hand, and the laws that its noise and its denominators must keep."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from privet.client.randomness import SystemRandomness
from privet.client.tasks.protocol import Facts, Options, Partition, Records, Task
from privet.client.training import LocalTrainer, TrainableModel, held_out_scores
from privet.privacy.errors import TaskError
from privet.privacy.parameters import Parameters
from privet.privacy.submission import Submission
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

ALPHA = 1e-6
Make = Callable[..., Submission]


class Scripted:
    """Randomness of the tests: the samples are given; the noise is that of a node, or zero."""

    is_seeded = True

    def __init__(self, *samples: list[int], noisy: bool = False) -> None:
        self._samples = list(samples)
        self._noise = SystemRandomness() if noisy else None
        self.asked: list[tuple[int, float]] = []
        self.noise_drawn: list[Tensor] = []

    def poisson_sample(self, size: int, rate: float) -> Tensor:
        self.asked.append((size, rate))
        return torch.tensor(self._samples.pop(0) if self._samples else [], dtype=torch.int64)

    def gaussian(self, count: int) -> Tensor:
        noise = self._noise.gaussian(count) if self._noise else torch.zeros(count)
        self.noise_drawn.append(noise)
        return noise

    def module_seed(self) -> int:
        return 9


class Small(Task):
    """Three features, two classes; `model_of` and the scores can be changed."""

    name: ClassVar[str] = "synthetic"
    version: ClassVar[str] = "1"
    options: ClassVar[Options] = {"records": 0, "features": 3}

    def __init__(self, model_of: Callable[[], nn.Module] | None = None, scores: Mapping[str, Tensor] | None = None):
        self._model_of = model_of or (lambda: nn.Linear(3, 2))
        self._scores = scores

    def facts(self, options: Options) -> Facts:
        return Facts("small", "made up", "none", (3,), (-1.0, 1.0), ("no", "yes"))

    def model(self, options: Options) -> nn.Module:
        return self._model_of()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        return self._scores or {"accuracy": (outputs.argmax(dim=1) == targets).float()}

    def load(self, source: Partition) -> Records:  # type: ignore[override]  # there is no path in these tests
        return source.load()

    def shipped(self, options: Options) -> Records:
        raise NotImplementedError


def hidden_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))


def with_norm() -> nn.Module:
    """Trained by hooks, where the others are trained by ghost clipping."""
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def frozen_first() -> nn.Module:
    model = hidden_mlp()
    model[0].requires_grad_(False)
    return model


def records(count: int = 10) -> Records:
    return Records(torch.randn(count, 3), torch.arange(count) % 2)


def trainer(
    submission: Submission,
    task: Task | None = None,
    held: Records | None = None,
    declared_size: int = 10,
) -> LocalTrainer:
    held = held or records()
    trainable = TrainableModel(task or Small(), submission.plan, torch.device("cpu"))
    return LocalTrainer(trainable, submission, Partition(held, torch.arange(len(held))), declared_size)


def torch_loop(
    model: nn.Module,
    batches: list[Records],
    step: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    denominator: float,
    clip_norm: float | None,
    proximal: float = 0.0,
) -> dict[str, Tensor]:
    """DP-SGD without noise, one record at a time, as a textbook writes it."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in trained]
    optimizer = step(trained)
    for batch in batches:
        total = [torch.zeros_like(parameter) for parameter in trained]
        for x, y in zip(batch.inputs, batch.targets, strict=True):
            gradient = torch.autograd.grad(functional.cross_entropy(model(x[None]), y[None]), trained)
            norm = torch.cat([part.flatten() for part in gradient]).norm()
            share = 1.0 if clip_norm is None else min(1.0, clip_norm / float(norm))
            for target, part in zip(total, gradient, strict=True):
                target += part * share
        for parameter, target, origin in zip(trained, total, start, strict=True):
            parameter.grad = target / denominator + proximal * (parameter.detach() - origin)
        optimizer.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


OPTIMIZERS: dict[str, tuple[list[str], Callable[[list[nn.Parameter]], torch.optim.Optimizer]]] = {
    "sgd": ([], lambda p: torch.optim.SGD(p, lr=0.5)),
    "momentum": (["training.momentum=0.9"], lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9)),
    "weight-decay": (["training.weight-decay=0.1"], lambda p: torch.optim.SGD(p, lr=0.5, weight_decay=0.1)),
    "adam": (
        ["training.optimizer=adam", "training.weight-decay=0.1"],
        lambda p: torch.optim.Adam(p, lr=0.5, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("model_of", [hidden_mlp, with_norm, frozen_first])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_without_noise_training_is_the_loop_of_the_textbook(
    make_submission: Make, optimizer: str, model_of: Callable[[], nn.Module], private: bool
) -> None:
    assignments, step = OPTIMIZERS[optimizer]
    clip = ["privacy.clip-norm=0.3"] if private else []
    submission = make_submission("training.local-steps=3", *assignments, *clip, private=private)
    held, samples = records(), [[0, 2, 5], [1], [3, 4, 6, 9]]
    ours = trainer(submission, Small(model_of), held)
    model = ours._trainable.task.model({})
    model.load_state_dict(ours._trainable.model.state_dict())
    found = ours.train(ours.initial(), Scripted(*samples))
    expected = torch_loop(
        model,
        [held.select(torch.tensor(sample)) for sample in samples],
        step,
        denominator=0.5 * 10,
        clip_norm=0.3 if private else None,
    )
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), values, rtol=1e-5, atol=1e-5)


def test_proximal_term_pulls_to_the_parameters_that_were_sent(make_submission: Make) -> None:
    submission = make_submission(
        "training.local-steps=3", "aggregation.strategy=fedprox", "aggregation.proximal-mu=0.7"
    )
    held, samples = records(), [[0, 2], [1], [3, 4]]
    ours = trainer(submission, held=held)
    sent = {name: np.full_like(values, 0.25) for name, values in ours.initial().items()}
    model = nn.Linear(3, 2)
    for parameter in model.parameters():
        nn.init.constant_(parameter, 0.25)
    found = ours.train(sent, Scripted(*samples))
    batches = [held.select(torch.tensor(sample)) for sample in samples]
    expected = torch_loop(model, batches, OPTIMIZERS["sgd"][1], 5.0, None, proximal=0.7)
    for name, values in expected.items():
        torch.testing.assert_close(torch.from_numpy(found[name]), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("private", [True, False])
def test_denominator_is_rate_times_declared_size(make_submission: Make, private: bool) -> None:
    """Neither how many records there are nor how many were sampled: an update's scale must not tell them."""
    submission = make_submission("training.local-steps=1", private=private)
    held = records(10)

    def update(declared_size: int, count: int) -> Tensor:
        ours = trainer(submission, held=held.select(torch.arange(count)), declared_size=declared_size)
        after = ours.train(ours.initial(), Scripted([0, 1, 2]))
        return torch.cat([torch.from_numpy(after[n] - v).flatten() for n, v in ours.initial().items()])

    reference = update(10, count=10)
    assert float(reference.norm()) > 0.01
    torch.testing.assert_close(update(10, count=4), reference)
    torch.testing.assert_close(update(40, count=10), reference / 4, rtol=1e-4, atol=1e-6)


def test_every_step_samples_all_records_at_the_plans_rate(make_submission: Make) -> None:
    ours, randomness = trainer(make_submission("training.local-steps=3"), held=records(7)), Scripted()
    ours.train(ours.initial(), randomness)
    assert randomness.asked == [(7, 0.5)] * 3


def updates(make_submission: Make, model_of: Callable[[], nn.Module], steps: int, count: int, samples: bool) -> Tensor:
    """[count, parameters]: what each of many private updates changed."""
    submission = make_submission(f"training.local-steps={steps}", "privacy.clip-norm=0.6", private=True)
    ours = trainer(submission, Small(model_of), declared_size=25)
    initial = ours.initial()
    rows = []
    for _ in range(count):
        after = ours.train(initial, SystemRandomness() if samples else Scripted(noisy=True))
        rows.append(torch.cat([torch.from_numpy(after[name] - initial[name]).flatten() for name in initial]))
    return torch.stack(rows).double()


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("model_of", [hidden_mlp, with_norm, frozen_first])
def test_empty_batch_is_a_noisy_step(make_submission: Make, model_of: Callable[[], nn.Module], steps: int) -> None:
    """Every trainable parameter moves by N(0, (lr sigma C / (q n))^2 steps): chi-square for each; false alarm: 3e-5."""
    count = 150
    moved = updates(make_submission, model_of, steps, count, samples=False)
    stddev = 0.5 * 4.0 * 0.6 / (0.5 * 25) * steps**0.5
    squares = (moved / stddev).square().sum(dim=0).numpy()
    assert (squares > stats.chi2.ppf(ALPHA / 2, count)).all()
    assert (squares < stats.chi2.isf(ALPHA / 2, count)).all()
    total = squares.sum()  # and all together, which sees an error of a few per cent
    assert stats.chi2.ppf(ALPHA / 2, moved.numel()) < total < stats.chi2.isf(ALPHA / 2, moved.numel())


@pytest.mark.parametrize("clip_norm", [0.1, 3.0])
def test_noise_is_as_large_as_the_claim_says(make_submission: Make, clip_norm: float) -> None:
    """Of 200,000 parameters, so that one per cent too little would show; chi-square, false alarm: 1e-6."""
    submission = make_submission("training.local-steps=1", f"privacy.clip-norm={clip_norm}", private=True)
    ours = trainer(submission, Small(lambda: nn.Linear(3, 50_000)))
    after = ours.train(ours.initial(), Scripted(noisy=True))
    noise = np.concatenate([(after[name] - ours.initial()[name]).ravel() for name in after]).astype(np.float64)
    squares = ((noise / (0.5 * 4.0 * clip_norm / (0.5 * 10))) ** 2).sum()
    assert stats.chi2.ppf(ALPHA / 2, noise.size) < squares < stats.chi2.isf(ALPHA / 2, noise.size)


@pytest.mark.parametrize("model_of", [hidden_mlp, with_norm])
def test_noise_stands_on_sampled_records_too(make_submission: Make, model_of: Callable[[], nn.Module]) -> None:
    """Samples only add variance: no parameter moves less than noise alone makes it. Chi-square; false alarm: 4e-5."""
    count = 150
    moved = updates(make_submission, model_of, 1, count, samples=True)
    stddev = 0.5 * 4.0 * 0.6 / (0.5 * 25)
    squares = ((moved - moved.mean(dim=0)) / stddev).square().sum(dim=0).numpy()
    assert (squares > stats.chi2.ppf(ALPHA, count - 1)).all()


def test_noise_of_every_parameter_and_step_is_its_own(make_submission: Make) -> None:
    """No two parameters correlate over 400 updates (Fisher's z, all pairs), false alarm 2e-4; and no draw is reused."""
    moved = updates(make_submission, hidden_mlp, 1, 400, samples=False).numpy()
    correlations = np.corrcoef(moved.T)[np.triu_indices(moved.shape[1], k=1)]
    assert np.abs(np.arctanh(correlations)).max() * (400 - 3) ** 0.5 < stats.norm.isf(ALPHA / 2)

    randomness = Scripted(noisy=True)
    ours = trainer(make_submission("training.local-steps=5", private=True), Small(hidden_mlp))
    ours.train(ours.initial(), randomness)
    assert [len(noise) for noise in randomness.noise_drawn] == [26] * 5


def test_noise_of_two_steps_adds_up_as_independent_noise_does(make_submission: Make) -> None:
    """Noise drawn once and used at each of 9 steps would have 9 times the variance; see the test of one step."""
    moved = updates(make_submission, hidden_mlp, 9, 100, samples=False)
    variance = (0.5 * 4.0 * 0.6 / 12.5) ** 2 * 9
    total = float(moved.square().sum()) / variance
    assert stats.chi2.ppf(ALPHA / 2, moved.numel()) < total < stats.chi2.isf(ALPHA / 2, moved.numel())


def test_run_without_a_claim_has_no_noise(make_submission: Make) -> None:
    ours, randomness = trainer(make_submission()), Scripted([0, 1], [2], noisy=True)
    first = ours.train(ours.initial(), randomness)
    assert randomness.noise_drawn == []
    again = ours.train(ours.initial(), Scripted([0, 1], [2], noisy=True))
    assert all(np.array_equal(first[name], again[name]) for name in first)


def test_claim_and_clip_norm_come_together(make_submission: Make) -> None:
    """A submission cannot be made so; a trainer that got one by mistake must not train without noise."""
    private = make_submission(private=True)
    section = private.plan.privacy.model_copy(update={"clip_norm": None})
    body = private.body.model_copy(update={"plan": private.plan.model_copy(update={"privacy": section})})
    with pytest.raises(ValueError, match="without noise"):
        trainer(replace(private, body=body))
    unclaimed = replace(private, body=private.body.model_copy(update={"claim": None}))
    with pytest.raises(ValueError, match="without noise"):
        trainer(unclaimed)


def test_frozen_parameters_stay_and_never_leave(make_submission: Make) -> None:
    ours = trainer(make_submission(private=True), Small(frozen_first))
    before = ours._trainable.model[0].weight.clone()
    answer = ours.train(ours.initial(), SystemRandomness())
    assert set(answer) == set(ours.initial()) == {"2.weight", "2.bias"}
    assert torch.equal(ours._trainable.model[0].weight, before)


def test_initial_model_is_that_of_the_public_seed_and_does_not_move(make_submission: Make) -> None:
    submission = make_submission()
    ours = trainer(submission)
    first = ours.initial()
    ours.train(first, SystemRandomness())
    torch.manual_seed(99)
    again = trainer(submission).initial()
    other = trainer(make_submission("run.seed=4")).initial()
    assert all(np.array_equal(first[name], ours.initial()[name]) for name in first)
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["weight"], other["weight"])


def test_training_draws_nothing_from_the_process_wide_generator(make_submission: Make) -> None:
    ours = trainer(make_submission(private=True), Small(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(3, 2))))
    state = torch.get_rng_state()
    ours.train(ours.initial(), Scripted([0, 1, 2]))
    assert torch.equal(torch.get_rng_state(), state)


def test_record_that_is_not_finite_is_counted_here_and_changes_nothing(make_submission: Make) -> None:
    held = records()
    held.inputs[3] = float("nan")
    ours = trainer(make_submission("training.local-steps=1", private=True), held=held)
    with_it = ours.train(ours.initial(), Scripted([1, 3, 5]))
    without = ours.train(ours.initial(), Scripted([1, 5]))
    assert ours.taken_out == 1
    for name in with_it:
        np.testing.assert_allclose(with_it[name], without[name], rtol=0, atol=1e-7)


def test_model_without_trainable_parameters_is_refused(make_submission: Make) -> None:
    with pytest.raises(TaskError, match="without trainable parameters"):
        trainer(make_submission(), Small(lambda: nn.Linear(3, 2).requires_grad_(False)))


EVALUATION = ("evaluation.every=1", "evaluation.noise-multiplier=3.0")


def evaluated(
    make_submission: Make, scores: Mapping[str, Tensor], names: str, randomness: Scripted | SystemRandomness
) -> dict[str, float]:
    submission = make_submission(*EVALUATION, f"evaluation.metrics={names}", private=True)
    ours = trainer(submission, Small(scores=scores), records(4))
    return ours.evaluate(ours.initial(), randomness)


def test_scores_are_summed_over_records(make_submission: Make) -> None:
    scores = {"accuracy": torch.tensor([0.0, 1.0, 0.5, 0.25]), "other": torch.ones(4)}
    assert evaluated(make_submission, scores, '["accuracy"]', Scripted()) == {"accuracy": 1.75}


@pytest.mark.parametrize("value", [1e9, -1e9, float("inf"), float("-inf"), float("nan"), 2.0])
def test_attack_metric_beyond_its_range(make_submission: Make, value: float) -> None:
    """Whatever one record scores, the sum of each metric moves by at most 1: that is what the noise is made for."""
    others = torch.tensor([0.5, 0.5, 0.5])
    scores = {"accuracy": torch.cat([others, torch.tensor([value])])}
    total = evaluated(make_submission, scores, '["accuracy"]', Scripted())["accuracy"]
    assert 1.5 <= total <= 2.5
    if value != value or value < 0:
        assert total == 1.5


@pytest.mark.parametrize("shape", [(1,), (4, 2), ()])
def test_attack_metric_that_counts_a_record_twice(make_submission: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(TaskError, match="one score for each record"):
        evaluated(make_submission, {"accuracy": torch.ones(shape)}, '["accuracy"]', Scripted())


def test_scores_may_be_booleans(make_submission: Make) -> None:
    scores = {"accuracy": torch.tensor([True, False, True, True])}
    assert evaluated(make_submission, scores, '["accuracy"]', Scripted()) == {"accuracy": 3.0}


@pytest.mark.parametrize("count", [1, 3])
def test_noise_of_an_evaluation_covers_all_its_scores(make_submission: Make, count: int) -> None:
    """Standard deviation: multiplier times sqrt(m). Chi-square over 2,000 evaluations; false alarm: 3e-6."""
    names = [f"score-{number}" for number in range(count)]
    listed = "[" + ", ".join(f'"{name}"' for name in names) + "]"
    submission = make_submission(*EVALUATION, f"evaluation.metrics={listed}", private=True)
    ours = trainer(submission, Small(scores={name: torch.ones(4) for name in names}), records(4))
    randomness = SystemRandomness()
    answers = [ours.evaluate(ours.initial(), randomness) for _ in range(2000)]
    noise = np.array([[answer[name] - 4.0 for name in names] for answer in answers]) / (3.0 * count**0.5)
    for column in noise.T:
        assert stats.chi2.ppf(ALPHA / 2, 2000) < (column**2).sum() < stats.chi2.isf(ALPHA / 2, 2000)
    if count > 1:
        assert stats.pearsonr(noise[:, 0], noise[:, 1]).pvalue > ALPHA


def test_only_the_metrics_that_the_plan_names_leave(make_submission: Make) -> None:
    scores = {"accuracy": torch.ones(4), "diagnosis": torch.ones(4)}
    assert set(evaluated(make_submission, scores, '["accuracy"]', Scripted())) == {"accuracy"}


def test_metric_that_the_task_lacks_is_an_error(make_submission: Make) -> None:
    with pytest.raises(TaskError, match="no metric 'f1'"):
        evaluated(make_submission, {"accuracy": torch.ones(4)}, '["f1"]', Scripted())


def test_evaluation_without_a_claim_is_exact(make_submission: Make) -> None:
    ours = trainer(make_submission("evaluation.every=1"), Small(scores={"accuracy": torch.ones(4)}), records(4))
    randomness = Scripted(noisy=True)
    assert ours.evaluate(ours.initial(), randomness) == {"accuracy": 4.0}
    assert randomness.noise_drawn == []


def test_evaluation_is_of_the_parameters_that_were_sent(make_submission: Make) -> None:
    ours = trainer(make_submission("evaluation.every=1"), held=Records(torch.ones(4, 3), torch.ones(4).long()))
    always_one: Parameters = {"weight": np.zeros((2, 3), np.float32), "bias": np.array([0, 1], np.float32)}
    never: Parameters = {"weight": np.zeros((2, 3), np.float32), "bias": np.array([1, 0], np.float32)}
    assert ours.evaluate(always_one, Scripted()) == {"accuracy": 4.0}
    assert ours.evaluate(never, Scripted()) == {"accuracy": 0.0}


def test_held_out_scores_are_means(make_submission: Make) -> None:
    """Against cross entropy and accuracy by hand: logits 0 and 1, two labels of each kind."""
    trainable = TrainableModel(Small(), make_submission().plan, torch.device("cpu"))
    parameters: Parameters = {"weight": np.zeros((2, 3), np.float32), "bias": np.array([0, 1], np.float32)}
    means = held_out_scores(trainable, parameters, Records(torch.randn(4, 3), torch.tensor([0, 1, 1, 1])))
    expected = (3 * np.log(1 + np.exp(-1)) + np.log(1 + np.exp(1))) / 4
    assert means["accuracy"] == 0.75
    assert means["loss"] == pytest.approx(expected, rel=1e-6)


def test_record_of_what_was_done_is_that_of_the_last_call(make_submission: Make) -> None:
    """An auditor compares it with the plan: so it comes from the steps, and a round's not from an evaluation."""
    noised = make_submission("evaluation.every=1", "evaluation.noise-multiplier=20.0", private=True)
    local = trainer(noised)
    local.train(local.initial(), SystemRandomness())
    done = local.done()
    assert (done["steps"], done["sampling_rate"]) == ("2", "0.5")
    assert (done["noise_multiplier"], done["clip_norm"]) == ("4.0", "1.0")
    assert len(done["code"]) == 64
    local.evaluate(local.initial(), SystemRandomness())
    done = local.done()
    assert (done["steps"], done["sampling_rate"], done["noise_multiplier"]) == ("1", "1.0", "20.0")
    assert "clip_norm" not in done
    plain = trainer(make_submission("evaluation.every=1"))
    plain.train(plain.initial(), SystemRandomness())
    assert "noise_multiplier" not in plain.done()
    plain.evaluate(plain.initial(), SystemRandomness())
    assert plain.done()["steps"] == "1"


def test_update_of_half_the_bits_is_the_whole_one_rounded_to_the_nearest(make_submission: Make) -> None:
    """Rounded once, when the noise is in: the same noise without rounding gives the value that is nearest."""
    private = make_submission(private=True)
    aggregation = private.plan.aggregation.model_copy(update={"update_precision": "bfloat16"})
    plan = private.plan.model_copy(update={"aggregation": aggregation})
    held, rounding = records(), replace(private, body=private.body.model_copy(update={"plan": plan}))
    ours, halved = trainer(private, held=held), trainer(rounding, held=held)
    kept, noise = Scripted([0, 1, 2], noisy=True), Scripted([0, 1, 2])
    whole = ours.train(ours.initial(), kept)
    noise.gaussian = lambda count: kept.noise_drawn.pop(0)  # type: ignore[method-assign]  # the same noise again
    halves = halved.train(halved.initial(), noise)
    for name, array in halves.items():
        bits = array.view(np.uint32)
        assert not (bits & 0xFFFF).any()
        assert np.all(np.abs(array - whole[name]) <= np.abs(whole[name]) * 2.0**-8)
        assert not np.array_equal(array, whole[name])


def test_update_keeps_all_its_bits_by_default(make_submission: Make) -> None:
    ours = trainer(make_submission(private=True))
    bits = ours.train(ours.initial(), Scripted([0, 1, 2], noisy=True))["weight"].view(np.uint32)
    assert (bits & 0xFFFF).any()
