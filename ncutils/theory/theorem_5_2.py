"""Section 5: near-optimal networks, and networks stable at a large step size, have well-conditioned linear heads.

The section is that of arXiv:2410.04887.

With A = W_{L:L1+1} the product of the L2 linear layers, P = Σ‖W_ℓ‖_F² over them and K classes:

* :func:`schatten`: the lemma that ties P to the singular values of A;
* :func:`proposition_5_1`: certificates of κ(A) at any parameters, from P, the features and the error;
* :func:`layer_conditioning`, :func:`theorem_5_2_posteriori`: the same for the single layers, W_L above all;
* :func:`theorem_5_2_a_priori`, :func:`optimal_scale`: what near-minimality alone implies, and where it stops.

Forms and conventions as in :mod:`ncutils.theory.theorem_3_1`. Here ``"paper"`` always marks a reconstruction in the
paper's shape: its constants in Section 5 are not known to this project.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ncutils._arguments import anything, array, checked, integer, many, number, shown
from ncutils.theory.checks import RELATIVE_TOLERANCE, Check, Hypothesis
from ncutils.theory.head import LinearHead, known_form, nth, sum_of_squares

__all__ = [
    "excess",
    "layer_conditioning",
    "optimal_scale",
    "proposition_5_1",
    "schatten",
    "theorem_5_2_a_priori",
    "theorem_5_2_posteriori",
]

# arccosh(1 + t) ≈ √(2t): what rounds g^{K/2} at 1e-16 shows at 1e-8 in the certificate of a perfect head.
GAIN_ROUNDING = 1e-15


# --- the Schatten lemma and the certificates


@checked()
def head_norm(head: LinearHead) -> Tensor:
    """P = Σ_ℓ ‖W_ℓ‖_F² over the linear layers.

    Example:
        >>> head = LinearHead([torch.eye(2), 2 * torch.eye(2)], torch.eye(2), torch.tensor([0, 1]))
        >>> head_norm(head).item()
        10.0
    """
    return sum_of_squares(head.weights)


@checked()
def schatten(weights: Sequence[Tensor]) -> Check:
    """Schatten lemma: L2 Σ_i s_i(A)^{2/L2} ≤ Σ_ℓ ‖W_ℓ‖_F² for A = W_{L2}…W_1, equality at a balanced head.

    Args:
        weights: L2 ≥ 1 matrices ``(out, in)`` that chain, first to last.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = schatten(head.weights)
        >>> check.statement, check.holds
        ('Schatten lemma', True)
    """
    weights = [torch.as_tensor(w).to(torch.float64) for w in weights]
    if not weights:
        raise ValueError("weights must be one matrix or more; got none")
    return Check("Schatten lemma", "schatten", "exact", (), *schatten_sides(weights), "<=")


@checked(weights=many(array, least=1))
def schatten_sides(weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(m Σ_i s_i(product)^{2/m}, Σ_ℓ ‖W_ℓ‖_F²) for m matrices.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = schatten_sides(head.weights)
        >>> bool(measured <= bound)
        True
    """
    product = weights[0]
    for below, w in zip([None, *weights], weights, strict=False):
        if not isinstance(w, Tensor) or w.ndim != 2 or (below is not None and w.shape[1] != len(below)):
            raise ValueError(f"weights must be matrices (tensors) that chain; got {shown(w)}")
        if not torch.isfinite(w).all():
            raise ValueError("weights must be finite; got NaN or infinite entries")
    for w in weights[1:]:
        product = w @ product
    depth = len(weights)
    measured = depth * (torch.linalg.svdvals(product) ** (2 / depth)).sum()
    return measured, sum_of_squares(weights)


@checked()
def log_determinant(head: LinearHead) -> Tensor:
    """S = Σ_{i≤K} [ln s_i(f(X)) − ln s_i(Z_{L1})], a lower bound for Σ_{i≤K} ln s_i(A); −∞ if rank f(X) < K."""
    k = head.num_classes
    out, entering = head.feature_singular_values[-1], head.feature_singular_values[0]
    if min(len(out), len(entering)) < k:
        return out.new_tensor(-math.inf)
    return (out[:k].log() - entering[:k].log()).sum()


@checked()
def waste(head: LinearHead) -> Tensor:
    """g = (P/(K L2)) exp(−2S/(K L2)) ≥ 1: the head's squared norm over a lower bound of the least it could have.

    Example:
        >>> head = LinearHead([torch.eye(2), torch.eye(2)], torch.eye(2), torch.tensor([0, 1]))
        >>> waste(head).item()
        1.0
    """
    k, depth = head.num_classes, head.depth
    return head_norm(head) / (k * depth) * torch.exp(-2 * log_determinant(head) / (k * depth))


def _arccosh_of_power(log_g: Tensor, exponent: float) -> Tensor:
    """arccosh(g^exponent), written so that large g does not overflow; g may miss 1 by rounding."""
    x = exponent * log_g.clamp_min(0)
    # arccosh(e^x) = x + ln(1 + sqrt(1 − e^{−2x}))
    return x + torch.log1p(torch.sqrt(-torch.expm1(-2 * x)))


def _arccosh_rounding(head: LinearHead) -> float:
    """What rounding in g makes of arccosh(g^{K/2}) at g = 1: a relative tolerance, to be taken L2 times."""
    return max(1e-7, 2 * math.sqrt(head.num_classes * GAIN_ROUNDING))


@checked()
def proposition_5_1_sides(head: LinearHead, form: str) -> tuple[Tensor, Tensor]:
    """(κ(A), its certificate).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = proposition_5_1_sides(head, "sharp")
        >>> bool(measured <= bound)
        True
    """
    k, depth = head.num_classes, head.depth
    total = head_norm(head)
    if form == "sharp":
        return head.kappa_head, torch.exp(depth * _arccosh_of_power(waste(head).log(), k / 2))
    floor = (head.label_scale - head.eps1) / head.feature_norms[0]
    if floor <= 0:
        return head.kappa_head, floor.new_tensor(math.inf)
    if form == "paper":
        return head.kappa_head, torch.exp((total - k * depth) / 2 - k * floor.log())
    return head.kappa_head, (total / (depth * floor ** (2 / depth)) - (k - 1)) ** (depth / 2)


@checked()
def proposition_5_1(head: LinearHead, form: str = "sharp") -> Check:
    """Proposition 5.1: a small squared norm P of the head certifies κ(A), A = W_{L:L1+1}, at any parameters.

    With b = (s_K(Y) − ε1)/‖Z_{L1}‖_op a floor under s_K(A):

    * paper (reconstructed): κ(A) ≤ b^{−K} exp((P − K L2)/2);
    * simple: κ(A) ≤ [P/(L2 b^{2/L2}) − (K−1)]^{L2/2}, never weaker (ours);
    * sharp: κ(A) ≤ exp(L2 arccosh(g^{K/2})), g = (P/(K L2)) exp(−2S/(K L2)), S the log-determinant gained between
      Z_{L1} and f(X); needs rank f(X) = K only (ours). Not always below the simple one: take the least.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = proposition_5_1(head)
        >>> check.statement, check.holds
        ('Proposition 5.1', True)
    """
    known_form(form, ("paper", "simple", "sharp"))
    hypotheses = (_full_rank_output(head),) if form == "sharp" else (head.error_below(head.label_scale, "s_K(Y)"),)
    sides = proposition_5_1_sides(head, form)
    tolerance = head.depth * _arccosh_rounding(head) if form == "sharp" else RELATIVE_TOLERANCE
    return Check("Proposition 5.1", "kappa_head", form, hypotheses, *sides, "<=", tolerance)


def _full_rank_output(head: LinearHead) -> Hypothesis:
    s = head.feature_singular_values[-1]
    return Hypothesis("rank f(X) = K: s_K/s_1", nth(s, head.num_classes) / s[0], 1e-12, ">")


@checked()
def layer_conditioning_sides(head: LinearHead) -> tuple[Tensor, Tensor]:
    """(Σ_ℓ ln cosh ln κ_K(W_ℓ), (K L2/2) ln g); κ_K = s_1/s_K.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = layer_conditioning_sides(head)
        >>> bool(measured <= bound)
        True
    """
    k = head.num_classes
    spreads = torch.stack([s[0].log() - nth(s, k).log() for s in head.singular_values])
    log_cosh = spreads + torch.log1p(torch.exp(-2 * spreads)) - math.log(2)
    return log_cosh.sum(), k * head.depth / 2 * waste(head).log()


@checked()
def layer_conditioning(head: LinearHead) -> Check:
    """All linear layers at once (ours): Σ_ℓ ln cosh ln κ_K(W_ℓ) ≤ (K L2/2) ln g, κ_K = s_1/s_K.

    In words: the geometric mean over the linear layers of (κ_ℓ + 1/κ_ℓ)/2 is at most g^{K/2}. Needs no balance.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = layer_conditioning(head)
        >>> check.statement, check.holds
        ('Theorem 5.2 (all layers)', True)
    """
    sides = layer_conditioning_sides(head)
    hypotheses, rounding = (_full_rank_output(head),), 1e-14 * head.num_classes * head.depth
    return Check("Theorem 5.2 (all layers)", "layers", "sharp", hypotheses, *sides, "<=", rounding=rounding)


@checked()
def theorem_5_2_posteriori_sides(head: LinearHead) -> tuple[Tensor, Tensor]:
    """(κ(W_L), √((1+v)κ*² + v)), κ* = g^{K/2} + √(g^K − 1), v = Σ‖D_ℓ‖ ‖Z_{L−1}‖²/s_K(f(X))².

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = theorem_5_2_posteriori_sides(head)
        >>> bool(measured <= bound)
        True
    """
    k = head.num_classes
    exact = torch.exp(_arccosh_of_power(waste(head).log(), k / 2))
    v = head.imbalances.sum() * (head.feature_norms[-2] / nth(head.feature_singular_values[-1], k)) ** 2
    return head.kappa_last, ((1 + v) * exact**2 + v).sqrt()


@checked()
def theorem_5_2_posteriori(head: LinearHead) -> Check:
    """Sharp certificate of the last layer (ours): κ(W_L)² ≤ (1+v)κ*² + v, κ* = g^{K/2} + √(g^K − 1).

    v = Σ_ℓ‖D_ℓ‖_op · ‖Z_{L−1}‖_op²/s_K(f(X))² measures imbalance; for a balanced head κ(W_L) ≤ κ*. It follows from
    :func:`layer_conditioning`, without passing through κ(A), so no power of the depth multiplies the imbalance.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = theorem_5_2_posteriori(head)
        >>> check.statement, check.holds
        ('Theorem 5.2 (last layer)', True)
    """
    sides = theorem_5_2_posteriori_sides(head)
    hypotheses = (_full_rank_output(head),)
    return Check("Theorem 5.2 (last layer)", "kappa_W_L", "sharp", hypotheses, *sides, "<=", _arccosh_rounding(head))


# --- near-minimisers


@checked(weight_decay=number(above=0, finite=True))
def theorem_5_2_a_priori_sides(
    head: LinearHead, nonlinear_weights: Sequence[Tensor], x: Tensor, weight_decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(κ(A), its a-priori bound, the bound 2C_λ(θ) = λ(c + K L2 + δ) on ε1² that it rests on).

    Example:
        >>> from ncutils.networks import MLP
        >>> network = MLP(8, 2, num_nonlinear=1, num_linear=2, width=4, dtype=torch.float64)
        >>> x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> y = torch.arange(20) % 2
        >>> head = LinearHead.of(network, x, y)
        >>> first = [network.weights[0][0].detach()]
        >>> len(theorem_5_2_a_priori_sides(head, first, x, 0.1))
        3
    """
    k, depth, nonlinear = head.num_classes, head.depth, len(nonlinear_weights)
    norm = head_norm(head) + sum(w.to(torch.float64).square().sum() for w in nonlinear_weights)
    # c + K L2 + δ: the objective in units of λ/2
    budget = (head.eps1**2 + weight_decay * norm) / weight_decay
    eps = (weight_decay * budget).sqrt()
    if eps >= head.label_scale:
        return head.kappa_head, eps.new_tensor(math.inf), eps**2
    growth = budget - k * depth - k * nonlinear + k * nonlinear * math.log(k)
    scale = x.to(torch.float64).norm() / (head.label_scale - eps)
    return head.kappa_head, torch.exp(k * scale.log() + growth / 2), eps**2


@checked(head=anything, weight_decay=number(above=0, finite=True))
def theorem_5_2_a_priori(
    head: LinearHead,
    *,
    nonlinear_weights: Sequence[Tensor],
    x: Tensor,
    weight_decay: float,
) -> Check:
    """Theorem 5.2, a priori: if C_λ(θ) ≤ (λ/2)(c + K L2 + δ), then κ(A) is bounded whatever the depth of the head.

    κ(A) ≤ (‖X‖_F/(s_K(Y) − ε1))^K exp(½(c + δ − K L1 + K L1 ln K)), ε1² = λ(c + K L2 + δ) < N/K. The bound sees c and δ
    only through c + K L2 + δ, evaluated here as 2C_λ(θ)/λ, the least that makes the premise true; :func:`excess` gives
    δ for a known c.

    Args:
        head: the linear layers and what enters them.
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
        >>> theorem_5_2_a_priori(head, nonlinear_weights=first, x=x, weight_decay=0.1).statement
        'Theorem 5.2 (a priori)'
    """
    if not weight_decay > 0:
        raise ValueError(f"weight_decay must be a positive number; got {weight_decay}")
    measured, bound, error = theorem_5_2_a_priori_sides(head, nonlinear_weights, x, weight_decay)
    narrowest = min(w.shape[1] for w in head.weights)
    # what |σ(t)| ≤ |t| and Z_{L1} coming from x are used for, and all that they are used for
    reach = x.to(torch.float64).norm() * math.prod(float(w.to(torch.float64).norm()) for w in nonlinear_weights)
    hypotheses = (
        Hypothesis("ε1² = λ(c + K L2 + δ) < N/K", error, head.label_scale**2, "<"),
        Hypothesis("head widths ≥ K", narrowest, head.num_classes, ">="),
        Hypothesis("‖Z_{L1}‖_F ≤ ‖X‖_F ∏‖W_ℓ‖_F", head.features.norm(), reach * (1 + 1e-12), "<="),
    )
    return Check("Theorem 5.2 (a priori)", "kappa_head", "simple", hypotheses, measured, bound, "<=")


@checked(weight_decay=number(above=0, finite=True), reference=number(finite=True))
def excess(
    head: LinearHead,
    *,
    nonlinear_weights: Sequence[Tensor],
    weight_decay: float,
    reference: float,
) -> float:
    """δ of Theorem 5.2: 2C_λ(θ)/λ − c − K L2; at most 0 at a global minimiser.

    ``reference`` is c, the squared norm of some nonlinear part with Z_{L1} = Y (padded with zeros) exactly.

    Example:
        >>> from ncutils.networks import MLP
        >>> network = MLP(8, 2, num_nonlinear=1, num_linear=2, width=4, dtype=torch.float64)
        >>> x = torch.randn(20, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> y = torch.arange(20) % 2
        >>> head = LinearHead.of(network, x, y)
        >>> first = [network.weights[0][0].detach()]
        >>> bool(excess(head, nonlinear_weights=first, weight_decay=0.1, reference=4.0) > 0)
        True
    """
    norm = head_norm(head) + sum(w.to(torch.float64).square().sum() for w in nonlinear_weights)
    return float(head.eps1**2 / weight_decay + norm) - reference - head.num_classes * head.depth


@checked(
    weight_decay=number(least=0, finite=True),
    num_linear=integer(least=1),
    samples_per_class=number(above=0, finite=True),
)
def optimal_scale(weight_decay: float, num_linear: int, samples_per_class: float = 1.0) -> float:
    """The s ≥ 0 that minimises ½n(1−s)² + (λ/2)L2 s^{2/L2}: how much of the labels the best linear head fits.

    This is min C_λ over heads of L2 layers on collapsed features Z_{L1} = Y (norm of the head only), one singular
    direction at a time: there ‖Y‖ contributes n = N/K and, by the Schatten lemma, the weights L2 s^{2/L2}. Beyond some
    depth the minimiser jumps to the trivial solution s = 0.

    Args:
        weight_decay: λ > 0.
        num_linear: L2 ≥ 2.
        samples_per_class: n = N/K.

    Example:
        >>> round(optimal_scale(0.01, num_linear=3), 4)
        0.99
    """
    if not weight_decay > 0 or num_linear < 2 or not samples_per_class > 0:
        raise ValueError(
            "weight_decay, num_linear, samples_per_class: expected > 0, >= 2, > 0; "
            f"got {weight_decay}, {num_linear}, {samples_per_class}"
        )
    n, power = samples_per_class, 2 / num_linear

    def objective(s: float) -> float:
        return 0.5 * n * (1 - s) ** 2 + 0.5 * weight_decay * num_linear * s**power

    def slope(s: float) -> float:
        return n * (s - 1) + weight_decay * s ** (power - 1)

    if num_linear == 2:  # s^{2/L2} = s: a soft threshold
        return max(0.0, 1 - weight_decay / n)
    # slope is convex, +∞ at 0+, positive at 1: its least point splits the two roots, the right one is the local minimum
    lowest = (n / (weight_decay * (1 - power))) ** (1 / (power - 2))
    if lowest >= 1 or slope(lowest) >= 0:
        return 0.0
    low, high = lowest, 1.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return high if objective(high) < objective(0.0) else 0.0
