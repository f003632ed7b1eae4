"""Sphinx extension: a reader who points at a link to a statement, an equation or a term sees it without leaving.

After the build, what such links lead to is collected into `_static/previews-data.js`, which a page loads when it is
first needed (as a script, so that it works without a server). `book/_static/previews.js` shows it.
"""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

SHOWN = "div.proof.admonition[id], div.math[id], dl.glossary dt[id]"


def previews(folder: Path) -> dict[str, str]:
    """The HTML of every statement, equation and glossary term below a folder, by `PAGE#ANCHOR`."""
    from bs4 import BeautifulSoup

    found = {}
    for page in sorted(folder.rglob("*.html")):
        text = page.read_text(encoding="utf-8")
        if 'class="proof' not in text and 'class="math' not in text and "glossary" not in text:
            continue
        for part in BeautifulSoup(text, "html.parser").select(SHOWN):
            name, part = part["id"], part.find_next_sibling("dd") if part.name == "dt" else part
            if part is None:
                continue
            part = copy.copy(part)  # an equation may stand in a theorem, and is found after it
            for extra in part.select("a.headerlink, details, .toggle, img"):
                extra.decompose()
            for inner in (part, *part.select("[id]")):
                inner.attrs.pop("id", None)
            for link in part.select("a[href]"):
                link.unwrap()
            found[f"{page.relative_to(folder).as_posix()}#{name}"] = re.sub(r"\n\s*\n", "\n", str(part)).strip()
    return found


def write(app, exception) -> None:
    if exception or app.builder.format != "html":
        return
    out = Path(app.outdir)
    text = json.dumps(previews(out), ensure_ascii=False)
    (out / "_static" / "previews-data.js").write_text(f"window.PREVIEWS = {text};\n", encoding="utf-8")


def setup(app):
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
