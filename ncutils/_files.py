"""Where files are, one way to write them, one way to name what is in them."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import os
import re
import time
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path


def checkout() -> Path | None:
    """The root of the checkout that this package stands in; None for an installed copy."""
    root = Path(__file__).resolve().parents[1]
    return root if (root / "pyproject.toml").exists() else None


def data_dir() -> Path:
    """$NCUTILS_DATA, else data/ of the checkout, else ~/.cache/ncutils."""
    if setting := os.environ.get("NCUTILS_DATA"):
        return Path(setting).expanduser()
    return root / "data" if (root := checkout()) else _user_cache()


def cache_dir() -> Path | None:
    """Where jobs are kept: $NCUTILS_CACHE ("off": nowhere), else _build/cache of the checkout, else in ~/.cache."""
    if setting := os.environ.get("NCUTILS_CACHE"):
        return None if setting == "off" else Path(setting).expanduser()
    return root / "_build" / "cache" if (root := checkout()) else _user_cache() / "cells"


def results_dir() -> Path:
    """results/ of the checkout, or inside an installed package (setup.py puts it there)."""
    return (checkout() or Path(__file__).resolve().parent) / "results"


def claims_file() -> Path:
    """claims.toml of the checkout, or inside an installed package."""
    return (checkout() or Path(__file__).resolve().parent) / "claims.toml"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ncutils"


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A place to write to that becomes ``path`` when the block ends: a reader sees the old file or the whole new one.

    Raises:
        OSError: naming the file that could not be written; no part of it is left.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sweep_away(folder: Path, age: float = 86_400.0) -> None:
    """Remove what :func:`atomic` was writing of jobs in a process that was killed, once it is a day old."""
    for path in folder.glob(".*"):
        if not re.fullmatch(r"\.[0-9a-f]{16}\.(parquet|checkpoint)\.[0-9a-f]{8}", path.name):
            continue  # somebody else's: the folder may be anyone's
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - path.stat().st_mtime > age:
                path.unlink()


def check_readable(error: Exception) -> None:
    """Raise what says nothing about a file's contents again: no memory, no library, no right or no way to read it."""
    if isinstance(error, (MemoryError, ImportError)) or (isinstance(error, OSError) and error.errno is not None):
        raise error


def set_aside(path: Path, reason: object) -> None:
    """Rename a damaged file to NAME.damaged and warn about it by name."""
    aside = path.with_name(f"{path.name}.damaged")
    with contextlib.suppress(FileNotFoundError):  # another process was faster
        os.replace(path, aside)
    warnings.warn(f"{path} is damaged ({reason}); kept as {aside.name}, what it held is computed again", stacklevel=3)


def digest(*parts: str | bytes) -> str:
    """16 hex digits of the SHA-256 of these parts."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else part)
    return found.hexdigest()[:16]


def syntax(source: str) -> str:
    """What a module says to Python: its syntax tree without docstrings, so that comments and prose do not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        if isinstance(node, kinds) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)
