"""The maps of two cuts as one, entry by entry; see tests/spec/test_compose.py for networks."""

import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.transport.transport import Transport

RNG = np.random.default_rng(0)


def transport(n, m, *batch):
    plan = RNG.uniform(size=(*batch, n, m))
    targets = np.sort(RNG.permutation(n)[:m])
    one = jnp.ones(batch)
    return Transport(
        map=jnp.asarray(plan / plan.sum((-1, -2), keepdims=True), jnp.float32),
        targets=jnp.broadcast_to(jnp.asarray(targets), (*batch, m)),
        converged=jnp.ones(batch, bool),
        iterations=jnp.full(batch, 3),
        marginal_error=0.5 * one,
        cost=2 * one,
        potential=jnp.zeros((*batch, n)),
    )


@pytest.mark.parametrize("batch", [(), (2,)])
def test_mass_goes_through_the_neurons_in_between(batch):
    first, second = transport(6, 4, *batch), transport(4, 2, *batch)
    found = ifjax.compose_maps({"g": second, "new": second}, {"g": first, "old": first})
    assert {*found} == {"g", "new", "old"}
    one, two = np.asarray(first.map, np.float64), np.asarray(second.map, np.float64)
    expected = np.zeros((*batch, 6, 2))
    for b in np.ndindex(batch):
        for i in range(6):
            for k in range(2):
                through = (one[b][i, j] * two[b][j, k] / two[b][j].sum() for j in range(4))
                expected[(*b, i, k)] = sum(through)
    got = found["g"]
    np.testing.assert_allclose(got.map, expected, rtol=1e-5)
    np.testing.assert_array_equal(
        got.targets, np.take_along_axis(np.asarray(first.targets), np.asarray(second.targets), -1)
    )
    np.testing.assert_array_equal(got.iterations, np.full(batch, 6))
    np.testing.assert_allclose(got.cost, np.full(batch, 4.0))


def test_neurons_without_mass_pass_none_on():
    first, second = transport(3, 2), transport(2, 1)
    second = second._replace(map=second.map.at[0].set(0))
    got = ifjax.compose_maps({"g": second}, {"g": first})["g"].map
    np.testing.assert_allclose(got[:, 0], first.map[:, 1], rtol=1e-6)


def test_a_second_map_that_does_not_follow_is_refused():
    with pytest.raises(ValueError, match=r"group g: expected a second map .* got \(3, 2\)"):
        ifjax.compose_maps({"g": transport(3, 2)}, {"g": transport(6, 4)})
