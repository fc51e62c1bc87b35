"""Parts of a tree shaped like the parameters; see test_fuse_tree_states.py for optimizers."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ifjax
from ifjax.fusion.named_tree import node_of
from ifjax.fusion.state_parts import Parameters, parts_of

PARAMS = {"a": {"w": jnp.ones((3, 4))}, "b": {"w": jnp.ones((4, 2))}}
SPEC = ifjax.trace(lambda p, x: x @ p["a"]["w"] @ p["b"]["w"], PARAMS, jnp.ones((1, 3))).spec(0.5)
KNOWN = Parameters.of(SPEC.structure)


def parts(tree):
    return {p.name: p for p in parts_of(node_of(tree), KNOWN, lambda path: None)}


def test_what_is_known_of_the_parameters():
    assert KNOWN.cut == {"a/w", "b/w"}
    assert KNOWN.before["w"] == {"a", "b"}
    assert KNOWN.before["a/w"] == {""}
    assert sorted(KNOWN.under("a")) == ["w"]
    assert sorted(KNOWN.under("")) == ["a/w", "b/w"]
    assert 12 + 8 in KNOWN.counts


def test_whole_trees_and_parts_of_them_are_found_with_their_leaves():
    found = parts({"step": jnp.zeros(()), "ema": PARAMS, "half": {"a": PARAMS["a"]}})
    assert {*found} == {"ema", "half"}
    assert [x.leaf for x in found["ema"].arrays] == ["a/w", "b/w"]
    assert [x.leaf for x in found["half"].arrays] == ["a/w"]


def test_arrays_with_ones_lack_these_axes():
    tree = {"a": {"w": jnp.ones((1, 4))}, "b": {"w": jnp.ones((4, 2))}}
    (part,) = parts({"x": tree}).values()
    assert [x.axes for x in part.arrays] == [(1,), None]


def test_moments_lie_inside_of_an_optimizer():
    found = parts({"ema": PARAMS, "opt": optax.adam(0.1).init(PARAMS)})
    assert {name: p.inside for name, p in found.items()} == {
        "ema": False,
        "opt/0/mu": True,
        "opt/0/nu": True,
    }


@pytest.mark.parametrize(
    ("tree", "text"),
    [
        ({"a": {"w": np.ones((3, 2))}, "b": {"w": np.ones((2, 2))}}, "the small shape"),
        ({"a": {"w": np.ones((5, 3, 4))}, "b": {"w": np.ones((5, 4, 2))}}, "a stack of 5"),
        ({"a": {"w": np.ones((3, 3))}, "b": {"w": np.ones((4, 2))}}, "factored or blocked"),
    ],
)
def test_another_shape_in_the_place_of_a_parameter_is_refused(tree, text):
    with pytest.raises(ValueError, match=text):
        parts({"ema": tree})
