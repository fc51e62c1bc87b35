"""ImageNet (ILSVRC 2012) as TensorFlow Datasets prepares it, decoded as it is asked for."""

from __future__ import annotations

import io
import os

import numpy as np

from ifjax.data.crops import central_crop, random_resized_crop
from ifjax.data.prepared import open_prepared
from ifjax.data.streaming import StreamedDataset

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Subtracted from RGB / 255 (https://docs.pytorch.org/vision/stable/models.html)."""

IMAGENET_STD = (0.229, 0.224, 0.225)
"""Divided by afterwards; from the same place."""

_SIZE, _SHORTER = 224, 256


def load_imagenet2012(data_dir: str | os.PathLike[str] | None = None) -> StreamedDataset:
    """Opens ImageNet: 1,281,167 training and 50,000 validation images of 1,000 classes.

    For training, a random part of each image (8 to 100 % of its area) is scaled to 224 x 224 and
    mirrored at random; for testing, the image is scaled to a shorter side of 256 and its middle
    224 x 224 is cut out (He et al., section 3.4, https://arxiv.org/abs/1512.03385, with the crops
    of Szegedy et al., https://arxiv.org/abs/1409.4842). The test split is TFDS' ``validation``.

    Args:
        data_dir: the folder that holds ``imagenet2012``; by default ``$TFDS_DATA_DIR``, else
            TensorFlow Datasets' own, ``~/tensorflow_datasets``.

    Returns:
        The data set; ``dataclasses.replace(dataset, workers=8)`` decodes in eight processes.

    Raises:
        ImportError: if grain, array_record, Pillow or another optional package is missing.
        FileNotFoundError: if the data set is not prepared there; the message says what to download
            by hand, and the command that prepares it.

    Example:
        >>> data = load_imagenet2012("~/tensorflow_datasets")  # doctest: +SKIP
        >>> next(data.train_batches(64, seed=0, epoch=0)).images.shape  # doctest: +SKIP
        (64, 224, 224, 3)
    """
    return StreamedDataset(
        name="imagenet2012",
        train_source=open_prepared("imagenet2012", "train", data_dir, decode_images=False),
        test_source=open_prepared("imagenet2012", "validation", data_dir, decode_images=False),
        num_classes=1000,
        image_shape=(_SIZE, _SIZE, 3),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        train_transform=_train_pixels,
        test_transform=_test_pixels,
    )


def _train_pixels(encoded: bytes, rng: np.random.Generator) -> np.ndarray:
    return random_resized_crop(_decode(encoded), rng, _SIZE)


def _test_pixels(encoded: bytes) -> np.ndarray:
    return central_crop(_decode(encoded), _SIZE, _SHORTER)


def _decode(encoded: bytes):
    from PIL import Image  # an extra

    return Image.open(io.BytesIO(encoded)).convert("RGB")
