"""Training goes on from what `compress` gives: its first step sees the loss of eval mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax

BATCH = 128


def conv(x, w, stride=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=numbers)


def norm(p, x, train):
    mean, variance = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (p["mean"], p["variance"])
    return (x - mean) / jnp.sqrt(variance + 1e-5) * p["scale"] + p["offset"]


def network(p, x, train=False):
    """Two residual blocks, the second with a projection on its shortcut."""
    h = jax.nn.relu(norm(p["n0"], conv(x, p["c0"]), train))
    f = jax.nn.relu(norm(p["n1"], conv(h, p["c1"]), train))
    h = jax.nn.relu(h + norm(p["n2"], conv(f, p["c2"]), train))
    f = jax.nn.relu(norm(p["n3"], conv(h, p["c3"], 2), train))
    f = norm(p["n4"], conv(f, p["c4"]), train)
    h = jax.nn.relu(f + norm(p["n5"], conv(h, p["c5"], 2), train))
    return h.mean((1, 2)) @ p["out"]


def in_training(p, x):
    return network(p, x, train=True)


def made():
    rng = np.random.default_rng(0)
    shapes = {"c0": (3, 3, 3, 16), "c1": (3, 3, 16, 24), "c2": (3, 3, 24, 16)}
    shapes |= {"c3": (3, 3, 16, 32), "c4": (3, 3, 32, 32), "c5": (1, 1, 16, 32)}
    normal = lambda *s: (rng.normal(size=s) / np.sqrt(np.prod(s[:-1]))).astype(np.float32)  # noqa: E731
    params = {name: normal(*shape) for name, shape in shapes.items()}
    for i in range(6):
        n = shapes[f"c{i}"][-1]
        scale, offset = rng.uniform(0.5, 1.5, n), rng.normal(size=n) / 4
        parts = {"scale": scale, "offset": offset, "mean": np.zeros(n), "variance": np.ones(n)}
        params[f"n{i}"] = {k: x.astype(np.float32) for k, x in parts.items()}
    params["out"] = 8 * normal(32, 10)
    x = rng.normal(size=(4 * BATCH, 8, 8, 3)) + rng.normal(size=(4 * BATCH, 1, 1, 3)) / 4
    batches = list(x.astype(np.float32).reshape(4, BATCH, 8, 8, 3))
    params = ifjax.reset_statistics(network, params, batches)
    labels = [jnp.argmax(network(params, x), -1) for x in batches]
    return params, batches, labels


def loss(outputs, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], 1).mean()


@pytest.mark.parametrize("include", [None, ["c1", "c3"]])
def test_the_first_train_mode_step_sees_the_loss_of_eval_mode(include):
    params, batches, labels = made()
    graph = ifjax.trace(network, params, batches[0])
    spec = graph.spec(0.5, include=include)
    small, _ = ifjax.compress(network, params, spec, batches)
    evaluated, trained = (jax.jit(ifjax.shrink(f, spec)) for f in (network, in_training))

    def mean(apply):
        found = [loss(apply(small, x), y) for x, y in zip(batches, labels, strict=True)]
        return float(np.mean(found))

    assert abs(mean(trained) / mean(evaluated) - 1) < 0.05
    pruned = ifjax.fuse_params(params, graph.spec(0.5, include=include, method="prune"))
    every = jnp.concatenate(batches)

    def apart(p):  # of all inputs in one batch, relative to what tells them apart
        outputs = evaluated(p, every)
        return float(jnp.std(trained(p, every) - outputs) / jnp.std(outputs))

    assert apart(small) < 1e-3
    assert apart(pruned) > 0.1  # where nothing is refitted
