"""Integers that a function computes from constants alone: what a static index selects."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jax.core import Tracer
from jax.extend.core import JaxprEqn, Literal, Var
from jax.typing import ArrayLike

from ifjax.jaxprs import compat
from ifjax.jaxprs.traits import traits_of

LIMIT = 1 << 15  # elements of an array that is still evaluated: neurons of the widest layers

Numbers = dict[Var, np.ndarray]


def _broadcast(equation: JaxprEqn, x: np.ndarray) -> np.ndarray:
    shape = [1] * len(equation.params["shape"])
    for n, d in zip(x.shape, equation.params["broadcast_dimensions"], strict=True):
        shape[d] = n
    return np.broadcast_to(x.reshape(shape), equation.params["shape"])


def _iota(equation: JaxprEqn) -> np.ndarray:
    shape, dim = equation.params["shape"], equation.params["dimension"]
    return np.indices(shape, sparse=True)[dim] + np.zeros(shape, int)


def _slice(equation: JaxprEqn, x: np.ndarray) -> np.ndarray:
    p = equation.params
    bounds = zip(p["start_indices"], p["limit_indices"], p["strides"] or (1,) * x.ndim, strict=True)
    return x[tuple(slice(*b) for b in bounds)]


def _elementwise(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
    return lambda equation, *operands: function(*operands)


def _select(which: np.ndarray, *cases: np.ndarray) -> np.ndarray:
    chosen, *arrays = np.broadcast_arrays(np.clip(which, 0, len(cases) - 1).astype(int), *cases)
    return np.asarray(np.take_along_axis(np.stack(arrays), chosen[None], 0)[0])


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "broadcast_in_dim": _broadcast,
    "iota": _iota,
    "slice": _slice,
    "reshape": lambda equation, x: x.reshape(equation.params["new_sizes"]),
    "squeeze": lambda equation, x: x.squeeze(tuple(equation.params["dimensions"])),
    "transpose": lambda equation, x: x.transpose(equation.params["permutation"]),
    "rev": lambda equation, x: np.flip(x, tuple(equation.params["dimensions"])),
    "concatenate": lambda equation, *xs: np.concatenate(xs, equation.params["dimension"]),
    **{
        name: _elementwise(function)
        for name, function in {
            **{"add": np.add, "sub": np.subtract, "mul": np.multiply, "rem": np.fmod},
            **{"max": np.maximum, "min": np.minimum, "neg": np.negative, "select_n": _select},
            **{"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal},
            **{"eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or},
            "div": lambda x, y: np.trunc(x / np.where(y == 0, 1, y)),
            "sign": np.sign,
            "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
        }.items()
    },
}


def numbers(variables: Sequence[Var], values: Sequence[ArrayLike]) -> Numbers:
    """Those of the values that are known integers, by variable."""
    found = {}
    for variable, value in zip(variables, values, strict=True):
        number = as_number(value)
        if number is not None:
            found[variable] = number
    return found


def as_number(value: ArrayLike | str | None) -> np.ndarray | None:
    """The value as an array, where it is a known integer or truth value of moderate size."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        dtype = np.result_type(value) if isinstance(value, bool | int) else np.dtype(object)
    if isinstance(value, Tracer | str) or value is None or not _is_whole(dtype):
        return None
    if np.size(value) > LIMIT:
        return None
    return np.asarray(value)


def _is_whole(dtype: object) -> bool:
    return getattr(dtype, "kind", None) in ("i", "u", "b")  # dtypes of keys have no kind


def evaluate(equation: JaxprEqn, known: Mapping[Var, np.ndarray]) -> Numbers:
    """The results of an equation that are known, given which of its operands are.

    Args:
      equation: an equation of a jaxpr.
      known: values of variables.

    Returns:
      Values of the result, or nothing.
    """

    def value_of(atom: Var | Literal) -> np.ndarray | None:
        return as_number(atom.val) if isinstance(atom, Literal) else known.get(atom)

    operands = [value_of(atom) for atom in equation.invars]
    function = FUNCTIONS.get(equation.primitive.name)
    if traits_of(equation).kind == "same":
        results = operands
    elif function is None or any(x is None for x in operands):
        return {}
    elif _is_small(equation.outvars[0]):
        with np.errstate(all="ignore"):  # integers wrap around
            results = [function(equation, *operands)]
    else:
        return {}
    return {
        variable: np.asarray(x, compat.dtype_of(variable))
        for variable, x in zip(equation.outvars, results, strict=True)
        if x is not None and _is_small(variable)
    }


def _is_small(variable: Var) -> bool:
    return _is_whole(compat.dtype_of(variable)) and math.prod(compat.shape_of(variable)) <= LIMIT
