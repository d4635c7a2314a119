"""Convolutions of many nodes by units: outputs, gradients and norms are torch's own, record by record."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.simulations.cohort.chain import Chain
from privet.simulations.cohort.convolution import StackedConvolution
from privet.simulations.cohort.frequencies import pays
from privet.simulations.cohort.stacked import HELD
from privet.simulations.cohort.trunk import Trunk, trunk_end, units_of, used
from torch import Tensor, nn

NODES, PLACES = 3, 5
TOLERANCE = 1e-4  # of the largest number, in float32 against float64


@st.composite
def stages(draw: st.DrawFn) -> tuple[list[nn.Module], tuple[int, int, int]]:
    """One or two convolutions with what may stand behind them, and the shape of a record."""
    number = lambda low, high: draw(st.integers(low, high))  # noqa: E731
    groups = number(1, 2)
    channels, size = groups * number(1, 3), (number(15, 18), number(15, 18))
    made: list[nn.Module] = []
    taken = channels
    for place in range(number(1, 2)):
        given_channels = groups * number(1, 3)
        settings_of = {"stride": number(1, 2), "padding": number(0, 1), "dilation": number(1, 1 + (place == 0))}
        bias = draw(st.booleans())
        made.append(nn.Conv2d(taken, given_channels, (number(1, 3), 2), groups=groups, bias=bias, **settings_of))
        made += draw(
            st.sampled_from([[], [nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(2, 1)], [nn.Tanh(), nn.AvgPool2d(2, 1)]])
        )
        made += draw(st.sampled_from([[], [nn.ELU()], [nn.Sigmoid()]]))
        taken = given_channels
    return [*made, *draw(st.sampled_from([[], [nn.Flatten()]]))], (channels, *size)


def stacked(modules: list[nn.Module], values: list[list[Tensor]]) -> tuple[Chain, list[dict[str, Tensor]]]:
    """Their chain, bound to each node's values, and what the sums are added to."""
    chain = Chain([StackedConvolution(m) if isinstance(m, nn.Conv2d) else m for m in modules])
    chain.bind(NODES)
    sums, number = [], 0
    for layer in (stage for stage in chain.stages if isinstance(stage, StackedConvolution)):
        bound = {name: torch.stack([own[number + at] for own in values]) for at, name in enumerate(layer.trained)}
        sums.append({name: torch.full_like(value, 0.5) for name, value in bound.items()})
        layer.bind(NODES, bound, sums[-1])
        number += len(bound)
    return chain, sums


def by_torch(modules: list[nn.Module], values: list[Tensor], record: Tensor, derivatives: Tensor) -> list[Tensor]:
    """In float64: what comes out, the derivative by the record, and those by the parameters."""
    model = nn.Sequential(*modules).double()
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), values, strict=True):
            parameter.copy_(value)
    record = record.double().unsqueeze(0).requires_grad_()
    output = model(record)
    found = torch.autograd.grad((output * derivatives.double().view_as(output)).sum(), [record, *model.parameters()])
    model.float()
    return [output.squeeze(0).detach(), found[0].squeeze(0), *found[1:]]


def assert_close(found: Tensor, expected: Tensor) -> None:
    largest = max(float(expected.abs().max()), 0.05)  # what a sigmoid leaves of it, where it is all but 1, is rounding
    assert float((found.double() - expected).abs().max()) <= TOLERANCE * largest


@settings(max_examples=60, deadline=None)
@given(stages(), st.lists(st.integers(0, PLACES), min_size=NODES, max_size=NODES), st.booleans())
def test_unit_gives_what_torch_gives_record_by_record(
    drawn: tuple[list[nn.Module], tuple[int, int, int]], counts: list[int], by_record: bool
) -> None:
    assert_as_torch(*drawn, counts, by_record)


@pytest.mark.parametrize("by_record", [True, False])
@pytest.mark.parametrize("counts", [[3, 3, 2], [5, 0, 1]])
def test_unit_with_large_kernels_gives_what_torch_gives_record_by_record(counts: list[int], by_record: bool) -> None:
    """By frequencies (frequencies.py): the second of these, between two that are not."""
    modules: list[nn.Module] = [
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 32, 5, padding=2, bias=False),
        nn.ReLU(),
        nn.Conv2d(32, 2, 3),
        nn.Flatten(),
    ]
    assert pays(StackedConvolution(modules[3]).geometry, (7, 8), 32, 32)
    assert_as_torch(modules, (1, 15, 16), counts, by_record)


def assert_as_torch(modules: list[nn.Module], shape: tuple[int, int, int], counts: list[int], by_record: bool) -> None:
    """Outputs, derivatives by the inputs, sums and, where asked for, norms."""
    generator = torch.Generator().manual_seed(sum(counts))
    normal = lambda *size: torch.randn(size, generator=generator)  # noqa: E731
    real = torch.arange(PLACES).unsqueeze(1) < torch.tensor(counts)
    parameters = list(nn.Sequential(*modules).parameters())
    values = [[normal(*parameter.shape) for parameter in parameters] for _ in range(NODES)]
    inputs, weights = normal(PLACES, NODES, *shape), normal(PLACES, NODES).abs() if by_record else None
    chain, sums = stacked(modules, values)
    with torch.no_grad():
        trunk = Trunk(list(chain.stages), real, is_continued=True, by_record=by_record)
        output = trunk.forward(inputs)
        derivatives = normal(*output.shape) * real.t().view(NODES, PLACES, *[1] * (output.dim() - 2))
        by_inputs = trunk.back(derivatives)
        squares = [gradients.squared_norms(derivatives) for gradients in trunk.found] if by_record else []
        for gradients in trunk.found:
            gradients.add_sums(derivatives, weights)
    assert by_inputs is not None
    expected = [torch.full((NODES, *parameter.shape), 0.5).double() for parameter in parameters]
    expected_squares = torch.zeros(PLACES, NODES, dtype=torch.float64)
    for node, count in enumerate(counts):
        for place in range(count):
            own = by_torch(modules, values[node], inputs[place, node], derivatives[node, place])
            assert_close(output[node, place], own[0])
            assert_close(by_inputs[place, node], own[1])
            for total, gradient in zip(expected, own[2:], strict=True):
                total[node] += gradient * (1.0 if weights is None else float(weights[place, node]))
            expected_squares[place, node] = sum(gradient.square().sum() for gradient in own[2:])
    found = [total for of_layer in sums for total in of_layer.values()]
    for total, wanted in zip(found, expected, strict=True):
        assert_close(total, wanted)
    if by_record:
        assert_close(torch.stack(squares).sum(dim=0), expected_squares)


def test_sums_with_weights_where_records_gradients_are_too_many_to_keep() -> None:
    torch.manual_seed(3)
    modules: list[nn.Module] = [nn.Conv2d(64, 512, 3)]
    values = [[torch.randn_like(parameter) for parameter in modules[0].parameters()] for _ in range(NODES)]
    assert NODES * PLACES * sum(value.numel() for value in values[0]) > HELD
    chain, sums = stacked(modules, values)
    inputs, weights = torch.randn(PLACES, NODES, 64, 4, 4), torch.rand(PLACES, NODES)
    real = torch.arange(PLACES).unsqueeze(1) < torch.tensor([PLACES, PLACES - 1, PLACES])  # a unit, in another order
    with torch.no_grad():
        trunk = Trunk(list(chain.stages), real, is_continued=False, by_record=True)
        derivatives = torch.randn_like(trunk.forward(inputs)) * real.t().view(NODES, PLACES, 1, 1, 1)
        assert trunk.back(derivatives) is None
        squares = trunk.found[0].squared_norms(derivatives)
        trunk.found[0].add_sums(derivatives, weights)
    for node in range(NODES):
        own = [by_torch(modules, values[node], inputs[b, node], derivatives[node, b])[2:] for b in range(PLACES)]
        for name, gradients in zip(("weight", "bias"), zip(*own, strict=True), strict=True):
            weighted = sum(weight * gradient for weight, gradient in zip(weights[:, node], gradients, strict=True))
            assert_close(sums[0][name][node], 0.5 + weighted)
        assert_close(squares[:, node], torch.stack([sum(part.square().sum() for part in record) for record in own]))


def test_record_of_another_unit_changes_no_bit() -> None:
    torch.manual_seed(4)
    modules: list[nn.Module] = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2)]
    values = [[torch.randn_like(parameter) for parameter in modules[0].parameters()] for _ in range(NODES)]
    inputs, real = torch.randn(6, NODES, 1, 9, 9), torch.arange(6).unsqueeze(1) < torch.tensor([6, 2, 6])
    outputs = []
    for _ in range(2):
        chain, _ = stacked(modules, values)
        with torch.no_grad():
            outputs.append(Trunk(list(chain.stages), real, is_continued=False, by_record=False).forward(inputs))
        inputs = inputs.clone()
        inputs[:, 1] = torch.nan
    assert torch.equal(outputs[0][::2], outputs[1][::2])
    assert bool(outputs[1][1, :2].isnan().all())


def test_units_hold_nodes_of_nearly_as_many_records() -> None:
    units = units_of([30, 20, 0, 21, 29, 26])
    assert [unit.nodes for unit in units] == [[2], [1, 3, 5], [4, 0]]
    assert [unit.longest for unit in units] == [1, 26, 30]


def test_what_pools_drop_is_not_computed() -> None:
    """28 x 28, and of the last column and row of the 11 x 11 before the second pool nothing is used."""
    small: list[nn.Module] = [nn.Conv2d(1, 1, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2)]
    chain, _ = stacked([*small, *small], [[torch.ones(1, 1, 3, 3)] * 2] * NODES)
    assert used(list(chain.stages), (28, 28)) == (26, 26)
    assert used([*chain.stages, nn.MaxPool2d(2, padding=1)], (28, 28)) == (26, 26)
    assert used([nn.MaxPool2d(2, ceil_mode=True)], (11, 11)) == (11, 11)
    assert used([nn.Tanh(), nn.AvgPool2d(3, 2)], (12, 13)) == (11, 13)


def test_trunk_ends_before_what_is_not_passed_channel_by_channel() -> None:
    convolution = StackedConvolution(nn.Conv2d(1, 2, 3))
    circular = StackedConvolution(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"))
    plane = torch.zeros(4, 1, 8, 8)
    assert trunk_end([convolution, nn.ReLU(), nn.Flatten(), nn.ReLU()], 0, plane) == 3
    assert trunk_end([convolution, nn.ReLU(), circular], 0, plane) == 2
    assert trunk_end([circular, nn.ReLU()], 0, plane) == 0
    assert trunk_end([convolution, nn.ReLU()], 0, plane[0]) == 0
