"""Channels that turn to their principal axes: the function stays, and what would change it."""

import functools
import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder, untie_decoder
from ifjax.models.decoder_groups import groups_by_kind
from ifjax.models.decoder_widths import unstack_layers
from ifjax.reconstruction.bearing import TURNED
from ifjax.tree import leaves_by_path
from tests.reconstruction.random_weights import normal

D, TOKENS = 12, np.random.default_rng(0).integers(0, 11, (8, 6)).astype(np.int32)
WIDTHS = DecoderWidths(11, hidden=D, ffn=10, query_heads=4, kv_heads=2, head_dim=4, layers=2)
LLAMA = DecoderConfig(0.5, eps=1e-12)
GEMMA = DecoderConfig(0.5, eps=1e-12, norm_offset=1.0, embedding_scale=3.0, activation="gelu")


def double(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)


def made(config, extra=()):
    """A decoder with a head, biases on the stream, and norms that scale channels differently."""
    found = init_decoder(jax.random.key(0), WIDTHS, tied=False, extra=("down_bias", *extra))
    layers = found["layers"]
    for i, name in enumerate(n for n in layers if n.endswith(("norm", "down_bias"))):
        layers[name] = 1.5 - config.norm_offset + normal(i, *layers[name].shape)
    found["norm"] = 1.5 - config.norm_offset + normal(9, D)
    return jax.tree.map(np.asarray, found)


def mixed(p, x):
    """Channels that are read by dense layers, after norms of two forms; tokens mixed linearly."""

    def normed(h, scale):
        h2 = jax.lax.rsqrt(jnp.sum(h * h, -1, keepdims=True)) * scale
        return h * h2

    h = jnp.concatenate([jnp.broadcast_to(p["class"], (len(x), 1, D)), x @ p["in"]], 1)
    h = h + p["position"]
    h = h + jnp.einsum("st,btd->bsd", p["mix"], h / jnp.linalg.norm(h, axis=-1, keepdims=True))
    y = normed(h, jnp.exp(p["s1"]))
    h = h + jax.nn.relu(y @ p["up"]) @ p["down"] + y @ p["square"]
    h = normed(h, 2 * p["s2"]).mean(1)
    return h @ p["out"]


MIXED = {
    **{"in": (5, D), "class": (1, 1, D), "position": (4, D), "mix": (4, 4), "up": (D, 9)},
    **{"down": (9, D), "square": (D, D), "s1": (D,), "s2": (D,), "out": (D, 3)},
}


def cases():
    mixer = {name: normal(i, *shape) for i, (name, shape) in enumerate(MIXED.items())}
    return {
        "scanned": (functools.partial(decoder, LLAMA), made(LLAMA), TOKENS),
        "unrolled": (functools.partial(decoder, LLAMA), unstack_layers(made(LLAMA)), TOKENS),
        "one plus scale": (functools.partial(decoder, GEMMA), made(GEMMA), TOKENS),
        "mixed": (mixed, mixer, normal(20, 8, 3, 5)),
    }


NORMS = ("attention_norm", "ffn_norm", "norm")
NEUTRAL = {
    "scanned": dict.fromkeys(NORMS, 1.0),
    "unrolled": dict.fromkeys(NORMS, 1.0),
    "one plus scale": dict.fromkeys(NORMS, 0.0),
    "mixed": {"s1": 0.0, "s2": 0.5},  # of exp(s1) and 2 s2
}


def stream(graph):
    """The name of the group that is as wide as the stream."""
    return next(g.name for g in graph.groups if g.size == D)


@pytest.mark.parametrize("name", cases())
def test_the_function_stays_and_channels_are_principal_axes(name):
    apply, params, x = cases()[name]
    with jax.enable_x64(True):
        params, x = double(params), x if x.dtype == np.int32 else jnp.asarray(x, jnp.float64)
        graph = ifjax.trace(apply, params, x)
        params = jax.tree.map(np.asarray, params)
        rotated, rotation, energy = ifjax.rotate(
            apply, params, graph, stream(graph), [x[:4], x[4:]]
        )
        assert {*map(type, jax.tree.leaves(rotated))} == {np.ndarray}, "where the full ones are"
        want = apply(params, x)
        np.testing.assert_allclose(apply(rotated, x), want, atol=1e-10 * np.abs(want).max())
        moments = ifjax.collect_moments(apply, rotated, [x])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(D), atol=1e-12)
    assert jax.tree.structure(rotated) == jax.tree.structure(params)
    assert jax.tree.map(jnp.shape, rotated) == jax.tree.map(jnp.shape, params)
    leaves = ("up", "out") if name == "mixed" else ("query", "gate", "head")
    own = {path: re.split(r"[/\[]", path) for path in moments}  # layers/query[1], layers/1/query
    read = [m.gram[0] / m.count for path, m in moments.items() if {*leaves} & {*own[path]}]
    assert len(read) == (2 if name == "mixed" else 5)
    gram = np.mean(read, 0)
    np.testing.assert_allclose(gram, np.diag(energy), atol=1e-12 * energy[0])
    assert (np.diff(energy) <= 0).all()
    scales = {path.split("/")[-1]: x for path, x in leaves_by_path(rotated).items()}
    for leaf, neutral in NEUTRAL[name].items():
        np.testing.assert_allclose(scales[leaf], neutral, atol=1e-12)


def test_axes_on_which_nothing_lies_can_be_cut():
    """The stream spans 8 of 12 dimensions, none of them a channel: after the turn 4 channels go."""
    apply, params = functools.partial(decoder, LLAMA), made(LLAMA)
    span = normal(30, D, 8)
    onto = span @ np.linalg.pinv(span)
    layers = params["layers"]
    for name in ("out", "down", "down_bias"):
        layers[name] = layers[name] @ onto
    params["embedding"] = params["embedding"] @ onto
    with jax.enable_x64(True):
        params = double(params)
        graph = ifjax.trace(apply, params, TOKENS)
        name, want = stream(graph), apply(params, TOKENS)
        rotated, _, energy = ifjax.rotate(apply, params, graph, name, [TOKENS])
        assert energy[8:].max() < 1e-12 * energy[0] < energy[7]
        spec = graph.spec({name: 4 / 12}, method="prune")
        small = ifjax.fuse_params(rotated, spec, scores={name: energy})
        gain = np.sqrt(D / 8)  # the mean square is over fewer channels
        small["norm"] *= gain
        for norm in ("attention_norm", "ffn_norm"):
            small["layers"][norm] *= gain
        apply_small = ifjax.shrink(apply, spec)
        np.testing.assert_allclose(apply_small(small, TOKENS), want, atol=1e-6)
        spec = graph.spec({name: 4 / 12}, method="prune", importance="reconstruction")
        small, report = ifjax.compress(apply, rotated, spec, [TOKENS])
        assert report.kept[name].tolist() == [*range(8)], "compress chooses them too"
        error = float(np.std(apply_small(small, TOKENS) - want) / np.std(want))
        assert error < 1e-6, "and the gain"


def activation(p, x):
    return jax.nn.relu(x @ p["in"]) @ p["out"]


def layer_norm(p, x):
    h = x @ p["in"]
    return (h - h.mean(-1, keepdims=True)) @ p["out"]


def offset(p, x):
    h = x @ p["in"]
    return (h / jnp.linalg.norm(h, axis=-1, keepdims=True) * p["scale"] + p["b"]) @ p["out"]


def single_entries(p, x):
    h = x @ p["in"]
    return (h * p["scale"] * p["field"]) @ p["out"]


def by_data(p, x):
    h = x @ p["in"]
    return (h * jax.nn.sigmoid(x @ p["gate"])) @ p["out"]


def joined(p, x):
    h = x @ p["in"]
    return jnp.concatenate([h * p["scale"], h]) @ p["out"]


def loop(p, x):
    """A walk over data that does not come apart: its matrix is no leaf that turns."""
    return jax.lax.while_loop(lambda h: h.sum() < 100, lambda h: 2 * h, x @ p["in"]) @ p["out"]


REFUSED = {
    "activation": (activation, {}, "applies max to single channels, as activation functions do"),
    "layer norm": (layer_norm, {}, "sums over the channels, as a layer norm does"),
    "offset": (offset, {"scale": (D,), "b": (D,)}, "adds what does not turn with them"),
    "single entries": (
        single_entries,
        {"scale": (D,), "field": (8, D)},
        "field: expected a scale of one number for each channel",
    ),
    "by data": (by_data, {"gate": (5, D)}, "logistic to single channels"),
    "joined": (joined, {"scale": (D,)}, "joins turned channels with what does not turn"),
    "loop": (loop, {}, "reads them inside of a while that does not come apart"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_depends_on_the_basis_is_refused_with_its_line(name):
    apply, shapes, message = REFUSED[name]
    shapes = {"in": (5, D), "out": (D, 3), **shapes}
    params = {k: normal(i, *shape) for i, (k, shape) in enumerate(shapes.items())}
    x = normal(40, 8, 5)
    graph = ifjax.trace(apply, params, x)
    with pytest.raises(ValueError, match=message) as found:
        ifjax.rotate(apply, params, graph, stream(graph), [x, x, x, x])
    assert name == "single entries" or "test_rotate.py:" in str(found.value)


def normed(h):
    return h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True))


def read_scaled(p, x):
    return jax.nn.relu((normed(x @ p["in"]) * p["scale"]) @ p["up"]) @ p["out"]


USES = {
    "scale": lambda p, y: y * p["scale"].mean(),
    "weight": lambda p, y: (y, (p["up"] ** 2).sum()),
}


@pytest.mark.parametrize("use", USES)
def test_a_second_use_of_what_was_folded_is_refused(use):
    shapes = {"in": (5, D), "scale": (D,), "up": (D, 7), "out": (7, 3)}
    params = {k: normal(i, *shape) for i, (k, shape) in enumerate(shapes.items())}
    apply, x = lambda p, x: USES[use](p, read_scaled(p, x)), normal(40, 8, 5)
    graph = ifjax.trace(apply, params, x)
    with pytest.raises(ValueError, match=r"same outputs.*, but output .* for something else too"):
        ifjax.rotate(apply, params, graph, stream(graph), [x])


def test_a_scale_over_more_than_the_channels_keeps_the_rest():
    """A stream beside other channels, behind one norm."""

    def apply(p, x):
        h = jnp.concatenate([x @ p["in"], x @ p["beside"]], -1)
        return (normed(h) * p["scale"]) @ p["out"]

    shapes = {"in": (5, D), "beside": (5, 4), "scale": (D + 4,), "out": (D + 4, 3)}
    with jax.enable_x64(True):
        params = double({k: normal(i, *shape) for i, (k, shape) in enumerate(shapes.items())})
        x = jnp.asarray(normal(40, 8, 5), jnp.float64)
        graph = ifjax.trace(apply, params, x)
        rotated = ifjax.rotate(apply, params, graph, stream(graph), [x]).params
        np.testing.assert_allclose(apply(rotated, x), apply(params, x), rtol=1e-10)
    np.testing.assert_array_equal(rotated["scale"][D:], params["scale"][D:])
    np.testing.assert_array_equal(rotated["scale"][:D], 1)


def test_a_scale_of_one_of_two_axes_is_refused():
    def apply(p, x):
        h = x @ p["in"]
        z = jnp.einsum("bi,bj->bij", h, h) * p["scale"]
        return jnp.einsum("bjf,jg->bfg", jnp.einsum("bij,if->bjf", z, p["up"]), p["out"])

    shapes = {"in": (5, D), "scale": (D,), "up": (D, 2), "out": (D, 3)}
    params = {k: normal(i, *shape) for i, (k, shape) in enumerate(shapes.items())}
    x = normal(40, 8, 5)
    graph = ifjax.trace(apply, params, x)
    with pytest.raises(ValueError, match="no weight that could take the scale"):
        ifjax.rotate(apply, params, graph, stream(graph), [x])


def test_a_tied_embedding_is_untied_first():
    apply, params = functools.partial(decoder, LLAMA), made(LLAMA)
    del params["head"]
    graph = ifjax.trace(apply, params, TOKENS)
    [name] = groups_by_kind(graph)["hidden"]
    with pytest.raises(
        ValueError, match=r"embedding: it reads .* that norm scales.*132 weights more"
    ):
        ifjax.rotate(apply, params, graph, name, [TOKENS])
    free = untie_decoder(params)
    np.testing.assert_array_equal(apply(free, TOKENS), apply(params, TOKENS))
    assert untie_decoder(free)["head"] is free["head"]
    even = {**params, "norm": np.ones_like(params["norm"])}  # nothing to fold into the head
    rotated = ifjax.rotate(apply, even, graph, name, [TOKENS]).params
    np.testing.assert_allclose(apply(rotated, TOKENS), apply(even, TOKENS), rtol=1e-4, atol=1e-5)


def test_groups_that_cannot_be_a_stream_are_refused():
    extra = ("attention_post_norm",)
    apply, params = functools.partial(decoder, GEMMA), made(GEMMA, extra)
    graph = ifjax.trace(apply, params, TOKENS)
    kinds = groups_by_kind(graph)
    with pytest.raises(ValueError, match="adds what does not turn with them, and scales channels"):
        ifjax.rotate(apply, params, graph, *kinds["hidden"], [TOKENS])
    with pytest.raises(ValueError, match=r"expected a group of one copy.* 2 x 2 copies"):
        ifjax.rotate(apply, params, graph, *kinds["value_dim"], [TOKENS])
    with pytest.raises(ValueError, match="elsewhere"):
        ifjax.rotate(apply, params, graph, "elsewhere", [TOKENS])


def test_a_graph_comes_third(unchecked):
    apply, params = functools.partial(decoder, LLAMA), made(LLAMA)
    with pytest.raises(TypeError, match=r"expected a graph, as ifjax.trace gives it"):
        ifjax.rotate(apply, params, "graph", "embedding", [TOKENS])


def test_what_is_wrongly_taken_to_turn_is_found_by_trying(monkeypatch):
    def wrong(walk, name):
        return dict.fromkeys(walk.full, TURNED), ()

    # Its own module: doctests import that once more, and pytest keeps theirs under the name.
    monkeypatch.setitem(inspect.unwrap(ifjax.rotate).__globals__, "find_bearings", wrong)
    params, x = {"in": normal(1, 5, D), "out": normal(2, D, 3)}, normal(3, 8, 5)
    graph = ifjax.trace(activation, params, x)
    with pytest.raises(ValueError, match="expected the same numbers with rotated channels"):
        ifjax.rotate(activation, params, graph, "in", [x])
