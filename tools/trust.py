"""Attack the library's arguments, and write down what happened: ``results/trust/fuzz.json``.

    python tools/trust.py fuzz [EXAMPLES]   bad arguments to every public function; examples a function

Mutations: tools/mutants.py.
"""

from __future__ import annotations

import collections
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
REPORTS = ROOT / "results" / "trust"


def fuzz(examples: str = "20") -> dict:
    """How calls with one or two strange arguments ended; examples of the deep errors."""
    import matplotlib
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st

    matplotlib.use("Agg")
    os.environ |= {"NCUTILS_CACHE": "off", "TQDM_DISABLE": "1"}
    import test_fuzz

    counts, deep = collections.Counter(), []
    how = dict(max_examples=int(examples), derandomize=True, deadline=None, database=None)
    how |= dict(phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    for name in test_fuzz.TARGETS:

        @settings(**how)
        @given(name=st.just(name), drawn=st.data())
        def call(name, drawn):
            function, make = test_fuzz.TARGETS[name]
            changed = drawn.draw(test_fuzz.changes(name))
            kind, said = test_fuzz.outcome(function, make() | changed)
            counts[kind] += 1
            if kind in ("deep", "hang"):
                deep.append(f"{name}({', '.join(f'{k}={v!r:.60}' for k, v in changed.items())}): {kind}: {said}")

        call()
    return {"functions": len(test_fuzz.TARGETS), "calls": counts.total(), **counts, "examples": deep}


def main(arguments: list[str]) -> int:
    attacks = {"fuzz": fuzz}
    if not arguments or arguments[0] not in attacks:
        print(__doc__, file=sys.stderr)
        return 2
    report = attacks[arguments[0]](*arguments[1:])
    print(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
