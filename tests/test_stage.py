"""Staging, the repository's address, one builder at a time: what must not be deleted, written or run at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
import set_url
import stage
import yaml

ROOT = stage.ROOT


@pytest.fixture
def project(tmp_path):
    """A book of one chapter, its template and its committed notebook, in a folder with a space in its name."""
    root = tmp_path / "a book"
    (root / "book").mkdir(parents=True)
    (root / "tools").mkdir()
    line = 'REPOSITORY = ""  # written by `make url REPO_URL=...`\n'
    (root / "tools/first_cell.md").write_text(line)
    (root / "book/01_a.md").write_text(line)
    (root / "book/01_a.ipynb").write_text(json.dumps({"cells": [{"source": [line]}]}))
    (root / "book/index.md").write_text("# A book\n")
    (root / "_toc.yml").write_text("root: book/index\n")
    (root / "_config.yml").write_text("title: t\n")
    return root


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --------------------------------------------------------------------------------------------------- what is deleted


def test_a_folder_with_somebody_elses_files_is_refused_untouched(project, tmp_path):
    victim = tmp_path / "victim"
    (victim / "docs").mkdir(parents=True)
    (victim / "thesis.txt").write_text("years")
    (victim / "docs/a.py").write_text("x = 1\n")
    before = files(victim)
    with pytest.raises(SystemExit, match=r"was not made by tools/stage.py"):
        stage.stage(victim, "", "main", root=project)
    assert files(victim) == before


def test_a_file_is_refused(project, tmp_path):
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match=r"was not made by tools/stage.py"):
        stage.stage(tmp_path / "file", "", "main", root=project)
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize("exists", [False, True])
def test_a_new_or_empty_folder_is_taken_and_known_again(project, tmp_path, exists):
    target = tmp_path / "target"
    if exists:
        target.mkdir()
    stage.stage(target, "", "main", root=project)
    (target / "book/removed.md").write_text("no longer in the book")
    stage.stage(target, "", "main", root=project)
    assert not (target / "book/removed.md").exists()
    assert (target / "book/index.md").is_file()
    assert yaml.safe_load((target / "_config.yml").read_text())["title"] == "t"


def test_a_missing_notebook_stops_before_anything_is_deleted(project, tmp_path):
    target = tmp_path / "target"
    stage.stage(target, "", "main", committed=True, root=project)
    before = files(target)
    (project / "book/01_a.ipynb").unlink()
    (project / "book/index.md").unlink()
    with pytest.raises(SystemExit, match=r"01_a\.ipynb does not exist"):
        stage.stage(target, "", "main", committed=True, root=project)
    assert files(target) == before


def test_pruning_wants_pages_that_sphinx_built(tmp_path):
    mathjax = tmp_path / "_static" / "mathjax"
    (mathjax / "output/svg").mkdir(parents=True)
    (mathjax / "output/svg/fonts.js").write_text("unused")
    (mathjax / "tex-chtml.js").write_text("used")
    with pytest.raises(SystemExit, match="nothing was deleted"):
        stage.prune(tmp_path)
    assert (mathjax / "output/svg/fonts.js").is_file()
    (tmp_path / ".buildinfo").touch()
    stage.prune(tmp_path)
    assert not (mathjax / "output/svg/fonts.js").exists() and (mathjax / "tex-chtml.js").is_file()


# --------------------------------------------------------------------------------------------------- what is written

NOT_ADDRESSES = [
    'https://h/a";import os;os.system("x")#',
    "https://h/a'b",
    "https://h/a\nimport os",
    "https://h/a b",
    "https://h/a\\1b",
    "https://h/a;b",
    "https://h/$(id)",
    "https://h/a`id`",
    "https://h/é",
    "https://h/",
    "https:///a",
    "git@h:a;b",
    "-https://h/a",
    "javascript:alert(1)",
]


@pytest.mark.parametrize("url", NOT_ADDRESSES)
def test_what_is_not_an_address_is_not_written(project, url):
    before = files(project)
    with pytest.raises(SystemExit, match=r"REPO_URL: .* is not the address"):
        set_url.set_url(url, "main", project)
    assert files(project) == before


@pytest.mark.parametrize("branch", ["", "-x", 'a"b', "a b", "a\nb", "x;echo", "a//b", "a/", "$(id)", "a\\1"])
def test_what_is_not_a_branch_is_not_written(project, branch):
    before = files(project)
    with pytest.raises(SystemExit, match=r"BRANCH: .* is not the name"):
        set_url.set_url("https://github.com/a/b", branch, project)
    assert files(project) == before


@pytest.mark.parametrize(
    ("url", "branch", "address"),
    [
        ("https://github.com/a/b", "main", "https://github.com/a/b"),
        ("git@github.com:a/b.git", "v1.0/rc-2", "https://github.com/a/b@v1.0/rc-2"),
        ("https://gitlab.example.org:8443/~u/g+h/b_1", "dev", "https://gitlab.example.org:8443/~u/g+h/b_1@dev"),
    ],
)
def test_an_address_is_written_once_everywhere_and_can_be_changed(project, url, branch, address):
    for given in ("https://github.com/old/name", url):
        assert len(set_url.set_url(given, branch, project)) == 3
    assert set_url.set_url(url, branch, project) == []
    line = f'REPOSITORY = "{address}"  # written by `make url REPO_URL=...`\n'
    assert (project / "tools/first_cell.md").read_text() == (project / "book/01_a.md").read_text() == line
    assert json.loads((project / "book/01_a.ipynb").read_text())["cells"][0]["source"] == [line]


# --------------------------------------------------------------------------------------------- one builder at a time


@pytest.mark.skipif(os.name == "nt", reason="no fcntl: builders do not wait on Windows")
def test_a_second_builder_waits_and_says_so(tmp_path):
    tools = tmp_path / "a path" / "tools"
    tools.mkdir(parents=True)
    alone = tools / "alone.py"
    alone.write_text((ROOT / "tools/alone.py").read_text())
    ours, theirs = tmp_path / "first started", tmp_path / "first ended"
    code = (
        "import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(2); pathlib.Path(sys.argv[2]).touch()"
    )
    first = subprocess.Popen([sys.executable, alone, sys.executable, "-c", code, ours, theirs])
    while not ours.exists():
        assert first.poll() is None
        time.sleep(0.01)
    check = "import pathlib, sys; sys.exit(3 if pathlib.Path(sys.argv[1]).exists() else 4)"
    command = [sys.executable, alone, sys.executable, "-c"]
    second = subprocess.run([*command, check, theirs], capture_output=True, text=True)
    assert first.wait() == 0
    assert second.returncode == 3  # it ran, after the first had ended, and its status is handed on
    assert f"another make is building in {tools.parent}: waiting" in second.stderr
    third = subprocess.run([*command, ""], capture_output=True, text=True)
    assert third.returncode == 0 and third.stderr == ""
