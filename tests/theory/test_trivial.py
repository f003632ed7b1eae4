"""The trivial solution of a whole network."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from ncutils.theory import optimal_scale
from ncutils.theory.trivial import trivial_price, trivial_transition

CASE = dict(input_norm=2.0, samples=4, classes=2)
Y = torch.eye(2, dtype=torch.float64).repeat_interleave(2, 0).T


def cost(flat, depth, nonlinear, decay):
    """C_λ of widths 2 on X = I_4, with its gradient."""
    theta = torch.from_numpy(flat).requires_grad_()
    shapes = [(2, 4)] + [(2, 2)] * (nonlinear + depth - 1)
    z, at = torch.eye(4, dtype=torch.float64), 0
    for layer, (rows, columns) in enumerate(shapes):
        z = theta[at : at + rows * columns].reshape(rows, columns) @ z
        at += rows * columns
        z = z.relu() if layer < nonlinear else z
    value = 0.5 * (z - Y).square().sum() + 0.5 * decay * theta.square().sum()
    return value.item(), torch.autograd.grad(value, theta)[0].numpy()


def best(depth, nonlinear=1, decay=0.2, starts=3):
    reference = np.concatenate([Y.numpy().ravel(), *[np.eye(2).ravel()] * (nonlinear + depth - 1)])
    generator = np.random.default_rng(0)
    found = []
    for start in range(starts):
        point = reference + 0.1 * start * generator.normal(size=reference.shape)
        found.append(minimize(cost, point, args=(depth, nonlinear, decay), jac=True, method="L-BFGS-B").fun)
    return min(found)


def test_transition_lies_between_the_proved_depths():
    below, first = trivial_transition(0.2, 1, reference=4.0, **CASE)
    assert (below, first) == (7, 15)
    assert best(below) < 2 - 1e-3
    assert best(first) >= 2 - 1e-9
    crossing = [depth for depth in range(below, first + 1) if best(depth) < 2 - 1e-6]
    assert max(crossing) in range(below, first)


@pytest.mark.parametrize("nonlinear", [1, 2])
def test_no_parameters_beat_zero_where_the_theorem_says_so(nonlinear):
    first = trivial_transition(0.2, nonlinear, reference=4.0 + 2 * (nonlinear - 1), **CASE)[1]
    generator = np.random.default_rng(1)
    size = 8 + 4 * (nonlinear + first - 1)
    for scale in (0.3, 1.0, 1.5):
        for _ in range(20):
            assert cost(scale * generator.normal(size=size), first, nonlinear, 0.2)[0] > 2
    assert best(first, nonlinear) >= 2 - 1e-9


def test_a_smaller_threshold_would_be_wrong():
    # at L2 = 8 zero is beaten, with a price well below 1: so the theorem's 1 cannot become that price
    assert best(8) < 2 - 1e-3
    assert 0.4 < trivial_price(0.2, 8, 1, **CASE) < 1


def test_without_nonlinear_part_it_is_the_proposition_on_frozen_features():
    # X = Y, ‖X‖_op = √n: π = λ(L2 − 1)/n
    for depth in (2, 50, 101, 160):
        price = trivial_price(0.01, depth, 0, input_norm=1.0, samples=2, classes=2)
        assert price == pytest.approx(0.01 * (depth - 1))
        assert price < 1 or optimal_scale(0.01, depth) == 0


@pytest.mark.parametrize(
    "wrong", [dict(weight_decay=0.0), dict(num_linear=1), dict(num_nonlinear=-1), dict(samples=5), dict(input_norm=0.0)]
)
def test_arguments(wrong):
    known = dict(weight_decay=0.1, num_linear=3, num_nonlinear=1, **CASE) | wrong
    with pytest.raises(ValueError, match="must be"):
        trivial_price(**known)


def test_not_proved_is_none():
    assert trivial_transition(1e-6, 1, reference=4.0, **CASE, deepest=50)[1] is None


@pytest.mark.parametrize(
    ("decay", "linear", "nonlinear", "norm", "samples", "classes"),
    [
        (0.2, 15, 1, 2.0, 4, 2),
        (0.01, 2, 3, 5.0, 30, 5),
        (0.5, 7, 2, 0.3, 12, 3),
        (0.1, 4, 0, 3.0, 6, 1),
        (2.0, 3, 5, 1.0, 7, 7),
    ],
)
def test_the_price_is_that_of_the_theorem(decay, linear, nonlinear, norm, samples, classes):
    """π = (λ/n)(L2 − 1)(√n/z)^{2/L2}, z = ‖X‖_F (N/(λL1))^{L1/2}."""
    n = samples / classes
    z = norm * ((samples / (decay * nonlinear)) ** (nonlinear / 2) if nonlinear else 1.0)
    expected = decay / n * (linear - 1) * (math.sqrt(n) / z) ** (2 / linear)
    found = trivial_price(decay, linear, nonlinear, input_norm=norm, samples=samples, classes=classes)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_decay": 0.0}, "weight_decay must be above 0, finite; got 0.0"),
        ({"num_linear": 1}, "num_linear must be at least 2; got 1"),
        ({"num_nonlinear": -1}, "num_nonlinear must be at least 0; got -1"),
        ({"input_norm": 0.0}, "input_norm must be above 0, finite; got 0.0"),
        ({"samples": 0}, "samples must be at least 1; got 0"),
        ({"classes": 0}, "classes must be at least 1; got 0"),
        ({"samples": 5, "classes": 2}, "samples must be a multiple of classes = 2; got 5"),
    ],
)
def test_prices_refuse_numbers_out_of_range(change, words):
    known = dict(weight_decay=0.1, num_linear=2, num_nonlinear=0, input_norm=1.0, samples=1, classes=1)
    assert trivial_price(**known) == pytest.approx(0.1)  # each at its limit
    with pytest.raises(ValueError, match=words):
        trivial_price(**known | change)


def steps_of(decay, **options):
    """With X = Y and one sample a class the price is λ(L2 − 1)."""
    case = dict(reference=0.0, input_norm=1.0, samples=2, classes=2) | options
    return trivial_transition(decay, 0, **case)


@pytest.mark.parametrize(
    ("decay", "options", "first"),
    [
        (1.0, {}, 2),
        (1.0, {"deepest": 2}, 2),
        (0.5, {}, 3),  # a price of 1 is enough
        (0.51, {"deepest": 2}, None),
        (0.49, {"deepest": 3}, None),
        (0.49, {"deepest": 4}, 4),
        (1 / 9998.5, {}, 10_000),  # the deepest that is looked at, unless another is given
        (1 / 9999.5, {}, None),
        (1 / 9999.5, {"deepest": 10_001}, 10_001),
    ],
)
def test_the_transition_is_the_least_depth_from_which_the_price_is_one(decay, options, first):
    assert steps_of(decay, **options)[1] == first


@pytest.mark.parametrize(
    ("decay", "reference", "samples", "classes", "below"),
    [
        (0.5, 0.0, 4, 2, 3),
        (0.5, 0.1, 4, 2, 3),
        (0.5, -0.1, 4, 2, 4),
        (0.5, 1.0, 6, 3, 3),
        (0.25, 3.0, 4, 1, 12),
        (2.0, 5.0, 4, 2, -2),
    ],
)
def test_zero_is_beaten_while_the_reference_costs_less(decay, reference, samples, classes, below):
    """c + K L2 < N/λ, and not at equality."""
    found = trivial_transition(
        decay, 1, reference=reference, input_norm=2.0, samples=samples, classes=classes, deepest=50
    )
    assert found[0] == below == max(depth for depth in range(-9, 50) if reference + classes * depth < samples / decay)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"deepest": 1}, "deepest must be at least 2; got 1"),
        ({"deepest": 10**6 + 1}, r"deepest must be at most 1e\+06; got 1000001"),
        ({"reference": math.inf}, "reference must be finite; got inf"),
        ({"weight_decay": 0.0}, "weight_decay must be above 0, finite; got 0.0"),
        ({"num_nonlinear": -1}, "num_nonlinear must be at least 0; got -1"),
        ({"input_norm": 0.0}, "input_norm must be above 0, finite; got 0.0"),
        ({"samples": 0}, "samples must be at least 1; got 0"),
        ({"classes": 0}, "classes must be at least 1; got 0"),
    ],
)
def test_transitions_refuse_numbers_out_of_range(change, words):
    known = dict(weight_decay=1e-7, num_nonlinear=0, reference=-1.0, input_norm=1.0, samples=1, classes=1)
    assert trivial_transition(**known, deepest=2)[1] is trivial_transition(**known, deepest=10**6)[1] is None
    with pytest.raises(ValueError, match=words):
        trivial_transition(**known | change)
