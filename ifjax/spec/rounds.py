"""Cuts after cuts: a spec split into rounds, and two specs as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.structure import axis as ex
from ifjax.structure.structure import at_widths, keeping


class Round(NamedTuple):
    """One round of an iterated compression.

    Attributes:
      step: from the widths of the round before to those of this one: for `ifjax.transport_maps`,
        `ifjax.apply_maps`, `ifjax.fuse_params` and `ifjax.fuse_tree`.
      total: from the original widths to those of this round: for `ifjax.shrink` and `ifjax.save`.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> first, second = iterated(graph.spec(0.5), 2)
      >>> [(r.step.groups[0].size, r.step.groups[0].kept) for r in (first, second)]
      [(4, 3), (3, 2)]
      >>> second.total == graph.spec(0.5)
      True
    """

    step: FusionSpec
    total: FusionSpec

    def __repr__(self) -> str:
        """What goes in this round, and in all so far; in a line each."""
        step, total = (str(spec).splitlines()[0] for spec in self)
        return f"Round\n  step: {step}\n  total: {total}"


def iterated(spec: FusionSpec, rounds: int, kind: str = "geometric") -> tuple[Round, ...]:
    r"""Splits a spec into rounds, between which the network can be trained.

    A group of n neurons of which m are to stay has after round i of r

    .. math:: n (m / n)^{i / r} \quad \text{(geometric)}, \qquad n - (n - m) i / r
        \quad \text{(linear)}

    neurons, rounded; after the last round exactly the widths of ``spec``. Lottery tickets are drawn
    with the geometric schedule (Frankle and Carbin, arXiv 1803.03635).

    Args:
      spec: the whole way.
      rounds: number of rounds, at least 1.
      kind: ``"geometric"`` removes the same share in every round, ``"linear"`` the same number.

    Returns:
      The rounds in order. In a round too small to remove a neuron of any group, ``step`` is the
      identity.

    Raises:
      ValueError: if ``rounds`` is not positive or ``kind`` unknown.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> small = params
      >>> for step, total in iterated(spec, 2):
      ...     small = ifjax.fuse_params(small, step)
      ...     print(small["w1"].shape, ifjax.shrink(apply, total)(small, jnp.ones((3, 4))).shape)
      (4, 6) (3, 2)
      (4, 4) (3, 2)
    """
    check_spec(spec)
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be a positive integer; got {rounds!r}")
    if kind not in ("geometric", "linear"):
        raise ValueError(f"kind must be one of geometric, linear; got {kind!r}")
    found, before = [], spec.structure
    for i in range(1, rounds + 1):
        kept = {g.name: _kept(g.size, g.kept, i / rounds, kind) for g in spec.groups}
        step, total = (FusionSpec(keeping(p, kept), spec.method) for p in (before, spec.structure))
        found.append(Round(step, total))
        before = at_widths(spec.structure, kept)
    return tuple(found)


def _kept(n: int, m: int, part: float, kind: str) -> int:
    if part == 1:
        return m
    exact = n * (m / n) ** part if kind == "geometric" else n - (n - m) * part
    return min(n, max(m, round(exact)))


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
