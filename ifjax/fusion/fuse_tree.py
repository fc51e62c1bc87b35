"""Trees that go along with the parameters: optimizer states, moving averages, gradients."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from ifjax.fusion.fuse import apply_maps
from ifjax.fusion.named_tree import Path, node_of, nodes_of
from ifjax.fusion.part_kinds import Kinds, check_patterns, explicit_kind, initial_kinds, kinds_of
from ifjax.fusion.state_kinds import Kind, checked_kind
from ifjax.fusion.state_parts import Likeness, Parameters, Part, parts_of
from ifjax.graph.shrink import shrink
from ifjax.namespace import AnyArray, Arrays
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure.structure import is_integer
from ifjax.transport.transport import Transport
from ifjax.tree import leaves_by_path

_NAME, _COLLECTION = "apply_fn", "params"


@with_promotion
def fuse_tree(
    tree: PyTree,
    spec: FusionSpec,
    maps: Mapping[str, Transport],
    kind: Kinds = None,
    keep_shape: bool = False,
    params: PyTree | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> PyTree:
    """Carries every sub-tree that is shaped like the parameters to the widths of a spec.

    Works on any tree: the state of an optax optimizer whatever it is chained, masked or partitioned
    of, a flax.nnx optimizer's, gradients, moving averages, and all of them with the parameters in a
    flax ``TrainState``, a dictionary or a tuple. A sub-tree is recognised by the paths of all its
    leaves: those of the parameters, or of a part of them (``variables["params"]``). What is none
    stays as it is: step counts, schedules, coefficients, a history of norms, one number per leaf.

    What becomes of a sub-tree is decided by its place, in this order: what ``kind`` says; the named
    states of optax (``z`` of schedule-free, ``params0`` of prodigy, ``x0`` of mechanize are
    weights, ``acc_grads`` of `optax.MultiSteps` are gradients); what ``optimizer.init`` puts there;
    its name (``mu``, ``momentum``, ``ema_params``, ``grads``). In a tree that holds an optimizer's
    state, the one sub-tree beside it that nothing names is the parameters. What cannot be told is
    refused.

    * ``"weights"``: as the parameters themselves; for them, copies and averages of them.
    * ``"select"``: the values of the kept neurons; for the moments of optimizers, second moments
      stay non-negative. Fused neurons keep the units of their target
      (`ifjax.fusion.batch_norm`), so that its moments fit them. So are integer, boolean and 8-bit
      trees, whatever they are: masks, quantised moments.
    * ``"gradients"``: contragrediently, see `ifjax.apply_maps`.
    * ``"keep"``: not at all.

    The ``apply_fn`` of a ``TrainState`` becomes ``ifjax.shrink(apply_fn, spec)``, so that the state
    goes on as it is; with ``keep_shape`` it stays.

    Args:
      tree: what is carried.
      spec: the spec that the maps were computed for.
      maps: from `ifjax.transport_maps`.
      kind: one of the first three, for every sub-tree; or a mapping from globs on the paths of
        sub-trees, or of what holds them, to one of the four (``{"*/z": "weights"}``, first match
        wins); by default, and where nothing matches, by the place.
      keep_shape: put the values in the places of the kept neurons, zeros elsewhere.
      params: the full parameters: for leaves that a copy of weights lacks and batch norms need (an
        average of ``variables["params"]`` alone); and for ``optimizer``.
      optimizer: that the state is of, with ``params`` as it is initialised with. It says of a state
        that is not optax's own what it holds: where it puts the parameters there are weights, other
        arrays of their shape are selected. That of a ``TrainState`` is asked without it.

    Returns:
      A tree of the same structure and dtypes.

    Raises:
      ValueError: naming the place, where nothing says what it holds; where an array goes with a
        parameter and has not its shape (a factored second moment, a tree that is small already);
        where it could belong to several; for a state that has no meaning at other widths (L-BFGS);
        and as `apply_maps`.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp, optax
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> maps = ifjax.transport_maps(params, spec)
      >>> state = ifjax.fuse_tree(optax.adam(0.1).init(params), spec, maps)
      >>> state[0].nu["w1"].shape, int(state[0].count)
      ((4, 4), 0)
    """
    check_spec(spec)
    if optimizer is not None and params is None:
        raise ValueError("optimizer= needs params=, the tree that its state was made for")
    initial = {} if optimizer is None else initial_kinds(optimizer, params, spec)
    carried = carry_parts(tree, spec, maps, kind, keep_shape, params, initial)
    return carried if keep_shape else with_small_functions(carried, spec)


def carry_parts(
    tree: PyTree,
    spec: FusionSpec,
    maps: Mapping[str, Transport],
    kind: Kinds,
    keep_shape: bool,
    params: PyTree | None,
    initial: Mapping[Path, Kind],
) -> PyTree:
    """`fuse_tree`, but for functions in the tree.

    Args:
      tree: what is carried.
      spec: as all up to ``params``, see `fuse_tree`.
      maps: of the spec.
      kind: what becomes of what.
      keep_shape: zeros instead of fewer neurons.
      params: the full parameters.
      initial: from `initial_kinds`.

    Returns:
      A tree of the same structure and dtypes.
    """
    checked_kind(kind)
    if not spec.structure.widths:
        return tree
    root, known, explicit = node_of(tree), Parameters.of(spec.structure), explicit_kind(kind)
    check_patterns(kind, root)
    for x in (node.value for node in nodes_of(root)):
        if all(hasattr(x, name) for name in ("tx", "params", "opt_state")):
            initial = {**initial, **initial_kinds(x.tx, x.params, spec)}
    parts = list(parts_of(root, known, explicit))
    kinds = kinds_of(root, parts, explicit, initial)
    leaves = jax.tree.leaves(tree)
    carry = functools.partial(_carried, spec, maps, keep_shape)
    for part, chosen in zip(parts, kinds, strict=True):
        if chosen != "weights":
            for index, x in carry(part.arrays, chosen, {}):
                leaves[index] = x
    weights = [p for p, chosen in zip(parts, kinds, strict=True) if chosen == "weights"]
    lacking = leaves_by_path({} if params is None else params)
    for arrays, from_elsewhere in _together(weights, lacking):
        for index, x in carry(arrays, "weights", from_elsewhere):
            leaves[index] = x
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


@with_promotion
def kept_mask(tree: PyTree, spec: FusionSpec, maps: Mapping[str, Transport]) -> PyTree:
    """Ones where a ``keep_shape`` result holds kept neurons, zeros where it holds dropped ones.

    Updates that are multiplied by it leave dropped neurons dropped. Without it they stay so by
    themselves only where no gradient reaches them: where the activation maps zero to zero.

    Args:
      tree: arrays shaped like the parameters, or anything that `fuse_tree` carries.
      spec: the spec.
      maps: from `ifjax.transport_maps`; only their targets are read.

    Returns:
      A tree of the structure and dtypes of ``tree``.

    Raises:
      ValueError: as `fuse_tree`.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.array([[3.0, 1.0, 2.0]]), "w2": jnp.ones((3, 1))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 1)))
      >>> spec = graph.spec(0.3, method="prune")
      >>> kept_mask(params, spec, ifjax.transport_maps(params, spec))["w1"].tolist()
      [[1.0, 0.0, 1.0]]
    """

    def ones(x: AnyArray) -> AnyArray:
        return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.ones_like(x)

    return fuse_tree(jax.tree.map(ones, tree), spec, maps, kind="select", keep_shape=True)


def _together(
    parts: Sequence[Part], lacking: Arrays
) -> Iterator[tuple[tuple[Likeness, ...], Arrays]]:
    """Copies of weights that belong together, and what each lacks, from elsewhere.

    Weights and statistics of one network lie beside each other; an average that has none of its own
    is normalised by those.
    """
    groups: list[tuple[Path, list[Likeness]]] = []
    for part in parts:
        mine = {x.leaf for x in part.arrays}
        for parent, found in groups:
            if parent == part.path[:-1] and not mine & {x.leaf for x in found}:
                found += part.arrays
                break
        else:
            groups.append((part.path[:-1], [*part.arrays]))
    outside = [x for part in parts if not part.inside for x in part.arrays]
    first = {x.leaf: x.entry.value for x in reversed(outside)}
    for _, found in groups:
        yield tuple(found), {**first, **lacking}


def _carried(
    spec: FusionSpec,
    maps: Mapping[str, Transport],
    keep_shape: bool,
    arrays: Sequence[Likeness],
    kind: str,
    lacking: Arrays,
) -> Iterator[tuple[int, Array]]:
    """The arrays of a part at the small widths, with their numbers among the tree's leaves."""
    structure = spec.structure
    whole, rest = dict[str, Likeness](), list[Likeness]()
    for x in arrays:
        floating = jnp.issubdtype(x.entry.value.dtype, jnp.inexact)
        fits = kind == "select" or floating != is_integer(structure.leaf[x.leaf].dtype)
        if x.axes is None and fits and x.leaf not in whole:
            whole[x.leaf] = x
        else:
            rest.append(x)
    given = {path: x.entry.value for path, x in whole.items()}
    if kind == "weights" and given:
        given = {**_missing(spec, given, lacking), **given}
    carried = apply_maps(given, spec, maps, kind, keep_shape) if given else {}
    for path, x in whole.items():
        yield _index(x), carried[path]
    for x in rest:
        yield _index(x), _selected(spec, maps, keep_shape, x)


def _index(x: Likeness) -> int:
    assert x.entry.index is not None  # arrays have one, placeholders are none
    return x.entry.index


def _missing(spec: FusionSpec, given: Arrays, lacking: Arrays) -> dict[str, AnyArray]:
    """The parameters that are not given: from elsewhere, or zeros where nothing given needs them.

    Batch norms need all of theirs.
    """
    structure, needed = spec.structure, set[str]()
    if spec.method.method == "fuse":
        for norm in structure.norms:
            held = {getattr(norm, f.name) for f in dataclasses.fields(norm)} & {*structure.leaf}
            needed |= held if held & {*given} else set()
    found = {path: x for path, x in lacking.items() if path in structure.leaf}
    for path, leaf in structure.leaf.items():
        if path not in {*given, *found, *needed}:
            dtype = "int32" if is_integer(leaf.dtype) else leaf.dtype
            found[path] = jnp.zeros(leaf.shape, dtype)
    return found


def _selected(
    spec: FusionSpec, maps: Mapping[str, Transport], keep_shape: bool, x: Likeness
) -> Array:
    """The kept neurons' values of an array that lacks axes of its parameter, or its dtype."""
    value, full = x.entry.value, spec.structure.leaf[x.leaf].shape
    lacks = [i for i in range(len(full)) if x.axes is not None and i not in x.axes]
    kept = value.ndim == len(full)
    wide = jnp.broadcast_to(value if kept else jnp.expand_dims(value, lacks), full)
    found = apply_maps({x.leaf: wide}, spec, maps, "select", keep_shape)[x.leaf]
    if not lacks:
        return found
    # The entries along these axes are equal; with keep_shape they are zeros where neurons went.
    most = jnp.max(found, tuple(lacks), keepdims=kept)
    least = jnp.min(found, tuple(lacks), keepdims=kept)
    return jnp.where(most != 0, most, least).astype(value.dtype)


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
