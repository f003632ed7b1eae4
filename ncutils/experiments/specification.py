"""A figure or an experiment of your own as one declaration: data, network, training, and what is swept."""

from __future__ import annotations

import functools
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace

from torch import nn

from ncutils._arguments import (
    anything,
    function,
    instance,
    integer,
    many,
    number,
    one_or_many,
    optional,
    pair,
    scalar,
    shown,
    text,
)
from ncutils.experiments import custom
from ncutils.experiments.jobs import NETWORKS, DataConfig, Job, NetworkConfig, values
from ncutils.training import TrainingConfig, learning_rate_factor

PROFILES = ("quick", "cores", "paper")
PROSE = ("shows", "runs_per_job", "runs_per_cell")  # may change without making another experiment


@dataclass(frozen=True)
class Specification:
    """One experiment at one size. :func:`declare` makes one from a flat list of options.

    Attributes:
        figure: the paper's number (``"2-mlp"`` and ``"2-resnet"`` are the two rows of Figure 2, ``"1-resnet"`` the
            variant of Figure 1 that one published version shows), or a name of your own.
        data: the samples.
        network: ``"mlp"``, ``"resnet20"``, or a function ``make(num_nonlinear=, num_linear=, width=)`` that returns an
            ``nn.Module`` from the data's x ``(N, ...)`` to ``(N, K)``. Its layers are counted back from the output, so
            that ``num_linear`` says where the linear head begins; torch's generator is seeded with the run's seed.
        nonlinear: numbers of dense ReLU layers, one network each.
        linear: numbers of linear layers behind them, one network each.
        lr: step sizes; every pair of a step size and a weight decay is a set-up.
        weight_decay: weight decays.
        seeds: runs of each set-up; their seeds are 0, 1, ...
        training: every other option of the training; its own ``lr`` and ``weight_decay`` are not looked at.
        width: of hidden dense layers, one or several.
        sweep: other options of the training to sweep, ``{"momentum": (0.0, 0.9)}``; part of the set-ups.
        weight_decay_over_depth: divide the weight decay by the number of layers.
        class_means: keep the inner products of the class means at the end.
        profile: one of :data:`PROFILES`, or ``"own"``.
        shows: what the figure shows.
        runs_per_job: runs that train as one job; None for all runs of a network on a GPU, which stacks them, and one
            on a CPU, which gains nothing by it and has neighbours to share with.
        loss: ``loss(outputs (N, K), y (N,)) -> scalar`` in the place of the squared error.
        optimizer: ``optimizer(parameters, lr=, weight_decay=)`` in the place of SGD, such as ``torch.optim.AdamW``; the
            schedule multiplies its step size. With a network, loss or optimizer of your own, runs train one by one
            through autograd, and a run that is stopped begins anew.

    Example:
        >>> from ncutils.experiments import specification
        >>> two = specification("2-mlp")
        >>> two.runs, two.setups, two.but(seeds=5).runs
        (36, [(0.05, 0.001), (0.05, 0.004)], 60)
    """

    figure: str
    data: DataConfig
    network: str | Callable
    nonlinear: tuple[int, ...]
    linear: tuple[int, ...]
    lr: tuple[float, ...]
    weight_decay: tuple[float, ...]
    seeds: int
    training: TrainingConfig
    width: int | tuple[int, ...] = 64
    sweep: Mapping[str, tuple] | tuple[tuple[str, tuple], ...] = ()
    weight_decay_over_depth: bool = False
    class_means: bool = False
    profile: str = "own"
    shows: str = field(default="", compare=False)
    runs_per_job: int | None = 1
    loss: Callable | None = None
    optimizer: Callable | None = None

    def __post_init__(self) -> None:
        text("figure", self.figure)
        if not re.fullmatch(r"[^\s./\\:][^/\\:\0-\x1f]{0,99}", self.figure):  # it names files
            wanted = "a name of at most 100 characters, without slashes or colons, no dot in front"
            raise ValueError(f"figure must be {wanted}; got {shown(self.figure)}")
        if self.profile not in (*PROFILES, "own"):
            raise ValueError(f"profile must be one of {', '.join(PROFILES)}, own; got {self.profile!r}")
        one_or_many(integer(least=1))("width", self.width)
        for name in ("nonlinear", "linear", "lr", "weight_decay"):
            value = getattr(self, name)
            value = tuple(map(scalar, value)) if isinstance(value, (tuple, list)) else (scalar(value),)
            object.__setattr__(self, name, value)
            if not value:
                raise ValueError(f"{name} must hold at least one value; got none")
            least = {"nonlinear": 0, "linear": 1}.get(name)
            many(number(least=0, finite=True) if least is None else integer(least=least))(name, value)
            _no_repetition(name, value)
        _no_repetition("width", self.widths)
        for name in ("loss", "optimizer"):
            optional(function)(name, getattr(self, name))
        if self.network not in NETWORKS and not callable(self.network):
            kinds = ", ".join(NETWORKS)
            raise ValueError(f"network must be one of {kinds}, or a function that makes one; got {self.network!r}")
        if isinstance(self.network, nn.Module):
            raise TypeError(f"network must be a function that makes a module, not a module; got {shown(self.network)}")
        if callable(self.network) and self.class_means:
            raise ValueError("class_means must be False with a network of your own; got True")
        if self.own_code and self.training.precision == "bfloat16":
            raise ValueError("precision must be float32 or float64 with code of your own; got 'bfloat16'")
        integer(least=1)("seeds", self.seeds)
        optional(integer(least=1))("runs_per_job", self.runs_per_job)
        for name in ("seeds", "runs_per_job", "width"):
            value = getattr(self, name)
            value = tuple(map(scalar, value)) if isinstance(value, (tuple, list)) else scalar(value)
            object.__setattr__(self, name, value)
        instance("dict", "tuple", "list")("sweep", self.sweep)
        if not isinstance(self.sweep, dict):
            many(pair(anything))("sweep", self.sweep)
        pairs: list = list(self.sweep.items()) if isinstance(self.sweep, dict) else list(self.sweep)
        _no_repetition("sweep", [name for name, _ in pairs])
        sweep: tuple = tuple((name, tuple(map(scalar, choices))) for name, choices in pairs)
        known = _names(TrainingConfig) - {"lr", "weight_decay", "steps", "epochs", "batch_size", "precision"}
        if unknown := [name for name, _ in sweep if name not in known]:
            raise ValueError(f"sweep must name options among {', '.join(sorted(known))}; got {', '.join(unknown)}")
        for name, choices in sweep:
            if not choices:
                raise ValueError(f"sweep[{name!r}] must hold at least one value; got none")
            _no_repetition(f"sweep[{name!r}]", choices)
        if self.optimizer is not None and "momentum" in dict(sweep):
            raise ValueError("sweep must not name momentum with an optimizer of your own, which is not told of it")
        object.__setattr__(self, "sweep", sweep)

    def __getattr__(self, name: str):
        """What the parts hold, e.g. ``spec.epochs``, ``spec.samples``."""
        for part in ("data", "training"):
            if not name.startswith("_") and part in self.__dict__ and name in vars(self.__dict__[part]):
                return getattr(self.__dict__[part], name)
        raise AttributeError(f"a Specification has no {name!r}")

    def but(self, **changes) -> Specification:
        """This experiment with other options, of whichever part: ``spec.but(epochs=3, width=12)``."""
        own, data, how = _sorted(changes)
        return replace(self, **own, data=replace(self.data, **data), training=replace(self.training, **how))

    def options(self) -> dict:
        """All options in one flat dictionary that JSON can keep: what an archive stores."""
        flat = {name: value for name, value in values(self).items() if name not in ("data", "training")}
        flat |= {"data" if name == "source" else name: value for name, value in values(self.data).items()}
        flat |= {name: value for name, value in values(self.training).items() if name not in ("lr", "weight_decay")}
        flat |= {name: f"{custom.name(value)} (own)" for name, value in flat.items() if callable(value)}
        if self.optimizer is not None:
            flat["momentum"] = None  # not this book's SGD
        return json.loads(json.dumps(flat | {"data": self.data.name, "precision": self.precision or "float32"}))

    @property
    def own_code(self) -> dict:
        """The functions of your own that take part, by option."""
        return {name: v for name in ("network", "loss", "optimizer") if callable(v := getattr(self, name))}

    def identity(self) -> dict:
        """What makes two runs the same experiment: not the caption, nor the cutting into jobs."""
        return identity(self.options())

    @property
    def as_declared(self) -> bool:
        """Whether this is what :mod:`ncutils.experiments.figures` declares under its name, with nothing changed."""
        from ncutils.experiments import figures

        declared = figures.DECLARED.get((self.figure, self.profile))
        return declared is not None and declared.identity() == self.identity()

    @property
    def swept(self) -> tuple[tuple[str, tuple], ...]:
        """``sweep`` as pairs of an option and its choices."""
        return tuple(dict(self.sweep).items())

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(self.width) if isinstance(self.width, (tuple, list)) else (self.width,)

    @property
    def networks(self) -> list[tuple[int, int]]:
        """Every (nonlinear, linear) pair of layer counts."""
        return list(itertools.product(self.nonlinear, self.linear))

    @property
    def setups(self) -> list[tuple]:
        """Every (lr, weight_decay, then what else is swept), before any division by the depth."""
        return list(itertools.product(self.lr, self.weight_decay, *(choices for _, choices in self.swept)))

    @property
    def runs(self) -> int:
        return len(self.networks) * len(self.widths) * len(self.setups) * self.seeds

    @property
    def steps(self) -> int:
        return self.training.for_samples(self.data.count).total

    @property
    def flow_time(self) -> float:
        """Sum of effective step sizes of the first set-up, see the package's page; NaN with an optimizer given."""
        if self.optimizer is not None:
            return math.nan
        return step_sizes(self.training.for_samples(self.data.count))[-1] * self.lr[0] / (1 - self.training.momentum)

    def setup_name(self, index: int) -> str:
        lr, decay, *others = self.setups[index]
        name = f"lr={lr:g}, wd={decay:g}" + "/depth" * self.weight_decay_over_depth
        return ", ".join([name, *(f"{option}={value}" for (option, _), value in zip(self.swept, others, strict=True))])

    def jobs(self, device: str = "cpu") -> list[Job]:
        """The independent pieces of work: one network, one choice of the other options, and a block of its runs."""
        return [job for job, _ in self.planned(device)]

    cells = jobs  # the name it had

    def planned(self, device: str = "cpu") -> list[tuple[Job, list[int]]]:
        """The jobs, each with its runs' numbers within their network, which count up set-up by set-up."""
        found: list[tuple[Job, list[int]]] = []
        for nonlinear, linear, width in itertools.product(self.nonlinear, self.linear, self.widths):
            network = NetworkConfig(self.network, nonlinear, linear, width)
            depth = nonlinear + linear if self.weight_decay_over_depth else 1
            groups: dict[tuple, list] = {}  # runs that may train together: the same options but for these three
            for index, (lr, decay, *others) in enumerate(self.setups):
                runs = [(seed, lr, decay / depth, index * self.seeds + seed) for seed in range(self.seeds)]
                groups.setdefault(tuple(others), []).extend(runs)
            for choice, members in groups.items():
                options = {name: value for (name, _), value in zip(self.swept, choice, strict=True)}
                block = self.runs_per_job or (1 if device == "cpu" else len(members))
                for start in range(0, len(members), block):
                    seeds, lrs, decays, numbers = map(tuple, zip(*members[start : start + block], strict=True))
                    how = replace(self.training, lr=lrs, weight_decay=decays, **options)
                    job = Job(self.data, network, how, seeds, self.class_means, device, self.loss, self.optimizer)
                    found.append((job, list(numbers)))
        return found

    def describe(self) -> str:
        """The specification in words, like a caption."""
        kind = custom.name(self.network) if callable(self.network) else {"mlp": "MLP"}.get(self.network, "ResNet20")
        layers = f"ReLU layers {_listed(self.nonlinear)}, linear layers {_listed(self.linear)}"
        decays = _listed(self.weight_decay) + " / depth" * self.weight_decay_over_depth
        swept = "".join(f" x {name} {_listed(choices)}" for name, choices in self.swept)
        part = f", measured on {self.measured:,} of them" if self.measured else ", measured on all of them"
        test = f" and {self.test_samples:,} test samples" * bool(self.test_samples)
        how = self.training
        batch = how.batch_size or self.data.count
        stepper = "" if self.optimizer is None else f"{custom.name(self.optimizer)}, "
        along = f"; flow time {self.flow_time:,.0f}" if self.optimizer is None else ""
        each = f" of {self.data.count // batch} steps" if how.epochs is not None else ""
        name = f"{self.figure}: {self.shows}".rstrip(": ") if self.profile == "own" else None
        lines = [
            name or f"Figure {self.figure}, profile {self.profile}: {self.shows}",
            f"  data      {self._data()}{part}{test}",
            f"  network   {kind}, {layers}, width {_listed(self.widths)}",
            f"  runs      lr {_listed(self.lr)} x weight decay {decays}{swept} x {self.seeds} seeds: "
            f"{self.runs} in all",
            f"  schedule  {self._length()}{each}, batch {batch}, "
            f"{stepper or f'momentum {how.momentum:g}, '}lr / "
            f"{1 / how.drop_factor if how.drop_factor else float('inf'):g} after {how.drop_at:.0%}"
            f"{along}; {how.precision or 'float32'}",
        ]
        return "\n".join(lines)

    def label(self, device: str = "CPU") -> str:
        """Size, seeds and device in one line, for titles: never says more than what was run."""
        scale = {"quick": "quick", "cores": "what two cores can", "paper": "paper-scale"}.get(self.profile, self.figure)
        if self.profile == "paper" and not self.as_declared:
            scale += " with changes"
        seeds = f"{self.seeds} seed{'s' * (self.seeds > 1)}"
        precision = self.training.precision or "float32"
        return f"{scale}: {self._data()}, {seeds}, {self._length()}, {precision}, {device}"

    def _length(self) -> str:
        epochs = self.training.epochs
        return f"{self.steps:,} steps" if epochs is None else f"{epochs:,} epochs"

    def _data(self) -> str:
        name = self.data.source
        if not isinstance(name, str):
            return f"{self.data.count:,} samples of {self.data.name.partition(':')[0]}"
        kind = {"mnist5k": "digits", "mnist": "digits"}.get(name, "CIFAR-10 images" if "cifar" in name else name)
        side = self.data.size or {"cifar10": 32, "cifar10_small": 16}.get(name, 28)
        return f"{self.data.count:,} {kind} of {side}x{side}"


def declare(**options) -> Specification:
    """A :class:`Specification` from one flat list: its own fields, those of :class:`DataConfig` (``data`` is its
    ``source``) and those of :class:`ncutils.training.TrainingConfig`.

    Raises:
        ValueError: an option that none of the three has, or a value that makes no experiment.

    Example:
        >>> from ncutils import data, experiments
        >>> mine = experiments.declare(
        ...     figure="blobs", data=data.gaussian(20, num_classes=3), nonlinear=2, linear=(1, 2), lr=0.02,
        ...     weight_decay=0.001, width=8, seeds=2, epochs=2, batch_size=20, measurements=1,
        ... )
        >>> mine.lr, mine.training.epochs, mine.data.count
        ((0.02,), 2, 60)
    """
    own, data, how = _sorted(options)
    own = {"network": "mlp", "seeds": 1} | own
    return Specification(**own, data=DataConfig(**data), training=TrainingConfig(**how))


def _sorted(options: dict) -> tuple[dict, dict, dict]:
    own: dict = {}
    data: dict = {}
    how: dict = {}
    for name, value in options.items():
        if name == "data":
            data |= values(value) if isinstance(value, DataConfig) else {"source": value}
        elif name == "training":
            how |= values(value)
        elif name in _names(Specification):
            own[name] = value
        elif name in _names(DataConfig):
            data[name] = value
        elif name in _names(TrainingConfig):
            how[name] = value
        else:
            known = _names(Specification) | _names(DataConfig) | _names(TrainingConfig)
            raise ValueError(f"options must be among {', '.join(sorted(known))}; got {name!r}")
    return own, data, how


def identity(stored: dict) -> dict:
    """The identity in stored options; one that was not there yet had what is now its default."""
    parts = (Specification, DataConfig, TrainingConfig)
    defaults = {f.name: f.default for part in parts for f in fields(part) if f.default is not MISSING}
    defaults |= {"precision": "float32"}
    ignored = {*PROSE, "source"} | ({"lr", "weight_decay"} - set(stored))
    merged = {name: value for name, value in (defaults | stored).items() if name not in ignored}
    return json.loads(json.dumps(merged))


def _no_repetition(name: str, values) -> None:
    """Two equal values would be the same run counted twice."""
    if twice := [value for index, value in enumerate(values) if value in values[:index]]:
        raise ValueError(f"{name} must not repeat a value; got {twice[0]!r} twice")


@functools.cache
def _names(part) -> set[str]:
    return {f.name for f in fields(part)}


@functools.cache
def step_sizes(config: TrainingConfig):
    """Sum of the step sizes before each step, in units of lr: an array of steps + 1 numbers."""
    import numpy as np

    factors = [learning_rate_factor(config, step) for step in range(config.total)]
    return np.concatenate([[0.0], np.cumsum(factors)])


def _listed(values: tuple) -> str:
    if len(values) > 6:
        return f"{values[0]:g} ... {values[-1]:g} ({len(values)} of them)"
    return ", ".join(f"{value:g}" if isinstance(value, (int, float)) else str(value) for value in values)
