"""What a figure draws, as numbers beside the picture: a picture itself is never the same twice, these numbers are.

Started in the kernels that execute or validate the book (:func:`ipython_folder`), this file makes every matplotlib
figure that is shown carry one more media type, which :mod:`compare` reads. Plain Jupyter is not touched.

For each panel: its words, its limits, and for each curve, band, bar, cloud of points or image the number of its points
and where up to a dozen of them lie, as fractions of the panel (so on a logarithmic axis distances are ratios). The
precision, 1e-4 of a panel, is a tenth of a pixel: far above what another processor changes in float64.
"""

import json
import math
import os
from pathlib import Path

MEDIA_TYPE = "application/vnd.ncutils.figure+json"
SAMPLES = 12  # points kept of each artist


def describe(figure) -> dict:
    """The figure's panels as words and numbers."""
    words = [*figure.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    return {"words": [t.get_text() for t in words if t.get_text()], "panels": [_panel(a) for a in figure.axes]}


def _panel(axis) -> dict:
    limits = [_limits(axis.get_xlim(), axis.get_xscale()), _limits(axis.get_ylim(), axis.get_yscale())]
    from_page = axis.transAxes.inverted()
    words = [axis.title, axis.xaxis.label, axis.yaxis.label, *axis.texts]
    if axis.get_legend() is not None:
        words += [axis.get_legend().get_title(), *axis.get_legend().get_texts()]
    artists = []
    for line in axis.lines:
        artists.append(["line", *_where(line.get_xydata(), line.get_transform() + from_page)])
    for patch in axis.patches:
        artists.append(["patch", *_where(patch.get_path().vertices, patch.get_transform() + from_page)])
    for collection in axis.collections:
        for path in collection.get_paths() if not len(collection.get_offsets()) > 1 else ():
            artists.append(["path", *_where(path.vertices, collection.get_transform() + from_page)])
        if len(collection.get_offsets()) > 1:
            artists.append(["points", *_where(collection.get_offsets(), collection.get_offset_transform() + from_page)])
        if collection.get_array() is not None:
            artists.append(["colours", *_colours(collection)])
    for image in axis.images:
        artists.append(["image", *_colours(image)])
    return {
        "words": [t.get_text() for t in words if t.get_text()],
        "limits": limits,
        "artists": json.dumps(artists),
    }  # one line


def _where(points, transform) -> list:
    """How many points, and a few of them as fractions of the panel."""
    import numpy as np

    points = np.ma.filled(np.ma.asarray(points, dtype=float), np.nan).reshape(-1, 2)
    with np.errstate(all="ignore"):
        return _few(transform.transform(points))


def _colours(artist) -> list:
    import numpy as np

    values = np.ma.filled(np.ma.asarray(artist.get_array(), dtype=float), np.nan).ravel()
    low, high = artist.get_clim()
    return _few((values - low) / ((high - low) or 1.0) if low is not None else values)


def _few(values) -> list:
    import numpy as np

    kept = values[np.unique(np.linspace(0, len(values) - 1, min(len(values), SAMPLES)).round().astype(int))]
    finite = np.where(np.isfinite(kept), np.clip(kept, -9.0, 9.0), 99.0)  # far outside is outside
    return [len(values), (np.round(finite, 4) + 0.0).tolist()]


def _limits(ends, scale: str) -> list[float]:
    """The ends of an axis to five digits: of their distance on a linear axis, each of its own on another."""
    if scale != "linear":
        return [float(f"{end:.5g}") for end in ends]
    unit = 10.0 ** (math.floor(math.log10(abs(ends[1] - ends[0]) or 1.0)) - 4)
    return [float(f"{round(end / unit) * unit:.12g}") for end in ends]


def install(shell) -> None:
    """Register the media type with an IPython shell."""
    from IPython.core.formatters import JSONFormatter
    from traitlets import Unicode

    class FigureFormatter(JSONFormatter):
        format_type = Unicode(MEDIA_TYPE)
        print_method = Unicode("_repr_figure_data_")

        def pop(self, typ, default=None):  # the inline backend takes figures from all formatters to choose its own
            return default

    formatter = FigureFormatter(parent=shell.display_formatter)
    formatter.for_type_by_name("matplotlib.figure", "Figure", describe)
    shell.display_formatter.formatters[MEDIA_TYPE] = formatter  # the last: the figure has been laid out


def ipython_folder(scratch: Path) -> str:
    """A folder for IPYTHONDIR that starts this file in a kernel (and nothing from the user's own profile)."""
    startup = Path(scratch) / "ipython" / "profile_default" / "startup" / "figure_data.py"
    startup.parent.mkdir(parents=True, exist_ok=True)
    tools = str(Path(__file__).resolve().parent)
    text = f"import sys\nsys.path.insert(0, {tools!r})\nimport figure_data\nsys.path.remove({tools!r})\n"
    text += "figure_data.install(get_ipython())\ndel sys, figure_data\n"  # a page's names are its own
    if not startup.is_file() or startup.read_text(encoding="utf-8") != text:
        draft = startup.with_name(f".{os.getpid()}")
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, startup)
    return str(Path(scratch) / "ipython")
