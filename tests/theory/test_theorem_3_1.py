"""Theorem 3.1: every form on every kind of head, exact cases, and proof that each check can fail."""

import dataclasses
import itertools
import math

import pytest
import torch
from heads import exact_head, linear_heads, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils import metrics
from ncutils.theory import (
    LinearHead,
    attack,
    attack_heads,
    random_head,
    telescoping,
    theorem_3_1,
    theorem_3_1_conditioning,
    theorem_3_1_nc1,
    theorem_3_1_nc2,
    theorem_3_1_nc3,
)
from ncutils.theory.theorem_3_1 import conditioning_sides, nc2_sides

STATEMENTS = (theorem_3_1_nc1, theorem_3_1_conditioning, theorem_3_1_nc2, theorem_3_1_nc3)
FORMS = ("paper", "simple", "sharp")


def evaluate(statement, head, form):
    return statement(head, form)


@settings(max_examples=150, deadline=None)
@given(linear_heads(max_noise=2.0))
def test_no_form_is_violated(head):
    for statement in STATEMENTS:
        for form in FORMS:
            check = evaluate(statement, head, form)
            assert check.holds is not False, str(check)


@settings(max_examples=60, deadline=None)
@given(linear_heads(max_noise=1e-3))
def test_sharper_forms_are_sharper(head):
    for statement in (theorem_3_1_nc1, theorem_3_1_conditioning, theorem_3_1_nc2):
        bounds = [evaluate(statement, head, form) for form in FORMS]
        for weak, strong in itertools.pairwise(bounds):
            if weak.hypotheses_met:
                assert strong.hypotheses_met
                assert strong.bound <= weak.bound * (1 + 1e-9), f"{strong}\n{weak}"


@settings(max_examples=60, deadline=None)
@given(linear_heads(max_noise=2.0), st.integers(2, 5))
def test_telescoping(head, count):
    count = min(count, head.depth)
    simple, sharp = (telescoping(head.weights, count, form) for form in ("simple", "sharp"))
    assert simple.holds
    assert sharp.holds
    assert sharp.bound <= simple.bound * (1 + 1e-9)


def test_hypotheses_are_met_near_collapse():
    """The property tests above are not empty: near balance and interpolation every form speaks."""
    head = LinearHead(*random_head(torch.Generator().manual_seed(1), noise=1e-5, spread=(0.8, 1.2)))
    for statement in STATEMENTS:
        for form in FORMS:
            assert evaluate(statement, head, form).holds is True


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 5), st.integers(2, 5))
def test_exact_collapse(seed, classes, depth):
    """Balanced and interpolating: NC1 = 0, κ(W_L) = κ(A)^{1/L2} = NC2, NC3 between Kantorovich and 1."""
    head = exact_head(seed, num_classes=classes, num_linear=depth, spread=(0.7, 1.4))
    assert theorem_3_1_nc1(head).measured < 1e-20
    conditioning = theorem_3_1_conditioning(head)
    assert conditioning.measured == pytest.approx(conditioning.bound, rel=1e-10)
    assert conditioning.measured == pytest.approx(float(head.kappa_head) ** (1 / depth), rel=1e-10)
    nc2 = theorem_3_1_nc2(head)
    assert nc2.measured == pytest.approx(conditioning.measured, rel=1e-10)
    # the leftover imbalance is rounding, 1e-16 relative; its square root is what the bound sees
    assert nc2.bound == pytest.approx(nc2.measured, rel=1e-6)
    nc3 = theorem_3_1_nc3(head)
    assert nc3.bound == pytest.approx(nc3.measured, abs=1e-10)
    kappa = conditioning.measured
    assert 2 * kappa / (kappa**2 + 1) <= nc3.measured + 1e-12


def test_kantorovich_is_attained_for_two_classes():
    """K = 2, equal row norms: every cosine equals 2κ/(κ²+1)."""
    rotation = torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=torch.float64) / math.sqrt(2)
    last = rotation @ torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    first = torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    features = torch.linalg.inv(last @ first).T
    check = theorem_3_1_nc3(LinearHead([first, last], features, torch.arange(2)), "simple")
    assert check.measured == pytest.approx(2 * 4 / (16 + 1), rel=1e-12)
    # the square root of an imbalance of 1e-16 is what keeps the bound off
    assert check.bound == pytest.approx(check.measured, abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(linear_heads())
def test_head_agrees_with_metrics(head):
    z, last = head.layers[-2], head.weights[-1]
    means = z[head.y.argsort()].reshape(head.num_classes, -1, z.shape[1]).mean(1)
    assert torch.allclose(head.class_means(z), means, rtol=1e-10, atol=1e-12)
    assert float(head.nc1(z)) == pytest.approx(float(metrics.nc1(z, head.y)), rel=1e-10)
    assert float(head.nc3(z, last)) == pytest.approx(float(metrics.nc3(z, head.y, last)), rel=1e-10, abs=1e-14)
    if z.shape[1] >= head.num_classes and float(head.nc2(z)) < 1e8:
        assert float(head.nc2(z)) == pytest.approx(float(metrics.nc2(z, head.y)), rel=1e-8)
    gaps = [float(metrics.balancedness(a, b)) for a, b in itertools.pairwise(head.weights)]
    assert head.imbalances.tolist() == pytest.approx(gaps, rel=1e-8, abs=1e-12)


# --- every check can fail


@pytest.mark.parametrize(
    ("statement", "form", "tight"),
    [
        (theorem_3_1_nc1, "sharp", 0.9),
        (theorem_3_1_conditioning, "simple", 0.95),
        (theorem_3_1_nc2, "simple", 0.85),
        (theorem_3_1_nc2, "sharp", 0.95),
    ],
)
def test_a_smaller_constant_would_be_caught(statement, form, tight):
    """Gradient ascent brings the bound near equality; that instance breaks the bound times ``tight``."""
    y = torch.arange(2).repeat_interleave(2)
    sides = {
        theorem_3_1_nc1: theorem_3_1.nc1_sides,
        theorem_3_1_conditioning: theorem_3_1.conditioning_sides,
        theorem_3_1_nc2: theorem_3_1.nc2_sides,
    }[statement]

    def start(generator):
        weights, features, _ = random_head(generator, 2, 2, 2, 1, noise=0.01, spread=(0.8, 1.5))
        return [*weights, features]

    found = attack(lambda *p: sides(LinearHead(p[:-1], p[-1], y), form), start, restarts=1, steps=80, lr=0.03)
    assert tight < found.ratio <= 1 + 1e-9
    assert found.ratio >= found.start
    check = statement(LinearHead(found.instance[:-1], found.instance[-1], y), form)
    assert check.holds is True
    assert check.ratio == pytest.approx(found.ratio, rel=1e-9)
    assert dataclasses.replace(check, bound=tight * check.bound).holds is False


def test_attack_heads_returns_the_worst_of_all_shapes():
    def sides(head):
        return theorem_3_1.nc2_sides(head, "sharp")

    shapes = ((3, 2, 2), (2, 2, 2))
    both = attack_heads(sides, shapes, steps=10)
    single = [attack_heads(sides, (shape,), steps=10) for shape in shapes]
    assert both.ratio == max(found.ratio for found in single) <= 1 + 1e-9
    assert all(a <= b for found in single for a, b in itertools.pairwise(found.history))


def test_nc3_and_telescoping_would_be_caught():
    head = exact_head(3, num_classes=3, num_linear=3)
    check = theorem_3_1_nc3(head)
    assert dataclasses.replace(check, bound=check.bound + 1e-6).holds is False
    # commuting layers, first exchange attained: A_2A_2ᵀ − (W_2W_2ᵀ)² = W_2 D W_2ᵀ
    weights = [torch.eye(2, dtype=torch.float64), 1.2 * torch.eye(2, dtype=torch.float64)]
    lemma = telescoping(weights)
    assert lemma.measured == pytest.approx(lemma.bound, rel=1e-12)
    assert dataclasses.replace(lemma, bound=0.99 * lemma.bound).holds is False


def test_without_balance_the_conclusions_fail():
    """Same low error, ε2 wrongly taken for 0: the bounds are violated, so the hypothesis does the work."""
    generator = torch.Generator().manual_seed(0)
    weights, features, y = random_head(generator, 3, 2, 4, 3, noise=0.0, spread=(0.8, 1.2))
    # scatter and unequal lengths that W_L cannot see: first layer maps onto the kernel of the last
    hidden = torch.linalg.svd(weights[-1]).Vh[3:]
    noise = torch.randn(len(features), 2, generator=generator, dtype=torch.float64) * 3
    extended = torch.cat([features, noise], 1)
    unbalanced = torch.cat([weights[0], hidden[:2].T], 1)
    head = LinearHead([unbalanced, weights[1]], extended, y)
    assert float(head.eps1) < 1e-10
    for statement in (theorem_3_1_nc1, theorem_3_1_nc2):
        assert evaluate(statement, head, "simple").holds is True
        assert evaluate(statement, head, "sharp").holds is True
    blind = LinearHead(head.weights, head.features, y)
    blind.__dict__["imbalances"] = torch.zeros(1, dtype=torch.float64)
    for statement in (theorem_3_1_nc1, theorem_3_1_nc2, theorem_3_1_nc3):
        assert evaluate(statement, blind, "simple").holds is False


def test_large_error_makes_the_statements_silent():
    weights, features, y = random_head(torch.Generator().manual_seed(0), noise=0.0)
    for form in ("paper", "simple", "sharp"):
        check = theorem_3_1_nc1(LinearHead(weights, 5 * features, y), form)
        assert check.holds is None
        assert check.bound == math.inf
    assert theorem_3_1_nc2(LinearHead(weights, 5 * features, y), "simple").holds is None
    # an unbalanced head silences the conditioning
    assert theorem_3_1_conditioning(LinearHead([3 * weights[0], *weights[1:]], features, y)).holds is None
    # and a rank-deficient last layer NC3
    flat = weights[-1].clone()
    flat[0] = flat[1]
    assert theorem_3_1_nc3(LinearHead([*weights[:-1], flat], features, y)).holds is None


# --- errors


def test_errors_say_what_is_wrong():
    weights, features, y = random_head(torch.Generator().manual_seed(0))
    cases = [
        (weights[-1:], features, y, "at least 2"),
        ([weights[0].T.repeat(2, 1), *weights[1:]], features, y, "weights"),
        (weights, features[:-1], y, "one a sample"),
        (weights, features, y[:-1], "one a sample"),
        (weights, features, y + 1, "labels from 1 to 3"),
        (weights, features, y.clamp(max=1), "every class"),
        (weights, features, y.double(), "integer"),
        (weights, features * math.nan, y, "NaN"),
        ([w.numpy() for w in weights], features, y, "torch tensor"),
        (weights, features[0], y, "two dimensions"),
    ]
    for w, z, labels, message in cases:
        with pytest.raises(ValueError, match=message):
            LinearHead(w, z, labels)
    with pytest.raises(ValueError, match="form"):
        theorem_3_1_nc1(LinearHead(weights, features, y), "exact")
    with pytest.raises(ValueError, match="count"):
        telescoping(weights, 7)


@pytest.mark.parametrize("noise", [0.0, 1e-12, 1e-10, 1e-9, 1e-8])
def test_rounding_near_exact_collapse_is_no_violation(noise):
    for classes, depth, seed in itertools.product((2, 3), (2, 5), range(12)):
        generator = torch.Generator().manual_seed(seed)
        weights, features, y = random_head(generator, classes, depth, noise=0.0, spread=(1.0, 1.0))
        noisy = features + noise * torch.randn(features.shape, generator=generator, dtype=torch.float64)
        for form in FORMS:
            check = theorem_3_1_nc1(LinearHead(weights, noisy, y), form)
            assert not check.violated, str(check)


@pytest.mark.parametrize("noise", [1e-9, 1e-6, 1e-3])
def test_the_allowance_for_rounding_hides_nothing(noise):
    weights, features, y = random_head(torch.Generator().manual_seed(0), noise=0.0, spread=(1.0, 1.0))
    noisy = features + noise * torch.randn(features.shape, generator=torch.Generator().manual_seed(1)).double()
    check = theorem_3_1_nc1(LinearHead(weights, noisy, y))
    assert dataclasses.replace(check, bound=0.999 * check.measured).violated


def test_a_last_layer_that_sees_everything_owes_nothing_to_imbalance():
    """Widths K: the sharp NC1 is bounded by the scatter of the outputs alone, however unbalanced the head."""
    generator = torch.Generator().manual_seed(0)
    head = LinearHead(*random_head(generator, 3, 2, 4, 0, noise=0.1))
    assert head.weights[-1].shape == (3, 3) and head.eps2 > 1e-3
    seen = head.within(head.error).square().sum() / head.sK**2 * head.s1**2 / head.num_samples
    between = math.sqrt(2 / 3) - float(head.eps1) / (math.sqrt(3) * head.label_scale)
    check = theorem_3_1_nc1(head, "sharp")
    assert check.bound == pytest.approx(float(seen) / between**2, rel=1e-12) and check.holds is True


def test_the_papers_nc2_bound_from_the_matrices_themselves():
    """((1 + δ)κ + r² √ε2 / s_K(Y)) / (1 − δ), with the norms taken one by one."""
    weights, features, y = random_head(torch.Generator().manual_seed(3), noise=1e-3, spread=(0.9, 1.5))
    head = LinearHead(weights, features, y)
    layers = [features]
    for weight in weights:
        layers.append(layers[-1] @ weight.T)
    top = [torch.linalg.matrix_norm(m, 2) for m in (*weights, *layers[-3:-1])]
    balance = [torch.linalg.matrix_norm(b.T @ b - a @ a.T, 2) for a, b in itertools.pairwise(weights)]
    scale = math.sqrt(min(y.bincount()))
    delta = torch.linalg.matrix_norm(layers[-1] - torch.nn.functional.one_hot(y)) / scale
    kappa = conditioning_sides(head, "paper")[1]
    expected = ((1 + delta) * kappa + max(top) ** 2 * max(balance).sqrt() / scale) / (1 - delta)
    assert float(nc2_sides(head, "paper")[1]) == pytest.approx(float(expected), rel=1e-9)
    assert math.isfinite(expected) and abs(max(top) - 1) > 0.1


def test_what_rounding_is_forgiven_follows_the_form():
    """Of the three forms the paper's alone doubles ε1, which makes its denominator smaller and its allowance larger."""
    head = LinearHead(*random_head(torch.Generator().manual_seed(0), noise=1e-3))
    paper, simple, sharp = (theorem_3_1._nc1_rounding(head, form) for form in FORMS)
    assert paper > simple * (1 + 1e-6) and simple > sharp > 0
