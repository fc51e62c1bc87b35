"""Cuts after cuts: two specs as one, two maps as one, and full-shape results made small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure import axis as ex
from ifjax.structure.structure import keeping


def compose(second: FusionSpec, first: FusionSpec) -> FusionSpec:
    """The spec from the original widths to those after two cuts.

    ``shrink(apply_fn, compose(second, first))`` takes what ``fuse_params(fuse_params(params,
    first), second)`` returns, and `ifjax.save` and `ifjax.load` take both.

    Args:
      second: a spec of the small network: of `ifjax.onward`, of `ifjax.iterated`, or of a trace of
        ``shrink(apply_fn, first)``. Groups are matched by where they lie in the leaves, for names
        may hold positions.
      first: the spec that the small network was made by.

    Returns:
      A spec with the leaves and groups of ``first``, and the method of ``second``.

    Raises:
      ValueError: if the leaves of ``second`` are not those of ``first`` at its widths, or it cuts
        something that is not one group in ``first``.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 4)))
      >>> first = graph.spec(keep=6)
      >>> second = ifjax.onward(graph, first).spec(keep=3)
      >>> compose(second, first).structure.widths
      {'w1': 3}
    """
    check_spec(second)
    check_spec(first)
    mine, theirs = first.structure, second.structure
    for path in (*mine.leaf, *theirs.leaf):
        want = mine.shape(path) if path in mine.leaf else "none"
        got = theirs.leaf[path].shape if path in theirs.leaf else "none"
        if got != want:
            raise ValueError(
                f"{path}: expected shape {want}, the first spec's small one, in the second spec, "
                f"got {got}"
            )
    kept = dict(mine.widths)
    for leaf in theirs.leaves:
        for axis, cut in enumerate(leaf.axes):
            for group, width in _matched(mine.leaf[leaf.path].axes[axis], cut, first, second):
                kept[group] = width
    structure = keeping(mine, kept)
    for path in structure.leaf:
        if structure.shape(path) != theirs.shape(path):
            raise ValueError(
                f"{path}: the second spec cuts it to {theirs.shape(path)}, but the groups of the "
                f"first make it {structure.shape(path)}; make the second spec from ifjax.onward"
            )
    return FusionSpec(structure, second.method)


def _matched(
    mine: ex.Expression, theirs: ex.Expression, first: FusionSpec, second: FusionSpec
) -> Iterator[tuple[str, int]]:
    """Groups of the first spec with their widths after the second, along one axis of a leaf."""
    if not set(ex.atoms(theirs)) & second.structure.widths.keys():
        return
    mine, theirs = _simple(mine, first.structure.widths), _simple(theirs, {})
    match mine, theirs:
        case ex.Atom(name, n), ex.Atom(other, k) if n == k:
            yield name, second.structure.widths[other]
        case (ex.Product(a), ex.Product(b)) | (ex.Sum(a), ex.Sum(b)) if len(a) == len(b):
            for x, y in zip(a, b, strict=True):
                yield from _matched(x, y, first, second)
        case ex.Ordered(a, _), ex.Ordered(b, _):
            yield from _matched(a, b, first, second)
    # What matches nothing shows in the shapes.


def _simple(e: ex.Expression, widths: Mapping[str, int]) -> ex.Expression:
    """The expression at some widths, without factors of one and nested or neighbouring parts."""
    match e:
        case ex.Pinned(n):
            return ex.Pinned(n)
        case ex.Atom(name, n):
            n = widths.get(name, n)
            return ex.Atom(name, n) if n > 1 else ex.Pinned(1)
        case ex.Product(parts):
            long = [p for p in (_simple(p, widths) for p in parts) if ex.size(p) != 1]
            return ex.product(long or [ex.Pinned(1)])
        case ex.Sum(parts):
            return ex.concatenation(_simple(p, widths) for p in parts)
        case ex.Ordered(inside, order):
            return ex.in_order(_simple(inside, widths), order)
