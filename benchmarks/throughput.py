"""Training throughput: our loop against a plain flax loop, and k folds against the whole data.

1. Images per second of ``training.fit`` with our step, and of a loop as flax' own examples have it
   (linen, optax, ``flax.training.TrainState``, one jitted step, numpy batches), for the same
   network, optimizer, augmentation and batch size: in one process, in turns, medians of pairs;
   and the median of three processes, for where the memory of one lies is worth 3 percent.
2. Images per second with a data set that lies on the devices, against batches from the host.
3. Two folds on two CPU devices, a core for each, against the whole data on one core, for the same
   number of images: in two processes, in turns. The ideal is 2.

Wall times mean something where both cores are free; the ratios of CPU time do so anywhere.

    python benchmarks/throughput.py              # about 10 minutes on 2 cores
    python benchmarks/throughput.py --networks cnn --rounds 3
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
import record
from flax.training.train_state import TrainState

from ifjax import data, models, training
from ifjax.training.feeding import fold_steps, make_feed
from ifjax.training.layout import Layout, make_layout
from ifjax.training.split import create_split_state, make_split_step

DEVICES = 2
PROCESSES = 3
# Network: options, batch size, steps per measurement.
NETWORKS = {
    "cnn": ({}, 64, 200),
    "resnet20": ({}, 128, 3),
    "vgg11": ({"width": 0.25}, 128, 4),
}
Run = Callable[[int], None]
Measure = Callable[[int], tuple[float, float]]


class Stats(TrainState):
    """What flax' examples carry, with batch statistics and a key."""

    batch_stats: Any
    key: jax.Array


def dataset_for(network: str, count: int = 2048) -> data.Dataset:
    """The digits for the small network, so many images of CIFAR-10's shape for the others."""
    if network == "cnn":
        return data.load("digits")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    labels = rng.integers(0, 10, count).astype(np.int32)
    constants = data.CIFAR10_MEAN, data.CIFAR10_STD
    return data.Dataset("noise", images, labels, images, labels, 10, *constants, 4, True)


def ours(network: str, dataset: data.Dataset, *, devices: int | None = None, folds: int = 1) -> Run:
    """Our loop: ordinary, or split where a number of devices is given."""
    options, batch_size, _ = NETWORKS[network]
    model = models.create(network, 10, **options)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, *dataset.image_shape)))
    optimizer = optax.sgd(0.01, momentum=0.9, nesterov=True)

    def apply_train(variables, images):
        return model.apply(variables, images, train=True, mutable=["batch_stats"])

    def prepare(key, images):
        return dataset.normalize(dataset.augment(key, images))

    if devices is None:
        layout: Layout | None = None
        state = training.create_state(variables, optimizer)
        step = training.make_train_step(apply_train, optimizer, prepare=prepare)
        per_epoch = dataset.num_train // batch_size

        def feed(epoch: int, skip: int):
            return dataset.train_batches(batch_size, seed=0, epoch=epoch, skip=skip)

    else:
        layout = make_layout(folds, batch_size, jax.devices()[:devices])
        parts = data.make_folds(dataset, folds)
        state = create_split_state([variables] * folds, optimizer, layout)
        step = make_split_step(apply_train, optimizer, layout, prepare=prepare)
        feed, per_epoch = (
            make_feed(dataset, parts, layout, batch_size),
            fold_steps(parts, batch_size),
        )
    done = 0

    def run(steps: int) -> None:
        nonlocal state, done
        done += steps
        state, _ = training.fit(
            state,
            step,
            feed,
            steps=done,
            steps_per_epoch=per_epoch,
            schedule=optax.constant_schedule(0.01),
            progress=False,
            **({} if layout is None else {"layout": layout}),
        )
        jax.block_until_ready(state.variables)

    return run


def plain(network: str, dataset: data.Dataset) -> Run:
    """The loop of flax' examples."""
    options, batch_size, _ = NETWORKS[network]
    model = models.create(network, 10, **options)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, *dataset.image_shape)))
    state = Stats.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=optax.sgd(0.01, momentum=0.9, nesterov=True),
        batch_stats=variables.get("batch_stats", {}),
        key=jax.random.key(0),
    )

    @partial(jax.jit, donate_argnums=0)
    def step(state: Stats, images: jax.Array, labels: jax.Array):
        key = jax.random.fold_in(state.key, state.step)
        images = dataset.normalize(dataset.augment(key, images))

        def loss_fn(params):
            logits, updates = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), (logits, updates)

        (loss, (logits, updates)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        stats = updates.get("batch_stats", {})
        accuracy = (logits.argmax(-1) == labels).mean()
        return state.apply_gradients(grads=grads, batch_stats=stats), (loss, accuracy)

    def batches():
        for epoch in itertools.count():
            order = np.random.default_rng(epoch).permutation(dataset.num_train)
            for at in range(0, len(order) - batch_size + 1, batch_size):
                chunk = order[at : at + batch_size]
                yield dataset.train_images[chunk], dataset.train_labels[chunk]

    stream = batches()

    def run(steps: int) -> None:
        nonlocal state
        metrics = []
        for images, labels in itertools.islice(stream, steps):
            state, found = step(state, images, labels)
            metrics.append(found)
        jax.device_get(metrics)
        jax.block_until_ready(state.params)

    return run


def seconds(run: Run, steps: int) -> tuple[float, float]:
    """Wall time and processor time of so many steps."""
    began, busy = time.perf_counter(), time.process_time()
    run(steps)
    return time.perf_counter() - began, time.process_time() - busy


def compare(one: Measure, other: Measure, steps: tuple[int, int], rounds: int):
    """Median wall times of both, in turns; median ratios ``one / other`` of wall and CPU times."""
    pairs = []
    for number in range(rounds + 1):
        # Whoever goes first may find the other's work still cooling: take turns at that too.
        if number % 2:
            second = other(steps[1])
            pairs.append((one(steps[0]), second))
        else:
            pairs.append((one(steps[0]), other(steps[1])))
    times = np.array(pairs[1:])  # the first pair compiles
    return np.median(times[:, :, 0], axis=0), np.median(times[:, 0] / times[:, 1], axis=0)


def in_process(network: str, rounds: int) -> list[dict[str, Any]]:
    """Our loop against flax', and images on the device against images from the host."""
    dataset = dataset_for(network)
    _, batch_size, steps = NETWORKS[network]
    mine = ours(network, dataset)
    rows = []
    for what, other in (
        ("plain flax loop", plain(network, dataset)),
        ("ours, images on the device", ours(network, dataset, devices=1)),
    ):
        (theirs, own), (wall, cpu) = compare(
            partial(seconds, other), partial(seconds, mine), (steps, steps), rounds
        )
        rows.append(
            {
                "network": network,
                "batch": batch_size,
                "ours is compared with": what,
                "images/s, ours": round(steps * batch_size / own, 1),
                "images/s, other": round(steps * batch_size / theirs, 1),
                "wall time, other / ours": round(wall, 3),
                "CPU time, other / ours": round(cpu, 3),
            }
        )
    return rows


def in_processes(network: str, rounds: int) -> list[dict[str, Any]]:
    """`in_process` in several, with the medians of its numbers."""
    command = [sys.executable, __file__, "--alone", "--networks", network, "--rounds", str(rounds)]
    found = []
    for _ in range(PROCESSES):
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(out.splitlines()[-1]))
    return [
        {key: middle(key, [row[key] for row in rows]) for key in rows[0]}
        for rows in zip(*found, strict=True)
    ]


def middle(key: str, values: list[Any]) -> Any:
    """The median; of ratios with what it is the median of."""
    if isinstance(values[0], str):
        return values[0]
    found = statistics.median(values)
    return f"{found:.2f} ({min(values):.2f} to {max(values):.2f})" if "/ ours" in key else found


def worker(network: str, folds: int) -> None:
    """Measure whenever a line with a number of steps comes in, on a core for each fold."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:folds])
    dataset = dataset_for(network)
    run = ours(network, dataset, devices=folds, folds=folds)
    for line in sys.stdin:
        print(*seconds(run, int(line)), flush=True)


def parallel(network: str, rounds: int) -> dict[str, Any]:
    """Two folds on two cores against the whole data on one."""
    _, batch_size, steps = NETWORKS[network]

    def start(folds: int) -> subprocess.Popen:
        command = [sys.executable, __file__, "--worker", str(folds), "--networks", network]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def ask(process: subprocess.Popen, steps: int) -> tuple[float, ...]:
        process.stdin.write(f"{steps}\n")
        process.stdin.flush()
        return tuple(map(float, process.stdout.readline().split()))

    with start(1) as whole, start(DEVICES) as split:
        (one, two), (wall, cpu) = compare(
            partial(ask, whole), partial(ask, split), (DEVICES * steps, steps), rounds
        )
        whole.stdin.close()
        split.stdin.close()
    images = DEVICES * steps * batch_size
    return {
        "network": network,
        "batch": batch_size,
        "images/s, whole data on one core": round(images / one, 1),
        f"images/s, {DEVICES} folds on {DEVICES} cores": round(images / two, 1),
        "speed-up": round(wall, 3),
        "CPU time, whole / folds": round(cpu, 3),
    }


def main() -> None:
    """Makes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    if args.worker:
        worker(args.networks[0], args.worker)
        return
    if args.alone:
        print(json.dumps(in_process(args.networks[0], args.rounds)))
        return
    rows = [row for network in args.networks for row in in_processes(network, args.rounds)]
    print(record.markdown(rows), flush=True)
    split = []
    if len(os.sched_getaffinity(0)) >= DEVICES:
        split = [parallel(network, args.rounds) for network in args.networks]
        print("\n" + record.markdown(split))
    path = record.write("throughput", rows, rounds=args.rounds, split=split)
    print("written:", path.name)


if __name__ == "__main__":
    main()
