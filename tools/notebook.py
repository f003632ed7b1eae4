"""Execute the book's chapters: `book/NAME.md` (source, MyST) -> `NAME.ipynb` (executed, outputs kept).

    python tools/notebook.py 03_descent               refresh book/03_descent.ipynb
    python tools/notebook.py 03_descent --into DIR    the same into another folder (what `make book` does)
    python tools/notebook.py --plan [NAMES]           merge changed prose; print what must be executed, and the cost
    python tools/notebook.py --check [NAMES]          fail where a chapter and its notebook differ

A chapter is executed only when something that can change its outputs has changed: its code cells, the parameters
(profile, device), the code of `ncutils` (of `ncutils.theory` for chapters that name it; docstrings and comments are
not code), or the archives in results/ for chapters that read them. A hash of all that is kept in the notebook's
metadata, with the seconds it took, because a clone has no useful file times. When only prose has changed, the new
prose is merged around the kept outputs and nothing is executed.
"""

from __future__ import annotations

import argparse
import ast
import functools
import hashlib
import io
import json
import os
import re
import sys
import threading
import time
import tokenize
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import figure_data

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "ncutils"
HEARTBEAT = 20.0  # seconds between two "still running" lines
ANSI = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Settings:
    """Where things are and what the notebooks are run with."""

    root: Path = ROOT
    source: Path = ROOT / "book"
    into: Path = ROOT / "book"
    profile: str = "quick"
    device: str = "cpu"
    ledger: str = "09_ledger"  # the chapter that reads what the executed notebooks of all the others recorded

    @property
    def scratch(self) -> Path:
        return self.root / "_build"


# ----------------------------------------------------------------------------------------------------
# Reading a chapter


def read_chapter(path: Path):
    """The chapter as a notebook without outputs, its cell ids fixed by the cells' contents."""
    import jupytext

    notebook = jupytext.read(path, fmt="md:myst")
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        content = "guard" if is_guard(cell.source) else cell.source  # its address is rewritten in place (set_url.py)
        digest = hashlib.sha256(f"{cell.cell_type}\n{content}".encode()).hexdigest()[:8]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
    # Written out rather than inherited from the machine that executes: the same bytes everywhere.
    notebook.metadata["language_info"] = {
        "name": "python",
        "pygments_lexer": "ipython3",
        "file_extension": ".py",
    }
    return notebook


def code_cells(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def is_guard(source: str) -> bool:
    """The first cell of every chapter: installs the library where it is missing (tools/first_cell.md)."""
    return "REPOSITORY = " in source and f"import {PACKAGE}" in source


def source_lines(path: Path) -> list[int]:
    """For every code cell of the chapter, the 1-based line of the file on which its code begins."""
    starts, fence, options = [], None, False
    lines = path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        if fence is None:
            opening = re.match(r"(`{3,})\{code-cell\}", line)
            if opening:
                fence, options, first = opening[1], "begin", None
        elif re.match(rf"{fence}`*\s*$", line):
            starts.append(first or number)
            fence = None
        elif options == "begin" and line.strip() == "---":
            options = "yaml"
        elif options == "yaml":
            options = "end" if line.strip() == "---" else "yaml"
        elif options == "begin" and line.startswith(":"):
            continue
        elif first is None and line.strip():
            first, options = number, "end"
    return starts


# ----------------------------------------------------------------------------------------------------
# What a chapter depends on


def dependencies(code: str, root: Path = ROOT) -> list[Path]:
    """Files whose contents can change what `code` prints: the library, archives, questions, reports, where named."""
    package = root / PACKAGE
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    if not re.search(r"\b(theory|certify)\b", code):
        files = [path for path in files if package / "theory" not in path.parents]
    if re.search(r"archive|results_dir", code):
        files += [path for path in (root / "results").glob("*") if path.is_file()]
    if re.search(r"judge_archives|read_questions", code):
        files += root.glob("claims.toml")
    if re.search(r"\btrust\b", code):
        files += (root / "results" / "trust").glob("*")
    return sorted(files)


@functools.cache
def _content(path: Path, changed: int, size: int) -> bytes:
    """What a file says: a module's code, any other file's bytes. (`changed` and `size` are there for the cache.)"""
    return _code(path.read_text(encoding="utf-8")).encode() if path.suffix == ".py" else path.read_bytes()


def _code(source: str) -> str:
    """A module without docstrings, comments, blank lines: the same on every Python, as a dump of its tree is not."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    for node in ast.walk(ast.parse(source)):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node, clean=False) is not None:
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    return "\n".join(line.rstrip() for line in lines if line.strip())


def claims_of(path: Path) -> str:
    """What other chapters can read from an executed notebook: its recorded claims."""
    if not path.is_file():
        return ""
    outputs = [o for cell in json.loads(path.read_text())["cells"] for o in cell.get("outputs", [])]
    found = [
        o["data"][mime] for o in outputs for mime in o.get("data", {}) if mime.startswith(f"application/vnd.{PACKAGE}.")
    ]
    return json.dumps(found, sort_keys=True)


def fingerprint(name: str, notebook, settings: Settings) -> str:
    """Hash of everything that can change the outputs of this chapter."""
    sources = [cell.source for cell in code_cells(notebook) if not is_guard(cell.source)]
    digest = hashlib.sha256()

    def add(*parts: str | bytes) -> None:
        for part in parts:
            part = part.encode() if isinstance(part, str) else part
            digest.update(len(part).to_bytes(8, "big") + part)

    add(settings.profile, settings.device, *sources)
    for path in dependencies("\n".join(sources), settings.root):
        about = path.stat()
        add(path.relative_to(settings.root).as_posix(), _content(path, about.st_mtime_ns, about.st_size))
    if name == settings.ledger:
        for other in chapters(settings.source):
            if other != name:
                add(other, claims_of(settings.into / f"{other}.ipynb"))
    return digest.hexdigest()[:16]


# ----------------------------------------------------------------------------------------------------
# Bringing a notebook up to date


def read_notebook(path: Path):
    import nbformat

    try:
        return nbformat.read(path, as_version=4) if path.is_file() else None
    except (
        nbformat.reader.NotJSONError,
        nbformat.ValidationError,
        ValueError,
        AttributeError,
        TypeError,
        KeyError,
    ) as error:
        raise SystemExit(f"{path} is damaged (no notebook): delete it, and it is executed anew") from error


def write_notebook(notebook, path: Path, settings: Settings) -> bool:
    """Write atomically; True if the file changed."""
    import nbformat

    text = nbformat.writes(notebook, version=4).rstrip("\n") + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    settings.scratch.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = settings.scratch / f".{path.stem}.{os.getpid()}.ipynb"
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
    return True


def seal(notebook) -> str:
    """Hash of every stored output, pictures and mark-up included: what was executed is what is committed."""
    outputs = [cell.outputs for cell in code_cells(notebook) if not is_guard(cell.source)]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()[:16]


def up_to_date(notebook, previous, digest: str) -> bool:
    """Whether the previous notebook's outputs are those of this chapter's code, as it was executed."""
    if previous is None or previous.metadata.get(PACKAGE, {}).get("hash") != digest:
        return False
    if previous.metadata[PACKAGE].get("outputs") != seal(previous):
        return False
    old, new = code_cells(previous), code_cells(notebook)
    same = [a.source for a in old if not is_guard(a.source)] == [b.source for b in new if not is_guard(b.source)]
    return same and len(old) == len(new) and all(cell.execution_count for cell in old)


def merge(notebook, previous, digest: str):
    """The chapter's cells with the outputs of a previous execution of the same code."""
    for new, old in zip(code_cells(notebook), code_cells(previous), strict=True):
        new.outputs, new.execution_count = old.outputs, old.execution_count
    notebook.metadata[PACKAGE] = {**previous.metadata[PACKAGE], "hash": digest}
    return notebook


def _clean_outputs(outputs: list) -> list:
    """Join what the kernel happened to send in several pieces."""
    joined: list = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            output.output_type == "stream"
            and last is not None
            and last.output_type == "stream"
            and last.name == output.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined


class ChapterError(Exception):
    """A chapter's code failed; the message names the file, the line and the error."""


def _describe(error, cells: list, path: Path, settings: Settings) -> str:
    name = os.path.relpath(path, settings.root)
    trace = [ANSI.sub("", line) for chunk in error.traceback for line in chunk.splitlines()]
    position = len([cell for cell in cells[: error.cell_index] if cell.cell_type == "code"])
    line = source_lines(path)[position]
    frames = [re.search(rf"Cell In\s?\[{error.exec_count}\], line (\d+)", text) for text in trace]
    line += next((int(frame[1]) - 1 for frame in frames if frame), 0)
    shown = path.read_text(encoding="utf-8").splitlines()[line - 1].strip()
    detail = "\n".join(f"    {text}" for text in trace[-25:])
    return f"{name}:{line}: {error.ename}: {error.evalue}\n  > {shown}\n{detail}"


class _Progress(threading.Thread):
    """Says every now and then that a notebook is still running, and in which cell."""

    def __init__(self, name: str, total: int, expected: float | None):
        super().__init__(daemon=True)
        self.label, self.total, self.expected = name, total, expected
        self.cell, self.begun, self.done = 0, time.monotonic(), threading.Event()

    def run(self) -> None:
        while not self.done.wait(HEARTBEAT):
            of = f" of about {self.expected:.0f} s" if self.expected else " s"
            say(self.label, f"{time.monotonic() - self.begun:.0f}{of}, in cell {self.cell} of {self.total}")


def say(name: str, text: str) -> None:
    """One whole line in one write, so that notebooks running side by side stay readable."""
    sys.stdout.write(f"[{name}] {text}\n")
    sys.stdout.flush()


def kernel_environment(settings: Settings) -> dict[str, str]:
    """What the kernel sees besides this process's own environment."""
    return {
        "NCUTILS_PROFILE": settings.profile,
        "NCUTILS_DEVICE": settings.device,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(settings.root), os.environ.get("PYTHONPATH")])),
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",  # progress bars would end up in the committed outputs
        "JUPYTER_PREFER_ENV_PATH": "1",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        "MKL_NUM_THREADS": os.environ.get("MKL_NUM_THREADS", "1"),
        "IPYTHONDIR": figure_data.ipython_folder(settings.scratch),
    }


def execute(notebook, path: Path, settings: Settings, expected: float | None) -> float:
    """Run the chapter through papermill, in place; returns the wall time."""
    import logging

    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    name = path.stem
    progress = _Progress(name, len(notebook.cells), expected)

    class Watch(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if match := re.match(r"Executing Cell (\d+)", record.getMessage()):
                progress.cell = int(match[1])

    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(watch := Watch())
    settings.into.mkdir(parents=True, exist_ok=True)
    (settings.scratch / "failed").mkdir(parents=True, exist_ok=True)
    draft = settings.scratch / "failed" / f"{name}.ipynb"
    progress.start()
    try:
        with mock.patch.dict(os.environ, kernel_environment(settings)):
            result = papermill.execute_notebook(
                notebook,
                str(draft),
                kernel_name="python3",
                progress_bar=False,
                log_output=True,
                cwd=str(settings.into),
                start_timeout=120,
                extra_arguments=["--IPKernelApp.log_level=50"],  # no advice about encryption among our lines
            )
    except PapermillExecutionError as error:
        raise ChapterError(_describe(error, notebook.cells, path, settings)) from None
    except DeadKernelError:
        where = os.path.relpath(path, settings.root)
        raise ChapterError(f"{where}: the kernel died in cell {progress.cell} (out of memory?)") from None
    finally:
        progress.done.set()
        logger.removeHandler(watch)
    draft.unlink(missing_ok=True)
    seconds = time.monotonic() - progress.begun
    for new, old in zip(code_cells(notebook), code_cells(result), strict=True):
        new.outputs, new.execution_count = _clean_outputs(old.outputs), old.execution_count
    return seconds


def refresh(name: str, settings: Settings, force: bool = False) -> str:
    """Bring one notebook up to date. Returns "up to date", "prose merged" or "executed"."""
    path, target = settings.source / f"{name}.md", settings.into / f"{name}.ipynb"
    if not path.is_file():
        raise ChapterError(f"{os.path.relpath(path, settings.root)}: no such chapter")
    notebook, previous = read_chapter(path), read_notebook(target)
    digest = fingerprint(name, notebook, settings)
    if not force and up_to_date(notebook, previous, digest):
        changed = write_notebook(merge(notebook, previous, digest), target, settings)
        say(name, "prose merged, nothing to execute" if changed else "up to date")
        return "prose merged" if changed else "up to date"
    expected = expected_cost(name, settings)
    say(name, f"executing, expected {f'{expected:.0f} s' if expected else 'cost not known yet'}")
    seconds = execute(notebook, path, settings, expected)
    if fingerprint(name, read_chapter(path), settings) != digest:
        say(name, "changed while it ran: kept what ran, run again for the rest")
    record(notebook, digest, seconds, expected, settings)
    write_notebook(notebook, target, settings)
    say(name, f"done in {seconds:.0f} s")
    return "executed"


# ----------------------------------------------------------------------------------------------------
# Costs, plan, check


def expected_cost(name: str, settings: Settings) -> float | None:
    """Seconds the chapter took where it last ran with these settings: there, or else in the book."""
    key = f"{settings.profile}-{settings.device}"
    for folder in (settings.into, settings.source):
        found = read_notebook(folder / f"{name}.ipynb")
        if found is not None and key in (seconds := found.metadata.get(PACKAGE, {}).get("seconds", {})):
            return seconds[key]
    return None


def record(notebook, digest: str, seconds: float, expected: float | None, settings: Settings) -> None:
    """Keep what was executed, and its cost, in the notebook; one that moved little stays."""
    if expected is None or not 0.5 < seconds / expected < 2:
        expected = max(1, round(seconds))
    spent = {f"{settings.profile}-{settings.device}": expected}
    notebook.metadata[PACKAGE] = {"hash": digest, "outputs": seal(notebook), "seconds": spent}


def stale(name: str, settings: Settings) -> bool:
    path, target = settings.source / f"{name}.md", settings.into / f"{name}.ipynb"
    notebook = read_chapter(path)
    return not up_to_date(notebook, read_notebook(target), fingerprint(name, notebook, settings))


def plan(names: list[str], settings: Settings, jobs: int = 1, force: bool = False) -> list[str]:
    """Settle what needs no execution; return the chapters that do, longest first, and say what they will cost."""
    waiting = [name for name in names if force or stale(name, settings)]
    if settings.ledger in names and waiting and settings.ledger not in waiting:
        waiting.append(settings.ledger)  # what it reads is about to change
    costs = {name: expected_cost(name, settings) for name in waiting}
    known = [cost for cost in costs.values() if cost is not None]
    text = f"{len(waiting)} of {len(names)} notebooks to execute"
    if known:
        text += f", about {max(sum(known) / jobs, *known):.0f} s with {jobs} side by side"
    if unknown := len(waiting) - len(known):
        text += f" ({unknown} never timed here)"
    print(text, file=sys.stderr)
    for name in names:
        if name not in waiting:
            target = settings.into / f"{name}.ipynb"
            notebook, previous = read_chapter(settings.source / f"{name}.md"), read_notebook(target)
            merged = merge(notebook, previous, previous.metadata[PACKAGE]["hash"])
            if write_notebook(merged, target, settings):
                print(f"[{name}] prose merged, nothing to execute", file=sys.stderr)
    # Those never timed first, then the longest; the ledger waits for all the others.
    return sorted(waiting, key=lambda name: (name == settings.ledger, -(costs[name] or 1e9)))


def differences(name: str, settings: Settings) -> list[str]:
    """How a chapter and its notebook differ, in words; empty when they agree and every code cell was run."""
    path, target = settings.source / f"{name}.md", settings.into / f"{name}.ipynb"
    source, shown = os.path.relpath(path, settings.root), os.path.relpath(target, settings.root)
    notebook, executed = read_chapter(path), read_notebook(target)
    if executed is None:
        return [f"{source}: {shown} does not exist (make notebook NAME={name})"]
    problems = []
    for number, (new, old) in enumerate(zip(notebook.cells, executed.cells, strict=False), start=1):
        if new.cell_type != old.cell_type or new.source != old.source:
            kind = "code" if "code" in (new.cell_type, old.cell_type) else "prose"
            ours, theirs = new.source.splitlines() or [""], old.source.splitlines() or [""]
            at = next(
                (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
                min(len(ours), len(theirs)) - 1,
            )
            problems.append(f"{source}: cell {number} ({kind}) differs from {shown} at {ours[at].strip()!r}")
            break
        if new.metadata != old.metadata:
            problems.append(
                f"{source}: cell {number}: options {dict(new.metadata)} here, {dict(old.metadata)} in {shown}"
            )
            break
    else:
        if len(notebook.cells) != len(executed.cells):
            problems.append(f"{source}: {len(notebook.cells)} cells here, {len(executed.cells)} in {shown}")
    for number, cell in enumerate(executed.cells, start=1):
        if cell.cell_type == "code" and cell.execution_count is None:
            problems.append(f"{shown}: cell {number} was never executed")
        if any(output.output_type == "error" for output in cell.get("outputs", [])):
            problems.append(f"{shown}: cell {number} shows an error")
    return problems


def chapters(source: Path) -> list[str]:
    return sorted(path.stem for path in source.glob("[0-9]*.md"))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Execute, plan or check the book's chapters.")
    parser.add_argument("names", nargs="*", help="chapter names without extension (default with --plan/--check: all)")
    parser.add_argument("--into", type=Path, default=ROOT / "book", help="folder of the executed notebooks")
    parser.add_argument("--source", type=Path, default=ROOT / "book", help="folder of the chapters")
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    parser.add_argument("--profile", default="quick")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ledger", default="09_ledger", help="the chapter that reads all the others' notebooks")
    parser.add_argument("--jobs", type=int, default=1, help="with --plan: how many will run side by side")
    parser.add_argument("--force", action="store_true", help="execute even if up to date")
    parser.add_argument("--plan", action="store_true", help="names to execute on stdout, the cost on stderr")
    parser.add_argument("--check", action="store_true", help="fail where chapter and notebook differ")
    args = parser.parse_args(arguments)

    settings = Settings(
        root=args.root.resolve(),
        source=args.source.resolve(),
        into=args.into.resolve(),
        profile=args.profile,
        device=args.device,
        ledger=args.ledger,
    )
    names = args.names or (chapters(settings.source) if args.plan or args.check else [])
    if not names and not (args.plan or args.check):
        parser.error("name one chapter, or use --plan or --check")
    try:
        if args.check:
            problems = [problem for name in names for problem in differences(name, settings)]
            print("\n".join(problems) or f"{len(names)} chapters agree with their notebooks", file=sys.stderr)
            return bool(problems)
        if args.plan:
            print(*plan(names, settings, args.jobs, args.force))
            return 0
        for name in names:
            refresh(name, settings, args.force)
        return 0
    except ChapterError as error:
        kept = "the notebook of the last good run is untouched"
        print(f"\n{error}\n  ({kept}; the failed run is in _build/failed/)", file=sys.stderr, flush=True)
        return 1


if __name__ == "__main__":
    sys.exit(main())
