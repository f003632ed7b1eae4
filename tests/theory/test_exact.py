"""The exact case and the distance from it."""

import dataclasses
import math

import pytest
import torch
from heads import exact_head, linear_heads, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils.theory import LinearHead, attack_heads, random_head
from ncutils.theory.exact import distance_to_collapse, distance_to_collapse_sides, exact_case


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 5), st.integers(2, 5))
def test_exact_heads_collapse_exactly(seed, classes, depth):
    head = exact_head(seed, num_classes=classes, num_linear=depth, spread=(0.7, 1.4))
    for check in exact_case(head):
        assert check.holds is True, str(check)
    assert distance_to_collapse(head).measured < 1e-20
    kappa = float(head.kappa_last)
    assert exact_case(head)[3].measured >= 2 * kappa / (kappa**2 + 1) - 1e-12


def test_the_identities_can_fail_and_fall_silent():
    checks = exact_case(exact_head(0, num_classes=3, num_linear=3, spread=(0.5, 2.0)))
    for check in checks[1:]:
        assert dataclasses.replace(check, bound=1.01 * check.bound).holds is False
    noisy = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
    assert all(check.holds is None for check in exact_case(noisy))


@settings(max_examples=150, deadline=None)
@given(linear_heads(max_noise=2.0))
def test_distance_is_never_violated(head):
    for form in ("simple", "sharp"):
        check = distance_to_collapse(head, form)
        assert check.holds is not False, str(check)


@pytest.mark.parametrize(("form", "tight"), [("simple", 0.9), ("sharp", 0.95)])
def test_a_smaller_constant_would_be_caught(form, tight):
    found = attack_heads(lambda head: distance_to_collapse_sides(head, form), ((2, 2, 1),), noise=0.05, steps=200)
    assert tight < found.ratio <= 1 + 1e-9
    check = distance_to_collapse(LinearHead(found.instance[:-1], found.instance[-1], torch.arange(2)), form)
    assert check.holds is True
    assert dataclasses.replace(check, bound=tight * check.bound).holds is False


def test_form_is_checked():
    with pytest.raises(ValueError, match="form must be"):
        distance_to_collapse(exact_head(0), "paper")
    assert math.isfinite(distance_to_collapse(exact_head(0)).bound)
