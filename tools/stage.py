"""Lay out what Jupyter Book builds from, under `_build/`: the pages, and a configuration that knows the repository.

    python tools/stage.py _build/source                 pages only; `make book` executes the notebooks into it
    python tools/stage.py _build/committed --committed  pages and the committed, executed notebooks (`make html`)
    python tools/stage.py --prune _build/html           drop the parts of MathJax that no page asks for

Staging deletes what the book no longer has, so it works in a new or empty folder or in one that it made and marked.

The repository's address is known only here: from REPO_URL, else from `git remote get-url origin`. Without one, the
pages carry no repository, Binder, Colab or live-code buttons, rather than buttons that lead to somebody else's.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Of MathJax's 24 MB: TeX in, HTML and fonts out, the menu and its English accessibility texts.
MATHJAX_KEPT = ("tex-chtml.js", "output/chtml", "input/tex", "ui", "a11y", "sre/mathmaps/en.json")

MARKER = ".staged"  # in every folder that was made here
# What a repository's path and a branch are made of; nothing that a shell, a regular expression or Python reads as code.
PATH = r"[\w.~+-]+(?:/[\w.~+-]+)*"
BRANCH = re.compile(r"[A-Za-z0-9_][\w.+-]*(?:/[\w.+-]+)*", re.ASCII)


def normalised(url: str) -> str:
    """The https address of a repository, from any form git accepts; "" for a path on this disk or anything else."""
    url = url.strip().removesuffix("/").removesuffix(".git")
    if match := re.fullmatch(
        rf"(?:ssh://)?(?:[\w.-]+@)([\w.-]+)(?::\d+/|[:/])({PATH})", url, re.ASCII
    ):  # git@host:owner/name
        return f"https://{match[1]}/{match[2]}"
    if match := re.fullmatch(
        rf"(?:https?|git)://(?:[^@/]+@)?([\w.-]+(?::\d+)?/{PATH})", url, re.ASCII
    ):  # drops user:token@
        return f"https://{match[1]}"
    return ""


def repository_url(given: str = "", root: Path = ROOT) -> str:
    if given:
        if not normalised(given):
            raise SystemExit(f"REPO_URL: {given!r} is not the address of a git repository (https://host/owner/name)")
        return normalised(given)
    asked = subprocess.run(["git", "remote", "get-url", "origin"], cwd=root, capture_output=True, text=True)
    return normalised(asked.stdout) if asked.returncode == 0 else ""


def branch_name(given: str) -> str:
    if not BRANCH.fullmatch(given):
        raise SystemExit(f"BRANCH: {given!r} is not the name of a branch (letters, digits and ._+-/)")
    return given


def configuration(config: dict, url: str, branch: str) -> dict:
    """The book's configuration with the repository written in, or with everything that needs one switched off."""
    config = {**config, "html": {**config.get("html", {})}}
    if url:
        config["repository"] = {"url": url, "branch": branch, "path_to_book": ""}
        config["html"] |= {"use_repository_button": True, "use_issues_button": True}
    else:
        config["repository"] = {"url": ""}
        config["launch_buttons"] = {"notebook_interface": "jupyterlab"}
        config["html"] |= {"use_repository_button": False, "use_issues_button": False}
    return config


def copy_if_changed(source: Path, target: Path) -> None:
    if not target.is_file() or target.read_bytes() != source.read_bytes():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def stage(target: Path, url: str, branch: str, committed: bool = False, root: Path = ROOT) -> None:
    """Bring `target` in line with the sources; executed notebooks that are already there stay."""
    if target.exists() and not (target / MARKER).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise SystemExit(f"{target} was not made by tools/stage.py and is not empty: delete it, or name another folder")
    book, chapters = root / "book", {path.stem for path in (root / "book").glob("[0-9]*.md")}
    wanted = {Path("_toc.yml"): root / "_toc.yml"}
    for path in sorted(book.rglob("*")):
        relative = path.relative_to(root)
        hidden = any(part.startswith((".", "__")) for part in relative.parts)
        if not path.is_file() or hidden or (path.parent == book and path.stem in chapters):
            continue
        if path.suffix != ".ipynb":
            # Jupyter Book looks for style sheets beside its configuration.
            wanted[path.relative_to(book) if "_static" in relative.parts else relative] = path
    if committed:
        wanted |= {Path("book") / f"{name}.ipynb": book / f"{name}.ipynb" for name in sorted(chapters)}
    kept = set() if committed else {Path("book") / f"{name}.ipynb" for name in chapters}
    if missing := [path for path in wanted.values() if not path.is_file()]:
        raise SystemExit(f"{missing[0].relative_to(root)} does not exist (make notebooks)")
    target.mkdir(parents=True, exist_ok=True)
    (target / MARKER).touch()
    for path in sorted(target.rglob("*")):
        if path.is_file() and path.relative_to(target) not in wanted.keys() | kept | {Path(MARKER)}:
            path.unlink()  # pages and notebooks that are no longer in the book
    for relative, path in wanted.items():
        copy_if_changed(path, target / relative)
    config = configuration(yaml.safe_load((root / "_config.yml").read_text()), url, branch)
    (target / "_config.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def prune(html: Path) -> None:
    if not (html / ".buildinfo").is_file():
        raise SystemExit(f"{html} does not hold pages that Sphinx built (no .buildinfo): nothing was deleted")
    mathjax = html / "_static" / "mathjax"
    for path in sorted(mathjax.rglob("*")):
        relative = path.relative_to(mathjax).as_posix()
        if path.is_file() and not any(relative == keep or relative.startswith(f"{keep}/") for keep in MATHJAX_KEPT):
            path.unlink()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Lay out what Jupyter Book builds from.")
    parser.add_argument("target", type=Path)
    parser.add_argument("--repo-url", default="")
    parser.add_argument("--branch", default="main")
    parser.add_argument("--committed", action="store_true", help="take the committed, executed notebooks")
    parser.add_argument("--prune", action="store_true", help="the target is built HTML: drop unused MathJax files")
    args = parser.parse_args(arguments)
    if args.prune:
        prune(args.target)
        return 0
    url = repository_url(args.repo_url)
    if not url:
        print("no repository address (REPO_URL=... or a git remote): pages without launch buttons")
    stage(args.target, url, branch_name(args.branch), args.committed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
