"""Experts that tokens are dealt out to: each is solved for on the tokens that it sees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax

EXPERTS, WIDTH, INNER = 3, 6, 8


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-2:][0])


def dealt(p, x):
    choice = jnp.argmax(x @ p["router"], -1)
    order = jnp.argsort(choice)
    return x[order], jnp.bincount(choice, length=EXPERTS), jnp.argsort(order)


def experts(p, x):
    x, count, back = dealt(p, x)
    h = jax.nn.silu(lax.ragged_dot(x, p["gate"], count)) * lax.ragged_dot(x, p["up"], count)
    return lax.ragged_dot(h, p["down"], count)[back]


def residual(p, x):
    h = x @ p["in"]
    return (h + experts(p, h)) @ p["out"]


def made():
    params = {"router": normal(0, WIDTH, EXPERTS), "in": normal(1, WIDTH, WIDTH)}
    params |= {n: normal(i, EXPERTS, WIDTH, INNER) for i, n in enumerate(("gate", "up"), 2)}
    return params | {"down": normal(4, EXPERTS, INNER, WIDTH), "out": normal(5, WIDTH, 3)}


def inner_of(graph):
    [name] = [g.name for g in graph.groups if g.size == INNER]
    return name


def test_every_expert_is_the_ridge_solution_of_its_tokens():
    with jax.enable_x64(True):
        params, x = made(), normal(9, 96, WIDTH) * 10
        graph = ifjax.trace(experts, params, x)
        name = inner_of(graph)
        small, report = ifjax.compress(experts, params, graph.spec({name: 0.5}), [x])
        [solved] = [s for s in report.solved if "down" in s.sites]
        assert "down" not in {path for path, _ in report.follows}
        choice = np.argmax(x @ params["router"], -1)
        for e in range(EXPERTS):
            own, index = x[choice == e], report.kept[name][e]
            gates = np.asarray(jax.nn.silu(own @ params["gate"][e]))
            h = gates * (own @ params["up"][e])
            rows, start = h[:, index], params["down"][e][index]
            np.testing.assert_array_equal(small["up"][e], params["up"][e][:, index])
            unit = np.sqrt(solved.shrinkage * (rows**2).sum() / len(index))
            left = np.vstack([rows, unit * np.eye(len(index))])
            target = np.vstack([h @ params["down"][e], unit * start])
            want = np.linalg.lstsq(left, target, rcond=None)[0]
            np.testing.assert_allclose(small["down"][e], want, rtol=1e-7, atol=1e-10)
        assert solved.after < 0.8 * solved.before


def test_each_expert_keeps_what_it_would_keep_alone():
    """Chosen and solved as in a network of its own, which sees its tokens alone."""
    params, x = made(), (normal(9, 192, WIDTH) * 10).astype(np.float32)
    graph = ifjax.trace(experts, params, x)
    name = inner_of(graph)
    _, report = ifjax.compress(experts, params, graph.spec({name: 0.5}), [x])

    def alone(p, x):
        return (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]

    for e in range(EXPERTS):
        own = x[np.argmax(x @ params["router"], -1) == e]
        single = {n: params[n][e] for n in ("gate", "up", "down")}
        spec = ifjax.trace(alone, single, own).spec(0.5)
        _, want = ifjax.compress(alone, single, spec, [own])
        [kept] = want.kept.values()
        shared = np.intersect1d(kept, report.kept[name][e])
        assert len(shared) >= INNER // 2 - 1  # its last batch may be shorter


@pytest.mark.parametrize("what", ["inner", "everything"])
def test_a_residual_network_is_nearer_to_the_dense_one(what):
    params, x = made(), (normal(9, 256, WIDTH) * 10).astype(np.float32)
    graph = ifjax.trace(residual, params, x)
    cut = {inner_of(graph): 0.5} if what == "inner" else 0.34
    spec = graph.spec(cut, method="prune")
    small, report = ifjax.compress(residual, params, spec, [x])
    plain = ifjax.fuse_params(params, graph.spec(cut, method="prune", importance="l1"))
    apply_small, want = ifjax.shrink(residual, spec), residual(params, x)
    error, before = (float(jnp.mean((apply_small(p, x) - want) ** 2)) for p in (small, plain))
    assert error < 0.8 * before
    assert "down" in {path for s in report.solved for path in s.sites}
    again, _ = ifjax.compress(residual, params, spec, [x], frontier="recompute")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), small, again)
