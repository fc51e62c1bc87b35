"""Two processes of two devices on loopback: what they compute, and how they end together.

As a script, this file is one such process.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import ifjax
from ifjax.training.distributed import Cluster, is_first, on_first, run, talking
from ifjax.training.signals import Interrupted, interruptible
from tests import xla

TIMEOUT = 8


def job(folder: Path, forever: bool) -> int:
    """Train one model on all devices, then one on each of two folds."""
    from ifjax import data
    from ifjax.experiment.config import Config
    from ifjax.experiment.journal import Journal, find_run
    from ifjax.experiment.network import create
    from ifjax.experiment.runner import Split, optimization, train
    from ifjax.training import feeding, layout, split

    pid = jax.process_index()
    print(f"process {pid} of {jax.process_count()} prints")
    hear_the_first(pid)
    config = Config(model="mlp", batch_size=32, checkpoint_every=5, log_every=5, progress=False)
    dataset = noise()
    images, labels = dataset.test_images, dataset.test_labels
    network = create(config, dataset)
    batch = data.Batch(images[:64], labels[:64], np.ones(64, bool))
    folder = folder / f"of-{pid}"  # no file system is shared
    stages = find_run(folder, {}, overwrite=False, resume=True)
    with Journal(folder, {}, stages) as journal:
        for count in (1, 2):
            if f"folds-{count}" in journal.stages:
                continue
            parts, places = data.make_folds(dataset, count), layout.make_layout(count, 32)
            per_epoch = feeding.fold_steps(parts, 32)
            by = optimization(config, dataset, 10_000 if forever else 16, 0.1, (), per_epoch)
            step = split.make_split_step(
                network.apply_train,
                by.optimizer,
                places,
                prepare=lambda key, images: dataset.normalize(dataset.augment(key, images)),
            )

            def telling(state, images, labels, step=step, count=count):
                if is_first():
                    print(f"step {int(np.asarray(state.step).flat[0])} of {count}", flush=True)
                return step(state, images, labels)

            state = split.create_split_state([network.variables] * count, by.optimizer, places)
            try:
                state = train(
                    config,
                    dataset,
                    journal,
                    f"folds-{count}",
                    state,
                    telling,
                    by,
                    split=Split(places, parts, feeding.make_feed(dataset, parts, places, 32)),
                )
            except Interrupted as stop:
                return stop.code
            evaluate = split.make_split_eval_step(network.apply_eval, places)
            found = split.evaluate_folds(evaluate, state.variables, [batch], places)
            last = layout.collect(state._replace(key=jax.random.key_data(state.key)), places)
            if is_first():
                np.savez(folder / f"folds-{count}.npz", *jax.tree.leaves(last))
            journal.add(f"folds-{count}", [one.loss for one in found])
        journal.finish()
    return 0


def hear_the_first(pid: int) -> None:
    """What process 0 says, or raises, every process has."""
    told = on_first(lambda: {"pid": pid, "array": np.full(3, -0.0)})
    assert told["pid"] == 0
    assert np.signbit(told["array"]).all(), "every bit of it"
    with pytest.raises(KeyError, match="in process 0"):
        on_first(lambda: {}[f"in process {pid}"])


def noise() -> Any:
    """A data set of 256 images, the same for training and test."""
    from ifjax import data

    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (256, 8, 8, 1), np.uint8)
    labels = rng.integers(0, 10, 256).astype(np.int32)
    return data.Dataset("noise", images, labels, images, labels, 10, (0.5,), (0.25,), 1)


def start(folder: Path, process: int, processes: int, port: int, *words: str) -> subprocess.Popen:
    environment = os.environ | {
        "XLA_FLAGS": xla.flags(devices=4 // processes),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    words = (str(folder), str(process), str(processes), str(port), *words)
    return subprocess.Popen(
        [sys.executable, __file__, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


@contextmanager
def started(folder: Path, processes: int, *words: str) -> Iterator[list[subprocess.Popen]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = [start(folder, process, processes, port, *words) for process in range(processes)]
    try:
        yield found
    finally:
        for process in found:
            process.kill()
            process.wait()


def finish(
    processes: list[subprocess.Popen], within: int = 120
) -> tuple[list[int], list[str], list[str]]:
    """Exit codes, and what was printed to stdout and stderr."""
    out, err = zip(*(process.communicate(timeout=within) for process in processes), strict=True)
    return [process.returncode for process in processes], list(out), list(err)


def wait_for(line: str, process: subprocess.Popen) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.startswith(line):
            return
    raise AssertionError(f"{line!r} never came: {process.communicate()[1]}")


def arrays(folder: Path, count: int) -> list[np.ndarray]:
    with np.load(folder / f"of-0/folds-{count}.npz") as found:
        return [found[name] for name in found.files]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken run of two processes."""
    folder = tmp_path_factory.mktemp("distributed") / "two"
    with started(folder, 2) as processes:
        codes, out, err = finish(processes)
    assert codes == [0, 0], err
    assert "process 0 of 2 prints" in out[0]
    assert "prints" not in out[1]
    assert not (folder / "of-1").exists(), "process 0 alone writes"
    return folder


@pytest.mark.slow
def test_two_processes_compute_what_one_does(whole: Path) -> None:
    alone = whole.parent / "one"
    with started(alone, 1) as processes:
        codes, _, err = finish(processes)
    assert codes == [0], err
    for count in (1, 2):
        for a, b in zip(arrays(whole, count), arrays(alone, count), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    a, b = (json.loads((folder / "of-0/run.json").read_text()) for folder in (whole, alone))
    assert a["stages"].keys() == b["stages"].keys() == {"folds-1", "folds-2"}
    for name, losses in a["stages"].items():
        np.testing.assert_allclose(losses, b["stages"][name], rtol=1e-4)


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step_and_they_go_on(whole: Path) -> None:
    folder = whole.parent / "asked"
    with started(folder, 2) as processes:
        wait_for("step 20 of 2", processes[0])
        processes[1].send_signal(signal.SIGTERM)
        codes, _, err = finish(processes)
    assert codes == [143, 143], err
    assert not any("ended before its time" in text for text in err)
    elsewhere = shutil.copytree(folder, whole.parent / "elsewhere")
    with started(folder, 2) as processes, started(elsewhere, 1) as others:
        assert finish(processes)[0] == [0, 0]
        assert finish(others)[0] == [0]
    for a, b, c in zip(arrays(folder, 2), arrays(whole, 2), arrays(elsewhere, 2), strict=True):
        np.testing.assert_array_equal(a, b)
        # One process of four devices took the run over.
        np.testing.assert_allclose(c, b, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_when_one_is_lost_the_other_ends_with_a_message(victim: int, tmp_path: Path) -> None:
    with started(tmp_path / "lost", 2, "forever") as processes:
        wait_for("step 10 of 1", processes[0])
        processes[victim].kill()
        began = time.monotonic()
        code = processes[1 - victim].wait(60)
        seconds = time.monotonic() - began
        err = finish(processes)[2][1 - victim]
    assert code not in (0, None)
    assert f"process {1 - victim} of 2 has ended before its time: another process" in err
    assert seconds < TIMEOUT + 10


@pytest.mark.slow
def test_the_main_job_goes_from_training_to_the_saved_small_network(tmp_path: Path) -> None:
    options = "--mode fap --folds 2 --no-whole --model mlp --epochs 1 --train-images 128 --methods "
    options += "prune --batch-size 32 --fuse-on weights --fuse-solver exact --fine-tune-epochs 0 "
    options += "--lost-after 60"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        cluster = f"--coordinator 127.0.0.1:{free.getsockname()[1]} --processes 2 --process"
    words = [*options.split(), "--no-progress", "--out", str(tmp_path / "out"), *cluster.split()]
    environment = {"XLA_FLAGS": xla.flags(devices=1), "JAX_PLATFORMS": "cpu"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(Path(__file__).parents[2] / "train.py"), *words, str(process)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        for process in range(2)
    ]
    try:
        codes, out, err = finish(processes, 600)
    finally:
        for one in processes:
            one.kill()
    assert codes == [0, 0], err
    assert out[0].count("sparsity  method") == 1
    assert "accuracy" not in out[1]
    names = {"fold-0", "fold-1", "fused", "fused-fine-tuned", "fap-prune-0.5"}
    files = {"accuracy.png", "results.json", "run.json", "tensorboard"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | files
    small, spec = ifjax.load(tmp_path / "out/fap-prune-0.5")
    assert small["params"]["fc1"]["kernel"].shape == (64, 64)
    assert spec.structure.widths["params/fc1/kernel"] == 64


def test_what_cannot_be_a_cluster_is_refused() -> None:
    for wrong, message in (
        ({"processes": 2}, "expected a coordinator"),
        ({"coordinator": "somewhere"}, "expected HOST:PORT or 'auto' as coordinator"),
        ({"coordinator": "a:1", "processes": 0}, "at least 1 process, got 0"),
        ({"coordinator": "a:1", "processes": 2, "process": 2}, "expected process in 0..1"),
        ({"timeout": 1}, "a timeout of at least 2 seconds, got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            Cluster(**wrong)


def test_a_broken_connection_is_no_wrong_value() -> None:
    broken = pytest.raises(jax.errors.JaxRuntimeError, match="UNKNOWN: Connection reset by peer")
    with broken, talking():
        raise ValueError("UNKNOWN: Connection reset by peer")


def test_a_process_alone_just_does_its_job() -> None:
    assert run(lambda: 7, Cluster()) == 7
    assert is_first()
    assert on_first(lambda: "x") == "x"


@pytest.mark.parametrize(
    ("cluster", "address", "detection"),
    [
        (Cluster("auto"), None, None),
        (Cluster("a:1", local_devices=(3,)), "a:1", None),
        (Cluster("a:1", 2, 0), "a:1", "deactivate"),
    ],
    ids=["all", "some", "none"],
)
def test_what_is_not_given_is_left_to_the_environment(
    cluster: Cluster, address: str | None, detection: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    monkeypatch.setattr(jax.distributed, "shutdown", lambda: calls.append("left"))
    assert run(lambda: 143, cluster) == 143
    ((given, options), left) = calls
    assert given == (address, cluster.processes, cluster.process, cluster.local_devices)
    assert options["cluster_detection_method"] == detection
    assert options["heartbeat_timeout_seconds"] == cluster.timeout
    assert left == "left"


if __name__ == "__main__":
    path, number, total, where, *rest = sys.argv[1:]
    cluster = Cluster()
    if total != "1":
        cluster = Cluster(f"127.0.0.1:{where}", int(total), int(number), timeout=TIMEOUT)

    def interruptible_job() -> int:
        with interruptible():
            return job(Path(path), bool(rest))

    sys.exit(run(interruptible_job, cluster))
