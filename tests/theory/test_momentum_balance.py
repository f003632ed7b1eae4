"""The balance law with momentum, against torch's own SGD."""

import dataclasses
import itertools
import math

import pytest
import torch

from ncutils.theory.momentum_balance import momentum_balance, noise_floor

SIZES, NONLINEAR = (7, 8, 7, 6, 5, 3), 2


def steps(loss, nesterov=False, momentum=0.9, lr=0.01, weight_decay=0.05, count=40, batch=4, seed=0):
    """(before, after) of every mini-batch step of a ReLU network with a linear head, by torch.optim.SGD."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(24, 7, generator=generator).double()
    y = torch.arange(24) % 3
    weights = [
        (torch.randn(b, a, generator=generator).double() / math.sqrt(a)).requires_grad_()
        for a, b in itertools.pairwise(SIZES)
    ]
    optimiser = torch.optim.SGD(weights, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def state():
        buffers = [optimiser.state[w].get("momentum_buffer") for w in weights]
        buffers = [torch.zeros_like(w) if b is None else b.clone() for w, b in zip(weights, buffers, strict=True)]
        return [w.detach().clone() for w in weights[NONLINEAR:]], buffers[NONLINEAR:]

    for _ in range(count):
        index = torch.randint(0, 24, (batch,), generator=generator)
        z = x[index]
        for i, w in enumerate(weights):
            z = z @ w.T
            z = torch.relu(z) if i < NONLINEAR else z
        optimiser.zero_grad()
        one_hot = torch.nn.functional.one_hot(y[index], 3).double()
        cost = 0.5 * (z - one_hot).square().sum() if loss == "mse" else torch.nn.functional.cross_entropy(z, y[index])
        cost.backward()
        before = state()
        optimiser.step()
        yield before, state()


@pytest.mark.parametrize("loss", ["mse", "ce"])
@pytest.mark.parametrize(("nesterov", "momentum"), [(False, 0.9), (True, 0.9), (False, 0.5)])
def test_every_step_obeys_the_law(loss, nesterov, momentum):
    for before, after in steps(loss, nesterov, momentum):
        check = momentum_balance(before, after, lr=0.01, weight_decay=0.05, momentum=momentum, nesterov=nesterov)
        assert check.holds, str(check)


def test_a_wrong_law_is_caught():
    before, after = list(steps("mse"))[-1]
    right = {"lr": 0.01, "weight_decay": 0.05, "momentum": 0.9}
    check = momentum_balance(before, after, **right)
    assert check.holds
    assert dataclasses.replace(check, bound=1e-3 * check.measured).holds is False
    for wrong in ({"weight_decay": 0.0500001}, {"momentum": 0.90001}, {"nesterov": True}, {"lr": 0.0100001}):
        assert momentum_balance(before, after, **(right | wrong)).holds is False


def test_the_oscillator_needs_no_layers():
    """T⁺ = μ(T − 2ηQ) + 2λD⁺ reproduces the imbalance of forty steps from its first two numbers and Q alone."""
    lr, decay, mu = 0.01, 0.05, 0.9
    pairs = list(steps("ce"))

    def imbalance(w):
        return w[1].T @ w[1] - w[0] @ w[0].T

    d = imbalance(pairs[0][0][0])
    force = 2 * decay * d
    for _, after in pairs:
        drive = imbalance(after[1])
        d_next = d - lr * force + lr**2 * drive
        assert torch.allclose(d_next, imbalance(after[0]), atol=1e-13)
        force, d = mu * (force - 2 * lr * drive) + 2 * decay * d_next, d_next


def test_noise_floor_with_its_boundary_terms():
    """Exact over any number of steps: the floor, plus what D and T changed by."""
    lr, decay, mu = 0.01, 0.05, 0.9
    drives, levels, forces = [], [], []
    for (w, v), (_, v_next) in steps("mse", count=150):
        levels.append(w[2].T @ w[2] - w[1] @ w[1].T)
        cross = w[2].T @ v[2] - v[1] @ w[1].T
        forces.append(mu * (cross + cross.T) + 2 * decay * levels[-1])
        drives.append(v_next[2].T @ v_next[2] - v_next[1] @ v_next[1].T)
    change = (forces[-1] - forces[0]) - ((1 - mu) / lr + 2 * decay) * (levels[-1] - levels[0])
    count = len(levels) - 1
    floor = noise_floor(sum(drives[:-1]) / count, lr=lr, weight_decay=decay, momentum=mu)
    level = sum(levels[:-1]) / count
    assert torch.allclose(level, floor + change / (2 * decay * count), rtol=1e-9, atol=1e-11)
    assert not torch.allclose(level, 1.001 * floor + change / (2 * decay * count), rtol=1e-5, atol=1e-11)


def test_wrong_arguments():
    before, after = next(steps("mse", count=1))
    with pytest.raises(ValueError, match="same two or more layers"):
        momentum_balance((before[0][:1], before[1][:1]), after, lr=0.1, weight_decay=0.0, momentum=0.0)
    with pytest.raises(ValueError, match="weight_decay must be above 0"):
        noise_floor(torch.eye(2), lr=0.1, weight_decay=0.0, momentum=0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_obeys_nothing(bad, side):
    states = [[torch.eye(3).double() for _ in range(3)], [torch.zeros(3, 3).double() for _ in range(3)]]
    broken = [[t.clone() for t in part] for part in states]
    broken[1 - side][2][0, 0] = bad
    pair = (broken, states) if side == 0 else (states, broken)
    with pytest.raises(ValueError, match=f"{('before', 'after')[side]} must be finite; got .* in 1 of 6"):
        momentum_balance(*pair, lr=0.1, weight_decay=0.0, momentum=0.5)


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_no_layer_is_left_out(layer):
    before, (weights, velocities) = list(steps("mse"))[-1]
    moved = [1.001 * w if index == layer else w for index, w in enumerate(weights)]
    right = {"lr": 0.01, "weight_decay": 0.05, "momentum": 0.9}
    assert momentum_balance(before, (weights, velocities), **right).holds
    assert momentum_balance(before, (moved, velocities), **right).holds is False
