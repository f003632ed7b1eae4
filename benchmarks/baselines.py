"""What a user would write: the two programs that `benchmarks/run.py` compares the library with."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.utils.data import DataLoader, TensorDataset


def _optimizer(model: nn.Module, config) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)


def _update(model, optimizer, x, y) -> None:
    optimizer.zero_grad()
    loss = (model(x) - y).square().sum() / (2 * len(x))
    loss.backward()
    optimizer.step()


def with_dataloader(model: nn.Sequential, data, config):
    """(a) `nn.Sequential`, `DataLoader` and `torch.optim.SGD`: a generator, one step each `next`."""
    samples = TensorDataset(data.x, one_hot(data.y, data.num_classes).to(data.x.dtype))
    loader = DataLoader(samples, batch_size=config.batch_size, shuffle=True, drop_last=True)
    optimizer = _optimizer(model, config)
    while True:
        for x, y in loader:
            yield _update(model, optimizer, x, y)


def in_memory(model: nn.Sequential, data, config):
    """(b) the same with the batches cut from tensors in memory."""
    targets = one_hot(data.y, data.num_classes).to(data.x.dtype)
    optimizer = _optimizer(model, config)
    while True:
        for index in torch.randperm(len(data), device=data.x.device).split(config.batch_size):
            if len(index) == config.batch_size:
                yield _update(model, optimizer, data.x[index], targets[index])
