"""Steps learn, runs repeat, and a loss that is no number ends them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ifjax.data import Batch
from ifjax.training import (
    Divergence,
    Every,
    Means,
    TrainState,
    create_state,
    cross_entropy,
    fit,
    make_train_step,
)
from ifjax.training.feeding import SplitBatch
from ifjax.training.layout import make_layout
from ifjax.training.split import create_split_state, make_split_step

RATE = optax.constant_schedule(0.5)


def apply_train(variables: dict, x: jax.Array) -> tuple[jax.Array, dict]:
    """A linear classifier that keeps a running mean of its inputs, as batch norm does."""
    mean = 0.9 * variables["batch_stats"]["mean"] + 0.1 * x.mean(axis=0)
    logits = x @ variables["params"]["kernel"] + variables["params"]["bias"]
    return logits, {"batch_stats": {"mean": mean}}


def variables() -> dict:
    kernel = jax.random.normal(jax.random.key(3), (4, 3))
    return {
        "params": {"kernel": kernel, "bias": jnp.zeros(3)},
        "batch_stats": {"mean": jnp.zeros(4)},
    }


def data(seed: int = 0, count: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, 4)).astype(np.float32)
    return images, images[:, :3].argmax(axis=1)


def batch(images: np.ndarray, labels: np.ndarray) -> Batch:
    return Batch(images, labels, np.ones(len(labels), bool))


def run(epochs: int, seed: int = 0, **options: object) -> tuple[TrainState, object]:
    optimizer = optax.sgd(RATE)
    images, labels = data()
    return fit(
        create_state(variables(), optimizer, seed),
        make_train_step(apply_train, optimizer, **options),
        lambda epoch, skip: [batch(images[k : k + 8], labels[k : k + 8]) for k in (0, 8, 16)][
            skip:
        ],
        steps=3 * epochs,
        steps_per_epoch=3,
        schedule=RATE,
        progress=False,
    )


def test_a_step_is_gradient_descent_on_the_mean_loss() -> None:
    optimizer, (images, labels) = optax.sgd(0.5), data()
    before = variables()

    def loss(params: dict) -> jax.Array:
        logits = images @ params["kernel"] + params["bias"]
        return cross_entropy(logits, jnp.asarray(labels), 0.1).mean()

    step = make_train_step(apply_train, optimizer, label_smoothing=0.1)
    state, metrics = step(create_state(before, optimizer), images, labels)
    gradient = jax.grad(loss)(before["params"])
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, before["params"], gradient)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6),
        state.variables["params"],
        expected,
    )
    np.testing.assert_allclose(metrics.loss, loss(before["params"]), rtol=1e-6)
    np.testing.assert_allclose(
        state.variables["batch_stats"]["mean"], 0.1 * images.mean(axis=0), atol=1e-6
    )
    assert int(state.step) == 1


def test_training_lowers_the_loss() -> None:
    _, first = run(1)
    state, last = run(20)
    assert last.loss < 0.5 * first.loss
    assert last.accuracy > 0.9
    assert int(state.step) == 60


def test_a_network_without_other_variables_trains() -> None:
    optimizer, (images, labels) = optax.sgd(0.5), data()
    step = make_train_step(lambda v, x: (x @ v["params"]["kernel"], {}), optimizer)
    state = create_state({"params": {"kernel": jnp.zeros((4, 3))}}, optimizer)
    state, first = step(state, images, labels)
    _, second = step(state, images, labels)
    assert second.loss < first.loss
    assert sorted(state.variables) == ["params"]


def test_the_callers_variables_survive_donation() -> None:
    given = variables()
    optimizer, (images, labels) = optax.sgd(0.5), data()
    step = make_train_step(apply_train, optimizer)
    old = create_state(given, optimizer)
    step(old, images, labels)
    assert old.variables["params"]["kernel"].is_deleted()
    np.testing.assert_array_equal(given["params"]["kernel"], variables()["params"]["kernel"])


def test_no_epoch_changes_nothing() -> None:
    state, last = run(0)
    assert last is None
    np.testing.assert_array_equal(
        state.variables["params"]["kernel"], variables()["params"]["kernel"]
    )


def test_augmentation_draws_anew_every_step_and_repeats_with_the_seed() -> None:
    def augment(key: jax.Array, images: jax.Array) -> jax.Array:
        return images + jax.random.normal(key, images.shape)

    kernels = [
        np.asarray(run(2, seed, prepare=augment)[0].variables["params"]["kernel"])
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert np.abs(kernels[0] - kernels[2]).max() > 1e-3

    keys = []

    def record(key: jax.Array, images: jax.Array) -> jax.Array:
        jax.debug.callback(lambda bits: keys.append(tuple(bits.tolist())), jax.random.key_data(key))
        return images

    run(1, prepare=record)
    jax.effects_barrier()
    assert len(set(keys)) == 3


@pytest.mark.parametrize("bad", [0, 4, 5])
def test_a_loss_that_is_no_number_ends_the_run(bad: int) -> None:
    """Whether in the middle of an epoch or at its end, the very step is named."""
    optimizer, (images, labels) = optax.sgd(RATE), data(count=8)
    poisoned = images * np.float32(np.nan)
    calls, seen = [], []

    def batches(epoch: int, skip: int):
        for k in range(skip, 3):
            calls.append(3 * epoch + k)
            yield batch(poisoned if 3 * epoch + k == bad else images, labels)

    with pytest.raises(Divergence, match=rf"loss is nan at step {bad} \(learning rate 0.5\)") as e:
        fit(
            create_state(variables(), optimizer),
            make_train_step(apply_train, optimizer),
            batches,
            steps=30,
            steps_per_epoch=3,
            hooks=[Every(1, lambda step, state, means: seen.append(step))],
            schedule=RATE,
            progress=False,
        )
    assert e.value.step == bad
    assert max(calls) <= bad + 1
    assert seen == list(range(1, bad + 1)), "no hook sees what a bad step left"


def test_variables_without_params_are_refused() -> None:
    with pytest.raises(ValueError, match=r'must hold "params", found only \[\'kernel\'\]'):
        create_state({"kernel": jnp.zeros(3)}, optax.sgd(0.1))


def test_an_empty_epoch_is_refused() -> None:
    optimizer = optax.sgd(RATE)
    with pytest.raises(ValueError, match="epoch 0 has no batch 0: expected 1"):
        fit(
            create_state(variables(), optimizer),
            make_train_step(apply_train, optimizer),
            lambda epoch, skip: [],
            steps=1,
            steps_per_epoch=1,
            schedule=RATE,
            progress=False,
        )


def test_hooks_come_at_multiples_and_at_the_end_with_the_means_since() -> None:
    """Beside a loop that takes the very same steps."""
    optimizer, (images, labels) = optax.sgd(RATE), data(count=24)
    pieces = [batch(images[k : k + 8], labels[k : k + 8]) for k in (0, 8, 16)]
    step = make_train_step(apply_train, optimizer)
    state, losses, accuracies = create_state(variables(), optimizer), [], []
    for k in range(7):
        state, metrics = step(state, pieces[k % 3].images, pieces[k % 3].labels)
        losses.append(float(metrics.loss))
        accuracies.append(float(metrics.accuracy))

    found: list[tuple[str, int, Means]] = []
    fit(
        create_state(variables(), optimizer),
        step,
        lambda epoch, skip: pieces[skip:],
        steps=7,
        steps_per_epoch=3,
        schedule=RATE,
        hooks=[
            Every(n, lambda step, state, means, n=n: found.append((n, int(state.step), means)))
            for n in (3, 5)
        ],
        progress=False,
    )
    expected = {(3, 3): (0, 3), (3, 6): (3, 6), (5, 5): (0, 5), (3, 7): (6, 7), (5, 7): (5, 7)}
    assert [at[:2] for at in found] == [(3, 3), (5, 5), (3, 6), (3, 7), (5, 7)]
    for n, at, means in found:
        here = slice(*expected[n, at])
        np.testing.assert_allclose(means.loss, np.mean(losses[here]), rtol=1e-6)
        np.testing.assert_allclose(means.accuracy, np.mean(accuracies[here]), rtol=1e-6)


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_that_goes_on_sees_the_batches_it_would_have_seen(stop: int) -> None:
    optimizer, (images, labels) = optax.sgd(RATE), data(count=24)
    step, seen = make_train_step(apply_train, optimizer), []

    def batches(epoch: int, skip: int):
        order = np.random.default_rng(epoch).permutation(3)
        for k in order[skip:]:
            seen.append((epoch, int(k)))
            yield batch(images[8 * k : 8 * k + 8], labels[8 * k : 8 * k + 8])

    def go_on(state: TrainState, steps: int) -> TrainState:
        options = {"steps_per_epoch": 3, "schedule": RATE, "progress": False}
        return fit(state, step, batches, steps=steps, **options)[0]

    whole = go_on(create_state(variables(), optimizer), 6)
    order = seen.copy()
    seen.clear()
    broken = go_on(go_on(create_state(variables(), optimizer), stop), 6)
    assert seen == order
    jax.tree.map(np.testing.assert_array_equal, broken.variables, whole.variables)


def test_a_hook_that_is_never_called_is_refused() -> None:
    with pytest.raises(ValueError, match="every 1 or more steps, got 0"):
        Every(0, lambda step, state, means: None)


def test_a_training_that_is_to_stop_ends_after_the_step() -> None:
    optimizer, (images, labels) = optax.sgd(RATE), data(count=8)
    asked = iter([False, False, False, True])
    seen = []
    state, last = fit(
        create_state(variables(), optimizer),
        make_train_step(apply_train, optimizer),
        lambda epoch, skip: [batch(images, labels)] * (3 - skip),
        steps=30,
        steps_per_epoch=3,
        schedule=RATE,
        hooks=[Every(2, lambda step, state, means: seen.append(step))],
        progress=False,
        stop=lambda: next(asked),
    )
    assert int(state.step) == 4
    assert seen == [2, 4]
    assert isinstance(last, Means)


def split_run(images: np.ndarray, hooks: list[Every]) -> tuple[TrainState, Means | None]:
    """Three models, all on the one device, each with images of its own."""
    layout, optimizer = make_layout(3, 8, jax.devices()[:1]), optax.sgd(RATE)
    labels = np.nanargmax(images[..., :3], axis=-1)
    return fit(
        create_split_state([variables()] * 3, optimizer, layout),
        make_split_step(apply_train, optimizer, layout),
        lambda epoch, skip: [SplitBatch(images, labels)] * (2 - skip),
        steps=4,
        steps_per_epoch=2,
        schedule=RATE,
        hooks=hooks,
        progress=False,
        layout=layout,
    )


def test_means_of_folds_are_those_of_each() -> None:
    """Beside the ordinary training of each fold."""
    images = np.random.default_rng(0).normal(size=(1, 3, 8, 4)).astype(np.float32)
    found = []
    state, last = split_run(images, [Every(2, lambda step, state, means: found.append(means))])
    assert state.step.shape == (1, 3)
    optimizer = optax.sgd(RATE)
    for fold in range(3):
        one = images[0, fold]
        pieces, alone = [batch(one, one[:, :3].argmax(axis=1))] * 2, []
        _, expected = fit(
            create_state(variables(), optimizer),
            make_train_step(apply_train, optimizer),
            lambda epoch, skip, pieces=pieces: pieces[skip:],
            steps=4,
            steps_per_epoch=2,
            schedule=RATE,
            hooks=[Every(2, lambda step, state, means, alone=alone: alone.append(means))],
            progress=False,
        )
        np.testing.assert_allclose(last.loss[fold], expected.loss, rtol=1e-5)
        for several, means in zip(found, alone, strict=True):
            np.testing.assert_allclose(several.loss[fold], means.loss, rtol=1e-5)
            np.testing.assert_allclose(several.accuracy[fold], means.accuracy, rtol=1e-6)


def test_the_fold_whose_loss_is_no_number_is_named() -> None:
    images = np.random.default_rng(0).normal(size=(1, 3, 8, 4)).astype(np.float32)
    images[0, 1, 3, 3] = np.nan
    with pytest.raises(Divergence, match=r"the loss of fold 1 is nan at step 0") as error:
        split_run(images, [])
    assert error.value.fold == 1
