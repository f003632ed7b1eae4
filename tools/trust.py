"""Attack the library, and write down what happened: ``results/trust/ATTACK.json``.

    python tools/trust.py fuzz [EXAMPLES]   bad arguments to every public function; examples a function
    python tools/trust.py flips [COUNT]     one bit of a stored file is flipped, then the file is read
    python tools/trust.py signals           a sweep is interrupted, ended, hung up and killed, on every engine

Mutations: tools/mutants.py; processors: tools/processors.py.
"""

from __future__ import annotations

import collections
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
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
    import test_fuzz

    counts, deep = collections.Counter(), []
    how = dict(max_examples=int(examples), derandomize=True, deadline=None, database=None)
    how |= dict(phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    scratch = tempfile.TemporaryDirectory()
    os.chdir(scratch.name)  # a text is a file's name to some: a checkpoint is written there
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
    os.chdir(ROOT)
    scratch.cleanup()
    return {"functions": len(test_fuzz.TARGETS), "calls": counts.total(), **counts, "examples": deep}


def stored(folder: Path) -> dict:
    """For each kind of stored file: the files, and what reads them (something to compare, or an error of ours)."""
    import numpy as np
    import pandas as pd
    import torch

    from ncutils import data, experiments, training
    from ncutils.experiments import jobs
    from ncutils.networks import MLP

    blobs = data.gaussian(6, num_classes=3, dim=8)
    config = training.TrainingConfig(steps=6, batch_size=6, warmup_steps=2, measurements=3)

    def resume():
        network = MLP(8, 3, num_nonlinear=1, num_linear=2, width=6)
        result = training.train(network, blobs, config, progress=False, checkpoint=folder / "run.checkpoint")
        return pd.DataFrame(result.rows).to_json() + str([w.tolist() for w in result.network.weights])

    def cached():
        frame = jobs.read(folder, "k")
        return None if frame is None else frame.to_json()

    def loaded():
        parts = [data.load("mnist", split=split, root=folder) for split in ("train", "test")]
        return str([(part.x.sum(dtype=torch.float64).item(), part.y.tolist(), part.checksum()) for part in parts])

    def archive():
        result = experiments.load_archive("1-resnet", "cores", folder=folder)
        return result.frame.to_json() + json.dumps(result.provenance)

    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"run": range(20), "nc1": generator.random(20), "part": ["linear", "nonlinear"] * 10})
    jobs.write(frame, folder / "k.parquet", key="k", seconds=1.0)
    images = {
        "x": generator.integers(0, 256, (100, 1, 28, 28)).astype(np.uint8),
        "y": np.arange(100, dtype=np.uint8) % 10,
    }
    data.save("mnist", {f"{split}_{k}": v for split in ("train", "test") for k, v in images.items()}, folder)
    table, about = (f"1-resnet-cores.{suffix}" for suffix in ("parquet", "json"))
    for name in (table, about):
        shutil.copy(ROOT / "results" / name, folder / name)
    resume()
    return {
        "checkpoint": ("run.checkpoint", resume),
        "cached job": ("k.parquet", cached),
        "data set": (next(folder.rglob("mnist*.npz")).relative_to(folder).as_posix(), loaded),
        "archive": (table, archive),
        "archive's provenance": (about, archive),
    }


def flips(count: str = "200") -> dict:
    """How reading ended: refused, set aside with a word, as ever, silently different, or in an error of others."""
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, (name, read) in stored(folder := Path(scratch)).items():
            path, counts, bad = folder / name, collections.Counter(), []
            whole, expected = path.read_bytes(), read()
            for seed in range(int(count)):
                chosen = random.Random(seed)
                where, bit = chosen.randrange(len(whole)), chosen.randrange(8)
                path.write_bytes(whole[:where] + bytes([whole[where] ^ (1 << bit)]) + whole[where + 1 :])
                with warnings.catch_warnings(record=True) as said:
                    warnings.simplefilter("always")
                    try:
                        value = read()
                        same = value == expected
                        named = any(path.name in str(w.message) for w in said)
                        outcome = (
                            "set aside" if named and (same or value is None) else "unchanged" if same else "silent"
                        )
                    except (ValueError, OSError) as error:
                        outcome = "refused" if folder.name in str(error) or path.stem in str(error) else "unnamed"
                        value = error
                    except Exception as error:
                        outcome, value = "deep", error
                counts[outcome] += 1
                if outcome in ("silent", "deep", "unnamed"):
                    bad.append(f"byte {where} bit {bit}: {outcome}: {value!r:.200}")
            path.write_bytes(whole)
            found[kind] = {"file": len(whole), "flips": counts.total(), **counts, "examples": bad}
    return found


SWEEP = """
signal.signal({number}, signal.SIG_DFL if {number} != signal.SIGINT else signal.default_int_handler)
compute = Job.compute
Job.compute = lambda job, checkpoint=None: (compute(job, checkpoint), time.sleep(1))[0]
if __name__ == "__main__":
    try:
        run(TINY, backend={backend!r}, jobs=2)
    except experiments.Stopped as stopped:
        print(stopped, flush=True)
        sys.exit(stopped.status)
"""


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def family(pid: int) -> set[int]:
    """All descendants of a process."""
    try:
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return set()
    return set(children).union(*map(family, children))


def signals() -> list[dict]:
    """A sweep of 8 jobs is sent a signal when its first job is done. Seconds to its end and to that of its workers."""
    import importlib.util

    import test_experiments

    rows = []
    engines = [
        "loky",
        "sequential",
        *(e for e, m in (("ray", "ray"), ("dask", "distributed")) if importlib.util.find_spec(m)),
    ]
    for backend in engines:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL):
            with tempfile.TemporaryDirectory() as cache:
                child = test_experiments.python(SWEEP.format(number=int(number) if number != 9 else int(signal.SIGTERM),
                                                             backend=backend), NCUTILS_CACHE=cache)  # fmt: skip
                done = lambda: len(list(Path(cache).glob("*.parquet")))  # noqa: E731
                while not done() and child.poll() is None:
                    time.sleep(0.1)
                workers, sent = family(child.pid), time.time()
                child.send_signal(number)
                said = "".join(child.communicate())
                ended = time.time() - sent
                while any(map(alive, workers)) and time.time() - sent < 60:
                    time.sleep(0.1)
                gone, left = time.time() - sent, sorted(pid for pid in workers if alive(pid))
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                kept = done()
                os.environ |= {"NCUTILS_CACHE": cache}
                again = test_experiments.run()
                os.environ |= {"NCUTILS_CACHE": "off"}
                same = again.frame.equals(test_experiments.run().frame)
            row = {"engine": backend, "signal": number.name, "status": child.returncode, "ended": round(ended, 1)}
            row |= {"workers": len(workers), "gone": round(gone, 1), "left": len(left), "kept": kept, "same": same}
            rows.append(row | {"told": "finished jobs are kept" in said})
            print(rows[-1], flush=True)
    return rows


def main(arguments: list[str]) -> int:
    attacks = {"fuzz": fuzz, "flips": flips, "signals": signals}
    if not arguments or arguments[0] not in attacks:
        print(__doc__, file=sys.stderr)
        return 2
    os.environ |= {"NCUTILS_CACHE": "off", "TQDM_DISABLE": "1"}
    begun, found = time.time(), attacks[arguments[0]](*arguments[1:])
    import platform

    import torch

    about = {"python": platform.python_version(), "torch": torch.__version__, "system": platform.system()}
    report = json.dumps(about | {"seconds": round(time.time() - begun), "found": found}, indent=1)
    REPORTS.mkdir(parents=True, exist_ok=True)
    REPORTS.joinpath(f"{arguments[0]}.json").write_text(report + "\n", encoding="utf-8")
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
