"""Every linear layer: the kernel lemma and the sharp forms at each Z_ℓ."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from heads import exact_head, in_columns, linear_heads, norm, singular, uneven_head
from hypothesis import given, settings

from ncutils import theory as module
from ncutils.theory import LinearHead, attack_heads, theorem_3_1_nc1, theorem_3_1_nc2
from ncutils.theory.every_layer import every_layer


@settings(max_examples=150, deadline=None)
@given(linear_heads(max_noise=2.0))
def test_nothing_is_violated(head):
    for check in every_layer(head):
        assert check.holds is not False, str(check)


def test_last_cut_is_theorem_3_1():
    head = _noisy_head()
    checks = {c.quantity: c for c in every_layer(head)}
    last = head.depth - 1
    for name, statement in (("nc1", theorem_3_1_nc1), ("nc2", theorem_3_1_nc2)):
        ours, old = checks[f"{name}_{last}"], statement(head)
        assert ours.measured == pytest.approx(old.measured, rel=1e-12)
        assert ours.bound == pytest.approx(old.bound, rel=1e-12)


def test_all_speak_near_collapse():
    checks = every_layer(_noisy_head())
    assert len(checks) == 8
    assert all(c.holds is True for c in checks)


@pytest.mark.parametrize(
    ("sides", "tight"),
    [
        (lambda h: module.unseen_weight_sides(h, 1), 0.99),
        (lambda h: module.every_layer_nc1_sides(h, 1), 0.8),
        (lambda h: module.every_layer_nc2_sides(h, 1), 0.9),
    ],
)
def test_a_smaller_constant_would_be_caught(sides, tight):
    found = attack_heads(sides, ((2, 3, 2),), noise=0.05, steps=150)
    assert tight < found.ratio <= 1 + 1e-9


def test_nc3_would_be_caught():
    check = module.every_layer_nc3(exact_head(3, num_classes=3, num_linear=3), 1)
    assert check.holds
    assert check.ratio > 1 - 1e-6
    assert dataclasses.replace(check, bound=1.001 * check.bound).holds is False


def test_the_sum_of_imbalances_is_needed():
    """Each ‖D_j‖ taken alone is overrun: a mass hidden two layers deep is paid by both."""
    one = torch.eye(2, dtype=torch.float64)
    # hidden third direction: 0 in the last layer, t in the middle one, √2 t in the first; t² = 0.1
    t = 0.1**0.5
    last = torch.cat([one, torch.zeros(2, 1).double()], 1)
    middle = torch.diag(torch.tensor([1.0, 1.0, t], dtype=torch.float64))
    first = torch.diag(torch.tensor([1.0, 1.0, 2**0.5 * t], dtype=torch.float64))
    features = torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=torch.float64)
    check = module.unseen_weight(LinearHead([first, middle, last], features, torch.arange(2)), 1)
    assert check.holds
    assert check.measured == pytest.approx(0.2)
    assert check.bound == pytest.approx(0.2)
    assert dataclasses.replace(check, bound=0.99 * check.bound).holds is False


def test_a_layer_that_is_not_there():
    with pytest.raises(ValueError, match="layer must be 1 … 2"):
        module.unseen_weight(_noisy_head(), 3)


def _noisy_head():
    from ncutils.theory import random_head

    return LinearHead(*random_head(torch.Generator().manual_seed(1), noise=1e-3, spread=(0.8, 1.2)))


# --- every number, on a head without symmetry


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_every_bound_at_every_layer_of_an_uneven_head(layer):
    """B = W_{L:ℓ+1} is what follows Z_ℓ, η_ℓ the sum of the imbalances from D_ℓ on."""
    head = uneven_head(6, noise=0.03)
    c = in_columns(head)
    after, z, before, w = c.tail(4 - layer), c.z[layer], c.z[layer - 1], c.w[layer - 1]
    eta = sum(c.gaps[layer - 1 :])
    s, inverse = singular(after), np.linalg.pinv(after)
    kappa, width = s[0] / s[2], len(z)
    kernel = np.eye(width) - inverse @ after
    checks = {check.quantity.removesuffix(f"_{layer}"): check for check in every_layer(head)[4 * layer - 4 : 4 * layer]}

    scatter = c.centred(before)
    outside = eta * min((scatter**2).sum(), (width - 3) * norm(scatter) ** 2)
    inside = (c.centred(c.error) ** 2).sum() / s[2] ** 2
    means = c.means(z)
    nc1 = (c.centred(z) ** 2).sum() / 9 / ((means - means.mean(1, keepdims=True)) ** 2).sum() * 3
    nc1_bound = s[0] ** 2 / 9 * (inside + outside) / (math.sqrt(2 / 3) - c.eps1 / math.sqrt(3 * 2)) ** 2
    delta = norm(c.means(c.error))
    nc2_bound = math.hypot((1 + delta) * kappa, s[0] * math.sqrt(eta) * norm(c.means(before))) / (1 - delta)
    cosines, bounds = [], []
    for i, label in enumerate(c.labels):
        length, own = np.linalg.norm(after[label]), 1 + c.error[label, i]
        seen = own * np.linalg.norm(inverse[:, label]) + np.linalg.norm(np.delete(c.error[:, i], label)) / s[2]
        bounds.append(own / length / math.hypot(seen, math.sqrt(eta) * np.linalg.norm(before[:, i])))
        cosines.append(after[label] @ z[:, i] / length / np.linalg.norm(z[:, i]))
    expected = {
        "kernel": (norm(kernel @ w) ** 2, eta),
        "nc1": (nc1, nc1_bound),
        "nc2": (singular(means)[0] / singular(means)[2], nc2_bound),
        "nc3": (np.mean(cosines), np.mean(bounds)),
    }
    assert list(checks) == list(expected)
    for name, check in checks.items():
        assert (check.measured, check.bound) == pytest.approx(expected[name], rel=1e-8), name
        assert check.sense == (">=" if name == "nc3" else "<=") and check.holds
        rank = next(h for h in check.hypotheses if h.name.startswith("rank"))
        assert (rank.value, rank.threshold) == pytest.approx((s[2] / s[0], 1e-12), rel=1e-9)
    error = checks["nc1"].hypotheses[1]
    assert (error.value, error.threshold, error.sense) == (pytest.approx(c.eps1), pytest.approx(math.sqrt(6)), "<")
    mean = checks["nc2"].hypotheses[0]
    assert (mean.value, mean.threshold, mean.sense) == (pytest.approx(delta), 1.0, "<")
    # what a relative rounding of 1e-13 makes of both sides
    assert checks["kernel"].rounding == pytest.approx(1e-13 * max(c.norms) ** 2, rel=1e-9, abs=0)
    step = 1e-13 * kappa
    assert checks["nc1"].rounding == pytest.approx(2 * step * math.sqrt(nc1) + step**2, rel=1e-9, abs=0)
    assert checks["nc2"].rounding == checks["nc3"].rounding == 0


def test_nc1_of_an_exact_head_is_allowed_a_square_of_rounding():
    eye = torch.eye(2, dtype=torch.float64)
    check = module.every_layer_nc1(LinearHead([eye, eye, eye], eye, torch.arange(2)), 1)
    assert check.measured == 0 and check.rounding == pytest.approx(1e-26, rel=1e-9, abs=0)


@pytest.mark.parametrize(("own", "cosine"), [(-1.0, -1.0), (-0.5, 1.0), (-0.999, 1.0), (-1.5, -1.0), (0.7, 1.0)])
def test_a_sample_whose_own_output_is_not_positive_counts_as_opposite(own, cosine):
    eye = torch.eye(3, dtype=torch.float64)
    features = eye.clone()
    features[0, 0] += own
    check = module.every_layer_nc3(LinearHead([eye, eye, eye], features, torch.arange(3)), 1)
    assert check.bound == pytest.approx((cosine + 2) / 3)


STATEMENTS = (
    module.unseen_weight,
    module.every_layer_nc1,
    module.every_layer_nc2,
    module.every_layer_nc3,
    module.unseen_weight_sides,
    module.every_layer_nc1_sides,
    module.every_layer_nc2_sides,
    module.every_layer_nc3_sides,
)


@pytest.mark.parametrize("statement", STATEMENTS)
def test_layers_from_the_first_to_the_one_before_the_last(statement):
    head = _noisy_head()
    for layer in (1, 2):
        statement(head, layer)
    for layer in (-1, 0, 3, 4):
        with pytest.raises(ValueError, match=f"layer must be 1 … 2, a linear layer before the last; got {layer}"):
            statement(head, layer)
    with pytest.raises(TypeError, match="layer must be an integer; got 'x'"):
        statement(head, "x")
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        statement(3, 1)


def test_four_checks_a_layer_in_order():
    found = [check.quantity for check in every_layer(uneven_head(0))]
    assert found == [f"{name}_{layer}" for layer in (1, 2, 3) for name in ("kernel", "nc1", "nc2", "nc3")]
    assert len(every_layer(uneven_head(0, depth=2))) == 4
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        every_layer(3)
