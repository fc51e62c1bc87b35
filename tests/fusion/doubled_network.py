"""A network whose every neuron stands twice: merging changes nothing that it computes."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ifjax

N = 8
X = jnp.asarray(np.random.default_rng(1).standard_normal((5, 6)), jnp.float32)


def network(p, x):
    return jnp.tanh(x @ p["a"] + p["c"]) @ p["b"]


def doubled(seed=0):
    rng = np.random.default_rng(seed)
    a, c, b = (rng.standard_normal(s).astype(np.float32) for s in ((6, 4), (4,), (4, 3)))
    p = {"a": np.repeat(a, 2, 1), "c": np.repeat(c, 2), "b": np.repeat(b, 2, 0) / 2}
    return jax.tree.map(jnp.asarray, p)


@functools.cache
def fitted(**method):
    spec = ifjax.trace(network, doubled(), X).spec(
        0.5, solver="exact", **{"merge": "preserving", **method}
    )
    scores = {"a": np.tile([2.0, 1.0], 4)}
    return spec, ifjax.transport_maps(doubled(), spec, scores=scores)


def gradient(p, seed=0):
    """Of a loss; equal for equal neurons, as the loss of training is."""
    del seed
    return jax.grad(lambda p: ((network(p, X) - 1) ** 2).mean())(p)


def trained(tx, p, steps=3):
    state = tx.init(p)
    for _ in range(steps):
        updates, state = tx.update(gradient(p), state, p)
        p = optax.apply_updates(p, updates)
    return p, state


def assert_same_function(small, full):
    np.testing.assert_allclose(network(small, X), network(full, X), atol=1e-5)


def shapes(tree):
    return jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)


def find(state, name):
    """The state with a field, wherever it is."""
    if hasattr(state, name):
        return getattr(state, name)
    children = state if isinstance(state, tuple) else ()
    return next((f for f in (find(c, name) for c in children) if f is not None), None)


class Recorded(NamedTuple):
    """A state with arrays as long as a bias."""

    count: Any
    history: Any
    mu: Any


def recorded(p):
    return Recorded(jnp.zeros(N, jnp.int32), jnp.arange(float(N)), jax.tree.map(jnp.ones_like, p))


class Own(NamedTuple):
    """A state of one's own."""

    p: Any
    q: Any


def own():
    return optax.GradientTransformation(
        lambda p: Own(jax.tree.map(jnp.zeros_like, p), p), lambda u, s, p=None: (u, s)
    )
