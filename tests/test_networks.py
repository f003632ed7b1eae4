"""ncutils.networks: stacked runs equal single ones, seeds, initialisation, layout, the smooth activation."""

import math

import pytest
import torch
from torch import nn

from ncutils.networks import MLP, ResNet20, Smooth, smooth, smooth_derivative


def inputs(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(7))


def mlp(**changes):
    arguments = {"num_nonlinear": 2, "num_linear": 2, "width": 6, "seeds": (3, 1, 4), "dtype": torch.float64}
    return MLP(5, 3, **(arguments | changes))


def resnet(**changes):
    arguments = {"num_nonlinear": 1, "num_linear": 2, "width": 8, "seeds": (3, 1), "dtype": torch.float64}
    return ResNet20(2, 3, **(arguments | changes))


# --- many runs in one network


@pytest.mark.parametrize("activation", ["relu", "smooth"])
def test_stacked_forward_equals_sequential_and_numpy(activation):
    network, x = mlp(activation=activation), inputs(9, 5)
    layers = network.layers(x)
    assert network(x).shape == (3, 9, 3) and torch.equal(network(x), layers.post[-1])
    for run in range(3):
        torch.testing.assert_close(network(x)[run], network.sequential(run)(x), rtol=1e-12, atol=1e-12)
        z = x.numpy()
        for index, weight in enumerate(network.weights):
            pre = z @ weight[run].detach().numpy().T
            z = pre
            if index < 2:
                z = torch.relu(torch.as_tensor(pre)) if activation == "relu" else smooth(torch.as_tensor(pre), 0.5)
                z = z.numpy()
            torch.testing.assert_close(layers.pre[index][run].detach(), torch.as_tensor(pre), rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(layers.post[index][run].detach(), torch.as_tensor(z), rtol=1e-12, atol=1e-12)


def test_inputs_of_their_own_for_every_run():
    network, x = mlp(), inputs(3, 9, 5)
    for run in range(3):
        torch.testing.assert_close(network(x)[run], network.sequential(run)(x[run]), rtol=1e-12, atol=1e-12)


def test_a_run_is_a_copy():
    network, x = mlp(), inputs(9, 5)
    one = network.run(1)
    assert (one.num_runs, one.seeds, one.num_layers, one.sizes) == (1, (1,), 4, network.sizes)
    assert isinstance(one, MLP) and torch.allclose(one(x)[0], network(x)[1], rtol=1e-12)
    assert len(list(one.parameters())) == 4 and len(list(network.parameters())) == 4
    before = network(x)[1].clone()
    with torch.no_grad():
        for weight in one.weights:
            weight.zero_()
        for module in network.sequential(1):
            if isinstance(module, nn.Linear):
                module.weight.zero_()
    assert torch.equal(network(x)[1], before)


@pytest.mark.parametrize("make", [mlp, resnet])
def test_state_moves_with_a_run(make):
    network = make()
    one, other = network.run(1), make(seeds=(9,))
    assert not any(torch.equal(a, b) for a, b in zip(one.weights, other.weights, strict=True))
    other.load_state_dict(one.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_head_and_counts():
    network = mlp(num_nonlinear=3, num_linear=2)
    assert (network.num_layers, network.num_nonlinear, network.num_linear, network.num_runs) == (5, 3, 2, 3)
    assert [w.shape for w in network.weights] == [(3, 6, 5), (3, 6, 6), (3, 6, 6), (3, 6, 6), (3, 3, 6)]
    assert [w is v for w, v in zip(network.head, list(network.weights)[3:], strict=True)] == [True, True]
    assert network.sizes == (5, 6, 6, 6, 6, 3)
    assert mlp(widths=(7, 4, 9)).sizes == (5, 7, 4, 9, 3)
    linear = mlp(num_nonlinear=0, num_linear=1)
    assert linear.sizes == (5, 3) and len(linear.sequential()) == 1


# --- seeds and initialisation


def test_a_run_depends_on_its_seed_alone():
    together, alone = mlp(seeds=(3, 1, 4)), mlp(seeds=(4,))
    assert all(torch.equal(a[2], b[0]) for a, b in zip(together.weights, alone.weights, strict=True))
    assert not any(torch.equal(w[0], w[1]) for w in together.weights)
    single = mlp(seeds=(4,), dtype=torch.float32)  # one seed, one network, whatever the precision
    assert all(torch.equal(a.float(), b) for a, b in zip(alone.weights, single.weights, strict=True))


@pytest.mark.parametrize("make", [mlp, resnet])
def test_the_global_generator_is_left_alone(make):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = make()
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(12345)
    second = make()
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(("activation", "gain"), [("relu", 2.0), ("smooth", 2 / 1.25)])
def test_kaiming_variance(activation, gain):
    network = MLP(300, 10, num_nonlinear=2, num_linear=2, width=400, activation=activation, gamma=0.5, seeds=(0, 1))
    for index, weight in enumerate(network.weights):
        expected = (gain if index < 2 else 1.0) / weight.shape[2]
        # 4,000 numbers or more a run: the sample variance is within 10% at over four standard deviations.
        assert weight.var(dim=(1, 2)).tolist() == pytest.approx([expected] * 2, rel=0.1)
        assert weight.mean(dim=(1, 2)).abs().max() < 5 * math.sqrt(expected / weight[0].numel())


def test_the_signal_keeps_its_size():
    network, x = MLP(200, 200, num_nonlinear=4, num_linear=4, width=800), inputs(500, 200, dtype=torch.float32)
    sizes = [z.square().mean().item() for z in network.layers(x).pre]
    assert sizes[0] == pytest.approx(2, rel=0.15) and sizes[3] == pytest.approx(2, rel=0.3)
    assert sizes[-1] == pytest.approx(1, rel=0.3)  # the first linear layer has gain 1: 2 -> E relu^2 = 1


# --- ResNet20


def test_resnet_layout():
    network = ResNet20(3, 10, num_linear=2, seeds=(0,))
    backbone = network.backbones[0]
    convolutions = [m for m in backbone.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 19 and all(c.bias is None and c.kernel_size == (3, 3) for c in convolutions)
    assert [c.out_channels for c in convolutions] == [16] * 7 + [32] * 6 + [64] * 6
    assert [c.stride[0] for c in convolutions] == [1] * 7 + [2] + [1] * 5 + [2] + [1] * 5
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 19 and {(m.momentum, m.eps, m.affine) for m in norms} == {(0.1, 1e-5, True)}
    # He et al. (2016), option A: 0.27 million parameters with the final dense layer; here counted by hand.
    conv = 9 * (3 * 16 + 6 * 16 * 16 + 16 * 32 + 5 * 32 * 32 + 32 * 64 + 5 * 64 * 64)
    norm = 2 * (7 * 16 + 6 * 32 + 6 * 64)
    assert sum(p.numel() for p in backbone.parameters()) == conv + norm
    assert [w.shape for w in network.weights] == [(1, 64, 64), (1, 10, 64)]
    assert sum(p.numel() for p in network.parameters()) == conv + norm + 64 * 64 + 64 * 10
    assert backbone(inputs(2, 3, 32, 32, dtype=torch.float32)).shape == (2, 64)


def test_resnet_shortcut_pads_and_strides():
    block = ResNet20(2, 3, num_linear=1).backbones[0].eval()[3 + 3]
    assert (block.stride, block.extra) == (2, 16)
    with torch.no_grad():
        block.conv2.weight.zero_()  # what is left is the shortcut
        x = inputs(1, 16, 6, 6, dtype=torch.float32).abs()
        y = block(x)
    assert y.shape == (1, 32, 3, 3)
    assert torch.equal(y[:, :16], x[:, :, ::2, ::2]) and not y[:, 16:].any()


def plain_resnet20(parameters: dict, x: torch.Tensor, statistics: dict | None = None) -> torch.Tensor:
    """The backbone by its formula: products of patches for convolutions, means and variances for batch norm."""

    def convolution(z, name, stride):
        w = parameters[f"{name}.weight"]
        patches = nn.functional.unfold(z, 3, padding=1, stride=stride)
        side = (z.shape[-1] - 1) // stride + 1
        return (w.flatten(1) @ patches).unflatten(-1, (side, side))

    def norm(z, name):
        if statistics is None:
            mean, variance = z.mean((0, 2, 3)), z.var((0, 2, 3), correction=0)
        else:
            mean, variance = statistics[f"{name}.running_mean"], statistics[f"{name}.running_var"]
        z = (z - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
        return z * parameters[f"{name}.weight"][:, None, None] + parameters[f"{name}.bias"][:, None, None]

    z = norm(convolution(x, "0", 1), "1").clamp(min=0)
    for block in range(9):
        name, stride = str(3 + block), 2 if block in (3, 6) else 1
        inner = norm(convolution(z, f"{name}.conv1", stride), f"{name}.norm1").clamp(min=0)
        inner = norm(convolution(inner, f"{name}.conv2", 1), f"{name}.norm2")
        short = z[:, :, ::stride, ::stride]
        empty = short.new_zeros(len(short), inner.shape[1] - short.shape[1], *short.shape[2:])
        z = (inner + torch.cat([short, empty], 1)).clamp(min=0)
    return z.mean((2, 3))


@pytest.mark.parametrize("training", [True, False])
def test_the_backbone_is_the_one_of_the_formula(training):
    backbone, generator = resnet().backbones[0].train(training), torch.Generator().manual_seed(0)
    for name, tensor in [*backbone.named_parameters(), *backbone.named_buffers()]:
        own = "norm" in name or name.startswith("1.")  # scales, shifts and statistics like no others
        if own and tensor.is_floating_point():
            tensor.data = 0.5 + torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
    parameters = {name: p.detach().clone().requires_grad_() for name, p in backbone.named_parameters()}
    statistics = None if training else {name: b.clone() for name, b in backbone.named_buffers()}
    x = inputs(5, 2, 8, 8)
    seen, right = backbone(x), plain_resnet20(parameters, x, statistics)
    torch.testing.assert_close(seen, right, rtol=1e-10, atol=1e-12)
    direction = torch.randn(seen.shape, generator=generator, dtype=seen.dtype)
    gradients = torch.autograd.grad((seen * direction).sum(), list(backbone.parameters()))
    expected = torch.autograd.grad((right * direction).sum(), list(parameters.values()))
    for gradient, value in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, value, rtol=1e-8, atol=1e-10)


def test_resnet_runs():
    network, x = resnet().eval(), inputs(6, 2, 8, 8)
    layers = network.layers(x)
    assert network(x).shape == (2, 6, 3) and [z.shape[-1] for z in layers.post] == [8, 8, 3]
    assert network.sizes == (64, 8, 8, 3) and len(network.weights) == 3
    for run in range(2):
        torch.testing.assert_close(network(x)[run], network.sequential(run)(x), rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(network(x)[run], network.run(run)(x)[0], rtol=1e-10, atol=1e-12)
    alone = resnet(seeds=(1,)).eval()
    torch.testing.assert_close(network(x)[1], alone(x)[0], rtol=1e-10, atol=1e-12)
    one = network.run(0)
    assert isinstance(one, ResNet20) and one.seeds == (3,) and not one.training
    with torch.no_grad():
        for parameter in (*one.parameters(), *network.sequential(0).parameters()):
            parameter.zero_()
    torch.testing.assert_close(network(x)[0], layers.post[-1][0])  # both are copies


# --- the smooth activation of Assumption 4.2


def test_every_run_of_a_resnet_has_a_backbone_of_its_own():
    one, other, third = (b.state_dict() for b in resnet(seeds=(3, 1, 4)).backbones)
    convolutions = [name for name, value in one.items() if value.ndim == 4]
    assert len(convolutions) == 19
    for name in convolutions:
        assert not torch.equal(one[name], other[name]) and not torch.equal(other[name], third[name]), name


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9])
def test_smooth_activation(gamma):
    x = torch.cat([torch.linspace(-50, 50, 4001, dtype=torch.float64), torch.tensor([-1e4, 1e4])])
    slope = smooth_derivative(x, gamma)
    x.requires_grad_()
    (by_autograd,) = torch.autograd.grad(smooth(x, gamma).sum(), x)
    torch.testing.assert_close(slope, by_autograd, rtol=1e-12, atol=1e-12)
    x = x.detach()
    assert (slope >= gamma).all() and (slope <= 1).all()
    assert slope[-2] == pytest.approx(gamma, abs=1e-7) and slope[-1] == pytest.approx(1, abs=1e-7)
    assert smooth(torch.zeros(1, dtype=torch.float64), gamma) == 0
    grid = x[:4001]
    curvature = (slope[1:4001] - slope[:4000]) / (grid[1:] - grid[:-1])
    assert curvature.min() >= 0 and curvature.max() <= (1 - gamma) / 2 + 1e-9  # Lipschitz slope, attained at 0
    assert (smooth(grid, gamma).abs() <= grid.abs() + 1e-12).all()
    assert torch.equal(Smooth(gamma)(grid), smooth(grid, gamma))


def test_a_smooth_network_of_least_slope_1_is_linear():
    network, x = mlp(activation="smooth", gamma=1.0), inputs(9, 5)
    for pre, post in zip(*network.layers(x), strict=True):
        torch.testing.assert_close(pre, post, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("x", "gamma", "value", "slope"),
    [
        (0.75, 0.2, 0.55, 0.84),
        (-0.75, 0.2, -0.35, 0.36),
        (2.4, 0.5, 2.2, 0.5 + 0.25 * (1 + 12 / 13)),
        (-2.4, 0.0, -0.4, 1 / 26),
    ],
)
def test_the_smooth_activation_where_its_root_is_rational(x, gamma, value, slope):
    """1 + 0.75^2 = 1.25^2 and 1 + 2.4^2 = 2.6^2."""
    assert smooth(torch.tensor(x, dtype=torch.float64), gamma).item() == pytest.approx(value, rel=1e-12)
    assert smooth_derivative(torch.tensor(x, dtype=torch.float64), gamma).item() == pytest.approx(slope, rel=1e-12)


@pytest.mark.parametrize("function", [smooth, smooth_derivative])
def test_the_smooth_activation_takes_tensors_and_numbers_that_are_finite(function):
    assert function(torch.zeros(2), 1e18).shape == (2,)
    for gamma in (2e18, math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=r"gamma must be at most 1e\+18, finite; got"):
            function(torch.zeros(2), gamma)
    with pytest.raises(TypeError, match="x must be a tensor; got"):
        function([1.0], 0.5)
    with pytest.raises(TypeError, match=r"gamma must be a number; got '0\.5'"):
        function(torch.zeros(2), "0.5")


# --- sizes, seeds and scales


def test_what_is_not_given_is_as_documented():
    network = MLP(5, 3, num_nonlinear=1, num_linear=1)
    assert (network.sizes, network.seeds, network.activation, network.gamma) == ((5, 64, 3), (0,), "relu", 0.5)
    assert {w.dtype for w in network.weights} == {torch.float32} and network.num_runs == 1
    image = ResNet20(2, 3, num_linear=3)
    assert (image.sizes, image.seeds, image.num_nonlinear) == ((64, 64, 64, 3), (0,), 0)
    assert (image.activation, image.gamma) == ("relu", 0.0)
    assert {p.dtype for p in image.parameters()} == {torch.float32}


@pytest.mark.parametrize("make", [mlp, resnet])
def test_the_first_run_is_handed_out_unless_another_is_asked_for(make):
    network = make()
    first, by_default, second = network.sequential(0), network.sequential(), network.sequential(1)
    for name, value in first.state_dict().items():
        assert torch.equal(value, by_default.state_dict()[name])
    assert not torch.equal(first[-1].weight, second[-1].weight)


def test_modules_have_the_sizes_of_their_weights():
    linear = [m for m in mlp(widths=(7, 4, 9)).sequential(2) if isinstance(m, nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linear] == [(5, 7), (7, 4), (4, 9), (9, 3)]
    assert all(m.bias is None and m.weight.dtype == torch.float64 for m in linear)
    kinds = [type(m) for m in mlp(activation="smooth", gamma=0.3).sequential()]
    assert kinds == [nn.Linear, Smooth, nn.Linear, Smooth, nn.Linear, nn.Linear]
    assert mlp(activation="smooth", gamma=0.3).sequential()[1].gamma == 0.3


def test_weights_are_normal_numbers_of_the_seed_times_the_scale_of_their_layer():
    """Linear layers have variance 1 / fan-in, ReLU layers 2 / fan-in, smooth ones 2 / (1 + gamma^2) / fan-in."""
    linear, relu = mlp(num_nonlinear=0, num_linear=4), mlp()
    steep = mlp(activation="smooth", gamma=0.75)
    for run, seed in enumerate((3, 1, 4)):
        drawn = torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        torch.testing.assert_close(linear.weights[0][run].detach(), drawn / math.sqrt(5), rtol=1e-12, atol=0)
    for index in range(4):
        for network, gain in ((relu, 2.0), (steep, 2 / 1.5625)):
            ratio = (network.weights[index] / linear.weights[index]).detach()
            wanted = math.sqrt(gain) if index < 2 else 1.0
            torch.testing.assert_close(ratio, torch.full_like(ratio, wanted), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_are_normal_with_the_variance_of_their_outputs(dtype):
    """Variance 2 / (9 outputs), whatever the precision."""
    convolutions = [m for m in resnet(dtype=dtype).backbones[0].modules() if isinstance(m, nn.Conv2d)]
    exact = [m for m in resnet().backbones[0].modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == len(exact) == 19
    for own, other in zip(convolutions[1:], exact[1:], strict=True):  # 2,304 numbers or more
        assert torch.equal(own.weight, other.weight.to(dtype))
        scaled = own.weight.detach().double() / math.sqrt(2 / (9 * own.out_channels))
        assert scaled.square().mean().item() == pytest.approx(1, rel=0.15)
        assert scaled.pow(4).mean().item() == pytest.approx(3, rel=0.3)  # 9/5 where it is uniform


def test_sizes_may_be_given_by_name_and_the_others_must():
    by_name = MLP(
        input_dim=5, num_classes=3, num_nonlinear=2, num_linear=2, width=6, seeds=(3, 1, 4), dtype=torch.float64
    )
    assert all(torch.equal(a, b) for a, b in zip(by_name.weights, mlp().weights, strict=True))
    assert ResNet20(in_channels=2, num_classes=3, num_linear=1).sizes == (64, 3)
    for network in (MLP, ResNet20):
        with pytest.raises(TypeError, match="takes 3 positional arguments but"):
            network(5, 3, 2, num_nonlinear=1, num_linear=1)


def test_the_smallest_networks_that_there_are():
    network = MLP(1, 2, num_nonlinear=0, num_linear=2, width=1, seeds=(5,), dtype=torch.float64)
    x = inputs(4, 1)
    a, b = (w[0].detach() for w in network.weights)
    torch.testing.assert_close(network(x)[0], x @ a.T @ b.T, rtol=1e-12, atol=0)
    single, x = mlp(num_nonlinear=0, num_linear=1), inputs(4, 5)
    assert single.num_runs == 3 and len(single.head) == 1
    torch.testing.assert_close(single(x), x @ single.weights[0].mT, rtol=1e-12, atol=0)
    assert ResNet20(1, 2, num_linear=1).eval()(torch.zeros(2, 1, 4, 4)).shape == (1, 2, 2)
    for gamma in (0.0, 1.0):
        assert mlp(activation="smooth", gamma=gamma).gamma == gamma


def test_selected_runs_come_in_the_order_asked_for():
    network, x = mlp(), inputs(9, 5)
    part = network.select([2, 0])
    assert part.seeds == (4, 3) and part.num_runs == 2 and part.sizes == network.sizes
    torch.testing.assert_close(part(x), network(x)[[2, 0]], rtol=1e-12, atol=1e-12)
    network, x = resnet().eval(), inputs(4, 2, 8, 8)
    part = network.select([1, 0])
    assert part.seeds == (1, 3) and len(part.backbones) == 2
    torch.testing.assert_close(part(x), network(x)[[1, 0]], rtol=1e-10, atol=1e-12)


# --- refusals


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mlp(num_linear=0), "num_linear must be >= 1 and num_nonlinear >= 0; got 0 and 2"),
        (lambda: mlp(num_nonlinear=-1), "num_linear must be >= 1 and num_nonlinear >= 0; got 2 and -1"),
        (lambda: mlp(activation="tanh"), "activation must be 'relu' or 'smooth'; got 'tanh'"),
        (lambda: mlp(widths=(4, 4)), "widths must hold 3 hidden widths; got 2: (4, 4)"),
        (lambda: MLP(5, 1, num_nonlinear=1, num_linear=2), "num_classes must be at least 2; got 1"),
        (lambda: mlp(activation="smooth", gamma=1.1), "gamma must be in [0, 1]; got 1.1"),
        (lambda: mlp().run(3), "run must be in 0..2; got 3"),
        (lambda: mlp().sequential(-1), "run must be in 0..2; got -1"),
        (lambda: mlp()(inputs(9, 4)), "x must be (N, 5) or (R, N, 5); got (9, 4)"),
        (lambda: resnet(num_linear=0), "num_linear must be >= 1"),
        (lambda: resnet().run(2), "run must be in 0..1; got 2"),
        (lambda: resnet()(inputs(4, 3, 8, 8)), "x must be (N, 2, H, W); got (4, 3, 8, 8)"),
        (lambda: resnet()(inputs(4, 2)), "x must be (N, 2, H, W); got (4, 2)"),
    ],
)
def test_refusals(call, words):
    with pytest.raises(ValueError) as caught:
        call()
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mlp(width=0), r"layer sizes must be integers of at least 1; got \(5, 0, 0, 0, 3\)"),
        (lambda: mlp(widths=(4, -2, 4)), r"layer sizes must be integers of at least 1; got \(5, 4, -2, 4, 3\)"),
        (lambda: MLP(0, 3, num_nonlinear=0, num_linear=1), r"layer sizes must be integers of at least 1; got \(0, 3\)"),
        (lambda: resnet(width=0), r"layer sizes must be integers of at least 1; got \(64, 0, 0, 3\)"),
        (lambda: MLP(5, 1, num_nonlinear=0, num_linear=1), "num_classes must be at least 2; got 1"),
        (lambda: mlp(num_linear=-1), "num_linear must be >= 1 and num_nonlinear >= 0; got -1 and 2"),
        (lambda: mlp(num_linear=4, num_nonlinear=-2), "num_linear must be >= 1 and num_nonlinear >= 0; got 4 and -2"),
        (lambda: mlp(widths=(4, 4, 4, 4)), r"widths must hold 3 hidden widths; got 4: \(4, 4, 4, 4\)"),
        (lambda: mlp(seeds=()), r"seeds must be a tuple of at least one seed; got \(\)"),
        (lambda: resnet(seeds=()), r"seeds must be a tuple of at least one seed; got \(\)"),
        (lambda: mlp(gamma=-0.1), r"gamma must be in \[0, 1\]; got -0.1"),
        (lambda: mlp(gamma=-1.0), r"gamma must be in \[0, 1\]; got -1.0"),
        (lambda: mlp(gamma=2.0), r"gamma must be in \[0, 1\]; got 2.0"),
        (lambda: mlp(dtype=torch.int64), "dtype must be a floating point dtype; got torch.int64"),
        (lambda: mlp(activation="gelu"), "activation must be 'relu' or 'smooth'; got 'gelu'"),
        (lambda: mlp().run(7), r"run must be in 0\.\.2; got 7"),
        (lambda: mlp().select([0, -2]), r"run must be in 0\.\.2; got -2"),
        (lambda: resnet().sequential(2), r"run must be in 0\.\.1; got 2"),
        (lambda: mlp()(inputs(9, 6)), r"x must be \(N, 5\) or \(R, N, 5\); got \(9, 6\)"),
        (lambda: mlp()(inputs(3, 9, 4)), r"x must be \(N, 5\) or \(R, N, 5\); got \(3, 9, 4\)"),
        (lambda: mlp()(inputs(5)), r"x must be \(N, 5\) or \(R, N, 5\); got \(5,\)"),
        (lambda: mlp()(inputs(1, 3, 9, 5)), r"x must be \(N, 5\) or \(R, N, 5\); got \(1, 3, 9, 5\)"),
        (lambda: resnet()(inputs(4, 1, 8, 8)), r"x must be \(N, 2, H, W\); got \(4, 1, 8, 8\)"),
        (lambda: resnet()(inputs(4, 2, 8)), r"x must be \(N, 2, H, W\); got \(4, 2, 8\)"),
        (lambda: resnet()(inputs(4, 2, 1, 8, 8)), r"x must be \(N, 2, H, W\); got \(4, 2, 1, 8, 8\)"),
        (lambda: ResNet20(0, 3, num_linear=1), "in_channels must be at least 1; got 0"),
    ],
)
def test_values_out_of_range_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: mlp(width=6.0), "width must be an integer; got 6.0"),
        (lambda: resnet(width=6.0), "width must be an integer; got 6.0"),
        (lambda: mlp(seeds=3), "seeds must be a sequence; got 3"),
        (lambda: mlp().run(1.0), "run must be an integer; got 1.0"),
        (lambda: mlp().select(1), "runs must be a sequence; got 1"),
        (lambda: mlp().select([1.0]), r"runs\[0\] must be an integer; got 1.0"),
        (lambda: mlp().sequential(1.0), "run must be an integer; got 1.0"),
        (lambda: resnet().sequential(1.0), "run must be an integer; got 1.0"),
        (lambda: mlp().layers([1.0]), "x must be a tensor or array; got"),
        (lambda: resnet().layers([1.0]), "x must be a tensor or array; got"),
        (lambda: mlp().layers(inputs(9, 5).numpy()), "x must be a tensor of the weights' torch.float64; got ndarray"),
        (lambda: mlp().layers(inputs(9, 5).float()), "x must be a tensor of the weights' torch.float64; got"),
        (
            lambda: mlp(dtype=torch.float32).layers(inputs(9, 5)),
            "x must be a tensor of the weights' torch.float32; got",
        ),
    ],
)
def test_values_of_another_type_are_refused(call, words):
    with pytest.raises(TypeError, match=words):
        call()
