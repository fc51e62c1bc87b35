"""Gathers against a float64 product, and when they are taken."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.fusion.execution.sparse_map import neuron_map, times

RNG = np.random.default_rng(0)


def vertex(n, m, sources):
    """A map whose targets have a number of sources each."""
    matrix = np.zeros((m, n))
    for row in matrix:
        row[RNG.choice(n, sources, replace=False)] = RNG.uniform(0.1, 1, sources)
    return jnp.asarray(matrix, jnp.float32)


def gathers(by, x, axis):
    text = jax.jit(times, static_argnums=2).lower(by, x, axis).as_text()
    return "stablehlo.gather" in text


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sources", [1, 3, 4, 96])
def test_the_product_whatever_the_number_of_sources(sources, axis):
    """Three are listed of 96 to 48; with more the dense branch must be taken."""
    matrix = vertex(96, 48, sources)
    shape = [5, 7, 11]
    shape[axis] = 96
    x = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    by = neuron_map(matrix, 48)
    assert by.sources.shape == (48, 3)
    assert bool(by.complete) == (sources <= 3)
    assert gathers(by, x, axis)
    want = np.moveaxis(np.tensordot(np.float64(matrix), x, (1, axis)), 0, axis)
    np.testing.assert_allclose(jax.jit(times, static_argnums=2)(by, x, axis), want, atol=1e-5)


def test_one_row_of_many_sources_is_enough_for_the_product():
    matrix = vertex(96, 48, 2).at[17].set(1.0)
    x = jnp.asarray(RNG.normal(size=(96, 40)), jnp.float32)
    found = times(neuron_map(matrix, 48), x, 0)
    np.testing.assert_allclose(found, np.float64(matrix) @ x, atol=1e-5)


def test_rows_of_zeros_stay_zero():
    matrix = jnp.zeros((96, 96)).at[::2].set(vertex(96, 48, 2))
    by = neuron_map(matrix, 48)
    assert bool(by.complete)
    found = np.asarray(times(by, jnp.asarray(RNG.normal(size=(96, 40)), jnp.float32), 0))
    assert not found[1::2].any()
    assert found[::2].all()


def test_whole_neurons_compile_no_product_and_others_are_told():
    matrix = jnp.zeros((48, 96)).at[jnp.arange(96) % 48, RNG.permutation(96)].set(0.5)
    x = jnp.asarray(RNG.normal(size=(96, 40)), jnp.float32)
    whole = jax.jit(lambda matrix, x: times(neuron_map(matrix, 48), x, 0, whole=True))
    text = whole.lower(matrix, x).compile().as_text()
    assert "gather" in text
    assert "dot(" not in text
    np.testing.assert_allclose(whole(matrix, x), np.float64(matrix) @ x, atol=1e-6)
    assert np.isnan(whole(vertex(96, 48, 9), x)).all()


def test_what_rounding_leaves_does_not_count():
    matrix = vertex(96, 48, 2) + 1e-12
    assert bool(neuron_map(matrix, 48).complete)
    assert not neuron_map(matrix + 1e-6, 48).complete


def test_derivatives_and_batches_are_those_of_the_product():
    """Every entry of a batch by its own rule: one is complete, one is not."""
    matrices = jnp.stack([vertex(96, 48, 2), vertex(96, 48, 9)])
    x = jnp.asarray(RNG.normal(size=(2, 96, 40)), jnp.float32)
    weight = jnp.asarray(RNG.normal(size=(2, 48, 40)), jnp.float32)

    def loss(x):
        found = jax.vmap(lambda matrix, x: times(neuron_map(matrix, 48), x, 0))(matrices, x)
        return jnp.sum(weight * found)

    want = np.einsum("bmn,bmc->bnc", np.float64(matrices), weight)
    np.testing.assert_allclose(jax.grad(loss)(x), want, atol=1e-5)


@pytest.mark.parametrize(("n", "m", "entries"), [(48, 24, 99), (96, 4, 99), (96, 48, 9)])
def test_no_lists_where_they_do_not_pay(n, m, entries):
    """Few neurons, many sources each, or small arrays."""
    by, x = neuron_map(vertex(n, m, 2), m), jnp.ones((n, entries))
    assert not gathers(by, x, 0)
    np.testing.assert_allclose(times(by, x, 0), by.matrix @ x, rtol=1e-6)


def test_half_precision_stays():
    by = neuron_map(vertex(96, 48, 2), 48)
    assert times(by, jnp.ones((96, 40), jnp.bfloat16), 0).dtype == jnp.bfloat16
