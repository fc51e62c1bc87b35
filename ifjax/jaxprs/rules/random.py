"""Random keys, which are pinned, and what is drawn with them."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from ifjax.jaxprs import compat
from ifjax.jaxprs.compat import Values
from ifjax.jaxprs.rules.rule import Resize, Rule
from ifjax.jaxprs.walk import Axes, Context


def keys(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Every key is another one: axes of keys are pinned."""
    del equation
    return context.opaque(operands, "random keys")


def bits(context: Context, equation: JaxprEqn, operands: list[Axes]) -> list[Axes]:
    """Draws are independent of each other, so fewer may be drawn."""
    context.pin(operands[0], "random keys")
    return [(*operands[0], *context.fresh(equation.params["shape"]))]


def rebuild_bits(resize: Resize, equation: JaxprEqn, values: Values) -> Values:
    """Draws as many as the small shape needs."""
    rank = len(resize.inputs[0])
    return compat.bind(equation, values, shape=resize.shape(resize.outputs[0][rank:]))


KEYS = "random_seed random_wrap random_unwrap random_fold_in random_split random_clone random_gamma"
GENERATORS = "rng_bit_generator rng_uniform"

RULES = {
    **dict.fromkeys(f"{KEYS} {GENERATORS}".split(), Rule(keys)),
    "random_bits": Rule(bits, rebuild_bits),
}
