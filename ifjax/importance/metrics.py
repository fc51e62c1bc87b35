"""Importance: one score per neuron of a group.

A metric reads a group as its *member matrices*: one ``[n, k]`` matrix per producer and consumer
kernel, whose row ``i`` holds every weight of neuron ``i`` in that kernel; for the metrics that need
more than weights, what `ifjax.Stats` holds in their place. It scores every member on its own; the
scores of the members are then reduced to one, and normalised over the group, as in the group
importance of Torch-Pruning (Fang et al., `DepGraph: Towards Any Structural Pruning
<https://arxiv.org/abs/2301.12900>`_, CVPR 2023), which the Intra-Fusion reference uses.

`IMPORTANCES` maps names to metrics; a further metric joins by an entry in it.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ifjax.promotion import with_promotion

Members: TypeAlias = Sequence[Float[Array, "n _"]]
# Of an array, and the axis along which the neurons lie in it: the others are reduced where they
# are, for to transpose it takes longer.
Importance: TypeAlias = Callable[[Float[Array, "..."], int], Float[Array, " n"]]

REDUCTIONS = ("mean", "sum", "max", "first")
NORMALIZATIONS = ("mean", "max", "sum", "none")
# What a metric reads besides the weights: the field of `ifjax.Stats` that holds it.
NEEDS = {"taylor": "gradients", "fisher": "fisher", "chip": "chip"}


@with_promotion
def score(
    name: str,
    members: Sequence[Float[Array, "..."]],
    key: PRNGKeyArray | None = None,
    reduction: str = "mean",
    normalization: str = "mean",
    axes: Sequence[int] | None = None,
) -> Float[Array, " n"]:
    r"""Scores the neurons of a group with the metric of the given name.

    With :math:`s^{(k)}_i` what the metric says of neuron i in member k of K,

    .. math::
        s_i = \frac{1}{K} \sum_k s^{(k)}_i \;\text{(or the sum, maximum, first)}, \qquad
        \text{score}_i = s_i \Big/ \frac{1}{n} \sum_l s_l \;\text{(or maximum, sum, 1)}.

    ============  =============================================================  =================
    name          score of a row                                                 members
    ============  =============================================================  =================
    ``l1``        sum of absolute weights                                        kernels
    ``l2``        sum of squared weights                                         kernels
    ``linf``      largest absolute weight                                        kernels
    ``lamp``      `lamp`: the sum of squares relative to all larger ones         kernels
    ``taylor``    absolute sum                                                   weights x gradients
    ``bn_scale``  mean of absolute values                                        batch norm scales
    ``fisher``    as it is                                                       squared gradients
    ``chip``      as it is                                                       independence
    ``random``    uniform in [0, 1), one draw per neuron, not normalised         kernels
    ============  =============================================================  =================

    Args:
      name: a key of `IMPORTANCES`, or ``"random"``, which needs a key.
      members: one ``[n, k]`` matrix per member, rows are neurons; the first one is the first
        producer.
      key: a random key, for ``"random"``.
      reduction: over the members: ``"mean"``, ``"sum"``, ``"max"`` or ``"first"``.
      normalization: what the scores are divided by: their ``"mean"``, ``"max"``, ``"sum"``, or
        ``"none"``. It does not change the order within a group, but what scores of several groups
        mean beside each other.
      axes: the axis of the neurons in every member, which may then have any shape.

    Returns:
      One score per neuron; the neurons of highest score are the ones to keep. All zero where every
      weight is zero. In float32 (float64 for float64 members).

    Raises:
      ValueError: for an unknown name, reduction or normalization, no members, members that disagree
        on ``n``, or ``"random"`` without a key.

    References:
      ``taylor``: Molchanov et al., `Importance Estimation for Neural Network Pruning
      <https://arxiv.org/abs/1906.10771>`_, CVPR 2019; ``bn_scale``: Liu et al., `Learning Efficient
      Convolutional Networks through Network Slimming <https://arxiv.org/abs/1708.06519>`_, ICCV
      2017. For the others see `magnitude`, `lamp`, `ifjax.collect_stats`.

    Example:
      >>> import jax.numpy as jnp
      >>> score("l1", [jnp.array([[1.0, -2.0], [0.5, 0.5]])])
      Array([1.5, 0.5], dtype=float32)
    """
    if name != "random" and name not in IMPORTANCES:
        raise ValueError(f"unknown importance {name!r}; known: {', '.join(names())}")
    axes = _checked_axes(members, axes)
    members = [x.astype(_dtype(x)) for x in members]
    if name == "random":
        if key is None:
            raise ValueError("importance 'random' draws its scores: pass key=jax.random.key(seed)")
        return jax.random.uniform(key, (members[0].shape[axes[0]],), _dtype(*members))
    scores = [IMPORTANCES[name](x, axis) for x, axis in zip(members, axes, strict=True)]
    return normalise(reduce(scores, reduction), normalization)


def names() -> list[str]:
    """The names of all metrics.

    >>> names()
    ['bn_scale', 'chip', 'fisher', 'l1', 'l2', 'lamp', 'linf', 'random', 'taylor']
    """
    return sorted([*IMPORTANCES, "random"])


def magnitude(members: Members, p: float | int) -> Float[Array, " n"]:
    r"""Mean over the members of each neuron's p-th power sum, relative to the average neuron.

    .. math::
        s_i = \frac{1}{K} \sum_{k=1}^{K} \sum_j |W^{(k)}_{ij}|^p, \qquad
        \text{score}_i = s_i \Big/ \frac{1}{n} \sum_l s_l

    and :math:`\max_j |W^{(k)}_{ij}|` in the place of the power sum for ``p = inf``. Note that no
    p-th root is taken: ``p = 2`` is the sum of squares, as in the Intra-Fusion reference.

    Args:
      members: one ``[n, k]`` matrix per producer and consumer kernel, rows are neurons.
      p: the power, positive or ``inf``.

    Returns:
      Scores whose mean is one, in float32 (float64 for float64 members); all zero where every
      weight is zero.

    Raises:
      ValueError: for a power that is not positive, no members, or members that disagree on ``n``.

    References:
      Theus et al., `Towards Meta-Pruning via Optimal Transport
      <https://arxiv.org/abs/2402.07839>`_, ICLR 2024, section 3.

    Example:
      >>> import jax.numpy as jnp
      >>> magnitude([jnp.array([[1.0], [3.0]]), jnp.array([[1.0, 1.0], [0.0, 2.0]])], p=2)
      Array([0.375, 1.625], dtype=float32)
    """
    if not p > 0:
        raise ValueError(f"magnitude needs p > 0 or inf, got p = {p}")
    _checked_axes(members)
    return normalise(reduce([_power_sums(rows, 0, p) for rows in members], "mean"), "mean")


def lamp(rows: Float[Array, "..."], axis: int = 0) -> Float[Array, " n"]:
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
    squares = _power_sums(rows, axis, 2)
    ascending = jnp.sort(squares)
    larger = jnp.cumsum(ascending[::-1])[::-1][jnp.searchsorted(ascending, squares)]
    return jnp.where(squares > 0, squares / jnp.where(squares > 0, larger, 1), 0)


def reduce(scores: Sequence[Float[Array, " n"]], reduction: str) -> Float[Array, " n"]:
    """The scores of several members as one.

    Args:
      scores: of every member, the first producer's first.
      reduction: ``"mean"``, ``"sum"``, ``"max"`` or ``"first"``.

    Returns:
      One score per neuron.

    Raises:
      ValueError: for an unknown reduction.

    Example:
      >>> import jax.numpy as jnp
      >>> reduce([jnp.array([1.0, 2.0]), jnp.array([3.0, 0.0])], "max")
      Array([3., 2.], dtype=float32)
    """
    match reduction:
        case "mean":
            return sum(scores[1:], scores[0]) / len(scores)
        case "sum":
            return sum(scores[1:], scores[0])
        case "max":
            return functools.reduce(jnp.maximum, scores)
        case "first":
            return scores[0]
    raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")


def normalise(scores: Float[Array, " n"], normalization: str) -> Float[Array, " n"]:
    """The scores relative to their mean, maximum or sum, or as they are.

    Args:
      scores: one per neuron, not negative.
      normalization: ``"mean"``, ``"max"``, ``"sum"`` or ``"none"``.

    Returns:
      The scores; all zero ones stay so.

    Raises:
      ValueError: for an unknown normalization.

    Example:
      >>> import jax.numpy as jnp
      >>> normalise(jnp.array([1.0, 3.0]), "sum")
      Array([0.25, 0.75], dtype=float32)
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"normalization must be one of {', '.join(NORMALIZATIONS)}; got {normalization!r}"
        )
    if normalization == "none":
        return scores
    unit = getattr(jnp, normalization)(scores)
    return scores / jnp.where(unit > 0, unit, 1)


def _power_sums(x: Float[Array, "..."], axis: int, p: float | int) -> Float[Array, " n"]:
    """The sum of |w|^p over what belongs to each neuron, or its largest |w| for p = inf."""
    weights, others = jnp.abs(x.astype(_dtype(x))), _others(x, axis)
    if math.isinf(p):
        return jnp.max(weights, axis=others, initial=0)
    return jnp.sum(weights if p == 1 else weights**p, axis=others)


def _others(x: Array, axis: int) -> tuple[int, ...]:
    """All axes but one."""
    return tuple(i for i in range(x.ndim) if i != axis)


def _first(x: Float[Array, "..."], axis: int) -> Float[Array, " n"]:
    """The first number of each neuron."""
    return jnp.moveaxis(x, axis, 0).reshape(x.shape[axis], -1)[:, 0]


def _checked_axes(members: Sequence[Array], axes: Sequence[int] | None = None) -> Sequence[int]:
    """The axes of the neurons; refuses no members, or members of different numbers of neurons."""
    if not members:
        raise ValueError("importance needs at least one member matrix [n, k], got none")
    shapes = [tuple(x.shape) for x in members]
    if axes is None:
        axes = [0] * len(members)
        if any(len(shape) != 2 for shape in shapes):
            raise ValueError(f"member matrices must all be [n, k] with one n, got shapes {shapes}")
    if len({shape[axis] for shape, axis in zip(shapes, axes, strict=True)}) > 1:
        raise ValueError(f"member matrices must all be [n, k] with one n, got shapes {shapes}")
    return axes


def _dtype(*arrays: Array) -> jnp.dtype:
    """At least float32."""
    return jnp.result_type(jnp.float32, *arrays)


IMPORTANCES: dict[str, Importance] = {
    "l1": lambda x, axis: _power_sums(x, axis, 1),
    "l2": lambda x, axis: _power_sums(x, axis, 2),
    "linf": lambda x, axis: _power_sums(x, axis, math.inf),
    "lamp": lamp,
    "taylor": lambda x, axis: jnp.abs(jnp.sum(x, axis=_others(x, axis))),
    "bn_scale": lambda x, axis: jnp.mean(jnp.abs(x), axis=_others(x, axis)),
    "fisher": _first,
    "chip": _first,
}
