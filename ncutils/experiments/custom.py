"""Networks, losses and optimisers of your own in a sweep: how they are trained, and how their code is told apart.

A stored result is used again only if the code that made it is the same. For the library that is a hash of its files;
for functions of your own it is what Python compiled of them, with all that they close over and call, up to the
libraries they import.
"""

from __future__ import annotations

import contextlib
import dis
import functools
import importlib
import importlib.util
import inspect
import pickle
import sys
import sysconfig
import types
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ncutils import _files, _plain, training
from ncutils._arguments import shown

PLAIN = {type(None), type(...), bool, int, float, complex, str, bytes, torch.dtype, torch.device, range}
# What every class has, or what is made from the rest of it.
OF_EVERY_CLASS = {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__", "__slots__"}
OF_EVERY_CLASS |= {"__static_attributes__", "__abstractmethods__", "__dataclass_fields__", "__dataclass_params__"}
OF_EVERY_CLASS |= {"__match_args__", "__parameters__", "__orig_bases__", "__slotnames__", "_abc_impl"}


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
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torch's default dtype for as long as this lasts: what a caller has set, a worker process has not."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def undisturbed(dtype: torch.dtype) -> Iterator[None]:
    """torch's generator and default dtype are afterwards as before."""
    with torch.random.fork_rng(), _default_dtype(dtype):
        yield


def _made(optimizer, lr: float, weight_decay: float, parameters: list) -> torch.optim.Optimizer:
    return optimizer(parameters, lr=lr, weight_decay=weight_decay)


HANGS_ON = "network, loss and optimizer must hang on functions, classes and values"
_MADE: weakref.WeakSet = weakref.WeakSet()


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
    layers = layers if "input" in layers else [*layers, "output"]
    rows = _plain.measure_module(
        module, data, step, loss or _plain.squared_error, None if "input" in layers else layers
    )
    numbers = range(nonlinear + linear - len(rows) + 1, nonlinear + linear + 1)
    part = ["nonlinear" if number <= nonlinear else "linear" for number in numbers]
    return [row | {"run": 0, "layer": n, "part": p} for row, n, p in zip(rows, numbers, part, strict=True)]


def name(value) -> str:
    """What to call a function in a table."""
    inner = value.func if isinstance(value, functools.partial) else value
    return getattr(inner, "__qualname__", type(inner).__name__).rpartition(".")[2]


def fingerprint(*values) -> str:
    """16 hex digits of what functions, classes and values say to Python.

    Followed are the compiled code, defaults, closures, the globals that are read, the methods and attributes of
    classes, the state of objects, and all of a module of your own and of its package where anything of it is met. What
    an installed library defines is known by its name. Not seen: files that a function reads, the environment, what it
    looks up by a name that it computes.

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
    seen: dict[int, tuple[int, object]] = {}
    try:
        return _files.digest(*(f"{part}\0" for value in values for part in _parts(value, seen)))
    except RecursionError as error:
        raise TypeError("network, loss and optimizer must not hang on values nested this deeply") from error


def _parts(value, seen: dict) -> Iterator[str]:
    """What a value says, piece by piece; one that was met before by its number."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, np.generic):
        yield f"{kind.__qualname__} {value!r}"
        return
    if _of_a_library(value):
        yield f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', None) or value.__name__}"
        if isinstance(value, types.FunctionType) and value.__closure__:  # made for a purpose, which is in there
            yield from _parts(_closure(value), seen)
        return
    if kind in (tuple, frozenset, set):  # no way to hold themselves; equal ones are the same one or not by chance
        yield f"{kind.__qualname__} of {len(value)}"
        if kind is tuple:
            for part in value:
                yield from _parts(part, seen)
        else:
            yield from sorted(_files.digest(*_parts(part, dict(seen))) for part in value)
        return
    if id(value) in seen:
        yield f"number {seen[id(value)][0]}"
        return
    seen[id(value)] = (len(seen), value)  # kept, or its address could become another's
    yield f"{kind.__module__}.{kind.__qualname__}"
    for part in _inside(value, kind):
        try:
            yield from list(_parts(part, seen))
        except TypeError:
            if not isinstance(value, types.ModuleType):
                raise
            yield type(part).__qualname__  # not everything that a module holds is used
    yield "end"


def _inside(value, kind: type) -> Iterator:
    """What a value is made of."""
    if isinstance(value, types.ModuleType):
        yield value.__name__
        for name, part in list(vars(value).items()):
            if not (name.startswith("__") and name.endswith("__")):
                yield name
                yield part
        inside = f"{value.__name__.partition('.')[0]}."  # the whole package, whichever way its parts are named
        yield [m for name, m in sorted(sys.modules.items()) if name.startswith(inside)]
    elif isinstance(value, types.CodeType):
        yield getattr(value, "co_exceptiontable", b"")
        yield value.co_code, value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars, value.co_flags
        yield value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_consts
    elif isinstance(value, types.FunctionType):
        yield value.__qualname__, value.__code__, value.__defaults__, value.__kwdefaults__, vars(value), _closure(value)
        yield _read_by(value.__code__, value.__globals__), _module_of(value)
    elif isinstance(value, types.MethodType):
        yield value.__func__, value.__self__
    elif isinstance(value, types.BuiltinFunctionType):
        yield value.__qualname__, None if isinstance(value.__self__, types.ModuleType) else value.__self__
    elif kind is functools.partial:
        yield value.func, value.args, value.keywords
    elif isinstance(value, (staticmethod, classmethod)):
        yield value.__func__
    elif isinstance(value, property):
        yield value.fget, value.fset, getattr(value, "__dict__", None)
    elif isinstance(value, functools.cached_property):
        yield value.func
    elif isinstance(value, type):
        kinds = (types.GetSetDescriptorType, types.MemberDescriptorType)
        own = {n: v for n, v in vars(value).items() if n not in OF_EVERY_CLASS and not isinstance(v, kinds)}
        yield value.__qualname__, value.__bases__, type(value), own, _module_of(value)
    elif kind in (Tensor, nn.Parameter):
        yield str(value.dtype), value.requires_grad, tuple(value.shape)
        try:
            yield _files.digest(value.detach().cpu().resolve_conj().contiguous().flatten().view(torch.uint8).numpy())
        except (RuntimeError, NotImplementedError) as error:
            raise TypeError(f"{HANGS_ON}; got {shown(value)}, which is no dense tensor") from error
    elif kind in (np.ndarray, np.memmap):
        yield str(value.dtype), value.shape
        yield value.tolist() if value.dtype.hasobject else _files.digest(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, nn.Module):
        yield kind, vars(value)
    elif kind is list:
        yield tuple(value)
    elif kind in (dict, types.MappingProxyType):
        yield tuple(value.items())
    else:
        yield kind, *_state(value)


def _state(value) -> Iterator:
    """What pickling would keep of an object, piece by piece and not as bytes, which differ from process to process."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception as error:  # whatever its own method raises
        raise TypeError(f"{HANGS_ON}; got {shown(value)}") from error
    yield getattr(value, "__wrapped__", None)  # what functools.cache holds
    for part in (reduced,) if isinstance(reduced, str) else reduced:
        yield tuple(part) if isinstance(part, Iterator) else part


def _closure(function: types.FunctionType) -> tuple:
    found = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # still empty
            found.append((name, cell.cell_contents))
    return tuple(found)


def _module_of(value) -> types.ModuleType | None:
    """The module of your own that a function or class stands in; None for a script or a notebook."""
    module = sys.modules.get(value.__module__) if isinstance(value.__module__, str) else None
    return module if module is not None and _is_yours(module) else None


def _read_by(code: types.CodeType, names: Mapping) -> tuple:
    """The globals and modules that a function reads and imports, and those inside it."""
    found: dict[str, object] = {}
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in names:
            found[step.argval] = names[step.argval]
        elif step.opname == "IMPORT_NAME" and step.argval:
            with contextlib.suppress(ImportError, ValueError):  # a relative one is in the package of the function
                spec = importlib.util.find_spec(step.argval.partition(".")[0])
                library = spec is None or (spec.origin is not None and _library_file(spec.origin))
                found[step.argval] = step.argval if library else importlib.import_module(step.argval)
    inner = [_read_by(const, names) for const in code.co_consts if isinstance(const, types.CodeType)]
    return (*found.items(), *(pair for part in inner for pair in part))


def yours() -> list[types.ModuleType]:
    """The modules that are loaded and are neither Python's nor those of an installed package."""
    return [m for m in list(sys.modules.values()) if isinstance(m, types.ModuleType) and _is_yours(m)]


def _is_yours(module: types.ModuleType) -> bool:
    if module.__name__ in ("__main__", "__mp_main__") or module.__name__ in sys.builtin_module_names:
        return False
    path = getattr(module, "__file__", None)
    if path is None:  # a package without __init__.py has only places
        return any(not _library_file(str(place)) for place in getattr(module, "__path__", ()))
    return not _library_file(path)


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
    own, sent = (job.network.kind, job.loss, job.optimizer), yours()
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


def _of_a_library(value) -> bool:
    """Whether a function, class or built-in is known by its name, as code that nobody edits between two runs."""
    if isinstance(value, types.ModuleType):
        return not _is_yours(value)
    if isinstance(value, types.BuiltinFunctionType):
        return isinstance(value.__self__, types.ModuleType)
    if isinstance(value, np.ufunc):
        return True
    if isinstance(value, (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)):
        return True
    if not isinstance(value, (type, types.FunctionType)) or not isinstance(value.__module__, str):
        return False
    module = sys.modules.get(value.__module__)
    if module is None or module.__name__ == "__main__":
        return False
    if isinstance(value, types.FunctionType):
        return _library_file(value.__code__.co_filename)
    there: object = module
    for part in value.__qualname__.split("."):
        there = getattr(there, part, None)
    return there is value and _library_file(getattr(module, "__file__", None))


@functools.cache
def _library_file(path: str | None) -> bool:
    """Whether a file belongs to Python, to an installed package or to this one; None is Python's own."""
    if path is None or path in ("built-in", "frozen"):
        return True
    folders = [sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")]
    folders += [str(Path(__file__).resolve().parents[1]), str(Path(torch.__file__).parent)]
    inside = any(folder and Path(path).is_relative_to(folder) for folder in folders)
    return inside or bool({"site-packages", "dist-packages"} & set(Path(path).parts))
