"""tools/print_book.py: which pages are printed, and what it says where it cannot."""

import shutil

import pytest

from tools import print_book


def test_pages_come_in_the_order_of_the_table_of_contents_without_the_api():
    names = print_book.pages(print_book.ROOT / "_toc.yml")
    assert names[:2] == ["book/index", "book/01_setting"] and "book/api" not in names and "book/09_ledger" in names
    assert len(names) == len(set(names)) and all((print_book.ROOT / f"{name}.md").is_file() for name in names)


@pytest.mark.parametrize(("present", "word"), [((), "a Chromium"), (("chromium",), "pdfunite")])
def test_it_says_what_is_missing_and_ends_well(monkeypatch, tmp_path, capsys, present, word):
    monkeypatch.setattr(shutil, "which", lambda name: name if name in present else None)
    assert print_book.main([str(tmp_path), str(tmp_path / "book.pdf")]) == 0
    assert word in capsys.readouterr().out and not (tmp_path / "book.pdf").exists()
