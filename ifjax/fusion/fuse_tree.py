"""Trees that go along with the parameters: optimizer states, moving averages, gradients."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ifjax.fusion.fuse import apply_maps
from ifjax.spec.spec import FusionSpec
from ifjax.structure.structure import Structure
from ifjax.transport.transport import Transport
from ifjax.tree import leaves_by_path

Entry = tuple[tuple[str, ...], Any]


def fuse_tree(
    tree: PyTree,
    spec: FusionSpec,
    maps: Mapping[str, Transport],
    kind: str = "select",
    keep_shape: bool = False,
    params: PyTree | None = None,
) -> PyTree:
    """Carries every sub-tree that is shaped like the parameters to the widths of a spec.

    Works on any tree: gradients, a moving average, the state of an optax optimizer whatever it is
    chained, masked or partitioned of, a flax.nnx optimizer's. A sub-tree is recognised by its
    leaf paths: those of the parameters, or of a part of them (``variables["params"]``), all or
    some. Scalars, integers and random keys (step counts, schedules, one number per leaf) stay.

    * ``"select"``: the values of the kept neurons; for the moments of optimizers, second moments
      stay non-negative. Fused neurons keep the units of their target (`ifjax.fusion.batch_norm`),
      so that its moments fit them.
    * ``"gradients"``: contragrediently, see `ifjax.apply_maps`.
    * ``"weights"``: as the parameters themselves, for moving averages of them.

    A state that mixes kinds is carried in parts: gradients that ``optax.MultiSteps`` accumulates
    are best carried after an update, when they are zero, or by ``state._replace(acc_grads=...)``.

    Args:
      tree: what is carried.
      spec: the spec that the maps were computed for.
      maps: from `ifjax.transport_maps`.
      kind: ``"select"``, ``"gradients"`` or ``"weights"``.
      keep_shape: put the values in the places of the kept neurons, zeros elsewhere.
      params: with ``"weights"``, the full parameters, for leaves that the tree lacks and batch
        norms need (an average of ``variables["params"]`` alone).

    Returns:
      A tree of the same structure and dtypes.

    Raises:
      ValueError: naming the leaf, where an array belongs to no leaf of the parameters or has not
        its shape (a factored second moment), or could belong to several; and as `apply_maps`.

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
    flat, structure = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_masked)
    entries = [(tuple(jax.tree_util.keystr((k,), simple=True) for k in p), x) for p, x in flat]
    suffixes = _suffixes(spec.structure)
    results = [x for _, x in flat]
    matters = [i for i, (_, x) in enumerate(flat) if _is_masked(x) or _has_width(x)]
    for part, prefix, depth in _parts(
        [(i, entries[i]) for i in matters], 0, suffixes, spec.structure
    ):
        values = {_join(prefix, path[depth:]): i for i, (path, x) in part if not _is_masked(x)}
        given = {path: results[i] for path, i in values.items()}
        if kind == "weights":
            given = {**leaves_by_path({} if params is None else params), **given}
        carried = apply_maps(given, spec, maps, kind, keep_shape)
        for path, i in values.items():
            results[i] = carried[path]
    return jax.tree.unflatten(structure, results)


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

    def ones(x: Any) -> Any:
        return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jnp.ones_like(x)

    return fuse_tree(jax.tree.map(ones, tree), spec, maps, keep_shape=True)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _has_width(x: Any) -> bool:
    """Whether it is an array that a cut can concern."""
    return hasattr(x, "dtype") and x.size > 1 and jnp.issubdtype(x.dtype, jnp.floating)


def _join(prefix: str, path: Sequence[str]) -> str:
    return "/".join((prefix, *path) if prefix else path)


def _suffixes(structure: Structure) -> dict[str, set[str]]:
    """What may stand before every relative path of a leaf, or of a part of the tree."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in structure.leaf:
        keys = path.split("/")
        for end in range(len(keys) + 1):
            for start in range(end + (end < len(keys))):
                found["/".join(keys[start:end])].add("/".join(keys[:start]))
    return found


def _parts(
    entries: Sequence[tuple[int, Entry]],
    depth: int,
    suffixes: Mapping[str, set[str]],
    structure: Structure,
) -> Iterator[tuple[Sequence[tuple[int, Entry]], str, int]]:
    """The outermost sub-trees that look like parameters, what stands before their paths there."""
    arrays = [entry for _, entry in entries if not _is_masked(entry[1])]
    if not arrays:
        return
    prefixes = set.intersection(
        *(suffixes.get("/".join(path[depth:]), set()) for _, (path, _) in entries)
    )
    prefixes = {
        p for p in prefixes if all(_join(p, x[depth:]) in structure.leaf for x, _ in arrays)
    }
    if prefixes:
        yield entries, _the_prefix(prefixes, arrays, depth, structure), depth
        return
    for path, x in arrays:
        if len(path) == depth:
            raise ValueError(
                f"{'/'.join(path)}: an array of shape {x.shape} that belongs to no leaf of the "
                "parameters, so that it cannot be carried to other widths: carry the rest of the "
                "tree without it, or initialise the state anew on the small parameters"
            )
    children: dict[str, list[tuple[int, Entry]]] = defaultdict(list)
    for entry in entries:
        if len(entry[1][0]) > depth:
            children[entry[1][0][depth]].append(entry)
    for child in children.values():
        yield from _parts(child, depth + 1, suffixes, structure)


def _the_prefix(
    prefixes: set[str], arrays: Sequence[Entry], depth: int, structure: Structure
) -> str:
    """The one that fits the shapes."""

    def leaf(prefix: str, path: Sequence[str]) -> Any:
        return structure.leaf[_join(prefix, path[depth:])]

    fitting = [p for p in prefixes if all(leaf(p, path).shape == x.shape for path, x in arrays)]
    if not fitting:
        first = min(prefixes, key=len)
        path, x = next((p, x) for p, x in arrays if leaf(first, p).shape != x.shape)
        raise ValueError(
            f"{'/'.join(path)}: expected shape {leaf(first, path).shape} of the parameter "
            f"{leaf(first, path).path}, got {x.shape}; what is factored or blocked (adafactor, "
            "shampoo) cannot be carried to other widths: initialise it anew on the small parameters"
        )
    if len({tuple(leaf(p, path).axes for path, _ in arrays) for p in fitting}) > 1:
        raise ValueError(
            f"{'/'.join(arrays[0][0])}: belongs to one of the parameters "
            f"{', '.join(sorted(leaf(p, arrays[0][0]).path for p in fitting))}, and nothing says "
            "to which: pass the tree of all of them"
        )
    return min(fitting, key=len)
