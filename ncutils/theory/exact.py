"""The exact case (ours, not the paper's wording): no error, no imbalance, and everything about Z_{L−1} is known.

**Theorem.** Let W_LZ_{L−1} = Y and D_ℓ = 0 for every linear layer. Then Z_{L−1} = W_L⁺Y, and with a_c =
‖W_{c:}‖‖W_L⁺e_c‖, κ = κ(W_L), A = W_{L:L1+1}:

    NC1(Z_{L−1}) = 0,   κ = κ(A)^{1/L2},   NC2(Z_{L−1}) = κ,   cos(z_i, W_{c:}) = 1/a_c ≥ 2κ/(κ²+1) for i in class c.

*Proof.* W_L has rank K, as Y has. Let P⊥ project on its kernel. P⊥W_{L−1}W_{L−1}ᵀP⊥ = P⊥W_LᵀW_LP⊥ = 0 by balance,
so P⊥Z_{L−1} = 0 and Z_{L−1} = W_L⁺W_LZ_{L−1} = W_L⁺Y. One column a class: NC1 = 0. In AAᵀ = W_L…W_{L1+1}W_{L1+1}ᵀ…W_Lᵀ
replace the innermost product by the next layer's, again and again: AAᵀ = (W_LW_Lᵀ)^{L2}. The class means are the
columns of W_L⁺, with the inverse singular values of W_L. Finally W_{c:}W_L⁺e_c = 1 is the inner product, and
(e_cᵀGe_c)(e_cᵀG⁻¹e_c) ≤ (κ²+1)²/(4κ²) for G = W_LW_Lᵀ is Kantorovich's inequality. ∎

**How far a network is from it.** For any head of rank W_L = K,

    ‖Z_{L−1} − W_L⁺Y‖_F² = ‖W_L⁺E‖_F² + ‖P⊥Z_{L−1}‖_F² ≤ ‖E‖_F²/s_K(W_L)² + ‖P⊥D_{L−1}P⊥‖ ‖Z_{L−2}‖_F² ,

since W_L⁺W_LZ_{L−1} = W_L⁺(Y + E) and ‖P⊥W_{L−1}‖² = ‖P⊥D_{L−1}P⊥‖. ∎ Theorem 3.1 (arXiv:2410.04887) is this
perturbation, spelled out for each measure of collapse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncutils._arguments import checked
from ncutils.metrics import imbalance_matrix
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.head import ROUNDING, LinearHead, op_norm

__all__ = ["distance_to_collapse", "exact_case"]

# Relative size up to which an error or imbalance counts as none: the exact case in float64.
EXACT = 1e-12


@checked()
def distance_to_collapse_sides(head: LinearHead, form: str) -> tuple[Tensor, Tensor]:
    """(‖Z_{L−1} − W_L⁺Y‖_F², its bound).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = distance_to_collapse_sides(head, "sharp")
        >>> bool(measured <= bound)
        True
    """
    z = head.layers[-2]
    measured = (z - head.one_hot @ head.pseudo_inverse.T).square().sum()
    gap = imbalance_matrix(head.weights[-2], head.weights[-1])
    if form == "simple":
        return measured, head.eps1**2 / head.sK**2 + op_norm(gap) * head.layers[-3].square().sum()
    outside = torch.eye(z.shape[1]).to(z) - head.row_space
    seen = (head.error @ head.pseudo_inverse.T).square().sum()
    return measured, seen + op_norm(outside @ gap @ outside) * head.layers[-3].square().sum()


@checked()
def distance_to_collapse(head: LinearHead, form: str = "sharp") -> Check:
    """‖Z_{L−1} − W_L⁺Y‖_F², the distance from the exact case, for rank W_L = K (ours).

    * simple: ≤ ‖E‖_F²/s_K(W_L)² + ‖D_{L−1}‖ ‖Z_{L−2}‖_F²;
    * sharp: ≤ ‖W_L⁺E‖_F² + ‖P⊥D_{L−1}P⊥‖ ‖Z_{L−2}‖_F².

    Raises:
        ValueError: another form.

    >>> import torch
    >>> head = LinearHead([torch.eye(2), torch.eye(2)], torch.eye(2) + 0.1, torch.arange(2))
    >>> check = distance_to_collapse(head)
    >>> print(f"{check.measured:.3f} <= {check.bound:.3f}")
    0.040 <= 0.040
    """
    if form not in ("simple", "sharp"):
        raise ValueError(f"form must be 'simple' or 'sharp'; got {form!r}")
    measured, bound = distance_to_collapse_sides(head, form)
    c = ROUNDING * float(head.kappa_last * head.layers[-2].norm())
    rounding = c * (c + 2 * float(measured) ** 0.5)
    hypotheses = (head.full_rank(),)
    return Check("Exact case (distance)", "distance", form, hypotheses, measured, bound, "<=", rounding=rounding)


@checked()
def exact_case(head: LinearHead) -> tuple[Check, ...]:
    """The four conclusions of the exact case, as identities; they say nothing unless E = D = 0 to rounding.

    In order: NC1(Z_{L−1}) = 0, κ(W_L) = κ(A)^{1/L2}, NC2(Z_{L−1}) = κ(W_L), NC3(Z_{L−1}, W_L) = mean of 1/a_c. The
    identities are compared at a tolerance that allows for a relative error or imbalance of 1e-12.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> [check.holds for check in exact_case(head)]  # the errors of this head are not zero
        [None, None, None, None]
    """
    none = (
        Hypothesis("E = 0: ‖E‖_F/s_K(Y)", head.eps1 / head.label_scale, EXACT, "<="),
        Hypothesis("D = 0: max ‖D_ℓ‖/max ‖W_ℓ‖²", head.eps2 / head.norms.max() ** 2, EXACT, "<="),
        head.full_rank(),
    )
    z, last = head.layers[-2], head.weights[-1]
    spread = float(head.kappa_last)
    aligned = (last.norm(dim=1) * head.pseudo_inverse.norm(dim=0)).reciprocal().mean()
    # W_L⁺ multiplies what is left of E and D by at most κ each time, and D enters through its square root
    slack = 4 * head.depth * EXACT**0.5 * spread**2
    sides = (
        ("nc1", head.nc1(z), torch.zeros(()), slack**2),
        ("kappa_W_L", head.kappa_last, head.kappa_head ** (1 / head.depth), slack),
        ("nc2", head.nc2(z), head.kappa_last, slack),
        ("nc3", head.nc3(z, last), aligned, slack),
    )
    return tuple(
        Check("Exact case", name, "exact", none, measured, bound, "==", rounding=rounding)
        for name, measured, bound, rounding in sides
    )
