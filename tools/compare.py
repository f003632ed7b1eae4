"""Compare the outputs of two executions of a notebook: exactly, word by word and digit by digit.

    python tools/compare.py COMMITTED.ipynb FRESH.ipynb

What the reader sees is what is compared: printed text, the text of HTML and LaTeX tables, claims, and the data of
figures (:mod:`figure_data`). Addresses and random ids of styled tables are masked; pixels are not looked at.

- Figure data may move by 2e-4 of a panel: they are rounded to 1e-4.
- A cell whose metadata hold a tolerance (`approx: 0.1`) *and* whose source says why (`# approx: REASON`) is compared by
  value: words exactly, numbers to that tolerance, whole numbers exactly. A cell that states claims never is.
- A cell tagged `timing` is compared in its words, with numbers left out; of its claims, everything but the numbers.
- A cell tagged `nbval-ignore-output` is not compared; it may not state claims.
"""

from __future__ import annotations

import html
import json
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

CLAIMS = "application/vnd.ncutils.claims+json"
FIGURE = "application/vnd.ncutils.figure+json"
FIGURE_TOLERANCE = 2e-4
REASON = re.compile(r"^\s*# approx: (\S.*)$", re.MULTILINE)
MASKED = (
    (r"0x[0-9a-fA-F]{6,}", "0xADDRESS"),
    (r"\bT_[0-9a-f]{5}", "T_STYLE"),
    (r"<Figure size [\d.]+x[\d.]+ with", "<Figure"),
)
# A number standing by itself: not the 8 of "Z8" or of "layer_8", not the pieces of a version.
NUMBER = re.compile(r"(?<![\w.,])[-+−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d*)?|\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?(?![\d])")


@dataclass(frozen=True)
class Rule:
    """How a cell is compared: ``kind`` is "exact", "approx", "timing" or "ignored"."""

    kind: str
    tolerance: float = 0.0
    reason: str = ""


def joined(text) -> str:
    return "".join(text) if isinstance(text, list) else text


def states_claims(cell) -> bool:
    return any(CLAIMS in output.get("data", {}) for output in cell.get("outputs", ()))


def rule(cell) -> Rule:
    """The rule of a code cell, from its tags, its metadata and its source."""
    tags = cell["metadata"].get("tags", [])
    tolerance, reason = cell["metadata"].get("approx"), REASON.search(joined(cell["source"]))
    if "nbval-ignore-output" in tags and not states_claims(cell):
        return Rule("ignored")
    if "timing" in tags or "nbval-ignore-output" in tags:
        return Rule("timing")
    if tolerance is not None and reason and not states_claims(cell):
        return Rule("approx", float(tolerance), reason[1])
    return Rule("exact")


def contents(outputs) -> list[tuple[str, object]]:
    """What outputs say, as (kind, value) pairs; consecutive pieces of one stream are one piece."""
    found: list[tuple[str, object]] = []
    streams: dict[str, str] = {}
    for output in outputs:
        if output["output_type"] == "stream":
            streams[output["name"]] = streams.get(output["name"], "") + joined(output["text"])
        elif output["output_type"] == "error":
            found.append(("error", f"{output['ename']}: {output['evalue']}"))
        for mime, value in sorted(output.get("data", {}).items()):
            if mime.endswith("json"):
                found.append((mime, decoded(value) if mime == FIGURE else value))
            elif not mime.startswith("image/"):
                found.append((mime, visible(joined(value), mime)))
    return [*((name, visible(text)) for name, text in sorted(streams.items())), *found]


def decoded(figure: dict) -> dict:
    """A figure's data with the artists of each panel, stored on one line, as lists."""

    def read(artists):
        try:
            return json.loads(artists) if isinstance(artists, str) else artists
        except ValueError:
            return artists

    return {**figure, "panels": [{**panel, "artists": read(panel["artists"])} for panel in figure["panels"]]}


def visible(text: str, mime: str = "text/plain") -> str:
    """Text as the reader sees it: without markup, with random ids masked, trailing blanks dropped."""
    if mime == "text/html":
        text = re.sub(r"<(style|script)\b.*?</\1>", " ", text, flags=re.DOTALL)
        text = html.unescape(re.sub(r"<[^>]*>", " ", text))
    for pattern, instead in MASKED:
        text = re.sub(pattern, instead, text)
    if mime != "text/plain":
        return " ".join(text.split())
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def difference(cell, outputs) -> str | None:
    """The first difference between a committed code cell's outputs and fresh ones, in words; None if there is none."""
    how = rule(cell)
    if how.kind == "ignored":
        return None
    old, new = contents(cell.get("outputs", ())), contents(outputs)
    if [kind for kind, _ in old] != [kind for kind, _ in new]:
        return f"committed outputs are {[kind for kind, _ in old]}, now {[kind for kind, _ in new]}"
    for (kind, ours), (_, theirs) in zip(old, new, strict=True):
        if kind == FIGURE and how.kind == "timing":
            continue
        if kind == FIGURE:
            problem = value_difference(ours, theirs, absolute=max(FIGURE_TOLERANCE, how.tolerance))
        elif not isinstance(ours, str) and how.kind == "timing":
            problem = value_difference(_without_numbers(ours), _without_numbers(theirs))
        elif not isinstance(ours, str):
            problem = value_difference(ours, theirs)
        elif how.kind == "exact":
            problem = None if ours == theirs else _first_line(ours, theirs)
        else:
            problem = text_difference(ours, theirs, how.tolerance if how.kind == "approx" else math.inf)
        if problem:
            return f"{kind}: {problem}"
    return None


def _without_numbers(claims):
    """Claims whose evidence is a time: the words and the verdict stand, the numbers do not."""
    return [{k: v for k, v in c.items() if isinstance(v, str) and k != "numbers"} for c in claims]


def _first_line(old: str, new: str) -> str:
    ours, theirs = old.splitlines() or [""], new.splitlines() or [""]
    at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    a, b = (" ".join(lines[at].split()) if at < len(lines) else "(no line)" for lines in (ours, theirs))
    start = max(0, next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))) - 30)
    return f"committed {a[start : start + 90]!r}, now {b[start : start + 90]!r}"


def text_difference(old: str, new: str, tolerance: float) -> str | None:
    """Compare two texts: words exactly but for spacing, decimal numbers to a tolerance, whole numbers exactly.

    An infinite tolerance leaves all numbers out.
    """

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
        whole = not re.search(r"[.eE]", a + b)
        if not _close(_value(a), _value(b), 0.0 if whole and math.isfinite(tolerance) else tolerance):
            return f"number differs: committed {a}, now {b}"
    return None


def _value(text: str) -> float:
    return float(text.replace(",", "").replace("−", "-"))


def _close(old: float, new: float, tolerance: float, absolute: float = 0.0) -> bool:
    if math.isnan(old) or math.isnan(new):
        return math.isnan(old) and math.isnan(new)
    return old == new or abs(old - new) <= max(tolerance * max(abs(old), abs(new)), absolute)


def value_difference(old, new, absolute: float = 0.0, where: str = "") -> str | None:
    """Compare two JSON values: the same shape and words; numbers equal, or within ``absolute`` of a panel."""
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        found = (value_difference(old[key], new[key], absolute, f"{where}.{key}") for key in old)
        return next(filter(None, found), None)
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        found = (
            value_difference(a, b, absolute, f"{where}[{i}]") for i, (a, b) in enumerate(zip(old, new, strict=True))
        )
        return next(filter(None, found), None)
    if isinstance(old, float) and isinstance(new, int | float) and not isinstance(new, bool) and absolute:
        same = _close(old, new, absolute, 0.0 if ".limits" in where else absolute)  # limits are numbers of any size
    else:
        same = type(old) is type(new) and (old == new or (old != old and new != new))
    return None if same else f"{where or 'value'}: committed {json.dumps(old)}, now {json.dumps(new)}"


@dataclass(frozen=True)
class Report:
    """What a comparison of two notebooks found: how many cells were compared, and the differences by cell number."""

    compared: int
    ignored: int
    differences: dict[int, str]


def compare(committed: str | Path | dict, fresh: str | Path | dict) -> Report:
    """Compare two notebooks, given as paths or as parsed JSON; code cells are numbered from 0, as nbval does.

    Raises:
        ValueError: the two do not hold the same code.
    """
    old, new = ([cell for cell in _read(book)["cells"] if cell["cell_type"] == "code"] for book in (committed, fresh))
    if [joined(cell["source"]) for cell in old] != [joined(cell["source"]) for cell in new]:
        raise ValueError("notebooks must hold the same code cells to be compared; execute the committed one again")
    found = {i: difference(a, b["outputs"]) for i, (a, b) in enumerate(zip(old, new, strict=True))}
    ignored = sum(rule(cell).kind == "ignored" for cell in old)
    return Report(len(old) - ignored, ignored, {i: text for i, text in found.items() if text})


def _read(book):
    return book if isinstance(book, dict) else json.loads(Path(book).read_text(encoding="utf-8"))


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 2:
        print(__doc__.split("\n\n")[1].strip(), file=sys.stderr)
        return 2
    report = compare(*arguments)
    for cell, text in report.differences.items():
        print(f"cell {cell}: {text}")
    print(f"{report.compared} cells compared, {len(report.differences)} differ, {report.ignored} ignored")
    return bool(report.differences)


if __name__ == "__main__":
    sys.exit(main())
