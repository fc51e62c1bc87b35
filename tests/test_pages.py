"""What the pages say: their code runs as it stands and prints what they show; names and links hold.

The python blocks of a page are one program. A ``text`` block right after one is what that printed.
``<!-- not run: why -->`` before a block leaves it out, ``<!-- needs: a module -->`` does where that
is missing; under a page's title it skips the page.
"""

from __future__ import annotations

import configparser
import contextlib
import doctest
import importlib
import importlib.util
import io
import itertools
import re
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

from ifjax.importance import IMPORTANCES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
FENCE = re.compile(
    r"(?:<!-- (?P<left_out>not run|needs): (?P<why>[^>]+) -->\n+)?"
    r"^```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NEEDS = re.compile(r"\A# .+\n+<!-- needs: ([\w, ]+) -->")
LINK = re.compile(r"\]\((?!https?:)(?P<file>[^)#\s]*)(?:#(?P<heading>[^)\s]+))?\)")


class Block(NamedTuple):
    """Code, where it begins, and what it prints: None where the page does not say."""

    code: str
    line: int
    printed: str | None


def missing(names: str) -> list[str]:
    """Which of these modules are not installed."""
    return [name for name in names.split(", ") if importlib.util.find_spec(name) is None]


def blocks(text: str) -> list[Block]:
    """The python blocks of a page that can be run."""
    found, fences = [], list(FENCE.finditer(text))
    for fence, after in itertools.zip_longest(fences, fences[1:]):
        if fence["language"] != "python" or fence["left_out"] == "not run":
            continue
        if fence["left_out"] == "needs" and missing(fence["why"]):
            continue
        line = text.count("\n", 0, fence.start("body"))
        adjacent = after and not text[fence.end() : after.start()].strip()
        printed = after["body"] if adjacent and after["language"] == "text" else None
        found.append(Block(fence["body"], line, printed))
    return found


def run(text: str, name: str) -> None:
    """Runs the blocks one after another; lines of errors are those of the page."""
    namespace = {"__name__": "__main__"}
    compare = doctest.OutputChecker()
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    for block in blocks(text):
        program = compile("\n" * block.line + block.code, name, "exec")
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(program, namespace)
        if block.printed is not None:
            example = doctest.Example(block.code, block.printed)
            if not compare.check_output(block.printed, out.getvalue(), flags):
                where = f"{name}, line {block.line}: "
                pytest.fail(where + compare.output_difference(example, out.getvalue(), flags))


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


CODE = [page for page in PAGES if blocks(page.read_text())]


@pytest.mark.parametrize("page", CODE, ids=title)
def test_code_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch, unchecked):
    text = page.read_text()
    needs = NEEDS.match(text)
    if needs and missing(needs[1]):
        pytest.skip(f"the page needs {', '.join(missing(needs[1]))}")
    monkeypatch.chdir(tmp_path)
    with mock.patch.dict(IMPORTANCES):  # a page may name a metric of its own
        run(text, str(page))


def test_a_wrong_output_fails():
    page = "```python\nprint(1)\n```\n\n```text\n{}\n```\n"
    run(page.format(1), "page")
    with pytest.raises(pytest.fail.Exception, match="Expected"):
        run(page.format(2), "page")
    assert blocks("<!-- not run: slow -->\n```python\n1 / 0\n```\n") == []
    assert blocks("<!-- needs: nothing_of_this_name -->\n```python\n1 / 0\n```\n") == []


def headings(page: Path) -> set[str]:
    """The anchors of a page."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h).strip().lower().replace(" ", "-") for h in found}


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page):
    for link in LINK.finditer(page.read_text()):
        target = (page.parent / link["file"]).resolve() if link["file"] else page
        assert target.exists(), link[0]
        if link["heading"] and target.suffix == ".md":
            assert link["heading"] in headings(target), link[0]


def test_extras_that_pages_name_exist():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = set(setup["options.extras_require"])
    for page in PAGES:
        for names in re.findall(r"(?:ifjax|\.)\[([a-z, ]+)\]", page.read_text()):
            assert set(re.split(", *", names)) <= extras, (title(page), names)


def test_commands_that_pages_name_exist():
    for page in PAGES:
        for script in re.findall(r"python ((?:benchmarks|docs)/\w+\.py)", page.read_text()):
            assert (ROOT / script).is_file(), (title(page), script)


def test_the_readme_is_short_and_needs_no_renderer():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 200
    assert "```mermaid" not in text


def test_notebooks_are_those_of_the_pages(monkeypatch):
    pytest.importorskip("jupytext", reason="needs jupytext: pip install 'ifjax[docs]'")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.syspath_prepend(DOCS)
    notebooks = importlib.import_module("notebooks")
    for page in notebooks.PAGES:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = notebooks.notebook(page)
        assert nbformat.writes(made) == notebooks.written(page).read_text().rstrip("\n"), (
            "the page has changed: python docs/notebooks.py"
        )


def test_the_drawing_is_that_of_its_script(monkeypatch):
    monkeypatch.syspath_prepend(DOCS)
    drawing = importlib.import_module("drawing")
    assert drawing.drawing() == drawing.PATH.read_text(), "run python docs/drawing.py"


def test_the_page_of_the_package_stands_alone():
    spec = importlib.util.spec_from_file_location("package_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    readme = (ROOT / "README.md").read_text()
    page = setup.page(readme)
    assert LINK.search(readme)
    assert not LINK.search(page)
    assert "<!--" not in page
    assert {block.code for block in blocks(readme)} <= {block.code for block in blocks(page)}
