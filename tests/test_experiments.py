"""ncutils.experiments: the declarations, the cache, resuming, the archive, other engines."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tarfile
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ncutils import _files, data, experiments, metrics, training
from ncutils.experiments import Job, jobs, specification

TINY = specification("2-mlp").but(
    data="cifar10_small",
    precision="float32",
    samples=100,
    test_samples=50,
    size=4,
    width=12,
    linear=(1, 2),
    weight_decay=(0.001, 0.004),
    seeds=2,
    epochs=3,
    batch_size=50,
    warmup_steps=2,
)

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE, RUN = (sys.modules[f"ncutils.experiments.{name}"] for name in ("archive", "run"))


@pytest.fixture(autouse=True)
def environment(tmp_path_factory, monkeypatch):
    """One cache for all tests that only need a result, none of the user's settings."""
    monkeypatch.setenv("NCUTILS_CACHE", str(tmp_path_factory.getbasetemp() / "shared"))
    for variable in ("NCUTILS_PROFILE", "NCUTILS_DEVICE", "NCUTILS_JOBS"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def cache(tmp_path, monkeypatch, environment):
    """A cache of the test's own."""
    monkeypatch.setenv("NCUTILS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def run(spec=TINY, **options):
    return experiments.run(spec, **({"backend": "sequential", "progress": False} | options))


def no_computing(monkeypatch):
    def refuse(*_):
        raise AssertionError("computed a job that was on disk")

    monkeypatch.setattr(Job, "compute", refuse)


# --- the declarations say what the captions say


@pytest.mark.parametrize("profile", ["cores", "paper"])
@pytest.mark.parametrize(("figure", "nonlinear", "linear"), [("1", 6, 3), ("4", 5, 4)])
def test_figures_over_training(figure, profile, nonlinear, linear):
    spec = specification(figure, profile)
    assert (spec.nonlinear, spec.linear) == ((nonlinear,), (linear,))  # 9 layers
    assert spec.network == "mlp" and spec.data.source == "mnist" and spec.samples == 60_000
    assert spec.weight_decay == (0.0018,) and spec.seeds == 5
    assert spec.class_means and spec.measurements > 10
    assert spec.drop_at == 0.8


def test_figure_2_at_the_size_of_the_paper():
    mlp, resnet = specification("2-mlp", "paper"), specification("2-resnet", "paper")
    for spec in (mlp, resnet, specification("5", "paper")):
        assert spec.linear == (1, 2, 3, 4, 5, 6)
        assert len(spec.setups) == 10 and spec.seeds == 5  # 50 runs of each network
    assert (min(mlp.weight_decay), max(mlp.weight_decay), mlp.lr) == (0.001, 0.004, (0.001,))
    assert mlp.nonlinear == (5,) and mlp.data.source == "mnist"
    assert resnet.network == "resnet20" and resnet.data.source == "cifar10" and resnet.samples == 50_000
    assert len(mlp.jobs("cuda")) == 6 and all(len(cell.seeds) == 50 for cell in mlp.jobs("cuda"))


def test_figure_3_divides_its_weight_decay_by_the_depth():
    spec = specification("3", "paper")
    assert spec.lr == (0.001, 0.002) and spec.seeds == 5
    assert (min(spec.nonlinear), max(spec.nonlinear), spec.linear) == (4, 12, (1,))
    for job in spec.jobs():
        assert set(job.training.weight_decay) == {0.016 / (job.network.num_nonlinear + 1)}


def test_figure_5_and_the_resnet_of_figure_1():
    assert specification("5", "paper").data.source == "mnist" and specification("5", "paper").network == "resnet20"
    variant = specification("1-resnet", "paper")
    assert (variant.nonlinear, variant.linear, variant.weight_decay) == ((3,), (3,), (0.001,))
    assert variant.data.source == "cifar10" and variant.network == "resnet20"


def test_every_figure_of_the_paper_is_declared_at_every_size():
    ours = ("3-fixed", "3-fixed-small-step", "2-mlp-decays", "2-mlp-small-step", "2-mlp-small-step-ends")
    ours = {(figure, "cores") for figure in (*ours, "2-resnet-32", "5-28", "4-width")}
    figures = ("1", "1-resnet", "2-mlp", "2-resnet", "3", "4", "5")
    assert set(experiments.DECLARED) == ours | set(itertools.product(figures, experiments.PROFILES))
    with pytest.raises(ValueError, match="profile of figure 3-fixed must be one of cores; got 'quick'"):
        specification("3-fixed")


def test_the_variants_change_only_the_weight_decays_and_seeds():
    three, two = specification("3", "cores"), specification("2-mlp", "cores")
    decays = tuple(round(0.001 + 0.003 * i / 9, 6) for i in range(10))
    fixed = three.but(figure="3-fixed", weight_decay=(0.0018,), weight_decay_over_depth=False)
    assert specification("3-fixed", "cores").identity() == fixed.identity()
    more = two.but(figure="2-mlp-decays", weight_decay=decays, seeds=5)
    assert specification("2-mlp-decays", "cores").identity() == more.identity()


def test_the_small_steps_are_jobs_of_the_papers_profile():
    whole = set(specification("2-mlp", "paper").jobs())
    part, ends = (specification(f"2-mlp-small-step{of}", "cores").jobs() for of in ("", "-ends"))
    assert len(part) == 18 and set(part) < whole
    assert len(ends) == 12 and set(ends) < whole - set(part)
    paper = specification("3", "paper")
    fixed = paper.but(figure="3-fixed-small-step", lr=paper.lr[:1], seeds=3)
    fixed = fixed.but(weight_decay=specification("3-fixed", "cores").weight_decay, weight_decay_over_depth=False)
    assert specification("3-fixed-small-step", "cores").jobs() == fixed.jobs()


@pytest.mark.parametrize("figure", ["1", "4", "2-mlp", "3"])
def test_the_schedules_cover_the_same_flow_time(figure):
    paper, cores = specification(figure, "paper"), specification(figure, "cores")
    of_the_paper = 10_000 * 468 * 0.001 * (0.8 + 0.2 * 0.1)  # 10,000 epochs of 468 batches at 0.001, dropped at 80 %
    assert paper.flow_time == pytest.approx(of_the_paper, rel=0.05)
    assert cores.flow_time == pytest.approx(of_the_paper, rel=0.05)


def test_flow_time_of_rows_ends_at_that_of_the_specification():
    frame = run()
    assert experiments.flow_time(frame).max() == pytest.approx(TINY.flow_time)
    assert experiments.flow_time(frame[frame["step"] == 0]).eq(0).all()


@pytest.mark.parametrize("spec", experiments.DECLARED.values(), ids=lambda s: f"{s.figure}-{s.profile}")
def test_every_declaration_expands_to_its_runs(spec):
    found = spec.jobs()
    assert sum(len(cell.seeds) for cell in found) == spec.runs
    assert spec.runs == len(spec.networks) * len(spec.widths) * len(spec.setups) * spec.seeds
    assert len(set(found)) == len(found)
    assert all(job.training.batch_size <= job.data.count and job.steps > 0 for job in found)
    text = spec.describe()
    assert f"Figure {spec.figure}" in text and f"{spec.runs}" in text
    assert hash(spec) and spec.but() == spec  # frozen


def test_only_the_paper_profile_is_called_paper_scale():
    for spec in experiments.DECLARED.values():
        assert ("paper" in spec.label()) == (spec.profile == "paper")
        assert f"{spec.seeds} seed" in spec.label() and f"{spec.samples:,}" in spec.label()
        assert spec.profile == "paper" or spec.samples <= 60_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"figure": "7"}, "figure must be one of 1,.*got '7'"),
        ({"figure": "1", "profile": "huge"}, "profile must be one of quick, cores, paper; got 'huge'"),
        ({"figure": "1", "device": "tpu"}, "device must be 'cpu' or 'cuda'; got 'tpu'"),
        ({"figure": "1", "backend": "slurm"}, "backend must be one of loky, sequential, ray, dask; got 'slurm'"),
        ({"figure": "1", "jobs": 0}, "jobs must be at least 1; got 0"),
        ({"figure": TINY, "profile": "paper"}, "profile: the specification given has 'quick'; got 'paper'"),
    ],
)
def test_bad_requests_name_the_argument(arguments, words):
    with pytest.raises(ValueError, match=words):
        experiments.run(**arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_no_gpu_is_said_before_anything_runs():
    with pytest.raises(ValueError, match="CUDA is not available"):
        run(device="cuda")


@pytest.mark.parametrize("setting", ["-3", "abc", "2.5", "0", " "])
def test_a_number_of_jobs_that_is_none_is_refused(setting, monkeypatch):
    monkeypatch.setenv("NCUTILS_JOBS", setting)
    with pytest.raises(ValueError, match=f"NCUTILS_JOBS must be a number of jobs, at least 1; got '{setting}'"):
        run()


@pytest.mark.parametrize(("option", "words"), [("measured", "the 10 classes"), ("test_samples", "10")])
def test_samples_that_are_no_multiple_of_the_classes_are_refused(option, words):
    with pytest.raises(ValueError, match=f"{option}.* must be a multiple of {words}; got 15"):
        run(TINY.but(**{option: 15}))


def test_a_data_set_that_was_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    jobs._images.cache_clear()
    jobs._checksum_of_named.cache_clear()
    with pytest.raises(FileNotFoundError, match="python -m ncutils data mnist"):
        run(TINY.but(data="mnist", size=7))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lr": (0.05, 0.1, 0.05)}, "lr must not repeat a value; got 0.05 twice"),
        ({"linear": (1, 1)}, "linear must not repeat a value; got 1 twice"),
        ({"width": (12, 12)}, "width must not repeat a value; got 12 twice"),
        ({"sweep": {"momentum": (0.5, 0.5)}}, r"sweep\['momentum'\] must not repeat a value"),
        ({"sweep": {"momentum": ()}}, r"sweep\['momentum'\] must hold at least one value; got none"),
        (
            {"sweep": (("momentum", (0.5,)), ("momentum", (0.9,)))},
            "sweep must not repeat a value; got 'momentum' twice",
        ),
        ({"runs_per_job": 0}, "runs_per_job must be at least 1; got 0"),
        ({"seeds": 0}, "seeds must be at least 1; got 0"),
        ({"profile": "huge"}, "profile must be one of quick, cores, paper, own; got 'huge'"),
        ({"figure": "../x"}, "figure must be a name of"),
        ({"figure": "a/b"}, "figure must be a name of"),
        ({"figure": ""}, "figure must be a name of at most 100 characters"),
        ({"figure": "a\nb"}, "figure must be a name of at most 100 characters"),
        ({"figure": "a" * 101}, "figure must be a name of at most 100 characters"),
        ({"measured": 110}, "measured must be at most the 100 samples, or None; got 110"),
    ],
)
def test_what_is_no_experiment_is_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TINY.but(**changes)


def test_true_is_no_number_of_seeds():
    with pytest.raises(TypeError, match="seeds must be an integer; got True"):
        TINY.but(seeds=True)


def test_measuring_on_more_than_the_rarest_class_has_is_refused():
    x, y = torch.randn(15, 4), torch.tensor([0, 0, 0] + [1] * 6 + [2] * 6)
    few = experiments.declare(
        figure="uneven", data=data.Dataset(x, y, 3, "uneven"), nonlinear=1, linear=1, lr=0.01, weight_decay=0.001,
        width=4, steps=2, batch_size=5, measured=12, measurements=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="measured must be at most 3 a class, what the rarest has; got 4 a class"):
        run(few)
    assert not run(few.but(measured=9)).frame.empty


def test_a_part_of_a_set_is_not_taken_for_the_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    y = (np.arange(100) % 10).astype(np.uint8)
    arrays = {
        f"{split}_{a}": v for split in data.SPLITS for a, v in (("x", np.zeros((100, 1, 28, 28), np.uint8)), ("y", y))
    }
    data.save("mnist", arrays, tmp_path)
    for clear in (jobs._images.cache_clear, jobs._checksum_of_named.cache_clear):
        clear()
    with pytest.raises(ValueError, match=r"mnist must hold 60,000 training samples; got 100.*ncutils data mnist"):
        specification("1", "cores").jobs()[0].load()


def test_a_changed_paper_profile_is_not_called_paper_scale():
    whole = specification("2-mlp", "paper")
    assert whole.as_declared and whole.label().startswith("paper-scale: ")
    for part in (whole.but(seeds=1), whole.but(epochs=1), whole.but(figure="1")):
        assert not part.as_declared and part.label().startswith("paper-scale with changes: ")
    assert whole.but(runs_per_job=3).as_declared


def test_what_is_not_as_declared_is_not_archived_under_its_name(cache, tmp_path, monkeypatch):
    monkeypatch.setattr(ARCHIVE, "check_committed", lambda: None)
    path = tmp_path / "2-mlp-quick.parquet"
    path.write_text("an archive")
    with pytest.raises(
        ValueError, match=r"result must be of figure 2-mlp, quick, as it is declared.*got another width, "
    ):
        experiments.save_archive(run(TINY), tmp_path)
    assert path.read_text() == "an archive"
    with pytest.raises(ValueError, match="result must be of figure 2-mlp, own, as it is declared"):
        experiments.save_archive(run(TINY.but(profile="own")), tmp_path)
    mine = run(TINY.but(figure="tiny", profile="own"))
    assert experiments.save_archive(mine, tmp_path).name == "tiny-own.parquet"
    part = dataclasses.replace(mine, frame=mine.frame[mine.frame["seed"] == 0])
    with pytest.raises(ValueError, match="result must hold the 8 runs that its provenance names; got 4"):
        experiments.save_archive(part, tmp_path)


def test_numbers_of_numpy_are_numbers(cache):
    spec = TINY.but(seeds=np.int64(1), linear=np.int64(1), width=(np.int64(12),), weight_decay=np.float32(0.25))
    spec = spec.but(runs_per_job=np.int64(1), sweep={"warmup_steps": np.array([1, 2])}, samples=np.int64(100))
    assert len(run(spec).frame["setup"].unique()) == 2
    assert json.loads(json.dumps(spec.options()))["seeds"] == 1


def test_samples_that_cannot_be_balanced():
    with pytest.raises(ValueError, match="samples of cifar10_small must be 800 or a smaller multiple of 10; got 95"):
        run(TINY.but(samples=95))


# --- the frame


def test_one_row_for_each_run_split_step_and_layer():
    frame = run()
    assert not frame.duplicated(["depth", "run", "split", "step", "layer"]).any()
    # 4 runs of a 6-layer and of a 7-layer network, two splits, measured at the start, the drop and the end
    assert len(frame) == 4 * (6 + 7) * 2 * frame["step"].nunique()
    assert set(frame["split"]) == {"train", "test"} and set(frame["depth"]) == {1, 2}
    assert frame["setup"].nunique() == 2 and set(frame["seed"]) == {0, 1}
    assert frame.groupby(["depth", "run"])["setup"].nunique().eq(1).all()
    assert (frame["figure"] == "2-mlp").all() and (frame["profile"] == "quick").all()
    assert frame["epoch"].max() == 3
    assert experiments.label(frame) == TINY.label("CPU")
    assert not frame["diverged"].any()


def test_blocks_of_runs_do_not_change_a_run(monkeypatch):
    monkeypatch.setenv("NCUTILS_CACHE", "off")
    spec = TINY.but(linear=(2,), epochs=2)
    one, all_ = run(spec.but(runs_per_job=1)), run(spec.but(runs_per_job=spec.runs))
    order = ["depth", "run", "split", "step", "layer"]
    one, all_ = (f.sort_values(order, ignore_index=True) for f in (one, all_))
    pd.testing.assert_frame_equal(one, all_[one.columns], check_exact=True)


def test_a_resnet_has_the_backbone_as_layer_0():
    spec = TINY.but(network="resnet20", nonlinear=(0,), seeds=1, weight_decay=(0.001,), epochs=1, size=8, samples=50)
    end = experiments.final(run(spec))
    assert end.groupby("depth")["layer"].max().to_dict() == {1: 1, 2: 2}
    backbone = end[end["layer"] == 0]
    assert (backbone["part"] == "backbone").all() and backbone["nc1"].gt(0).all()
    assert backbone.set_index("depth")["nc3"].notna().to_dict() == {1: True, 2: False}  # Z_0 is Z_{L-1} for L = 1
    ends = experiments.head_ends(run(spec)).set_index("depth")
    assert ends.loc[1, "nc2_last"] == ends.loc[1, "nc2_first"]
    assert ends.loc[2, "nc2_last"] != ends.loc[2, "nc2_first"]
    assert ends["nc3"].notna().all()


def test_the_backbone_is_measured_as_it_would_be_used():
    """In evaluation mode, which a network in training keeps nothing of, by the metrics of the other layers."""
    spec = TINY.but(network="resnet20", nonlinear=(0,), linear=(2,), seeds=2, size=8, samples=50, runs_per_job=2)
    job = spec.jobs()[0]
    samples, _ = job.load()
    network = job.build(samples).train()
    network.layers(samples.x)  # running means that are not those of this batch
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    rows = [row for row in job.measure(network, samples, 0, {"train": samples}) if row["layer"] == 0]
    assert all(backbone.training for backbone in network.backbones)
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())
    assert [row["run"] for row in rows] == [0, 1]
    for row, backbone in zip(rows, network.eval().backbones, strict=True):
        z = backbone(samples.x).detach()
        assert row["nc1"] == pytest.approx(metrics.nc1(z, samples.y).item(), rel=1e-4)
        assert row["nc2"] == pytest.approx(metrics.nc2(z, samples.y).item(), rel=1e-4)


def test_an_epoch_is_as_many_steps_as_there_are_whole_batches():
    frame = TINY.but(batch_size=30).jobs()[0].compute()  # 100 samples: 3 batches, and 10 samples left out
    assert frame["step"].max() == 9 and frame["epoch"].max() == 3


def test_measuring_on_fewer_samples_than_are_trained_on():
    whole, part = run(), run(TINY.but(measured=50))
    on_train = lambda f: f[f["split"] == "train"].reset_index(drop=True)  # noqa: E731
    assert not np.allclose(on_train(whole)["nc1"], on_train(part)["nc1"])
    np.testing.assert_array_equal(on_train(whole)["balancedness"], on_train(part)["balancedness"])


@pytest.mark.parametrize("block", [1, 4])
def test_diverged_runs_are_marked_and_left_out(block):
    frame = run(TINY.but(lr=(0.05, 1e4), linear=(2,), weight_decay=(0.001,), epochs=30, runs_per_job=block))
    assert frame[frame["lr"] == 1e4]["diverged"].all() and not frame[frame["lr"] == 0.05]["diverged"].any()
    with pytest.warns(UserWarning, match="2 of 4 runs diverged and are left out"):
        assert set(experiments.final(frame)["lr"]) == {0.05}


def test_summaries_follow_their_definitions():
    frame = run(TINY.but(nonlinear=(5,)))
    end = experiments.final(frame)
    one = end[(end["depth"] == 2) & (end["run"] == 0)].set_index("layer")
    ends = experiments.head_ends(frame).set_index(["depth", "run"]).loc[(2, 0)]
    assert ends["nc1_last"] == one.loc[6, "nc1"] and ends["nc1_first"] == one.loc[5, "nc1"]
    assert ends["nc1_output"] == one.loc[7, "nc1"] and ends["nc3"] == one.loc[6, "nc3"]
    curved = experiments.nonlinear_head(frame).set_index(["depth", "run"]).loc[(2, 0)]
    assert curved["negativity_mean"] == pytest.approx(one.loc[[3, 4, 5], "negativity"].mean())
    assert curved["negativity_min"] == one.loc[[3, 4, 5], "negativity"].min()
    for short, column in (("balancedness", "balancedness_relative"), ("balancedness_op", "balancedness")):
        pairs = one.loc[[3, 4], column]
        assert curved[f"{short}_min"] == pairs.min() < pairs.max()
        assert curved[f"{short}_mean"] == pytest.approx(pairs.mean())
    assert len(experiments.head_ends(frame)) == len(experiments.nonlinear_head(frame)) == 8


def test_class_means_are_kept_where_asked_for():
    with pytest.raises(ValueError, match="figure 2-mlp keeps no class means"):
        experiments.class_means(run())
    frame = run(TINY.but(class_means=True, weight_decay=(0.001,)))
    grams = experiments.class_means(frame[frame["depth"] == 2], seed=1)
    assert set(grams) == set(range(1, 8)) and grams[7].shape == (10, 10)
    np.testing.assert_allclose(grams[3], grams[3].T)
    assert np.linalg.eigvalsh(grams[3]).min() > -1e-4
    with pytest.raises(ValueError, match=r"seed must be one of \[0, 1\]; got 9"):
        experiments.class_means(frame, seed=9)


def test_class_means_are_those_of_the_pre_activations_on_the_training_samples_at_the_end():
    job = TINY.but(class_means=True, linear=(2,)).jobs()[0]
    train, test = job.load()
    network, seen = job.build(train), {"train": train, "test": test}
    rows = job.measure(network, train, job.steps, seen)
    assert {row["split"] for row in rows if "class_gram" in row} == {"train"}
    assert not any("class_gram" in row for row in job.measure(network, train, 0, seen))
    for row, pre in zip(rows, network.layers(train.x).pre, strict=False):
        means = metrics.class_means(pre[0].detach(), train.y)
        np.testing.assert_allclose(row["class_gram"], (means @ means.T).flatten().numpy(), rtol=1e-5, atol=1e-5)


def test_the_samples_to_measure_on_are_the_first_of_each_class():
    samples = data.gaussian(5, num_classes=3, dim=2)
    first = jobs._first(samples, 6)
    assert first.y.bincount().tolist() == [2, 2, 2]
    for label in range(3):
        assert torch.equal(first.x[first.y == label], samples.x[samples.y == label][:2])


# --- the cache


def test_finished_cells_are_read_not_computed(cache, monkeypatch):
    first = run()
    assert len(list(cache.glob("*.parquet"))) == len(TINY.jobs()) and not list(cache.glob("*.checkpoint"))
    no_computing(monkeypatch)
    pd.testing.assert_frame_equal(run().frame, first.frame)


def test_other_code_data_configuration_or_torch_is_another_key(monkeypatch):
    cell = TINY.jobs()[0]
    others = TINY.but(width=13), TINY.but(data="mnist5k"), TINY.but(drop_factor=0.5)
    keys = {cell.key(), *(other.jobs()[0].key() for other in others)}
    monkeypatch.setattr(torch, "__version__", "0.0")
    keys.add(cell.key())
    monkeypatch.setattr(jobs, "code_hash", lambda: "other")
    keys.add(cell.key())
    assert len(keys) == 6


def test_whatever_decides_a_result_is_in_its_key(monkeypatch):
    cell = TINY.jobs()[0]
    own = (replace(cell, data=jobs.DataConfig(data.gaussian(6, num_classes=3, dim=4, seed=seed))) for seed in (0, 1))
    others = [replace(cell, device="cuda"), replace(cell, class_grams=not cell.class_grams), replace(cell, seeds=(7,))]
    others += [replace(cell, data=replace(cell.data, size=7)), *own]
    keys = [job.key() for job in (cell, *others)]
    monkeypatch.setattr(jobs.DataConfig, "checksum", lambda self: "a file of that name with other images")
    assert len({*keys, cell.key()}) == 2 + len(others)


@pytest.mark.parametrize("names", [jobs.CODE, jobs.CODE_OF_OWN], ids=["library", "own"])
def test_an_edit_of_any_file_behind_a_result_is_other_code(names, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "PACKAGE", tmp_path)
    (tmp_path / "experiments").mkdir()
    for name in names:
        (tmp_path / name).write_text("value = 0\n")
    seen = {jobs.code_on_disk(names)}
    for name in names:
        (tmp_path / name).write_text("value = 1\n")
        seen.add(jobs.code_on_disk(names))
    assert len(seen) == 1 + len(names)
    assert {"data.py", "metrics.py", "networks.py", "training.py", "experiments/jobs.py"} <= set(jobs.CODE)
    assert {"_measure.py", "_plain.py"} <= set(jobs.CODE_OF_OWN)


@pytest.mark.parametrize("kind", ["mlp", "resnet20"])
def test_the_test_set_is_the_other_split_scaled_as_the_training_set(kind):
    job = TINY.jobs()[0]
    job = replace(job, network=replace(job.network, kind=kind), data=jobs.DataConfig("mnist5k", 200, test_samples=100))
    train, test = job.load()
    wanted = [data.load("mnist5k", count, split) for count, split in ((20, "train"), (10, "test"))]
    if kind == "mlp":
        flat = wanted[0].flat()
        wanted = [flat, wanted[1].flat(like=flat)]
    for seen, right in zip((train, test), wanted, strict=True):
        torch.testing.assert_close(seen.x, right.x)
        assert seen.y.tolist() == right.y.tolist()
    every = torch.cat([train.x, test.x]).flatten(1)
    assert len(torch.unique(every, dim=0)) == len(every) == 300  # no image is in both


def test_comments_do_not_change_the_code_hash_and_code_does():
    code = 'def f():\n    """Doc."""\n    return 1\n'
    same = 'def f():\n    """Other."""\n    return 1  # why\n'
    assert _files.syntax(code) == _files.syntax(same) != _files.syntax(code.replace("1", "2"))
    assert re.fullmatch("[0-9a-f]{16}", jobs.code_hash())


def test_caching_can_be_off(cache, monkeypatch):
    monkeypatch.setenv("NCUTILS_CACHE", "off")
    run(TINY.but(linear=(1,)))
    assert not cache.exists()


def test_a_damaged_file_is_computed_again(cache):
    spec = TINY.but(linear=(1,), seeds=1)
    first = run(spec)
    for path in cache.glob("*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match=r"[0-9a-f]{16}\.parquet is damaged"):
        run(spec)
    assert len(list(cache.glob("*.parquet.damaged"))) == 2
    pd.testing.assert_frame_equal(run(spec).frame, first.frame)


def python(code: str, **environment) -> subprocess.Popen:
    """A child process that has TINY, in which ``code`` runs."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_experiments import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(code)],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_killed_sweep_resumes(cache, monkeypatch):
    spec = TINY
    child = python("""
        compute = Job.compute
        Job.compute = lambda cell, checkpoint=None: (compute(cell, checkpoint), time.sleep(0.3))[0]
        run()
    """)
    deadline = time.time() + 60
    while len(list(cache.glob("*.parquet"))) < 2 and time.time() < deadline and child.poll() is None:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    kept = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.parquet")}
    assert 2 <= len(kept) < len(spec.jobs())
    done, begun, total = experiments.progress(spec)
    assert (done, total) == (len(kept), 8) and begun <= 1
    resumed = run(spec)
    assert all(cache.joinpath(name).stat().st_mtime_ns == modified for name, modified in kept.items())
    assert not list(cache.glob("*.checkpoint"))
    monkeypatch.setenv("NCUTILS_CACHE", "off")
    pd.testing.assert_frame_equal(resumed.frame, run(spec).frame)


def test_a_full_disk_names_the_file_and_keeps_what_is_done(cache):
    """A limit on the size of files stands in for the full disk."""
    first = run(TINY.but(linear=(1,)))
    child = python("""
        import resource
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            run(TINY)
        except OSError as error:
            print("OSError:", error)
    """)
    out, err = child.communicate(timeout=120)
    assert re.search(r"OSError: .*could not write .*cache", out), out + err
    assert not [path for path in cache.iterdir() if path.name.startswith(".")]
    pd.testing.assert_frame_equal(run(TINY.but(linear=(1,))).frame, first.frame)
    assert len(run()) > len(first)


# --- what it costs


def test_cost_counts_runs_steps_and_cells_on_disk(cache):
    before = experiments.cost(TINY)
    assert (before.jobs, before.jobs_on_disk, before.runs, before.run_steps) == (8, 0, 8, 8 * 6)
    assert before.seconds > 0
    relu = 50 * (6 * (48 * 12 + 4 * 12 * 12) - 2 * 48 * 12)  # the gradient of the input is not needed
    head = 50 * 6 * 12 * 10, 50 * 6 * 12 * 10 + 6 * 10 * 12 * 12  # of one layer and of two: products of K rows
    assert before.flops == sum(relu + h for h in head) * 6 * 4
    run(TINY.but(linear=(1,)))
    after = experiments.cost(TINY)
    assert after.jobs_on_disk == 4 and "4 on disk" in str(after) and "figure 2-mlp" in str(after)
    done = experiments.cost(TINY.but(linear=(1,)))
    assert (done.jobs_on_disk, done.seconds) == (4, 0) and 0 < done.flops < before.flops


def test_a_longer_training_costs_more():
    short, long = (specification("1").but(epochs=epochs, measurements=1).jobs()[0] for epochs in (1, 10_000))
    found = [sys.modules["ncutils.experiments.cost"]._job_seconds(job) for job in (short, long)]
    assert found[1] > 20 * found[0] > 0  # ten thousand times the steps, and one measurement each


def test_a_job_that_is_done_has_not_only_begun(cache):
    cache.mkdir()
    first, second, *_ = (job.key() for job in TINY.jobs())
    for name in (f"{first}.parquet", f"{first}.checkpoint", f"{second}.checkpoint"):
        (cache / name).touch()
    assert experiments.progress(TINY) == (1, 1, 8)


# --- the archive


@pytest.fixture
def archived(tmp_path, monkeypatch):
    """A tiny figure 2, declared as its profile cores and archived."""
    spec = TINY.but(profile="cores")
    monkeypatch.setitem(experiments.DECLARED, ("2-mlp", "cores"), spec)
    monkeypatch.setattr(ARCHIVE, "check_committed", lambda: None)
    frame = run(spec)
    path = experiments.save_archive(frame, tmp_path / "results")
    return frame, path


def sealed(provenance: dict) -> dict:
    """As it is kept: with a hash of all the rest."""
    rest = {name: value for name, value in provenance.items() if name != "sha256"}
    return rest | {"sha256": hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


def test_an_archive_gives_back_the_run(archived):
    frame, path = archived
    back = experiments.archive("2-mlp", folder=path.parent)
    assert experiments.archived(path.parent) == [("2-mlp", "cores")]
    assert experiments.label(back) == experiments.label(frame)
    np.testing.assert_allclose(experiments.head_ends(back)["nc2_last"], experiments.head_ends(frame)["nc2_last"], 1e-6)
    assert set(back["lr"]) == {0.05} and set(back["weight_decay"]) == {0.001, 0.004}  # parameters keep their digits
    provenance = json.loads(path.with_suffix(".json").read_text())
    wanted = {
        "git_commit",
        "specification",
        "seeds",
        "device",
        "versions",
        "seconds",
        "data_checksum",
        "samples",
        "rows",
    }
    assert wanted <= set(provenance)


def test_no_archive_says_how_to_make_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m ncutils run 2-resnet --profile paper"):
        experiments.archive("2-resnet", folder=tmp_path)
    with pytest.raises(ValueError, match="figure must be one of"):
        experiments.archive("8", folder=tmp_path)


def test_an_archive_of_another_specification_is_refused(archived, monkeypatch):
    _, path = archived
    changed = TINY.but(profile="cores", seeds=7)
    monkeypatch.setitem(experiments.DECLARED, ("2-mlp", "cores"), changed)
    with pytest.raises(ValueError, match="another specification of figure 2-mlp, cores: seeds is 2 there, 7 here"):
        experiments.archive("2-mlp", folder=path.parent)


def test_an_archive_outlives_another_caption_and_a_new_option(archived, monkeypatch):
    _, path = archived
    about = path.with_suffix(".json")
    provenance = json.loads(about.read_text())
    del provenance["specification"]["precision"]  # as before that option came, with what is now its default
    pd.read_parquet(path).to_parquet(path)  # without a provenance of its own, as tables were
    provenance["parquet_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    about.write_text(json.dumps(sealed(provenance)))
    reworded = TINY.but(profile="cores", precision="float32", shows="the same in other words", runs_per_job=None)
    monkeypatch.setitem(experiments.DECLARED, ("2-mlp", "cores"), reworded)
    experiments.archive("2-mlp", folder=path.parent)
    monkeypatch.setitem(experiments.DECLARED, ("2-mlp", "cores"), reworded.but(precision="float64"))
    with pytest.raises(ValueError, match="precision is 'float32' there, 'float64' here"):
        experiments.archive("2-mlp", folder=path.parent)


def test_an_archive_whose_table_is_not_its_own_is_refused(archived):
    _, path = archived
    pd.read_parquet(path).iloc[:-1].to_parquet(path)
    with pytest.raises(ValueError, match=r"2-mlp-cores.parquet: not the table that 2-mlp-cores.json describes"):
        experiments.archive("2-mlp", folder=path.parent)


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "no readable"), ("{}", "damaged"), ("[]", "damaged"), (None, "lacks figure|lacks specification")],
)
def test_an_archive_without_provenance_is_refused(archived, text, words):
    about = archived[1].with_suffix(".json")
    about.write_text(json.dumps(sealed({})) if text is None else text)
    with pytest.raises(ValueError, match=words):
        experiments.archive("2-mlp", folder=about.parent)


def test_a_table_carries_its_own_provenance(archived):
    frame, path = archived
    about = path.with_suffix(".json")
    provenance = json.loads(about.read_text())
    about.unlink()
    alone = experiments.load_archive("2-mlp", folder=path.parent)
    assert alone.provenance["git_commit"] == provenance["git_commit"] and len(alone) == len(frame)
    about.write_text(json.dumps(sealed(provenance | {"seconds": 1e9})))
    with pytest.raises(ValueError, match=r"its own provenance is not that of 2-mlp-cores.json: seconds"):
        experiments.load_archive("2-mlp", folder=path.parent)


def test_a_save_that_is_stopped_leaves_no_old_provenance_beside_a_new_table(archived, monkeypatch):
    frame, path = archived
    other = replace(frame, provenance=frame.provenance | {"seconds": 12345.6})

    def stopped(provenance):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ARCHIVE, "_seal", stopped)
        experiments.save_archive(other, path.parent)
    assert experiments.load_archive("2-mlp", folder=path.parent).provenance["seconds"] == 12345.6


def test_the_largest_archive_there_is_comes_first(archived, monkeypatch):
    frame, path = archived
    assert experiments.load_archive("2-mlp", folder=path.parent).provenance["profile"] == "cores"
    paper = TINY.but(profile="paper", seeds=1)
    monkeypatch.setitem(experiments.DECLARED, ("2-mlp", "paper"), paper)
    experiments.save_archive(run(paper), path.parent)
    assert experiments.load_archive("2-mlp", folder=path.parent).provenance["profile"] == "paper"
    assert len(experiments.load_archive("2-mlp", "cores", path.parent)) == len(frame)


def test_uncommitted_code_is_not_archived(monkeypatch):
    answers = {"ls-files": "ncutils/data.py", "rev-parse": "abc", "status": " M ncutils/training.py"}
    monkeypatch.setattr(ARCHIVE, "git", lambda *arguments: answers[arguments[0]])
    with pytest.raises(ValueError, match=r"commit these first.*\n M ncutils/training.py"):
        experiments.check_committed()
    answers["status"], asked = "", []
    monkeypatch.setattr(ARCHIVE, "git", lambda *arguments: (asked.append(arguments), answers[arguments[0]])[1])
    experiments.check_committed()
    files = {"metrics.py", "training.py", "experiments/jobs.py", "_plain.py", "experiments"}
    for command in ("ls-files", "status"):
        (given,) = [arguments for arguments in asked if arguments[0] == command]
        assert {str(jobs.PACKAGE / name) for name in files} <= set(given)
    monkeypatch.setattr(ARCHIVE, "git", lambda *arguments: None)
    with pytest.raises(ValueError, match="not a git checkout"):
        experiments.check_committed()


@pytest.mark.parametrize(("figure", "profile"), experiments.archived() or [("none", "none")])
def test_the_committed_archives_are_whole(figure, profile):
    if figure == "none":
        pytest.skip("no archives in this checkout")
    frame = experiments.archive(figure, profile)
    spec = specification(figure, profile)
    assert frame.groupby(["depth", "run"]).ngroups == spec.runs
    assert "CPU" in experiments.label(frame) or profile == "paper"
    path = experiments.results_dir() / f"{figure}-{profile}.parquet"
    assert path.stat().st_size < 300_000
    commit = frame.provenance["git_commit"]
    if RUN.git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("no whole history here to look for the archive's commit in")
    assert RUN.git("cat-file", "-t", f"{commit}:ncutils/training.py") == "blob"  # in the history, and holds the code


def test_what_a_killed_process_was_writing_is_removed_a_day_later(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_CACHE", str(tmp_path))
    keys = ("0123456789abcdef", "123456789abcdef0")
    old, new = (tmp_path / f".{key}.parquet.0123abcd" for key in keys)
    others = [tmp_path / name for name in ("c.parquet.0123abcd", ".notes.0123abcd", ".git.parquet.0123abcd")]
    for path in (old, new, *others):
        path.write_text("half")
    for path in (old, *others):
        os.utime(path, (0, 0))
    run(TINY.but(linear=(1,), weight_decay=(0.001,), seeds=1))
    assert not old.exists() and new.exists() and all(path.exists() for path in others)


PRINT_HASH = """
import importlib
for name in ("ncutils.experiments.jobs", "ncutils.cells"):  # where it stood, newest first
    try:
        print(importlib.import_module(name).code_hash())
        break
    except ImportError:
        pass
"""


@pytest.mark.parametrize(("figure", "profile"), experiments.archived() or [("none", "none")])
def test_the_commit_an_archive_names_holds_the_code_it_names(figure, profile, tmp_path):
    """The package as that commit has it says the same hash of its own code."""
    if figure == "none" or RUN.git("rev-parse", "--is-shallow-repository") != "false":
        pytest.skip("no archives, or no whole history")
    provenance = experiments.archive(figure, profile).provenance
    if provenance["versions"]["python"].split(".")[:2] != platform.python_version().split(".")[:2]:
        pytest.skip("another Python writes syntax trees in other words")
    package = subprocess.run(["git", "archive", provenance["git_commit"], "ncutils"], cwd=ROOT, capture_output=True)
    with tarfile.open(fileobj=io.BytesIO(package.stdout)) as tar:
        tar.extractall(tmp_path, filter="data")
    command = [sys.executable, "-c", PRINT_HASH]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, capture_output=True)
    assert done.stdout.decode().strip() == provenance["code"], done.stderr.decode()


# --- other engines


@dataclass(frozen=True)
class Mortal(Job):
    """Kills the process that computes it the first time."""

    marker: str = ""

    def compute(self, checkpoint=None):
        if self.marker and not Path(self.marker).exists():
            Path(self.marker).touch()
            time.sleep(1)  # let the neighbour finish: what is lost should be this cell alone
            os.kill(os.getpid(), signal.SIGKILL)
        return super().compute(checkpoint)


@pytest.mark.parametrize("backend", ["loky", "ray", "dask"])
def test_another_engine_gives_the_same_and_survives_a_killed_worker(backend, cache, tmp_path, monkeypatch):
    if backend != "loky":
        pytest.importorskip({"ray": "ray", "dask": "distributed"}[backend])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    plain = TINY.jobs()
    expected = {cell.key(): cell.compute() for cell in plain}
    fields = [{name: getattr(cell, name) for name in cell.__dataclass_fields__} for cell in plain]
    mortal = [Mortal(**f, marker=str(tmp_path / "marker") if i == 3 else "") for i, f in enumerate(fields)]
    missing = {cell.key(): m for cell, m in zip(plain, mortal, strict=True)}
    bar = RUN._bar("", len(missing), 0, False)
    found = RUN._solve_all(missing, cache, 2, backend, "cpu", bar)
    assert (tmp_path / "marker").exists()
    assert found.keys() == expected.keys()
    for key, frame in found.items():
        pd.testing.assert_frame_equal(frame, expected[key], check_exact=True)
    assert len(list(cache.glob("*.parquet"))) == len(plain)


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_an_engine_that_is_not_installed(backend, cache, monkeypatch):
    for name in ("ray", "ray.util.joblib", "distributed", "dask"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=rf'needs the package: pip install .*pip install ".\[{backend}\]" in a checkout'
    ):
        run(backend=backend)


# --- an experiment of the reader's own


def own(**options):
    train, test = (data.gaussian(20, num_classes=3, split=split) for split in data.SPLITS)
    given = dict(figure="blobs", data=(train, test), nonlinear=2, linear=(1, 2), lr=(0.02, 0.05), weight_decay=0.001)
    given |= dict(width=(8, 16), seeds=2, epochs=2, batch_size=20, warmup_steps=2, measurements=1)
    return experiments.declare(**(given | options))


def test_own_data_widths_depths_and_training_options_are_swept(cache, monkeypatch):
    spec = own(sweep={"momentum": (0.0, 0.9), "drop_factor": (0.1, 1.0)})
    result = run(spec)
    end = result.final("test")
    assert spec.runs == 2 * 2 * 2 * 4 * 2
    columns = ["depth", "width", "lr", "momentum", "drop_factor", "seed"]
    assert end.groupby(columns).ngroups == spec.runs and not end.duplicated(["depth", "run", "layer"]).any()
    assert end.groupby("setup")[["lr", "momentum", "drop_factor"]].nunique().eq(1).all(axis=None)
    assert len(result.head_ends()) == spec.runs and result.label.startswith("blobs: 60 samples of gaussian")
    assert "momentum" in spec.describe()
    no_computing(monkeypatch)
    pd.testing.assert_frame_equal(run(spec).frame, result.frame)  # other tensors with the same contents


def test_an_experiment_of_ones_own_is_archived_and_read_back(cache, tmp_path, monkeypatch):
    spec = own(lr=0.02, width=8)
    result = run(spec)
    path = experiments.save_archive(result, tmp_path)
    back = experiments.load_archive(spec, folder=tmp_path)
    assert back.label == result.label and back.provenance["seeds"] == [0, 1]
    np.testing.assert_allclose(back.frame["nc1"], result.frame["nc1"], rtol=1e-6)
    with pytest.raises(ValueError, match=r"another specification of figure blobs, own: seeds is 2 there, 5 here"):
        experiments.load_archive(spec.but(seeds=5), folder=tmp_path)
    with pytest.raises(ValueError, match="profile must be 'own'"):
        experiments.load_archive(spec, "paper", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"save_archive\(run"):
        experiments.load_archive(spec, folder=tmp_path / "elsewhere")
    monkeypatch.setattr(sys.modules["ncutils.experiments.archive"], "git", lambda *arguments: None)  # installed
    experiments.save_archive(result, tmp_path)
    provenance = experiments.load_archive(spec, folder=tmp_path).provenance
    assert provenance["git_commit"] is None and provenance["code"] and provenance["versions"]["ncutils"]
    with pytest.raises(ValueError, match="this copy is not a git checkout"):
        experiments.save_archive(run(TINY.but(profile="cores")), tmp_path)
    assert path.exists()


def test_what_a_run_takes_is_known_before_its_data_are_fetched(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    for spec in (
        TINY.but(data="mnist", samples=1000, size=7),
        specification("2-resnet", "cores").but(seeds=1, epochs=1),
    ):
        estimate = experiments.cost(spec)
        assert estimate.jobs_on_disk == 0 and estimate.flops > 0 and estimate.seconds > 0
        with pytest.raises(FileNotFoundError, match="fetch it with"):
            run(spec)


def test_a_run_says_how_long_its_jobs_took(cache):
    result = run(TINY.but(linear=(1,), seeds=1))
    seconds = [float(jobs.read(cache, path.stem).attrs["seconds"]) for path in cache.glob("*.parquet")]
    assert len(seconds) == 2 and result.provenance["seconds"] == pytest.approx(sum(seconds), abs=0.051)


def test_own_data_may_come_from_a_function_and_name_the_cache():
    a, b = (lambda s=s: data.gaussian(20, num_classes=3, seed=s) for s in (0, 1))
    first = own(data=data.gaussian(20, num_classes=3)).jobs()[0]
    assert own(data=a).jobs()[0].key() == first.key() != own(data=b).jobs()[0].key()
    with pytest.raises(TypeError, match="data must be a Dataset"):
        own(data=lambda: 3).jobs()[0].key()


def test_every_training_option_reaches_the_job():
    for name in training.TrainingConfig.__dataclass_fields__:
        if name in ("steps", "lr", "weight_decay"):
            continue
        value = {"precision": "float64", "epochs": 7, "batch_size": 10}.get(name, 0)
        assert getattr(own(**{name: value}).jobs()[0].training, name) == value
    with pytest.raises(ValueError, match=r"options must be among .*; got 'learning_rate'"):
        own(learning_rate=1)


def test_a_result_is_a_frame_that_knows_what_it_is():
    import copy
    import pickle

    result = run()
    for other in (copy.copy(result), pickle.loads(pickle.dumps(result))):
        assert other.label == result.label == experiments.label(other)
    pd.testing.assert_series_equal(result.flow_time(), experiments.flow_time(result))
    joined = pd.concat([result.frame, pd.DataFrame(result.frame.to_dict("list"))])
    for read in (experiments.label, experiments.flow_time):
        with pytest.raises(ValueError, match=r"result must be a Result, or a frame .*pd.concat may drop it"):
            read(joined)
    assert len(result.query("layer == 1")) and "nc1" in result and result["nc1"] is not None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("backend", ["loky", "sequential"])
def test_a_signal_ends_the_workers_and_keeps_what_is_done(cache, number, backend):
    child = python(
        f"""
        signal.signal({int(number)}, signal.SIG_DFL)  # these tests may run under nohup, which a run respects
        compute = Job.compute
        Job.compute = lambda job, checkpoint=None: (compute(job, checkpoint), time.sleep(1))[0]
        try:
            run(TINY, backend={backend!r}, jobs=2)
        except experiments.Stopped as stopped:
            print(stopped, flush=True)
            sys.exit(stopped.status)
    """
    )
    deadline = time.time() + 90
    while not list(cache.glob("*.parquet")) and time.time() < deadline and child.poll() is None:
        time.sleep(0.1)
    children = Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
    child.send_signal(number)
    out, err = child.communicate(timeout=20)
    assert child.returncode == 128 + number, out + err
    assert f"stopped by {signal.Signals(number).name}; finished jobs are kept" in out
    assert 0 < len(list(cache.glob("*.parquet"))) < 8
    assert not [
        pid for pid in children if Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes()
    ]


def test_the_workers_of_a_killed_run_end_too(cache):
    child = python("""
        compute = Job.compute
        Job.compute = lambda job, checkpoint=None: (compute(job, checkpoint), time.sleep(1))[0]
        run(TINY, backend="loky", jobs=2)
    """)
    deadline = time.time() + 90
    while not list(cache.glob("*.parquet")) and time.time() < deadline and child.poll() is None:
        time.sleep(0.1)
    child.kill()
    child.communicate(timeout=20)  # returns when the last worker has closed its output


def test_under_nohup_a_hangup_is_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with RUN._stoppable(None):
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN != signal.getsignal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_that_other_code_listens_to_is_left_to_it(monkeypatch):
    """Of a handler that C code installed before Python began, Python knows only that it is there."""
    real, before = signal.getsignal, signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda number: None if number == signal.SIGTERM else real(number))
    with RUN._stoppable(None):
        assert real(signal.SIGTERM) == before
    assert real(signal.SIGTERM) == before


def test_a_new_option_of_the_training_is_added_to_one_class(monkeypatch):
    """A field of TrainingConfig can be declared, changed, swept, and is in the keys and what archives store."""

    @dataclass(frozen=True)
    class Longer(training.TrainingConfig):
        clip: float = 1.0

    monkeypatch.setattr(sys.modules["ncutils.experiments.specification"], "TrainingConfig", Longer)
    spec = experiments.declare(figure="mine", data="mnist5k", nonlinear=1, linear=2, lr=0.1, weight_decay=0.0, epochs=1)
    assert {job.training.clip for job in spec.jobs()} == {1.0}
    changed = spec.but(clip=2.0)
    assert {job.training.clip for job in changed.jobs()} == {2.0} and changed.clip == 2.0
    assert {job.training.clip for job in spec.but(sweep={"clip": (3.0, 4.0)}).jobs()} == {3.0, 4.0}
    assert changed.options()["clip"] == 2.0 and changed.identity() != spec.identity()
    assert next(iter(changed.jobs())).key() != next(iter(spec.jobs())).key()


@pytest.mark.parametrize("batch_size", [20, None])
def test_flow_time_of_data_of_ones_own(batch_size):
    spec = experiments.declare(
        figure="blobs", data=data.gaussian(20, num_classes=3), nonlinear=1, linear=2, width=8, lr=0.02,
        weight_decay=0.001, epochs=3, batch_size=batch_size, warmup_steps=2, measurements=1,
    )  # fmt: skip
    result = run(spec)
    assert result.flow_time().max() == pytest.approx(spec.flow_time)


def own_data(samples, precision="float32"):
    return experiments.declare(
        figure="own", data=samples, nonlinear=1, linear=2, width=6, lr=0.02, weight_decay=0.001, epochs=3,
        batch_size=6, warmup_steps=2, measurements=2, precision=precision,
    )  # fmt: skip


def test_data_changed_in_place_are_other_data(cache):
    """A key taken before the change used to name what was computed after it."""
    samples = data.gaussian(6, num_classes=3, dim=4)
    before = own_data(samples)
    experiments.progress(before)
    kept = before.jobs()[0].key()
    samples.x.mul_(0.1)
    assert own_data(samples).jobs()[0].key() == before.jobs()[0].key() != kept
    changed = run(own_data(samples))
    samples.x.copy_(data.gaussian(6, num_classes=3, dim=4).x)
    assert own_data(samples).jobs()[0].key() == kept
    assert not np.allclose(run(own_data(samples))["nc1"], changed["nc1"])


def test_data_that_single_precision_cannot_tell_apart_have_keys_of_their_own():
    draw = torch.Generator().manual_seed(0)
    first, second = (
        replace(
            data.gaussian(6, num_classes=3, dim=4),
            x=1 + 1e-9 * torch.randn(18, 4, generator=draw, dtype=torch.float64),
        )
        for _ in range(2)
    )
    assert first.checksum() != second.checksum()
    assert own_data(first, "float64").jobs()[0].key() != own_data(second, "float64").jobs()[0].key()
    exact = data.gaussian(6, num_classes=3, dim=4)
    assert exact.to(dtype=torch.float64).checksum() == exact.checksum()


def test_a_result_of_other_code_than_the_files_hold_is_not_archived(cache, tmp_path, monkeypatch):
    """A sweep of days and a commit meanwhile: the archive would name a commit that did not make it."""
    result = run(TINY)
    monkeypatch.setattr(ARCHIVE, "check_committed", lambda: None)
    monkeypatch.setattr(jobs, "code_on_disk", lambda: "0" * 16)
    with pytest.raises(ValueError, match=r"result must come from the code that is checked out, 0{16}; got one of"):
        experiments.save_archive(result, tmp_path)
    assert not list(tmp_path.glob("*.parquet"))


def test_flow_time_follows_a_swept_schedule():
    sweep = {"drop_at": (0.1, 1.0), "warmup_steps": (0, 40)}
    how = dict(lr=0.01, weight_decay=0.001, seeds=1, steps=50, batch_size=None, sweep=sweep, measurements=2)
    blobs = data.gaussian(20, num_classes=3)
    spec = experiments.declare(figure="own", data=blobs, nonlinear=1, linear=1, width=4, **how)
    result = experiments.run(spec, jobs=1)
    time = experiments.flow_time(result)
    for (drop_at, warmup), rows in result.frame.groupby(["drop_at", "warmup_steps"]):
        config = training.TrainingConfig(steps=50, drop_at=drop_at, warmup_steps=warmup)
        expected = sum(0.01 * training.learning_rate_factor(config, step) for step in range(50)) / (1 - 0.9)
        assert time[rows.index].max() == pytest.approx(expected)


def test_a_worker_with_other_code_than_its_parent_stops(tmp_path):
    run_ = sys.modules["ncutils.experiments.run"]
    job = specification("1").jobs()[0]
    with pytest.raises(RuntimeError, match="ncutils must be the same in a worker as where the sweep began"):
        run_._solve(job, None, job.key(), tmp_path, os.getpid(), "0" * 16)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fails_does_not_damage_what_is_stored(monkeypatch, tmp_path):
    (tmp_path / "k.parquet").write_bytes(b"whatever")
    monkeypatch.setattr(jobs, "read_table", lambda path: (_ for _ in ()).throw(OSError(24, "Too many open files")))
    with pytest.raises(OSError, match="Too many"):
        jobs.read(tmp_path, "k")
    assert [p.name for p in tmp_path.iterdir()] == ["k.parquet"]


def test_threads_are_taken_from_jobs_on_cpus_alone():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with jobs.one_thread("cuda"):
            assert torch.get_num_threads() == 2
        with jobs.one_thread("cpu"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


# --- the specification, option by option


def blobs(**options):
    """The smallest declaration there is, and these options."""
    given = dict(figure="blobs", data=data.gaussian(20, num_classes=3), nonlinear=2, linear=1, lr=0.02)
    given |= dict(weight_decay=0.001, epochs=3, batch_size=20, measurements=1)
    return experiments.declare(**given | options)


def test_what_is_left_out_has_its_default():
    spec = blobs()
    assert (spec.network, spec.seeds, spec.width, spec.sweep, spec.profile, spec.shows) == ("mlp", 1, 64, (), "own", "")
    assert spec.weight_decay_over_depth is False and spec.class_means is False and spec.runs_per_job == 1
    assert spec.loss is None and spec.optimizer is None and spec.own_code == {} and spec.runs == 1
    assert (spec.nonlinear, spec.linear, spec.lr, spec.weight_decay, spec.widths) == (
        (2,),
        (1,),
        (0.02,),
        (0.001,),
        (64,),
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.seeds = 2
    assert spec.but(shows="other words") == spec != spec.but(seeds=2)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"width": 0}, ValueError, "width must be at least 1; got 0"),
        ({"width": (8, 0)}, ValueError, r"width\[1\] must be at least 1; got 0"),
        ({"width": ()}, ValueError, "width must hold at least 1; got 0"),
        ({"nonlinear": -1}, ValueError, r"nonlinear\[0\] must be at least 0; got -1"),
        ({"nonlinear": 1.5}, TypeError, r"nonlinear\[0\] must be an integer; got 1.5"),
        ({"linear": 0}, ValueError, r"linear\[0\] must be at least 1; got 0"),
        ({"lr": -0.1}, ValueError, r"lr\[0\] must be at least 0, finite; got -0.1"),
        ({"weight_decay": (0.1, float("inf"))}, ValueError, r"weight_decay\[1\] must be at least 0, finite; got inf"),
        ({"lr": ()}, ValueError, "lr must hold at least one value; got none"),
        ({"linear": []}, ValueError, "linear must hold at least one value; got none"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1; got 0"),
        ({"runs_per_job": 0}, ValueError, "runs_per_job must be at least 1; got 0"),
        ({"runs_per_job": 1.5}, TypeError, "runs_per_job must be an integer; got 1.5"),
        ({"figure": 3}, TypeError, "figure must be a string; got 3"),
        ({"figure": "a:b"}, ValueError, "figure must be a name of at most 100 characters, .*; got 'a:b'"),
        ({"figure": ".a"}, ValueError, "no dot in front; got '.a'"),
        ({"network": 3}, ValueError, "network must be one of mlp, resnet20, or a function .*; got 3"),
        ({"sweep": "momentum"}, TypeError, "sweep must be a dict or tuple or list; got 'momentum'"),
        ({"sweep": [("momentum",)]}, ValueError, r"sweep\[0\] must be a pair; got \('momentum',\)"),
        ({"sweep": {"momentum": (0.1,), "lr": (0.1,)}}, ValueError, "sweep must name options among .*; got lr$"),
        ({"sweep": {"speed": (1,), "epochs": (1,)}}, ValueError, "drop_at, .*; got speed, epochs$"),
        ({"sweep": {"drop_at": (0.1, 0.2, 0.2)}}, ValueError, r"sweep\['drop_at'\] must not repeat .* 0.2 twice"),
    ],
)
def test_options_that_make_no_experiment(changes, error, words):
    with pytest.raises(error, match=words):
        blobs(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"width": 1},
        {"width": [1, 2]},
        {"nonlinear": (0, 1)},
        {"lr": 0},
        {"weight_decay": 0},
        {"runs_per_job": 1},
        {"runs_per_job": None},
        {"figure": "a" * 100},
        {"figure": "a.b c"},
        {"sweep": [("momentum", (0.5,))]},
        {"sweep": (("momentum", (0.5,)), ("drop_at", (0.5, 1.0)))},
        {"network": "resnet20", "class_means": True},
    ],
)
def test_options_at_their_limits(changes):
    spec = blobs(**changes)
    for name, value in changes.items():
        kept = getattr(spec, name)
        assert kept == value or kept == (value,) or list(kept) == list(value)


def test_a_specification_has_what_its_parts_have_and_nothing_else():
    import pickle

    spec = blobs()
    assert (spec.epochs, spec.batch_size, spec.samples, spec.momentum) == (3, 20, None, 0.9)
    for name in ("nonsense", "_names", "__len__", "_data_"):
        with pytest.raises(AttributeError, match=f"a Specification has no '{name}'"):
            getattr(spec, name)
    assert pickle.loads(pickle.dumps(specification("3"))) == specification("3")


def test_parts_may_be_given_whole():
    spec = specification("2-mlp", "cores")
    same = blobs(figure="2-mlp", data=spec.data, training=spec.training, batch_size=128, epochs=20)
    assert same.data == spec.data and same.training == spec.training
    other = spec.but(data=jobs.DataConfig("mnist5k", 500), training=training.TrainingConfig(steps=7))
    assert (other.data.source, other.samples, other.training.steps, other.epochs) == ("mnist5k", 500, 7, None)


@dataclass(frozen=True)
class Widths:
    make: str = "mlp"

    def __call__(self, num_nonlinear, num_linear, width):
        return torch.nn.Linear(4, 3)


@pytest.mark.parametrize(
    ("figure", "profile", "changes", "words"),
    [
        (
            "3",
            "quick",
            {},
            """Figure 3, profile quick: balancedness and negativity of the head's non-linear layers against the number \
of non-linear layers
  data      1,000 digits of 28x28, measured on all of them and 1,000 test samples
  network   MLP, ReLU layers 4, 6, 8, 12, linear layers 1, width 64
  runs      lr 0.025, 0.05 x weight decay 0.016 / depth x 2 seeds: 16 in all
  schedule  500 epochs of 10 steps, batch 100, momentum 0.9, lr / 10 after 80%; flow time 988; float64""",
        ),
        (
            "2-mlp",
            "paper",
            {"shows": "this", "sweep": {"momentum": (0.5, 0.75), "drop_at": (0.25,)}, "seeds": 1, "width": (8, 16)},
            """Figure 2-mlp, profile paper: this
  data      60,000 digits of 28x28, measured on all of them and 8,000 test samples
  network   MLP, ReLU layers 5, linear layers 1, 2, 3, 4, 5, 6, width 8, 16
  runs      lr 0.001 x weight decay 0.001 ... 0.004 (10 of them) x momentum 0.5, 0.75 x drop_at 0.25 x 1 seeds: \
240 in all
  schedule  1,000 epochs of 468 steps, batch 128, momentum 0.9, lr / 10 after 80%; flow time 3,836; float32""",
        ),
        (
            "2-resnet",
            "quick",
            {
                "profile": "own",
                "shows": "this",
                "linear": (1, 2, 3, 4, 5, 6, 7),
                "test_samples": 0,
                "measured": 100,
                "size": None,
                "drop_factor": 0.25,
                "drop_at": 0.456,
                "momentum": 0.0,
                "batch_size": None,
                "precision": None,
                "epochs": 1000,
                "warmup_steps": 0,
            },
            """2-resnet: this
  data      200 CIFAR-10 images of 16x16, measured on 100 of them
  network   ResNet20, ReLU layers 0, linear layers 1 ... 7 (7 of them), width 64
  runs      lr 0.02 x weight decay 0.015 x 2 seeds: 14 in all
  schedule  1,000 epochs of 1 steps, batch 200, momentum 0, lr / 4 after 46%; flow time 12; float32""",
        ),
        (
            "2-resnet",
            "quick",
            {"profile": "own", "shows": "", "optimizer": torch.optim.AdamW, "network": Widths(), "drop_factor": 0.0,
             "size": 4, "precision": "float32"},
            """2-resnet
  data      200 CIFAR-10 images of 4x4, measured on all of them and 200 test samples
  network   Widths, ReLU layers 0, linear layers 1, 2, 4, width 64
  runs      lr 0.02 x weight decay 0.015 x 2 seeds: 6 in all
  schedule  30 epochs of 10 steps, batch 20, AdamW, lr / inf after 70%; float32""",
        ),
    ],
)  # fmt: skip
def test_a_specification_in_words(figure, profile, changes, words):
    assert specification(figure, profile).but(**changes).describe() == words


@pytest.mark.parametrize(
    ("source", "changes", "words"),
    [
        ("mnist5k", {}, "4,000 digits of 28x28"),
        ("mnist", {}, "60,000 digits of 28x28"),
        ("mnist", {"size": 14}, "60,000 digits of 14x14"),
        ("cifar10", {}, "50,000 CIFAR-10 images of 32x32"),
        ("cifar10_small", {}, "800 CIFAR-10 images of 16x16"),
        ("cifar10_small", {"size": 4, "samples": 100}, "100 CIFAR-10 images of 4x4"),
        ("fashion_mnist", {}, "60,000 fashion_mnist of 28x28"),
        (data.gaussian(20, num_classes=3), {}, "60 samples of gaussian"),
    ],
)
def test_data_in_words(source, changes, words):
    assert blobs(data=source, **changes).label() == f"blobs: {words}, 1 seed, 3 epochs, float32, CPU"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 2, "epochs": 1500}, "blobs: 60 samples of gaussian, 2 seeds, 1,500 epochs, float32, GPU"),
        ({"seeds": 3, "precision": "float64"}, "blobs: 60 samples of gaussian, 3 seeds, 3 epochs, float64, GPU"),
        ({"epochs": None, "steps": 1234}, "blobs: 60 samples of gaussian, 1 seed, 1,234 steps, float32, GPU"),
        ({"profile": "quick"}, "quick: 60 samples of gaussian, 1 seed, 3 epochs, float32, GPU"),
        ({"profile": "cores"}, "what two cores can: 60 samples of gaussian, 1 seed, 3 epochs, float32, GPU"),
        ({"profile": "paper"}, "paper-scale with changes: 60 samples of gaussian, 1 seed, 3 epochs, float32, GPU"),
    ],
)
def test_labels(changes, words):
    assert blobs(**changes).label("GPU") == words


def test_a_changed_profile_that_is_not_the_papers_is_called_by_its_name():
    for profile, name in (("quick", "quick"), ("cores", "what two cores can")):
        for spec in (specification("1", profile), specification("1", profile).but(seeds=7)):
            assert spec.label().startswith(f"{name}: ")


def test_names_of_set_ups():
    sweep = {"momentum": (0.0, 0.5), "drop_at": (0.25,)}
    spec = blobs(lr=(0.02, 0.1), weight_decay=(0.001, 0.0), sweep=sweep)
    assert spec.setup_name(0) == "lr=0.02, wd=0.001, momentum=0.0, drop_at=0.25"
    assert spec.setup_name(7) == "lr=0.1, wd=0, momentum=0.5, drop_at=0.25"
    assert blobs(weight_decay_over_depth=True).setup_name(0) == "lr=0.02, wd=0.001/depth"
    assert len(spec.setups) == spec.runs == 8
    assert spec.swept == (("momentum", (0.0, 0.5)), ("drop_at", (0.25,)))


def test_jobs_are_blocks_of_runs_that_differ_in_seed_step_size_and_weight_decay():
    spec = blobs(nonlinear=(2, 3), linear=(1, 4), lr=(0.02, 0.1), weight_decay=(0.5, 0.25), seeds=3, width=(4, 5))
    spec = spec.but(sweep={"momentum": (0.0, 0.5)}, weight_decay_over_depth=True, runs_per_job=5)
    planned = spec.planned()
    assert [job for job, _ in planned] == spec.jobs() == spec.cells()
    assert len(planned) == 2 * 2 * 2 * 2 * 3  # networks, widths, momenta, and twelve runs in blocks of five
    first = planned[:6]
    assert [numbers for _, numbers in first] == [
        [0, 1, 2, 6, 7],
        [8, 12, 13, 14, 18],
        [19, 20],
        [3, 4, 5, 9, 10],
        [11, 15, 16, 17, 21],
        [22, 23],
    ]
    job = first[4][0]
    assert job.seeds == (2, 0, 1, 2, 0) and job.training.lr == (0.02, 0.1, 0.1, 0.1, 0.1)
    assert job.training.weight_decay == (0.25 / 3, 0.5 / 3, 0.5 / 3, 0.5 / 3, 0.25 / 3)
    assert job.training.momentum == 0.5 and job.device == "cpu" and job.class_grams is False
    shapes = [(job.network.num_nonlinear, job.network.num_linear, job.network.width) for job, _ in planned[::6]]
    assert shapes == list(itertools.product((2, 3), (1, 4), (4, 5)))
    last = planned[-1][0]
    assert last.training.weight_decay == (0.25 / 7,) * 2 and last.seeds == (1, 2)


@pytest.mark.parametrize(
    ("device", "given", "blocks"), [("cpu", None, 6), ("cuda", None, 1), ("cuda", 4, 2), ("cpu", 4, 2)]
)
def test_all_runs_of_a_network_are_one_job_on_a_gpu(device, given, blocks):
    found = blobs(lr=(0.02, 0.1), seeds=3, runs_per_job=given).jobs(device)
    assert len(found) == blocks and {job.device for job in found} == {device}
    assert {decay for job in found for decay in job.training.weight_decay} == {0.001}
    assert [lr for job in found for lr in job.training.lr] == [0.02] * 3 + [0.1] * 3


def test_flow_time_is_of_the_first_step_size_and_of_no_other_optimizer():
    spec = blobs(lr=(0.25, 0.5), epochs=None, steps=4, momentum=0.5, drop_at=0.5, drop_factor=0.1, warmup_steps=0)
    assert spec.steps == 4
    assert spec.flow_time == pytest.approx(0.25 * (1 + 1 + 0.1 + 0.1) / (1 - 0.5))
    sizes = sys.modules["ncutils.experiments.specification"].step_sizes(spec.training)
    np.testing.assert_allclose(sizes, [0, 1, 2, 2.1, 2.2])
    assert np.isnan(spec.but(optimizer=torch.optim.AdamW).flow_time)
    assert blobs().steps == 9


def test_an_archive_keeps_every_option_in_words():
    spec = blobs(loss=torch.nn.functional.cross_entropy, optimizer=torch.optim.AdamW, seeds=2, precision="float64")
    options = spec.options()
    assert (options["loss"], options["optimizer"]) == ("cross_entropy (own)", "AdamW (own)")
    assert options["momentum"] is None and options["precision"] == "float64" and options["seeds"] == 2
    assert options["data"].startswith("gaussian:") and options["lr"] == [0.02] and options["weight_decay"] == [0.001]
    plain = blobs().options()
    assert plain["momentum"] == 0.9 and plain["precision"] == "float32" and plain["network"] == "mlp"
    assert specification("3").options()["data"] == "mnist5k" and json.loads(json.dumps(plain)) == plain
    assert set(spec.own_code) == {"loss", "optimizer"}


def test_what_was_not_stored_had_what_is_now_the_default():
    identity = sys.modules["ncutils.experiments.specification"].identity
    whole = blobs()
    stored = whole.options()
    for name in ("width", "weight_decay_over_depth", "precision", "momentum", "measured", "runs_per_job", "shows"):
        del stored[name]
    assert identity(stored) == whole.identity()
    for changes in ({"width": 63}, {"momentum": 0.8}, {"precision": "float64"}, {"measured": 30}, {"lr": (0.03,)}):
        assert identity(stored | json.loads(json.dumps(changes))) != whole.identity()
    assert identity(stored | {"runs_per_job": 9, "shows": "x", "runs_per_cell": 3}) == whole.identity()
    assert "source" not in whole.identity() and whole.identity()["lr"] == [0.02]
    assert "lr" not in identity({"figure": "x"})


@pytest.mark.parametrize(
    ("given", "words"), [(dict(steps=6), "6 steps, batch 6"), (dict(epochs=2), "2 epochs of 5 steps")]
)
def test_a_length_in_steps_is_not_one_in_epochs(given, words):
    blobs = data.gaussian(10, num_classes=3, dim=5)
    spec = experiments.declare(
        figure="mine",
        data=blobs,
        nonlinear=1,
        linear=2,
        width=4,
        lr=0.1,
        weight_decay=0.1,
        batch_size=6,
        warmup_steps=1,
        measurements=1,
        **given,
    )
    assert f"  schedule  {words}" in spec.describe()
