from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ifjax.data.crops import central_crop, random_box, random_resized_crop


@settings(max_examples=300)
@given(width=st.integers(1, 700), height=st.integers(1, 700), seed=st.integers(0, 10**6))
def test_boxes_lie_in_the_image(width, height, seed):
    left, upper, right, lower = random_box(width, height, np.random.default_rng(seed))
    assert 0 <= left < right <= width
    assert 0 <= upper < lower <= height


def test_boxes_have_the_stated_distribution():
    """A square of side 1000: only rounding, and few of the draws do not fit."""
    rng = np.random.default_rng(0)
    area = (0.1, 0.5)
    boxes = np.array([random_box(1000, 1000, rng, area=area) for _ in range(4000)])
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    share, ratio = w * h / 1e6, w / h
    assert share.min() > 0.0995
    assert share.max() < 0.5005
    assert ratio.min() > 0.748
    assert ratio.max() < 1.336
    # Means of uniform distributions; five standard errors.
    assert abs(share.mean() - 0.3) < 5 * 0.4 / np.sqrt(12 * 4000)
    assert abs(np.log(ratio).mean()) < 5 * 2 * np.log(4 / 3) / np.sqrt(12 * 4000)
    free = boxes[:, 0] / (1000 - w)
    assert abs(free.mean() - 0.5) < 5 / np.sqrt(12 * 4000)


@pytest.mark.parametrize(
    ("size", "box"), [((900, 10), (443, 0, 456, 10)), ((10, 900), (0, 443, 10, 456))]
)
def test_where_nothing_fits_the_middle_is_taken(size, box):
    """Such strips have no part of 90 % of the area and a ratio in 3/4..4/3."""
    assert random_box(*size, np.random.default_rng(0), area=(0.9, 1.0)) == box


def photograph(height: int, width: int) -> np.ndarray:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 5, 3)).astype(np.float32)
    smooth = jax.image.resize(coarse, (height, width, 3), "cubic")
    return np.clip(np.round(smooth), 0, 255).astype(np.uint8)


def resized(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Antialiased bilinear, as jax.image does it."""
    return np.asarray(
        jax.image.resize(pixels.astype(np.float32), (height, width, 3), "bilinear", antialias=True)
    )


@pytest.mark.parametrize("shape", [(100, 60), (61, 97)])
def test_central_crop_against_jax_image(shape):
    pixels = photograph(*shape)
    found = central_crop(Image.fromarray(pixels), 24, 32)
    height, width = (max(32, round(side * 32 / min(shape))) for side in shape)
    top, left = (height - 24) // 2, (width - 24) // 2
    expected = resized(pixels, height, width)[top : top + 24, left : left + 24]
    # Pillow rounds after each direction.
    np.testing.assert_allclose(found, expected, atol=1.01)


def test_random_resized_crop_against_jax_image():
    pixels = photograph(80, 90)
    mirrored = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        left, upper, right, lower = random_box(90, 80, rng)
        expected = resized(pixels[upper:lower, left:right], 24, 24)
        if rng.random() < 0.5:
            expected, mirrored = expected[:, ::-1], mirrored + 1
        found = random_resized_crop(Image.fromarray(pixels), np.random.default_rng(seed), 24)
        np.testing.assert_allclose(found, expected, atol=1.01)
    assert 0 < mirrored < 12


def test_a_crop_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match="at least 24 pixels, got 20"):
        central_crop(Image.new("RGB", (50, 50)), 24, 20)
