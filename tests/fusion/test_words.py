"""The mathematics does not know how it is executed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import ifjax

FOLDER = Path(ifjax.__file__).parent / "fusion"
FILES = sorted(FOLDER.glob("*.py"))
MACHINERY = re.compile(r"bucket|barrier|thread|mesh|shard", re.IGNORECASE)


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_no_machinery_is_named_outside_of_execution(file):
    lines = enumerate(file.read_text().splitlines(), start=1)
    assert [f"{i}: {line}" for i, line in lines if MACHINERY.search(line)] == []


def test_the_search_finds_what_it_looks_for():
    assert MACHINERY.search("from ifjax.parallel import threads")
    assert any(MACHINERY.search(file.read_text()) for file in (FOLDER / "execution").glob("*.py"))
