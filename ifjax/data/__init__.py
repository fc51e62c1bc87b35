"""Labelled images, in memory or streamed, augmented and normalised, in batches of one shape."""

from ifjax.data.augmentation import augment
from ifjax.data.batching import Batch, eval_batches, train_batches
from ifjax.data.cifar import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    CIFAR100_MEAN,
    CIFAR100_STD,
    cifar10_split,
    load_cifar10,
    load_cifar100,
)
from ifjax.data.corruption import long_tail, mislabel
from ifjax.data.crops import central_crop, random_resized_crop
from ifjax.data.dataset import Dataset, normalize
from ifjax.data.digits import load_digits
from ifjax.data.folds import FoldKind, class_counts, make_folds, part
from ifjax.data.imagenet import IMAGENET_MEAN, IMAGENET_STD, load_imagenet2012
from ifjax.data.loading import DATASETS, load
from ifjax.data.prepared import open_prepared
from ifjax.data.protocol import ImageDataset
from ifjax.data.streaming import StreamedDataset

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "CIFAR100_MEAN",
    "CIFAR100_STD",
    "DATASETS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "Batch",
    "Dataset",
    "FoldKind",
    "ImageDataset",
    "StreamedDataset",
    "augment",
    "central_crop",
    "cifar10_split",
    "class_counts",
    "eval_batches",
    "load",
    "load_cifar10",
    "load_cifar100",
    "load_digits",
    "load_imagenet2012",
    "long_tail",
    "make_folds",
    "mislabel",
    "normalize",
    "open_prepared",
    "part",
    "random_resized_crop",
    "train_batches",
]
