"""Where small parameters lie: on the mesh of the full ones, as far as widths divide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.spec.spec import small_shardings


def placed(shape, *parts):
    """A struct on an abstract mesh of 2 x 4 devices."""
    place = NamedSharding(AbstractMesh((2, 4), ("x", "y")), P(*parts))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=place)


def dense(keep, round_to=1):
    """A spec of a dense network that keeps some of 24 neurons."""
    params = {"w1": jnp.ones((8, 24)), "w2": jnp.ones((24, 8))}
    graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 8)))
    return graph.spec(1 - keep / 24, round_to=round_to)


@pytest.mark.parametrize(
    ("keep", "part"), [(16, ("x", "y")), (12, "x"), (10, "x"), (7, None), (24, ("x", "y"))]
)
@pytest.mark.filterwarnings("ignore:.*do not divide")
def test_mesh_axes_that_do_not_divide_are_dropped_from_the_last(keep, part):
    params = {"w1": placed((8, 24), None, ("x", "y")), "w2": placed((24, 8), ("x", "y"), None)}
    found = small_shardings(dense(keep), params)
    assert found["w1"].spec == P(None, part)
    assert found["w2"].spec == P(part, None)
    shape = dense(keep).small_struct(params)["w1"]
    assert (shape.shape, shape.sharding) == ((8, keep), found["w1"])
    assert small_shardings(dense(keep), jax.tree.map(lambda x: x.sharding, params)) == found


def test_the_warning_says_how_to_avoid_it():
    params = {"w1": placed((8, 24), "x", "y"), "w2": placed((24, 8), "y")}
    wanted = (
        r"2 axes .* w1, axis 1: width 10 over y \(4 devices\), avoided by round_to=4; w2, axis 0"
    )
    with pytest.warns(UserWarning, match=wanted):
        small_shardings(dense(10), params)
    assert small_shardings(dense(10, round_to=4), params)["w2"].spec == P("y")


def test_a_width_that_does_not_divide_is_refused_with_those_that_would():
    params = {"w1": placed((8, 24), "x", "y"), "w2": placed((24, 8), "y")}
    wanted = r"w1, axis 1: width 10 over y \(4 devices\) .* keep 8 or 12, or give round_to=4"
    with pytest.raises(ValueError, match=wanted):
        small_shardings(dense(10), params, strict=True)
    assert small_shardings(dense(12), params, strict=True) == small_shardings(dense(12), params)


def test_leaves_without_a_place():
    spec, whole = dense(12), SingleDeviceSharding(jax.devices()[0])
    params = {"w1": jnp.ones((8, 24)), "w2": jnp.ones((24, 8))}
    assert small_shardings(spec, params) == {"w1": whole, "w2": whole}
    with pytest.raises(TypeError, match=r"w2: expected an array on devices.*got ndarray.*device_p"):
        small_shardings(spec, {**params, "w2": np.ones((24, 8))})
    with pytest.raises(ValueError, match="w3: not a leaf of the network"):
        small_shardings(spec, {"w3": whole})
    with pytest.raises(TypeError, match="inside of jit it is not known where arrays lie"):
        jax.jit(lambda p: small_shardings(spec, p))(params)


def test_a_tree_of_shardings_with_other_leaves_is_refused(tmp_path):
    spec = dense(12)
    small = {"w1": jnp.ones((8, 12)), "w2": jnp.ones((12, 8))}
    ifjax.save(tmp_path / "small", small, spec)
    whole = SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(ValueError, match="leaf w2 is only in the checkpoint"):
        ifjax.load(tmp_path / "small", sharding={"w1": whole})
    found, _ = ifjax.load(tmp_path / "small", sharding={"w1": whole, "w2": whole})
    np.testing.assert_array_equal(found["w2"], small["w2"])
