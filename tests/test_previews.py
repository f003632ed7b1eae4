"""What links to statements, equations and terms show: collected from the built pages, without what cannot be shown."""

import json
from types import SimpleNamespace

from tools import previews

PAGE = """<html><body><article>
<div class="proof theorem admonition" id="thm-a"><p class="admonition-title">Theorem A</p>
<section id="proof-content"><p>Let <span class="math">\\(x\\)</span>, see <a href="b.html#c">there</a>.</p>
<div class="math" id="equation-e"><span class="eqno">(1)<a class="headerlink" href="#equation-e">#</a></span>y</div>
<details><summary>Proof</summary>long</details></section></div>
<dl class="glossary"><dt id="term-head">head</dt><dd><p>The linear layers.</p></dd></dl>
<div class="math">\\[z\\]</div>
</article></body></html>"""


def test_statements_equations_and_terms_are_found_by_page_and_anchor(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book" / "a.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "index.html").write_text("<p>nothing</p>", encoding="utf-8")
    found = previews.previews(tmp_path)
    assert sorted(found) == ["book/a.html#equation-e", "book/a.html#term-head", "book/a.html#thm-a"]
    statement = found["book/a.html#thm-a"]
    assert "see there." in statement and "<a" not in statement and "id=" not in statement and "Proof" not in statement
    assert "(1)" in found["book/a.html#equation-e"] and "headerlink" not in found["book/a.html#equation-e"]
    assert "linear layers" in found["book/a.html#term-head"]


def test_they_are_written_as_a_script_after_a_build_of_pages(tmp_path):
    (tmp_path / "_static").mkdir()
    (tmp_path / "a.html").write_text(PAGE, encoding="utf-8")
    app = SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="html"))
    previews.write(app, ValueError("a failed build"))
    previews.write(SimpleNamespace(outdir=tmp_path, builder=SimpleNamespace(format="latex")), None)
    script = tmp_path / "_static" / "previews-data.js"
    assert not script.exists()
    previews.write(app, None)
    text = script.read_text(encoding="utf-8")
    assert set(json.loads(text.removeprefix("window.PREVIEWS = ").rstrip(";\n"))) == set(previews.previews(tmp_path))
