"""ImageNet as TFDS' own writer stores it, with a handful of made-up photographs."""

from __future__ import annotations

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from ifjax.data import ImageDataset, central_crop, load, random_resized_crop


@pytest.fixture(scope="module")
def dataset(photographs):
    return load("imagenet2012", photographs)


def test_splits_and_shapes(dataset):
    assert isinstance(dataset, ImageDataset)
    assert (dataset.num_train, dataset.num_test, dataset.num_classes) == (11, 5, 1000)
    assert dataset.image_shape == (224, 224, 3)
    # The constants of torchvision's models.
    white = dataset.normalize(np.full((1, 1, 1, 3), 255, np.uint8))
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(white[0, 0, 0], expected, rtol=1e-6)


def test_evaluation_crops_the_middle(dataset):
    batches = list(dataset.eval_batches(3))
    assert [batch.mask.tolist() for batch in batches] == [[True] * 3, [True, True, False]]
    images = np.concatenate([batch.images[batch.mask] for batch in batches])
    labels = np.concatenate([batch.labels[batch.mask] for batch in batches])
    for index, example in enumerate(dataset.test_source):
        image = Image.open(io.BytesIO(example["image"]))
        np.testing.assert_array_equal(images[index], central_crop(image, 224, 256))
        assert labels[index] == example["label"]


def test_training_augments_by_seed_epoch_and_place(dataset):
    (first, second) = dataset.train_batches(4, seed=3, epoch=2)
    order = np.random.default_rng((3, 2)).permutation(11)
    for place in range(8):
        example = dataset.train_source[int(order[place])]
        image = Image.open(io.BytesIO(example["image"]))
        rng = np.random.default_rng((3, 2, place))
        batch = (first, second)[place // 4]
        np.testing.assert_array_equal(batch.images[place % 4], random_resized_crop(image, rng, 224))
        assert batch.labels[place % 4] == example["label"]


def test_grey_images_become_rgb(dataset, encode):
    grey = encode(np.full((30, 50), 100, np.uint8), "JPEG").getvalue()
    assert dataset.test_transform(grey).tolist() == np.full((224, 224, 3), 100).tolist()


def test_worker_processes_change_nothing(dataset):
    """Not the batches, not their order; started in the middle, as a resumed run starts them."""
    alone = list(dataset.train_batches(2, seed=0, epoch=1))
    several = dataclasses.replace(dataset, workers=2, threads=2)
    found = list(several.train_batches(2, seed=0, epoch=1, skip=2))
    assert len(found) == 3
    for one, two in zip(found, alone[2:], strict=True):
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.labels, two.labels)
