"""Inheritance (ours, not the paper's): the features before the last layer scatter no more than the outputs do.

Any loss, any class sizes, biases, a last layer of any rank. Let Z = Z_{L−1} = W_{L−1}Z_{L−2} + b and F = W_LZ + b_L
(the bias of the last layer is free), Z̊ = Z minus its class means, D = W_LᵀW_L − W_{L−1}W_{L−1}ᵀ − bbᵀ, s_i = s_i(W_L),
P the projection on the first r right singular vectors of W_L, r ≤ rank W_L, and P⊥ = I − P. Then

    simple:  NC1(Z) ≤ s_1² [tr Σ_W(F)/s_r² + (s_{r+1}² + ‖D‖) tr Σ_W(Z_{L−2})] / tr Σ_B(F)
    sharp:   NC1(Z) ≤ [‖W_r⁺F̊‖_F²/N + (s_{r+1}² + ‖P⊥DP⊥‖) tr Σ_W(Z_{L−2})] / (‖W_r⁺F̄C‖_F²/K)

with W_r the best approximation of W_L of rank r, F̄ the class means of F and C the centring over classes.

*Proof.* A shift common to all samples does not scatter, so Z̊ = W_{L−1}Z̊_{L−2} and F̊ = W_LZ̊. Split Z̊ in PZ̊ and P⊥Z̊.
(i) W_r⁺W_L = P, so PZ̊ = W_r⁺F̊, at most ‖F̊‖_F/s_r. (ii) P⊥Z̊ = P⊥W_{L−1}Z̊_{L−2}, and

    P⊥W_{L−1}W_{L−1}ᵀP⊥ = P⊥(W_LᵀW_L − D − bbᵀ)P⊥ ≤ s_{r+1}² + ‖P⊥DP⊥‖ ,

as −bbᵀ ≤ 0. By Pythagoras N tr Σ_W(Z) is at most the sum of the squares. (iii) Class means: K tr Σ_B(Z) = ‖Z̄C‖_F² ≥
‖PZ̄C‖_F² = ‖W_r⁺F̄C‖_F² (C removes the bias), and also tr Σ_B(F) ≤ s_1² tr Σ_B(Z). Simple takes the second, sharp the
first. ∎

No label enters but to form classes. With r = K and F = Y + E this contains part 1 of Theorem 3.1 (arXiv:2410.04887).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ncutils._arguments import anything, as_tensor, checked, integer, shown
from ncutils.metrics import imbalance_matrix
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.head import RANK_THRESHOLD, ROUNDING, op_norm

__all__ = ["inheritance", "inheritance_sides"]


@checked(weights=anything, features=anything, y=anything, bias=anything, rank=integer())
def inheritance(
    weights,
    features: Tensor | None = None,
    y: Tensor | None = None,
    form: str = "sharp",
    *,
    bias: Tensor | None = None,
    rank: int | None = None,
) -> Check:
    """NC1 of the features before the last layer, bounded by the scatter of the outputs (ours).

    Args:
        weights: a :class:`~ncutils.theory.LinearHead`, or linear layers ``(out, in)``, first to last, at least two;
            only the last may come after a bias.
        features: ``(N, n)``, what enters the first of them.
        y: ``(N,)`` integer labels 0..K−1; classes may be uneven, each needs one sample.
        form: ``"simple"`` or ``"sharp"``, see the module.
        bias: b of layer L−1, ``(n_{L−1},)``; the bias of the last layer changes nothing and is not asked for.
        rank: r; default the one with the lowest bound.

    Raises:
        ValueError: a form, rank, shapes or labels that do not fit.

    >>> import torch
    >>> z = torch.tensor([[1.0, 0.0], [1.1, 0.0], [0.0, 1.0]])
    >>> check = inheritance([torch.eye(2), torch.eye(2)], z, torch.tensor([0, 0, 1]))
    >>> print(f"{check.measured:.4f} <= {check.bound:.4f}")
    0.0032 <= 0.0032
    """
    if form not in ("simple", "sharp"):
        raise ValueError(f"form must be 'simple' or 'sharp'; got {form!r}")
    if not hasattr(weights, "weights") and (features is None or y is None):
        raise ValueError(f"features, y must be given with weights; got {shown(features)}, {shown(y)}")
    last, before, z, y, bias = _arguments(weights, features, y, bias)
    singular = torch.linalg.svdvals(last)
    known = int((singular > RANK_THRESHOLD * singular[0]).sum())
    if rank is not None and rank not in range(1, len(singular) + 1):
        raise ValueError(f"rank must be 1 … {len(singular)}; got {rank}")
    full = max(known, 1)  # of W_L = 0 nothing is left to divide by: the bound comes out infinite or undefined
    measured, bound_at = _inherited(last, before, z, y, form, bias)
    bounds = [bound_at(r) for r in (range(1, full + 1) if rank is None else [min(rank, full)])]
    bound = min(bounds, key=float)
    hypotheses = (
        Hypothesis("r ≤ rank W_L", rank or 1, known, "<="),
        Hypothesis("tr Σ_B(F) > 0", _between(_means(z @ before.T @ last.T, y)), 0.0, ">"),
    )
    c = ROUNDING * float(singular[0] / singular[full - 1])
    rounding = c * (c + 2 * max(float(measured), 0.0) ** 0.5)
    return Check("Inheritance", "nc1", form, hypotheses, measured, bound, "<=", rounding=rounding)


def inheritance_sides(
    last: Tensor, before: Tensor, z: Tensor, y: Tensor, form: str, bias: Tensor, rank: int
) -> tuple[Tensor, Tensor]:
    """(NC1(Z_{L−1}), its bound at one r), differentiable; ``z`` is Z_{L−2}.

    Example:
        >>> eye, z, y = torch.eye(2), torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]]), torch.tensor([0, 0, 1])
        >>> measured, bound = inheritance_sides(eye, eye, z, y, "sharp", torch.zeros(2), 2)
        >>> bool(measured <= bound * (1 + 1e-6))
        True
    """
    measured, bound_at = _inherited(last, before, z, y, form, bias)
    return measured, bound_at(rank)


def _inherited(
    last: Tensor, before: Tensor, z: Tensor, y: Tensor, form: str, bias: Tensor
) -> tuple[Tensor, Callable[[int], Tensor]]:
    """NC1(Z_{L−1}), and its bound as a function of r; what reads all the samples is computed once."""
    entering = (z - _means(z, y)[y]).square().sum() / len(z)
    features = z @ before.T + bias
    outputs = features @ last.T
    output_means = _means(outputs, y)
    inside = outputs - output_means[y]
    means = _means(features, y)
    measured = (features - means[y]).square().mean(0).sum() / _between(means)
    u, s, vh = torch.linalg.svd(last, full_matrices=False)
    gap = imbalance_matrix(before, last) - torch.outer(bias, bias)

    def bound(rank: int) -> Tensor:
        beyond = s[rank] ** 2 if rank < len(s) else s.new_zeros(())
        if form == "simple":
            scatter = inside.square().sum() / len(z)
            total = scatter / s[rank - 1] ** 2 + (beyond + op_norm(gap)) * entering
            return s[0] ** 2 * total / _between(output_means)
        outside = torch.eye(len(before)).to(z) - vh[:rank].T @ vh[:rank]
        inverse = (u[:, :rank] / s[:rank]) @ vh[:rank]  # (W_r⁺)ᵀ, for samples as rows
        total = (inside @ inverse).square().sum() / len(z) + (beyond + op_norm(outside @ gap @ outside)) * entering
        return total / _between(output_means @ inverse)

    return measured, bound


def _means(z: Tensor, y: Tensor) -> Tensor:
    one_hot = torch.nn.functional.one_hot(y).to(z)
    return (one_hot / one_hot.sum(0)).T @ z


def _between(means: Tensor) -> Tensor:
    return (means - means.mean(0)).square().sum() / len(means)


def _arguments(weights, features, y, bias):
    if hasattr(weights, "layers"):
        last, before, z, y = weights.weights[-1], weights.weights[-2], weights.layers[-3], weights.y
    else:
        if not isinstance(weights, (list, tuple)) or len(weights) < 2:
            raise ValueError(f"weights must hold at least 2 linear layers; got {shown(weights)}")
        weights = [as_tensor("weights", w).to(torch.float64) for w in weights]
        z, y = as_tensor("features", features).to(torch.float64), as_tensor("y", y)
        if z.ndim != 2 or [w.ndim for w in weights] != [2] * len(weights) or y.is_floating_point() or y.is_complex():
            shapes = [tuple(t.shape) for t in (z, y, *weights)]
            raise ValueError(f"features, y, weights must be (N, n), (N,) integers and matrices; got {shapes}")
        y, width = y.long(), z.shape[1]
        for w in weights:
            if w.shape[1] != width:
                raise ValueError(f"weights must fit one another and the features; got {tuple(w.shape)} after {width}")
            width = len(w)
        for w in weights[:-2]:
            z = z @ w.T
        last, before = weights[-1], weights[-2]
    if y.ndim != 1 or len(y) != len(z):
        raise ValueError(f"y must be ({len(z)},), one label a sample; got {tuple(y.shape)}")
    if len(y) == 0 or int(y.min()) < 0 or not torch.bincount(y).all() or int(y.max()) < 1:
        raise ValueError(f"y must hold labels 0..K-1, K >= 2, each at least once; got {torch.unique(y).tolist()[:20]}")
    bias = z.new_zeros(len(before)) if bias is None else as_tensor("bias", bias).to(z)
    if bias.shape != (len(before),):
        raise ValueError(f"bias must be ({len(before)},), that of layer L-1; got {tuple(bias.shape)}")
    return last, before, z, y, bias
