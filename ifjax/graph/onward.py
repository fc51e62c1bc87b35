"""The graph of a network that has been shrunk before."""

from __future__ import annotations

import dataclasses

from ifjax.graph.trace import DependencyGraph
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure import axis as ex
from ifjax.structure.structure import at_widths


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
    if graph.structure.leaves != spec.structure.leaves:
        raise ValueError("the spec was made from another graph than this one")
    structure, widths = at_widths(graph.structure, spec.structure.widths), spec.structure.widths
    pinned = tuple(
        dataclasses.replace(p, size=ex.size(graph.structure.leaf[p.path].axes[p.axis], widths))
        for p in graph.pinned
    )
    return dataclasses.replace(graph, structure=structure, pinned=pinned)
