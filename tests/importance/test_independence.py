"""Channel independence against singular value decompositions in float64, one per channel."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.importance.independence import gram_independence, independence


def oracle(maps):
    """The paper's definition, channel by channel."""
    total = np.linalg.norm(maps, "nuc")
    drops = []
    for i in range(len(maps)):
        masked = maps.copy()
        masked[i] = 0
        drops.append(total - np.linalg.norm(masked, "nuc"))
    return np.array(drops)


def relu(rng, n, p):
    return np.maximum(rng.normal(size=(n, p)), 0)


CASES = {
    "wide": lambda rng: relu(rng, 6, 9),
    "tall": lambda rng: relu(rng, 9, 6),
    "square": lambda rng: relu(rng, 6, 6),
    "one position": lambda rng: relu(rng, 5, 1),
    "one channel": lambda rng: relu(rng, 1, 5),
    "low rank": lambda rng: relu(rng, 8, 2) @ relu(rng, 2, 8),
    "equal channels": lambda rng: relu(rng, 4, 7)[[0, 0, 1, 2, 2, 2, 3]],
    "dead channels": lambda rng: relu(rng, 6, 9) * (np.arange(6) % 2)[:, None],
    "orthogonal": lambda rng: np.diag([3.0, 3.0, 2.0, 1.0, 0.0]),
    "ill-conditioned": lambda rng: relu(rng, 7, 7) * 10.0 ** -np.arange(7)[:, None],
    "nothing": lambda rng: np.zeros((3, 4)),
}


@pytest.mark.parametrize("case", CASES)
def test_independence_is_the_drop_of_the_nuclear_norm(case):
    maps = CASES[case](np.random.default_rng(0))
    expected, scale = oracle(maps), np.linalg.norm(maps, "nuc") + 1e-30
    single = independence(jnp.asarray(maps, jnp.float32))
    np.testing.assert_allclose(single, expected, rtol=0, atol=2e-6 * scale)
    gram = gram_independence(jnp.asarray(maps @ maps.T, jnp.float32))
    # Of a Gram matrix half of the digits: sqrt(6e-8) for each singular value.
    np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-3 * scale)
    with jax.enable_x64(True):
        double = independence(jnp.asarray(maps))
        np.testing.assert_allclose(double, expected, rtol=0, atol=1e-13 * scale)
        gram = gram_independence(jnp.asarray(maps @ maps.T))
        np.testing.assert_allclose(gram, expected, rtol=0, atol=1e-7 * scale)


def test_scores_are_no_less_than_zero_and_no_more_than_the_rows():
    maps = jnp.asarray(relu(np.random.default_rng(1), 12, 30), jnp.float32)
    scores = independence(maps)
    assert np.all(scores >= 0)
    assert np.all(scores <= np.linalg.norm(maps, axis=1) * (1 + 1e-6))


def test_examples_share_one_program():
    stack = jnp.asarray(relu(np.random.default_rng(2), 12, 7).reshape(3, 4, 7), jnp.float32)
    got = jax.vmap(independence)(stack)
    for maps, scores in zip(stack, got, strict=True):
        np.testing.assert_allclose(scores, oracle(np.asarray(maps, np.float64)), atol=1e-5)
