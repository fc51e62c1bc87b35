"""Evaluation counts every example exactly once."""

import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.data import Batch, eval_batches
from ifjax.training import evaluate, make_eval_step

WEIGHTS = {"w": jnp.array(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)}


def linear(variables: dict, images: jnp.ndarray) -> jnp.ndarray:
    return images.reshape(len(images), -1) @ variables["w"]


@pytest.mark.parametrize("count", [1, 6, 7, 8, 9, 16])
@pytest.mark.parametrize("batch_size", [1, 8, 20])
def test_equals_numpy_on_every_partial_batch(count: int, batch_size: int) -> None:
    rng = np.random.default_rng(count)
    images = rng.normal(size=(count, 2, 2, 1)).astype(np.float32)
    labels = rng.integers(0, 3, size=count, dtype=np.int32)
    step = make_eval_step(linear)
    found = evaluate(step, WEIGHTS, eval_batches(images, labels, batch_size))
    logits = images.reshape(count, 4).astype(np.float64) @ np.asarray(WEIGHTS["w"], np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    assert found.count == count
    assert found.accuracy == np.mean(logits.argmax(axis=1) == labels)
    np.testing.assert_allclose(found.loss, -log_p[np.arange(count), labels].mean(), rtol=1e-5)


def one_hot_images(count: int) -> np.ndarray:
    return np.eye(count, dtype=np.float32)[:, None, None, :]


def test_each_example_is_weighed_once() -> None:
    """All labels are wrong but one: wherever it stands, it counts 1 / n."""
    step = make_eval_step(lambda variables, x: x[:, 0, 0])
    for right in range(5):
        labels = (np.arange(5, dtype=np.int32) + 1) % 5
        labels[right] = right
        assert evaluate(step, {}, eval_batches(one_hot_images(5), labels, 2)).accuracy == 1 / 5


def test_one_compilation_serves_the_partial_batch() -> None:
    traces = []

    def apply(variables: object, x: jnp.ndarray) -> jnp.ndarray:
        traces.append(x.shape)
        return x[:, 0, 0]

    step = make_eval_step(apply)
    for _ in range(2):
        evaluate(step, {}, eval_batches(one_hot_images(5), np.arange(5, dtype=np.int32), 2))
    assert traces == [(2, 1, 1, 5)]


def test_images_are_prepared_first() -> None:
    step = make_eval_step(lambda variables, x: x, prepare=lambda images: -images)
    images = np.array([[0.0, 1.0], [1.0, 0.0]], np.float32)
    batch = Batch(images, np.array([0, 1], np.int32), np.ones(2, bool))
    assert evaluate(step, {}, [batch]).accuracy == 1.0


def test_logits_that_are_not_numbers_are_never_right() -> None:
    step = make_eval_step(lambda variables, x: x * jnp.nan)
    batch = Batch(np.ones((3, 2), np.float32), np.zeros(3, np.int32), np.ones(3, bool))
    assert evaluate(step, {}, [batch]).accuracy == 0.0


def test_nothing_to_evaluate_is_refused() -> None:
    step = make_eval_step(lambda variables, x: x)
    masked = Batch(np.ones((3, 2), np.float32), np.zeros(3, np.int32), np.zeros(3, bool))
    for batches in ([], [masked]):
        with pytest.raises(ValueError, match="at least one example"):
            evaluate(step, {}, batches)
