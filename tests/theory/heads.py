"""Linear heads for the tests, balanced to random, well to badly conditioned; and the same in NumPy, by definition."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import strategies as st

from ncutils.theory import LinearHead, random_head

seeds = st.integers(0, 2**31 - 1)


@st.composite
def linear_heads(draw, max_noise=0.3):
    """Near balance or far from it, nearly singular or not, K = 2 … 5, one sample a class (K = N) or more."""
    generator = torch.Generator().manual_seed(draw(seeds))
    classes = draw(st.integers(2, 5))
    depth = draw(st.integers(2, 5))
    noise = draw(st.sampled_from([n for n in (0.0, 1e-6, 1e-3, 0.03, 0.3, 2.0) if n <= max_noise]))
    spread = draw(st.sampled_from([(1.0, 1.0), (0.5, 1.5), (0.9, 3.0), (0.02, 1.0)]))
    weights, features, y = random_head(
        generator,
        num_classes=classes,
        num_linear=depth,
        samples_per_class=draw(st.integers(1, 4)),
        extra_width=draw(st.sampled_from([0, 1, 6])),
        noise=noise,
        spread=spread,
    )
    if draw(st.booleans()):  # a wide, flat or uneven head: its first layer sees features of another width
        width = draw(st.integers(1, 12))
        lift = torch.linalg.qr(torch.randn(max(width, features.shape[1]), features.shape[1], generator=generator)).Q
        lift = lift.double()
        weights, features = [weights[0] @ lift.T, *weights[1:]], features @ lift.T
    return LinearHead(weights, features, y)


def exact_head(seed=0, **keywords):
    """Balanced and interpolating to rounding."""
    return LinearHead(*random_head(torch.Generator().manual_seed(seed), noise=0.0, **keywords))


def uneven_head(seed=0, noise=1e-3, depth=4, spread=(0.8, 1.4)):
    """A head without symmetry: classes of 2, 4 and 3 samples in mixed order, a width of its own for every layer."""
    generator = torch.Generator().manual_seed(seed)
    weights, features, y = random_head(generator, 3, depth, 4, 1, noise=noise, spread=spread)
    kept = torch.tensor([0, 4, 8, 5, 1, 9, 6, 10, 7])
    lifts = [
        torch.linalg.qr(torch.randn(4 + depth - i, 4, generator=generator).double()).Q for i in range(depth)
    ]  # the widths fall from 4 + depth to 5
    lifts.append(torch.eye(3).double())
    weights = [after @ w @ before.T for w, before, after in zip(weights, lifts, lifts[1:], strict=False)]
    return LinearHead(weights, features[kept] @ lifts[0].T, y[kept])


def singular(matrix):
    return np.linalg.svd(matrix, compute_uv=False)


def norm(matrix):
    return np.linalg.norm(matrix, 2)


def in_columns(head):
    """The same head as in the paper: samples are columns, everything follows from the definitions."""
    w = [matrix.detach().numpy() for matrix in head.weights]
    z = [head.features.detach().numpy().T]
    for matrix in w:
        z.append(matrix @ z[-1])
    labels = head.y.numpy()
    k, n = len(w[-1]), len(labels)
    sizes = [int((labels == c).sum()) for c in range(k)]

    def means(features):
        return np.stack([features[:, labels == c].mean(1) for c in range(k)], 1)

    def centred(features):
        return features - means(features)[:, labels]

    def tail(count):
        product = np.eye(k)
        for matrix in w[::-1][:count]:
            product = product @ matrix
        return product

    error = z[-1] - np.eye(k)[:, labels]
    return SimpleNamespace(
        w=w,
        z=z,
        labels=labels,
        k=k,
        n=n,
        depth=len(w),
        sizes=sizes,
        error=error,
        eps1=np.sqrt((error**2).sum()),
        scale=math.sqrt(min(sizes)),
        gaps=[norm(b.T @ b - a @ a.T) for a, b in itertools.pairwise(w)],
        norms=[norm(matrix) for matrix in w],
        means=means,
        centred=centred,
        tail=tail,
        s=singular(w[-1]),
        kappa=singular(w[-1])[0] / singular(w[-1])[k - 1],
        product=singular(tail(len(w))),
    )
