"""ncutils.training: the hand-written step against autograd and torch.optim.SGD, runs that do not see each other,
divergence, checkpoints, measurements."""

import functools
import itertools
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ncutils import metrics, training
from ncutils.data import Classification, gaussian
from ncutils.networks import MLP, ResNet20
from ncutils.training import Divergence, TrainingConfig, train


def small_data(dtype=torch.float64, per_class=8):
    return gaussian(per_class, num_classes=3, dim=5, separation=1.0, dtype=dtype)


def small_images(dtype=torch.float64, samples=12):
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(samples, 2, 8, 8, generator=generator, dtype=torch.float64).to(dtype)
    return Classification(x, torch.arange(samples) % 3, 3, "noise")


def mlp(**changes):
    arguments = {"num_nonlinear": 2, "num_linear": 3, "width": 6, "seeds": (3, 1, 4), "dtype": torch.float64}
    return MLP(5, 3, **(arguments | changes))


def resnet(**changes):
    arguments = {"num_nonlinear": 1, "num_linear": 2, "width": 8, "seeds": (3, 1), "dtype": torch.float64}
    return ResNet20(2, 3, **(arguments | changes))


CONFIG = TrainingConfig(
    steps=31, lr=0.03, weight_decay=0.01, batch_size=7, warmup_steps=6, drop_at=0.7, drop_factor=0.2, measurements=6
)


def quietly(network, data, config=CONFIG, **options):
    return train(network, data, config, progress=False, **options)


def same(a, b, exactly=True, tolerance=1e-11):
    """Two networks hold the same weights."""
    for p, q in zip([*a.parameters(), *a.buffers()], [*b.parameters(), *b.buffers()], strict=True):
        if exactly:
            assert torch.equal(p, q)
        else:
            torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance, equal_nan=True)


def same_rows(a, b, tolerance=1e-8):
    """Whatever their order: layers of all runs, or all layers run by run."""
    a, b = (sorted(rows, key=lambda row: (row["run"], row["step"], row["layer"])) for rows in (a, b))
    assert len(a) == len(b)
    for row, other in zip(a, b, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert row[name] == other[name] or row[name] == pytest.approx(other[name], rel=tolerance, abs=1e-12)


# --- the step, against PyTorch's own


def reference(module: nn.Sequential, data, config: TrainingConfig, seed: int) -> nn.Sequential:
    """What a user would write: autograd, torch.optim.SGD, a schedule by hand."""
    lr, decay = config.lr, config.weight_decay
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=config.momentum, weight_decay=decay)
    targets = torch.eye(data.num_classes, dtype=data.x.dtype)[data.y]
    size = config.batch_size or len(data)
    batches = []
    for epoch in itertools.count():
        if len(batches) >= config.steps:
            break
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed * 2**24 + epoch + 1))
        order = order if config.batch_size else torch.arange(len(data))
        batches += [order[i * size : (i + 1) * size] for i in range(len(data) // size)]
    for step, batch in enumerate(batches[: config.steps]):
        warm = (step + 1) / config.warmup_steps if step < config.warmup_steps else 1
        late = config.drop_factor if step >= config.drop_at * config.steps else 1
        optimizer.param_groups[0]["lr"] = lr * warm * late
        optimizer.zero_grad()
        ((module(data.x[batch]) - targets[batch]) ** 2).sum().div(2 * size).backward()
        optimizer.step()
    return module


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize(
    ("shape", "changes", "activation"),
    [
        ((2, 3), {}, "relu"),
        ((2, 3), {}, "smooth"),
        ((2, 3), {"momentum": 0.0}, "relu"),
        ((2, 3), {"weight_decay": 0.0}, "relu"),
        ((2, 3), {"batch_size": None}, "relu"),
        ((2, 3), {"batch_size": None, "momentum": 0.0}, "smooth"),
        ((2, 3), {"warmup_steps": 0, "drop_at": 1.0}, "relu"),
        ((2, 3), {"batch_size": 1, "lr": 0.002}, "relu"),
        ((3, 1), {}, "relu"),
        ((1, 2), {}, "relu"),
        ((0, 4), {}, "relu"),
        ((0, 1), {}, "relu"),
        ((4, 6), {}, "smooth"),
    ],
)
def test_equals_autograd_and_sgd(shape, changes, activation, engine):
    config = replace(CONFIG, **changes)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        data = small_data(dtype)
        network = mlp(num_nonlinear=shape[0], num_linear=shape[1], activation=activation, gamma=0.3, dtype=dtype)
        modules = [reference(network.sequential(run), data, config, network.seeds[run]) for run in range(3)]
        start = [w.detach().clone() for w in network.weights]
        result = quietly(network, data, config, engine=engine, measure=None)
        assert result.network is network and result.rows == [] and result.diverged == []
        assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(start, network.weights, strict=True))
        for run, module in enumerate(modules):
            for ours, theirs in zip(network.weights, module.parameters(), strict=True):
                torch.testing.assert_close(ours[run], theirs, rtol=tolerance, atol=tolerance)


def test_uneven_widths():
    network = mlp(widths=(9, 4, 7, 2))
    module = reference(network.sequential(1), small_data(), CONFIG, 1)
    quietly(network, small_data(), measure=None)
    for ours, theirs in zip(network.weights, module.parameters(), strict=True):
        torch.testing.assert_close(ours[1], theirs, rtol=1e-12, atol=1e-12)


def test_float32_gradients_of_a_deep_head_are_as_exact_as_autograd():
    # The head's gradients come from products of weights; they must not lose digits by it.
    config = TrainingConfig(
        steps=1, lr=1.0, weight_decay=0.0, momentum=0.0, batch_size=None, warmup_steps=0, drop_at=1.0
    )
    data = gaussian(40, num_classes=10, dim=30)
    network = MLP(30, 10, num_nonlinear=3, num_linear=6, width=64)

    def gradients(module):
        x, y = (
            (data.x.double(), data.one_hot().double())
            if next(module.parameters()).dtype == torch.float64
            else (
                data.x,
                data.one_hot(),
            )
        )
        loss = (module(x) - y).square().sum() / (2 * len(data))
        return torch.autograd.grad(loss, list(module.parameters()))

    exact, single = gradients(network.sequential().double()), gradients(network.sequential())
    before = [w.detach().double().clone() for w in network.weights]
    trainer = training._DenseTrainer(network, data, config, [1.0], [0.0])
    trainer.step(0)
    for layer in range(9):
        scale = exact[layer].norm()
        error = (trainer.velocities[layer].double() - exact[layer]).norm() / scale
        assert error < 5 * (single[layer].double() - exact[layer]).norm() / scale + 1e-7
        assert error < 1e-5
        step = before[layer][0] - network.weights[layer][0].double()
        assert (step - exact[layer]).norm() / scale < 1e-4


@pytest.mark.parametrize("changes", [{}, {"batch_size": None}, {"momentum": 0.0, "weight_decay": 0.0}])
def test_resnet_equals_autograd_and_sgd(changes):
    config = (
        replace(CONFIG, steps=7, warmup_steps=2, batch_size=5) if changes == {} else replace(CONFIG, steps=4, **changes)
    )
    network, data = resnet(), small_images()
    modules = [reference(network.sequential(run).train(), data, config, network.seeds[run]) for run in range(2)]
    quietly(network, data, config, measure=None)
    for run, module in enumerate(modules):
        same(nn.Sequential(*network.sequential(run)), module, exactly=False, tolerance=1e-9)


def test_no_gradients_are_left_behind():
    # They would add to those of the caller's own next backward pass.
    for network, data in ((resnet(seeds=(3,)), small_images()), (mlp(), small_data())):
        quietly(network, data, replace(CONFIG, steps=2), measure=None)
        assert all(p.grad is None for p in network.parameters())


# --- runs side by side

PER_RUN = replace(CONFIG, lr=(0.05, 0.02, 0.1), weight_decay=(0.01, 0.0, 0.002))


@pytest.mark.parametrize("activation", ["relu", "smooth"])
@pytest.mark.parametrize("batch_size", [7, None])
def test_stacked_equals_sequential(activation, batch_size):
    config = replace(PER_RUN, batch_size=batch_size)
    one, other = mlp(activation=activation), mlp(activation=activation)
    a = quietly(one, small_data(), config, engine="sequential")
    b = quietly(other, small_data(), config, engine="stacked")
    same(one, other, exactly=False)
    same_rows(a.rows, b.rows)


def test_a_run_does_not_see_its_neighbours():
    together = mlp(dtype=torch.float32)
    data = small_data(torch.float32)
    result = quietly(together, data, PER_RUN)
    for run in range(3):
        alone = mlp(seeds=together.seeds[run : run + 1], dtype=torch.float32)
        config = replace(PER_RUN, lr=PER_RUN.lr[run], weight_decay=PER_RUN.weight_decay[run])
        rows = quietly(alone, data, config).rows
        assert all(torch.equal(a[run], b[0]) for a, b in zip(together.weights, alone.weights, strict=True))
        assert [{**row, "run": run} for row in rows] == [row for row in result.rows if row["run"] == run]


def test_rows_carry_their_run():
    result = quietly(mlp(), small_data(), PER_RUN)
    stops = training.measurement_steps(PER_RUN)
    assert [(r["run"], r["step"], r["layer"]) for r in result.rows] == [
        (run, stop, layer) for run in range(3) for stop in stops for layer in range(1, 6)
    ]
    for row in result.rows:
        assert (row["seed"], row["lr"], row["weight_decay"]) == (
            (3, 1, 4)[row["run"]],
            PER_RUN.lr[row["run"]],
            PER_RUN.weight_decay[row["run"]],
        )
    frame = result.frame
    assert len(frame) == len(result.rows) and {"nc1", "seed", "step"} <= set(frame.columns)
    assert result.seconds > 0


# --- divergence


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_a_diverging_run_stops_alone(engine, capsys):
    config = replace(CONFIG, steps=120, lr=(0.05, 1e3, 0.02), weight_decay=0.01)
    network, calm = mlp(), mlp()
    result = quietly(network, small_data(), config, engine=engine)
    expected = quietly(calm, small_data(), replace(config, lr=(0.05, 0.05, 0.02)), engine=engine)
    (failure,) = result.diverged
    assert isinstance(failure, Divergence) and failure.run == 1 and not failure.loss < 1e6
    assert 0 < failure.step <= 120
    assert f"run 1 (seed 1) diverged at step {failure.step}" in capsys.readouterr().out
    for ours, theirs in zip(network.weights, calm.weights, strict=True):
        assert torch.isnan(ours[1]).all()
        torch.testing.assert_close(ours[[0, 2]], theirs[[0, 2]], rtol=1e-12, atol=1e-12)
    others = lambda r: [row for row in r.rows if row["run"] != 1]  # noqa: E731
    same_rows(others(result), others(expected))
    mine = [row["step"] for row in result.rows if row["run"] == 1]
    assert mine and max(mine) < failure.step


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_exploded_weights_behind_dead_units_have_diverged(engine):
    # Nothing passes the first layer, so the loss says nothing of its weights; nobody measures either.
    data, network = small_data(), mlp()
    data = replace(data, x=data.x.abs())
    network.weights[0].data[2] = -1e7
    result = quietly(network, data, replace(CONFIG, steps=3), engine=engine, measure=None)
    assert [(d.run, d.step, d.loss) for d in result.diverged] == [(2, 3, float("inf"))]
    assert all(torch.isnan(w[2]).all() and torch.isfinite(w[:2]).all() for w in network.weights)


def test_divergence_is_seen_before_the_measurement_of_that_step():
    # One step is enough to leave the finite numbers, and step 1 is measured.
    result = quietly(mlp(seeds=(0,)), small_data(), replace(CONFIG, lr=1e200, warmup_steps=0))
    assert [d.step for d in result.diverged] == [1] and {row["step"] for row in result.rows} == {0}


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_features_that_explode_outside_the_batch(engine):
    # float32 overflows on one sample of one run; weights and losses on batches look harmless. Step 0 is measured.
    data, network = small_data(torch.float32), mlp(dtype=torch.float32)
    data.x[5] = 1e36
    network.weights[0].data[1] *= 1e3
    before = [w.detach().clone() for w in network.weights]
    result = quietly(network, data, TrainingConfig(steps=0, batch_size=2), engine=engine)
    assert [(d.run, d.step) for d in result.diverged] == [(1, 0)]
    assert [row["run"] for row in result.rows] == ([0] * 5 + [2] * 5 if engine == "sequential" else [0, 2] * 5)
    assert torch.isnan(network.weights[0][1]).all()
    assert all(torch.equal(w[[0, 2]], b[[0, 2]]) for w, b in zip(network.weights, before, strict=True))


def test_a_refusal_that_is_no_divergence_is_passed_on():
    def measure(network, data, step):
        raise ValueError("no such thing")

    with pytest.raises(ValueError, match="no such thing"):
        quietly(mlp(), small_data(), measure=measure)


def test_resnet_divergence():
    network = resnet()
    result = quietly(network, small_images(), replace(CONFIG, steps=4, batch_size=6, lr=(0.01, 1e200), warmup_steps=0))
    assert [d.run for d in result.diverged] == [1]
    assert torch.isnan(network.weights[0][1]).all() and torch.isfinite(network.weights[0][0]).all()
    assert {row["step"] for row in result.rows if row["run"] == 1} == {0}
    assert {row["step"] for row in result.rows if row["run"] == 0} == set(
        training.measurement_steps(replace(CONFIG, steps=4))
    )


# --- checkpoints


class Interrupted(Exception):
    pass


def interrupting(measure, calls):
    """``measure`` until it has been called this often; it keeps the name, which is part of a checkpoint's identity."""

    @functools.wraps(measure)
    def wrapped(*arguments):
        nonlocal calls
        calls -= 1
        if calls < 0:
            raise Interrupted
        return measure(*arguments)

    return wrapped


def uninterrupted(measure):
    return interrupting(measure, 10**6)


def norms(network, data, step):
    """A measure of one's own, without a column "step"."""
    return [{"run": run, "norm": float(network.weights[0][run].detach().norm())} for run in range(network.num_runs)]


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
@pytest.mark.parametrize(("calls", "measure"), [(2, norms), (5, training.measure_layers), (6, norms)])
def test_resuming_equals_never_stopping(engine, calls, measure, tmp_path):
    data, config, path = (
        small_data(),
        replace(PER_RUN, steps=130, lr=(0.05, 1e3, 0.1)),
        tmp_path / "deep" / "checkpoint",
    )
    whole = mlp()
    expected = quietly(whole, data, config, engine=engine, measure=measure)
    assert [d.run for d in expected.diverged] == [1]
    attempts = 0
    while True:
        attempts += 1
        network = mlp()
        try:
            counted = interrupting(measure, calls)
            result = quietly(network, data, config, engine=engine, measure=counted, checkpoint=path)
            break
        except Interrupted:
            assert attempts < 20
    assert attempts > 1
    for ours, theirs in zip(network.weights, whole.weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)
    assert repr(result.rows) == repr(expected.rows)  # bit for bit; a dead network's NaN included
    assert result.diverged == expected.diverged
    again = quietly(network := mlp(), data, config, engine=engine, measure=interrupting(measure, 0), checkpoint=path)
    assert repr(again.rows) == repr(expected.rows) and torch.equal(network.weights[0][0], whole.weights[0][0])
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint"]


def test_resnet_resumes(tmp_path):
    data, config = small_images(torch.float32), replace(CONFIG, steps=6, batch_size=5, warmup_steps=2, measurements=3)
    whole = resnet(dtype=torch.float32)
    expected = quietly(whole, data, config)
    with pytest.raises(Interrupted):
        measure = interrupting(training.measure_layers, 4)
        quietly(resnet(dtype=torch.float32), data, config, measure=measure, checkpoint=tmp_path / "c")
    network = resnet(dtype=torch.float32)
    measure = uninterrupted(training.measure_layers)
    result = quietly(network, data, config, measure=measure, checkpoint=tmp_path / "c")
    same(network, whole)
    assert repr(result.rows) == repr(expected.rows)


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_a_long_way_between_two_measurements_is_not_walked_twice(engine, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_EVERY", 0.0)
    data, config, path = small_data(), replace(CONFIG, steps=400, measurements=1, drop_at=1.0), tmp_path / "checkpoint"
    whole = mlp()
    expected = quietly(whole, data, config, engine=engine)
    kind, taken = training._DenseTrainer, []
    step = kind.step

    def fails(self, number):
        taken.append(number)
        if len(taken) == 230:
            raise Interrupted
        step(self, number)

    monkeypatch.setattr(kind, "step", fails)
    with pytest.raises(Interrupted):
        quietly(mlp(), data, config, engine=engine, checkpoint=path)
    network = mlp()
    result = quietly(network, data, config, engine=engine, checkpoint=path)
    assert taken[229] == 229 and taken[230] == 200  # the last of the marks at every fiftieth step
    monkeypatch.setattr(training, "SAVE_EVERY", 1e9)
    taken.clear()
    with pytest.raises(Interrupted):
        quietly(mlp(), data, config, engine=engine, checkpoint=path.with_name("another"))
    again = quietly(mlp(), data, config, engine=engine, checkpoint=path.with_name("another"))
    assert taken[230] == 0 and repr(again.rows) == repr(expected.rows)
    for ours, theirs in zip(network.weights, whole.weights, strict=True):
        assert torch.equal(ours, theirs)
    assert repr(result.rows) == repr(expected.rows)


def test_a_checkpoint_knows_what_a_measure_was_compiled_to(tmp_path):
    def made(what):
        scope = {}
        exec(f"def measure(network, data, step):\n    return [{{'run': 0, 'x': {what}}}]", scope)
        return scope["measure"]

    one, path = mlp(seeds=(0,)), tmp_path / "checkpoint"
    quietly(one, small_data(), measure=made("1 if step in {'a', 'b'} else 2"), checkpoint=path)
    quietly(mlp(seeds=(0,)), small_data(), measure=made("1 if step in {'b', 'a'} else 2"), checkpoint=path)
    others = [made(what) for what in ("1 if step in {'a', 'c'} else 2", "step", "(lambda: 3)()")]
    pairs = [(made("1 if step in {'a', 'b'} else 2"), other) for other in others]
    pairs += [(made("network.depth * 0"), made("network.width * 0")), (made("(lambda: 3)()"), made("(lambda: 4)()"))]
    pairs += [(functools.partial(scaled, by=2), functools.partial(scaled, by=3))]
    pairs += [(Scaled.two, Scaled.three), (wrapped(made("1"), 1), wrapped(made("1"), 2))]
    pairs += [(wrapped(made("1"), 1), wrapped(made("2"), 1))]
    for one, other in pairs:
        assert training._says(one) == training._says(one) != training._says(other)


def scaled(network, data, step, by):
    """A measure."""
    return [{"run": 0, "by": by}]


class Scaled:
    def two(self, network, data, step):
        return [{"run": 0, "by": 2}]

    def three(self, network, data, step):
        return [{"run": 0, "by": 3}]

    def __call__(self, network, data, step):
        return [{"run": 0}]


def wrapped(function, which):
    @functools.wraps(function)
    def one(*arguments):
        return [*function(*arguments), {"run": 0}]

    @functools.wraps(function)
    def two(*arguments):
        return function(*arguments)

    return {1: one, 2: two}[which]


def test_a_docstring_a_flag_or_an_edit_of_the_library_makes_no_other_measure():
    scope: dict = {}
    for doc in ("", '"""One."""; ', '"""Another."""; '):
        exec(f"def measure(network, data, step): {doc}return [step, 'x']", scope)
        scope.setdefault("seen", set()).add(training._says(scope["measure"]))
    assert len(scope["seen"]) == 1
    assert training._says(training.measure_layers) == "measure_layers" and training._says(None) == "NoneType"
    job = specification_of_one().measure
    assert training._says(functools.partial(job, seen={})) == "partial"  # the job's key knows its code
    assert len(training._says(Scaled()).split()) == 2


def specification_of_one():
    from ncutils.experiments import specification

    return specification("1").jobs()[0]


@pytest.mark.parametrize("what", ["config", "data", "labels", "weights", "engine", "measure", "dtype", "shape"])
def test_a_checkpoint_of_something_else_is_refused(what, tmp_path):
    path = tmp_path / "checkpoint"
    quietly(mlp(), small_data(), checkpoint=path)
    network, data, config, options = mlp(), small_data(), CONFIG, {}
    if what == "config":
        config = replace(config, lr=0.06)
    elif what == "data":
        data = replace(data, x=data.x.roll(1, 0))
        data.x[0, 0] += 1
    elif what == "labels":
        data = replace(data, y=data.y.roll(1))
    elif what == "weights":
        network.weights[2].data.mul_(1.5)
    elif what == "engine":
        options = {"engine": "stacked"}
    elif what == "measure":
        options = {"measure": norms}
    elif what == "dtype":
        network, data = mlp(dtype=torch.float32), small_data(torch.float32)
    else:
        network = mlp(num_nonlinear=3, num_linear=2)
    with pytest.raises(ValueError, match="checkpoint"):
        quietly(network, data, config, checkpoint=path, **options)
    quietly(mlp(), small_data(), checkpoint=path)  # and it is still there for the right one


def test_a_checkpoint_of_the_same_samples_in_another_order_is_refused(tmp_path):
    """They make other batches, though no sum over the samples tells."""
    data = small_data()
    data = replace(data, x=data.x.round())  # sums of integers are exact
    first, second = torch.nonzero(data.y == 1).flatten()[:2].tolist()
    order = torch.arange(len(data))
    order[first], order[second] = second, first
    quietly(mlp(), data, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="belongs to another training"):
        quietly(mlp(), replace(data, x=data.x[order]), checkpoint=tmp_path / "c")


# --- measurements


@pytest.mark.parametrize("block", [1, 2**27])
def test_measure_layers_equals_direct_calls(block, monkeypatch):
    monkeypatch.setattr(training, "_BLOCK", block)  # one run at a time, or all
    data, network = small_data(torch.float32), mlp(dtype=torch.float32)
    layers = network.layers(data.x)
    rows = training.measure_layers(network, data, 17)
    assert [(r["run"], r["layer"]) for r in rows] == [(run, layer) for layer in range(1, 6) for run in range(3)]
    for row in rows:
        run, index = row["run"], row["layer"] - 1
        pre, post = layers.pre[index][run], layers.post[index][run]
        weights = [w[run] for w in network.weights]
        expected = {
            "run": run,
            "step": 17,
            "layer": index + 1,
            "part": "nonlinear" if index < 2 else "linear",
            "nc1": metrics.nc1(post, data.y),
            "nc2": metrics.nc2(post, data.y),
            "condition": metrics.condition_number(weights[index]),
        }
        if index < 2:
            expected["negativity"] = metrics.negativity(pre)
        if index < 4:
            expected["balancedness"] = metrics.balancedness(weights[index], weights[index + 1])
            expected["balancedness_relative"] = metrics.balancedness(weights[index], weights[index + 1], "relative")
        if index == 3:
            expected["nc3"] = metrics.nc3(post, data.y, weights[-1])
            expected["nc4"] = metrics.nc4(post, data.y, weights[-1])
        output = layers.post[-1][run].double()
        expected["loss"] = (output - data.one_hot()).square().sum() / (2 * len(data))
        expected["error"] = (output - data.one_hot()).norm()
        expected["accuracy"] = (output.argmax(1) == data.y).double().mean()
        assert row.keys() == expected.keys()
        for name, value in expected.items():
            value = value.item() if isinstance(value, torch.Tensor) else value
            assert row[name] == value or row[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("training_mode", [True, False])
def test_resnet_is_measured_in_evaluation_mode(training_mode):
    data, network = small_images(), resnet().train(training_mode)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    rows = training.measure_layers(network, data, 0)
    assert network.training == training_mode and all(b.training == training_mode for b in network.backbones)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    network.eval()
    layers = network.layers(data.x)
    for row in rows:
        assert row["nc1"] == pytest.approx(metrics.nc1(layers.post[row["layer"] - 1][row["run"]], data.y).item())
    assert [r["layer"] for r in rows] == [1, 1, 2, 2, 3, 3]


def test_one_layer_has_no_pairs():
    (row,) = training.measure_layers(mlp(num_nonlinear=0, num_linear=1, seeds=(0,)), small_data(), 0)
    assert not {"nc3", "nc4", "balancedness"} & row.keys() and row["part"] == "linear"


def test_measuring_refuses_labels_with_gaps():
    data = small_data()
    with pytest.raises(ValueError, match="labels must be 0"):
        training.measure_layers(mlp(), replace(data, y=data.y.clamp(min=1)), 0)


@pytest.mark.parametrize(("steps", "count"), [*itertools.product([0, 1, 2, 7, 1000], [0, 1, 2, 3, 20])])
def test_measurement_steps(steps, count):
    stops = training.measurement_steps(TrainingConfig(steps, measurements=count))
    assert stops == sorted(set(stops)) and stops[-1] == steps and len(stops) <= count + 2
    if count and steps:
        assert stops[0] == 0 and -(-8 * steps // 10) in stops
    if (steps, count) == (1000, 20):
        assert len(stops) >= 18 and max(b / a for a, b in itertools.pairwise(stops[1:])) < 2.1


def test_learning_rate_factor():
    config = TrainingConfig(steps=100, warmup_steps=10, drop_at=0.8, drop_factor=0.1)
    factors = [training.learning_rate_factor(config, step) for step in range(100)]
    assert factors[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert factors[10:80] == [1.0] * 70 and factors[80:] == pytest.approx([0.1] * 20)
    assert training.learning_rate_factor(replace(config, warmup_steps=0), 0) == 1.0


def test_measure_nothing_and_train_nothing():
    network, before = mlp(), mlp()
    result = quietly(network, small_data(), TrainingConfig(steps=0, batch_size=5, measurements=3))
    same(network, before)
    assert {row["step"] for row in result.rows} == {0} and len(result.rows) == 15


# --- what runs on a GPU, as far as a CPU can tell


@pytest.fixture
def pretend_cuda(monkeypatch):
    """Streams that do nothing, a recording that replays by calling the step; the bookkeeping around them is real."""
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda s: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    record = training._record

    def recording(step, changed):
        graph = record(step, changed)
        graph.replay = step
        return graph

    monkeypatch.setattr(training, "_record", recording)


@pytest.mark.parametrize("batch_size", [7, None])
@pytest.mark.parametrize("make", [mlp, resnet])
def test_a_recorded_step_does_the_same(make, batch_size, pretend_cuda):
    def trainer():
        network = make() if make is mlp else make(seeds=(3,))
        config = replace(CONFIG, batch_size=batch_size)
        rates = [[value] * network.num_runs for value in (0.05, 0.01)]
        return training._trainer(network, small_data() if make is mlp else small_images(), config, *rates)

    def held(t):  # whatever a recording must not disturb, found without the trainer's help
        tensors = [*t.network.parameters(), *t.network.buffers(), *t.velocity.view(1, -1)]
        return tensors + [p.grad for p in t.network.parameters() if p.grad is not None]

    plain, recorded = trainer(), trainer()
    recorded.recorded = True
    places = [t.data_ptr() for t in held(recorded)]
    for step in range(4):
        plain.step(step)
        recorded.step(step)
        assert all(torch.equal(a, b) for a, b in zip(held(plain), held(recorded), strict=True))
    assert recorded.graph is not None and plain.graph is None
    # A recorded program goes on reading and writing the same addresses.
    assert places == [t.data_ptr() for t in held(recorded)]
    state = recorded.state()
    recorded.step(4)
    assert not all(torch.equal(value, recorded.state()[name]) for name, value in state.items())
    recorded.load_state(state)
    assert all(torch.equal(value, recorded.state()[name]) for name, value in state.items())


def test_shuffling_ahead_gives_the_same_batches():
    plain = training._Batches((3, 1), 23, 5, "cpu")
    ahead = training._Batches((3, 1), 23, 5, "cpu")
    ahead.ahead = training.ThreadPoolExecutor(1)
    for step in [*range(14), 3, 4, 20]:
        assert torch.equal(plain(step), ahead(step)) and plain(step).shape == (2, 5)
    seen = torch.cat([plain(step) for step in range(4)], 1)
    assert all(len(set(row.tolist())) == 20 for row in seen)  # without replacement
    single = training._Batches((1,), 23, 5, "cpu")
    assert torch.equal(single(6), plain(6)[1])


def test_bfloat16_is_for_convolutions():
    network, other = mlp(dtype=torch.float32), mlp(dtype=torch.float32)
    quietly(network, small_data(torch.float32))
    quietly(other, small_data(torch.float32), replace(CONFIG, precision="bfloat16"))
    same(network, other)
    config = TrainingConfig(steps=1, lr=0.1, momentum=0.0, batch_size=None, warmup_steps=0, drop_at=1.0)
    moves = []
    for precision in ("float32", "bfloat16"):
        network = resnet(seeds=(0,), dtype=torch.float32)
        start = torch.cat([p.detach().reshape(-1).clone() for p in network.parameters()])
        quietly(network, small_images(torch.float32), replace(config, precision=precision), measure=None)
        assert all(p.dtype == torch.float32 for p in network.parameters())
        moves.append(torch.cat([p.detach().reshape(-1) for p in network.parameters()]) - start)
    gap = (moves[0] - moves[1]).norm() / moves[0].norm()
    assert 1e-5 < gap < 0.5


# --- dependencies and refusals


def test_torch_and_numpy_are_enough():
    code = """
import sys
blocked = {"pandas", "tqdm", "scipy", "mlxtend", "seaborn", "torchvision", "matplotlib", "joblib", "pyarrow", "sklearn"}
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
import ncutils
from ncutils import data, metrics, networks, training
points = data.gaussian(5, num_classes=3, dim=4)
network = networks.MLP(4, 3, num_nonlinear=1, num_linear=2, width=5)
result = training.train(network, points, training.TrainingConfig(steps=3, batch_size=5, measurements=2))
assert [row["step"] for row in result.rows] == [0] * 3 + [1] * 3 + [3] * 3
assert not blocked & {name.split(".")[0] for name in sys.modules}
print("trained")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "trained\n", done.stderr


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": -1}, "steps must be an integer >= 0; got -1"),
        ({"warmup_steps": -2}, "warmup_steps must be an integer >= 0; got -2"),
        ({"momentum": 1.0}, "momentum must be in [0, 1); got 1.0"),
        ({"momentum": -0.1}, "momentum must be in [0, 1); got -0.1"),
        ({"batch_size": 0}, "batch_size must be None or >= 1; got 0"),
        ({"lr": -0.1}, "lr must be finite and >= 0; got -0.1"),
        ({"lr": (0.1, float("nan"))}, "lr must be finite and >= 0; got (0.1, nan)"),
        ({"weight_decay": [float("inf")]}, "weight_decay must be finite and >= 0; got [inf]"),
        ({"drop_at": 1.5}, "drop_at must be in [0, 1] and drop_factor finite and >= 0; got 1.5, 0.1"),
        ({"drop_factor": float("nan")}, "drop_at must be in [0, 1] and drop_factor finite"),
        ({"drop_factor": float("inf")}, "drop_at must be in [0, 1] and drop_factor finite"),
        ({"measurements": -1}, "measurements must be >= 0 and at most 1,000,000; got -1"),
        ({"measurements": 10**8}, "measurements must be >= 0 and at most 1,000,000; got 100000000"),
        ({"precision": "half"}, "precision must be 'float32', 'float64', 'bfloat16' or None; got 'half'"),
    ],
)
def test_configuration_refusals(changes, words):
    with pytest.raises(ValueError) as caught:
        TrainingConfig(**({"steps": 5} | changes))
    assert words in str(caught.value)


def test_lists_become_tuples():
    config = TrainingConfig(5, lr=[0.1, 0.2])
    assert config.lr == (0.1, 0.2) and config.per_run("lr", 2) == (0.1, 0.2) and hash(config)
    assert config.per_run("weight_decay", 2) == (0.0018, 0.0018)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: quietly(mlp(), small_data(), replace(CONFIG, lr=(0.1, 0.2))),
            "lr must be one number or 3 (one a run)",
        ),
        (
            lambda: quietly(mlp(), small_data(), replace(CONFIG, weight_decay=(0.1,) * 4)),
            "weight_decay must be one number",
        ),
        (lambda: quietly(mlp(), small_data(), engine="parallel"), "engine must be 'auto', 'sequential' or 'stacked'"),
        (lambda: quietly(mlp(), small_data(torch.float32)), "data must be on the network's device and of its dtype"),
        (
            lambda: quietly(mlp(), small_data(), replace(CONFIG, batch_size=25)),
            "batch_size must be at most the 24 samples",
        ),
        (lambda: quietly(MLP(5, 4, num_nonlinear=1, num_linear=1), small_data(torch.float32)), "4 outputs, the data 3"),
        (lambda: quietly(mlp(), small_images()), "an MLP trains on x (N, d); got (12, 2, 8, 8): use data.flat()"),
        (lambda: quietly(resnet(), small_images(), replace(CONFIG, batch_size=13)), "at most the 12 samples"),
        (
            lambda: quietly(MLP(5, 3, num_nonlinear=1, num_linear=2), gaussian(8, num_classes=3), CONFIG),
            "data.x must be (N, 5), the inputs of the network; got (24, 64)",
        ),
        (
            lambda: training.measure_layers(MLP(5, 3, num_nonlinear=1, num_linear=2), gaussian(8, num_classes=3), 0),
            "data.x must be (N, 5), the inputs of the network; got (24, 64)",
        ),
        (
            lambda: training.measure_layers(resnet(), gaussian(8, num_classes=3), 0),
            "data.x must be (N, 2, H, W); got (24, 64)",
        ),
        (lambda: training.measure_layers(mlp(), small_data(torch.float32), 0), "data.x must be torch.float64"),
        (lambda: training.measure_layers(mlp(), gaussian(8, num_classes=4), 0), "outputs, the data 4 classes"),
    ],
)
def test_training_refusals(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize(("nonlinear", "linear"), [(5, 4), (8, 1), (0, 3), (1, 1)])
def test_step_flops_counts_the_products(nonlinear, linear):
    data, batch = gaussian(6, num_classes=4, dim=20), 12
    network = MLP(20, 4, num_nonlinear=nonlinear, num_linear=linear, width=16)
    module = network.sequential()
    with FlopCounterMode(display=False) as counter:
        module(data.x[:batch]).square().sum().backward()
    assert training.step_flops(network.sizes, nonlinear, batch, layer_by_layer=True) == counter.get_total_flops()

    trainer = training._trainer(network, data, training.TrainingConfig(10, batch_size=batch), [0.1], [0.1])
    done = 0

    def counting(product, first):
        def counted(*arguments, **options):
            nonlocal done
            a, b = arguments[first : first + 2]
            done += 2 * a.shape[0] * a.shape[1] * b.shape[1]
            return product(*arguments, **options)

        return counted

    trainer.mm, trainer.accumulate = counting(torch.mm, 0), counting(torch.Tensor.addmm_, 1)
    trainer.step(0)
    assert training.step_flops(network.sizes, nonlinear, batch) == done


@pytest.mark.parametrize("make", [mlp, resnet])
@pytest.mark.parametrize("loss", [None, torch.nn.functional.cross_entropy])
def test_a_network_that_diverged_is_not_trained_further(make, loss):
    network = make()
    with torch.no_grad():
        network.weights[1][0, 0, 0] = float("nan")
    data = small_data() if make is mlp else small_images()
    with pytest.raises(ValueError, match="network must have finite weights; got NaN or infinite ones in 1 of"):
        training.train(network, data, replace(CONFIG, batch_size=6), loss=loss, progress=False)


def test_a_folder_is_no_checkpoint_and_a_failing_disk_damages_none(tmp_path, monkeypatch):
    config, folder = TrainingConfig(steps=4, batch_size=None), tmp_path / "mine"
    samples = gaussian(4, num_classes=3, dim=5, dtype=torch.float64)
    folder.mkdir()
    with pytest.raises(ValueError, match=r"checkpoint must be a file; got .*mine"):
        train(mlp(), samples, config, checkpoint=folder, progress=False)
    assert folder.is_dir()
    path = tmp_path / "c"
    train(mlp(), samples, config, checkpoint=path, progress=False)
    for error in (OSError(5, "Input/output error"), MemoryError()):
        monkeypatch.setattr(training._Checkpoint, "_read", lambda self, error=error: (_ for _ in ()).throw(error))
        with pytest.raises(type(error)):
            train(mlp(), samples, config, checkpoint=path, progress=False)
        assert [p.name for p in tmp_path.iterdir() if p != folder] == ["c"]


@pytest.mark.parametrize("make", [mlp, resnet])
def test_a_batch_may_hold_all_the_samples(make):
    data = small_data() if make is mlp else small_images()
    config = replace(CONFIG, steps=None, epochs=3, batch_size=len(data))
    assert config.for_samples(len(data)).steps == 3
    assert {row["step"] for row in quietly(make(), data, config).rows} == {0, 1, 2, 3}


def test_exploded_weights_of_a_resnet_have_diverged_even_where_no_loss_tells():
    network = resnet()
    network.weights[0].data[1] = -1e7  # features are not negative: every unit behind is dead
    result = quietly(network, small_images(), replace(CONFIG, steps=3, batch_size=6), measure=None)
    assert [(d.run, d.loss) for d in result.diverged] == [(1, float("inf"))]
    assert torch.isnan(network.weights[0][1]).all() and torch.isfinite(network.weights[0][0]).all()


@pytest.mark.parametrize("name", ["lr", "weight_decay"])
def test_a_rate_that_the_precision_does_not_hold_is_refused(name):
    config = replace(CONFIG, **{name: 1e39})
    with pytest.raises(ValueError, match=f"{name} must be at most 3.4e.38, what torch.float32 holds; got 1e.39"):
        quietly(mlp(dtype=torch.float32), small_data(torch.float32), config)


def test_a_small_network_trains_on_one_thread_and_gives_the_others_back():
    seen, before = [], torch.get_num_threads()

    def measure(network, data, step):
        seen.append(torch.get_num_threads())
        return []

    torch.set_num_threads(2)
    try:
        quietly(mlp(), small_data(), replace(CONFIG, steps=1), measure=measure)
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_labels_need_not_begin_at_0_where_nothing_is_measured():
    data = small_data()
    some = data.y > 0
    few = replace(data, x=data.x[some], y=data.y[some])
    assert not quietly(mlp(), few, replace(CONFIG, batch_size=None), measure=None).diverged


# --- where the ranges end


def test_what_is_not_given_is_what_the_class_says():
    assert TrainingConfig(steps=4) == TrainingConfig(
        steps=4, lr=0.05, weight_decay=0.0018, momentum=0.9, batch_size=100, warmup_steps=300, drop_at=0.8,
        drop_factor=0.1, measurements=20, precision=None, epochs=None,
    )  # fmt: skip
    result = training.TrainingResult(mlp(), [])
    assert (result.seconds, result.diverged) == (0.0, [])
    assert training.SAVE_EVERY == 60  # once a minute, as train() says


@pytest.mark.parametrize("made", [TrainingConfig(steps=4), Divergence(0, 3, 2e6)])
def test_a_configuration_and_a_divergence_do_not_change(made):
    with pytest.raises(AttributeError, match="cannot assign to field"):
        setattr(made, next(iter(made.__dataclass_fields__)), 5)
    assert hash(made) == hash(replace(made))


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"steps": None, "epochs": 0},
        {"warmup_steps": 0},
        {"warmup_steps": 1},
        {"momentum": 0.0},
        {"momentum": 0.999},
        {"batch_size": 1},
        {"batch_size": None},
        {"drop_at": 0.0},
        {"drop_at": 1.0},
        {"drop_factor": 0.0},
        {"drop_factor": 3.0},
        {"measurements": 0},
        {"measurements": 1_000_000},
        {"lr": 0.0},
        {"lr": (0.0, 0.1)},
        {"weight_decay": 0.0},
        {"precision": "float32"},
        {"precision": "float64"},
        {"precision": "bfloat16"},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(changes):
    config = TrainingConfig(**({"steps": 5} | changes))
    assert all(getattr(config, name) == value for name, value in changes.items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 3}, "one of steps and epochs must be given; got 5 and 3"),
        ({"steps": None}, "one of steps and epochs must be given; got None and None"),
        ({"steps": None, "epochs": -1}, "epochs must be an integer >= 0; got -1"),
        ({"steps": 2.5}, "steps must be an integer >= 0; got 2.5"),
        ({"warmup_steps": -1}, "warmup_steps must be an integer >= 0; got -1"),
        ({"momentum": 1.5}, "momentum must be in [0, 1); got 1.5"),
        ({"momentum": -1.0}, "momentum must be in [0, 1); got -1.0"),
        ({"batch_size": -1}, "batch_size must be None or >= 1; got -1"),
        ({"drop_at": -0.1}, "drop_at must be in [0, 1] and drop_factor finite and >= 0; got -0.1, 0.1"),
        ({"drop_at": 1.01}, "drop_at must be in [0, 1] and drop_factor finite and >= 0; got 1.01, 0.1"),
        ({"drop_factor": -0.1}, "drop_at must be in [0, 1] and drop_factor finite and >= 0; got 0.8, -0.1"),
        ({"measurements": 1_000_001}, "measurements must be >= 0 and at most 1,000,000; got 1000001"),
        ({"lr": float("inf")}, "lr must be finite and >= 0; got inf"),
        ({"lr": [0.1, -0.5]}, "lr must be finite and >= 0; got [0.1, -0.5]"),
    ],
)
def test_beyond_the_ends_of_the_ranges(changes, words):
    with pytest.raises(ValueError) as caught:
        TrainingConfig(**({"steps": 5} | changes))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("batch_size", "samples", "steps"), [(30, 100, 9), (100, 100, 3), (1, 1, 3), (None, 7, 3), (20, 41, 6)]
)
def test_epochs_are_passes_of_whole_batches(batch_size, samples, steps):
    config = TrainingConfig(epochs=3, batch_size=batch_size, lr=0.2)
    assert config.for_samples(samples) == TrainingConfig(steps=steps, batch_size=batch_size, lr=0.2)
    assert config.for_samples(samples).total == steps
    known = TrainingConfig(steps=2, batch_size=500)
    assert known.for_samples(samples) is known


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.for_samples(0), "samples must be at least 1; got 0"),
        (lambda c: c.for_samples(29), "batch_size must be at most the 29 samples; got 30"),
        (lambda c: c.total, r"steps must be known: use for_samples\(N\); got epochs=3"),
        (lambda c: c.per_run("momentum", 2), "name must be one of 'lr', 'weight_decay'; got 'momentum'"),
        (lambda c: c.per_run("lr", 0), "runs must be at least 1; got 0"),
        (lambda c: c.per_run("lr", 1), r"lr must be one number or 1 \(one a run\); got 2: \(0.1, 0.2\)"),
        (lambda c: c.per_run("lr", 3), r"lr must be one number or 3 \(one a run\); got 2: \(0.1, 0.2\)"),
        (lambda c: training.learning_rate_factor(replace(c, epochs=None, steps=5), -1), "step must be at least 0"),
    ],
)
def test_questions_that_a_configuration_does_not_answer(call, words):
    with pytest.raises(ValueError, match=words):
        call(TrainingConfig(epochs=3, batch_size=30, lr=(0.1, 0.2)))


def test_arguments_of_another_kind_are_named():
    with pytest.raises(TypeError, match="config must be a TrainingConfig; got 'x'"):
        training.measurement_steps("x")
    with pytest.raises(TypeError, match="data must be a Dataset, with x, y, num_classes; got SimpleNamespace, without"):
        training.measure_layers(mlp(), SimpleNamespace(x=torch.zeros(3, 5), y=torch.arange(3)), 0)
    with pytest.raises(TypeError, match="config must be a TrainingConfig; got 3"):
        quietly(mlp(), small_data(), 3)
    with pytest.raises(TypeError, match=r"network must be an nn.Module; got str"):
        quietly("net", small_data())
    with pytest.raises(TypeError, match=r"data must be a Dataset\(x, y, num_classes, name\); got tuple, without x, y"):
        quietly(mlp(), (1, 2))


@pytest.mark.parametrize(
    ("steps", "count", "drop_at", "stops"),
    [
        (1000, 5, 0.8, [0, 1, 10, 100, 800, 1000]),
        (100, 5, 0.8, [0, 1, 5, 22, 80, 100]),  # 100^(i/3)
        (10, 0, 0.8, [10]),
        (10, 1, 0.8, [0, 8, 10]),
        (10, 2, 0.8, [0, 1, 8, 10]),
        (10, 3, 0.8, [0, 1, 8, 10]),
        (10, 4, 0.8, [0, 1, 3, 8, 10]),
        (11, 1, 0.5, [0, 6, 11]),
        (7, 1, 0.0, [0, 7]),
        (7, 1, 1.0, [0, 7]),
        (1, 6, 0.8, [0, 1]),
        (0, 6, 0.8, [0]),
    ],
)
def test_where_is_measured(steps, count, drop_at, stops):
    assert training.measurement_steps(TrainingConfig(steps, measurements=count, drop_at=drop_at)) == stops


def test_the_step_size_while_it_warms_up_and_after_the_drop():
    config = TrainingConfig(steps=10, warmup_steps=8, drop_at=0.55, drop_factor=0.5)
    factors = [training.learning_rate_factor(config, step) for step in range(10)]
    assert factors == pytest.approx([1 / 8, 2 / 8, 3 / 8, 4 / 8, 5 / 8, 6 / 8, 7 / 16, 8 / 16, 0.5, 0.5])
    assert training.learning_rate_factor(replace(config, warmup_steps=1), 0) == 1.0
    assert training.learning_rate_factor(replace(config, warmup_steps=0, drop_at=0.0), 0) == 0.5


@pytest.mark.parametrize(
    ("sizes", "nonlinear", "flops", "by_layers"),
    [
        # three products a ReLU layer, two at the first; in the head those of 4 rows in the place of 10
        ((5, 7, 4), 1, 10 * (2 * 2 * 35 + 3 * 2 * 28), 10 * (2 * 2 * 35 + 3 * 2 * 28)),
        ((5, 7, 3, 4), 1, 10 * (140 + 168) + 12 * 42, 10 * (140 + 126 + 72)),
        ((5, 7, 3, 4), 2, 10 * (140 + 126 + 72), 10 * (140 + 126 + 72)),
        ((5, 7, 3, 4), 0, 10 * 2 * 40 + 12 * (70 + 42), 10 * (140 + 126 + 72)),
        ((5, 4), 0, 10 * 2 * 40, 10 * 2 * 40),
    ],
)
def test_step_flops_counted_by_hand(sizes, nonlinear, flops, by_layers):
    assert training.step_flops(sizes, nonlinear, 10) == flops
    assert training.step_flops(sizes, nonlinear, 10, layer_by_layer=True) == by_layers


# --- what is too large


def one_layer(first, second, dtype=torch.float64, runs=2):
    """A network x -> (w x, v x) whose last run has these weights and whose others have small ones."""
    network = MLP(1, 2, num_nonlinear=0, num_linear=1, seeds=tuple(range(runs)), dtype=dtype)
    network.weights[0].data.fill_(0.5)
    network.weights[0].data[-1] = torch.tensor([[first], [second]])
    return network


STILL = TrainingConfig(steps=1, lr=0.0, weight_decay=0.0, batch_size=2, warmup_steps=0)


def twice(x):
    """Two equal samples of class 0."""
    return Classification(torch.full((2, 1), x, dtype=torch.float64), torch.zeros(2, dtype=torch.int64), 2, "twice")


@pytest.mark.parametrize("engine", ["sequential", "stacked", "plain"])
@pytest.mark.parametrize(
    ("x", "first", "second", "loss"),
    [
        (1.0, 1001.0, 1000.0, 1e6),  # half of 1000^2 + 1000^2
        (1.0, 1001.0, 999.9995, None),  # half a unit less
        (0.0, 1e6, 0.0, float("inf")),  # a weight that no loss tells of
        (0.0, 0.0, -1e6, float("inf")),
        (0.0, 999_999.5, 0.0, None),
    ],
)
def test_a_loss_or_a_weight_of_a_million_has_diverged_and_a_little_less_has_not(engine, x, first, second, loss):
    network = one_layer(first, second)
    still = functools.partial(torch.optim.SGD, lr=0.0)
    options = {"optimizer": still} if engine == "plain" else {"engine": engine}
    result = quietly(network, twice(x), STILL, measure=None, **options)
    step = 0 if engine == "plain" and x else 1  # its first batch tells at once
    assert [(d.run, d.step, d.loss) for d in result.diverged] == ([] if loss is None else [(1, step, loss)])


@pytest.mark.parametrize(("weight", "gone"), [(-1e6, True), (-999_999.5, False)])
def test_a_weight_of_a_million_in_a_resnet_has_diverged(weight, gone):
    network = resnet(seeds=(3,))
    network.weights[0].data[0, 0, 0] = weight
    for layer in network.weights[1:]:
        layer.data.zero_()
    result = quietly(network, small_images(), replace(STILL, batch_size=6), measure=None)
    assert bool(result.diverged) == gone


def test_the_loss_that_a_resnet_diverged_with_is_that_of_its_batch():
    network, data = resnet(seeds=(3,), num_nonlinear=0, num_linear=1), small_images()
    network.weights[0].data.mul_(1e5)
    with torch.no_grad():
        outputs = network.sequential(0).train()(data.x)
    expected = (outputs - data.one_hot()).square().sum().item() / (2 * 12)
    (gone,) = quietly(network, data, replace(STILL, batch_size=None), measure=None).diverged
    assert gone.loss == pytest.approx(expected, rel=1e-9) and gone.loss > 1e6


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_every_fiftieth_step_is_looked_at_whatever_is_measured_between(engine):
    """Weights broken at the measurement of step 1 are noticed at step 50, and training ends there."""
    config = replace(CONFIG, steps=400, measurements=2, drop_at=1.0)

    def breaking(network, data, step):
        if step == 1:
            for weight in network.weights:
                weight.data.fill_(1e7)
        return [{"run": 0, "step": step}]

    taken = []
    kind = training._DenseTrainer
    with pytest.MonkeyPatch.context() as patch:
        step = kind.step
        patch.setattr(kind, "step", lambda self, number: (taken.append(number), step(self, number)))
        result = quietly(mlp(seeds=(0,)), small_data(), config, measure=breaking, engine=engine)
    assert [d.step for d in result.diverged] == [50] and taken == list(range(50))
    assert [row["step"] for row in result.rows] == [0, 1]


# --- what is told meanwhile, and how often


@pytest.fixture
def bars(monkeypatch):
    """The bars that were made; each counts what it was told."""
    made = []

    class Bar(nullcontext):
        def __init__(self, **options):
            super().__init__(self)
            self.options, self.moves = options, []
            made.append(self)

        def update(self, count):
            self.moves.append(count)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    return made


@pytest.mark.parametrize("engine", ["sequential", "stacked", "plain"])
@pytest.mark.parametrize("measure", [None, norms])
def test_the_bar_is_full_at_the_end(engine, measure, bars):
    options = {"loss": torch.nn.functional.cross_entropy} if engine == "plain" else {"engine": engine}
    train(mlp(), small_data(), CONFIG, measure=measure, **options)
    (bar,) = bars
    assert bar.options == {"total": 31 * (1 if engine == "stacked" else 3), "unit": "step", "disable": False,
                           "leave": False}  # fmt: skip
    assert sum(bar.moves) == bar.options["total"]
    if engine == "plain":
        assert set(bar.moves) == {1}


@pytest.mark.parametrize("engine", ["sequential", "stacked"])
def test_the_bar_is_full_where_runs_diverged_and_where_training_was_resumed(engine, bars, tmp_path):
    config = replace(CONFIG, steps=120, lr=1e3)
    assert len(train(mlp(), small_data(), config, engine=engine, measure=None).diverged) == 3
    for _ in range(2):
        train(mlp(), small_data(), engine=engine, measure=norms, checkpoint=tmp_path / "c", config=CONFIG)
    assert [sum(bar.moves) for bar in bars] == [bar.options["total"] for bar in bars]


@pytest.mark.parametrize(
    ("progress", "setting", "disabled"),
    [(True, None, False), (True, "", False), (True, "0", False), (True, "1", True), (False, None, True)],
)
def test_when_the_bar_is_silent(progress, setting, disabled, bars, monkeypatch):
    if setting is not None:
        monkeypatch.setenv("TQDM_DISABLE", setting)
    train(mlp(), small_data(), replace(CONFIG, steps=1), measure=None, progress=progress)
    assert [bar.options["disable"] for bar in bars] == [disabled]


def test_without_tqdm_there_is_no_bar(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert not train(mlp(), small_data(), replace(CONFIG, steps=1), measure=None).diverged


@pytest.mark.parametrize("options", [{}, {"loss": torch.nn.functional.cross_entropy}])
def test_the_seconds_are_those_that_it_took(options):
    before = time.perf_counter()
    seconds = quietly(mlp(), small_data(), **options).seconds
    assert 0 < seconds <= time.perf_counter() - before


@pytest.mark.parametrize(
    ("every", "saved"), [(50, [0, 100, 200, 300, 400]), (49, [0, 50, 100, 150, 200, 250, 300, 350, 400])]
)
def test_checkpoints_lie_more_than_so_many_seconds_apart(every, saved, tmp_path, monkeypatch):
    """On a clock that moves by a second a step; the marks where one may be written are every fiftieth step."""
    now, found = [1000.0], []
    step, save = training._DenseTrainer.step, training._Checkpoint.save

    def ticking(self, number):
        now[0] += 1
        step(self, number)

    def noting(self, number, state):
        found.append(state["step"])
        save(self, number, state)

    monkeypatch.setattr(training._DenseTrainer, "step", ticking)
    monkeypatch.setattr(training._Checkpoint, "save", noting)
    monkeypatch.setattr(training, "SAVE_EVERY", every)
    clock = SimpleNamespace(monotonic=lambda: now[0], perf_counter=time.perf_counter)
    monkeypatch.setattr(training, "time", clock)
    config = replace(CONFIG, steps=400, measurements=1, drop_at=1.0)
    quietly(mlp(seeds=(0,)), small_data(), config, measure=norms, checkpoint=tmp_path / "c")
    assert found == saved


def test_which_engine_is_taken():
    for engine, together in (("auto", {1}), ("sequential", {1}), ("stacked", {3})):
        seen = set()

        def measure(network, data, step, seen=seen):
            seen.add(network.num_runs)
            return []

        quietly(mlp(), small_data(), replace(CONFIG, steps=1), measure=measure, engine=engine)
        assert seen == together
    for engine in ("stacked", "sequential", "always"):
        with pytest.raises(
            ValueError, match=f"checkpoint, engine must be None, 'auto' with a loss.*got None, '{engine}'"
        ):
            quietly(mlp(), small_data(), loss=torch.nn.functional.cross_entropy, engine=engine)


@pytest.mark.parametrize(
    ("make", "threads"),
    [
        (lambda: MLP(5, 3, num_nonlinear=1, num_linear=2, width=256, dtype=torch.float64), 1),
        (lambda: MLP(5, 3, num_nonlinear=1, num_linear=2, width=257, dtype=torch.float64), 2),
        (lambda: MLP(5, 3, num_nonlinear=1, num_linear=2, widths=(257, 4), dtype=torch.float64), 2),
        (lambda: MLP(300, 3, num_nonlinear=1, num_linear=2, width=4, dtype=torch.float64), 1),
        (lambda: resnet(seeds=(0,)), 2),
    ],
)
def test_which_networks_train_on_one_thread(make, threads):
    seen, before, network = set(), torch.get_num_threads(), make()

    def measure(*_):
        seen.add(torch.get_num_threads())
        return []

    if isinstance(network, MLP):
        data = gaussian(4, num_classes=3, dim=network.sizes[0], dtype=torch.float64)
    else:
        data = small_images()
    torch.set_num_threads(2)
    try:
        quietly(network, data, replace(CONFIG, steps=0), measure=measure)
        assert seen == {threads} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_shuffling_ahead_shuffles_each_epoch_once():
    shuffled = []

    class Noting(training._Batches):
        def _shuffle(self, epoch):
            shuffled.append(epoch)
            return super()._shuffle(epoch)

    ahead = Noting((3, 1), 23, 5, "cpu")
    ahead.ahead = training.ThreadPoolExecutor(1)
    for step in range(16):
        ahead(step)
    ahead.ahead.shutdown()
    assert shuffled == [0, 1, 2, 3, 4]


# --- checkpoints of whatever a measure returns


def test_rows_of_every_kind_come_back_from_a_checkpoint(tmp_path):
    values = {
        "none": None,
        "flags": [True, False],
        "whole": 3,
        "real": 0.1,
        "text": "a",
        "pair": (1, "b", [2.5]),
        "tensor": torch.arange(3, dtype=torch.float32),
        "array": np.arange(6, dtype=np.int32).reshape(2, 3),
        "scalar": np.float32(0.25),
        "inside": {1: {"deep": (torch.ones(2),)}, "x": [None]},
    }

    def measure(network, data, step):
        return [{"run": 0, "step": step, **values}]

    for _ in range(2):  # computed, then read
        result = quietly(
            mlp(seeds=(0,)), small_data(), replace(CONFIG, steps=1), measure=measure, checkpoint=tmp_path / "c"
        )
    for row in result.rows:
        for name in ("none", "flags", "whole", "real", "text", "pair"):
            assert row[name] == values[name] and type(row[name]) is type(values[name])
        assert torch.equal(row["tensor"], values["tensor"]) and row["tensor"].dtype == torch.float32
        np.testing.assert_array_equal(row["array"], values["array"])
        assert isinstance(row["array"], np.ndarray) and row["array"].dtype == np.int32
        assert row["scalar"] == 0.25 and type(row["scalar"]) is np.float32
        assert list(row["inside"]) == [1, "x"] and row["inside"]["x"] == [None]
        (tensor,) = row["inside"][1]["deep"]
        assert torch.equal(tensor, torch.ones(2))

    def strange(network, data, step):
        return [{"run": 0, "what": {1, 2}}]

    with pytest.raises(TypeError, match=r"rows must hold numbers, strings, lists, .*; got \{1, 2\}"):
        quietly(mlp(seeds=(0,)), small_data(), measure=strange, checkpoint=tmp_path / "d")


def test_a_checkpoint_names_the_trainings_by_sixteen_digits(tmp_path):
    quietly(mlp(), small_data(), checkpoint=tmp_path / "c")
    words = r"fingerprint [0-9a-f]{16}, expected [0-9a-f]{16}\): move it away"
    with pytest.raises(ValueError, match=words):
        quietly(mlp(), small_data(), replace(CONFIG, lr=0.5), checkpoint=tmp_path / "c")


def test_a_checkpoint_of_samples_whose_weighted_sum_is_the_same_is_refused(tmp_path):
    """Every sum over the pixels is the same too; those over the samples are not."""
    data = small_data()
    data = replace(data, x=data.x.round())
    x = data.x.clone()
    x[0, 0], x[0, 1] = x[0, 0] + 2, x[0, 1] - 2
    x[1, 0], x[1, 1] = x[1, 0] - 1, x[1, 1] + 1
    quietly(mlp(), data, checkpoint=tmp_path / "c")
    with pytest.raises(ValueError, match="belongs to another training"):
        quietly(mlp(), replace(data, x=x), checkpoint=tmp_path / "c")


def test_a_damaged_checkpoint_is_set_aside_and_training_starts_afresh(tmp_path):
    path, config = tmp_path / "c", replace(CONFIG, steps=1)
    expected = quietly(mlp(), small_data(), config, measure=norms, checkpoint=path)
    written = path.read_bytes()
    middle = len(written) // 2
    flipped = [written[:middle] + bytes([written[middle] ^ (1 << bit)]) + written[middle + 1 :] for bit in range(8)]
    for damaged in (written[:-1], b"", *flipped):
        path.write_bytes(damaged)
        with pytest.warns(
            UserWarning, match=r"c is damaged \(its contents are not those that were.*; kept as c.damaged"
        ):
            result = quietly(mlp(), small_data(), config, measure=norms, checkpoint=path)
        assert repr(result.rows) == repr(expected.rows) and (tmp_path / "c.damaged").read_bytes() == damaged


def test_a_checkpoint_knows_the_first_number_of_a_measure_and_what_it_was_given():
    def returning(what):
        scope = {}
        exec(f"def measure(network, data, step):\n    return {what}\nshort = lambda network, data, step: {what}", scope)
        return scope["measure"], scope["short"]

    for one, other in zip(returning(5), returning(6), strict=True):
        assert training._says(one) != training._says(other)

    def given(module, *values, **named):
        def measure(*_):
            return []

        measure.__module__ = module
        return training._says(functools.partial(measure, *values, **named))

    for module in ("mine", "zoo", "zoo.ncutils"):
        says = [given(module, 1), given(module, 2), given(module, by=1), given(module, by=2), given(module, to=1)]
        assert len(set(says)) == 5 and given(module, a=1, b="x") == given(module, b="x", a=1)
    for module in ("ncutils", "ncutils.experiments"):  # whose options are known otherwise
        assert given(module, 1) == given(module, by=2)


def test_a_resnet_takes_one_run_after_the_other_whatever_the_engine():
    ends = []
    for engine in ("sequential", "stacked"):
        seen, network = set(), resnet()

        def measure(part, data, step, seen=seen):
            seen.add(part.num_runs)
            return []

        quietly(network, small_images(), replace(CONFIG, steps=2, batch_size=6), measure=measure, engine=engine)
        ends.append(network)
        assert seen == {1}
    same(*ends)


# --- measurements of shapes that are seldom


@pytest.mark.parametrize("block", [1, 2**27])
def test_every_run_may_have_inputs_of_its_own(block, monkeypatch):
    monkeypatch.setattr(training, "_BLOCK", block)
    data, network = small_data(), mlp()
    x = torch.stack([data.x, 2 * data.x.roll(1, 1), data.x - 1])
    rows = training.measure_layers(network, replace(data, x=x), 3)
    for run in range(3):
        alone = training.measure_layers(network.run(run), replace(data, x=x[run]), 3)
        same_rows([row | {"run": run} for row in alone], [row for row in rows if row["run"] == run])


@pytest.mark.parametrize("block", [1, 2**27])
def test_a_resnet_of_many_samples_is_measured_whole(block, monkeypatch):
    monkeypatch.setattr(training, "_BLOCK", block)
    draw = torch.Generator().manual_seed(2)
    x = torch.randn(2002, 1, 4, 4, generator=draw)  # more than go through the backbone at once
    data = Classification(x, torch.arange(2002) % 3, 3, "noise")
    network = ResNet20(1, 3, num_nonlinear=1, num_linear=1, width=4, seeds=(0, 1)).eval()
    with torch.no_grad():
        layers = network.layers(x)
    for row in training.measure_layers(network, data, 0):
        post = layers.post[row["layer"] - 1][row["run"]]
        assert row["nc2"] == pytest.approx(metrics.nc2(post, data.y).item(), rel=1e-4)


def test_features_that_are_not_finite_are_counted():
    data = small_data()
    data.x[4, 1] = float("nan")
    with pytest.raises(ValueError, match="preactivations must be finite; got 6 NaN"):
        training.measure_layers(mlp(seeds=(0,)), data, 0)


# --- data that do not fit


def loose(x, y, classes=3):
    return SimpleNamespace(x=x, y=y, num_classes=classes)


LABELS = torch.arange(6) % 3
POINTS = torch.zeros(6, 5, dtype=torch.float64)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (loose(POINTS[:5], LABELS), "data must hold as many labels as samples, at least one; got 6, 5"),
        (loose(POINTS, LABELS[:5]), "data must hold as many labels as samples, at least one; got 5, 6"),
        (loose(POINTS[:0], LABELS[:0]), "data must hold as many labels as samples, at least one; got 0, 0"),
        (loose(POINTS, LABELS.int()), "data.y must be int64 in 0..2; got torch.int32, 0..2"),
        (loose(POINTS, LABELS + 1), "data.y must be int64 in 0..2; got torch.int64, 1..3"),
        (loose(POINTS, LABELS - 1), "data.y must be int64 in 0..2; got torch.int64, -1..1"),
        (loose(POINTS, LABELS - 2), "data.y must be int64 in 0..2; got torch.int64, -2..0"),
        (loose(POINTS, 2 * LABELS), "data.y must be int64 in 0..2; got torch.int64, 0..4"),
        (
            loose(POINTS + torch.tensor([0, float("inf"), 0, 0, float("nan")]), LABELS),
            "data.x must be finite; got 12 NaN",
        ),
        (loose(POINTS[:, 0], LABELS), "an MLP trains on x (N, d); got (6,)"),
        (loose(POINTS.expand(6, 6, 5), LABELS), "an MLP trains on x (N, d); got (6, 6, 5)"),
        (loose(POINTS[:, :4], LABELS), "data.x must be (N, 5), the inputs of the network; got (6, 4)"),
        (loose(POINTS, LABELS, 4), "the network has 3 outputs, the data 4 classes"),
    ],
)
def test_data_that_an_mlp_cannot_train_on(data, words):
    with pytest.raises(ValueError) as caught:
        quietly(mlp(), data, replace(CONFIG, batch_size=None))
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("network", "shape", "words"),
    [
        (mlp, (6,), "data.x must be (N, 5), the inputs of the network; got (6,)"),
        (mlp, (5,), "data.x must be (N, 5), the inputs of the network; got (5,)"),
        (mlp, (3, 2, 6, 5), "data.x must be (N, 5), the inputs of the network; got (3, 2, 6, 5)"),
        (mlp, (3, 5, 6), "data.x must be (N, 5), the inputs of the network; got (3, 5, 6)"),
        (mlp, (6, 6), "data.x must be (N, 5), the inputs of the network; got (6, 6)"),
        (resnet, (6, 2, 8), "data.x must be (N, 2, H, W); got (6, 2, 8)"),
        (resnet, (6, 2, 8, 8, 1), "data.x must be (N, 2, H, W); got (6, 2, 8, 8, 1)"),
        (resnet, (6, 1, 8, 8), "data.x must be (N, 2, H, W); got (6, 1, 8, 8)"),
        (resnet, (6, 3, 2, 2), "data.x must be (N, 2, H, W); got (6, 3, 2, 2)"),
    ],
)
def test_shapes_that_a_network_is_not_measured_on(network, shape, words):
    x = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError) as caught:
        training.measure_layers(network(), loose(x, torch.arange(len(x)) % 3), 0)
    assert words in str(caught.value)


def test_the_largest_rate_that_the_precision_holds_is_allowed():
    largest = torch.finfo(torch.float32).max
    config = TrainingConfig(steps=0, lr=largest, weight_decay=largest, batch_size=5)
    assert not quietly(mlp(dtype=torch.float32), small_data(torch.float32), config, measure=None).diverged


@pytest.mark.parametrize(
    ("precision", "dtype", "fits"),
    [
        ("float64", torch.float64, True),
        ("float64", torch.float32, False),
        ("float32", torch.float32, True),
        ("float32", torch.float64, False),
        ("bfloat16", torch.float32, True),
        ("bfloat16", torch.float64, False),
        (None, torch.float32, True),
        (None, torch.float64, True),
    ],
)
def test_the_precision_asked_for_is_that_of_the_network(precision, dtype, fits):
    refused = pytest.raises(ValueError, match=f"precision '{precision}' must be that of the network; got weights of")
    with nullcontext() if fits else refused:
        quietly(mlp(dtype=dtype), small_data(dtype), replace(CONFIG, steps=1, precision=precision), measure=None)


def test_the_weights_that_are_not_finite_are_counted():
    network = mlp()
    network.weights[0].data[0, 0, 0] = network.weights[3].data[2, 1, 1] = float("inf")
    with pytest.raises(ValueError, match="finite weights; got NaN or infinite ones in 2 of 5"):
        quietly(network, small_data())


def test_a_network_whose_weights_are_not_finite_is_not_measured():
    network, data = MLP(5, 3, num_nonlinear=1, num_linear=2, width=6), gaussian(8, num_classes=3, dim=5)
    network.weights[1].data[0, 2] = torch.nan
    with pytest.raises(ValueError, match="network must have finite weights; got NaN or infinite ones in 1 of 3"):
        training.measure_layers(network, data, 0)
