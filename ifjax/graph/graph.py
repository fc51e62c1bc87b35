"""The dependency graph: groups of axes that must be cut together, and what is made from it."""

from __future__ import annotations

import dataclasses
import fnmatch
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import PyTree

from ifjax.graph.coupling import Coupling, PinnedAxis, graph_table
from ifjax.graph.drawing import to_mermaid
from ifjax.graph.intersection import intersect
from ifjax.graph.verify import Verification, verify
from ifjax.graph.width_numbers import WidthNumber, renamed
from ifjax.spec import widths as selecting
from ifjax.spec.method import Method
from ifjax.spec.options import Number, nearest_first
from ifjax.spec.spec import FusionSpec, check_spec
from ifjax.spec.table import shortened
from ifjax.spec.widths import UNITS, Uniform, check_uniform, groups_for
from ifjax.structure import axis as ex
from ifjax.structure.structure import Group, Member, Structure, at_widths


@dataclasses.dataclass(frozen=True)
class DependencyGraph:
    """What hangs together in a function.

    Attributes:
      structure: leaves, groups, batch norms; every group at full width.
      pinned: axes that cannot be cut, and why.
      numbers: numbers in the function that come from a group's width and are more than the count of
        a mean, with their source lines: those that are read as such and follow it (the n - 1 of a
        deviation), and those that stay, to be looked at where the function means the width by them.
      hints: what may be wrong with the call of `ifjax.trace`, and what to do: where nothing can be
        cut, or random numbers are drawn with a constant key.
      unused: paths of leaves that reach no output; they are cut with their group where they share
        one with a leaf that does.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> print(ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4))))
      DependencyGraph: 1 groups, 48 weights, 96 FLOPs
        group  size    kind      members  weights  FLOPs
        w1        8  neuron  2 in 2 leaves       48     96
      pinned: 2 axes
        w1[0]: an axis of the function's inputs
        w2[1]: an axis of the function's outputs
    """

    structure: Structure
    pinned: tuple[PinnedAxis, ...]
    unused: tuple[str, ...]
    numbers: tuple[WidthNumber, ...] = ()
    hints: tuple[str, ...] = ()

    @property
    def plan(self) -> Structure:
        """The structure, by the name that it had before 0.2."""
        return self.structure

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, in the order of their first producer."""
        return self.structure.groups

    @property
    def literals(self) -> tuple[str, ...]:
        """What `numbers` says."""
        return tuple(map(str, self.numbers))

    @property
    def coupling(self) -> Coupling:
        """Structure, pinned axes and unused leaves alone."""
        return Coupling(self.structure, self.pinned, self.unused)

    def spec(
        self,
        sparsity: Number | Mapping[str, Number] | None = None,
        *,
        of: Literal["neurons", "weights", "flops"] = "neurons",
        keep: Number | Mapping[str, Number] | None = None,
        include: selecting.Selector = None,
        exclude: selecting.Selector = None,
        round_to: int = 1,
        protect: str | Sequence[str] = (),
        uniform: Uniform = False,
        **method: Any,
    ) -> FusionSpec:
        """Says how many neurons of which groups are to be kept, and how they are computed.

        m = max(1, floor(n (1 - sparsity) + 1e-9)) of a group's n neurons are kept.

        Args:
          of: what ``sparsity`` is a fraction of: every group's ``"neurons"``; or one share of all
            the network's ``"weights"`` or ``"flops"``, which is turned into the least uniform ratio
            of neurons that removes it. Half of the neurons is about three quarters of the weights.
          sparsity: fraction of neurons to remove, in [0, 1); or a mapping from globs on group names
            (``fnmatchcase``, first match wins) to fractions; groups that none matches are kept.
          keep: absolute number of neurons to keep, or a mapping from globs; it goes before
            ``sparsity`` where both match.
          include: globs or a predicate on `Group`; only these groups are cut. Groups of kind
            ``"free"`` are cut only where their exact name is given.
          exclude: globs or a predicate; these groups are not cut.
          round_to: kept neurons are the nearest positive multiple of it that is not above n.
          protect: globs on leaf paths; groups that any of these leaves holds are not cut, see
            `couplings`.
          uniform: globs on group names: what one of them matches has to have one width, as stacked
            layers and exported configurations want it; True for all groups whose names differ in
            numbers alone. Other widths are refused.
          **method: fields of `ifjax.Method`.

        Returns:
          The spec.

        Raises:
          ValueError: for a pattern that matches nothing, a sparsity outside [0, 1), a number of
            neurons that the group does not have, different widths under ``uniform``, an unknown
            method option, a group asked for by
            name that a protected leaf holds, where a positive sparsity would remove nothing, or a
            share of the weights or FLOPs that the groups do not hold.
        """
        known = [f.name for f in dataclasses.fields(Method)]
        own = ["sparsity", "of", "keep", "include", "exclude", "round_to", "protect", "uniform"]
        for name in method:
            if name not in known:
                options = ", ".join(nearest_first(name, [*own, *known]))
                raise ValueError(f"unknown option {name!r} of spec; expected one of {options}")
        kept = self.couplings(protect) if protect else None
        if not self.groups and self.hints and (sparsity or keep):
            raise ValueError(
                f"sparsity {sparsity!r}, keep {keep!r} removes no neuron, for the graph has no "
                f"groups: {'; '.join(self.hints)}"
            )
        if include is not None and not isinstance(include, str) and not callable(include):
            include = list(include)  # read once for every ratio that is tried

        def cut(ratio: selecting.Amount, strict: bool = True) -> tuple[Group, ...]:
            return selecting.widths(
                self.groups, ratio, keep, include, exclude, round_to, kept, strict
            )

        groups = cut(sparsity) if of == "neurons" else self._fitted(sparsity, of, cut)
        check_uniform(groups, uniform)
        self._warn_of_numbers({g.name for g in groups if g.kept != g.size})
        return FusionSpec(dataclasses.replace(self.structure, groups=groups), Method(**method))

    def _fitted(
        self, share: selecting.Amount, of: str, cut: Callable[..., tuple[Group, ...]]
    ) -> tuple[Group, ...]:
        """The groups at the uniform ratio that removes a share of the weights or FLOPs."""
        if of not in UNITS:
            raise ValueError(f"of must be one of {', '.join(UNITS)}; got {of!r}")
        if isinstance(share, Mapping) or share is None:
            raise ValueError(f"of={of!r} takes one share of the network's {of}; got {share!r}")
        cut(share)  # checks all but whether the share can be had
        return groups_for(self.structure, float(share), of, lambda ratio: cut(ratio, False))

    def _warn_of_numbers(self, cut: Collection[str]) -> None:
        """Warns, once for all, of numbers that come from the widths that are cut, and stay."""
        texts = [
            number.text for number in self.numbers if number.unclear and {*number.groups} & {*cut}
        ]
        if texts:
            warnings.warn(
                "the function has numbers that come from widths that are cut; they stay what they "
                f"were, for it cannot be told what they are to become: {'; '.join(texts)}. Where "
                "one should follow, apply it to the sum over the neurons that it belongs to, or "
                "make it a parameter",
                stacklevel=3,
            )

    def couplings(self, leaves: str | Sequence[str]) -> dict[str, tuple[Member, ...]]:
        """The groups whose cutting changes some leaves, and where these hold them.

        Args:
          leaves: globs on leaf paths.

        Returns:
          By group name, the axes of these leaves that would become narrower.

        Raises:
          ValueError: if a glob matches no leaf.

        Example:
          >>> import ifjax, jax.numpy as jnp
          >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
          >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
          >>> {name: [m.role for m in found] for name, found in graph.couplings("w2").items()}
          {'w1': ['consumer']}
        """
        globs = [leaves] if isinstance(leaves, str) else list(leaves)
        chosen = set()
        for glob in globs:
            found = {x for x in self.structure.leaf if x == glob or fnmatch.fnmatchcase(x, glob)}
            if not found:
                some = ", ".join(list(self.structure.leaf)[:3])
                raise ValueError(f"pattern {glob!r} matches none of the leaves, such as {some}")
            chosen |= found
        held = {g.name: tuple(m for m in g.members if m.path in chosen) for g in self.groups}
        return {name: members for name, members in held.items() if members}

    def verify(
        self, apply_fn: Callable[..., PyTree], params: PyTree, *inputs: PyTree, **options: Any
    ) -> Verification:
        """Permutes every group and compares the function's output; see `ifjax.graph.verify`."""
        return verify(self.structure, apply_fn, params, *inputs, **options)

    def to_mermaid(self, *, most: int = 12) -> str:
        """The graph as a Mermaid flowchart; see `ifjax.graph.drawing.to_mermaid`."""
        return to_mermaid(self.coupling, most=most)

    def __and__(self, other: DependencyGraph) -> DependencyGraph:
        """The graph that is safe for both functions of one parameter tree."""
        if not isinstance(other, DependencyGraph):
            return NotImplemented
        found = intersect(self.coupling, other.coupling)
        numbers = (
            renamed(n, g.structure, found.structure) for g in (self, other) for n in g.numbers
        )
        said = tuple(dict.fromkeys(self.hints + other.hints))
        return DependencyGraph(*found, tuple(dict.fromkeys(numbers)), said)

    def __str__(self) -> str:
        """A table of groups, and what is pinned."""
        return graph_table(self.coupling, self.literals, self.hints)

    def __repr__(self) -> str:
        """The same, of the first groups: what notebooks show."""
        return shortened(str(self))


def onward(graph: DependencyGraph, spec: FusionSpec) -> DependencyGraph:
    """The graph of the shrunk network, to make the next spec from: nothing is traced again.

    What hangs together at full width does so at any other. Groups keep their names.

    Args:
      graph: the graph that ``spec`` was made from.
      spec: the spec that the network was shrunk by.

    Returns:
      A graph whose sizes are the widths of ``spec``.

    Raises:
      ValueError: if the spec belongs to another network.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> graph = ifjax.trace(apply, params, jnp.ones((1, 4)))
      >>> onward(graph, graph.spec(0.25)).groups[0].size
      6
    """
    if not isinstance(graph, DependencyGraph):
        raise TypeError(f"expected the graph of ifjax.trace, got {type(graph).__name__}")
    check_spec(spec)
    if graph.structure.leaves != spec.structure.leaves:
        raise ValueError("the spec was made from another graph than this one")
    structure, widths = at_widths(graph.structure, spec.structure.widths), spec.structure.widths
    pinned = tuple(
        dataclasses.replace(p, size=ex.size(graph.structure.leaf[p.path].axes[p.axis], widths))
        for p in graph.pinned
    )
    return dataclasses.replace(graph, structure=structure, pinned=pinned)
