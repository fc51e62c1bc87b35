"""What an importance metric is: a value that scores the neurons of a group."""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import ClassVar, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, PRNGKeyArray, PyTree

from ifjax.namespace import AnyArray, namespace

Members: TypeAlias = Sequence[Float[AnyArray, "..."]]
Reads: TypeAlias = Literal["weights", "norm_scales", "gradients", "fisher", "chip", "nothing"]

REDUCTIONS = ("mean", "sum", "max", "first")
NORMALIZATIONS = ("mean", "max", "sum", "none")
# What a metric may read that is a field of `ifjax.Stats`, measured on data.
STATISTICS = ("gradients", "fisher", "chip")


class GroupMetric(abc.ABC):
    """A metric that scores the neurons of a group on all its members at once.

    Most metrics score one member after another and are a `Metric`. A metric is hashable, so that a
    spec can hold it: a frozen dataclass, its options are its fields.

    Attributes:
      reads: what the members hold, one array per

        * ``"weights"``: producer or consumer kernel of the group, batch norms folded in unless
          ``Method.scores_on`` says ``"raw"``. In ``order="sequential"`` earlier groups have changed
          them; everything else is of the parameters as they were given.
        * ``"norm_scales"``: batch norm of the group, its scale.
        * ``"gradients"``: kernel, its weights times their gradients.
        * ``"fisher"``, ``"chip"``: group, what this field of `ifjax.Stats` says of every neuron.
        * ``"nothing"``: kernel; only their shapes count.
      random: whether scores are drawn, from the key.
      in_numpy: whether members may be arrays of numpy, and scores then are; else a metric is
        jitted, for every shape of a group.
    """

    reads: ClassVar[Reads] = "weights"
    random: ClassVar[bool] = False
    in_numpy: ClassVar[bool] = False

    @property
    def statistic(self) -> str | None:
        """The field of `ifjax.Stats` that the metric needs; None where the parameters are all."""
        return self.reads if self.reads in STATISTICS else None

    @abc.abstractmethod
    def score(
        self,
        members: Members,
        axes: Sequence[int],
        key: PRNGKeyArray | None,
        reduction: str,
        normalization: str,
    ) -> Float[AnyArray, " n"]:
        """One score per neuron, the larger the more it matters; see `ifjax.importance.score`.

        Args:
          members: at least one, float32 or float64, of any shapes; the first producer's first.
          axes: along which the neurons lie in every member.
          key: a random key of the group, for a metric that is ``random``.
          reduction: of the scores of several members to one.
          normalization: what the scores are divided by.

        Returns:
          The scores.
        """


class Metric(GroupMetric):
    """A metric that scores every member on its own; the base of one's own metrics.

    Nothing has to be registered: a spec takes the value itself.

    Example:
      >>> import dataclasses, ifjax, jax.numpy as jnp
      >>> from ifjax.importance import Metric
      >>> @dataclasses.dataclass(frozen=True)
      ... class Spread(Metric):
      ...     power: float = 1.0
      ...
      ...     def member(self, x, axis):
      ...         others = tuple(i for i in range(x.ndim) if i != axis)
      ...         return jnp.std(x, axis=others) ** self.power
      >>> params = {"w1": jnp.eye(4), "w2": jnp.array([[1.0, 1], [0, 5], [0, 9], [3, 3]])}
      >>> graph = ifjax.trace(lambda p, x: x @ p["w1"] @ p["w2"], params, jnp.ones((1, 4)))
      >>> spec = graph.spec(0.5, importance=Spread(power=2.0), solver="nearest")
      >>> ifjax.transport_maps(params, spec)["w1"].targets.tolist()
      [1, 2]
    """

    @abc.abstractmethod
    def member(self, x: Float[AnyArray, ...], axis: int) -> Float[AnyArray, " n"]:
        """The scores of the neurons on one member.

        Args:
          x: float32 or float64, see ``reads``.
          axis: along which the neurons lie; what the others hold belongs to a neuron. They are best
            reduced where they are: to transpose takes longer.

        Returns:
          One score per neuron, not negative.
        """

    def score(
        self,
        members: Members,
        axes: Sequence[int],
        key: PRNGKeyArray | None,
        reduction: str,
        normalization: str,
    ) -> Float[AnyArray, " n"]:
        """The scores of the members, reduced to one and normalised."""
        del key
        scores = [self.member(x, axis) for x, axis in zip(members, axes, strict=True)]
        for x in scores:
            check_shape(self, x, members[0].shape[axes[0]])
        return normalise(reduce(scores, reduction), normalization)


def reduce(scores: Sequence[Float[AnyArray, " n"]], reduction: str) -> Float[AnyArray, " n"]:
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
            return functools.reduce(namespace(*scores).maximum, scores)
        case "first":
            return scores[0]
    raise ValueError(f"reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")


def normalise(scores: Float[AnyArray, " n"], normalization: str) -> Float[AnyArray, " n"]:
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
    xp = namespace(scores)
    unit = getattr(xp, normalization)(scores)
    return scores / xp.where(unit > 0, unit, 1)


def check_shape(metric: GroupMetric, scores: PyTree, n: int) -> None:
    """Raises ValueError unless there is one real score for each of n neurons, inside of jit too."""
    shape, dtype = np.shape(scores), getattr(scores, "dtype", None)
    if dtype is None:
        got = f"a {type(scores).__name__}"
    elif shape != (n,):
        got = f"an array of shape {shape}"
    elif np.issubdtype(dtype, np.complexfloating):
        got = f"numbers of {dtype}"
    else:
        return
    raise ValueError(
        f"importance {metric!r}: expected one score for each of {n} neurons, got {got}"
    )
