"""The paper's figures as declared experiments: what is run, at which size, with which result.

``specification("1", "quick")`` reads like the caption it reproduces. ``run`` expands it into independent cells (one
network, several runs), trains those that are not on disk yet, and returns one tidy frame. ``archive`` loads a result
that was computed earlier and committed under ``results/`` with its provenance.

Three profiles hold three sizes of the same experiments:

- ``quick``: the bundled digits, minutes on two CPU cores; what the pages run live;
- ``cores``: what two cores can, which is not the paper's scale: all 60,000 digits for the MLPs, on schedules that cover
  the paper's *flow time* (below) with fewer seeds and set-ups than the paper; for the ResNet20s a thousand shrunken
  images, larger weight decays and less flow time;
- ``paper``: the paper's data, numbers of set-ups and of seeds; for a GPU.

Flow time is the sum over all steps of the effective step size lr / (1 - momentum): the time t up to which gradient
descent follows the gradient flow. The paper's MLPs take 10,000 epochs of lr 0.001 (inferred; momentum unknown, taken
as 0), so 10 units an epoch-long sweep through the batches; 20 epochs with lr 0.05 and momentum 0.9 cover the same
flow time at the same batch size, in larger and noisier steps. Width 64, batch size, momentum, warm-up and Kaiming's
initialisation are ours everywhere: the paper's are not known.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import operator
import os
import platform
import subprocess
import time
from collections.abc import Iterator
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path

import torch

from ncutils import cells as _cells
from ncutils import training
from ncutils.cells import Cell

__all__ = [
    "BACKENDS",
    "FIGURES",
    "PROFILES",
    "Cost",
    "Specification",
    "archive",
    "archived",
    "class_means",
    "cost",
    "duration",
    "final",
    "flow_time",
    "head_ends",
    "label",
    "nonlinear_head",
    "progress",
    "run",
    "save_archive",
    "specification",
]

PROFILES = ("quick", "cores", "paper")
BACKENDS = ("loky", "sequential", "ray", "dask")
# What loky, Ray and Dask raise when a worker is killed; by name, for two of the three need not be installed.
PROSE = ("shows", "runs_per_cell")  # what may be reworded or regrouped without making another experiment
WORKER_DIED = ("TerminatedWorkerError", "ActorDiedError", "WorkerCrashedError", "KilledWorker")


@dataclass(frozen=True)
class Specification:
    """One figure at one size.

    Attributes:
        figure: the paper's number, ``"2-mlp"`` and ``"2-resnet"`` being the two rows of Figure 2 and ``"1-resnet"``
            the variant of Figure 1 that one published version shows.
        profile: one of :data:`PROFILES`.
        shows: what the figure shows.
        data: data set, see :func:`ncutils.data.load`.
        samples: training samples (all of the set, or balanced over the classes).
        network: ``"mlp"`` or ``"resnet20"``.
        nonlinear: numbers of dense ReLU layers, one network each.
        linear: numbers of linear layers behind them, one network each.
        lr: step sizes; every pair of a step size and a weight decay is a set-up.
        weight_decay: weight decays.
        seeds: runs of each set-up; their seeds are 0, 1, ...
        epochs: passes over the data; the step size drops by 10 after the fraction ``drop_at`` of them.
        batch_size: samples a step.
        test_samples: samples of the test set to measure on too; 0 for none.
        measured: training samples to measure on; None for all.
        size: side that images are averaged down to; None leaves them.
        width: of hidden dense layers.
        momentum: heavy ball.
        warmup_steps: linear warm-up.
        drop_at: see ``epochs``.
        weight_decay_over_depth: divide the weight decay by the number of layers.
        measurements: times to measure, geometrically spaced; 1 for the end (and the start and the drop) only.
        class_means: keep the inner products of the class means at the end.
        precision: ``"float64"`` for numbers that every machine reproduces to the printed digit; ``"float32"`` where
            time matters more, and two machines may then follow two trajectories.
        runs_per_cell: runs that train as one cell; None for all runs of a network on a GPU, which stacks them, and one
            on a CPU, which gains nothing by it and has neighbours to share with.
    """

    figure: str
    profile: str
    shows: str
    data: str
    samples: int
    network: str
    nonlinear: tuple[int, ...]
    linear: tuple[int, ...]
    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    seeds: int
    epochs: int
    batch_size: int
    test_samples: int = 0
    measured: int | None = None
    size: int | None = None
    width: int = 64
    momentum: float = 0.9
    warmup_steps: int = 300
    drop_at: float = 0.8
    weight_decay_over_depth: bool = False
    measurements: int = 1
    class_means: bool = False
    precision: str = "float32"
    runs_per_cell: int | None = 1

    def identity(self) -> dict:
        """What makes two runs the same experiment, as JSON keeps it: not the caption, nor the cutting into jobs."""
        return _identity(asdict(self))

    @property
    def networks(self) -> list[tuple[int, int]]:
        """Every (nonlinear, linear) pair of layer counts."""
        return [(n, m) for n in self.nonlinear for m in self.linear]

    @property
    def setups(self) -> list[tuple[float, float]]:
        """Every (lr, weight_decay) pair, before any division by the depth."""
        return [(lr, decay) for lr in self.lr for decay in self.weight_decay]

    @property
    def runs(self) -> int:
        return len(self.networks) * len(self.setups) * self.seeds

    @property
    def steps(self) -> int:
        return self.epochs * (self.samples // self.batch_size)

    @property
    def flow_time(self) -> float:
        """Sum of effective step sizes of the first set-up, see the module's page."""
        return _step_sizes(self.steps, self.warmup_steps, self.drop_at)[-1] * self.lr[0] / (1 - self.momentum)

    def cells(self, device: str = "cpu") -> list[Cell]:
        """The independent pieces of work: one network and a block of its runs each."""
        found = []
        for nonlinear, linear in self.networks:
            depth = nonlinear + linear if self.weight_decay_over_depth else 1
            runs = [(seed, lr, decay / depth) for lr, decay in self.setups for seed in range(self.seeds)]
            block = self.runs_per_cell or (1 if device == "cpu" else len(runs))
            for start in range(0, len(runs), block):
                seeds, lrs, decays = zip(*runs[start : start + block], strict=True)
                cell = Cell(
                    data=self.data,
                    samples=self.samples,
                    test_samples=self.test_samples,
                    measured=self.measured,
                    size=self.size,
                    network=self.network,
                    num_nonlinear=nonlinear,
                    num_linear=linear,
                    width=self.width,
                    seeds=seeds,
                    lr=lrs,
                    weight_decay=decays,
                    epochs=self.epochs,
                    batch_size=self.batch_size,
                    momentum=self.momentum,
                    warmup_steps=self.warmup_steps,
                    drop_at=self.drop_at,
                    measurements=self.measurements,
                    class_means=self.class_means,
                    precision=self.precision,
                    device=device,
                )
                found.append(cell)
        return found

    def describe(self) -> str:
        """The specification in words, like a caption."""
        kind = "ResNet20" if self.network == "resnet20" else "MLP"
        layers = f"ReLU layers {_listed(self.nonlinear)}, linear layers {_listed(self.linear)}"
        decays = _listed(self.weight_decay) + " / depth" * self.weight_decay_over_depth
        own = f", measured on {self.measured:,} of them" if self.measured else ", measured on all of them"
        test = f" and {self.test_samples:,} test samples" * bool(self.test_samples)
        lines = [
            f"Figure {self.figure}, profile {self.profile}: {self.shows}",
            f"  data      {self._data()}{own}{test}",
            f"  network   {kind}, {layers}, width {self.width}",
            f"  runs      lr {_listed(self.lr)} x weight decay {decays} x {self.seeds} seeds: {self.runs} in all",
            f"  schedule  {self.epochs:,} epochs of {self.samples // self.batch_size} steps, batch {self.batch_size}, "
            f"momentum {self.momentum:g}, lr / 10 after {self.drop_at:.0%}; flow time {self.flow_time:,.0f}; "
            f"{self.precision}",
        ]
        return "\n".join(lines)

    def label(self, device: str = "CPU") -> str:
        """Size, seeds and device in one line, for titles: never says more than what was run."""
        scale = {"quick": "quick", "cores": "what two cores can", "paper": "paper-scale"}[self.profile]
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        return f"{scale}: {self._data()}, {seeds}, {self.epochs:,} epochs, {self.precision}, {device}"

    def _data(self) -> str:
        kind = {"mnist5k": "digits", "mnist": "digits"}.get(
            self.data, "CIFAR-10 images" if "cifar" in self.data else self.data
        )
        side = self.size or {"cifar10": 32, "cifar10_small": 16}.get(self.data, 28)
        return f"{self.samples:,} {kind} of {side}x{side}"


@functools.cache
def _step_sizes(steps: int, warmup_steps: int, drop_at: float):
    """Sum of the step sizes before each step, in units of lr: an array of steps + 1 numbers."""
    import numpy as np

    config = training.TrainingConfig(steps, warmup_steps=warmup_steps, drop_at=drop_at)
    factors = [training.learning_rate_factor(config, step) for step in range(steps)]
    return np.concatenate([[0.0], np.cumsum(factors)])


def _identity(stored: dict) -> dict:
    """The identity in a stored specification; a field that was not there yet had what is now its default."""
    defaults = {field.name: field.default for field in fields(Specification) if field.default is not MISSING}
    known = {name: stored.get(name, defaults.get(name)) for name in (field.name for field in fields(Specification))}
    known |= stored
    return json.loads(json.dumps({name: value for name, value in known.items() if name not in PROSE}))


def _listed(values: tuple[float, ...]) -> str:
    if len(values) > 6:
        return f"{values[0]:g} ... {values[-1]:g} ({len(values)} of them)"
    return ", ".join(f"{value:g}" for value in values)


# --- the declarations -------------------------------------------------------------------------------------------------

_OVER_TIME = dict(
    shows="NC1, NC2, balancedness and negativity of the last 7 layers over training",
    network="mlp",
    weight_decay=(0.0018,),
    class_means=True,
)
_ONE = _OVER_TIME | dict(figure="1", nonlinear=(6,), linear=(3,))
_FOUR = _OVER_TIME | dict(figure="4", nonlinear=(5,), linear=(4,))
_ONE_RESNET = _OVER_TIME | dict(figure="1-resnet", network="resnet20", nonlinear=(3,), linear=(3,))
_HEADS = dict(shows="NC1 and NC2 in the last and the first layer of the linear head against its depth")
_TWO = _HEADS | dict(figure="2-mlp", network="mlp", nonlinear=(5,), linear=(1, 2, 3, 4, 5, 6))
_TWO_RESNET = _HEADS | dict(figure="2-resnet", network="resnet20", nonlinear=(0,))
_FIVE = _HEADS | dict(figure="5", network="resnet20", nonlinear=(0,))
_THREE = dict(
    figure="3",
    shows="balancedness and negativity of the head's non-linear layers against the number of non-linear layers",
    network="mlp",
    linear=(1,),
    weight_decay=(0.016,),
    weight_decay_over_depth=True,
)

_QUICK_MLP = dict(
    profile="quick", precision="float64", data="mnist5k", samples=1_000, test_samples=1_000, batch_size=100
)
_QUICK_RESNET = dict(profile="quick", precision="float64", size=8, lr=(0.02,), drop_at=0.7, seeds=2)
_CORES_MLP = dict(
    profile="cores", data="mnist", samples=60_000, measured=10_000, test_samples=8_000, batch_size=128, epochs=20
)
_CORES_RESNET = dict(
    profile="cores", samples=1_000, test_samples=1_000, batch_size=50, lr=(0.03,), warmup_steps=200, seeds=2
)
_CORES_IMAGES = _CORES_RESNET | dict(data="cifar10", size=12)
_CORES_DIGITS = _CORES_RESNET | dict(data="mnist", size=14)
# The paper's step size 0.001 times 10 for our momentum: 1,000 epochs are the flow time of its 10,000.
_PAPER_MLP = dict(
    profile="paper", data="mnist", samples=60_000, test_samples=8_000, batch_size=128, epochs=1_000, runs_per_cell=None
)
# lr 0.005 with momentum: 100 epochs are the flow time of the 5,000 epochs at 0.001 (inferred) of the ResNet20.
_PAPER_RESNET = dict(
    profile="paper", data="cifar10", samples=50_000, test_samples=10_000, batch_size=128, lr=(0.005,), epochs=100
)
_PAPER_RESNET_DIGITS = _PAPER_RESNET | dict(data="mnist", samples=60_000, test_samples=8_000)
_TEN_DECAYS = tuple(round(0.001 + 0.003 * i / 9, 6) for i in range(10))  # the range of the paper, 10 set-ups
_ALL_HEADS = dict(linear=(1, 2, 3, 4, 5, 6))
_FEW_DIGITS = dict(data="mnist5k", samples=500, test_samples=500, batch_size=25, warmup_steps=80)
_FEW_IMAGES = dict(data="cifar10_small", samples=200, test_samples=200, batch_size=20, warmup_steps=100)


def _declare(*parts: dict, **own) -> Specification:
    return Specification(**functools.reduce(operator.or_, parts) | own)


_ALL = [
    # quick: minutes on two cores
    _declare(_QUICK_MLP, _ONE, lr=(0.05,), seeds=3, epochs=800, measurements=18),
    _declare(_QUICK_MLP, _FOUR, lr=(0.05,), seeds=3, epochs=800, measurements=18),
    _declare(_QUICK_MLP, _TWO, lr=(0.05,), weight_decay=(0.001, 0.004), seeds=3, epochs=400),
    _declare(_QUICK_MLP, _THREE, nonlinear=(4, 6, 8, 12), lr=(0.05, 0.1), seeds=2, epochs=400),
    _declare(_QUICK_RESNET, _FEW_DIGITS, _FIVE, linear=(1, 2, 4, 6), weight_decay=(0.02,), epochs=18),
    _declare(_QUICK_RESNET, _FEW_IMAGES, _TWO_RESNET, linear=(1, 2, 4), weight_decay=(0.015,), epochs=36),
    _declare(_QUICK_RESNET, _FEW_IMAGES, _ONE_RESNET, weight_decay=(0.01,), epochs=60, drop_at=0.8, measurements=8),
    # cores: full MNIST at the flow time of the paper
    _declare(_CORES_MLP, _ONE, lr=(0.05,), seeds=5, measurements=14),
    _declare(_CORES_MLP, _FOUR, lr=(0.05,), seeds=5, measurements=14),
    _declare(_CORES_MLP, _TWO, lr=(0.05,), weight_decay=(0.001, 0.004), seeds=3),
    _declare(_CORES_MLP, _THREE, nonlinear=(4, 6, 8, 10, 12), lr=(0.05, 0.1), seeds=3),
    # cores, variants of ours: Figure 3 at one weight decay for all depths, Figure 2 at the paper's ten weight decays
    _declare(
        _CORES_MLP,
        _THREE,
        figure="3-fixed",
        nonlinear=(4, 6, 8, 10, 12),
        lr=(0.05, 0.1),
        seeds=3,
        weight_decay=(0.0018,),
        weight_decay_over_depth=False,
    ),
    _declare(_CORES_MLP, _TWO, figure="2-mlp-decays", lr=(0.05,), weight_decay=_TEN_DECAYS, seeds=5),
    # cores, ResNet20: a thousand shrunken images, larger weight decays for less flow time
    _declare(_CORES_IMAGES, _ONE_RESNET, weight_decay=(0.003,), epochs=200, measurements=14),
    _declare(_CORES_IMAGES, _TWO_RESNET, _ALL_HEADS, weight_decay=(0.006,), epochs=100),
    _declare(_CORES_DIGITS, _FIVE, _ALL_HEADS, weight_decay=(0.006,), epochs=75),
    # paper: its data, set-ups and seeds
    _declare(_PAPER_MLP, _ONE, lr=(0.001,), seeds=5, measurements=30),
    _declare(_PAPER_MLP, _FOUR, lr=(0.001,), seeds=5, measurements=30),
    _declare(_PAPER_MLP, _TWO, lr=(0.001,), weight_decay=_TEN_DECAYS, seeds=5),
    _declare(_PAPER_MLP, _THREE, nonlinear=(4, 6, 8, 10, 12), lr=(0.001, 0.002), seeds=5),
    _declare(_PAPER_RESNET, _ONE_RESNET, weight_decay=(0.001,), seeds=5, measurements=20),
    _declare(_PAPER_RESNET, _TWO_RESNET, _ALL_HEADS, weight_decay=_TEN_DECAYS, seeds=5),
    _declare(_PAPER_RESNET_DIGITS, _FIVE, _ALL_HEADS, weight_decay=_TEN_DECAYS, seeds=5),
]
DECLARED = {(spec.figure, spec.profile): spec for spec in _ALL}
FIGURES = tuple(sorted({figure for figure, _ in DECLARED}))


def specification(figure: str, profile: str = "quick") -> Specification:
    """The declaration of ``figure`` at ``profile``.

    Raises:
        ValueError: no such figure or profile.
    """
    if figure not in FIGURES:
        raise ValueError(f"figure must be one of {', '.join(FIGURES)}; got {figure!r}")
    if profile not in PROFILES:
        raise ValueError(f"profile must be one of {', '.join(PROFILES)}; got {profile!r}")
    if (figure, profile) not in DECLARED:
        there = ", ".join(p for f, p in DECLARED if f == figure)
        raise ValueError(f"profile of figure {figure} must be one of {there}; got {profile!r}")
    return DECLARED[figure, profile]


# --- running ----------------------------------------------------------------------------------------------------------


def run(
    figure: str | Specification,
    profile: str | None = None,
    device: str | None = None,
    jobs: int | None = None,
    backend: str = "loky",
    progress: bool = True,
):
    """Compute a figure's measurements; cells that are on disk already are read from there.

    Args:
        figure: a figure's name, or a :class:`Specification` (``replace(specification("1"), seeds=1)``).
        profile: one of :data:`PROFILES`; $NCUTILS_PROFILE or ``"quick"`` when not given.
        device: ``"cpu"`` or ``"cuda"``; $NCUTILS_DEVICE or ``"cpu"`` when not given.
        jobs: cells at a time; when not given $NCUTILS_JOBS, else one for each CPU (one on a GPU).
        backend: ``"loky"`` (processes of this machine), ``"sequential"``, or a cluster: ``"ray"`` joins the one of
            $RAY_ADDRESS, ``"dask"`` that of $DASK_SCHEDULER_ADDRESS; without these they start workers here.
        progress: show a bar over the cells.

    Returns:
        A pandas ``DataFrame``, one row per (network, run, split, step, layer): ``figure, profile, depth, setup``, what
        :meth:`ncutils.cells.Cell.compute` measures, and in ``attrs`` the ``label`` for titles and the ``provenance``.

    Raises:
        ValueError: unknown figure, profile, device or backend.
        FileNotFoundError: the data set has not been fetched.
        OSError: a finished cell could not be written; the message names the file. Cells finished before are kept, and
            the next call goes on from them.
        RuntimeError: workers died again and again. What was finished is kept.
    """
    spec = _resolve(figure, profile)
    device = _checked_device(device)
    jobs = _jobs(jobs, device)
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    cells, folder = spec.cells(device), _cells.cache_dir()
    keys = [cell.key() for cell in cells]
    frames = {key: frame for key in keys if (frame := _cells.read(folder, key)) is not None}
    missing = {key: cell for key, cell in zip(keys, cells, strict=True) if key not in frames}
    with _bar(f"figure {spec.figure}, {spec.profile}", len(keys), len(frames), progress) as bar:
        frames |= _solve_all(missing, folder, jobs, backend, device, bar)
    return _tidy(spec, cells, [frames[key] for key in keys], device)


def progress(
    figure: str | Specification, profile: str | None = None, device: str | None = None
) -> tuple[int, int, int]:
    """How many cells of a run are done, how many begun (a checkpoint lies on disk), how many there are."""
    cells, folder = _resolve(figure, profile).cells(_checked_device(device)), _cells.cache_dir()
    keys = [cell.key() for cell in cells]
    done = [folder is not None and (folder / f"{key}.parquet").exists() for key in keys]
    begun = [folder is not None and (folder / f"{key}.checkpoint").exists() for key in keys]
    return sum(done), sum(b and not d for b, d in zip(begun, done, strict=True)), len(keys)


def _solve_all(missing, folder, jobs, backend, device, bar) -> dict:
    """Hand the cells to joblib; when a worker is killed, take up what is left."""
    from joblib import delayed

    found = {}
    if backend == "loky" and (jobs == 1 or len(missing) == 1):
        backend = "sequential"  # no second process, no second import of torch
    for _ in range(3):
        left = {key: cell for key, cell in missing.items() if key not in found}
        if not left:
            return found
        try:
            with _engine(backend, min(jobs, len(left)), device) as parallel:
                for key, frame in parallel(bar)(delayed(_solve)(cell, key, folder) for key, cell in left.items()):
                    found[key] = frame
                    if folder is not None and not (folder / f"{key}.parquet").exists():
                        _cells.write(frame, folder / f"{key}.parquet")  # solved on a machine with another disk
        except Exception as error:
            if type(error).__name__ not in WORKER_DIED:
                raise
            found |= {key: frame for key in left if (frame := _cells.read(folder, key)) is not None}
    where = "kept and the next call goes on from them" if folder else "lost, for caching is off"
    raise RuntimeError(
        f"worker processes were killed three times (out of memory?); {len(found)} of {len(missing)} cells are {where}. "
        "Try fewer jobs."
    )


def _solve(cell: Cell, key: str, folder: Path | None):
    return key, _cells.solve(cell, key, folder)


@contextlib.contextmanager
def _engine(backend: str, jobs: int, device: str) -> Iterator:
    """A function that makes the ``joblib.Parallel`` of the chosen engine, which is set up and torn down around it."""
    import joblib

    class Parallel(joblib.Parallel):
        bar = None

        def print_progress(self):  # the one hook that every joblib backend calls after every task
            self.bar.update(self.n_completed_tasks - self.seen)
            self.seen = self.n_completed_tasks

    def make(bar, **options):
        parallel = Parallel(batch_size=1, pre_dispatch="all" if backend in ("ray", "dask") else "2*n_jobs", **options)
        parallel.bar, parallel.seen = bar, 0
        return parallel

    def streamed(bar):
        return make(bar, return_as="generator_unordered")

    if backend == "sequential":
        with joblib.parallel_config(backend="sequential"):
            yield streamed
    elif backend == "loky":
        with joblib.parallel_config(backend="loky", n_jobs=jobs, inner_max_num_threads=1):
            yield streamed
    elif backend == "dask":
        distributed, dask = _import("distributed", "dask"), _import("dask", "dask")
        here = dask.config.get("scheduler-address", None) is None
        options = dict(n_workers=jobs, threads_per_worker=1, dashboard_address=None) if here else {}
        with distributed.Client(**options), joblib.parallel_config(backend="dask"):
            yield streamed
    else:
        ray, ray_joblib = _import("ray", "ray"), _import("ray.util.joblib", "ray")
        started = not ray.is_initialized()
        if started:
            options = {} if os.environ.get("RAY_ADDRESS") else dict(num_cpus=jobs, include_dashboard=False)
            ray.init(log_to_driver=False, **options)
        ray_joblib.register_ray()
        options = dict(ray_remote_args={"num_gpus": 1}) if device == "cuda" else {}
        try:
            with joblib.parallel_config(backend="ray", n_jobs=jobs, **options):
                yield make  # Ray's joblib backend cannot stream; each worker stores its own cells
        finally:
            if started:
                ray.shutdown()


def _import(module: str, extra: str):
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        wanted = f'pip install ".[{extra}]" in a checkout'
        raise ValueError(f"backend {extra!r} needs the package: {wanted} ({error})") from error


def _tidy(spec: Specification, cells: list[Cell], frames: list, device: str):
    import pandas as pd

    seconds, parts = 0.0, []
    started: dict[tuple[int, int], int] = {}  # runs seen so far of each network
    for cell, frame in zip(cells, frames, strict=True):
        seconds += frame.attrs.get("seconds", 0.0)
        network = (cell.num_nonlinear, cell.num_linear)
        run = frame["run"] + started.get(network, 0)
        started[network] = started.get(network, 0) + len(cell.seeds)
        swept = cell.num_linear if len(spec.linear) > 1 else cell.num_nonlinear
        front = {
            "figure": spec.figure,
            "profile": spec.profile,
            "depth": swept if len(spec.networks) > 1 else cell.num_nonlinear + cell.num_linear,
            "num_nonlinear": cell.num_nonlinear,
            "num_linear": cell.num_linear,
            "setup": (run // spec.seeds).map(lambda i: _setup_name(spec, i)),
        }
        parts.append(frame.assign(run=run, **front)[[*front, *frame.columns]])
    for part in parts:
        part.attrs = {}
    frame = pd.concat(parts, ignore_index=True)
    name = _device_name(device)
    frame.attrs = {"label": spec.label(name), "provenance": _provenance(spec, cells, device, name, seconds)}
    return frame


def _setup_name(spec: Specification, index: int) -> str:
    lr, decay = spec.setups[index]
    return f"lr={lr:g}, wd={decay:g}" + "/depth" * spec.weight_decay_over_depth


def _provenance(spec, cells, device: str, name: str, seconds: float) -> dict:
    import numpy
    import pandas

    import ncutils

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {"numpy": numpy.__version__, "pandas": pandas.__version__, "ncutils": ncutils.__version__}
    return {
        "figure": spec.figure,
        "profile": spec.profile,
        "specification": json.loads(json.dumps(asdict(spec))),
        "seeds": list(range(spec.seeds)),
        "runs": spec.runs,
        "samples": spec.samples,
        "flow_time": round(spec.flow_time, 1),
        "device": name,
        "device_type": device,
        "seconds": round(seconds, 1),
        "data_checksum": cells[0].checksum(),
        "code": _cells.code_hash(),
        "git_commit": _git("rev-parse", "HEAD"),
        "versions": versions,
    }


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _resolve(figure: str | Specification, profile: str | None) -> Specification:
    if not isinstance(figure, Specification):
        return specification(figure, profile or os.environ.get("NCUTILS_PROFILE") or "quick")
    if profile not in (None, figure.profile):
        raise ValueError(f"profile: the specification given has {figure.profile!r}; got {profile!r}")
    return figure


def _checked_device(device: str | None) -> str:
    device = device or os.environ.get("NCUTILS_DEVICE") or "cpu"
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda'; got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: CUDA is not available to this torch; expected a GPU, or device 'cpu'")
    return device


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def _jobs(jobs: int | None, device: str) -> int:
    if jobs is None:
        given = os.environ.get("NCUTILS_JOBS")
        cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        jobs = int(given) if given and given.isdigit() else 1 if device == "cuda" else cpus
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}")
    return jobs


def _bar(what: str, total: int, done: int, show: bool):
    from tqdm import tqdm

    off = not show or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    return tqdm(total=total, initial=done, desc=what, unit="cell", disable=off)


# --- what it costs ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a run will take; ``seconds`` are those of one worker on this machine's device, cells on disk left out."""

    figure: str
    profile: str
    device: str
    cells: int
    cells_on_disk: int
    runs: int
    run_steps: int
    flops: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"figure {self.figure}, profile {self.profile}: {self.runs} runs in {self.cells} cells "
            f"({self.cells_on_disk} on disk), {self.run_steps:,} training steps, {self.flops:.1e} flop, "
            f"about {duration(self.seconds)} of one worker ({self.device})"
        )


def cost(figure: str | Specification, profile: str | None = None, device: str | None = None) -> Cost:
    """Estimate a run by timing a few steps and one measurement of each of its networks, on noise of the data's shape.

    Raises:
        ValueError: as :func:`run`.
        FileNotFoundError: the data set has not been fetched.
    """
    spec = _resolve(figure, profile)
    device = _checked_device(device)
    cells, folder = spec.cells(device), _cells.cache_dir()
    left = [cell for cell in cells if _cells.read(folder, cell.key()) is None]
    seconds, flops = 0.0, 0.0
    known: dict[tuple, tuple[float, float]] = {}
    for cell in cells:
        kind = (cell.num_nonlinear, cell.num_linear, len(cell.seeds))
        if kind not in known:
            known[kind] = _cell_seconds(cell), _step_flops(cell) * cell.steps * len(cell.seeds)
        seconds += known[kind][0] * (cell in left)
        flops += known[kind][1]
    steps = spec.runs * spec.steps
    return Cost(
        spec.figure,
        spec.profile,
        _device_name(device),
        len(cells),
        len(cells) - len(left),
        spec.runs,
        steps,
        flops,
        seconds,
    )


def _noise(cell: Cell, samples: int):
    """Data of the cell's shape and of no content."""
    train, _ = cell.load()
    shape = (samples, *train.x.shape[1:])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(train.x)
    return replace(train, x=x, y=(torch.arange(samples) % train.num_classes).to(train.y))


def _cell_seconds(cell: Cell) -> float:
    noise = _noise(cell, max(2 * cell.batch_size, 500))
    network = cell.build(noise)
    # The step size is irrelevant for the time and zero keeps the weights finite.
    config = replace(cell.config, steps=2, lr=0.0)
    with _cells.one_thread(cell.device):
        training.train(network, noise, config, measure=None, progress=False)  # warm: buffers, kernels, a CUDA graph
        steps, spent = 1, 0.0
        while spent < 0.2:
            steps *= 2
            spent = training.train(network, noise, replace(config, steps=steps), measure=None, progress=False).seconds
        start = time.perf_counter()
        training.measure_layers(network, noise, 0)
        measure = (time.perf_counter() - start) / len(noise)
    measured = (cell.measured or cell.samples) + cell.test_samples
    return spent / steps * cell.steps + measure * measured * len(training.measurement_steps(cell.config))


def _step_flops(cell: Cell) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    one = replace(cell, seeds=cell.seeds[:1], device="cpu")
    noise = _noise(one, cell.batch_size)
    network = one.build(noise)
    with FlopCounterMode(display=False) as counter:
        network(noise.x).sum().backward()
    return counter.get_total_flops()


def duration(seconds: float) -> str:
    """A time in the unit that fits it, e.g. ``"1.6 h"``."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


# --- the archive ------------------------------------------------------------------------------------------------------


def results_dir() -> Path:
    """results/ of the checkout."""
    return Path(__file__).resolve().parents[1] / "results"


def archived(folder: str | os.PathLike | None = None) -> list[tuple[str, str]]:
    """The (figure, profile) pairs that have an archived result."""
    folder = results_dir() if folder is None else Path(folder)
    names = [path.stem.rpartition("-") for path in sorted(folder.glob("*.parquet"))]
    return [(figure, profile) for figure, _, profile in names]


def archive(figure: str, profile: str | None = None, folder: str | os.PathLike | None = None):
    """A result computed earlier and kept with its provenance, as :func:`run` returned it (numbers in float32).

    Args:
        figure: a figure's name.
        profile: which one; when not given the largest there is (``"paper"`` before ``"cores"``).
        folder: where archives are; ``results/`` of the checkout when not given.

    Raises:
        FileNotFoundError: none there; the message holds the command that makes it.
        ValueError: the provenance, the table and today's specification do not belong together.
    """
    import pandas as pd

    folder = results_dir() if folder is None else Path(folder)
    declared = [p for p in reversed(PROFILES) if figure not in FIGURES or (figure, p) in DECLARED]
    candidates = [profile] if profile else declared
    for candidate in candidates:
        spec = specification(figure, candidate)
        if (path := folder / f"{figure}-{candidate}.parquet").exists():
            break
    else:
        wanted = " or ".join(f"`python -m ncutils run {figure} --profile {p}`" for p in candidates if p != "quick")
        raise FileNotFoundError(f"no archived result of figure {figure} in {folder.name}/; make it with {wanted}")
    about = path.with_suffix(".json")
    try:
        provenance = json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{about}: no readable provenance for {path.name} ({error})") from error
    needed = ("specification", "git_commit", "device", "seconds", "data_checksum", "parquet_sha256", "rows", "versions")
    if lacking := [name for name in needed if name not in provenance]:
        raise ValueError(f"{about}: the provenance lacks {', '.join(lacking)}")
    declared, stored = spec.identity(), _identity(provenance["specification"])
    if differ := [name for name in sorted({*declared, *stored}) if declared.get(name) != stored.get(name)]:
        seen = "; ".join(f"{name} is {stored.get(name)!r} there, {declared.get(name)!r} here" for name in differ)
        raise ValueError(f"{about}: made from another specification of figure {figure}, {spec.profile}: {seen}")
    if _sha256(path) != provenance["parquet_sha256"]:
        raise ValueError(f"{path}: not the table that {about.name} describes (its SHA-256 differs)")
    frame = pd.read_parquet(path)
    if len(frame) != provenance["rows"]:
        raise ValueError(f"{path}: {len(frame)} rows; {about.name} says {provenance['rows']}")
    frame.attrs = {"label": spec.label(provenance["device"]), "provenance": provenance}
    return frame


def save_archive(frame, folder: str | os.PathLike | None = None) -> Path:
    """Keep a frame that :func:`run` returned: FIGURE-PROFILE.parquet and its provenance beside it.

    Raises:
        ValueError: the code that ran is not the code of the commit that the provenance would name.
        OSError: naming the file that could not be written.
    """
    folder = results_dir() if folder is None else Path(folder)
    provenance = dict(frame.attrs["provenance"])
    check_committed()
    provenance["git_commit"] = _git("rev-parse", "HEAD")
    path = folder / f"{provenance['figure']}-{provenance['profile']}.parquet"
    small = frame.copy()
    doubles = small.select_dtypes("float64").columns.difference(["lr", "weight_decay"])
    small[doubles] = small[doubles].astype("float32")
    small.attrs = {}
    about = path.with_suffix(".json")
    about.unlink(missing_ok=True)  # never a new table beside an old provenance
    _cells.write(small, path)
    provenance |= {"rows": len(small), "parquet_sha256": _sha256(path)}
    temporary = about.with_name(f".{about.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps(provenance, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, about)
    except OSError as error:
        raise OSError(error.errno, f"could not write {about}: {error.strerror}") from error
    return path


def check_committed() -> None:
    """Raise ValueError unless the code behind the results is exactly what HEAD holds."""
    if _git("rev-parse", "HEAD") is None:
        raise ValueError("an archive names the commit whose code made it, and this copy is not a git checkout")
    files = [f"{name}.py" for name in (*_cells.CODE, "experiments")]
    if changed := _git("status", "--porcelain", "--", *files):
        raise ValueError(
            f"an archive names the commit whose code made it; commit these first, or use --no-archive:\n{changed}"
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- reading a result -------------------------------------------------------------------------------------------------


def label(frame) -> str:
    """Size, seeds and device of a result in one line."""
    return frame.attrs["label"]


def final(frame, split: str = "train"):
    """The rows at the end of training, of the runs that did not diverge."""
    return frame[(frame["step"] == frame["step"].max()) & ~frame["diverged"] & (frame["split"] == split)]


def flow_time(frame):
    """Flow time at each row: the sum of effective step sizes lr / (1 - momentum) up to its step."""
    spec = frame.attrs["provenance"]["specification"]
    steps = spec["epochs"] * (spec["samples"] // spec["batch_size"])
    summed = _step_sizes(steps, spec["warmup_steps"], spec["drop_at"])
    return frame["lr"] * summed[frame["step"]] / (1 - spec["momentum"])


def head_ends(frame, split: str = "train"):
    """One row a run: NC1 and NC2 at the two ends of the linear head (Figures 2 and 5), and NC3.

    The *last* layer is read as Z_{L-1}, what W_L reads, and the *first* as Z_{L1}, what the head reads: with one linear
    layer they are the same. (Z_L itself is the network's output, nearly the one-hot labels whatever the head does; its
    NC1 is given as ``nc1_output``.)
    """
    end = final(frame, split)
    runs = ["depth", "setup", "run", "seed", "lr", "weight_decay", "accuracy", "error"]
    layers = {
        "last": end["num_nonlinear"] + end["num_linear"] - 1,
        "first": end["num_nonlinear"],
        "output": end["num_nonlinear"] + end["num_linear"],
    }
    at = {name: end[end["layer"] == layer].set_index(["depth", "run"]) for name, layer in layers.items()}
    table = at["last"].reset_index()[[*runs, "nc1", "nc2", "nc3"]].set_index(["depth", "run"])
    table = table.rename(columns={"nc1": "nc1_last", "nc2": "nc2_last"})
    table["nc1_first"], table["nc2_first"] = at["first"]["nc1"], at["first"]["nc2"]
    table["nc1_output"] = at["output"]["nc1"]
    return table.reset_index()


def nonlinear_head(frame, split: str = "train"):
    """One row a run: least and mean balancedness and negativity over the non-linear layers of the head (Figure 3).

    The head of an MLP is everything behind its first two layers: layers 3..L1 for negativity, their pairs (l, l+1) for
    balancedness, in both forms.
    """
    end = final(frame, split)
    inner = end[(end["layer"] >= 3) & (end["layer"] <= end["num_nonlinear"])]
    pairs = inner[inner["layer"] < inner["num_nonlinear"]]
    runs = ["depth", "setup", "run", "seed", "lr", "weight_decay", "accuracy"]
    table = inner.groupby(runs, as_index=False).agg(
        negativity_min=("negativity", "min"), negativity_mean=("negativity", "mean")
    )
    balance = pairs.groupby(["depth", "run"], as_index=False).agg(
        balancedness_min=("balancedness_relative", "min"),
        balancedness_mean=("balancedness_relative", "mean"),
        balancedness_op_min=("balancedness", "min"),
        balancedness_op_mean=("balancedness", "mean"),
    )
    return table.merge(balance, on=["depth", "run"])


def class_means(frame, seed: int = 0) -> dict[int, object]:
    """Inner products of the class means at the end, before any activation: layer -> (K, K) array, of one run.

    Raises:
        ValueError: the figure keeps none (those over training do), or has no such seed.
    """
    import numpy as np

    if "class_gram" not in frame:
        raise ValueError(f"figure {frame['figure'].iloc[0]} keeps no class means; expected one with class_means=True")
    rows = final(frame)
    rows = rows[(rows["seed"] == seed) & rows["class_gram"].notna()]
    if rows.empty:
        raise ValueError(f"seed must be one of {sorted(frame['seed'].unique().tolist())}; got {seed}")
    grams = {int(row.layer): np.asarray(row.class_gram, dtype=float) for row in rows.itertuples()}
    return {layer: gram.reshape(round(len(gram) ** 0.5), -1) for layer, gram in grams.items()}
