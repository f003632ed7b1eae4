"""Stationary points: the identity anywhere, the theorem at a minimum found by Newton-like descent."""

import dataclasses

import pytest
import torch
from heads import linear_heads
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils.theory import LinearHead, attack_heads, random_head, theorem_3_1_nc2
from ncutils.theory.stationary import (
    stationary_identity,
    stationary_nc2,
    stationary_nc2_sides,
    stationary_trace,
)


@settings(max_examples=200, deadline=None)
@given(linear_heads(max_noise=2.0), st.sampled_from([0.0, 1e-3, 0.1, 2.0]))
def test_nothing_is_violated(head, weight_decay):
    assert stationary_identity(head, weight_decay).holds is True
    assert stationary_trace(head, weight_decay).holds is True
    check = stationary_nc2(head, weight_decay)
    assert check.holds is not False, str(check)
    assert check.bound <= theorem_3_1_nc2(head, "sharp").bound * (1 + 1e-12) or check.holds is None


def minimiser(weight_decay=0.05, seed=0):
    """A head on fixed features, minimised by L-BFGS: a stationary point with E_w ≠ 0."""
    generator = torch.Generator().manual_seed(seed)
    weights, features, y = random_head(generator, 3, 3, 4, 2, noise=0.2, spread=(0.8, 1.3))
    point = [w.clone().requires_grad_() for w in weights]
    one_hot = torch.nn.functional.one_hot(y).double()
    optimiser = torch.optim.LBFGS(
        point,
        lr=1,
        max_iter=4000,
        tolerance_grad=1e-12,
        tolerance_change=0,
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def cost():
        optimiser.zero_grad()
        z = features
        for w in point:
            z = z @ w.T
        total = 0.5 * (z - one_hot).square().sum() + 0.5 * weight_decay * sum(w.square().sum() for w in point)
        total.backward()
        return total

    optimiser.step(cost)
    return LinearHead([p.detach() for p in point], features, y)


def test_at_a_minimum_the_theorem_holds():
    head = minimiser()
    identity = stationary_identity(head, 0.05)
    assert identity.measured < 1e-5
    mean = torch.eye(3).double() + head.mean_error
    assert torch.allclose(mean, mean.T, atol=1e-5)
    values = torch.linalg.eigvalsh((mean + mean.T) / 2)
    assert 0 < float(values[0]) <= float(values[-1]) < 1
    check = stationary_nc2(head, 0.05)
    delta = float(torch.linalg.matrix_norm(head.mean_error, 2))
    assert check.holds
    assert check.bound == pytest.approx(float(head.kappa_last) / (1 - delta), rel=1e-3)
    assert check.bound < 0.95 * theorem_3_1_nc2(head, "sharp").bound


def test_exact_collapse_reads_nc2_off_the_outputs():
    """Z_{L1} = Y, no scatter: NC2² is the ratio of the extreme m/(1−m), m the eigenvalues of M."""
    m, weight_decay = torch.tensor([0.9, 0.7], dtype=torch.float64), 0.1
    last = (m * (1 - m) / weight_decay).sqrt()
    head = LinearHead([torch.diag(m / last), torch.diag(last)], torch.eye(2), torch.arange(2))
    assert stationary_identity(head, weight_decay).measured < 1e-14
    odds = m / (1 - m)
    assert float(head.nc2(head.layers[-2])) ** 2 == pytest.approx(float(odds.max() / odds.min()), rel=1e-12)
    assert stationary_nc2(head, weight_decay).holds is True


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_smaller_constant_would_be_caught(weight_decay):
    found = attack_heads(lambda h: stationary_nc2_sides(h, weight_decay), ((2, 2, 2), (3, 2, 1)), steps=200)
    assert 0.9 < found.ratio <= 1 + 1e-9
    k = 3 if len(found.instance[-1]) == 3 else 2
    head = LinearHead(
        found.instance[:-1], found.instance[-1], torch.arange(k).repeat_interleave(len(found.instance[-1]) // k)
    )
    check = stationary_nc2(head, weight_decay)
    assert check.holds is True
    assert dataclasses.replace(check, bound=0.9 * check.bound).holds is False


def test_the_identity_and_the_trace_can_fail():
    head = minimiser()
    check = stationary_identity(LinearHead(*random_head(torch.Generator().manual_seed(0))), 0.1)
    assert dataclasses.replace(check, bound=1.001 * check.bound).holds is False
    # half the labels everywhere: M = I/2 attains the trace bound
    half = LinearHead([torch.eye(2), torch.eye(2)], 0.5 * torch.eye(2), torch.arange(2))
    trace = stationary_trace(half, 0.3)
    assert trace.ratio == pytest.approx(1, rel=1e-12)
    assert dataclasses.replace(trace, bound=0.999 * trace.bound).holds is False
    assert stationary_trace(head, 0.05).holds
    with pytest.raises(ValueError, match="weight_decay must be"):
        stationary_trace(half, -1.0)


@pytest.mark.parametrize("scale", [1e-3, 1e-8, 1e-30])
def test_outputs_far_below_the_labels_keep_their_digits(scale):
    """I + Ē rounds to 1e-16 of 1, which is all of M where M is small: the output itself must be asked."""
    weights, features, y = random_head(torch.Generator().manual_seed(0), 3, 3, 4, 2, noise=0.2)
    check = stationary_identity(LinearHead([scale * w for w in weights], features, y), 0.0)
    assert check.measured == pytest.approx(check.bound, rel=1e-9) and check.holds is True


def test_near_a_stationary_point_the_gradient_enters_as_stated():
    """τ = ½(1 + √(1 + 4σ)), σ = ‖RW_Lᵀ‖K/N, wherever that is below 1 + δ."""
    m, weight_decay = torch.tensor([0.9, 0.7], dtype=torch.float64), 0.1
    root = (m * (1 - m) / weight_decay).sqrt()  # as in the exact case above, but for two hundredths
    head = LinearHead([torch.diag(1.02 * m / root), torch.diag(root)], torch.eye(2), torch.arange(2))
    last, norm = head.weights[-1], lambda matrix: float(torch.linalg.matrix_norm(matrix, 2))
    pull = (head.error.T @ head.layers[-2] + weight_decay * last) @ last.T
    tau, delta = (1 + (1 + 4 * norm(pull) * 2 / head.num_samples) ** 0.5) / 2, norm(head.mean_error)
    assert 1.001 < tau < 1 + delta
    unseen = norm(last) ** 2 * float(head.imbalances[-1]) * norm(head.class_means(head.layers[-3])) ** 2
    expected = ((tau * float(head.kappa_last)) ** 2 + unseen) ** 0.5 / (1 - delta)
    assert stationary_nc2(head, weight_decay).bound == pytest.approx(expected, rel=1e-9)


def uneven_head(seed=0, scale=1.0):
    """K = 3, N = 12, widths 4, 5, 3: away from balance, interpolation and any stationary point."""
    weights, features, y = random_head(torch.Generator().manual_seed(seed), 3, 2, 4, 2, noise=0.1, spread=(0.8, 1.2))
    return LinearHead([scale * w for w in weights], features, y)


def parts(head, weight_decay):
    """M, E_w E_wᵀ and R W_Lᵀ from the module's text, columns for samples."""
    z, last = head.layers[-2].T, head.weights[-1]
    outputs, labels = last @ z, torch.nn.functional.one_hot(head.y).double().T
    mean = torch.stack([outputs[:, head.y == c].mean(1) for c in range(head.num_classes)], 1)
    rest = outputs - mean @ labels
    gradient = (outputs - labels) @ z.T + weight_decay * last
    return mean, rest @ rest.T, gradient @ last.T


@pytest.mark.parametrize("weight_decay", [0.0, 0.3, 2.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_sides_of_the_identity_are_as_stated(seed, weight_decay):
    head = uneven_head(seed)
    mean, within, pull = parts(head, weight_decay)
    last, n = head.weights[-1], 4
    left = n * (torch.eye(3).double() - mean) @ mean.T - weight_decay * last @ last.T - within
    check = stationary_identity(head, weight_decay)
    assert check.measured == pytest.approx(float(left.norm()), rel=1e-9)
    assert check.bound == pytest.approx(float(pull.norm()), rel=1e-9) and check.holds is True
    first = n * ((torch.eye(3).double() - mean) @ mean.T).norm()
    sizes = first + weight_decay * last.norm() ** 2 + within.norm() + head.eps1 * head.output.norm()
    assert check.rounding == pytest.approx(1e-12 * float(sizes), rel=1e-9)
    assert (check.statement, check.quantity, check.form, check.sense) == (
        "Stationary points (identity)", "identity", "exact", "=="
    )  # fmt: skip


@pytest.mark.parametrize("weight_decay", [0.0, 0.3, 2.0])
def test_the_trace_is_as_stated(weight_decay):
    head = uneven_head()
    _, within, pull = parts(head, weight_decay)
    check = stationary_trace(head, weight_decay)
    expected = weight_decay * head.weights[-1].square().sum() + within.trace() - pull.trace()
    assert check.measured == pytest.approx(float(expected), rel=1e-9)
    assert check.bound == 3.0 and check.holds is True  # N/4


@pytest.mark.parametrize("weight_decay", [0.0, 1e-3, 0.3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_bound_of_nc2_is_as_stated(seed, weight_decay):
    head = uneven_head(seed)
    mean, _, pull = parts(head, weight_decay)
    norm = lambda matrix: float(torch.linalg.matrix_norm(matrix, 2))  # noqa: E731
    delta, last = norm(mean - torch.eye(3).double()), head.weights[-1]
    tau = min((1 + (1 + 4 * norm(pull) / 4) ** 0.5) / 2, 1 + delta)
    means = torch.stack([head.layers[-3][head.y == c].mean(0) for c in range(3)])
    unseen = norm(last) ** 2 * norm(last.T @ last - head.weights[-2] @ head.weights[-2].T) * norm(means) ** 2
    values = torch.linalg.svdvals(last)
    expected = ((tau * float(values[0] / values[2])) ** 2 + unseen) ** 0.5 / (1 - delta)
    check = stationary_nc2(head, weight_decay)
    assert check.bound == pytest.approx(expected, rel=1e-9) and check.holds is True
    before = torch.stack([head.layers[-2][head.y == c].mean(0) for c in range(3)])
    values = torch.linalg.svdvals(before)
    assert check.measured == pytest.approx(float(values[0] / values[2]), rel=1e-9)
    measured, bound = stationary_nc2_sides(head, weight_decay)
    assert (float(measured), float(bound)) == (check.measured, check.bound)
    told = check.hypotheses[0]
    assert told.value == pytest.approx(delta) and (told.threshold, told.sense, told.holds) == (1.0, "<", True)


@pytest.mark.parametrize(("scale", "speaks"), [(0.0, False), (2.0, False), (1.9, True), (0.1, True)])
def test_a_mean_error_of_one_leaves_nothing_to_say(scale, speaks):
    """M is the identity times the scale, so that δ = |scale - 1|."""
    head = LinearHead([torch.eye(2), torch.eye(2)], scale * torch.eye(2), torch.arange(2))
    check = stationary_nc2(head, 0.1)
    assert check.hypotheses[0].holds is speaks and (check.bound < float("inf")) is speaks
    assert check.hypotheses[1].holds is True  # the rank of the last layer


@pytest.mark.parametrize("ask", [stationary_identity, stationary_trace, stationary_nc2, stationary_nc2_sides])
def test_a_weight_decay_is_a_number_that_can_be_squared(ask):
    head = uneven_head()
    for bad in (-1e-9, float("nan"), 1.1e100):
        with pytest.raises(ValueError, match=r"weight_decay must be at least 0, at most 1e\+100; got"):
            ask(head, bad)
    assert ask(head, 0.0) and ask(head, 1e100)
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        ask(3, 0.1)
