"""ncutils.plots: panels in the paper's order, means and bands that are means and bands, titles that say the size."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ncutils import experiments, plots


@pytest.fixture(autouse=True)
def close():
    plots.style()
    yield
    plt.close("all")


def history(runs=3, layers=9, relu=5):
    """A frame like that of experiments.run, with values known in closed form."""
    rows = []
    for run in range(runs):
        for step in (0, 1, 10, 100):
            for layer in range(1, layers + 1):
                rows.append({
                    "split": "train",
                    "run": run,
                    "step": step,
                    "layer": layer,
                    "part": "nonlinear" if layer <= relu else "linear",
                    "nc1": (1 + run) / (1 + step),
                    "nc2": 2.0 + layer,
                    "balancedness_relative": 0.5 if layer < layers else np.nan,
                    "negativity": 0.1 * run,
                    "diverged": False,
                })  # fmt: skip
    return pd.DataFrame(rows)


def ends(depths=(1, 2, 4), runs=3):
    columns = ("nc1_last", "nc1_first", "nc2_last", "nc2_first", "nc3")
    columns += ("balancedness_min", "balancedness_mean", "negativity_min", "negativity_mean")
    return pd.DataFrame([{"depth": d, "run": r} | {c: d + r for c in columns} for d in depths for r in range(runs)])


def band(axis, number=0):
    """x, low, high of a filled band."""
    points = axis.collections[number].get_paths()[0].vertices
    xs = np.unique(points[:, 0])
    return xs, *zip(
        *[(points[points[:, 0] == x, 1].min(), points[points[:, 0] == x, 1].max()) for x in xs], strict=True
    )


@pytest.mark.parametrize("draw", [plots.figure1, plots.figure4])
def test_figures_over_training(draw):
    figure = draw(history(), "quick: a size")
    assert [axis.get_title() for axis in figure.axes] == [
        "NC1",
        "NC2",
        "imbalance with the next",
        "negativity (ReLU layers)",
    ]
    nc1, nc2, balancedness, negativity = figure.axes
    assert len(nc1.lines) == len(nc2.lines) == 7  # the last 7 layers
    assert len(balancedness.lines) == 6  # the last layer has no next one
    assert len(negativity.lines) == 3  # ReLU layers 3, 4, 5
    assert figure.get_suptitle() == "quick: a size"
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["3 (ReLU)", "4 (ReLU)", "5 (ReLU)", "6", "7", "8", "9"]
    assert all(axis.get_ylabel() for axis in figure.axes)
    assert figure.get_size_inches()[0] <= 9


def test_lines_are_means_and_bands_one_standard_deviation():
    axis = plots.figure1(history()).axes[0]
    np.testing.assert_array_equal(axis.lines[0].get_xdata(), [1, 10, 100])  # step 0 has no place on a log axis
    np.testing.assert_allclose(axis.lines[0].get_ydata(), [2 / 2, 2 / 11, 2 / 101])
    xs, low, high = band(axis)
    spread = np.std([1, 2, 3], ddof=1)  # of a sample, as everywhere in the pages
    np.testing.assert_allclose(high, (2 + spread) / (1 + xs))
    np.testing.assert_allclose(low, (2 - spread) / (1 + xs))


def test_diverged_runs_and_the_test_set_are_not_drawn():
    frame = history()
    bad = frame.assign(diverged=True, nc1=1e9)
    test = frame.assign(split="test", nc1=1e9)
    axis = plots.figure1(pd.concat([frame, bad, test])).axes[0]
    assert max(axis.lines[0].get_ydata()) < 10


def test_figure_2_and_5_against_depth():
    figure = plots.figure2(ends(), "quick", ends(depths=(1, 2, 3)), ("quick", "archive"))
    titles = [axis.get_title().partition("\n")[0] for axis in figure.axes]
    assert titles == ["NC1, last layer", "NC1, first layer", "NC2, last layer", "NC2, first layer", "NC3"]
    figure.canvas.draw()
    at = [axis.transAxes.inverted().transform(axis.transData.transform((1, 2)))[1] for axis in figure.axes]
    assert at[0] == pytest.approx(at[1]) and at[2] == pytest.approx(at[3])  # one scale for one quantity
    assert figure.axes[2].get_ylim() == figure.axes[3].get_ylim() != figure.axes[0].get_ylim()
    first = figure.axes[0]
    np.testing.assert_allclose(first.lines[0].get_ydata(), np.array([1, 2, 4]) + 1)
    assert len(first.lines) == len(first.collections) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["quick", "archive"]
    assert plots.figure5(ends()).axes[0].get_title() == first.get_title()
    assert figure._supxlabel.get_text() == "linear layers in the head"


def test_figure_3_against_the_number_of_nonlinear_layers():
    figure = plots.figure3(ends(), "quick")
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["least imbalance", "mean imbalance", "minimum negativity", "mean negativity"]
    assert not figure.legends  # one result needs no legend
    np.testing.assert_allclose(band(figure.axes[1])[2], np.array([1, 2, 4]) + 1 + 1)


@pytest.mark.parametrize(("runs", "dots", "bands"), [(1, 0, 1), (2, 1, 0), (3, 0, 1)])
def test_two_runs_are_dots(runs, dots, bands):
    """A band of one has no width; of two, the standard deviation says nothing that the dots do not say better."""
    axis = plots.figure2(ends(runs=runs)).axes[0]
    assert (len(axis.lines), len(axis.collections)) == (1 + dots, bands)
    if dots:
        assert sorted(axis.lines[1].get_xydata().tolist()) == [[d, d + r] for d in (1, 2, 4) for r in (0, 1)]
    assert plots.figure1(history(runs=2)).axes[0].get_legend_handles_labels()[1] == [
        *(f"{n} (ReLU)" for n in (3, 4, 5)),
        *"6789",
    ]


def test_class_means_are_pictures_of_gram_matrices():
    grams = {layer: np.diag(np.arange(1.0, 11)) for layer in (6, 7, 8, 9)}
    figure = plots.class_means(grams, (6, 7, 8, 9), relu_layers=6, title="quick")
    pictures = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in pictures] == ["Z6 before its ReLU", "Z7", "Z8", "Z9"]
    assert pictures[0].images[0].get_array().max() == 1


def drawn(axis):
    """The y values of every line."""
    return [list(line.get_ydata()) for line in axis.lines]


COLUMNS = {
    plots.figure2: ("nc1_last", "nc1_first", "nc2_last", "nc2_first", "nc3"),
    plots.figure3: ("balancedness_min", "balancedness_mean", "negativity_min", "negativity_mean"),
}


@pytest.mark.parametrize("draw", COLUMNS)
def test_every_panel_draws_its_own_column_and_the_mean_of_the_runs(draw):
    names = sorted({name for columns in COLUMNS.values() for name in columns})
    rows = [{"depth": d, "run": r} | {name: 10.0 ** (i + 1) + d * r**2 for i, name in enumerate(names)}
            for d in (1, 2) for r in (0, 1, 4)]  # fmt: skip
    second = pd.DataFrame(rows).assign(**{name: 7.0 + i for i, name in enumerate(names)})
    figure = draw(pd.DataFrame(rows), "", second)
    for axis, column in zip(figure.axes, COLUMNS[draw], strict=True):
        at = names.index(column)
        mine, other = drawn(axis)
        np.testing.assert_allclose(mine, [10.0 ** (at + 1) + d * 17 / 3 for d in (1, 2)])  # the median would be d
        np.testing.assert_allclose(other, [7.0 + at] * 2)  # each result from its own table


def test_every_panel_over_training_draws_its_own_column():
    columns = ("nc1", "nc2", "balancedness_relative", "negativity")
    frame = history(runs=1).assign(**{name: 10.0 + i for i, name in enumerate(columns)})
    for number, axis in enumerate(plots.figure1(frame).axes):
        assert axis.lines and all(value == 10.0 + number for line in drawn(axis) for value in line)


def test_a_second_result_lies_thin_and_pale_behind_the_first_and_has_no_label():
    second = history(runs=2).assign(nc1=lambda f: 7.0 + f["layer"] + f["run"])
    alone, both = (plots.figure4(history(), "quick", *more) for more in ((), (second,)))
    for one, two in zip(alone.axes, both.axes, strict=True):
        pale = [line for line in two.lines if line.get_alpha()]
        first = [line for line in two.lines if line not in pale]
        assert len(pale) == len(first) == len(one.lines) and len(two.collections) == len(one.collections)
        assert all(a.get_color() == b.get_color() for a, b in zip(pale, first, strict=True))
        assert all(a.get_linewidth() < b.get_linewidth() for a, b in zip(pale, first, strict=True))
        assert [text.get_text() for text in two.texts] == [text.get_text() for text in one.texts]
    pale = [line.get_ydata() for line in both.axes[0].lines if line.get_alpha()]
    np.testing.assert_allclose(pale, [[7.5 + layer] * 3 for layer in range(3, 10)])
    with pytest.raises(ValueError, match=r"split must be one with rows, \['test'\]; got 'train'"):
        plots.figure4(history(), "", second.assign(split="test"))


def test_every_picture_of_class_means_is_that_of_its_layer():
    grams = {layer: np.diag([1.0, layer / 10]) for layer in (3, 5, 7)}
    figure = plots.class_means(grams, (3, 5, 7), relu_layers=3)
    pictures = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert [picture[1, 1] for picture in pictures] == [0.3, 0.5, 0.7]


def test_lines_are_labelled_at_their_ends_and_the_drop_is_marked():
    result = experiments.load_archive("1", "cores")
    figure = plots.over_training(result, "archived")
    figure.canvas.draw()
    for axis in figure.axes:
        lines = {line.get_label().split()[0]: line for line in axis.get_lines() if not line.get_label().startswith("_")}
        texts = {text.get_text(): text for text in axis.texts}
        assert texts.keys() == lines.keys()
        assert all(texts[name].get_color() == line.get_color() for name, line in lines.items())
        assert all(tuple(texts[name].xy) == tuple(line.get_xydata()[-1]) for name, line in lines.items())
        order = sorted(lines, key=lambda name: lines[name].get_ydata()[-1])
        points = 72 / figure.dpi
        places = [axis.transData.transform(texts[n].xy)[1] * points + texts[n].get_position()[1] for n in order]
        assert min(np.diff(places)) > 5  # the layout has moved the panels since they were placed 8 apart
        drops = [line for line in axis.get_lines() if line.get_label().startswith("_") and line.get_linestyle() == ":"]
        spec = result.provenance["specification"]
        assert [line.get_xdata()[0] for line in drops] == [spec["drop_at"] * result.frame["step"].max()]
    assert not any(line.get_linestyle() == ":" for axis in plots.over_training(history()).axes for line in axis.lines)


def test_labels_that_would_lie_on_each_other_are_moved_apart_about_their_middle():
    figure, axis = plt.subplots(figsize=(4, 3), layout="none")
    for number, height in enumerate((0.5, 0.5, 0.5, 0.9)):
        axis.plot([0, 1], [0, height], label=str(number))
    axis.set(ylim=(0, 1))
    plots._label_ends(axis, gap=10)
    moved = {text.get_text(): text.get_position()[1] for text in axis.texts}
    np.testing.assert_allclose(sorted(moved[n] for n in "012"), [-10, 0, 10], atol=1e-6)
    assert abs(moved["3"]) < 1e-6
    plt.close(figure)


def test_panels_of_one_quantity_share_their_axis_and_no_others_do():
    """NC1 behind the head and before it have one scale, written once; NC3 has its own."""
    figure = plots.figure2(ends(), "")
    owners = {axis.get_title(): axis for axis in figure.axes}
    shared = [[b for b in figure.axes if b is not a and a.get_shared_y_axes().joined(a, b)] for a in figure.axes]
    names = [column.partition("_")[0] for column in COLUMNS[plots.figure2]]
    assert [len(others) for others in shared] == [names.count(name) - 1 for name in names] and len(owners) > 1
    for axis, name, place in zip(figure.axes, names, range(len(names)), strict=True):
        labelled = axis.yaxis.get_tick_params().get("labelleft", True)
        assert labelled is (names.index(name) == place)
