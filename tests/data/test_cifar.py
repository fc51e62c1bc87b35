from __future__ import annotations

import numpy as np
import pytest

from ifjax.data import CIFAR10_MEAN, CIFAR100_STD, cifar10_split, load


@pytest.fixture(scope="module")
def folder(shared):
    path = shared / "tensorflow_datasets"
    if not (path / "cifar10").is_dir():
        pytest.skip(f"no prepared cifar10 at {path}")
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory, prepare, encode):
    """Both data sets in small, as TFDS' own builders write them; images by their label."""
    folder = tmp_path_factory.mktemp("cifar")

    def examples(labels, **more):
        pixels = [np.full((32, 32, 3), label, np.uint8) for label in labels]
        return [
            {"image": encode(image, "PNG"), "label": label, "id": str(label), **more}
            for image, label in zip(pixels, labels, strict=True)
        ]

    prepare("cifar10", folder, {"train": examples(range(5)), "test": examples([9, 8])})
    coarse = {"coarse_label": 0}
    splits = {"train": examples([99, 3], **coarse), "test": examples([41], **coarse)}
    prepare("cifar100", folder, splits)
    return folder


def test_a_slice_equals_what_tfds_decodes(folder, monkeypatch):
    import tensorflow_datasets as tfds

    images, labels = cifar10_split("test[2:5]", folder)
    source = tfds.data_source("cifar10", split="test", data_dir=folder)
    np.testing.assert_array_equal(images, [source[i]["image"] for i in (2, 3, 4)])
    assert labels.tolist() == [source[i]["label"] for i in (2, 3, 4)]
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert not images.flags.writeable
    monkeypatch.setenv("TFDS_DATA_DIR", str(folder))
    np.testing.assert_array_equal(cifar10_split("test[2:5]")[0], images)


@pytest.mark.parametrize(
    ("name", "classes", "train", "test"),
    [("cifar10", 10, range(5), (8, 9)), ("cifar100", 100, (3, 99), (41,))],
)
def test_load_reads_both_splits(made, name, classes, train, test):
    data = load(name, made)
    assert (data.name, data.num_classes, data.image_shape) == (name, classes, (32, 32, 3))
    assert (data.crop_padding, data.flip) == (4, True)
    for images, labels, expected in (
        (data.train_images, data.train_labels, train),
        (data.test_images, data.test_labels, test),
    ):
        assert sorted(labels.tolist()) == list(expected)
        np.testing.assert_array_equal(images[:, 0, 0, 0], labels)
        assert images.dtype == np.uint8


def test_normalisation_is_that_of_each_data_set(made):
    one, two = load("cifar10", made), load("cifar100", made)
    assert one.mean == CIFAR10_MEAN
    assert two.std == CIFAR100_STD
    white = np.full((1, 32, 32, 3), 255, np.uint8)
    expected = [(1 - 0.5071) / 0.2673, (1 - 0.4865) / 0.2564, (1 - 0.4409) / 0.2762]
    np.testing.assert_allclose(two.normalize(white)[0, 0, 0], expected, rtol=1e-6)


def test_reading_is_one_line_in_a_log(made, capsys):
    cifar10_split("test", made)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cifar10 test: ")
    assert captured.err.count("\n") == 1
