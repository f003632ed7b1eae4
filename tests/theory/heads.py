"""Instances for the property tests: linear heads from balanced to random, well to badly conditioned."""

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
