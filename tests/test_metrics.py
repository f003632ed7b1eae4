"""ncutils.metrics against an independent NumPy reading of the definitions, closed forms, invariances and refusals."""

import itertools
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ncutils import metrics

# --- the definitions, sample by sample, sharing nothing with the library


def np_means(z, y):
    return np.array([sum(z[i] for i in range(len(y)) if y[i] == c) / list(y).count(c) for c in range(max(y) + 1)])


def np_scatter(z, y):
    means = np_means(z, y)
    centre = sum(means) / len(means)
    within, between = np.zeros((z.shape[1],) * 2), np.zeros((z.shape[1],) * 2)
    for i in range(len(y)):
        d = z[i] - means[y[i]]
        within += np.outer(d, d) / len(y)
    for m in means:
        between += np.outer(m - centre, m - centre) / len(means)
    return within, between


def np_nc1(z, y):
    within, between = np_scatter(z, y)
    return np.trace(within) / np.trace(between)


def np_nc1_pinv(z, y):
    within, between = np_scatter(z, y)
    values, vectors = np.linalg.eigh(between)
    inverse = np.zeros_like(between)
    for j in np.argsort(values)[::-1][: max(y)]:  # rank K - 1
        if values[j] > 1e-20 * max(values):
            inverse += np.outer(vectors[:, j], vectors[:, j]) / values[j]
    return np.trace(within @ inverse) / (max(y) + 1)


def np_nc1_cdnv(z, y):
    means, classes = np_means(z, y), max(y) + 1
    variances = []
    for c in range(classes):
        own = [z[i] for i in range(len(y)) if y[i] == c]
        variances.append(sum(((v - means[c]) ** 2).sum() for v in own) / len(own))
    pairs = [(a, b) for a in range(classes) for b in range(a)]
    return sum((variances[a] + variances[b]) / (2 * ((means[a] - means[b]) ** 2).sum()) for a, b in pairs) / len(pairs)


def np_nc2(z, y):
    s = np.sqrt(np.clip(np.linalg.eigvalsh(np_means(z, y) @ np_means(z, y).T), 0, None))
    return s.max() / s.min()


def np_frame_distance(z, y, centred):
    means = np_means(z, y)
    target = np.eye(len(means))
    if centred:
        means = means - means.mean(0)
        target = target - 1 / len(means)
    gram = np.array([[a @ b for b in means] for a in means])
    return np.sqrt(((gram / np.sqrt((gram**2).sum()) - target / np.sqrt((target**2).sum())) ** 2).sum())


def np_nc3(z, y, w):
    cosines = [z[i] @ w[y[i]] / np.sqrt((z[i] @ z[i]) * (w[y[i]] @ w[y[i]])) for i in range(len(y))]
    return sum(cosines) / len(y)


def np_nc4(z, y, w):
    means = np_means(z, y)
    same = 0
    for row in z:
        by_network = max(range(len(w)), key=lambda c: w[c] @ row)
        by_mean = min(range(len(w)), key=lambda c: ((row - means[c]) ** 2).sum())
        same += by_network == by_mean
    return same / len(y)


def np_norm(m):
    return math.sqrt(max(np.linalg.eigvalsh(m.T @ m)))


def np_balancedness(a, b, kind):
    d = b.T @ b - a @ a.T
    if kind == "fro":
        return math.sqrt((d**2).sum())
    return np_norm(d) / (1 if kind == "op" else max(np_norm(a), np_norm(b)) ** 2)


def np_negativity(z):
    return np_norm(np.where(z < 0, z, 0)) / np_norm(z)


FEATURE_METRICS = {
    "nc1": (metrics.nc1, np_nc1),
    "nc1 pinv": (lambda z, y: metrics.nc1(z, y, "pinv"), np_nc1_pinv),
    "nc1 cdnv": (lambda z, y: metrics.nc1(z, y, "cdnv"), np_nc1_cdnv),
    "nc2": (metrics.nc2, np_nc2),
    "nc2 etf": (lambda z, y: metrics.nc2(z, y, "etf"), lambda z, y: np_frame_distance(z, y, True)),
    "nc2 orthogonal": (lambda z, y: metrics.nc2(z, y, "orthogonal"), lambda z, y: np_frame_distance(z, y, False)),
}
UNEVEN = torch.tensor([0] * 7 + [1] * 1 + [2] * 12 + [3] * 3)  # class 1 has a single sample


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tolerance=1e-9):
    torch.testing.assert_close(
        torch.as_tensor(ours, dtype=torch.float64),
        torch.as_tensor(theirs, dtype=torch.float64),
        rtol=tolerance,
        atol=1e-12,
    )


@pytest.mark.parametrize("dim", [2, 6, 40], ids=["narrower-than-K", "d=6", "wider-than-N"])
@pytest.mark.parametrize("name", FEATURE_METRICS)
def test_features_against_the_definition(name, dim):
    ours, theirs = FEATURE_METRICS[name]
    z = draw(3, 2, len(UNEVEN), dim) + 0.5
    order = torch.randperm(len(UNEVEN), generator=torch.Generator().manual_seed(1))
    labels = UNEVEN[order]
    value = ours(z, labels)
    assert value.shape == (3, 2) and value.dtype == torch.float64
    for i in range(3):
        for j in range(2):
            if name == "nc2" and dim < 4:
                assert value[i, j] == torch.inf
            else:
                close(value[i, j], theirs(z[i, j].numpy(), labels.tolist()))


def test_class_means_against_the_definition():
    z = draw(2, len(UNEVEN), 5)
    means = metrics.class_means(z, UNEVEN)
    for run in range(2):
        close(means[run], np_means(z[run].numpy(), UNEVEN.tolist()))


@pytest.mark.parametrize("name", ["nc3", "nc4"])
def test_last_layer_against_the_definition(name):
    z, w = draw(3, len(UNEVEN), 6), draw(3, 4, 6, seed=1)
    value = getattr(metrics, name)(z, UNEVEN, w)
    reference = {"nc3": np_nc3, "nc4": np_nc4}[name]
    close(value, [reference(z[r].numpy(), UNEVEN.tolist(), w[r].numpy()) for r in range(3)])
    shared = getattr(metrics, name)(z, UNEVEN, w[0])  # one last layer for every run
    close(shared, [reference(z[r].numpy(), UNEVEN.tolist(), w[0].numpy()) for r in range(3)])


@pytest.mark.parametrize("kind", ["op", "fro", "relative"])
@pytest.mark.parametrize("shape", [(5, 5, 5), (3, 7, 2), (7, 3, 8)])
def test_balancedness_against_the_definition(kind, shape):
    p, m, n = shape
    a, b = draw(4, m, n), draw(4, p, m, seed=1)
    value = metrics.balancedness(a, b, kind)
    close(value, [np_balancedness(a[r].numpy(), b[r].numpy(), kind) for r in range(4)])


@pytest.mark.parametrize("shape", [(9, 4), (4, 9), (1, 1)])
def test_negativity_and_operator_norm_against_the_definition(shape):
    z = draw(3, *shape) - 0.3
    close(metrics.negativity(z), [np_negativity(m.numpy()) for m in z], 1e-7)
    close(metrics.operator_norm(z), [np_norm(m.numpy()) for m in z], 1e-7)
    close(metrics.operator_norm(z), torch.linalg.matrix_norm(z, 2), 1e-9)


def test_condition_number():
    m = draw(2, 6, 4)
    s = np.linalg.svd(m.numpy(), compute_uv=False)
    close(metrics.condition_number(m), s[:, 0] / s[:, 3])
    close(metrics.condition_number(m, rank=2), s[:, 0] / s[:, 1])
    assert metrics.condition_number(m, rank=5).tolist() == [torch.inf] * 2  # it has only four singular values
    close(metrics.condition_number(torch.diag(torch.tensor([6.0, -3.0, 1.0]))), 6.0)
    singular = torch.outer(torch.arange(1.0, 4.0), torch.arange(1.0, 4.0))
    assert metrics.condition_number(singular) == torch.inf
    assert metrics.condition_number(torch.zeros(3, 3)) == torch.inf


def test_a_condition_number_is_infinite_at_rounding_level_only():
    def diagonal(smallest, rows):
        matrix = torch.zeros(rows, 2, dtype=torch.float64)
        matrix[0, 0], matrix[1, 1] = 1.0, smallest
        return matrix

    for shape in (2, 1000):
        for smallest in (1e-7, 1e-12):
            close(metrics.condition_number(diagonal(smallest, shape)), 1 / smallest, 1e-6)
        assert metrics.condition_number(diagonal(1e-17, shape)) == torch.inf
    # The rounding of a thousand rows adds up: 1000 eps is 2e-13.
    assert metrics.condition_number(diagonal(1e-14, 2)) < torch.inf == metrics.condition_number(diagonal(1e-14, 1000))
    assert metrics.condition_number(diagonal(1e-14, 1000).mT) == torch.inf


# --- closed forms


def collapsed(means, per_class=3):
    """Every sample equal to its class mean."""
    labels = torch.arange(len(means)).repeat_interleave(per_class)
    return means.double()[labels], labels


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_orthogonal_frame(classes):
    z, y = collapsed(5 * torch.linalg.qr(draw(classes + 3, classes))[0].T)
    for kind in ("trace", "pinv", "cdnv"):
        close(metrics.nc1(z, y, kind), 0.0)
    close(metrics.nc2(z, y), 1.0)
    close(metrics.nc2(z, y, "orthogonal"), 0.0)
    # Centring an orthogonal frame gives a simplex frame.
    close(metrics.nc2(z, y, "etf"), 0.0)
    w = metrics.class_means(z, y)
    close(metrics.nc3(z, y, 0.1 * w), 1.0)
    close(metrics.nc4(z, y, 0.1 * w), 1.0)
    close(metrics.nc3(z, y, -w), -1.0)
    close(metrics.nc4(z, y, w.roll(1, 0)), 0.0)


@pytest.mark.parametrize("classes", [3, 10])
def test_simplex_frame(classes):
    z, y = collapsed(torch.eye(classes, dtype=torch.float64) - 1 / classes)
    close(metrics.nc2(z, y, "etf"), 0.0)
    assert metrics.nc2(z, y) == torch.inf  # a simplex frame spans K - 1 dimensions only
    # <I - J/K, I>/(|I - J/K| |I|) = sqrt((K-1)/K), and both matrices have norm 1 in the metric.
    close(metrics.nc2(z, y, "orthogonal"), math.sqrt(2 - 2 * math.sqrt((classes - 1) / classes)))


def test_nc1_of_two_classes_on_a_line():
    # Means 0 and 2 (centre 1, S_B = 1), deviations ±1/2 and ±1 (variances 1/4 and 1, S_W = 5/8).
    z = torch.tensor([-0.5, 0.5, 1.0, 3.0]).view(4, 1)
    y = torch.tensor([0, 0, 1, 1])
    close(metrics.nc1(z, y), 5 / 8)
    close(metrics.nc1(z, y, "pinv"), 5 / 16)
    close(metrics.nc1(z, y, "cdnv"), (1 / 4 + 1) / (2 * 4))


def test_pinv_does_not_invert_rounding_noise():
    # Far from the origin the rounding of the means fills the direction that centring has emptied.
    z = draw(len(UNEVEN), 9)
    near, far = (metrics.nc1(z + offset, UNEVEN, "pinv") for offset in (0.0, 1e7))
    close(far, near, 1e-6)


def test_pinv_is_the_same_in_any_units():
    """tr(S_W S_B^+) of means that span the space does not change with its coordinates, however unequal they are."""
    z = draw(len(UNEVEN), 3)  # four classes span three dimensions
    scales = torch.tensor([1.0, 1e-4, 1e-8], dtype=torch.float64)
    close(metrics.nc1(z * scales, UNEVEN, "pinv"), metrics.nc1(z, UNEVEN, "pinv"), 1e-5)


def test_coinciding_means_are_infinitely_far_from_collapse():
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    y = torch.tensor([0, 0, 1, 1])
    for kind in ("trace", "pinv", "cdnv"):
        assert metrics.nc1(z, y, kind) == torch.inf


def test_negativity_ends():
    positive = draw(6, 4).abs() + 0.1
    assert metrics.negativity(positive) == 0
    close(metrics.negativity(-positive), 1.0)
    # diag(1, -2): the negative part is diag(0, -2) and carries the whole norm.
    close(metrics.negativity(torch.diag(torch.tensor([1.0, -2.0]))), 1.0)
    close(metrics.negativity(torch.diag(torch.tensor([2.0, -1.0]))), 0.5)


def test_balanced_layers():
    u, v = torch.linalg.qr(draw(4, 4))[0], torch.linalg.qr(draw(6, 6))[0]
    s = torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    first, second = u @ torch.diag(s) @ v[:4], torch.linalg.qr(draw(4, 4, seed=2))[0] @ torch.diag(s) @ u.T
    for kind in ("op", "fro", "relative"):
        close(metrics.balancedness(first, second, kind), 0.0)
    # Doubling the outer layer leaves 4 S^2 - S^2 = 3 S^2.
    close(metrics.balancedness(first, 2 * second), 27.0)
    close(metrics.balancedness(first, 2 * second, "fro"), 3 * float(s.pow(4).sum().sqrt()))
    close(metrics.balancedness(first, 2 * second, "relative"), 27 / 36)


# --- invariances

SAMPLES = st.integers(0, 2**31)


def random_case(seed):
    generator = torch.Generator().manual_seed(seed)
    number = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    classes, dim = number(2, 6), number(1, 8)
    labels = torch.cat([torch.full((number(1, 6),), c) for c in range(classes)])
    labels = labels[torch.randperm(len(labels), generator=generator)]
    z = torch.randn(len(labels), dim, dtype=torch.float64, generator=generator) + 1
    w = torch.randn(classes, dim, dtype=torch.float64, generator=generator)
    return generator, z, labels, w


def every_value(z, labels, w):
    values = {name: ours(z, labels) for name, (ours, _) in FEATURE_METRICS.items()}
    return values | {"nc3": metrics.nc3(z, labels, w), "nc4": metrics.nc4(z, labels, w)}


def assert_same(before, after):
    for name in before:
        # Conditioned badly, a ratio keeps fewer digits: compare where it is not at rounding level.
        if before[name] < 1e6:
            close(after[name], before[name], 1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SAMPLES)
def test_rotation_changes_nothing(seed):
    generator, z, y, w = random_case(seed)
    q = torch.linalg.qr(torch.randn(z.shape[1], z.shape[1], dtype=torch.float64, generator=generator))[0]
    assert_same(every_value(z, y, w), every_value(z @ q, y, w @ q))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SAMPLES, st.floats(1e-3, 1e3))
def test_scale_changes_nothing(seed, scale):
    _, z, y, w = random_case(seed)
    assert_same(every_value(z, y, w), every_value(scale * z, y, 3 * w))
    close(metrics.negativity(scale * z), metrics.negativity(z), 1e-6)
    close(metrics.condition_number(scale * w), metrics.condition_number(w), 1e-6)
    close(metrics.balancedness(scale * w, scale * w.T), scale**2 * metrics.balancedness(w, w.T), 1e-6)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SAMPLES)
def test_order_of_classes_and_samples_changes_nothing(seed):
    generator, z, y, w = random_case(seed)
    renamed = torch.randperm(len(w), generator=generator)  # class c becomes renamed[c]
    shuffled = torch.randperm(len(y), generator=generator)
    renamed_w = torch.empty_like(w)
    renamed_w[renamed] = w
    assert_same(every_value(z, y, w), every_value(z[shuffled], renamed[y][shuffled], renamed_w))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SAMPLES)
def test_ranges(seed):
    _, z, y, w = random_case(seed)
    values = every_value(z, y, w)
    assert all(not torch.isnan(v) for v in values.values())
    assert values["nc1"] >= 0 and values["nc1 cdnv"] >= 0 and values["nc1 pinv"] >= 0 and values["nc2"] >= 1
    assert -1 - 1e-12 <= values["nc3"] <= 1 + 1e-12 and 0 <= values["nc4"] <= 1
    assert 0 <= metrics.negativity(z) <= 1 + 1e-12 and metrics.condition_number(z) >= 1
    assert 0 <= metrics.balancedness(w, w.T, "relative") <= 1 + 1e-12


def test_float32_is_judged_in_float64():
    # Two features that float32 tells apart, whose squares it does not.
    z = torch.tensor([[1.0, 0.0], [1.0 + 2**-20, 0.0], [0.0, 1.0], [0.0, 1.0]])
    y = torch.tensor([0, 0, 1, 1])
    close(metrics.nc1(z, y), np_nc1(z.double().numpy(), y.tolist()))
    assert metrics.nc1(z, y).dtype == torch.float64


def test_gradients_are_not_tracked_and_inputs_not_changed():
    z = draw(len(UNEVEN), 5).requires_grad_()
    before = z.detach().clone()
    assert not metrics.nc1(z, UNEVEN).requires_grad
    assert torch.equal(z, before)


# --- refusals: each names its argument

Z, Y, W = draw(len(UNEVEN), 5), UNEVEN, draw(4, 5)
SINGLE = torch.zeros(len(UNEVEN), dtype=torch.int64)
NAN, INF = Z.clone(), Z.clone()
NAN[3, 2], INF[0, 0] = torch.nan, torch.inf


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.class_means(Z.numpy(), Y), "features must be a torch tensor; got ndarray"),
        (lambda: metrics.class_means(Z[:0], Y[:0]), "features must not be empty; got shape (0, 5)"),
        (lambda: metrics.class_means(Z.to(torch.complex128), Y), "features must be real; got torch.complex128"),
        (lambda: metrics.class_means(NAN, Y), "features must be finite; got 1 NaN or infinite of 115 values"),
        (lambda: metrics.nc1(INF, Y), "features must be finite; got 1 NaN or infinite of 115 values"),
        (lambda: metrics.class_means(Z[0], Y), "features must be (..., N, d); got shape (5,)"),
        (lambda: metrics.class_means(Z, Y.tolist()), "labels must be an integer tensor (N,); got list"),
        (lambda: metrics.class_means(Z, Y.double()), "labels must be an integer tensor (N,); got torch.float64"),
        (lambda: metrics.class_means(Z, Y > 1), "labels must be an integer tensor (N,); got torch.bool"),
        (lambda: metrics.class_means(Z, Y[1:]), "labels must be (N,) with N = 23"),
        (
            lambda: metrics.class_means(Z, Y + 1),
            "labels must be 0..K-1 with every class present; got the classes [1,",
        ),
        (lambda: metrics.class_means(Z, 2 * Y), "got the classes [0, 2, 4, 6]"),
        (lambda: metrics.class_means(Z, Y - 1), "got the classes [-1, 0, 1, 2]"),
        (lambda: metrics.nc1(Z, Y, "trance"), "kind must be one of 'trace', 'pinv', 'cdnv'; got 'trance'"),
        (lambda: metrics.nc2(Z, Y, "gram"), "kind must be one of 'condition', 'etf', 'orthogonal'; got 'gram'"),
        (lambda: metrics.nc1(Z, SINGLE), "labels must name at least 2 classes; got 1"),
        (lambda: metrics.nc2(Z, SINGLE), "labels must name at least 2 classes; got 1"),
        (lambda: metrics.nc3(Z, Y, W[:3]), "weight must be (..., K, d) = (..., 4, 5); got (3, 5)"),
        (lambda: metrics.nc4(Z, Y, W[:, :4]), "weight must be (..., K, d) = (..., 4, 5); got (4, 4)"),
        (lambda: metrics.nc3(Z, Y, W[0]), "weight must be (..., K, d)"),
        (lambda: metrics.nc4(Z, Y, W * torch.nan), "weight must be finite; got 20"),
        (lambda: metrics.balancedness(W, W, "ops"), "kind must be one of 'op', 'fro', 'relative'; got 'ops'"),
        (
            lambda: metrics.balancedness(W, W),
            "must be (..., p, m) for weight (..., m, n); got weight (4, 5), next_weight (4, 5)",
        ),
        (lambda: metrics.balancedness(W[0], W), "next_weight must be (..., p, m)"),
        (lambda: metrics.balancedness(W, W.T / 0), "next_weight must be finite"),
        (lambda: metrics.balancedness(W / 0, W.T), "weight must be finite"),
        (lambda: metrics.negativity(Z[0]), "preactivations must be (..., N, d); got shape (5,)"),
        (lambda: metrics.negativity(NAN), "preactivations must be finite; got 1"),
        (lambda: metrics.condition_number(Z[0]), "matrix must be (..., m, n); got shape (5,)"),
        (lambda: metrics.condition_number(Z, rank=0), "rank must be at least 1; got 0"),
        (lambda: metrics.condition_number(NAN), "matrix must be finite; got 1"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)


# --- ClassStatistics: streamed, merged, against 80-bit arithmetic in two passes


def exact_scatter(z, y):
    """Scatter of each class and NC1, in two passes of 80-bit numbers."""
    z = z.numpy().astype(np.longdouble)
    means = np.array([z[y == c].mean(0) for c in range(max(y) + 1)])
    scatter = [((z[y == c] - means[c]) ** 2).sum() for c in range(len(means))]
    between = ((means - means.mean(0)) ** 2).sum() / len(means)
    return np.array(scatter), sum(scatter) / len(y) / between


def parts_of(z, y, cuts, **options):
    edges = [0, *sorted(cuts), len(y)]
    pairs = [(a, b) for a, b in itertools.pairwise(edges) if a < b]
    return [metrics.ClassStatistics(**options).update(z[a:b], y[a:b]) for a, b in pairs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 3e-7])  # 3e-7: NC1 of 1e-13
@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("order", ["shuffled", "by class"])
def test_streaming_equals_80_bit_arithmetic(dtype, spread, offset, order):
    generator = torch.Generator().manual_seed(3)
    y = torch.randint(0, 5, (700,), generator=generator)
    y = y.sort().values if order == "by class" else y
    z = torch.linalg.qr(draw(12, 5))[0].T[y] + spread / 12**0.5 * draw(700, 12, seed=4) + offset
    z = z.to(dtype)
    scatter, nc1 = exact_scatter(z, y.numpy())
    streamed = metrics.ClassStatistics()
    for start in range(0, 700, 37):
        streamed.update(z[start : start + 37], y[start : start + 37])
    for seen in (metrics.ClassStatistics(5).update(z, y), streamed):
        if scatter.min() > 0:
            np.testing.assert_allclose(seen.scatter.numpy(), scatter.astype(float), rtol=1e-12)
        assert float(seen.nc1()) == pytest.approx(float(nc1), rel=1e-12)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    SAMPLES,
    st.lists(st.integers(0, 60), min_size=3, max_size=3),
    st.sampled_from([0.0, 1e3, 1e6]),
    st.sampled_from([1.0, 1e-6]),
)
def test_merging_is_associative_and_commutative(seed, cuts, offset, spread):
    generator, z, y, _ = random_case(seed)
    z = torch.randn(int(y.max()) + 1, z.shape[1], generator=generator, dtype=torch.float64)[y] + spread * z + offset
    parts = parts_of(z, y, [min(cut, len(y)) for cut in cuts], covariance=True)
    left, right = parts[0], parts[-1]
    for part in parts[1:]:
        left = left.merge(part)
    for part in parts[-2::-1]:
        right = part.merge(right)
    backwards = parts[-1]
    for part in parts[-2::-1]:
        backwards = backwards.merge(part)
    scatter, _ = exact_scatter(z, y.numpy())
    floor = 1e-9 * (1e-16 * max(1.0, offset)) + 1e-12 * scatter.max()  # a class of one sample has no scatter
    for merged in (left, right, backwards):
        np.testing.assert_allclose(merged.scatter.numpy(), scatter.astype(float), rtol=1e-11, atol=float(floor))
        np.testing.assert_allclose(merged.means.numpy(), left.means.numpy(), rtol=1e-14, atol=1e-15)
        trace = float(merged.covariance().diagonal(dim1=-2, dim2=-1).sum())
        assert trace == pytest.approx(float(merged.scatter.sum()) / len(y), rel=1e-9, abs=float(floor))


def test_an_outlier_first_costs_no_digits():
    y = torch.arange(300) % 3
    z = draw(300, 6)
    z[:3] += 1e6
    seen = metrics.ClassStatistics()
    for start in range(0, 300, 10):
        seen.update(z[start : start + 10], y[start : start + 10])
    np.testing.assert_allclose(seen.scatter.numpy(), exact_scatter(z, y.numpy())[0].astype(float), rtol=1e-12)


def test_streamed_covariance_gives_the_pinv_form_for_every_run():
    z, y = draw(2, len(UNEVEN), 5), UNEVEN
    seen = metrics.ClassStatistics(4, covariance=True).update(z[:, :9], y[:9]).update(z[:, 9:], y[9:])
    close(seen.nc1("pinv"), metrics.nc1(z, y, "pinv"), 1e-10)
    close(seen.covariance()[1], np_scatter(z[1].numpy(), y.tolist())[0])


def test_equinorm_equiangularity_self_duality_and_ranks():
    z, y, w = draw(len(UNEVEN), 6), UNEVEN, draw(4, 6, seed=1)
    for kind in ("etf", "orthogonal"):
        means = np_means(z.numpy(), y.tolist())
        means = means - means.mean(0) if kind == "etf" else means
        lengths = np.sqrt((means**2).sum(1))
        close(metrics.equinorm(z, y, kind), lengths.std() / lengths.mean())
        target = -1 / 3 if kind == "etf" else 0
        pairs = [abs(means[a] @ means[b] / lengths[a] / lengths[b] - target) for a in range(4) for b in range(a)]
        close(metrics.equiangularity(z, y, kind), np.mean(pairs))
        distance = w.numpy() / np.sqrt((w.numpy() ** 2).sum()) - means / np.sqrt((means**2).sum())
        close(metrics.self_duality(z, y, w, kind), np.sqrt((distance**2).sum()))
    close(metrics.stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))), 1.5)
    assert metrics.numerical_rank(torch.diag(torch.tensor([2.0, 1.0, 1e-4]))) == 2
    assert metrics.balancedness(w, w.T) == metrics.imbalance(w, w.T)


def test_edges_of_the_numbers():
    y = torch.arange(12) % 3
    for kind in ("trace", "pinv", "cdnv"):
        assert metrics.nc1(torch.ones(12, 4), y, kind) == torch.inf  # every feature the same
    frame = torch.eye(3, dtype=torch.float64)
    close(metrics.nc3(1e-9 * frame[y], y, 1e-9 * frame), 1.0)
    z, w = draw(12, 3), draw(3, 3, seed=1)
    near = metrics.ncc_accuracy(z, y)
    assert metrics.ncc_accuracy(z + 2.0**30, y) == near
    assert metrics.imbalance(0 * w, 0 * w, "relative") == 0 and metrics.negativity(0 * w) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: s.update(Z[:, :3], Y), "features must be ('N', 5) as before; got (23, 3)"),
        (lambda s: s.update(Z, Y + 1), "labels must be 0..3 with every class present; got the classes [1, 2, 3, 4]"),
        (lambda s: s.update(NAN, Y), "features must be finite; got 1 NaN or infinite of 115 values"),
        (lambda s: s.nc1("pinv"), "covariance must be True"),
        (lambda s: s.merge(metrics.ClassStatistics(3)), "other must have num_classes=4; got 3"),
        (lambda s: s.merge(Z), "other must be a ClassStatistics; got Tensor"),
        (lambda s: metrics.ClassStatistics(4).nc1(), "features must hold at least one sample; got no update"),
        (lambda s: metrics.ClassStatistics(5).update(Z, Y).nc1(), "got the classes [0, 1, 2, 3]"),
    ],
)
def test_statistics_refuse(call, words):
    seen = metrics.ClassStatistics(4).update(Z, Y)
    before = seen.scatter.clone()
    with pytest.raises(ValueError) as caught:
        call(seen)
    assert words in str(caught.value) and torch.equal(seen.scatter, before)


def test_statistics_refuse_features_of_another_shape():
    seen = metrics.ClassStatistics().update(torch.arange(12.0).view(6, 2).cos(), torch.arange(6) % 3)
    assert seen.nearest(torch.zeros(4, 2)).shape == (4,)
    for wrong in (torch.zeros(4, 3), torch.zeros(2, 4, 2), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"features must be \(N, 2\) as what was seen; got"):
            seen.nearest(wrong)
    runs = metrics.ClassStatistics().update(torch.arange(24.0).view(2, 6, 2).cos(), torch.arange(6) % 3)
    for wrong in (torch.zeros(3, 4, 2), torch.zeros(4, 2), torch.zeros(2, 4, 3)):
        with pytest.raises(ValueError, match=r"features must be \(2, N, 2\) as what was seen; got"):
            runs.nearest(wrong)
    with pytest.raises(ValueError, match=r"basis must be \(N, 2\)"):
        seen.spread_along(torch.zeros(1, 3), torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))
    for labels in (torch.zeros(3, dtype=torch.long), torch.zeros(4), torch.zeros(4, dtype=torch.bool)):
        with pytest.raises(ValueError, match=r"labels must be \(4,\) integers"):
            seen.spread_along(torch.ones(1, 2), torch.zeros(4, 2), labels)
    for label in (-1, 3):
        with pytest.raises(ValueError, match=r"labels must be 0..2"):
            seen.spread_along(torch.ones(1, 2), torch.zeros(4, 2), torch.full((4,), label))


def test_a_sample_nearest_to_a_later_class_is_as_wrong_as_one_nearest_to_an_earlier():
    z = torch.tensor([0.0, 0.0, 0.0, 9.0, 10.0, 10.0, 10.0, 1.0])[:, None]
    y = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    assert metrics.ncc_accuracy(z, y).item() == metrics.ncc_accuracy(z, 1 - y).item() == 6 / 8


@pytest.mark.parametrize("kind", ["op", "fro", "relative"])
def test_imbalance_of_weights_whose_squares_overflow_is_refused(kind):
    weight = torch.full((2, 2), 1e155, dtype=torch.float64)
    with pytest.raises(ValueError, match="weight, next_weight must be below 1e150"):
        metrics.imbalance(weight, 2 * weight, kind)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda z, y, w: metrics.nc3(z, y, w),
            r"weight must have leading dimensions \(2,\), those of features; got \(3,\)",
        ),
        (lambda z, y, w: metrics.nc4(z, y, w), "weight must have leading dimensions"),
        (lambda z, y, w: metrics.self_duality(z, y, w), "weight must have leading dimensions"),
        (lambda z, y, w: metrics.imbalance(w, z.mT[..., :3, :3]), "next_weight must have leading dimensions"),
    ],
)
def test_stacks_of_other_lengths_are_refused_by_name(call, words):
    z, y, w = torch.randn(2, 30, 3), torch.arange(30) % 3, torch.randn(3, 3, 3)
    with pytest.raises(ValueError, match=words):
        call(z, y, w)
    call(z, y, w[:2]), call(z, y, w[:1])  # as many, or one for all


def test_ranks_of_zeros_and_at_the_tolerance():
    diagonal, zeros = torch.diag(torch.tensor([2.0, 1.0])), torch.zeros(2, 3)
    assert metrics.numerical_rank(diagonal, 0.5) == 1  # exceeds, and does not reach
    assert metrics.numerical_rank(diagonal, 0.4) == 2
    assert metrics.numerical_rank(zeros) == metrics.numerical_rank(zeros, 0.0) == metrics.stable_rank(zeros) == 0
    with pytest.raises(ValueError, match=r"tolerance must be in \[0, 1\); got 1.0"):
        metrics.numerical_rank(diagonal, 1.0)
    with pytest.raises(ValueError, match=r"num_classes must be in 1\.\..*; got 0"):
        metrics.ClassStatistics(0)


def test_a_common_offset_costs_centred_means_no_digits():
    z, y = torch.arange(60.0, dtype=torch.float64).view(12, 5).square() % 7, torch.arange(12) % 3
    near, far = (metrics.ClassStatistics().update(z + offset, y) for offset in (0.0, 2.0**40))
    close(far.centred_means, near.centred_means, 1e-12)
    close(far.nc1(), near.nc1(), 1e-12)


def test_accuracies_of_a_stack_are_those_of_its_members():
    z, y, w = torch.randn(2, 3, 30, 4), torch.arange(30) % 3, torch.randn(2, 3, 3, 4)
    nearest, agree = metrics.ncc_accuracy(z, y), metrics.nc4(z, y, w)
    assert nearest.shape == agree.shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        assert nearest[i, j] == metrics.ncc_accuracy(z[i, j], y) and agree[i, j] == metrics.nc4(z[i, j], y, w[i, j])


# --- stacks: every number against its definition, member by member


def np_lengths(z, y, kind):
    means = np_means(z, y)
    return means - means.mean(0) if kind == "etf" else means


def np_equinorm(z, y, kind):
    lengths = [math.sqrt(m @ m) for m in np_lengths(z, y, kind)]
    mean = sum(lengths) / len(lengths)
    return math.sqrt(sum((v - mean) ** 2 for v in lengths) / len(lengths)) / mean


def np_equiangularity(z, y, kind):
    means = np_lengths(z, y, kind)
    target = -1 / (len(means) - 1) if kind == "etf" else 0
    pairs = list(itertools.combinations(means, 2))
    return sum(abs(a @ b / math.sqrt((a @ a) * (b @ b)) - target) for a, b in pairs) / len(pairs)


def np_self_duality(z, y, w, kind):
    means = np_lengths(z, y, kind)
    return math.sqrt(((w / math.sqrt((w**2).sum()) - means / math.sqrt((means**2).sum())) ** 2).sum())


def np_nearest(z, y):
    means = np_means(z, y)
    return np.array([min(range(len(means)), key=lambda c: ((row - means[c]) ** 2).sum()) for row in z])


def np_ranks(matrix, tolerance):
    s = np.linalg.svd(matrix, compute_uv=False)
    return (s**2).sum() / s[0] ** 2, sum(s > tolerance * s[0])


def streamed(z, y, cuts=(1, 5, 6, 20), **options):
    """Statistics of samples that come in pieces which lack some of the classes."""
    seen = metrics.ClassStatistics(**options)
    for start, stop in itertools.pairwise((0, *cuts, len(y))):
        seen.update(z[..., start:stop, :], y[start:stop])
    return seen


def defined(z, y):
    """Every number of one member of a stack, by its definition."""
    means, own = np_means(z, y), np.array(y)
    nearest, (stable, numerical) = np_nearest(z, y), np_ranks(means, 0.4)
    values = {name: theirs(z, y) for name, (_, theirs) in FEATURE_METRICS.items()}
    for kind in ("etf", "orthogonal"):
        values |= {f"equinorm {kind}": np_equinorm(z, y, kind), f"equiangularity {kind}": np_equiangularity(z, y, kind)}
    values |= {"means": means, "centred means": np_lengths(z, y, "etf"), "covariance": np_scatter(z, y)[0]}
    values |= {"scatter": [((z[own == c] - m) ** 2).sum() for c, m in enumerate(means)]}
    values |= {"stable rank": stable, "numerical rank": numerical}
    return values | {"nearest": nearest, "accuracy": (nearest == own).mean()}


def of_streamed(seen, z):
    values = {"nc1": seen.nc1(), "nc2": seen.nc2()}
    values |= {f"nc1 {kind}": seen.nc1(kind) for kind in ("pinv", "cdnv")}
    for kind in ("etf", "orthogonal"):
        values |= {f"{name} {kind}": getattr(seen, name)(kind) for name in ("nc2", "equinorm", "equiangularity")}
    values |= {"means": seen.means, "centred means": seen.centred_means, "covariance": seen.covariance()}
    values |= {"scatter": seen.scatter, "nearest": seen.nearest(z)}
    return values | {"stable rank": seen.stable_rank(), "numerical rank": seen.numerical_rank(0.4)}


def of_whole(z, y):
    values = {name: ours(z, y) for name, (ours, _) in FEATURE_METRICS.items()}
    for kind in ("etf", "orthogonal"):
        values |= {f"{name} {kind}": getattr(metrics, name)(z, y, kind) for name in ("equinorm", "equiangularity")}
    return values | {"means": metrics.class_means(z, y), "accuracy": metrics.ncc_accuracy(z, y)}


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
def test_every_measure_of_a_stack_is_that_of_its_members(lead):
    z = draw(*lead, len(UNEVEN), 6, seed=2) + 0.4
    y = UNEVEN[torch.randperm(len(UNEVEN), generator=torch.Generator().manual_seed(5))]
    seen = streamed(z, y, covariance=True)
    assert seen.count.tolist() == [7, 1, 12, 3]
    for found in (of_streamed(seen, z), of_whole(z, y)):
        for index in itertools.product(*map(range, lead)):
            wanted = defined(z[index].numpy(), y.tolist())
            for name, value in found.items():
                np.testing.assert_allclose(value[index].numpy(), wanted[name], rtol=1e-8, atol=1e-12, err_msg=name)
                assert value.ndim == len(lead) + np.ndim(wanted[name]), name


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("shared", ["each its own", "one layer", "one set of samples", "stack of one"])
def test_every_measure_of_a_last_layer_in_a_stack(lead, shared):
    z_lead, w_lead = {
        "each its own": (lead, lead),
        "one layer": (lead, lead[1:]),
        "one set of samples": (lead[1:], lead),
        "stack of one": (lead, (1,) * len(lead)),
    }[shared]
    z, w = draw(*z_lead, len(UNEVEN), 6, seed=2) + 0.4, draw(*w_lead, 4, 6, seed=3)
    seen = streamed(z, UNEVEN)
    pairs = [(metrics.nc3(z, UNEVEN, w), np_nc3), (metrics.nc4(z, UNEVEN, w), np_nc4)]
    for kind in ("etf", "orthogonal"):
        theirs = lambda z, y, w, kind=kind: np_self_duality(z, y, w, kind)  # noqa: E731
        pairs += [(metrics.self_duality(z, UNEVEN, w, kind), theirs), (seen.self_duality(w, kind), theirs)]
    pairs += [(metrics.self_duality(z, UNEVEN, w), lambda z, y, w: np_self_duality(z, y, w, "etf"))]
    z, w = z.expand(*lead, -1, -1).numpy(), w.expand(*lead, -1, -1).numpy()
    for found, theirs in pairs:
        assert found.shape == lead
        for index in itertools.product(*map(range, lead)):
            close(found[index], theirs(z[index], UNEVEN.tolist(), w[index]))


@pytest.mark.parametrize("lead", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)], ids=str)
def test_every_measure_of_matrices_in_a_stack(lead, shape):
    m = draw(*lead, *shape, seed=6)
    following = draw(*lead, 5, shape[0], seed=7)
    found = {name: getattr(metrics, name)(m) for name in ("stable_rank", "condition_number", "operator_norm")}
    ranks, negative = metrics.numerical_rank(m, 0.4), metrics.negativity(m)
    second, difference = metrics.condition_number(m, 2), metrics.imbalance_matrix(m, following)
    assert all(v.shape == lead and v.dtype == torch.float64 for v in (*found.values(), ranks, negative, second))
    for index in itertools.product(*map(range, lead)):
        one = m[index].numpy()
        s = np.linalg.svd(one, compute_uv=False)
        close(found["stable_rank"][index], (s**2).sum() / s[0] ** 2)
        close(found["condition_number"][index], s[0] / s[-1])
        close(found["operator_norm"][index], s[0])
        close(second[index], s[0] / s[1])
        close(ranks[index], sum(s > 0.4 * s[0]))
        close(negative[index], np.linalg.norm(np.minimum(one, 0), 2) / s[0])
        after = following[index].numpy()
        gram = after.T @ after - one @ one.T
        close(difference[index], gram)
        size = max(np.linalg.norm(after, 2), s[0]) ** 2
        wanted = {
            "op": np.linalg.norm(gram, 2),
            "fro": np.linalg.norm(gram),
            "relative": np.linalg.norm(gram, 2) / size,
        }
        for kind, value in wanted.items():
            close(metrics.imbalance(m, following, kind)[index], value)


def test_measures_of_matrices_do_not_depend_on_their_size():
    m, following = draw(3, 4, seed=1), draw(2, 3, seed=2)
    for scale in (1e-9, 1e-3, 1e6):
        close(metrics.stable_rank(scale * m), metrics.stable_rank(m))
        close(metrics.negativity(scale * m), metrics.negativity(m))
        close(metrics.condition_number(scale * m), metrics.condition_number(m))
        close(metrics.operator_norm(scale * m) / scale, metrics.operator_norm(m))
        assert metrics.numerical_rank(scale * m, 0.3) == metrics.numerical_rank(m, 0.3)
        relative = metrics.imbalance(scale * m, scale * following, "relative")
        close(relative, metrics.imbalance(m, following, "relative"))


@pytest.mark.parametrize("function", ["stable_rank", "condition_number", "numerical_rank", "operator_norm"])
def test_a_matrix_may_be_a_single_number(function):
    assert getattr(metrics, function)(torch.tensor([[-4.0]])) == (4 if function == "operator_norm" else 1)


def test_rounding_is_judged_by_the_sides_of_the_matrix_not_by_the_length_of_the_stack():
    matrices = torch.diag(torch.tensor([1.0, 1e-14], dtype=torch.float64)).expand(1000, 2, 2)
    close(metrics.condition_number(matrices), torch.full((1000,), 1e14), 1e-3)
    close(metrics.ratio_of_singular_values(torch.tensor([8.0, 4.0, 2.0]), (3, 5)), 4.0)
    close(metrics.ratio_of_singular_values(torch.tensor([8.0, 4.0, 2.0]), (3, 5), 2), 2.0)


def test_squares_below_what_float64_holds_count_as_zero():
    assert metrics.operator_norm(torch.full((3, 2), 1e-170, dtype=torch.float64)) == 0


# --- more samples than one block of a processor's cache


def vectorised(z, y, w):
    """All numbers of one member of a stack, in NumPy, by whole tensors."""
    means = np.array([z[y == c].mean(0) for c in range(y.max() + 1)])
    deviation, centred = z - means[y], means - means.mean(0)
    between = centred.T @ centred / len(means)
    values, vectors = np.linalg.eigh(between)
    top = slice(len(values) - len(means) + 1, None)
    along = deviation @ vectors[:, top] / np.sqrt(values[top])
    variances = np.array([(deviation[y == c] ** 2).sum() / (y == c).sum() for c in range(len(means))])
    pairs = itertools.combinations(range(len(means)), 2)
    nearest = ((z[:, None] - means) ** 2).sum(-1).argmin(1)
    cosines = (z * w[y]).sum(1) / np.linalg.norm(z, axis=1) / np.linalg.norm(w[y], axis=1)
    return {
        "nc1": (deviation**2).sum() / len(y) / np.trace(between),
        "pinv": (along**2).sum() / len(y) / len(means),
        "cdnv": np.mean([(variances[a] + variances[b]) / 2 / ((means[a] - means[b]) ** 2).sum() for a, b in pairs]),
        "nc3": cosines.mean(),
        "nc4": ((z @ w.T).argmax(1) == nearest).mean(),
        "ncc": (nearest == y).mean(),
    }


@pytest.mark.parametrize(("lead", "samples", "dim"), [((3, 4), 301, 40), ((2,), 1501, 50), ((), 2503, 60)])
def test_samples_in_many_blocks(lead, samples, dim):
    y = (torch.arange(samples).square() + torch.arange(samples) // 7) % 4
    z, w = draw(*lead, samples, dim, seed=8) + 0.8 * draw(4, dim, seed=9)[y], draw(*lead, 4, dim, seed=10)
    seen = metrics.ClassStatistics(covariance=True).update(z, y)
    found = {
        "nc1": metrics.nc1(z, y),
        "pinv": metrics.nc1(z, y, "pinv"),
        "cdnv": metrics.nc1(z, y, "cdnv"),
        "nc3": metrics.nc3(z, y, w),
        "nc4": metrics.nc4(z, y, w),
        "ncc": metrics.ncc_accuracy(z, y),
    }
    close(seen.nc1("pinv"), found["pinv"])
    for index in itertools.product(*map(range, lead)):
        for name, value in vectorised(z[index].numpy(), y.numpy(), w[index].numpy()).items():
            assert float(found[name][index]) == pytest.approx(value, rel=1e-9), name


def test_a_sample_may_be_larger_than_a_block():
    z, y = draw(7, 70_000), np.array([0, 1, 1, 0, 1, 0, 0])
    means = np.array([z.numpy()[y == c].mean(0) for c in range(2)])
    within = ((z.numpy() - means[y]) ** 2).sum() / 7
    between = ((means[1] - means[0]) ** 2).sum() / 4  # two means are half their distance from the middle
    assert float(metrics.nc1(z, torch.tensor(y))) == pytest.approx(within / between, rel=1e-10)
    assert metrics.ncc_accuracy(z, torch.tensor(y)) == 1


# --- what is seen piece by piece


def test_statistics_are_empty_before_the_first_update():
    seen = metrics.ClassStatistics(3)
    assert seen.count.shape == seen.scatter.shape == (0,) and seen.count.dtype == seen.scatter.dtype == torch.float64
    for read in (lambda: seen.means, lambda: seen.centred_means, lambda: seen.num_classes, seen.covariance, seen.nc2):
        with pytest.raises(ValueError, match="features must hold at least one sample; got no update"):
            read()


def test_the_covariance_is_asked_for_by_name():
    assert metrics.ClassStatistics(num_classes=4, covariance=True).update(Z, Y).covariance().shape == (5, 5)
    with pytest.raises(TypeError, match="takes from 1 to 2 positional arguments but 3 were given"):
        metrics.ClassStatistics(4, True)


def test_one_class_is_enough_for_its_mean_and_not_for_a_comparison():
    seen = metrics.ClassStatistics(covariance=True).update(Z, SINGLE)
    close(metrics.class_means(Z, SINGLE)[0], Z.mean(0))
    assert seen.num_classes == 1 and metrics.ncc_accuracy(Z, SINGLE) == 1
    calls = [lambda kind=kind: seen.nc1(kind) for kind in ("trace", "pinv", "cdnv")]
    calls += [lambda kind=kind: metrics.nc1(Z, SINGLE, kind) for kind in ("trace", "pinv", "cdnv")]
    calls += [lambda kind=kind: seen.nc2(kind) for kind in ("condition", "etf", "orthogonal")]
    calls += [lambda kind=kind: seen.equinorm(kind) for kind in ("etf", "orthogonal")]
    calls += [seen.equiangularity, lambda: seen.self_duality(W[:1])]
    for call in calls:
        with pytest.raises(ValueError, match="labels must name at least 2 classes; got 1"):
            call()


def test_two_classes_are_enough():
    z, y = draw(9, 3), torch.tensor([0, 0, 1, 0, 1, 1, 1, 1, 0])
    seen = metrics.ClassStatistics(2, covariance=True).update(z, y)
    close([seen.nc1(kind) for kind in ("trace", "pinv", "cdnv")], [f(z.numpy(), y.tolist()) for f in
          (np_nc1, np_nc1_pinv, np_nc1_cdnv)])  # fmt: skip
    close(seen.nc2(), np_nc2(z.numpy(), y.tolist()))
    close(seen.equinorm(), 0.0)  # two means about their centre are opposite and equally long
    close(seen.equiangularity(), 0.0)


def test_a_class_may_come_late_and_one_sample_at_a_time():
    z, y = draw(2, len(UNEVEN), 5, seed=4) + 3, UNEVEN.flip(0)  # the classes come 3, 2, 1, 0
    whole = metrics.ClassStatistics(4, covariance=True).update(z, y)
    for options in ({}, {"num_classes": 4}):
        single = streamed(z, y, range(1, len(y)), covariance=True, **options)
        close(single.count, torch.tensor([7.0, 1.0, 12.0, 3.0]))
        for name in ("means", "centred_means", "scatter"):
            close(getattr(single, name), getattr(whole, name))
        close(single.covariance(), whole.covariance())
    assert metrics.ClassStatistics().update(z[:, :4], y[:4]).count.tolist() == [0, 0, 1, 3]
    assert metrics.ClassStatistics(6).update(z[:, :4], y[:4]).count.tolist() == [0, 0, 1, 3, 0, 0]


@pytest.mark.parametrize("offset", [0.0, 2.0**40, 1e160])
def test_parts_that_saw_other_classes_are_merged_without_loss(offset):
    """Class 1 has one sample, in one of the parts; a class that a part has not seen has no place there yet."""
    z, y = draw(2, len(UNEVEN), 5, seed=4), UNEVEN
    z = (16 * z).round() / 16 + offset if offset < 1e100 else torch.full_like(z, offset)
    whole = metrics.ClassStatistics(covariance=True).update(z, y)
    for cut in (7, 8, 20, 3):  # where classes begin, and within the first
        parts = [metrics.ClassStatistics(covariance=True).update(z[:, s], y[s]) for s in (slice(cut), slice(cut, None))]
        for merged in (parts[0].merge(parts[1]), parts[1].merge(parts[0])):
            assert torch.equal(merged.count, whole.count)
            for name in ("means", "centred_means", "scatter"):
                found, wanted = getattr(merged, name), getattr(whole, name)
                torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10, msg=f"{name}, {cut}")
            torch.testing.assert_close(merged.covariance(), whole.covariance(), rtol=1e-10, atol=1e-10)


def test_a_merged_class_of_one_sample_on_either_side():
    first = metrics.ClassStatistics().update(torch.tensor([[1.0, 2.0], [5.0, 5.0]]), torch.tensor([0, 1]))
    second = metrics.ClassStatistics().update(torch.tensor([[4.0, 6.0], [8.0, 5.0]]), torch.tensor([0, 1]))
    for merged in (first.merge(second), second.merge(first)):
        close(merged.means, torch.tensor([[2.5, 4.0], [6.5, 5.0]]))
        close(merged.scatter, torch.tensor([12.5, 4.5]))  # half of 3^2 + 4^2, and of 3^2
        assert merged.count.tolist() == [2, 2]


def test_merging_with_nothing_gives_a_copy():
    seen, empty = metrics.ClassStatistics(4, covariance=True).update(Z, Y), metrics.ClassStatistics(4, covariance=True)
    before = seen.scatter.clone()
    for merged in (seen.merge(empty), empty.merge(seen)):
        assert merged is not seen and torch.equal(merged.scatter, before)
        close(merged.covariance(), seen.covariance())
        merged.update(2 * Z, Y)
        assert torch.equal(seen.scatter, before) and seen.count.sum() == len(Y) and merged.count.sum() == 2 * len(Y)
    assert empty.count.shape == (0,) and empty.merge(empty).count.shape == (0,)


@pytest.mark.parametrize("covariance", [False, True])
def test_statistics_of_other_kinds_do_not_merge(covariance):
    seen = metrics.ClassStatistics(4, covariance=covariance).update(Z, Y)
    words = f"other must have covariance={covariance}; got {not covariance}"
    with pytest.raises(ValueError, match=words):
        seen.merge(metrics.ClassStatistics(4, covariance=not covariance).update(Z, Y))
    with pytest.raises(ValueError, match="other must have num_classes=4; got 5"):
        seen.merge(metrics.ClassStatistics(5, covariance=covariance).update(Z, Y))


@pytest.mark.parametrize(
    ("ours", "theirs"), [((), (2,)), ((2,), ()), ((2,), (3,)), ((3,), (2,)), ((2,), (1,)), ((), ())]
)
def test_statistics_of_other_shapes_do_not_merge_and_do_not_go_on(ours, theirs):
    dims = [(5, 5)] if ours != theirs else [(4, 5), (5, 4)]
    for dim, other in dims:
        seen = metrics.ClassStatistics().update(draw(*ours, len(Y), dim), Y)
        with pytest.raises(ValueError, match=r"other must hold means of shape and device .*'K', .*'cpu'.*; got"):
            seen.merge(metrics.ClassStatistics().update(draw(*theirs, len(Y), other), Y))
        shape = re.escape(f"{(*ours, 'N', dim)} as before; got {(*theirs, len(Y), other)}")
        with pytest.raises(ValueError, match=f"features must be {shape}"):
            seen.update(draw(*theirs, len(Y), other), Y)
        assert seen.count.sum() == len(Y)


def test_features_so_far_apart_that_their_squares_overflow_are_refused():
    seen = metrics.ClassStatistics().update(Z, Y)
    before = seen.scatter.clone()
    with pytest.raises(ValueError, match="features must differ by less than 1e150; their squared distances overflow"):
        seen.update(1e200 * Z, Y)
    assert torch.equal(seen.scatter, before) and seen.count.sum() == len(Y)
    far = metrics.ClassStatistics().update(torch.full((6, 2), 1e200, dtype=torch.float64), torch.arange(6) % 2)
    assert far.scatter.tolist() == [0, 0]  # far from the origin only


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_labels_may_be_integers_of_any_size(dtype):
    close(metrics.nc1(Z, Y.to(dtype), "pinv"), np_nc1_pinv(Z.numpy(), Y.tolist()))
    close(metrics.nc3(Z, Y.to(dtype), W), np_nc3(Z.numpy(), Y.tolist(), W.numpy()))


def test_there_are_at_most_2_to_the_20_classes():
    assert metrics.ClassStatistics(1).update(Z, SINGLE).num_classes == 1
    metrics.ClassStatistics(1_048_576)
    for wrong in (1_048_577, 0, -1, -5):
        with pytest.raises(ValueError, match=rf"num_classes must be in 1\.\.1048576; got {wrong}"):
            metrics.ClassStatistics(wrong)
    for wrong in (1_048_576, 2_000_000):
        with pytest.raises(ValueError, match=rf"labels must be 0\.\.K-1 .*; got the classes \[{wrong}\]"):
            metrics.ClassStatistics().update(torch.zeros(1, 1), torch.tensor([wrong]))
    with pytest.raises(TypeError, match=r"num_classes must be an integer; got 2\.0"):
        metrics.ClassStatistics(2.0)
    with pytest.raises(TypeError, match="covariance must be True or False; got 1"):
        metrics.ClassStatistics(covariance=1)


def test_the_largest_label_is_one_less_than_the_most_classes():
    seen = metrics.ClassStatistics().update(torch.zeros(1, 1), torch.tensor([1_048_575]))
    assert seen.count.shape == (1_048_576,)


def test_of_many_wrong_labels_twenty_are_named():
    labels = torch.arange(30) * 2
    words = re.escape(f"got the classes {labels[:20].tolist()}")
    with pytest.raises(ValueError, match=f"{words}$"):
        metrics.class_means(torch.zeros(30, 2), labels)
    for wrong in (4, 5, 9):
        with pytest.raises(
            ValueError, match=rf"labels must be 0\.\.3 with every class present; got the classes \[0, {wrong}"
        ):
            metrics.ClassStatistics(4).update(torch.zeros(2, 2), torch.tensor([0, wrong]))


def test_the_pinv_form_drops_the_direction_that_centring_empties_however_noisy_it_is():
    """Samples a billion away on both sides of their mean leave rounding of a 1e-7 in the means."""
    centres, away = draw(3, 5, seed=1), 1e9 * draw(3, 5, seed=2)
    y = torch.arange(3).repeat(2)
    z = torch.cat([centres + away, centres - away])
    centred = (centres - centres.mean(0)).numpy()
    within, between = (m.T @ m / 3 for m in (away.numpy(), centred))
    wanted = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3
    assert float(metrics.nc1(z, y, "pinv")) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("sign", [-1, 1])
def test_the_pinv_form_of_means_on_a_line_looks_along_the_line_alone(sign):
    """Three means that differ in one direction leave rounding in the second one."""
    direction = torch.tensor([0.3, 0.7, 1.1, 0.1], dtype=torch.float64)
    y = torch.arange(30) % 3
    noise = draw(30, 4, seed=5)
    noise -= torch.stack([noise[y == c].mean(0) for c in range(3)])[y]
    z = sign * torch.tensor([0.1, 0.4, 1.3], dtype=torch.float64)[y, None] * direction + noise
    along = noise @ direction / direction.norm()
    between = np.var([0.1, 0.4, 1.3]) * float(direction @ direction)
    for value in (metrics.nc1(z, y, "pinv"), metrics.ClassStatistics(covariance=True).update(z, y).nc1("pinv")):
        assert float(value) == pytest.approx(float(along.square().mean()) / between / 3, rel=1e-9)


def test_coinciding_means_are_infinitely_far_from_collapse_in_every_form():
    z, y = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]]), torch.tensor([0, 0, 1, 1])
    seen = metrics.ClassStatistics(covariance=True).update(torch.stack([z, z + y[:, None], z - y[:, None]]), y)
    for kind, apart in (("trace", 2.5), ("pinv", 1.25), ("cdnv", 0.625)):
        close(seen.nc1(kind), torch.tensor([torch.inf, apart, apart]))
        close(metrics.nc1(z - 3 * y[:, None], y, kind), apart / 9)


def test_a_feature_or_row_of_zeros_has_cosine_0():
    z, y = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]), torch.tensor([0, 0, 1])
    close(metrics.nc3(z, y, torch.tensor([[3.0, 4.0], [0.0, 0.0]])), 1 / 3)
    close(metrics.nc3(z, y, torch.tensor([[4.0, 3.0], [3.0, 4.0]])), (24 / 25 + 1) / 3)


def test_the_nearest_mean_of_two_classes_far_from_the_origin():
    z, y = (
        torch.tensor([[0.0, 0.0], [2.0, 0.0], [9.0, 1.0], [11.0, 1.0]], dtype=torch.float64),
        torch.tensor([0, 0, 1, 1]),
    )
    points = torch.tensor([[5.4, 0.5], [5.6, 0.5], [-30.0, 7.0], [40.0, -90.0], [5.45, 0.99], [5.55, 0.01]])
    for offset in (0.0, 1e3, 2.0**30):
        seen = metrics.ClassStatistics().update(z + offset, y)
        # By hand: the border goes through (5.5, 0.5) at right angles to (9, 1).
        assert seen.nearest(points.double() + offset).tolist() == [0, 1, 0, 1, 1, 0]


def test_distances_along_a_basis_are_those_of_its_definition():
    z, y = draw(3, 11, 5), torch.tensor([0, 1, 2, 1, 0, 2, 2, 1, 1, 1, 2])
    seen = streamed(z, y, (4, 6))
    basis, points, labels = draw(3, 2, 5, seed=1), draw(3, 6, 5, seed=2), torch.tensor([2, 1, 1, 2, 1, 1])
    found = seen.spread_along(basis, points.requires_grad_(), labels)
    assert found.shape == (3,) and not found.requires_grad
    for run in range(3):
        means = np_means(z[run].numpy(), y.tolist())
        along = (points[run].detach().numpy() - means[labels]) @ basis[run].numpy().T
        close(found[run], (along**2).sum())
    assert seen.spread_along(basis, points[:, :0], labels[:0]).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (ValueError, r"features must be \(3, N, 5\) as what was seen; got \(3, 6, 4\)", {"features": (3, 6, 4)}),
        (ValueError, r"features must be \(3, N, 5\) as what was seen; got \(3, 6, 6\)", {"features": (3, 6, 6)}),
        (ValueError, r"features must be \(3, N, 5\) as what was seen; got \(2, 6, 5\)", {"features": (2, 6, 5)}),
        (ValueError, r"features must be \(3, N, 5\) as what was seen; got \(4, 6, 5\)", {"features": (4, 6, 5)}),
        (ValueError, r"features must be \(3, N, 5\) as what was seen; got \(6, 5\)", {"features": (6, 5)}),
        (ValueError, r"features must be \(3, N, 5\) as what was seen; got \(1, 3, 6, 5\)", {"features": (1, 3, 6, 5)}),
        (ValueError, r"basis must be \(3, N, 5\) as what was seen; got \(3, 2, 4\)", {"basis": (3, 2, 4)}),
        (ValueError, r"labels must be \(6,\) integers; got Tensor of torch.int64, shape \(5,\)", {"labels": [0] * 5}),
        (ValueError, r"labels must be \(6,\) integers; got Tensor of torch.int64, shape \(7,\)", {"labels": [0] * 7}),
        (ValueError, r"labels must be \(6,\) integers; got Tensor of torch.float32", {"labels": [0.0] * 6}),
        (ValueError, r"labels must be \(6,\) integers; got Tensor of torch.bool", {"labels": [True] * 6}),
        (ValueError, r"labels must be 0\.\.2; got 1\.\.3", {"labels": [1, 1, 1, 2, 3, 1]}),
        (ValueError, r"labels must be 0\.\.2; got 0\.\.7", {"labels": [0, 0, 0, 0, 0, 7]}),
        (ValueError, r"labels must be 0\.\.2; got -1\.\.2", {"labels": [0, -1, 2, 0, 0, 0]}),
        (ValueError, r"labels must be 0\.\.2; got -4\.\.2", {"labels": [0, -4, 2, 0, 0, 0]}),
        (TypeError, "features must be a tensor; got", {"features": None}),
        (TypeError, "basis must be a tensor; got", {"basis": None}),
        (TypeError, "labels must be a tensor; got", {"labels": None}),
    ],
)
def test_distances_along_a_basis_refuse(error, words, change):
    seen = metrics.ClassStatistics().update(draw(3, 9, 5), torch.arange(9) % 3)
    given = {"basis": (3, 2, 5), "features": (3, 6, 5), "labels": [0, 1, 2, 1, 1, 2]} | change
    made = {k: v if v is None else torch.tensor(v) if k == "labels" else draw(*v) for k, v in given.items()}
    with pytest.raises(error, match=words):
        seen.spread_along(**made)
    if "features" in change:
        with pytest.raises(error, match=words):
            seen.nearest(made["features"])


# --- refusals on either side of what is allowed


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: metrics.class_means(draw(2, 9, 3), torch.arange(8) % 3),
            r"N = 9 as in features \(2, 9, 3\); got shape \(8,\)",
        ),
        (
            lambda: metrics.class_means(draw(2, 9, 3), torch.arange(10) % 3),
            r"N = 9 as in features .*; got shape \(10,\)",
        ),
        (lambda: metrics.class_means(draw(9, 3), torch.zeros(9, 1, dtype=torch.int64)), r"got shape \(9, 1\)"),
        (lambda: metrics.nc1(Z, Y, None), "kind must be one of 'trace', 'pinv', 'cdnv'; got None"),
        (lambda: metrics.nc1(Z, Y, ["trace"]), r"kind must be one of 'trace', 'pinv', 'cdnv'; got \['trace'\]"),
        (lambda: metrics.equinorm(Z, Y, "condition"), "kind must be one of 'etf', 'orthogonal'; got 'condition'"),
        (lambda: metrics.nc3(Z, Y, draw(5, 5)), r"weight must be \(\.\.\., K, d\) = \(\.\.\., 4, 5\); got \(5, 5\)"),
        (lambda: metrics.nc3(Z, Y, draw(4, 6)), r"weight must be \(\.\.\., K, d\) = \(\.\.\., 4, 5\); got \(4, 6\)"),
        (lambda: metrics.nc3(draw(2, 23, 5), Y, draw(2, 4, 4)), r"= \(\.\.\., 4, 5\); got \(2, 4, 4\)"),
        (lambda: metrics.nc3(draw(3, 23, 5), Y, draw(2, 4, 5)), r"leading dimensions \(3,\), .* features; got \(2,\)"),
        (lambda: metrics.nc3(draw(2, 23, 5), Y, draw(3, 4, 5)), r"leading dimensions \(2,\), .* features; got \(3,\)"),
        (lambda: metrics.nc3(draw(4, 2, 23, 5), Y, draw(3, 2, 4, 5)), r"dimensions \(4, 2\), .*; got \(3, 2\)"),
        (lambda: metrics.imbalance(draw(4, 5), draw(4)), r"got weight \(4, 5\), next_weight \(4,\)"),
        (lambda: metrics.imbalance(draw(4), draw(3, 4)), r"got weight \(4,\), next_weight \(3, 4\)"),
        (lambda: metrics.imbalance(draw(4, 5), draw(3, 3)), r"got weight \(4, 5\), next_weight \(3, 3\)"),
        (lambda: metrics.imbalance(draw(2, 4, 5), draw(2, 3, 5)), r"got weight \(2, 4, 5\), next_weight \(2, 3, 5\)"),
        (lambda: metrics.condition_number(draw(3, 2), rank=-3), "rank must be at least 1; got -3"),
        (lambda: metrics.numerical_rank(draw(3, 2), -0.5), r"tolerance must be in \[0, 1\); got -0.5"),
        (lambda: metrics.numerical_rank(draw(3, 2), 1.5), r"tolerance must be in \[0, 1\); got 1.5"),
        (lambda: metrics.operator_norm(draw(3)), r"matrix must be \(\.\.\., m, n\), not empty; got shape \(3,\)"),
        (lambda: metrics.operator_norm(draw(0, 3)), r"not empty; got shape \(0, 3\)"),
        (
            lambda: metrics.operator_norm(draw(2, 3) / 0),
            "matrix must be finite and below 1e150; its squares are NaN or",
        ),
        (lambda: metrics.operator_norm(1e160 * draw(2, 3)), "matrix must be finite and below 1e150"),
        (lambda: metrics.stable_rank(draw(0, 3)), r"matrix must not be empty; got shape \(0, 3\)"),
        (lambda: metrics.numerical_rank(draw(3)), r"matrix must be \(\.\.\., m, n\); got shape \(3,\)"),
    ],
)
def test_values_next_to_what_is_allowed_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: metrics.condition_number(W, 1.5), "rank must be an integer; got 1.5"),
        (lambda s: metrics.numerical_rank(W, "0.1"), "tolerance must be a number; got '0.1'"),
        (lambda s: s.numerical_rank("0.1"), "tolerance must be a number; got '0.1'"),
        (lambda s: metrics.ClassStatistics().numerical_rank("0.1"), "tolerance must be a number; got '0.1'"),
        (lambda s: metrics.operator_norm(W.numpy()), "matrix must be a tensor; got ndarray"),
        (lambda s: s.nearest(Z.numpy()), "features must be a tensor; got ndarray"),
    ],
)
def test_values_of_another_type_are_refused(call, words):
    with pytest.raises(TypeError, match=words):
        call(metrics.ClassStatistics().update(Z, Y))


def test_values_at_the_ends_of_what_is_allowed():
    close(metrics.condition_number(draw(3, 2), rank=1), 1.0)
    assert metrics.numerical_rank(draw(3, 2), 0.0) == 2 and metrics.numerical_rank(draw(3, 2), 0.999999) == 1
    diagonal = torch.diag(torch.tensor([1.0, 1.1e-3, 0.9e-3], dtype=torch.float64))
    assert metrics.numerical_rank(diagonal) == 2  # a thousandth of the largest
    seen = metrics.ClassStatistics().update(diagonal, torch.arange(3))
    assert seen.numerical_rank() == 2
    assert metrics.class_means(torch.tensor([[3.0]]), torch.tensor([0])).tolist() == [[3.0]]
    assert metrics.nc3(draw(1, 23, 5), Y, draw(3, 4, 5)).shape == (3,)


class OnGPU(torch.Tensor):
    """A tensor in ordinary memory that says that it is on a GPU."""

    is_cuda = property(lambda self: True)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_samples_are_added_by_class_on_a_gpu_as_on_a_processor(lead):
    y = torch.tensor([1, 0, 3, 3, 1, 1])
    for shape, dim in (((4, 5), -2), ((4,), -1)):
        values = draw(*lead, 6, 5) if dim == -2 else draw(*lead, 6)
        start = draw(*lead, *shape, seed=1)
        here, there = start.clone(), start.clone().as_subclass(OnGPU)
        metrics._add_by_class(here, values, y, dim)
        metrics._add_by_class(there, values, y, dim)
        close(there.as_subclass(torch.Tensor), here)
        wanted = start.movedim(dim, 0).clone()
        for c, value in zip(y, values.movedim(dim, 0), strict=True):
            wanted[c] += value
        close(here, wanted.movedim(0, dim))
