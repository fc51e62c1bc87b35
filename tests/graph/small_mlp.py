"""A network of two hidden layers, and an input."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tests.graph.laws import array, arrays


def mlp(p, x):
    h = jax.nn.silu(x @ p["w1"] + p["b1"])
    return jax.nn.relu(h @ p["m"]) @ p["w2"]


FULL = jax.tree.map(jnp.float32, arrays(w1=(3, 10), b1=(10,), m=(10, 8), w2=(8, 2)))
X = jnp.float32(array(4, 3))
