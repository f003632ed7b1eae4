"""Theorem 4.4 from the tangent kernel at the start: no wide first layer, no pyramid."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from ncutils import networks, theory
from ncutils.theory.any_width import certify_start, doubled_start, output_curvature
from ncutils.theory.dichotomy import dichotomy
from ncutils.theory.simulate import pack, unpack
from ncutils.theory.slide import slide


def case(samples=12, widths=(10, 6, 2), nonlinear=1, margin=1.01):
    x, y = theory.general_position(samples, samples + 2), np.arange(samples) % 2
    objective = theory.Objective(x, y, nonlinear, 0.0)

    def gap(log_scale):
        weights = doubled_start(objective, widths, math.exp(log_scale))
        test = certify_start(weights, x, y, num_nonlinear=nonlinear).assumption_4_3()
        return math.log(test.value / test.threshold)

    weights = doubled_start(objective, widths, margin * math.exp(brentq(gap, -1, 5, xtol=1e-5)))
    return objective, weights, certify_start(weights, x, y, num_nonlinear=nonlinear)


def jacobian(objective, weights):
    x = torch.from_numpy(objective.x)

    def outputs(*ws):
        z = x
        for i, w in enumerate(ws):
            z = z @ w.T
            z = networks.smooth(z, objective.gamma) if i < objective.num_nonlinear else z
        return z.reshape(-1)

    parts = torch.autograd.functional.jacobian(outputs, tuple(torch.as_tensor(w) for w in weights))
    return torch.cat([p.flatten(1) for p in parts], 1).numpy()


@pytest.mark.parametrize(("widths", "nonlinear"), [((10, 6, 2), 1), ((8, 8, 6, 2), 2)])
def test_constants_bound_the_jacobian_on_the_ball(widths, nonlinear):
    objective, weights, phase = case(widths=widths, nonlinear=nonlinear)
    at_start = jacobian(objective, weights)
    assert phase.jacobian_min == pytest.approx(np.linalg.svd(at_start, compute_uv=False)[-1], rel=1e-6)
    state, shapes, rng = pack(weights), objective.shapes(weights), np.random.default_rng(0)
    worst = 0.0
    for _ in range(20):
        step = rng.standard_normal(len(state))
        step *= phase.r0 / np.linalg.norm(step)
        moved = jacobian(objective, unpack(state + step, shapes))
        worst = max(worst, np.linalg.norm(moved - at_start, 2) / (phase.turning * phase.r0))
        assert np.linalg.svd(moved, compute_uv=False)[-1] ** 2 >= phase.alpha
    assert 0 < worst <= 1


def test_curvature_is_attained_on_scalars():
    """f(x) = w_3 w_2 w_1 x at w = (a, a, a): the form is a times the all-ones matrix without its diagonal."""
    objective = theory.Objective(np.eye(2), np.arange(2), 1, 0.0, activation="identity")
    weights = [3 * np.eye(2)] * 3
    assert output_curvature(objective, weights, 0.0) == pytest.approx(2 * 3)


@pytest.mark.parametrize(("samples", "widths", "nonlinear"), [(12, (10, 6, 2), 1), (12, (8, 8, 6, 2), 2)])
def test_every_conclusion_holds_without_a_wide_layer(samples, widths, nonlinear):
    objective, weights, phase = case(samples, widths, nonlinear)
    assert widths[0] < samples
    assert all(h.holds for h in phase.hypotheses())
    decay = phase.weight_decay
    times = np.concatenate([[0], np.geomspace(1e-2, 1, 5) * phase.t1, np.array([0.01, 0.5, 2, 4]) / decay])
    run = slide(replace(objective, weight_decay=decay), weights, times)
    checks = theory.theorem_4_4(phase, run)
    assert all(c.holds for c in checks), [str(c) for c in checks]
    assert run.nc1[-1] < 1e-3 < 1 < run.nc1[0]
    free = dichotomy(theory.flow(objective, weights, [0.0, 1.0, 1e3], rtol=1e-7, atol=1e-10), phase)
    assert free.holds is True and free.bound > 5


def test_silent_where_the_start_is_too_small():
    objective, weights, _ = case()
    phase = certify_start([0.5 * w for w in weights], objective.x, objective.y, num_nonlinear=1)
    assert not all(h.holds for h in phase.hypotheses())
    assert phase.travelled(2 * phase.budget) == math.inf
    assert phase.travelled(phase.budget) <= phase.r0 * (1 + 1e-6)


def test_a_network_of_the_library():
    network = networks.MLP(8, 2, num_nonlinear=1, num_linear=2, width=16, activation="smooth", dtype=torch.float64)
    phase = certify_start(network, theory.general_position(6, 8), np.arange(6) % 2)
    assert phase.num_nonlinear == 1 and phase.alpha > 0


def test_halves_need_even_widths_up_to_the_last():
    objective = theory.Objective(theory.general_position(6, 8), np.arange(6) % 3, 1, 0.0)
    assert [len(w) for w in doubled_start(objective, [8, 6, 3], 1.0)] == [8, 6, 3]
    for widths in ([8, 7, 3], [7, 6, 3]):
        with pytest.raises(ValueError, match="widths must be even up to the last"):
            doubled_start(objective, widths, 1.0)


def test_wrong_arguments():
    objective, weights, _ = case()
    x, y = objective.x, objective.y
    with pytest.raises(ValueError, match="num_nonlinear must be given"):
        certify_start(weights, x, y)
    with pytest.raises(ValueError, match="twice differentiable"):
        output_curvature(replace(objective, activation="relu"), weights, 0.1)
    with pytest.raises(ValueError, match="must be even"):
        doubled_start(objective, [5, 4, 2], 1.0)
    with pytest.raises(ValueError, match="at least NK"):
        certify_start(
            [np.ones((1, 2)), np.ones((1, 1)), np.ones((2, 1))], np.ones((12, 2)), np.arange(12) % 2, num_nonlinear=1
        )
    assert certify_start(weights, x, y, num_nonlinear=1).assumption_4_3("sharp", "descent").threshold > 0
    with pytest.raises(ValueError, match="form must be"):
        certify_start(weights, x, y, num_nonlinear=1).assumption_4_3("paper")


def test_a_start_is_certified_with_the_activation_it_has():
    network = networks.MLP(6, 2, num_nonlinear=1, num_linear=2, width=8, activation="smooth", gamma=0.05, seeds=(0,),
                           dtype=torch.float64)  # fmt: skip
    x, y = theory.general_position(4, 6), np.array([0, 1, 0, 1])
    outputs = network(torch.as_tensor(x).double())[0].detach().numpy()
    phase = certify_start(network, x, y)
    assert phase.gamma == 0.05
    assert phase.data_cost == pytest.approx(0.5 * np.square(outputs - np.eye(2)[y]).sum())
    with pytest.raises(ValueError, match="run must be below the 1 of the network; got 5"):
        certify_start(network, x, y, run=5)
