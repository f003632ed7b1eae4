"""The linear layers that end a network, and the small linear algebra that the statements share.

Everything is float64. Features are rows, ``(N, n)``; weights are ``(out, in)``, first linear layer first. What
:class:`LinearHead` measures are tensors that keep their autograd graph, so every bound can be climbed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from ncutils._arguments import anything, array, as_tensor, checked, integer, many
from ncutils.metrics import imbalance_matrix
from ncutils.theory.checks import Hypothesis

__all__ = ["LinearHead"]

# Below this ratio s_K/s_1 a float64 matrix has no trustworthy K-th singular value: it counts as rank-deficient.
RANK_THRESHOLD = 1e-12
# Relative rounding error that float64 may leave in the products of a head, with two digits to spare.
ROUNDING = 1e-13
# Statements square products of all weights and the features: their logarithm must leave room below float64's 709.
LARGEST_LOGARITHM = 300.0


def op_norm(matrix: Tensor) -> Tensor:
    """Largest singular value."""
    return torch.linalg.svdvals(matrix)[0]


def sum_of_squares(weights: Sequence[Tensor]) -> Tensor:
    """Σ_ℓ ‖W_ℓ‖_F², at least one matrix."""
    return sum((w.square().sum() for w in weights), weights[0].new_zeros(()))


class LinearHead:
    """The linear layers that end one network, the features that enter them, and what is measured on both.

    Args:
        weights: W_{L1+1}, …, W_L, at least two, each ``(out, in)``; the last has K rows.
        features: Z_{L1}, ``(N, n)``, the features entering the first linear layer.
        y: labels ``(N,)``, integers 0..K−1, every class present. Classes may differ in size: then s_K(Y)² is the
            smallest one, and class means are means over the class.

    Tensors are converted to float64 and keep their autograd graph; attributes are computed once, on demand.

    Raises:
        ValueError: fewer than two layers, shapes that do not chain, labels that are missing or out of range, or
            entries that are not finite, or so large that products of them are not.

    Example:
        >>> head = LinearHead([torch.eye(2), torch.eye(2)], 2 * torch.eye(2), torch.tensor([0, 1]))
        >>> head.depth, head.num_classes, round(head.eps1.item(), 6)
        (2, 2, 1.414214)
    """

    def __init__(self, weights: Sequence[Tensor], features: Tensor, y: Tensor):
        many(array)("weights", weights)
        self.weights = tuple(_float64(w, f"weights[{i}]") for i, w in enumerate(weights))
        self.features = _float64(features, "features")
        if len(self.weights) < 2:
            raise ValueError(f"weights must be at least 2; got {len(self.weights)} linear layer(s)")
        width = self.features.shape[1]
        for i, w in enumerate(self.weights):
            if w.shape[1] != width:
                raise ValueError(f"weights[{i}] must be (out, {width}) for what enters it; got shape {tuple(w.shape)}")
            width = w.shape[0]
        self.y = _checked_labels(y, num_samples=self.features.shape[0], num_classes=width)
        largest = max(1.0, *(float(w.detach().norm()) for w in self.weights))
        powers = len(self.weights) * math.log(largest) + math.log(max(1.0, float(self.features.detach().norm())))
        if not powers < LARGEST_LOGARITHM:
            raise ValueError(
                f"weights and features must have products whose squares float64 holds; got a largest weight of norm "
                f"{largest:.3g} in {len(self.weights)} layers and features of norm {float(self.features.norm()):.3g}"
            )

    @classmethod
    @checked(batch_size=integer(least=1), y=anything)
    def of(cls, model, x, y: Tensor | None = None, *, batch_size: int = 2000) -> LinearHead:
        """The linear head of a model and the features entering it: arguments and errors of :func:`certify`."""
        from ncutils.theory.certify import extract  # a head knows nothing of models otherwise

        weights, features, labels, _ = extract(model, x, y, batch_size)
        return cls(weights, features, labels.to(features.device))

    # --- sizes

    @property
    def depth(self) -> int:
        """L2, the number of linear layers."""
        return len(self.weights)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.weights[-1].shape[0]

    @property
    def num_samples(self) -> int:
        """N."""
        return self.features.shape[0]

    # --- labels and error

    @cached_property
    def counts(self) -> Tensor:
        """Samples a class, (K,)."""
        return torch.bincount(self.y, minlength=self.num_classes)

    @cached_property
    def one_hot(self) -> Tensor:
        """Yᵀ, (N, K)."""
        return torch.nn.functional.one_hot(self.y, self.num_classes).to(self.features)

    @property
    def label_scale(self) -> float:
        """s_K(Y), the square root of the smallest class; √(N/K) where classes are equally large."""
        return math.sqrt(int(self.counts.min()))

    @cached_property
    def layers(self) -> tuple[Tensor, ...]:
        """Z_{L1}, …, Z_L as rows: L2 + 1 tensors (N, n_ℓ)."""
        out = [self.features]
        for w in self.weights:
            out.append(out[-1] @ w.T)
        return tuple(out)

    @property
    def output(self) -> Tensor:
        """f(X) = Z_L, (N, K)."""
        return self.layers[-1]

    @cached_property
    def error(self) -> Tensor:
        """E = f(X) − Y, (N, K)."""
        return self.output - self.one_hot

    @cached_property
    def eps1(self) -> Tensor:
        """ε1 = ‖E‖_F."""
        return self.error.norm()

    @cached_property
    def mean_error(self) -> Tensor:
        """Ē, (K, K): row c is the mean error of class c."""
        return self.class_means(self.error)

    # --- class statistics of any (N, n)

    def class_means(self, z: Tensor) -> Tensor:
        """Z̄ as rows, (K, n)."""
        return self.one_hot.T @ z / self.counts.to(z)[:, None]

    def within(self, z: Tensor) -> Tensor:
        """Z − Z̄Y: every sample minus its class mean, (N, n)."""
        return z - self.class_means(z)[self.y]

    def nc1(self, z: Tensor) -> Tensor:
        """tr Σ_W / tr Σ_B."""
        means = self.class_means(z)
        between = (means - means.mean(0)).square().sum() / self.num_classes
        return self.within(z).square().sum() / self.num_samples / between

    def nc2(self, z: Tensor) -> Tensor:
        """s_1/s_K of the class-mean matrix."""
        return condition(torch.linalg.svdvals(self.class_means(z)), self.num_classes)

    def nc3(self, z: Tensor, w: Tensor) -> Tensor:
        """Mean cosine between a sample and the row of w that belongs to its class."""
        return torch.nn.functional.cosine_similarity(z, w[self.y], dim=1, eps=1e-300).mean()

    # --- the layers

    @cached_property
    def singular_values(self) -> tuple[Tensor, ...]:
        """Singular values of each W_ℓ, descending."""
        return tuple(torch.linalg.svdvals(w) for w in self.weights)

    @cached_property
    def norms(self) -> Tensor:
        """‖W_ℓ‖_op, (L2,)."""
        return torch.stack([s[0] for s in self.singular_values])

    @cached_property
    def feature_singular_values(self) -> tuple[Tensor, ...]:
        """Singular values of each Z_ℓ, ℓ = L1, …, L, descending."""
        return tuple(torch.linalg.svdvals(z) for z in self.layers)

    @cached_property
    def feature_norms(self) -> Tensor:
        """‖Z_ℓ‖_op for ℓ = L1, …, L, (L2 + 1,)."""
        return torch.stack([s[0] for s in self.feature_singular_values])

    @cached_property
    def imbalances(self) -> Tensor:
        """‖D_ℓ‖_op, D_ℓ = W_{ℓ+1}ᵀW_{ℓ+1} − W_ℓW_ℓᵀ, for ℓ = L1+1, …, L−1, (L2 − 1,)."""
        pairs = zip(self.weights, self.weights[1:], strict=False)
        return torch.stack([op_norm(imbalance_matrix(a, b)) for a, b in pairs])

    @cached_property
    def eps2(self) -> Tensor:
        """ε2 = max_ℓ ‖D_ℓ‖_op."""
        return self.imbalances.max()

    @cached_property
    def radius(self) -> Tensor:
        """The paper's one r: the largest of ‖Z_{L−2}‖, ‖Z_{L−1}‖ and all ‖W_ℓ‖ (operator norms)."""
        return torch.cat([self.norms, self.feature_norms[-3:-1]]).max()

    @cached_property
    def s1(self) -> Tensor:
        """s_1(W_L)."""
        return self.singular_values[-1][0]

    @cached_property
    def sK(self) -> Tensor:
        """s_K(W_L), zero if W_L has fewer than K columns."""
        return nth(self.singular_values[-1], self.num_classes)

    @cached_property
    def kappa_last(self) -> Tensor:
        """κ(W_L) = s_1/s_K."""
        return self.s1 / self.sK

    @cached_property
    def row_space(self) -> Tensor:
        """The projection W_L⁺W_L on the row space of W_L, (n_{L−1}, n_{L−1})."""
        return self.pseudo_inverse @ self.weights[-1]

    @cached_property
    def pseudo_inverse(self) -> Tensor:
        """W_L⁺, (n_{L−1}, K)."""
        return torch.linalg.pinv(self.weights[-1])

    def outside(self, z: Tensor) -> Tensor:
        """P⊥z: the part of features z (…, n_{L−1}) that W_L does not see."""
        return z - z @ self.row_space

    def tail(self, count: int) -> Tensor:
        """W_{L:L−count+1}, the product of the last ``count`` layers; the identity for 0."""
        out = torch.eye(self.num_classes).to(self.features)
        for w in reversed(self.weights[self.depth - count :]):
            out = out @ w
        return out

    @cached_property
    def product_singular_values(self) -> Tensor:
        """Singular values of A = W_{L:L1+1}."""
        return torch.linalg.svdvals(self.tail(self.depth))

    @cached_property
    def kappa_head(self) -> Tensor:
        """κ(A) = s_1(A)/s_K(A)."""
        return condition(self.product_singular_values, self.num_classes)

    # --- recurring hypotheses

    def error_below(self, threshold: float, name: str, sense: str = "<") -> Hypothesis:
        return Hypothesis(f"‖E‖_F {'<' if sense == '<' else '≤'} {name}", self.eps1, threshold, sense)

    def equal_classes(self) -> Hypothesis:
        """Classes of one size, which the paper assumes."""
        return Hypothesis("largest class ≤ smallest class", int(self.counts.max()), int(self.counts.min()), "<=")

    def full_rank(self) -> Hypothesis:
        """rank W_L = K, numerically."""
        return Hypothesis("rank W_L = K: s_K(W_L)/s_1(W_L)", self.sK / self.s1, RANK_THRESHOLD, ">")


# --- small linear algebra


def largest_eigenvalue(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int = 200, tol: float = 1e-12) -> float:
    """Largest eigenvalue of a symmetric positive semi-definite map, by Lanczos with full reorthogonalisation.

    Args:
        apply: the map, on tensors of ``start``'s shape.
        start: a vector not orthogonal to the top eigenspace; random is fine.
        steps: most applications of the map.
        tol: stop when the value changes by less than this, relative, twice in a row.

    Returns:
        The eigenvalue; NaN where the map gives NaN or infinity.
    """
    basis, alphas = [], []
    betas: list[float] = []
    q, value, quiet = start / start.norm(), 0.0, 0
    for _ in range(min(steps, start.numel())):
        basis.append(q.flatten())
        v = apply(q).flatten()
        if not torch.isfinite(v).all():
            return math.nan
        alphas.append(float(torch.dot(v, basis[-1])))
        stack = torch.stack(basis)
        for _ in range(2):  # once is not enough in floating point
            v = v - stack.T @ (stack @ v)
        t = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        if betas:
            off = torch.tensor(betas, dtype=torch.float64)
            t = t + torch.diag(off, 1) + torch.diag(off, -1)
        new = float(torch.linalg.eigvalsh(t)[-1])
        quiet = quiet + 1 if abs(new - value) <= tol * abs(new) else 0
        value = new
        beta = float(v.norm())
        if quiet == 2 or beta <= 1e-14 * max(abs(value), 1e-300):
            break
        betas.append(beta)
        q = (v / beta).reshape(start.shape)
    return value


def nth(singular_values: Tensor, n: int) -> Tensor:
    """The n-th singular value, zero beyond the last."""
    if n <= singular_values.shape[0]:
        return singular_values[n - 1]
    return singular_values.new_zeros(())


def condition(singular_values: Tensor, n: int) -> Tensor:
    return singular_values[0] / nth(singular_values, n)


# --- arguments


def known_form(form: str, known: tuple[str, ...]) -> None:
    if form not in known:
        raise ValueError(f"form must be one of {known}; got {form!r}")


def _float64(value, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{name} must be a torch tensor; got {type(value).__name__}")
    if value.ndim != 2:
        raise ValueError(f"{name} must have two dimensions; got shape {tuple(value.shape)}")
    value = value.to(torch.float64)
    if not torch.isfinite(value.detach()).all():
        raise ValueError(f"{name} must be finite; got NaN or infinite entries")
    return value


def _checked_labels(y: Tensor, num_samples: int, num_classes: int) -> Tensor:
    y = as_tensor("y", y)
    if y.ndim != 1 or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError(f"y must be integer labels of shape (N,); got {y.dtype} of shape {tuple(y.shape)}")
    if y.shape[0] != num_samples:
        raise ValueError(f"y must be {num_samples} labels, one a sample; got {y.shape[0]}")
    if num_samples == 0:
        raise ValueError("y must be one label or more; got no samples")
    if num_classes < 2:
        raise ValueError(f"weights: the last layer has {num_classes} output(s), expected K ≥ 2 classes")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= num_classes:
        raise ValueError(
            f"y must be 0 … {num_classes - 1}, the last layer has K = {num_classes} outputs; "
            f"got labels from {low} to {high}"
        )
    counts = torch.bincount(y.long(), minlength=num_classes)
    if int(counts.min()) == 0:
        missing = (counts == 0).nonzero().flatten().tolist()
        raise ValueError(
            f"y must have samples of every class 0 … {num_classes - 1}, one for each output; got none of {missing}"
        )
    return y.long()
