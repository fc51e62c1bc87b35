"""What the problems of all groups are read from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from ifjax.activations.statistics import Stats
from ifjax.fusion.execution.merging import fold
from ifjax.fusion.program import GroupProblem, Program
from ifjax.importance.independence import gram_independence
from ifjax.namespace import AnyArray, Arrays, fixed
from ifjax.parallel import placement
from ifjax.tree import promoted


@dataclasses.dataclass(frozen=True)
class Sources:
    """The arrays that groups are described and scored by, by path, at least float32.

    All of numpy, or all of jax, and no gradient flows through them. What is spread over devices
    and read as it is travels in its own dtype, and is promoted where it arrives.

    Attributes:
      described: with the batch norms folded in; as the levels that are done have changed them.
      raw: as they are, likewise changed; empty where no score is read from them.
      dense: as they were given.
      products: of weights and gradients.
      statistics: of every neuron, ``[*batch, n]`` by group; scores that are given among them.
    """

    described: Arrays
    raw: Arrays
    dense: Arrays
    products: Arrays
    statistics: Arrays

    def of(self, group: GroupProblem) -> tuple[Arrays, Arrays, AnyArray | None]:
        """What a group is described by, scored by, and its given scores, a batch in front."""
        found = {"raw": self.raw, "norm_scales": self.dense, "gradients": self.products}
        scored: Arrays = {}
        if group.scored is not None:
            scored = group.scored.entries(found.get(group.reads, self.described))
        given = self.statistics.get(group.name)
        if given is not None:
            given = given.reshape(group.count, group.size)
        return group.described.entries(self.described), scored, given

    def changed(self, merge: Callable[[Arrays], Arrays]) -> Sources:
        """With some of the arrays that later levels read merged."""
        described = {**self.described, **merge(self.described)}
        raw = {**self.raw, **merge(self.raw)} if self.raw else self.raw
        return dataclasses.replace(self, described=described, raw=raw)


def sources_of(program: Program, leaves: Arrays, scores: Arrays, stats: Stats | None) -> Sources:
    """What the groups of a program are read from before any of them is fused."""
    spec = program.spec
    folds = {path for norm in program.norms for path in dataclasses.astuple(norm)}
    as_is = placement.active()
    dense = {
        path: fixed(leaves[path] if as_is and path not in folds else promoted(leaves[path]))
        for path in program.read
    }
    folded = fold(dense, program.norms)
    products, statistics = {}, dict(scores)
    reads = {p.reads for level in program.levels for p in level.problems}
    if stats is not None and "gradients" in reads:
        products = {path: (promoted(dense[path]) * g).real for path, g in stats.gradients.items()}
    if stats is not None and "statistic" in reads:
        values = getattr(stats, program.statistic or "")
        for group in spec.structure.in_order():
            if group.name in values and group.name not in scores:
                x = _per_neuron(values[group.name], len(group.batch))
                statistics[group.name] = x / stats.count
    return Sources(folded, dense if "raw" in reads else {}, dense, products, statistics)


def _per_neuron(x: AnyArray, batch: int) -> AnyArray:
    """A statistic ``[*batch, n]``; of Gram matrices ``[*batch, n, n]`` what a channel holds."""
    if x.ndim == batch + 1:
        return x
    found = _independence(x.reshape(-1, *x.shape[batch:])).reshape(x.shape[:-1])
    return np.asarray(found) if isinstance(x, np.ndarray) else found


_independence = jax.jit(jax.vmap(gram_independence))
