"""What a function's parameters are made of: static, hashable values.

A `Structure` says which axes of which leaves belong to which group and how wide each group is to
be; it is all that shrinking, saving and loading need.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal

import jax.numpy as jnp

from ifjax.structure import axis as ex

SCHEMA_VERSION = 3


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the parameter tree.

    Attributes:
      path: ``keystr(simple=True, separator="/")`` of the leaf.
      shape: full shape.
      dtype: name of the dtype.
      axes: what lies along every axis.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[ex.Expression, ...]


@dataclasses.dataclass(frozen=True)
class Member:
    """One axis of one leaf that holds the neurons of a group.

    Attributes:
      path: path of the leaf.
      axis: the axis.
      role: what the leaf does to the neurons: ``producer`` (output axis of a kernel), ``consumer``
        (contracted axis), ``additive`` (bias, offset), ``multiplicative`` (scale, depthwise
        kernel), ``mean`` or ``variance`` (running statistics).
      where: positions of the neurons along the axis, one ``start:stop`` per occurrence; for merged
        axes ``start:stop=AxB.i``, the i-th factor; ``start:stop~`` where they, or the axis that
        they lie along, stand in another order.
      position: order of the last contraction that produces with the axis, -1 where none does.
    """

    path: str
    axis: int
    role: Role
    where: tuple[str, ...]
    position: int = -1


@dataclasses.dataclass(frozen=True)
class Group:
    """Neurons that can only be cut together.

    Attributes:
      name: path of the first producer, with what tells it apart where this holds several groups
        (`ifjax.structure.names`).
      size: number of neurons.
      kept: number of neurons that the spec keeps; ``size`` in a graph.
      kind: ``"neuron"`` where something produces and something consumes it; ``"head"`` and
        ``"head_dim"`` in attention, see `ifjax.graph.facts.kinds`; ``"integer"`` where a leaf of
        integers or booleans holds it; ``"free"`` where the axis could be cut but is not known to be
        neurons, so that it is cut only when named.
      members: the axes that hold it.
      batch: sizes of the axes that number independent copies of the neurons (layers of a scan,
        experts, heads of a head_dim): a choice and a map of its own for each, `[*batch, n, m]`.
        Queries and keys in one array with values are one copy, the values another.
      along: names of these axes in the leaves' axes: groups, or pinned axes that carry a name.
      exact: whether cutting neurons equals setting them to zero; not so where a norm, a softmax or
        a mean runs over them, or a weight is normalised over them.
    """

    name: str
    size: int
    kept: int
    kind: Kind
    members: tuple[Member, ...]
    batch: tuple[int, ...] = ()
    along: tuple[str, ...] = ()
    exact: bool = True

    @property
    def kernels(self) -> list[Member]:
        """Its producers and consumers; all members where there are none."""
        return [m for m in self.members if m.role in ("producer", "consumer")] or [*self.members]

    @functools.cached_property
    def position(self) -> int:
        """Order of the last producer in the function; later groups are fused first."""
        return max((m.position for m in self.members), default=-1)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """Leaf paths of a batch norm that can be folded into the kernel before it.

    Attributes:
      kernel: path of the kernel.
      axis: the kernel axis that is normalised.
      bias: path of a bias between the two.
      scale: path of the scale.
      offset: path of the offset.
      mean: path of the running mean.
      variance: path of the running variance.
      eps: added to the variance.
    """

    kernel: str
    axis: int
    bias: str | None
    scale: str
    offset: str | None
    mean: str
    variance: str
    eps: float


@dataclasses.dataclass(frozen=True)
class Structure:
    """Leaves, groups and widths.

    Attributes:
      leaves: every leaf of the parameter tree.
      groups: every group, with the number of neurons to keep.
      norms: batch norms that can be folded.
      products: per contraction of the function, the axes whose sizes multiply to its
        multiply-accumulates, for the inputs that were traced.
      state: inputs of the function whose axes follow the widths (a KV cache, a recurrent carry).
      carried: paths of the outputs that do.
      version: schema version.
    """

    leaves: tuple[Leaf, ...]
    groups: tuple[Group, ...]
    norms: tuple[BatchNorm, ...]
    products: tuple[tuple[ex.Expression, ...], ...]
    state: tuple[Leaf, ...] = ()
    carried: tuple[str, ...] = ()
    version: int = SCHEMA_VERSION

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, f.name) for f in dataclasses.fields(self)))

    def __hash__(self) -> int:
        """Computed once: a structure is a static argument of jitted functions."""
        return self._hash

    @functools.cached_property
    def leaf(self) -> dict[str, Leaf]:
        """Leaves by path."""
        return {leaf.path: leaf for leaf in self.leaves}

    @functools.cached_property
    def group(self) -> dict[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @functools.cached_property
    def widths(self) -> dict[str, int]:
        """Neurons kept, by the name of every group that is cut."""
        return {g.name: g.kept for g in self.groups if g.kept != g.size}

    def in_order(self, groups: Sequence[Group] | None = None) -> list[Group]:
        """Groups, by default those that are cut, from the output towards the input.

        A group comes before those that batch it, for its maps are for all of their neurons.
        """
        groups = [g for g in self.groups if g.kept != g.size] if groups is None else groups
        cut = sorted(groups, key=lambda g: -g.position)
        ordered: list[Group] = []
        waiting = {g.name: g for g in cut}
        inner: dict[str, list[Group]] = defaultdict(list)
        for group in cut:
            for name in group.along:
                inner[name].append(group)

        def add(group: Group) -> None:
            if waiting.pop(group.name, None) is not None:
                for other in inner[group.name]:
                    add(other)
                ordered.append(group)

        for group in cut:
            add(group)
        return ordered

    def shape(self, path: str, widths: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Shape of a leaf at the given widths, by default the structure's."""
        widths = self.widths if widths is None else widths
        return tuple(ex.size(a, widths) for a in self.leaf[path].axes)

    def neurons(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of neurons of all groups at the given widths, in every entry of their batch."""
        widths = self.widths if widths is None else widths

        def count(group: Group) -> int:
            batch = (widths.get(a, k) for a, k in zip(group.along, group.batch, strict=True))
            return math.prod(batch) * widths.get(group.name, group.size)

        return sum(map(count, self.groups))

    def weights(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of parameters at the given widths, running statistics and counters left out.

        A complex number is one parameter.
        """
        skip = {m.path for g in self.groups for m in g.members if m.role in ("mean", "variance")}
        skip |= {p for n in self.norms for p in (n.mean, n.variance)}
        leaves = (x for x in self.leaves if x.path not in skip)
        return sum(math.prod(self.shape(x.path, widths)) for x in leaves if not is_integer(x.dtype))

    def flops(self, widths: Mapping[str, int] | None = None) -> int:
        """Two per multiply-accumulate of all contractions, for the inputs that were traced."""
        widths = self.widths if widths is None else widths
        return 2 * sum(math.prod(ex.size(e, widths) for e in p) for p in self.products)


def keeping(structure: Structure, kept: Mapping[str, int]) -> Structure:
    """The structure whose groups are to keep some of their neurons; groups without a number all."""
    groups = (dataclasses.replace(g, kept=kept.get(g.name, g.size)) for g in structure.groups)
    return dataclasses.replace(structure, groups=tuple(groups))


def at_widths(structure: Structure, widths: Mapping[str, int]) -> Structure:
    """The structure of the network after its groups were cut to some widths."""

    def resized(e: ex.Expression) -> ex.Expression:
        return ex.mapped(e, lambda a: ex.Atom(a.name, widths.get(a.name, a.size)))

    leaves = tuple(
        dataclasses.replace(
            leaf, shape=structure.shape(leaf.path, widths), axes=tuple(map(resized, leaf.axes))
        )
        for leaf in structure.leaves
    )
    axes = {leaf.path: leaf.axes for leaf in leaves}
    groups = []
    for group in structure.groups:
        members = tuple(
            dataclasses.replace(m, where=tuple(ex.places(axes[m.path][m.axis], group.name)))
            for m in group.members
        )
        n = widths.get(group.name, group.size)
        batch = tuple(widths.get(a, k) for a, k in zip(group.along, group.batch, strict=True))
        groups.append(dataclasses.replace(group, size=n, kept=n, members=members, batch=batch))
    products = tuple(tuple(map(resized, product)) for product in structure.products)
    return dataclasses.replace(structure, leaves=leaves, groups=tuple(groups), products=products)


KEYS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}


def is_integer(dtype: str) -> bool:
    """Whether a leaf holds what cannot be averaged: integers, booleans, random keys."""
    return dtype[:3] == "key" or not jnp.issubdtype(jnp.dtype(dtype), jnp.inexact)


Kind = Literal["neuron", "head", "head_dim", "integer", "free"]


Role = Literal["producer", "consumer", "additive", "multiplicative", "mean", "variance"]
