"""Disjoint folds of a training set: random, stratified, or skewed by label."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, SupportsIndex, TypeVar

import numpy as np
from jaxtyping import Int, Int64

from ifjax.data.dataset import Dataset, frozen
from ifjax.data.prepared import Source
from ifjax.data.protocol import ImageDataset
from ifjax.data.streaming import StreamedDataset

FoldKind = Literal["random", "stratified", "dirichlet"]

D = TypeVar("D", bound=ImageDataset)

_DRAWS = 1000


def make_folds(
    dataset: ImageDataset,
    count: int,
    kind: FoldKind = "random",
    *,
    seed: int = 0,
    alpha: float = 1.0,
    min_size: int = 1,
) -> list[Int64[np.ndarray, " _"]]:
    """Shares the training images out to ``count`` folds: every image to exactly one of them.

    A fraction of the data is a fold as well: ``make_folds(dataset, 16)[0]`` is a random sixteenth.

    Args:
        dataset: the data set; of a streamed one only its length is read.
        count: the number of folds.
        kind: ``"random"`` (sizes differ by one at most), ``"stratified"`` (as well as the number of
            images of each class), or ``"dirichlet"``: for every class ``p ~ Dirichlet(alpha, ...,
            alpha)`` gives the folds' shares of it, so that labels and sizes are skewed; drawn
            again until no fold is smaller than ``min_size``.
        seed: of the draw.
        alpha: of ``"dirichlet"``; towards 0 every class falls to one fold, towards infinity the
            folds are alike.
        min_size: the images that each fold has to have, such as those of one batch.

    Returns:
        The indices of every fold's training images, rising.

    Raises:
        ValueError: if ``count``, ``alpha`` or ``kind`` is none, the images are too few, or a
            streamed data set, whose labels are not at hand, is to be shared out by label.

    Example:
        >>> from ifjax.data import load
        >>> [len(fold) for fold in make_folds(load("digits"), 4, "stratified")]
        [360, 360, 359, 359]

    References:
        Yurochkin et al., `Bayesian Nonparametric Federated Learning of Neural Networks
        <https://arxiv.org/abs/1905.12022>`_, 2019, section 4 (Dirichlet shares of every class).
    """
    n = dataset.num_train
    if count < 1:
        raise ValueError(f"expected at least 1 fold, got {count!r}")
    if min_size < 1 or n // count < min_size:
        raise ValueError(
            f"expected min_size in 1..{n // count}, as {n} training images of {dataset.name!r} go "
            f"to {count} folds, got {min_size}; choose fewer folds or smaller batches"
        )
    rng = np.random.default_rng((seed, count))
    if kind == "random":
        return [np.sort(part) for part in np.array_split(rng.permutation(n), count)]
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"{kind!r} folds need the labels of {dataset.name!r}, which is streamed; choose "
            "kind='random'"
        )
    by_class = [
        rng.permutation(np.flatnonzero(dataset.train_labels == label))
        for label in range(dataset.num_classes)
    ]
    if kind == "stratified":
        dealt = np.concatenate(by_class)
        return [np.sort(dealt[first::count]) for first in range(count)]
    if kind != "dirichlet":
        raise ValueError(f"expected kind 'random', 'stratified' or 'dirichlet', got {kind!r}")
    if not 0.0 < alpha < np.inf:
        raise ValueError(f"expected a positive and finite alpha, got {alpha!r}")
    for _ in range(_DRAWS):
        folds = _dirichlet(rng, by_class, count, alpha)
        if min(map(len, folds)) >= min_size:
            return folds
    raise ValueError(
        f"none of {_DRAWS} draws with alpha={alpha:g} gave each of {count} folds {min_size} of the "
        f"{n} training images; choose a larger alpha, fewer folds or smaller batches"
    )


def class_counts(
    dataset: Dataset, folds: Sequence[Int[np.ndarray, " _"]]
) -> Int64[np.ndarray, "folds classes"]:
    """Counts the training images of every class in every fold.

    Args:
        dataset: the data set.
        folds: as :func:`make_folds` gives them.

    Returns:
        One row per fold, one column per class.

    Example:
        >>> from ifjax.data import load
        >>> digits = load("digits")
        >>> class_counts(digits, make_folds(digits, 2, "stratified"))[:, :4]
        array([[71, 73, 71, 73], [71, 73, 71, 73]])
    """
    labels = [dataset.train_labels[fold] for fold in folds]
    return np.stack([np.bincount(of_fold, minlength=dataset.num_classes) for of_fold in labels])


def part(dataset: D, indices: Int[np.ndarray, " part"]) -> D:
    """Leaves some of the training images only, such as one fold; the test images stay.

    Args:
        dataset: in memory or streamed.
        indices: of the images to keep, in the order in which they are to be numbered.

    Returns:
        The data set; one in memory holds copies, a streamed one reads the same files.

    Raises:
        TypeError: if the data set is of another kind.
        ValueError: if an index is out of range, or there is none.

    Example:
        >>> from ifjax.data import load
        >>> digits = load("digits")
        >>> part(digits, make_folds(digits, 2)[1]).num_train
        719
    """
    if not len(indices) or indices.min() < 0 or indices.max() >= dataset.num_train:
        raise ValueError(
            f"expected one or more indices in 0..{dataset.num_train - 1}, the training images of "
            f"{dataset.name!r}, got {indices!r}"
        )
    if isinstance(dataset, Dataset):
        images, labels = dataset.train_images[indices], dataset.train_labels[indices]
        return dataclasses.replace(
            dataset, train_images=frozen(images), train_labels=frozen(labels)
        )
    if isinstance(dataset, StreamedDataset):
        return dataclasses.replace(dataset, train_source=_Part(dataset.train_source, indices))
    raise TypeError(f"expected a Dataset or a StreamedDataset, got {type(dataset).__name__}")


def _dirichlet(
    rng: np.random.Generator, by_class: Sequence[np.ndarray], count: int, alpha: float
) -> list[np.ndarray]:
    folds: list[list[np.ndarray]] = [[] for _ in range(count)]
    for members in by_class:
        shares = rng.dirichlet(np.full(count, alpha))
        ends = np.rint(np.cumsum(shares[:-1]) * len(members)).astype(int)
        for fold, piece in zip(folds, np.split(rng.permutation(members), ends), strict=True):
            fold.append(piece)
    return [np.sort(np.concatenate(pieces)) for pieces in folds]


class _Part:
    """Some examples of a source, as a source; pickles, as grain's processes need it."""

    def __init__(self, source: Source, indices: np.ndarray) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: SupportsIndex, /) -> Mapping[str, Any]:
        return self._source[int(self._indices[index])]
