"""The uniform ratio of neurons that fits a budget of weights or operations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from ifjax.structure.structure import Group, Structure

UNITS = ("neurons", "weights", "flops")
_STEPS = 30  # of bisection: the ratio to 1e-9


def groups_for(
    structure: Structure,
    share: float,
    of: str,
    cut: Callable[[float], tuple[Group, ...]],
) -> tuple[Group, ...]:
    """The groups at the least uniform ratio that removes a share of the network's weights or FLOPs.

    Half of the neurons of every group is about three quarters of the weights, for a kernel has
    neurons on either side: a share of the weights asks for fewer neurons.

    Args:
      structure: leaves, groups, and the contractions that FLOPs are counted by.
      share: of all weights, or of all FLOPs, to be removed; in [0, 1).
      of: ``"weights"`` or ``"flops"``.
      cut: from a ratio of neurons to the groups with the numbers to keep.

    Returns:
      The groups with the numbers to keep.

    Raises:
      ValueError: where the groups that may be cut do not hold so much.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"a": jnp.ones((8, 64)), "b": jnp.ones((64, 64)), "c": jnp.ones((64, 8))}
      >>> apply = lambda p, x: x @ p["a"] @ p["b"] @ p["c"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 8)))
      >>> spec = graph.spec(0.5, of="weights")
      >>> spec.structure.widths, spec.weights()
      ({'a': 43, 'b': 43}, (5120, 2537))
    """
    total = {"weights": structure.weights, "flops": structure.flops}[of]
    whole = total({})

    def removed(groups: tuple[Group, ...]) -> float:
        small = dataclasses.replace(structure, groups=groups)
        count = small.weights() if of == "weights" else small.flops()
        return 1 - count / whole if whole else 0.0

    if removed(cut(0.0)) >= share - 1e-12:
        return cut(0.0)
    low, high = 0.0, 1 - 1e-9
    found = cut(high)
    if removed(found) < share - 1e-12:
        raise ValueError(
            f"no uniform ratio removes {share:.1%} of the {of}: with one neuron left in every "
            f"group that may be cut {removed(found):.1%} would be gone; ask for less, or widen "
            "include, exclude or protect"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        groups = cut(middle)
        if removed(groups) >= share - 1e-12:
            high, found = middle, groups
        else:
            low = middle
    return found
