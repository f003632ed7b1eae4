"""Sphinx extension: the map of the statements, drawn from the book's own labels and from the ledger.

`{statement-map}` on a page becomes an SVG in four columns: lemmas, definitions and assumptions; theorems; claims; the
paper's figures. A line from A to B says that B's proof, or B's wording, links to A; that claim B checks statement A;
that figure B shows what claim A asks. Under the picture the same as a list.
"""

from __future__ import annotations

import html
import re
from pathlib import Path

FOUNDATIONS = ("Definition", "Assumption", "Lemma", "Remark")
# Which statement a claim checks, by the beginning of its id; the first that fits.
CHECKS = (
    ("S-nc1", "def-nc1"),
    ("S-nc2", "def-nc2"),
    ("S-nc3", "def-nc3"),
    ("T3.1-exact", "thm-exact"),
    ("T3.1-layers", "thm-every-layer"),
    ("T3.1-inheritance", "thm-inheritance"),
    ("T3.1-nc1-sharp", "thm-3-1-nc1-sharp"),
    ("T3.1-nc1", "thm-3-1-nc1"),
    ("L3.1-", "lem-telescoping"),
    ("T3.1-cond", "thm-3-1-conditioning"),
    ("T3.1-nc2", "thm-3-1-nc2"),
    ("T3.1-nc3", "thm-3-1-nc3"),
    ("L4-PL", "lem-pyramid"),
    ("L4-", "lem-balancedness"),
    ("P4.5", "prop-4-5"),
    ("T4.4-apriori", "cor-a-priori"),
    ("T4.4", "thm-4-4"),
    ("L5-schatten", "lem-schatten"),
    ("P5.1-", "thm-better-certificates"),
    ("P5.1", "prop-5-1"),
    ("T5.2-posteriori", "thm-5-2-posteriori"),
    ("T5.2-transition", "prop-trivial"),
    ("T5.2-trivial", "thm-trivial"),
    ("T5.2-collapse", "cor-5-2"),
    ("T5.2-stationary", "thm-stationary"),
    ("T5.2", "thm-5-2-a-priori"),
    ("P5.3-block", "lem-ntk-block"),
    ("P5.3-edge", "prop-stability"),
    ("P5.3", "prop-5-3"),
)
# What a figure's claim measures, and the statement that it is evidence for.
MEASURES = (
    ("nc1", "NC1", "thm-3-1-nc1"), ("nc2", "NC2", "thm-3-1-nc2"), ("nc3", "NC3", "thm-3-1-nc3"),
    ("balance", "balance", "lem-balancedness"), ("negativity", "negativity", ""), ("layerwise", "negativity", ""),
    ("step", "step size", "prop-5-3"),
)  # fmt: skip
MARKS = {"holds": "✓", "holds in part": "◐", "fails as predicted": "✗ᵖ", "fails": "✗", "undecided": "?", "toy": "toy"}
WIDTH, STEP, BOX, COLUMNS = 980, 30, 24, (0, 265, 545, 855)
WIDE = (215, 235, 250, 120)


def uses(doctree) -> dict[str, list[str]]:
    """For each statement of a page, the labels that its wording and its folded proof link to."""
    from sphinx import addnodes

    from tools.statements import statements

    found: dict[str, list[str]] = {}
    here = {id(node): node["label"] for node in statements(doctree)}
    current = ""
    for node in doctree.findall():
        if id(node) in here:
            current = here[id(node)]
            found[current] = []
        if not isinstance(node, addnodes.pending_xref) or node.get("refdomain") != "prf" or not current:
            continue
        parent = node.parent
        while parent is not None:
            if id(parent) in here or "dropdown" in str(parent.get("design_component", "")):
                if node["reftarget"] not in (current, *found[current]):
                    found[current].append(node["reftarget"])
                break
            parent = parent.parent
    return found


def groups(claims) -> dict[str, dict]:
    """Claims of one statement, or of one figure and one quantity, as one node each."""
    found: dict[str, dict] = {}
    for claim in claims:
        figure = re.match(r"F(\d)\w*-(.*)", claim.id)
        if figure:
            measure = next((m for m in MEASURES if figure[2].startswith(m[0])), None)
            if measure is None:
                continue
            key, name, statement = f"F{figure[1]} {measure[1]}", f"Figure {figure[1]}: {measure[1]}", measure[2]
        else:
            statement = next((label for start, label in CHECKS if claim.id.startswith(start)), "")
            if not statement:
                continue
            key, name = statement, ""
        node = found.setdefault(
            key, {"name": name, "statement": statement, "figure": figure and figure[1], "claims": []}
        )
        node["claims"].append(claim)
    return found


def verdict(claims) -> str:
    """Of the claims nearest to the paper (its own, else the inferred, else ours): theirs, "in part" if they differ."""
    for source in ("paper", "inferred", "ours"):
        if kinds := {claim.verdict for claim in claims if claim.source == source}:
            return kinds.pop() if len(kinds) == 1 else "holds in part"
    return ""


def graph(names: dict, links: dict[str, list[str]], claims) -> tuple[list[dict], list[tuple[str, str]]]:
    """Nodes (id, column, text, mark, verdict, whose, href, title) and edges between their ids."""
    of_claims = groups(claims)
    nodes, edges = [], []
    checked = {g["statement"]: g for key, g in of_claims.items() if not g["figure"]}
    for label, row in sorted(names.items(), key=lambda item: (item[1]["docname"], item[1]["order"])):
        mine = checked.get(label, {"claims": []})["claims"]
        title = re.sub(r"; (ours|known)$", "", row["title"])
        nodes.append({
            "id": label,
            "column": 0 if row["kind"] in FOUNDATIONS else 1,
            "text": f"{row['kind']} {row['number']}",
            "more": title,
            "verdict": verdict(mine),
            "whose": "paper" if row["paper"] else "known" if re.search(r"known|after", row["title"]) else "ours",
            "href": f"{row['docname'].rpartition('/')[2]}.html#{label}",
        })  # fmt: skip
        edges += [(target, label) for target in links.get(label, ()) if target in names]
    for key, group in of_claims.items():
        if group["statement"] and group["statement"] not in names:
            continue
        sources = {claim.source for claim in group["claims"]}
        name = group["name"] or ", ".join(claim.id for claim in group["claims"])
        node = {
            "id": f"claims {key}",
            "column": 2,
            "text": name,
            "whose": min(sources, key=("paper", "inferred", "ours").index),
        }
        node |= {
            "more": ", ".join(f"{claim.id} {claim.verdict}" for claim in group["claims"]),
            "verdict": verdict(group["claims"]),
        }
        nodes.append(node | {"href": f"09_ledger.html#claim-{group['claims'][0].id}", "count": len(group["claims"])})
        if group["statement"]:
            edges.append((group["statement"], node["id"]))
        if group["figure"]:
            edges.append((node["id"], f"figure {group['figure']}"))
    pages = {"1": "06_training_dynamics", "2": "07_linear_head_depth", "3": "08_nonlinear_depth"}
    pages |= {"4": pages["1"], "5": pages["2"]}
    for number in sorted({group["figure"] for group in of_claims.values() if group["figure"]}):
        mine = [claim for group in of_claims.values() if group["figure"] == number for claim in group["claims"]]
        node = {"id": f"figure {number}", "column": 3, "text": f"Figure {number}", "more": "", "whose": "paper"}
        nodes.append(node | {"verdict": verdict(mine), "href": f"{pages[number]}.html"})
    return nodes, edges


def place(nodes: list[dict], edges: list[tuple[str, str]]) -> int:
    """Give each node its x and y: columns as they are, within one each node near those it comes from. The height."""
    tallest = max(sum(node["column"] == column for node in nodes) for column in range(4))
    height = tallest * STEP
    at: dict[str, float] = {}
    for column in (1, 0, 2, 3):
        mine = [node for node in nodes if node["column"] == column]
        if column == 0:  # lemmas beside what rests on them
            near = {n["id"]: [at[b] for a, b in edges if a == n["id"] and b in at] for n in mine}
        else:
            near = {n["id"]: [at[a] for a, b in edges if b == n["id"] and a in at] for n in mine}
        if column != 1:
            last = 0.0
            for node in mine:
                last = near[node["id"]] = sum(near[node["id"]]) / len(near[node["id"]]) if near[node["id"]] else last
            mine.sort(key=lambda node: near[node["id"]])
        gap = height / max(1, len(mine))
        for number, node in enumerate(mine):
            node["x"], node["y"] = COLUMNS[column], 40 + gap * (number + 0.5)
            at[node["id"]] = node["y"]
    return height + 60


def draw(nodes: list[dict], edges: list[tuple[str, str]]) -> str:
    """The SVG; every node is a link with a title."""
    height = place(nodes, edges)
    by_id = {node["id"]: node for node in nodes}
    parts = [
        f'<svg class="statement-map" viewBox="0 0 {WIDTH} {height:.0f}" role="group" '
        'aria-label="Map of the statements, claims and figures. The list below says the same.">'
    ]
    for x, head in zip(COLUMNS, ("foundations", "theorems", "claims checked", "figures"), strict=True):
        parts.append(f'<text class="map-head" x="{x + 4}" y="20">{head}</text>')
    for a, b in edges:
        one, two = by_id[a], by_id[b]
        if one["column"] == two["column"]:
            x, bend = one["x"], one["x"] - 22
            path = f"M{x} {one['y']:.1f}C{bend} {one['y']:.1f} {bend} {two['y']:.1f} {x} {two['y']:.1f}"
        else:
            x1, x2 = one["x"] + WIDE[one["column"]], two["x"]
            if one["column"] > two["column"]:
                x1, x2 = one["x"], two["x"] + WIDE[two["column"]]
            middle = (x1 + x2) / 2
            path = f"M{x1} {one['y']:.1f}C{middle} {one['y']:.1f} {middle} {two['y']:.1f} {x2} {two['y']:.1f}"
        parts.append(f'<path class="map-edge" data-from="{a}" data-to="{b}" d="{path}"/>')
    for node in nodes:
        wide = WIDE[node["column"]]
        kind = node["verdict"].split()[-1] if node["verdict"] else "none"
        mark = MARKS.get(node["verdict"], "")
        text = node["text"] + (f" ({node['more']})" if node["column"] < 2 and node["more"] else "")
        text = text if len(text) <= wide / 6.6 else text[: int(wide / 6.6) - 1] + "…"
        words = f"{node['text']}. {node['more']}. {node['whose']}. {node['verdict'] or 'no claim'}."
        parts.append(
            f'<a class="map-node w-{node["whose"]} m-{kind}" data-id="{node["id"]}" href="{node["href"]}" '
            f'aria-label="{html.escape(words, quote=True)}"><title>{html.escape(words)}</title>'
            f'<rect x="{node["x"] + 1}" y="{node["y"] - BOX / 2:.1f}" width="{wide - 2}" height="{BOX}" rx="4"/>'
            f'<text x="{node["x"] + 8}" y="{node["y"] + 4:.1f}">{html.escape(text)}</text>'
            f'<text class="map-mark" x="{node["x"] + wide - 8}" y="{node["y"] + 4:.1f}" text-anchor="end">{mark}</text>'
            "</a>"
        )
    return "".join([*parts, "</svg>"])


def as_list(nodes: list[dict], edges: list[tuple[str, str]]) -> str:
    """The same as nested words."""
    by_id = {node["id"]: node for node in nodes}

    def link(name: str) -> str:
        node = by_id[name]
        mark = MARKS.get(node["verdict"], "")
        return f'<a href="{node["href"]}">{html.escape(node["text"])}</a>{" " + mark if mark else ""}'

    rows = []
    for node in nodes:
        if node["column"] > 1:
            continue
        below = [link(a) for a, b in edges if b == node["id"]]
        claims = [b for a, b in edges if a == node["id"] and by_id[b]["column"] == 2]
        above = [link(b) for a, b in edges if a == node["id"] and by_id[b]["column"] < 2]
        words = [f"<b>{link(node['id'])}</b> {html.escape(node['more'])} ({node['whose']})"]
        words += [f"rests on {', '.join(below)}"] if below else []
        words += [f"serves {', '.join(above)}"] if above else []
        words += [f"checked by {', '.join(map(link, claims))}"] if claims else []
        rows.append(f"<li>{'; '.join(words)}</li>")
    return f'<ul class="map-list">{"".join(rows)}</ul>'


def read(app, doctree) -> None:
    app.env.__dict__.setdefault("statement_uses", {})[app.env.docname] = uses(doctree)


def book_claims(folder: Path) -> list:
    """The claims of every executed chapter in a folder."""
    from ncutils.claims import read_claims

    claims: dict[str, object] = {}
    for path in sorted(folder.glob("[0-9]*.ipynb")):
        try:
            claims |= {claim.id: claim for claim in read_claims([path])}
        except ValueError:  # a chapter without claims
            continue
    return list(claims.values())


def resolve(app, doctree, docname) -> None:
    from docutils import nodes

    for node in list(doctree.findall(nodes.container)):
        if "statement-map" not in node["classes"]:
            continue
        env = app.env
        names = {
            label: {**row, "order": order}
            for order, (label, row) in enumerate(env.__dict__.get("statement_names", {}).items())
            if row["docname"] != docname
        }
        links = {
            label: found for page in env.__dict__.get("statement_uses", {}).values() for label, found in page.items()
        }
        drawn = graph(names, links, book_claims(Path(app.srcdir) / "book"))
        picture = (
            f'<div class="map-scroll" tabindex="0">{draw(*drawn)}</div><h2>The same as a list</h2>{as_list(*drawn)}'
        )
        node.replace_self(nodes.raw("", picture, format="html"))


def setup(app):
    from docutils import nodes
    from sphinx.util.docutils import SphinxDirective

    class StatementMap(SphinxDirective):
        def run(self):
            self.env.note_reread()
            return [nodes.container(classes=["statement-map"])]

    app.add_directive("statement-map", StatementMap)
    app.connect("doctree-read", read)
    app.connect("doctree-resolved", resolve)
    return {"parallel_read_safe": False, "parallel_write_safe": True, "env_version": 1}
