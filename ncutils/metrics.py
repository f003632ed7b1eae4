"""Measures of neural collapse, over any leading batch dimensions, computed in float64.

Shapes follow torch's row convention: features ``(..., N, d)``, one shared ``labels`` vector ``(N,)`` holding
``0..K-1``, weights ``(..., out, in)``. Every function returns float64 on the device of its input.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "balancedness",
    "class_means",
    "condition_number",
    "nc1",
    "nc2",
    "nc3",
    "nc4",
    "negativity",
    "operator_norm",
]


def class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Mean feature of each class.

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)`` integers ``0..K-1``, every class present; classes may be uneven.

    Returns:
        ``(..., K, d)``: row ``c`` is the mean of class ``c`` (the columns of the paper's matrix of class means).

    Raises:
        ValueError: shapes that do not match, labels that are not ``0..K-1``, NaN or infinite features.
    """
    features, labels = _checked(features, labels)
    return _means(features, labels)


def nc1(features: Tensor, labels: Tensor, kind: str = "trace") -> Tensor:
    """Within-class variability (NC1); 0 at exact collapse, infinite when all class means coincide.

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.
        kind: ``"trace"``, the paper's ratio tr S_W / tr S_B, with tr S_W the mean over samples of the squared
            distance to the class mean and tr S_B the mean over classes of the squared distance of the class mean
            to the mean of class means; ``"pinv"``, tr(S_W S_B^+)/K (Papyan, Han & Donoho 2020); ``"cdnv"``, the
            class-distance normalised variance averaged over pairs (Galanti, György & Hutter 2021).

    Returns:
        ``(...)``.
    """
    _one_of("kind", kind, ("trace", "pinv", "cdnv"))
    features, labels = _checked(features, labels)
    means = _means(features, labels)
    _at_least_two_classes(means)
    deviations = features - means[..., labels, :]
    centred = means - means.mean(-2, keepdim=True)
    if kind == "trace":
        within = deviations.square().sum(-1).mean(-1)
        return within / centred.square().sum(-1).mean(-1)
    if kind == "pinv":
        # S_B = M'M/K for centred means M (K, d), so tr(S_W S_B^+)/K is the mean squared norm of deviations @ M^+.
        # M has rank at most K-1: its smallest singular value is rounding noise and must not be inverted.
        _, s, vh = torch.linalg.svd(centred, full_matrices=False)
        keep = s > 1e-10 * s[..., :1]
        keep[..., means.shape[-2] - 1 :] = False
        inverse = torch.where(keep, 1 / torch.where(keep, s, torch.ones_like(s)), torch.zeros_like(s))
        value = ((deviations @ vh.mT) * inverse.unsqueeze(-2)).square().sum(-1).mean(-1)
        return torch.where(keep.any(-1), value, torch.full_like(value, torch.inf))
    one_hot = _one_hot(labels, features)
    variances = deviations.square().sum(-1) @ one_hot / one_hot.sum(0)
    distances = torch.cdist(means, means, compute_mode="donot_use_mm_for_euclid_dist").square()
    i, j = torch.triu_indices(*distances.shape[-2:], offset=1, device=features.device)
    return ((variances[..., i] + variances[..., j]) / (2 * distances[..., i, j])).mean(-1)


def nc2(features: Tensor, labels: Tensor, kind: str = "condition") -> Tensor:
    """Geometry of the class means (NC2).

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.
        kind: ``"condition"``, the paper's ratio s_1/s_K of the singular values of the uncentred class-mean matrix (1
            when the means are orthogonal and equally long, infinite when ``d < K``); ``"etf"``, Frobenius distance
            of the normalised Gram matrix of centred means to that of the simplex equiangular tight frame;
            ``"orthogonal"``, the same for uncentred means and an orthogonal frame.

    Returns:
        ``(...)``.
    """
    _one_of("kind", kind, ("condition", "etf", "orthogonal"))
    features, labels = _checked(features, labels)
    means = _means(features, labels)
    _at_least_two_classes(means)
    classes = means.shape[-2]
    if kind == "condition":
        return condition_number(means, rank=classes)
    identity = torch.eye(classes, dtype=means.dtype, device=means.device)
    if kind == "etf":
        means = means - means.mean(-2, keepdim=True)
        target = identity - 1 / classes
    else:
        target = identity
    gram = means @ means.mT
    norm = torch.linalg.matrix_norm(gram, keepdim=True)
    return torch.linalg.matrix_norm(gram / norm - target / torch.linalg.matrix_norm(target))


def nc3(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Alignment with the last layer (NC3): mean cosine between each feature and its class's row of ``weight``.

    Args:
        features: ``(..., N, d)``, the input of the last layer.
        labels: ``(N,)``.
        weight: ``(..., K, d)``, the last layer.

    Returns:
        ``(...)`` in [-1, 1]; 1 at collapse.
    """
    features, labels, weight = _checked_with_weight(features, labels, weight)
    return mean_alignment(features, labels, weight)


def nc4(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """Share of samples that the last layer classifies as the nearest class mean does (NC4); 1 at collapse.

    Args:
        features: ``(..., N, d)``.
        labels: ``(N,)``.
        weight: ``(..., K, d)``.

    Returns:
        ``(...)`` in [0, 1].
    """
    features, labels, weight = _checked_with_weight(features, labels, weight)
    return agreement(features, _means(features, labels), weight)


def balancedness(weight: Tensor, next_weight: Tensor, kind: str = "op") -> Tensor:
    """Distance of neighbouring layers from balance, W_{l+1}' W_{l+1} = W_l W_l' (0 when balanced).

    Args:
        weight: ``(..., m, n)``, layer l.
        next_weight: ``(..., p, m)``, layer l+1.
        kind: ``"op"`` operator norm of the difference, ``"fro"`` its Frobenius norm, ``"relative"`` the operator norm
            over the larger of the two squared operator norms.

    Returns:
        ``(...)``.
    """
    _one_of("kind", kind, ("op", "fro", "relative"))
    weight, next_weight = _finite("weight", weight), _finite("next_weight", next_weight)
    if weight.ndim < 2 or next_weight.ndim < 2 or weight.shape[-2] != next_weight.shape[-1]:
        raise ValueError(
            "balancedness: next_weight must be (..., p, m) for weight (..., m, n); "
            f"got weight {tuple(weight.shape)}, next_weight {tuple(next_weight.shape)}"
        )
    inner, outer = next_weight.mT @ next_weight, weight @ weight.mT
    difference = inner - outer
    if kind == "fro":
        return torch.linalg.matrix_norm(difference)
    value = torch.linalg.eigvalsh(difference).abs().amax(-1)
    if kind == "op":
        return value
    return value / torch.maximum(torch.linalg.eigvalsh(inner)[..., -1], torch.linalg.eigvalsh(outer)[..., -1])


def negativity(preactivations: Tensor) -> Tensor:
    """How far ReLU is from the identity on a layer: ||Z - relu(Z)|| / ||Z|| in operator norm.

    Args:
        preactivations: ``(..., N, d)``.

    Returns:
        ``(...)``; 0 when nothing is negative, 1 when nothing is positive.
    """
    z = _finite("preactivations", preactivations)
    if z.ndim < 2:
        raise ValueError(f"preactivations must be (..., N, d); got shape {tuple(z.shape)}")
    return operator_norm(z.clamp(max=0)) / operator_norm(z)


def condition_number(matrix: Tensor, rank: int | None = None) -> Tensor:
    """Ratio s_1 / s_rank of singular values; infinite where s_rank is 0 or the matrix has fewer than ``rank``.

    Args:
        matrix: ``(..., m, n)``.
        rank: which singular value to divide by; ``min(m, n)`` when not given.

    Returns:
        ``(...)``, at least 1.
    """
    matrix = _finite("matrix", matrix)
    if matrix.ndim < 2:
        raise ValueError(f"matrix must be (..., m, n); got shape {tuple(matrix.shape)}")
    full = min(matrix.shape[-2:])
    rank = full if rank is None else rank
    if rank < 1:
        raise ValueError(f"rank must be at least 1; got {rank}")
    if rank > full:
        return torch.full(matrix.shape[:-2], torch.inf, dtype=torch.float64, device=matrix.device)
    return ratio_of_singular_values(singular_values(matrix), matrix.shape, rank)


def operator_norm(matrix: Tensor) -> Tensor:
    """Largest singular value of ``(..., m, n)``, through the smaller Gram matrix: far cheaper than an SVD if m >> n."""
    matrix = matrix.double()
    gram = matrix.mT @ matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix @ matrix.mT
    return torch.linalg.eigvalsh(gram)[..., -1].clamp(min=0).sqrt()


# --- the formulas alone, on arguments known to be right: where many metrics share their parts


def mean_alignment(features: Tensor, labels: Tensor, weight: Tensor) -> Tensor:
    """:func:`nc3` of float64 arguments, unchecked."""
    return torch.nn.functional.cosine_similarity(features, weight[..., labels, :], dim=-1).mean(-1)


def agreement(features: Tensor, means: Tensor, weight: Tensor) -> Tensor:
    """:func:`nc4` of float64 features and their class means ``(..., K, d)``, unchecked."""
    by_network = (features @ weight.mT).argmax(-1)
    # ||z - m||^2 up to ||z||^2, which is the same for every class; a matrix product instead of N x K differences.
    by_mean = (means.square().sum(-1).unsqueeze(-2) - 2 * features @ means.mT).argmin(-1)
    return (by_network == by_mean).double().mean(-1)


def singular_values(matrix: Tensor) -> Tensor:
    """All ``min(m, n)`` of them, largest first, unchecked; a tall matrix costs LAPACK half of a flat one."""
    return torch.linalg.svdvals(matrix if matrix.shape[-2] >= matrix.shape[-1] else matrix.mT)


def ratio_of_singular_values(s: Tensor, shape: tuple[int, ...], rank: int | None = None) -> Tensor:
    """:func:`condition_number` of a matrix of this shape from its singular values ``(..., min(m, n))``, unchecked."""
    smallest = s[..., -1 if rank is None else rank - 1]
    # A singular value at rounding level is a zero: dividing by it would print a meaningless huge number.
    floor = s[..., 0] * max(shape[-2:]) * torch.finfo(s.dtype).eps
    return torch.where(smallest > floor, s[..., 0] / smallest, torch.inf)


def _means(features: Tensor, labels: Tensor) -> Tensor:
    one_hot = _one_hot(labels, features)
    return (one_hot / one_hot.sum(0)).mT @ features


def _one_hot(labels: Tensor, like: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels).to(like)


def _one_of(argument: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, allowed))}; got {value!r}")


def _at_least_two_classes(means: Tensor) -> None:
    if means.shape[-2] < 2:
        raise ValueError("labels must name at least 2 classes; got 1")


def _finite(argument: str, value: Tensor) -> Tensor:
    if not isinstance(value, Tensor):
        raise ValueError(f"{argument} must be a torch tensor; got {type(value).__name__}")
    if value.numel() == 0:
        raise ValueError(f"{argument} must not be empty; got shape {tuple(value.shape)}")
    if value.is_complex():
        raise ValueError(f"{argument} must be real; got {value.dtype}")
    value = value.detach().double()
    if not torch.isfinite(value).all():
        bad = int((~torch.isfinite(value)).sum())
        raise ValueError(f"{argument} must be finite; got {bad} NaN or infinite of {value.numel()} values")
    return value


def _checked(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    features = _finite("features", features)
    if features.ndim < 2:
        raise ValueError(f"features must be (..., N, d); got shape {tuple(features.shape)}")
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        seen = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"labels must be an integer tensor (N,); got {seen}")
    if labels.shape != features.shape[-2:-1]:
        raise ValueError(
            f"labels must be (N,) with N = {features.shape[-2]} as in features {tuple(features.shape)}; "
            f"got shape {tuple(labels.shape)}"
        )
    labels = labels.to(features.device, torch.int64)
    present = torch.unique(labels)
    if not torch.equal(present, torch.arange(len(present), device=labels.device)):
        raise ValueError(f"labels must be 0..K-1 with every class present; got the classes {present.tolist()[:20]}")
    return features, labels


def _checked_with_weight(features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    features, labels = _checked(features, labels)
    weight = _finite("weight", weight).to(features.device)
    classes = int(labels.max()) + 1
    if weight.ndim < 2 or weight.shape[-2:] != (classes, features.shape[-1]):
        raise ValueError(
            f"weight must be (..., K, d) = (..., {classes}, {features.shape[-1]}); got {tuple(weight.shape)}"
        )
    return features, labels, weight
