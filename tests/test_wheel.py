"""What a wheel holds: an installed copy, away from the checkout, has the archives and the questions put to them."""

import json
import os
import subprocess
import sys

import from_wheel
import pytest

import ncutils
from ncutils import claims, experiments

SAYS = """
import json
import ncutils
from ncutils import claims, data, experiments
print(json.dumps([
    ncutils.__file__, ncutils.__version__, experiments.archived(), claims.read_questions(),
    sorted(path.name for path in experiments.results_dir().glob("trust/*")), len(data.load("cifar10_small").y),
]))
"""


def test_an_installed_copy_holds_archives_claims_and_data(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="the wheel is built with the environment's setuptools")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    from_wheel.install(site)
    told = subprocess.run(
        [sys.executable, "-c", SAYS],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    where, version, archives, questions, reports, images = json.loads(told.stdout)
    assert where.startswith(str(site)) and version == ncutils.__version__
    assert [tuple(name) for name in archives] == experiments.archived() and archives
    assert questions == claims.read_questions()
    assert "mutants.json" in reports and images > 0


def test_a_chapter_that_does_not_exist_is_named():
    with pytest.raises(SystemExit, match="no such chapter: 99_nothing; expected some of 01_setting"):
        from_wheel.main(["99_nothing"])
