"""What the neurons of a group are fused into: some of themselves, or centroids; by name."""

from __future__ import annotations

import abc
import dataclasses
from typing import ClassVar, TypeAlias

from jaxtyping import Float, Int

from ifjax.namespace import AnyArray, descending
from ifjax.transport.centroids import Centroids, GaussianMixture, KMeans

CENTROIDS = "centroids"  # what ``targets=`` is called where ``centroids=`` says which


class Neurons(abc.ABC):
    """Targets that are neurons of the group, by their scores.

    Hashable, a frozen dataclass whose fields are its options. One's own is a class with a
    ``first``, and nothing has to be registered: a spec takes the value itself.

    Attributes:
      random: False, no random key is drawn.
      in_numpy: whether scores may be arrays of numpy; else a group is read by a jitted program.

    Example:
      >>> import dataclasses, ifjax, jax.numpy as jnp
      >>> from ifjax.transport.targets import Neurons
      >>> @dataclasses.dataclass(frozen=True)
      ... class Bottom(Neurons):
      ...     def first(self, scores, k):
      ...         return jnp.argsort(scores)[:k]
      >>> params = {"w1": jnp.diag(jnp.array([4.0, 3, 2, 1])), "w2": jnp.ones((4, 2))}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> spec = graph.spec(0.5, targets=Bottom(), method="prune")
      >>> ifjax.transport_maps(params, spec)["w1"].targets.tolist()
      [2, 3]
    """

    random: ClassVar[bool] = False
    in_numpy: ClassVar[bool] = False

    @abc.abstractmethod
    def first(self, scores: Float[AnyArray, " n"], k: int) -> Int[AnyArray, " k"]:
        """The k neurons that go before all others, the first one first.

        Args:
          scores: one per neuron.
          k: how many; the targets of a group are the first m, in ascending order of their index.
        """

    def require(self) -> None:
        """Raises ImportError where a package that is needed is missing."""
        return


@dataclasses.dataclass(frozen=True)
class Top(Neurons):
    """The neurons of highest score; of equal scores the first ones.

    Example:
      >>> import jax.numpy as jnp
      >>> Top().first(jnp.array([0.5, 2.0, 0.5, 1.0]), 3).tolist()
      [1, 3, 0]
    """

    in_numpy: ClassVar[bool] = True

    def first(self, scores: Float[AnyArray, " n"], k: int) -> Int[AnyArray, " k"]:
        """The k highest scores, the highest first."""
        return descending(scores)[:k]


Targets: TypeAlias = Neurons | Centroids

TARGETS: dict[str, type[Targets]] = {
    "top": Top,
    "kmeans": KMeans,
    "gaussian_mixture": GaussianMixture,
}


def names() -> list[str]:
    """What ``targets=`` may be: names of neurons, or ``"centroids"``.

    >>> names()
    ['top', 'centroids']
    """
    return [name for name, known in TARGETS.items() if issubclass(known, Neurons)] + [CENTROIDS]


def centroid_names() -> list[str]:
    """What ``centroids=`` may be.

    >>> centroid_names()
    ['kmeans', 'gaussian_mixture']
    """
    return [name for name, known in TARGETS.items() if issubclass(known, Centroids)]


def targets_of(given: str | Targets, centroids: str = "kmeans") -> Targets:
    """The targets of a name; targets as a value are themselves.

    Args:
      given: targets, one of `names`, or of `centroid_names`.
      centroids: one of `centroid_names`, where ``given`` is ``"centroids"``.

    Raises:
      ValueError: for an unknown name.
      TypeError: for anything but a name or targets.

    Example:
      >>> targets_of("top"), targets_of("centroids", "kmeans")
      (Top(), KMeans(starts=10))
    """
    if isinstance(given, Targets):
        return given
    if not isinstance(given, str):
        raise TypeError(f"targets: expected a name or targets as a value, got {given!r}")
    name = centroids if given == CENTROIDS else given
    if name not in TARGETS:
        raise ValueError(
            f"unknown targets {name!r}; known: {', '.join(TARGETS)} (targets of your own are given "
            "as a value, or registered in TARGETS)"
        )
    return TARGETS[name]()
