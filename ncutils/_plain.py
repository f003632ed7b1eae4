"""The plain engine of :func:`ncutils.training.train`: any module, loss and optimiser, by autograd."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from ncutils import training
from ncutils._arguments import shown
from ncutils._measure import _unwrapped, measure
from ncutils.networks import MLP, ResNet20

SMALL = 1_000_000  # parameters below which one thread is the faster choice on a CPU
LARGEST = 1e6  # a loss or a weight beyond has diverged, as in the batched engine


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """``(1/2B) ||f(X) - Y||_F^2`` with one-hot Y: the loss of the book."""
    return (outputs - nn.functional.one_hot(y, outputs.shape[1])).square().sum() / (2 * len(y))


def train(network, data, config, loss, optimizer, measured, progress: bool, seed: int = 0) -> training.TrainingResult:
    """See :func:`ncutils.training.train`; ``seed`` orders the batches of a module of your own."""
    begin = time.perf_counter()
    for name, value in (("loss", loss), ("optimizer", optimizer)):
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function or None; got {type(value).__name__}")
    source = _source(data)
    config = source.steps(config)
    if config.precision not in (None, "float64"):
        raise ValueError(f"precision must be None for the plain engine: cast the module; got {config.precision!r}")
    rows: list[dict] = []
    diverged: list[training.Divergence] = []
    runs = network.num_runs if isinstance(network, (MLP, ResNet20)) else 1
    seeds = network.seeds if isinstance(network, (MLP, ResNet20)) else (seed,)
    lrs, decays = config.per_run("lr", runs), config.per_run("weight_decay", runs)
    with training._bar(config.total * runs, progress) as bar:
        for run in range(runs):
            part = network.run(run) if isinstance(network, (MLP, ResNet20)) else _unwrapped(network)
            one = replace(config, lr=lrs[run], weight_decay=decays[run])
            new, failed = _train_one(part, source, one, loss or squared_error, optimizer, measured, bar, seeds[run])
            extra = {"run": run, "seed": seeds[run], "lr": lrs[run], "weight_decay": decays[run]}
            rows += [row | extra for row in new]
            diverged += [replace(d, run=run) for d in failed]
            if isinstance(network, (MLP, ResNet20)):
                training._copy_run(part, network, run)
    for d in diverged:
        print(f"run {d.run} diverged at step {d.step}: loss {d.loss:.3g}")
    return training.TrainingResult(network, rows, diverged, time.perf_counter() - begin)


def _train_one(module, source, config, loss, optimizer, measured, bar, seed):
    stacked = isinstance(module, (MLP, ResNet20))
    parameters = [p for p in module.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("network must have parameters to train; got none that requires a gradient")
    training._check_finite(parameters)
    plain = dict(lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    stepper = torch.optim.SGD(parameters, **plain) if optimizer is None else optimizer(parameters)
    if not isinstance(stepper, torch.optim.Optimizer):
        raise TypeError(f"optimizer must return a torch.optim.Optimizer; got {type(stepper).__name__}")
    if isinstance(stepper, torch.optim.LBFGS):
        raise ValueError("optimizer must step without a closure; got LBFGS")
    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: training.learning_rate_factor(config, step))
    stops = set(training.measurement_steps(config))
    rows: list[dict] = []
    where = parameters[0].device
    small = where.type == "cpu" and sum(p.numel() for p in parameters) < SMALL
    was_training = module.training
    try:
        with training.one_thread() if small else contextlib.nullcontext():
            module.train()
            batches = source.batches(config.batch_size, seed)
            for step in range(config.total + 1):
                asked = step in stops and measured is not None
                if step and (asked or step == config.total):
                    exploded = [seen for seen in _losses(module, source, loss) if not -math.inf < seen < LARGEST]
                    if exploded or not all(bool((p.detach().abs() < LARGEST).all()) for p in parameters):
                        return rows, [training.Divergence(0, step, [*exploded, math.inf][0])]
                if asked:
                    rows += _rows(module, source, step, measured, loss)
                if step == config.total:
                    break
                x, y = next(batches)
                outputs = _outputs(module, x.to(where), loss, y)
                value = loss(outputs[0] if stacked else outputs, y.to(where))
                if step == 0:
                    _check_loss(value)
                if not -math.inf < value.item() < LARGEST:
                    return rows, [training.Divergence(0, step, value.item())]
                stepper.zero_grad()
                value.backward()
                stepper.step()
                schedule.step()
                bar.update(1)
    finally:
        module.train(was_training)
    return rows, []


def _outputs(module: nn.Module, x: Tensor, loss: Callable, y: Tensor):
    """The module on a batch, refused in our words."""
    try:
        outputs = module(x)
    except torch.cuda.OutOfMemoryError:  # a RuntimeError too
        raise
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"data: the network cannot take x of {tuple(x.shape)}, {x.dtype}: {error}") from error
    if loss is squared_error:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else shown(outputs)
        if isinstance(shape, str) or len(shape) < 2 or shape[-2] != len(y):
            raise ValueError(f"network must return (N, K), N = {len(y)}, for the squared error; got {shape}")
    return outputs


def _check_loss(value, graph: bool = True) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or (graph and not value.requires_grad):
        seen = shown(value.detach()) if isinstance(value, Tensor) else shown(value)
        raise ValueError(f"loss must return one number with a gradient; got {seen}")


def _losses(module: nn.Module, source, loss: Callable) -> list[float]:
    """The loss on each part of the data in evaluation mode; none where it takes no such outputs."""
    was_training, where = module.training, next(module.parameters()).device
    stacked, found = isinstance(module, (MLP, ResNet20)), []
    try:
        module.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):  # a loader draws from the generator
            for x, y in source.parts():
                outputs = module(x.to(where))
                found.append(float(loss(outputs[0] if stacked else outputs, y.to(where))))
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # such as a second head that only training has
        return []
    finally:
        module.train(was_training)
    return found


def _rows(module, source, step: int, measured: Callable, loss: Callable) -> list[dict]:
    """One row a layer: :func:`training.measure_layers` for our networks, :func:`ncutils.measure` for other modules."""
    if measured is not training.measure_layers or isinstance(module, (MLP, ResNet20)):
        return measured(module, source.dataset, step)
    return measure_module(module, source.dataset, step, loss)


def measure_module(module, data, step: int, loss: Callable, layers=None) -> list[dict]:
    """One row a place of :func:`ncutils.measure`, each with the loss, accuracy and error of the whole."""
    source = _source(data)
    was_training, seen = module.training, []
    module.eval()
    with torch.no_grad():
        where = next(module.parameters()).device
        for x, y in source.parts():
            x, y = x.to(where), y.to(where)
            seen.append((_outputs(module, x, squared_error, y), y))
        outputs, y = (torch.cat(parts) for parts in zip(*seen, strict=True))
        _check_loss(value := loss(outputs, y), graph=False)
        value, error = float(value), 2 * len(y) * float(squared_error(outputs.double(), y))
        right = int((outputs.argmax(1) == y).sum())
    module.train(was_training)
    frame = measure(module, source.pairs(), layers)
    whole = {"loss": value, "accuracy": right / len(y), "error": math.sqrt(error)}
    rows = []
    for index, row in enumerate(frame.to_dict("records")):
        part = "linear" if row["product_nc2"] == row["product_nc2"] or row["layer"] == "output" else "nonlinear"
        names = {"layer": index, "name": row["layer"], "part": part, "step": step}
        rows.append({k: v for k, v in row.items() if k not in ("run", "layer")} | names | whole)
    return rows


class _Tensors:
    """A data set in memory: batches without replacement, epoch by epoch, a rest smaller than a batch left out."""

    def __init__(self, x: Tensor, y: Tensor, dataset):
        if not len(y) or len(x) != len(y):
            raise ValueError(f"data must hold as many labels as samples, at least one; got {len(y)}, {len(x)}")
        if y.ndim != 1 or y.is_floating_point() or int(y.min()) < 0:
            found = f"{y.dtype} {tuple(y.shape)}, least {y.min().item()}"
            raise ValueError(f"data must have integer labels (N,) from 0 on; got {found}")
        if x.is_floating_point() and not torch.isfinite(x).all():
            bad = int((~torch.isfinite(x)).sum())
            raise ValueError(f"data must be finite; got {bad} NaN or infinite entries")
        self.x, self.y, self.dataset = x, y.long(), dataset

    def __len__(self) -> int:
        return len(self.y)

    def steps(self, config):
        return config.for_samples(len(self))

    def pairs(self):
        return self.x, self.y

    def parts(self, size: int = 1000) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self.x.split(size), self.y.split(size), strict=True)

    def batches(self, size: int | None, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        size = len(self) if size is None else size
        if size > len(self):
            raise ValueError(f"batch_size must be at most the {len(self)} samples; got {size}")
        draw = torch.Generator().manual_seed(seed)
        while True:
            for batch in torch.randperm(len(self), generator=draw)[: len(self) // size * size].split(size):
                yield self.x[batch], self.y[batch]


class _Loader:
    """A ``DataLoader`` as it is: its own batches, order and augmentation."""

    def __init__(self, loader):
        self.loader = self.dataset = loader

    def steps(self, config):
        """An epoch is one pass through the loader, whatever its batches."""
        return config if config.epochs is None else replace(config, steps=config.epochs * len(self.loader), epochs=None)

    def pairs(self):
        return self.loader

    def parts(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.loader)

    def batches(self, size: int | None, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            count = 0
            for x, y in self.loader:
                yield x, y.long()
                count += 1
            if not count:
                raise ValueError("data must hold at least one batch; got an empty loader")


def _source(data):
    if all(hasattr(data, name) for name in ("x", "y", "num_classes")):
        return _Tensors(data.x, data.y, data)
    if isinstance(data, torch.utils.data.DataLoader):
        return _Loader(data)
    if isinstance(data, torch.utils.data.Dataset):
        pairs = [data[i] for i in range(len(data))]  # type: ignore[arg-type]
        x, y = torch.stack([torch.as_tensor(x) for x, _ in pairs]), torch.as_tensor([int(y) for _, y in pairs])
        return _Tensors(x, y, data)
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        return _Tensors(torch.as_tensor(data[0]), torch.as_tensor(data[1]), data)
    raise TypeError(f"data must be a Dataset, a DataLoader or a pair (x, y); got {type(data).__name__}")
