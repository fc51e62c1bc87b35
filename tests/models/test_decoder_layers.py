from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder
from ifjax.models.decoder_layers import keep_layers, layer_divergence, silence_layers
from ifjax.models.decoder_widths import unstack_layers

CONFIG = DecoderConfig(0.5, window=2, windowed=(True, False, True))
TOKENS = jnp.arange(10).reshape(2, 5)


@pytest.fixture
def params():
    return init_decoder(jax.random.key(0), DecoderWidths(11, 12, 10, 4, 2, 4, 3))


def test_layers_that_do_nothing_are_left_out_first_and_are_not_missed(params):
    for name in ("out", "down"):
        params["layers"][name] = params["layers"][name].at[1].set(0.0)
    for tree in (params, unstack_layers(params)):
        found = layer_divergence(CONFIG, tree, TOKENS)
        assert found.argmin() == 1
        assert found[1] == pytest.approx(0, abs=1e-6)
        assert (np.delete(found, 1) > 1e-3).all()
        config, small = keep_layers(CONFIG, tree, [0, 2])
        assert config.windowed == (True, True)
        np.testing.assert_allclose(
            decoder(config, small, TOKENS), decoder(CONFIG, tree, TOKENS), atol=1e-5
        )


@pytest.mark.parametrize("kept", [[], [2, 0], [0, 0], [3], [-1, 0]])
def test_layers_that_are_not_there_are_refused(kept, params):
    with pytest.raises(ValueError, match="ascending indices of layers, 0 to 2"):
        keep_layers(CONFIG, params, kept)


@pytest.mark.parametrize("silent", [[3], [-1], [0, 7]])
def test_layers_that_are_not_there_cannot_be_silenced(silent, params):
    for tree in (params, unstack_layers(params)):
        with pytest.raises(ValueError, match="expected indices of layers, 0 to 2, got"):
            silence_layers(tree, silent)


@pytest.mark.parametrize("is_list", [False, True])
def test_the_other_layers_make_up_for_one_that_is_left_out(is_list, params):
    config = DecoderConfig(0.5)
    params = unstack_layers(params) if is_list else params
    apply = functools.partial(decoder, config)
    tokens = jax.random.randint(jax.random.key(1), (16, 12), 0, 11)
    graph = ifjax.trace(apply, params, tokens)
    spec = graph.spec(dict.fromkeys((g.name for g in graph.groups), 0.0), method="prune")
    silent = silence_layers(params, [1])
    small, report = ifjax.compress(apply, params, spec, [tokens], altered=silent)
    found, before = unstack_layers(small)["layers"], unstack_layers(params)["layers"]
    for name in ("out", "down"):
        assert not np.asarray(found[1][name]).any()
    moved = [name for name, x in found[2].items() if not np.array_equal(x, before[2][name])]
    assert moved, "where that makes the error on held-out inputs smaller"
    assert "it was given" in {why for _, why in report.follows}
    test = jax.random.randint(jax.random.key(2), (16, 12), 0, 11)
    want, errors = apply(params, test), []
    for tree in (params, small):
        kept_config, kept = keep_layers(config, tree, [0, 2])
        errors.append(float(jnp.square(decoder(kept_config, kept, test) - want).mean()))
    assert errors[1] < 0.7 * errors[0]
