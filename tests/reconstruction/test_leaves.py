"""Kernels that are made of several leaves are solved for as if they were one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])


def columns(p, x, kernel):
    return jax.nn.relu(x @ p["in"]) @ kernel


def rows(p, x, kernel):
    h = jnp.concatenate([jax.nn.relu(x @ p["in"]), jnp.tanh(x)], -1)
    return h @ kernel


def recurrent(p, x, kernel):
    def step(h, x):
        gate, new = jnp.split(x @ p["in"] + h @ kernel(), 2, -1)
        return h + jax.nn.sigmoid(gate) * (jnp.tanh(new) - h), None

    start = jnp.zeros((len(x), 12))
    return lax.scan(step, start, x.reshape(len(x), 2, 4).swapaxes(0, 1))[0] @ p["out"]


CASES = {
    "columns": (columns, (16, 12), 1, {"in": (8, 16)}),
    "rows": (rows, (24, 12), 0, {"in": (8, 16)}),
    "recurrent": (recurrent, (12, 24), 1, {"in": (4, 24), "out": (12, 5)}),
}


@pytest.mark.parametrize("name", CASES)
def test_joined_leaves_are_what_one_leaf_is(name):
    network, shape, axis, others = CASES[name]
    with jax.enable_x64(True):
        params = {n: normal(i, *s) for i, (n, s) in enumerate(others.items())}
        whole, x = normal(7, *shape), normal(8, 64, 8)
        at = 12 if name == "recurrent" else 16 if name == "rows" else 5
        parts = dict(zip("ab", np.split(whole, [at], axis), strict=True))

        def joined(p, x):
            kernel = lambda: jnp.concatenate([p["a"], p["b"]], axis)  # noqa: E731
            return network(p, x, kernel if name == "recurrent" else kernel())

        def one(p, x):
            return network(p, x, (lambda: p["w"]) if name == "recurrent" else p["w"])

        found = []
        for apply, leaves in ((joined, parts), (one, {"w": whole})):
            given = params | leaves
            spec = ifjax.trace(apply, given, x).spec(0.5)
            small, report = ifjax.compress(apply, given, spec, [x])
            found.append((ifjax.shrink(apply, spec)(small, x), report))
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6, atol=1e-8)
        assert any({"a", "b"} <= {*s.sites} for s in found[0][1].solved)
        assert not found[0][1].follows
