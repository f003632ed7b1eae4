"""Proposition 5.3 number by number: blocks, norms, bounds and floors against their definitions, and what is refused."""

import math

import pytest
import torch
from heads import exact_head
from torch import nn

from ncutils.theory import LinearHead, tangent_kernel
from ncutils.theory.tangent_kernel import (
    linear_ntk_norm,
    linear_ntk_norm_tensor,
    ntk_block,
    ntk_block_norms,
    ntk_floor,
    ntk_norm,
    proposition_5_3,
    proposition_5_3_floor,
    proposition_5_3_sides,
)
from ncutils.theory.theorem_3_1 import telescoping_error


def uneven(seed=0):
    """Widths 6, 5, 4, 3, classes of one and two samples, every layer of another norm."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator).double()  # noqa: E731
    y = torch.tensor([0, 0, 1, 2, 2])
    weights = [1.5 * normal(5, 6), 0.7 * normal(4, 5), normal(3, 4)]
    product = weights[2] @ weights[1] @ weights[0]
    features = torch.linalg.pinv(product).T[y] + 0.01 * normal(5, 6)
    return LinearHead(weights, features, y)


def norm(matrix):
    return float(torch.linalg.matrix_norm(matrix, 2))


def tails(head):
    """W_{L:l} for l = 1..L, and the identity."""
    w = head.weights
    return [w[2] @ w[1] @ w[0], w[2] @ w[1], w[2], torch.eye(3).double()]


def jacobian(head):
    """Of the flattened outputs by all weights."""

    def outputs(*weights):
        z = head.features
        for w in weights:
            z = z @ w.T
        return z.flatten()

    return torch.cat([j.flatten(1) for j in torch.autograd.functional.jacobian(outputs, head.weights)], 1)


def test_block_norms_are_products_of_norms():
    head = uneven()
    expected = [norm(z) ** 2 * norm(tail) ** 2 for z, tail in zip(head.layers, tails(head)[1:], strict=False)]
    assert ntk_block_norms(head).tolist() == pytest.approx(expected, rel=1e-12)
    for layer in (1, 2, 3):
        check = ntk_block(head, layer)
        assert check.holds is True and check.bound == pytest.approx(expected[layer - 1])
        assert check.measured == pytest.approx(expected[layer - 1], rel=1e-8)
        assert (check.tolerance, check.sense, check.form, check.hypotheses) == (1e-8, "==", "exact", ())


def test_the_norm_of_all_blocks_is_that_of_the_jacobian(monkeypatch):
    head = uneven()
    expected = norm(jacobian(head)) ** 2
    again = LinearHead(head.weights, head.features, head.y)
    assert linear_ntk_norm(head) == pytest.approx(expected, rel=1e-10)
    assert float(linear_ntk_norm_tensor(head)) == pytest.approx(expected, rel=1e-10)
    monkeypatch.setattr(tangent_kernel, "DENSE_ORDER", 0)
    assert linear_ntk_norm(head) == pytest.approx(expected, rel=1e-10)  # kept
    assert linear_ntk_norm(again) == pytest.approx(expected, rel=1e-10)  # by Lanczos


@pytest.mark.parametrize("entering", [2, 9])
def test_kernels_may_have_fewer_or_more_features_than_samples(entering):
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(*shape, generator=generator).double() for shape in ((4, entering), (3, 4))]
    head = LinearHead(weights, torch.randn(6, entering, generator=generator).double(), torch.arange(6) % 3)
    expected = norm(jacobian(head)) ** 2
    assert linear_ntk_norm(head) == pytest.approx(expected, rel=1e-9)


def test_the_dense_norm_can_be_differentiated():
    head = uneven()
    weights = [w.clone().requires_grad_() for w in head.weights]
    features = head.features.clone().requires_grad_()
    linear_ntk_norm_tensor(LinearHead(weights, features, head.y)).backward()
    step = 1e-6
    for part, tensor in enumerate((*weights, features)):
        moved = []
        for sign in (1, -1):
            parts = [t.detach().clone() for t in (*weights, features)]
            parts[part][1, 2] += sign * step
            moved.append(float(linear_ntk_norm_tensor(LinearHead(parts[:-1], parts[-1], head.y))))
        assert float(tensor.grad[1, 2]) == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-4)


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.randn(6, 4).double()


def test_the_kernel_of_a_model_leaves_its_gradients_and_frozen_parameters_alone():
    model, x = small_model()
    rows = [torch.autograd.grad(v, tuple(model.parameters()), retain_graph=True) for v in model(x).flatten()]
    full = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    assert ntk_norm(model, x, steps=18, tol=0.0) == pytest.approx(norm(full) ** 2, rel=1e-9)
    assert all(p.grad is None for p in model.parameters())
    for p in model[0].parameters():
        p.requires_grad_(False)
    assert ntk_norm(model, x, steps=18, tol=0.0) == pytest.approx(norm(full[:, 25:]) ** 2, rel=1e-9)


def test_how_many_steps_and_how_near_by_default():
    model, x = small_model()
    assert ntk_norm(model, x) == ntk_norm(model, x, 60, 1e-6) == ntk_norm(model, x, tol=1e-6, steps=60)
    assert ntk_norm(model, x) == pytest.approx(ntk_norm(model, x, tol=0.0), rel=1e-5)
    assert ntk_norm(model, x, steps=1) < 0.99 * ntk_norm(model, x)

    class Spread(nn.Module):
        """J is diagonal, its squares 1, 2, ..., 4000, 4010: Lanczos is slow to tell the last two apart."""

        def __init__(self):
            super().__init__()
            squares = torch.arange(1, 4001).double()
            self.root, self.weight = (
                torch.cat([squares, torch.tensor([4010.0])]).sqrt(),
                nn.Parameter(torch.zeros(4001).double()),
            )

        def forward(self, x):
            return self.root * self.weight

    spread, nothing = Spread(), torch.zeros(1)
    found = {steps: ntk_norm(spread, nothing, steps, tol=0.0) for steps in (59, 60, 61)}
    assert found[59] < found[60] < found[61]
    assert ntk_norm(spread, nothing, tol=0.0) == found[60]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        ({"tol": -1e-9}, "tol must be at least 0, finite; got -1e-09"),
        ({"tol": math.inf}, "tol must be at least 0, finite; got inf"),
    ],
)
def test_kernels_refuse_numbers_out_of_range(options, words):
    model, x = small_model()
    with pytest.raises(ValueError, match=words):
        ntk_norm(model, x, **options)


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda self, x: x[9], "model must take x; got an error for x of"),
        (lambda self, x: x + "1", "model must take x; got an error for x of"),
        (lambda self, x: x @ x, "model must take x; got an error for x of"),
        (lambda self, x: x, "model must return one tensor that depends on its parameters; got Tensor"),
        (lambda self, x: (self.weight,), "model must return one tensor that depends on its parameters; got tuple"),
    ],
)
def test_what_a_model_does_with_its_inputs_is_said(forward, words):
    model = type("Model", (nn.Module,), {"forward": forward})()
    model.weight = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=words):
        ntk_norm(model, torch.ones(2, 3))


@pytest.mark.parametrize("layer", [1, 2, 3])
def test_the_bound_of_the_head_is_as_stated(layer):
    """κ(W_{L:l}) and ‖W_l‖ √C / (s_K(Y) - ε1), s_K(Y) the root of the smallest class."""
    head = uneven()
    values = torch.linalg.svdvals(tails(head)[layer - 1])
    gap = 1 - float(head.error.norm())
    block = float(ntk_block_norms(head)[layer - 1])
    for ntk in (None, 1.5 * block):
        check = proposition_5_3(head, layer, ntk)
        assert check.measured == pytest.approx(float(values[0] / values[2]), rel=1e-9)
        expected = norm(head.weights[layer - 1]) * math.sqrt(ntk or block) / gap
        assert check.bound == pytest.approx(expected, rel=1e-9) and check.holds is True
        assert (check.quantity, check.form, check.sense) == ("kappa_head", "simple", "<=")
    assert len(proposition_5_3(head, layer).hypotheses) == 1
    assert proposition_5_3(head) == proposition_5_3(head, 1)
    measured, bound = proposition_5_3_sides(head, layer - 1, torch.tensor(4.0))
    assert float(measured) == pytest.approx(check.measured)
    assert float(bound) == pytest.approx(2 * norm(head.weights[layer - 1]) / gap)


def test_a_kernel_below_its_own_block_is_no_hypothesis():
    head = uneven()
    block = float(ntk_block_norms(head)[0])
    for factor, met in ((1 - 1.1e-9, False), (1 - 0.9e-9, True), (1.0, True)):
        told = proposition_5_3(head, ntk=factor * block).hypotheses[1]
        assert told.holds is met and told.threshold == pytest.approx(factor * block)


@pytest.mark.parametrize("error", [0.9, 1.0, 2.0])
def test_an_error_as_large_as_the_labels_leaves_no_bound(error):
    """One sample a class, all of the error in one entry."""
    features = torch.eye(2).double()
    features[0, 0] += error
    head = LinearHead([torch.eye(2), torch.eye(2)], features, torch.arange(2))
    check = proposition_5_3(head)
    assert (check.bound < math.inf) is (error < 1) is check.hypotheses[0].holds
    for form in ("paper", "simple"):
        floor = proposition_5_3_floor(head, form)
        assert (floor.bound > 0) is (error < 1) is floor.hypotheses_met


def test_positions_and_kernels_out_of_range_are_refused():
    head = uneven()
    for layer in (0, 4, -1):
        with pytest.raises(ValueError, match=f"layer must be 1 … 3, a position in the linear head; got {layer}"):
            proposition_5_3(head, layer)
        with pytest.raises(ValueError, match=f"layer must be 1 … 3, a position in the linear head; got {layer}"):
            ntk_block(head, layer)
    with pytest.raises(ValueError, match="position must be 0 … 2; got 3"):
        proposition_5_3_sides(head, 3, 1.0)
    with pytest.raises(ValueError, match="position must be at least 0; got -1"):
        proposition_5_3_sides(head, -1, 1.0)
    for bad in (-1e-9, torch.tensor(-1.0)):
        with pytest.raises(ValueError, match="ntk must be at least 0; got -"):
            proposition_5_3_sides(head, 0, bad)
    assert float(proposition_5_3_sides(head, 0, 0.0)[1]) == 0.0
    grown = torch.tensor(1.0, requires_grad=True)
    assert proposition_5_3_sides(head, 0, grown)[1].requires_grad


@pytest.mark.parametrize("seed", [0, 1])
def test_the_floors_are_as_stated(seed):
    head = uneven(seed)
    gap = 1 - float(head.error.norm())
    kappas = []
    for tail in tails(head)[:3]:
        values = torch.linalg.svdvals(tail)
        kappas.append(float(values[0] / values[2]))
    norms = [norm(w) for w in head.weights]
    radius = max(*norms, norm(head.layers[-3]), norm(head.layers[-2]))
    values = torch.linalg.svdvals(head.weights[2])
    sharp = 0.0
    for j in (1, 2, 3):
        errors = [float(telescoping_error(head, count, "sharp")) for count in (j - 1, j)]
        top = max(float(values[0]) ** (2 * (j - 1)) - errors[0], 0.0)
        sharp += top / (float(values[2]) ** (2 * j) + errors[1])
    sharp *= float(torch.linalg.svdvals(head.output)[2]) ** 2
    stated = {
        "paper": (gap * kappas[0] / radius) ** 2,
        "simple": max((gap * kappa / size) ** 2 for kappa, size in zip(kappas, norms, strict=True)),
        "sharp": sharp,
    }
    for form, floor in stated.items():
        check = proposition_5_3_floor(head, form)
        assert check.bound == pytest.approx(floor, rel=1e-9) == float(ntk_floor(head, form))
        assert check.measured == pytest.approx(norm(jacobian(head)) ** 2, rel=1e-9)
        assert (check.form, check.sense, check.quantity) == (form, ">=", "ntk") and check.holds is True
        names = [hypothesis.name for hypothesis in check.hypotheses]
        assert len(names) == 1 and ("rank W_L = K" in names[0]) is (form == "sharp")
    assert proposition_5_3_floor(head) == proposition_5_3_floor(head, "sharp")
    with pytest.raises(ValueError, match=r"form must be one of \('paper', 'simple', 'sharp'\); got 'exact'"):
        proposition_5_3_floor(head, "exact")


@pytest.mark.parametrize("depth", [2, 3, 5])
def test_the_sharp_floor_of_a_balanced_head_is_a_sum_of_powers(depth):
    """(s_K(Y)/s_1)² Σ_j κ^{2j}: a term for every linear layer."""
    head = exact_head(3, num_classes=3, num_linear=depth, samples_per_class=2, spread=(0.7, 1.4))
    values = torch.linalg.svdvals(head.weights[-1])
    kappa = float(values[0] / values[2])
    expected = 2 / float(values[0]) ** 2 * sum(kappa ** (2 * j) for j in range(1, depth + 1))
    assert proposition_5_3_floor(head).bound == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(
    "ask",
    [ntk_block_norms, linear_ntk_norm, linear_ntk_norm_tensor, lambda head: ntk_block(head, 1), proposition_5_3,
     proposition_5_3_floor, lambda head: ntk_floor(head, "sharp"), lambda head: proposition_5_3_sides(head, 0, 1.0)],
)  # fmt: skip
def test_what_is_no_head_is_refused(ask):
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        ask(3)
