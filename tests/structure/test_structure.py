"""Counts of a structure, against loops over its leaves."""

import math

import jax
import jax.numpy as jnp
import pytest

import ifjax
from ifjax.structure.structure import Group, Member, Structure, at_widths


def network(p, x):
    def layer(h, w):
        return h + jax.nn.relu(h @ w["up"]) @ w["down"], None

    return jax.lax.scan(layer, x @ p["in"], {"up": p["up"], "down": p["down"]})[0] @ p["out"]


PARAMS = {
    "in": jnp.ones((2, 4)),
    "up": jnp.ones((3, 4, 8)),
    "down": jnp.ones((3, 8, 4)),
    "out": jnp.ones((4, 5)),
}


@pytest.fixture(scope="module")
def structure():
    return ifjax.trace(network, PARAMS, jnp.ones((7, 2))).spec({"up*": 0.5}).structure


def test_weights_operations_and_neurons_at_both_widths(structure):
    for widths, n in (({}, 8), (None, 4)):
        shapes = {"in": (2, 4), "up": (3, 4, n), "down": (3, n, 4), "out": (4, 5)}
        assert {path: structure.shape(path, widths) for path in PARAMS} == shapes
        assert structure.weights(widths) == sum(map(math.prod, shapes.values()))
        assert structure.flops(widths) == 2 * 7 * (2 * 4 + 3 * 2 * 4 * n + 4 * 5)
        assert structure.neurons(widths) == 4 + 3 * n  # the layers have neurons of their own
    assert structure.widths == {"up": 4}


def test_equal_structures_are_one_and_others_are_not(structure):
    again = ifjax.trace(network, PARAMS, jnp.ones((7, 2)))
    same = again.spec({"up*": 0.5}).structure
    assert same == structure
    assert hash(same) == hash(structure)
    assert again.structure != structure


def group(name, position, along=()):
    members = (Member(name, 0, "producer", (), position), Member(name, 1, "additive", ()))
    return Group(name, 4, 2, "neuron", members, (4,) * len(along), along)


def test_later_groups_come_first_and_what_is_batched_before_its_batch():
    groups = (group("early", 1), group("late", 5, along=("early",)), group("inside", 0, ("late",)))
    found = [g.name for g in Structure((), groups, (), ()).in_order()]
    assert found == ["inside", "late", "early"]


def test_kernels_are_what_produces_or_consumes_or_all_that_there_is():
    assert [m.role for m in group("a", 1).kernels] == ["producer"]
    bias = Group("b", 4, 4, "free", (Member("b", 0, "additive", ()),))
    assert bias.kernels == [*bias.members]
    assert bias.position == -1


def beside_its_input(p, x):
    h = jax.nn.relu(x @ p["up"])
    both = jnp.concatenate([h, x], axis=-1)  # h beside the input, which stays
    return both @ p["mid"] @ p["down"]


def shapes_of(n, m):
    shapes = {"up": (3, n), "mid": (n + 3, m), "down": (m, 2)}
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def test_the_structure_at_other_widths_is_the_one_that_is_traced_there():
    x = jax.ShapeDtypeStruct((1, 3), jnp.float32)
    full, small = (
        ifjax.trace(beside_its_input, shapes_of(*widths), x).structure
        for widths in ((8, 6), (5, 4))
    )
    assert at_widths(full, {"up": 5, "mid": 4}) == small
    assert at_widths(full, {}) == full
