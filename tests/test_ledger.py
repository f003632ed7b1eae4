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


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ({"value": 1.0, "below": 1.0}, 0.0),
        ({"value": 50.0, "above": 5.0}, -1.0),
        ({"value": 0.5, "below": 5.0, "worst ratio": 0.01}, -1.0),  # its own threshold comes first
        ({"worst ratio": 100.0}, 2.0),
        ({"worst ratio": 0.0}, None),
        ({"value": 0.0, "below": 1.0}, None),  # nothing to take a logarithm of
        ({"value": -1.0, "below": 1.0}, None),
        ({"value": 1.0, "below": 0.0}, None),
        ({"value": 1.0, "below": -1.0}, None),
        ({"value": float("inf"), "below": 1.0}, None),
        ({"value": 1.0, "below": float("inf")}, None),
        ({"value": float("nan"), "below": 1.0}, None),
        ({"value": 0.5}, None),
        ({"below": 0.5}, None),
        ({}, None),
    ],
)
def test_excess_is_given_where_both_are_positive_and_finite(numbers, expected):
    found = ledger.excess(claim("F4-a", **numbers))
    assert (found is None) if expected is None else found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("numbers", [{"value": 1.0, "below": 0.25}, {"value": 1.0, "above": 4.0}])
def test_the_nearest_claim_of_several_on_either_side_is_one_that_holds(numbers):
    claims = [
        claim("F4-a", value=0.125, below=1.0),
        claim("F4-b", value=3.0, above=1.0),
        claim("F4-c", value=0.25, below=1.0),
        claim("F4-d", "undecided", value=0.99, below=1.0),
        claim("F4-e", "fails", **numbers),
        claim("F4-f", steps=3),
        claim("F4-g", value=1.0, below=1.0),  # by no ratio at all
    ]
    assert ledger.nearest(claims) is claims[1] and ledger.nearest(claims[::2]) is claims[2]
    assert ledger.nearest([]) is None


def test_what_several_claims_do_is_said_in_the_plural():
    verdicts = ("holds", "holds in part", "fails as predicted", "fails", "undecided", "toy")
    one = [claim(f"F4-{number}", verdict) for number, verdict in enumerate(verdicts)]
    two = [claim(f"F4-{number}", verdict, "ours") for number, verdict in enumerate(verdicts * 2)]
    assert ledger.in_one_line([*two, *one]) == (
        "The paper's own claims, 6: 1 holds, 1 holds in part, 1 fails as predicted, 1 fails, 1 is undecided, "
        "1 is a toy's. Our own, 12: 2 hold, 2 hold in part, 2 fail as predicted, 2 fail, 2 are undecided, 2 are toys'."
    )
    assert ledger.in_one_line([claim("F4-0", source="inferred")]) == "Inferred from it, 1: 1 holds."


def test_the_summary_of_a_row_names_its_exceptions_and_its_least_margin():
    table = ledger.summary([
        claim("F4-a", value=0.05, below=5.0),
        claim("F4-b", value=0.004, below=5.0),
        claim("F4-c", "undecided", value=0.99, below=1.0),
        claim("F4-d", "fails", "ours", value=2.0, below=1.0),
        claim("F4-e", "fails as predicted", "ours", value=2.0, below=1.0),
        claim("F3-a", "holds in part", "inferred"),
        claim("F3-b", "holds in part", "inferred"),
    ]).set_index("statement")  # fmt: skip
    assert list(table.index) == ["Figures 1 and 4", "Figure 3"] and list(table["chapter"]) == ["06", "08"]
    assert table.loc["Figures 1 and 4", "found"] == (
        "2 hold, 1 fails as predicted, 1 fails, 1 is undecided (F4-c, F4-d). Least margin: F4-a, a factor of 100."
    )
    assert table.loc["Figures 1 and 4", ["paper", "ours"]].tolist() == [
        ("holds in part", "◐ 2 of 3"),
        ("holds in part", "◐ 0 of 2"),
    ]
    assert table.loc["Figure 3", "inferred"] == ("holds in part", "◐ 0 of 2")
    assert table.loc["Figure 3", "found"] == "2 hold in part."
    assert table.loc["Figure 3", "says"].startswith("The more ReLU layers")


def drawn(figure):
    """Places of the dots by verdict, sorted along the axis."""
    axis = figure.axes[0]
    return {part.get_label(): sorted(map(tuple, part.get_offsets().tolist())) for part in axis.collections}


def test_dots_of_one_row_are_spread_over_half_of_it_and_neighbours_are_apart():
    claims = [claim("F1-a", value=0.5, below=1.0)]
    claims += [claim(f"F3-{n}", value=10.0**-n, below=1.0) for n in (1, 2, 3, 4, 5, 6)]
    figure = ledger.strip_chart(claims, reach=7)
    axis, (dots,) = figure.axes[0], drawn(figure).values()
    plt.close(figure)
    assert dots[-1] == pytest.approx((-0.30103, -0.25), abs=1e-5)  # the first of its row
    xs, heights = zip(*dots[:-1], strict=True)
    assert xs == pytest.approx([-6, -5, -4, -3, -2, -1])
    assert heights == pytest.approx([1 + h for h in (-0.25, 0.125, -0.125, 0.25, 0, -0.25)])  # steps of three in five
    assert axis.get_ylim() == pytest.approx((1.6, -0.6)) and axis.get_xlim() == pytest.approx((-7.15, 1.2))
    assert axis.get_yticks().tolist() == [0, 1]


def test_the_picture_reaches_three_decades_and_has_a_sign_and_a_colour_for_each_verdict():
    verdicts = ("holds", "holds in part", "fails as predicted", "fails", "undecided", "toy")
    claims = [claim(f"F4-{n}", verdict, value=1e-5 * (n + 1), below=1.0) for n, verdict in enumerate(verdicts)]
    claims += [claim("F4-x", "fails", value=1e5, below=1.0), claim("F4-y", "fails", value=100.0, below=1.0)]
    figure = ledger.strip_chart(claims)
    axis, dots = figure.axes[0], drawn(figure)
    looks = {(tuple(p.get_paths()[0].vertices.ravel().tolist())) for p in axis.collections}
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    plt.close(figure)
    assert tuple(dots) == verdicts and names == list(verdicts) and len(looks) == 6
    assert [x for x, _ in dots["fails"]] == pytest.approx([-3, 2, 3]) and dots["holds"][0][0] == -3
    assert axis.get_xlim() == pytest.approx((-3.15, 5.2))  # the farthest and a fifth
    lines = [line for line in axis.lines if list(line.get_xdata()) == [0, 0]]
    assert len(lines) == 1 and axis.get_xlabel() == "decades from the threshold (left: holds; right: does not)"
    assert all(part.get_alpha() == 0.85 and part.get_sizes().tolist() == [36] for part in axis.collections)
    assert all(part.get_linewidths().tolist() == [0] for part in axis.collections)


@pytest.mark.parametrize(
    ("claims", "height", "right"),
    [
        ([], 1.4, 1),
        ([claim("F4-a", steps=3)], 1.4, 1),
        ([claim("F4-a", value=0.5, below=1.0)], 1.4, 1.2),
        ([claim("F4-a", value=0.5, below=1.0), claim("F3-a", value=0.5, below=1.0)], 1.9, 1.2),
    ],
)
@pytest.mark.filterwarnings("ignore:No artists with labels found")
def test_the_picture_is_as_high_as_it_has_rows(claims, height, right):
    figure = ledger.strip_chart(claims)
    size, limits = figure.get_size_inches(), figure.axes[0].get_xlim()
    plt.close(figure)
    assert size.tolist() == pytest.approx([6.0, height]) and limits == pytest.approx((-3.15, right))


def test_scales_have_a_letter_and_a_number_each_and_are_listed_in_their_order():
    scales = [f"quick: {n} digits" for n in range(11)] + [
        "what two cores can: digits",
        "paper-scale: digits",
        "<other>",
    ]
    claims = [dataclasses.replace(claim(f"F4-{n}", value=0.5, below=1.0), scale=s) for n, s in enumerate(scales)]
    table = ledger.full_table([*claims, dataclasses.replace(claims[1], id="F4-again")])
    codes = re.findall(r"<dt>(\w+)</dt><dd>(.*?)</dd>", table)
    assert [code for code, _ in codes] == ["A1", "P1", *(f"Q{n}" for n in range(1, 12)), "X1"]
    assert codes[3] == ("Q2", "quick: 1 digits") and codes[-1] == ("X1", "&lt;other&gt;")
    row = re.search(r"<tr id='claim-F4-again' data-page=''>.*?</tr>", table)[0]
    assert row.endswith("<td data-head='scale'><abbr title=\"quick: 1 digits\">Q2</abbr></td></tr>")
    heads = ("claim", "verdict", "asked", "found", "distance", "source", "scale")
    assert re.findall(r"<th>(.*?)</th>", table) == list(heads) == re.findall(r"data-head='(.*?)'", row)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (
            {"value": 0.12345, "below": 0.123456789, "spread": 0.0123, "distance": 2.3456, "seeds": 3.0},
            ("&lt; 0.123457", "0.123 ± 0.01 (3 runs)", "2.35 sd"),
        ),
        ({"value": 0.5, "above": 0.25, "spread": 0.0, "n": 0.1234}, ("&gt; 0.25", "0.5; n 0.12", "")),
        ({"value": 0.5, "above": 0.25, "seeds": 1, "meet": 0}, ("&gt; 0.25", "0.5 (1 runs, 0 meet it)", "")),
        ({"n": 1234.0, "m": 0.5678}, ("", "n 1200, m 0.57", "")),
        ({"value": 0.5, "n": 3.0}, ("", "n 3", "")),
        ({}, ("", "", "")),
    ],
)
def test_what_is_asked_and_found_is_printed_to_a_few_digits(numbers, expected):
    table = ledger.full_table([claim("F4-a", **numbers)])
    cells = dict(re.findall(r"data-head='(.*?)'>(.*?)</td>", table))
    assert (cells["asked"], cells["found"], cells["distance"]) == expected


def test_a_verdict_of_several_words_has_the_style_of_its_last():
    table = ledger.full_table([claim("F4-a", "fails as predicted"), claim("F4-b", "holds in part")])
    assert "<span class='v v-predicted'>✗ᵖ</span> fails as predicted" in table
    assert "<span class='v v-part'>◐</span> holds in part" in table
