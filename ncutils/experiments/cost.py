"""What a run will take on this machine, estimated without running it."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ncutils import _files, fetch, training
from ncutils._arguments import checked, number
from ncutils.data import Dataset
from ncutils.experiments import custom, jobs
from ncutils.experiments.jobs import Job
from ncutils.experiments.run import checked_device, device_name, resolve
from ncutils.experiments.specification import Specification
from ncutils.networks import MLP


@dataclass(frozen=True)
class Cost:
    """What a run will take; ``seconds`` are those of one worker on this machine's device, jobs on disk left out.

    Example:
        >>> print(Cost("1", "quick", "CPU", 3, 0, 3, 15000, 4.5e11, 12.0))
        figure 1, profile quick: 3 runs in 3 jobs (0 on disk), 15,000 training steps, 4.5e+11 flop,
        about 12 s of one worker (CPU)
    """

    figure: str
    profile: str
    device: str
    jobs: int
    jobs_on_disk: int
    runs: int
    run_steps: int
    flops: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"figure {self.figure}, profile {self.profile}: {self.runs} runs in {self.jobs} jobs "
            f"({self.jobs_on_disk} on disk), {self.run_steps:,} training steps, {self.flops:.1e} flop, "
            f"about {duration(self.seconds)} of one worker ({self.device})"
        )


def cost(figure: str | Specification, profile: str | None = None, device: str | None = None) -> Cost:
    """Estimate a run by timing a few steps and one measurement of each of its networks, on noise of the data's shape.

    A data set need not have been fetched; then no job counts as being on disk, and every pixel counts.

    Raises:
        ValueError: as :func:`run`.

    Example:
        >>> from ncutils.experiments import specification
        >>> estimate = cost(specification("1").but(seeds=1, samples=200))
        >>> estimate.runs, estimate.jobs, estimate.run_steps
        (1, 1, 1000)
    """
    spec = resolve(figure, profile)
    device = checked_device(device)
    every, folder = spec.jobs(device), _files.cache_dir()
    left = [job for job in every if not _on_disk(job, folder)]
    seconds, flops = 0.0, 0.0
    known: dict[tuple, tuple[float, float]] = {}
    for job in every:
        kind = (job.network, len(job.seeds))
        if kind not in known:
            known[kind] = _job_seconds(job), _step_flops(job) * job.steps * len(job.seeds)
        seconds += known[kind][0] * (job in left)
        flops += known[kind][1]
    steps = spec.runs * spec.steps
    return Cost(
        spec.figure,
        spec.profile,
        device_name(device),
        len(every),
        len(every) - len(left),
        spec.runs,
        steps,
        flops,
        seconds,
    )


def _on_disk(job: Job, folder: Path | None) -> bool:
    try:
        return jobs.read(folder, job.key()) is not None
    except FileNotFoundError:  # the data, whose checksum is part of the key
        return False


def _noise(job: Job, samples: int) -> Dataset:
    """Data of the job's shape and of no content."""
    try:
        train, _ = job.load()
        shape, classes, like = train.x.shape[1:], train.num_classes, train.x
    except FileNotFoundError:
        channels, height, width = fetch.KNOWN[str(job.data.source)].shape
        shape = torch.Size((channels, job.data.size or height, job.data.size or width))
        shape = torch.Size((shape.numel(),)) if job.network.kind == "mlp" else shape
        classes, like = 10, torch.zeros(0, dtype=job.dtype, device=job.device)
    x = torch.randn((samples, *shape), generator=torch.Generator().manual_seed(0)).to(like)
    return Dataset(x, torch.arange(samples, device=x.device) % classes, classes, "noise")


def _job_seconds(job: Job) -> float:
    noise = _noise(job, max(2 * (job.training.batch_size or job.data.count), 500))
    with custom.undisturbed(job.dtype):
        network = job.build(noise)
    # The step size is irrelevant for the time and zero keeps the weights finite.
    config = replace(job.config, steps=2, epochs=None, lr=0.0)

    def seconds(steps: int) -> float:
        how = replace(config, steps=steps)
        if job.own:
            return custom.train(replace(job, training=how), noise, {}).seconds
        return training.train(network, noise, how, measure=None, progress=False).seconds

    with jobs.one_thread(job.device):
        seconds(2)  # warm: buffers, kernels, a CUDA graph
        steps, spent = 1, 0.0
        while spent < 0.2:
            steps *= 2
            spent = seconds(steps)
        start = time.perf_counter()
        with custom.undisturbed(job.dtype):
            job.measure(network, noise, 0, {"train": noise})
        measure = (time.perf_counter() - start) / len(noise)
    measured = (job.data.measured or job.data.count) + job.data.test_samples
    return spent / steps * job.steps + measure * measured * len(training.measurement_steps(job.config))


def _step_flops(job: Job) -> float:
    """Of one run; a ResNet20's are counted by PyTorch, in a forward and a backward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    one = replace(job, seeds=job.seeds[:1], device="cpu")
    noise = _noise(one, job.training.batch_size or job.data.count)
    with custom.undisturbed(job.dtype):
        network = one.build(noise)
        if isinstance(network, MLP):
            return training.step_flops(network.sizes, network.num_nonlinear, len(noise))
        with FlopCounterMode(display=False) as counter:
            network(noise.x).sum().backward()
    return counter.get_total_flops()


@checked(seconds=number(least=0, finite=True))
def duration(seconds: float) -> str:
    """A time in the unit that fits it, e.g. ``"1.6 h"``.

    Example:
        >>> duration(59.7), duration(5760), duration(172800)
        ('60 s', '1.6 h', '2.0 days')
    """
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
