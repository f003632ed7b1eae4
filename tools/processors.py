"""Execute chapters as other processors would, and compare what they print with the committed notebooks.

    python tools/processors.py --chapters 03_gradient_descent 08_nonlinear_depth --on native avx2 sse
    python tools/processors.py --rotate 4         four pairs of chapter and processor, chosen by the commit (for CI)
    python tools/processors.py --on old --python PATH      with another environment, e.g. of the oldest supported torch

Environment variables make an x86 machine choose the code of an older one, in PyTorch, MKL, oneDNN and OpenBLAS. The
committed notebooks are what is compared with: nothing is written into the book.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import compare
import notebook

ROOT = Path(__file__).resolve().parents[1]
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "NCUTILS_CACHE": "off"}
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
}
SSE = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
}
PROCESSORS = {
    "native": {},
    "avx2": AVX2,
    "sse": SSE,
    "two": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
    "old": {},
}


def pairs(chapters: list[str], processors: list[str], rotate: int | None, commit: str) -> list[tuple[str, str]]:
    """What to run: all pairs of chapter and processor, or ``rotate`` of them, a different stretch for every commit."""
    every = [(chapter, processor) for chapter in chapters for processor in processors]
    if rotate is None or rotate >= len(every):
        return every
    first = int(commit[:8], 16) % len(every)
    return [every[(first + k * _stride(len(every))) % len(every)] for k in range(rotate)]


def _stride(count: int) -> int:
    """A step through ``count`` pairs that meets all of them and different chapters one after another."""
    import math

    return next(step for step in range(max(1, int(count * 0.618)), 2 * count) if math.gcd(step, count) == 1)


def run(chapter: str, processor: str, root: Path = ROOT, python: str | None = None) -> compare.Report:
    """Execute a chapter afresh on a played processor; compare with the committed notebook."""
    into = root / "_build" / "processors" / processor
    interpreter = python if processor == "old" and python else sys.executable
    command = [interpreter, str(ROOT / "tools" / "notebook.py"), chapter, "--force"]
    command += ["--root", str(root), "--source", str(root / "book"), "--into", str(into)]
    with mock.patch.dict(os.environ, {**ONE_THREAD, **PROCESSORS[processor]}):
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise notebook.ChapterError(f"{chapter} on {processor}: {(done.stderr or done.stdout).strip()}")
    return compare.compare(root / "book" / f"{chapter}.ipynb", into / f"{chapter}.ipynb")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare the book's numbers between played processors.")
    parser.add_argument("--chapters", nargs="+", help="default: all but the ledger, which reads the others' notebooks")
    parser.add_argument("--on", nargs="+", choices=PROCESSORS, default=["native", "avx2", "sse", "two"])
    parser.add_argument("--rotate", type=int, help="run only so many pairs, chosen by the commit")
    parser.add_argument("--python", help="the interpreter that `old` runs")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if "old" in args.on and not args.python:
        parser.error("old needs --python, the interpreter of the other environment")
    root = args.root.resolve()
    chapters = args.chapters or [c for c in notebook.chapters(root / "book") if not c.endswith("_ledger")]
    commit = "0"
    if args.rotate is not None:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True)
        commit = found.stdout.strip() or commit
    chosen = pairs(chapters, args.on, args.rotate, commit)
    if args.rotate is not None:
        print(f"commit {commit[:8]} chooses {len(chosen)} of {len(chapters) * len(args.on)}:")
        print("  " + ", ".join(f"{chapter} on {processor}" for chapter, processor in chosen), flush=True)
    cells: dict[tuple[str, str], str] = {}
    bad = 0
    for chapter, processor in chosen:
        begun = time.monotonic()
        try:
            report = run(chapter, processor, root, args.python)
        except (notebook.ChapterError, ValueError) as error:
            print(error, flush=True)
            cells[chapter, processor], bad = "failed", bad + 1
            continue
        for cell, text in report.differences.items():
            print(f"{chapter} on {processor}, cell {cell}: {text}", flush=True)
        bad += bool(report.differences)
        cells[chapter, processor] = f"{report.compared} / {len(report.differences)}"
        print(f"[{chapter} on {processor}: {time.monotonic() - begun:.0f} s]", flush=True)
    print("\ncells compared / differ")
    print(f"{'':28}" + "".join(f"{processor:>10}" for processor in args.on))
    for chapter in chapters:
        print(f"{chapter:28}" + "".join(f"{cells.get((chapter, p), '-'):>10}" for p in args.on))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
