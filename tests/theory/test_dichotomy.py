"""From a start the head cannot see, weight decay decides."""

import dataclasses
import math

import numpy as np
import pytest

from ncutils.theory import simulate
from ncutils.theory.dichotomy import dichotomy, dichotomy_floor, hidden_start
from ncutils.theory.theorem_4_4 import TwoPhase

WIDTHS = [8, 6, 2]


def case(size=0.5, scale=3.0, seed=0, nonlinear=1, widths=WIDTHS):
    x, y = simulate.general_position(6, 8), np.arange(6) % 2
    objective = simulate.Objective(x, y, nonlinear, 0.0)
    return objective, hidden_start(objective, widths, scale, size, seed)


@pytest.mark.parametrize("nonlinear", [1, 2])
def test_the_head_cannot_see_the_features(nonlinear):
    objective, weights = case(nonlinear=nonlinear, widths=[8, 6, 5, 2])
    features = objective.features(objective.arrays(weights))[1]
    assert np.abs(features[-1]).max() < 1e-9 * np.abs(features[-2]).max()
    assert np.abs(features[-2]).max() > 1


def test_nc1_stays_up_without_decay_and_falls_with_it():
    objective, weights = case()
    floor, hypotheses = dichotomy_floor(objective, weights)
    assert all(h.holds for h in hypotheses)
    assert floor > 0.5
    decay = TwoPhase.at(objective, weights).largest_weight_decay
    times = np.concatenate([[0.0], np.geomspace(1e-6, 5 / decay, 30)])
    check = dichotomy(simulate.flow(objective, weights, times, rtol=1e-7, atol=1e-10))
    assert check.holds is True, str(check)
    assert dataclasses.replace(check, bound=1.001 * check.measured).holds is False
    decayed = simulate.flow(dataclasses.replace(objective, weight_decay=decay), weights, times, rtol=1e-7, atol=1e-10)
    assert decayed.nc1[-1] < 1e-2 * floor
    assert dichotomy(decayed).holds is None


@pytest.mark.parametrize("seed", range(4))
def test_floor_holds_at_other_starts(seed):
    objective, weights = case(size=0.3 + 0.2 * seed, seed=seed)
    check = dichotomy(simulate.flow(objective, weights, [0.0, 1e-4, 1e-2, 1.0, 100.0], rtol=1e-7, atol=1e-10))
    assert check.holds is not False, str(check)


def test_silent_where_the_path_may_be_long():
    objective, weights = case(scale=0.05)
    floor, hypotheses = dichotomy_floor(objective, weights)
    assert floor == 0
    assert not hypotheses[-1].holds
    assert math.isfinite(hypotheses[-1].value)


def test_constants_of_another_start_are_refused():
    objective, weights = case()
    other = TwoPhase.at(objective, case(seed=1)[1], weight_decay=0.0)
    free = simulate.flow(objective, weights, [0.0, 1e-3], rtol=1e-7, atol=1e-10)
    assert dichotomy(free, TwoPhase.at(objective, weights, weight_decay=0.0)).holds
    with pytest.raises(ValueError, match="phase must be of this start, norm"):
        dichotomy(free, other)
    # as long, with f(X) = 0 as before, so of the same cost
    swapped = [w.clone() for w in weights]
    swapped[2] *= 1.15
    rest = sum(float(w.square().sum()) for w in swapped) - float(swapped[1].square().sum())
    whole = sum(float(w.square().sum()) for w in weights)
    swapped[1] *= ((whole - rest) / float(swapped[1].square().sum())) ** 0.5
    with pytest.raises(ValueError, match="phase must be of this start, lambdas"):
        dichotomy(free, TwoPhase.at(objective, swapped, weight_decay=0.0))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="must exceed K"):
        case(widths=[8, 2, 2])
    with pytest.raises(ValueError, match="num_nonlinear must be"):
        case(nonlinear=3, widths=[8, 6, 5, 4, 2])


def test_path_is_bounded_inside_the_ball_only():
    """Beyond r_0 one layer may lose rank faster than the even share: the floor must be silent there."""
    objective, weights = case(scale=1.5)
    phase = TwoPhase.at(objective, weights)
    need = math.sqrt(2 * phase.data_cost)
    whole = phase.scale * math.sqrt(phase.depth - 1) * phase.root_alpha_0 / phase.depth
    shrink = (0.5 * (phase.budget + whole) / need) ** -1
    assert phase.budget < whole
    tight = dataclasses.replace(phase, data_cost=phase.data_cost / shrink**2)
    assert phase.budget < math.sqrt(2 * tight.data_cost) < whole
    assert dichotomy_floor(objective, weights, tight)[0] == 0
    assert phase.travelled(phase.budget) == pytest.approx(phase.r0)


def test_the_floor_is_that_of_the_statement():
    """δ_ℓ = (‖W_ℓ‖ + p) δ_{ℓ−1} + p ‖Z_{ℓ−1}‖, layer by layer, and what it leaves of the scatter."""
    objective, weights = case()
    phase = TwoPhase.at(objective, weights, weight_decay=0.0)
    path = phase.travelled(math.sqrt(2 * phase.data_cost))
    first, second, _ = objective.arrays(weights)
    z1, z2 = objective.features(objective.arrays(weights))[1][1:3]
    norm = lambda matrix: np.linalg.norm(matrix, 2)  # noqa: E731
    once = (norm(first) + path) * 0 + path * norm(objective.x)
    drift = (norm(second) + path) * once + path * norm(z1)
    means = np.array([z2[objective.y == c].mean(0) for c in range(2)])
    scatter, between = np.linalg.norm(z2 - means[objective.y]), np.linalg.norm(means - means.mean(0)) / math.sqrt(2)
    floor = ((scatter - drift) / math.sqrt(6) / (between + drift / math.sqrt(6))) ** 2
    assert 0 < drift < scatter
    assert dichotomy_floor(objective, weights)[0] == pytest.approx(floor, rel=1e-9)


def wide(nonlinear=2, widths=(7, 6, 5, 3), scale=2.0, size=0.4, seed=1):
    """6 samples of dimension 8, 3 classes: no two sizes agree."""
    x, y = simulate.general_position(6, 8), np.array([2, 0, 1, 1, 2, 0])
    objective = simulate.Objective(x, y, nonlinear, 0.0)
    return objective, hidden_start(objective, list(widths), scale, size, seed)


@pytest.mark.parametrize("nonlinear", [1, 2])
@pytest.mark.parametrize("widths", [(7, 4, 3), (6, 9, 3), (9, 6, 5, 3), (7, 8, 6, 5, 3), (7, 5, 8, 4, 3)])
def test_the_second_features_are_as_large_as_asked_and_hidden(nonlinear, widths):
    objective, weights = wide(nonlinear, widths, 1.5, 0.4)
    z = objective.features(objective.arrays(weights))[1]
    if nonlinear == 1 or len(widths) > 3:
        assert np.linalg.norm(z[2], 2) == pytest.approx(0.4 * 1.5 * np.linalg.norm(z[1], 2), rel=1e-9)
    assert np.abs(z[-1]).max() < 1e-9 * np.abs(z[2]).max()
    # all of it is random but for what the head sees, and the other layers are those of the usual start
    assert np.linalg.matrix_rank(z[2], 1e-9) == min(6, widths[1] - 3)
    usual = simulate.initialise(objective, list(widths), 1.5, seed=1)
    for layer, (ours, theirs) in enumerate(zip(weights, usual, strict=True)):
        assert bool((ours == theirs).all()) is (layer != 1)


def test_another_seed_is_another_start_and_0_is_the_usual_one():
    x, y = simulate.general_position(6, 8), np.arange(6) % 2
    objective = simulate.Objective(x, y, 1, 0.0)
    usual, stated, other = (hidden_start(objective, WIDTHS, 1.5, 0.4, *seed) for seed in ((), (0,), (1,)))
    assert all(bool((a == b).all()) for a, b in zip(usual, stated, strict=True))
    assert not any(bool((a == b).any()) for a, b in zip(usual, other, strict=True))
    assert all(w.is_contiguous() for w in usual)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"nonlinear": 3, "widths": (7, 6, 5, 4, 3)}, "num_nonlinear must be 1 or 2; got 3"),
        ({"widths": (7, 2, 5, 3)}, r"widths\[1\] must exceed K = 3; got 2"),
        ({"widths": (7, 3, 5, 3)}, r"widths\[1\] must exceed K = 3; got 3"),
        ({"widths": (5, 6, 5, 3)}, "widths must be at least N = 6; got n_1 = 5"),
        ({"widths": (5, 10**6, 3)}, "widths must be at least N = 6; got n_1 = 5"),
        ({"widths": ()}, "widths must hold at least 1"),
        ({"widths": (7,)}, "weights must be more than num_nonlinear = 2; got 1 layers"),
        ({"widths": (7, 0, 3)}, r"widths\[1\] must be at least 1"),
        ({"widths": (7, 10**6 + 1, 3)}, r"widths\[1\] must be at most 1e\+06"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"scale": 1.1e100}, r"scale must be above 0, at most 1e\+100"),
        ({"size": 0.0}, "size must be above 0"),
        ({"size": 1.1e100}, r"size must be above 0, at most 1e\+100"),
        ({"seed": -1}, "seed must be at least 0"),
    ],
)
def test_what_a_hidden_start_refuses(changed, said):
    with pytest.raises(ValueError, match=said):
        wide(**changed)


@pytest.mark.parametrize("nonlinear", [1, 2])
@pytest.mark.parametrize("scale", [3.0, 6.0])
def test_the_floor_where_no_two_sizes_agree(nonlinear, scale):
    objective, weights = wide(nonlinear, scale=scale, size=0.6)
    phase = TwoPhase.at(objective, weights, weight_decay=0.0)
    need = math.sqrt(2 * objective.data_cost(weights))
    path = phase.travelled(need)
    arrays = objective.arrays(weights)
    z = objective.features(arrays)[1]
    drift = 0.0
    for layer in range(3):  # up to Z_{L−1}
        drift = np.linalg.norm(arrays[layer], 2) * drift + path * (drift + np.linalg.norm(z[layer], 2))
    within = between = 0.0
    means = [z[3][objective.y == c].mean(0) for c in range(3)]
    middle = sum(means) / 3
    for c in range(3):
        within += ((z[3][objective.y == c] - means[c]) ** 2).sum() / 6
        between += ((means[c] - middle) ** 2).sum() / 3
    left = math.sqrt(within) - drift / math.sqrt(6)
    expected = (max(left, 0) / (math.sqrt(between) + drift / math.sqrt(6))) ** 2
    floor, hypotheses = dichotomy_floor(objective, weights)
    assert floor == pytest.approx(expected, rel=1e-9) and isinstance(floor, float)
    assert hypotheses[:-1] == phase.checks
    last = hypotheses[-1]
    assert (last.value, last.threshold, last.sense) == (pytest.approx(need), phase.budget, "<=")
    assert dichotomy_floor(objective, weights, phase)[0] == pytest.approx(floor, rel=1e-12)
    # a weight decay of the objective changes nothing
    decayed = dataclasses.replace(objective, weight_decay=0.3)
    assert dichotomy_floor(decayed, weights)[0] == pytest.approx(floor, rel=1e-12)


def test_a_scatter_that_may_be_lost_leaves_no_floor():
    objective, weights = wide(1, widths=(7, 6, 3), scale=3.0, size=1e-4)
    phase = TwoPhase.at(objective, weights, weight_decay=0.0)
    floor, hypotheses = dichotomy_floor(objective, weights)
    assert floor == 0 and all(h.holds for h in hypotheses)
    assert phase.travelled(math.sqrt(2 * phase.data_cost)) < math.inf


def test_the_least_nc1_of_a_run_is_compared_with_the_floor():
    objective, weights = case()
    run = simulate.flow(objective, weights, [0.0, 1e-3, 1e-2], rtol=1e-7, atol=1e-10)
    floor, hypotheses = dichotomy_floor(objective, weights)
    for order in ([0, 1, 2], [0, 2, 1]):
        check = dichotomy(dataclasses.replace(run, states=run.states[order]))
        assert check.measured == pytest.approx(run.nc1.min(), rel=1e-12)
        assert check.bound == pytest.approx(floor, rel=1e-9)
    assert (check.statement, check.quantity, check.form, check.sense) == (
        "Dichotomy (no decay)", "nc1", "simple", ">=")  # fmt: skip
    assert [h.name for h in check.hypotheses[:-1]] == [h.name for h in hypotheses]
    assert (check.hypotheses[-1].value, check.hypotheses[-1].threshold, check.hypotheses[-1].sense) == (0, 0, "<=")
    decayed = dataclasses.replace(objective, weight_decay=1e-12)
    assert dichotomy(dataclasses.replace(run, objective=decayed)).holds is None
    with pytest.raises(TypeError, match="trajectory must be a Trajectory"):
        dichotomy(None)
    with pytest.raises(TypeError, match="phase must be a TwoPhase"):
        dichotomy(run, 1.0)
    with pytest.raises(TypeError, match="objective must be a Objective"):
        dichotomy_floor(None, weights)
