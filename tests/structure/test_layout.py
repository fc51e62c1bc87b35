import jax.numpy as jnp
import numpy as np

from ifjax.structure import axis as ex
from ifjax.structure import layout
from ifjax.structure.layout import Place
from tests import reference

N = 5
SELF = ex.Atom(layout.SELF, N)


def weights(*shape):
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)


def test_neurons_are_described_by_kernels_alone_where_there_are_any():
    kernels = (Place(0, 0, "producer", SELF), Place(2, 1, "consumer", SELF))
    bias = Place(1, 0, "additive", SELF)
    assert layout.describing((kernels[0], bias, kernels[1])) == kernels
    assert layout.describing((bias,)) == (bias,)
    assert layout.alone((*kernels, bias), [2, 1]) == (
        Place(0, 1, "consumer", SELF),
        Place(1, 0, "additive", SELF),
    )


def test_rows_hold_every_weight_of_a_neuron():
    x, y = weights(2, N, 3), weights(N * 4)
    where = (
        Place(0, 1, "consumer", SELF),
        Place(1, 0, "producer", ex.Product((ex.Pinned(4), SELF))),
    )
    first, second = layout.rows([x, y], where)
    for i in range(N):
        np.testing.assert_array_equal(np.sort(first[i]), np.sort(np.ravel(x[:, i])))
        np.testing.assert_array_equal(second[i], y[i::N])


def test_groups_of_one_shape_have_equal_places():
    """Names do not matter, so that programs are shared."""
    structure = reference.trace("mlp", reference.init("mlp", 0, (6, 6, 6))).structure
    where = [layout.places(structure, structure.group[f"fc{i}.weight"], {})[1] for i in (0, 1)]
    assert where[0] == where[1]
    assert len({p.array for p in where[0]}) == 3


def test_places_follow_the_present_sizes_of_other_groups():
    structure = reference.trace("mlp", reference.init("mlp", 0, (6, 4))).structure
    for sizes in ({}, {"fc0.weight": 2}):
        _, where = layout.places(structure, structure.group["fc1.weight"], sizes)
        assert {ex.size(p.where) for p in where} == {4}
