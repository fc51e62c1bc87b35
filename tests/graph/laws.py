"""What every graph of every function must satisfy, in float64."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ifjax
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.tree import leaves_by_path, with_leaves

TOLERANCE = 1e-9
POWER = 1e-4  # what permuting one member alone must at least move the output by


def arrays(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Float64 arrays in general position, the same for the same name and shape."""
    return {name: array(*shape, seed=zlib.crc32(name.encode())) for name, shape in shapes.items()}


def array(*shape: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    return rng.uniform(0.3, 1.0, shape) * rng.choice([-1.0, 1.0], shape)


def shuffled(n: int) -> np.ndarray:
    """A permutation without fixed points that is not its own inverse."""
    return np.roll(np.arange(n), 1)


def independent(group: Any) -> np.ndarray:
    """A permutation of its own for every entry of a group's batch."""
    turns = np.arange(np.prod(group.batch)).reshape(*group.batch, 1)
    return (np.arange(group.size) + turns) % group.size


def kept(n: int) -> np.ndarray:
    """About half of the neurons, not the first ones."""
    return np.arange(1, n, 2)


def zeroed(params: Any, graph: ifjax.DependencyGraph, selections: dict[str, np.ndarray]) -> Any:
    """The full parameters with zeros wherever a neuron that is not selected lies."""
    leaves = leaves_by_path(params)
    for path, leaf in graph.structure.leaf.items():
        for axis, e in enumerate(leaf.axes):
            keep = np.zeros(leaf.shape[axis])
            keep[np.asarray(axis_arrays.indices(e, selections))] = 1
            shape = [-1 if i == axis else 1 for i in range(len(leaf.shape))]
            if not keep.all():
                leaves[path] = np.asarray(leaves[path]) * keep.reshape(shape)
    return with_leaves(params, leaves)


def distance(a: Any, b: Any) -> float:
    """Largest absolute difference of two outputs."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max(initial=0)) for x, y in pairs)


def finite(a: Any) -> bool:
    return all(np.isfinite(x).all() for x in jax.tree.leaves(a))


def permuted(
    params: Any, graph: ifjax.DependencyGraph, name: str, only: tuple[str, int] | None = None
) -> Any:
    """The parameters with a group permuted in all members, or in one alone."""
    leaves = leaves_by_path(params)
    order = {name: shuffled(graph.structure.group[name].size)}
    for path, leaf in graph.structure.leaf.items():
        for axis, e in enumerate(leaf.axes):
            if name in ex.atoms(e) and only in (None, (path, axis)):
                leaves[path] = np.take(
                    np.asarray(leaves[path]), axis_arrays.indices(e, order), axis
                )
    return with_leaves(params, leaves)


def hold(
    f: Any,
    params: Any,
    *inputs: Any,
    groups: dict[str, int] | None = None,
    silent: tuple[str, ...] = (),
    inert: tuple[str, ...] = (),
    power: bool = True,
    **static: Any,
) -> ifjax.DependencyGraph:
    """Traces a function and asserts the laws for every group of it.

    * The groups have the names and sizes given.
    * Permuting a group's neurons in all members leaves the output unchanged, also differently for
      every entry of its batch; permuting one of several members alone moves it (but for the leaves
      in ``silent``).
    * Keeping a subset and shrinking equals zeroing the other neurons, for every exact group alone
      and for all groups at once where all are exact; the inexact ones shrink to something finite.
      Zeroing moves the output (but for the groups in ``inert``).

    Without ``power`` nothing need move: the function was not chosen by hand.
    """
    with jax.enable_x64(True):
        params, inputs = jax.tree.map(
            lambda x: jnp.asarray(x) if isinstance(x, np.ndarray | np.generic) else x,
            (params, inputs),
        )
        graph = ifjax.trace(f, params, *inputs, **static)
        if groups is not None:
            assert {g.name: g.size for g in graph.groups} == groups
        run = jax.jit(lambda params: f(params, *inputs, **static))
        full = run(params)
        assert finite(full)
        for group in graph.groups:
            assert distance(run(permuted(params, graph, group.name)), full) < TOLERANCE, group.name
            if group.batch:
                turned = ifjax.take(params, graph, {group.name: independent(group)})
                assert distance(run(turned), full) < TOLERANCE, group.name
            for m in group.members if power and len(group.members) > 1 else ():
                alone = permuted(params, graph, group.name, (m.path, m.axis))
                change = distance(run(alone), full)
                assert (change < TOLERANCE) if m.path in silent else (change > POWER), m
        selections = [{g.name: kept(g.size)} for g in graph.groups] if power else []
        if len(selections) != 1 and graph.groups:
            selections.append({g.name: kept(g.size) for g in graph.groups})
        cuts, smalls = [], []
        for selection in selections:
            spec = graph.spec(keep={n: len(k) for n, k in selection.items()})
            small = ifjax.take(params, graph, selection)
            assert jax.tree.map(jnp.shape, small) == jax.tree.map(
                lambda s: s.shape, spec.small_struct(params)
            )
            cuts.append(ifjax.shrink(f, spec))
            smalls.append(small)

        def outputs(smalls: list[Any]) -> list[Any]:
            """In one program: to begin one takes longer than to run it."""
            return [cut(x, *inputs, **static) for cut, x in zip(cuts, smalls, strict=True)]

        found = jax.jit(outputs)(smalls) if cuts else []
        for selection, got in zip(selections, found, strict=True):
            if not all(graph.structure.group[name].exact for name in selection):
                assert finite(got), selection
                continue
            want = run(zeroed(params, graph, selection))
            assert distance(got, want) < TOLERANCE, selection
            if power and not set(selection) <= set(inert):
                assert distance(want, full) > POWER, selection
    return graph


def reasons(graph: ifjax.DependencyGraph) -> dict[tuple[str, int], str]:
    """Why axes are pinned."""
    return {(p.path, p.axis): p.reason for p in graph.pinned}


def between(middle: Any, width: int = 8, out: int | None = None) -> tuple[Any, dict[str, Any], Any]:
    """x @ a -> middle -> @ b: a function, its parameters and its input."""
    out = width if out is None else out

    def f(p: Any, x: Any) -> Any:
        return middle(x @ p["a"]) @ p["b"]

    return f, arrays(a=(3, width), b=(out, 2)), array(4, 3)
