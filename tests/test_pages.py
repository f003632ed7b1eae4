"""What tools/pages.py does to the written pages."""

import json

import numpy as np
import pytest

from tools import draw_explore, pages

HEAD = """<html><head>
    <script src="../_static/vendor/fontawesome/6.5.2/js/all.min.js?digest=1"></script>
    <link rel="stylesheet" href="../_static/vendor/fontawesome/6.5.2/css/all.min.css" />
    <link rel="preload" as="font" crossorigin href="../_static/vendor/fontawesome/6.5.2/webfonts/fa-solid-900.woff2" />
    <script>const A = "x";</script>
    <script src="a.js"></script>
    <script>const A = "x";</script>
</head><body><script>const A = "x";</script></body></html>"""


def test_a_script_of_the_head_is_loaded_once_and_font_awesome_as_a_style_sheet_only():
    page = pages.lightened(HEAD)
    head, _, body = page.partition("</head>")
    assert head.count('const A = "x"') == 1 and body.count('const A = "x"') == 1
    assert "all.min.js" not in page and "preload" not in page and "all.min.css" in page and 'src="a.js"' in page
    assert pages.lightened(page) == page


def test_a_page_is_described_by_its_first_plain_paragraph():
    from docutils import nodes
    from docutils.utils import new_document

    document = new_document("page")
    document += nodes.paragraph("", "short")
    document += nodes.paragraph("", "with $x$ a formula that is long enough to be taken for a description of the page")
    document += nodes.paragraph("", "word " * 100)
    found = pages.describe(document)
    assert found.startswith("word word") and len(found) <= 200 and found.endswith("…")
    assert pages.describe(None) == pages.DEFAULT


def test_a_claim_leads_from_the_ledger_to_its_cell_and_back():
    row = "<tr id='claim-F2-a' data-page='07_head'><td data-head='claim'><b class='claim-id'>F2-a</b> x</td></tr>"
    assert "<b class='claim-id'><a href=\"07_head.html#claim-F2-a\">F2-a</a></b>" in pages.linked(row, "09_ledger")
    chapter = "<table class='claims'><tbody><tr><td>F2-a</td><td>x</td></tr></tbody></table><td>F2-a</td>"
    found = pages.linked(chapter, "07_head")
    assert found.count("<tr id='claim-F2-a'><td><a href='09_ledger.html#claim-F2-a'>F2-a</a></td>") == 1
    assert found.endswith("<td>F2-a</td>") and pages.linked(found, "07_head") == found


def test_reading_times_count_prose_alone(tmp_path):
    words = " ".join(["word"] * 460)
    cells = [
        {"cell_type": "markdown", "source": [f"# {words}\n$$\nx x x x\n$$\n"]},
        {"cell_type": "code", "source": [words]},
    ]
    (tmp_path / "03_a.ipynb").write_text(json.dumps({"cells": cells}))
    (tmp_path / "03b_more.md").write_text(f"{words}\n```{{code-cell}} python\n{words}\n```\n")
    (tmp_path / "index.md").write_text(words)
    assert len(pages.prose(tmp_path / "03_a.ipynb").split()) == 460
    assert pages.minutes(tmp_path, "03_a") == pages.minutes(tmp_path, "all") == 4
    assert pages.minutes(tmp_path, "03b_more") == 4
    with pytest.raises(ValueError, match="must name a page"):
        pages.minutes(tmp_path, "07_none")


def test_the_still_frame_of_the_interactive_figure_obeys_the_law():
    times, products, gaps = draw_explore.descend(0.1, 0.001, 3)
    np.testing.assert_allclose(gaps, np.exp(-0.2 * times), rtol=5e-3)
    assert products[-1] == pytest.approx(products[-1][0])
