"""Fixtures of these tests."""

from __future__ import annotations

import io

import jaxtyping
import numpy as np
import pytest


@pytest.fixture
def unchecked(monkeypatch):
    """Let wrong arguments reach our own errors, where types are checked at run time too."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def encode():
    """``pixels -> file``: what TensorFlow Datasets' builders take without TensorFlow."""
    from PIL import Image

    def encode(pixels: np.ndarray, kind: str) -> io.BytesIO:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, kind)
        file.seek(0)
        return file

    return encode


@pytest.fixture(scope="session")
def prepare():
    """``(name, folder, {split: examples})``: TFDS' own builder writes them, as array_record."""
    import tensorflow_datasets as tfds

    def prepare(name, folder, splits) -> None:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        builder._split_generators = lambda *_: {
            split: iter(list(enumerate(examples))) for split, examples in splits.items()
        }
        builder.download_and_prepare()

    return prepare


@pytest.fixture(scope="session")
def photographs(tmp_path_factory, prepare, encode):
    """A folder with an ``imagenet2012`` of 11 training and 5 validation images of many sizes."""
    rng = np.random.default_rng(0)

    def example(label):
        height, width = rng.integers(40, 400, 2)
        # Smooth, as photographs are: JPEG keeps them to a few grey levels.
        coarse = rng.integers(0, 256, (6, 6, 3)).astype(np.uint8)
        pixels = np.kron(coarse, np.ones((-(-height // 6), -(-width // 6), 1), np.uint8))
        name = f"n{label}.JPEG"
        pixels = np.ascontiguousarray(pixels[:height, :width])
        return {"image": encode(pixels, "JPEG"), "label": label, "file_name": name}

    folder = tmp_path_factory.mktemp("photographs")
    splits = {
        "train": [example(label) for label in range(11)],
        "validation": [example(label) for label in range(5)],
    }
    prepare("imagenet2012", folder, splits)
    return folder
