"""Every linear layer: the kernel lemma and the sharp forms at each Z_ℓ."""

import dataclasses

import pytest
import torch
from heads import exact_head, linear_heads
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
