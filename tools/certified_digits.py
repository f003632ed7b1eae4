"""Theorem 4.4 on real digits of ten classes, once, into results/theorem-4-4-digits.json (chapter 3).

    python tools/certified_digits.py 10 20        # digits per class; a case already in the file is kept
    python tools/certified_digits.py --relu       # the descent half with plain ReLU, into theorem-4-4-relu.json

Widths N-12-11-10 with two nonlinear layers, from a start with hidden features; every hypothesis and conclusion is
evaluated. Half a step at a time, the run is repeated, so that the file also says how far the two differ.
"""

import argparse
import itertools
import json
import math
import platform
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import brentq

from ncutils import data, theory
from ncutils.theory.slide import slide, whitened_start

TARGET = Path(__file__).resolve().parents[1] / "results" / "theorem-4-4-digits.json"
HEAD, SIZE, HORIZON, LARGEST = 4.0, 3.0, 6.0, 0.006


def digits(per_class: int):
    """Digits in coordinates of their span, of norm 3."""
    source = data.load("mnist5k", per_class=per_class, dtype=torch.float64).flat()
    x = source.x.numpy()
    x = 3 * x / np.linalg.norm(x, axis=1, keepdims=True)
    return np.linalg.qr(x.T)[1].T, source.y.numpy(), source.checksum()


def case(per_class: int) -> dict:
    x, y, checksum = digits(per_class)
    start, widths = theory.Objective(x, y, 2, 0.0), [len(x), 12, 11, 10]

    def weights_at(scale):
        return whitened_start(start, widths, scale, head=HEAD, size=SIZE)

    def gap(log_scale):
        test = theory.TwoPhase.at(start, weights_at(math.exp(log_scale))).assumption_4_3("sharp", "descent")
        return math.log(test.value / test.threshold)

    scale = 1.01 * math.exp(brentq(gap, -4, 4, xtol=1e-6))
    weights = weights_at(scale)
    decay = theory.TwoPhase.at(start, weights).largest_weight_decay
    objective = replace(start, weight_decay=decay)
    phase = theory.TwoPhase.at(objective, weights)
    grid = np.concatenate([np.geomspace(1e-4, 0.25, 12), np.arange(0.5, HORIZON + 0.1, 0.25)])
    times = np.unique(np.concatenate([[0], np.geomspace(1e-3, 1, 8) * phase.t1, grid / decay]))
    begin = time.process_time()
    coarse = slide(objective, weights, times, growth=0.16, largest=2 * LARGEST)
    middle = time.process_time()
    run = slide(objective, weights, times, largest=LARGEST)
    end = time.process_time()
    checks = [*theory.theorem_4_4(phase, run), theory.balancedness_flow(run)]
    bounds = {f: [theory.theorem_3_1_nc1(h, f) for h in run.heads] for f in ("paper", "sharp")}
    values = {f: [float(c.bound) if c.hypotheses_met else None for c in row] for f, row in bounds.items()}
    return {
        "samples": len(x),
        "classes": 10,
        "widths": widths,
        "parameters": int(run.states.shape[1]),
        "scale": scale,
        "weight_decay": decay,
        "alpha": phase.alpha,
        "R2": phase.R**2,
        "t1": phase.t1,
        "hypotheses": {h.name: [h.value, h.sense, h.threshold, bool(h.holds)] for h in phase.hypotheses("descent")},
        "conclusions": {c.statement: [float(c.measured), c.sense, float(c.bound), c.holds] for c in checks},
        "times": (times * decay).tolist(),
        "nc1": run.nc1.tolist(),
        "nc2": [float(h.nc2(h.layers[-2])) for h in run.heads],
        "errors": run.errors.tolist(),
        "imbalances": run.imbalances.tolist(),
        "bound": values,
        "halving": {
            "state, relative": float(np.abs(run.states - coarse.states).max() / np.abs(run.states).max()),
            "NC1 at the end, relative": float(abs(coarse.nc1[-1] / run.nc1[-1] - 1)),
        },
        "seconds": {"coarse": middle - begin, "fine": end - middle},
        "data_checksum": checksum,
    }


def relu() -> dict:
    """Six samples, widths 12-3-2, plain ReLU, every step of descent checked."""
    x, y = theory.general_position(6, 8), np.arange(6) % 2
    objective, widths = theory.Objective(x, y, 1, 0.0, activation="relu"), [12, 3, 2]
    weights = theory.initialise(objective, widths, theory.smallest_scale(objective, widths, [("sharp", "descent")]))
    objective = replace(objective, weight_decay=theory.TwoPhase.at(objective, weights).largest_weight_decay)
    phase = theory.TwoPhase.at(objective, weights)
    eta = theory.largest_step(objective, weights, 300)
    steps = round(3.5 / (eta * objective.weight_decay))
    begin = time.process_time()
    run = theory.descend(objective, weights, eta, steps, record=200)
    seconds = time.process_time() - begin
    signs = [x @ run.weights(i)[0].numpy().T > 0 for i in range(len(run))]
    return {
        "samples": 6,
        "widths": widths,
        "steps": steps,
        "step_size": eta,
        "weight_decay": objective.weight_decay,
        "descent_gap": run.descent_gap,
        "hypotheses": {h.name: [h.value, h.sense, h.threshold, bool(h.holds)] for h in phase.hypotheses("descent")},
        "flow_half": all(h.holds for h in phase.hypotheses("flow")),
        "conclusions": {
            c.statement: [float(c.measured), c.sense, float(c.bound), c.holds]
            for c in theory.theorem_4_4(phase, run)[:5]
        },
        "switched": sum(int((a != b).sum()) for a, b in itertools.pairwise(signs)),
        "nc1": [float(run.nc1[0]), float(run.nc1[-1])],
        "bound": {f: float(theory.theorem_3_1_nc1(run.heads[-1], f).bound) for f in ("paper", "sharp")},
        "seconds": seconds,
    } | provenance()


def provenance() -> dict:
    return {
        "git_commit": subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip(),
        "device": f"CPU, one thread, {platform.machine()}",
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("per_class", nargs="*", type=int)
    parser.add_argument("--relu", action="store_true")
    torch.set_num_threads(1)
    archive = json.loads(TARGET.read_text()) if TARGET.exists() else {"cases": {}}
    arguments = parser.parse_args()
    if arguments.relu:
        TARGET.with_name("theorem-4-4-relu.json").write_text(json.dumps(relu(), indent=1) + "\n")
    for per_class in arguments.per_class:
        if str(10 * per_class) in archive["cases"]:
            continue
        archive["cases"][str(10 * per_class)] = case(per_class)
        archive |= provenance()
        TARGET.write_text(json.dumps(archive, indent=1) + "\n")


if __name__ == "__main__":
    main()
