"""Draw the still frame of book/explore.md, for print and for readers without scripts: book/animation/explore-still.svg.

    python tools/draw_explore.py

The same recursion as in book/animation/explore.js, at the sliders' first positions.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

TARGET = Path(__file__).resolve().parents[1] / "book" / "animation" / "explore-still.svg"


def descend(decay: float, step: float, depth: int, modes: int = 3):
    """Gradient descent on three products of `depth` weights: times, products (steps, modes), relative imbalance."""
    layers, which = np.arange(depth), np.arange(modes)[:, None]
    w = 0.5 * (1 + 0.6 * np.cos(2.1 * layers + 1.3 * which))
    steps = math.ceil(4 / decay / step)
    products, gaps = np.empty((steps + 1, modes)), np.empty(steps + 1)
    for k in range(steps + 1):
        products[k] = w.prod(axis=1)
        gaps[k] = abs(np.diff(w**2, axis=1)).max()
        others = np.stack([np.delete(w, layer, axis=1).prod(axis=1) for layer in layers], axis=1)
        w = w - step * (others * (products[k] - 1)[:, None] + decay * w)
    return step * np.arange(steps + 1), products, gaps / gaps[0]


def main() -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    from ncutils import plots

    plots.style()
    decay = 0.1
    times, products, gaps = descend(decay, 0.01, 2)
    thin = slice(None, None, max(1, len(times) // 240))
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.6))
    axes[0].plot(times[thin], products[thin])
    axes[0].axhline(1, color="0.2", ls="--", lw=1)
    axes[0].set(title="fit: products", xlabel="flow time", ylim=(0, 1.4))
    axes[1].semilogy(times[thin], gaps[thin], color="#cc78bc")
    axes[1].semilogy(times[thin], np.exp(-2 * decay * times[thin]), color="0.2", ls="--", lw=1)
    axes[1].set(title="balance: imbalance", xlabel="flow time", ylim=(1e-5, 2))
    figure.savefig(TARGET, metadata={"Date": None})


if __name__ == "__main__":
    main()
