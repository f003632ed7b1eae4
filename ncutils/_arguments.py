"""What an argument must be, said in one dialect: ``name must be ...; got ...``, by us, before anything is computed.

:func:`checked` reads a function's annotations; ranges are given to it by name::

    @checked(steps=integer(least=0), form=one_of("paper", "sharp"))
    def f(head: LinearHead, steps: int, form: str = "sharp"): ...

A *kind* is a function of name and value that raises TypeError or ValueError, or returns None.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch

Kind = Callable[[str, Any], None]
F = TypeVar("F", bound=Callable[..., Any])
LARGEST = 10**9  # a count beyond is a mistake, and would fill the memory before anyone refused it


def shown(value: object) -> str:
    """A value in an error: short, arrays by dtype and shape."""
    if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim:
        return f"{type(value).__name__} of {value.dtype}, shape {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def scalar(value: Any) -> Any:
    """Python's number in one of numpy's, or in an array of no dimensions; anything else as it is."""
    if isinstance(value, np.generic):
        return value.item()
    return value.item() if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0 else value


def integer(least: int | None = None, most: int = LARGEST) -> Kind:
    """An integer, numpy's included, no bool."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be an integer; got {shown(value)}")
        if least is not None and value < least:
            raise ValueError(f"{name} must be at least {least}; got {shown(value)}")
        if abs(int(value)) > most:
            raise ValueError(f"{name} must be at most {most:g}; got {shown(value)}")

    return check


def number(least: float | None = None, above: float | None = None, most: float | None = None, *,
           below: float | None = None, finite: bool = False) -> Kind:  # fmt: skip
    """A real number; NaN only where no range is given."""
    wanted = [f"at least {least:g}" if least is not None else ""]
    wanted += [f"above {above:g}" if above is not None else "", f"at most {most:g}" if most is not None else ""]
    wanted += [f"below {below:g}" if below is not None else "", "finite" if finite else ""]
    words = ", ".join(filter(None, wanted))

    def check(name: str, value: Any) -> None:
        value = scalar(value)
        if type(value) is bool or not issubclass(type(value), numbers.Real):
            raise TypeError(f"{name} must be a number; got {shown(value)}")
        low = (least is None or value >= least) and (above is None or value > above)
        high = (most is None or value <= most) and (below is None or value < below)
        try:
            fits = low and high and (not finite or math.isfinite(value))
            float(value)
        except OverflowError:
            fits = False
        if not fits:
            raise ValueError(f"{name} must be {words or 'a number that float64 can hold'}; got {shown(value)}")

    return check


positive = number(above=0, finite=True)


def one_of(*allowed: object) -> Kind:
    """One of these values."""

    def check(name: str, value: Any) -> None:
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {shown(value)}")

    return check


def text(name: str, value: Any) -> None:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string; got {shown(value)}")


def flag(name: str, value: Any) -> None:
    """True or False, numpy's and torch's included."""
    if not isinstance(scalar(value), (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False; got {shown(value)}")


def function(name: str, value: Any) -> None:
    """Something to call."""
    if not callable(value):
        raise TypeError(f"{name} must be a function; got {shown(value)}")


def array(name: str, value: Any) -> None:
    """A tensor or array of real numbers."""
    if not isinstance(value, (torch.Tensor, np.ndarray)):
        raise TypeError(f"{name} must be a tensor or array; got {shown(value)}")
    real = not value.is_complex() if isinstance(value, torch.Tensor) else value.dtype.kind in "biuf"
    if not real:
        raise TypeError(f"{name} must hold real numbers; got {shown(value)}")


def tensor(name: str, value: Any) -> None:
    """A tensor of real numbers."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name} must be a tensor; got {shown(value)}")
    array(name, value)


def many(kind: Kind, least: int = 0) -> Kind:
    """A list, tuple or other iterable (no string, no mapping) of such values."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, (str, bytes, Mapping)) or not isinstance(value, Iterable) or isinstance(value, type):
            raise TypeError(f"{name} must be a sequence; got {shown(value)}")
        if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim == 0:
            raise TypeError(f"{name} must be a sequence; got {shown(value)}")
        if not isinstance(value, Sized):
            return  # a generator: looking at it would use it up
        if len(value) < least:
            raise ValueError(f"{name} must hold at least {least}; got {len(value)}")
        for index, item in enumerate(value):
            kind(f"{name}[{index}]", item)

    return check


def instance(*names: str) -> Kind:
    """An object of a class of this name, or of one derived from it; by name, so that nothing need be imported."""

    def check(name: str, value: Any) -> None:
        if not any(c.__name__ in names for c in type(value).__mro__):
            raise TypeError(f"{name} must be a {' or '.join(names)}; got {shown(value)}")

    return check


def one_or_many(kind: Kind) -> Kind:
    """One such value, or a list or tuple of them."""

    def check(name: str, value: Any) -> None:
        if isinstance(value, (list, tuple)):
            many(kind, least=1)(name, value)
        else:
            kind(name, value)

    return check


def pair(kind: Kind) -> Kind:
    """Two such values."""

    def check(name: str, value: Any) -> None:
        many(kind)(name, value)
        if not isinstance(value, (list, tuple)) or len(value) != 2:
            raise ValueError(f"{name} must be a pair; got {shown(value)}")

    return check


def table(*columns: str) -> Kind:
    """A frame (or a result, which serves as one) that has rows and these columns."""

    def check(name: str, value: Any) -> None:
        if not any(c.__name__ in ("DataFrame", "Result") for c in type(value).__mro__):
            raise TypeError(f"{name} must be a data frame; got {shown(value)}")
        if lacking := [column for column in columns if column not in value.columns]:
            raise ValueError(f"{name} must have the columns {', '.join(columns)}; got none of {', '.join(lacking)}")
        if not len(value):
            raise ValueError(f"{name} must have rows; got none")

    return check


def path(name: str, value: Any) -> None:
    """A path of a file or folder."""
    if not isinstance(value, (str, os.PathLike)) or "\0" in os.fspath(value):
        raise TypeError(f"{name} must be a path; got {shown(value)}")


def device(name: str, value: Any) -> None:
    """A device that this torch can use."""
    try:
        torch.empty(0, device=value)
    except Exception as error:  # torch says it in many ways
        raise ValueError(f"{name} must be a device of this machine; got {shown(value)}") from error


def floating(name: str, value: Any) -> None:
    """A floating point dtype of torch."""
    if not isinstance(value, torch.dtype) or not value.is_floating_point:
        raise ValueError(f"{name} must be a floating point dtype; got {shown(value)}")


def as_tensor(name: str, value: Any) -> torch.Tensor:
    """``torch.as_tensor``, refused in our words."""
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be a tensor, or numbers to make one of; got {shown(value)}") from error


def having(*names: str) -> Kind:
    """An object with these attributes."""

    def check(name: str, value: Any) -> None:
        if lacking := [attribute for attribute in names if not hasattr(value, attribute)]:
            wanted = ", ".join(names)
            kind = type(value).__name__
            raise TypeError(f"{name} must be a Dataset, with {wanted}; got {kind}, without {', '.join(lacking)}")

    return check


def optional(kind: Kind) -> Kind:
    """None, or such a value."""

    def check(name: str, value: Any) -> None:
        if value is not None:
            kind(name, value)

    return check


def anything(name: str, value: Any) -> None:
    """Unchecked here, whatever the annotation says."""


_BY_ANNOTATION: dict[str, Kind] = {
    "int": integer(),
    "float": number(),
    "str": text,
    "bool": flag,
    "Tensor": array,
    "np.ndarray": array,
    "nn.Module": instance("Module"),
    "Sequence": many(array),
    "Sequence[Tensor]": many(array),
    "Sequence[int]": many(integer()),
    "Sequence[float]": many(number()),
    "tuple[int, ...]": many(integer()),
    "tuple[float, ...]": many(number()),
    "Sequence[str]": many(text),
    "dict": instance("dict"),
    **{name: instance(name) for name in ("LinearHead", "Objective", "Trajectory", "TwoPhase", "TrainingConfig")},
    **{"Dataset": instance("Dataset"), "str | os.PathLike": path, "torch.dtype": floating},
    "str | torch.device": device,
    "float | tuple[float, ...]": one_or_many(number()),
    "tuple[float, float]": pair(number()),
    "Iterable[Check]": many(instance("Check")),
    "MLP | ResNet20": instance("MLP", "ResNet20"),
}


def annotated(annotation: object) -> Kind | None:
    """The kind that an annotation (as a string) stands for, None if it stands for none that is known."""
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", "")
    if name in _BY_ANNOTATION:
        return _BY_ANNOTATION[name]
    if name.endswith(" | None"):
        kind = annotated(name.removesuffix(" | None"))
        return kind and optional(kind)
    if name.startswith("Callable"):
        return function
    return _BY_ANNOTATION.get(name)


def checked(**kinds: Kind) -> Callable[[F], F]:
    """Check the arguments of a function: those named here as said here, the others by their annotations."""

    def decorate(function: F) -> F:
        parameters = inspect.signature(function).parameters
        unknown = set(kinds) - set(parameters)
        assert not unknown, f"{function.__qualname__} has no {unknown}"
        checks: dict[str, Kind] = {}
        for name, parameter in parameters.items():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if kind := kinds.get(name) or annotated(parameter.annotation):
                checks[name] = optional(kind) if parameter.default is None else kind
        positional = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]

        @functools.wraps(function)
        def call(*args, **given):
            for name, value in itertools.chain(zip(positional, args, strict=False), given.items()):
                if name in checks:
                    checks[name](name, value)
            return function(*args, **given)

        return call  # type: ignore[return-value]

    return decorate


def check_fields(instance: Any, **kinds: Kind) -> None:
    """The same for the fields of a dataclass, at the start of its ``__post_init__``."""
    for field in fields(instance):
        if isinstance(number := getattr(instance, field.name), np.generic):  # JSON knows Python's numbers alone
            object.__setattr__(instance, field.name, number.item())
        if kind := kinds.get(field.name) or annotated(field.type):
            value = getattr(instance, field.name)
            (optional(kind) if field.default is None else kind)(field.name, value)
