"""What a notebook shows of a value is short."""

import jax
import jax.numpy as jnp
from flax import nnx

import ifjax
from ifjax.frameworks import cut_nnx, nnx_function


def deep(depth=40):
    params = {f"w{i:02}": jax.random.normal(jax.random.key(i), (8, 8)) for i in range(depth)}

    def apply(p, x):
        for name in sorted(p):
            x = jnp.tanh(x @ p[name])
        return x

    return apply, params


def test_graphs_specs_rounds_and_transports():
    apply, params = deep()
    graph = ifjax.trace(apply, params, jnp.ones((1, 8)))
    spec = graph.spec(0.5, solver="nearest")
    for value in (graph, spec):
        lines = repr(value).splitlines()
        assert lines[:20] == str(value).splitlines()[:20]
        assert len(lines) == 25
        assert lines[-1].endswith("more lines: print(...) shows them")
        assert len(str(value).splitlines()) > 39
    small = graph.spec({"w00": 0.5})
    assert repr(small) == str(small)
    (first, _) = ifjax.iterated(spec, 2)
    assert [line.split(":")[0] for line in repr(first).splitlines()] == [
        "Round",
        "  step",
        "  total",
    ]
    maps = ifjax.transport_maps(params, small)
    assert repr(maps["w00"]).startswith("Transport(8 -> 4, converged after ")
    assert len(repr(maps)) < 200
    abstract = jax.eval_shape(lambda p: ifjax.transport_maps(p, small), params)
    assert repr(abstract["w00"]) == "Transport(8 -> 4, abstract)"
    shown = []
    jax.jit(lambda m: shown.append(repr(m["w00"])))(maps)
    assert shown == ["Transport(8 -> 4)"]
    assert repr(jax.tree.map(lambda x: None, maps["w00"])) == "Transport(? -> ?)"


def test_what_cut_nnx_returns():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(4, 8, rngs=rngs), nnx.relu, nnx.Linear(8, 2, rngs=rngs))
    apply_fn, state = nnx_function(model)
    spec = ifjax.trace(apply_fn, state, jnp.ones((1, 4))).spec(0.5, solver="nearest")
    assert len(repr(cut_nnx(model, spec, jnp.ones((1, 4))))) < 200
