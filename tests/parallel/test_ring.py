"""Products and distances of what lies spread over devices, against plain ones in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ifjax.parallel import ring
from ifjax.parallel.placement import on_mesh

if jax.device_count() < 8:
    pytest.skip("eight devices are needed: leave XLA_FLAGS unset", allow_module_level=True)

RNG = np.random.default_rng(0)


def spread(on, *arrays):
    return jax.device_put(arrays, NamedSharding(on, P()))


def mesh(*shape):
    return Mesh(
        np.array(jax.devices()[: math.prod(shape)]).reshape(shape), ("x", "y")[: len(shape)]
    )


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def distances(x, y):
    """Of columns, L1."""
    return jnp.abs(x.T[:, None] - y.T[None]).sum(-1)


@pytest.mark.parametrize("block", [2**24, 8])
@pytest.mark.parametrize("shape", [(8,), (2, 4), (5,)])
def test_pairs_and_products_are_those_of_one_device(shape, block, monkeypatch):
    """Rows that do not divide by the devices, in one block or in several; either factor moves."""
    monkeypatch.setattr(ring, "_BLOCK", block)
    x, y, by, leaf = normal(3, 13), normal(3, 9), normal(9, 13), normal(2, 13, 11)

    def everything(x, y, by, leaf):
        return (
            ring.pairwise(distances, x, y, axis=1),
            ring.product(by, leaf, 1),
            ring.product(by, leaf[:, :, :1], 1),
            ring.product(by, leaf[0, :, 0], 0),
        )

    given = spread(mesh(*shape), x, y, by, leaf)
    found = jax.jit(lambda *a: on_mesh(everything, *a, outputs=P))(*given)
    x, y, by, leaf = (a.astype(np.float64) for a in (x, y, by, leaf))
    expected = (
        np.abs(x.T[:, None] - y.T[None]).sum(-1),
        np.einsum("mn,anb->amb", by, leaf),
        np.einsum("mn,anb->amb", by, leaf[:, :, :1]),
        by @ leaf[0, :, 0],
    )
    for got, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


def test_without_a_mesh_it_is_the_plain_product():
    by, leaf = normal(2, 5), normal(3, 5)
    got = ring.product(jnp.asarray(by), jnp.asarray(leaf), 1)
    np.testing.assert_allclose(got, leaf @ by.T, rtol=1e-6)
    got = ring.pairwise(distances, jnp.asarray(leaf), jnp.asarray(by[:1]).repeat(3, 0))
    assert got.shape == (5, 5)
