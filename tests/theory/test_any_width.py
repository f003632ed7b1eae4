"""Theorem 4.4 from the tangent kernel at the start: no wide first layer, no pyramid."""

import math
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from scipy.integrate import quad
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


def form_of(scales, radius, z, bend=0.0, nonlinear=0):
    """M of the module's text, for layers of these norms on the ball and features z_0..z_{L-1} on it."""
    depth, a = len(scales), [scale + radius for scale in scales]
    form = np.zeros((depth, depth))
    for i in range(depth):
        for j in range(i + 1, depth):
            others = [a[k] for k in range(i + 1, depth) if k != j]
            form[i, j] = form[j, i] = z[i] * np.prod(others)
    for j in range(nonlinear):
        d = np.array([z[i] * np.prod(a[i + 1 : j + 1]) if i <= j else 0.0 for i in range(depth)])
        form += bend * np.prod(a[j + 1 :]) * np.outer(d, d)
    return form


@pytest.mark.parametrize("radius", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("scales", [(3.0, 3.0, 3.0), (2.0, 0.5, 3.0), (1.5, 4.0, 0.25, 2.0)])
def test_curvature_of_scaled_identities_on_a_ball(scales, radius):
    """Norms and features grow by the radius: z_l is the product of what the first layers are at most."""
    objective = theory.Objective(2 * np.eye(3), np.arange(3), 1, 0.0, activation="identity")
    z = [2 * np.prod([scale + radius for scale in scales[:layer]]) for layer in range(len(scales))]
    expected = np.linalg.eigvalsh(form_of(scales, radius, z)).max()
    found = output_curvature(objective, [scale * np.eye(3) for scale in scales], radius)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("gamma", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("nonlinear", [1, 2])
def test_curvature_charges_the_bend_of_every_activation(nonlinear, gamma):
    """|σ''| ≤ (1 - γ)/2, with the features that the network has at the centre of the ball."""
    objective = theory.Objective(1.5 * np.eye(2), np.arange(2), nonlinear, 0.0, gamma=gamma)
    scales, z, features = (2.0, 0.5, 3.0), [], torch.eye(2).double() * 1.5
    for layer, scale in enumerate(scales):
        z.append(float(torch.linalg.matrix_norm(features, 2)))
        features = networks.smooth(scale * features, gamma) if layer < nonlinear else scale * features
    for radius in (0.0, 0.3):
        a, drift, wide = [scale + radius for scale in scales], 0.0, []
        for layer in range(3):
            wide.append(z[layer] + drift)
            drift = a[layer] * drift + radius * z[layer]
        expected = np.linalg.eigvalsh(form_of(scales, radius, wide, (1 - gamma) / 2, nonlinear)).max()
        found = output_curvature(objective, [scale * np.eye(2) for scale in scales], radius)
        assert found == pytest.approx(expected, rel=1e-12)


def test_curvature_is_of_a_ball_that_is_one():
    objective, weights = theory.Objective(np.eye(2), np.arange(2), 1, 0.0, activation="identity"), [np.eye(2)] * 3
    for radius in (-0.1, 1.1e9, math.nan):
        with pytest.raises(ValueError, match=r"radius must be at least 0, at most 1e\+09; got"):
            output_curvature(objective, weights, radius)
    assert output_curvature(objective, weights, 1e9) > 1e9 and output_curvature(objective, weights, 0) == pytest.approx(
        2
    )


def test_the_constants_are_integrals_of_what_the_jacobian_has_left():
    """√α(t) = s - Ht up to r_0, the largest radius that is at most s/(2H) of its own ball."""
    objective, weights, phase = case()
    s, turning, ball = phase.jacobian_min, phase.turning, phase.ball
    assert phase.r0 == ball and turning == pytest.approx(output_curvature(objective, weights, ball), rel=1e-12)
    assert ball == pytest.approx(s / (2 * turning), rel=1e-9)
    assert 2 * 1.001 * ball * output_curvature(objective, weights, 1.001 * ball) > s
    assert phase.alpha == pytest.approx(s**2 / 4, rel=1e-8)
    left = lambda end: quad(lambda t: s - turning * t, 0, end)[0]  # noqa: E731
    assert phase.budget == pytest.approx(left(ball), rel=1e-9)
    for part in (0.1, 0.5, 0.9, 1.0):
        assert left(phase.travelled(part * phase.budget)) == pytest.approx(part * phase.budget, rel=1e-9)
    assert phase.travelled(phase.budget * (1 + 0.9e-9)) < math.inf == phase.travelled(phase.budget * (1 + 1.1e-9))
    short = replace(phase, jacobian_min=3.0, turning=2.0, ball=0.5)
    assert (short.r0, short.alpha, short.budget) == pytest.approx((0.5, 4.0, 1.25))
    assert short.travelled(0.5) == pytest.approx((3 - math.sqrt(7)) / 2)
    with pytest.raises(FrozenInstanceError):
        phase.ball = 1.0


def test_descent_needs_twice_the_flow():
    objective, weights, phase = case(samples=6, widths=(4, 4, 2))
    flow, descent = (phase.assumption_4_3("sharp", dynamics) for dynamics in ("flow", "descent"))
    assert flow == phase.assumption_4_3() and descent.threshold == pytest.approx(2 * flow.threshold)
    need = 2 / math.sqrt(2 * (1 - phase.young))
    assert flow.threshold == pytest.approx(need * math.sqrt(objective.data_cost(weights)))
    assert flow.value == phase.budget and flow.sense == ">=" and flow.holds and not descent.holds
    assert flow.name == f"kernel form of 4.3, flow: ∫√α ds ≥ {need:.3g}√C_0"


def test_the_weight_decay_is_the_largest_allowed_or_what_is_given():
    x, y = theory.general_position(6, 8), np.arange(6) % 2
    weights = doubled_start(theory.Objective(x, y, 1, 0.0), [4, 4, 2], 6.0)
    free, given = (certify_start(weights, x, y, num_nonlinear=1, weight_decay=decay) for decay in (0.0, 1e-5))
    assert given.weight_decay == 1e-5 and free.weight_decay == free.largest_weight_decay > 0
    assert (free.ball, free.turning) == (given.ball, given.turning)
    names = [h.name for h in free.checks]
    assert names[-1] == "s_min(J(θ_0)) > 0" and not any("least slope" in name for name in names)
    assert free.checks == free.descent_checks and free.checks[-1].value == free.jacobian_min
    assert not any("first layer" in name or "width" in name for name in names)


def test_a_start_whose_jacobian_has_no_full_rank_is_certain_of_nothing():
    """Two samples that are one: the rounding of the kernel is not taken for a singular value."""
    x, y = theory.general_position(6, 8), np.arange(6) % 2
    weights = doubled_start(theory.Objective(x, y, 1, 0.0), [4, 4, 2], 6.0)
    x[2] = x[0]
    phase = certify_start(weights, x, y, num_nonlinear=1)
    assert phase.jacobian_min == 0.0 == phase.ball == phase.budget and phase.weight_decay == 0.0
    assert phase.checks[-1].holds is False


def test_as_many_parameters_as_outputs_are_enough():
    x, y = np.random.default_rng(0).standard_normal((6, 2)), np.arange(6) % 2
    weights = [np.ones((1, 2)), np.ones((2, 1)), np.eye(2)]  # 8 = NK
    assert certify_start(weights, x[:4], y[:4], num_nonlinear=1).num_samples == 4
    with pytest.raises(ValueError, match="network must have at least NK = 12 parameters; got 8"):
        certify_start(weights, x, y, num_nonlinear=1)


def test_the_run_that_is_asked_for_is_certified():
    network = networks.MLP(6, 2, num_nonlinear=1, num_linear=2, width=8, activation="smooth", seeds=(0, 1),
                           dtype=torch.float64)  # fmt: skip
    x, y = theory.general_position(4, 6), np.array([0, 1, 0, 1])
    phases = [certify_start(network, x, y, run=run) for run in (0, 1)]
    assert certify_start(network, x, y) == phases[0] != phases[1]
    weights = [w.detach()[1] for w in network.weights]
    assert certify_start(weights, x, y, num_nonlinear=1).norm == pytest.approx(phases[1].norm)
    with pytest.raises(ValueError, match="run must be below the 2 of the network; got 2"):
        certify_start(network, x, y, run=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_nonlinear": -1}, "num_nonlinear must be at least 0; got -1"),
        ({"num_nonlinear": 0}, "num_nonlinear must be at least 1; got 0"),
        ({"num_nonlinear": 1, "weight_decay": -1e-9}, "weight_decay must be at least 0, finite; got -1e-09"),
        ({"num_nonlinear": 1, "weight_decay": math.inf}, "weight_decay must be at least 0, finite; got inf"),
        ({"num_nonlinear": 1, "run": -1}, "run must be at least 0; got -1"),
        ({}, "num_nonlinear must be given with weights; got None"),
    ],
)
def test_certificates_refuse_numbers_out_of_range(options, words):
    x, y = theory.general_position(4, 6), np.arange(4) % 2
    weights = [np.ones((4, 6)), np.ones((4, 4)), np.ones((2, 4))]
    with pytest.raises(ValueError, match=words):
        certify_start(weights, x, y, **options)
    with pytest.raises(TypeError, match="network must be an MLP or a list of weights; got 3"):
        certify_start(3, x, y, num_nonlinear=1)


@pytest.mark.parametrize("widths", [(10, 6, 2), (4, 8, 6, 2), (2, 2), (14, 2, 8, 2)])
def test_a_doubled_start_is_two_networks_that_cancel(widths):
    objective = theory.Objective(theory.general_position(4, 5), np.arange(4) % 2, 1, 0.0)
    weights = [w.numpy() for w in doubled_start(objective, widths, 1.5)]
    assert [w.shape for w in weights] == list(zip(widths, (5, *widths[:-1]), strict=True))
    first, *middle, last = weights
    half = widths[0] // 2
    np.testing.assert_array_equal(first[:half], first[half:])
    half = widths[-2] // 2
    np.testing.assert_array_equal(last[:, :half], -last[:, half:])
    copies = [first[: widths[0] // 2], last[:, : widths[-2] // 2]]
    for w in middle:
        rows, columns = (n // 2 for n in w.shape)
        np.testing.assert_array_equal(w[:rows, :columns], w[rows:, columns:])
        assert not w[:rows, columns:].any() and not w[rows:, :columns].any()
        copies.append(w[:rows, :columns])
    for w in copies:  # scaled orthonormal rows or columns, whichever are fewer
        np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), [1.5] * min(w.shape), rtol=1e-12)
    assert np.abs(objective.features(weights)[1][-1]).max() < 1e-12
    again, other = (doubled_start(objective, widths, 1.5, seed=seed) for seed in (0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(weights, again, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(weights, other, strict=True))


@pytest.mark.parametrize(
    ("widths", "scale", "seed", "words"),
    [
        ((), 1.0, 0, "widths must hold at least 1; got 0"),
        ((4, 0, 2), 1.0, 0, r"widths\[1\] must be at least 1; got 0"),
        ((100_002, 2), 1.0, 0, r"widths\[0\] must be at most 100000; got 100002"),
        ((4, 2), 0.0, 0, "scale must be above 0, finite; got 0.0"),
        ((4, 2), 1.0, -1, "seed must be at least 0; got -1"),
        ((4, 2), 1.0, 2**32, r"seed must be at most 4.29497e\+09; got 4294967296"),
        ((4, 3, 2), 1.0, 0, r"widths must be even up to the last; got \[4, 3, 2\]"),
    ],
)
def test_doubled_starts_refuse_what_cannot_be_doubled(widths, scale, seed, words):
    objective = theory.Objective(theory.general_position(4, 5), np.arange(4) % 2, 1, 0.0)
    with pytest.raises(ValueError, match=words):
        doubled_start(objective, widths, scale, seed)
    assert len(doubled_start(objective, (2, 2), 1.0, 2**32 - 1)) == 2
