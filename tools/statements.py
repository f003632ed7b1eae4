"""Sphinx extension: one numbering of the statements, in their boxes, in links, in the search.

A statement of the paper has the paper's number, taken from its title ("Theorem 3.1, part 2 (conditioning)"). Every
other has the number of its chapter and a letter ("Lemma 3.A"), so that nobody looks for it in the paper. Pictures are
numbered by chapter ("Fig. 6.2"), apart from the paper's figures.
"""

from __future__ import annotations

import re
import string

PAPERS = re.compile(
    r"(?:(?:Theorem|Lemma|Proposition|Corollary|Definition|Assumption)\s+)?(\d+\.\d+(?:, part \d+)?)[,:]?\s*"
)


def parse(title: str) -> tuple[str, str]:
    """The paper's number in a title ("" if there is none) and the rest, without its parentheses.

    >>> parse("Theorem 3.1, part 2 (conditioning)"), parse("4.1, pyramid"), parse("Telescoping")
    (('3.1, part 2', 'conditioning'), ('4.1', 'pyramid'), ('', 'Telescoping'))
    """
    title = title.strip()
    if title.startswith("(") and title.endswith(")"):  # as sphinx-proof formats it
        title = title[1:-1]
    found = PAPERS.match(title)
    number, rest = (found[1], title[found.end() :]) if found else ("", title)
    if re.fullmatch(r"\([^()]*\)", rest):
        rest = rest[1:-1]
    return number, re.sub(r"\s*\((ours|known)\)$", r"; \1", rest.strip())


def letters(count: int) -> str:
    """A, B, ..., Z, AA, AB, ...

    >>> letters(0), letters(25), letters(26)
    ('A', 'Z', 'AA')
    """
    name = ""
    while count >= 0:
        name, count = string.ascii_uppercase[count % 26] + name, count // 26 - 1
    return name


def chapter_of(docname: str) -> str:
    """The number of a page's chapter, as its file name says it.

    >>> chapter_of("book/03_gradient_descent"), chapter_of("book/03b_centrepiece"), chapter_of("book/map")
    ('3', '3', '')
    """
    found = re.match(r"0*(\d+)", docname.rpartition("/")[2])
    return found[1] if found else ""


def statements(doctree):
    from sphinx_proof.nodes import NODE_TYPES

    return list(doctree.findall(lambda node: isinstance(node, tuple(set(NODE_TYPES.values())))))


def read(app, doctree) -> None:
    """Shorten the titles, note the numbers, give each statement its entries in the index that the search looks at."""
    from docutils import nodes
    from sphinx import addnodes

    found = app.env.__dict__.setdefault("statement_titles", {})
    found[app.env.docname] = rows = {}
    for node in statements(doctree):
        number, rest = parse(node["title"])
        kind = node["realtype"].title()
        rows[node["label"]] = {"kind": kind, "number": number, "title": rest}
        title = node[0]
        inlines = [child for child in title.children if not isinstance(child, nodes.Text)]
        if inlines:  # a formula in the title: keep it as it is, without the number
            first = title.children[0]
            if number and isinstance(first, nodes.Text):
                title.replace(first, nodes.Text(PAPERS.sub("", first.astext().lstrip(" ("), count=1)))
        else:
            title.clear()
            title += nodes.Text(f" ({rest})" if rest else "")
        entries = [
            piece
            for piece in re.split(r"[,:;] ", re.sub(r"\s*\(.*?\)", "", rest))
            if piece not in ("", "ours", "known")
        ]
        if number:
            entries = [
                f"{kind} {number}",
                *([f"{kind} {number.split(',')[0]}"] if ", part 1" in number else []),
                *entries,
            ]
        index = addnodes.index(entries=[("single", e, node["ids"][0], "main", None) for e in dict.fromkeys(entries)])
        node.parent.insert(node.parent.index(node), index)


def purge(app, env, docname) -> None:
    env.__dict__.setdefault("statement_titles", {}).pop(docname, None)


def merge(app, env, docnames, other) -> None:
    env.__dict__.setdefault("statement_titles", {}).update(
        {name: rows for name, rows in getattr(other, "statement_titles", {}).items() if name in docnames}
    )


def number(app, env) -> None:
    """Write the numbers where Sphinx and sphinx-proof look for them."""
    own: dict[str, int] = {}
    pictures: dict[str, int] = {}
    names = env.__dict__["statement_names"] = {}
    for docname in sorted(env.found_docs):
        chapter = chapter_of(docname)
        figures = env.toc_fignumbers.get(docname, {})
        for label, row in env.__dict__.get("statement_titles", {}).get(docname, {}).items():
            if not (text := row["number"]):
                text = f"{chapter}.{letters(own.get(chapter, 0))}"
                own[chapter] = own.get(chapter, 0) + 1
            for numbers in figures.values():
                if label in numbers:
                    numbers[label] = (text,)
            names[label] = {**row, "number": text, "docname": docname, "paper": bool(row["number"])}
        for ids in figures.get("figure", {}):  # pages that are no chapter count as chapter 0
            pictures[chapter] = pictures.get(chapter, 0) + 1
            figures["figure"][ids] = (int(chapter or 0), pictures[chapter])


def setup(app):
    app.connect("doctree-read", read)
    app.connect("env-purge-doc", purge)
    app.connect("env-merge-info", merge)
    app.connect("env-check-consistency", lambda app, env: number(app, env))
    return {"parallel_read_safe": True, "parallel_write_safe": True, "env_version": 2}
