"""The trivial solution of a whole network (ours, not the paper's): beyond some depth the best parameters are zero.

C_λ = ½‖f(X) − Y‖_F² + (λ/2)‖θ‖² with λ > 0, classes of n = N/K samples, |σ(t)| ≤ |t|, L1 nonlinear and L2 ≥ 2 linear
layers. Put z = ‖X‖_F (N/(λL1))^{L1/2} (‖X‖_op for L1 = 0) and π = (λ/n)(L2 − 1)(√n/z)^{2/L2}.

**Theorem.** If π ≥ 1, then θ = 0 is the only global minimiser. If some nonlinear part of squared norm c has Z_{L1} = Y,
the head's widths are at least K and c + K L2 < N/λ, then θ = 0 is none.

*Proof.* Let C_λ(θ) ≤ C_λ(0) = N/2. Then ρ = Σ‖W_ℓ‖_F² over the nonlinear layers is at most N/λ, and by the inequality
of the means ‖Z_{L1}‖ ≤ ‖X‖_F ∏‖W_ℓ‖_F ≤ ‖X‖_F (ρ/L1)^{L1/2} ≤ z. So s_i(f) ≤ z s_i(A), and the Schatten lemma gives
P ≥ L2 Σ_i (s_i(f)/z)^{2/L2}. By Mirsky's inequality ‖f − Y‖_F² ≥ Σ_{i≤K} (s_i(f) − √n)². With t_i = s_i(f)/√n and
λ̃ = λ(√n/z)^{2/L2},

    C_λ(θ) ≥ Σ_{i≤K} [ (n/2)(1 − t_i)² + (λ̃/2) L2 t_i^{2/L2} ] + (λ/2)ρ .

As λ̃(L2 − 1) ≥ n, each bracket is at least its value n/2 at t_i = 0, and larger elsewhere (the proposition on one
direction). So C_λ(θ) ≥ N/2, with equality only for f = 0; then C_λ(θ) = N/2 + (λ/2)‖θ‖², that is θ = 0. Conversely
the nonlinear part of the assumption followed by padded identities costs (λ/2)(c + K L2) < N/2. ∎

The two conditions meet at L2 = n/λ up to terms of the size of L1 ln(N/λ).
"""

from __future__ import annotations

import math

from ncutils._arguments import checked, integer, number, positive

__all__ = ["trivial_price", "trivial_transition"]


@checked(
    weight_decay=positive,
    num_linear=integer(least=2),
    num_nonlinear=integer(least=0),
    input_norm=positive,
    samples=integer(least=1),
    classes=integer(least=1),
)
def trivial_price(
    weight_decay: float, num_linear: int, num_nonlinear: int, *, input_norm: float, samples: int, classes: int
) -> float:
    """π of the theorem: from 1 on the zero network is the only global minimiser.

    Args:
        weight_decay: λ > 0 of the summed cost (N times a trainer's λ′).
        num_linear: L2 ≥ 2.
        num_nonlinear: L1 ≥ 0.
        input_norm: ‖X‖_F (for L1 = 0 ‖X‖_op is enough).
        samples: N, in classes of one size.
        classes: K.

    Raises:
        ValueError: a number out of its range.

    >>> round(trivial_price(0.2, 15, 1, input_norm=2.0, samples=4, classes=2), 3)
    1.095
    """
    if samples % classes:
        raise ValueError(f"samples must be a multiple of classes = {classes}; got {samples}")
    n = samples / classes
    log_z = math.log(input_norm)
    if num_nonlinear:
        log_z += num_nonlinear / 2 * math.log(samples / (weight_decay * num_nonlinear))
    return weight_decay / n * (num_linear - 1) * math.exp((math.log(n) - 2 * log_z) / num_linear)


@checked(
    weight_decay=positive,
    num_nonlinear=integer(least=0),
    reference=number(finite=True),
    input_norm=positive,
    samples=integer(least=1),
    classes=integer(least=1),
    deepest=integer(least=2, most=10**6),
)
def trivial_transition(
    weight_decay: float,
    num_nonlinear: int,
    *,
    reference: float,
    input_norm: float,
    samples: int,
    classes: int,
    deepest: int = 10_000,
) -> tuple[int, int | None]:
    """Where the transition must lie: the largest L2 at which zero is proved not to be best, the least from which it is.

    Args:
        weight_decay, num_nonlinear, input_norm, samples, classes: as in :func:`trivial_price`.
        reference: c, the squared norm of some nonlinear part with Z_{L1} = Y.
        deepest: largest L2 looked at.

    Returns:
        ``(below, from)``: for 2 ≤ L2 ≤ below zero is not a minimiser (below < 2: at no depth); for from ≤ L2 ≤
        ``deepest`` it is the only one (None: not proved there).

    >>> trivial_transition(0.2, 1, reference=4.0, input_norm=2.0, samples=4, classes=2)
    (7, 15)
    """
    below = math.ceil((samples / weight_decay - reference) / classes) - 1
    first = None
    for depth in range(deepest, 1, -1):
        price = trivial_price(
            weight_decay, depth, num_nonlinear, input_norm=input_norm, samples=samples, classes=classes
        )
        if price < 1:
            break
        first = depth
    return below, first
