from __future__ import annotations

import numpy as np
import pytest

from ifjax.data import DATASETS, load, load_digits


def test_digits_by_name():
    data = load("digits")
    assert data.name == "digits"
    np.testing.assert_array_equal(data.test_images, load_digits().test_images)


@pytest.mark.parametrize("name", [name for name in DATASETS if name != "digits"])
def test_prepared_data_sets_get_the_folder(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=rf"expected {name} .*{tmp_path}"):
        load(name, tmp_path)


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=f"{', '.join(DATASETS)}; got 'mnist'"):
        load("mnist")
