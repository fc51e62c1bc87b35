"""The names of a tree's nodes, and its leaves in the order of jax."""

import jax
import jax.numpy as jnp
import optax

from ifjax.fusion.named_tree import node_of, nodes_of

PARAMS = {"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.ones(3)}


def test_leaves_are_numbered_as_jax_numbers_them():
    tree = {"opt": optax.adam(0.1).init(PARAMS), "step": jnp.zeros(())}
    root = node_of(tree)
    leaves = jax.tree.leaves(tree)
    assert [e.index for e in root.entries] == [*range(len(leaves))]
    assert all(e.value is leaves[e.index] for e in root.entries)
    assert ("opt", "0", "mu", "a", "kernel") in [e.path for e in root.entries]


def test_named_states_and_lists_are_told():
    nodes = {
        "/".join(n.path): n for n in nodes_of(node_of(optax.chain(optax.adam(0.1)).init(PARAMS)))
    }
    assert nodes[""].is_listed
    assert nodes["0/0"].is_optax
    assert not nodes["0/0/mu"].is_optax
    nodes = nodes_of(node_of(optax.contrib.prodigy(0.1).init(PARAMS)))
    assert "ProdigyState" in {n.state for n in nodes}


def test_what_is_masked_out_is_an_entry_without_a_number():
    state = optax.masked(optax.trace(0.9), {"a": {"kernel": True}, "b": False}).init(PARAMS)
    entries = {e.path[-1]: e for e in node_of(state).entries}
    assert entries["b"].index is None
    assert not entries["b"].is_array
    assert entries["kernel"].is_array
    assert not node_of(jax.random.key(0)).entries[0].is_array


def test_an_array_in_a_box_is_single():
    assert node_of(jnp.ones(2)).is_single
    assert node_of({"value": jnp.ones(2)}).is_single
    assert not node_of({"value": {"w": jnp.ones(2)}}).is_single
    assert not node_of((jnp.ones(2), jnp.ones(2))).is_single
