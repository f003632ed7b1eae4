"""Certificates of the head's condition number (ours, not the paper's), from the weights' norms and two spectra.

A = W_{L:L1+1} has K rows, P = Σ‖W_ℓ‖_F² over its L2 factors, f = f(X) = AZ, Z = Z_{L1}, rank f = K. Four steps.

**Below (Horn).** For every j ≤ K the product of the j least s_i(A), i ≤ K, is at least e^{h_j},
h_j = Σ_{i>K−j} ln s_i(f) − Σ_{i≤j} ln s_i(Z). *Proof.* U the j weakest left singular vectors of A: Uᵀf = (UᵀA)Z, Horn's
inequality bounds ∏_{i≤j} s_i(Uᵀf) by ∏_{i>K−j} s_i(A) ∏_{i≤j} s_i(Z), and s_i(Uᵀf) ≥ s_{i+K−j}(f) by interlacing. ∎

**Above (Hölder).** Σ_{i≤K} s_i(A)^{2/L2} ≤ G = ∏_ℓ (Σ_{i≤K} s_i(W_ℓ)²)^{1/L2} ≤ P/L2. *Proof.* By Horn and Weyl the
sum is at most Σ_{i≤K} ∏_ℓ s_i(W_ℓ)^{2/L2}; Hölder's inequality with L2 exponents L2 gives G; inequality of the means. ∎
G sees neither the scales of single layers nor what lies beyond their K leading directions.

**Feature by feature.** κ(A) ≤ e^{(P−K L2)/2} s_1(Z) ∏_{i<K} s_i(Z) / (s_K(f) ∏_{2≤i≤K} s_i(f)). *Proof.* ln κ(A) is
Σ_i ln s_i(A) − Σ_{i≥2} ln s_i(A) − ln s_K(A). The first sum is at most (P − K L2)/2, by x^{2/L2} ≥ 1 + (2/L2)ln x;
h_{K−1} and h_1 bound the rest. ∎

**Joint.** ln κ(A) is at most the maximum of x_1 − x_K over Σe^{2x_i/L2} ≤ G and Σ_{i>K−j} x_i ≥ h_j, j = 1 … K: a
convex programme. Multipliers ν_j ≥ 0 with a_1 = 1 + ν_K, a_i = ν_K + … + ν_{K−i+1} (less 1 for i = K) all ≥ 0 give

    ln κ(A) ≤ (L2/2) Σ_i a_i ln(a_i G/Σa) − Σ_j ν_jh_j .

*Proof.* x_1 − x_K ≤ Σa_ix_i − Σν_jh_j. By Gibbs' inequality, with p = a/Σa, Σp_i (2x_i/L2) ≤ Σp_i ln p_i + ln G. ∎ So
every choice of ν is a certificate; the best is looked for numerically, and a poor search costs sharpness, never truth.
ν_1 = ν_{K−1} = 1 is the one above, ν_K alone the arccosh of Proposition 5.1's sharp form, both with G for P/L2.

**A priori, without N.** Let all head widths be ≥ K, |σ(t)| ≤ |t|, C_λ(θ) ≤ (λ/2)(c + K L2 + δ), x = ‖X‖_F/√N the rms
length of an input and ε̄² = λ(c + K L2 + δ) < N/K. Then

    κ(A) ≤ 2 (x/(1 − ε̄/s_K(Y)))^K exp(½(c + δ − K L1 + K L1 ln K)) .

*Proof.* s_i(f) ≥ s_K(Y) − ε̄. Under Σs_i² = F² the product s_1² ∏_{2≤i<K} s_i of Z is largest at s_1² = 2F²/K,
s_i² = F²/K (weighted means): at most 2(F/√K)^K. Then as in Theorem 5.2 (arXiv:2410.04887): F ≤ ‖X‖_F(ρ/L1)^{L1/2} and
P − K L2 ≤ c + δ − ρ, worst at ρ = K L1. ∎
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ncutils._arguments import checked
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.head import LinearHead, sum_of_squares

__all__ = ["certificate_a_priori", "certificate_of_last_layer", "head_certificate"]

FORMS = ("features", "geometric", "joint")


def _spectra(head: LinearHead) -> tuple[Tensor, Tensor]:
    """ln s_i(f) and ln s_i(Z), i ≤ K, descending."""
    k = head.num_classes
    return head.feature_singular_values[-1][:k].log(), head.feature_singular_values[0][:k].log()


def _floors(head: LinearHead) -> Tensor:
    """h_1 … h_K."""
    out, entering = _spectra(head)
    return out.flip(0).cumsum(0) - entering.cumsum(0)


def _log_gain(head: LinearHead) -> Tensor:
    """ln G."""
    k = head.num_classes
    sizes = (s[:k].square().sum().log() for s in head.singular_values)
    return sum(sizes, head.output.new_zeros(())) / head.depth


def _multiplicity(nu: Tensor) -> Tensor:
    """a_1 … a_K from ν_1 … ν_K."""
    k = len(nu)
    ends = torch.zeros(k).to(nu)
    ends[0], ends[-1] = 1.0, -1.0
    return nu.flip(0).cumsum(0) + ends if k > 1 else ends


def _dual(nu: Tensor, floors: Tensor, log_gain: Tensor, depth: int) -> Tensor:
    """The right side at multipliers ν; a certificate wherever ν ≥ 0 and a ≥ 0."""
    a = _multiplicity(nu)
    total = a.sum()
    entropy = torch.where(a > 0, a * (a.clamp_min(1e-300).log() - total.log() + log_gain), torch.zeros_like(a))
    return 0.5 * depth * entropy.sum() - (nu * floors).sum()


def _best_multipliers(floors: Tensor, log_gain: Tensor, depth: int) -> Tensor:
    """Multipliers near the best, all ≥ 0 with a ≥ 0."""
    from scipy.optimize import minimize

    k = len(floors)
    floors, log_gain = floors.detach(), log_gain.detach()
    # alone: a = (t + 1, t, …, t, t − 1), the arccosh form; t solves a scalar equation, a coarse grid starts the search
    starts = [torch.zeros(k).double() for _ in range(20)]
    starts[0][0] += 1.0
    starts[0][max(k - 2, 0)] += 1.0
    for t, start in zip(np.geomspace(1.001, 100, 19), starts[1:], strict=True):
        start[-1] = t
    best = min(starts, key=lambda nu: float(_dual(nu, floors, log_gain, depth)))

    def value(flat):
        nu = torch.tensor(flat, dtype=torch.float64, requires_grad=True)
        result = _dual(nu, floors, log_gain, depth)
        return float(result.detach()), torch.autograd.grad(result, nu)[0].numpy()

    for start in (best, starts[0], 0.5 * (best + starts[0])):
        # a_K = Σν − 1 must stay positive: its logarithm's gradient is infinite at 0
        found = minimize(
            value,
            start.numpy() + 1e-3,
            jac=True,
            method="SLSQP",
            bounds=[(0, None)] * k,
            constraints={"type": "ineq", "fun": lambda v: v.sum() - 1 - 1e-9, "jac": lambda v: np.ones(k)},
            options={"maxiter": 300, "ftol": 1e-12},
        )
        nu = torch.from_numpy(np.maximum(found.x, 0))
        feasible = torch.isfinite(nu).all() and _multiplicity(nu).min() >= 0
        if feasible and _dual(nu, floors, log_gain, depth) < _dual(best, floors, log_gain, depth):
            best = nu
    return best


@checked()
def head_certificate_sides(head: LinearHead, form: str) -> tuple[Tensor, Tensor]:
    """(ln κ(A), its certificate).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = head_certificate_sides(head, "joint")
        >>> bool(measured <= bound)
        True
    """
    k, depth = head.num_classes, head.depth
    measured = head.kappa_head.log()
    log_gain = _log_gain(head)
    if form == "features":
        total = sum_of_squares(head.weights)
        floors = _floors(head)
        return measured, 0.5 * (total - k * depth) - floors[0] - floors[k - 2]
    floors = _floors(head)
    if form == "geometric":
        x = 0.5 * k * (log_gain - math.log(k) - 2 * floors[-1] / (k * depth)).clamp_min(0)
        return measured, depth * (x + torch.log1p((-torch.expm1(-2 * x)).sqrt()))
    nu = _best_multipliers(floors, log_gain, depth)
    # The least of three true bounds: where all are next to 0 the search stops short of the other two.
    others = [head_certificate_sides(head, other)[1] for other in ("features", "geometric")]
    return measured, torch.stack([_dual(nu, floors, log_gain, depth), *others]).min()


@checked()
def head_certificate(head: LinearHead, form: str = "joint") -> Check:
    """ln κ(A) ≤ its certificate, at any parameters with rank f(X) = K (ours).

    The logarithm is compared: a ratio near 1 of two condition numbers near 1 would say nothing.

    Args:
        head: the linear head.
        form: ``"features"``, feature by feature; ``"geometric"``, Proposition 5.1's sharp form with G for P/L2;
            ``"joint"``, the convex programme, never above the other two.

    Raises:
        ValueError: another form.

    >>> import torch
    >>> head = LinearHead([torch.eye(2), torch.diag(torch.tensor([2.0, 1.0]))], torch.eye(2), torch.arange(2))
    >>> print([f"{math.exp(head_certificate(head, form).bound):.2f}" for form in FORMS])
    ['4.48', '2.62', '2.16']
    """
    if form not in FORMS:
        raise ValueError(f"form must be one of {FORMS}; got {form!r}")
    s = head.feature_singular_values[-1]
    few = s.new_zeros(()) if len(s) < head.num_classes else s[head.num_classes - 1]
    hypotheses = (
        Hypothesis("rank f(X) = K: s_K/s_1", few / s[0], 1e-12, ">"),
        Hypothesis("inputs of the head ≥ K", min(head.features.shape), head.num_classes, ">="),
    )
    sides: tuple[Tensor, Tensor | float] = (head.kappa_head.log(), math.inf)
    if all(h.holds for h in hypotheses):
        sides = head_certificate_sides(head, form)
    # arccosh turns a rounding of 1e-15 into its square root
    rounding = head.depth * max(1e-7, 2 * math.sqrt(head.num_classes * 1e-15))
    return Check(f"Certificate ({form})", "log_kappa_head", "sharp", hypotheses, *sides, "<=", rounding=rounding)


@checked()
def certificate_of_last_layer_sides(head: LinearHead) -> tuple[Tensor, Tensor]:
    """(ln κ(W_L), its certificate).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = certificate_of_last_layer_sides(head)
        >>> bool(measured <= bound)
        True
    """
    k, depth = head.num_classes, head.depth
    floors, log_gain = _floors(head), _log_gain(head)
    budget = (0.5 * k * depth * (log_gain - math.log(k)) - floors[-1]).clamp_min(0)
    out = head.feature_singular_values[-1][k - 1]
    tails = torch.cat([head.imbalances.flip(0).cumsum(0).flip(0), head.imbalances.new_zeros(1)])
    v = tails * (head.feature_norms[-2] / out) ** 2

    def spent(log_square: Tensor) -> Tensor:
        spread = 0.5 * ((log_square.exp() - v) / (1 + v)).clamp_min(1).log()
        return (spread + torch.log1p(torch.exp(-2 * spread)) - math.log(2)).sum()

    with torch.no_grad():  # ``spent`` grows with its argument: bisect, keeping the upper end
        low, high = budget.new_zeros(()), budget.new_ones(())
        while spent(high) < budget:
            low, high = high, 2 * high
        for _ in range(100):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if spent(middle) < budget else (low, middle)
    point = high.clone().requires_grad_()
    slope = torch.autograd.grad(spent(point), point, retain_graph=True)[0].detach()
    # one Newton step from the solution changes nothing but carries the gradient of the implicit function
    residual = budget - spent(high)
    result = high + torch.where(slope > 1e-8, (residual - residual.detach()) / slope.clamp_min(1e-8), 0 * residual)
    return head.kappa_last.log(), 0.5 * result


@checked()
def certificate_of_last_layer(head: LinearHead) -> Check:
    """ln κ(W_L) ≤ ½ ln q, q the root of Σ_ℓ ln cosh ½ln max(1, (q−v_ℓ)/(1+v_ℓ)) = (K L2/2) ln(G/K) − S (ours).

    v_ℓ = η_ℓ ‖Z_{L−1}‖²/s_K(f)², η_ℓ = Σ_{j≥ℓ}‖D_j‖, S = h_K. *Proof.* Theorem 5.2's all-layers inequality holds with
    G for P/L2: multiply K e^{m_ℓ} cosh(ln κ_ℓ)^{2/K} ≤ Σ_{i≤K} s_i(W_ℓ)², m_ℓ = (2/K)Σ_{i≤K} ln s_i(W_ℓ), over ℓ.
    By Weyl |s_i(W_L)² − s_i(W_ℓ)²| ≤ η_ℓ, so κ(W_L)² ≤ (1+v_ℓ)κ_ℓ² + v_ℓ, that is κ_ℓ² ≥ (κ(W_L)²−v_ℓ)/(1+v_ℓ). The
    sum grows with κ(W_L). ∎

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = certificate_of_last_layer(head)
        >>> check.statement, check.holds
        ('Certificate (last layer)', True)
    """
    s = head.feature_singular_values[-1]
    few = s.new_zeros(()) if len(s) < head.num_classes else s[head.num_classes - 1]
    hypotheses = (Hypothesis("rank f(X) = K: s_K/s_1", few / s[0], 1e-12, ">"),)
    sides: tuple[Tensor, Tensor | float] = (head.kappa_last.log(), math.inf)
    if hypotheses[0].holds:
        sides = certificate_of_last_layer_sides(head)
    rounding = max(1e-7, 2 * math.sqrt(head.num_classes * 1e-15))
    return Check("Certificate (last layer)", "log_kappa_W_L", "sharp", hypotheses, *sides, "<=", rounding=rounding)


@checked()
def certificate_a_priori(
    head: LinearHead, *, nonlinear_weights: Sequence[Tensor], x: Tensor, weight_decay: float
) -> Check:
    """ln κ(A) ≤ the a-priori bound that does not grow with N; c + K L2 + δ is taken as 2C_λ(θ)/λ, its least (ours).

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
        >>> certificate_a_priori(head, nonlinear_weights=first, x=x, weight_decay=0.1).statement
        'Certificate (a priori)'
    """
    sides, hypotheses = a_priori_sides(head, nonlinear_weights, x, weight_decay)
    return Check("Certificate (a priori)", "log_kappa_head", "simple", hypotheses, *sides, "<=")


@checked()
def a_priori_sides(
    head: LinearHead, nonlinear_weights: Sequence[Tensor], x: Tensor, weight_decay: float
) -> tuple[tuple[Tensor, Tensor], tuple[Hypothesis, ...]]:
    """((ln κ(A), bound), hypotheses)."""
    if not weight_decay > 0:
        raise ValueError(f"weight_decay must be positive; got {weight_decay}")
    k, depth, nonlinear = head.num_classes, head.depth, len(nonlinear_weights)
    squares = [w.to(torch.float64).square().sum() for w in (*head.weights, *nonlinear_weights)]
    budget = head.eps1**2 / weight_decay + sum(squares)
    eps = (weight_decay * budget).sqrt()
    reach = x.to(torch.float64).norm() * math.prod(
        float(w.detach().to(torch.float64).norm()) for w in nonlinear_weights
    )
    hypotheses = (
        Hypothesis("ε̄² = λ(c + K L2 + δ) < N/K", eps**2, head.label_scale**2, "<"),
        Hypothesis("head widths ≥ K", min(w.shape[1] for w in head.weights), k, ">="),
        Hypothesis("‖Z_{L1}‖_F ≤ ‖X‖_F ∏‖W_ℓ‖_F", head.features.norm(), reach * (1 + 1e-12), "<="),
    )
    if eps >= head.label_scale:
        return (head.kappa_head.log(), eps.new_tensor(math.inf)), hypotheses
    rms = x.to(torch.float64).norm() / math.sqrt(head.num_samples)
    growth = 0.5 * (budget - k * depth - k * nonlinear + k * nonlinear * math.log(k))
    return (head.kappa_head.log(), math.log(2) + k * (rms / (1 - eps / head.label_scale)).log() + growth), hypotheses
