"""Sphinx extension: absolute values in docstrings, |x|, are not reStructuredText substitutions."""

import re


def escape_bars(app, what, name, obj, options, lines) -> None:
    # Literals (``...``) keep their bars.
    lines[:] = [re.sub(r"(``.*?``)|\|", lambda m: m[1] or r"\|", line) for line in lines]


def setup(app):
    # After napoleon (500), which reads the docstring's own layout.
    app.connect("autodoc-process-docstring", escape_bars, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
