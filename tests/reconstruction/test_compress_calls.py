"""What `compress` takes, tells and refuses."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.importance import Reconstruction
from ifjax.reconstruction.choice import kept_neurons
from tests.reconstruction.random_weights import normal


def small_case():
    params = {"w1": normal(1, 6, 12), "w2": normal(3, 12, 5)}
    apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]  # noqa: E731
    x = np.random.default_rng(0).normal(size=(32, 6)).astype(np.float32)
    return apply, params, x, ifjax.trace(apply, params, x)


def test_forms_of_batches_and_other_importances():
    apply, params, x, graph = small_case()
    spec = graph.spec(0.5, method="prune", importance="reconstruction")
    one, _ = ifjax.compress(apply, params, spec, x)
    for batches in ([x], [(x,)], [(x, np.zeros(32))], iter([x[:8], x[8:16], x[16:24], x[24:]])):
        two, _ = ifjax.compress(apply, params, spec, batches)
        np.testing.assert_allclose(one["w2"], two["w2"], atol=1e-5)
    default, _ = ifjax.compress(apply, params, graph.spec(0.5), x)
    np.testing.assert_array_equal(one["w2"], default["w2"])
    l1 = graph.spec(0.5, method="prune", importance="l1")
    small, report = ifjax.compress(apply, params, l1, [x])
    np.testing.assert_array_equal(small["w1"], ifjax.fuse_params(params, l1)["w1"])
    assert [c.how for c in report.chosen] == ["importance"]
    scored, _ = ifjax.compress(apply, params, spec, [x], scores={"w1": np.arange(12.0)})
    np.testing.assert_array_equal(scored["w1"], params["w1"][:, 6:])


@pytest.mark.parametrize("one", [True, False])
def test_scores_of_stacked_layers_are_one_choice_or_one_each(one):
    params = {"up": normal(1, 2, 4, 6), "down": normal(2, 2, 6, 4)}
    step = lambda h, p: (h + jnp.tanh(h @ p["up"]) @ p["down"], None)  # noqa: E731
    apply = lambda p, x: jax.lax.scan(step, x, p)[0]  # noqa: E731
    x = normal(0, 48, 4)
    spec = ifjax.trace(apply, params, x).spec({"up": 0.5}, importance="reconstruction")
    scores = np.array([5.0, 0, 4, 1, 2, 3]) if one else np.array([[5.0, 0, 4, 1, 2, 3], range(6)])
    small, report = ifjax.compress(apply, params, spec, [x], scores={"up": scores})
    kept = [[0, 2, 5], [0, 2, 5] if one else [3, 4, 5]]
    np.testing.assert_array_equal(np.sort(report.kept["up"]), kept)
    np.testing.assert_array_equal(small["up"][0], params["up"][0][:, kept[0]])


@pytest.mark.parametrize("direction", ["backward", "forward"])
def test_the_importance_says_in_which_direction(direction):
    apply, params, x, graph = small_case()
    spec = graph.spec(0.5, importance=Reconstruction(direction))
    assert ifjax.FusionSpec.from_json(spec.to_json()) == spec
    _, report = ifjax.compress(apply, params, spec, [x])
    read = np.maximum(x @ np.asarray(params["w1"]), 0).astype(np.float64)
    problem = (read.T @ read)[None], np.asarray(params["w2"])[None], np.arange(12)[None]
    np.testing.assert_array_equal(report.kept["w1"], kept_neurons(direction)(*problem, 1, 6)[0])
    with pytest.raises(ValueError, match="'backward' or 'forward'"):
        Reconstruction("sideways")


@pytest.mark.parametrize("keep", [1, 24])
def test_hardly_anything_left_is_told_once(keep):
    """One of 48 neurons that have nothing in common; half of them are worth no warning."""

    def apply(p, x):
        return x @ p["a"] @ p["b"]

    p, x = {"a": jnp.eye(48), "b": jnp.eye(48)}, normal(0, 64, 48)
    spec = ifjax.trace(apply, p, x).spec(keep=keep, method="prune", importance="reconstruction")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        ifjax.compress(apply, p, spec, [x])
    told = [str(w.message) for w in found if "less than a tenth is left" in str(w.message)]
    assert [text.split(",")[0] for text in told] == (["b"] if keep == 1 else [])


def test_statistics_that_a_network_begins_with_are_told():
    def apply(p, x):
        h = (x @ p["a"] - p["m"]) * (p["s"] / jnp.sqrt(p["v"] + 1e-5)) + p["o"]
        return h @ p["b"]

    p = {"a": jnp.eye(8), "b": jnp.eye(8), "m": jnp.zeros(8), "v": jnp.ones(8)}
    p |= {"s": jnp.ones(8), "o": jnp.zeros(8)}
    x = normal(0, 64, 8)
    spec = ifjax.trace(apply, p, x).spec(0.5, method="prune", importance="reconstruction")
    with pytest.warns(UserWarning, match="of 1 of 1 batch norms, first m.* have not settled"):
        ifjax.compress(apply, p, spec, [x])


def test_bad_calls_say_what_to_do():
    apply, params, x, graph = small_case()
    spec = graph.spec(0.5, method="prune", importance="reconstruction")
    with pytest.raises(ValueError, match=r"ifjax\.synthesize"):
        ifjax.compress(apply, params, spec, [])
    with pytest.raises(ValueError, match="at least 4 calibration inputs, got 3"):
        ifjax.compress(apply, params, spec, [x[:3]])
    with pytest.raises(ValueError, match="examples on axis 0 of inputs and outputs"):
        ifjax.compress(lambda p, x: apply(p, x).mean(0), params, spec, [x])
    with pytest.raises(ValueError, match="not finite"):
        ifjax.compress(apply, params, spec, [np.where(x > 2, np.nan, x)])
    with pytest.raises(TypeError, match="FusionSpec"):
        ifjax.compress(apply, params, graph, [x])
    with pytest.raises(ValueError, match=r"ifjax\.compress\(apply_fn, params, spec, batches\)"):
        ifjax.fuse_params(params, spec)
    with pytest.raises(ValueError, match="w1: expected shape"):
        ifjax.compress(apply, {"w1": params["w2"], "w2": params["w1"]}, spec, [x])
    with pytest.raises(TypeError, match="dot_general"):
        ifjax.compress(apply, params, spec, [x[:, :4]])
