"""The maps of two cuts as one."""

from __future__ import annotations

from collections.abc import Mapping

import jax.numpy as jnp

from ifjax.promotion import with_promotion
from ifjax.transport.transport import Transport


@with_promotion
def compose_maps(
    second: Mapping[str, Transport], first: Mapping[str, Transport]
) -> dict[str, Transport]:
    r"""The maps of two cuts as one, for the composed spec: targets of targets, products of plans.

    .. math:: T = T_1 \, \mathrm{diag}(T_2 1)^{-1} \, T_2

    Its M (see `ifjax.apply_maps`) is the product of both M where every neuron has mass; its P is
    the product of both P where, up to a factor, the second plan takes from every neuron the mass
    that the first one brings to it. Uniform marginals on both sides (the default) that the solver
    meets do both, and so does ``method="prune"``. Then ``apply_maps`` with the composed spec and
    maps gives what two calls give, but for the scale and variance of folded batch norms: their
    slope, and with it eval mode, is the same, but the spread is modelled from other kernels. What
    happens between two cuts and is no linear map (training, scores) is no part of a map: the second
    ones were found on what it left.

    Args:
      second: maps of the small network, by the first's group names, as `ifjax.onward` and
        `ifjax.iterated` keep them.
      first: maps of the full network.

    Returns:
      Maps of all groups of either. Costs, iterations and marginal errors are added up; the
      potential is the first one's.

    Raises:
      ValueError: if the second map of a group does not start where the first one ends.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(8), "w2": jnp.ones((8, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 8)))
      >>> first, second = ifjax.iterated(graph.spec(0.75, solver="nearest"), 2)
      >>> one = ifjax.transport_maps(params, first.step)
      >>> two = ifjax.transport_maps(ifjax.apply_maps(params, first.step, one), second.step)
      >>> compose_maps(two, one)["w1"].map.shape
      (8, 2)
    """
    found = {**second, **first}
    for name in second.keys() & first.keys():
        a, b = first[name], second[name]
        if (*a.map.shape[:-2], a.map.shape[-1]) != b.map.shape[:-1]:
            raise ValueError(
                f"group {name}: expected a second map [*batch, n, m] from what the first one, of "
                f"shape {a.map.shape}, leaves, got {b.map.shape}; where a batch axis was cut too "
                "(heads of a head_dim), apply the maps one after the other"
            )
        mass = b.map.sum(-1, keepdims=True)
        plan = a.map @ jnp.where(mass > 0, b.map / jnp.where(mass > 0, mass, 1), 0)
        found[name] = a._replace(
            map=plan,
            targets=jnp.take_along_axis(a.targets, b.targets, -1),
            converged=a.converged & b.converged,
            iterations=a.iterations + b.iterations,
            marginal_error=a.marginal_error + b.marginal_error,
            cost=a.cost + b.cost,
        )
    return found
