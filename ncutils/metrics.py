"""Measures of neural collapse, over any leading batch dimensions, computed in float64.

Shapes follow torch's row convention: features ``(..., N, d)``, one shared ``labels`` vector ``(N,)`` holding
``0..K-1``, weights ``(..., out, in)``. Every function returns float64 on the device of its input.

All metrics of features read from one :class:`ClassStatistics`. Data that do not fit in memory go through it batch by
batch; :func:`ncutils.measure` does so for the layers of a model.

NC1 to NC4 are named after Papyan, Han & Donoho (2020), arXiv:2008.08186; the forms of Definition 2.1 and Section 6 of
arXiv:2410.04887, the paper of this book, are the defaults.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ncutils._arguments import anything, checked, shown, tensor

__all__ = [
    "ClassStatistics",
    "balancedness",
    "class_means",
    "condition_number",
    "equiangularity",
    "equinorm",
    "imbalance",
    "imbalance_matrix",
    "nc1",
    "nc2",
    "nc3",
    "nc4",
    "ncc_accuracy",
    "negativity",
    "numerical_rank",
    "operator_norm",
    "self_duality",
    "stable_rank",
]

_FRAMES = ("etf", "orthogonal")
_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_MOST_CLASSES = 2**20  # a label beyond is a mistake, and would allocate as many rows


class ClassStatistics:
    """Count, mean and scatter of each class, accumulated over batches in float64; memory does not grow with N.

    Samples are taken relative to the first one of their class. Distances to it are about as large as those to the
    class mean, so that nothing cancels: a common offset, or an NC1 of 1e-13, costs no digits. Batches are joined by
    the update of Chan, Golub & LeVeque (1983).

    Args:
        num_classes: K; when not given, the largest label seen so far plus one.
        covariance: accumulate the ``(..., d, d)`` within-class covariance too, which ``nc1("pinv")`` reads. It costs
            N d^2 operations, so ask for it only then; metrics of features in memory do without.

    Attributes:
        count: ``(K,)`` samples of each class; empty before the first update, like the next.
        scatter: ``(..., K)`` sum of squared distances to the class mean.

    Example:
        >>> import torch
        >>> z, y = torch.randn(600, 8), torch.arange(600) % 3
        >>> whole = ClassStatistics().update(z, y)
        >>> parts = ClassStatistics().update(z[:100], y[:100]).merge(ClassStatistics().update(z[100:], y[100:]))
        >>> torch.allclose(whole.nc1(), parts.nc1(), rtol=1e-13)
        True
    """

    @checked()
    def __init__(self, num_classes: int | None = None, *, covariance: bool = False):
        if num_classes is not None and not 1 <= num_classes <= _MOST_CLASSES:
            raise ValueError(f"num_classes must be in 1..{_MOST_CLASSES}; got {num_classes}")
        self.fixed, self.keeps_covariance = num_classes, covariance
        nothing = torch.zeros(0, dtype=torch.float64)
        self.count, self.scatter = nothing, nothing
        # Means are _shift + _offset, (..., K, d): the first sample of the class and the mean distance from it.
        self._shift, self._offset = nothing, nothing
        self._products: Tensor | None = None  # (..., d, d): sum of outer products of the deviations
        self._counted: list[int] = []  # count on the host: looking there does not stop a GPU

    @torch.no_grad()
    def update(self, features: Tensor, labels: Tensor) -> ClassStatistics:
        """Add samples ``(..., N, d)`` with ``labels`` ``(N,)``; returns itself.

        Raises:
            ValueError: shapes that do not match each other or earlier ones, labels outside 0..K-1, NaN or infinite
                features. Nothing has been added then.
        """
        features, labels = _shaped(features, labels)
        counted = _counted(labels, self.fixed)
        if not self._counted:
            self._allocate(features, len(counted))
        wanted = (*self._shift.shape[:-2], "N", self._shift.shape[-1])
        if features.shape[:-2] != self._shift.shape[:-2] or features.shape[-1] != self._shift.shape[-1]:
            raise ValueError(f"features must be {wanted} as before; got {tuple(features.shape)}")
        if features.device != self._shift.device:
            raise ValueError(f"features must be on {self._shift.device} as before; got {features.device}")
        self._grow(len(counted))
        counted += [0] * (len(self._counted) - len(counted))
        shift = self._shift.clone()
        new = [c for c, (before, now) in enumerate(zip(self._counted, counted, strict=True)) if now and not before]
        if new:
            none = labels.new_full((len(counted),), len(labels))
            first = none.scatter_reduce_(0, labels, torch.arange(len(labels), device=labels.device), "amin")
            shift[..., new, :] = features[..., first[new], :].double()
        sums, squares, products = self._about(shift, features, labels)
        if not torch.isfinite(squares.sum()):
            _finite("features", features)
            raise ValueError("features must differ by less than 1e150; their squared distances overflow float64")
        count = torch.tensor(counted, dtype=torch.float64, device=features.device)
        mean = sums / count.clamp(min=1).unsqueeze(-1)
        scatter = (squares - sums.square().sum(-1) / count.clamp(min=1)).clamp(min=0)
        if products is not None:
            products -= sums.mT @ mean
        self._shift = shift
        self._absorb(counted, count, mean, scatter, products)
        return self

    def merge(self, other: ClassStatistics) -> ClassStatistics:
        """The statistics of both samples together, as a new object: what workers saw apart.

        Raises:
            ValueError: other shapes, devices or ``num_classes``, or a covariance kept by one of the two only.
        """
        if not isinstance(other, ClassStatistics):
            raise ValueError(f"other must be a ClassStatistics; got {type(other).__name__}")
        for name in ("fixed", "keeps_covariance"):
            if getattr(self, name) != getattr(other, name):
                argument = "num_classes" if name == "fixed" else "covariance"
                raise ValueError(f"other must have {argument}={getattr(self, name)}; got {getattr(other, name)}")
        if not other._counted or not self._counted:
            return (other if other._counted else self)._copy()
        ours, theirs = ((*s._shift.shape[:-2], "K", s._shift.shape[-1], str(s._shift.device)) for s in (self, other))
        if ours != theirs:
            raise ValueError(f"other must hold means of shape and device {ours}; got {theirs}")
        merged, other = self._copy(), other._copy()
        merged._grow(len(other._counted))
        other._grow(len(merged._counted))
        seen, fresh = merged.count.gt(0).unsqueeze(-1), other.count.gt(0).unsqueeze(-1)
        merged._shift = torch.where(seen, merged._shift, other._shift)
        mean = torch.where(fresh, other._shift - merged._shift + other._offset, 0.0)
        merged._absorb(other._counted, other.count, mean, other.scatter, other._products)
        return merged

    def _absorb(self, counted, count, mean, scatter, products) -> None:
        """Join a batch whose ``mean`` is relative to ``_shift``."""
        total = (self.count + count).clamp(min=1)
        delta, weight = mean - self._offset, self.count * count / total
        self._offset = self._offset + delta * (count / total).unsqueeze(-1)
        self.scatter = self.scatter + scatter + weight * delta.square().sum(-1)
        if products is not None:
            self._products = self._products + products + (delta * weight.unsqueeze(-1)).mT @ delta
        self.count = self.count + count
        self._counted = [a + b for a, b in zip(self._counted, counted, strict=True)]

    def _about(self, shift: Tensor, features: Tensor, labels: Tensor):
        """Sum, sum of squares and, if kept, outer products of the samples about ``shift``, class by class."""
        sums, squares = torch.zeros_like(shift), torch.zeros_like(shift[..., 0])
        products = None if self._products is None else torch.zeros_like(self._products)
        for runs, rows in _blocks(features):
            z, y = features[runs][..., rows, :].double(), labels[rows]
            z = z - shift[runs].index_select(-2, y)
            length = torch.linalg.vector_norm(z, dim=-1).square()
            _add_by_class(sums[runs], z, y, -2)
            _add_by_class(squares[runs], length, y, -1)
            if products is not None:
                products[runs] += z.mT @ z
        return sums, squares, products

    def _allocate(self, features: Tensor, classes: int) -> None:
        *lead, _, dim = features.shape
        new = lambda *shape: torch.zeros(*shape, dtype=torch.float64, device=features.device)  # noqa: E731
        self._shift, self._offset, self.scatter = (
            new(*lead, classes, dim),
            new(*lead, classes, dim),
            new(*lead, classes),
        )
        self.count, self._counted = new(classes), [0] * classes
        self._products = new(*lead, dim, dim) if self.keeps_covariance else None

    def _grow(self, classes: int) -> None:
        more = classes - len(self._counted)
        if more > 0:
            pad = torch.nn.functional.pad
            self._shift, self._offset = pad(self._shift, (0, 0, 0, more)), pad(self._offset, (0, 0, 0, more))
            self.count, self.scatter = pad(self.count, (0, more)), pad(self.scatter, (0, more))
            self._counted = self._counted + [0] * more

    def _copy(self) -> ClassStatistics:
        twin = ClassStatistics(self.fixed, covariance=self.keeps_covariance)
        twin.__dict__.update({k: v.clone() if isinstance(v, Tensor) else v for k, v in self.__dict__.items()})
        return twin

    # --- what has been seen

    def _complete(self, least: int = 1) -> None:
        if not self._counted:
            raise ValueError("features must hold at least one sample; got no update")
        if not all(self._counted):
            raise _wrong_classes([c for c, count in enumerate(self._counted) if count])
        if len(self._counted) < least:
            raise ValueError(f"labels must name at least {least} classes; got {len(self._counted)}")

    @property
    def num_classes(self) -> int:
        """K."""
        self._complete()
        return len(self._counted)

    @property
    def means(self) -> Tensor:
        """Class means ``(..., K, d)``."""
        self._complete()
        return self._shift + self._offset

    @property
    def centred_means(self) -> Tensor:
        """Class means about the mean of class means ``(..., K, d)``, without the digits that an offset would cost."""
        self._complete()
        near = self._shift - self._shift[..., :1, :] + self._offset
        return near - near.mean(-2, keepdim=True)

    def covariance(self) -> Tensor:
        """Within-class covariance S_W ``(..., d, d)``, the mean over samples of (z - mu_y)(z - mu_y)'."""
        self._complete()
        if self._products is None:
            raise ValueError("covariance must be True for this metric; got ClassStatistics(covariance=False)")
        return self._products / self.count.sum()

    # --- metrics

    def nc1(self, kind: str = "trace") -> Tensor:
        """:func:`nc1` of what has been seen, ``(...)``; ``"pinv"`` needs ``covariance=True``."""
        _one_of("kind", kind, ("trace", "pinv", "cdnv"))
        self._complete(2)
        if kind == "trace":
            within = self.scatter.sum(-1) / self.count.sum()
            return _ratio(within, self.centred_means.square().sum((-2, -1)) / self.num_classes)
        if kind == "pinv":
            basis = self.between_basis()
            return (basis @ self.covariance() * basis).sum((-2, -1)) + _infinite_without(basis)
        variances, means = self.scatter / self.count, self.centred_means
        distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
        i, j = torch.triu_indices(self.num_classes, self.num_classes, 1, device=means.device)
        return _ratio((variances[..., i] + variances[..., j]) / 2, distances[..., i, j]).mean(-1)

    def between_basis(self) -> Tensor:
        """Rows B ``(..., r, d)`` with B'B = S_B^+/K: tr(S_W S_B^+)/K is the mean of ||B(z - mu)||^2 over samples."""
        # S_B = M'M/K for centred means M (K, d). M has rank at most K-1: its smallest singular value is rounding
        # noise and must not be inverted.
        means = self.centred_means
        _, s, vh = torch.linalg.svd(means, full_matrices=False)
        keep = s > 1e-10 * s[..., :1]
        keep[..., means.shape[-2] - 1 :] = False
        inverse = torch.where(keep, 1 / torch.where(keep, s, torch.ones_like(s)), torch.zeros_like(s))
        return vh * inverse.unsqueeze(-1)

    def nc2(self, kind: str = "condition") -> Tensor:
        """:func:`nc2` of what has been seen, ``(...)``."""
        _one_of("kind", kind, ("condition", *_FRAMES))
        self._complete(2)
        if kind == "condition":
            return condition_number(self.means, rank=self.num_classes)
        means = self._frame(kind)
        target = torch.eye(self.num_classes, dtype=means.dtype, device=means.device)
        target = target - 1 / self.num_classes if kind == "etf" else target
        gram = means @ means.mT
        norm = torch.linalg.matrix_norm(gram, keepdim=True)
        return torch.linalg.matrix_norm(gram / norm - target / torch.linalg.matrix_norm(target))

    def equinorm(self, kind: str = "etf") -> Tensor:
        """:func:`equinorm` of what has been seen, ``(...)``."""
        lengths = torch.linalg.vector_norm(self._frame(kind), dim=-1)
        return lengths.std(-1, correction=0) / lengths.mean(-1)

    def equiangularity(self, kind: str = "etf") -> Tensor:
        """:func:`equiangularity` of what has been seen, ``(...)``."""
        directions = _unit(self._frame(kind))
        cosines = directions @ directions.mT
        i, j = torch.triu_indices(self.num_classes, self.num_classes, 1, device=cosines.device)
        target = -1 / (self.num_classes - 1) if kind == "etf" else 0.0
        return (cosines[..., i, j] - target).abs().mean(-1)

    def self_duality(self, weight: Tensor, kind: str = "etf") -> Tensor:
        """:func:`self_duality` of what has been seen, ``(...)``."""
        means = self._frame(kind)
        weight = _checked_weight(weight, means)
        norm = torch.linalg.matrix_norm
        return norm(weight / norm(weight, keepdim=True) - means / norm(means, keepdim=True))

    def stable_rank(self) -> Tensor:
        """:func:`stable_rank` of the matrix of class means, ``(...)``."""
        return stable_rank(self.means)

    @checked()
    def numerical_rank(self, tolerance: float = 1e-3) -> Tensor:
        """:func:`numerical_rank` of the matrix of class means, ``(...)``."""
        return numerical_rank(self.means, tolerance)

    @torch.no_grad()
    @checked(features=tensor)
    def nearest(self, features: Tensor) -> Tensor:
        """Class whose mean is nearest to each feature, ``(..., N)`` for ``(..., N, d)``."""
        self._fits("features", features)
        means = self.centred_means
        origin = (self._shift[..., :1, :], self._offset[..., :1, :] - means[..., :1, :])
        lengths = means.square().sum(-1).unsqueeze(-2)
        # ||z - m||^2 up to ||z||^2, which is the same for every class; relative to the centre, where the products
        # are as small as the distances.
        parts = []
        for _, rows in _blocks(features, whole=True):
            z = features[..., rows, :].double() - origin[0] - origin[1]
            parts.append((lengths - 2 * z @ means.mT).argmin(-1))
        return torch.cat(parts, -1)

    @torch.no_grad()
    @checked(basis=tensor, features=tensor, labels=tensor)
    def spread_along(self, basis: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Sum over samples of ||B(z - mu_y)||^2 for ``basis`` B ``(..., r, d)`` and the means seen so far."""
        self._fits("features", features)
        self._fits("basis", basis)
        if labels.shape != features.shape[-2:-1] or labels.is_floating_point() or labels.dtype == torch.bool:
            raise ValueError(f"labels must be ({features.shape[-2]},) integers; got {shown(labels)}")
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= self.num_classes):
            raise ValueError(f"labels must be 0..{self.num_classes - 1}; got {int(labels.min())}..{int(labels.max())}")
        total = torch.zeros(features.shape[:-2], dtype=torch.float64, device=features.device)
        for runs, rows in _blocks(features):
            y = labels[rows]
            z = features[runs][..., rows, :].double() - self._shift[runs].index_select(-2, y)
            z = (z - self._offset[runs].index_select(-2, y)) @ basis[runs].mT
            total[runs] += z.square().sum((-2, -1))
        return total

    def _fits(self, name: str, value: Tensor) -> None:
        wanted = self.means.shape
        if value.ndim != len(wanted) or (*value.shape[:-2], value.shape[-1]) != (*wanted[:-2], wanted[-1]):
            shape = ", ".join(["...", *map(str, wanted[:-2]), "N", str(wanted[-1])][1:])
            raise ValueError(f"{name} must be ({shape}) as what was seen; got {tuple(value.shape)}")

    def _frame(self, kind: str) -> Tensor:
        _one_of("kind", kind, _FRAMES)
        self._complete(2)
        return self.centred_means if kind == "etf" else self.means


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Mean feature of each class.

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)`` integers ``0..K-1``, every class present; classes may be uneven.

    Returns:
        ``(..., K, d)``: row ``c`` is the mean of class ``c`` (the columns of the paper's matrix of class means).

    Raises:
        ValueError: shapes that do not match, labels that are not ``0..K-1``, NaN or infinite features. So do all
            functions here that take features and labels.

    Example:
        >>> class_means(torch.tensor([[0.0, 2.0], [2.0, 2.0], [5.0, 5.0]]), torch.tensor([0, 0, 1]))
        tensor([[1., 2.],
                [5., 5.]], dtype=torch.float64)
    """
    return _statistics(features, labels).means


def nc1(features: Tensor, labels: Tensor, kind: str = "trace") -> Tensor:
    """Within-class variability (NC1); 0 at exact collapse, infinite when all class means coincide.

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.
        kind: ``"trace"``, the ratio tr S_W / tr S_B of Definition 2.1 in arXiv:2410.04887, with tr S_W the mean over
            samples of the squared distance to the class mean and tr S_B the mean over classes of the squared distance
            of the class mean to the mean of class means; ``"pinv"``, tr(S_W S_B^+)/K (Papyan, Han & Donoho 2020,
            arXiv:2008.08186); ``"cdnv"``, the class-distance normalised variance (v_i + v_j) / (2 ||mu_i - mu_j||^2)
            averaged over pairs (Galanti, György & Hutter 2021, arXiv:2112.15121).

    Returns:
        ``(...)``.

    Example:
        >>> z, y = torch.tensor([[-0.5], [0.5], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1])
        >>> [round(nc1(z, y, kind).item(), 12) for kind in ("trace", "pinv", "cdnv")]
        [0.625, 0.3125, 0.15625]
    """
    _one_of("kind", kind, ("trace", "pinv", "cdnv"))
    seen = _statistics(features, labels)
    if kind != "pinv":
        return seen.nc1(kind)
    seen._complete(2)
    basis = seen.between_basis()
    spread = seen.spread_along(basis, features.detach(), labels.to(features.device, torch.int64))
    return spread / features.shape[-2] + _infinite_without(basis)


def nc2(features: Tensor, labels: Tensor, kind: str = "condition") -> Tensor:
    """Geometry of the class means (NC2).

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.
        kind: ``"condition"``, the ratio s_1/s_K of the singular values of the uncentred class-mean matrix
            (Definition 2.1 in arXiv:2410.04887: 1 when the means are orthogonal and equally long, infinite when
            ``d < K``); ``"etf"``, Frobenius distance of the normalised Gram matrix of centred means to that of the
            simplex equiangular tight frame; ``"orthogonal"``, the same for uncentred means and an orthogonal frame.

    Returns:
        ``(...)``. Means that have lost a direction give infinity only as far as the rounding of the features lets them:
        from float32, about 1e7 and more says no more than that.

    Example:
        >>> nc2(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1])).item()
        3.0
    """
    _one_of("kind", kind, ("condition", *_FRAMES))
    return _statistics(features, labels).nc2(kind)


def equinorm(features: Tensor, labels: Tensor, kind: str = "etf") -> Tensor:
    """Spread of the lengths of the class means: std_c ||mu_c|| / mean_c ||mu_c||; 0 when they are equally long.

    One of the two parts of NC2 (Papyan, Han & Donoho 2020, arXiv:2008.08186), with the standard deviation over the K
    classes (divisor K).

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.
        kind: ``"etf"`` for centred class means, ``"orthogonal"`` for uncentred ones.

    Returns:
        ``(...)``.

    Example:
        >>> equinorm(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), "orthogonal").item()
        0.5
    """
    return _statistics(features, labels).equinorm(kind)


def equiangularity(features: Tensor, labels: Tensor, kind: str = "etf") -> Tensor:
    """Spread of the angles of the class means: mean over pairs of |cos(mu_i, mu_j) - t|; 0 when they are equal.

    The other part of NC2 (Papyan, Han & Donoho 2020, arXiv:2008.08186).

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.
        kind: ``"etf"`` for centred class means and t = -1/(K-1), ``"orthogonal"`` for uncentred ones and t = 0.

    Returns:
        ``(...)``.

    Example:
        >>> equiangularity(torch.tensor([[3.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 1]), "orthogonal").item()
        0.0
    """
    return _statistics(features, labels).equiangularity(kind)


def nc3(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Alignment with the last layer (NC3): mean cosine between each feature and its class's row of ``weight``.

    Args:
        features: ``(..., N, d)``, the input of the last layer.
        labels: ``(N,)``.
        weight: ``(..., K, d)``, the last layer.

    Returns:
        ``(...)`` in [-1, 1]; 1 at collapse. A zero feature or row counts as cosine 0.

    Example:
        >>> nc3(torch.eye(2), torch.tensor([0, 1]), torch.tensor([[2.0, 0.0], [0.0, 5.0]])).item()
        1.0
    """
    seen = _statistics(features, labels)
    weight = _checked_weight(weight, seen.means)
    return mean_alignment(features.detach(), labels.to(features.device, torch.int64), weight)


def self_duality(features: Tensor, labels: Tensor, weight: Tensor, kind: str = "etf") -> Tensor:
    """Distance of the last layer from the class means (NC3): || W/||W||_F - M/||M||_F ||_F; 0 at collapse.

    Args:
        features: ``(..., N, d)``, the input of the last layer.
        labels: ``(N,)``.
        weight: ``(..., K, d)``, the last layer.
        kind: ``"etf"`` for centred class means M (Papyan, Han & Donoho 2020, arXiv:2008.08186), ``"orthogonal"`` for
            uncentred ones, which a last layer without bias follows.

    Returns:
        ``(...)`` in [0, 2].

    Example:
        >>> round(self_duality(torch.eye(2), torch.tensor([0, 1]), 7 * torch.eye(2), "orthogonal").item(), 12)
        0.0
    """
    return _statistics(features, labels).self_duality(weight, kind)


def nc4(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Share of samples that the last layer classifies as the nearest class mean does (NC4); 1 at collapse.

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.
        weight: ``(..., K, d)``.

    Returns:
        ``(...)`` in [0, 1].

    Example:
        >>> nc4(torch.eye(2), torch.tensor([0, 1]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])).item()
        0.0
    """
    seen = _statistics(features, labels)
    return agreement(features.detach(), seen, _checked_weight(weight, seen.means))


def ncc_accuracy(features: Tensor, labels: Tensor) -> Tensor:
    """Accuracy of the nearest class centre: mean over samples of [argmin_c ||z - mu_c|| = y].

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.

    Returns:
        ``(...)`` in [0, 1].

    Example:
        >>> ncc_accuracy(torch.tensor([[0.0], [1.0], [9.0], [4.0]]), torch.tensor([0, 0, 1, 1])).item()
        1.0
    """
    predicted = _statistics(features, labels).nearest(features.detach())
    return (predicted == labels.to(predicted.device)).double().mean(-1)


def imbalance(weight: Tensor, next_weight: Tensor, kind: str = "op") -> Tensor:
    """Distance of neighbouring layers from balance, W_{l+1}' W_{l+1} - W_l W_l' (0 when balanced).

    Args:
        weight: ``(..., m, n)``, layer l.
        next_weight: ``(..., p, m)``, layer l+1.
        kind: ``"op"`` operator norm of the difference, ``"fro"`` its Frobenius norm, ``"relative"`` the operator norm
            over the larger of the two squared operator norms (0 for two zero layers).

    Returns:
        ``(...)``.

    Example:
        >>> imbalance(torch.eye(2), 2 * torch.eye(2)).item()
        3.0
    """
    _one_of("kind", kind, ("op", "fro", "relative"))
    weight, next_weight = _finite("weight", weight), _finite("next_weight", next_weight)
    if weight.ndim < 2 or next_weight.ndim < 2 or weight.shape[-2] != next_weight.shape[-1]:
        raise ValueError(
            "next_weight must be (..., p, m) for weight (..., m, n); "
            f"got weight {tuple(weight.shape)}, next_weight {tuple(next_weight.shape)}"
        )
    _leading("next_weight", next_weight, "weight", weight)
    difference = imbalance_matrix(weight, next_weight)
    if not torch.isfinite(difference.sum()):
        raise ValueError("weight, next_weight must be below 1e150; their squares are NaN or infinite")
    if kind == "fro":
        return torch.linalg.matrix_norm(difference)
    value = torch.linalg.eigvalsh(difference).abs().amax(-1)
    if kind == "op":
        return value
    largest = [torch.linalg.eigvalsh(gram)[..., -1] for gram in (next_weight.mT @ next_weight, weight @ weight.mT)]
    size = torch.maximum(*largest)
    return torch.where(size > 0, value / size, 0.0)


def imbalance_matrix(weight, next_weight):
    """D_l = W_{l+1}' W_{l+1} - W_l W_l', ``(..., m, m)``, of arrays or tensors ``(..., m, n)`` and ``(..., p, m)``.

    The arguments are not checked.

    Example:
        >>> imbalance_matrix(torch.eye(2), 2 * torch.eye(2)).diagonal().tolist()
        [3.0, 3.0]
    """
    return next_weight.mT @ next_weight - weight @ weight.mT


def balancedness(weight: Tensor, next_weight: Tensor, kind: str = "op") -> Tensor:
    """The old name of :func:`imbalance`, and still that of its column in the frames of an experiment.

    Example:
        >>> balancedness(torch.eye(2), 2 * torch.eye(2)).item()
        3.0
    """
    return imbalance(weight, next_weight, kind)


def negativity(preactivations: Tensor) -> Tensor:
    """How far ReLU is from the identity on a layer: ||Z - relu(Z)|| / ||Z|| in operator norm.

    Args:
        preactivations: ``(..., N, d)``.

    Returns:
        ``(...)``; 0 when nothing is negative (zeros included), 1 when nothing is positive.

    Example:
        >>> negativity(torch.tensor([[2.0, 0.0], [0.0, -1.0]])).item()
        0.5
    """
    z = _finite("preactivations", preactivations)
    if z.ndim < 2:
        raise ValueError(f"preactivations must be (..., N, d); got shape {tuple(z.shape)}")
    whole = operator_norm(z)
    return torch.where(whole > 0, operator_norm(z.clamp(max=0)) / whole, 0.0)


@checked(matrix=anything)
def condition_number(matrix: Tensor, rank: int | None = None) -> Tensor:
    """Ratio s_1 / s_rank of singular values; infinite where s_rank is 0 or the matrix has fewer than ``rank``.

    Args:
        matrix: ``(..., m, n)``.
        rank: which singular value to divide by; ``min(m, n)`` when not given.

    Returns:
        ``(...)``, at least 1.

    Example:
        >>> condition_number(torch.diag(torch.tensor([6.0, -3.0, 1.0]))).item()
        6.0
    """
    matrix = _matrix(matrix)
    full = min(matrix.shape[-2:])
    rank = full if rank is None else rank
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if rank > full:
        return torch.full(matrix.shape[:-2], torch.inf, dtype=torch.float64, device=matrix.device)
    return ratio_of_singular_values(singular_values(matrix), matrix.shape, rank)


def stable_rank(matrix: Tensor) -> Tensor:
    """||A||_F^2 / ||A||^2 of ``(..., m, n)``: between 1 and the rank, not moved by small singular values; 0 for zeros.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0]))).item()
        1.25
    """
    squares = singular_values(_matrix(matrix)).square()
    return torch.where(squares[..., 0] > 0, squares.sum(-1) / squares[..., 0], 0.0)


@checked()
def numerical_rank(matrix: Tensor, tolerance: float = 1e-3) -> Tensor:
    """How many singular values of ``(..., m, n)`` exceed ``tolerance`` times the largest, as float64.

    Example:
        >>> numerical_rank(torch.diag(torch.tensor([2.0, 1.0, 1e-5]))).item()
        2.0
    """
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be in [0, 1); got {tolerance}")
    s = singular_values(_matrix(matrix))
    return (s > tolerance * s[..., :1]).double().sum(-1)


@checked(matrix=tensor)
def operator_norm(matrix: Tensor) -> Tensor:
    """Largest singular value of ``(..., m, n)``, through the smaller Gram matrix: far cheaper than an SVD if m >> n.

    Entries below 1e-160 count as 0, for their squares are.

    Example:
        >>> operator_norm(torch.diag(torch.tensor([3.0, -4.0]))).item()
        4.0
    """
    if matrix.ndim < 2 or not matrix.numel():
        raise ValueError(f"matrix must be (..., m, n), not empty; got shape {tuple(matrix.shape)}")
    matrix = matrix.double()
    gram = matrix.mT @ matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix @ matrix.mT
    if not torch.isfinite(gram.sum()):  # K^2 numbers, not N d
        raise ValueError("matrix must be finite and below 1e150; its squares are NaN or infinite")
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()


# --- the formulas alone, on arguments known to be right: where many metrics share their parts


def mean_alignment(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """:func:`nc3` unchecked, with ``weight`` in float64."""
    return alignments(features, labels, weight) / features.shape[-2]


def alignments(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Sum over samples of the cosine of feature and row of ``weight``, ``(...)``, unchecked."""
    rows = _unit(weight)
    # By class: the sum of unit features times the unit row. A product with N rows of weight would cost a gather.
    lead = torch.broadcast_shapes(features.shape[:-2], weight.shape[:-2])
    total = torch.zeros(lead, dtype=torch.float64, device=features.device)
    for _, samples in _blocks(features, whole=True):
        units = torch.zeros(*features.shape[:-2], *weight.shape[-2:], dtype=torch.float64, device=features.device)
        _add_by_class(units, _unit(features[..., samples, :].double()), labels[samples], -2)
        total = total + (units * rows).sum((-2, -1))
    return total


def agreement(features: Tensor, seen: ClassStatistics, weight: Tensor) -> Tensor:
    """:func:`nc4` with the class means ``seen``, unchecked."""
    parts = [(features[..., rows, :].double() @ weight.mT).argmax(-1) for _, rows in _blocks(features, whole=True)]
    return (torch.cat(parts, -1) == seen.nearest(features)).double().mean(-1)


def singular_values(matrix: Tensor) -> Tensor:
    """All ``min(m, n)`` of them, largest first, unchecked; a tall matrix costs LAPACK half of a flat one."""
    return torch.linalg.svdvals(matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT)


def ratio_of_singular_values(s: Tensor, shape: tuple[int, ...], rank: int | None = None) -> Tensor:
    """:func:`condition_number` of a matrix of this shape from its singular values ``(..., min(m, n))``, unchecked."""
    smallest = s[..., -1 if rank is None else rank - 1]
    # A singular value at rounding level is a zero: dividing by it would print a meaningless huge number.
    floor = s[..., 0] * max(shape[-2:]) * torch.finfo(s.dtype).eps
    return torch.where(smallest > floor, s[..., 0] / smallest, torch.inf)


def _statistics(features: Tensor, labels: Tensor) -> ClassStatistics:
    seen = ClassStatistics().update(features, labels)
    seen._complete()
    return seen


def _blocks(features: Tensor, whole: bool = False) -> Iterator[tuple]:
    """Parts of ``(..., N, d)`` small enough to stay in a processor's cache as float64: indices of runs, and of rows.

    ``whole`` never splits the leading dimensions.
    """
    *lead, samples, dim = features.shape
    size = 2**26 if features.is_cuda else 2**16
    runs: list = [...]
    if not whole and not features.is_cuda and math.prod(lead) * dim * min(samples, 256) > size:
        runs, lead = list(_every_index(lead)), []
    rows = max(1, size // max(1, math.prod(lead) * dim))
    for run in runs:
        for start in range(0, samples, rows):
            yield run, slice(start, start + rows)


def _every_index(shape: list[int]) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(n) for n in shape))


def _add_by_class(total: Tensor, values: Tensor, labels: Tensor, dim: int) -> None:
    """total[..., c, ...] += the sum of ``values`` of class c along ``dim``, -2 or -1."""
    if not total.is_cuda:
        total.index_add_(dim, labels, values)
        return
    # Atomic additions come in any order on a GPU: a product with the one-hot labels gives the same bits each time.
    one_hot = torch.nn.functional.one_hot(labels, total.shape[dim]).double()
    total += one_hot.mT @ values if dim == -2 else values @ one_hot


def _ratio(within: Tensor, between: Tensor) -> Tensor:
    """Infinite where the class means coincide, whatever the variance."""
    return torch.where(between > 0, within / between, torch.inf)


def _infinite_without(basis: Tensor) -> Tensor:
    """0, or infinite where the class means coincide and ``basis`` is empty."""
    return torch.where((basis != 0).any(-1).any(-1), 0.0, torch.inf).double()


def _unit(vectors: Tensor) -> Tensor:
    """Rows of length 1; zeros stay zeros."""
    length = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / torch.where(length > 0, length, 1.0)


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def _real(argument: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{argument} must be a torch tensor; got {type(value).__name__}")
    if value.numel() == 0:
        raise ValueError(f"{argument} must not be empty; got shape {tuple(value.shape)}")
    if value.is_complex():
        raise ValueError(f"{argument} must be real; got {value.dtype}")
    return value.detach()


def _finite(argument: str, value: Tensor) -> Tensor:
    value = _real(argument, value).double()
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{argument} must be finite; got {bad} NaN or infinite of {value.numel()} values")
    return value


def _matrix(matrix: Tensor) -> Tensor:
    matrix = _finite("matrix", matrix)
    if matrix.ndim < 2:
        raise ValueError(f"matrix must be (..., m, n); got shape {tuple(matrix.shape)}")
    return matrix


def _shaped(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    features = _real("features", features)
    if features.ndim < 2:
        raise ValueError(f"features must be (..., N, d); got shape {tuple(features.shape)}")
    if not isinstance(labels, Tensor) or labels.dtype not in _INTEGERS:
        seen = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be an integer tensor (N,); got {seen}")
    if labels.shape != features.shape[-2:-1]:
        raise ValueError(
            f"labels must be (N,) with N = {features.shape[-2]} as in features {tuple(features.shape)}; "
            f"got shape {tuple(labels.shape)}"
        )
    return features, labels.to(features.device, torch.int64)


def _counted(labels: Tensor, classes: int | None) -> list[int]:
    """How often each class occurs."""
    low, high = torch.aminmax(labels)
    low, high = torch.stack([low, high]).tolist()
    if low < 0 or high >= (classes or _MOST_CLASSES):
        raise _wrong_classes(torch.unique(labels).tolist(), classes)
    return torch.bincount(labels, minlength=classes or 0).tolist()


def _wrong_classes(present: list[int], classes: int | None = None) -> ValueError:
    last = "K-1" if classes is None else classes - 1
    return ValueError(f"labels must be 0..{last} with every class present; got the classes {present[:20]}")


def _checked_weight(weight: Tensor, means: Tensor) -> Tensor:
    weight = _finite("weight", weight).to(means.device)
    if weight.ndim < 2 or weight.shape[-2:] != means.shape[-2:]:
        classes, dim = means.shape[-2:]
        raise ValueError(f"weight must be (..., K, d) = (..., {classes}, {dim}); got {tuple(weight.shape)}")
    _leading("weight", weight, "features", means)
    return weight


def _leading(argument: str, value: Tensor, other: str, known: Tensor) -> None:
    """What stands before the last two dimensions must fit together."""
    ours, theirs = value.shape[:-2], known.shape[:-2]
    if any(a != b and 1 not in (a, b) for a, b in zip(reversed(ours), reversed(theirs), strict=False)):
        raise ValueError(
            f"{argument} must have leading dimensions {tuple(theirs)}, those of {other}; got {tuple(ours)}"
        )
