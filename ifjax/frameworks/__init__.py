"""A framework's own objects on top of the pure functions: flax.nnx modules, equinox modules.

flax.linen and haiku keep parameters outside of their modules and need nothing from here:
``ifjax.shrink(module.apply, spec)`` takes the small variables.
"""

from ifjax.frameworks.equinox_modules import carry_equinox, cut_equinox, equinox_function
from ifjax.frameworks.nnx_modules import cut_nnx, nnx_function

__all__ = ["carry_equinox", "cut_equinox", "cut_nnx", "equinox_function", "nnx_function"]
