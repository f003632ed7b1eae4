"""pytest on the book: `pytest --nbval book` re-executes every committed notebook and compares it cell by cell.

Two things differ from nbval as it comes:
- notebooks always run in the environment of pytest, from this checkout, one thread each, and never read results that an
  earlier run cached: what is compared was computed now;
- outputs are compared by tools/compare.py, exactly, tables and the data of figures included.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

import compare  # noqa: E402
import figure_data  # noqa: E402

# What the kernels of the notebooks under validation see; the rest of a test session does not.
KERNEL_ENVIRONMENT = {
    "NCUTILS_CACHE": "off",
    "NCUTILS_PROFILE": "quick",
    "NCUTILS_DEVICE": "cpu",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
}


def pytest_configure(config) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    if not (getattr(config.option, "nbval", False) or getattr(config.option, "nbval_lax", False)):
        return
    config.option.nbval_current_env = True
    config.option.nbval_kernel_startup_timeout = max(config.option.nbval_kernel_startup_timeout, 180)
    if config.option.color == "auto" and not sys.stdout.isatty():
        config.option.color = "no"
    _start_kernels_in_this_checkout()
    _compare_what_the_reader_sees()


def pytest_itemcollected(item) -> None:
    if hasattr(item, "output_timeout"):
        item.output_timeout = 120  # nbval gives a kernel 5 s to send what it printed: too little on a busy machine


def _start_kernels_in_this_checkout() -> None:
    from nbval.plugin import IPyNbFile

    start = IPyNbFile.setup
    if getattr(start, "in_this_checkout", False):
        return

    def setup(self):
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        shell = figure_data.ipython_folder(ROOT / "_build")
        with mock.patch.dict(os.environ, KERNEL_ENVIRONMENT, PYTHONPATH=path, IPYTHONDIR=shell):
            start(self)

    setup.in_this_checkout = True
    IPyNbFile.setup = setup


def _compare_what_the_reader_sees() -> None:
    from nbval.plugin import IPyNbCell

    if getattr(IPyNbCell.compare_outputs, "exact", False):
        return

    def compare_outputs(self, test, ref, skip_compare=None):
        problem = compare.difference(self.cell, test)
        self.comparison_traceback = [f"{compare.rule(self.cell).kind}: {problem}"] if problem else []
        return problem is None

    compare_outputs.exact = True
    IPyNbCell.compare_outputs = compare_outputs
