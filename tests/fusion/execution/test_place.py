"""Where fusion runs: in numpy where all is held, else traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.fusion.execution.place import is_held, placed, run, to_devices, to_host
from ifjax.fusion.program import compiled

pytestmark = pytest.mark.promotes(
    ranks="within public functions",
    dtypes="within public functions",
)

PARAMS = {"w1": jnp.ones((3, 4)), "w2": jnp.ones((4, 2))}
PROGRAM = compiled(
    ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], PARAMS, jnp.ones((1, 3))).spec(0.5)
)


def test_arrays_go_to_the_host_and_back_and_keys_stay():
    tree = {"w": jnp.arange(3.0), "n": np.ones(2), "key": jax.random.key(0)}
    found = to_host(tree)
    assert isinstance(found["w"], np.ndarray)
    assert found["n"] is tree["n"]
    assert found["key"] is tree["key"]
    back = to_devices({"w": found["w"]}, tree)["w"]
    np.testing.assert_array_equal(back, tree["w"])
    assert not back.committed
    there = jax.device_put(tree["w"], jax.devices()[-1])
    assert to_devices({"w": found["w"]}, {"w": there})["w"].devices() == {jax.devices()[-1]}


def test_the_same_function_runs_in_numpy_or_traced():
    kinds = []

    def double(program, x):
        kinds.append(type(x))
        assert program is PROGRAM
        return 2 * x

    np.testing.assert_array_equal(run(double, PROGRAM, jnp.ones(2), outputs=P), [2, 2])
    assert kinds == [np.ndarray]
    got = jax.jit(lambda x: run(double, PROGRAM, x, outputs=P))(jnp.ones(2))
    np.testing.assert_array_equal(got, [2, 2])
    assert issubclass(kinds[-1], jax.core.Tracer)
    assert not jax.jit(lambda x: x + is_held(x))(jnp.zeros(()))


def test_small_leaves_take_the_places_of_the_full_ones():
    found = placed(PARAMS, {"w1": np.zeros((3, 2), np.float32)})
    assert found["w1"].shape == (3, 2)
    assert isinstance(found["w1"], jax.Array)
    np.testing.assert_array_equal(found["w2"], PARAMS["w2"])
