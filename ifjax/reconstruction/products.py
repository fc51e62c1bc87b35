"""Dimensions that only products of two activations contract, such as those of queries and keys.

What is to be kept there is the product Q K' itself, the logits of attention. Q and K are linear in
their weights and the product is bilinear: with the dimensions S kept, a matrix M between what is
left of both is all that can be corrected, and Q_S M is Q_S of other weights. Where both are linear
in their weights, any combinations of the dimensions can take the places of S.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from ifjax.activations.moments import NormalForm, normal_form, rows
from ifjax.jaxprs.program import Step
from ifjax.jaxprs.traits import contraction_of, traits_of
from ifjax.parallel.hosts import on_host
from ifjax.reconstruction.bilinear import (
    ProductGrams,
    best_middle,
    entrywise,
    joined,
    middle,
    product_error,
    subspaces,
)
from ifjax.reconstruction.choice import kept_neurons
from ifjax.reconstruction.events import Event, merge
from ifjax.reconstruction.taps import entries_of
from ifjax.reconstruction.walk import Walk
from ifjax.structure import axis as ex
from ifjax.structure.axis_arrays import positions
from ifjax.structure.structure import Group


@dataclasses.dataclass(frozen=True)
class Side:
    """An operand of a product whose dimensions may be mixed, by mixing leaves alone.

    Attributes:
      number: of the operand.
      leaves: numbers of the leaves that hold its dimensions.
    """

    number: int
    leaves: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Product:
    """The one contraction of a group's neurons, of two activations.

    Attributes:
      place: of the contraction.
      step: the contraction.
      group: whose neurons it contracts, one dimension each, or several.
      sides: the operands that can be corrected, none, one or both.
    """

    place: int
    step: Step
    group: Group
    sides: tuple[Side, ...]


def products_of(walk: Walk, groups: Sequence[Group]) -> dict[str, Product]:
    """The groups whose neurons one product of two activations contracts, and nothing else.

    Args:
      walk: of the function.
      groups: to look at.

    Returns:
      By name.
    """
    found: dict[str, list[Product]] = {g.name: [] for g in groups}
    by_name = {g.name: g for g in groups}
    for place, step in enumerate(walk.program.steps):
        if traits_of(step.equation).kind != "contraction" or not any(step.data[:2]):
            continue
        contracted = contraction_of(step.equation).contracted
        axes = [walk.axes(n) for n in step.inputs[:2]]
        held = {a for i in (0, 1) for k in contracted[i] for a in ex.atoms(axes[i][k])}
        for name in held & by_name.keys():
            product = Product(place, step, by_name[name], ())
            found[name].append(product)
    chosen = {}
    for name, products in found.items():
        if len(products) == 1 and _is_plain(walk, products[0]):
            alone = len(columns_of(walk, products[0])) == products[0].group.size
            tried = (_side(walk, products[0], i) for i in (0, 1) if alone)
            chosen[name] = dataclasses.replace(products[0], sides=tuple(filter(None, tried)))
    return chosen


def products_by_place(products: Mapping[str, Product]) -> dict[int, tuple[Product, ...]]:
    """The products by the place where they stand."""
    found: dict[int, tuple[Product, ...]] = {}
    for product in products.values():
        found[product.place] = (*found.get(product.place, ()), product)
    return found


def columns_of(walk: Walk, product: Product, side: int = 0) -> Int[np.ndarray, " K"]:
    """Which neuron of the group the columns of an operand belong to: several each, as in pairs."""
    [axis] = contraction_of(product.step.equation).contracted[side]
    whole = walk.axes(product.step.inputs[side])[axis]
    return positions(whole, product.group.name, walk.sizes)


def _is_plain(walk: Walk, product: Product) -> bool:
    """Whether it is a matrix product of activations over neurons of the group and no others."""
    step, group = product.step, product.group
    if step.equation.primitive.name != "dot_general" or not all(step.data[:2]):
        return False
    found = contraction_of(step.equation)
    for side in (0, 1):
        axes = walk.axes(step.inputs[side])
        if len(found.contracted[side]) != 1 or step.inputs[0] == step.inputs[1]:
            return False
        if not all(_holds(axes, found.batch[side], name) for name in group.along):
            return False
    columns, other = (columns_of(walk, product, side) for side in (0, 1))
    counts = np.bincount(columns[columns >= 0], minlength=group.size)
    every = (columns >= 0).all() and len({*counts.tolist()}) == 1
    return bool(every and np.array_equal(columns, other))


def _holds(axes: Sequence[ex.Expression], among: Sequence[int], name: str) -> bool:
    """Whether each position along some of the axes belongs to one entry of a batch."""
    parts = [positions(axes[i], name) for i in among]
    return sum(bool((p >= 0).all()) for p in parts) == 1


def _side(walk: Walk, product: Product, side: int) -> Side | None:
    """An operand that is mixed where leaves are: all steps from them on go through it alike."""
    group, program = product.group, walk.program
    start = product.step.inputs[side]
    reads: dict[int, int] = {start: 1}
    leaves, stack = [], [start]
    while stack:
        number = stack.pop()
        if number in walk.leaves:
            if not jnp.issubdtype(walk.leaves[number].dtype, jnp.inexact):
                return None
            leaves.append(number)
            continue
        if number not in program.made:
            return None
        step = program.steps[program.made[number]]
        holding = [n for n in step.inputs if any(group.name in ex.atoms(e) for e in walk.axes(n))]
        if not holding or not _mixes(walk, step, group.name):
            return None
        for n in holding:
            if n not in reads:
                stack.append(n)
            reads[n] = reads.get(n, 0) + 1
    if any(program.uses[n] != count for n, count in reads.items()) or walk.fixed & {*leaves}:
        return None
    return Side(start, tuple(sorted(leaves)))


def _mixes(walk: Walk, step: Step, name: str) -> bool:
    """Whether mixing the neurons of the operands that hold them mixes those of the result."""
    held = [any(name in ex.atoms(e) for e in walk.axes(n)) for n in step.inputs]
    traits = traits_of(step.equation)
    match step.equation.primitive.name:
        case "add" | "add_any" | "sub":
            return all(held)
        case "neg":
            return True
        case "mul":
            return sum(held) == 1
        case "div":
            return held == [True, False]
        case "dot_general":
            found = contraction_of(step.equation)
            inner = [
                name in ex.atoms(walk.axes(n)[k])
                for i, n in enumerate(step.inputs)
                for k in (*found.contracted[i], *found.batch[i])
            ]
            return sum(held) == 1 and not any(inner)
    return traits.kind in ("same", "layout") and len(step.inputs) == 1


def entry_of(walk: Walk, product: Product) -> Int[np.ndarray, " B"]:
    """Which entry of the group's batch every product side by side belongs to."""
    step, group, sizes = product.step, product.group, walk.sizes
    axes, batch = walk.axes(step.inputs[0]), contraction_of(step.equation).batch[0]
    shape = [ex.size(axes[i], sizes) for i in batch]
    entry = np.zeros(int(np.prod(shape, dtype=int)), int)
    for name, n in zip(group.along, group.batch, strict=True):
        parts = [positions(axes[i], name, sizes) for i in batch]
        whole = functools.reduce(lambda a, b: np.maximum(a[..., None], b), parts)
        entry = entry * sizes.get(name, n) + whole.reshape(-1)
    return entry


def product_grams(walk: Walk, product: Product, held: Sequence[bool]) -> list[ProductGrams]:
    """Gram matrices of both operands, of the compressed function and with the dense one's.

    Args:
      walk: where both operands are known; the group may be cut already.
      product: the product.
      held: by batch, whether it is held out.

    Returns:
      Those of the batches that are not held out, and of those that are.
    """
    step, entry = product.step, entry_of(walk, product)
    forms = tuple(normal_form(step.equation, side) for side in (0, 1))
    parts: dict[bool, list[ProductGrams]] = {}
    for batch, is_held in enumerate(held):
        small = [walk.value(batch, n, False) for n in step.inputs]
        dense = [
            walk.restricted(walk.value(batch, n, True), n, but=product.group.name)
            for n in step.inputs
        ]
        found = _grams(forms, tuple(small), tuple(dense))
        q, k, p, r, *sums = (on_host(x, np.float64) for x in found)
        square, total, count = sums
        members = dict.fromkeys(m.path for m in product.group.members)
        walk.check_finite(step, q, k, p, r, square, total, names=list(members))
        part = ProductGrams(q, k, p, r, square, total, count, entry)
        parts.setdefault(is_held, []).append(part)
    return [joined(parts[is_held]) for is_held in sorted(parts)]


@functools.partial(jax.jit, static_argnums=0)
def _grams(
    forms: tuple[NormalForm, ...], small: tuple[Array, ...], dense: tuple[Array, ...]
) -> list[Array]:
    wide = functools.partial(jnp.asarray, dtype=jnp.promote_types(small[0].dtype, jnp.float32))
    (q, k), (p, r) = (
        [wide(rows(f, x)) for f, x in zip(forms, pair, strict=True)] for pair in (small, dense)
    )
    times = functools.partial(jnp.einsum, "bni,bnj->bij", precision=lax.Precision.HIGHEST)
    total = (times(p, p) * times(r, r)).sum((1, 2))
    means = (p.sum(1) * r.sum(1)).sum(1)
    count = jnp.full_like(total, q.shape[1] * k.shape[1])
    return [times(q, q), times(k, k), times(q, p), times(k, r), total, means, count]


def chosen_of_product(
    walk: Walk, product: Product, direction: str, grams: Sequence[ProductGrams]
) -> dict[str, np.ndarray]:
    """The dimensions whose rank-one products q_i k_i' make up best for the others'.

    Those that hang together, as the pairs that rotary positions turn, are kept or gone together.

    Args:
      walk: for the entries.
      product: the product.
      direction: whether dimensions are removed or taken one after the other.
      grams: of all dimensions.

    Returns:
      Indices ``[*batch, m]`` by the name of the group.
    """
    group, entries = product.group, entries_of(walk, product.group)
    count = int(np.prod(entries, dtype=int))
    gram, n = entrywise(joined(grams), count), grams[0].left.shape[-1]
    units = columns_of(walk, product) + group.size * np.arange(count)[:, None]
    choice = kept_neurons(direction)
    kept = choice(gram, np.ones((count, n, 1)), units, count, group.kept)
    return {group.name: kept.reshape(*entries, group.kept)}


def restored(
    product: Product,
    grams: Sequence[ProductGrams],
    index: Int[np.ndarray, "E m"] | None,
    is_split: bool,
) -> dict[str, np.ndarray]:
    """What the dimensions of both operands are multiplied by, and the errors with it.

    Args:
      product: with an operand that can be corrected.
      grams: first those not held out.
      index: the dimensions that are to be kept; None where the others are gone already.
      is_split: whether the last Gram matrices are of what is held out.

    Returns:
      Matrices ``[entries, n, m]`` for the left and the right operand, and a row of numbers for
      `Solved`.
    """
    entries, n = int(grams[0].entry.max()) + 1, grams[0].left.shape[-1]
    chosen = np.broadcast_to(np.eye(n), (entries, n, n))
    if index is not None:
        chosen = np.stack([np.eye(n)[:, i] for i in index])
    bases = [(chosen, chosen)]
    if index is not None and len(product.sides) == 2:
        bases.append(subspaces(grams[0], entries, index.shape[1]))
    tried = [_corrected(product, grams, *basis, is_split) for basis in bases]
    best = min(tried, key=lambda found: found.held if is_split else found.after)
    kept = [g.moved(chosen, chosen) for g in grams]
    none = np.broadcast_to(np.eye(chosen.shape[-1]), (entries, *2 * chosen.shape[-1:]))
    spread = joined(grams).spread or 1.0
    apart = (grams[-1].spread or 1.0) if is_split else float("nan")
    numbers = (
        none.shape[-1],
        sum(float(g.count.sum()) for g in grams),
        best.shrinkage,
        sum(product_error(g, none) for g in kept) / spread,
        best.after / spread,
        product_error(kept[-1], none) / apart,
        best.held / apart,
    )
    return {"left": best.left, "right": best.right, "numbers": np.asarray(numbers, np.float64)}


class _Corrected(NamedTuple):
    """Matrices for both operands, the squared error with them, and on what was held out."""

    left: Float[np.ndarray, "E n m"]
    right: Float[np.ndarray, "E n m"]
    shrinkage: float
    after: float
    held: float


def _corrected(
    product: Product,
    grams: Sequence[ProductGrams],
    left: Float[np.ndarray, "E n m"],
    right: Float[np.ndarray, "E n m"],
    is_split: bool,
) -> _Corrected:
    """What stands between combinations of the columns goes into an operand that can take it."""
    parts, entries = [g.moved(left, right) for g in grams], len(left)
    matrix, shrinkage = best_middle(parts[0], parts[-1] if is_split else None, entries)
    alone = middle(parts[0], entries, shrinkage)
    after = sum(product_error(g, matrix) for g in parts)
    held = product_error(parts[-1], alone)
    if product.sides[0].number == product.step.inputs[0]:
        return _Corrected(left @ matrix, right, shrinkage, after, held)
    return _Corrected(left, right @ matrix.swapaxes(1, 2), shrinkage, after, held)


def mix(
    walk: Walk,
    product: Product,
    matrices: Mapping[str, Float[np.ndarray, "E n m"]],
    index: Int[np.ndarray, "E m"] | None,
) -> None:
    """Multiplies dimensions of the operands by matrices, in the leaves that make them.

    Args:
      walk: at the product.
      product: the product.
      matrices: for the left and the right operand; of one that cannot be corrected nothing is used.
      index: which dimensions the combinations take the places of; None for all of them.
    """
    group, structure = product.group, walk.resized.structure
    leaves = dict(zip(walk.leaves, structure.leaves, strict=True))
    for side in product.sides:
        matrix = matrices["left" if side.number == product.step.inputs[0] else "right"]
        if index is not None:
            whole = np.zeros((*matrix.shape[:2], matrix.shape[1]))
            np.put_along_axis(whole, index[:, None], matrix, -1)
            matrix = whole
        matrix = matrix.swapaxes(-1, -2).reshape(*entries_of(walk, group), *matrix.shape[1:])
        every = np.broadcast_to(np.arange(matrix.shape[-1]), matrix.shape[:-1])
        event = Event(group, every, {**walk.sizes, group.name: matrix.shape[-1]}, matrix)
        for n in side.leaves:
            walk.write(n, merge(walk.leaves[n], leaves[n].axes, event))
        for small in walk.small:
            if side.number in small:  # else it is computed from the leaves when it is read
                small[side.number] = merge(small[side.number], walk.axes(side.number), event)
        walk.dirty.add(side.number)
