"""Dimensions of queries and keys, by the products that they give, against brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax.models import DecoderConfig, DecoderWidths, decoder, init_decoder
from ifjax.reconstruction.bilinear import (
    ProductGrams,
    entrywise,
    middle,
    product_error,
    subspaces,
)

HEADS, DIM, KEPT = 2, 6, 3


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[0])


def brute_force(pairs, shift):
    """M with the least squared error of Q M K' against P R', by one row for every entry."""
    rows = [np.kron(q, k) for q, k, _, _ in pairs]
    wanted = [(p @ r.T).reshape(-1) for _, _, p, r in pairs]
    m = pairs[0][0].shape[1]
    rows.append(np.sqrt(shift) * np.eye(m * m))
    wanted.append(np.sqrt(shift) * np.eye(m).reshape(-1))
    found = np.linalg.lstsq(np.concatenate(rows), np.concatenate(wanted), rcond=None)[0]
    return found.reshape(m, m)


def mean_product(pairs):
    traces = sum((q**2).sum() * (k**2).sum() for q, k, _, _ in pairs)
    return traces / pairs[0][0].shape[1] ** 2


def test_the_matrix_between_is_the_least_squares_one():
    n, kept, entry = 5, np.array([[0, 2, 3], [1, 2, 4]]), np.array([0, 1, 0, 1])
    full = [[normal(10 * b + i, 7, n) for i in range(4)] for b in range(4)]
    times = lambda i, j: np.stack([x[i].T @ x[j] for x in full])  # noqa: E731
    products = np.stack([p @ r.T for _, _, p, r in full])
    squares, totals, counts = (products**2).sum((1, 2)), products.sum((1, 2)), np.full(4, 49.0)
    sides = times(0, 0), times(1, 1), times(0, 2), times(1, 3)
    whole = ProductGrams(*sides, squares, totals, counts, entry)
    grams = whole.kept(kept)
    found = middle(grams, 2, 0.1)
    error = 0.0
    for e in range(2):
        own = [
            (q[:, kept[e]], k[:, kept[e]], p, r)
            for (q, k, p, r), i in zip(full, entry, strict=True)
            if i == e
        ]
        np.testing.assert_allclose(found[e], brute_force(own, 0.1 * mean_product(own)), rtol=1e-8)
        error += sum(((q @ found[e] @ k.T - p @ r.T) ** 2).sum() for q, k, p, r in own)
    np.testing.assert_allclose(product_error(grams, found), error)
    np.testing.assert_allclose(whole.spread, ((products - products.mean()) ** 2).sum())
    columns = [[np.outer(q[:, i], k[:, i]) for i in range(n)] for q, k, _, _ in full[::2]]
    want = sum(np.einsum("iab,jab->ij", np.stack(c), np.stack(c)) for c in columns)
    np.testing.assert_allclose(entrywise(whole, 2)[0], want)


def test_subspaces_of_one_pair_are_those_of_its_singular_vectors():
    q, k = normal(1, 20, 6), normal(2, 30, 6)
    square = lambda x: (x.T @ x)[None]  # noqa: E731
    product = q @ k.T
    sums = (np.array([x]) for x in ((product**2).sum(), product.sum(), 600.0))
    square_sum, total, count = sums
    sides = square(q), square(k), square(q), square(k)
    grams = ProductGrams(*sides, square_sum, total, count, np.zeros(1, int))
    left, right = subspaces(grams, 1, 3)
    none = np.eye(3)[None]
    tail = (np.linalg.svd(product)[1][3:] ** 2).sum()
    np.testing.assert_allclose(product_error(grams.moved(left, right), none), tail, rtol=1e-4)
    best = middle(grams.moved(left, right), 1, 1e-9)
    np.testing.assert_allclose(best, none, atol=1e-2)


def same(x):
    return x


def attention(acts):
    def apply(p, x):
        q, k = (
            act(jnp.einsum("btc,chd->bthd", x, p[n]) + p[n + "_bias"])
            for n, act in zip("qk", acts, strict=True)
        )
        logits = jnp.einsum("bthd,bshd->bhts", q, k) / 2
        return jnp.einsum("bhts,bsc->bthc", jax.nn.softmax(logits, -1), x)

    return apply


def case(*acts):
    params = {n: normal(i, 8, HEADS, DIM) for i, n in enumerate("qk")}
    params |= {f"{n}_bias": normal(i + 5, HEADS, DIM) for i, n in enumerate("qk")}
    x = normal(9, 16, 5, 8) * 4
    apply = attention(acts)
    graph = ifjax.trace(apply, params, x)
    [name] = [g.name for g in graph.groups if g.size == DIM]
    return apply, params, x, name, graph.spec({name: 0.5})


@pytest.mark.parametrize("linear", ["q", "k"])
def test_logits_are_those_nearest_to_the_dense_ones(linear):
    """One side is rectified: the other one takes what stands between them."""
    acts = (same, jax.nn.relu) if linear == "q" else (jax.nn.relu, same)
    with jax.enable_x64(True):
        apply, params, x, name, spec = case(*acts)
        small, report = ifjax.compress(apply, params, spec, [x])
        [solved] = report.solved
        assert solved.sites == (linear, f"{linear}_bias")
        assert solved.after < 0.95 * solved.before
        for head, index in enumerate(report.kept[name]):
            q, k = (
                np.asarray(act(x @ params[n][:, head] + params[n + "_bias"][head]))
                for n, act in zip("qk", acts, strict=True)
            )
            pairs = list(zip(q[..., index], k[..., index], q, k, strict=True))
            m = brute_force(pairs, solved.shrinkage * mean_product(pairs))
            m = m if linear == "q" else m.T
            for leaf in (linear, f"{linear}_bias"):
                want = params[leaf][..., head, index] @ m
                np.testing.assert_allclose(small[leaf][..., head, :], want, 1e-5, 1e-8)
            [other] = {*"qk"} - {linear}
            np.testing.assert_allclose(small[other][:, head], params[other][:, head, index])


def test_both_sides_are_turned_where_that_is_better():
    apply, params, x, name, spec = case(same, same)
    small, report = ifjax.compress(apply, params, spec, [x])
    [solved] = report.solved
    assert solved.sites == ("q", "q_bias", "k", "k_bias")
    scores = {name: (np.arange(DIM) == report.kept[name][..., None]).any(-2).astype(np.float32)}
    _, chosen = ifjax.compress(apply, params, spec, [x], scores=scores)
    np.testing.assert_array_equal(chosen.kept[name], report.kept[name])
    assert solved.held_after < chosen.solved[0].held_after
    logits = []
    for p in (params, small):
        q, k = (np.einsum("btc,chd->bthd", x, p[n]) + p[f"{n}_bias"] for n in "qk")
        logits.append(np.einsum("bthd,bshd->bhts", q, k))
    error = ((logits[1] - logits[0]) ** 2).mean() / logits[0].var()
    np.testing.assert_allclose(error, solved.after, rtol=1e-3)


@pytest.mark.parametrize("scored", [False, True])
def test_what_is_not_linear_is_not_mixed(scored):
    """Rectified keys and queries are chosen by their products, and stay what they were."""
    apply, params, x, name, spec = case(jax.nn.relu, jax.nn.relu)
    scores = {name: np.tile(np.arange(DIM), (HEADS, 1))} if scored else None
    small, report = ifjax.compress(apply, params, spec, [x], scores=scores)
    assert not report.solved
    [chosen] = report.chosen
    assert chosen.how == ("importance" if scored else "what it multiplies")
    for head, index in enumerate(report.kept[name]):
        np.testing.assert_allclose(small["q"][:, head], params["q"][:, head, index], rtol=1e-6)
    if scored:
        np.testing.assert_array_equal(report.kept[name], [[3, 4, 5]] * HEADS)


def test_given_dimensions_are_corrected_too():
    apply, params, x, name, spec = case(same, same)
    scores = {name: np.tile(np.arange(DIM), (HEADS, 1))}
    with pytest.warns(UserWarning, match="q_bias.*less than a tenth is left"):
        small, report = ifjax.compress(apply, params, spec, [x], scores=scores)
    [solved] = report.solved
    assert solved.sites == ("q", "q_bias", "k", "k_bias")
    assert solved.after < solved.before
    index = np.asarray(report.kept[name])[0]
    np.testing.assert_array_equal(small["k"][:, 0], params["k"].astype(np.float32)[:, 0, index])
    assert small["q"].shape == (8, HEADS, KEPT)


def test_queries_that_share_keys_are_turned_with_them():
    """Two queries for every key: their products with it are restored by one matrix."""
    params = {"q": normal(1, 8, 2 * HEADS, DIM), "k": normal(2, 8, HEADS, DIM)}
    x = (normal(9, 16, 5, 8) * 4).astype(np.float32)

    def logits(p, x):
        q = jnp.einsum("btc,chd->bthd", x, p["q"]).reshape(*x.shape[:2], HEADS, 2, -1)
        k = jnp.einsum("btc,chd->bthd", x, p["k"])
        return jnp.einsum("btkrd,bskd->bkrts", q, k)

    def apply(p, x):
        return jnp.einsum("bkrts,bsc->btkrc", jax.nn.softmax(logits(p, x), -1), x)

    graph = ifjax.trace(apply, params, x)
    [name] = [g.name for g in graph.groups if g.size == DIM]
    small, report = ifjax.compress(apply, params, graph.spec({name: 0.5}), [x])
    [solved] = report.solved
    assert {*solved.sites} == {"q", "k"}
    assert solved.after < solved.before
    want = logits(params, x)
    error = jnp.mean((logits(small, x) - want) ** 2) / jnp.var(want)
    np.testing.assert_allclose(error, solved.after, rtol=1e-3)


def test_activations_that_are_not_finite_are_told():
    apply, params, x, _, spec = case(same, same)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"q.* not finite"):
        ifjax.compress(apply, params, spec, [x])


def test_what_only_prints_is_left_out():
    apply, params, x, _, spec = case(same, same)

    def loud(p, x):
        jax.debug.callback(lambda mean: None, x.mean())
        return apply(p, x)

    small, _ = ifjax.compress(apply, params, spec, [x])
    also, _ = ifjax.compress(loud, params, spec, [x])
    jax.tree.map(np.testing.assert_array_equal, small, also)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_pairs_that_positions_turn_are_kept_by_what_both_multiply(layout):
    """Where the frequencies are a leaf; they go with their pairs."""
    params = {n: normal(i, 8, HEADS, DIM).astype(np.float32) for i, n in enumerate("qk")}
    params["turns"] = np.float32([1.0, 0.3, 0.1])
    params["q"][..., [1, 4] if layout == "half" else [2, 3]] *= 30  # l1 would keep the pair
    params["k"][..., [1, 4] if layout == "half" else [2, 3]] *= 1e-3
    x = (normal(9, 16, 5, 8) * 4).astype(np.float32)

    def turned(x, turns):
        angles = jnp.arange(x.shape[1], dtype=x.dtype)[:, None, None] * turns
        c, s = jnp.cos(angles), jnp.sin(angles)
        if layout == "half":
            a, b = jnp.split(x, 2, -1)
            return jnp.concatenate([a * c - b * s, b * c + a * s], -1)
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.stack([a * c - b * s, b * c + a * s], -1).reshape(x.shape)

    def logits(p, x):
        q, k = (turned(jnp.einsum("btc,chd->bthd", x, p[n]), p["turns"]) for n in "qk")
        return jnp.einsum("bthd,bshd->bhts", q, k)

    def apply(p, x):
        return jax.nn.softmax(logits(p, x), -1) @ x[:, None]

    graph = ifjax.trace(apply, params, x)
    [group] = [g for g in graph.groups if "turns" in {m.path for m in g.members}]
    assert (group.size, group.batch) == (DIM // 2, ())
    spec = graph.spec({group.name: 2 / 3})
    small, report = ifjax.compress(apply, params, spec, [x])
    assert report.chosen[0].how == "what it multiplies"
    assert small["turns"].shape == (1,)
    errors = []
    for i in range(3):
        one = ifjax.take(params, spec, {group.name: np.array([i])})
        errors.append(float(jnp.square(logits(one, x) - logits(params, x)).sum()))
    assert report.kept[group.name].tolist() == [int(np.argmin(errors))]
    assert report.kept[group.name].tolist() != [1]


def test_pairs_of_a_decoder_whose_frequencies_are_computed_are_pinned():
    """They go by the index, so that none can be left out; the graph and the refusal say so."""
    params = init_decoder(jax.random.key(0), DecoderWidths(11, 8, 16, 4, 2, 4, 1), scan=False)
    tokens = np.zeros((1, 3), int)
    graph = ifjax.trace(lambda p, x: decoder(DecoderConfig(0.5), p, x), params, tokens)
    reasons = {(p.path, p.axis): p.reason for p in graph.pinned}
    for name in ("query", "key"):
        assert "values depend on the index" in reasons[f"layers/0/{name}", 2]
    with pytest.raises(ValueError, match=r"matches none of .*lists all, and what is pinned"):
        graph.spec({"layers/0/query (head_dim)": 0.5})
