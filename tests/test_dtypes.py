"""Leaves that are no float32: each is cut with its neighbours, or stays alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax

RNG = np.random.default_rng(0)


def w(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.standard_normal(shape)).astype(dtype)


def integers(*shape, dtype="int8"):
    return jnp.asarray(RNG.integers(-100, 100, shape)).astype(dtype)


def mask(*shape):
    return jnp.asarray(RNG.integers(0, 2, shape)).astype(bool)


def complexes(*shape):
    return (w(*shape) + 1j * w(*shape)).astype(jnp.complex64)


X = w(4, 6)


def wide(x):
    return x.astype(jnp.float32)


def fourier(p, x):
    """Two layers of a Fourier neural operator, [batch, positions, channels]."""
    h = x @ p["lift"]
    for i in range(2):
        modes = jnp.fft.rfft(h, axis=1)[:, :3]
        modes = jnp.einsum("bkc,kcd->bkd", modes, p[f"w{i}"])
        modes = jnp.pad(modes, ((0, 0), (0, 2), (0, 0)))
        h = jax.nn.gelu(jnp.fft.irfft(modes, n=8, axis=1) + h @ p[f"s{i}"])
    return jax.nn.relu(h @ p["f"]) @ p["o"]


def case(name):
    """A function, its parameters, an input, and the kinds of its groups by size."""
    relu = jax.nn.relu
    match name:
        case "float8":
            p = {
                "a": w(6, 8, dtype=jnp.float8_e4m3fn),
                "c": w(8),
                "b": w(8, 3, dtype="float8_e5m2"),
            }
            return lambda p, x: relu(x @ wide(p["a"]) + p["c"]) @ wide(p["b"]), p, X, {8: "neuron"}
        case "int8 and scale":
            p = {"a": integers(6, 8), "s": jnp.abs(w(1, 8)), "c": w(8), "b": w(8, 3)}
            f = lambda p, x: relu(x @ (wide(p["a"]) * p["s"]) + p["c"]) @ p["b"]  # noqa: E731
            return f, p, X, {8: "integer"}
        case "int8 on both sides":
            p = {"a": integers(6, 8), "s": jnp.abs(w(8)), "b": integers(8, 3), "t": jnp.abs(w(3))}
            f = lambda p, x: relu(x @ wide(p["a"]) * p["s"]) @ wide(p["b"]) * p["t"]  # noqa: E731
            return f, p, X, {8: "integer"}
        case "scale by row":
            p = {"a": integers(6, 8), "s": jnp.abs(w(6, 1)), "b": w(8, 3)}
            return lambda p, x: relu(x @ (wide(p["a"]) * p["s"])) @ p["b"], p, X, {8: "integer"}
        case "mask that multiplies":
            p = {"a": w(6, 8), "m": mask(6, 8), "b": w(8, 3)}
            return lambda p, x: relu(x @ (p["a"] * p["m"])) @ p["b"], p, X, {8: "integer"}
        case "mask that selects":
            p = {"a": w(6, 8), "m": mask(8), "b": w(8, 5), "o": w(5, 3)}
            f = lambda p, x: relu(jnp.where(p["m"], x @ p["a"], 0) @ p["b"]) @ p["o"]  # noqa: E731
            return f, p, X, {8: "integer", 5: "neuron"}
        case "fourier":
            p = {"lift": w(6, 8), "w0": complexes(3, 8, 7), "w1": complexes(3, 7, 9), "s0": w(8, 7)}
            p |= {"s1": w(7, 9), "f": w(9, 10), "o": w(10, 2)}
            return fourier, p, w(2, 8, 6), dict.fromkeys((8, 7, 9, 10), "neuron")
        case "complex":
            p = {"a": complexes(6, 8), "b": complexes(8, 3)}
            return lambda p, x: jnp.abs(jnp.tanh(x @ p["a"]) @ p["b"]), p, X, {8: "neuron"}
        case "counter":
            p = {"a": w(6, 8), "b": w(8, 3), "n": jnp.zeros((8,), jnp.int32)}
            return lambda p, x: relu(x @ p["a"]) @ p["b"] + p["n"][:3] * 0.0, p, X, {8: "neuron"}
    raise ValueError(name)


CASES = (
    "float8",
    "int8 and scale",
    "int8 on both sides",
    "scale by row",
    "mask that multiplies",
    "mask that selects",
    "fourier",
    "complex",
    "counter",
)


@pytest.mark.parametrize("name", CASES)
def test_cut_with_their_neighbours(name):
    f, p, x, kinds = case(name)
    graph = ifjax.trace(f, p, x)
    assert {g.size: g.kind for g in graph.groups if g.kind != "free"} == kinds
    graph.verify(f, p, x)
    for group in graph.groups:
        if group.kind == "free":
            continue
        order = RNG.permutation(group.size)
        np.testing.assert_allclose(
            f(ifjax.take(p, graph, {group.name: order}), x), f(p, x), rtol=1e-4, atol=1e-4
        )
    spec = graph.spec(0.5, method="prune")
    small = ifjax.fuse_params(p, spec)
    assert {k: v.dtype for k, v in small.items()} == {k: v.dtype for k, v in p.items()}
    maps = ifjax.transport_maps(p, spec)
    kept = {name: np.asarray(found.targets) for name, found in maps.items()}
    jax.tree.map(np.testing.assert_array_equal, small, ifjax.take(p, graph, kept))
    assert np.isfinite(np.asarray(ifjax.shrink(f, spec)(small, x))).all()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("method", [{}, {"solver": "exact", "merge": "preserving"}], ids=str)
def test_what_cannot_be_averaged_is_selected_under_fusion_too(name, method):
    f, p, x, kinds = case(name)
    graph = ifjax.trace(f, p, x)
    spec = graph.spec(0.5, **method)
    small = ifjax.fuse_params(p, spec)
    assert np.isfinite(np.asarray(ifjax.shrink(f, spec)(small, x))).all()
    maps = ifjax.transport_maps(p, spec)
    for group in spec.structure.in_order():
        if kinds[group.size] == "integer":
            only = graph.spec(keep={group.name: group.kept}, method="prune")
            want = ifjax.fuse_params(p, only)
            got = ifjax.take(p, graph, {group.name: np.asarray(maps[group.name].targets)})
            whole = [m.path for m in group.members if p[m.path].dtype != jnp.float32]
            for path in whole:
                assert got[path].dtype == small[path].dtype
            assert {k: v.shape for k, v in want.items()} == {k: v.shape for k, v in got.items()}


def test_indices_stay_what_they_are():
    order = jnp.asarray(RNG.permutation(8))
    p = {"a": w(6, 8), "i": order, "b": w(8, 3), "e": w(10, 8), "ids": jnp.asarray([1, 5, 9])}

    def f(p, x):
        return (jax.nn.relu(x @ p["a"])[:, p["i"]] + p["e"][p["ids"]].sum(0)) @ p["b"]

    graph = ifjax.trace(f, p, X)
    graph.verify(f, p, X)
    pinned = {(axis.path, axis.axis) for axis in graph.pinned}
    assert ("a", 1) in pinned  # read by numbers
    assert ("e", 0) in pinned
    assert all(g.kind == "free" or "i" not in {m.path for m in g.members} for g in graph.groups)
