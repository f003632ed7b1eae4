"""Collapse of near-global minimisers."""

import dataclasses
import math

import pytest
import torch
from heads import seeds
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from ncutils.theory import LinearHead
from ncutils.theory.corollary_5_2 import collapse_bounds, corollary_5_2, corollary_5_2_limit
from ncutils.theory.theorem_3_1 import telescoping_error


def network(classes, depth, noise=0.0, seed=0, samples=3):
    """X = Y (padded), one ReLU layer and the head all identities, then moved by noise: (head, W_1, x)."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(classes).repeat_interleave(samples)
    x = torch.eye(classes).double()[y]
    layers = [
        torch.eye(classes).double() + noise * torch.randn(classes, classes, generator=generator).double()
        for _ in range(depth + 1)
    ]
    return LinearHead(layers[1:], torch.relu(x @ layers[0].T), y), [layers[0]], x


@settings(max_examples=150, deadline=None)
@given(seeds, st.integers(2, 4), st.integers(2, 5), st.sampled_from([0.0, 1e-6, 1e-3, 0.03, 0.1]))
def test_nothing_is_violated(seed, classes, depth, noise):
    head, first, x = network(classes, depth, noise, seed)
    for weight_decay in (1e-6, 1e-3, 0.05):
        for check in corollary_5_2(head, nonlinear_weights=first, x=x, weight_decay=weight_decay):
            assert check.holds is not False, str(check)


def test_it_speaks_at_the_reference_and_can_fail():
    head, first, x = network(3, 4)
    checks = corollary_5_2(head, nonlinear_weights=first, x=x, weight_decay=1e-4)
    assert all(check.holds is True for check in checks)
    for check in checks[1:]:
        factor = 0.5 if check.sense == "<=" else 2.0
        assert dataclasses.replace(check, bound=factor * check.measured).holds is False
    # λ too large for the premise: silent
    assert all(c.holds is None for c in corollary_5_2(head, nonlinear_weights=first, x=x, weight_decay=10.0))
    with pytest.raises(ValueError, match="weight_decay must be"):
        corollary_5_2(head, nonlinear_weights=first, x=x, weight_decay=0.0)


def test_bounds_of_exact_parameters():
    """At k = 1 and e = 0 all is ideal, and each bound gets worse with k and with e."""
    assert collapse_bounds(1.0, 0.0, 3) == (0.0, 1.0, 1.0)
    base = collapse_bounds(1.1, 0.01, 3)
    for worse in (collapse_bounds(1.2, 0.01, 3), collapse_bounds(1.1, 0.02, 3)):
        assert worse[0] > base[0]
        assert worse[1] > base[1]
        assert worse[2] < base[2]
    assert collapse_bounds(1.1, 0.9, 3) == (math.inf, math.inf, pytest.approx(-0.8905, abs=1e-3))


def test_the_limit_needs_the_decay_to_vanish():
    case = {"rms": 1.0, "reference": 4.0, "classes": 2, "samples": 20, "nonlinear": 1}
    nc1, nc2, nc3 = corollary_5_2_limit([10**7], lambda depth: depth**-1.5, **case)[0]
    assert nc1 < 1e-3
    assert nc2 < 1.05
    assert nc3 > 0.98
    # λL2 fixed: the error does not vanish, NC2's bound stays away from 1
    stuck = corollary_5_2_limit([10**3, 10**7], lambda depth: 0.5 / depth, **case)
    assert stuck[1][1] > 1.4
    # λ fixed: beyond some depth the premise fails (the trivial solution wins)
    assert corollary_5_2_limit([10**4], lambda depth: 0.1, **case)[0] == (math.inf, math.inf, -1.0)


def test_the_shortest_head_is_one_layer():
    case = {"rms": 1.0, "reference": 4.0, "classes": 2, "samples": 20, "nonlinear": 1}
    assert len(corollary_5_2_limit([1, 2], lambda depth: 1e-4, **case)) == 2
    with pytest.raises(ValueError, match="depths"):
        corollary_5_2_limit([0], lambda depth: 1e-4, **case)


@settings(max_examples=40, deadline=None)
@given(st.floats(1.0, 5.0), st.floats(0.0, 0.2), st.integers(2, 5), seeds)
def test_a_balanced_head_with_k_and_e_obeys_the_bounds(k, e, classes, seed):
    """Independent of Theorem 5.2: κ(W_L) = k and ‖E‖_F = e√N exactly, D = 0, give NC1 and NC3 within the bounds."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.logspace(0, math.log10(k), classes, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(classes, classes, generator=generator).double()).Q
    last, before = basis * values, torch.diag(values)
    y = torch.arange(classes).repeat_interleave(3)
    noise = torch.randn(len(y), classes, generator=generator).double()
    target = torch.eye(classes).double()[y] + e * math.sqrt(len(y)) * noise / noise.norm()
    head = LinearHead([before, last], target @ torch.linalg.inv(last @ before).T, y)
    nc1, nc2, nc3 = collapse_bounds(k, e, classes)
    z = head.layers[-2]
    assert float(head.nc1(z)) <= nc1 * (1 + 1e-9) + 1e-20
    # the head is balanced, not stationary: 1 + δ̄ stays
    assert float(head.nc2(z)) <= nc2 * (1 + e * math.sqrt(classes)) * (1 + 1e-9)
    assert float(head.nc3(z, last)) >= nc3 - 1e-9


@pytest.mark.parametrize(
    ("k", "e", "classes"), [(1.0, 0.0, 3), (1.3, 0.1, 4), (2.0, 0.25, 2), (1.1, 0.05, 10), (3, 0, 5)]
)
def test_the_bounds_are_those_of_the_corollary(k, e, classes):
    delta = e * math.sqrt(classes)
    nc1 = k**2 * e**2 / (math.sqrt((classes - 1) / classes) - e) ** 2
    nc3 = (1 - e) * 2 * k / (k**2 + 1) - k * e
    assert collapse_bounds(k, e, classes) == pytest.approx((nc1, k / (1 - delta), nc3), rel=1e-12)


@pytest.mark.parametrize(
    ("k", "e", "classes", "expected"),
    [
        (1.5, 0.5, 4, (approx((0.75 / (0.75**0.5 - 0.5)) ** 2), math.inf, approx(1 / (1.5 + 1 / 1.5) - 0.75))),
        (1.5, 0.5**0.5, 2, (math.inf, math.inf, approx((2 - 2**0.5) / (1.5 + 1 / 1.5) - 1.5 * 0.5**0.5))),
        (2.0, 0.0, 1, (math.inf, 2.0, approx(0.8))),  # one class has nothing between classes
        (10.0, 0.5, 3, (approx((5 / ((2 / 3) ** 0.5 - 0.5)) ** 2), approx(10 / (1 - 0.5 * 3**0.5)), -1.0)),
        (1e100, 0.1, 2, (math.inf, approx(1e100 / (1 - 0.1 * 2**0.5)), -1.0)),
        (1e100, 0.0, 2, (math.inf, 1e100, -1.0)),
        (1e300, 0.0, 2, (math.inf, 1e300, -1.0)),
        (9e99, 0.0, 2, (0.0, 9e99, approx(2 / 9e99))),
        (1.0, 1e100, 2, (math.inf, math.inf, -1.0)),
    ],
)  # fmt: skip
def test_bounds_that_say_nothing_are_infinite_or_minus_one(k, e, classes, expected):
    assert collapse_bounds(k, e, classes) == expected


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((0.999, 0.0, 2), "k must be at least 1; got 0.999"),
        ((1.0, -1e-9, 2), r"e must be at least 0, at most 1e\+100; got -1e-09"),
        ((1.0, 1.1e100, 2), r"e must be at least 0, at most 1e\+100; got 1.1e\+100"),
        ((1.0, 0.0, 0), "classes must be at least 1; got 0"),
    ],
)
def test_bounds_refuse_numbers_out_of_range(given, words):
    with pytest.raises(ValueError, match=words):
        collapse_bounds(*given)


def promised(depth, decay, rms, reference, classes, samples, nonlinear):
    """C and k of the module's text at δ = 0."""
    eps = math.sqrt(decay * (reference + classes * depth))
    exponent = 0.5 * (reference - classes * nonlinear + classes * nonlinear * math.log(classes))
    c = 2 * (rms / (1 - eps / math.sqrt(samples / classes))) ** classes * math.exp(exponent)
    return max(c, 1.0) ** (1 / depth), eps / math.sqrt(samples)


@pytest.mark.parametrize(
    "case",
    [
        {"rms": 1.0, "reference": 4.0, "classes": 2, "samples": 20, "nonlinear": 1},
        {"rms": 0.7, "reference": 9.0, "classes": 3, "samples": 60, "nonlinear": 2},
        {"rms": 2.0, "reference": 0.0, "classes": 4, "samples": 44, "nonlinear": 0},
        {"rms": 1e-3, "reference": 1.0, "classes": 2, "samples": 20, "nonlinear": 1},  # C < 1: no κ is below 1
        {"rms": 1.0, "reference": 2.0, "classes": 1, "samples": 20, "nonlinear": 1},
    ],
)
def test_what_is_promised_before_training_is_the_corollary_at_a_minimiser(case):
    depths, decay = [1, 2, 7, 40], lambda depth: 0.01 / depth
    found = corollary_5_2_limit(depths, decay, **case)
    assert len(found) == 4
    for depth, bounds in zip(depths, found, strict=True):
        k, e = promised(depth, decay(depth), **case)
        assert bounds == pytest.approx(collapse_bounds(k, e, case["classes"]), rel=1e-9)


def test_the_premise_fails_where_the_error_reaches_the_labels():
    case = {"rms": 1.0, "reference": 4.0, "classes": 4, "nonlinear": 1}
    nothing = (math.inf, math.inf, -1.0)
    # ε̄² = λ(c + K L2) = 8 = N/K
    assert corollary_5_2_limit([1, 2], lambda depth: 1.0 if depth == 1 else 1e-3, samples=32, **case)[0] == nothing
    assert corollary_5_2_limit([1, 2], lambda depth: 1.0 if depth == 1 else 1e-3, samples=32, **case)[1] != nothing
    assert corollary_5_2_limit([1], lambda depth: 1.0, samples=36, **case)[0] != nothing


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"depths": [0]}, ValueError, r"depths\[0\] must be at least 1; got 0"),
        ({"depths": [10**9 + 1]}, ValueError, r"depths\[0\] must be at most 1e\+09; got 1000000001"),
        ({"weight_decay": 0.1}, TypeError, "weight_decay must be a function; got 0.1"),
        ({"rms": 0.0}, ValueError, "rms must be above 0, finite; got 0.0"),
        ({"reference": -0.1}, ValueError, "reference must be at least 0, finite; got -0.1"),
        ({"reference": math.inf}, ValueError, "reference must be at least 0, finite; got inf"),
        ({"classes": 0}, ValueError, "classes must be at least 1; got 0"),
        ({"samples": 0}, ValueError, "samples must be at least 1; got 0"),
        ({"nonlinear": -1}, ValueError, "nonlinear must be at least 0; got -1"),
    ],
)
def test_promises_refuse_what_is_out_of_range(change, error, words):
    case = {"depths": [10**9], "weight_decay": lambda depth: depth**-2.0, "rms": 1.0, "reference": 0.0, "classes": 1,
            "samples": 1, "nonlinear": 0}  # fmt: skip
    assert len(corollary_5_2_limit(**case)) == 1  # each at its limit
    with pytest.raises(error, match=words):
        corollary_5_2_limit(**{**case, **change})


def lopsided(seed=0):
    """Four samples a class, widths 3, 5, 4, 3: every size is another one, and every layer is out of balance."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(3).repeat_interleave(4)
    x = torch.eye(3).double()[y] + 0.02 * torch.randn(12, 3, generator=generator).double()
    shapes = [(3, 3), (5, 3), (4, 5), (3, 4)]
    pad = lambda rows, columns: torch.eye(rows, 3).double() @ torch.eye(3, columns).double()  # noqa: E731
    layers = [pad(*shape) + 0.005 * torch.randn(*shape, generator=generator).double() for shape in shapes]
    return LinearHead(layers[1:], torch.relu(x @ layers[0].T), y), [layers[0]], x


@pytest.mark.parametrize("weight_decay", [1e-4, 1e-2])
def test_the_imbalance_is_charged_as_stated(weight_decay):
    """The version for any imbalance, from the numbers of its text."""
    head, first, x = lopsided()
    n, classes, depth = 12, 3, 3
    norm = lambda matrix: float(torch.linalg.matrix_norm(matrix, 2))  # noqa: E731
    squares = sum(float(w.square().sum()) for w in (*head.weights, *first))
    total = float(head.eps1) ** 2 / weight_decay + squares  # c + K L2 + δ
    eps = math.sqrt(weight_decay * total)
    e, delta = eps / math.sqrt(n), eps / math.sqrt(n / classes)
    c = 2 * (float(x.norm()) / math.sqrt(n) / (1 - delta)) ** classes
    c *= math.exp(0.5 * (total - classes * depth - classes + classes * math.log(classes)))
    product = head.weights[2] @ head.weights[1] @ head.weights[0]
    v = float(telescoping_error(head, depth, "sharp")) / float(torch.linalg.svdvals(product)[classes - 1]) ** 2
    k = ((c**2 + v) / (1 - v)) ** (1 / (2 * depth))
    z = head.layers[-3]
    last = head.weights[-1]
    hidden = norm(last) ** 2 * norm(last.T @ last - head.weights[-2] @ head.weights[-2].T)
    means = torch.stack([z[head.y == label].mean(0) for label in range(classes)])
    within = float((z - means[head.y]).square().sum()) / n
    nc1 = (k**2 * e**2 + hidden * within) / (math.sqrt((classes - 1) / classes) - e) ** 2
    nc2 = math.sqrt((k * (1 + delta)) ** 2 + hidden * norm(means) ** 2) / (1 - delta)
    nc3 = (1 - e) * 2 * k / (k**2 + 1) - k * e - math.sqrt(hidden) * float(z.norm()) / math.sqrt(n)
    checks = corollary_5_2(head, nonlinear_weights=first, x=x, weight_decay=weight_decay)
    assert [check.bound for check in checks] == pytest.approx([nc1, nc2, nc3], rel=1e-9)
    assert [check.sense for check in checks] == ["<=", "<=", ">="] and all(check.holds for check in checks)
    assert hidden * within > 0 and k > 1.01
    before = head.layers[-2]
    measured = [head.nc1(before), head.nc2(before), head.nc3(before, last)]
    assert [check.measured for check in checks] == pytest.approx([float(m) for m in measured])
    told = checks[0].hypotheses[-1]
    assert (told.name, told.threshold, told.sense) == ("telescoping error < s_K(A)²", 1.0, "<")
    assert told.value == pytest.approx(v) and {check.statement for check in checks} == {"Corollary to Theorem 5.2"}


def test_without_its_premise_it_is_silent_and_its_bounds_are_useless():
    head, first, x = lopsided()
    checks = corollary_5_2(head, nonlinear_weights=first, x=x, weight_decay=10.0)
    assert [check.bound for check in checks] == [math.inf, math.inf, -math.inf]
    narrow = LinearHead([torch.eye(2, 3).double(), torch.eye(3, 2).double()], x, torch.arange(3).repeat_interleave(4))
    checks = corollary_5_2(narrow, nonlinear_weights=[torch.eye(3).double()], x=x, weight_decay=1e-9)
    assert all(check.holds is None and math.isinf(check.bound) for check in checks)
    entered = LinearHead([torch.eye(3, 2).double(), torch.eye(3).double()], x[:, :2], narrow.y)  # by two features
    checks = corollary_5_2(entered, nonlinear_weights=[torch.eye(2, 3).double()], x=x, weight_decay=1e-9)
    assert all(check.holds is None and math.isinf(check.bound) for check in checks)
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        corollary_5_2(3, nonlinear_weights=first, x=x, weight_decay=1.0)


def test_an_error_as_large_as_the_class_means_bounds_no_scatter():
    """For two classes the premise, ε̄² < N/K, is what makes √((K-1)/K) - e positive."""
    head, first, x = network(2, 2, noise=0.0, samples=4)
    for size, finite in ((0.9, True), (0.999, True), (1.001, False)):
        norms = sum(float(w.square().sum()) for w in (*head.weights, *first))
        checks = corollary_5_2(head, nonlinear_weights=first, x=x, weight_decay=size**2 * 4 / norms)
        assert math.isfinite(checks[0].bound) is finite and checks[0].hypotheses_met is finite
