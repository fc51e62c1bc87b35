"""Recurrent states: one group on both axes of their kernel, at any length and width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

import ifjax
from tests.graph.laws import array, arrays, distance, hold, kept
from tests.jaxprs.value_shapes import shapes


def rnn(p, x):
    """x [time, batch, 3] -> outputs of all steps and of the last."""

    def step(h, t):
        h = jnp.tanh(t @ p["x"] + h @ p["h"] + p["b"])
        return h, h @ p["o"]

    h, outputs = lax.scan(step, jnp.zeros((x.shape[1], p["h"].shape[0])), x)
    return outputs, h @ p["o"]


RNN = arrays(x=(3, 8), h=(8, 8), b=(8,), o=(8, 2))
SEQUENCE = array(5, 4, 3)


@pytest.fixture(scope="module")
def rnn_graph():
    return hold(jax.jit(rnn), RNN, SEQUENCE, groups={"x": 8})


def test_a_recurrent_state_is_one_group_on_both_axes_of_its_kernel(rnn_graph):
    (group,) = rnn_graph.groups
    assert {(m.path, m.axis): m.role for m in group.members} == {
        ("x", 1): "producer",
        ("h", 0): "consumer",
        ("h", 1): "producer",
        ("b", 0): "additive",
        ("o", 0): "consumer",
    }
    assert group.exact
    assert group.kind == "neuron"
    assert rnn_graph.verify(rnn, RNN, SEQUENCE).unverified == ()


def test_work_inside_a_scan_counts_once_per_step(rnn_graph):
    before, after = rnn_graph.spec(0.5).flops()
    assert before == 2 * (5 * 4 * (3 * 8 + 8 * 8 + 8 * 2) + 4 * 8 * 2)
    assert after == 2 * (5 * 4 * (3 * 4 + 4 * 4 + 4 * 2) + 4 * 4 * 2)


@pytest.mark.parametrize(("time", "batch"), [(1, 4), (2, 1), (7, 3)])
@pytest.mark.promotes(ranks="its networks add vectors to matrices")
def test_other_batch_sizes_and_lengths(rnn_graph, time, batch):
    small = jax.tree.map(jnp.float32, ifjax.take(RNN, rnn_graph, {"x": kept(8)}))
    x = jnp.float32(array(time, batch, 3, seed=1))
    got = ifjax.shrink(rnn, rnn_graph.spec(0.5))(small, x)
    assert distance(got, rnn(small, x)) < 1e-6


def test_no_value_is_computed_at_the_full_width(rnn_graph):
    spec = rnn_graph.spec(keep=6)
    small = spec.small_struct(jax.tree.map(jnp.float32, RNN))
    apply = ifjax.shrink(rnn, spec)
    for f in (apply, jax.grad(lambda p, x: apply(p, x)[0].sum())):
        found = {
            n for s in shapes(jax.make_jaxpr(f)(small, jnp.float32(SEQUENCE)).jaxpr) for n in s
        }
        assert 6 in found
        assert 8 not in found


def test_fusion_does_not_depend_on_the_order_of_the_state(rnn_graph):
    """The two axes of the recurrent kernel are mapped together."""
    with jax.enable_x64(True):
        spec = rnn_graph.spec(0.5, solver="exact")
        turned = ifjax.take(RNN, rnn_graph, {"x": np.roll(np.arange(8), 3)})
        apply = ifjax.shrink(rnn, spec)
        got = apply(ifjax.fuse_params(turned, spec), SEQUENCE)
        want = apply(ifjax.fuse_params(RNN, spec), SEQUENCE)
        assert distance(got, want) < 1e-9


def test_a_state_that_is_turned_every_step_ties_both_of_its_axes():
    def f(p, x):
        h = (x @ p["a"]).T @ p["b"]  # [6, 6]
        return p["o"] @ lax.fori_loop(0, 3, lambda i, h: jnp.sin(h).T, h) @ p["q"]

    p = arrays(a=(3, 6), b=(4, 6), o=(2, 6), q=(6, 2))
    hold(jax.jit(f), p, array(4, 3), groups={"a": 6})


class Recurrent(nn.Module):
    cell: type[nn.RNNCellBase]

    @nn.compact
    def __call__(self, x):
        dtype = jnp.result_type(float)
        h = nn.RNN(self.cell(6, param_dtype=dtype), reverse=True, keep_order=True)(x)
        return nn.Dense(2)(h)


@pytest.mark.parametrize("cell", [nn.GRUCell, nn.OptimizedLSTMCell])
@pytest.mark.promotes(dtypes="its functions mix dtypes")
def test_recurrent_cells_of_flax(cell):
    x = array(2, 4, 3)
    with jax.enable_x64(True):
        model = Recurrent(cell)
        structs, tree = jax.tree.flatten(jax.eval_shape(model.init, jax.random.key(0), x))
    p = jax.tree.unflatten(tree, [array(*s.shape, seed=i) for i, s in enumerate(structs)])
    graph = hold(jax.jit(model.apply), p, x)
    assert [g.size for g in graph.groups] == [6]
    assert all(g.exact or cell is nn.GRUCell for g in graph.groups)
    single = graph.verify(Recurrent(cell).apply, p, x)
    assert single.ok
    assert single.unverified == ()
