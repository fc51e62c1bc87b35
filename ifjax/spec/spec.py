"""What a function's parameters are made of, and what is to become of it: static, hashable values.

A `Structure` says which axes of which leaves belong to which group and how wide each group is to
be; it is all that shrinking, saving and loading need. A `Method` says how the small parameters are
computed. A `FusionSpec` is both, serialisable as JSON.
"""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
from jax.tree_util import KeyPath
from jaxtyping import PyTree

from ifjax.namespace import Shaped
from ifjax.parallel.sharding import divided, laid_like, sharding_of
from ifjax.promotion import with_promotion
from ifjax.spec.method import Method
from ifjax.spec.table import shortened, spec_table
from ifjax.structure import axis as ex
from ifjax.structure.serialise import from_dict, to_dict
from ifjax.structure.structure import KEYS, Group, Structure
from ifjax.tree import leaves_by_path, path_name


def _struct(shape: tuple[int, ...], dtype: str) -> jax.ShapeDtypeStruct:
    """Of a dtype by its name; random keys are called ``key<fry>`` and the like."""
    if not dtype.startswith("key<"):
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
    key = jax.eval_shape(lambda: jax.random.key(0, impl=KEYS[dtype[4:-1]]))
    return jax.ShapeDtypeStruct(shape, key.dtype)


@dataclasses.dataclass(frozen=True)
class FusionSpec:
    """Which neurons go, and how: frozen, hashable, a static argument of jitted functions.

    Made by `DependencyGraph.spec`.

    Attributes:
      structure: leaves, groups, widths.
      method: how the small parameters are computed.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> spec = graph.spec(0.5)
      >>> spec.weights(), spec.flops()
      ((24, 12), (48, 24))
      >>> ifjax.FusionSpec.from_json(spec.to_json()) == spec
      True
    """

    structure: Structure
    method: Method = dataclasses.field(default_factory=Method)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.structure, self.method))

    def __hash__(self) -> int:
        """Hash of structure and method, computed once."""
        return self._hash

    @property
    def plan(self) -> Structure:
        """The structure, by the name that it had before 0.2."""
        return self.structure

    @property
    def groups(self) -> tuple[Group, ...]:
        """All groups, cut or not."""
        return self.structure.groups

    def weights(self) -> tuple[int, int]:
        """Number of parameters before and after."""
        return self.structure.weights({}), self.structure.weights()

    def flops(self) -> tuple[int, int]:
        """Floating-point operations of all contractions before and after, for the traced inputs."""
        return self.structure.flops({}), self.structure.flops()

    def small_struct(self, params: PyTree | None = None) -> PyTree:
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
            tree: dict[str, PyTree] = {}
            for leaf in self.structure.leaves:
                *parents, last = leaf.path.split("/")
                at = tree
                for key in parents:
                    at = at.setdefault(key, {})
                at[last] = _struct(self.structure.shape(leaf.path), leaf.dtype)
            return tree

        def small(path: KeyPath, leaf: Shaped) -> jax.ShapeDtypeStruct:
            name = path_name(path)
            if name not in self.structure.leaf:
                raise ValueError(f"{name}: not a leaf of the network this spec was made for")
            return jax.ShapeDtypeStruct(self.structure.shape(name), leaf.dtype)

        return laid_like(jax.tree_util.tree_map_with_path(small, params), params)

    def small_inputs(self, *inputs: PyTree) -> tuple[PyTree, ...]:
        """The abstract inputs of the small function: state at its small widths, the rest as it is.

        Args:
          *inputs: the inputs at full size, arrays or structs.

        Returns:
          A tuple of the same structure with a `jax.ShapeDtypeStruct` per array.
        """
        state = {f.path: f.axes for f in self.structure.state}

        def small(path: KeyPath, x: PyTree) -> PyTree:
            name = f"inputs/{path_name(path)}"
            if not hasattr(x, "shape"):
                return x
            axes = state.get(name, tuple(map(ex.Pinned, x.shape)))
            shape = (
                ex.size(e, self.structure.widths) if {*ex.atoms(e)} else n
                for e, n in zip(axes, x.shape, strict=True)
            )
            return jax.ShapeDtypeStruct(tuple(shape), x.dtype)

        return jax.tree_util.tree_map_with_path(small, tuple(inputs))

    def to_json(self) -> str:
        """The spec as JSON text; inverse of `from_json`.

        Raises:
          ValueError: for a method with a value of a class that is not registered.
        """
        return json.dumps({**to_dict(self.structure), "method": self.method.to_json()})

    @classmethod
    def from_json(cls, text: str) -> FusionSpec:
        """Reads what `to_json` wrote.

        Raises:
          ValueError: if the text is not a spec, of another schema version, or of a method with
            a value of a class that is not registered.
        """
        try:
            value = json.loads(text)
            return cls(from_dict(value), Method.from_json(value["method"]))
        except (json.JSONDecodeError, KeyError, TypeError) as e:
            raise ValueError(f"not the JSON text of a FusionSpec: {type(e).__name__} {e}") from e

    def __str__(self) -> str:
        """Channels, weights and FLOPs of every cut group, before and after."""
        return spec_table(self.structure, self.method)

    def __repr__(self) -> str:
        """The same, of the first groups: what notebooks show."""
        return shortened(str(self))


def check_spec(spec: object) -> None:
    """Raises TypeError for anything but a spec: a graph has a structure too."""
    if not isinstance(spec, FusionSpec):
        how = ": say how much is to go by graph.spec(0.5)" if hasattr(spec, "structure") else ""
        raise TypeError(
            f"expected a FusionSpec, as graph.spec(...) gives it, got {type(spec).__name__}{how}"
        )


@with_promotion
def small_shardings(spec: FusionSpec, params: PyTree, *, strict: bool = False) -> PyTree:
    """Where the small parameters lie: every leaf as the full one does, as far as widths divide.

    For ``jax.jit(..., out_shardings=...)`` of `ifjax.fuse_params`, and for `ifjax.load`. Where the
    small width of an axis is no multiple of the mesh axes that it was split over, the last of these
    are dropped until it is: over them the axis is replicated. A warning names the leaf, and the
    ``round_to`` of `DependencyGraph.spec` that avoids it.

    Args:
      spec: the spec.
      params: the full parameters, their structs, or their shardings.
      strict: refuse a width that is no multiple of its mesh axes instead.

    Returns:
      A tree of the same structure with a `jax.sharding.Sharding` per leaf.

    Raises:
      ValueError: for a leaf that the spec has not; with ``strict`` for a width that does not
        divide, with those that would.
      TypeError: for a leaf without a sharding, or with one that is neither a `NamedSharding` nor
        whole on every device; for arrays of a jitted function whose mesh is not explicit.

    Example:
      >>> import ifjax, jax.numpy as jnp
      >>> from jax.sharding import NamedSharding, PartitionSpec as P
      >>> params = {"w1": jnp.ones((4, 8)), "w2": jnp.ones((8, 2))}
      >>> apply = lambda p, x: jax.nn.relu(x @ p["w1"]) @ p["w2"]
      >>> spec = ifjax.trace(apply, params, jnp.ones((1, 4))).spec(0.5, solver="nearest")
      >>> mesh = jax.sharding.Mesh(jax.devices()[:1], ("devices",))
      >>> split = {"w1": P(None, "devices"), "w2": P("devices")}
      >>> params = jax.device_put(params, {k: NamedSharding(mesh, s) for k, s in split.items()})
      >>> outputs = small_shardings(spec, params)
      >>> fuse = jax.jit(ifjax.fuse_params, static_argnames="spec", out_shardings=outputs)
      >>> fuse(params, spec=spec)["w1"].sharding.spec == split["w1"]
      True
    """
    leaves = leaves_by_path(params)
    for name in leaves:
        if name not in spec.structure.leaf:
            raise ValueError(f"{name}: not a leaf of the network this spec was made for")
    full = {name: sharding_of(name, x) for name, x in leaves.items()}
    small = divided(full, {name: spec.structure.shape(name) for name in leaves}, strict)
    return jax.tree.unflatten(jax.tree.structure(params), list(small.values()))
