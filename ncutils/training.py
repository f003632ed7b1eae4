"""Training R runs at once: (stochastic) gradient descent with weight decay on the squared loss.

The objective of every run is ``(1/2B) ||f(X) - Y||_F^2 + (weight_decay/2) ||theta||^2`` over a batch of B samples,
Y one-hot. On a GPU all runs of an MLP step together as one stacked program, replayed from a CUDA graph; on a CPU,
where stacking gains nothing, the runs go one after the other through the same equations as plain matrices. A run's
result depends on its own seed, step size and weight decay alone, never on its neighbours.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ncutils import metrics
from ncutils.networks import MLP, ResNet20, smooth_derivative

__all__ = [
    "Divergence",
    "TrainingConfig",
    "TrainingResult",
    "learning_rate_factor",
    "measure_layers",
    "measurement_steps",
    "train",
]


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
        measurements: how many times to measure, geometrically spaced, first and last step included.
    """

    steps: int
    lr: float | tuple[float, ...] = 0.05
    weight_decay: float | tuple[float, ...] = 0.0018
    momentum: float = 0.9
    batch_size: int | None = 100
    warmup_steps: int = 300
    drop_at: float = 0.8
    drop_factor: float = 0.1
    measurements: int = 20

    def __post_init__(self):
        if self.steps < 0 or self.warmup_steps < 0:
            raise ValueError(f"steps and warmup_steps must be >= 0; got {self.steps} and {self.warmup_steps}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1); got {self.momentum}")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size must be None or >= 1; got {self.batch_size}")
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))
            if any(v < 0 or not math.isfinite(v) for v in _as_tuple(getattr(self, name))):
                raise ValueError(f"{name} must be finite and >= 0; got {value}")

    def per_run(self, name: str, runs: int) -> tuple[float, ...]:
        """``lr`` or ``weight_decay`` as one number a run."""
        values = _as_tuple(getattr(self, name))
        values = values * runs if len(values) == 1 else values
        if len(values) != runs:
            raise ValueError(f"{name} must be one number or {runs} (one a run); got {len(values)}: {values}")
        return values


@dataclass(frozen=True)
class Divergence:
    """A run that left the finite numbers: which, when, and the loss last seen."""

    run: int
    step: int
    loss: float


@dataclass
class TrainingResult:
    """What :func:`train` returns; ``rows`` are the measurements, one dict per (run, layer, step)."""

    network: MLP | ResNet20
    rows: list[dict]
    diverged: list[Divergence] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def frame(self):
        """The measurements as a pandas ``DataFrame``."""
        import pandas as pd

        return pd.DataFrame(self.rows)


def learning_rate_factor(config: TrainingConfig, step: int) -> float:
    """Factor on the step size at ``step``: linear warm-up, then 1, then the drop."""
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return warmup * (config.drop_factor if step >= config.drop_at * config.steps else 1.0)


def measurement_steps(config: TrainingConfig) -> list[int]:
    """Steps at which to measure: 0, geometrically spaced ones, the last, and the moment of the drop."""
    last, count = config.steps, config.measurements
    if count < 1 or last == 0:
        return [last]
    spaced = {round(last ** (i / max(count - 2, 1))) for i in range(count - 1)}
    return sorted({0, *spaced, min(last, math.ceil(config.drop_at * last)), last})


def measure_layers(network: MLP | ResNet20, data, step: int) -> list[dict]:
    """The standard measurement: every metric of every dense layer of every run, on ``data`` in evaluation mode.

    Returns:
        One dict per (run, layer): ``run, step, layer, part, nc1, nc2, negativity, condition``, where defined
        ``balancedness, balancedness_relative`` (between this layer and the next) and, at layer L-1, ``nc3, nc4``;
        and repeated on each row the run's ``loss`` (data term, per sample), ``error`` (||f(X) - Y||_F), ``accuracy``.
    """
    was_training = network.training
    network.eval()
    with torch.no_grad():
        layers = _in_chunks(network, data.x)
    network.train(was_training)
    weights = [w.detach() for w in network.weights]
    targets = torch.nn.functional.one_hot(data.y, data.num_classes).to(torch.float64)
    output = layers.post[-1].double()
    error = torch.linalg.matrix_norm(output - targets)
    whole = {
        "loss": error.square() / (2 * len(data.y)),
        "error": error,
        "accuracy": (output.argmax(-1) == data.y).double().mean(-1),
    }
    rows = []
    for index in range(network.num_layers):
        post = layers.post[index]
        columns = {
            "nc1": metrics.nc1(post, data.y),
            "nc2": metrics.nc2(post, data.y),
            "negativity": metrics.negativity(layers.pre[index]),
            "condition": metrics.condition_number(weights[index]),
        }
        if index + 1 < network.num_layers:
            for kind, name in (("op", "balancedness"), ("relative", "balancedness_relative")):
                columns[name] = metrics.balancedness(weights[index], weights[index + 1], kind)
        if index == network.num_layers - 2:
            columns["nc3"] = metrics.nc3(post, data.y, weights[-1])
            columns["nc4"] = metrics.nc4(post, data.y, weights[-1])
        columns = {name: value.tolist() for name, value in {**columns, **whole}.items()}
        part = "nonlinear" if index < network.num_nonlinear else "linear"
        for run in range(network.num_runs):
            values = {name: value[run] for name, value in columns.items()}
            rows.append({"run": run, "step": step, "layer": index + 1, "part": part, **values})
    return rows


def train(
    network: MLP | ResNet20,
    data,
    config: TrainingConfig,
    *,
    measure: Callable[[MLP | ResNet20, object, int], list[dict]] | None = measure_layers,
    progress: bool = True,
    checkpoint: str | os.PathLike | None = None,
    engine: str = "auto",
) -> TrainingResult:
    """Train every run of ``network`` in place.

    Args:
        network: R initialised runs; their seeds also fix the batch orders.
        data: an object with ``x`` ``(N, ...)``, ``y`` ``(N,)`` and ``num_classes``, on the network's device.
        config: see :class:`TrainingConfig`.
        measure: called as ``measure(network, data, step)`` at :func:`measurement_steps`, with a network that may hold
            only some of the runs; returns rows with a key ``run`` counted from 0 in that network. None measures never.
        progress: show a bar (needs tqdm; silent where ``TQDM_DISABLE`` is set).
        checkpoint: file to write at every measurement and to resume from; removed by nobody but the caller.
        engine: ``"stacked"`` steps all runs of an MLP as one program, ``"sequential"`` takes one run after the other;
            ``"auto"`` stacks on a GPU only.

    Returns:
        The trained network, the rows with ``seed, lr, weight_decay`` added, the runs that diverged, the seconds spent.
        A run that diverges stops alone: it keeps its rows up to then, and NaN weights.

    Raises:
        ValueError: per-run values of the wrong number, a batch larger than the data, data on another device, a
            checkpoint of another configuration.
    """
    start = time.perf_counter()
    runs = network.num_runs
    lrs, decays = config.per_run("lr", runs), config.per_run("weight_decay", runs)
    _check_data(network, data, config)
    if engine not in ("auto", "sequential", "stacked"):
        raise ValueError(f"engine must be 'auto', 'sequential' or 'stacked'; got {engine!r}")
    stacked = isinstance(network, MLP) and (engine == "stacked" or (engine == "auto" and data.x.is_cuda))
    groups = [list(range(runs))] if stacked else [[run] for run in range(runs)]
    store = _Checkpoint(checkpoint, _fingerprint(network, data, config)) if checkpoint else None
    rows: list[dict] = []
    diverged: list[Divergence] = []
    with _bar(config.steps * len(groups), progress) as bar:
        for number, group in enumerate(groups):
            part = network if len(group) == runs else network.run(group[0])
            trainer = _trainer(part, data, config, [lrs[r] for r in group], [decays[r] for r in group])
            new, failed = _train_group(trainer, part, data, config, measure, bar, store, number)
            for row in new:
                run = group[row["run"]]
                extra = {"seed": network.seeds[run], "lr": lrs[run], "weight_decay": decays[run]}
                rows.append({**row, **extra, "run": run})
            diverged += [Divergence(group[d.run], d.step, d.loss) for d in failed]
            if part is not network:
                _copy_run(part, network, group[0])
    for d in diverged:
        print(f"run {d.run} (seed {network.seeds[d.run]}) diverged at step {d.step}: loss {d.loss:.3g}")
    return TrainingResult(network, rows, diverged, time.perf_counter() - start)


def _train_group(trainer, network, data, config, measure, bar, store, number):
    """Take one group of runs through all steps; stop early only when every run of it has diverged."""
    rows, failed, step = [], {}, 0
    if store and (saved := store.load(number)):
        step, rows, failed = saved["step"], saved["rows"], saved["failed"]
        trainer.load_state(saved["trainer"])
        bar.update(step)
    stops = measurement_steps(config) if measure else [config.steps]
    check_every = 50
    for stop in stops:
        # A checkpoint is written after its measurement, so the stop it was written at is done.
        if stop < step or (stop == step and rows and rows[-1]["step"] == step):
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
            if len(failed) == len(losses):
                bar.update(config.steps - step)
                return rows, list(failed.values())
        if measure:
            trainer.sync()
            rows += _measure_finite(measure, network, data, step, failed)
        if store:
            state = {"step": step, "rows": rows, "failed": failed, "trainer": trainer.state()}
            store.save(number, state)
    trainer.sync()
    return rows, list(failed.values())


def _measure_finite(measure, network, data, step, failed) -> list[dict]:
    """Measure the runs that are still finite; a diverged one must not bring the others' metrics down."""
    if not failed:
        return measure(network, data, step)
    rows = []
    for run in (r for r in range(network.num_runs) if r not in failed):
        rows += [{**row, "run": run} for row in measure(network.run(run), data, step)]
    return rows


class _Batches:
    """Each run's own sequence of batches, a pure function of (seed, step): resuming needs no generator state."""

    def __init__(self, seeds, samples: int, batch_size: int, device):
        self.seeds, self.samples, self.batch_size, self.device = seeds, samples, batch_size, device
        self.per_epoch = samples // batch_size
        self.epoch, self.order = -1, None

    def __call__(self, step: int) -> Tensor:
        """Sample indices ``(R, B)`` of this step."""
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self.epoch:
            generator = torch.Generator()
            orders = []
            for seed in self.seeds:
                generator.manual_seed((seed << 24) + epoch + 1)
                orders.append(torch.randperm(self.samples, generator=generator))
            self.order = torch.stack(orders).to(self.device, non_blocking=True)
            self.epoch = epoch
        start = position * self.batch_size
        return self.order[:, start : start + self.batch_size]


def _trainer(network, data, config, lrs, decays):
    kind = _DenseTrainer if isinstance(network, MLP) else _AutogradTrainer
    return kind(network, data, config, lrs, decays)


class _DenseTrainer:
    """SGD on an MLP with forward and backward pass written out over buffers allocated once.

    For one run the tensors are matrices and the products ``mm``; for R runs they carry a leading dimension R and the
    products are ``bmm``. The equations are the same.
    """

    def __init__(self, network: MLP, data, config: TrainingConfig, lrs, decays):
        self.network, self.config = network, config
        self.single = network.num_runs == 1
        self.lrs, self.decays = lrs, decays
        self.x = data.x
        self.y = torch.nn.functional.one_hot(data.y, data.num_classes).to(data.x.dtype)
        samples = len(self.x)
        self.batch = samples if config.batch_size is None else config.batch_size
        full = config.batch_size is None
        self.batches = None if full else _Batches(network.seeds, samples, self.batch, self.x.device)
        lead = () if self.single else (network.num_runs,)
        new = lambda *shape: torch.empty(*lead, *shape, dtype=self.x.dtype, device=self.x.device)  # noqa: E731
        # All weights in one flat buffer, and all velocities: the update of every layer is then two calls, not 2L.
        self.flat = torch.cat([w.data.reshape(-1) for w in network.weights])
        self.velocity = torch.zeros_like(self.flat)
        shapes = [w.shape[1:] if self.single else w.shape for w in network.weights]
        self.weights, self.velocities = _views(self.flat, shapes), _views(self.velocity, shapes)
        for parameter, view in zip(network.weights, self.weights, strict=True):
            parameter.data = view.unsqueeze(0) if self.single else view
        sizes = network.sizes
        self.features = [new(self.batch, n) for n in sizes]
        self.deltas = [None, *(new(self.batch, n) for n in sizes[1:])]
        is_smooth = network.activation == "smooth"
        self.slopes = [new(self.batch, n) for n in sizes[1 : network.num_nonlinear + 1]] if is_smooth else []
        self.target = new(self.batch, sizes[-1])
        if full:
            self.features[0].copy_(self.x)
            self.target.copy_(self.y)
        self.mm = torch.mm if self.single else torch.bmm
        self.accumulate = Tensor.addmm_ if self.single else Tensor.baddbmm_
        if not self.single:
            column = lambda values: torch.tensor(values, dtype=self.x.dtype, device=self.x.device).view(-1, 1, 1)  # noqa: E731
            self.lr_column, self.decay_column = column(lrs), column(decays)
            self.minus_rate = torch.zeros_like(self.lr_column)
            self.index = torch.zeros(network.num_runs * self.batch, dtype=torch.int64, device=self.x.device)
        self.graph = None

    def step(self, step: int) -> None:
        factor = learning_rate_factor(self.config, step)
        if self.single:
            if self.batches:
                index = self.batches(step)[0]
                torch.index_select(self.x, 0, index, out=self.features[0])
                torch.index_select(self.y, 0, index, out=self.target)
            self._gradients()
            self.velocity.add_(self.flat, alpha=self.decays[0])
            self.flat.add_(self.velocity, alpha=-factor * self.lrs[0])
            return
        torch.mul(self.lr_column, -factor, out=self.minus_rate)
        if self.batches:
            self.index.copy_(self.batches(step).reshape(-1))
        if self.x.is_cuda:
            self._replay()
        else:
            self._stacked_step()

    def _stacked_step(self) -> None:
        if self.batches:
            for source, batch in ((self.x, self.features[0]), (self.y, self.target)):
                torch.index_select(source, 0, self.index, out=batch.view(-1, batch.shape[-1]))
        self._gradients()
        for weight, velocity in zip(self.weights, self.velocities, strict=True):
            velocity.addcmul_(weight, self.decay_column)
            weight.addcmul_(velocity, self.minus_rate)

    def _gradients(self) -> None:
        """v_l <- mu v_l + (1/B) Delta_l' H_{l-1} for all layers, by back-propagation of Delta_L = H_L - Y."""
        network, h, delta = self.network, self.features, self.deltas
        last, curved = network.num_layers, network.num_nonlinear
        for l, weight in enumerate(self.weights, start=1):  # H_l = sigma(H_{l-1} W_l')
            self.mm(h[l - 1], weight.mT, out=h[l])
            if l <= curved:
                if self.slopes:
                    self.slopes[l - 1].copy_(smooth_derivative(h[l], network.gamma))
                    h[l].copy_(network.activate(h[l]))
                else:
                    h[l].relu_()
        torch.sub(h[last], self.target, out=delta[last])
        for l in range(last, 0, -1):
            # The momentum sum is folded into the product: one pass over the velocity instead of two.
            self.accumulate(
                self.velocities[l - 1],
                delta[l].mT,
                h[l - 1],
                beta=self.config.momentum,
                alpha=1 / self.batch,
            )
            if l > 1:  # Delta_{l-1} = (Delta_l W_l) * sigma'
                self.mm(delta[l], self.weights[l - 1], out=delta[l - 1])
                if l - 1 <= curved:
                    if self.slopes:
                        delta[l - 1].mul_(self.slopes[l - 2])
                    else:
                        torch.ops.aten.threshold_backward.grad_input(delta[l - 1], h[l - 1], 0, grad_input=delta[l - 1])

    def _replay(self) -> None:
        """Launching a hundred small kernels costs more than running them: record the step once, replay it."""
        if self.graph is None:
            keep = self.flat.clone(), self.velocity.clone()
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # cuBLAS must have its workspace before the recording starts
                for _ in range(3):
                    self._stacked_step()
            torch.cuda.current_stream().wait_stream(stream)
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):
                self._stacked_step()
            self.flat.copy_(keep[0])
            self.velocity.copy_(keep[1])
        self.graph.replay()

    def losses(self) -> list[float]:
        """Each run's loss on its latest batch."""
        squares = self.deltas[-1].square().sum((-2, -1)) / (2 * self.batch)
        return squares.reshape(-1).tolist()

    def sync(self) -> None:
        """Nothing to do: the network's weights are views of the buffer that is trained."""

    def state(self) -> dict:
        return {"flat": self.flat.clone(), "velocity": self.velocity.clone()}

    def load_state(self, state: dict) -> None:
        self.flat.copy_(state["flat"])
        self.velocity.copy_(state["velocity"])


class _AutogradTrainer:
    """One run of any network through autograd and ``torch.optim.SGD``: convolutions and batch norm."""

    def __init__(self, network: ResNet20, data, config: TrainingConfig, lrs, decays):
        self.network, self.config, self.lr = network.train(), config, lrs[0]
        self.x = data.x.contiguous(memory_format=torch.channels_last)
        self.y = torch.nn.functional.one_hot(data.y, data.num_classes).to(data.x.dtype)
        samples = len(self.x)
        self.batch = samples if config.batch_size is None else config.batch_size
        full = config.batch_size is None
        self.batches = None if full else _Batches(network.seeds, samples, self.batch, self.x.device)
        self.optimizer = torch.optim.SGD(
            network.parameters(), lr=self.lr, momentum=config.momentum, weight_decay=decays[0]
        )
        self.loss = torch.zeros(())

    def step(self, step: int) -> None:
        self.network.train()
        self.optimizer.param_groups[0]["lr"] = self.lr * learning_rate_factor(self.config, step)
        index = self.batches(step)[0] if self.batches else slice(None)
        self.optimizer.zero_grad(set_to_none=True)
        loss = (self.network(self.x[index])[0] - self.y[index]).square().sum() / (2 * self.batch)
        loss.backward()
        self.optimizer.step()
        self.loss = loss.detach()

    def losses(self) -> list[float]:
        return [self.loss.item()]

    def sync(self) -> None:
        """Nothing to do: the optimiser works on the network's own weights."""

    def state(self) -> dict:
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state(self, state: dict) -> None:
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])


class _Checkpoint:
    """State of every group of runs in one file, replaced atomically; refuses another configuration's file."""

    def __init__(self, path, fingerprint: str):
        self.path, self.groups = Path(path), {}
        self.fingerprint = fingerprint
        if self.path.exists():
            saved = torch.load(self.path, weights_only=False)
            if saved["fingerprint"] != fingerprint:
                raise ValueError(
                    f"checkpoint {self.path} belongs to another training (fingerprint {saved['fingerprint']}, "
                    f"expected {fingerprint}): move it away or give another file"
                )
            self.groups = saved["groups"]

    def load(self, number: int):
        return self.groups.get(number)

    def save(self, number: int, state: dict) -> None:
        self.groups[number] = state
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            torch.save({"fingerprint": self.fingerprint, "groups": self.groups}, temporary)
            os.replace(temporary, self.path)
        except (OSError, RuntimeError) as error:  # on a full disk torch's writer raises a RuntimeError
            temporary.unlink(missing_ok=True)
            raise OSError(f"could not write {self.path}: {error}") from error


def _fingerprint(network, data, config: TrainingConfig) -> str:
    spec = (type(network).__name__, network.sizes, network.num_nonlinear, network.activation, network.gamma)
    digest = hashlib.sha256(repr((spec, network.seeds, astuple(config), data.x.shape)).encode())
    digest.update(data.y.cpu().numpy().tobytes())
    digest.update(data.x.double().sum(0).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_data(network, data, config: TrainingConfig) -> None:
    weight = network.weights[0]
    if data.x.device != weight.device or data.x.dtype != weight.dtype:
        raise ValueError(
            f"data must be on the network's device and of its dtype ({weight.device}, {weight.dtype}); "
            f"got {data.x.device}, {data.x.dtype}"
        )
    if config.batch_size is not None and config.batch_size > len(data.y):
        raise ValueError(f"batch_size must be at most the {len(data.y)} samples; got {config.batch_size}")
    if data.num_classes != network.sizes[-1]:
        raise ValueError(f"the network has {network.sizes[-1]} outputs, the data {data.num_classes} classes")
    if isinstance(network, MLP) and data.x.ndim != 2:
        raise ValueError(f"an MLP trains on x (N, d); got {tuple(data.x.shape)}: use data.flat()")


def _copy_run(source, target, run: int) -> None:
    for theirs, ours in zip(source.weights, target.weights, strict=True):
        ours.data[run].copy_(theirs.data[0])
    if isinstance(target, ResNet20):
        target.backbones[run].load_state_dict(source.backbones[0].state_dict())


def _views(flat: Tensor, shapes) -> list[Tensor]:
    views, start = [], 0
    for shape in shapes:
        size = math.prod(shape)
        views.append(flat[start : start + size].view(shape))
        start += size
    return views


def _in_chunks(network, x: Tensor, size: int = 2000):
    """``network.layers(x)`` without holding a convolutional backbone's activations for all samples at once."""
    if isinstance(network, MLP) or len(x) <= size:
        return network.layers(x)
    parts = [network.layers(chunk) for chunk in x.split(size)]
    joined = [[torch.cat(tensors, -2) for tensors in zip(*lists, strict=True)] for lists in zip(*parts, strict=True)]
    return type(parts[0])(*joined)


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
