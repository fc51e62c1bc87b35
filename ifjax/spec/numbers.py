"""Numbers as a spec holds them: Python's, which are hashable and which JSON can write."""

from __future__ import annotations

import numbers
from typing import TypeAlias, TypeGuard

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array

# Of Python, numpy or jax.
Number: TypeAlias = int | float | np.generic | np.ndarray | Array


def plain_number(value: object) -> object:
    """A number of numpy or jax as one of Python: the shortest one that it is the rounding of.

    Everything else, also a tracer, is itself.

    >>> plain_number(np.float32(0.1)), plain_number(np.int64(3)), plain_number("a")
    (0.1, 3, 'a')
    """
    if isinstance(value, Tracer) or getattr(value, "shape", None) != ():
        return value
    number = np.asarray(value)[()]
    return float(str(number)) if jnp.issubdtype(number.dtype, jnp.floating) else number.item()


def is_real(value: object) -> TypeGuard[float]:
    """Whether a value is a real number of Python; True and False are none.

    >>> is_real(2), is_real(True), is_real("2"), is_real(None)
    (True, False, False, False)
    """
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
