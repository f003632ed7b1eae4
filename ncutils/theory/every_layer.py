"""Collapse at every layer of the linear head (ours, not the paper's): what Theorem 3.1 says of Z_{L−1}, for each Z_ℓ.

Cut the head after layer ℓ: B = W_{L:ℓ+1} is what follows, P_ℓ the projection on ker B, and

    η_ℓ = Σ_{j=ℓ}^{L−1} ‖D_j‖_op,    D_j = W_{j+1}ᵀW_{j+1} − W_jW_jᵀ .

**Lemma.** ‖P_ℓW_ℓ‖² ≤ η_ℓ: what the rest of the head cannot see is small, and no power of the depth enters.

*Proof*, by induction from ℓ = L−1 down, with η_L = 0 and P_L = 0. As W_ℓW_ℓᵀ = W_{ℓ+1}ᵀW_{ℓ+1} − D_ℓ,

    ‖P_ℓW_ℓ‖² = ‖P_ℓW_ℓW_ℓᵀP_ℓ‖ ≤ ‖W_{ℓ+1}P_ℓ‖² + ‖D_ℓ‖ .

A vector that W_{L:ℓ+1} sends to 0 is sent by W_{ℓ+1} to one that W_{L:ℓ+2} sends to 0: W_{ℓ+1}P_ℓ = P_{ℓ+1}W_{ℓ+1}P_ℓ,
of norm at most ‖P_{ℓ+1}W_{ℓ+1}‖ ≤ √η_{ℓ+1}. ∎

**Theorem.** The sharp forms of parts 1, 3 and 4 of Theorem 3.1 (arXiv:2410.04887) hold at Z_ℓ with B for W_L, Z_{ℓ−1}
for Z_{L−2} and η_ℓ for ‖D_{L−1}‖.

*Proof.* They use two facts about W_L, B has both: BZ_ℓ = Y + E, and the part of Z_ℓ in the kernel, P_ℓW_ℓZ_{ℓ−1}, is
small by the lemma. ∎

Neither side of any inequality knows how the network was trained.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncutils._arguments import checked
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.head import ROUNDING, LinearHead, op_norm
from ncutils.theory.theorem_3_1 import nc1_sides, nc2_sides

__all__ = ["every_layer", "every_layer_nc1", "every_layer_nc2", "every_layer_nc3", "unseen_weight"]


class _Cut(LinearHead):
    """The two-layer head (W_ℓ, W_{L:ℓ+1}) on Z_{ℓ−1}, charged with η_ℓ in place of its own imbalance."""

    def __init__(self, head: LinearHead, layer: int):
        if layer not in range(1, head.depth):
            raise ValueError(f"layer must be 1 … {head.depth - 1}, a linear layer before the last; got {layer}")
        super().__init__([head.weights[layer - 1], head.tail(head.depth - layer)], head.layers[layer - 1], head.y)
        self.__dict__["imbalances"] = head.imbalances[layer - 1 :].sum()[None]
        self.name = f"Z_L1+{layer}"

    @property
    def eta(self) -> Tensor:
        """η_ℓ."""
        return self.imbalances[0]


@checked()
def unseen_weight_sides(head: LinearHead, layer: int) -> tuple[Tensor, Tensor]:
    """(‖P_ℓW_ℓ‖², η_ℓ).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = unseen_weight_sides(head, 1)
        >>> bool(measured <= bound)
        True
    """
    cut = _Cut(head, layer)
    return op_norm(cut.outside(cut.weights[0].T)) ** 2, cut.eta


@checked()
def unseen_weight(head: LinearHead, layer: int) -> Check:
    """The lemma: ‖P_ℓW_ℓ‖_op² ≤ Σ_{j≥ℓ} ‖D_j‖_op (ours).

    Args:
        head: the linear head.
        layer: 1 … L2 − 1, counted from the first linear layer.

    Raises:
        ValueError: a layer that is not there.

    >>> import torch
    >>> weights = [torch.eye(2), torch.eye(2), torch.eye(2)]
    >>> unseen_weight(LinearHead(weights, torch.eye(2), torch.arange(2)), 1).verdict
    'holds'
    """
    rounding = ROUNDING * head.norms.max() ** 2
    cut = _Cut(head, layer)
    hypotheses = (cut.full_rank(),)  # else the numerical kernel of B is not the kernel
    sides = unseen_weight_sides(head, layer)
    return Check("Every layer (kernel)", f"kernel_{layer}", "sharp", hypotheses, *sides, "<=", rounding=rounding)


@checked()
def every_layer_nc1_sides(head: LinearHead, layer: int) -> tuple[Tensor, Tensor]:
    """(NC1(Z_ℓ), its bound).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = every_layer_nc1_sides(head, 1)
        >>> bool(measured <= bound)
        True
    """
    return nc1_sides(_Cut(head, layer), "sharp")


@checked()
def every_layer_nc1(head: LinearHead, layer: int) -> Check:
    """NC1 at Z_ℓ (ours), with B = W_{L:ℓ+1} of rank K and ‖E‖_F < √((K−1)N/K).

    NC1(Z_ℓ) ≤ (s_1(B)²/N)[‖E_w‖_F²/s_K(B)² + η_ℓ min(‖Z̊_{ℓ−1}‖_F², (n_ℓ−K)‖Z̊_{ℓ−1}‖²)]/(√((K−1)/K) − ‖E‖_F/√N)².
    Arguments as in :func:`unseen_weight`.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = every_layer_nc1(head, 1)
        >>> check.statement, check.holds
        ('Every layer (NC1)', True)
    """
    cut = _Cut(head, layer)
    k, n = head.num_classes, head.num_samples
    hypotheses = (cut.full_rank(), head.error_below(((k - 1) * n / k) ** 0.5, "√((K−1)N/K)"))
    measured, bound = nc1_sides(cut, "sharp")
    c = ROUNDING * float(cut.kappa_last)
    rounding = c * (c + 2 * float(measured) ** 0.5)  # (√NC1 + c)² − NC1
    return Check("Every layer (NC1)", f"nc1_{layer}", "sharp", hypotheses, measured, bound, "<=", rounding=rounding)


@checked()
def every_layer_nc2_sides(head: LinearHead, layer: int) -> tuple[Tensor, Tensor]:
    """(NC2(Z_ℓ), its bound).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = every_layer_nc2_sides(head, 1)
        >>> bool(measured <= bound)
        True
    """
    return nc2_sides(_Cut(head, layer), "sharp")


@checked()
def every_layer_nc2(head: LinearHead, layer: int) -> Check:
    """NC2 at Z_ℓ (ours): NC2 ≤ √(((1+δ)κ(B))² + s_1(B)² η_ℓ ‖Z̄_{ℓ−1}‖²)/(1−δ), δ = ‖Ē‖_op < 1.

    Arguments as in :func:`unseen_weight`.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = every_layer_nc2(head, 1)
        >>> check.statement, check.holds
        ('Every layer (NC2)', True)
    """
    cut = _Cut(head, layer)
    hypotheses = (Hypothesis("‖Ē‖_op < 1", op_norm(head.mean_error), 1.0, "<"), cut.full_rank())
    return Check("Every layer (NC2)", f"nc2_{layer}", "sharp", hypotheses, *nc2_sides(cut, "sharp"), "<=")


@checked()
def every_layer_nc3_sides(head: LinearHead, layer: int) -> tuple[Tensor, Tensor]:
    """(NC3(Z_ℓ, B), its lower bound).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = every_layer_nc3_sides(head, 1)
        >>> bool(measured >= bound)
        True
    """
    cut = _Cut(head, layer)
    y, last = head.y, cut.weights[-1]
    rows = last.norm(dim=1)
    aligned = (rows * cut.pseudo_inverse.norm(dim=0))[y]
    own = 1 + head.error.gather(1, y[:, None])[:, 0]
    other = (head.error.square().sum(1) - (own - 1).square()).clamp_min(0).sqrt()
    seen = own * aligned + rows[y] * other / cut.sK
    unseen = rows[y] * cut.eta.sqrt() * cut.features.norm(dim=1)
    cosine = own / torch.hypot(seen, unseen)
    return cut.nc3(cut.layers[-2], last), torch.where(own > 0, cosine, -torch.ones_like(cosine)).mean()


@checked()
def every_layer_nc3(head: LinearHead, layer: int) -> Check:
    """NC3 at Z_ℓ (ours): the mean cosine between a sample of Z_ℓ and the row B_c of its class, rank B = K.

    At least the mean of e/√((e a_c + ‖B_c‖‖E_i′‖/s_K(B))² + ‖B_c‖² η_ℓ ‖z_{ℓ−1,i}‖²), with e = 1 + E_ci, E_i′ the other
    entries of the error and a_c = ‖B_c‖‖B⁺e_c‖; −1 for a sample with e ≤ 0. Arguments as in :func:`unseen_weight`.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = every_layer_nc3(head, 1)
        >>> check.statement, check.holds
        ('Every layer (NC3)', True)
    """
    sides = every_layer_nc3_sides(head, layer)
    hypotheses = (_Cut(head, layer).full_rank(),)
    return Check("Every layer (NC3)", f"nc3_{layer}", "sharp", hypotheses, *sides, ">=")


@checked()
def every_layer(head: LinearHead) -> tuple[Check, ...]:
    """Kernel, NC1, NC2 and NC3 at Z_{L1+1}, …, Z_{L−1}: four checks a layer, first layer first.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> checks = every_layer(head)
        >>> len(checks), all(check.holds for check in checks)
        (8, True)
    """
    statements = (unseen_weight, every_layer_nc1, every_layer_nc2, every_layer_nc3)
    return tuple(statement(head, layer) for layer in range(1, head.depth) for statement in statements)
