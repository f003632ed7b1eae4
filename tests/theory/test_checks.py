"""Hypothesis and Check: what counts as met, held, undefined."""

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
