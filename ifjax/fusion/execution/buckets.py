"""From the leaves of many groups to their transport problems, stacked and padded to one size."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ifjax import importance
from ifjax.importance import GroupMetric
from ifjax.parallel import placement as mesh
from ifjax.parallel import ring
from ifjax.spec.method import Method
from ifjax.structure import axis as ex
from ifjax.structure.layout import SELF, Held, Place, parts
from ifjax.structure.structure import Group, Structure
from ifjax.transport import costs, transport
from ifjax.transport.targets import Neurons


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is static about reading a group; groups that agree in it are read as one.

    Attributes:
      size: number of neurons.
      kept: number of targets.
      batch: sizes of the batch axes: a problem of its own for every entry.
      described: the arrays that describe the neurons.
      scored: the arrays that are scored, if they are others.
      given: whether scores are given.
    """

    size: int
    kept: int
    batch: tuple[int, ...]
    described: Held
    scored: Held | None
    given: bool

    @property
    def count(self) -> int:
        """Number of problems."""
        return math.prod(self.batch)

    def moving(self, moved: bool) -> int:
        """Number of sources of a problem; targets are none where mass stays that can."""
        return self.size - self.kept if moved else self.size

    @property
    def extent(self) -> tuple[int, int, int]:
        """Neurons, targets and features of a problem."""
        return self.size, self.kept, self.described.width

    @property
    def bytes(self) -> int:
        """What features, points, cost and map take in float32."""
        n, m, d = self.extent
        return 4 * self.count * (n * d + m * d + 2 * n * m)


@dataclasses.dataclass(frozen=True)
class Bucket:
    """What is static about problems that are solved together.

    Attributes:
      units: the groups; equal ones stand side by side.
      method: how they are read.
      moved: whether mass that stays where it is has been left out, see `read`.
    """

    units: tuple[Unit, ...]
    method: Method
    moved: bool

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.units, self.method, self.moved))

    def __hash__(self) -> int:
        """Computed once."""
        return self._hash


class Inputs(NamedTuple):
    """What is read of a group: arrays as `Unit` says, scores ``[*batch, n]``, its random seed."""

    described: list[Array]
    scored: list[Array] | None
    scores: Array | None
    number: Any


class Problems(NamedTuple):
    """The transport problems of a bucket.

    Sources, targets and features beyond those of a problem are padding: their mass is zero.

    Attributes:
      scores: of the neurons; None once they are no longer needed.
      targets: the neurons that are kept, ascending; n where there is none.
      a: mass of the neurons.
      b: mass of the targets.
      sources: the neurons that move, ascending; n where there is none. None if all do.
      cost: of moving each of them to each target. None where nothing is to be solved.
    """

    scores: Float[Array, "b n"] | None
    targets: Int[Array, "b m"]
    a: Float[Array, "b n"]
    b: Float[Array, "b m"]
    sources: Int[Array, "b k"] | None
    cost: Float[Array, "b k m"] | None


@functools.partial(jax.jit, static_argnames="bucket")
def read(inputs: list[Inputs], bucket: Bucket) -> Problems:
    """Scores, targets, marginals and costs of the groups of a bucket.

    Where source and target marginal are of one kind, a target receives at least the mass that it
    had. If the cost is a metric, an optimal plan then leaves that mass where it is (by the triangle
    inequality), and the problem shrinks to the other neurons: ``OT(a, b) = OT((a - b)^+,
    (b - a)^+)``. With ``bucket.moved`` only their costs are computed.

    Args:
      inputs: one per unit of the bucket.
      bucket: what is static.

    Returns:
      The stacked problems, those of a group with batch axes one after another.
    """
    found: list[_Read] = []
    start = 0
    while start < len(inputs):
        unit = bucket.units[start]
        stop = start + 1
        while stop < len(inputs) and bucket.units[stop] == unit:
            stop += 1
        found.append(_read_alike(inputs[start:stop], unit, bucket))
        start = stop

    def column(name: str, value: int = 0) -> Any:
        column = [getattr(x, name) for x in found]
        return None if column[0] is None else stacked(column, value=value)

    features, points = column("features"), column("points")
    cost = None
    if points is not None:
        metric = functools.partial(costs.cost_matrix, p=bucket.method.cost_p, axis=1)
        cost = _over(functools.partial(ring.pairwise, metric, axis=1), features, points)
    n = max(unit.size for unit in bucket.units)
    return Problems(
        column("scores"), column("targets", n), column("a"), column("b"), column("sources", n), cost
    )


def stacked(parts: list[Array], shape: Sequence[int] | None = None, value: int = 0) -> Array:
    """Arrays ``[b, ...]`` of any sizes as one, padded with the value to a shape that holds all."""
    if shape is None:
        shape = [max(sizes) for sizes in zip(*(x.shape[1:] for x in parts), strict=True)]
    wide = [
        jnp.pad(
            x,
            ((0, 0), *((0, n - k) for n, k in zip(shape, x.shape[1:], strict=True))),
            constant_values=value,
        )
        for x in parts
    ]
    return wide[0] if len(wide) == 1 else jnp.concatenate(wide)


def _over(one: Callable[..., Any], *operands: Any) -> Any:
    """`jax.vmap`; of a single entry without it, which is half the time that tracing takes."""
    if any(len(x) > 1 for x in jax.tree.leaves(operands)):
        return jax.vmap(one)(*operands)
    found = one(*jax.tree.map(lambda x: x[0], operands))
    return jax.tree.map(lambda x: x[None], found)


class _Read(NamedTuple):
    """`Problems` before their costs: features ``[b, d, k]`` of what moves, and of the targets."""

    scores: Array
    targets: Array
    a: Array
    b: Array
    sources: Array | None = None
    features: Array | None = None
    points: Array | None = None


def _read_alike(inputs: list[Inputs], unit: Unit, bucket: Bucket) -> _Read:
    """The problems ``[b, ...]`` of groups that agree in what is static."""

    def stack(held: Held, arrays: list[list[Array]]) -> list[Array]:
        entries = [held.entries(x) for x in arrays]
        if len(entries) == 1:
            return entries[0]
        # Copied as they lie: joined to what reads them with strides it takes several times longer.
        return jax.lax.optimization_barrier(
            [jnp.concatenate(x) for x in zip(*entries, strict=True)]
        )

    described = stack(unit.described, [x.described for x in inputs])
    scored = None
    if unit.scored is not None:
        scored = stack(unit.scored, [x.scored or [] for x in inputs])
    scores = [x.scores.reshape(-1, unit.size) for x in inputs if x.scores is not None]
    keys = None
    if bucket.method.importance_value.random or bucket.method.targets_value.random:
        keys = jnp.concatenate([_keys(x.number, unit, bucket.method.seed) for x in inputs])
    one = functools.partial(_problem, unit=unit, bucket=bucket)
    return _over(one, described, scored, jnp.concatenate(scores) if scores else None, keys)


def _keys(number: Any, unit: Unit, seed: int) -> Array:
    key = jax.random.fold_in(jax.random.key(seed), number)
    return jax.random.split(key, unit.count) if unit.batch else key[None]


def _problem(
    described: list[Array],
    scored: list[Array] | None,
    scores: Array | None,
    key: Any,
    unit: Unit,
    bucket: Bucket,
) -> _Read:
    """Scores, targets, marginals, sources, features of the sources and points of the targets."""
    method, (n, m) = bucket.method, (unit.size, unit.kept)
    if scores is None:
        held = unit.scored or unit.described
        scores = scores_of(described if scored is None else scored, held, key, method)
    chosen = method.targets_value
    if method.method == "prune" and isinstance(chosen, Neurons):
        zero = jnp.zeros_like(scores)
        return _Read(scores, jnp.sort(chosen.first(scores, m)), zero, zero[:m])
    found = parts(described, unit.described.where)
    columns = functools.partial(_columns, found, mesh.settled(costs.factors(found)))
    if isinstance(chosen, Neurons):
        order = chosen.first(scores, n)
        targets, sources = mesh.settled(jnp.sort(order[:m])), None
        if bucket.moved:
            sources = mesh.settled(jnp.sort(order[m:]))
        features, points, mass = columns(sources), columns(targets), scores[targets]
    else:
        features, sources, at = columns(None), None, jax.random.fold_in(key, 1)
        clusters = chosen.clusters(features.T, m, at, scores)
        targets, points = clusters.targets, clusters.centroids.T
        mass = jnp.maximum(scores, 0) @ clusters.shares
    a = transport.marginal(method.source_marginal, scores)
    b = transport.marginal(method.target_marginal, mass)
    if method.method == "prune":
        return _Read(scores, targets, a, b)
    return _Read(scores, targets, a, b, sources, features, points)


def _columns(
    found: list[tuple[Array, int]], factors: Float[Array, " n"], index: Int[Array, " k"] | None
) -> Float[Array, "d k"]:
    """The features of some neurons, or of all, as columns: in one pass over what holds them."""
    if index is not None:
        found = [(mesh.take(x, index, at), at) for x, at in found]
        factors = factors[index]
    columns = [
        jnp.moveaxis(mesh.spread(x, at), at, -1).reshape(-1, len(factors)) for x, at in found
    ]
    # Features of zero, for an accumulation without a rest to compile.
    spare = -sum(map(len, columns)) % costs.CHUNK
    return jnp.concatenate([*columns, jnp.zeros((spare, len(factors)), factors.dtype)]) * factors


def scores_of(arrays: list[Array], held: Held, key: Array | None, method: Method) -> Array:
    """The importance of the neurons that some arrays hold."""
    members, axes = zip(*parts(arrays, held.where), strict=True)
    return importance.score(
        method.importance_value, members, key, method.reduction, method.normalization, axes
    )


def statistic(group: Group) -> Held:
    """Scores of the neurons of a group, as an array that holds it."""
    return Held(((group.size,),), (Place(0, 0, "producer", ex.Atom(SELF, group.size)),))


def with_scales(structure: Structure, group: Group, asked: str | GroupMetric) -> Group:
    """The group with the scales of its batch norms as its only members.

    Those that can be folded; where there are only others, every vector that multiplies neurons with
    running statistics.
    """
    known = {norm.scale for norm in structure.norms}
    scales = [m for m in group.members if m.path in known]
    if not scales and any(m.role == "variance" for m in group.members):
        vectors = (m for m in group.members if len(structure.leaf[m.path].shape) == 1)
        scales = [m for m in vectors if m.role == "multiplicative"]
    if not scales:
        raise ValueError(
            f"group {group.name}: importance {asked!r} reads the scales of its batch norms, and "
            "it has none; choose another importance, exclude the group, or pass scores for it"
        )
    return dataclasses.replace(group, members=tuple(scales))
