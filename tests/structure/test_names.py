"""Names of groups: what they say, that they differ, and that older ones still find them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.structure.names import by_group, group_names, known_group, older_name, renamed

D, KV, GROUP, HEAD = 6, 2, 2, 3


def attention(p, x):
    q = (x @ p["layers/attn_q"]).reshape(*x.shape[:-1], KV, GROUP, HEAD)
    k, v = (jnp.einsum("btd,dhe->bthe", x, p[name]) for name in "kv")
    a = jax.nn.softmax(jnp.einsum("btkge,bske->bkgts", q, k), -1)
    y = x + jnp.einsum("btkge,kged->btd", jnp.einsum("bkgts,bske->btkge", a, v), p["o"])
    g, h = jnp.split(y @ p["up"], [5], -1)
    return jnp.concatenate([jnp.tanh(g), h], -1) @ p["down"], jax.nn.relu(h) @ p["side"]


SHAPES = {
    "layers/attn_q": (D, KV * GROUP * HEAD),
    "k": (D, KV, HEAD),
    "v": (D, KV, HEAD),
    "o": (KV, GROUP, HEAD, D),
    "up": (D, 12),
    "down": (12, 2),
    "side": (7, 2),
}
PARAMS = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in SHAPES.items()}
GRAPH = ifjax.trace(attention, PARAMS, jax.ShapeDtypeStruct((1, 5, D), "float32"))
NAMES = [
    "layers/attn_q (kv heads)",
    "layers/attn_q (query heads)",
    "layers/attn_q (head_dim)",
    "v",
    "up (0:5)",
    "up (5:12)",
]


def test_names_tell_leaf_and_meaning():
    assert [group.name for group in GRAPH.groups] == NAMES
    assert GRAPH.structure.group["layers/attn_q (head_dim)"].along == (NAMES[0],)


def test_names_do_not_depend_on_the_ones_before():
    again = {g.name: f"{i}" for i, g in enumerate(GRAPH.groups)}
    other = renamed(GRAPH.structure, again)
    assert [g.name for g in other.groups] == list("012345")
    assert renamed(other, group_names(other.groups, other.leaf)) == GRAPH.structure


def test_names_of_schema_2_and_globs_on_leaves_still_select():
    old = ["layers/attn_q@0:12=2x2x3.0", "up@0:5", "up@5:12"]
    assert [older_name(GRAPH.structure.group[NAMES[i]]) for i in (0, 4, 5)] == old
    assert GRAPH.spec({"up@0:5": 0.5}).structure.widths == {"up (0:5)": 2}
    assert GRAPH.spec({"up*": 0.5}).structure.widths == {"up (0:5)": 2, "up (5:12)": 3}


def test_a_group_is_known_by_both_of_its_names():
    structure = GRAPH.structure
    for name, older in (("up (0:5)", "up@0:5"), ("up (5:12)", "up@5:12"), ("v", "v")):
        assert known_group(structure, older) is known_group(structure, name)
        assert known_group(structure, name) is structure.group[name]
    assert by_group(structure, {"up@0:5": 1, "v": 2}) == {"up (0:5)": 1, "v": 2}
    with pytest.raises(ValueError, match=r"group up \(0:5\) is given twice, also as 'up@0:5'"):
        by_group(structure, {"up@0:5": 1, "up (0:5)": 2})
    with pytest.raises(ValueError, match="unknown group 'up@0:4'; the groups are layers/attn_q"):
        by_group(structure, {"up@0:4": 1})


def test_scores_init_and_take_know_names_of_schema_2():
    rng = np.random.default_rng(0)
    params = {k: rng.normal(size=x.shape).astype(np.float32) for k, x in PARAMS.items()}
    spec = GRAPH.spec({"up (0:5)": 0.5}, solver="sinkhorn")
    scores = np.arange(5.0)
    maps = ifjax.transport_maps(params, spec, {"up (0:5)": scores})
    init = {"up@0:5": maps["up (0:5)"]}
    again = ifjax.transport_maps(params, spec, {"up@0:5": scores}, init=init)
    np.testing.assert_array_equal(again["up (0:5)"].targets, maps["up (0:5)"].targets)
    assert again["up (0:5)"].iterations < maps["up (0:5)"].iterations
    for old, new in zip(
        *(ifjax.take(params, GRAPH, {n: [2, 0]}).values() for n in ("up@0:5", "up (0:5)")),
        strict=True,
    ):
        np.testing.assert_array_equal(old, new)
    small = ifjax.apply_maps(params, spec, init)
    want = ifjax.apply_maps(params, spec, maps)
    np.testing.assert_array_equal(small["up"], want["up"])


def test_groups_that_nothing_tells_apart_are_numbered():
    def f(p, x):
        return jnp.tanh(jnp.einsum("bd,dij->bij", x, p["w"])).sum() + jnp.einsum(
            "bd,dij,ij->b", x, p["w"], p["v"]
        )

    params = {"w": jnp.ones((3, 4, 5)), "v": jnp.ones((4, 5))}
    names = [g.name for g in ifjax.trace(f, params, jnp.ones((1, 3))).groups]
    assert len({*names}) == len(names)
    assert names[:2] == ["w", "w (axis 2)"]
