"""Common corruptions of images, at the five strengths that CIFAR-10-C has for images of its size.

Hendrycks & Dietterich, `Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations <https://arxiv.org/abs/1903.12261>`_, ICLR 2019.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from scipy import ndimage

STRENGTHS = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "JPEG": (80, 65, 58, 50, 40),
}


def corrupt(images: np.ndarray, kind: str, strength: int, seed: int = 0) -> np.ndarray:
    """Images ``[n, h, w, 3]`` in bytes, as bytes; the strength is 1 to 5."""
    value = STRENGTHS[kind][strength - 1]
    if kind == "JPEG":
        return np.stack([_jpeg(image, int(value)) for image in images])
    x = images / 255.0
    if kind == "noise":
        x = x + np.random.default_rng(seed).normal(0, value, x.shape)
    elif kind == "blur":
        x = ndimage.gaussian_filter(x, (0, value, value, 0), mode="reflect")
    else:
        mean = x.mean((1, 2), keepdims=True)
        x = (x - mean) * value + mean
    return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)


def _jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))
