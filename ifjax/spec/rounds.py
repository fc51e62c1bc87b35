"""Pruning a little at a time: graphs and specs of a network that has been shrunk before."""

from __future__ import annotations

from typing import NamedTuple

from ifjax.spec.spec import FusionSpec, check_spec
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
