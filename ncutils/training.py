"""Training R runs at once: (stochastic) gradient descent with weight decay on the squared loss.

The objective of every run is ``(1/2B) ||f(X) - Y||_F^2 + (weight_decay/2) ||theta||^2`` over a batch of B samples,
Y one-hot. On a GPU all runs of an MLP step together as one stacked program, replayed from a CUDA graph; on a CPU,
where stacking gains nothing, the runs go one after the other through the same equations as plain matrices. A run's
result depends on its own seed, step size and weight decay alone, never on its neighbours.

With lambda = N weight_decay that is N^-1 times the C_lambda of arXiv:2410.04887.

Deep linear heads cost next to nothing: their gradients are formed from products with K rows, see
:meth:`_DenseTrainer._gradients`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ncutils import _files, metrics
from ncutils._arguments import anything, check_fields, checked, function, having, integer, one_of, optional
from ncutils.networks import MLP, ResNet20, smooth_derivative

__all__ = [
    "Divergence",
    "TrainingConfig",
    "TrainingResult",
    "learning_rate_factor",
    "measure_layers",
    "measurement_steps",
    "step_flops",
    "train",
]

# Numbers a layer to measure at a time: the float64 copies of 50 runs on 60,000 samples would fill a GPU.
_BLOCK = 2**27
SAVE_EVERY = 60.0  # seconds between two checkpoints where measurements lie further apart
_relu_backward = torch.ops.aten.threshold_backward.grad_input  # looked up once: that costs more than a small call


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        steps: number of updates.
        lr: step size, one number or one a run.
        weight_decay: lambda' of the objective above (N lambda' is the lambda of the theorems), one number or one a run.
        momentum: heavy-ball coefficient; 0 is plain (S)GD.
        batch_size: samples a step, drawn without replacement epoch by epoch, a rest smaller than a batch left out;
            None is full-batch gradient descent.
        warmup_steps: steps over which the step size rises linearly from near 0.
        drop_at: fraction of the steps after which the step size is multiplied by ``drop_factor``.
        drop_factor: see ``drop_at``.
        measurements: how many times to measure, geometrically spaced, first and last step included; the moment of
            the drop is measured besides.
        precision: of weights, data and arithmetic, ``"float32"`` or ``"float64"``; None is the network's own.
            ``"bfloat16"`` is float32 with the convolutions of a ResNet20 under autocast, meant for GPUs; CPUs without
            bfloat16 units lose by it. :mod:`ncutils.experiments` builds networks and data of this precision.
        epochs: number of passes over the data, in the place of ``steps``.

    Example:
        >>> TrainingConfig(epochs=3, batch_size=20).for_samples(100).steps
        15
        >>> TrainingConfig(steps=10, lr=(0.1, 0.2)).per_run("lr", 2)
        (0.1, 0.2)
    """

    steps: int | None = None
    lr: float | tuple[float, ...] = 0.05
    weight_decay: float | tuple[float, ...] = 0.0018
    momentum: float = 0.9
    batch_size: int | None = 100
    warmup_steps: int = 300
    drop_at: float = 0.8
    drop_factor: float = 0.1
    measurements: int = 20
    precision: str | None = None
    epochs: int | None = None

    def __post_init__(self):
        check_fields(self, steps=anything, epochs=anything, warmup_steps=anything, precision=anything)
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"one of steps and epochs must be given; got {self.steps} and {self.epochs}")
        for name in ("steps", "epochs", "warmup_steps"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 0):
                raise ValueError(f"{name} must be an integer >= 0; got {value}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {self.momentum}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be None or >= 1; got {self.batch_size}")
        if not 0 <= self.drop_at <= 1 or not 0 <= self.drop_factor < math.inf:
            raise ValueError(
                f"drop_at must be in [0, 1] and drop_factor finite and >= 0; got {self.drop_at}, {self.drop_factor}"
            )
        if not 0 <= self.measurements <= 1_000_000:
            raise ValueError(f"measurements must be >= 0 and at most 1,000,000; got {self.measurements}")
        if self.precision not in (None, "float32", "float64", "bfloat16"):
            raise ValueError(f"precision must be 'float32', 'float64', 'bfloat16' or None; got {self.precision!r}")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            if any(v < 0 or not math.isfinite(v) for v in _as_tuple(getattr(self, name))):
                raise ValueError(f"{name} must be finite and >= 0; got {value}")

    @checked(samples=integer(least=1))
    def for_samples(self, samples: int) -> TrainingConfig:
        """The same with ``steps`` in the place of ``epochs``, for so many training samples."""
        if self.epochs is None:
            return self
        if (batch := self.batch_size or samples) > samples:
            raise ValueError(f"batch_size must be at most the {samples} samples; got {batch}")
        return replace(self, steps=self.epochs * (samples // batch), epochs=None)

    @property
    def total(self) -> int:
        """``steps``, which :meth:`for_samples` has set where ``epochs`` was given."""
        if self.steps is None:
            raise ValueError(f"steps must be known: use for_samples(N); got epochs={self.epochs} of unknown length")
        return self.steps

    @checked(name=one_of("lr", "weight_decay"), runs=integer(least=1))
    def per_run(self, name: str, runs: int) -> tuple[float, ...]:
        """``lr`` or ``weight_decay`` as one number a run."""
        values = _as_tuple(getattr(self, name))
        values = values * runs if len(values) == 1 else values
        if len(values) != runs:
            raise ValueError(f"{name} must be one number or {runs} (one a run); got {len(values)}: {values}")
        return values


@dataclass(frozen=True)
class Divergence:
    """A run that left the finite numbers: which, when, and the loss last seen.

    Example:
        >>> from ncutils.data import gaussian
        >>> network = MLP(64, 3, num_nonlinear=1, num_linear=2, width=8)
        >>> config = TrainingConfig(steps=100, lr=1e3, batch_size=20)
        >>> result = train(network, gaussian(20, num_classes=3), config, progress=False)
        run 0 (seed 0) diverged at step 1: loss ...
        >>> [failed.run for failed in result.diverged]
        [0]
    """

    run: int
    step: int
    loss: float


@dataclass
class TrainingResult:
    """What :func:`train` returns; ``rows`` are the measurements, one dict per (run, layer, step).

    Example:
        >>> from ncutils.data import gaussian
        >>> network = MLP(64, 3, num_nonlinear=1, num_linear=2, width=8, seeds=(0, 1))
        >>> config = TrainingConfig(steps=20, batch_size=20, measurements=2)
        >>> result = train(network, gaussian(20, num_classes=3), config, progress=False)
        >>> sorted(result.frame["step"].unique().tolist()), result.frame["run"].nunique(), result.diverged
        ([0, 1, 16, 20], 2, [])
    """

    network: nn.Module
    rows: list[dict]
    diverged: list[Divergence] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def frame(self):
        """The measurements as a pandas ``DataFrame``."""
        import pandas as pd

        return pd.DataFrame(self.rows)


@checked(step=integer(least=0))
def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Factor on the step size at ``step``: linear warm-up, then 1, then the drop.

    Example:
        >>> config = TrainingConfig(steps=100, warmup_steps=4, drop_at=0.8, drop_factor=0.1)
        >>> [learning_rate_factor(config, step) for step in (0, 1, 3, 79, 80)]
        [0.25, 0.5, 1.0, 1.0, 0.1]
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warmup * (config.drop_factor if step >= config.drop_at * config.total else 1.0)


@checked()
def measurement_steps(config: TrainingConfig) -> list[int]:
    """Steps at which to measure: 0, geometrically spaced ones, the last, and the moment of the drop.

    Example:
        >>> measurement_steps(TrainingConfig(steps=1000, measurements=5))
        [0, 1, 10, 100, 800, 1000]
    """
    last, count = config.total, config.measurements
    if count < 1 or last == 0:
        return [last]
    spaced = {round(last ** (i / max(count - 2, 1))) for i in range(count - 1)}
    return sorted({0, *spaced, min(last, math.ceil(config.drop_at * last)), last})


def step_flops(sizes: Sequence[int], num_nonlinear: int, batch: int, *, layer_by_layer: bool = False) -> int:
    """Floating-point operations of one training step of one MLP run, exact: those of its matrix products.

    A product of (a, b) by (b, c) counts 2abc. Back-propagation takes three a layer, two at the first, whose input needs
    no gradient. In the linear head :func:`train` takes products of K rows in the place of B, see the module.

    Args:
        sizes: d, the widths, K.
        num_nonlinear: how many layers an activation follows.
        batch: B, samples a step.
        layer_by_layer: count plain back-propagation instead, as autograd does it.

    Example:
        >>> step_flops((700, 64, 64, 64, 10), 2, 100), step_flops((700, 64, 64, 64, 10), 2, 100, layer_by_layer=True)
        (21007360, 23219200)
    """
    products = [2 * a * b for a, b in itertools.pairwise(sizes)]
    if layer_by_layer:
        return batch * (3 * sum(products) - products[0])
    before, head, classes = products[:num_nonlinear], products[num_nonlinear:-1], sizes[-1]
    into_head = 2 * sizes[num_nonlinear] * classes  # the output; C_1; and the error handed on, if layers stand before
    entrance = (3 if before else 2) * into_head
    return batch * (3 * sum(before) - sum(before[:1]) + entrance) + 3 * classes * sum(head)


@checked(data=having("x", "y", "num_classes"))
def measure_layers(network: MLP | ResNet20, data, step: int) -> list[dict]:
    """The standard measurement: every metric of every dense layer of every run, on ``data`` in evaluation mode.

    Returns:
        One dict per (run, layer): ``run, step, layer, part, nc1, nc2, condition``, where defined ``negativity`` (ReLU
        layers), ``balancedness, balancedness_relative`` (the imbalance of two layers), ``nc3, nc4`` (layer L-1);
        and repeated on each row the run's ``loss`` (data term, per sample), ``error`` (||f(X) - Y||_F), ``accuracy``.

    Raises:
        ValueError: weights, inputs or features that are not finite; data that the network does not take.

    Example:
        >>> from ncutils.data import gaussian
        >>> network = MLP(64, 3, num_nonlinear=1, num_linear=2, width=8)
        >>> rows = measure_layers(network, gaussian(20, num_classes=3), step=0)
        >>> [(row["layer"], row["part"]) for row in rows]
        [(1, 'nonlinear'), (2, 'linear'), (3, 'linear')]
    """
    _check_inputs(network, data)
    _check_finite(list(network.parameters()))
    was_training = network.training
    network.eval()
    with torch.no_grad():
        inputs = _dense_inputs(network, data.x)
        weights = [w.detach() for w in network.weights]
        size = max(1, _BLOCK // (len(data.y) * max(network.sizes[1:])))
        blocks = [
            _measure_block(network, [w[runs] for w in weights], inputs[runs] if inputs.ndim == 3 else inputs, data)
            for runs in torch.arange(network.num_runs).split(size)
        ]
    network.train(was_training)
    rows = []
    for index in range(network.num_layers):
        part = "nonlinear" if index < network.num_nonlinear else "linear"
        columns = {name: torch.cat([block[index][name] for block in blocks]).tolist() for name in blocks[0][index]}
        for run in range(network.num_runs):
            values = {name: column[run] for name, column in columns.items()}
            rows.append({"run": run, "step": step, "layer": index + 1, "part": part, **values})
    return rows


def _dense_inputs(network, x: Tensor, size: int = 2000) -> Tensor:
    """What the dense layers see: ``x``, or the backbones' features, made without holding all their activations."""
    if isinstance(network, MLP):
        return x
    return torch.cat([_backbones(network, chunk) for chunk in x.split(size)], -2)


def _backbones(network: ResNet20, x: Tensor) -> Tensor:
    x = x.contiguous(memory_format=torch.channels_last)
    return torch.stack([backbone(x) for backbone in network.backbones])


def _measure_block(network, weights: list[Tensor], z: Tensor, data) -> list[dict[str, Tensor]]:
    """Per layer its metrics, each ``(R,)``: those of :mod:`ncutils.metrics`, their common parts computed once."""
    labels, classes = data.y, data.num_classes
    exact = [w.double() for w in weights]
    singular = [metrics.singular_values(w) for w in exact]
    norms = [s[..., 0].square() for s in singular]
    columns = []
    for index, weight in enumerate(weights):
        curved = index < network.num_nonlinear
        pre = z @ weight.mT
        z = network.activate(pre) if curved else pre
        post = z.double()
        if not torch.isfinite(pre.sum()):
            metrics.negativity(pre)  # says how many are NaN or infinite; here one sum does instead of a look at each
        seen = metrics.ClassStatistics(classes).update(post, labels)
        column = {
            "nc1": seen.nc1(),
            "nc2": seen.nc2(),
            "condition": metrics.ratio_of_singular_values(singular[index], weight.shape),
        }
        if curved:
            column["negativity"] = metrics.operator_norm(pre.clamp(max=0)) / metrics.operator_norm(pre)
        if index + 1 < len(weights):
            column["balancedness"] = metrics.imbalance(exact[index], exact[index + 1])
            column["balancedness_relative"] = column["balancedness"] / torch.maximum(norms[index], norms[index + 1])
        if index == len(weights) - 2:
            column["nc3"] = metrics.mean_alignment(post, labels, exact[-1])
            column["nc4"] = metrics.agreement(post, seen, exact[-1])
        columns.append(column)
    error = torch.linalg.matrix_norm(post - torch.nn.functional.one_hot(labels, classes))
    accuracy = (post.argmax(-1) == labels).double().mean(-1)
    whole = {"loss": error.square() / (2 * len(labels)), "error": error, "accuracy": accuracy}
    return [column | whole for column in columns]


@checked(network=anything, data=anything, measure=optional(function), loss=anything, optimizer=anything)
def train(
    network: nn.Module,
    data,
    config: TrainingConfig,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    optimizer: Callable[[list], torch.optim.Optimizer] | None = None,
    measure: Callable[..., list[dict]] | None = measure_layers,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    engine: str = "auto",
) -> TrainingResult:
    """Train every run of ``network``, or any module, in place.

    Our networks under the squared loss and SGD take the batched engine. A module of your own, another loss or another
    optimiser takes a plain loop through autograd, with the same schedule, measurements and rows.

    Args:
        network: R initialised runs (:class:`ncutils.MLP`, :class:`ncutils.ResNet20`), whose seeds also fix the batch
            orders; or any ``nn.Module`` that returns ``(N, K)``, as one run.
        data: a :class:`ncutils.data.Dataset`, on the network's device. For the plain loop also a ``torch`` ``Dataset``,
            a ``DataLoader`` (its own batches and order) or a pair ``(x, y)``.
        config: see :class:`TrainingConfig`; ``lr``, ``momentum`` and ``weight_decay`` are those of the default SGD.
        loss: ``loss(outputs (N, K), y (N,)) -> scalar``, such as ``torch.nn.functional.cross_entropy``; default the
            squared error of the book.
        optimizer: ``optimizer(parameters) -> torch.optim.Optimizer``, such as ``functools.partial(torch.optim.AdamW,
            lr=1e-3)``; the schedule of ``config`` multiplies its step size.
        measure: called as ``measure(network, data, step)`` at :func:`measurement_steps`, with a network that may hold
            only some of the runs; returns rows with a key ``run`` counted from 0 in that network. None measures never.
        progress: show a bar (needs tqdm; silent where ``TQDM_DISABLE`` is set).
        checkpoint: file to write at every measurement, and once a minute between two, and to resume from; removed by
            nobody but the caller.
        engine: ``"stacked"`` steps all runs of an MLP as one program, ``"sequential"`` takes one run after the other;
            ``"auto"`` stacks on a GPU only.

    Returns:
        The trained network, the rows with ``seed, lr, weight_decay`` added, the runs that diverged, the seconds spent.
        A run that diverges (loss on a batch or a weight above 1e6, or not a number) stops alone: it keeps its rows up
        to then, and its weights become NaN in the batched engine.

    Raises:
        ValueError: per-run values of the wrong number, a batch larger than the data, data on another device, a
            checkpoint of another configuration, data, initial weights, engine or measure (which is known by its name
            and code, not by what the code hangs on); NaN or infinite data.
        TypeError: a network or data of another kind.

    Small MLPs (hidden width at most 256) train on one thread on a CPU: more make them slower, and one gives the same
    bits every time. A damaged checkpoint is set aside as NAME.damaged with a warning, and training starts afresh.

    Example:
        >>> from ncutils import data, networks, training
        >>> blobs = data.gaussian(20, num_classes=3)
        >>> network = networks.MLP(64, 3, num_nonlinear=1, num_linear=2, width=8)
        >>> config = training.TrainingConfig(epochs=5, batch_size=20, warmup_steps=2, measurements=1)
        >>> int(training.train(network, blobs, config, progress=False).frame["step"].max())
        15
    """
    plain = loss is not None or optimizer is not None or not isinstance(network, (MLP, ResNet20))
    if plain and isinstance(network, nn.Module):
        if checkpoint is not None or engine != "auto":
            raise ValueError(
                f"checkpoint, engine must be None, 'auto' with a loss, an optimizer or a module of your own; "
                f"got {checkpoint!r}, {engine!r}"
            )
        from ncutils import _plain

        return _plain.train(network, data, config, loss, optimizer, measure, progress)
    _check_data(network, data)
    config = config.for_samples(len(data.y))
    small = isinstance(network, MLP) and max(network.sizes[1:]) <= 256 and data.x.device.type == "cpu"
    with one_thread() if small else contextlib.nullcontext():
        return _train(network, data, config, measure, progress, checkpoint, engine)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread within an operation for as long as this lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(network, data, config: TrainingConfig, measure, progress, checkpoint, engine) -> TrainingResult:
    start = time.perf_counter()
    runs = network.num_runs
    lrs, decays = config.per_run("lr", runs), config.per_run("weight_decay", runs)
    _check_fit(network, data, config)
    if engine not in ("auto", "sequential", "stacked"):
        raise ValueError(f"engine must be 'auto', 'sequential' or 'stacked'; got {engine!r}")
    stacked = isinstance(network, MLP) and (engine == "stacked" or (engine == "auto" and data.x.is_cuda))
    groups = [list(range(runs))] if stacked else [[run] for run in range(runs)]
    store = _Checkpoint(checkpoint, _fingerprint(network, data, config, measure, stacked)) if checkpoint else None
    rows: list[dict] = []
    diverged: list[Divergence] = []
    with _bar(config.total * len(groups), progress) as bar:
        for number, group in enumerate(groups):
            part = network if len(group) == runs else network.run(group[0])
            trainer = _trainer(part, data, config, [lrs[r] for r in group], [decays[r] for r in group])
            new, failed = _train_group(trainer, part, data, config, measure, bar, store, number)
            for row in new:
                run = group[row["run"]]
                extra = {"seed": network.seeds[run], "lr": lrs[run], "weight_decay": decays[run]}
                rows.append({**row, **extra, "run": run})
            part.zero_grad(set_to_none=True)
            diverged += [Divergence(group[d.run], d.step, d.loss) for d in failed]
            if part is not network:
                _copy_run(part, network, group[0])
    for d in diverged:
        print(f"run {d.run} (seed {network.seeds[d.run]}) diverged at step {d.step}: loss {d.loss:.3g}")
    return TrainingResult(network, rows, diverged, time.perf_counter() - start)


def _train_group(trainer, network, data, config, measure, bar, store, number):
    """Take one group of runs through all steps; stop early only when every run of it has diverged."""
    rows, failed, step, done = [], {}, 0, -1  # done: the last stop whose measurement is in rows
    if store and (saved := store.load(number)):
        step = done = saved["step"]
        rows, failed = saved["rows"], saved["failed"]
        trainer.load_state(saved["trainer"])
        bar.update(step)
    check_every, latest = 50, time.monotonic()

    def save() -> None:
        state = {"step": step, "rows": rows, "failed": failed, "trainer": trainer.state()}
        store.save(number, state)

    for stop in measurement_steps(config) if measure else [config.total]:
        if stop <= done or len(failed) == network.num_runs:
            continue
        while step < stop:
            until = min(stop, step - step % check_every + check_every)
            for s in range(step, until):
                trainer.step(s)
            bar.update(until - step)
            step = until
            losses = trainer.losses()
            for run, loss in enumerate(losses):
                if run not in failed and not loss < 1e6:
                    failed[run] = Divergence(run, step, loss)
            for run in failed:  # in a stacked program it goes on computing: let that be NaN
                trainer.stop(run)
            if len(failed) == network.num_runs:
                break
            if store and step < stop and time.monotonic() - latest > SAVE_EVERY:
                save()
                latest = time.monotonic()
        if measure:
            rows += _measure_finite(measure, network, data, step, failed)
            for run in failed:  # those that the measurement found too
                trainer.stop(run)
        if store:
            save()
            latest = time.monotonic()
    bar.update(config.total - step)  # what a group that diverged has left undone
    return rows, list(failed.values())


def _measure_finite(measure, network, data, step, failed) -> list[dict]:
    """Measure the runs that are still finite; a diverged one must not bring the others' metrics down."""
    while alive := [run for run in range(network.num_runs) if run not in failed]:
        part = network if len(alive) == network.num_runs else network.select(alive)
        try:
            return [row | {"run": alive[row["run"]]} for row in measure(part, data, step)]
        except ValueError:  # the metrics refuse infinite features: a batch may look harmless where others explode
            exploded = _exploded(part, data)
            if not exploded:
                raise
            failed.update({alive[run]: Divergence(alive[run], step, math.inf) for run in exploded})
    return []


def _exploded(network, data) -> list[int]:
    with torch.no_grad():
        pre = network.layers(data.x).pre
    return [run for run in range(network.num_runs) if not all(torch.isfinite(z[run]).all() for z in pre)]


class _Batches:
    """Each run's own sequence of batches, a pure function of (seed, step): resuming needs no generator state."""

    def __init__(self, seeds, samples: int, batch_size: int, device):
        self.seeds, self.samples, self.batch_size, self.device = seeds, samples, batch_size, torch.device(device)
        self.per_epoch = samples // batch_size
        self.epoch, self.parts = -1, ()
        # Fifty runs of 60,000 samples take a CPU as long to shuffle as a GPU to train on: shuffle one epoch ahead.
        self.ahead = ThreadPoolExecutor(1) if self.device.type == "cuda" else None
        self.coming: tuple[int, Future] | None = None

    def __call__(self, step: int) -> Tensor:
        """Sample indices of this step, ``(B,)`` for one run and ``(R, B)`` for R."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            ready = self.coming[1] if self.coming and self.coming[0] == epoch else None
            order = ready.result() if ready else self._shuffle(epoch)
            if self.ahead:
                self.coming = epoch + 1, self.ahead.submit(self._shuffle, epoch + 1)
            self.parts = order.to(self.device).split(self.batch_size, dim=-1)
            self.epoch = epoch
        return self.parts[position]

    def _shuffle(self, epoch: int) -> Tensor:
        generator, orders = torch.Generator(), []
        for seed in self.seeds:
            generator.manual_seed((seed << 24) + epoch + 1)
            orders.append(torch.randperm(self.samples, generator=generator))
        return orders[0] if len(orders) == 1 else torch.stack(orders)


def _trainer(network, data, config, lrs, decays):
    kind = _DenseTrainer if isinstance(network, MLP) else _AutogradTrainer
    return kind(network, data, config, lrs, decays)


class _DenseTrainer:
    """SGD on an MLP with forward and backward pass written out over buffers allocated once.

    For one run on a CPU the tensors are matrices and the products ``mm``; for R runs, and on a GPU, they carry a
    leading dimension R and the products are ``bmm``. The equations are the same.
    """

    def __init__(self, network: MLP, data, config: TrainingConfig, lrs, decays):
        self.network, self.config = network, config
        self.recorded = data.x.is_cuda
        self.single = network.num_runs == 1 and not self.recorded
        self.lrs, self.decays = lrs, decays
        self.x, self.y = data.x, torch.nn.functional.one_hot(data.y, data.num_classes).to(data.x.dtype)
        samples, full = len(self.x), config.batch_size is None
        self.batch = config.batch_size or samples
        self.batches = None if full else _Batches(network.seeds, samples, self.batch, self.x.device)
        lead = () if self.single else (network.num_runs,)
        new = lambda *shape: torch.zeros(*lead, *shape, dtype=self.x.dtype, device=self.x.device)  # noqa: E731

        # All weights in one buffer (R, P), and all velocities: the update of every layer is two calls, not 2 L.
        shapes = [w.shape[1:] for w in network.weights]
        self.flat = torch.cat([w.data.flatten(1) for w in network.weights], 1).view(*lead, -1)
        self.velocity = torch.zeros_like(self.flat)
        self.weights, self.velocities = _views(self.flat, shapes), _views(self.velocity, shapes)
        for parameter, view in zip(network.weights, self.weights, strict=True):
            parameter.data = view.unsqueeze(0) if self.single else view

        sizes, curved = network.sizes, network.num_nonlinear
        self.features = [new(self.batch, n) for n in sizes[: curved + 1]]  # H_0, ..., H_{L1}
        # Delta_1, ..., Delta_{L1}, and sigma' of the smooth activation, at their numbers: nothing stands at 0
        self.deltas = [new(0), *(new(self.batch, n) for n in sizes[1 : curved + 1])]
        self.slopes = [torch.zeros_like(d) for d in self.deltas]
        self.smooth = network.activation == "smooth"
        self.target, self.delta = new(self.batch, sizes[-1]), new(self.batch, sizes[-1])
        self.after = [new(sizes[-1], n) for n in sizes[curved:-2]] + [self.weights[-1]]  # A_1, ..., A_m
        self.before = [new(sizes[-1], n) for n in sizes[curved:-2]]  # C_1, ..., C_{m-1}
        if full:
            self.features[0].copy_(self.x)
            self.target.copy_(self.y)
        self.mm = torch.mm if self.single else torch.bmm
        self.accumulate = Tensor.addmm_ if self.single else Tensor.baddbmm_
        # Transposes are made once: on small networks making a view costs as much as a tenth of a product.
        self.weights_t, self.after_t = _transposed(self.weights), _transposed(self.after)
        self.deltas_t, self.delta_t = [self.deltas[0], *_transposed(self.deltas[1:])], self.delta.mT
        if not self.single:
            column = lambda values: torch.tensor(values, dtype=self.x.dtype, device=self.x.device).view(-1, 1)  # noqa: E731
            self.lr_column, self.decay_column = column(lrs), column(decays)
            self.minus_rate = torch.zeros_like(self.lr_column)
            self.index = torch.zeros(network.num_runs * self.batch, dtype=torch.int64, device=self.x.device)
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, step: int) -> None:
        factor = learning_rate_factor(self.config, step)
        if self.single:
            if self.batches:
                index = self.batches(step)
                torch.index_select(self.x, 0, index, out=self.features[0])
                torch.index_select(self.y, 0, index, out=self.target)
            self._forward()
            self._gradients()
            self.velocity.add_(self.flat, alpha=self.decays[0])
            self.flat.add_(self.velocity, alpha=-factor * self.lrs[0])
            return
        torch.mul(self.lr_column, -factor, out=self.minus_rate)
        if self.batches:
            self.index.copy_(self.batches(step).reshape(-1))
        if not self.recorded:
            self._stacked_step()
            return
        if self.graph is None:
            self.graph = _record(self._stacked_step, [self.flat, self.velocity])
        self.graph.replay()

    def _stacked_step(self) -> None:
        if self.batches:
            for source, batch in ((self.x, self.features[0]), (self.y, self.target)):
                torch.index_select(source, 0, self.index, out=batch.view(-1, batch.shape[-1]))
        self._forward()
        self._gradients()
        self.velocity.addcmul_(self.flat, self.decay_column)
        self.flat.addcmul_(self.velocity, self.minus_rate)

    def _forward(self) -> None:
        """H_l = sigma(H_{l-1} W_l') for the ReLU layers, then Delta = H A_1' - Y for the whole head at once.

        With m linear layers V_1, ..., V_m behind H, A_j = V_m ... V_j is what follows layer j-1 of the head.
        """
        h, network = self.features, self.network
        for l in range(1, len(h)):
            self.mm(h[l - 1], self.weights_t[l - 1], out=h[l])
            if self.smooth:
                self.slopes[l].copy_(smooth_derivative(h[l], network.gamma))
                h[l].copy_(network.activate(h[l]))
            else:
                h[l].relu_()
        for j in range(len(self.after) - 2, -1, -1):  # A_j = A_{j+1} V_j
            self.mm(self.after[j + 1], self.weights[len(h) - 1 + j], out=self.after[j])
        self.mm(h[-1], self.after_t[0], out=self.delta)
        self.delta.sub_(self.target)

    def _gradients(self) -> None:
        """v <- mu v + G/B for all layers, by back-propagation: G_l = Delta_l' H_{l-1}.

        In the head, Delta of layer j is Delta A_{j+1} and its input is H (V_{j-1} ... V_1)', so that
        G_j = A_{j+1}' C_j with C_1 = Delta' H and C_{j+1} = C_j V_j'. C and A have K rows where Delta_l and H_l have
        one a sample: a deep head costs little more than its last layer alone.
        """
        momentum, scale, h, delta = self.config.momentum, 1 / self.batch, self.features, self.deltas
        add = lambda l, a, b: self.accumulate(self.velocities[l], a, b, beta=momentum, alpha=scale)  # noqa: E731
        curved = len(h) - 1
        left, right = self.delta_t, h[-1]
        for j, product in enumerate(self.before):  # C_{j+1} = left right
            self.mm(left, right, out=product)
            add(curved + j, self.after_t[j + 1], product)
            left, right = product, self.weights_t[curved + j]
        add(curved + len(self.before), left, right)  # G_m = C_m
        if curved:
            self.mm(self.delta, self.after[0], out=delta[curved])
        for l in range(curved, 0, -1):  # Delta_{l-1} = (Delta_l W_l) * sigma'
            if self.smooth:
                delta[l].mul_(self.slopes[l])
            else:
                _relu_backward(delta[l], h[l], 0, grad_input=delta[l])
            add(l - 1, self.deltas_t[l], h[l - 1])
            if l > 1:
                self.mm(delta[l], self.weights[l - 1], out=delta[l - 1])

    def losses(self) -> list[float]:
        """Each run's loss with its weights as they are now, on its latest batch.

        Infinite where a weight exceeds a million: exploded, though dead ReLUs may hide it from the loss.
        """
        self._forward()
        losses = self.delta.square().sum((-2, -1)) / (2 * self.batch)
        largest = self.flat.abs().amax(-1)
        return torch.where(largest < 1e6, losses, losses + math.inf).reshape(-1).tolist()

    def stop(self, run: int) -> None:
        self.flat.view(self.network.num_runs, -1)[run] = torch.nan

    def state(self) -> dict:
        return {"flat": self.flat.clone(), "velocity": self.velocity.clone()}

    def load_state(self, state: dict) -> None:
        self.flat.copy_(state["flat"])
        self.velocity.copy_(state["velocity"])


class _AutogradTrainer:
    """SGD on one ResNet20: autograd for the gradient, the update as above; on a GPU, replayed from a CUDA graph."""

    def __init__(self, network: ResNet20, data, config: TrainingConfig, lrs, decays):
        self.network, self.config, self.lr, self.decay = network.train(), config, lrs[0], decays[0]
        self.recorded = data.x.is_cuda
        samples, full = len(data.x), config.batch_size is None
        self.batch = config.batch_size or samples
        self.batches = None if full else _Batches(network.seeds, samples, self.batch, data.x.device)
        # Images as rows of a matrix, channels last, so that a batch is gathered into one fixed place.
        _, channels, height, width = data.x.shape
        self.x = data.x.permute(0, 2, 3, 1).reshape(samples, -1)
        self.y = torch.nn.functional.one_hot(data.y, data.num_classes).to(data.x.dtype)
        self.rows, self.target = self.x[: self.batch].clone(), self.y[: self.batch].clone()
        self.images = self.rows.view(self.batch, height, width, channels).permute(0, 3, 1, 2)
        self.index = torch.zeros(self.batch, dtype=torch.int64, device=self.x.device)
        # Parameters, gradients and velocities in one buffer each; autograd adds into the gradients' views.
        parameters = list(network.parameters())
        self.flat = torch.cat([_channels_last(p.data).reshape(-1) for p in parameters])
        self.gradient, self.velocity = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        shapes = [_channels_last(p.data).shape for p in parameters]
        pairs = zip(_views(self.flat, shapes), _views(self.gradient, shapes), strict=True)
        for parameter, (value, gradient) in zip(parameters, pairs, strict=True):
            parameter.data, parameter.grad = _channels_first(value), _channels_first(gradient)
        self.buffers = list(network.buffers())
        self.minus_rate, self.loss = self.x.new_zeros(()), self.x.new_zeros(())
        self.graph: torch.cuda.CUDAGraph | None = None

    def step(self, step: int) -> None:
        self.minus_rate.fill_(-self.lr * learning_rate_factor(self.config, step))
        if self.batches:
            self.index.copy_(self.batches(step))
        if not self.recorded:
            self._step()
            return
        if self.graph is None:
            self.graph = _record(self._step, [self.flat, self.velocity, *self.buffers])
        self.graph.replay()

    def _step(self) -> None:
        if self.batches:
            torch.index_select(self.x, 0, self.index, out=self.rows)
            torch.index_select(self.y, 0, self.index, out=self.target)
        self.gradient.zero_()
        half = self.config.precision == "bfloat16"
        with torch.autocast(self.x.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            z = _backbones(self.network, self.images)
        z = z.to(self.flat.dtype)
        for index, weight in enumerate(self.network.weights):
            z = z @ weight.mT
            z = self.network.activate(z) if index < self.network.num_nonlinear else z
        loss = (z[0] - self.target).square().sum() / (2 * self.batch)
        loss.backward()
        self.loss.copy_(loss.detach())
        self.velocity.mul_(self.config.momentum).add_(self.gradient).add_(self.flat, alpha=self.decay)
        self.flat.addcmul_(self.velocity, self.minus_rate)

    def losses(self) -> list[float]:
        """The loss of the latest batch, before its step; infinite if a weight has exploded in it."""
        return [self.loss.item() if self.flat.abs().max() < 1e6 else math.inf]

    def stop(self, run: int) -> None:
        self.flat.fill_(torch.nan)

    def state(self) -> dict:
        return {name: tensor.clone() for name, tensor in self._changing().items()}

    def load_state(self, state: dict) -> None:
        for name, tensor in self._changing().items():
            tensor.copy_(state[name])

    def _changing(self) -> dict[str | int, Tensor]:
        return {"flat": self.flat, "velocity": self.velocity} | dict(enumerate(self.buffers))


def _record(step: Callable[[], None], changed: list[Tensor]):
    """A CUDA graph of ``step``: launching a hundred small kernels costs more than running them.

    Everything the step reads and writes must stay where it is. ``changed`` is what it updates: the practice steps
    that libraries need before a recording (workspaces, choice of kernels) are undone there.
    """
    before = [tensor.clone() for tensor in changed]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    return graph


class _Checkpoint:
    """State of every group of runs in one file, replaced atomically; refuses another configuration's file.

    The file is a line with the SHA-256 of the rest, then tensors and one JSON text, written by torch and read with
    ``weights_only=True``: opening a stranger's file runs none of their code.
    """

    HEADER = b"ncutils checkpoint "

    def __init__(self, path, fingerprint: str):
        self.path, self.groups = Path(path), {}
        self.fingerprint = fingerprint
        if not self.path.exists():
            return
        if not self.path.is_file():
            raise ValueError(f"checkpoint must be a file; got {self.path}, which is none")
        try:
            written, groups = self._read()
        except Exception as error:  # a damaged file makes torch raise anything
            _files.check_readable(error)
            _files.set_aside(self.path, error)
            return
        if written != fingerprint:
            raise ValueError(
                f"checkpoint {self.path} belongs to another training (fingerprint {written}, "
                f"expected {fingerprint}): move it away or give another file"
            )
        self.groups = groups

    def _read(self) -> tuple[str, dict]:
        line, _, payload = self.path.read_bytes().partition(b"\n")
        if line != self.HEADER + hashlib.sha256(payload).hexdigest().encode():
            raise ValueError("its contents are not those that were written")
        stored = torch.load(io.BytesIO(payload), weights_only=True, map_location="cpu")  # it may have begun on a GPU
        content = _unpacked(json.loads(stored["json"]), stored["tensors"])
        return content["fingerprint"], content["groups"]

    def load(self, number: int):
        if (state := self.groups.get(number)) is None:
            return None
        return state | {"failed": {run: Divergence(run, step, loss) for run, step, loss in state["failed"]}}

    def save(self, number: int, state: dict) -> None:
        self.groups[number] = state | {"failed": [[d.run, d.step, d.loss] for d in state["failed"].values()]}
        tensors: list[Tensor] = []
        text = json.dumps(_packed({"fingerprint": self.fingerprint, "groups": self.groups}, tensors))
        payload = io.BytesIO()
        torch.save({"json": text, "tensors": tensors}, payload)
        data = payload.getvalue()
        with _files.atomic(self.path) as temporary:
            temporary.write_bytes(self.HEADER + hashlib.sha256(data).hexdigest().encode() + b"\n" + data)


def _packed(value, tensors: list[Tensor]):
    """JSON for ``value``, the tensors and arrays in it moved to ``tensors``."""
    if isinstance(value, Tensor):
        tensors.append(value.detach().clone())
        return {"tensor": len(tensors) - 1}
    if isinstance(value, (np.ndarray, np.generic)):
        tensors.append(torch.from_numpy(np.array(value)))
        return {"array" if isinstance(value, np.ndarray) else "scalar": len(tensors) - 1}
    if isinstance(value, dict):
        return {"dict": [[_packed(k, tensors), _packed(v, tensors)] for k, v in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_packed(v, tensors) for v in value]}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise TypeError(
        f"rows must hold numbers, strings, lists, arrays or tensors to be kept in a checkpoint; got {value!r}"
    )


def _unpacked(value, tensors: list[Tensor]):
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("array", "scalar"):
        return tensors[content].numpy() if kind == "array" else tensors[content].numpy()[()]
    if kind == "dict":
        return {_unpacked(k, tensors): _unpacked(v, tensors) for k, v in content}
    return {"list": list, "tuple": tuple}[kind](_unpacked(v, tensors) for v in content)


def _fingerprint(network, data, config: TrainingConfig, measure, stacked: bool) -> str:
    spec = (type(network).__name__, network.sizes, network.num_nonlinear, network.activation, network.gamma)
    how = (_says(measure), stacked, str(data.x.dtype))
    digest = hashlib.sha256(repr((spec, network.seeds, astuple(config), tuple(data.x.shape), how)).encode())
    order = torch.arange(1, len(data.x) + 1, device=data.x.device, dtype=torch.float64)
    moved = order @ data.x.flatten(1).double()  # the same samples in another order are other batches
    for tensor in (data.y, data.x.sum(0, dtype=torch.float64), moved, *network.state_dict().values()):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _says(measure) -> str:
    """What a measure is known by: its name, and what it was compiled to if it is not of this library."""
    return " ".join([getattr(measure, "__qualname__", type(measure).__name__), *_compiled_parts(measure)])


def _compiled_parts(function) -> Iterator[str]:
    """Of a function, what it wraps and what it is a part of: the code, and the numbers and texts given with it."""
    from ncutils.experiments.fingerprint import fingerprint

    while function is not None:
        if isinstance(function, functools.partial):
            given = [*function.args, *itertools.chain(*sorted(function.keywords.items()))]
            plain = [repr(value) for value in given if isinstance(value, (bool, int, float, str))]
            yield from plain if function.func.__module__.partition(".")[0] != "ncutils" else ()
            function = function.func
            continue
        body = function if hasattr(function, "__code__") else type(function).__call__
        if hasattr(body, "__code__") and body.__globals__.get("__name__", "").partition(".")[0] != "ncutils":
            consts = body.__code__.co_consts
            silent = consts[1:] if consts[:1] in ((None,), (body.__doc__,)) else consts  # a docstring says nothing
            yield fingerprint(body.__code__.replace(co_consts=silent))
        function = getattr(function, "__wrapped__", None)


def _check_data(network, data) -> None:
    if not isinstance(network, (MLP, ResNet20)):
        raise TypeError(f"network must be an nn.Module; got {type(network).__name__}")
    if lacking := [name for name in ("x", "y", "num_classes") if not hasattr(data, name)]:
        raise TypeError(
            f"data must be a Dataset(x, y, num_classes, name); got {type(data).__name__}, without {', '.join(lacking)}"
        )
    if len(data.x) != len(data.y) or not len(data.y):
        raise ValueError(f"data must hold as many labels as samples, at least one; got {len(data.y)}, {len(data.x)}")
    if data.y.dtype != torch.int64 or not 0 <= int(data.y.min()) <= int(data.y.max()) < data.num_classes:
        found = f"{data.y.dtype}, {data.y.min().item()}..{data.y.max().item()}"
        raise ValueError(f"data.y must be int64 in 0..{data.num_classes - 1}; got {found}")
    if not torch.isfinite(data.x).all():
        raise ValueError(f"data.x must be finite; got {int((~torch.isfinite(data.x)).sum())} NaN or infinite entries")


def _check_fit(network, data, config: TrainingConfig) -> None:
    weight = network.weights[0]
    if data.x.device != weight.device or data.x.dtype != weight.dtype:
        raise ValueError(
            f"data must be on the network's device and of its dtype ({weight.device}, {weight.dtype}); "
            f"got {data.x.device}, {data.x.dtype}"
        )
    wanted = {"float64": torch.float64, None: weight.dtype}.get(config.precision, torch.float32)
    if weight.dtype != wanted:
        raise ValueError(f"precision {config.precision!r} must be that of the network; got weights of {weight.dtype}")
    largest = torch.finfo(weight.dtype).max
    for name in ("lr", "weight_decay"):
        if max(_as_tuple(getattr(config, name))) > largest:
            raise ValueError(f"{name} must be at most {largest:.3g}, what {wanted} holds; got {getattr(config, name)}")
    if config.batch_size is not None and config.batch_size > len(data.y):
        raise ValueError(f"batch_size must be at most the {len(data.y)} samples; got {config.batch_size}")
    _check_finite(list(network.parameters()))
    if isinstance(network, MLP) and data.x.ndim != 2:
        raise ValueError(f"an MLP trains on x (N, d); got {tuple(data.x.shape)}: use data.flat()")
    _check_inputs(network, data)


def _check_finite(parameters: list) -> None:
    if broken := sum(not bool(torch.isfinite(p).all()) for p in parameters):
        raise ValueError(f"network must have finite weights; got NaN or infinite ones in {broken} of {len(parameters)}")


def _check_inputs(network, data) -> None:
    """That the network takes the data's samples and has an output for each of its classes."""
    if data.num_classes != network.sizes[-1]:
        raise ValueError(f"the network has {network.sizes[-1]} outputs, the data {data.num_classes} classes")
    mlp = isinstance(network, MLP)
    shape, wanted = tuple(data.x.shape), network.sizes[0] if mlp else network.in_channels
    if len(shape) not in ((2, 3) if mlp else (4,)) or shape[-1 if mlp else 1] != wanted:
        asked = f"(N, {wanted}), the inputs of the network" if mlp else f"(N, {wanted}, H, W)"
        raise ValueError(f"data.x must be {asked}; got {shape}")
    if (weight := network.weights[0]).dtype != data.x.dtype:
        raise ValueError(f"data.x must be {weight.dtype} as the weights are; got {data.x.dtype}")


def _copy_run(source, target, run: int) -> None:
    for theirs, ours in zip(source.weights, target.weights, strict=True):
        ours.data[run].copy_(theirs.data[0])
    if isinstance(target, ResNet20):
        target.backbones[run].load_state_dict(source.backbones[0].state_dict())


def _views(flat: Tensor, shapes) -> list[Tensor]:
    """Consecutive pieces of the last dimension of ``flat``, in these shapes."""
    pieces = flat.split([math.prod(shape) for shape in shapes], dim=-1)
    return [piece.view(*flat.shape[:-1], *shape) for piece, shape in zip(pieces, shapes, strict=True)]


def _transposed(matrices: list[Tensor]) -> list[Tensor]:
    return [matrix.mT for matrix in matrices]


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor


def _channels_first(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 3, 1, 2) if tensor.ndim == 4 else tensor


def _as_tuple(value) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def _bar(total: int, show: bool):
    try:
        from tqdm import tqdm
    except ImportError:  # the training path needs torch and numpy alone
        from contextlib import nullcontext
        from types import SimpleNamespace

        return nullcontext(SimpleNamespace(update=lambda count: None))
    off = not show or os.environ.get("TQDM_DISABLE", "") not in ("", "0")
    return tqdm(total=total, unit="step", disable=off, leave=False)
