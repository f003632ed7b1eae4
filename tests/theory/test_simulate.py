"""The dynamics of Section 4, piece by piece: every number against one computed in another way."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.integrate
import torch

from ncutils.theory import simulate
from ncutils.theory.simulate import (
    DESCENT_ROUNDING,
    Objective,
    Trajectory,
    descend,
    flow,
    general_position,
    imbalances,
    initialise,
    largest_step,
    pack,
    unpack,
)

WIDTHS = (7, 5, 4, 3)  # 6 samples of dimension 8, 3 classes: no two sizes agree


def problem(nonlinear=2, decay=0.07, activation="smooth", gamma=0.3):
    x = np.random.default_rng(3).standard_normal((6, 8))
    return Objective(x, np.array([2, 0, 1, 1, 2, 0]), nonlinear, decay, activation, gamma)


def draw(widths=(8, *WIDTHS), seed=0, scale=0.8):
    generator = np.random.default_rng(seed)
    return [scale * generator.standard_normal((b, a)) / math.sqrt(a) for a, b in itertools.pairwise(widths)]


def torch_cost(objective, weights, decay=0.0):
    """C_λ with torch alone."""
    z, g = torch.from_numpy(objective.x), objective.gamma
    bends = {
        "smooth": lambda h: g * h + (1 - g) / 2 * (h + torch.sqrt(h**2 + 1) - 1),
        "relu": torch.relu,
        "identity": lambda h: h,
    }
    for layer, w in enumerate(weights):
        z = z @ w.T
        if layer < objective.num_nonlinear:
            z = bends[objective.activation](z)
    target = torch.nn.functional.one_hot(torch.from_numpy(objective.y)).double()
    return (z - target).square().sum() / 2 + decay / 2 * sum(w.square().sum() for w in weights)


def torch_gradient(objective, weights):
    leaves = [torch.tensor(np.asarray(w)).requires_grad_() for w in weights]
    parts = torch.autograd.grad(torch_cost(objective, leaves, objective.weight_decay), leaves)
    return np.concatenate([part.numpy().ravel() for part in parts])


def cost_of(objective, state):
    weights = [torch.from_numpy(w) for w in unpack(state, [(b, a) for a, b in itertools.pairwise((8, *WIDTHS))])]
    return float(torch_cost(objective, weights, objective.weight_decay))


# --- the objective


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"x": np.ones(4)}, r"x must have two dimensions; got shape \(4,\)"),
        ({"x": np.ones((4, 2, 1))}, "x must have two dimensions"),
        ({"x": np.full((4, 2), math.inf)}, "x must be finite"),
        ({"y": np.zeros((4, 1), int)}, r"y must be 4 integer labels; got int64 of shape \(4, 1\)"),
        ({"y": np.array([0.0, 1.0, 0.0, 1.0])}, "y must be 4 integer labels; got float64"),
        ({"y": np.array([0, 1, 0])}, "y must be 4 integer labels"),
        ({"y": np.array([0, 0, 0, 0])}, r"at least 2 classes of one size; got class counts \[4\]"),
        ({"y": np.array([0, 0, 2, 2])}, r"class counts \[2, 0, 2\]"),
        ({"y": np.array([0, 1, 1, 1])}, r"class counts \[1, 3\]"),
        ({"num_nonlinear": 0}, "num_nonlinear must be at least 1; got 0"),
        ({"num_nonlinear": -1}, "num_nonlinear must be at least 1; got -1"),
        ({"weight_decay": -1e-300}, "weight_decay must be >= 0"),
        ({"weight_decay": math.nan}, "weight_decay must be >= 0; got nan"),
        ({"activation": "tanh"}, "activation must be one of .*; got 'tanh'"),
        ({"gamma": 0.0}, "gamma must be 0 < gamma <= 1; got 0.0"),
        ({"gamma": -0.5}, "gamma must be 0 < gamma <= 1; got -0.5"),
        ({"gamma": 1.0000001}, "gamma must be 0 < gamma <= 1"),
    ],
)
def test_an_objective_that_is_none_is_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        Objective(**({"x": np.ones((4, 2)), "y": np.arange(4) % 2, "num_nonlinear": 1, "weight_decay": 0.1} | changed))


def test_the_kinds_of_an_objectives_fields_are_checked():
    with pytest.raises(TypeError, match="num_nonlinear must be an integer"):
        Objective(np.ones((4, 2)), np.arange(4) % 2, 1.5, 0.1)
    with pytest.raises(TypeError, match="weight_decay must be a number"):
        Objective(np.ones((4, 2)), np.arange(4) % 2, 1, "small")


def test_an_objective_at_the_limits_of_what_is_allowed():
    x = np.arange(4.0).reshape(4, 1)
    objective = Objective(x, torch.tensor([0, 1, 1, 0]), 1, 0.0, gamma=1.0)
    assert objective.activation == "smooth" and Objective(x, np.arange(4), 1, 0.0).gamma == 0.5
    assert (objective.num_samples, objective.num_classes) == (4, 2)
    assert Objective(x, np.array([3, 2, 1, 0]), 1, 0.0).num_classes == 4
    small = Objective(x.astype(np.float32), np.array([0, 1, 1, 0], np.uint8), 1, 0.0)
    assert small.x.dtype == np.float64 and small.y.dtype == np.int64
    np.testing.assert_array_equal(objective.one_hot, [[1, 0], [0, 1], [0, 1], [1, 0]])
    assert objective.one_hot is objective.one_hot
    leaf = torch.ones(2, 3).requires_grad_()
    np.testing.assert_array_equal(Objective(leaf, np.arange(2), 1, 0.0).x, np.ones((2, 3)))


def test_an_objective_is_itself_alone_and_does_not_change():
    objective, twin = problem(), problem()
    assert objective == objective and objective != twin and len({objective, twin}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.weight_decay = 0.0
    run = Trajectory(objective, (), np.zeros(1), np.zeros((1, 3)), np.zeros(1))
    assert run == run and run != dataclasses.replace(run) and hash(run)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.times = np.ones(1)
    assert (run.step_size, run.steps, run.descent_gap) == (None, None, -math.inf)


@pytest.mark.parametrize("gamma", [0.2, 0.5, 1.0])
def test_the_smooth_activation_and_its_derivatives(gamma):
    objective = problem(gamma=gamma)
    h = np.array([-30.0, -3.0, -0.4, 0.0, 0.5, 2.0, 40.0])
    root = np.array([math.hypot(value, 1) for value in h])
    np.testing.assert_allclose(objective.sigma(h), (1 + gamma) / 2 * h + (1 - gamma) / 2 * (root - 1), atol=1e-14)
    leaf = torch.from_numpy(h).requires_grad_()
    value = gamma * leaf + (1 - gamma) * (leaf + (leaf**2 + 1).sqrt() - 1) / 2
    (first,) = torch.autograd.grad(value.sum(), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), leaf)
    np.testing.assert_allclose(objective.slope(h), first.detach(), atol=1e-14)
    np.testing.assert_allclose(objective.curvature(h), second, atol=1e-12)
    assert objective.slope(np.array([-1e9]))[0] == pytest.approx(gamma, abs=1e-12)
    assert objective.slope(np.array([1e9]))[0] == pytest.approx(1, abs=1e-12)


def test_the_other_activations_and_their_derivatives():
    h = np.array([-2.0, -0.25, 0.0, 0.25, 3.0])
    relu, identity = problem(activation="relu"), problem(activation="identity")
    np.testing.assert_array_equal(relu.sigma(h), [0, 0, 0, 0.25, 3])
    np.testing.assert_array_equal(relu.slope(h), [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(identity.sigma(h), h)
    np.testing.assert_array_equal(identity.slope(h), np.ones(5))
    for objective in (relu, identity):
        np.testing.assert_array_equal(objective.curvature(h), np.zeros(5))
        assert objective.slope(h).dtype == np.float64


def test_shapes_that_do_not_fit_are_refused_with_what_they_are():
    objective = problem()
    assert objective.shapes(draw()) == ((7, 8), (5, 7), (4, 5), (3, 4))
    assert objective.shapes(draw((8, 7, 5, 3))[:3]) == ((7, 8), (5, 7), (3, 5))  # one linear layer is enough
    for weights, said in (
        (draw((8, 7, 3)), "weights must be more than num_nonlinear = 2; got 2 layers"),
        ([draw()[0], np.ones(7), *draw()[2:]], r"weights\[1\] must be \(out, 7\); got shape \(7,\)"),
        ([draw()[0], *draw((8, 6, 5, 4, 3))[1:]], r"weights\[1\] must be \(out, 7\); got shape \(5, 6\)"),
        (draw((9, 7, 5, 3)), r"weights\[0\] must be \(out, 8\); got shape \(7, 9\)"),
        (draw((8, 7, 5, 4)), "the last layer has 4 outputs, expected K = 3"),
    ):
        with pytest.raises(ValueError, match=said):
            objective.shapes(weights)
        with pytest.raises(ValueError, match=said):
            objective.cost(weights)
    with pytest.raises(TypeError, match="weights must be a sequence"):
        objective.shapes(5)
    with pytest.raises(TypeError, match=r"weights\[0\] must be a tensor or array"):
        objective.arrays([[1.0]])
    broken = draw()
    broken[3][0, 0] = math.nan
    with pytest.raises(ValueError, match=r"weights\[3\] must be finite"):
        objective.arrays(broken)


def test_arrays_are_of_float64_and_free_of_gradients():
    weights = [torch.from_numpy(w).float().requires_grad_() for w in draw()]
    for ours, given in zip(problem().arrays(weights), weights, strict=True):
        assert ours.dtype == np.float64
        np.testing.assert_array_equal(ours, given.detach().double().numpy())


@pytest.mark.parametrize("activation", ["smooth", "relu", "identity"])
@pytest.mark.parametrize("nonlinear", [1, 2, 3])
def test_value_gradient_and_hessian_where_no_two_sizes_agree(activation, nonlinear):
    objective, weights = problem(nonlinear, 0.07, activation), draw()
    flat, size = pack(weights), sum(w.size for w in weights)
    assert cost_of(objective, flat) == pytest.approx(objective.cost(weights), rel=1e-13)
    free = cost_of(dataclasses.replace(objective, weight_decay=0.0), flat)
    assert free == pytest.approx(objective.data_cost(weights), rel=1e-13)
    gradient = torch_gradient(objective, weights)
    np.testing.assert_allclose(pack(objective.gradients(weights)), gradient, atol=1e-13)
    np.testing.assert_allclose(pack(objective.data_gradients(weights)), gradient - 0.07 * flat, atol=1e-13)
    for ours, w in zip(objective.gradients(weights), weights, strict=True):
        assert ours.shape == w.shape
    # the derivative of the gradient in a few directions
    hessian = objective.hessian(weights)
    assert hessian.shape == (size, size)
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)
    shapes = objective.shapes(weights)
    for seed in range(3):
        direction = np.random.default_rng(seed).standard_normal(size) * 1e-6
        sides = [torch_gradient(objective, unpack(flat + sign * direction, shapes)) for sign in (1, -1)]
        np.testing.assert_allclose(hessian @ direction * 1e6, (sides[0] - sides[1]) / 2e-6, atol=1e-6)


def test_features_are_those_before_and_after_the_activation():
    objective, weights = problem(1, activation="relu"), draw()
    pre, post = objective.features(weights)
    assert [p.shape for p in pre] == [(6, 7), (6, 5), (6, 4), (6, 3)]
    assert [p.shape for p in post] == [(6, 8), (6, 7), (6, 5), (6, 4), (6, 3)]
    np.testing.assert_array_equal(post[0], objective.x)
    np.testing.assert_allclose(pre[0], objective.x @ weights[0].T)
    np.testing.assert_allclose(post[1], pre[0] * (pre[0] > 0))
    np.testing.assert_allclose(post[4], post[1] @ (weights[3] @ weights[2] @ weights[1]).T)
    np.testing.assert_array_equal(pre[1], post[2])


def test_a_state_holds_the_weights_row_by_row():
    weights = [np.arange(6.0).reshape(2, 3), 10 + np.arange(2.0).reshape(1, 2)]
    state = pack(weights)
    np.testing.assert_array_equal(state, [0, 1, 2, 3, 4, 5, 10, 11])
    views = unpack(state, [(2, 3), (1, 2)])
    views[1][0, 1] = -1
    assert state[-1] == -1  # a view, no copy
    np.testing.assert_array_equal(views[0], weights[0])


def test_imbalances_are_those_of_linear_neighbours():
    weights = draw()
    found = imbalances(weights, 2)
    assert len(found) == 1
    np.testing.assert_allclose(found[0], weights[3].T @ weights[3] - weights[2] @ weights[2].T, atol=1e-14)
    assert [d.shape for d in imbalances(weights)] == [(7, 7), (5, 5), (4, 4)]
    np.testing.assert_array_equal(imbalances(weights)[1], imbalances(weights, 1)[0])
    with pytest.raises(ValueError, match="weights must have two dimensions"):
        imbalances([np.ones(3), np.ones((3, 3))])


# --- trajectories


def test_a_trajectory_measures_what_it_says():
    objective = problem(2)
    starts = [draw(seed=seed) for seed in (0, 1, 2)]
    states = np.array([pack(w) for w in starts])
    run = Trajectory(objective, objective.shapes(starts[0]), np.arange(3.0), states, np.zeros(3))
    assert len(run) == 3 and len(run.heads) == 3
    one_hot = np.eye(3)[objective.y]
    for index, weights in enumerate(starts):
        z = objective.features(weights)[1]
        residual = z[-1] - one_hot
        assert run.errors[index] == pytest.approx(np.linalg.norm(residual), rel=1e-12)
        assert run.data_costs[index] == pytest.approx(np.linalg.norm(residual) ** 2 / 2, rel=1e-12)
        assert run.costs[index] == pytest.approx(cost_of(objective, states[index]), rel=1e-12)
        d = weights[3].T @ weights[3] - weights[2] @ weights[2].T
        assert run.imbalances[index] == pytest.approx(np.abs(np.linalg.eigvalsh(d)).max(), rel=1e-12)
        means = np.array([z[3][objective.y == c].mean(0) for c in range(3)])
        within = np.sum((z[3] - means[objective.y]) ** 2) / 6
        between = np.sum((means - means.mean(0)) ** 2) / 3
        assert run.nc1[index] == pytest.approx(within / between, rel=1e-9)
        head = run.heads[index]
        assert [tuple(w.shape) for w in head.weights] == [(4, 5), (3, 4)]
        np.testing.assert_allclose(head.features, z[2], atol=1e-13)
        copies = run.weights(index)
        np.testing.assert_array_equal(copies[1], weights[1])
        copies[1].zero_()  # changes nothing in the trajectory
        np.testing.assert_array_equal(run.weights(index)[1], weights[1])
    np.testing.assert_array_equal(run.weights(-1)[0], starts[2][0])
    with pytest.raises(TypeError, match="index must be an integer"):
        run.weights(1.0)
    assert run.costs is run.costs and run.heads is run.heads and run.nc1 is run.nc1


def test_the_largest_of_several_imbalances_is_the_one_shown():
    objective = problem(1)
    for seed, large in ((0, 1), (0, 3)):
        weights = draw(seed=seed)
        weights[large] = 4 * weights[large]
        run = Trajectory(objective, objective.shapes(weights), np.zeros(1), pack(weights)[None], np.zeros(1))
        sizes = [np.linalg.norm(d, 2) for d in imbalances(weights, 1)]
        assert run.imbalances.shape == (1,) and run.imbalances[0] == pytest.approx(max(sizes))


# --- the flow


@pytest.fixture(scope="module")
def small():
    objective = Objective(general_position(4, 5), np.arange(4) % 2, 1, 0.05, gamma=0.4)
    return objective, draw((5, 4, 3, 2), scale=1.0)


@pytest.mark.parametrize(
    "times", [[0.0], [0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 2.0, 1.0], [1e-9, 1.0], [-1.0, 0.0], [-1.0, 1.0]]
)
def test_a_flow_runs_from_0_through_increasing_times(small, times):
    with pytest.raises(ValueError, match="times must be at least two, increasing from 0"):
        flow(*small, times)


@pytest.mark.parametrize(
    ("tolerance", "said"),
    [
        ({"rtol": 9.9e-13}, "rtol must be at least 1e-12"),
        ({"rtol": math.inf}, "rtol must be at least 1e-12, finite"),
        ({"atol": 0.0}, "atol must be above 0"),
        ({"atol": math.inf}, "atol must be above 0, finite"),
    ],
)
def test_tolerances_that_no_solver_has_are_refused(small, tolerance, said):
    with pytest.raises(ValueError, match=said):
        flow(*small, [0.0, 0.1], **tolerance)


def test_a_flow_at_the_limits_of_what_is_allowed(small):
    run = flow(*small, [0.0, 1e-3], rtol=1e-12, atol=1e-9)
    assert len(run) == 2 and run.times.dtype == np.float64


def test_times_are_finite(small):
    with pytest.raises(ValueError, match=r"times\[1\] must be finite"):
        flow(*small, [0.0, math.inf])


def test_a_flow_follows_the_gradient_and_measures_its_way(small):
    """Against the classical Runge-Kutta method of order 4, and against the lengths of short chords."""
    objective, weights = small
    times = np.linspace(0, 0.4, 201)
    run = flow(objective, weights, times)
    shapes, state, h = objective.shapes(weights), pack(weights), times[1]

    def velocity(state):
        return -torch_gradient(objective, unpack(state, shapes))

    for index in range(1, 51):
        k1 = velocity(state)
        k2 = velocity(state + h / 2 * k1)
        k3 = velocity(state + h / 2 * k2)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + velocity(state + h * k3))
        np.testing.assert_allclose(run.states[index], state, atol=1e-7)
    chords = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(run.states, axis=0), axis=1))])
    np.testing.assert_allclose(run.path, chords, rtol=2e-4, atol=1e-9)
    np.testing.assert_allclose(run.states[0], pack(weights), atol=1e-15)
    assert (run.step_size, run.steps, run.descent_gap) == (None, None, -math.inf)


def test_the_tolerances_of_a_flow_by_default(small):
    usual, stated, other = (flow(*small, [0.0, 1.0], **t) for t in ({}, {"rtol": 1e-9, "atol": 1e-13}, {"rtol": 1e-6}))
    np.testing.assert_array_equal(usual.states, stated.states)
    assert np.abs(usual.states - other.states).max() > 0


def solved(monkeypatch, fake=None):
    """What the solver is given; it is replaced by ``fake`` if there is one."""
    seen, whole = {}, scipy.integrate.solve_ivp

    def watched(velocity, span, start, method, **options):
        seen.update(velocity=velocity, span=span, start=start, method=method, evaluations=0, **options)

        def counted(t, state):
            seen["evaluations"] += 1
            return velocity(t, state)

        return fake(start) if fake else whole(counted, span, start, method, **options)

    monkeypatch.setattr(scipy.integrate, "solve_ivp", watched)
    return seen


def test_the_solver_is_given_the_exact_jacobian(small, monkeypatch):
    seen = solved(monkeypatch)
    objective, weights = small
    flow(objective, weights, [0.0, 0.01])
    # 0.05: where the gradient is small, so that the length grows slowly
    near = flow(objective, weights, [0.0, 200.0]).states[-1] + 1e-3
    for state in (np.append(pack(weights), 0.7), np.append(near, 0.0)):
        jacobian = seen["jac"](0.0, state)
        for index in range(len(state)):
            move = np.zeros(len(state))
            move[index] = 1e-6
            column = (seen["velocity"](0, state + move) - seen["velocity"](0, state - move)) / 2e-6
            np.testing.assert_allclose(jacobian[:, index], column, atol=1e-5)
    rest = seen["jac"](0.0, np.zeros(len(pack(weights)) + 1))  # no gradient at all: no direction to lengthen
    np.testing.assert_array_equal(rest[-1], 0)
    assert np.isfinite(rest).all()


def test_a_flow_that_starts_at_rest_stays():
    objective = Objective(general_position(4, 5), np.arange(4) % 2, 1, 0.05)
    run = flow(objective, [np.zeros((4, 5)), np.zeros((3, 4)), np.zeros((2, 3))], [0.0, 1.0, 50.0])
    np.testing.assert_array_equal(run.states, 0)
    np.testing.assert_array_equal(run.path, 0)


def test_a_flow_may_ask_for_so_many_gradients_and_no_more(small, monkeypatch):
    seen = solved(monkeypatch)
    assert simulate.EVALUATIONS == 20_000
    flow(*small, [0.0, 1.0])
    needed = seen["evaluations"]
    monkeypatch.setattr(simulate, "EVALUATIONS", needed)
    flow(*small, [0.0, 1.0])
    monkeypatch.setattr(simulate, "EVALUATIONS", needed - 1)
    with pytest.raises(RuntimeError, match=rf"LSODA was at t = .* of 1 after {needed - 1:,} gradients"):
        flow(*small, [0.0, 1.0])


@pytest.mark.parametrize(("success", "value"), [(False, 1.0), (True, math.nan), (True, math.inf), (False, math.nan)])
def test_a_solver_that_gives_up_is_an_error(small, monkeypatch, success, value):
    def fake(start):
        states = np.ones((len(start), 2))
        states[0, 1] = value
        return SimpleNamespace(success=success, y=states, t=np.array([0.0, 0.25]), message="too stiff")

    solved(monkeypatch, fake)
    with pytest.raises(RuntimeError, match=r"LSODA stopped at t = 0.25 of 3: too stiff"):
        flow(*small, [0.0, 1.0, 3.0])


# --- descent


@pytest.mark.parametrize(
    ("steps", "record", "kept"),
    [
        (100, 10, [0, 1, 3, 10, 25, 32, 50, 75, 100]),
        (100, 7, [0, 1, 10, 50, 100]),
        (100, 4, [0, 1, 100]),
        (100, 1, [0, 1, 100]),
        (1, 200, [0, 1]),
        (2, 200, [0, 1, 2]),
    ],
)
def test_which_steps_are_recorded(steps, record, kept):
    run = descend(problem(), draw(), 1e-3, steps, record=record)
    assert run.steps.tolist() == kept and len(run) == len(kept)
    np.testing.assert_allclose(run.times, [1e-3 * k for k in kept], rtol=1e-15)
    assert run.step_size == 1e-3


def test_how_many_steps_are_recorded_by_default():
    usual, stated = descend(problem(), draw(), 1e-4, 400), descend(problem(), draw(), 1e-4, 400, record=200)
    assert usual.steps.tolist() == stated.steps.tolist()
    even = {round(400 * k / 99) for k in range(100)}
    assert even < set(usual.steps.tolist())
    assert set(descend(problem(), draw(), 1e-4, 400, record=202).steps.tolist()) != set(usual.steps.tolist())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((0.0, 5), "step_size must be above 0"),
        ((-0.1, 5), "step_size must be above 0"),
        ((math.inf, 5), "step_size must be above 0, finite"),
        ((0.1, -1), "steps must be at least 0"),
        ((0.1, 0), "step_size and steps must be positive numbers; got 0.1 and 0"),
    ],
)
def test_descent_takes_steps(arguments, said):
    with pytest.raises(ValueError, match=said):
        descend(problem(), draw(), *arguments)
    with pytest.raises(ValueError, match="record must be at least 1"):
        descend(problem(), draw(), 0.1, 5, record=0)


@pytest.mark.parametrize("activation", ["smooth", "relu", "identity"])
@pytest.mark.parametrize("nonlinear", [1, 3])
@pytest.mark.parametrize("size", [0.002, 0.05])
def test_descent_step_by_step_against_autograd(activation, nonlinear, size):
    """The states, the length of the way, and the largest violation of the descent inequality over all steps."""
    objective, weights = problem(nonlinear, 0.07, activation), draw()
    run = descend(objective, weights, size, 12, record=6)
    shapes, state, path, gaps = objective.shapes(weights), pack(weights), 0.0, []
    for step in range(13):
        if step in run.steps.tolist():
            at = run.steps.tolist().index(step)
            np.testing.assert_allclose(run.states[at], state, rtol=1e-9, atol=1e-11)
            assert run.path[at] == pytest.approx(path, rel=1e-9)
        gradient = torch_gradient(objective, unpack(state, shapes))
        after, square = state - size * gradient, gradient @ gradient
        before, now = cost_of(objective, state), cost_of(objective, after)
        if step < 12:
            gaps.append((now - before + size / 2 * square) / before)
        path, state = path + size * math.sqrt(square), after
    assert run.descent_gap == pytest.approx(max(gaps), rel=1e-7, abs=1e-14)
    for count in range(1, 12):
        found = descend(objective, weights, size, count, record=1).descent_gap
        assert found == pytest.approx(max(gaps[:count]), rel=1e-7, abs=1e-14)


def test_descent_stops_where_the_cost_is_beyond_a_hundred_million():
    objective = Objective(np.eye(2), np.arange(2), 1, 0.0, "identity")
    # E = diag(10⁴, 10⁴) and with one more entry: C_0 = 10⁸, and half more
    exact = [np.eye(2), 10_001 * np.eye(2)]
    above = [np.eye(2), 10_001 * np.eye(2) + [[0, 1], [0, 0]]]
    assert (objective.cost(exact), objective.cost(above)) == (1e8, 1e8 + 0.5)
    kept = descend(objective, exact, 1e-12, 4, record=1)
    assert kept.steps.tolist() == [0, 1, 4] and math.isfinite(kept.descent_gap)
    lost = descend(objective, above, 1e-12, 4, record=1)
    assert lost.steps.tolist() == [0] and lost.descent_gap == math.inf
    assert len(lost.states) == len(lost.path) == 1 and lost.path[0] == 0
    with np.errstate(all="ignore"):
        far = descend(objective, exact, 10.0, 400, record=1)
    assert far.steps.tolist() == [0, 1] and far.descent_gap == math.inf


# --- the largest step


@pytest.mark.parametrize(
    ("scale", "precision"), [(1.0, 0.02), (1.0, 0.3), (0.05, 0.02)], ids=["usual", "coarse", "flat start"]
)
def test_the_largest_step_keeps_the_inequality_and_a_larger_one_does_not(small, scale, precision):
    objective, weights = small[0], [scale * w for w in small[1]]
    steps = 400 if scale < 1 else 30
    with np.errstate(all="ignore"):
        found = largest_step(objective, weights, steps, precision=precision)
    assert descend(objective, weights, found, steps).descent_gap <= DESCENT_ROUNDING
    beyond = descend(objective, weights, found * (1 + 1.01 * precision), steps)
    assert beyond.descent_gap > DESCENT_ROUNDING
    unit = 1 / np.abs(np.linalg.eigvalsh(objective.hessian(weights))).max()
    assert found < (0.5 if scale < 1 else 2.5) * unit


def test_the_largest_step_where_every_step_is_good():
    """At rest the inequality says nothing: the answer is the end of the bracket, 2.5/‖∇²C_λ‖_op."""
    objective = Objective(general_position(4, 5), np.arange(4) % 2, 1, 0.05)
    rest = [np.zeros((4, 5)), np.zeros((3, 4)), np.zeros((2, 3))]
    assert 2.5 / 1.02 <= largest_step(objective, rest, 2) * 0.05 <= 2.5
    assert 2.5 / 1.001 <= largest_step(objective, rest, 2, precision=1e-3) * 0.05 <= 2.5
    assert 0.5 <= largest_step(objective, rest, 1, precision=0.999) * 0.05 <= 2.5


def test_the_defaults_of_the_largest_step(small, monkeypatch):
    tried, whole = [], simulate.descend
    monkeypatch.setattr(simulate, "descend", lambda *a, **k: tried.append(a[3]) or whole(*a, **k))
    usual = largest_step(*small)
    assert set(tried) == {500}
    assert usual == largest_step(*small, 500, precision=0.02)
    assert usual != largest_step(*small, 500, precision=0.005)


@pytest.mark.parametrize("precision", [9e-13, 1.0, 1.5, 0.0, -1.0])
def test_a_precision_that_is_none_is_refused(small, precision):
    with pytest.raises(ValueError, match=f"precision must be at least 1e-12 and below 1; got {precision}"):
        largest_step(*small, 1, precision=precision)


def test_the_finest_precision_is_reached(small):
    found = largest_step(*small, 1, precision=1e-12)
    assert found == pytest.approx(largest_step(*small, 1, precision=1e-6), rel=2e-6)
    with pytest.raises(ValueError, match="trial_steps must be at least 1"):
        largest_step(*small, 0)


# --- data and initialisation


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"samples": 6}, "samples must be at most dimension = 5; got 6"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"samples": 1, "dimension": 0}, "dimension must be at least 1"),
        ({"norm": 0.0}, "norm, noise must be positive, at least 0, and finite; got 0.0, 0.15"),
        ({"norm": -1.0}, "norm, noise must be positive, at least 0, and finite; got -1.0, 0.15"),
        ({"norm": math.inf}, "norm, noise must be"),
        ({"noise": -1e-9}, "norm, noise must be positive, at least 0, and finite; got 3.0, -1e-09"),
        ({"noise": math.inf}, "norm, noise must be"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_inputs_that_cannot_be_drawn_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        general_position(**({"samples": 3, "dimension": 5} | arguments))


def test_inputs_in_general_position():
    np.testing.assert_array_equal(general_position(4, 6), general_position(4, 6, norm=3.0, noise=0.15, seed=0))
    assert np.abs(general_position(4, 6) - general_position(4, 6, seed=1)).max() > 0.1
    assert general_position(1, 1, norm=1e-9).tolist() in ([[1e-9]], [[-1e-9]])
    square = general_position(5, 5, norm=0.5, noise=0)
    np.testing.assert_allclose(square @ square.T, 0.25 * np.eye(5), atol=1e-15)
    x = general_position(4, 9, noise=0.3)
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 3.0)


def test_the_noise_of_the_inputs_is_of_unit_length():
    """x = (q + νe)/‖q + νe‖ with ‖e‖ ≈ 1: the inner products have variance (2ν²/d + ν⁴/d)/(1 + ν²)²."""
    samples, dimension, noise = 80, 320, 0.6
    x = general_position(samples, dimension, norm=1.0, noise=noise)
    products = (x @ x.T)[np.triu_indices(samples, 1)]
    # for q of k of d orthonormal directions q_i·e_j has variance 1/d
    expected = math.sqrt((2 * noise**2 + noise**4) / dimension) / (1 + noise**2)
    assert products.std() == pytest.approx(expected, rel=0.05)
    assert abs(products.mean()) < 0.1 * expected


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"scale": 0.0}, "scale must be above 0"),
        ({"scale": 1.1e100}, r"scale must be above 0, at most 1e\+100"),
        ({"small": 0.0}, "small must be above 0"),
        ({"small": 1.1e100}, r"small must be above 0, at most 1e\+100"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"widths": [5, 4, 3]}, "widths must be at least N = 6; got n_1 = 5"),
        ({"widths": [5, 10**6, 3]}, "widths must be at least N = 6; got n_1 = 5"),
        ({"widths": [6]}, "weights must be more than num_nonlinear = 1; got 1 layers"),
        ({"widths": [6, 0, 3]}, r"widths\[1\] must be at least 1"),
        ({"widths": [6, 10**6 + 1, 3]}, r"widths\[1\] must be at most 1e\+06"),
        ({"widths": []}, "widths must hold at least 1"),
        ({"widths": [6, 4, 4]}, "the last layer has 4 outputs, expected K = 3"),
    ],
)
def test_an_initialisation_that_is_none_is_refused(changed, said):
    arguments = {"widths": [6, 4, 3], "scale": 1.0} | changed
    with pytest.raises(ValueError, match=said):
        initialise(problem(1), **arguments)


@pytest.mark.parametrize("nonlinear", [1, 2])
@pytest.mark.parametrize("widths", [[6, 4, 3], [7, 9, 5, 3], [12, 3, 8, 2, 3]])
def test_every_layer_of_an_initialisation_has_one_singular_value(nonlinear, widths):
    objective = problem(nonlinear)
    weights = [w.numpy() for w in initialise(objective, widths, 1.7, small=0.02)]
    assert [w.shape for w in weights] == [(b, a) for a, b in itertools.pairwise([8, *widths])]
    for w, size in zip(weights[1:], [0.02] + [1.7] * len(weights), strict=False):
        np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), size, rtol=1e-12)
    first = np.linalg.svd(weights[0], compute_uv=False)
    np.testing.assert_allclose(first, first[0], rtol=1e-12)
    features = np.linalg.svd(objective.sigma(objective.x @ weights[0].T), compute_uv=False)
    assert features[5] == pytest.approx(1.7 * np.linalg.norm(objective.x, 2), rel=1e-9)
    assert all(w.flags.c_contiguous for w in weights)


def test_the_defaults_of_an_initialisation():
    usual = initialise(problem(1), [6, 4, 3], 1.2)
    stated = initialise(problem(1), [6, 4, 3], 1.2, small=1e-3, seed=0)
    other = initialise(problem(1), [6, 4, 3], 1.2, seed=1)
    for a, b, c in zip(usual, stated, other, strict=True):
        assert a.dtype == torch.float64 and torch.equal(a, b) and not torch.allclose(a, c, rtol=1e-3)
    tiny = initialise(problem(1), [6, 4, 3], 1e-6)
    assert float(torch.linalg.matrix_norm(tiny[2], 2)) == pytest.approx(1e-6)


@pytest.mark.parametrize("weakest", [1e-2, 1e-5, 1e-8])
def test_ill_conditioned_inputs_ask_for_a_larger_first_layer(weakest):
    x = general_position(4, 6, noise=0) * np.array([[1], [1], [1], [weakest]])
    objective = Objective(x, np.arange(4) % 2, 1, 0.0)
    first = initialise(objective, [5, 3, 2], 0.7)[0].numpy()
    features = np.linalg.svd(objective.sigma(x @ first.T), compute_uv=False)
    assert features[3] == pytest.approx(0.7 * 3, rel=1e-6)
    assert np.linalg.norm(first, 2) > 0.7 / weakest


def test_features_that_no_scaling_gives_full_rank_are_refused():
    x = np.array([[1.0, 0], [1, 0], [0, 1], [0, 2]])
    with pytest.raises(ValueError, match=r"σ\(W_1X\) stays rank-deficient; expected inputs in general position"):
        initialise(Objective(x, np.arange(4) % 2, 1, 0.0), [4, 3, 2], 1.0)
    # where some scaling does, it is found however large: σ bends, and four inputs in a plane span four dimensions
    plane = Objective(np.array([[1.0, 0], [0, 1], [-1, 0.5], [0.5, -1]]), np.arange(4) % 2, 1, 0.0)
    first = initialise(plane, [5, 3, 2], 0.01)[0].numpy()
    features = np.linalg.svd(plane.sigma(plane.x @ first.T), compute_uv=False)
    assert features[3] == pytest.approx(0.01 * np.linalg.norm(plane.x, 2), rel=1e-6)
