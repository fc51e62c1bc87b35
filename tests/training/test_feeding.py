"""What is fed to each device, against the batches of each fold's own data set."""

import itertools

import jax
import numpy as np
import pytest

from ifjax.data import Dataset, StreamedDataset, make_folds, part
from ifjax.training.feeding import AHEAD, fold_steps, make_feed
from ifjax.training.layout import make_layout

BATCH, SEED = 4, 7

if jax.device_count() < 4:
    pytest.skip("needs 4 devices; leave XLA_FLAGS to tests/conftest.py", allow_module_level=True)


def in_memory(n: int = 90) -> Dataset:
    labels = np.arange(n, dtype=np.int32)
    images = np.broadcast_to(labels.reshape(-1, 1, 1, 1), (n, 2, 2, 1)).astype(np.uint8)
    return Dataset("numbered", images, labels, images, labels, n, mean=(0.0,), std=(1.0,))


def streamed(n: int = 90) -> StreamedDataset:
    source = [{"image": np.full((2, 2, 1), i, np.uint8), "label": i} for i in range(n)]
    return StreamedDataset(
        "streamed",
        source,
        source,
        n,
        (2, 2, 1),
        (0.0,),
        (1.0,),
        train_transform=lambda image, rng: image,
        test_transform=lambda image: image,
    )


FOLDS = [fold[:size] for fold, size in zip(make_folds(in_memory(), 3), (9, 30, 14), strict=True)]


@pytest.mark.parametrize("dataset", [in_memory(), streamed()], ids=["resident", "streamed"])
@pytest.mark.parametrize(("count", "devices"), [(3, 3), (3, 2), (3, 1), (2, 4)])
def test_every_fold_sees_the_batches_of_a_run_of_its_own(dataset, count, devices):
    folds, steps = FOLDS[:count], fold_steps(FOLDS[:count], BATCH)
    layout = make_layout(count, BATCH, jax.devices()[:devices])
    feed = make_feed(dataset, folds, layout, BATCH, seed=SEED)
    # Two epochs of the whole run, the second continued in the middle.
    fed = [*feed(0, 0), *itertools.islice(feed(1, 0), 1), *feed(1, 1)]
    assert len(fed) == 2 * steps
    for fold, indices in enumerate(folds):
        mine = part(dataset, indices)
        passes = (mine.train_batches(BATCH, seed=SEED + fold, epoch=e) for e in itertools.count())
        own = itertools.islice(itertools.chain.from_iterable(passes), 2 * steps)
        places = np.argwhere(layout.assignment == fold)
        for batch, want in zip(fed, own, strict=True):
            assert batch.images.sharding.is_equivalent_to(layout.sharding, batch.images.ndim)
            labels, images = np.asarray(batch.labels), np.asarray(batch.images)
            assert images.dtype == np.uint8
            np.testing.assert_array_equal(images[..., 0, 0, 0], labels)
            parts = [labels[device, lane] for device, lane in places]
            if layout.replicas > 1:
                parts = [np.concatenate(parts)]
            for found in parts:
                np.testing.assert_array_equal(found, want.labels)


def test_devices_hold_the_images_of_their_own_folds_only():
    dataset, layout = in_memory(), make_layout(3, BATCH, jax.devices()[:3])
    before = jax.live_arrays()
    feed = make_feed(dataset, make_folds(dataset, 3), layout, BATCH)
    kept = [array for array in jax.live_arrays() if all(array is not old for old in before)]
    assert sum(array.nbytes for array in kept if array.dtype == np.uint8) == 90 * 4
    next(feed(0, 0))


def test_a_streamed_batch_is_on_its_way_before_it_is_asked_for():
    layout, before = make_layout(1, BATCH, jax.devices()[:1]), jax.live_arrays()
    feed = make_feed(streamed(), [np.arange(90)], layout, BATCH)(0, 0)
    first = next(feed)
    new = [array for array in jax.live_arrays() if all(array is not old for old in before)]
    assert sum(array.shape == first.images.shape for array in new) == AHEAD + 1


def test_epochs_are_as_long_as_a_pass_over_a_fold_of_mean_size():
    assert fold_steps(FOLDS, BATCH) == (9 + 30 + 14) // 3 // BATCH


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda layout: fold_steps(FOLDS, 10), r"batch_size in 1\.\.9, the training .* fold 0"),
        (lambda layout: fold_steps(FOLDS, 0), "got 0"),
        (lambda layout: make_feed(in_memory(), FOLDS, layout, 4), "the 2 folds .* got 3 folds"),
        (lambda layout: make_feed(in_memory(), FOLDS[:2], layout, 3), "2 replicas can share"),
    ],
)
def test_errors_say_what_was_expected(build, message):
    with pytest.raises(ValueError, match=message):
        build(make_layout(2, 4, jax.devices()[:4]))
