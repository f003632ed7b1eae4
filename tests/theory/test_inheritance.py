"""Inheritance: any loss, class sizes, biases and rank."""

import dataclasses

import pytest
import torch
from heads import linear_heads, seeds
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils.theory import LinearHead, attack, random_head, theorem_3_1_nc1
from ncutils.theory.inheritance import inheritance, inheritance_sides


@st.composite
def uneven(draw):
    """Weights, features, uneven labels and a bias, far from or near balance; the last layer of any rank."""
    g = torch.Generator().manual_seed(draw(seeds))
    k, width, entering = draw(st.integers(2, 5)), draw(st.integers(1, 8)), draw(st.integers(1, 6))
    counts = draw(st.lists(st.integers(1, 6), min_size=k, max_size=k))
    y = torch.arange(k).repeat_interleave(torch.tensor(counts))
    normal = lambda *s: torch.randn(*s, generator=g, dtype=torch.float64)  # noqa: E731
    last, bias = normal(k, width), draw(st.sampled_from([0.0, 0.1, 1.0])) * normal(width)
    if draw(st.booleans()):  # a last layer of low rank
        last = last @ torch.diag((torch.arange(width) < draw(st.integers(1, width))).double())
    before = normal(width, entering)
    if draw(st.booleans()):  # nearly balanced
        values, basis = torch.linalg.eigh(last.T @ last - torch.outer(bias, bias))
        before = basis * values.clamp_min(0).sqrt() + 1e-2 * normal(width, width)
    z = normal(len(y), before.shape[1]) + 3 * normal(k, before.shape[1])[y]
    return [before, last], z, y, bias


@settings(max_examples=300, deadline=None)
@given(uneven(), st.sampled_from([None, 1, 2]))
def test_nothing_is_violated(case, rank):
    weights, z, y, bias = case
    if rank is not None and rank > min(weights[-1].shape):
        rank = None
    for form in ("simple", "sharp"):
        check = inheritance(weights, z, y, form, bias=bias, rank=rank)
        assert check.holds is not False, str(check)


@settings(max_examples=80, deadline=None)
@given(linear_heads(max_noise=2.0))
def test_never_above_the_sharp_form_of_theorem_3_1(head):
    ours, old = inheritance(head, form="sharp"), theorem_3_1_nc1(head, "sharp")
    assert ours.holds is not False, str(ours)
    # the other form of Theorem 3.1's minimum has (n − K)‖Z̊‖² in place of the scatter
    if old.hypotheses_met and head.within(head.layers[-3]).square().sum() <= _other(head):
        assert ours.bound <= old.bound * (1 + 1e-9) + ours.rounding


def _other(head):
    width = head.weights[-1].shape[1] - head.num_classes
    return width * torch.linalg.matrix_norm(head.within(head.layers[-3]), 2) ** 2


def test_head_and_lists_agree():
    parts = random_head(torch.Generator().manual_seed(0), noise=0.1)
    assert inheritance(LinearHead(*parts)).bound == pytest.approx(inheritance(*parts).bound, rel=1e-12)


@pytest.mark.parametrize(("form", "tight"), [("simple", 0.95), ("sharp", 0.99)])
def test_a_smaller_constant_would_be_caught(form, tight):
    y = torch.tensor([0, 0, 0, 1, 1])

    def start(generator):
        weights, features, _ = random_head(generator, 2, 2, 2, 1, noise=0.05, spread=(0.8, 1.5))
        extra = torch.randn(1, features.shape[1], generator=generator, dtype=torch.float64)
        return [*weights, torch.cat([features, 0.1 * extra])]

    def sides(before, last, z):
        return inheritance_sides(last, before, z, y, form, z.new_zeros(len(before)), 2)

    found = attack(sides, start, restarts=2, steps=200)
    assert tight < found.ratio <= 1 + 1e-9
    before, last, z = found.instance
    check = inheritance([before, last], z, y, form, rank=2)
    assert check.holds is True
    assert dataclasses.replace(check, bound=tight * check.bound).holds is False


def test_without_the_imbalance_it_is_false():
    """Scatter that the last layer does not see: the outputs have none, ‖D‖ = 1/4 pays for all of it."""
    last = torch.eye(2, 3, dtype=torch.float64)
    before = torch.diag(torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64))
    z = torch.tensor([[1.0, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1]], dtype=torch.float64)
    check = inheritance([before, last], z, torch.tensor([0, 0, 1, 1]))
    assert check.measured == pytest.approx(0.5)
    assert check.bound == pytest.approx(0.5)
    assert dataclasses.replace(check, bound=0.99 * check.bound).holds is False


def test_silent_and_wrong_arguments():
    weights, z, y = random_head(torch.Generator().manual_seed(0))
    flat = torch.ones_like(weights[-1])  # rank 1
    assert inheritance([*weights[:-1], flat], z, y, rank=2).holds is None
    for keywords, message in (
        ({"form": "paper"}, "form must be"),
        ({"rank": 9}, "rank must be"),
        ({"bias": torch.zeros(1)}, "bias must be"),
    ):
        with pytest.raises(ValueError, match=message):
            inheritance(weights, z, y, **keywords)
    with pytest.raises(ValueError, match="y must hold"):
        inheritance(weights, z, y + 1)
    with pytest.raises(ValueError, match="at least 2"):
        inheritance(weights[:1], z, y)
