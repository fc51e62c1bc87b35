"""The order of groups, what describes them, and maps carried along axes, against numpy."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.model_fusion import alignment
from ifjax.structure import axis as ex
from ifjax.structure.structure import at_widths
from tests.graph.laws import array, arrays

X = array(2, 3)


def residual(p, x):
    h = x @ p["embed"]
    for i in "12":
        h = h + jnp.tanh(h @ p["up" + i]) @ p["down" + i]
    return h @ p["out"]


RESIDUAL = arrays(embed=(3, 4), up1=(4, 5), down1=(5, 4), up2=(4, 6), down2=(6, 4), out=(4, 2))


def heads(p, x):
    q, k, v = (jnp.einsum("tc,chd->thd", x, p[name]) for name in "qkv")
    weight = jax.nn.softmax(jnp.einsum("thd,shd->hts", q, k))
    return jnp.einsum("hts,shd,hdc->tc", weight, v, p["o"])


HEADS = arrays(q=(3, 2, 4), k=(3, 2, 4), v=(3, 2, 5), o=(2, 5, 3))


def recurrent(p, x):
    return jax.lax.scan(lambda h, x: (jnp.tanh(h @ p["h"] + x @ p["x"]), None), p["start"], x)[0]


def network(f, p, x=X):
    structure = ifjax.trace(f, p, x).structure
    groups = tuple(alignment.alignment_order(structure))
    return structure, [g.name for g in groups]


def test_a_stream_comes_first_and_heads_before_their_dimensions():
    plan, order = network(residual, RESIDUAL)
    assert order == ["embed", "up1", "up2"]
    stream, first, _ = (plan.group[name] for name in order)
    known = alignment.describing(plan, stream, ())
    assert {m.path for m in known} == {"embed", "out"}
    assert {m.path for m in alignment.describing(plan, stream, ("up1",))} == {
        *("embed", "out", "up1", "down1")
    }
    assert alignment.describing(plan, first, ()) == []
    plan, order = network(heads, HEADS)
    outer = next(g for g in plan.groups if g.kind == "head")
    assert order[0] == outer.name
    assert len(order) == 3
    assert [g.along for g in alignment.inside(plan, outer)] == [(outer.name,)] * 2


def test_producers_go_before_consumers():
    """The last layer's consumer is pinned from the start, and yet it waits for its producer."""

    def f(p, x):
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"]

    p = {"b": array(4, 5), "c": array(5, 2), "a": array(3, 4)}
    assert network(f, p)[1] == ["a", "b"]


def test_what_lies_across():
    """Factors of a product do, other segments do not; a recurrent kernel crosses itself."""
    e = ex.Sum(
        (
            ex.Product((ex.Atom("a", 2), ex.Pinned(3), ex.Atom("b", 4))),
            ex.Atom("c", 5),
        )
    )
    assert alignment._companions(e, "a") == {"b"}
    assert alignment._companions(e, "c") == set()
    p = arrays(h=(4, 4), x=(3, 4), start=(4,))
    structure = ifjax.trace(lambda p, x: recurrent(p, x) @ jnp.ones((4, 1)), p, X).structure
    (group,) = structure.groups
    across = {(m.path, m.axis): alignment.across(structure, m, group) for m in group.members}
    assert across == {("h", 0): {"h"}, ("h", 1): {"h"}, ("x", 1): set(), ("start", 0): set()}


def test_consumers_take_m_and_all_else_takes_p():
    plan, _ = network(residual, RESIDUAL)
    group = plan.group["up1"]
    t = np.abs(array(5, 3, seed=1))
    by_p, by_m = t / t.sum(0), t / t.sum(1, keepdims=True)
    widths = {g.name: g.size for g in plan.groups}
    for path, want in (
        ("up1", RESIDUAL["up1"] @ by_p),
        ("down1", by_m.T @ RESIDUAL["down1"]),
    ):
        places = [m for m in group.members if m.path == path]
        x = jnp.asarray(RESIDUAL[path], jnp.float32)
        axes = plan.leaf[path].axes
        got = alignment.carried(x, axes, group, jnp.asarray(t, jnp.float32), places, widths)
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_heads_first_then_the_dimensions_of_every_aligned_head():
    plan, order = network(heads, HEADS)
    outer, v = plan.group[order[0]], plan.group["v"]
    swap = np.array([1, 0])
    inner = np.stack([np.roll(np.eye(5), i + 1, axis=1) for i in range(2)])
    maps = {outer.name: jnp.eye(2)[:, swap] / 2, "v": jnp.asarray(inner, jnp.float32) / 5}
    ordered = dataclasses.replace(plan, groups=tuple(alignment.alignment_order(plan)))
    leaves = {k: jnp.asarray(x, jnp.float32) for k, x in HEADS.items()}
    got, _ = alignment.Network(ordered, leaves, maps).mapped("v")
    want = np.einsum("chd,hde->che", HEADS["v"][:, swap], inner)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    got, _ = alignment.Network(ordered, leaves, maps).mapped("o")
    np.testing.assert_allclose(got, np.einsum("hdc,hde->hec", HEADS["o"][swap], inner), rtol=1e-6)
    assert v.along == (outer.name,)


def test_recurrent_kernels_are_read_with_their_other_axis_aligned():
    p = arrays(h=(4, 4), x=(3, 4), start=(4,))
    structure = ifjax.trace(lambda p, x: recurrent(p, x) @ jnp.ones((4, 1)), p, X).structure
    (group,) = structure.groups
    leaves = {k: jnp.asarray(x, jnp.float32) for k, x in p.items()}
    order = np.array([2, 0, 3, 1])
    moved = alignment.Network(structure, leaves, {group.name: jnp.eye(4)[:, order] / 4})
    for m in (m for m in group.members if m.path == "h"):
        got = alignment.entries(moved, group, m)[0]
        h = p["h"][:, order] if m.axis == 0 else p["h"][order].T
        np.testing.assert_allclose(got, h, rtol=1e-6)


def test_sets_hold_what_is_inside_of_every_head():
    structure, order = network(heads, HEADS)
    structure = dataclasses.replace(structure, groups=tuple(alignment.alignment_order(structure)))
    leaves = {k: jnp.asarray(x, jnp.float32) for k, x in HEADS.items()}
    found = list(
        alignment.sets(alignment.Network(structure, leaves), structure.group[order[0]], ())
    )
    assert sorted(x.shape for x in found) == [(1, 2, 4, 6), (1, 2, 5, 6)]
    qk = next(x for x in found if x.shape[2] == 4)[0]
    want = np.concatenate([HEADS["q"], HEADS["k"]]).transpose(1, 2, 0)
    np.testing.assert_allclose(np.sort(qk, -1), np.sort(want, -1), rtol=1e-6)


@pytest.mark.parametrize("widths", [{}, {"a": 2}, {"a": 3, "b": 6}])
def test_plans_at_other_widths(widths):
    """As if traced there: where segments begin, and what contractions cost, too."""

    def f(p, x):
        return jnp.concatenate([jnp.tanh(x @ p["a"]), jnp.tanh(x @ p["b"])], 1) @ p["c"]

    def plan(a=4, b=5):
        return ifjax.trace(f, arrays(a=(3, a), b=(3, b), c=(a + b, 2)), X).structure

    assert [m.where for m in plan().group["b"].members] == [("0:5",), ("4:9",)]
    assert at_widths(plan(), widths) == plan(**widths)
