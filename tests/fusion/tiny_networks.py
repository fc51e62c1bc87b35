"""Networks of a few neurons with random weights, and ways to fuse them."""

import functools

import jax
import numpy as np

import ifjax
from tests import reference

WIDTHS = {"mlp": (8, 6), "vgg": (6, 8), "res": (4, 6)}
# Batch norms with an eps that matters.
EPS = 1e-2
# Changes of single-precision outputs of order one.
SINGLE = 1e-5
METHODS = {
    "prune": {"method": "prune"},
    "reference": {"merge": "reference"},
    "preserving": {"merge": "preserving"},
}


def init(model, seed=0, dtype=np.float32):
    return reference.init(model, seed, WIDTHS[model], dtype)


@functools.cache
def traced(model):
    return reference.trace(model, init(model), EPS)


@functools.cache
def function(model):
    return jax.jit(reference.apply(model, EPS))


@functools.cache
def shrunk(model, plan):
    return jax.jit(ifjax.shrink(reference.apply(model, EPS), ifjax.FusionSpec(plan)))


def outputs(model, spec, small, dtype=np.float32):
    """Of the small network."""
    return np.asarray(shrunk(model, spec.structure)(small, reference.inputs(model, 1, dtype)))


def assert_same(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for path in expected:
        np.testing.assert_array_equal(got[path], expected[path], path)
        assert got[path].dtype == expected[path].dtype
