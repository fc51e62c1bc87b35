"""Metrics by name: what all of them promise."""

import math

import jax
import jax.numpy as jnp
import jaxtyping
import pytest

from ifjax import importance
from tests.importance.members import members

SCORES = [name for name in importance.names() if name != "reconstruction"]  # which has none


@pytest.mark.parametrize("name", SCORES)
def test_half_precision_is_scored_in_float32_and_float64_stays(name):
    key = jax.random.key(0)
    half = [jnp.asarray(x, jnp.bfloat16) for x in members(0)]
    assert importance.score(name, half, key).dtype == jnp.float32
    with jax.enable_x64(True):
        double = [jnp.asarray(x, jnp.float64) for x in members(0)]
        assert importance.score(name, double, key).dtype == jnp.float64


@pytest.mark.parametrize("name", SCORES)
def test_compiles_once(name):
    traces = []

    @jax.jit
    def scored(matrices, key):
        traces.append(name)
        return importance.score(name, matrices, key)

    for seed in range(2):
        scored([jnp.asarray(x) for x in members(seed)], jax.random.key(seed))
    assert len(traces) == 1


def test_what_is_no_metric_is_refused(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(TypeError, match=r"a name or an ifjax\.importance\.Metric, got 3"):
        importance.metric_of(3)


def test_unknown_names_list_the_known():
    with pytest.raises(ValueError, match=r"'l3'.*known: bn_scale, chip, .*, taylor"):
        importance.score("l3", [jnp.ones((2, 2))])


@pytest.mark.parametrize("name", SCORES)
def test_groups_without_or_with_unequal_members_are_refused(name):
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="at least one member"):
        importance.score(name, [], key)
    with pytest.raises(ValueError, match=r"\(3, 2\), \(4, 2\)"):
        importance.score(name, [jnp.ones((3, 2)), jnp.ones((4, 2))], key)


@pytest.mark.parametrize("p", [0, -1, math.nan])
def test_powers_that_are_not_positive_are_refused(p):
    with pytest.raises(ValueError, match="p > 0"):
        importance.magnitude([jnp.ones((2, 2))], p)
