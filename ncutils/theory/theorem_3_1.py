"""Theorem 3.1: low error, balanced linear layers and bounded conditioning give neural collapse.

The theorem of arXiv:2410.04887 in four parts (NC1, conditioning, NC2, NC3) and the telescoping lemma behind the
second. Each function returns a
:class:`~ncutils.theory.checks.Check` in the form asked for:

* ``"paper"``: the paper's ingredients only (ε1, ε2, one radius r for every norm, a bound on the head's
  condition number). For NC1 this is the paper's formula up to one factor 2, inferred from its threshold on ε1.
  For the other parts the paper's constants are not known here and the formula is a reconstruction;
* ``"simple"``: this project's explicit constants, each norm measured on its own (NC1: still one radius r);
* ``"sharp"``: the same argument with nothing thrown away that can be measured.

Everything is float64. Features are rows, ``(N, n)``; weights are ``(out, in)``, first linear layer first. Both
sides are tensors until a ``Check`` is built, so :class:`LinearHead` and the ``*_sides`` functions are differentiable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ncutils._arguments import checked, integer
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.head import LinearHead, known_form, nth, op_norm

__all__ = [
    "telescoping",
    "theorem_3_1_conditioning",
    "theorem_3_1_nc1",
    "theorem_3_1_nc2",
    "theorem_3_1_nc3",
]


@checked(count=integer(least=0))
def telescoping_error(head: LinearHead, count: int, form: str) -> Tensor:
    """How far A_jA_jᵀ can be from (W_LW_Lᵀ)^j, j = ``count``: the bound of :func:`telescoping`.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> float(telescoping_error(head, 2, "sharp")) <= float(telescoping_error(head, 2, "simple"))
        True
    """
    norms, gaps = head.norms[head.depth - count :], head.imbalances[head.depth - count :]
    if form == "simple":
        worst = gaps.max() if count > 1 else norms.new_zeros(())
        if count < 2:
            return worst
        return 0.5 * count * (count - 1) * norms.max() ** (2 * (count - 1)) * worst
    # exchange m (of j − 1): an m-th power between the outer layers, whose own norms are used
    total = norms.new_zeros(())
    for m in range(1, count):
        outer = norms[m:].square().prod()
        inner = torch.maximum(norms[m - 1], norms[m]) ** (2 * (m - 1))
        total = total + m * outer * inner * gaps[m - 1]
    return total


@checked()
def telescoping(weights: Sequence[Tensor], count: int | None = None, form: str = "simple") -> Check:
    """Telescoping lemma: nearly balanced layers multiply like powers of the last one.

    ‖A_jA_jᵀ − (W_LW_Lᵀ)^j‖_op ≤ ½j(j−1) r^{2(j−1)} ε2 with A_j the product of the last j layers (lemma to
    Theorem 3.1; constants ours). The sharp form keeps each layer's own norm and imbalance.

    Args:
        weights: at least two linear layers, first to last, each ``(out, in)``.
        count: j, from 2 to the number of layers; default all of them.
        form: ``"simple"`` or ``"sharp"``.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = telescoping(head.weights)
        >>> check.statement, check.holds
        ('Telescoping lemma', True)
    """
    known_form(form, ("simple", "sharp"))
    for w in weights:
        if w.ndim != 2:
            raise ValueError(f"weights must be matrices; got shape {tuple(w.shape)}")
    depth = len(weights)
    count = depth if count is None else count
    if not 2 <= count <= depth:
        raise ValueError(f"count must be 2 … {depth}, the number of layers; got {count}")
    classes = weights[-1].shape[0]
    # the lemma needs no data; one sample a class and zero features complete a LinearHead
    head = LinearHead(weights, weights[0].new_zeros(classes, weights[0].shape[1]), torch.arange(classes))
    measured, bound = telescoping_sides(head, count, form)
    # 2j products of matrices at most n wide, each off by n u relative to the product of the norms
    width = max(max(w.shape) for w in weights)
    rounding = count * width * torch.finfo(torch.float64).eps * float(head.norms.max()) ** (2 * count) * classes
    return Check("Telescoping lemma", "telescoping", form, (), measured, bound, "<=", rounding=rounding)


@checked(count=integer(least=0))
def telescoping_sides(head: LinearHead, count: int, form: str) -> tuple[Tensor, Tensor]:
    """(‖W_{L:L−m+1}W_{L:L−m+1}ᵀ − (W_LW_Lᵀ)^m‖_op, its bound), m = ``count``.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = telescoping_sides(head, 2, "sharp")
        >>> bool(measured <= bound)
        True
    """
    product, last = head.tail(count), head.weights[-1]
    gap = op_norm(product @ product.T - torch.linalg.matrix_power(last @ last.T, count))
    return gap, telescoping_error(head, count, form)


@checked()
def nc1_sides(head: LinearHead, form: str) -> tuple[Tensor, Tensor]:
    """(NC1(Z_{L−1}), its bound); the bound is infinite where its denominator is not positive.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = nc1_sides(head, "sharp")
        >>> bool(measured <= bound)
        True
    """
    n, k = head.num_samples, head.num_classes
    z2, z1 = head.layers[-3], head.layers[-2]
    measured = head.nc1(z1)
    factor = 2.0 if form == "paper" else 1.0
    # each class mean of the error averages at least s_K(Y)² samples
    between = math.sqrt((k - 1) / k) - factor * head.eps1 / (math.sqrt(k) * head.label_scale)
    gap = head.label_scale - head.eps1
    infinite = head.eps1.new_tensor(math.inf)
    if form == "sharp":
        if between <= 0:
            return measured, infinite
        scatter = head.within(z2)
        outside = torch.minimum(scatter.square().sum(), (z1.shape[1] - k) * op_norm(scatter) ** 2)
        inside = head.within(head.error).square().sum() / head.sK**2
        return measured, head.s1**2 / n * (inside + head.imbalances[-1] * outside) / between**2
    if between <= 0 or gap <= 0:
        return measured, infinite
    r = head.radius
    psi = r * (head.eps1 / gap + (z1.shape[1] * head.eps2).sqrt())
    return measured, r**2 / n * psi**2 / between**2


def _nc1_rounding(head: LinearHead, form: str) -> float:
    """What float64 rounding can make of bound − NC1, to first order in the unit roundoff u.

    Both sides are squares, of a = ‖Z − Z̄Y‖_F/√(N tr Σ_B) and of b, which is ε1 (or ‖E_w‖) times a factor. A product
    of an (N, n) and an (n, m) matrix is off by at most n u times the product of their Frobenius norms, so the layers
    are off by e_{ℓ+1} ≤ e_ℓ‖W‖ + n u‖Z_ℓ‖_F‖W‖_F, and a class mean of m samples by another m u. With c the sum of
    what this makes of a and of b, a ≤ b in exact arithmetic gives a² − b² ≤ c(2a + c) in float64.
    """
    unit, errors = torch.finfo(torch.float64).eps / 2, [0.0]
    for z, w in zip(head.layers, head.weights, strict=False):
        errors.append(errors[-1] * float(op_norm(w)) + w.shape[1] * unit * float(z.norm() * w.norm()))
    n, k, last = head.num_samples, head.num_classes, head.layers[-2]
    centring = (int(head.counts.max()) + 2) * unit
    means = head.class_means(last)
    spread = float((means - means.mean(0)).norm()) * math.sqrt(n / k)  # √(N tr Σ_B)
    miss = (2 if form == "paper" else 1) * float(head.eps1) / (math.sqrt(k) * head.label_scale)
    between = math.sqrt(n) * (math.sqrt((k - 1) / k) - miss)
    gap = head.label_scale - float(head.eps1)
    factor = float(head.kappa_last) if form == "sharp" else float(head.radius) ** 2 / gap if gap > 0 else math.inf
    if spread <= 0 or between <= 0 or not math.isfinite(factor):
        return 0.0
    c = (errors[-2] + centring * float(last.norm())) / spread
    c += factor * (errors[-1] + centring * float(head.output.norm() + head.one_hot.norm())) / between
    return c * (2 * math.sqrt(max(float(head.nc1(last)), 0.0)) + c)


@checked()
def theorem_3_1_nc1(head: LinearHead, form: str = "sharp") -> Check:
    """Theorem 3.1, part 1: within-class variability collapse at Z_{L−1}.

    * paper: NC1 ≤ (r²/N) Ψ² / (√((K−1)/K) − 2ε1/√N)², Ψ = r(ε1/(s_K(Y)−ε1) + √(n_{L−1}ε2)), for
      ε1 ≤ min(s_K(Y), √((K−1)N/(4K))). Ψ and the condition are the paper's; the factor 2 is inferred from the
      condition;
    * simple: the same with ε1/√N in place of 2ε1/√N, for ε1 < s_K(Y) (ours);
    * sharp: the scatter split by Pythagoras into what W_L sees and what it does not (ours), see the chapter.

    Args:
        weights: the linear layers, first to last, ``(out, in)`` each, at least two.
        features: Z_{L1}, ``(N, n)``.
        y: ``(N,)`` balanced labels.
        form: ``"paper"``, ``"simple"`` or ``"sharp"``.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = theorem_3_1_nc1(head)
        >>> check.statement, check.holds
        ('Theorem 3.1 (NC1)', True)
    """
    known_form(form, ("paper", "simple", "sharp"))
    n, k = head.num_samples, head.num_classes
    hypotheses = {
        "paper": lambda: (
            head.equal_classes(),
            head.error_below(head.label_scale, "s_K(Y)", "<="),
            head.error_below(math.sqrt((k - 1) * n / (4 * k)), "√((K−1)N/(4K))", "<="),
        ),
        "simple": lambda: (head.error_below(head.label_scale, "s_K(Y)"),),
        "sharp": lambda: (head.full_rank(), head.error_below(math.sqrt(k - 1) * head.label_scale, "√(K−1) s_K(Y)")),
    }[form]()
    rounding = _nc1_rounding(head, form)
    return Check("Theorem 3.1 (NC1)", "nc1", form, hypotheses, *nc1_sides(head, form), "<=", rounding=rounding)


def _paper_slack_and_floor(head: LinearHead) -> tuple[Tensor, Tensor]:
    """η2 with the one radius r, and the floor ((s_K(Y) − ε1)/‖Z_{L1}‖)² under s_K(A)²."""
    slack = 0.5 * head.depth * (head.depth - 1) * head.radius ** (2 * (head.depth - 1)) * head.eps2
    floor = (head.label_scale - head.eps1).clamp_min(0) ** 2 / head.feature_norms[0] ** 2
    return slack, floor


@checked()
def conditioning_sides(head: LinearHead, form: str) -> tuple[Tensor, Tensor]:
    """(κ(W_L), its bound from κ(A)); infinite where the telescoping error reaches s_K(A)².

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = conditioning_sides(head, "sharp")
        >>> bool(measured <= bound)
        True
    """
    depth, k = head.depth, head.num_classes
    s = head.product_singular_values
    largest, smallest = s[0] ** 2, nth(s, k) ** 2
    if form == "paper":
        slack, smallest = _paper_slack_and_floor(head)
        largest = head.kappa_head**2 * smallest  # s_1(A) = c3 s_K(A), c3 = κ(A)
    else:
        slack = telescoping_error(head, depth, form)
    if smallest <= slack:
        return head.kappa_last, slack.new_tensor(math.inf)
    return head.kappa_last, ((largest + slack) / (smallest - slack)) ** (1 / (2 * depth))


@checked()
def theorem_3_1_conditioning(head: LinearHead, form: str = "sharp") -> Check:
    """Theorem 3.1, part 2: a deep balanced head has a well-conditioned last layer.

    κ(W_L) ≤ [(s_1(A)² + η2)/(s_K(A)² − η2)]^{1/(2L2)}, A = W_{L:L1+1}, where η2 is the telescoping lemma's
    bound (simple: one norm for all layers; sharp: each layer's own; paper: reconstructed from c3 = κ(A), ε1, ε2,
    ‖Z_{L1}‖ and r).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = theorem_3_1_conditioning(head)
        >>> check.statement, check.holds
        ('Theorem 3.1 (conditioning)', True)
    """
    known_form(form, ("paper", "simple", "sharp"))
    depth = head.depth
    smallest = nth(head.product_singular_values, head.num_classes) ** 2
    hypotheses: tuple[Hypothesis, ...]
    if form == "paper":
        slack, floor = _paper_slack_and_floor(head)
        hypotheses = (
            head.error_below(head.label_scale, "s_K(Y)"),
            Hypothesis("η2 < ((s_K(Y) − ε1)/‖Z_{L1}‖)²", slack, floor, "<"),
        )
    else:
        hypotheses = (Hypothesis("η2 < s_K(A)²", telescoping_error(head, depth, form), smallest, "<"),)
    sides = conditioning_sides(head, form)
    return Check("Theorem 3.1 (conditioning)", "kappa_W_L", form, hypotheses, *sides, "<=")


@checked()
def nc2_sides(head: LinearHead, form: str) -> tuple[Tensor, Tensor]:
    """(NC2(Z_{L−1}), its bound); infinite for δ ≥ 1.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = nc2_sides(head, "sharp")
        >>> bool(measured <= bound)
        True
    """
    measured = head.nc2(head.layers[-2])
    delta = op_norm(head.mean_error) if form == "sharp" else head.eps1 / head.label_scale
    if delta >= 1:
        return measured, delta.new_tensor(math.inf)
    if form == "sharp":
        outside = head.s1**2 * head.imbalances[-1] * op_norm(head.class_means(head.layers[-3])) ** 2
        top = (((1 + delta) * head.kappa_last) ** 2 + outside).sqrt()
    elif form == "simple":
        outside = head.s1 * head.feature_norms[-3] * head.imbalances[-1].sqrt() / head.label_scale
        top = (1 + delta) * head.kappa_last + outside
    else:
        kappa = conditioning_sides(head, "paper")[1]
        top = (1 + delta) * kappa + head.radius**2 * head.eps2.sqrt() / head.label_scale
    return measured, top / (1 - delta)


@checked()
def theorem_3_1_nc2(head: LinearHead, form: str = "sharp") -> Check:
    """Theorem 3.1, part 3: the class means of Z_{L−1} are nearly orthogonal and of equal length.

    * simple: NC2 ≤ [(1+δ1)κ(W_L) + ‖W_L‖‖Z_{L−2}‖√(‖D_{L−1}‖K/N)]/(1−δ1), δ1 = ε1√(K/N) < 1;
    * sharp: NC2 ≤ √(((1+δ)κ(W_L))² + s_1(W_L)²‖D_{L−1}‖‖Z̄_{L−2}‖²)/(1−δ), δ = ‖Ē‖_op < 1;
    * paper (reconstructed): the simple form with part 2's bound for κ(W_L), r for both norms and ε2 for ‖D_{L−1}‖.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = theorem_3_1_nc2(head)
        >>> check.statement, check.holds
        ('Theorem 3.1 (NC2)', True)
    """
    known_form(form, ("paper", "simple", "sharp"))
    hypotheses: tuple[Hypothesis, ...]
    if form == "sharp":
        hypotheses = (Hypothesis("‖Ē‖_op < 1", op_norm(head.mean_error), 1.0, "<"),)
    else:
        hypotheses = (head.error_below(head.label_scale, "s_K(Y)"),)
        if form == "paper":
            hypotheses += theorem_3_1_conditioning(head, "paper").hypotheses[1:]
    return Check("Theorem 3.1 (NC2)", "nc2", form, hypotheses, *nc2_sides(head, form), "<=")


@checked()
def nc3_sides(head: LinearHead, form: str) -> tuple[Tensor, Tensor]:
    """(NC3(Z_{L−1}, W_L), its lower bound).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = nc3_sides(head, "sharp")
        >>> bool(measured >= bound)
        True
    """
    n = head.num_samples
    last, z = head.weights[-1], head.layers[-2]
    measured = head.nc3(z, last)
    if form == "sharp":
        row_norms = last.norm(dim=1)
        aligned = row_norms * head.pseudo_inverse.norm(dim=0)
        own = head.error.gather(1, head.y[:, None])[:, 0]
        other = (head.error.square().sum(1) - own.square()).clamp_min(0).sqrt()
        seen = (1 + own) * aligned[head.y] + row_norms[head.y] * other / head.sK
        unseen = row_norms[head.y] * head.outside(z).norm(dim=1)
        cosine = (1 + own) / torch.hypot(seen, unseen)
        return measured, torch.where(own > -1, cosine, -torch.ones_like(cosine)).mean()
    root = math.sqrt(n)
    if form == "paper":
        kappa, s1 = conditioning_sides(head, "paper")[1], head.radius
        outside = head.radius * (z.shape[1] * head.eps2).sqrt()
    else:
        kappa, s1 = head.kappa_last, head.s1
        outside = head.feature_norms[-3] * (z.shape[1] * head.imbalances[-1]).sqrt()
    if not torch.isfinite(kappa):
        return measured, kappa.new_tensor(-math.inf)
    kantorovich = 2 * kappa / (kappa**2 + 1)
    bound = (1 - head.eps1 / root) * kantorovich - (kappa * head.eps1 + s1 * outside) / root
    return measured, bound


@checked()
def theorem_3_1_nc3(head: LinearHead, form: str = "sharp") -> Check:
    """Theorem 3.1, part 4: samples of Z_{L−1} point along the row of W_L that belongs to their class.

    * simple: NC3 ≥ (1 − ε1/√N)·2κ/(κ²+1) − (κε1 + ‖W_L‖‖Z_{L−2}‖√(n_{L−1}‖D_{L−1}‖))/√N, κ = κ(W_L), rank W_L = K;
    * sharp: the mean over samples of e/√((e a_c + ‖W_c‖‖E_i′‖/s_K(W_L))² + ‖W_c‖²‖P⊥z_i‖²), where e = 1 + E_ci is the
      output for the own class, E_i′ the error in the other classes and a_c = ‖W_c‖‖W_L⁺e_c‖; −1 for a sample with
      e ≤ 0;
    * paper (reconstructed): the simple form with part 2's bound for κ(W_L), r for both norms and ε2 for ‖D_{L−1}‖.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = theorem_3_1_nc3(head)
        >>> check.statement, check.holds
        ('Theorem 3.1 (NC3)', True)
    """
    known_form(form, ("paper", "simple", "sharp"))
    hypotheses = theorem_3_1_conditioning(head, "paper").hypotheses if form == "paper" else (head.full_rank(),)
    return Check("Theorem 3.1 (NC3)", "nc3", form, hypotheses, *nc3_sides(head, form), ">=")
