"""Centroids of the neurons of a group, as targets in the place of its most important neurons."""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ifjax.promotion import with_promotion

CENTROIDS = ("kmeans", "gaussian_mixture")
_STARTS = 10  # of k-means; the best result is taken
# What the score of a neuron counts in the choice of representatives, relative to the mean distance:
# the two neurons of a cluster of two are equally near to their centroid.
_PREFERENCE = 1e-3


class Clusters(NamedTuple):
    """Clusters of neurons, in the order of their representatives.

    Attributes:
      centroids: their centres in feature space.
      shares: how much of every neuron belongs to each; rows sum to one.
      targets: the representative neuron of each, ascending.
    """

    centroids: Float[Array, "m d"]
    shares: Float[Array, "n m"]
    targets: Int[Array, " m"]


@with_promotion
def clusters(
    features: Float[Array, "n d"],
    m: int,
    kind: str,
    key: PRNGKeyArray,
    scores: Float[Array, " n"] | None = None,
) -> Clusters:
    r"""Groups n neurons around m centroids, each with a neuron of its own that represents it.

    * ``"kmeans"``: minimises :math:`\sum_i \min_j \|f_i - c_j\|_2^2` by Lloyd's iterations from the
      best of ten k-means++ starts (ott-jax).
    * ``"gaussian_mixture"``: the means of m Gaussians, each with one variance for all directions
      (there are more features than neurons: nothing more can be estimated), by expectation
      maximisation from the k-means solution (scikit-learn, on the host).

    The representatives are distinct neurons, assigned so that the sum of their squared distances to
    their centroids is least (optax's Hungarian algorithm): each is the neuron nearest to its
    centroid wherever these differ, and of equally near ones that of the higher score. Pure; works
    under `jax.jit`. The result depends on the key, and through it on the order of the neurons.

    Args:
      features: one row per neuron.
      m: number of centroids, at most n.
      kind: ``"kmeans"`` or ``"gaussian_mixture"``.
      key: of the k-means++ starts.
      scores: the importance of the neurons, for the choice between representatives.

    Returns:
      Centroids, shares and representatives.

    Raises:
      ValueError: for an unknown kind, or m outside 1 to n.
      ImportError: for ``"gaussian_mixture"`` without scikit-learn.

    References:
      Arthur and Vassilvitskii, `k-means++: The Advantages of Careful Seeding
      <https://dl.acm.org/doi/10.5555/1283383.1283494>`_, SODA 2007; Cuturi et al., `Optimal
      Transport Tools <https://arxiv.org/abs/2201.12324>`_, 2022; Pedregosa et al., `Scikit-learn
      <https://arxiv.org/abs/1201.0490>`_, JMLR 2011.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> found = clusters(jnp.array([[0.0], [0.2], [3.0]]), 2, "kmeans", jax.random.key(0))
      >>> found.centroids.round(1).tolist()
      [[0.10000000149011612], [3.0]]
    """
    require(kind)
    n = features.shape[0]
    if not 1 <= m <= n:
        raise ValueError(f"cannot find {m} centroids of {n} neurons")
    dtype = jnp.result_type(jnp.float32, features)
    features = features.astype(dtype)
    found = _k_means().k_means(features, m, n_init=_STARTS, rng=key)
    centroids = found.centroids.astype(dtype)
    shares = jax.nn.one_hot(found.assignment, m, dtype=dtype)
    if kind == "gaussian_mixture":
        shape = jax.ShapeDtypeStruct((n, m), jnp.float32)
        given = [x.astype(jnp.float32) for x in (features, centroids, shares)]
        shares = jax.pure_callback(_responsibilities, shape, *given, vmap_method="sequential")
        shares = shares.astype(dtype)
        total = shares.sum(0)[:, None]
        centroids = jnp.where(
            total > 0, shares.T @ features / jnp.where(total > 0, total, 1), centroids
        )
    distances = jnp.sum(jnp.square(centroids), 1)[:, None] - 2 * centroids @ features.T
    distances = distances + jnp.sum(jnp.square(features), 1)
    if scores is not None:
        largest = jnp.max(jnp.abs(scores))
        share = (scores / jnp.where(largest > 0, largest, 1)).astype(dtype)
        distances = distances - _PREFERENCE * jnp.mean(distances) * share
    cluster, neuron = optax.assignment.hungarian_algorithm(distances)
    targets = jnp.zeros((m,), neuron.dtype).at[cluster].set(neuron)
    order = jnp.argsort(targets)
    return Clusters(centroids[order], shares[:, order], targets[order])


def require(kind: str) -> None:
    """Raises where a kind is unknown, or a package that it needs is missing."""
    if kind not in CENTROIDS:
        raise ValueError(f"centroids must be one of {', '.join(CENTROIDS)}; got {kind!r}")
    if kind == "gaussian_mixture":
        _mixture()


def _responsibilities(features: Any, centroids: Any, shares: Any) -> np.ndarray:
    """Shares of the neurons in a Gaussian mixture fitted from clusters; NaN stays NaN."""
    x, means, start = (np.asarray(v, np.float64) for v in (features, centroids, shares))
    if not (np.isfinite(x).all() and np.isfinite(means).all()):
        return np.full(start.shape, np.nan, np.float32)
    n, m = start.shape
    # Within the clusters; the floor keeps single neurons and equal ones from a variance of zero.
    variance, floor = np.mean((x - start @ means) ** 2), 1e-3 * np.mean(x.var(0)) + 1e-12
    weights = (start.sum(0) + 1 / m) / (n + 1)
    mixture = _mixture()(
        m,
        covariance_type="spherical",
        reg_covar=floor,
        weights_init=weights / weights.sum(),
        means_init=means,
        precisions_init=np.full(m, 1 / (variance + floor)),
        init_params="random_from_data",  # cheap: every part of it is replaced
        random_state=0,
    )
    with warnings.catch_warnings():  # a limit of iterations is as good a mixture as any
        warnings.simplefilter("ignore")
        return mixture.fit(x).predict_proba(x).astype(np.float32)


@functools.cache
def _mixture() -> Any:
    """scikit-learn's Gaussian mixture, an optional dependency."""
    try:
        from sklearn.mixture import GaussianMixture
    except ImportError as error:
        raise ImportError(
            "centroids 'gaussian_mixture' needs scikit-learn: pip install 'ifjax[centroids]' (or "
            "take centroids='kmeans')"
        ) from error
    return GaussianMixture


@functools.cache
def _k_means() -> Any:
    """ott-jax's k-means, imported at its first use: its jaxopt warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("ott.tools.k_means")
