"""One step of plain gradient descent, against its formula in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ifjax.training import create_state, make_train_step


def test_a_step_is_gradient_descent_on_the_mean_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    kernel, x, labels = rng.normal(size=(4, 3)), rng.normal(size=(5, 4)), np.arange(5) % 3
    optimizer = optax.sgd(0.25)
    state = create_state({"params": {"w": jnp.asarray(kernel, jnp.float32)}}, optimizer)
    step = make_train_step(lambda v, x: (x @ v["params"]["w"], {"seen": x.sum()}), optimizer)
    state, metrics = step(state, jnp.asarray(x, jnp.float32), jnp.asarray(labels))

    logits = x @ kernel
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    want = kernel - 0.25 * x.T @ (p - np.eye(3)[labels]) / 5
    np.testing.assert_allclose(state.variables["params"]["w"], want, atol=1e-6)
    np.testing.assert_allclose(metrics.loss, -np.log(p[np.arange(5), labels]).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics.accuracy, np.mean(logits.argmax(1) == labels), rtol=1e-6)
    np.testing.assert_allclose(state.variables["seen"], x.sum(), rtol=1e-5)
    assert int(state.step) == 1


def test_every_step_prepares_with_a_key_of_its_own() -> None:
    keys = []

    def prepare(key, images):
        jax.debug.callback(lambda k: keys.append(k.tolist()), jax.random.key_data(key))
        return images

    optimizer = optax.sgd(0.0)
    state = create_state({"params": {"w": jnp.zeros((2, 2))}}, optimizer, seed=9)
    step = make_train_step(lambda v, x: (x @ v["params"]["w"], {}), optimizer, prepare=prepare)
    for _ in range(2):
        state, _ = step(state, jnp.eye(2), jnp.arange(2))
    jax.effects_barrier()
    want = [jax.random.key_data(jax.random.fold_in(jax.random.key(9), t)).tolist() for t in (0, 1)]
    assert keys == want
