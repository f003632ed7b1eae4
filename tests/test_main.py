"""The command line: what it prints, what it refuses, where it leaves results."""

import io
import os
import shlex
import subprocess
import sys

import pandas as pd
import pytest
import torch

import ncutils
from ncutils import _files, experiments
from ncutils.__main__ import main
from ncutils.experiments import Job, jobs

TINY = experiments.specification("3").but(
    data="cifar10_small",
    samples=100,
    test_samples=0,
    size=4,
    width=12,
    nonlinear=(4, 5),
    lr=(0.05,),
    seeds=1,
    epochs=1,
    batch_size=50,
    warmup_steps=1,
)

ARCHIVE = sys.modules["ncutils.experiments.archive"]
CHECK_COMMITTED = experiments.check_committed  # the fixture below puts another in its place


@pytest.fixture(autouse=True)
def tiny(tmp_path, monkeypatch):
    """Figure 3 is tiny here, its cache and its archives are the test's own."""
    monkeypatch.setenv("NCUTILS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NCUTILS_JOBS", "1")
    monkeypatch.setenv("TQDM_DISABLE", "1")
    for variable in ("NCUTILS_PROFILE", "NCUTILS_DEVICE"):
        monkeypatch.delenv(variable, raising=False)
    for profile in experiments.PROFILES:
        monkeypatch.setitem(experiments.DECLARED, ("3", profile), TINY.but(profile=profile))
    monkeypatch.setattr(ARCHIVE, "check_committed", lambda: None)
    monkeypatch.setattr(experiments, "check_committed", lambda: None)
    monkeypatch.setattr(ARCHIVE, "results_dir", lambda: tmp_path / "results")
    return tmp_path


def test_list_describes_every_figure(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for spec in experiments.DECLARED.values():
        assert f"Figure {spec.figure}, profile {spec.profile}:" in out
    assert main(["list", "5"]) == 0
    assert "Figure 1" not in capsys.readouterr().out


def test_cost_then_run_then_nothing_left(capsys):
    assert main(["cost", "3"]) == 0
    assert "2 runs in 2 jobs (0 on disk)" in capsys.readouterr().out
    assert main(["run", "3"]) == 0
    out = capsys.readouterr().out
    assert "quick: 100 CIFAR-10 images of 4x4, 1 seed, 1 epochs, float64, CPU" in out and "archived" not in out
    assert main(["cost", "3"]) == 0
    assert "(2 on disk)" in capsys.readouterr().out


def test_the_larger_profiles_are_archived(tiny, capsys):
    assert main(["run", "3", "--profile", "cores"]) == 0
    assert "archived as" in capsys.readouterr().out
    assert experiments.archive("3", folder=tiny / "results").provenance["profile"] == "cores"
    assert main(["run", "3", "--profile", "cores", "--results", str(tiny / "other")]) == 0
    assert {path.name for path in (tiny / "other").iterdir()} == {"3-cores.parquet", "3-cores.json"}
    assert main(["run", "3", "--profile", "paper", "--no-archive"]) == 0
    assert not (tiny / "results" / "3-paper.parquet").exists()
    assert main(["list", "3"]) == 0
    assert "archived  results/3-cores.parquet" in capsys.readouterr().out


def test_uncommitted_code_is_refused_before_it_runs(monkeypatch, capsys):
    def refuse():
        raise ValueError("commit these first")

    monkeypatch.setattr(experiments, "check_committed", refuse)
    monkeypatch.setattr(experiments, "run", lambda *_, **__: pytest.fail("ran"))
    assert main(["run", "3", "--profile", "cores"]) == 2
    assert "error: commit these first" in capsys.readouterr().err


def test_resume_goes_on_and_says_from_where(capsys):
    assert main(["resume", "3"]) == 2
    assert "nothing of figure 3 is on disk" in capsys.readouterr().err
    cell = TINY.jobs()[0]
    jobs.solve(cell, cell.key(), _files.cache_dir())
    assert main(["resume", "3"]) == 0
    assert "1 of 2 jobs are done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "6"], "invalid choice: '6'"),
        (["run", "3", "--profile", "huge"], "invalid choice: 'huge'"),
        (["run", "3", "--device", "tpu"], "invalid choice: 'tpu'"),
        (["run", "3", "--backend", "slurm"], "invalid choice: 'slurm'"),
        (["run", "3", "--jobs", "many"], "invalid int value: 'many'"),
        (["fly"], "invalid choice: 'fly'"),
        ([], "required: COMMAND"),
    ],
)
def test_words_it_does_not_know(arguments, words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
@pytest.mark.parametrize("arguments", [["run", "3", "--device", "cuda"], ["cost", "3", "--device", "cuda"], ["paper"]])
def test_no_gpu(arguments, capsys):
    assert main(arguments) == 2
    assert "CUDA is not available" in capsys.readouterr().err


def test_no_data(tiny, monkeypatch, capsys):
    monkeypatch.setenv("NCUTILS_DATA", str(tiny / "nowhere"))
    jobs._images.cache_clear()
    jobs._checksum_of_named.cache_clear()
    assert main(["run", "1", "--profile", "cores"]) == 1
    assert "fetch it with `python -m ncutils data mnist`" in capsys.readouterr().err


def test_a_disk_that_cannot_be_written(tiny, monkeypatch, capsys):
    (tiny / "file").write_text("no folder")
    monkeypatch.setenv("NCUTILS_CACHE", str(tiny / "file" / "cache"))
    assert main(["run", "3"]) == 1
    assert f"could not make the folder {tiny / 'file' / 'cache'}" in capsys.readouterr().err


def test_interrupted(monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Job, "compute", interrupt)
    assert main(["run", "3", "--backend", "sequential"]) == 130
    assert "finished jobs are kept" in capsys.readouterr().err


def test_help_has_examples_and_every_command():
    done = subprocess.run([sys.executable, "-m", "ncutils", "--help"], capture_output=True, text=True, check=True)
    for word in ("list", "cost", "run", "resume", "paper", "data", "--backend ray"):
        assert word in done.stdout
    assert "Traceback" not in done.stderr


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"ncutils {ncutils.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--jobs", "0"], "jobs must be at least 1; got 0"), (["--backend", "ray"], "backend 'ray' needs the package")],
)
def test_what_cannot_run_is_refused_before_the_estimate(arguments, words, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(experiments, "cost", lambda *_, **__: pytest.fail("estimated"))
    assert main(["run", "3", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_a_copy_that_is_no_checkout_is_told_what_lifts_it(monkeypatch, capsys):
    monkeypatch.setattr(ARCHIVE, "git", lambda *_: None)
    monkeypatch.setattr(experiments, "check_committed", CHECK_COMMITTED)
    monkeypatch.setattr(experiments, "run", lambda *_, **__: pytest.fail("ran"))
    assert main(["run", "3", "--profile", "cores"]) == 2
    assert "--no-archive" in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error():
    command = f"{shlex.quote(sys.executable)} -m ncutils list | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("command", "begins"), [("list", "List the figures, their profiles"), ("cost", "Estimate what a figure takes")]
)
def test_a_commands_own_help_says_what_it_does_in_a_sentence(command, begins, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert f" {begins}" in words and f"{begins[0]}{begins[0].lower()}{begins[1:]}" not in words


# --- the exit status


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("not this one"), 2, "error: not this one"),
        (OSError("no disk"), 1, "error: no disk"),
        (FileNotFoundError("no file"), 1, "error: no file"),
        (RuntimeError("no memory"), 1, "error: no memory"),
        (KeyboardInterrupt(), 130, "stopped; finished jobs are kept"),
        (experiments.Stopped(15, None), 143, "stopped; finished jobs are kept"),
    ],
)
def test_what_goes_wrong_is_told_by_the_status(error, status, words, monkeypatch, capsys):
    def fails(*_):
        raise error

    monkeypatch.setattr(experiments, "cost", fails)
    assert main(["cost", "3"]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.strip().startswith(words)


def test_an_error_of_the_program_itself_is_not_hidden(monkeypatch):
    monkeypatch.setattr(experiments, "cost", lambda *_: {}["nothing"])
    with pytest.raises(KeyError):
        main(["cost", "3"])


def test_a_reader_that_is_gone_is_no_error(monkeypatch, capfd):
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert main(["list", "3"]) == 0
        print("goes nowhere", flush=True)
    assert capfd.readouterr() == ("", "")


def test_the_words_arrive_before_the_program_ends(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, write_through=False))
    assert main(["list", "3"]) == 0
    assert written.getvalue().startswith(b"Figure 3, profile quick")
    sys.stdout.detach()


# --- what each command does


def test_the_estimate_is_seen_before_the_run_begins(monkeypatch):
    written, seen = io.BytesIO(), []
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, write_through=False))

    def runs(spec, **_):
        seen.append(written.getvalue().decode())
        raise RuntimeError("enough")

    monkeypatch.setattr(experiments, "run", runs)
    assert main(["run", "3"]) == 1
    assert "2 runs in 2 jobs" in seen[0]
    sys.stdout.detach()


def test_runs_that_diverged_are_named(monkeypatch, capsys):
    monkeypatch.setitem(experiments.DECLARED, ("3", "quick"), TINY.but(profile="quick", lr=(0.05, 1e6), nonlinear=(5,)))
    assert main(["run", "3"]) == 0
    assert "\n1 of 2 runs diverged: depth 6 run 1\n" in capsys.readouterr().out
    monkeypatch.setitem(experiments.DECLARED, ("3", "quick"), TINY.but(profile="quick", nonlinear=(5,)))
    assert main(["run", "3"]) == 0
    assert "diverged" not in capsys.readouterr().out


def test_a_job_that_has_only_begun_can_be_resumed(monkeypatch, capsys):
    monkeypatch.setattr(experiments, "progress", lambda *_: (0, 1, 2))
    assert main(["resume", "3"]) == 0
    assert "0 of 2 jobs are done, 1 begun\n" in capsys.readouterr().out
    monkeypatch.setattr(experiments, "progress", lambda *_: (0, 0, 2))
    assert main(["resume", "3"]) == 2


@pytest.fixture
def asked(monkeypatch):
    """What is asked of the library, in order, with nothing computed."""
    found = []
    monkeypatch.setattr(experiments, "cost", lambda spec, *rest, **given: found.append(("cost", spec, rest, given)))
    monkeypatch.setattr(experiments, "check_engine", lambda *given: found.append(("engine", *given)))
    monkeypatch.setattr(experiments, "check_committed", lambda: found.append(("committed",)))
    monkeypatch.setattr(experiments, "label", lambda result: "a label")
    monkeypatch.setattr(experiments, "save_archive", lambda result, folder: found.append(("archive", folder)))

    def runs(spec, **given):
        found.append(("run", spec, given))
        rows = pd.DataFrame({"depth": [1], "run": [0], "diverged": [False]})
        return experiments.Result(pd.concat([rows] * 1234), "a label", {})

    monkeypatch.setattr(experiments, "run", runs)
    return found


def test_the_paper_command_runs_every_figure_at_its_size(asked, capsys):
    assert main(["paper", "--no-archive"]) == 0
    ran = [(spec.figure, spec.profile, given["device"]) for what, spec, given in (a for a in asked if a[0] == "run")]
    figures = [figure for figure, profile in experiments.DECLARED if profile == "paper"]
    assert sorted(ran) == sorted((figure, "paper", "cuda") for figure in figures) and len(ran) == 7
    assert capsys.readouterr().out.count("a label: 1,234 rows\n") == 7
    assert not [a for a in asked if a[0] in ("committed", "archive")]


@pytest.mark.parametrize(
    ("arguments", "profile", "engine", "archived"),
    [
        ([], "quick", ("loky", None, None), False),
        (["--profile", "cores"], "cores", ("loky", None, None), True),
        (["--profile", "paper"], "paper", ("loky", None, None), True),
        (["--profile", "paper", "--no-archive"], "paper", ("loky", None, None), False),
        (["--jobs", "3", "--backend", "dask", "--device", "cuda"], "quick", ("dask", 3, "cuda"), False),
    ],
)
def test_what_the_command_asks_of_the_library(arguments, profile, engine, archived, asked):
    assert main(["run", "3", *arguments]) == 0
    backend, number, device = engine
    given = {"device": device, "jobs": number, "backend": backend}
    spec = experiments.specification("3", profile)
    wanted = [("engine", *engine), ("committed",), ("cost", spec, (), {"device": device}), ("run", spec, given)]
    wanted += [("archive", None)]
    assert asked == [step for step in wanted if archived or step[0] not in ("committed", "archive")]


def test_estimates_are_of_what_is_asked_for(asked):
    assert main(["cost", "3", "--profile", "cores", "--device", "cuda"]) == 0
    assert asked == [("cost", "3", ("cores", "cuda"), {})]
