"""Docstrings, which use the words of reStructuredText where they need them, as Markdown."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import griffe

REFERENCE = Path(__file__).parent / "reference"
DOCUMENTED = {
    name
    for page in REFERENCE.glob("*.md")
    for name in re.findall(r"^::: ([\w.]+)$", page.read_text(), re.M)
}
NAME = re.compile(r"(?<![`\[])`(ifjax\.[\w.]+)`(?![`\]])")
ROLE = re.compile(r":(?:class|func|mod|meth|attr):`~?([\w.]+)`")
INLINE = re.compile(r":math:`([^`]+)`", re.S)
LINK = re.compile(r"`([^`<]+?)\s*<(https?://[^>]+)>`_+", re.S)
EXAMPLE = re.compile(r"^( *)Example:$", re.M)
DISPLAY = re.compile(r"^( *)\.\. math::[ ]*(.*)\n((?:\1 +\S.*\n?|\n(?=\1 ))*)", re.M)


class Markdown(griffe.Extension):
    """Rewrites every docstring before it is parsed."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """The text with formulas, links and references as Markdown writes them."""
    text = EXAMPLE.sub(r"\1Examples:", DISPLAY.sub(_formula, text))
    text = INLINE.sub(lambda m: f"\\({' '.join(m[1].split())}\\)", text)
    text = LINK.sub(lambda m: f"[{' '.join(m[1].split())}]({m[2]})", text)
    return NAME.sub(_reference, ROLE.sub(r"`\1`", text))


def _reference(found: re.Match[str]) -> str:
    return f"[{found[0]}][{found[1]}]" if found[1] in DOCUMENTED else found[0]


def _formula(found: re.Match[str]) -> str:
    indent, body = found[1], f"{found[2]}\n{textwrap.dedent(found[3])}"
    body = " ".join(body.split())
    return f"{indent}\\[\n{indent}{body}\n{indent}\\]\n\n"
