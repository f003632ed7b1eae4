"""ncutils/ledger.py: the claims of the book as a summary, a picture, a table."""

import dataclasses
import doctest
import re

import matplotlib.pyplot as plt
import pytest

from ncutils import ledger
from ncutils.claims import Claim


def claim(id, verdict="holds", source="paper", where="06", **numbers):
    return Claim(id, f"About {id} <x>.", source, where, "quick: 10 digits", verdict, numbers)


CLAIMS = [
    claim("F4-a", value=0.01, below=0.1, spread=0.001, distance=90.0, seeds=3),
    claim("F4-b", "fails", "ours", value=2.0, below=1.0),
    claim("T3.1-a", where="02", **{"worst ratio": 0.5}),
    claim("T5.2-a", "undecided", "inferred", "04", value=0.99, below=1.0),
    claim("P5.3", where="05", steps=3.0),
    claim("Z-new", "toy", "ours", "12"),
]


def test_the_examples_run():
    assert doctest.testmod(ledger).failed == 0


def test_every_claim_belongs_to_one_row():
    rows = [ledger.row_of(c) for c in CLAIMS]
    assert rows == ["Figures 1 and 4"] * 2 + ["Theorem 3.1", "Theorem 5.2", "Proposition 5.3", "Beyond the paper"]


def test_the_summary_counts_by_whose_the_claims_are():
    table = ledger.summary(CLAIMS).set_index("statement")
    assert table.loc["Figures 1 and 4", "paper"] == ("holds", "✓ 1 of 1")
    assert table.loc["Figures 1 and 4", "ours"] == ("fails", "✗ 0 of 1")
    assert table.loc["Figures 1 and 4", "inferred"] is None
    assert table.loc["Figures 1 and 4", "found"] == "1 holds, 1 fails (F4-b). Least margin: F4-a, a factor of 10."
    assert "T5.2-a" in table.loc["Theorem 5.2", "found"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [(CLAIMS[0], -1.0), (CLAIMS[1], 0.30103), (CLAIMS[2], -0.30103), (CLAIMS[4], None)],
)
def test_excess_is_the_logarithm_of_value_over_threshold_wrong_side_up(given, expected):
    found = ledger.excess(given)
    assert (found is None) if expected is None else found == pytest.approx(expected, abs=1e-5)


def test_the_strip_chart_draws_one_sign_a_claim_with_a_threshold():
    figure = ledger.strip_chart(CLAIMS)
    points = sum(len(part.get_offsets()) for part in figure.axes[0].collections)
    plt.close(figure)
    assert points == sum(ledger.excess(c) is not None for c in CLAIMS) == 4


def test_the_table_names_asked_found_distance_and_escapes_words():
    table = ledger.full_table(CLAIMS, {"06": "06_training_dynamics"})
    row = re.search(r"<tr id='claim-F4-a' data-page='06_training_dynamics'>.*?</tr>", table)[0]
    assert re.findall(r"<td[^>]*>(.*?)</td>", row)[1:6] == [
        "<span class='v v-holds'>✓</span> holds",
        "&lt; 0.1",
        "0.01 ± 0.001 (3 runs)",
        "90 sd",
        "paper",
    ]
    assert "<x>" not in table and "About F4-a &lt;x&gt;." in table
    assert "&gt;" not in re.search(r"id='claim-F4-b'.*?</tr>", table)[0].split("data-head='asked'")[1][:12]
    assert table.count("<tr id=") == len(CLAIMS) and "<dt>Q1</dt>" in table


@pytest.mark.parametrize("verdict", ["holds", "fails", "fails as predicted", "undecided", "toy"])
@pytest.mark.parametrize("value", [0.5, 2.0])
def test_what_is_asked_does_not_depend_on_the_verdict(verdict, value):
    """A toy beyond its threshold, and an undecided one, used to be shown as if they had asked for the other side."""
    for side, sign in (("below", "&lt;"), ("above", "&gt;")):
        given = claim("F2-a", verdict, value=value, **{side: 1.0})
        assert f"data-head='asked'>{sign} 1<" in ledger.full_table([given])
        assert (ledger.excess(given) > 0) == ((value > 1) == (side == "below"))


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (("holds", "holds"), ("holds", "✓ 2 of 2")),
        (("holds", "fails"), ("holds in part", "◐ 1 of 2")),
        (("holds", "toy"), ("holds", "✓ 1 of 2")),  # a toy decides nothing
        (("toy", "toy"), ("toy", "toy 0 of 2")),
    ],
)
def test_one_verdict_for_several_claims_is_theirs_if_they_agree(verdicts, expected):
    table = ledger.summary([claim(f"F4-{number}", verdict) for number, verdict in enumerate(verdicts)])
    assert table["paper"].tolist() == [expected]


def test_the_nearest_claim_is_the_one_that_holds_by_least():
    far, near = claim("F4-a", value=0.01, below=0.1), claim("F4-b", value=6.0, above=5.0)
    assert ledger.nearest([far, near, CLAIMS[1]]) is ledger.nearest([near, far]) is near
    assert ledger.nearest([CLAIMS[1]]) is None


def test_a_claim_far_from_its_threshold_stands_at_the_edge_of_the_picture():
    figure = ledger.strip_chart([claim("F4-a", value=1e-9, below=0.1), claim("F4-b", value=0.05, below=0.1)], reach=2)
    axis = figure.axes[0]
    places = sorted(axis.collections[0].get_offsets()[:, 0].tolist())
    low, high = axis.get_xlim()
    plt.close(figure)
    assert places == pytest.approx([-2, -0.30103], abs=1e-4) and low < places[0] and places[1] < high


def test_a_row_that_no_claim_belongs_to_is_not_drawn():
    figure = ledger.strip_chart([claim("F3-a", value=0.5, below=1.0), claim("F4-b", value=0.5, below=1.0)])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["Figures 1 and 4", "Figure 3"]


def test_a_changed_paper_profile_is_not_marked_as_the_papers_length():
    scales = ["paper-scale: 60,000 digits", "paper-scale with changes: 60,000 digits", "quick: 1,000 digits"]
    claims = [dataclasses.replace(claim(f"F4-{i}", value=0.5, below=1.0), scale=s) for i, s in enumerate(scales)]
    assert list(ledger._scales(claims).values()) == ["P1", "X1", "Q1"]


def test_the_table_says_how_many_runs_meet_the_threshold():
    asked = claim("F4-a", value=0.5, below=1.0, spread=0.1, distance=5.0, seeds=5, meet=4)
    assert ledger._asked_found_distance(asked)[1] == "0.5 ± 0.1 (5 runs, 4 meet it)"
    without = claim("F4-a", value=0.5, below=1.0, spread=0.1, distance=5.0, seeds=5)
    assert ledger._asked_found_distance(without)[1] == "0.5 ± 0.1 (5 runs)"
