"""pytest on the book: `pytest --nbval book` re-executes every committed notebook and compares it cell by cell.

Three things differ from nbval as it comes:
- notebooks always run in the environment of pytest, from this checkout, one thread each, and never read results that an
  earlier run cached: what is compared was computed now;
- a cell tagged `approx` is compared as words and numbers: the words must be the same, a number may move by 25 %
  (or by what the cell's option `approx: 0.1` says). It is for numbers at the end of a chaotic training trajectory;
- memory addresses and table ids are masked (tools/nbval_sanitize.cfg).
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent
TOLERANCE = 0.25
# A number standing by itself: not the 8 of "Z8" or of "layer_8", not the pieces of a version.
NUMBER = re.compile(r"(?<![\w.,])[-+−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\d])")


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
    if config.option.nbval_sanitize_with is None:
        config.option.nbval_sanitize_with = str(ROOT / "tools" / "nbval_sanitize.cfg")
    if config.option.color == "auto" and not sys.stdout.isatty():
        config.option.color = "no"
    _start_kernels_in_this_checkout()
    _compare_approx_cells_by_value()


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
        with mock.patch.dict(os.environ, KERNEL_ENVIRONMENT, PYTHONPATH=path):
            start(self)

    setup.in_this_checkout = True
    IPyNbFile.setup = setup


def _compare_approx_cells_by_value() -> None:
    from nbval.plugin import IPyNbCell

    exact = IPyNbCell.compare_outputs
    if getattr(exact, "knows_approx", False):
        return

    def compare_outputs(self, test, ref, skip_compare=None):
        if "approx" not in self.cell.metadata.get("tags", []):
            return exact(self, test, ref, skip_compare)
        tolerance = float(self.cell.metadata.get("approx", TOLERANCE))
        problem = outputs_differ(ref, test, tolerance, skip_compare or self.parent.skip_compare, self.sanitize)
        self.comparison_traceback = [f"approx ({tolerance:.0%}): {problem}"] if problem else []
        return problem is None

    compare_outputs.knows_approx = True
    IPyNbCell.compare_outputs = compare_outputs


def outputs_differ(ref, test, tolerance: float, skip=(), sanitize=lambda text: text) -> str | None:
    """The first difference between two lists of outputs, in words; None where words agree and numbers nearly do."""
    ref, test = _contents(ref, skip), _contents(test, skip)
    if [key for key, _ in ref] != [key for key, _ in test]:
        return f"committed outputs are {[key for key, _ in ref]}, now {[key for key, _ in test]}"
    for (key, old), (_, new) in zip(ref, test, strict=True):
        problem = (
            text_differs(sanitize(old), sanitize(new), tolerance)
            if isinstance(old, str) and isinstance(new, str)
            else values_differ(old, new, tolerance)
        )
        if problem:
            return f"{key}: {problem}"
    return None


def _contents(outputs, skip) -> list[tuple[str, object]]:
    found = []
    for output in outputs:
        if output["output_type"] == "stream":
            found.append((output["name"], output["text"]))
        elif output["output_type"] == "error":
            found.append(("error", f"{output['ename']}: {output['evalue']}"))
        for mime, value in sorted(output.get("data", {}).items()):
            # text/plain carries what HTML and LaTeX tables say; pictures are never compared.
            if mime not in skip and mime not in ("text/html", "text/latex") and not mime.startswith("image/"):
                found.append((mime, "".join(value) if isinstance(value, list) and mime.startswith("text/") else value))
    return sorted(found, key=lambda item: item[0])


def _close(old: float, new: float, tolerance: float, last_digit: float = 0.0) -> bool:
    if math.isnan(old) or math.isnan(new):
        return math.isnan(old) and math.isnan(new)
    if old == 0 or new == 0:  # "0.00" against "0.01": nothing to be relative to, allow the last printed digit
        return abs(old - new) <= max(last_digit, 1e-12)
    return math.isclose(old, new, rel_tol=tolerance)


def text_differs(old: str, new: str, tolerance: float) -> str | None:
    """Compare two texts: words exactly but for spacing, numbers by value."""

    def words(text: str) -> list[str]:
        text = re.sub(r"([-=─━_])\1{2,}", r"\1\1\1", NUMBER.sub(" \0 ", text))  # rules are as wide as their table
        return text.split()

    ours, theirs = words(old), words(new)
    if ours != theirs:
        at = next(
            (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
        )
        near = [" ".join(w[max(0, at - 3) : at + 4]).replace("\0", "#") for w in (ours, theirs)]
        return f"words differ: committed {near[0]!r}, now {near[1]!r} (# stands for a number)"
    for a, b in zip(NUMBER.findall(old), NUMBER.findall(new), strict=True):
        if not _close(_value(a), _value(b), tolerance, min(_last_digit(a), _last_digit(b))):
            return f"number differs: committed {a}, now {b}"
    return None


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def _last_digit(text: str) -> float:
    """The weight of the last printed digit of a decimal number; 0 for an integer, which is not rounded."""
    mantissa, _, exponent = text.lower().partition("e")
    if "." not in mantissa:
        return 0.0
    return 1.0001 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def values_differ(old, new, tolerance: float, where: str = "") -> str | None:
    """Compare two JSON values: the same shape and words, numbers nearly equal."""
    number = isinstance(old, int | float) and not isinstance(old, bool)
    if number and isinstance(new, int | float) and not isinstance(new, bool):
        same = _close(float(old), float(new), tolerance)
    elif isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        found = (values_differ(old[key], new[key], tolerance, f"{where}.{key}") for key in old)
        return next(filter(None, found), None)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = (values_differ(a, b, tolerance, f"{where}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True)))
        return next(filter(None, found), None)
    else:
        same = type(old) is type(new) and old == new
    return None if same else f"{where or 'value'}: committed {json.dumps(old)}, now {json.dumps(new)}"
