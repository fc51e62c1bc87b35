"""Second moments of what contractions read, and of what they should give.

Every contraction has a normal form: rows ``[B, N, K]`` times a kernel ``[B, K, O]`` are results
``[B, N, O]``. B counts products side by side (batch axes of a dot, groups of a convolution), N the
positions at which the kernel is applied, examples among them, K what it reads at each: for a
convolution the channels of its window, channel by channel.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn
from jax.sharding import Mesh
from jaxtyping import Array, Float, Shaped

from ifjax.jaxprs.traits import contraction_of
from ifjax.namespace import AnyArray, namespace
from ifjax.parallel.hosts import on_host
from ifjax.parallel.matrices import mesh_of, placed
from ifjax.tree import wide_dtype

PATCHES = 2**24  # numbers of a chunk of rows that are held at a time


@dataclasses.dataclass(frozen=True)
class NormalForm:
    """How the operands of a contraction are brought into normal form; hashable.

    Attributes:
      side: which of the two operands is read.
      batch: axes of both operands that count products side by side.
      contracted: axes of both operands that are summed over.
      free: the rest of both.
      window: of a convolution, its parameters; empty of a matrix product.
      groups: of a convolution, how many groups of features it has.
    """

    side: int
    batch: tuple[tuple[int, ...], tuple[int, ...]]
    contracted: tuple[tuple[int, ...], tuple[int, ...]]
    free: tuple[tuple[int, ...], tuple[int, ...]]
    window: tuple[tuple[str, Any], ...] = ()
    groups: int = 1

    @property
    def numbers(self) -> Any:
        """Dimension numbers of the convolution."""
        return dict(self.window)["dimension_numbers"]


def normal_form(equation: JaxprEqn, side: int, groups: int = 1) -> NormalForm:
    """The normal form of a matrix product or convolution.

    Args:
      equation: a ``dot_general`` or ``conv_general_dilated``.
      side: which operand is the activation.
      groups: of a convolution, its number of feature groups at the present widths.

    Returns:
      The form.

    Example:
      >>> dot = jax.make_jaxpr(jnp.matmul)(jnp.ones((2, 3)), jnp.ones((3, 4))).eqns[0]
      >>> form = normal_form(dot, 0)
      >>> rows(form, jnp.ones((2, 3))).shape, kernel(form, jnp.ones((3, 4))).shape
      ((1, 2, 3), (1, 3, 4))
    """
    found = contraction_of(equation)
    window: tuple[tuple[str, Any], ...] = ()
    if equation.primitive.name == "conv_general_dilated":
        names = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "dimension_numbers")
        window = tuple((name, _frozen(equation.params[name])) for name in names)
    return NormalForm(side, found.batch, found.contracted, found.free, window, groups)


def _frozen(value: Any) -> Any:
    return tuple(map(tuple, value)) if isinstance(value, list) else value


def rows(form: NormalForm, x: Array, kernel_shape: tuple[int, ...] = ()) -> Float[Array, "B N K"]:
    """What the kernel reads at every position.

    Args:
      form: of the contraction.
      x: the activation.
      kernel_shape: of a convolution, the shape of its kernel.

    Returns:
      The rows; of a convolution the patches, channel by channel.
    """
    if form.window:
        p, numbers = dict(form.window), form.numbers
        sizes = [kernel_shape[i] for i in numbers.rhs_spec[2:]]
        at = numbers.out_spec[1]
        x = lax.conv_general_dilated_patches(
            x,
            sizes,
            p["window_strides"],
            p["padding"],
            p["lhs_dilation"],
            p["rhs_dilation"],
            numbers,
            precision=lax.Precision.HIGHEST,
        )
        return _grouped(form, x, at)
    at = form.side
    x = jnp.transpose(x, (*form.batch[at], *form.free[at], *form.contracted[at]))
    b, n, k = (len(part[at]) for part in (form.batch, form.free, form.contracted))
    sizes = [math.prod(x.shape[i:j]) for i, j in ((0, b), (b, b + n), (b + n, b + n + k))]
    return x.reshape(sizes)


def reading(form: NormalForm, kernel_shape: tuple[int, ...]) -> Hashable:
    """All that `rows` depends on beside the activation: where it is equal, so are the rows."""
    if form.window:
        return form, tuple(kernel_shape[i] for i in form.numbers.rhs_spec[2:])
    return form.batch[form.side], form.free[form.side], form.contracted[form.side]


def channels(form: NormalForm, x: Array) -> Float[Array, "B N K"]:
    """What is read, a row for every pixel: of a convolution its input's channels, no window."""
    if not form.window:
        return rows(form, x)
    return _grouped(form, x, form.numbers.lhs_spec[1])


def results(form: NormalForm, y: AnyArray) -> Shaped[AnyArray, "B N O"]:
    """Results in normal form.

    Args:
      form: of the contraction.
      y: what it gave, or an array of this shape.

    Returns:
      The same entries.
    """
    if form.window:
        return _grouped(form, y, form.numbers.out_spec[1])
    b, n, o = (len(axes) for axes in (form.batch[0], *_free(form)))
    y = y.reshape([math.prod(y.shape[i:j]) for i, j in ((0, b), *_ends(form, b, n, o))])
    return y if form.side == 0 else y.swapaxes(1, 2)


def unresults(form: NormalForm, y: AnyArray, shape: tuple[int, ...]) -> AnyArray:
    """Inverse of `results`: an array of the results' own shape."""
    if form.window:
        at = form.numbers.out_spec[1]
        moved = (*(n for i, n in enumerate(shape) if i != at), shape[at])
        return namespace(y).moveaxis(y.swapaxes(0, 1).reshape(moved), -1, at)
    return (y if form.side == 0 else y.swapaxes(1, 2)).reshape(shape)


def _free(form: NormalForm) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return form.free[form.side], form.free[1 - form.side]


def _ends(form: NormalForm, b: int, n: int, o: int) -> list[tuple[int, int]]:
    first = n if form.side == 0 else o
    return [(b, b + first), (b + first, b + n + o)]


def _grouped(form: NormalForm, x: AnyArray, axis: int) -> Shaped[AnyArray, "B N K"]:
    """An array with features along an axis, by groups."""
    x = namespace(x).moveaxis(x, axis, -1)
    x = x.reshape(-1, form.groups, x.shape[-1] // form.groups)
    return x.swapaxes(0, 1)


def kernel(form: NormalForm, w: AnyArray) -> Shaped[AnyArray, "B K O"]:
    """The weight in normal form."""
    if form.window:
        out, into, *space = form.numbers.rhs_spec
        w = w.transpose((into, *space, out))
        w = w.reshape(math.prod(w.shape[:-1]), form.groups, w.shape[-1] // form.groups)
        return w.swapaxes(0, 1)
    w = w.transpose(_order(form))
    at = 1 - form.side
    b, k = len(form.batch[at]), len(form.contracted[at])
    return w.reshape([math.prod(w.shape[i:j]) for i, j in ((0, b), (b, b + k), (b + k, w.ndim))])


def weight(form: NormalForm, kernel: AnyArray, shape: tuple[int, ...]) -> AnyArray:
    """Inverse of `kernel`: the weight, of its own shape."""
    order = _order(form)
    if form.window:
        b, k, o = kernel.shape
        kernel = kernel.swapaxes(0, 1).reshape(k, b * o)
    w = kernel.reshape([shape[i] for i in order])
    return w.transpose(np.argsort(order))


def _order(form: NormalForm) -> tuple[int, ...]:
    if form.window:
        out, into, *space = form.numbers.rhs_spec
        return (into, *space, out)
    at = 1 - form.side
    return (*form.batch[at], *form.contracted[at], *form.free[at])


class Moments(NamedTuple):
    """Sums over positions of products of what is read, X, and of a target T.

    Attributes:
      count: number of positions.
      rows: sum of x, ``[B, K]``.
      gram: sum of x x', ``[B, K, K]``.
      cross: sum of x t', ``[B, K, O]``.
      target: sum of t, ``[B, O]``.
      square: sum of t^2, ``[B, O]``.
    """

    count: Any
    rows: Any
    gram: Any
    cross: Any
    target: Any
    square: Any


def moments(
    forms: tuple[NormalForm, ...],
    kernel_shapes: tuple[tuple[int, ...], ...],
    inputs: tuple[Array, ...],
    target: Float[Array, "B N O"] | None,
    gram: bool = True,
) -> Moments:
    """Moments of one batch, the rows of several contractions side by side.

    Args:
      forms: of every contraction; where there are none, the target's own moments are found.
      kernel_shapes: of their kernels.
      inputs: what they read.
      target: of their sum, in normal form; None for the Gram matrices alone.
      gram: whether sums of what is read alone are wanted, ``rows`` and ``gram``, else None.

    Returns:
      Sums over the positions, in float32, or float64 where the inputs are. Those of inputs on a
      mesh are spread over it, see `ifjax.parallel.matrices.spread`.
    """
    mesh = mesh_of(*inputs, target)
    return _moments(forms, kernel_shapes, inputs, target, gram, mesh)


@functools.partial(jax.jit, static_argnames=("forms", "kernel_shapes", "gram", "mesh"))
def _moments(
    forms: tuple[NormalForm, ...],
    kernel_shapes: tuple[tuple[int, ...], ...],
    inputs: tuple[Array, ...],
    target: Float[Array, "B N O"] | None,
    gram: bool,
    mesh: Mesh | None,
) -> Moments:
    parts = [_wide(rows(*args)) for args in zip(forms, inputs, kernel_shapes, strict=True)]
    if target is not None and not parts:
        parts = [jnp.zeros((*target.shape[:2], 0), _wide(target).dtype)]
    x = jnp.concatenate(parts, -1) if len(parts) > 1 else parts[0]
    t = jnp.zeros((*x.shape[:2], 0), x.dtype) if target is None else _wide(target)
    exact, laid = lax.Precision.HIGHEST, functools.partial(placed, mesh=mesh)
    return Moments(
        jnp.asarray(x.shape[1], x.dtype),
        x.sum(1) if gram else None,
        laid(jnp.einsum("bnk,bnl->bkl", x, x, precision=exact)) if gram else None,
        laid(jnp.einsum("bnk,bno->bko", x, t, precision=exact)),
        t.sum(1),
        jnp.square(t).sum(1),
    )


def _wide(x: Array) -> Array:
    return x.astype(jax.dtypes.canonicalize_dtype(wide_dtype(x.dtype)))


def channel_moments(form: NormalForm, x: Array) -> Float[Array, "B K K"]:
    """The uncentred Gram matrix of the channels that are read, over all pixels; see `moments`."""
    return _channel_moments(form, x, mesh_of(x))


@functools.partial(jax.jit, static_argnames=("form", "mesh"))
def _channel_moments(form: NormalForm, x: Array, mesh: Mesh | None) -> Float[Array, "B K K"]:
    x = _wide(channels(form, x))
    found = jnp.einsum("bnk,bnl->bkl", x, x, precision=lax.Precision.HIGHEST)
    return placed(found, mesh)


def parts_of(
    form: NormalForm,
    shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    result_shape: tuple[int, ...],
) -> int:
    """Into how many parts a batch is cut, for its patches not to take too much memory.

    Args:
      form: of the contraction.
      shape: of what is read.
      kernel_shape: of the kernel.
      result_shape: of the result.

    Returns:
      A divisor of the number of examples; 1 for a matrix product, whose rows are its input.
    """
    if not form.window:
        return 1
    out, _, *_ = form.numbers.rhs_spec
    read = math.prod(kernel_shape) // kernel_shape[out] * form.groups
    positions = math.prod(result_shape) // result_shape[form.numbers.out_spec[1]]
    examples = shape[form.numbers.lhs_spec[0]]
    wanted = -(-read * positions // PATCHES)
    return next((c for c in range(max(wanted, 1), examples) if examples % c == 0), examples)


def summed(a: Moments | None, b: Moments) -> Moments:
    """The sum of two, on the device where they are."""
    return b if a is None else _summed(a, b)


@jax.jit
def _summed(a: Moments, b: Moments) -> Moments:
    return jax.tree.map(jnp.add, a, b)


def added(a: Moments | None, b: Moments) -> Moments:
    """The sum of two, in double precision on the host."""
    wide = jax.tree.map(lambda x: on_host(x, np.float64), b)
    return wide if a is None else jax.tree.map(np.add, a, wide)
