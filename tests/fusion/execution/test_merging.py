"""Merged leaves against products with M and P, on the host and traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.fusion.execution.merging import fold, group_maps, merged
from ifjax.fusion.program import compiled
from ifjax.structure.structure import BatchNorm
from ifjax.transport.transport import Transport

N, M = 4, 2
RNG = np.random.default_rng(0)
SHAPES = {"w1": (3, N), "b1": (N,), "w2": (N, 2)}
PARAMS = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
PLAN = np.array([[1, 0], [1, 1], [0, 3], [2, 0]], np.float32) / 8
TARGETS = np.array([1, 2], np.int32)


def network(p, x):
    return (x @ p["w1"] + p["b1"]) @ p["w2"]


GRAPH = ifjax.trace(network, PARAMS, np.ones((1, 3), np.float32))
BOTH = pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])


def transport(array):
    rest = dict.fromkeys(Transport._fields[2:])
    return {"w1": Transport(map=array(PLAN), targets=array(TARGETS), **rest)}


def expected(merge):
    """M = (diag(T 1)^-1 T)^T for what is summed, P = diag(T^T 1)^-1 T^T for what is averaged."""
    plan = PLAN.astype(np.float64)
    m = np.array([[plan[i, j] / plan[i].sum() for i in range(N)] for j in range(M)])
    p = np.array([[plan[i, j] / plan[:, j].sum() for i in range(N)] for j in range(M)])
    out = {"reference": m, "preserving": p, "gradients": m}[merge]
    into = p if merge == "gradients" else m
    return {"w1": PARAMS["w1"] @ out.T, "b1": out @ PARAMS["b1"], "w2": into @ PARAMS["w2"]}


@BOTH
@pytest.mark.parametrize(
    ("merge", "kind"),
    [("reference", "weights"), ("preserving", "weights"), ("reference", "gradients")],
)
def test_leaves_are_multiplied_by_the_matrix_of_their_role(array, merge, kind):
    program = compiled(GRAPH.spec(keep=M, merge=merge))
    leaves = {path: array(x) for path, x in PARAMS.items()}
    got = merged(program, leaves, transport(array), kind)
    for path, want in expected("gradients" if kind == "gradients" else merge).items():
        np.testing.assert_allclose(got[path], want, rtol=1e-5, err_msg=path)
        assert got[path].dtype == np.float32


@BOTH
def test_selected_leaves_are_the_targets_in_place_or_packed(array):
    leaves = {path: array(x) for path, x in PARAMS.items()}
    for keep_shape in (False, True):
        program = compiled(GRAPH.spec(keep=M), keep_shape=keep_shape)
        got = merged(program, leaves, transport(array), "select")
        kept = np.zeros_like(PARAMS["w1"])
        kept[:, TARGETS] = PARAMS["w1"][:, TARGETS]
        np.testing.assert_array_equal(got["w1"], kept if keep_shape else kept[:, TARGETS])


def test_every_entry_of_a_batch_has_a_map_of_its_own():
    def stacked(p, x):
        return jax.lax.scan(lambda h, w: (h + jax.nn.relu(h @ w[0]) @ w[1], None), x, p)[0]

    params = (np.ones((2, 3, N), np.float32), np.ones((2, N, 3), np.float32))
    spec = ifjax.trace(stacked, params, np.ones((1, 3), np.float32)).spec(keep=M)
    program = compiled(spec)
    groups = spec.structure.in_order()
    plans = np.stack([PLAN, PLAN[::-1]])
    rest = dict.fromkeys(Transport._fields[2:])
    given = {groups[0].name: Transport(map=plans, targets=np.stack([TARGETS] * 2), **rest)}
    (found,) = group_maps(program, groups, given, "weights", {}).values()
    assert len(found) == 2
    for one, plan in zip(found, plans, strict=True):
        np.testing.assert_allclose(one.pushforward, (plan / plan.sum(1, keepdims=True)).T)


@pytest.mark.parametrize("order", ["simultaneous", "sequential"])
def test_assignments_are_merged_inside_of_jit_as_outside(order):
    """Of 48 neurons two sources a target are few: lists, of groups with batch axes too."""

    def network(p, x):
        x = jax.lax.scan(lambda h, w: (h + jax.nn.relu(h @ w[0]) @ w[1], None), x, p["layers"])[0]
        return jax.nn.relu(x @ p["w1"]) @ p["w2"]

    rng = np.random.default_rng(0)
    first, second, w1, w2 = (
        rng.normal(size=shape).astype(np.float32)
        for shape in ((2, 4, 48), (2, 48, 4), (4, 96), (96, 3))
    )
    params = {"layers": (first, second), "w1": w1, "w2": w2}
    graph = ifjax.trace(network, params, np.ones((1, 4), np.float32))
    spec = graph.spec(0.5, solver="exact", order=order)
    fuse = jax.jit(ifjax.fuse_params, static_argnames="spec")
    text = fuse.lower(params, spec).as_text()
    assert "stablehlo.gather" in text
    assert "dot_general" not in text
    for got, want in zip(
        jax.tree.leaves(fuse(params, spec)),
        jax.tree.leaves(ifjax.fuse_params(params, spec)),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_folding_side_by_side_is_folding_one_by_one():
    norms = BatchNorm("k", 1, None, "g", "o", "m", "v", 1e-3)
    leaves = {
        "k": PARAMS["w1"],
        "g": np.full(N, 2.0),
        "o": np.ones(N),
        "m": np.ones(N),
        "v": np.ones(N),
    }
    found = fold(leaves, [norms])
    slope = 2 / np.sqrt(1 + 1e-3)
    np.testing.assert_allclose(found["k"], PARAMS["w1"] * slope, rtol=1e-6)
    np.testing.assert_allclose(found["m"], slope, rtol=1e-6)
    assert found["o"] is leaves["o"]
