"""Makes ncutils/bundled/cifar10_small.npz from CIFAR-10 (first ``python -m ncutils data cifar10``).

The first 80 training images and the first 20 test images of each class, in the order in which CIFAR-10 stores them;
each pixel of the 16×16 image is the rounded mean of 2×2 pixels. No chance involved: the same file every time.
"""

import argparse
from pathlib import Path

import numpy as np

from ncutils.data import data_root

BUNDLED = Path(__file__).resolve().parents[1] / "ncutils" / "bundled" / "cifar10_small.npz"
PER_CLASS = {"train": 80, "test": 20}


def small(x: np.ndarray, y: np.ndarray, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first per_class of each class, (n, 3, 32, 32) -> (10 · per_class, 3, 16, 16), both uint8."""
    chosen = np.sort(np.concatenate([np.flatnonzero(y == k)[:per_class] for k in range(10)]))
    sums = x[chosen].reshape(-1, 3, 16, 2, 16, 2).sum((3, 5), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8), y[chosen]


def make(root: str | None = None) -> dict[str, np.ndarray]:
    """The arrays of the bundled file."""
    arrays = {}
    with np.load(data_root(root) / "cifar10.npz") as full:
        for split, per_class in PER_CLASS.items():
            x, y = small(full[f"{split}_x"], full[f"{split}_y"], per_class)
            arrays |= {f"{split}_x": x, f"{split}_y": y}
    return arrays


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--root", help="where cifar10.npz is (default: as for python -m ncutils data)")
    parser.add_argument("--out", type=Path, default=BUNDLED)
    args = parser.parse_args()
    np.savez_compressed(args.out, **make(args.root))
    print(f"{args.out}: {args.out.stat().st_size:,} bytes")
