"""Convolutions by frequencies: outputs and derivatives are torch's own in float64, at any shape and of any unit."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from privet.simulations.cohort.frequencies import ByFrequencies, convolved, pays
from privet.simulations.cohort.places import Convolved, Geometry
from torch import Tensor
from torch.nn import functional

TOLERANCE = 1e-6  # of the lengths of both factors, multiplied: of their product, where nothing cancels out
PLAIN = Geometry((5, 5), (1, 1), (2, 2), (1, 1), 1)


@st.composite
def geometries(draw: st.DrawFn) -> tuple[Geometry, tuple[int, int]]:
    """A kernel, its padding, and a plane on which it has at least one place."""
    lengths = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    padding = draw(st.integers(0, lengths[0] - 1)), draw(st.integers(0, lengths[1] - 1))
    least = [max(1, length - 2 * before) for length, before in zip(lengths, padding, strict=True)]
    plane = draw(st.integers(least[0], 17)), draw(st.integers(least[1], 17))
    return Geometry(lengths, (1, 1), padding, (1, 1), 1), plane


def normal(*shape: int) -> Tensor:
    values = torch.randn(shape)
    return values.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else values


def assert_close(found: Tensor, expected: Tensor, *factors: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found.double() - expected).norm()) <= TOLERANCE * math.prod(
        float(factor.norm()) for factor in factors
    )


@settings(max_examples=80, deadline=None)
@given(geometries(), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_outputs_and_derivatives_are_torchs(
    drawn: tuple[Geometry, tuple[int, int]], units: int, count: int, channels: int, channels_out: int, has_bias: bool
) -> None:
    geometry, plane = drawn
    torch.manual_seed(count)
    inputs = normal(count, units * channels, *plane)
    kernel = torch.randn(units * channels_out, channels, *geometry.kernel)
    bias = normal(units * channels_out) if has_bias else None
    passed = ByFrequencies(geometry, inputs, kernel, units)
    output = passed.output(bias)
    assert output.is_contiguous(memory_format=torch.channels_last)
    wide, kernels = inputs.double().requires_grad_(), kernel.double().requires_grad_()
    expected = functional.conv2d(
        wide, kernels, None if bias is None else bias.double(), padding=geometry.padding, groups=units
    )
    assert_close(output, expected.detach(), inputs, kernel)
    for _ in range(2):  # the second derivatives are not taken for the first
        backprops = normal(*output.shape)
        by_both = torch.autograd.grad(expected, [wide, kernels], backprops.double(), retain_graph=True)
        assert_close(passed.by_inputs(backprops), by_both[0], backprops, kernel)
        assert_close(passed.by_kernel(backprops), by_both[1], backprops, inputs)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_plane_that_is_not_finite_gives_nothing_finite_and_reaches_no_other_record(value: float) -> None:
    inputs, kernel = normal(3, 4, 9, 9), normal(2, 4, 5, 5)
    clean = ByFrequencies(PLAIN, inputs, kernel, 1)
    expected, backprops = clean.output(None), normal(3, 2, 9, 9)
    inputs = inputs.clone(memory_format=torch.preserve_format)
    inputs[1, 2, 8, 0] = value
    passed = ByFrequencies(PLAIN, inputs, kernel, 1)
    found = passed.output(None)
    assert not bool(found[1].isfinite().any())
    assert torch.equal(found[::2], expected[::2])
    assert not bool(passed.by_kernel(backprops)[:, 2].isfinite().any())
    by_inputs = clean.by_inputs(backprops)
    backprops[1, 0, 0, 0] = value
    found = clean.by_inputs(backprops.clone(memory_format=torch.preserve_format))
    assert not bool(found[1].isfinite().any())
    assert torch.equal(found[::2], by_inputs[::2])


def test_planes_of_zeros_stay_zeros() -> None:
    passed = ByFrequencies(PLAIN, normal(2, 4, 9, 9) * 0.0, normal(2, 4, 5, 5), 1)
    assert not bool(passed.output(None).any())


def test_large_kernels_on_small_planes_are_passed_by_frequencies() -> None:
    geometry = lambda side, **of: Geometry(  # noqa: E731
        (side, side), of.get("stride", (1, 1)), (of.get("padding", 2),) * 2, of.get("dilation", (1, 1)), 1
    )
    assert pays(geometry(5), (14, 14), 32, 64)
    assert pays(geometry(5, padding=0), (14, 14), 32, 32)
    assert not pays(geometry(3), (14, 14), 128, 128)
    assert not pays(geometry(5), (14, 14), 16, 16)
    assert not pays(geometry(5, padding=0), (6, 6), 32, 64)
    assert not pays(geometry(5), (56, 56), 32, 64)
    assert not pays(geometry(5, padding=5), (14, 14), 32, 64)
    assert not pays(geometry(5, stride=(1, 2)), (14, 14), 32, 64)
    assert not pays(geometry(5, dilation=(2, 1)), (14, 14), 32, 64)
    assert not pays(geometry(5), (14, 14), 512, 512)
    assert not pays(Geometry((5, 5), (1, 1), (2, 2), (1, 1), 2), (14, 14), 32, 64)


def test_only_float32_is_passed_by_frequencies() -> None:
    inputs, kernel = normal(2, 64, 14, 14), normal(128, 32, 5, 5)
    assert type(convolved(PLAIN, inputs, kernel, 2)) is ByFrequencies
    assert type(convolved(PLAIN, inputs.double(), kernel.double(), 2)) is Convolved


def test_half_the_bits_are_passed_place_by_place() -> None:
    """To a hundredth, as numbers of 8 bits are; the sums over records are float32."""
    inputs, kernel, backprops = normal(2, 64, 14, 14), normal(128, 32, 5, 5), normal(2, 128, 14, 14)
    whole = convolved(PLAIN, inputs, kernel, 2)
    with torch.autocast("cpu", torch.bfloat16):
        halved = convolved(PLAIN, inputs, kernel, 2)
        found = halved.output(None), halved.by_inputs(backprops.bfloat16()), halved.by_kernel(backprops.bfloat16())
    assert [part.dtype for part in found] == [torch.bfloat16, torch.bfloat16, torch.float32]
    expected = whole.output(None), whole.by_inputs(backprops), whole.by_kernel(backprops)
    for part, wanted in zip(found, expected, strict=True):
        assert float((part.float() - wanted).norm()) <= 0.01 * float(wanted.norm())
