"""What it costs to tell one neuron from another: features, and the distances between them.

References:
  Theus et al., `Towards Meta-Pruning via Optimal Transport <https://arxiv.org/abs/2402.07839>`_,
  ICLR 2024, section 3.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Bool, Float

from ifjax.namespace import AnyArray, fixed, namespace, others, total
from ifjax.promotion import with_promotion

# Of a norm.
Order = float | int | Literal["cosine"]

# Features per step of an accumulation: XLA fuses 16 differences into one vectorised loop that reads
# and writes the accumulator once.
CHUNK = 16
# Up to so many pairs an accelerator reads all features of each sooner than it begins a kernel for
# every 16; so many of them at once, for longer sums XLA would take apart, and store the parts.
_REDUCED = 2**18
_LONG = 2**14
# Up to so many pairs a step of an accumulation takes less than a second thread needs to begin.
_SHORT = 2**20
# Pairs whose squared distance, relative to their squared norms, is below this lose digits in a
# product of matrices, and are computed again, with so many sources at a time.
_NEAR = 1 / 32
_ROWS = 64


@with_promotion
def features(rows: Float[Array, "n d"]) -> Float[Array, "n d"]:
    r"""Divides each row by its 2-norm: :math:`f_i = x_i / \|x_i\|_2`, and 0 where it is zero.

    Args:
      rows: everything that describes a neuron: its producer rows and consumer columns, side by
        side.

    Returns:
      Rows of norm one or zero, in the dtype of ``rows``, computed in float32 at least. Gradients
      are finite, and zero for the rows that are zero.

    Example:
      >>> import jax.numpy as jnp
      >>> features(jnp.array([[3.0, 4.0], [0.0, 0.0]]))
      Array([[0.6, 0.8],
             [0. , 0. ]], dtype=float32)
    """
    x = rows.astype(jnp.result_type(jnp.float32, rows))
    return (x * factors([(x, 0)])[:, None]).astype(rows.dtype)


def factors(parts: Sequence[tuple[Float[AnyArray, "..."], int]]) -> Float[AnyArray, " n"]:
    """What each neuron is multiplied by to have norm one: one over its norm, and 1 where it is 0.

    Args:
      parts: arrays that hold neurons, as they lie, and the axis that the neurons lie along: to
        transpose them would take longer than all else.

    Returns:
      Factors in the dtype of the parts. Of norms whose inverse is subnormal, in float32 those over
      8.5e37, they are 0.

    Example:
      >>> import jax.numpy as jnp
      >>> factors([(jnp.array([[3.0], [0.0]]), 0), (jnp.array([[4.0, 0.0]]), 1)])
      Array([0.2, 1. ], dtype=float32)
    """
    xp = namespace(*(x for x, _ in parts))
    norms = xp.stack([_norms(x, axis) for x, axis in parts])
    norm = _norms(norms, 1)
    tiny = xp.finfo(norm.dtype).tiny
    found = 1 / xp.where(norm >= tiny, norm, 1)
    return np.where(found >= tiny, found, 0) if isinstance(found, np.ndarray) else found


def _norms(x: Float[AnyArray, "..."], axis: int) -> Float[AnyArray, " n"]:
    """The 2-norm of what lies at each position of an axis."""
    if isinstance(x, np.ndarray) and x.dtype == np.float32:  # in double nothing vanishes
        axes = list(range(x.ndim))
        return np.sqrt(np.einsum(x, axes, x, axes, [axis], dtype=np.float64)).astype(x.dtype)
    xp, rest = namespace(x), others(x, axis)
    # The result does not depend on the scale, so neither does the gradient; squares of tiny or huge
    # weights then neither vanish nor overflow. The sum is what importance l1 reads too.
    tiny = xp.finfo(x.dtype).tiny
    scale = fixed(xp.minimum(total(xp.abs(x), rest), 1 / tiny))
    scale = xp.where(scale >= tiny, scale, 1)
    by = xp.expand_dims(1 / scale, rest)
    # In this order no factor is shared, and XLA keeps no scaled copy of x.
    square = total(x * by * x * by, rest)
    return xp.where(square > 0, scale * xp.sqrt(xp.where(square > 0, square, 1)), 0)


@with_promotion
@functools.partial(jax.jit, static_argnames=("p", "axis"))
def cost_matrix(
    x: Float[Array, "_ _"], y: Float[Array, "_ _"], p: float | int | str = 1, axis: int = 0
) -> Float[Array, "n m"]:
    r"""Distances :math:`C_{ij} = \|x_i - y_j\|_p` between two sets of rows.

    Never holds an ``[n, m, d]`` array, nor does its reverse-mode derivative: the norms are
    accumulated over a few features at a time, ``p = 2`` and the cosine rest on a product of
    matrices. There, pairs so near that the product would lose digits are computed again by
    accumulation, so that equal rows have a distance of exactly zero under all of them. Derivatives
    are finite, and zero between equal rows.

    Args:
      x: the source features, ``[n, d]``.
      y: the target features, ``[m, d]``.
      p: the norm, at least 1, or ``inf``; or ``"cosine"`` for :math:`1 - \cos(x_i, y_j)`, which is
        no metric (half the squared Euclidean distance of the normalised rows), and one between a
        zero row and any other. Static under jit.
      axis: 1 where the features are columns, ``[d, n]`` and ``[d, m]``: ``p = 1`` is then faster.

    Returns:
      The costs, in float32 (float64 for float64 features).

    Raises:
      ValueError: for ``p < 1`` and unknown names.

    Example:
      >>> import jax.numpy as jnp
      >>> x, y = jnp.array([[0.0, 2.0], [3.0, 4.0]]), jnp.array([[0.0, 1.0]])
      >>> cost_matrix(x, y)
      Array([[1.],
             [6.]], dtype=float32)
      >>> cost_matrix(x, y, p="cosine").round(3)
      Array([[0. ],
             [0.2]], dtype=float32)
    """
    if p != "cosine" and (isinstance(p, str) or not p >= 1):
        raise ValueError(f"cost_matrix needs a norm p >= 1, inf or 'cosine', got p = {p!r}")
    dtype = jnp.result_type(jnp.float32, x, y)
    x, y = x.astype(dtype), y.astype(dtype)
    return _distances(x, y, "cosine" if isinstance(p, str) else p, axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _distances(x: Array, y: Array, p: Order, axis: int) -> Float[Array, "n m"]:
    if axis and p in (2, "cosine"):
        x, y, axis = x.T, y.T, 0
    if p == "cosine":
        zero = (_scales(x, p) == 0)[:, None] ^ (_scales(y, p) == 0)
        return jnp.where(zero, 1, _squares(x, y, p) / 2)
    if p == 1:
        return _accumulate(x, y, lambda t: t, axis)
    if p == 2:
        return jnp.sqrt(_squares(x, y, p))
    largest = _accumulate(x, y, lambda t: t, axis, largest=True)
    if math.isinf(p):
        return largest
    # Relative to the largest difference, so that high powers of small numbers do not vanish.
    scale = jnp.where(largest >= jnp.finfo(largest.dtype).tiny, largest, 1)
    by = 1 / scale
    powers = _accumulate(x, y, lambda t: (t * by) ** p, axis)
    return scale * powers ** jnp.asarray(1 / p, powers.dtype)


def _forward(x: Array, y: Array, p: Order, axis: int) -> tuple[Array, tuple[Array, Array, Array]]:
    cost = jnp.asarray(_distances(x, y, p, axis))
    return cost, (x, y, cost)


def _backward(
    p: Order, axis: int, residuals: tuple[Array, Array, Array], g: Float[Array, "n m"]
) -> tuple[Array, Array]:
    x, y, cost = residuals
    if axis:
        of_x, of_y = _backward(p, 0, (x.T, y.T, cost), g)
        return of_x.T, of_y.T
    if p == "cosine" or p == 2:
        if p == 2:
            # The direction between rows that differ by rounding alone is noise.
            rounding = jnp.finfo(cost.dtype).eps * jnp.sqrt(_sizes(x)[:, None] + _sizes(y))
            h = jnp.where(cost > rounding, g / jnp.where(cost > rounding, cost, 1), 0)
            own = jnp.sum(h, 1), jnp.sum(h, 0)
        else:
            u, v = _scales(x, p), _scales(y, p)
            h = g * u[:, None] * v
            own = u * u * jnp.sum(g * (1 - cost), 1), v * v * jnp.sum(g * (1 - cost), 0)
        return own[0][:, None] * x - _product(h, y), own[1][:, None] * y - _product(h.T, x)
    if math.isinf(p):
        # Where several features differ the most, each has its share.
        g = g / _accumulate(x, y, lambda t: t == cost)
    return _pulled(x, y, g, cost, p), _pulled(y, x, g.T, cost.T, p)


# Called when a caller's gradient is taken, under the caller's settings.
_distances.defvjp(with_promotion(_forward), with_promotion(_backward))


def _pulled(
    x: Float[Array, "n d"],
    y: Float[Array, "m d"],
    g: Float[Array, "n m"],
    cost: Float[Array, "n m"],
    p: float | int,
) -> Float[Array, "n d"]:
    """The sum over j of g_ij times the derivative of the distance from x_i to y_j."""
    scale = jnp.where(cost > 0, cost, 1)

    def step(i: Array, total: Array) -> Array:
        rows = zip(_chunk(g, i, 1), _chunk(scale, i, 1), _chunk(y, i, 0), strict=True)
        for weight, size, row in rows:
            weight, size = weight[:, None], size[:, None]
            t = x - row
            if math.isinf(p):
                weight = jnp.where(jnp.abs(t) == size, weight, 0)
            elif p > 1:
                weight = weight * (jnp.abs(t) / jnp.where(size > 0, size, 1)) ** (p - 1)
            total = total + jnp.where(t > 0, weight, jnp.where(t < 0, -weight, 0))
        return total

    return jax.lax.fori_loop(0, -(-y.shape[0] // CHUNK), step, jnp.zeros_like(x))


def _squares(x: Float[Array, "n d"], y: Float[Array, "m d"], p: Order) -> Float[Array, "n m"]:
    """Squared Euclidean distances, for the cosine of normalised rows; accurate however small."""
    u, v = _scales(x, p), _scales(y, p)
    size = (u * u * _sizes(x))[:, None] + v * v * _sizes(y)
    square = jnp.maximum(size - 2 * u[:, None] * v * _product(x, y.T), 0)
    near = square < _NEAR * size
    # A target is mostly one of the sources: most near pairs are equal rows.
    nearest = jnp.argmin(square, axis=0)
    equal = jnp.all(x[nearest] == y, axis=1) & (jnp.arange(x.shape[0])[:, None] == nearest)
    near = near & ~equal
    square = jnp.where(equal, 0, square)
    count = min(_ROWS, x.shape[0])

    def unfinished(state: tuple[Array, Array]) -> Bool[Array, ""]:
        return jnp.any(state[1])

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        square, left = state
        start = jnp.minimum(jnp.argmax(left), x.shape[0] - count)
        cut = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=count)
        exact = _accumulate(cut(x) * cut(u)[:, None], y * v[:, None], jnp.square)
        if p == "cosine":
            # Equal rows are scaled alike only up to rounding.
            exact = jnp.where(_accumulate(cut(x), y, lambda t: t, largest=True) == 0, 0, exact)
        exact = jnp.where(cut(near), exact, cut(square))
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
        return put(square, exact), put(left, jnp.zeros((count,), bool))

    return jax.lax.while_loop(unfinished, again, (square, jnp.any(near, axis=1)))[0]


def _scales(x: Float[Array, "n d"], p: Order) -> Float[Array, " n"]:
    """What the rows are multiplied by: for the cosine, to have norm one, or zero."""
    size = _sizes(x)
    if p == 2:
        return jnp.ones_like(size)
    return jnp.where(size > 0, 1 / jnp.sqrt(jnp.where(size > 0, size, 1)), 0)


def _sizes(x: Float[Array, "n d"]) -> Float[Array, " n"]:
    return jnp.sum(x * x, axis=1)


def _product(a: Float[Array, "n k"], b: Float[Array, "k m"]) -> Float[Array, "n m"]:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _accumulate(
    x: Array, y: Array, term: Callable[[Array], Array], axis: int = 0, largest: bool = False
) -> Float[Array, "n m"]:
    """The sum, or the largest, of a term of |x_ik - y_jk| over the features k."""
    n, m, d = x.shape[axis], y.shape[axis], x.shape[1 - axis]
    reduced = n * m <= _REDUCED and jax.default_backend() != "cpu"
    chunk = _LONG if reduced else CHUNK
    # An update of a part of an array XLA leaves to one thread; others would wait for each other.
    spare = n * m <= _SHORT and not reduced

    def step(total: Array, start: Array | int, count: int) -> Array:
        def cut(z: Array) -> Array:
            return jax.lax.dynamic_slice_in_dim(z, start, count, 1 - axis)

        if reduced:  # by one kernel, which stores no difference
            u, v = (cut(z) if axis else cut(z).T for z in (x, y))
            t = term(jnp.abs(u[:, :, None] - v[:, None]))
            return jnp.maximum(total, t.max(0)) if largest else total + t.sum(0, dtype=x.dtype)
        u, v = cut(x), cut(y) if axis else cut(y).T
        # Rows in one piece: XLA would rather not transpose, and read with strides, unvectorised.
        v = with_layout_constraint(v, Layout((0, 1)))
        result = total[:n]
        for k in range(count):
            t = term(jnp.abs((u[k, :, None] if axis else u[:, k, None]) - v[k]))
            result = jnp.maximum(result, t) if largest else result + t
        return jax.lax.dynamic_update_slice(total, result, (0, 0)) if spare else result

    total = jnp.zeros((n + spare, m), x.dtype)
    if d >= chunk:
        total = jax.lax.fori_loop(0, d // chunk, lambda i, t: step(t, i * chunk, chunk), total)
    rest = d % chunk
    return (step(total, d - rest, rest) if rest else total)[:n]


def _chunk(z: Float[Array, "n d"], i: Array, axis: int) -> Float[Array, "chunk _"]:
    """The i-th 16 columns (or rows) of a matrix, as rows; zero where an earlier chunk had them."""
    count = min(CHUNK, z.shape[axis])
    start = jnp.minimum(i * count, z.shape[axis] - count)
    part = jax.lax.dynamic_slice_in_dim(z, start, count, axis)
    fresh = start + jnp.arange(count) >= i * count
    part = jnp.where(jnp.expand_dims(fresh, 1 - axis), part, 0)
    part = part.T if axis else part
    # Rows in one piece: XLA would rather not transpose, and read with strides, unvectorised.
    return with_layout_constraint(part, Layout((0, 1)))
