"""States of no known optimizer: what is told by its size and place, and what must be said."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ifjax
from tests.fusion.doubled_network import (
    N,
    Own,
    X,
    assert_same_function,
    doubled,
    fitted,
    gradient,
    network,
    own,
    recorded,
    shapes,
    trained,
)

pytestmark = pytest.mark.promotes(ranks="its own functions do", dtypes="its own functions do")


def test_a_vector_as_long_as_a_bias_stays():
    spec, maps = fitted()
    got = ifjax.fuse_tree(recorded(doubled()), spec, maps)
    np.testing.assert_array_equal(got.history, jnp.arange(float(N)))
    assert got.count.shape == (N,)
    assert got.mu["c"].shape == (4,)


def test_it_stays_beside_parameters_that_are_a_list():
    """There the places in the parameters and those in a chain are numbers alike."""
    names = ("a", "c", "b")

    def as_list(p, x):
        return network(dict(zip(names, p, strict=True)), x)

    p = [doubled()[k] for k in names]
    spec = ifjax.trace(as_list, p, X).spec(0.5, solver="nearest")
    maps = ifjax.transport_maps(p, spec)
    state = (optax.EmptyState(), jnp.arange(float(N)), optax.adam(0.1).init(p), [None, jnp.ones(N)])
    got = ifjax.fuse_tree(state, spec, maps)
    assert got[1].shape == (N,)
    assert [x.shape for x in got[2][0].mu] == [(6, 4), (4,), (4, 3)]
    assert got[3][1].shape == (N,)
    masked = optax.masked(optax.adam(0.1), [False, True, False]).init(p)
    assert ifjax.fuse_tree(masked, spec, maps).inner_state[0].mu[1].shape == (4,)


def test_one_record_per_parameter_stays():
    spec, maps = fitted()
    state = {"norms": jax.tree.map(lambda x: jnp.zeros(5), doubled())}
    assert shapes(ifjax.fuse_tree(state, spec, maps)) == shapes(state)
    with pytest.raises(ValueError, match=r"norms/\w: expected shape .* say kind="):
        ifjax.fuse_tree({"norms": jax.tree.map(lambda x: jnp.zeros(8), doubled())}, spec, maps)
    kept = {"norms": jax.tree.map(lambda x: jnp.zeros(8), doubled())}
    assert shapes(ifjax.fuse_tree(kept, spec, maps, {"norms": "keep"})) == shapes(kept)


MASKS = [(d, k) for d in ("bool", "int8", "uint8", "int32") for k in (None, "weights", "gradients")]


@pytest.mark.parametrize(
    ("dtype", "kind"), [*MASKS, ("float8_e4m3fn", None), ("float8_e5m2", "select")]
)
def test_masks_and_quantised_trees_are_selected(dtype, kind):
    spec, maps = fitted()
    kept = np.asarray(maps["a"].targets)
    rng = np.random.default_rng(0)
    values = {
        k: jnp.asarray(rng.integers(0, 2, x.shape)).astype(dtype) for k, x in doubled().items()
    }
    got = ifjax.fuse_tree({"state": values, "count": jnp.zeros((), dtype)}, spec, maps, kind)
    np.testing.assert_array_equal(got["state"]["a"].astype("f4"), values["a"][:, kept].astype("f4"))
    np.testing.assert_array_equal(got["state"]["c"].astype("f4"), values["c"][kept].astype("f4"))
    np.testing.assert_array_equal(got["state"]["b"].astype("f4"), values["b"][kept].astype("f4"))
    assert got["state"]["a"].dtype == dtype


def test_scales_of_quantised_moments_go_with_them():
    """One per row or column, of which the other axis is one."""
    spec, maps = fitted()
    kept = np.asarray(maps["a"].targets)
    scales = {"a": jnp.arange(8.0)[None], "c": jnp.ones(1), "b": jnp.arange(3.0)[None]}
    got = ifjax.fuse_tree({"mu_scale": scales}, spec, maps, kind={"mu*": "select"})["mu_scale"]
    np.testing.assert_array_equal(got["a"], scales["a"][:, kept])
    np.testing.assert_array_equal(got["c"], scales["c"])
    np.testing.assert_array_equal(got["b"], scales["b"])


def test_what_cannot_be_told_is_refused_and_can_be_said():
    spec, maps = fitted()
    state = (optax.EmptyState(), Own(gradient(doubled()), doubled()))
    with pytest.raises(ValueError, match=r"1/p: .* nothing says what it holds: say kind={'1/p': "):
        ifjax.fuse_tree(state, spec, maps)
    with pytest.raises(ValueError, match=r"the tree: .* nothing says .*\{'\*': 'weights'\}"):
        ifjax.fuse_tree(doubled(), spec, maps)
    for kind in ({"*/q": "weights", "*": "select"}, {"1/q": "weights", "1": "select"}):
        got = ifjax.fuse_tree(state, spec, maps, kind)[1]
        assert_same_function(got.q, doubled())
        want = ifjax.apply_maps(state[1].p, spec, maps, kind="select")
        jax.tree.map(np.testing.assert_array_equal, got.p, want)
    kept = ifjax.fuse_tree(state, spec, maps, {"*/q": "weights", "*/p": "keep"})[1]
    assert kept.p["a"].shape == (6, 8)
    with pytest.raises(ValueError, match=r"pattern '\*/r' matches nothing .* 1/p"):
        ifjax.fuse_tree(state, spec, maps, {"*/r": "weights", "*": "select"})
    with pytest.raises(ValueError, match=r"got 'moments'"):
        ifjax.fuse_tree(state, spec, maps, {"*": "moments"})
    with pytest.raises(ValueError, match=r"kind must be one of weights, gradients, select"):
        ifjax.fuse_tree(state, spec, maps, "moments")


def test_an_optimizer_of_ones_own_says_it_itself():
    spec, maps = fitted()
    tx = optax.chain(optax.clip(1.0), own())
    _, state = trained(tx, doubled())
    got = ifjax.fuse_tree(state, spec, maps, optimizer=tx, params=doubled())[1]
    assert_same_function(got.q, doubled())
    assert got.p["a"].shape == (6, 4)
    with pytest.raises(ValueError, match="needs params="):
        ifjax.fuse_tree(state, spec, maps, optimizer=tx)
