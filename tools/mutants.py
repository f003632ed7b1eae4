"""Plant single changes in the library, one at a time, and see whether the tests notice: mutation testing by Cosmic Ray.

    python tools/mutants.py [COUNT] [SECONDS] [WORD ...]    default: 80 changes, at most an hour
    python tools/mutants.py --again                         the survivors of the report, tried with the tests of now

Cosmic Ray (pip install -e '.[attacks]') finds the changes, makes them and keeps the outcomes. COUNT of them are drawn
with a fixed seed, of the files whose path holds one of the words (of all, where none is given), and divided between
two copies of the checkout. A change meets the tests and docstring examples that belong to its file; one that survives
them meets the tests of its neighbours too. Type hints are left alone, and an operator of arithmetic has one other.

Writes results/trust/mutants.json: what was planted, noticed, and what survived, with the reason that somebody wrote
beside a survivor, if any. `--again` leaves these counts as they were and says of each survivor whether it is noticed
now.
"""

from __future__ import annotations

import collections
import filecmp
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REPORT = ROOT / "results" / "trust" / "mutants.json"
JOBS = 2  # copies of the tree, and changes tried at a time
PRISTINE = "_pristine"  # in a copy: the library before any change
# `x | None` is a type hint far more often than an operation. Of arithmetic, one swap an operator: most of the eleven
# others end in a TypeError, which says little about tests.
SKIPPED = re.compile(
    r"core/ReplaceBinaryOperator_(?!(Add_Sub|Sub_Add|Mul_Div|Div_Mul|Pow_Mul|FloorDiv_Div|Mod_Mul|BitAnd_BitOr)$)"
    r"|core/ReplaceComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_Is"  # == and `is` are one for small numbers
)
CONFIG = """[cosmic-ray]
module-path = "ncutils"
excluded-modules = ["ncutils/**/__init__.py"]
timeout = 1200
test-command = "'{python}' '{tool}' --tests"
distributor.name = "local"
"""
OWN = {  # the tests that belong to a file, where they are not named after it
    "__main__": ("test_main",),
    "_arguments": ("test_fuzz",),
    "_files": ("test_files", "test_data", "test_experiments"),
    "_measure": ("test_measure",),
    "_plain": ("test_plain_training", "test_custom"),
    "fetch": ("test_data",),
    "custom": ("test_custom",),
    "fingerprint": ("test_custom",),
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
    recorded = ("test_refusals",) if path.stem in UNRECORDED else ("test_recorded", "test_refusals")  # quick: first
    return [f"tests/{name}.py" for name in (*recorded, *names)]


def neighbours_of(file: str) -> list[str]:
    """Tests of the other files that use it: of theory those of theory, of the rest all but those of pages."""
    found = sorted((ROOT / "tests" / "theory").glob("test_*.py")) if "theory" in Path(file).parts else [
        p for p in sorted((ROOT / "tests").glob("test_*.py")) if not any(word in p.stem for word in ELSEWHERE)
    ]  # fmt: skip
    own = tests_of(file)
    return [name for p in found if (name := p.relative_to(ROOT).as_posix()) not in own]


def passes(which: list[str]) -> bool:
    """Whether these tests, of the tree in the current folder, all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--doctest-modules", *which]
    return not subprocess.run(command).returncode


def judge() -> int:
    """What Cosmic Ray runs in a copy: the tests of the file that differs; where none does, all that may be asked."""
    here = sorted(path.as_posix() for path in Path("ncutils").rglob("*.py"))
    changed = [name for name in here if not filecmp.cmp(name, Path(PRISTINE, name), shallow=False)]
    if not changed:
        files = Path(PRISTINE, "files.txt").read_text().split()
        return not passes(sorted({name for file in files for name in (*tests_of(file), *neighbours_of(file), file)}))
    (file,) = changed
    for stage, which in (("own", [*tests_of(file), file]), ("neighbours", neighbours_of(file))):
        if not passes(which):
            print(f"noticed by: {stage}")
            return 1
    return 0


def copied(into: Path) -> Path:
    """A copy of the checkout to plant in."""
    left_out = shutil.ignore_patterns("_build", ".venv", ".git", "data", "_static", "__pycache__")
    shutil.copytree(ROOT, into, ignore=left_out)
    shutil.copytree(into / "ncutils", into / PRISTINE / "ncutils")
    (into / "mutants.toml").write_text(CONFIG.format(python=sys.executable, tool=into / "tools" / "mutants.py"))
    return into


def cosmic_ray(tree: Path, command: str, *arguments: str, seconds: float | None = None) -> None:
    """One of its commands, in a copy of the tree."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "NCUTILS_CACHE": "off",
                   "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}  # fmt: skip
    program = [sys.executable, "-m", "cosmic_ray.cli", command, "mutants.toml", *arguments]
    try:
        subprocess.run(program, cwd=tree, env=environment, check=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        print(f"stopped after {seconds:.0f} s", flush=True)


def same(a: str, b: str) -> int:
    """How many characters two texts begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def changed_line(mutation, root: Path = ROOT) -> tuple[str, str, str]:
    """The line that a mutation changes, and the piece of it before and after; root: of the files it was made in."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (root / mutation.module_path).read_text(encoding="utf-8")
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    mutated = mutate_code(source, operator, mutation.occurrence)
    start = same(source, mutated)
    end = same(source[start:][::-1], mutated[start:][::-1])
    while re.match(r"[\w.<>=!]", source[start - 1]):  # whole words, numbers, comparisons
        start -= 1
    while end and re.match(r"[\w.<>=!]", source[-end]):
        end -= 1
    text = source.splitlines()[mutation.start_pos[0] - 1].strip()
    return text, source[start : len(source) - end].strip(), mutated[start : len(mutated) - end].strip()


def chosen(items: list, arguments: list[str], known: dict) -> list:
    """The changes to plant: the survivors of the report, or a sample."""
    items.sort(key=lambda item: (str(item.mutations[0].module_path), item.mutations[0].start_pos,
                                 item.mutations[0].operator_name, item.mutations[0].occurrence))  # fmt: skip
    if "--again" not in arguments:
        return random.Random(0).sample(items, min(int([*arguments, 80][0]), len(items)))
    found = []
    for survivor in known["survived"]:
        places = [
            (abs(mutation.start_pos[0] - survivor["line"]), item.job_id, item)
            for item in items
            for mutation in item.mutations
            if (str(mutation.module_path), mutation.operator_name) == (survivor["file"], survivor.get("operator"))
            and changed_line(mutation) == tuple(survivor[key] for key in ("text", "old", "new"))
        ]
        if not places:
            raise ValueError(f"{survivor['file']}: {survivor['text']}: is not there any more; plant anew")
        found.append(min(places)[2])
    return found


def main(arguments: list[str]) -> int:
    from cosmic_ray.work_db import WorkDB, use_db

    known = json.loads(REPORT.read_text(encoding="utf-8")) if REPORT.exists() else {"survived": []}
    reasons = {tuple(s[k] for k in ("file", "text", "old", "new")): s["why"] for s in known["survived"]}
    budget = float(arguments[1]) if len(arguments) > 1 else 3600.0
    start = time.time()
    with tempfile.TemporaryDirectory() as scratch:
        trees = [copied(Path(scratch, f"tree{number}")) for number in range(JOBS)]
        cosmic_ray(trees[0], "init", "mutants.sqlite")
        for tree in trees[1:]:
            shutil.copy(trees[0] / "mutants.sqlite", tree)
        with use_db(trees[0] / "mutants.sqlite", WorkDB.Mode.open) as session:
            items = [item for item in session.work_items if not SKIPPED.match(item.mutations[0].operator_name)]
        words = arguments[2:] or [""]
        items = [item for item in items if any(word in str(item.mutations[0].module_path) for word in words)]
        plan = chosen(items, arguments, known)
        print(f"{len(items)} possible changes, {len(plan)} to plant; first the tests without any", flush=True)
        files = {str(item.mutations[0].module_path) for item in plan}
        (trees[0] / PRISTINE / "files.txt").write_text(" ".join(files))
        cosmic_ray(trees[0], "baseline")  # tests that fail would notice everything
        for number, tree in enumerate(trees):
            with use_db(tree / "mutants.sqlite", WorkDB.Mode.open) as session:
                session.clear()
                session.add_work_items(plan[number::JOBS])
        with ThreadPoolExecutor(JOBS) as pool:
            list(pool.map(lambda tree: cosmic_ray(tree, "exec", "mutants.sqlite", seconds=budget), trees))
        outcomes: dict = {}
        for tree in trees:
            with use_db(tree / "mutants.sqlite", WorkDB.Mode.open) as session:
                outcomes.update(session.results)
        if "--again" in arguments:
            report = known
            for survivor, item in zip(report["survived"], plan, strict=True):
                if item.job_id in outcomes:
                    survivor["noticed since"] = bool(outcomes[item.job_id].is_killed)
        else:
            report = tallied(plan, outcomes, reasons, trees[0] / PRISTINE)  # the checkout may have gone on meanwhile
            report |= {"possible": len(items), "seconds": round(time.time() - start)}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    since = sum(survivor.get("noticed since", False) for survivor in report["survived"])
    print(f"{report['planted'] - len(report['survived'])} of {report['planted']} noticed, {since} more since")
    return 0


def tallied(plan: list, outcomes: dict, reasons: dict, root: Path) -> dict:
    """The report of the changes that were tried."""
    tally: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    survived = []
    for item in plan:
        if (result := outcomes.get(item.job_id)) is None:  # the time was over
            continue
        (mutation,) = item.mutations
        if result.worker_outcome != "normal":
            raise RuntimeError(f"{mutation.module_path}: {mutation.operator_name}: {result.output}")
        file = mutation.module_path.as_posix()
        by = "neighbours" if "noticed by: neighbours" in (result.output or "") else "own"
        area = mutation.module_path.parts[1].removesuffix(".py")
        tally[area].update(planted=1, **({by: 1} if result.is_killed else {}))
        if not result.is_killed:
            text, old, new = changed_line(mutation, root)
            place = {"file": file, "line": mutation.start_pos[0], "operator": mutation.operator_name}
            survived.append(
                place | {"text": text, "old": old, "new": new, "why": reasons.get((file, text, old, new), "")}
            )
    total = sum(tally.values(), collections.Counter())
    report = {"planted": total["planted"], "own": total["own"], "neighbours": total["neighbours"]}
    return report | {"areas": {area: dict(counts) for area, counts in sorted(tally.items())}, "survived": survived}


if __name__ == "__main__":
    sys.exit(judge() if sys.argv[1:] == ["--tests"] else main(sys.argv[1:]))
