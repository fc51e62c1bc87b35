"""How many neurons of every group stay: by patterns on names, by a budget, alike in several."""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias, TypeGuard, TypeVar

from ifjax.spec.options import Number, is_real, plain_number
from ifjax.structure.names import older_name
from ifjax.structure.structure import Group, Member, Structure

Value = TypeVar("Value")
Amount: TypeAlias = Number | Mapping[str, Number] | None
Selector = str | Iterable[str] | Callable[[Group], bool] | None
Uniform = bool | str | Iterable[str]

UNITS = ("neurons", "weights", "flops")
_STEPS = 30  # of bisection: the ratio to 1e-9


def widths(
    groups: Sequence[Group],
    sparsity: Amount,
    keep: Amount,
    include: Selector,
    exclude: Selector,
    round_to: int,
    protect: Mapping[str, Sequence[Member]] | None = None,
    strict: bool = True,
) -> tuple[Group, ...]:
    """The groups with the number of neurons to keep; see `ifjax.DependencyGraph.spec`.

    With ``strict``, to remove nothing where something is asked for is an error.
    """
    fractions, counts = _checked_amounts(groups, sparsity, keep, round_to)
    named = {*fractions, *counts}
    if isinstance(include, str):
        named.add(include)
    elif include is not None and not callable(include):
        include = list(include)
        named |= set(include)
    taken = _selected(groups, include, "include", default=True)
    left = _selected(groups, exclude, "exclude", default=False)
    for name, members in (protect or {}).items():
        if name in named & taken - left:
            places = ", ".join(f"{m.path}[{m.axis}]" for m in members[:3])
            raise ValueError(f"cutting group {name} changes protected leaves: {places}")
        left = left | {name}
    fractions_of, counts_of = _by_group(groups, fractions), _by_group(groups, counts)
    result = []
    for group in groups:
        cuttable = group.kind != "free" or not named.isdisjoint((group.name, older_name(group)))
        kept = group.size
        if group.name in taken and group.name not in left and cuttable:
            kept = _kept(group, fractions_of, counts_of, round_to)
        result.append(dataclasses.replace(group, kept=kept))
    whole = {g.name: g.size for g in groups if g.name in taken - left}
    wanted = any(fractions.values()) or any(
        counts_of.get(g.name) not in (None, g.size) for g in groups
    )
    if strict and (wanted or (counts and not whole)) and all(g.kept == g.size for g in result):
        raise ValueError(
            f"sparsity {sparsity!r}, keep {keep!r} removes no neuron of any selected group: the "
            "groups are too small for it, excluded, or not known to be neurons; print(graph) lists "
            "them, and what is pinned by the function's inputs and outputs: a recurrent carry or a "
            "cache goes in and out and is named by trace(..., state=['inputs/1', 'outputs/1'])"
        )
    return tuple(result)


def _checked_amounts(
    groups: Sequence[Group], sparsity: Amount, keep: Amount, round_to: int
) -> tuple[dict[str, float], dict[str, int]]:
    """Fractions to remove and numbers to keep, by pattern."""
    if all(x is None or (isinstance(x, Mapping) and not x) for x in (sparsity, keep)):
        raise ValueError("spec needs a sparsity or keep: nothing says how many neurons to keep")
    if not _is_count(plain_number(round_to)):
        raise ValueError(f"round_to must be a positive integer; got {round_to!r}")
    fractions, counts = dict[str, float](), dict[str, int]()
    for pattern, given in _mapping(groups, sparsity, "sparsity").items():
        value = plain_number(given)
        if not is_real(value) or not 0 <= float(value) < 1:
            raise ValueError(f"sparsity must be a number in [0, 1); got {value!r} for {pattern!r}")
        fractions[pattern] = value
    for pattern, given in _mapping(groups, keep, "keep").items():
        value = plain_number(given)
        if not _is_count(value):
            raise ValueError(f"keep must be a positive integer; got {value!r} for {pattern!r}")
        counts[pattern] = value
    return fractions, counts


def _is_count(value: object) -> TypeGuard[int]:
    return is_real(value) and isinstance(value, numbers.Integral) and value >= 1


def _kept(
    group: Group, fractions: Mapping[str, float], counts: Mapping[str, int], round_to: int
) -> int:
    """How many neurons of a group stay, of values by group."""
    count, fraction = counts.get(group.name), fractions.get(group.name)
    if count is not None:
        if count > group.size:
            raise ValueError(f"group {group.name} has {group.size} neurons; cannot keep {count}")
        return int(count)
    return kept_neurons(group.size, fraction, round_to) if fraction else group.size


def _mapping(groups: Sequence[Group], value: Amount, what: str) -> dict[str, Number]:
    """Values by pattern; those of patterns that match nothing are refused."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        return {"*": value}
    for pattern in value:
        _matches(groups, pattern, what)
    return dict(value)


def _by_group(groups: Sequence[Group], mapping: Mapping[str, Value]) -> dict[str, Value]:
    """The value of the first pattern that matches, by name of the group."""
    found: dict[str, Value] = {}
    for pattern, value in mapping.items():
        for name in matching(groups, pattern):
            found.setdefault(name, value)
    return found


def matching(groups: Sequence[Group], pattern: str) -> set[str]:
    """Names of the groups that a pattern means: the one of that name, or those that it matches.

    The names that groups had in schema 2 count too.
    """
    names = {g.name: (g.name, older_name(g)) for g in groups}
    exact = {name for name, both in names.items() if pattern in both}
    return exact or {
        name for name, both in names.items() if any(fnmatchcase(x, pattern) for x in both)
    }


def _matches(groups: Sequence[Group], pattern: str, what: str) -> set[str]:
    found = matching(groups, pattern)
    if not found:
        names = [g.name for g in groups]
        close = difflib.get_close_matches(pattern, names, 3, 0.4) or names[:3]
        raise ValueError(
            f"{what} pattern {pattern!r} matches none of the {len(names)} groups; "
            f"the nearest are {', '.join(map(repr, close)) or 'none'}; print(graph) lists all, and "
            "what is pinned, and why"
        )
    return found


def _selected(groups: Sequence[Group], selector: Selector, what: str, default: bool) -> set[str]:
    if selector is None:
        return {g.name for g in groups} if default else set()
    if callable(selector):
        return {g.name for g in groups if selector(g)}
    patterns = [selector] if isinstance(selector, str) else list(selector)
    return set().union(*(_matches(groups, p, what) for p in patterns))


def kept_neurons(n: int, sparsity: float, round_to: int = 1) -> int:
    """Neurons kept of n: max(1, floor(n (1 - sparsity) + 1e-9)), to a multiple of ``round_to``.

    The nearest positive multiple that is not above n; n itself where none is.

    >>> kept_neurons(64, 0.7), kept_neurons(64, 0.7, round_to=8), kept_neurons(3, 0.9)
    (19, 16, 1)
    """
    m = max(1, math.floor(n * (1 - sparsity) + 1e-9))
    if round_to > 1:
        m = max(1, math.floor(m / round_to + 0.5)) * round_to
        m = min(m, n // round_to * round_to) or n
    return m


def groups_for(
    structure: Structure,
    share: float,
    of: str,
    cut: Callable[[float], tuple[Group, ...]],
) -> tuple[Group, ...]:
    """The groups at the least uniform ratio that removes a share of the network's weights or FLOPs.

    Half of the neurons of every group is about three quarters of the weights, for a kernel has
    neurons on either side: a share of the weights asks for fewer neurons.

    Args:
      structure: leaves, groups, and the contractions that FLOPs are counted by.
      share: of all weights, or of all FLOPs, to be removed; in [0, 1).
      of: ``"weights"`` or ``"flops"``.
      cut: from a ratio of neurons to the groups with the numbers to keep.

    Returns:
      The groups with the numbers to keep.

    Raises:
      ValueError: where the groups that may be cut do not hold so much.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"a": jnp.ones((8, 64)), "b": jnp.ones((64, 64)), "c": jnp.ones((64, 8))}
      >>> apply = lambda p, x: x @ p["a"] @ p["b"] @ p["c"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 8)))
      >>> spec = graph.spec(0.5, of="weights")
      >>> spec.structure.widths, spec.weights()
      ({'a': 43, 'b': 43}, (5120, 2537))
    """
    total = {"weights": structure.weights, "flops": structure.flops}[of]
    whole = total({})

    def removed(groups: tuple[Group, ...]) -> float:
        small = dataclasses.replace(structure, groups=groups)
        count = small.weights() if of == "weights" else small.flops()
        return 1 - count / whole if whole else 0.0

    if removed(cut(0.0)) >= share - 1e-12:
        return cut(0.0)
    low, high = 0.0, 1 - 1e-9
    found = cut(high)
    if removed(found) < share - 1e-12:
        raise ValueError(
            f"no uniform ratio removes {share:.1%} of the {of}: with one neuron left in every "
            f"group that may be cut {removed(found):.1%} would be gone; ask for less, or widen "
            "include, exclude or protect"
        )
    for _ in range(_STEPS):
        middle = (low + high) / 2
        groups = cut(middle)
        if removed(groups) >= share - 1e-12:
            high, found = middle, groups
        else:
            low = middle
    return found


def tied(groups: Sequence[Group], uniform: Uniform) -> dict[str, tuple[Group, ...]]:
    """The groups that have to have one width, by what ties them.

    Args:
      groups: of a graph.
      uniform: globs on group names, each of which ties what it matches; True for one tie for
        groups whose names differ in numbers alone, as those of layers in a list do.

    Returns:
      Ties of at least one group.

    Raises:
      ValueError: for a glob that matches nothing.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = [jnp.ones((4, 8)), jnp.ones((8, 8)), jnp.ones((8, 2))]
      >>> apply = lambda p, x: x @ p[0] @ p[1] @ p[2]
      >>> found = tied(ifjax.trace(apply, params, jnp.ones((1, 4))).groups, True)
      >>> {tie: [group.name for group in of] for tie, of in found.items()}
      {'*': ['0', '1']}
    """
    if uniform is True:
        by_name: dict[str, list[Group]] = defaultdict(list)
        for group in groups:
            by_name[re.sub(r"\d+", "*", group.name)].append(group)
        return {tie: tuple(of) for tie, of in by_name.items()}
    if uniform is False:
        return {}
    found = {}
    for glob in [uniform] if isinstance(uniform, str) else uniform:
        names = matching(groups, glob)
        if not names:
            some = ", ".join(repr(group.name) for group in groups[:3])
            raise ValueError(f"uniform pattern {glob!r} matches none of the groups, such as {some}")
        found[glob] = tuple(group for group in groups if group.name in names)
    return found


def check_uniform(groups: Sequence[Group], uniform: Uniform) -> None:
    """Refuses widths that differ where one is wanted.

    Args:
      groups: with the numbers of neurons to keep.
      uniform: see `tied`.

    Raises:
      ValueError: naming two groups of one tie that would have different widths, and the width
        that all could have.
    """
    for tie, of in tied(groups, uniform).items():
        widths: Mapping[int, str] = {group.kept: group.name for group in of}
        if len(widths) < 2:
            continue
        (few, small), (many, large) = min(widths.items()), max(widths.items())
        would = min(group.size for group in of)
        raise ValueError(
            f"uniform {tie!r}: expected one width, got {few} for {small} and {many} for {large}; "
            f"give one sparsity for all of them where they are of one size, or "
            f"keep={{{tie!r}: {min(few, would)}}}"
        )
