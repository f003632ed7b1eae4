"""The built pages in a real browser, where a Chromium is installed: `chromium --headless`, no other dependency.

A copy of each page gets a probe that reports what it sees. One page shows the copies one after the other in a frame,
which can be narrower than the 500 pixels at which headless windows end, and the browser prints what it has collected.
"""

from __future__ import annotations

import functools
import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tools import draw_explore, print_book, stage

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = print_book.browser()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the pages were not looked at")

PAGES = [name.rpartition("/")[2] for name in print_book.pages(ROOT / "_toc.yml")] + ["api", "api_metrics"]
PROBE = f"<script>{Path(__file__).with_name('probe.js').read_text(encoding='utf-8')}</script>"
# Pages whose pictures have no caption and no alternative text yet: only to be made shorter.
UNCAPTIONED: set[str] = set()
VIEWS = [(width, theme) for width in (1280, 400) for theme in ("light", "dark")]
FRAMES = """<!DOCTYPE html><body style="margin:0"><script>
const found = [], views = %s;
function next() {
  if (!views.length) { document.documentElement.dataset.probe = JSON.stringify(found); return; }
  const [address, width] = views.shift(), frame = document.createElement("iframe");
  frame.style = `border:0;width:${width}px;height:900px`;
  const late = setTimeout(() => done("null"), 30000);
  function done(said) { clearTimeout(late); found.push(JSON.parse(said)); frame.remove(); next(); }
  onmessage = (event) => done(event.data);
  frame.src = address;
  document.body.append(frame);
}
next();
</script>"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The pages, built from the committed outputs."""
    folder = tmp_path_factory.mktemp("site")
    stage.stage(folder / "source", "", "main", committed=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", "-W", "-n", "--keep-going", "--all", "-q"]
    command += ["--path-output", str(folder), str(folder / "source")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return folder / "_build" / "html"


def look(page: Path, views: list[tuple[int, str]], query: str = "") -> list[dict]:
    """What the probe saw on one page, in frames of these widths and themes."""
    copy, frames = page.with_name(f"probe-{page.name}"), page.with_name(f"frames-{page.name}")
    if page.name == "search.html":  # it knows itself by its name
        copy = page.with_name("probe") / "search.html"
        copy.parent.mkdir(exist_ok=True)
    text = page.read_text(encoding="utf-8").replace("<head>", f"<head>{PROBE}", 1)
    if copy.parent != page.parent:
        text = text.replace("<head>", '<head><base href="../">', 1)
    copy.write_text(text, encoding="utf-8")
    addresses = [(f"{copy.as_uri()}?theme={theme}{query}", width) for width, theme in views]
    frames.write_text(FRAMES % json.dumps(addresses), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += ["--allow-file-access-from-files", "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1300,950"]
    command += ["--virtual-time-budget=120000", frames.as_uri()]
    seen = subprocess.run(command, capture_output=True, text=True, timeout=300).stdout
    copy.unlink()
    frames.unlink()
    found = re.search(r'data-probe="([^"]*)"', seen)
    assert found, f"{page.name}: the pages never finished loading"
    return json.loads(html.unescape(found[1]))


@functools.cache
def views_of(page: Path) -> dict:
    return dict(zip(VIEWS, look(page, VIEWS), strict=True))


@pytest.mark.parametrize(("width", "theme"), VIEWS)
@pytest.mark.parametrize("name", PAGES)
def test_a_page_as_a_reader_sees_it(site, name, width, theme):
    seen = views_of(site / "book" / f"{name}.html")[width, theme]
    assert seen is not None, "the page never finished loading"
    assert (seen["width"], seen["theme"]) == (width, theme)
    assert seen["errors"] == [], "the console complains"
    assert seen["requests"] == [], "a request leaves the site"
    assert seen["rendered"] == seen["formulas"] and not seen["broken"], "a formula is not rendered"
    assert seen["anchors"] == [], "a link within the page leads nowhere"
    assert seen["images"] == [], "an image is missing"
    if name not in UNCAPTIONED:
        assert seen["wordless"] == [], "an image has no words as alternative text"
        assert seen["uncaptioned"] == [], "an image has no caption"
    assert seen["overflow"] <= 0 and seen["cut"] == [], "something is cut"
    assert seen["folded"] == 0, "a proof does not unfold"
    assert seen["player"] == (name == "index")


def test_the_animation_plays(site):
    assert all(seen["played"] for seen in views_of(site / "book" / "index.html").values())


def test_the_interactive_figure_computes_what_its_python_twin_computes(site):
    seen = views_of(site / "book" / "explore.html")[1280, "light"]["explored"]
    for depth, (product, gap) in zip((2, 3), (seen[:2], seen[2:]), strict=True):
        _, products, gaps = draw_explore.descend(0.1, 0.01, depth)
        assert product == pytest.approx(products[-1][0], rel=1e-9) and gap == pytest.approx(gaps[-1], rel=1e-6)


def test_the_ledgers_table_filters(site):
    for seen in views_of(site / "book" / "09_ledger.html").values():
        everything, some = seen["filtered"]
        assert 0 < some < everything


@pytest.mark.parametrize("name", ["03d_further", "04_global_minimizers", "05_large_learning_rates"])
def test_a_link_to_a_statement_or_an_equation_shows_it(site, name):
    for seen in views_of(site / "book" / f"{name}.html").values():
        text, formulas, rendered, fits, gone = seen["preview"]
        assert len(text) > 20 and 0 < formulas == rendered and fits and gone


def test_the_map_shows_the_ancestors_of_what_is_focused(site):
    nodes, dimmed = views_of(site / "book" / "map.html")[1280, "light"]["dimmed"]
    assert 0 < dimmed < nodes - 3


@pytest.mark.parametrize(
    ("words", "label"),
    [("Theorem 3.1", "thm-3-1-nc1"), ("Theorem 4.4", "thm-4-4"), ("Proposition 5.3", "prop-5-3"), ("NC1", "def-nc1")],
)
def test_the_search_finds_a_statement_first(site, words, label):
    (seen,) = look(site / "search.html", [(1280, "light")], f"&q={words.replace(' ', '+')}")
    assert seen["results"] and seen["results"][0].endswith(f"#{label}")


def test_proofs_unfold_in_print(site, tmp_path):
    """The text of the printed page holds the ends of the proofs, which are folded on the screen."""
    pdftotext = print_book.shutil.which("pdftotext")
    if pdftotext is None:
        pytest.skip("no pdftotext on this machine: the print was not read")
    print_book.print_page(CHROMIUM, site / "book" / "02_sufficient_conditions.html", tmp_path / "page.pdf")
    text = subprocess.run([pdftotext, str(tmp_path / "page.pdf"), "-"], capture_output=True, text=True).stdout
    assert "2. Sufficient conditions" in text and "It suffices to prove the simple form" in " ".join(text.split())


def test_the_first_page_is_light(site):
    """Everything that the first page loads, compressed as servers do."""
    import gzip

    page = site / "book" / "index.html"
    text = page.read_text(encoding="utf-8")
    names = re.findall(r'<(?:script|link|img)[^>]*?(?:src|href)="([^"#?]+\.(?:js|css|svg|png))[^"]*"', text)
    files = {(page.parent / name).resolve() for name in names}
    loaded = sum(len(gzip.compress(path.read_bytes())) for path in files | {page} if path.is_file())
    assert files and loaded < 600_000


def test_the_probe_sees_what_is_wrong(site):
    """A page with a failing script, a missing picture without words, a dead anchor, something cut."""
    page = site / "book" / "clusters.html"
    broken = page.with_name("broken.html")
    wrong = (
        '<script>undefined.x</script><a href="#nowhere">x</a><img src="none.png"><img src="https://example.org/a.png">'
    )
    wrong += '<div style="width:3000px">x</div>'
    broken.write_text(page.read_text(encoding="utf-8").replace("</article>", f"{wrong}</article>", 1), encoding="utf-8")
    (seen,) = look(broken, [(1280, "light")])
    broken.unlink()
    assert len(seen["errors"]) >= 2 and seen["anchors"] == ["nowhere"]
    assert len(seen["images"]) == len(seen["wordless"]) == len(seen["uncaptioned"]) == 2
    assert seen["overflow"] > 0 and seen["cut"]
