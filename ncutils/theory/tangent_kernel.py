"""Proposition 5.3: the tangent kernel of the linear layers, and what a stable step size makes of it.

The proposition is that of arXiv:2410.04887.

Θ_ℓ is the block of the neural tangent kernel that belongs to layer ℓ, Θ_linear their sum over the linear layers. Forms
and conventions as in :mod:`ncutils.theory.theorem_3_1`; ``"paper"`` marks a reconstruction in the paper's shape.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ncutils._arguments import anything, checked, integer, number, scalar
from ncutils.theory.checks import Check, Hypothesis
from ncutils.theory.head import LinearHead, known_form, largest_eigenvalue, nth, op_norm
from ncutils.theory.theorem_3_1 import telescoping_error

__all__ = [
    "linear_ntk_norm",
    "ntk_block",
    "ntk_block_norms",
    "ntk_norm",
    "proposition_5_3",
    "proposition_5_3_floor",
]

# A linear head's kernel is assembled densely up to this order; Lanczos, ten times faster at order 640, beyond.
DENSE_ORDER = 128


@checked()
def ntk_block_norms(head: LinearHead) -> Tensor:
    """‖Θ_ℓ‖_op = ‖Z_{ℓ−1}‖²‖W_{L:ℓ+1}‖² for the linear layers ℓ = L1+1, …, L, (L2,).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> len(ntk_block_norms(head)) == head.depth
        True
    """
    depth = head.depth
    after = torch.stack([op_norm(head.tail(depth - 1 - i)) for i in range(depth)])
    return (head.feature_norms[:-1] * after) ** 2


def _reduced_factors(head: LinearHead) -> list[tuple[Tensor, Tensor]]:
    """Θ_ℓ as Gram ⊗ Gram, with Z_{ℓ−1}ᵀZ_{ℓ−1} written in an orthonormal basis of the features' sample space."""
    # every Z_ℓ is Z_{L1} times weights, so N samples reduce to n_{L1} directions without loss
    mode = "reduced" if head.features.requires_grad else "r"  # Q is needed to differentiate R only
    small = torch.linalg.qr(head.features, mode=mode).R
    factors = []
    for i, w in enumerate(head.weights):
        after = head.tail(head.depth - 1 - i)
        factors.append((small @ small.T, after @ after.T))
        small = small @ w.T
    return factors


@checked()
def linear_ntk_norm_tensor(head: LinearHead) -> Tensor:
    """‖Σ_ℓ Θ_ℓ‖_op over the linear layers, assembled densely (differentiable; small heads).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> abs(linear_ntk_norm_tensor(head).item() / linear_ntk_norm(head) - 1) < 1e-12
        True
    """
    return torch.linalg.eigvalsh(sum(torch.kron(a, b) for a, b in _reduced_factors(head)))[-1]


@checked()
def linear_ntk_norm(head: LinearHead) -> float:
    """Operator norm of the tangent kernel of the linear layers together, Σ_ℓ Θ_ℓ: a floor under the whole network's.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> linear_ntk_norm(head) >= float(ntk_block_norms(head).max())
        True
    """
    if "_linear_ntk_norm" not in head.__dict__:  # kept: three forms of one statement ask for it
        factors = [(a.detach(), b.detach()) for a, b in _reduced_factors(head)]
        order = len(factors[0][0]) * head.num_classes
        if order <= DENSE_ORDER:
            value = float(torch.linalg.eigvalsh(sum(torch.kron(a, b) for a, b in factors))[-1])
        else:
            generator = torch.Generator().manual_seed(0)
            start = torch.randn(len(factors[0][0]), head.num_classes, generator=generator, dtype=torch.float64)
            start = start.to(head.features.device)
            value = largest_eigenvalue(lambda m: sum((a @ m @ b for a, b in factors), torch.zeros_like(m)), start)
        head.__dict__["_linear_ntk_norm"] = value
    return head.__dict__["_linear_ntk_norm"]


@checked(steps=integer(least=1), tol=number(least=0, finite=True))
def ntk_norm(model: nn.Module, x: Tensor, steps: int = 60, tol: float = 1e-6) -> float:
    """Largest eigenvalue of the whole network's tangent kernel Θ = JJᵀ at inputs x, all parameters together.

    J is the Jacobian of the flattened outputs by the parameters; it is only ever applied, two reverse passes a Lanczos
    step. The model is evaluated as it stands, in its own precision; its gradients are left alone.

    Args:
        model: any module whose output on ``x`` is one tensor.
        x: inputs.
        steps: most Lanczos steps.
        tol: relative change at which to stop.

    Raises:
        ValueError: the model has nothing to train, cannot take ``x``, or returns something that is not one tensor
            with a gradient.

    Example:
        >>> layer = nn.Linear(2, 3, bias=False)
        >>> round(ntk_norm(layer, torch.tensor([[3.0, 4.0]])), 3)  # J J' = |x|^2 I
        25.0
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError(f"model must have a parameter that requires a gradient; got {type(model).__name__} with none")
    try:
        value = model(x)
    except (RuntimeError, TypeError, IndexError) as error:
        raise ValueError(f"model must take x; got an error for x of {tuple(x.shape)}, {x.dtype}: {error}") from error
    if not isinstance(value, Tensor) or not value.requires_grad:
        raise ValueError(f"model must return one tensor that depends on its parameters; got {type(value).__name__}")
    # Jv by differentiating the pullback u ↦ Jᵀu, which is linear: forward mode would cost seconds to import
    u = torch.zeros_like(value, requires_grad=True)
    pullback = torch.autograd.grad(value, parameters, u, create_graph=True)

    def apply(v: Tensor) -> Tensor:
        back = torch.autograd.grad(value, parameters, v, retain_graph=True)
        return torch.autograd.grad(pullback, u, back, retain_graph=True)[0]

    generator = torch.Generator().manual_seed(0)
    start = torch.randn(value.shape, generator=generator).to(value)
    return largest_eigenvalue(apply, start, steps, tol)


@checked()
def ntk_block(head: LinearHead, layer: int) -> Check:
    """Proposition 5.3, the block: Θ_ℓ = Z_{ℓ−1}ᵀZ_{ℓ−1} ⊗ W_{L:ℓ+1}W_{L:ℓ+1}ᵀ, so ‖Θ_ℓ‖ = ‖Z_{ℓ−1}‖²‖W_{L:ℓ+1}‖².

    The measured side differentiates the network with respect to W_ℓ and knows nothing of the formula.

    Args:
        head: the linear layers and what enters them.
        layer: position of ℓ in the head, 1 … L2.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = ntk_block(head, 1)
        >>> check.statement, check.holds
        ('Proposition 5.3 (block)', True)
    """
    i = _position(head, layer)
    before, rest = head.layers[i].detach(), [w.detach() for w in head.weights[i + 1 :]]

    class Tail(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(head.weights[i].detach())

        def forward(self, z):
            z = z @ self.weight.T
            for w in rest:
                z = z @ w.T
            return z

    measured = ntk_norm(Tail(), before, steps=300, tol=1e-14)
    return Check("Proposition 5.3 (block)", "ntk", "exact", (), measured, ntk_block_norms(head)[i], "==", 1e-8)


@checked(ntk=anything, position=integer(least=0))
def proposition_5_3_sides(head: LinearHead, position: int, ntk: Tensor | float) -> tuple[Tensor, Tensor]:
    """(κ(W_{L:ℓ}), ‖W_ℓ‖√C/(s_K(Y) − ε1)).

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> measured, bound = proposition_5_3_sides(head, 0, ntk_block_norms(head)[0])
        >>> bool(measured <= bound)
        True
    """
    if position >= head.depth:
        raise ValueError(f"position must be 0 … {head.depth - 1}; got {position}")
    number(least=0)("ntk", scalar(ntk.detach() if isinstance(ntk, Tensor) else ntk))
    s = torch.linalg.svdvals(head.tail(head.depth - position))
    gap = head.label_scale - head.eps1
    bound = head.norms[position] * torch.as_tensor(ntk, dtype=torch.float64).sqrt() / gap
    return s[0] / nth(s, head.num_classes), bound if gap > 0 else gap.new_tensor(math.inf)


@checked()
def proposition_5_3(head: LinearHead, layer: int = 1, ntk: float | None = None) -> Check:
    """Proposition 5.3: a tangent kernel with ‖Θ‖_op ≤ C conditions the head, κ(W_{L:ℓ}) ≤ ‖W_ℓ‖√C/(s_K(Y) − ε1).

    Args:
        head: the linear layers and what enters them.
        layer: position of ℓ in the head, 1 … L2; 1 is the whole head A.
        ntk: C. Default ‖Θ_ℓ‖ itself, the strongest. Descent with step η that is stable has C ≈ 2/η − λ.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = proposition_5_3(head)
        >>> check.statement, check.holds
        ('Proposition 5.3', True)
    """
    i = _position(head, layer)
    block = ntk_block_norms(head)[i]
    hypotheses = [head.error_below(head.label_scale, "s_K(Y)")]
    if ntk is not None:
        hypotheses.append(Hypothesis("‖Θ_ℓ‖ ≤ C", block, ntk * (1 + 1e-9), "<="))
    sides = proposition_5_3_sides(head, i, block if ntk is None else ntk)
    return Check("Proposition 5.3", "kappa_head", "simple", tuple(hypotheses), *sides, "<=")


@checked()
def ntk_floor(head: LinearHead, form: str) -> Tensor:
    """The floor under ‖Θ‖ that an ill-conditioned head implies, see :func:`proposition_5_3_floor`.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> float(ntk_floor(head, "sharp")) <= linear_ntk_norm(head)
        True
    """
    k, depth = head.num_classes, head.depth
    if form == "sharp":
        total = head.eps1.new_zeros(())
        for j in range(1, depth + 1):
            top = head.s1 ** (2 * (j - 1)) - telescoping_error(head, j - 1, "sharp")
            total = total + top.clamp_min(0) / (head.sK ** (2 * j) + telescoping_error(head, j, "sharp"))
        return nth(head.feature_singular_values[-1], k) ** 2 * total
    gap = (head.label_scale - head.eps1).clamp_min(0)
    if form == "paper":
        return (gap * head.kappa_head / head.radius) ** 2
    tails = [torch.linalg.svdvals(head.tail(depth - i)) for i in range(depth)]
    kappas = torch.stack([s[0] / nth(s, k) for s in tails])
    return ((gap * kappas / head.norms) ** 2).max()


@checked()
def proposition_5_3_floor(head: LinearHead, form: str = "sharp") -> Check:
    """Proposition 5.3 read backwards: an ill-conditioned head forces a large tangent kernel, hence a small step.

    ‖Θ_linear‖_op ≥

    * paper (reconstructed): ((s_K(Y) − ε1) κ(A)/r)²;
    * simple: max_ℓ ((s_K(Y) − ε1) κ(W_{L:ℓ})/‖W_ℓ‖)²;
    * sharp: s_K(f(X))² Σ_{j=1}^{L2} (s_1^{2(j−1)} − η_{j−1})_+ / (s_K^{2j} + η_j), s_i = s_i(W_L), η_j the telescoping
      lemma's bound for j layers. For a balanced head that fits the labels: (s_K(Y)/s_1)² Σ_j κ(W_L)^{2j}.

    Example:
        >>> from ncutils.theory import random_head
        >>> head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
        >>> check = proposition_5_3_floor(head)
        >>> check.statement, check.holds
        ('Proposition 5.3 (floor)', True)
    """
    known_form(form, ("paper", "simple", "sharp"))
    hypotheses = (head.full_rank(),) if form == "sharp" else (head.error_below(head.label_scale, "s_K(Y)"),)
    measured = linear_ntk_norm(head)
    return Check("Proposition 5.3 (floor)", "ntk", form, hypotheses, measured, ntk_floor(head, form), ">=")


def _position(head: LinearHead, layer: int) -> int:
    if not 1 <= layer <= head.depth:
        raise ValueError(f"layer must be 1 … {head.depth}, a position in the linear head; got {layer}")
    return layer - 1
