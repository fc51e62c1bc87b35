"""Where large sums are kept: on an accelerator as they are, or on the host in double precision.

Sums over positions are made in float32, and so are what they say of matrices as large as these. On
the host they are added up, factored and solved in double precision all the same, which costs little
there. An accelerator is ten times faster than the way to the host and back.
"""

from __future__ import annotations

from ifjax.jaxprs.compiling import default_platform

COLUMNS = 2048  # of a Gram matrix, from which on it stays where it was made


def stays(columns: int) -> bool:
    """Whether a Gram matrix of so many columns stays on the default device."""
    return columns >= COLUMNS and default_platform() != "cpu"
