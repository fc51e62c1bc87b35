"""Which device trains which fold, and trees with one entry per fold laid out so."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PyTree, Shaped

from ifjax.training.distributed import talking

Device: TypeAlias = jax.Device  # type: ignore[reportInvalidTypeForm]  # a variable in jax' stubs

AXIS = "fold"
"""The name of the axis that ``jax.pmap`` maps over."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """How folds lie on devices; :func:`make_layout` makes it.

    Attributes:
        folds: the number of folds.
        lanes: folds per device, trained in one program.
        replicas: devices per fold, which share each of its batches; 1 where ``lanes`` is more.
        devices: those in use, on all hosts, as many on each, in the order of ``jax.pmap``'s axis.
    """

    folds: int
    lanes: int
    replicas: int
    devices: tuple[Device, ...]

    def __str__(self) -> str:
        """Says it in words."""
        idle = self.assignment.size - self.folds * self.replicas
        words = f"{self.folds} folds on {len(self.devices)} devices"
        if self.lanes > 1:
            words += f", {self.lanes} on each"
        if self.replicas > 1:
            words += f", {self.replicas} for each, which share its batches"
        return words + (f", {idle} idle places" if idle else "")

    @cached_property
    def assignment(self) -> Int[np.ndarray, "devices lanes"]:
        """The fold of every lane; idle lanes repeat the last fold."""
        lanes = np.arange(len(self.devices) * self.lanes) // self.replicas
        return np.minimum(lanes, self.folds - 1).reshape(-1, self.lanes)

    @cached_property
    def local_positions(self) -> list[int]:
        """The positions of this process' devices in ``devices``."""
        here = jax.process_index()
        return [at for at, device in enumerate(self.devices) if device.process_index == here]

    @cached_property
    def local_folds(self) -> list[int]:
        """The folds that this process trains, alone or with others."""
        return np.unique(self.assignment[self.local_positions]).tolist()

    @property
    def groups(self) -> list[list[int]] | None:
        """The positions that train one fold together, for ``axis_index_groups``; None if alone."""
        if self.replicas == 1:
            return None
        return np.arange(len(self.devices)).reshape(-1, self.replicas).tolist()

    @cached_property
    def sharding(self) -> NamedSharding:
        """Of arrays ``[local devices, ...]``: each row on its device."""
        here = np.array([self.devices[at] for at in self.local_positions])
        return NamedSharding(Mesh(here, (AXIS,)), PartitionSpec(AXIS))

    def of_local_folds(
        self, values: Shaped[Array | np.ndarray, "devices lanes ..."]
    ) -> Shaped[np.ndarray, "folds ..."]:
        """Picks one entry for each of ``local_folds`` out of what the local devices gave."""
        values = np.asarray(values)
        return values.reshape(-1, *values.shape[2:])[self._local_first]

    @cached_property
    def _local_first(self) -> Int[np.ndarray, " folds"]:
        """The first lane of each of ``local_folds`` among those of the local devices."""
        return np.unique(self.assignment[self.local_positions], return_index=True)[1]


def make_layout(folds: int, batch_size: int, devices: Sequence[Device] | None = None) -> Layout:
    """Shares devices out to folds.

    Where there are ``r >= 2`` devices or more for a fold, they become its replicas: each takes a
    part of its batch. ``r`` is the largest number that divides the batch and puts as many devices
    to use on every host. Otherwise a device takes ``ceil(folds / devices)`` folds, on as few
    devices as that needs; places that stay idle then repeat the last fold, and are not read.

    Args:
        folds: the number of folds; 1 for ordinary training on several devices.
        batch_size: the images of a fold's step.
        devices: by default those of all hosts; as many of each host.

    Returns:
        The layout.

    Raises:
        ValueError: if a number is not positive, or the hosts differ in their number of devices.

    Example:
        >>> print(make_layout(3, 64, jax.devices()[:1]))
        3 folds on 1 devices, 3 on each
    """
    if folds < 1 or batch_size < 1:
        raise ValueError(f"expected folds and batch_size of at least 1, got {folds}, {batch_size}")
    by_host: dict[int, list[Device]] = {}
    for device in jax.devices() if devices is None else devices:
        by_host.setdefault(device.process_index, []).append(device)
    counts = {host: len(found) for host, found in by_host.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"expected as many devices of each host, one or more, got {counts}")
    hosts, total = len(by_host), sum(counts.values())
    replicas = next(
        (
            count
            for count in range(total // folds, 0, -1)
            if batch_size % count == 0 and folds * count % hosts == 0
        ),
        0,
    )
    if replicas:
        lanes, used = 1, folds * replicas
    else:
        replicas, lanes = 1, -(-folds // total)
        used = -(-folds // (lanes * hosts)) * hosts
    chosen = [device for _, found in sorted(by_host.items()) for device in found[: used // hosts]]
    return Layout(folds, lanes, replicas, tuple(chosen))


def place(tree: PyTree, layout: Layout) -> PyTree:
    """Gives each local device the entries of its folds.

    Args:
        tree: leaves ``[folds, ...]``, the same on every host; random keys may be among them.
        layout: of the folds.

    Returns:
        Leaves ``[local devices, lanes, ...]``, each row on its device, in buffers of their own.

    Raises:
        ValueError: if a leaf has another number of entries.

    Example:
        >>> layout = make_layout(2, 64, jax.devices()[:1])
        >>> place({"w": np.zeros((2, 5))}, layout)["w"].shape
        (1, 2, 5)
    """
    mine, sharding = layout.assignment[layout.local_positions], layout.sharding

    def put(path, leaf):
        if jnp.shape(leaf)[:1] != (layout.folds,):
            raise ValueError(
                f"expected one entry for each of {layout.folds} folds at "
                f"{jax.tree_util.keystr(path, simple=True, separator='/')}, got the shape "
                f"{jnp.shape(leaf)}"
            )
        if _is_key(leaf):
            bits = jax.device_put(np.asarray(jax.random.key_data(leaf))[mine], sharding)
            return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
        # A state is donated, and on the CPU device_put may share the memory of a numpy array.
        return jnp.array(jax.device_put(np.asarray(leaf)[mine], sharding), copy=True)

    return jax.tree_util.tree_map_with_path(put, tree)


def collect(tree: PyTree, layout: Layout) -> PyTree:
    """One entry for each fold on every host; the inverse of :func:`place`.

    On several hosts, every one has to call it, with trees of one structure.

    Args:
        tree: leaves ``[local devices, lanes, ...]``.
        layout: of the folds.

    Returns:
        Leaves ``[folds, ...]`` in the host's memory; random keys stay keys.

    Example:
        >>> layout = make_layout(2, 64, jax.devices()[:1])
        >>> tree = {"w": np.arange(2.0)}
        >>> collect(place(tree, layout), layout)["w"].tolist()
        [0.0, 1.0]
    """
    _, first = np.unique(layout.assignment, return_index=True)

    def pick(leaf):
        if _is_key(leaf):
            return jax.random.wrap_key_data(
                pick(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        leaf = np.asarray(leaf)
        rest = leaf.shape[2:]
        if jax.process_count() > 1:
            with talking():
                leaf = np.asarray(multihost_utils.process_allgather(leaf))
        return leaf.reshape(-1, *rest)[first]

    return jax.tree.map(pick, tree)


def _is_key(leaf) -> bool:
    return jnp.issubdtype(getattr(leaf, "dtype", np.float32), jax.dtypes.prng_key)
