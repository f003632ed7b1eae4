"""Collapse of near-global minimisers (ours; the constants of Theorem 5.2 put into Theorem 3.1, arXiv:2410.04887).

Premise, as in Theorem 5.2: head widths ≥ K, |σ(t)| ≤ |t|, some nonlinear part of squared norm c fits Z_{L1} = Y, and
C_λ(θ) ≤ (λ/2)(c + K L2 + δ). Put ε̄² = λ(c + K L2 + δ) < N/K, e = ε̄/√N, x = ‖X‖_F/√N, and

    C = 2 (x/(1 − ε̄/s_K(Y)))^K exp(½(c + δ − K L1 + K L1 ln K)),      k = C^{1/L2} .

**Corollary.** At a global minimiser (δ = 0), or any θ of the premise whose head is balanced,

    NC1 ≤ k² e²/(√((K−1)/K) − e)²,   NC2 ≤ k (1+δ̄)/(1−δ̄),   NC3 ≥ (1−e) 2k/(k²+1) − k e,   δ̄ = e√K ,

and at a stationary point, in particular a global minimiser, NC2 ≤ k/(1−δ̄). All tend to their ideal 0, 1, 1 if L2 → ∞
and λL2 → 0, with X and c fixed.

*Proof.* Theorem 5.2: ‖E‖_F ≤ ε̄ and κ(A) ≤ C (the version without N). Balance: κ(W_L) = κ(A)^{1/L2} ≤ k. Part 1 of
Theorem 3.1 with D = 0 and s_1/s_K ≤ k; part 3 with ‖Ē‖ ≤ ‖E‖_F√(K/N), without 1+δ̄ at a stationary point, where M ≤ I;
part 4, which decreases in κ and in the error. A global minimiser is stationary, so balanced. In the limit
ε̄² = λ(c + K L2) → 0, so C stays bounded and k → 1. ∎

**Any imbalance.** If D ≠ 0, part 2 of Theorem 3.1 gives κ(W_L) ≤ k = ((C²+v)/(1−v))^{1/(2L2)}, v = η/s_K(A)² < 1, η the
telescoping error, and what W_L cannot see adds s_1²‖D_{L−1}‖ tr Σ_W(Z_{L−2}) over the denominator of NC1,
s_1²‖D_{L−1}‖‖Z̄_{L−2}‖² under NC2's root and s_1‖P⊥Z_{L−1}‖_F/√N ≤ s_1 √‖D_{L−1}‖ ‖Z_{L−2}‖_F/√N to NC3. These are
measured; they vanish with D. The checks below evaluate this version, so they hold at any θ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ncutils._arguments import checked, function, integer, many, number, positive
from ncutils.theory.certificates import a_priori_sides
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.head import LinearHead, op_norm
from ncutils.theory.theorem_3_1 import telescoping_error

__all__ = ["corollary_5_2", "corollary_5_2_limit"]

QUANTITIES = ("nc1", "nc2", "nc3")


@checked(k=number(least=1), e=number(least=0, most=1e100), classes=integer(least=1))
def collapse_bounds(k: float, e: float, classes: int) -> tuple[float, float, float]:
    """The corollary's bounds of NC1, NC2 (stationary) and NC3 at a balanced head; useless ones are ∞, ∞, −1.

    Args:
        k: bound of κ(W_L).
        e: ε̄/√N.
        classes: K.
    """
    room, delta = math.sqrt((classes - 1) / classes) - e, e * math.sqrt(classes)
    nc1 = (k * e / room) ** 2 if room > 0 and k < 1e100 else math.inf
    nc2 = k / (1 - delta) if delta < 1 else math.inf
    nc3 = max(-1.0, (1 - e) * 2 / (k + 1 / k) - k * e) if k < 1e100 else -1.0
    return nc1, nc2, nc3


@checked(
    depths=many(integer(least=1, most=10**9)),
    weight_decay=function,
    rms=positive,
    reference=number(least=0, finite=True),
    classes=integer(least=1),
    samples=integer(least=1),
    nonlinear=integer(least=0),
)
def corollary_5_2_limit(
    depths: Sequence[int], weight_decay, *, rms: float, reference: float, classes: int, samples: int, nonlinear: int
) -> list[tuple[float, float, float]]:
    """What the corollary promises at global minimisers with heads of growing depth, before any training (ours).

    Args:
        depths: values of L2.
        weight_decay: λ as a function of L2; collapse needs λL2 → 0.
        rms: x = ‖X‖_F/√N.
        reference: c.
        classes, samples, nonlinear: K, N, L1.

    Returns:
        Bounds of (NC1, NC2, NC3), one triple a depth; ∞, ∞, −1 where the premise fails.

    >>> case = dict(rms=1.0, reference=4.0, classes=2, samples=20, nonlinear=1)
    >>> for nc1, nc2, nc3 in corollary_5_2_limit([10, 10**3, 10**6], lambda depth: 0.1 / depth**2, **case):
    ...     print(f"{nc1:.1e} {nc2:.4f} {nc3:.4f}")
    4.4e-03 1.3484 0.8918
    2.0e-05 1.0069 0.9937
    2.0e-08 1.0001 0.9998
    """
    bounds = []
    for depth in depths:
        decay = weight_decay(depth)
        e = math.sqrt(decay * (reference + classes * depth) / samples)
        if e * math.sqrt(classes) >= 1:
            bounds.append((math.inf, math.inf, -1.0))
            continue
        growth = 0.5 * (reference + classes * nonlinear * (math.log(classes) - 1))
        log_c = math.log(2) + classes * math.log(rms / (1 - e * math.sqrt(classes))) + growth
        bounds.append(collapse_bounds(math.exp(max(0.0, log_c) / depth), e, classes))
    return bounds


@checked()
def corollary_5_2(
    head: LinearHead, *, nonlinear_weights: Sequence[Tensor], x: Tensor, weight_decay: float
) -> tuple[Check, ...]:
    """NC1, NC2 and NC3 of Z_{L−1} from near-minimality, imbalance charged as measured (ours; see the module).

    c + K L2 + δ is evaluated as 2C_λ(θ)/λ, the least that makes the premise true.

    Args:
        head: the linear head.
        nonlinear_weights: W_1 … W_{L1} of the layers with an activation, |σ(t)| ≤ |t|.
        x: inputs ``(N, d)``.
        weight_decay: λ of C_λ = ½‖f(X) − Y‖_F² + (λ/2)‖θ‖² (N times a trainer's λ′).

    Raises:
        ValueError: weight_decay that is not positive.

    Example:
        >>> from ncutils.networks import MLP
        >>> network = MLP(8, 2, num_nonlinear=1, num_linear=2, width=4, dtype=torch.float64)
        >>> x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> y = torch.arange(20) % 2
        >>> head = LinearHead.of(network, x, y)
        >>> first = [network.weights[0][0].detach()]
        >>> [check.quantity for check in corollary_5_2(head, nonlinear_weights=first, x=x, weight_decay=0.1)]
        ['nc1', 'nc2', 'nc3']
    """
    (_, log_c), hypotheses = a_priori_sides(head, nonlinear_weights, x, weight_decay)
    norms = sum(w.to(torch.float64).square().sum() for w in (*head.weights, *nonlinear_weights))
    eps = (head.eps1**2 + weight_decay * norms).sqrt()
    n, classes, depth = head.num_samples, head.num_classes, head.depth
    e, delta = eps / math.sqrt(n), eps / head.label_scale
    least = head.product_singular_values[classes - 1] if hypotheses[1].holds else eps.new_tensor(0.0)
    v = telescoping_error(head, depth, "sharp") / least**2
    hypotheses += (Hypothesis("telescoping error < s_K(A)²", v, 1.0, "<"),)
    z1, z2 = head.layers[-2], head.layers[-3]
    bounds: tuple[Tensor | float, ...] = (math.inf, math.inf, -math.inf)
    if all(h.holds for h in hypotheses):
        k = ((torch.logaddexp(2 * log_c, v.log()) - torch.log1p(-v)) / (2 * depth)).exp()
        hidden = head.s1**2 * head.imbalances[-1]
        room = math.sqrt((classes - 1) / classes) - e
        nc1 = ((k * e) ** 2 + hidden * head.within(z2).square().sum() / n) / room**2 if room > 0 else math.inf
        nc2 = ((k * (1 + delta)) ** 2 + hidden * op_norm(head.class_means(z2)) ** 2).sqrt() / (1 - delta)
        nc3 = (1 - e) * 2 / (k + 1 / k) - k * e - (hidden * z2.square().sum() / n).sqrt()
        bounds = (nc1, nc2, nc3)
    measured = (head.nc1(z1), head.nc2(z1), head.nc3(z1, head.weights[-1]))
    return tuple(
        Check("Corollary to Theorem 5.2", name, "simple", hypotheses, left, right, sense)
        for name, left, right, sense in zip(QUANTITIES, measured, bounds, ("<=", "<=", ">="), strict=True)
    )
