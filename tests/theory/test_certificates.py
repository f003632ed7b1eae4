"""Certificates of κ(A) and κ(W_L)."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from heads import in_columns, linear_heads, norm, seeds, singular, uneven_head
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from ncutils.theory import (
    LinearHead,
    attack_heads,
    proposition_5_1,
    random_head,
    theorem_5_2_a_priori,
    theorem_5_2_posteriori,
)
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


# --- every number, on a head without symmetry


def spectra(c):
    """ln s_i(f) and ln s_i(Z_{L1}), i ≤ K, and ln G."""
    gain = sum(math.log((singular(w)[: c.k] ** 2).sum()) for w in c.w) / c.depth
    return np.log(singular(c.z[-1])[: c.k]), np.log(singular(c.z[0])[: c.k]), gain


def floors_of(c):
    """h_j: the j least of f over the j largest of Z."""
    out, entering, _ = spectra(c)
    return [out[c.k - j :].sum() - entering[:j].sum() for j in range(1, c.k + 1)]


def largest_spread(floors, gain, depth):
    """The convex programme of the statement itself, by a general solver: max x_1 − x_K."""
    k = len(floors)
    found = optimize.minimize(
        lambda x: x[-1] - x[0],
        np.linspace(0.3, -0.3, k) + (gain - math.log(k)) * depth / 2 - 0.1,
        method="SLSQP",
        constraints=[
            {"type": "ineq", "fun": lambda x: math.exp(gain) - np.exp(2 * x / depth).sum()},
            {"type": "ineq", "fun": lambda x: np.cumsum(x[::-1]) - floors},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return -found.fun


@pytest.mark.parametrize(("classes", "depth", "seed"), [(2, 2, 0), (2, 4, 1), (3, 3, 0), (4, 2, 2), (5, 3, 3)])
def test_the_three_certificates_from_their_statements(classes, depth, seed):
    generator = torch.Generator().manual_seed(seed)
    head = LinearHead(*random_head(generator, classes, depth, 3, 1, noise=0.05, spread=(0.8, 1.3)))
    c = in_columns(head)
    out, entering, gain = spectra(c)
    floors = floors_of(c)
    total = sum((w**2).sum() for w in c.w)
    features = (total - classes * depth) / 2 + entering[0] + entering[:-1].sum() - out[-1] - out[1:].sum()
    excess = classes / 2 * (gain - math.log(classes) - 2 / (classes * depth) * (out - entering).sum())
    expected = {
        "features": features,
        "geometric": depth * math.acosh(math.exp(excess)),
        "joint": largest_spread(np.array(floors), gain, depth),
    }
    np.testing.assert_allclose(module._floors(head), floors, rtol=1e-9)
    assert float(module._log_gain(head)) == pytest.approx(gain)
    for form, bound in expected.items():
        check = head_certificate(head, form)
        assert check.measured == pytest.approx(math.log(c.product[0] / c.product[classes - 1]), rel=1e-9)
        assert check.bound == pytest.approx(bound, rel=1e-6), form
        least = singular(c.z[-1])[classes - 1] / singular(c.z[-1])[0]
        assert (check.hypotheses[0].value, check.hypotheses[0].threshold) == pytest.approx((least, 1e-12))
    assert head_certificate(head) == head_certificate(head, "joint")


@pytest.mark.parametrize("last", [[2.0, 1.0, 1.0], [1.5, 1.3, 1.0], [2.0, 1.5, 1.2, 1.0], [3.0, 1.0]])
@pytest.mark.parametrize("depth", [2, 3])
def test_the_joint_certificate_where_single_directions_bind(last, depth):
    """Layers of the identity before an uneven last one: below the other two certificates, and the optimum."""
    eye = torch.eye(len(last), dtype=torch.float64)
    weights = [eye] * (depth - 1) + [torch.diag(torch.tensor(last, dtype=torch.float64))]
    head = LinearHead(weights, eye, torch.arange(len(last)))
    c = in_columns(head)
    bound = head_certificate(head).bound
    assert bound == pytest.approx(largest_spread(np.array(floors_of(c)), spectra(c)[2], depth), rel=1e-6)
    assert bound < min(head_certificate(head, form).bound for form in ("features", "geometric")) - 1e-3


@pytest.mark.parametrize(("classes", "depth"), [(2, 2), (3, 4), (30, 2), (12, 3)])
def test_what_the_root_of_rounding_is_allowed(classes, depth):
    """√(2t) for t = K/2 times 4e-15 at most, never less than 1e-7, once for every layer of the head."""
    eye = torch.eye(classes, dtype=torch.float64)
    head = LinearHead([eye] * depth, eye, torch.arange(classes))
    one = max(1e-7, 2 * math.sqrt(classes * 1e-15))
    assert (one > 1e-7) == (classes > 2)
    for form in module.FORMS:
        check = head_certificate(head, form)
        assert check.rounding == pytest.approx(depth * one, rel=1e-9, abs=0) and check.holds
        assert check.bound == pytest.approx(0, abs=check.rounding)
    last = certificate_of_last_layer(head)
    assert last.rounding == pytest.approx(one, rel=1e-9, abs=0) and last.holds
    assert last.bound == pytest.approx(0, abs=last.rounding)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("depth", "noise"), [(2, 0.03), (4, 1e-3), (4, 0.1)])
def test_the_certificate_of_the_last_layer_solves_its_equation(seed, depth, noise):
    head = uneven_head(seed, noise=noise, depth=depth)
    c = in_columns(head)
    out, entering, gain = spectra(c)
    budget = c.k * c.depth / 2 * (gain - math.log(c.k)) - (out - entering).sum()
    tails = [sum(c.gaps[i:]) for i in range(depth)]  # the last one is empty
    v = np.array(tails) * (norm(c.z[-2]) / math.exp(out[-1])) ** 2

    def left(q):
        return sum(math.log(math.cosh(math.log(max(1.0, (q - part) / (1 + part))) / 2)) for part in v)

    root = optimize.brentq(lambda t: left(math.exp(t)) - budget, 0, 50, xtol=1e-13)
    check = certificate_of_last_layer(head)
    assert budget > 1e-6
    assert check.measured == pytest.approx(math.log(c.kappa), rel=1e-9)
    assert check.bound == pytest.approx(root / 2, rel=1e-7)
    rank = check.hypotheses[0]
    assert (rank.value, rank.threshold) == pytest.approx((singular(c.z[-1])[2] / singular(c.z[-1])[0], 1e-12))


def test_the_certificate_of_the_last_layer_has_the_gradient_of_its_root():
    head = uneven_head(0, noise=0.05, depth=3)
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(w.shape, generator=generator).double() for w in head.weights]

    def bound(step):
        weights = [w + step * d for w, d in zip(head.weights, direction, strict=True)]
        return module.certificate_of_last_layer_sides(LinearHead(weights, head.features, head.y))[1]

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    slope = float(torch.autograd.grad(bound(step), step)[0])
    difference = float(bound(torch.tensor(1e-5).double()) - bound(torch.tensor(-1e-5).double())) / 2e-5
    assert slope == pytest.approx(difference, rel=1e-4) and abs(slope) > 1e-2


def test_a_perfect_head_has_no_gradient_to_follow():
    step = torch.ones((), dtype=torch.float64, requires_grad=True)
    eye = torch.eye(2, dtype=torch.float64)
    bound = module.certificate_of_last_layer_sides(LinearHead([step * eye, eye], eye, torch.arange(2)))[1]
    assert float(bound.detach()) == pytest.approx(0, abs=1e-7)
    assert math.isfinite(float(torch.autograd.grad(bound, step)[0]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_the_root_is_found_however_large(scale):
    """κ(W_2) = κ(W_1) = s, balanced: the certificate is attained for two classes."""
    stretch = torch.diag(torch.tensor([1.0, max(scale, 1 / scale)], dtype=torch.float64))
    head = LinearHead([stretch, stretch], torch.linalg.inv(stretch @ stretch), torch.arange(2))
    check = certificate_of_last_layer(head)
    assert check.measured == pytest.approx(abs(math.log(scale)), abs=1e-12)
    assert check.bound == pytest.approx(check.measured, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize(("least", "speaks"), [(0.99e-12, False), (1.01e-12, True), (1e-3, True)])
def test_the_rank_of_the_outputs_counts_from_a_million_millionth(least, speaks):
    eye = torch.eye(3, dtype=torch.float64)
    features = torch.diag(torch.tensor([2.0, 1.0, 2.0 * least], dtype=torch.float64))
    head = LinearHead([eye, eye], features, torch.arange(3))
    for check in (head_certificate(head, "features"), certificate_of_last_layer(head)):
        assert check.hypotheses_met is speaks and (check.bound != math.inf) is speaks
        assert (check.hypotheses[0].value, check.hypotheses[0].threshold) == pytest.approx((least, 1e-12))


def test_fewer_inputs_than_classes_are_silent():
    narrow = LinearHead([torch.ones(4, 2), torch.ones(3, 4)], torch.ones(3, 2), torch.arange(3))
    for form in module.FORMS:
        check = head_certificate(narrow, form)
        assert check.silent and check.bound == math.inf
        rank, width = check.hypotheses
        assert not rank.holds and rank.value < 1e-12
        assert (width.value, width.threshold, width.sense, width.holds) == (2, 3, ">=", False)
    assert certificate_of_last_layer(narrow).silent
    wide = head_certificate(uneven_head(0))
    assert (wide.hypotheses[1].value, wide.hypotheses[1].threshold) == (8, 3)


@pytest.mark.parametrize("nonlinear", [1, 2, 3])
@pytest.mark.parametrize("weight_decay", [0.01, 0.03])
def test_the_a_priori_bound_from_its_statement(nonlinear, weight_decay):
    generator = torch.Generator().manual_seed(nonlinear)
    y = torch.tensor([0, 1, 2, 1, 2, 2, 0, 1])  # 2, 3 and 3 samples
    x = 1.3 * torch.eye(3).double()[y]
    middle = [(torch.eye(3) / 1.3**0.5 + 0.03 * torch.randn(3, 3, generator=generator)).double()]
    middle += [(torch.eye(3) + 0.03 * torch.randn(3, 3, generator=generator)).double() for _ in range(nonlinear - 1)]
    features = x
    for w in middle:
        features = torch.relu(features @ w.T)
    weights = [(torch.eye(3) + 0.05 * torch.randn(3, 3, generator=generator)).double() for _ in range(2)]
    head = LinearHead(weights, features, y)
    check = certificate_a_priori(head, nonlinear_weights=middle, x=x, weight_decay=weight_decay)
    c = in_columns(head)
    objective = c.eps1**2 / 2 + weight_decay / 2 * sum(float((w**2).sum()) for w in [*weights, *middle])
    eps, budget = math.sqrt(2 * objective), 2 * objective / weight_decay
    length = math.sqrt(float((x**2).sum()) / 8)
    excess = budget - 3 * 2  # c + δ
    bound = 2 * (length / (1 - eps / math.sqrt(2))) ** 3
    bound *= math.exp((excess - 3 * nonlinear + 3 * nonlinear * math.log(3)) / 2)
    assert eps < math.sqrt(2)
    assert check.measured == pytest.approx(math.log(c.product[0] / c.product[2]))
    assert check.bound == pytest.approx(math.log(bound), rel=1e-9)
    error, width, reach = check.hypotheses
    assert (error.value, error.threshold, error.sense) == (pytest.approx(eps**2), pytest.approx(2.0), "<")
    assert (width.value, width.threshold, width.sense) == (3, 3, ">=")
    product = math.sqrt(8) * 1.3 * math.prod(float(w.norm()) for w in middle)
    assert (reach.value, reach.sense) == (pytest.approx(float(features.norm())), "<=")
    assert reach.threshold == pytest.approx(product, rel=1e-9)


A_PRIORI = pytest.mark.parametrize("statement", [certificate_a_priori, theorem_5_2_a_priori])


@A_PRIORI
@pytest.mark.parametrize(("weight_decay", "speaks"), [(0.999 / 6, True), (1.001 / 6, False), (2.0, False)])
def test_a_priori_needs_an_objective_below_the_labels(statement, weight_decay, speaks):
    """Two identities of the head and one before it, K = 2: c + K L2 + δ is 6 and N/K is 1."""
    eye = torch.eye(2, dtype=torch.float64)
    head = LinearHead([eye, eye], eye, torch.arange(2))
    check = statement(head, nonlinear_weights=[eye], x=eye, weight_decay=weight_decay)
    assert check.hypotheses[0].value == pytest.approx(6 * weight_decay)
    assert check.hypotheses_met is speaks and (check.bound != math.inf) is speaks


@A_PRIORI
def test_a_priori_needs_wide_layers_and_features_no_longer_than_they_can_be(statement):
    eye = torch.eye(3, dtype=torch.float64)
    narrow = LinearHead([eye[:2], eye[:, :2]], 0.1 * eye, torch.arange(3))
    check = statement(narrow, nonlinear_weights=[eye], x=eye, weight_decay=0.01)
    assert (check.hypotheses[1].value, check.hypotheses[1].holds) == (2, False)
    for size, holds in ((math.sqrt(3), True), (math.sqrt(3) * (1 + 1e-13), True), (math.sqrt(3) * (1 + 1e-11), False)):
        head = LinearHead([eye, eye], size * eye, torch.arange(3))
        check = statement(head, nonlinear_weights=[eye], x=eye, weight_decay=0.01)
        assert check.hypotheses[2].holds is holds


@pytest.mark.parametrize("weight_decay", [0.0, -0.1])
def test_a_priori_needs_weight_decay(weight_decay):
    head, nonlinear, x = reference(2)
    with pytest.raises(ValueError, match=f"weight_decay must be positive; got {weight_decay}"):
        module.a_priori_sides(head, nonlinear, x, weight_decay)


def test_what_is_no_head_is_refused():
    for function in (head_certificate, module.head_certificate_sides):
        with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
            function(3, "joint")
        with pytest.raises(TypeError, match="form must be a string; got 3"):
            function(uneven_head(0), 3)
    for function in (certificate_of_last_layer, module.certificate_of_last_layer_sides):
        with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
            function(3)
    eye = torch.eye(2)
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        certificate_a_priori(3, nonlinear_weights=[eye], x=eye, weight_decay=0.1)
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        module.a_priori_sides(3, [eye], eye, 0.1)
    with pytest.raises(TypeError, match="x must be a tensor or array; got 3"):
        certificate_a_priori(reference(2)[0], nonlinear_weights=[eye], x=3, weight_decay=0.1)


@pytest.mark.parametrize("nu", [[0.4, 0.0, 1.5], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.2, 0.3, 0.5]])
def test_the_dual_is_the_formula_of_the_statement(nu):
    """(L2/2) Σ a_i ln(a_i G/Σa) − Σ ν_jh_j with a_1 = 1 + ν_K, a_2 = ν_K + ν_{K−1}, a_3 = ν_K + ν_{K−1} + ν_1 − 1."""
    floors, gain, depth = [-0.3, -0.2, 0.1], 1.2, 4
    a = [1 + nu[2], nu[2] + nu[1], nu[2] + nu[1] + nu[0] - 1]
    entropy = sum(part * (math.log(part / sum(a)) + gain) for part in a if part > 1e-15)
    expected = depth / 2 * entropy - sum(n * h for n, h in zip(nu, floors, strict=True))
    multipliers = torch.tensor(nu, dtype=torch.float64)
    np.testing.assert_allclose(module._multiplicity(multipliers), a, atol=1e-15)
    found = module._dual(multipliers, torch.tensor(floors).double(), torch.tensor(gain).double(), depth)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_what_the_bound_needs_beside_the_head_goes_by_name():
    head, nonlinear, x = reference(2)
    assert certificate_a_priori(head=head, nonlinear_weights=nonlinear, x=x, weight_decay=0.01).holds
    with pytest.raises(TypeError, match="positional argument"):
        certificate_a_priori(head, nonlinear, x=x, weight_decay=0.01)
