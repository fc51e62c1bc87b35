"""Random weights of the sizes that networks have."""

import jax.numpy as jnp
import numpy as np


def normal(seed, *shape):
    scale = np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 10.0
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape) / scale)
