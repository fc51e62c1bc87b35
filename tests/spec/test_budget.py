"""Budgets of weights and operations: the least uniform ratio that keeps them."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import pytest

import ifjax

WIDTHS = (8, 64, 48, 32, 4)
PARAMS = {
    f"w{i}": jax.ShapeDtypeStruct(shape, "float32")
    for i, shape in enumerate(itertools.pairwise(WIDTHS))
}


def mlp(p, x):
    for i in range(len(WIDTHS) - 1):
        x = jnp.tanh(x @ p[f"w{i}"])
    return x


GRAPH = ifjax.trace(mlp, PARAMS, jax.ShapeDtypeStruct((2, 8), "float32"))


def count(spec, of):
    return spec.weights() if of == "weights" else spec.flops()


@pytest.mark.parametrize("of", ["weights", "flops"])
@pytest.mark.parametrize(
    ("share", "options"),
    [(0.1, {}), (0.5, {}), (0.9, {}), (0.5, {"round_to": 4}), (0.3, {"include": ["w0", "w1"]})],
)
def test_the_budget_is_kept_by_one_ratio_and_no_larger_one_than_needed(of, share, options):
    spec = GRAPH.spec(share, of=of, **options)
    before, after = count(spec, of)
    assert after <= (1 - share) * before * (1 + 1e-9)
    cuts = [GRAPH.spec({"*": i / 2000}, **options) for i in range(80, 2000)]
    equal = [i for i, cut in enumerate(cuts) if cut.structure == spec.structure]
    assert equal
    assert all(count(cut, of)[1] > (1 - share) * before for cut in cuts[: equal[0]])


def test_half_of_the_neurons_is_more_than_half_of_the_weights():
    neurons, weights = GRAPH.spec(0.5), GRAPH.spec(0.5, of="weights")
    assert neurons.weights()[1] < 0.4 * neurons.weights()[0]
    assert weights.weights()[1] > 0.49 * weights.weights()[0]
    assert "neurons 144 -> 72 (50.0% fewer)" in str(neurons).splitlines()[0]


def test_layers_of_a_stack_count_their_neurons_each():
    def f(p, x):
        return jax.lax.scan(lambda x, p: (x + jnp.tanh(x @ p["a"]) @ p["b"], None), x, p)[0]

    shapes = {"a": jnp.ones((3, 4, 6)), "b": jnp.ones((3, 6, 4))}
    graph = ifjax.trace(f, shapes, jnp.ones((2, 4)))
    assert graph.structure.neurons({}) == 18


@pytest.mark.parametrize(
    ("share", "of", "options", "message"),
    [
        (0.5, "bytes", {}, "of must be one of neurons, weights, flops; got 'bytes'"),
        ({"w0": 0.5}, "weights", {}, "takes one share of the network's weights"),
        (None, "weights", {"keep": 3}, "takes one share of the network's weights"),
        (1.5, "flops", {}, r"sparsity must be a number in \[0, 1\)"),
        (0.9, "weights", {"include": "w0"}, r"no uniform ratio removes 90.0% of the weights"),
    ],
)
def test_what_cannot_be_is_refused(unchecked, share, of, options, message):
    with pytest.raises(ValueError, match=message):
        GRAPH.spec(share, of=of, **options)


def test_nothing_goes_where_nothing_is_asked_for_or_enough_has_gone():
    assert GRAPH.spec(0.0, of="flops").structure.widths == {}
    kept = GRAPH.spec(0.01, of="weights", keep={"w0": 4})
    assert kept.structure.widths == {"w0": 4}
