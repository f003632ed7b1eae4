"""attack: a false inequality never comes out as unbroken, whatever its sides return."""

import math

import pytest
import torch

from ncutils.theory import attack, attack_heads
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
