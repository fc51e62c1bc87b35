"""The same function traced at other widths, to tell which of its numbers come from them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import jax
from jax.extend.core import Jaxpr
from jaxtyping import PyTree

from ifjax.graph.facts.numbers import Numbers
from ifjax.jaxprs import compat
from ifjax.jaxprs.axis_store import AxisStore
from ifjax.jaxprs.compat import AnyJaxpr
from ifjax.jaxprs.normal import normalised
from ifjax.jaxprs.walk import Axes, Frame, frames_of

MOST_TRIES = 4
Shapes = list[tuple[int, ...]]
# Shapes of the parameters and of the other arrays at other widths, given the store, the axes of
# both, and what is known of the numbers; further ones where the first cannot be traced, none where
# nothing is asked.
Elsewhere = Callable[
    [AxisStore, Sequence[Axes], Sequence[Axes], Numbers], Iterable[tuple[Shapes, Shapes]]
]


def doubled(
    store: AxisStore, leaves: Sequence[Axes], inputs: Sequence[Axes], numbers: Numbers
) -> Iterator[tuple[Shapes, Shapes]]:
    """Shapes with all classes twice as wide, then with one of those asked about at a time."""
    asked = [*sorted(numbers.asks), *sorted(numbers.wonders - numbers.asks)]
    if not asked:
        return
    everything = store.classes_of(a for axes in (*leaves, *inputs) for a in axes)
    for wide in [everything, *({root} for root in asked[: MOST_TRIES - 1])]:
        widths = {root: 2 * store.size(root) for root in wide}
        flat, rest = (
            [tuple(store.size_at(a, widths) for a in axes) for axes in arrays]
            for arrays in (leaves, inputs)
        )
        yield flat, rest


def traced_at(
    function: Callable[..., PyTree],
    params: PyTree,
    arrays: Sequence[jax.ShapeDtypeStruct],
    alternatives: Iterable[tuple[Shapes, Shapes]],
    frame: Frame,
    keep_callbacks: bool,
) -> list[dict[int, Jaxpr]]:
    """The function's jaxprs at other widths, see `paired`.

    Args:
      function: of the parameters and the other arrays.
      params: tree of structs.
      arrays: structs.
      alternatives: other shapes of both; all others where it cannot be traced for the first.
      frame: the frame of the function.
      keep_callbacks: as for the function itself.

    Returns:
      One mapping for every trace; none where the function has fixed widths.
    """
    found: list[dict[int, Jaxpr]] = []
    leaves, tree = jax.tree.flatten(params)
    for k, (shapes, others) in enumerate(alternatives):
        flat, rest = (
            [jax.ShapeDtypeStruct(n, x.dtype, weak_type=x.weak_type) for x, n in pairs]
            for pairs in (zip(leaves, shapes, strict=True), zip(arrays, others, strict=True))
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                closed = jax.make_jaxpr(function)(jax.tree.unflatten(tree, flat), *rest)
        except Exception:  # a function may check its widths in any way
            continue
        found.append(paired(frame, normalised(closed, keep_callbacks)))
        if k == 0:
            break
    return found


def paired(frame: Frame, jaxpr: AnyJaxpr) -> dict[int, Jaxpr]:
    """The jaxprs that stand in the place of a frame's and of those of its calls, by `id`.

    Calls that are made of other equations are left out.
    """
    found: dict[int, Jaxpr] = {}
    stack = [(frame, compat.unpack(jaxpr)[0])]
    while stack:
        here, other = stack.pop()
        names = [[e.primitive.name for e in j.eqns] for j in (here.jaxpr, other)]
        if names[0] != names[1]:
            continue
        found[id(here)] = other
        for i, note in here.notes.items():
            params = here.jaxpr.eqns[i].params
            for inner in frames_of(note):
                twin = _in_place_of(inner.jaxpr, params, other.eqns[i].params)
                if twin is not None:
                    stack.append((inner, twin))
    return found


def _in_place_of(
    jaxpr: AnyJaxpr, params: Mapping[str, object], others: Mapping[str, object]
) -> Jaxpr | None:
    """Of the parameters of another equation, the jaxpr that stands where one's own does."""
    for key, value in params.items():
        mine, theirs = (x if isinstance(x, tuple) else (x,) for x in (value, others[key]))
        for part, other in zip(mine, theirs, strict=False):
            if not isinstance(part, AnyJaxpr) or not isinstance(other, AnyJaxpr):
                continue
            if compat.unpack(part)[0] is jaxpr:
                return compat.unpack(other)[0]
    return None
