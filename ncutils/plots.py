"""One function per figure of the paper (arXiv:2410.04887), drawn from the tidy frames of :mod:`ncutils.experiments`.

Panels stand in the paper's order. Lines are means over runs, bands one standard deviation of the sample, as in the
claims; where there are two runs, they are dots, for a standard deviation of two says nothing. Every function returns
the matplotlib figure and takes a ``title``: give it the label that says size, seeds and device of what is drawn.
"""

from __future__ import annotations

import sys

from ncutils._arguments import checked, integer, many, pair, table, text

__all__ = ["bounds", "class_means", "figure1", "figure2", "figure3", "figure4", "figure5", "over_training", "style"]

_TRAINING = ("split", "diverged", "step", "layer", "part", "nc1", "nc2", "balancedness_relative", "negativity")
_ENDS = ("depth", "nc1_last", "nc1_first", "nc2_last", "nc2_first", "nc3")
_HEAD = ("depth", "balancedness_min", "balancedness_mean", "negativity_min", "negativity_mean")
PAGE = 9.0  # inches, the width of a page


def style() -> None:
    """Seaborn's theme with a colour-blind palette, letters legible at page width; in a notebook, pictures as SVG.

    Example:
        >>> style()
    """
    import seaborn as sns

    sns.set_theme(
        context="notebook",
        style="whitegrid",
        palette="colorblind",
        rc={
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "legend.fontsize": 8.5,
            "legend.title_fontsize": 9,
            "figure.titlesize": 11,
            "axes.edgecolor": "0.3",
            "grid.linewidth": 0.6,
            "figure.constrained_layout.use": True,
            "svg.hashsalt": "ncutils",  # the same names in the same figure
        },
    )
    if "IPython" in sys.modules and (shell := sys.modules["IPython"].get_ipython()) and hasattr(shell, "kernel"):
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("svg", metadata={"Date": None})


def figure1(frame, title: str = "", other=None):
    """NC1, NC2, imbalance and negativity of the last 7 layers over training (Figure 1; also Figure 4).

    Args:
        frame, title, other: as in :func:`over_training`.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> figure = figure1(load_archive("1", "cores").frame, "archived")
        >>> [axis.get_title() for axis in figure.axes]
        ['NC1', 'NC2', 'imbalance with the next', 'negativity (ReLU layers)']
    """
    return over_training(frame, title, other=other)


figure4 = figure1


@checked(
    frame=table(*_TRAINING),
    last=integer(least=1),
    other=table(*_TRAINING),
)
def over_training(frame, title: str = "", last: int = 7, split: str = "train", other=None):
    """Four panels against the training step: NC1, NC2, balancedness, negativity of the ``last`` layers.

    ReLU layers are dashed, linear ones full; colours go from the first layer shown (light) to the last (dark).
    Balancedness is the relative one, of each layer and the next. Negativity is that of the pre-activations; in linear
    layers, where nothing is cut off, it only says what a ReLU would do there, so it is left out.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> len(over_training(load_archive("1", "cores").frame, "archived").axes)
        4
    """
    import matplotlib.pyplot as plt

    results = []
    for result in (frame,) if other is None else (frame, other):
        rows = result[(result["split"] == split) & ~result["diverged"] & (result["step"] > 0)]
        if rows.empty:
            raise ValueError(f"split must be one with rows, {sorted(set(result['split']))}; got {split!r}")
        results.append(rows)
    rows, *others = results
    deepest = int(rows["layer"].max())
    layers = range(max(1, deepest - last + 1), deepest + 1)
    colours = dict(zip(layers, _shades(len(layers)), strict=True))
    figure, axes = plt.subplots(2, 2, figsize=(PAGE, 5.6), sharex=True)
    panels = (
        ("nc1", "NC1", "within / between variance", True),
        ("nc2", "NC2", "condition number of means", True),
        ("balancedness_relative", "imbalance with the next", "relative", True),
        ("negativity", "negativity (ReLU layers)", "cut off by ReLU / whole", False),
    )
    for axis, (column, name, unit, logarithmic) in zip(axes.flat, panels, strict=True):
        for layer in layers:
            part = rows[rows["layer"] == layer]
            linear = (part["part"] == "linear").any()
            if part[column].isna().all() or (column == "negativity" and linear):
                continue
            style = "-" if linear else (0, (4, 1.5))
            for pale in others:
                means = pale[pale["layer"] == layer].groupby("step")[column].mean()
                axis.plot(means.index, means, color=colours[layer], linestyle=style, lw=0.9, alpha=0.55, label="_other")
            _band(axis, part, "step", column, colours[layer], style, _layer_name(layer, linear))
        values = rows.loc[rows["layer"].isin(layers), column]
        wide = logarithmic and values.max() > 10 * values.min()  # ticks of a log axis need a decade
        axis.set(xscale="log", title=name, ylabel=unit, yscale="log" if wide else "linear")
        _label_ends(axis)
        if drop := _drop(frame, rows):
            axis.axvline(drop, color="0.5", lw=0.8, ls=":")
    for axis in axes[1]:
        axis.set_xlabel("training step" + (" (dotted: the step size falls)" if _drop(frame, rows) else ""))
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", title="layer")
    figure.suptitle(title)
    return figure


def _drop(frame, rows) -> float | None:
    """The step at which the learning rate falls, where the frame's provenance says it does during the run."""
    provenance = getattr(frame, "provenance", None) or getattr(frame, "attrs", {}).get("provenance") or {}
    at = provenance.get("specification", {}).get("drop_at", 1.0)
    return at * float(rows["step"].max()) if at < 1 else None


def _label_ends(axis, gap: float = 8.0) -> None:
    """Write each line's label beside its last point, in its colour, moved up or down so that labels are ``gap`` points
    apart."""
    import numpy as np

    ends = []
    for line in axis.get_lines():
        points = line.get_xydata()
        points = points[np.isfinite(points).all(1)]
        if len(points) and not line.get_label().startswith("_"):
            ends.append([axis.transData.transform(points[-1])[1], points[-1], line])
    ends.sort(key=lambda end: end[0])
    heights = np.array([end[0] for end in ends]) * 72 / axis.figure.dpi  # in points
    # less the room that those below take, they must not fall: the nearest such numbers, by pooling neighbours
    pools: list[list[float]] = []
    for height in heights - gap * np.arange(len(ends)):
        pools.append([height])
        while len(pools) > 1 and np.mean(pools[-2]) >= np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    places = [float(np.mean(pool)) for pool in pools for _ in pool]
    for number, (place, (_, point, line)) in enumerate(zip(places, ends, strict=True)):
        axis.annotate(
            line.get_label().split()[0],
            point,
            xytext=(3, place + gap * number - heights[number]),
            textcoords="offset points",
            color=line.get_color(),
            fontsize=7,
            va="center",
            annotation_clip=False,
        )


@checked(layers=many(integer(), least=1))
def class_means(grams: dict, layers: tuple[int, ...], relu_layers: int, title: str = ""):
    """The inner products of the class means, one K x K picture a layer, each divided by its largest entry.

    Args:
        grams: of :func:`ncutils.experiments.class_means`.
        layers: which layers; a ReLU layer is shown before its activation.
        relu_layers: L1, the number of ReLU layers, to name them.
        title: what is shown.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> grams = load_archive("1", "cores").class_grams()
        >>> figure = class_means(grams, layers=(6, 9), relu_layers=6)
        >>> [axis.get_title() for axis in figure.axes if axis.images]
        ['Z6 before its ReLU', 'Z9']
    """
    import matplotlib.pyplot as plt

    if lacking := [layer for layer in layers if layer not in grams]:
        raise ValueError(f"layers must be among {sorted(grams)}; got {lacking[0]}")
    figure, axes = plt.subplots(1, len(layers), figsize=(PAGE, 0.75 + PAGE / (len(layers) + 0.7)), squeeze=False)
    for axis, layer in zip(axes[0], layers, strict=True):
        gram = grams[layer] / abs(grams[layer]).max()
        picture = axis.imshow(gram, cmap="RdBu_r", vmin=-1, vmax=1)
        axis.set_title(f"Z{layer} before its ReLU" if layer <= relu_layers else f"Z{layer}")
        axis.set(xlabel="class", xticks=range(0, len(gram), 3), yticks=range(0, len(gram), 3))
        axis.grid(False)
    axes[0, 0].set_ylabel("class")
    figure.colorbar(picture, ax=axes[0].tolist(), shrink=0.7, label="inner product")
    figure.suptitle(title)
    return figure


@checked(
    ends=table(*_ENDS),
    other=table(*_ENDS),
    names=pair(text),
)
def figure2(ends, title: str = "", other=None, names: tuple[str, str] = ("this run", "archive")):
    """NC1 in the last and the first layer of the linear head, NC2 likewise, and NC3, against the head's depth.

    Args:
        ends: of :func:`ncutils.experiments.head_ends`. The last layer is Z_{L-1}, the first Z_{L1}.
        title: size, seeds and device.
        other: a second result to draw beside the first.
        names: what to call the two.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> figure = figure2(load_archive("2-mlp", "cores").head_ends(), "archived")
        >>> len(figure.axes)
        5
    """
    panels = (
        ("nc1_last", "NC1, last layer\n$Z_{L-1}$", "within / between variance", True),
        ("nc1_first", "NC1, first layer\n$Z_{L_1}$", "", True),
        ("nc2_last", "NC2, last layer\n$Z_{L-1}$", "condition number", False),
        ("nc2_first", "NC2, first layer\n$Z_{L_1}$", "", False),
        ("nc3", "NC3\n$Z_{L-1}$ and $W_L$", "mean cosine", False),
    )
    return _against_depth(ends, panels, "linear layers in the head", title, other, names)


figure5 = figure2


@checked(
    table=table(*_HEAD),
    other=table(*_HEAD),
    names=pair(text),
)
def figure3(table, title: str = "", other=None, names: tuple[str, str] = ("this run", "archive")):
    """Least and mean imbalance, least and mean negativity of the head's non-linear layers against their number.

    Args:
        table: of :func:`ncutils.experiments.nonlinear_head`.
        title, other, names: as in :func:`figure2`.

    Example:
        >>> from ncutils.experiments import load_archive
        >>> figure = figure3(load_archive("3", "cores").nonlinear_head(), "archived")
        >>> len(figure.axes)
        4
    """
    panels = (
        ("balancedness_min", "least imbalance", "relative", False),
        ("balancedness_mean", "mean imbalance", "", False),
        ("negativity_min", "minimum negativity", "cut off by ReLU / whole", False),
        ("negativity_mean", "mean negativity", "", False),
    )
    return _against_depth(table, panels, "non-linear layers", title, other, names)


@checked(rows=table("measured", "bound", "form", "hypotheses_met", "vacuous"))
def bounds(rows, label: str = "", *, x: str = "step", log: bool = True, axis=None):
    """A measured quantity and its bounds along training; below, when each form has something to say.

    A bound is drawn where its hypotheses are met. In the strip a square says so, a cross that the form is silent, an
    empty square that its bound is vacuous.

    Args:
        rows: of one quantity, columns ``measured, bound, form, hypotheses_met, vacuous`` and ``x``, as
            :func:`ncutils.theory.along` gives them.
        label: of the vertical axis.
        x: the column along which to draw; steps are drawn as step + 1, on a log axis.
        log: whether the vertical axis is logarithmic.
        axis: draw the upper panel only, into this one.

    Returns:
        The figure.

    Example:
        >>> import pandas as pd
        >>> row = {"measured": 0.1, "bound": 0.5, "form": "sharp", "hypotheses_met": True, "vacuous": False}
        >>> figure = bounds(pd.DataFrame([{"step": step, **row} for step in (1, 10)]), "NC1")
        >>> len(figure.axes)
        2
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    if x not in rows.columns:
        raise ValueError(f"x must be a column of rows; got {x!r}")
    if not len(rows):
        raise ValueError("rows must hold at least one check; got none")
    strip, figure = None, None if axis is None else axis.figure
    if axis is None:
        figure, (axis, strip) = plt.subplots(2, 1, figsize=(8, 4.4), height_ratios=[5, 1], sharex=True)
    forms = [form for form in ("paper", "simple", "sharp") if (rows["form"] == form).any()]
    shift = 1 if x == "step" else 0
    measured = rows.drop_duplicates(x).sort_values(x)  # the same in every form
    axis.plot(measured[x] + shift, measured["measured"], color="black", lw=2.2, label="measured")
    looks = dict(
        zip(
            ("paper", "simple", "sharp"),
            zip(sns.color_palette("colorblind"), (":", "--", "-"), strict=False),
            strict=False,
        )
    )
    for height, form in enumerate(forms):
        part = rows[rows["form"] == form].sort_values(x)
        met, empty, (colour, line) = part["hypotheses_met"].astype(bool), part["vacuous"].astype(bool), looks[form]
        name = f"bound, {form} form" + ("" if met.any() else " (silent)")
        axis.plot(part[x] + shift, part["bound"].where(met), line, color=colour, lw=1.8, marker=".", label=name)
        if strip is None:
            continue
        for some, style in (
            (met & ~empty, {"marker": "s", "s": 28, "color": colour}),
            (met & empty, {"marker": "s", "s": 28, "facecolors": "none", "edgecolors": [colour]}),
            (~met, {"marker": "x", "s": 18, "color": "0.6", "lw": 1}),
        ):
            strip.scatter(part[x][some] + shift, [height] * int(some.sum()), **style)
    axis.set(xscale="log", ylabel=label, yscale="log" if log else "linear")
    axis.legend(ncols=2, fontsize=9)
    if strip is not None:
        names = [f"{form} form" for form in forms]
        strip.set(yticks=range(len(forms)), yticklabels=names, ylim=(len(forms) - 0.4, -0.6))
        strip.set_xlabel(f"{x}{' + 1' if shift else ''}   (filled: says something; empty: vacuous; cross: silent)")
        strip.grid(False)
    return figure


def _against_depth(table, panels, xlabel, title, other, names):
    """One panel a column; those of one quantity share their scale, or a zoom would pass for an effect."""
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib import ticker

    figure, axes = plt.subplots(1, len(panels), figsize=(PAGE, 3.0))
    results = (table,) if other is None else (table, other)
    styles = list(zip(results, names, sns.color_palette("colorblind"), ("-", "--"), "os", strict=False))
    first: dict[str, object] = {}
    for axis, (column, name, unit, logarithmic) in zip(axes, panels, strict=True):
        same = first.setdefault(column.partition("_")[0], axis)
        axis.set(yscale="log" if logarithmic else "linear", ylabel=unit)  # before sharey, which does not bring it
        if same is not axis:
            axis.sharey(same)
            axis.tick_params(labelleft=False)
        for part, result, colour, line, marker in styles:
            _band(axis, part, "depth", column, colour, line, result, marker)
        axis.set(title=name, xticks=sorted({depth for part in results for depth in part["depth"]}))
        if logarithmic:
            axis.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axis.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
            axis.yaxis.set_minor_locator(ticker.NullLocator())
    figure.supxlabel(xlabel, fontsize=10)
    if other is not None:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2)
    figure.suptitle(title)
    return figure


def _layer_name(layer: int, linear: bool) -> str:
    return f"{layer}" if linear else f"{layer} (ReLU)"


def _shades(count: int):
    import seaborn as sns

    return sns.color_palette("viridis_r", count)


def _band(axis, part, x, column, colour, line, name, marker=None) -> None:
    groups = part.groupby(x)[column]
    mean, spread = groups.mean(), groups.std()
    axis.plot(mean.index, mean, color=colour, linestyle=line, marker=marker, markersize=4, label=name)
    if groups.count().max() == 2:
        axis.plot(part[x], part[column], ".", color=colour, markersize=3, alpha=0.5)
        return
    low = (mean - spread).clip(lower=mean / 10) if (mean > 0).all() else mean - spread  # a log axis has no zero
    axis.fill_between(mean.index, low, mean + spread, color=colour, alpha=0.2, linewidth=0)
