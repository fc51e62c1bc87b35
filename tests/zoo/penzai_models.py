"""penzai: its ready-made transformers, with named axes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from penzai import pz
from penzai.models.transformer.variants import gpt_neox, llamalike_common

from tests.zoo.model import model, tokens


def transformer(build: Any, config: Any, batch: int) -> tuple[Any, Any, tuple[Any, ...]]:
    """The model's function of tokens, the structs of its parameters, and its inputs."""

    def make(key: Any) -> Any:
        return pz.unbind_params(build(config, init_base_rng=key))[1]

    structs = jax.eval_shape(lambda key: tuple(p.freeze() for p in make(key)), jax.random.key(0))
    unbound = pz.unbind_params(build(config, init_base_rng=None))[0]

    def f(p: Any, words: Any) -> Any:
        bound = pz.bind_variables(unbound, p)
        named = pz.nx.wrap(words).tag("batch", "seq")
        positions = pz.nx.arange("seq", words.shape[1])
        out = bound(named, token_positions=positions)
        return out.unwrap("batch", "seq", "vocabulary")

    return f, structs, (tokens(batch, 5),)


WIDE = {"parameter_dtype": jnp.float64, "activation_dtype": jnp.float64}


@model("decoder", "penzai")
def penzai_gemma(batch):
    """Grouped queries, rotary positions, gated feed-forward, tied embedding."""
    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=8,
        projection_dim=4,
        mlp_hidden_dim=10,
        num_decoder_blocks=2,
        vocab_size=11,
        mlp_variant="geglu_approx",
        tie_embedder_and_logits=True,
        **WIDE,
    )
    return transformer(llamalike_common.build_llamalike_transformer, config, batch)


@model("decoder", "penzai")
def penzai_llama_stacked(batch):
    """The same by a layer stack, one key head, sliding window, soft caps, untied."""
    config = llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=1,
        query_head_multiplier=3,
        embedding_dim=8,
        projection_dim=4,
        mlp_hidden_dim=10,
        num_decoder_blocks=3,
        vocab_size=11,
        mlp_variant="swiglu",
        tie_embedder_and_logits=False,
        attention_type=llamalike_common.AttentionTypeSlidingWindowCausal(3),
        use_post_attn_norm=True,
        attn_logits_soft_cap=20.0,
        final_logit_softcap=30.0,
        use_layer_stack=True,
        **WIDE,
    )
    return transformer(llamalike_common.build_llamalike_transformer, config, batch)


@model("decoder", "penzai", silent=("*: 6/value/*", "*: 22/value/*"))  # key biases
def penzai_gpt_neox(batch):
    """Parallel attention and feed-forward, biases, rotary positions on part of the head."""
    config = gpt_neox.GPTNeoXTransformerConfig(
        num_attention_heads=2,
        embedding_dim=8,
        projection_dim=4,
        mlp_hidden_dim=10,
        num_decoder_blocks=2,
        vocab_size=11,
        activation_fn="gelu_exact",
        rope_subset_size=2,
        rope_wavelength=100.0,
        layernorm_epsilon=1e-5,
        **WIDE,
    )
    return transformer(gpt_neox.build_gpt_neox_transformer, config, batch)
