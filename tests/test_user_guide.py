"""The code of the user guide runs and prints what the guide shows."""

import doctest
from pathlib import Path

import pytest

DOC = Path(__file__).resolve().parents[1] / "doc"
PAGES = sorted((DOC / "guide").glob("*.rst"))
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_the_page(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(
        str(page), module_relative=False, optionflags=FLAGS, encoding="utf-8"
    )
    assert result.attempted
    assert not result.failed


def test_every_page_is_listed():
    listed = (DOC / "user_guide.rst").read_text(encoding="utf-8").split()
    assert [page for page in PAGES if f"guide/{page.stem}" not in listed] == []
