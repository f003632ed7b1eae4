"""Statements along a training, and their picture."""

import math

import matplotlib
import pandas as pd
import pytest

from ncutils import data, networks, plots, theory, training
from ncutils.theory.along import evaluate

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def history():
    points = data.gaussian(per_class=5, num_classes=3, dim=6)
    network = networks.MLP(points.x.shape[1], 3, num_nonlinear=1, num_linear=2, width=6, seeds=(0, 1))
    config = training.TrainingConfig(steps=40, lr=0.05, weight_decay=1e-3, measurements=4, batch_size=5)
    measure = theory.along(theory.theorem_3_1_nc1, theory.layer_conditioning, columns={"error": lambda head: head.eps1})
    return training.train(network, points, config, measure=measure).frame, network, points


def test_rows_are_the_checks_of_each_run(history):
    frame, network, points = history
    end = frame[frame["step"] == frame["step"].max()]
    assert sorted(end["run"].unique()) == [0, 1] and len(end) == 2 * 4
    head = theory.LinearHead.of(network.sequential(1), points.x, points.y)
    row = end[(end["run"] == 1) & (end["form"] == "sharp") & (end["quantity"] == "nc1")].iloc[0]
    check = theory.theorem_3_1_nc1(head)
    assert row["measured"] == pytest.approx(check.measured) and row["error"] == pytest.approx(float(head.eps1))
    tally = theory.tally(frame)
    assert tally.violated == 0 and tally.spoke + tally.silent + tally.vacuous == len(frame)


def test_bounds_draws_only_what_is_said():
    rows = [
        dict(step=step, form=form, measured=1.0 / step, bound=2.0 / step, hypotheses_met=met, vacuous=step == 4)
        for step in (1, 2, 4)
        for form, met in (("paper", False), ("sharp", step > 1))
    ]
    figure = plots.bounds(pd.DataFrame(rows), "NC1")
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert list(lines) == ["measured", "bound, paper form (silent)", "bound, sharp form"]
    assert lines["measured"].get_ydata().tolist() == [1.0, 0.5, 0.25]
    assert [math.isnan(v) for v in lines["bound, sharp form"].get_ydata()] == [True, False, False]
    assert lines["bound, sharp form"].get_ydata()[1:].tolist() == [1.0, 0.5]
    assert [len(c.get_offsets()) for c in figure.axes[1].collections] == [0, 0, 3, 1, 1, 1]
    _, axis = matplotlib.pyplot.subplots()
    assert plots.bounds(pd.DataFrame(rows), axis=axis) is axis.figure
    with pytest.raises(ValueError, match="got none"):
        plots.bounds(pd.DataFrame(rows)[:0])
    matplotlib.pyplot.close("all")


def test_statements_come_in_their_order_and_those_of_one_form_once(history):
    _, network, points = history
    head = theory.LinearHead.of(network.sequential(0), points.x, points.y)
    checks = evaluate(head, (theory.layer_conditioning, theory.theorem_3_1_nc1), ("sharp", "paper"))
    assert [check.form for check in checks] == ["sharp", "sharp", "paper"]
    assert checks[0] == theory.layer_conditioning(head) and checks[2] == theory.theorem_3_1_nc1(head, "paper")
    with pytest.raises(TypeError, match=r"statements\[1\] must be a function; got 3"):
        evaluate(head, (theory.layer_conditioning, 3))
    with pytest.raises(TypeError, match="head must be a LinearHead; got 3"):
        evaluate(3, ())


def test_rows_say_their_run_and_step_and_hold_the_numbers_that_were_asked_for(history):
    _, network, points = history
    measure = theory.along(theory.theorem_3_1_nc1, forms=("sharp",), columns={"depth": lambda head: head.depth})
    rows = measure(network, points, 7)
    assert [(row["run"], row["step"], row["depth"]) for row in rows] == [(0, 7, 2.0), (1, 7, 2.0)]
    for run, row in enumerate(rows):
        check = theory.theorem_3_1_nc1(theory.LinearHead.of(network.sequential(run), points.x, points.y))
        assert row["ratio"] == check.ratio and {name: row[name] for name in check.row()} == check.row()
    assert rows[0]["measured"] != rows[1]["measured"]
