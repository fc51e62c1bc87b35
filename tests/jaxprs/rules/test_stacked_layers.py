"""Layers stacked for a scan, and one block that is called several times, with their norms."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn
from jax import lax

import ifjax
from ifjax.fusion.execution.merging import fold
from tests.graph.laws import array, arrays, distance, hold, reasons


def stacked(p, x):
    """Residual blocks with their parameters stacked along a leading axis."""

    def block(h, layer):
        return h + jnp.tanh(h @ layer["up"] + layer["b"]) @ layer["down"], (h**2).mean()

    h, seen = lax.scan(block, x @ p["in"], p["layers"])
    return h @ p["out"] + seen.sum()


LAYERS = arrays(up=(3, 6, 8), b=(3, 8), down=(3, 8, 6))
STACKED = {**arrays(**{"in": (4, 6), "out": (6, 2)}), "layers": LAYERS}


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_one_group_spans_all_stacked_layers():
    graph = hold(jax.jit(stacked), STACKED, array(5, 4), groups={"in": 6, "layers/up": 8})
    stream, hidden = (graph.structure.group[name] for name in ("in", "layers/up"))
    assert {(m.path, m.axis): m.role for m in hidden.members} == {
        ("layers/up", 2): "producer",
        ("layers/b", 1): "additive",
        ("layers/down", 1): "consumer",
    }
    assert [m.role for m in stream.members if m.path == "layers/down"] == ["producer"]
    assert (hidden.exact, stream.exact) == (True, False)  # a mean over the stream
    assert set(reasons(graph)) == {
        *(("in", 0), ("out", 1), ("layers/up", 0), ("layers/b", 0), ("layers/down", 0))
    }
    assert reasons(graph)["layers/b", 0].startswith("scan: each step follows the one before at ")
    flops = 2 * 5 * (4 * 6 + 3 * (6 * 8 + 8 * 6) + 6 * 2)
    assert graph.spec(0.0).flops() == (flops, flops)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_stacked_layers_are_the_same_function_as_their_unrolled_form():
    def unrolled(p, x):
        h, seen = x @ p["in"], 0
        for i in range(3):
            layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
            seen += (h**2).mean()
            h = h + jnp.tanh(h @ layer["up"] + layer["b"]) @ layer["down"]
        return h @ p["out"] + seen

    with jax.enable_x64(True):
        spec = ifjax.trace(stacked, STACKED, array(5, 4)).spec(0.5, solver="exact")
        small = ifjax.fuse_params(STACKED, spec)
        got = ifjax.shrink(stacked, spec)(small, array(5, 4))
        assert distance(got, unrolled(small, array(5, 4))) < 1e-9  # the mean follows the width


def normalise(y, scale, offset, mean, variance):
    return (y - mean) / jnp.sqrt(variance + 1e-3) * scale + offset


NORM = ("scale", "offset", "mean", "variance")


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_batch_norms_with_stacked_statistics_are_not_folded():
    def f(p, x):
        def block(h, layer):
            y = normalise(h @ layer["up"], *(layer[k] for k in NORM))
            return h + jnp.tanh(y) @ layer["down"], None

        return lax.scan(block, x @ p["in"], p["layers"])[0] @ p["out"]

    vectors = {k: abs(array(3, 8, seed=i)) for i, k in enumerate(NORM)}
    p = {**STACKED, "layers": {"up": LAYERS["up"], "down": LAYERS["down"], **vectors}}
    graph = hold(jax.jit(f), p, array(5, 4), groups={"in": 6, "layers/up": 8}, inert=())
    assert graph.structure.norms == ()
    roles = {m.path: m.role for m in graph.structure.group["layers/up"].members}
    assert (roles["layers/mean"], roles["layers/variance"]) == ("mean", "variance")


@pytest.mark.parametrize("leak", [False, True])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_a_batch_norm_of_a_shared_block_is_folded_unless_a_branch_reads_before_it(leak):
    def f(p, x):
        def step(h, _):
            y = h @ p["up"]
            z = normalise(y, *(p[k] for k in NORM))
            z = lax.cond(h.sum() > 0, lambda: z, lambda: y) if leak else z
            return h + jnp.tanh(z) @ p["down"], None

        return lax.scan(step, x, None, length=3)[0]

    p = arrays(up=(4, 8), down=(8, 4)) | {k: abs(array(8, seed=i)) for i, k in enumerate(NORM)}
    graph = hold(jax.jit(f), p, array(5, 4), groups={"up": 8})
    assert [n.kernel for n in graph.structure.norms] == ([] if leak else ["up"])
    with jax.enable_x64(True):
        folded = fold(jax.tree.map(jnp.asarray, p), graph.structure.norms)
        if not leak:
            folded |= {"scale": jnp.ones(8), "variance": jnp.full(8, 1 - 1e-3)}
        assert distance(f(folded, array(5, 4)), f(p, array(5, 4))) < 1e-9


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        y = nn.LayerNorm()(h)
        y = nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=12)(y)
        h = h + y
        y = nn.LayerNorm()(h)
        return h + nn.Dense(8)(nn.gelu(nn.Dense(10)(y))), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        layers = nn.scan(
            nn.remat(Block, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=3,
        )
        return nn.Dense(2)(layers()(nn.Dense(8)(x), None)[0])


def test_a_scanned_transformer_of_flax():
    model, x = Transformer(), jnp.ones((2, 5, 3))
    p = jax.eval_shape(model.init, jax.random.key(0), x)
    graph = ifjax.trace(model.apply, p, x)
    sizes = {g.size: g for g in graph.groups}
    assert sizes[10].kind == "neuron"
    assert sizes[8].exact is False
    assert sizes[2].kind == "head"
    assert all(g.kind == "head_dim" for g in graph.groups if g.size == 6)
    assert graph.verify(model.apply, p, x).ok
    spec = graph.spec(keep={sizes[10].name: 4, sizes[2].name: 1})
    small = jax.tree.map(lambda s: jnp.ones(s.shape), spec.small_struct(p))
    gradient = jax.jit(jax.grad(lambda p, x: ifjax.shrink(model.apply, spec)(p, x).sum()))
    assert jax.tree.map(jnp.shape, gradient(small, jnp.ones((1, 7, 3)))) == jax.tree.map(
        jnp.shape, small
    )
