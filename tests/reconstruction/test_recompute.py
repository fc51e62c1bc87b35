"""Held and recomputed frontiers: the same results, and what each keeps in memory."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from ifjax.reconstruction import sweep


def normal(seed, *shape):
    scale = np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 10.0
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / scale)


def chain(p, x):
    """Three residual blocks in a loop, on a stream that is cut too."""
    h = x @ p["in"]
    step = lambda h, w: (h + jax.nn.relu(h @ w["up"]) @ w["down"], None)  # noqa: E731
    return lax.scan(step, h, p["blocks"])[0] @ p["out"]


def attention(p, x):
    """Queries and keys meet in a product, whose dimensions are cut."""
    q, k, v = (jnp.einsum("btc,chd->bthd", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 3, -1)
    h = x @ p["in"] + jnp.einsum("bhts,bshd,hdc->btc", weights, v, p["o"])
    return h @ p["out"]


def recurrent(p, x):
    def step(h, x):
        return jnp.tanh(x @ p["x"] + h @ p["h"] + p["b"]), None

    start = jnp.zeros((x.shape[0], p["h"].shape[0]), x.dtype)
    return lax.scan(step, start, x.swapaxes(0, 1))[0] @ p["out"]


def joined(p, x):
    def conv(x, w, stride=1):
        numbers = ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(x, w, (stride, stride), "SAME", dimension_numbers=numbers)

    h = jax.nn.relu(conv(x, p["c1"]))
    h = conv(jax.nn.relu(conv(h, p["a"], 2)), p["b"]) + conv(h, p["short"], 2) + p["bias"]
    return jax.nn.relu(h).mean((1, 2)) @ p["out"]


CASES = {
    "attention": (
        attention,
        {
            **{name: normal(i, 8, 2, 8) for i, name in enumerate("qkv")},
            **{"in": normal(4, 8, 16), "o": normal(5, 2, 8, 16), "out": normal(6, 16, 5)},
        },
        (32, 6, 8),
    ),
    "chain": (
        chain,
        {
            "in": normal(0, 8, 24),
            "out": normal(1, 24, 5),
            "blocks": {"up": normal(2, 3, 24, 32), "down": normal(3, 3, 32, 24)},
        },
        (64, 8),
    ),
    "recurrent": (
        recurrent,
        {
            "x": normal(0, 6, 16),
            "h": normal(1, 16, 16),
            "b": normal(2, 16),
            "out": normal(3, 16, 4),
        },
        (64, 5, 6),
    ),
    "joined": (
        joined,
        {
            "c1": normal(0, 3, 3, 3, 12),
            "a": normal(1, 3, 3, 12, 16),
            "b": normal(2, 3, 3, 16, 12),
            "short": normal(3, 1, 1, 12, 12),
            "bias": normal(4, 12),
            "out": normal(5, 12, 4),
        },
        (32, 8, 8, 3),
    ),
}


@pytest.mark.parametrize("method", ["prune", "fuse"])
@pytest.mark.parametrize("name", CASES)
def test_the_results_are_the_same(name, method):
    if (name, method) == ("recurrent", "fuse"):
        pytest.skip("covered by the others: a long compilation")
    apply, params, shape = CASES[name]
    x = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    options = {} if method == "prune" else {"importance": "l2", "solver": "nearest"}
    spec = ifjax.trace(apply, params, x).spec(0.5, **options)
    held, report = ifjax.compress(apply, params, spec, x)
    again, other = ifjax.compress(apply, params, spec, x, frontier="recompute")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), held, again)
    assert [s.sites for s in report.solved] == [s.sites for s in other.solved]
    jax.tree.map(np.testing.assert_array_equal, report.kept, other.kept)


def live_bytes():
    return sum(x.nbytes for x in jax.live_arrays())


def test_what_is_in_memory_between_two_solves(monkeypatch):
    """What each example adds: recomputed, its input alone; held, an activation too at least."""
    apply, params, _ = CASES["chain"]
    x = np.random.default_rng(9).normal(size=(512, 8)).astype(np.float32)
    spec = ifjax.trace(apply, params, x).spec(0.5, include="blocks*")
    most = {}

    @contextlib.contextmanager
    def progress(*args):
        seen = []
        yield lambda: seen.append(live_bytes())
        most[key] = max(seen[:-1]) - before

    monkeypatch.setattr(sweep, "shown_progress", progress)
    for frontier in ("held", "recompute"):
        for count in (256, 512):
            before, key = live_bytes(), (frontier, count)
            ifjax.compress(apply, params, spec, np.split(x[:count], 8), frontier=frontier)
    held, recomputed = ((most[f, 512] - most[f, 256]) / 256 for f in ("held", "recompute"))
    assert recomputed == 4 * 8
    assert held >= 4 * (8 + 24)


def test_another_frontier_is_refused():
    apply, params, shape = CASES["chain"]
    x = np.zeros(shape, np.float32)
    spec = ifjax.trace(apply, params, x).spec(0.5)
    with pytest.raises(ValueError, match="'held' or 'recompute'"):
        ifjax.compress(apply, params, spec, x, frontier="both")
