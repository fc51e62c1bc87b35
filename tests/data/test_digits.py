from __future__ import annotations

import sys

import numpy as np
import pytest
from sklearn import datasets

from ifjax.data import load_digits


def test_both_splits_together_are_scikit_learns_digits():
    data = load_digits()
    images = np.concatenate([data.train_images, data.test_images])
    labels = np.concatenate([data.train_labels, data.test_labels])
    assert images.dtype == np.float32
    assert labels.dtype == np.int32
    rows = np.column_stack([images.reshape(-1, 64) * 16, labels])
    bunch = datasets.load_digits()
    expected = np.column_stack([bunch.data, bunch.target])
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, expected.tolist()))


def test_the_split_is_stratified_and_always_the_same():
    one, two = load_digits(), load_digits()
    np.testing.assert_array_equal(one.test_images, two.test_images)
    np.testing.assert_array_equal(one.train_labels, two.train_labels)
    test = np.bincount(one.test_labels, minlength=10)
    total = test + np.bincount(one.train_labels, minlength=10)
    assert np.abs(test - 0.2 * total).max() <= 0.5
    # Pinned: results are compared across versions on these very images.
    assert one.test_labels[:10].tolist() == [5, 9, 2, 4, 6, 7, 9, 3, 4, 6]


def test_arrays_are_read_only():
    with pytest.raises(ValueError, match="read-only"):
        load_digits().train_images[0] = 0


def test_missing_scikit_learn_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn.*pip install 'ifjax\[data\]'"):
        load_digits()
