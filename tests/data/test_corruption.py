from __future__ import annotations

import numpy as np
import pytest

from ifjax.data import Dataset, long_tail, mislabel


def labelled(labels: np.ndarray, classes: int = 4) -> Dataset:
    images, labels = np.zeros((len(labels), 2, 2, 1), np.float32), labels.astype(np.int32)
    return Dataset("made", images, labels, images, labels, classes, mean=(0.0,), std=(1.0,))


def test_so_many_labels_are_wrong_and_all_wrong_classes_are_as_likely():
    dataset = labelled(np.ones(8000))
    noisy = mislabel(dataset, 0.4)
    counts = np.bincount(noisy.train_labels, minlength=4)
    assert counts[1] == 4800
    np.testing.assert_allclose(np.delete(counts, 1), 3200 / 3, atol=4 * np.sqrt(3200 * 2 / 9))
    assert noisy.train_images is dataset.train_images
    np.testing.assert_array_equal(noisy.test_labels, dataset.test_labels)


def test_more_noise_keeps_the_wrong_labels_of_less():
    dataset = labelled(np.arange(200) % 4)
    few, many = (mislabel(dataset, f, seed=3).train_labels for f in (0.1, 0.3))
    wrong = few != dataset.train_labels
    assert wrong.sum() == 20
    np.testing.assert_array_equal(few[wrong], many[wrong])
    assert (mislabel(dataset, 0.0).train_labels == dataset.train_labels).all()
    assert (mislabel(dataset, 1.0).train_labels != dataset.train_labels).all()


def test_classes_shrink_exponentially():
    dataset = labelled(np.repeat(np.arange(4), 1000))
    kept = long_tail(dataset, 27.0, seed=2)
    assert np.bincount(dataset.train_labels[kept]).tolist() == [1000, 333, 111, 37]
    assert np.all(np.diff(kept) > 0)
    assert len(long_tail(dataset, 1.0)) == 4000
    tiny = long_tail(labelled(np.arange(4)), 100.0)
    assert tiny.tolist() == [0, 1, 2, 3]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: mislabel(labelled(np.zeros(3)), 1.5), r"in \[0, 1\], got 1.5"),
        (lambda: mislabel(labelled(np.zeros(3), classes=1), 0.5), "two classes or more"),
        (lambda: long_tail(labelled(np.zeros(3)), 0.5), "at least 1, got 0.5"),
    ],
)
def test_errors_name_the_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
