"""Neural collapse in the layers of any ``nn.Module``, read from a loader batch by batch: one row a layer."""

from __future__ import annotations

import contextlib
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ncutils import metrics
from ncutils._arguments import device as device_of_torch
from ncutils._arguments import flag, integer, optional, shown
from ncutils.networks import MLP, ResNet20

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["measure"]

_POOLS = {
    "mean": lambda z: z.flatten(2).mean(-1),
    "max": lambda z: z.flatten(2).amax(-1),
    "flatten": lambda z: z.flatten(1),
}


def measure(
    model: nn.Module,
    data,
    layers=None,
    *,
    reference=None,
    pool: str | Callable[[Tensor], Tensor] = "mean",
    device: str | torch.device | None = None,
    autocast: torch.dtype | None = None,
    batch_size: int = 256,
    progress: bool = False,
) -> pd.DataFrame:
    """NC1 to NC4 of the layers of a model on a data set, streamed: memory does not grow with the number of samples.

    The data are read twice, once for the class means and once for what is relative to them, in evaluation mode and
    without gradients. They must be the same both times: switch random augmentation off. The model's training modes,
    device and hooks, and the state of torch's random numbers, are afterwards as they were, whatever happens.

    Args:
        model: any module whose samples are rows; ``DataParallel`` and ``torch.compile`` are unwrapped. An
            :class:`ncutils.MLP` or :class:`ncutils.ResNet20` is measured run by run.
        data: a ``DataLoader`` of pairs ``(x, y)``, a ``Dataset`` of them, one pair of tensors ``(x, y)`` or an
            :class:`ncutils.data.Classification`; y holds integers ``0..K-1``, every class present.
        layers: names of modules (their outputs), ``"NAME.input"``, ``"output"``, patterns such as ``"layer*"``, module
            types, or several of these. Default: the input of every ``nn.Linear``, and the output.
        reference: the training data, in the same forms: NC1 is then the scatter of ``data`` about the class means of
            the reference, relative to their distances, and the nearest class mean is one of these.
        pool: how features ``(N, C, H, W)`` become vectors: ``"mean"``, ``"max"`` over positions, ``"flatten"``, or a
            function; features ``(N, T, d)``, whose order is ambiguous, need ``"flatten"`` or a function.
        device: where to compute; the model's own by default.
        autocast: dtype of mixed precision in the forward pass, such as ``torch.bfloat16``.
        batch_size: of a ``Dataset`` or a pair.
        progress: show a bar (needs tqdm).

    Returns:
        One row a layer, in the order in which they run, or in that of ``layers``: ``run, layer``; ``nc1, nc1_pinv,
        cdnv`` (:func:`ncutils.metrics.nc1`), ``nc2, nc2_etf, nc2_orthogonal``, ``equinorm, equiangularity``; ``nc3,
        self_duality`` and ``product_nc2`` for the inputs of the last linear layer and of the bias-free linear layers
        right before it, with the product W_L...W_l as the weight; ``nc4``, the share of samples to which the model's
        output gives the class of the nearest mean; ``ncc_accuracy``; ``stable_rank, numerical_rank`` of the matrix of
        class means. NaN where undefined.

    Raises:
        ValueError: naming what in ``model``, ``data``, ``layers`` or ``pool`` is wrong, seen and expected.

    Example:
        >>> x, y = torch.randn(60, 5), torch.arange(60) % 3
        >>> model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> list(measure(model, (x, y)).layer)
        ['0.input', '2.input', 'output']
    """
    import pandas as pd

    integer(least=1)("batch_size", batch_size)
    optional(device_of_torch)("device", device)
    flag("progress", progress)
    if isinstance(layers, Iterable) and not isinstance(layers, (str, type, nn.Module, Tensor)):
        layers = list(layers)  # a generator, asked once a run
    if isinstance(model, (MLP, ResNet20)):
        options = {"reference": reference, "pool": pool, "device": device, "autocast": autocast}
        options |= {"batch_size": batch_size, "progress": progress}
        frames = [measure(model.sequential(r), data, layers, **options) for r in range(model.num_runs)]
        return pd.concat([frame.assign(run=run) for run, frame in enumerate(frames)], ignore_index=True)
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"model must be an nn.Module that is not TorchScript; got {type(model).__name__}")
    if not callable(pool) and (not isinstance(pool, str) or pool not in _POOLS):
        raise ValueError(f"pool must be one of {', '.join(map(repr, _POOLS))} or a function; got {pool!r}")
    model = _unwrapped(model)
    first = next(iter([*model.parameters(), *model.buffers()]), torch.zeros(()))
    where = torch.device(device) if device is not None else first.device
    wanted = _points(model, layers)
    batches = _batches("data", data, batch_size)
    about = batches if reference is None else _batches("reference", reference, batch_size)
    reader = _Reader(model, wanted, pool, where, autocast, progress)
    with _undisturbed(model, where, first.device):
        seen = _Seen()
        seen.head = reader.head("data", batches)
        reader.read("data" if reference is None else "reference", about, seen.means)
        seen.settle()
        reader.read("data", batches, seen.relative, seen.outputs)
        ran = seen.statistics if layers is None else wanted  # in the order in which they run, or were asked for
        return pd.DataFrame([seen.row(name) for name in ran if name in seen.statistics])


class _Seen:
    """What the two readings of the data have gathered, by layer."""

    def __init__(self):
        self.statistics: dict[str, metrics.ClassStatistics] = {}
        self.total, self.count, self.basis = 0, torch.zeros(0, dtype=torch.float64), {}
        self.spread, self.scatter, self.right, self.agree, self.cosine = {}, {}, {}, {}, {}
        self.near: dict[str, Tensor] = {}
        self.head: dict[str, Tensor] = {}

    def means(self, name: str, z: Tensor, y: Tensor) -> None:
        self.statistics.setdefault(name, metrics.ClassStatistics()).update(z, y)

    def settle(self) -> None:
        for name, statistics in self.statistics.items():
            statistics._complete(2)
            self.basis[name] = statistics.between_basis()

    def relative(self, name: str, z: Tensor, y: Tensor) -> None:
        statistics = self.statistics[name]
        if int(y.max()) >= statistics.num_classes or int(y.min()) < 0:
            raise ValueError(
                f"labels must be 0..{statistics.num_classes - 1} as in the reference; got {y.min()}..{y.max()}"
            )
        add = lambda total, value: total.__setitem__(name, total.get(name, 0.0) + float(value))  # noqa: E731
        add(self.spread, statistics.spread_along(self.basis[name], z, y))
        # The scatter of these samples about the means of the reference, which may not be their own.
        scatter = torch.zeros(statistics.num_classes, dtype=torch.float64, device=z.device)
        deviation = z.double() - statistics._shift.index_select(0, y) - statistics._offset.index_select(0, y)
        scatter.index_add_(0, y, deviation.square().sum(-1))
        if not torch.isfinite(scatter).all():
            metrics._finite("features", z)
        self.scatter[name] = self.scatter.get(name, 0) + scatter
        self.near[name] = statistics.nearest(z)
        add(self.right, (self.near[name] == y).sum())
        if name in self.head and len(self.head[name]) == statistics.num_classes:
            add(self.cosine, metrics.alignments(z, y, self.head[name]))

    def outputs(self, output, y: Tensor) -> None:
        self.total += len(y)
        counts = torch.bincount(y, minlength=next(iter(self.statistics.values())).num_classes)
        self.count = self.count + counts if len(self.count) else counts.double()
        for name, near in self.near.items():
            logits = isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] == len(counts)
            same = float((output.argmax(1) == near).sum()) if logits else float("nan")
            self.agree[name] = self.agree.get(name, 0.0) + same

    def row(self, name: str) -> dict:
        seen, nan = self.statistics[name], float("nan")
        if (self.count == 0).any():
            missing = torch.nonzero(self.count == 0).flatten().tolist()
            raise ValueError(f"data must hold every class of the reference; got no sample of {missing}")
        about = seen._copy()  # the means of the reference with the scatter of the data: the same without reference
        about.scatter, about.count = self.scatter[name], self.count
        row: dict = {"run": 0, "layer": name, "nc1": about.nc1()}
        row |= {"nc1_pinv": self.spread[name] / self.total + metrics._infinite_without(self.basis[name])}
        row |= {"cdnv": about.nc1("cdnv"), "nc2": seen.nc2(), "nc2_etf": seen.nc2("etf")}
        row |= {"nc2_orthogonal": seen.nc2("orthogonal"), "equinorm": seen.equinorm()}
        row |= {"equiangularity": seen.equiangularity()}
        weight = self.head.get(name)
        weight = None if weight is None or len(weight) != seen.num_classes else weight
        row["nc3"] = self.cosine[name] / self.total if weight is not None else nan
        row["self_duality"] = seen.self_duality(weight) if weight is not None else nan
        row["product_nc2"] = metrics.condition_number(weight, rank=len(weight)) if weight is not None else nan
        row |= {"nc4": self.agree[name] / self.total, "ncc_accuracy": self.right[name] / self.total}
        row |= {"stable_rank": seen.stable_rank(), "numerical_rank": seen.numerical_rank()}
        return {key: value if isinstance(value, (str, int)) else float(value) for key, value in row.items()}


class _Reader:
    """Runs a model over batches and hands the features of the wanted places to a function, as they come."""

    def __init__(self, model, wanted, pool, device, autocast, progress):
        self.model, self.wanted, self.pool, self.device = model, wanted, pool, device
        self.autocast, self.progress = autocast, progress
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        self.dtype = None if parameter is None else parameter.dtype

    def read(self, argument: str, batches: Iterable, features, outputs=None) -> None:
        handles: list = []
        state: dict = {}

        def give(name, value):
            if not isinstance(value, Tensor):
                if name == "output":  # a dictionary or a tuple: no features, and NC4 stays undefined
                    return
                raise ValueError(f"layers: {name!r} gives a {type(value).__name__}; expected a tensor")
            state["names"].append(name)
            if state["names"].count(name) > 1:
                raise ValueError(f"layers: {name!r} runs more than once in a forward pass; expected a layer used once")
            try:
                features(name, self._vectors(name, value.detach(), len(state["y"])), state["y"])
            except ValueError as error:
                raise ValueError(f"{argument}, layer {name!r}: {error}") from error

        try:
            for name, (module, side) in self.wanted.items():
                if side == "input":
                    hook = lambda _, args, named, name=name: give(name, _first(args, named))  # noqa: E731
                    handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
                else:
                    handles.append(module.register_forward_hook(lambda _, i, out, name=name: give(name, out)))
            empty = True
            for x, y in _bar(batches, argument, self.progress):
                empty = False
                state |= {"y": _labels(argument, y).to(self.device), "names": []}
                output = self._forward(argument, x)
                missing = [name for name in self.wanted if name not in state["names"] and name != "output"]
                if missing:
                    raise ValueError(f"layers: {missing} did not run in a forward pass; expected layers that it calls")
                if outputs is not None:
                    outputs(output, state["y"])
            if empty:
                raise ValueError(f"{argument} must hold at least one batch each time it is read; got none")
        finally:
            for handle in handles:
                handle.remove()

    def head(self, argument: str, batches: Iterable) -> dict[str, Tensor]:
        """W_L...W_l by the name of the input of layer l: the last linear layer and the bias-free ones right before it.

        Found by running them: the output of one must be the very memory that the next one reads.
        """
        names = {m: f"{name}.input" if name else "input" for name, m in self.model.named_modules()}
        linear = [module for module in names if type(module) is nn.Linear]
        calls, handles = [], []

        def version(out: Tensor) -> int:  # counts what is written into it
            return 0 if out.is_inference() else out._version

        try:
            for module in linear:
                hook = lambda m, args, named, out: calls.append((m, _first(args, named), out, version(out)))  # noqa: E731
                handles.append(module.register_forward_hook(hook, with_kwargs=True))
            for x, _ in batches:
                output = self._forward(argument, x)
                break
            else:
                raise ValueError(f"{argument} must hold at least one batch; got none")
        finally:
            for handle in handles:
                handle.remove()
        weights, product, read = {}, None, output
        for module, z, out, before in reversed(calls):
            if not isinstance(read, Tensor) or out.data_ptr() != read.data_ptr() or z.ndim != 2:
                break
            if out.shape != read.shape or version(out) != before:  # a part of it, or an activation in its place
                break
            if product is not None and module.bias is not None:
                break
            weight = module.weight.detach().double()
            product = weight if product is None else product @ weight
            weights[names[module]], read = product, z
        return weights

    def _forward(self, argument: str, x):
        x = self._moved(x)
        try:
            with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
                return self.model(**x) if isinstance(x, Mapping) else self.model(x)
        except torch.cuda.OutOfMemoryError:  # a RuntimeError too
            raise
        except (RuntimeError, TypeError) as error:
            seen = f"{tuple(x.shape)}, {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{argument}: the model cannot take x of {seen}: {error}") from error

    def _moved(self, x):
        if isinstance(x, Mapping):
            return {key: self._moved(value) for key, value in x.items()}
        if isinstance(x, Tensor):
            return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)
        return x

    def _vectors(self, name: str, z: Tensor, samples: int) -> Tensor:
        shape = tuple(z.shape)
        if callable(self.pool):
            z = self.pool(z) if z.ndim > 2 else z
        elif z.ndim > 2 and self.pool == "flatten":
            z = z.flatten(1)
        elif z.ndim > 3:
            z = _POOLS[self.pool](z)
        if z.ndim != 2 or len(z) != samples:
            raise ValueError(
                f"pool must make (N, d) = ({samples}, d) of the features {shape}; got {tuple(z.shape)}: "
                "give pool='flatten' or a function"
            )
        return z


@contextlib.contextmanager
def _undisturbed(model: nn.Module, device: torch.device, home: torch.device) -> Iterator[None]:
    """Evaluation mode, no gradients and the model on ``device``; everything as before at the end."""
    training = {module: module.training for module in model.modules()}
    try:
        # A loader draws its seed from the global generator: measuring must not change the training that goes on.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model.eval()
            if device != home:
                model.to(device)
            yield
    finally:
        if device != home:
            model.to(home)
        for module, mode in training.items():
            module.training = mode


def _unwrapped(model: nn.Module) -> nn.Module:
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        else:
            return model


def _points(model: nn.Module, layers) -> dict[str, tuple[nn.Module, str]]:
    """Where to look: name -> module and side."""
    modules = {name: module for name, module in model.named_modules() if name}
    if layers is None:
        called = lambda m: isinstance(m, nn.Linear) and "NonDynamically" not in type(m).__name__  # noqa: E731
        points = {f"{name}.input": (m, "input") for name, m in modules.items() if called(m)}
        if isinstance(model, nn.Linear):
            points["input"] = (model, "input")
        return points | {"output": (model, "output")}
    points = {}
    if not isinstance(layers, (str, type, list)):
        raise TypeError(f"layers must be None, a name, a type or several of these; got {shown(layers)}")
    for layer in [layers] if isinstance(layers, (str, type)) else layers:
        if isinstance(layer, type):
            found = {name: (m, "output") for name, m in modules.items() if isinstance(m, layer)}
        elif layer == "output":
            found = {"output": (model, "output")}
        elif isinstance(layer, str):
            everything = {name: (m, "output") for name, m in modules.items()}
            everything |= {f"{name}.input": (m, "input") for name, m in modules.items()}
            names = [layer] if layer in everything else fnmatch.filter(modules, layer)
            names = names or fnmatch.filter(everything, layer)
            found = {name: everything[name] for name in names}
        else:
            raise ValueError(f"layers must be names, patterns or module types; got {layer!r}")
        if not found:
            raise ValueError(f"layers: nothing is called {layer!r}; expected some of {', '.join([*modules][:20])}")
        points |= found
    if not points:
        raise ValueError("layers must name at least one place; got none")
    return points


def _batches(argument: str, data, size: int):
    if isinstance(data, (nn.Module, Tensor)):
        raise ValueError(f"{argument} must be a DataLoader, a Dataset or a pair (x, y); got {type(data).__name__}")
    if hasattr(data, "num_classes") and hasattr(data, "x") and hasattr(data, "y"):
        data = (data.x, data.y)
    if isinstance(data, tuple) and len(data) == 2 and all(hasattr(part, "shape") for part in data):
        x, y = (torch.as_tensor(part) for part in data)
        if y.ndim != 1 or not x.ndim or len(x) != len(y) or not len(y):
            raise ValueError(
                f"{argument} must be (x, y) with x (N, ...) and y (N,), N > 0; got {tuple(x.shape)}, {tuple(y.shape)}"
            )
        data = torch.utils.data.TensorDataset(x, y)
    if isinstance(data, torch.utils.data.Dataset):
        data = torch.utils.data.DataLoader(data, batch_size=size)
    if not isinstance(data, Iterable) or isinstance(data, (Iterator, str, Mapping)):
        raise ValueError(
            f"{argument} must be a DataLoader, a Dataset or a pair (x, y), readable twice; got {type(data).__name__}"
        )
    return _Pairs(argument, data)


def _first(args: tuple, named: dict):
    """What a module is called on, by place or by name."""
    return next(iter((*args, *named.values())), None)


class _Pairs:
    """The batches of a loader, refused where they are no pairs."""

    def __init__(self, argument: str, loader: Iterable):
        self.argument, self.loader = argument, loader

    def __iter__(self):
        for batch in self.loader:
            if not isinstance(batch, (tuple, list)) or len(batch) != 2:
                raise ValueError(f"{self.argument} must give batches (x, y); got a {type(batch).__name__}")
            yield batch


def _labels(argument: str, y) -> Tensor:
    y = torch.as_tensor(y)
    if y.ndim != 1 or y.dtype not in metrics._INTEGERS:
        raise ValueError(f"{argument}: labels must be integers (N,); got {tuple(y.shape)}, {y.dtype}")
    return y.long()


def _bar(batches, argument: str, show: bool):
    if not show or os.environ.get("TQDM_DISABLE", "") not in ("", "0"):
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc=argument, unit="batch", leave=False)
