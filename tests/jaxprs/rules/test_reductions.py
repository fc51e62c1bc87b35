"""Reductions let all axes pass; what they run over may be seen by the result."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import ifjax
from tests.graph.laws import array, arrays, between, hold


@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_across_the_neurons_passes_the_group():
    def across(h):
        return h.sum(0, keepdims=True) + h.prod(0) + h.max(0) - h.min(0)

    hold(*between(across), groups={"a": 8})


REDUCED = {
    "sum": lambda h: h - h.sum(1, keepdims=True),
    "max": lambda h: h - h.max(1, keepdims=True),
    "prod": lambda h: h * (1 + h.prod(1, keepdims=True)),
    "all": lambda h: h * (1 + (h > -9).all(1, keepdims=True)),
    "logsumexp": lambda h: h - jax.nn.logsumexp(h, axis=1, keepdims=True),
    "softmax": lambda h: jax.nn.softmax(h, axis=1),
}


@pytest.mark.parametrize("case", REDUCED)
@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_over_the_neurons_keeps_the_group(case):
    (group,) = hold(*between(REDUCED[case]), groups={"a": 8}).groups
    assert group.exact == (case == "sum")


def test_normalising_a_kernel():
    """Weight normalisation leaves the outputs exact; a norm over the whole kernel does not."""

    def by_column(p, x):
        w = p["a"] / jnp.linalg.norm(p["a"], axis=0)
        return jnp.tanh(x @ w) @ p["b"]

    def whole(p, x):
        return jnp.tanh(x @ (p["a"] / jnp.sqrt((p["a"] ** 2).sum()))) @ p["b"]

    p = arrays(a=(3, 6), b=(6, 2))
    with jax.enable_x64(True):  # zeroing a column gives 0/0
        (group,) = ifjax.trace(by_column, p, array(4, 3)).groups
    assert (group.name, group.size, group.exact) == ("a", 6, True)
    (group,) = hold(whole, p, array(4, 3), groups={"a": 6}).groups
    assert not group.exact
