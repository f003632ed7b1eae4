"""Networks, losses and optimisers of your own in a sweep: made, tried, trained, measured, and sent to workers.

A stored result is used again only if the code that made it is the same. For the library that is a hash of its files;
for functions of your own see :mod:`ncutils.experiments.fingerprint`.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import pickle
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ncutils import _plain, training
from ncutils._arguments import shown
from ncutils.experiments import fingerprint

_MADE: weakref.WeakSet = weakref.WeakSet()


def train(job, data, seen: Mapping, progress: bool = False) -> training.TrainingResult:
    """The runs of a job one after the other, by the plain engine; ``seen`` are the sets to measure on, by name.

    A run's seed fixes its initial weights, its batches and whatever else draws from torch's generator. The job's
    precision is torch's default dtype meanwhile.
    """
    config, rows, gone, seconds = replace(job.config, precision=None), [], [], 0.0
    lrs, decays = (config.per_run(name, len(job.seeds)) for name in ("lr", "weight_decay"))
    for run, (seed, lr, decay) in enumerate(zip(job.seeds, lrs, decays, strict=True)):
        one = replace(config, lr=lr, weight_decay=decay)
        measure = functools.partial(job.measure, seen=seen) if seen else None
        optimizer = None if job.optimizer is None else functools.partial(_made, job.optimizer, lr, decay)
        with undisturbed(job.dtype):
            torch.manual_seed(seed)
            network = replace(job, seeds=(seed,)).build(data)
            result = _plain.train(network, data, one, job.loss, optimizer, measure, progress, seed)
        rows += [row | {"run": run, "seed": seed} for row in result.rows]
        gone += [replace(divergence, run=run) for divergence in result.diverged]
        seconds += result.seconds
    return training.TrainingResult(network, rows, gone, seconds)


@contextlib.contextmanager
def undisturbed(dtype: torch.dtype) -> Iterator[None]:
    """This default dtype for torch, whatever a caller has set; it and the generator are afterwards as before."""
    before = torch.get_default_dtype()
    with torch.random.fork_rng():
        torch.set_default_dtype(dtype)
        try:
            yield
        finally:
            torch.set_default_dtype(before)


def _made(optimizer, lr: float, weight_decay: float, parameters: list) -> torch.optim.Optimizer:
    return optimizer(parameters, lr=lr, weight_decay=weight_decay)


def build(job, data) -> nn.Module:
    """What the job's function makes, tried with its loss on two samples.

    Raises:
        TypeError, ValueError: it makes no network for these data, or one that it made before.
    """
    shape = {name: getattr(job.network, name) for name in ("num_nonlinear", "num_linear", "width")}
    try:
        inspect.signature(job.network.kind).bind(**shape)
    except TypeError as error:
        raise TypeError(f"network must take num_nonlinear, num_linear and width by name: {error}") from error
    module = job.network.kind(**shape)
    if not isinstance(module, nn.Module):
        raise TypeError(f"network must return an nn.Module; got {shown(module)}")
    if module in _MADE:
        raise ValueError("network must make a new module whenever it is called; got one that it made before")
    _MADE.add(module)
    module = module.to(device=job.device, dtype=job.dtype)
    few, labels = data.x[:2], data.y[:2]
    try:
        output, layers = _tried(module, few)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"network must take x {tuple(few.shape)}, the shape of the data: {error}") from error
    expected = (len(few), data.num_classes)
    if not isinstance(output, Tensor) or output.shape != expected:
        raise ValueError(f"network must map x {tuple(few.shape)} to {expected}; got {shown(output)}")
    if len(layers) < job.network.num_linear:
        wanted = f"at least num_linear = {job.network.num_linear} nn.Linear layers, whose inputs are measured"
        raise ValueError(f"network must run {wanted}; got {len(layers)}")
    if job.loss is not None:
        check_loss(job.loss, output, labels)
    return module


def _tried(module: nn.Module, x: Tensor) -> tuple[Tensor, list[str]]:
    """The output in evaluation mode, and the names of the linear layers that ran."""
    ran: list[nn.Module] = []
    hooks = [m.register_forward_hook(lambda m, *_: ran.append(m)) for m in module.modules() if isinstance(m, nn.Linear)]
    was_training = module.training
    try:
        output = module.eval()(x)
    finally:
        module.train(was_training)
        for hook in hooks:
            hook.remove()
    names = {m: name for name, m in module.named_modules()}
    return output, [f"{names[m]}.input" if names[m] else "input" for m in dict.fromkeys(ran)]


def check_loss(loss, output: Tensor, labels: Tensor) -> None:
    """That a loss of your own takes these outputs and gives one number that can be differentiated."""
    wanted = (
        f"loss must give one number with a gradient for outputs {tuple(output.shape)}, labels {tuple(labels.shape)}"
    )
    try:
        value = loss(output, labels)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{wanted}: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        raise ValueError(f"{wanted}; got {shown(value)}")


def measure(module: nn.Module, data, step: int, loss, nonlinear: int, linear: int) -> list[dict]:
    """The rows of :func:`ncutils.measure`, numbered so that the output is layer ``nonlinear + linear``."""
    with torch.no_grad():
        _, layers = _tried(module, data.x[:2])
    places = None if "input" in layers else [*layers, "output"]  # None: the module is itself a linear layer
    rows = _plain.measure_module(module, data, step, loss or _plain.squared_error, places)
    numbers = range(nonlinear + linear - len(rows) + 1, nonlinear + linear + 1)
    part = ["nonlinear" if number <= nonlinear else "linear" for number in numbers]
    return [row | {"run": 0, "layer": n, "part": p} for row, n, p in zip(rows, numbers, part, strict=True)]


def name(value) -> str:
    """What to call a function in a table."""
    inner = value.func if isinstance(value, functools.partial) else value
    return getattr(inner, "__qualname__", type(inner).__name__).rpartition(".")[2]


def packed(job) -> tuple:
    """A job without its own code, and that code as bytes: as it is here, not a name that means another file elsewhere.

    Every job, on every engine, gets a copy: what it appends to a list the next one does not see.
    """
    if not job.own:
        return job, None
    try:
        import cloudpickle
    except ImportError:  # an older joblib brings its own
        from joblib.externals import cloudpickle
    own, sent = (job.network.kind, job.loss, job.optimizer), fingerprint.yours()
    for module in sent:
        cloudpickle.register_pickle_by_value(module)
    try:
        code = cloudpickle.dumps(own)
    except Exception:  # a module of yours holds what cannot be copied: by its name then
        code = None
    finally:
        for module in sent:
            cloudpickle.unregister_pickle_by_value(module)
    network = replace(job.network, kind="mlp")
    return replace(job, network=network, loss=None, optimizer=None), code or cloudpickle.dumps(own)


def unpacked(job, code: bytes | None):
    """The job of :func:`packed`."""
    if code is None:
        return job
    kind, loss, optimizer = pickle.loads(code)
    return replace(job, network=replace(job.network, kind=kind), loss=loss, optimizer=optimizer)
