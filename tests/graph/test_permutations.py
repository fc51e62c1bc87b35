"""A static permutation of single neurons: the same group in another order behind it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.structure import axis as ex
from tests.graph.laws import array, arrays, between, distance, hold, reasons

ORDER = np.array([3, 1, 7, 0, 2, 5, 4, 6], np.int32)  # no block of it is one of the axis
BACK = np.argsort(ORDER).astype(np.int32)

MIDDLE = {
    "index": lambda h: h[:, ORDER],
    "take": lambda h: jnp.take(h, ORDER, -1),
    "index that is computed": lambda h: h[:, (3 * jnp.arange(8) + 2) % 8],
    "reversed": lambda h: h[..., ::-1],
    "twice": lambda h: jnp.flip(jnp.tanh(h[:, ORDER]), 1),
    "and back": lambda h: jnp.sin(h[:, ORDER])[:, BACK] + h,
    "row by row": jax.vmap(lambda row: row[ORDER]),
    "written": lambda h: jnp.zeros_like(h).at[:, ORDER].set(h),
    "added where it goes": lambda h: jnp.zeros_like(h).at[:, ORDER].add(h[:, ::-1]),
    "in a loop": lambda h: jax.lax.fori_loop(0, 3, lambda _, c: jnp.sin(c[:, ORDER])[:, BACK], h),
    "in branches": lambda h: jax.lax.cond(h.sum() > 0, lambda h: h[:, ORDER], swapped, h),
    "recomputed": jax.checkpoint(lambda h: jnp.sin(h[:, ORDER])),
    "normed": lambda h: jax.nn.softmax(h)[:, ORDER],
}


def swapped(h):
    return jnp.tanh(h)[:, ORDER]


@pytest.mark.parametrize("case", MIDDLE)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_neurons_stay_one_group(case):
    graph = hold(*between(lambda h: jnp.tanh(MIDDLE[case](h))), groups={"a": 8})
    assert graph.structure.leaf["a"].axes[1] == ex.Atom("a", 8)  # numbered as the first producer


def test_what_lies_behind_holds_neuron_order_i_at_position_i():
    f, p, x = between(lambda h: jnp.tanh(h[:, ORDER]))
    graph = ifjax.trace(f, p, x)
    assert graph.structure.leaf["b"].axes[0] == ex.Ordered(ex.Atom("a", 8), tuple(ORDER.tolist()))
    assert [m.where for m in graph.groups[0].members] == [("0:8",), ("0:8~",)]
    p = {
        "a": np.zeros((3, 8)),
        "b": np.tile(ORDER[:, None], 2) * 1.0,
    }
    assert ifjax.take(p, graph, {"a": [6, 0, 5]})["b"][:, 0].tolist() == [6, 0, 5]
    turned = ifjax.take(p, graph, {"a": np.roll(np.arange(8), 3)})
    assert turned["b"][:, 0].tolist() == [(k - 3) % 8 for k in ORDER]


NETWORKS = {
    "a residual stream": (
        lambda p, h: h + jnp.tanh(h @ p["c"])[:, ORDER] * p["s"],
        {"c": (8, 8), "s": (8,)},
        {"a": 8},
    ),
    "layers of a scan": (
        lambda p, h: jax.lax.scan(lambda h, w: (h + jnp.tanh(h[:, ORDER] @ w), None), h, p["w"])[0],
        {"w": (3, 8, 8)},
        {"a": 8},
    ),
    "a scan with a permutation inside of each layer": (
        lambda p, h: jax.lax.scan(
            lambda h, w: (h + jnp.tanh(h @ w[0])[:, ::-1] @ w[1], None), h, (p["w"], p["v"])
        )[0],
        {"w": (3, 8, 6), "v": (3, 6, 8)},
        {"a": 8, "w": 6},
    ),
    "a permuted kernel": (
        lambda p, h: jnp.tanh(h @ p["c"][:, ORDER]) * p["s"],
        {"c": (8, 8), "s": (8,)},
        {"a": 8, "c": 8},
    ),
    "a split behind it": (
        lambda p, h: jnp.concatenate(
            [jnp.tanh(h[:, ORDER][:, :3]), jnp.sin(h[:, ORDER][:, 3:])], 1
        ),
        {},
        {"a (0:8~0:3)": 3, "a (0:8~3:8)": 5},
    ),
    "a split between parts that it moves and mixes": (
        lambda p, h: jnp.concatenate(
            [
                (g := h + jnp.tanh(h @ p["c"])[:, [4, 2, 3, 5, 1, 0, 7, 6]])[:, 2:4],
                jnp.tanh(g[:, :2]),
                g[:, 4:],
            ],
            1,
        ),
        {"c": (8, 8)},
        {"a (0:2)": 2, "a (2:4)": 2, "a (4:8)": 4},
    ),
    "a reversed concatenation": (
        lambda p, h: jnp.concatenate([h, jnp.tanh(h @ p["c"])], 1)[:, ::-1] @ p["d"],
        {"c": (8, 5), "d": (13, 8)},
        {"a": 8, "c": 5, "d": 8},
    ),
    "dimensions of heads": (
        lambda p, h: jnp.tanh(jnp.flip(h.reshape(4, 2, 4), 2)).reshape(4, 8) * p["s"],
        {"s": (8,)},
        {"a (factor 1 of 2x4)": 2, "a (factor 2 of 2x4)": 4},
    ),
    "heads and their dimensions": (
        lambda p, h: jnp.tanh(h[:, ::-1].reshape(4, 2, 4)).reshape(4, 8) * p["s"],
        {"s": (8,)},
        {"a (factor 1 of 2x4)": 2, "a (factor 2 of 2x4)": 4},
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_networks_that_permute(case):
    middle, shapes, groups = NETWORKS[case]

    def f(p, x):
        return jnp.tanh(middle(p, jnp.tanh(x @ p["a"]))) @ p["b"]

    graph = hold(f, arrays(a=(3, 8), b=(8, 2), **shapes), array(4, 3), groups=groups)
    assert ifjax.trace(f, arrays(a=(3, 8), b=(8, 2), **shapes), array(4, 3)).groups == graph.groups


def test_wide_layers_are_permuted_too():
    order = np.random.default_rng(0).permutation(14336).astype(np.int32)
    struct = lambda *shape: jax.ShapeDtypeStruct(shape, "float32")  # noqa: E731
    p, x = {"a": struct(4, 14336), "b": struct(14336, 2)}, struct(1, 4)
    graph = ifjax.trace(lambda p, x: jnp.tanh(x @ p["a"])[:, order] @ p["b"], p, x)
    assert graph.structure.leaf["b"].axes[0] == ex.Ordered(
        ex.Atom("a", 14336), tuple(order.tolist())
    )


TIED = {
    "add": lambda h: h + h[:, ORDER],
    "mul": lambda h: h * h[:, ::-1],
    "concatenate": lambda h: jnp.concatenate([h, h[:, ORDER]], 0).reshape(2, 4, 8).sum(0),
}


@pytest.mark.parametrize("primitive", TIED)
def test_neurons_that_meet_in_two_orders_pin(primitive):
    f, p, x = between(TIED[primitive])
    found = reasons(hold(f, p, x, groups={}))["a", 1]
    assert found.startswith(f"{primitive}: the same neurons meet in two orders")
    assert "test_permutations.py" in found


def test_a_group_that_is_not_cut_keeps_its_permutation():
    def f(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"])[:, ORDER] @ p["c"])[:, ::-1] @ p["b"]

    p, x = arrays(a=(3, 8), c=(8, 6), b=(6, 2)), array(4, 3)
    graph = ifjax.trace(f, p, x)
    keep = [4, 0, 3]
    with jax.enable_x64(True):
        small = ifjax.take(p, graph, {"c": keep})
    np.testing.assert_array_equal(small["a"], p["a"])
    hidden = np.tanh(np.tanh(x @ p["a"])[:, ORDER] @ p["c"])[:, keep]
    want = hidden @ p["b"][::-1][keep]
    with jax.enable_x64(True):
        got = ifjax.shrink(f, graph.spec(keep={"c": 3}))(small, x)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_the_gradient_rule_of_ones_own_is_followed():
    @jax.custom_vjp
    def turned(h):
        return h[:, ORDER]

    def backward(_, g):
        return (2 * g[:, BACK],)

    turned.defvjp(lambda h: (turned(h), None), backward)
    f, p, x = between(lambda h: turned(jnp.tanh(h)))
    with jax.enable_x64(True):
        graph = ifjax.trace(f, p, x)
        keep = [5, 0, 2]
        small = ifjax.take(p, graph, {"a": keep})
        shrunk = ifjax.shrink(f, graph.spec(keep=3))
        got = jax.grad(lambda p: shrunk(p, x).sum())(small)
        hidden = np.tanh(x @ p["a"][:, keep])
        back = 2 * np.ones((4, 2)) @ p["b"][BACK][keep].T * (1 - hidden**2)
    assert distance(got["a"], x.T @ back) < 1e-12
    assert distance(got["b"], hidden.T @ np.ones((4, 2))) < 1e-12
