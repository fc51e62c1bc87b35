"""The same functions on numpy and on jax: what differs between their arrays, in one place."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:  # what a function returns is of what it was given
    AnyArray: TypeAlias = Any
    Shaped: TypeAlias = Any
else:
    AnyArray: TypeAlias = jax.Array | np.ndarray
    Shaped: TypeAlias = jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct

Arrays: TypeAlias = Mapping[str, AnyArray]  # by path, or by name

P = ParamSpec("P")
R = TypeVar("R")


def namespace(*arrays: object) -> ModuleType:
    """`jax.numpy` if any of the arrays is jax's, else `numpy`.

    >>> namespace(np.ones(2)).__name__, namespace(np.ones(2), jnp.ones(2)).__name__
    ('numpy', 'jax.numpy')
    """
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def jitted(*static: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles a function for arrays of jax; with those of numpy alone it runs as it is.

    Args:
      *static: names of arguments that are no arrays.

    Example:
      >>> double = jitted()(lambda x: 2 * x)
      >>> double(np.ones(2)).tolist(), double(jnp.ones(2)).tolist()
      ([2.0, 2.0], [2.0, 2.0])
    """

    def either(function: Callable[P, R]) -> Callable[P, R]:
        compiled = jax.jit(function, static_argnames=static)

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            traced = namespace(*jax.tree.leaves((args, kwargs))) is jnp
            return (compiled if traced else function)(*args, **kwargs)

        return run

    return either


def over(function: Callable[..., R], *arrays: AnyArray) -> R:
    """A function of every entry along the first axis: mapped, or in numpy one after another.

    >>> over(lambda x, y: x @ y, np.ones((2, 3)), np.ones((2, 3))).tolist()
    [3.0, 3.0]
    """
    if namespace(*arrays) is jnp:
        return jax.vmap(function)(*arrays)
    found = [function(*entry) for entry in zip(*arrays, strict=True)]
    return jax.tree.map(lambda *x: np.stack(x), *found)


def total(x: AnyArray, axes: int | Sequence[int]) -> AnyArray:
    """The sum over some axes, in the dtype of the array.

    numpy adds up the entries of leading axes one after another: in double precision here, for in
    single a kernel of 4,608 rows would lose two digits.

    >>> float(total(np.full((100_000, 2), 0.1, np.float32), 0)[0])
    10000.0
    """
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if isinstance(x, jax.Array):
        return jnp.sum(x, axes)
    return np.sum(x, axes, dtype=np.promote_types(x.dtype, np.float64)).astype(x.dtype)


def others(x: AnyArray, axis: int) -> tuple[int, ...]:
    """All axes of an array but one.

    >>> others(np.ones((2, 3, 4)), 1)
    (0, 2)
    """
    return tuple(i for i in range(x.ndim) if i != axis)


def as_reals(x: AnyArray) -> AnyArray:
    """Complex numbers as real and imaginary part, along a new last axis; the rest as it is.

    >>> as_reals(np.array([1 + 2j, 3])).tolist()
    [[1.0, 2.0], [3.0, 0.0]]
    """
    if not np.issubdtype(x.dtype, np.complexfloating):
        return x
    return namespace(x).stack([x.real, x.imag], -1)


def pick(x: AnyArray, index: AnyArray, axis: int) -> AnyArray:
    """Entries along an axis, at positions that it has: inside of jit none is looked at twice.

    >>> pick(np.array([[1.0, 2.0]]), np.array([1, 1, 0]), 1).tolist()
    [[2.0, 2.0, 1.0]]
    """
    if isinstance(x, jax.Array) or isinstance(index, jax.Array):
        return jnp.take(x, index, axis, mode="clip")
    return np.take(x, index, axis)


def along(vector: AnyArray, axis: int, ndim: int) -> AnyArray:
    """A vector shaped to be combined with an array of so many axes along one of them.

    >>> along(np.ones(3), 1, 4).shape
    (1, 3, 1, 1)
    """
    return vector.reshape([-1 if i == axis else 1 for i in range(ndim)])


def fixed(x: AnyArray) -> AnyArray:
    """The array as a constant: no gradient flows through it."""
    return jax.lax.stop_gradient(x) if isinstance(x, jax.Array) else x


def descending(scores: AnyArray) -> AnyArray:
    """The positions of the highest scores first; of equal ones in their order.

    >>> descending(np.array([1.0, 3.0, 1.0])).tolist()
    [1, 0, 2]
    """
    if isinstance(scores, jax.Array):
        return jax.lax.top_k(scores, scores.shape[0])[1]
    return np.argsort(-scores, stable=True).astype(np.int32)


def wide(*arrays: AnyArray) -> np.dtype:
    """The dtype to compute in: of the arrays, but at least float32."""
    found = functools.reduce(jnp.promote_types, (wide_dtype(x.dtype) for x in arrays))
    return jax.dtypes.canonicalize_dtype(found)


@functools.lru_cache(maxsize=256)
def wide_dtype(dtype: np.dtype) -> np.dtype:
    """The dtype to compute in: at least float32. 8-bit floats have no promotion of their own."""
    if jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize < 2:
        return jnp.dtype(jnp.float32)
    return jnp.promote_types(dtype, jnp.float32)


def put(x: AnyArray, index: AnyArray, values: AnyArray | bool) -> AnyArray:
    """The array with other values at some positions of its first axis.

    >>> put(np.zeros(3), np.array([2, 0]), np.array([5.0, 6.0])).tolist()
    [6.0, 0.0, 5.0]
    """
    if isinstance(x, jax.Array) or isinstance(values, jax.Array) or isinstance(index, jax.Array):
        return jnp.asarray(x).at[index].set(values)
    x = x.copy()
    x[index] = values
    return x
