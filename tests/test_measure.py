"""ncutils.measure against a loop over whole tensors; what it leaves behind; refusals."""

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ncutils import measure, metrics
from ncutils.data import Classification
from ncutils.networks import MLP, ResNet20


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
    with pytest.raises(ValueError, match=r"labels must be 0\.\.3 as in the reference; got 0\.\.4"):
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


# --- what is read, and how


class Sizes(nn.Linear):
    """A layer that notes how many samples come at a time, and of which dtype."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sizes, self.dtypes = [], set()

    def forward(self, x):
        self.sizes.append(len(x))
        self.dtypes.add(x.dtype)
        return super().forward(x)


def test_batches_are_as_large_as_asked_for():
    x, y = points(300)
    for options, sizes in (({}, [256, 44]), ({"batch_size": 100}, [100] * 3), ({"batch_size": 299}, [299, 1])):
        for data in ((x, y), TensorDataset(x, y), (x.numpy(), y.numpy())):
            model = Sizes(7, 4).double()
            measure(model, data, "output", **options)
            # The data are read twice, after a first batch that shows what is linear.
            assert model.sizes == [sizes[0], *sizes, *sizes] and model.dtypes == {torch.float64}


def test_batches_of_one_sample_say_the_same():
    (x, y), (test_x, test_y), model = points(), points(40, seed=5), network()
    for options in ({}, {"reference": (x, y)}):
        one, whole = (measure(model, (test_x, test_y), batch_size=size, **options) for size in (1, 1000))
        assert one.layer.tolist() == whole.layer.tolist() == ["0.input", "4.input", "5.input", "6.input", "output"]
        for column in one.columns[2:]:
            assert one[column].to_numpy() == pytest.approx(whole[column].to_numpy(), rel=1e-9, nan_ok=True), column


def test_every_column_with_a_reference_against_whole_tensors():
    """Means, distances and ranks are those of the reference, the scatter and the shares those of the data."""
    (x, y), (test_x, test_y), model = points(seed=3), points(41, seed=5), network()
    frame = measure(model, (test_x, test_y), reference=(x, y), batch_size=16).set_index("layer")
    trained, tested = features_of(model, x), features_of(model, test_x)
    assert (frame.run == 0).all() and list(frame.index) == list(trained)
    for name, z in tested.items():
        row, own = frame.loc[name], trained[name]
        means = torch.stack([own[y == c].mean(0) for c in range(4)])
        centred, deviation = means - means.mean(0), z - means[test_y]
        between = centred.T @ centred / 4
        squares = deviation.square().sum(1)
        variances = torch.stack([squares[test_y == c].mean() for c in range(4)])
        pairs = [(a, b) for a in range(4) for b in range(a)]
        nearest = (z[:, None] - means).square().sum(-1).argmin(1)
        lengths = centred.norm(dim=1)
        cosines = torch.stack([centred[a] @ centred[b] / lengths[a] / lengths[b] for a, b in pairs])
        wanted = {
            "nc1": squares.mean() / between.trace(),
            "nc1_pinv": (deviation @ torch.linalg.pinv(between, rtol=1e-9) * deviation).sum(1).mean() / 4,
            "cdnv": sum((variances[a] + variances[b]) / (2 * (means[a] - means[b]).square().sum()) for a, b in pairs)
            / 6,
            "nc2": torch.linalg.cond(means),
            "equinorm": lengths.std(correction=0) / lengths.mean(),
            "equiangularity": (cosines + 1 / 3).abs().mean(),
            "nc4": (tested["output"].argmax(1) == nearest).double().mean(),
            "ncc_accuracy": (nearest == test_y).double().mean(),
        }
        if name == "6.input":
            wanted["nc3"] = torch.cosine_similarity(z, model[6].weight.detach()[test_y]).mean()
        for column, value in wanted.items():
            assert row[column] == pytest.approx(float(value), rel=1e-8), (name, column)


def test_all_forms_of_the_same_data_say_the_same():
    (x, y), model = points(), network()
    pair = measure(model, (x, y))
    loader = DataLoader(TensorDataset(x, y), 50)

    class Counted(list):
        num_classes = 4

    class Labelled(list):
        y = 4

    forms = [TensorDataset(x, y), loader, [[x, y]], ((x, y), (x, y)), [(x, y.int())], [(x, y.tolist())]]
    forms += [Counted([(x, y)]), Labelled([(x, y)]), Classification(x, y, 4, "points")]
    for data in forms:
        frame = measure(model, data)
        assert frame.layer.equals(pair.layer)
        assert frame.nc1.to_numpy() == pytest.approx(pair.nc1.to_numpy(), rel=1e-9), type(data)
        assert frame.nc4.to_numpy() == pytest.approx(pair.nc4.to_numpy(), rel=1e-12)


class Once(list):
    """Batches that come the first few times only."""

    def __init__(self, batches, times):
        super().__init__(batches)
        self.times = times

    def __iter__(self):
        self.times -= 1
        return super().__iter__() if self.times >= 0 else iter([])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (lambda x, y: (x[1:], y), r"data must be \(x, y\) with x .* N > 0; got \(119, 7\), \(120,\)"),
        (lambda x, y: (x[:-1], y[:-2]), r"with x \(N, \.\.\.\) and y \(N,\), N > 0; got \(119, 7\), \(118,\)"),
        (lambda x, y: (x[:0], y[:0]), r"N > 0; got \(0, 7\), \(0,\)"),
        (lambda x, y: (x, y[:, None]), r"N > 0; got \(120, 7\), \(120, 1\)"),
        (lambda x, y: (x, y, y), r"data must give batches \(x, y\); got a Tensor"),
        (lambda x, y: (x,), r"data must give batches \(x, y\); got a Tensor"),
        (lambda x, y: [(x, y, y)], r"data must give batches \(x, y\); got a tuple"),
        (lambda x, y: [[x]], r"data must give batches \(x, y\); got a list"),
        (lambda x, y: [(x, y[:, None])], r"data: labels must be integers \(N,\); got \(120, 1\), torch.int64"),
        (lambda x, y: [(x, y[0])], r"data: labels must be integers \(N,\); got \(\), torch.int64"),
        (lambda x, y: [(x, y > 1)], r"data: labels must be integers \(N,\); got \(120,\), torch.bool"),
        (lambda x, y: [("x", y)], "data: the model cannot take x of str: "),
        (lambda x, y: [([1.0], y)], "data: the model cannot take x of list: "),
        (lambda x, y: [({"points": x}, y)], "data: the model cannot take x of dict: "),
        (lambda x, y: 5, "a Dataset or a pair .x, y., readable twice; got int"),
        (lambda x, y: "xy", "a Dataset or a pair .x, y., readable twice; got str"),
        (lambda x, y: {"x": x}, "a Dataset or a pair .x, y., readable twice; got dict"),
        (lambda x, y: nn.Linear(7, 4), r"data must be a DataLoader, a Dataset or a pair \(x, y\); got Linear"),
        (lambda x, y: Once([(x, y)], 0), "^data must hold at least one batch; got none"),
        (lambda x, y: Once([(x, y)], 1), "^data must hold at least one batch each time it is read; got none"),
        (lambda x, y: Once([(x, y)], 2), "^data must hold at least one batch each time it is read; got none"),
        (lambda x, y: (x / 0, y), r"^data, layer '0\.input': features must be finite; got 840 NaN or infinite"),
        (
            lambda x, y: (x, y - 1),
            r"^data, layer '0\.input': labels must be 0\.\.K-1 .*; got the classes \[-1, 0, 1, 2\]",
        ),
    ],
)
def test_data_of_other_forms_are_refused(data, words):
    with pytest.raises(ValueError, match=words):
        measure(network(), data(X, Y))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1; got 0"),
        ({"batch_size": 1.0}, TypeError, r"batch_size must be an integer; got 1\.0"),
        ({"device": "nowhere"}, ValueError, "device must be a device of this machine; got 'nowhere'"),
        ({"progress": 1}, TypeError, "progress must be True or False; got 1"),
        ({"pool": "median"}, ValueError, "pool must be one of 'mean', 'max', 'flatten' or a function; got 'median'"),
        ({"pool": 3}, ValueError, "pool must be one of 'mean', 'max', 'flatten' or a function; got 3"),
        ({"pool": ["mean"]}, ValueError, r"pool must be one of .* or a function; got \['mean'\]"),
        ({"layers": 3}, TypeError, "layers must be None, a name, a type or several of these; got 3"),
        ({"layers": ["0", 3]}, ValueError, "layers must be names, patterns or module types; got 3"),
        (
            {"layers": nn.Conv2d},
            ValueError,
            "layers: nothing is called <class '.*Conv2d'>; expected some of 0, 1, 2, 3, 4",
        ),
        ({"reference": (X / 0, Y)}, ValueError, r"^reference, layer '0\.input': features must be finite"),
        ({"reference": [X]}, ValueError, r"^reference must give batches \(x, y\); got a Tensor"),
    ],
)
def test_other_options_are_refused(options, error, words):
    with pytest.raises(error, match=words):
        measure(network(), (X, Y), **options)


def test_options_are_given_by_name():
    model = network()
    assert list(measure(model=model, data=(X, Y), layers="0").layer) == ["0"]
    with pytest.raises(TypeError, match="takes from 2 to 3 positional arguments but 4 were given"):
        measure(model, (X, Y), "0", (X, Y))


@pytest.mark.parametrize("label", [4, 5, 9, -1, -7])
def test_labels_that_the_reference_does_not_have_are_refused(label):
    wrong = Y.clone().index_fill_(0, torch.tensor([5]), label)
    with pytest.raises(ValueError, match=r"^data, layer '0\.input': labels must be 0\.\.3 as in the reference"):
        measure(network(), (X, wrong), reference=(X, Y))


def test_data_are_finite_where_the_reference_is():
    wrong = X.clone()
    wrong[17, 3] = torch.nan
    with pytest.raises(
        ValueError, match=r"^data, layer '0\.input': features must be finite; got 1 NaN or infinite of 840"
    ):
        measure(network(), (wrong, Y), reference=(X, Y))


def test_a_class_may_have_a_single_sample_in_the_data():
    rows = torch.cat([torch.nonzero(Y != 2).flatten(), torch.tensor([2])])
    frame = measure(network(), (X[rows], Y[rows]), reference=(X, Y))
    assert frame[["nc1", "cdnv"]].notna().all(axis=None)
    missing = (Y == 1) | (Y == 2)
    with pytest.raises(ValueError, match=r"got no sample of \[1, 2\]"):
        measure(network(), (X[~missing], Y[~missing]), reference=(X, Y))


def test_two_classes_are_enough():
    model = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 2, bias=False)).double()
    frame = measure(model, (X, Y % 2)).set_index("layer")
    z = features_of(model, X)["2.input"]
    assert frame.nc1["2.input"] == pytest.approx(float(metrics.nc1(z, Y % 2)), rel=1e-9)
    assert frame.notna().sum(axis=1).to_dict() == {"0.input": 13, "2.input": 16, "output": 13}


# --- which layers, and in which order


def layers_of(model, data=None, **options):
    return list(measure(model, data or (X, Y), **options).layer)


def test_patterns_types_and_names():
    model = network()
    linear = ["0", "4", "5", "6"]
    assert layers_of(model, layers="*.input") == [f"{i}.input" for i in range(7)]
    assert layers_of(model, layers="[46].input") == ["4.input", "6.input"]
    assert layers_of(model, layers=nn.Linear) == linear
    assert layers_of(model, layers=[nn.ReLU, "[56]", "0.input"]) == ["2", "5", "6", "0.input"]
    assert layers_of(model, layers=("output", "output", "6")) == ["output", "6"]
    assert layers_of(model, layers="output") == ["output"]


@pytest.mark.parametrize("bias", [False, True])
def test_a_model_that_is_one_linear_layer(bias):
    model = nn.Linear(7, 4, bias=bias).double()
    frame = measure(model, (X, Y)).set_index("layer")
    assert list(frame.index) == ["input", "output"] and frame.nc3.notna().tolist() == [True, False]
    assert frame.nc1["input"] == pytest.approx(float(metrics.nc1(X.double(), Y)), rel=1e-9)
    wanted = torch.cosine_similarity(X.double(), model.weight.detach()[Y]).mean()
    assert frame.nc3["input"] == pytest.approx(float(wanted), rel=1e-9)


def test_a_model_without_parameters_takes_what_comes():
    frame = measure(nn.Flatten(), (X.double().view(120, 1, 7), Y))
    assert list(frame.layer) == ["output"]
    assert frame.nc1[0] == pytest.approx(float(metrics.nc1(X.double(), Y)), rel=1e-12)
    assert frame.nc1[0] == measure(nn.Flatten(), (X.double().view(120, 1, 7), Y), device="cpu").nc1[0]


def test_inputs_that_are_integers_stay_so():
    words = torch.arange(120).view(60, 2) % 9
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    frame = measure(model, (words, torch.arange(60) % 3), layers="2.input")
    z = model[:2](words).detach()
    assert frame.nc1[0] == pytest.approx(float(metrics.nc1(z, torch.arange(60) % 3)), rel=1e-12)


class Attentive(nn.Module):
    """Its attention holds a linear layer that it never calls."""

    def __init__(self):
        super().__init__()
        self.attention, self.last = nn.MultiheadAttention(7, 1, batch_first=True), nn.Linear(7, 4)

    def forward(self, x):
        return self.last(self.attention(x[:, None], x[:, None], x[:, None])[0].squeeze(1))


def test_the_linear_layer_that_an_attention_does_not_call_is_passed_over():
    assert layers_of(Attentive()) == ["last.input", "output"]


class Wrapped(nn.Module):
    """What torch.compile returns looks like this."""

    def __init__(self, inner):
        super().__init__()
        self._orig_mod = inner

    def forward(self, x):
        return self._orig_mod(x)


def test_wrappers_are_taken_off_one_after_the_other():
    model = network()
    names = ["0.input", "4.input", "5.input", "6.input", "output"]
    for wrapped in (Wrapped(model), nn.DataParallel(Wrapped(model)), Wrapped(nn.DataParallel(model))):
        assert layers_of(wrapped) == names


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_torchscript_is_refused():
    with pytest.raises(ValueError, match=r"model must be an nn\.Module that is not TorchScript; got .*Module"):
        measure(torch.jit.trace(nn.Linear(7, 4), X), (X, Y))


def test_networks_of_many_runs_are_measured_as_asked():
    (x, y), (test_x, test_y) = points(), points(40, seed=5)
    stacked = MLP(7, 4, num_nonlinear=1, num_linear=2, width=6, seeds=(0, 1, 2), dtype=torch.float64)
    frame = measure(stacked, (test_x, test_y), "2.input", reference=(x, y), batch_size=7)
    assert frame.index.tolist() == frame.run.tolist() == [0, 1, 2]
    for run in range(3):
        own = measure(stacked.sequential(run), (test_x, test_y), "2.input", reference=(x, y))
        assert frame.nc1[run] == pytest.approx(own.nc1[0], rel=1e-9) and own.run.tolist() == [0]
    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    residual = ResNet20(1, 3, num_linear=1, seeds=(0, 1))
    found = measure(residual, (images, torch.arange(12) % 3), "0.3", pool="max", autocast=torch.bfloat16)
    assert found.run.tolist() == [0, 1]
    one = measure(residual.sequential(1), (images, torch.arange(12) % 3), "0.3", pool="max", autocast=torch.bfloat16)
    assert found.nc1[1] == pytest.approx(one.nc1[0], rel=1e-6)
    plain = measure(residual, (images, torch.arange(12) % 3), "0.3", pool="max")
    assert found.nc1[1] != pytest.approx(plain.nc1[1], rel=1e-6)


# --- the last linear layers


def test_an_activation_or_a_bias_ends_the_product_of_linear_layers():
    layers = [nn.Linear(7, 6, bias=False)]
    for _ in range(6):
        layers += [nn.Tanh(), nn.Linear(6, 6, bias=False)]
    model = nn.Sequential(*layers, nn.Linear(6, 4, bias=False)).double()
    known = measure(model, (X, Y)).set_index("layer")
    assert known.index[known.nc3.notna()].tolist() == ["12.input", "13.input"]
    product = (model[13].weight @ model[12].weight).detach()
    assert known.product_nc2["12.input"] == pytest.approx(float(torch.linalg.cond(product)), rel=1e-9)
    chain = [nn.Linear(7, 7, bias=False), nn.Linear(7, 6), nn.Linear(6, 6, bias=False), nn.Linear(6, 4)]
    known = measure(nn.Sequential(*chain), (X, Y)).set_index("layer")
    assert known.index[known.nc3.notna()].tolist() == ["2.input", "3.input"]


class Spread(nn.Module):
    """The second layer reads the one column of the first four times."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(7, 1, bias=False), nn.Linear(4, 4, bias=False)

    def forward(self, x):
        return self.last(self.first(x).expand(-1, 4))


def test_a_layer_read_in_another_shape_is_not_the_layer():
    frame = measure(Spread().double(), (X, Y)).set_index("layer")
    assert frame.nc3.notna().to_dict() == {"first.input": False, "last.input": True, "output": False}


def test_a_linear_layer_over_tokens_is_no_head():
    x = torch.randn(40, 3, 7, generator=torch.Generator().manual_seed(0))
    frame = measure(nn.Linear(7, 4), (x, torch.arange(40) % 4), pool="flatten")
    assert list(frame.layer) == ["input", "output"]
    assert frame[["nc3", "self_duality", "product_nc2", "nc4"]].isna().all(axis=None)
    assert frame[["nc1", "ncc_accuracy"]].notna().all(axis=None)


@pytest.mark.parametrize("outputs", [2, 3, 5])
def test_outputs_that_are_not_one_a_class(outputs):
    model = nn.Sequential(nn.Linear(7, 6), nn.Linear(6, outputs, bias=False))
    frame = measure(model, (X, Y))
    assert frame[["nc3", "self_duality", "product_nc2", "nc4"]].isna().all(axis=None)
    assert frame[["nc1", "ncc_accuracy"]].notna().all(axis=None)


class Giving(nn.Module):
    """A model that gives what a function makes of its logits."""

    def __init__(self, make):
        super().__init__()
        self.first, self.make = nn.Linear(7, 4), make

    def forward(self, x):
        return self.make(self.first(x))


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda z: {"logits": z}, ["first.input"]),
        (lambda z: (z, z), ["first.input"]),
        (lambda z: z[:, :, None].expand(-1, -1, 2), ["first.input", "output"]),
    ],
    ids=["dictionary", "tuple", "positions"],
)
def test_outputs_that_are_no_logits_leave_nc4_undefined(make, names):
    frame = measure(Giving(make), (X, Y), pool="flatten", batch_size=50)
    assert list(frame.layer) == names and frame.nc4.isna().all() and frame.ncc_accuracy.notna().all()


def test_one_number_a_sample_is_no_feature():
    frame = measure(Giving(lambda z: z[:, 0]), (X, Y), "first.input")
    assert frame.nc4.isna().all() and frame.nc1.notna().all()
    for pool in ("mean", "flatten"):
        words = r"data, layer 'output': pool must make \(N, d\) = \(120, d\) of the features \(120,\); got \(120,\)"
        with pytest.raises(ValueError, match=words):
            measure(Giving(lambda z: z[:, 0]), (X, Y), "output", pool=pool)


@pytest.mark.parametrize(("make", "rows"), [(lambda z: z.view(240, 2), 240), (lambda z: z.view(60, 8), 60)])
def test_features_are_one_row_a_sample(make, rows):
    words = rf"\(N, d\) = \(120, d\) of the features \({rows}, \d\); got \({rows}, \d\): give pool='flatten'"
    with pytest.raises(ValueError, match=words):
        measure(Giving(make), (X, Y), "output")


def test_features_of_volumes_are_pooled_over_all_positions():
    x, y = torch.randn(24, 1, 3, 4, 5, generator=torch.Generator().manual_seed(2)).double(), torch.arange(24) % 3
    model = nn.Sequential(nn.Conv3d(1, 6, 2), nn.Flatten(), nn.Linear(144, 3)).double()
    z = model[0](x).detach()
    for pool, vectors in (("mean", z.mean((2, 3, 4))), ("max", z.amax((2, 3, 4))), ("flatten", z.flatten(1))):
        assert measure(model, (x, y), "0", pool=pool).nc1[0] == pytest.approx(float(metrics.nc1(vectors, y)), rel=1e-9)


def test_means_that_coincide_are_infinitely_far_from_collapse():
    model = nn.Linear(7, 4).double()
    nn.init.zeros_(model.weight)
    row = measure(model, (X, Y), "output").loc[0]
    assert row.nc1 == row.nc1_pinv == row.cdnv == torch.inf


# --- layers that cannot be measured


class Parts(nn.Module):
    """A module of this name gives two tensors, takes two, or is never called."""

    def __init__(self, name, how):
        super().__init__()
        self.how, self.last = how, nn.Linear(7, 4)
        self.add_module(name, Pair() if how in ("gives", "takes") else nn.Tanh())
        self.name = name

    def forward(self, x):
        part = getattr(self, self.name)
        if self.how != "unused":
            x = part(2 * x, 3 * x + x.square())[0]
        return self.last(x)


class Pair(nn.Module):
    def forward(self, first, second):
        return first, second


@pytest.mark.parametrize("name", ["apart", "zone"])  # before and behind "output" in the alphabet
@pytest.mark.parametrize(
    ("how", "place", "words"),
    [
        ("gives", "{}", "layers: '{}' gives a tuple; expected a tensor"),
        ("unused", "{}", r"layers: \['{}'\] did not run in a forward pass; expected layers that it calls"),
    ],
)
def test_layers_that_cannot_be_measured_are_named(name, how, place, words):
    with pytest.raises(ValueError, match=words.format(name)):
        measure(Parts(name, how), (X, Y), [place.format(name), "output"])


def test_the_input_of_a_layer_is_its_first():
    frame = measure(Parts("apart", "takes").double(), (X, Y), "apart.input")
    assert frame.nc1[0] == pytest.approx(float(metrics.nc1(2 * X.double(), Y)), rel=1e-9)


def test_of_many_layers_twenty_are_named():
    model = nn.Sequential(*[nn.Linear(7, 7) for _ in range(24)], nn.Linear(7, 4))
    words = ", ".join(map(str, range(20)))
    with pytest.raises(ValueError, match=f"layers: nothing is called 'conv'; expected some of {words}$"):
        measure(model, (X, Y), "conv")


class Failing(nn.Linear):
    def __init__(self, error):
        super().__init__(7, 4)
        self.error = error

    def forward(self, x):
        raise self.error


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (RuntimeError("shapes"), ValueError),
        (TypeError("arguments"), ValueError),
        (torch.cuda.OutOfMemoryError("memory"), torch.cuda.OutOfMemoryError),
        (KeyError("key"), KeyError),
    ],
    ids=repr,
)
def test_errors_of_the_model_are_those_of_its_input_unless_the_memory_was_too_small(error, seen):
    with pytest.raises(seen) as caught:
        measure(Failing(error), (X, Y))
    known = r"data: the model cannot take x of (120, 7), torch.float32: " + str(error)
    assert str(caught.value) == known if seen is ValueError else caught.value is error


# --- what it does on the way


def test_a_model_that_is_where_it_should_be_is_not_moved(monkeypatch):
    model = network()
    monkeypatch.setattr(model, "to", lambda *_: pytest.fail("moved"))
    for device in (None, "cpu", torch.device("cpu")):
        assert len(measure(model, (X, Y), device=device)) == 5


@pytest.mark.parametrize(
    ("progress", "disabled", "shown"),
    [
        (True, None, True),
        (True, "0", True),
        (True, "", True),
        (True, "1", False),
        (False, None, False),
        (None, None, False),
    ],
)
def test_a_bar_is_shown_where_asked_for(progress, disabled, shown, monkeypatch):
    bars = []
    monkeypatch.setattr("tqdm.tqdm", lambda batches, **options: bars.append(options) or batches)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    if disabled is not None:
        monkeypatch.setenv("TQDM_DISABLE", disabled)
    options = {} if progress is None else {"progress": progress}
    measure(network(), (X, Y), reference=(X, Y), batch_size=60, **options)
    expected = [{"desc": name, "unit": "batch", "leave": False} for name in ("reference", "data")]
    assert bars == (expected if shown else [])


def test_a_layer_that_is_called_by_name_is_measured_like_any_other():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.third = (
                nn.Linear(5, 4),
                nn.Linear(4, 4, bias=False),
                nn.Linear(4, 3, bias=False),
            )

        def forward(self, x, by_name=True):
            z = self.first(x).relu()
            return self.third(input=self.second(input=z)) if by_name else self.third(self.second(z))

    x, y, model = torch.randn(30, 5, generator=torch.Generator().manual_seed(1)), torch.arange(30) % 3, Named()
    layers = ["first", "second.input", "third.input"]
    found = measure(model, (x, y), layers)
    model.forward = lambda x: Named.forward(model, x, by_name=False)
    pd.testing.assert_frame_equal(found, measure(model, (x, y), layers))
    assert found["nc3"].notna().sum() == 2  # the inputs of the last two layers have a head behind them


@pytest.mark.parametrize(("x", "y"), [(torch.ones(3, 5), torch.tensor(3)), (torch.tensor(1.0), torch.arange(3))])
def test_data_that_are_no_rows_are_refused(x, y):
    with pytest.raises(ValueError, match=r"data must be \(x, y\) with x \(N, ...\) and y \(N,\), N > 0; got"):
        measure(nn.Linear(5, 3), (x, y))


def test_the_labels_that_the_reference_lacks_are_named():
    x, y, model = torch.randn(12, 5, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3, nn.Linear(5, 3)
    with pytest.raises(ValueError, match=r"labels must be 0\.\.2 as in the reference; got 1\.\.3"):
        measure(model, (x, (y + 1) % 4), reference=(x, y))
