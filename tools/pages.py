"""Sphinx extension: what the theme's pages need before they are published.

- every page says what it is (description, Open Graph tags), for search engines and link previews;
- a script that two extensions add is loaded once, and Font Awesome's 1.5 MB of JavaScript not at all: its style sheet
  draws the same icons;
- the theme starts in the reader's own light or dark mode;
- a claim in the ledger leads to the cell that made it, and back;
- on the first page, `%verdict%` becomes the verdict of all claims in a line, `%minutes NAME%` a page's reading time.
"""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

FONT_AWESOME = re.compile(r"\s*<script [^>]*fontawesome[^>]*></script>|\s*<link [^>]*preload[^>]*fontawesome[^>]*>")
DEFAULT = (
    "Wide neural networks trained with weight decay provably exhibit neural collapse: the theorems stated, proved and "
    "checked, the figures recomputed, every number computed on the page."
)


def describe(doctree) -> str:
    """The first paragraph of a page in at most 200 characters."""
    from docutils import nodes

    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        text = " ".join(paragraph.astext().split())
        if len(text) > 60 and "$" not in text and "\\" not in text:
            return text if len(text) <= 200 else text[:197].rpartition(" ")[0] + " …"
    return DEFAULT


def prose(path: Path) -> str:
    """The words of a page that are read as text: no code, no formulas, no tables of outputs."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    text = re.sub(
        r"^---\n.*?^---\n|^```\{(?:code-cell|raw)\}.*?^```$|\$\$.*?\$\$|\$[^$]*\$",
        " ",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    return re.sub(r"\{[\w:]+\}`[^`]*`|[`*#|:{}\[\]()>-]+", " ", text)


def minutes(folder: Path, name: str) -> int:
    """Minutes to read a chapter's prose (with its further pages, 03b_...), or the whole book, at 230 words a minute."""
    pages = [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix in (".md", ".ipynb") and path.stem != "index" and not path.stem.startswith("api")
    ]
    if name != "all":
        number = re.match(r"\d+", name)
        pages = [
            path for path in pages if path.stem == name or (number and re.match(rf"{number[0]}[a-z]?_", path.stem))
        ]
    if not pages:
        raise ValueError(f"%minutes {name}%: must name a page of {folder}")
    return max(1, round(sum(len(prose(path).split()) for path in pages) / 230))


def fill_in(app, docname, source) -> None:
    if docname != "book/index":
        return
    from ncutils import ledger
    from tools.statement_map import book_claims

    folder = Path(app.srcdir) / "book"
    text = source[0].replace("%verdict%", ledger.in_one_line(book_claims(folder)))
    source[0] = re.sub(r"%minutes ([\w]+)%", lambda m: f"{minutes(folder, m[1])} min", text)
    app.env.note_reread()


def page_context(app, pagename, templatename, context, doctree) -> None:
    context["default_mode"] = "auto"
    title, about = html.unescape(re.sub("<[^>]*>", "", context.get("title") or "")), describe(doctree)
    book = app.config.html_title or app.config.project
    tags = {"og:title": title or book, "og:description": about, "og:type": "article", "og:site_name": book}
    lines = [f'<meta name="description" content="{html.escape(about)}" />']
    lines += [f'<meta property="{name}" content="{html.escape(text)}" />' for name, text in tags.items()]
    context["metatags"] = context.get("metatags", "") + "\n".join(lines)


def lightened(page: str) -> str:
    """A page without Font Awesome's scripts (its style sheet and fonts stay), each other script of the head once."""
    head, end, body = FONT_AWESOME.sub("", page).partition("</head>")
    seen: set[str] = set()
    lines = []
    for line in head.splitlines(keepends=True):
        if not (line.lstrip().startswith("<script") and line in seen):
            lines.append(line)
        seen.add(line)
    return "".join(lines) + end + body


CLAIM = re.compile(r"<tr><td>([A-Z][\w.]*(?:-[\w.-]+)?)</td>")
ROW = re.compile(r"(<tr(?: id='(claim-[^']+)')? data-page='(\w+)'><td[^>]*><b[^>]*>)([^<]+)</b>")


def linked(page: str, name: str, ledger: str = "09_ledger") -> str:
    """Rows of claims with an anchor and a link: in the ledger to the chapter's row, in a chapter to the ledger's."""
    if number := re.match(r"0*(\d+)_", name):  # the title that is printed
        page = re.sub(r'(<div id="jb-print-docs-body"[^>]*>\s*<h1>)(?!\d)', rf"\g<1>{number[1]}. ", page)
    if name == ledger:
        page = ROW.sub(
            lambda m: f'{m[1]}<a href="{m[3]}.html{f"#{m[2]}" if m[2] and m[3] != ledger else ""}">{m[4]}</a></b>', page
        )
        return page

    def table(match: re.Match) -> str:
        row = r"<tr id='claim-\1'><td><a href='" + ledger + r".html#claim-\1'>\1</a></td>"
        return CLAIM.sub(row, match[0])

    return re.sub(r"<table class='claims'>.*?</table>", table, page, flags=re.DOTALL)


def lighten(app, exception) -> None:
    if exception or app.builder.format != "html":
        return
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        if (lighter := linked(lightened(text), page.stem)) != text:
            page.write_text(lighter, encoding="utf-8")
    for script in Path(app.outdir).glob("_static/vendor/fontawesome/*/js/*.js*"):
        script.unlink()


def setup(app):
    app.connect("source-read", fill_in)
    app.connect("html-page-context", page_context, priority=900)  # after the theme and the extensions
    app.connect("build-finished", lighten)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
