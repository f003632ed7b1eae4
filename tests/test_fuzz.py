"""Bad arguments, drawn at random: every public function gives a value, or one of our own lines refuses.

A call counts as refused when a ``raise`` statement of this package raised ValueError, TypeError, or one of the few
others that a function documents; an error from inside torch, numpy or pandas, or from Python itself, is a *deep* one.
``tools/trust.py fuzz`` runs the same with more examples and writes the counts down.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import functools
import importlib
import io
import itertools
import math
import signal
import traceback
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import ncutils
from ncutils import __main__ as command_line
from ncutils import claims, data, experiments, metrics, networks, plots, theory, training

(any_width, certificates, corollary_5_2, dichotomy, every_layer, exact, inheritance, momentum_balance, slide, stationary,
 tangent_kernel, theorem_4_4, theorem_5_2, trivial) = (  # some functions have the name of their module
    importlib.import_module(f"ncutils.theory.{name}")
    for name in ["any_width", "certificates", "corollary_5_2", "dichotomy", "every_layer", "exact", "inheritance", "momentum_balance", "slide", "stationary", "tangent_kernel", "theorem_4_4", "theorem_5_2", "trivial"]
)  # fmt: skip

PACKAGE = Path(ncutils.__file__).parent
SECONDS = 5.0  # a call on these small inputs that takes longer hangs
# Besides ValueError and TypeError: what a function says it raises.
DOCUMENTED = (FileNotFoundError, ImportError)


# --- what is called, each with arguments that are right


def _dataset():
    return data.gaussian(4, num_classes=3, dim=5)


BLOBS = _dataset()
Z, Y = BLOBS.x.double(), BLOBS.y
W = torch.linspace(-1, 1, 15, dtype=torch.float64).view(3, 5).cos()
X = theory.general_position(6, 8)
OBJECTIVE = theory.Objective(X, np.arange(6) % 3, 1, 0.01)
WEIGHTS = theory.initialise(OBJECTIVE, (8, 4, 3), 1.0)
PHASE = theory.TwoPhase.at(OBJECTIVE, WEIGHTS)
FLOW = theory.flow(OBJECTIVE, WEIGHTS, [0.0, 0.1, 0.2])
HEAD = theory.LinearHead(*theory.random_head(torch.Generator().manual_seed(0)))
CHECK = theory.theorem_3_1_nc1(HEAD)
STATES = ((HEAD.weights, [0 * w for w in HEAD.weights]),) * 2
DECAYED = dict(nonlinear_weights=[W], x=HEAD.features, weight_decay=1e-4)
SIDES = functools.partial(theory.nc1_sides, form="sharp")


def _network():
    return networks.MLP(5, 3, num_nonlinear=1, num_linear=2, width=4)


def _sequential():
    return nn.Sequential(
        nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)
    )


CONFIG = training.TrainingConfig(steps=2, batch_size=4, warmup_steps=1, measurements=2)
SPEC = experiments.declare(
    figure="mine", data=BLOBS, nonlinear=4, linear=(1, 2), width=4, epochs=1, batch_size=4, warmup_steps=1,
    measurements=1, lr=0.05, weight_decay=0.01, class_means=True,
)  # fmt: skip


@functools.cache
def _result():
    with contextlib.redirect_stderr(io.StringIO()):
        return experiments.run(SPEC, backend="sequential", progress=False)


def _archive_frame():
    return experiments.load_archive("1", "cores").frame


def _bounds_rows():
    return pd.DataFrame({"step": [0, 1], "measured": 1.0, "bound": 2.0, "form": "sharp", "hypotheses_met": True,
                         "vacuous": False})  # fmt: skip


CLAIM = dict(id="a", claim="b", source="ours", where="02", scale="toy", verdict="holds")
FORM = dict(form="sharp")
FEATURES = dict(features=Z, labels=Y)


def _of(function, /, **arguments):
    """A target: the function and its right arguments, made anew for every call."""
    return function, lambda: {name: copy.copy(value) for name, value in arguments.items()}


def _late(function, make):
    return function, make


def _method(make, method, /, **arguments):
    def call(**given):
        return getattr(make(), method)(**given)

    return call, lambda: dict(arguments)


TARGETS = {
    # metrics
    "metrics.ClassStatistics": _of(metrics.ClassStatistics, num_classes=3, covariance=True),
    "metrics.ClassStatistics.update": _method(metrics.ClassStatistics, "update", **FEATURES),
    "metrics.ClassStatistics.merge": _method(
        lambda: metrics.ClassStatistics().update(Z, Y), "merge", other=metrics.ClassStatistics().update(Z, Y)
    ),
    **{
        f"metrics.ClassStatistics.{name}": _method(
            lambda: metrics.ClassStatistics(covariance=True).update(Z, Y), name, **arguments
        )
        for name, arguments in {
            "nc1": dict(kind="trace"), "nc2": dict(kind="etf"), "equinorm": dict(kind="etf"),
            "equiangularity": dict(kind="etf"), "self_duality": dict(weight=W, kind="etf"),
            "numerical_rank": dict(tolerance=1e-3), "nearest": dict(features=Z),
            "spread_along": dict(basis=W, features=Z, labels=Y),
        }.items()
    },
    **{f"metrics.{name}": _of(getattr(metrics, name), **FEATURES, kind=kind)
       for name, kind in (("nc1", "pinv"), ("nc2", "etf"), ("equinorm", "etf"), ("equiangularity", "etf"))},
    **{f"metrics.{name}": _of(getattr(metrics, name), **FEATURES, weight=W) for name in ("nc3", "nc4", "self_duality")},
    "metrics.class_means": _of(metrics.class_means, **FEATURES),
    "metrics.ncc_accuracy": _of(metrics.ncc_accuracy, **FEATURES),
    "metrics.negativity": _of(metrics.negativity, preactivations=Z),
    "metrics.numerical_rank": _of(metrics.numerical_rank, matrix=W, tolerance=1e-3),
    "metrics.condition_number": _of(metrics.condition_number, matrix=W, rank=2),
    "metrics.operator_norm": _of(metrics.operator_norm, matrix=W),
    "metrics.stable_rank": _of(metrics.stable_rank, matrix=W),
    "metrics.balancedness": _of(metrics.balancedness, weight=W, next_weight=W[:, :3], kind="op"),
    "metrics.imbalance": _of(metrics.imbalance, weight=W, next_weight=W[:, :3], kind="op"),
    # measure
    "measure": _late(ncutils.measure, lambda: dict(
        model=_sequential(), data=(Z.float(), Y), layers=None, reference=(Z.float(), Y), pool="mean", device="cpu",
        autocast=None, batch_size=4)),
    # data
    "data.gaussian": _of(data.gaussian, per_class=2, num_classes=3, dim=4, separation=3.0, split="train", seed=0,
                         device="cpu", dtype=torch.float32),
    "data.load": _of(data.load, name="cifar10_small", per_class=1, split="train", root=None, device="cpu",
                     dtype=torch.float32, seed=0),
    "data.Dataset": _late(lambda **given: data.Dataset(**given).checked(),
                          lambda: dict(x=BLOBS.x, y=BLOBS.y, num_classes=3, name="mine")),
    "data.Dataset.flat": _method(_dataset, "flat", like=None),
    "data.Dataset.to": _method(_dataset, "to", device="cpu", dtype=torch.float64),
    "data.Dataset.downsample": _method(lambda: data.load("cifar10_small", 1), "downsample", size=4),
    # networks
    "networks.MLP": _of(networks.MLP, input_dim=5, num_classes=3, num_nonlinear=1, num_linear=1, width=4,
                        widths=(4,), activation="smooth", gamma=0.5, seeds=(0, 1), dtype=torch.float32, device="cpu"),
    "networks.MLP.layers": _method(_network, "layers", x=BLOBS.x),
    "networks.MLP.__call__": _method(_network, "forward", x=BLOBS.x),
    "networks.MLP.run": _method(_network, "run", run=0),
    "networks.MLP.select": _method(_network, "select", runs=[0]),
    "networks.MLP.sequential": _method(_network, "sequential", run=0),
    "networks.ResNet20": _of(networks.ResNet20, in_channels=1, num_classes=3, num_linear=1, num_nonlinear=1, width=4,
                             seeds=(0,), dtype=torch.float32, device="cpu"),
    "networks.smooth": _of(networks.smooth, x=Z, gamma=0.5),
    "networks.smooth_derivative": _of(networks.smooth_derivative, x=Z, gamma=0.5),
    "networks.Smooth": _of(networks.Smooth, gamma=0.5),
    # training
    "training.TrainingConfig": _of(training.TrainingConfig, steps=2, lr=0.05, weight_decay=0.001, momentum=0.9,
                                   batch_size=4, warmup_steps=1, drop_at=0.8, drop_factor=0.1, measurements=2,
                                   precision="float32", epochs=None),
    "training.TrainingConfig.for_samples": _method(lambda: training.TrainingConfig(epochs=1), "for_samples",
                                                   samples=100),
    "training.TrainingConfig.per_run": _method(lambda: CONFIG, "per_run", name="lr", runs=2),
    "training.learning_rate_factor": _of(training.learning_rate_factor, config=CONFIG, step=1),
    "training.measurement_steps": _of(training.measurement_steps, config=CONFIG),
    "training.measure_layers": _late(training.measure_layers, lambda: dict(network=_network(), data=BLOBS, step=0)),
    "training.train": _late(
        functools.partial(training.train, progress=False),
        lambda: dict(network=_network(), data=BLOBS, config=CONFIG, measure=None, checkpoint=None, engine="auto")),
    # Changed options of a training, then the training itself: what a configuration lets through must train.
    "training.train(options)": _late(
        lambda **given: training.train(_network(), BLOBS, training.TrainingConfig(**given), progress=False),
        lambda: dict(steps=2, lr=0.05, weight_decay=0.001, momentum=0.9, batch_size=4, warmup_steps=1, drop_at=0.8,
                     drop_factor=0.1, measurements=2, precision=None)),
    # claims
    "claims.verdict": _of(claims.verdict, value=1.0, below=2.0, above=None, spread=0.1, margin=1.0, expects="holds"),
    "claims.Claim": _of(claims.Claim, **CLAIM, numbers={}),
    "claims.Claim.judge": _of(claims.Claim.judge, holds=True, partly=False),
    "claims.Claims": _of(claims.Claims, claims=(), where="02", scale="toy"),
    "claims.Claims.add": _method(
        lambda: claims.Claims(where="02", scale="toy"), "add", id="a", source="ours", text="b", value=1.0, below=2.0,
        above=None, spread=0.1, seeds=3, margin=1.0, expects="holds", holds=None, toy=False, scale=None, numbers=None),
    "claims.read_claims": _of(claims.read_claims, notebooks=[]),
    "claims.read_questions": _of(claims.read_questions, path=PACKAGE.parent / "claims.toml"),
    # experiments
    "experiments.declare": _of(experiments.declare, figure="mine", data=BLOBS, nonlinear=1, linear=(1, 2), width=4,
                               lr=0.05, weight_decay=(0.1, 0.2), seeds=2, epochs=1, batch_size=4, warmup_steps=1,
                               measurements=1, sweep={"momentum": (0.0, 0.5)}),
    "experiments.run(options)": _late(
        lambda **given: experiments.run(experiments.declare(**given), backend="sequential", progress=False),
        lambda: dict(figure="mine", data=BLOBS, nonlinear=1, linear=1, width=4, lr=0.05, weight_decay=0.1, seeds=1,
                     epochs=1, batch_size=4, warmup_steps=1, measurements=1, measured=6, size=None, network="mlp")),
    "experiments.run": _of(experiments.run, figure=SPEC, profile=None, device="cpu", jobs=1, backend="sequential",
                           progress=False),
    "experiments.progress": _of(experiments.progress, figure=SPEC, profile=None, device="cpu"),
    "experiments.specification": _of(experiments.specification, figure="1", profile="quick"),
    "experiments.load_archive": _of(experiments.load_archive, figure="1", profile="cores", folder=None),
    "experiments.archived": _of(experiments.archived, folder=None),
    "experiments.duration": _of(experiments.duration, seconds=3.0),
    "experiments.DataConfig": _of(experiments.DataConfig, source="mnist5k", samples=100, test_samples=10, measured=50,
                                  size=7),
    "experiments.NetworkConfig": _of(experiments.NetworkConfig, kind="mlp", num_nonlinear=1, num_linear=1, width=4),
    "experiments.final": _late(experiments.final, lambda: dict(frame=_result().frame, split="train")),
    "experiments.flow_time": _late(experiments.flow_time, lambda: dict(frame=_result().frame)),
    "experiments.head_ends": _late(experiments.head_ends, lambda: dict(frame=_result().frame, split="train")),
    "experiments.nonlinear_head": _late(experiments.nonlinear_head,
                                        lambda: dict(frame=_result().frame, split="train")),
    "experiments.class_grams": _late(experiments.class_grams, lambda: dict(frame=_result().frame, seed=0)),
    "experiments.label": _late(experiments.label, lambda: dict(result=_result())),
    # plots
    "plots.over_training": _late(plots.over_training,
                                 lambda: dict(frame=_result().frame, title="t", last=7, split="train", other=None)),
    "plots.figure2": _late(plots.figure2, lambda: dict(ends=_result().head_ends(), title="t", other=None,
                                                       names=("a", "b"))),
    "plots.figure3": _late(plots.figure3, lambda: dict(table=_result().nonlinear_head(), title="t", other=None,
                                                       names=("a", "b"))),
    "plots.class_means": _of(plots.class_means, grams={1: np.eye(3)}, layers=(1,), relu_layers=1, title="t"),
    "plots.bounds": _late(plots.bounds, lambda: dict(rows=_bounds_rows(), label="l", x="step", log=True)),
    # theory: the head and its statements
    "theory.LinearHead": _of(theory.LinearHead, weights=HEAD.weights, features=HEAD.features, y=HEAD.y),
    "theory.LinearHead.of": _late(theory.LinearHead.of, lambda: dict(model=_sequential(), x=Z.float(), y=Y,
                                                                     batch_size=4)),
    "theory.certify": _late(theory.certify, lambda: dict(model=_sequential(), x=Z.float(), y=Y, batch_size=4)),
    "theory.linear_head": _late(theory.linear_head, lambda: dict(model=_sequential(), x=Z.float(), y=Y, batch_size=4)),
    "theory.ntk_norm": _late(theory.ntk_norm, lambda: dict(model=_sequential(), x=Z.float(), steps=3, tol=1e-3)),
    "theory.random_head": _late(theory.random_head, lambda: dict(
        generator=torch.Generator().manual_seed(0), num_classes=2, num_linear=2, samples_per_class=2, extra_width=1,
        noise=0.1, spread=(0.5, 1.0))),
    **{f"theory.{name}": _of(getattr(theory, name), head=HEAD, **FORM) for name in (
        "theorem_3_1_nc1", "theorem_3_1_nc2", "theorem_3_1_nc3", "theorem_3_1_conditioning", "nc1_sides", "nc2_sides",
        "nc3_sides", "conditioning_sides", "proposition_5_1", "proposition_5_1_sides", "ntk_floor",
        "proposition_5_3_floor")},
    **{f"theory.{name}": _of(getattr(theory, name), head=HEAD) for name in (
        "head_norm", "layer_conditioning", "layer_conditioning_sides", "linear_ntk_norm", "linear_ntk_norm_tensor",
        "ntk_block_norms", "theorem_5_2_posteriori", "theorem_5_2_posteriori_sides", "waste")},
    "theory.ntk_block": _of(theory.ntk_block, head=HEAD, layer=1),
    "theory.proposition_5_3": _of(theory.proposition_5_3, head=HEAD, layer=1, ntk=100.0),
    "theory.telescoping": _of(theory.telescoping, weights=HEAD.weights, count=2, form="simple"),
    "theory.telescoping_error": _of(theory.telescoping_error, head=HEAD, count=2, form="simple"),
    "theory.telescoping_sides": _of(theory.telescoping_sides, head=HEAD, count=2, form="simple"),
    "theory.schatten": _of(theory.schatten, weights=HEAD.weights),
    "theory.schatten_sides": _of(theory.schatten_sides, weights=HEAD.weights),
    "theory.optimal_scale": _of(theory.optimal_scale, weight_decay=0.01, num_linear=3, samples_per_class=2.0),
    "theory.excess": _of(theory.excess, head=HEAD, nonlinear_weights=[W], weight_decay=0.01, reference=0.1),
    "theory.theorem_5_2_a_priori": _of(theory.theorem_5_2_a_priori, head=HEAD, nonlinear_weights=[W], x=HEAD.features,
                                       weight_decay=0.01),
    "theory.evaluate": _of(theory.evaluate, head=HEAD, statements=[theory.theorem_3_1_nc1], forms=("sharp",)),
    "theory.along": _of(theory.along, forms=("sharp",), columns=None),
    "theory.attack": _of(theory.attack, sides=lambda a: (a.sum() ** 2, a.square().sum()),
                         start=lambda generator: [torch.ones(2, dtype=torch.float64)], restarts=1, steps=2, lr=0.1,
                         seed=0),
    "theory.attack_heads": _of(theory.attack_heads, sides=SIDES, shapes=((2, 2, 2),), noise=0.01, spread=(0.7, 1.6),
                               restarts=1, steps=2, seed=0, name="x"),
    # theory: checks
    "theory.Check": _of(theory.Check, statement="s", quantity="q", form="sharp",
                        hypotheses=(theory.Hypothesis("h", 1.0, 2.0, "<"),), measured=1.0, bound=2.0, sense="<=",
                        tolerance=1e-9, rounding=0.0),
    "theory.Hypothesis": _late(lambda **given: (theory.Hypothesis(**given).holds),
                               lambda: dict(name="h", value=1.0, threshold=2.0, sense="<")),
    "theory.tally": _of(theory.tally, checks=[CHECK]),
    "theory.to_frame": _of(theory.to_frame, checks=[CHECK]),
    "theory.bound_text": _of(theory.bound_text, value=1e-15, floor=1e-12),
    # theory: dynamics
    "theory.Objective": _of(theory.Objective, x=X, y=np.arange(6) % 3, num_nonlinear=1, weight_decay=0.01,
                            activation="smooth", gamma=0.5),
    **{f"theory.Objective.{name}": _method(lambda: OBJECTIVE, name, weights=WEIGHTS)
       for name in ("cost", "data_cost", "gradients", "data_gradients", "hessian", "arrays", "shapes")},
    "theory.general_position": _of(theory.general_position, samples=4, dimension=4, norm=3.0, noise=0.1, seed=0),
    "theory.initialise": _of(theory.initialise, objective=OBJECTIVE, widths=(8, 4, 3), scale=1.0, small=1e-3, seed=0),
    "theory.flow": _of(theory.flow, objective=OBJECTIVE, weights=WEIGHTS, times=[0.0, 0.01], rtol=1e-6, atol=1e-9),
    "theory.descend": _of(theory.descend, objective=OBJECTIVE, weights=WEIGHTS, step_size=0.001, steps=3, record=2),
    "theory.largest_step": _of(theory.largest_step, objective=OBJECTIVE, weights=WEIGHTS, trial_steps=3,
                               precision=0.5),
    "theory.smallest_scale": _of(theory.smallest_scale, objective=OBJECTIVE, widths=(8, 4, 3),
                                 forms=(("sharp", "flow"),), small=1e-3, seed=0, margin=1.5),
    "theory.assumption_4_1": _of(theory.assumption_4_1, widths=(8, 4, 3), num_samples=6),
    "theory.assumption_4_2": _of(theory.assumption_4_2, objective=OBJECTIVE),
    "theory.proposition_4_5": _of(theory.proposition_4_5, objective=OBJECTIVE, weights=WEIGHTS, alpha=0.1, radius=1.0,
                                  form="sharp", young=0.1),
    "theory.pyramid_pl": _of(theory.pyramid_pl, objective=OBJECTIVE, weights=WEIGHTS),
    "theory.balancedness_flow": _of(theory.balancedness_flow, trajectory=FLOW, tolerance=1e-3),
    "theory.balancedness_stationary": _of(theory.balancedness_stationary, objective=OBJECTIVE, weights=WEIGHTS),
    "theory.balancedness_step": _of(theory.balancedness_step, before=WEIGHTS, after=WEIGHTS, step_size=0.1,
                                    weight_decay=0.01, num_nonlinear=1, diagonal=False, activation="relu"),
    "theory.TwoPhase.at": _of(theory.TwoPhase.at, objective=OBJECTIVE, weights=WEIGHTS, target_error=0.5,
                              weight_decay=0.01),
    **{f"theory.TwoPhase.{name}": _method(lambda: PHASE, name, **arguments) for name, arguments in {
        "assumption_4_3": dict(form="sharp", dynamics="flow"), "hypotheses": dict(dynamics="descent", step_size=0.01),
        "slack": dict(time=1.0), "slack_after": dict(steps=3, step_size=0.01), "fitted_error": dict(slack=1.0),
        "path_bound": dict(dynamics="flow"), "t2": dict(epsilon2=0.1), "nc1_bound": dict(imbalance=0.1, form="sharp",
        slack=1.0), "non_vacuous": dict(bound=0.9, form="sharp", slack=0.01), "smoothness": dict(radius=1.0),
        "rate_per_step": dict(step_size=0.01), "k1": dict(step_size=0.01),
        "descent_imbalance": dict(steps=3, step_size=0.01)}.items()},
    # theory: statements of this book's own
    **{f"theory.{module.__name__.rpartition('.')[2]}.{name}": _of(getattr(module, name), head=HEAD, **given)
       for module, given, names in (
        (certificates, dict(form="joint"), ("head_certificate", "head_certificate_sides")),
        (certificates, {}, ("certificate_of_last_layer", "certificate_of_last_layer_sides")),
        (certificates, DECAYED, ("certificate_a_priori",)),
        (corollary_5_2, DECAYED, ("corollary_5_2",)),
        (every_layer, dict(layer=1), ("unseen_weight", "every_layer_nc1", "every_layer_nc2", "every_layer_nc3")),
        (every_layer, {}, ("every_layer",)),
        (exact, FORM, ("distance_to_collapse", "distance_to_collapse_sides")),
        (exact, {}, ("exact_case",)),
        (stationary, dict(weight_decay=0.01), ("stationary_identity", "stationary_trace", "stationary_nc2")),
        (tangent_kernel, dict(position=1, ntk=100.0), ("proposition_5_3_sides",)),
        (theorem_5_2, DECAYED, ("theorem_5_2_a_priori_sides",)),
        (theorem_5_2, {}, ("log_determinant",)),
       ) for name in names},
    "theory.collapse_bounds": _of(corollary_5_2.collapse_bounds, k=1.5, e=0.1, classes=3),
    "theory.corollary_5_2_limit": _of(corollary_5_2.corollary_5_2_limit, depths=(3, 9), weight_decay=lambda depth: 1e-4,
                                      rms=1.0, reference=0.5, classes=3, samples=30, nonlinear=2),
    "theory.trivial_price": _of(trivial.trivial_price, weight_decay=1e-3, num_linear=4, num_nonlinear=2, input_norm=3.0,
                                samples=30, classes=3),
    "theory.trivial_transition": _of(trivial.trivial_transition, weight_decay=1e-3, num_nonlinear=2, reference=0.5,
                                     input_norm=3.0, samples=30, classes=3, deepest=100),
    "theory.inheritance": _of(inheritance.inheritance, weights=HEAD.weights[-2:], features=HEAD.layers[-3], y=HEAD.y,
                              form="sharp", bias=None, rank=2),
    "theory.noise_floor": _of(momentum_balance.noise_floor, mean_drive=W[:, :3], lr=0.1, weight_decay=0.01,
                              momentum=0.9),
    "theory.momentum_balance": _of(momentum_balance.momentum_balance, before=STATES[0], after=STATES[1], lr=0.1,
                                   weight_decay=0.01, momentum=0.9, nesterov=False),
    "theory.hidden_start": _of(dichotomy.hidden_start, objective=OBJECTIVE, widths=(8, 6, 4, 3), scale=1.0, size=0.1,
                               seed=0),
    "theory.dichotomy_floor": _of(dichotomy.dichotomy_floor, objective=OBJECTIVE, weights=WEIGHTS, phase=None),
    "theory.dichotomy": _of(dichotomy.dichotomy, trajectory=FLOW, phase=None),
    "theory.slide": _of(slide.slide, objective=OBJECTIVE, weights=WEIGHTS, times=[0.0, 0.05], first=0.01, growth=0.08,
                        largest=0.02),
    "theory.whitened_start": _of(slide.whitened_start, objective=OBJECTIVE, widths=(8, 4, 3), scale=1.0, head=2.0,
                                 size=0.3, seed=0),
    "theory.certify_start": _of(any_width.certify_start, network=WEIGHTS, x=X, y=np.arange(6) % 3, num_nonlinear=1,
                                weight_decay=0.01, run=0),
    "theory.doubled_start": _of(any_width.doubled_start, objective=OBJECTIVE, widths=(8, 6, 3), scale=1.0, seed=0),
    "theory.output_curvature": _of(any_width.output_curvature, objective=OBJECTIVE, weights=WEIGHTS, radius=0.1),
    "theory.pl_constant": _of(theorem_4_4.pl_constant, objective=OBJECTIVE, weights=WEIGHTS),
    "theory.assumption_4_2_descent": _of(theorem_4_4.assumption_4_2_descent, objective=OBJECTIVE),
    **{f"theory.{name}": _of(getattr(theory, name), phase=PHASE, trajectory=FLOW) for name in (
        "theorem_4_4", "theorem_4_4_balancing", "theorem_4_4_error", "theorem_4_4_fitting", "theorem_4_4_nc1",
        "theorem_4_4_norm", "theorem_4_4_path")},
}  # fmt: skip


# --- what is put in the place of a right argument


class Stranger:
    def __repr__(self):
        return "<a stranger>"


ONES = torch.ones(4, 3, dtype=torch.float64)
# ruff: noqa: E501
POOL = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 10**20, 0.0, -0.5, 0.5, 2.5, 1e-300, 1e308, -1.0),
    *(math.nan, math.inf, -math.inf, "", "nonsense", "\0", b"x", [], (), {}, (0,), [1, 2], [math.nan], ["a", "b"]),
    *({"a": 1}, Stranger(), Stranger, range(3), 1j, Path("/nonexistent/place"), lambda *a: None, slice(None)),
    *(torch.zeros(0), torch.zeros(0, 5), torch.zeros(12, 0), torch.tensor(1.0), torch.ones(3), torch.zeros(12, 5)),
    *(ONES, ONES.float(), ONES.half(), ONES * math.nan, ONES * math.inf, ONES * 1e200, ONES * 1e-200, ONES.to(torch.cfloat)),
    *(ONES.expand(2, 4, 3), ONES.long(), ONES.bool(), Y, Y.int(), Y.float(), Y - 1, Y * 2, Y * 0, Y[:5], Y + 10**15),
    *(Z.float(), Z[:, :3], Z * math.nan, Z * 1e200, Z.numpy(), Y.numpy(), np.ones((2, 2, 2)), np.array(["a"]), np.float64(2)),
    *([], [W], [W, W], [None], [W[:, :3], W], list(HEAD.weights)[:1], [w * math.nan for w in HEAD.weights], [ONES, "x"]),
    *([w * 1e200 for w in HEAD.weights], [w * 0 for w in HEAD.weights], [w * 1e-200 for w in WEIGHTS], WEIGHTS[:2]),
    *(pd.DataFrame(), pd.DataFrame({"step": [1]}), nn.Linear(5, 3), nn.Identity(), torch.float16, torch.int64, "cuda:99"),
    *(HEAD, OBJECTIVE, PHASE, FLOW, CHECK, BLOBS, CONFIG, SPEC),
    theory.LinearHead([w * 0 for w in HEAD.weights], HEAD.features, HEAD.y),
    theory.LinearHead([w * 1e40 for w in HEAD.weights], HEAD.features, HEAD.y),
    theory.LinearHead([w * 1e-100 for w in HEAD.weights], HEAD.features * 1e-100, HEAD.y),
    theory.LinearHead(HEAD.weights, HEAD.features * 0, HEAD.y),
)  # fmt: skip

VALUES = st.one_of(
    st.sampled_from(POOL),
    st.sampled_from(POOL),
    st.integers(-5, 30),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-2, 8), max_size=4),
)


class Hang(BaseException):
    """A call that does not end."""


def _alarm(number, frame):
    raise Hang


@functools.cache
def _raises(file: str) -> list[tuple[int, int]]:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    return [(node.lineno, node.end_lineno) for node in ast.walk(tree) if isinstance(node, ast.Raise)]


def refused_by_us(error: BaseException) -> bool:
    """Whether a ``raise`` of this package raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(last.filename).is_relative_to(PACKAGE)
    return ours and any(start <= last.lineno <= end for start, end in _raises(last.filename))


def outcome(function, arguments: dict, seconds: float = SECONDS) -> tuple[str, str]:
    """``"value"``, ``"refused"``, ``"deep"`` or ``"hang"``, and the last lines of what was said."""
    before = signal.signal(signal.SIGALRM, _alarm)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            function(**arguments)
        return "value", ""
    except Hang:
        return "hang", f"more than {seconds} s"
    except MemoryError as error:
        return "deep", repr(error)
    except Exception as error:
        if isinstance(error, (ValueError, TypeError, *DOCUMENTED)) and refused_by_us(error):
            return "refused", str(error)
        last = traceback.extract_tb(error.__traceback__)[-1]
        return "deep", f"{error!r:.200} at {last.filename}:{last.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        import matplotlib.pyplot as plt

        plt.close("all")


@st.composite
def changes(draw, name: str):
    """One or two arguments of a target, with something else in their place."""
    names = sorted(TARGETS[name][1]())
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True))
    return {argument: draw(VALUES) for argument in chosen}


@pytest.fixture(autouse=True, scope="module")
def no_cache(tmp_path_factory):
    import matplotlib

    matplotlib.use("Agg")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCUTILS_CACHE", "off")
        patch.setenv("TQDM_DISABLE", "1")
        patch.chdir(tmp_path_factory.mktemp("here"))  # a text is a file's name to some: a checkpoint is written there
        yield


@pytest.mark.parametrize("name", TARGETS)
def test_the_right_arguments_are_accepted(name):
    function, make = TARGETS[name]
    assert outcome(function, make(), 60)[0] == "value", outcome(function, make(), 60)


@pytest.mark.parametrize("name", TARGETS)
@settings(max_examples=8, derandomize=True, deadline=None, database=None,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(drawn=st.data())
def test_other_arguments_give_a_value_or_a_refusal_of_ours(name, drawn):
    function, make = TARGETS[name]
    kind, said = outcome(function, make() | drawn.draw(changes(name)))
    assert kind in ("value", "refused"), f"{kind}: {said}"


def test_what_is_counted_as_deep_and_as_a_hang():
    def loop():
        for _ in itertools.count():
            pass

    assert outcome(lambda: torch.ones(2) @ torch.ones(3), {})[0] == "deep"
    assert outcome(lambda: metrics.nc1("x", Y) + 1, {})[0] in ("refused", "deep")
    assert outcome(lambda: None + 1, {})[0] == "deep"
    assert outcome(lambda: data.gaussian(0), {})[0] == "refused"
    assert outcome(loop, {}, 0.2)[0] == "hang"


# --- the command line


WORDS = st.one_of(
    st.sampled_from(
        ["list", "cost", "run", "resume", "paper", "data", "certify", "measure", "1", "2-mlp", "quick", "--profile",
         "--jobs", "0", "-3", "--device", "cuda", "--backend", "loky", "--results", "--no-archive", "--help", "mnist9"]
    ),
    st.text(max_size=5),
)  # fmt: skip


def cli_outcome(words: list[str], seconds: float = 20.0) -> tuple[str, str]:
    """As :func:`outcome`: an exit status of argparse or of ``main``, never a traceback."""

    def call():
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                status = command_line.main(words)
            except SystemExit as error:
                status = error.code
        assert status in (0, 1, 2, 130), status

    return outcome(call, {}, seconds)


@settings(max_examples=60, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(words=st.lists(WORDS, max_size=5))
def test_the_command_line_ends_with_a_status(words):
    if words[:1] in (["run"], ["resume"], ["paper"], ["data"], ["cost"]) and "--help" not in words:
        words = [*words, "--nonsense"]  # these work for minutes, or download, when the words are right
    kind, said = cli_outcome(words)
    assert kind == "value", f"{words}: {kind}: {said}"
