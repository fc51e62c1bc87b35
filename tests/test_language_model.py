"""What the benchmark of language models puts `compress` beside."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder
from ifjax.models.decoder_groups import groups_by_kind, sparsities
from tests.benchmark_module import loaded

WIDTHS = DecoderWidths(11, hidden=8, ffn=6, query_heads=4, kv_heads=2, head_dim=4, layers=2)
CONFIG = DecoderConfig(0.5, eps=1e-9)


@pytest.fixture(scope="module")
def params():
    made = init_decoder(jax.random.key(0), WIDTHS)
    rng = np.random.default_rng(0)
    norms = {
        k: rng.uniform(0.5, 2, (2, 8)).astype(np.float32) for k in made["layers"] if "norm" in k
    }
    made = {
        **made,
        "layers": made["layers"] | norms,
        "norm": np.linspace(0.5, 2, 8, dtype=np.float32),
    }
    return jax.tree.map(np.asarray, made)


def test_biases_make_up_for_what_neurons_and_heads_give_where_it_never_changes(params):
    baselines = loaded("language_baselines")
    token = np.array([[3]], np.int32)  # one position: every mean is the value itself
    graph = ifjax.trace(functools.partial(decoder, CONFIG), params, token)
    shares = {"ffn": 0.5, "query_heads": 0.5}
    spec = graph.spec(sparsities(graph, shares), method="prune")
    kinds = {name: kind for kind in shares for name in groups_by_kind(graph)[kind]}
    found = baselines.readings(CONFIG, params, token)
    worth = baselines.scores(params, found.square, kinds)
    small = ifjax.fuse_params(params, spec, scores=worth)
    assert not np.allclose(decoder(CONFIG, small, token), decoder(CONFIG, params, token), rtol=0.1)
    small["layers"] |= baselines.biases(params, found, spec, worth, kinds)
    np.testing.assert_allclose(
        decoder(CONFIG, small, token), decoder(CONFIG, params, token), rtol=1e-4, atol=1e-5
    )


def test_scores_are_root_mean_squares_times_norms(params):
    baselines = loaded("language_baselines")
    tokens = np.arange(6, dtype=np.int32).reshape(1, 6)
    found = baselines.readings(CONFIG, params, tokens)
    worth = baselines.scores(params, found.square, {"f": "ffn", "q": "query_heads", "h": "hidden"})
    layers = params["layers"]
    assert worth["q"].shape == (2, 2, 2)
    for layer in range(2):
        lengths = np.linalg.norm(layers["down"][layer], axis=-1)
        wanted = np.sqrt(found.square["ffn"][layer]) * lengths
        np.testing.assert_allclose(worth["f"][layer], wanted, rtol=1e-5)
        for head in range(4):
            total = sum(
                found.square["heads"][layer, head, e]
                * np.square(layers["out"][layer, head, e]).sum()
                for e in range(4)
            )
            np.testing.assert_allclose(
                worth["q"][layer, head // 2, head % 2] ** 2, total, rtol=1e-5
            )
    total = 0.0
    for layer in range(2):
        for what, names in (("attention", ("query", "key", "value")), ("stream", ("gate", "up"))):
            rows = sum(np.square(layers[n][layer].reshape(8, -1)).sum(-1) for n in names)
            total += found.square[what][layer] * rows
    np.testing.assert_allclose(worth["h"] ** 2, total, rtol=1e-5)


def test_a_turned_stream_is_the_same_function(params):
    baselines = loaded("language_baselines")
    tokens = np.arange(10, dtype=np.int32).reshape(2, 5)
    gram = baselines.readings(CONFIG, params, tokens).gram
    turned = baselines.sliced(params, gram, 8)
    wanted = decoder(CONFIG, params, tokens)
    np.testing.assert_allclose(decoder(CONFIG, turned, tokens), wanted, rtol=1e-4, atol=1e-5)
    assert decoder(CONFIG, baselines.sliced(params, gram, 6), tokens).shape == wanted.shape


def test_sampled_tokens_are_drawn_from_the_decoders_predictions(params):
    tokens = loaded("sampled_text").sampled(CONFIG, params, 3, 6, start=4, seed=1)
    assert tokens.shape == (3, 6)
    assert (tokens[:, 0] == 4).all()
    scores = decoder(CONFIG, params, jnp.asarray(tokens))
    for t in range(5):
        key = jax.random.fold_in(jax.random.key(1), t)
        drawn = jax.random.categorical(key, scores[:, t])
        np.testing.assert_array_equal(drawn, tokens[:, t + 1])
