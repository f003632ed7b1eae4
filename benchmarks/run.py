"""Side-by-side timings, printed as ratios: `make bench`, or `python benchmarks/run.py --help`.

Programs that are compared take turns in short blocks within one process, and the best block of each counts: what else
the machine does meanwhile hits all of them alike. Step sizes are tiny, so that no run can diverge and stop early. The
machine's own matrix-product rate is measured the same way. Results go to `_build/bench.json` after every section.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from baselines import in_memory, with_dataloader  # noqa: E402

from ncutils import data, networks, training  # noqa: E402

LAYERS = {"num_nonlinear": 5, "num_linear": 4}


def flops_per_step(sizes, batch: int) -> int:
    """Multiply-adds count twice; three products a layer, two in the first, which sends no error further down."""
    products = [2 * batch * a * b for a, b in itertools.pairwise(sizes)]
    return 3 * sum(products) - products[0]


def best_of(programs: dict, steps: int, repeats: int, synchronize=lambda: None) -> dict[str, float]:
    """Seconds a step of each program: blocks of ``steps`` in turn, the best of ``repeats`` blocks each."""
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(repeats):
        for name, step in programs.items():
            synchronize()
            start = time.perf_counter()
            for _ in range(steps):
                step()
            synchronize()
            best[name] = min(best[name], (time.perf_counter() - start) / steps)
    return best


def gemm_rate(device="cpu", size: int = 1536, repeats: int = 12) -> float:
    """FLOP/s of a large float32 matrix product."""
    a, b = torch.randn(2, size, size, device=device)
    out = torch.empty_like(a)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    return 2 * size**3 / best_of({"gemm": lambda: torch.mm(a, b, out=out)}, 1, repeats, wait)["gemm"]


def stepper(network, samples, config):
    """One step of the library each time it is called."""
    runs = network.num_runs
    trainer = training._trainer(
        network, samples, config, config.per_run("lr", runs), config.per_run("weight_decay", runs)
    )
    steps = itertools.count()
    return lambda: trainer.step(next(steps))


def step_section(widths, batch: int, steps: int, repeats: int) -> list[dict]:
    """The training step, one thread: ours, (a) with a DataLoader, (b) in memory."""
    digits = data.load("mnist5k").flat()
    rows = []
    for width in widths:
        config = training.TrainingConfig(steps=10**9, lr=1e-4, batch_size=batch, warmup_steps=0)
        networks_ = [networks.MLP(digits.x.shape[1], 10, width=width, **LAYERS) for _ in range(3)]
        programs = {
            "ours": stepper(networks_[0], digits, config),
            "a": with_dataloader(networks_[1].sequential(), digits, config).__next__,
            "b": in_memory(networks_[2].sequential(), digits, config).__next__,
        }
        best_of(programs, 5, 1)
        here = max(5, steps * 64 // width)
        seconds = best_of(programs, here, repeats)
        rate = gemm_rate()
        flops = flops_per_step(networks_[0].sizes, batch)
        rows.append(
            {
                "width": width,
                "batch": batch,
                "ms": {name: 1e3 * value for name, value in seconds.items()},
                "a/ours": seconds["a"] / seconds["ours"],
                "b/ours": seconds["b"] / seconds["ours"],
                "gemm_gflops": rate / 1e9,
                "share_of_gemm": flops / seconds["ours"] / rate,
            }
        )
        r = rows[-1]
        print(
            f"width {width:4d}, batch {batch}: ours {r['ms']['ours']:.2f} ms a step, "
            f"{r['share_of_gemm']:.0%} of sgemm ({r['gemm_gflops']:.0f} GFLOP/s); "
            f"(a) DataLoader {r['a/ours']:.2f}x, (b) in memory {r['b/ours']:.2f}x as long",
            flush=True,
        )
    return rows


def _one_run(seed: int, steps: int, batch: int) -> None:
    torch.set_num_threads(1)
    digits = data.load("mnist5k").flat()
    network = networks.MLP(digits.x.shape[1], 10, seeds=(seed,), **LAYERS)
    config = training.TrainingConfig(steps=steps, lr=1e-4, batch_size=batch)
    training.train(network, digits, config, measure=None, progress=False)


def sweep_section(runs: int, steps: int, batch: int) -> dict:
    """A whole sweep on all cores: ours, one process a core, against (a) run after run with torch's own threads."""
    from joblib import Parallel, delayed

    cores = os.cpu_count() or 1
    digits = data.load("mnist5k").flat()
    config = training.TrainingConfig(steps=steps, lr=1e-4, batch_size=batch)
    with Parallel(n_jobs=cores) as parallel:
        parallel(delayed(_one_run)(seed, 2, batch) for seed in range(cores))  # workers import torch once a sweep
        start = time.perf_counter()
        parallel(delayed(_one_run)(seed, steps, batch) for seed in range(runs))
        ours = time.perf_counter() - start
    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    start = time.perf_counter()
    for seed in range(runs):
        model = networks.MLP(digits.x.shape[1], 10, seeds=(seed,), **LAYERS).sequential()
        program = with_dataloader(model, digits, config)
        for _ in range(steps):
            next(program)
    theirs = time.perf_counter() - start
    torch.set_num_threads(threads)
    print(
        f"sweep of {runs} runs x {steps} steps on {cores} cores: ours {ours:.1f} s, (a) {theirs:.1f} s: "
        f"{theirs / ours:.2f}x as long",
        flush=True,
    )
    return {"runs": runs, "steps": steps, "cores": cores, "ours": ours, "a": theirs, "a/ours": theirs / ours}


def metrics_section(batch: int, steps: int, repeats: int) -> dict:
    """Share of a run of 10,000 steps that 20 measurements take, at 1,000 digits."""
    digits = data.load("mnist5k", per_class=100).flat()
    network = networks.MLP(digits.x.shape[1], 10, **LAYERS)
    step = stepper(network, digits, training.TrainingConfig(steps=10**9, lr=1e-4, batch_size=batch))
    seconds = best_of({"step": step}, steps, repeats)["step"]
    measure = best_of({"measure": lambda: training.measure_layers(network, digits, 0)}, 2, repeats)["measure"]
    share = 20 * measure / (20 * measure + 10_000 * seconds)
    print(f"20 measurements in 10,000 steps: {share:.1%} of the time ({1e3 * measure:.0f} ms each)", flush=True)
    return {"ms": 1e3 * measure, "share": share}


def gpu_section(runs: int, steps: int, repeats: int) -> dict:
    """On one GPU: all runs stacked against one after the other; the epochs that the paper's figures are made of."""
    wait = torch.cuda.synchronize
    try:
        digits = data.load("mnist", "all").flat().to("cuda")
    except FileNotFoundError:
        digits = data.load("mnist5k").flat().to("cuda")
    config = training.TrainingConfig(steps=10**9, lr=1e-4, batch_size=128, warmup_steps=0)

    def network(seeds):
        return networks.MLP(digits.x.shape[1], 10, seeds=seeds, device="cuda", **LAYERS)

    programs = {
        "stacked": stepper(network(tuple(range(runs))), digits, config),
        "one run, our step": stepper(network((0,)), digits, config),
        "one run, (b)": in_memory(network((0,)).sequential(), digits, config).__next__,
    }
    best_of(programs, 5, 1, wait)
    seconds = best_of(programs, steps, repeats, wait)
    ratios = {name: runs * value / seconds["stacked"] for name, value in seconds.items() if name != "stacked"}
    epochs, depths = 200, 6
    row = seconds["stacked"] * depths * epochs * (60_000 // 128)
    for name, ratio in ratios.items():
        print(f"GPU, {runs} runs: stacked against {name} at a time: {ratio:.1f}x", flush=True)
    print(f"GPU, Figure 2 upper row ({depths} depths x {runs} runs x {epochs} epochs): {row / 60:.1f} min", flush=True)
    images = data.gaussian(512, num_classes=10, dim=3 * 32 * 32).to("cuda")
    images = type(images)(images.x.view(-1, 3, 32, 32), images.y, 10, "noise of CIFAR-10's size")
    resnet = networks.ResNet20(3, 10, num_linear=3, device="cuda")
    step = stepper(resnet, images, config)
    best_of({"resnet": step}, 10, 1, wait)
    epoch = best_of({"resnet": step}, steps, repeats, wait)["resnet"] * (50_000 // 128)
    print(f"GPU, ResNet20 epoch of CIFAR-10's size: {epoch:.2f} s", flush=True)
    return {"seconds": seconds, "ratios": ratios, "figure2_minutes": row / 60, "resnet20_epoch": epoch}


def main(argv=None) -> Path:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run? the ratios mean nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "_build" / "bench.json", help="where the numbers go")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    steps, repeats = (2, 1) if options.quick else (60, 12)
    machine = {"processor": _processor(), "cores": os.cpu_count(), "torch": torch.__version__, "quick": options.quick}
    found = {"machine": machine}
    sections = {
        "step": lambda: step_section((64,) if options.quick else (64, 128, 256), 128, steps, repeats),
        "sweep": lambda: sweep_section(*((2, 3) if options.quick else (8, 1500)), 128),
        "metrics": lambda: metrics_section(100, steps, repeats),
    }
    if torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
        sections["gpu"] = lambda: gpu_section(50, 200, 5)
    else:
        print("no GPU: its section is left out")
    print(f"{machine['processor']}, {machine['cores']} cores, torch {machine['torch']}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, section in sections.items():
        found[name] = section()
        temporary = options.out.with_suffix(".tmp")
        temporary.write_text(json.dumps(found, indent=1))
        os.replace(temporary, options.out)  # a benchmark that is interrupted keeps its finished sections
    print(f"written: {options.out}")
    return options.out


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
