"""The function at the widths of a spec: where it runs, what it computes, what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax
from ifjax.jaxprs.axis_store import AxisStore
from tests.graph.laws import array, arrays, kept
from tests.graph.small_mlp import FULL, X, mlp


@pytest.fixture(scope="module")
def shrunk():
    """The graph, small parameters, the small function and the same one written by hand."""
    graph = ifjax.trace(mlp, FULL, X)
    small = ifjax.take(FULL, graph, {"w1": kept(10), "m": kept(8)})
    return graph, small, ifjax.shrink(mlp, graph.spec(keep={"w1": 5, "m": 4}))


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_it_is_the_function_at_the_small_widths(shrunk):
    _, small, apply = shrunk
    np.testing.assert_array_equal(apply(small, X), mlp(small, X))
    assert apply.__name__ == "mlp"


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_other_batch_sizes(shrunk, batch):
    _, small, apply = shrunk
    x = jnp.float32(array(batch, 3, seed=1))
    np.testing.assert_allclose(apply(small, x), mlp(small, x), rtol=1e-6)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_keep_all_is_the_identity_bit_for_bit(shrunk):
    graph, _, _ = shrunk
    spec = graph.spec(0.0)
    assert spec.structure.widths == {}
    small = ifjax.fuse_params(FULL, spec)
    for a, b in zip(jax.tree.leaves(small), jax.tree.leaves(FULL), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(ifjax.shrink(mlp, spec)(small, X), mlp(FULL, X))


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_under_jit_it_is_traced_once(shrunk):
    graph, small, _ = shrunk
    count = 0

    def counted(p, x):
        nonlocal count
        count += 1
        return mlp(p, x)

    apply = jax.jit(ifjax.shrink(counted, graph.spec(keep={"w1": 5, "m": 4})))
    for _ in range(3):
        np.testing.assert_allclose(apply(small, X), mlp(small, X), rtol=1e-5)
    assert count == 1
    eager = ifjax.shrink(counted, graph.spec(keep={"w1": 5, "m": 4}))
    for _ in range(3):
        eager(small, X)
    assert count == 2


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_under_grad_vmap_scan_and_remat(shrunk):
    _, small, apply = shrunk

    def loss(f):
        return lambda p, x: (f(p, x) ** 2).sum()

    for wrap in (
        lambda f: jax.grad(loss(f)),
        lambda f: jax.grad(loss(jax.checkpoint(f))),
        lambda f: jax.grad(jax.jit(loss(f))),
        lambda f: lambda p, x: jax.jvp(lambda p: f(p, x), (p,), (p,))[1],
        lambda f: lambda p, x: jax.vmap(f, (None, 0))(p, x[:, None]),
        lambda f: lambda p, x: jax.vmap(f, (0, None))(jax.tree.map(lambda leaf: leaf[None], p), x),
        lambda f: lambda p, x: lax.scan(lambda c, r: (c + f(p, r[None]).sum(), c), 0.0, x),
        lambda f: (
            lambda p, x: jax.grad(lambda p: jax.vmap(lambda r: loss(f)(p, r[None]))(x).sum())(p)
        ),
    ):
        got, want = wrap(apply)(small, X), wrap(mlp)(small, X)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def shapes(jaxpr):
    """Of every value, in nested calls too."""
    for eqn in jaxpr.eqns:
        yield from (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
        for param in jax.tree.leaves(dict(eqn.params), is_leaf=lambda p: hasattr(p, "eqns")):
            inner = getattr(param, "jaxpr", param)
            if hasattr(inner, "eqns"):
                yield from shapes(inner)


def looped(p, x):
    """The same inside of a loop, a branch and a rematerialised function."""

    @jax.checkpoint
    def body(h, m):
        return lax.cond(h.sum() > 0, lambda h: jax.nn.silu(h @ m), jnp.sin, h), h.mean(1)

    h, means = lax.scan(body, x @ p["w1"] + p["b1"], jnp.stack([p["m"]] * 3))
    return h @ p["w2"] + means.sum(0)[:, None]


LOOPED = jax.tree.map(jnp.float32, arrays(w1=(3, 10), b1=(10,), m=(10, 10), w2=(10, 2)))


def test_no_value_is_computed_at_the_full_width(shrunk):
    """No axis of 10 or 8 anywhere, in nested calls and in the backward pass either."""
    _, small, apply = shrunk
    graph = ifjax.trace(looped, LOOPED, X)
    (group,) = graph.groups
    within = ifjax.shrink(looped, graph.spec(keep=5))
    cases = [(apply, small), (within, ifjax.take(LOOPED, graph, {group.name: kept(10)}))]
    for f, params in cases:
        wrapped = jax.checkpoint(jax.jit(f))
        jaxpr = jax.make_jaxpr(jax.grad(lambda p, x, f=wrapped: f(p, x).sum()))(params, X)
        found = {n for shape in shapes(jaxpr.jaxpr) for n in shape}
        assert 5 in found
        assert not found & {10, 8}


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_gradients_through_loops_branches_and_remat():
    graph = ifjax.trace(looped, LOOPED, X)
    (group,) = graph.groups
    small = ifjax.take(LOOPED, graph, {group.name: kept(10)})
    apply = jax.jit(jax.grad(lambda p, x: ifjax.shrink(looped, graph.spec(keep=5))(p, x).sum()))
    want = jax.grad(lambda p: looped(p, X).sum())(small)
    for name, grad in apply(small, X).items():
        np.testing.assert_allclose(grad, want[name], rtol=1e-5, atol=1e-5)


def test_compiled_work_falls_as_the_spec_says():
    def f(p, x):
        return jax.nn.relu(jax.nn.relu(x @ p["a"]) @ p["b"]) @ p["c"]

    p = jax.tree.map(jnp.float32, arrays(a=(32, 128), b=(128, 96), c=(96, 16)))
    x = jnp.float32(array(64, 32))
    spec = ifjax.trace(f, p, x).spec({"a": 0.5, "b": 0.25}, method="prune")

    def compiled(f, p):
        # Of what is compiled: a GPU's libraries count nothing of the products that they do.
        return jax.jit(f).lower(p, x).cost_analysis()["flops"]

    measured = compiled(f, p), compiled(ifjax.shrink(f, spec), ifjax.fuse_params(p, spec))
    assert spec.flops()[1] < 0.5 * spec.flops()[0]
    np.testing.assert_allclose(measured, spec.flops(), rtol=0.05)  # relu is counted too
    np.testing.assert_allclose(measured[1] / measured[0], np.divide(*spec.flops()[::-1]), rtol=0.01)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_export(shrunk):
    """There and back as bytes; for any batch by a map over single examples."""
    pytest.importorskip("flatbuffers", reason="needs flatbuffers: pip install 'ifjax[test]'")
    _, small, apply = shrunk
    structs = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), small)

    def there_and_back(f, x):
        exported = jax.export.export(jax.jit(f))(structs, x)
        return jax.export.deserialize(exported.serialize(vjp_order=1))

    loaded = there_and_back(apply, jax.ShapeDtypeStruct(X.shape, X.dtype))
    np.testing.assert_allclose(loaded.call(small, X), mlp(small, X), rtol=1e-5)
    grads, want = (jax.grad(lambda p, f=f: f(p, X).sum())(small) for f in (loaded.call, mlp))
    for name in small:
        np.testing.assert_allclose(grads[name], want[name], rtol=1e-5)

    symbolic = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 3"), X.dtype)
    one = jax.vmap(lambda p, x: apply(p, x[None])[0], (None, 0))
    loaded = there_and_back(one, symbolic)
    for batch in (2, 7):
        x = jnp.float32(array(batch, 3, seed=2))
        np.testing.assert_allclose(loaded.call(small, x), mlp(small, x), rtol=1e-5)
    with pytest.raises(ValueError, match=r"got shape \(batch, 3\): .* jax.vmap"):
        jax.export.export(jax.jit(apply))(structs, symbolic)


def test_double_precision_after_single_precision(shrunk):
    _, small, apply = shrunk
    single = apply(small, X)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), small)
        got = apply(double, jnp.asarray(X, jnp.float64))
        assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, single, rtol=1e-4)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_values_closed_over_by_a_traced_function(shrunk):
    """A constant that is a tracer must not be kept for the next call."""
    graph, small, _ = shrunk
    spec = graph.spec(keep={"w1": 5, "m": 4})

    @jax.jit
    def scaled(t):
        apply = ifjax.shrink(lambda p, x: t * mlp(p, x), spec)
        return apply(small, X) + apply(small, X)

    np.testing.assert_allclose(scaled(2.0), 4 * mlp(small, X), rtol=1e-5)
    np.testing.assert_allclose(scaled(3.0), 6 * mlp(small, X), rtol=1e-5)


def test_parameters_of_other_widths(shrunk):
    _, small, apply = shrunk
    with pytest.raises(ValueError, match=r"b1: expected shape \(5,\) .* got \(10,\) \(the full"):
        apply(FULL, X)
    with pytest.raises(ValueError, match=r"m: expected shape \(5, 4\) .* got \(5, 3\)"):
        apply(small | {"m": small["m"][:, :3]}, X)
    with pytest.raises(ValueError, match="w2: the spec has this leaf, the parameters do not"):
        apply({k: v for k, v in small.items() if k != "w2"}, X)
    with pytest.raises(ValueError, match="extra: not a leaf of the network"):
        apply(small | {"extra": X}, X)


OTHERWISE = {
    "pins": (lambda p, x: jnp.cumsum(x @ p["w1"], 1) @ p["m"] @ p["w2"], "w1", "pins or splits"),
    "returns": (lambda p, x: x @ p["w1"], "w1", "an axis of the function's outputs"),
    "splits": (lambda p, x: (x @ p["w1"])[:, :4] @ p["m"][:4] @ p["w2"], "w1", "splits it"),
    "ties": (lambda p, x: p["w1"][:, :8] + p["w2"][:, 0], "w1", "splits"),
    "ties to one that is cut": (
        lambda p, x: (jnp.concatenate([p["b1"][:4]] * 2) @ p["w2"]) + mlp(p, x),
        "w1",
        "splits",
    ),
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_a_function_that_couples_the_groups_otherwise(shrunk, how):
    graph, small, _ = shrunk
    f, leaf, why = OTHERWISE[how]
    with pytest.raises(ValueError, match=f"cuts group {leaf} .*{why}") as error:
        ifjax.shrink(f, graph.spec(keep={"w1": 5, "m": 4}))(small, X)
    member = graph.structure.group[leaf].members[0]
    assert f"(leaf {member.path}, axis {member.axis})" in str(error.value)
    assert "graph1 & graph2" in str(error.value)


@pytest.mark.parametrize("cut", [{"a": 3}, {"a": 3, "c": 3}, {"a": 3, "c": 2}])
def test_a_function_that_ties_two_groups_whether_both_are_cut_or_one(cut):
    def one(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] + jnp.sin(x @ p["c"]) @ p["d"]

    def two(p, x):
        return (jnp.tanh(x @ p["a"]) * (x @ p["c"])) @ p["b"]

    def three(p, x):
        return jnp.concatenate([x @ p["a"], x @ p["a"]], 1) * jnp.concatenate([x @ p["c"]] * 2, 1)

    p = arrays(a=(3, 6), b=(6, 2), c=(3, 6), d=(6, 2))
    graph = ifjax.trace(one, p, X)
    small = ifjax.take(p, graph, {n: range(k) for n, k in cut.items()})
    for f in (two, lambda p, x: three(p, x).sum()):
        with pytest.raises(ValueError, match=r"cuts group [ac] .* (ties it to group|pins)"):
            ifjax.shrink(f, graph.spec(keep=cut))(small, X)
    both = graph & ifjax.trace(two, p, X)
    assert [g.size for g in both.groups] == [6]


def test_a_cut_group_inside_an_axis_that_is_not_cut():
    """The other function lays a cut group beside another one along an uncut axis."""

    def one(p, x):
        h = jnp.tanh(x @ p["a"]) @ p["b"] + jnp.sin(x @ p["w"]) @ p["v"]
        return h + jnp.cos(x @ p["c"]) @ p["d"]

    def two(p, x):
        return (jnp.concatenate([x @ p["a"], x @ p["c"]], 1) + x @ p["w"]) @ p["v"]

    p = arrays(a=(3, 4), b=(4, 2), c=(3, 2), d=(2, 2), w=(3, 6), v=(6, 2))
    graph = ifjax.trace(one, p, X)
    small = ifjax.take(p, graph, {"a": [0, 1]})
    with pytest.raises(ValueError, match=r"cuts group a .* ties it to group w, which is not cut"):
        ifjax.shrink(two, graph.spec(keep={"a": 2}))(small, X)


def test_calls_after_the_first_make_no_new_nodes(monkeypatch):
    """Slices cut axes of the store; an eager loop must not make it grow."""

    def f(p, x):
        h = jnp.tanh(x @ p["a"])
        return h[:, :4] @ p["b"] + h[:, 4:] @ p["c"]

    params = jax.tree.map(jnp.float32, arrays(a=(3, 10), b=(4, 2), c=(6, 2)))
    spec = ifjax.trace(f, params, X).spec(0.5, method="prune")
    small, apply = ifjax.fuse_params(params, spec), ifjax.shrink(f, spec)
    made = []
    new = AxisStore._new
    monkeypatch.setattr(AxisStore, "_new", lambda self, *a: made.append(a) or new(self, *a))
    first = apply(small, X)
    assert made
    made.clear()
    np.testing.assert_array_equal(apply(small, X), first)
    assert made == []
