"""Hypothesis and Check: what counts as met, held, undefined."""

import dataclasses
import math

import pytest
import torch

from ncutils.theory import Check, Hypothesis, Tally, bound_text, tally, to_frame


def check(measured, bound, sense="<=", hypotheses=(), **keywords):
    return Check("Statement 0", "nc1", "sharp", hypotheses, measured, bound, sense, **keywords)


@pytest.mark.parametrize(
    ("value", "sense", "threshold", "expected"),
    [(1, "<", 1, False), (1, "<=", 1, True), (1, ">", 1, False), (1, ">=", 1, True), (math.nan, "<=", 1, False)],
)
def test_hypothesis_is_exact(value, sense, threshold, expected):
    assert Hypothesis("h", value, threshold, sense).holds is expected


@pytest.mark.parametrize(
    ("measured", "sense", "bound", "expected"),
    [
        (1.0, "<=", 2.0, True),
        (2.0, "<=", 1.0, False),
        (1.0, "<=", math.inf, True),
        (math.inf, "<=", 1.0, False),
        (0.5, ">=", -1.0, True),
        (-2.0, ">=", -1.0, False),
        (1.0, "==", 1.0, True),
        (1.0, "==", 1.001, False),
        (math.nan, "<=", 1.0, False),
        (1.0, "<=", math.nan, False),
    ],
)
def test_holds(measured, sense, bound, expected):
    assert check(measured, bound, sense).holds is expected


def test_tolerance_forgives_rounding_only():
    assert check(1 + 1e-10, 1.0).holds
    assert check(1 + 1e-8, 1.0).holds is False
    assert check(1 + 1e-8, 1.0, tolerance=1e-7).holds


def test_unmet_hypothesis_says_nothing():
    failing = Hypothesis("ε1 small", 2.0, 1.0, "<")
    c = check(5.0, 1.0, hypotheses=(failing,))
    assert c.hypotheses_met is False
    assert c.holds is None
    assert "says nothing" in str(c)
    assert "NOT met" in str(c)


@pytest.mark.parametrize(
    ("measured", "sense", "bound", "ratio"),
    [
        (1.0, "<=", 2.0, 0.5),
        (2.0, ">=", 1.0, 0.5),
        (2.0, ">=", -1.0, -0.5),
        (-1.0, ">=", -2.0, 0.5),
        (-1.0, ">=", 2.0, math.inf),
        (0.0, "<=", 0.0, 1.0),
        (-2.0, "<=", -1.0, 0.5),
        (1.0, "<=", math.inf, 0.0),
    ],
)
def test_ratio_is_at_most_one_exactly_when_it_holds(measured, sense, bound, ratio):
    c = check(measured, bound, sense)
    assert c.ratio == ratio
    assert (c.ratio <= 1) == c.holds


def test_numbers_become_floats():
    c = check(torch.tensor(1.0, dtype=torch.float64), torch.tensor(2.0))
    assert type(c.measured) is float
    assert type(c.bound) is float


def test_frame_keeps_none():
    frame = to_frame([check(1.0, 2.0), check(1.0, 2.0, hypotheses=(Hypothesis("h", 1, 0, "<"),))])
    columns = [
        "statement",
        "quantity",
        "form",
        "measured",
        "bound",
        "sense",
        "hypotheses_met",
        "holds",
        "vacuous",
        "violated",
    ]
    assert list(frame.columns) == columns
    assert frame["holds"].tolist() == [True, None]


def test_html_escapes():
    html = check(1.0, 2.0, hypotheses=(Hypothesis("a < b & c", 1.0, 2.0, "<"),))._repr_html_()
    assert "a &lt; b &amp; c" in html


def test_errors_name_the_argument():
    with pytest.raises(ValueError, match="sense"):
        Hypothesis("h", 1, 2, "==")
    with pytest.raises(ValueError, match="sense"):
        check(1, 2, "<")
    with pytest.raises(ValueError, match="form"):
        Check("s", "nc1", "rough", (), 1, 2, "<=")


def test_a_name_shared_by_module_and_function_is_the_function():
    import importlib

    import ncutils
    from ncutils import theory

    for name in ("along", "attack", "certify", "theorem_4_4"):
        module = importlib.import_module(f"ncutils.theory.{name}")
        assert getattr(theory, name) is getattr(module, name)
    assert ncutils.certify is theory.certify and callable(ncutils.certify)


@pytest.mark.parametrize(
    ("quantity", "measured", "sense", "bound", "vacuous"),
    [
        ("nc3", 0.9, ">=", -47.0, True),
        ("nc3", 0.9, ">=", -0.5, False),
        ("nc1", 0.1, "<=", 300.0, True),
        ("nc1", 0.1, "<=", 0.9, False),
        ("kappa_head", 3.0, "<=", 1e14, True),
        ("kappa_head", 3.0, "<=", 1e6, False),
        ("ntk", 3.0, ">=", 0.0, True),
        ("layers", 3.0, "<=", math.inf, True),
    ],
)
def test_a_bound_that_excludes_nothing_is_vacuous(quantity, measured, sense, bound, vacuous):
    c = Check("S", quantity, "sharp", (), measured, bound, sense)
    assert c.holds and c.vacuous is vacuous
    assert ("vacuous" in str(c)) is vacuous


def test_tally_counts_what_was_said():
    silent = check(1.0, 2.0, hypotheses=(Hypothesis("h", 1, 0, "<"),))
    checks = [check(0.1, 0.2), check(0.3, 0.2), check(0.1, 50.0), silent, check(math.nan, 50.0)]
    for counted in (tally(checks), tally(iter(checks)), tally(to_frame(checks))):
        assert counted == Tally(spoke=3, silent=1, vacuous=1, violated=2)
        assert not counted.sound
    assert tally(checks[:1]).sound
    assert not tally([silent, silent]).sound and not tally([]).sound


def test_rounding_is_printed_as_such():
    assert [bound_text(v) for v in (0.0, 1e-13, -1e-13, 2e-12)] == ["below 1e-12"] * 3 + ["2e-12"]


@pytest.mark.parametrize(("over", "held"), [(0.9e-9, True), (1.1e-9, False)])
def test_rounding_of_one_in_a_billion_is_forgiven_and_no_more(over, held):
    assert Check("S", "nc2", "sharp", (), 2.0 * (1 + over), 2.0, "<=").holds is held
    assert Check("S", "nc3", "sharp", (), 0.5 * (1 - over), 0.5, ">=").holds is held
    for sign in (1, -1):
        assert Check("S", "identity", "exact", (), 2.0 * (1 + sign * over), 2.0, "==").holds is held


@pytest.mark.parametrize("sense", ["<=", ">=", "=="])
def test_an_absolute_slack_is_forgiven_on_either_side_and_no_more(sense):
    side = -1 if sense == ">=" else 1
    for over, held in ((0.9e-6, True), (1.1e-6, False)):
        assert check(side * over, 0.0, sense, rounding=1e-6).holds is held


@pytest.mark.parametrize("name", ["rounding", "tolerance"])
def test_a_slack_that_would_let_everything_pass_says_nothing(name):
    for measured in (2.0, 0.5):
        check = Check("S", "q", "simple", (), measured, 1.0, "<=", **{name: math.inf})
        assert check.holds is None and check.silent and not check.violated
    assert Check("S", "q", "simple", (), 2.0, 1.0, "<=", **{name: math.nan}).holds is False
    with pytest.raises(ValueError, match=f"{name} must be at least 0; got -1"):
        Check("S", "q", "simple", (), 2.0, 1.0, "<=", **{name: -1.0})


# --- limits


@pytest.mark.parametrize(
    ("quantity", "limit"),
    [
        ("nc1", 1.0),
        ("nc2", 1e12),
        ("kappa_W_L", 1e12),
        ("kappa_head", 1e12),
        ("log_kappa_W_L", 12 * math.log(10)),
        ("log_kappa_head", 12 * math.log(10)),
        ("layers", math.inf),
        ("nc1_12", 1.0),
        ("nc2_3", 1e12),
    ],
)
def test_a_ceiling_is_vacuous_from_its_limit_on(quantity, limit):
    said = lambda bound: Check("S", quantity, "sharp", (), 0.5, bound, "<=").vacuous  # noqa: E731
    assert said(limit * (1 + 1e-15)) is said(math.inf) is True
    assert said(limit * (1 - 1e-15) if limit < math.inf else 1e300) is said(0.5) is False
    if quantity.startswith("nc"):
        assert said(limit) is True and said(math.nextafter(limit, 0)) is False


@pytest.mark.parametrize(("quantity", "limit"), [("nc3", -1.0), ("nc3_4", -1.0), ("ntk", 0.0), ("nc1", 0.0)])
def test_a_floor_is_vacuous_up_to_its_limit(quantity, limit):
    said = lambda bound: Check("S", quantity, "sharp", (), 0.5, bound, ">=").vacuous  # noqa: E731
    assert said(limit) is said(-math.inf) is True and said(math.nextafter(limit, 1)) is False


def test_neither_an_identity_nor_a_silent_check_is_vacuous():
    assert Check("S", "nc1", "exact", (), 5.0, 5.0, "==").vacuous is False
    silent = check(0.5, 300.0, hypotheses=(Hypothesis("h", 1, 0, "<"),))
    assert silent.silent is True and silent.vacuous is False and silent.violated is False
    assert silent.verdict == "says nothing here"
    assert check(0.5, 300.0).verdict == "holds, but the bound is vacuous" and check(2.0, 1.0).verdict == "VIOLATED"
    assert check(0.5, 0.9).verdict == "holds" and check(0.5, 0.9).silent is False
    assert check(0.5, 0.9, hypotheses=(Hypothesis("h", 0, 1, "<"), Hypothesis("h", 1, 0, "<"))).silent is True


@pytest.mark.parametrize(
    ("measured", "sense", "bound", "ratio"),
    [
        (math.inf, "<=", math.inf, 1.0),
        (-math.inf, "<=", math.inf, 1.0),
        (-math.inf, "<=", 1.0, -math.inf),
        (math.inf, "<=", 1.0, math.inf),
        (-1.0, "<=", 0.0, 0.0),
        (1.0, "<=", 0.0, math.inf),
        (0.5, "<=", 0.0, math.inf),
        (-0.5, "<=", 0.0, 0.0),
        (0.0, "<=", -1.0, math.inf),
        (0.5, "<=", -1.0, math.inf),
        (-1.0, "<=", -2.0, 2.0),
        (-3.0, "<=", -3.0, 1.0),
        (-0.5, "<=", -0.25, 0.5),
        (0.0, "<=", 0.5, 0.0),
        (0.25, "<=", 0.5, 0.5),
        (0.5, ">=", 0.25, 0.5),
        (math.nan, "<=", 1.0, math.nan),
        (1.0, "<=", math.nan, math.nan),
        (2.0, "==", 4.0, 0.5),
    ],
)
def test_how_much_of_a_bound_is_used_up(measured, sense, bound, ratio):
    assert check(measured, bound, sense).ratio == pytest.approx(ratio, nan_ok=True)


@pytest.mark.parametrize(
    ("value", "threshold", "met"),
    [(1.0, 2.0, {"<", "<="}), (2.0, 1.0, {">", ">="}), (1.5, 1.5, {"<=", ">="}), (1.0, math.nan, set())],
)
def test_a_hypothesis_compares_as_it_says(value, threshold, met):
    assert {sense for sense in ("<", "<=", ">", ">=") if Hypothesis("h", value, threshold, sense).holds} == met


def test_slack_is_relative_to_the_larger_side_and_rounding_is_none_unless_given():
    assert check(1e-300, 0.0).holds is False and check(-1e-300, 0.0, ">=").holds is False
    assert check(0.0, 0.0).holds is True and check(0.0, -1e-300).holds is False
    assert check(-10.0, -10.9, tolerance=0.1).holds is True  # a tenth of 10.9
    assert check(-10.0, -11.2, tolerance=0.1).holds is False
    assert (
        check(11.1, 10.0, "==", tolerance=0.1).holds is True and check(11.2, 10.0, "==", tolerance=0.1).holds is False
    )
    assert check(10.0, 12.0, tolerance=0.1, rounding=0.5).holds is True
    assert check(12.0, 10.0, tolerance=0.1, rounding=0.85).holds is True  # both count
    assert check(12.0, 10.0, tolerance=0.1, rounding=0.75).holds is False
    assert check(math.inf, math.inf, "==").holds is True and check(math.inf, -math.inf, "==").holds is False
    assert check(math.inf, 1.0, "==", rounding=1e300).holds is False
    assert (check(1.0, 2.0).tolerance, check(1.0, 2.0).rounding) == (1e-9, 0.0)
    for sense in ("<=", ">=", "=="):
        assert check(1.0, 1.0, sense, tolerance=0.0).holds is True
    assert check(1.0, 1.0, rounding=torch.tensor(0.5)).rounding == 0.5


def test_what_was_found_cannot_be_changed():
    hypothesis = Hypothesis("h", 0, 1, "<")
    for given, name in ((hypothesis, "value"), (check(1.0, 2.0), "bound"), (Tally(1, 0, 0, 0), "spoke")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(given, name, 3)
    assert hypothesis == Hypothesis("h", 0, 1, "<") and check(1.0, 2.0) == check(1.0, 2.0) != check(1.0, 3.0)
    moved = dataclasses.replace(check(1.0, 2.0, hypotheses=[hypothesis]), bound=0.5)
    assert moved.violated is True and moved.hypotheses == (hypothesis,)
    assert "Check(statement='Statement 0', quantity='nc1'" in repr(moved)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"form": "rough"}, ValueError, r"form must be one of \('paper', 'simple', 'sharp', 'exact'\); got 'rough'"),
        ({"sense": ">"}, ValueError, "sense must be '<=', '>=' or '=='; got '>'"),
        ({"statement": 3}, TypeError, "statement must be a string; got 3"),
        ({"quantity": 3}, TypeError, "quantity must be a string; got 3"),
        ({"hypotheses": (3,)}, TypeError, r"hypotheses\[0\] must be a Hypothesis; got 3"),
        ({"measured": "1"}, TypeError, "measured must be a number; got '1'"),
        ({"bound": "1"}, TypeError, "bound must be a number; got '1'"),
        ({"tolerance": -1e-9}, ValueError, "tolerance must be at least 0; got -1e-09"),
        ({"rounding": -1e-9}, ValueError, "rounding must be at least 0; got -1e-09"),
    ],
)
def test_a_check_says_what_is_wrong_with_it(change, error, words):
    given = {"statement": "S", "quantity": "nc1", "form": "sharp", "hypotheses": (), "measured": 1, "bound": 2}
    with pytest.raises(error, match=words):
        Check(**{**given, "sense": "<=", **change})


def test_a_hypothesis_says_what_is_wrong_with_it():
    with pytest.raises(ValueError, match=r"sense must be one of \('<=', '>=', '<', '>'\); got '=='"):
        Hypothesis("h", 1, 2, "==")
    with pytest.raises(TypeError, match="name must be a string; got 3"):
        Hypothesis(3, 1, 2, "<")
    with pytest.raises(TypeError, match="value must be a number; got 'x'"):
        Hypothesis("h", "x", 2, "<")
    with pytest.raises(TypeError, match="threshold must be a number; got 'x'"):
        Hypothesis("h", 1, "x", "<")
    grown = torch.tensor(2.0, requires_grad=True)
    assert Hypothesis("h", grown, 3, "<").value == 2.0


def test_checks_are_printed_with_four_digits_and_their_hypotheses():
    hypotheses = (Hypothesis("a < b", 1.23456, math.inf, "<="), Hypothesis("c", -math.inf, 2, ">="))
    given = check(math.nan, 2 / 3, ">=", hypotheses)
    assert str(given) == (
        "Statement 0, sharp: nc1 = undefined ≥ 0.6667: says nothing here\n"
        "  a < b: 1.235 ≤ ∞ (met)\n  c: −∞ ≥ 2 (NOT met)"
    )
    assert given._repr_html_() == (
        "<table><caption>Statement 0 (sharp form)</caption><tbody>"
        "<tr><td>a &lt; b</td><td>1.235</td><td>≤</td><td>∞</td><td>✓</td></tr>"
        "<tr><td>c</td><td>−∞</td><td>≥</td><td>2</td><td>✗</td></tr>"
        "<tr><th>nc1</th><th>undefined</th><th>≥</th><th>0.6667</th><th>says nothing here</th></tr></tbody></table>"
    )


@pytest.mark.parametrize(
    ("counts", "sound"), [((1, 0, 0, 0), True), ((0, 5, 5, 0), False), ((3, 0, 0, 1), False), ((3, 1, 1, 0), True)]
)
def test_a_tally_is_sound_where_something_was_said_and_nothing_is_false(counts, sound):
    assert Tally(*counts).sound is sound
    spoke, silent, vacuous, violated = counts
    assert str(Tally(*counts)) == f"{violated} violated of {spoke} that speak ({silent} silent, {vacuous} vacuous)"


def test_tallies_refuse_what_holds_no_checks():
    with pytest.raises(TypeError, match=r"checks\[1\] must be a Check; got 3"):
        tally([check(1.0, 2.0), 3])
    with pytest.raises(
        ValueError, match=r"checks must have the columns hypotheses_met, vacuous, violated; got none of"
    ):
        tally(to_frame([check(1.0, 2.0)]).drop(columns="violated"))
    with pytest.raises(TypeError, match=r"checks\[0\] must be a Check; got 3"):
        to_frame([3])
    assert len(to_frame(iter([check(1.0, 2.0)] * 3))) == 3 and to_frame([]).columns[0] == "statement"


def test_a_number_is_printed_unless_it_is_below_the_floor():
    assert [bound_text(v) for v in (1e-12, -1e-12, 0.99e-12, math.nan, -math.inf)] == [
        "1e-12", "-1e-12", "below 1e-12", "undefined", "−∞"
    ]  # fmt: skip
    assert bound_text(0.01, 0.1) == "below 0.1" and bound_text(0.1, 0.1) == "0.1"
    with pytest.raises(TypeError, match="value must be a number; got 'x'"):
        bound_text("x")
