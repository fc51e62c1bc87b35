"""Graphs of shrunk networks against tracing them."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import ifjax
from ifjax.structure import axis as ex
from tests import reference

WIDTHS = {"mlp": (12, 9), "vgg": (6, 10), "res": (4, 8)}


@functools.cache
def traced(model):
    return reference.trace(model, reference.init(model, 0, WIDTHS[model]))


def anonymous(graph):
    """The graph with its groups numbered: names may hold positions, which move."""
    names = {g.name: str(i) for i, g in enumerate(graph.groups)}
    groups = [dataclasses.replace(g, name=names[g.name]) for g in graph.groups]
    axes = {x.path: tuple(ex.rename(a, names) for a in x.axes) for x in graph.structure.leaves}
    products = [tuple(ex.rename(e, names) for e in p) for p in graph.structure.products]
    return groups, axes, products, graph.structure.norms, graph.pinned, graph.unused


def split(p, x):
    """Two halves of one kernel's outputs, which go different ways; and a flattened image."""
    y = x @ p["w"]
    a, b = jax.nn.relu(y[..., :8]), jax.nn.tanh(y[..., 8:])
    z = (a @ p["u"]).reshape(x.shape[0], -1)
    return z @ p["v"] + b.sum(1) @ p["o"]


def split_params():
    shapes = {"w": (3, 14), "u": (8, 4), "v": (20, 2), "o": (6, 2)}
    rng = np.random.default_rng(0)
    return {k: rng.normal(size=n).astype(np.float32) for k, n in shapes.items()}


@pytest.mark.parametrize("model", ["mlp", "vgg", "res", "split"])
def test_onward_is_the_graph_of_the_shrunk_function(model):
    if model == "split":
        apply, params, x = split, split_params(), np.ones((2, 5, 3), np.float32)
    else:
        apply, x = reference.apply(model), reference.inputs(model)
        params = reference.init(model, 0, WIDTHS[model])
    graph = ifjax.trace(apply, params, x)
    spec = graph.spec(0.4, method="prune")
    small = ifjax.fuse_params(params, spec)
    again = ifjax.trace(ifjax.shrink(apply, spec), small, x)
    got = ifjax.onward(graph, spec)
    mine, theirs = anonymous(got), anonymous(again)
    assert [g.name for g in got.groups] == [g.name for g in graph.groups]
    assert mine[:4] == theirs[:4]
    assert [(p.path, p.axis, p.size) for p in mine[4]] == [
        (p.path, p.axis, p.size) for p in theirs[4]
    ]
    assert mine[5] == theirs[5]


def test_onward_refuses_another_network():
    with pytest.raises(ValueError, match=r"made from another graph"):
        ifjax.onward(traced("mlp"), traced("vgg").spec(0.5))
