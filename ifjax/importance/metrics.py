"""Importance: one score per neuron of a group.

A metric reads a group as its *member matrices*: one ``[n, k]`` matrix per producer and consumer
kernel, whose row ``i`` holds every weight of neuron ``i`` in that kernel; for the metrics that need
more than weights, what `ifjax.Stats` holds in their place. It scores every member on its own; the
scores of the members are then reduced to one, and normalised over the group, as in the group
importance of Torch-Pruning (Fang et al., `DepGraph: Towards Any Structural Pruning
<https://arxiv.org/abs/2301.12900>`_, CVPR 2023), which the Intra-Fusion reference uses.

A metric is a value, `L1()`; `IMPORTANCES` maps names to their classes, which is what makes
``importance="l1"`` mean ``importance=L1()`` and a spec of it JSON. A metric of one's own is
a class, see `Metric`; an entry gives it a name.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float, PRNGKeyArray

from ifjax.importance.base import GroupMetric, Members, check_shape, normalise, reduce
from ifjax.importance.data import Chip, Fisher, Reconstruction, Taylor
from ifjax.importance.weights import L1, L2, BNScale, Lamp, LInf, Random, power_sums
from ifjax.namespace import AnyArray, wide
from ifjax.promotion import with_promotion

IMPORTANCES: dict[str, type[GroupMetric]] = {
    "l1": L1,
    "l2": L2,
    "linf": LInf,
    "lamp": Lamp,
    "bn_scale": BNScale,
    "taylor": Taylor,
    "fisher": Fisher,
    "chip": Chip,
    "random": Random,
    "reconstruction": Reconstruction,
}


@with_promotion
def score(
    metric: str | GroupMetric,
    members: Members,
    key: PRNGKeyArray | None = None,
    reduction: str = "mean",
    normalization: str = "mean",
    axes: Sequence[int] | None = None,
) -> Float[AnyArray, " n"]:
    r"""Scores the neurons of a group with a metric.

    With :math:`s^{(k)}_i` what the metric says of neuron i in member k of K,

    .. math::
        s_i = \frac{1}{K} \sum_k s^{(k)}_i \;\text{(or the sum, maximum, first)}, \qquad
        \text{score}_i = s_i \Big/ \frac{1}{n} \sum_l s_l \;\text{(or maximum, sum, 1)}.

    ============  ===========  ================================================  =================
    name          value        score of a row                                    members
    ============  ===========  ================================================  =================
    ``l1``        `L1()`       sum of absolute weights                           kernels
    ``l2``        `L2()`       sum of squared weights                            kernels
    ``linf``      `LInf()`     largest absolute weight                           kernels
    ``lamp``      `Lamp()`     `lamp`: sum of squares relative to all larger     kernels
    ``taylor``    `Taylor()`   absolute sum                                      weights, gradients
    ``bn_scale``  `BNScale()`  mean of absolute values                           batch norm scales
    ``fisher``    `Fisher()`   as it is                                          squared gradients
    ``chip``      `Chip()`     as it is                                          independence
    ``random``    `Random()`   uniform in [0, 1), a draw each, not normalised    kernels
    ============  ===========  ================================================  =================

    Args:
      metric: a metric, or a key of `IMPORTANCES`.
      members: one ``[n, k]`` matrix per member, rows are neurons; the first one is the first
        producer.
      key: a random key, for metrics that draw.
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
      TypeError: for anything but a name or a metric.

    Example:
      >>> import jax.numpy as jnp
      >>> score("l1", [jnp.array([[1.0, -2.0], [0.5, 0.5]])])
      Array([1.5, 0.5], dtype=float32)
    """
    metric = metric_of(metric)
    axes = _checked_axes(members, axes)
    members = [x.astype(wide(x), copy=False) for x in members]
    scores = metric.score(members, axes, key, reduction, normalization)
    check_shape(metric, scores, members[0].shape[axes[0]])
    return scores


def metric_of(given: str | GroupMetric) -> GroupMetric:
    """The metric of a name; a metric is itself.

    Raises:
      ValueError: for an unknown name.
      TypeError: for anything else.

    Example:
      >>> metric_of("bn_scale").reads
      'norm_scales'
    """
    if isinstance(given, GroupMetric):
        return given
    if not isinstance(given, str):
        raise TypeError(f"importance: expected a name or an ifjax.importance.Metric, got {given!r}")
    if given not in IMPORTANCES:
        raise ValueError(
            f"unknown importance {given!r}; known: {', '.join(names())} (a metric of your own is "
            "given as a value, or registered in ifjax.importance.IMPORTANCES)"
        )
    return IMPORTANCES[given]()


def statistic_of(given: str | GroupMetric) -> str | None:
    """The field of `ifjax.Stats` that a metric needs; None for others, and for unknown names.

    >>> statistic_of("taylor"), statistic_of("l1")
    ('gradients', None)
    """
    known = isinstance(given, GroupMetric) or given in IMPORTANCES
    return metric_of(given).statistic if known else None


def names() -> list[str]:
    """The names of all metrics.

    >>> names()
    ['bn_scale', 'chip', 'fisher', 'l1', 'l2', 'lamp', 'linf', 'random', 'reconstruction', 'taylor']
    """
    return sorted(IMPORTANCES)


def magnitude(members: Members, p: float | int) -> Float[AnyArray, " n"]:
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
    return normalise(reduce([power_sums(rows, 0, p) for rows in members], "mean"), "mean")


def _checked_axes(members: Members, axes: Sequence[int] | None = None) -> Sequence[int]:
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
