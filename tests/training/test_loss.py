"""The loss against a float64 loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.training import cross_entropy


def oracle(logits: np.ndarray, labels: np.ndarray, smoothing: float) -> np.ndarray:
    losses = []
    for z, y in zip(logits.astype(np.float64), labels, strict=True):
        log_p = z - z.max() - np.log(np.sum(np.exp(z - z.max())))
        target = np.full(len(z), smoothing / len(z))
        target[y] += 1.0 - smoothing
        losses.append(-np.sum(target * log_p))
    return np.array(losses)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.7])
@pytest.mark.parametrize("scale", [1.0, 200.0])
def test_equals_the_float64_oracle(smoothing: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=(7, 5))).astype(np.float32)
    labels = rng.integers(0, 5, size=7)
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(found, oracle(logits, labels, smoothing), rtol=2e-6, atol=1e-5)


def test_gradient_is_softmax_minus_target() -> None:
    logits = jnp.array([[1.0, -2.0, 0.5]])
    labels = jnp.array([2])
    gradient = jax.grad(lambda z: cross_entropy(z, labels, 0.3).sum())(logits)
    target = 0.7 * jax.nn.one_hot(labels, 3) + 0.1
    np.testing.assert_allclose(gradient, jax.nn.softmax(logits) - target, atol=1e-6)


def test_half_precision_logits_give_a_float32_loss() -> None:
    logits = jnp.zeros((1, 1000), jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([0]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, np.log(1000.0), rtol=1e-6)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0, float("nan")])
def test_smoothing_outside_the_unit_interval_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 1\)"):
        cross_entropy(jnp.zeros((1, 2)), jnp.array([0]), smoothing)
