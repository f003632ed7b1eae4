"""certify: against an independent NumPy computation, on every kind of model, and its errors."""

import copy
import dataclasses
import itertools
import math
import re

import numpy as np
import pytest
import torch
from heads import in_columns, norm, uneven_head
from torch import nn

from ncutils.networks import MLP, ResNet20
from ncutils.theory import (
    Certificate,
    LinearHead,
    certify,
    linear_head,
    random_head,
    theorem_3_1_conditioning,
    theorem_5_2_posteriori,
)
from ncutils.theory.certify import extract

QUANTITIES = ["nc1", "kappa_W_L", "nc2", "nc3", "kappa_head", "ntk"]
COLUMNS = [
    "statement",
    "quantity",
    "form",
    "measured",
    "bound",
    "sense",
    "hypotheses_met",
    "holds",
    "vacuous",
    "violated",
]


def mlp(*tail, inputs=6, width=8, classes=3, seed=0):
    torch.manual_seed(seed)
    tail = tail or (linear(width, width), linear(width, width), linear(width, classes))
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), *tail)


def linear(inputs, outputs):
    return nn.Linear(inputs, outputs, bias=False)


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(3).repeat_interleave(10)[torch.randperm(30, generator=generator)]
    centres = 2 * torch.randn(3, 6, generator=generator)
    return centres[y] + 0.5 * torch.randn(30, 6, generator=generator), y


@pytest.fixture(scope="module")
def trained(data):
    """A small classifier close to collapse: plain gradient descent with weight decay, float32."""
    x, y = data
    model = mlp()
    target = nn.functional.one_hot(y, 3).float()
    for step in range(2000):
        loss = 0.5 * (model(x) - target).square().sum() / len(x)
        gradients = torch.autograd.grad(loss, tuple(model.parameters()))
        with torch.no_grad():
            for p, g in zip(model.parameters(), gradients, strict=True):
                p -= (0.2 if step < 1700 else 0.02) * (g + 2e-3 * p)
    return model


def by_numpy(model, x, y):
    """All 18 rows from the formulas of the book, columns as samples, with nothing shared with the library."""
    w = [m.weight.detach().numpy().astype(np.float64) for m in list(model)[2:]]
    first = model[0]
    z = np.maximum(
        first.weight.detach().numpy().astype(np.float64) @ x.numpy().astype(np.float64).T
        + first.bias.detach().numpy().astype(np.float64)[:, None],
        0,
    )
    label = np.eye(3)[y.numpy()].T
    n, k, depth = 30, 3, len(w)
    zs = [z]
    for matrix in w:
        zs.append(matrix @ zs[-1])
    error = zs[-1] - label

    def sv(m):
        return np.linalg.svd(m, compute_uv=False)

    def op(m):
        return sv(m)[0]

    def means(m):
        return m @ label.T * k / n

    sk, e1 = math.sqrt(n / k), np.linalg.norm(error)
    gaps = [op(b.T @ b - a @ a.T) for a, b in itertools.pairwise(w)]
    e2, r = max(gaps), max([op(m) for m in w] + [op(zs[-2]), op(zs[-3])])
    last, z1, z2 = w[-1], zs[-2], zs[-3]
    s = sv(last)
    s1, smin, kappa = s[0], s[k - 1], s[0] / s[k - 1]
    a = w[-1]
    for matrix in w[-2::-1]:
        a = a @ matrix
    sa = sv(a)
    kappa_a = sa[0] / sa[k - 1]
    rows = {}
    # NC1
    m1 = means(z1)
    nc1 = np.linalg.norm(z1 - m1 @ label) ** 2 / n / (np.linalg.norm(m1 - m1.mean(1, keepdims=True)) ** 2 / k)
    psi = r * (e1 / (sk - e1) + math.sqrt(z1.shape[0] * e2))
    base = math.sqrt((k - 1) / k)
    rows["nc1", "paper"] = nc1, r**2 / n * psi**2 / (base - 2 * e1 / math.sqrt(n)) ** 2
    rows["nc1", "simple"] = nc1, r**2 / n * psi**2 / (base - e1 / math.sqrt(n)) ** 2
    scatter = z2 - means(z2) @ label
    outside = gaps[-1] * min(np.linalg.norm(scatter) ** 2, (z1.shape[0] - k) * op(scatter) ** 2)
    inside = np.linalg.norm(error - means(error) @ label) ** 2 / smin**2
    rows["nc1", "sharp"] = nc1, s1**2 / n * (inside + outside) / (base - e1 / math.sqrt(n)) ** 2
    # conditioning
    eta = 0.5 * depth * (depth - 1) * max(op(m) for m in w) ** (2 * (depth - 1)) * e2
    left = sa[k - 1] ** 2 - eta
    simple = ((sa[0] ** 2 + eta) / left) ** (1 / (2 * depth)) if left > 0 else math.inf
    rows["kappa_W_L", "simple"] = kappa, simple
    eta_r, floor = 0.5 * depth * (depth - 1) * r ** (2 * (depth - 1)) * e2, ((sk - e1) / op(z)) ** 2
    paper = ((kappa_a**2 * floor + eta_r) / (floor - eta_r)) ** (1 / (2 * depth)) if floor > eta_r else math.inf
    rows["kappa_W_L", "paper"] = kappa, paper
    total = sum(np.linalg.norm(m) ** 2 for m in w)
    gain = np.log(sv(zs[-1])[:k]).sum() - np.log(sv(z)[:k]).sum()
    g = total / (k * depth) * math.exp(-2 * gain / (k * depth))
    star = g ** (k / 2) + math.sqrt(g**k - 1)
    v = sum(gaps) * op(z1) ** 2 / sv(zs[-1])[k - 1] ** 2
    posteriori, eta = math.sqrt((1 + v) * star**2 + v), 0.0
    for m in range(1, depth):  # the sharp telescoping error
        inner = max(op(w[m - 1]), op(w[m])) ** (2 * (m - 1))
        eta += m * inner * gaps[m - 1] * math.prod(op(q) ** 2 for q in w[m:])
    left = sa[k - 1] ** 2 - eta
    telescoped = ((sa[0] ** 2 + eta) / left) ** (1 / (2 * depth)) if left > 0 else math.inf
    rows["kappa_W_L", "sharp"] = kappa, min(posteriori, telescoped)
    # NC2
    nc2, delta1, delta = op(m1) / sv(m1)[k - 1], e1 * math.sqrt(k / n), op(means(error))
    top = (1 + delta1) * paper + r**2 * math.sqrt(e2 * k / n)
    rows["nc2", "paper"] = nc2, top / (1 - delta1)
    rows["nc2", "simple"] = nc2, ((1 + delta1) * kappa + s1 * op(z2) * math.sqrt(gaps[-1] * k / n)) / (1 - delta1)
    top = math.sqrt(((1 + delta) * kappa) ** 2 + s1**2 * gaps[-1] * op(means(z2)) ** 2)
    rows["nc2", "sharp"] = nc2, top / (1 - delta)
    # NC3
    own = last[y.numpy()].T
    nc3 = np.mean((z1 * own).sum(0) / np.linalg.norm(z1, axis=0) / np.linalg.norm(own, axis=0))

    def kantorovich(c, s, zn, gap):
        loss = c * e1 + s * zn * math.sqrt(z1.shape[0] * gap)
        return (1 - e1 / math.sqrt(n)) * 2 * c / (c**2 + 1) - loss / math.sqrt(n)

    rows["nc3", "paper"] = nc3, kantorovich(paper, r, r, e2) if math.isfinite(paper) else -math.inf
    rows["nc3", "simple"] = nc3, kantorovich(kappa, s1, op(z2), gaps[-1])
    pinv = np.linalg.pinv(last)
    out = z1 - pinv @ (last @ z1)
    values = []
    for i, c in enumerate(y.numpy()):
        norm = np.linalg.norm(last[c])
        own, others = 1 + error[c, i], np.delete(error[:, i], c)
        seen = norm * (own * np.linalg.norm(pinv[:, c]) + np.linalg.norm(others) / smin)
        unseen = norm * np.linalg.norm(out[:, i])
        values.append(own / math.hypot(seen, unseen) if own > 0 else -1)
    rows["nc3", "sharp"] = nc3, np.mean(values)
    # the head and the kernel
    b = (sk - e1) / op(z)
    rows["kappa_head", "paper"] = kappa_a, b**-k * math.exp((total - k * depth) / 2)
    rows["kappa_head", "simple"] = kappa_a, (total / (depth * b ** (2 / depth)) - (k - 1)) ** (depth / 2)
    rows["kappa_head", "sharp"] = kappa_a, math.exp(depth * math.acosh(g ** (k / 2)))
    kernel, floors, after = 0, [], np.eye(k)
    for i in range(depth - 1, -1, -1):
        kernel = kernel + np.kron(zs[i].T @ zs[i], after @ after.T)
        after = after @ w[i]
        st = sv(after)
        floors.append(((sk - e1) * st[0] / st[k - 1] / op(w[i])) ** 2)
    ntk = np.linalg.eigvalsh(kernel)[-1]
    rows["ntk", "paper"] = ntk, ((sk - e1) * kappa_a / r) ** 2
    rows["ntk", "simple"] = ntk, max(floors)
    norms = [op(m) for m in w]
    # three layers: η_0 = η_1 = 0, η_2 and η_3 written out
    etas = [
        0,
        0,
        norms[2] ** 2 * gaps[1],
        norms[1] ** 2 * norms[2] ** 2 * gaps[0] + 2 * norms[2] ** 2 * max(norms[1], norms[2]) ** 2 * gaps[1],
    ]
    total = sum(max(s1 ** (2 * j - 2) - etas[j - 1], 0) / (smin ** (2 * j) + etas[j]) for j in (1, 2, 3))
    rows["ntk", "sharp"] = ntk, sv(zs[-1])[k - 1] ** 2 * total
    return rows


def test_against_numpy(trained, data):
    certificate = certify(trained, *data)
    expected = by_numpy(trained, *data)
    assert len(expected) == len(certificate.checks) == 18
    for check in certificate.checks:
        measured, bound = expected[check.quantity, check.form]
        # η_3 of the ntk row multiplies out per-layer norms in another order; everything agrees far beyond float32
        assert check.measured == pytest.approx(measured, rel=1e-8), str(check)
        if check.hypotheses_met:
            assert check.bound == pytest.approx(bound, rel=1e-7), str(check)
    assert certificate.holds
    assert {c.quantity for c in certificate.checks if c.form == "sharp" and c.holds} == set(QUANTITIES)


def test_frame_and_table(trained, data):
    certificate = certify(trained, *data)
    frame = certificate.to_frame()
    assert list(frame.columns) == COLUMNS
    assert frame["quantity"].drop_duplicates().tolist() == QUANTITIES
    assert frame.groupby("quantity")["form"].apply(list).tolist() == [["paper", "simple", "sharp"]] * 6
    html = certificate._repr_html_()
    assert all(f"<code>{q}</code>" in html for q in QUANTITIES)
    assert "linear layers L2" in repr(certificate)
    best = certificate.best("kappa_head")
    bounds = frame[(frame["quantity"] == "kappa_head") & frame["hypotheses_met"]]["bound"]
    assert best.bound == bounds.min()
    assert certificate.best("nc3").bound == max(c.bound for c in certificate.checks if c.quantity == "nc3")
    with pytest.raises(ValueError, match="quantity, form"):
        certificate.check("nc4")


def test_model_is_left_alone(trained, data):
    model = copy.deepcopy(trained).train()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    certify(model, *data)
    assert model.training
    assert all(p.dtype == torch.float32 and p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_batches_change_nothing(trained, data):
    whole, parts = certify(trained, *data), certify(trained, *data, batch_size=7)
    for a, b in zip(whole.checks, parts.checks, strict=True):
        assert a.measured == pytest.approx(b.measured, rel=1e-9)


def test_weights_and_features(trained, data):
    x, y = data
    weights, features, names = linear_head(trained, x, y)
    assert names == ["2", "3", "4"]
    assert features.dtype == torch.float64
    for args in (
        ((weights, features), None),
        ((weights, features), x),
        (([w.numpy() for w in weights], features.numpy()), x),
    ):
        same = certify(*args, y)
        for a, b in zip(same.checks, certify(trained, x, y).checks, strict=True):
            assert (a.measured, a.bound) == pytest.approx((b.measured, b.bound), rel=1e-9)


def test_head_of_named_modules_and_functional_activation(data):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = linear(8, 3)  # declared out of order
            self.first, self.inner, self.idle = nn.Linear(6, 8), linear(8, 8), linear(4, 4)

        def forward(self, x):
            return self.last(self.inner(torch.relu(self.first(x))))

    torch.manual_seed(0)
    model = Model()
    certificate = certify(model, *data)
    assert certificate.layers == ("inner", "last")
    assert torch.equal(certificate.head.features, torch.relu(copy.deepcopy(model).double().first(data[0].double())))


def test_head_stops_at_the_first_bias_and_passes_identities(data):
    torch.manual_seed(0)
    model = mlp(nn.Linear(8, 8), linear(8, 7), nn.Identity(), linear(7, 5), linear(5, 3))
    assert certify(model, *data).layers == ("3", "5", "6")


def test_parametrised_layers(data):
    model = mlp()
    torch.nn.utils.parametrizations.weight_norm(model[3])
    certificate = certify(model, *data)
    assert certificate.layers == ("2", "3", "4")
    assert torch.allclose(certificate.head.weights[1], model[3].weight.double(), atol=1e-6)


def test_networks_of_this_library(data):
    x, y = data
    network = MLP(6, 3, num_nonlinear=2, num_linear=3, width=7, seeds=(0, 1))
    certificate = certify(network.run(1), x, y)
    assert certificate.head.depth == 3
    assert torch.allclose(certificate.head.weights[-1], network.weights[-1][1].double())
    assert torch.allclose(certificate.head.features, network.layers(x).post[1][1].double(), atol=1e-5)
    with pytest.raises(ValueError, match="2 runs"):
        certify(network, x, y)
    images = torch.randn(6, 1, 8, 8)
    small = ResNet20(1, 3, num_linear=2, width=5)
    labels = torch.arange(3).repeat(2)
    assert certify(small, images, labels).head.features.shape == (6, 64)
    only_linear = MLP(6, 3, num_nonlinear=0, num_linear=2, width=5)
    assert torch.equal(certify(only_linear, x, y).head.features, x.double())


@pytest.mark.parametrize(
    ("tail", "message"),
    [
        ((linear(8, 8), nn.Linear(8, 3)), "'3' has a bias"),
        ((linear(8, 3),), "'1' .*ReLU.* stands between"),
        ((linear(8, 8), nn.ReLU(), linear(8, 3)), "'3' .*ReLU.* stands between '2' and '4'"),
        ((linear(8, 8), nn.BatchNorm1d(8), linear(8, 3)), "'3' .*BatchNorm1d.* stands between '2' and '4'"),
        ((nn.Linear(8, 8), linear(8, 3)), "'2' has a bias"),
        ((linear(8, 8), linear(8, 3), nn.Softmax(1)), "Softmax.* stands after"),
    ],
)
def test_unsuitable_heads(tail, message, data):
    with pytest.raises(ValueError, match=message):
        certify(mlp(*tail), *data)


def test_functional_operations_in_the_head(data):
    class Model(nn.Module):
        def __init__(self, between, after):
            super().__init__()
            self.a, self.b, self.between, self.after = linear(6, 8), linear(8, 3), between, after

        def forward(self, x):
            return self.after(self.b(self.between(self.a(x))))

    def same(z):
        return z

    assert certify(Model(same, same), *data).layers == ("a", "b")
    # |z| is the identity on positive features: values alone cannot tell, noise of both signs can
    for between in (torch.relu, torch.abs, lambda z: z + 1):
        with pytest.raises(ValueError, match="not a module stands between 'a' and 'b'"):
            certify(Model(between, same), *data)
    with pytest.raises(ValueError, match="not a module stands after"):
        certify(Model(same, torch.tanh), *data)


def test_wrong_data(trained, data):
    x, y = data
    cases = [
        (x, y[:-1], "shape \\(30,\\)"),
        (x, nn.functional.one_hot(y), "shape \\(30,\\)"),
        (x, y + 1, "y must be 0 … 2, the last layer has K = 3 outputs; got labels from 1 to 3"),
        (x, y.clamp(max=1), "every class"),
        (x, y.float(), "integer"),
        (x[:0], y[:0], "no samples"),
        (x * math.nan, y, "x must be finite; got NaN"),
    ]
    for inputs, labels, message in cases:
        with pytest.raises(ValueError, match=message):
            certify(trained, inputs, labels)


def test_wrong_models(data):
    x, y = data
    broken = mlp()
    broken[3].weight.data[0, 0] = math.nan
    cases = [
        (broken, "3.weight"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no nn.Linear"),
        (lambda z: z, "nn.Module"),
        ([torch.zeros(3, 3), torch.zeros(3, 3)], "pair"),
        (([torch.eye(6)], x), "at least 2"),
        (nn.Sequential(linear(6, 4), linear(4, 3), nn.Unflatten(1, (3, 1))), "output of shape"),
    ]
    for model, message in cases:
        with pytest.raises(ValueError, match=message):
            certify(model, x, y)
    with pytest.raises(ValueError, match="more than once"):
        certify(mlp(*[linear(8, 8)] * 2, nn.Identity(), nn.ReLU(), linear(8, 3))[:4], x, y % 8)
    weights, features, labels = random_head(torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="got 3"):
        certify((weights, features), torch.zeros(3, 2), labels)


def test_collapse_is_certified():
    """Perfect collapse: all sharp bounds equal the measured values."""
    weights, features, y = random_head(torch.Generator().manual_seed(0), noise=0.0, spread=(1.2, 1.2))
    certificate = certify((weights, features), None, y)
    assert isinstance(certificate, Certificate)
    for quantity in ("kappa_W_L", "nc2", "nc3", "kappa_head", "ntk"):
        check = certificate.check(quantity)
        assert check.holds
        assert check.bound == pytest.approx(check.measured, rel=1e-6)


# --- awkward models


class LoRA(nn.Linear):
    """A layer that is an nn.Linear by type and computes something else."""

    def __init__(self, *sizes):
        super().__init__(*sizes, bias=False)
        self.down, self.up = nn.Parameter(torch.randn(2, sizes[0])), nn.Parameter(torch.randn(sizes[1], 2))

    def forward(self, z):
        return super().forward(z) + z @ self.down.T @ self.up.T


class ReLULinear(nn.Linear):
    def forward(self, z):
        return super().forward(z).relu()


def hooked():
    layer = linear(8, 8)
    layer.register_forward_hook(lambda module, args, out: 2 * out)
    return layer


@pytest.mark.parametrize(
    "first", [LoRA(8, 8), ReLULinear(8, 8, bias=False), hooked()], ids=["LoRA", "ReLU inside", "hook"]
)
def test_a_layer_that_is_not_its_weight_is_not_taken(first, data):
    with pytest.raises(ValueError, match=r"'2' .* does not compute z"):
        certify(mlp(first, linear(8, 3)), *data)
    # behind it the head is certified as it is
    certificate = certify(mlp(first, linear(8, 8), linear(8, 3)), *data)
    assert certificate.layers == ("3", "4")
    with pytest.raises(ValueError, match="at least two"):
        certify(mlp(linear(8, 8), first, linear(8, 3)), *data)


def test_outputs_are_compared_with_the_rebuilt_head(data):
    """A head that is linear on the samples it is found with and something else on later ones."""

    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, x):
            return self.body(x) * (1 if len(x) <= 16 else 2)

    with pytest.raises(ValueError, match="differ from that by"):
        certify(Moody(), *data)


@pytest.mark.parametrize(
    "tail",
    [
        (linear(8, 8), nn.Dropout(0.5), linear(8, 3)),
        (linear(8, 8), nn.Flatten(), nn.Identity(), linear(8, 3), nn.Sequential()),
        (nn.Sequential(linear(8, 8), nn.Sequential(linear(8, 8), nn.Dropout(0.1))), linear(8, 3)),
    ],
)
def test_what_does_nothing_in_evaluation_is_passed(tail, data):
    x, y = data
    model = mlp(*tail)
    certificate = certify(model, x, y)
    target = nn.functional.one_hot(y, 3)
    expected = float((copy.deepcopy(model).double().eval()(x.double()) - target).norm().detach())
    assert float(certificate.head.eps1) == pytest.approx(expected, rel=1e-12)


def test_convolutions_of_one_pixel_before_average_pooling():
    torch.manual_seed(0)
    x, y = torch.randn(12, 3, 5, 5), torch.arange(12) % 3
    conv = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1, bias=False), nn.Conv2d(6, 3, 1, bias=False)
    model = nn.Sequential(*conv, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    certificate = certify(model, x, y)
    assert certificate.layers == ("2", "3")
    assert torch.allclose(certificate.head.output.float(), model(x), atol=1e-6)
    mixed = nn.Sequential(*conv[:3], nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(6, 3))
    assert certify(mixed, x, y).layers == ("2", "5")
    with pytest.raises(ValueError, match="ReLU"):
        certify(nn.Sequential(*conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), x, y)


def test_torch_errors_name_the_layer(data):
    x, y = data

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(6, 8), linear(8, 3)

        def forward(self, z):
            return self.b(self.a(z).mean(1))

    class Float(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = mlp()

        def forward(self, z):
            return self.body(z.float())

    old = mlp()
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(old[3])
    cases = [
        (Tokens(), torch.randn(30, 5, 6), "got one, 'b': an operation"),
        (Float(), x, r"error at 'body.0' \(Linear\)"),
        (mlp(), (255 * x.abs()).byte(), r"error at '0' \(Linear\) for x of torch.uint8"),
        (old, x, r"computed tensor in '3' \(Linear\)"),
        (torch.jit.trace(mlp(), x), x, "TorchScript"),
        (mlp(), x[:, :5], r"error at '0' \(Linear\)"),
    ]
    for model, inputs, message in cases:
        with pytest.raises(ValueError, match=message):
            certify(model, inputs, y)


def test_a_loader_gives_what_tensors_give(trained, data):
    pairs = torch.utils.data.TensorDataset(*data)
    whole = certify(trained, *data)
    for loader in (
        torch.utils.data.DataLoader(pairs, batch_size=7),
        torch.utils.data.DataLoader(pairs, batch_size=30, shuffle=True),
        pairs,
        data,
    ):
        for a, b in zip(whole.checks, certify(trained, loader).checks, strict=True):
            assert (a.measured, a.bound) == pytest.approx((b.measured, b.bound), rel=1e-9)
    for bad, message in (
        ([], "no samples"),
        ([data[0]], "pairs"),
        ([(*data, 1)], "pairs"),
        (3, "loader"),
        ([(data[0], data[1][:3])], "label"),
    ):
        with pytest.raises(ValueError, match=message):
            certify(trained, bad)
    with pytest.raises(ValueError, match="y must be given"):
        certify(([torch.eye(3)] * 2, torch.eye(3)), None)


def test_without_gradients_it_says_the_same(trained, data):
    with torch.no_grad():
        certificate = certify(trained, *data)
    assert str(certificate.tally) == str(certify(trained, *data).tally)


def test_the_text_says_why_and_ticks_nothing_that_is_vacuous(data):
    certificate = certify(mlp(), *data)
    text, html = repr(certificate), certificate._repr_html_()
    silent = [c for c in certificate.checks if c.silent]
    assert silent and all(str(h) in text for c in silent for h in c.hypotheses if not h.holds)
    assert str(certificate.tally) in text and str(certificate.tally) in html
    assert certificate.tally.vacuous and text.count("✓") == certificate.tally.spoke == html.count("✓")


@pytest.mark.parametrize("seed", range(40))
def test_classes_of_uneven_size(seed):
    """The constants for uneven classes: s_K(Y)² is the smallest class. The paper's forms say nothing there."""
    generator = torch.Generator().manual_seed(seed)
    noise = (0.0, 1e-3, 0.03, 0.2)[seed % 4]
    weights, features, y = random_head(generator, 3, 2 + seed % 3, 6, noise=noise, spread=(0.7, 1.5))
    kept = torch.cat([(y == c).nonzero()[: (6, 1 + seed % 5, 2)[c], 0] for c in range(3)])
    certificate = certify((weights, features[kept]), None, y[kept])
    assert certificate.holds, certificate
    assert certificate.tally.spoke > 0 or noise > 0.1
    assert certificate.check("nc1", "paper").silent


def test_further_statements_speak_of_a_network_trained_with_cross_entropy():
    torch.manual_seed(0)
    y = torch.arange(3).repeat_interleave(10)
    x = torch.randn(3, 6)[y] + 0.3 * torch.randn(30, 6)
    linear = [nn.Linear(8, 8, bias=False), nn.Linear(8, 8, bias=False), nn.Linear(8, 3, bias=False)]
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), *linear)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=2e-3)
    for _ in range(400):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    certificate = certify(model, x, y)
    assert all(certificate.check("nc1", form).silent for form in ("paper", "simple", "sharp"))
    inherited = certificate.further[0]
    assert (inherited.statement, inherited.quantity) == ("Inheritance", "nc1")
    assert inherited.holds and not inherited.vacuous and inherited.bound < 10 * inherited.measured
    assert {c.quantity for c in certificate.further} > {"log_kappa_head", "log_kappa_W_L", "nc1_1", "nc2_1", "nc3_1"}
    assert "NC1 at Z_{L−1}, inherited" in repr(certificate)
    broken = dataclasses.replace(certificate, further=(dataclasses.replace(inherited, bound=0.0),))
    assert not broken.holds and broken.tally.violated == 1 and "✗" in repr(broken)


def test_a_dead_network_gets_a_certificate_that_says_nothing():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5, bias=False), nn.Linear(5, 3, bias=False))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    certificate = certify(model, torch.randn(12, 4), torch.arange(12) % 3)
    assert str(certificate.tally) == "0 violated of 0 that speak (21 silent, 0 vacuous)"
    inherited = next(check for check in certificate.further if check.statement == "Inheritance")
    assert not inherited.hypotheses_met and "r ≤ rank W_L: 1 ≤ 0 (NOT met)" in str(certificate)


def test_the_last_layer_is_given_the_stronger_of_its_two_sharp_bounds():
    winners = set()
    for depth, spread in itertools.product((2, 4, 6), ((0.9, 1.1), (0.5, 1.5))):
        generator = torch.Generator().manual_seed(0)
        weights, features, y = random_head(generator, 3, depth, 4, 1, noise=1e-4, spread=spread)
        found = certify((weights, features), None, y).check("kappa_W_L")
        head = LinearHead(weights, features, y)
        both = [theorem_3_1_conditioning(head), theorem_5_2_posteriori(head)]
        if all(check.hypotheses_met for check in both):
            strongest = min(both, key=lambda check: check.bound)
            assert (found.statement, found.bound) == (strongest.statement, strongest.bound)
            winners.add(strongest.statement)
    assert len(winners) == 2


# --- what the certificate says, word by word


def uneven_certificate(noise=1e-3, depth=4):
    head = uneven_head(0, noise=noise, depth=depth)
    return certify((list(head.weights), head.features), None, head.y)


def test_the_summary_gives_the_numbers_of_the_head():
    certificate = uneven_certificate()
    c = in_columns(certificate.head)
    radius = max([*c.norms, norm(c.z[-2]), norm(c.z[-3])])
    assert repr(certificate).splitlines()[:7] == [
        "Certificate",
        "  samples N: 9",
        "  classes K: 3",
        "  linear layers L2: 4 (W_1, W_2, W_3, W_4)",
        f"  error ε1 = ‖f(X) − Y‖_F: {c.eps1:.4g} (s_K(Y) = 1.414)",
        f"  imbalance ε2 = max ‖D_ℓ‖: {max(c.gaps):.4g}",
        f"  one radius r: {radius:.4g}",
    ]
    page = certificate._repr_html_()
    assert f"one radius r: <b>{radius:.4g}</b></p>" in page and "classes K: <b>3</b>; " in page


TITLES = {
    "nc1": "NC1 at Z_{L−1}",
    "kappa_W_L": "κ of the last layer",
    "nc2": "NC2 at Z_{L−1}",
    "nc3": "NC3 at Z_{L−1}",
    "kappa_head": "κ of the linear head",
    "ntk": "‖NTK of the linear layers‖",
}
FURTHER = ["NC1 at Z_{L−1}, inherited", "ln κ of the linear head", "ln κ of the last layer"]
SIGNS = {"<=": "≤", ">=": "≥"}


def cell(check):
    if not check.hypotheses_met:
        return "–"
    mark = "✗" if check.violated else "(vacuous)" if check.vacuous else "✓"
    return f"{'below 1e-12' if abs(check.bound) < 1e-12 else f'{check.bound:.4g}'} {mark}"


@pytest.mark.parametrize(("noise", "depth"), [(1e-3, 4), (0.2, 3), (0.03, 2)])
def test_one_line_a_quantity_and_one_for_each_further_statement(noise, depth):
    certificate = uneven_certificate(noise, depth)
    expected = []
    for i, (quantity, title) in enumerate(TITLES.items()):
        paper, simple, sharp = certificate.checks[3 * i : 3 * i + 3]
        assert [c.quantity for c in (paper, simple, sharp)] == [quantity] * 3
        sign = "≥" if quantity in ("nc3", "ntk") else "≤"
        cells = f"paper {cell(paper)}  simple {cell(simple)}  sharp {cell(sharp)}"
        expected.append(f"  {title}: {sharp.measured:.4g} {sign}  {cells}")
    layers = [f"NC{part} at Z_{{L1+{layer}}}" for layer in range(1, depth - 1) for part in (1, 2, 3)]
    for title, check in zip([*FURTHER, *layers], certificate.further, strict=True):
        expected.append(f"  {title}: {check.measured:.4g} {SIGNS[check.sense]} {cell(check)}")
    lines = repr(certificate).splitlines()
    assert lines[7 : 7 + len(expected)] == expected
    assert lines[7 + len(expected)] == f"  {certificate.tally}"
    silenced = {}
    for check in (*certificate.checks, *certificate.further):
        for hypothesis in check.hypotheses:
            if not hypothesis.holds:
                silenced.setdefault(f"  – {hypothesis}: ", []).append(f"{check.quantity} {check.form}")
    assert lines[8 + len(expected) :] == [start + ", ".join(forms) for start, forms in silenced.items()]
    assert certificate.tally.silent == sum(check.silent for check in (*certificate.checks, *certificate.further)) > 0


@pytest.mark.parametrize(("noise", "depth"), [(1e-3, 4), (0.2, 3)])
def test_one_row_a_quantity_on_the_page(noise, depth):
    certificate = uneven_certificate(noise, depth)
    page = certificate._repr_html_()
    left = "style='text-align:left'"
    for quantity, title in TITLES.items():
        forms = [certificate.check(quantity, form) for form in ("paper", "simple", "sharp")]
        met = [c for c in forms if c.hypotheses_met]
        strongest = (max if quantity in ("nc3", "ntk") else min)(met, key=lambda c: c.bound) if met else None
        assert certificate.best(quantity) is (strongest or forms[-1])
        sign = SIGNS[forms[-1].sense]
        row = f"<tr><td {left}>{title}</td><td><code>{quantity}</code></td>"
        row += f"<td>{forms[-1].measured:.4g}</td><td>{sign}</td>"
        for check in forms:
            why = "; ".join(str(h) for h in check.hypotheses if not h.holds) or check.statement
            why = why.replace("<", "&lt;").replace(">", "&gt;")
            shown = cell(check).replace("<", "&lt;")
            row += f"<td title='{why}'>{f'<b>{shown}</b>' if check is strongest else shown}</td>"
        assert row + "</tr>" in page
    assert page.count("<b>") == 6 + sum(certificate.best(quantity).hypotheses_met for quantity in TITLES)
    for check in certificate.further:
        row = f"<td>{check.measured:.4g}</td><td>{SIGNS[check.sense]}</td><td></td><td></td><td>{cell(check)}</td></tr>"
        assert row in page
    assert page.count("<tr>") == 1 + 6 + len(certificate.further)
    notes = [line.removeprefix("  – ") for line in repr(certificate).splitlines() if line.startswith("  – ")]
    assert page.count("<li>") == len(notes) > 0
    assert all(f"<li>{note.replace('<', '&lt;').replace('>', '&gt;')}</li>" in page for note in notes)
    assert "Hypotheses not met" in page and f"the strongest in bold; {certificate.tally}.</p>" in page


def test_the_page_says_nothing_of_hypotheses_where_all_are_met():
    weights, features, y = random_head(torch.Generator().manual_seed(1), noise=1e-5, spread=(0.9, 1.1))
    certificate = certify((weights, features), None, y)
    assert certificate.tally.silent == 0 and "Hypotheses" not in certificate._repr_html_()
    assert not any(line.startswith("  –") for line in repr(certificate).splitlines())


def test_a_violation_stands_out_on_the_page_and_in_the_text():
    certificate = uneven_certificate()
    for field in ("checks", "further"):
        checks = getattr(certificate, field)
        position = 5
        wrong = dataclasses.replace(checks[position], bound=-5.0 if checks[position].sense == "<=" else 1e9)
        broken = dataclasses.replace(certificate, **{field: (*checks[:position], wrong, *checks[position + 1 :])})
        assert certificate.holds and not broken.holds and broken.tally.violated == 1
        assert f"a bound is VIOLATED (✗): {broken.tally}.</p>" in broken._repr_html_()
        assert repr(broken).count("✗") == 1
    assert "VIOLATED" not in certificate._repr_html_()


def test_the_best_form_where_none_speaks_is_the_sharp_one():
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 5, bias=False), nn.Linear(5, 3, bias=False))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    certificate = certify(model, torch.randn(12, 4), torch.arange(12) % 3)
    for quantity in QUANTITIES:
        assert certificate.best(quantity) is certificate.check(quantity, "sharp") is certificate.check(quantity)
    assert "<b>" not in certificate._repr_html_().split("<table>")[1]
    words = r"quantity, form must be one of \('nc1', .*'ntk'\) and one of \('paper', .*\); got 'nc1', 'exact'"
    with pytest.raises(ValueError, match=words):
        certificate.check("nc1", "exact")


@pytest.mark.parametrize(("depth", "layers"), [(2, []), (3, [1]), (4, [1, 2]), (5, [1, 2, 3])])
def test_further_statements_for_every_layer_but_the_last_two(depth, layers):
    found = [check.quantity for check in uneven_certificate(depth=depth).further]
    assert found[:3] == ["nc1", "log_kappa_head", "log_kappa_W_L"]
    assert found[3:] == [f"nc{part}_{layer}" for layer in layers for part in (1, 2, 3)]


def test_of_two_equal_bounds_of_the_last_layer_the_second_is_shown():
    eye = torch.eye(2, dtype=torch.float64)
    certificate = certify(([eye, eye], eye), None, torch.arange(2))
    assert certificate.check("kappa_W_L").statement == "Theorem 5.2 (last layer)"
    assert certificate.check("kappa_W_L", "simple").statement == "Theorem 3.1 (conditioning)"
    unbalanced = certify(([eye / 3, 3 * eye], eye), None, torch.arange(2))  # the first of the two is silent
    shown = unbalanced.check("kappa_W_L")
    assert shown.statement == "Theorem 5.2 (last layer)" and not shown.silent


# --- pairs of weights and features


@pytest.mark.parametrize(
    ("pair", "kind", "words"),
    [
        (([torch.eye(2)] * 2, torch.eye(2), 3), ValueError, "a module or a pair .*; got another sequence"),
        (([torch.eye(2)] * 2,), ValueError, "a module or a pair .*; got another sequence"),
        ((torch.eye(2), torch.eye(2)), ValueError, "a module or a pair .*; got another sequence"),
        (("W", torch.eye(2)), TypeError, r"a module or a pair \(list of weights, features\); got 'W' first"),
        (([object(), torch.eye(2)], torch.eye(2)), TypeError, "weights must be a tensor"),
        (([torch.eye(2)] * 2, object()), TypeError, "features must be a tensor"),
    ],
)
def test_what_is_no_pair(pair, kind, words):
    with pytest.raises(kind, match=words):
        certify(pair, None, torch.arange(2))


def test_pairs_are_counted_and_named():
    eye = torch.eye(2)
    certificate = certify([(eye, eye, eye), eye], [1, 2], [0, 1])  # tuples, lists and numbers will do
    assert certificate.layers == ("W_1", "W_2", "W_3") and certificate.holds
    with pytest.raises(ValueError, match="x must hold the 2 samples of the features; got 3"):
        certify(([eye, eye], eye), torch.zeros(3, 2), [0, 1])
    with pytest.raises(ValueError, match=r"y must be given with a pair \(weights, features\); got None"):
        certify(([eye, eye], eye), eye)
    followed = torch.eye(2, requires_grad=True)
    assert not certify(([followed, followed], followed), None, [0, 1]).head.features.requires_grad


# --- batches


class Noting(nn.Module):
    """Two layers that note how many samples come at a time; copies share the notes."""

    def __init__(self, tail=None, seen=None):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last, self.tail, self.seen = linear(6, 8), linear(8, 3), tail, [] if seen is None else seen

    def forward(self, x):
        self.seen.append(len(x))
        output = self.last(self.first(x))
        return output if self.tail is None else self.tail(output)

    def __deepcopy__(self, memo):
        return Noting(self.tail, self.seen)


@pytest.mark.parametrize("function", [certify, linear_head, extract])
def test_batches_of_two_thousand_unless_said_otherwise(function):
    y = torch.arange(2001) % 3
    x = torch.randn(2001, 6, generator=torch.Generator().manual_seed(0))
    for arguments, sizes in (((x, y), [2000, 1]), ((torch.utils.data.TensorDataset(x, y), None), [2000, 1])):
        model = Noting()
        function(model, *arguments)
        assert model.seen[-2:] == sizes and set(model.seen[:-2]) == {16}  # the head is found with the first 16
    model = Noting()
    function(model, x[:7], y[:7], batch_size=3)
    assert model.seen[-3:] == [3, 3, 1] and set(model.seen[:-3]) == {3}
    model = Noting()
    function(model, x[:3], y[:3], batch_size=1)
    assert model.seen[-3:] == [1, 1, 1]


@pytest.mark.parametrize("function", [certify, linear_head])
def test_a_batch_holds_at_least_one_sample(function, data):
    for size, kind, words in ((0, ValueError, "batch_size must be at least 1; got 0"), (1.5, TypeError, "an integer")):
        for given in (data, (torch.utils.data.DataLoader(torch.utils.data.TensorDataset(*data), batch_size=9), None)):
            with pytest.raises(kind, match=words):
                function(mlp(), *given, batch_size=size)


def test_data_in_every_shape(data):
    x, y = data

    class Set:
        def __init__(self):
            self.x, self.y = x, y

    whole = certify(mlp(), x, y)
    for given in (
        (Set(),),
        ([x, y],),
        ([(x[:11], y[:11]), (x[11:], y[11:])],),
        ((x.numpy(), y.numpy()),),
        (iter([(x, y)]),),
        (x.tolist(), y.tolist()),
    ):
        same = certify(mlp(), *given)
        assert torch.equal(same.head.y, y)
        assert [c.bound for c in same.checks] == pytest.approx([c.bound for c in whole.checks], rel=1e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.zeros(4), torch.arange(4), r"x must be \(N, ...\), one sample a row; got shape \(4,\)"),
        (torch.zeros(4, 6), torch.zeros(4, 1), r"y must be labels of shape \(4,\), one a sample; got shape \(4, 1\)"),
        (torch.zeros(4, 6), torch.arange(3), r"y must be labels of shape \(4,\), one a sample; got shape \(3,\)"),
        (torch.zeros(0, 6), torch.arange(0), "x must hold at least one sample; got no samples"),
        (torch.zeros(4, 6), None, r"x must be a loader, Dataset or pair of \(inputs, labels\) without y; got Tensor"),
        ("abc", None, r"x must be a loader, Dataset or pair of \(inputs, labels\) without y; got str"),
        ([3], None, r"x must yield pairs \(inputs, labels\); got int"),
        (
            [torch.zeros(4, 6), torch.arange(4), torch.arange(4)],
            None,
            r"x must yield pairs \(inputs, labels\); got Tensor",
        ),
        ([(1, 2, 3)], None, r"x must yield pairs \(inputs, labels\); got tuple"),
        ([(torch.zeros(4, 6), torch.arange(3))], None, "as many labels as inputs; got 4 inputs and 3 labels"),
        ([(torch.zeros(4, 6), torch.arange(4))] * 2 + [(torch.full((1, 6), math.inf), [0])], None, "x must be finite"),
    ],
)
def test_what_is_no_data(x, y, words):
    with pytest.raises(ValueError, match=words):
        certify(Noting(), x, y)


def test_inputs_that_are_integers_reach_the_model_as_they_are():
    class Embedded(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.a, self.b = nn.Embedding(5, 6), linear(6, 8), linear(8, 3)

        def forward(self, tokens):
            return self.b(self.a(self.table(tokens).mean(1)))

    tokens = torch.arange(24).reshape(12, 2) % 5
    certificate = certify(Embedded(), tokens, torch.arange(12) % 3)
    assert certificate.layers == ("a", "b") and certificate.head.features.shape == (12, 6)


# --- how the head is found, and what is said where there is none


class Around(nn.Module):
    """first, something between, last, something after."""

    def __init__(self, between=lambda z: z, after=lambda z: z, sizes=(6, 8, 8, 3)):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = linear(*sizes[:2]), linear(*sizes[2:])
        self.between, self.after = between, after

    def forward(self, x):
        return self.after(self.last(self.between(self.first(x))))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(linear(6, 3)), "got one, '0': it is the only linear layer"),
        (nn.Sequential(nn.Tanh(), nn.Tanh(), nn.ReLU(), linear(6, 3)), r"got one, '3': '2' \(ReLU\) stands before '3'"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "got none: no nn.Linear layer"),
        (nn.Sequential(linear(6, 8), nn.Linear(8, 3)), "got none: '1' has a bias"),
        (nn.Sequential(nn.Linear(6, 8), linear(8, 3)), "got one, '1': '0' has a bias"),
        (mlp(linear(8, 8), nn.ReLU(), nn.Dropout(), nn.Tanh(), linear(8, 3)),
         r"got one, '6': '3' \(ReLU\), '5' \(Tanh\) stands between '2' and '6'$"),
        (mlp(linear(8, 8), linear(8, 3), nn.Identity(), nn.Softmax(1)), r"got none: '5' \(Softmax\) stands after '3'$"),
        (Around(between=lambda z: z[:, :4], sizes=(6, 8, 4, 3)),
         "got one, 'last': an operation that is not a module stands between 'first' and 'last'"),
        (Around(after=torch.tanh), "got none: an operation that is not a module stands after 'last'"),
        (Around(after=lambda z: z[:, :2]), "got none: an operation that is not a module stands after 'last'"),
        (nn.Sequential(*[linear(6, 6)] * 3), "got none: '0' is used more than once"),
    ],
)  # fmt: skip
def test_why_there_is_no_head(model, reason, data):
    with pytest.raises(ValueError, match=f"model must end in at least two bias-free linear layers; {reason}"):
        certify(model, *data)


@pytest.mark.parametrize(
    ("after", "words"),
    [
        (lambda z: (z, z), "got an output of tuple"),
        (lambda z: z[:, :, None], r"got an output of shape \(16, 3, 1\)"),
        (lambda z: z[:5], r"got an output of shape \(5, 3\)"),
        (lambda z: z.flatten(), r"got an output of shape \(48,\)"),
    ],
)
def test_what_is_no_output(after, words, data):
    with pytest.raises(ValueError, match=r"model must have an output of shape \(N, K\) = \(16, K\); " + words):
        certify(Around(after=after), *data)


@pytest.mark.parametrize(("factor", "found"), [(1 + 5e-10, True), (1 - 5e-10, True), (1 + 2e-9, False), (1.5, False)])
@pytest.mark.parametrize("size", [1.0, 1e-20])
def test_outputs_may_differ_by_a_thousand_millionth(factor, found, size, data):
    """Of what leaves the head, whatever its size: for the first 16 samples, and for all of them."""

    def scaled(model):
        model = model.double()
        model.last.weight.data *= size
        return model

    x, y = data[0].double(), data[1]
    early = scaled(Around(after=lambda z: factor * z))
    late = scaled(Around(after=lambda z: (factor if len(z) > 16 else 1) * z))
    if found:
        assert certify(early, x, y).layers == certify(late, x, y).layers == ("first", "last")
        return
    with pytest.raises(ValueError, match="not a module stands after 'last'"):
        certify(early, x, y)
    with pytest.raises(ValueError, match="from the input z of 'first'; got outputs up to") as caught:
        certify(late, x, y)
    largest, gap = (float(found) for found in re.findall(r"(\d\S+e\S\d+|\d\.\d+)", str(caught.value)))
    assert largest == pytest.approx(float(late(x).detach().abs().max()), rel=1e-2)
    assert gap == pytest.approx((factor - 1) / factor * largest, rel=1e-2)


def test_outputs_that_are_all_zero_are_those_of_the_head(data):
    model = Around()
    nn.init.zeros_(model.last.weight)
    assert certify(model, *data).layers == ("first", "last")


def test_outputs_that_are_not_finite_are_refused(data):
    class Logarithm(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = linear(6, 8), linear(8, 3)

        def forward(self, x):
            return self.b(self.a(x.log()))

    with pytest.raises(ValueError, match="model must have finite outputs on x; got NaN or infinite ones"):
        certify(Logarithm(), *data)
    assert certify(Logarithm(), data[0].abs() + 0.1, data[1]).layers == ("a", "b")


def test_layers_called_by_keyword(data):
    class Keyword(Around):
        def forward(self, x):
            return self.last(input=self.first(input=x))

    assert certify(Keyword(), *data).layers == ("first", "last")


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, ValueError, IndexError])
def test_an_error_of_the_model_is_told_in_one_line(kind, data):
    def fail(z):
        raise kind("  first line\nsecond line")

    with pytest.raises(ValueError, match="got an error at ") as caught:
        certify(Around(after=fail), *data)
    assert str(caught.value).endswith("at Around for x of torch.float64, (16, 6): first line")
    assert type(caught.value.__cause__) is kind
    inner = nn.Sequential(nn.Linear(6, 8), Around(after=fail, sizes=(8, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"at '1' \(Around\) for x of torch.float64, \(16, 6\): first line$"):
        certify(inner, *data)


def test_an_error_of_another_kind_is_not_touched(data):
    def fail(z):
        raise KeyError("own business")

    with pytest.raises(KeyError, match="own business"):
        certify(Around(after=fail), *data)


def pixels(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear(4, 3))


@pytest.mark.parametrize("keywords", [{}, {"padding": 0}, {"padding": "valid"}, {"padding": "same"}])
def test_convolutions_that_are_linear_at_every_pixel(keywords):
    x, y = torch.randn(12, 3, 4, 6), torch.arange(12) % 3
    model = pixels(nn.Conv2d(8, 4, 1, bias=False, **keywords))
    certificate = certify(model, x, y)
    assert certificate.layers == ("2", "5")
    np.testing.assert_allclose(certificate.head.output, model(x).detach(), atol=1e-5)


@pytest.mark.parametrize(
    "keywords", [{"kernel_size": 3}, {"stride": 2}, {"groups": 2}, {"padding": 1}, {"kernel_size": (1, 2)}]
)
def test_convolutions_that_are_not(keywords):
    x, y = torch.randn(12, 3, 4, 6), torch.arange(12) % 3
    with pytest.raises(ValueError, match=r"got one, '5': '2' \(Conv2d\) stands before '5'|between '0' and '5'"):
        certify(pixels(nn.Conv2d(8, 4, **{"kernel_size": 1, "bias": False} | keywords)), x, y)


def test_a_convolution_with_a_hook_is_not_its_weight():
    layer = nn.Conv2d(8, 4, 1, bias=False)
    layer.register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(ValueError, match=r"'2' \(Conv2d\) does not compute z ↦ Wz"):
        certify(pixels(layer), torch.randn(12, 3, 4, 6), torch.arange(12) % 3)


# --- models that are refused before they run


def test_models_that_are_none(data):
    with pytest.raises(ValueError, match=r"model must be an nn.Module or a pair \(weights, features\); got int"):
        certify(3, *data)
    with pytest.raises(ValueError, match=r"model must be an eager nn\.Module; got a TorchScript module"):
        certify(torch.jit.script(mlp()), *data)
    with pytest.raises(ValueError, match=r"model must hold one network; got 3 runs: pass model\.run"):
        certify(MLP(6, 3, num_nonlinear=1, num_linear=2, width=7, seeds=(0, 1, 2)), *data)
    broken = mlp()
    broken[2].weight.data[0, 0], broken[4].weight.data[1, 0] = math.nan, math.inf
    with pytest.raises(ValueError, match=r"finite weights; got NaN or infinite entries in 2\.weight, 4\.weight$"):
        certify(broken, *data)


def test_a_module_with_runs_and_no_networks_is_taken_as_it_is(data):
    model = mlp()
    model.num_runs = 5
    assert certify(model, *data).layers == ("2", "3", "4")


@pytest.mark.parametrize("seed", range(40))
def test_the_head_is_found_from_a_single_sample(seed):
    """All four ReLU units may be active on one sample of noise; they are not on its negative too."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)
    )
    x, y = torch.randn(6, 5), torch.arange(6) % 3
    one, all_of_them = (linear_head(model, x, y, batch_size=size) for size in (1, 6))
    assert [w.shape for w in one[0]] == [(4, 4), (3, 4)]
    torch.testing.assert_close(one[1], all_of_them[1])


def test_a_certificate_stays_as_it_is():
    certificate = uneven_certificate()
    with pytest.raises(dataclasses.FrozenInstanceError):
        certificate.layers = ()
    assert Certificate(certificate.checks, certificate.head, certificate.layers).further == ()
    assert certificate.to_frame()["measured"].tolist() == [check.measured for check in certificate.checks]


@pytest.mark.parametrize("function", [certify, linear_head, LinearHead.of])
def test_arguments_by_name_and_the_size_of_batches_by_name_alone(function, data):
    x, y = data
    for call in (lambda: function(model=mlp(), x=x, y=y, batch_size=9), lambda: function(mlp(), x, y)):
        assert call() is not None
    with pytest.raises(TypeError, match="positional argument"):
        function(mlp(), x, y, 9)
