"""Pruning a little at a time: graphs and specs of a network that has been shrunk before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from ifjax.fusion.inputs import check_spec
from ifjax.graph.trace import DependencyGraph
from ifjax.spec.spec import FusionSpec, Plan
from ifjax.structure import axis as ex


class Round(NamedTuple):
    """One round of an iterated compression.

    Attributes:
      step: from the widths of the round before to those of this one: for `ifjax.transport_maps`,
        `ifjax.apply_maps`, `ifjax.fuse_params` and `ifjax.fuse_tree`.
      total: from the original widths to those of this round: for `ifjax.shrink` and `ifjax.save`.
    """

    step: FusionSpec
    total: FusionSpec


def iterated(spec: FusionSpec, rounds: int, kind: str = "geometric") -> tuple[Round, ...]:
    r"""Splits a spec into rounds, between which the network can be trained.

    A group of n neurons of which m are to stay has after round i of r

    .. math:: n (m / n)^{i / r} \quad \text{(geometric)}, \qquad n - (n - m) i / r
        \quad \text{(linear)}

    neurons, rounded; after the last round exactly the widths of ``spec``. Lottery tickets are drawn
    with the geometric schedule (Frankle and Carbin, arXiv 1803.03635).

    Args:
      spec: the whole way.
      rounds: number of rounds, at least 1.
      kind: ``"geometric"`` removes the same share in every round, ``"linear"`` the same number.

    Returns:
      The rounds in order. In a round too small to remove a neuron of any group, ``step`` is the
      identity.

    Raises:
      ValueError: if ``rounds`` is not positive or ``kind`` unknown.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> small = params
      >>> for step, total in iterated(spec, 2):
      ...     small = ifjax.fuse_params(small, step)
      ...     print(small["w1"].shape, ifjax.shrink(apply, total)(small, jnp.ones((3, 4))).shape)
      (4, 6) (3, 2)
      (4, 4) (3, 2)
    """
    check_spec(spec)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be a positive integer; got {rounds!r}")
    if kind not in ("geometric", "linear"):
        raise ValueError(f"kind must be one of geometric, linear; got {kind!r}")
    found, before = [], spec.plan
    for i in range(1, rounds + 1):
        kept = {g.name: _kept(g.size, g.kept, i / rounds, kind) for g in spec.groups}
        step, total = (FusionSpec(_keeping(p, kept), spec.method) for p in (before, spec.plan))
        found.append(Round(step, total))
        before = at_widths(spec.plan, kept)
    return tuple(found)


def onward(graph: DependencyGraph, spec: FusionSpec) -> DependencyGraph:
    """The graph of the shrunk network, to make the next spec from: nothing is traced again.

    What hangs together at full width does so at any other. Groups keep their names.

    Args:
      graph: the graph that ``spec`` was made from.
      spec: the spec that the network was shrunk by.

    Returns:
      A graph whose sizes are the widths of ``spec``.

    Raises:
      ValueError: if the spec belongs to another network.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 4)))
      >>> onward(graph, graph.spec(0.25)).groups[0].size
      6
    """
    if not isinstance(graph, DependencyGraph):
        raise TypeError(f"expected the graph of ifjax.trace, got {type(graph).__name__}")
    check_spec(spec)
    if graph.plan.leaves != spec.plan.leaves:
        raise ValueError("the spec was made from another graph than this one")
    plan, widths = at_widths(graph.plan, spec.plan.widths), spec.plan.widths
    pinned = tuple(
        dataclasses.replace(p, size=ex.size(graph.plan.leaf[p.path].axes[p.axis], widths))
        for p in graph.pinned
    )
    return dataclasses.replace(graph, plan=plan, pinned=pinned)


def at_widths(plan: Plan, widths: Mapping[str, int]) -> Plan:
    """The plan of the network after its groups were cut to some widths."""

    def resized(e: ex.Expression) -> ex.Expression:
        match e:
            case ex.Atom(name, n):
                return ex.Atom(name, widths.get(name, n))
            case ex.Product(parts):
                return ex.Product(tuple(map(resized, parts)))
            case ex.Sum(parts):
                return ex.Sum(tuple(map(resized, parts)))
        return e

    leaves = tuple(
        dataclasses.replace(
            leaf, shape=plan.shape(leaf.path, widths), axes=tuple(map(resized, leaf.axes))
        )
        for leaf in plan.leaves
    )
    axes = {leaf.path: leaf.axes for leaf in leaves}
    groups = []
    for group in plan.groups:
        members = tuple(
            dataclasses.replace(m, where=tuple(ex.places(axes[m.path][m.axis], group.name)))
            for m in group.members
        )
        n = widths.get(group.name, group.size)
        batch = tuple(widths.get(a, k) for a, k in zip(group.along, group.batch, strict=True))
        groups.append(dataclasses.replace(group, size=n, kept=n, members=members, batch=batch))
    products = tuple(tuple(map(resized, product)) for product in plan.products)
    return dataclasses.replace(plan, leaves=leaves, groups=tuple(groups), products=products)


def _keeping(plan: Plan, kept: Mapping[str, int]) -> Plan:
    groups = tuple(dataclasses.replace(g, kept=kept[g.name]) for g in plan.groups)
    return dataclasses.replace(plan, groups=groups)


def _kept(n: int, m: int, part: float, kind: str) -> int:
    if part == 1:
        return m
    exact = n * (m / n) ** part if kind == "geometric" else n - (n - m) * part
    return min(n, max(m, round(exact)))
