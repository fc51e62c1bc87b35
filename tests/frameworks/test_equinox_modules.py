"""Equinox modules that are cut compute what the function at the small widths computes."""

from __future__ import annotations

import builtins

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ifjax
from ifjax.frameworks import carry_equinox, cut_equinox, equinox_function

eqx = pytest.importorskip("equinox", reason="needs equinox: pip install 'ifjax[equinox]'")

KEYS = iter(jax.random.split(jax.random.key(0), 100))
IMAGES = jax.random.normal(next(KEYS), (3, 4, 8, 8))
ROWS = jax.random.normal(next(KEYS), (3, 6, 4))


def batched(module, x):
    return jax.vmap(module)(x)


def cut_and_compare(module, x, call=batched, **options):
    """Cuts the module; it must compute what `shrink` does on the same small parameters."""
    apply_fn, arrays = equinox_function(module, call)
    spec = ifjax.trace(apply_fn, arrays, x).spec(**options)
    assert spec.structure.widths
    small = ifjax.fuse_params(arrays, spec)
    cut = cut_equinox(module, spec, x, call=call)
    assert type(cut) is type(module)
    given = jax.tree.leaves(eqx.filter(cut, eqx.is_array))
    for a, b in zip(given, jax.tree.leaves(small), strict=True):
        np.testing.assert_array_equal(a, b)
    want = jax.jit(ifjax.shrink(apply_fn, spec))(small, x)
    got = eqx.filter_jit(call)(cut, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    return cut, spec


def sizes(layer, *names):
    return tuple(getattr(layer, name) for name in names)


class Images(eqx.Module):
    """Depthwise and transposed convolutions, a group norm, an array and a number of its own."""

    stem: eqx.nn.Conv2d
    depthwise: eqx.nn.Conv2d
    groups: eqx.nn.GroupNorm
    up: eqx.nn.ConvTranspose2d
    gain: jax.Array
    slope: float
    head: eqx.nn.Linear

    def __init__(self):
        self.stem = eqx.nn.Conv2d(4, 12, 3, key=next(KEYS))
        self.depthwise = eqx.nn.Conv2d(12, 12, 3, groups=12, key=next(KEYS))
        self.groups = eqx.nn.GroupNorm(12, 12)
        self.up = eqx.nn.ConvTranspose2d(12, 6, 2, stride=2, key=next(KEYS))
        self.gain = jnp.ones((6, 1, 1))
        self.slope = 0.1
        self.head = eqx.nn.Linear(6, "scalar", key=next(KEYS))

    def __call__(self, x):
        x = self.groups(self.depthwise(jax.nn.leaky_relu(self.stem(x), self.slope)))
        return self.head((jax.nn.relu(self.up(x)) * self.gain).mean((1, 2)))


def test_convolutions():
    cut, _ = cut_and_compare(Images(), IMAGES, sparsity=0.5, method="prune")
    channels = "in_channels", "out_channels", "groups"
    assert sizes(cut.stem, *channels) == (4, 6, 1)
    assert sizes(cut.depthwise, *channels) == (6, 6, 6)
    assert sizes(cut.groups, "channels", "groups") == (6, 6)
    assert sizes(cut.up, *channels) == (6, 3, 1)
    assert sizes(cut.head, "in_features", "out_features") == (3, "scalar")
    again, _ = cut_and_compare(cut, IMAGES, keep={"stem/*": 4}, method="prune")
    assert sizes(again.depthwise, *channels) == (4, 4, 4)


class Tokens(eqx.Module):
    """Embedding, attention, norms and both recurrent cells."""

    embed: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norms: list
    mlp: eqx.nn.MLP
    cells: tuple

    def __init__(self):
        self.embed = eqx.nn.Embedding(5, 8, key=next(KEYS))
        self.attention = eqx.nn.MultiheadAttention(4, 8, use_output_bias=True, key=next(KEYS))
        self.norms = [eqx.nn.LayerNorm(8), eqx.nn.RMSNorm(8)]
        self.mlp = eqx.nn.MLP(8, 8, 12, depth=2, scan=True, key=next(KEYS))
        self.cells = (
            eqx.nn.GRUCell(8, 10, key=next(KEYS)),
            eqx.nn.LSTMCell(10, 6, key=next(KEYS)),
            eqx.nn.Linear(6, 2, key=next(KEYS)),
        )

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        h = jax.vmap(self.norms[0])(x)
        x = x + self.attention(h, h, h)
        x = x + jax.vmap(self.mlp)(jax.vmap(self.norms[1])(x))
        gru, lstm, head = self.cells

        def step(carry, x):
            g = gru(x, carry[0])
            return (g, lstm(g, carry[1])), None

        width = lstm.hidden_size
        start = jnp.zeros(gru.hidden_size), (jnp.zeros(width), jnp.zeros(width))
        return head(jax.lax.scan(step, start, x)[0][1][0])


TOKENS = jnp.array([[0, 1, 2, 3, 4, 1], [4, 4, 0, 2, 1, 3]])


def test_tokens():
    cut, spec = cut_and_compare(
        Tokens(), TOKENS, sparsity=0.5, exclude=lambda g: g.kind == "head_dim", method="prune"
    )
    assert "head" in {g.kind for g in spec.groups if g.kept != g.size}
    outside = "query_size", "key_size", "value_size", "output_size"
    assert sizes(cut.attention, *outside) == (4, 4, 4, 4)
    assert sizes(cut.attention, "num_heads", "qk_size", "vo_size") == (2, 2, 2)
    assert sizes(cut.embed, "num_embeddings", "embedding_size") == (5, 4)
    assert [norm.shape for norm in cut.norms] == [(4,), (4,)]
    assert sizes(cut.mlp, "in_size", "width_size", "out_size") == (4, 6, 4)
    assert sizes(cut.cells[0], "input_size", "hidden_size") == (4, 5)
    assert sizes(cut.cells[1], "input_size", "hidden_size") == (5, 3)


def test_batch_norm_and_its_state():
    class Net(eqx.Module):
        conv: eqx.nn.Conv2d
        norm: eqx.nn.BatchNorm
        head: eqx.nn.Linear

        def __init__(self):
            self.conv = eqx.nn.Conv2d(4, 8, 3, key=next(KEYS))
            self.norm = eqx.nn.BatchNorm(8, "batch", mode="batch")
            self.head = eqx.nn.Linear(8, 2, key=next(KEYS))

        def __call__(self, x, state):
            x, state = self.norm(self.conv(x), state)
            return self.head(jax.nn.relu(x).mean((1, 2))), state

    def train(pair, x):
        model, state = pair
        return jax.vmap(model, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(x, state)

    def evaluate(pair, x):
        return train((eqx.nn.inference_mode(pair[0]), pair[1]), x)[0]

    pair = eqx.nn.make_with_state(Net)()
    pair = pair[0], train(pair, IMAGES)[1]
    (model, state), _ = cut_and_compare(pair, IMAGES, evaluate, sparsity=0.5, method="prune")
    assert model.norm.input_size == 4
    logits, state = train((model, state), IMAGES)
    assert logits.shape == (3, 2)
    assert {x.shape for x in jax.tree.leaves(state) if x.ndim} == {(4,)}


def test_an_optimizer_goes_on_by_the_same_maps():
    model = eqx.nn.MLP(4, 2, 8, depth=2, key=next(KEYS))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

    @eqx.filter_jit
    def step(model, state):
        loss = lambda m: ((jax.vmap(m)(ROWS[0]) - 1) ** 2).mean()  # noqa: E731
        value, grads = eqx.filter_value_and_grad(loss)(model)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(model, updates), state, value

    model, state, _ = step(model, state)
    apply_fn, arrays = equinox_function(model, batched)
    spec = ifjax.trace(apply_fn, arrays, ROWS[0]).spec(
        {"layers/0/*": 0.5, "*": 0.25}, method="prune"
    )
    maps = ifjax.transport_maps(arrays, spec)
    model = cut_equinox(model, spec, ROWS[0], maps=maps, call=batched)
    state = carry_equinox(state, model, spec, maps)
    assert jax.tree.structure(state) == jax.tree.structure(
        optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    )
    model, state, loss = step(model, state)
    assert [layer.weight.shape for layer in model.layers] == [(4, 4), (6, 4), (2, 6)]
    assert int(state[0].count) == 2
    assert np.isfinite(loss)


def test_a_cut_that_the_module_cannot_follow():
    """1 / sqrt(head_dim) is a number of the trained network."""
    model = eqx.nn.MultiheadAttention(2, 8, qk_size=4, vo_size=4, key=next(KEYS))
    call = lambda m, x: m(x, x, x)  # noqa: E731
    x = jax.random.normal(next(KEYS), (5, 8))
    apply_fn, arrays = equinox_function(model, call)
    graph = ifjax.trace(apply_fn, arrays, x)
    spec = graph.spec({"query*": 0.5})
    assert "query_proj/weight" in str(spec)
    message = (
        r"outputs differ by .*the module \(MultiheadAttention, .*4 before and 2 now.*ifjax.shrink"
    )
    for given in (x, jnp.ones_like(x)):  # equal positions hide nothing
        with pytest.raises(ValueError, match=message):
            cut_equinox(model, spec, given, call=call)


def test_the_call_that_was_traced_is_asked_for():
    model = eqx.nn.MLP(4, 2, 8, 1, key=next(KEYS))
    call = lambda m, x: jax.vmap(m)(x)  # noqa: E731
    x = jax.random.normal(next(KEYS), (5, 4))
    apply_fn, arrays = equinox_function(model, call)
    spec = ifjax.trace(apply_fn, arrays, x).spec(0.5, method="prune")
    with pytest.raises(ValueError, match=r"does not take inputs of shapes \[\(5, 4\)\] .*call="):
        cut_equinox(model, spec, x)
    assert cut_equinox(model, spec, x, call=call).width_size == 4


class Declares(eqx.Module):
    scale: jax.Array
    width: int = eqx.field(static=True)

    def __call__(self, x):
        return x.reshape(self.width) * self.scale


def test_a_tree_of_another_module_is_refused():
    model = eqx.nn.Linear(2, 2, key=next(KEYS))
    spec = ifjax.trace(lambda p, x: x @ p["a"] @ p["b"], {"a": ROWS[0].T, "b": ROWS[0]}, ROWS[0])
    with pytest.raises(ValueError, match=r"copies of the cut module \(Linear\), got Lambda"):
        carry_equinox(eqx.nn.Lambda(jax.nn.relu), model, spec.spec(0.0), {})


def test_the_error_names_the_layer():
    layers = [eqx.nn.Linear(4, 8, key=next(KEYS)), Declares(jnp.ones(8), 8)]
    model = eqx.nn.Sequential([*map(eqx.nn.Lambda, layers), eqx.nn.Linear(8, 2, key=next(KEYS))])
    apply_fn, arrays = equinox_function(model, batched)
    spec = ifjax.trace(apply_fn, arrays, ROWS[0]).spec(0.5, method="prune")
    with pytest.raises(ValueError, match=r"layers/1/fn \(Declares\)"):
        cut_equinox(model, spec, ROWS[0], call=batched)


def test_without_equinox(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "equinox":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install"):
        equinox_function(None)
