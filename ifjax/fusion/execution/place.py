"""Where fusion runs: in numpy where this process holds all arrays, else as one jitted program.

An accelerator compiles a program for seconds where a network of many small groups is fused in less;
groups of thousands of neurons it fuses in a fraction of what the host takes to merge them.
"""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax.sharding import Sharding
from jaxtyping import PyTree

from ifjax.fusion.program import Program
from ifjax.namespace import Arrays
from ifjax.parallel.placement import on_mesh
from ifjax.parallel.sharding import laid_like, sharding_of
from ifjax.spec.spec import small_shardings
from ifjax.tree import is_concrete, leaves_by_path, with_leaves


def is_held(*trees: PyTree) -> bool:
    """Whether every array is numpy's, or lies on a single device of this process.

    >>> is_held({"w": jnp.ones(2)}, np.ones(3)), jax.jit(lambda x: x + is_held(x))(jnp.zeros(()))
    (True, Array(0., dtype=float32))
    """
    arrays = [x for x in jax.tree.leaves(trees) if isinstance(x, jax.Array)]
    return is_concrete(*arrays) and all(
        x.is_fully_addressable and len(x.devices()) == 1 for x in arrays
    )


def held_by_host(program: Program, *trees: PyTree) -> bool:
    """Whether fusion runs in numpy: on all that is held, but large groups on an accelerator."""
    return is_held(*trees) and not (_on_accelerator(trees) and program.is_large)


def _on_accelerator(trees: PyTree) -> bool:
    """Whether there are arrays of jax, none of them on a CPU."""
    arrays = [x for x in jax.tree.leaves(trees) if isinstance(x, jax.Array)]
    devices = {device.platform for x in arrays for device in x.devices()}
    return bool(devices) and "cpu" not in devices


def to_host(tree: PyTree) -> PyTree:
    """The arrays in numpy, all transfers begun at once; random keys as they are."""
    arrays, structure = jax.tree.flatten(tree)
    wanted = [isinstance(x, jax.Array) and not _is_key(x) for x in arrays]
    for x, fetch in zip(arrays, wanted, strict=True):
        if fetch:
            x.copy_to_host_async()
    pairs = zip(arrays, wanted, strict=True)
    return jax.tree.unflatten(structure, [np.asarray(x) if fetch else x for x, fetch in pairs])


def _is_key(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_devices(found: Mapping[str, np.ndarray], like: Arrays) -> dict[str, jax.Array]:
    """Arrays from the host where the given ones lie, all at once: nothing is compiled."""
    alike: dict[Sharding | None, dict[str, np.ndarray]] = defaultdict(dict)
    for path, x in found.items():
        full = like[path]
        # Where an array was not put on a device on purpose, its small one is not either.
        put = isinstance(full, jax.Array) and full.committed
        alike[full.sharding if put else None][path] = x
    placed: dict[str, jax.Array] = {}
    for place, arrays in alike.items():
        placed |= jax.device_put(arrays, place)
    return placed


def run(
    function: Callable[..., PyTree], program: Program, *given: PyTree, outputs: Callable[[], PyTree]
) -> PyTree:
    """``function(program, *given)``, in numpy or jitted.

    Args:
      function: the same for both.
      program: static.
      *given: trees of arrays.
      outputs: see `ifjax.parallel.placement.on_mesh`.

    Returns:
      What the function returns, in numpy where that is what runs.
    """
    if held_by_host(program, *given):
        with in_numpy():
            return function(program, *to_host(given))
    traced = functools.partial(_traced, function, program)
    return on_mesh(traced, *given, outputs=outputs)


@contextlib.contextmanager
def in_numpy() -> Iterator[None]:
    """Within it numpy is silent, as jax is, and nothing is traced.

    A jitted function may close over parameters that this process holds.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(np.errstate(all="ignore"))
        if not is_concrete(jax.device_put(np.zeros(()))):
            stack.enter_context(jax.ensure_compile_time_eval())
        yield


@functools.partial(jax.jit, static_argnums=(0, 1))
def _traced(function: Callable[..., PyTree], program: Program, *given: PyTree) -> PyTree:
    return function(program, *given)


def placed(params: PyTree, small: Arrays) -> PyTree:
    """The parameters with small leaves, where the full ones lie."""
    leaves = leaves_by_path(params)
    if all(isinstance(x, np.ndarray) for x in small.values()):
        small = to_devices(small, leaves)
    return laid_like(with_leaves(params, {**leaves, **small}), params)


def leaf_outputs(program: Program, params: PyTree, read: Arrays) -> dict[str, P]:
    """The `PartitionSpec` of every merged leaf, of parameters on a mesh with explicit axes."""
    if program.keep_shape:
        places = jax.tree.map(lambda x: sharding_of("", x), params)
    else:
        places = small_shardings(program.spec, params)
    found = leaves_by_path(places)
    return {path: found[path].spec for path in program.merges if path in read}


def map_outputs(program: Program) -> dict[str, P]:
    """The `PartitionSpec` of what is known of every group, on a mesh with explicit axes."""
    return {group.name: P() for group in program.spec.structure.in_order()}


def fused_outputs(program: Program, params: PyTree, read: Arrays) -> tuple[dict[str, P], P]:
    """The `PartitionSpec` of the merged leaves, and of how their maps were solved."""
    return leaf_outputs(program, params, read), P()
