"""The README's loop that fuses every few steps: one compilation, starts that save iterations."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import ifjax

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(64, 6)), jnp.float32)
Y = jnp.asarray(RNG.normal(size=(64, 2)), jnp.float32)


def apply(params, x):
    return jax.nn.relu(x @ params["w1"]) @ params["w2"]


def test_a_jitted_step_that_fuses_every_few_steps():
    shapes = {"w1": (6, 32), "w2": (32, 2)}
    params = {name: jnp.asarray(RNG.normal(size=s), jnp.float32) for name, s in shapes.items()}
    spec = ifjax.trace(apply, params, X).spec(0.5)
    optimizer = optax.sgd(1e-5)
    state, maps = optimizer.init(params), ifjax.transport_maps(params, spec)
    small = params

    def fused(params, maps):
        maps = ifjax.transport_maps(params, spec, init=maps)
        return ifjax.apply_maps(params, spec, maps, keep_shape=True), maps

    @jax.jit
    def step(params, state, small, maps, i, every):
        grads = jax.grad(lambda p: jnp.mean((apply(p, X) - Y) ** 2))(params)
        updates, state = optimizer.update(grads, state)
        params = optax.apply_updates(params, updates)
        small, maps = jax.lax.cond(
            i % every == 0, lambda: fused(params, maps), lambda: (small, maps)
        )
        return params, state, small, maps

    for i in range(1, 7):
        before, expected = maps, small
        params, state, small, maps = step(params, state, small, maps, i, 3)
        if i % 3 == 0:
            cold = ifjax.transport_maps(params, spec)["w1"]
            assert maps["w1"].converged
            assert 0 < int(maps["w1"].iterations) < int(cold.iterations)
            assert bool(jnp.any(maps["w1"].potential != before["w1"].potential))
            expected = ifjax.fuse_params(params, spec, keep_shape=True)
        for name, x in expected.items():
            np.testing.assert_allclose(small[name], x, rtol=0, atol=0.02 * float(jnp.abs(x).max()))
        assert small["w1"].shape == (6, 32)
    assert int(jnp.sum(jnp.any(small["w1"] != 0, axis=0))) == 16
    assert step._cache_size() == 1
