"""What the engine refuses, with the layer's name; and what its check on synthetic records finds."""

from collections.abc import Callable

import pytest
import torch
from cohorts import CPU, AnyTask
from privet.privacy.submission import Submission
from privet.simulations.cohort.check import checked_model
from privet.simulations.cohort.unsupported import UnsupportedError
from torch import Tensor, nn
from torch.nn import functional

Make = Callable[..., Submission]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 4, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.rnn(inputs.unsqueeze(2))[0][:, -1]


class Forward(nn.Module):
    """Two linear layers and a function of theirs."""

    def __init__(self, forward: Callable[["Forward", Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.register_buffer("seen", torch.zeros(()))
        self._forward = forward

    def forward(self, inputs: Tensor) -> Tensor:
        return self._forward(self, inputs)


def tied() -> nn.Module:
    layer = nn.Linear(5, 5)
    return nn.Sequential(layer, nn.Tanh(), layer)


def hooked() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5))
    model[0].register_forward_hook(lambda module, inputs, output: output * 2)
    return model


def own_parameter() -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 5), nn.PReLU())
    return nn.Sequential(model, nn.Tanh())


def counting(model: Forward, inputs: Tensor) -> Tensor:
    model.seen += 1
    return model.second(model.first(inputs))


def overwriting(model: Forward, inputs: Tensor) -> Tensor:
    return functional.relu_(model.second(model.first(inputs)))


def randomly(model: Forward, inputs: Tensor) -> Tensor:
    return model.second(model.first(inputs) + torch.rand(5))


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "recurrent": (Recurrent, r"recurrent LSTM \(at rnn\)"),
    "attention": (
        lambda: nn.TransformerEncoderLayer(5, 1, 4, dropout=0.0, batch_first=True),
        r"MultiheadAttention \(at self_attn\)",
    ),
    "prelu": (own_parameter, r"PReLU \(at 0\.1\)"),
    "batch-norm": (lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5)), r"BatchNorm1d \(at 1\)"),
    "batch-norm-without-parameters": (
        lambda: nn.Sequential(nn.Linear(5, 5), nn.BatchNorm1d(5, affine=False)),
        r"BatchNorm1d \(at 1\), which mixes",
    ),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 5), nn.Dropout(0.5)), r"Dropout \(at 1\), which draws"),
    "tied": (tied, "used in two places"),
    "hooks": (hooked, r"Linear \(at 0\) with hooks"),
    "double": (lambda: nn.Linear(5, 5).double(), "torch.float64"),
    "weight-norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)),
        "Parametrized",
    ),
    "embedding-with-padding": (
        lambda: nn.Sequential(nn.Embedding(9, 5, padding_idx=0)),
        r"Embedding \(at 0\) with padd",
    ),
    "mixing": (lambda: Forward(lambda m, x: m.second(m.first(x) - x.mean(dim=0))), "do not stay apart"),
    "used-twice": (lambda: Forward(lambda m, x: m.second(m.first(m.first(x)))), "do not stay apart"),
    "weight-in-a-function": (lambda: Forward(lambda m, x: functional.linear(m.first(x), m.second.weight)), "weight"),
    "counting": (lambda: Forward(counting), "changes its state"),
    "overwriting": (lambda: Forward(overwriting), "the model's forward"),
    "randomly": (lambda: Forward(randomly), "draws random numbers"),
}


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_model_is_refused_and_the_layer_named(make_submission: Make, name: str, private: bool) -> None:
    model_of, why = REFUSED[name]
    with pytest.raises(UnsupportedError, match=why):
        checked_model(AnyTask(model_of, (5,)), make_submission(private=private).plan, CPU)


def test_layer_that_is_not_used_has_no_part(make_submission: Make) -> None:
    model = checked_model(AnyTask(lambda: Forward(lambda m, x: m.first(x)), (5,)), make_submission().plan, CPU)
    assert model.size == 60
