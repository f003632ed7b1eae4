"""train() on modules, losses and optimisers of one's own: the plain engine against torch's own loop and ours."""

from collections import OrderedDict
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ncutils import MLP, ResNet20, TrainingConfig, data, train
from ncutils import measure as measure_of_a_model
from ncutils.experiments import final

QUICK = dict(batch_size=20, warmup_steps=3, measurements=2)


def blobs(dtype=torch.float64):
    return data.gaussian(20, num_classes=3, dtype=dtype)


def module(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8, bias=False), nn.Linear(8, 3, bias=False)
    return nn.Sequential(*layers).to(dtype)


def test_the_plain_engine_agrees_with_the_batched_one():
    ours, other = (MLP(64, 3, num_nonlinear=1, num_linear=2, width=8, dtype=torch.float64) for _ in range(2))
    config = TrainingConfig(steps=30, batch_size=None, warmup_steps=3, measurements=2)
    fast = train(ours, blobs(), config, progress=False).frame
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.0018)
    plain = train(other, blobs(), config, optimizer=sgd, progress=False).frame
    assert list(fast.columns) == list(plain.columns)
    numbers = fast.select_dtypes("number").columns
    assert (fast[numbers] - plain[numbers]).abs().max().max() < 1e-9
    for a, b in zip(ours.weights, other.weights, strict=True):
        assert torch.allclose(a, b, atol=1e-10)


def test_a_module_trains_under_cross_entropy_with_adamw():
    mine = module()
    adamw = partial(torch.optim.AdamW, lr=0.01)
    result = train(
        mine, blobs(), TrainingConfig(epochs=30, **QUICK), loss=cross_entropy, optimizer=adamw, progress=False
    )
    frame = result.frame
    first, last = frame[frame.step == 0], frame[frame.step == frame.step.max()]
    assert last.accuracy.iloc[0] == 1.0 and last.loss.iloc[0] < 0.1 * first.loss.iloc[0]
    assert last.nc1.iloc[-1] < 0.1 * first.nc1.iloc[-1]
    assert set(frame.part) == {"linear", "nonlinear"}
    assert len(final(frame.assign(split="train", diverged=False))) == len(last)
    assert mine.training


def test_the_same_steps_as_a_loop_written_by_hand():
    x, y = blobs().x, blobs().y
    one, two = module(), module()
    config = TrainingConfig(
        steps=5, lr=0.1, momentum=0.5, weight_decay=0.01, batch_size=None, warmup_steps=0, drop_at=1.0
    )
    train(one, (x, y), config, loss=cross_entropy, measure=None, progress=False)
    step = torch.optim.SGD(two.parameters(), lr=0.1, momentum=0.5, weight_decay=0.01)
    order = torch.Generator().manual_seed(0)
    for _ in range(5):
        batch = torch.randperm(len(y), generator=order)
        step.zero_grad()
        cross_entropy(two(x[batch]), y[batch]).backward()
        step.step()
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", ["dataset", "loader", "pair"])
def test_what_a_pytorch_user_brings(kind):
    pairs = torch.utils.data.TensorDataset(blobs().x, blobs().y)
    loader = torch.utils.data.DataLoader(pairs, batch_size=20)
    given = {"dataset": pairs, "loader": loader, "pair": (blobs().x, blobs().y)}[kind]
    frame = train(module(), given, TrainingConfig(epochs=3, **QUICK), loss=cross_entropy, progress=False).frame
    assert frame.step.max() == 9 and frame.nc1.notna().all()


def test_a_run_that_diverges_says_so(capsys):
    config = TrainingConfig(steps=50, lr=1e6, weight_decay=0.0, batch_size=None, warmup_steps=0)
    result = train(module(), blobs(), config, progress=False, measure=None)
    assert result.diverged and "diverged" in capsys.readouterr().out


@pytest.mark.parametrize("lr", [1.0, 1e3, 1e15, 1e30])
@pytest.mark.parametrize("steps", [1, 60])
def test_a_run_that_leaves_the_numbers_keeps_what_was_measured(lr, steps):
    config = TrainingConfig(steps=steps, lr=lr, batch_size=20, warmup_steps=0, measurements=60)
    torch.manual_seed(0)
    deep = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    result = train(deep, blobs(torch.float32), config, progress=False)
    if steps == 60 or lr > 1:
        (gone,) = result.diverged
        assert {row["step"] for row in result.rows} <= set(range(gone.step + 1))
        assert not gone.loss < 1e6 or max(p.abs().max() for p in deep.parameters()) > 1e6
    assert {0} <= {row["step"] for row in result.rows} and deep.training
    assert all(row["loss"] < 1e6 for row in result.rows)


@pytest.mark.parametrize("measure", [None, "standard"])
def test_an_explosion_in_the_last_step_is_one(measure):
    options = {"measure": None} if measure is None else {}
    config = TrainingConfig(steps=1, lr=1e9, batch_size=None, warmup_steps=0)
    result = train(module(), blobs(), config, progress=False, **options)
    assert [gone.step for gone in result.diverged] == [1]
    config = TrainingConfig(steps=1, lr=0.01, batch_size=None, warmup_steps=0)
    assert not train(module(), blobs(), config, progress=False, **options).diverged


def test_weights_that_explode_beside_the_loss_have_diverged():
    class Idle(nn.Linear):
        def __init__(self):
            super().__init__(64, 3)
            self.idle = nn.Parameter(torch.ones(2))

        def forward(self, x):
            return super().forward(x) + 0 * self.idle.sum()

    config = TrainingConfig(steps=12, lr=0.01, weight_decay=0.0, batch_size=20, warmup_steps=0, measurements=3)
    network = Idle().double()
    both = [{"params": [network.weight, network.bias]}, {"params": [network.idle], "weight_decay": 1e4}]
    made = lambda _: torch.optim.SGD(both, lr=0.01, momentum=0.0)  # noqa: E731
    (gone,) = train(network, blobs(), config, optimizer=made, measure=None, progress=False).diverged
    assert gone.step == 12 and gone.loss == float("inf")


def test_before_any_step_nothing_has_diverged():
    class Broken(nn.Linear):
        def forward(self, x):
            return super().forward(x) / 0

    with pytest.raises(ValueError, match="finite"):
        train(Broken(64, 3).double(), blobs(), TrainingConfig(steps=3, **QUICK), progress=False)


def test_a_loss_that_takes_no_outputs_of_evaluation_trains():
    class TwoHeads(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            return {"logits": out, "aux": out} if self.training else {"logits": out}

    def loss(out, y):
        return cross_entropy(out["logits"], y) + cross_entropy(out["aux"], y)

    def refuses(network, data, step):
        raise ValueError("my own words")

    network = TwoHeads(64, 3).double()
    result = train(network, blobs(), TrainingConfig(steps=3, **QUICK), loss=loss, measure=None, progress=False)
    assert not result.diverged and network.training
    with pytest.raises(ValueError, match="my own words"):
        train(network, blobs(), TrainingConfig(steps=3, **QUICK), loss=loss, measure=refuses, progress=False)
    with pytest.raises(ValueError, match=r"network must return \(N, K\), N = 60, for the squared error; got {'logits'"):
        train(network, blobs(), TrainingConfig(steps=3, **QUICK), progress=False)


def test_looking_at_the_loss_leaves_the_order_of_a_loader_alone():
    pairs = torch.utils.data.TensorDataset(blobs().x, blobs().y)
    ends = []
    for measurements in (1, 20):
        torch.manual_seed(3)
        mine, loader = module(), torch.utils.data.DataLoader(pairs, batch_size=20, shuffle=True)
        config = TrainingConfig(steps=30, lr=0.01, warmup_steps=0, measurements=measurements)
        train(mine, loader, config, loss=cross_entropy, measure=lambda *_: [], progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in mine.parameters()]))
    assert torch.equal(*ends)


def test_a_measure_that_refuses_finite_outputs_is_heard():
    def refuses(network, data, step):
        raise ValueError("not these")

    with pytest.raises(ValueError, match="not these"):
        train(module(), blobs(), TrainingConfig(steps=3, **QUICK), measure=refuses, progress=False)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(network="net"), TypeError, "network must be an nn.Module; got str"),
        (dict(data=3), TypeError, "data must be a Dataset, a DataLoader or a pair"),
        (dict(loss=3), TypeError, "loss must be a function"),
        (dict(optimizer=lambda p: 3), TypeError, "optimizer must return a torch.optim.Optimizer; got int"),
        (dict(checkpoint="x"), ValueError, "checkpoint, engine must be None"),
        (dict(data=(torch.zeros(3, 64), torch.tensor([-1, 0, 1]))), ValueError, "integer labels"),
        (dict(data=(torch.full((3, 64), torch.nan), torch.tensor([0, 1, 2]))), ValueError, "must be finite"),
        (dict(data=(torch.zeros(2, 64), torch.tensor([0, 1, 2]))), ValueError, "as many labels as samples"),
        (dict(network=nn.ReLU()), ValueError, "network must have parameters"),
        (dict(data=blobs(torch.float32)), ValueError, r"data: the network cannot take x of \(60, 64\), torch.float32"),
        (
            dict(network=nn.Linear(64, 3).double(), data=(torch.zeros(6, 5).double(), torch.arange(6) % 3)),
            ValueError,
            r"data: the network cannot take x of \(6, 5\)",
        ),
        (
            dict(network=nn.Sequential(nn.Linear(64, 1), nn.Flatten(0)).double()),
            ValueError,
            r"network must return \(N, K\), N = 60, for the squared error; got \(60,\)",
        ),
        (dict(loss=lambda out, y: out.detach().sum()), ValueError, "loss must return one number with a gradient"),
        (dict(loss=lambda out, y: out.sum(1)), ValueError, "loss must return one number with a gradient"),
        (dict(loss=lambda out, y: 1.0), ValueError, "loss must return one number with a gradient; got 1.0"),
    ],
)
def test_wrong_arguments_are_named(change, error, words):
    arguments = dict(network=module(), data=blobs(), loss=cross_entropy) | change
    with pytest.raises(error, match=words):
        train(
            arguments.pop("network"),
            arguments.pop("data"),
            TrainingConfig(steps=2, batch_size=2),
            progress=False,
            **arguments,
        )


def test_an_epoch_of_a_loader_is_one_pass():
    pairs = torch.utils.data.TensorDataset(torch.randn(60, 4), torch.arange(60) % 3)
    seen = []
    module = nn.Linear(4, 3)
    module.register_forward_hook(lambda m, i, out: seen.append(len(out)) if m.training else None)
    loader = torch.utils.data.DataLoader(pairs, batch_size=7)
    train(module, loader, TrainingConfig(epochs=2, lr=0.01, batch_size=20, warmup_steps=0), measure=None)
    assert sum(seen) == 120 and len(seen) == 2 * len(loader)


@pytest.mark.parametrize("measure", [None, "standard"])
def test_no_memory_is_not_the_fault_of_the_data(measure):
    class Hungry(nn.Linear):
        def forward(self, x):
            raise torch.cuda.OutOfMemoryError("no memory")

    options = {"measure": None} if measure is None else {}
    with pytest.raises(torch.cuda.OutOfMemoryError):
        measure_of_a_model(Hungry(64, 3).double(), (blobs().x, blobs().y))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        train(Hungry(64, 3).double(), blobs(), TrainingConfig(steps=2, **QUICK), progress=False, **options)


def test_a_rest_smaller_than_a_batch_is_left_out():
    x, y, seen = torch.randn(23, 4), torch.arange(23) % 3, []
    linear = nn.Linear(4, 3)
    linear.register_forward_hook(lambda m, args, out: seen.append(args[0].clone()) if m.training else None)
    train(linear, (x, y), TrainingConfig(steps=8, lr=0.01, batch_size=5, warmup_steps=0), measure=None, progress=False)
    assert [len(batch) for batch in seen] == [5] * 8
    for epoch in (seen[:4], seen[4:]):
        assert len(torch.unique(torch.cat(epoch), dim=0)) == 20  # without replacement


@pytest.mark.parametrize("mode", [True, False])
def test_steps_are_in_training_mode_whatever_was_measured_between(mode):
    mine, modes = module().train(mode), []
    mine.register_forward_pre_hook(lambda m, args: modes.append(m.training))
    config = TrainingConfig(steps=6, batch_size=20, warmup_steps=0, measurements=6)
    train(mine, blobs(), config, loss=cross_entropy, progress=False)
    assert modes.count(True) == 6 and modes.count(False) > 6
    assert mine.training is mode


def test_every_run_has_its_own_seed_step_size_weight_decay_and_end():
    def mlp(*seeds):
        return MLP(64, 3, num_nonlinear=1, num_linear=2, width=8, dtype=torch.float64, seeds=seeds)

    together = mlp(3, 1, 4)
    config = TrainingConfig(
        steps=12, lr=(0.02, 1e6, 0.05), weight_decay=(0.0, 0.01, 0.02), batch_size=20, warmup_steps=0
    )
    result = train(together, blobs(), config, loss=cross_entropy, measure=None, progress=False)
    assert [failed.run for failed in result.diverged] == [1]
    for run, seed, lr, decay in ((0, 3, 0.02, 0.0), (2, 4, 0.05, 0.02)):
        alone = mlp(seed)
        one = TrainingConfig(steps=12, lr=lr, weight_decay=decay, batch_size=20, warmup_steps=0)
        train(alone, blobs(), one, loss=cross_entropy, measure=None, progress=False)
        for a, b in zip(together.weights, alone.weights, strict=True):
            torch.testing.assert_close(a[run], b[0], rtol=1e-12, atol=1e-12)


# --- where a run has diverged


class Idle(nn.Module):
    """Returns no more than its bias; the other parameters only lie there."""

    def __init__(self, bias=(0.0, 0.0, 0.0), idle=0.0, count=1):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))
        self.idle = nn.Parameter(torch.full((count,), idle, dtype=torch.float64))

    def forward(self, x):
        return self.bias.expand(len(x), -1) + 0 * self.idle.sum()


STILL = TrainingConfig(steps=3, lr=0.0, weight_decay=0.0, batch_size=20, warmup_steps=0, measurements=0)


def quietly(network, samples, config, **options):
    return train(network, samples, config, progress=False, **({"measure": None} | options))


@pytest.mark.parametrize(
    ("value", "gone"), [(1e6, True), (999_999.5, False), (-1e6, False), (float("-inf"), True), (float("nan"), True)]
)
def test_which_losses_of_a_batch_have_diverged(value, gone, capsys):
    loss = lambda outputs, y: outputs.sum() * 0 + value  # noqa: E731
    result = quietly(Idle(), blobs(), STILL, loss=loss)
    assert [(d.run, d.step) for d in result.diverged] == [(0, 0)] * gone
    if gone:
        assert result.diverged[0].loss == value or value != value
        assert f"run 0 diverged at step 0: loss {value:.3g}\n" in capsys.readouterr().out


@pytest.mark.parametrize(("value", "gone"), [(1e6, True), (999_999.5, False), (-1e6, False), (float("-inf"), True)])
def test_which_losses_at_the_end_have_diverged(value, gone):
    """The loss is such outside of training alone; the first that is too large is told."""
    network, later = Idle(), 3e6 if gone else value

    def loss(outputs, y):
        outside = value if len(y) == 1000 else later  # looked at in parts of a thousand samples
        return outputs.sum() * 0 + (1.0 if network.training else outside)

    samples = torch.zeros(1500, 4, dtype=torch.float64), torch.arange(1500) % 3
    result = quietly(network, samples, STILL, loss=loss)
    assert [(d.step, d.loss) for d in result.diverged] == [(3, value)] * gone
    assert network.training


@pytest.mark.parametrize(("weight", "gone"), [(1e6, True), (-1e6, True), (999_999.5, False), (-999_999.5, False)])
def test_which_weights_have_diverged(weight, gone):
    result = quietly(Idle(idle=weight), blobs(), STILL)
    assert [(d.step, d.loss) for d in result.diverged] == [(3, float("inf"))] * gone


def test_the_loss_is_looked_at_where_something_is_measured_and_at_the_end_alone():
    seen = []

    class Noting(Idle):
        def forward(self, x):
            if not self.training:
                seen.append(len(x))
            return super().forward(x)

    config = replace(STILL, steps=30, measurements=3, drop_at=1.0)
    stops = []
    quietly(Noting(), blobs(), config, measure=lambda network, samples, step: stops.append(step) or [])
    assert stops == [0, 1, 30] and seen == [60, 60]  # before the first step nothing has diverged
    seen.clear()
    quietly(Noting(), blobs(), config)
    assert seen == [60]


# --- one thread


@pytest.mark.parametrize(("count", "threads"), [(999_996, 1), (999_997, 2)])
def test_a_module_of_less_than_a_million_parameters_trains_on_one_thread(count, threads):
    seen, before = set(), torch.get_num_threads()

    def measured(network, samples, step):
        seen.add(torch.get_num_threads())
        return []

    torch.set_num_threads(2)
    try:
        quietly(Idle(count=count), blobs(), replace(STILL, steps=1, measurements=1), measure=measured)
        assert seen == {threads} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- the rows


def test_the_rows_of_a_module_are_those_of_its_places_with_the_loss_of_the_whole():
    mine, samples = module().eval(), blobs()
    config = replace(STILL, steps=0, lr=0.25, weight_decay=0.5)
    with torch.no_grad():
        outputs = mine(samples.x)
    wanted = measure_of_a_model(mine, (samples.x, samples.y)).to_dict("records")
    frame = train(mine, samples, config, loss=cross_entropy, progress=False).frame
    assert frame["name"].tolist() == [row["layer"] for row in wanted] and frame["name"].iloc[-1] == "output"
    assert frame["layer"].tolist() == list(range(len(wanted))) and len(wanted) > 2
    for name in ("nc1", "nc2"):
        assert frame[name].tolist() == pytest.approx([row[name] for row in wanted])
    expected = {
        "loss": cross_entropy(outputs, samples.y).item(),
        "error": (outputs - torch.eye(3, dtype=torch.float64)[samples.y]).norm().item(),
        "accuracy": (outputs.argmax(1) == samples.y).double().mean().item(),
    }
    for name, value in expected.items():
        assert frame[name].tolist() == pytest.approx([value] * len(frame))
    assert 0 < expected["accuracy"] < 1
    for name, value in {"run": 0, "seed": 0, "lr": 0.25, "weight_decay": 0.5, "step": 0}.items():
        assert frame[name].tolist() == [value] * len(frame)
    # A linear layer behind no other has a product; the output has none and is linear all the same.
    linear = [row["product_nc2"] == row["product_nc2"] or row["layer"] == "output" for row in wanted]
    assert frame["part"].tolist() == ["linear" if part else "nonlinear" for part in linear]
    assert set(frame["part"]) == {"linear", "nonlinear"} and not mine.training


@pytest.mark.parametrize("loss", [lambda out, y: out.sum(1), lambda out, y: 1.0, lambda out, y: out[:0]])
def test_a_loss_that_is_no_number_is_refused_where_nothing_is_trained_too(loss):
    with pytest.raises(ValueError, match="loss must return one number with a gradient; got "):
        train(module(), blobs(), replace(STILL, steps=0), loss=loss, progress=False)


@pytest.mark.parametrize("count", [30, 120])
def test_outputs_for_another_number_of_samples_are_refused(count):
    class Other(nn.Linear):
        def forward(self, x):
            return super().forward(torch.cat([x, x])[:count])

    words = rf"network must return \(N, K\), N = 60, for the squared error; got \({count}, 3\)"
    with pytest.raises(ValueError, match=words):
        quietly(Other(64, 3).double(), blobs(), replace(STILL, batch_size=None))


@pytest.mark.parametrize("loss", [lambda out, y: out[:0].sum(1), lambda out, y: out])
def test_a_loss_of_none_or_many_numbers_is_refused(loss):
    with pytest.raises(ValueError, match=r"loss must return one number with a gradient; got Tensor of torch.float64"):
        quietly(module(), blobs(), STILL, loss=loss)


# --- what is given


X, Y = torch.zeros(6, 5), torch.arange(6) % 3


@pytest.mark.parametrize(
    ("samples", "error", "words"),
    [
        ((X[:5], Y), ValueError, "data must hold as many labels as samples, at least one; got 6, 5"),
        ((X, Y[:5]), ValueError, "data must hold as many labels as samples, at least one; got 5, 6"),
        ((X[:0], Y[:0]), ValueError, "data must hold as many labels as samples, at least one; got 0, 0"),
        ((X, Y - 1), ValueError, r"integer labels \(N,\) from 0 on; got torch.int64 \(6,\), least -1"),
        ((X, Y - 2), ValueError, r"integer labels \(N,\) from 0 on; got torch.int64 \(6,\), least -2"),
        ((X, Y.float()), ValueError, r"integer labels \(N,\) from 0 on; got torch.float32 \(6,\), least 0.0"),
        ((X, Y[:, None]), ValueError, r"integer labels \(N,\) from 0 on; got torch.int64 \(6, 1\), least 0"),
        ((X * torch.tensor([0, 1, torch.inf, 0, torch.nan]), Y), ValueError, "data must be finite; got 12 NaN"),
        ((X, Y, Y), TypeError, r"data must be a Dataset, a DataLoader or a pair \(x, y\); got tuple"),
        ((X,), TypeError, r"data must be a Dataset, a DataLoader or a pair \(x, y\); got tuple"),
        ([[0.0], [1]], TypeError, r"data must be a Dataset, a DataLoader or a pair \(x, y\); got list"),
        ((X, [0, 1, 2] * 2), TypeError, r"data must be a Dataset, a DataLoader or a pair \(x, y\); got tuple"),
        ({"x": X, "y": Y}, TypeError, r"data must be a Dataset, a DataLoader or a pair \(x, y\); got dict"),
        (torch.utils.data.DataLoader([]), ValueError, "data must hold at least one batch; got an empty loader"),
    ],
)
def test_data_that_are_none(samples, error, words):
    with pytest.raises(error, match=words):
        quietly(nn.Linear(5, 3), samples, replace(STILL, batch_size=2), loss=cross_entropy)


def test_pairs_that_are_data():
    for samples in ((X.numpy(), Y.numpy()), [X, Y], (X, Y.to(torch.uint8)), (X, Y.clamp(min=1)), (X, 0 * Y)):
        result = quietly(nn.Linear(5, 3), samples, replace(STILL, batch_size=6), loss=cross_entropy)
        assert not result.diverged
    whole = torch.zeros(6, 5, dtype=torch.int64)
    embedding = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(10, 3))
    assert not quietly(embedding, (whole, Y), replace(STILL, batch_size=6), loss=cross_entropy).diverged


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 61}, "batch_size must be at most the 60 samples; got 61"),
        ({"precision": "float32"}, "precision must be None for the plain engine: cast the module; got 'float32'"),
        ({"precision": "bfloat16"}, "precision must be None for the plain engine: cast the module; got 'bfloat16'"),
        ({"lr": (0.1, 0.2)}, r"lr must be one number or 1 \(one a run\); got 2"),
    ],
)
def test_configurations_that_the_plain_engine_refuses(change, words):
    with pytest.raises(ValueError, match=words):
        quietly(module(), blobs(), replace(STILL, **change), loss=cross_entropy)


@pytest.mark.parametrize("change", [{"batch_size": 60}, {"precision": "float64"}, {"steps": None, "epochs": 1}])
def test_configurations_that_the_plain_engine_takes(change):
    assert not quietly(module(), blobs(), replace(STILL, **change), loss=cross_entropy).diverged


def test_an_optimizer_that_wants_a_closure_is_refused():
    with pytest.raises(ValueError, match="optimizer must step without a closure; got LBFGS"):
        quietly(module(), blobs(), STILL, optimizer=torch.optim.LBFGS)
    with pytest.raises(TypeError, match="optimizer must be a function or None; got int"):
        quietly(module(), blobs(), STILL, optimizer=3)


def test_parameters_that_are_frozen_stay_and_need_not_be_finite():
    mine = module()
    mine[0].weight.requires_grad_(False)
    kept = mine[0].weight.clone()
    before = mine[3].weight.detach().clone()
    quietly(mine, blobs(), replace(STILL, lr=0.1), loss=cross_entropy)
    assert torch.equal(mine[0].weight, kept) and not torch.equal(mine[3].weight, before)
    for parameter in mine.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="network must have parameters to train; got none that requires a gradient"):
        quietly(mine, blobs(), STILL, loss=cross_entropy)


def test_the_schedule_multiplies_the_step_size_of_any_optimizer():
    rates = []

    class Noting(torch.optim.SGD):
        def step(self, closure=None):
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    config = TrainingConfig(steps=10, batch_size=20, warmup_steps=4, drop_at=0.6, drop_factor=0.5, measurements=0)
    quietly(module(), blobs(), config, optimizer=partial(Noting, lr=0.2))
    assert rates == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1])


def test_a_resnet_trains_under_another_loss_run_by_run():
    noise = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    samples = data.Dataset(noise, torch.arange(12) % 3, 3, "noise")

    def made(*seeds):
        return ResNet20(1, 3, num_nonlinear=0, num_linear=2, width=4, seeds=seeds)

    config = TrainingConfig(steps=2, lr=(0.1, 0.2), batch_size=6, warmup_steps=0)
    together = made(0, 1)
    quietly(together, samples, config, loss=cross_entropy)
    for run in range(2):
        alone = made(run)
        quietly(alone, samples, replace(config, lr=config.lr[run]), loss=cross_entropy)
        for a, b in zip(together.weights, alone.weights, strict=True):
            torch.testing.assert_close(a[run], b[0])
        for (name, a), b in zip(
            together.backbones[run].state_dict().items(), alone.backbones[0].state_dict().values(), strict=True
        ):
            torch.testing.assert_close(a, b, msg=name)


def test_no_memory_for_a_look_at_the_loss_is_told():
    class Hungry(Idle):
        def forward(self, x):
            if not self.training:
                raise torch.cuda.OutOfMemoryError("no memory")
            return super().forward(x)

    with pytest.raises(torch.cuda.OutOfMemoryError):
        quietly(Hungry(), blobs(), STILL)


@pytest.mark.parametrize("names", [("zeta", "zoo", "up", "way"), ("a", "b", "c", "d")])
def test_what_a_layer_is_called_does_not_make_it_linear(names):
    layers = nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 6, bias=False), nn.Linear(6, 3, bias=False)
    named = nn.Sequential(OrderedDict(zip(names, layers, strict=True))).double()
    frame = train(named, blobs(), replace(STILL, steps=0), progress=False).frame
    assert frame["name"].tolist() == [*(f"{names[index]}.input" for index in (0, 2, 3)), "output"]
    assert frame["part"].tolist() == ["nonlinear", "linear", "linear", "linear"]
