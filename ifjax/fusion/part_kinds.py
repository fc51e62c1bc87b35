"""What becomes of every part of a tree: by what the caller says, and by its place."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ifjax.fusion.initial_state import shapes_and_copies
from ifjax.fusion.named_tree import Node, Path, node_of, nodes_of
from ifjax.fusion.state_kinds import Kind, is_optimizer, kind_by_name
from ifjax.fusion.state_parts import Parameters, Part, parts_of
from ifjax.namespace import AnyArray
from ifjax.spec.spec import FusionSpec

Kinds = str | Mapping[str, str] | None


def explicit_kind(kind: Kinds) -> Callable[[Path], str | None]:
    """What the caller says of a path, or of what holds it."""
    if not isinstance(kind, Mapping):
        return lambda path: kind

    def find(path: Path) -> str | None:
        names = ["/".join(path[:end]) for end in range(len(path) + 1)]
        return next((k for glob, k in kind.items() if any(_fits(n, glob) for n in names)), None)

    return find


def _fits(name: str, glob: str) -> bool:
    return fnmatch.fnmatchcase(name, glob) or fnmatch.fnmatchcase("/" + name, glob)


def check_patterns(kind: Kinds, root: Node) -> None:
    """Raises where a pattern fits nothing."""
    names = ["/".join(node.path) for node in nodes_of(root)]
    for glob in kind if isinstance(kind, Mapping) else ():
        if not any(_fits(name, glob) for name in names):
            some = ", ".join(list(dict.fromkeys(names))[1:6])
            raise ValueError(
                f"kind: pattern {glob!r} matches nothing in the tree; paths are such as {some}"
            )


def kinds_of(
    root: Node,
    parts: Sequence[Part],
    explicit: Callable[[Path], str | None],
    initial: Mapping[Path, Kind],
) -> list[str]:
    """What becomes of every part.

    Raises:
      ValueError: naming the first one of which nothing says what it holds.
    """
    kinds = [explicit(part.path) or _kind_of(part, initial) for part in parts]
    unknown = [part for part, kind in zip(parts, kinds, strict=True) if kind is None]
    if not unknown:
        return [kind or "select" for kind in kinds]
    # The parameters, or what completes them: statistics beside weights.
    named = [p for p, kind in zip(parts, kinds, strict=True) if kind == "weights" and not p.inside]
    taken = {x.leaf for part in named for x in part.arrays}
    leaves = [x.leaf for part in unknown for x in part.arrays]
    alone = len(leaves) == len({*leaves}) and not taken & {*leaves}
    beside = any(
        node.is_optax or is_optimizer(node.path[-1]) for node in nodes_of(root) if node.path
    )
    inside = any(part.inside or part.place == "average" for part in unknown)
    if alone and not inside and (beside or named):
        return [kind or "weights" for kind in kinds]
    where = unknown[0].name
    hint = (
        "an average of updates and one of weights look alike"
        if unknown[0].place == "average"
        else "nothing says what it holds"
    )
    raise ValueError(
        f"{where or 'the tree'}: shaped like the parameters, and {hint}: say kind="
        f"{{{where or '*'!r}: 'weights'}} for weights, their copies and averages, 'gradients', "
        "'select' (the kept neurons' values) for moments and masks, or 'keep' to leave it as it is"
    )


def _kind_of(part: Part, initial: Mapping[Path, Kind]) -> Kind | None:
    """What becomes of a part by its place; None where it does not say."""
    if not any(_is_inexact(x.entry.value) for x in part.arrays):
        return "select"
    place = part.place
    if place == "axes" or place == "factored":
        return "select"
    if place is not None and place != "average":
        return place
    found: Kind | None = next(
        (k for path, k in initial.items() if part.path[-len(path) :] == path), None
    )
    named = kind_by_name(part.path, part.inside) if place is None else None
    return "weights" if found == "weights" else named or found


def _is_inexact(x: AnyArray) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact)) and x.dtype.itemsize > 1


def initial_kinds(
    optimizer: optax.GradientTransformation, params: PyTree, spec: FusionSpec
) -> dict[Path, Kind]:
    """What an optimizer keeps, by what its ``init`` puts there.

    Where it puts the parameters there are weights, see `shapes_and_copies`.

    Args:
      optimizer: of optax.
      params: the tree that its state was made for; only shapes are read.
      spec: the spec, for the parameters that it knows.

    Returns:
      A kind by path in the optimizer's state.
    """
    state, copies = shapes_and_copies(optimizer.init, params)
    try:
        parts = list(parts_of(node_of(state), Parameters.of(spec.structure), lambda path: None))
    except ValueError:  # what cannot be carried is refused where it stands in the tree
        return {}
    found = dict[Path, Kind]()
    for part in parts:
        same = [i is not None and copies[i] for i in (x.entry.index for x in part.arrays)]
        found[part.path] = "weights" if same and all(same) else "select"
    return found
