"""Specs as values: equality, hash, JSON, shapes and counts."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ifjax
from ifjax import FusionSpec
from ifjax.spec.widths import kept_neurons


def network(p, x):
    """Dense, a fused gate, batch norm, two heads: atoms, sums and products."""
    h = x @ p["a"]
    h = (h - p["mean"]) * (jax.lax.rsqrt(p["var"] + 1e-5) * p["scale"]) + p["offset"]
    h = jax.nn.silu(h).reshape(x.shape[0], 2, 4)
    h = jnp.einsum("nhd,hde->ne", h, p["m"])
    return (h[:, :3] * h[:, 3:]) @ p["b"] + p["count"]


SHAPES = {"a": (5, 8), "m": (2, 4, 6), "b": (3, 2)} | dict.fromkeys(
    ("mean", "var", "scale", "offset"), (8,)
)
PARAMS = {
    k: jnp.asarray(np.random.default_rng(i).uniform(0.5, 1, s), jnp.float32)
    for i, (k, s) in enumerate(SHAPES.items())
} | {"count": jnp.int32(3)}
X = jnp.ones((4, 5))


@pytest.fixture(scope="module")
def graph():
    return ifjax.trace(network, PARAMS, X)


SPECS = {
    "fuse": lambda g: g.spec(0.5),
    "prune": lambda g: g.spec({"a*": 0.5}, method="prune", importance="l2"),
    "options": lambda g: g.spec(
        keep=2, cost_p=math.inf, epsilon=0.3, merge="preserving", seed=4, solver="nearest"
    ),
    "cosine": lambda g: g.spec(0.5, cost_p="cosine"),
    "nothing": lambda g: g.spec(0.0),
}


@pytest.mark.parametrize("name", SPECS)
def test_json_round_trip(graph, name):
    spec = SPECS[name](graph)
    text = spec.to_json()
    again = FusionSpec.from_json(text)
    assert again == spec
    assert hash(again) == hash(spec)
    assert again.to_json() == text
    json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    assert jax.tree.map(jnp.shape, ifjax.fuse_params(PARAMS, again)) == jax.tree.map(
        jnp.shape, ifjax.fuse_params(PARAMS, spec)
    )


def test_equal_specs_are_one_static_argument(graph):
    count = 0

    @jax.jit
    def nothing(x):
        return x

    def fuse(p, spec):
        nonlocal count
        count += 1
        return ifjax.fuse_params(p, spec)

    jitted = jax.jit(fuse, static_argnames="spec")
    spec = graph.spec(0.5, solver="nearest")
    for other in (spec, graph.spec(0.5, solver="nearest"), FusionSpec.from_json(spec.to_json())):
        jitted(PARAMS, spec=other)
    assert count == 1
    jitted(PARAMS, spec=graph.spec(0.5, solver="nearest", merge="preserving"))
    assert count == 2
    assert graph.spec(0.5) != graph.spec(0.75)
    assert len({graph.spec(0.5), graph.spec(0.5), graph.spec(0.75)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.method.seed = 1


@pytest.mark.parametrize("name", SPECS)
def test_small_struct_is_what_fusing_gives(graph, name):
    spec = SPECS[name](graph)
    want = jax.eval_shape(lambda p: ifjax.fuse_params(p, spec), PARAMS)
    assert spec.small_struct(PARAMS) == want
    assert spec.small_struct(want) == want
    assert spec.small_struct() == want
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, PARAMS)
    assert spec.small_struct(half) == jax.eval_shape(lambda p: ifjax.fuse_params(p, spec), half)
    with pytest.raises(ValueError, match="extra: not a leaf of the network"):
        spec.small_struct(PARAMS | {"extra": X})


@pytest.mark.promotes(ranks="its networks add vectors to matrices", dtypes="and counters")
def test_weights_and_flops_are_those_of_the_small_network(graph):
    spec = graph.spec(0.5, method="prune")
    small = ifjax.fuse_params(PARAMS, spec)

    def weights(p):  # running statistics and counters are no weights
        return sum(v.size for k, v in p.items() if k not in ("mean", "var", "count"))

    assert spec.weights() == (weights(PARAMS), weights(small))

    def flops(jaxpr):
        total = 0
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                (contract, _), _ = eqn.params["dimension_numbers"]
                shape = eqn.invars[0].aval.shape
                k = math.prod(shape[i] for i in contract)
                total += 2 * k * math.prod(eqn.outvars[0].aval.shape)
            for v in eqn.params.values():
                inner = getattr(v, "jaxpr", v)
                total += flops(inner) if hasattr(inner, "eqns") else 0
        return total

    full = jax.make_jaxpr(network)(PARAMS, X)
    cut = jax.make_jaxpr(ifjax.shrink(network, spec))(small, X)
    assert spec.flops() == (flops(full.jaxpr), flops(cut.jaxpr))
    assert spec.flops()[1] < spec.flops()[0]


def test_every_leaf_and_group_is_in_the_plan(graph):
    structure = graph.structure
    assert set(structure.leaf) == set(PARAMS)
    assert structure.widths == {}
    assert all(structure.shape(p) == PARAMS[p].shape for p in PARAMS)
    assert sorted(g.size for g in graph.groups) == [2, 3, 4]
    assert [(n.kernel, n.axis) for n in structure.norms] == [("a", 1)]
    spec = graph.spec(0.5)
    assert spec.groups == spec.structure.groups
    assert spec.structure.widths == {g.name: kept_neurons(g.size, 0.5) for g in graph.groups}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"a"', "{}", '{"leaves": []}'])
def test_text_that_is_no_spec(text):
    with pytest.raises(ValueError, match=r"not the JSON text of a FusionSpec|schema version"):
        FusionSpec.from_json(text)


def test_a_spec_of_another_version(graph):
    text = graph.spec(0.5).to_json().replace('"version": 3', '"version": 99')
    with pytest.raises(ValueError, match="expected a spec of schema version 2 or 3, got 99"):
        FusionSpec.from_json(text)


@pytest.mark.parametrize("broken", ["leaves", "groups", "method", "norms", "products"])
def test_a_spec_with_a_part_missing(graph, broken):
    value = json.loads(graph.spec(0.5).to_json())
    del value[broken]
    with pytest.raises(ValueError, match="FusionSpec"):
        FusionSpec.from_json(json.dumps(value))


@pytest.mark.parametrize("method", [[1, 2], "fuse", None, 3])
def test_a_spec_whose_method_is_none(graph, method):
    value = json.loads(graph.spec(0.5).to_json()) | {"method": method}
    with pytest.raises(ValueError, match="method: expected an object with the options method, imp"):
        FusionSpec.from_json(json.dumps(value))


@pytest.mark.parametrize(
    ("n", "sparsity", "round_to", "kept"),
    [
        (64, 0.7, 1, 19),
        (10, 0.1, 1, 9),  # 10 (1 - 0.1) is 9.000000000000002 or 8.999999999999998
        (100, 0.07, 1, 93),
        (16, 0.3, 1, 11),
        (3, 0.99, 1, 1),
        (64, 0.7, 8, 16),
        (64, 0.99, 8, 8),
        (20, 0.1, 8, 16),  # 18 is nearer to 16 than to 24, which is above 20
        (20, 0.5, 8, 8),
        (24, 0.5, 8, 16),  # half way: up
        (6, 0.5, 8, 6),  # no multiple fits: left alone
        (7, 0.0, 1, 7),
    ],
)
def test_kept_neurons(n, sparsity, round_to, kept):
    assert kept_neurons(n, sparsity, round_to) == kept
