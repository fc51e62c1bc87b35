"""Weights whose entries are entries of leaves, scaled and shifted by other parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp

from ifjax.jaxprs import compat
from ifjax.jaxprs.program import Program, Step
from ifjax.jaxprs.traits import traits_of

Path = tuple[tuple[int, int], ...]  # places of steps, and the operand of each that is on the path
ITSELF = "the weight is normalised by a function of itself"


@dataclasses.dataclass(frozen=True)
class View:
    """A value whose entries are entries of one leaf, scaled and shifted by other parameters.

    Attributes:
      leaf: number of the leaf.
      spine: the steps from the leaf to the value, as places and operands.
      gain: where the entries are divided by a norm of themselves, the leaf that scales them
        afterwards, as g in (v / |v|) g, and the steps from it to the value.
    """

    leaf: int
    spine: Path
    gain: tuple[int, Path] | None = None


def weight_views(program: Program, step: Step, k: int) -> tuple[View, ...] | str:
    """What operand k of a contraction is made of: leaves that can be given any numbers.

    The reason why there are none, where the leaf, or what is made of it on the way, is of integers.
    """
    return _not_real(step, k) or views_of(program, step.inputs[k], spread=False)


def views_of(program: Program, number: int, spread: bool) -> tuple[View, ...] | str:
    """What a value of parameters is made of: a leaf, or leaves that are joined; or why of none.

    Args:
      program: with parameters told from data.
      number: of the value.
      spread: whether an entry may stand in several places, as a bias does.

    Returns:
      A view of each leaf, or the reason.
    """
    made, origins = program.made, program.origins
    spine, normalised = [], False
    while number in made:
        place = made[number]
        step = program.steps[place]
        if step.equation.primitive.name == "concatenate":
            parts: list[View] = []
            for k, n in enumerate(step.inputs):
                found = views_of(program, n, spread)
                if isinstance(found, str):
                    return found
                if normalised or any(v.gain for v in found):
                    return "joined weights are normalised"
                rest = ((place, k), *spine[::-1])
                parts += (View(v.leaf, (*v.spine, *rest)) for v in found)
            alone = len({v.leaf for v in parts}) == len(parts)
            return tuple(parts) if alone else "its entries are repeated"
        k = _carrier(step, origins, spread)
        if isinstance(k, str):
            return k
        why = _not_real(step, k)
        if why and not spread:
            return why
        others = [origins.get(n, frozenset()) for i, n in enumerate(step.inputs) if i != k]
        if any(origins[step.inputs[k]] & other for other in others):
            if spread or step.equation.primitive.name not in ("mul", "div"):
                return ITSELF
            normalised = True
        spine.append((place, k))
        number = step.inputs[k]
    if number not in origins:
        return "a constant"
    path = tuple(spine[::-1])
    gain = _gain(program, path) if normalised else None
    if normalised and (gain is None or gain[0] == number):
        return ITSELF
    return (View(number, path, gain),)


def _gain(program: Program, spine: Path) -> tuple[int, Path] | None:
    """The last leaf that multiplies the entries on their way, and its own way from there."""
    for i in reversed(range(len(spine))):
        place, k = spine[i]
        step = program.steps[place]
        if step.equation.primitive.name == "mul":
            found = views_of(program, step.inputs[1 - k], spread=True)
            if not isinstance(found, str) and len(found) == 1:
                return found[0].leaf, (*found[0].spine, (place, 1 - k), *spine[i + 1 :])
    return None


def _carrier(step: Step, origins: Mapping[int, frozenset[int]], spread: bool) -> int | str:
    """The operand whose entries the result's are, scaled and shifted by the others."""
    traits, name = traits_of(step.equation), step.equation.primitive.name
    size = entries(step.equation.outvars[0])
    if len(step.outputs) != 1:
        return f"made by {name}"
    if traits.kind in ("same", "layout") or name in ("slice", "squeeze", "rev", "neg"):
        if name == "broadcast_in_dim" and not spread and size != entries(step.equation.invars[0]):
            return "its entries are repeated"
        return 0 if len(step.inputs) == 1 else f"made by {name}"
    if traits.kind != "elementwise" or not traits.affine or not traits.zero:
        return f"made by {name}"
    fits = [
        k
        for k in traits.affine
        if origins.get(step.inputs[k]) and (spread or entries(step.equation.invars[k]) == size)
    ]
    if name in ("mul", "div", "add", "add_any", "sub") and len(fits) == 2:
        larger = [k for k in fits if entries(step.equation.invars[k]) == size]
        fits = larger[:1]
    if not fits:
        return f"made by {name}"
    return fits[0]


def _not_real(step: Step, k: int) -> str | None:
    """What is told of an operand whose numbers cannot be any that a solution asks for."""
    dtype = compat.dtype_of(step.equation.invars[k])
    return None if jnp.issubdtype(dtype, jnp.floating) else f"its entries are {dtype}"


def entries(atom: compat.Atom) -> int:
    """How many entries a value has."""
    return math.prod(compat.shape_of(atom))
