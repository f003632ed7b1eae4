"""Execute chapters as a stranger has them: the wheel installed, the notebook alone in an empty folder, no checkout.

    python tools/from_wheel.py                    every chapter
    python tools/from_wheel.py 06_training_dynamics 09_ledger

Builds the wheel, unpacks it into a temporary folder that stands before everything else on the path, and executes each
notebook there. Prints a line a chapter and fails if one did. What the library requires, and setuptools, come from the
environment that this is run with.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[1]


def install(into: Path) -> None:
    """Build the wheel from a copy of what git would give to a stranger, and unpack it into ``into``."""
    with tempfile.TemporaryDirectory() as scratch:
        source, wheels = Path(scratch, "source"), Path(scratch, "wheels")
        for name in ["ncutils", "results"]:
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ["pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "claims.toml"]:
            shutil.copy(ROOT / name, source)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)], check=True)
        (wheel,) = wheels.glob("*.whl")
        subprocess.run([*pip, "install", "--no-deps", "--target", str(into), str(wheel)], check=True)


def execute(chapter: str, site: Path) -> str:
    """Run a chapter's notebook in an empty folder; "" or what went wrong."""
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    book = nbformat.read(ROOT / "book" / f"{chapter}.ipynb", as_version=4)
    where = nbformat.v4.new_code_cell("import ncutils; print(ncutils.__file__)")
    book.cells.insert(0, where)
    environment = {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "NCUTILS_CACHE": "off"}
    with tempfile.TemporaryDirectory() as empty, mock.patch.dict(os.environ, environment):
        shutil.copy(ROOT / "book" / f"{chapter}.ipynb", empty)
        client = NotebookClient(book, timeout=1200, resources={"metadata": {"path": empty}})
        try:
            client.execute()
        except CellExecutionError as error:
            return str(error).strip().splitlines()[-1]
    used = where.outputs[0].text.strip()
    return "" if used.startswith(str(site)) else f"the library came from {used}, not from the wheel"


def main(chapters: list[str]) -> int:
    known = sorted(path.stem for path in (ROOT / "book").glob("[0-9]*.ipynb"))
    if unknown := set(chapters) - set(known):
        sys.exit(f"no such chapter: {', '.join(sorted(unknown))}; expected some of {', '.join(known)}")
    failures = 0
    with tempfile.TemporaryDirectory() as site:
        install(Path(site))
        for chapter in chapters or known:
            start = time.perf_counter()
            problem = execute(chapter, Path(site).resolve())
            failures += bool(problem)
            print(f"{chapter:24} {time.perf_counter() - start:6.0f} s  {problem or 'runs'}", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
