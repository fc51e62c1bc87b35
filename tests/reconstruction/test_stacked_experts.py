"""Stacks of stacks: layers of experts, in every way to write them, are what lists of them are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import ifjax

pytestmark = pytest.mark.usefixtures("unchecked")

LAYERS, EXPERTS = 2, 3


def normal(seed, *shape):
    found = np.random.default_rng(seed).normal(size=shape) / np.sqrt(shape[-2])
    return found.astype(np.float32)


PARAMS = {"w1": normal(0, LAYERS, EXPERTS, 5, 8), "w2": normal(1, LAYERS, EXPERTS, 8, 5)}
X = normal(2, 64, EXPERTS, 5)


def layer(x, w):
    return x + jnp.einsum("beh,ehd->bed", jax.nn.relu(jnp.einsum("bed,edh->beh", x, w[0])), w[1])


def listed(p, x):
    for w in zip(p["w1"], p["w2"], strict=True):
        x = layer(x, w)
    return x


def looped(p, x):
    for i in range(LAYERS):
        x = layer(x, (p["w1"][i], p["w2"][i]))
    return x


def scanned(p, x):
    return lax.scan(lambda h, w: (layer(h, w), None), x, (p["w1"], p["w2"]))[0]


def one_by_one(p, x):
    for i in range(LAYERS):
        parts = [
            x[:, e] + jax.nn.relu(x[:, e] @ p["w1"][i, e]) @ p["w2"][i, e] for e in range(EXPERTS)
        ]
        x = jnp.stack(parts, 1)
    return x


def also_as_a_whole(p, x):
    """Where its slices meet."""
    h = jax.nn.relu(jnp.einsum("bed,ledh->bleh", x, p["w1"]))
    return looped(p, x) + jnp.einsum("bleh,lehd->bed", h, p["w2"])


def compressed(f, p):
    spec = ifjax.trace(f, p, X).spec(0.5, importance="reconstruction")
    return ifjax.compress(f, p, spec, [X])


@pytest.mark.parametrize("f", [looped, scanned])
def test_layers_of_experts_are_chosen_and_solved_for_one_by_one(f):
    lists = {k: [*v] for k, v in PARAMS.items()}
    wanted, report = compressed(listed, lists)
    found, other = compressed(f, PARAMS)
    assert len(other.solved) == len(report.solved) > 0
    for k in PARAMS:
        np.testing.assert_allclose(found[k], np.stack(wanted[k]), rtol=2e-3, atol=2e-4)


def test_experts_that_are_read_one_by_one_are_solved_for():
    """Each with a shrinkage of its own."""
    small, report = compressed(one_by_one, PARAMS)
    assert small["w1"].shape == (LAYERS, EXPERTS, 5, 4)
    assert len({site for one in report.solved for site in one.sites}) == LAYERS * EXPERTS * 2 - 3
    assert not report.follows


def test_what_is_read_as_a_whole_too_is_refused():
    with pytest.raises(ValueError, match=r"w1: its slices are read one by one, and as a whole too"):
        compressed(also_as_a_whole, PARAMS)


def test_leaves_of_numpy_in_double_precision_are_not_altered_by_that():
    lists = jax.tree.map(lambda x: x.astype(np.float64), {k: [*v] for k, v in PARAMS.items()})
    spec = ifjax.trace(listed, lists, X).spec(0.5, importance="reconstruction")
    altered = {**lists, "w2": [lists["w2"][0], 0 * lists["w2"][1]]}
    _, report = ifjax.compress(listed, lists, spec, [X], altered=altered)
    assert [path for path, why in report.follows if why == "it was given"] == ["w2/1"]
    assert report.solved
