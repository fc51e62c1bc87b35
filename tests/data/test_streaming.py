from __future__ import annotations

import dataclasses
import sys
import threading

import jax
import numpy as np
import pytest

from ifjax.data import Dataset, StreamedDataset, train_batches


class Numbered:
    """Examples that hold their index, and remember which were read."""

    def __init__(self, n: int):
        self.n, self.read, self.lock = n, [], threading.Lock()

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index) -> dict:
        with self.lock:
            self.read.append(int(index))
        return {"image": np.full((2, 3, 1), index, np.uint8), "label": int(index)}


def noisy(image, rng):
    return image + rng.integers(0, 100, image.shape).astype(np.uint8)


def plain(image):
    return image


def dataset(train: int = 10, test: int = 5, **options) -> StreamedDataset:
    options = {"train_transform": noisy, "test_transform": plain} | options
    return StreamedDataset(
        "numbered", Numbered(train), Numbered(test), 10, (2, 3, 1), (0.5,), (0.25,), **options
    )


def test_the_order_is_that_of_data_in_memory():
    images = np.zeros((10, 2, 3, 1), np.uint8)
    labels = np.arange(10, dtype=np.int32)
    in_memory = train_batches(images, labels, 3, seed=5, epoch=2)
    streamed = dataset().train_batches(3, seed=5, epoch=2)
    for one, two in zip(in_memory, streamed, strict=True):
        assert one.labels.tolist() == two.labels.tolist()
        assert two.mask.all()
        assert (two.images.dtype, two.labels.dtype) == (np.uint8, np.int32)


@pytest.mark.parametrize("threads", [1, 5])
def test_seed_epoch_and_place_fix_the_pixels(threads):
    batches = list(dataset(threads=threads).train_batches(3, seed=5, epoch=2))
    for place in range(9):
        batch, row = batches[place // 3], place % 3
        rng = np.random.default_rng((5, 2, place))
        expected = np.full((2, 3, 1), batch.labels[row], np.uint8)
        np.testing.assert_array_equal(batch.images[row], noisy(expected, rng))


def test_skipped_batches_are_not_read():
    whole = list(dataset().train_batches(3, seed=0, epoch=0))
    data = dataset()
    rest = list(data.train_batches(3, seed=0, epoch=0, skip=2))
    assert len(rest) == 1
    np.testing.assert_array_equal(rest[0].images, whole[2].images)
    assert sorted(data.train_source.read) == sorted(rest[0].labels.tolist())
    assert list(data.train_batches(3, seed=0, epoch=0, skip=3)) == []
    assert list(data.train_batches(3, seed=0, epoch=0, skip=9)) == []


def test_evaluation_sees_every_image_once_in_order():
    batches = list(dataset().eval_batches(2))
    assert {batch.images.shape for batch in batches} == {(2, 2, 3, 1)}
    assert np.concatenate([b.labels[b.mask] for b in batches]).tolist() == [0, 1, 2, 3, 4]
    assert np.concatenate([b.images[b.mask] for b in batches])[:, 1, 2, 0].tolist() == [*range(5)]


def test_an_abandoned_epoch_leaves_no_threads():
    before = set(threading.enumerate())
    batches = dataset(train=200).train_batches(2, seed=0, epoch=0)
    next(batches)
    started = set(threading.enumerate()) - before
    assert started
    del batches
    for thread in started:
        thread.join(timeout=10)
    assert not any(thread.is_alive() for thread in started)


def test_the_device_normalises_and_leaves_augmentation_to_the_host():
    data = dataset()
    images = np.array([51, 102], np.uint8).reshape(1, 2, 1, 1)
    np.testing.assert_array_equal(data.augment(jax.random.key(0), images), images)
    expected = Dataset.normalize(data, images)
    np.testing.assert_allclose(data.normalize(images).ravel(), [-1.2, -0.4], rtol=1e-6)
    np.testing.assert_array_equal(data.normalize(images), expected)


@pytest.mark.usefixtures("unchecked")
def test_pixels_of_another_shape_are_refused():
    data = dataset(test_transform=lambda image: image[:1])
    with pytest.raises(ValueError, match=r"uint8 pixels of shape \(2, 3, 1\), got uint8 \(1, 3, 1"):
        list(data.eval_batches(2))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"workers": -1}, "got workers=-1, threads=8"),
        ({"threads": 0}, "1 thread for 'numbered'"),
        ({"mean": (0.5, 0.5)}, "each of the 1 channels"),
    ],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(dataset(), **change)


def test_batch_sizes_are_refused_before_iteration():
    with pytest.raises(ValueError, match="at most 10"):
        dataset().train_batches(11, seed=0, epoch=0)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        dataset().eval_batches(0)


def test_missing_grain_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r"grain .*pip install 'ifjax\[data\]'"):
        dataset()
