"""A structure at other widths is that of the network that has them."""

import jax
import jax.numpy as jnp

import ifjax
from ifjax.structure.resize import at_widths


def network(p, x):
    h = jax.nn.relu(x @ p["up"])
    both = jnp.concatenate([h, x], axis=-1)  # h beside the input, which stays
    return both @ p["mid"] @ p["down"]


def params(n, m):
    shapes = {"up": (3, n), "mid": (n + 3, m), "down": (m, 2)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def test_it_is_the_one_that_is_traced_there():
    x = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    full, small = (
        ifjax.trace(network, params(*widths), x).structure for widths in ((8, 6), (5, 4))
    )
    assert at_widths(full, {"up": 5, "mid": 4}) == small
    assert at_widths(full, {}) == full
