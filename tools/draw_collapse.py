"""Compute the animation of the first page: `book/animation/collapse-data.js`, and its still picture for print.

    python tools/draw_collapse.py

One network of Figure 4 (five ReLU layers, four linear ones) learns a thousand digits in double precision. At every
frame the features of three classes are projected on the plane through their three class means: as seen from there the
means form a triangle, and collapse is three points at its corners; orthogonal means of one length make it equilateral.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import torch

from ncutils import data, metrics, networks, training

BOOK = Path(__file__).resolve().parents[1] / "book"
DATA, STILL = BOOK / "animation" / "collapse-data.js", BOOK / "animation" / "collapse-still.svg"
SHOWN = {1: "first ReLU layer", 3: "third ReLU layer", 5: "into the linear head", 8: "into the last layer"}
DIGITS, EACH = (3, 5, 8), 40  # three classes that look alike, samples of each
FRAMES = 72
REACH = 2.6  # half the width of a panel, in root mean square distances of the means from their centre
CONFIG = training.TrainingConfig(
    steps=8_000, lr=0.05, weight_decay=0.0018, momentum=0.9, batch_size=100, warmup_steps=300, measurements=FRAMES
)


def planar(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Features of the three classes in the plane of their means, (3 EACH, 2): centred, scaled, first side level."""
    groups = [features[labels == digit] for digit in DIGITS]
    means = torch.stack([group.mean(0) for group in groups])
    centre = means.mean(0)
    first = means[1] - means[0]
    first = first / first.norm()
    second = means[2] - means[0]
    second = second - (second @ first) * first
    axes = torch.stack([first, second / second.norm()], 1)
    scale = ((means - centre).square().sum() / 3).sqrt()
    return torch.cat([group[:EACH] - centre for group in groups]) @ axes / scale


def frames() -> dict:
    """The training, frame by frame: positions ``(frame, layer, sample, 2)`` and the numbers that run along."""
    digits = data.load("mnist5k", per_class=100, dtype=torch.float64).flat()
    network = networks.MLP(digits.x.shape[1], 10, num_nonlinear=5, num_linear=4, width=64, dtype=torch.float64)
    positions, rows = [], []

    def record(network, samples, step):
        with torch.no_grad():
            layers = network.layers(samples.x).post
        features = {layer: layers[layer - 1][0] for layer in SHOWN}
        positions.append(torch.stack([planar(z, samples.y) for z in features.values()]))
        rows.append(
            {
                "step": step,
                "nc1": [float(metrics.nc1(z, samples.y)) for z in features.values()],
                "nc2": [float(metrics.nc2(z, samples.y)) for z in features.values()],
                "nc3": float(metrics.nc3(features[8], samples.y, network.weights[-1][0])),
                "accuracy": float((layers[-1][0].argmax(-1) == samples.y).double().mean()),
            }
        )
        return []

    training.train(network, digits, CONFIG, measure=record, progress=False)
    return {"positions": torch.stack(positions).numpy(), "rows": rows}


def script(recorded: dict) -> str:
    """The data as a script that a page can load from a disk: positions as bytes in base64, numbers to three digits."""
    levels = np.clip(np.rint((recorded["positions"] / REACH + 1) * 127.5), 0, 255).astype(np.uint8)
    rounded = json.loads(json.dumps(recorded["rows"]), parse_float=lambda number: float(f"{float(number):.3g}"))
    content = {
        "layers": [f"Z{layer}, {name}" for layer, name in SHOWN.items()],
        "digits": DIGITS,
        "each": EACH,
        "drop": round(CONFIG.drop_at * CONFIG.steps),
        "frames": {key: [row[key] for row in rounded] for key in rounded[0]},
        "positions": base64.b64encode(levels.tobytes()).decode(),
    }
    return f"window.COLLAPSE = {json.dumps(content, separators=(',', ':'))};\n"


def draw_still(recorded: dict) -> None:
    """Start, middle and end of the training, one row each."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "collapse"
    steps = [row["step"] for row in recorded["rows"]]
    picked = [0, int(np.searchsorted(steps, 120)), len(steps) - 1]
    figure, grid = plt.subplots(3, len(SHOWN), figsize=(8.6, 6.8), sharex=True, sharey=True)
    colours, markers = ("#0173b2", "#de8f05", "#029e73"), "os^"
    for line, frame in zip(grid, picked, strict=True):
        row = recorded["rows"][frame]
        for column, axis in enumerate(line):
            points = recorded["positions"][frame, column].reshape(len(DIGITS), EACH, 2)
            for cloud, colour, marker in zip(points, colours, markers, strict=True):
                axis.scatter(*cloud.T, s=9, color=colour, marker=marker, alpha=0.6, linewidth=0)
            axis.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
            axis.set_xlabel(f"NC1 {row['nc1'][column]:.2g}   NC2 {row['nc2'][column]:.1f}", fontsize=9)
        line[0].set_ylabel(f"step {row['step']:,}")
    for axis, (layer, name) in zip(grid[0], SHOWN.items(), strict=True):
        axis.set_title(f"$Z_{layer}$, {name}", fontsize=9)
    figure.tight_layout()
    figure.savefig(STILL, metadata={"Date": None})


if __name__ == "__main__":
    recorded = frames()
    DATA.write_text(script(recorded), encoding="utf-8")
    draw_still(recorded)
    print(f"{DATA.name}: {DATA.stat().st_size:,} bytes, {len(recorded['rows'])} frames; {STILL.name}")
