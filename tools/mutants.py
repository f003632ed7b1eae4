"""Plant single changes in the library, one at a time, and see whether the tests of that file notice.

    python tools/mutants.py [COUNT] [SECONDS] [WORD ...]    default: 80 changes, at most an hour

Changes are drawn with a fixed seed, of the files whose path holds one of the words (of all, where none is given).

Works in a copy of the checkout. Writes results/trust/mutants.json: what was planted, killed, and what survived.
A change is one operator, comparison, boolean or number; docstrings, messages and type hints are left alone.
"""

from __future__ import annotations

import ast
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "results" / "trust" / "mutants.json"
SWAPS: dict[type, str] = {
    **{ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.Pow: "*", ast.FloorDiv: "/", ast.Mod: "*"},
    **{ast.Lt: ">=", ast.LtE: ">", ast.Gt: "<=", ast.GtE: "<", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in", ast.And: "or", ast.Or: "and"},
}
THEORY = {
    "head": ("theorem_3_1", "certify"),
    "simulate": ("theorem_4_4",),
    "tangent_kernel": ("theorem_5_2",),
    "balancedness": ("theorem_4_4",),
}


def tests_of(file: str) -> list[str]:
    """The test files that belong to a file of the library."""
    path = Path(file)
    if path.parts[1] == "experiments":
        return ["tests/test_experiments.py"]
    if path.parts[1] == "theory":
        return [f"tests/theory/test_{name}.py" for name in THEORY.get(path.stem, (path.stem,))]
    return [f"tests/test_{path.stem.lstrip('_')}.py"]


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
            new = repr(node.value + 1 if isinstance(node.value, int) else node.value * 2)
            found.append((file, a, b, data[a:b].decode(), new))
        for name, child in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list"):
                continue
            for item in child if isinstance(child, list) else [child]:
                if isinstance(item, ast.AST):
                    visit(item)

    visit(ast.parse(source))
    return found


def main(arguments: list[str]) -> int:
    count = int(arguments[0]) if arguments else 80
    budget = float(arguments[1]) if len(arguments) > 1 else 3600.0
    files = [str(p.relative_to(ROOT)) for p in sorted((ROOT / "ncutils").rglob("*.py"))]
    left_out = ("__init__", "__main__", "ledger", "_files", "fetch", "_arguments", "_measure")
    files = [f for f in files if Path(f).stem not in left_out and all((ROOT / t).exists() for t in tests_of(f))]
    words = arguments[2:] or [""]
    files = [f for f in files if any(word in f for word in words)]
    every = [c for f in files for c in candidates(f)]
    drawn = random.Random(0).sample(every, min(count, len(every)))
    start, killed, survived, tally = time.time(), 0, [], collections.defaultdict(lambda: [0, 0])
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "tree")
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns("_build", ".venv", "book", "data"))
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1", "NCUTILS_CACHE": "off",
                                    "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}  # fmt: skip
        sound: dict[tuple, bool] = {}
        for file, a, b, old, new in drawn:
            if time.time() - start > budget:
                break
            if (which := tuple(tests_of(file))) not in sound:  # tests that fail anyway would catch everything
                command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *which]
                sound[which] = not subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode
                if not sound[which]:
                    print(f"left out: {which} fail without any change", flush=True)
            if not sound[which]:
                continue
            path = copy / file
            whole = path.read_bytes()
            path.write_bytes(whole[:a] + new.encode() + whole[b:])
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests_of(file)]
            try:
                caught = subprocess.run(command, cwd=copy, env=environment, capture_output=True, timeout=180).returncode
            except subprocess.TimeoutExpired:
                caught = 1
            path.write_bytes(whole)
            area = Path(file).parts[1].removesuffix(".py")
            tally[area][0] += 1
            tally[area][1] += bool(caught)
            killed += bool(caught)
            if not caught:
                line = whole[:a].count(b"\n") + 1
                text = whole.decode().splitlines()[line - 1].strip()
                survived.append({"file": file, "line": line, "text": text, "old": old, "new": new, "why": ""})
            print(f"{'killed' if caught else 'SURVIVED'} {file} {old!r} -> {new!r}", flush=True)
            known = json.loads(REPORT.read_text())["survived"] if REPORT.exists() else []
            reasons = {(s["file"], s["text"], s["old"], s["new"]): s["why"] for s in known}
            for s in survived:
                s["why"] = reasons.get((s["file"], s["text"], s["old"], s["new"]), s["why"])
            areas = {area: {"planted": p, "killed": k} for area, (p, k) in sorted(tally.items())}
            report = {"files": files, "possible": len(every), "planted": sum(p for p, _ in tally.values())}
            report |= {"killed": killed, "seconds": round(time.time() - start), "areas": areas, "survived": survived}
            Path(scratch, "report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        REPORT.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(scratch, "report.json"), REPORT)
    print(f"{killed} of {sum(p for p, _ in tally.values())} killed in {time.time() - start:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
