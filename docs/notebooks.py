"""Some pages as notebooks, with the outputs that the pages show.

``python docs/notebooks.py`` writes notebooks/.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

import jupytext
import nbformat

DOCS = Path(__file__).parent
FOLDER = DOCS.parent / "notebooks"
PAGES = ("tutorial.md", "how-to/nnx.md", "how-to/training-loops.md")
PRINTED = re.compile(r"\A\s*```text\n(.*?)```\n?", re.S)
COMMENT = re.compile(r"<!--.*?-->\n*", re.S)
LINK = re.compile(r"\]\((?!https?:|#)([^)]+)\)")


def notebook(page: str) -> nbformat.NotebookNode:
    """A page as a notebook: python blocks are cells, what they print their outputs."""
    folder = posixpath.join("../docs", posixpath.dirname(page))
    text = COMMENT.sub("", (DOCS / page).read_text())
    text = LINK.sub(lambda m: f"]({posixpath.normpath(posixpath.join(folder, m[1]))})", text)
    book = jupytext.reads(text, fmt="md")
    cells = []
    for cell in book.cells:
        printed = PRINTED.match(cell.source) if cell.cell_type == "markdown" else None
        if printed and cells and cells[-1].cell_type == "code":
            cells[-1].outputs = [nbformat.v4.new_output("stream", text=printed[1])]
            cell.source = cell.source[printed.end() :].strip()
        if cell.source:
            cells.append(cell)
    for number, cell in enumerate(cells):
        cell.id, cell.metadata = f"cell-{number}", {}
    book.cells = cells
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return book


def written(page: str) -> Path:
    """Where the notebook of a page lies."""
    return FOLDER / f"{Path(page).stem}.ipynb"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in PAGES:
        nbformat.write(notebook(name), written(name))
        print("written:", written(name).name)
