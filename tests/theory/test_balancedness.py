"""The balancedness laws in numbers that can be followed by hand, and what they refuse to speak of."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from ncutils.theory import balancedness_flow, balancedness_stationary, balancedness_step, general_position
from ncutils.theory.simulate import Objective, Trajectory, descend, flow

# --- one step


def scalars(*values):
    """A network of layers (1, 1)."""
    return [np.array([[float(value)]]) for value in values]


def test_the_discrepancy_of_a_step_and_what_rounding_may_be_of_it():
    """W = 2, 5 → 1, 4 with η = 0.1, λ = 0.5: ηG = 0.95·2 − 1 = 0.9 and 0.95·5 − 4 = 0.75."""
    check = balancedness_step(scalars(2, 5), scalars(1, 4), 0.1, 0.5, 0)
    old, new, moved = 25 - 4, 16 - 1, 0.75**2 - 0.9**2
    assert check.measured == pytest.approx(abs(new - 0.95**2 * old - moved), rel=1e-12)
    assert check.bound == pytest.approx(1e-10 * (2 * 0.9 + 5 * 0.75) + 1e-14 * (4 + 25), rel=1e-12)
    assert check.holds is False and check.hypotheses == ()
    assert (check.statement, check.quantity, check.form, check.sense) == (
        "Balancedness lemma (descent)", "imbalance_step", "exact", "<=")  # fmt: skip


def test_the_rounding_of_a_matrix_is_measured_in_the_frobenius_norm():
    before = [np.array([[1.0, 2, 0], [0, 3, 1]]), np.array([[2.0, 1], [1, -1], [0, 4]])]
    after = [0.5 * before[0] + 1, 0.25 * before[1]]
    check = balancedness_step(before, after, 0.2, 1.5, 0)
    moves = [0.7 * a - b for a, b in zip(before, after, strict=True)]
    size = lambda matrix: math.sqrt((matrix**2).sum())  # noqa: E731
    gap = sum(factor * (w[1].T @ w[1] - w[0] @ w[0].T) for factor, w in ((1, after), (-(0.7**2), before), (-1, moves)))
    assert check.measured == pytest.approx(size(gap), rel=1e-12)
    products = size(before[0]) * size(moves[0]) + size(before[1]) * size(moves[1])
    squares = size(before[0]) ** 2 + size(before[1]) ** 2
    assert check.bound == pytest.approx(1e-10 * products + 1e-14 * squares, rel=1e-12)
    diagonal = balancedness_step(before, after, 0.2, 1.5, 0, diagonal=True)
    assert diagonal.measured == pytest.approx(size(np.diag(gap)), rel=1e-12) and diagonal.bound == check.bound


@pytest.mark.parametrize("broken", [0, 1, 2, 3])
def test_the_neighbours_that_use_up_most_are_reported(broken):
    """One layer of four takes a step of its own; the pairs of which it is no part obey the law."""
    eta, decay = 0.1, 0.5
    before = [2.0, -1.0, 3.0, 0.5]
    # A loss with W_{ℓ+1}G_{ℓ+1} = G_ℓW_ℓ: c/W in every layer.
    after = [(1 - eta * decay) * w - eta * 0.7 / w for w in before]
    assert balancedness_step(scalars(*before), scalars(*after), eta, decay, 0).holds
    after[broken] += 1e-3
    check = balancedness_step(scalars(*before), scalars(*after), eta, decay, 0)
    ratios = []
    for low in range(3):
        pair = balancedness_step(scalars(*before[low : low + 2]), scalars(*after[low : low + 2]), eta, decay, 0)
        ratios.append((pair.measured / pair.bound, pair.measured, pair.bound))
    assert check.holds is False and (check.measured, check.bound) == pytest.approx(max(ratios)[1:], rel=1e-9)
    # layers that follow an activation are left out
    for nonlinear in (1, 2):
        left = balancedness_step(scalars(*before), scalars(*after), eta, decay, nonlinear)
        assert left.holds is (broken < nonlinear)


def test_layers_that_are_nothing_use_up_nothing():
    quiet = balancedness_step(scalars(0, 0, 0), scalars(0, 0, 0), 0.1, 0.0, 0)
    assert (quiet.measured, quiet.bound, quiet.holds) == (0, 0, True)
    # the last layer has moved by some units of its last place, which uses up a part of the rounding: still the most
    check = balancedness_step(scalars(0, 0, 2), scalars(0, 0, 2 - 2**-48), 0.1, 0.0, 0)
    assert 0 < check.measured < check.bound and check.holds


@pytest.mark.parametrize(("activation", "largest"), [("relu", 0), ("identity", 0), ("smooth", (1 - 65**-0.5) / 4)])
def test_the_diagonal_law_says_how_homogeneous_the_activation_is(activation, largest):
    """σ(h) − σ'(h)h of the smooth one is (1/√(h²+1) − 1)/4 at slope ½: largest at the end, |h| = 8."""
    check = balancedness_step(scalars(2, 5), scalars(1.9, 4.75), 0.05, 1.0, 1, diagonal=True, activation=activation)
    (hypothesis,) = check.hypotheses
    assert hypothesis.value == pytest.approx(largest, abs=1e-13)
    assert (hypothesis.threshold, hypothesis.sense) == (1e-12, "<=")
    assert check.holds is (True if activation != "smooth" else None)
    assert check.statement == "Balancedness lemma (descent, diagonal)"


def test_the_diagonal_law_looks_at_every_layer_and_takes_relu_for_granted():
    before, after = scalars(2, 5, 1), scalars(1.9, 4.75, 0.95)
    after[0] += 0.1
    assert balancedness_step(before, after, 0.05, 1.0, 1).holds is True
    assert balancedness_step(before, after, 0.05, 1.0, 1, diagonal=True).holds is False
    after[0] -= 0.1
    assert balancedness_step(before, after, 0.05, 1.0, 9, diagonal=True).holds is True


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"after": scalars(1, 2)}, "after must have the shapes of before; got others"),
        ({"after": [np.ones((1, 1)), np.ones((2, 1)), np.ones((1, 1))]}, "after must have the shapes of before"),
        ({"num_nonlinear": 2}, "two layers or more from layer 3 on; got 3 in all"),
        ({"before": scalars(1), "after": scalars(1), "diagonal": True}, "from layer 1 on; got 1 in all"),
        ({"num_nonlinear": -1}, "num_nonlinear must be at least 0"),
        ({"step_size": 0.0}, "step_size must be above 0"),
        ({"step_size": math.inf}, "step_size must be above 0, finite"),
        ({"weight_decay": -1e-9}, "weight_decay must be at least 0"),
        ({"weight_decay": math.inf}, "weight_decay must be at least 0, finite"),
        ({"before": [np.ones(2)] * 3, "after": [np.ones(2)] * 3}, "weights must have two dimensions"),
    ],
)
def test_steps_that_are_none_are_refused(changed, said):
    usual = {"before": scalars(1, 2, 3), "after": scalars(1, 2, 3), "step_size": 0.1, "weight_decay": 0.0}
    with pytest.raises(ValueError, match=said):
        balancedness_step(**(usual | {"num_nonlinear": 0} | changed))


def test_steps_at_the_limits_of_what_is_allowed():
    weights = [torch.ones(1, 1), torch.ones(1, 1)]
    assert balancedness_step(weights, weights, 1e-300, 0.0, 0).holds
    assert balancedness_step(scalars(1, 2, 3), scalars(1, 2, 3), 0.1, 0.0, 1).holds
    assert balancedness_step(scalars(1, 2), scalars(1, 2), 0.1, 0.0, 5, diagonal=True).holds


# --- a flow

DECAY = 0.25
HALF = math.log(2) / (2 * DECAY)  # the time in which the law halves an imbalance


def path(*rows, times=(0.0, HALF), decay=DECAY):
    """Layers (1, 1) after the first, and a last one (2, 1) with its second entry 0: D_2 = c² − b², D_3 = d² − c²."""
    objective = Objective(np.array([[1.0], [2.0]]), np.arange(2), 1, decay)
    states = np.array([[*row, 0.0] for row in rows], dtype=float)
    shapes = (*[(1, 1)] * (len(rows[0]) - 1), (2, 1))
    return Trajectory(objective, shapes, np.array(times), states, np.zeros(len(times)))


def test_the_flow_law_by_hand():
    """D_2: 3 → 1.5 by the law and 1.6 here; D_3: 5 → 2.5 by the law and 2.9 here, which is more of it."""
    check = balancedness_flow(path((7, 1, 2, 3), (7, 1, math.sqrt(2.6), math.sqrt(5.5))))
    assert check.measured == pytest.approx(0.4 / 2.5, rel=1e-9)
    assert (check.bound, check.holds) == (1e-3, False)
    assert [h.value for h in check.hypotheses] == pytest.approx([5, 2])  # ‖D_3(0)‖; two layers at one time t > 0
    assert [(h.threshold, h.sense) for h in check.hypotheses] == [(0, ">"), (1, ">=")]
    assert (check.statement, check.quantity, check.form) == ("Balancedness lemma (flow)", "imbalance", "exact")
    # the first layer, ahead of the activation, has no part in it, and a larger tolerance forgives
    same = balancedness_flow(path((1, 1, 2, 3), (9, 1, math.sqrt(2.6), math.sqrt(5.5))), 0.17)
    assert same.measured == check.measured and same.bound == 0.17 and same.holds
    # D_2 off by more: it is the one reported
    first = balancedness_flow(path((7, 1, 2, 3), (7, 1, math.sqrt(2.9), math.sqrt(5.5))))
    assert first.measured == pytest.approx(0.4 / 1.5, rel=1e-9)


def test_the_times_of_a_flow_are_all_looked_at():
    good = (7, 1, math.sqrt(2.5), math.sqrt(5))
    later = (7, 1, math.sqrt(1.75), math.sqrt(3))
    times = (0.0, HALF, 2 * HALF)
    assert balancedness_flow(path((7, 1, 2, 3), good, later, times=times)).holds
    for middle, last, measured in ((good, (7, 1, math.sqrt(1.75), 2), 1 / 1.25), ((7, 1, 2, 3), later, 1)):
        check = balancedness_flow(path((7, 1, 2, 3), middle, last, times=times))
        assert check.measured == pytest.approx(measured, rel=1e-9)
        assert check.hypotheses[1].value == 4


def test_without_decay_the_law_is_that_nothing_changes():
    check = balancedness_flow(path((7, 1, 2, 3), (7, 1, 2, math.sqrt(9.5)), decay=0.0))
    assert check.measured == pytest.approx(0.5 / 5, rel=1e-9)


def test_a_layer_that_starts_balanced_is_compared_with_the_others():
    """D_2(0) = 0 and D_3(0) = 8, which becomes 4: D_2 = 0.2 is 0.05 of that."""
    check = balancedness_flow(path((7, 1, 1, 3), (7, 1, math.sqrt(1.2), math.sqrt(5.2))))
    assert check.measured == pytest.approx(0.05, rel=1e-9)
    assert [h.value for h in check.hypotheses] == pytest.approx([8, 2])
    # a thousandth of a millionth of the largest is nothing of its own; twice as much is
    for part, own in ((0.5e-9, False), (2e-9, True)):
        start = (7, math.sqrt(1e6), math.sqrt(1e6 + 8e6 * part), math.sqrt(9e6))
        half = (7, math.sqrt(1e6), math.sqrt(1e6 + 1e3), math.sqrt(5e6 + 1e3))
        found = balancedness_flow(path(start, half)).measured
        # 1e-9(1e6 + 1e6)/1e-3 = 2 is what its own size is raised to
        assert found == pytest.approx(1e3 / 2 if own else 1e3 / 4e6, rel=1e-2)


def test_an_imbalance_near_the_rounding_of_the_solver_is_measured_against_that():
    """W = 10, √(100 + 1e-5): D halves to 5e-6, below 1e-9·200/1e-3 = 2e-4, which stands in its place."""
    start, end = (7, 10, math.sqrt(100 + 1e-5)), (7, 10, math.sqrt(100 + 3e-5))
    check = balancedness_flow(path(start, end))
    assert check.measured == pytest.approx(2.5e-5 / 2e-4, rel=1e-6)
    assert check.hypotheses[0].value == pytest.approx(1e-5, rel=1e-6)
    assert check.hypotheses[1].value == 0 and check.holds is None
    # a tolerance above a thousandth asks for less; one below, no more
    assert balancedness_flow(path(start, end), 0.1).measured == pytest.approx(2.5e-5 / 5e-6, rel=1e-6)
    assert balancedness_flow(path(start, end), 0.002).measured == pytest.approx(2.5e-5 / 1e-4, rel=1e-6)
    assert balancedness_flow(path(start, end), 0.0).measured == check.measured
    # the sizes of both layers count
    other = balancedness_flow(path((7, 10, 20), (7, 1e4, 1e4 + 1e-2)))
    assert other.measured == pytest.approx(abs(2e2 + 1e-4 - 150) / (1e-9 * 2e8 / 1e-3), rel=1e-5)
    assert other.hypotheses[1].value == 0


def test_a_network_that_is_balanced_throughout_has_no_law_to_obey():
    check = balancedness_flow(path((7, 2, 2), (7, 1, 1)))
    assert (check.measured, check.holds) == (0, None) and not check.hypotheses[0].holds
    nothing = balancedness_flow(path((7, 0, 0), (7, 0, 0)))
    assert (nothing.measured, nothing.holds) == (0, None)


def test_trajectories_that_are_no_flow_or_have_no_neighbours_are_refused():
    run = path((7, 1, 2, 3), (7, 1, 2, 3))
    with pytest.raises(ValueError, match="trajectory must be a flow; got gradient descent"):
        balancedness_flow(dataclasses.replace(run, step_size=0.1))
    broken = run.states.copy()
    broken[1, 0] = math.inf
    with pytest.raises(ValueError, match="finite states"):
        balancedness_flow(dataclasses.replace(run, states=broken))
    with pytest.raises(ValueError, match="two linear layers or more; got one"):
        balancedness_flow(path((7, 1), (7, 1)))
    with pytest.raises(ValueError, match="tolerance must be at least 0"):
        balancedness_flow(run, -1e-9)
    with pytest.raises(ValueError, match="tolerance must be at least 0, finite"):
        balancedness_flow(run, math.inf)
    with pytest.raises(TypeError, match="trajectory must be a Trajectory"):
        balancedness_flow(None)


def test_the_flow_itself_obeys_and_descent_is_told_apart():
    objective = Objective(general_position(4, 5), np.arange(4) % 2, 1, 0.05)
    generator = np.random.default_rng(0)
    weights = [generator.standard_normal(s) / 2 for s in ((4, 5), (3, 4), (3, 3), (2, 3))]
    run = flow(objective, weights, [0.0, 1.0, 4.0])
    assert balancedness_flow(run).holds and balancedness_flow(run).measured < 1e-6
    with pytest.raises(ValueError, match="must be a flow"):
        balancedness_flow(descend(objective, weights, 1e-3, 5))


# --- stationary points


def line(*values, decay=DECAY):
    """The objective of one input 1 in each class and the identity, so that everything is a product of numbers."""
    objective = Objective(np.ones((2, 1)), np.arange(2), 1, decay, "identity")
    return objective, [*scalars(*values[:-1]), np.array([[float(values[-1])], [0.0]])]


def by_hand(values, decay=DECAY):
    """∇_ℓC_λ of ½[(p−1)² + p² + 1], p the product of all, as numbers; in the last layer both entries."""
    product = math.prod(values)
    gradients = [(2 * product - 1) * product / v + decay * v for v in values[:-1]]
    rest = math.prod(values[:-1])
    return [*map(abs, gradients), math.hypot((2 * product - 1) * rest + decay * values[-1], -rest)]


@pytest.mark.parametrize("values", [(0.9, 0.5, 1.5, 2.0), (0.9, 2.0, 0.25, 0.5), (3.0, 0.2, 0.4)])
def test_the_stationary_law_by_hand(values):
    """The pair that uses up most of (‖W_{ℓ+1}‖‖∇_{ℓ+1}‖ + ‖∇_ℓ‖‖W_ℓ‖)/λ, of those after the activation."""
    gradients, rows = by_hand(values), []
    for l in range(1, len(values) - 1):
        imbalance = abs(values[l + 1] ** 2 - values[l] ** 2)
        rows.append((imbalance, (values[l + 1] * gradients[l + 1] + gradients[l] * values[l]) / DECAY))
    check = balancedness_stationary(*line(*values))
    assert (check.measured, check.bound) == pytest.approx(max(rows, key=lambda row: row[0] / row[1]), rel=1e-12)
    (hypothesis,) = check.hypotheses
    assert (hypothesis.value, hypothesis.threshold, hypothesis.sense) == (DECAY, 0, ">")
    assert (check.statement, check.quantity, check.form, check.sense, check.holds) == (
        "Balancedness lemma (stationary)", "imbalance", "simple", "<=", True)  # fmt: skip


def test_without_decay_the_stationary_law_is_silent():
    check = balancedness_stationary(*line(0.9, 0.5, 1.5, 2.0, decay=0.0))
    assert check.bound == math.inf and check.holds is None
    assert check.measured == pytest.approx(1.5**2 - 0.5**2)  # of infinite bounds the first


def test_one_linear_layer_has_no_neighbour():
    with pytest.raises(ValueError, match="two linear layers or more; got 1"):
        balancedness_stationary(*line(1, 2))
    with pytest.raises(TypeError, match="objective must be a Objective"):
        balancedness_stationary(None, scalars(1, 2))


def test_a_stationary_point_that_is_not_balanced_is_reported_before_any_other(monkeypatch):
    """Where a gradient is said to be 0 and the imbalance is none, no number of times the bound is large enough."""
    objective, weights = line(0.9, 0.5, 1.5, 2.0)
    monkeypatch.setattr(
        Objective, "gradients", lambda self, w: [np.zeros_like(w[0]), *map(np.zeros_like, w[1:3]), w[3]]
    )
    check = balancedness_stationary(objective, weights)
    assert check.measured == pytest.approx(1.5**2 - 0.5**2) and (check.bound, check.holds) == (0, False)
    # balanced, and with no gradient: nothing is used up, and the other pair is reported
    objective, weights = line(0.9, 1.5, 1.5, 2.0)
    check = balancedness_stationary(objective, weights)
    assert check.measured == pytest.approx(2.0**2 - 1.5**2) and check.bound == pytest.approx(4 / DECAY)
