"""Sweeps piece by piece: what a job is, how jobs are handed out, what a run costs, what a result says."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
from torch import nn

from ncutils import data, experiments, metrics, training
from ncutils.data import Dataset
from ncutils.experiments import DataConfig, Job, NetworkConfig, Result, jobs
from ncutils.training import TrainingConfig

RUN, COST, RESULT = (sys.modules[f"ncutils.experiments.{name}"] for name in ("run", "cost", "result"))
BLOBS = tuple(data.gaussian(20, num_classes=3, dim=6, split=split) for split in data.SPLITS)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, none of the user's settings."""
    monkeypatch.setenv("NCUTILS_CACHE", str(tmp_path / "cache"))
    for variable in ("NCUTILS_PROFILE", "NCUTILS_DEVICE", "NCUTILS_JOBS"):
        monkeypatch.delenv(variable, raising=False)
    return tmp_path / "cache"


def declare(**changes):
    options = dict(figure="own", data=BLOBS, nonlinear=1, linear=2, width=4, lr=0.02, weight_decay=0.001, steps=4)
    options |= dict(batch_size=20, warmup_steps=2, measurements=1)
    return experiments.declare(**options | changes)


def run(spec, **options):
    return experiments.run(spec, **({"backend": "sequential", "progress": False} | options))


def one_job(**changes) -> Job:
    return declare(**changes).jobs()[0]


# --- which samples


@pytest.mark.parametrize(
    ("name", "count"),
    [("mnist5k", 4000), ("cifar10_small", 800), ("mnist", 60_000), ("fashion_mnist", 60_000), ("cifar10", 50_000)],
)
def test_a_named_set_is_whole_where_no_number_is_given(name, count):
    whole = DataConfig(name)
    assert (whole.count, whole.samples, whole.test_samples, whole.measured, whole.size) == (count, count, 0, None, None)
    assert whole.name == name and hash(whole) == hash(DataConfig(name, samples=count))
    with pytest.raises(AttributeError, match="cannot assign to field"):
        whole.samples = 10


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"samples": 0}, ValueError, "samples must be at least 1; got 0"),
        ({"test_samples": -1}, ValueError, "test_samples must be at least 0; got -1"),
        ({"measured": 0}, ValueError, "measured must be at least 1; got 0"),
        ({"size": 0}, ValueError, "size must be at least 1; got 0"),
        ({"samples": 20, "measured": 21}, ValueError, "measured must be at most the 20 samples, or None; got 21"),
        ({"measured": 4001}, ValueError, "measured must be at most the 4000 samples, or None; got 4001"),
        ({"source": "mnist6k"}, ValueError, "data must be one of mnist5k, .*, or your own; got 'mnist6k'"),
        ({"source": 3}, TypeError, "data must be a Dataset, a pair of them or a function; got 3"),
        ({"source": nn.Linear(2, 2)}, TypeError, "data must be a Dataset, a pair of them or a function; got Linear"),
        ({"source": BLOBS, "samples": 10}, ValueError, "samples and test_samples must be left out with data of your"),
        ({"source": BLOBS[0], "test_samples": 10}, ValueError, "samples and test_samples must be left out"),
    ],
)
def test_samples_that_there_are_not(options, error, words):
    with pytest.raises(error, match=words):
        DataConfig(**({"source": "mnist5k"} | options))


def test_the_least_and_the_most_that_may_be_asked_for():
    assert DataConfig("mnist5k", samples=1, measured=1, size=1).count == 1
    assert DataConfig("mnist5k", samples=20, measured=20).measured == 20
    assert DataConfig(BLOBS, measured=6).count == 60


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        (15, "samples of mnist5k must be 4000 or a smaller multiple of 10; got 15"),
        (9, "samples of mnist5k must be 4000 or a smaller multiple of 10; got 9"),
        (4010, "samples of mnist5k must be 4000 or a smaller multiple of 10; got 4010"),
    ],
)
def test_numbers_of_samples_that_make_no_balanced_part(samples, words):
    with pytest.raises(ValueError, match=words):
        DataConfig("mnist5k", samples=samples).checksum()


@pytest.mark.parametrize(("samples", "test_samples"), [(10, 20), (110, 0), (4000, 10)])
def test_a_part_of_a_named_set_is_balanced(samples, test_samples):
    train, test = one_job(data=DataConfig("mnist5k", samples, test_samples, size=4)).load()
    assert train.y.bincount().tolist() == [samples // 10] * 10
    assert train.x.ndim == 2 and train.x.shape[1] <= 16
    if test_samples:
        assert test.y.bincount().tolist() == [test_samples // 10] * 10 and test.x.shape[1] == train.x.shape[1]
    else:
        assert test is None


def test_both_sets_of_ones_own_are_scaled_down_and_cast():
    draw = torch.Generator().manual_seed(0)
    pair = [Dataset(torch.randn(6, 2, 4, 4, generator=draw), torch.arange(6) % 3, 3, "noise") for _ in range(2)]
    for given, both in ((tuple(pair), True), (lambda: tuple(pair), True), (pair[0], False), ((pair[0], None), False)):
        seen = one_job(data=given, network="resnet20", size=2, precision="float64").load()
        assert (seen[1] is not None) == both
        for part, whole in zip(seen[: 1 + both], pair, strict=False):
            expected = whole.x.double().unflatten(2, (2, 2)).unflatten(4, (2, 2)).mean((3, 5))
            torch.testing.assert_close(part.x, expected, check_dtype=True, rtol=1e-6, atol=1e-6)
        flat, other = one_job(data=given, size=2).load()
        assert flat.x.shape == (6, 8) and (other.x.shape == (6, 8) if both else other is None)


@pytest.mark.parametrize(
    "given", [(BLOBS[0],), (*BLOBS, BLOBS[0]), (BLOBS[0], 3), (3, BLOBS[0]), (3, None), (None, None), lambda: 3]
)
def test_data_that_are_no_sets(given):
    with pytest.raises(TypeError, match="data must be a Dataset, a pair of them or a function returning either; got"):
        DataConfig(given).checksum()


def test_the_test_set_of_ones_own_is_looked_at_too():
    broken = replace(BLOBS[1], y=BLOBS[1].y.clamp(max=1))
    with pytest.raises(ValueError, match=r"y must hold every class 0..2; got \[0, 1\]"):
        DataConfig((BLOBS[0], broken)).checksum()


def test_what_names_the_samples():
    mine = DataConfig(BLOBS)
    assert mine.name == f"gaussian:{mine.checksum()}" and len(mine.checksum()) == 16
    assert replace(mine, measured=6).checksum() == mine.checksum()  # which of them are measured on is no other data
    others = [DataConfig(BLOBS[0]), DataConfig(BLOBS[::-1]), DataConfig("mnist5k", 10), DataConfig("mnist5k", 20)]
    assert len({config.checksum() for config in (mine, *others)}) == 5
    assert DataConfig(lambda: BLOBS).checksum() == mine.checksum()


@pytest.mark.parametrize(("count", "words"), [(2, "at least one a class, 3; got 2"), (4, "multiple of the 3 classes")])
def test_too_few_to_measure_on(count, words):
    with pytest.raises(ValueError, match=f"measured must be .*{words}"):
        jobs._first(BLOBS[0], count)


@pytest.mark.parametrize("each", [1, 3, 20])
def test_the_first_of_each_class_are_measured_on(each):
    first = jobs._first(BLOBS[0], 3 * each)
    for label in range(3):
        assert torch.equal(first.x[first.y == label], BLOBS[0].x[BLOBS[0].y == label][:each])
    assert len(first) == 3 * each


# --- a job


class Unhashable:
    """A network, a loss or an optimizer may be an object that compares by what it holds."""

    def __init__(self, function):
        self.function = function

    def __eq__(self, other):
        return isinstance(other, Unhashable)

    __hash__ = None

    def __call__(self, *arguments, **options):
        return self.function(*arguments, **options)


def test_a_job_of_objects_without_a_hash_has_one():
    thing = Unhashable(nn.functional.cross_entropy)
    network = NetworkConfig(thing, 1, 2)
    assert network.width == 64 and hash(network) == hash(NetworkConfig("mlp", 1, 2))
    made = Job(DataConfig(BLOBS[0]), NetworkConfig("mlp", 1, 2), TrainingConfig(steps=1), (0,))
    assert (made.class_grams, made.device, made.loss, made.optimizer) == (False, "cpu", None, None)
    assert hash(made) == hash(replace(made, loss=thing, optimizer=thing))
    for thing in (made, network):
        with pytest.raises(AttributeError, match="cannot assign to field"):
            setattr(thing, next(iter(thing.__dataclass_fields__)), 3)
    with pytest.raises(
        ValueError, match="network must be one of mlp, resnet20, or a function that makes one; got 'cnn'"
    ):
        NetworkConfig("cnn", 1, 2)


def test_which_jobs_hold_code_of_ones_own():
    made = one_job()
    assert not made.own and made.own_code() == "" and made.library == jobs.code_hash()
    own = [replace(made, loss=nn.functional.cross_entropy), replace(made, optimizer=torch.optim.AdamW)]
    own.append(replace(made, network=replace(made.network, kind=mlp)))
    for job in own:
        assert job.own and len(job.own_code()) == 16 and job.library == jobs.code_hash() + jobs.HASH_OF_OWN
        assert job.key() == job.key(job.own_code()) != job.key("another")
    assert len({job.key() for job in (made, *own)}) == 4
    for names in (jobs.CODE, jobs.CODE_OF_OWN):
        assert all((jobs.PACKAGE / name).is_file() for name in names)


def mlp(num_nonlinear, num_linear, width):
    sizes = [6, *[width] * (num_nonlinear + num_linear - 1), 3]
    return nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)))


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [(None, torch.float32), ("float32", torch.float32), ("bfloat16", torch.float32), ("float64", torch.float64)],
)
def test_the_numbers_of_a_job(precision, dtype):
    job = one_job(precision=precision)
    train, test = job.load()
    assert job.dtype == train.x.dtype == test.x.dtype == job.build(train).weights[0].dtype == dtype


def test_both_sets_come_to_the_device():
    for samples, count in ((BLOBS, 2), (BLOBS[0], 1)):
        job = replace(one_job(data=samples), device="meta")
        parts = [part for part in job.load() if part is not None]
        assert len(parts) == count and all(part.x.device.type == part.y.device.type == "meta" for part in parts)


def test_the_network_of_a_job():
    job = one_job(nonlinear=2, linear=3, width=5, seeds=3, runs_per_job=3)
    network = job.build(job.load()[0])
    assert list(network.sizes) == [6, 5, 5, 5, 5, 3] and network.num_nonlinear == 2 and network.seeds == (0, 1, 2)
    images = Dataset(torch.randn(6, 2, 4, 4), torch.arange(6) % 3, 3, "noise")
    job = one_job(data=images, network="resnet20", nonlinear=0)
    network = job.build(job.load()[0])
    assert network.in_channels == 2 and network.num_layers == 2


def test_a_frame_says_how_long_it_took_to_a_tenth_of_a_second(monkeypatch):
    train = training.train
    monkeypatch.setattr(training, "train", lambda *args, **how: replace(train(*args, **how), seconds=2.0 + 0.26))
    assert one_job().compute().attrs == {"seconds": 2.3}


@pytest.mark.parametrize(("batch_size", "steps"), [(25, 2), (None, 1), (20, 3)])
def test_epochs_of_a_frame_are_whole_batches(batch_size, steps):
    frame = one_job(batch_size=batch_size, steps=6).compute()
    assert frame["step"].max() == 6 and frame["epoch"].tolist() == (frame["step"] / steps).tolist()
    assert frame.columns[:9].tolist() == [
        "run",
        "seed",
        "lr",
        "weight_decay",
        "split",
        "step",
        "epoch",
        "layer",
        "part",
    ]
    assert set(frame["split"]) == {"train", "test"} and not frame["diverged"].any()


def test_a_training_of_the_library_is_resumed_and_one_of_ones_own_is_not(cache):
    job, path = one_job(), cache / "c"
    job.compute(path)
    assert path.exists()
    path.unlink()
    replace(job, loss=nn.functional.cross_entropy).compute(path)
    assert not path.exists()


def test_the_loss_of_ones_own_is_that_of_the_rows():
    job = one_job(loss=nn.functional.cross_entropy)
    train, test = job.load()
    network = job.build(train).train()
    rows = job.measure(network, train, 0, {"train": train, "test": test})
    assert network.training
    for split, samples in (("train", train), ("test", test)):
        expected = nn.functional.cross_entropy(network.eval()(samples.x)[0], samples.y).item()
        assert [row["loss"] for row in rows if row["split"] == split] == pytest.approx([expected] * 3)
    assert [row["split"] for row in rows] == ["train"] * 3 + ["test"] * 3


def test_class_means_of_every_run_are_kept_of_dense_layers_alone():
    images = Dataset(torch.randn(9, 2, 4, 4), torch.arange(9) % 3, 3, "noise")
    for given, kind in ((BLOBS, "mlp"), ((images, images), "resnet20")):
        job = one_job(data=given, network=kind, seeds=2, runs_per_job=2, class_means=True, nonlinear=1, linear=1)
        train, test = job.load()
        network, seen = job.build(train).eval(), {"train": train, "test": test}
        for step in (0, job.steps - 1):
            assert not any("class_gram" in row for row in job.measure(network, train, step, seen))
        rows = job.measure(network, train, job.steps, seen)
        with torch.no_grad():
            pre = network.layers(train.x).pre
        assert {row["layer"] for row in rows if "class_gram" in row} == {1, 2}
        for row in rows:
            if row["split"] == "test" or row["layer"] == 0:
                assert "class_gram" not in row
                continue
            z = pre[row["layer"] - 1][row["run"]].double()
            means = torch.stack([z[train.y == label].mean(0) for label in range(3)])
            assert row["class_gram"].shape == (9,) and row["class_gram"].dtype == np.float32
            np.testing.assert_allclose(row["class_gram"], (means @ means.T).flatten(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("linear", [1, 2])
def test_the_backbone_of_a_head_of_one_layer_is_aligned_with_it(linear):
    draw = torch.Generator().manual_seed(1)
    images = Dataset(torch.randn(12, 2, 4, 4, generator=draw), torch.arange(12) % 3, 3, "noise")
    job = one_job(data=images, network="resnet20", nonlinear=0, linear=linear, seeds=2, runs_per_job=2)
    network = job.build(images).eval()
    rows = job.measure(network, images, 5, {"train": images})
    backbones = [row for row in rows if row["layer"] == 0]
    assert [row["run"] for row in backbones] == [0, 1] and len(rows) == 2 * (1 + linear)
    for row in backbones:
        z, weight = network.backbones[row["run"]](images.x).detach(), network.weights[0][row["run"]].detach()
        assert row["nc1"] == pytest.approx(metrics.nc1(z, images.y).item(), rel=1e-4)
        assert (row["part"], row["step"], row["split"]) == ("backbone", 5, "train")
        dense = next(other for other in rows if other["run"] == row["run"] and other["layer"] == 1)
        assert [row[name] for name in ("loss", "error", "accuracy")] == [
            dense[name] for name in ("loss", "error", "accuracy")
        ]
        if linear == 1:
            assert row["nc3"] == pytest.approx(metrics.nc3(z, images.y, weight).item(), rel=1e-4)
            assert row["nc4"] == pytest.approx(metrics.nc4(z, images.y, weight).item(), rel=1e-4)
        else:
            assert not {"nc3", "nc4"} & row.keys()
        assert all(type(value) in (int, float, str) for value in row.values())


# --- where results are kept


def frame_of(*numbers):
    return pd.DataFrame({"a": list(numbers), "b": [[float(n), 1.0] for n in numbers]}, index=range(5, 5 + len(numbers)))


def test_a_frame_comes_back_without_its_index(tmp_path):
    jobs.write(frame_of(1, 2), tmp_path / "k.parquet", key="k", seconds=1.5)
    back = jobs.read(tmp_path, "k")
    assert back.columns.tolist() == ["a", "b"] and back.index.tolist() == [0, 1] and back["a"].tolist() == [1, 2]
    assert [list(b) for b in back["b"]] == [[1.0, 1.0], [2.0, 1.0]] and back.attrs == {"seconds": 1.5}
    _, about = jobs.read_table(tmp_path / "k.parquet")
    assert about == {"key": "k", "seconds": 1.5, "rows": 2, "columns": ["a", "b"]}
    assert jobs.read(None, "k") is None and jobs.read(tmp_path, "l") is None


@pytest.mark.parametrize("key", ["a", "c", "bb"])
def test_a_result_under_the_name_of_another_is_set_aside(key, tmp_path):
    jobs.write(frame_of(1, 2), tmp_path / f"{key}.parquet", key="b", seconds=1.5)
    with pytest.warns(UserWarning, match=rf"{key}.parquet is damaged \(it holds b\)"):
        assert jobs.read(tmp_path, key) is None
    assert [path.name for path in tmp_path.iterdir()] == [f"{key}.parquet.damaged"]


def test_a_table_whose_contents_were_changed_is_refused(tmp_path):
    path = tmp_path / "k.parquet"
    jobs.write(frame_of(1, 2), path, key="k", seconds=1.5)
    metadata = pyarrow.parquet.read_table(path).schema.metadata

    def rewrite(frame, about):
        table = pyarrow.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(about)
        pyarrow.parquet.write_table(table, path)

    rewrite(frame_of(1, 2), metadata)
    assert len(jobs.read_table(path)[0]) == 2
    frames = [frame_of(1, other) for other in range(3, 15)]  # the checksums of some are above, of some below
    frames += [frame_of(1), frame_of(1, 2, 3), frame_of(1, 2)[["b", "a"]], frame_of(1, 2)[["a"]]]
    for frame in frames:
        rewrite(frame, metadata)
        with pytest.raises(ValueError, match="its contents are not those that were written"):
            jobs.read_table(path)
    for about in (None, {"ncutils": '{"key": "k"}'}):
        rewrite(frame_of(1, 2), about)
        with pytest.raises(ValueError, match="it carries no checksum"):
            jobs.read_table(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    jobs.make(tmp_path / "a" / "b")
    jobs.make(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"could not make the folder .*file.inside: ") as caught:
        jobs.make(tmp_path / "file" / "inside")
    assert caught.value.errno


def test_a_result_is_kept_unless_what_it_hangs_on_changed(tmp_path):
    job = one_job()
    first = jobs.solve(job, "k", tmp_path / "new" / "folder")
    assert [path.name for path in (tmp_path / "new" / "folder").iterdir()] == ["k.parquet"]
    assert "changed" not in first.attrs
    second = jobs.solve(replace(job, seeds=(7,)), "k", tmp_path / "new" / "folder")
    pd.testing.assert_frame_equal(second, first, check_like=True)  # read, not computed
    assert jobs.solve(job, "k", None).equals(first) or len(jobs.solve(job, "k", None)) == len(first)
    own = replace(job, loss=nn.functional.cross_entropy)
    assert "changed" not in jobs.solve(own, "own", tmp_path).attrs and (tmp_path / "own.parquet").exists()

    calls: list = []

    class Growing(Job):
        def own_code(self):
            calls.append(1)
            return str(len(calls))

    growing = Growing(**jobs.values(job))
    frame = jobs.solve(growing, "grows", tmp_path)
    assert frame.attrs["changed"] is True and not (tmp_path / "grows.parquet").exists()


# --- handing them out


@pytest.fixture
def engines(monkeypatch):
    """Engines that compute here and note how many jobs at a time they were asked for."""
    asked = []

    def engine(name):
        @contextlib.contextmanager
        def here(at_a_time, device):
            asked.append((name, at_a_time, device))
            yield lambda bar: lambda tasks: (function(*given, **how) for function, given, how in tasks)

        return here

    for name in RUN.ENGINES:
        monkeypatch.setitem(RUN.ENGINES, name, engine(name))
    return asked


@pytest.mark.parametrize(
    ("backend", "at_a_time", "seeds", "wanted"),
    [
        ("loky", 2, 3, ("loky", 2, "cpu")),
        ("loky", 9, 3, ("loky", 3, "cpu")),
        ("loky", 1, 3, ("sequential", 1, "cpu")),
        ("loky", 9, 1, ("sequential", 1, "cpu")),
        ("ray", 1, 3, ("ray", 1, "cpu")),
        ("dask", 9, 1, ("dask", 1, "cpu")),
        ("sequential", 2, 3, ("sequential", 2, "cpu")),
    ],
)
def test_which_engine_is_asked_for_how_many(backend, at_a_time, seeds, wanted, engines):
    spec = declare(seeds=seeds)
    run(spec, backend=backend, jobs=at_a_time)
    assert engines == [wanted]
    run(spec, backend=backend, jobs=at_a_time)  # all on disk
    assert engines == [wanted]


class TerminatedWorkerError(Exception):
    """Of the name that loky gives it."""


@pytest.mark.parametrize("kept", [True, False])
def test_workers_that_die_are_replaced_three_times(kept, cache, monkeypatch):
    """Each time one more job is done; the last of four is not."""
    attempts, spec = [], declare(seeds=4)

    @contextlib.contextmanager
    def dying(at_a_time, device):
        attempts.append(at_a_time)

        def solve(tasks):
            function, given, how = next(iter(tasks))
            yield function(*given, **how)
            raise TerminatedWorkerError

        yield lambda bar: solve

    monkeypatch.setitem(RUN.ENGINES, "loky", dying)
    if not kept:
        monkeypatch.setenv("NCUTILS_CACHE", "off")
    words = "kept and the next call goes on from them" if kept else "lost, for caching is off"
    with pytest.raises(RuntimeError, match=f"were killed three times .*; 3 of 4 jobs are {words}. Try fewer jobs"):
        run(spec, backend="loky", jobs=9)
    assert attempts == [4, 3, 2] and len(list(cache.glob("*.parquet"))) == 3 * kept
    if kept:
        assert experiments.progress(spec) == (3, 0, 4)
        assert run(spec, backend="loky", jobs=9)["seed"].nunique() == 4 and len(attempts) == 3


def test_an_error_of_a_job_is_passed_on(monkeypatch):
    def broken(self, *_, **__):
        raise ZeroDivisionError("mine")

    monkeypatch.setattr(Job, "compute", broken)
    with pytest.raises(ZeroDivisionError, match="mine"):
        run(declare())


@pytest.mark.parametrize("changed", [True, False])
def test_what_was_solved_on_another_disk_is_stored_here(changed, cache, monkeypatch):
    def elsewhere(job, key, folder):
        frame = job.compute()
        if changed:
            frame.attrs["changed"] = True
        return frame

    monkeypatch.setattr(jobs, "solve", elsewhere)
    spec = declare(seeds=2, loss=nn.functional.cross_entropy)
    words = "loss: something that they hang on changed while a run went on"
    with pytest.warns(UserWarning, match=words) if changed else contextlib.nullcontext() as caught:
        result = run(spec)
    assert len(list(cache.glob("*.parquet"))) == (0 if changed else 2) and result["seed"].nunique() == 2
    if changed:
        assert caught[0].filename == __file__
    monkeypatch.setenv("NCUTILS_CACHE", "off")
    with pytest.warns(UserWarning, match=words) if changed else contextlib.nullcontext():
        run(spec)


@pytest.mark.parametrize("library", ["0" * 16, "g" * 16, ""])
def test_a_worker_of_another_version_stops(library, tmp_path):
    job = one_job()
    with pytest.raises(RuntimeError, match=rf"the sweep began \({library}\); got {job.library}"):
        RUN._solve(job, None, "k", tmp_path, os.getpid(), library)
    assert RUN._solve(job, None, "k", tmp_path, os.getpid(), job.library)[0] == "k"


def test_the_bar_moves_with_every_job(monkeypatch):
    made, within = [], []

    class Bar(contextlib.nullcontext):
        def __init__(self, **options):
            super().__init__(self)
            self.options, self.moves = options, []
            (made if options["unit"] == "job" else within).append(self)

        def update(self, count):
            self.moves.append(count)

    monkeypatch.setattr("tqdm.tqdm", Bar)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    spec = declare(seeds=3)
    experiments.run(spec, backend="sequential")
    experiments.run(spec.but(seeds=5), backend="sequential", progress=False)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    experiments.run(spec, backend="sequential")
    monkeypatch.setenv("TQDM_DISABLE", "0")
    experiments.run(spec, backend="sequential")
    first, *others = made
    assert first.options == dict(total=3, initial=0, desc="figure own, own", unit="job", disable=False)
    assert [bar.options["disable"] for bar in others] == [True, True, False]
    assert [(bar.options["total"], bar.options["initial"]) for bar in others] == [(5, 3), (3, 3), (3, 3)]
    assert [sum(bar.moves) for bar in made] == [3, 2, 0, 0]
    assert {move for bar in made for move in bar.moves} <= {0, 1}
    assert within and all(bar.options["disable"] for bar in within)  # a job shows none of its own


def test_what_is_done_and_begun_where_nothing_is_kept(monkeypatch):
    monkeypatch.setenv("NCUTILS_CACHE", "off")
    assert experiments.progress(declare(seeds=2)) == (0, 0, 2)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: experiments.run(declare(), profile=3), TypeError, "profile must be a string; got 3"),
        (lambda: experiments.run(declare(), backend=3), TypeError, "backend must be a string; got 3"),
        (lambda: experiments.run(declare(), progress=3), TypeError, "progress must be True or False; got 3"),
        (lambda: experiments.run(declare(), device=3), TypeError, "device must be a string; got 3"),
        (lambda: experiments.run(declare(), jobs=1.5), TypeError, "jobs must be an integer; got 1.5"),
        (lambda: experiments.run(declare(), jobs=-1), ValueError, "jobs must be at least 1; got -1"),
        (lambda: experiments.progress(declare(), profile=3), TypeError, "profile must be a string; got 3"),
        (lambda: experiments.cost(declare(), device="tpu"), ValueError, "device must be 'cpu' or 'cuda'; got 'tpu'"),
        (lambda: experiments.check_engine("loky", jobs=0), ValueError, "jobs must be at least 1; got 0"),
        (lambda: experiments.check_engine("loky", device="gpu"), ValueError, "device must be 'cpu' or 'cuda'"),
    ],
)
def test_what_a_run_refuses(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_how_many_jobs_at_a_time(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 4, 5}, raising=False)
    assert (RUN._jobs(None, "cpu"), RUN._jobs(None, "cuda"), RUN._jobs(1, "cpu"), RUN._jobs(7, "cuda")) == (3, 1, 1, 7)
    for setting in (1, 2, 12):
        monkeypatch.setenv("NCUTILS_JOBS", str(setting))
        assert RUN._jobs(None, "cpu") == RUN._jobs(None, "cuda") == setting and RUN._jobs(5, "cpu") == 5
    monkeypatch.setenv("NCUTILS_JOBS", "")
    monkeypatch.delattr(os, "sched_getaffinity")
    for cpus, wanted in ((6, 6), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda cpus=cpus: cpus)
        assert RUN._jobs(None, "cpu") == wanted


def test_the_settings_of_the_environment_stand_where_nothing_is_said(monkeypatch):
    assert RUN.resolve("1", None).profile == "quick" and RUN.checked_device(None) == "cpu"
    monkeypatch.setenv("NCUTILS_PROFILE", "cores")
    assert RUN.resolve("1", None).profile == "cores" and RUN.resolve("1", "paper").profile == "paper"
    monkeypatch.setenv("NCUTILS_DEVICE", "abacus")
    assert RUN.checked_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device must be 'cpu' or 'cuda'; got 'abacus'"):
        RUN.checked_device(None)
    spec = declare()
    assert RUN.resolve(spec, None) is RUN.resolve(spec, "own") is spec
    for profile in ("a", "quick"):
        with pytest.raises(ValueError, match=f"profile: the specification given has 'own'; got '{profile}'"):
            RUN.resolve(spec, profile)
    assert RUN.device_name("cpu") == "CPU"


def test_git_answers_or_there_is_none(monkeypatch):
    assert RUN.git("no-such-command") is None
    assert RUN.git("--version").startswith("git version") and RUN.git("--version") == RUN.git("--version").strip()
    monkeypatch.setenv("PATH", "")
    assert RUN.git("--version") is None


# --- stopping


def test_a_signal_or_an_interruption_stops_a_run_and_its_workers(monkeypatch, tmp_path):
    ended = []
    monkeypatch.setattr(RUN, "_end_workers", lambda: ended.append(1))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    try:
        for number in before:
            kept = pytest.raises(experiments.Stopped, match="finished jobs are kept, the same call resumes")
            with kept as caught, RUN._stoppable(tmp_path):
                os.kill(os.getpid(), number)
                time.sleep(5)
            assert caught.value.status == 128 + number and caught.value.__cause__ is None
            assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    lost = pytest.raises(experiments.Stopped, match="stopped by SIGINT; caching is off, nothing is kept")
    with lost as caught, RUN._stoppable(None):
        raise KeyboardInterrupt
    assert caught.value.status == 130 and type(caught.value.__cause__) is KeyboardInterrupt
    with pytest.raises(ZeroDivisionError), RUN._stoppable(None):
        raise ZeroDivisionError
    with RUN._stoppable(None):
        pass
    assert ended == [1, 1, 1]


def test_beside_the_main_thread_signals_are_left_alone():
    seen = []

    def there():
        with RUN._stoppable(None):
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=there)
    thread.start()
    thread.join(20)
    assert seen == [signal.getsignal(signal.SIGTERM)]


def test_the_processes_of_loky_are_killed_at_once(monkeypatch):
    from joblib.externals.loky import reusable_executor

    asked = []
    monkeypatch.setattr(reusable_executor, "_executor", SimpleNamespace(shutdown=lambda **how: asked.append(how)))
    RUN._end_workers()
    assert asked == [{"wait": True, "kill_workers": True}]
    monkeypatch.setattr(reusable_executor, "_executor", None)
    RUN._end_workers()
    assert len(asked) == 1


def test_a_worker_looks_once_a_second_whether_its_parent_lives(monkeypatch):
    parents, told, over = iter([-7] * 4), [], threading.Event()

    def end(status):
        told.append(status)
        over.set()

    def sleep(seconds):
        told.append((seconds, threading.current_thread().daemon))

    monkeypatch.setattr(os, "getppid", lambda: next(parents, 1))
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(RUN, "time", SimpleNamespace(sleep=sleep))
    RUN._end_with(-7)
    assert over.wait(20) and told == [(1, True)] * 3 + [1]
    RUN._end_with(-8)  # no child of that one
    assert told[4:] == []


# --- the frame of a run and where it came from


@pytest.mark.parametrize(
    ("nonlinear", "linear", "depths"),
    [((2,), (3,), {5}), ((1, 2), (3,), {1, 2}), ((2,), (1, 3), {1, 3}), ((1, 2), (1, 3), {1, 3})],
)
def test_the_depth_is_what_varies(nonlinear, linear, depths):
    frame = run(declare(nonlinear=nonlinear, linear=linear, steps=0, seeds=2)).frame
    assert set(frame["depth"]) == depths and "width" not in frame
    assert set(frame["num_nonlinear"]) == set(nonlinear) and set(frame["num_linear"]) == set(linear)
    runs = frame.groupby("depth")["run"].unique().map(sorted)
    each = 2 * len(nonlinear) * len(linear) // len(depths)
    assert all(list(found) == list(range(each)) for found in runs)


@pytest.mark.parametrize("block", [3, None])
def test_runs_are_numbered_set_up_by_set_up(block):
    spec = declare(lr=(0.01, 0.02), seeds=2, width=(4, 5), steps=0, runs_per_job=block, sweep={"momentum": (0.1, 0.5)})
    frame = run(spec).frame
    assert frame.columns[:8].tolist() == [
        "figure", "profile", "depth", "num_nonlinear", "num_linear", "setup", "width", "momentum",
    ]  # fmt: skip
    assert sorted(frame["run"].unique()) == list(range(16))
    for _, rows in frame.groupby("run"):
        assert len(rows[["setup", "seed", "lr", "width", "momentum"]].drop_duplicates()) == 1
    for setup, rows in frame.groupby("setup"):
        lr, momentum = rows["lr"].unique().item(), rows["momentum"].unique().item()
        assert setup == f"lr={lr:g}, wd=0.001, momentum={momentum}" and set(rows["seed"]) == {0, 1}


def test_where_a_result_came_from():
    spec = declare(seeds=3, lr=(0.013, 0.02))
    result = run(spec)
    about = result.provenance
    assert about["seeds"] == [0, 1, 2] and about["runs"] == 6 and about["samples"] == 60
    assert about["flow_time"] == pytest.approx(spec.flow_time, abs=0.05)
    assert about["flow_time"] == round(about["flow_time"], 1) and about["seconds"] == round(about["seconds"], 1)
    assert (about["device"], about["device_type"]) == ("CPU", "cpu") and "own_code" not in about
    assert about["versions"]["torch"] == torch.__version__ and about["code"] == jobs.code_hash()
    own = run(declare(loss=nn.functional.cross_entropy, optimizer=torch.optim.AdamW)).provenance
    assert own["flow_time"] is None and set(own["own_code"]) == {"loss", "optimizer", "library"}


def test_flow_time_and_seconds_are_given_to_a_tenth():
    spec = declare(steps=100, lr=0.013, warmup_steps=0, drop_at=1.0)  # 100 * 0.013 / 0.1 = 13 and two hundred of them
    planned = spec.planned()
    frame = planned[0][0].compute()
    frame.attrs = {"seconds": 1.26}
    assert RUN._tidy(spec, planned, [frame], "cpu").provenance["seconds"] == 1.3
    frame.attrs = {}
    result = RUN._tidy(spec.but(lr=0.01234), planned, [frame], "cpu")
    assert result.provenance["seconds"] == 0.0 and result.provenance["flow_time"] == 12.3


# --- what it costs


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (89.4, "89 s"),
        (89.99, "90 s"),
        (90, "1.5 min"),
        (600, "10.0 min"),
        (5399, "90.0 min"),
        (5400, "1.5 h"),
        (36_000, "10.0 h"),
        (129_599, "36.0 h"),
        (129_600, "1.5 days"),
        (86_400_000, "1000.0 days"),
    ],
)
def test_a_time_in_the_unit_that_fits(seconds, text):
    assert experiments.duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1, -0.5, float("inf"), float("nan")])
def test_no_time_at_all(seconds):
    with pytest.raises(ValueError, match="seconds must be at least 0, finite; got"):
        experiments.duration(seconds)


def test_a_cost_adds_up_its_jobs(monkeypatch):
    """Each network is timed once for all its jobs; those on disk cost nothing more."""
    timed = []

    def seconds(job):
        timed.append(job.network.width)
        return 100.0 + job.network.width

    monkeypatch.setattr(COST, "_job_seconds", seconds)
    monkeypatch.setattr(COST, "_step_flops", lambda job: float(job.network.width))
    spec = declare(width=(4, 5), seeds=3, steps=7)
    estimate = experiments.cost(spec)
    assert estimate.seconds == 3 * 104 + 3 * 105 and estimate.flops == 7 * 3 * (4 + 5) and sorted(timed) == [4, 5]
    assert (estimate.jobs, estimate.jobs_on_disk, estimate.runs, estimate.run_steps) == (6, 0, 6, 42)
    together = experiments.cost(spec.but(runs_per_job=3))
    assert together.flops == estimate.flops and together.seconds == 104 + 105 and together.jobs == 2
    uneven = experiments.cost(spec.but(runs_per_job=2))  # jobs of two runs and of one
    assert uneven.flops == estimate.flops and uneven.jobs == 4
    run(spec.but(width=4))
    after = experiments.cost(spec)
    assert (after.jobs_on_disk, after.seconds, after.flops) == (3, 3 * 105, estimate.flops)
    assert (after.figure, after.profile, after.device) == ("own", "own", "CPU")
    with pytest.raises(AttributeError, match="cannot assign to field"):
        after.jobs = 2


@pytest.mark.parametrize(("measured", "test_samples"), [(None, 0), (20, 0), (None, 30)])
def test_the_seconds_of_a_job_are_those_of_its_steps_and_measurements(measured, test_samples, monkeypatch):
    """On a machine where a step takes a hundredth of a second and a measurement of the noise three seconds."""
    asked, clock = [], iter([10.0, 13.0])

    def train(network, noise, config, measure, progress):
        asked.append((config.steps, set(config.per_run("lr", 1)), len(noise)))
        return SimpleNamespace(seconds=config.steps / 100)

    given = DataConfig("mnist5k", 100, test_samples, measured, size=4)
    job = one_job(data=given, epochs=40, steps=None, measurements=5)
    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(COST, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    found = COST._job_seconds(job)
    assert [steps for steps, *_ in asked] == [2, 2, 4, 8, 16, 32]
    assert {rate for _, (rate,), _ in asked} == {0.0}  # nothing must explode on noise
    assert {count for *_, count in asked} == {500}
    stops = len(training.measurement_steps(job.config))
    samples = (measured or 100) + test_samples
    assert job.steps == 200 and found == pytest.approx(200 / 100 + 3 / 500 * samples * stops)


def test_what_stands_for_data_that_were_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", str(tmp_path))
    jobs._images.cache_clear()
    jobs._flat.cache_clear()
    for source, kind, size, shape in (
        ("mnist", "mlp", None, (784,)),
        ("mnist", "mlp", 7, (49,)),
        ("cifar10", "resnet20", None, (3, 32, 32)),
        ("cifar10", "resnet20", 5, (3, 5, 5)),
    ):
        job = one_job(data=DataConfig(source, 100, size=size), network=kind, precision="float64")
        noise = COST._noise(job, 25)
        assert noise.x.shape == (25, *shape) and noise.x.dtype == torch.float64
        assert noise.num_classes == 10 and noise.y.tolist() == [*range(10), *range(10), *range(5)]
        assert noise.x.std().item() == pytest.approx(1, abs=0.1)
    jobs._images.cache_clear()
    jobs._flat.cache_clear()


def test_what_stands_for_data_of_ones_own():
    noise = COST._noise(one_job(), 7)
    assert noise.x.shape == (7, 6) and noise.x.dtype == torch.float32 and noise.num_classes == 3
    assert noise.y.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_the_operations_of_one_run(capsys):
    """Of an MLP by its formula, of a ResNet20 as PyTorch counts them, however many runs are in a job."""
    job = one_job(seeds=2, runs_per_job=2, nonlinear=1, linear=2, width=4)
    assert COST._step_flops(job) == training.step_flops((6, 4, 4, 3), 1, 20)
    assert COST._step_flops(one_job(batch_size=None)) == training.step_flops((6, 4, 4, 3), 1, 60)
    images = Dataset(torch.randn(6, 1, 4, 4), torch.arange(6) % 3, 3, "noise")
    how = dict(data=images, network="resnet20", batch_size=3)
    one, two = (COST._step_flops(one_job(**how, seeds=seeds, runs_per_job=seeds)) for seeds in (1, 2))
    assert one == two == COST._step_flops(one_job(**how | {"batch_size": None})) / 2 > 0
    assert capsys.readouterr() == ("", "")


# --- what a result says


def table_of(depths=((2, 3), (4, 3)), runs=2, splits=("train", "test"), steps=(0, 5)):
    """A frame whose every number tells where it stands."""
    rows = []
    for nonlinear, linear in depths:
        for run_ in range(runs):
            for split in splits:
                for step in steps:
                    for layer in range(1, nonlinear + linear + 1):
                        value = nonlinear * 1000 + run_ * 100 + (split == "test") * 50 + step + layer * layer / 10
                        rows.append(
                            dict(
                                figure="own", depth=nonlinear, setup="s", run=run_, seed=run_ + 3, lr=0.1 * (run_ + 1),
                                weight_decay=0.5, split=split, step=step, layer=layer, num_nonlinear=nonlinear,
                                num_linear=linear, diverged=False, accuracy=0.75, error=0.25,
                            )
                            | {name: value + k / 100 for k, name in enumerate(MEASURED)}
                        )  # fmt: skip
    return pd.DataFrame(rows)


MEASURED = ("nc1", "nc2", "nc3", "negativity", "balancedness", "balancedness_relative")


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_rows_at_the_end(split):
    frame = table_of()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        end = experiments.final(frame, split)
        pd.testing.assert_frame_equal(Result(frame, "l", {}).final(split), end)
        if split == "train":
            pd.testing.assert_frame_equal(experiments.final(frame), end)
            pd.testing.assert_frame_equal(Result(frame, "l", {}).final(), end)
    assert set(end["step"]) == {5} and set(end["split"]) == {split} and len(end) == 2 * (5 + 7)


def test_diverged_runs_are_counted_once_and_the_caller_is_pointed_at():
    frame = table_of()
    frame.loc[(frame["run"] == 1) & (frame["depth"] == 4), "diverged"] = True
    with pytest.warns(UserWarning, match="1 of 4 runs diverged and are left out") as caught:
        end = experiments.final(frame)
    assert caught[0].filename == __file__ and len(end) == 2 * 5 + 7
    bare = frame[["step", "diverged", "split"]]  # nothing to count runs by
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(experiments.final(bare)) == len(end)


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_two_ends_of_a_linear_head(split):
    frame = table_of()
    ends = experiments.head_ends(frame, split)
    pd.testing.assert_frame_equal(Result(frame, "l", {}).head_ends(split), ends)
    assert len(ends) == 4
    chosen = frame[(frame["step"] == 5) & (frame["split"] == split)].set_index(["depth", "run", "layer"])
    for row in ends.itertuples():
        at = chosen.loc[row.depth, row.run]
        first, last = row.depth, row.depth + 2  # Z_{L1} and Z_{L-1} of three linear layers
        assert (row.nc1_first, row.nc2_first) == (at.loc[first, "nc1"], at.loc[first, "nc2"])
        assert (row.nc1_last, row.nc2_last) == (at.loc[last, "nc1"], at.loc[last, "nc2"])
        assert (row.nc1_output, row.nc3) == (at.loc[last + 1, "nc1"], at.loc[last, "nc3"])
        assert (row.seed, row.lr, row.weight_decay) == (row.run + 3, pytest.approx(0.1 * (row.run + 1)), 0.5)
        assert (row.accuracy, row.error, row.setup) == (0.75, 0.25, "s")


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_nonlinear_layers_of_a_head(split):
    frame = table_of(depths=((4, 1), (6, 2)))
    head = experiments.nonlinear_head(frame, split)
    pd.testing.assert_frame_equal(Result(frame, "l", {}).nonlinear_head(split), head)
    assert len(head) == 4
    chosen = frame[(frame["step"] == 5) & (frame["split"] == split)].set_index(["depth", "run", "layer"])
    for row in head.itertuples():
        at = chosen.loc[row.depth, row.run]
        layers, pairs = list(range(3, row.depth + 1)), list(range(3, row.depth))
        assert (row.negativity_min, row.negativity_mean) == (
            at.loc[3, "negativity"], pytest.approx(at.loc[layers, "negativity"].mean()),
        )  # fmt: skip
        for short, name in (("balancedness", "balancedness_relative"), ("balancedness_op", "balancedness")):
            assert getattr(row, f"{short}_min") == at.loc[3, name]
            assert getattr(row, f"{short}_mean") == pytest.approx(at.loc[pairs, name].mean())


def test_inner_products_of_the_run_asked_for():
    frame = table_of(depths=((1, 1),), splits=("train",))
    frame["class_gram"] = [
        np.arange(9, dtype=np.float32) + i if step == 5 else None for i, step in enumerate(frame.step)
    ]
    frame["seed"] -= 3
    for seed in (0, 1):
        grams = experiments.class_grams(frame, seed)
        assert list(grams) == [1, 2]
        for layer, gram in grams.items():
            start = frame.index[(frame["seed"] == seed) & (frame["step"] == 5) & (frame["layer"] == layer)].item()
            np.testing.assert_array_equal(gram, np.arange(9.0).reshape(3, 3) + start)
            assert gram.dtype == np.float64
    result = Result(frame, "l", {})
    for given in (experiments.class_grams(frame), experiments.class_means(frame), result.class_grams()):
        np.testing.assert_array_equal(given[1], experiments.class_grams(frame, 0)[1])
    np.testing.assert_array_equal(result.class_grams(1)[2], experiments.class_grams(frame, 1)[2])
    with pytest.raises(ValueError, match=r"seed must be one of \[0, 1\]; got 2"):
        experiments.class_grams(frame, 2)
    with pytest.raises(ValueError, match="figure own keeps no class means"):
        experiments.class_grams(frame.drop(columns="class_gram").iloc[:1])


def test_a_result_serves_as_its_frame():
    frame = table_of()
    result = Result(frame, "a label", {"where": "here"})
    assert len(result) == len(frame) and list(result) == list(frame) and "nc1" in result and "nc9" not in result
    assert (
        result.columns.equals(frame.columns) and result.shape == frame.shape and len(result.query("layer == 1")) == 16
    )
    assert result._repr_html_() == frame._repr_html_() and result["nc1"].equals(frame["nc1"])
    assert frame.attrs == {"label": "a label", "provenance": {"where": "here"}}
    assert experiments.label(result) == experiments.label(frame) == "a label"
    with pytest.raises(AttributeError, match="__nothing__"):
        getattr(result, "__nothing__")  # noqa: B009
    for name in ("label", "provenance"):
        with pytest.raises(ValueError, match=f"a frame that still carries its {name}"):
            RESULT.about_result(pd.DataFrame({"a": [1]}), name)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (experiments.final, "frame must have the columns step, diverged, split; got none of diverged"),
        (experiments.flow_time, "frame must have the columns lr, step; got none of lr"),
        (experiments.head_ends, "frame must have the columns depth, layer, nc1, nc2, nc3; got none of depth"),
        (experiments.nonlinear_head, "frame must have the columns depth, layer, negativity, balancedness; got none of"),
        (experiments.class_grams, "frame must have the columns step, seed; got none of seed"),
    ],
)
def test_frames_that_lack_columns(call, words):
    with pytest.raises(ValueError, match=words):
        call(pd.DataFrame({"step": [1]}))


@pytest.mark.parametrize(
    "schedule", [{"steps": 6}, {"steps": None, "epochs": 2}, {"steps": None, "epochs": 6, "batch_size": None}]
)
def test_flow_time_adds_up_the_effective_step_sizes(schedule):
    spec = declare(
        lr=(0.1, 0.2), momentum=0.5, warmup_steps=2, drop_at=0.5, drop_factor=0.25, measurements=9, **schedule
    )
    result = run(spec)
    sizes = [0.5, 1.0, 1.0, 0.25, 0.25, 0.25]  # of six steps
    expected = [lr * sum(sizes[:step]) / 0.5 for lr, step in zip(result["lr"], result["step"], strict=True)]
    assert result.flow_time().tolist() == pytest.approx(expected) and result["step"].max() == 6


def test_flow_time_is_that_of_sgd():
    result = run(declare(optimizer=torch.optim.AdamW))
    with pytest.raises(ValueError, match="frame must come from SGD, whose flow this is the time of; got AdamW"):
        result.flow_time()


# --- engines, on packages that only note what they are asked


@pytest.fixture
def asked(monkeypatch):
    """What joblib, Ray and Dask were told."""
    told = SimpleNamespace(config=[], init=[], client=[], down=0, registered=0, running=False, address=None)

    @contextlib.contextmanager
    def noting(where, **options):
        where.append(options)
        yield

    def init(**options):
        told.init.append(options)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does, otherwise

    ray = SimpleNamespace(
        is_initialized=lambda: told.running, init=init, shutdown=lambda: setattr(told, "down", told.down + 1)
    )
    register = SimpleNamespace(register_ray=lambda: setattr(told, "registered", told.registered + 1))
    dask = SimpleNamespace(config=SimpleNamespace(get=lambda name, default: told.address))
    distributed = SimpleNamespace(Client=lambda **options: noting(told.client, **options))
    for name, module in {"ray": ray, "ray.util.joblib": register, "dask": dask, "distributed": distributed}.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("joblib.parallel_config", lambda **options: noting(told.config, **options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return told


@pytest.mark.parametrize(
    ("backend", "options"),
    [
        ("sequential", {"backend": "sequential"}),
        ("loky", {"backend": "loky", "n_jobs": 3, "inner_max_num_threads": 1}),
        ("ray", {"backend": "ray", "n_jobs": 3}),
        ("dask", {"backend": "dask"}),
    ],
)
def test_what_joblib_is_told(backend, options, asked):
    with RUN.ENGINES[backend](3, "cpu") as parallel:
        assert asked.config == [options] and callable(parallel)


@pytest.mark.parametrize("backend", experiments.BACKENDS)
def test_each_job_is_handed_out_alone(backend, asked, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "there")
    before = signal.getsignal(signal.SIGTERM)
    with RUN.ENGINES[backend](3, "cpu") as parallel:
        assert parallel(None).batch_size == 1
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("address", [None, "tcp://there:1"])
def test_dask_starts_workers_of_one_thread_unless_there_are_some(address, asked):
    asked.address = address
    with RUN.ENGINES["dask"](3, "cpu"):
        here = {"n_workers": 3, "threads_per_worker": 1, "dashboard_address": None}
        assert asked.client == [here if address is None else {}]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_ray_is_started_and_ended_and_leaves_the_signals_alone(device, asked, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(ZeroDivisionError), RUN.ENGINES["ray"](3, device):
            assert signal.getsignal(signal.SIGTERM) == before and asked.down == 0
            raise ZeroDivisionError
        assert asked.init == [{"log_to_driver": False, "num_cpus": 3, "include_dashboard": False}]
        assert (asked.down, asked.registered) == (1, 1)
        gpu = {"ray_remote_args": {"num_gpus": 1}} if device == "cuda" else {}
        assert asked.config == [{"backend": "ray", "n_jobs": 3} | gpu]
        monkeypatch.setenv("RAY_ADDRESS", "there")
        with RUN.ENGINES["ray"](3, device):
            assert asked.init[1:] == [{"log_to_driver": False}]
        asked.running = True
        with RUN.ENGINES["ray"](3, device):
            assert len(asked.init) == 2
        assert (asked.down, asked.registered) == (2, 3)  # what ran before goes on
    finally:
        signal.signal(signal.SIGTERM, before)


def test_engines_that_lack_their_package(monkeypatch):
    for name in ("ray", "distributed", "dask"):
        monkeypatch.setitem(sys.modules, name, None)
    for backend, package in (("ray", "ray"), ("dask", "distributed")):
        words = rf"backend '{backend}' needs the package: pip install {package}, or pip install \"\.\[{backend}\]\""
        with pytest.raises(ValueError, match=words):
            experiments.check_engine(backend)
    for backend in ("loky", "sequential"):
        experiments.check_engine(backend, jobs=1, device="cpu")


# --- what is done once


def test_a_function_that_gives_the_data_is_called_once():
    calls = []

    def source():
        calls.append(1)
        return BLOBS

    spec = declare(data=source, seeds=2)
    run(spec)
    assert experiments.progress(spec) == (2, 0, 2) and len(calls) == 1


def test_a_named_set_is_read_once_for_all_its_jobs(monkeypatch):
    read, load = [], data.load
    monkeypatch.setattr(data, "load", lambda *given, **how: (read.append(given), load(*given, **how))[1])
    spec = declare(data=DataConfig("mnist5k", 30, 20, size=5), seeds=2)
    for job in spec.jobs():
        job.load()
    assert read == [("mnist5k", 3, "train"), ("mnist5k", 2, "test")]


@pytest.mark.parametrize(("batch_size", "count"), [(300, 600), (250, 500), (None, 800)])
def test_the_noise_that_a_job_is_timed_on_holds_two_batches(batch_size, count, monkeypatch):
    seen = []

    def train(network, noise, config, measure, progress):
        seen.append(len(noise))
        return SimpleNamespace(seconds=1.0)

    monkeypatch.setattr(training, "train", train)
    COST._job_seconds(one_job(data=DataConfig("mnist5k", 400, size=4), batch_size=batch_size))
    assert set(seen) == {count}
