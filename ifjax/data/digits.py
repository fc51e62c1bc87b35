"""The handwritten digits that scikit-learn carries: 1,797 images of 8 x 8 pixels, no download."""

from __future__ import annotations

import numpy as np

from ifjax.data.dataset import Dataset, frozen
from ifjax.data.extras import require

_TEST_FRACTION = 0.2


def load_digits() -> Dataset:
    """Loads the digits, 80 % of every class for training and 20 % for testing, always the same.

    Returns:
        8 x 8 x 1 images, float32 in 0..1 (the files count 0..16); normalisation leaves them as they
        are, augmentation shifts them by one pixel at most.

    Raises:
        ImportError: if scikit-learn is not installed.

    Example:
        >>> data = load_digits()
        >>> data.train_images.shape, data.test_images.shape
        ((1438, 8, 8, 1), (359, 8, 8, 1))

    References:
        Alpaydin and Kaynak, `Optical Recognition of Handwritten Digits
        <https://archive.ics.uci.edu/dataset/80>`_, UCI, 1998.
    """
    bunch = require("sklearn.datasets", "scikit-learn", "The digits data set").load_digits()
    images = (bunch.images[..., np.newaxis] / 16).astype(np.float32)
    labels = bunch.target.astype(np.int32)
    is_test = _stratified(labels)
    return Dataset(
        name="digits",
        train_images=frozen(images[~is_test]),
        train_labels=frozen(labels[~is_test]),
        test_images=frozen(images[is_test]),
        test_labels=frozen(labels[is_test]),
        num_classes=10,
        mean=(0.0,),
        std=(1.0,),
        crop_padding=1,
    )


def _stratified(labels: np.ndarray) -> np.ndarray:
    # The seed is part of the split's definition: results are compared on the same images.
    rng = np.random.default_rng(0)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(_TEST_FRACTION * len(members))]] = True
    return is_test
