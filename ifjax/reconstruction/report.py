"""What `compress` did: a table that prints."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from ifjax.reconstruction.solve import Solved
from ifjax.reconstruction.sweep import Chosen

_LITTLE = 0.9  # of the deviation of the dense values: the error that a warning is worth


@dataclasses.dataclass(frozen=True)
class Report:
    """What was chosen, solved for and left as it was.

    Attributes:
      chosen: groups, and on what their neurons were chosen.
      solved: units of weights that were solved for together, with their errors before and after,
        relative to how much the dense values deviate from their mean.
      follows: weights that were cut and not solved for, and why.
      kept: by group, the neurons that were kept, ``[m]`` or ``[*batch, m]``.
      sizes: by group, its number of neurons.

    Example:
      >>> from ifjax.reconstruction.sweep import Chosen
      >>> print(Report((Chosen("w1", 8, 4, "what its consumers read"),), (), (), {}, {}))
      group  neurons  kept  chosen by
      w1           8     4  what its consumers read
    """

    chosen: tuple[Chosen, ...]
    solved: tuple[Solved, ...]
    follows: tuple[tuple[str, str], ...]
    kept: Mapping[str, Int[np.ndarray, "*batch m"]]
    sizes: Mapping[str, int]

    @property
    def scores(self) -> dict[str, Float[np.ndarray, "*batch n"]]:
        """By group, 1 for the neurons that were kept and 0 for the rest.

        What else is shaped like the parameters is carried along with them: ``maps =
        ifjax.transport_maps(params, spec, scores=report.scores)``, then ``ifjax.fuse_tree(state,
        spec, maps)``.
        """
        return {
            name: (np.arange(self.sizes[name]) == index[..., None]).any(-2).astype(np.float32)
            for name, index in self.kept.items()
        }

    def __str__(self) -> str:
        """Three tables."""
        chosen = [(c.group, str(c.size), str(c.kept), c.how) for c in self.chosen]
        parts = [_table(("group", "neurons", "kept", "chosen by"), chosen)]
        head = ("solved for", "K", "lambda", "error", "after", "held out", "after", "offset")
        solved = [
            (
                " + ".join(s.sites),
                str(s.rows),
                f"{s.shrinkage:g}",
                *(f"{x:.2%}" for x in (s.before, s.after, s.held_before, s.held_after)),
                s.offset or "none",
            )
            for s in self.solved
        ]
        if solved:
            parts.append(_table(head, solved))
        if self.follows:
            parts.append(_table(("not solved for", "because"), list(self.follows)))
        return "\n\n".join(parts)

    __repr__ = __str__


def warn_of_little(solved: Sequence[Solved]) -> None:
    """Warns where hardly anything is left of what the last unit gave, on inputs held out for it."""
    if not solved or not solved[-1].held_after > _LITTLE:
        return
    last = solved[-1]
    warnings.warn(
        f"{' + '.join(last.sites)}, the last that was solved for: the error is "
        f"{last.held_after:.0%} of what the dense values deviate from their mean, on inputs that "
        "were held out, so that less than a tenth is left. Cut less, or give more inputs",
        stacklevel=4,
    )


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Columns, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            x.rjust(w) if x[:1].isdigit() else x.ljust(w) for x, w in zip(row, widths, strict=True)
        ]
        return "  ".join(cells).rstrip()

    return "\n".join(map(line, [head, *rows]))
