"""The flow in the tangent kernel: the same flow as LSODA's, and one that LSODA cannot follow."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

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


def wide(nonlinear=2, activation="smooth", decay=0.05, widths=(7, 5, 4, 3)):
    """6 samples of dimension 8, 3 classes: no two sizes agree."""
    generator = np.random.default_rng(2)
    objective = theory.Objective(
        generator.standard_normal((6, 8)), np.array([2, 0, 1, 1, 2, 0]), nonlinear, decay, activation, 0.3
    )
    sizes = (8, *widths)
    return objective, [generator.standard_normal((b, a)) / math.sqrt(a) for a, b in zip(sizes, widths, strict=False)]


@pytest.mark.parametrize("activation", ["smooth", "relu", "identity"])
@pytest.mark.parametrize("nonlinear", [1, 2, 3])
def test_the_kernel_where_no_two_sizes_agree(nonlinear, activation):
    objective, weights = wide(nonlinear, activation)

    def outputs(*layers):
        z = torch.from_numpy(objective.x)
        for layer, w in enumerate(layers):
            z = z @ w.T
            if layer < nonlinear and activation == "relu":
                z = z.relu()
            elif layer < nonlinear and activation == "smooth":
                z = 0.3 * z + 0.35 * (z + (z**2 + 1).sqrt() - 1)
        return z.ravel()

    parts = torch.autograd.functional.jacobian(outputs, tuple(torch.from_numpy(w) for w in weights))
    jacobian = torch.cat([part.reshape(18, -1) for part in parts], 1).numpy()
    found = output_kernel(objective, weights)
    assert found.shape == (18, 18)
    np.testing.assert_allclose(found, jacobian @ jacobian.T, rtol=1e-10, atol=1e-11)
    with pytest.raises(TypeError, match="objective must be a Objective"):
        output_kernel(None, weights)


@pytest.mark.parametrize("nonlinear", [1, 3])
def test_a_slide_where_no_two_sizes_agree(nonlinear):
    """Against LSODA, the way it went included: halved steps are four times as close."""
    objective, weights = wide(nonlinear)
    times = [0.0, 0.1, 0.3]
    reference = theory.flow(objective, weights, times, rtol=1e-9)
    gaps = []
    for part in (1, 0.5):
        run = slide(objective, weights, times, first=0.04 * part, growth=0.16 * part, largest=0.02 * part)
        assert run.times.tolist() == times and run.path[0] == 0
        np.testing.assert_allclose(run.states[0], pack(weights), atol=1e-15)
        gaps.append([np.abs(run.states - reference.states).max(), np.abs(run.path - reference.path).max()])
    assert gaps[0][0] < 1e-2 and gaps[0][1] < 1e-2
    ratios = np.array(gaps[0]) / gaps[1]
    assert (ratios > 2.8).all() and (ratios < 5.5).all()
    assert (run.step_size, run.steps) == (None, None)


def noted(monkeypatch, failures=0):
    """The steps that are tried, and which of them were solved; the first of them are said to have no solution."""
    steps, solved, inside = [], [], slide_module._advance

    def advance(*arguments):
        steps.append(arguments[-1])
        found = None if len(steps) <= failures else inside(*arguments)
        solved.append(found is not None)
        return found

    monkeypatch.setattr(slide_module, "_advance", advance)
    return steps, solved


def test_a_step_without_a_solution_is_halved(monkeypatch):
    """A first step of a million times the scale of the kernel: its equations are not solved as they stand."""
    objective, weights = wide(2)
    weights = [3 * w for w in weights]
    steps, solved = noted(monkeypatch)
    run = slide(objective, weights, [0.0, 1.0], first=1e6, growth=1.0, largest=1e6)
    assert steps[0] == 1.0 and not solved[0] and solved[-1]
    for index in range(solved.index(True)):
        assert steps[index + 1] == steps[index] / 2
    assert sum(step for step, done in zip(steps, solved, strict=True) if done) == pytest.approx(1.0, rel=1e-9)
    assert run.costs[-1] < 0.1 * run.costs[0]


@pytest.mark.parametrize("failures", [1, 3, 40])
def test_how_a_step_is_halved(monkeypatch, failures):
    """Forty times, and what the last of them leaves is walked as if it had been asked for."""
    objective, weights = wide(2)
    end = 1e-3
    steps, _ = noted(monkeypatch, failures)
    if failures < 40:
        run = slide(objective, weights, [0.0, end], first=1e6, growth=0.5, largest=1e6)
        assert sum(steps[failures:]) == pytest.approx(end, rel=1e-9)
        expected = theory.flow(objective, weights, [0.0, end]).states[1]
        np.testing.assert_allclose(run.states[1], expected, atol=1e-6)
    else:
        kernel = slide_module._Point.kernel
        left = [2]  # the kernel of the start, twice; there is a third only after a step

        def once(self):
            left[0] -= 1
            if left[0] < 0:
                raise KeyError("a step was taken")
            return kernel(self)

        monkeypatch.setattr(slide_module._Point, "kernel", once)
        with pytest.raises(KeyError, match="a step was taken"):
            slide(objective, weights, [0.0, end], first=1e6, growth=0.5, largest=1e6)
    assert steps[: failures + 1] == pytest.approx([end / 2**k for k in range(failures + 1)], rel=1e-12)


def test_a_step_that_has_no_solution_however_short(monkeypatch):
    objective, weights = wide(2)
    steps = []
    monkeypatch.setattr(slide_module, "_advance", lambda *arguments: steps.append(arguments[-1]))
    with pytest.raises(RuntimeError, match="the step at t = 0 of 3 has no solution"):
        slide(objective, weights, [0.0, 1.0, 3.0])
    assert len(steps) == 41
    assert steps == pytest.approx([steps[0] / 2**k for k in range(41)], rel=1e-12)


def test_the_last_step_before_a_time_is_not_a_sliver(monkeypatch):
    """A step that would end within a thousandth of its length before the time ends on it."""
    objective, weights = wide(1, decay=1.0)
    steps, _ = noted(monkeypatch)
    for end, count in ((0.01 * 1.0009, 1), (0.01 * 1.0011, 2), (0.01, 1), (0.009, 1), (0.02 * 1.0004, 2)):
        steps.clear()
        run = slide(objective, weights, [0.0, end], first=1e6, growth=0.001, largest=0.01)
        assert len(steps) == count and sum(steps) == pytest.approx(end, rel=1e-12)
        assert run.times[-1] == end


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"times": [0.0]}, "times must hold at least 2"),
        ({"times": [0.0, 0.0]}, "times must be at least two, increasing from 0"),
        ({"times": [0.0, 2.0, 1.0]}, "times must be at least two, increasing from 0"),
        ({"times": [1e-9, 1.0]}, "times must be at least two, increasing from 0"),
        ({"times": [-1.0, 1.0]}, r"times\[0\] must be at least 0"),
        ({"times": [0.0, math.inf]}, r"times\[1\] must be at least 0, finite"),
        ({"first": 0.0}, "first must be above 0"),
        ({"first": math.inf}, "first must be above 0, finite"),
        ({"growth": 9.9e-4}, r"growth must be at least 0\.001"),
        ({"growth": math.inf}, r"growth must be at least 0\.001, finite"),
        ({"largest": 9.9e-7}, "largest must be at least 1e-06"),
        ({"largest": math.inf}, "largest must be at least 1e-06, finite"),
    ],
)
def test_what_a_slide_refuses(changed, said):
    objective, weights = wide()
    with pytest.raises(ValueError, match=said):
        slide(objective, weights, **({"times": [0.0, 1e-6]} | changed))


def test_a_slide_at_the_limits_of_what_is_allowed():
    objective, weights = wide()
    run = slide(objective, weights, [0.0, 1e-6], first=1.0, growth=1e-3, largest=1e-6)
    assert len(run) == 2
    with pytest.raises(ValueError, match="weight_decay must be positive; got 0"):
        slide(replace(objective, weight_decay=0.0), weights, [0.0, 1.0])


@pytest.mark.parametrize("nonlinear", [1, 2])
@pytest.mark.parametrize("widths", [(6, 4, 3), (7, 6, 5, 3), (9, 5, 8, 4, 3)])
def test_a_whitened_start_where_no_two_sizes_agree(nonlinear, widths):
    objective, _ = wide(nonlinear)
    weights = objective.arrays(whitened_start(objective, widths, 1.5, head=1.25, size=0.4, seed=3))
    assert [w.shape for w in weights] == list(zip(widths, (8, *widths), strict=False))
    norm = np.linalg.norm(objective.x, 2)
    z = objective.features(weights)[1]
    np.testing.assert_allclose(z[1], 1.5 * norm * np.eye(6, widths[0]), atol=1e-9)
    for w in weights[2:]:
        np.testing.assert_allclose(np.linalg.svd(w, compute_uv=False), 1.25 * 1.5, rtol=1e-12)
    if len(widths) > 3 or nonlinear == 1:
        assert np.linalg.norm(z[2], 2) == pytest.approx(0.4 * 1.5 * 1.5 * norm, rel=1e-9)
        assert np.abs(z[-1]).max() < 1e-9 * np.abs(z[2]).max()
    empty = objective.arrays(whitened_start(objective, widths, 1.5, size=0.0))
    assert not empty[1].any() and np.linalg.norm(empty[2], 2) == pytest.approx(3.0)


def test_the_defaults_of_a_whitened_start():
    objective, _ = wide()
    usual, stated, other = (
        whitened_start(objective, (7, 5, 4, 3), 1.5, **given)
        for given in ({}, {"head": 2.0, "size": 0.3, "seed": 0}, {"seed": 1})
    )
    for a, b in zip(usual, stated, strict=True):
        assert a.dtype == torch.float64 and torch.equal(a, b) and a.is_contiguous()
    assert not torch.equal(usual[2], other[2]) and not torch.equal(usual[1], other[1])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"widths": (5, 5, 4, 3)}, "widths must be at least N = 6; got n_1 = 5"),
        ({"widths": (5, 10**5, 3)}, "widths must be at least N = 6; got n_1 = 5"),
        ({"widths": (7,)}, "widths must hold at least 2"),
        ({"widths": (7, 3)}, "weights must be more than num_nonlinear = 2; got 2 layers"),
        ({"widths": (7, 0, 3)}, r"widths\[1\] must be at least 1"),
        ({"widths": (7, 10**5 + 1, 3)}, r"widths\[1\] must be at most 100000"),
        ({"widths": (7, 5, 4)}, "the last layer has 4 outputs, expected K = 3"),
        ({"widths": (7, 3, 3)}, r"widths\[1\] must exceed K = 3; got 3"),
        ({"scale": 0.0}, "scale must be above 0"),
        ({"scale": math.inf}, "scale must be above 0, finite"),
        ({"head": 0.0}, "head must be above 0"),
        ({"head": math.inf}, "head must be above 0, finite"),
        ({"size": -1e-9}, "size must be at least 0"),
        ({"size": math.inf}, "size must be at least 0, finite"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"seed": 2**32}, r"seed must be at most 4\.29"),
    ],
)
def test_what_a_whitened_start_refuses(changed, said):
    objective, _ = wide()
    with pytest.raises(ValueError, match=said):
        whitened_start(objective, **({"widths": (7, 5, 4, 3), "scale": 1.0} | changed))


def test_inputs_of_rank_below_their_number_are_refused_with_their_rank():
    objective, _ = wide()
    x = objective.x.copy()
    x[5] = x[0] - 2 * x[1]
    with pytest.raises(ValueError, match="must have rank N = 6; got 5"):
        whitened_start(replace(objective, x=x), (7, 5, 4, 3), 1.0)
    assert len(whitened_start(objective, (6, 4, 3), 1e-3, seed=2**32 - 1)) == 3
