"""Every kind of stored output, altered in every committed notebook: the comparison that guards the book must see it.

Nothing is executed: the committed outputs stand for freshly computed ones, the altered copy for what someone committed.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections import Counter
from pathlib import Path

import compare
import notebook
import pytest

BOOK = Path(__file__).resolve().parents[1] / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("[0-9]*.ipynb"))
DIGIT = re.compile(r"(?<=[\d.])\d(?![\d.]*\d)")  # the last digit of a number
WORD = re.compile(r"[A-Za-z]{3,}")
VERDICT = re.compile(r"\b(holds|fails|undecided|True|False)\b")
MOST = 12  # alterations of one kind in one output: the first ones and the last ones


def code_cells(name: str) -> list[dict]:
    cells = json.loads((BOOK / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def spots(pattern: re.Pattern, text: str) -> list[re.Match]:
    found = list(pattern.finditer(text))
    return found if len(found) <= MOST else found[: MOST // 2] + found[-MOST // 2 :]


def edits(pattern: re.Pattern, text: str, instead):
    for match in spots(pattern, text):
        yield text[: match.start()] + instead(match[0]) + text[match.end() :]


def next_digit(digit: str) -> str:
    return str((int(digit) + 1) % 10)


def texts(text: str, what: str):
    """(kind, altered text) of a printed text or of a table's HTML, whose mark-up and masked ids are left alone."""
    for kind, pattern, instead in (
        (f"last digit, {what}", DIGIT, next_digit),
        (f"verdict, {what}", VERDICT, lambda word: "fails" if word == "holds" else "holds"),
        (f"word, {what}", WORD, lambda word: word + "x"),
    ):
        if what == "HTML":
            for cell in spots(re.compile(r"(?<=>)[^<>{}]*\w[^<>{}]*(?=</t[dh]>)"), text):
                for new in edits(pattern, cell[0], instead):
                    if compare.visible(new) != compare.visible(cell[0]):
                        yield kind, text[: cell.start()] + new + text[cell.end() :]
        else:
            yield from (
                (kind, new) for new in edits(pattern, text, instead) if compare.visible(new) != compare.visible(text)
            )


def values(tree, path=()):
    """(kind, altered copy) of a JSON value: every number and every word in it, one at a time."""
    leaves = []

    def walk(node, at):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if isinstance(value, dict | list):
                walk(value, (*at, key))
            else:
                leaves.append((*at, key))

    walk(tree, path)
    for at in leaves if len(leaves) <= 8 * MOST else leaves[:: len(leaves) // (8 * MOST)]:
        altered = copy.deepcopy(tree)
        parent = altered
        for key in at[:-1]:
            parent = parent[key]
        old = parent[at[-1]]
        parent[at[-1]] = old + "x" if isinstance(old, str) else (old * 1.01 + 1e-3 * (old == 0 or abs(old) < 0.1))
        yield ("word" if isinstance(old, str) else "number"), altered


def alterations(outputs: list[dict]):
    """(kind, outputs) with one thing altered."""

    def put(number, change):
        new = [*outputs]
        new[number] = copy.deepcopy(outputs[number])
        change(new[number])
        return new

    for number, output in enumerate(outputs):
        yield "output removed", outputs[:number] + outputs[number + 1 :]
        if output["output_type"] == "stream":
            for kind, text in texts(compare.joined(output["text"]), "printed"):
                yield kind, put(number, lambda out, text=text: out.update(text=text))
        for mime, value in output.get("data", {}).items():
            if mime == compare.FIGURE:
                found = ((f"figure, {kind}", new) for kind, new in values(compare.decoded(value)))
            elif mime == compare.CLAIMS:
                found = ((f"claim, {kind}", new) for kind, new in values(value))
            elif mime in ("text/plain", "text/html", "text/latex"):
                what = {"text/plain": "text", "text/html": "HTML", "text/latex": "LaTeX"}[mime]
                if compare.joined(value).startswith("<Figure size"):  # its size is masked
                    continue
                found = texts(compare.joined(value), what)
            else:
                continue
            for kind, new in found:
                yield kind, put(number, lambda out, mime=mime, new=new: out["data"].update({mime: new}))


def approximate(kind: str) -> bool:
    """What a cell with a tolerance, or one of timings, lets move."""
    return "digit" in kind or kind in ("claim, number", "figure, number")


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_alteration_of_a_stored_output_is_caught(name):
    tried, caught, missed = Counter(), Counter(), []
    for cell in code_cells(name):
        how = compare.rule(cell)
        if how.kind == "ignored":
            continue
        assert compare.difference(cell, cell["outputs"]) is None
        for kind, outputs in alterations(cell["outputs"]):
            if (how.kind == "approx" and approximate(kind)) or (
                how.kind == "timing" and (approximate(kind) or kind.startswith("figure"))
            ):
                continue
            tried[kind] += 1
            if compare.difference({**cell, "outputs": outputs}, cell["outputs"]):
                caught[kind] += 1
            else:
                missed.append(kind)
    print(f"{name}: " + ", ".join(f"{kind} {caught[kind]}/{tried[kind]}" for kind in sorted(tried)))
    assert tried and not missed


def test_few_cells_have_a_tolerance_and_each_says_why():
    tolerant = []
    for name in CHAPTERS:
        for number, cell in enumerate(code_cells(name)):
            asked = "approx" in cell["metadata"] or "approx" in cell["metadata"].get("tags", [])
            if asked:
                assert compare.rule(cell).kind == "approx", (
                    f"{name}, cell {number}: no tolerance, or no reason, or claims"
                )
                tolerant.append((name, number))
    assert len(tolerant) <= 10, tolerant


@pytest.mark.parametrize("name", CHAPTERS)
def test_no_cell_with_claims_goes_uncompared(name):
    for number, cell in enumerate(code_cells(name)):
        if compare.states_claims(cell):
            assert "nbval-ignore-output" not in cell["metadata"].get("tags", []), (
                f"{name}, cell {number}: tag it timing"
            )


def parts_not_compared(book):
    """(what, function that alters it): pictures and mark-up, which a comparison of what is said passes over."""
    for cell in book.cells:
        for output in cell.get("outputs", ()):
            for mime, value in output.get("data", {}).items():
                if mime.startswith("image/"):
                    yield "picture", lambda data=output["data"], mime=mime, value=value: data.update({mime: value[:-9]})
                if mime == "text/html":
                    yield "mark-up", lambda data=output["data"], value=value: data.update({"text/html": f"<i>{value}"})


@pytest.mark.parametrize("name", CHAPTERS)
def test_outputs_are_those_of_the_execution(name):
    read = functools.partial(notebook.read_notebook, BOOK / f"{name}.ipynb")
    sealed = read().metadata[notebook.PACKAGE]["outputs"]
    assert notebook.seal(read()) == sealed, f"{name}: an output is not the executed one; run `make notebooks`"
    for number, (what, _) in enumerate(parts_not_compared(read())):
        altered = read()
        [*parts_not_compared(altered)][number][1]()
        assert notebook.seal(altered) != sealed, (what, number)


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_picture_comes_with_the_data_it_draws(name):
    bare = [
        number
        for number, cell in enumerate(code_cells(name))
        for output in cell["outputs"]
        if any(mime.startswith("image/") for mime in output.get("data", {})) and compare.FIGURE not in output["data"]
    ]
    assert bare == [], "execute the chapter again with tools/notebook.py"
