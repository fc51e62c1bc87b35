"""A small network and its spec in one orbax checkpoint."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.tree_util import KeyPath
from jaxtyping import PyTree

from ifjax.promotion import with_promotion
from ifjax.spec.spec import FusionSpec
from ifjax.structure.leaves import check_small
from ifjax.tree import check_finite, leaves_by_path, path_name

if TYPE_CHECKING:
    import orbax.checkpoint as ocp

SIZES = "files.json"  # lengths of all files of a checkpoint, so that a truncated one is found out


@with_promotion
def save(path: str | os.PathLike[str], params: PyTree, spec: FusionSpec) -> None:
    """Writes small parameters and the spec that they belong to.

    The directory appears under its name only when it is complete. Of several processes (see
    `jax.distributed`) process 0 alone has to call this; where it does not hold all parameters
    itself, every process has to, and ``path`` has to be in a file system that they share.

    Args:
      path: directory to write; it must not exist.
      params: parameters at the widths of ``spec``.
      spec: the spec.

    Raises:
      ValueError: if the parameters have not the widths of the spec, or are not finite, or a process
        other than 0 would write alone; nothing is written then.
      FileExistsError: if ``path`` exists.

    Example:
      >>> import ifjax, tempfile, jax.numpy as jnp
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> spec = graph.spec(0.5, method="prune")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/small", ifjax.fuse_params(params, spec), spec)
      ...     small, same = load(f"{folder}/small")
      >>> small["w1"].shape, same == spec
      ((4, 2), True)
    """
    params = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.numpy.asarray(x), params)
    check_small(params, spec.structure)
    check_finite(leaves_by_path(params))
    path = Path(path).absolute()
    if path.exists():
        raise FileExistsError(f"{path} exists: expected a new directory to write a checkpoint to")
    alone = all(x.is_fully_addressable for x in jax.tree.leaves(params))
    if alone and jax.process_count() > 1:
        if jax.process_index() != 0:
            raise ValueError(
                f"{path}: expected process 0 to save parameters that it holds itself, got process "
                f"{jax.process_index()}; call ifjax.save if jax.process_index() == 0"
            )
        params = jax.device_get(params)  # orbax takes arrays of one among several for a mistake
    with _folder_beside(path, alone) as folder:
        whole = folder / path.name
        with _checkpointer(alone) as writer:
            writer.save(
                whole,
                args=_orbax().args.Composite(
                    params=_orbax().args.PyTreeSave(params),
                    spec=_orbax().args.JsonSave(json.loads(spec.to_json())),
                ),
            )
        if alone or jax.process_index() == 0:
            (whole / SIZES).write_text(json.dumps(_sizes(whole)))
            whole.rename(path)
    if not alone:
        multihost_utils.sync_global_devices(f"saved {path}")


@contextlib.contextmanager
def _folder_beside(path: Path, alone: bool) -> Iterator[Path]:
    """A directory that is removed in the end; the same for all processes, unless one is alone."""
    number = np.uint32(secrets.randbits(32))
    number = number if alone else multihost_utils.broadcast_one_to_all(number)
    folder = path.with_name(f".{path.name}.{int(number):08x}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield folder
    finally:
        if alone or jax.process_index() == 0:
            shutil.rmtree(folder, ignore_errors=True)


@with_promotion
def load(
    path: str | os.PathLike[str],
    like: PyTree | None = None,
    sharding: PyTree | None = None,
) -> tuple[PyTree, FusionSpec]:
    """Reads what `save` wrote.

    Of several processes each may call this; where ``sharding`` spreads parameters over them, all
    have to.

    Args:
      path: the directory.
      like: a tree of the wanted structure (arrays or structs; their shapes do not matter); without
        it the parameters come as plain dicts.
      sharding: where to place the arrays, by default on the first local device: one
        `jax.sharding.Sharding`, or a tree of them, see `ifjax.small_shardings`.

    Returns:
      The small parameters and their spec.

    Raises:
      FileNotFoundError: if there is no such directory.
      ValueError: if it is not a complete checkpoint of `save`, or if ``like`` or ``sharding`` has
        other leaves.

    Example:
      >>> import ifjax, tempfile, jax.numpy as jnp
      >>> params = [jnp.eye(4), jnp.ones((4, 2))]
      >>> graph = ifjax.trace(lambda p, x: x @ p[0] @ p[1], params, jnp.ones((1, 4)))
      >>> spec = graph.spec(0.5, method="prune")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(f"{folder}/small", ifjax.fuse_params(params, spec), spec)
      ...     small, spec = load(f"{folder}/small", like=params)
      >>> [x.shape for x in small]
      [(4, 2), (2, 2)]
    """
    path = Path(path).absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such directory; expected one that ifjax.save wrote")
    _check_sizes(path)
    places = [x for x in jax.tree.leaves(sharding) if isinstance(x, jax.sharding.Sharding)]
    try:
        with _checkpointer(all(x.is_fully_addressable for x in places)) as reader:
            text = reader.restore(
                path,
                args=_orbax().args.Composite(spec=_orbax().args.JsonRestore()),
            )
            spec = FusionSpec.from_json(json.dumps(text["spec"]))
            params = _restore(reader, path, sharding)
    except Exception as e:
        raise ValueError(
            f"{path}: not a complete checkpoint of ifjax.save, it is truncated or was written by "
            f"something else ({type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''})"
        ) from e
    check_small(params, spec.structure)
    found = leaves_by_path(params)
    if not isinstance(sharding, jax.sharding.Sharding | None):
        _check_same(path, found, leaves_by_path(sharding), "sharding")
    if like is not None:
        wanted = leaves_by_path(like)
        _check_same(path, found, wanted, "like")
        params = jax.tree.unflatten(jax.tree.structure(like), [found[p] for p in wanted])
    return params, spec


def _check_same(path: Path, found: dict[str, PyTree], wanted: dict[str, PyTree], name: str) -> None:
    """Raises ValueError at a leaf that only one of two trees has."""
    for leaf in {**wanted, **found}:
        if leaf not in found or leaf not in wanted:
            where = name if leaf in wanted else "the checkpoint"
            raise ValueError(f"{path}: leaf {leaf} is only in {where}")


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file, by its path in the folder."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SIZES)
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in files}


def _check_sizes(path: Path) -> None:
    """Raises ValueError where a file of the checkpoint is missing or has another length."""
    try:
        wanted = json.loads((path / SIZES).read_text())
    except (OSError, ValueError) as e:
        raise ValueError(
            f"{path}: not a complete checkpoint of ifjax.save: its list of files, {SIZES}, is "
            "missing or unreadable"
        ) from e
    found = _sizes(path)
    for file, size in wanted.items():
        if found.get(file) != size:
            raise ValueError(
                f"{path}: not a complete checkpoint of ifjax.save: expected {size} bytes in "
                f"{file}, got {found.get(file, 'no such file')}"
            )


@functools.cache
def _orbax() -> ModuleType:
    """orbax, imported at its first use: it takes as long as half of what else is imported."""
    return importlib.import_module("orbax.checkpoint")


def _checkpointer(alone: bool) -> ocp.Checkpointer:
    """Of this process, or of all together."""
    ocp = _orbax()
    processes = ocp.options.MultiprocessingOptions()
    if alone and jax.process_count() > 1:
        me = jax.process_index()
        processes = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
    handler = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=processes),
        params=ocp.PyTreeCheckpointHandler(multiprocessing_options=processes),
        spec=ocp.JsonCheckpointHandler(multiprocessing_options=processes),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=processes)


def _restore(reader: ocp.Checkpointer, path: Path, sharding: PyTree) -> PyTree:
    """The parameters as nested dicts or lists, on shardings that exist on this machine."""
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    one = isinstance(sharding, jax.sharding.Sharding | None)
    places = {} if one else leaves_by_path(sharding)

    def placed(at: KeyPath, m: PyTree) -> jax.ShapeDtypeStruct:
        place = sharding or first if one else places.get(path_name(at), first)
        return jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=place)

    items: PyTree = reader.metadata(path).item_metadata
    abstract = jax.tree_util.tree_map_with_path(placed, items["params"].tree)
    restored = reader.restore(
        path,
        args=_orbax().args.Composite(
            params=_orbax().args.PyTreeRestore(
                item=abstract,
                restore_args=_orbax().checkpoint_utils.construct_restore_args(abstract),
            )
        ),
    )
    return restored["params"]
