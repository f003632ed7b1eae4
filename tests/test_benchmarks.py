"""benchmarks/run.py runs at its smallest sizes; no timing is judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ncutils import training
from ncutils.data import gaussian
from ncutils.networks import MLP

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "run.py"


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, str(SCRIPT.parent))
    import run

    yield run
    sys.path.remove(str(SCRIPT.parent))


def test_sections_print_and_write(bench, tmp_path, capsys):
    path = tmp_path / "deep" / "bench.json"
    results = bench.main(["--tiny", "--sections", "step", "metrics", "gpu", "--out", str(path)])
    stored = json.loads(path.read_text())
    assert stored == json.loads(json.dumps(results))
    assert stored["machine"]["torch"] == torch.__version__ and stored["machine"]["cores"] >= 1
    assert [row["net"] for row in stored["rows"]["step"]] == ["5+4", "8+1"]
    for section in ("step", "metrics"):
        for row in stored["rows"][section]:
            assert all(value > 0 for value in row.values() if not isinstance(value, str))
    printed = capsys.readouterr().out
    assert "times_dataloader" not in printed and "/ DataLoader" in printed
    if not torch.cuda.is_available():
        assert "no CUDA device here" in printed
    assert [p.name for p in path.parent.iterdir()] == ["bench.json"]


def test_sweep_in_worker_processes(tmp_path):
    pytest.importorskip("joblib")
    path = tmp_path / "bench.json"
    command = [sys.executable, str(SCRIPT), "--tiny", "--sections", "sweep", "--out", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads(path.read_text())["rows"]["sweep"]
    assert rows[0]["program"] == "ours" and {row["program"] for row in rows[1:]} == {"DataLoader loop"}
    assert rows[0]["times_ours"] == 1


def test_gpu_section_as_far_as_a_cpu_goes(bench):
    report = bench.Report(None)
    bench.cuda(bench.TINY, report, torch.device("cpu"))
    rows = report.results["rows"]
    assert [row["linear"] for row in rows["gpu_mlp"]] == [1, 2, 3, 4, 5, 6]
    assert rows["gpu_figure_2"][0]["extrapolated_minutes"] > 0
    assert {(row["program"], row["precision"]) for row in rows["gpu_resnet20"]} == {
        ("ours", "float32"),
        ("ours", "bfloat16"),
        ("in-memory loop", "float32"),
    }


@pytest.mark.parametrize("program", ["with_dataloader", "in_memory"])
def test_the_loops_train_what_the_library_trains(bench, program):
    data = gaussian(4, num_classes=3, dim=5, dtype=torch.float64)
    network = MLP(5, 3, num_nonlinear=2, num_linear=2, width=6, dtype=torch.float64)
    module = network.sequential()
    # one batch of all samples: the order that each program draws does not matter
    config = training.TrainingConfig(4, lr=0.1, weight_decay=0.01, batch_size=12, warmup_steps=0, drop_at=1.0)
    training.train(network, data, config, measure=None, progress=False)
    bench.taking(getattr(bench, program)(module, data, config))(4)
    for ours, theirs in zip(network.weights, module.parameters(), strict=True):
        torch.testing.assert_close(ours[0], theirs, rtol=1e-12, atol=1e-13)


def test_race_takes_turns_and_keeps_the_best(bench):
    now, turns = 0.0, []

    def contestant(name, durations):
        durations = iter(durations)

        def steps(count):
            nonlocal now
            turns.append((name, count))
            now += next(durations)

        return steps

    contestants = {"a": (contestant("a", [9, 4, 2, 8]), 2), "b": (contestant("b", [9, 3, 5, 1]), 4)}
    assert bench.race(contestants, 3, clock=lambda: now) == {"a": 1, "b": 0.25}
    assert turns == [("a", 2), ("b", 2)] + [("a", 2), ("b", 4)] * 3
