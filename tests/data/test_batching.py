from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ifjax.data import eval_batches, train_batches


def numbered(n: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n, dtype=np.int32)
    return np.broadcast_to(labels[:, None, None, None], (n, 2, 2, 1)).astype(np.uint8), labels


@given(n=st.integers(1, 40), size=st.integers(1, 40), epoch=st.integers(0, 3), data=st.data())
def test_training_goes_once_through_a_permutation(n, size, epoch, data):
    images, labels = numbered(n)
    size = min(size, n)
    batches = list(train_batches(images, labels, size, seed=1, epoch=epoch))
    assert len(batches) == n // size
    seen = np.concatenate([batch.labels for batch in batches])
    assert len(set(seen.tolist())) == len(seen) == n // size * size
    for batch in batches:
        assert batch.images.shape == (size, 2, 2, 1)
        assert batch.mask.all()
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0], batch.labels)
    skip = data.draw(st.integers(0, len(batches)))
    rest = list(train_batches(images, labels, size, seed=1, epoch=epoch, skip=skip))
    assert len(rest) == len(batches) - skip
    for one, two in zip(rest, batches[skip:], strict=True):
        np.testing.assert_array_equal(one.labels, two.labels)


def test_seed_and_epoch_fix_the_order():
    images, labels = numbered(64)

    def order(seed, epoch):
        return next(train_batches(images, labels, 64, seed=seed, epoch=epoch)).labels.tolist()

    assert order(0, 1) == order(0, 1)
    orders = {tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(n=st.integers(1, 40), size=st.integers(1, 50))
def test_evaluation_sees_every_image_once_in_order(n, size):
    images, labels = numbered(n)
    batches = list(eval_batches(images, labels, size))
    assert len(batches) == -(-n // size)
    assert {batch.images.shape for batch in batches} == {(size, 2, 2, 1)}
    seen = np.concatenate([batch.labels[batch.mask] for batch in batches])
    np.testing.assert_array_equal(seen, labels)
    pixels = np.concatenate([batch.images[batch.mask] for batch in batches])
    np.testing.assert_array_equal(pixels, images)
    assert batches[-1].labels.dtype == np.int32


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda i, y: train_batches(i, y, 6, seed=0, epoch=0), "at most 5"),
        (lambda i, y: train_batches(i, y, 0, seed=0, epoch=0), "at least 1, got 0"),
        (lambda i, y: train_batches(i, y, 2, seed=0, epoch=0, skip=-1), "at least 0 batches"),
        (lambda i, y: eval_batches(i, y, 0), "at least 1, got 0"),
        (lambda i, y: eval_batches(i, y[:4], 2), "5 images and 4 labels"),
    ],
)
def test_errors_are_raised_before_iteration(build, message):
    with pytest.raises(ValueError, match=message):
        build(*numbered(5))
