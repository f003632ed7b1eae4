"""Plant single changes in the library, one at a time, and see whether the tests notice: mutation testing by Cosmic Ray.

    python tools/mutants.py [COUNT] [SECONDS] [WORD ...]    default: 80 changes, at most an hour
    python tools/mutants.py --again                         the survivors of the report, tried with the tests of now

Cosmic Ray (pip install -e '.[attacks]') finds the changes, makes them and keeps the outcomes. The tests and docstring
examples run once without any change, under coverage, which tells the lines that each of them runs. Then COUNT changes
are drawn with a seed of their own (SEED in the environment, else 0), of the files whose path holds one of the words
(of all, where none is given), and divided between two copies of the checkout. A change meets the tests that run its
line, the quickest first, a minute of them; one in a line that runs at import only meets those that run anything of the
file. Type hints are left alone, and an operator of arithmetic has one other.

Writes results/trust/mutants.json: what was planted, which test noticed it first, and what survived, with the reason
that somebody wrote beside a survivor, if any. `--again` leaves these counts as they were and says of each survivor
whether it is noticed now.
"""

from __future__ import annotations

import ast
import collections
import difflib
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
SEED = int(os.environ.get("SEED", 0))  # another one draws another sample
JOBS = 2  # copies of the tree, and changes tried at a time
ENOUGH = 60  # seconds of tests that a change meets
PRISTINE = "_pristine"  # in a copy: the library before any change, and which test runs what
# `x | None` is a type hint far more often than an operation. Of arithmetic, one swap an operator: most of the eleven
# others end in a TypeError, which says little about tests.
SKIPPED = re.compile(
    r"core/ReplaceBinaryOperator_(?!(Add_Sub|Sub_Add|Mul_Div|Div_Mul|Pow_Mul|FloorDiv_Div|Mod_Mul|BitAnd_BitOr)$)"
    r"|core/ReplaceComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_Is"  # == and `is` are one for small numbers
)
CONFIG = """[cosmic-ray]
module-path = "ncutils"
excluded-modules = ["ncutils/**/__init__.py"]
timeout = 600
test-command = "'{python}' '{tool}' --tests"
distributor.name = "local"
"""
# Tests of pages, tools and notebooks: minutes, and they say nothing about the library that others do not.
ELSEWHERE = ("altered_outputs", "animation", "benchmarks", "book", "browser", "chapter_code", "pages", "print_book",
             "stage", "statement_map", "tools", "typing")  # fmt: skip
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules")


# --- which test runs what


def pytest_runtest_logreport(report) -> None:
    """This file is a plugin of pytest too (-p mutants): it notes what each test takes."""
    pytest_runtest_logreport.seconds[report.nodeid] += report.duration


pytest_runtest_logreport.seconds = collections.Counter()


def pytest_sessionfinish() -> None:
    if path := os.environ.get("MUTANTS_SECONDS"):
        Path(path).write_text(json.dumps(pytest_runtest_logreport.seconds))


def observed(tree: Path) -> None:
    """Runs the tests of a copy, which must pass; writes the tests of each line of the library, the quickest first."""
    from coverage import CoverageData

    seconds, lines = tree / PRISTINE / "seconds.json", tree / PRISTINE / "lines.db"
    (tree / "coverage.ini").write_text("[run]\nsource = ncutils\n")
    left_out = [f"--ignore=tests/test_{name}.py" for name in ELSEWHERE]
    under = ["--cov=ncutils", "--cov-config=coverage.ini", "--cov-context=test", "--cov-report="]
    subprocess.run(
        [sys.executable, *PYTEST, "-x", "-p", "mutants", *left_out, *under, "tests", "ncutils"], cwd=tree, check=True,
        env=environment(tree) | {"MUTANTS_SECONDS": str(seconds), "COVERAGE_FILE": str(lines)},
    )  # fmt: skip
    took = json.loads(seconds.read_text())
    data = CoverageData(str(lines))
    data.read()
    found = {}
    for path in data.measured_files():
        contexts = data.contexts_by_lineno(path)
        tests = {
            line: {context.rpartition("|")[0] for context in given} & took.keys() for line, given in contexts.items()
        }
        name = Path(path).relative_to(tree.resolve()).as_posix()
        found[name] = {line: sorted(given, key=took.get) for line, given in tests.items() if given}
    (tree / PRISTINE / "tests.json").write_text(json.dumps({"seconds": took, "lines": found}))


def statement(source: str, line: int) -> range:
    """The lines of the smallest statement that a line is in; of a compound one those before its body.

    Of a decorator, the lines of what it decorates: it does its work when that is called.
    """
    around = []
    for node in ast.walk(ast.parse(source)):
        if any(mark.lineno <= line <= mark.end_lineno for mark in getattr(node, "decorator_list", ())):
            return range(node.body[0].lineno, node.end_lineno + 1)
        if isinstance(node, ast.stmt) and node.lineno <= line <= node.end_lineno:
            around.append(node)
    if not around:
        return range(line, line + 1)
    inner = min(around, key=lambda node: node.end_lineno - node.lineno)
    last = max(inner.lineno, inner.body[0].lineno - 1) if getattr(inner, "body", None) else inner.end_lineno
    return range(inner.lineno, last + 1)


def tests_of(file: str, line: int, source: str, known: dict) -> list[str]:
    """The quickest tests that run a line; of one that runs at import, those that run anything of its file."""
    seconds, lines = known["seconds"], known["lines"].get(file, {})
    found = {test for place in statement(source, line) for test in lines.get(str(place), ())}
    found = found or {test for given in lines.values() for test in given}
    total, kept = 0.0, []
    for test in sorted(found, key=seconds.get):
        total += seconds[test]
        if kept and total > ENOUGH:
            break
        kept.append(test)
    return kept


def judge() -> int:
    """What Cosmic Ray runs in a copy: the tests that run the line that differs."""
    known = json.loads(Path(PRISTINE, "tests.json").read_text())
    here = sorted(path.as_posix() for path in Path("ncutils").rglob("*.py"))
    (file,) = (name for name in here if not filecmp.cmp(name, Path(PRISTINE, name), shallow=False))
    before, after = (path.read_text(encoding="utf-8") for path in (Path(PRISTINE, file), Path(file)))
    matcher = difflib.SequenceMatcher(None, before.splitlines(), after.splitlines(), autojunk=False)
    line = next(start + 1 for tag, start, *_ in matcher.get_opcodes() if tag != "equal")
    chosen = tests_of(file, line, before, known)
    if not chosen:
        print("no test runs it")
        return 0
    outcome = subprocess.run([sys.executable, *PYTEST, "-x", "--tb=no", *chosen]).returncode
    if outcome == 4:  # a test has another name now: all of its file
        files = sorted({test.split("::")[0] for test in chosen})
        outcome = subprocess.run([sys.executable, *PYTEST, "-x", "--tb=no", *files]).returncode
    return outcome


# --- planting


def environment(tree: Path) -> dict:
    return {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'tools'}", "OMP_NUM_THREADS": "1",
            "NCUTILS_CACHE": "off", "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg"}  # fmt: skip


def copied(into: Path, known: Path | None = None) -> Path:
    """A copy of the checkout to plant in; known: another copy, whose tests were observed."""
    left_out = shutil.ignore_patterns("_build", ".venv", ".git", "data", "_static", "__pycache__")
    shutil.copytree(ROOT, into, ignore=left_out)
    shutil.copytree(into / "ncutils", into / PRISTINE / "ncutils")
    (into / "mutants.toml").write_text(CONFIG.format(python=sys.executable, tool=into / "tools" / "mutants.py"))
    if known:
        shutil.copy(known / PRISTINE / "tests.json", into / PRISTINE)
        shutil.copy(known / "mutants.sqlite", into)
    return into


def cosmic_ray(tree: Path, command: str, *arguments: str, seconds: float | None = None) -> None:
    """One of its commands, in a copy of the tree."""
    program = [sys.executable, "-m", "cosmic_ray.cli", command, "mutants.toml", *arguments]
    try:
        subprocess.run(program, cwd=tree, env=environment(tree), check=True, timeout=seconds)
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
        return random.Random(SEED).sample(items, min(int([*arguments, 80][0]), len(items)))
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
        first = copied(Path(scratch, "tree0"))
        cosmic_ray(first, "init", "mutants.sqlite")
        with use_db(first / "mutants.sqlite", WorkDB.Mode.open) as session:
            items = [item for item in session.work_items if not SKIPPED.match(item.mutations[0].operator_name)]
        words = arguments[2:] or [""]
        items = [item for item in items if any(word in str(item.mutations[0].module_path) for word in words)]
        plan = chosen(items, arguments, known)
        print(f"{len(items)} possible changes, {len(plan)} to plant; first the tests without any", flush=True)
        observed(first)
        trees = [first, *(copied(Path(scratch, f"tree{number}"), first) for number in range(1, JOBS))]
        for tree in trees:  # the tests' bytecode is kept, no changed file's is
            kept = environment(tree) | {"PYTHONDONTWRITEBYTECODE": ""}
            program = [sys.executable, *PYTEST, "--collect-only", "tests", "ncutils"]
            subprocess.run(program, cwd=tree, env=kept, check=True, stdout=subprocess.DEVNULL)
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
            report = tallied(plan, outcomes, reasons, first / PRISTINE)  # the checkout may have gone on meanwhile
            report |= {"possible": len(items), "seed": SEED, "seconds": round(time.time() - start)}
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    since = sum(survivor.get("noticed since", False) for survivor in report["survived"])
    print(f"{report['planted'] - len(report['survived'])} of {report['planted']} noticed, {since} more since")
    return 0


def noticed_by(output: str) -> str:
    """What noticed first: a recorded number or refusal, a docstring's example, another test, or (import) none by name:

    the files do not import, or the tests did not end in time.
    """
    if not (failed := re.search(r"^(?:FAILED|ERROR) (\S+)::", output, re.MULTILINE)):
        return "import"
    file = failed[1].split("::")[0]
    if Path(file).stem in ("test_recorded", "test_refusals"):
        return "recorded"
    return "tests" if Path(file).parts[0] == "tests" else "examples"


def tallied(plan: list, outcomes: dict, reasons: dict, root: Path) -> dict:
    """The report of the changes that were tried."""
    tally: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    by: collections.Counter = collections.Counter()
    survived = []
    for item in plan:
        if (result := outcomes.get(item.job_id)) is None:  # the time was over
            continue
        (mutation,) = item.mutations
        if result.worker_outcome != "normal":
            raise RuntimeError(f"{mutation.module_path}: {mutation.operator_name}: {result.output}")
        file = mutation.module_path.as_posix()
        area = mutation.module_path.parts[1].removesuffix(".py")
        tally[area]["planted"] += 1
        if result.is_killed:
            tally[area]["noticed"] += 1
            by[noticed_by(result.output or "")] += 1
        else:
            text, old, new = changed_line(mutation, root)
            place = {"file": file, "line": mutation.start_pos[0], "operator": mutation.operator_name}
            survived.append(
                place | {"text": text, "old": old, "new": new, "why": reasons.get((file, text, old, new), "")}
            )
    planted = sum(counts["planted"] for counts in tally.values())
    areas = {
        area: {"planted": counts["planted"], "noticed": counts["noticed"]} for area, counts in sorted(tally.items())
    }
    return {"planted": planted, "by": dict(by.most_common()), "areas": areas, "survived": survived}


if __name__ == "__main__":
    sys.exit(judge() if sys.argv[1:] == ["--tests"] else main(sys.argv[1:]))
