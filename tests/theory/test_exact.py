"""The exact case and the distance from it."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from heads import exact_head, in_columns, linear_heads, norm, seeds, singular, uneven_head
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


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_distance_and_its_bounds_from_the_matrices(depth):
    head = uneven_head(1, noise=0.05, depth=depth)
    c = in_columns(head)
    inverse = np.linalg.pinv(c.w[-1])
    distance = ((c.z[-2] - inverse[:, c.labels]) ** 2).sum()
    gap = c.w[-1].T @ c.w[-1] - c.w[-2] @ c.w[-2].T
    kernel = np.eye(5) - inverse @ c.w[-1]
    entering = (c.z[-3] ** 2).sum()
    bounds = {
        "simple": c.eps1**2 / c.s[2] ** 2 + norm(gap) * entering,
        "sharp": ((inverse @ c.error) ** 2).sum() + norm(kernel @ gap @ kernel) * entering,
    }
    for form, bound in bounds.items():
        check = distance_to_collapse(head, form)
        assert (check.measured, check.bound) == pytest.approx((distance, bound), rel=1e-9)
        assert check.holds and check.sense == "<="
        rank = check.hypotheses[0]
        assert (rank.value, rank.threshold, rank.sense) == (pytest.approx(c.s[2] / c.s[0]), 1e-12, ">")
        # what a relative rounding of 1e-13 in Z, enlarged by the pseudo-inverse, makes of a square
        step = 1e-13 * c.kappa * np.linalg.norm(c.z[-2])
        assert check.rounding == pytest.approx(2 * step * math.sqrt(distance) + step**2, rel=1e-9, abs=0)
    assert distance_to_collapse(head) == distance_to_collapse(head, "sharp")
    with pytest.raises(ValueError, match="form must be 'simple' or 'sharp'; got 'exact'"):
        distance_to_collapse(head, "exact")


def test_the_allowance_of_no_distance_is_of_second_order():
    eye = torch.eye(2, dtype=torch.float64)
    check = distance_to_collapse(LinearHead([eye, eye], eye, torch.arange(2)))
    assert check.measured == 0 and check.rounding == pytest.approx(2e-26, rel=1e-9, abs=0)


@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_four_identities_and_what_they_are_allowed(depth):
    """The square root of 1e-12 for a layer, four times, enlarged by κ²; NC1 is a square."""
    head = uneven_head(2, noise=1e-3, depth=depth)
    c = in_columns(head)
    checks = exact_case(head)
    means = c.means(c.z[-2])
    nc1 = (c.centred(c.z[-2]) ** 2).sum() / 9 / ((means - means.mean(1, keepdims=True)) ** 2).sum() * 3
    rows = c.w[-1][c.labels].T
    cosines = (c.z[-2] * rows).sum(0) / np.linalg.norm(c.z[-2], axis=0) / np.linalg.norm(rows, axis=0)
    lengths = np.linalg.norm(c.w[-1], axis=1) * np.linalg.norm(np.linalg.pinv(c.w[-1]), axis=0)
    slack = 4 * depth * 1e-6 * c.kappa**2
    expected = {
        "nc1": (nc1, 0.0, slack**2),
        "kappa_W_L": (c.kappa, (c.product[0] / c.product[2]) ** (1 / depth), slack),
        "nc2": (singular(means)[0] / singular(means)[2], c.kappa, slack),
        "nc3": (cosines.mean(), (1 / lengths).mean(), slack),
    }
    assert [check.quantity for check in checks] == list(expected)
    for check in checks:
        assert (check.measured, check.bound, check.rounding) == pytest.approx(expected[check.quantity], rel=1e-8, abs=0)
        assert (check.form, check.sense) == ("exact", "==")
        error, balance, rank = check.hypotheses
        assert (error.value, error.threshold) == pytest.approx((c.eps1 / math.sqrt(2), 1e-12), rel=1e-9)
        assert (balance.value, balance.threshold) == pytest.approx((max(c.gaps) / max(c.norms) ** 2, 1e-12), rel=1e-9)
        assert (rank.value, rank.threshold) == pytest.approx((c.s[2] / c.s[0], 1e-12), rel=1e-9)
        assert [h.sense for h in check.hypotheses] == ["<=", "<=", ">"]


@pytest.mark.parametrize(("error", "gap", "speaks"), [(0.9e-12, 0, True), (1.1e-12, 0, False), (0, 1.1e-12, False)])
def test_the_exact_case_speaks_up_to_a_million_millionth(error, gap, speaks):
    eye = torch.eye(2, dtype=torch.float64)
    features = eye.clone()
    features[0, 0] += error
    checks = exact_case(LinearHead([eye, math.sqrt(1 + gap) * eye], features, torch.arange(2)))
    assert {check.holds for check in checks} == {True if speaks else None}


@pytest.mark.parametrize("function", [distance_to_collapse, distance_to_collapse_sides])
def test_what_is_no_head_is_refused(function):
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        function(3, "sharp")
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        exact_case(3)
    with pytest.raises(TypeError, match="form must be a string; got 3"):
        function(exact_head(0), 3)
