"""The loss of a classifier."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "b k"], labels: Int[Array, " b"], label_smoothing: float = 0.0
) -> Float[Array, " b"]:
    r"""Softmax cross-entropy of every example, computed in float32 at least.

    With smoothing $s$ and $k$ classes the target is $(1 - s)$ one-hot $+\, s / k$:

    $$\ell = -\sum_j t_j \log \mathrm{softmax}(z)_j, \qquad
      t_j = (1 - s)\,[j = y] + s / k.$$

    Args:
        logits: unnormalised scores, one row per example.
        labels: the class of each example, in ``0 .. k - 1``.
        label_smoothing: $s$ in ``[0, 1)``.

    Returns:
        One loss per example, in nats.

    Raises:
        ValueError: if ``label_smoothing`` is outside ``[0, 1)``.

    Example:
        >>> import jax.numpy as jnp
        >>> [f"{loss:.4f}" for loss in cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 3]))]
        ['1.3863', '1.3863']
    """
    if not 0.0 <= label_smoothing < 1.0:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {label_smoothing}")
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    log_p = jax.nn.log_softmax(logits, axis=-1)
    of_label = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    return -(1.0 - label_smoothing) * of_label - label_smoothing * log_p.mean(axis=-1)
