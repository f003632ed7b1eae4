"""Trying to break an inequality: gradient ascent on how much of its bound an instance uses up.

A check on random instances says little, since random instances are rarely near equality. :func:`attack` starts from
one and climbs; an inequality that is false, or whose constant is too small, does not survive it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ncutils._arguments import checked, instance, integer, many, number
from ncutils.theory.checks import RELATIVE_TOLERANCE
from ncutils.theory.head import LinearHead

__all__ = ["Attack", "attack", "attack_heads", "on_logarithms", "random_head"]


@dataclass(frozen=True, eq=False)
class Attack:
    """What :func:`attack` found.

    Attributes:
        ratio: the largest small/large met; above 1 the inequality is false. Infinite where ``large`` was not
            positive or ``small`` infinite while small > large; NaN where no instance met the hypotheses.
        start: the best ratio among the starting points, before any ascent; NaN if none met the hypotheses.
        history: best ratio so far, one a step, over all restarts.
        instance: the tensors at which ``ratio`` was met.

    Example:
        >>> square = lambda generator: [torch.randn(3, generator=generator)]
        >>> found = attack(lambda p: (p.norm(), p.abs().sum()), square, restarts=1, steps=3)
        >>> found.refuted
        False
    """

    ratio: float
    start: float
    history: tuple[float, ...]
    instance: tuple[Tensor, ...]

    @property
    def refuted(self) -> bool:
        """Whether an instance breaks the inequality by more than rounding."""
        return self.ratio > 1 + RELATIVE_TOLERANCE

    def __str__(self) -> str:
        return f"random start {self.start:.2g}, worst found {self.ratio:.4f}"


@checked(restarts=integer(least=1), steps=integer(least=1), lr=number(above=0, finite=True), seed=integer(least=0))
def attack(
    sides: Callable[..., tuple[Tensor, Tensor]],
    start: Callable[[torch.Generator], Sequence[Tensor]],
    *,
    restarts: int = 4,
    steps: int = 200,
    lr: float = 0.03,
    seed: int = 0,
) -> Attack:
    """Maximise small/large over instances of the inequality ``small <= large``.

    Args:
        sides: takes the instance's tensors, returns ``(small, large)``, both positive and differentiable. Where a
            hypothesis fails it should return an infinite ``large``: that ends the climb, it is not a violation.
        start: draws an instance from a generator.
        restarts: climbs, each from its own instance.
        steps: steps of Adam a climb, with a step size that falls to 0 along a cosine.
        lr: first step size.
        seed: of all the draws.

    Raises:
        ValueError: no restarts or no steps.

    >>> square = lambda generator: [torch.randn(4, generator=generator)]
    >>> found = attack(lambda p: (p.abs().sum(), 2 * p.norm()), square, restarts=2)  # ‖p‖_1 ≤ √4 ‖p‖_2
    >>> found.refuted, found.ratio > 0.999
    (False, True)
    """
    best, first, history = math.nan, math.nan, []
    instance: tuple[Tensor, ...] = ()
    for restart in range(restarts):
        generator = torch.Generator().manual_seed(1000 * seed + restart)
        point = [p.detach().double() for p in start(generator)]
        # Adam by hand: importing torch.optim costs more seconds than a whole climb takes
        mean, square = ([torch.zeros_like(p) for p in point] for _ in range(2))
        shrink, inside = 1.0, None
        for step in range(steps + 1):
            ratio, gradient = _log_gradient(sides, point)
            if not math.isnan(ratio):  # a ratio counts with or without a gradient to go on from
                if step == 0 and not first >= ratio:
                    first = ratio
                if not best >= ratio:
                    best, instance = ratio, tuple(point)
                history.append(best)
            if gradient is not None:
                inside = point, gradient
            elif inside is None:
                break
            else:  # stepped out of the hypotheses: back to the last point inside, with a smaller step
                shrink *= 0.3
                point, gradient = inside
            rate = shrink * lr * 0.5 * (1 + math.cos(math.pi * step / steps))
            mean = [0.9 * m + 0.1 * g for m, g in zip(mean, gradient, strict=True)]
            square = [0.999 * s + 0.001 * g * g for s, g in zip(square, gradient, strict=True)]
            first_moment, second_moment = 1 - 0.9 ** (step + 1), 1 - 0.999 ** (step + 1)
            point = [
                p + rate * (m / first_moment) / ((s / second_moment).sqrt() + 1e-12)
                for p, m, s in zip(point, mean, square, strict=True)
            ]
    return Attack(best, first, tuple(history), instance)


@checked(
    shapes=many(many(integer(least=1), least=3), least=1),
    restarts=integer(least=1),
    steps=integer(least=1),
    noise=number(least=0, finite=True),
    seed=integer(least=0),
)
def attack_heads(
    sides: Callable[[LinearHead], tuple[Tensor, Tensor]],
    shapes: Sequence[tuple[int, int, int]] = ((3, 3, 2), (2, 2, 3)),
    *,
    noise: float = 0.005,
    spread: tuple[float, float] = (0.7, 1.6),
    restarts: int = 1,
    steps: int = 150,
    seed: int = 0,
    name: str | None = None,
) -> Attack:
    """:func:`attack` an inequality about a :class:`LinearHead`, from random heads of several shapes; the worst of all.

    Args:
        sides: takes a head, returns ``(small, large)``.
        shapes: ``(K, L2, samples a class)`` of the heads.
        noise, spread: see :func:`random_head`.
        restarts, steps, seed: see :func:`attack`, for each shape.
        name: print one line with this name and what was found.

    Returns:
        The attempt that went furthest, with ``start`` the best start over all shapes.

    Example:
        >>> from ncutils.theory import layer_conditioning_sides
        >>> attack_heads(layer_conditioning_sides, steps=5).refuted
        False
    """
    found = []
    for classes, depth, samples in shapes:
        y = torch.arange(classes).repeat_interleave(samples)

        def start(generator, classes=classes, depth=depth, samples=samples):
            weights, features, _ = random_head(generator, classes, depth, samples, noise=noise, spread=spread)
            return [*weights, features]

        def instance(*tensors, y=y):
            return sides(LinearHead(tensors[:-1], tensors[-1], y))

        found.append(attack(instance, start, restarts=restarts, steps=steps, seed=seed))
    met = [attempt for attempt in found if not math.isnan(attempt.ratio)]
    worst = max(met, key=lambda attempt: attempt.ratio) if met else found[0]
    starts = [attempt.start for attempt in met if not math.isnan(attempt.start)]
    worst = replace(worst, start=max(starts, default=math.nan))
    if name is not None:
        print(f"{name:22s} {worst}")
    return worst


def on_logarithms(sides: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, Tensor]]:
    """The same inequality between logarithms, for numbers that are at least 1, such as condition numbers.

    A quotient of two condition numbers near 1 is near 1 whatever the inequality; that of their logarithms is not.

    >>> on_logarithms(lambda head: (torch.tensor(1.01), torch.tensor(1.02)))(None)[0].item() < 0.01
    True
    """

    def logarithms(*instance) -> tuple[Tensor, Tensor]:
        small, large = sides(*instance)
        return small.log(), large.log()

    return logarithms


def _log_gradient(sides, point: list[Tensor]) -> tuple[float, list[Tensor] | None]:
    """small/large at a point and the gradient of its logarithm; NaN outside the hypotheses, None without gradient."""
    parameters = [p.clone().requires_grad_() for p in point]
    small, large = sides(*parameters)
    low, high = float(small.detach()), float(large.detach())
    if math.isnan(low) or math.isnan(high) or high == math.inf:
        return math.nan, None
    if high <= 0 or low == math.inf:  # no quotient to climb on, but still true or false
        return math.inf if low > high else 0.0, None
    ratio = low / high
    if not ratio > 0:
        return ratio, None
    found = torch.autograd.grad(small.log() - large.log(), parameters, allow_unused=True)
    gradient = [torch.zeros_like(p) if g is None else g for p, g in zip(point, found, strict=True)]
    # two equal singular values have no gradient
    return ratio, gradient if all(torch.isfinite(g).all() for g in gradient) else None


@checked(
    generator=instance("Generator"),
    num_classes=integer(least=2),
    num_linear=integer(least=2),
    samples_per_class=integer(least=1),
    extra_width=integer(least=0),
    noise=number(least=0, finite=True),
)
def random_head(
    generator: torch.Generator,
    num_classes: int = 3,
    num_linear: int = 3,
    samples_per_class: int = 3,
    extra_width: int = 2,
    noise: float = 0.05,
    spread: tuple[float, float] = (0.3, 2.3),
) -> tuple[list[Tensor], Tensor, Tensor]:
    """A linear head near balance and near interpolation: ``(weights, features, y)``, float64.

    Balanced layers share one set of singular values, drawn from ``spread``, and neighbouring singular bases; the
    features are the least that the head maps to the labels. Then ``noise`` times a Gaussian is added to everything.

    Args:
        generator: source of all draws.
        num_classes: K.
        num_linear: L2.
        samples_per_class: N/K.
        extra_width: every inner width is K plus this.
        noise: distance from balance and interpolation.
        spread: least and largest singular value drawn.

    Example:
        >>> weights, features, y = random_head(torch.Generator().manual_seed(0), num_classes=3, num_linear=2)
        >>> [tuple(w.shape) for w in weights], tuple(features.shape), y.tolist()
        ([(5, 5), (3, 5)], (9, 5), [0, 0, 0, 1, 1, 1, 2, 2, 2])
    """

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    k, inner = num_classes, num_classes + extra_width
    low, high = spread
    values = low + (high - low) * torch.rand(k, generator=generator, dtype=torch.float64)
    bases = [torch.linalg.qr(normal(width, k)).Q for width in (inner,) * num_linear + (k,)]
    weights = [(b * values) @ a.T for a, b in itertools.pairwise(bases)]
    product = weights[0]
    for w in weights[1:]:
        product = w @ product
    y = torch.arange(k).repeat_interleave(samples_per_class)
    features = torch.linalg.pinv(product).T[y]
    weights = [w + noise * normal(*w.shape) for w in weights]
    return weights, features + noise * normal(*features.shape), y
