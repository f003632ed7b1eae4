"""What a type checker sees of the public names, from a user's script."""

import inspect
import re
import textwrap
from pathlib import Path

import pytest

import ncutils

api = pytest.importorskip("mypy.api")
ROOT = Path(__file__).resolve().parents[1]

PUBLIC = ("metrics", "data", "networks", "training", "experiments", "claims", "plots", "theory")
# They read or write what only a whole book or a sweep has made.
WITHOUT = {"ncutils.claims.judge_archives", "ncutils.claims.read_claims", "ncutils.experiments.save_archive"} | {
    "ncutils.experiments.check_committed"
}

SCRIPT = """
from functools import partial
import torch
from torch import nn
import ncutils
from ncutils import MLP, Claims, TrainingConfig, certify, experiments, load, measure, metrics, theory, train

digits = load("mnist5k", per_class=20).flat()
network = MLP(digits.x.shape[1], 10, num_nonlinear=2, num_linear=3, width=32, seeds=(0, 1))
result = train(network, digits, TrainingConfig(epochs=2, batch_size=20))
accuracy: float = result.rows[-1]["accuracy"]
seconds: float = result.seconds
one: nn.Sequential = network.sequential(0)
value: torch.Tensor = metrics.nc1(digits.x, digits.y)
certificate: ncutils.Certificate = certify(one, digits.x, digits.y)
check: theory.Check = theory.theorem_3_1_nc1(theory.LinearHead.of(one, digits.x, digits.y), form="sharp")
holds: bool | None = check.holds
by_hand = theory.Check("Mine", "nc1", "sharp", (), value, 1.0, "<=")
measured: float = by_hand.measured
again: bool = measured < 1.0 and by_hand.violated
spec: experiments.Specification = experiments.declare(data="mnist5k", figure="mine", nonlinear=2, linear=1, lr=0.05,
                                                      weight_decay=0.001, epochs=1)
swept: experiments.Result = experiments.run(spec, progress=False)
label: str = swept.label
claims = Claims(where="mine", scale="quick")
claims.add("X-1", "ours", "NC1 is small.", value=float(value), below=1.0)
"""

# What a type checker must refuse; the comment is the error it gives.
MISTAKES = """
import ncutils

config = ncutils.TrainingConfig(epochs="2")  # arg-type
digits = ncutils.load("mnist5k", per_clas=20)  # call-arg
ncutils.certifie(None, digits.x, digits.y)  # attr-defined
number: int = ncutils.metrics.nc1(digits.x, digits.y)  # assignment
ncutils.theory.Hypothesis("p < 1", "0.5", 1.0, "<")  # arg-type
label: float = ncutils.experiments.run("1").label  # assignment
"""


def test_a_users_script_has_types_and_its_mistakes_are_found(tmp_path):
    (tmp_path / "good.py").write_text(SCRIPT)
    (tmp_path / "bad.py").write_text(MISTAKES)
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--show-error-codes", "--no-error-summary"]
    out, err, _ = api.run([*options, "--cache-dir", str(tmp_path / "cache"), *map(str, sorted(tmp_path.glob("*.py")))])
    found = re.findall(r"(\w+)\.py:(\d+): error: .*\[([a-z-]+)\]", out)
    assert not [line for name, *line in found if name != "bad"], out + err
    expected = [line.partition("  # ")[2] for line in MISTAKES.splitlines()]
    assert {(int(line), code) for name, line, code in found if name == "bad"} == {
        (number, code) for number, code in enumerate(expected, start=1) if code
    }, textwrap.indent(out + err, "  ")


def test_every_public_name_of_the_library_has_an_example():
    """Run by --doctest-modules."""
    lacking = []
    for module in (ncutils, *(getattr(ncutils, name) for name in PUBLIC)):
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isclass(value) or inspect.isfunction(value):
                lacking += [f"{module.__name__}.{name}"] * (">>>" not in (value.__doc__ or ""))
    assert sorted(set(lacking) - WITHOUT) == []
