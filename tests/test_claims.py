"""Verdicts with a margin, the claims of a chapter, and what claims.toml asks of the archives."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
import subprocess
from pathlib import Path

import pandas as pd
import pytest

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

from ncutils import claims, experiments, ledger
from ncutils.claims import Claims, judge_archives, read_questions, verdict

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (0.5, {"below": 1.0, "spread": 0.1}, "holds"),
        (1.5, {"below": 1.0, "spread": 0.1}, "fails"),
        (1.5, {"below": 1.0, "spread": 0.1, "expects": "fails"}, "fails as predicted"),
        (0.5, {"below": 1.0, "spread": 0.1, "expects": "fails"}, "holds"),
        (0.95, {"below": 1.0, "spread": 0.1}, "undecided"),
        (1.05, {"below": 1.0, "spread": 0.1, "expects": "fails"}, "undecided"),
        (0.85, {"below": 1.0, "spread": 0.1, "margin": 2.0}, "undecided"),
        (0.95, {"above": 0.9, "spread": 0.01}, "holds"),
        (0.85, {"above": 0.9, "spread": 0.01}, "fails"),
        (0.99, {"below": 1.0}, "undecided"),  # one run, at the edge
        (0.5, {"below": 1.0}, "holds"),
        (1.91, {"below": 2.0}, "undecided"),  # a twentieth of the threshold
        (1.89, {"below": 2.0}, "holds"),
        (0.999, {"below": 1.0, "spread": 0.0}, "holds"),  # exact
        (1.0, {"below": 1.0, "spread": 0.0}, "fails"),
        (math.nan, {"below": 1.0}, "undecided"),
        (math.inf, {"above": 1.0}, "undecided"),
    ],
)
def test_verdicts(value, options, expected):
    assert verdict(value, **options) == expected


@pytest.mark.parametrize(
    "options",
    [{}, {"below": 1, "above": 0}, {"below": 1, "spread": -1.0}, {"below": math.nan}, {"below": 1, "expects": "maybe"}],
)
def test_verdicts_refuse_questions_that_cannot_be_answered(options):
    with pytest.raises(ValueError, match=r"must be"):
        verdict(0.5, **options)


def test_claims_collect_what_a_chapter_found_and_the_ledger_reads_it_back(tmp_path):
    found = Claims(where="02", scale="toy size")
    found.add("a", "paper", "A is small.", 0.2, below=1.0, spread=0.1, seeds=3)
    found.add("b", "ours", "No step breaks it.", holds=True, numbers={"steps": 100})
    found.add("c", "ours", "C is small.", 0.2, below=1.0, toy=True, scale="smaller still")
    found.add("d", "ours", "D.", holds=False, expects="fails")
    assert [claim.verdict for claim in found] == ["holds", "holds", "toy", "fails as predicted"]
    assert found[0].numbers == pytest.approx({"value": 0.2, "below": 1, "spread": 0.1, "distance": 8, "seeds": 3})
    assert list(found.to_frame()["scale"]) == ["toy size", "toy size", "smaller still", "toy size"]
    bundle = found._repr_mimebundle_()
    book = {"cells": [{"outputs": [{"data": json.loads(json.dumps(bundle))}]}]}
    (tmp_path / "02.ipynb").write_text(json.dumps(book))
    back = claims.read_claims([tmp_path / "02.ipynb"])
    assert repr(back) == repr(found) == bundle["text/plain"]
    assert all(row in bundle["text/html"] for row in ("fails as predicted", "smaller still", "<td>value 0.2,"))


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", '{"cells": [3]}', '{"cells": [{"outputs": [{"data": ', '{"cells": 1}']
)
def test_a_notebook_that_is_none_is_named(tmp_path, content):
    path = tmp_path / "02.ipynb"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"02.ipynb: not a readable executed notebook"):
        claims.read_claims([path])


@pytest.mark.parametrize("side", ["below", "above"])
def test_a_claim_stores_the_side_of_its_threshold(side):
    found = Claims()
    numbers = found.add("a", "ours", "A.", 0.5, **{side: 1.0}).numbers
    assert numbers == {"value": 0.5, side: 1.0} and found[0].verdict == ("holds" if side == "below" else "fails")
    assert f"value 0.5, {side} 1" in repr(found)


def test_an_id_is_appended_once_and_its_numbers_are_numbers():
    found = Claims()
    found.append(claims.Claim("a", "A.", "ours", "02", "", "holds"))
    with pytest.raises(ValueError, match="id must be unique; got 'a' again"):
        found.append(claims.Claim("a", "B.", "ours", "02", "", "fails"))
    with pytest.raises(TypeError, match="claim must be a Claim; got 3"):
        found.append(3)
    with pytest.raises(TypeError, match=r"numbers\['x'\] must be a number; got 'much'"):
        claims.Claim("b", "B.", "ours", "02", "", "holds", {"x": "much"})
    assert len(found) == 1


def test_claims_refuse_what_is_ambiguous():
    found = Claims(where="02", scale="s")
    found.add("a", "ours", "A.", holds=True)
    for options, message in (
        ({"id": "a", "holds": True}, "unique"),
        ({"id": "b"}, "exactly one of value, holds"),
        ({"id": "b", "value": 1.0, "holds": True, "below": 2}, "exactly one of value, holds"),
        ({"id": "b", "value": 1.0, "below": 2, "spread": 0.1, "seeds": 1}, "two seeds"),
        ({"id": "b", "value": 1.0}, "below, above"),
    ):
        with pytest.raises(ValueError, match=message):
            found.add(**{"source": "ours", "text": "B.", **options})
    with pytest.raises(ValueError, match="source must be one of"):
        found.add("b", "mine", "B.", holds=True)
    assert len(found) == 1


def test_claims_of_several_chapters_come_in_their_order_with_ids_of_their_own(tmp_path):
    paths = []
    for where, ids in (("02", "ab"), ("03", "c")):
        found = Claims(where=where)
        for id in ids:
            found.add(id, "ours", "Something.", holds=True)
        book = {"cells": [{"outputs": [{"data": found._repr_mimebundle_()}]}]}
        paths.append(tmp_path / f"{where}.ipynb")
        paths[-1].write_text(json.dumps(book))
    assert [(c.id, c.where) for c in claims.read_claims(paths)] == [("a", "02"), ("b", "02"), ("c", "03")]
    with pytest.raises(ValueError, match=r"claim ids must be unique; more than once: \['a', 'b'\]"):
        claims.read_claims([*paths, paths[0]])


def test_the_former_name_still_works():
    assert ledger.Claim is claims.Claim and ledger.Claim.judge(False, True) == "holds in part"


def test_the_examples_of_the_docstrings_run():
    assert doctest.testmod(claims).failed == 0


# --- claims.toml

QUESTION = """
[[claim]]
id = "F4P-nc3"
source = "ours"
figure = "4"
profile = "paper"
quantity = "NC3"
above = 0.9
margin = 1.0
"""


def test_every_committed_question_is_understood():
    rows = read_questions(ROOT / "claims.toml")
    assert len(rows) == len({row["id"] for row in rows}) >= 34


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"NC3"', '"NC4"', r"claim F4P-nc3: quantity must be a known one.*'NC4'"),
        ("above = 0.9", "", "claim F4P-nc3: threshold must be given"),
        ("above = 0.9", "above = 0.9\nbelow = 1.0", "claim F4P-nc3: threshold must be given"),
        ("above = 0.9", 'above = "much"', "claim F4P-nc3: above must be a number"),
        ('figure = "4"', "", "claim F4P-nc3: figure must be given"),
        ('"ours"', '"mine"', "claim F4P-nc3: source must be one of"),
        ("margin", "margins", "claim F4P-nc3: unknown field 'margins'"),
        ("[[claim]]", "[[claim", "must be a readable TOML file"),
    ],
)
def test_a_question_that_is_not_understood_is_named(tmp_path, old, new, message):
    (tmp_path / "claims.toml").write_text(QUESTION.replace(old, new))
    with pytest.raises(ValueError, match=message):
        read_questions(tmp_path / "claims.toml")


def test_an_id_stands_once(tmp_path):
    (tmp_path / "claims.toml").write_text(QUESTION * 2)
    with pytest.raises(ValueError, match="must be unique"):
        read_questions(tmp_path / "claims.toml")


def test_a_missing_archive_is_named_or_left_out(tmp_path):
    (tmp_path / "claims.toml").write_text(QUESTION)
    with pytest.raises(ValueError, match="claim F4P-nc3: there is no archive of figure '4', profile 'paper'"):
        judge_archives(tmp_path / "claims.toml", archives={})
    assert judge_archives(tmp_path / "claims.toml", archives={}, missing="skip") == []
    with pytest.raises(ValueError, match="missing must be"):
        judge_archives(tmp_path / "claims.toml", archives={}, missing="ignore")


def test_the_questions_are_found_from_any_folder(tmp_path, monkeypatch):
    here = read_questions()
    monkeypatch.chdir(tmp_path)
    assert read_questions() == here == read_questions(ROOT / "claims.toml")
    with pytest.raises(ValueError, match=r"claims.toml: claim [\w-]+: there is no archive"):
        judge_archives(archives={})
    with pytest.raises(TypeError, match="path must be a path; got True"):
        read_questions(True)


def test_questions_of_layers_on_a_known_archive():
    """The committed archive stands in for the longer one: what is asked of it, computed here by hand."""
    frame = experiments.archive("4", "cores")
    found = {c.id: c for c in judge_archives(ROOT / "claims.toml", {("4", "paper"): frame}, missing="skip")}
    assert all(id.startswith("F4P-") for id in found) and len(found) == 11
    end = frame[(frame["step"] == frame["step"].max()) & (frame["split"] == "train")]
    nc2 = end[end["layer"] == 8].set_index("seed")["nc2"]
    row = found["F4P-nc2-last"].numbers
    assert row["value"] == pytest.approx(nc2.mean()) and row["spread"] == pytest.approx(nc2.std())
    assert row["seeds"] == len(nc2) and row["distance"] == pytest.approx(abs(nc2.mean() - 2) / nc2.std())
    joint = end[end["layer"] == 5]["balancedness_relative"]
    assert found["F4P-balance-joint"].numbers["value"] == pytest.approx(joint.mean())
    assert found["F4P-balance-joint"].verdict == "fails as predicted"
    assert found["F4P-step-size"].numbers["value"] == pytest.approx(1.0)
    assert found["F4P-step-size"].verdict in ("fails", "undecided")
    assert 0.8 < found["F4P-balance-rate"].numbers["value"] < 1.25


def test_the_runs_that_meet_a_threshold_by_themselves_are_counted(tmp_path):
    """On either side of it, whatever the verdict is; of an archive that decides nothing none are."""
    other = QUESTION.replace("F4P-nc3", "F4P-nc2").replace('"NC3"', '"NC2 of Z_{L-1}"')
    frame = experiments.archive("4", "cores")
    end = frame[(frame["step"] == frame["step"].max()) & (frame["split"] == "train") & (frame["layer"] == 8)]
    nc2, nc3 = (sorted(end[column]) for column in ("nc2", "nc3"))
    below = other.replace("above = 0.9", f"below = {(nc2[1] + nc2[2]) / 2!r}")
    (tmp_path / "claims.toml").write_text(QUESTION.replace("0.9", repr(nc3[1])) + below)
    asked = tmp_path / "claims.toml", {("4", "paper"): frame}
    high, low = judge_archives(*asked)
    assert high.numbers["seeds"] == low.numbers["seeds"] == 5
    assert high.numbers["meet"] == 3 and low.numbers["meet"] == 2  # a run at the threshold does not meet it
    assert claims._numbers(low).endswith(", seeds 5, meet 2")
    assert "(5 runs, 2 meet it)" in ledger.full_table([low])
    bad = frame.assign(diverged=frame["run"] > 0)
    bad.attrs = frame.attrs
    with pytest.warns(UserWarning, match="4 of 5 runs diverged"):
        found = judge_archives(asked[0], {("4", "paper"): bad})
    assert all("meet" not in claim.numbers for claim in found)


def test_questions_of_depth_on_known_archives():
    heads, deep = experiments.archive("2-mlp", "cores"), experiments.archive("3", "cores")
    # Ten weight decays in the question, three in this archive: the slope between its thirds is that between its points.
    found = judge_archives(
        ROOT / "claims.toml", {("2-mlp-decays", "cores"): heads, ("3", "paper"): deep}, missing="skip"
    )
    rows = {c.id: c.numbers for c in found}
    ends = experiments.head_ends(heads).pivot_table(index=["setup", "seed"], columns="depth", values="nc2_last")
    assert rows["F2X-nc2-depth"]["value"] == pytest.approx((ends[6] / ends[1]).mean())
    assert rows["F2X-nc2-steps"]["value"] == pytest.approx(
        pd.concat([ends[d + 1] / ends[d] for d in range(1, 6)], axis=1).max(axis=1).mean()
    )
    table = experiments.nonlinear_head(deep).pivot_table(
        index=["setup", "seed"], columns="depth", values="negativity_mean"
    )
    assert rows["F3P-negativity-mean"]["value"] == pytest.approx((table[12] / table[4]).mean())


def test_questions_stand_as_the_commit_that_asked_them_wrote_them():
    """Where there is a history to look them up in: a shallow clone has none, and an archive of the files no git."""
    rows = {row["id"]: row for row in read_questions(ROOT / "claims.toml")}
    checked = 0
    for commit in {row["commit"] for row in rows.values()}:
        assert commit, "every row names the commit that wrote it down, in [commits]"
        shown = subprocess.run(["git", "show", f"{commit}:claims.toml"], cwd=ROOT, capture_output=True, text=True)
        if shown.returncode:
            continue
        then = {row["id"]: row for row in tomllib.loads(shown.stdout)["claim"]}
        for id, row in rows.items():
            if row["commit"] == commit:
                assert {k: v for k, v in row.items() if k != "commit"} == then[id]
                checked += 1
    if not checked:
        pytest.skip("no history here")


def test_a_printed_number_stays_on_its_side_of_a_threshold_that_is_printed_whole():
    found = Claims(where="02")
    for number, (value, below) in enumerate([(1.003, 1.0), (0.99996, 1.0), (1.2, 1.25), (math.nan, 1.0), (0.3, 0.3)]):
        found.add(f"T{number}", "ours", "A claim.", value=value, below=below, spread=0.0)
    words = [claims._numbers(c) for c in found]
    assert words == [
        "value 1.003, below 1, spread 0",
        "value 0.99996, below 1, spread 0",
        "value 1.2, below 1.25, spread 0",
        "value nan, below 1, spread 0",
        "value 0.3, below 0.3, spread 0",
    ]


@pytest.mark.parametrize("column", ["nc1", "nc2", "balancedness_relative"])
def test_an_archive_with_a_hole_decides_nothing(column):
    """Without the numbers of Z_{L-1} the layer below used to be judged in its place."""
    frame = experiments.archive("4", "cores").copy()
    frame.attrs = experiments.archive("4", "cores").attrs
    end, last = frame["step"] == frame["step"].max(), frame["layer"].max()
    frame.loc[end & (frame["layer"] == last - 1), column] = math.nan
    for found in judge_archives(ROOT / "claims.toml", {("4", "paper"): frame}, missing="skip"):
        assert found.verdict == "undecided" and math.isnan(found.numbers["value"])


def test_an_archive_with_a_diverged_run_or_an_infinite_number_decides_nothing():
    whole = experiments.archive("4", "cores")
    frame = whole.assign(diverged=whole["run"] > 0)
    frame.attrs = whole.attrs
    with pytest.warns(UserWarning, match="4 of 5 runs diverged"):
        found = judge_archives(ROOT / "claims.toml", {("4", "paper"): frame}, missing="skip")
    assert {c.verdict for c in found} == {"undecided"}
    frame = whole.assign(nc2=whole["nc2"].where(whole["layer"] != 8, math.inf))
    frame.attrs = whole.attrs
    rows = {c.id: c for c in judge_archives(ROOT / "claims.toml", {("4", "paper"): frame}, missing="skip")}
    assert rows["F4P-nc2-last"].verdict == "undecided" and rows["F4P-nc1-head"].verdict != "undecided"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version = 1\n[[claims]]\nid = 'a'\n", "unknown table 'claims'"),
        ("version = 99\n", "version must be 1; got 99"),
        ("version = 1\n", r"must hold at least one \[\[claim\]\]; got \[\]"),
        ("version = 1\nclaim = 3\n", "must hold at least one"),
    ],
)
def test_a_file_that_asks_nothing_is_refused(tmp_path, content, words):
    (tmp_path / "claims.toml").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_questions(tmp_path / "claims.toml")


def test_deciding_on_nothing_is_refused_and_nan_decides_nothing():
    decide = claims.Claim.decide
    assert decide((math.nan, 0.1), below=1) == "undecided"
    assert decide((0.5, 0.0), (math.nan, 0.0), below=1) == "undecided"
    assert decide((2.0, 0.1), below=1) == "fails" and decide((2.0, 0.1), above=1) == "holds"
    assert decide((1.0, 0.0), below=1) == "fails" and decide((0.8, 0.1), below=1) == "holds"
    for found, options, words in (
        ((), {"below": 1}, "found must hold a result"),
        (((5, 0.1),), {}, "below or above be finite"),
        (((0.99, -5),), {"below": 1}, "spread must be at least 0; got -5"),
        (((math.nan, math.nan),), {"below": 1}, "spread must be at least 0; got nan"),
    ):
        with pytest.raises(ValueError, match=words):
            decide(*found, **options)


def test_the_same_questions_have_the_same_thresholds_at_every_size():
    """Chapter 7 says so of its small steps and its whole digits."""
    asked = {}
    for row in read_questions():
        prefix, _, what = row["id"].partition("-")
        asked.setdefault(prefix, {})[what] = [row.get(key) for key in ("below", "above", "was", "margin", "source")]
    for other in ("F2S", "F5N", "F2N"):
        assert len(asked[other]) == 7 and all(asked["F2X"][what] == row for what, row in asked[other].items()), other
    assert asked["F3S"] == asked["F3X"] and len(asked["F3S"]) == 5
    shared = set(asked["F2T"]) & set(asked["F2S"])
    assert len(shared) == 6 and all(asked["F2T"][row] == asked["F2S"][row] for row in shared)


def test_every_question_was_committed_before_its_archive():
    """By the history, where there is one: the commit that asked is an ancestor of the one that added the table."""
    if subprocess.run(["git", "rev-parse", "--verify", "-q", "HEAD~1"], cwd=ROOT, capture_output=True).returncode:
        pytest.skip("no git history here")

    def git(*arguments):
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)

    archived = set(experiments.archived())
    pairs = {(row["commit"], f"{row['figure']}-{row['profile']}") for row in read_questions()
             if (row["figure"], row["profile"]) in archived}  # fmt: skip
    assert pairs
    for asked, name in sorted(pairs):
        added = git("log", "--diff-filter=A", "--format=%H", "--", f"results/{name}.parquet").stdout.split()
        if not added or git("cat-file", "-e", asked).returncode:
            pytest.skip("a shallow history")
        assert git("merge-base", "--is-ancestor", asked, added[-1]).returncode == 0, (asked, name)


def test_a_threshold_that_is_no_number_decides_nothing():
    for threshold in ({"below": math.nan}, {"below": -math.inf}, {"above": math.inf}):
        with pytest.raises(ValueError, match="below, above must be numbers"):
            claims.Claim.decide((0.5, 0.1), **threshold)


def test_an_id_cannot_come_in_twice_by_a_side_door():
    claim = claims.Claim("X-1", "NC1 falls.", "ours", "02", "", "holds")
    found = Claims([claim])
    with pytest.raises(ValueError, match="must be unique"):
        found.extend([claim])
    with pytest.raises(ValueError, match="must be unique"):
        found += [claim]
    with pytest.raises(ValueError, match="must be unique"):
        found.extend([claims.Claim("X-2", "NC2 falls.", "ours", "02", "", "holds"), claim])
    assert len(found) == 1


def test_two_runs_have_a_spread():
    found = Claims()
    assert found.add("a", "ours", "A.", 0.2, below=1.0, spread=0.1, seeds=2).numbers["distance"] == pytest.approx(8)


def test_an_archive_without_some_rows_decides_nothing():
    whole = experiments.archive("4", "cores")
    gone = (whole["step"] == whole["step"].max()) & (whole["layer"] == whole["layer"].max()) & (whole["run"] == 0)
    frame = whole.frame[~gone]
    frame.attrs = whole.attrs
    found = judge_archives(ROOT / "claims.toml", {("4", "paper"): frame}, missing="skip")
    assert found and {c.verdict for c in found} == {"undecided"}


def made_up(num_nonlinear, num_linear, steps=(0, 100), **given):
    """The rows of one run; ``given`` are functions of (layer, step)."""
    rows = []
    for layer in range(1, num_nonlinear + num_linear + 1):
        for step in steps:
            row = {"layer": layer, "step": step, "split": "train", "diverged": False, "lr": 0.1, "weight_decay": 0.1}
            row |= {"setup": "one", "seed": 0, "run": 0, "depth": num_linear, "accuracy": 1.0, "error": 0.0}
            row |= {"num_nonlinear": num_nonlinear, "num_linear": num_linear, "nc1": 1.0, "nc2": 1.0, "nc3": 1.0}
            row["part"] = "nonlinear" if layer <= num_nonlinear else "linear"
            rows.append(row | {name: function(layer, step) for name, function in given.items()})
    return pd.DataFrame(rows)


def asked(start, frame):
    """The one quantity whose name begins so, of a frame with one run (or the mean of what it gives)."""
    (quantity,) = [function for name, function in claims.QUANTITIES.items() if name.startswith(start)]
    return quantity(frame).mean()


def test_the_slope_over_the_range_is_the_least_of_the_depths():
    frames = []
    for depth, power in ((1, 0.5), (2, 1.5), (3, 1.0)):
        for decay in (0.001, 0.002, 0.004):
            scale = 7 if decay == 0.002 else 1  # what lies between the ends does not count
            frame = made_up(2, depth, nc1=lambda layer, step, nc1=scale * decay**power: nc1)
            frames.append(frame.assign(weight_decay=decay, setup=f"{decay}"))
    frame = pd.concat(frames, ignore_index=True)
    assert asked("slope of log NC1", frame) == pytest.approx(0.5)


def test_quantities_of_widths_read_the_widths_they_name():
    frames = [
        made_up(2, 2, nc1=lambda layer, step, w=w: w * layer, nc2=lambda layer, step, w=w: w + layer).assign(width=w)
        for w in (32, 64, 128, 1024)
    ]
    frame = pd.concat(frames, ignore_index=True)
    assert asked("NC1 of Z_{L-1}, width 1,024 over 64", frame) == 16
    assert asked("NC2 of Z_{L-1}, width 1,024 over 64", frame) == 1027 / 67
    assert asked("NC2 of Z_{L-1}, at width 1,024", frame) == 1027
    assert asked("largest NC1 of a linear layer, at width 1,024", frame) == 4 * 1024


def test_quantities_of_layers_read_the_layers_they_name():
    nc1 = {1: 64, 2: 32, 3: 16, 4: 8, 5: 6, 6: 5.9, 7: 1}  # four ReLU layers, three linear ones
    gain = {1: 9, 2: 5, 3: 2, 4: 7, 5: 8, 6: 9, 7: 9}
    frame = made_up(4, 3, nc1=lambda layer, step: nc1[layer], nc2=lambda layer, step: gain[layer] if step else 1.0)
    assert asked("largest ratio NC1(Z_l) / NC1(Z_{l-1}) from the second", frame) == pytest.approx(6 / 8)
    assert asked("NC1 of the output over NC1 of what enters the linear head", frame) == pytest.approx(1 / 8)
    assert claims.QUANTITIES["largest NC1 of a linear layer"](frame).tolist() == [6]
    assert asked("largest NC2 at the end over NC2 at the start, of ReLU layers 3 to L1-1", frame) == 2
    assert claims.QUANTITIES["NC2 of Z_{L-1}"](frame).tolist() == [9]


def test_a_rate_of_decay_is_as_bad_above_the_law_as_below():
    for rate, expected in ((1.0, 1.0), (0.8, 1.25), (1.25, 1.25)):
        law = lambda layer, step, rate=rate: math.exp(-2 * rate * 0.1 * 0.1 * step)  # noqa: E731
        frame = made_up(1, 3, steps=(0, 20, 40, 60, 80, 100), balancedness=law)
        how = {"steps": 100, "momentum": 0.0, "warmup_steps": 0, "drop_at": 1.0, "drop_factor": 1.0}
        frame.attrs = {"provenance": {"specification": how, "samples": 10}}
        assert asked("largest of r and 1/r", frame) == pytest.approx(expected, rel=1e-6)


def test_quantities_of_depths_and_weight_decays():
    one, six = (made_up(2, depth, nc3=lambda layer, step, v=v: v) for depth, v in ((1, 0.9), (6, 0.99)))
    assert asked("1 - NC3, six linear layers over one", pd.concat([one, six])) == pytest.approx(0.1)
    parts = []
    for number, (decay, value) in enumerate([(1.0, 1.0), (2.0, 2.0), (4.0, 16.0)]):  # slopes 1 and 3
        part = made_up(2, 2, nc1=lambda layer, step, value=value: value)
        parts.append(part.assign(weight_decay=decay, setup=str(number), run=number))
    frame = pd.concat(parts)
    assert asked("least local slope of log NC1 of Z_{L-1}", frame) == pytest.approx(1.0)
    assert asked("slope of log NC1 of Z_{L-1} against log weight decay from", frame) == pytest.approx(2.0)


def test_one_run_has_no_spread(tmp_path):
    frame = experiments.archive("4", "cores")
    one = frame.frame[frame["run"] == 0]
    one.attrs = frame.attrs
    (tmp_path / "claims.toml").write_text(QUESTION)
    (claim,) = judge_archives(tmp_path / "claims.toml", {("4", "paper"): one})
    assert claim.numbers["seeds"] == 1 and not {"spread", "distance"} & claim.numbers.keys()


# --- verdicts and claims at their limits


@pytest.mark.parametrize(
    ("value", "options", "expected"),
    [
        (0.75, {"below": 1.0, "spread": 0.25}, "holds"),  # as far as is needed
        (1.25, {"below": 1.0, "spread": 0.25}, "fails"),
        (1.5, {"below": 1.0, "spread": 0.25, "margin": 2.0}, "fails"),
        (0.85, {"below": 1.0, "spread": 0.1}, "holds"),  # a margin of one spread, not of two
        (1.0, {"above": 1.0, "spread": 0.0}, "fails"),
        (0.9, {"below": 1.0, "spread": 5.0, "margin": 0.0}, "holds"),
        (-0.5, {"below": -1.0}, "fails"),
        (-1.01, {"below": -1.0}, "undecided"),
        (-1.2, {"below": -1.0}, "holds"),
        (0.0, {"above": 0.0}, "fails"),
        (0.1, {"above": 0}, "holds"),
    ],
)
def test_verdicts_at_their_limits(value, options, expected):
    assert verdict(value, **options) == expected


@pytest.mark.parametrize("bad", [math.inf, math.nan, -math.inf, -1e-9])
@pytest.mark.parametrize("name", ["spread", "margin"])
def test_a_spread_and_a_margin_are_finite_and_not_negative(name, bad):
    with pytest.raises(ValueError, match=f"{name} must be finite and not negative; got {bad}"):
        verdict(0.5, below=1.0, **{name: bad})


def test_a_threshold_is_one_finite_number():
    for bad in (math.inf, -math.inf, math.nan):
        with pytest.raises(ValueError, match=f"threshold must be finite; got {bad}"):
            verdict(0.5, above=bad)
    with pytest.raises(ValueError, match=r"exactly one of below, above must be given; got below=1.0, above=0.5"):
        verdict(0.5, 1.0, 0.5)
    with pytest.raises(ValueError, match="exactly one of below, above must be given; got below=None, above=None"):
        verdict(0.5)
    with pytest.raises(TypeError, match="value must be a number; got 'much'"):
        verdict("much", below=1.0)


def test_a_claim_stays_as_it_was_made():
    claim = claims.Claim("a", "A.", "ours", "02", "", "holds")
    with pytest.raises(dataclasses.FrozenInstanceError):
        claim.verdict = "fails"
    assert claim.numbers == {} and claim == claims.Claim("a", "A.", "ours", "02", "", "holds")
    assert claim.judge(True) == "holds" and claim.judge(False) == "fails" and claim.judge(True, True) == "holds"
    assert claim.decide((0.5, 0.1), below=1.0) == "holds"
    with pytest.raises(TypeError, match="holds must be True or False; got 'yes'"):
        claims.Claim.judge("yes")
    with pytest.raises(ValueError, match=r"verdict must be one of \('holds', .*; got 'perhaps'"):
        claims.Claim("a", "A.", "ours", "02", "", "perhaps")
    with pytest.raises(TypeError, match="numbers must be a dict or Mapping; got 3"):
        claims.Claim("a", "A.", "ours", "02", "", "holds", 3)
    with pytest.raises(TypeError, match="id must be a string; got 3"):
        claims.Claim(3, "A.", "ours", "02", "", "holds")


@pytest.mark.parametrize(
    ("found", "options", "expected"),
    [
        (((0.75, 0.25),), {"below": 1.0}, "holds"),  # as far as its standard deviation
        (((1.25, 0.25),), {"below": 1.0}, "fails"),
        (((0.75, 0.25),), {"above": 0.5}, "holds"),
        (((0.25, 0.25),), {"above": 0.5}, "fails"),
        (((0.76, 0.25),), {"below": 1.0}, "undecided"),
        (((1.24, 0.25),), {"below": 1.0}, "undecided"),
        (((0.5, 0.1),), {"below": 1.0, "above": 0.0}, "holds"),  # between the two
        (((0.5, 0.1),), {"below": 1.0, "above": 0.8}, "fails"),
        (((0.5, 0.1),), {"below": 0.2, "above": 0.0}, "fails"),
        (((2.0, 0.1), (1.05, 0.1)), {"below": 1.0}, "undecided"),
        (((2.0, 0.1), (3.0, 0.1)), {"below": 1.0}, "fails"),
        (((2.0, 0.1), (0.5, 0.1)), {"below": 1.0}, "holds in part"),
        (((0.95, 0.1), (0.5, 0.1)), {"below": 1.0}, "holds in part"),
        (((0.5, 0.1), (0.4, 0.1)), {"below": 1.0}, "holds"),
        (((0.0, 0.0),), {"above": 0.0}, "fails"),
        (((math.inf, 0.0),), {"above": 0.0}, "undecided"),
        (((0.5, math.inf),), {"below": 1.0}, "undecided"),
    ],
)
def test_several_results_are_decided_together(found, options, expected):
    assert claims.Claim.decide(*found, **options) == expected


def test_decisions_refuse_what_no_result_can_meet():
    decide = claims.Claim.decide
    for options in ({"above": math.nan}, {"below": math.nan, "above": 0.0}, {"below": 1.0, "above": math.inf}):
        with pytest.raises(ValueError, match="below, above must be numbers that a result can meet"):
            decide((0.5, 0.1), **options)
    with pytest.raises(ValueError, match=r"spread must be at least 0; got -5$"):
        decide((0.5, 0.0), (0.5, -5), (0.5, -3), below=1.0)
    with pytest.raises(ValueError, match="found must hold a result"):
        decide(above=0.0)


def test_claims_are_added_in_place_and_are_claims():
    one, two, three = (claims.Claim(id, "A.", "ours", "02", "", "holds") for id in "abc")
    found = same = Claims([one])
    found += [two]
    found += iter([three])
    assert found is same and isinstance(found, Claims) and [claim.id for claim in found] == ["a", "b", "c"]
    assert (found.where, found.scale, Claims(where="03", scale="s").where) == ("", "", "03")
    with pytest.raises(ValueError, match=r"claim ids must be unique; more than once: \['a'\]"):
        Claims([one, two, one, one])
    with pytest.raises(TypeError, match=r"claims\[1\] must be a Claim; got 3"):
        Claims([one, 3])


def test_what_is_added_is_judged_by_its_numbers_or_by_what_it_is_told():
    found = Claims(where="02", scale="s")
    assert found.add("a", "ours", "A.", holds=False).verdict == "fails"
    assert found.add("b", "ours", "B.", holds=True, expects="fails").verdict == "holds"
    given = found.add("c", "ours", "C.", 0.85, below=1.0, spread=0.1)
    assert given.verdict == "holds" and given.numbers == pytest.approx(
        {"value": 0.85, "below": 1.0, "spread": 0.1, "distance": 1.5}
    )
    exact = found.add("d", "ours", "D.", 0.99, below=1.0, spread=0.0, seeds=1, numbers={"steps": 3})
    assert exact.verdict == "holds"
    assert exact.numbers == {"value": 0.99, "below": 1.0, "spread": 0.0, "seeds": 1, "steps": 3}
    assert found.add("e", "ours", "E.", 0.85, below=1.0, spread=0.1, margin=2.0).verdict == "undecided"
    assert found.add("f", "ours", "F.", 2.0, above=1.0, spread=0.5, expects="fails").numbers["distance"] == 2
    assert found.add("g", "ours", "G.", 2.0, below=1.0, expects="fails", scale="t").verdict == "fails as predicted"
    assert [claim.where for claim in found] == ["02"] * 7 and [claim.scale for claim in found] == ["s"] * 6 + ["t"]
    with pytest.raises(TypeError, match="numbers must be a dict or Mapping; got 3"):
        found.add("h", "ours", "H.", holds=True, numbers=3)
    with pytest.raises(ValueError, match="spread must come from at least two seeds for h; got seeds=1"):
        found.add("h", "ours", "H.", 0.5, below=1.0, spread=0.1, seeds=1)
    with pytest.raises(ValueError, match="exactly one of value, holds must be given for h; got value=None, holds=None"):
        found.add("h", "ours", "H.")
    with pytest.raises(ValueError, match="id must be unique; got 'a' again"):
        found.add("a", "ours", "H.", holds=True)


def test_words_are_escaped_and_every_column_has_its_head():
    found = Claims(where="02", scale="s & t")
    found.add("a", "ours", "A < B.", 0.1234, below=1.0, numbers={"n": 5678.0})
    page = found._repr_mimebundle_()["text/html"]
    assert "<td>A &lt; B.</td><td>ours</td><td>02</td><td>s &amp; t</td><td>holds</td>" in page
    assert page.startswith("<table class='claims'><thead><tr><th>id</th><th>claim</th><th>source</th><th>where</th>")
    assert found.to_frame().to_dict("records") == [
        {"id": "a", "claim": "A < B.", "source": "ours", "where": "02", "scale": "s & t", "verdict": "holds",
         "numbers": "value 0.12, below 1, n 5700"}
    ]  # fmt: skip


def test_thresholds_keep_six_digits_and_other_numbers_two():
    claim = claims.Claim("a", "A.", "ours", "02", "", "holds", {"value": 0.5678, "above": 0.123456789, "n": 0.0347})
    assert repr(Claims([claim])).endswith("(value 0.57, above 0.123457, n 0.035; )")
    bare = claims.Claim("b", "B.", "ours", "02", "", "holds", {"below": 1.0})
    assert repr(Claims([bare])).endswith("(below 1; )")
    close = claims.Claim("c", "C.", "ours", "02", "", "fails", {"value": 1 + 1e-9, "below": 1.0})
    shown = Claims([close])._repr_mimebundle_()[claims.MEDIA_TYPE][0]["numbers"]
    assert shown == {"value": 1.000000001, "below": 1.0}


def test_a_notebook_that_is_missing_or_was_not_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.ipynb: not a readable executed notebook"):
        claims.read_claims([tmp_path / "none.ipynb"])
    (tmp_path / "02.ipynb").write_text(json.dumps({"cells": [{"cell_type": "markdown"}, {"outputs": [{}]}]}))
    with pytest.raises(ValueError, match=r"02.ipynb: holds no claims; execute it first"):
        claims.read_claims([tmp_path / "02.ipynb"])
    row = {"id": "a", "claim": "A.", "source": "mine", "where": "02", "scale": "", "verdict": "holds", "numbers": {}}
    book = {"cells": [{"outputs": [{"data": {claims.MEDIA_TYPE: [row]}}]}]}
    (tmp_path / "03.ipynb").write_text(json.dumps(book))
    with pytest.raises(ValueError, match=r"03.ipynb: not a readable executed notebook \(source must be one of"):
        claims.read_claims([tmp_path / "03.ipynb"])
    with pytest.raises(TypeError, match=r"notebooks\[0\] must be a path; got 3"):
        claims.read_claims([3])


# --- questions and what is asked of frames whose answers are known


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version = 0\n" + QUESTION, "version must be 1; got 0"),
        (QUESTION + '[[claim]]\nsource = "ours"\n', "claim number 2: id must be given"),
        ('[[claim]]\nid = "a"\n', "claim a: source must be given"),
        (QUESTION.replace("margin", "zzz = 1\nmargins"), "unknown field 'margins'; expected one of"),
        ("[zzz]\n[claims]\n" + QUESTION, "unknown table 'claims'; expected claim, commits"),
        (QUESTION.replace("above = 0.9", "above = true"), "above must be a number; got True"),
        (QUESTION.replace("margin = 1.0", "margin = true"), "margin must be a number; got True"),
        (QUESTION.replace("margin = 1.0", "was = '1'"), "was must be a number; got '1'"),
        (QUESTION.replace("above = 0.9", "below = '1'"), "below must be a number; got '1'"),
        ("[claim]\nid = 'a'\n", "must hold at least one"),
    ],
)
def test_a_file_says_what_is_wrong_with_it(tmp_path, content, words):
    (tmp_path / "claims.toml").write_text(content)
    with pytest.raises(ValueError, match=words):
        read_questions(tmp_path / "claims.toml")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none.toml: must be a readable TOML file"):
        read_questions(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match=r"bytes.toml: must be a readable TOML file"):
        read_questions(tmp_path / "bytes.toml")


def test_a_question_carries_the_commit_of_its_figure(tmp_path):
    second = QUESTION.replace("F4P-nc3", "F1-nc3-all").replace("0.9", "1")
    (tmp_path / "claims.toml").write_text("version = 1\n" + QUESTION + second + '[commits]\nF1 = "abc123"\n')
    first, other = read_questions(tmp_path / "claims.toml")
    assert (first["commit"], other["commit"]) == ("", "abc123")
    assert first == {"id": "F4P-nc3", "source": "ours", "figure": "4", "profile": "paper", "quantity": "NC3",
                     "above": 0.9, "margin": 1.0, "commit": ""}  # fmt: skip


def made_up_runs(values, num_nonlinear=2, num_linear=3, **options):
    """Runs whose NC3 is given, one number a run; the imbalance ends before the last layer."""
    last = num_nonlinear + num_linear
    frames = [
        made_up(
            num_nonlinear,
            num_linear,
            nc3=lambda layer, step, v=value: v if layer == last - 1 else math.nan,
            balancedness_relative=lambda layer, step: 0.1 if layer < last else math.nan,
            **options,
        ).assign(run=run, seed=run)
        for run, value in enumerate(values)
    ]
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs = {"label": "made up", "provenance": {}}
    return frame


def answers(tmp_path, content, frame, **options):
    (tmp_path / "claims.toml").write_text(content)
    return judge_archives(tmp_path / "claims.toml", {("4", "paper"): frame}, **options)


def test_an_answer_is_the_mean_of_the_runs_with_their_spread_and_its_own_words(tmp_path):
    bare = QUESTION.replace("margin = 1.0\n", "").replace("0.9", "0.9\nwas = 0.8")
    (claim,) = answers(tmp_path, bare + '[commits]\nF4P = "abc123"\n', made_up_runs([0.93, 0.97]))
    spread = 0.04 / math.sqrt(2)
    assert claim.numbers == pytest.approx(
        {"value": 0.95, "above": 0.9, "spread": spread, "distance": 0.05 / spread, "seeds": 2, "meet": 2}
    )
    assert claim.verdict == "holds"  # 1.8 spreads, where a margin of one is asked
    assert claim.claim == "NC3 is above 0.9 (an earlier archive was asked for 0.8)."
    assert (claim.scale, claim.where, claim.source, claim.id) == ("made up; asked in abc123", "09", "ours", "F4P-nc3")
    (claim,) = answers(tmp_path, QUESTION.replace("margin = 1.0", "margin = 2.0"), made_up_runs([0.93, 0.97]))
    assert claim.verdict == "undecided" and claim.scale == "made up"
    low = QUESTION.replace("NC3", "largest NC1 of a linear layer").replace("above = 0.9", "below = 0.25")
    (claim,) = answers(tmp_path, low.replace("margin", 'expects = "fails"\nmargin'), made_up_runs([0.9]), where="12")
    assert claim.claim == "Largest NC1 of a linear layer is below 0.25." and claim.where == "12"
    assert claim.verdict == "fails as predicted"
    assert claim.numbers == {"value": 1.0, "below": 0.25, "seeds": 1, "meet": 0}


def test_a_run_at_its_threshold_does_not_meet_it_from_either_side(tmp_path):
    for side, meet in (("above", 1), ("below", 2)):
        question = QUESTION.replace("above = 0.9", f"{side} = 0.75")
        (claim,) = answers(tmp_path, question, made_up_runs([0.5, 0.25, 0.75, 0.875]))
        assert claim.numbers["meet"] == meet and claim.numbers["value"] == 0.59375


def test_questions_without_archive_are_passed_over_and_the_next_one_is_answered(tmp_path):
    other = QUESTION.replace('"paper"', '"cores"').replace("F4P", "F4C")
    (claim,) = answers(tmp_path, other + QUESTION, made_up_runs([0.95]), missing="skip")
    assert claim.id == "F4P-nc3"
    with pytest.raises(
        ValueError, match=r"claim F4C-nc3: there is no archive of figure '4', profile 'cores', in results"
    ):
        answers(tmp_path, other + QUESTION, made_up_runs([0.95]))
    (tmp_path / "claims.toml").write_text(other)
    (claim,) = judge_archives(tmp_path / "claims.toml")  # without frames, those that the library has
    (given,) = judge_archives(tmp_path / "claims.toml", {("4", "cores"): experiments.archive("4", "cores")})
    assert claim == given and claim.numbers["seeds"] == 5
    (tmp_path / "claims.toml").write_text(other.replace("cores", "none").replace("F4C", "F4N") + other)
    (claim,) = judge_archives(tmp_path / "claims.toml", missing="skip")
    assert claim == given


def test_an_archive_that_does_not_hold_what_is_asked_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"claim F4P-nc3: the archive must hold 'nc3' for 'NC3'"):
        answers(tmp_path, QUESTION, made_up_runs([0.95]).drop(columns="nc3"))
    with pytest.raises(ValueError, match=r"claim F4P-nc3: the archive must hold 'NC3'; got no finite value"):
        answers(tmp_path, QUESTION, made_up_runs([math.nan, math.nan]))


@pytest.mark.parametrize(
    ("column", "layer", "whole"),
    [
        ("accuracy", 1, False),
        ("accuracy", 5, False),
        ("nc1", 1, False),
        ("nc2", 5, False),
        ("balancedness_relative", 1, False),
        ("balancedness_relative", 4, False),
        ("balancedness_relative", 5, True),  # the last layer has no next one
        ("nc3", 4, False),  # that of Z_{L-1} alone is asked
        ("nc3", 5, True),
        ("nc3", 3, True),
        ("error", 4, True),  # nobody asks
    ],
)
def test_a_hole_in_one_run_is_seen_where_its_layer_should_have_a_number(tmp_path, column, layer, whole):
    frame = made_up_runs([0.95, 0.96, 0.97])
    hole = (frame["layer"] == layer) & (frame["run"] == 1)
    for step, sound in ((100, whole), (0, True)):  # the end alone is asked
        with_hole = frame.assign(**{column: frame[column].mask(hole & (frame["step"] == step))})
        with_hole.attrs = frame.attrs
        (claim,) = answers(tmp_path, QUESTION, with_hole)
        assert (claim.verdict == "holds") is sound and math.isnan(claim.numbers["value"]) is not sound


def test_rows_of_the_backbone_and_of_the_test_set_are_not_asked(tmp_path):
    frame = made_up_runs([0.95, 0.97])
    before = frame[frame["layer"] == 1].assign(layer=0, accuracy=math.nan, nc1=math.nan, nc3=7.0)
    test = frame.assign(split="test", nc3=0.5, balancedness_relative=math.nan)
    more = pd.concat([frame, before, test], ignore_index=True)
    more.attrs = frame.attrs
    assert answers(tmp_path, QUESTION, more) == answers(tmp_path, QUESTION, frame)


@pytest.mark.parametrize("layer", [1, 3, 5])
def test_heads_of_several_depths_are_whole_if_every_layer_of_every_run_is_there(tmp_path, layer):
    frames = []
    for depth in (3, 4):
        for setup in ("one", "two"):
            frames.append(made_up_runs([0.95, 0.96], num_linear=depth).assign(setup=setup))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs = {"label": "made up"}
    (claim,) = answers(tmp_path, QUESTION, frame)
    assert claim.verdict == "holds" and claim.numbers["value"] == pytest.approx(0.955)
    gone = (frame["step"] == 100) & (frame["layer"] == layer) & (frame["num_linear"] == 4)
    short = frame[~(gone & (frame["run"] == 1) & (frame["setup"] == "two"))]
    short.attrs = frame.attrs
    (claim,) = answers(tmp_path, QUESTION, short)
    assert claim.verdict == "undecided"


def every(start, frame):
    """All that a quantity gives, one number a run."""
    (quantity,) = [function for name, function in claims.QUANTITIES.items() if name.startswith(start)]
    return quantity(frame).tolist()


def test_quantities_of_layers_are_of_each_run():
    """Two runs, three ReLU layers and four linear ones, a row of the test set that says something else."""
    nc1 = ({1: 1, 2: 3, 3: 3, 4: 6, 5: 30, 6: 15, 7: 90}, {1: 1, 2: 2, 3: 8, 4: 8, 5: 4, 6: 12, 7: 36})
    nc2 = ({1: 2, 2: 2, 3: 1, 4: 9, 5: 18, 6: 27, 7: 270}, {1: 1, 2: 1, 3: 2, 4: 1, 5: 7, 6: 7, 7: 35})
    gap = ({1: 9, 2: 8, 3: 7, 4: 2, 5: 5, 6: 3}, {1: 9, 2: 9, 3: 4, 4: 6, 5: 1, 6: 2})
    frames = []
    for run in range(2):
        frame = made_up(
            3,
            4,
            nc1=lambda layer, step, run=run: nc1[run][layer],
            nc2=lambda layer, step, run=run: nc2[run][layer],
            nc3=lambda layer, step, run=run: {5: 0.5, 6: 0.9 - run / 10}.get(layer, math.nan),
            balancedness_relative=lambda layer, step, run=run: gap[run].get(layer, math.nan),
        ).assign(run=run, seed=run)
        backbone = frame[frame["layer"] == 1].assign(layer=0, nc1=1e-3, nc2=1e-3, balancedness_relative=99.0)
        frames += [frame, backbone, frame.assign(split="test", nc1=1e3, nc2=1e3, balancedness_relative=1e3)]
    frame = pd.concat(frames, ignore_index=True)
    assert every("largest ratio NC1(Z_l) / NC1(Z_{l-1}) from the second", frame) == [3, 4]
    assert every("NC1 of the output over NC1 of what enters the linear head", frame) == [30, 4.5]
    assert claims.QUANTITIES["largest NC1 of a linear layer"](frame).tolist() == [90, 36]
    assert every("largest ratio NC2(Z_l) / NC2(Z_{l-1}) along the linear layers", frame) == [10, 7]
    assert claims.QUANTITIES["NC2 of Z_{L-1}"](frame).tolist() == [27, 7]
    name = "largest relative imbalance of two neighbouring linear layers"
    assert claims.QUANTITIES[name](frame).tolist() == [5, 6]
    assert every("relative imbalance of the last ReLU layer and the first linear one", frame) == [7, 4]
    assert claims.QUANTITIES["NC3"](frame).tolist() == [0.9, 0.8]


def test_the_gain_of_the_middle_layers_is_the_largest_of_those_between_the_second_and_the_last():
    start = {1: 1, 2: 1, 3: 4, 4: 2, 5: 5, 6: 1, 7: 1, 8: 1}
    gains = ({1: 99, 2: 99, 3: 2, 4: 3, 5: 1, 6: 99, 7: 99, 8: 99}, {1: 99, 2: 99, 3: 4, 4: 2, 5: 6, 6: 99, 7: 9, 8: 9})
    frames = []
    for run, gain in enumerate(gains):
        value = lambda layer, step, gain=gain: start[layer] * (gain[layer] if step == 100 else 50 if step else 1)  # noqa: E731
        frame = made_up(6, 2, steps=(0, 50, 100), nc2=value).assign(run=run, seed=run)
        frames += [frame, frame.assign(split="test", nc2=1e3)]
    assert every("largest NC2 at the end over NC2 at the start", pd.concat(frames, ignore_index=True)) == [3, 6]


def decaying(rates, pairs, steps, after=math.inf):
    """One run: imbalance decays at these rates over the law's, and is noise after a step."""
    law = lambda layer, step: 1.0 if step > after else math.exp(-rates[layer] * 0.02 * step)  # noqa: E731
    gaps = lambda layer, step: law(layer, step) if layer in rates else math.nan  # noqa: E731
    return made_up(*pairs, steps=steps, balancedness=gaps)


def test_rates_of_decay_are_the_worst_of_the_linear_pairs_while_the_law_is_above_a_tenth():
    steps = (0, 20, 40, 60, 80, 100, 114, 116, 140)  # exp(-0.02 * 114) = 0.102, exp(-0.02 * 116) = 0.098
    runs = [
        decaying({1: 5.0, 2: 1.0, 3: 1.25}, (1, 3), steps, after=115),  # layer 1 is no linear one
        decaying({1: 5.0, 2: 0.5, 3: 1.25}, (1, 3), steps, after=115),
        decaying({1: 1.0, 2: -0.5, 3: 1.0}, (1, 3), steps, after=115),  # it grows
    ]
    frame = pd.concat([run.assign(run=i, seed=i) for i, run in enumerate(runs)], ignore_index=True)
    frame = pd.concat([frame, frame.assign(split="test", balancedness=7.0)], ignore_index=True)
    how = {"steps": 140, "momentum": 0.0, "warmup_steps": 0, "drop_at": 1.0, "drop_factor": 1.0}
    frame.attrs = {"provenance": {"specification": how, "samples": 10}}
    assert every("largest of r and 1/r", frame) == pytest.approx([1.25, 2.0, math.inf])


def heads(depths, **values):
    """Runs of two seeds with heads of these depths; values are functions of depth, seed and layer."""
    frames = []
    for depth in depths:
        for seed in range(2):
            given = {
                name: lambda layer, step, depth=depth, seed=seed, value=value: value(depth, seed, layer)
                for name, value in values.items()
            }
            frames.append(made_up(2, depth, **given).assign(run=seed, seed=seed))
    return pd.concat(frames, ignore_index=True)


def test_quantities_of_head_depths_are_of_each_run():
    """What is measured of Z_{L-1} is in layer depth + 1, what enters the head in layer 2."""
    frame = heads(
        (1, 2, 5, 6, 7),
        nc1=lambda depth, seed, layer: (1 + seed) ** depth * (100 if layer == depth + 1 else 1) + 10 * layer,
        nc2=lambda depth, seed, layer: (3 + seed) * depth + (50 if layer == depth + 1 else 0) + layer,
        nc3=lambda depth, seed, layer: 1 - 1 / (depth + 1 + seed),
    )
    last = {(depth, seed): 100 * (1 + seed) ** depth + 10 * (depth + 1) for depth in (1, 6) for seed in (0, 1)}
    assert every("NC1 of Z_{L-1} behind six linear layers", frame) == [last[6, 0], last[6, 1]]
    assert every("NC1 of Z_{L-1}, six linear layers over one", frame) == pytest.approx(
        [last[6, 0] / last[1, 0], last[6, 1] / last[1, 1]]
    )
    assert every("NC1 of what enters the head, six linear layers over one", frame) == pytest.approx(
        [(1 + 20) / (100 + 20), (64 + 20) / (200 + 20)]
    )
    assert every("NC2 of Z_{L-1}, six linear layers over one", frame) == pytest.approx(
        [(18 + 50 + 7) / (3 + 50 + 2), (24 + 50 + 7) / (4 + 50 + 2)]
    )
    assert every("NC2 of what enters the head, six linear layers over one", frame) == pytest.approx(
        [(18 + 2) / (3 + 50 + 2), (24 + 2) / (4 + 50 + 2)]
    )
    assert every("1 - NC3, six linear layers over one", frame) == pytest.approx([2 / 7, 3 / 8])


@pytest.mark.parametrize("largest", [2, 3, 4])
def test_the_worst_step_of_nc2_may_be_any_and_is_of_each_run(largest):
    steps = {1: 1.0, 2: 1.1, 3: 1.2, 4: 1.05, largest: 3.0}
    nc2 = lambda depth, seed, layer: math.prod(steps[d] + seed for d in range(1, depth + 1))  # noqa: E731
    frame = heads((1, 2, 3, 4), nc2=nc2)
    assert every("largest ratio of NC2 of Z_{L-1} from one head depth to the next", frame) == pytest.approx([3, 4])


def test_slopes_are_the_least_of_the_depths_of_each_seed():
    """Six weight decays, log NC1 in straight pieces: between the means of their thirds and from end to end."""
    decays = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    powers = {
        (1, 0): (0, 1, 2, 3, 4, 8),
        (2, 0): (0, 2, 5, 6, 9, 9),
        (1, 1): (0, 3, 3, 6, 9, 9),
        (2, 1): (1, 2, 3, 3, 4, 6),
    }
    frames = []
    for (depth, seed), power in powers.items():
        for place in (3, 0, 5, 1, 4, 2):  # in no order
            frame = made_up(2, depth, nc1=lambda layer, step, value=2.0 ** power[place]: value)
            frames.append(frame.assign(weight_decay=decays[place], setup=f"{place}", run=10 * place + seed, seed=seed))
    frame = pd.concat(frames, ignore_index=True)
    # means of the thirds: (0.5, 2.5, 6), (1, 5.5, 9), (1.5, 4.5, 9), (1.5, 3, 5), two doublings from one to the next
    assert every("least local slope of log NC1", frame) == pytest.approx([1.0, 0.75])
    assert every("slope of log NC1 of Z_{L-1} against log weight decay from", frame) == pytest.approx([8 / 5, 1.0])


def test_quantities_of_the_number_of_relu_layers():
    frames = []
    for depth in (4, 5, 6, 7, 11, 12, 13):
        for seed in range(2):
            frame = made_up(
                depth,
                1,
                nc1=lambda layer, step, value=depth + seed: value,
                negativity=lambda layer, step, depth=depth, seed=seed: depth + layer * (1 + seed),
                balancedness=lambda layer, step: 1.0,
                balancedness_relative=lambda layer, step, depth=depth, seed=seed: depth**2 + layer * (1 + seed),
            )
            frames.append(frame.assign(depth=depth, run=seed, seed=seed))
    frame = pd.concat(frames, ignore_index=True)
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    below_zero = {(n, s): [n + layer * (1 + s) for layer in range(3, n + 1)] for n in (4, 6, 12) for s in (0, 1)}
    gaps = {(n, s): [n**2 + layer * (1 + s) for layer in range(3, n)] for n in (6, 12) for s in (0, 1)}
    for start, table, what, shallow in (
        ("mean negativity", below_zero, mean, 4),
        ("least negativity", below_zero, min, 6),
        ("mean relative imbalance of the head", gaps, mean, 6),
        ("least relative imbalance of the head", gaps, min, 6),
    ):
        expected = [what(table[12, seed]) / what(table[shallow, seed]) for seed in (0, 1)]
        assert every(start, frame) == pytest.approx(expected), start
    assert every("NC1 of Z_{L-1}, 12 layers over 4", frame) == pytest.approx([12 / 4, 13 / 5])


def test_steps_fifty_times_larger_are_those_of_the_archive():
    """The ratio is of each run to the mean of the committed archive's runs."""
    coarse = experiments.archive("4", "cores")
    mean = coarse[(coarse["step"] == coarse["step"].max()) & (coarse["split"] == "train") & (coarse["layer"] == 5)][
        "nc2"
    ].mean()
    frame = made_up(5, 4, nc2=lambda layer, step: float(layer))
    frame.attrs = {"provenance": {"specification": {"figure": "4"}}}
    assert every("NC2 of what enters the head, here over that of the archive", frame) == pytest.approx([5 / mean])


@pytest.mark.parametrize("column", ["nc1", "nc2"])
@pytest.mark.parametrize(
    ("where", "layer"), [("Z_{L-1}", lambda depth: depth + 1), ("what enters the head", lambda depth: 2)]
)
def test_six_linear_layers_over_one_are_six_over_one(column, where, layer):
    frames = [made_up(2, d, **{column: lambda at, step, d=d: 100.0 * d + at}) for d in (1, 2, 5, 6, 7)]
    found = asked(f"{column.upper()} of {where}, six linear layers over one", pd.concat(frames, ignore_index=True))
    assert found == pytest.approx((600 + layer(6)) / (100 + layer(1)))
