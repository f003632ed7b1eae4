"""The balance law with momentum (ours, not the paper's): exact for heavy ball and Nesterov, any batch, any loss.

Linear neighbours A = W_ℓ, B = W_{ℓ+1} with velocities V_A, V_B, step η, decay λ, momentum μ:

    V⁺ = μV + G + λW,   W⁺ = W − ηU,   U = V⁺ (heavy ball) or G + λW + μV⁺ (Nesterov).

Write D = BᵀB − AAᵀ, sym M = M + Mᵀ, Q(U) = U_BᵀU_B − U_AU_Aᵀ and T = sym(BᵀV_B⁺ − V_A⁺Aᵀ). Then

    T = μ sym(BᵀV_B − V_AAᵀ) + 2λD,      D⁺ = D − ηT + η²Q(V⁺)  (heavy ball),
                                         D⁺ = D − η(μT + 2λD) + η²Q(U)  (Nesterov).

For heavy ball the next T follows without looking at the layers: T⁺ = μ(T − 2ηQ) + 2λD⁺, a damped oscillator driven by
Q alone. No gradient appears.

*Proof.* Linear neighbours have BᵀG_B = G_AAᵀ whatever the loss and the batch, so in BᵀV_B⁺ − V_A⁺Aᵀ the gradients
cancel: μ(BᵀV_B − V_AAᵀ) + λD is left. Its symmetric part is T. Expanding, D⁺ is D − η sym(BᵀU_B − U_AAᵀ) + η²Q(U); the
middle term is T for U = V⁺, μT + 2λD for Nesterov, by the same cancellation. With B⁺ = B − ηV_B⁺ in place of B, T loses
2ηQ before the next step. ∎

**Noise floor.** Heavy ball, averages ⟨·⟩ over m steps, Δ the change of a quantity over them: exactly

    2λ⟨D⟩ = η(1+μ)⟨Q⟩ + [ΔT − ((1−μ)/η + 2λ)ΔD]/m .

So where D and T keep bounded, ⟨D⟩ → η(1+μ)/(2λ) ⟨Q⟩: gradient noise, through Q, sets how well a network can balance.
*Proof.* Sum both recursions: ΔD = −ηΣT + η²ΣQ and ΔT + (1−μ)ΣT = −2μηΣQ + 2λ(ΣD + ΔD). Eliminate ΣT. ∎

Discrete balancedness without momentum is the paper's lemma (arXiv:2410.04887): μ = 0 gives (1−ηλ)²D + η²Q(G).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ncutils._arguments import checked, many, number, pair, positive, tensor
from ncutils.metrics import imbalance_matrix
from ncutils.theory.checks import Check

__all__ = ["momentum_balance", "noise_floor"]

# Rounding of a product of two matrices, relative to their sizes.
IDENTITY = 1e-13

State = tuple[Sequence[Tensor], Sequence[Tensor]]


def _cross(below: Tensor, above: Tensor, u_below: Tensor, u_above: Tensor) -> Tensor:
    """sym(BᵀU_B − U_AAᵀ)."""
    product = above.T @ u_above - u_below @ below.T
    return product + product.T


@checked(
    before=pair(many(tensor)),
    after=pair(many(tensor)),
    lr=positive,
    weight_decay=number(least=0, finite=True),
    momentum=number(least=0, finite=True),
)
def momentum_balance(
    before: State, after: State, *, lr: float, weight_decay: float, momentum: float, nesterov: bool = False
) -> Check:
    """Does one step obey the balance law? The largest discrepancy over the neighbours against rounding (ours).

    Gradients, data and loss are not needed: the velocities of ``torch.optim.SGD`` (``momentum_buffer``) are V.

    Args:
        before: ``(weights, velocities)`` of consecutive linear layers, each ``(out, in)``, first to last; float64.
        after: the same after the step.
        lr: η of the step.
        weight_decay: λ, in the same normalisation as η.
        momentum: μ.
        nesterov: Nesterov's update in place of heavy ball's.

    Raises:
        ValueError: fewer than two layers, states of different lengths or shapes, or numbers that are not finite.

    >>> import torch
    >>> w = [torch.eye(2).double(), 2 * torch.eye(2).double()]
    >>> v = [0.1 * w[0], 0.05 * w[1]]  # G = 0, mu = 0.5: V+ = V/2
    >>> after = ([a - 0.1 * b / 2 for a, b in zip(w, v)], [b / 2 for b in v])
    >>> momentum_balance((w, v), after, lr=0.1, weight_decay=0.0, momentum=0.5).verdict
    'holds'
    """
    shapes = [[tuple(t.shape) for t in side] for side in (*before, *after)]
    if len(shapes[0]) < 2 or any(s != shapes[0] for s in shapes):
        raise ValueError(f"before, after must hold weights and velocities of the same two or more layers; got {shapes}")
    (w, v), (w_next, v_next) = (
        tuple([t.detach().to(torch.float64) for t in side] for side in state) for state in (before, after)
    )
    for name, sides in (("before", (w, v)), ("after", (w_next, v_next))):
        if broken := sum(not bool(torch.isfinite(t).all()) for side in sides for t in side):
            raise ValueError(f"{name} must be finite; got NaN or infinite entries in {broken} of {2 * len(w)} tensors")
    worst, allowed, lr = 0.0, 0.0, float(lr)
    for l in range(len(w) - 1):
        pair = slice(l, l + 2)
        d = imbalance_matrix(*w[pair])
        force = momentum * _cross(*w[pair], *v[pair]) + 2 * weight_decay * d  # T
        step = v_next[pair] if not nesterov else [(a - b) / lr for a, b in zip(w[pair], w_next[pair], strict=True)]
        pull = momentum * force + 2 * weight_decay * d if nesterov else force
        expected = d - lr * pull + lr**2 * imbalance_matrix(*step)
        gap = float((imbalance_matrix(*w_next[pair]) - expected).norm())
        rounding = IDENTITY * float(sum(a.norm() ** 2 for a in w[pair]))
        rounding += IDENTITY * lr * float(sum(a.norm() * b.norm() for a, b in zip(w[pair], step, strict=True)))
        rounding += (
            IDENTITY * lr * momentum * float(sum(a.norm() * b.norm() for a, b in zip(w[pair], v[pair], strict=True)))
        )
        if allowed == 0 or gap * allowed >= worst * rounding:
            worst, allowed = gap, rounding
    name = "Balance law (Nesterov)" if nesterov else "Balance law (heavy ball)"
    return Check(name, "imbalance_step", "exact", (), worst, allowed, "<=")


@checked(
    mean_drive=tensor, lr=number(least=0, finite=True), weight_decay=positive, momentum=number(least=0, finite=True)
)
def noise_floor(mean_drive: Tensor, *, lr: float, weight_decay: float, momentum: float) -> Tensor:
    """⟨D⟩ = η(1+μ)/(2λ) ⟨Q⟩: the time-averaged imbalance that gradient noise keeps up under heavy ball (ours).

    Args:
        mean_drive: ⟨Q⟩, the time average of V_BᵀV_B − V_AV_Aᵀ, ``(n, n)``.
        lr, weight_decay, momentum: η, λ > 0, μ.

    >>> import torch
    >>> print(float(noise_floor(torch.eye(1), lr=0.1, weight_decay=0.5, momentum=0.9)))
    0.19
    """
    return lr * (1 + momentum) / (2 * weight_decay) * mean_drive.to(torch.float64)
