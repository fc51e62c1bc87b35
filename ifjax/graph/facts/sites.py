"""Where a network can be corrected: contractions with weights, and the affine paths behind them.

A *site* is a contraction of an activation with a weight whose entries are entries of one leaf. From
its result on, as long as a value is used once and every step is affine in it and keeps its entries
(a bias, a folded norm, an add, a reshape), errors can still be corrected by the weight: this is its
*path*. Sites whose paths end in one value, such as a convolution and the projection of the shortcut
that it meets at an add, are one *unit* and are solved together.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from ifjax.jaxprs import compat
from ifjax.jaxprs.program import Program, Step
from ifjax.jaxprs.traits import traits_of

Path = tuple[tuple[int, int], ...]  # places of steps, and the operand of each that is on the path


@dataclasses.dataclass(frozen=True)
class View:
    """A value whose entries are entries of one leaf, scaled and shifted by other parameters.

    Attributes:
      leaf: number of the leaf.
      spine: the steps from the leaf to the value, as places and operands.
    """

    leaf: int
    spine: Path


@dataclasses.dataclass(frozen=True)
class Site:
    """A contraction of an activation with a weight.

    Attributes:
      place: of the contraction among the steps of the program.
      step: the contraction.
      side: which of its first two operands is the activation.
      view: what the weight is made of.
      path: from its result to the end of the unit.
      end: number of the value at the end.
    """

    place: int
    step: Step
    side: int
    view: View
    path: Path
    end: int

    @property
    def input(self) -> int:
        """Number of the activation."""
        return self.step.inputs[self.side]

    @property
    def weight(self) -> int:
        """Number of the weight."""
        return self.step.inputs[1 - self.side]

    @property
    def output(self) -> int:
        """Number of the result."""
        return self.step.outputs[0]


@dataclasses.dataclass(frozen=True)
class Unit:
    """Sites whose paths end in the same value.

    Attributes:
      end: number of that value.
      sites: the contractions.
      places: of the contractions and the steps of their paths, in the order of the program.
    """

    end: int
    sites: tuple[Site, ...]
    places: tuple[int, ...]

    @property
    def stop(self) -> int:
        """Place of the step that makes the end."""
        return self.places[-1]


@dataclasses.dataclass(frozen=True)
class Sites:
    """What a function has of them.

    Attributes:
      units: in the order in which their ends are made.
      tied: units of leaves that are read several times alike, such as those of a recurrent layer
        taken apart: together those that share leaves, the one with most leaves first.
      follows: contractions of an activation with parameters that are no sites: place and reason.
      reads: by number of a leaf, the places of steps that read what is made of it on data.
      made: by number of a value, the place of the step that makes it.
      origins: by number of a value of parameters alone, the leaves that it depends on.
    """

    units: tuple[Unit, ...]
    tied: tuple[tuple[Unit, ...], ...]
    follows: tuple[tuple[int, str], ...]
    reads: Mapping[int, tuple[int, ...]]
    made: Mapping[int, int]
    origins: Mapping[int, frozenset[int]]


def find_sites(program: Program, leaves: int) -> Sites:
    """Finds the sites of a program.

    Args:
      program: calls taken apart, with inputs that are data told from parameters.
      leaves: how many of its inputs are parameters; these come first.

    Returns:
      The sites, by units.

    Example:
      >>> import jax
      >>> from ifjax.jaxprs.program import flatten
      >>> def apply(w1, b1, w2, x):
      ...     return jax.nn.relu(x @ w1 + b1) @ w2 + x
      >>> shapes = [(3, 4), (4,), (4, 3), (5, 3)]
      >>> jaxpr = jax.make_jaxpr(apply)(*map(jnp.zeros, shapes))
      >>> found = find_sites(flatten(jaxpr, [False, False, False, True]), 3)
      >>> [(u.sites[0].view.leaf, len(u.places)) for u in found.units]
      [(0, 2), (2, 2)]
    """
    made = {n: place for place, step in enumerate(program.steps) for n in step.outputs}
    origins = _origins(program, leaves)
    users: dict[int, list[tuple[int, int]]] = defaultdict(list)
    reads: dict[int, list[int]] = defaultdict(list)
    for place, step in enumerate(program.steps):
        for k, n in enumerate(step.inputs):
            users[n].append((place, k))
            if any(step.data) and not program.data[n]:
                for leaf in origins.get(n, ()):
                    reads[leaf].append(place)
    found: list[Site] = []
    follows: list[tuple[int, str]] = []
    for place, step in enumerate(program.steps):
        inside = step.equation.primitive.name in ("scan", "while", "cond") and any(step.data)
        if inside and any(origins.get(n) for n in step.inputs):
            follows.append((place, "inside of a loop or branch that is not taken apart"))
        if traits_of(step.equation).kind != "contraction" or sum(step.data[:2]) != 1:
            continue
        side = step.data[:2].index(True)
        view = _solvable(program, step, side, made, origins)
        if isinstance(view, View):
            path, end = _path(program, users, step.outputs[0])
            found.append(Site(place, step, side, view, path, end))
        elif origins.get(step.inputs[1 - side]):
            follows.append((place, view))
    tied = _tied(program, found, reads, made, origins)
    alone = [s for s in found if len(reads[s.view.leaf]) == 1]
    shared = [s for s in found if s.view.leaf in tied]
    for site in found:
        if site not in alone and site not in shared:
            follows.append((site.place, "the leaf is read elsewhere too"))
    every = {leaf: tuple(places) for leaf, places in reads.items()}
    return Sites(_units(alone), _classes(_units(shared)), tuple(follows), every, made, origins)


def _units(sites: Sequence[Site]) -> tuple[Unit, ...]:
    """Sites by the ends of their paths, in the order in which these are made."""
    ends: dict[int, list[Site]] = defaultdict(list)
    for site in sites:
        ends[site.end].append(site)
    units = []
    for end, found in ends.items():
        places = {s.place for s in found} | {p for s in found for p, _ in s.path}
        units.append(Unit(end, tuple(found), tuple(sorted(places))))
    return tuple(sorted(units, key=lambda unit: unit.stop))


def _classes(units: Sequence[Unit]) -> tuple[tuple[Unit, ...], ...]:
    """Units that share leaves, together; the one with most leaves first."""
    classes: list[tuple[set[int], list[Unit]]] = []
    for unit in units:
        leaves = {s.view.leaf for s in unit.sites}
        joined = [c for c in classes if c[0] & leaves]
        classes = [c for c in classes if not c[0] & leaves]
        leaves = leaves.union(*(other for other, _ in joined))
        members = [u for _, more in joined for u in more]
        classes.append((leaves, [*members, unit]))

    def distinct(unit: Unit) -> int:
        return len({s.view.leaf for s in unit.sites})

    return tuple(tuple(sorted(us, key=distinct, reverse=True)) for _, us in classes)


def _tied(
    program: Program,
    sites: Sequence[Site],
    reads: Mapping[int, list[int]],
    made: Mapping[int, int],
    origins: Mapping[int, frozenset[int]],
) -> set[int]:
    """Leaves that several sites read alike, and nothing else but products with constants."""
    uses: dict[int, list[Site]] = defaultdict(list)
    for site in sites:
        uses[site.view.leaf].append(site)

    def by_constant(number: int, leaf: int) -> bool:
        if number == leaf:
            return False
        step = program.steps[made[number]]
        if traits_of(step.equation).kind == "contraction":
            return True
        return all(by_constant(n, leaf) for n in step.inputs if leaf in origins.get(n, ()))

    found = set()
    for leaf, same in uses.items():
        places = {s.place for s in same}
        rest = [
            n
            for place in reads[leaf]
            if place not in places
            for n in program.steps[place].inputs
            if leaf in origins.get(n, ())
        ]
        alike = len({s.view.spine for s in same}) == 1
        if len(reads[leaf]) > 1 and alike and all(by_constant(n, leaf) for n in rest):
            found.add(leaf)
    return found


def _solvable(
    program: Program,
    step: Step,
    side: int,
    made: Mapping[int, int],
    origins: Mapping[int, frozenset[int]],
) -> View | str:
    """What the weight of a contraction is made of; why it cannot be solved for."""
    view = view_of(program, made, origins, step.inputs[1 - side])
    if isinstance(view, str):
        return view
    if step.equation.primitive.name == "ragged_dot_general":
        return "a product of ragged groups"
    if step.equation.params.get("batch_group_count", 1) != 1:
        return "a convolution of batch groups"
    if side == 1 and step.equation.primitive.name == "conv_general_dilated":
        return "a convolution with a kernel that is no parameter"
    return view


def _origins(program: Program, leaves: int) -> dict[int, frozenset[int]]:
    """By number of a value of parameters alone, the leaves that it depends on."""
    found = {n: frozenset({n}) for n in program.inputs[:leaves]}
    for step in program.steps:
        if not any(step.data):
            whole = frozenset[int]().union(*(found.get(n, ()) for n in step.inputs))
            found |= dict.fromkeys(step.outputs, whole)
    return found


def view_of(
    program: Program,
    made: Mapping[int, int],
    origins: Mapping[int, frozenset[int]],
    number: int,
    spread: bool = False,
) -> View | str:
    """What a value of parameters is made of: the leaf, or why it is not one leaf's entries.

    Args:
      program: the program.
      made: the places of the steps that make values.
      origins: the leaves that values depend on.
      number: of the value.
      spread: whether an entry may stand in several places, as a bias does.

    Returns:
      The view, or the reason why there is none.
    """
    inputs, spine = {n for n in program.inputs if n in origins}, []
    while number not in inputs:
        if number not in made:
            return "a constant"
        place = made[number]
        step = program.steps[place]
        k = _carrier(step, origins, spread)
        if isinstance(k, str):
            return k
        spine.append((place, k))
        number = step.inputs[k]
    return View(number, tuple(spine[::-1]))


def _carrier(step: Step, origins: Mapping[int, frozenset[int]], spread: bool) -> int | str:
    """The operand whose entries the result's are, scaled and shifted by the others."""
    traits, name = traits_of(step.equation), step.equation.primitive.name
    size = _size(step.equation.outvars[0])
    if len(step.outputs) != 1:
        return f"made by {name}"
    if traits.kind in ("same", "layout") or name in ("slice", "squeeze", "rev", "neg"):
        if name == "broadcast_in_dim" and not spread and size != _size(step.equation.invars[0]):
            return "its entries are repeated"
        return 0 if len(step.inputs) == 1 else f"made by {name}"
    if traits.kind != "elementwise" or not traits.affine or not traits.zero:
        return f"made by {name}"
    fits = [
        k
        for k in traits.affine
        if origins.get(step.inputs[k]) and (spread or _size(step.equation.invars[k]) == size)
    ]
    if name in ("mul", "div", "add", "add_any", "sub") and len(fits) == 2:
        larger = [k for k in fits if _size(step.equation.invars[k]) == size]
        fits = larger[:1]
    if not fits:
        return f"made by {name}"
    k = fits[0]
    others = (origins.get(n, frozenset()) for i, n in enumerate(step.inputs) if i != k)
    if any(origins[step.inputs[k]] & other for other in others):
        return "the weight is normalised by a function of itself"
    return k


def _size(atom: compat.Atom) -> int:
    return math.prod(compat.shape_of(atom))


def _path(
    program: Program, users: Mapping[int, list[tuple[int, int]]], number: int
) -> tuple[Path, int]:
    """The steps that are affine in a value and keep its entries, and the value at their end."""
    path: list[tuple[int, int]] = []
    while program.uses[number] == 1 and users.get(number):
        [(place, k)] = users[number]
        if not _keeps(program.steps[place], k):
            break
        path.append((place, k))
        number = program.steps[place].outputs[0]
    return tuple(path), number


def _keeps(step: Step, k: int) -> bool:
    """Whether a step is affine in an operand, entry by entry, with slopes of parameters alone."""
    equation, traits = step.equation, traits_of(step.equation)
    result = equation.outvars[0]
    if len(step.outputs) != 1 or _size(result) != _size(equation.invars[k]):
        return False
    if not jnp.issubdtype(compat.dtype_of(result), jnp.floating):
        return False
    others = [data for i, data in enumerate(step.data) if i != k]
    match equation.primitive.name:
        case "add" | "add_any" | "sub":
            return True
        case "mul":
            return not any(others)
        case "div":
            return k == 0 and not any(others)
        case "neg":
            return True
    return traits.kind in ("same", "layout") and len(step.inputs) == 1
