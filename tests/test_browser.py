"""The built pages in a real browser, where a Chromium is installed: `chromium --headless`, no other dependency.

A copy of each page gets a probe that writes what it sees into the page; the browser prints the page it has rendered.
"""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import stage

ROOT = Path(__file__).resolve().parents[1]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: the pages were not looked at")

PAGES = ["index", *sorted(path.stem for path in (ROOT / "book").glob("[0-9]*.md")), "clusters", "api"]
PROBE = f"<script>{Path(__file__).with_name('probe.js').read_text(encoding='utf-8')}</script>"


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


def look(page: Path, width: int) -> dict:
    """What the probe saw on one page in a window of this width."""
    copy = page.with_name(f"probe-{width}-{page.name}")
    copy.write_text(page.read_text(encoding="utf-8").replace("<head>", f"<head>{PROBE}", 1), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},900", "--virtual-time-budget=20000"]
    seen = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=120).stdout
    copy.unlink()
    found = re.search(r'data-probe="([^"]*)"', seen)
    assert found, f"{page.name} at {width} pixels: the page never finished loading"
    return json.loads(html.unescape(found[1]))


# Headless Chromium does not make a window narrower than 500 pixels.
@pytest.mark.parametrize("width", [1280, 500])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_as_a_reader_sees_it(site, name, width):
    seen = look(site / "book" / f"{name}.html", width)
    assert seen["errors"] == [], "the console complains"
    assert seen["requests"] == [], "a request leaves the site"
    assert seen["rendered"] == seen["formulas"] and not seen["broken"], "a formula is not rendered"
    assert seen["anchors"] == [], "a link within the page leads nowhere"
    assert seen["images"] == [], "an image is missing"
    assert seen["overflow"] <= 0, "the page is wider than the window"
    assert seen["player"] == (name == "index")


def test_the_probe_sees_what_is_wrong(site):
    """A page with a failing script, a missing picture, a dead anchor and a far-away request."""
    page = site / "book" / "index.html"
    broken = page.with_name("broken.html")
    wrong = (
        '<script>undefined.x</script><a href="#nowhere">x</a><img src="none.png"><img src="https://example.org/a.png">'
    )
    wrong += '<div style="width:3000px">x</div>'
    broken.write_text(page.read_text(encoding="utf-8").replace("</article>", f"{wrong}</article>", 1), encoding="utf-8")
    seen = look(broken, 1280)
    broken.unlink()
    assert len(seen["errors"]) >= 2 and seen["anchors"] == ["nowhere"]
    assert len(seen["images"]) == 2 and seen["overflow"] > 0
