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
