"""The code of a network, loss or optimiser of your own as 16 hex digits: what was compiled of it, what it reads."""

from __future__ import annotations

import contextlib
import dis
import functools
import importlib
import importlib.util
import sys
import sysconfig
import types
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ncutils import _files
from ncutils._arguments import shown

PLAIN = {type(None), type(...), bool, int, float, complex, str, bytes, torch.dtype, torch.device, range}
# What every class has, or what is made from the rest of it.
OF_EVERY_CLASS = {"__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__", "__slots__"}
OF_EVERY_CLASS |= {"__static_attributes__", "__abstractmethods__", "__dataclass_fields__", "__dataclass_params__"}
OF_EVERY_CLASS |= {"__match_args__", "__parameters__", "__orig_bases__", "__slotnames__", "_abc_impl"}
HANGS_ON = "network, loss and optimizer must hang on functions, classes and values"


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
