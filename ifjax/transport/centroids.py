"""Centroids of the neurons of a group, as targets in the place of its most important neurons."""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import warnings
from types import ModuleType
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ifjax.promotion import with_promotion

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


class Centroids(abc.ABC):
    """Targets that are points in feature space, each represented by a neuron of its own.

    Hashable, a frozen dataclass whose fields are its options. One's own is a class with an
    ``assign``, and nothing has to be registered: a spec takes the value itself.

    Attributes:
      random: whether a random key is wanted.
      in_numpy: False, a group is read by a jitted program.

    Example:
      >>> import dataclasses, ifjax, jax, jax.numpy as jnp
      >>> from ifjax.transport.centroids import Centroids
      >>> @dataclasses.dataclass(frozen=True)
      ... class Halves(Centroids):
      ...     def assign(self, features, m, key):
      ...         shares = jax.nn.one_hot(jnp.arange(len(features)) * m // len(features), m)
      ...         return shares.T @ features / shares.sum(0)[:, None], shares
      >>> params = {"w1": jnp.eye(4), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> maps = ifjax.transport_maps(params, graph.spec(0.5, targets=Halves(), solver="nearest"))
      >>> maps["w1"].targets.tolist()
      [0, 2]
    """

    random: ClassVar[bool] = True
    in_numpy: ClassVar[bool] = False

    @abc.abstractmethod
    def assign(
        self, features: Float[Array, "n d"], m: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, "m d"], Float[Array, "n m"]]:
        """The centroids, and how much of every neuron belongs to each.

        Args:
          features: one row per neuron, float32 or float64.
          m: number of centroids, at most n.
          key: a random key.

        Returns:
          Centroids, and shares whose rows sum to one.
        """

    def require(self) -> None:
        """Raises ImportError where a package that is needed is missing."""
        return

    @with_promotion
    def clusters(
        self,
        features: Float[Array, "n d"],
        m: int,
        key: PRNGKeyArray,
        scores: Float[Array, " n"] | None = None,
    ) -> Clusters:
        """Groups n neurons around m centroids, each with a neuron of its own that represents it.

        The representatives are distinct neurons, assigned so that the sum of their squared
        distances to their centroids is least (optax's Hungarian algorithm): each is the neuron
        nearest to its centroid wherever these differ, and of equally near ones that of the higher
        score. Pure; works under `jax.jit`. The result depends on the key, and through it on the
        order of the neurons.

        Args:
          features: one row per neuron.
          m: number of centroids, at most n.
          key: a random key.
          scores: the importance of the neurons, for the choice between representatives.

        Returns:
          Centroids, shares and representatives.

        Raises:
          ValueError: for m outside 1 to n.
          ImportError: as `require`.
        """
        self.require()
        n = features.shape[0]
        if not 1 <= m <= n:
            raise ValueError(f"cannot find {m} centroids of {n} neurons")
        dtype = jnp.result_type(jnp.float32, features)
        features = features.astype(dtype)
        centroids, shares = self.assign(features, m, key)
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


@dataclasses.dataclass(frozen=True)
class KMeans(Centroids):
    r"""Centroids of least :math:`\sum_i \min_j \|f_i - c_j\|_2^2`, by Lloyd's iterations (ott-jax).

    Attributes:
      starts: of k-means++; the best result is taken.

    References:
      Arthur and Vassilvitskii, `k-means++: The Advantages of Careful Seeding
      <https://dl.acm.org/doi/10.5555/1283383.1283494>`_, SODA 2007; Cuturi et al., `Optimal
      Transport Tools <https://arxiv.org/abs/2201.12324>`_, 2022.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([[0.0], [0.2], [3.0]])
      >>> KMeans(starts=2).clusters(x, 2, jax.random.key(0)).targets.tolist()
      [0, 2]
    """

    starts: int = 10

    def __post_init__(self) -> None:
        """Checks the options.

        Raises:
          ValueError: for less than one start.
        """
        if self.starts < 1:
            raise ValueError(f"starts must be at least 1; got {self.starts!r}")

    def assign(
        self, features: Float[Array, "n d"], m: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, "m d"], Float[Array, "n m"]]:
        """The centroids, and the cluster of every neuron."""
        found = _k_means().k_means(features, m, n_init=self.starts, rng=key)
        shares = jax.nn.one_hot(found.assignment, m, dtype=features.dtype)
        return found.centroids.astype(features.dtype), shares


@dataclasses.dataclass(frozen=True)
class GaussianMixture(KMeans):
    """The means of m Gaussians, each with one variance for all directions.

    There are more features than neurons: nothing more can be estimated. By expectation maximisation
    from the solution of `KMeans` (scikit-learn, on the host).

    Attributes:
      starts: of k-means++.

    References:
      Pedregosa et al., `Scikit-learn <https://arxiv.org/abs/1201.0490>`_, JMLR 2011.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.array([[0.0], [0.2], [3.0]])
      >>> GaussianMixture().clusters(x, 2, jax.random.key(0)).targets.tolist()
      [0, 2]
    """

    def assign(
        self, features: Float[Array, "n d"], m: int, key: PRNGKeyArray
    ) -> tuple[Float[Array, "m d"], Float[Array, "n m"]]:
        """The means, and the responsibilities of the Gaussians."""
        centroids, shares = super().assign(features, m, key)
        shape = jax.ShapeDtypeStruct(shares.shape, jnp.float32)
        given = [x.astype(jnp.float32) for x in (features, centroids, shares)]
        shares = jax.pure_callback(_responsibilities, shape, *given, vmap_method="sequential")
        shares = shares.astype(features.dtype)
        total = shares.sum(0)[:, None]
        means = shares.T @ features / jnp.where(total > 0, total, 1)
        return jnp.where(total > 0, means, centroids), shares

    def require(self) -> None:
        """Raises ImportError without scikit-learn."""
        _mixture()


def _responsibilities(features: Array, centroids: Array, shares: Array) -> np.ndarray:
    """Shares of the neurons in a Gaussian mixture fitted from clusters; NaN stays NaN."""
    x, means, start = (np.asarray(v, np.float64) for v in (features, centroids, shares))
    if not (np.isfinite(x).all() and np.isfinite(means).all()):
        return np.full(start.shape, np.nan, np.float32)
    n, m = start.shape
    # Within the clusters; the floor keeps single neurons and equal ones from a variance of zero.
    variance, floor = np.mean((x - start @ means) ** 2), 1e-3 * np.mean(x.var(0)) + 1e-12
    weights = (start.sum(0) + 1 / m) / (n + 1)
    mixture = _mixture().GaussianMixture(
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
def _mixture() -> ModuleType:
    """scikit-learn's Gaussian mixtures, an optional dependency."""
    try:
        return importlib.import_module("sklearn.mixture")
    except ImportError as error:
        raise ImportError(
            "centroids 'gaussian_mixture' needs scikit-learn: pip install 'ifjax[centroids]' (or "
            "take centroids='kmeans')"
        ) from error


@functools.cache
def _k_means() -> ModuleType:
    """ott-jax's k-means, imported at its first use: its jaxopt warns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("ott.tools.k_means")
