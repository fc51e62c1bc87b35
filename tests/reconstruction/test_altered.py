"""Leaves that were changed beforehand stay, and those beside them make up for it."""

import jax
import numpy as np
import pytest

import ifjax


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])


def branches(p, x):
    y = jax.nn.relu(x @ p["first"]) @ p["left"] + x @ p["right"] + p["bias"]
    return jax.nn.relu(y @ p["up"]) @ p["down"]


@pytest.mark.parametrize(
    ("given", "solved"), [("left", ("right",)), ("bias", ("left", "right")), ("right", ("left",))]
)
def test_what_meets_an_altered_leaf_makes_up_for_it(given, solved):
    """The least squares solution of the unit that holds it."""
    with jax.enable_x64(True):
        sizes = {"first": (6, 9), "left": (9, 5), "right": (6, 5), "up": (5, 8), "down": (8, 3)}
        params = {name: normal(i, *shape) for i, (name, shape) in enumerate(sizes.items())}
        params["bias"] = np.linspace(1.0, 2.0, 5)
        x = normal(9, 64, 6) * 4
        spec = ifjax.trace(branches, params, x).spec({"up": 0.25}, importance="reconstruction")
        altered = {**params, given: np.zeros_like(params[given])}
        small, report = ifjax.compress(branches, params, spec, [x], altered=altered)
        np.testing.assert_array_equal(small[given], altered[given])
        assert report.follows == ((given, "it was given"),)
        [unit] = [s for s in report.solved if s.sites == solved]
        assert unit.offset == (None if given == "bias" else "bias")
        read = {"left": np.asarray(jax.nn.relu(x @ params["first"])), "right": x}
        wanted = sum(read[n] @ params[n] for n in read) + params["bias"]
        wanted = wanted - sum(read[n] @ altered[n] for n in read if n == given)
        columns = np.concatenate([read[n] for n in solved], 1)
        start = np.concatenate([params[n] for n in solved])
        shift = unit.shrinkage * np.square(columns).sum() / columns.shape[1]
        if given != "bias":  # the bias takes up the means
            columns, wanted = columns - columns.mean(0), wanted - wanted.mean(0)
        gram = columns.T @ columns + shift * np.eye(len(start))
        want = np.linalg.solve(gram, columns.T @ wanted + shift * start)
        got = np.concatenate([small[n] for n in solved])
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-8)
        assert unit.after < unit.before


def test_a_bias_makes_up_alone_for_weights_that_were_given():
    """The mean of what is missing; and it stays where it was given too."""

    def apply(p, x):
        h = jax.nn.relu(x @ p["first"] + p["bias"])
        return jax.nn.relu(2 * (h @ p["down"]) - p["offset"])

    sizes = {"first": (6, 9), "bias": (9,), "down": (9, 5), "offset": (5,)}
    with jax.enable_x64(True):
        params = {name: normal(i, *shape) for i, (name, shape) in enumerate(sizes.items())}
        x = normal(9, 64, 6) * 4 + 1
        spec = ifjax.trace(apply, params, x).spec({"first": 0.3}, importance="reconstruction")
        altered = {**params, "down": params["down"] / 2}
        small, report = ifjax.compress(apply, params, spec, [x], altered=altered)
        kept = report.kept["first"]
        np.testing.assert_array_equal(small["down"], altered["down"][kept])
        [unit] = report.solved
        assert (unit.sites, unit.rows, unit.offset) == (("offset",), 0, "offset")
        assert (unit.positions, unit.shrinkage) == (64, np.inf)
        small = jax.tree.map(np.asarray, small)
        h = np.maximum(x @ params["first"] + params["bias"], 0)
        missing = 2 * (h @ params["down"] - h[:, kept] @ altered["down"][kept])
        want = params["offset"] - missing.mean(0)
        np.testing.assert_allclose(small["offset"], want, rtol=1e-6, atol=1e-8)
        assert unit.after < unit.before
        scale = sum(
            np.var(y) * y.size for y in np.split(2 * h @ params["down"] - params["offset"], 4)
        )
        np.testing.assert_allclose(unit.after * scale, ((missing - missing.mean(0)) ** 2).sum())
        altered["offset"] = params["offset"] + 1
        small, report = ifjax.compress(apply, params, spec, [x], altered=altered)
        np.testing.assert_array_equal(small["offset"], altered["offset"])
        assert report.solved == ()


def test_an_altered_leaf_that_is_read_twice_was_given():
    def apply(p, x):
        h = jax.nn.relu(x @ p["in"])
        return sum(jax.nn.relu(y @ p["up"]) @ p["down"] for y in (h, 2 * h)) @ p["out"]

    sizes = {"in": (6, 8), "up": (8, 12), "down": (12, 5), "out": (5, 3)}
    with jax.enable_x64(True):
        params = {name: normal(i, *shape) for i, (name, shape) in enumerate(sizes.items())}
        x = normal(9, 64, 6)
        spec = ifjax.trace(apply, params, x).spec({"up": 0.3}, importance="reconstruction")
        altered = {**params, "down": np.concatenate([0 * params["down"][:1], params["down"][1:]])}
        small, report = ifjax.compress(apply, params, spec, [x], altered=altered)
        np.testing.assert_array_equal(small["down"], altered["down"][report.kept["up"]])
        assert report.follows == (("down", "it was given"),)
