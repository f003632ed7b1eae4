"""Collapse of near-global minimisers."""

import dataclasses
import math

import pytest
import torch
from heads import seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils.theory import LinearHead
from ncutils.theory.corollary_5_2 import collapse_bounds, corollary_5_2, corollary_5_2_limit


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
