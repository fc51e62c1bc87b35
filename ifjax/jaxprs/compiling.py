"""How XLA is asked to compile a program that it would make slow by itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Iterable
from typing import Any, ParamSpec, TypeVar

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from ifjax.jaxprs import compat

UNSIMPLIFIED = {"xla_disable_hlo_passes": "algsimp"}
P = ParamSpec("P")
T = TypeVar("T")


def jitted_with_options(function: Callable[P, T]) -> Callable[P, T]:
    """`jax.jit`, with the `compiler_options` that a program asks for.

    XLA takes options for the outermost jit alone: inside of another one there are none.

    Args:
      function: of pytrees of arrays.

    Returns:
      The function.

    Example:
      >>> import jax.numpy as jnp
      >>> jitted_with_options(lambda x: 2 * x)(jnp.ones(2)).tolist()
      [2.0, 2.0]
    """
    plain = jax.jit(function)
    unsimplified = jax.jit(function, compiler_options=UNSIMPLIFIED)
    chosen: dict[Hashable, bool] = {}

    @functools.wraps(function)
    def call(*arguments: P.args, **keywords: P.kwargs) -> T:
        if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
            return plain(*arguments, **keywords)
        leaves, structure = jax.tree.flatten((arguments, keywords))
        form = structure, tuple((np.shape(x), getattr(x, "dtype", type(x))) for x in leaves)
        if form not in chosen:
            program = plain.trace(*arguments, **keywords).jaxpr
            chosen[form] = compiler_options(program.eqns) is not None
        if chosen[form]:
            try:
                return unsimplified(*arguments, **keywords)
            except ValueError as error:
                if "top-level" not in str(error):
                    raise
        return plain(*arguments, **keywords)

    return call


def compiler_options(equations: Iterable[JaxprEqn]) -> dict[str, str] | None:
    """Options of `jax.jit` for a program; for the outermost jit, others refuse to have any.

    XLA's algebraic simplifier makes the map the kernel where a kernel has more entries than the map
    that it moves over (3 x 3 on 2 x 2: the last layers of a VGG on small images). On a CPU the
    reversed convolution that comes of it has no fast code, and takes 60 times as long for 512
    channels. Such a program is compiled without this pass, whose other work hardly matters there.

    Args:
      equations: of the program; what they call, and the bodies of loops, are looked into.

    Returns:
      The options; None where XLA does well.

    Example:
      >>> import jax.numpy as jnp
      >>> conv = lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME")
      >>> program = lambda n: jax.make_jaxpr(conv)(jnp.ones((8, 4, n, n)), jnp.ones((4, 4, 3, 3)))
      >>> [compiler_options(program(n).eqns) for n in (2, 3)]
      [{'xla_disable_hlo_passes': 'algsimp'}, None]
    """
    if default_platform() != "cpu":
        return None
    return UNSIMPLIFIED if any(map(_would_be_swapped, equations)) else None


def default_platform() -> str:
    """Of the device on which arrays are made."""
    chosen = getattr(jax.config, "jax_default_device", None)  # a device, or the name of a platform
    return getattr(chosen, "platform", chosen) or jax.default_backend()


def _would_be_swapped(equation: JaxprEqn) -> bool:
    """Whether a convolution's kernel has more entries than the map that it moves over."""
    p = equation.params
    for body in jax.tree.leaves(list(p.values()), is_leaf=_is_jaxpr):
        if _is_jaxpr(body) and any(map(_would_be_swapped, body.eqns)):
            return True
    if equation.primitive.name != "conv_general_dilated" or p["feature_group_count"] > 1:
        return False
    numbers = p["dimension_numbers"]
    sides = zip(equation.invars[:2], (numbers.lhs_spec, numbers.rhs_spec), strict=True)
    places, window = (math.prod(compat.shape_of(x)[axis] for axis in spec[2:]) for x, spec in sides)
    return window > places


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (Jaxpr, ClosedJaxpr))
