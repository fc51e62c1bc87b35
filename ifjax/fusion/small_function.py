"""The functions that a training state holds, at the widths of a spec."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from ifjax.graph.shrink import shrink
from ifjax.spec.spec import FusionSpec
from ifjax.tree import leaves_by_path

_NAME, _COLLECTION = "apply_fn", "params"


def with_small_functions(tree: PyTree, spec: FusionSpec) -> PyTree:
    """A tree whose training states call the function at the small widths.

    Args:
      tree: with nodes that hold a function as ``apply_fn``, as ``flax.training.train_state`` does;
        or none.
      spec: what is cut.

    Returns:
      The same tree where there is none.
    """
    held = []

    def is_state(x: object) -> bool:
        found = callable(getattr(x, _NAME, None)) and dataclasses.is_dataclass(x)
        held.extend([x] if found else [])
        return found

    def small(x: PyTree) -> PyTree:
        if is_state(x):
            return dataclasses.replace(x, **{_NAME: small_function(getattr(x, _NAME), spec)})
        return x

    jax.tree.leaves(tree, is_leaf=is_state)
    return jax.tree.map(small, tree, is_leaf=is_state) if held else tree


def small_function(apply_fn: Callable[..., PyTree], spec: FusionSpec) -> Callable[..., PyTree]:
    """`ifjax.shrink`, for a function that takes its parameters alone or in a collection.

    A spec may be of ``module.apply`` with ``{"params": params}``, or of a function of ``params``,
    while the state calls the other one of the two.

    Args:
      apply_fn: the function at full width.
      spec: what is cut.

    Returns:
      The function; the same one for the same arguments, so that nothing compiles twice.
    """
    try:
        return _small_function(apply_fn, spec)
    except TypeError:  # a function that has no hash
        return _small_function.__wrapped__(apply_fn, spec)


@functools.lru_cache(maxsize=16)
def _small_function(apply_fn: Callable[..., PyTree], spec: FusionSpec) -> Callable[..., PyTree]:
    as_traced = shrink(apply_fn, spec)
    alone = shrink(lambda p, *inputs, **static: apply_fn({_COLLECTION: p}, *inputs, **static), spec)
    within = shrink(lambda v, *inputs, **static: apply_fn(v[_COLLECTION], *inputs, **static), spec)

    def apply_small(variables: PyTree, *inputs: PyTree, **static: object) -> PyTree:
        paths, known = {*leaves_by_path(variables)}, {*spec.structure.leaf}
        if paths == {f"{_COLLECTION}/{path}" for path in known}:
            return alone(variables[_COLLECTION], *inputs, **static)
        if known == {f"{_COLLECTION}/{path}" for path in paths}:
            return within({_COLLECTION: variables}, *inputs, **static)
        return as_traced(variables, *inputs, **static)

    return apply_small
