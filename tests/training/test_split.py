"""Split training against ordinary training of each fold, on several CPU devices."""

import os
import re
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ifjax import data, training
from ifjax.training.feeding import fold_steps, make_feed
from ifjax.training.layout import collect, make_layout
from ifjax.training.split import (
    create_split_state,
    evaluate_folds,
    make_split_eval_step,
    make_split_step,
)
from tests import xla

BATCH, STEPS, SEED = 32, 9, 5
# Nesterov momentum, decay, clipping and a schedule: all that an optimizer may carry along.
CONFIG = training.OptimizerConfig(learning_rate=0.2, clip_norm=1.0, warmup=0.2)
OPTIMIZER = training.make_optimizer(CONFIG, training.make_schedule(CONFIG, STEPS))

if jax.device_count() < 4:
    pytest.skip("needs 4 devices; leave XLA_FLAGS to tests/conftest.py", allow_module_level=True)


class Net(nn.Module):
    norm: bool = True

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(4, (3, 3), strides=2)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train)(x)
        return nn.Dense(10)(nn.relu(x).reshape(len(x), -1))


def apply_train(net):
    return lambda variables, x: net.apply(variables, x, train=True, mutable=["batch_stats"])


@pytest.fixture(scope="module")
def digits() -> data.Dataset:
    return data.load("digits")


@pytest.fixture(scope="module")
def folds(digits):
    """Three folds of two, three and four batches and a remainder."""
    return [
        fold[: (i + 2) * BATCH + 3] for i, fold in enumerate(data.make_folds(digits, 3, seed=1))
    ]


def initial(net, fold):
    return net.init(jax.random.key(100 + fold), np.zeros((1, 8, 8, 1), np.float32))


def prepare(dataset, *, augment=True):
    return lambda key, images: dataset.normalize(
        dataset.augment(key, images) if augment else images
    )


def ordinary(net, dataset, folds, *, augment=True):
    """What runs of their own make of the folds."""
    step = training.make_train_step(
        apply_train(net), OPTIMIZER, 0.1, prepare(dataset, augment=augment)
    )
    states, losses = [], []
    for i, fold in enumerate(folds):
        mine, per_epoch = data.part(dataset, fold), len(fold) // BATCH
        state, history = training.create_state(initial(net, i), OPTIMIZER, SEED + i), []
        for t in range(STEPS):
            epoch, skip = divmod(t, per_epoch)
            batch = next(mine.train_batches(BATCH, seed=SEED + i, epoch=epoch, skip=skip))
            state, metrics = step(state, batch.images, batch.labels)
            history.append(float(metrics.loss))
        states.append(plain(state))
        losses.append(history)
    return states, np.array(losses)


def split(net, dataset, folds, devices, *, augment=True):
    """What split training makes of them: one tree per fold, and the losses."""
    layout = make_layout(len(folds), BATCH, jax.devices()[:devices])
    feed = make_feed(dataset, folds, layout, BATCH, seed=SEED)
    variables = [initial(net, i) for i in range(len(folds))]
    state = create_split_state(variables, OPTIMIZER, layout, SEED)
    step = make_split_step(
        apply_train(net), OPTIMIZER, layout, 0.1, prepare(dataset, augment=augment)
    )
    losses = []
    per_epoch = fold_steps(folds, BATCH)
    for t in range(STEPS):
        batch = next(feed(*divmod(t, per_epoch)))
        state, metrics = step(state, batch.images, batch.labels)
        losses.append(collect(metrics.loss, layout))
    found = plain(collect(state, layout))
    states = [jax.tree.map(lambda leaf, i=i: leaf[i], found) for i in range(len(folds))]
    return states, np.array(losses).T


def plain(state):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


def assert_same(found, want, **tolerance):
    assert jax.tree.structure(found) == jax.tree.structure(want)
    for path, leaf in jax.tree_util.tree_leaves_with_path(want):
        name = jax.tree_util.keystr(path)
        other = dict(jax.tree_util.tree_leaves_with_path(found))[path]
        assert other.dtype == leaf.dtype
        np.testing.assert_allclose(other, leaf, err_msg=name, **tolerance)


@pytest.fixture(scope="module")
def alone(digits, folds):
    return ordinary(Net(), digits, folds)


@pytest.fixture(scope="module")
def child():
    """The test below in a process without the emitters that add up a loss otherwise under pmap."""
    flags = os.environ["XLA_FLAGS"]
    if xla.OLD_EMITTERS not in flags:
        return None
    test = f"{__file__}::test_one_model_per_device_is_ordinary_training_bit_for_bit"
    environment = {**os.environ, "XLA_FLAGS": flags.replace(xla.OLD_EMITTERS, "")}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", test]
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


@pytest.mark.parametrize("count", [1, 3])
def test_one_model_per_device_is_ordinary_training_bit_for_bit(request, child, count):
    if child is not None:
        passed = rf"PASSED \S*::{re.escape(request.node.name)}$"
        assert re.search(passed, child, re.MULTILINE), child
        return
    digits, folds, alone = map(request.getfixturevalue, ("digits", "folds", "alone"))
    states, losses = split(Net(), digits, folds[:count], count)
    np.testing.assert_array_equal(losses, alone[1][:count])
    assert_same(states, alone[0][:count], rtol=0, atol=0)


@pytest.mark.parametrize("devices", [1, 2])
def test_lanes_are_ordinary_training_to_rounding(digits, folds, alone, devices):
    states, losses = split(Net(), digits, folds, devices)
    np.testing.assert_allclose(losses, alone[1], rtol=1e-5)
    assert_same(states, alone[0], rtol=1e-4, atol=2e-6)


def test_replicas_are_ordinary_training_to_rounding(digits, folds):
    # Without batch norm and augmentation, which see the parts of a batch.
    net, some = Net(norm=False), folds[:2]
    want, want_losses = ordinary(net, digits, some, augment=False)
    states, losses = split(net, digits, some, 4, augment=False)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert_same(states, want, rtol=1e-4, atol=2e-6)


def test_replicas_average_statistics_and_augment_with_keys_of_their_own():
    layout, optimizer = make_layout(2, 4, jax.devices()[:4]), optax.sgd(0.0)
    variables = {"params": {"w": jnp.zeros((2, 2))}, "seen": jnp.zeros(()), "n": jnp.zeros((), int)}

    def forward(v, x):
        return x @ v["params"]["w"], {"seen": x.mean() ** 2, "n": v["n"] + 1}

    def noise(key, x):
        return x + jax.random.normal(key)

    step = make_split_step(forward, optimizer, layout, prepare=noise)
    state = create_split_state([variables, variables], optimizer, layout, SEED)
    images, labels = np.zeros((4, 1, 2, 2), np.float32), np.zeros((4, 1, 2), np.int32)
    state, _ = step(state, images, labels)
    keys = [jax.random.fold_in(jax.random.key(SEED + fold), 0) for fold in (0, 1)]
    want = [
        np.mean([float(jax.random.normal(jax.random.fold_in(key, r))) ** 2 for r in (0, 1)])
        for key in keys
    ]
    np.testing.assert_allclose(collect(state.variables["seen"], layout), want, rtol=1e-5)
    for pair in (slice(0, 2), slice(2, 4)):
        assert len(set(np.asarray(state.variables["seen"])[pair].ravel().tolist())) == 1
    assert collect(state.variables["n"], layout).tolist() == [1, 1]
    assert state.variables["n"].dtype == variables["n"].dtype


@pytest.mark.parametrize(("count", "devices"), [(4, 4), (3, 2), (2, 4)])
def test_no_traffic_between_folds(count, devices):
    net = Net()
    layout = make_layout(count, BATCH, jax.devices()[:devices])
    state = create_split_state([initial(net, 0)] * count, OPTIMIZER, layout)
    step = make_split_step(apply_train(net), OPTIMIZER, layout)
    shape = len(layout.devices), layout.lanes, BATCH // layout.replicas
    text = step.lower(state, np.zeros((*shape, 8, 8, 1), np.float32), np.zeros(shape, np.int32))
    text = text.compile().as_text()
    traffic = re.findall(r"= .*? (all-[a-z-]+|collective-[a-z-]+|reduce-scatter\S*)\(", text)
    groups = re.findall(r"replica_groups=(\{\{.*?\}\}|\[.*?\]<=\S+?),", text)
    if layout.replicas == 1:
        assert not traffic
        assert not groups
    else:
        assert traffic
        assert set(traffic) <= {"all-reduce", "all-reduce-start", "all-reduce-done"}
        assert set(groups) <= {"{{0,1},{2,3}}", "[2,2]<=[4]"}


@pytest.mark.parametrize(("count", "devices"), [(3, 2), (2, 4)])
def test_one_evaluation_of_all_folds(digits, count, devices):
    net = Net()
    layout = make_layout(count, BATCH, jax.devices()[:devices])
    variables = [initial(net, i) for i in range(count)]
    state = create_split_state(variables, OPTIMIZER, layout)
    step = make_split_eval_step(net.apply, layout, digits.normalize)
    found = evaluate_folds(step, state.variables, digits.eval_batches(128), layout)
    one = training.make_eval_step(net.apply, digits.normalize)
    for tree, result in zip(variables, found, strict=True):
        want = training.evaluate(one, tree, digits.eval_batches(128))
        assert (result.accuracy, result.count) == (want.accuracy, want.count)
        np.testing.assert_allclose(result.loss, want.loss, rtol=1e-5)
    with pytest.raises(ValueError, match="at least one example"):
        evaluate_folds(step, state.variables, [], layout)


def test_errors_say_what_was_expected():
    layout = make_layout(2, BATCH, jax.devices()[:2])
    with pytest.raises(ValueError, match="each of 2 folds, got 1 trees"):
        create_split_state([{"params": {}}], OPTIMIZER, layout)
