"""Structures as nested lists and dicts for JSON, and those that older versions wrote."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import PyTree

from ifjax.structure import axis as ex
from ifjax.structure.names import group_names, renamed
from ifjax.structure.structure import (
    SCHEMA_VERSION,
    BatchNorm,
    Group,
    Leaf,
    Member,
    Structure,
)

READABLE = (2, SCHEMA_VERSION)


def to_dict(structure: Structure) -> dict[str, object]:
    """The structure as what `json.dumps` takes; inverse of `from_dict`."""
    return {
        "version": structure.version,
        "leaves": _to_lists(structure.leaves),
        "state": _to_lists(structure.state),
        "carried": structure.carried,
        "groups": [dataclasses.asdict(g) for g in structure.groups],
        "norms": [dataclasses.asdict(n) for n in structure.norms],
        "products": [[ex.to_json(e) for e in p] for p in structure.products],
    }


def from_dict(value: Mapping[str, PyTree]) -> Structure:
    """The structure that `to_dict` wrote, of this schema version or of 2.

    Schema 2 called groups that share an axis by their place, ``attn_q@0:9=3x3.0``; they get the
    names of today.

    Raises:
      ValueError: for another schema version.
      KeyError, TypeError: where something is missing.
    """
    version = value["version"]
    if version not in READABLE:
        raise ValueError(
            f"expected a spec of schema version {' or '.join(map(str, READABLE))}, got {version}"
        )
    structure = Structure(
        leaves=_from_lists(value["leaves"]),
        state=_from_lists(value["state"]),
        carried=tuple(value["carried"]),
        groups=tuple(map(_group, value["groups"])),
        norms=tuple(BatchNorm(**n) for n in value["norms"]),
        products=tuple(tuple(ex.from_json(e) for e in p) for p in value["products"]),
    )
    if version == SCHEMA_VERSION:
        return structure
    return renamed(structure, group_names(structure.groups, structure.leaf))


def _group(value: Mapping[str, Any]) -> Group:
    if value["kind"] == "complex":  # a kind of its own while such groups could only be pruned
        value = {**value, "kind": "neuron"}
    members = tuple(Member(**{**m, "where": tuple(m["where"])}) for m in value["members"])
    tuples = {name: tuple(value[name]) for name in ("batch", "along")}
    return Group(**{**value, **tuples, "members": members})


def _to_lists(leaves: Sequence[Leaf]) -> list[list[object]]:
    return [[x.path, list(x.shape), x.dtype, [ex.to_json(a) for a in x.axes]] for x in leaves]


def _from_lists(values: Sequence[PyTree]) -> tuple[Leaf, ...]:
    return tuple(
        Leaf(path, tuple(shape), dtype, tuple(ex.from_json(a) for a in axes))
        for path, shape, dtype, axes in values
    )
