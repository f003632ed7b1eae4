"""The figures at three sizes: the file to open to change one. Each entry says all that differs from the defaults.

Sources: layer counts, weight decays, step size 0.001, 10,000 epochs and seeds are the paper's (arXiv:2410.04887,
in part inferred); width 64, batch size, momentum 0.9, warm-up and Kaiming's initialisation are ours. ``cores`` covers
the paper's flow time in 20 epochs of lr 0.05 for the MLPs; ``paper`` takes its step size with our momentum, so
a tenth of its epochs (its ResNet20: lr 0.005, 100 epochs for 5,000 at 0.001, inferred).
"""

from __future__ import annotations

from ncutils._arguments import checked
from ncutils.experiments.specification import PROFILES, Specification, declare

TRAJECTORY = "NC1, NC2, balancedness and negativity of the last 7 layers over training"
HEADS = "NC1 and NC2 in the last and the first layer of the linear head against its depth"
NONLINEAR = "balancedness and negativity of the head's non-linear layers against the number of non-linear layers"
TEN_DECAYS = tuple(round(0.001 + 0.003 * i / 9, 6) for i in range(10))  # the range of the paper, 10 set-ups

# fmt: off
_ALL = [
    declare(figure="1", profile="quick", shows=TRAJECTORY,
        data="mnist5k", samples=1_000, test_samples=1_000, network="mlp", nonlinear=(6,), linear=(3,),
        lr=(0.05,), weight_decay=(0.0018,), seeds=3, epochs=500, batch_size=100, precision="float64",
        measurements=18, class_means=True),
    declare(figure="4", profile="quick", shows=TRAJECTORY,
        data="mnist5k", samples=1_000, test_samples=1_000, network="mlp", nonlinear=(5,), linear=(4,),
        lr=(0.05,), weight_decay=(0.0018,), seeds=3, epochs=500, batch_size=100, precision="float64",
        measurements=18, class_means=True),
    declare(figure="2-mlp", profile="quick", shows=HEADS,
        data="mnist5k", samples=1_000, test_samples=1_000, network="mlp", nonlinear=(5,), linear=(1, 2, 3, 4, 5,
        6), lr=(0.05,), weight_decay=(0.001, 0.004), seeds=3, epochs=250, batch_size=100, precision="float64",
        measurements=1),
    declare(figure="3", profile="quick", shows=NONLINEAR,
        data="mnist5k", samples=1_000, test_samples=1_000, network="mlp", nonlinear=(4, 6, 8, 12), linear=(1,),
        lr=(0.025, 0.05), weight_decay=(0.016,), weight_decay_over_depth=True, seeds=2, epochs=500,
        batch_size=100, precision="float64", measurements=1),
    declare(figure="5", profile="quick", shows=HEADS,
        data="mnist5k", samples=500, test_samples=500, size=8, network="resnet20", nonlinear=(0,), linear=(1, 2,
        4, 6), lr=(0.02,), weight_decay=(0.02,), seeds=2, epochs=12, batch_size=25, warmup_steps=80,
        drop_at=0.7, precision="float64", measurements=1),
    declare(figure="2-resnet", profile="quick", shows=HEADS,
        data="cifar10_small", samples=200, test_samples=200, size=8, network="resnet20", nonlinear=(0,),
        linear=(1, 2, 4), lr=(0.02,), weight_decay=(0.015,), seeds=2, epochs=30, batch_size=20,
        warmup_steps=100, drop_at=0.7, precision="float64", measurements=1),
    declare(figure="1-resnet", profile="quick", shows=TRAJECTORY,
        data="cifar10_small", samples=200, test_samples=200, size=8, network="resnet20", nonlinear=(3,),
        linear=(3,), lr=(0.02,), weight_decay=(0.01,), seeds=2, epochs=48, batch_size=20, warmup_steps=100,
        precision="float64", measurements=8, class_means=True),
    declare(figure="1", profile="cores", shows=TRAJECTORY,
        data="mnist", samples=60_000, test_samples=8_000, measured=10_000, network="mlp", nonlinear=(6,),
        linear=(3,), lr=(0.05,), weight_decay=(0.0018,), seeds=5, epochs=20, batch_size=128, measurements=14,
        class_means=True),
    declare(figure="4", profile="cores", shows=TRAJECTORY,
        data="mnist", samples=60_000, test_samples=8_000, measured=10_000, network="mlp", nonlinear=(5,),
        linear=(4,), lr=(0.05,), weight_decay=(0.0018,), seeds=5, epochs=20, batch_size=128, measurements=14,
        class_means=True),
    declare(figure="2-mlp", profile="cores", shows=HEADS,
        data="mnist", samples=60_000, test_samples=8_000, measured=10_000, network="mlp", nonlinear=(5,),
        linear=(1, 2, 3, 4, 5, 6), lr=(0.05,), weight_decay=(0.001, 0.004), seeds=3, epochs=20, batch_size=128,
        measurements=1),
    declare(figure="3", profile="cores", shows=NONLINEAR,
        data="mnist", samples=60_000, test_samples=8_000, measured=10_000, network="mlp", nonlinear=(4, 6, 8,
        10, 12), linear=(1,), lr=(0.05, 0.1), weight_decay=(0.016,), weight_decay_over_depth=True, seeds=3,
        epochs=20, batch_size=128, measurements=1),
    declare(figure="3-fixed", profile="cores", shows=NONLINEAR,
        data="mnist", samples=60_000, test_samples=8_000, measured=10_000, network="mlp", nonlinear=(4, 6, 8,
        10, 12), linear=(1,), lr=(0.05, 0.1), weight_decay=(0.0018,), seeds=3, epochs=20, batch_size=128,
        measurements=1),
    declare(figure="3-fixed-small-step", profile="cores", shows=NONLINEAR,  # the paper's profile of 3 at one decay
        data="mnist", samples=60_000, test_samples=8_000, network="mlp", nonlinear=(4, 6, 8, 10, 12), linear=(1,),
        lr=(0.001,), weight_decay=(0.0018,), seeds=3, epochs=1000, batch_size=128, measurements=1,
        runs_per_job=None),
    declare(figure="2-mlp-decays", profile="cores", shows=HEADS,
        data="mnist", samples=60_000, test_samples=8_000, measured=10_000, network="mlp", nonlinear=(5,),
        linear=(1, 2, 3, 4, 5, 6), lr=(0.05,), weight_decay=TEN_DECAYS, seeds=5, epochs=20, batch_size=128,
        measurements=1),
    declare(figure="2-mlp-small-step", profile="cores", shows=HEADS,  # jobs of 2-mlp's paper profile
        data="mnist", samples=60_000, test_samples=8_000, network="mlp", nonlinear=(5,), linear=(1, 2, 3, 4, 5,
        6), lr=(0.001,), weight_decay=(0.002,), seeds=3, epochs=1000, batch_size=128, measurements=1,
        runs_per_job=None),
    declare(figure="2-mlp-small-step-ends", profile="cores", shows=HEADS,  # both ends of the paper's range
        data="mnist", samples=60_000, test_samples=8_000, network="mlp", nonlinear=(5,), linear=(1, 6),
        lr=(0.001,), weight_decay=(0.001, 0.004), seeds=3, epochs=1000, batch_size=128, measurements=1,
        runs_per_job=None),
    declare(figure="4-width", profile="cores", shows="NC1, NC2 and balancedness of the last layers against the width",
        data="mnist", samples=500, test_samples=1_000, network="mlp", nonlinear=(5,), linear=(4,),
        width=(32, 64, 128, 256, 512, 1024), lr=(0.02,), weight_decay=(0.0018,), seeds=3, epochs=500, batch_size=50,
        measurements=1),
    declare(figure="1-resnet", profile="cores", shows=TRAJECTORY,
        data="cifar10", samples=1_000, test_samples=1_000, size=12, network="resnet20", nonlinear=(3,),
        linear=(3,), lr=(0.03,), weight_decay=(0.003,), seeds=2, epochs=200, batch_size=50, warmup_steps=200,
        measurements=14, class_means=True),
    declare(figure="2-resnet", profile="cores", shows=HEADS,
        data="cifar10", samples=1_000, test_samples=1_000, size=12, network="resnet20", nonlinear=(0,),
        linear=(1, 2, 3, 4, 5, 6), lr=(0.03,), weight_decay=(0.006,), seeds=2, epochs=100, batch_size=50,
        warmup_steps=200, measurements=1),
    declare(figure="2-resnet-32", profile="cores", shows=HEADS,
        data="cifar10", samples=2_000, test_samples=1_000, network="resnet20", nonlinear=(0,), linear=(1, 2, 3, 6),
        lr=(0.02,), weight_decay=(0.006,), seeds=3, epochs=40, batch_size=50, warmup_steps=200, measurements=1),
    declare(figure="5", profile="cores", shows=HEADS,
        data="mnist", samples=1_000, test_samples=1_000, size=14, network="resnet20", nonlinear=(0,), linear=(1,
        2, 3, 4, 5, 6), lr=(0.03,), weight_decay=(0.006,), seeds=2, epochs=75, batch_size=50, warmup_steps=200,
        measurements=1),
    declare(figure="5-28", profile="cores", shows=HEADS,
        data="mnist", samples=2_000, test_samples=1_000, network="resnet20", nonlinear=(0,), linear=(1, 2, 3, 6),
        lr=(0.02,), weight_decay=(0.004,), seeds=3, epochs=40, batch_size=50, warmup_steps=200, measurements=1),
    declare(figure="1", profile="paper", shows=TRAJECTORY,
        data="mnist", samples=60_000, test_samples=8_000, network="mlp", nonlinear=(6,), linear=(3,),
        lr=(0.001,), weight_decay=(0.0018,), seeds=5, epochs=1000, batch_size=128, measurements=30,
        class_means=True, runs_per_job=None),
    declare(figure="4", profile="paper", shows=TRAJECTORY,
        data="mnist", samples=60_000, test_samples=8_000, network="mlp", nonlinear=(5,), linear=(4,),
        lr=(0.001,), weight_decay=(0.0018,), seeds=5, epochs=1000, batch_size=128, measurements=30,
        class_means=True, runs_per_job=None),
    declare(figure="2-mlp", profile="paper", shows=HEADS,
        data="mnist", samples=60_000, test_samples=8_000, network="mlp", nonlinear=(5,), linear=(1, 2, 3, 4, 5,
        6), lr=(0.001,), weight_decay=TEN_DECAYS, seeds=5, epochs=1000, batch_size=128, measurements=1,
        runs_per_job=None),
    declare(figure="3", profile="paper", shows=NONLINEAR,
        data="mnist", samples=60_000, test_samples=8_000, network="mlp", nonlinear=(4, 6, 8, 10, 12),
        linear=(1,), lr=(0.001, 0.002), weight_decay=(0.016,), weight_decay_over_depth=True, seeds=5,
        epochs=1000, batch_size=128, measurements=1, runs_per_job=None),
    declare(figure="1-resnet", profile="paper", shows=TRAJECTORY,
        data="cifar10", samples=50_000, test_samples=10_000, network="resnet20", nonlinear=(3,), linear=(3,),
        lr=(0.005,), weight_decay=(0.001,), seeds=5, epochs=100, batch_size=128, measurements=20,
        class_means=True),
    declare(figure="2-resnet", profile="paper", shows=HEADS,
        data="cifar10", samples=50_000, test_samples=10_000, network="resnet20", nonlinear=(0,), linear=(1, 2,
        3, 4, 5, 6), lr=(0.005,), weight_decay=TEN_DECAYS, seeds=5, epochs=100, batch_size=128, measurements=1),
    declare(figure="5", profile="paper", shows=HEADS,
        data="mnist", samples=60_000, test_samples=8_000, network="resnet20", nonlinear=(0,), linear=(1, 2, 3,
        4, 5, 6), lr=(0.005,), weight_decay=TEN_DECAYS, seeds=5, epochs=100, batch_size=128, measurements=1),
]
# fmt: on
DECLARED = {(spec.figure, spec.profile): spec for spec in _ALL}
FIGURES = tuple(sorted({spec.figure for spec in _ALL}))


@checked()
def specification(figure: str, profile: str = "quick") -> Specification:
    """The declaration of ``figure`` at ``profile``.

    Raises:
        ValueError: no such figure or profile.

    Example:
        >>> specification("1").nonlinear, specification("2-mlp", "paper").runs
        ((6,), 300)
    """
    if figure not in FIGURES:
        raise ValueError(f"figure must be one of {', '.join(FIGURES)}; got {figure!r}")
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}; got {profile!r}")
    if (figure, profile) not in DECLARED:
        there = ", ".join(p for f, p in DECLARED if f == figure)
        raise ValueError(f"profile of figure {figure} must be one of {there}; got {profile!r}")
    return DECLARED[figure, profile]
