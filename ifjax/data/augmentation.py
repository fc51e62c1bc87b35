"""Random crops and flips, on the device and under jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Num, PRNGKeyArray


def augment(
    key: PRNGKeyArray,
    images: Num[Array | np.ndarray, "batch height width channels"],
    *,
    padding: int = 4,
    flip: bool = True,
) -> Num[Array, "batch height width channels"]:
    """Shifts every image at random, filling with zeros, and mirrors half of them at random.

    The shift is what a random crop of the original size gives, out of the image padded by
    ``padding`` black pixels on all sides (He et al., Deep Residual Learning for Image Recognition,
    section 4.2, https://arxiv.org/abs/1512.03385). Augment raw images, before normalisation.

    Args:
        key: a random key; equal keys give equal results.
        images: NHWC, of any dtype.
        padding: the largest shift, in pixels, in either direction.
        flip: mirror each image left to right with probability 1/2.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: if ``padding`` is negative.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> augment(jax.random.key(0), jnp.ones((2, 8, 8, 1)), padding=1).shape
        (2, 8, 8, 1)
    """
    if padding < 0:
        raise ValueError(f"expected padding of at least 0 pixels, got {padding!r}")
    images = jnp.asarray(images)
    crop_key, flip_key = jax.random.split(key)
    if padding:
        sides = (padding, padding)
        padded = jnp.pad(images, ((0, 0), sides, sides, (0, 0)))
        offsets = jax.random.randint(crop_key, (images.shape[0], 2), 0, 2 * padding + 1)
        images = jax.vmap(_crop, in_axes=(0, 0, None))(padded, offsets, images.shape[1:])
    if flip:
        mirrored = jax.random.bernoulli(flip_key, shape=(images.shape[0], 1, 1, 1))
        images = jnp.where(mirrored, images[:, :, ::-1, :], images)
    return images


def _crop(image: Array, offset: Array, shape: tuple[int, ...]) -> Array:
    return jax.lax.dynamic_slice(image, (offset[0], offset[1], jnp.zeros_like(offset[0])), shape)
