from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from ifjax.data import Dataset, augment, normalize


def small() -> Dataset:
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3)).astype(np.uint8)
    labels = np.arange(6, dtype=np.int32) % 3
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return Dataset("small", images, labels, images[:2], labels[:2], 3, mean, std, 1, True)


def test_normalize_is_affine_per_channel():
    data = small()
    expected = (data.train_images / 255.0 - np.array(data.mean)) / np.array(data.std)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        found = jax.jit(data.normalize)(data.train_images)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    unit = (data.train_images / 255.0).astype(np.float32)
    np.testing.assert_allclose(data.normalize(unit), expected, rtol=1e-5, atol=1e-5)


def test_normalize_refuses_other_integers():
    with pytest.raises(TypeError, match="got int32"):
        normalize(np.zeros((1, 2, 2, 1), np.int32), (0.0,), (1.0,))


def test_augment_follows_the_settings():
    data = small()
    key = jax.random.key(0)
    np.testing.assert_array_equal(
        data.augment(key, data.train_images), augment(key, data.train_images, padding=1, flip=True)
    )
    assert data.image_shape == (4, 4, 3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_labels": np.zeros(3, np.int32)}, r"test of 'small', got images \(2, 4, 4, 3\)"),
        ({"train_images": np.zeros((6, 4, 4), np.uint8)}, "expected NHWC images"),
        ({"num_classes": 2}, r"labels in 0..1 in train of 'small', got 0..2"),
        ({"mean": (0.5,)}, "each of the 3 channels"),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(small(), **change)
