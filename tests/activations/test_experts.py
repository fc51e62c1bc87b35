"""Experts in one ragged product, against a loop over dense ones."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from ifjax.activations.divergence import layer_outputs, output_divergence
from ifjax.activations.layer_inputs import layer_inputs

EXPERTS, TOKENS, WIDTH = 3, 7, 5


def chosen(p, x):
    return jnp.argmax(x @ p["router"], -1)


def normed(p, h):
    return (h - p["mean"]) / jnp.sqrt(p["var"] + 1e-5) * p["scale"] + p["offset"]


def ragged(p, x):
    """Tokens sorted by expert: every expert takes a run of them."""
    x = x.reshape(-1, x.shape[-1])
    choice = chosen(p, x)
    order = jnp.argsort(choice)
    count = jnp.bincount(choice, length=EXPERTS)
    h = normed(p, lax.ragged_dot(x[order], p["up"], count))
    y = lax.ragged_dot(jnp.tanh(h), p["down"], count)
    return jnp.tanh(y[jnp.argsort(order)]) @ p["out"]


def dense(p, x):
    """Every expert takes all tokens, and zeros in the place of those that are not its own."""
    x = x.reshape(-1, x.shape[-1])
    masks = jax.nn.one_hot(chosen(p, x), EXPERTS, dtype=x.dtype)
    h = sum(masks[:, e, None] * (x @ p["up"][e]) for e in range(EXPERTS))
    h = jnp.tanh(normed(p, h))
    y = sum((masks[:, e, None] * h) @ p["down"][e] for e in range(EXPERTS))
    return jnp.tanh(y) @ p["out"]


SHAPES = {
    **{"router": (4, EXPERTS), "up": (EXPERTS, 4, WIDTH), "down": (EXPERTS, WIDTH, 6)},
    **{"out": (6, 2), **dict.fromkeys(("mean", "var", "scale", "offset"), (WIDTH,))},
}


@pytest.fixture(scope="module")
def network():
    rng = np.random.default_rng(0)
    p = {k: jnp.asarray(rng.normal(size=s), jnp.float32) for k, s in SHAPES.items()}
    p["var"] = abs(p["var"])
    x = jnp.asarray(rng.normal(size=(4, TOKENS, 4)), jnp.float32)
    assert len({*np.asarray(chosen(p, x)).ravel()}) == EXPERTS
    np.testing.assert_allclose(ragged(p, x), dense(p, x), rtol=1e-4, atol=1e-5)
    return p, x


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_what_the_experts_read(network):
    p, x = network
    found = {}
    for f in (ragged, dense):
        structure = ifjax.trace(f, p, x).structure
        for reading in layer_inputs(f, p, structure, x):
            for name in reading.groups:
                found.setdefault((f, name), []).extend(reading.rows(name))
    assert {name for _, name in found} == {"up", "down"}
    (once,) = found[ragged, "up"]
    order = np.argsort(np.asarray(chosen(p, x)).ravel(), kind="stable")
    np.testing.assert_allclose(once, sum(found[dense, "up"])[:, order], atol=1e-5)
    np.testing.assert_allclose(*(found[f, "down"][0] for f in (ragged, dense)), atol=1e-5)


@pytest.mark.parametrize("chunk", [None, 2])
def test_channel_independence(network, chunk):
    p, x = network
    found = [
        ifjax.collect_stats(f, p, ifjax.trace(f, p, x), [(x,)], metrics=["chip"], chunk=chunk).chip
        for f in (ragged, dense)
    ]
    for name in ("up", "down"):
        assert np.ptp(found[1][name]) > 0.1
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-4)


def test_channel_independence_of_one_token_per_example(network):
    """Over the examples, which go to experts of their own."""
    p, x = network
    x = x.reshape(-1, 1, 4)
    found = [
        ifjax.collect_stats(f, p, ifjax.trace(f, p, x), [(x,)], metrics=["chip"]).chip["down"]
        for f in (ragged, dense)
    ]
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-4)


def test_sensitivity_to_a_mask(network):
    p, x = network

    def loss(outputs, targets):
        del targets
        return jnp.sum(outputs**2)

    batches = [((x,), jnp.zeros(len(x)))]
    found = [
        ifjax.collect_stats(f, p, ifjax.trace(f, p, x), batches, loss_fn=loss, metrics=["fisher"])
        for f in (ragged, dense)
    ]
    for name in ("up", "down"):
        np.testing.assert_allclose(found[0].fisher[name], found[1].fisher[name], rtol=1e-3)


def test_layers_and_their_divergence(network):
    p, x = network
    one, other = layer_outputs(ragged, p, x), layer_outputs(dense, p, x)
    assert list(one) == ["router", "up", "down", "out"]
    choice = np.asarray(chosen(p, x)).ravel()
    order = np.argsort(choice, kind="stable")
    for name in ("up", "down"):
        every = [np.asarray(other[n]) for n in (name, f"{name}#2", f"{name}#3")]
        want = np.stack([every[e][t] for t, e in enumerate(choice)])[order]
        np.testing.assert_allclose(one[name], want, rtol=1e-4, atol=1e-5)
    graph = ifjax.trace(ragged, p, x)
    spec = graph.spec(0.4, include="up", method="prune")
    small, apply_small = ifjax.fuse_params(p, spec), ifjax.shrink(ragged, spec)
    found = output_divergence(ragged, p, apply_small, small, [(x,)])
    assert list(found) == ["router", "down", "out"]  # the width of "up" was cut
    assert found["router"].distance == 0.0
    change = layer_outputs(apply_small, small, x)["down"] - one["down"]
    want = np.linalg.norm(change) / np.linalg.norm(one["down"])
    assert want > 0.05
    np.testing.assert_allclose(found["down"].distance, want, rtol=1e-4)


def test_statistics_of_a_norm_inside(network):
    p, x = network
    found = [ifjax.reset_statistics(f, p, [(x[:1],), (x[1:],)]) for f in (ragged, dense)]
    for name in ("mean", "var"):
        assert np.abs(found[0][name] - p[name]).max() > 0.1
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-5)
