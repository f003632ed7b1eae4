"""ncutils.plots: panels in the paper's order, means and bands that are means and bands, titles that say the size."""

import sys
import types

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


# --- looks: sizes that are legible on a page, lines that can be told apart


def test_the_style_has_the_sizes_of_a_page():
    sizes = {
        "axes.titlesize": 11,
        "axes.labelsize": 10,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.fontsize": 8.5,
        "legend.title_fontsize": 9,
        "figure.titlesize": 11,
        "grid.linewidth": 0.6,
        "figure.constrained_layout.use": True,
    }
    assert {name: matplotlib.rcParams[name] for name in sizes} == sizes
    assert (matplotlib.rcParams["svg.hashsalt"], matplotlib.rcParams["axes.edgecolor"]) == ("ncutils", "0.3")


@pytest.mark.parametrize(
    ("shell", "asked"),
    [
        (types.SimpleNamespace(kernel=3), [(("svg",), {"metadata": {"Date": None}})]),
        (types.SimpleNamespace(), []),  # a terminal
        (None, []),
    ],
)
def test_pictures_are_svg_without_a_date_in_a_notebook_only(monkeypatch, shell, asked):
    seen = []
    inline = types.ModuleType("matplotlib_inline.backend_inline")
    inline.set_matplotlib_formats = lambda *formats, **options: seen.append((formats, options))
    monkeypatch.setitem(sys.modules, "matplotlib_inline", types.ModuleType("matplotlib_inline"))
    monkeypatch.setitem(sys.modules, "matplotlib_inline.backend_inline", inline)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    plots.style()
    assert seen == asked
    monkeypatch.delitem(sys.modules, "IPython")
    plots.style()
    assert seen == asked


def test_panels_over_training_stand_two_by_two_on_one_axis_of_steps():
    figure = plots.figure1(history())
    assert figure.get_size_inches().tolist() == [9.0, 5.6]
    places = [axis.get_subplotspec().get_geometry() for axis in figure.axes]
    assert places == [(2, 2, n, n) for n in range(4)]
    first = figure.axes[0]
    assert all(first.get_shared_x_axes().joined(first, axis) for axis in figure.axes[1:])
    assert [axis.get_xlabel() for axis in figure.axes] == ["", "", "training step", "training step"]
    assert {axis.get_xscale() for axis in figure.axes} == {"log"}
    assert figure.legends[0].get_title().get_text() == "layer"


def test_relu_layers_are_dashed_and_linear_ones_full_from_light_to_dark():
    axis = plots.figure1(history(), "", history(runs=1)).axes[0]
    lines = {line.get_label(): line for line in axis.lines if not line.get_label().startswith("_")}
    assert [line.get_linestyle() for line in lines.values()] == ["--"] * 3 + ["-"] * 4
    patterns = [line._unscaled_dash_pattern for line in lines.values()]
    assert patterns == [(0, (4, 1.5))] * 3 + [(0, None)] * 4
    light = [sum(matplotlib.colors.to_rgb(line.get_color())) for line in lines.values()]
    assert len({line.get_color() for line in lines.values()}) == 7 and light[0] > light[-1]
    pale = [line for line in axis.lines if line.get_label().startswith("_")]
    assert [line.get_linestyle() for line in pale] == ["--"] * 3 + ["-"] * 4
    assert {(line.get_linewidth(), line.get_alpha()) for line in pale} == {(0.9, 0.55)}


@pytest.mark.parametrize(("last", "shown"), [(1, "9"), (2, "89"), (5, "56789"), (9, "123456789"), (20, "123456789")])
def test_as_many_last_layers_are_drawn_as_are_asked_for(last, shown):
    frame = pd.concat([history(runs=1), history(runs=1, layers=1).assign(layer=0)])  # 0 is the backbone's output
    axis = plots.over_training(frame, last=last).axes[0]
    assert [line.get_label().split()[0] for line in axis.lines] == list(shown)


def test_over_training_refuses_what_shows_nothing():
    with pytest.raises(ValueError, match="last must be at least 1; got 0"):
        plots.over_training(history(), last=0)
    with pytest.raises(ValueError, match=r"frame must have the columns split, .*; got none of nc1"):
        plots.over_training(history().drop(columns="nc1"))
    with pytest.raises(ValueError, match=r"other must have the columns split, .*; got none of nc1"):
        plots.over_training(history(), other=history().drop(columns="nc1"))
    with pytest.raises(ValueError, match=r"split must be one with rows, \['train'\]; got 'test'"):
        plots.over_training(history(), split="test")
    with pytest.raises(ValueError, match="split must be one with rows"):
        plots.over_training(history()[lambda frame: frame["step"] == 0])


def test_a_layer_without_numbers_is_left_out_and_those_behind_it_are_not():
    frame = history()
    hole = frame.assign(
        nc2=frame["nc2"].mask(frame["layer"] == 5), negativity=frame["negativity"].mask(frame["layer"] == 3)
    )
    _, nc2, _, negativity = plots.figure1(hole).axes
    assert [line.get_label() for line in nc2.lines] == ["3 (ReLU)", "4 (ReLU)", "6", "7", "8", "9"]
    assert [line.get_label() for line in negativity.lines] == ["4 (ReLU)", "5 (ReLU)"]


@pytest.mark.parametrize(("largest", "scale"), [(9.0, "linear"), (10.0, "linear"), (10.5, "log"), (1000.0, "log")])
def test_an_axis_is_logarithmic_where_the_values_shown_span_a_decade(largest, scale):
    frame = history(runs=1).assign(nc1=1.0, nc2=1.0, balancedness_relative=1.0, negativity=1.0)
    columns = ["nc1", "nc2", "balancedness_relative", "negativity"]
    frame.loc[(frame["step"] == 100) & (frame["layer"] == 5), columns] = largest
    frame.loc[frame["layer"] == 1, columns] = 1e5  # not shown
    figure = plots.figure1(frame)
    assert [axis.get_yscale() for axis in figure.axes] == [scale] * 3 + ["linear"]


@pytest.mark.parametrize(
    ("specification", "drops"),
    [({"drop_at": 0.5}, [50.0]), ({"drop_at": 0.99}, [99.0]), ({"drop_at": 1.0}, []), ({}, [])],
)
def test_a_fall_of_the_step_size_is_marked_where_the_provenance_says_so(specification, drops):
    frame = history()
    frame.attrs = {"provenance": {"specification": specification}}
    figure = plots.figure1(frame)
    for axis in figure.axes:
        marks = [line for line in axis.lines if line.get_linestyle() == ":"]
        assert [float(line.get_xdata()[0]) for line in marks] == drops
        assert all((line.get_linewidth(), line.get_color()) == (0.8, "0.5") for line in marks)
    words = "training step (dotted: the step size falls)" if drops else "training step"
    assert [axis.get_xlabel() for axis in figure.axes[2:]] == [words] * 2


def labelled(heights, **options):
    """How far the labels are moved from the ends of lines at these heights, in points, and the labels themselves."""
    figure = plt.figure(figsize=(2, 3), layout="none", dpi=150)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, 2), ylim=(0, 216))  # an inch is 72 points
    for number, height in enumerate(heights):
        axis.plot([0, 1], [100, height], label=f"{number} more")
    plots._label_ends(axis, **options)
    moved = {text.get_text(): text.get_position()[1] for text in axis.texts}
    return [moved[str(number)] for number in range(len(heights))], axis


@pytest.mark.parametrize(
    ("heights", "options", "moved"),
    [
        ([50], {}, [0]),
        ([50, 50], {}, [-4, 4]),  # eight points apart
        ([50, 58], {}, [0, 0]),
        ([50, 57], {}, [-0.5, 0.5]),
        ([0, 1, 30, 31, 32, 200], {"gap": 10}, [-4.5, 4.5, -9, 0, 9, 0]),
        ([200, 31, 1, 32, 0, 30], {"gap": 10}, [0, 0, 4.5, 9, -4.5, -9]),
        ([100, 112, 113, 114, 115], {"gap": 10}, [-9.2, -11.2, -2.2, 6.8, 15.8]),  # the last ones push the first down
        ([20, 45, 46, 47, 80], {"gap": 12}, [0, -11, 0, 11, 0]),
    ],
)
def test_labels_are_moved_no_further_than_they_must(heights, options, moved):
    """The nearest places to the ends that are so far apart, in the order of the ends."""
    found, axis = labelled(heights, **options)
    np.testing.assert_allclose(found, moved, atol=1e-6)
    assert {(text.get_position()[0], text.get_fontsize(), text.get_va()) for text in axis.texts} == {(3, 7, "center")}
    assert all(text.get_annotation_clip() is False for text in axis.texts)


def test_labels_stand_at_the_last_finite_point_of_lines_that_have_a_label():
    _, axis = labelled([10, 100])
    axis.texts[0].remove()
    axis.texts[0].remove()
    axis.lines[0].set_data([0, 1, 2], [5, 6, np.nan])
    axis.plot([0, 1], [50, 50], label="_hidden")
    axis.plot([0], [np.nan], label="nothing")
    plots._label_ends(axis)
    assert [(text.get_text(), tuple(text.xy)) for text in axis.texts] == [("0", (1, 6)), ("1", (1, 100))]


def test_class_means_are_divided_by_their_largest_entry_of_either_sign():
    gram = np.array([[1.0, -4.0, 0.5, 0, 0], [-4, 2, 0, 0, 0], [0.5, 0, 3, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]])
    figure = plots.class_means({2: gram, 3: 7 * gram}, (2, 3), relu_layers=2, title="quick")
    pictures = [axis for axis in figure.axes if axis.images]
    assert [axis.get_title() for axis in pictures] == ["Z2 before its ReLU", "Z3"]
    for axis in pictures:
        np.testing.assert_allclose(axis.images[0].get_array(), gram / 4)
        assert axis.images[0].get_clim() == (-1, 1)
        assert axis.get_xticks().tolist() == axis.get_yticks().tolist() == [0, 3]
        assert axis.get_xlabel() == "class"
    assert [axis.get_ylabel() for axis in pictures] == ["class", ""]
    assert figure.get_size_inches() == pytest.approx([9, 0.75 + 9 / 2.7]) and figure.get_suptitle() == "quick"
    assert not any(line.get_visible() for axis in pictures for line in axis.get_xgridlines())
    (bar,) = [axis for axis in figure.axes if not axis.images and axis not in pictures]
    assert bar.get_ylabel() == "inner product"
    figure.canvas.draw()
    assert bar.get_position().height == pytest.approx(0.7 * pictures[0].get_position(original=True).height, rel=0.02)


def test_class_means_refuse_layers_that_are_not_there():
    grams = {layer: np.eye(2) for layer in (2, 3)}
    with pytest.raises(ValueError, match=r"layers must be among \[2, 3\]; got 4"):
        plots.class_means(grams, (2, 4, 5), relu_layers=2)
    with pytest.raises(ValueError, match="layers must hold at least 1; got 0"):
        plots.class_means(grams, (), relu_layers=2)
    assert len([a for a in plots.class_means(grams, (3,), relu_layers=2).axes if a.images]) == 1


def test_panels_against_depth_have_their_scales_and_their_ticks():
    figure = plots.figure2(ends(), "", ends(depths=(1, 3)))
    assert [axis.get_yscale() for axis in figure.axes] == ["log", "log", "linear", "linear", "linear"]
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "within / between variance", "", "condition number", "", "mean cosine"
    ]  # fmt: skip
    assert all(axis.get_xticks().tolist() == [1, 2, 3, 4] for axis in figure.axes)  # those of both results
    assert figure.get_size_inches().tolist() == [9.0, 3.0]
    lines = figure.axes[0].lines
    assert [line.get_linestyle() for line in lines] == ["-", "--"] and [line.get_marker() for line in lines] == [
        "o",
        "s",
    ]
    assert lines[0].get_color() != lines[1].get_color() and {line.get_markersize() for line in lines} == {4}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["this run", "archive"]
    assert figure.legends[0]._ncols == 2 and figure._supxlabel.get_fontsize() == 10
    axis = figure.axes[0]
    axis.set_ylim(0.9, 110)
    assert [t for t in axis.yaxis.get_major_locator()() if 0.9 <= t <= 110] == pytest.approx([1, 2, 5, 10, 20, 50, 100])
    assert axis.yaxis.get_major_formatter()(0.5, 0) == "0.5" and len(axis.yaxis.get_minorticklocs()) == 0
    assert [axis.get_yscale() for axis in plots.figure3(ends()).axes] == ["linear"] * 4
    assert plots.figure3(ends())._supxlabel.get_text() == "non-linear layers"


@pytest.mark.parametrize("draw", [plots.figure2, plots.figure3])
def test_figures_against_depth_refuse_tables_without_their_columns(draw):
    name = COLUMNS[draw][-1]
    with pytest.raises(ValueError, match=f"must have the columns depth, .*; got none of {name}"):
        draw(ends().drop(columns=name))
    with pytest.raises(ValueError, match=f"other must have the columns depth, .*; got none of {name}"):
        draw(ends(), "", ends().drop(columns=name))
    with pytest.raises(ValueError, match="names must be a pair; got"):
        draw(ends(), "", ends(), ("one",))


@pytest.mark.parametrize(
    ("values", "low"),
    [
        ((1.0, 1.0, 10.0), 0.4),  # of a positive mean, no lower than a tenth
        ((0.1, 0.1, 1.0), 0.04),
        ((3.0, 4.0, 5.0), 3.0),
        ((-1.0, 0.0, 1.0), -1.0),
        ((-3.0, -2.0, -1.0), -3.0),
    ],
)
def test_a_band_ends_at_a_tenth_of_a_mean_that_is_positive(values, low):
    frame = ends(depths=(1, 2)).assign(nc3=list(values) * 2)
    axis = plots.figure2(frame).axes[4]
    mean, spread = np.mean(values), np.std(values, ddof=1)
    _, lows, highs = band(axis)
    np.testing.assert_allclose(lows, [low] * 2, atol=1e-12)
    np.testing.assert_allclose(highs, [mean + spread] * 2)
    assert (axis.collections[0].get_alpha(), axis.collections[0].get_linewidth().tolist()) == (0.2, [0])


def test_one_mean_that_is_not_positive_leaves_every_band_as_it_is():
    frame = ends(depths=(1, 2)).assign(nc3=[1.0, 1.0, 10.0, -1.0, 0.0, 1.0])
    np.testing.assert_allclose(band(plots.figure2(frame).axes[4])[1], [4 - np.std([1, 1, 10], ddof=1), -1], atol=1e-12)


def test_dots_of_two_runs_are_small_and_pale():
    axis = plots.figure2(ends(runs=2)).axes[0]
    dots = axis.lines[1]
    assert (dots.get_markersize(), dots.get_alpha(), dots.get_marker(), dots.get_linestyle()) == (3, 0.5, ".", "None")
    uneven = pd.concat([ends(depths=(1,), runs=2), ends(depths=(2,), runs=3)])
    assert len(plots.figure2(uneven).axes[0].collections) == 1  # more than two of one depth have a band


# --- bounds


def checks(x="step", at=(0, 9, 99), forms=("sharp", "simple", "paper")):
    """Rows of three forms in no order of theirs; met from the second place on, vacuous at the third."""
    return pd.DataFrame([
        {x: place, "form": form, "measured": 1.0 / (1 + number), "bound": (2.0 + height) / (1 + number),
         "hypotheses_met": number > 0, "vacuous": number == 2}
        for height, form in enumerate(forms)
        for number, place in reversed(list(enumerate(at)))
    ])  # fmt: skip


def test_bounds_are_drawn_from_the_first_step_on_in_the_order_of_the_forms():
    figure = plots.bounds(checks(), "NC1")
    axis, strip = figure.axes
    assert figure.get_size_inches().tolist() == pytest.approx([8, 4.4])
    assert axis.get_gridspec().get_height_ratios() == [5, 1] and axis.get_shared_x_axes().joined(axis, strip)
    assert [line.get_label() for line in axis.lines] == [
        "measured",
        *(f"bound, {f} form" for f in ("paper", "simple", "sharp")),
    ]
    for line, top in zip(axis.lines, (None, 4, 3, 2), strict=True):
        assert line.get_xdata().tolist() == [1, 10, 100]  # step + 1
        expected = [1, 1 / 2, 1 / 3] if top is None else [np.nan, top / 2, top / 3]
        np.testing.assert_allclose(line.get_ydata(), expected)
    assert [line.get_linewidth() for line in axis.lines] == [2.2, 1.8, 1.8, 1.8]
    assert [line.get_linestyle() for line in axis.lines] == ["-", ":", "--", "-"]
    assert [line.get_marker() for line in axis.lines] == ["None", ".", ".", "."]
    assert len({line.get_color() for line in axis.lines}) == 4 and axis.lines[0].get_color() == "black"
    assert (axis.get_xscale(), axis.get_yscale(), axis.get_ylabel()) == ("log", "log", "NC1")
    assert axis.get_legend()._ncols == 2 and {t.get_fontsize() for t in axis.get_legend().get_texts()} == {9}


def test_the_strip_below_the_bounds_shows_where_each_form_says_something():
    figure = plots.bounds(checks())
    axis, strip = figure.axes
    assert strip.get_yticks().tolist() == [0, 1, 2] and strip.get_ylim() == pytest.approx((2.6, -0.6))
    assert [t.get_text() for t in strip.get_yticklabels()] == ["paper form", "simple form", "sharp form"]
    assert strip.get_xlabel() == "step + 1   (filled: says something; empty: vacuous; cross: silent)"
    parts = iter(strip.collections)
    for height, line in enumerate(axis.lines[1:]):
        full, empty, silent = next(parts), next(parts), next(parts)
        assert full.get_offsets().tolist() == [[10, height]] and empty.get_offsets().tolist() == [[100, height]]
        assert silent.get_offsets().tolist() == [[1, height]]
        assert [part.get_sizes().tolist() for part in (full, empty, silent)] == [[28], [28], [18]]
        assert matplotlib.colors.same_color(full.get_facecolor()[0], line.get_color())
        assert len(empty.get_facecolor()) == 0 and matplotlib.colors.same_color(
            empty.get_edgecolor()[0], line.get_color()
        )
        assert silent.get_linewidth().tolist() == [1]
    assert not any(line.get_visible() for line in strip.get_xgridlines())


def test_bounds_along_something_else_and_on_an_axis_of_ones_own():
    figure = plots.bounds(checks(x="depth", at=(1, 2, 4)), x="depth", log=False)
    axis, strip = figure.axes
    assert axis.lines[0].get_xdata().tolist() == [1, 2, 4] and axis.get_yscale() == "linear"
    assert strip.get_xlabel() == "depth   (filled: says something; empty: vacuous; cross: silent)"
    assert strip.collections[0].get_offsets().tolist() == [[2, 0]]
    mine, axis = plt.subplots()
    assert plots.bounds(checks(forms=("simple",)), axis=axis) is mine and mine.axes == [axis]
    assert [line.get_label() for line in axis.lines] == ["measured", "bound, simple form"]
    assert axis.lines[1].get_linestyle() == "--"
    with pytest.raises(ValueError, match="x must be a column of rows; got 'depth'"):
        plots.bounds(checks(), x="depth")
    with pytest.raises(ValueError, match="rows must have rows; got none"):
        plots.bounds(checks()[:0])
    with pytest.raises(ValueError, match=r"rows must have the columns measured, .*; got none of vacuous"):
        plots.bounds(checks().drop(columns="vacuous"))
