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
