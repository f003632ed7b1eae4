"""The committed book agrees with itself: chapters, notebooks, table of contents, references."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
CHAPTERS = sorted(path.stem for path in BOOK.glob("[0-9]*.md"))
MAX_PICTURE = 300_000  # bytes, of an SVG as servers send it

spec = importlib.util.spec_from_file_location("tool_notebook_for_book", ROOT / "tools" / "notebook.py")
notebook = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = notebook
spec.loader.exec_module(notebook)

each_chapter = pytest.mark.parametrize("name", CHAPTERS)


def code_cells(name: str) -> list[dict]:
    cells = json.loads((BOOK / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def toc_files() -> list[str]:
    found = []

    def walk(node):
        if isinstance(node, dict):
            found.extend(node[key] for key in ("root", "file") if key in node)
            node = list(node.values())
        if isinstance(node, list):
            for item in node:
                walk(item)

    walk(yaml.safe_load((ROOT / "_toc.yml").read_text()))
    return found


@each_chapter
def test_chapter_and_notebook_agree_and_every_cell_was_executed(name):
    assert notebook.differences(name, notebook.Settings()) == []


@each_chapter
def test_cells_were_executed_in_order_in_one_run(name):
    assert [cell["execution_count"] for cell in code_cells(name)] == list(range(1, len(code_cells(name)) + 1))


@each_chapter
def test_the_first_cell_is_the_guard(name):
    template = (ROOT / "tools" / "first_cell.md").read_text()
    chapter = (BOOK / f"{name}.md").read_text(encoding="utf-8")
    assert "```{code-cell}" in chapter
    assert chapter[chapter.index("```{code-cell}") :].startswith(template), "take it from tools/first_cell.md"


@each_chapter
def test_pictures_are_small(name):
    pictures = [
        (mime, len(gzip.compress("".join(data).encode()) if "svg" in mime else base64.b64decode(data)))
        for cell in code_cells(name)
        for output in cell["outputs"]
        for mime, data in output.get("data", {}).items()
        if mime.startswith("image/")
    ]
    assert [(mime, size) for mime, size in pictures if size > MAX_PICTURE] == []


@each_chapter
def test_outputs_are_free_of_warnings_and_machine_paths(name):
    for cell in code_cells(name):
        for output in cell["outputs"]:
            assert output.get("name") != "stderr", f"stderr in {name}: {''.join(output['text'])[:200]}"
            text = json.dumps(output.get("text", "")) + json.dumps(output.get("data", {}).get("text/plain", ""))
            assert str(Path.home()) + "/" not in text and str(ROOT) not in text


def test_the_table_of_contents_names_every_page_once():
    names = toc_files()
    assert len(names) == len(set(names))
    for name in names:
        assert (ROOT / name).is_file() or (ROOT / f"{name}.md").is_file(), f"_toc.yml names {name}"
    listed = [Path(name).stem for name in names if Path(name).stem[0].isdigit()]
    assert sorted(listed) == CHAPTERS
    assert all(name.endswith(".ipynb") for name in names if Path(name).stem[0].isdigit())  # not "multiple files found"


def test_the_map_on_the_front_page_leads_to_every_chapter():
    linked = set(re.findall(r"\]\((\w+)\)", (BOOK / "index.md").read_text(encoding="utf-8")))
    assert set(CHAPTERS) <= linked


def test_notebooks_without_a_chapter_do_not_linger():
    assert sorted(path.stem for path in BOOK.glob("*.ipynb")) == CHAPTERS


def bibliography() -> set[str]:
    return set(re.findall(r"^@\w+\{([^,\s]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", sorted(BOOK.glob("*.md")), ids=lambda path: path.stem)
def test_what_a_page_cites_is_in_the_bibliography(page):
    text = page.read_text(encoding="utf-8")
    cited = {key.strip() for keys in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", text) for key in keys.split(",")}
    assert cited <= bibliography()


@pytest.mark.parametrize("page", sorted(BOOK.glob("*.md")), ids=lambda path: path.stem)
def test_the_images_a_page_shows_exist_and_are_small(page):
    text = page.read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text) + re.findall(r"\{(?:figure|image)\}\s+(\S+)", text)
    for image in shown:
        assert (page.parent / image).is_file(), image
        assert (page.parent / image).stat().st_size <= MAX_PICTURE


def test_every_code_cell_stands_between_sentences():
    """A cell is never the first thing under a heading: a sentence before it says what it will show."""
    for name in CHAPTERS:
        lines = (BOOK / f"{name}.md").read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines):
            if line.startswith("```{code-cell}"):
                before = next((text for text in reversed(lines[:number]) if text.strip()), "")
                assert not before.startswith("#"), f"book/{name}.md:{number + 1}: no sentence before this cell"
