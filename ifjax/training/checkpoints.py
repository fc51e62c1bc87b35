"""Checkpoints of a training run, written beside the training, from which it goes on bit for bit."""

import dataclasses
import os
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, Bool, PyTree

from ifjax.training.distributed import on_first
from ifjax.training.layout import Layout, collect, place
from ifjax.training.state import TrainState
from ifjax.tree import leaves_by_path

KEPT = 2
"""How many checkpoints of a run are kept: if the newest is damaged, the one before it serves."""


@dataclasses.dataclass(frozen=True)
class Feed:
    """What fixes, together with a step, the images that the step is given.

    The position in the data is no more than the step: epoch and batch are its quotient and rest by
    ``steps_per_epoch``, the order of an epoch follows from seed and epoch, and augmentation from
    the state's random key and the step. A checkpoint holds the step and the key, and this besides,
    so that a run that would go on with other images is refused.

    Attributes:
        data: name of the data set.
        images: how many it has to train on.
        batch_size: images of a step (of each fold).
        steps_per_epoch: steps of an epoch.
        seed: of the order of the images.
        folds: which images belong to which fold, as a digest; empty for a single model.
    """

    data: str
    images: int
    batch_size: int
    steps_per_epoch: int
    seed: int
    folds: str = ""

    def position(self, step: int) -> dict[str, int]:
        """Epoch and batch after so many steps.

        Args:
            step: steps done.

        Returns:
            The next batch, both numbers from 0.

        Example:
            >>> Feed("digits", 1438, 64, 22, seed=0).position(50)
            {'epoch': 2, 'batch': 6}
        """
        epoch, batch = divmod(step, self.steps_per_epoch)
        return {"epoch": epoch, "batch": batch}


@contextmanager
def open_checkpoints(
    folder: str | os.PathLike[str], feed: Feed, layout: Layout | None = None
) -> Iterator["Checkpoints"]:
    """Opens, or makes, the checkpoints of one run; the newest two are kept.

    A checkpoint appears under its name only when it is complete; what a killed process left half
    written is removed. On several hosts process 0 alone reads and writes files, and every process
    has to make the same calls.

    Args:
        folder: where they are, a folder of their own.
        feed: what the run is fed with.
        layout: of the folds, where the states are split states. They are stored with one entry for
            each fold, so that the run may go on with another number of devices; bit for bit only
            with the same.

    Yields:
        The checkpoints; on the way out the last one is finished.

    Raises:
        OSError: (or what orbax raises) on the way out, if the last one could not be written.

    Example:
        >>> import optax, jax.numpy as jnp, tempfile
        >>> from ifjax.training import create_state
        >>> state = create_state({"params": {"w": jnp.ones(3)}}, optax.sgd(0.1))
        >>> feed = Feed("digits", 1438, 64, 22, seed=0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open_checkpoints(folder, feed) as checkpoints:
        ...         checkpoints.save(state._replace(step=jnp.asarray(7)))
        ...     with open_checkpoints(folder, feed) as checkpoints:
        ...         int(checkpoints.restore(state).step)
        7
    """
    checkpoints = Checkpoints(Path(folder).absolute(), feed, layout)
    try:
        yield checkpoints
    except BaseException as error:
        try:
            checkpoints.close()
        except Exception as other:  # what ended the run comes first
            error.add_note(f"the last checkpoint was not written either: {other}")
        raise
    checkpoints.close()


class Checkpoints:
    """What :func:`open_checkpoints` opens."""

    def __init__(self, folder: Path, feed: Feed, layout: Layout | None) -> None:
        """Opens them; use :func:`open_checkpoints`."""
        self._folder, self._feed, self._layout = folder, feed, layout
        self._writer = ThreadPoolExecutor(1, "checkpoints")
        self._write_in_flight: Future[None] | None = None
        self._latest: int | None = None
        self._before, self._opened = 0.0, time.monotonic()
        self._manager: ocp.CheckpointManager | None = None
        on_first(self._open)

    @property
    def seconds(self) -> float:
        """Of training so far, with what was saved of it by processes that were interrupted."""
        return self._before + time.monotonic() - self._opened

    def save(self, state: TrainState) -> None:
        """Begins to write a checkpoint of a state under its step, and lets the training go on.

        The state is copied on its device first, so that the next step may take it; it needs that
        memory twice for a moment. A write that has not ended when the next begins is waited for.
        The state that was saved or restored last is not written again.

        Args:
            state: parameters, statistics, optimizer state, step and random key.

        Raises:
            FloatingPointError: if the state holds NaN or infinite numbers; nothing is written then,
                so that the last good checkpoint stays.
            OSError: (or what orbax raises) if the write before this one has failed.
        """
        self.wait()
        step = int(np.asarray(state.step).flat[0])
        if step == self._latest:
            return
        taken = _with_bits(state)
        if self._layout is None:
            taken, finite = _copied(taken)
        else:
            taken = collect(taken, self._layout)
            finite = {path: np.isfinite(leaf) for path, leaf in _floating(taken).items()}
        for path, found in finite.items():
            if not np.all(found):
                raise FloatingPointError(
                    f"NaN or infinite numbers after step {step} at {path}{self._folds(found)}; "
                    "lower the learning rate or lengthen the warm-up"
                )
        self._latest = step
        if self._manager is not None:
            self._write_in_flight = self._writer.submit(self._write, step, taken, self.seconds)

    def wait(self) -> None:
        """Waits until what was saved is on disk.

        Raises:
            OSError: (or what orbax raises) if it could not be written.
        """
        if self._write_in_flight is not None:
            write, self._write_in_flight = self._write_in_flight, None
            write.result()

    def restore(self, like: TrainState) -> TrainState | None:
        """Reads the newest checkpoint that is whole; newer ones that are not are removed.

        Args:
            like: a state of the run, such as the one before its first step, for the structure.

        Returns:
            The state, or None where there is none to continue from.

        Raises:
            ValueError: if the checkpoint belongs to another run: it was fed otherwise, or its
                leaves have other shapes. Nothing is removed then.
        """
        self.wait()
        struct = jax.eval_shape(_with_bits, like)
        if self._layout is not None:
            folds = self._layout.folds
            struct = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((folds, *x.shape[2:]), x.dtype), struct
            )
        read: tuple[TrainState, float] | None = on_first(lambda: self._read(struct))
        if read is None:
            return None
        found, self._before = read
        self._latest = int(np.asarray(found.step).flat[0])
        if self._layout is not None:
            state = place(found, self._layout)
        else:  # copied, as the next step donates them
            state = jax.tree.map(lambda x: jnp.array(x, copy=True), found)
        impl = jax.random.key_impl(like.key)
        return state._replace(key=jax.random.wrap_key_data(state.key, impl=impl))

    def close(self) -> None:
        """Finishes what is being written."""
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            if self._manager is not None:
                self._manager.close()

    def _open(self) -> None:
        """Finds what is there, in process 0."""
        self._folder.mkdir(parents=True, exist_ok=True)
        processes = {0} if jax.process_count() > 1 else None
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                create=False,
                max_to_keep=KEPT,
                cleanup_tmp_directories=True,
                # The thread here does more beside the training than orbax's would: the copy to the
                # host, the digest, and making folders.
                enable_async_checkpointing=False,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=0, active_processes=processes
                ),
            ),
            item_names=("state", "record"),
        )

    def _write(self, step: int, state: TrainState, seconds: float) -> None:
        assert self._manager is not None
        state = jax.device_get(state)
        record = {
            "crc32": _digest(state),
            "feed": dataclasses.asdict(self._feed),
            "position": self._feed.position(step),
            "leaves": _shapes(state),
            "seconds": seconds,
        }
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),  # type: ignore[call-arg]
            record=ocp.args.JsonSave(record),  # type: ignore[call-arg]
        )
        self._manager.save(step, args=args, force=True)

    def _read(self, struct: TrainState) -> tuple[TrainState, float] | None:
        assert self._manager is not None
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                only = ocp.args.Composite(record=ocp.args.JsonRestore())  # type: ignore[call-arg]
                record = self._manager.restore(step, args=only)["record"]
                fed, shapes, crc32 = record["feed"], record["leaves"], record["crc32"]
                seconds = float(record["seconds"])
            except Exception as error:  # what orbax raises for a damaged file depends on the file
                self._give_up(step, error)
                continue
            self._refuse_other_run(step, fed, shapes, _shapes(struct))
            try:
                state = self._read_state(step, struct)
                if _digest(state) != crc32:
                    raise ValueError("its numbers are not the ones that were written")
                return state, seconds
            except Exception as error:
                self._give_up(step, error)
        return None

    def _read_state(self, step: int, struct: TrainState) -> TrainState:
        assert self._manager is not None
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(struct)  # type: ignore[call-arg]
        )
        return jax.device_get(self._manager.restore(step, args=args)["state"])

    def _give_up(self, step: int, error: Exception) -> None:
        """Says that a checkpoint is damaged, and removes it."""
        assert self._manager is not None
        reason = " ".join(str(error).split())[:200]
        print(f"the checkpoint of step {step} cannot be used: {reason}", file=sys.stderr)
        self._manager.delete(step)

    def _refuse_other_run(
        self, step: int, fed: dict[str, Any], there: dict[str, Any], here: dict[str, Any]
    ) -> None:
        mine = dataclasses.asdict(self._feed)
        changes = [
            f"{name} is {fed.get(name)} there, {mine[name]} here"
            for name in mine
            if fed.get(name) != mine[name]
        ]
        changes += [
            f"{path} is {there.get(path, 'missing')} there, {here.get(path, 'missing')} here"
            for path in sorted(there.keys() | here.keys())
            if there.get(path) != here.get(path)
        ]
        if changes:
            more = f" (and {len(changes) - 5} more)" if len(changes) > 5 else ""
            raise ValueError(
                f"{self._folder} holds a checkpoint of another run at step {step}: "
                f"{'; '.join(changes[:5])}{more}; pass the same to continue it, or begin anew in "
                "another folder"
            )

    def _folds(self, finite: Any) -> str:
        """Names the folds whose entries are not finite."""
        if self._layout is None:
            return ""
        good = np.reshape(finite, (self._layout.folds, -1)).all(axis=1)
        return f" of fold {', '.join(map(str, np.flatnonzero(~good)))}"


def _with_bits(state: TrainState) -> TrainState:
    """The state with the bits of its random key, which any version of orbax can write."""
    return state._replace(key=jax.random.key_data(state.key))


@jax.jit
def _copied(tree: PyTree) -> tuple[PyTree, dict[str, Bool[Array, ""]]]:
    """A tree in buffers of its own, and which of its leaves are finite."""
    finite = {path: jnp.isfinite(leaf).all() for path, leaf in _floating(tree).items()}
    return jax.tree.map(jnp.copy, tree), finite


def _floating(tree: PyTree) -> dict[str, Any]:
    leaves = leaves_by_path(tree)
    return {path: x for path, x in leaves.items() if jnp.issubdtype(x.dtype, jnp.inexact)}


def _shapes(tree: PyTree) -> dict[str, str]:
    return {
        path: f"{np.dtype(leaf.dtype).name}{list(leaf.shape)}"
        for path, leaf in leaves_by_path(tree).items()
    }


def _digest(tree: PyTree) -> int:
    """CRC-32 of the bytes of all leaves, in order."""
    crc = 0
    for leaf in jax.tree.leaves(tree):
        crc = zlib.crc32(np.ascontiguousarray(leaf).tobytes(), crc)
    return crc
