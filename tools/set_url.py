"""Write the repository's address where a page read outside this repository needs it: the first cell of every chapter.

    make url REPO_URL=https://github.com/you/repo

Colab opens a committed notebook and nothing else, so the address from which that notebook installs `ncutils` has to be
committed too. The line is left out of the notebooks' hashes: nothing is executed again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

from stage import branch_name, repository_url

ROOT = Path(__file__).resolve().parents[1]
LINE = re.compile(r'^REPOSITORY = ".*?"', re.MULTILINE)


def set_url(url: str, branch: str, root: Path = ROOT) -> list[Path]:
    """Rewrite the one line in the template, the chapters and their notebooks; returns the files that changed."""
    url, branch = repository_url(url), branch_name(branch)  # what is written here is code that readers run
    address = url if branch == "main" else f"{url}@{branch}"
    line, changed = f'REPOSITORY = "{address}"', []
    for path in [root / "tools" / "first_cell.md", *sorted((root / "book").glob("[0-9]*.md"))]:
        text = path.read_text(encoding="utf-8")
        if (new := LINE.sub(lambda _: line, text, count=1)) != text:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    for path in sorted((root / "book").glob("[0-9]*.ipynb")):
        text = path.read_text(encoding="utf-8")
        new = re.sub(r'"REPOSITORY = \\".*?\\"', lambda _: json.dumps(line)[:-1], text, count=1)
        if new != text:
            path.write_text(new, encoding="utf-8")
            changed.append(path)
    return changed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the repository's address into the chapters' first cell.")
    parser.add_argument("url")
    parser.add_argument("--branch", default="main")
    args = parser.parse_args(arguments)
    changed = set_url(args.url, args.branch)
    print("\n".join(f"wrote {path.relative_to(ROOT)}" for path in changed) or "nothing to change")
    return 0


if __name__ == "__main__":
    sys.exit(main())
