"""Which values are made of the same features."""

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import Literal

from ifjax.graph.facts.origins import NOTHING, Origins

pytestmark = pytest.mark.promotes(ranks="its own functions do")

W = jnp.ones((4, 4))


def numbers(function):
    """The numbers of a function's outputs, of two inputs that are features and one parameter."""
    origins = Origins()
    h = jnp.ones((3, 4))
    jaxpr = jax.make_jaxpr(function)(h, h, jnp.ones(4))
    known = dict(zip(jaxpr.jaxpr.invars, (origins.new(), origins.new(), NOTHING), strict=True))
    known |= dict.fromkeys(jaxpr.jaxpr.constvars, NOTHING)
    for equation in jaxpr.eqns:
        operands = [NOTHING if isinstance(v, Literal) else known[v] for v in equation.invars]
        known |= zip(equation.outvars, origins.of(equation, operands), strict=True)
    first, second, _ = (known[v] for v in jaxpr.jaxpr.invars)
    return first, second, [known[v] for v in jaxpr.jaxpr.outvars]


def layer_norm(h):
    h = h - jnp.sum(h, -1, keepdims=True) / 4
    return h * jax.lax.rsqrt(jnp.sum(h * h, -1, keepdims=True))


@pytest.mark.parametrize(
    "same",
    [
        lambda h, g, s: jax.lax.tanh(h),
        lambda h, g, s: h * s + s,
        lambda h, g, s: h.reshape(3, 2, 2),
        lambda h, g, s: layer_norm(h),
        lambda h, g, s: layer_norm(jax.lax.tanh(h) * s),
    ],
)
def test_maps_scales_shapes_and_own_statistics_leave_the_features(same):
    first, _, found = numbers(same)
    assert found == [first]


@pytest.mark.parametrize(
    "other",
    [
        lambda h, g, s: h + g,
        lambda h, g, s: h @ W,
        lambda h, g, s: jnp.sum(h, -1),
        lambda h, g, s: g,
    ],
)
def test_other_features_are_others(other):
    first, _, found = numbers(other)
    assert found != [first]
    assert NOTHING not in found


def test_the_same_equation_of_the_same_values_is_the_same_value():
    _, _, (one, two, three) = numbers(lambda h, g, s: (h @ W, h @ W, g @ W))
    assert one == two != three


def test_what_is_made_of_parameters_is_nothing():
    _, _, found = numbers(lambda h, g, s: s * s)
    assert found == [NOTHING]
