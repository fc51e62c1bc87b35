"""Where arrays hold the neurons of groups."""

import jax.numpy as jnp
import numpy as np

import ifjax
from ifjax.structure import axis as ex
from ifjax.structure.layout import GroupLayout, layout_of, localised
from tests import reference

N = 5
GROUP = ex.Atom("g", N)


def weights(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def test_parts_hold_every_weight_of_a_neuron():
    x, y = weights(2, N, 3), weights(N * 4)
    where = ex.Product((ex.Pinned(4), GROUP))
    members = (("x", 1, GROUP), ("y", 0, where))
    (first, i), (second, j) = GroupLayout("g", members).parts({"x": x, "y": y})
    np.testing.assert_array_equal(np.moveaxis(first, i, 0), np.moveaxis(x, 1, 0))
    np.testing.assert_array_equal(np.moveaxis(second, j, 0), y.reshape(4, N).T)


def test_layouts_follow_the_present_sizes_of_other_groups():
    structure = reference.trace("mlp", reference.init("mlp", 0, (6, 4))).structure
    group = structure.group["fc1.weight"]
    for sizes in ({}, {"fc0.weight": 2}):
        layout = layout_of(structure, group, sizes)
        assert {ex.size(where) for _, _, where in layout.members} == {4}
        assert set(layout.paths) == {"fc1.weight", "fc1.bias", "fc2.weight"}
    whole = localised(structure.leaf["fc1.weight"].axes, {"fc1.weight"}, {"fc0.weight": 2})
    assert whole == (ex.Atom("fc1.weight", 4), ex.Pinned(2))


def test_some_members_alone():
    structure = reference.trace("mlp", reference.init("mlp", 0, (6, 4))).structure
    group = structure.group["fc0.weight"]
    producers = [m for m in group.members if m.role == "producer"]
    assert layout_of(structure, group, {}, producers).paths == ("fc0.weight",)


def test_neighbours_that_are_pinned_are_one():
    """Only what the groups at hand lie between is told apart."""
    atoms = [ex.Atom(name, 2) for name in "abc"]
    axis = ex.Sum((*atoms, ex.Pinned(3, "layers"), ex.Pinned(1)))
    (got,) = localised([axis], {"c", "layers"}, {"a": 1})
    assert got == ex.Sum((ex.Pinned(3), atoms[2], ex.Pinned(3, "layers"), ex.Pinned(1)))
    (got,) = localised([axis], {"b"}, {})
    assert got == ex.Sum((ex.Pinned(2), atoms[1], ex.Pinned(6)))


def test_batch_axes_come_to_the_front():
    """Layers that a scan stacks: entry after entry is a layer of its own."""
    params = {"up": weights(3, 4, 6), "down": weights(3, 6, 4)}

    def apply(p, x):
        import jax

        def layer(h, q):
            return h + jnp.tanh(h @ q["up"]) @ q["down"], None

        return jax.lax.scan(layer, x, p)[0]

    graph = ifjax.trace(apply, params, weights(2, 4))
    (group,) = (g for g in graph.groups if g.batch)
    layout = layout_of(graph.structure, group, {})
    entries = layout.entries(params)
    np.testing.assert_array_equal(entries["up"][:, 0], params["up"])
    parts = layout.parts({path: x[1] for path, x in entries.items()})
    assert [part.shape[at] for part, at in parts] == [6, 6]
    np.testing.assert_array_equal(parts[0][0][0], params[group.members[0].path][1])
