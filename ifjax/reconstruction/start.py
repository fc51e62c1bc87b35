"""Where a walk begins: nothing is cut yet, leaves and inputs are where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ifjax.graph.facts.sites import find_sites
from ifjax.graph.resized import Resized
from ifjax.jaxprs.program import flatten
from ifjax.parallel.hosts import mesh_apart, on_device, together
from ifjax.reconstruction.walk import Walk


def start(resized: Resized, leaves: Sequence[Any], batches: Sequence[Sequence[Any]]) -> Walk:
    """A walk at its beginning: nothing is cut yet.

    Args:
      resized: the walked function.
      leaves: dense parameters, in the order of the tree.
      batches: arrays of the inputs, by batch.

    Returns:
      The walk.

    Raises:
      ValueError: for inputs that differ between processes and do not lie spread over them.
    """
    resized.widths.clear()
    resized.parts.clear()
    inputs = len(resized.analysis.inputs)
    program = flatten(resized.analysis.frame, [False] * len(leaves) + [True] * inputs)
    full = dict(zip(program.inputs, map(laid, leaves), strict=False))
    numbers, mesh = program.inputs[len(leaves) :], mesh_apart(leaves, batches)
    dense = [dict(zip(numbers, batch, strict=True)) for batch in together(batches, mesh)]
    sites, small = find_sites(program), [dict(values) for values in dense]
    return Walk(resized, program, sites, full, dict(full), dense, small, mesh=mesh)


def laid(leaf: Any) -> Any:
    """A leaf on the device, or on the host where it is an array of numpy, in jax's dtype."""
    if isinstance(leaf, np.ndarray):
        return leaf.astype(jax.dtypes.canonicalize_dtype(leaf.dtype), copy=False)
    return on_device(leaf)
