"""The balancedness laws of Section 4: they hold for every step of plain (stochastic) gradient descent on any loss.

The section is that of arXiv:2410.04887.

With D_ℓ = W_{ℓ+1}ᵀW_{ℓ+1} − W_ℓW_ℓᵀ the imbalance of two neighbouring linear layers: what one step makes of it
(:func:`balancedness_step`), what a flow does (:func:`balancedness_flow`), and how large it can be where the gradient
is small (:func:`balancedness_stationary`). Rows are samples, weights ``(out, in)``, everything is float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from ncutils._arguments import checked, integer, number
from ncutils.metrics import imbalance_matrix
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.simulate import Objective, Trajectory, as_matrix, imbalances, op_norm

__all__ = ["balancedness_flow", "balancedness_stationary", "balancedness_step"]

# An identity between float64 matrices: relative discrepancy allowed, and rounding of the matrices themselves.
IDENTITY = 1e-10
ROUNDING = 1e-14
# "To three digits", for a trajectory that a solver has integrated; and what it loses of the matrices themselves.
THREE_DIGITS = 1e-3
SOLVER = 1e-9


@checked(
    step_size=number(above=0, finite=True),
    weight_decay=number(least=0, finite=True),
    num_nonlinear=integer(least=0),
)
def balancedness_step(
    before: Sequence,
    after: Sequence,
    step_size: float,
    weight_decay: float,
    num_nonlinear: int,
    *,
    diagonal: bool = False,
    activation: str = "relu",
) -> Check:
    """Balancedness lemma, discrete time: what one step of (stochastic) gradient descent does to the imbalance.

    D_ℓ⁺ = (1−ηλ)²D_ℓ + η²(G_{ℓ+1}ᵀG_{ℓ+1} − G_ℓG_ℓᵀ), exactly, where ηG_ℓ = (1−ηλ)W_ℓ − W_ℓ⁺ is read off the step:
    no data, no loss and no batch enter. With ``diagonal`` only the diagonals are compared, but across the
    activations too, which is a law for positively homogeneous ones (ReLU).

    Args:
        before: all weights of the network, ``(out, in)``.
        after: the same after one step.
        step_size: η of that step.
        weight_decay: λ of that step, in the same normalisation as η.
        num_nonlinear: L1.
        diagonal: compare diagonals over all layers in place of full matrices over the linear ones.
        activation: name, for the diagonal law's hypothesis.

    Returns:
        The largest discrepancy over the layers against rounding. A step with momentum violates it.

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> after = [w - 0.01 * g for w, g in zip(objective.arrays(weights), objective.gradients(weights), strict=True)]
        >>> balancedness_step(weights, after, 0.01, objective.weight_decay, 1).holds
        True
    """
    before, after = ([as_matrix(w, "weights") for w in side] for side in (before, after))
    if len(before) != len(after) or any(a.shape != b.shape for a, b in zip(before, after, strict=True)):
        raise ValueError("after must have the shapes of before; got others")
    shrink = 1 - step_size * weight_decay
    moves = [shrink * a - b for a, b in zip(before, after, strict=True)]
    first = 0 if diagonal else num_nonlinear
    if len(before) - first < 2:
        raise ValueError(f"before must have two layers or more from layer {first + 1} on; got {len(before)} in all")
    rows = []
    for l in range(first, len(before) - 1):
        old, new, moved = (imbalance_matrix(w[l], w[l + 1]) for w in (before, after, moves))
        gap = new - shrink**2 * old - moved
        gap = np.diag(gap) if diagonal else gap
        sizes = [np.linalg.norm(w) for w in (before[l], before[l + 1], moves[l], moves[l + 1])]
        tolerance = IDENTITY * (sizes[0] * sizes[2] + sizes[1] * sizes[3]) + ROUNDING * (sizes[0] ** 2 + sizes[1] ** 2)
        rows.append((float(np.linalg.norm(gap)), float(tolerance)))
    worst, allowed = max(rows, key=_use)
    hypotheses: tuple[Hypothesis, ...] = ()
    if diagonal:
        grid = np.linspace(-8, 8, 65)
        probe = Objective(np.zeros((2, 1)), np.array([0, 1]), 1, 0.0, activation)
        homogeneity = float(np.abs(probe.sigma(grid) - probe.slope(grid) * grid).max())
        hypotheses = (Hypothesis("σ'(h)h = σ(h): largest gap", homogeneity, 1e-12, "<="),)
    name = "Balancedness lemma (descent, diagonal)" if diagonal else "Balancedness lemma (descent)"
    return Check(name, "imbalance_step", "exact", hypotheses, worst, allowed, "<=")


@checked(tolerance=number(least=0, finite=True))
def balancedness_flow(trajectory: Trajectory, tolerance: float = THREE_DIGITS) -> Check:
    """Balancedness lemma, continuous time: D_ℓ(t) = e^{−2λt}D_ℓ(0) along a gradient flow, exactly.

    Args:
        trajectory: from :func:`flow`.
        tolerance: relative error granted to the solver.

    Returns:
        max over times and layers of ‖D_ℓ(t) − e^{−2λt}D_ℓ(0)‖_F / ‖e^{−2λt}D_ℓ(0)‖_F, against the tolerance; for
        layers with D_ℓ(0) = 0 over the largest of the other denominators. Once e^{−2λt}D_ℓ(0) is no longer far above
        what a solver loses of W_ℓ, 1e-9 ‖W_ℓ‖², that stands in its place. Where it is so at every t > 0 and in every
        layer nothing is checked, which a hypothesis says.

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> balancedness_flow(flow(objective, weights, [0.0, 0.1])).holds
        True
    """
    if trajectory.step_size is not None:
        raise ValueError("trajectory must be a flow; got gradient descent, for which see balancedness_step")
    if not np.isfinite(trajectory.states).all():
        raise ValueError("trajectory must have finite states; got NaN or infinite entries")
    first = imbalances(trajectory.weights(0), trajectory.objective.num_nonlinear)
    if not first:
        raise ValueError("trajectory must have two linear layers or more; got one, which has no neighbour")
    scales = [float(np.linalg.norm(d)) for d in first]
    largest, worst = max(scales), 0.0
    # a layer that starts balanced, but for rounding, has no size of its own to compare with
    scales = [scale if scale > 1e-9 * largest else max(largest, 1e-300) for scale in scales]
    plain = 0
    for i, t in enumerate(trajectory.times):
        decay = math.exp(-2 * trajectory.objective.weight_decay * t)
        weights = trajectory.weights(i)[trajectory.objective.num_nonlinear :]
        lost = [SOLVER * (np.linalg.norm(a) ** 2 + np.linalg.norm(b) ** 2) for a, b in itertools.pairwise(weights)]
        now = imbalances(trajectory.weights(i), trajectory.objective.num_nonlinear)
        for d, d0, scale, least in zip(now, first, scales, lost, strict=True):
            size = max(decay * scale, least / max(tolerance, THREE_DIGITS), 1e-300)
            plain += bool(t > 0 and size == decay * scale)
            worst = max(worst, float(np.linalg.norm(d - decay * d0)) / size)
    hypotheses = (
        Hypothesis("max ‖D_ℓ(0)‖_F > 0", largest, 0.0, ">"),
        Hypothesis("times t > 0 and layers with e^{−2λt}‖D_ℓ(0)‖ above the solver's rounding", plain, 1, ">="),
    )
    return Check("Balancedness lemma (flow)", "imbalance", "exact", hypotheses, worst, tolerance, "<=")


@checked()
def balancedness_stationary(objective: Objective, weights: Sequence) -> Check:
    """Balancedness lemma, stationary points: λD_ℓ = W_{ℓ+1}ᵀ∇_{ℓ+1}C_λ − ∇_ℓC_λ W_ℓᵀ at *every* point.

    So ‖D_ℓ‖_op ≤ (‖W_{ℓ+1}‖‖∇_{ℓ+1}C_λ‖ + ‖∇_ℓC_λ‖‖W_ℓ‖)/λ for each ℓ, whatever the optimiser: zero where the gradient
    is. The check holds the layer that uses up most of its bound.

    Example:
        >>> from ncutils.theory import flow, general_position, initialise
        >>> objective = Objective(general_position(4, 4), np.array([0, 1, 0, 1]), num_nonlinear=1, weight_decay=0.01)
        >>> weights = initialise(objective, [4, 3, 2], scale=1.5)
        >>> balancedness_stationary(objective, weights).holds
        True
    """
    weights = objective.arrays(weights)
    gradients = objective.gradients(weights)
    decay = objective.weight_decay
    rows = []
    for l in range(objective.num_nonlinear, len(weights) - 1):
        w, v, g, h = (op_norm(a) for a in (weights[l], weights[l + 1], gradients[l], gradients[l + 1]))
        measured = op_norm(imbalance_matrix(weights[l], weights[l + 1]))
        rows.append((measured, (v * h + g * w) / decay if decay else math.inf))
    if not rows:
        raise ValueError(f"weights must have two linear layers or more; got {len(weights) - objective.num_nonlinear}")
    measured, bound = max(rows, key=_use)
    hypotheses = (Hypothesis("λ > 0", decay, 0.0, ">"),)
    return Check("Balancedness lemma (stationary)", "imbalance", "simple", hypotheses, measured, bound, "<=")


def _use(row: tuple[float, float]) -> float:
    """measured/bound, so that the layer reported is the one that uses up most of its bound."""
    measured, bound = row
    return measured / bound if bound else math.inf if measured else 0.0
