"""flax.nnx modules that are cut in place compute what the function at the small widths computes."""

from __future__ import annotations

import time
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import ifjax
from ifjax.frameworks import cut_nnx, nnx_function
from ifjax.frameworks.nnx_modules import ScaledAttention

X = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 8, 4)), jnp.float32)
ROWS = X[:, 0]  # [3, 8, 4]


class Images(nnx.Module):
    """Grouped, depthwise and transposed convolutions, all norms over channels, dropout."""

    def __init__(self, rngs):
        self.stem = nnx.Conv(4, 12, (3, 3), rngs=rngs)
        self.norm = nnx.BatchNorm(12, rngs=rngs)
        self.depthwise = nnx.Conv(12, 12, (3, 3), feature_group_count=12, rngs=rngs)
        self.groups = nnx.GroupNorm(12, num_groups=12, rngs=rngs)
        self.point = nnx.Conv(12, 8, (1, 1), use_bias=False, rngs=rngs)
        self.up = nnx.ConvTranspose(8, 6, (2, 2), strides=(2, 2), rngs=rngs)
        self.back = nnx.ConvTranspose(6, 10, (2, 2), transpose_kernel=True, rngs=rngs)
        self.rms = nnx.RMSNorm(10, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(10, 3, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.norm(self.stem(x)))
        x = nnx.relu(self.groups(self.depthwise(x)))
        x = self.back(nnx.relu(self.up(nnx.relu(self.point(x)))))
        return self.head(self.dropout(self.rms(x)).mean((1, 2)))


class Tokens(nnx.Module):
    """Embedding, attention with fewer key heads, einsum, a gated block with a norm."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(5, 8, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            4, 8, qkv_features=16, num_kv_heads=2, decode=False, rngs=rngs
        )
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.up = nnx.Einsum("btd,df->btf", (8, 12), (12,), rngs=rngs)
        self.down = nnx.LinearGeneral((12,), (8,), rngs=rngs)
        self.head = nnx.LinearGeneral(8, (2, 3), rngs=rngs)

    def __call__(self, tokens):
        x = self.embed(tokens)
        x = x + self.attention(x)
        return self.head(x + self.down(nnx.silu(self.up(self.norm(x)))))


TOKENS = jnp.array([[0, 1, 2, 3, 4, 1], [4, 4, 0, 2, 1, 3]])


class Recurrent(nnx.Module):
    """One cell of every kind, one after another."""

    def __init__(self, rngs):
        cells = [nnx.LSTMCell(4, 6, rngs=rngs), nnx.OptimizedLSTMCell(6, 8, rngs=rngs)]
        cells += [nnx.GRUCell(8, 10, rngs=rngs), nnx.SimpleCell(10, 4, rngs=rngs)]
        self.layers = nnx.List([nnx.RNN(cell) for cell in cells])
        self.head = nnx.Linear(4, 2, rngs=rngs)

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, -1])


def functions(model, x, **options):
    apply_fn, state = nnx_function(model)
    spec = ifjax.trace(apply_fn, state, x).spec(**options)
    return apply_fn, state, spec


def sizes(layer, *names):
    return tuple(getattr(layer, name) for name in names)


def cut_and_compare(model, x, **options):
    """Cuts the module; it must compute what `shrink` does on the same small parameters."""
    model.eval()
    apply_fn, state, spec = functions(model, x, **options)
    small = ifjax.fuse_params(state, spec)
    cut_nnx(model, spec, x)
    for a, b in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(small), strict=True):
        if jnp.issubdtype(a.dtype, jnp.floating):
            np.testing.assert_array_equal(a, b)
    want = jax.jit(ifjax.shrink(apply_fn, spec))(small, x)
    got = nnx.jit(lambda model, x: model(x))(model, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    return spec


def test_convolutions_and_norms():
    model = Images(nnx.Rngs(0))
    cut_and_compare(model, X, sparsity=0.5, method="prune")
    assert sizes(model.stem, "in_features", "out_features", "kernel_shape") == (4, 6, (3, 3, 4, 6))
    assert sizes(model.norm, "num_features") == (6,)
    grouped = "in_features", "out_features", "feature_group_count"
    assert sizes(model.depthwise, *grouped) == (6, 6, 6)
    assert sizes(model.groups, "num_features", "num_groups", "group_size") == (6, 6, 1)
    assert sizes(model.up, "in_features", "out_features") == (4, 3)
    assert sizes(model.back, "in_features", "out_features") == (3, 5)
    assert sizes(model.rms, "num_features") == (5,)
    assert sizes(model.head, "in_features", "out_features") == (5, 3)
    # a module that is as good as new: its own function can be traced and cut again
    cut_and_compare(model, X, keep={"stem/*": 4}, method="prune")
    assert sizes(model.depthwise, *grouped) == (4, 4, 4)


def test_attention_embedding_and_general_layers():
    model = Tokens(nnx.Rngs(0))
    spec = cut_and_compare(
        model, TOKENS, sparsity=0.5, exclude=lambda g: g.kind == "head_dim", method="prune"
    )
    assert {g.kind for g in spec.groups if g.kept != g.size} >= {"neuron", "head"}
    heads = "num_heads", "num_kv_heads", "head_dim", "qkv_features", "in_features", "out_features"
    kept = {n: spec.structure.shape(f"attention/{n}/kernel/value") for n in ("query", "key", "out")}
    assert kept["key"] == (4, 1, 4)
    h = kept["query"][1]
    assert sizes(model.attention, *heads) == (h, 1, 4, 4 * h, 4, 4)
    assert sizes(model.attention.query, "in_features", "out_features") == ((4,), (h, 4))
    assert sizes(model.embed, "num_embeddings", "features") == (5, 4)
    assert sizes(model.up, "kernel_shape", "bias_shape") == ((4, 6), (6,))
    assert sizes(model.head, "in_features", "out_features") == ((4,), (2, 3))


def test_recurrent_cells():
    model = Recurrent(nnx.Rngs(0))
    cut_and_compare(model, ROWS, sparsity=0.5, method="prune")
    found = [sizes(r.cell, "in_features", "hidden_features") for r in model.layers]
    assert found == [(4, 3), (3, 4), (4, 5), (5, 2)]


def heads_of(rngs, **options):
    return nnx.MultiHeadAttention(4, 16, decode=False, rngs=rngs, **options)


@pytest.mark.parametrize("options", [{}, {"normalize_qk": True}, {"num_kv_heads": 2}], ids=str)
@pytest.mark.parametrize("method", ["prune", "fuse"])
def test_attention_divides_by_the_root_of_the_full_head_dim(options, method):
    model = heads_of(nnx.Rngs(0), **options)
    x = jnp.ones((2, 5, 16))  # equal positions would hide the scale
    cut_and_compare(model, x, sparsity=0.5, method=method, heads=method)
    assert model.head_dim == 2
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    apply_fn, _, spec = functions(heads_of(nnx.Rngs(0), **options), x, sparsity=0.5)
    want = ifjax.shrink(apply_fn, spec)(nnx.state(model), x)
    np.testing.assert_allclose(model(x), want, atol=1e-5)
    if not options:  # once more: the factor is one for both cuts
        only = {"keep": {"*": 1}, "include": lambda g: g.kind == "head_dim"}
        cut_and_compare(model, x, **only, method="prune")
        assert model.attention_fn == ScaledAttention(nnx.dot_product_attention, Fraction(1, 4))


def test_a_cut_that_the_module_cannot_follow_changes_nothing():
    own = lambda *args, **options: nnx.dot_product_attention(*args, **options)  # noqa: E731
    model = nnx.Sequential(
        nnx.Linear(4, 16, rngs=nnx.Rngs(1)), heads_of(nnx.Rngs(0), attention_fn=own)
    )
    _, state, spec = functions(model, ROWS, sparsity=0.5, include=lambda g: g.kind == "head_dim")
    assert spec.structure.widths
    start = time.perf_counter()
    message = (
        r"outputs differ by .*layers/1 \(MultiHeadAttention, .*4 before and 2 now: .*exclude=.*"
        "Nothing was changed"
    )
    with pytest.raises(ValueError, match=message):
        cut_nnx(model, spec, jnp.ones_like(ROWS))
    assert time.perf_counter() - start < 10  # a second where nothing else runs; no solver compiled
    assert model.layers[1].head_dim == 4
    after = nnx.state(model)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)


def test_one_head_dim_for_queries_and_values():
    model = heads_of(nnx.Rngs(0))
    x = jnp.ones((2, 5, 16))
    _, _, spec = functions(model, x, sparsity=0.5, include="value*")
    with pytest.raises(
        ValueError, match=r"head_dim to 4 in its queries and keys and to 2 in its v"
    ):
        cut_nnx(model, spec, x)


class Scaled(nnx.Module):
    """A layer that declares a width of its own."""

    def __init__(self, rngs):
        self.width = 8
        self.scale = nnx.Param(jnp.ones(8))

    def __call__(self, x):
        return self.scale[...] * x.reshape(-1, self.width)


def test_the_error_names_the_layer():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), Scaled(rngs), nnx.Linear(8, 2, rngs=rngs))
    _, _, spec = functions(model, ROWS[0], sparsity=0.5, method="prune")
    with pytest.raises(ValueError, match=r"layers/1 \(Scaled\)"):
        cut_nnx(model, spec, ROWS[0])
    assert model.layers[0].out_features == 8


@pytest.mark.parametrize("make", [lambda: optax.adamw(1e-2), lambda: optax.sgd(0.1, momentum=0.9)])
def test_the_optimizer_goes_on(make):
    model = Images(nnx.Rngs(1))
    optimizer = nnx.Optimizer(model, make(), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, grads = nnx.value_and_grad(lambda m: ((m(X) - 1) ** 2).mean())(model)
        optimizer.update(model, grads)
        return loss

    step(model, optimizer)
    model.eval()
    _, state, spec = functions(model, X, sparsity=0.5, method="prune")
    maps = ifjax.transport_maps(state, spec)
    before = nnx.state(optimizer, nnx.OptState)
    want = ifjax.fuse_tree(before, spec, maps)
    assert cut_nnx(model, spec, X, maps=maps, optimizer=optimizer) is maps
    after = nnx.state(optimizer, nnx.OptState)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(a, b)
    moments = [x.shape for x in jax.tree.leaves(after)]
    assert (3, 3, 4, 6) in moments
    assert (3, 3, 4, 12) not in moments
    model.train()
    losses = [float(step(model, optimizer)) for _ in range(4)]
    assert int(optimizer.step[...]) == 5
    assert np.isfinite(losses).all()


def test_what_is_called_can_be_chosen():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.encoder = nnx.Linear(4, 8, rngs=rngs)
            self.decoder = nnx.Linear(8, 4, rngs=rngs)

        def reconstruct(self, x, scale=1.0):
            return scale * self.decoder(nnx.relu(self.encoder(x)))

    model, call = Two(nnx.Rngs(0)), Two.reconstruct
    apply_fn, state = nnx_function(model, call)
    spec = ifjax.trace(apply_fn, state, ROWS[0], scale=2.0).spec(0.5, method="prune")
    small = ifjax.fuse_params(state, spec)
    cut_nnx(model, spec, ROWS[0], call=call, scale=2.0)
    got = model.reconstruct(ROWS[0], scale=2.0)
    np.testing.assert_allclose(got, ifjax.shrink(apply_fn, spec)(small, ROWS[0], scale=2.0), 1e-5)
