"""The page of the package: the README without what only a checkout has.

Where a package is shown there is no file beside it. Pictures that lie in the repository are left
out, and links into it become their words; whatever else the README says stays.
"""

import re
from pathlib import Path

from setuptools import setup

PICTURE = re.compile(r"^!\[[^\]]*\]\((?!https?://)[^)]*\)\n+", re.MULTILINE)
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?://)[^)]*\)")
COMMENT = re.compile(r"^<!--.*?-->\n", re.MULTILINE)


def page(readme: str) -> str:
    """The text of a README as it can stand alone."""
    return LINK.sub(r"\1", PICTURE.sub("", COMMENT.sub("", readme)))


if __name__ == "__main__":
    setup(long_description=page((Path(__file__).parent / "README.md").read_text()))
