"""Bias-free networks that end in linear layers; many runs live side by side in one object.

An :class:`MLP` stacks the weights of R independent runs as ``(R, out, in)``, so that one batched matrix product
serves all of them. A :class:`ResNet20` keeps one convolutional backbone a run and stacks the dense layers behind it.
Both return the features of every dense layer, which is all that the metrics and the theorems look at. The networks are
those of arXiv:2410.04887, Section 2: L1 layers with an activation, then L2 >= 2 without, no biases.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ncutils._arguments import checked, integer, many, number, shown, tensor

__all__ = ["MLP", "Layers", "ResNet20", "Smooth", "smooth", "smooth_derivative"]


class Layers(NamedTuple):
    """Features of the dense layers l = 1..L, each ``(R, N, n_l)``; ``post[-1]`` is the network's output.

    Example:
        >>> network = MLP(4, 2, num_nonlinear=1, num_linear=2, width=3)
        >>> layers = network.layers(torch.ones(5, 4))
        >>> [tuple(z.shape) for z in layers.pre], bool((layers.post[0] == layers.pre[0].relu()).all())
        ([(1, 5, 3), (1, 5, 3), (1, 5, 2)], True)
    """

    pre: list[Tensor]
    post: list[Tensor]


@checked(x=tensor, gamma=number(finite=True, most=1e18))
def smooth(x: Tensor, gamma: float) -> Tensor:
    """An activation that meets Assumption 4.2: slope between ``gamma`` and 1, Lipschitz slope, 0 at 0.

    Example:
        >>> smooth(torch.tensor([-100.0, 0.0, 100.0], dtype=torch.float64), 0.5)
        tensor([-50.2488,   0.0000,  99.7512], dtype=torch.float64)
    """
    return gamma * x + (1 - gamma) * (x + (x.square() + 1).sqrt() - 1) / 2


@checked(x=tensor, gamma=number(finite=True, most=1e18))
def smooth_derivative(x: Tensor, gamma: float) -> Tensor:
    """Derivative of :func:`smooth`.

    Example:
        >>> smooth_derivative(torch.tensor([-100.0, 0.0, 100.0]), 0.5).round(decimals=3).tolist()
        [0.5, 0.75, 1.0]
    """
    return gamma + (1 - gamma) * (1 + x / (x.square() + 1).sqrt()) / 2


class Smooth(nn.Module):
    """:func:`smooth` as a module, for networks handed out by ``sequential``.

    Example:
        >>> Smooth(0.5)(torch.tensor([-100.0, 0.0, 100.0])).tolist()
        [-50.248748779296875, 0.0, 99.75125122070312]
    """

    def __init__(self, gamma: float):
        super().__init__()
        self.gamma = gamma

    def forward(self, x: Tensor) -> Tensor:
        return smooth(x, self.gamma)


class _DenseStack(nn.Module):
    """What the two networks share: L stacked dense layers, ``num_nonlinear`` with an activation, then linear ones."""

    def __init__(self, sizes, num_nonlinear, num_linear, activation, gamma, seeds, dtype, device):
        super().__init__()
        if num_linear < 1 or num_nonlinear < 0:
            raise ValueError(f"num_linear must be >= 1 and num_nonlinear >= 0; got {num_linear} and {num_nonlinear}")
        for size in sizes:
            if not isinstance(size, int) or size < 1:
                raise ValueError(f"layer sizes must be integers of at least 1; got {tuple(sizes)}")
        if sizes[-1] < 2:
            raise ValueError(f"num_classes must be at least 2; got {sizes[-1]}")
        if isinstance(seeds, int) or not len(tuple(seeds)):
            raise ValueError(f"seeds must be a tuple of at least one seed; got {seeds!r}")
        if not 0 <= gamma <= 1:
            raise ValueError(f"gamma must be in [0, 1]; got {gamma}")
        if not dtype.is_floating_point:
            raise ValueError(f"dtype must be a floating point type; got {dtype}")
        if activation not in ("relu", "smooth"):
            raise ValueError(f"activation must be 'relu' or 'smooth'; got {activation!r}")
        self.sizes = tuple(sizes)
        self.num_nonlinear, self.num_linear = num_nonlinear, num_linear
        self.activation, self.gamma = activation, gamma
        # Kaiming initialisation: variance gain / fan_in keeps the size of the signal through a layer with that gain.
        # Drawn in float64 on the CPU, so that one seed means one network whatever the precision and the device.
        self.seeds = tuple(seeds)
        generators = [torch.Generator().manual_seed(seed) for seed in self.seeds]
        gain = 2.0 if activation == "relu" else 2 / (1 + gamma**2)
        self.weights = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            std = math.sqrt((gain if layer < num_nonlinear else 1.0) / fan_in)
            stacked = [torch.randn(fan_out, fan_in, generator=g, dtype=torch.float64) * std for g in generators]
            self.weights.append(nn.Parameter(torch.stack(stacked).to(device, dtype)))

    @property
    def num_layers(self) -> int:
        return self.num_nonlinear + self.num_linear

    @property
    def num_runs(self) -> int:
        return self.weights[0].shape[0]

    @property
    def head(self) -> list[Tensor]:
        """The linear layers W_{L1+1}, ..., W_L, each ``(R, out, in)``."""
        return list(self.weights)[self.num_nonlinear :]

    def activate(self, x: Tensor) -> Tensor:
        return torch.relu(x) if self.activation == "relu" else smooth(x, self.gamma)

    def layers(self, x: Tensor) -> Layers:
        raise NotImplementedError

    def _dense_layers(self, z: Tensor) -> Layers:
        pre, post = [], []
        for index, weight in enumerate(self.weights):
            pre.append(z @ weight.mT)
            z = self.activate(pre[-1]) if index < self.num_nonlinear else pre[-1]
            post.append(z)
        return Layers(pre, post)

    @checked()
    def forward(self, x: Tensor) -> Tensor:
        """Outputs ``(R, N, K)`` for inputs ``(N, ...)`` shared by all runs."""
        return self.layers(x).post[-1]

    @checked(runs=many(integer()))
    def select(self, runs: list[int]):
        """A copy that holds these runs only."""
        for run in runs:
            self._check_run(run)
        part = copy.copy(self)
        part.__dict__ = {**self.__dict__, "_modules": {}, "seeds": tuple(self.seeds[run] for run in runs)}
        part.weights = nn.ParameterList(nn.Parameter(w.data[list(runs)].clone()) for w in self.weights)
        return part

    @checked()
    def run(self, run: int):
        """A copy that holds one run only."""
        return self.select([run])

    def _check_run(self, run: int) -> None:
        if not 0 <= run < self.num_runs:
            raise ValueError(f"run must be in 0..{self.num_runs - 1}; got {run}")

    def _dense_modules(self, run: int) -> list[nn.Module]:
        modules: list[nn.Module] = []
        for index, weight in enumerate(self.weights):
            linear = nn.utils.skip_init(
                nn.Linear,
                weight.shape[2],
                weight.shape[1],
                bias=False,
                device=weight.device,
                dtype=weight.dtype,
            )
            linear.weight.data.copy_(weight.data[run])
            modules.append(linear)
            if index < self.num_nonlinear:
                modules.append(nn.ReLU() if self.activation == "relu" else Smooth(self.gamma))
        return modules


class MLP(_DenseStack):
    """R bias-free multilayer perceptrons: L1 layers with an activation, then L2 linear ones.

    Args:
        input_dim: number of inputs d.
        num_classes: number of outputs K.
        num_nonlinear: L1, layers followed by the activation.
        num_linear: L2, linear layers; the paper's theorems need at least 2.
        width: width of every hidden layer.
        widths: the L-1 hidden widths one by one; replaces ``width``.
        activation: ``"relu"``, or ``"smooth"`` for the activation of Assumption 4.2 with slope at least ``gamma``.
        gamma: least slope of the smooth activation.
        seeds: one seed a run; it fixes the run's initialisation here and its batch order in training.
        dtype: of the weights.
        device: of the weights.

    Raises:
        ValueError: for layer counts, widths or activation names that make no network.

    Example:
        >>> network = MLP(20, 3, num_nonlinear=2, num_linear=2, width=8, seeds=(0, 1))
        >>> network(torch.zeros(5, 20)).shape, [tuple(w.shape) for w in network.weights]
        (torch.Size([2, 5, 3]), [(2, 8, 20), (2, 8, 8), (2, 8, 8), (2, 3, 8)])
        >>> network.sequential(1)
        Sequential(
          (0): Linear(in_features=20, out_features=8, bias=False)
          (1): ReLU()
          (2): Linear(in_features=8, out_features=8, bias=False)
          (3): ReLU()
          (4): Linear(in_features=8, out_features=8, bias=False)
          (5): Linear(in_features=8, out_features=3, bias=False)
        )
    """

    @checked()
    def __init__(
        self,
        input_dim: int,
        num_classes: int,
        *,
        num_nonlinear: int,
        num_linear: int,
        width: int = 64,
        widths: tuple[int, ...] | None = None,
        activation: str = "relu",
        gamma: float = 0.5,
        seeds: tuple[int, ...] = (0,),
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        hidden = num_nonlinear + num_linear - 1
        widths = (width,) * hidden if widths is None else tuple(widths)
        if len(widths) != hidden:
            raise ValueError(f"widths must hold {hidden} hidden widths; got {len(widths)}: {widths}")
        sizes = (input_dim, *widths, num_classes)
        super().__init__(sizes, num_nonlinear, num_linear, activation, gamma, seeds, dtype, device)

    @checked()
    def layers(self, x: Tensor) -> Layers:
        """Every layer's features for ``x`` ``(N, d)`` shared by the runs, or ``(R, N, d)``."""
        if not isinstance(x, Tensor) or x.dtype != self.weights[0].dtype:
            raise TypeError(f"x must be a tensor of the weights' {self.weights[0].dtype}; got {shown(x)}")
        if x.ndim not in (2, 3) or x.shape[-1] != self.sizes[0]:
            raise ValueError(f"x must be (N, {self.sizes[0]}) or (R, N, {self.sizes[0]}); got {tuple(x.shape)}")
        return self._dense_layers(x)

    @checked()
    def sequential(self, run: int = 0) -> nn.Sequential:
        """One run as an ordinary ``nn.Sequential`` of bias-free ``nn.Linear`` layers and activations (a copy)."""
        self._check_run(run)
        return nn.Sequential(*self._dense_modules(run))


class _Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a parameter-free shortcut (He et al. 2016, CIFAR variant A)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        z = torch.relu(self.norm1(self.conv1(x)))
        z = self.norm2(self.conv2(z))
        if self.stride > 1 or self.extra:
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.extra))
        return torch.relu(z + x)


def _backbone(in_channels: int) -> nn.Sequential:
    blocks, channels = [], 16
    for stage in (16, 32, 64):
        for index in range(3):
            blocks.append(_Block(channels, stage, 2 if index == 0 and stage > 16 else 1))
            channels = stage
    stem = [nn.Conv2d(in_channels, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class ResNet20(_DenseStack):
    """R copies of a CIFAR-style ResNet20 backbone, each followed by dense layers that end in a linear head.

    The backbone has 3 stages of 3 blocks with 16, 32 and 64 channels, and batch norm; average pooling gives 64
    features. Behind it stand ``num_nonlinear`` dense ReLU layers and ``num_linear`` linear ones, bias-free, the last
    of which gives the K outputs. Weight decay reaches every weight, the batch-norm scales included.

    Args:
        in_channels: image channels.
        num_classes: number of outputs K.
        num_linear: depth of the linear head.
        num_nonlinear: dense ReLU layers between backbone and head.
        width: width of the hidden dense layers.
        seeds: one seed a run.
        dtype: of all weights.
        device: of all weights.

    Example:
        >>> network = ResNet20(3, 10, num_linear=2, width=32)
        >>> network(torch.zeros(4, 3, 16, 16)).shape, [tuple(w.shape) for w in network.weights]
        (torch.Size([1, 4, 10]), [(1, 32, 64), (1, 10, 32)])
    """

    @checked(in_channels=integer(least=1))
    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_linear: int,
        num_nonlinear: int = 0,
        width: int = 64,
        seeds: tuple[int, ...] = (0,),
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ):
        sizes = (64, *(width,) * (num_nonlinear + num_linear - 1), num_classes)
        super().__init__(sizes, num_nonlinear, num_linear, "relu", 0.0, seeds, dtype, device)
        self.in_channels = in_channels
        self.backbones = nn.ModuleList()
        for seed in self.seeds:
            with torch.random.fork_rng(devices=[]):  # torch's modules draw from the global generator
                torch.manual_seed(seed)
                backbone = _backbone(in_channels).to(dtype)
                for module in backbone.modules():
                    if isinstance(module, nn.Conv2d):
                        # In float64 whatever the dtype: PyTorch draws float32 by the processor's own instructions.
                        drawn = torch.empty(module.weight.shape, dtype=torch.float64)
                        nn.init.kaiming_normal_(drawn, mode="fan_out", nonlinearity="relu")
                        module.weight.data.copy_(drawn)
            self.backbones.append(backbone.to(device).to(memory_format=torch.channels_last))

    @checked()
    def layers(self, x: Tensor) -> Layers:
        """Features of the dense layers for images ``x`` ``(N, C, H, W)``; the backbone's own are not kept."""
        if x.ndim != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"x must be (N, {self.in_channels}, H, W); got {tuple(x.shape)}")
        x = x.contiguous(memory_format=torch.channels_last)
        return self._dense_layers(torch.stack([backbone(x) for backbone in self.backbones]))

    def select(self, runs: list[int]) -> ResNet20:
        part = super().select(runs)
        part.backbones = nn.ModuleList([copy.deepcopy(self.backbones[run]) for run in runs])
        return part

    @checked()
    def sequential(self, run: int = 0) -> nn.Sequential:
        """One run as an ``nn.Sequential``: its backbone, then ``nn.Linear`` layers and activations (a copy)."""
        self._check_run(run)
        return nn.Sequential(copy.deepcopy(self.backbones[run]), *self._dense_modules(run))
