"""Crops of photographs to one size, on the host, as ImageNet networks are trained and tested."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

if TYPE_CHECKING:
    from PIL.Image import Image

_BILINEAR = 2  # PIL.Image.Resampling.BILINEAR, antialiased where it shrinks

Box = tuple[int, int, int, int]
"""Left, upper, right and lower edge in pixels, as Pillow has them."""


def random_box(
    width: int,
    height: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws a part of an image: its share of the area, its aspect ratio, and where it lies.

    Uniform in the share of the area, in the logarithm of the aspect ratio and in the place, the
    first of ten draws that fits; else the largest central part whose aspect ratio is allowed.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        rng: what to draw from.
        area: smallest and largest share of the image's area.
        aspect: smallest and largest ratio of width to height.

    Returns:
        The part.

    Example:
        >>> import numpy as np
        >>> left, upper, right, lower = random_box(400, 300, np.random.default_rng(0))
        >>> 0 <= left < right <= 400 and 0 <= upper < lower <= 300
        True

    References:
        Szegedy et al., Going Deeper with Convolutions, section 6, https://arxiv.org/abs/1409.4842.
    """
    for _ in range(10):
        pixels = width * height * rng.uniform(*area)
        ratio = math.exp(rng.uniform(math.log(aspect[0]), math.log(aspect[1])))
        w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, upper = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
            return int(left), int(upper), int(left) + w, int(upper) + h
    w = min(width, max(1, round(height * aspect[1])))
    h = min(height, max(1, round(width / aspect[0])))
    left, upper = (width - w) // 2, (height - h) // 2
    return left, upper, left + w, upper + h


def random_resized_crop(
    image: Image, rng: np.random.Generator, size: int
) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Scales the part that :func:`random_box` draws to a square, and mirrors half of the images.

    Args:
        image: an RGB image.
        rng: what to draw from; equal states give equal results.
        size: the square's side in pixels.

    Returns:
        The pixels, read-only.

    Example:
        >>> import numpy as np
        >>> from PIL import Image
        >>> photograph = Image.new("RGB", (40, 30))
        >>> random_resized_crop(photograph, np.random.default_rng(0), 16).shape
        (16, 16, 3)
    """
    part = image.crop(random_box(image.width, image.height, rng)).resize((size, size), _BILINEAR)
    pixels = np.asarray(part)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def central_crop(image: Image, size: int, shorter: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Scales an image so that its shorter side has a given length, and cuts out its middle.

    Args:
        image: an RGB image.
        size: the side of the square that is cut out, in pixels.
        shorter: the length of the shorter side, at least ``size``.

    Returns:
        The pixels, read-only.

    Raises:
        ValueError: if ``shorter`` is less than ``size``.

    Example:
        >>> from PIL import Image
        >>> central_crop(Image.new("RGB", (40, 30)), 16, 20).shape
        (16, 16, 3)
    """
    if shorter < size:
        raise ValueError(f"expected a shorter side of at least {size} pixels, got {shorter}")
    scale = shorter / min(image.size)
    width, height = (max(shorter, round(side * scale)) for side in image.size)
    left, upper = (width - size) // 2, (height - size) // 2
    scaled = image.resize((width, height), _BILINEAR)
    return np.asarray(scaled.crop((left, upper, left + size, upper + size)))
