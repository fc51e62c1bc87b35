"""Cuts after cuts: two specs as one, two maps as one, and full-shape results made small."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import PyTree

from ifjax.fusion.inputs import check_spec, known_group
from ifjax.fusion.take import take
from ifjax.spec.spec import FusionSpec
from ifjax.structure import axis as ex
from ifjax.transport.transport import Transport


def compose(second: FusionSpec, first: FusionSpec) -> FusionSpec:
    """The spec from the original widths to those after two cuts.

    ``shrink(apply_fn, compose(second, first))`` takes what ``fuse_params(fuse_params(params,
    first), second)`` returns, and `ifjax.save` and `ifjax.load` take both.

    Args:
      second: a spec of the small network: of `ifjax.onward`, of `ifjax.iterated`, or of a trace of
        ``shrink(apply_fn, first)``. Groups are matched by where they lie in the leaves, for names
        may hold positions.
      first: the spec that the small network was made by.

    Returns:
      A spec with the leaves and groups of ``first``, and the method of ``second``.

    Raises:
      ValueError: if the leaves of ``second`` are not those of ``first`` at its widths, or it cuts
        something that is not one group in ``first``.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 4)))
      >>> first = graph.spec(keep=6)
      >>> second = ifjax.onward(graph, first).spec(keep=3)
      >>> compose(second, first).plan.widths
      {'w1': 3}
    """
    check_spec(second)
    check_spec(first)
    mine, theirs = first.plan, second.plan
    for path in (*mine.leaf, *theirs.leaf):
        want = mine.shape(path) if path in mine.leaf else "none"
        got = theirs.leaf[path].shape if path in theirs.leaf else "none"
        if got != want:
            raise ValueError(
                f"{path}: expected shape {want}, the first spec's small one, in the second spec, "
                f"got {got}"
            )
    kept = dict(mine.widths)
    for leaf in theirs.leaves:
        for axis, cut in enumerate(leaf.axes):
            for group, width in _matched(mine.leaf[leaf.path].axes[axis], cut, first, second):
                kept[group] = width
    groups = tuple(dataclasses.replace(g, kept=kept.get(g.name, g.size)) for g in mine.groups)
    plan = dataclasses.replace(mine, groups=groups)
    for path in plan.leaf:
        if plan.shape(path) != theirs.shape(path):
            raise ValueError(
                f"{path}: the second spec cuts it to {theirs.shape(path)}, but the groups of the "
                f"first make it {plan.shape(path)}; make the second spec from ifjax.onward"
            )
    return FusionSpec(plan, second.method)


def _matched(
    mine: ex.Expression, theirs: ex.Expression, first: FusionSpec, second: FusionSpec
) -> Iterator[tuple[str, int]]:
    """Groups of the first plan with their widths after the second, along one axis of a leaf."""
    if not set(ex.atoms(theirs)) & second.plan.widths.keys():
        return
    mine, theirs = _simple(mine, first.plan.widths), _simple(theirs, {})
    match mine, theirs:
        case ex.Atom(name, n), ex.Atom(other, k) if n == k:
            yield name, second.plan.widths[other]
        case (ex.Product(a), ex.Product(b)) | (ex.Sum(a), ex.Sum(b)) if len(a) == len(b):
            for x, y in zip(a, b, strict=True):
                yield from _matched(x, y, first, second)
    # What matches nothing shows in the shapes.


def _simple(e: ex.Expression, widths: Mapping[str, int]) -> ex.Expression:
    """The expression at some widths, without factors of one and nested or neighbouring parts."""
    match e:
        case ex.Atom(name, n):
            n = widths.get(name, n)
            return ex.Atom(name, n) if n > 1 else ex.Pinned(1)
        case ex.Product(parts):
            flat: list[ex.Expression] = []
            for part in (_simple(p, widths) for p in parts):
                flat += part.factors if isinstance(part, ex.Product) else [part]
            flat = [p for p in flat if ex.size(p) != 1] or [ex.Pinned(1)]
            return flat[0] if len(flat) == 1 else ex.Product(tuple(flat))
        case ex.Sum(parts):
            joined: list[ex.Expression] = []
            for part in (_simple(p, widths) for p in parts):
                for segment in part.segments if isinstance(part, ex.Sum) else [part]:
                    if isinstance(segment, ex.Pinned) and joined:
                        last = joined[-1]
                        if isinstance(last, ex.Pinned):
                            joined[-1] = ex.Pinned(last.size + segment.size)
                            continue
                    joined.append(segment)
            return joined[0] if len(joined) == 1 else ex.Sum(tuple(joined))
    return e


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


def compact(params: PyTree, spec: FusionSpec, maps: Mapping[str, Transport | Any]) -> PyTree:
    """Makes a ``keep_shape`` result small: what stands in the places of the kept neurons.

    Args:
      params: what ``apply_maps(..., keep_shape=True)`` or ``fuse_params(..., keep_shape=True)``
        returned, trained further or not. For optimizer states use `ifjax.fuse_tree`.
      spec: its spec.
      maps: its maps; or by group name the indices of the kept neurons (``Transport.targets``).

    Returns:
      The small parameters, as without ``keep_shape``.

    Raises:
      ValueError: for parameters of another network, or a group without targets or with another
        number of them than the spec keeps.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.array([[3.0, 1.0, 2.0]]), "w2": jnp.ones((3, 1))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 1)))
      >>> spec = graph.spec(0.3, method="prune")
      >>> full = ifjax.fuse_params(params, spec, keep_shape=True)
      >>> compact(full, spec, {"w1": [0, 2]})["w1"].tolist()
      [[3.0, 2.0]]
    """
    targets = {
        name: found.targets if isinstance(found, Transport) else jnp.asarray(found)
        for name, found in maps.items()
    }
    for name in targets:
        known_group(spec.plan, name)
    for name, kept in spec.plan.widths.items():
        got = targets[name].shape if name in targets else "none"
        if got[-1:] != (kept,):
            raise ValueError(f"group {name}: expected {kept} kept neurons, got {got}")
    return take(params, spec, {name: targets[name] for name in spec.plan.widths})
