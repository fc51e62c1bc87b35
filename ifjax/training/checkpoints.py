"""Checkpoints of a training run, from which it continues bit for bit."""

import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ifjax.training.state import TrainState

KEPT = 2
"""How many checkpoints of a run are kept: if the newest is damaged, the one before it serves."""


@contextmanager
def open_checkpoints(folder: str | os.PathLike[str]) -> Iterator[ocp.CheckpointManager]:
    """Open, or make, the checkpoints of one run; the newest two are kept.

    A checkpoint appears under its name only when it is complete; what a killed process left half
    written is removed.

    Args:
        folder: where they are, a folder of their own.

    Yields:
        The manager, for :func:`save_state` and :func:`restore_state`.

    Example:
        >>> import optax, jax.numpy as jnp, tempfile
        >>> from ifjax.training import create_state
        >>> state = create_state({"params": {"w": jnp.ones(3)}}, optax.sgd(0.1))
        >>> with tempfile.TemporaryDirectory() as folder, open_checkpoints(folder) as manager:
        ...     save_state(manager, state._replace(step=jnp.asarray(7)))
        ...     int(restore_state(manager, state).step)
        7
    """
    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEPT,
        cleanup_tmp_directories=True,
        # On the CPU an array handed to a background thread may share its buffer with the state
        # that the next step donates.
        enable_async_checkpointing=False,
    )
    manager = ocp.CheckpointManager(
        Path(folder).absolute(), options=options, item_names=("state", "digest")
    )
    try:
        yield manager
    finally:
        manager.close()


def save_state(manager: ocp.CheckpointManager, state: TrainState) -> None:
    """Write a checkpoint of a state under its step, and drop the oldest beyond two.

    Args:
        manager: as :func:`open_checkpoints` gives it.
        state: parameters, statistics, optimizer state, step and random key.

    Raises:
        FloatingPointError: if the state holds NaN or infinite numbers; nothing is written then, so
            that the last good checkpoint stays.
    """
    stored = jax.device_get(_stored(state))
    for path, leaf in jax.tree_util.tree_leaves_with_path(stored):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            raise FloatingPointError(
                f"NaN or infinite numbers after step {int(state.step)} at "
                f"{jax.tree_util.keystr(path, simple=True, separator='/')}; "
                "lower the learning rate or lengthen the warm-up"
            )
    args = ocp.args.Composite(
        state=ocp.args.StandardSave(stored),  # type: ignore[call-arg]
        digest=ocp.args.JsonSave({"crc32": _digest(stored)}),  # type: ignore[call-arg]
    )
    manager.save(int(state.step), args=args, force=True)


def restore_state(manager: ocp.CheckpointManager, like: TrainState) -> TrainState | None:
    """Read the newest checkpoint that is whole; newer ones that are not are removed.

    Args:
        manager: as :func:`open_checkpoints` gives it.
        like: a state of the run, such as the one before its first step, for the structure.

    Returns:
        The state, or None where there is none to continue from.
    """
    impl, like = jax.random.key_impl(like.key), _stored(like)
    args = ocp.args.Composite(
        state=ocp.args.StandardRestore(jax.eval_shape(lambda: like)),  # type: ignore[call-arg]
        digest=ocp.args.JsonRestore(),  # type: ignore[call-arg]
    )
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            found: Any = manager.restore(step, args=args)
            if found["digest"]["crc32"] != _digest(found["state"]):
                raise ValueError("its numbers are not the ones that were written")
        except Exception as error:  # what orbax raises for a damaged file depends on the file
            reason = " ".join(str(error).split())[:200]
            print(f"the checkpoint of step {step} cannot be used: {reason}", file=sys.stderr)
            manager.delete(step)
            continue
        # Copied, as the next step donates them.
        state: TrainState = jax.tree.map(lambda x: jnp.array(x, copy=True), found["state"])
        return state._replace(key=jax.random.wrap_key_data(state.key, impl=impl))
    return None


def _stored(state: TrainState) -> TrainState:
    """The state with the bits of its random key, which any version of orbax can write."""
    return state._replace(key=jax.random.key_data(state.key))


def _digest(tree: Any) -> int:
    """CRC-32 of the bytes of all leaves, in order."""
    crc = 0
    for leaf in jax.tree.leaves(jax.device_get(tree)):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return crc
