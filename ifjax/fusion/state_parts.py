"""The parts of a tree that are shaped like the parameters, or like some of them.

Found by their place: by the names and the paths of all their arrays together, never by the shape of
one.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NoReturn

import optax

from ifjax.fusion import state_kinds
from ifjax.fusion.named_tree import Entry, Node, Path
from ifjax.fusion.state_kinds import FACTORED, REFUSED, Place
from ifjax.structure.structure import Structure

Explicit = Callable[[Path], str | None]
ANEW = "initialise it anew on the small parameters"


@dataclasses.dataclass(frozen=True)
class Likeness:
    """An array that goes with a parameter.

    Attributes:
      leaf: path of the parameter.
      entry: the array.
      axes: the axes of the parameter that the array has; None for all of them.
    """

    leaf: str
    entry: Entry
    axes: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Part:
    """A sub-tree shaped like the parameters, or like a part of them.

    Attributes:
      path: of the sub-tree.
      arrays: its arrays, each with the parameter that it is like.
      place: what a named state says that it holds.
      inside: whether an optimizer's state holds it.
    """

    path: Path
    arrays: tuple[Likeness, ...]
    place: Place | None
    inside: bool

    @property
    def name(self) -> str:
        """Its path as text."""
        return "/".join(self.path)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The parameters, as far as trees are compared to them.

    Attributes:
      structure: their leaves.
      before: by every run of names in their paths, what stands before it.
      cut: paths of the leaves that become narrower.
      counts: how many numbers all of them, or nearly all (one collection), hold together.
    """

    structure: Structure
    before: Mapping[str, frozenset[str]]
    cut: frozenset[str]
    counts: frozenset[int]

    @classmethod
    def of(cls, structure: Structure) -> Parameters:
        """The leaves of a structure."""
        before: dict[str, set[str]] = defaultdict(set)
        for path in structure.leaf:
            keys = path.split("/")
            for end in range(len(keys) + 1):
                for start in range(end + (end < len(keys))):
                    before["/".join(keys[start:end])].add("/".join(keys[:start]))
        cut = frozenset(m.path for g in structure.in_order() for m in g.members)
        counts: dict[str, int] = defaultdict(int)
        for leaf in structure.leaves:
            for collection in ("", leaf.path.split("/")[0]):
                counts[collection] += math.prod(leaf.shape)
        runs = {k: frozenset(v) for k, v in before.items()}
        most = frozenset(n for n in counts.values() if 2 * n > counts[""])
        return cls(structure, runs, cut, most)

    def under(self, prefix: str) -> Iterator[str]:
        """Paths of the leaves below a prefix, without it."""
        for path in self.structure.leaf:
            if not prefix:
                yield path
            elif path.startswith(prefix + "/"):
                yield path[len(prefix) + 1 :]


def parts_of(node: Node, known: Parameters, explicit: Explicit) -> Iterator[Part]:
    """The outermost parts of a tree.

    Args:
      node: the tree.
      known: the parameters.
      explicit: what the caller says of a path; what is to be kept is left out.

    Yields:
      The parts.

    Raises:
      ValueError: naming an array that goes with a parameter and has another shape, or could belong
        to several; or a state that cannot be carried.
    """
    yield from _parts(node, known, explicit, None, False)


def _parts(
    node: Node, known: Parameters, explicit: Explicit, place: Place | None, inside: bool
) -> Iterator[Part]:
    arrays = [e for e in node.entries if e.is_array]
    if not arrays or place == "keep" or explicit(node.path) == "keep":
        return
    if node.state in REFUSED and any(e.value.size > 1 for e in arrays):
        raise ValueError(
            f"{'/'.join(node.path) or 'the tree'} ({node.state}): cannot be carried to other "
            f"widths: {REFUSED[node.state]}; {ANEW}, and carry the rest without it"
        )
    found = _matched(node, arrays, known, place)
    if found is not None:
        yield Part(node.path, found, place, inside)
        return
    if node.is_single:
        _refuse_derived(arrays[0], known)
        _refuse_flat(arrays[0], known, place, inside)
        return
    loose = []
    for name, child in node.children.items():
        alone = _loose(node, name, child, known)
        if alone is not None:
            loose.append(alone)
            continue
        here = place if node.state is None else state_kinds.field_of(node.state, name)
        if here == "average":
            here = "select" if inside else "average"
        within = inside or _is_chain(node) or state_kinds.is_optimizer(name) or node.is_optax
        yield from _parts(child, known, explicit, here, within)
    if loose:
        yield Part(node.path, tuple(loose), place, inside)


def _is_chain(node: Node) -> bool:
    """Whether it is the state of `optax.chain`: nothing but states, one beside the other."""
    return type(node.value) is tuple and all(
        child.is_optax and isinstance(child.value, tuple) for child in node.children.values()
    )


def _matched(
    node: Node, arrays: Sequence[Entry], known: Parameters, place: Place | None
) -> tuple[Likeness, ...] | None:
    """The arrays of a node that is shaped like parameters; None where it is not."""
    depth, structure = len(node.path), known.structure
    if node.state is not None or (node.is_single and [*structure.leaf] != [""]):
        return None
    last = 1 if place == "axes" else 0  # the number of the axis
    masked = [e for e in node.entries if isinstance(e.value, optax.MaskedNode)]
    rest = {e.path: "/".join(e.path[depth : len(e.path) - last]) for e in arrays}
    rest |= {e.path: "/".join(e.path[depth:]) for e in masked}
    prefixes = frozenset[str].intersection(
        *(known.before.get(path, frozenset()) for path in rest.values())
    )
    prefixes = {
        p for p in prefixes if all(_join(p, rest[e.path]) in structure.leaf for e in arrays)
    }
    if [*structure.leaf] == [""] and not any(rest.values()):
        prefixes = {""}
    if node.is_listed and not node.is_single:
        prefixes = {p for p in prefixes if _is_whole(node, p, known)}
    if not prefixes:
        return None
    pairs = {p: [(_join(p, rest[e.path]), e) for e in arrays] for p in prefixes}
    if place == "axes":
        return _the_prefix(
            node, {p: _along_axes(x, structure) for p, x in pairs.items()}, structure
        )
    fitting = {
        p: likeness for p, x in pairs.items() if (likeness := _alike(x, structure)) is not None
    }
    if fitting:
        return _the_prefix(node, fitting, structure)
    closest = min(pairs, key=lambda p: (sum(map(_differs(structure), pairs[p])), len(p)))
    if _is_record(pairs[closest], structure):
        return ()
    _refuse_shape(pairs[closest], known, place)


def _join(prefix: str, path: str) -> str:
    return "/".join(filter(None, (prefix, path)))


def _is_whole(node: Node, prefix: str, known: Parameters) -> bool:
    """Whether every leaf below a prefix has an array or a placeholder in the node."""
    depth = len(node.path)
    held = {"/".join(e.path[depth:]) for e in node.entries}

    def is_held(path: str) -> bool:
        return any(path[:end] in held for end in range(1, len(path) + 1) if path[end:][:1] in "/")

    return all(map(is_held, known.under(prefix)))


def _differs(structure: Structure) -> Callable[[tuple[str, Entry]], bool]:
    return lambda pair: pair[1].value.shape != structure.leaf[pair[0]].shape


def _alike(pairs: Sequence[tuple[str, Entry]], structure: Structure) -> tuple[Likeness, ...] | None:
    """The arrays of the parameters' shapes, or with ones in them; None where one has another.

    One number for a whole leaf is no array of its shape, and stays.
    """
    found = []
    for path, entry in pairs:
        shape, full = entry.value.shape, structure.leaf[path].shape
        if shape == full:
            found.append(Likeness(path, entry))
        elif len(shape) == len(full) and all(a in (1, b) for a, b in zip(shape, full, strict=True)):
            axes = tuple(i for i, n in enumerate(shape) if n != 1)
            found += [Likeness(path, entry, axes)] if axes else []
        elif entry.value.size > 1:
            return None
    return tuple(found)


def _along_axes(pairs: Sequence[tuple[str, Entry]], structure: Structure) -> tuple[Likeness, ...]:
    """Vectors along one axis of a parameter each, the number of which is their last name."""
    found = []
    for path, entry in pairs:
        axis, shape = int(entry.path[-1]), structure.leaf[path].shape
        if axis >= len(shape) or entry.value.shape != shape[axis : axis + 1]:
            raise ValueError(
                f"{'/'.join(entry.path)}: expected a vector along axis {axis} of the parameter "
                f"{path} of shape {shape}, got shape {entry.value.shape}; {ANEW}"
            )
        found.append(Likeness(path, entry, (axis,)))
    return tuple(found)


def _the_prefix(
    node: Node, fitting: Mapping[str, tuple[Likeness, ...]], structure: Structure
) -> tuple[Likeness, ...]:
    """The one that the place of the node names, or the only one that there is."""
    named = {p: x for p, x in fitting.items() if {*p.split("/")} <= {*node.path, ""}}
    longest = max(map(len, named), default=0)
    chosen = {p: x for p, x in named.items() if len(p) == longest and p} or dict(fitting)
    if len({tuple(structure.leaf[x.leaf].axes for x in found) for found in chosen.values()}) > 1:
        first = next(iter(chosen.values()))[0].entry
        leaves = sorted(found[0].leaf for found in chosen.values())
        raise ValueError(
            f"{'/'.join(first.path)}: belongs to one of the parameters {', '.join(leaves)}, and "
            "nothing says to which: pass the tree of all of them"
        )
    return chosen[min(chosen, key=len)]


def _loose(node: Node, name: str, child: Node, known: Parameters) -> Likeness | None:
    """An array among other things that has the full path and the shape of a parameter."""
    if node.is_listed or node.state is not None or not child.is_single:
        return None
    entry = child.entries[0]
    path = "/".join(entry.path[len(node.path) :])
    leaf = known.structure.leaf.get(path)
    fits = leaf is not None and entry.is_array and entry.value.shape == leaf.shape
    return Likeness(path, entry) if fits else None


def _is_record(pairs: Sequence[tuple[str, Entry]], structure: Structure) -> bool:
    """Whether every leaf has an array of one shape, which does not come from the leaves' shapes."""
    shapes = {e.value.shape for _, e in pairs}
    if len(pairs) < 2 or len(shapes) > 1:
        return False
    (shape,) = shapes

    def within(full: Sequence[int]) -> bool:
        rest = iter(full)
        return all(n in rest for n in shape)

    return not all(within(structure.leaf[path].shape) for path, _ in pairs)


def _refuse_shape(
    pairs: Sequence[tuple[str, Entry]], known: Parameters, place: Place | None
) -> NoReturn:
    structure = known.structure
    path, entry = next(
        pair for pair in pairs if _differs(structure)(pair) and pair[1].value.size > 1
    )
    shape, full = entry.value.shape, structure.leaf[path].shape
    if all(e.value.shape == structure.shape(p) for p, e in pairs):
        why = (
            ", the small shape: what already has the widths of the spec is not carried to them "
            "again"
        )
    elif all(e.value.shape[1:] == structure.leaf[p].shape for p, e in pairs):
        why = (
            f"; a stack of {shape[0]} of them is carried by jax.vmap over its first axis, and "
            "copies of one for several devices as one of them"
        )
    elif place == "factored":
        why = f"; {FACTORED}: {ANEW}"
    else:
        why = (
            "; what is factored or blocked (adafactor, shampoo) cannot be carried to other widths: "
            f"{ANEW}; if it has nothing to do with the width, say kind={{'<its path>': 'keep'}}"
        )
    raise ValueError(
        f"{'/'.join(entry.path)}: expected shape {full} of the parameter {path}, got {shape}{why}"
    )


def _refuse_derived(entry: Entry, known: Parameters) -> None:
    """Raises where an array stands in or below the place of a parameter that is cut."""
    keys = entry.path
    if entry.value.size < 2:
        return
    for start in range(len(keys)):
        for end in range(start + 1, len(keys) + 1):
            run = "/".join(keys[start:end])
            if all(key.isdecimal() for key in keys[start:end]):
                continue  # a number says nothing: lists of parameters and chains have them
            leaves = {_join(p, run) for p in known.before.get(run, ()) if p == "" or "/" in run}
            cut = sorted(leaves & known.cut)
            if cut:
                raise ValueError(
                    f"{'/'.join(keys)}: an array of shape {entry.value.shape} that belongs to no "
                    f"leaf of the parameters but stands in the place of {cut[0]}, of shape "
                    f"{known.structure.leaf[cut[0]].shape}; what is factored or blocked (shampoo) "
                    f"cannot be carried to other widths: {ANEW}; if it has nothing to do with the "
                    f"width, say kind={{{'/'.join(keys)!r}: 'keep'}}"
                )


def _refuse_flat(entry: Entry, known: Parameters, place: Place | None, inside: bool) -> None:
    """Raises where one array has the place, or the size, of all parameters together."""
    names = entry.path[:-1] if entry.path[-1:] == ("value",) else entry.path
    named = place is not None or (
        inside and state_kinds.kind_by_name(names[-1:], inside) is not None
    )
    flat = entry.value.ndim == 1 and entry.value.size in known.counts
    if entry.value.size > 1 and (named or flat):
        name = "/".join(entry.path)
        raise ValueError(
            f"{name}: an array of shape {entry.value.shape} in a place where a tree like the "
            f"parameters was expected; what is flattened (optax.flatten) or blocked cannot be "
            f"carried to other widths: {ANEW}; if it has nothing to do with the width, say "
            f"kind={{{name!r}: 'keep'}}"
        )
