"""What a user says of the networks to be fused, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ifjax.spec.method import Method
from ifjax.structure.structure import Structure
from ifjax.transport.costs import Order
from ifjax.transport.solvers import Solver, solver_of
from ifjax.transport.transport import Transport
from ifjax.tree import is_concrete

Maps = Mapping[str, Transport]


def check_options(on: str, sweeps: int) -> None:
    """Raises ValueError where an option of alignment is none."""
    if on not in ("weights", "activations"):
        raise ValueError(f"on must be one of weights, activations; got {on!r}")
    if not isinstance(sweeps, int) or sweeps < 0:
        raise ValueError(f"sweeps must be an integer that is not negative, got {sweeps!r}")


def checked_method(solver: str | Solver, epsilon: float | int | None, cost_p: Order) -> Method:
    """A method of these options, with a solver that gives every target its mass."""
    method = Method(solver=solver_of(solver, epsilon), cost_p=cost_p)
    if not method.solver_value.balanced:
        raise ValueError(
            f"solver={method.solver!r} leaves targets that no neuron is nearest to empty; networks "
            "are aligned with 'exact', 'sinkhorn' or 'auto'"
        )
    return method


def check_maps(maps: Sequence[Maps], structures: Sequence[Structure]) -> None:
    """Raises where a network has no map of its shape for a group."""
    if len(maps) != len(structures) - 1:
        raise ValueError(
            f"expected maps for the {len(structures) - 1} networks after the first, got {len(maps)}"
        )
    for k, (found, structure) in enumerate(zip(maps, structures[1:], strict=True), 1):
        for group, target in zip(structure.groups, structures[0].groups, strict=True):
            shape = (*target.batch, group.size, target.size)
            got = found[group.name].map.shape if group.name in found else "none"
            if got != shape:
                raise ValueError(
                    f"models[{k}], group {group.name}: expected a map of shape {shape}, got {got}"
                )


def check_converged(found: Maps, k: int, method: Method) -> None:
    """Raises where a solver has not converged, outside of jit."""
    if all(is_concrete(*t) for t in found.values()):
        for name, t in found.items():
            if not np.all(t.converged):
                raise RuntimeError(
                    f"models[{k}], group {name}: solver {method.solver!r} did not converge, "
                    f"marginal error {float(np.max(t.marginal_error)):.2g} at epsilon "
                    f"{method.epsilon}; use a larger epsilon, or solver='exact'"
                )
