"""What the site needs beyond its pages: pictures of benchmarks, pages of the root, formulas."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PICTURE = re.compile(r"\]\((?:\.\./)+benchmarks/results/([\w.-]+\.(?:png|svg))\)")
FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\(?P<open>[(\[])(?P<body>.*?)\\[)\]]</(?P=tag)>', re.S
)
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Files, config: Any) -> Files:
    """Adds the pages that lie at the root of the repository, and the pictures of the results."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=_rooted(ROOT / source)))
    for picture in sorted((ROOT / "benchmarks/results").glob("*.[ps][nv]g")):
        path = f"results/measured/{picture.name}"
        files.append(File.generated(config, path, abs_src_path=str(picture)))
    return files


def _rooted(page: Path) -> str:
    """The text of a page at the root, with its links as seen from docs/."""
    return page.read_text().replace("](docs/", "](")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """What lies outside of docs/ where the site has it; in a checkout the links hold as written."""
    up = "../" * page.file.src_uri.count("/")
    for name, source in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)+{source}", f"]({up}{name}", markdown)
    return PICTURE.sub(rf"]({up}results/measured/\1)", markdown)


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    """Formulas as MathML, which browsers draw without a script."""

    def draw(found: re.Match[str]) -> str:
        display = "block" if found["open"] == "[" else "inline"
        return convert(html.unescape(found["body"]).strip(), display=display)

    return FORMULA.sub(draw, content)
