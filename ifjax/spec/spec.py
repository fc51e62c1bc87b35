"""What a function's parameters are made of, and what is to become of it: static, hashable values.

A `Plan` says which axes of which leaves belong to which group and how wide each group is to be; it
is all that shrinking, saving and loading need. A `Method` says how the small parameters are
computed. A `FusionSpec` is both, serialisable as JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ifjax.graph.facts.kinds import Kind
from ifjax.graph.facts.roles import Role
from ifjax.parallel.sharding import laid_like
from ifjax.spec.method import Method
from ifjax.structure import axis as ex

SCHEMA_VERSION = 2


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array of the parameter tree.

    Attributes:
      path: ``keystr(simple=True, separator="/")`` of the leaf.
      shape: full shape.
      dtype: name of the dtype.
      axes: what lies along every axis.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[ex.Expression, ...]


@dataclasses.dataclass(frozen=True)
class Member:
    """One axis of one leaf that holds the neurons of a group.

    Attributes:
      path: path of the leaf.
      axis: the axis.
      role: what the leaf does to the neurons: ``producer`` (output axis of a kernel), ``consumer``
        (contracted axis), ``additive`` (bias, offset), ``multiplicative`` (scale, depthwise
        kernel), ``mean`` or ``variance`` (running statistics).
      where: positions of the neurons along the axis, one ``start:stop`` per occurrence; for merged
        axes ``start:stop=AxB.i``, the i-th factor.
      position: order of the last contraction that produces with the axis, -1 where none does.
    """

    path: str
    axis: int
    role: Role
    where: tuple[str, ...]
    position: int = -1


@dataclasses.dataclass(frozen=True)
class Group:
    """Neurons that can only be cut together.

    Attributes:
      name: path of the first producer, with the segment where its axis holds several groups.
      size: number of neurons.
      kept: number of neurons that the spec keeps; ``size`` in a graph.
      kind: ``"neuron"`` where something produces and something consumes it; ``"head"`` and
        ``"head_dim"`` in attention, see `ifjax.graph.facts.kinds`; ``"free"`` where the axis could
        be cut but is not known to be neurons, so that it is cut only when named.
      members: the axes that hold it.
      batch: sizes of the axes that number independent copies of the neurons (layers of a scan,
        experts, heads of a head_dim): a choice and a map of its own for each, `[*batch, n, m]`.
      along: names of these axes in the leaves' axes: groups, or pinned axes that carry a name.
      exact: whether cutting neurons equals setting them to zero; not so where a norm, a softmax or
        a mean runs over them, or a weight is normalised over them.
    """

    name: str
    size: int
    kept: int
    kind: Kind
    members: tuple[Member, ...]
    batch: tuple[int, ...] = ()
    along: tuple[str, ...] = ()
    exact: bool = True

    @property
    def position(self) -> int:
        """Order of the last producer in the function; later groups are fused first."""
        return max((m.position for m in self.members), default=-1)


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """Leaf paths of a batch norm that can be folded into the kernel before it.

    Attributes:
      kernel: path of the kernel.
      axis: the kernel axis that is normalised.
      bias: path of a bias between the two.
      scale: path of the scale.
      offset: path of the offset.
      mean: path of the running mean.
      variance: path of the running variance.
      eps: added to the variance.
    """

    kernel: str
    axis: int
    bias: str | None
    scale: str
    offset: str | None
    mean: str
    variance: str
    eps: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """Leaves, groups and widths.

    Attributes:
      leaves: every leaf of the parameter tree.
      groups: every group, with the number of neurons to keep.
      norms: batch norms that can be folded.
      products: per contraction of the function, the axes whose sizes multiply to its
        multiply-accumulates, for the inputs that were traced.
      state: inputs of the function whose axes follow the widths (a KV cache, a recurrent carry).
      carried: paths of the outputs that do.
      version: schema version.
    """

    leaves: tuple[Leaf, ...]
    groups: tuple[Group, ...]
    norms: tuple[BatchNorm, ...]
    products: tuple[tuple[ex.Expression, ...], ...]
    state: tuple[Leaf, ...] = ()
    carried: tuple[str, ...] = ()
    version: int = SCHEMA_VERSION

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple(getattr(self, f.name) for f in dataclasses.fields(self)))

    def __hash__(self) -> int:
        """Computed once: a plan is a static argument of jitted functions."""
        return self._hash

    @functools.cached_property
    def leaf(self) -> dict[str, Leaf]:
        """Leaves by path."""
        return {leaf.path: leaf for leaf in self.leaves}

    @functools.cached_property
    def group(self) -> dict[str, Group]:
        """Groups by name."""
        return {group.name: group for group in self.groups}

    @functools.cached_property
    def widths(self) -> dict[str, int]:
        """Neurons kept, by the name of every group that is cut."""
        return {g.name: g.kept for g in self.groups if g.kept != g.size}

    def in_order(self, groups: Sequence[Group] | None = None) -> list[Group]:
        """Groups, by default those that are cut, from the output towards the input.

        A group comes before those that batch it, for its maps are for all of their neurons.
        """
        groups = [g for g in self.groups if g.kept != g.size] if groups is None else groups
        cut = sorted(groups, key=lambda g: -g.position)
        ordered: list[Group] = []
        waiting = {g.name: g for g in cut}

        def add(group: Group) -> None:
            if waiting.pop(group.name, None) is not None:
                for other in cut:
                    if group.name in other.along:
                        add(other)
                ordered.append(group)

        for group in cut:
            add(group)
        return ordered

    def shape(self, path: str, widths: Mapping[str, int] | None = None) -> tuple[int, ...]:
        """Shape of a leaf at the given widths, by default the plan's."""
        widths = self.widths if widths is None else widths
        return tuple(ex.size(a, widths) for a in self.leaf[path].axes)

    def weights(self, widths: Mapping[str, int] | None = None) -> int:
        """Number of parameters at the given widths, running statistics and counters left out."""
        skip = {m.path for g in self.groups for m in g.members if m.role in ("mean", "variance")}
        skip |= {p for n in self.norms for p in (n.mean, n.variance)}
        leaves = (x for x in self.leaves if x.path not in skip)
        return sum(math.prod(self.shape(x.path, widths)) for x in leaves if _is_float(x.dtype))

    def flops(self, widths: Mapping[str, int] | None = None) -> int:
        """Two per multiply-accumulate of all contractions, for the inputs that were traced."""
        widths = self.widths if widths is None else widths
        return 2 * sum(math.prod(ex.size(e, widths) for e in p) for p in self.products)


KEYS = {"fry": "threefry2x32", "rbg": "rbg", "urbg": "unsafe_rbg"}


def _dtype(name: str) -> Any:
    """A dtype by its name; random keys are called ``key<fry>`` and the like."""
    if name.startswith("key<"):
        return jax.eval_shape(lambda: jax.random.key(0, impl=KEYS[name[4:-1]])).dtype
    return jnp.dtype(name)


def _is_float(dtype: str) -> bool:
    return bool(jnp.issubdtype(jnp.dtype(dtype), jnp.floating)) if dtype[:3] != "key" else False


@dataclasses.dataclass(frozen=True)
class FusionSpec:
    """Which neurons go, and how: frozen, hashable, a static argument of jitted functions.

    Made by `DependencyGraph.spec`.

    Attributes:
      plan: leaves, groups, widths.
      method: how the small parameters are computed.
    """

    plan: Plan
    method: Method = dataclasses.field(default_factory=Method)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.plan, self.method))

    def __hash__(self) -> int:
        """Hash of plan and method, computed once."""
        return self._hash

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, cut or not."""
        return self.plan.groups

    def weights(self) -> tuple[int, int]:
        """Number of parameters before and after."""
        return self.plan.weights({}), self.plan.weights()

    def flops(self) -> tuple[int, int]:
        """Floating-point operations of all contractions before and after, for the traced inputs."""
        return self.plan.flops({}), self.plan.flops()

    def small_struct(self, params: Any = None) -> Any:
        """The abstract small tree.

        Args:
          params: the parameters or their structs, full or small, for their structure and dtypes;
            without it the result is nested dicts of the traced dtypes.

        Returns:
          A tree with a `jax.ShapeDtypeStruct` per leaf; of parameters on a mesh with the shardings
          of `ifjax.small_shardings`.

        Raises:
          ValueError: if ``params`` has a leaf that the spec has not.
        """
        if params is None:
            tree: dict[str, Any] = {}
            for leaf in self.plan.leaves:
                *parents, last = leaf.path.split("/")
                at = tree
                for key in parents:
                    at = at.setdefault(key, {})
                at[last] = jax.ShapeDtypeStruct(self.plan.shape(leaf.path), _dtype(leaf.dtype))
            return tree

        def small(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            if name not in self.plan.leaf:
                raise ValueError(f"{name}: not a leaf of the network this spec was made for")
            return jax.ShapeDtypeStruct(self.plan.shape(name), leaf.dtype)

        return laid_like(jax.tree_util.tree_map_with_path(small, params), params)

    def small_inputs(self, *inputs: Any) -> tuple[Any, ...]:
        """The abstract inputs of the small function: state at its small widths, the rest as it is.

        Args:
          *inputs: the inputs at full size, arrays or structs.

        Returns:
          A tuple of the same structure with a `jax.ShapeDtypeStruct` per array.
        """
        state = {f.path: f.axes for f in self.plan.state}

        def small(path: Any, x: Any) -> Any:
            name = "inputs/" + jax.tree_util.keystr(path, simple=True, separator="/")
            if not hasattr(x, "shape"):
                return x
            axes = state.get(name, tuple(map(ex.Pinned, x.shape)))
            shape = (
                ex.size(e, self.plan.widths) if {*ex.atoms(e)} else n
                for e, n in zip(axes, x.shape, strict=True)
            )
            return jax.ShapeDtypeStruct(tuple(shape), x.dtype)

        return jax.tree_util.tree_map_with_path(small, tuple(inputs))

    def to_json(self) -> str:
        """The spec as JSON text; inverse of `from_json`."""
        plan = self.plan
        value = {
            "version": plan.version,
            "method": {
                k: ("inf" if v == math.inf else v)
                for k, v in dataclasses.asdict(self.method).items()
            },
            "leaves": _to_lists(plan.leaves),
            "state": _to_lists(plan.state),
            "carried": plan.carried,
            "groups": [dataclasses.asdict(g) for g in plan.groups],
            "norms": [dataclasses.asdict(n) for n in plan.norms],
            "products": [[ex.to_json(e) for e in p] for p in plan.products],
        }
        return json.dumps(value)

    @classmethod
    def from_json(cls, text: str) -> FusionSpec:
        """Reads what `to_json` wrote.

        Raises:
          ValueError: if the text is not a spec, or of another schema version.
        """
        try:
            value = json.loads(text)
            version = value["version"]
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise ValueError(f"not the JSON text of a FusionSpec: {e}") from e
        if version != SCHEMA_VERSION:
            raise ValueError(f"expected a spec of schema version {SCHEMA_VERSION}, got {version}")
        try:
            method = dict(value["method"])
            if method["cost_p"] != "cosine":
                method["cost_p"] = float(method["cost_p"])
            plan = Plan(
                leaves=_from_lists(value["leaves"]),
                state=_from_lists(value["state"]),
                carried=tuple(value["carried"]),
                groups=tuple(
                    Group(
                        **{
                            **g,
                            "batch": tuple(g["batch"]),
                            "along": tuple(g["along"]),
                            "members": tuple(
                                Member(**{**m, "where": tuple(m["where"])}) for m in g["members"]
                            ),
                        }
                    )
                    for g in value["groups"]
                ),
                norms=tuple(BatchNorm(**n) for n in value["norms"]),
                products=tuple(tuple(ex.from_json(e) for e in p) for p in value["products"]),
                version=version,
            )
            return cls(plan, Method(**method))
        except (KeyError, TypeError) as e:
            raise ValueError(f"not the JSON text of a FusionSpec: {type(e).__name__} {e}") from e

    def __str__(self) -> str:
        """Channels, weights and FLOPs of every cut group, before and after."""
        return spec_table(self.plan, self.method)


def _to_lists(leaves: Sequence[Leaf]) -> list[list[Any]]:
    return [[x.path, list(x.shape), x.dtype, [ex.to_json(a) for a in x.axes]] for x in leaves]


def _from_lists(values: Sequence[Any]) -> tuple[Leaf, ...]:
    return tuple(
        Leaf(path, tuple(shape), dtype, tuple(ex.from_json(a) for a in axes))
        for path, shape, dtype, axes in values
    )


def spec_table(plan: Plan, method: Method) -> str:
    """Channels, weights and FLOPs that every cut group saves alone, and the totals of all."""
    rows = [("group", "neurons", "weights saved", "FLOPs saved")]
    for group in plan.groups:
        if group.kept != group.size:
            weights, flops = savings(plan, group, group.kept)
            neurons = f"{group.size} -> {group.kept}"
            rows.append((group.name, neurons, f"{weights:,}", f"{flops:,}"))
    (w0, w1), (f0, f1) = (plan.weights({}), plan.weights()), (plan.flops({}), plan.flops())
    saved = [f"{1 - b / a:.1%} fewer" if a else "none" for a, b in ((w0, w1), (f0, f1))]
    return "\n".join(
        [
            f"FusionSpec ({method.method}): weights {w0:,} -> {w1:,} ({saved[0]}), "
            f"FLOPs {f0:,} -> {f1:,} ({saved[1]})",
            *align(rows),
        ]
    )


def savings(plan: Plan, group: Group, kept: int = 0) -> tuple[int, int]:
    """Weights and FLOPs that cutting this group alone to ``kept`` neurons removes."""
    widths = {group.name: kept}
    paths = {m.path for m in group.members if m.role not in ("mean", "variance")}
    weights = sum(math.prod(plan.shape(p, {})) - math.prod(plan.shape(p, widths)) for p in paths)
    flops = 0
    for product in plan.products:
        if any(group.name in ex.atoms(e) for e in product):
            sizes = [(ex.size(e), ex.size(e, widths)) for e in product]
            flops += 2 * (math.prod(a for a, _ in sizes) - math.prod(b for _, b in sizes))
    return weights, flops


def align(rows: Sequence[tuple[str, ...]]) -> Iterable[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        first, *rest = zip(row, columns, strict=True)
        yield "  " + "  ".join([first[0].ljust(first[1]), *(c.rjust(w) for c, w in rest)]).rstrip()
