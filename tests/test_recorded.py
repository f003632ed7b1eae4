"""What every public function returns on fixed arguments, compared with what it returned when that was recorded.

The other tests say what is right: these notice that something is no longer what it was. Where a change is meant,
``RECORD=1 python -m pytest tests/test_recorded.py`` writes ``tests/recorded.json`` anew, and its difference is read.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import numbers
import os
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import test_fuzz as fuzz
import torch
from test_fuzz import certificates, corollary_5_2, every_layer, exact, inheritance, stationary

from ncutils import data, experiments, networks, theory, training

RECORDED = Path(__file__).with_name("recorded.json")
# Other processors round otherwise; single precision is what networks and data have.
TOLERANCE = {"theory": 1e-5, "metrics": 1e-5}
LEFT_OUT = {"seconds", "versions", "git_commit", "code", "parquet_sha256", "provenance", "device", "dtype"}
CHOICES = {
    "form": ("paper", "simple", "sharp", "joint", "stepwise", "features", "norms"),
    "kind": ("trace", "pinv", "cdnv", "condition", "etf", "orthogonal", "simplex", "op", "frobenius", "relative"),
    "dynamics": ("flow", "descent"),
    "activation": ("smooth", "relu", "identity"),
    "layer": (1, 2, 3),
    "split": ("train", "test"),
    "nesterov": (False, True),
    "reference": (None,),
    "pool": ("mean", "flatten", "max"),
}
NUMBERS = (-1, 0, 0.5, 1, 2, 3)  # in the place of every number
UNSTABLE = ("theory.descend", "step_size")  # far beyond the largest stable step every rounding counts
AT_LENGTH = ("experiments.", "plots.", "training.train")  # seconds for each


def numbers_in(value, depth: int = 0) -> list:
    """The numbers of a result, one after the other; of large arrays and tables a few sums."""
    if depth > 6 or value is None or (callable(value) and not isinstance(value, torch.nn.Module)):
        return []
    if isinstance(value, (bool, np.bool_, str)):
        return [str(value)] if len(str(value)) < 100 and "/" not in str(value) else []
    if isinstance(value, numbers.Number):
        return [float(value.real), float(value.imag)] if isinstance(value, complex) else [float(value)]
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            return numbers_in(list(value), depth)
        flat = np.nan_to_num(value.astype(np.float64).ravel(), nan=0.123, posinf=1e9, neginf=-1e9)
        if len(flat) <= 6:
            return flat.tolist()
        return [float(len(flat)), float(flat.sum()), float((flat**2).sum()), float(flat @ np.cos(np.arange(len(flat))))]
    if isinstance(value, (pd.DataFrame, pd.Series)):
        frame = value.to_frame() if isinstance(value, pd.Series) else value
        return [c for n in sorted(map(str, frame)) if n not in LEFT_OUT for c in numbers_in(list(frame[n]), depth + 1)]
    if isinstance(value, dict):
        return [c for name in value if name not in LEFT_OUT for c in numbers_in(value[name], depth + 1)]
    if isinstance(value, (list, tuple, set, frozenset)):
        values = sorted(value, key=str) if isinstance(value, (set, frozenset)) else list(value)
        if len(values) > 12 and all(isinstance(v, numbers.Real) for v in values):
            return numbers_in(np.array(values, dtype=float), depth)
        return [c for item in values for c in numbers_in(item, depth + 1)]
    if isinstance(value, matplotlib.figure.Figure):
        value = value.axes
        return [c for ax in value for c in numbers_in(drawn(ax), depth + 1)]
    if isinstance(value, matplotlib.axes.Axes):
        return numbers_in(drawn(value), depth + 1)
    if isinstance(value, torch.nn.Module):
        return numbers_in([p for p in value.parameters()], depth + 1)
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.name not in LEFT_OUT}
        return numbers_in({**fields, **derived(value)}, depth + 1)
    return numbers_in(derived(value), depth + 1) if type(value).__module__.startswith("ncutils") else []


def derived(value) -> dict:
    """The properties of one of our objects, those that can be had."""
    found = {}
    for name in sorted(dir(type(value))):
        if not name.startswith("_") and isinstance(getattr(type(value), name), (property, functools.cached_property)):
            try:
                found[name] = getattr(value, name)
            except Exception as error:
                found[name] = type(error).__name__
    return {name: v for name, v in found.items() if name not in LEFT_OUT and not isinstance(v, pd.DataFrame)}


def drawn(ax) -> list:
    """What a panel shows: its lines' points, its limits' scale and its words."""
    lines = [np.nan_to_num(np.asarray(line.get_xydata(), dtype=float)) for line in ax.lines]
    images = [np.asarray(image.get_array()) for image in ax.images]
    return [*lines, *images, ax.get_xscale(), ax.get_yscale(), ax.get_xlabel(), ax.get_ylabel(), ax.get_title()]


def drawn_matrix(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).standard_normal((rows, columns)))


UNEVEN = theory.LinearHead(
    [drawn_matrix(7, 6, 0), drawn_matrix(5, 7, 1), drawn_matrix(4, 5, 2), drawn_matrix(3, 4, 3)],
    drawn_matrix(9, 6, 4), torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2]),
)  # fmt: skip
NEAR = theory.LinearHead(*theory.random_head(torch.Generator().manual_seed(1), num_classes=3, num_linear=4,
                                             samples_per_class=3, noise=1e-4))  # fmt: skip
DEEP = [0.5 * drawn_matrix(n, m, n) for n, m in ((8, 8), (7, 8), (6, 7), (3, 6))]
FORMED = (
    *(theory.theorem_3_1_nc1, theory.theorem_3_1_nc2, theory.theorem_3_1_nc3, theory.theorem_3_1_conditioning),
    *(theory.proposition_5_1, theory.ntk_floor, theory.proposition_5_3_floor),
)
HEADS = {"uneven": UNEVEN, "near": NEAR}
OWN_HEADS = (
    *(every_layer.every_layer, exact.exact_case, exact.distance_to_collapse, certificates.head_certificate),
    *(certificates.certificate_of_last_layer, theory.theorem_3_1_nc1, theory.theorem_3_1_nc2, theory.theorem_3_1_nc3),
    *(theory.theorem_3_1_conditioning, theory.proposition_5_1, theory.theorem_5_2_posteriori),
    *(theory.linear_ntk_norm, theory.ntk_block_norms, theory.waste, theory.head_norm),
)


def _objectives():
    for activation, nonlinear, decay in (("smooth", 2, 0.003), ("identity", 1, 0.01), ("relu", 1, 0.02)):
        objective = theory.Objective(fuzz.X, np.arange(6) % 3, nonlinear, decay, activation=activation)
        yield f"{activation}-{nonlinear}", objective


def _phases():
    for name, objective in _objectives():
        if name.startswith("smooth"):
            for widths in ((8, 5, 4, 3), (9, 7, 5, 4, 3)):
                weights = theory.initialise(objective, widths, 2.0, small=0.01)
                yield f"{name}-{len(widths)}", objective, weights, theory.TwoPhase.at(objective, weights)


def _every_constant(phase) -> dict:
    """Each method of the constants of Theorem 4.4, at several arguments."""
    calls = {
        "assumption_4_3": [(f, d) for f in ("paper", "simple", "sharp") for d in ("flow", "descent")],
        "hypotheses": [("flow",), ("descent", 1e-4)],
        "nc1_bound": [(i, f, s) for i in (0.0, 1e-6) for f in ("paper", "simple", "sharp") for s in (0.01, 1.0)],
        "smoothness": [(), (1.0,), (3.0,)], "gradient_bound": [()], "a_priori_radius": [()], "slack": [(0.5,), (50.0,)],
        "slack_after": [(10, 1e-4)], "fitted_error": [(0.01,), (1.0,)], "path_bound": [("flow",), ("descent",)],
        "t2": [(1e-9,), (10.0,)], "travelled": [(0.0,), (1e-3,)], "rate_per_step": [(1e-5,), (10.0,)],
        "k1": [(1e-4,)], "descent_imbalance": [(0, 1e-4), (10**9, 1e-4)], "non_vacuous": [(0.9, "sharp", 0.01)],
    }  # fmt: skip
    found = {}
    for name, arguments in calls.items():
        for given in arguments:
            try:
                found[f"{name}{given}"] = getattr(phase, name)(*given)
            except ValueError as error:
                found[f"{name}{given}"] = type(error).__name__
    small = dataclasses.replace(phase, weight_decay=phase.weight_decay * 1e-9)
    return found | {f"small {f}": small.nc1_bound(1e-9, f, 0.01) for f in ("paper", "simple", "sharp")}


def _training(**options):
    config = training.TrainingConfig(**dict(steps=12, batch_size=4, warmup_steps=3, measurements=4, lr=0.03,
                                            weight_decay=0.01, precision="float64") | options)  # fmt: skip
    network = networks.MLP(5, 3, num_nonlinear=1, num_linear=2, width=4, seeds=(0, 1), dtype=torch.float64)
    result = training.train(network, fuzz.BLOBS.to(dtype=torch.float64), config, progress=False)
    return [pd.DataFrame(result.rows), result.network]


def _sweep():
    given = dict(figure="recorded", nonlinear=(1, 2), linear=2, width=(4, 6), lr=(0.02, 0.05), weight_decay=0.01)
    given |= dict(seeds=2, epochs=3, batch_size=6, warmup_steps=2, measurements=3, precision="float64")
    parts = tuple(data.gaussian(6, num_classes=3, dim=5, split=split) for split in data.SPLITS)
    spec = experiments.declare(data=parts, **given)
    result = experiments.run(spec, backend="sequential", progress=False)
    sizes = [spec.runs, spec.steps, spec.flow_time, len(spec.jobs()), spec.describe(), spec.label()]
    return [sizes, result.frame, result.final("test"), result.flow_time(), result.nonlinear_head()]


def _in_words(figure: str) -> list:
    spec = experiments.specification(figure)
    networks_ = [job.network for job in spec.jobs()]
    sizes = [spec.steps, spec.flow_time, spec.runs, [runs for _, runs in spec.planned("cuda")]]
    return [
        spec.label(),
        spec.describe(),
        sizes,
        networks_,
        [spec.setup_name(i) for i in range(len(spec.setups))],
    ]


@functools.cache
def scenarios() -> dict:
    """What is computed, by name."""
    found = {}
    for name, (function, make) in fuzz.TARGETS.items():
        if "load_archive" in name or "archived" in name or name in ("claims.read_questions", "claims.read_claims"):
            continue
        found[name] = functools.partial(lambda function, make: function(**make()), function, make)
        for argument in sorted(set(CHOICES) & set(make())):
            for choice in CHOICES[argument]:
                varied = functools.partial(lambda f, m, given: f(**m() | given), function, make, {argument: choice})
                found[f"{name} {argument}={choice}"] = varied
        for argument, value in sorted(make().items()):
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if number and not name.startswith(AT_LENGTH) and (name, argument) != UNSTABLE:
                for probe in NUMBERS:
                    varied = functools.partial(lambda f, m, given: f(**m() | given), function, make, {argument: probe})
                    found[f"{name} {argument}={probe}"] = varied
        for argument in sorted(make()):
            found[f"{name} without {argument}"] = functools.partial(
                lambda f, m, left_out: f(**{k: v for k, v in m().items() if k != left_out}), function, make, argument
            )
    for label, head in HEADS.items():
        for function in OWN_HEADS:
            found[f"theory.{function.__name__} of {label}"] = functools.partial(function, head)
        for form, function in itertools.product(("paper", "simple", "sharp"), FORMED):
            found[f"theory.{function.__name__} {form} of {label}"] = functools.partial(function, head, form)
        first = [fuzz.W[:, : head.features.shape[1] - 1]] if label == "near" else [fuzz.W]
        for function in (certificates.certificate_a_priori, corollary_5_2.corollary_5_2):
            found[f"theory.{function.__name__} of {label}"] = functools.partial(
                function, head, nonlinear_weights=first, x=head.features, weight_decay=1e-3
            )
        for function in (stationary.stationary_identity, stationary.stationary_trace, stationary.stationary_nc2):
            found[f"theory.{function.__name__} of {label}"] = functools.partial(function, head, 0.003)
        for form, bias, rank in (("sharp", None, None), ("simple", torch.ones(len(head.weights[-2])).double(), 2)):
            found[f"theory.inheritance {form} of {label}"] = functools.partial(
                inheritance.inheritance, head.weights[-2:], head.layers[-3], head.y, form, bias=bias, rank=rank
            )
    for label, objective in _objectives():
        weights = DEEP if objective.num_nonlinear == 2 else DEEP[:1] + DEEP[1:]
        for name in ("cost", "data_cost", "gradients", "hessian"):
            found[f"theory.Objective.{name} {label}"] = functools.partial(getattr(objective, name), weights)
        found[f"theory.descend {label}"] = lambda o=objective, w=weights: theory.descend(o, w, 1e-4, 20, record=5)
        if not label.startswith("relu"):  # whose kinks an adaptive solver cannot step over
            found[f"theory.flow {label}"] = lambda o=objective, w=weights: theory.flow(o, w, [0.0, 0.01, 0.02]).states[
                :1
            ]
        found[f"theory.balancedness_stationary {label}"] = functools.partial(
            theory.balancedness_stationary, objective, weights
        )
    for label, objective, weights, phase in _phases():
        found[f"theory.constants {label}"] = functools.partial(_every_constant, phase)
        found[f"theory.phase {label}"] = lambda p=phase: p
        runs = {"flow": lambda o=objective, w=weights: theory.flow(o, w, [0.0, 0.2, 5.0]),
                "descent": lambda o=objective, w=weights: theory.descend(o, w, 1e-4, 30, record=10)}  # fmt: skip
        for how, run in runs.items():
            found[f"theory.theorem_4_4 {how} {label}"] = lambda p=phase, run=run: theory.theorem_4_4(p, run())
    for options in ({}, dict(momentum=0.0), dict(drop_at=0.5, drop_factor=0.2), dict(weight_decay=(0.01, 0.02)),
                    dict(batch_size=None), dict(batch_size=5, epochs=4, steps=None)):  # fmt: skip
        found[f"training {options}"] = functools.partial(_training, **options)
    found["experiments sweep"] = _sweep
    found |= {
        f"experiments.{figure} {profile}": lambda f=figure, p=profile: experiments.specification(f, p).options()
        for figure, profile in experiments.DECLARED
    }
    for figure, profile in experiments.DECLARED:
        if profile == "quick":  # on data that are at hand
            found[f"experiments.{figure} in words"] = functools.partial(_in_words, figure)
    return found


def compute(function) -> list:
    """The numbers, or the kind of error that a choice ends in."""
    import matplotlib.pyplot as plt

    torch.manual_seed(0)
    try:
        return [round(v, 12) if isinstance(v, float) else v for v in numbers_in(function())]
    except (ValueError, TypeError, RuntimeError) as error:
        return [type(error).__name__]
    finally:
        plt.close("all")


def same(found, kept, relative: float) -> bool:
    if isinstance(found, str) or isinstance(kept, str):
        return found == kept
    return math.isclose(found, kept, rel_tol=relative, abs_tol=1e-7) or (math.isnan(found) and math.isnan(kept))


def tolerance(name: str) -> float:
    return TOLERANCE.get(name.partition(".")[0], 1e-4)


def agree(name: str, found: list, kept: list) -> bool:
    return len(found) == len(kept) and all(same(a, b, tolerance(name)) for a, b in zip(found, kept, strict=True))


@pytest.fixture(scope="module")
def recorded():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCUTILS_CACHE", "off")
        patch.setenv("TQDM_DISABLE", "1")
        matplotlib.use("Agg")
        if os.environ.get("RECORD"):
            before = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
            computed = {name: compute(function) for name, function in scenarios().items()}
            found = computed.copy()
            for name, values in computed.items():
                base = name.partition(" without ")[0]
                if base != name and values == computed[base]:  # said so, to be read by people
                    found[name] = ["as it was with it"]
                elif name in before and agree(name, values, before[name]):  # another machine's last digits stay out
                    found[name] = before[name]
            lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in found.items())
            RECORDED.write_text("{\n" + lines + "\n}\n", encoding="utf-8")
        yield json.loads(RECORDED.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", scenarios())
def test_what_is_returned_is_what_was(name, recorded):
    found, kept = compute(scenarios()[name]), recorded[name]
    if kept == ["as it was with it"]:
        kept = recorded[name.partition(" without ")[0]]
    differ = [(i, a, b) for i, (a, b) in enumerate(zip(found, kept, strict=False)) if not same(a, b, tolerance(name))]
    assert agree(name, found, kept), f"{len(found)} values for {len(kept)}, {len(differ)} differ: {differ[:5]}"


def test_nothing_recorded_is_left_over(recorded):
    assert sorted(recorded) == sorted(scenarios())
