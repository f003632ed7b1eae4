"""train() on modules, losses and optimisers of one's own: the plain engine against torch's own loop and ours."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from ncutils import MLP, TrainingConfig, data, train
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
