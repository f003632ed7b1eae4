"""The flow in the tangent kernel: the same flow as LSODA's, and one that LSODA cannot follow."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ncutils import theory
from ncutils.theory import slide as slide_module
from ncutils.theory.dichotomy import hidden_start
from ncutils.theory.simulate import pack
from ncutils.theory.slide import output_kernel, slide, whitened_start


def case(nonlinear=2, widths=(8, 6, 6, 2), activation="smooth"):
    x, y = theory.general_position(6, 8), np.arange(6) % 2
    start = theory.Objective(x, y, nonlinear, 0.0, activation=activation)
    weights = hidden_start(start, list(widths), 1.8, 0.3)
    decay = theory.TwoPhase.at(start, weights).largest_weight_decay
    return replace(start, weight_decay=decay), weights


@pytest.mark.parametrize("nonlinear", [1, 2])
def test_kernel_is_that_of_finite_differences(nonlinear):
    objective, weights = case(nonlinear)
    arrays = objective.arrays(weights)
    state, shapes = pack(arrays), objective.shapes(weights)
    jacobian = []
    for i in range(len(state)):
        sides = []
        for sign in (1, -1):
            moved = state.copy()
            moved[i] += sign * 1e-6
            sides.append(objective.features(theory.simulate.unpack(moved, shapes))[1][-1].ravel())
        jacobian.append((sides[0] - sides[1]) / 2e-6)
    jacobian = np.array(jacobian).T
    np.testing.assert_allclose(output_kernel(objective, weights), jacobian @ jacobian.T, rtol=1e-6, atol=1e-6)


def test_agrees_with_lsoda_and_converges_at_order_two():
    objective, weights = case()
    times = np.concatenate([[0], np.geomspace(1e-3, 0.1, 4), [0.5, 2.0, 4.0]]) / objective.weight_decay
    reference = theory.flow(objective, weights, times, rtol=1e-9)
    gaps = []
    for part in (1, 0.5):
        run = slide(objective, weights, times, first=0.01 * part, growth=0.08 * part, largest=0.02 * part)
        gaps.append(np.abs(run.states - reference.states).max())
        assert np.abs(run.path - reference.path).max() < 1e-3
    assert gaps[0] < 1e-4
    assert 3 < gaps[0] / gaps[1] < 5


def test_a_weight_decay_below_rounding():
    """The paper-form bound below 1 before the start: λ = 7e-15, where E = f − Y cannot be formed as a difference."""
    x, y = theory.general_position(6, 8), np.arange(6) % 2
    start = theory.Objective(x, y, 2, 0.0)
    weights = theory.initialise(start, [8, 6, 6, 2], theory.smallest_scale(start, [8, 6, 6, 2]))
    phase, until = theory.TwoPhase.at(start, weights).non_vacuous(0.9, "paper")
    assert phase.weight_decay < 1e-13
    decay = phase.weight_decay
    times = np.concatenate([[0, phase.t1], [0.01 / decay, 1 / decay, 2 / decay, until]])
    run = slide(replace(start, weight_decay=decay), weights, times)
    law = run.imbalances / run.imbalances[0] / np.exp(-2 * decay * times)
    np.testing.assert_allclose(law[:-1], 1, atol=1e-3)
    check = theory.theorem_4_4_nc1(phase, run, "paper")
    assert check.holds and check.bound < 1
    assert all(c.holds for c in theory.theorem_4_4(phase, run)[1:4])


def test_whitened_start():
    x = np.random.default_rng(0).standard_normal((6, 9))
    objective = theory.Objective(x, np.arange(6) % 2, 2, 0.0)
    weights = objective.arrays(whitened_start(objective, [7, 5, 4, 2], 1.5, head=2.0))
    post = objective.features(weights)[1]
    np.testing.assert_allclose(post[1][:, :6], 1.5 * np.linalg.norm(x, 2) * np.eye(6), atol=1e-9)
    assert np.abs(post[-1]).max() < 1e-9 * np.abs(post[-2]).max()
    phase = theory.TwoPhase.at(objective, weights)
    assert phase.lambda_F == pytest.approx(1.5 * np.linalg.norm(x, 2))
    assert phase.lambdas == pytest.approx((3.0, 3.0))


def test_wrong_arguments():
    objective, weights = case()
    with pytest.raises(ValueError, match="times must be"):
        slide(objective, weights, [1.0, 2.0])
    with pytest.raises(ValueError, match="weight_decay must be positive"):
        slide(replace(objective, weight_decay=0.0), weights, [0.0, 1.0])
    for growth in (0.0, 1e-12):  # the second would take for ever
        with pytest.raises(ValueError, match=r"growth must be at least 0\.001"):
            slide(objective, weights, [0.0, 1.0], growth=growth)
    with pytest.raises(ValueError, match="n_1 = 5"):
        whitened_start(objective, [5, 4, 4, 2], 1.0)
    flat = replace(objective, x=np.ones((6, 8)))
    with pytest.raises(ValueError, match="must have rank"):
        whitened_start(flat, [6, 4, 4, 2], 1.0)
    assert math.isfinite(objective.weight_decay)


def test_the_steps_that_a_slide_takes_by_itself():
    """Their sizes are part of what is promised: halved steps are compared with them."""
    objective = theory.Objective(theory.general_position(6, 8), np.arange(6) % 3, 1, 0.05)
    weights = theory.initialise(objective, (8, 4, 3), 1.0)
    times = [0.0, 1.0, 10.0]
    usual = slide(objective, weights, times)
    stated = slide(objective, weights, times, first=0.01, growth=0.08, largest=0.02)
    np.testing.assert_array_equal(usual.states, stated.states)
    for other in ({"first": 0.02}, {"growth": 0.16}, {"largest": 0.04}):
        assert np.abs(slide(objective, weights, times, **other).states - usual.states).max() > 0


def test_the_steps_are_as_long_as_the_docstring_says(monkeypatch):
    """first/‖JJᵀ‖, then growth times the time so far, and at most largest/λ; the last one ends where asked."""
    objective, weights = case()
    steps, inside = [], slide_module._advance

    def noted(*arguments):
        steps.append(arguments[-1])
        return inside(*arguments)

    monkeypatch.setattr(slide_module, "_advance", noted)
    norm = np.linalg.norm(output_kernel(objective, weights), 2)
    end = 0.4 / objective.weight_decay
    slide(objective, weights, [0, end], first=0.02, growth=0.3, largest=0.03)
    assert steps[0] == pytest.approx(0.02 / norm, rel=1e-9) and sum(steps) == pytest.approx(end, rel=1e-9)
    for step, now in zip(steps[1:-1], np.cumsum(steps), strict=False):
        assert step == pytest.approx(min(max(0.02 / norm, 0.3 * now), 0.03 / objective.weight_decay), rel=1e-9)
    assert any(step == pytest.approx(0.03 / objective.weight_decay) for step in steps)
