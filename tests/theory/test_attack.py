"""attack: a false inequality never comes out as unbroken, whatever its sides return."""

import dataclasses
import itertools
import math

import pytest
import torch

from ncutils.theory import attack, attack_heads, on_logarithms, random_head
from ncutils.theory.theorem_3_1 import nc1_sides


def start(generator):
    return [torch.rand(3, generator=generator, dtype=torch.float64) + 0.5]


@pytest.mark.parametrize(
    "sides",
    [
        lambda p: (p.sum(), 0 * p.sum()),
        lambda p: (p.sum(), -p.sum()),
        lambda p: (p.sum() * math.inf, p.sum()),
        lambda p: (2 * p.sum(), p.sum()),
        lambda p: (p.sum() + (p - p).norm(), 0.5 * p.sum()),  # the gradient of a norm at 0 is not finite everywhere
    ],
)
def test_a_false_inequality_is_refuted(sides):
    found = attack(sides, start, restarts=2, steps=5)
    assert found.refuted and found.ratio > 1 and found.start > 1
    assert found.instance


@pytest.mark.parametrize("sides", [lambda p: (-p.sum(), p.sum()), lambda p: (0 * p.sum(), 0 * p.sum())])
def test_a_true_inequality_of_odd_signs_is_not(sides):
    assert not attack(sides, start, restarts=2, steps=5).refuted


@pytest.mark.parametrize("large", [math.inf, math.nan])
def test_nothing_met_is_not_a_number(large):
    found = attack(lambda p: (p.sum(), p.sum() * large), start, restarts=2, steps=5)
    assert math.isnan(found.ratio) and math.isnan(found.start)
    assert not found.ratio <= 1  # the usual verdict must not pass on nothing
    found = attack_heads(lambda head: (head.eps1, head.eps1 * large), steps=3)
    assert math.isnan(found.ratio)


def test_start_is_the_best_over_the_shapes(capsys):
    shapes = ((3, 3, 2), (2, 2, 3))

    def sides(head):
        return nc1_sides(head, "sharp")

    alone = [attack_heads(sides, [shape], steps=20) for shape in shapes]
    found = attack_heads(sides, shapes, steps=20, name="NC1, sharp")
    assert found.start == max(a.start for a in alone) and found.ratio == max(a.ratio for a in alone)
    assert capsys.readouterr().out == f"NC1, sharp             {found}\n"


@pytest.mark.parametrize("argument", ["steps", "restarts"])
def test_no_steps_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1; got 0"):
        attack(lambda p: (p.sum(), p.sum()), start, **{argument: 0})


def test_every_climb_and_every_seed_draws_from_a_generator_of_its_own():
    seen = []

    def noted(generator):
        seen.append(generator.initial_seed())
        return start(generator)

    for seed in (0, 1):
        attack(lambda p: (p.sum(), 2 * p.sum()), noted, restarts=3, steps=1, seed=seed)
    assert seen == [0, 1, 2, 1000, 1001, 1002]


@pytest.mark.parametrize(("small", "large", "ratio"), [
    (3.0, 4.0, 0.75),
    (-3.0, 4.0, -0.75),  # no logarithm to climb on, but a ratio
    (0.0, 4.0, 0.0),
    (3.0, 0.0, math.inf),
    (0.5, 0.0, math.inf),
    (0.0, 0.0, 0.0),
    (-1.0, 0.0, 0.0),
    (-1.0, -2.0, math.inf),
    (-2.0, -1.0, 0.0),
    (-2.0, -2.0, 0.0),
    (math.inf, 3.0, math.inf),
    (-math.inf, 3.0, -math.inf),
    (3.0, -math.inf, math.inf),
    (3.0, math.inf, math.nan),  # outside the hypotheses
    (math.inf, math.inf, math.nan),
    (math.nan, 3.0, math.nan),
    (3.0, math.nan, math.nan),
    (0.0, math.nan, math.nan),
])  # fmt: skip
def test_the_ratio_of_sides_of_any_sign(small, large, ratio):
    sides = lambda p: (0 * p.sum() + small, 0 * p.sum() + large)  # noqa: E731
    found = attack(sides, start, restarts=1, steps=1)
    assert found.ratio == pytest.approx(ratio, nan_ok=True) and found.start == pytest.approx(ratio, nan_ok=True)
    assert len(found.instance) == (0 if math.isnan(ratio) else 1)


def test_an_inequality_is_refuted_beyond_rounding_alone():
    found = attack(lambda p: (p.sum(), 2 * p.sum()), start, restarts=1, steps=1)
    for over, refuted in ((0.9e-9, False), (1.1e-9, True), (math.inf, True), (math.nan, False), (-1.0, False)):
        assert dataclasses.replace(found, ratio=1 + over).refuted is refuted
    assert str(dataclasses.replace(found, ratio=0.98765, start=0.1234)) == "random start 0.12, worst found 0.9877"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.ratio = 1.0
    assert found == found and found != dataclasses.replace(found)  # tensors have no one answer


def sides_of_two(p, q):
    """Something to climb whose gradient is another in every entry."""
    return (p[0] * q[0]).exp() + p[1] ** 2, (p**2).sum() + (q**2).sum() + 5


def two(generator):
    draw = lambda n: torch.randn(n, generator=generator, dtype=torch.float64)  # noqa: E731
    return [draw(2), draw(1)]


@pytest.mark.parametrize(("options", "lr"), [({}, 0.03), ({"lr": 0.1}, 0.1), ({"lr": 0.5}, 0.5)])
def test_a_climb_is_adam_along_a_cosine(options, lr):
    """As torch.optim has it: up the logarithm of the ratio, with a step size that falls to 0."""
    steps, point = 7, [p.requires_grad_() for p in two(torch.Generator().manual_seed(2000))]
    optimiser = torch.optim.Adam(point, lr=lr, eps=1e-12, maximize=True)
    ratios = []
    for step in range(steps + 1):
        optimiser.zero_grad()
        small, large = sides_of_two(*point)
        ratios.append(float((small / large).detach()))
        (small / large).log().backward()
        optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        optimiser.step()
    found = attack(sides_of_two, two, restarts=1, steps=steps, seed=2, **options)
    best = [max(ratios[: n + 1]) for n in range(steps + 1)]
    assert found.history == pytest.approx(best, rel=1e-9)
    assert found.start == pytest.approx(ratios[0]) and found.ratio == found.history[-1] == pytest.approx(max(ratios))
    small, large = sides_of_two(*found.instance)
    assert float(small / large) == pytest.approx(found.ratio, rel=1e-12)
    assert [p.dtype for p in found.instance] == [torch.float64] * 2


def test_a_step_out_of_the_hypotheses_goes_back_and_on_with_three_tenths_of_it():
    visited = []

    def sides(p):
        visited.append(float(p.detach()))
        large = torch.ones(()) * (math.inf if p > 1.25 else 10.0)
        return p.exp().sum(), large.double()

    steps, lr = 10, 0.3
    found = attack(sides, lambda generator: [torch.tensor([1.0], dtype=torch.float64)], restarts=1, steps=steps, lr=lr)
    rates = [lr * (1 + math.cos(math.pi * step / steps)) / 2 for step in range(steps + 1)]
    # the gradient of the logarithm is 1 everywhere, so every step of Adam is its step size
    place, inside, shrink, expected = 1.0, 1.0, 1.0, []
    for rate in rates:
        expected.append(place)
        if place > 1.25:
            shrink *= 0.3
        else:
            inside = place
        place = inside + shrink * rate
    assert visited == pytest.approx(expected, abs=1e-9)
    assert expected[1] > 1.25 and sum(place > 1.25 for place in expected) >= 2
    assert len(found.history) == sum(place <= 1.25 for place in expected)
    assert found.ratio == pytest.approx(math.exp(max(p for p in expected if p <= 1.25)) / 10)


def test_a_climb_that_starts_outside_ends_and_the_next_one_begins():
    calls = []

    def sides(p):
        calls.append(float(p.detach().sum()))
        return p.sum(), p.sum() * (math.inf if len(calls) == 1 else 4.0)

    found = attack(sides, start, restarts=2, steps=3)
    assert len(calls) == 1 + 4 and len(found.history) == 4 and found.ratio == pytest.approx(0.25)


def test_the_start_is_the_best_of_the_starts_and_the_history_never_falls():
    starts = [[2.0, 1.0], [9.0, 1.0], [5.0, 1.0]]
    queue = iter(torch.tensor(point, dtype=torch.float64) for point in starts)
    found = attack(lambda p: (p[0], p[0] + p[1] ** 2), lambda generator: [next(queue)], restarts=3, steps=4)
    assert found.start == pytest.approx(0.9) and len(found.history) == 3 * 5
    assert list(found.history) == sorted(found.history) and found.ratio == found.history[-1] > 0.9


def test_what_is_asked_for_by_default():
    calls = []

    def sides(p):
        calls.append(1)
        return p.sum(), 2 * p.sum()

    seeds = []
    found = attack(sides, lambda generator: [seeds.append(generator.initial_seed()) or start(generator)[0]])
    assert len(calls) == len(found.history) == 4 * 201 and seeds == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lr": 0.0}, "lr must be above 0, finite; got 0.0"),
        ({"lr": math.inf}, "lr must be above 0, finite; got inf"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"restarts": -1}, "restarts must be at least 1; got -1"),
        ({"steps": -1}, "steps must be at least 1; got -1"),
        ({"steps": 0}, "steps must be at least 1; got 0"),
    ],
)
def test_attacks_refuse_numbers_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        attack(lambda p: (p.sum(), 2 * p.sum()), start, **options)
    assert attack(lambda p: (p.sum(), 2 * p.sum()), start, restarts=1, steps=1, lr=1e-9, seed=0).ratio == 0.5


def test_a_tensor_that_does_not_enter_stays_where_it_is():
    found = attack(lambda p, q: (p.sum(), p.sum() + 1), lambda generator: [*start(generator), torch.ones(2)], steps=2,
                   restarts=1)  # fmt: skip
    assert found.instance[1].tolist() == [1.0, 1.0] and found.ratio > found.start


def test_heads_that_are_attacked_by_default():
    shapes = []

    def sides(head):
        shapes.append((head.num_classes, head.depth, head.num_samples // head.num_classes))
        return 0 * head.eps1 + 1, 0 * head.eps1 + 2

    found = attack_heads(sides)
    assert shapes == [(3, 3, 2)] * 151 + [(2, 2, 3)] * 151 and found.ratio == 0.5
    seen = []
    for options in ({}, {"noise": 0.005, "spread": (0.7, 1.6), "seed": 0, "restarts": 1}, {"restarts": 2}, {"seed": 1}):
        heads = []
        attack_heads(lambda head, heads=heads: (heads.append(head) or head.eps1, head.eps1 + 1), steps=1, **options)
        seen.append([w for head in heads for w in (*head.weights, head.features)])
    same = lambda one, two: len(one) == len(two) and all(torch.equal(a, b) for a, b in zip(one, two, strict=True))  # noqa: E731
    assert same(seen[0], seen[1]) and len(seen[2]) == 2 * len(seen[0]) and not same(seen[0], seen[3])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"shapes": ()}, "shapes must hold at least 1; got 0"),
        ({"shapes": ((3, 3),)}, r"shapes\[0\] must hold at least 3; got 2"),
        ({"shapes": ((3, 3, 0),)}, r"shapes\[0\]\[2\] must be at least 1; got 0"),
        ({"restarts": 0}, "restarts must be at least 1; got 0"),
        ({"steps": -1}, "steps must be at least 1; got -1"),
        ({"noise": -0.1}, "noise must be at least 0, finite; got -0.1"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
    ],
)
def test_attacks_on_heads_refuse_numbers_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        attack_heads(lambda head: (head.eps1, 2 * head.eps1), **options)
    assert attack_heads(lambda h: (h.eps1, 2 * h.eps1), ((2, 2, 1),), noise=0.0, steps=1).history  # all may be so small


def test_the_worst_of_the_shapes_is_one_that_met_the_hypotheses():
    def sides(head):
        return head.eps1, head.eps1 * {2: math.nan, 3: 4.0, 4: 2.0, 5: 3.0}[head.num_classes]

    found = attack_heads(sides, [(k, 2, 1) for k in (2, 3, 4, 5)], steps=1, noise=0.1)
    assert found.ratio == found.start == pytest.approx(0.5) and len(found.instance[-1]) == 4


def test_logarithms_are_of_both_sides():
    small, large = on_logarithms(lambda a, b: (a, b))(torch.tensor(math.e), torch.tensor(math.e**2))
    assert (float(small), float(large)) == pytest.approx((1.0, 2.0))


def drawn(seed=0, **options):
    return random_head(torch.Generator().manual_seed(seed), **options)


@pytest.mark.parametrize(("classes", "depth", "samples", "extra"), [(3, 4, 2, 1), (2, 2, 1, 0), (4, 3, 3, 2)])
def test_without_noise_a_head_is_balanced_and_interpolates_with_values_in_the_spread(classes, depth, samples, extra):
    weights, features, y = drawn(0, num_classes=classes, num_linear=depth, samples_per_class=samples,
                                 extra_width=extra, noise=0.0, spread=(0.5, 0.75))  # fmt: skip
    inner = classes + extra
    assert [tuple(w.shape) for w in weights] == [(inner, inner)] * (depth - 1) + [(classes, inner)]
    assert y.tolist() == [c for c in range(classes) for _ in range(samples)] and {w.dtype for w in weights} == {
        torch.float64
    }
    values = torch.linalg.svdvals(weights[-1])
    assert 0.5 <= float(values[-1]) < float(values[0]) <= 0.75
    for before, after in itertools.pairwise(weights):
        torch.testing.assert_close(after.T @ after, before @ before.T)
    z = features
    for w in weights:
        z = z @ w.T
    torch.testing.assert_close(z, torch.eye(classes, dtype=torch.float64)[y])
    assert torch.linalg.matrix_rank(features) == classes  # the least features: they lie where the head looks
    product = torch.linalg.multi_dot(weights[::-1])
    torch.testing.assert_close(features @ torch.linalg.pinv(product) @ product, features)


def test_noise_is_a_gaussian_times_what_is_asked_for():
    heads = {noise: [*drawn(0, noise=noise)[0], drawn(0, noise=noise)[1]] for noise in (0.0, 0.05, 1.0)}
    for exact, little, much in zip(*heads.values(), strict=True):
        torch.testing.assert_close(little - exact, 0.05 * (much - exact))
    gaussian = torch.cat([(much - exact).flatten() for exact, _, much in zip(*heads.values(), strict=True)])
    assert (
        len(gaussian) == 25 + 25 + 15 + 45 and 0.8 < float(gaussian.std()) < 1.2 and abs(float(gaussian.mean())) < 0.3
    )
    default = drawn(3)
    given = drawn(3, num_classes=3, num_linear=3, samples_per_class=3, extra_width=2, noise=0.05, spread=(0.3, 2.3))
    for mine, theirs in zip([*default[0], *default[1:]], [*given[0], *given[1:]], strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2; got 1"),
        ({"num_linear": 1}, "num_linear must be at least 2; got 1"),
        ({"samples_per_class": 0}, "samples_per_class must be at least 1; got 0"),
        ({"extra_width": -1}, "extra_width must be at least 0; got -1"),
        ({"noise": -0.1}, "noise must be at least 0, finite; got -0.1"),
        ({"noise": math.inf}, "noise must be at least 0, finite; got inf"),
        ({"spread": (1.0,)}, "spread must be a pair; got"),
    ],
)
def test_random_heads_refuse_numbers_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        drawn(0, **options)
    with pytest.raises(TypeError, match="generator must be a Generator; got 0"):
        random_head(0)
