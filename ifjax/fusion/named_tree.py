"""A tree with the names of its nodes, which the paths of its arrays do not have."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ifjax.fusion import state_kinds
from ifjax.tree import path_name

Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """An array of the tree, or what stands for one that is masked out.

    Attributes:
      path: names from the root.
      index: among the leaves of the tree; None for a placeholder.
      value: the array, or anything else that is a leaf.
    """

    path: Path
    index: int | None
    value: PyTree

    @property
    def is_array(self) -> bool:
        """Whether it holds numbers."""
        dtype = getattr(self.value, "dtype", None)
        return dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended)


@dataclasses.dataclass(frozen=True)
class Node:
    """A sub-tree with the names that its arrays alone do not have.

    Attributes:
      path: names from the root.
      value: the sub-tree.
      children: by name; none of a leaf.
      entries: all arrays and placeholders in it.
      state: the named state of optax that it is, see `state_kinds.state_of`.
    """

    path: Path
    value: PyTree
    children: Mapping[str, Node]
    entries: tuple[Entry, ...]
    state: str | None = None

    @property
    def is_listed(self) -> bool:
        """Whether its children have numbers for names, or the fields of a named tuple."""
        return isinstance(self.value, tuple | list) or all(c.isdecimal() for c in self.children)

    @property
    def is_single(self) -> bool:
        """Whether it is an array, or one in a box, as a variable of flax."""
        only = [*self.children.values()]
        boxed = [*self.children] == ["value"] and not isinstance(self.value, tuple)
        return not only or (boxed and not only[0].children)

    @property
    def is_optax(self) -> bool:
        """Whether it is a state of an optimizer."""
        return self.state is not None or type(self.value).__module__.split(".")[0] == "optax"


def node_of(tree: PyTree) -> Node:
    """A tree with the names of its nodes."""
    counter = iter(range(len(jax.tree.leaves(tree))))

    def visit(value: PyTree, path: Path) -> Node:
        if value is None or isinstance(value, optax.MaskedNode):
            return Node(path, value, {}, (Entry(path, None, value),))
        found, _ = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
        if len(found) == 1 and not found[0][0]:
            return Node(path, value, {}, (Entry(path, next(counter), value),))
        children = {}
        for key, child in found:
            name = path_name(key)
            children[name] = visit(child, (*path, name))
        entries = tuple(e for child in children.values() for e in child.entries)
        state = state_kinds.state_of(type(value).__name__, children)
        return Node(path, value, children, entries, state)

    return visit(tree, ())


def nodes_of(node: Node) -> Iterator[Node]:
    """A node and all below it."""
    yield node
    for child in node.children.values():
        yield from nodes_of(child)
