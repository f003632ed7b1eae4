"""The dichotomy (ours, not the paper's): from one start NC1 stays up without weight decay and goes to 0 with it.

**Theorem.** Let Assumptions 4.1 and 4.2 of arXiv:2410.04887 hold, √α(s) = √α(θ_0)(1 − s/ϱ)^{L−1} the pyramid constant
at distance s ≤ r_0 from θ_0, and let p ≤ r_0 solve ∫_0^p √α(s) ds = √(2C_0(θ_0)). Then gradient flow on C_0, without
weight decay, moves at most p, for ever, Z_{L−1} moves at most δ = δ_{L−1} in Frobenius norm, where

    δ_0 = 0,   δ_ℓ = (‖W_ℓ⁰‖ + p) δ_{ℓ−1} + p ‖Z_{ℓ−1}⁰‖ ,

and, with S = ‖Z̊_{L−1}⁰‖_F/√N and B = √tr Σ_B(Z_{L−1}⁰), at every time

    NC1(Z_{L−1}) ≥ ((S − δ/√N)₊/(B + δ/√N))² .

If λ > 0 meets the conditions of Theorem 4.4 instead, the flow on C_λ from the same start has NC1 as small as that
theorem's bound, which goes to 0 with λ.

*Proof.* ½‖∇C_0‖² ≥ αC_0 gives d√C_0/dt = −‖∇C_0‖²/(2√C_0) ≤ −√(α/2)‖θ'‖. Integrate along the path:
∫_0^{length}√α ds ≤ √(2C_0(θ_0)). W_ℓZ_{ℓ−1} − W_ℓ⁰Z_{ℓ−1}⁰ = W_ℓ(Z_{ℓ−1} − Z_{ℓ−1}⁰) + (W_ℓ − W_ℓ⁰)Z_{ℓ−1}⁰ and
|σ'| ≤ 1 give δ_ℓ. Subtracting class means does not increase Frobenius norms, so ‖Z̊‖_F falls by at most δ; the class
means move by at most δ√(K/N) in all, so √tr Σ_B grows by at most δ/√N. ∎

It says something at a start whose features are scattered where the head cannot see them: :func:`hidden_start`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ncutils._arguments import checked, integer, many, number
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.simulate import Objective, Trajectory, initialise, op_norm
from ncutils.theory.theorem_4_4 import TwoPhase

__all__ = ["dichotomy", "dichotomy_floor", "hidden_start"]


@checked(
    widths=many(integer(least=1, most=10**6), least=1),
    scale=number(above=0, most=1e100),
    size=number(above=0, most=1e100),
    seed=integer(least=0),
)
def hidden_start(objective: Objective, widths: Sequence[int], scale: float, size: float, seed: int = 0) -> list[Tensor]:
    """:func:`~ncutils.theory.simulate.initialise` with Z_2 large in the kernel of W_{L:3}: f(X) = 0 exactly.

    Args:
        objective: its inputs and activation; at most 2 layers with an activation.
        widths: n_1..n_L; n_2 must exceed K, or there is nothing to hide in.
        scale: μ, as there.
        size: ‖Z_2‖ in units of μ‖Z_1‖.
        seed: of the random draws.

    Raises:
        ValueError: more than 2 nonlinear layers, n_2 ≤ K, or what ``initialise`` raises.
    """
    weights = [w.numpy().copy() for w in initialise(objective, widths, scale, seed=seed)]
    hide(objective, weights, size * scale, seed)
    return [torch.from_numpy(np.ascontiguousarray(w)) for w in weights]


def hide(objective: Objective, weights: list[np.ndarray], size: float, seed: int) -> None:
    """Overwrite W_2 so that Z_2 is random in the kernel of W_{L:3}, ``size`` times as large as Z_1."""
    width, classes = weights[1].shape[0], objective.num_classes
    if objective.num_nonlinear > 2:
        raise ValueError(f"objective.num_nonlinear must be 1 or 2; got {objective.num_nonlinear}")
    if width <= classes:
        raise ValueError(f"widths[1] must exceed K = {classes}; got {width}")
    first = objective.sigma(objective.x @ weights[0].T)
    product = np.linalg.multi_dot(weights[:1:-1]) if len(weights) > 3 else weights[2]
    kernel = np.eye(width) - np.linalg.pinv(product) @ product
    hidden = np.random.default_rng(seed + 1).standard_normal((len(first), width)) @ kernel
    hidden *= size * op_norm(first) / op_norm(hidden)
    before = hidden
    if objective.num_nonlinear == 2:  # Newton for σ(before) = hidden; σ is increasing
        for _ in range(100):
            before = before - (objective.sigma(before) - hidden) / objective.slope(before)
    weights[1] = (np.linalg.pinv(first) @ before).T


@checked()
def dichotomy_floor(
    objective: Objective, weights: Sequence, phase: TwoPhase | None = None
) -> tuple[float, tuple[Hypothesis, ...]]:
    """(what NC1(Z_{L−1}) never falls below without weight decay, the hypotheses), from the start alone (ours).

    Args:
        objective: the objective; its weight decay is ignored.
        weights: θ_0.
        phase: constants of the start; default those of the pyramid. See
            :func:`~ncutils.theory.any_width.certify_start` for others.
    """
    phase = TwoPhase.at(objective, weights, weight_decay=0.0) if phase is None else phase
    arrays = objective.arrays(weights)
    need = math.sqrt(2 * phase.data_cost)
    hypotheses = (*phase.checks, Hypothesis("√(2C_0) ≤ ∫_0^r0 √α ds", need, phase.budget, "<="))
    path = phase.travelled(need)
    if not path < math.inf:
        return 0.0, hypotheses
    features = objective.features(arrays)[1]
    drift = 0.0
    for w, entering in zip(arrays[:-1], features, strict=False):
        drift = (op_norm(w) + path) * drift + path * op_norm(entering)
    z, root = features[-2], math.sqrt(objective.num_samples)
    means = objective.one_hot.T @ z * (objective.num_classes / objective.num_samples)
    scatter = np.linalg.norm(z - means[objective.y])
    between = np.linalg.norm(means - means.mean(0)) / math.sqrt(objective.num_classes)
    return float((max(scatter - drift, 0.0) / root / (between + drift / root)) ** 2), hypotheses


@checked()
def dichotomy(trajectory: Trajectory, phase: TwoPhase | None = None) -> Check:
    """Without weight decay: the least NC1(Z_{L−1}) along a flow against the a-priori floor of its start (ours).

    Args:
        trajectory: from :func:`~ncutils.theory.simulate.flow` with weight decay 0.
        phase: as in :func:`dichotomy_floor`.

    Raises:
        ValueError: constants of another start.
    """
    objective = trajectory.objective
    if phase is not None:
        phase.check_start(objective, trajectory.weights(0))
    floor, hypotheses = dichotomy_floor(objective, trajectory.weights(0), phase)
    hypotheses += (Hypothesis("λ = 0", objective.weight_decay, 0.0, "<="),)
    return Check("Dichotomy (no decay)", "nc1", "simple", hypotheses, float(np.min(trajectory.nc1)), floor, ">=")
