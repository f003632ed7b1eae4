"""certify: against an independent NumPy computation, on every kind of model, and its errors."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
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
