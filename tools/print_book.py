"""Print the built pages with a headless Chromium and join them: `_build/book.pdf`.

    python tools/print_book.py _build/html _build/book.pdf

Proofs and solutions are unfolded (book/_static/fit.js). Needs Chromium and pdfunite (poppler-utils); without one of
them it says so and ends well.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LEFT_OUT = "api"  # its pages are a hundred; the library's own help says the same


def browser() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def pages(toc: Path) -> list[str]:
    """The pages in the order of the table of contents."""
    found: list[str] = []

    def walk(node) -> None:
        if isinstance(node, dict):
            found.extend(str(node[key]).removesuffix(".ipynb") for key in ("root", "file") if key in node)
            node = [value for key, value in node.items() if key in ("parts", "chapters", "sections")]
        if isinstance(node, list):
            for item in node:
                walk(item)

    walk(yaml.safe_load(toc.read_text(encoding="utf-8")))
    return [name for name in found if not name.rpartition("/")[2].startswith(LEFT_OUT)]


def print_page(chromium: str, page: Path, target: Path) -> None:
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000", f"--print-to-pdf={target}"]
    done = subprocess.run([*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=180)
    if not target.is_file():
        raise SystemExit(f"{page} was not printed: {done.stderr.strip()[-300:]}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Print the built pages as one PDF.")
    parser.add_argument("html", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args(arguments)
    chromium, unite = browser(), shutil.which("pdfunite")
    if chromium is None or unite is None:
        missing = "a Chromium" if chromium is None else "pdfunite (poppler-utils)"
        print(f"no PDF was made: it needs {missing}, which this machine does not have")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        parts = []
        for number, name in enumerate(pages(ROOT / "_toc.yml")):
            part = Path(folder) / f"{number:02d}.pdf"
            print_page(chromium, args.html / f"{name}.html", part)
            parts.append(str(part))
        args.target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([unite, *parts, str(args.target)], check=True)
    print("open", args.target.resolve().as_uri())
    return 0


if __name__ == "__main__":
    sys.exit(main())
