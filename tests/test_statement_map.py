"""tools/statement_map.py: the graph agrees with the book's labels and the ledger."""

import re
from pathlib import Path

from ncutils.claims import Claim
from tools import statement_map

ROOT = Path(__file__).resolve().parents[1]


def claim(id, verdict="holds", source="ours"):
    return Claim(id, "Text.", source, "02", "quick", verdict)


NAMES = {
    "lem-a": {"kind": "Lemma", "number": "2.A", "title": "A & B; ours", "docname": "book/02_x", "paper": False,
              "order": 0},
    "thm-3-1-nc1": {"kind": "Theorem", "number": "3.1", "title": "", "docname": "book/02_x", "paper": True, "order": 1},
}  # fmt: skip


def test_every_statement_that_claims_are_assigned_to_is_in_the_book():
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "book").glob("0*.md"))
    labels = set(re.findall(r"^:label: (\S+)", text, re.MULTILINE))
    named = {label for _, label in statement_map.CHECKS} | {m[2] for m in statement_map.MEASURES if m[2]}
    assert named <= labels


def test_every_claim_named_after_a_theorem_or_proposition_is_on_the_map():
    claims = [c for c in statement_map.book_claims(ROOT / "book") if re.match(r"[TP]\d\.\d", c.id)]
    placed = {c.id for group in statement_map.groups(claims).values() for c in group["claims"]}
    assert claims and {c.id for c in claims} == placed


def test_the_graph_has_the_links_of_the_proofs_and_the_claims_of_the_ledger():
    claims = [claim("T3.1-nc1", source="paper"), claim("T3.1-nc1-radius", "fails"), claim("F4-nc1-a", "fails")]
    nodes, edges = statement_map.graph(NAMES, {"thm-3-1-nc1": ["lem-a", "gone"]}, claims)
    by_id = {node["id"]: node for node in nodes}
    assert edges == [
        ("lem-a", "thm-3-1-nc1"),
        ("thm-3-1-nc1", "claims thm-3-1-nc1"),
        ("thm-3-1-nc1", "claims F4 NC1"),
        ("claims F4 NC1", "figure 4"),
    ]
    assert by_id["thm-3-1-nc1"]["verdict"] == "holds"  # the paper's claim decides
    assert by_id["figure 4"]["verdict"] == "fails" and by_id["lem-a"]["verdict"] == ""
    assert by_id["lem-a"]["href"] == "02_x.html#lem-a" and by_id["lem-a"]["whose"] == "ours"
    drawn = statement_map.draw(nodes, edges)
    assert drawn.count("<a ") == len(nodes) and drawn.count("<path") == len(edges) and "A &amp; B" in drawn
    assert "rests on" in statement_map.as_list(nodes, edges)


def test_claims_of_one_source_that_disagree_hold_in_part():
    assert statement_map.verdict([claim("a"), claim("b", "fails")]) == "holds in part"
    assert statement_map.verdict([claim("a"), claim("b", "fails", "inferred")]) == "fails"
