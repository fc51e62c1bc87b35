"""Where a network can be corrected: contractions with weights, and the affine paths behind them.

A *site* is a contraction of an activation with a weight whose entries are entries of one leaf. From
its result on, as long as a value is used once and every step is affine in it and keeps its entries
(a bias, a folded norm, an add, a reshape), errors can still be corrected by the weight: this is its
*path*. Sites whose paths end in one value, such as a convolution and the projection of the shortcut
that it meets at an add, are one *unit* and are solved together.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from ifjax.graph.facts.views import Path, View, entries, weight_views
from ifjax.jaxprs import compat
from ifjax.jaxprs.program import Program, Step
from ifjax.jaxprs.traits import traits_of


@dataclasses.dataclass(frozen=True)
class Site:
    """A contraction of an activation with a weight.

    Attributes:
      place: of the contraction among the steps of the program.
      step: the contraction.
      side: which of its first two operands is the activation.
      views: what the weight is made of: a leaf, or several that are joined.
      path: from its result to the end of the unit.
      end: number of the value at the end.
    """

    place: int
    step: Step
    side: int
    views: tuple[View, ...]
    path: Path
    end: int

    @property
    def leaves(self) -> tuple[int, ...]:
        """Numbers of the leaves that the weight is made of."""
        return tuple(view.leaf for view in self.views)

    @property
    def gains(self) -> tuple[int, ...]:
        """Numbers of the leaves that scale what is normalised."""
        return tuple(view.gain[0] for view in self.views if view.gain)

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
    """

    units: tuple[Unit, ...]
    tied: tuple[tuple[Unit, ...], ...]
    follows: tuple[tuple[int, str], ...]
    reads: Mapping[int, tuple[int, ...]]


def find_sites(program: Program) -> Sites:
    """Finds the sites of a program.

    Args:
      program: calls taken apart, its inputs that are leaves told from those that are data.

    Returns:
      The sites, by units.

    Example:
      >>> import jax
      >>> from ifjax.jaxprs.program import flatten
      >>> def apply(w1, b1, w2, x):
      ...     return jax.nn.relu(x @ w1 + b1) @ w2 + x
      >>> shapes = [(3, 4), (4,), (4, 3), (5, 3)]
      >>> jaxpr = jax.make_jaxpr(apply)(*map(jnp.zeros, shapes))
      >>> found = find_sites(flatten(jaxpr, [False, False, False, True]))
      >>> [(u.sites[0].leaves, len(u.places)) for u in found.units]
      [((0,), 2), ((2,), 2)]
    """
    origins = program.origins
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
        views = _solvable(program, step, side)
        if not isinstance(views, str):
            path, end = _path(program, users, step.outputs[0])
            found.append(Site(place, step, side, views, path, end))
        elif origins.get(step.inputs[1 - side]):
            follows.append((place, views))
    tied = _tied(program, found, reads)
    alone = [s for s in found if all(len(reads[leaf]) == 1 for leaf in (*s.leaves, *s.gains))]
    shared = [s for s in found if tied.issuperset((*s.leaves, *s.gains))]
    for site in found:
        if site not in alone and site not in shared:
            follows.append((site.place, "the leaf is read elsewhere too"))
    every = {leaf: tuple(places) for leaf, places in reads.items()}
    return Sites(_units(alone), _classes(_units(shared)), tuple(follows), every)


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
        leaves = {leaf for s in unit.sites for leaf in s.leaves}
        joined = [c for c in classes if c[0] & leaves]
        classes = [c for c in classes if not c[0] & leaves]
        leaves = leaves.union(*(other for other, _ in joined))
        members = [u for _, more in joined for u in more]
        classes.append((leaves, [*members, unit]))

    def distinct(unit: Unit) -> int:
        return len({s.leaves for s in unit.sites})

    return tuple(tuple(sorted(us, key=distinct, reverse=True)) for _, us in classes)


def _tied(program: Program, sites: Sequence[Site], reads: Mapping[int, list[int]]) -> set[int]:
    """Leaves that several sites read alike, and nothing else but products with constants."""
    origins = program.origins
    uses: dict[int, list[Site]] = defaultdict(list)
    for site in sites:
        for leaf in site.leaves:
            uses[leaf].append(site)

    def by_constant(number: int, leaf: int) -> bool:
        if number == leaf:
            return False
        step = program.steps[program.made[number]]
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
        alike = len({_manner(program, s) for s in same}) == 1
        if len(reads[leaf]) > 1 and alike and all(by_constant(n, leaf) for n in rest):
            found.add(leaf)
    return found


def _manner(program: Program, site: Site) -> tuple[object, ...]:
    """How a weight is made of its leaves: by the same steps, or by others that move alike."""

    def step(place: int, k: int) -> object:
        equation = program.steps[place].equation
        moves = traits_of(equation).kind in ("same", "layout", "join")
        return (equation.primitive, str(equation.params), k) if moves else (place, k)

    return tuple((v.leaf, *(step(place, k) for place, k in v.spine)) for v in site.views)


def _solvable(program: Program, step: Step, side: int) -> tuple[View, ...] | str:
    """What the weight of a contraction is made of; why it cannot be solved for."""
    views = weight_views(program, step, 1 - side)
    if isinstance(views, str):
        return views
    if step.equation.primitive.name == "ragged_dot_general":
        return "a product of ragged groups"
    if step.equation.params.get("batch_group_count", 1) != 1:
        return "a convolution of batch groups"
    if side == 1 and step.equation.primitive.name == "conv_general_dilated":
        return "a convolution with a kernel that is no parameter"
    return views


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
    if len(step.outputs) != 1 or entries(result) != entries(equation.invars[k]):
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
