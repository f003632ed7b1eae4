"""What is stored is verified before it is used: checkpoints, cached jobs, data files; and how they are written."""

import hashlib
import os
import pickle
import random
import re
import shutil
import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

from ncutils import _files, data, experiments, training
from ncutils.data import Dataset
from ncutils.experiments import jobs
from ncutils.networks import MLP
from ncutils.training import TrainingConfig, train

BLOBS = data.gaussian(6, num_classes=3, dim=8)
CONFIG = TrainingConfig(steps=6, batch_size=6, warmup_steps=2, measurements=3)


def network(**options):
    return MLP(8, 3, num_nonlinear=1, num_linear=2, width=6, **options)


def flipped(content: bytes, generator: random.Random) -> bytes:
    where, bit = generator.randrange(len(content)), generator.randrange(8)
    return content[:where] + bytes([content[where] ^ (1 << bit)]) + content[where + 1 :]


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file"
    with _files.atomic(path) as temporary:
        temporary.write_text("one")
    with pytest.raises(OSError, match=f"could not write {path}"), _files.atomic(path) as temporary:
        temporary.write_text("two")
        raise OSError(28, "No space left on device")
    assert path.read_text() == "one" and [p.name for p in path.parent.iterdir()] == ["file"]


def test_a_folder_that_is_not_there_is_made_and_no_part_is_left(tmp_path):
    path = tmp_path / "one" / "two" / "three" / "file"
    with _files.atomic(path) as temporary:
        temporary.write_text("one")
    assert re.fullmatch(r"\.file\.[0-9a-f]{8}", temporary.name) and temporary.parent == path.parent
    with pytest.raises(KeyError), _files.atomic(path) as temporary:
        temporary.write_text("two")
        raise KeyError
    assert path.read_text() == "one" and [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError(28, "No space left on device"), "No space left on device"), (OSError("a reason"), "a reason")],
)
def test_a_file_that_cannot_be_written_is_named_with_the_reason(error, words, tmp_path):
    with pytest.raises(OSError) as refused, _files.atomic(tmp_path / "file"):
        raise error
    assert (refused.value.strerror, refused.value.errno) == (
        f"could not write {tmp_path / 'file'}: {words}",
        error.errno,
    )


# --- places


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The home of a user without settings, and the package as installed, where there is no checkout around it."""
    for variable in ("NCUTILS_DATA", "NCUTILS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "site" / "ncutils").mkdir(parents=True)
    return tmp_path


def test_places_of_a_checkout(places):
    root = Path(_files.__file__).resolve().parents[1]
    assert (root / "pyproject.toml").exists() and _files.checkout() == root
    assert _files.data_dir() == root / "data" and _files.cache_dir() == root / "_build" / "cache"
    assert _files.results_dir() == root / "results" and _files.claims_file() == root / "claims.toml"


def test_places_of_an_installed_copy(places, monkeypatch):
    package = places / "site" / "ncutils"
    monkeypatch.setattr(_files, "__file__", str(package / "_files.py"))
    assert _files.checkout() is None
    assert _files.data_dir() == places / "home" / ".cache" / "ncutils"
    assert _files.cache_dir() == places / "home" / ".cache" / "ncutils" / "cells"
    assert _files.results_dir() == package / "results" and _files.claims_file() == package / "claims.toml"
    monkeypatch.setenv("XDG_CACHE_HOME", str(places / "xdg"))
    assert _files.data_dir() == places / "xdg" / "ncutils"
    (places / "site" / "pyproject.toml").touch()
    assert _files.checkout() == places / "site" and _files.data_dir() == places / "site" / "data"


@pytest.mark.parametrize("name", ["a", "of", "offer", "zz"])
def test_the_environment_says_where_files_are(name, places, monkeypatch):
    monkeypatch.setenv("NCUTILS_DATA", f"~/{name}")
    assert _files.data_dir() == places / "home" / name
    monkeypatch.setenv("NCUTILS_CACHE", name)
    assert _files.cache_dir() == Path(name)
    monkeypatch.setenv("NCUTILS_CACHE", f"~/{name}")
    assert _files.cache_dir() == places / "home" / name
    monkeypatch.setenv("NCUTILS_CACHE", "off")
    assert _files.cache_dir() is None


# --- what is left over, what is damaged


def test_what_was_being_written_is_removed_after_a_day_and_not_before(tmp_path, monkeypatch):
    """Many of each, for the order in which a folder is read is any."""
    now = 1_700_000_000
    monkeypatch.setattr(_files.time, "time", lambda: float(now))
    names = {}
    for number in range(8):
        for age, kept in ((0, True), (86_400, True), (86_400.5, False), (86_401.5, False), (1e6, False)):
            suffix = "parquet" if number % 2 else "checkpoint"
            names[f".{number:x}{int(age * 10):015x}.{suffix}.{number:08x}"] = age, kept
        names[f".{number:x}other.parquet.{number:08x}"] = 1e6, True
        names[f".{number:016x}.parquet.{number:07x}"] = 1e6, True
        names[f"{number:016x}.parquet.{number:08x}"] = 1e6, True
    for name, (age, _) in names.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(int((now - age) * 1e9),) * 2)
    _files.sweep_away(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, (_, kept) in names.items() if kept}


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError(), True),
        (ImportError("pyarrow"), True),
        (PermissionError(13, "Permission denied"), True),
        (OSError("Parquet magic bytes not found"), False),
        (ValueError("damaged"), False),
        (KeyError("errno"), False),
    ],
)
def test_an_error_that_says_nothing_of_the_contents_is_raised_again(error, raised):
    with pytest.raises(type(error)) if raised else nullcontext():
        assert _files.check_readable(error) is None


def test_the_warning_about_a_damaged_file_points_to_who_asked_for_it(tmp_path):
    path = tmp_path / "file"
    path.write_text("half")

    def reads():
        _files.set_aside(path, "a reason")

    def asks():
        reads()

    for _ in range(2):  # the second time it is no longer there, as if another process had been faster
        with pytest.warns(UserWarning) as said:
            asks()
        words = f"{path} is damaged (a reason); kept as file.damaged, what it held is computed again"
        assert str(said[0].message) == words and said[0].lineno == asks.__code__.co_firstlineno + 1
        assert [p.name for p in tmp_path.iterdir()] == ["file.damaged"]


def test_a_digest_is_the_start_of_the_hash_of_all_parts():
    assert _files.digest("a", b"b", "\u00e9") == hashlib.sha256("ab\u00e9".encode()).hexdigest()[:16]
    assert _files.digest() == hashlib.sha256().hexdigest()[:16]


def test_docstrings_of_every_kind_are_left_out_of_the_syntax():
    code = (
        '"""Module."""\nclass A:\n    """Class."""\n    b = 1\n\ndef f():\n    """Function."""\n    return 1\n\n'
        'async def g():\n    """Later."""\n    return 2\n\ndef h():\n    return "text"\n'
    )
    same = re.sub(r'"""\w+\.', '"""Other words.', code)
    bare = re.sub(r' *""".*"""\n', "", code)
    assert same != code and '"""' not in bare
    assert _files.syntax(code) == _files.syntax(same) == _files.syntax(bare)
    for old, new in (("b = 1", "b = 2"), ("return 1", "return 3"), ("return 2", "return 3"), ('"text"', '"other"')):
        assert _files.syntax(code) != _files.syntax(code.replace(old, new))


# --- checkpoints


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "run.checkpoint"
    train(network(), BLOBS, CONFIG, progress=False, checkpoint=path)
    return path


def test_every_flipped_bit_of_a_checkpoint_is_noticed(checkpoint):
    whole, expected = checkpoint.read_bytes(), train(network(), BLOBS, CONFIG, progress=False)
    for seed in range(40):
        checkpoint.write_bytes(flipped(whole, random.Random(seed)))
        with pytest.warns(UserWarning, match=r"run\.checkpoint is damaged"):
            result = train(network(), BLOBS, CONFIG, progress=False, checkpoint=checkpoint)
        assert all(torch.equal(a, b) for a, b in zip(result.network.weights, expected.network.weights, strict=True))
        assert pd.DataFrame(result.rows).equals(expected.frame)
        assert checkpoint.with_name("run.checkpoint.damaged").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"ncutils checkpoint 00\n", pickle.dumps({"fingerprint": "1"})])
def test_what_is_no_checkpoint_is_set_aside_once(checkpoint, content):
    checkpoint.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        train(network(), BLOBS, CONFIG, progress=False, checkpoint=checkpoint)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(network(), BLOBS, CONFIG, progress=False, checkpoint=checkpoint)


class Evil:
    def __reduce__(self):
        return exec, ("import builtins; builtins.ncutils_was_opened = True",)


def test_opening_a_checkpoint_runs_no_code(checkpoint):
    import builtins
    import io

    payload = io.BytesIO()
    torch.save({"json": Evil(), "tensors": []}, payload)
    body = payload.getvalue()
    checkpoint.write_bytes(b"ncutils checkpoint " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
    with pytest.warns(UserWarning, match="damaged"):
        train(network(), BLOBS, CONFIG, progress=False, checkpoint=checkpoint)
    assert not hasattr(builtins, "ncutils_was_opened")


def test_rows_come_back_from_a_checkpoint_as_they_were(tmp_path):
    row = {"a": np.arange(3, dtype=np.float32), "b": (1, [2.5, None]), "c": np.float32(0.1), "d": torch.ones(2), "e": 1}
    tensors = []
    back = training._unpacked(training._packed(row, tensors), tensors)
    assert back["b"] == row["b"] and back["c"] == row["c"] and type(back["c"]) is np.float32 and back["e"] == 1
    np.testing.assert_array_equal(back["a"], row["a"])
    assert back["a"].dtype == np.float32 and torch.equal(back["d"], row["d"])
    with pytest.raises(TypeError, match="rows must hold"):
        training._packed({"a": object()}, [])


# --- cached jobs


def test_every_flipped_bit_of_a_cached_job_is_noticed_or_harmless(tmp_path):
    generator = np.random.default_rng(0)
    frame = pd.DataFrame({"run": range(20), "nc1": generator.random(20), "part": ["linear", "nonlinear"] * 10})
    frame["gram"] = [generator.random(4).astype(np.float32) for _ in range(20)]
    path = tmp_path / "k.parquet"
    jobs.write(frame, path, key="k", seconds=1.0)
    whole, first = path.read_bytes(), jobs.read(tmp_path, "k")
    assert len(first) == 20 and first["nc1"].equals(frame["nc1"])
    noticed = 0
    for seed in range(150):
        path.write_bytes(flipped(whole, random.Random(seed)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            back = jobs.read(tmp_path, "k")
        noticed += back is None
        if back is not None:
            pd.testing.assert_frame_equal(back, first)
            assert back.attrs == first.attrs
    assert noticed > 50


@pytest.mark.parametrize("change", [lambda f: f.iloc[:-3], lambda f: f.drop(columns="nc1")])
def test_a_cached_job_with_missing_rows_or_columns_is_refused(tmp_path, change):
    frame = pd.DataFrame({"run": range(9), "nc1": np.linspace(0, 1, 9)})
    change(frame).to_parquet(tmp_path / "k.parquet")
    with pytest.warns(UserWarning, match=r"k\.parquet is damaged"):
        assert jobs.read(tmp_path, "k") is None
    assert (tmp_path / "k.parquet.damaged").exists()
    assert jobs.read(tmp_path, "k") is None


def test_a_result_is_not_stored_under_the_key_of_code_edited_since(tmp_path, monkeypatch):
    before = jobs.code_hash()
    monkeypatch.setattr(jobs, "PACKAGE", tmp_path)  # whatever the files say now
    assert jobs.code_hash() == before


# --- archives


@pytest.mark.parametrize("suffix", ["parquet", "json"])
def test_every_flipped_bit_of_a_committed_archive_is_refused_by_name(tmp_path, suffix):
    for path in experiments.results_dir().glob("1-resnet-cores.*"):
        shutil.copy(path, tmp_path)
    experiments.load_archive("1-resnet", "cores", folder=tmp_path)
    path = tmp_path / f"1-resnet-cores.{suffix}"
    whole = path.read_bytes()
    for seed in range(100):
        path.write_bytes(flipped(whole, random.Random(seed)))
        with pytest.raises(ValueError, match=r"1-resnet-cores\.(parquet|json)"):
            experiments.load_archive("1-resnet", "cores", folder=tmp_path)


# --- data files


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_y": np.arange(100, dtype=np.uint8)}, "labels must be 0..9"),
        ({"train_y": np.zeros(100, np.uint8)}, "labels must be 0..9"),
        ({"train_y": np.arange(100) % 10 - 1}, "labels must be 0..9"),
        ({"train_y": np.zeros(99, np.uint8)}, "labels must be 100 integers"),
        ({"train_x": np.zeros((100, 4, 28, 28), np.uint8)}, r"images must be uint8 \(N, 1, H, W\)"),
        ({"train_x": np.zeros((100, 1, 28, 28), np.float32)}, "images must be uint8"),
    ],
)
def test_a_data_file_of_something_else_is_refused_by_name(tmp_path, changes, words):
    good = {"train_x": np.zeros((100, 1, 28, 28), np.uint8), "train_y": (np.arange(100) % 10).astype(np.uint8)}
    data.save("mnist", good, tmp_path)
    assert len(data.load("mnist", root=tmp_path)) == 100
    data.save("mnist", good | changes, tmp_path)
    with pytest.raises(ValueError, match=rf"mnist\.npz is damaged \({words}"):
        data.load("mnist", root=tmp_path)


# --- arguments that cannot be trained on


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: train("a network", BLOBS, CONFIG), TypeError, "network must be an nn.Module; got str"),
        (lambda: train(network(), TensorDataset(BLOBS.x, BLOBS.y), CONFIG), TypeError, r"data must be a Dataset"),
        (
            lambda: train(network(), replace(BLOBS, x=BLOBS.x / 0), CONFIG),
            ValueError,
            "data.x must be finite; got 144 NaN",
        ),
        (lambda: train(network(), replace(BLOBS, y=BLOBS.y + 1), CONFIG), ValueError, "data.y must be int64 in 0..2"),
        (lambda: train(network(), BLOBS, replace(CONFIG, precision="float64")), ValueError, "precision 'float64'"),
        (lambda: data.load("mnist5k", 1, dtype=torch.int64), ValueError, "dtype must be a floating point"),
        (
            lambda: jobs.NetworkConfig("vgg", 1, 1),
            ValueError,
            "network must be one of mlp, resnet20, or a function that makes one; got 'vgg'",
        ),
        (lambda: network(seeds=()), ValueError, "seeds must be"),
        (lambda: TrainingConfig(), ValueError, "one of steps and epochs"),
        (lambda: TrainingConfig(steps=2.5), ValueError, "steps must be an integer"),
        (lambda: Dataset(BLOBS.x, BLOBS.y, 4, "x").checked(), ValueError, "y must hold every class 0..3"),
    ],
)
def test_refusals_name_the_argument(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_small_networks_train_on_one_thread():
    seen, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        train(network(), BLOBS, CONFIG, progress=False, measure=lambda *_: seen.append(torch.get_num_threads()) or [])
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
