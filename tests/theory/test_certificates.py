"""Certificates of κ(A) and κ(W_L)."""

import dataclasses
import math

import pytest
import torch
from heads import linear_heads, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils.theory import LinearHead, attack_heads, proposition_5_1, random_head, theorem_5_2_posteriori
from ncutils.theory import certificates as module
from ncutils.theory.certificates import certificate_a_priori, certificate_of_last_layer, head_certificate


@settings(max_examples=120, deadline=None)
@given(linear_heads(max_noise=2.0))
def test_nothing_is_violated(head):
    for form in module.FORMS:
        check = head_certificate(head, form)
        assert check.holds is not False, str(check)
    check = certificate_of_last_layer(head)
    assert check.holds is not False, str(check)


@settings(max_examples=60, deadline=None)
@given(linear_heads(max_noise=0.3))
def test_never_above_the_older_certificates(head):
    features, geometric, joint = (head_certificate(head, form) for form in module.FORMS)
    if not joint.hypotheses_met:
        return
    slack = joint.rounding + 1e-9 * abs(joint.bound)
    assert joint.bound <= min(features.bound, geometric.bound) + slack
    assert geometric.bound <= math.log(proposition_5_1(head, "sharp").bound) + slack
    paper = proposition_5_1(head, "paper")
    if paper.hypotheses_met and math.isfinite(paper.bound):
        assert features.bound <= math.log(paper.bound) + slack
    assert certificate_of_last_layer(head).bound <= math.log(theorem_5_2_posteriori(head).bound) + slack


@settings(max_examples=60, deadline=None)
@given(seeds, st.integers(2, 6))
def test_every_feasible_multiplier_is_a_certificate(seed, classes):
    generator = torch.Generator().manual_seed(seed)
    head = LinearHead(*random_head(generator, classes, 3, 2, noise=0.1))
    nu = torch.rand(classes, generator=generator).double() * 2
    nu[0] += 1
    bound = module._dual(nu, module._floors(head), module._log_gain(head), head.depth)
    assert float(head.kappa_head.log()) <= float(bound) + 1e-9


@pytest.mark.parametrize(
    ("sides", "tight"),
    [
        (lambda h: module.head_certificate_sides(h, "features"), 0.7),
        (lambda h: module.head_certificate_sides(h, "geometric"), 0.95),
        (lambda h: module.head_certificate_sides(h, "joint"), 0.98),
        (module.certificate_of_last_layer_sides, 0.9),
    ],
)
def test_a_smaller_constant_would_be_caught(sides, tight):
    """Logarithms are compared: a ratio near 1 is not the trivial κ = 1."""
    found = attack_heads(sides, ((2, 2, 1), (3, 2, 1)), noise=0.02, spread=(0.7, 1.6), steps=80)
    assert tight < found.ratio <= 1 + 1e-6


def test_checks_can_fail():
    head = LinearHead([torch.eye(2), torch.diag(torch.tensor([2.0, 1.0]))], torch.eye(2), torch.arange(2))
    for check in (*(head_certificate(head, form) for form in module.FORMS), certificate_of_last_layer(head)):
        assert check.holds is True
        assert dataclasses.replace(check, bound=0.99 * check.measured).holds is False


def reference(classes=3, nonlinear=1, depth=2, scale=1.0):
    """A network of padded identities: Z_{L1} = Y exactly, as Theorem 5.2 wants it."""
    y = torch.arange(classes).repeat_interleave(2)
    x = scale * torch.eye(classes).double()[y]
    first = torch.eye(classes).double() / scale
    features = x @ first.T
    return LinearHead([torch.eye(classes)] * depth, features, y), [first] * nonlinear, x


@settings(max_examples=100, deadline=None)
@given(seeds, st.integers(2, 5), st.sampled_from([0.0, 0.01, 0.1, 0.3]))
def test_a_priori_is_not_violated(seed, classes, noise):
    generator = torch.Generator().manual_seed(seed)
    head, nonlinear, x = reference(classes)
    weights = [w + noise * torch.randn(*w.shape, generator=generator).double() for w in head.weights]
    first = nonlinear[0] + noise * torch.randn(classes, classes, generator=generator).double()
    moved = LinearHead(weights, torch.relu(x @ first.T), head.y)
    check = certificate_a_priori(moved, nonlinear_weights=[first], x=x, weight_decay=0.01)
    assert check.holds is not False, str(check)


def test_a_priori_is_below_the_old_one_and_speaks():
    from ncutils.theory import theorem_5_2_a_priori

    for classes in (2, 3, 5):
        head, nonlinear, x = reference(classes)
        arguments = {"nonlinear_weights": nonlinear, "x": x, "weight_decay": 0.01}
        new, old = certificate_a_priori(head, **arguments), theorem_5_2_a_priori(head, **arguments)
        assert new.holds is True
        ratio = 2 * classes ** (-classes / 2)  # K = 2: nothing is gained
        assert math.exp(new.bound) == pytest.approx(ratio * old.bound, rel=1e-9)
    with pytest.raises(ValueError, match="weight_decay must be"):
        certificate_a_priori(head, nonlinear_weights=nonlinear, x=x, weight_decay=0.0)


def test_silent_without_rank_and_form_is_checked():
    weights, features, y = random_head(torch.Generator().manual_seed(0))
    flat = LinearHead([*weights[:-1], torch.ones_like(weights[-1])], features, y)
    assert head_certificate(flat).holds is None
    assert certificate_of_last_layer(flat).holds is None
    with pytest.raises(ValueError, match="form must be"):
        head_certificate(flat, "sharp")
