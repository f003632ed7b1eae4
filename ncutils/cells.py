"""One cell of a sweep: the runs of one network on one data set, trained together, kept on disk once done.

A cell is a frozen description. Its key is a hash of that description, of the code that would compute it, of the data
and of the torch version: a stored result is used exactly when computing it again would give the same.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ncutils import data, metrics, networks, training

__all__ = ["Cell", "cache_dir", "code_hash", "one_thread", "read", "solve", "write"]

# What a stored result depends on. Comments and docstrings do not count (see code_hash).
CODE = ("data", "metrics", "networks", "training", "cells")
COLUMNS = (
    *("run", "seed", "lr", "weight_decay", "split", "step", "epoch", "layer", "part"),
    *("nc1", "nc2", "nc3", "nc4", "negativity", "balancedness", "balancedness_relative", "condition"),
    *("loss", "error", "accuracy"),
)
STORED = {"mnist5k": 4000, "cifar10_small": 800, "mnist": 60000, "fashion_mnist": 60000, "cifar10": 50000}


PRECISIONS = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Cell:
    """The runs of one network: run r has seed ``seeds[r]``, step size ``lr[r]``, weight decay ``weight_decay[r]``.

    Attributes:
        data: name for :func:`ncutils.data.load`.
        samples: training samples; all of them as stored if the set has no more, else balanced over the classes.
        test_samples: test samples, balanced; 0 to measure on the training samples alone.
        measured: training samples to measure on, the first of each class; None for all.
        size: side that images are averaged down to; None leaves them as they are.
        network: ``"mlp"`` or ``"resnet20"``.
        num_nonlinear: dense ReLU layers.
        num_linear: linear layers behind them.
        width: of the hidden dense layers.
        epochs: passes over the training samples.
        batch_size, momentum, warmup_steps, drop_at, measurements: see :class:`ncutils.training.TrainingConfig`.
        class_means: keep the inner products of the class means of every layer at the last step.
        precision: of weights, data and arithmetic, ``"float32"`` or ``"float64"``.
        device: ``"cpu"`` or ``"cuda"``.
    """

    data: str
    samples: int
    test_samples: int
    measured: int | None
    size: int | None
    network: str
    num_nonlinear: int
    num_linear: int
    width: int
    seeds: tuple[int, ...]
    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    epochs: int
    batch_size: int
    momentum: float
    warmup_steps: int
    drop_at: float
    measurements: int
    class_means: bool
    precision: str
    device: str

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}; got {self.precision!r}")

    @property
    def steps(self) -> int:
        return self.epochs * (self.samples // self.batch_size)

    @property
    def config(self) -> training.TrainingConfig:
        return training.TrainingConfig(
            steps=self.steps,
            lr=self.lr,
            weight_decay=self.weight_decay,
            momentum=self.momentum,
            batch_size=self.batch_size,
            warmup_steps=self.warmup_steps,
            drop_at=self.drop_at,
            measurements=self.measurements,
        )

    def load(self) -> tuple[data.Classification, data.Classification | None]:
        """Training and test set on the cell's device, flat for an MLP."""
        flat, dtype = self.network == "mlp", PRECISIONS[self.precision]
        return _load(self.data, self.samples, self.test_samples, self.size, flat, dtype, self.device)

    def build(self, train: data.Classification) -> networks.MLP | networks.ResNet20:
        """The untrained network."""
        common = dict(
            num_nonlinear=self.num_nonlinear,
            num_linear=self.num_linear,
            width=self.width,
            seeds=self.seeds,
            dtype=PRECISIONS[self.precision],
            device=self.device,
        )
        if self.network == "mlp":
            return networks.MLP(train.x.shape[1], train.num_classes, **common)
        return networks.ResNet20(train.x.shape[1], train.num_classes, **common)

    def key(self) -> str:
        """16 hex digits that name the result."""
        what = (asdict(self), code_hash(), self.checksum(), torch.__version__)
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

    def checksum(self) -> str:
        """16 hex digits that name the data."""
        return _checksum(self.data, self.samples, self.test_samples, self.size)

    def compute(self, checkpoint: Path | None = None, progress: bool = False):
        """Train and measure: a tidy frame, one row per (run, split, step, layer).

        Columns beside those of :func:`ncutils.training.measure_layers`: ``split`` (``"train"`` or ``"test"``),
        ``epoch``, ``diverged`` (the run left the finite numbers; its rows stop before) and, where the cell asks for it,
        ``class_gram`` (inner products of the K class means of the pre-activations, K·K numbers). A ResNet20 has a
        layer 0 as well, what its backbone hands to the dense layers.
        """
        train, test = self.load()
        network = self.build(train)
        seen = {"train": train if self.measured is None else _first(train, self.measured)}
        if test is not None:
            seen["test"] = test
        measure = partial(_measure, seen=seen, gram_at=self.steps if self.class_means else None)
        with one_thread(self.device):
            result = training.train(
                network, train, self.config, measure=measure, checkpoint=checkpoint, progress=progress
            )
        frame = result.frame
        frame = frame.reindex(columns=list(dict.fromkeys([*COLUMNS, *frame.columns])))  # one layer has no pairs
        frame["epoch"] = frame["step"] / (self.samples // self.batch_size)
        frame["diverged"] = frame["run"].isin([d.run for d in result.diverged])
        frame.attrs = {"seconds": round(result.seconds, 1)}
        return frame


def solve(cell: Cell, key: str, folder: Path | None):
    """The cell's result, from ``folder`` or computed and then stored there."""
    frame = read(folder, key)
    if frame is not None:
        return frame
    checkpoint = None
    if folder is not None:
        _make(folder)
        checkpoint = folder / f"{key}.checkpoint"
    frame = cell.compute(checkpoint)
    if folder is not None:
        write(frame, folder / f"{key}.parquet")
        checkpoint.unlink(missing_ok=True)
    return frame


def read(folder: Path | None, key: str):
    """A stored result, or None; one that cannot be read counts as not there."""
    import pandas as pd

    if folder is None or not (path := folder / f"{key}.parquet").exists():
        return None
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError
        return None


def write(frame, path: Path) -> None:
    """Store a frame as parquet: a reader sees the old file or the whole new one.

    Raises:
        OSError: naming the file that could not be written; no part of it is left.
    """
    _make(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        frame.to_parquet(temporary, compression="zstd", index=False)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"could not make the folder {folder}: {error.strerror or error}") from error


def cache_dir() -> Path | None:
    """Where results of cells are kept: $NCUTILS_CACHE ("off": nowhere), else _build/cache of a checkout, else
    ~/.cache/ncutils/cells."""
    if setting := os.environ.get("NCUTILS_CACHE"):
        return None if setting == "off" else Path(setting).expanduser()
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").exists():
        return checkout / "_build" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ncutils" / "cells"


@functools.cache
def code_hash() -> str:
    """16 hex digits of the code behind a result: the modules in CODE, comments and docstrings left out."""
    sources = [Path(__file__).with_name(f"{name}.py").read_text(encoding="utf-8") for name in CODE]
    return hashlib.sha256("".join(map(_syntax, sources)).encode()).hexdigest()[:16]


def _syntax(source: str) -> str:
    """What a module says to Python: its syntax tree without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """On a CPU two cells side by side beat one cell with two threads, and one thread gives the same bits each time."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measure(network, train, step, seen, gram_at) -> list[dict]:
    rows = []
    for split, samples in seen.items():
        part = training.measure_layers(network, samples, step)
        if isinstance(network, networks.ResNet20):
            part += _backbone_rows(network, samples, part)
        if step == gram_at and split == "train":
            _add_class_gram(network, samples, part)
        rows += [{"split": split, **row} for row in part]
    return rows


def _backbone_rows(network, samples, dense_rows) -> list[dict]:
    """Layer 0: the features that the dense layers read, which measure_layers leaves out."""
    rows = []
    whole = {row["run"]: row for row in dense_rows}
    for run, backbone in enumerate(network.backbones):
        was_training = backbone.training
        backbone.eval()
        with torch.no_grad():
            chunks = samples.x.contiguous(memory_format=torch.channels_last).split(2000)
            z = torch.cat([backbone(chunk) for chunk in chunks])
        backbone.train(was_training)
        row = {key: whole[run][key] for key in ("run", "step", "loss", "error", "accuracy")}
        row |= {"layer": 0, "part": "backbone", "nc1": metrics.nc1(z, samples.y), "nc2": metrics.nc2(z, samples.y)}
        if network.num_layers == 1:  # Z_0 is then Z_{L-1}
            weight = network.weights[0][run]
            row |= {"nc3": metrics.nc3(z, samples.y, weight), "nc4": metrics.nc4(z, samples.y, weight)}
        rows.append({key: float(value) if isinstance(value, torch.Tensor) else value for key, value in row.items()})
    return rows


def _add_class_gram(network, samples, rows) -> None:
    with torch.no_grad():
        pre = network.layers(samples.x).pre
    grams = []
    for z in pre:
        means = metrics.class_means(z, samples.y)
        grams.append((means @ means.mT).flatten(-2).to("cpu", torch.float32).numpy())
    for row in rows:
        if row["layer"] >= 1:
            row["class_gram"] = grams[row["layer"] - 1][row["run"]]


def _first(samples: data.Classification, count: int) -> data.Classification:
    each = count // samples.num_classes
    chosen = [torch.nonzero(samples.y == c).flatten()[:each] for c in range(samples.num_classes)]
    index = torch.cat(chosen)
    return replace(samples, x=samples.x[index], y=samples.y[index])


def _load(name, samples, test_samples, size, flat, dtype, device):
    train, test = _images(name, samples, test_samples, size, dtype)
    if flat:
        train, test = _flat(name, samples, test_samples, size, dtype)
    if device == "cpu":
        return train, test
    return train.to(device), None if test is None else test.to(device)


@functools.lru_cache(maxsize=1)
def _flat(name, samples, test_samples, size, dtype):
    train, test = _images(name, samples, test_samples, size, dtype)
    flat = train.flat()
    return flat, None if test is None else test.flat(like=flat)


@functools.lru_cache(maxsize=1)
def _images(name, samples, test_samples, size, dtype):
    train = data.load(name, _per_class(name, samples), "train", dtype=dtype)
    test = data.load(name, test_samples // 10, "test", dtype=dtype) if test_samples else None
    if size is not None:
        train, test = train.downsample(size), None if test is None else test.downsample(size)
    return train, test


def _per_class(name: str, samples: int) -> int | str:
    if samples == STORED[name]:
        return "all"
    if samples % 10 or not 0 < samples < STORED[name]:
        raise ValueError(f"samples of {name} must be {STORED[name]} or a smaller multiple of 10; got {samples}")
    return samples // 10


@functools.cache
def _checksum(name, samples, test_samples, size) -> str:
    parts = _images(name, samples, test_samples, size, torch.float32)
    digest = hashlib.sha256()
    for part in parts:
        digest.update(b"-" if part is None else part.checksum().encode())
    return digest.hexdigest()[:16]
