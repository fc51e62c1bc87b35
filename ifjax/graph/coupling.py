"""What an analysis finds: the structure, what of it is pinned, and what is not used."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

from ifjax.structure.structure import Structure


@dataclasses.dataclass(frozen=True)
class PinnedAxis:
    """An axis of a leaf that cannot be cut, or only in part.

    Attributes:
      path: path of the leaf.
      axis: the axis.
      size: its size.
      reason: what pins it, with the source line.
    """

    path: str
    axis: int
    size: int
    reason: str


class Coupling(NamedTuple):
    """What hangs together in a function.

    Attributes:
      structure: leaves, groups, batch norms; every group at full width.
      pinned: axes that cannot be cut, and why.
      unused: paths of leaves that reach no output.
    """

    structure: Structure
    pinned: tuple[PinnedAxis, ...]
    unused: tuple[str, ...]
