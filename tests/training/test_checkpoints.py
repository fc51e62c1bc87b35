"""States come back bit for bit, and damaged checkpoints are passed over."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ifjax.training import TrainState, create_state
from ifjax.training.checkpoints import open_checkpoints, restore_state, save_state

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


def test_the_newest_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        with open_checkpoints(tmp_path / "c") as manager:
            save_state(manager, state(step, seed=7))
    with open_checkpoints(tmp_path / "c") as manager:
        assert sorted(manager.all_steps()) == [10, 15]
        found = restore_state(manager, state(0))
    assert found is not None
    assert_equal(found, state(15, seed=7))


def test_an_empty_folder_has_nothing_to_restore(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path / "c") as manager:
        assert restore_state(manager, state(0)) is None


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
    else:
        for path in files:
            os.remove(path)


# Reads that orbax had in flight when the first of them failed end without anybody waiting.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_serves(
    how: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with open_checkpoints(tmp_path / "c") as manager:
        save_state(manager, state(5))
        save_state(manager, state(10))
    damage(tmp_path / "c" / "10", how)
    with open_checkpoints(tmp_path / "c") as manager:
        found = restore_state(manager, state(0))
        assert found is not None
        assert_equal(found, state(5))
        assert "the checkpoint of step 10 cannot be used: " in capfd.readouterr().err
        save_state(manager, state(10))  # takes the place of the damaged one
        again = restore_state(manager, state(0))
        assert again is not None
        assert_equal(again, state(10))


def test_numbers_other_than_those_written_are_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever the files look like: as if orbax had handed over something else."""
    with open_checkpoints(tmp_path / "c") as manager:
        save_state(manager, state(5))
        restore = manager.restore

        def altered(step: int, args: object) -> dict:
            found = restore(step, args=args)
            kernel = jnp.asarray(found["state"].variables["params"]["kernel"])
            found["state"].variables["params"]["kernel"] = kernel.at[1, 1].add(1e-3)
            return {"state": found["state"], "digest": found["digest"]}

        monkeypatch.setattr(manager, "restore", altered)
        assert restore_state(manager, state(0)) is None
        assert "not the ones that were written" in capfd.readouterr().err


def test_what_is_half_written_is_no_checkpoint(tmp_path: Path) -> None:
    """The folder that orbax renames when it is complete, as a killed process leaves it."""
    with open_checkpoints(tmp_path / "c") as manager:
        save_state(manager, state(5))
    half = tmp_path / "c" / "10.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "state").mkdir()
    with open_checkpoints(tmp_path / "c") as manager:
        assert list(manager.all_steps()) == [5]
        found = restore_state(manager, state(0))
    assert found is not None
    assert_equal(found, state(5))
    assert not half.exists()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_state_that_is_not_finite_is_not_written(bad: float, tmp_path: Path) -> None:
    broken = state(10)
    broken.variables["params"]["kernel"] = broken.variables["params"]["kernel"].at[0, 0].set(bad)
    with open_checkpoints(tmp_path / "c") as manager:
        save_state(manager, state(5))
        with pytest.raises(FloatingPointError, match=r"after step 10 at .*params/kernel"):
            save_state(manager, broken)
        assert list(manager.all_steps()) == [5]
