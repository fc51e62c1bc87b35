from __future__ import annotations

import numpy as np
import pytest

from ifjax.data import DATASETS, load, load_digits


def test_digits_by_name():
    data = load("digits")
    assert data.name == "digits"
    np.testing.assert_array_equal(data.test_images, load_digits().test_images)


def test_cifar10_gets_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        load("cifar10", tmp_path)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=f"{', '.join(DATASETS)}; got 'mnist'"):
        load("mnist")
