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


def scalars(*values):
    """Layers (1, 1)."""
    return [torch.tensor([[float(value)]], dtype=torch.float64) for value in values]


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_discrepancy_and_the_rounding_by_hand(nesterov):
    """W = 2, 5 with V = 0.5, −1 becomes 1.75, 4 with V = 3, 0.25; η = 0.1, λ = 0.5, μ = 0.75."""
    lr, decay, mu = 0.1, 0.5, 0.75
    before, after = (scalars(2, 5), scalars(0.5, -1)), (scalars(1.75, 4), scalars(3, 0.25))
    check = momentum_balance(before, after, lr=lr, weight_decay=decay, momentum=mu, nesterov=nesterov)
    d = 25 - 4
    pull = mu * 2 * (5 * -1 - 0.5 * 2) + 2 * decay * d
    moves = (3, 0.25)
    if nesterov:
        pull = mu * pull + 2 * decay * d
        moves = ((2 - 1.75) / lr, (5 - 4) / lr)
    expected = d - lr * pull + lr**2 * (moves[1] ** 2 - moves[0] ** 2)
    assert check.measured == pytest.approx(abs(16 - 1.75**2 - expected), rel=1e-12)
    rounding = 4 + 25 + lr * (2 * moves[0] + 5 * moves[1]) + lr * mu * (2 * 0.5 + 5 * 1)
    assert check.bound == pytest.approx(1e-13 * rounding, rel=1e-9)
    assert check.statement == f"Balance law ({'Nesterov' if nesterov else 'heavy ball'})"
    assert (check.quantity, check.form, check.sense, check.hypotheses) == ("imbalance_step", "exact", "<=", ())
    if not nesterov:
        assert check == momentum_balance(before, after, lr=lr, weight_decay=decay, momentum=mu)


@pytest.mark.parametrize("large", [0, 1, 2])
def test_the_neighbours_with_the_largest_share_of_their_rounding_are_reported(large):
    """Of three pairs one is off by most of its rounding, though not by the largest number."""
    sizes = [(1e3, 2e3), (1.0, 2.0), (30.0, 20.0)]
    sizes = sizes[-large:] + sizes[:-large]
    w = [size for pair in sizes for size in pair]
    still = scalars(*[0] * 6)
    moved = [a * (1 + 1e-6) for a in w]
    place = 2 * ((1 + large) % 3)  # the layers 1 and 2, of which one moves far for its size
    moved[place + 1] *= 1.01
    found = momentum_balance((scalars(*w), still), (scalars(*moved), still), lr=0.1, weight_decay=0.0, momentum=0.5)
    ratios = []
    for low in range(5):
        gap = (moved[low + 1] ** 2 - moved[low] ** 2) - (w[low + 1] ** 2 - w[low] ** 2)
        rounding = 1e-13 * (w[low] ** 2 + w[low + 1] ** 2)
        ratios.append((abs(gap) / rounding, abs(gap), rounding))
    worst = max(ratios)
    assert worst[1] < max(gap for _, gap, _ in ratios)
    assert (found.measured, found.bound) == pytest.approx(worst[1:], rel=1e-6)


def test_layers_that_are_nothing_are_passed_over():
    still = scalars(0, 0, 0)
    check = momentum_balance((scalars(0, 0, 2), still), (scalars(0, 0, 3), still), lr=0.1, weight_decay=0.0, momentum=0)
    assert check.measured == pytest.approx(5) and check.bound == pytest.approx(4e-13) and check.holds is False
    nothing = momentum_balance((still, still), (still, still), lr=0.1, weight_decay=0.0, momentum=0.0)
    assert (nothing.measured, nothing.bound, nothing.holds) == (0, 0, True)


@pytest.mark.parametrize("side", range(4))
def test_states_of_other_layers_are_refused(side):
    sides = [[torch.ones(3, 2), torch.ones(4, 3), torch.ones(1, 4)] for _ in range(4)]
    good = {"lr": 0.1, "weight_decay": 0.0, "momentum": 0.0}
    assert momentum_balance((sides[0], sides[1]), (sides[2], sides[3]), **good).bound > 0
    for other in (sides[side][:2], [*sides[side][:2], torch.ones(2, 4)]):
        changed = [*sides[:side], other, *sides[side + 1 :]]
        with pytest.raises(ValueError, match="must hold weights and velocities of the same two or more layers"):
            momentum_balance((changed[0], changed[1]), (changed[2], changed[3]), **good)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": math.inf}, "lr must be above 0, finite"),
        ({"weight_decay": -1e-9}, "weight_decay must be at least 0"),
        ({"weight_decay": math.inf}, "weight_decay must be at least 0, finite"),
        ({"momentum": -1e-9}, "momentum must be at least 0"),
        ({"momentum": math.inf}, "momentum must be at least 0, finite"),
        ({"before": (scalars(1, 2),)}, "before must be a pair"),
        ({"after": (scalars(1, 2),) * 3}, "after must be a pair"),
        ({"before": ([], []), "after": ([], [])}, "same two or more layers"),
        ({"before": (scalars(1), scalars(1)), "after": (scalars(1), scalars(1))}, "same two or more layers"),
    ],
)
def test_what_the_balance_law_refuses(changed, said):
    state = (scalars(1, 2), scalars(0, 0))
    usual = {"before": state, "after": state, "lr": 0.1, "weight_decay": 0.0, "momentum": 0.0}
    assert momentum_balance(**usual).holds
    with pytest.raises(ValueError, match=said):
        momentum_balance(**(usual | changed))
    with pytest.raises(TypeError, match=r"before\[0\]\[1\] must be a tensor"):
        momentum_balance(**(usual | {"before": ([state[0][0], 2.0], state[1])}))


def test_single_precision_is_computed_in_double():
    w, v = [torch.full((1, 1), 1 / 3), torch.full((1, 1), 0.7)], [torch.full((1, 1), 0.3), torch.full((1, 1), -0.1)]
    single = momentum_balance((w, v), (v, w), lr=0.1, weight_decay=0.2, momentum=0.5)
    w, v = [t.double() for t in w], [t.double() for t in v]
    assert single == momentum_balance((w, v), (v, w), lr=0.1, weight_decay=0.2, momentum=0.5)


def test_the_noise_floor_by_hand():
    drive = torch.tensor([[1.0, 2.0], [2.0, -4.0]])
    floor = noise_floor(drive, lr=0.3, weight_decay=0.25, momentum=0.5)
    assert floor.dtype == torch.float64
    torch.testing.assert_close(floor, 0.9 * drive.double())
    torch.testing.assert_close(noise_floor(drive, lr=1, weight_decay=0.5, momentum=0.0), drive.double())
    assert not noise_floor(drive, lr=0.0, weight_decay=0.5, momentum=0.0).any()
    for changed, said in (
        ({"lr": -1e-9}, "lr must be at least 0"),
        ({"lr": math.inf}, "lr must be at least 0, finite"),
        ({"momentum": -1e-9}, "momentum must be at least 0"),
        ({"momentum": math.inf}, "momentum must be at least 0, finite"),
        ({"weight_decay": math.inf}, "weight_decay must be above 0, finite"),
    ):
        with pytest.raises(ValueError, match=said):
            noise_floor(drive, **({"lr": 0.1, "weight_decay": 0.1, "momentum": 0.1} | changed))
    with pytest.raises(TypeError, match="mean_drive must be a tensor"):
        noise_floor(1.0, lr=0.1, weight_decay=0.1, momentum=0.1)
