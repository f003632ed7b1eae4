"""Run a command while no other one started by this script runs in the same checkout; wait for a turn, saying so.

    python tools/alone.py make do-book

The lock is the kernel's, on the checkout's folder: it ends with the command, however that ends, and leaves no file.
Where the system has no such lock (Windows, some network file systems) the command simply runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ROOT = Path(__file__).resolve().parents[1]


def hold(folder: Path = ROOT) -> None:
    """Lock `folder` for the rest of this process and of the command that replaces it."""
    if fcntl is None:
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print(f"another make is building in {folder}: waiting until it has ended", file=sys.stderr, flush=True)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return
    os.set_inheritable(handle, True)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: alone.py COMMAND [ARGUMENT ...]")
    hold()
    os.execvp(sys.argv[1], sys.argv[1:])
