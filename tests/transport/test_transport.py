import math

import hypothesis.strategies as st
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from ifjax.transport import transport

NORMS = [1, 1.5, 2, 7, math.inf]
seeds = st.integers(0, 2**32 - 1)


# Marginals and targets --------------------------------------------------------------------------


def test_marginals_sum_to_one_and_follow_the_scores():
    scores = jnp.asarray([1.0, 0.0, 3.0, 4.0])
    np.testing.assert_allclose(transport.marginal("uniform", scores), np.full(4, 0.25))
    mass = transport.marginal("importance", scores)
    np.testing.assert_allclose(mass, [1 / 8, 0, 3 / 8, 4 / 8], atol=3e-7)
    assert mass[1] > 0
    np.testing.assert_allclose(mass.sum(), 1, rtol=1e-6)


@pytest.mark.parametrize("scores", [np.zeros(3), -np.ones(3)])
def test_scores_that_are_nowhere_positive_give_the_uniform_marginal(scores):
    mass = transport.marginal("importance", jnp.asarray(scores, jnp.bfloat16))
    np.testing.assert_allclose(mass, np.full(3, 1 / 3), rtol=1e-6)
    assert mass.dtype == jnp.float32


def test_unknown_marginals_list_the_known():
    with pytest.raises(ValueError, match=r"'mass'.*known: uniform, importance"):
        transport.marginal("mass", jnp.ones(2))


# Solving ----------------------------------------------------------------------------------------


def test_unknown_solvers_list_the_known():
    with pytest.raises(ValueError, match=r"'emd'.*known: auto, exact, nearest, sinkhorn"):
        transport.solve(
            jnp.ones((4, 2)), jnp.full(4, 1 / 4), jnp.full(2, 1 / 2), jnp.arange(2), solver="emd"
        )


def test_shapes_that_disagree_are_refused(monkeypatch):
    # The annotations, which the tests execute, would find it first.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    cost, a, b, targets = jnp.ones((12, 6)), jnp.ones(12), jnp.ones(6), jnp.arange(6)
    with pytest.raises(ValueError, match=r"\(12, 6\), \(6,\), \(12,\), \(6,\)"):
        transport.solve(cost, b, a, targets)
