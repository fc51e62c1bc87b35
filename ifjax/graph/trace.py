"""Any JAX function and its parameters -> the groups of axes that must be cut together."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ifjax.graph.analysis import FIXED_KEY, Analysis, analyse
from ifjax.graph.facts.batching import batch_axes
from ifjax.graph.facts.exactness import inexact_classes
from ifjax.graph.facts.kinds import Products, find_products, kind_of
from ifjax.graph.facts.norms import find_norms
from ifjax.graph.facts.roles import find_roles
from ifjax.graph.graph import DependencyGraph
from ifjax.graph.grouping import Described, Facts, build
from ifjax.graph.hints import hints
from ifjax.graph.twin import doubled
from ifjax.graph.width_numbers import group_names, width_numbers
from ifjax.jaxprs.arguments import Arguments, check_order, is_array, struct
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.walk import Axes
from ifjax.promotion import with_promotion
from ifjax.structure import axis as ex
from ifjax.structure.structure import Kind, Role
from ifjax.tree import named_leaves

State: TypeAlias = str | Sequence[str] | Callable[[str], bool] | None


@with_promotion
def trace(
    apply_fn: Callable[..., PyTree],
    params: PyTree,
    *inputs: PyTree,
    state: State = None,
    **static: object,
) -> DependencyGraph:
    """Finds the groups of coupled axes of ``apply_fn(params, *inputs, **static)``.

    Args:
      apply_fn: any function that JAX can trace.
      params: pytree of arrays or `jax.ShapeDtypeStruct` that holds every array whose shape depends
        on a width: for flax.linen the whole variables, ``{"params": ..., "batch_stats": ...}``.
      *inputs: arrays or `jax.ShapeDtypeStruct`; Python values that are not arrays are static.
      state: which arrays among the inputs and outputs follow the widths, such as a KV cache or a
        recurrent carry: globs, or a predicate, on their paths, ``inputs/1/cache/k`` and
        ``outputs/1/cache/k``. An output replaces the input of the same shape whose path ends alike.
      **static: keyword arguments, not traced, but for random keys (``rngs={"dropout": key}``).

    Returns:
      The graph. Axes of inputs and outputs are pinned, except outputs that mirror a leaf of
      ``params`` (updated batch statistics). Where nothing can be cut, ``print(graph)`` and the
      error of `DependencyGraph.spec` say why and what to do; a random key that pins is warned of.

    Raises:
      ValueError: if ``params`` holds no arrays, ``state`` names nothing or a carry on one side
        only, or a batch norm's statistics are not among the parameters.
      TypeError: for arguments in another order.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> graph = trace(lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"], params, jnp.ones((1, 4)))
      >>> [(g.name, g.size) for g in graph.groups]
      [('w1', 8)]
    """
    check_order("trace(apply_fn, params, *inputs)", apply_fn, params)
    leaves = _described(params)
    arguments, is_state = Arguments.split(inputs, static), _predicate(state)
    given = [(p, struct(x)) for p, x in zip(arguments.paths, arguments.arrays, strict=True)]
    held = {path: x for path, x in given if is_state(path)}
    outputs: dict[str, None] = {}  # in order, each once

    def is_carried(path: str) -> bool:
        outputs[path] = None
        return is_state(path)

    try:
        analysis = analyse(
            apply_fn,
            params,
            arguments,
            static,
            _fresh,
            dict.fromkeys(held, _fresh),
            is_carried,
            elsewhere=doubled,
        )
    except Exception as error:
        _check_swapped(params, inputs, error)
        raise
    carried = [path for path in outputs if is_state(path)]
    if state is not None:
        shapes = [tuple(map(analysis.store.size, axes)) for axes in analysis.outputs]
        after = dict(zip(outputs, shapes, strict=True))
        _check_state(state, {path: tuple(x.shape) for path, x in given}, after, is_state)
    products = find_products(analysis.frame, analysis.store, analysis.leaves, analysis.inputs)
    follows = [
        ((path, tuple(x.shape), str(x.dtype)), axes)
        for (path, x), axes in zip(given, analysis.inputs, strict=True)
        if path in held
    ]
    facts, macs = _facts(analysis, products), analysis.macs
    found = build(analysis.store, analysis.leaves, macs, leaves, facts, follows, tuple(carried))
    names = group_names(analysis.store, analysis.leaves, [x.axes for x in found.structure.leaves])
    numbers = width_numbers(analysis.numbers, analysis.store, names, products.contracted)
    said = hints(analysis, found, facts.roles, arguments.paths)
    if any(FIXED_KEY in p.reason for p in found.pinned):
        warnings.warn(said[0], stacklevel=3)
    return DependencyGraph(*found, numbers=numbers, hints=said)


def _check_swapped(params: PyTree, inputs: Sequence[PyTree], error: Exception) -> None:
    """Raises TypeError where a function failed that was given its input before its parameters."""
    trees = [x for x in inputs if not is_array(x) and any(map(is_array, jax.tree.leaves(x)))]
    if is_array(params) and trees:
        raise TypeError(
            f"apply_fn(params, *inputs) failed ({type(error).__name__}: {error}); params is one "
            f"array of shape {tuple(params.shape)} and an input is a {type(trees[0]).__name__} of "
            f"{len(jax.tree.leaves(trees[0]))} arrays: if these are the parameters, they come "
            "before the inputs, trace(apply_fn, params, *inputs)"
        ) from error


def _check_state(
    state: State,
    before: Mapping[str, tuple[int, ...]],
    after: Mapping[str, tuple[int, ...]],
    is_state: Callable[[str], bool],
) -> None:
    """Raises ValueError where state is named that is not there, or on one side only."""
    named = [path for path in (*before, *after) if is_state(path)]
    if not named:
        raise ValueError(
            f"state={state!r} names no array among the inputs and outputs; the inputs are "
            f"{', '.join(before) or 'none'}, the outputs {', '.join(after) or 'none'}; a recurrent "
            "carry is named on both sides, such as state=['inputs/1', 'outputs/1']"
        )
    for these, others in ((before, after), (after, before)):
        if any(is_state(path) for path in others):
            continue
        for path, shape in these.items():
            tail = path.split("/")[-1]
            other = next((p for p, s in others.items() if s == shape and p.endswith(tail)), None)
            if is_state(path) and other is not None:
                raise ValueError(
                    f"state={state!r} names {path} of shape {shape}, and not {other}, of the same "
                    f"shape, which would keep its full width; a carry is named on both sides: "
                    f"state={[path, other]!r}"
                )


def _described(params: PyTree) -> list[Described]:
    """Path, shape and dtype of every leaf; refuses trees that are no parameters."""
    named = named_leaves(params)
    if not named:
        raise ValueError("params holds no arrays: expected a pytree of arrays or ShapeDtypeStructs")
    found: dict[str, Described] = {}
    for name, x in named:
        if name in found:
            raise ValueError(f"two leaves of params have the path {name}: rename one")
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise TypeError(
                f"params leaf {name}: expected an array or ShapeDtypeStruct, got "
                f"{type(x).__name__}; pass what is not an array as a keyword argument"
            )
        found[name] = (name, tuple(x.shape), str(x.dtype))
    return list(found.values())


def _facts(analysis: Analysis, products: Products) -> Facts:
    """What is known of a walked function besides its axes."""
    frame, store = analysis.frame, analysis.store
    leaves, inputs = analysis.leaves, analysis.inputs
    roles = find_roles(frame, store, leaves, inputs)
    norms = find_norms(frame, store, leaves, inputs)
    for norm in norms:
        assigned: dict[int | None, Role] = {norm.scale: "multiplicative"}
        assigned |= {norm.offset: "additive", norm.bias: "additive"}
        assigned |= {norm.mean: "mean", norm.variance: "variance"}
        for leaf, role in assigned.items():
            if leaf is not None:
                roles.of.update({(leaf, axis): role for axis in range(len(leaves[leaf]))})
    inexact = inexact_classes(frame, store, leaves, len(inputs), analysis.followed)

    def kind_at(root: int, at: Sequence[tuple[int, int]], axes: Sequence[ex.Expression]) -> Kind:
        if root in analysis.chosen:  # experts, codes: cut by name
            return "free"
        found = {roles.of.get(key, "additive") for key in at}
        return kind_of(root, found, bool(roles.both & {*at}), products, inexact, axes)

    return Facts(roles, norms, inexact, *batch_axes(store, leaves, frame), kind_at)


def _predicate(state: State) -> Callable[[str], bool]:
    """Whether a path is one of the state."""
    if state is None:
        return lambda path: False
    if callable(state):
        return lambda path: bool(state(path))
    globs = [state] if isinstance(state, str) else list(state)
    return lambda path: any(fnmatch.fnmatchcase(path, glob) for glob in globs)


def _fresh(store: AxisStore, path: str, x: jax.ShapeDtypeStruct) -> Axes:
    """Axes of a leaf, or of an input that is state; random keys have none that could be cut."""
    del path
    if jnp.issubdtype(x.dtype, jax.dtypes.extended):
        return tuple(store.pinned(n, "holds random keys") for n in x.shape)
    return tuple(store.fresh(n) for n in x.shape)
