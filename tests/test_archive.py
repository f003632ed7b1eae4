"""Archives of results: what is refused, in which words, and what is kept."""

import hashlib
import json
import platform
import re
import sys
import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch

from ncutils import data, experiments
from ncutils.experiments import fingerprint, jobs

ARCHIVE = sys.modules["ncutils.experiments.archive"]


def declare(**options):
    given = dict(figure="own-blobs", data=data.gaussian(10, num_classes=3, dim=4), nonlinear=1, linear=(1, 2), lr=0.02)
    given |= dict(weight_decay=(0.001, 0.01), width=(4, 5), epochs=2, batch_size=10, warmup_steps=1, measurements=1)
    return experiments.declare(**given | options)


def linear(num_nonlinear, num_linear, width):
    return torch.nn.Linear(4, 3, bias=False)


@pytest.fixture(autouse=True)
def no_cache(monkeypatch):
    monkeypatch.setenv("NCUTILS_CACHE", "off")


@pytest.fixture(scope="module")
def result():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCUTILS_CACHE", "off")
        return experiments.run(declare(), backend="sequential", progress=False)


@pytest.fixture
def path(result, tmp_path):
    return experiments.save_archive(result, tmp_path)


def sealed(path, without=(), **changes):
    """Writes the provenance beside a table anew, whole in itself."""
    about = path.with_suffix(".json")
    rest = json.loads(about.read_text()) | changes
    rest = {name: value for name, value in rest.items() if name not in ("sha256", *without)}
    about.write_text(json.dumps(rest | {"sha256": ARCHIVE._seal(rest)}))


def load(path, **options):
    return experiments.load_archive(declare(), folder=path.parent, **options)


# --- where they are


def test_archives_are_named_by_figure_and_profile(path, tmp_path, monkeypatch):
    (tmp_path / "2-mlp-cores.parquet").touch()
    wanted = [("2-mlp", "cores"), ("own-blobs", "own")]
    assert experiments.archived(tmp_path) == experiments.archived(str(tmp_path)) == wanted
    monkeypatch.setattr(ARCHIVE, "results_dir", lambda: tmp_path)
    assert experiments.archived() == wanted
    assert experiments.load_archive(declare()).provenance["runs"] == 8
    with pytest.raises(TypeError, match="folder must be a path; got 3"):
        experiments.archived(3)
    for wrong, words in (({"profile": 3}, "profile must be a string; got 3"), ({"folder": 3}, "folder must be a path")):
        with pytest.raises(TypeError, match=words):
            experiments.load_archive("1", **wrong)
    with pytest.raises(TypeError, match="figure must be a string; got 3"):
        experiments.load_archive(3)


@pytest.mark.parametrize(
    ("figure", "profile", "commands"),
    [
        ("2-resnet", None, ["run 2-resnet --profile paper", "run 2-resnet --profile cores"]),
        ("3-fixed", None, ["run 3-fixed --profile cores"]),
        ("1", "cores", ["run 1 --profile cores"]),
    ],
)
def test_what_makes_an_archive_that_is_not_there_is_said(figure, profile, commands, tmp_path):
    with pytest.raises(FileNotFoundError) as refused:
        experiments.load_archive(figure, profile, tmp_path)
    said = " or ".join(f"`python -m ncutils {command}`" for command in commands)
    assert str(refused.value) == f"no archived result of figure {figure} in {tmp_path.name}/; make it with {said}"


def test_the_profile_of_a_specification_given_is_its_own(path):
    assert len(load(path, profile="own")) == len(load(path)) == len(load(path, profile=None))
    for profile in ("cores", "paper"):
        with pytest.raises(
            ValueError, match=f"profile must be 'own', that of the specification given; got '{profile}'"
        ):
            load(path, profile=profile)


# --- what is refused


def test_a_table_without_any_provenance_is_refused(path):
    pd.read_parquet(path).to_parquet(path)
    about = path.with_suffix(".json")
    about.unlink()
    with pytest.raises(ValueError, match=r"own-blobs-own\.json: no readable provenance for own-blobs-own\.parquet \("):
        load(path)
    about.mkdir()
    with pytest.raises(ValueError, match=r"no readable provenance for own-blobs-own\.parquet \(.*directory"):
        load(path)


@pytest.mark.parametrize("name", ["specification", "git_commit", "device", "seconds", "data_checksum", "versions"])
def test_a_provenance_that_lacks_something_is_refused(name, path):
    sealed(path, without=(name,))
    with pytest.raises(ValueError, match=f"the provenance lacks {name}$"):
        load(path)


def test_all_that_a_provenance_lacks_is_said(path):
    sealed(path, without=("device", "versions"))
    with pytest.raises(ValueError, match=r"the provenance lacks device, versions$"):
        load(path)


def test_all_that_differs_is_said(path):
    changed = declare(seeds=2, lr=0.03)
    words = r"figure own-blobs, own: lr is \[0.02\] there, \[0.03\] here; seeds is 1 there, 2 here$"
    with pytest.raises(ValueError, match=words):
        experiments.load_archive(changed, folder=path.parent)
    sealed(path, seconds=1e9, device="GPU")
    with pytest.raises(
        ValueError, match=r"its own provenance is not that of own-blobs-own\.json: (\w+), (\w+)$"
    ) as refused:
        load(path)
    assert set(re.split(r"[:,] ", str(refused.value))[-2:]) == {"seconds", "device"}


@pytest.mark.parametrize("value", [[], {}, "text", 3])
def test_what_is_no_provenance_is_damaged(value, path):
    path.with_suffix(".json").write_text(json.dumps(value))
    with pytest.raises(
        ValueError, match=r"json is damaged \(its SHA-256 is not that of its contents\); fetch it again"
    ):
        load(path)


@pytest.mark.parametrize("error", [ValueError, OSError, pyarrow.lib.ArrowException])
def test_a_table_that_cannot_be_read_is_named(error, path, monkeypatch):
    def fails(path):
        raise error("broken")

    monkeypatch.setattr(jobs, "read_table", fails)
    with pytest.raises(
        ValueError, match=r"own-blobs-own\.parquet is damaged \(broken\); fetch it again or make it anew"
    ):
        load(path)


@pytest.mark.parametrize("error", [ValueError, OSError, KeyError, pyarrow.lib.ArrowException])
def test_a_table_whose_columns_cannot_be_read_is_named(error, path, monkeypatch):
    def fails(path):
        raise error("broken")

    monkeypatch.setattr(pyarrow.parquet, "read_schema", fails)
    with pytest.raises(
        ValueError, match=r"own-blobs-own\.parquet is damaged \('?broken'?\); fetch it again or make it"
    ):
        load(path)


def test_a_job_in_the_place_of_an_archive_is_refused(result, path):
    jobs.write(result.frame, path, key="k", seconds=1.0)
    with pytest.raises(ValueError, match=r"own-blobs-own\.parquet is damaged \('provenance'\)"):
        load(path)


def test_a_table_with_nothing_beside_its_numbers_is_none_of_ours(path):
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), path)
    with pytest.raises(ValueError, match=r"not the table that own-blobs-own\.json describes"):
        load(path)


# --- code of one's own


@pytest.fixture
def own(tmp_path):
    spec = declare(network=linear, linear=1, nonlinear=0, width=4)
    experiments.save_archive(experiments.run(spec, backend="sequential", progress=False), tmp_path)
    return spec


@pytest.mark.parametrize("version", ["3.99.0", "3.1.0", "2.7.18"])
def test_code_compiled_by_another_python_is_not_compared(version, own, tmp_path, monkeypatch):
    stored = platform.python_version()
    monkeypatch.setattr("platform.python_version", lambda: version)
    with pytest.warns(UserWarning) as said:
        experiments.load_archive(own, folder=tmp_path)
    words = f"own-blobs-own.json: network not compared, for Python {stored} compiled it to other bytes"
    assert len(said) == 1 and str(said[0].message).endswith(words)
    assert said[0].filename == __file__  # where the archive was asked for


def test_a_python_that_only_mends_another_compiles_the_same(own, tmp_path, monkeypatch):
    major, minor, _ = platform.python_version_tuple()
    monkeypatch.setattr("platform.python_version", lambda: f"{major}.{minor}.987")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        experiments.load_archive(own, folder=tmp_path)
    monkeypatch.setattr(fingerprint, "fingerprint", lambda value: "f" * 16)
    with pytest.raises(ValueError, match=r"made with another network of this name: [0-9a-f]{16} there, f{16} here"):
        experiments.load_archive(own, folder=tmp_path)


def test_a_network_of_the_library_needs_no_comparison(path, monkeypatch):
    monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path)


# --- what is kept


def test_numbers_are_kept_in_single_precision_but_for_the_options(result, path):
    kept = pd.read_parquet(path)
    assert {kept[name].dtype.name for name in ("nc1", "nc2", "loss", "epoch") if name in kept} == {"float32"}
    assert kept["lr"].dtype == kept["weight_decay"].dtype == np.float64
    assert kept["step"].dtype == result.frame["step"].dtype and result.frame["nc1"].dtype == np.float64
    back = load(path)
    assert list(back.frame.columns) == list(result.frame.columns) and back.label == result.label
    np.testing.assert_allclose(back.frame["nc1"], result.frame["nc1"], rtol=1e-6)


def test_the_provenance_beside_a_table_is_for_people_too(result, path):
    lines = path.with_suffix(".json").read_text().splitlines()
    assert lines[0] == "{" and lines[-1] == "}" and re.match(r' "\w+": ', lines[1])
    provenance = json.loads("".join(lines))
    assert provenance["rows"] == len(result.frame) and provenance["runs"] == 8
    inside = json.loads(pyarrow.parquet.read_schema(path).metadata[b"ncutils"])["provenance"]
    assert all(provenance[name] == value for name, value in inside.items())
    assert set(provenance) - set(inside) == {"rows", "parquet_sha256", "sha256"}
    assert provenance["parquet_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    rest = {name: value for name, value in provenance.items() if name != "sha256"}
    assert provenance["sha256"] == hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def test_a_frame_made_from_a_result_can_be_kept(result, tmp_path):
    path = experiments.save_archive(result.frame, tmp_path / "one" / "two")
    assert path == tmp_path / "one" / "two" / "own-blobs-own.parquet" and len(load(path)) == len(result.frame)
    experiments.save_archive(result, path.parent)
    assert sorted(p.name for p in path.parent.iterdir()) == ["own-blobs-own.json", "own-blobs-own.parquet"]


@pytest.mark.parametrize("runs", [7, 9])
def test_a_result_holds_the_runs_that_it_names(runs, result, tmp_path):
    wrong = replace(result, provenance=result.provenance | {"runs": runs})
    with pytest.raises(ValueError, match=f"result must hold the {runs} runs that its provenance names; got 8"):
        experiments.save_archive(wrong, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", ["0" * 16, "f" * 16])
def test_a_figure_of_other_code_is_not_kept(code, result, tmp_path, monkeypatch):
    monkeypatch.setattr(ARCHIVE, "check_committed", lambda: None)
    figure = replace(result, provenance=result.provenance | {"figure": "1", "profile": "quick", "code": code})
    words = rf"result must come from the code that is checked out, {jobs.code_on_disk()}; got one of {code}: check out"
    with pytest.raises(ValueError, match=words):
        experiments.save_archive(figure, tmp_path)


def test_a_figure_that_is_not_committed_is_not_kept(result, tmp_path, monkeypatch):
    def refuse():
        raise ValueError("commit these first")

    monkeypatch.setattr(ARCHIVE, "check_committed", refuse)
    with pytest.raises(ValueError, match="commit these first"):
        experiments.save_archive(replace(result, provenance=result.provenance | {"figure": "1"}), tmp_path)


@pytest.mark.parametrize(
    ("answers", "commit", "words"),
    [
        ({"rev-parse": "abc", "ls-files": "ncutils/data.py", "status": ""}, "abc", None),
        (
            {"rev-parse": "abc", "ls-files": "x", "status": " M x"},
            None,
            "; commit these first, or use --no-archive:\n M x",
        ),
        (
            {"rev-parse": None, "ls-files": "x", "status": ""},
            None,
            ", and this copy is not a git checkout: give --no-arch",
        ),
        (
            {"rev-parse": "abc", "ls-files": "", "status": ""},
            None,
            ", and this copy is not a git checkout: give --no-arch",
        ),
        (
            {"rev-parse": "abc", "ls-files": None, "status": ""},
            None,
            ", and this copy is not a git checkout: give --no-arch",
        ),
    ],
)
def test_the_commit_is_named_where_it_holds_the_code(answers, commit, words, result, tmp_path, monkeypatch):
    monkeypatch.setattr(ARCHIVE, "git", lambda *arguments: answers[arguments[0]])
    path = experiments.save_archive(result, tmp_path)
    assert load(path).provenance["git_commit"] == commit
    if words is None:
        assert experiments.check_committed() is None
    else:
        with pytest.raises(ValueError, match=re.escape(f"an archive names the commit whose code made it{words}")):
            experiments.check_committed()
