from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, Rotary, decoder, init_decoder
from ifjax.models.decoder import hidden_states
from ifjax.models.decoder_groups import groups_by_kind, sparsities
from ifjax.models.decoder_widths import (
    OPTIONAL,
    decoder_shapes,
    layer_widths,
    stack_layers,
    unstack_layers,
)

WIDTHS = DecoderWidths(11, 12, 10, 4, 2, 4, 3)
TOKENS = jnp.arange(10).reshape(2, 5)
EVERYTHING = DecoderConfig(
    0.5,
    norm_offset=1.0,
    embedding_scale=2.0,
    activation="gelu",
    rotary=Rotary(90.0, factor=2.0),
    local_rotary=Rotary(30.0),
    window=2,
    windowed=(True, False, True),
    attention_cap=5.0,
    output_cap=3.0,
)


@pytest.fixture
def params():
    return init_decoder(jax.random.key(0), WIDTHS, extra=OPTIONAL, norm_offset=1.0, tied=False)


def test_scanned_and_listed_layers_are_one_function(params):
    listed = unstack_layers(params)
    a, b = decoder(EVERYTHING, params, TOKENS), decoder(EVERYTHING, listed, TOKENS)
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(listed), params)
    for every in zip(
        hidden_states(EVERYTHING, params, TOKENS, every=True),
        hidden_states(EVERYTHING, listed, TOKENS, every=True),
        strict=True,
    ):
        np.testing.assert_allclose(*every, rtol=2e-5, atol=2e-5)


def test_no_position_sees_a_later_one(params):
    other = TOKENS.at[:, 3].add(1)
    a, b = decoder(EVERYTHING, params, TOKENS), decoder(EVERYTHING, params, other)
    np.testing.assert_array_equal(a[:, :3], b[:, :3])
    assert (a[:, 3:] != b[:, 3:]).any(axis=-1).all()


def test_a_window_ends_what_a_position_sees(params):
    config = DecoderConfig(0.5, norm_offset=1.0, window=2, windowed=(True,))
    params = unstack_layers(params)
    params["layers"] = params["layers"][:1]
    a, b = (decoder(config, params, t) for t in (TOKENS, TOKENS.at[:, 0].add(1)))
    np.testing.assert_array_equal(a[:, 2:], b[:, 2:])
    assert (a[:, :2] != b[:, :2]).any(axis=-1).all()


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_products_of_rotated_queries_and_keys_depend_on_the_distance_alone(layout):
    """And the two layouts are one function of permuted heads."""
    rotary = Rotary(20.0, layout=layout)
    config = DecoderConfig(0.5, rotary=rotary)
    widths = DecoderWidths(11, 12, 10, 1, 1, 4, 1)
    params = init_decoder(jax.random.key(1), widths, scan=False)
    order = np.array([0, 2, 1, 3])  # pairs (0, 2), (1, 3) as neighbours, and back
    other = dict(params["layers"][0])
    other |= {name: other[name][..., order] for name in ("query", "key")}
    layouts = {"half": "interleaved", "interleaved": "half"}
    changed = DecoderConfig(0.5, rotary=Rotary(20.0, layout=layouts[layout]))
    a = decoder(config, params, TOKENS)
    b = decoder(changed, params | {"layers": [other]}, TOKENS)
    np.testing.assert_allclose(a, b, atol=1e-6)
    shifted = jnp.concatenate([jnp.zeros((2, 0), int), TOKENS], axis=1)
    np.testing.assert_allclose(decoder(config, params, shifted), a, atol=1e-6)


def test_everything_is_read_off_the_graph_and_shrinks_to_the_decoder_itself(params):
    for tree in (params, unstack_layers(params)):
        apply_fn = functools.partial(decoder, EVERYTHING)
        graph = ifjax.trace(apply_fn, tree, TOKENS)
        kinds = {g.name.rpartition("/")[2] for g in graph.groups}
        assert kinds == {"embedding", "query (kv heads)", "query (query heads)", "value", "gate"}
        spec = graph.spec(0.5, method="prune")
        small = ifjax.fuse_params(tree, spec)
        shrunk = ifjax.shrink(apply_fn, spec)(small, TOKENS)
        whole = jax.jit(decoder, static_argnums=0)(EVERYTHING, small, TOKENS)  # as shrink compiles
        np.testing.assert_array_equal(shrunk, whole)
        assert {*layer_widths(small)["ffn"]} == {5}


def test_it_serves_as_a_module_of_linen_or_nnx(params):
    """Bare arrays underneath: a module of any framework holds them as its parameters."""
    import flax.linen as nn
    from flax import nnx

    class Module(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            tree = self.param("decoder", lambda key: params)
            return decoder(EVERYTHING, tree, tokens)

    class Nnx(nnx.Module):
        def __init__(self):
            self.decoder = nnx.data(jax.tree.map(nnx.Param, params))

        def __call__(self, tokens):
            is_leaf = lambda x: isinstance(x, nnx.Param)  # noqa: E731
            tree = jax.tree.map(lambda x: x[...], self.decoder, is_leaf=is_leaf)
            return decoder(EVERYTHING, tree, tokens)

    module, wanted = Module(), decoder(EVERYTHING, params, TOKENS)
    variables = module.init(jax.random.key(0), TOKENS)
    np.testing.assert_array_equal(module.apply(variables, TOKENS), wanted)
    np.testing.assert_array_equal(Nnx()(TOKENS), wanted)


def test_bfloat16_stays_bfloat16(params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    found = decoder(EVERYTHING, half, TOKENS)
    assert found.dtype == jnp.bfloat16
    full = decoder(EVERYTHING, params, TOKENS)
    assert np.abs(found.astype(jnp.float32) - full).max() < 0.1 * np.abs(full).max()


def test_gradients_flow_to_every_leaf(params):
    def loss(p):
        return jnp.square(decoder(EVERYTHING, p, TOKENS)).sum()

    for path, grad in jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params)):
        assert np.isfinite(grad).all(), path
        assert np.abs(grad).max() > 0, path


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: DecoderConfig(1.0, activation="relu"), "activation"),
        (lambda p: DecoderConfig(1.0, windowed=(True,)), "window"),
        (lambda p: DecoderConfig(1.0, rotary=Rotary(layout="x")), "layout"),
        (lambda p: Rotary().frequencies(3), "even head_dim"),
        (lambda p: decoder(EVERYTHING.with_layers([0]), p, TOKENS), "with_layers"),
        (lambda p: DecoderWidths(1, 2, 3, 3, 2, 2, 1), "multiple of kv_heads=2"),
        (lambda p: DecoderWidths(1, 2, 0, 2, 2, 2, 1), "ffn: expected a positive"),
        (lambda p: layer_widths({k: v for k, v in p.items() if k != "norm"}), "norm: expected"),
        (lambda p: layer_widths(p | {"layers": []}), "layers: expected at least one"),
        (lambda p: layer_widths(p | {"norm": jnp.ones(3)}), r"norm: expected shape \(12,\)"),
        (lambda p: layer_widths(p | {"bias": jnp.ones(3)}), "bias: no leaf of a decoder"),
        (lambda p: decoder_shapes(WIDTHS, extra=["x"]), "extra"),
    ],
)
def test_what_does_not_fit_is_refused(call, message, params, unchecked):
    with pytest.raises(ValueError, match=message):
        call(params)


def test_layers_of_different_widths_cannot_be_stacked(params):
    listed = unstack_layers(params)
    listed["layers"][1] = listed["layers"][1] | {"up": jnp.ones((12, 3))}
    with pytest.raises(ValueError, match=r"layers/1/up: .* expected \(12, 10\)"):
        stack_layers(listed)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("scan", [True, False])
def test_groups_are_told_by_kind_whatever_they_are_called(kv_heads, scan):
    widths = DecoderWidths(11, 12, 10, 4, kv_heads, 4, 2)
    shapes = decoder_shapes(widths, scan=scan, extra=OPTIONAL)
    graph = ifjax.trace(functools.partial(decoder, DecoderConfig(0.5)), shapes, TOKENS)
    found = groups_by_kind(graph)
    wanted = {"hidden", "ffn", "value_dim", "kv_heads", "query_heads"}
    wanted -= {"kv_heads"} if kv_heads == 1 else {"query_heads"} if kv_heads == 4 else set()
    assert {*found} == wanted
    assert len(found["ffn"]) == (1 if scan else 2)
    spec = graph.spec(sparsities(graph, {"ffn": 0.5}), uniform=True)
    assert {*layer_widths(spec.small_struct(shapes))["ffn"]} == {5}
    with pytest.raises(ValueError, match="layers: expected one of"):
        sparsities(graph, {"layers": 0.5})
