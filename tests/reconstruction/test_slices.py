"""Stacks that are read slice by slice come apart: a slice is chosen and solved for as a leaf."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from tests.graph.laws import arrays

pytestmark = pytest.mark.promotes(ranks="its networks add vectors to matrices")

SHAPES = {"in": (6, 8), "up": (3, 8, 12), "bias": (3, 12), "down": (3, 12, 8), "out": (8, 4)}
STACKS = ("up", "bias", "down")
X = jnp.asarray(np.random.default_rng(0).normal(size=(64, 6)), jnp.float32)


def parameters():
    scaled = {k: v / np.sqrt(v.shape[-2]) for k, v in arrays(**SHAPES).items()}
    return {k: jnp.asarray(v, jnp.float32) for k, v in scaled.items()}


def split(p):
    layers = [{k: p[k][i] for k in STACKS} for i in range(3)]
    return {k: v for k, v in p.items() if k not in STACKS} | {"layers": layers}


def block(h, w):
    return h + jnp.tanh(h @ w["up"] + w["bias"]) @ w["down"]


def separate(p, x):
    h = x @ p["in"]
    for w in p["layers"]:
        h = block(h, w)
    return h @ p["out"]


def indexed(p, x):
    h = x @ p["in"]
    for i in range(3):
        h = block(h, {k: p[k][i] for k in STACKS})
    return h @ p["out"]


def unstacked(p, x):
    """By other primitives, inside of a call, of a stack that is something else before."""
    h, ups = x @ p["in"], jnp.moveaxis(2 * jnp.swapaxes(p["up"], 0, 1), 1, 0) / 2
    layers = zip(jnp.split(ups, 3), jnp.unstack(p["bias"]), range(3), strict=True)
    for up, bias, i in layers:
        down = jnp.take(p["down"], i, 0)
        h = jax.jit(block)(h, {"up": up[0], "bias": bias, "down": down})
    return h @ p["out"]


def compressed(f, p, pattern, **options):
    spec = ifjax.trace(f, p, X).spec({pattern: 0.5}, method="prune", **options)
    small, report = ifjax.compress(f, p, spec, [X[i::4] for i in range(4)])
    return small, report, ifjax.shrink(f, spec)(small, X)


@pytest.mark.parametrize("f", [indexed, unstacked])
def test_slices_are_what_separate_layers_are(f):
    p = parameters()
    want, alone, outputs = compressed(separate, split(p), "*up", importance="reconstruction")
    got, report, small = compressed(f, p, "up", importance="reconstruction")
    np.testing.assert_array_equal(
        report.kept["up"], [alone.kept[f"layers/{i}/up"] for i in range(3)]
    )
    assert len({tuple(k) for k in report.kept["up"].tolist()}) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), split(got), want)
    np.testing.assert_allclose(small, outputs, atol=1e-4)


def test_moments_are_told_by_the_names_of_stacks():
    def normed(f):
        def g(p, x):
            n, h = p["norm"], x @ p["first"]
            h = (h - n["mean"]) * lax.rsqrt(n["variance"] + 1e-5) * n["scale"] + n["offset"]
            return f(p, jax.nn.relu(h))

        return g

    names = ("mean", "variance", "scale", "offset")
    norm = {k: jnp.abs(jnp.asarray(arrays(**{k: (6,)})[k], jnp.float32)) for k in names}
    p = parameters() | {"first": jnp.asarray(arrays(first=(6, 6))["first"], jnp.float32)}
    found = []
    for f, q, pattern in ((separate, split(p), "*up"), (indexed, p, "up")):
        f, q = normed(f), q | {"norm": norm}
        spec = ifjax.trace(f, q, X).spec({pattern: 0.5}, method="prune")
        found.append(ifjax.compress(f, q, spec, ifjax.analytic_moments(f, q, X[:2]))[0])
    want, got = found
    assert not np.isin(got["down"][2], p["down"][2]).any()  # it has been solved for
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), split(got), want)


def test_slices_of_activations():
    """Every layer reads its part of one product, whose kernel and bias are stacks."""

    def wide(p, x):
        h = jnp.tanh(jnp.einsum("bc,lcf->blf", x @ p["in"], p["up"]) + p["bias"])
        return sum(h[:, i] @ p["down"][i] for i in range(3)) @ p["out"]

    def apart(p, x):
        h = [jnp.tanh(x @ p["in"] @ w["up"] + w["bias"]) @ w["down"] for w in p["layers"]]
        return sum(h) @ p["out"]

    p = parameters()
    want, _, outputs = compressed(apart, split(p), "*up", importance="l1")
    got, _, small = compressed(wide, p, "up", importance="l1")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), split(got), want)
    np.testing.assert_allclose(small, outputs, atol=1e-4)


def test_slices_of_the_layers_of_a_scan():
    """Two blocks in every step of a scan: both axes number groups of their own."""

    def scanned(p, x):
        def step(h, w):
            return block(block(h, {k: w[k][0] for k in STACKS}), {k: w[k][1] for k in STACKS}), None

        return lax.scan(step, x @ p["in"], {k: p[k] for k in STACKS})[0] @ p["out"]

    def nested(p):
        return p | {k: p[k][jnp.asarray([[0, 1], [2, 0]])] for k in STACKS}

    def flat(p):
        layers = [{k: p[k][i, j] for k in STACKS} for i in range(2) for j in range(2)]
        return {k: v for k, v in p.items() if k not in STACKS} | {"layers": layers}

    p = nested(parameters())
    want, _, outputs = compressed(separate, flat(p), "*up", importance="reconstruction")
    got, report, small = compressed(scanned, p, "up", importance="reconstruction")
    assert report.kept["up"].shape == (2, 2, 6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), flat(got), want)
    np.testing.assert_allclose(small, outputs, atol=1e-4)
