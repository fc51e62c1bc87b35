"""What a user gives besides the parameters, checked; and whether the solvers converged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

from ifjax.method import Method
from ifjax.spec import Group, Plan
from ifjax.transport import Transport
from ifjax.tree import is_concrete

Scores = Mapping[str, ArrayLike]


def known_group(plan: Plan, name: str) -> Group:
    """The group of a name; ValueError where there is none."""
    if name not in plan.group:
        known = ", ".join(list(plan.group)[:5]) or "none"
        raise ValueError(f"unknown group {name!r}; the groups are {known} ...")
    return plan.group[name]


def checked_scores(scores: Scores | None, plan: Plan) -> dict[str, Array]:
    """Scores ``[n]`` of known groups, finite and at least float32; no gradient flows into them."""
    result = {}
    for name, value in (scores or {}).items():
        group = known_group(plan, name)
        finite = not is_concrete(value) or bool(np.all(np.isfinite(np.asarray(value))))
        value = jnp.asarray(value)
        if value.shape != (group.size,):
            raise ValueError(
                f"scores of group {name}: expected shape ({group.size},), got {value.shape}"
            )
        if not finite:
            raise ValueError(f"scores of group {name}: expected finite numbers, got NaN or inf")
        value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
        result[name] = jax.lax.stop_gradient(value)
    return result


def checked_indices(plan: Plan, name: str, index: Any) -> Any:
    """A vector of integers in the range of a known group."""
    n = known_group(plan, name).size
    if is_concrete(index):
        index = np.asarray(index)
    if index.ndim != 1 or index.size == 0 or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f"group {name}: expected a vector of at least one integer index, got {index.dtype} of "
            f"shape {index.shape}"
        )
    if is_concrete(index) and not ((index >= 0) & (index < n)).all():
        raise ValueError(f"group {name}: expected indices in [0, {n}), got {index.tolist()}")
    return index


def check_maps(maps: Mapping[str, Transport], plan: Plan) -> None:
    """Raises ValueError unless every group that is cut has a map of its shape."""
    for name in maps:
        known_group(plan, name)
    for name, kept in plan.widths.items():
        shape = (plan.group[name].size, kept)
        if name not in maps or maps[name].map.shape != shape:
            got = maps[name].map.shape if name in maps else "none"
            raise ValueError(f"group {name}: expected a transport map of shape {shape}, got {got}")


def check_converged(maps: Mapping[str, Transport], method: Method) -> None:
    """Raises where a solver has not converged, outside of jit."""
    if not all(is_concrete(*found) for found in maps.values()):
        return
    failed = [name for name, found in maps.items() if not bool(found.converged)]
    if failed:
        found = maps[failed[0]]
        raise RuntimeError(
            f"solver {method.solver!r} did not converge for {len(failed)} of {len(maps)} groups, "
            f"first {failed[0]}: marginal error {float(found.marginal_error):.2g} after "
            f"{int(found.iterations)} iterations at epsilon {method.epsilon}; use a larger "
            "epsilon, or solver='exact'"
        )
