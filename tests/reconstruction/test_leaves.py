"""Kernels that are made of several leaves are solved for as if they were one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])


def columns(p, x, kernel):
    return jax.nn.relu(x @ p["in"]) @ kernel


def rows(p, x, kernel):
    h = jnp.concatenate([jax.nn.relu(x @ p["in"]), jnp.tanh(x)], -1)
    return h @ kernel


def recurrent(p, x, kernel):
    def step(h, x):
        gate, new = jnp.split(x @ p["in"] + h @ kernel(), 2, -1)
        return h + jax.nn.sigmoid(gate) * (jnp.tanh(new) - h), None

    start = jnp.zeros((len(x), 12))
    return lax.scan(step, start, x.reshape(len(x), 2, 4).swapaxes(0, 1))[0] @ p["out"]


CASES = {
    "columns": (columns, (16, 12), 1, {"in": (8, 16)}),
    "rows": (rows, (24, 12), 0, {"in": (8, 16)}),
    "recurrent": (recurrent, (12, 24), 1, {"in": (4, 24), "out": (12, 5)}),
}


@pytest.mark.parametrize("name", CASES)
def test_joined_leaves_are_what_one_leaf_is(name):
    network, shape, axis, others = CASES[name]
    with jax.enable_x64(True):
        params = {n: normal(i, *s) for i, (n, s) in enumerate(others.items())}
        whole, x = normal(7, *shape), normal(8, 64, 8)
        at = 12 if name == "recurrent" else 16 if name == "rows" else 5
        parts = dict(zip("ab", np.split(whole, [at], axis), strict=True))
        bias = normal(9, 12)
        parts |= dict(zip("cd", np.split(bias, [5]), strict=True))

        def joined(p, x):
            kernel = lambda: jnp.concatenate([p["a"], p["b"]], axis)  # noqa: E731
            if name == "recurrent":
                return network(p, x, kernel)
            return network(p, x, kernel()) + 2 * jnp.concatenate([p["c"], p["d"]])

        def one(p, x):
            if name == "recurrent":
                return network(p, x, lambda: p["w"])
            return network(p, x, p["w"]) + 2 * p["bias"]

        found = []
        for apply, leaves in ((joined, parts), (one, {"w": whole, "bias": bias})):
            given = params | leaves
            spec = ifjax.trace(apply, given, x).spec(0.5)
            small, report = ifjax.compress(apply, given, spec, [x])
            found.append((ifjax.shrink(apply, spec)(small, x), report))
        np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-6, atol=1e-8)
        [solved] = [s for s in found[0][1].solved if {"a", "b"} <= {*s.sites}]
        assert solved.offset == (None if name == "recurrent" else "c + d")
        assert not found[0][1].follows


NORMALISED = {
    "norm, gain": lambda v, g: v / jnp.sqrt((v**2).sum(0)) * g,
    "gain, norm": lambda v, g: g * (v * jax.lax.rsqrt((v**2).sum(0, keepdims=True) + 1e-6)),
    "one gain": lambda v, g: v * (g[0] / jnp.linalg.norm(v)),
}


@pytest.mark.parametrize("name", NORMALISED)
def test_normalised_weights_are_solved_for_and_written_as_norm_and_gain(name):
    kernel = NORMALISED[name]
    with jax.enable_x64(True):
        x = normal(0, 64, 6) * 8
        params = {"in": normal(1, 6, 12), "v": normal(3, 12, 5), "g": 1 + normal(4, 5) ** 2}

        def apply(p, x):
            return jnp.tanh(x @ p["in"]) @ kernel(p["v"], p["g"])

        spec = ifjax.trace(apply, params, x).spec(0.5, include="in", method="prune")
        small, report = ifjax.compress(apply, params, spec, [x])
        [solved] = report.solved
        [index] = report.kept.values()
        hidden = np.tanh(x @ np.asarray(small["in"]))
        unit = np.sqrt(solved.shrinkage * (hidden**2).sum() / 6)
        start = kernel(params["v"][index], params["g"])
        rows = np.vstack([hidden, unit * np.eye(6)])
        target = np.vstack([apply(params, x), unit * start])
        want = np.linalg.lstsq(rows, target, rcond=None)[0]
        np.testing.assert_allclose(kernel(small["v"], small["g"]), want, rtol=1e-7, atol=1e-9)


def test_a_norm_that_no_gain_makes_up_for_is_left():
    """Every entry is divided by another number, and one factor per output cannot undo it."""
    params = {"in": normal(1, 6, 12), "v": normal(3, 12, 5), "g": 1 + normal(4, 5) ** 2}

    def apply(p, x):
        norms = 1 + (p["v"] ** 4).sum(0)
        return jnp.tanh(x @ p["in"]) @ (p["v"] / (norms + p["v"] ** 2) * p["g"])

    x = normal(0, 64, 6) * 8
    spec = ifjax.trace(apply, params, x).spec(0.5, include="in", method="prune")
    _, report = ifjax.compress(apply, params, spec, [x])
    assert not report.solved
    assert [paths for paths, reason in report.follows if "makes up for" in reason] == ["v"]


@pytest.mark.parametrize("gain", ["scalar", "gated"])
def test_half_precision_hides_no_weight_that_cannot_be_given(gain):
    params = {"in": normal(1, 6, 12), "v": normal(3, 12, 5), "g": 1 + normal(4, 1) ** 2}
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)

    def apply(p, x):
        v = p["v"]
        made = v * jax.nn.sigmoid(v) if gain == "gated" else v / jnp.sqrt((v * v).sum(0))
        return jnp.tanh(x @ p["in"]) @ (made * p["g"])

    x = jnp.asarray(normal(0, 64, 6) * 8, jnp.bfloat16)
    spec = ifjax.trace(apply, params, x).spec(0.5, include="in", method="prune")
    _, report = ifjax.compress(apply, params, spec, [x])
    assert not report.solved


def with_linen(params):
    from flax import linen as nn

    cell = nn.OptimizedLSTMCell(8)
    start = (np.zeros((1, 8), np.float32),) * 2
    params["cell"] = cell.init(jax.random.key(0), start, np.zeros((1, 5)))["params"]
    return lambda p, state, x: cell.apply({"params": p}, state, x)


def with_nnx(params):
    from flax import nnx

    definition, params["cell"] = nnx.split(nnx.OptimizedLSTMCell(5, 8, rngs=nnx.Rngs(0)), nnx.Param)
    return lambda p, state, x: nnx.merge(definition, p)(state, x)


@pytest.mark.parametrize("framework", [with_linen, with_nnx])
@pytest.mark.promotes(ranks="of flax", dtypes="of flax")
def test_an_lstm_of_flax_that_joins_its_kernels(framework):
    params = {"out": normal(1, 8, 3).astype(np.float32)}
    cell = framework(params)

    def apply(p, x):
        state = (jnp.zeros((x.shape[0], 8), x.dtype),) * 2
        for i in range(2):
            state, h = cell(p["cell"], state, x[:, i])
        return h @ p["out"]

    x = normal(2, 48, 2, 5).astype(np.float32) * 8
    spec = ifjax.trace(apply, params, x).spec(0.5)
    small, report = ifjax.compress(apply, params, spec, [x])
    [hidden] = [s for s in report.solved if any("cell/h" in p or "_h" in p for p in s.sites)]
    assert len(hidden.sites) == (4 if framework is with_linen else 2)
    assert hidden.after < hidden.before
    want, f = apply(params, x), ifjax.shrink(apply, spec)
    plain = ifjax.take(params, spec, report.kept)
    errors = [float(jnp.square(f(p, x) - want).mean()) for p in (plain, small)]
    assert errors[1] < 0.7 * errors[0]


def test_weights_of_integers_are_cut_and_follow():
    def apply(p, x):
        return jax.nn.relu(x @ p["in"]) @ (p["out"].astype(x.dtype) * p["scale"])

    with jax.enable_x64(True):
        params = {"in": normal(0, 6, 8), "scale": np.asarray(0.02)}
        params["out"] = (99 * normal(1, 8, 3)).astype(np.int8)
        x = normal(2, 32, 6)
        spec = ifjax.trace(apply, params, x).spec(0.5, importance="reconstruction")
        small, report = ifjax.compress(apply, params, spec, [x])
        np.testing.assert_array_equal(small["out"], params["out"][report.kept["in"]])
        assert report.follows == (("out, scale", "its entries are int8"),)
        assert not report.solved
