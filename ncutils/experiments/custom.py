"""Networks, losses and optimisers of your own in a sweep: how they are trained, and how their code is told apart.

A stored result is used again only if the code that made it is the same. For the library that is a hash of its files;
for functions of your own it is what Python compiled of them, with all that they close over and call, up to the
libraries they import.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import inspect
import re
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from ncutils import _files, _plain, training
from ncutils._arguments import shown

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, range, np.generic)


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
        with torch.random.fork_rng(), _default_dtype(job.dtype):
            torch.manual_seed(seed)
            network = replace(job, seeds=(seed,)).build(data)
            result = _plain.train(network, data, one, job.loss, optimizer, measure, progress, seed)
        rows += [row | {"run": run, "seed": seed} for row in result.rows]
        gone += [replace(divergence, run=run) for divergence in result.diverged]
        seconds += result.seconds
    return training.TrainingResult(network, rows, gone, seconds)


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default dtype for as long as this lasts: what a caller has set, a worker process has not."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _made(optimizer, lr: float, weight_decay: float, parameters: list) -> torch.optim.Optimizer:
    return optimizer(parameters, lr=lr, weight_decay=weight_decay)


def build(job, data) -> nn.Module:
    """What the job's function makes, checked on two samples."""
    shape = {name: getattr(job.network, name) for name in ("num_nonlinear", "num_linear", "width")}
    module = job.network.kind(**shape)
    if not isinstance(module, nn.Module):
        raise TypeError(f"network must return an nn.Module; got {shown(module)}")
    module = module.to(device=job.device, dtype=job.dtype)
    was_training = module.training
    with torch.no_grad():
        output = module.eval()(data.x[:2])
    module.train(was_training)
    expected = (len(data.x[:2]), data.num_classes)
    if not isinstance(output, Tensor) or output.shape != expected:
        raise ValueError(f"network must map x {tuple(data.x[:2].shape)} to {expected}; got {shown(output)}")
    return module


def measure(module: nn.Module, data, step: int, loss, layers: int) -> list[dict]:
    """The rows of :func:`ncutils.measure`, numbered so that the output is layer ``layers``."""
    rows = _plain.measure_module(module, data, step, loss or _plain.squared_error)
    return [row | {"run": 0, "layer": layers - len(rows) + 1 + index} for index, row in enumerate(rows)]


def name(value) -> str:
    """What to call a function in a table."""
    inner = value.func if isinstance(value, functools.partial) else value
    return getattr(inner, "__qualname__", type(inner).__name__).rpartition(".")[2]


def fingerprint(*values) -> str:
    """16 hex digits of what functions, classes and plain values say to Python.

    Raises:
        TypeError: something that a function hangs on has no content to read, such as an open file.

    Example:
        >>> def slope(x, by=2): return by * x
        >>> same = fingerprint(slope)
        >>> def slope(x, by=2): return by * x  # the same again
        >>> fingerprint(slope) == same
        True
        >>> def slope(x, by=3): return by * x
        >>> fingerprint(slope) == same
        False
    """
    seen: dict[int, object] = {}
    return _files.digest(*(f"{part}\0" for value in values for part in _parts(value, seen)))


def _parts(value, seen: dict) -> Iterator[str]:
    if isinstance(value, PLAIN):
        yield repr(value)
        return
    if isinstance(value, types.ModuleType) or _of_a_library(value):
        yield getattr(value, "__module__", "") or ""
        yield getattr(value, "__qualname__", None) or value.__name__
        return
    if id(value) in seen:
        yield f"number {list(seen).index(id(value))}"
        return
    seen[id(value)] = value  # kept, or its number could become another's
    yield type(value).__qualname__
    if isinstance(value, types.CodeType):
        yield repr((value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_argcount))
        inner: list = [value.co_consts]
    elif isinstance(value, types.FunctionType):
        inner = [value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__]
        inner += list(inspect.getclosurevars(value).nonlocals.items())
        inner += [value.__globals__[name] for name in _names(value.__code__) if name in value.__globals__]
    elif isinstance(value, types.MethodType):
        inner = [value.__func__, value.__self__]
    elif isinstance(value, functools.partial):
        inner = [value.func, value.args, value.keywords]
    elif isinstance(value, (staticmethod, classmethod)):
        inner = [value.__func__]
    elif isinstance(value, property):
        inner = [value.fget, value.fset]
    elif isinstance(value, type):
        own = {n: v for n, v in vars(value).items() if not n.startswith("__") or callable(v)}
        own = {
            n: v for n, v in own.items() if not isinstance(v, (types.GetSetDescriptorType, types.MemberDescriptorType))
        }
        inner = [value.__qualname__, value.__bases__, own]
    elif isinstance(value, (Tensor, np.ndarray)):
        array = value.detach().cpu().double().numpy() if isinstance(value, Tensor) else value
        yield _files.digest(str(array.shape), array.tobytes())
        inner = []
    elif isinstance(value, Mapping):
        inner = [part for key in sorted(value, key=repr) for part in (key, value[key])]
    elif isinstance(value, (set, frozenset)):
        inner = sorted(value, key=repr)
    elif isinstance(value, (tuple, list)):
        inner = list(value)
    elif isinstance(value, nn.Module):
        inner = [type(value), repr(value), value.state_dict()]
    elif hasattr(value, "__dict__"):
        inner = [type(value), vars(value)]
    elif re.search(r"\b0x[0-9a-f]+", text := repr(value)):
        raise TypeError(f"network, loss and optimizer must hang on functions, classes and values; got {shown(value)}")
    else:
        inner = [text]
    for part in inner:
        yield from _parts(part, seen)
    yield "end"


def _names(code: types.CodeType) -> list[str]:
    """Every global that a function reads, and that the functions inside it read."""
    read = [step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names(const)]
    return list(dict.fromkeys(read + inner))


def _of_a_library(value) -> bool:
    """Whether a function, class or built-in is known by its name, as code that nobody edits between two runs."""
    module = getattr(value, "__module__", None)
    if isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType)):
        return True
    if not isinstance(value, (type, types.FunctionType)) or not isinstance(module, str) or module == "__main__":
        return False
    if module.partition(".")[0] in {*sys.stdlib_module_names, "ncutils", "torch", "numpy"}:
        return True
    path = getattr(sys.modules.get(module), "__file__", None) or ""
    folders = {sysconfig.get_path(kind) for kind in ("purelib", "platlib", "stdlib")}
    return any(path.startswith(folder) for folder in folders if folder)
