"""Images held in memory, normalised and augmented on the device, in batches of one shape."""

from ifjax.data.augmentation import augment
from ifjax.data.batching import Batch, eval_batches, train_batches
from ifjax.data.cifar10 import CIFAR10_MEAN, CIFAR10_STD, cifar10_split, load_cifar10
from ifjax.data.dataset import Dataset, normalize
from ifjax.data.digits import load_digits
from ifjax.data.loading import DATASETS, load

__all__ = [
    "CIFAR10_MEAN",
    "CIFAR10_STD",
    "DATASETS",
    "Batch",
    "Dataset",
    "augment",
    "cifar10_split",
    "eval_batches",
    "load",
    "load_cifar10",
    "load_digits",
    "normalize",
    "train_batches",
]
