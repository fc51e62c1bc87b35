"""A decoder that has everything twice: `compress` cuts every kind by half, and little is lost."""

import functools

import jax
import numpy as np
import pytest

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder
from ifjax.models.decoder_groups import groups_by_kind, sparsities
from ifjax.models.decoder_widths import KINDS, TOP, layer_widths

ONCE = DecoderWidths(11, 6, 5, 2, 2, 4, 1, value_dim=3)
TWICE = {"hidden": 2, "ffn": 2, "query_heads": 4, "kv_heads": 2, "value_dim": 2}
READS = {"down": {"ffn"}, "out": {"query_heads", "value_dim"}, "head": {"hidden"}}
READS |= {name: {"hidden"} for name in ("query", "key", "value", "gate", "up")}


def doubled(name, x, kinds, rng):
    """What is written has every entry twice (queries, those of doubled keys, four times).

    What reads shares each row out among them, at random.
    """
    for axis, kind in enumerate(kinds, start=x.ndim - len(kinds)):
        times = TWICE.get(kind, 1)
        x = np.repeat(x, times, axis)
        if kind in READS.get(name, ()):
            shares = rng.uniform(0.2, 1.0, (x.shape[axis] // times, times))
            shares /= shares.sum(1, keepdims=True)
            x = x * shares.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return x.astype(np.float32)


@pytest.mark.usefixtures("unchecked")
def test_heads_values_neurons_and_stream_at_once():
    rng, once = np.random.default_rng(1), init_decoder(jax.random.key(0), ONCE, tied=False)
    params = {k: doubled(k, np.asarray(once[k]), kinds, rng) for k, kinds in TOP.items()}
    layers = once["layers"]
    params["layers"] = {k: doubled(k, np.asarray(v), KINDS[k], rng) for k, v in layers.items()}
    run = jax.jit(functools.partial(decoder, DecoderConfig(1e-5)))
    tokens = rng.integers(0, 11, (2, 12, 8))
    wanted = run(once, tokens[1])
    np.testing.assert_allclose(run(params, tokens[1]), wanted, atol=1e-5)
    graph = ifjax.trace(run, params, tokens[0])
    shares = dict.fromkeys(groups_by_kind(graph), 0.5)
    assert {*shares} == {*TWICE}

    def error(params):
        return float(((run(params, tokens[1]) - wanted) ** 2).sum() / (wanted**2).sum())

    half = functools.partial(graph.spec, sparsities(graph, shares))
    small, _ = ifjax.compress(run, params, half(importance="reconstruction"), [tokens[0]])
    widths = {kind: getattr(ONCE, kind) for kind in layer_widths(params)}
    assert layer_widths(small) == {kind: (n,) for kind, n in widths.items()}
    assert error(small) < 0.01, "shrinkage and a choice that is none of the best leave 0.0014"
    assert error(ifjax.fuse_params(params, half(method="prune"))) > 0.5
