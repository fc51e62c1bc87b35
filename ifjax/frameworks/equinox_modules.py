"""Equinox modules: rebuilt with small arrays and the sizes that their layers declare."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

import jax
from jaxtyping import Array, PyTree

from ifjax.frameworks.agreement import blank_small, holds_cut, outer, require_agreement
from ifjax.fusion.fuse import apply_maps
from ifjax.fusion.fuse_tree import fuse_tree
from ifjax.fusion.transport_maps import transport_maps
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec
from ifjax.structure import axis as ex
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.structure import Structure
from ifjax.transport.transport import Transport
from ifjax.tree import named_leaves, path_name

Axes = Callable[[str], Sequence[ex.Expression]]


def equinox_function(
    module: PyTree, call: Callable[..., PyTree] | None = None
) -> tuple[Callable[..., PyTree], PyTree]:
    """A module as a pure function and the arrays that it is a function of.

    Args:
      module: an `equinox.Module`, or a tree of them; with batch norms ``(module, state)``, for the
        statistics are in the state and change their width too.
      call: what is called, ``call(module, *inputs, **static)``; by default the module itself, on
        one example. For a batch ``lambda module, x: jax.vmap(module)(x)``.

    Returns:
      ``apply_fn(arrays, *inputs, **static)`` and ``arrays``, for `ifjax.trace` and `ifjax.shrink`.

    Raises:
      ImportError: without equinox.

    Example:
      >>> import equinox as eqx, ifjax, jax, jax.numpy as jnp
      >>> model = eqx.nn.MLP(4, 2, width_size=8, depth=1, key=jax.random.key(0))
      >>> apply_fn, arrays = equinox_function(model)
      >>> [group.size for group in ifjax.trace(apply_fn, arrays, jnp.ones(4)).groups]
      [8]
    """
    eqx = _equinox()
    arrays, rest = eqx.partition(module, eqx.is_array)
    called = operator.call if call is None else call

    def apply_fn(arrays: PyTree, *inputs: PyTree, **static: object) -> PyTree:
        return called(eqx.combine(arrays, rest), *inputs, **static)

    return apply_fn, arrays


@with_promotion
def cut_equinox(
    module: PyTree,
    spec: FusionSpec,
    *inputs: PyTree,
    maps: Mapping[str, Transport] | None = None,
    call: Callable[..., PyTree] | None = None,
    **static: object,
) -> PyTree:
    """The module with small arrays, and with the sizes that its layers declare.

    It is called and trained as the full one. Whether that is the function at the small widths is
    tried out before anything is computed; where it is not (an attention whose head_dim was cut
    divides by the root of the new one), the error names the layers and says to call
    ``ifjax.shrink(apply_fn, spec)`` instead.

    Sizes are known of `equinox.nn`'s Linear, Conv, ConvTranspose, MLP, Embedding, the norms,
    MultiheadAttention, GRUCell and LSTMCell; other layers must read theirs off their arrays.

    Args:
      module: what `equinox_function` was given.
      spec: made from the graph of that function.
      *inputs: an example of its inputs, as arrays.
      maps: from `ifjax.transport_maps` on its arrays, for `carry_equinox`; computed by default.
      call: what `equinox_function` was given.
      **static: keyword arguments of the call.

    Returns:
      A tree of the same classes.

    Raises:
      ImportError: without equinox.
      ValueError: as `ifjax.apply_maps`; or where the cut module, called itself, is another
        function.

    Example:
      >>> import equinox as eqx, ifjax, jax, jax.numpy as jnp
      >>> model = eqx.nn.MLP(4, 2, width_size=8, depth=1, key=jax.random.key(0))
      >>> apply_fn, arrays = equinox_function(model)
      >>> spec = ifjax.trace(apply_fn, arrays, jnp.ones(4)).spec(0.5, solver="nearest")
      >>> small = cut_equinox(model, spec, jnp.ones(4))
      >>> small.width_size, small.layers[0].out_features, small(jnp.ones(4)).shape
      (4, 4, (2,))
    """
    eqx = _equinox()
    apply_fn, arrays = equinox_function(module, call)
    checked_leaves(arrays, spec.structure)
    rest = eqx.filter(module, eqx.is_array, inverse=True)

    def with_arrays(small: PyTree, unknown: list[str]) -> PyTree:
        return _with_sizes(eqx, eqx.combine(small, rest), "", spec.structure, unknown)

    unknown: list[str] = []
    blank = blank_small(arrays, spec)
    trial = with_arrays(blank, unknown)
    apply_cut, _ = equinox_function(trial, call)
    structure = jax.tree.structure(eqx.filter(trial, eqx.is_array))
    by_sizes = lambda p, *a, **k: apply_cut(  # noqa: E731
        jax.tree.unflatten(structure, jax.tree.leaves(p)), *a, **k
    )
    require_agreement(apply_fn, by_sizes, blank, spec, inputs, static, unknown)
    if maps is None:
        maps = transport_maps(arrays, spec)
    return with_arrays(apply_maps(arrays, spec, maps), [])


@with_promotion
def carry_equinox(
    tree: PyTree,
    cut: PyTree,
    spec: FusionSpec,
    maps: Mapping[str, Transport],
    kind: str | Mapping[str, str] | None = None,
    params: PyTree | None = None,
) -> PyTree:
    """`ifjax.fuse_tree` for an optimizer's state or a moving average, with the cut module's sizes.

    Equinox keeps sizes in the structure of a tree, which has to be that of the module.

    Args:
      tree: what is carried; it holds copies of the full module, or of a part of its arrays.
      cut: from `cut_equinox`.
      spec: the spec.
      maps: those that `cut_equinox` was given.
      kind: as for `ifjax.fuse_tree`: by default by the place in the tree.
      params: the arrays of the full module, as for `ifjax.fuse_tree`.

    Returns:
      A tree of the same classes.

    Raises:
      ImportError: without equinox.
      ValueError: as `ifjax.fuse_tree`; or where the tree holds a module that is not the cut one.

    Example:
      >>> import equinox as eqx, ifjax, jax, jax.numpy as jnp, optax
      >>> model = eqx.nn.MLP(4, 2, width_size=8, depth=1, key=jax.random.key(0))
      >>> apply_fn, arrays = equinox_function(model)
      >>> spec = ifjax.trace(apply_fn, arrays, jnp.ones(4)).spec(0.5, method="prune")
      >>> maps = ifjax.transport_maps(arrays, spec)
      >>> small = cut_equinox(model, spec, jnp.ones(4), maps=maps)
      >>> state = optax.adam(0.1).init(eqx.filter(model, eqx.is_inexact_array))
      >>> carry_equinox(state, small, spec, maps)[0].mu.layers[0].out_features
      4
    """
    eqx = _equinox()

    def is_module(x: object) -> bool:
        return isinstance(x, eqx.Module)

    known = {type(x): x for x in jax.tree.leaves(cut, is_leaf=is_module) if is_module(x)}

    def resized(part: PyTree) -> PyTree:
        if not is_module(part):
            return part
        if type(part) not in known:
            classes = ", ".join(sorted(c.__name__ for c in known))
            raise ValueError(
                f"expected a tree that holds copies of the cut module ({classes}), got "
                f"{type(part).__name__}"
            )
        held = {path for path, _ in named_leaves(part)}
        like = jax.tree_util.tree_map_with_path(
            lambda path, x: x if path_name(path) in held else None, known[type(part)]
        )
        return jax.tree.unflatten(jax.tree.structure(like), jax.tree.leaves(part))

    carried = fuse_tree(tree, spec, maps, kind, params=params)
    return jax.tree.map(resized, carried, is_leaf=is_module)


def _equinox() -> ModuleType:
    try:
        import equinox
    except ImportError as error:
        raise ImportError(
            "this needs equinox: pip install 'ifjax[equinox]', or pip install equinox"
        ) from error
    return equinox


def _with_sizes(
    eqx: ModuleType, tree: PyTree, at: str, structure: Structure, unknown: list[str]
) -> PyTree:
    """A tree with the static sizes of its layers read off their arrays; lists unknown layers."""
    children, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: x is not tree)
    names = ["/".join(filter(None, (at, path_name(path)))) for path, _ in children]
    if names in ([], [at]):
        return tree
    parts = [
        _with_sizes(eqx, child, name, structure, unknown)
        for name, (_, child) in zip(names, children, strict=True)
    ]
    tree = jax.tree.unflatten(treedef, parts)
    if not isinstance(tree, eqx.Module):
        return tree

    def axes(name: str) -> Sequence[ex.Expression]:
        return structure.leaf[f"{at}/{name}" if at else name].axes

    sizes = _sizes(eqx.nn, tree, axes, structure.widths)
    if not sizes and holds_cut(structure, names):
        unknown.append(f"{at or 'the module'} ({type(tree).__name__})")
    if isinstance(tree, eqx.nn.MultiheadAttention) and sizes["qk_size"] != tree.qk_size:
        unknown.append(
            f"{at or 'the module'} (MultiheadAttention, which divides by the root of its head_dim, "
            f"{tree.qk_size} before and {sizes['qk_size']} now: leave it whole by "
            "graph.spec(..., exclude=lambda g: g.kind == 'head_dim'))"
        )
    return _replaced(tree, sizes) if sizes else tree


def _replaced(layer: PyTree, sizes: Mapping[str, object]) -> PyTree:
    """A frozen layer with other static fields; its __init__ would draw new arrays."""
    copy = object.__new__(type(layer))
    for field in dataclasses.fields(layer):
        if field.name in sizes or hasattr(layer, field.name):
            value = sizes.get(field.name, getattr(layer, field.name, None))
            object.__setattr__(copy, field.name, value)
    return copy


def _sizes(
    nn: ModuleType, layer: PyTree, axes: Axes, widths: Mapping[str, int]
) -> dict[str, object]:
    """The sizes that a layer declares, read off its arrays; none where they are not known."""
    match layer:
        case nn.Linear():
            sizes = dict(zip(("out_features", "in_features"), layer.weight.shape[-2:], strict=True))
            return {k: n for k, n in sizes.items() if getattr(layer, k) != "scalar"}
        case nn.Conv() | nn.ConvTranspose():
            n, d, *_ = layer.weight.shape[-2 - layer.num_spatial_dims :]
            groups = outer(axes("weight")[-2 - layer.num_spatial_dims], layer.groups, widths)
            return {"in_channels": groups * d, "out_channels": n, "groups": groups}
        case nn.Embedding():
            count, n = layer.weight.shape[-2:]
            return {"num_embeddings": count, "embedding_size": n}
        case nn.LayerNorm() | nn.RMSNorm() if (x := _affine(layer)) is not None:
            return {"shape": x.shape[x.ndim - len(layer.shape) :]}
        case nn.GroupNorm() if (x := _affine(layer)) is not None:
            axis = axes("weight" if layer.weight is not None else "bias")[-1]
            return {"channels": x.shape[-1], "groups": outer(axis, layer.groups, widths)}
        case nn.BatchNorm() if (x := _affine(layer)) is not None:
            return {"input_size": x.shape[-1]}
        case nn.GRUCell() | nn.LSTMCell():
            return {
                "input_size": layer.weight_ih.shape[-1],
                "hidden_size": layer.weight_hh.shape[-1],
            }
        case nn.MultiheadAttention():
            q, k, v, out = (
                getattr(layer, f"{name}_proj").weight.shape[-2:]
                for name in ("query", "key", "value", "output")
            )
            heads = outer(axes("query_proj/weight")[-2], layer.num_heads, widths)
            outside = {"query_size": q[1], "key_size": k[1], "value_size": v[1]}
            inside = {"num_heads": heads, "qk_size": q[0] // heads, "vo_size": v[0] // heads}
            return {**outside, **inside, "output_size": out[0]}
        case nn.MLP() if layer.depth:
            # hidden layers may be of several widths, which nothing but a repr reads
            width = {"width_size": layer.layers[0].out_features}
            ends = {
                "in_size": layer.layers[0].in_features,
                "out_size": layer.layers[-1].out_features,
            }
            return {**width, **ends}
    return {}


def _affine(layer: PyTree) -> Array | None:
    return layer.bias if layer.weight is None else layer.weight
