"""Runs that are killed at random moments end with the very bits of the unbroken run.

As a script, this file is what the tests kill: it imports what a training needs once, and forks a
process for each training that it is asked for.
"""

import functools
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import xla

KILLS = 8  # at least; until each kind and half a checkpoint were hit
EVENTS = {"r": "before a checkpoint is read", "s": "before a step", "c": "before one is written"}


def train(folder: Path, count: int, events: int) -> None:
    """Train an MLP, or one on each of several folds, and store all of the last state."""
    import dataclasses

    import jax

    from ifjax import data
    from ifjax.experiment.config import Config
    from ifjax.experiment.journal import Journal, find_run
    from ifjax.experiment.network import create
    from ifjax.experiment.runner import Split, optimization, train, train_step
    from ifjax.training import checkpoints, create_state, feeding, layout, split

    config = Config(
        model="mlp", batch_size=32, checkpoint_every=12, log_every=50, progress=False, seed=3
    )
    whole = data.load("digits")
    images, labels = whole.train_images[:256], whole.train_labels[:256]
    dataset = dataclasses.replace(whole, train_images=images, train_labels=labels)
    network = create(config, dataset)
    if count == 1:
        by, folds = optimization(config, dataset, 60, 0.1), None
        step = train_step(config, dataset, network, by)
        state = create_state(network.variables, by.optimizer, config.seed)
    else:
        parts = data.make_folds(dataset, count)
        by = optimization(config, dataset, 120, 0.1, (), feeding.fold_steps(parts, 32))
        places = layout.make_layout(count, 32)
        folds = Split(places, parts, feeding.make_feed(dataset, parts, places, 32, seed=3))
        step = split.make_split_step(
            network.apply_train,
            by.optimizer,
            places,
            prepare=lambda key, images: dataset.normalize(dataset.augment(key, images)),
        )
        state = split.create_split_state(
            [network.variables] * count, by.optimizer, places, config.seed
        )

    def telling(event: bytes, function):
        def told(*args):
            os.write(events, event)
            return function(*args)

        return told

    class Told(checkpoints.Checkpoints):
        restore = telling(b"r", checkpoints.Checkpoints.restore)
        save = telling(b"c", checkpoints.Checkpoints.save)

    checkpoints.Checkpoints = Told
    stages = find_run(folder, {}, overwrite=False, resume=True)
    with Journal(folder, {}, stages) as journal:
        last = train(config, dataset, journal, "dense", state, telling(b"s", step), by, split=folds)
        last = last._replace(key=jax.random.key_data(last.key))
        np.savez(folder / "last.npz", *map(np.asarray, jax.tree.leaves(last)))


def serve() -> None:
    """Fork a training for every line ``FOLDER FOLDS`` on stdin; tell its number, then its end."""
    from ifjax import data
    from ifjax.experiment import network, runner  # noqa: F401  # here, and not in each process

    data.load("digits")
    for line in sys.stdin:
        folder, count = line.rsplit(" ", 1)
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                train(Path(folder), int(count), write)
                os._exit(0)
            except KeyboardInterrupt as error:
                os._exit(error.code)
            except BaseException as error:
                traceback.print_exception(error)
                os._exit(1)
        os.close(write)
        print(child, flush=True)
        while event := os.read(read, 1):
            print(event.decode(), flush=True)
        os.close(read)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


class Trainings:
    """The forking process, and one training at a time."""

    def __init__(self, process: subprocess.Popen) -> None:
        self.process = process
        self.pid = 0

    def start(self, folder: Path, count: int) -> None:
        self.tell(f"{folder} {count}")
        self.pid = int(self.line())

    def tell(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def wait_for(self, event: str, times: int = 1) -> int | None:
        """Until the training has told the event so often; its exit code if it ended before."""
        while (found := self.line()) in EVENTS:
            times -= found == event
            if times == 0:
                return None
        return int(found)

    def end(self) -> int:
        code = self.wait_for("end")
        assert code is not None
        return code


@pytest.fixture(scope="module")
def server() -> Iterator[Trainings]:
    environment = os.environ | {
        "XLA_FLAGS": xla.flags(devices=2),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    with subprocess.Popen(
        [sys.executable, __file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            yield Trainings(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def whole(server: Trainings, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Where the unbroken run on a number of folds is."""

    @functools.cache
    def run(count: int) -> Path:
        folder = tmp_path_factory.mktemp("whole") / "run"
        server.start(folder, count)
        assert server.end() == 0
        return folder

    return run


def assert_same(folder: Path, whole: Path) -> None:
    with np.load(folder / "last.npz") as a, np.load(whole / "last.npz") as b:
        assert a.files == b.files
        for name in b.files:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_killed_at_random_moments_a_run_ends_bit_for_bit_the_same(
    count: int, server: Trainings, whole: Callable[[int], Path], tmp_path: Path
) -> None:
    rng = np.random.default_rng(time.time_ns())  # moments that no one chose
    kills = dict.fromkeys(EVENTS, 0)
    half_written = finished = 0
    unbroken, folder = whole(count), tmp_path / "killed-0"
    while sum(kills.values()) < KILLS or not (half_written and min(kills.values())):
        assert sum(kills.values()) < 5 * KILLS, "no checkpoint was hit while it was written"
        event = str(rng.choice(list(EVENTS)))
        server.start(folder, count)
        code = server.wait_for(event, {"r": 1, "s": 1 + rng.integers(20), "c": 2}[event])
        if code is None:
            time.sleep(rng.uniform(0.0, 0.1))
            os.kill(server.pid, signal.SIGKILL)
            code = server.end()
        assert code in (0, -signal.SIGKILL)
        if code == 0:  # it was faster
            assert_same(folder, unbroken)
            finished += 1
            folder = tmp_path / f"killed-{finished}"
        else:
            kills[event] += 1
            half_written += any(folder.glob(".checkpoints/*/*/*tmp*"))
    server.start(folder, count)
    assert server.end() == 0
    assert_same(folder, unbroken)
    print(f"kills: {kills}, in the middle of a checkpoint: {half_written}; {finished} escaped")


@pytest.mark.slow
def test_sigterm_saves_and_the_run_goes_on_bit_for_bit(
    server: Trainings, whole: Callable[[int], Path], tmp_path: Path
) -> None:
    unbroken, asked = whole(1), tmp_path / "asked"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        server.start(asked, 1)
        assert server.wait_for("s") is None
        os.kill(server.pid, number)
        assert server.end() == code
        folder = asked / ".checkpoints/dense/all"
        assert not list(folder.glob("*tmp*"))
        latest = max(int(path.name) for path in folder.iterdir())
        assert latest % 12, "written when it was asked for, and not at its time"
    server.start(asked, 1)
    assert server.end() == 0
    assert_same(asked, unbroken)


if __name__ == "__main__":
    serve()
