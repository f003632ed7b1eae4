"""Theorem 3.1: every form on every kind of head, exact cases, and proof that each check can fail."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from heads import exact_head, in_columns, linear_heads, norm, seeds, singular, uneven_head
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


# --- every number of every form, on a head without symmetry


def telescoped(c, count, form):
    """What η_j is, layer by layer: m counts from the first of the last ``count`` layers."""
    norms, gaps = c.norms[c.depth - count :], c.gaps[c.depth - count :]
    if form == "simple":
        return count * (count - 1) / 2 * max(norms) ** (2 * count - 2) * max(gaps)
    total = 0.0
    for m, gap in enumerate(gaps, start=1):
        total += m * gap * max(norms[m - 1], norms[m]) ** (2 * m - 2) * math.prod(s**2 for s in norms[m:])
    return total


def expected_sides(c, quantity, form):
    """Measured value and bound of one part from the statement, with class means over classes of their own size."""
    k, n, e1, scale, w, z, s = c.k, c.n, c.eps1, c.scale, c.w, c.z, c.s
    e2, radius = max(c.gaps), max([*c.norms, norm(z[-3]), norm(z[-2])])
    width = len(z[-2])
    floor = ((scale - e1) / norm(z[0])) ** 2
    slack = {
        "paper": c.depth * (c.depth - 1) / 2 * radius ** (2 * c.depth - 2) * e2,
        "simple": telescoped(c, c.depth, "simple"),
        "sharp": telescoped(c, c.depth, "sharp"),
    }[form]
    low, high = c.product[k - 1] ** 2, c.product[0] ** 2
    if form == "paper":
        low, high = floor, floor * (c.product[0] / c.product[k - 1]) ** 2
    conditioned = ((high + slack) / (low - slack)) ** (1 / (2 * c.depth)) if low > slack else math.inf
    if quantity == "kappa_W_L":
        return c.kappa, conditioned
    if quantity == "nc1":
        means = c.means(z[-2])
        measured = (c.centred(z[-2]) ** 2).sum() / n / ((means - means.mean(1, keepdims=True)) ** 2).sum() * k
        between = math.sqrt(1 - 1 / k) - (2 if form == "paper" else 1) * e1 / (math.sqrt(k) * scale)
        scatter, psi = c.centred(z[-3]), radius * (e1 / (scale - e1) + math.sqrt(width * e2))
        seen = (c.centred(c.error) ** 2).sum() / s[k - 1] ** 2
        unseen = c.gaps[-1] * min((scatter**2).sum(), (width - k) * norm(scatter) ** 2)
        top = s[0] ** 2 * (seen + unseen) if form == "sharp" else radius**2 * psi**2
        return measured, top / n / between**2
    if quantity == "nc2":
        measured = singular(c.means(z[-2]))[0] / singular(c.means(z[-2]))[k - 1]
        delta = norm(c.means(c.error)) if form == "sharp" else e1 / scale
        unseen = {
            "paper": radius**2 * math.sqrt(e2) / scale,
            "simple": norm(w[-1]) * norm(z[-3]) * math.sqrt(c.gaps[-1]) / scale,
            "sharp": norm(w[-1]) * math.sqrt(c.gaps[-1]) * norm(c.means(z[-3])),
        }[form]
        seen = (1 + delta) * (conditioned if form == "paper" else c.kappa)
        return measured, (math.hypot(seen, unseen) if form == "sharp" else seen + unseen) / (1 - delta)
    rows = w[-1][c.labels].T
    measured = np.mean((z[-2] * rows).sum(0) / np.linalg.norm(z[-2], axis=0) / np.linalg.norm(rows, axis=0))
    if form == "sharp":
        inverse, cosines = np.linalg.pinv(w[-1]), []
        for i, label in enumerate(c.labels):
            length, own = np.linalg.norm(w[-1][label]), 1 + c.error[label, i]
            hidden = z[-2][:, i] - inverse @ (w[-1] @ z[-2][:, i])
            seen = own * np.linalg.norm(inverse[:, label])
            seen += np.linalg.norm(np.delete(c.error[:, i], label)) / s[k - 1]
            cosines.append(own / (length * math.hypot(seen, np.linalg.norm(hidden))) if own > 0 else -1)
        return measured, np.mean(cosines)
    kappa = conditioned if form == "paper" else c.kappa
    top = radius if form == "paper" else s[0]
    unseen = (radius if form == "paper" else norm(z[-3])) * math.sqrt(width * (e2 if form == "paper" else c.gaps[-1]))
    return measured, (1 - e1 / math.sqrt(n)) * 2 / (kappa + 1 / kappa) - (kappa * e1 + top * unseen) / math.sqrt(n)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("statement", STATEMENTS)
@pytest.mark.parametrize(("seed", "depth", "noise"), [(0, 4, 1e-5), (1, 3, 3e-5), (2, 2, 1e-3)])
def test_every_bound_of_an_uneven_head(statement, form, seed, depth, noise):
    head = uneven_head(seed, noise=noise, depth=depth)
    check = statement(head, form)
    measured, bound = expected_sides(in_columns(head), check.quantity, form)
    assert math.isfinite(bound)
    assert (check.measured, check.bound) == pytest.approx((measured, bound), rel=1e-8)


@pytest.mark.parametrize("statement", [theorem_3_1_nc1, theorem_3_1_nc2, theorem_3_1_nc3])
def test_sharp_and_simple_bounds_at_a_larger_error(statement):
    head = uneven_head(3, noise=0.08, depth=3)
    c = in_columns(head)
    for form in ("simple", "sharp"):
        check = statement(head, form)
        expected = expected_sides(c, check.quantity, form)
        assert (check.measured, check.bound) == pytest.approx(expected, rel=1e-8)


def test_the_scatter_that_is_not_seen_takes_the_lesser_of_two_measures():
    """One sample that scatters has operator norm and Frobenius norm alike; a narrow layer counts few directions."""
    for extra, depth in ((1, 2), (6, 2)):
        generator = torch.Generator().manual_seed(0)
        weights, features, y = random_head(generator, 3, depth, 5, extra, noise=0.05, spread=(0.9, 1.3))
        head = LinearHead(weights, features, y)
        c = in_columns(head)
        scatter = c.centred(c.z[-3])
        first, second = (scatter**2).sum(), extra * norm(scatter) ** 2
        assert (second < first) == (extra == 1)
        assert theorem_3_1_nc1(head).bound == pytest.approx(expected_sides(c, "nc1", "sharp")[1], rel=1e-9)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0, 1.0), (3.0, 0.5, 1.2, 0.8), (0.5, 0.7, 2.0, 1.5)])
def test_telescoping_of_the_last_layers(count, scales):
    """Layers of different sizes: those that are not among the last j do not count."""
    c = in_columns(uneven_head(0, noise=0.1))
    weights = [torch.from_numpy(scale * w) for scale, w in zip(scales, c.w, strict=True)]
    c = in_columns(LinearHead(weights, torch.zeros(3, 8), torch.arange(3)))
    product, last = c.tail(count), c.w[-1]
    measured = norm(product @ product.T - np.linalg.matrix_power(last @ last.T, count))
    for form in ("simple", "sharp"):
        check = telescoping(weights, count, form)
        assert (check.measured, check.bound) == pytest.approx((measured, telescoped(c, count, form)), rel=1e-10)
        assert check.holds and check.hypotheses == ()
        # 2j products of matrices at most n wide, n units in the last place of the largest norm each, K rows
        rounding = count * 8 * 2.0**-52 * max(c.norms) ** (2 * count) * 3
        assert check.rounding == pytest.approx(rounding, rel=1e-9, abs=0)
    if count == 4:
        assert telescoping(weights).bound == telescoping(weights, 4, "simple").bound


def test_how_many_layers_telescope():
    head = uneven_head(0)
    for count, words in ((1, "count must be 2 … 4, the number of layers; got 1"), (5, "must be 2 … 4, .*; got 5")):
        with pytest.raises(ValueError, match=words):
            telescoping(head.weights, count)
    with pytest.raises(ValueError, match=r"weights must be matrices; got shape \(3,\)"):
        telescoping([torch.ones(3), torch.ones(3, 3)])
    with pytest.raises(TypeError, match=r"count must be an integer; got 2\.0"):
        telescoping(head.weights, 2.0)
    for form in ("simple", "sharp"):
        for count in (0, 1):  # nothing is exchanged
            assert float(theorem_3_1.telescoping_error(head, count, form)) == 0
            measured, bound = theorem_3_1.telescoping_sides(head, count, form)
            assert float(measured) < 1e-15 and float(bound) == 0
        for function in (theorem_3_1.telescoping_error, theorem_3_1.telescoping_sides):
            with pytest.raises(ValueError, match="count must be at least 0; got -1"):
                function(head, -1, form)


@pytest.mark.parametrize(
    "function",
    [
        theorem_3_1.nc1_sides,
        theorem_3_1.conditioning_sides,
        theorem_3_1.nc2_sides,
        theorem_3_1.nc3_sides,
        *STATEMENTS,
    ],
)
def test_what_is_no_head_and_no_form_is_refused(function):
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        function(3, "sharp")
    with pytest.raises(TypeError, match="form must be a string; got 3"):
        function(uneven_head(0), 3)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_the_sharp_form_is_the_default(statement):
    head = uneven_head(0)
    assert statement(head) == statement(head, "sharp")
    with pytest.raises(ValueError, match=r"form must be one of .*'paper', 'simple', 'sharp'.*; got 'exact'"):
        statement(head, "exact")


@pytest.mark.parametrize("noise", [1e-3, 0.05])
def test_hypotheses_hold_the_numbers_of_the_statement(noise):
    head = uneven_head(5, noise=noise, depth=3)
    c = in_columns(head)
    rank, e1 = c.s[2] / c.s[0], c.eps1
    radius = max([*c.norms, norm(c.z[-3]), norm(c.z[-2])])
    slack = 3 * radius**4 * max(c.gaps)
    floor = ((c.scale - e1) / norm(c.z[0])) ** 2
    least = c.product[2] ** 2
    expected = {
        ("nc1", "paper"): [
            (4, 2, "<="),
            (e1, math.sqrt(2), "<="),
            (e1, math.sqrt(2 * 9 / (4 * 3)), "<="),
        ],
        ("nc1", "simple"): [(e1, math.sqrt(2), "<")],
        ("nc1", "sharp"): [(rank, 1e-12, ">"), (e1, 2.0, "<")],
        ("kappa_W_L", "paper"): [(e1, math.sqrt(2), "<"), (slack, floor, "<")],
        ("kappa_W_L", "simple"): [(telescoped(c, 3, "simple"), least, "<")],
        ("kappa_W_L", "sharp"): [(telescoped(c, 3, "sharp"), least, "<")],
        ("nc2", "paper"): [(e1, math.sqrt(2), "<"), (slack, floor, "<")],
        ("nc2", "simple"): [(e1, math.sqrt(2), "<")],
        ("nc2", "sharp"): [(norm(c.means(c.error)), 1.0, "<")],
        ("nc3", "paper"): [(e1, math.sqrt(2), "<"), (slack, floor, "<")],
        ("nc3", "simple"): [(rank, 1e-12, ">")],
        ("nc3", "sharp"): [(rank, 1e-12, ">")],
    }
    for statement in STATEMENTS:
        for form in FORMS:
            check = statement(head, form)
            wanted = expected[check.quantity, form]
            assert [h.sense for h in check.hypotheses] == [sense for _, _, sense in wanted]
            for h, (value, threshold, _) in zip(check.hypotheses, wanted, strict=True):
                assert (h.value, h.threshold) == pytest.approx((value, threshold), rel=1e-9), h


def with_error(error, classes=3):
    """Identity layers, one sample a class, and this error."""
    eye = torch.eye(classes, dtype=torch.float64)
    return LinearHead([eye, eye], eye + torch.tensor(error, dtype=torch.float64), torch.arange(classes))


@pytest.mark.parametrize(
    ("error", "finite"),
    [
        (0.70, ("paper", "simple", "sharp")),  # the paper's denominator is 0 at √(1/2), K = 3
        (0.72, ("simple", "sharp")),
        (0.99, ("simple", "sharp")),  # s_K(Y) = 1
        (1.0, ("sharp",)),
        (1.01, ("sharp",)),
        (1.40, ("sharp",)),
        (1.42, ()),  # √(K−1)
        (3.0, ()),
    ],
)
def test_nc1_is_bounded_as_long_as_the_error_is_small(error, finite):
    head = with_error([[error, 0, 0], [0, 0, 0], [0, 0, 0]])
    for form in FORMS:
        check = theorem_3_1_nc1(head, form)
        assert (check.bound != math.inf) == (form in finite), form
        assert check.bound >= 0 and check.silent == (form not in finite)
        allowance = theorem_3_1._nc1_rounding(head, form)
        assert (allowance > 0) == (form in finite) and allowance < 1e-9


@pytest.mark.parametrize(("error", "simple", "sharp"), [(0.9, True, True), (1.1, False, False), (3.0, False, False)])
def test_nc2_is_bounded_as_long_as_delta_is_below_1(error, simple, sharp):
    head = with_error([[error, 0, 0], [0, 0, 0], [0, 0, 0]])
    found = [theorem_3_1_nc2(head, form) for form in FORMS]
    assert [check.bound != math.inf for check in found] == [simple, simple, sharp]
    assert [check.hypotheses[0].holds for check in found] == [simple, simple, sharp]
    spread = with_error([[0.8, 0, 0], [0, 0.8, 0], [0, 0, 0]])  # operator norm 0.8, Frobenius norm 1.13
    assert math.isfinite(theorem_3_1_nc2(spread, "sharp").bound)
    assert math.isinf(theorem_3_1_nc2(spread, "simple").bound)


def test_the_papers_conditioning_has_no_floor_beyond_the_error():
    head = with_error([[1.5, 0, 0], [0, 0, 0], [0, 0, 0]])
    check = theorem_3_1_conditioning(head, "paper")
    assert [h.holds for h in check.hypotheses] == [False, False]  # 0 < 0
    assert check.hypotheses[1].threshold == 0 and check.bound == math.inf
    assert theorem_3_1_nc3(head, "paper").bound == -math.inf
    near = theorem_3_1_conditioning(with_error([[0.5, 0, 0], [0, 0, 0], [0, 0, 0]]), "paper")
    assert near.hypotheses[1].threshold == pytest.approx((0.5 / 1.5) ** 2) and near.bound == pytest.approx(1.0)


def test_too_much_imbalance_leaves_the_conditioning_open():
    eye = torch.eye(2, dtype=torch.float64)
    # two layers a and 1: η = ‖W_2‖²|1 − a²| for the sharp form, against s_K(A)² = a²
    for a, speaks in ((0.70, False), (0.72, True), (3.0, True)):
        head = LinearHead([a * eye, eye], eye / a, torch.arange(2))
        check = theorem_3_1_conditioning(head, "sharp")
        gap = abs(1 - a * a)
        assert check.hypotheses_met is speaks and (check.bound != math.inf) is speaks
        if speaks:
            assert check.bound == pytest.approx(((a * a + gap) / (a * a - gap)) ** 0.25)
    for a, speaks in ((0.8, True), (1.3, True), (1.7, True), (0.6, False)):  # simple: max(1, a)²|1 − a²|
        check = theorem_3_1_conditioning(LinearHead([a * eye, eye], eye / a, torch.arange(2)), "simple")
        assert check.hypotheses_met is (max(1, a) ** 2 * abs(1 - a * a) < a * a) is (speaks and a < 1.4)


@pytest.mark.parametrize(("own", "bound"), [(-1.0, -1.0), (-0.5, 1.0), (-0.999, 1.0), (-1.5, -1.0), (0.7, 1.0)])
def test_a_sample_whose_own_output_is_not_positive_counts_as_opposite(own, bound):
    """Error in the own class alone: the cosine is 1 as long as the output is positive."""
    head = with_error([[own, 0, 0], [0, 0, 0], [0, 0, 0]])
    assert theorem_3_1_nc3(head, "sharp").bound == pytest.approx((bound + 2) / 3)


def test_an_output_of_nothing_for_the_own_class_counts_as_opposite():
    head = with_error([[-1.0, 0.3, 0], [0, 0, 0], [0, 0, 0]])
    assert theorem_3_1_nc3(head, "sharp").bound == pytest.approx(1 / 3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [2, 4])
def test_the_allowance_of_nc1_counts_every_product(form, depth):
    """An (N, n) by (n, m) product is off by n u of the norms, a mean of m samples by (m + 2) u; then (a + c)² − a²."""
    head = uneven_head(4, noise=0.02, depth=depth)
    c = in_columns(head)
    unit, off, before = 2.0**-53, 0.0, 0.0
    for z, w in zip(c.z, c.w, strict=False):
        before, off = off, off * norm(w) + w.shape[1] * unit * np.linalg.norm(z) * np.linalg.norm(w)
    means = c.means(c.z[-2])
    measured_root = math.sqrt(c.n / c.k) * np.linalg.norm(means - means.mean(1, keepdims=True))
    times = 2 if form == "paper" else 1
    bound_root = math.sqrt(c.n) * (math.sqrt(2 / 3) - times * c.eps1 / math.sqrt(3 * 2))
    radius = max([*c.norms, norm(c.z[-3]), norm(c.z[-2])])
    factor = c.kappa if form == "sharp" else radius**2 / (c.scale - c.eps1)
    mean = (4 + 2) * unit
    total = (before + mean * np.linalg.norm(c.z[-2])) / measured_root
    total += factor * (off + mean * (np.linalg.norm(c.z[-1]) + 3)) / bound_root
    nc1 = expected_sides(c, "nc1", form)[0]
    expected = 2 * math.sqrt(nc1) * total + total**2
    assert theorem_3_1_nc1(head, form).rounding == pytest.approx(expected, rel=1e-6, abs=0)


def test_no_allowance_where_class_means_coincide():
    eye = torch.eye(2, dtype=torch.float64)
    head = LinearHead([eye, eye], torch.full((4, 2), 0.5).double(), torch.tensor([0, 1, 0, 1]))
    assert theorem_3_1._nc1_rounding(head, "sharp") == 0.0
