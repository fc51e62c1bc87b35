"""What training may know of the library: data sets and trees, nothing of compression."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from ifjax import training

FOLDER = Path(training.__file__).parent
ALLOWED = ("ifjax.data", "ifjax.tree", "ifjax.training")


def imports(source: str) -> Iterator[str]:
    """Modules of ifjax that a text imports, in functions and in branches too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name.split(".")[0] == "ifjax")
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            if module == "ifjax":
                yield from (f"ifjax.{name.name}" for name in node.names)
            elif module.startswith(("ifjax.", ".")):
                yield module


def forbidden(source: str) -> list[str]:
    return [
        name
        for name in imports(source)
        if not any(name == room or name.startswith(f"{room}.") for room in ALLOWED)
    ]


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_training_knows_data_and_trees_alone(file: Path) -> None:
    assert forbidden(file.read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ifjax", ["ifjax"]),
        ("def f():\n    from ifjax.fuse import fuse_params", ["ifjax.fuse"]),
        ("from ifjax import data, spec", ["ifjax.spec"]),
        ("from ifjax.treehouse import leaf", ["ifjax.treehouse"]),
        ("from .. import spec", [".."]),
        ("import jax\nfrom ifjax.data import Batch\nfrom ifjax.tree import leaves_by_path", []),
    ],
)
def test_a_wrong_import_is_found(source: str, found: list[str]) -> None:
    assert forbidden(source) == found
