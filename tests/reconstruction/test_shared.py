"""Weights, norms and folders that are shared between uses, forms and runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from ifjax.reconstruction.statistics import refit_statistics


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_weight_read_twice_in_one_sum_reads_the_sum():
    """f(x) + f(-x): both uses of the last weight end in one value, and it is solved once."""
    params = {"a": normal(1, 8, 16), "b": normal(2, 16, 5)}

    def hidden(p, x):
        return jax.nn.relu(x @ p["a"])

    def apply(p, x):
        return hidden(p, x) @ p["b"] + hidden(p, -2 * x) @ p["b"]

    x = normal(3, 64, 8)
    spec = ifjax.trace(apply, params, x).spec(0.5)
    small, report = ifjax.compress(apply, params, spec, [x])
    [solved] = [s for s in report.solved if "b" in s.sites]
    assert (solved.sites, solved.rows) == (("b",), 8)
    index = [int(abs(params["a"] - a[:, None]).sum(0).argmin()) for a in np.asarray(small["a"]).T]
    rows = np.asarray(hidden(small, x) + hidden(small, -2 * x), np.float64)
    unit = np.sqrt(solved.shrinkage * (rows**2).sum() / 8)
    rows = np.vstack([rows, unit * np.eye(8)])
    target = np.vstack([apply(params, x), unit * params["b"][index]])
    want = np.linalg.lstsq(rows, target, rcond=None)[0]
    np.testing.assert_allclose(small["b"], want, rtol=1e-3, atol=1e-3)


def test_a_convolution_with_a_computed_kernel_is_left():
    params = {"a": normal(1, 8, 16), "b": normal(2, 16, 6), "k": normal(3, 16, 6)}
    params |= {"image": normal(4, 1, 8, 1), "z": normal(5, 2, 6)}

    def apply(p, x):
        h = jax.nn.relu(x @ p["a"])
        kernel = (h @ p["k"]).mean(0).reshape(3, 1, 2)
        numbers = ("NWC", "WIO", "NWC")
        y = lax.conv_general_dilated(p["image"], kernel, (1,), "SAME", dimension_numbers=numbers)
        return h @ p["b"] + y.mean((0, 1)) @ p["z"]

    x = normal(6, 64, 8)
    spec = ifjax.trace(apply, params, x).spec(0.5)
    _, report = ifjax.compress(apply, params, spec, list(x.reshape(4, 16, 8)))
    assert ("image", "a convolution with a kernel that is no parameter") in report.follows
    assert {path for s in report.solved for path in s.sites} >= {"b", "k"}


def test_statistics_of_another_shape_than_scale_and_offset():
    params = {"scale": 1 + normal(1, 3) ** 2, "offset": normal(2, 3), "bias": normal(5, 3)}
    params |= {"mean": normal(3, 1, 3, 1), "variance": 1 + normal(4, 1, 3, 1) ** 2}

    def apply(p, x):
        x = x + p["bias"][:, None]
        x = (x - p["mean"]) / jnp.sqrt(p["variance"] + 1e-5)
        return x * p["scale"][:, None] + p["offset"][:, None]

    x = normal(6, 4, 3, 5)
    new = refit_statistics(apply, params, [(x,)])
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, params)
    read = x + params["bias"][:, None]
    np.testing.assert_allclose(new["mean"], read.mean((0, 2), keepdims=True), atol=1e-5)
    np.testing.assert_allclose(apply(new, x), apply(params, x), atol=1e-5)


def test_a_scale_that_is_read_elsewhere_stays():
    params = {"s": 2 * np.ones(3), "o": np.ones(3), "m": np.ones(3), "v": np.ones(3)}

    def apply(p, x):
        return (x - p["m"]) / jnp.sqrt(p["v"] + 1e-5) * p["s"] + p["o"] + x * p["s"]

    new = refit_statistics(apply, params, [(normal(1, 4, 3),)])
    assert jax.tree.map(np.ndarray.tolist, new) == jax.tree.map(np.ndarray.tolist, params)


def test_a_folder_is_of_one_choice_and_takes_keys(tmp_path):
    params = {"a": normal(1, 8, 16), "b": normal(2, 16, 5)}

    def apply(p, x, key):
        h = jax.nn.relu(x @ p["a"])
        return h * jax.random.bernoulli(key, 0.9, h.shape) @ p["b"]

    batches = [(x, jax.random.key(i)) for i, x in enumerate(normal(3, 4, 16, 8))]
    spec = ifjax.trace(apply, params, *batches[0]).spec(0.5)

    def run(scores):
        small, _ = ifjax.compress(apply, params, spec, batches, folder=tmp_path, scores=scores)
        return small

    first = run({"a": np.arange(16.0)})
    np.testing.assert_array_equal(run({"a": np.arange(16.0)})["b"], first["b"])
    with pytest.raises(ValueError, match="holds another run of compress"):
        run({"a": -np.arange(16.0)})


def test_masks_spread_over_a_width_that_is_cut():
    """What is spread over the channels reads nothing that is cut, and is as wide as they are."""
    params = {"in": normal(1, 8, 16), "up": normal(2, 16, 24), "down": normal(3, 24, 16)}
    params |= {"out": normal(4, 16, 5)}

    def apply(p, x, mask):
        h = x @ p["in"]
        h = h + jax.nn.relu(jnp.where(mask[:, None], h, 0) @ p["up"]) @ p["down"]
        return jnp.where(mask[:, None], h, 1.0) @ p["out"]

    x, mask = normal(5, 64, 8), np.arange(64) % 3 > 0
    spec = ifjax.trace(apply, params, x, mask).spec(0.5)
    small, report = ifjax.compress(apply, params, spec, [(x, mask)])
    assert {path for s in report.solved for path in s.sites} >= {"up", "down", "out"}
    want, got = apply(params, x, mask), ifjax.shrink(apply, spec)(small, x, mask)
    assert float(jnp.mean((got - want) ** 2) / jnp.var(want)) < 0.6


def test_loops_in_loops_are_reported():
    params = {"in": normal(1, 8, 12), "up": normal(2, 2, 2, 12, 16), "out": normal(4, 12, 5)}
    params["down"] = normal(3, 2, 2, 16, 12) / 16

    def inner(h, p):
        return h + jnp.tanh(h @ p[0]) @ p[1], None

    def apply(p, x):
        outer = lambda h, p: lax.scan(inner, h, p)  # noqa: E731
        return lax.scan(outer, x @ p["in"], (p["up"], p["down"]))[0] @ p["out"]

    x = normal(5, 64, 8)
    spec = ifjax.trace(apply, params, x).spec(0.5)
    _, report = ifjax.compress(apply, params, spec, [x])
    reasons = {path: reason for paths, reason in report.follows for path in paths.split(", ")}
    solved = {path for s in report.solved for path in s.sites}
    assert {path.split("/")[0] for path in reasons} == {"up", "down"}
    assert "out" in solved
