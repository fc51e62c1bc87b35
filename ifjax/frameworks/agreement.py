"""Whether a module with small arrays and new sizes computes what `ifjax.shrink` computes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from ifjax.graph.shrink import shrink
from ifjax.graph.verify import general_position
from ifjax.jaxprs.arguments import Arguments
from ifjax.namespace import AnyArray
from ifjax.spec.spec import FusionSpec
from ifjax.structure import axis as ex
from ifjax.structure.structure import Structure
from ifjax.tree import leaves_by_path


def outer(axis: ex.Expression, n: int, widths: Mapping[str, int]) -> int:
    """How many of an axis' n outermost entries are left: groups of a convolution, heads.

    Args:
      axis: what lies along the axis.
      n: number of entries that it is divided into.
      widths: of the groups that are cut.

    Returns:
      Their number at the widths; n where the axis is not known to be divided so.

    Example:
      >>> heads = ex.Product((ex.Atom("heads", 4), ex.Pinned(8)))
      >>> outer(heads, 4, {"heads": 3}), outer(ex.Sum((heads, heads)), 8, {"heads": 3})
      (3, 6)
    """
    total = ex.size(axis)
    if n == total:
        return ex.size(axis, widths)
    match axis:
        case ex.Product((first, *rest)):
            size = ex.size(first)
            if n <= size:
                return outer(first, n, widths)
            if n % size == 0:
                inner = outer(ex.Product(tuple(rest)), n // size, widths)
                return ex.size(first, widths) * inner
        case ex.Sum(segments) if all(n * ex.size(s) % total == 0 for s in segments):
            return sum(outer(s, n * ex.size(s) // total, widths) for s in segments)
    return n


def holds_cut(structure: Structure, paths: Iterable[str]) -> bool:
    """Whether one of some leaves becomes narrower; paths of no leaf are passed over."""
    axes = (e for path in paths if path in structure.leaf for e in structure.leaf[path].axes)
    return any(name in structure.widths for e in axes for name in ex.atoms(e))


def blank_small(arrays: PyTree, spec: FusionSpec) -> PyTree:
    """Zeros of the small shapes, to call a cut module with before anything is computed.

    Args:
      arrays: the full parameters.
      spec: what is cut.

    Returns:
      A tree like the small parameters; what is not floating point and not cut keeps its values.
    """

    def blank(x: AnyArray, struct: jax.ShapeDtypeStruct) -> AnyArray:
        floating = jnp.issubdtype(x.dtype, jnp.inexact)
        same = not floating and x.shape == struct.shape
        return x if same else jax.device_put(np.zeros(struct.shape, struct.dtype))

    return jax.tree.map(blank, arrays, spec.small_struct(arrays))


def require_agreement(
    apply_fn: Callable[..., PyTree],
    apply_cut: Callable[..., PyTree],
    small: PyTree,
    spec: FusionSpec,
    inputs: Sequence[PyTree],
    static: Mapping[str, object],
    unknown: Sequence[str],
) -> None:
    """Calls a cut module once, beside the function at the small widths.

    A module may read a width off its arrays that the trained network had as a number, and so run
    and compute something else: 1 / sqrt(head_dim). Both are called on parameters and inputs in
    general position, so that neither zeros nor equal entries hide anything.

    Args:
      apply_fn: the function of the full module.
      apply_cut: that of the module with its new sizes.
      small: the small parameters; of what is floating point only shapes are read.
      spec: what was cut.
      inputs: an example.
      static: keyword arguments.
      unknown: layers whose sizes are not known, for the error.

    Raises:
      ValueError: where the cut module cannot be called or its outputs differ by more than
        sqrt(eps) of the largest, eps that of their dtype.
    """
    leaves = leaves_by_path(small)
    values = general_position(spec.structure, leaves, np.random.default_rng(0))
    drawn = [
        jax.device_put(v.astype(x.dtype) if isinstance(v, np.ndarray) else v)
        for v, x in zip(values, leaves.values(), strict=True)
    ]
    params = jax.tree.unflatten(jax.tree.structure(small), drawn)
    arguments = Arguments.split(inputs)
    rng = np.random.default_rng(1)
    arrays = arguments.arrays
    factors = [rng.uniform(0.5, 1.5, jnp.shape(x)) for x in arrays]

    def called(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
        return lambda p, arrays: function(p, *arguments.join(arrays), **static)

    as_asked = called(shrink(apply_fn, spec))

    @jax.jit
    def both(
        params: PyTree, arrays: Sequence[AnyArray], factors: Sequence[AnyArray]
    ) -> tuple[PyTree, PyTree]:
        """One program, in which what both have in common is compiled once."""
        given = list(map(_moved, arrays, factors))
        return called(apply_cut)(params, given), as_asked(params, given)

    with jax.default_matmul_precision("highest"):
        _check_call(as_asked, params, arrays)
        try:
            how = _difference(*map(jax.tree.leaves, both(params, arrays, factors)))
        except Exception as error:
            raise _refusal(f"{type(error).__name__}: {error}", unknown) from error
    if how:
        raise _refusal(how, unknown)


def _check_call(
    function: Callable[..., PyTree], params: PyTree, arrays: Sequence[AnyArray]
) -> None:
    """Raises where the function that the spec is of does not take the inputs."""
    try:
        jax.eval_shape(function, params, arrays)
    except Exception as error:
        shapes = [tuple(jnp.shape(x)) for x in arrays]
        raise ValueError(
            f"the function of the module does not take inputs of shapes {shapes} "
            f"({type(error).__name__}: {error}); pass the inputs and the call= that the spec was "
            "traced with, such as call=lambda module, x: jax.vmap(module)(x) for a batch"
        ) from error


def _moved(x: AnyArray, factor: AnyArray) -> AnyArray:
    """An input near the one given, of the same signs, whose entries are not equal."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    factor = factor.astype(x.dtype)
    return jnp.where(jnp.any(x != 0), x * factor, factor)


def _difference(got: Sequence[Array], want: Sequence[Array]) -> str:
    """How two lists of outputs differ; empty where they do not."""
    if [jnp.shape(x) for x in got] != [jnp.shape(x) for x in want]:
        shapes = [[jnp.shape(x) for x in outputs] for outputs in (want, got)]
        return f"outputs of shapes {shapes[0]} expected, got {shapes[1]}"
    for a, b in zip(got, want, strict=True):
        if not jnp.issubdtype(b.dtype, jnp.floating):
            continue
        x, y = (np.asarray(v.astype(jnp.float32), np.float64) for v in (a, b))
        largest = np.abs(y).max(initial=0)
        if not math.isfinite(largest):
            return "the function is not finite here; pass inputs inside its domain"
        if not np.abs(x - y).max(initial=0) <= float(jnp.finfo(b.dtype).eps) ** 0.5 * largest:
            return f"outputs differ by {np.abs(x - y).max():.3g}, the largest is {largest:.3g}"
    return ""


def _refusal(how: str, unknown: Sequence[str]) -> ValueError:
    layers = ", ".join(unknown) or "none; the numbers may be in the code that calls the layers"
    return ValueError(
        "the cut module, called itself, is not the function at the small widths, for a size or a "
        f"number that comes of one is declared or computed in a way of its own ({how}); layers "
        f"that may be the ones: {layers}. Nothing was changed: "
        "leave the module as it is, and call ifjax.shrink(apply_fn, spec) on "
        "ifjax.fuse_params(arrays, spec)"
    )
