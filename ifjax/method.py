"""How the small parameters are computed: the choices of Intra-Fusion, checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ifjax import importance as importances
from ifjax import solvers


@dataclasses.dataclass(frozen=True)
class Method:
    """How the small parameters are computed (Intra-Fusion, arXiv 2402.07839, section 3).

    Attributes:
      method: ``"fuse"`` merges all neurons into the kept ones by optimal transport; ``"prune"``
        keeps the neurons of highest importance as they are.
      importance: ``"l1"``, ``"l2"``, ``"linf"`` or ``"random"``: the score of a neuron.
      scores_on: weights the score is read from: ``"folded"`` (batch norm merged) or ``"raw"``.
      targets: ``"top"``: the neurons of highest score are what the others are fused into.
      cost_p: order of the norm between the neurons' features, at least 1.
      source_marginal: mass of the neurons, ``"uniform"`` or ``"importance"``.
      target_marginal: mass of the targets, likewise.
      solver: ``"sinkhorn"``, ``"exact"`` or ``"nearest"``.
      epsilon: entropic regularisation of Sinkhorn, relative to the mean cost.
      merge: ``"reference"`` or ``"preserving"``, see `ifjax.apply_maps`.
      order: ``"sequential"`` from the output to the input, each group on weights that the earlier
        ones have changed; ``"simultaneous"``, all from the given weights.
      seed: of the random importance.
    """

    method: Literal["fuse", "prune"] = "fuse"
    importance: str = "l1"
    scores_on: Literal["folded", "raw"] = "folded"
    targets: Literal["top"] = "top"
    cost_p: float = 1.0
    source_marginal: Literal["uniform", "importance"] = "uniform"
    target_marginal: Literal["uniform", "importance"] = "uniform"
    solver: str = "sinkhorn"
    epsilon: float = 0.01
    merge: Literal["reference", "preserving"] = "reference"
    order: Literal["sequential", "simultaneous"] = "sequential"
    seed: int = 0

    def __post_init__(self) -> None:
        """Checks every choice.

        Raises:
          ValueError: naming the option, what it may be and what came.
        """
        choices = {
            "method": ("fuse", "prune"),
            "importance": tuple(importances.IMPORTANCES),
            "scores_on": ("folded", "raw"),
            "targets": ("top",),
            "source_marginal": ("uniform", "importance"),
            "target_marginal": ("uniform", "importance"),
            "solver": tuple(solvers.SOLVERS),
            "merge": ("reference", "preserving"),
            "order": ("sequential", "simultaneous"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        if not self.cost_p >= 1:
            raise ValueError(f"cost_p must be at least 1 (inf is allowed); got {self.cost_p!r}")
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be positive and finite; got {self.epsilon!r}")
