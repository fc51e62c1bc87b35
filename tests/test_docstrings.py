"""One voice: a docstring says what its function gives or does, it does not give orders."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import ifjax

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "ifjax").rglob("*.py"), ROOT / "train.py"])

# Base forms that no first line here begins with as a noun.
ORDER = re.compile(
    r"(Add|Align|Apply|Assert|Begin|Build|Call|Check|Choose|Collect|Compare|"
    r"Compress|Compute|Create|Cut|Decide|Do|Draw|Evaluate|Export|Feed|Fill|Find|"
    r"Finish|Give|Go|Handle|Import|Join|Leave|Let|List|Load|Look|Make|Measure|"
    r"Multiply|Note|Open|Pair|Pick|Prepare|Put|Raise|Read|Refuse|Remove|Return|"
    r"Run|Save|Say|Show|Tell|Train|Turn|Wait|Write)\b"
)


def orders(source: str) -> Iterator[str]:
    """First lines of docstrings that begin with an imperative."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = (ast.get_docstring(node) or " ").splitlines()[0]
            if ORDER.match(first):
                yield first


def test_docstrings_say_what_is_done() -> None:
    found = {str(file.relative_to(ROOT)): list(orders(file.read_text())) for file in FILES}
    assert len(found) > 50
    assert {file: lines for file, lines in found.items() if lines} == {}


def test_an_order_is_found() -> None:
    assert list(orders('def f():\n    """Draw the graph.\n\n    More."""')) == ["Draw the graph."]
    assert list(orders('def f():\n    """Draws the graph."""\nclass A:\n    pass')) == []


def test_every_public_function_has_an_example():
    without = [name for name in ifjax.__all__ if ">>>" not in (getattr(ifjax, name).__doc__ or "")]
    for package in set(dir(ifjax)) - {*ifjax.__all__, "__doc__", "__name__", "__version__"}:
        module = getattr(ifjax, package)
        for name in module.__all__ if package != "interop" else ():  # needs files of others
            public = getattr(module, name)
            if inspect.isfunction(public) and ">>>" not in (public.__doc__ or ""):
                without.append(f"{package}.{name}")
    assert without == []
