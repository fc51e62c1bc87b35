"""A pretrained network cut to one width in many ways, with one program for all of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from reconstruction import INNER, images_of, network_of

import ifjax

CALIBRATION, BATCH = 512, 32


class CutNetwork:
    """A network, its graph and images, and what is left of its accuracy at one sparsity.

    ResNets are cut inside their blocks, other networks everywhere. Calibration images are the first
    of the training set; test images the first of the test set.
    """

    def __init__(self, name: str, sparsity: float, test_images: int) -> None:
        self.apply_fn, self.params = network_of(name)
        self.images, self.labels = images_of(f"train[:{CALIBRATION}]")
        self.test = images_of(f"test[:{test_images}]")
        self.graph = ifjax.trace(self.apply_fn, self.params, self.images[:1])
        self.spec = self.graph.spec(
            sparsity, include=INNER.get(name), method="prune", importance="l1", solver="exact"
        )
        self.apply_small = ifjax.shrink(self.apply_fn, self.spec)
        self.logits_small = jax.jit(self.apply_small)

    @property
    def batches(self) -> list[Any]:
        """The calibration images in batches."""
        return [self.images[i : i + BATCH] for i in range(0, len(self.images), BATCH)]

    def changed(self, **changes: Any) -> ifjax.FusionSpec:
        """The spec with another method."""
        method = dataclasses.replace(self.spec.method, **changes)
        return dataclasses.replace(self.spec, method=method)

    def logits(self, params: Any, images: Any) -> np.ndarray:
        """Of the small network."""
        parts = range(0, len(images), 500)
        found = [np.asarray(self.logits_small(params, images[i : i + 500])) for i in parts]
        return np.concatenate(found)

    def accuracy(self, params: Any) -> float:
        """Of the small network, in %."""
        images, labels = self.test
        return 100 * float((self.logits(params, images).argmax(-1) == labels).mean())

    def reset(self, params: Any) -> Any:
        """With the statistics of the norms measured on the calibration images."""
        return ifjax.reset_statistics(self.apply_small, params, [self.images])

    def compressed(self, spec: ifjax.FusionSpec, **options: Any) -> Any:
        """Reconstructed on the calibration images."""
        return ifjax.compress(self.apply_fn, self.params, spec, self.batches, **options)[0]


def dense_logits(network: CutNetwork, images: Any) -> np.ndarray:
    """Of the dense network."""
    run = jax.jit(network.apply_fn)
    parts = range(0, len(images), 500)
    return np.concatenate(
        [np.asarray(run(network.params, jnp.asarray(images[i : i + 500]))) for i in parts]
    )
