"""The notebook runner, the staging of the pages and the comparison of approximate cells, on toy chapters."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _load(name: str):
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(f"tool_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(ROOT / "tools"))
notebook, stage, set_url, book_conftest = map(
    _load, ("tools/notebook.py", "tools/stage.py", "tools/set_url.py", "conftest.py")
)

HEADER = """---
jupytext:
  formats: md:myst,ipynb
  text_representation: {extension: .md, format_name: myst}
kernelspec: {display_name: Python 3, language: python, name: python3}
---

# A toy chapter

"""
GUARD = (ROOT / "tools" / "first_cell.md").read_text()


def cell(code: str, options: str = "") -> str:
    return f"```{{code-cell}} ipython3\n{options}{code}\n```\n\n"


@pytest.fixture
def project(tmp_path):
    """A small package and a folder of chapters; the package is complete enough to be imported in a kernel."""
    package = tmp_path / "ncutils"
    (package / "theory").mkdir(parents=True)
    (package / "bundled").mkdir()
    (package / "bundled" / "digits.npz").write_bytes(b"123")
    files = {
        "__init__.py": '_LAZY = {"certify": "theory.certificate", "nc1": ".metrics"}\n'
        "def __getattr__(name):\n    raise AttributeError(name)\n",
        "metrics.py": "VALUE = 1\n",
        "data.py": 'FOLDER = "bundled"\n',
        "networks.py": "from . import metrics\n",
        "training.py": "def train():\n    from ncutils.networks import metrics\n    return metrics\n",
        "plots.py": "import os\n",
        "theory/__init__.py": "",
        "theory/checks.py": "from ..metrics import VALUE\n",
        "theory/certificate.py": "from .checks import VALUE\n",
    }
    for name, text in files.items():
        (package / name).write_text(text)
    (tmp_path / "book").mkdir()
    return tmp_path


def settings(project: Path, **changes):
    book = project / "book"
    options = {"root": project, "source": book, "into": book, "costs": (project / "costs.json",), **changes}
    return notebook.Settings(**options)


def write(project: Path, name: str, *parts: str) -> Path:
    path = project / "book" / f"{name}.md"
    path.write_text(HEADER + GUARD + "\n" + "".join(parts))
    return path


def closure(project: Path, code: str) -> set[str]:
    return {str(path.relative_to(project / "ncutils")) for path in notebook.dependencies(code, project)}


# ---------------------------------------------------------------------------------------------------- dependencies


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import numpy", set()),
        ("from ncutils import metrics", {"metrics.py"}),
        ("from ncutils.metrics import VALUE", {"metrics.py"}),
        ("import ncutils.plots as p", {"plots.py"}),
        ("from ncutils import training", {"training.py", "networks.py", "metrics.py"}),  # import inside a function
        (
            "from ncutils import certify",
            {"theory/__init__.py", "theory/certificate.py", "theory/checks.py", "metrics.py"},
        ),
        (
            "import ncutils as nc\nnc.certify(1)",
            {"theory/__init__.py", "theory/certificate.py", "theory/checks.py", "metrics.py"},
        ),
        ("import ncutils\nncutils.nc1", {"metrics.py"}),
        ("from ncutils.theory import checks", {"theory/__init__.py", "theory/checks.py", "metrics.py"}),
        ("from ncutils import data", {"data.py", "bundled/digits.npz"}),
        ("import importlib\nimportlib.import_module('ncutils.plots')", {"plots.py"}),
    ],
)
def test_dependencies_are_the_modules_reached_and_no_others(project, code, expected):
    found = closure(project, code)
    assert found - {"__init__.py"} == expected
    assert ("__init__.py" in found) == bool(expected)


def test_fingerprint_changes_with_what_can_change_the_outputs_and_with_nothing_else(project):
    path = write(project, "01_a", "Prose.\n\n", cell("from ncutils import networks"))
    options = settings(project)

    def now(**changes):
        return notebook.fingerprint("01_a", notebook.read_chapter(path), settings(project, **changes))

    first = now()
    assert first == now()
    assert now(profile="paper") != first and now(device="cuda") != first
    path.write_text(path.read_text().replace("Prose.", "Other prose."))
    assert now() == first
    (project / "ncutils" / "plots.py").write_text("import sys\n")  # not imported
    assert now() == first
    (project / "ncutils" / "metrics.py").write_text("VALUE = 2\n")  # imported by what is imported
    assert now() != first
    second = now()
    path.write_text(path.read_text().replace("import networks", "import networks as n"))
    assert now() != second
    assert options.ledger == "09_ledger"


def test_the_address_in_the_first_cell_is_not_part_of_the_fingerprint(project):
    path = write(project, "01_a", cell("1"))
    before = notebook.read_chapter(path)
    (project / "tools").mkdir()
    (project / "tools" / "first_cell.md").write_text(GUARD)
    changed = set_url.set_url("https://github.com/a/b", "main", project)
    assert path in changed
    after = notebook.read_chapter(path)
    assert 'REPOSITORY = "https://github.com/a/b"' in after.cells[1].source
    assert [c["id"] for c in before.cells] == [c["id"] for c in after.cells]
    options = settings(project)
    assert notebook.fingerprint("01_a", before, options) == notebook.fingerprint("01_a", after, options)


def test_the_ledger_depends_on_what_the_other_notebooks_recorded(project):
    write(project, "01_a", cell("1"))
    ledger = write(project, "09_ledger", cell("2"))
    options = settings(project)

    def record(verdict):
        data = {"application/vnd.ncutils.claims+json": [{"verdict": verdict}]}
        output = {"output_type": "display_data", "data": data, "metadata": {}}
        cells = [{"cell_type": "code", "outputs": [output]}]
        (project / "book" / "01_a.ipynb").write_text(json.dumps({"cells": cells}))
        return notebook.fingerprint("09_ledger", notebook.read_chapter(ledger), options)

    assert record("holds") == record("holds") != record("does not show at this scale")


# ------------------------------------------------------------------------------------------------------- execution


def test_a_chapter_is_executed_once_then_merged_then_executed_again(project, capsys):
    path = write(project, "01_a", "Prose.\n\n", cell("from ncutils.metrics import VALUE\nprint('value', VALUE)"))
    options, target = settings(project), project / "book" / "01_a.ipynb"
    assert notebook.stale("01_a", options)
    assert notebook.refresh("01_a", options) == "executed"
    first = target.read_bytes()
    assert b"value 1" in first and b"papermill" not in first and b"iopub" not in first
    assert notebook.differences("01_a", options) == [] and not notebook.stale("01_a", options)
    assert json.loads((project / "costs.json").read_text())["01_a"]["quick-cpu"] >= 1
    assert "expected cost" not in capsys.readouterr().out.replace("executing, expected cost", "", 1)

    assert notebook.refresh("01_a", options) == "up to date"
    assert target.read_bytes() == first
    assert notebook.refresh("01_a", options, force=True) == "executed"
    assert target.read_bytes() == first  # byte for byte

    path.write_text(path.read_text().replace("Prose.", "Better prose."))
    assert "prose" in notebook.differences("01_a", options)[0]
    assert notebook.refresh("01_a", options) == "prose merged"
    merged = target.read_text()
    assert "Better prose." in merged and "value 1" in merged
    assert notebook.differences("01_a", options) == []

    (project / "ncutils" / "metrics.py").write_text("VALUE = 2\n")
    assert notebook.stale("01_a", options)
    # Code that fails: named by file and line, and the notebook of the last good run stays.
    path.write_text(
        path.read_text().replace("print('value', VALUE)", "print(VALUE)\n\nraise ValueError('no such layer')")
    )
    line = 1 + path.read_text().splitlines().index("raise ValueError('no such layer')")
    assert "code" in notebook.differences("01_a", options)[0]
    with pytest.raises(notebook.ChapterError) as failure:
        notebook.refresh("01_a", options)
    assert str(failure.value).startswith(f"book/01_a.md:{line}: ValueError: no such layer")
    assert target.read_text() == merged
    assert (project / "_build" / "failed" / "01_a.ipynb").is_file()


def test_an_error_of_syntax_is_reported_like_any_other(project):
    path = write(project, "01_a", cell("from ncutils import metrics"), cell("x = 1\n\nif x = 2:\n    pass"))
    line = 1 + path.read_text().splitlines().index("if x = 2:")
    with pytest.raises(notebook.ChapterError, match=rf"^book/01_a.md:{line}: SyntaxError"):
        notebook.refresh("01_a", settings(project))


def test_the_profile_and_the_device_reach_the_notebook_alone(project):
    write(project, "01_a", cell("import os\nprint(os.environ['NCUTILS_PROFILE'], os.environ['NCUTILS_DEVICE'])"))
    into, before = project / "elsewhere", dict(os.environ)
    notebook.refresh("01_a", settings(project, profile="paper", device="cuda", into=into))
    assert dict(os.environ) == before
    assert "paper cuda" in (into / "01_a.ipynb").read_text()
    assert not (project / "book" / "01_a.ipynb").exists()


def test_source_lines_skip_the_options_of_a_cell(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        HEADER
        + cell("first = 1")
        + cell("second = 2", ":tags: [hide-input]\n")
        + cell("\nthird = 3", ":tags: [approx]\n:approx: 0.1\n")
        + cell("fourth = 4", "---\ntags: [approx]\n---\n")
    )
    lines = path.read_text().splitlines()
    assert [lines[n - 1] for n in notebook.source_lines(path)] == ["first = 1", "second = 2", "third = 3", "fourth = 4"]


def test_the_plan_names_the_cost_and_puts_the_longest_first(project, capsys):
    for name in ("01_a", "02_b", "09_ledger"):
        write(project, name, cell("1"))
    costs = {"01_a": {"quick-cpu": 10}, "02_b": {"quick-cpu": 50}, "09_ledger": {"quick-cpu": 5}}
    (project / "costs.json").write_text(json.dumps(costs))
    order = notebook.plan(["01_a", "02_b", "09_ledger"], settings(project), jobs=2)
    assert order == ["02_b", "01_a", "09_ledger"]
    said = capsys.readouterr().err
    assert "3 of 3 notebooks to execute, about 50 s with 2 side by side" in said


def test_check_sees_what_nbval_does_not(project):
    path = write(project, "01_a", cell("1"))
    options, target = settings(project), project / "book" / "01_a.ipynb"
    assert "does not exist" in notebook.differences("01_a", options)[0]
    notebook.write_notebook(notebook.read_chapter(path), target, options)
    assert "never executed" in notebook.differences("01_a", options)[0]
    path.write_text(path.read_text() + "A closing sentence.\n")
    assert "cells here" in notebook.differences("01_a", options)[0]


def test_the_command_line_reports_a_failure_and_its_exit_status(project):
    write(project, "01_a", cell("1/0"))
    command = [sys.executable, ROOT / "tools/notebook.py", "01_a", "--root", project, "--source", project / "book"]
    done = subprocess.run([*command, "--into", project / "book"], capture_output=True, text=True, cwd=project)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr and "01_a.md:" in done.stderr
    assert not (project / "book" / "01_a.ipynb").exists()


# --------------------------------------------------------------------------------------------------------- staging


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("git@github.com:owner/name.git", "https://github.com/owner/name"),
        ("ssh://git@github.com:22/owner/name.git", "https://github.com/owner/name"),
        ("ssh://git@github.com/owner/name", "https://github.com/owner/name"),
        ("https://github.com/owner/name.git/", "https://github.com/owner/name"),
        ("https://user:token@gitlab.com/group/sub/name.git", "https://gitlab.com/group/sub/name"),
        ("http://github.com/owner/name", "https://github.com/owner/name"),
        ("/srv/git/name.git", ""),
        ("file:///srv/git/name", ""),
        ("", ""),
    ],
)
def test_repository_addresses_become_https(given, expected):
    assert stage.normalised(given) == expected


def test_pages_without_a_repository_have_no_launch_buttons():
    config = {"launch_buttons": {"thebe": True, "colab_url": "x"}, "html": {"a": 1}}
    alone = stage.configuration(config, "", "main")
    assert "thebe" not in alone["launch_buttons"] and "colab_url" not in alone["launch_buttons"]
    known = stage.configuration(config, "https://github.com/a/b", "dev")
    assert known["repository"] == {"url": "https://github.com/a/b", "branch": "dev", "path_to_book": ""}
    assert known["launch_buttons"]["thebe"] and config["html"] == {"a": 1}


def test_staging_copies_pages_keeps_executed_notebooks_and_forgets_removed_ones(tmp_path):
    book, target = tmp_path / "book", tmp_path / "_build" / "source"
    (book / "images").mkdir(parents=True)
    for name in ("index.md", "01_a.md", "01_a.ipynb", "references.bib", "images/a.svg"):
        (book / name).write_text(name)
    (tmp_path / "_toc.yml").write_text("root: book/index\n")
    (tmp_path / "_config.yml").write_text("title: t\n")
    stage.stage(target, "", "main", root=tmp_path)
    assert (target / "book/index.md").is_file() and (target / "book/images/a.svg").is_file()
    assert not (target / "book/01_a.ipynb").exists() and not (target / "book/01_a.md").exists()
    (target / "book/01_a.ipynb").write_text("executed here")
    (target / "book/00_gone.ipynb").write_text("removed from the book")
    stage.stage(target, "", "main", root=tmp_path)
    assert (target / "book/01_a.ipynb").read_text() == "executed here"
    assert not (target / "book/00_gone.ipynb").exists()
    stage.stage(target, "", "main", committed=True, root=tmp_path)
    assert (target / "book/01_a.ipynb").read_text() == "01_a.ipynb"


# --------------------------------------------------------------------------------------------- approximate outputs


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("NC1 0.0030", "NC1 0.0035", True),
        ("NC1 0.0030", "NC1 0.0050", False),
        ("NC1 3.0e-3", "NC1 0.0031", True),
        ("NC1 0.0030", "NC2 0.0030", False),
        ("Z8 1.5", "Z9 1.5", False),  # a digit inside a name is a word
        ("layer_3 1.5", "layer_4 1.5", False),
        ("holds: 0.5", "fails: 0.5", False),
        ("True 1.0", "False 1.0", False),
        ("1,000 digits", "1,100 digits", True),
        ("1,000 digits", "2,000 digits", False),
        ("a   1.0\nb   2.0", "a  1.0\nb 2.0", True),  # alignment
        ("------ 1", "-------- 1", True),
        ("0.5", "-0.5", False),
        ("−0.5", "-0.5", True),
        ("0.00 errors", "0.01 errors", True),  # the last printed digit
        ("0 violations", "1 violations", False),
        ("0.00", "0.05", False),
        ("nan", "0.1", False),
        ("1.5 2.5", "1.5", False),
        ("accuracy 97%", "accuracy 99%", True),
        ("2×10⁻³", "2×10⁻⁴", False),
    ],
)
def test_approximate_text(old, new, same):
    assert (book_conftest.text_differs(old, new, 0.25) is None) == same


def test_approximate_json_compares_numbers_by_value_and_words_exactly():
    claim = [{"id": "a", "verdict": "holds", "numbers": {"ratio": 0.5}, "ok": True}]

    def changed(**changes):
        return book_conftest.values_differ(claim, [{**claim[0], **changes}], 0.25)

    assert changed(numbers={"ratio": 0.55}) is None
    assert "ratio" in changed(numbers={"ratio": 0.9})
    assert "verdict" in changed(verdict="does not show at this scale")
    assert changed(ok=False) and changed(ok=1) and changed(numbers={})


TOY_BOOK = """
import json, os
print("cache", os.environ["NCUTILS_CACHE"])
"""


def test_nbval_fails_on_an_edited_output_and_only_then(project):
    """Through pytest itself: exact cells are exact, `approx` cells have a tolerance, an option sets it."""
    pandas = "import pandas\npandas.DataFrame({'layer': [1, 2], 'nc1': [0.5, 0.002]})"
    write(
        project,
        "01_a",
        cell(TOY_BOOK.strip()),
        cell("print('exact', 1.00)"),
        cell("print('loose', 2.00)", ":tags: [approx]\n"),
        cell("print('tight', 3.00)", "---\ntags: [approx]\napprox: 0.01\n---\n"),
        cell(pandas, ":tags: [approx]\n"),
    )
    (project / "tools").mkdir()
    for name in ("conftest.py", "tools/nbval_sanitize.cfg"):
        (project / name).write_text((ROOT / name).read_text())
    os.environ["NCUTILS_CACHE"] = "off"
    try:
        notebook.refresh("01_a", settings(project))
    finally:
        del os.environ["NCUTILS_CACHE"]
    target = project / "book" / "01_a.ipynb"
    text = target.read_text()

    def failed_cells(*edits: tuple[str, str]) -> set[int]:
        edited = text
        for old, new in edits:
            assert edited.count(old) == 1, (old, edited.count(old))
            edited = edited.replace(old, new)
        target.write_text(edited)
        command = [sys.executable, "-m", "pytest", "--nbval", "book", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
        lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        assert done.returncode == (1 if lines else 0), done.stdout + done.stderr
        return {int(line.split("Cell ")[1].split()[0]) for line in lines}

    assert failed_cells() == set()
    within = (('"loose 2.0', '"loose 2.3'), ("      1  0.500", "      1  0.550"))
    assert failed_cells(*within) == set()
    edits = (
        ('"exact 1.0', '"exact 1.1'),
        ('"loose 2.0', '"loose 2.9'),
        ('"tight 3.0', '"tight 3.1'),
        ("layer    nc1", "layers   nc1"),
    )
    assert failed_cells(*edits) == {2, 3, 4, 5}
