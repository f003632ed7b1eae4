"""tools/statements.py: one numbering of the statements."""

import doctest
from types import SimpleNamespace

import pytest

from tools import statements


@pytest.mark.parametrize(
    ("title", "parsed"),
    [
        (" (Theorem 3.1, part 1 (NC1))", ("3.1, part 1", "NC1")),
        ("Theorem 4.4, with constants", ("4.4", "with constants")),
        ("Proposition 4.5", ("4.5", "")),
        ("4.1, pyramid", ("4.1", "pyramid")),
        ("Theorem 5.2, a posteriori: the last layer (ours)", ("5.2", "a posteriori: the last layer; ours")),
        ("NC1, sharp form (ours)", ("", "NC1, sharp form; ours")),
        ("Inequality, after Nguyen (2020)", ("", "Inequality, after Nguyen (2020)")),
        ("", ("", "")),
    ],
)  # fmt: skip
def test_the_papers_number_is_taken_from_the_title(title, parsed):
    assert statements.parse(title) == parsed


def test_the_examples_run():
    assert doctest.testmod(statements).failed == 0


def test_own_statements_are_lettered_by_chapter_and_pictures_counted_over_its_pages():
    env = SimpleNamespace(
        found_docs={"book/03b_more", "book/03_first", "book/index"},
        statement_titles={
            "book/03_first": {
                "own": {"kind": "Lemma", "number": "", "title": "x"},
                "theirs": {"kind": "Theorem", "number": "4.4", "title": ""},
            },
            "book/03b_more": {"other": {"kind": "Lemma", "number": "", "title": "y"}},
        },
        toc_fignumbers={
            "book/03_first": {"theorem": {"own": (1,), "theirs": (2,)}, "figure": {"fig-a": (1,)}},
            "book/03b_more": {"theorem": {"other": (3,)}, "figure": {"fig-b": (2,)}},
            "book/index": {"figure": {"fig-c": (1,)}},
        },
    )
    statements.number(None, env)
    assert env.toc_fignumbers["book/03_first"]["theorem"] == {"own": ("3.A",), "theirs": ("4.4",)}
    assert env.toc_fignumbers["book/03b_more"] == {"theorem": {"other": ("3.B",)}, "figure": {"fig-b": (3, 2)}}
    assert env.toc_fignumbers["book/index"]["figure"] == {"fig-c": (0, 1)}
    assert env.statement_names["theirs"]["paper"] and not env.statement_names["own"]["paper"]
