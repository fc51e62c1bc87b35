"""Training sets made worse on purpose: wrong labels, and classes of uneven size."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Int64

from ifjax.data.dataset import Dataset, frozen


def mislabel(dataset: Dataset, fraction: float, *, seed: int = 0) -> Dataset:
    """Gives a fraction of the training images the label of another class, drawn uniformly.

    This is symmetric label noise that always hits: exactly ``round(fraction * n)`` labels are wrong
    afterwards. The test labels stay.

    Args:
        dataset: the data set.
        fraction: of the training images, in ``[0, 1]``.
        seed: of the draw; a larger fraction corrupts the same images and more.

    Returns:
        The data set; it shares the images with the given one.

    Raises:
        ValueError: if the fraction is outside ``[0, 1]``, or there is one class only.

    Example:
        >>> from ifjax.data import load
        >>> digits = load("digits")
        >>> noisy = mislabel(digits, 0.4)
        >>> int((noisy.train_labels != digits.train_labels).sum()), digits.num_train
        (575, 1438)

    References:
        Patrini et al., `Making Deep Neural Networks Robust to Label Noise
        <https://arxiv.org/abs/1609.03683>`_, 2017 (symmetric noise).
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"expected a fraction of wrong labels in [0, 1], got {fraction!r}")
    if dataset.num_classes < 2:
        raise ValueError(f"expected two classes or more in {dataset.name!r} to confuse")
    rng = np.random.default_rng(seed)
    order = rng.permutation(dataset.num_train)
    shift = rng.integers(1, dataset.num_classes, dataset.num_train)
    wrong = order[: round(fraction * dataset.num_train)]
    labels = dataset.train_labels.copy()
    labels[wrong] = (labels[wrong] + shift[wrong]) % dataset.num_classes
    return dataclasses.replace(dataset, train_labels=frozen(labels))


def long_tail(dataset: Dataset, ratio: float, *, seed: int = 0) -> Int64[np.ndarray, " kept"]:
    """Chooses training images so that the classes shrink exponentially from the first to the last.

    Of class ``c`` out of ``k`` the fraction ``ratio ** (-c / (k - 1))`` is kept, at least one
    image, so that the first class is ``ratio`` times the last where all had one size.

    Args:
        dataset: the data set.
        ratio: at least 1; 1 keeps everything.
        seed: of the draw.

    Returns:
        The indices of the kept images, rising, for :func:`ifjax.data.part`.

    Raises:
        ValueError: if the ratio is below 1 or not finite.

    Example:
        >>> from ifjax.data import class_counts, load, part
        >>> digits = load("digits")
        >>> class_counts(digits, [long_tail(digits, 10.0)])
        array([[142, 113,  85,  67,  52,  40,  31,  23,  17,  14]])

    References:
        Cui et al., `Class-Balanced Loss Based on Effective Number of Samples
        <https://arxiv.org/abs/1901.05555>`_, 2019, section 5.1 (long-tailed CIFAR).
    """
    if not 1.0 <= ratio < np.inf:
        raise ValueError(f"expected a finite ratio of at least 1, got {ratio!r}")
    rng = np.random.default_rng(seed)
    kept = []
    for label in range(dataset.num_classes):
        members = rng.permutation(np.flatnonzero(dataset.train_labels == label))
        share = ratio ** (-label / max(1, dataset.num_classes - 1))
        kept.append(members[: max(1, int(share * len(members)))])
    return np.sort(np.concatenate(kept))
