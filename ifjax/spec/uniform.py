"""One width for groups that stand for the same thing in several layers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from ifjax.spec.widths import matching
from ifjax.structure.structure import Group

Uniform = bool | str | Iterable[str]


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
