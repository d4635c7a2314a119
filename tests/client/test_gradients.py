"""The clipped sum: against gradients taken one record at a time, against Opacus' own, and under attack."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from opacus import PrivacyEngine
from privet.client.clipping import GHOST_PARAMETERS, HELD_RECORDS, Mode, mode_of
from privet.client.gradients import GradientSum
from privet.client.tasks.protocol import Records, resolved_options
from privet.client.tasks.registry import load_task
from privet.privacy.errors import TaskError
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

CLASSES = 4
CLIPPING_MODES: tuple[Mode, ...] = ("hooks", "ghost")


class Words(nn.Module):
    """Embedding and Linear over token ids [B, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).mean(dim=1))


class Sequences(nn.Module):
    """Linear layers over [B, 3, 4]: every record passes three times."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 5)
        self.head = nn.Linear(5, CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.inner(inputs).tanh()).sum(dim=1)


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(7, 8), nn.Tanh(), nn.Linear(8, CLASSES))
    model[0].requires_grad_(False)
    return model


def _digits_cnn() -> nn.Module:
    task = load_task("digits")
    return task.model(resolved_options(task, {"kind": "cnn"}))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(7, CLASSES),
    "mlp": lambda: nn.Sequential(nn.Linear(7, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
    "cnn": _digits_cnn,
    "words": Words,
    "sequences": Sequences,
    "layer-norm": lambda: nn.Sequential(nn.Linear(7, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, CLASSES)),
    "frozen": _frozen,
}
SHAPES = {"cnn": (64,), "sequences": (3, 4)}


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def some_records(name: str, count: int) -> Records:
    inputs = torch.randint(9, (count, 5)) if name == "words" else torch.randn((count, *SHAPES.get(name, (7,))))
    return Records(inputs, torch.randint(CLASSES, (count,)))


def flat(tensors: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors]).double()


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def one_by_one(model: nn.Module, records: Records) -> Tensor:
    """Each record's gradient [B, parameters], taken with the record alone in its batch."""
    rows = []
    for place in range(len(records)):
        loss = losses(model(records.inputs[place : place + 1]), records.targets[place : place + 1])
        rows.append(flat(torch.autograd.grad(loss[0], trained(model))))
    return torch.stack(rows)


def clipped(gradients: Tensor, clip_norm: float) -> Tensor:
    norms = gradients.norm(dim=1, keepdim=True)
    return (gradients * torch.minimum(torch.ones_like(norms), clip_norm / norms)).sum(dim=0)


def summed(model: nn.Module, records: Records, mode: Mode, clip_norm: float | None = 1.0) -> tuple[Tensor, int]:
    model.train()
    sums, taken_out = GradientSum(model, losses, mode, clip_norm)(records)
    return flat(sums), taken_out


@pytest.mark.parametrize("mode", CLIPPING_MODES)
@pytest.mark.parametrize("name", MODELS)
def test_clipped_sum_is_that_of_gradients_taken_one_by_one(name: str, mode: Mode) -> None:
    model, records = MODELS[name](), some_records(name, 9)
    gradients = one_by_one(model, records)
    clip_norm = float(gradients.norm(dim=1).median())  # some records are clipped, some are not
    found, taken_out = summed(model, records, mode, clip_norm)
    torch.testing.assert_close(found, clipped(gradients, clip_norm), rtol=0, atol=1e-5 * clip_norm * 9)
    assert taken_out == 0


@pytest.mark.filterwarnings("ignore:Secure RNG turned off", "ignore:Full backward hook", "ignore:Optimal order")
@pytest.mark.parametrize("mode", CLIPPING_MODES)
@pytest.mark.parametrize("name", MODELS)
def test_clipped_sum_is_that_of_opacus_privacy_engine(name: str, mode: Mode) -> None:
    model, records = MODELS[name](), some_records(name, 9)
    clip_norm = float(one_by_one(model, records).norm(dim=1).median())
    found, _ = summed(model, records, mode, clip_norm)

    theirs = MODELS[name]()
    theirs.load_state_dict(model.state_dict())
    private, optimizer, _ = PrivacyEngine().make_private(
        module=theirs.train(),
        optimizer=torch.optim.SGD(trained(theirs), lr=1.0),
        data_loader=DataLoader(TensorDataset(records.inputs, records.targets), batch_size=9),
        noise_multiplier=0.0,
        max_grad_norm=clip_norm,
        poisson_sampling=False,
        loss_reduction="sum",
    )
    losses(private(records.inputs), records.targets).sum().backward()
    optimizer.pre_step()
    expected = flat([p.grad for p in trained(theirs) if p.grad is not None])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * clip_norm * 9)


@pytest.mark.parametrize("mode", CLIPPING_MODES)
def test_sum_over_more_records_than_are_held_at_once(mode: Mode) -> None:
    """Against torch.func, which takes all gradients in one go."""
    model, records = MODELS["mlp"](), some_records("mlp", HELD_RECORDS + 900)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss_of_one(values: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return losses(functional_call(model, values, (x[None],)), y[None])[0]

    found = vmap(grad(loss_of_one), in_dims=(None, 0, 0))(parameters, records.inputs, records.targets)
    gradients = torch.cat([found[name].flatten(1) for name in parameters], dim=1).double()
    clip_norm = float(gradients.norm(dim=1).median())
    ours, _ = summed(model, records, mode, clip_norm)
    guard = 2e-6 * clip_norm * len(records)  # each gradient is clipped a millionth below the norm
    torch.testing.assert_close(ours, clipped(gradients, clip_norm), rtol=0, atol=guard)
    assert float(clipped(gradients[-900:], clip_norm).norm()) > 100 * guard  # the last chunk is in it


def test_plain_sum_is_the_gradient_of_the_sum_of_losses() -> None:
    model, records = MODELS["mlp"](), some_records("mlp", 9)
    found, _ = summed(model, records, "plain", None)
    torch.testing.assert_close(found, one_by_one(model, records).sum(dim=0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", [*CLIPPING_MODES, "plain"])
@pytest.mark.parametrize("name", ["mlp", "sequences", "layer-norm", "cnn"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_record_that_is_not_finite_is_taken_out_wherever_it_stands(name: str, value: float, mode: Mode) -> None:
    clip_norm = None if mode == "plain" else 0.5
    model, good = MODELS[name](), some_records(name, 5)
    expected, _ = summed(model, good, mode, clip_norm)
    for place in range(6):
        bad = torch.full_like(good.inputs[:1], value)
        inputs = torch.cat([good.inputs[:place], bad, good.inputs[place:]])
        targets = torch.cat([good.targets[:place], torch.tensor([1]), good.targets[place:]])
        model_again = MODELS[name]()
        model_again.load_state_dict(model.state_dict())
        found, taken_out = summed(model_again, Records(inputs, targets), mode, clip_norm)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        assert taken_out == 1


@pytest.mark.parametrize("mode", [*CLIPPING_MODES, "plain"])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_batch_without_any_finite_record_adds_nothing(name: str, mode: Mode) -> None:
    records = Records(torch.full((3, *SHAPES.get(name, (7,))), math.nan), torch.zeros(3, dtype=torch.int64))
    found, taken_out = summed(MODELS[name](), records, mode, None if mode == "plain" else 1.0)
    assert taken_out == 3
    assert torch.count_nonzero(found) == 0


@pytest.mark.parametrize("mode", [*CLIPPING_MODES, "plain"])
@pytest.mark.parametrize("name", MODELS)
def test_empty_batch_adds_nothing(name: str, mode: Mode) -> None:
    model = MODELS[name]()
    sums, taken_out = GradientSum(model.train(), losses, mode, None if mode == "plain" else 1.0)(some_records(name, 0))
    assert taken_out == 0
    assert [total.shape for total in sums] == [parameter.shape for parameter in trained(model)]
    assert all(torch.count_nonzero(total) == 0 for total in sums)


EXTREMES = st.floats(width=32, allow_nan=True, allow_infinity=True) | st.sampled_from([1e30, -1e30, 3e38, 1e-40, 1e19])


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["linear", "mlp", "sequences", "layer-norm"]),
    mode=st.sampled_from(CLIPPING_MODES),
    clip_norm=st.sampled_from([1e-4, 1.0, 1e3]),
    values=st.lists(EXTREMES, min_size=12, max_size=12),
)
@example(name="mlp", mode="ghost", clip_norm=1e-4, values=[0.0, 3.4005130971073366e38, *[0.0] * 10])  # a tiny weight
def test_no_record_moves_the_sum_by_more_than_the_clip_norm(
    name: str, mode: Mode, clip_norm: float, values: list[float]
) -> None:
    torch.manual_seed(2)
    model = MODELS[name]()
    shape = SHAPES.get(name, (7,))
    record = torch.tensor(values)[: math.prod(shape)].reshape(1, *shape)
    alone, _ = summed(model, Records(record, torch.tensor([2])), mode, clip_norm)
    assert float(alone.norm()) <= clip_norm

    others, again = some_records(name, 4), MODELS[name]()
    again.load_state_dict(model.state_dict())
    gradient_sum = GradientSum(again.train(), losses, mode, clip_norm)
    without = flat(gradient_sum(others)[0])
    both = Records(torch.cat([others.inputs, record]), torch.cat([others.targets, torch.tensor([2])]))
    moved = float((flat(gradient_sum(both)[0]) - without).norm())
    assert moved <= clip_norm * (1 + 1e-5)  # four clipped gradients are rounded twice


@pytest.mark.parametrize("mode", CLIPPING_MODES)
@pytest.mark.parametrize("clip_norm", [1e-3, 1.0, 10.0])
def test_rounding_never_lets_a_gradient_exceed_the_clip_norm(mode: Mode, clip_norm: float) -> None:
    """Measured in doubles, over 500 gradients of 1,020 numbers each; without the guard about half exceed it."""
    model = nn.Linear(50, 20)
    gradient_sum = GradientSum(model.train(), losses, mode, clip_norm)
    for _ in range(500):
        sums, _ = gradient_sum(Records(torch.randn(1, 50) * 1e4, torch.randint(20, (1,))))
        assert float(flat(sums).norm()) <= clip_norm


def test_attack_gradients_that_cancel_over_a_sequence() -> None:
    """Norms from products of sums of squares lose all digits here: Opacus' own lets such a record in at 500 times C."""
    model = nn.Linear(2, 2)
    gradient_sum = GradientSum(model.train(), lambda outputs, signs: (outputs * signs).sum(dim=(1, 2)), "ghost", 1.0)
    for step in range(200):
        apart = 1 + step * 5e-6
        signs = torch.tensor([[[1.0, 1.0], [-apart, -apart]]])
        sums, _ = gradient_sum(Records(torch.full((1, 2, 2), 1e6), signs))
        assert float(flat(sums).norm()) <= 1 + 1e-6


@pytest.mark.parametrize("mode", CLIPPING_MODES)
def test_attack_bad_record_beside_dropout(mode: Mode) -> None:
    """A second draw of dropout, after a bad record was found, would weigh gradients by norms that are not theirs."""
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(8, CLASSES))
    gradient_sum = GradientSum(model.train(), losses, mode, 1.0)
    largest = 0.0
    for _ in range(100):
        good, bad = torch.rand(1, 8) * 5, torch.full((1, 8), math.inf)
        sums, taken_out = gradient_sum(Records(torch.cat([bad, good]), torch.tensor([0, 1])))
        assert taken_out == 1
        largest = max(largest, float(flat(sums).norm()))
        assert largest <= 1 + 1e-6
    assert largest > 0.9  # the good record did pass


@pytest.mark.parametrize("mode", CLIPPING_MODES)
@pytest.mark.parametrize("count", [1, 3])
def test_attack_records_folded_into_pieces(mode: Mode, count: int) -> None:
    """A model that passes every piece of a record as a row of its own would have each piece clipped to C."""

    class Pieces(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.layer(inputs.reshape(-1, 4)).reshape(len(inputs), -1, CLASSES).sum(dim=1)

    records = Records(torch.randn(count, 8, 4), torch.zeros(count, dtype=torch.int64))
    with pytest.raises(TaskError, match="each record by itself"):
        summed(Pieces(), records, mode)


@pytest.mark.parametrize("mode", [*CLIPPING_MODES, "plain"])
def test_loss_that_is_no_loss_of_each_record_is_refused(mode: Mode) -> None:
    model = MODELS["mlp"]().train()
    gradient_sum = GradientSum(
        model, lambda outputs, targets: losses(outputs, targets).mean(), mode, None if mode == "plain" else 1.0
    )
    with pytest.raises(TaskError, match="shape"):
        gradient_sum(some_records("mlp", 3))


@pytest.mark.parametrize("mode", [*CLIPPING_MODES, "plain"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "words"])
def test_nothing_of_a_batch_reaches_the_next(name: str, mode: Mode) -> None:
    clip_norm = None if mode == "plain" else 0.7
    model, first, second = MODELS[name](), some_records(name, 6), some_records(name, 4)
    again = MODELS[name]()
    again.load_state_dict(model.state_dict())
    gradient_sum = GradientSum(model.train(), losses, mode, clip_norm)
    gradient_sum(first)
    found = flat(gradient_sum(second)[0])
    torch.testing.assert_close(found, summed(again, second, mode, clip_norm)[0], rtol=0, atol=0)


@pytest.mark.parametrize("mode", CLIPPING_MODES)
def test_batch_that_failed_leaves_nothing_behind(mode: Mode) -> None:
    """A label out of range fails in the loss, when Opacus has noted the forward pass already."""
    model, records = MODELS["mlp"](), some_records("mlp", 4)
    again = MODELS["mlp"]()
    again.load_state_dict(model.state_dict())
    gradient_sum = GradientSum(model.train(), losses, mode, 0.7)
    with pytest.raises(IndexError):
        gradient_sum(Records(torch.randn(6, 7), torch.full((6,), CLASSES)))
    found = flat(gradient_sum(records)[0])
    torch.testing.assert_close(found, summed(again, records, mode, 0.7)[0], rtol=0, atol=0)


def test_ghost_is_chosen_for_linear_layers_and_for_many_parameters() -> None:
    assert mode_of(MODELS["mlp"]()) == "ghost"
    assert mode_of(MODELS["words"]()) == "ghost"
    assert mode_of(MODELS["cnn"]()) == "hooks"
    assert mode_of(MODELS["layer-norm"]()) == "hooks"
    assert mode_of(nn.Sequential(nn.Conv1d(1, 1, 1), nn.Linear(1, GHOST_PARAMETERS))) == "ghost"
    frozen_conv = nn.Sequential(nn.Conv1d(1, 1, 1).requires_grad_(False), nn.Linear(1, 2))
    assert mode_of(frozen_conv) == "ghost"


@pytest.mark.parametrize(("mode", "clip_norm"), [("hooks", None), ("ghost", None), ("plain", 1.0)])
def test_clipping_mode_without_clip_norm_is_a_mistake(mode: Mode, clip_norm: float | None) -> None:
    with pytest.raises(ValueError, match="clip norm"):
        GradientSum(MODELS["mlp"](), losses, mode, clip_norm)
