"""Which groups are merged along which axes of a leaf, and in which order."""

import jax
import jax.numpy as jnp
import pytest

import ifjax
from ifjax.fusion.merge_steps import merges_of, only
from ifjax.structure import axis as ex

PARAMS = {
    "in": jnp.ones((2, 4)),
    "up": jnp.ones((3, 4, 8)),
    "down": jnp.ones((3, 8, 4)),
    "out": jnp.ones((4, 5)),
}


def network(p, x):
    def layer(h, w):
        return h + jax.nn.relu(h @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x @ p["in"], {"up": p["up"], "down": p["down"]})[0] @ p["out"]


@pytest.fixture(scope="module")
def structure():
    return ifjax.trace(network, PARAMS, jnp.ones((1, 2))).spec(0.5).structure


def merges(structure, **options):
    return merges_of(structure, structure.in_order(), {}, structure.leaf, **options)


def test_groups_with_batch_axes_come_first_in_one_entry_each(structure):
    found = merges(structure)
    assert {*found} == {*PARAMS}
    layers, whole = found["up"]
    assert layers.view is not None
    assert layers.groups == ("up",)
    assert layers.size == 8
    (along,) = layers.axes
    assert layers.view.rest()[along.axis] == along.where == ex.Atom("up", 8)
    assert whole.view is None
    (along,) = whole.axes
    assert (along.axis, along.where, along.roles) == (1, ex.Atom("in", 4), (("in", "consumer"),))


def test_later_steps_are_at_the_widths_that_earlier_ones_left(structure):
    """Of the axis that was cut before only its present size is known."""
    for options, kept in (({}, 4), ({"keep_shape": True}, 8)):
        sizes = {}
        for step in merges(structure, **options)["down"]:
            sizes |= dict.fromkeys(step.groups, kept)
        assert [*sizes] == ["up", "in"]
        last = merges(structure, **options)["down"][-1]
        assert [a.axis for a in last.axes] == [2]


def test_only_some_leaves_and_one_axis(structure):
    found = merges_of(structure, structure.in_order(), {}, {"out"})
    assert [*found] == ["out"]
    (step,) = found["out"]
    assert only(step, 0) == step
    assert only(step, 1).axes == ()
