"""A dozen models of the zoo; `benchmarks/zoo.py` runs all of them."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import jaxtyping
import pytest

from tests.zoo import model as zoo
from tests.zoo.checks import check
from tests.zoo.model import Model, rows, weights

# name, framework, what of the weights lies in groups of neurons, axes pinned inside the function
CHOSEN = (
    ("swiglu_split", "jax", 1.0, set()),
    ("experts_dense_gate", "jax", 1.0, set()),
    ("resnet_option_a", "jax", 0.9983, {"conv_general_dilated: spatial axis of a convolution"}),
    ("densenet", "jax", 1.0, {"conv_general_dilated: spatial axis of a convolution"}),
    ("fused_by_slices", "jax", 1.0, set()),
    ("grouped_query_rotary", "jax", 1.0, {"iota: counted with iota"}),
    ("decode_with_cache", "jax", 1.0, None),
    ("lstm", "jax", 1.0, set()),
    ("gru_step", "jax", 1.0, set()),
    ("linen_perceptron", "flax.linen", 0.9844, set()),
    ("nnx_low_rank", "flax.nnx", 0.9837, set()),
    ("haiku_perceptron", "haiku", 0.9846, set()),
    ("equinox_recurrent", "equinox", 0.9954, set()),
    ("penzai_gpt_neox", "penzai", 1.0, {"gather: the axis is indexed"}),
)


@pytest.fixture(scope="module")
def models():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        yield {m.name: m for m in zoo.models()[0]}


@pytest.mark.parametrize(
    ("name", "framework", "prunable", "pinned"), CHOSEN, ids=[c[0] for c in CHOSEN]
)
@pytest.mark.filterwarnings("default")  # of the frameworks
def test_every_law_holds(models, name, framework, prunable, pinned):
    if name not in models:
        pytest.skip(f"{framework} is not installed: pip install 'ifjax[zoo]'")
    report = check(models[name])
    assert report.failures == ()
    assert report.free == (("gate",) if name == "experts_dense_gate" else ())
    assert report.prunable == pytest.approx(prunable, abs=1e-4)
    assert pinned is None or {*report.pinned} == pinned


def broken(f, **options):
    def build(batch):
        return f, weights(a=(3, 8), b=(8, 8), c=(8, 2)), (rows(batch, 3),)

    return Model("broken", "MLP", "jax", build, **options)


def test_the_checks_see_what_is_wrong(monkeypatch):
    good = broken(lambda p, x: jnp.tanh(jnp.tanh(x @ p["a"]) @ p["b"]) @ p["c"], reads_widths=True)
    assert check(good).failures == ()

    dead = broken(lambda p, x: jnp.tanh(x @ p["a"]) @ (0 * p["b"]) @ p["c"])
    assert any("no power" in f for f in check(dead).failures)
    assert any("does not move" in f for f in check(dead).failures)
    summed = broken(lambda p, x: (x @ p["a"] @ p["b"] @ p["c"]) + x.sum())
    assert any("larger batch" in f for f in check(summed).failures)

    from ifjax.graph import trace

    real = trace.build

    def wrong(*args):  # says that the groups hold what they do not
        graph = real(*args)
        leaves = [
            dataclasses.replace(leaf, axes=leaf.axes[:1] + leaf.axes[:1])
            if leaf.path == "b"
            else leaf
            for leaf in graph.structure.leaves
        ]
        return graph._replace(structure=dataclasses.replace(graph.structure, leaves=tuple(leaves)))

    monkeypatch.setattr(trace, "build", wrong)
    assert any("a permutation moves" in f for f in check(good).failures)
