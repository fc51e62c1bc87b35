"""How the small parameters are computed: the choices of Intra-Fusion, checked."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from ifjax.importance import metrics as importances
from ifjax.structure.structure import Kind
from ifjax.transport import centroids as centroid_kinds
from ifjax.transport import solvers


@dataclasses.dataclass(frozen=True)
class Method:
    """How the small parameters are computed (Intra-Fusion, arXiv 2402.07839, section 3).

    Attributes:
      method: ``"fuse"`` merges all neurons into the kept ones by optimal transport; ``"prune"``
        keeps the neurons of highest importance as they are.
      importance: the score of a neuron: ``"l1"``, ``"l2"``, ``"linf"``, ``"lamp"``, ``"bn_scale"``,
        ``"random"``, or, with `ifjax.Stats`, ``"taylor"``, ``"fisher"``, ``"chip"``; see
        `ifjax.importance.metrics.score`.
      reduction: of the scores of a group's producers and consumers to one: ``"mean"``, ``"sum"``,
        ``"max"``, ``"first"`` (the first producer).
      normalization: what the scores of a group are divided by: their ``"mean"``, ``"max"``,
        ``"sum"``, or ``"none"``. Neither choice nor maps depend on it; `ifjax.neuron_scores` does.
      scores_on: weights that the magnitudes (l1, l2, linf, lamp) are read from: ``"folded"`` (batch
        norm merged) or ``"raw"``. The other importances do not depend on it.
      targets: what the neurons are fused into: ``"top"``, the neurons of highest score; or
        ``"centroids"`` of all neurons in feature space, each represented by a neuron near it.
      centroids: ``"kmeans"`` or ``"gaussian_mixture"``, see
        `ifjax.transport.centroids.clusters`.
      cost_p: order of the norm between the neurons' features, at least 1; or ``"cosine"`` for one
        minus the cosine between them, which is no metric.
      source_marginal: mass of the neurons, ``"uniform"`` or ``"importance"``.
      target_marginal: mass of the targets, likewise; the importance of a centroid is that of the
        neurons that belong to it.
      solver: ``"sinkhorn"``, ``"sinkhorn_kernel"`` (the same problem, faster), ``"exact"``,
        ``"nearest"``, or ``"auto"``, which chooses by size and backend
        (`ifjax.transport.solvers.choose`); `solver_for` says what.
      epsilon: entropic regularisation of Sinkhorn, relative to the mean cost.
      merge: ``"reference"`` or ``"preserving"``, see `ifjax.apply_maps`.
      order: ``"sequential"`` from the output to the input, each group on weights that the earlier
        ones have changed; ``"simultaneous"``, all from the given weights.
      heads: what ``method="fuse"`` does to attention heads and their dimensions: averaging heads
        that are not aligned is noise, so that they are pruned unless this says ``"fuse"``.
      seed: of the random importance and of the starts of k-means.
    """

    method: Literal["fuse", "prune"] = "fuse"
    importance: str = "l1"
    reduction: Literal["mean", "sum", "max", "first"] = "mean"
    normalization: Literal["mean", "max", "sum", "none"] = "mean"
    scores_on: Literal["folded", "raw"] = "folded"
    targets: Literal["top", "centroids"] = "top"
    centroids: Literal["kmeans", "gaussian_mixture"] = "kmeans"
    cost_p: float | Literal["cosine"] = 1.0
    source_marginal: Literal["uniform", "importance"] = "uniform"
    target_marginal: Literal["uniform", "importance"] = "uniform"
    solver: str = "sinkhorn"
    epsilon: float = 0.01
    merge: Literal["reference", "preserving"] = "reference"
    order: Literal["sequential", "simultaneous"] = "sequential"
    heads: Literal["prune", "fuse"] = "prune"
    seed: int = 0

    def of(self, kind: Kind) -> Method:
        """The method for groups of a kind: heads that are not to be fused are pruned."""
        if self.method == "fuse" and self.heads == "prune" and kind in ("head", "head_dim"):
            return dataclasses.replace(self, method="prune")
        return self

    def solver_for(self, n: int, m: int, backend: str | None = None) -> str:
        """The solver of a group of n neurons of which m are kept: what ``"auto"`` chooses there.

        Args:
          n: neurons.
          m: targets.
          backend: as `jax.default_backend` names it, which is the default.

        Returns:
          A key of `ifjax.transport.solvers.SOLVERS`.

        Example:
          >>> Method(solver="auto").solver_for(512, 256, backend="cpu")
          'exact'
        """
        uniform = self.source_marginal == self.target_marginal == "uniform"
        return solvers.choose(self.solver, n, m, uniform=uniform, backend=backend)

    def __post_init__(self) -> None:
        """Checks every choice.

        Raises:
          ValueError: naming the option, what it may be and what came.
        """
        choices = {
            "method": ("fuse", "prune"),
            "importance": tuple(importances.names()),
            "reduction": importances.REDUCTIONS,
            "normalization": importances.NORMALIZATIONS,
            "heads": ("prune", "fuse"),
            "scores_on": ("folded", "raw"),
            "targets": ("top", "centroids"),
            "centroids": centroid_kinds.CENTROIDS,
            "source_marginal": ("uniform", "importance"),
            "target_marginal": ("uniform", "importance"),
            "solver": (*solvers.SOLVERS, solvers.AUTO),
            "merge": ("reference", "preserving"),
            "order": ("sequential", "simultaneous"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")
        if self.cost_p != "cosine" and (isinstance(self.cost_p, str) or not self.cost_p >= 1):
            raise ValueError(
                f"cost_p must be at least 1 (inf is allowed) or 'cosine'; got {self.cost_p!r}"
            )
        if not 0 < self.epsilon < math.inf:
            raise ValueError(f"epsilon must be positive and finite; got {self.epsilon!r}")
