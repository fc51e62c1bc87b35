"""A structure at other widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from ifjax.structure import axis as ex
from ifjax.structure.structure import Structure


def at_widths(structure: Structure, widths: Mapping[str, int]) -> Structure:
    """The structure of the network after its groups were cut to some widths."""

    def resized(e: ex.Expression) -> ex.Expression:
        return ex.mapped(e, lambda a: ex.Atom(a.name, widths.get(a.name, a.size)))

    leaves = tuple(
        dataclasses.replace(
            leaf, shape=structure.shape(leaf.path, widths), axes=tuple(map(resized, leaf.axes))
        )
        for leaf in structure.leaves
    )
    axes = {leaf.path: leaf.axes for leaf in leaves}
    groups = []
    for group in structure.groups:
        members = tuple(
            dataclasses.replace(m, where=tuple(ex.places(axes[m.path][m.axis], group.name)))
            for m in group.members
        )
        n = widths.get(group.name, group.size)
        batch = tuple(widths.get(a, k) for a, k in zip(group.along, group.batch, strict=True))
        groups.append(dataclasses.replace(group, size=n, kept=n, members=members, batch=batch))
    products = tuple(tuple(map(resized, product)) for product in structure.products)
    return dataclasses.replace(structure, leaves=leaves, groups=tuple(groups), products=products)
