"""Stationary points (ours, not the paper's): what the last layer's gradient alone says about the outputs.

Let n = N/K, C_λ = ½‖f(X) − Y‖_F² + (λ/2)‖θ‖², R = EZ_{L−1}ᵀ + λW_L its gradient in W_L, and f(X) = MY + E_w: the mean
output M = W_LZ̄_{L−1} = I + Ē of each class, and the rest. At any parameters, for any λ,

    (1)  n(I − M)Mᵀ = λW_LW_Lᵀ + E_wE_wᵀ − RW_Lᵀ .

*Proof.* EZ_{L−1}ᵀW_Lᵀ = Ef(X)ᵀ, and E = (M − I)Y + E_w, YYᵀ = nI, E_wYᵀ = 0: so Ef(X)ᵀ = n(M − I)Mᵀ + E_wE_wᵀ. ∎

**Theorem.** Where R = 0 and λ ≥ 0: M is symmetric, 0 ≤ M ≤ I, n M(I − M) = λW_LW_Lᵀ + E_wE_wᵀ, and
λ‖W_L‖_F² + ‖E_w‖_F² ≤ N/4. If moreover D_{L−1} = 0, rank W_L = K and δ = ‖Ē‖ < 1, then P⊥Z_{L−1} = 0 and
NC2(Z_{L−1}) ≤ κ(W_L)/(1−δ). If also E_w = 0, NC2² is the largest over the least m/(1−m), m the eigenvalues of M.

*Proof.* The right side of (1) is symmetric, so Mᵀ − MMᵀ is, hence M; it is positive semi-definite, so M − M² ≥ 0. Its
trace is at most K n/4. With balance P⊥W_{L−1} = 0, so Z̄_{L−1} = W_L⁺M, of singular values between (1−δ)/s_1 and 1/s_K.
Without E_w, λW_LW_Lᵀ = nM(I−M) commutes with M, so those of W_L⁺M are m/√(nm(1−m)/λ). ∎

**Any parameters.** With σ = ‖RW_Lᵀ‖/n, (1) gives uᵀMMᵀu ≤ uᵀMᵀu + σ for a unit vector u (drop the semi-definite
terms), so t = s_1(M) has t² ≤ t + σ: s_1(M) ≤ τ = ½(1 + √(1+4σ)). With Pythagoras for what W_L does not see,

    (2)  NC2(Z_{L−1}) ≤ √((τκ(W_L))² + s_1(W_L)² ‖D_{L−1}‖ ‖Z̄_{L−2}‖²)/s_K(M),   τ = min(τ, 1 + δ), s_K(M) ≥ 1 − δ .

λ is free here: each value gives a true statement. ∎
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncutils._arguments import checked, number
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.head import LinearHead, op_norm

__all__ = ["stationary_identity", "stationary_nc2", "stationary_trace"]

# Rounding of a product of a few matrices, relative to the sizes that enter it.
IDENTITY = 1e-12


def _parts(head: LinearHead, weight_decay: float) -> tuple[Tensor, Tensor, Tensor]:
    """(M, E_wE_wᵀ, RW_Lᵀ), each (K, K) and in the module's orientation."""
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must be >= 0, lambda of the summed cost; got {weight_decay}")
    mean = head.class_means(head.output).T  # not I + Ē, which rounds to eps where M is far below 1
    within = head.within(head.output)  # Y has none
    last = head.weights[-1]
    gradient = head.error.T @ head.layers[-2] + weight_decay * last
    return mean, within.T @ within, gradient @ last.T


@checked(weight_decay=number(least=0, most=1e100))
def stationary_identity(head: LinearHead, weight_decay: float) -> Check:
    """Identity (1): ‖n(I−M)Mᵀ − λW_LW_Lᵀ − E_wE_wᵀ‖_F equals ‖RW_Lᵀ‖_F, at any parameters (ours).

    Args:
        head: the linear head.
        weight_decay: λ of C_λ = ½‖f(X) − Y‖_F² + (λ/2)‖θ‖² (N times a trainer's λ′).

    Raises:
        ValueError: a negative weight decay.

    >>> import torch
    >>> head = LinearHead([torch.eye(2), torch.eye(2)], 0.9 * torch.eye(2), torch.arange(2))
    >>> stationary_identity(head, 0.09).verdict
    'holds'
    """
    mean, within, pull = _parts(head, weight_decay)
    n, last = head.num_samples / head.num_classes, head.weights[-1]
    left = -n * head.mean_error.T @ mean.T
    measured = (left - weight_decay * last @ last.T - within).norm()
    sizes = left.norm() + weight_decay * last.norm() ** 2 + within.norm() + head.eps1 * head.output.norm()
    rounding = IDENTITY * float(sizes)
    return Check(
        "Stationary points (identity)", "identity", "exact", (), measured, pull.norm(), "==", rounding=rounding
    )


@checked(weight_decay=number(least=0, most=1e100))
def stationary_trace(head: LinearHead, weight_decay: float) -> Check:
    """λ‖W_L‖_F² + ‖E_w‖_F² − tr RW_Lᵀ ≤ N/4, at any parameters; the third term is 0 at a stationary point (ours).

    tr (I−M)Mᵀ = tr M − ‖M‖_F² ≤ K/4. Arguments as in :func:`stationary_identity`.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> stationary_trace(head, weight_decay=0.1).statement
        'Stationary points (trace)'
    """
    _, within, pull = _parts(head, weight_decay)
    last = head.weights[-1]
    measured = weight_decay * last.norm() ** 2 + within.trace() - pull.trace()
    return Check("Stationary points (trace)", "trace", "exact", (), measured, head.num_samples / 4, "<=")


@checked(weight_decay=number(least=0, most=1e100))
def stationary_nc2_sides(head: LinearHead, weight_decay: float) -> tuple[Tensor, Tensor]:
    """(NC2(Z_{L−1}), its bound (2)); infinite for δ ≥ 1.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> len(stationary_nc2_sides(head, weight_decay=0.1))
        2
    """
    measured = head.nc2(head.layers[-2])
    _, _, pull = _parts(head, weight_decay)
    delta = op_norm(head.mean_error)
    if delta >= 1:
        return measured, delta.new_tensor(torch.inf)
    sigma = op_norm(pull) * head.num_classes / head.num_samples
    top = torch.minimum(0.5 * (1 + (1 + 4 * sigma).sqrt()), 1 + delta)
    outside = head.s1**2 * head.imbalances[-1] * op_norm(head.class_means(head.layers[-3])) ** 2
    return measured, ((top * head.kappa_last) ** 2 + outside).sqrt() / (1 - delta)


@checked(weight_decay=number(least=0, most=1e100))
def stationary_nc2(head: LinearHead, weight_decay: float) -> Check:
    """Bound (2) of NC2(Z_{L−1}); κ(W_L)/(1−δ) at a stationary point with λ > 0, and never above Theorem 3.1's (ours).

    Arguments as in :func:`stationary_identity`.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> stationary_nc2(head, weight_decay=0.1).statement
        'Stationary points (NC2)'
    """
    sides = stationary_nc2_sides(head, weight_decay)
    hypotheses = (Hypothesis("‖Ē‖_op < 1", op_norm(head.mean_error), 1.0, "<"), head.full_rank())
    return Check("Stationary points (NC2)", "nc2", "sharp", hypotheses, *sides, "<=")
