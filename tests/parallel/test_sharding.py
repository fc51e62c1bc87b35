"""Where arrays of other widths lie; see tests/spec/test_sharded_fusion.py for whole networks."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ifjax.parallel.sharding import divided, laid_like, sharding_of

if jax.device_count() < 8:
    pytest.skip("eight devices are needed: leave XLA_FLAGS unset", allow_module_level=True)

MESH = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("x", "y"))


@pytest.mark.parametrize(
    ("spec", "width", "kept"),
    [
        (P("x"), 6, P("x")),
        (P(("x", "y")), 16, P(("x", "y"))),
        (P(("x", "y")), 6, P(("x",))),
        (P(("x", "y")), 5, P(None)),
        (P("y"), 6, P(None)),
    ],
)
def test_mesh_axes_go_from_the_last_until_the_width_divides(spec, width, kept):
    dropped = kept != spec
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = divided({"w": NamedSharding(MESH, spec)}, {"w": (width,)})["w"]
    assert found.is_equivalent_to(NamedSharding(MESH, kept), 1)
    assert len(said) == dropped
    if dropped:
        assert f"w, axis 0: width {width} over" in str(said[0].message)


def test_small_arrays_and_structs_lie_like_the_full_ones():
    full = jax.device_put({"w": jnp.ones((8, 4))}, NamedSharding(MESH, P("x", "y")))
    small = laid_like({"w": jnp.ones((4, 4))}, full)["w"]
    assert small.sharding == full["w"].sharding
    struct = laid_like({"w": jax.ShapeDtypeStruct((2, 4), jnp.float32)}, full)["w"]
    assert struct.sharding == full["w"].sharding
    plain = {"w": jnp.ones(3)}
    assert laid_like(plain, {"w": jnp.ones(6)})["w"] is plain["w"]


def test_what_has_no_place_is_refused():
    assert sharding_of("w", NamedSharding(MESH, P())) == NamedSharding(MESH, P())
    with pytest.raises(TypeError, match=r"w: expected an array on devices.*ndarray"):
        sharding_of("w", np.ones(3))
    with pytest.raises(TypeError, match="inside of jit it is not known"):
        jax.jit(lambda x: sharding_of("w", x) and x)(jnp.ones(3))
