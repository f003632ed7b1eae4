"""One job of a sweep: the runs of one network on one data set, trained together, kept on disk once done.

A job is a frozen description. Its key is a hash of that description, of the code that would compute it, of the data
and of the torch version: a stored result is used exactly when computing it again would give the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path

import torch

from ncutils import _files, data, metrics, networks, training
from ncutils._arguments import anything, check_fields, integer, shown
from ncutils.data import Dataset
from ncutils.experiments import custom, fingerprint
from ncutils.training import TrainingConfig

PACKAGE = Path(__file__).resolve().parents[1]
# What a stored result depends on, as far as it is there.
CODE = ("data.py", "metrics.py", "networks.py", "training.py", "experiments/jobs.py")
# And one with code of your own besides.
CODE_OF_OWN = ("_measure.py", "_plain.py", "experiments/custom.py", "experiments/fingerprint.py")
COLUMNS = (
    *("run", "seed", "lr", "weight_decay", "split", "step", "epoch", "layer", "part"),
    *("nc1", "nc2", "nc3", "nc4", "negativity", "balancedness", "balancedness_relative", "condition"),
    *("loss", "error", "accuracy"),
)
STORED = {"mnist5k": 4000, "cifar10_small": 800, "mnist": 60000, "fashion_mnist": 60000, "cifar10": 50000}
NETWORKS = ("mlp", "resnet20")


def code_on_disk(names: tuple[str, ...] = CODE) -> str:
    """16 hex digits of the code behind a result as the files hold it now."""
    paths = [PACKAGE / name for name in names if (PACKAGE / name).exists()]
    return _files.digest(*(_files.syntax(path.read_text(encoding="utf-8")) for path in paths))


# Read when this module is imported, for what computes is what was imported: a kernel whose files are edited later
# must not store the old code's results under the new code's key.
_CODE_HASH, HASH_OF_OWN = code_on_disk(), code_on_disk(CODE_OF_OWN)

Own = Dataset | tuple | Callable


def code_hash() -> str:
    """16 hex digits of the code behind a result, comments and docstrings left out, as it was when imported."""
    return _CODE_HASH


@dataclass(frozen=True)
class DataConfig:
    """Which samples to train and measure on.

    Attributes:
        source: a name for :func:`ncutils.data.load`; or your own: a :class:`ncutils.data.Dataset`, a pair of them
            (training, test), or a function without arguments that returns either.
        samples: training samples of a named set, all of them or balanced over the classes; None for all.
        test_samples: test samples of a named set, balanced; 0 to measure on the training samples alone.
        measured: training samples to measure on, the first of each class; None for all.
        size: side that images are averaged down to; None leaves them as they are.

    Example:
        >>> DataConfig("mnist5k", samples=500).count, DataConfig("mnist5k").count
        (500, 4000)
    """

    source: str | Own
    samples: int | None = None
    test_samples: int = 0
    measured: int | None = None
    size: int | None = None

    def __post_init__(self) -> None:
        least = {"samples": 1, "test_samples": 0, "measured": 1, "size": 1}
        check_fields(self, source=anything, **{name: integer(least=value) for name, value in least.items()})
        if isinstance(self.source, str):
            if self.source not in STORED:
                raise ValueError(f"data must be one of {', '.join(STORED)}, or your own; got {self.source!r}")
            if self.samples is None:
                object.__setattr__(self, "samples", STORED[self.source])
            if self.measured is not None and self.samples is not None and self.measured > self.samples:
                raise ValueError(f"measured must be at most the {self.samples} samples, or None; got {self.measured}")
        elif not (isinstance(self.source, (Dataset, tuple)) or callable(self.source)) or isinstance(
            self.source, torch.nn.Module
        ):
            raise TypeError(f"data must be a Dataset, a pair of them or a function; got {shown(self.source)}")
        elif self.samples is not None or self.test_samples:
            raise ValueError("samples and test_samples must be left out with data of your own, which are used whole")

    @property
    def count(self) -> int:
        """Training samples."""
        return self.samples or len(_images(self, torch.float32)[0].y)

    @property
    def name(self) -> str:
        """Name of the set; that of data of your own ends in their checksum."""
        if isinstance(self.source, str):
            return self.source
        return f"{_images(self, torch.float32)[0].name}:{self.checksum()}"

    def checksum(self) -> str:
        """16 hex digits that name the samples."""
        return _checksum(replace(self, measured=None))


@dataclass(frozen=True)
class NetworkConfig:
    """Kind (``"mlp"`` or ``"resnet20"``), dense ReLU layers, linear layers behind them, width of the hidden ones.

    In the place of a kind a function of your own: ``make(num_nonlinear=..., num_linear=..., width=...) -> nn.Module``.

    Example:
        >>> NetworkConfig("mlp", num_nonlinear=5, num_linear=4).width
        64
    """

    kind: str | Callable = field(hash=False)
    num_nonlinear: int
    num_linear: int
    width: int = 64

    def __post_init__(self) -> None:
        if self.kind not in NETWORKS and not callable(self.kind):
            known = ", ".join(NETWORKS)
            raise ValueError(f"network must be one of {known}, or a function that makes one; got {self.kind!r}")


@dataclass(frozen=True)
class Job:
    """The runs of one network: run r has seed ``seeds[r]``, step size ``training.lr[r]`` and so on.

    Attributes:
        data: the samples.
        network: the architecture.
        training: everything about how it is trained, precision included.
        seeds: one a run.
        class_grams: keep the inner products of the class means of every layer at the last step.
        device: ``"cpu"`` or ``"cuda"``.
        loss, optimizer: of your own, see :class:`ncutils.experiments.Specification`.

    Example:
        >>> from ncutils.experiments import specification
        >>> job = specification("1").jobs()[0]
        >>> job.network.num_linear, job.seeds, job.steps, len(job.key())
        (3, (0,), 5000, 16)
    """

    data: DataConfig
    network: NetworkConfig
    training: TrainingConfig
    seeds: tuple[int, ...]
    class_grams: bool = False
    device: str = "cpu"
    loss: Callable | None = field(default=None, hash=False)
    optimizer: Callable | None = field(default=None, hash=False)

    @property
    def own(self) -> bool:
        """Whether code of your own takes part, and the plain engine trains."""
        return callable(self.network.kind) or self.loss is not None or self.optimizer is not None

    @property
    def config(self) -> TrainingConfig:
        """The training with its number of steps."""
        return self.training.for_samples(self.data.count)

    @property
    def steps(self) -> int:
        return self.config.total

    @property
    def dtype(self) -> torch.dtype:
        """Of weights, data and arithmetic."""
        return torch.float64 if self.training.precision == "float64" else torch.float32

    def load(self) -> tuple[Dataset, Dataset | None]:
        """Training and test set on the job's device, flat for an MLP."""
        read = _flat if self.network.kind == "mlp" else _images
        train, test = read(replace(self.data, measured=None), self.dtype)
        if self.device == "cpu":
            return train, test
        return train.to(self.device), None if test is None else test.to(self.device)

    def build(self, train: Dataset) -> torch.nn.Module:
        """The untrained network."""
        if callable(self.network.kind):
            return custom.build(self, train)
        kind = networks.MLP if self.network.kind == "mlp" else networks.ResNet20
        return kind(
            train.x.shape[1],
            train.num_classes,
            num_nonlinear=self.network.num_nonlinear,
            num_linear=self.network.num_linear,
            width=self.network.width,
            seeds=self.seeds,
            dtype=self.dtype,
            device=self.device,
        )

    @property
    def library(self) -> str:
        """Hash of the library's code behind the result, as it was when imported here."""
        return code_hash() + (HASH_OF_OWN if self.own else "")

    def own_code(self) -> str:
        """16 hex digits of the network, loss and optimizer of your own; "" without any."""
        return fingerprint.fingerprint(self.network.kind, self.loss, self.optimizer) if self.own else ""

    def key(self, own_code: str | None = None) -> str:
        """16 hex digits that name the result; ``own_code`` where it is known already."""
        parts = {part: values(getattr(self, part)) for part in ("network", "training")}
        parts["data"] = values(self.data) | {"source": self.data.name}
        code = self.library
        if self.own:
            code += self.own_code() if own_code is None else own_code
            parts["network"] |= {"kind": custom.name(self.network.kind)}
        what = (parts, self.seeds, self.class_grams, self.device, code, self.data.checksum(), torch.__version__)
        return _files.digest(json.dumps(what))

    def compute(self, checkpoint: Path | None = None, progress: bool = False):
        """Train and measure: a tidy frame, one row per (run, split, step, layer).

        Columns beside those of :func:`ncutils.training.measure_layers`: ``split`` (``"train"`` or ``"test"``),
        ``epoch``, ``diverged`` (the run left the finite numbers; its rows stop before) and, where the job asks for it,
        ``class_gram`` (inner products of the K class means of the pre-activations, K·K numbers). A ResNet20 has a
        layer 0 as well, what its backbone hands to the dense layers.
        """
        train, test = self.load()
        config, count = self.config, len(train.y)
        seen = {"train": train if self.data.measured is None else _first(train, self.data.measured)}
        if test is not None:
            seen["test"] = test
        with one_thread(self.device):
            if self.own:
                result = custom.train(self, train, seen, progress)
            else:
                network, measure = self.build(train), partial(self.measure, seen=seen)
                how = {"checkpoint": checkpoint, "progress": progress}
                result = training.train(network, train, config, measure=measure, **how)  # type: ignore[arg-type]
        frame = result.frame
        frame = frame.reindex(columns=list(dict.fromkeys([*COLUMNS, *frame.columns])))  # one layer has no pairs
        frame["epoch"] = frame["step"] / (count // (config.batch_size or count))
        frame["diverged"] = frame["run"].isin([d.run for d in result.diverged])
        frame.attrs = {"seconds": round(result.seconds, 1)}
        return frame

    def _own_loss(self, network, samples) -> float:
        """The loss of your own on a library's network of one run, in evaluation mode."""
        was_training = network.training
        with torch.no_grad():
            value = float(self.loss(network.eval()(samples.x)[0], samples.y))  # type: ignore[misc]
        network.train(was_training)
        return value

    def measure(self, network, train, step: int, seen) -> list[dict]:
        """The rows of one step, of every set in ``seen``."""
        rows = []
        for split, samples in seen.items():
            if callable(self.network.kind):
                shape = self.network.num_nonlinear, self.network.num_linear
                part = custom.measure(network, samples, step, self.loss, *shape)
            else:
                part = training.measure_layers(network, samples, step)
            if self.loss is not None and not callable(self.network.kind):
                part = [row | {"loss": self._own_loss(network, samples)} for row in part]
            if isinstance(network, networks.ResNet20):
                part += _backbone_rows(network, samples, part)
            if self.class_grams and step == self.steps and split == "train":
                _add_class_gram(network, samples, part)
            rows += [{"split": split, **row} for row in part]
        return rows


def values(config) -> dict:
    """The fields of a dataclass and what they hold, the contents as they are."""
    return {part.name: getattr(config, part.name) for part in fields(config)}


def solve(job: Job, key: str, folder: Path | None):
    """The job's result, from ``folder`` or computed and then stored there."""
    frame = read(folder, key)
    if frame is not None:
        return frame
    checkpoint: Path | None = None
    if folder is not None:
        make(folder)
        checkpoint = folder / f"{key}.checkpoint"
    before = job.own_code()
    frame = job.compute(checkpoint)
    if job.own_code() != before:  # a loss that counts, a list that grows: the next run would not be this one
        frame.attrs["changed"] = True
    elif folder is not None and checkpoint is not None:
        write(frame, folder / f"{key}.parquet", key=key, seconds=frame.attrs["seconds"])
        checkpoint.unlink(missing_ok=True)
    return frame


def make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"could not make the folder {folder}: {error.strerror or error}") from error


def read(folder: Path | None, key: str):
    """A stored result, or None; a damaged one is set aside with a warning and counts as not there."""
    if folder is None or not (path := folder / f"{key}.parquet").exists():
        return None
    try:
        frame, about = read_table(path)
        if about.get("key") != key:
            raise ValueError(f"it holds {about.get('key')}")
    except Exception as error:  # pyarrow raises whatever a flipped bit leads it to
        _files.check_readable(error)
        _files.set_aside(path, error)
        return None
    frame.attrs = {"seconds": about["seconds"]}
    return frame


def write(frame, path: Path, **about) -> None:
    """Store a frame as parquet; its metadata hold ``about``, the rows, the columns and a hash of it all.

    Raises:
        OSError: naming the file that could not be written; no part of it is left.
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    about |= {"rows": table.num_rows, "columns": table.column_names}
    about["sha256"] = _content(table, about)
    table = table.replace_schema_metadata({"ncutils": json.dumps(about)})
    with _files.atomic(path) as temporary:
        pyarrow.parquet.write_table(table, temporary, compression="zstd")


def read_table(path: Path):
    """The frame that :func:`write` stored and what it said about it.

    Raises:
        ValueError, or what pyarrow raises: the file is not what was written.
    """
    import pyarrow.parquet

    with pyarrow.memory_map(str(path)) as source:  # a table's own columns, whatever pandas would add
        table = pyarrow.parquet.read_table(source)
    about = json.loads((table.schema.metadata or {}).get(b"ncutils", b"{}"))
    table = table.replace_schema_metadata(None)
    wanted = about.pop("sha256", None)
    if wanted is None:
        raise ValueError("it carries no checksum")
    if (table.num_rows, table.column_names) != (about["rows"], about["columns"]) or _content(table, about) != wanted:
        raise ValueError("its contents are not those that were written")
    return table.to_pandas(), about


def _content(table, about: dict) -> str:
    # parquet calls the items of a list "element"
    kinds = {name: str(table[name].type).replace("element:", "item:") for name in table.column_names}
    columns = ((name, kind, table[name].to_pylist()) for name, kind in kinds.items())
    return _files.digest(json.dumps(about, sort_keys=True), *(json.dumps(column) for column in columns))


@contextlib.contextmanager
def one_thread(device: str) -> Iterator[None]:
    """On a CPU two jobs side by side beat one job with two threads, and one thread gives the same bits each time."""
    with training.one_thread() if device == "cpu" else contextlib.nullcontext():
        yield


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


def _first(samples: Dataset, count: int) -> Dataset:
    if count < samples.num_classes:
        raise ValueError(f"measured must be at least one a class, {samples.num_classes}; got {count}")
    if count % samples.num_classes:
        raise ValueError(f"measured must be a multiple of the {samples.num_classes} classes; got {count}")
    each = count // samples.num_classes
    if (rarest := int(samples.y.bincount().min())) < each:
        raise ValueError(f"measured must be at most {rarest} a class, what the rarest has; got {each} a class")
    chosen = [torch.nonzero(samples.y == c).flatten()[:each] for c in range(samples.num_classes)]
    index = torch.cat(chosen)
    return replace(samples, x=samples.x[index], y=samples.y[index])


def _named_alone(function):
    """Keep the last result for a named set. Tensors of your own can change in place: they are looked at every time."""
    kept = functools.lru_cache(maxsize=1)(function)

    @functools.wraps(function)
    def call(config: DataConfig, *rest):
        return (kept if isinstance(config.source, str) else function)(config, *rest)

    call.cache_clear = kept.cache_clear  # type: ignore[attr-defined]
    return call


@_named_alone
def _flat(config: DataConfig, dtype: torch.dtype) -> tuple[Dataset, Dataset | None]:
    train, test = _images(config, dtype)
    flat = train.flat()
    return flat, None if test is None else test.flat(like=flat)


@_named_alone
def _images(config: DataConfig, dtype: torch.dtype | None) -> tuple[Dataset, Dataset | None]:
    """Training and test set, of that type; None leaves tensors of your own in theirs."""
    if isinstance(config.source, str):
        kind = dtype or torch.float32
        train = data.load(config.source, _per_class(config.source, config.count), "train", dtype=kind)
        if len(train) != config.count:
            raise ValueError(
                f"data: {config.source} must hold {config.count:,} training samples; got {len(train):,}: "
                f"delete the file in {data.data_root()} and run `python -m ncutils data {config.source}`"
            )
        if config.test_samples % 10:
            raise ValueError(f"test_samples of {config.source} must be a multiple of 10; got {config.test_samples}")
        count = config.test_samples // 10
        test = data.load(config.source, count, "test", dtype=kind) if config.test_samples else None
    else:
        made = _called(config.source) if callable(config.source) else config.source
        parts = made if isinstance(made, tuple) else (made, None)
        if len(parts) != 2 or not all(isinstance(p, Dataset) for p in parts[: 1 + (parts[-1] is not None)]):
            raise TypeError(f"data must be a Dataset, a pair of them or a function returning either; got {made!r}")
        train, test = parts[0].checked(), parts[1]
        test = None if test is None else test.checked()
        if dtype is not None:
            train, test = train.to(dtype=dtype), None if test is None else test.to(dtype=dtype)
    if config.size is not None:
        train, test = train.downsample(config.size), None if test is None else test.downsample(config.size)
    return train, test


@functools.lru_cache(maxsize=1)
def _called(source: Callable):
    """What the function returns: it may load something large, and is asked for by every job."""
    return source()


def _per_class(name: str, samples: int) -> int | str:
    if samples == STORED[name]:
        return "all"
    if samples % 10 or not 0 < samples < STORED[name]:
        raise ValueError(f"samples of {name} must be {STORED[name]} or a smaller multiple of 10; got {samples}")
    return samples // 10


def _checksum(config: DataConfig) -> str:
    if isinstance(config.source, str):
        return _checksum_of_named(config)
    return _files.digest(*("-" if part is None else part.checksum() for part in _images(config, None)))


@functools.cache
def _checksum_of_named(config: DataConfig) -> str:
    return _files.digest(*("-" if part is None else part.checksum() for part in _images(config, torch.float32)))
