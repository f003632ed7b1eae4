"""LinearHead: what it measures, against the definitions in NumPy, what it refuses, and the linear algebra it shares."""

import math

import numpy as np
import pytest
import torch
from heads import in_columns, norm, singular, uneven_head
from torch import nn

from ncutils.theory import LinearHead
from ncutils.theory import head as module


def test_every_measure_of_an_uneven_head():
    head = uneven_head(noise=0.1)
    c = in_columns(head)
    assert (head.depth, head.num_classes, head.num_samples) == (4, 3, 9)
    assert [tuple(w.shape) for w in head.weights] == [(7, 8), (6, 7), (5, 6), (3, 5)]
    assert head.counts.tolist() == c.sizes == [2, 4, 3]
    assert head.label_scale == pytest.approx(math.sqrt(2))
    assert len(head.layers) == 5
    for got, expected in zip(head.layers, c.z, strict=True):
        np.testing.assert_allclose(got.T, expected, atol=1e-13)
    np.testing.assert_allclose(head.error.T, c.error, atol=1e-13)
    assert float(head.eps1) == pytest.approx(c.eps1)
    np.testing.assert_allclose(head.mean_error.T, c.means(c.error), atol=1e-13)
    np.testing.assert_allclose(head.norms, c.norms)
    np.testing.assert_allclose(head.imbalances, c.gaps)
    assert float(head.eps2) == pytest.approx(max(c.gaps))
    np.testing.assert_allclose(head.feature_norms, [norm(z) for z in c.z])
    for got, expected in zip(head.feature_singular_values, c.z, strict=True):
        np.testing.assert_allclose(got[:3], singular(expected)[:3])
    assert float(head.radius) == pytest.approx(max([*c.norms, norm(c.z[-3]), norm(c.z[-2])]))
    assert [float(head.s1), float(head.sK)] == pytest.approx([c.s[0], c.s[2]])
    assert float(head.kappa_last) == pytest.approx(c.kappa)
    np.testing.assert_allclose(head.pseudo_inverse, np.linalg.pinv(c.w[-1]), atol=1e-13)
    np.testing.assert_allclose(head.row_space, np.linalg.pinv(c.w[-1]) @ c.w[-1], atol=1e-13)
    unseen = c.z[-2] - np.linalg.pinv(c.w[-1]) @ c.w[-1] @ c.z[-2]
    np.testing.assert_allclose(head.outside(head.layers[-2]).T, unseen, atol=1e-13)
    for count in range(5):
        np.testing.assert_allclose(head.tail(count), c.tail(count), atol=1e-13)
    np.testing.assert_allclose(head.product_singular_values[:3], c.product[:3])
    assert float(head.kappa_head) == pytest.approx(c.product[0] / c.product[2])


@pytest.mark.parametrize("layer", range(5))
def test_collapse_at_any_layer_with_class_means_over_each_class(layer):
    head = uneven_head(noise=0.1)
    c = in_columns(head)
    z, means = c.z[layer], c.means(c.z[layer])
    np.testing.assert_allclose(head.class_means(head.layers[layer]).T, means, atol=1e-13)
    np.testing.assert_allclose(head.within(head.layers[layer]).T, c.centred(z), atol=1e-13)
    within = (c.centred(z) ** 2).sum() / 9
    between = ((means - means.mean(1, keepdims=True)) ** 2).sum() / 3
    assert float(head.nc1(head.layers[layer])) == pytest.approx(within / between)
    assert float(head.nc2(head.layers[layer])) == pytest.approx(singular(means)[0] / singular(means)[2])


def test_nc3_is_a_mean_of_cosines_whatever_the_lengths():
    head = uneven_head(noise=0.1)
    c = in_columns(head)
    rows = c.w[-1][c.labels]
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in zip(c.z[-2].T, rows, strict=True)]
    z, last = head.layers[-2], head.weights[-1]
    assert float(head.nc3(z, last)) == pytest.approx(np.mean(cosines))
    assert float(head.nc3(1e-20 * z, 1e-20 * last)) == pytest.approx(np.mean(cosines))
    without = z.clone()
    without[0] = 0  # a sample of no direction counts as 0
    assert float(head.nc3(without, last)) == pytest.approx(np.sum(cosines[1:]) / 9)


@pytest.mark.parametrize(
    ("entering", "scales", "radius"),
    [
        (7.0, (0.1, 1.0, 1.0), 1.0),  # what enters the first of three layers does not count
        (3.0, (1.0, 0.1, 1.0), 3.0),  # Z_{L−2}
        (1.0, (1.5, 2.0, 0.1), 3.0),  # Z_{L−1}
        (0.5, (1.0, 1.0, 3.0), 3.0),  # the last layer
        (0.01, (4.0, 2.0, 3.0), 4.0),  # the first layer
        (0.4, (0.5, 0.1, 0.6), 0.6),
        (0.1, (2.0, 2.0, 40.0), 40.0),
        (1.0, (2.0, 2.0, 3.0), 4.0),  # the output, 12 long, does not count
    ],
)
def test_the_radius_takes_all_weights_and_the_two_layers_before_the_output(entering, scales, radius):
    eye = torch.eye(2, dtype=torch.float64)
    head = LinearHead([s * eye for s in scales], entering * eye, torch.arange(2))
    assert float(head.radius) == pytest.approx(radius)


def test_a_narrow_last_layer_has_no_smallest_singular_value():
    head = LinearHead([torch.ones(2, 4), torch.eye(3)[:, :2]], torch.ones(3, 4), torch.arange(3))
    assert float(head.sK) == 0 and float(head.kappa_last) == math.inf == float(head.kappa_head)
    assert not head.full_rank().holds and head.full_rank().value == 0
    np.testing.assert_allclose(head.feature_norms[0], math.sqrt(12))


def test_the_nth_singular_value_is_zero_beyond_the_last():
    values = torch.tensor([4.0, 2.0, 0.5])
    assert [float(module.nth(values, n)) for n in (1, 2, 3, 4, 5)] == [4.0, 2.0, 0.5, 0.0, 0.0]
    assert [float(module.condition(values, n)) for n in (1, 2, 3, 4)] == [1.0, 2.0, 8.0, math.inf]


@pytest.mark.parametrize(("last", "full"), [(0.99e-12, False), (1.01e-12, True), (1.0, True)])
def test_full_rank_from_one_part_in_a_million_million(last, full):
    weights = [torch.eye(2), torch.diag(torch.tensor([3.0, 3.0 * last], dtype=torch.float64))]
    hypothesis = LinearHead(weights, torch.eye(2), torch.arange(2)).full_rank()
    assert hypothesis.holds is full
    assert hypothesis.value == pytest.approx(last) and hypothesis.threshold == 1e-12


def test_recurring_hypotheses_hold_their_numbers():
    head = uneven_head(noise=0.1)
    equal = head.equal_classes()
    assert (equal.value, equal.threshold, equal.sense, equal.holds) == (4, 2, "<=", False)
    even = LinearHead([torch.eye(2)] * 2, torch.eye(2), torch.arange(2)).equal_classes()
    assert (even.value, even.threshold, even.holds) == (1, 1, True)
    eps1 = float(head.eps1)
    assert head.error_below(eps1, "x", "<=").holds and not head.error_below(eps1, "x").holds
    assert head.error_below(eps1 * (1 + 1e-12), "x").holds
    assert str(head.error_below(1e9, "x", "<=")).startswith("‖E‖_F ≤ x: ")
    assert str(head.error_below(1e9, "x")).startswith("‖E‖_F < x: ")


# --- what a head refuses


def test_two_layers_are_enough_and_one_is_not():
    eye = torch.eye(2)
    assert LinearHead([eye, eye], eye, torch.arange(2)).depth == 2
    with pytest.raises(ValueError, match=r"weights must be at least 2; got 1 linear layer\(s\)"):
        LinearHead([eye], eye, torch.arange(2))


@pytest.mark.parametrize(
    ("weights", "features", "y", "words"),
    [
        ([(4, 5), (3, 5)], (6, 5), [0, 1, 2, 0, 1, 2], r"weights\[1\] must be \(out, 4\) for .*; got shape \(3, 5\)"),
        ([(4, 4), (3, 4)], (6, 5), [0, 1, 2, 0, 1, 2], r"weights\[0\] must be \(out, 5\) for .*; got shape \(4, 4\)"),
        ([(4, 5), (3, 4)], (5,), [0, 1, 2], r"features must have two dimensions; got shape \(5,\)"),
        ([(4, 5), (3, 4, 1)], (6, 5), [0, 1, 2], r"weights\[1\] must have two dimensions; got shape \(3, 4, 1\)"),
        ([(4, 5), (3, 4)], (6, 5), [0, 1, 2, 0, 1], "y must be 6 labels, one a sample; got 5"),
        ([(4, 5), (3, 4)], (6, 5), [0, 1, 2, 0, 1, 2, 0], "y must be 6 labels, one a sample; got 7"),
        ([(4, 5), (3, 4)], (0, 5), [], "y must be one label or more; got no samples"),
        ([(4, 5), (1, 4)], (2, 5), [0, 0], r"the last layer has 1 output\(s\), expected K ≥ 2 classes"),
        ([(4, 5), (3, 4)], (3, 5), [0, 1, 3], "y must be 0 … 2, the last layer has K = 3 .*; got labels from 0 to 3"),
        ([(4, 5), (3, 4)], (4, 5), [0, 1, 2, -1], "y must be 0 … 2, .*; got labels from -1 to 2"),
        ([(4, 5), (2, 4)], (1, 5), [0], r"class 0 … 1, one for each output; got none of \[1\]"),
        ([(4, 5), (4, 4)], (3, 5), [0, 2, 2], r"class 0 … 3, one for each output; got none of \[1, 3\]"),
        ([(4, 5), (3, 4)], (3, 5), [[0], [1], [2]], r"labels of shape \(N,\); got torch.int64 of shape \(3, 1\)"),
        ([(4, 5), (2, 4)], (2, 5), [True, False], r"integer labels of shape \(N,\); got torch.bool of shape \(2,\)"),
        ([(4, 5), (2, 4)], (2, 5), [0.0, 1.0], r"integer labels of shape \(N,\); got torch.float32 of shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_said_with_its_numbers(weights, features, y, words):
    labels = torch.tensor(y) if y else torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match=words):
        LinearHead([torch.ones(*shape) for shape in weights], torch.ones(*features), labels)


def test_what_is_no_finite_tensor_is_named():
    eye, y = torch.eye(2), torch.arange(2)
    with pytest.raises(ValueError, match=r"features must be finite; got NaN or infinite entries"):
        LinearHead([eye, eye], eye * math.inf, y)
    with pytest.raises(ValueError, match=r"weights\[1\] must be finite"):
        LinearHead([eye, eye / 0], eye, y)
    with pytest.raises(ValueError, match=r"weights\[1\] must be a torch tensor; got ndarray"):
        LinearHead([eye, np.eye(2)], eye, y)
    with pytest.raises(TypeError, match=r"weights\[1\] must be a tensor or array; got 3"):
        LinearHead([eye, 3], eye, y)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_integer_type(dtype):
    head = LinearHead([torch.eye(2)] * 2, torch.eye(2), torch.arange(2).to(dtype))
    assert head.y.dtype == torch.int64 and head.features.dtype == torch.float64
    assert float(head.eps1) == 0


@pytest.mark.parametrize(
    ("weights", "features"),
    [
        ((0.0, 0.0), 300.0),
        ((-7.0, -9.0), 300.0),  # small weights make no room
        ((150.0, 150.0), -5.0),  # nor do small features
        ((150.0, 20.0), 0.0),  # the largest counts for each of the layers
        ((100.0, 100.0, 100.0), 0.0),
        ((120.0, 3.0), 60.0),
    ],
)
def test_products_up_to_the_exponential_of_300_are_accepted(weights, features):
    """The limit is on L2 ln max ‖W_ℓ‖_F + ln ‖Z‖_F, neither logarithm below 0."""

    def of_size(logarithm):
        return torch.eye(2, dtype=torch.float64) * (math.exp(logarithm) / math.sqrt(2))

    y = torch.arange(2)
    accepted = LinearHead([of_size(w - 0.02) for w in weights], of_size(features - 0.02), y)
    assert accepted.depth == len(weights)
    with pytest.raises(ValueError, match=f"float64 holds; got a largest weight of norm .* in {len(weights)} layers"):
        LinearHead([of_size(w + 0.02) for w in weights], of_size(features + 0.02), y)


def test_the_refusal_of_large_products_gives_the_norms():
    eye, y = torch.eye(2, dtype=torch.float64), torch.arange(2)
    words = "largest weight of norm 1.41e[+]70 in 2 layers and features of norm 2.83"
    with pytest.raises(ValueError, match=words):
        LinearHead([1e70 * eye, 1e-3 * eye], 2 * eye, y)


def test_forms_are_named_in_the_refusal():
    module.known_form("b", ("a", "b"))
    with pytest.raises(ValueError, match=r"form must be one of \('a', 'b'\); got 'c'"):
        module.known_form("c", ("a", "b"))


# --- the head of a model


class Counting(nn.Module):
    """Notes how many samples come at a time."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False)
        self.seen = []

    def forward(self, x):
        self.seen.append(len(x))
        return self.last(self.first(x))

    def __deepcopy__(self, memo):
        other = Counting()
        other.load_state_dict(self.state_dict())
        other.seen = self.seen
        return other


@pytest.mark.parametrize(("keywords", "most"), [({}, 2000), ({"batch_size": 70}, 70), ({"batch_size": 1}, 1)])
def test_of_a_model_in_batches(keywords, most):
    model = Counting()
    samples = 2003 if most > 1 else 5
    x, y = torch.randn(samples, 3, generator=torch.Generator().manual_seed(0)), torch.arange(samples) % 2
    head = LinearHead.of(model, x, y, **keywords)
    assert max(model.seen) == most and model.seen[-1] == (samples % most or most)
    assert torch.equal(head.y, y)
    np.testing.assert_allclose(head.output.detach(), model(x).double().detach(), atol=1e-5)


# --- the largest eigenvalue


class Map:
    """A symmetric matrix as a map on tensors of some shape; counts how often it is asked."""

    def __init__(self, matrix):
        self.matrix, self.calls = matrix, 0

    def __call__(self, v):
        self.calls += 1
        return (self.matrix @ v.flatten()).reshape(v.shape)


def tridiagonal(diagonal, beside):
    beside = torch.tensor(beside, dtype=torch.float64)
    diagonal = torch.tensor(diagonal, dtype=torch.float64)
    return torch.diag(diagonal) + torch.diag(beside, 1) + torch.diag(beside, -1)


def first_unit_vector(size):
    start = torch.zeros(size, dtype=torch.float64)
    start[0] = 1
    return start


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_largest_eigenvalue_of_a_map_on_matrices(scale):
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    apply = Map(scale * root @ root.T)
    start = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    expected = float(torch.linalg.eigvalsh(apply.matrix)[-1])
    assert module.largest_eigenvalue(apply, start) == pytest.approx(expected, rel=1e-10)
    assert apply.calls <= 12
    assert module.largest_eigenvalue(apply, 7 * start) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_each_step_is_one_application_and_one_row_of_the_tridiagonal_matrix(steps):
    matrix = tridiagonal([2.0, 3.0, 1.0, 4.0], [0.5, 0.7, 0.9])
    apply = Map(matrix)
    expected = np.linalg.eigvalsh(matrix[:steps, :steps].numpy())[-1]
    found = module.largest_eigenvalue(apply, first_unit_vector(4), steps=steps)
    assert found == pytest.approx(expected, rel=1e-12) and apply.calls == steps


def test_a_value_must_stand_still_twice_in_a_row():
    """After one coupling of 1e-7 the value moves by 1e-14 only, and then by much; after two such couplings it ends."""
    one = Map(tridiagonal([1.0, 0.0, 5.0, 0.0], [1e-7, 0.5, 0.5]))
    found = module.largest_eigenvalue(one, first_unit_vector(4))
    assert found == pytest.approx(np.linalg.eigvalsh(one.matrix.numpy())[-1], rel=1e-10) and one.calls == 4
    two = Map(tridiagonal([1.0, 0.0, 0.0, 5.0, 0.0], [1e-7, 1e-7, 0.5, 0.5]))
    assert module.largest_eigenvalue(two, first_unit_vector(5)) == pytest.approx(1.0, abs=1e-12)
    assert two.calls == 3
    apart = Map(tridiagonal([1.0, 0.0, 3.0, 0.0, 5.0, 0.0], [1e-7, 0.5, 1e-7, 0.5, 0.5]))  # twice, not in a row
    found = module.largest_eigenvalue(apart, first_unit_vector(6))
    assert found == pytest.approx(np.linalg.eigvalsh(apart.matrix.numpy())[-1], rel=1e-10) and apart.calls == 6


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize(("beside", "tol", "calls"), [(1e-5, 1e-12, 4), (1e-5, 1e-9, 3), (1e-7, 1e-12, 3)])
def test_the_tolerance_is_relative(beside, tol, calls, scale):
    """The first coupling moves the value by its square, the next ones by next to nothing."""
    apply = Map(scale * tridiagonal([1.0, 0.0, 0.0, 0.0, 5.0, 0.0], [beside, beside, beside, 0.5, 0.5]))
    found = module.largest_eigenvalue(apply, first_unit_vector(6), tol=tol)
    assert found == pytest.approx(scale, rel=1e-9) and apply.calls == calls


def test_the_default_is_200_steps_at_most_and_a_tolerance_of_a_million_millionth():
    slow = Map(torch.diag(1 - torch.linspace(0, 1, 600, dtype=torch.float64) ** 2))
    module.largest_eigenvalue(slow, torch.ones(600, dtype=torch.float64), tol=0.0)
    assert slow.calls == 200
    quick = Map(torch.diag(torch.cat([torch.tensor([9.0]), torch.linspace(0, 1, 300)]).double()))
    assert module.largest_eigenvalue(quick, torch.ones(301).double()) == pytest.approx(9.0, rel=1e-12)
    assert quick.calls < 30


def test_a_start_among_the_eigenvectors_needs_one_application():
    apply = Map(torch.diag(torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)))
    assert module.largest_eigenvalue(apply, 5 * first_unit_vector(3)) == pytest.approx(3.0)
    assert apply.calls == 1
    zero = Map(torch.zeros(3, 3, dtype=torch.float64))
    assert module.largest_eigenvalue(zero, first_unit_vector(3)) == 0.0 and zero.calls == 1


@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_a_map_that_is_not_finite_has_no_largest_eigenvalue(entry):
    apply = Map(torch.diag(torch.tensor([3.0, entry], dtype=torch.float64)))
    assert math.isnan(module.largest_eigenvalue(apply, torch.ones(2, dtype=torch.float64)))
    assert apply.calls == 1


def test_the_head_of_a_model_takes_its_labels_from_what_holds_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False))
    x, y = torch.randn(9, 5), torch.arange(9) % 3
    for given in (
        (x, y),
        torch.utils.data.TensorDataset(x, y),
        torch.utils.data.DataLoader(list(zip(x, y, strict=True)), 4),
    ):
        head = LinearHead.of(model, given)
        assert head.y.tolist() == y.tolist()
        torch.testing.assert_close(head.features, LinearHead.of(model, x, y).features)
