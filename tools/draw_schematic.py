"""Draw `book/images/collapse.svg`: the four properties of neural collapse on three classes in three dimensions.

    python tools/draw_schematic.py

A schematic, not an experiment: the points are drawn, not trained.
"""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("svg")
import matplotlib.pyplot as plt

TARGET = Path(__file__).resolve().parents[1] / "book" / "images" / "collapse.svg"
COLOURS = ("#0173b2", "#de8f05", "#029e73")  # seaborn's colour-blind palette
MARKERS = ("o", "s", "^")
# Seen along (1, 1, 1): orthonormal axes become three directions 120 degrees apart.
VIEW = np.array([[-np.sqrt(3) / 2, np.sqrt(3) / 2, 0.0], [-0.5, -0.5, 1.0]])

EARLY = np.array([[0.85, 0.42, 0.30], [0.30, 0.62, 0.36], [0.38, 0.30, 0.78]])  # class means before collapse, as rows
FRAME = np.eye(3)


def arrow(axis, tip, **style):
    axis.annotate("", VIEW @ tip, (0, 0), arrowprops={"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **style})


def panel(axis, title, caption, means, spread, rows=None, frame=False):
    rng = np.random.default_rng(3)
    if frame:  # the faces of the cube's corner make "orthogonal" visible in the flat drawing
        for i in range(3):
            corner = [means[i], means[i] + means[(i + 1) % 3], means[(i + 1) % 3]]
            axis.plot(*(VIEW @ np.array(corner).T), color="0.75", linewidth=0.8, linestyle="--", zorder=0)
    for c, mean in enumerate(means):
        points = VIEW @ (mean + spread * rng.standard_normal((26, 3))).T
        axis.scatter(*points, s=13, color=COLOURS[c], marker=MARKERS[c], alpha=0.75, linewidth=0, zorder=2)
        arrow(axis, mean, color=COLOURS[c], linewidth=1.4, zorder=1)
        if rows is not None:
            arrow(axis, rows[c], color="black", linewidth=1.1, linestyle=(0, (4, 2)), zorder=3)
            axis.text(*(VIEW @ (1.14 * rows[c])), rf"$w_{c + 1}$", ha="center", va="center", fontsize=10)
    axis.plot(0, 0, "k.", markersize=3)
    axis.set(xlim=(-1.5, 1.5), ylim=(-1.25, 1.6), aspect="equal")
    axis.set_title(title, fontsize=11)
    axis.text(0.5, -0.02, caption, transform=axis.transAxes, ha="center", va="top", fontsize=9)
    axis.axis("off")


def main() -> None:
    plt.rcParams.update({"svg.hashsalt": "ncutils", "font.family": "DejaVu Sans"})
    figure, axes = plt.subplots(1, 4, figsize=(10, 3.1))
    panel(axes[0], "start of training", "classes overlap", EARLY, 0.27)
    panel(axes[1], "NC1", "each class becomes\none point, its mean", EARLY, 0.025)
    panel(axes[2], "NC2", "the means become orthogonal\nand equally long", FRAME, 0.025, frame=True)
    panel(
        axes[3], "NC3", "the rows of the last layer\npoint along the means", FRAME, 0.025, rows=1.25 * FRAME, frame=True
    )
    figure.subplots_adjust(left=0.01, right=0.99, top=0.9, bottom=0.16, wspace=0.02)
    TARGET.parent.mkdir(exist_ok=True)
    figure.savefig(TARGET, facecolor="white", metadata={"Date": None})
    print(f"wrote {TARGET} ({TARGET.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
