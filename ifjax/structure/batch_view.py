"""A leaf with the axes that batch a group in front, where `jax.vmap` finds them; and back again."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from ifjax.namespace import AnyArray, namespace, pick
from ifjax.structure import axis as ex
from ifjax.structure import axis_arrays
from ifjax.structure.axis import Atom, Expression, Ordered, Pinned, Product, Sum
from ifjax.structure.structure import Group

ONE = Pinned(1)


@dataclasses.dataclass(frozen=True)
class View:
    """How the axes of a leaf that batch a group are brought to the front, as one axis.

    Of an axis whose positions share entries, an entry has an axis of the positions that hold it:
    as many as of the entry that the most do, with zeros for those that an entry lacks.

    Attributes:
      axes: what lies along the leaf's axes.
      names: the batch axes, outermost first; each lies along exactly one axis of the leaf.
    """

    axes: tuple[Expression, ...]
    names: tuple[str, ...]

    def rest(self) -> tuple[Expression, ...]:
        """What lies along the axes of one entry of the batch."""
        axes = self.axes
        for name in self.names:
            axes = tuple(without(e, name) for e in axes)
        return axes

    def front(self, x: AnyArray, sizes: Mapping[str, int]) -> AnyArray:
        """Batched entries ``[batch, *rest]``.

        Args:
          x: the leaf.
          sizes: present widths of groups that have been cut before.
        """
        axes = self.axes
        for done, name in enumerate(reversed(self.names)):
            at = next(i for i, e in enumerate(axes) if name in set(mentioned(e)))
            x = _front(x, done + at, axes[at], name, sizes)
            axes = tuple(without(e, name) for e in axes)
        return _merged(x, len(self.names))

    def back(self, x: AnyArray, sizes: Mapping[str, int]) -> AnyArray:
        """Inverse of `front`.

        Args:
          x: ``[batch, *rest]``.
          sizes: present widths, of the group that was mapped too.
        """
        stages = [self.axes]
        for name in reversed(self.names):
            stages.append(tuple(without(e, name) for e in stages[-1]))
        batch = [_size_of(self.axes, name, sizes) for name in self.names]
        x = x.reshape(*batch, *x.shape[1:])
        for done, name in enumerate(self.names):
            axes = stages[len(self.names) - 1 - done]
            at = next(i for i, e in enumerate(axes) if name in set(mentioned(e)))
            x = _back(x, len(self.names) - 1 - done + at, axes[at], name, sizes)
        return x


def take_batched(
    x: AnyArray,
    axes: tuple[Expression, ...],
    group: Group,
    index: AnyArray,
    sizes: Mapping[str, int],
    only: int | None = None,
) -> AnyArray:
    """Re-indexes a leaf by indices of their own for every entry of a group's batch.

    Args:
      x: the leaf.
      axes: what lies along its axes.
      group: a group with batch axes.
      index: ``[*batch, k]``.
      sizes: present widths of groups that have been cut before.
      only: the leaf axis to re-index; all that hold the group without it.
    """
    view = View(axes, group.along)

    def one(x: AnyArray, index: AnyArray) -> AnyArray:
        for axis, e in enumerate(view.rest()):
            if only in (None, axis):
                x = axis_arrays.transform(
                    x, axis, e, group.name, lambda x, i: jnp.take(x, index, i), sizes
                )
        return x

    index = jnp.asarray(index)
    taken = jax.vmap(one)(view.front(x, sizes), index.reshape(-1, index.shape[-1]))
    return view.back(taken, {**sizes, group.name: index.shape[-1]})


def mentioned(expression: Expression) -> list[str]:
    """Names of groups and of pinned axes along an axis, with repetitions."""
    return [e.name for e in ex.ends(expression) if e.name is not None]


def without(expression: Expression, name: str) -> Expression:
    """The axis at one position of the named one; unchanged where that does not lie along it.

    Of an axis whose positions share entries, the positions that hold one are left.

    >>> without(Product((Atom("heads", 4), Atom("dim", 8))), "heads")
    Atom(name='dim', size=8)
    """
    match expression:
        case Pinned(_, found, entries) if entries and found == name:
            return Pinned(max(map(entries.count, entries)))
        case Atom(found, _) | Pinned(_, found) if found == name:
            return ONE
        case Product(parts) if name in mentioned(expression):
            rest = tuple(p for p in (without(p, name) for p in parts) if p != ONE)
            return Product(rest) if len(rest) > 1 else (*rest, ONE)[0]
        case Sum(parts) if name in mentioned(expression):
            return Sum(tuple(without(p, name) for p in parts))
        case Ordered(inside, _) if name in mentioned(expression):
            return without(inside, name)
    return expression


def _size_of(axes: Sequence[Expression], name: str, sizes: Mapping[str, int]) -> int:
    end = next(end for e in axes for end in ex.ends(e) if end.name == name)
    if isinstance(end, Atom):
        return sizes.get(name, end.size)
    return end.batch if end.entries else end.size


def _front(x: AnyArray, axis: int, e: Expression, name: str, sizes: Mapping[str, int]) -> AnyArray:
    """Moves the named part of an axis to the front; the rest of the axis stays, one further on."""
    shape = x.shape
    match e:
        case Product(parts):
            split = [ex.size(p, sizes) for p in parts]
            i = next(i for i, p in enumerate(parts) if name in mentioned(p))
            x = x.reshape(*shape[:axis], *split, *shape[axis + 1 :])
            x = _front(x, axis + i, parts[i], name, sizes)
            merged = math.prod(x.shape[axis + 1 : axis + 1 + len(parts)])
            return x.reshape(x.shape[0], *shape[:axis], merged, *shape[axis + 1 :])
        case Sum(parts):
            bounds = np.cumsum([ex.size(p, sizes) for p in parts])[:-1].tolist()
            pieces = namespace(x).split(x, bounds, axis)
            pairs = zip(pieces, parts, strict=True)
            done = [_front(y, axis, p, name, sizes) for y, p in pairs]
            return namespace(x).concatenate(done, axis + 1)
        case Pinned(n, _, entries, batch) if entries:
            x = namespace(x).moveaxis(x, axis, 0)
            place = np.full((batch, max(map(entries.count, entries))), n)
            place[entries, _turns(entries)] = np.arange(n)
            x = namespace(x).concatenate([x, namespace(x).zeros_like(x[:1])])
            return namespace(x).moveaxis(x[place], 1, axis + 1)
        case Ordered(inside, _):
            order = ex.order_at(e, sizes)
            x = x if order is None else pick(x, np.argsort(order), axis)
            return _front(x, axis, inside, name, sizes)
    xp = namespace(x)
    return xp.expand_dims(xp.moveaxis(x, axis, 0), axis + 1)


def _back(x: AnyArray, axis: int, e: Expression, name: str, sizes: Mapping[str, int]) -> AnyArray:
    """Inverse of `_front`: ``x`` has the named part in front, the rest of the axis at axis + 1."""
    shape = x.shape
    match e:
        case Product(parts):
            rest = [ex.size(without(p, name), sizes) for p in parts]
            i = next(i for i, p in enumerate(parts) if name in mentioned(p))
            x = x.reshape(*shape[: axis + 1], *rest, *shape[axis + 2 :])
            x = _back(x, axis + i, parts[i], name, sizes)
            merged = math.prod(x.shape[axis : axis + len(parts)])
            return x.reshape(*shape[1 : axis + 1], merged, *shape[axis + 2 :])
        case Sum(parts):
            bounds = np.cumsum([ex.size(without(p, name), sizes) for p in parts])[:-1].tolist()
            pieces = namespace(x).split(x, bounds, axis + 1)
            pairs = zip(pieces, parts, strict=True)
            done = [_back(y, axis, p, name, sizes) for y, p in pairs]
            return namespace(x).concatenate(done, axis)
        case Pinned(_, _, entries) if entries:
            found = namespace(x).moveaxis(x, axis + 1, 1)[np.array(entries), _turns(entries)]
            return namespace(x).moveaxis(found, 0, axis)
        case Ordered(inside, _):
            x, order = _back(x, axis, inside, name, sizes), ex.order_at(e, sizes)
            return x if order is None else pick(x, np.asarray(order), axis)
    xp = namespace(x)
    return xp.moveaxis(xp.squeeze(x, axis + 1), 0, axis)


def _turns(entries: tuple[int, ...]) -> np.ndarray:
    """By position, how many before it hold the same entry."""
    return np.array([entries[:i].count(e) for i, e in enumerate(entries)])


def _merged(x: AnyArray, k: int) -> AnyArray:
    """The first k axes as one, which is whole: on an explicit mesh nothing else is inferred."""
    shape = (math.prod(x.shape[:k]), *x.shape[k:])
    if k > 1 and isinstance(x, jax.Array):
        found = jax.typeof(x).sharding
        if any(found.spec[:k]):
            whole = NamedSharding(found.mesh, PartitionSpec(None, *found.spec[k:]))
            return x.reshape(shape, out_sharding=whole)
    return x.reshape(shape)
