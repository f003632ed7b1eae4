"""The notebook runner, the staging of the pages, the comparison of approximate cells and the others, on toy cases."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import shutil
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
NAMES = ("notebook", "stage", "set_url", "compare", "processors", "mutants")
notebook, stage, set_url, compare, processors, mutants = map(_load, [f"tools/{name}.py" for name in NAMES])

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
    options = {"root": project, "source": book, "into": book, **changes}
    return notebook.Settings(**options)


def write(project: Path, name: str, *parts: str) -> Path:
    path = project / "book" / f"{name}.md"
    path.write_text(HEADER + GUARD + "\n" + "".join(parts))
    return path


def closure(project: Path, code: str) -> set[str]:
    return {str(path.relative_to(project / "ncutils")) for path in notebook.dependencies(code, project)}


# ---------------------------------------------------------------------------------------------------- dependencies


OUTSIDE_THEORY = {
    "__init__.py",
    "metrics.py",
    "data.py",
    "networks.py",
    "training.py",
    "plots.py",
    "bundled/digits.npz",
}
THEORY = {"theory/__init__.py", "theory/checks.py", "theory/certificate.py"}


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("from ncutils import metrics", OUTSIDE_THEORY),
        ("from ncutils import certify", OUTSIDE_THEORY | THEORY),
        ("import ncutils\nncutils.theory.checks", OUTSIDE_THEORY | THEORY),
    ],
)
def test_dependencies_are_the_library_and_theory_where_it_is_named(project, code, expected):
    assert closure(project, code) == expected


def test_nothing_outside_theory_imports_theory():
    """What allows a chapter that does not name `theory` to stand when it changes."""
    for path in (ROOT / "ncutils").rglob("*.py"):
        if path.parent.name != "theory" and path.name != "__init__.py":
            for node in ast.walk(ast.parse(path.read_text())):
                names = [alias.name for alias in getattr(node, "names", ()) if hasattr(alias, "name")]
                assert "theory" not in f"{getattr(node, 'module', '')}.{'.'.join(names)}".split("."), path


def test_archives_concern_the_chapters_that_read_them(project):
    (project / "results").mkdir()
    (project / "results" / "4-cores.json").write_text("{}")
    read = notebook.dependencies("frame = experiments.archive(4)", project)
    assert project / "results" / "4-cores.json" in read
    assert project / "results" / "4-cores.json" not in notebook.dependencies("from ncutils import experiments", project)
    (project / "results" / "trust").mkdir()
    (project / "results" / "trust" / "fuzz.json").write_text("{}")
    reports = {code: notebook.dependencies(code, project) for code in ('results_dir() / "trust"', "archive(4)")}
    assert [project / "results" / "trust" / "fuzz.json" in found for found in reports.values()] == [True, False]


def test_questions_concern_the_chapters_that_ask_them(project):
    questions = project / "claims.toml"
    questions.write_text("version = 1\n")
    for name in ("judge_archives", "read_questions"):
        assert questions in notebook.dependencies(f"from ncutils.claims import {name}", project)
    assert questions not in notebook.dependencies("from ncutils.claims import Claims", project)


def test_comments_and_docstrings_are_not_code(project):
    write(project, "01_a", cell("from ncutils import metrics"))
    file = project / "ncutils" / "metrics.py"

    def now(text):
        file.write_text(text)
        return notebook.fingerprint("01_a", notebook.read_chapter(project / "book" / "01_a.md"), settings(project))

    first = now('"""About."""\n\nVALUE = 1\n\ndef f():\n    """Says."""\n    return "# kept"\n')
    assert (
        now('"""About -m ncutils."""\nVALUE = 1  # one\ndef f():\n    """Says\n    more."""\n    return "# kept"\n')
        == first
    )
    assert now('VALUE = 1\n\ndef f():\n    return "# other"\n') != first
    assert now('VALUE = 2\n\ndef f():\n    return "# kept"\n') != first


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
    (project / "ncutils" / "theory" / "checks.py").write_text("import sys\n")  # not named
    assert now() == first
    (project / "ncutils" / "metrics.py").write_text("VALUE = 2\n")
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
    assert json.loads(first)["metadata"]["ncutils"]["seconds"]["quick-cpu"] >= 1
    assert "expected cost" not in capsys.readouterr().out.replace("executing, expected cost", "", 1)

    assert notebook.refresh("01_a", options) == "up to date"
    assert target.read_bytes() == first
    assert notebook.refresh("01_a", options, force=True) == "executed"
    untimed = [re.sub(rb'("quick-cpu": )[0-9.]+', rb"\1", content) for content in (target.read_bytes(), first)]
    assert untimed[0] == untimed[1]  # byte for byte, but for the seconds it took, which a busy machine stretches

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


@pytest.mark.parametrize("part", ["text", "image/png"])
def test_an_output_edited_by_hand_is_executed_again(project, part):
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()\nprint(0.25)"
    write(project, "01_a", cell(draw))
    options, target = settings(project), project / "book" / "01_a.ipynb"
    notebook.refresh("01_a", options)
    book = notebook.read_notebook(target)
    outputs = book.cells[-1].outputs
    if part == "text":
        next(o for o in outputs if o.output_type == "stream").text = "0.35\n"
    else:
        picture = next(o for o in outputs if part in o.get("data", {})).data
        picture[part] = picture[part].replace("A", "B", 1)
    notebook.write_notebook(book, target, options)
    assert notebook.stale("01_a", options)
    assert notebook.refresh("01_a", options) == "executed"
    assert not notebook.stale("01_a", options)


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
    for name, seconds in (("01_a", 10), ("02_b", 50), ("09_ledger", 5)):
        executed = notebook.read_chapter(project / "book" / f"{name}.md")
        notebook.record(executed, "of other code", seconds, None, settings(project))
        notebook.write_notebook(executed, project / "book" / f"{name}.ipynb", settings(project))
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


# ------------------------------------------------------------------------------------------------------ comparison


def code(source: str, *outputs: dict, **metadata) -> dict:
    return {"cell_type": "code", "source": source, "outputs": list(outputs), "metadata": metadata}


def printed(text: str) -> dict:
    return {"output_type": "stream", "name": "stdout", "text": text}


def shown(**data) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": {k.replace("_", "/"): v for k, v in data.items()}}


CLAIM = {"id": "a", "verdict": "holds", "numbers": {"ratio": 0.5}, "ok": True}
PANEL = {"words": ["NC1"], "limits": [[0.0, 1.0], [1e-9, 1.0]], "artists": [["line", 3, [[0.1, 0.2], [0.5, 0.6]]]]}


def claims(**changes) -> dict:
    return {"output_type": "display_data", "metadata": {}, "data": {compare.CLAIMS: [{**CLAIM, **changes}]}}


def drawn(picture: str = "abc", **changes) -> dict:
    data = {"image/png": picture, compare.FIGURE: {"words": [], "panels": [{**PANEL, **changes}]}}
    return {"output_type": "display_data", "metadata": {}, "data": data}


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        (printed("NC1 0.0030"), printed("NC1 0.0030"), True),
        (printed("NC1 0.0030"), printed("NC1 0.0031"), False),
        (printed("at <A at 0x7f0011223344>"), printed("at <A at 0x7faabbccddee>"), True),
        (
            shown(text_plain="x", text_html="<td>0.5</td>"),
            shown(text_plain="x", text_html="<td class='b'>0.5</td>"),
            True,
        ),
        (shown(text_plain="x", text_html="<td>0.5</td>"), shown(text_plain="x", text_html="<td>0.6</td>"), False),
        (shown(text_html="<b>holds</b>"), shown(text_html="<b>fails</b>"), False),
        (shown(text_html="<p id='T_0a1b2'>T_0a1b2</p>"), shown(text_html="<p id='T_fffff'>T_fffff</p>"), True),
        (shown(text_latex="$1.5$"), shown(text_latex="$1.6$"), False),
        (shown(text_plain="x"), shown(text_plain="x", text_html="x"), False),
        (claims(), claims(), True),
        (claims(), claims(verdict="fails"), False),
        (claims(), claims(numbers={"ratio": 0.51}), False),
        (claims(), claims(ok=1), False),
        (drawn("abc"), drawn("def"), True),
        (drawn(), drawn(words=["NC2"]), False),
        (drawn(), drawn(artists=[["line", 3, [[0.1, 0.2001], [0.5, 0.6]]]]), True),
        (drawn(), drawn(artists=[["line", 3, [[0.1, 0.21], [0.5, 0.6]]]]), False),
        (drawn(), drawn(artists=[["line", 4, [[0.1, 0.2], [0.5, 0.6]]]]), False),
        (drawn(), drawn(limits=[[0.0, 1.0], [2e-9, 1.0]]), False),
    ],
)
def test_outputs_are_compared_exactly(old, new, same):
    assert (compare.difference(code("1", old), [new]) is None) == same


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
        ("1,000 digits", "1,001 digits", False),  # whole numbers are counts
        ("a   1.0\nb   2.0", "a  1.0\nb 2.0", True),  # alignment
        ("------ 1", "-------- 1", True),
        ("0.5", "-0.5", False),
        ("−0.5", "-0.5", True),
        ("0.00", "0.05", False),
        ("nan", "0.1", False),
        ("1.5 2.5", "1.5", False),
        ("2×10⁻³", "2×10⁻⁴", False),
    ],
)
def test_approximate_text(old, new, same):
    assert (compare.text_difference(old, new, 0.25) is None) == same


def test_approx_needs_a_tolerance_and_a_reason_and_never_covers_claims():
    reason = "# approx: the edge of stability is chaotic\nprint(1)"
    assert compare.rule(code(reason, approx=0.1)) == compare.Rule("approx", 0.1, "the edge of stability is chaotic")
    for cell_ in (
        code(reason, tags=["approx"]),
        code("print(1)", approx=0.1),
        code("# approx:\nprint(1)", approx=0.1),
        code(reason, claims(), approx=0.1),
    ):
        assert compare.rule(cell_).kind == "exact"
    assert compare.difference(code(reason, printed("0.50"), approx=0.1), [printed("0.52")]) is None
    assert compare.difference(code(reason, printed("0.50"), approx=0.1), [printed("0.60")])


def test_timings_keep_their_words_and_verdicts():
    timed = code("1", printed("64 wide: 1.5 ms"), claims(), tags=["timing"])
    assert compare.difference(timed, [printed("64 wide: 2.5 ms"), claims(numbers={"ratio": 3.0})]) is None
    assert compare.difference(timed, [printed("64 wide: 2.5 s"), claims()])
    assert compare.difference(timed, [printed("64 wide: 1.5 ms"), claims(verdict="fails")])
    assert compare.rule(code("1", claims(), tags=["nbval-ignore-output"])).kind == "timing"
    assert compare.rule(code("1", printed("1"), tags=["nbval-ignore-output"])).kind == "ignored"


def test_a_comparison_of_notebooks_counts_and_refuses_other_code(tmp_path, capsys):
    one = {"cells": [code("a", printed("1.0")), code("b", printed("2")), {"cell_type": "markdown", "source": "x"}]}
    two = {"cells": [code("a", printed("1.1")), code("b", printed("2"))]}
    report = compare.compare(one, two)
    assert (report.compared, list(report.differences)) == (2, [0])
    with pytest.raises(ValueError, match="same code"):
        compare.compare(one, {"cells": [code("a"), code("c")]})
    for name, book in (("one", one), ("two", two)):
        (tmp_path / name).write_text(json.dumps(book))
    assert compare.main([str(tmp_path / "one"), str(tmp_path / "two")]) == 1
    assert "2 cells compared, 1 differ" in capsys.readouterr().out


DRAWING = """
import matplotlib.pyplot as plt
import numpy as np
figure, (left, right) = plt.subplots(1, 2)
left.plot([1, 10, 100], [1e-3, 1e-2, 0.125], label="NC1")
left.fill_between([1, 100], [1e-3, 1e-2], 1)
left.set(xscale="log", yscale="log", title="on logarithmic axes")
left.legend()
right.bar([0, 1], [2.0, 3.0])
right.scatter([0, 1, 2], [1, 2, 3], c=[0.0, 0.5, 1.0])
_ = right.imshow(np.eye(3), aspect="auto")
assert "install" not in globals() and "figure_data" not in globals()
""".strip()


def test_nbval_fails_on_an_edited_output_and_only_then(project):
    """Through pytest itself, in a real kernel: text, HTML, figures, a tolerance with a reason."""
    write(
        project,
        "01_a",
        cell('import os\nprint("cache", os.environ["NCUTILS_CACHE"])'),
        cell("print('exact', 1.00)"),
        cell("# approx: a reason\nprint('tight', 3.00)", "---\napprox: 0.01\n---\n"),
        cell("import pandas\npandas.DataFrame({'layer': [1, 2], 'nc1': [0.5, 0.002]})"),
        cell(DRAWING),
    )
    (project / "tools").mkdir()
    for name in ("conftest.py", "tools/compare.py", "tools/figure_data.py"):
        (project / name).write_text((ROOT / name).read_text())
    os.environ["NCUTILS_CACHE"] = "off"
    try:
        notebook.refresh("01_a", settings(project))
    finally:
        del os.environ["NCUTILS_CACHE"]
    target = project / "book" / "01_a.ipynb"
    text = target.read_text()
    panels = [
        compare.decoded(output["data"][compare.FIGURE])["panels"]
        for cell_ in json.loads(text)["cells"]
        for output in cell_.get("outputs", ())
        if compare.FIGURE in output.get("data", {})
    ]
    assert len(panels) == 1  # of the last cell
    left, right = panels[0]
    assert left["words"] == ["on logarithmic axes", "NC1"]
    assert [kind for kind, *_ in left["artists"]] == ["line", "path"]
    assert [kind for kind, *_ in right["artists"]] == ["patch", "patch", "points", "colours", "image"]
    ((_, count, points),) = left["artists"][:1]
    assert count == 3 and points[1][0] == pytest.approx((points[0][0] + points[2][0]) / 2)  # decades are equal steps

    def failed_cells(*edits: tuple[str, str]) -> set[int]:
        edited = text
        for old, new in edits:
            assert old in edited, old
            edited = edited.replace(old, new, 1)
        target.write_text(edited)
        command = [sys.executable, "-m", "pytest", "--nbval", "book", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=300)
        lines = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
        assert done.returncode == (1 if lines else 0), done.stdout + done.stderr
        return {int(line.split("Cell ")[1].split()[0]) for line in lines}

    assert failed_cells(('"tight 3.0', '"tight 3.01')) == set()
    edits = (
        ('"exact 1.0', '"exact 1.1'),
        ('"tight 3.0', '"tight 3.1'),
        ("<td>0.500</td>", "<td>0.501</td>"),
        ('"on logarithmic axes"', '"on linear axes"'),
    )
    assert failed_cells(*edits) == {2, 3, 4, 5}


# ------------------------------------------------------------------------------------------------------ processors


def test_a_rotation_meets_every_pair_once_and_depends_on_the_commit():
    chapters, played = [f"{n:02}_c" for n in range(1, 11)], ["native", "avx2", "sse"]
    everything = processors.pairs(chapters, played, None, "0")
    assert len(everything) == len(set(everything)) == 30
    for rotate in (1, 7, 29):
        chosen = [processors.pairs(chapters, played, rotate, f"{commit:08x}") for commit in range(30)]
        assert all(len(set(few)) == rotate for few in chosen)
        assert set().union(*chosen) == set(everything)
    assert processors.pairs(chapters, played, 5, "0") != processors.pairs(chapters, played, 5, "1")


def test_the_recipe_for_other_processors_is_a_command_that_the_tool_understands():
    recipe = re.search(r"^processors:.*\n\t(.*)$", (ROOT / "Makefile").read_text(), re.M).group(1)
    assert re.search(rf"--on( (?:{'|'.join(processors.PROCESSORS)}))+ ", recipe)
    assert re.search(r"--rotate \d+\b", recipe), recipe


def test_processors_prints_a_table_and_sees_what_depends_on_the_machine(project, capsys):
    write(project, "01_a", cell("import os\nprint(os.environ.get('ATEN_CPU_CAPABILITY', 'native'))"), cell("print(1)"))
    write(project, "02_b", cell("print(2)"))
    for name in ("01_a", "02_b"):
        notebook.refresh(name, settings(project))
    committed = (project / "book" / "01_a.ipynb").read_bytes()
    assert processors.main(["--root", str(project), "--on", "native", "sse"]) == 1
    said = capsys.readouterr().out
    assert "01_a on sse, cell 1: stdout: committed 'native', now 'default'" in said
    assert said.splitlines()[-3].split() == ["native", "sse"]
    assert said.splitlines()[-2].split() == ["01_a", "3", "/", "0", "3", "/", "1"]
    assert said.splitlines()[-1].split() == ["02_b", "2", "/", "0", "2", "/", "0"]
    assert (project / "book" / "01_a.ipynb").read_bytes() == committed


def test_nothing_strange_is_committed():
    """Attacks write under names that they make up; none of those belongs to the project."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git checkout")
    assert [name for name in listed.stdout.split("\0") if not re.fullmatch(r"[\w./-]*", name, re.ASCII)] == []


def test_a_docstring_of_the_library_makes_no_chapter_stale(tmp_path):
    """On the book itself: every module reworded, then one of them changed."""
    shutil.copytree(ROOT / "ncutils", tmp_path / "ncutils", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "results").symlink_to(ROOT / "results")
    (tmp_path / "book").mkdir()
    chapters = notebook.chapters(ROOT / "book")
    for name in chapters:
        shutil.copy(ROOT / "book" / f"{name}.md", tmp_path / "book")

    def now():
        options = settings(tmp_path)
        return [
            notebook.fingerprint(name, notebook.read_chapter(tmp_path / "book" / f"{name}.md"), options)
            for name in chapters
        ]

    first = now()
    modules = sorted((tmp_path / "ncutils").rglob("*.py"))
    for path in modules:
        path.write_text(path.read_text().replace('"""', '"""Reworded. ', 1) + "\n# a remark\n")
    assert now() == first
    path = tmp_path / "ncutils" / "metrics.py"
    path.write_text(path.read_text() + "\nCHANGED = True\n")
    assert all(new != old for new, old in zip(now(), first, strict=True))


def test_a_damaged_notebook_is_named(tmp_path):
    path = tmp_path / "01_setting.ipynb"
    for text in ('{"cells": [', "[]", "null", "{}", '{"nbformat": 4}'):
        path.write_text(text)
        with pytest.raises(SystemExit, match=r"01_setting\.ipynb is damaged \(no notebook\): delete it"):
            notebook.read_notebook(path)


def test_a_planted_change_meets_the_tests_that_run_its_statement_the_quickest_first():
    lines = (
        "LIMIT = 3",
        "",
        "",
        "def f(x):",
        '    "Words."',
        "    if x > LIMIT:",
        "        return (x +",
        "    1)",
        "    return 0",
    )
    source = "\n".join(lines)
    known = {"seconds": {"quick": 0.1, "slow": 40.0, "slower": 100.0},
             "lines": {"f.py": {"6": ["slow", "quick"], "7": ["slower"], "9": ["slow", "quick"]}}}  # fmt: skip
    assert list(mutants.statement(source, 8)) == [7, 8] and list(mutants.statement(source, 6)) == [6]
    assert list(mutants.statement("@checked(\n    a=1)\ndef f(a):\n    b = a\n    return b\n", 2)) == [4, 5]
    assert mutants.tests_of("f.py", 8, source, known) == ["slower"]  # the second line of a statement, one test at least
    assert mutants.tests_of("f.py", 6, source, known) == ["quick", "slow"]  # an `if` without what hangs on it
    assert mutants.tests_of("f.py", 1, source, known) == ["quick", "slow"]  # at import: a minute of its file's tests
    assert mutants.tests_of("g.py", 1, source, known) == []


@pytest.mark.parametrize(("output", "by"), [
    ("FAILED tests/test_recorded.py::test_what[a b] - assert", "recorded"),
    ("FAILED tests/theory/test_head.py::test_x", "tests"),
    ("FAILED ncutils/data.py::ncutils.data.load", "examples"),
    ("ERROR tests/test_refusals.py::test_x", "recorded"),
    ("ERROR tests/test_head.py - NameError", "import"),
    ("ImportError while loading conftest", "import"),
])  # fmt: skip
def test_what_noticed_a_planted_change_is_read_from_what_pytest_says(output, by):
    assert mutants.noticed_by(f"...F\n{output}\n1 failed\n") == by
