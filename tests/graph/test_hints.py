"""A graph that finds nothing to cut says why and what to do."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import ifjax
from ifjax.frameworks import nnx_function
from tests.graph.laws import array, arrays

X = array(4, 6)


def apply(params, state, key, x, train=False):
    """As haiku's `transform_with_state`: the statistics are the second argument."""
    del key
    h = x @ params["linear"]["w"]
    mean = h.mean(0) if train else state["norm"]["mean"]
    var = h.var(0) if train else state["norm"]["var"]
    new = {"mean": 0.9 * state["norm"]["mean"] + 0.1 * mean}
    new["var"] = 0.9 * state["norm"]["var"] + 0.1 * var
    h = (h - mean) * jax.lax.rsqrt(var + 1e-5) * params["norm"]["scale"]
    return jax.nn.relu(h) @ params["out"]["w"], {"norm": new}


PARAMS = {"linear": arrays(w=(6, 16)), "norm": arrays(scale=(16,)), "out": arrays(w=(16, 3))}
STATE = {"norm": {"mean": array(16), "var": array(16) ** 2}}


@pytest.mark.parametrize("train", [False, True])
def test_state_as_a_second_argument(train):
    graph = ifjax.trace(apply, PARAMS, STATE, None, X, train=train)
    assert graph.groups == ()
    for said in (str(graph), graph.hints[0]):
        assert "inputs/0/norm/mean" in said
        assert "linear/w (axis 1)" in said
        assert "state=" in said
    with pytest.raises(ValueError, match=r"no groups: inputs/0/norm/mean.*as one tree"):
        graph.spec(0.5)
    # both ways out that it names
    found = ifjax.trace(apply, PARAMS, STATE, None, X, train=train, state="*puts/[01]/norm/*")
    assert [g.size for g in found.groups] == [16]
    both = {"params": PARAMS, "state": STATE}
    found = ifjax.trace(
        lambda p, *x: apply(p["params"], p["state"], *x, train=train), both, None, X
    )
    assert [(g.size, len(g.members)) for g in found.groups] == [(16, 5)]
    assert found.hints == ()


def test_a_recurrent_carry():
    def step(p, h, x):
        h = jnp.tanh(h @ p["hh"] + x @ p["xh"])
        return h, h @ p["out"]

    p = arrays(hh=(8, 8), xh=(3, 8), out=(8, 2))
    graph = ifjax.trace(step, p, array(4, 8), array(4, 3))
    assert "inputs/0, outputs/0 fix the width of" in str(graph)
    assert "state=('inputs/0*', 'outputs/0*')" in str(graph)
    found = ifjax.trace(step, p, array(4, 8), array(4, 3), state=("inputs/0*", "outputs/0*"))
    assert [g.size for g in found.groups] == [8]


class Module(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.a, self.b = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.b(self.dropout(nnx.relu(self.a(x))))


def test_nnx_in_train_mode():
    """Its keys among the parameters pin nothing; closed over, they pin and are warned of."""
    module = Module()
    apply_fn, state = nnx_function(module)
    graph = ifjax.trace(apply_fn, state, X)
    assert [g.size for g in graph.groups] == [16]
    assert "model.eval()" in str(graph)
    definition, params, rest = nnx.split(module, nnx.Param, ...)

    def closed_over(params, x):
        return nnx.merge(definition, params, rest, copy=True)(x)

    with pytest.warns(UserWarning, match="model.eval"):
        graph = ifjax.trace(closed_over, params, X)
    assert graph.groups == ()
    module.eval()
    apply_fn, state = nnx_function(module)
    graph = ifjax.trace(apply_fn, state, X)
    assert [g.size for g in graph.groups] == [16]
    assert graph.hints == ()


def test_nothing_to_cut_for_another_reason():
    graph = ifjax.trace(lambda p, x: jnp.cumsum(x @ p["a"], 1), arrays(a=(6, 8)), X)
    assert graph.hints[0].startswith("nothing can be cut (")
    assert str(graph).endswith(graph.hints[0])


def test_two_functions_keep_what_was_said():
    apply_fn, state = nnx_function(Module())
    one = ifjax.trace(apply_fn, state, X)
    assert (one & one).hints == one.hints
