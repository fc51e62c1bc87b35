"""flax.nnx modules and optimizers: cut in place."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction

from flax import nnx
from jaxtyping import Array, PyTree

from ifjax.frameworks.agreement import blank_small, holds_cut, outer, require_agreement
from ifjax.fusion.fuse import apply_maps
from ifjax.fusion.fuse_tree import carry_parts
from ifjax.fusion.part_kinds import initial_kinds
from ifjax.fusion.transport_maps import transport_maps
from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec
from ifjax.structure import axis as ex
from ifjax.structure.leaves import checked_leaves
from ifjax.structure.structure import Structure
from ifjax.transport.transport import Transport

Axes = Callable[[str], Sequence[ex.Expression]]


def nnx_function(
    module: nnx.Module, call: Callable[..., PyTree] | None = None
) -> tuple[Callable[..., PyTree], PyTree]:
    """A module as a pure function and the arrays that it is a function of.

    Args:
      module: in eval mode, for what it changes in its variables is not returned.
      call: what is called, ``call(module, *inputs, **static)``; by default the module itself.

    Returns:
      ``apply_fn(state, *inputs, **static)`` and ``state``, for `ifjax.trace` and `ifjax.shrink`.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> apply_fn, state = nnx_function(model)
      >>> [group.size for group in ifjax.trace(apply_fn, state, jnp.ones((1, 4))).groups]
      [8]
    """
    definition, state = nnx.split(module)
    called = operator.call if call is None else call

    def apply_fn(state: PyTree, *inputs: PyTree, **static: object) -> PyTree:
        return called(nnx.merge(definition, state), *inputs, **static)

    return apply_fn, state


@with_promotion
def cut_nnx(
    module: nnx.Module,
    spec: FusionSpec,
    *inputs: PyTree,
    maps: Mapping[str, Transport] | None = None,
    optimizer: nnx.Optimizer | None = None,
    call: Callable[..., PyTree] | None = None,
    **static: object,
) -> Mapping[str, Transport]:
    """Cuts a module in place: its arrays, the sizes that its layers declare, its optimizer's state.

    Afterwards the module is called and trained as before. Whether that is the function at the small
    widths is tried out before anything is computed or changed. Where it is not, the module stays as
    it is, and the error names the layers and says to call ``ifjax.shrink(apply_fn, spec)``.

    Sizes are known of Linear, LinearGeneral, Einsum, Conv, ConvTranspose, Embed, the norms,
    MultiHeadAttention and the recurrent cells; other layers must read theirs off their arrays. An
    attention whose head_dim was cut would divide by the root of the new one: its ``attention_fn``
    becomes a `ScaledAttention`, which makes up for it; a module that is built anew needs it too.

    Args:
      module: the module that `nnx_function` was given, in eval mode.
      spec: made from the graph of that function.
      *inputs: an example of its inputs, as arrays.
      maps: from `ifjax.transport_maps`; computed by default.
      optimizer: of this module; moments are those of the kept neurons, see `ifjax.fuse_tree`.
      call: what `nnx_function` was given.
      **static: keyword arguments of the call.

    Returns:
      The maps, by which other trees (a moving average) are carried along.

    Raises:
      ValueError: as `ifjax.apply_maps` and `ifjax.fuse_tree`; or where the cut module, called
        itself, is another function.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
      >>> apply_fn, state = nnx_function(model)
      >>> spec = ifjax.trace(apply_fn, state, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> maps = cut_nnx(model, spec, jnp.ones((1, 4)))
      >>> model.layers[0].out_features, model(jnp.ones((3, 4))).shape
      (4, (3, 2))
    """
    apply_fn, state = nnx_function(module, call)
    checked_leaves(state, spec.structure)
    blank = blank_small(state, spec)
    trial = nnx.merge(nnx.graphdef(module), blank)
    unknown = _declare_sizes(trial, spec.structure)
    apply_cut, _ = nnx_function(trial, call)
    require_agreement(apply_fn, apply_cut, blank, spec, inputs, static, unknown)
    if maps is None:
        maps = transport_maps(state, spec)
    small = apply_maps(state, spec, maps)
    carried = None if optimizer is None else _carried(optimizer, module, state, spec, maps)
    nnx.update(module, small)
    _declare_sizes(module, spec.structure)
    if optimizer is not None:
        nnx.update(optimizer, carried)
    return maps


def _carried(
    optimizer: nnx.Optimizer,
    module: nnx.Module,
    state: PyTree,
    spec: FusionSpec,
    maps: Mapping[str, Transport],
) -> PyTree:
    """The state of an optimizer at the small widths; the optimizer itself says what it holds."""
    initial = initial_kinds(optimizer.tx, nnx.state(module, optimizer.wrt), spec)
    return carry_parts(nnx.state(optimizer), spec, maps, None, False, state, initial)


def _declare_sizes(module: nnx.Module, structure: Structure) -> list[str]:
    """Sets the sizes of layers that hold small arrays; returns those of unknown layers."""
    unknown = []
    for path, layer in nnx.iter_graph(module):
        if not isinstance(layer, nnx.Module):
            continue
        prefix = [str(key) for key in path]

        def axes(name: str, prefix: list[str] = prefix) -> Sequence[ex.Expression]:
            return structure.leaf["/".join([*prefix, *name.split("/"), "value"])].axes

        where = "/".join(prefix) or "the module"
        unknown += _attention_hints(layer, where)
        sizes = _sizes(layer, axes, structure.widths)
        for name, size in sizes.items():
            setattr(layer, name, size)
        own = ("/".join([*prefix, name, "value"]) for name in vars(layer))
        if not sizes and holds_cut(structure, own):
            unknown.append(f"{where} ({type(layer).__name__})")
    return unknown


@dataclasses.dataclass(frozen=True)
class ScaledAttention:
    """An attention function that divides by the root of another head_dim than its arrays have.

    Attributes:
      attention_fn: divides by the root of the last size of the queries, as
        `flax.nnx.dot_product_attention`.
      ratio: the head_dim of the arrays over that of the full network; the queries are multiplied
        by its root.
    """

    attention_fn: Callable[..., Array]
    ratio: Fraction

    def __call__(self, query: Array, *others: PyTree, **options: object) -> Array:
        """Calls the attention function on scaled queries."""
        return self.attention_fn(query * math.sqrt(self.ratio), *others, **options)


def _scaled(attention_fn: Callable[..., Array], ratio: Fraction) -> Callable[..., Array]:
    """An attention function at another head_dim; one that is not known stays as it is."""
    found = attention_fn
    if isinstance(attention_fn, ScaledAttention):
        ratio, found = ratio * attention_fn.ratio, attention_fn.attention_fn
    if found is not nnx.dot_product_attention:
        return attention_fn
    return found if ratio == 1 else ScaledAttention(found, ratio)


def _attention_hints(layer: nnx.Module, where: str) -> list[str]:
    """An attention whose head_dim is cut as it cannot follow, and what to do.

    Raises:
      ValueError: where its queries and values are cut to different ones.
    """
    if not isinstance(layer, nnx.MultiHeadAttention):
        return []
    q, v = layer.query.kernel.shape[-1], layer.value.kernel.shape[-1]
    leave = "leave its head_dim whole by graph.spec(..., exclude=lambda g: g.kind == 'head_dim')"
    if q != v:
        raise ValueError(
            f"{where} (MultiHeadAttention): the spec cuts head_dim to {q} in its queries and keys "
            f"and to {v} in its values, and nnx takes one for both: cut the two groups alike, "
            f"{leave}, or call ifjax.shrink(apply_fn, spec); nothing was changed"
        )
    if (
        q == layer.head_dim
        or _scaled(layer.attention_fn, Fraction(q, layer.head_dim)) != layer.attention_fn
    ):
        return []
    return [
        f"{where} (MultiHeadAttention, whose attention_fn may divide by the root of its head_dim, "
        f"{layer.head_dim} before and {q} now: {leave})"
    ]


def _sizes(layer: nnx.Module, axes: Axes, widths: Mapping[str, int]) -> dict[str, object]:
    """The sizes that a layer declares, read off its arrays; none where they are not known."""
    match layer:
        case nnx.Linear():
            d, n = layer.kernel.shape[-2:]
            return {"in_features": d, "out_features": n}
        case nnx.LinearGeneral():
            shape, inputs = layer.kernel.shape, len(layer.in_features)
            first = len(shape) - inputs - len(layer.out_features)
            features = {"in_features": shape[first:][:inputs]}
            return {**features, "out_features": shape[first + inputs :]}
        case nnx.Einsum():
            bias = None if layer.bias is None else layer.bias.shape
            return {"kernel_shape": layer.kernel.shape, "bias_shape": bias}
        case nnx.Conv():
            groups = outer(axes("kernel")[-1], layer.feature_group_count, widths)
            *_, d, n = shape = layer.kernel.shape
            sizes = {"in_features": groups * d, "out_features": n, "kernel_shape": shape}
            return {**sizes, "feature_group_count": groups}
        case nnx.ConvTranspose():
            d, n = layer.kernel.shape[-2:]
            d, n = (n, d) if layer.transpose_kernel else (d, n)
            return {"in_features": d, "out_features": n, "kernel_shape": layer.kernel.shape}
        case nnx.Embed():
            count, n = layer.embedding.shape[-2:]
            return {"num_embeddings": count, "features": n}
        case nnx.GroupNorm():
            name = next((k for k in ("scale", "bias") if getattr(layer, k) is not None), None)
            if name is None:
                return {}
            axis = axes(name)[-1]
            n, groups = ex.size(axis, widths), outer(axis, layer.num_groups, widths)
            return {"num_features": n, "num_groups": groups, "group_size": n // groups}
        case nnx.BatchNorm() | nnx.LayerNorm() | nnx.RMSNorm() | nnx.InstanceNorm():
            held = [getattr(layer, k, None) for k in ("scale", "bias", "mean")]
            shapes = [x.shape for x in held if x is not None]
            return {"num_features": shapes[0][-1]} if shapes else {}
        case nnx.MultiHeadAttention():
            (d, heads, size), n = layer.query.kernel.shape[-3:], layer.out.kernel.shape[-1]
            other, pairs, _ = layer.key.kernel.shape[-3:]
            inputs = {"in_features": d, "in_kv_features": other, "out_features": n}
            inside = {"num_heads": heads, "num_kv_heads": pairs, "head_dim": size}
            sizes = {**inputs, **inside, "qkv_features": math.prod((heads, size))}
            return {
                **sizes,
                "attention_fn": _scaled(layer.attention_fn, Fraction(size, layer.head_dim)),
            }
        case nnx.LSTMCell():
            d, n = layer.ii.kernel.shape[-2:]
            return {"in_features": d, "hidden_features": n}
        case nnx.OptimizedLSTMCell() | nnx.GRUCell() | nnx.SimpleCell():
            d, n = layer.dense_i.kernel.shape[-2], layer.dense_h.kernel.shape[-2]
            return {"in_features": d, "hidden_features": n}
    return {}
