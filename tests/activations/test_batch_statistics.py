"""Batch norm statistics: against flax's train mode, and against pooled moments in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import ifjax
from ifjax.models.layers import batch_norm
from tests.graph.facts.test_norms import FORMS, VECTORS


class Residual(nn.Module):
    """A norm after a kernel with bias, and two that no kernel can take: on a sum, and jitted."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Dense(5)(x)
        h = nn.relu(batch_norm(train, name="first")(x))
        x = x + nn.Dense(5)(h)
        h = nn.jit(nn.BatchNorm)(use_running_average=not train, name="second")(x)
        return nn.Dense(2)(nn.relu(h))


@pytest.fixture(scope="module")
def residual():
    module = Residual()
    x = np.random.default_rng(0).normal(1.0, 3.0, (24, 4)).astype(np.float32)
    return module, module.init(jax.random.key(0), x), x


def test_one_batch_makes_eval_mode_what_train_mode_is(residual):
    module, variables, x = residual
    got = ifjax.reset_statistics(module.apply, variables, [(x,)])
    want, _ = module.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(module.apply(got, x), want, rtol=1e-5, atol=1e-5)
    assert np.abs(module.apply(variables, x) - want).max() > 0.1
    jax.tree.map(np.testing.assert_array_equal, got["params"], variables["params"])
    again = ifjax.reset_statistics(module.apply, got, [(x,)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, got)


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_batches_of_several_sizes_are_pooled(residual):
    """Of the first norm, whose input no other norm changes: the moments of all values together."""
    module, variables, x = residual
    got = ifjax.reset_statistics(module.apply, variables, iter([(x[:3],), (x[3:17],), (x[17:],)]))
    dense = variables["params"]["Dense_0"]
    h = x.astype(np.float64) @ np.asarray(dense["kernel"], np.float64) + dense["bias"]
    found = got["batch_stats"]["first"]
    np.testing.assert_allclose(found["mean"], h.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["var"], h.var(0), rtol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_every_way_of_writing_it_and_the_order_of_evaluation(name):
    """The slope may be computed from parameters before there is anything to normalise."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(7, 3, 6)), jnp.float32)
    p = {k: jnp.asarray(rng.uniform(0.5, 1.5, 6), jnp.float32) for k in VECTORS}
    got = ifjax.reset_statistics(lambda p, x: FORMS[name](x, p), p, [(x,)])
    np.testing.assert_allclose(got["mean"], np.mean(x, (0, 1)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["var"], np.var(x, (0, 1)), rtol=1e-5)
    assert got["scale"] is p["scale"]


def test_channels_in_front_half_precision_and_norms_after_a_loop():
    def apply(p, x):
        h = lax.scan(lambda h, _: (jnp.tanh(h), None), x, length=2)[0]
        mean, var = (p[k].reshape(-1, 1, 1) for k in ("mean", "var"))
        return (h - mean) / jnp.sqrt(var + 1e-3)

    x = np.random.default_rng(2).normal(size=(3, 4, 5, 6)).astype(np.float32)
    p = {"mean": jnp.zeros(4, jnp.bfloat16), "var": jnp.ones(4, jnp.bfloat16)}
    got = ifjax.reset_statistics(apply, p, [(x,)])
    h = np.tanh(np.tanh(x))
    assert got["var"].dtype == jnp.bfloat16
    np.testing.assert_allclose(got["mean"].astype(float), h.mean((0, 2, 3)), rtol=4e-3, atol=1e-4)
    np.testing.assert_allclose(got["var"].astype(float), h.var((0, 2, 3)), rtol=4e-3)


def normed(p, x):
    return (x - p["mean"]) / jnp.sqrt(p["var"] + 1e-3)


X = np.ones((2, 3), np.float32)
P = {"mean": jnp.zeros(3), "var": jnp.ones(3)}
SCANNED = {"mean": jnp.zeros((2, 3)), "var": jnp.ones((2, 3))}


@pytest.mark.parametrize(
    ("apply", "params", "batches", "error", "match"),
    [
        (lambda p, x: x * p["var"], P, [(X,)], ValueError, "batch norms .* found none"),
        (normed, P, [], ValueError, "at least one batch"),
        (normed, P, [(np.full_like(X, np.nan),)], ValueError, "mean: expected finite"),
        (lambda p, x: normed(p, jnp.tanh(normed(p, x))), P, [(X,)], ValueError, "one norm .* 2"),
        (
            lambda p, x: lax.scan(lambda h, q: (normed(q, h), None), x, p)[0],
            SCANNED,
            [(X,)],
            ValueError,
            "mean: the norm is inside of a loop",
        ),
    ],
    ids=["no norm", "no batch", "not finite", "shared", "in a loop"],
)
def test_errors(apply, params, batches, error, match):
    with pytest.raises(error, match=match):
        ifjax.reset_statistics(apply, params, batches)
