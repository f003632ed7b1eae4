"""Section 5: certificates, near-minimisers and the tangent kernel."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from heads import exact_head, in_columns, linear_heads, seeds, singular, uneven_head
from heads import norm as operator_norm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ncutils.theory import (
    LinearHead,
    attack,
    excess,
    layer_conditioning,
    linear_ntk_norm,
    ntk_block,
    ntk_block_norms,
    ntk_norm,
    optimal_scale,
    proposition_5_1,
    proposition_5_3,
    proposition_5_3_floor,
    random_head,
    schatten,
    tangent_kernel,
    theorem_5_2,
    theorem_5_2_a_priori,
    theorem_5_2_posteriori,
)

FORMS = ("paper", "simple", "sharp")


@settings(max_examples=150, deadline=None)
@given(linear_heads(max_noise=2.0))
def test_nothing_is_violated(head):
    checks = [schatten(head.weights), layer_conditioning(head), theorem_5_2_posteriori(head)]
    for form in FORMS:
        checks += [proposition_5_1(head, form), proposition_5_3_floor(head, form)]
    checks += [proposition_5_3(head, layer) for layer in range(1, head.depth + 1)]
    for check in checks:
        assert check.holds is not False, str(check)


@settings(max_examples=60, deadline=None)
@given(linear_heads(max_noise=1e-3))
def test_second_certificate_is_never_weaker(head):
    paper, simple = (proposition_5_1(head, form) for form in ("paper", "simple"))
    if paper.hypotheses_met:
        assert simple.bound <= paper.bound * (1 + 1e-9)


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(2, 5), st.integers(2, 5))
def test_schatten_is_attained_by_balance(seed, classes, depth):
    head = exact_head(seed, num_classes=classes, num_linear=depth)
    check = schatten(head.weights)
    assert check.measured == pytest.approx(check.bound, rel=1e-10)
    assert dataclasses.replace(check, bound=0.999 * check.bound).holds is False
    # moving norm from one layer to another leaves A alone and costs norm
    moved = [2 * head.weights[0], head.weights[1] / 2, *head.weights[2:]]
    assert schatten(moved).ratio < 0.999


@settings(max_examples=40, deadline=None)
@given(seeds, st.integers(1, 5))
def test_sharp_certificates_are_attained_for_two_classes(seed, depth):
    """K = 2, balanced, collapsed features of equal lengths: κ(A) and κ(W_L) equal their certificates."""
    head = exact_head(seed, num_classes=2, num_linear=depth + 1)
    # features orthonormal up to scale: Horn's inequality is an equality for any Z of full row rank when K = width
    features = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(seed)).double()).Q[:4]
    bases = torch.linalg.svd(head.weights[0]).Vh[:2]
    features = features[:, :2] @ bases
    weights = head.weights
    y = torch.arange(2).repeat_interleave(2)
    head = LinearHead(weights, features, y)
    certificate = proposition_5_1(head, "sharp")
    assert certificate.measured == pytest.approx(certificate.bound, rel=1e-6)
    last = theorem_5_2_posteriori(head)
    assert last.measured == pytest.approx(last.bound, rel=1e-4)  # the square root of rounding, for heads near κ = 1
    layers = layer_conditioning(head)
    assert layers.measured == pytest.approx(layers.bound, rel=1e-8, abs=1e-10)
    for check in (certificate, last):
        assert dataclasses.replace(check, bound=0.99 * check.bound).holds is False


def test_sharp_is_not_always_below_simple():
    """A = I, Z = Y, K = L2 = 2, ten per cent of the norm wasted: 2.43 against 1.20 (theory notes, section 4)."""
    eye = torch.eye(2, dtype=torch.float64)
    stretch = torch.diag(torch.tensor([1.1 + math.sqrt(0.21), 1.1 - math.sqrt(0.21)], dtype=torch.float64)).sqrt()
    # layers diag(a) and diag(1/a): squared norms 2.2 each, product I
    weights = [stretch, torch.linalg.inv(stretch)]
    head = LinearHead(weights, eye, torch.arange(2))
    assert float(theorem_5_2.head_norm(head)) == pytest.approx(4.4)
    assert proposition_5_1(head, "sharp").bound == pytest.approx(2.43, abs=0.01)
    assert proposition_5_1(head, "simple").bound == pytest.approx(1.20, abs=0.01)


def test_arccosh_survives_extremes():
    x = torch.tensor([0.0, 1e-20, 1.0, 800.0], dtype=torch.float64)
    got = theorem_5_2._arccosh_of_power(x, 1.0)
    assert got[0] == 0
    assert got[1] == pytest.approx(math.sqrt(2) * 1e-10, rel=1e-8)
    assert got[2] == pytest.approx(math.acosh(math.e), rel=1e-12)
    assert got[3] == pytest.approx(800 + math.log(2), rel=1e-12)


def test_a_gain_that_rounds_below_1_counts_as_1():
    got = theorem_5_2._arccosh_of_power(torch.tensor([-1e-17, -0.5, 0.0, 1e-20], dtype=torch.float64), 2.0)
    assert got[:3].tolist() == [0, 0, 0] and float(got[3]) == pytest.approx(math.sqrt(4e-20), rel=1e-8, abs=0)


def test_unmet_hypotheses_are_silent():
    weights, features, y = random_head(torch.Generator().manual_seed(0))
    for form in ("paper", "simple"):
        assert proposition_5_1(LinearHead(weights, 5 * features, y), form).holds is None
    assert proposition_5_3(LinearHead(weights, 5 * features, y)).holds is None
    assert proposition_5_3(LinearHead(weights, features, y), ntk=1e-3).holds is None
    flat = [*weights[:-1], weights[-1][[0, 0, 1]]]
    assert proposition_5_1(LinearHead(flat, features, y), "sharp").holds is None
    assert theorem_5_2_posteriori(LinearHead(flat, features, y)).holds is None


def test_understated_imbalance_breaks_the_last_layer_certificate():
    """The v-term is needed: an unbalanced last layer exceeds the certificate for balanced heads."""
    eye = torch.eye(2, dtype=torch.float64)
    tilt = torch.diag(torch.tensor([1.5, 1 / 1.5], dtype=torch.float64))
    head = LinearHead([eye, eye, eye, tilt], torch.linalg.inv(tilt), torch.arange(2))
    assert theorem_5_2_posteriori(head).holds
    blind = LinearHead(head.weights, head.features, head.y)
    blind.__dict__["imbalances"] = torch.zeros(3, dtype=torch.float64)
    assert theorem_5_2_posteriori(blind).holds is False


@pytest.mark.parametrize(
    ("sides", "tight"),
    [
        (lambda h: theorem_5_2.proposition_5_1_sides(h, "paper"), 0.9),
        (lambda h: theorem_5_2.proposition_5_1_sides(h, "simple"), 0.99),
        (lambda h: (tangent_kernel.ntk_floor(h, "simple"), tangent_kernel.linear_ntk_norm_tensor(h)), 0.98),
        (lambda h: (tangent_kernel.ntk_floor(h, "sharp"), tangent_kernel.linear_ntk_norm_tensor(h)), 0.95),
    ],
)
def test_ascent_comes_close_and_not_past(sides, tight):
    """A constant smaller by 1 − tight would be refuted by the instance found."""
    y = torch.arange(2).repeat_interleave(2)

    def start(generator):
        weights, features, _ = random_head(generator, 2, 2, 2, 1, noise=0.01, spread=(0.8, 1.5))
        return [*weights, features]

    found = attack(lambda *p: sides(LinearHead(p[:-1], p[-1], y)), start, restarts=1, steps=120)
    assert tight < found.ratio <= 1 + 1e-9


# --- near-minimisers


def reference_network(seed, classes=2, per_class=3, depth=3, nonlinear=2):
    """x, y and the weights of a ReLU network that fits Z_{L1} = Y exactly with a head of identities."""
    generator = torch.Generator().manual_seed(seed)
    samples = classes * per_class
    y = torch.arange(classes).repeat_interleave(per_class)
    x = torch.randn(samples + 1, samples, generator=generator, dtype=torch.float64)
    x = 1.5 * torch.linalg.qr(x).Q.T  # orthogonal inputs keep c = ‖YX⁺‖² + … small
    target = nn.functional.one_hot(y, classes).double()
    first = (torch.linalg.pinv(x) @ target).T  # W_1 X = Y ≥ 0: ReLU leaves it alone
    eye = torch.eye(classes, dtype=torch.float64)
    return x, y, [first] + [eye.clone() for _ in range(nonlinear - 1)], [eye.clone() for _ in range(depth)]


def features_of(nonlinear, x):
    for w in nonlinear:
        x = torch.relu(x @ w.T)
    return x


def test_features_as_long_as_their_bound_may_round_up():
    """One direction, no activation: the third hypothesis holds with equality, up to rounding."""
    for scale in (1.0, 0.1, 3.7, 1e-3):
        x = torch.zeros(4, 2, dtype=torch.float64)
        x[:2, 0] = torch.tensor([scale, 0.3])
        nonlinear = [torch.tensor([[1.7, 0.0], [0.0, 0.0]], dtype=torch.float64)] * 3
        features = x
        for w in nonlinear:
            features = features @ w.T
        head = LinearHead([torch.eye(2, dtype=torch.float64)] * 2, features, torch.tensor([0, 0, 1, 1]))
        check = theorem_5_2_a_priori(head, nonlinear_weights=nonlinear, x=x, weight_decay=0.1)
        assert check.hypotheses[2].holds, scale


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from([0.0, 0.003, 0.01]), st.sampled_from([1e-2, 0.05]))
def test_a_priori_bound(seed, noise, weight_decay):
    x, y, nonlinear, head = reference_network(seed)
    c = float(sum(w.square().sum() for w in nonlinear))
    generator = torch.Generator().manual_seed(seed)
    nonlinear, head = (
        [w + noise * torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in part]
        for part in (nonlinear, head)
    )
    features = features_of(nonlinear, x)
    keywords = {"nonlinear_weights": nonlinear, "weight_decay": weight_decay}
    check = theorem_5_2_a_priori(LinearHead(head, features, y), x=x, **keywords)
    assert check.holds is not False, str(check)
    delta = excess(LinearHead(head, features, y), reference=c, **keywords)
    if noise == 0:
        assert check.holds
        assert delta == pytest.approx(0, abs=1e-9)
    # the formula of the statement, written out
    k, depth, layers = 2, len(head), len(nonlinear)
    eps = math.sqrt(weight_decay * (c + k * depth + delta))
    if eps < math.sqrt(len(y) / k):
        exponent = 0.5 * (c + delta - k * layers + k * layers * math.log(k))
        expected = k * math.log(float(x.norm()) / (math.sqrt(len(y) / k) - eps)) + exponent
        assert math.log(check.bound) == pytest.approx(expected, rel=1e-9)


def test_a_priori_is_silent_at_large_weight_decay_and_refuses_none():
    x, y, nonlinear, head = reference_network(0)
    keywords = {"nonlinear_weights": nonlinear, "x": x}
    assert (
        theorem_5_2_a_priori(LinearHead(head, features_of(nonlinear, x), y), weight_decay=1.0, **keywords).holds is None
    )
    with pytest.raises(ValueError, match="weight_decay"):
        theorem_5_2_a_priori(head, weight_decay=0.0, **keywords)


def test_a_priori_is_silent_where_the_features_do_not_come_from_the_inputs():
    """σ(t) = 100t is no activation of the theorem; its features would refute the bound."""
    x, eye = 0.01 * torch.eye(2).double(), torch.eye(2).double()
    check = theorem_5_2_a_priori(
        LinearHead([eye, eye], eye, torch.arange(2)), nonlinear_weights=[eye], x=x, weight_decay=0.01
    )
    assert check.measured > check.bound and check.holds is None
    assert [h.name for h in check.hypotheses if not h.holds] == ["‖Z_{L1}‖_F ≤ ‖X‖_F ∏‖W_ℓ‖_F"]


@pytest.mark.parametrize("depth", [2, 8, 16, 32])
def test_rounding_is_no_violation_on_a_perfect_deep_head(depth):
    """κ(A) − 1 is of the order of √(rounding) times the depth, where g rounds to 1 exactly."""
    layer = torch.eye(10).double()
    layer[0, 0], layer[9, 9] = 1 + 1e-8, 1 - 1e-8
    y = torch.arange(10)
    features = torch.linalg.inv(torch.linalg.matrix_power(layer, depth)).T
    assert proposition_5_1(LinearHead([layer] * depth, features, y)).holds
    assert theorem_5_2_posteriori(LinearHead([layer] * depth, features, y)).holds
    # The tolerance stays far below anything that a head can differ by.
    assert proposition_5_1(LinearHead([layer] * depth, features, y)).tolerance < 1e-5


def test_trivial_solution_wins_beyond_a_depth():
    assert optimal_scale(0.01, 99) == pytest.approx(0.99, abs=5e-3)
    assert optimal_scale(0.01, 101) == 0.0
    assert optimal_scale(0.5, 2) == 0.5
    assert optimal_scale(2.0, 2) == 0.0
    # λ like 1/L2: no transition
    assert all(optimal_scale(0.5 / depth, depth) > 0.9 for depth in (10, 100, 1000))
    with pytest.raises(ValueError, match="num_linear"):
        optimal_scale(0.01, 1)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-4, 1.0), st.integers(2, 60), st.sampled_from([1.0, 10.0]))
def test_optimal_scale_beats_a_grid(weight_decay, depth, samples):
    def objective(s):
        return 0.5 * samples * (1 - s) ** 2 + 0.5 * weight_decay * depth * s ** (2 / depth)

    best = objective(optimal_scale(weight_decay, depth, samples))
    assert best <= min(objective(i / 1000) for i in range(1, 1201)) + 1e-12
    assert best <= objective(0.0) + 1e-12


# --- the tangent kernel


def dense_kernel(head, layer=None):
    """Σ_ℓ J_ℓJ_ℓᵀ by automatic differentiation, (NK, NK)."""

    def output(weights):
        z = head.features
        for w in weights:
            z = z @ w.T
        return z.flatten()

    jacobians = torch.autograd.functional.jacobian(lambda *w: output(w), head.weights)
    blocks = [j.reshape(j.shape[0], -1) for j in jacobians]
    blocks = blocks if layer is None else [blocks[layer]]
    return sum(b @ b.T for b in blocks)


@settings(max_examples=20, deadline=None)
@given(linear_heads())
def test_kernel_norms_against_the_jacobian(head):
    assert linear_ntk_norm(head) == pytest.approx(float(torch.linalg.eigvalsh(dense_kernel(head))[-1]), rel=1e-10)
    for i, norm in enumerate(ntk_block_norms(head)):
        assert float(norm) == pytest.approx(float(torch.linalg.eigvalsh(dense_kernel(head, i))[-1]), rel=1e-10)


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_block_identity(layer):
    head = LinearHead(*random_head(torch.Generator().manual_seed(layer)))
    check = ntk_block(head, layer)
    assert check.holds, str(check)
    assert check.measured == pytest.approx(check.bound, rel=1e-10)
    with pytest.raises(ValueError, match="layer"):
        ntk_block(head, 4)


def test_lanczos_matches_dense(monkeypatch):
    head = LinearHead(*random_head(torch.Generator().manual_seed(5), num_classes=5, samples_per_class=6))
    dense = linear_ntk_norm(head)
    monkeypatch.setattr(tangent_kernel, "DENSE_ORDER", 0)
    again = LinearHead(head.weights, head.features, head.y)
    assert linear_ntk_norm(again) == pytest.approx(dense, rel=1e-10)


@pytest.mark.parametrize(
    ("model", "x", "words"),
    [
        (nn.Linear(5, 3), torch.ones(12), r"model must take x; got an error for x of \(12,\), torch.float32"),
        (nn.ReLU(), torch.ones(2, 3), "model must have a parameter that requires a gradient; got ReLU with none"),
        (nn.LSTM(3, 2), torch.ones(2, 3), "model must return one tensor that depends on its parameters; got tuple"),
    ],
)
def test_ntk_norm_says_what_is_wrong_with_a_model(model, x, words):
    with pytest.raises(ValueError, match=words):
        ntk_norm(model, x)


def test_a_head_whose_products_overflow_is_refused():
    eye, y = torch.eye(2, dtype=torch.float64), torch.tensor([0, 1])
    with pytest.raises(
        ValueError, match=r"products whose squares float64 holds; got a largest weight of norm 1.41e\+80"
    ):
        LinearHead([1e80 * eye, eye], eye, y)
    assert LinearHead([1e60 * eye, 1e60 * eye], eye, y).eps1 > 1e100


def test_ntk_norm_of_a_whole_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.Linear(6, 3, bias=False)).double()
    x = torch.randn(9, 5).double()
    rows = [torch.autograd.grad(v, tuple(model.parameters()), retain_graph=True) for v in model(x).flatten()]
    full = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    assert ntk_norm(model, x, steps=27, tol=1e-12) == pytest.approx(
        float(torch.linalg.svdvals(full.detach())[0] ** 2), rel=1e-9
    )


@settings(max_examples=30, deadline=None)
@given(seeds, st.integers(2, 4), st.integers(2, 4))
def test_floor_of_a_balanced_interpolating_head(seed, classes, depth):
    """The sharp floor is (s_K(Y)/s_1)² Σ_j κ^{2j} there, and with equal singular values it is attained."""
    head = exact_head(seed, num_classes=classes, num_linear=depth, spread=(0.8, 1.3))
    check = proposition_5_3_floor(head)
    kappa, s1 = float(head.kappa_last), float(head.s1)
    expected = (head.label_scale / s1) ** 2 * sum(kappa ** (2 * j) for j in range(1, depth + 1))
    assert check.holds
    assert check.bound == pytest.approx(expected, rel=1e-8)
    even = exact_head(seed, num_classes=classes, num_linear=depth, spread=(1.1, 1.1))
    check = proposition_5_3_floor(even)
    assert check.measured == pytest.approx(check.bound, rel=1e-8)
    assert dataclasses.replace(check, bound=1.01 * check.bound).holds is False


# --- every number, on a head without symmetry


def gain_of(c):
    """ln g: the squared norm over K L2, and the determinant between the spectra of Z_{L1} and f(X)."""
    total = sum((w**2).sum() for w in c.w)
    determinant = (np.log(singular(c.z[-1])[: c.k]) - np.log(singular(c.z[0])[: c.k])).sum()
    return math.log(total / (c.k * c.depth)) - 2 * determinant / (c.k * c.depth)


@pytest.mark.parametrize(("seed", "depth", "noise"), [(0, 4, 0.02), (1, 3, 0.05), (2, 2, 0.05)])
def test_the_certificates_of_an_uneven_head(seed, depth, noise):
    head = uneven_head(seed, noise=noise, depth=depth)
    c = in_columns(head)
    total, k = sum((w**2).sum() for w in c.w), 3
    floor = (math.sqrt(2) - c.eps1) / operator_norm(c.z[0])
    power = k / 2 * gain_of(c)
    expected = {
        "paper": math.exp((total - k * depth) / 2) / floor**k,
        "simple": (total / (depth * floor ** (2 / depth)) - 2) ** (depth / 2),
        "sharp": math.exp(depth * math.acosh(math.exp(power))),
    }
    rank = singular(c.z[-1])[2] / singular(c.z[-1])[0]
    assert float(theorem_5_2.head_norm(head)) == pytest.approx(total)
    assert float(theorem_5_2.waste(head)) == pytest.approx(math.exp(gain_of(c)))
    for form in FORMS:
        check = proposition_5_1(head, form)
        assert (check.measured, check.bound) == pytest.approx((c.product[0] / c.product[2], expected[form]), rel=1e-8)
        wanted = (rank, 1e-12) if form == "sharp" else (c.eps1, math.sqrt(2))
        assert (check.hypotheses[0].value, check.hypotheses[0].threshold) == pytest.approx(wanted, rel=1e-9)
    assert proposition_5_1(head) == proposition_5_1(head, "sharp")

    check = layer_conditioning(head)
    spreads = [singular(w)[0] / singular(w)[2] for w in c.w]
    assert check.measured == pytest.approx(sum(math.log((s + 1 / s) / 2) for s in spreads), rel=1e-8)
    assert check.bound == pytest.approx(depth * power, rel=1e-8)
    assert check.rounding == pytest.approx(3 * depth * 1e-14, rel=1e-9, abs=0)
    check = theorem_5_2_posteriori(head)
    v = sum(c.gaps) * (operator_norm(c.z[-2]) / singular(c.z[-1])[2]) ** 2
    star = math.exp(power) + math.sqrt(math.exp(2 * power) - 1)
    assert (check.measured, check.bound) == pytest.approx((c.kappa, math.sqrt((1 + v) * star**2 + v)), rel=1e-8)
    for check in (layer_conditioning(head), theorem_5_2_posteriori(head)):
        assert (check.hypotheses[0].value, check.hypotheses[0].threshold) == pytest.approx((rank, 1e-12), rel=1e-9)


@pytest.mark.parametrize(("classes", "depth"), [(2, 2), (3, 4), (30, 2), (12, 3)])
def test_what_the_root_of_rounding_is_allowed(classes, depth):
    """√(2t) for t = K/2 times 4e-15, never less than 1e-7, once for every layer of the head."""
    eye = torch.eye(classes, dtype=torch.float64)
    head = LinearHead([eye] * depth, eye, torch.arange(classes))
    one = max(1e-7, 2 * math.sqrt(classes * 1e-15))
    assert theorem_5_2_posteriori(head).tolerance == pytest.approx(one, rel=1e-9, abs=0)
    assert proposition_5_1(head, "sharp").tolerance == pytest.approx(depth * one, rel=1e-9, abs=0)
    assert proposition_5_1(head, "simple").tolerance == proposition_5_1(head, "paper").tolerance == 1e-9


@pytest.mark.parametrize(("error", "finite"), [(0.99, True), (1.01, False), (3.0, False)])
def test_the_floor_under_the_head_goes_with_the_error(error, finite):
    eye = torch.eye(3, dtype=torch.float64)
    features = eye.clone()
    features[0, 0] += error
    head = LinearHead([eye, eye], features, torch.arange(3))
    for form in ("paper", "simple"):
        check = proposition_5_1(head, form)
        assert math.isfinite(check.bound) is finite is check.hypotheses_met
        assert check.bound > 0


@pytest.mark.parametrize(("least", "speaks"), [(0.99e-12, False), (1.01e-12, True), (1e-3, True)])
def test_the_rank_of_the_outputs_counts_from_a_million_millionth(least, speaks):
    eye = torch.eye(3, dtype=torch.float64)
    features = torch.diag(torch.tensor([2.0, 1.0, 2.0 * least], dtype=torch.float64))
    head = LinearHead([eye, eye], features, torch.arange(3))
    for check in (proposition_5_1(head), layer_conditioning(head), theorem_5_2_posteriori(head)):
        assert check.hypotheses_met is speaks


def test_a_narrow_head_has_no_determinant():
    """Features of width 2 or outputs of rank 2 cannot hold three classes."""
    narrow = LinearHead([torch.ones(4, 2), torch.ones(3, 4)], torch.ones(3, 2), torch.arange(3))
    assert float(theorem_5_2.log_determinant(narrow)) == -math.inf
    assert float(theorem_5_2.waste(narrow)) == math.inf
    assert proposition_5_1(narrow).silent and theorem_5_2_posteriori(narrow).silent
    square = LinearHead([2 * torch.eye(3), torch.eye(3)], 5 * torch.eye(3), torch.arange(3))
    assert float(theorem_5_2.log_determinant(square)) == pytest.approx(3 * math.log(2))


# --- the Schatten lemma, for any number of matrices


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_schatten_sides_of_matrices_of_any_shape(depth):
    generator = torch.Generator().manual_seed(depth)
    sizes = [4, 6, 3, 5, 2, 7][: depth + 1]
    weights = [torch.randn(b, a, generator=generator).double() for a, b in itertools.pairwise(sizes)]
    product = np.linalg.multi_dot([w.numpy() for w in weights[::-1]]) if depth > 1 else weights[0].numpy()
    check = schatten(weights)
    assert check.measured == pytest.approx(depth * (singular(product) ** (2 / depth)).sum(), rel=1e-5)
    assert check.bound == pytest.approx(sum(float((w**2).sum()) for w in weights), rel=1e-9)
    assert check.holds and (check.measured == pytest.approx(check.bound)) == (depth == 1)


def test_schatten_takes_numbers_of_every_precision_and_refuses_the_rest():
    single = [torch.ones(3, 2), torch.ones(2, 3)]
    assert schatten(single).measured == pytest.approx(12) and schatten([w.numpy() for w in single]).holds
    with pytest.raises(ValueError, match="weights must be one matrix or more; got none"):
        schatten([])
    with pytest.raises(ValueError, match="weights must hold at least 1; got 0"):
        theorem_5_2.schatten_sides([])
    with pytest.raises(TypeError, match=r"weights\[1\] must be a tensor or array; got 3"):
        schatten([torch.ones(2, 2), 3])
    chains = r"weights must be matrices \(tensors\) that chain; got Tensor of torch.float64, shape "
    for shapes, shape in (
        ([(3, 2), (2, 4)], r"\(2, 4\)"),
        ([(3, 2), (2, 3), (4, 3)], r"\(4, 3\)"),
        ([(3,)], r"\(3,\)"),
        ([(2, 2), (2, 2, 2)], r"\(2, 2, 2\)"),
    ):
        with pytest.raises(ValueError, match=chains + shape):
            schatten([torch.ones(*s) for s in shapes])
    with pytest.raises(ValueError, match="that chain; got ndarray of float64"):
        theorem_5_2.schatten_sides([np.eye(2)])
    for value in (math.nan, math.inf):
        with pytest.raises(ValueError, match="weights must be finite; got NaN or infinite entries"):
            schatten([torch.eye(2), torch.full((2, 2), value)])


# --- near-minimisers, further


def fitted(nonlinear, weight_decay, classes=3):
    """Identities on inputs 1.3 times the labels, with uneven classes, and the objective by hand."""
    y = torch.tensor([0, 1, 2, 1, 2, 2, 0, 1])
    x = 1.3 * torch.eye(classes).double()[y]
    generator = torch.Generator().manual_seed(nonlinear)
    middle = [
        (
            torch.eye(classes) / 1.3 ** (1 / nonlinear) + 0.02 * torch.randn(classes, classes, generator=generator)
        ).double()
        for _ in range(nonlinear)
    ]
    weights = [(torch.eye(classes) + 0.02 * torch.randn(classes, classes, generator=generator)).double() for _ in "ab"]
    head = LinearHead(weights, features_of(middle, x), y)
    squares = sum(float((w**2).sum()) for w in [*weights, *middle])
    return head, middle, x, in_columns(head).eps1 ** 2 + weight_decay * squares  # twice the objective


@pytest.mark.parametrize(("nonlinear", "weight_decay"), [(1, 0.03), (2, 0.03), (3, 0.01)])
def test_the_a_priori_bound_for_uneven_classes(nonlinear, weight_decay):
    head, middle, x, twice = fitted(nonlinear, weight_decay)
    c = in_columns(head)
    check = theorem_5_2_a_priori(head, nonlinear_weights=middle, x=x, weight_decay=weight_decay)
    excess_norm = twice / weight_decay - 3 * 2
    bound = (math.sqrt(8) * 1.3 / (math.sqrt(2) - math.sqrt(twice))) ** 3
    bound *= math.exp((excess_norm - 3 * nonlinear + 3 * nonlinear * math.log(3)) / 2)
    assert twice < 2
    assert (check.measured, check.bound) == pytest.approx((c.product[0] / c.product[2], bound), rel=1e-8)
    error, width, reach = check.hypotheses
    assert (error.value, error.threshold, error.sense) == (pytest.approx(twice), pytest.approx(2.0), "<")
    assert (width.value, width.threshold, width.sense) == (3, 3, ">=")
    assert reach.value == pytest.approx(float(head.features.norm())) and reach.sense == "<="
    product = math.sqrt(8) * 1.3 * math.prod(float(w.norm()) for w in middle)
    assert reach.threshold == pytest.approx(product, rel=1e-9)
    found = excess(head, nonlinear_weights=middle, weight_decay=weight_decay, reference=4.5)
    assert found == pytest.approx(excess_norm - 4.5, rel=1e-9)
    sides = theorem_5_2.theorem_5_2_a_priori_sides(head, middle, x, weight_decay)
    assert [float(side) for side in sides] == pytest.approx([check.measured, bound, twice], rel=1e-8)


def test_weight_decay_is_positive_and_finite():
    head, middle, x, _ = fitted(1, 0.1)
    for weight_decay in (0.0, -1.0, math.inf, math.nan):
        words = f"weight_decay must be above 0, finite; got {weight_decay}"
        with pytest.raises(ValueError, match=words):
            theorem_5_2_a_priori(head, nonlinear_weights=middle, x=x, weight_decay=weight_decay)
        with pytest.raises(ValueError, match=words):
            theorem_5_2.theorem_5_2_a_priori_sides(head, middle, x, weight_decay)
        with pytest.raises(ValueError, match=words):
            excess(head, nonlinear_weights=middle, weight_decay=weight_decay, reference=1.0)
    tiny = theorem_5_2_a_priori(head, nonlinear_weights=middle, x=x, weight_decay=0.5)
    assert tiny.silent
    assert math.isfinite(excess(head, nonlinear_weights=middle, weight_decay=0.5, reference=-1.0))
    for reference in (math.inf, math.nan):
        with pytest.raises(ValueError, match=f"reference must be finite; got {reference}"):
            excess(head, nonlinear_weights=middle, weight_decay=0.1, reference=reference)


@pytest.mark.parametrize(
    "function",
    [
        theorem_5_2.head_norm,
        theorem_5_2.log_determinant,
        theorem_5_2.waste,
        proposition_5_1,
        lambda head: theorem_5_2.proposition_5_1_sides(head, "sharp"),
        layer_conditioning,
        theorem_5_2.layer_conditioning_sides,
        theorem_5_2_posteriori,
        theorem_5_2.theorem_5_2_posteriori_sides,
        lambda head: theorem_5_2.theorem_5_2_a_priori_sides(head, [torch.eye(2)], torch.eye(2), 0.1),
        lambda head: excess(head, nonlinear_weights=[torch.eye(2)], weight_decay=0.1, reference=1.0),
    ],
)
def test_what_is_no_head_is_refused(function):
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        function(3)


def test_forms_of_proposition_5_1():
    for function in (proposition_5_1, theorem_5_2.proposition_5_1_sides):
        with pytest.raises(TypeError, match="form must be a string; got 3"):
            function(uneven_head(0), 3)
    with pytest.raises(ValueError, match=r"form must be one of \('paper', 'simple', 'sharp'\); got 'exact'"):
        proposition_5_1(uneven_head(0), "exact")


# --- the best scale


@pytest.mark.parametrize("samples", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("depth", [2, 3, 4, 7, 20])
@pytest.mark.parametrize("weight_decay", [1e-4, 0.01, 0.05, 0.2, 0.3, 0.4, 0.6, 0.9])
def test_the_best_scale_is_the_best_on_a_fine_grid(weight_decay, depth, samples):
    s = np.linspace(0, 1.2, 240_001)
    values = samples / 2 * (1 - s) ** 2 + weight_decay / 2 * depth * s ** (2 / depth)
    found = optimal_scale(weight_decay, depth, samples)
    assert found == pytest.approx(s[values.argmin()], abs=1e-5)
    if found > 0:  # stationary, to rounding
        slope = samples * (found - 1) + weight_decay * found ** (2 / depth - 1)
        assert slope == pytest.approx(0, abs=1e-12)
    assert optimal_scale(weight_decay, depth) == optimal_scale(weight_decay, depth, 1.0)


def test_four_layers_let_go_where_the_two_minima_are_equal():
    """L2 = 4: in u = √s the objective is a polynomial, as low as at 0 for u² = 2/3 and λ = u/3."""
    turning = math.sqrt(2 / 3) / 3
    assert optimal_scale(turning * (1 - 1e-9), 4) == pytest.approx(2 / 3, abs=1e-6)
    assert optimal_scale(turning * (1 + 1e-9), 4) == 0.0
    assert optimal_scale(5 * turning * (1 - 1e-9), 4, 5) == pytest.approx(2 / 3, abs=1e-6)
    assert optimal_scale(5 * turning * (1 + 1e-9), 4, 5) == 0.0


@pytest.mark.parametrize(("weight_decay", "samples", "scale"), [(0.5, 1, 0.5), (1, 1, 0), (1, 4, 0.75), (9, 4, 0)])
def test_two_layers_are_a_soft_threshold(weight_decay, samples, scale):
    assert optimal_scale(weight_decay, 2, samples) == scale


def test_what_the_best_scale_refuses():
    words = "weight_decay, num_linear, samples_per_class: expected > 0, >= 2, > 0; got "
    for arguments, got in (((0.0, 3), "0.0, 3, 1.0"), ((0.1, 1), "0.1, 1, 1.0")):
        with pytest.raises(ValueError, match=words + got):
            optimal_scale(*arguments)
    for arguments, message in (
        ((-0.1, 3), "weight_decay must be at least 0, finite; got -0.1"),
        ((math.inf, 3), "weight_decay must be at least 0, finite; got inf"),
        ((0.1, 0), "num_linear must be at least 1; got 0"),
        ((0.1, 3, 0.0), "samples_per_class must be above 0, finite; got 0.0"),
        ((0.1, 3, math.inf), "samples_per_class must be above 0, finite; got inf"),
    ):
        with pytest.raises(ValueError, match=message):
            optimal_scale(*arguments)
    assert optimal_scale(1e-3, 3, 0.5) > 0.9


def test_what_is_needed_beside_the_head_goes_by_name():
    head, middle, x, _ = fitted(1, 0.01)
    assert theorem_5_2_a_priori(head=head, nonlinear_weights=middle, x=x, weight_decay=0.01).holds
    assert math.isfinite(excess(head=head, nonlinear_weights=middle, weight_decay=0.01, reference=1.0))
    with pytest.raises(TypeError, match="positional argument"):
        theorem_5_2_a_priori(head, middle, x=x, weight_decay=0.01)
    with pytest.raises(TypeError, match="positional argument"):
        excess(head, middle, weight_decay=0.01, reference=1.0)
