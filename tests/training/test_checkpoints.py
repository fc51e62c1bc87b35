"""States come back bit for bit, damaged checkpoints are passed over, other runs' are refused."""

import dataclasses
import os
import threading
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ifjax.training import TrainState, create_state
from ifjax.training import checkpoints as module
from ifjax.training.checkpoints import Checkpoints, Feed, open_checkpoints
from ifjax.training.layout import make_layout, place

FEED = Feed("digits", 1438, 64, 22, seed=7)
OPTIMIZER = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


def state(step: int, seed: int = 0) -> TrainState:
    """All of it random, the random key too."""
    kernel = jax.random.normal(jax.random.key(100 * seed + step), (3, 4))
    found = create_state(
        {"params": {"kernel": kernel}, "batch_stats": {"mean": kernel[0]}}, OPTIMIZER, seed
    )
    _, opt_state = OPTIMIZER.update(found.variables["params"], found.opt_state, {"kernel": kernel})
    return found._replace(step=jnp.asarray(step, jnp.int32), opt_state=opt_state)


def assert_equal(found: TrainState, expected: TrainState) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if jax.dtypes.issubdtype(b.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def test_the_newest_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
            checkpoints.save(state(step, seed=7))
    assert steps(tmp_path / "c") == [10, 15]
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        found = checkpoints.restore(state(0))
    assert found is not None
    assert_equal(found, state(15, seed=7))


def test_an_empty_folder_has_nothing_to_restore(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        assert checkpoints.restore(state(0)) is None


def damage(folder: Path, how: str) -> None:
    """Do to a checkpoint what a full disk or a bad one does."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    if how == "cut":
        largest.write_bytes(content[: len(content) // 2])
    elif how == "flipped":
        for path in files:  # in every file of numbers, wherever orbax keeps them
            if path.parent.name == "d":
                content = bytearray(path.read_bytes())
                content[len(content) // 2] ^= 1
                path.write_bytes(bytes(content))
    elif how == "record":
        next(folder.glob("record/*metadata*")).unlink()
    else:
        for path in files:
            os.remove(path)


# Reads that orbax had in flight when the first of them failed end without anybody waiting.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["cut", "flipped", "record", "gone"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_serves(
    how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.save(state(5))
        checkpoints.save(state(10))
    damage(tmp_path / "c" / "10", how)
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        found = checkpoints.restore(state(0))
        assert found is not None
        assert_equal(found, state(5))
        assert "the checkpoint of step 10 cannot be used: " in capfd.readouterr().err
        checkpoints.save(state(10))  # takes the place of the damaged one
        again = checkpoints.restore(state(0))
        assert again is not None
        assert_equal(again, state(10))


def test_numbers_other_than_those_written_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the files look like: as if orbax had handed over something else."""
    read = Checkpoints._read_state

    def altered(self: Checkpoints, step: int, struct: TrainState) -> TrainState:
        found = read(self, step, struct)
        found.variables["params"]["kernel"] = found.variables["params"]["kernel"] + 1e-3
        return found

    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.save(state(5))
        monkeypatch.setattr(Checkpoints, "_read_state", altered)
        assert checkpoints.restore(state(0)) is None
        assert "not the ones that were written" in capfd.readouterr().err


def test_what_is_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    """The folder that orbax renames when it is complete, as a killed process leaves it."""
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.save(state(5))
    half = tmp_path / "c" / "10.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "state").mkdir()
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        found = checkpoints.restore(state(0))
    assert found is not None
    assert_equal(found, state(5))
    assert not half.exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_written(bad: float, tmp_path: Path) -> None:
    broken = state(10)
    broken.variables["params"]["kernel"] = broken.variables["params"]["kernel"].at[0, 0].set(bad)
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.save(state(5))
        with pytest.raises(FloatingPointError, match=r"after step 10 at .*params/kernel"):
            checkpoints.save(broken)
    assert steps(tmp_path / "c") == [5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 32}, "batch_size is 64 there, 32 here"),
        ({"seed": 8, "data": "cifar10"}, "data is digits there, cifar10 here; seed is 7 there, 8"),
        ({"folds": "0a"}, "folds is  there, 0a here"),
    ],
)
def test_a_run_that_is_fed_otherwise_is_refused_and_removes_nothing(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.save(state(5))
    other = dataclasses.replace(FEED, **change)
    with (
        open_checkpoints(tmp_path / "c", other) as checkpoints,
        pytest.raises(ValueError, match=f"of another run at step 5: .*{message}"),
    ):
        checkpoints.restore(state(0))
    assert steps(tmp_path / "c") == [5]


def test_another_network_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.save(state(5))
        other = create_state({"params": {"kernel": jnp.ones((3, 5))}}, OPTIMIZER)
        with pytest.raises(ValueError, match=r"kernel is float32\[3, 4\] there, float32\[3, 5\]"):
            checkpoints.restore(other)
    assert steps(tmp_path / "c") == [5]


def test_the_training_goes_on_while_a_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step takes the state's buffers, before the first byte is written."""
    gate, write = threading.Event(), Checkpoints._write

    def late(self: Checkpoints, *args: Any) -> None:
        assert gate.wait(30)
        write(self, *args)

    monkeypatch.setattr(Checkpoints, "_write", late)
    train_step = jax.jit(
        lambda state: jax.tree.map(lambda x: x * 0, state.variables), donate_argnums=0
    )
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        given = state(5)
        checkpoints.save(given)
        jax.block_until_ready(train_step(given))
        assert given.variables["params"]["kernel"].is_deleted()
        assert steps(tmp_path / "c") == []
        gate.set()
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        found = checkpoints.restore(state(0))
    assert found is not None
    assert_equal(found, state(5))


def broken_disk(*args: object) -> None:
    raise OSError("no space left on device")


def test_a_write_that_failed_is_told_at_the_next_one_or_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_digest", broken_disk)

    def run(*saved: int, error: Exception | None = None) -> None:
        with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
            for step in saved:
                checkpoints.save(state(step))
            if error is not None:
                raise error

    for saved in ((5,), (5, 10)):
        with pytest.raises(OSError, match="no space left"):
            run(*saved)
    with pytest.raises(KeyError, match="what ended the run") as raised:
        run(5, error=KeyError("what ended the run comes first"))
    assert "no space left" in raised.value.__notes__[0]
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.save(state(5))
        with pytest.raises(OSError, match="no space left"):
            checkpoints.save(state(10))
    assert steps(tmp_path / "c") == []


def test_what_was_saved_or_restored_last_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.save(state(5))
        checkpoints.save(state(5))
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        assert checkpoints.restore(state(0)) is not None
        monkeypatch.setattr(module, "_digest", broken_disk)
        checkpoints.save(state(5))


def test_the_time_of_an_interrupted_process_counts_up_to_what_it_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        clock[0] += 7
        checkpoints.save(state(5))
        clock[0] += 3
        assert checkpoints.seconds == 10
    with open_checkpoints(tmp_path / "c", FEED) as checkpoints:
        checkpoints.restore(state(0))
        clock[0] += 2
        assert checkpoints.seconds == 9


def split_state(folds: int, layout: Any) -> TrainState:
    states = [state(5, seed) for seed in range(folds)]
    return place(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), layout)


def test_a_split_state_is_stored_by_fold(tmp_path: Path) -> None:
    layout = make_layout(3, 8, jax.devices()[:1])
    with open_checkpoints(tmp_path / "c", FEED, layout) as checkpoints:
        checkpoints.save(split_state(3, layout))
        found = checkpoints.restore(split_state(3, layout))
    assert found is not None
    assert_equal(found, split_state(3, layout))
    fewer = make_layout(2, 8, jax.devices()[:1])
    with (
        open_checkpoints(tmp_path / "c", FEED, fewer) as checkpoints,
        pytest.raises(ValueError, match=r"step is int32\[3\] there, int32\[2\] here"),
    ):
        checkpoints.restore(split_state(2, fewer))


def test_the_fold_that_is_not_finite_is_named(tmp_path: Path) -> None:
    layout = make_layout(3, 8, jax.devices()[:1])
    broken = split_state(3, layout)
    kernel = broken.variables["params"]["kernel"]
    broken.variables["params"]["kernel"] = kernel.at[0, 1, 2, 2].set(jnp.nan)
    with (
        open_checkpoints(tmp_path / "c", FEED, layout) as checkpoints,
        pytest.raises(FloatingPointError, match="at variables/params/kernel of fold 1;"),
    ):
        checkpoints.save(broken)
