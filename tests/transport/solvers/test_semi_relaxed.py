"""The nearest target."""

import jax.numpy as jnp
import numpy as np

from ifjax.transport import transport


def test_nearest_takes_the_first_of_the_nearest_and_bounds_the_exact_cost():
    cost = jnp.asarray([[1.0, 1.0, 2.0], [3.0, 0.5, 0.5], [2.0, 3.0, 1.0]])
    a = jnp.asarray([0.5, 0.3, 0.2])
    got = transport.solve(cost, a, jnp.full(3, 1 / 3), jnp.arange(3), solver="nearest")
    np.testing.assert_array_equal(got.map, np.diag(a))
    np.testing.assert_array_equal(got.potential, [1.0, 0.5, 1.0])
    exact = transport.solve(cost, a, jnp.full(3, 1 / 3), jnp.arange(3), solver="exact")
    assert got.cost <= exact.cost
