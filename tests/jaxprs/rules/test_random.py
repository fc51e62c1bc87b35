"""Random keys are pinned, and draws follow the widths."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, between
from tests.jaxprs.rules.commuting import Walked

X = array(4, 6)
KEYS = {
    "random_split": jax.vmap(lambda k: jax.random.split(k, 3)),
    "random_fold_in": lambda k: jax.vmap(jax.random.fold_in)(k, np.arange(4)),
    "random_clone": jax.random.clone,
    "random_seed": lambda k: jax.vmap(jax.random.key)(k),
    "random_wrap": jax.random.wrap_key_data,
    "random_unwrap": jax.random.key_data,
    "random_gamma": lambda k: jax.vmap(jax.random.gamma)(k, abs(X[:, 0])),
    "rng_bit_generator": lambda k: lax.rng_bit_generator(k, (4,)),
    "rng_uniform": lambda k: lax.rng_uniform(0.0, 1.0, (4,)) + k,
}
ARGUMENT = {
    "random_seed": np.arange(4),
    "random_wrap": np.zeros((4, 2), np.uint32),
    "rng_bit_generator": np.zeros(4, np.uint32),
    "rng_uniform": X[:, 0],
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_and_generators_pin_every_axis(name):
    argument = ARGUMENT[name] if name in ARGUMENT else jax.random.split(jax.random.key(0), 4)
    walked = Walked(KEYS[name], argument, integers=True)
    assert name in walked.primitives()
    assert walked.classes() == {}
    assert set(walked.signature()) <= set(". >")


def test_random_bits_are_drawn_at_the_small_width_and_keys_are_pinned():
    """Dropout: the mask follows the neurons, so that training code runs on the small network."""

    def f(p, x, key):
        h = x @ p["a"]
        keep = jax.random.bernoulli(key, 0.5, h.shape)
        return jnp.where(keep, h, 0) @ p["b"]

    p, x, key = arrays(a=(3, 6), b=(6, 2)), array(4, 3), jax.random.key(0)
    graph = ifjax.trace(f, p, x, key)
    assert {g.name: g.size for g in graph.groups} == {"a": 6}
    small = ifjax.take(p, graph, {"a": [0, 1]})
    got = ifjax.shrink(f, graph.spec(keep=2))(small, x, key)
    keep = jax.random.bernoulli(key, 0.5, (4, 2))
    want = np.where(keep, x @ small["a"], 0) @ small["b"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_random_permutations_pin():
    f, p, x = between(lambda h: jax.random.permutation(jax.random.key(0), h, axis=1))
    assert ifjax.trace(f, p, x).groups == ()
