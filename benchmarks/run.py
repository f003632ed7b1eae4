"""Side-by-side timings, printed as ratios and written to _build/bench.json as they come.

    python benchmarks/run.py                      everything that this machine can run (a few minutes)
    python benchmarks/run.py --sections step      one section: step, metrics, sweep, gpu
    python benchmarks/run.py --tiny               seconds, to see that it works; the numbers mean nothing

Every comparison runs its contestants in turn, in one process, and keeps the best of many rounds: what one of them gets
from a busy machine, the others get too. One-thread timings count the process's own processor time, which a busy
neighbour does not lengthen; those of the sweep on several cores and on the GPU are wall time. Two references:

- *DataLoader loop*: what a user would write, `nn.Sequential` + `DataLoader` + `torch.optim.SGD`;
- *in-memory loop*: the same without the `DataLoader`, batches indexed out of one tensor.

The machine's sgemm rate is that of a large square product, measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch; worker processes inherit it
os.environ.setdefault("MKL_NUM_THREADS", "1")

import torch
from baselines import in_memory, with_dataloader

import ncutils
from ncutils import data as datasets
from ncutils import training
from ncutils.networks import MLP, ResNet20
from ncutils.training import TrainingConfig, step_flops

ROOT = Path(__file__).resolve().parents[1]
LR, DECAY = 1e-3, 1.8e-3
SECTIONS = ("step", "metrics", "sweep", "gpu")


@dataclass(frozen=True)
class Sizes:
    """How much to run."""

    rounds: int = 25
    steps: int = 30  # a contestant's turn
    square: int = 1024  # of the reference product
    widths: tuple[tuple[int, int], ...] = ((64, 128), (128, 128), (256, 128), (256, 1000))  # (width, batch)
    per_class: int = 400
    sweep_depths: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
    sweep_runs: int = 2
    sweep_steps: int = 400
    gpu_runs: int = 50
    gpu_samples: int = 60_000
    images: int = 50_000
    side: int = 32


TINY = Sizes(
    rounds=1,
    steps=2,
    square=64,
    widths=((8, 16),),
    per_class=10,
    sweep_depths=(1,),
    sweep_runs=1,
    sweep_steps=3,
    gpu_runs=2,
    gpu_samples=64,
    images=8,
    side=8,
)


# --- contestants: each takes so many steps


def taking(program) -> Callable[[int], None]:
    """A generator that takes one step each `next`, as a function."""

    def steps(count: int) -> None:
        for _ in range(count):
            next(program)

    return steps


def dataloader_loop(network, data, batch: int) -> Callable[[int], None]:
    return taking(with_dataloader(network.sequential(0), data, config_of(batch)))


def in_memory_loop(network, data, batch: int) -> Callable[[int], None]:
    return taking(in_memory(network.sequential(0), data, config_of(batch)))


def config_of(batch: int, precision: str = "float32") -> TrainingConfig:
    """A step size so small that no contestant can diverge."""
    return TrainingConfig(10**9, LR, DECAY, batch_size=batch, warmup_steps=0, precision=precision)


def our_steps(network, data, batch: int, precision: str = "float32") -> Callable[[int], None]:
    """The trainer that `train` drives, without its measurements."""
    runs = network.num_runs
    trainer, taken = training._trainer(network, data, config_of(batch, precision), [LR] * runs, [DECAY] * runs), 0

    def steps(count: int) -> None:
        nonlocal taken
        for step in range(taken, taken + count):
            trainer.step(step)
        taken += count

    return steps


def products_alone(network, data, batch: int) -> Callable[[int], None]:
    """The matrix products of our step without anything between them: the shapes' own limit on this machine."""
    trainer, calls = training._trainer(network, data, config_of(batch), [LR], [DECAY]), []
    mm, accumulate = trainer.mm, trainer.accumulate
    trainer.mm = lambda a, b, out: (calls.append(lambda: mm(a, b, out=out)), mm(a, b, out=out))
    trainer.accumulate = lambda v, a, b, **scales: (
        calls.append(lambda: accumulate(v, a, b, **scales)),
        accumulate(v, a, b, **scales),
    )
    trainer.step(0)

    def steps(count: int) -> None:
        for _ in range(count):
            for call in calls:
                call()

    return steps


def square_product(size: int, device="cpu") -> Callable[[int], None]:
    a, b, c = (torch.randn(size, size, device=device) for _ in range(3))

    def steps(count: int) -> None:
        for _ in range(count):
            torch.mm(a, b, out=c)

    return steps


def race(contestants: dict[str, tuple[Callable[[int], None], int]], rounds: int, clock=time.process_time) -> dict:
    """Seconds a step of each contestant, best of ``rounds``, taking turns."""
    best = dict.fromkeys(contestants, float("inf"))
    for steps, _ in contestants.values():
        steps(2)
    for _ in range(rounds):
        for name, (steps, count) in contestants.items():
            start = clock()
            steps(count)
            best[name] = min(best[name], (clock() - start) / count)
    return best


# --- sections


def mlp(width: int, inputs: int, linear: int = 4, nonlinear: int = 5, **options) -> MLP:
    return MLP(inputs, 10, num_nonlinear=nonlinear, num_linear=linear, width=width, **options)


def step_section(sizes: Sizes, report: Report) -> None:
    data = datasets.load("mnist5k", per_class=sizes.per_class).flat()
    report.title(
        f"One step, one thread: {len(data):,} digits, 5 ReLU + 4 linear layers, and 8 + 1",
        ("net", "width", "batch", "ours ms", "/ DataLoader", "/ in memory", "GF/s", "% of it", "limit", "% plain"),
    )
    for (width, batch), (nonlinear, linear) in [(w, n) for n in ((5, 4), (8, 1)) for w in sizes.widths]:
        batch = min(batch, len(data))
        make = lambda width=width, l=linear, n=nonlinear: mlp(width, data.x.shape[1], l, n)  # noqa: E731
        fewer = max(2, sizes.steps * 64 * 128 // (width * batch))
        seconds = race(
            {
                "sgemm": (square_product(sizes.square), 1),
                "ours": (our_steps(make(), data, batch), fewer),
                "products": (products_alone(make(), data, batch), fewer),
                "memory": (in_memory_loop(make(), data, batch), fewer),
                "loader": (dataloader_loop(make(), data, batch), fewer),
            },
            sizes.rounds,
        )
        rate = 2 * sizes.square**3 / seconds["sgemm"]
        work = step_flops(make().sizes, nonlinear, batch)
        plain = step_flops(make().sizes, nonlinear, batch, layer_by_layer=True)
        report.row(
            "step",
            {
                "net": f"{nonlinear}+{linear}",
                "width": width,
                "batch": batch,
                "ours_ms": 1e3 * seconds["ours"],
                "times_dataloader": seconds["loader"] / seconds["ours"],
                "times_in_memory": seconds["memory"] / seconds["ours"],
                "sgemm_gflops": rate / 1e9,
                # What it computes, against the machine at large products, and the same for its products alone;
                # and what plain back-propagation would have computed.
                "percent_of_sgemm": 100 * work / seconds["ours"] / rate,
                "percent_products": 100 * work / seconds["products"] / rate,
                "percent_plain": 100 * plain / seconds["ours"] / rate,
            },
        )
    report.note(
        "% of it: operations done, over time, against sgemm. limit: the same for the step's matrix products alone, "
        "nothing between them; small products run slower than large ones. % plain: operations that layer-by-layer "
        "back-propagation needs for the same step; above 100 the step is faster than any such program could be."
    )


def metrics_section(sizes: Sizes, report: Report) -> None:
    data = datasets.load("mnist5k", per_class=min(100, sizes.per_class)).flat()
    report.title(
        f"Share of the metrics in a run: {len(data):,} digits, batch 100, 20 measurements",
        ("width", "steps", "step ms", "measurement ms", "share %"),
    )
    for width in sorted({width for width, _ in sizes.widths}):
        network = mlp(width, data.x.shape[1])

        def measure(count: int, network=network) -> None:
            for _ in range(count):
                training.measure_layers(network, data, 0)

        contestants = {"step": (our_steps(network, data, min(100, len(data))), sizes.steps), "measure": (measure, 1)}
        seconds = race(contestants, sizes.rounds)
        for steps in (10_000, 4_000):
            metrics = 20 * seconds["measure"]
            share = 100 * metrics / (metrics + steps * seconds["step"])
            row = {"width": width, "steps": steps, "step_ms": 1e3 * seconds["step"]}
            report.row("metrics", row | {"measurement_ms": 1e3 * seconds["measure"], "share_percent": share})


def sweep_cell(linear: int, seeds: tuple[int, ...], steps: int, per_class: int) -> None:
    data = datasets.load("mnist5k", per_class=per_class).flat()
    network = mlp(64, data.x.shape[1], linear, seeds=seeds)
    config = TrainingConfig(steps, lr=LR, weight_decay=DECAY, batch_size=min(128, len(data)))
    training.train(network, data, config, measure=None, progress=False)


def sweep_section(sizes: Sizes, report: Report) -> None:
    from joblib import Parallel, delayed

    data = datasets.load("mnist5k", per_class=sizes.per_class).flat()
    batch = min(128, len(data))
    cores = os.cpu_count() or 1
    seeds = tuple(range(sizes.sweep_runs))
    report.title(
        f"A whole sweep, wall time on {cores} cores: heads of {sizes.sweep_depths} layers x {len(seeds)} runs x "
        f"{sizes.sweep_steps} steps, {len(data):,} digits, width 64, batch {batch}",
        ("program", "seconds", "times ours", "processes", "threads each"),
    )

    def users_loop(threads: int) -> float:
        torch.set_num_threads(threads)
        start = time.perf_counter()
        for linear in sizes.sweep_depths:
            for seed in seeds:
                dataloader_loop(mlp(64, data.x.shape[1], linear, seeds=(seed,)), data, batch)(sizes.sweep_steps)
        torch.set_num_threads(1)
        return time.perf_counter() - start

    with Parallel(n_jobs=cores) as pool:

        def ours() -> float:
            start = time.perf_counter()
            pool(delayed(sweep_cell)(m, seeds, sizes.sweep_steps, sizes.per_class) for m in sizes.sweep_depths[::-1])
            return time.perf_counter() - start

        # Workers start, torch imports what it imports on first use: nobody's race.
        pool(delayed(sweep_cell)(1, (0,), 1, sizes.per_class) for _ in range(2 * cores))
        dataloader_loop(mlp(64, data.x.shape[1]), data, batch)(2)
        best: dict[tuple, float] = {}
        for _ in range(max(1, sizes.rounds // 8)):
            turns = [("ours", ours, cores, 1), ("DataLoader loop", lambda: users_loop(1), 1, 1)]
            if cores > 1:
                turns.append(("DataLoader loop", lambda: users_loop(cores), 1, cores))
            for name, run, processes, threads in turns:
                key = (name, processes, threads)
                best[key] = min(best.get(key, float("inf")), run())
    base = next(iter(best.values()))
    for (name, processes, threads), seconds in best.items():
        row = {"program": name, "seconds": seconds, "times_ours": seconds / base, "processes": processes}
        report.row("sweep", row | {"threads_each": threads})
    report.note("Training alone, every run of it; the workers had been started before.")


def gpu_section(sizes: Sizes, report: Report) -> None:
    if not torch.cuda.is_available():
        report.note("gpu: no CUDA device here, nothing run")
        return
    cuda(sizes, report, torch.device("cuda"))


def cuda(sizes: Sizes, report: Report, device: torch.device) -> None:
    """Numbers of the right shape stand in for the data sets: what they hold does not change what a step costs."""

    def clock() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    generator = torch.Generator().manual_seed(0)
    samples, runs = sizes.gpu_samples, sizes.gpu_runs
    x = torch.randn(samples, 784, generator=generator)
    data = datasets.Classification(x.to(device), (torch.arange(samples) % 10).to(device), 10, "noise")
    batch, epochs, total = min(128, samples), 200, 0.0
    rounds = max(1, sizes.rounds // 5)
    report.title(
        f"GPU: MLP of width 64, batch {batch}, {samples:,} x 784, {runs} runs as one program",
        ("linear layers", "ms a step", "us a run-step", "loop us", "times", "measurement s", "200 epochs s"),
    )
    for linear in (1, 2, 3, 4, 5, 6):
        network = mlp(64, 784, linear, seeds=tuple(range(runs)), device=device)
        contestants = {
            "ours": (our_steps(network, data, batch), 10 * sizes.steps),
            "loop": (in_memory_loop(mlp(64, 784, linear, device=device), data, batch), sizes.steps),
        }
        seconds = race(contestants, rounds, clock)
        start = clock()
        training.measure_layers(network, data, 0)
        measurement = clock() - start
        whole = epochs * (samples // batch) * seconds["ours"] + 20 * measurement
        total += whole
        row = {"linear": linear, "ms_a_step": 1e3 * seconds["ours"], "us_a_run_step": 1e6 * seconds["ours"] / runs}
        row |= {"loop_us": 1e6 * seconds["loop"], "times": runs * seconds["loop"] / seconds["ours"]}
        report.row("gpu_mlp", row | {"measurement_s": measurement, "cell_s": whole})
    report.row("gpu_figure_2", {"runs": 6 * runs, "epochs": epochs, "extrapolated_minutes": total / 60}, show=False)
    report.note(f"Figure 2, upper row, {6 * runs} runs x {epochs} epochs and 20 measurements: {total / 60:.1f} minutes")

    images = sizes.images
    x = torch.randn(images, 3, sizes.side, sizes.side, generator=generator)
    data = datasets.Classification(x.to(device), (torch.arange(images) % 10).to(device), 10, "noise")
    report.title(
        f"GPU: ResNet20, {images:,} images of {sizes.side} x {sizes.side}",
        ("batch", "program", "precision", "ms a step", "epoch s"),
    )
    for batch in (128, 512):
        batch = min(batch, images)
        make = lambda: ResNet20(3, 10, num_linear=3, device=device)  # noqa: E731
        contestants = {
            ("ours", "float32"): (our_steps(make(), data, batch), sizes.steps),
            ("ours", "bfloat16"): (our_steps(make(), data, batch, "bfloat16"), sizes.steps),
            ("in-memory loop", "float32"): (in_memory_loop(make(), data, batch), sizes.steps),
        }
        for (program, precision), seconds in race(contestants, rounds, clock).items():
            row = {"batch": batch, "program": program, "precision": precision, "ms_a_step": 1e3 * seconds}
            report.row("gpu_resnet20", row | {"epoch_s": seconds * (images // batch)})


# --- the report


class Report:
    """Prints rows under their headings and keeps all of them in a file that is complete after every row."""

    def __init__(self, path: Path | None):
        self.path = path
        self.results: dict = {"machine": machine(), "rows": {}}
        print(", ".join(f"{k} {v}" for k, v in self.results["machine"].items()), flush=True)

    def title(self, text: str, columns: tuple[str, ...]) -> None:
        self.widths = [max(8, len(c)) for c in columns]
        print(f"\n{text}\n" + "  ".join(c.rjust(w) for c, w in zip(columns, self.widths, strict=True)), flush=True)

    def row(self, section: str, values: dict, show: bool = True) -> None:
        self.results["rows"].setdefault(section, []).append(values)
        if show:
            cells = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in values.values()]
            print("  ".join(c.rjust(w) for c, w in zip(cells, self.widths, strict=True)), flush=True)
        self.write()

    def note(self, text: str) -> None:
        self.results.setdefault("notes", []).append(text)
        print(text, flush=True)
        self.write()

    def write(self) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(json.dumps(self.results, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, self.path)


def machine() -> dict:
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    load = round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None
    found = {"processor": name, "cores": os.cpu_count(), "load": load, "torch": torch.__version__}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found | {"ncutils": ncutils.__version__}


def main(arguments: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    parser.add_argument("--rounds", type=int, help="turns of each contestant; more find the quiet moments")
    parser.add_argument("--tiny", action="store_true", help="smallest sizes")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "bench.json")
    options = parser.parse_args(arguments)
    sizes = TINY if options.tiny else Sizes(**({"rounds": options.rounds} if options.rounds else {}))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report = Report(options.out)
        for section in SECTIONS:
            if section in options.sections:
                globals()[f"{section}_section"](sizes, report)
    finally:
        torch.set_num_threads(threads)
    return report.results


if __name__ == "__main__":
    main()
