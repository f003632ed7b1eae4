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


def stated(last, before, z, y, form, bias, rank):
    """The bound as the module states it, from sums over samples and classes."""
    features = z @ before.T + bias
    outputs = features @ last.T
    labels = range(int(y.max()) + 1)
    scatter = lambda f: sum(((f[y == c] - f[y == c].mean(0)) ** 2).sum() for c in labels) / len(f)  # noqa: E731
    means = lambda f: torch.stack([f[y == c].mean(0) for c in labels])  # noqa: E731
    between = lambda m: ((m - m.mean(0)) ** 2).sum() / len(m)  # noqa: E731
    gap = last.T @ last - before @ before.T - torch.outer(bias, bias)
    u, s, vh = torch.linalg.svd(last)
    beyond = s[rank] ** 2 if rank < len(s) else 0.0
    norm = lambda matrix: torch.linalg.matrix_norm(matrix, 2)  # noqa: E731
    if form == "simple":
        total = scatter(outputs) / s[rank - 1] ** 2 + (beyond + norm(gap)) * scatter(z)
        return float(s[0] ** 2 * total / between(means(outputs)))
    best = u[:, :rank] @ torch.diag(s[:rank]) @ vh[:rank]
    inverse = torch.linalg.pinv(best, rtol=1e-10).T
    unseen = torch.eye(len(before)).double() - vh[:rank].T @ vh[:rank]
    total = scatter(outputs @ inverse) + (beyond + norm(unseen @ gap @ unseen)) * scatter(z)
    return float(total / between(means(outputs @ inverse)))


def uneven_case(seed=0):
    """Classes of 2, 4 and 3 samples, widths 4, 5, 3."""
    g = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=g).double()  # noqa: E731
    y = torch.tensor([0, 1, 2, 1, 0, 2, 1, 2, 1])
    return [normal(5, 4), normal(3, 5)], 0.3 * normal(9, 4) + normal(3, 4)[y], y, 0.5 * normal(5)


@pytest.mark.parametrize("form", ["simple", "sharp"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_bound_is_as_stated_at_every_rank_and_the_least_by_default(form, seed):
    weights, z, y, bias = uneven_case(seed)
    before, last = weights
    expected = [stated(last, before, z, y, form, bias, rank) for rank in (1, 2, 3)]
    found = [inheritance(weights, z, y, form, bias=bias, rank=rank) for rank in (1, 2, 3)]
    assert [check.bound for check in found] == pytest.approx(expected, rel=1e-9)
    for rank in (1, 2, 3):
        measured, bound = inheritance_sides(last, before, z, y, form, bias, rank)
        assert float(bound) == pytest.approx(expected[rank - 1], rel=1e-9)
        assert float(measured) == pytest.approx(found[0].measured, rel=1e-12)
    features = z @ before.T + bias
    labels = range(3)
    inside = sum(((features[y == c] - features[y == c].mean(0)) ** 2).sum() for c in labels) / 9
    means = torch.stack([features[y == c].mean(0) for c in labels])
    assert found[0].measured == pytest.approx(float(inside / (((means - means.mean(0)) ** 2).sum() / 3)), rel=1e-9)
    default = inheritance(weights, z, y, form, bias=bias)
    assert default.bound == pytest.approx(min(expected), rel=1e-9) and default.holds is True
    assert [h.threshold for h in (default.hypotheses[0], found[2].hypotheses[0])] == [3, 3]
    assert [h.value for h in (default.hypotheses[0], found[2].hypotheses[0])] == [1, 3]
    outputs = means @ last.T
    between = float(((outputs - outputs.mean(0)) ** 2).sum() / 3)
    told = inheritance(weights, z, y, form).hypotheses[1]  # a bias shifts all outputs alike
    assert told.value == pytest.approx(between, rel=1e-9) and (told.threshold, told.sense) == (0.0, ">")
    assert (default.form, default.sense, default.statement, default.quantity) == (form, "<=", "Inheritance", "nc1")


def test_the_form_is_sharp_and_there_is_no_bias_unless_given():
    weights, z, y, bias = uneven_case()
    assert inheritance(weights, z, y) == inheritance(weights, z, y, "sharp", bias=torch.zeros(5))
    assert inheritance(weights, z, y, bias=bias) != inheritance(weights, z, y)
    first = torch.randn(4, 6, generator=torch.Generator().manual_seed(5)).double()
    longer = torch.randn(9, 6, generator=torch.Generator().manual_seed(6)).double()
    both = inheritance([first, *weights], longer, y), inheritance(weights, longer @ first.T, y)
    assert both[0].bound == pytest.approx(both[1].bound, rel=1e-12)


@pytest.mark.parametrize("values", [(1.0, 1.0), (2.0, 0.5), (3.0, 1e-3)])
def test_rounding_grows_with_the_condition_of_the_last_layer(values):
    """What float64 leaves of an NC1 of m, with a relative error c in the features: c (c + 2 √m)."""
    last = torch.diag(torch.tensor(values, dtype=torch.float64))
    z = torch.tensor([[1.0, 0.1], [1.0, -0.1], [0.0, 1.0]], dtype=torch.float64)
    check = inheritance([torch.eye(2), last], z, torch.tensor([0, 0, 1]))
    c = 1e-13 * values[0] / values[1]
    assert check.rounding == pytest.approx(c * (c + 2 * check.measured**0.5), rel=1e-9)


def test_a_last_layer_of_low_rank_is_bounded_at_the_ranks_it_has():
    weights, z, y, _ = uneven_case()
    u, s, vh = torch.linalg.svd(weights[1], full_matrices=False)
    flat = u[:, :2] @ torch.diag(s[:2]) @ vh[:2]
    default, second, third = (inheritance([weights[0], flat], z, y, rank=rank) for rank in (None, 2, 3))
    assert third.holds is None and third.bound == pytest.approx(second.bound) and second.holds is True
    assert default.hypotheses[0].threshold == 2 and default.bound <= second.bound
    nothing = inheritance([weights[0], 0 * flat], z, y)
    assert nothing.holds is None and not nothing.bound < 1e100
    near = torch.diag(torch.tensor([1.0, 2e-12])).double(), torch.diag(torch.tensor([1.0, 0.5e-12])).double()
    for last, known in zip(near, (2, 1), strict=True):
        check = inheritance([torch.eye(2), last], z[:3, :2], torch.tensor([0, 1, 0]))
        assert check.hypotheses[0].threshold == known


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"form": "paper"}, "form must be 'simple' or 'sharp'; got 'paper'"),
        ({"rank": 0}, "rank must be 1 … 3; got 0"),
        ({"rank": 4}, "rank must be 1 … 3; got 4"),
        ({"features": None}, "features, y must be given with weights; got None"),
        ({"y": None}, "features, y must be given with weights; got Tensor"),
        ({"weights": 3}, "weights must hold at least 2 linear layers; got 3"),
        ({"weights": [torch.eye(4)]}, "weights must hold at least 2 linear layers"),
        ({"weights": [torch.ones(5, 3), torch.ones(3, 5)]}, r"fit one another and the features; got \(5, 3\) after 4"),
        ({"weights": [torch.ones(5, 4), torch.ones(3, 6)]}, r"fit one another and the features; got \(3, 6\) after 5"),
        (
            {"weights": [torch.ones(5), torch.ones(3, 5)]},
            r"N, n\), \(N,\) integers and matrices; got \[\(9, 4\), \(9,\), \(5,\)",
        ),
        ({"features": torch.ones(9)}, r"must be \(N, n\), \(N,\) integers and matrices; got \[\(9,\), \(9,\)"),
        ({"y": torch.zeros(9)}, r"must be \(N, n\), \(N,\) integers and matrices"),
        ({"y": torch.zeros(9, dtype=torch.complex64)}, r"must be \(N, n\), \(N,\) integers and matrices"),
        ({"y": torch.zeros(8, dtype=torch.long)}, r"y must be \(9,\), one label a sample; got \(8,\)"),
        ({"y": torch.zeros(10, dtype=torch.long)}, r"y must be \(9,\), one label a sample; got \(10,\)"),
        ({"y": torch.zeros(9, 1, dtype=torch.long)}, r"y must be \(9,\), one label a sample; got \(9, 1\)"),
        ({"y": torch.zeros(9, dtype=torch.long)}, r"y must hold labels 0..K-1, K >= 2, each at least once; got \[0\]"),
        ({"y": torch.tensor([0, 2] * 4 + [0])}, r"each at least once; got \[0, 2\]"),
        ({"y": torch.tensor([0, -1] * 4 + [0])}, r"each at least once; got \[-1, 0\]"),
        ({"bias": torch.zeros(4)}, r"bias must be \(5,\), that of layer L-1; got \(4,\)"),
        ({"bias": torch.zeros(5, 1)}, r"bias must be \(5,\), that of layer L-1; got \(5, 1\)"),
    ],
)
def test_what_does_not_fit_is_named(change, words):
    weights, z, y, bias = uneven_case()
    given = {"weights": weights, "features": z, "y": y, "bias": bias}
    assert inheritance(**given).holds is True and inheritance(**{**given, "weights": tuple(weights)}).holds is True
    with pytest.raises((ValueError, TypeError), match=words):
        inheritance(**{**given, **change})


def test_no_samples_and_no_integer_ranks_are_refused():
    weights, z, y, _ = uneven_case()
    with pytest.raises(ValueError, match=r"y must hold labels 0..K-1, K >= 2, each at least once; got \[\]"):
        inheritance(weights, z[:0], y[:0])
    with pytest.raises(TypeError, match=r"rank must be an integer; got 1\.5"):
        inheritance(weights, z, y, rank=1.5)
    with pytest.raises(ValueError, match="features, y must be given with weights"):
        inheritance(weights)
    many = torch.arange(60) + 1
    with pytest.raises(ValueError, match=r"each at least once; got \[1, 2, .*, 19, 20\]$"):
        inheritance(weights, torch.ones(60, 4), many)
    two = inheritance([torch.eye(2), torch.eye(2)], torch.eye(2), torch.arange(2))  # the least that can be asked
    assert two.measured == 0.0 and two.holds is True
