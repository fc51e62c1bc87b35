"""MaxText's layout: names, boxes and stacked axes as its decoder has them, written with linen."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import ifjax
from ifjax.interop import from_maxtext, maxtext_config, maxtext_overrides, to_maxtext
from ifjax.models import decoder

TOKENS = jnp.arange(10).reshape(2, 5)
SETTINGS = {"decoder_block": "llama2", "head_dim": 4, "rope_max_timescale": 50}
LAYERS = 3


def boxed(names):
    return nn.with_logical_partitioning(nn.initializers.normal(0.3), names)


class Dense(nn.Module):
    out: tuple[int, ...]
    names: tuple[str, ...]
    contracted: int = 1

    @nn.compact
    def __call__(self, x):
        axes = tuple(range(x.ndim - self.contracted, x.ndim))
        shape = tuple(x.shape[a] for a in axes) + self.out
        kernel = self.param("kernel", boxed(self.names), shape)
        return jax.lax.dot_general(x, kernel, ((axes, tuple(range(len(axes)))), ((), ())))


class Norm(nn.Module):
    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", boxed(("norm",)), (x.shape[-1],))
        return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + 1e-5) * scale


def rotated(x):
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 50.0 ** -(jnp.arange(half) / half)
    sin, cos = jnp.sin(angle)[:, None], jnp.cos(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        q = rotated(Dense((4, 4), ("embed", "q_heads", "kv"), name="query")(x))
        k = rotated(Dense((2, 4), ("embed", "kv_heads", "kv_head_dim"), name="key")(x))
        v = Dense((2, 4), ("embed", "kv_heads", "kv_head_dim"), name="value")(x)
        q = q.reshape(*q.shape[:2], k.shape[2], -1, q.shape[-1])
        seen = jnp.tril(jnp.ones((x.shape[1], x.shape[1]), bool))
        scores = jnp.where(seen, jnp.einsum("btkgd,bskd->bkgts", q, k), -1e30)
        y = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(scores), v)
        y = y.reshape(*y.shape[:2], -1, y.shape[-1])
        return Dense((x.shape[-1],), ("heads", "kv", "embed"), 2, name="out")(y)


class Mlp(nn.Module):
    @nn.compact
    def __call__(self, x):
        gate = Dense((8,), ("embed", "mlp"), name="wi_0")(x)
        up = Dense((8,), ("embed", "mlp"), name="wi_1")(x)
        return Dense((x.shape[-1],), ("mlp", "embed"), name="wo")(jax.nn.silu(gate) * up)


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + Attention(name="self_attention")(Norm(name="pre_self_attention_layer_norm")(x))
        return x + Mlp(name="mlp")(Norm(name="post_self_attention_layer_norm")(x)), None


class Decoder(nn.Module):
    axis: int | None

    @nn.compact
    def __call__(self, x):
        if self.axis is None:
            for i in range(LAYERS):
                x, _ = Layer(name=f"layers_{i}")(x, None)
        else:
            x, _ = nn.scan(
                Layer,
                variable_axes={"params": self.axis},
                split_rngs={"params": True},
                length=LAYERS,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )(name="layers")(x, None)
        x = Norm(name="decoder_norm")(x)
        return Dense((11,), ("embed_vocab", "vocab"), name="logits_dense")(x)


class Embedder(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        return self.param("embedding", boxed(("vocab", "embed_vocab")), (11, 12))[tokens]


class Transformer(nn.Module):
    axis: int | None = 1

    @nn.compact
    def __call__(self, tokens):
        return Decoder(self.axis, name="decoder")(Embedder(name="token_embedder")(tokens))


def network(axis: int | None) -> tuple[Transformer, Any]:
    module = Transformer(axis)
    return module, module.init(jax.random.key(0), TOKENS)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_a_tree_comes_in_computes_the_same_and_goes_back(axis):
    module, tree = network(axis)
    params = from_maxtext(tree)
    logits = decoder(maxtext_config(SETTINGS), params, TOKENS)
    np.testing.assert_allclose(logits, module.apply(tree, TOKENS), atol=1e-5)
    again = to_maxtext(params, tree)
    assert jax.tree.structure(again) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, again, tree)
    structs = jax.eval_shape(lambda: tree)
    jax.tree.map(lambda a, b: a.shape == b.shape or 1 / 0, from_maxtext(structs), params)


@pytest.mark.parametrize("axis", [0, 1, None])
def test_a_cut_tree_is_that_of_its_own_function(axis):
    """The decoder's cut parameters in MaxText's layout, and MaxText's own cut, are one."""
    module, tree = network(axis)
    graph = ifjax.trace(module.apply, tree, TOKENS)
    names = [g.name for g in graph.groups if "wi_0" in g.name]
    half = functools.partial(graph.spec, dict.fromkeys(names, 0.5))
    spec = half(method="prune")
    params, cut = from_maxtext(tree), [ifjax.fuse_params(tree, spec)]
    if axis == 1:  # MaxText's own
        batches = [TOKENS, TOKENS[:, ::-1]]
        cut += [ifjax.compress(module.apply, tree, half(importance="reconstruction"), batches)[0]]
    errors = []
    for small in cut:
        assert maxtext_overrides(params, from_maxtext(small)) == {"base_mlp_dim": 4}
        back = to_maxtext(from_maxtext(small), tree)
        jax.tree.map(np.testing.assert_array_equal, back, small)
        boxes = jax.tree.leaves(back, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
        assert all(isinstance(box, nn.LogicallyPartitioned) for box in boxes)
        logits = decoder(maxtext_config(SETTINGS), from_maxtext(small), TOKENS)
        found = ifjax.shrink(module.apply, spec)(small, TOKENS)
        np.testing.assert_allclose(logits, found, atol=1e-5)
        errors.append(float(jnp.square(found - module.apply(tree, TOKENS)).sum()))
    assert errors[-1] < 0.5 * errors[0] or len(cut) == 1, "which is what it is reconstructed for"


def test_shardings_are_kept_where_widths_divide():
    _, tree = network(1)
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("model",))
    rules = {"mlp": "model", "vocab": None}

    def placed(box):
        spec = P(*(rules.get(name) for name in box.names))
        return box.replace_boxed(jax.device_put(box.value, NamedSharding(mesh, spec)))

    tree = jax.tree.map(placed, tree, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
    params = from_maxtext(tree)
    small = dict(params["layers"])
    small |= {"gate": small["gate"][..., :4], "up": small["up"][..., :4]}
    small["down"] = small["down"][:, :4]
    back = to_maxtext({**params, "layers": small}, tree)["params"]["decoder"]["layers"]["mlp"]
    assert back["wi_0"]["kernel"].names == ("embed", "layers", "mlp")
    assert back["wi_0"]["kernel"].value.sharding.spec == P(None, None, "model")
    assert back["wo"]["kernel"].value.sharding.spec[0] == "model"


def test_the_axis_of_the_layers_is_asked_for_where_shapes_do_not_tell():
    _, tree = network(1)
    layers = tree["params"]["decoder"]["layers"]
    square = jax.tree.map(lambda x: jnp.concatenate([x] * 4, 1), layers)
    tree["params"]["decoder"]["layers"] = square
    with pytest.raises(ValueError, match="scan_axis, param_scan_axis"):
        from_maxtext(tree)
    assert from_maxtext(tree, scan_axis=1)["layers"]["up"].shape == (12, 12, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder_block": "gemma2"}, "decoder_block: expected one of llama2"),
        ({"logits_via_embedding": True}, "normalize_embedding_logits"),
        ({"mlp_activations": ["gelu"]}, "mlp_activations"),
    ],
)
def test_settings_that_the_decoder_does_not_have_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        maxtext_config(SETTINGS | settings)


def test_llama_31_rotates_neighbours():
    rotary = maxtext_config(SETTINGS | {"model_name": "llama3.1-8b"}).rotary
    assert rotary.layout == "interleaved"
    assert rotary.scaling is not None
    assert maxtext_config(SETTINGS | {"decoder_block": "qwen3"}).logit_scale == 0.5


def test_leaves_of_other_networks_are_named():
    _, tree = network(1)
    tree["params"]["decoder"]["layers"]["MoeBlock_0"] = {"gate": {"kernel": jnp.ones((2, 2))}}
    with pytest.raises(ValueError, match="MoeBlock_0/gate/kernel: no leaf of a dense decoder"):
        from_maxtext(tree)
