"""The chapters' code, by the rules of the library's: ruff, 88 columns, cells that fit on a screen."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ruff")
ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = sorted(path.stem for path in (ROOT / "book").glob("[0-9]*.ipynb"))
LINES = 40  # of a cell, unless its first line is a comment `# long: REASON`


def findings(path: Path) -> list[str]:
    """One line for each finding in a notebook's code."""
    settings = ["--config", str(ROOT / "pyproject.toml"), "--config", "line-length=88", "--config", "extend-exclude=[]"]
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "json", *settings, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode in (0, 1), done.stderr
    found = [f"cell {f['cell']}, line {f['location']['row']}: {f['message']}" for f in json.loads(done.stdout)]
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"], start=1):
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] == "code" and len(lines) > LINES and not lines[0].startswith("# long: "):
            found.append(f"cell {number}: {len(lines)} lines, and no `# long: REASON` in the first")
    return found


@pytest.mark.parametrize("name", CHAPTERS)
def test_the_code_of_a_chapter_keeps_the_rules(name):
    found = findings(ROOT / "book" / f"{name}.ipynb")
    assert not found, "\n".join(found)


def test_a_breach_is_found(tmp_path):
    long_line, many_lines = "x = '" + "a" * 90 + "'", "\n".join(f"y{i} = {i}" for i in range(41))
    sources = ["import os\n", long_line, many_lines, f"# long: a table\n{many_lines}", "z = list(zip([1], [2]))"]
    cells = [
        {"cell_type": "code", "metadata": {}, "id": str(i), "execution_count": None, "outputs": [], "source": source}
        for i, source in enumerate(sources)
    ]
    metadata = {"language_info": {"name": "python"}}
    path = tmp_path / "chapter.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    assert [line.partition(",")[0].partition(":")[0] for line in findings(path)] == [f"cell {n}" for n in (1, 2, 5, 3)]
