from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ifjax.data import augment


def shifts(image: np.ndarray, padding: int, flip: bool) -> list[np.ndarray]:
    """List every crop of the padded image, then their mirrors."""
    height, width, _ = image.shape
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    crops = [
        padded[i : i + height, j : j + width]
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
    ]
    return crops + [crop[:, ::-1] for crop in crops] if flip else crops


@pytest.mark.parametrize(("padding", "flip"), [(0, True), (1, False), (1, True)])
def test_each_image_is_one_of_its_shifts_and_all_occur(padding, flip):
    image = np.random.default_rng(0).integers(1, 256, (3, 5, 2)).astype(np.uint8)
    images = np.broadcast_to(image, (400, 3, 5, 2))
    result = np.asarray(augment(jax.random.key(0), images, padding=padding, flip=flip))
    assert result.dtype == np.uint8
    choices = np.stack(shifts(image, padding, flip))
    hits = (result[:, None] == choices[None]).all((2, 3, 4))
    assert (hits.sum(1) == 1).all()
    # The rarest of at most 18 equally likely choices: 400 draws miss it with probability 1e-10.
    assert hits.any(0).all()


def test_no_shift_and_no_flip_is_the_identity():
    images = jax.random.normal(jax.random.key(1), (2, 4, 4, 1))
    result = augment(jax.random.key(0), images, padding=0, flip=False)
    np.testing.assert_array_equal(result, images)


def test_jit_and_strict_promotion_give_the_same():
    images = jnp.arange(2 * 8 * 8 * 3, dtype=jnp.float32).reshape(2, 8, 8, 3)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        jitted = jax.jit(augment)(jax.random.key(3), images)
    np.testing.assert_array_equal(jitted, augment(jax.random.key(3), images))
    assert not np.array_equal(jitted, augment(jax.random.key(4), images))


def test_negative_padding_is_refused():
    with pytest.raises(ValueError, match="got -1"):
        augment(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), padding=-1)
