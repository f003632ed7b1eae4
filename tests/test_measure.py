"""ncutils.measure against a loop over whole tensors; what it leaves behind; refusals."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ncutils import measure, metrics
from ncutils.networks import MLP


def points(samples=120, dim=7, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % classes
    centres = torch.randn(classes, dim, generator=torch.Generator().manual_seed(9))
    return centres[y] + 0.3 * torch.randn(samples, dim, generator=generator), y


def network():
    torch.manual_seed(1)
    head = [nn.Linear(9, 8, bias=False), nn.Linear(8, 6, bias=False), nn.Linear(6, 4)]
    return nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.ReLU(inplace=True), nn.Dropout(), *head).double()


def features_of(model, x):
    """Input of each linear layer, then the output, module by module."""
    inputs, z = {}, x.double()
    with torch.no_grad():
        for name, module in model.eval().named_children():
            if isinstance(module, nn.Linear):
                inputs[f"{name}.input"] = z.clone()
            z = module(z)
    return inputs | {"output": z}


@pytest.mark.parametrize("batch", [7, 1000])
def test_rows_against_whole_tensors(batch):
    (x, y), model = points(), network()
    frame = measure(model, DataLoader(TensorDataset(x, y), batch, shuffle=True)).set_index("layer")
    expected = features_of(model, x)
    assert list(frame.index) == list(expected)
    products = {"6.input": model[6].weight, "5.input": model[6].weight @ model[5].weight}
    products["4.input"] = products["5.input"] @ model[4].weight
    for name, z in expected.items():
        row, means = frame.loc[name], torch.stack([z[y == c].mean(0) for c in range(4)])
        singular = torch.linalg.svdvals(means)
        by_mean = torch.cdist(z, means).argmin(1)
        wanted = {
            "nc1": metrics.nc1(z, y),
            "nc1_pinv": metrics.nc1(z, y, "pinv"),
            "cdnv": metrics.nc1(z, y, "cdnv"),
            "nc2": singular[0] / singular[3],
            "nc2_etf": metrics.nc2(z, y, "etf"),
            "nc2_orthogonal": metrics.nc2(z, y, "orthogonal"),
            "nc4": (expected["output"].argmax(1) == by_mean).double().mean(),
            "ncc_accuracy": (by_mean == y).double().mean(),
            "stable_rank": (singular**2).sum() / singular[0] ** 2,
            "numerical_rank": (singular > 1e-3 * singular[0]).sum(),
        }
        if name in products:
            w = products[name].detach()
            wanted["nc3"] = torch.cosine_similarity(z, w[y]).mean()
            centred = means - means.mean(0)
            wanted["self_duality"] = (w / w.norm() - centred / centred.norm()).norm()
            wanted["product_nc2"] = torch.linalg.cond(w)
        else:
            assert row[["nc3", "self_duality", "product_nc2"]].isna().all()
        for column, value in wanted.items():
            assert row[column] == pytest.approx(float(value), rel=1e-9), (name, column)


def test_reference_means_are_those_of_the_training_data():
    (x, y), (test_x, test_y), model = points(), points(40, seed=5), network()
    frame = measure(model, (test_x, test_y), "output", reference=(x, y))
    z, test = features_of(model, x)["output"], features_of(model, test_x)["output"]
    means = torch.stack([z[y == c].mean(0) for c in range(4)])
    between = (means - means.mean(0)).square().sum(1).mean()
    assert frame.nc1[0] == pytest.approx(float((test - means[test_y]).square().sum(1).mean() / between), rel=1e-9)
    assert frame.ncc_accuracy[0] == float((torch.cdist(test, means).argmin(1) == test_y).double().mean())


def test_nothing_is_left_behind():
    (x, y), model = points(), network().train()
    model[1].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    measure(model, DataLoader(TensorDataset(x, y), 16, shuffle=True))
    bad = x.clone()
    bad[-1] = torch.nan
    with pytest.raises(ValueError, match="features must be finite; got"):
        measure(model, (bad, y), batch_size=16)
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


def test_convolutions_wrappers_and_batched_networks():
    x, y = torch.randn(24, 1, 6, 6), torch.arange(24) % 3
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
    frame = measure(nn.DataParallel(model), TensorDataset(x, y), [nn.Conv2d, "4*", "output"])
    assert list(frame.layer) == ["0", "4", "output"]
    z = model[0](x).detach()
    assert frame.nc1[0] == pytest.approx(float(metrics.nc1(z.mean((2, 3)), y)), rel=1e-6)
    flat = measure(model, (x, y), "0", pool="flatten")
    assert flat.nc1[0] == pytest.approx(float(metrics.nc1(z.flatten(1), y)), rel=1e-6)
    stacked = MLP(7, 4, num_nonlinear=1, num_linear=2, width=6, seeds=(0, 1))
    rows = measure(stacked, points())
    assert rows.run.tolist() == [0] * 4 + [1] * 4
    z = stacked.layers(points()[0]).post[1][1].detach()
    assert rows.nc1[6] == pytest.approx(float(metrics.nc1(z, points()[1])), rel=1e-5)
    named = ["2.input", "output"]
    for several in (dict.fromkeys(named), (name for name in named), {nn.Linear: 0}.keys()):
        assert measure(stacked, points(), several).run.value_counts().nunique() == 1


X, Y = points()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (lambda m: (X, (X, Y)), "model must be an nn.Module that is not TorchScript; got Tensor"),
        (lambda m: (m, X), "data must be a DataLoader, a Dataset or a pair (x, y); got Tensor"),
        (lambda m: (m, iter([(X, Y)])), "readable twice; got list_iterator"),
        (lambda m: (m, []), "data must hold at least one batch; got none"),
        (lambda m: (m, [X]), "data must give batches (x, y); got a Tensor"),
        (lambda m: (m, (X, Y[1:])), "with x (N, ...) and y (N,), N > 0; got (120, 7), (119,)"),
        (lambda m: (m, (X, Y + 1)), "labels must be 0..K-1 with every class present; got the classes [1, 2, 3, 4]"),
        (lambda m: (m, (X, Y.double())), "data: labels must be integers (N,); got (120,), torch.float64"),
        (lambda m: (m, (X[:, 1:], Y)), "data: the model cannot take x of (120, 6), torch.float64: "),
        (lambda m: (m, (X, Y), "conv"), "layers: nothing is called 'conv'; expected some of 0, 1, 2"),
        (lambda m: (m, (X, Y), []), "layers must name at least one place; got none"),
        (lambda m: (m, (X, 0 * Y)), "labels must name at least 2 classes; got 1"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(ValueError) as caught:
        measure(*arguments(network()))
    assert words in str(caught.value)


@pytest.mark.parametrize("between", [nn.ReLU, nn.ELU])
def test_an_activation_in_its_place_is_not_passed_over(between):
    """It writes into the memory that the linear layer returned."""
    x, y = points()
    torch.manual_seed(0)
    first, last = nn.Linear(7, 8, bias=False), nn.Linear(8, 4, bias=False)
    there, apart = (measure(nn.Sequential(first, between(inplace=i), last), (x, y)) for i in (True, False))
    assert apart["nc3"].notna().tolist() == [False, True, False]
    columns = ["nc1", "nc2", "nc3", "self_duality", "product_nc2"]
    torch.testing.assert_close(*(torch.tensor(t[columns].to_numpy()) for t in (there, apart)), equal_nan=True)
    with torch.inference_mode():
        assert measure(nn.Sequential(first, last), (x, y))["nc3"].notna().sum() == 2


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(7, 8, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.last(self.first(x)[:, :4])


def test_a_part_of_a_layer_is_not_the_layer():
    assert measure(Cut(), points()).set_index("layer")["nc3"].notna().to_dict() == {
        "first.input": False, "last.input": True, "output": False}  # fmt: skip


def test_features_of_tokens_and_channels_become_vectors_as_asked():
    x, y = torch.randn(24, 3, 5, generator=torch.Generator().manual_seed(2)), torch.arange(24) % 3
    tokens = nn.Sequential(nn.Linear(5, 4), nn.Flatten(), nn.Linear(12, 3))
    z = tokens[0](x).detach()
    for pool, vectors in (("flatten", z.flatten(1)), (lambda z: z[:, -1], z[:, -1])):
        frame = measure(tokens, (x, y), ["0", "output"], pool=pool)  # the output has no tokens to choose from
        assert frame.nc1[0] == pytest.approx(float(metrics.nc1(vectors, y)), rel=1e-5)
        assert frame.nc1[1] == pytest.approx(float(metrics.nc1(tokens(x), y)), rel=1e-5)
    with pytest.raises(ValueError, match=r"pool must make \(N, d\) = \(24, d\) of the features \(24, 3, 4\)"):
        measure(tokens, (x, y), "0")
    images = x[:, None]
    image = nn.Sequential(nn.Conv2d(1, 6, 2), nn.Flatten(), nn.Linear(48, 3))
    z = image[0](images).detach()
    for pool, vectors in (("mean", z.mean((2, 3))), ("max", z.amax((2, 3))), ("flatten", z.flatten(1))):
        found = measure(image, (images, y), "0", pool=pool).nc1[0]
        assert found == pytest.approx(float(metrics.nc1(vectors, y)), rel=1e-5), pool


def test_rows_come_in_the_order_asked_for():
    assert list(measure(network(), (X, Y), ["output", "5.input", "0"]).layer) == ["output", "5.input", "0"]


def test_data_and_reference_name_the_same_classes():
    with pytest.raises(ValueError, match=r"labels must be 0\.\.3 as in the reference; got 4"):
        measure(network(), (X, Y.clone().index_fill_(0, torch.tensor([5]), 4)), reference=(X, Y))
    with pytest.raises(ValueError, match=r"data must hold every class of the reference; got no sample of \[3\]"):
        measure(network(), (X[Y < 3], Y[Y < 3]), reference=(X, Y))


def test_nc4_asks_for_one_output_a_class():
    more = nn.Sequential(nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 5, bias=False))
    frame = measure(more, (X, Y))
    assert frame.nc4.isna().all() and frame.nc3.isna().all()
    assert frame[["nc1", "nc2", "ncc_accuracy"]].notna().all(axis=None)


def test_mixed_precision_is_used_where_asked_for_alone():
    model = network().float()
    exact, again, mixed = (measure(model, (X, Y), autocast=dtype).nc1 for dtype in (None, None, torch.bfloat16))
    assert (exact == again).all() and (exact != mixed)[1:].all()
    assert mixed.to_numpy() == pytest.approx(exact.to_numpy(), rel=0.1)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused, self.last = nn.Linear(7, 7), nn.Linear(7, 7), nn.Linear(7, 4)

    def forward(self, x):
        return self.last(self.used(self.used(x)))


def test_a_layer_runs_exactly_once():
    with pytest.raises(ValueError, match=r"layers: \['unused'\] did not run in a forward pass"):
        measure(Twice(), (X, Y), "unused")
    with pytest.raises(ValueError, match="layers: 'used' runs more than once in a forward pass"):
        measure(Twice(), (X, Y), "used")


class Named(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, points, scale):
        return self.inner(points * scale[:, None])


def test_inputs_may_come_by_name():
    inner = network()
    batches = [({"points": X, "scale": torch.full((len(X),), 2.0)}, Y)]
    found, expected = measure(Named(inner), batches, "output"), measure(inner, (2 * X, Y), "output")
    assert found.nc1[0] == pytest.approx(expected.nc1[0], rel=1e-12)
