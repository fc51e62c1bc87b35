"""How XLA is asked to compile a program that it would make slow by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable

import jax
from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat

AS_WRITTEN = {"xla_disable_hlo_passes": "algsimp"}


def compiler_options(equations: Iterable[JaxprEqn]) -> dict[str, str] | None:
    """Options of `jax.jit` for a program, on the outside: a jit within another takes none.

    XLA's algebraic simplifier makes the map the kernel where a kernel has more entries than the map
    that it moves over (3 x 3 on 2 x 2: the last layers of a VGG on small images). On a CPU the
    reversed convolution that comes of it has no fast code, and takes 60 times as long for 512
    channels. Such a program is compiled without this pass, whose other work hardly matters there.

    Args:
      equations: of the program.

    Returns:
      The options; None where XLA does well.

    Example:
      >>> import jax.numpy as jnp
      >>> conv = lambda x, w: jax.lax.conv(x, w, (1, 1), "SAME")
      >>> program = lambda n: jax.make_jaxpr(conv)(jnp.ones((8, 4, n, n)), jnp.ones((4, 4, 3, 3)))
      >>> [compiler_options(program(n).eqns) for n in (2, 3)]
      [{'xla_disable_hlo_passes': 'algsimp'}, None]
    """
    if jax.default_backend() != "cpu":
        return None
    return AS_WRITTEN if any(map(_is_swapped, equations)) else None


def _is_swapped(equation: JaxprEqn) -> bool:
    """Whether a convolution's kernel has more entries than the map that it moves over."""
    if equation.primitive.name != "conv_general_dilated":
        return False
    numbers = equation.params["dimension_numbers"]
    sides = zip(equation.invars[:2], (numbers.lhs_spec, numbers.rhs_spec), strict=True)
    places, window = (math.prod(compat.shape_of(x)[axis] for axis in spec[2:]) for x, spec in sides)
    return window > places
