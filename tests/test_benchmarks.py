"""The benchmark runs and compares programs that do the same; nothing here asserts a time."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
import run
from baselines import in_memory, with_dataloader

from ncutils import data, networks, training


def test_the_benchmark_runs_and_writes_every_section(tmp_path, capsys):
    threads = torch.get_num_threads()
    try:
        path = run.main(["--quick", "--out", str(tmp_path / "bench.json")])
    finally:
        torch.set_num_threads(threads)
    found = json.loads(path.read_text())
    assert found["machine"]["quick"] and {"step", "sweep", "metrics"} <= found.keys()
    assert "of sgemm" in capsys.readouterr().out


def test_flops_of_one_layer_by_hand():
    # forward and weight gradient of a first layer: 2 products of 2*B*in*out; one more in every later layer
    assert run.flops_per_step((5, 3), batch=7) == 2 * 2 * 7 * 5 * 3
    assert run.flops_per_step((5, 3, 2), batch=7) == 2 * 2 * 7 * 5 * 3 + 3 * 2 * 7 * 3 * 2


@pytest.mark.parametrize("program", [with_dataloader, in_memory])
def test_baselines_train_what_the_library_trains(program):
    samples = data.gaussian(4, num_classes=3, dim=5, dtype=torch.float64)
    network = networks.MLP(5, 3, num_nonlinear=2, num_linear=2, width=6, dtype=torch.float64)
    model = network.sequential()
    # one batch of all samples: the order that each program draws does not matter
    config = training.TrainingConfig(steps=4, lr=0.1, weight_decay=0.01, batch_size=12, warmup_steps=0, drop_at=1.0)
    training.train(network, samples, config, measure=None, progress=False)
    steps = program(model, samples, config)
    for _ in range(4):
        next(steps)
    theirs = [module.weight for module in model if hasattr(module, "weight")]
    for ours, other in zip(network.weights, theirs, strict=True):
        torch.testing.assert_close(ours[0], other, rtol=1e-12, atol=1e-13)
