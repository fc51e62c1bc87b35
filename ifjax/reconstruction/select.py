"""Which neurons of a group a walk keeps, and when that is decided."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from ifjax.namespace import AnyArray
from ifjax.parallel.hosts import on_host
from ifjax.reconstruction.choice import kept_neurons
from ifjax.reconstruction.ragged import is_ragged
from ifjax.reconstruction.taps import Tap, entries_of, gram_of, kernel_of, units_of
from ifjax.reconstruction.walk import Walk
from ifjax.structure.structure import Group


@dataclasses.dataclass(frozen=True)
class Timing:
    """When the neurons of each group are chosen.

    Attributes:
      late: groups whose consumers read one value: by the place of the first of these, on what the
        compressed network computes there.
      early: groups with several taps (a residual stream): before anything is cut.
      blind: groups that no contraction with a weight reads, nor a product of activations alone.
    """

    late: Mapping[int, tuple[Group, ...]]
    early: tuple[Group, ...]
    blind: tuple[Group, ...]


def timing(
    groups: Sequence[Group], taps: Mapping[str, Sequence[Tap]], products: Collection[str] = ()
) -> Timing:
    """Says when each group's neurons are chosen.

    Args:
      groups: those that are cut, in order.
      taps: of each.
      products: groups that are chosen at a product of activations.

    Returns:
      The timing.
    """
    late: dict[int, tuple[Group, ...]] = {}
    early, blind = [], []
    for group in groups:
        found = taps.get(group.name, ())
        if group.name in products:
            continue
        if not found:
            blind.append(group)
        elif any(is_ragged(tap.step) for tap in found):
            early.append(group)  # a row has neurons of its kernel: nothing of it is narrowed later
        elif group.exact and len({tap.input for tap in found}) == 1:
            place = min(tap.place for tap in found)
            late[place] = (*late.get(place, ()), group)
        else:
            early.append(group)
    return Timing(late, tuple(early), tuple(blind))


@dataclasses.dataclass
class Evidence:
    """What says how much the neurons of a group matter: a problem as `backward_elimination` has it.

    Attributes:
      gram: ``[B, K, K]``.
      weights: ``[B, K, O]``.
      units: ``[B, K]``.
    """

    gram: Float[AnyArray, "B K K"]
    weights: Float[np.ndarray, "B K O"]
    units: Int[np.ndarray, "B K"]


def evidence(walk: Walk, group: Group, taps: Sequence[Tap], dense: bool) -> Evidence:
    """What the taps of a group say.

    Args:
      walk: holding the values that the taps read.
      group: the group.
      taps: of the group; where they read several values, or the same one in different forms, each
        is reduced to one column per neuron, and their Gram matrices are added.
      dense: whether to look at the dense function's values.

    Returns:
      The evidence.
    """
    parts = [
        Evidence(gram_of(walk, t, dense), kernel_of(walk, t), units_of(walk, t, group))
        for t in taps
    ]
    return combined(parts, group)


def combined(parts: Sequence[Evidence], group: Group) -> Evidence:
    """Evidence of several taps as one."""
    first = parts[0]
    if len(parts) == 1 and _is_even(first.units):
        return first
    units = group.size * int(np.prod(group.batch, dtype=int))
    units = max(units, *(int(p.units.max()) + 1 for p in parts))
    reduced = [_reduced(p, units) for p in parts]
    gram = sum((g for g, _ in reduced), np.zeros((units, units)))
    weights = np.concatenate([w for _, w in reduced], -1)
    present = np.unique(np.concatenate([p.units[p.units >= 0] for p in parts]))
    return Evidence(gram[np.ix_(present, present)][None], weights[present][None], present[None])


def _is_even(units: Int[np.ndarray, "B K"]) -> bool:
    """Whether all problems hold as many columns of every neuron, of the same ones or of none."""
    shared = [np.unique(u[u >= 0], return_counts=True) for u in units]
    every = np.concatenate([own for own, _ in shared])
    same = all(np.array_equal(shared[0][0], own) for own, _ in shared)
    apart = len(np.unique(every)) == len(every)
    return (same or apart) and len({int(n) for _, counts in shared for n in counts}) == 1


def _reduced(part: Evidence, units: int) -> tuple[np.ndarray, np.ndarray]:
    """One column per neuron: the columns of a neuron count as further positions."""
    gram = neuron_gram(part.gram, part.units, units)
    return gram, neuron_weights(part.weights, part.units, units)


def neuron_weights(
    weights: Float[np.ndarray, "B K O"], units: Int[np.ndarray, "B K"], count: int
) -> Float[np.ndarray, "n o"]:
    """Weights of neurons: what else a neuron has, problems and columns, are further outputs.

    Args:
      weights: of B problems.
      units: which neuron a column belongs to, -1 for none.
      count: how many neurons there are.

    Returns:
      The rows of each neuron, side by side; zeros where it has fewer columns than others.

    Example:
      >>> neuron_weights(np.array([[[3.0], [4.0], [5.0]]]), np.array([[1, 0, 1]]), 2).tolist()
      [[4.0, 0.0], [3.0, 5.0]]
    """
    kernels = [np.zeros((count, 0))]
    for w, u in zip(weights, units, strict=True):
        for own, columns in _columns(u):
            kernel = np.zeros((count, w.shape[-1]))
            kernel[own] = w[columns]
            kernels.append(kernel)
    return np.concatenate(kernels, -1)


def neuron_gram(
    gram: Float[AnyArray, "B K K"], units: Int[np.ndarray, "B K"], count: int
) -> Float[np.ndarray, "n n"]:
    """A Gram matrix of neurons: what else a neuron has, problems and columns, are positions.

    Args:
      gram: of B problems.
      units: which neuron a column belongs to, -1 for none.
      count: how many neurons there are.

    Returns:
      The sum.

    Example:
      >>> neuron_gram(np.ones((1, 4, 4)), np.array([[1, 0, 1, -1]]), 2).tolist()
      [[1.0, 1.0], [1.0, 2.0]]
    """
    found = np.zeros((count, count))
    for r, u in zip(on_host(gram, np.float64), units, strict=True):
        for own, columns in _columns(u):
            found[np.ix_(own, own)] += r[np.ix_(columns, columns)]
    return found


def _columns(units: Int[np.ndarray, " K"]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The neurons that have a first, a second, ... column, and which that is."""
    own, counts = np.unique(units[units >= 0], return_counts=True)
    order = np.argsort(units, kind="stable")[int((units < 0).sum()) :]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    for i in range(int(counts.max(initial=0))):
        has = counts > i
        yield own[has], order[starts[has] + i]


def choose(
    walk: Walk, group: Group, found: Evidence, direction: str
) -> Int[np.ndarray, "*batch m"]:
    """The neurons that are kept.

    Args:
      walk: for the present widths of the axes that batch the group.
      group: the group.
      found: the evidence.
      direction: whether neurons are removed or taken one after the other.

    Returns:
      Indices, ascending.
    """
    entries = entries_of(walk, group)
    count = int(np.prod(entries, dtype=int))
    choice = kept_neurons(direction)
    kept = choice(found.gram, found.weights, found.units, count, group.kept)
    return kept.reshape(*entries, group.kept)
