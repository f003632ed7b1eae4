"""Plant single changes in the library, one at a time, and see whether the tests notice.

    python tools/mutants.py [COUNT] [SECONDS] [WORD ...]    default: 80 changes, at most an hour
    python tools/mutants.py --again                         the survivors of the report, tried once more

Changes are drawn with a fixed seed, of the files whose path holds one of the words (of all, where none is given). A
change is one operator, comparison, boolean or number; docstrings, messages and type hints are left alone. Each meets
the tests and docstring examples that belong to its file; one that survives them meets the tests of its neighbours too.

Works in a copy of the checkout. Writes results/trust/mutants.json: what was planted, killed, and what survived, with
the reason that somebody wrote beside a survivor, if any.
"""

from __future__ import annotations

import ast
import collections
import json
import math
import os
import queue
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "results" / "trust" / "mutants.json"
JOBS = 2  # copies of the tree, and changes tried at a time
SWAPS: dict[type, str] = {
    **{ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.FloorDiv: "/", ast.Mod: "*"},
    **{ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.And: "or", ast.Or: "and"},
}
OWN = {  # the tests that belong to a file, where they are not named after it
    "__main__": ("test_main",),
    "_arguments": ("test_fuzz",),
    "_files": ("test_files", "test_data", "test_experiments"),
    "_measure": ("test_measure",),
    "_plain": ("test_plain_training",),
    "fetch": ("test_data",),
    "balancedness": ("theory/test_theorem_4_4",),
    "head": ("theory/test_theorem_3_1", "theory/test_certify"),
    "metrics": ("test_metrics", "test_measure"),
    "simulate": ("theory/test_theorem_4_4",),
    "tangent_kernel": ("theory/test_theorem_5_2",),
}
UNRECORDED = ("__main__", "_arguments", "_files", "fetch", "ledger", "claims")
ELSEWHERE = (
    "browser",
    "book",
    "altered",
    "tools",
    "pages",
    "print",
    "stage",
    "map",
    "code",
    "typing",
    "animation",
    "fuzz",
    "benchmarks",
    "experiments",
    "main",
)


def tests_of(file: str) -> list[str]:
    """The test files that belong to a file of the library."""
    path = Path(file)
    if path.stem in OWN:
        names = OWN[path.stem]
    elif path.parts[1] == "experiments":
        names = ("test_experiments",)
    else:
        names = (f"theory/test_{path.stem}" if path.parts[1] == "theory" else f"test_{path.stem}",)
    recorded = () if path.stem in UNRECORDED else ("test_recorded",)  # the quickest comes first
    return [f"tests/{name}.py" for name in (*recorded, *names)]


def neighbours_of(file: str) -> list[str]:
    """Tests of the other files that use it: of theory those of theory, of the rest all but those of pages."""
    found = sorted((ROOT / "tests" / "theory").glob("test_*.py")) if "theory" in Path(file).parts else [
        p for p in sorted((ROOT / "tests").glob("test_*.py")) if not any(word in p.stem for word in ELSEWHERE)
    ]  # fmt: skip
    own = tests_of(file)
    return [name for p in found if (name := p.relative_to(ROOT).as_posix()) not in own]


def candidates(file: str) -> list[tuple[str, int, int, str, str]]:
    """(file, start, end, old, new) of every single change, by offset."""
    source = (ROOT / file).read_text(encoding="utf-8")
    starts = [0]
    for line in source.encode().splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    data = source.encode()
    found = []

    def between(left, right, operator) -> None:
        a, b = starts[left.end_lineno - 1] + left.end_col_offset, starts[right.lineno - 1] + right.col_offset
        if (new := SWAPS.get(type(operator))) is not None and b"\n" not in data[a:b] and b"(" not in data[a:b]:
            found.append((file, a, b, data[a:b].decode(), f" {new} "))

    def visit(node) -> None:
        if isinstance(node, (ast.Raise, ast.JoinedStr)):  # the words of an error
            return
        if isinstance(node, ast.BinOp) and not any(isinstance(n, ast.Constant) and isinstance(n.value, str)
                                                   for n in (node.left, node.right)):  # fmt: skip
            between(node.left, node.right, node.op)
        if isinstance(node, ast.Compare):
            for left, operator, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                between(left, right, operator)
        if isinstance(node, ast.BoolOp):
            between(node.values[0], node.values[1], node.op)
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            a, b = starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset
            new = repr(node.value + 1 if isinstance(node.value, int) else node.value * 2 or 1.0)
            found.append((file, a, b, data[a:b].decode(), new))
        for name, child in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for item in child if isinstance(child, list) else [child]:
                if isinstance(item, ast.AST):
                    visit(item)

    visit(ast.parse(source))
    return found


def passes(copy: Path, which: list[str], seconds: float) -> bool:
    """Whether these tests all pass in a copy; a change that makes them run on and on counts as noticed."""
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "NCUTILS_CACHE": "off",
                                "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--doctest-modules", *which]
    try:
        return not subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return False


def drawn(count: int, words: list[str]) -> tuple[list[str], int, list[tuple]]:
    """The files, the number of possible changes, and those to plant."""
    files = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "ncutils").rglob("*.py"))]
    files = [f for f in files if Path(f).stem != "__init__" and any(word in f for word in words or [""])]
    every = [c for f in files for c in candidates(f)]
    return files, len(every), random.Random(0).sample(every, min(count, len(every)))


def again(report: dict) -> list[tuple]:
    """The survivors of a report, found by the text of their line, nearest to where they were."""
    found = []
    for survivor in report["survived"]:
        data = (ROOT / survivor["file"]).read_bytes()
        lines, wanted = data.decode().splitlines(), tuple(survivor[k] for k in ("text", "old", "new"))
        places = [
            (abs(row + 1 - survivor["line"]), candidate)
            for candidate in candidates(survivor["file"])
            if (lines[row := data[: candidate[1]].count(b"\n")].strip(), *candidate[3:]) == wanted
        ]
        if not places:
            raise ValueError(f"{survivor['file']}: {survivor['text']}: is not there any more; plant anew")
        found.append(min(places)[1])
    return found


class Tests:
    """The tests of a file, and those of its neighbours; each is run once without any change before it counts."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.locks: dict[str, threading.Lock] = collections.defaultdict(threading.Lock)

    def noticed_by(self, copy: Path, mutant: tuple) -> str:
        """Which stage notices a change in this copy of the tree; "" if none does."""
        file, a, b, _, new = mutant
        group = "theory" if "theory" in Path(file).parts else "the rest"
        path, whole = copy / file, (copy / file).read_bytes()
        stages = {"own": (file, [*tests_of(file), file]), "neighbours": (group, neighbours_of(file))}
        for stage, (key, which) in stages.items():
            with self.locks[key]:
                if key not in self.seconds:
                    begun = time.time()
                    if not passes(copy, which, 1800):  # they would notice everything
                        raise RuntimeError(f"these fail without any change: {' '.join(which)}")
                    self.seconds[key] = 60 + 4 * (time.time() - begun)
            path.write_bytes(whole[:a] + new.encode() + whole[b:])
            try:
                if not passes(copy, which, self.seconds[key]):
                    return stage
            finally:
                path.write_bytes(whole)
        return ""


def described(mutant: tuple, reasons: dict) -> dict:
    """A survivor, as the report keeps it."""
    file, a, _, old, new = mutant
    whole = (ROOT / file).read_bytes()
    line = whole[:a].count(b"\n") + 1
    text = whole.decode().splitlines()[line - 1].strip()
    return {
        "file": file,
        "line": line,
        "text": text,
        "old": old,
        "new": new,
        "why": reasons.get((file, text, old, new), ""),
    }


def main(arguments: list[str]) -> int:
    known = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {"survived": [], "areas": {}}
    reasons = {tuple(s[k] for k in ("file", "text", "old", "new")): s["why"] for s in known["survived"]}
    repeat, budget = "--again" in arguments, math.inf
    arguments = [word for word in arguments if not word.startswith("--")]
    tally: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    if repeat:
        plan, files, possible = again(known), known["files"], known["possible"]
        tally.update({area: collections.Counter(counts) for area, counts in known["areas"].items()})
        for survivor in known["survived"]:
            tally[area_of(survivor["file"])].subtract(planted=1)
    else:
        count, budget = (float(arguments[i]) if len(arguments) > i else d for i, d in ((0, 80), (1, 3600)))
        files, possible, plan = drawn(int(count), arguments[2:])
    start, survived, tests = time.time(), [], Tests()
    copies: queue.Queue[Path] = queue.Queue()

    def attempt(mutant: tuple) -> tuple[tuple, str | None]:
        if time.time() - start > budget:
            return mutant, None
        copy = copies.get()
        try:
            return mutant, tests.noticed_by(copy, mutant)
        finally:
            copies.put(copy)

    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(JOBS) as pool:
        for number in range(JOBS):
            left_out = shutil.ignore_patterns("_build", ".venv", ".git", "data", "_static")
            copies.put(Path(shutil.copytree(ROOT, Path(scratch, f"tree{number}"), ignore=left_out)))
        for number, (mutant, by) in enumerate(pool.map(attempt, plan), start=1):
            if by is None:
                break
            tally[area_of(mutant[0])].update(planted=1, **({by: 1} if by else {}))
            if not by:
                survived.append(described(mutant, reasons))
            total = sum(tally.values(), collections.Counter())
            report = {"files": files, "possible": possible, "planted": total["planted"], "own": total["own"]}
            report |= {"neighbours": total["neighbours"], "seconds": round(time.time() - start)}
            report |= {"areas": {k: dict(v) for k, v in sorted(tally.items())}, "survived": survived}
            outcome = f"noticed ({by})" if by else "SURVIVED"
            print(f"{number} of {len(plan)}: {outcome} {mutant[0]} {mutant[3]!r} -> {mutant[4]!r}", flush=True)
            if not repeat or number == len(plan):
                REPORT.parent.mkdir(parents=True, exist_ok=True)
                REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{report['planted'] - len(survived)} of {report['planted']} noticed in {time.time() - start:.0f} s")
    return 0


def area_of(file: str) -> str:
    """Where a file counts: the package it is in, or its own name."""
    return Path(file).parts[1].removesuffix(".py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
