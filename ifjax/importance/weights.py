"""Metrics that need nothing but the parameters: magnitudes, batch norm scales, and chance."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from ifjax.importance.base import GroupMetric, Members, Metric, Reads
from ifjax.namespace import AnyArray, namespace, others, total, wide


@dataclasses.dataclass(frozen=True)
class L1(Metric):
    """The sum of the absolute weights of a neuron.

    Example:
      >>> import jax.numpy as jnp
      >>> L1().member(jnp.array([[1.0, -2.0], [0.5, 0.5]]), axis=0)
      Array([3., 1.], dtype=float32)
    """

    in_numpy: ClassVar[bool] = True

    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The sums of absolute weights."""
        return power_sums(x, axis, 1)


@dataclasses.dataclass(frozen=True)
class L2(Metric):
    """The sum of the squared weights of a neuron; no root is taken.

    Example:
      >>> import jax.numpy as jnp
      >>> L2().member(jnp.array([[1.0, -2.0], [0.5, 0.5]]), axis=0)
      Array([5. , 0.5], dtype=float32)
    """

    in_numpy: ClassVar[bool] = True

    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The sums of squares."""
        return power_sums(x, axis, 2)


@dataclasses.dataclass(frozen=True)
class LInf(Metric):
    """The largest absolute weight of a neuron.

    Example:
      >>> import jax.numpy as jnp
      >>> LInf().member(jnp.array([[1.0, -2.0], [0.5, 0.5]]), axis=0)
      Array([2. , 0.5], dtype=float32)
    """

    in_numpy: ClassVar[bool] = True

    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The largest absolute weights."""
        return power_sums(x, axis, math.inf)


@dataclasses.dataclass(frozen=True)
class Lamp(Metric):
    """Layer-adaptive magnitude of whole neurons, see `ifjax.importance.lamp`."""

    in_numpy: ClassVar[bool] = True

    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The sums of squares relative to all that are not smaller."""
        return lamp(x, axis)


@dataclasses.dataclass(frozen=True)
class BNScale(Metric):
    """The mean absolute scale of a neuron's batch norms.

    References:
      Liu et al., `Learning Efficient Convolutional Networks through Network Slimming
      <https://arxiv.org/abs/1708.06519>`_, ICCV 2017.

    Example:
      >>> import jax.numpy as jnp
      >>> BNScale().member(jnp.array([-2.0, 0.5]), axis=0)
      Array([2. , 0.5], dtype=float32)
    """

    reads: ClassVar[Reads] = "norm_scales"
    in_numpy: ClassVar[bool] = True

    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The mean absolute values."""
        return abs(x).mean(others(x, axis))


@dataclasses.dataclass(frozen=True)
class Random(GroupMetric):
    """Uniform in [0, 1), one draw per neuron, neither reduced nor normalised.

    Attributes:
      seed: None to draw from the group's key, that of ``Method.seed``; another number for other
        draws from the same key, while k-means starts where it did.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> one, two = (Random(seed).score([jnp.ones((3, 2))], [0], jax.random.key(0), "mean", "mean")
      ...             for seed in (None, 1))
      >>> one.shape, bool((one == two).any())
      ((3,), False)
    """

    reads: ClassVar[Reads] = "nothing"
    random: ClassVar[bool] = True
    in_numpy: ClassVar[bool] = True

    seed: int | None = None

    def score(
        self,
        members: Members,
        axes: Sequence[int],
        key: PRNGKeyArray | None,
        reduction: str,
        normalization: str,
    ) -> Float[AnyArray, " n"]:
        """The draws.

        Raises:
          ValueError: without a key.
        """
        del reduction, normalization
        if key is None:
            raise ValueError("importance 'random' draws its scores: pass key=jax.random.key(seed)")
        if self.seed is not None:
            # Apart from what else is drawn from the group's key.
            key = jax.random.fold_in(jax.random.fold_in(key, 2), self.seed)
        drawn = jax.random.uniform(key, (members[0].shape[axes[0]],), wide(*members))
        return drawn if namespace(*members) is jnp else np.asarray(drawn)


def lamp(rows: Float[AnyArray, ...], axis: int = 0) -> Float[AnyArray, " n"]:
    r"""Layer-adaptive magnitude of whole neurons.

    The paper scores a weight by its square relative to the squares of all weights of its layer that
    are not smaller. Here a neuron takes the place of a weight, its squared norm
    :math:`q_i = \sum_j W_{ij}^2` that of the square, and a member matrix that of the layer:

    .. math::
        s_i = q_i \Big/ \sum_{l : \, q_l \ge q_i} q_l

    The largest neuron scores one. Within one member the order is that of ``l2``; members, and
    groups, become comparable without a normalisation (``normalization="none"``). Neurons of equal
    norm score equally, where the paper breaks ties by position.

    Args:
      rows: the weights of a member, rows are neurons.
      axis: along which the neurons lie, where they are not the rows.

    Returns:
      Scores in [0, 1]; 0 where a neuron's weights are all zero.

    References:
      Lee et al., `Layer-adaptive sparsity for the Magnitude-based Pruning
      <https://arxiv.org/abs/2010.07611>`_, ICLR 2021, equation (4).

    Example:
      >>> import jax.numpy as jnp
      >>> lamp(jnp.array([[2.0], [1.0], [0.0]]))
      Array([1. , 0.2, 0. ], dtype=float32)
    """
    squares = power_sums(rows, axis, 2)
    xp = namespace(squares)
    ascending = xp.sort(squares)
    larger = xp.cumsum(ascending[::-1])[::-1][xp.searchsorted(ascending, squares)]
    return xp.where(squares > 0, squares / xp.where(squares > 0, larger, 1), 0)


def power_sums(x: Float[AnyArray, ...], axis: int, p: float | int) -> Float[AnyArray, " n"]:
    """The sum of |w|^p over what belongs to each neuron, or its largest |w| for p = inf."""
    weights, rest = abs(x.astype(wide(x), copy=False)), others(x, axis)
    if math.isinf(p):
        return weights.max(rest, initial=0)
    return total(weights if p == 1 else weights**p, rest)
