"""What reads the channels of a residual stream, and how much each reader counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ifjax.jaxprs.traits import contraction_of
from ifjax.parallel.hosts import on_host
from ifjax.reconstruction.select import neuron_gram, neuron_weights
from ifjax.reconstruction.taps import Tap, gram_of, kernel_of, taps_of, units_of
from ifjax.reconstruction.walk import Walk
from ifjax.structure.structure import Group


class Readings(NamedTuple):
    """By place where the channels are read.

    Attributes:
      grams: mean squares of what is read.
      reads: W W' of the weights, the mean over consumers, each relative to what it gives.
      shares: how much a place counts. What most consumers give goes back into the channels, of
        which it is a small part; those whose results do not, count as much as all others together.
        A place with consumers of both kinds stands here twice.
    """

    grams: Float[np.ndarray, "S n n"]
    reads: Float[np.ndarray, "S n n"]
    shares: Float[np.ndarray, " S"]


def grams_of(walk: Walk, group: Group) -> Iterator[tuple[list[Tap], Float[np.ndarray, "n n"]]]:
    """The consumers of the channels, those that read alike together, and what they read.

    Args:
      walk: at its beginning; it stays there.
      group: of the channels.

    Yields:
      Taps, and the mean square of what they read in the dense function.

    Raises:
      ValueError: where no weight reads the channels.
    """
    found: dict[Any, list[Tap]] = {}
    for tap in taps_of(walk, [group.name]).get(group.name, ()):
        key = tap.input, contraction_of(tap.step.equation).contracted[tap.side]
        found.setdefault(key, []).append(tap)
    if not found:
        raise ValueError(f"{group.name}: expected a weight that reads its channels, found none")
    ahead = walk.alone()
    nothing = dict.fromkeys(range(len(walk.program.steps)), 0.0)
    last, done = walk.last_use({}), 0
    for taps in sorted(found.values(), key=lambda taps: taps[0].place):
        first = taps[0]
        ahead.run(range(done, first.place), nothing, last)
        done = first.place
        gram = on_host(gram_of(ahead, first, dense=True), np.float64)
        yield taps, neuron_gram(gram, units_of(ahead, first, group), group.size)


def readings(walk: Walk, group: Group) -> Readings:
    """What the consumers of the channels read, and how.

    Args:
      walk: at its beginning; it stays there.
      group: of the channels.

    Returns:
      The readings; places where nothing is read, or made of it, left out.

    Raises:
      ValueError: where no weight reads the channels, or what all give is zero.
    """
    inputs = [tap.input for tap in taps_of(walk, [group.name]).get(group.name, ())]
    returning = _ancestors(walk, inputs)
    grams, reads, ends = [], [], []
    for taps, gram in grams_of(walk, group):
        parts: dict[bool, list[np.ndarray]] = {True: [], False: []}
        for tap in taps:
            weights = neuron_weights(kernel_of(walk, tap), units_of(walk, tap, group), group.size)
            read = weights @ weights.T
            given = float((read * gram).sum())
            if given > 0:
                parts[returning.isdisjoint(tap.step.outputs)].append(read / given)
        for is_end, found in parts.items():
            if found:
                grams.append(gram)
                reads.append(np.mean(found, 0))
                ends.append(is_end)
    if not grams:
        raise ValueError(
            f"{group.name}: expected inputs on which its consumers give something, got zeros alone"
        )
    others = len(ends) - sum(ends)
    shares = np.where(ends, max(others, 1) / max(sum(ends), 1), 1.0)
    return Readings(np.stack(grams), np.stack(reads), shares)


def _ancestors(walk: Walk, numbers: Iterable[int]) -> set[int]:
    """Some values and what they are made of."""
    found = set(numbers)
    for step in reversed(walk.program.steps):
        if not found.isdisjoint(step.outputs):
            found.update(step.inputs)
    return found
