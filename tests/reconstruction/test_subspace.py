"""The subspace of a stream from which its consumers lose least, beside least squares and others."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder
from ifjax.models.decoder_widths import unstack_layers
from ifjax.reconstruction.subspace import least_read, loss

D, KEPT = 12, 8
CONSUMERS = {"query": ("query", "key", "value"), "gate": ("gate", "up"), "head": ("head",)}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def lost(inputs, weights, kept):
    """What least squares on some directions leave of each place's results, relative; the mean."""
    found = []
    for x, ws in zip(inputs, weights, strict=True):
        errors = []
        for w in ws:
            rest = np.linalg.lstsq(x @ kept, x @ w, rcond=None)[0]
            errors.append(np.square(x @ kept @ rest - x @ w).sum() / np.square(x @ w).sum())
        found.append(np.mean(errors))
    return float(np.mean(found))


def places(seed):
    """Inputs of three places, some directions large in all, and weights that read all alike."""
    spread = np.diag(np.geomspace(10, 0.3, D)) @ np.linalg.qr(normal(seed, D, D))[0]
    inputs = [
        normal(seed + i, 200, D) @ (spread + 0.1 * normal(seed + 5 + i, D, D)) for i in (1, 2, 3)
    ]
    weights = [[normal(seed + 10 + i, D, 5), normal(seed + 20 + i, D, 3)] for i in range(3)]
    return [x.astype(np.float64) for x in inputs], weights


@pytest.mark.parametrize("seed", [0, 100])
def test_no_other_subspace_near_or_far_loses_less(seed):
    inputs, weights = places(seed)
    grams = np.stack([x.T @ x / len(x) for x in inputs])
    reads = np.stack(
        [
            np.mean([w @ w.T / np.trace(w.T @ c @ w) for w in ws], 0)
            for c, ws in zip(grams, weights, strict=True)
        ]
    )
    gone = least_read(grams, reads, D - KEPT)
    np.testing.assert_allclose(gone.T @ gone, np.eye(D - KEPT), atol=1e-12)
    basis = np.linalg.qr(gone, mode="complete")[0]
    kept, found = basis[:, D - KEPT :], lost(inputs, weights, basis[:, D - KEPT :])
    axes = np.linalg.eigh(grams.mean(0))[1][:, ::-1]
    assert found < 0.95 * lost(inputs, weights, axes[:, :KEPT])
    random = np.random.default_rng(seed)
    for size in (0.01, 0.1, 10):
        for _ in range(30):
            other = kept + size * random.normal(size=kept.shape)
            assert found < (1 + 1e-5) * lost(inputs, weights, other)


def test_a_large_direction_that_nobody_reads_goes():
    grams = np.diag(np.arange(1.0, 6)[::-1] ** 2)[None].repeat(2, 0)
    weights = normal(1, 5, 7)
    weights[0] = 0
    gone = least_read(grams, (weights @ weights.T)[None].repeat(2, 0), 1)
    np.testing.assert_allclose(np.abs(gone[:, 0]), np.eye(5)[0], atol=1e-6)


def test_it_stays_where_a_norm_divides_by_it():
    """At 25 of 55 a quarter of it is more than what the least direction gives to its consumers."""
    gram = np.diag(np.arange(1.0, 6)[::-1] ** 2)
    weights = normal(1, 5, 7)
    weights[0] = 0
    read = weights @ weights.T / np.trace(weights.T @ gram @ weights)
    both = gram[None].repeat(2, 0), read[None].repeat(2, 0), 1
    assert np.abs(least_read(*both)[0, 0]) > 1 - 1e-6
    assert np.abs(least_read(*both, energy=np.full(2, 0.25))[0, 0]) < 0.1


def test_a_stream_of_one_direction_stays_whole():
    gone = least_read(np.ones((1, 6, 6)), np.ones((1, 6, 6)), 3)
    np.testing.assert_allclose(np.ones(6) @ gone, 0, atol=1e-6)


def test_directions_that_no_input_reaches_cost_nothing():
    span = normal(1, D, KEPT)
    x = normal(2, 100, KEPT) @ span.T
    gone = least_read((x.T @ x / len(x))[None], np.eye(D)[None], D - KEPT)
    assert np.abs(x @ gone).max() < 1e-3 * np.abs(x).max()


def test_rounding_of_float32_makes_it_no_worse():
    """Of a stream of low rank beside one large direction, whose rounding is more than the rest."""
    x = normal(0, 400, 40) @ np.diag([300, *np.ones(39)]) @ np.linalg.qr(normal(1, 96, 40))[0].T
    weights = normal(2, 96, 7)
    grams = [(x.T @ x / 400)[None], (x.astype(np.float32).T @ x.astype(np.float32) / 400)[None]]
    gone = [least_read(gram, (weights @ weights.T)[None], 70) for gram in grams]
    left = [lost([x], [[weights]], np.linalg.qr(g, mode="complete")[0][:, 70:]) for g in gone]
    assert left[1] < 1.1 * left[0] + 1e-6


def test_a_place_of_zeros_counts_nothing():
    grams = np.stack([np.diag([5.0, 4, 3, 2, 1, 0.5]), np.zeros((6, 6))])
    reads = np.stack([np.diag([0.0, 1, 1, 1, 1, 1]), 1e6 * np.diag([1.0, 1, 1, 1, 1, 0])])
    found = least_read(grams, reads, 1, energy=np.zeros(2))
    np.testing.assert_allclose(np.abs(found[:, 0]), np.eye(6)[0], atol=1e-6)


def test_the_gradient_is_that_of_differences():
    inputs, weights = places(7)
    terms = [(np.linalg.inv(x.T @ x), w @ w.T) for x, (w, _) in zip(inputs, weights, strict=True)]
    flat = normal(8, D * 3)
    differences = optimize.approx_fprime(flat, lambda x: loss(terms, x.reshape(D, 3))[0], 1e-6)
    np.testing.assert_allclose(loss(terms, flat.reshape(D, 3))[1], differences, rtol=1e-3)


def blocks(p, x, is_normed):
    """Three blocks, a head that reads what the last of them reads, and one that reads the end."""

    def norm(h):
        return h * jax.lax.rsqrt(jnp.mean(h * h, -1, keepdims=True)) if is_normed else h

    h = x @ p["embed"]
    for i in range(3):
        y = norm(h)
        h = h + jnp.tanh(y @ p[f"up{i}"]) @ p[f"down{i}"]
    return norm(h) @ p["head"], y @ p["early"]


@pytest.mark.parametrize("is_normed", [False, True])
def test_ends_count_as_much_as_all_that_comes_back(is_normed):
    sides = {"embed": (9, D), "early": (D, 3), "head": (D, 4)}
    sides |= {f"up{i}": (D, 7) for i in range(3)} | {f"down{i}": (7, D) for i in range(3)}
    params = {k: normal(i, *v).astype(np.float32) for i, (k, v) in enumerate(sides.items())}
    x = normal(20, 64, 9).astype(np.float32)
    apply = functools.partial(blocks, is_normed=is_normed)
    graph = ifjax.trace(apply, params, x)
    name = next(g.name for g in graph.groups if g.size == D)
    found = ifjax.rotate(apply, params, graph, name, [x], kept=KEPT)
    seen = ifjax.collect_moments(apply, params, [x])
    order, shares = ["up0", "up1", "up2", "early", "head"], np.array([1, 1, 1, 1.5, 1.5])
    grams = np.stack([np.asarray(seen[k].gram[0] / seen[k].count, np.float64) for k in order])
    squares = [params[k].astype(np.float64) @ params[k].T for k in order]
    reads = np.stack([m / (m * c).sum() for m, c in zip(squares, grams, strict=True)])

    def apart(shares, energy):
        gone = least_read(grams, reads * shares[:, None, None], D - KEPT, energy * shares)
        return np.abs(onto - gone @ gone.T).max()

    onto = found.rotation[:, KEPT:] @ found.rotation[:, KEPT:].T
    energy, other = (0.25, 0.0) if is_normed else (0.0, 0.25)
    assert apart(shares, energy) < 0.01
    assert min(apart(shares, other), apart(np.ones(5), energy)) > 0.03, "the test can tell"


def test_a_decoder_rotated_for_a_width():
    widths = DecoderWidths(11, hidden=D, ffn=10, query_heads=4, kv_heads=2, head_dim=4, layers=2)
    params = unstack_layers(init_decoder(jax.random.key(0), widths, tied=False))
    apply = functools.partial(decoder, DecoderConfig(0.5))
    tokens = np.random.default_rng(0).integers(0, 11, (16, 8)).astype(np.int32)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        graph = ifjax.trace(apply, params, tokens)
        name = next(g.name for g in graph.groups if g.size == D)
        found = ifjax.rotate(apply, params, graph, name, [tokens], kept=KEPT)
        plain = ifjax.rotate(apply, params, graph, name, [tokens])
        np.testing.assert_allclose(apply(found.params, tokens), apply(params, tokens), atol=1e-9)
        moments = ifjax.collect_moments(apply, found.params, [tokens])
        found, plain = (
            x._replace(params=jax.tree.map(np.asarray, x.params)) for x in (found, plain)
        )
    np.testing.assert_allclose(found.rotation @ found.rotation.T, np.eye(D), atol=1e-12)
    read = [*(f"layers/{i}/{first}" for i in range(2) for first in ("query", "gate")), "head"]
    grams = [np.asarray(moments[path].gram[0] / moments[path].count) for path in read]
    parts = [np.mean(grams, 0)[at, at] for at in (slice(KEPT), slice(KEPT, D))]
    for part, energy in zip(parts, np.split(found.energy, [KEPT]), strict=True):
        np.testing.assert_allclose(part, np.diag(energy), atol=1e-9)
        assert (np.diff(energy) <= 0).all()

    def left(rotated):
        inputs, weights = [], []
        for path, gram in zip(read, grams, strict=True):
            turned = rotated.rotation.T @ found.rotation
            inputs.append(np.linalg.cholesky(turned @ gram @ turned.T + 1e-12 * np.eye(D)).T)
            own, leaf = path.rpartition("/")[::2]
            layer = rotated.params["layers"][int(own[-1])] if own else rotated.params
            weights.append([np.reshape(layer[k], (D, -1)) for k in CONSUMERS[leaf]])
        return lost(inputs, weights, np.eye(D)[:, :KEPT])

    assert left(found) < 0.9 * left(plain)
    spec = graph.spec({name: (D - KEPT) / D}, method="prune", importance="reconstruction")
    scores = {name: np.arange(D, 0, -1)}
    _, report = ifjax.compress(apply, found.params, spec, [tokens], scores=scores)
    assert report.kept[name].tolist() == [*range(KEPT)]


@pytest.mark.parametrize("kept", [0, D, -1])
def test_a_width_that_is_none(kept):
    params = {"embed": np.ones((4, D), np.float32), "out": np.ones((D, 3), np.float32)}
    apply = lambda p, x: x @ p["embed"] @ p["out"]  # noqa: E731
    x = np.ones((8, 4), np.float32)
    graph = ifjax.trace(apply, params, x)
    with pytest.raises(ValueError, match="embed: expected kept from 1 to 11, got"):
        ifjax.rotate(apply, params, graph, "embed", [x], kept=kept)
