"""A network that permutes is the network that does not, with leaves in another order.

The second one is written by hand: what is computed of it, and put in order again, is what must be
computed of the first, to rounding.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ifjax
from tests.graph.laws import array, arrays, distance

ORDER = np.array([3, 1, 7, 0, 2, 5, 4, 6], np.int32)
BACK = np.argsort(ORDER)
TOLERANCE = 1e-9


def permuting(p, x):
    h = jax.nn.relu(x @ p["a"] + p["r"][None])[:, ORDER] * p["s"][None]
    return jnp.flip(jnp.tanh(h) @ p["c"], 1) @ p["b"]


def plain(p, x):
    return (jnp.tanh(jax.nn.relu(x @ p["a"] + p["r"][None]) * p["s"][None]) @ p["c"]) @ p["b"]


def straight(p):
    """Leaves of the network that permutes nothing."""
    return {**p, "s": p["s"][BACK], "c": p["c"][BACK], "b": p["b"][::-1]}


def crossed(p, *, but=()):
    """Inverse of `straight`; of groups that were cut nothing is permuted."""
    p = dict(p)
    if "a" not in but:
        p |= {"s": p["s"][ORDER], "c": p["c"][ORDER]}
    return p if "c" in but else p | {"b": p["b"][::-1]}


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


P, X = arrays(a=(3, 8), r=(8,), s=(8,), c=(8, 6), b=(6, 2)), array(40, 3)
with jax.enable_x64(True):
    GRAPHS = [ifjax.trace(permuting, P, X), ifjax.trace(plain, straight(P), X)]
CUTS = [0.4, {"a": 0.5}, {"c": 0.5}]
WAYS = [
    {"method": "prune"},
    {"method": "fuse", "merge": "reference"},
    {"method": "fuse", "merge": "preserving"},
    {"method": "fuse", "solver": "sinkhorn", "importance": "l2"},
]


def specs(*args, **kwargs):
    return [graph.spec(*args, **kwargs) for graph in GRAPHS]


def test_the_two_networks_are_one():
    assert distance(permuting(P, X), plain(straight(P), X)) < TOLERANCE
    assert distance(crossed(straight(P)), P) == 0
    assert GRAPHS[0].verify(permuting, P, X).ok


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way.values()))
def test_fused_and_pruned_alike(way):
    for cut in CUTS:
        one, two = specs(cut, **way)
        small, other = ifjax.fuse_params(P, one), ifjax.fuse_params(straight(P), two)
        assert distance(small, crossed(other, but=one.structure.widths)) < TOLERANCE
        got, want = ifjax.shrink(permuting, one)(small, X), ifjax.shrink(plain, two)(other, X)
        assert distance(got, want) < TOLERANCE
        full = ifjax.fuse_params(P, one, keep_shape=True)
        assert distance(full, crossed(ifjax.fuse_params(straight(P), two, keep_shape=True))) < 1e-9
        if way["method"] == "prune":
            assert distance(permuting(full, X), got) < TOLERANCE


def test_what_the_importance_of_data_says_is_of_the_same_neurons():
    batches = [(X, np.arange(40) % 2)]
    loss = lambda out, y: ((out - y[:, None]) ** 2).sum()  # noqa: E731
    for importance in ("taylor", "chip"):
        scores = []
        for f, p, spec in zip(
            (permuting, plain), (P, straight(P)), specs(0.5, importance=importance), strict=True
        ):
            given = [b[:1] for b in batches] if importance == "chip" else batches
            loss_fn = None if importance == "chip" else loss
            stats = ifjax.collect_stats(f, p, spec, given, loss_fn=loss_fn)
            scores.append(ifjax.neuron_scores(p, spec, stats=stats))
        assert distance(*scores) < TOLERANCE


@pytest.mark.promotes(dtypes="optax's adam mixes dtypes")
def test_states_of_an_optimizer_are_carried_alike():
    found = []
    for f, p, spec in zip((permuting, plain), (P, straight(P)), specs(0.5), strict=True):
        optimizer = optax.adam(1e-2)
        gradient = jax.grad(lambda p, f=f: (f(p, X) ** 2).mean())(jax.tree.map(jnp.asarray, p))
        _, state = optimizer.update(gradient, optimizer.init(p), p)
        found.append(ifjax.fuse_tree(state, spec, ifjax.transport_maps(p, spec)))
    assert distance(*found) < TOLERANCE


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_solved_alike(cut):
    one, two = specs(cut)
    small, _ = ifjax.compress(permuting, P, one, [X])
    other, _ = ifjax.compress(plain, straight(P), two, [X])
    assert distance(small, crossed(other, but=one.structure.widths)) < TOLERANCE


@pytest.mark.parametrize("keep", [6, {"a": 5}, {"c": 4}], ids=str)
def test_networks_are_fused_with_small_ones_alike(keep):
    one, two = specs(keep=keep)
    q = straight(P)
    small, other = ifjax.fuse_params(P, one), ifjax.fuse_params(q, two)
    for order in (slice(None), slice(None, None, -1)):
        models, given = [P, small][order], [None, one][order]
        got = ifjax.fuse_models(models, GRAPHS[0], specs=given)
        want = ifjax.fuse_models([q, other][order], GRAPHS[1], specs=[None, two][order])
        but = () if given[0] is None else one.structure.widths
        assert distance(got, crossed(want, but=but)) < TOLERANCE


@pytest.mark.parametrize("keep", [{"c": 5}, 5], ids=str)
def test_cut_twice_saved_and_loaded(keep, tmp_path):
    first = GRAPHS[0].spec(keep=keep)
    small = ifjax.fuse_params(P, first)
    again = ifjax.trace(ifjax.shrink(permuting, first), small, X)
    seconds = [graph.spec(keep=3) for graph in (ifjax.onward(GRAPHS[0], first), again)]
    smaller, same = (ifjax.fuse_params(small, second) for second in seconds)
    assert distance(smaller, same) == 0
    spec, other = (ifjax.compose(second, first) for second in seconds)
    assert spec.structure == other.structure
    want = ifjax.shrink(ifjax.shrink(permuting, first), seconds[1])(smaller, X)
    ifjax.save(tmp_path / "small", smaller, spec)
    loaded, found = ifjax.load(tmp_path / "small")
    assert found == spec
    assert distance(ifjax.shrink(permuting, spec)(loaded, X), want) < TOLERANCE
