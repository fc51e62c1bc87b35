"""Metrics that need what a network does on data: what `ifjax.collect_stats` measures."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from jaxtyping import Float

from ifjax.importance.base import GroupMetric, Metric, Reads
from ifjax.namespace import AnyArray, namespace, others, total


@dataclasses.dataclass(frozen=True)
class Taylor(Metric):
    r"""What the loss changes by, to first order, where a neuron's weights are set to zero.

    .. math:: \Big| \sum_j w_{ij} \, \partial L / \partial w_{ij} \Big|

    References:
      Molchanov et al., `Importance Estimation for Neural Network Pruning
      <https://arxiv.org/abs/1906.10771>`_, CVPR 2019.

    Example:
      >>> import jax.numpy as jnp
      >>> Taylor().member(jnp.array([[1.0, -3.0], [0.5, 0.5]]), axis=0)
      Array([2., 1.], dtype=float32)
    """

    reads: ClassVar[Reads] = "gradients"
    in_numpy: ClassVar[bool] = True

    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The absolute sums of weights times gradients."""
        return abs(total(x, others(x, axis)))


@dataclasses.dataclass(frozen=True)
class Fisher(Metric):
    """Squared derivatives of the loss with respect to a mask on the neurons.

    References:
      Liu et al., `Group Fisher Pruning for Practical Network Compression
      <https://arxiv.org/abs/2108.00708>`_, ICML 2021; see `ifjax.collect_stats`.

    Example:
      >>> import jax.numpy as jnp
      >>> Fisher().member(jnp.array([0.5, 2.0]), axis=0)
      Array([0.5, 2. ], dtype=float32)
    """

    reads: ClassVar[Reads] = "fisher"
    in_numpy: ClassVar[bool] = True

    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The statistic as it is."""
        return _first(x, axis)


@dataclasses.dataclass(frozen=True)
class Chip(Metric):
    """What a neuron's feature maps add to the nuclear norm of the group's.

    References:
      Sui et al., `CHIP: CHannel Independence-based Pruning for Compact Neural Networks
      <https://arxiv.org/abs/2110.13981>`_, NeurIPS 2021; see `ifjax.collect_stats`.

    Example:
      >>> import jax.numpy as jnp
      >>> Chip().member(jnp.array([0.5, 2.0]), axis=0)
      Array([0.5, 2. ], dtype=float32)
    """

    reads: ClassVar[Reads] = "chip"
    in_numpy: ClassVar[bool] = True

    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The statistic as it is."""
        return _first(x, axis)


def _first(x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
    """The first number of each neuron."""
    return namespace(x).moveaxis(x, axis, 0).reshape(x.shape[axis], -1)[:, 0]


@dataclasses.dataclass(frozen=True)
class Reconstruction(GroupMetric):
    """What the other neurons cannot make up for: the choice of `ifjax.compress`, no score.

    A neuron's worth depends on which others are left, so that there is no score of each, and none
    without inputs: `ifjax.fuse_params` refuses it.

    Attributes:
      direction: ``"backward"`` removes neuron after neuron, ``"forward"`` takes neuron after
        neuron. Backward is a little better where many neurons stay; forward is faster, and can be
        better too, where few do.

    Raises:
      ValueError: for another direction.

    Example:
      >>> import ifjax, jax, jax.numpy as jnp
      >>> from ifjax.importance import Reconstruction
      >>> x, params = jax.random.normal(jax.random.key(0), (64, 4)), {"a": jnp.eye(4, 8)}
      >>> apply = lambda p, x: (x @ p["a"]) @ p["b"]
      >>> params["b"] = jnp.ones((8, 2))
      >>> graph = ifjax.trace(apply, params, x)
      >>> spec = graph.spec(0.5, importance=Reconstruction("forward"))
      >>> small, report = ifjax.compress(apply, params, spec, [x])
      >>> report.kept["a"].tolist()
      [0, 1, 2, 3]

    References:
      Hassibi & Stork, `Second order derivatives for network pruning: Optimal Brain Surgeon
      <https://proceedings.neurips.cc/paper/1992/hash/303ed4c69846ab36c2904d3ba8573050-Abstract.html>`_,
      NeurIPS 1992; see `ifjax.reconstruction.choice`.
    """

    reads: ClassVar[Reads] = "nothing"
    in_numpy: ClassVar[bool] = True

    direction: str = "backward"

    def __post_init__(self) -> None:
        """Refuses what is no direction."""
        if self.direction not in ("backward", "forward"):
            raise ValueError(f"direction: expected 'backward' or 'forward', got {self.direction!r}")

    def score(self, *args: object, **kwargs: object) -> Float[AnyArray, " n"]:
        """Raises ValueError: there are no scores."""
        raise ValueError(NO_SCORES)


NO_SCORES = (
    "importance 'reconstruction' chooses neurons by what the others can make up for on inputs: "
    "call small, report = ifjax.compress(apply_fn, params, spec, batches); or choose another one"
)
