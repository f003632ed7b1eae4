"""Verdicts with a margin, the claims of a chapter, and what claims.toml asks of the archives."""

from __future__ import annotations

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
